"""Bounces and complaints from a folder or an IMAP mailbox into `raw.events`.

Each report becomes one event a recipient, whose id follows from the report itself: read twice, it counts once. A report
is put aside (folder) or marked as seen (IMAP) only after the warehouse has its events, so a crash between the two
repeats, and loses nothing. An address that bounces softly too often within a while gets a hard bounce on top, which
suppresses it.
"""

from __future__ import annotations

import contextlib
import hashlib
import imaplib
import json
import ssl
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import polars as pl

from senders.bounces import Report, parse
from senders.ledger import Ledger
from senders.message import EventType
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import InputError, SettingsError
from warehouse.loads import load_events

SOURCE = "bounces"
_BATCH = 500
_LARGEST = 2_000_000  # bytes of one report; mail servers return far less
_KEPT = 20_000  # characters of a report that are kept as `esp_event`
_NAMESPACE = uuid.UUID("6f3c1f0a-4f0e-5c3b-9a50-0d1f6f1b7a11")


@dataclass
class Intake:
    """What became of the reports that were read.

    Attributes:
        read: messages read.
        events: new events, by type.
        duplicates: events that the warehouse had.
        escalated: addresses that had bounced softly too often.
        unreadable: messages that report nothing.
    """

    read: int = 0
    events: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    escalated: int = 0
    unreadable: int = 0


def ingest_bounces(
    settings: SenderSettings, warehouse: Warehouse, ledger: Ledger, *, run_id: str = ""
) -> Intake:
    """Read all that has come to the folder and the mailbox of the settings.

    Raises:
        InputError: the folder or the mailbox cannot be read.
        SettingsError: `MAILHOUSE_BOUNCE_IMAP_URL` is no such URL.
        WarehouseError: what was read until then is kept, the rest is read the next time.
    """
    intake = Intake()
    if settings.bounce_folder is not None:
        for batch in _folder(settings.bounce_folder):
            _load(batch, settings, warehouse, ledger, intake, run_id)
    if settings.bounce_imap_url is not None:
        with _mailbox(settings.bounce_imap_url.get_secret_value()) as batches:
            for batch in batches:
                _load(batch, settings, warehouse, ledger, intake, run_id)
    intake.escalated = escalate(settings, warehouse, run_id=run_id)
    return intake


@dataclass(frozen=True)
class _Batch:
    """Some reports, and what says that they have been dealt with."""

    contents: list[bytes]
    done: Callable[[], None]


def _load(
    batch: _Batch, settings: SenderSettings, warehouse: Warehouse, ledger: Ledger, intake: Intake, run_id: str
) -> None:
    rows: list[dict[str, Any]] = []
    for content in batch.contents:
        intake.read += 1
        reports = parse(content[:_LARGEST])
        if not reports:
            intake.unreadable += 1
        digest = hashlib.sha256(content).hexdigest()
        rows += [_event(report, digest, content, ledger, settings.now()) for report in reports]
    # an autoresponder of somebody we know nothing about is of no use to anybody
    rows = [row for row in rows if row["email"] or row["message_id"]]
    if rows:
        _insert(rows, warehouse, intake, run_id)
    batch.done()


def _insert(rows: list[dict[str, Any]], warehouse: Warehouse, intake: Intake, run_id: str) -> int:
    frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(
        pl.col("occurred_at", "received_at").cast(pl.Datetime("ms", "UTC"))
    )
    # of each kind by itself, so that the counts are of events that are new
    loaded = 0
    for (kind,), part in frame.group_by("type", maintain_order=True):
        result = load_events(warehouse, part, run_id=run_id)
        intake.duplicates += result.duplicates
        if result.loaded:
            intake.events[str(kind)] += result.loaded
        loaded += result.loaded
    return loaded


def _event(report: Report, digest: str, content: bytes, ledger: Ledger, now: datetime) -> dict[str, Any]:
    address = report.email
    if not address and report.message_id and (known := ledger.recipient_of(report.message_id)):
        address = known[0].lower()
    occurred = report.occurred_at
    if occurred is None or not timedelta() <= now - occurred <= timedelta(days=60):
        # clocks of strange servers; what we know is when we read it
        occurred = now
    properties = {
        "bounce_class": report.bounce_class, "reject_reason": str(report.reject_reason), "status": report.status,
        "diagnostic": report.diagnostic,
    }  # fmt: skip
    if report.bounce_class:
        properties["is_permanent"] = "true" if report.is_permanent else "false"
    return {
        "event_id": str(uuid.uuid5(_NAMESPACE, f"{digest} {report.type} {report.email}")),
        "type": report.type.value, "source": SOURCE, "email": address, "message_id": report.message_id,
        "occurred_at": occurred, "received_at": now,
        "properties": json.dumps({name: value for name, value in properties.items() if value}),
        "esp_event": content[:_KEPT].decode("utf-8", "replace"),
    }  # fmt: skip


def escalate(settings: SenderSettings, warehouse: Warehouse, *, run_id: str = "") -> int:
    """A hard bounce for each address that has bounced softly on too many days, whoever told of it; returns how many."""
    if not settings.bounce_soft_limit:
        return 0
    now = settings.now()
    found = warehouse.frame(
        "select lower(email) as address, "
        "uniqExactIf(toDate(occurred_at), properties.bounce_class::String = 'soft') as days, "
        "argMax(event_id, occurred_at) as last_event_id "
        "from raw.events where type = 'bounced' and occurred_at > {since:DateTime64(3)} and email != '' "
        "group by address "
        "having days >= {limit:UInt32} and countIf(properties.bounce_class::String = 'hard') = 0",
        {"since": now - timedelta(days=settings.bounce_soft_days), "limit": settings.bounce_soft_limit},
    )
    rows = [
        {
            "event_id": str(uuid.uuid5(_NAMESPACE, f"escalated {last_event_id}")),
            "type": EventType.BOUNCED.value, "source": SOURCE, "email": address, "message_id": "",
            "occurred_at": now, "received_at": now,
            "properties": json.dumps(
                {"bounce_class": "hard", "reject_reason": "bounced", "escalated_from": last_event_id,
                 "diagnostic": f"soft bounces on {days} days within {settings.bounce_soft_days:g}"}
            ),
            "esp_event": "",
        }
        for address, days, last_event_id in found.iter_rows()
    ]  # fmt: skip
    return _insert(rows, warehouse, Intake(), run_id) if rows else 0


# where reports come from


def _folder(folder: Path) -> Iterator[_Batch]:
    """Files of a folder, or of a maildir's `new`; moved to `done` beside them, or to `cur`."""
    try:
        is_maildir = (folder / "new").is_dir() and (folder / "cur").is_dir()
        inbox = folder / "new" if is_maildir else folder
        done = folder / "cur" if is_maildir else folder / "done"
        files = sorted(path for path in inbox.iterdir() if path.is_file() and not path.name.startswith("."))
        done.mkdir(exist_ok=True)
        for start in range(0, len(files), _BATCH):
            part = files[start : start + _BATCH]

            def put_aside(part: list[Path] = part) -> None:
                for path in part:
                    path.rename(done / (f"{path.name}:2,S" if is_maildir else path.name))

            yield _Batch([path.read_bytes() for path in part], put_aside)
    except OSError as error:
        raise InputError(
            f"The bounces in {folder} cannot be read: {error.strerror}.",
            fix="Correct MAILHOUSE_BOUNCE_FOLDER, or make the folder readable and writable.",
        ) from error


@contextlib.contextmanager
def _mailbox(url: str) -> Iterator[Iterator[_Batch]]:
    """Unseen messages of an IMAP mailbox."""
    parts = urlsplit(url)
    if parts.scheme not in ("imap", "imaps") or not parts.hostname or not parts.username:
        raise SettingsError(
            "MAILHOUSE_BOUNCE_IMAP_URL is no URL of a mailbox.",
            fix="Write it like imaps://user:password@mail.example.com/INBOX.",
        )
    where = f"The mailbox of {unquote(parts.username)} at {parts.hostname}"
    try:
        client = (
            imaplib.IMAP4_SSL(
                parts.hostname, parts.port or 993, ssl_context=ssl.create_default_context(), timeout=60
            )
            if parts.scheme == "imaps"
            else imaplib.IMAP4(parts.hostname, parts.port or 143, timeout=60)
        )
        with client:
            client.login(unquote(parts.username), unquote(parts.password or ""))
            folder = unquote(parts.path.strip("/")) or "INBOX"
            if client.select(f'"{folder}"')[0] != "OK":
                raise InputError(f"{where} has no folder {folder}.", fix="Correct MAILHOUSE_BOUNCE_IMAP_URL.")
            yield _unseen(client)
    except (imaplib.IMAP4.error, OSError) as error:
        reason = str(error).strip("b'\"") if isinstance(error, imaplib.IMAP4.error) else type(error).__name__
        raise InputError(
            f"{where} cannot be read: {reason}.",
            fix="Check MAILHOUSE_BOUNCE_IMAP_URL and that the server is up.",
        ) from error


def _unseen(client: imaplib.IMAP4) -> Iterator[_Batch]:
    _, found = client.uid("SEARCH", "UNSEEN")
    ids = (found[0] or b"").decode().split()
    for start in range(0, len(ids), _BATCH):
        part = ",".join(ids[start : start + _BATCH])
        # PEEK: reading alone marks nothing as seen
        _, answers = client.uid("FETCH", part, "(BODY.PEEK[])")
        contents = [answer[1] for answer in answers if isinstance(answer, tuple)]

        def mark(part: str = part) -> None:
            client.uid("STORE", part, "+FLAGS.SILENT", "(\\Seen)")

        yield _Batch(contents, mark)
