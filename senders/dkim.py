"""Signing messages with DKIM (RFC 6376, 8301, 8463): RSA and Ed25519, relaxed/relaxed.

What is signed are finished bytes, header and all, so nothing may change them afterwards but servers that add lines on
top. Both algorithms may be used at once, each with a selector of its own: Ed25519 is short and quick, and not every
receiver knows it yet.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from senders.mime import ascii_domain
from warehouse.errors import SettingsError

if TYPE_CHECKING:
    from senders.settings import SenderSettings

_SMALLEST_RSA = 2048
#: Fields that are signed, those that a message has; RFC 8058 asks for the two of List-Unsubscribe.
SIGNED_FIELDS = (
    b"from", b"to", b"subject", b"date", b"message-id", b"reply-to", b"mime-version", b"content-type",
    b"list-unsubscribe", b"list-unsubscribe-post", b"list-id", b"feedback-id",
)  # fmt: skip
# named once more than they occur: adding another one breaks the signature (RFC 6376 section 8.15)
_SEALED = (b"from", b"to", b"subject", b"reply-to")
_WHITE = re.compile(rb"[ \t]+")
_SELECTOR = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")


@dataclass(frozen=True)
class DkimKey:
    """A private key and the selector that its public half is published under. Never log it.

    Attributes:
        selector: the record is at `<selector>._domainkey.<domain>`.
        pem: an unencrypted private key, RSA of at least 2048 bits or Ed25519.
    """

    selector: str
    pem: str = field(repr=False)

    @cached_property
    def algorithm(self) -> str:
        """`rsa-sha256` or `ed25519-sha256`."""
        return "rsa-sha256" if isinstance(self._key, RSAPrivateKey) else "ed25519-sha256"

    @cached_property
    def _key(self) -> RSAPrivateKey | Ed25519PrivateKey:
        try:
            key = load_pem_private_key(self.pem.encode(), None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            # not the reason: it may quote the key
            raise SettingsError(
                f"The DKIM key of selector {self.selector} is no unencrypted private key in PEM.",
                fix="Make one: openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out dkim.pem",
            ) from None
        if isinstance(key, RSAPrivateKey):
            if key.key_size < _SMALLEST_RSA:
                raise SettingsError(
                    f"The DKIM key of selector {self.selector} has {key.key_size} bits, too few to be trusted.",
                    fix=f"Make one of {_SMALLEST_RSA} bits.",
                )
            return key
        if isinstance(key, Ed25519PrivateKey):
            return key
        raise SettingsError(
            f"The DKIM key of selector {self.selector} is neither RSA nor Ed25519.",
            fix="Make one of the two.",
        )

    def signature(self, data: bytes) -> bytes:
        """The signature over canonical header fields."""
        if isinstance(self._key, RSAPrivateKey):
            return self._key.sign(data, PKCS1v15(), hashes.SHA256())
        # Ed25519 signs the hash (RFC 8463 section 3)
        return self._key.sign(hashlib.sha256(data).digest())

    def record(self) -> str:
        """The TXT record to publish."""
        if isinstance(self._key, RSAPrivateKey):
            kind, public = (
                "rsa",
                self._key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            )
        else:
            kind, public = "ed25519", self._key.public_key().public_bytes_raw()
        return f"v=DKIM1; k={kind}; p={base64.b64encode(public).decode()}"

    def __reduce__(self) -> tuple[type[DkimKey], tuple[str, str]]:
        return DkimKey, (self.selector, self.pem)


@dataclass(frozen=True)
class DkimSigner:
    """Signs messages in a domain's name. Can be pickled.

    Attributes:
        domain: that of the sender's address, or one above it, or DMARC counts the signature for nothing.
        keys: each makes a signature of its own.
    """

    domain: str
    keys: tuple[DkimKey, ...]
    clock: Callable[[], float] = field(default=time.time, repr=False)

    @classmethod
    def from_settings(cls, settings: SenderSettings, sender: str) -> DkimSigner | None:
        """The signer that the settings ask for; None if they name no key.

        Args:
            sender: the address that messages come from.

        Raises:
            SettingsError: a key cannot be read or used, a selector is missing, or the domain is not the sender's.
        """
        keys: list[DkimKey] = []
        for name in ("dkim", "dkim_second"):
            secret, selector = getattr(settings, f"{name}_key"), getattr(settings, f"{name}_selector")
            if secret is None:
                continue
            if not _SELECTOR.fullmatch(selector):
                raise SettingsError(
                    f"MAILHOUSE_{name.upper()}_SELECTOR {selector!r} is no selector.",
                    fix="Set it to the name before ._domainkey in DNS.",
                )
            keys.append(DkimKey(selector, _pem(secret.get_secret_value(), name)))
        if not keys:
            return None
        own = ascii_domain(sender.rpartition("@")[2]).lower()
        domain = settings.dkim_domain.lower() or own
        if own != domain and not own.endswith(f".{domain}"):
            raise SettingsError(
                f"DKIM would sign for {domain}, but mail comes from {own}: receivers would not count it (DMARC).",
                fix=f"Set MAILHOUSE_DKIM_DOMAIN to {own}, or leave it out.",
            )
        for key in keys:
            _ = key.algorithm
        return cls(domain, tuple(keys))

    def sign(self, raw: bytes, *, is_relaxed: bool = False) -> bytes:
        """The message with its signatures on top.

        Args:
            raw: a whole message with CRLF line ends.
            is_relaxed: the body is known to have no tabs, no spaces in a row or at a line's end, and one line end last.
        """
        header, _, body = raw.partition(b"\r\n\r\n")
        fields = canonical_fields(header)
        # from the bottom up, as verifiers count (RFC 6376 section 5.4.2)
        names: list[bytes] = []
        lines: list[bytes] = []
        for name in SIGNED_FIELDS:
            found = fields.get(name, ())
            names += [name] * len(found)
            lines += reversed(found)
        names += _SEALED
        relaxed = body if is_relaxed else canonical_body(body)
        digest = base64.b64encode(hashlib.sha256(relaxed).digest()).decode()
        signed = b"\r\n".join([*lines, b""])
        moment = int(self.clock())
        made: list[bytes] = []
        for key in self.keys:
            tags = (
                f"v=1; a={key.algorithm}; c=relaxed/relaxed; d={self.domain}; s={key.selector}; t={moment};",
                f"h={_folded(names)};", f"bh={digest};", "b=",
            )  # fmt: skip
            canonical = "dkim-signature:" + " ".join(tags).replace("\r\n ", " ")
            signature = base64.b64encode(key.signature(signed + canonical.encode()))
            pieces = [signature[at : at + 72] for at in range(0, len(signature), 72)]
            made.append(
                b"DKIM-Signature: " + "\r\n ".join(tags).encode() + b"\r\n ".join([b"", *pieces]) + b"\r\n"
            )
        return b"".join([*made, raw])


def canonical_fields(header: bytes) -> dict[bytes, list[bytes]]:
    """Header fields in relaxed form (RFC 6376 section 3.4.2), by name in small letters, in order."""
    fields: dict[bytes, list[bytes]] = {}
    unfolded = header.replace(b"\r\n ", b" ").replace(b"\r\n\t", b" ")
    for line in unfolded.split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.rstrip(b" \t").lower()
        fields.setdefault(name, []).append(name + b":" + _WHITE.sub(b" ", value).strip(b" "))
    return fields


def canonical_body(body: bytes) -> bytes:
    """A body in relaxed form (RFC 6376 section 3.4.4)."""
    if b"  " in body or b"\t" in body or b" \r\n" in body:
        body = _WHITE.sub(b" ", body).replace(b" \r\n", b"\r\n")
    end = len(body)
    while body.endswith(b"\r\n", 0, end):
        end -= 2
    if body.endswith(b" ", 0, end):
        end -= 1
    return body[:end] + b"\r\n" if end else b""


def _folded(names: Sequence[bytes]) -> str:
    """Names with colons between them, a line break after every six."""
    groups = [b":".join(names[at : at + 6]).decode() for at in range(0, len(names), 6)]
    return ":\r\n ".join(groups)


def _pem(value: str, name: str) -> str:
    """The key itself, or what is in the file that is named."""
    if "-----BEGIN" in value:
        # one line of .env has no line breaks of its own
        return value.replace("\\n", "\n")
    try:
        return Path(value).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(
            f"MAILHOUSE_{name.upper()}_KEY is neither a key nor a file that can be read: {reason}.",
            fix="Set it to the path of a PEM file, or to its content.",
        ) from None
