"""Keys of the event API. Only their digests are kept: who reads the settings cannot post events."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping

from gateway.http import Request
from gateway.settings import ApiKey

_PREFIX = "mh_"
_LONGEST = 200


def make_key() -> tuple[str, str]:
    """A new key of 256 random bits, and what is kept of it."""
    key = _PREFIX + secrets.token_urlsafe(32)
    return key, key_hash(key)


def key_hash(key: str) -> str:
    """What is kept of a key. A plain digest: keys are random and long, so there is nothing to guess."""
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def given_key(request: Request) -> str:
    """The key that a request brings: `Authorization: Bearer KEY`, `X-API-Key: KEY`, or as Segment's libraries do, as
    the user of Basic auth; empty if it brings none.
    """
    scheme, _, value = request.header(b"authorization").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()[: _LONGEST + 1]
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value.strip(), validate=True).decode().partition(":")[0]
        except (binascii.Error, ValueError):
            return ""
    return request.header(b"x-api-key")[: _LONGEST + 1]


class Keys:
    """The keys of the settings."""

    def __init__(self, keys: Mapping[str, ApiKey]) -> None:
        self._keys = [(name, key.hash.encode(), key) for name, key in keys.items()]

    def find(self, key: str) -> tuple[str, ApiKey] | None:
        """Name and limits of a key; None if it is none. Compares with all of them, in constant time each."""
        if not key or len(key) > _LONGEST:
            return None
        given = key_hash(key).encode()
        found = None
        for name, kept, limits in self._keys:
            if hmac.compare_digest(kept, given):
                found = name, limits
        return found
