"""Salesforce's words and ours: names, values, times, queries, results in CSV, and how far reading has come."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import orjson

from crm.base import CrmError, CrmRefusedError, utc_time

ID: Final = re.compile(r"[A-Za-z0-9]{15}([A-Za-z0-9]{3})?")
OURS: Final = re.compile(r"Mailhouse_[A-Za-z0-9_]+__c")
"""Fields that `set_up` makes."""
MOST_VALUES: Final = 400
"""Values between the brackets of one query: as many ids as an address holds."""

_QUERY_CHARACTERS = 11_000  # an address may have 16,384
_ZULU = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3})\+0000")


@dataclass(frozen=True, slots=True)
class Place:
    """How far reading has come.

    Attributes:
        until: a reading that has ended: all up to here are read, but for what was on its way then.
        at, id: one that has not: the last record read.
        job, locator, columns: one in bulk that has not: what comes next, and the names of its columns.
        began, newest: Salesforce's time when it began, the newest stamp it has seen.
    """

    until: datetime | None = None
    at: datetime | None = None
    id: str = ""
    job: str = ""
    locator: str = ""
    began: datetime | None = None
    newest: datetime | None = None
    columns: tuple[str, ...] = field(default=())

    def finished(self, began: datetime | None, newest: datetime | None) -> Place:
        """The place of a reading that has ended."""
        if newest is None:
            return Place(until=self.until or began)
        return Place(until=min(began, newest) if began is not None else newest)

    def text(self) -> str:
        """As a cursor."""
        said: dict[str, Any] = {}
        for name in ("until", "at", "began", "newest"):
            if (moment := getattr(self, name)) is not None:
                said[name] = literal(moment)
        for name in ("id", "job", "locator"):
            if value := getattr(self, name):
                said[name] = value
        if self.columns:
            said["columns"] = list(self.columns)
        return json.dumps(said, separators=(",", ":"))

    @classmethod
    def parse(cls, cursor: str | None) -> Place:
        """A cursor's place.

        Raises:
            CrmRefusedError: it is none of ours.
        """
        if cursor is None:
            return cls()
        try:
            said = json.loads(cursor)
            until, at, began, newest = (
                utc_time(said.get(name)) for name in ("until", "at", "began", "newest")
            )
            number, job, locator = (str(said.get(name) or "") for name in ("id", "job", "locator"))
            columns = tuple(map(str, said.get("columns") or ()))
            place = cls(until, at, number, job, locator, began, newest, columns)
        except (ValueError, AttributeError, TypeError):
            place = cls()
        is_good = place.until is not None or bool(ID.fullmatch(place.job)) or place.at is not None
        if not is_good or (place.at is not None and not ID.fullmatch(place.id)):
            raise CrmRefusedError(
                f"This is no place at which reading of Salesforce can go on: {cursor[:80]!r}.",
                fix="Forget it, and all is read again.",
            )
        return place


def api_name(name: str) -> str:
    """Salesforce's name of a custom field: `mailhouse_engagement_score` is `Mailhouse_Engagement_Score__c`."""
    return "_".join(part[:1].upper() + part[1:] for part in name.split("_")) + "__c"


def our_name(column: str) -> str:
    """Our name of a custom field that is ours; others keep Salesforce's."""
    return column.removesuffix("__c").lower() if OURS.fullmatch(column) else column


def select(columns: Sequence[str], sobject: str, rest: str = "") -> str:
    """A query."""
    return " ".join(("SELECT", ",".join(columns), "FROM", sobject, rest)).rstrip()


def groups(values: Sequence[str]) -> Iterator[str]:
    """Values as they stand between the brackets of IN, as many as an address holds."""
    group, size = list[str](), 0
    for value in dict.fromkeys(values):
        text = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
        length = len(quote(text, safe="")) + 3
        if group and (size + length > _QUERY_CHARACTERS or len(group) >= MOST_VALUES):
            yield ",".join(group)
            group, size = [], 0
        group.append(text)
        size += length
    if group:
        yield ",".join(group)


def csv_records(content: bytes, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """A result's rows; it may or may not repeat the names of its columns."""
    names = list(columns)
    for number, cells in enumerate(
        csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline=""))
    ):
        if number == 0 and (
            not names or [cell.lower() for cell in cells] == [name.lower() for name in names]
        ):
            names = names or cells
            continue
        if not cells:
            continue
        if len(cells) != len(names):
            if number == 0 and sorted(map(str.lower, cells)) == sorted(map(str.lower, names)):
                names = cells
                continue
            raise CrmError("A result of Salesforce's has rows of different length.", fix="Run again.")
        yield dict(zip(names, cells, strict=True))


def dumped(values: Mapping[str, str]) -> str:
    try:
        return orjson.dumps(values).decode()
    except TypeError:
        # half of a surrogate pair, which JSON can spell, is no text
        return json.dumps(values, ensure_ascii=False).encode("utf-8", "replace").decode()


def inner(record: Mapping[str, Any], column: str) -> Any:
    """A value by its name; of a record that another points to by a path."""
    if column in record or "." not in column:
        return record.get(column)
    value: Any = record
    for part in column.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def text_of(value: Any) -> str:
    """A value as a Bulk query writes it, so that records are the same however they were read."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        found = _ZULU.fullmatch(value)
        return f"{found[1]}Z" if found else value
    return json.dumps(value, ensure_ascii=False)


def address(value: Any) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


def whole(moment: datetime) -> datetime:
    """To the millisecond."""
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def literal(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"
