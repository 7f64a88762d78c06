"""Signed links: who holds the link of a message may unsubscribe its recipient, and nobody else can make one.

A token is the message's id and a signature, 43 characters. It names no address and no contact; the gateway finds them
by the message id. Signature: HMAC-SHA256 over purpose and id, cut to 128 bits (RFC 2104 section 5 allows half).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import uuid

PURPOSES = ("unsubscribe", "preferences", "confirm", "track", "click")
_PREFIXES = {purpose: f"mailhouse\0{purpose}\0".encode() for purpose in PURPOSES}
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_ID = 16
_SIGNATURE = 16
TOKEN_LENGTH = 43  # characters
_BLOCK = 64  # bytes of SHA-256's block


class LinkKey:
    """The signing key, made ready to sign many links: half the time of `make_token` each. Never log it."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        block = hashlib.sha256(key).digest() if len(key) > _BLOCK else key
        inner, outer = (bytes(byte ^ pad for byte in block.ljust(_BLOCK, b"\0")) for pad in (0x36, 0x5C))
        self._inner = {purpose: hashlib.sha256(inner + prefix) for purpose, prefix in _PREFIXES.items()}
        self._outer = hashlib.sha256(outer)

    def token(self, message_id: str, purpose: str) -> str:
        """As `make_token`."""
        return self.token_of(id_content(message_id), purpose).decode()

    def token_of(self, content: bytes, purpose: str) -> bytes:
        """The token, ASCII, of what `id_content` made of a message id."""
        token = binascii.b2a_base64(content + self.sign(purpose, content), newline=False)
        return token.translate(_URL_SAFE)[:TOKEN_LENGTH]

    def sign(self, purpose: str, content: bytes) -> bytes:
        """HMAC-SHA256 over purpose and content (RFC 2104), cut to 128 bits."""
        inner, outer = self._inner[purpose].copy(), self._outer.copy()
        inner.update(content)
        outer.update(inner.digest())
        return outer.digest()[:_SIGNATURE]

    def __repr__(self) -> str:
        return "LinkKey(...)"

    def __reduce__(self) -> tuple[type[LinkKey], tuple[bytes]]:
        return LinkKey, (self.key,)


def id_content(message_id: str) -> bytes:
    """The sixteen bytes of a message id.

    Raises:
        ValueError: the message id is no UUID.
    """
    content = bytes.fromhex(message_id.replace("-", ""))
    if len(content) != _ID:
        raise ValueError(f"{message_id!r} is no UUID")
    return content


def make_token(key: bytes, message_id: str, purpose: str = "unsubscribe") -> str:
    """The token of a message for one purpose.

    Raises:
        ValueError: the message id is no UUID.
    """
    if purpose not in _PREFIXES:
        raise ValueError(f"purpose {purpose!r} is none of {', '.join(PURPOSES)}")
    return LinkKey(key).token(message_id, purpose)


def verify_token(key: bytes, token: str, purpose: str = "unsubscribe") -> str | None:
    """The message id that a token was made for; None if we did not make it for this purpose."""
    # other spellings of the same bytes are refused: one message has one link
    if len(token) != TOKEN_LENGTH or not token.isascii():
        return None
    try:
        content = base64.b64decode(token + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(content) != _ID + _SIGNATURE:
        return None
    expected = LinkKey(key).sign(purpose, content[:_ID])
    if not hmac.compare_digest(expected, content[_ID:]):
        return None
    message_id = str(uuid.UUID(bytes=content[:_ID]))
    return message_id if make_token(key, message_id, purpose) == token else None
