"""A file of contacts, judged row by row and loaded: `mailhouse contacts import`.

`plan_import` reads what the file is and which column is which field; `run_import` judges its rows in chunks (syntax,
role accounts, throwaway domains, slips of the pen, telephone numbers, times), leaves out who is in the file twice, and
loads the others into `raw.crm_records`, with the basis on which they may be written to in `raw.consents`. What was
refused is told row by row. Who withdrew consent, unsubscribed, complained or cannot be reached gets no consent from a
file.

An import is known by what it says: the same file with the same mapping and basis is the same import, so one that was
broken off goes on where it was, and one that is repeated adds nothing. `raw.imports` says who imported what, and when.

Memory: two batches of 50,000 rows, and 24 bytes for each row of the file to tell who is in it twice.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, Self

import polars as pl
from ruamel.yaml import YAML

from crm import columns as read
from crm.addresses import AddressJudge, Policy, Problems
from crm.files import consent_ids, encoded_row, with_digests
from crm.headers import FIELDS, read_head, recognised
from crm.locks import one_at_a_time
from crm.readers import Chunk, Want, read_chunks
from crm.specs import FORMATS, Moment, Value, load_source
from crm.values import CHECKS, checked
from warehouse.client import Warehouse
from warehouse.errors import InputError, MailhouseError
from warehouse.loads import (
    UTC_MS,
    clear_quarantine,
    compared_records,
    load_consent_texts,
    load_consents,
    load_crm_records,
    quarantine,
)
from warehouse.yaml_specs import nearest

Basis = Literal["consent", "contract", "legitimate_interest"]
BASES: Final = ("consent", "contract", "legitimate_interest")
"""Grounds of article 6 of the GDPR on which somebody may be written to."""

LOAD_ROWS = 50_000
"""Rows loaded at once, while the next are judged."""

_PROOF_TEXTS: Final[Mapping[str, str]] = {
    "consent_text_version": "text_version",
    "consent_text": "text",
    "consent_ip": "ip",
    "consent_user_agent": "user_agent",
    "consent_page": "page",
    "consent_requested_ip": "requested_ip",
}
_PROOF_TIMES: Final[Mapping[str, str]] = {
    "consent_requested_at": "requested_at",
    "consent_confirmed_at": "confirmed_at",
}
CONSENT_FIELDS: Final = ("consent", "consent_date", "consent_text_digest", *_PROOF_TEXTS, *_PROOF_TIMES)
"""Fields of the consent that a row carries; what they are called in `raw.consents`, if it proves it."""

REPORT_COLUMNS: Final = ("line", "outcome", "reason", "message", "suggestion", "content")
"""Columns of the report: the line (the header is 1; in Parquet the row's number), refused, repeated or noted, the
reason as a word and in words, what may have been meant, and the row as it stands."""

REASONS: Final[Mapping[str, str]] = {
    "malformed": "the line is no row",
    "missing": "no e-mail address, and no other by which to know the contact",
    "syntax": "no e-mail address",
    "typo": "the domain looks misspelt",
    "unattended": "a mailbox that nobody reads",
    "disposable": "a throwaway address",
    "role_account": "an office's address, not a person's",
    "no_mail": "the domain takes no mail",
    "time": "a time that cannot be read",
    "consent": "consent that cannot be read, or has no proof",
    "unreadable": "properties that the warehouse cannot hold",
    "withheld": "people whom the warehouse must not take again",
}
"""Reasons to refuse a row."""

NOTES: Final[Mapping[str, str]] = {
    "corrected": "addresses were taken as they were probably meant",
    "role_account": "addresses belong to an office, not to a person",
    "phone": "telephone numbers do not say their country, and cannot be used",
    "country": "countries were left out: none is called so",
    "locale": "languages were left out: none is called so",
    "timezone": "time zones were left out: none is called so",
}
"""What is told of rows that are taken."""

PROTECTED: Final[Mapping[str, str]] = {
    "withdrawn": "had withdrawn their consent",
    "unsubscribed": "had unsubscribed",
    "complained": "had complained",
    "bounced": "could not be reached",
    "stopped": "had replied STOP, or cannot be reached",
}
"""Why somebody gets no consent from a file."""

_TEXTS = ("first_name", "last_name", "city", "push_token")
_PHONES = ("phone", "mobile_phone")
_WORD = r"^[a-z][a-z0-9_.-]*$"
_PROOFS: Final[dict[str, pl.DataType]] = {
    **dict.fromkeys((*_PROOF_TEXTS.values(), "text_digest"), pl.String()),
    **dict.fromkeys(_PROOF_TIMES.values(), UTC_MS),
}

Progress = Callable[[int], None]
"""Called with how many rows have been read."""


@dataclass(frozen=True)
class ConsentBasis:
    """The ground on which the contacts may be written to.

    Attributes:
        basis: consent, contract or legitimate_interest.
        purpose: what for. channels: by what, e.g. email.
        text_version: the wording that they consented to, where no column says it.
        given_at: when, where no column says it.
    """

    basis: Basis
    purpose: str = "marketing"
    channels: tuple[str, ...] = ("email",)
    text_version: str = ""
    given_at: datetime | None = None


@dataclass(frozen=True)
class ImportOptions:
    """How a file is imported.

    Attributes:
        source: where the contacts come from; external ids are its own.
        consent: the ground for writing to them; None if there is none.
        imported_by: who does it.
        role_accounts: what becomes of offices' addresses; if None they are refused where the basis is consent, since an
            office cannot consent, and kept otherwise.
        disposable: what becomes of throwaway addresses.
        is_correcting: whether addresses that are nearly one are taken as they were probably meant.
        list: a static list that all who are taken are put on; empty if none.
        timezone: of times that do not say theirs. time_format: `strftime` codes of times; ISO 8601 if None.
        form, delimiter, encoding: of the file, where it does not tell.
        ignore: columns that are not kept.
    """

    source: str = "import"
    consent: ConsentBasis | None = None
    imported_by: str = ""
    role_accounts: Policy | None = None
    disposable: Policy = "refuse"
    is_correcting: bool = False
    list: str = ""
    timezone: str = "UTC"
    time_format: str | None = None
    form: str | None = None
    delimiter: str | None = None
    encoding: str = "utf-8"
    ignore: tuple[str, ...] = ()

    @property
    def keeps_roles(self) -> Policy:
        """What becomes of offices' addresses."""
        if self.role_accounts is not None:
            return self.role_accounts
        return "refuse" if self.consent is not None and self.consent.basis == "consent" else "keep"


@dataclass(frozen=True)
class ImportPlan:
    """A file and what will be read of it.

    Attributes:
        path: the file. form, delimiter: what it is.
        fields: field -> column. properties: columns that are kept under their own names.
        rows: rows, about.
        digest: SHA-256 of the file.
        import_id: what the import is known by.
        options: as given.
    """

    path: Path
    form: str
    delimiter: str | None
    fields: Mapping[str, str]
    properties: tuple[str, ...]
    rows: int
    digest: str
    size: int
    changed_at: int
    import_id: str
    options: ImportOptions


@dataclass
class ImportReport:
    """What became of a file: `rows = new + changed + unchanged + repeated + refused`.

    Attributes:
        import_id: what it is known by.
        rows: rows read.
        new, changed, unchanged: contacts of this source, beside what was stored.
        known: of the new, those whose address the warehouse knew from elsewhere.
        repeated: rows of people who stand further up in the file.
        refused: reason -> rows. notes: what was noted of rows that were taken -> rows.
        consents, withdrawals: consents stored, given and not given.
        protected: why people got no consent from the file -> people.
        listed: people that are new on the static list.
        is_dry: whether nothing was stored.
        first_started_at: when this very import was begun for the first time.
        examples: the first refused rows.
    """

    import_id: str
    rows: int = 0
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    known: int = 0
    repeated: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    notes: Counter[str] = field(default_factory=Counter[str])
    consents: int = 0
    withdrawals: int = 0
    protected: Counter[str] = field(default_factory=Counter[str])
    listed: int = 0
    is_dry: bool = False
    first_started_at: datetime | None = None
    examples: list[str] = field(default_factory=list[str])

    @property
    def taken(self) -> int:
        """Contacts that are in the warehouse now, as the file has them."""
        return self.new + self.changed + self.unchanged

    @property
    def refused_rows(self) -> int:
        """Rows that were not taken, for whatever reason but being there twice."""
        return self.refused.total()


def plan_import(path: Path, options: ImportOptions, mapping: Mapping[str, str] | None = None) -> ImportPlan:
    """Read what a file is and decide which column is which field; nothing is stored.

    Args:
        path: the file.
        options: how it shall be imported.
        mapping: column -> field, or "" for a column that is kept under its own name; goes before names that are known.

    Raises:
        InputError: the file cannot be read, a column or field does not exist, nothing says whose a row is, or what is
            said of consent is not enough.
    """
    head = read_head(path, form=options.form, delimiter=options.delimiter, encoding=options.encoding)
    given = dict(mapping or {})
    for column in (*given, *options.ignore):
        # JSON objects may leave columns out, and those we have seen may have done so
        if column not in head.columns and head.form != "jsonl":
            raise InputError(f"{path.name} has no column {column!r}.", fix=nearest(column, head.columns))
    chosen: dict[str, str] = {}
    for column, name in given.items():
        if not name:
            continue
        if name not in FIELDS:
            raise InputError(f"{name!r} is no field of a contact.", fix=nearest(name, FIELDS))
        if name in chosen:
            raise InputError(
                f"Columns {chosen[name]!r} and {column!r} are both mapped to {name}.", fix="Map one of them."
            )
        chosen[name] = column
    free = [name for name in head.columns if name not in given and name not in options.ignore]
    fields = {**{name: column for name, column in recognised(free).items() if name not in chosen}, **chosen}
    if options.consent is None:
        # what is said of consent is kept as a property, and means nothing
        fields = {
            name: column for name, column in fields.items() if name not in CONSENT_FIELDS or name in chosen
        }
        if stray := [name for name in CONSENT_FIELDS if name in fields]:
            raise InputError(
                f"Column {fields[stray[0]]!r} is mapped to {stray[0]}, but contacts are to come in without consent.",
                fix="Give --basis, or leave the column unmapped.",
            )
    if not {"email", "external_id", "phone", "mobile_phone"} & fields.keys():
        raise InputError(
            f"Of {path.name} no column is known to hold addresses: {', '.join(head.columns)[:300]}.",
            fix='Say which it is: --map "Column=email".',
        )
    _check_consent(options, fields)
    taken = set(fields.values())
    properties = tuple(
        name for name in head.columns if name and name not in taken and name not in options.ignore
    )
    _check_properties(path.name, properties)
    said = {
        "digest": head.digest,
        "fields": dict(sorted(fields.items())),
        "ignore": sorted(options.ignore),
        "source": options.source,
        "consent": _consent_words(options.consent),
        "rules": [
            options.keeps_roles, options.disposable, options.is_correcting, options.timezone, options.time_format,
            options.encoding, head.delimiter,
        ],
    }  # fmt: skip
    import_id = consent_ids([json.dumps(said, ensure_ascii=False, sort_keys=True)])[0]
    return ImportPlan(
        path, head.form, head.delimiter, fields, properties, head.rows, head.digest, head.size, head.changed_at,
        import_id, options,
    )  # fmt: skip


def _check_consent(options: ImportOptions, fields: Mapping[str, str]) -> None:
    consent = options.consent
    if consent is None:
        return
    if consent.basis == "consent":
        if consent.given_at is None and "consent_date" not in fields:
            raise InputError(
                "Nothing says when the contacts consented, so nothing could be proved.",
                fix='Give --consent-date 2026-05-31, or the column: --map "Column=consent_date".',
            )
        if not consent.text_version and not {"consent_text_version", "consent_text"} & fields.keys():
            raise InputError(
                "Nothing says to which wording the contacts consented, so nothing could be proved.",
                fix='Give --consent-text-version, e.g. newsletter-form-2, or --map "Column=consent_text_version";'
                ' or the words: --map "Column=consent_text".',
            )


def _check_properties(name: str, properties: Sequence[str]) -> None:
    own = {"is_role_account", *FIELDS} - set(CONSENT_FIELDS)
    for column in properties:
        # `a.b` is a part of `a`
        parts = column.split(".")
        above = [".".join(parts[:place]) for place in range(1, len(parts))]
        clash = (
            column
            if column in own
            else next((name for name in above if name in own or name in properties), None)
        )
        if clash is not None:
            raise InputError(
                f"{name}: column {column!r} clashes with the property {clash!r}.",
                fix=f'Map it, rename it, or leave it out: --ignore "{column}".',
            )


def _consent_words(consent: ConsentBasis | None) -> dict[str, Any] | None:
    if consent is None:
        return None
    return {
        "basis": consent.basis,
        "purpose": consent.purpose,
        "channels": list(consent.channels),
        "text_version": consent.text_version,
        "given_at": consent.given_at.isoformat() if consent.given_at else None,
    }


def run_import(
    warehouse: Warehouse,
    plan: ImportPlan,
    *,
    home: Path,
    content_dir: Path,
    now: datetime,
    report_path: Path | None = None,
    is_dry: bool = False,
    problems: Problems | None = None,
    on_progress: Progress | None = None,
) -> ImportReport:
    """Judge a file's rows and load those that are good; safe to repeat, and to break off at any moment.

    Args:
        warehouse: where to.
        plan: of `plan_import`.
        home: the home folder, where loads take turns.
        content_dir: where the static list is.
        now: the time through the settings' clock.
        report_path: a CSV file of `REPORT_COLUMNS` for what was refused, repeated and noted; none if None.
        is_dry: judge and count, store nothing.
        problems: asks DNS which domains take no mail; see `crm.mail_servers`.
        on_progress: told after every chunk of rows.

    Raises:
        InputError: the file is not what it was when it was planned, or is damaged; rows before the damage are loaded.
        WarehouseError: ClickHouse refused; batches before that are loaded.
    """
    moment = now.astimezone(UTC)
    with one_at_a_time(home, plan.options.source):
        run = _Run(warehouse, plan, home, content_dir, moment, is_dry, problems)
        with run.logged(), _report_file(report_path) as sheet:
            run.go(sheet, on_progress)
    return run.report


def save_source(plan: ImportPlan, name: str, content_dir: Path) -> Path:
    """Write the mapping as `content/sources/<name>.yaml`, for files of the same kind that come again.

    The source reads `inbox/<name>/` of the home folder. It checks addresses for syntax alone, and what it says of
    consent counts by its time: a date that all rows share is as old as it was here, so later withdrawals stand.

    Raises:
        InputError: there is such a source already, or the file has nothing to tell contacts apart by.
    """
    path = content_dir / "sources" / f"{name}.yaml"
    if path.exists():
        raise InputError(f"There is a source {name} already.", fix="Choose another name, or edit the file.")
    fields, options, consent = plan.fields, plan.options, plan.options.consent
    email = fields.get("email")
    key = fields.get("external_id", email)
    if email is None or key is None:
        raise InputError("A source needs an e-mail column.", fix='Give --map "Column=email".')
    times: dict[str, Any] = {"timezone": options.timezone}
    if options.time_format:
        times["format"] = options.time_format
    mapped: dict[str, Any] = {"external_id": key, "email": email}
    for field_name, column in fields.items():
        if field_name in ("created_at", "updated_at"):
            mapped[field_name] = {"column": column, **times}
        elif field_name not in (*CONSENT_FIELDS, "external_id", "email"):
            mapped[field_name] = column
    document: dict[str, Any] = {
        "name": name,
        "description": f"As {plan.path.name} was imported",
        "source": options.source,
        "object": "contacts",
        "files": f"inbox/{name}/*{plan.path.suffix}",
        "is_optional": True,
    }
    if plan.path.suffix.lower() not in FORMATS or options.form:
        document["format"] = plan.form
    if plan.delimiter and plan.delimiter != ("\t" if plan.path.suffix == ".tsv" else ","):
        document["delimiter"] = plan.delimiter
    if options.encoding != "utf-8":
        document["encoding"] = options.encoding
    document["columns"] = mapped
    if consent is not None:
        said: dict[str, Any] = {
            "purpose": {"value": consent.purpose},
            "basis": {"value": consent.basis},
            "is_granted": fields.get("consent", {"value": True}),
            "occurred_at": {"column": fields["consent_date"], **times}
            if "consent_date" in fields
            else {"value": (consent.given_at or datetime.now(UTC)).isoformat()},
        }
        if "consent_text_version" in fields:
            said["text_version"] = fields["consent_text_version"]
        elif consent.text_version:
            said["text_version"] = {"value": consent.text_version}
        said |= {
            column: fields[name]
            for name, column in {**_PROOF_TEXTS, "consent_text_digest": "text_digest"}.items()
            if name in fields and column != "text_version"
        }
        said |= {
            column: {"column": fields[name], **times}
            for name, column in _PROOF_TIMES.items()
            if name in fields
        }
        document["consents"] = [{"channel": {"value": channel}, **said} for channel in consent.channels]
    if options.ignore:
        document["ignore"] = list(options.ignore)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    writer = YAML()
    writer.width = 110
    try:
        with part.open("w", encoding="utf-8") as handle:
            writer.dump(document, handle)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    load_source(path)
    return path


class _Sheet:
    """The report as CSV."""

    def __init__(self, handle: io.BufferedWriter | None) -> None:
        self.handle = handle

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows that have columns of `REPORT_COLUMNS`."""
        if self.handle is None or rows.is_empty():
            return
        # what spreadsheets would take as a formula is text to us
        texts = [
            pl.when(pl.col(name).str.contains(r"^[=+\-@\t\r]"))
            .then(pl.concat_str(pl.lit("'"), name))
            .otherwise(pl.col(name))
            .alias(name)
            for name in ("message", "suggestion", "content")
        ]
        rows.select(REPORT_COLUMNS).with_columns(texts).write_csv(self.handle, include_header=False)


@contextmanager
def _report_file(path: Path | None) -> Iterator[_Sheet]:
    """The report, which is there once it is whole."""
    if path is None:
        yield _Sheet(None)
        return
    part = path.with_name(f".{path.name}.part")
    try:
        handle = part.open("wb")
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}.",
            fix="Name a file in a folder that you may write to.",
        ) from None
    try:
        with handle:
            handle.write((",".join(REPORT_COLUMNS) + "\n").encode())
            yield _Sheet(handle)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class _Run:
    """One file on its way in."""

    def __init__(
        self,
        warehouse: Warehouse,
        plan: ImportPlan,
        home: Path,
        content_dir: Path,
        now: datetime,
        is_dry: bool,
        problems: Problems | None,
    ) -> None:
        self.warehouse = warehouse
        self.plan = plan
        self.options = plan.options
        self.home = home
        self.now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self.is_dry = is_dry
        self.judge = AddressJudge(
            role_accounts=self.options.keeps_roles,
            disposable=self.options.disposable,
            is_correcting=self.options.is_correcting,
            problems=problems,
        )
        self.report = ImportReport(plan.import_id, is_dry=is_dry)
        self.report.first_started_at = self._first_start()
        # versions of contacts are as of the first start, so that a second one makes no second version
        self.started_at = self.report.first_started_at or self.now
        self.seen = pl.DataFrame(schema={"h1": pl.UInt64(), "h2": pl.UInt64(), "first": pl.UInt64()})
        self.stops = _Stops(warehouse, self.options.source, self.now)
        self.list = _List(content_dir, self.options.list, plan) if self.options.list else None

    # The log

    def _first_start(self) -> datetime | None:
        found = self.warehouse.frame(
            "select min(started_at) as at from raw.imports where import_id = {id:String} having count() > 0",
            {"id": self.plan.import_id},
        )
        at = found.item(0, 0) if found.height else None
        return at.replace(tzinfo=UTC) if isinstance(at, datetime) else None

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Note in `raw.imports` that the import began and how it ended."""
        self._log("started")
        try:
            yield
        except MailhouseError:
            self._log("failed")
            raise
        self._log("finished")

    def _log(self, status: str) -> None:
        if self.is_dry:
            return
        report, consent, plan = self.report, self.options.consent, self.plan
        outcome = {
            "refused": dict(report.refused),
            "noted": dict(report.notes),
            "protected": dict(report.protected),
            "known": report.known,
            "withdrawals": report.withdrawals,
            "listed": report.listed,
        }
        options = {
            "columns": {name: column.replace(".", "_") for name, column in plan.fields.items()},
            "role_accounts": self.options.keeps_roles,
            "disposable": self.options.disposable,
            "is_correcting": self.options.is_correcting,
            "list": self.options.list,
        }
        row = pl.DataFrame(
            {
                "import_id": plan.import_id,
                "status": status,
                "source": self.options.source,
                "file": plan.path.name,
                "digest": plan.digest,
                "size": plan.size,
                "imported_by": self.options.imported_by,
                "basis": consent.basis if consent else "",
                "purpose": consent.purpose if consent else "",
                "channels": [list(consent.channels) if consent else []],
                "text_version": consent.text_version if consent else "",
                "options": json.dumps(options, ensure_ascii=False),
                "rows": report.rows,
                "new": report.new,
                "changed": report.changed,
                "unchanged": report.unchanged,
                "repeated": report.repeated,
                "refused": report.refused_rows,
                "consents": report.consents,
                "outcome": json.dumps(outcome),
                "started_at": self.started_at,
                # a rerun within the same millisecond would otherwise be told apart by nothing
                "changed_at": max(self.now, self.started_at)
                + timedelta(milliseconds=int(status != "started")),
            },
            schema_overrides={"channels": pl.List(pl.String()), "started_at": UTC_MS, "changed_at": UTC_MS}
            | dict.fromkeys(
                ("size", "rows", "new", "changed", "unchanged", "repeated", "refused", "consents"),
                pl.UInt64(),
            ),
        )
        self.warehouse.insert("raw.imports", row)

    # Rows

    def go(self, sheet: _Sheet, on_progress: Progress | None) -> None:
        """Judge and load all chunks."""
        shown = self.plan.path.name
        if not self.is_dry:
            clear_quarantine(self.warehouse, source=self.options.source, object="contact", file=shown)
        with _Loader(self._load) as loader:
            self._go(sheet, on_progress, loader, shown)
        status = self.plan.path.stat()
        if (status.st_size, status.st_mtime_ns) != (self.plan.size, self.plan.changed_at):
            raise InputError(
                f"{shown} was written to while it was read.",
                fix="Import it again when it is whole: what is stored of it does no harm.",
            )
        if self.list is not None and not self.is_dry:
            self.report.listed = self.list.write()

    def _go(self, sheet: _Sheet, on_progress: Progress | None, loader: _Loader, shown: str) -> None:
        waiting: list[pl.DataFrame] = []
        for chunk in self._chunks(shown):
            if chunk.bad:
                self._refuse(
                    sheet,
                    pl.DataFrame(
                        {
                            "line": [row.line for row in chunk.bad],
                            "reason": ["malformed"] * len(chunk.bad),
                            "message": [row.reason for row in chunk.bad],
                            "suggestion": [None] * len(chunk.bad),
                            "content": [row.content for row in chunk.bad],
                        },
                        schema={
                            "line": pl.UInt64(), "reason": pl.String(), "message": pl.String(),
                            "suggestion": pl.String(), "content": pl.String(),
                        },
                    ),
                )  # fmt: skip
            if chunk.frame.height:
                waiting.append(self._judged(chunk, sheet))
            self.report.rows += chunk.frame.height + len(chunk.bad)
            if sum(part.height for part in waiting) >= LOAD_ROWS:
                loader.take(pl.concat(waiting))
                waiting.clear()
            if on_progress is not None:
                on_progress(self.report.rows)
        if waiting:
            loader.take(pl.concat(waiting))

    def _chunks(self, shown: str) -> Iterator[Chunk]:
        names = tuple(dict.fromkeys(self.plan.fields.values()))
        wanted = Want(
            () if self.plan.form == "jsonl" else names, names, is_rest=True, ignore=self.options.ignore
        )
        return read_chunks(
            self.plan.path, self.plan.form, wanted, shown=shown, delimiter=self.plan.delimiter,
            encoding=self.options.encoding,
        )  # fmt: skip

    def _judged(self, chunk: Chunk, sheet: _Sheet) -> pl.DataFrame:
        """Rows that are taken: external_id, email, number, updated_at, properties, line, what they say of consent."""
        frame, schema, fields = chunk.frame, chunk.frame.schema, self.plan.fields
        texts = (
            frame.with_columns(
                read.text(Value(column=column), schema).alias(name) for name, column in fields.items()
            )
            .select(fields.keys())
            .with_columns(chunk.lines)
        )
        verdict = self.judge.judge(
            texts["email"]
            if "email" in fields
            else pl.repeat(None, frame.height, dtype=pl.String, eager=True)
        )
        reasons: list[tuple[str, pl.Expr]] = []
        contents: dict[str, pl.Expr] = {"email": pl.col("email")}
        notes: dict[str, pl.Expr] = {
            "corrected": pl.col("is_corrected"), "role_account": pl.col("is_role"),
        }  # fmt: skip
        rows = verdict.hstack([texts["line"]])
        new: list[pl.Series] = []
        for name in fields:
            if name in _TEXTS or name == "external_id":
                new.append(texts[name].alias(f"field_{name}"))
            elif name in _PHONES:
                both = texts.select(read.e164(pl.col(name)).alias("number"), pl.col(name).alias("given"))
                new.append(both.select(pl.coalesce("number", "given")).to_series().alias(f"field_{name}"))
                new.append(both["number"].alias(f"number_{name}"))
                notes[f"phone|{name}"] = (
                    pl.col(f"field_{name}").is_not_null() & pl.col(f"number_{name}").is_null()
                )
            elif name in CHECKS:
                values = checked(name, texts[name])
                new.append(values.alias(f"field_{name}"))
                new.append((texts[name].is_not_null() & values.is_null()).alias(f"lost_{name}"))
                notes[name] = pl.col(f"lost_{name}")
            elif name in ("created_at", "updated_at"):
                moment = self._moment(name, chunk)
                new += frame.select(
                    moment.value.alias(f"field_{name}"), moment.reason.alias(f"said_{name}")
                ).get_columns()
                reasons.append(("time", pl.col(f"said_{name}")))
        rows = rows.hstack(new)
        for name in (*_TEXTS, *_PHONES, *CHECKS):
            if name in fields:
                contents[name] = pl.col(f"field_{name}")
        if "created_at" in fields:
            contents["created_at"] = pl.col("field_created_at").dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
        contents["is_role_account"] = pl.when("is_role").then(pl.lit(True))
        updated = pl.col("field_updated_at") if "updated_at" in fields else pl.lit(None, UTC_MS)
        numbers = [pl.col(f"number_{name}") for name in reversed(_PHONES) if name in fields]
        number = pl.coalesce(numbers) if numbers else pl.lit(None, pl.String)
        own = [pl.col("field_external_id")] if "external_id" in fields else []
        rows = rows.with_columns(
            pl.coalesce(*own, pl.col("email"), number).alias("external_id"),
            number.alias("number"),
            updated.fill_null(self.started_at).alias("updated_at"),
        )
        rows = self._with_consent(rows, chunk, reasons)
        rest = {name: schema[name] for name in self.plan.properties if name in schema}
        extras = pl.lit(pl.Series("extras", chunk.extras, pl.String)) if chunk.extras is not None else None
        # over the file's own columns, whose names may be those of ours
        values = rows.select(value.alias(name) for name, value in contents.items())
        written = read.properties({name: pl.lit(values[name]) for name in contents}, rest, extras)
        rows = rows.with_columns(frame.with_columns(written.alias("properties"))["properties"])
        missing = pl.when(pl.col("external_id").is_null()).then(
            pl.lit("the row has no e-mail address, and no other by which to know the contact")
        )
        code, said = pl.lit(None, pl.String), pl.lit(None, pl.String)
        for word, words in reversed([*reasons, ("missing", missing)]):
            code = pl.when(words.is_not_null()).then(pl.lit(word)).otherwise(code)
            said = pl.when(words.is_not_null()).then(words).otherwise(said)
        rows = rows.with_columns(
            pl.coalesce("code", code).alias("code"), pl.coalesce("said", said).alias("said")
        ).with_row_index("place")
        refused = rows.filter(pl.col("code").is_not_null())
        if refused.height:
            self._refuse(
                sheet,
                refused.select(
                    "line", pl.col("code").alias("reason"), pl.col("said").alias("message"), "suggestion"
                ).with_columns(self._contents(chunk, refused["place"])),
            )
        rows = self._once(rows.filter(pl.col("code").is_null()), chunk, sheet)
        self._note(rows, notes, chunk, sheet)
        return rows.select(
            "external_id", "email", "number", "updated_at", "properties", "line", "is_granted", "consented_at",
            *_PROOFS,
        )  # fmt: skip

    def _moment(self, name: str, chunk: Chunk) -> read.Parsed:
        value = Moment(
            column=self.plan.fields[name], format=self.options.time_format, timezone=self.options.timezone
        )
        return read.moment(name, value, chunk.frame, shown=self.plan.path.name)

    def _with_consent(
        self, rows: pl.DataFrame, chunk: Chunk, reasons: list[tuple[str, pl.Expr]]
    ) -> pl.DataFrame:
        """Rows with is_granted (null where nothing is said), consented_at, and what proves it: `_PROOFS`."""
        consent, fields, schema = self.options.consent, self.plan.fields, chunk.frame.schema
        if consent is None:
            return rows.with_columns(
                pl.lit(None, pl.Boolean).alias("is_granted"),
                pl.lit(None, UTC_MS).alias("consented_at"),
                *(pl.lit(None, dtype).alias(name) for name, dtype in _PROOFS.items()),
            )
        # with_columns rather than select: constants fill the frame's height, too
        proof: dict[str, pl.Expr] = {name: pl.lit(None, dtype) for name, dtype in _PROOFS.items()}
        faults: dict[str, pl.Expr] = {}
        for name, column in _PROOF_TEXTS.items():
            if name in fields:
                proof[column] = read.text(Value(column=fields[name]), schema)
        for name, column in _PROOF_TIMES.items():
            if name in fields:
                moment = self._moment(name, chunk)
                proof[column], faults[f"fault_{column}"] = moment.value, moment.reason
        if "consent_text_digest" in fields:
            digest = read.digest(
                "consent_text_digest", Value(column=fields["consent_text_digest"]), chunk.frame
            )
            proof["text_digest"], faults["fault_text_digest"] = digest.value, digest.reason
        if consent.text_version:
            proof["text_version"] = proof["text_version"].fill_null(consent.text_version)
        proofs = chunk.frame.with_columns(
            value.alias(name) for name, value in (proof | faults).items()
        ).select(*proof, *faults)
        granted, unread = pl.lit(True), pl.lit(None, pl.String)
        if "consent" in fields:
            flag = read.boolean("consent", Value(column=fields["consent"]), chunk.frame)
            granted, unread = flag.value, flag.reason
        given, untimely = pl.lit(None, UTC_MS), pl.lit(None, pl.String)
        if "consent_date" in fields:
            moment = self._moment("consent_date", chunk)
            given, untimely = moment.value, moment.reason
        if consent.given_at is not None:
            given = given.fill_null(consent.given_at)
        parts = chunk.frame.with_columns(
            granted.alias("is_granted"),
            unread.alias("unread"),
            given.alias("given"),
            untimely.alias("untimely"),
        ).select("is_granted", "unread", "given", "untimely")
        rows = rows.hstack(parts).hstack(proofs)
        is_proof_needed = pl.col("is_granted").fill_null(False) & pl.lit(consent.basis == "consent")
        reasons += [
            ("consent", pl.col("unread")),
            ("consent", pl.when(pl.col("is_granted").is_not_null()).then("untimely")),
            (
                "consent",
                pl.when(pl.col("is_granted").is_not_null() & (pl.col("given") > self.now)).then(
                    pl.lit("consent_date lies in the future")
                ),
            ),
            (
                "consent",
                pl.when(is_proof_needed & pl.col("given").is_null()).then(
                    pl.lit("consent_date is empty: nothing says when they consented")
                ),
            ),
            (
                "consent",
                pl.when(is_proof_needed & pl.all_horizontal(pl.col("text_version", "text").is_null())).then(
                    pl.lit("consent_text_version is empty: nothing says what they consented to")
                ),
            ),
            *(("consent", pl.when(pl.col("is_granted").is_not_null()).then(name)) for name in faults),
            *(
                (
                    "consent",
                    pl.when(pl.col("is_granted").is_not_null() & (pl.col(column) > self.now)).then(
                        pl.lit(f"{name} lies in the future")
                    ),
                )
                for name, column in _PROOF_TIMES.items()
                if name in fields
            ),
        ]
        return rows.with_columns(pl.col("given").fill_null(self.started_at).alias("consented_at"))

    def _contents(self, chunk: Chunk, places: pl.Series) -> pl.Series:
        """Rows of a chunk as they stand in the file."""
        if chunk.texts is not None:
            return pl.Series("content", [chunk.texts[place] for place in places], pl.String)
        return chunk.frame[places].select(encoded_row(chunk.frame)).to_series().alias("content")

    def _refuse(self, sheet: _Sheet, rows: pl.DataFrame) -> None:
        """Set rows apart: line, reason, message, suggestion, content."""
        shown = self.plan.path.name
        for reason, count in rows["reason"].value_counts().iter_rows():
            self.report.refused[reason] += count
        room = 5 - len(self.report.examples)
        self.report.examples += [
            f"{shown}:{line}: {said}" for line, said in rows.select("line", "message").head(room).rows()
        ]
        sheet.add(rows.with_columns(pl.lit("refused").alias("outcome")))
        if not self.is_dry:
            quarantine(
                self.warehouse,
                rows.select(
                    pl.lit(shown).alias("file"), "line", pl.col("message").alias("reason"), "content"
                ),
                source=self.options.source,
                object="contact",
                run_id=self.plan.import_id,
            )

    def _once(self, rows: pl.DataFrame, chunk: Chunk, sheet: _Sheet) -> pl.DataFrame:
        """Rows of people who do not stand further up in the file, by address and by external id."""
        by = ["external_id"]
        if "email" in self.plan.fields and "external_id" in self.plan.fields:
            by.append("email")
        for name in by:
            # two hashes make a mistake as likely as one in 10^38
            text = pl.concat_str(pl.lit(f"{name} "), name)
            rows = rows.with_columns(text.hash(1).alias("h1"), text.hash(2).alias("h2"))
            known = self.seen.join(rows.select("h1", "h2"), on=["h1", "h2"], how="inner").unique("h1")
            rows = rows.join(known, on=["h1", "h2"], how="left", maintain_order="left").with_columns(
                pl.coalesce("first", pl.col("line").first().over("h1", "h2")).alias("first")
            )
            is_again = (pl.col("first") != pl.col("line")) & pl.col(name).is_not_null()
            again = rows.filter(is_again)
            if again.height:
                self.report.repeated += again.height
                sheet.add(
                    again.select(
                        "line",
                        pl.lit("repeated").alias("outcome"),
                        pl.lit("repeated").alias("reason"),
                        pl.format("the same {} stands in line {}, which counts", pl.lit(name), "first").alias(
                            "message"
                        ),
                        pl.lit(None, pl.String).alias("suggestion"),
                    ).with_columns(self._contents(chunk, again["place"]))
                )
            rows = rows.filter(~is_again)
            fresh = rows.filter(pl.col(name).is_not_null()).select("h1", "h2", "first")
            self.seen = pl.concat([self.seen, fresh])
            rows = rows.drop("h1", "h2", "first")
        return rows

    def _note(self, rows: pl.DataFrame, notes: Mapping[str, pl.Expr], chunk: Chunk, sheet: _Sheet) -> None:
        for note, is_so in notes.items():
            noted = rows.filter(is_so)
            if noted.is_empty():
                continue
            word = note.partition("|")[0]
            self.report.notes[word] += noted.height
            sheet.add(
                noted.select(
                    "line",
                    pl.lit("noted").alias("outcome"),
                    pl.lit(word).alias("reason"),
                    pl.lit(NOTES[word]).alias("message"),
                    (pl.col("email") if word == "corrected" else pl.lit(None, pl.String)).alias("suggestion"),
                ).with_columns(self._contents(chunk, noted["place"]))
            )

    # The warehouse

    def _load(self, rows: pl.DataFrame) -> None:
        """Load a batch of rows that are taken, and their consents."""
        source, shown = self.options.source, self.plan.path.name
        records = rows.select(
            pl.lit(source).alias("source"),
            pl.lit("contact").alias("object"),
            "external_id",
            pl.col("updated_at").cast(UTC_MS),
            pl.lit(False).alias("is_deleted"),
            "properties",
            pl.lit(shown).alias("file"),
            "line",
        )
        standing = compared_records(self.warehouse, records, run_id=self.plan.import_id)
        counts = dict(standing["standing"].value_counts().iter_rows())
        report = self.report
        if not self.is_dry:
            fresh = standing.filter((pl.col("standing") != "unchanged") & ~pl.col("is_stored"))
            loaded = load_crm_records(
                self.warehouse, fresh.drop("standing", "is_stored"), run_id=self.plan.import_id
            )
            # what the loader did not take is not in the warehouse, and no contact of ours
            held = loaded.read - loaded.loaded - loaded.duplicates - loaded.quarantined
            for reason, count in (("unreadable", loaded.quarantined), ("withheld", held)):
                if count > 0:
                    report.refused[reason] += count
                    kind = "new" if counts.get("new", 0) >= count else "changed"
                    counts[kind] = counts.get(kind, 0) - count
            if loaded.quarantined or held:
                rows = rows.join(self._stored(rows), on="external_id", how="semi", maintain_order="left")
        report.new += counts.get("new", 0)
        report.changed += counts.get("changed", 0)
        report.unchanged += counts.get("unchanged", 0)
        report.known += self._known(
            rows.join(standing.filter(pl.col("standing") == "new"), on="external_id", how="semi")
        )
        self._load_consents(rows)
        if self.list is not None:
            self.list.add(rows)

    def _stored(self, rows: pl.DataFrame) -> pl.DataFrame:
        return self.warehouse.frame(
            """
            select distinct external_id from raw.crm_records
            where source = {source:String} and object = 'contact' and external_id in (select external_id from keys)
            """,
            {"source": self.options.source},
            external={"keys": rows.select("external_id")},
        )

    def _known(self, rows: pl.DataFrame) -> int:
        """How many addresses lead to a contact already, as identities were last built."""
        if rows.is_empty() or not self.stops.has_identities:
            return 0
        return int(
            self.warehouse.frame(
                f"""
                select count() from intermediate.int_contacts__identified
                where kind = 'email' and identity_id in (select {_EMAIL_IDENTITY} from given)
                """,  # noqa: S608
                external={"given": rows.select("email").drop_nulls()},
            ).item()
        )

    def _load_consents(self, rows: pl.DataFrame) -> None:
        consent = self.options.consent
        if consent is None:
            return
        said = rows.filter(pl.col("is_granted").is_not_null())
        for channel in consent.channels:
            # consent to be called up by what nobody has is consent to nothing
            address = {"sms": "number", "email": "email"}.get(channel, "external_id")
            given = said.filter(pl.col(address).is_not_null())
            stopped = self.stops.of(given.filter("is_granted"), channel, consent.purpose)
            for reason, count in stopped["reason"].value_counts().iter_rows():
                self.report.protected[reason] += count
            given = given.join(stopped, on="external_id", how="anti", maintain_order="left")
            if given.is_empty():
                continue
            frame = given.select(
                pl.lit(self.options.source).alias("source"),
                pl.col("email").fill_null(""),
                "external_id",
                pl.lit(channel).alias("channel"),
                pl.lit(consent.purpose).alias("purpose"),
                "is_granted",
                pl.lit(consent.basis).alias("basis"),
                *_PROOFS,
                pl.lit(self.options.imported_by).alias("recorded_by"),
                pl.col("consented_at").cast(UTC_MS).alias("occurred_at"),
                self._proof().alias("properties"),
                pl.lit(self.plan.path.name).alias("file"),
                "line",
            )
            texts, frame = with_digests(frame, self.options.source)
            frame = frame.with_columns(
                pl.col(name).fill_null("")
                for name, dtype in _PROOFS.items()
                if dtype == pl.String and name != "text"
            )
            # by file and line, whatever else is said of the import: the same line again is the same consent
            key = pl.concat_str(
                [pl.lit(self.plan.digest), pl.col("line").cast(pl.String)]
                + [
                    pl.col(name).cast(pl.String)
                    for name in (
                        "source",
                        "external_id",
                        "email",
                        "channel",
                        "purpose",
                        "is_granted",
                        "basis",
                        "text_version",
                        "ip",
                    )
                ]
                + [pl.col("occurred_at").dt.epoch("ms").cast(pl.String)],
                separator="\x1f",
            ) + read.proof_key(
                [name for name in _PROOFS if name in frame.columns and name not in ("text_version", "ip")]
            )
            frame = frame.with_columns(
                pl.Series("consent_id", consent_ids(frame.select(key).to_series().to_list()), pl.String)
            )
            if not self.is_dry:
                load_consent_texts(self.warehouse, texts, self.now)
                load_consents(self.warehouse, frame, run_id=self.plan.import_id, kind="contact")
            granted = int(frame["is_granted"].sum())
            self.report.consents += granted
            self.report.withdrawals += frame.height - granted

    def _proof(self) -> pl.Expr:
        """What says where a consent is from: the file, its digest, the line, and who brought it in."""
        fixed = json.dumps(
            {
                "import_id": self.plan.import_id,
                "file": self.plan.path.name,
                "file_sha256": self.plan.digest,
                "imported_by": self.options.imported_by,
            },
            ensure_ascii=False,
            separators=(",", ":"),
        )
        return pl.concat_str(pl.lit(fixed[:-1] + ',"line":'), pl.col("line").cast(pl.String), pl.lit("}"))


class _Loader:
    """Loads one batch while the next is judged: two at once would take turns at the warehouse anyway."""

    def __init__(self, load: Callable[[pl.DataFrame], None]) -> None:
        self.load = load
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="import")
        self.under_way: Future[None] | None = None

    def take(self, rows: pl.DataFrame) -> None:
        """Load rows once those before them are loaded; raises what those raised."""
        self.settle()
        self.under_way = self.pool.submit(self.load, rows)

    def settle(self) -> None:
        """Wait for what is under way."""
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            under_way.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.settle()
        finally:
            self.pool.shutdown()


_EMAIL_IDENTITY = "toInt64(bitShiftRight(sipHash64('', '', email), 1))"
"""The macro `identity_of` for an address alone."""


_NUMBER_STOPS = """
    select external_id, '3 stopped' as stop from given
    where number != '' and number in (select phone from marts.suppressions where channel = 'sms')
"""


class _Stops:
    """Who must get no consent from a file, whatever it says.

    Raw tables speak for what was loaded a moment ago; where identities are built, what holds for one address of a
    person holds for all of them.
    """

    def __init__(self, warehouse: Warehouse, source: str, now: datetime) -> None:
        self.warehouse = warehouse
        self.source = source
        self.now = now
        there = set(
            warehouse.frame(
                """
                select concat(database, '.', name) as table from system.tables
                where name in ('int_contacts__identified', 'suppressions')
                """
            )["table"]
        )
        self.has_identities = "intermediate.int_contacts__identified" in there
        self.has_suppressions = "marts.suppressions" in there

    def of(self, rows: pl.DataFrame, channel: str, purpose: str) -> pl.DataFrame:
        """External ids of those who must get none, each with one reason.

        Args:
            rows: external_id, email, number.
            channel: of the consent. purpose: what for.
        """
        if rows.is_empty():
            return pl.DataFrame(schema={"external_id": pl.String(), "reason": pl.String()})
        given = rows.select("external_id", pl.col("email", "number").fill_null(""))
        parts = [self._withdrawn(), self._mail_stops(channel)]
        if channel == "sms" and self.has_suppressions:
            parts.append(_NUMBER_STOPS)
        stops = " union all ".join(parts)
        found = self.warehouse.frame(
            f"""
            with aliases as ({self._aliases()})
            select external_id, substring(min(stop), 3) as reason from ({stops})
            group by external_id
            """,  # noqa: S608
            {
                "channel": channel,
                "purpose": purpose,
                "source": self.source,
                "now": f"{self.now:%Y-%m-%d %H:%M:%S}",
            },
            external={"given": given},
        )
        return found.with_columns(pl.col("external_id", "reason").cast(pl.String))

    def _aliases(self) -> str:
        """SQL: external_id of the file beside every address that is known of the person."""
        own = "select external_id, email from given where email != ''"
        if not self.has_identities:
            return own
        return f"""
            {own}
            union distinct
            select named.external_id as external_id, others.identifier as email
            from (
                select mine.external_id as external_id, identities.contact_id as contact_id
                from (select external_id, {_EMAIL_IDENTITY} as id from given where email != '') as mine
                inner join (
                    select identity_id, contact_id from intermediate.int_contacts__identified
                    where kind = 'email' and identity_id in (select {_EMAIL_IDENTITY} from given)
                ) as identities on identities.identity_id = mine.id
            ) as named
            inner join (
                select contact_id, identifier from intermediate.int_contacts__identified
                where kind = 'email' and contact_id in (
                    select contact_id from intermediate.int_contacts__identified
                    where kind = 'email' and identity_id in (select {_EMAIL_IDENTITY} from given)
                )
            ) as others on others.contact_id = named.contact_id
        """  # noqa: S608

    def _withdrawn(self) -> str:
        standing = """
            argMax(
                is_granted or (basis = 'pause' and coalesce(
                    parseDateTime64BestEffortOrNull(properties.paused_until::Nullable(String), 3, 'UTC')
                    <= {now:DateTime('UTC')}, false
                )),
                tuple(occurred_at, not is_granted)
            )
        """
        of = "channel = {channel:String} and purpose = {purpose:String}"
        address = r"lower(trim(both ' \t\r\n' from email))"
        return f"""
            select aliases.external_id as external_id, '1 withdrawn' as stop
            from aliases
            inner join (
                select {address} as address from raw.consents
                where {of} and {address} in (select email from aliases)
                group by address having not {standing}
            ) as withdrawn on withdrawn.address = aliases.email
            union all
            select external_id, '1 withdrawn' as stop from raw.consents
            where {of} and source = {{source:String}} and external_id in (select external_id from given)
            group by external_id having not {standing}
        """  # noqa: S608

    def _mail_stops(self, channel: str) -> str:
        """SQL: what stands against an address, of other channels than mail only what was said of all.

        The view knows the other addresses of a person, and that a dead mailbox says nothing of them.
        """
        if self.has_suppressions:
            only = "" if channel == "email" else "and is_global"
            return f"""
                select given.external_id as external_id, concat('2 ', stops.reason) as stop
                from given
                inner join (
                    select email, toString(reason) as reason from marts.suppressions
                    where channel = 'email' {only} and email in (select email from given)
                ) as stops on stops.email = given.email
            """  # noqa: S608
        return """
            select given.external_id as external_id, concat('2 ', stops.reason) as stop
            from given
            inner join (
                select
                    lower(trim(both ' \t\r\n' from email)) as address,
                    maxIf(occurred_at, type = 'subscribed') as subscribed_at,
                    argMinIf(type::String, occurred_at, type != 'subscribed') as reason
                from raw.events
                where
                    type in ('unsubscribed', 'complained', 'bounced', 'subscribed')
                    and email != ''
                    and lower(trim(both ' \t\r\n' from email)) in (select email from given)
                    and (type != 'bounced' or coalesce(properties.bounce_class::Nullable(String), '') = 'hard')
                    and coalesce(properties.phone::Nullable(String), '') = ''
                group by address
                having
                    countIf(type in ('complained', 'bounced')) > 0
                    or (
                        countIf(type = 'unsubscribed') > 0
                        and maxIf(occurred_at, type = 'unsubscribed') >= subscribed_at
                    )
            ) as stops on stops.address = given.email
        """


class _List:
    """A static list that grows by those who are taken: `content/lists/<name>.csv`."""

    def __init__(self, content_dir: Path, name: str, plan: ImportPlan) -> None:
        self.path = content_dir / "lists" / f"{name}.csv"
        self.source = plan.options.source
        self.header = ["email", "external_id", "source"]
        self.people: list[pl.DataFrame] = []
        if self.path.exists():
            with self.path.open(encoding="utf-8-sig", newline="") as handle:
                self.header = [column.strip() for column in next(csv.reader(handle), [])]
            needed = "email" if "email" in plan.fields else "external_id"
            if needed not in self.header:
                raise InputError(
                    f"{self.path.name} has no column {needed}, so nobody can be put on the list.",
                    fix=f"Add {needed} to its header, or name another list.",
                )

    def add(self, rows: pl.DataFrame) -> None:
        """Remember people."""
        self.people.append(rows.select("email", "external_id"))

    def write(self) -> int:
        """Put those on the list who are not on it yet; returns how many. Lines that are there stay as they are."""
        people = (
            pl.concat(self.people)
            if self.people
            else pl.DataFrame(schema={"email": pl.String(), "external_id": pl.String()})
        )
        before = ""
        if self.path.exists():
            before = self.path.read_text(encoding="utf-8-sig")
            there = list(csv.DictReader(io.StringIO(before), fieldnames=None))
            for name in ("email", "external_id"):
                if name in self.header:
                    on = [(row.get(name) or "").strip() for row in there]
                    on = [text.lower() for text in on] if name == "email" else on
                    people = people.filter(~pl.col(name).fill_null("").is_in([text for text in on if text]))
            before += "" if before.endswith("\n") or not before else "\n"
        else:
            before = ",".join(self.header) + "\n"
        body = io.StringIO()
        writer = csv.DictWriter(body, self.header, restval="", extrasaction="ignore", lineterminator="\n")
        for email, external_id in people.iter_rows():
            # whom an address names needs no number
            row = {"email": email} if email else {"external_id": external_id, "source": self.source}
            if row.keys() & set(self.header):
                writer.writerow(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        part.write_text(before + body.getvalue(), encoding="utf-8")
        part.replace(self.path)
        return people.height
