"""Message ids: derived, never random, so that the same message is the same row however often it is sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from uuid import UUID

NAMESPACE = UUID("b7a1b1f5-6f0e-5b1e-9a53-2d6a3c1c7d10")
"""Namespace of all message ids. Changing it would send everything again."""

_VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
KINDS = ("campaign", "journey", "trigger")


def occurrence_key(occurrence: datetime) -> str:
    """A scheduled instant as text, UTC, to the second: `2011-06-27T09:00:00Z`.

    Raises:
        ValueError: the time has no time zone, or a fraction of a second, which would be lost.
    """
    if occurrence.tzinfo is None:
        raise ValueError("an occurrence needs a time zone")
    moment = occurrence.astimezone(UTC)
    if moment.microsecond:
        raise ValueError("an occurrence is a whole second")
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


@lru_cache(maxsize=8192)
def message_id(kind: str, name: str, contact_id: int, occurrence: datetime | str) -> str:
    """The id of the one message that a thing sends to a contact in one occurrence: a UUIDv5 (RFC 9562).

    Args:
        kind: one of `KINDS`.
        name: name of the campaign, `journey.step`, or trigger.
        contact_id: the contact.
        occurrence: the scheduled instant, or the text that names the occurrence.

    The newest are remembered: what is sent at once is asked for its id at each step.
    """
    return message_ids(kind, name, [contact_id], occurrence)[0]


def message_ids(kind: str, name: str, contact_ids: Iterable[int], occurrence: datetime | str) -> list[str]:
    """`message_id` of many contacts, in their order; a tenth of the cost of one call each.

    Raises:
        ValueError: the kind is none of `KINDS`, or a name holds a line break, which separates the parts.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    key = occurrence if isinstance(occurrence, str) else occurrence_key(occurrence)
    if "\n" in name or "\n" in key:
        raise ValueError("name and occurrence must not hold line breaks")
    # the parts that all ids share are hashed once
    shared = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)
    shared.update(f"{kind}\n{name}\n{key}\n".encode())
    ids: list[str] = []
    for contact_id in contact_ids:
        digest = shared.copy()
        digest.update(b"%d" % contact_id)
        text = digest.hexdigest()
        ids.append(f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANTS[text[16]]}{text[17:20]}-{text[20:32]}")
    return ids
