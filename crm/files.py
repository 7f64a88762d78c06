"""Contacts, orders, events, products and consents from files: the connector for people without a CRM API.

`content/sources/*.yaml` says which files there are and which column means what (`crm.specs`);
`ingest_files` reads what it names into the raw tables. Good rows load, bad rows go to
`raw.quarantined_rows` with file, line and reason, and a file that as a whole is not what it should be
raises before a row of it is loaded. Loading a file again, or half of it after a crash, adds what is missing
and nothing twice.
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from crm import columns as read
from crm.locks import one_at_a_time
from crm.readers import CHUNK_ROWS, BadRow, Chunk, Want, read_chunks
from crm.specs import (
    FORMATS,
    Columns,
    ConsentsSource,
    ContactsSource,
    EventColumns,
    EventsSource,
    FileSource,
    Moment,
    OrdersSource,
    ProductsSource,
    Value,
    load_source,
    load_sources,
)
from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.loads import (
    MAIL_EVENT_TYPES,
    UTC_MS,
    LoadResult,
    clear_quarantine,
    load_consent_texts,
    load_consents,
    load_crm_records,
    load_events,
    load_products,
    quarantine,
)

__all__ = ["FileReport", "FileSource", "IngestReport", "ingest_files", "load_source", "load_sources"]

Progress = Callable[[str, int], None]
"""Called with a file's name and how many of its rows have been read."""

_SINGULAR = {
    "contacts": "contact",
    "orders": "order",
    "events": "event",
    "products": "product",
    "consents": "consent",
}
_WORD = r"^[a-z][a-z0-9_.-]*$"
# what an exported raw.events has beyond what may be loaded
_OWN_EVENT_FIELDS = ("loaded_at", "run_id")
_EXAMPLES = 5


@dataclass(frozen=True)
class FileReport:
    """What became of one file.

    Attributes:
        file: its name, relative to the base folder if it lies there.
        rows: rows read, good and bad.
        loaded: things that are new in the warehouse: contacts, orders (not their lines), events ...
        duplicates: things that it held already, or that the file holds twice.
        quarantined: rows set apart. Lines of an order that has a bad line count here, too.
        consents: consents loaded beside contacts.
        examples: the first quarantined rows, as `file:line: reason`.
    """

    file: str
    rows: int = 0
    loaded: int = 0
    duplicates: int = 0
    quarantined: int = 0
    consents: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class IngestReport:
    """What became of the files of one source."""

    name: str
    source: str
    object: str
    files: tuple[FileReport, ...]

    @property
    def rows(self) -> int:
        """Rows read."""
        return sum(file.rows for file in self.files)

    @property
    def loaded(self) -> int:
        """Things new in the warehouse."""
        return sum(file.loaded for file in self.files)

    @property
    def duplicates(self) -> int:
        """Things that were there already."""
        return sum(file.duplicates for file in self.files)

    @property
    def quarantined(self) -> int:
        """Rows set apart."""
        return sum(file.quarantined for file in self.files)

    @property
    def consents(self) -> int:
        """Consents loaded beside contacts."""
        return sum(file.consents for file in self.files)

    @property
    def examples(self) -> tuple[str, ...]:
        """The first quarantined rows, as `file:line: reason`."""
        return tuple(example for file in self.files for example in file.examples)[:_EXAMPLES]


def find_files(source: FileSource, base_dir: Path) -> list[Path]:
    """Files that a source names, in order of their names, each once.

    Raises:
        InputError: nothing matches and the source is not optional, or a file's format is unknown.
    """
    base = source.content_dir if source.relative_to == "content" else base_dir
    found: dict[Path, None] = {}
    for index, pattern in enumerate(source.files):
        path = base / Path(pattern).expanduser()
        shown = _shown(path, source, base_dir)
        place = source.place("files", index) if len(source.files) > 1 else source.place("files")
        if path.is_dir():
            inside = sorted(
                entry for entry in path.iterdir() if entry.is_file() and entry.name[0] not in "._"
            )
            matches = [entry for entry in inside if source.format or entry.suffix.lower() in FORMATS]
            said = f"{place}: folder {shown} holds no file of a known format" + (
                f" (there is {inside[0].name})." if inside else "."
            )
        elif glob.has_magic(pattern):
            matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207
            matches = [entry for entry in matches if entry.is_file()]
            said = f"{place}: no file matches {shown}."
        else:
            matches = [path] if path.exists() else []
            said = f"{place}: file {shown} does not exist."
        if not matches and not source.is_optional:
            raise InputError(
                said,
                fix="Put the file there, correct `files:`, or write `is_optional: true` if it may be absent.",
            )
        for match in matches:
            if source.format is None and match.suffix.lower() not in FORMATS:
                raise InputError(
                    f"{place}: {_shown(match, source, base_dir)} has no known format.",
                    fix=f"Let its name end in {', '.join(FORMATS)}, or write `format:` into the source.",
                )
            found[match.resolve()] = None
    return list(found)


def ingest_files(
    warehouse: Warehouse,
    source: FileSource,
    *,
    base_dir: Path,
    run_id: str = "",
    now: datetime | None = None,
    on_progress: Progress | None = None,
) -> IngestReport:
    """Read all files of a source into the raw tables; safe to repeat at any time, and to run twice at once.

    Args:
        warehouse: where to.
        source: one of `load_sources`.
        base_dir: what relative paths start from, the home folder.
        run_id: who loads, e.g. Dagster's run.
        now: the time through the settings' clock; of rows without a time of their own.
        on_progress: told after every chunk of rows.

    Raises:
        InputError: a file is missing, is not what its name says, or lacks a mapped column. Files before it
            in order of names are loaded, nothing of it is (of a damaged Parquet file, nothing after the
            damage).
        WarehouseError: ClickHouse refused.
    """
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    jobs = [
        _Job(warehouse, source, path, _shown(path, source, base_dir), run_id, moment)
        for path in find_files(source, base_dir)
    ]
    for job in jobs:
        # the first chunk is read before anything of any file is loaded: it shows what is wrong with the whole
        next(job.chunks(rows=1_000), None)
    reports: tuple[FileReport, ...] = ()
    if jobs:
        with one_at_a_time(base_dir, source.source):
            reports = tuple(job.run(on_progress) for job in jobs)
    return IngestReport(source.name, source.source, source.object, reports)


class _Job:
    """One file on its way into the warehouse."""

    def __init__(
        self, warehouse: Warehouse, source: FileSource, path: Path, shown: str, run_id: str, now: datetime
    ) -> None:
        self.warehouse = warehouse
        self.source = source
        self.path = path
        self.shown = shown
        self.run_id = run_id
        self.now = now
        self.kind = _SINGULAR[source.object]
        self.report = FileReport(shown)

    def run(self, on_progress: Progress | None) -> FileReport:
        clear_quarantine(self.warehouse, source=self.source.source, object=self.kind, file=self.shown)
        # an order's lines may stand anywhere in the file, so orders wait for its end
        lines: list[pl.DataFrame] = []
        broken: list[int] = []
        for chunk in self.chunks():
            self._quarantine_bad(chunk.bad)
            broken += [row.line for row in chunk.bad]
            rows = chunk.frame.height + len(chunk.bad)
            if chunk.frame.height:
                match self.source:
                    case ContactsSource():
                        self._contacts(self.source, chunk)
                    case OrdersSource():
                        lines.append(self._order_lines(self.source, chunk))
                    case EventsSource():
                        self._events(self.source, chunk)
                    case ProductsSource():
                        self._products(self.source, chunk)
                    case ConsentsSource():
                        self._consents(self.source, chunk)
                    case _:
                        raise AssertionError(self.source.object)
            self._add(rows=rows)
            if on_progress is not None:
                on_progress(self.shown, self.report.rows)
        if lines:
            self._orders(pl.concat(lines), broken)
        return self.report

    def chunks(self, rows: int = CHUNK_ROWS) -> Iterator[Chunk]:
        """The file's chunks; what is wrong with the whole file raises."""
        form = self.source.format or FORMATS[self.path.suffix.lower()]
        return read_chunks(
            self.path,
            form,
            self._want(form),
            shown=self.shown,
            delimiter=self.source.delimiter,
            encoding=self.source.encoding,
            rows=rows,
        )

    def _want(self, form: str) -> Want:
        mapping = self.source.mapping
        if mapping is None:
            if form != "jsonl":
                raise InputError(
                    f"{self.source.place()}: {self.shown} needs to be told which column is which.",
                    fix="Write `columns:` into the source; only JSON Lines may have the shape of raw.events.",
                )
            return Want((), tuple(EventColumns.model_fields), is_rest=True, ignore=_OWN_EVENT_FIELDS)
        values = list(mapping.mapped().values())
        if isinstance(self.source, ContactsSource):
            values += [value for consent in self.source.consents for value in consent.mapped().values()]
        names = [name for value in values for name in value.columns]
        if isinstance(self.source, OrdersSource) and self.source.cancelled:
            names.append(self.source.cancelled.column)
        fields = mapping.mapped()
        needed = {name for field in type(mapping).model_fields for name in _required(mapping, field, fields)}
        if form != "jsonl":
            needed = set(names)  # a table has its columns in the header, objects leave out what is empty
        is_rest = not isinstance(self.source, OrdersSource) and "properties" not in fields
        return Want(
            tuple(name for name in dict.fromkeys(names) if name in needed),
            tuple(dict.fromkeys(names)),
            is_rest=is_rest,
            ignore=tuple(self.source.ignore),
        )

    # Rows

    def _contacts(self, source: ContactsSource, chunk: Chunk) -> None:
        schema = chunk.frame.schema
        fields = source.columns.mapped()
        parsed = {
            "external_id": read.text(source.columns.external_id, schema),
            "email": read.email("email", source.columns.email, chunk.frame),
        }
        person = (
            "first_name", "last_name", "country", "city", "timezone", "locale", "phone", "mobile_phone", "push_token",
        )  # fmt: skip
        contents: dict[str, pl.Expr] = {"email": parsed["email"].value}
        reasons = [read.needed("external_id", parsed["external_id"]), parsed["email"].reason]
        for name in person:
            if name in fields:
                contents[name] = read.text(fields[name], schema)
        if source.columns.created_at is not None:
            created = self._moment("created_at", source.columns.created_at, chunk)
            contents["created_at"] = created.value.dt.strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
            reasons.append(created.reason)
        updated = pl.lit(self._file_time(), UTC_MS)
        if source.columns.updated_at is not None:
            moment = self._moment("updated_at", source.columns.updated_at, chunk)
            reasons += [moment.reason, read.needed("updated_at", moment.value)]
            updated = moment.value
        deleted = pl.lit(False)
        if source.columns.is_deleted is not None:
            flag = read.boolean("is_deleted", source.columns.is_deleted, chunk.frame)
            reasons.append(flag.reason)
            deleted = flag.value.fill_null(False)
        consents, more = self._contact_consents(source, chunk)
        rows, good = self._judged(
            chunk,
            {
                "object": pl.lit("contact"),
                "external_id": parsed["external_id"],
                "updated_at": updated,
                "is_deleted": deleted,
                "properties": self._properties(chunk, contents),
            },
            [*reasons, *more],
        )
        result = load_crm_records(
            self.warehouse, rows, run_id=self.run_id, by_content=source.columns.updated_at is None
        )
        self._count(result)
        if consents:
            frame = pl.concat([self._consent_frame(chunk, consent, good) for consent in consents])
            frame = self._consent_ids(self._with_texts(frame))
            loaded = load_consents(self.warehouse, frame, run_id=self.run_id, kind=self.kind)
            self._add(consents=loaded.loaded)

    def _contact_consents(
        self, source: ContactsSource, chunk: Chunk
    ) -> tuple[list[dict[str, pl.Expr]], list[pl.Expr]]:
        consents: list[dict[str, pl.Expr]] = []
        reasons: list[pl.Expr] = []
        for consent in source.consents:
            fields, said = self._consent_fields(consent, chunk)
            given = fields["is_granted"].is_not_null()
            # where the file says nothing of consent there is none, and nothing to complain of
            reasons += [pl.when(given).then(reason) for reason in said]
            reasons.append(read.boolean("is_granted", consent.is_granted, chunk.frame).reason)
            fields["external_id"] = read.text(source.columns.external_id, chunk.frame.schema)
            fields["email"] = read.email("email", source.columns.email, chunk.frame).value
            consents.append(fields)
        return consents, reasons

    def _consent_fields(self, mapping: Columns, chunk: Chunk) -> tuple[dict[str, pl.Expr], list[pl.Expr]]:
        schema = chunk.frame.schema
        fields = mapping.mapped()
        reasons: list[pl.Expr] = []
        values: dict[str, pl.Expr] = {}
        for name in ("channel", "purpose", "basis"):
            parsed = read.word(
                name, fields[name], chunk.frame, _WORD, "no name in lower case, e.g. soft_opt_in"
            )
            values[name] = parsed.value
            reasons += [parsed.reason, read.needed(name, parsed.value)]
        granted = read.boolean("is_granted", fields["is_granted"], chunk.frame)
        values["is_granted"] = granted.value
        occurred = fields["occurred_at"]
        assert isinstance(occurred, Moment)
        moment = self._moment("occurred_at", occurred, chunk)
        values["occurred_at"] = moment.value
        reasons += [moment.reason, read.needed("occurred_at", moment.value)]
        for name in ("text_version", "text", "ip", "user_agent", "page", "requested_ip", "recorded_by"):
            values[name] = read.text(fields[name], schema) if name in fields else pl.lit(None, pl.String)
        for name in ("requested_at", "confirmed_at"):
            values[name] = pl.lit(None, UTC_MS)
            if isinstance(given := fields.get(name), Moment):
                moment = self._moment(name, given, chunk)
                values[name] = moment.value
                reasons.append(moment.reason)
        values["text_digest"] = pl.lit(None, pl.String)
        if "text_digest" in fields:
            parsed = read.digest("text_digest", fields["text_digest"], chunk.frame)
            values["text_digest"] = parsed.value
            reasons.append(parsed.reason)
        return values, reasons

    def _with_texts(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with digests of texts in the texts' place; the texts are kept where all are."""
        texts, frame = with_digests(frame, self.source.source)
        load_consent_texts(self.warehouse, texts, self.now)
        return frame

    def _consent_frame(self, chunk: Chunk, fields: dict[str, pl.Expr], good: pl.Series) -> pl.DataFrame:
        frame = chunk.frame.select(*(value.alias(name) for name, value in fields.items()))
        frame = frame.with_columns(chunk.lines, pl.lit(self.shown).alias("file"))
        return frame.filter(good & frame["is_granted"].is_not_null())

    def _consent_ids(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with `source`, and where it lacks a `consent_id` the UUIDv5 of all the consent says."""
        source = self.source.source
        frame = frame.with_columns(pl.lit(source).alias("source"))
        parts = (
            "source",
            "external_id",
            "email",
            "channel",
            "purpose",
            "is_granted",
            "basis",
            "text_version",
        )
        key = pl.concat_str(
            [pl.col(name).cast(pl.String).fill_null("") for name in parts]
            + [pl.col("occurred_at").dt.epoch("ms").cast(pl.String), pl.col("ip").fill_null("")],
            separator="\x1f",
        ) + read.proof_key(("text_digest", "requested_at", "requested_ip", "confirmed_at"))
        derived = pl.Series("derived", consent_ids(frame.select(key).to_series().to_list()), pl.String)
        if "consent_id" not in frame.columns:
            return frame.with_columns(derived.alias("consent_id"))
        return frame.with_columns(pl.col("consent_id").fill_null(derived))

    def _consents(self, source: ConsentsSource, chunk: Chunk) -> None:
        schema = chunk.frame.schema
        mapping = source.columns
        values, reasons = self._consent_fields(mapping, chunk)
        reasons.append(read.boolean("is_granted", mapping.is_granted, chunk.frame).reason)
        reasons.append(read.needed("is_granted", values["is_granted"]))
        nothing = pl.lit(None, pl.String)
        external = read.text(mapping.external_id, schema) if mapping.external_id else nothing
        address = nothing
        if mapping.email is not None:
            parsed = read.email("email", mapping.email, chunk.frame)
            address = parsed.value
            reasons.append(parsed.reason)
        reasons.append(
            pl.when(external.is_null() & address.is_null()).then(pl.lit("external_id and email are missing"))
        )
        values |= {
            "external_id": external,
            "email": address,
            "consent_id": read.text(mapping.consent_id, schema) if mapping.consent_id else nothing,
            "properties": self._properties(chunk, {}),
        }
        rows, _ = self._judged(chunk, values, reasons)
        rows = self._consent_ids(self._with_texts(rows))
        self._count(load_consents(self.warehouse, rows, run_id=self.run_id))

    def _events(self, source: EventsSource, chunk: Chunk) -> None:
        schema = chunk.frame.schema
        mapping = source.columns
        fields: dict[str, Value] = (
            mapping.mapped()
            if mapping is not None
            else {
                name: Moment(column=name) if name.endswith("_at") else Value(column=name)
                for name in EventColumns.model_fields
            }
        )
        values: dict[str, pl.Expr] = {}
        reasons: list[pl.Expr] = []
        for name, value in fields.items():
            if isinstance(value, Moment):
                parsed = self._moment(name, value, chunk)
                values[name] = parsed.value
                reasons.append(parsed.reason)
            else:
                values[name] = read.text(value, schema)
        reasons += [read.needed(name, values[name]) for name in ("event_id", "type", "occurred_at")]
        reasons.append(read.allowed_type(values["type"], MAIL_EVENT_TYPES))
        now = pl.lit(self.now.replace(tzinfo=None), pl.Datetime("ms")).dt.replace_time_zone("UTC")
        values["received_at"] = values["received_at"].fill_null(now) if "received_at" in values else now
        given = values.get("source", pl.lit(None, pl.String))
        values["source"] = given.fill_null(source.source)
        if "properties" in values:
            text = values["properties"]
            is_object = text.str.starts_with("{") & text.str.ends_with("}")
            reasons.append(
                pl.when(text.is_not_null() & ~is_object).then(pl.lit("properties is no JSON object"))
            )
            if mapping is None:
                unknown = self._extras(chunk)
                said = pl.concat_str(pl.lit("unknown fields: "), unknown.str.head(200))
                reasons.append(pl.when(unknown != "{}").then(said))
        else:
            values["properties"] = self._properties(chunk, {})
        rows, _ = self._judged(chunk, values, reasons)
        self._count(load_events(self.warehouse, rows, run_id=self.run_id))

    def _products(self, source: ProductsSource, chunk: Chunk) -> None:
        schema = chunk.frame.schema
        mapping = source.columns
        fields = mapping.mapped()
        price = read.decimal("price", mapping.price, chunk.frame)
        values: dict[str, pl.Expr] = {
            name: read.text(fields[name], schema)
            for name in ("product_id", "name", "category", "image_url", "url")
            if name in fields
        }
        values["source"] = pl.lit(source.source)
        values["price"] = price.value.cast(pl.Decimal(18, 2), strict=False)
        reasons = [
            read.needed("product_id", values["product_id"]),
            read.needed("name", values["name"]),
            price.reason,
            read.needed("price", price.value),
        ]
        values["updated_at"] = pl.lit(self._file_time(), UTC_MS)
        if mapping.updated_at is not None:
            moment = self._moment("updated_at", mapping.updated_at, chunk)
            reasons += [moment.reason, read.needed("updated_at", moment.value)]
            values["updated_at"] = moment.value
        if mapping.is_available is not None:
            flag = read.boolean("is_available", mapping.is_available, chunk.frame)
            reasons.append(flag.reason)
            values["is_available"] = flag.value
        values["properties"] = self._properties(chunk, {})
        rows, _ = self._judged(chunk, values, reasons)
        self._count(
            load_products(self.warehouse, rows, run_id=self.run_id, by_content=mapping.updated_at is None)
        )

    # Orders

    def _order_lines(self, source: OrdersSource, chunk: Chunk) -> pl.DataFrame:
        """Lines with their values; `reason` where a line is bad."""
        schema = chunk.frame.schema
        mapping = source.columns
        fields = mapping.mapped()
        occurred = self._moment("occurred_at", mapping.occurred_at, chunk)
        quantity = read.whole("quantity", mapping.quantity, chunk.frame)
        price = read.decimal("unit_price", mapping.unit_price, chunk.frame)
        values = {
            name: read.text(fields[name], schema) if name in fields else pl.lit(None, pl.String)
            for name in ("order_id", "external_id", "email", "product_id", "name", "currency", "country")
        }
        values |= {"occurred_at": occurred.value, "quantity": quantity.value, "unit_price": price.value}
        values["is_cancelled"] = pl.lit(False)
        if source.cancelled is not None:
            tested = read.text(Value(column=source.cancelled.column), schema)
            answer = (
                tested.str.starts_with(source.cancelled.starts_with)
                if source.cancelled.starts_with is not None
                else tested.is_in(source.cancelled.equals or [])
            )
            values["is_cancelled"] = answer.fill_null(False)
        reasons = [
            occurred.reason,
            quantity.reason,
            price.reason,
            *(
                read.needed(name, values[name])
                for name in ("order_id", "product_id", "currency", "occurred_at", "quantity", "unit_price")
            ),
        ]
        return chunk.frame.select(
            *(value.alias(name) for name, value in values.items()),
            pl.coalesce(reasons).alias("reason"),
            chunk.lines.alias("line"),
        )

    def _orders(self, lines: pl.DataFrame, broken: list[int]) -> None:
        """Lines to events, one an order; an order with a bad line waits until its file is mended.

        The event of an order is stored once and for good, so half of one must not be. Of a line that could
        not be read at all (`broken`) the orders on both sides wait: it belongs to one of them.
        """
        bad = lines.filter(pl.col("reason").is_not_null()).select(
            "order_id", pl.col("line").alias("bad_line")
        )
        if broken:
            numbers = pl.Series("bad_line", sorted(broken), pl.UInt64)
            after = lines["line"].search_sorted(numbers)
            for places in (after - 1, after):
                beside = pl.DataFrame({"place": places.cast(pl.Int64), "bad_line": numbers}).filter(
                    pl.col("place").is_between(0, lines.height - 1)
                )
                orders = lines["order_id"].gather(beside["place"])
                bad = pl.concat([bad, pl.DataFrame({"order_id": orders, "bad_line": beside["bad_line"]})])
        if bad.height:
            first = bad.filter(pl.col("order_id").is_not_null()).unique("order_id", keep="first")
            lines = lines.join(first, on="order_id", how="left", maintain_order="left")
            waits = pl.format("order {} waits for line {} to be mended", "order_id", "bad_line")
            is_held = pl.col("reason").is_not_null() | pl.col("bad_line").is_not_null()
            content = pl.struct(pl.all().exclude("reason", "line", "bad_line", "is_cancelled"))
            self._quarantine_rows(
                lines.filter(is_held).select(
                    pl.lit(self.shown).alias("file"),
                    "line",
                    pl.coalesce("reason", waits).alias("reason"),
                    content.struct.json_encode().alias("content"),
                )
            )
            lines = lines.filter(~is_held)
        source = self.source.source
        item = pl.struct(
            pl.int_range(1, pl.len() + 1).over("order_id").alias("line_number"),
            "product_id",
            pl.col("name").fill_null(""),
            "quantity",
            "unit_price",
        )
        orders = (
            lines.with_columns(item.alias("item"))
            .group_by("order_id", maintain_order=True)
            .agg(
                pl.col("item").alias("items"),
                pl.col("occurred_at").min(),
                pl.col("is_cancelled").any(),
                pl.col("line").first(),
                *(
                    pl.col(name).drop_nulls().first()
                    for name in ("external_id", "email", "currency", "country")
                ),
            )
        )
        for part in orders.iter_slices(CHUNK_ROWS):
            rows = part.select(
                pl.concat_str(pl.lit(f"{source}:order:"), "order_id").alias("event_id"),
                pl.when("is_cancelled")
                .then(pl.lit("order.cancelled"))
                .otherwise(pl.lit("order.placed"))
                .alias("type"),
                pl.lit(source).alias("source"),
                "external_id",
                "email",
                "occurred_at",
                pl.lit(self.now.replace(tzinfo=None), pl.Datetime("ms"))
                .dt.replace_time_zone("UTC")
                .alias("received_at"),
                pl.struct("order_id", "currency", pl.col("country").fill_null(""), "items")
                .struct.json_encode()
                .alias("properties"),
                pl.lit(self.shown).alias("file"),
                "line",
            )
            self._count(load_events(self.warehouse, rows, run_id=self.run_id, kind=self.kind))

    # Helpers

    def _moment(self, name: str, value: Moment, chunk: Chunk) -> read.Parsed:
        return read.moment(name, value, chunk.frame, shown=self.shown)

    def _file_time(self) -> datetime:
        """When the file last changed, as far as that is not in the future of the clock in force."""
        changed = datetime.fromtimestamp(self.path.stat().st_mtime, UTC)
        moment = min(changed, self.now)
        return moment.replace(microsecond=moment.microsecond // 1000 * 1000)

    def _extras(self, chunk: Chunk) -> pl.Expr:
        return (
            pl.lit(pl.Series("extras", chunk.extras, pl.String)) if chunk.extras is not None else pl.lit("{}")
        )

    def _properties(self, chunk: Chunk, fields: dict[str, pl.Expr]) -> pl.Expr:
        """Properties of all but orders: the fields, and columns that nothing maps."""
        mapping = self.source.mapping
        mapped = [name for value in mapping.mapped().values() for name in value.columns] if mapping else []
        if isinstance(self.source, ContactsSource):
            for consent in self.source.consents:
                mapped += [name for value in consent.mapped().values() for name in value.columns]
        rest = {name: dtype for name, dtype in chunk.frame.schema.items() if name not in mapped}
        for name in rest:
            path = next((other for other in (*rest, *fields) if other.startswith(f"{name}.")), None)
            if name in fields or path is not None:
                raise InputError(
                    f"{self.shown}: column {name!r} clashes with the property {path or name!r}.",
                    fix=f"Write `ignore: [{name}]` into the source, map it, or rename it.",
                )
        return read.properties(fields, rest, self._extras(chunk) if chunk.extras is not None else None)

    def _judged(
        self, chunk: Chunk, values: dict[str, pl.Expr], reasons: Sequence[pl.Expr]
    ) -> tuple[pl.DataFrame, pl.Series]:
        """Good rows with the values given, and which of the chunk's they are; bad ones are set apart."""
        frame = chunk.frame.select(
            *(value.alias(name) for name, value in values.items()), pl.coalesce(reasons).alias("reason")
        ).with_columns(chunk.lines, pl.lit(self.shown).alias("file"))
        if "source" not in values:
            frame = frame.with_columns(pl.lit(self.source.source).alias("source"))
        good = frame["reason"].is_null()
        if not good.all():
            bad = frame.filter(~good)
            places = (~good).arg_true()
            if chunk.texts is not None:
                content = pl.Series("content", [chunk.texts[place] for place in places], pl.String)
            else:
                content = chunk.frame[places].select(encoded_row(chunk.frame)).to_series().alias("content")
            self._quarantine_rows(bad.select("file", "line", "reason").with_columns(content))
        return frame.filter(good).drop("reason"), good

    def _quarantine_bad(self, bad: list[BadRow]) -> None:
        if bad:
            self._quarantine_rows(
                pl.DataFrame(
                    {
                        "file": [self.shown] * len(bad),
                        "line": [row.line for row in bad],
                        "reason": [row.reason for row in bad],
                        "content": [row.content for row in bad],
                    }
                )
            )

    def _quarantine_rows(self, rows: pl.DataFrame) -> None:
        quarantine(self.warehouse, rows, source=self.source.source, object=self.kind, run_id=self.run_id)
        examples = tuple(
            f"{self.shown}:{line}: {reason}"
            for line, reason in rows.head(_EXAMPLES).select("line", "reason").iter_rows()
        )
        self._add(quarantined=rows.height, examples=examples)

    def _count(self, result: LoadResult) -> None:
        self._add(loaded=result.loaded, duplicates=result.duplicates, quarantined=result.quarantined)

    def _add(
        self,
        *,
        rows: int = 0,
        loaded: int = 0,
        duplicates: int = 0,
        quarantined: int = 0,
        consents: int = 0,
        examples: tuple[str, ...] = (),
    ) -> None:
        before = self.report
        self.report = replace(
            before,
            rows=before.rows + rows,
            loaded=before.loaded + loaded,
            duplicates=before.duplicates + duplicates,
            quarantined=before.quarantined + quarantined,
            consents=before.consents + consents,
            examples=(before.examples + examples)[:_EXAMPLES],
        )


_CONSENTS_NAMESPACE = bytes.fromhex("6d2b1c0e8b1f5e0c9a3f1f5c7d0a4e21")


def with_digests(consents: pl.DataFrame, place: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Texts of consents, as `load_consent_texts` takes them, and the consents without `text`, but with its digest.

    A text without a version is a version of its own, named after where it is from and its digest's beginning.
    """
    if consents["text"].null_count() == consents.height:
        names = ("purpose", "channel", "text_version", "text_digest", "content")
        return pl.DataFrame(schema=dict.fromkeys(names, pl.String)), consents.drop("text")
    digest = read.digests(consents["text"]).alias("digest")
    version = pl.concat_str(pl.lit(f"{place}-"), digest.str.head(8))
    consents = consents.with_columns(
        pl.coalesce(pl.lit(digest), "text_digest").alias("text_digest"),
        pl.when(pl.col("text_version").fill_null("") != "")
        .then("text_version")
        .otherwise(version)
        .alias("text_version"),
    )
    texts = consents.filter(pl.col("text").is_not_null()).select(
        "purpose", "channel", "text_version", "text_digest", pl.col("text").alias("content")
    )
    return texts.unique(), consents.drop("text")


def consent_ids(keys: Sequence[str]) -> list[str]:
    """UUIDv5 (RFC 9562, 5.5) of each key in Mailhouse's namespace of consents."""
    ids: list[str] = []
    base = hashlib.sha1(_CONSENTS_NAMESPACE, usedforsecurity=False)
    for key in keys:
        digest = base.copy()
        digest.update(key.encode("utf-8"))
        raw = bytearray(digest.digest()[:16])
        raw[6] = raw[6] & 0x0F | 0x50
        raw[8] = raw[8] & 0x3F | 0x80
        text = raw.hex()
        ids.append(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")
    return ids


def encoded_row(frame: pl.DataFrame) -> pl.Expr:
    """Rows of Parquet as JSON, to be kept with what is wrong with them."""
    columns = [
        pl.col(name).cast(pl.String, strict=False)
        if dtype == pl.Binary or dtype.is_temporal()
        else pl.col(name)
        for name, dtype in frame.schema.items()
    ]
    return pl.struct(columns).struct.json_encode()


def _required(mapping: Columns, field: str, fields: dict[str, Value]) -> list[str]:
    info = type(mapping).model_fields[field]
    return fields[field].columns if info.is_required() and field in fields else []


def _shown(path: Path, source: FileSource, base_dir: Path) -> str:
    """A file's name in reports and in the quarantine: the same from wherever it is loaded."""
    for base in (base_dir, source.content_dir.parent):
        try:
            return path.resolve().relative_to(base.resolve()).as_posix()
        except ValueError:
            continue
    return path.resolve().as_posix()
