"""The audit log of what was done for the rights of people: rows of `raw.audit_log`, each chained to the one before it.

A row says who (the user of the operating system, or whom `--actor` names), when, what, for whom (keyed hashes, so that
the log itself names nobody), with what outcome and for which reason or ticket. Its hash is HMAC-SHA256 over all of that
and the hash of the row before, under the key of erasures: whoever changes, removes or slips in a row without the key
breaks the chain. Rows cut off at the end show by `audit_head` in the home folder, which has number and hash of the
newest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import polars as pl

from crm.locks import one_at_a_time
from privacy.person import Person
from warehouse.actor import own_name
from warehouse.client import Warehouse
from warehouse.erasures import keyed_hash, normalised_email
from warehouse.errors import InputError
from warehouse.settings import MailhouseSettings

VERBS: Final = ("export", "erase", "rectify", "restrict", "unrestrict", "readmit")
_FIELDS: Final = ("sequence", "occurred_at", "actor", "verb", "subject", "outcome", "reason", "counts")
_HASH_CHARACTERS = 16


@dataclass(frozen=True)
class Entry:
    """One row of the log; `counts` from stores to rows."""

    sequence: int
    occurred_at: datetime
    actor: str
    verb: str
    subject: str
    outcome: str
    reason: str
    counts: Mapping[str, int]
    previous_hash: str
    hash: str


def subject_of(settings: MailhouseSettings, person: Person) -> str:
    """Keyed hashes of a person's contacts and addresses, with spaces: by each of them the log can be asked."""
    key = settings.erasure_secret()
    names = [f"contact:{one}" for one in sorted(person.contact_ids)]
    names += [f"email:{one}" for one in sorted(person.emails)]
    names += [f"record:{source}:{external_id}" for source, external_id in sorted(person.records)]
    return " ".join(_subject(key, one) for one in names)


def subject_for(
    settings: MailhouseSettings, *, contact_id: int = 0, email: str = "", record: str = ""
) -> str:
    """What `subject_of` has for one name; empty for none."""
    name = (
        f"contact:{contact_id}"
        if contact_id
        else f"email:{normalised_email(email)}"
        if email
        else f"record:{record}"
        if record
        else ""
    )
    return _subject(settings.erasure_secret(), name) if name else ""


def _subject(key: bytes, name: str) -> str:
    return keyed_hash(key, "subject", name)[:_HASH_CHARACTERS]


def record(
    warehouse: Warehouse,
    settings: MailhouseSettings,
    *,
    verb: str,
    subject: str,
    outcome: str,
    actor: str = "",
    reason: str = "",
    counts: Mapping[str, int] | None = None,
) -> Entry:
    """Add a row to the log.

    Raises:
        WarehouseError: it could not be written: do not do what cannot be proved.
    """
    key = settings.erasure_secret()
    with one_at_a_time(settings.home, "audit_log"):
        last = warehouse.frame("select sequence, hash from raw.audit_log order by sequence desc limit 1")
        sequence, previous = (int(last[0, 0]) + 1, str(last[0, 1])) if last.height else (1, "")
        moment = settings.now().astimezone(UTC)
        values: dict[str, Any] = {
            "sequence": sequence, "occurred_at": moment, "actor": actor or own_name(), "verb": verb,
            "subject": subject, "outcome": outcome, "reason": reason,
            "counts": json.dumps(dict(sorted((counts or {}).items()))),
        }  # fmt: skip
        made = _hash(key, values, previous)
        warehouse.insert(
            "raw.audit_log",
            pl.DataFrame(
                [{**values, "previous_hash": previous, "hash": made}],
                schema_overrides={"sequence": pl.UInt64(), "occurred_at": pl.Datetime("ms", "UTC")},
            ),
        )
        _keep_head(settings.home, sequence, made)
    return Entry(**{**values, "counts": dict(counts or {})}, previous_hash=previous, hash=made)


def entries(warehouse: Warehouse, *, subject: str = "", limit: int = 0) -> list[Entry]:
    """Rows of the log, oldest first; the newest `limit` of them, 0 for all.

    Args:
        subject: a hash of `subject_for`, or its beginning.
    """
    rows = warehouse.frame(
        """
        select sequence, occurred_at, actor, verb::String as verb, subject, outcome::String as outcome, reason, counts,
            previous_hash, hash
        from raw.audit_log where {subject:String} = '' or position(subject, {subject:String}) > 0
        order by sequence desc, recorded_at desc limit {limit:UInt64}
        """,
        {"subject": subject, "limit": limit or 2**62},
    )
    found = [Entry(**{**row, "counts": json.loads(row["counts"] or "{}")}) for row in rows.to_dicts()]
    return found[::-1]


def problems(warehouse: Warehouse, settings: MailhouseSettings) -> list[str]:
    """What is wrong with the chain; empty if every row stands as it was written and none is missing.

    Raises:
        InputError: the key is not the one under which the log was written, by all appearances.
    """
    key = settings.erasure_secret()
    found: list[str] = []
    before = ""
    expected = 1
    rows: Sequence[Entry] = entries(warehouse)
    intact = 0
    for row in rows:
        if row.sequence != expected:
            what = "is there twice" if row.sequence < expected else "is missing"
            found.append(f"row {row.sequence if row.sequence < expected else expected} {what}")
        values = {name: getattr(row, name) for name in _FIELDS}
        values["counts"] = json.dumps(dict(sorted(row.counts.items())))
        if row.previous_hash != before and row.sequence == expected:
            found.append(f"row {row.sequence} does not follow the row before it")
        if _hash(key, values, row.previous_hash) == row.hash:
            intact += 1
        else:
            found.append(f"row {row.sequence} was changed")
        before, expected = row.hash, row.sequence + 1
    head = _head(settings.home)
    if head and not any((row.sequence, row.hash) == head for row in rows):
        found.append(f"row {head[0]}, the newest when it was written, is missing or was changed")
    if rows and not intact:
        raise InputError(
            "No row of the audit log fits the key of erasures: it is another key, or every row was changed.",
            fix="Set MAILHOUSE_ERASURE_KEY, or put back the file erasure_key, with which the log was written.",
        )
    return found


def _hash(key: bytes, values: Mapping[str, Any], previous: str) -> str:
    moment = values["occurred_at"].astimezone(UTC)
    said = [
        *(values[name] for name in _FIELDS if name != "occurred_at"),
        moment.isoformat(timespec="milliseconds"),
    ]
    return keyed_hash(key, "audit", json.dumps([*said, previous], ensure_ascii=False))


def _keep_head(home: Path, sequence: int, made: str) -> None:
    path = home / "audit_head"
    partial = path.with_name(f".audit_head.{os.getpid()}")
    partial.write_text(f"{sequence} {made}\n")
    partial.replace(path)


def _head(home: Path) -> tuple[int, str] | None:
    try:
        number, made = (home / "audit_head").read_text().split()
    except (OSError, ValueError):
        return None
    return int(number), made
