"""Keys of people as the warehouse makes them (`dbt_project/macros/identity.sql`), without asking it.

ClickHouse's `sipHash64` is SipHash-2-4 (Aumasson and Bernstein, 2012) under a key of zeros; of several arguments each
is hashed, and the hashes are hashed together, two at a time. A key takes microseconds, a query milliseconds.
"""

from __future__ import annotations

from nacl.bindings import crypto_shorthash_siphash24

_KEY = bytes(16)


def sip_hash(*parts: str | int) -> int:
    """`sipHash64` of texts and Int64 numbers, unsigned."""
    first, *rest = parts
    made = _hashed(first)
    for part in rest:
        made = crypto_shorthash_siphash24(made + _hashed(part), _KEY)
    return int.from_bytes(made, "little")


def normalised_email(text: str) -> str:
    """An address as identity knows it: trimmed, lower case, of ASCII's letters alone, as ClickHouse's `lower` does."""
    text = text.strip(" \t\r\n")
    return (
        text.lower()
        if text.isascii()
        else text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "replace")
    )


def contact_of(key: str) -> int:
    """The contact_id of a contact key: its normalised email, or `source:external_id`."""
    return sip_hash(key) >> 1


def identity_of(source: str, external_id: str, email: str) -> int:
    """The identity_id of a record or a normalised address; 0 if there is neither."""
    if not external_id and not email:
        return 0
    if not external_id:
        # of an address alone the first two parts are always the same
        return int.from_bytes(crypto_shorthash_siphash24(_NO_RECORD + _hashed(email), _KEY), "little") >> 1
    return sip_hash(source, external_id, email) >> 1


def visitor_of(source: str, anonymous_id: str) -> int:
    """The identity_id of what names a visitor alone, below 0."""
    return -(sip_hash(source, anonymous_id) >> 1)


def person_of(source: str, external_id: str, email: str) -> int:
    """Who an event says that its visitor is: the account if it gives one, else the normalised address; 0 if neither."""
    return identity_of(source, external_id, "" if external_id else email)


def identity_of_message(contact_id: int, email: str) -> int:
    """The identity_id of whom a message was sent to, by the contact and the normalised address that the ledger has."""
    return sip_hash("message", contact_id, email) >> 1


def _hashed(part: str | int) -> bytes:
    if isinstance(part, int):
        return crypto_shorthash_siphash24(part.to_bytes(8, "little", signed=True), _KEY)
    return crypto_shorthash_siphash24(part.encode("utf-8", "surrogatepass"), _KEY)


_NO_RECORD = crypto_shorthash_siphash24(2 * _hashed(""), _KEY)
