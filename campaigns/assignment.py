"""Who gets which variant: a hash of (experiment, contact), the same in SQL and Python.

The first four bytes of MD5 over `experiment`, a line feed and the contact's number, read as a whole number with the
highest byte first, place a contact among 2^32; the variants take their shares of these in the order in which they
are written. So an assignment needs no storage, never changes while weights stay, and is independent from one
experiment to the next. MD5 because ClickHouse and Python both have it at hand; nothing here is secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import accumulate

POSITIONS = 2**32


def position(experiment: str, contact_id: int) -> int:
    """Where the hash places a contact: 0 to 2^32 - 1."""
    digest = hashlib.md5(f"{experiment}\n{contact_id}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:4], "big")


def thresholds(weights: Mapping[str, int]) -> list[int]:
    """The position below which each variant ends, in the order of the weights; the last is 2^32.

    Raises:
        ValueError: there is no weight, or one is not positive.
    """
    if not weights or min(weights.values()) <= 0:
        raise ValueError("an experiment needs variants with positive weights")
    total = sum(weights.values())
    return [POSITIONS * so_far // total for so_far in accumulate(weights.values())]


def assign(experiment: str, weights: Mapping[str, int], contact_id: int) -> str:
    """The variant of a contact."""
    place = position(experiment, contact_id)
    ends = zip(weights, thresholds(weights), strict=True)
    return next(name for name, end in ends if place < end)


def position_sql(experiment: str, column: str = "contact_id") -> str:
    """`position` as a ClickHouse expression over a column of whole numbers."""
    text = "".join(f"\\{character}" if character in "\\'" else character for character in experiment)
    return f"reinterpretAsUInt32(reverse(substring(MD5(concat('{text}', '\\n', toString({column}))), 1, 4)))"
