"""Signed links: who holds the link of a message may unsubscribe its recipient, and nobody else can make one.

A token is the message's id and a signature, 43 characters. It names no address and no contact; the gateway finds them
by the message id. Signature: HMAC-SHA256 over purpose and id, cut to 128 bits (RFC 2104 section 5 allows half).
"""

from __future__ import annotations

import base64
import binascii
import hmac
import uuid

PURPOSES = ("unsubscribe", "preferences", "track")
_PREFIXES = {purpose: f"mailhouse\0{purpose}\0".encode() for purpose in PURPOSES}
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_ID = 16
_SIGNATURE = 16


def make_token(key: bytes, message_id: str, purpose: str = "unsubscribe") -> str:
    """The token of a message for one purpose.

    Raises:
        ValueError: the message id is no UUID.
    """
    content = bytes.fromhex(message_id.replace("-", ""))
    if len(content) != _ID:
        raise ValueError(f"{message_id!r} is no UUID")
    token = binascii.b2a_base64(content + _sign(key, purpose, content), newline=False)
    return token.translate(_URL_SAFE).rstrip(b"=").decode()


def verify_token(key: bytes, token: str, purpose: str = "unsubscribe") -> str | None:
    """The message id that a token was made for; None if we did not make it for this purpose."""
    # other spellings of the same bytes are refused: one message has one link
    if len(token) != 43 or not token.isascii():
        return None
    try:
        content = base64.b64decode(token + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    if len(content) != _ID + _SIGNATURE:
        return None
    expected = _sign(key, purpose, content[:_ID])
    if not hmac.compare_digest(expected, content[_ID:]):
        return None
    message_id = str(uuid.UUID(bytes=content[:_ID]))
    return message_id if make_token(key, message_id, purpose) == token else None


def unsubscribe_url(base_url: str, message_id: str, key: bytes) -> str:
    """The link of one message: GET shows a page that asks, POST unsubscribes (RFC 8058)."""
    return f"{base_url.rstrip('/')}/unsubscribe/{make_token(key, message_id)}"


def preferences_url(base_url: str, message_id: str, key: bytes) -> str:
    """The link to the page where the recipient chooses what to get."""
    return f"{base_url.rstrip('/')}/preferences/{make_token(key, message_id, 'preferences')}"


def _sign(key: bytes, purpose: str, content: bytes) -> bytes:
    if purpose not in _PREFIXES:
        raise ValueError(f"purpose {purpose!r} is none of {', '.join(PURPOSES)}")
    # the name, not the function: OpenSSL's one-shot HMAC takes a third of the time
    return hmac.digest(key, _PREFIXES[purpose] + content, "sha256")[:_SIGNATURE]
