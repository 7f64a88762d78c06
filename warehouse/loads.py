"""Idempotent loads into the raw tables: what is loaded twice counts once.

A row's key says what it is: `event_id` of an event, (source, object, external_id, updated_at) of a CRM
record, `consent_id` of a consent, (source, product_id, updated_at) of a product. Each load drops what
repeats a key within the frame (the first stays) and then what the table already holds, found by one query
per `CHECK_ROWS` keys that travel with it as an external table. A process that dies half way leaves whole
batches behind; loading the same rows again adds the rest.

Two processes that load the same rows at the same moment both see them missing: whoever may load rows that
another process may load, too, must see to it that they take turns (`crm.locks` does for sources).

Rows about somebody who was erased are dropped and counted, and nothing of them is kept (`warehouse.erasures`).

Rows without a key, or with properties that ClickHouse cannot store, go to `raw.quarantined_rows` with the
reason; the others are loaded. Memory is that of the frame given plus one batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import polars as pl

from warehouse.client import INSERT_SETTINGS, Warehouse
from warehouse.erasures import mentions_erased, without_erased
from warehouse.errors import WarehouseError, WarehouseUnavailable

BATCH_ROWS: Final = 100_000
"""Rows of one insert, at most."""
BATCH_BYTES: Final = 64 << 20
"""Size of one insert in memory, about; wide rows make smaller batches."""
CHECK_ROWS: Final = 500_000
"""Keys looked up by one query: each query reads the key column once, so few large ones are cheaper."""
REMEMBERED: Final = timedelta(hours=6)
"""How far back `append_events` looks for an event_id that comes with another time than before."""
CONTENT_CHARACTERS: Final = 2_000
"""As much of a quarantined row as is kept."""

RECTIFICATION: Final = "rectification"
"""Run of versions of records that no source told: what `mailhouse gdpr rectify` put right."""
MAIL_EVENT_TYPES: Final = (
    "queued",
    "sent",
    "rejected",
    "failed",
    "bounced",
    "deferred",
    "delivered",
    "autoresponded",
    "opened",
    "clicked",
    "complained",
    "unsubscribed",
    "subscribed",
    "inbound",
    "unknown",
)
"""Types of mail events; behaviour events are `noun.verb`."""

UTC_MS: Final = pl.Datetime("ms", "UTC")
# 90 months stay below max_partitions_per_insert_block (100)
_MONTHS_A_BATCH = 90
_WORTH_A_BLOOM_FILTER = 50  # ids
# parse errors of ClickHouse: one row is at fault, not the statement
_ROW_ERRORS = frozenset({6, 25, 26, 27, 38, 41, 53, 69, 70, 72, 117, 131, 321, 349, 407, 467})
_EARLIEST = pl.datetime(1900, 1, 2, time_zone="UTC", time_unit="ms")
_UNREADABLE = (
    "properties is no JSON object that ClickHouse can store: bad JSON, a key written twice, "
    "`a.b` beside `a: {b}`, a number beyond a double, or nested too deeply"
)
_LATEST = pl.datetime(2299, 12, 30, time_zone="UTC", time_unit="ms")


@dataclass(frozen=True)
class LoadResult:
    """Rows of one load: `read == loaded + duplicates + quarantined + refused`; people who were erased are refused."""

    read: int = 0
    loaded: int = 0
    duplicates: int = 0
    quarantined: int = 0
    refused: int = 0

    def __add__(self, other: LoadResult) -> LoadResult:
        return LoadResult(
            self.read + other.read,
            self.loaded + other.loaded,
            self.duplicates + other.duplicates,
            self.quarantined + other.quarantined,
            self.refused + other.refused,
        )


@dataclass(frozen=True)
class _Raw:
    """A raw table as loads see it: columns a frame may have, those it must have, and the key."""

    table: str
    columns: dict[str, pl.DataType]
    required: tuple[str, ...]
    key: tuple[str, ...]
    order: tuple[str, ...]
    content: tuple[str, ...] = ()
    identity: tuple[str, ...] = ()
    month: str = ""
    skip_index: bool = False
    defaults: dict[str, pl.Expr] = field(default_factory=dict)


EVENT_COLUMNS: Final[dict[str, pl.DataType]] = {
    "event_id": pl.String(),
    "type": pl.String(),
    "source": pl.String(),
    "email": pl.String(),
    "external_id": pl.String(),
    "anonymous_id": pl.String(),
    "message_id": pl.String(),
    "occurred_at": UTC_MS,
    "received_at": UTC_MS,
    "properties": pl.String(),
    "esp_event": pl.String(),
}
RECORD_COLUMNS: Final[dict[str, pl.DataType]] = {
    "source": pl.String(),
    "object": pl.String(),
    "external_id": pl.String(),
    "updated_at": UTC_MS,
    "is_deleted": pl.Boolean(),
    "properties": pl.String(),
}
CONSENT_COLUMNS: Final[dict[str, pl.DataType]] = {
    "consent_id": pl.String(),
    "source": pl.String(),
    "email": pl.String(),
    "external_id": pl.String(),
    "channel": pl.String(),
    "purpose": pl.String(),
    "is_granted": pl.Boolean(),
    "basis": pl.String(),
    "text_version": pl.String(),
    "text_digest": pl.String(),
    "ip": pl.String(),
    "user_agent": pl.String(),
    "page": pl.String(),
    "requested_at": UTC_MS,
    "requested_ip": pl.String(),
    "confirmed_at": UTC_MS,
    "recorded_by": pl.String(),
    "occurred_at": UTC_MS,
    "properties": pl.String(),
}
PRODUCT_COLUMNS: Final[dict[str, pl.DataType]] = {
    "source": pl.String(),
    "product_id": pl.String(),
    "name": pl.String(),
    "category": pl.String(),
    "price": pl.Decimal(18, 2),
    "image_url": pl.String(),
    "url": pl.String(),
    "is_available": pl.Boolean(),
    "updated_at": UTC_MS,
    "properties": pl.String(),
}

_EVENTS = _Raw(
    "raw.events",
    EVENT_COLUMNS,
    required=("event_id", "type", "occurred_at"),
    key=("event_id",),
    order=("occurred_at", "event_id"),
    month="occurred_at",
    skip_index=True,
    defaults={"received_at": pl.col("occurred_at")},
)
_RECORDS = _Raw(
    "raw.crm_records",
    RECORD_COLUMNS,
    required=("source", "object", "external_id", "updated_at"),
    key=("source", "object", "external_id", "updated_at"),
    order=("updated_at", "external_id"),
    identity=("source", "object", "external_id"),
    content=("is_deleted", "properties"),
)
_CONSENTS = _Raw(
    "raw.consents",
    CONSENT_COLUMNS,
    required=("consent_id", "channel", "purpose", "is_granted", "basis", "occurred_at"),
    key=("consent_id",),
    order=("email", "external_id", "occurred_at", "consent_id"),
    defaults={"requested_at": pl.lit(None), "confirmed_at": pl.lit(None)},
)
_PRODUCTS = _Raw(
    "raw.products",
    PRODUCT_COLUMNS,
    required=("source", "product_id", "updated_at"),
    key=("source", "product_id", "updated_at"),
    order=("product_id", "updated_at"),
    identity=("source", "product_id"),
    content=("name", "category", "price", "image_url", "url", "is_available", "properties"),
    defaults={"price": pl.lit(0, pl.Decimal(18, 2)), "is_available": pl.lit(True)},
)


def load_events(
    warehouse: Warehouse, frame: pl.DataFrame, *, run_id: str = "", kind: str = "event"
) -> LoadResult:
    """Load events into `raw.events`, each `event_id` once.

    Args:
        warehouse: where to.
        frame: columns of `EVENT_COLUMNS`; `event_id`, `type` and `occurred_at` are required, `received_at` is
            `occurred_at` if left out, others are empty. `properties` is the text of a JSON object. `file` and
            `line` may say where a row stood; they are kept only if it is quarantined.
        run_id: who loads, e.g. Dagster's run.
        kind: the `object` under which a row is quarantined; orders are events, too.

    Raises:
        ValueError: the frame has other columns, or lacks a required one.
        WarehouseError: ClickHouse refused; batches before that are loaded.
    """
    return _load(warehouse, frame, _EVENTS, run_id, kind)


def append_events(
    warehouse: Warehouse, frame: pl.DataFrame, *, run_id: str = "", loaded_at: datetime | None = None
) -> LoadResult:
    """Load a micro-batch of a stream into `raw.events`, each `event_id` once: one statement, whose cost does not grow
    with all that is stored.

    What is stored already is looked for among the events of the hours before they were received (`REMEMBERED`), and,
    for rows that are older than that, among events of the same type and `occurred_at`. An event_id that comes again
    later and with another time is stored again; models count it once.

    Args:
        frame: all columns of `EVENT_COLUMNS` and no other, in their types, without nulls; each event_id once.
        loaded_at: what the warehouse's clock said a moment ago; left out, what it says then.

    Raises:
        WarehouseError: ClickHouse refused; nothing was loaded, or it was and the answer did not come.
    """
    read = frame.height
    frame = without_erased(warehouse, frame)
    refused = read - frame.height
    if frame.is_empty():
        return LoadResult(read, refused=refused)
    columns = ", ".join(EVENT_COLUMNS)
    newest = frame["received_at"].max()
    # by the clock of whoever received them, which may be shifted, and before which they may have waited for long
    since = (newest if isinstance(newest, datetime) else datetime.now(UTC)) - REMEMBERED
    # by the hash first, which is a quarter as long: what the engine would choose by itself costs ten times as much
    stored = """
        select event_id from raw.events
        prewhere event_hash in (select sipHash64(event_id) from given)
        where event_id in (select event_id from given) and occurred_at >= {since:DateTime('UTC')}
    """
    oldest = frame["occurred_at"].min()
    if isinstance(oldest, datetime) and oldest < since:
        stored += """
            union all
            select event_id from raw.events
            where (type, occurred_at) in (
                    select type, occurred_at from given where occurred_at < {since:DateTime('UTC')}
                )
                and event_id in (select event_id from given)
        """
    moment, at = "now64(3)", {}
    if loaded_at is not None:
        moment = "{at:DateTime64(3, 'UTC')}"
        at = {"at": f"{loaded_at:%Y-%m-%d %H:%M:%S}.{loaded_at.microsecond // 1000:03d}"}
    try:
        loaded = warehouse.insert_select(
            f"""
            insert into raw.events ({columns}, run_id, loaded_at)
            select {columns}, {{run_id:String}}, {moment} from given where event_id not in ({stored})
            """,  # noqa: S608 - names of columns are this module's
            {"run_id": run_id, "since": since.strftime("%Y-%m-%d %H:%M:%S"), **at},
            external={"given": frame},
            # a bloom filter tested for many ids passes every granule and costs more than it saves
            settings={
                "use_skip_indexes": "1" if frame.height <= _WORTH_A_BLOOM_FILTER else "0",
                "max_partitions_per_insert_block": "1000",
            },
        )
    except WarehouseUnavailable:
        raise
    except WarehouseError as error:
        if error.code not in _ROW_ERRORS:
            raise
        # a row is at fault: it goes to quarantine, the others go on
        return load_events(warehouse, frame, run_id=run_id) + LoadResult(refused, refused=refused)
    return LoadResult(read, loaded, frame.height - loaded, refused=refused)


def load_crm_records(
    warehouse: Warehouse, frame: pl.DataFrame, *, run_id: str = "", by_content: bool = False
) -> LoadResult:
    """Load versions of CRM objects, each (source, object, external_id, updated_at) once.

    Args:
        warehouse: where to. frame: columns of `RECORD_COLUMNS`, of which `is_deleted` and `properties` may
        be left out; and `file`,
            `line` as in `load_events`.
        run_id: who loads.
        by_content: for sources that do not say when a record changed: a record that equals the newest stored
            version is no new version, whatever its `updated_at`.

    Raises:
        ValueError: the frame has other columns, or lacks a required one.
        WarehouseError: ClickHouse refused; batches before that are loaded.
    """
    return _load(warehouse, frame, _RECORDS, run_id, "", by_content=by_content)


def compared_records(warehouse: Warehouse, frame: pl.DataFrame, *, run_id: str) -> pl.DataFrame:
    """How records stand to what is stored of them, apart from what the run itself has stored before.

    Args:
        frame: columns of `RECORD_COLUMNS`, each (source, object, external_id) once.
        run_id: the run that is about to load them; one that was broken off and goes on gets the same answer again.

    Returns:
        The frame with `standing`, which is `new`, `changed` or `unchanged` (as the newest stored version, or this very
        version is stored), and `is_stored`, whether this run has stored it already.

    Raises:
        WarehouseError: ClickHouse refused.
    """
    if frame.is_empty():
        return frame.with_columns(
            pl.lit(None, pl.String).alias("standing"), pl.lit(None, pl.Boolean).alias("is_stored")
        )
    identity = list(_RECORDS.identity)
    names = ", ".join(identity)
    stored = warehouse.frame(
        f"""
        select
            {names}, groupArray(crm_records.updated_at) as versions,
            countIf(run_id = {{run:String}}) > 0 as is_stored, countIf(run_id != {{run:String}}) > 0 as is_known
        from raw.crm_records as crm_records where ({names}) in (select {names} from keys)
        group by {names}
        """,  # noqa: S608
        {"run": run_id},
        external={"keys": frame.select(identity)},
    ).with_columns(
        pl.col(identity).cast(pl.String),
        pl.col("versions").cast(pl.List(UTC_MS)),
        pl.col("is_stored", "is_known").cast(pl.Boolean),
    )
    joined = frame.join(stored, on=identity, how="left", maintain_order="left").with_columns(
        pl.col("is_stored", "is_known").fill_null(False),
        pl.col("versions").list.contains(pl.col("updated_at")).fill_null(False).alias("is_there"),
    )
    # contents are dear to compare: only where nothing else tells
    open_ = joined.filter("is_known", ~pl.col("is_stored"), ~pl.col("is_there"))
    differing = _without_unchanged(warehouse, open_.select(frame.columns), _RECORDS).select(identity)
    joined = joined.join(
        differing.with_columns(pl.lit(True).alias("differs")), on=identity, how="left", maintain_order="left"
    )
    standing = (
        pl.when(~pl.col("is_known"))
        .then(pl.lit("new"))
        .when(pl.col("is_stored") | pl.col("differs").fill_null(False))
        .then(pl.lit("changed"))
        .otherwise(pl.lit("unchanged"))
    )
    return joined.select(*frame.columns, standing.alias("standing"), "is_stored")


def load_consents(
    warehouse: Warehouse, frame: pl.DataFrame, *, run_id: str = "", kind: str = "consent"
) -> LoadResult:
    """Load consent changes into `raw.consents`, each `consent_id` once; columns of `CONSENT_COLUMNS`.

    Beside who agreed to what stands what proves it: `basis`, version and SHA-256 of the text (`raw.consent_texts` has
    its words), address and program of the person, page, times of a double opt-in's request and confirmation, and who
    recorded it. What is not known is left out.

    Other arguments as in `load_events`.

    Raises:
        ValueError: the frame has other columns, or lacks a required one.
        WarehouseError: ClickHouse refused; batches before that are loaded.
    """
    return _load(warehouse, frame, _CONSENTS, run_id, kind)


def load_consent_texts(warehouse: Warehouse, texts: pl.DataFrame, now: datetime) -> int:
    """Keep the words of texts that are not kept yet; returns how many those were.

    Two processes at the same moment may both keep one, which does no harm.

    Args:
        warehouse: where to.
        texts: purpose, channel, text_version, text_digest (SHA-256 of the words, hexadecimal), content.
        now: when they are kept.

    Raises:
        WarehouseError: it does not answer, or its raw tables have not been made.
    """
    key = ["purpose", "channel", "text_version", "text_digest"]
    wanted = texts.unique(key, maintain_order=True)
    if wanted.is_empty():
        return 0
    stored = warehouse.frame(
        """
        select distinct purpose::String as purpose, channel::String as channel, text_version, text_digest
        from raw.consent_texts where text_digest in (select text_digest from given)
        """,
        external={"given": wanted.select("text_digest").unique()},
    ).select(pl.col(key).cast(pl.String))
    missing = wanted.join(stored, on=key, how="anti", maintain_order="left")
    if missing.height:
        columns = missing.select("text_digest", "text_version", "purpose", "channel", "content")
        warehouse.insert("raw.consent_texts", columns.with_columns(pl.lit(now, UTC_MS).alias("recorded_at")))
    return missing.height


def load_products(
    warehouse: Warehouse, frame: pl.DataFrame, *, run_id: str = "", by_content: bool = False
) -> LoadResult:
    """Load versions of products into `raw.products`, each (source, product_id, updated_at) once.

    Columns of `PRODUCT_COLUMNS`; `by_content` as in `load_crm_records`.

    Raises:
        ValueError: the frame has other columns, or lacks a required one.
        WarehouseError: ClickHouse refused; batches before that are loaded.
    """
    return _load(warehouse, frame, _PRODUCTS, run_id, "product", by_content=by_content)


def quarantine(
    warehouse: Warehouse,
    rows: pl.DataFrame,
    *,
    source: str,
    object: str,  # noqa: A002
    run_id: str = "",
) -> int:
    """Add rows that could not be loaded to `raw.quarantined_rows`; returns how many.

    Args:
        warehouse: where to.
        rows: columns `file`, `line` (counted from 1, 0 if unknown), `reason`, `content`.
        source: the source's name.
        object: what the rows should have become: contact, order, event ...
        run_id: who loads.
    """
    frame = rows.select(
        pl.lit(source).alias("source"),
        pl.lit(object).alias("object"),
        pl.col("file").cast(pl.String),
        pl.col("line").cast(pl.UInt64),
        pl.col("reason").cast(pl.String).str.slice(0, 500),
        pl.col("content").cast(pl.String).str.slice(0, CONTENT_CHARACTERS),
        pl.lit(run_id).alias("run_id"),
    )
    for batch in frame.iter_slices(BATCH_ROWS):
        is_erased = mentions_erased(warehouse, batch["content"].to_list())
        if any(is_erased):
            batch = batch.with_columns(
                pl.when(pl.Series(is_erased)).then(pl.lit("")).otherwise("content").alias("content")
            )
        warehouse.insert("raw.quarantined_rows", batch)
    return frame.height


def clear_quarantine(warehouse: Warehouse, *, source: str, object: str, file: str) -> None:  # noqa: A002
    """Forget the quarantined rows of a file that is about to be loaded again."""
    parameters = {"source": source, "object": object, "file": file}
    where = "source = {source:String} and object = {object:String} and file = {file:String}"
    # a delete is a mutation, dear where there is nothing to delete
    if warehouse.value(f"select count() from raw.quarantined_rows where {where}", parameters):  # noqa: S608
        warehouse.execute(f"delete from raw.quarantined_rows where {where}", parameters)  # noqa: S608


def _load(
    warehouse: Warehouse,
    frame: pl.DataFrame,
    raw: _Raw,
    run_id: str,
    kind: str,
    *,
    by_content: bool = False,
) -> LoadResult:
    read = frame.height
    rows = _prepared(frame, raw)
    if raw is not _PRODUCTS:
        rows = without_erased(warehouse, rows)
    refused = read - rows.height
    rows, quarantined = _without_bad(warehouse, rows, raw, run_id, kind)
    valid = rows.height
    rows = rows.unique(raw.key, keep="first", maintain_order=True)
    loaded = 0
    for part in rows.iter_slices(CHECK_ROWS):
        fresh = _without_stored(warehouse, part, raw)
        if by_content:
            fresh = _without_unchanged(warehouse, fresh, raw)
        for batch in _batches(fresh, raw):
            bad = _insert(warehouse, batch, raw, run_id, kind)
            quarantined += bad
            valid -= bad
            loaded += batch.height - bad
    return LoadResult(read, loaded, valid - loaded, quarantined, refused)


def _prepared(frame: pl.DataFrame, raw: _Raw) -> pl.DataFrame:
    """The frame with all columns of the table in their types, and `file` and `line`."""
    allowed = {**raw.columns, "file": pl.String(), "line": pl.UInt64()}
    if strange := [name for name in frame.columns if name not in allowed]:
        raise ValueError(f"{raw.table} has no column {', '.join(strange)}; it has {', '.join(raw.columns)}")
    if missing := [name for name in raw.required if name not in frame.columns]:
        raise ValueError(f"rows for {raw.table} lack {', '.join(missing)}")
    empty: dict[str, pl.Expr] = {"properties": pl.lit("{}"), "is_deleted": pl.lit(False), **raw.defaults}
    columns: list[pl.Expr] = []
    for name, dtype in allowed.items():
        given = pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype)
        if name in raw.required:
            columns.append(given.alias(name))
            continue
        default = empty.get(name, pl.lit(0 if name == "line" else "")).cast(dtype)
        columns.append(given.fill_null(default).alias(name))
    return frame.select(columns)


def _without_bad(
    warehouse: Warehouse, rows: pl.DataFrame, raw: _Raw, run_id: str, kind: str
) -> tuple[pl.DataFrame, int]:
    reason = pl.lit(None, pl.String)
    for name in reversed(raw.required):
        lacks = pl.col(name).is_null()
        if raw.columns[name] == pl.String:
            lacks = lacks | (pl.col(name) == "")
        reason = pl.when(lacks).then(pl.lit(f"{name} is missing")).otherwise(reason)
    for name, dtype in reversed(raw.columns.items()):
        if dtype == UTC_MS:
            beyond = ~pl.col(name).is_between(_EARLIEST, _LATEST)
            reason = pl.when(beyond).then(pl.lit(f"{name} lies outside 1900 to 2299")).otherwise(reason)
    judged = rows.with_columns(reason.alias("reason"))
    bad = judged.filter(pl.col("reason").is_not_null())
    if bad.is_empty():
        return rows, 0
    _quarantine_rows(warehouse, bad, raw, run_id, kind)
    return judged.filter(pl.col("reason").is_null()).drop("reason"), bad.height


def _quarantine_rows(warehouse: Warehouse, bad: pl.DataFrame, raw: _Raw, run_id: str, kind: str) -> None:
    rows = bad.select(
        pl.col("source").fill_null(""),
        pl.col("object").fill_null("") if "object" in raw.columns else pl.lit(kind).alias("object"),
        "file",
        "line",
        "reason",
        pl.struct(list(raw.columns)).struct.json_encode().alias("content"),
    )
    for (source, name), part in rows.partition_by(["source", "object"], as_dict=True).items():
        quarantine(warehouse, part, source=str(source), object=str(name), run_id=run_id)


def _without_stored(warehouse: Warehouse, rows: pl.DataFrame, raw: _Raw) -> pl.DataFrame:
    """Rows whose key the table does not hold."""
    if rows.is_empty():
        return rows
    key = ", ".join(raw.key)
    # names of tables and columns come from this module, keys travel as data
    stored = warehouse.frame(
        f"select {key} from {raw.table} where ({key}) in (select {key} from keys)",  # noqa: S608
        external={"keys": rows.select(raw.key)},
        # a bloom filter tested for thousands of keys passes every granule and costs more than it saves
        settings={"use_skip_indexes": "1" if raw.skip_index and rows.height <= 1_000 else "0"},
    )
    if stored.is_empty():
        return rows
    stored = stored.select(pl.col(name).cast(raw.columns[name]) for name in raw.key)
    return rows.join(stored, on=list(raw.key), how="anti", maintain_order="left")


def _without_unchanged(warehouse: Warehouse, rows: pl.DataFrame, raw: _Raw) -> pl.DataFrame:
    """Rows that differ from the newest stored version of the same thing.

    ClickHouse itself brings both sides into one form, so that the order of JSON keys or nulls make no
    difference.
    """
    if rows.is_empty():
        return rows
    identity = ", ".join(raw.identity)
    stored = ", ".join("toString(properties)" if name == "properties" else name for name in raw.content)
    given = ", ".join(
        "toString(accurateCastOrNull(properties, 'JSON'))"
        if name == "properties"
        else "toDecimal64(price, 2)"
        if name == "price"
        else name
        for name in raw.content
    )
    fresh = rows.select(*raw.identity, *(name for name in raw.content)).with_columns(
        pl.col(name).cast(pl.String) for name in raw.content if raw.columns[name] == pl.Decimal(18, 2)
    )
    unchanged = warehouse.frame(
        f"""
        select {", ".join(f"given.{name}" for name in raw.identity)}
        from (select {identity}, tuple({given}) as content from keys) as given
        inner join (
            select {identity}, argMax(tuple({stored}), tuple(updated_at, loaded_at)) as content
            from {raw.table} where ({identity}) in (select {identity} from keys)
            group by {identity}
        ) as newest using ({identity})
        where given.content = newest.content
        """,  # noqa: S608
        external={"keys": fresh},
        settings=dict(INSERT_SETTINGS),
    )
    if unchanged.is_empty():
        return rows
    unchanged = unchanged.rename(dict(zip(unchanged.columns, raw.identity, strict=True)))
    return rows.join(unchanged.unique(), on=list(raw.identity), how="anti", maintain_order="left")


def _batches(rows: pl.DataFrame, raw: _Raw) -> Iterator[pl.DataFrame]:
    """Rows in the table's order of time, cut by number, size and months."""
    if rows.is_empty():
        return
    rows = rows.sort(raw.order)
    size = max(1_000, min(BATCH_ROWS, int(BATCH_BYTES / max(1.0, rows.estimated_size() / rows.height))))
    for part in _by_months(rows, raw.month) if raw.month else (rows,):
        yield from part.iter_slices(size)


def _by_months(rows: pl.DataFrame, column: str) -> Iterator[pl.DataFrame]:
    """Sorted rows in parts of at most `_MONTHS_A_BATCH` different months, each a partition of the table."""
    month = rows[column].dt.truncate("1mo").rank("dense")
    part = (month - 1) // _MONTHS_A_BATCH
    for value in part.unique(maintain_order=True):
        yield rows.filter(part == value)


def _insert(warehouse: Warehouse, batch: pl.DataFrame, raw: _Raw, run_id: str, kind: str) -> int:
    """Append a batch; rows that ClickHouse cannot read are quarantined. Returns how many those were."""
    try:
        _append(warehouse, batch, raw, run_id)
        return 0
    except WarehouseUnavailable:
        raise
    except WarehouseError as error:
        if error.code not in _ROW_ERRORS:
            raise
        bad = _unreadable(warehouse, batch)
        if bad.is_empty():
            raise
    _quarantine_rows(warehouse, bad.with_columns(reason=pl.lit(_UNREADABLE)), raw, run_id, kind)
    rest = batch.join(bad.select(raw.key), on=list(raw.key), how="anti", maintain_order="left")
    # nothing promises that the refused insert left nothing behind
    _append(warehouse, _without_stored(warehouse, rest, raw), raw, run_id)
    return bad.height


def _append(warehouse: Warehouse, rows: pl.DataFrame, raw: _Raw, run_id: str) -> None:
    warehouse.insert(raw.table, rows.select(*raw.columns, pl.lit(run_id).alias("run_id")))


def _unreadable(warehouse: Warehouse, batch: pl.DataFrame) -> pl.DataFrame:
    """Rows whose properties ClickHouse's JSON type refuses."""
    numbered = batch.with_row_index("row").with_columns(pl.col("row").cast(pl.UInt64))
    rows = warehouse.frame(
        "select row from given where isNull(accurateCastOrNull(properties, 'JSON'))",
        external={"given": numbered.select("row", "properties")},
        settings=dict(INSERT_SETTINGS),
    )
    return numbered.join(rows.select(pl.col("row").cast(pl.UInt64)), on="row", how="semi").drop("row")
