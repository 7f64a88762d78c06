"""Whether bytes name a person: addresses and numbers as text in any case, ids as whole words.

Thousands of ids are not tried one by one: what looks like an id is looked up among them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from mmap import mmap

from privacy.person import Person

_UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_NUMBER = re.compile(rb"(?<![0-9])[0-9]{6,19}(?![0-9])")
_IS_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True)
class Search:
    """Looks for the needles of one person."""

    needles: tuple[str, ...]

    @classmethod
    def of(cls, person: Person) -> Search:
        """For a person's names that are hardly anybody else's."""
        return cls(tuple(person.needles()))

    @cached_property
    def _ids(self) -> frozenset[bytes]:
        return frozenset(one.lower().encode() for one in self.needles if _IS_UUID.fullmatch(one))

    @cached_property
    def _numbers(self) -> frozenset[bytes]:
        return frozenset(one.encode() for one in self.needles if one.isdigit() and one.isascii())

    @cached_property
    def _texts(self) -> re.Pattern[bytes] | None:
        texts = [
            re.escape(one.encode())
            for one in self.needles
            if not _IS_UUID.fullmatch(one) and not (one.isdigit() and one.isascii())
        ]
        return re.compile(b"|".join(texts), re.IGNORECASE) if texts else None

    def is_in(self, data: bytes | mmap) -> bool:
        """Whether the bytes name the person."""
        if self._texts is not None and self._texts.search(data):
            return True
        if self._ids and any(one.group().lower() in self._ids for one in _UUID.finditer(data)):
            return True
        return bool(self._numbers) and any(one.group() in self._numbers for one in _NUMBER.finditer(data))

    def masked(self, data: bytes) -> bytes:
        """The bytes with every name of the person crossed out, of the same length."""

        def cross(found: re.Match[bytes]) -> bytes:
            return b"x" * len(found.group())

        if self._texts is not None:
            data = self._texts.sub(cross, data)
        if self._ids:
            data = _UUID.sub(
                lambda found: cross(found) if found.group().lower() in self._ids else found.group(), data
            )
        if self._numbers:
            data = _NUMBER.sub(
                lambda found: cross(found) if found.group() in self._numbers else found.group(), data
            )
        return data
