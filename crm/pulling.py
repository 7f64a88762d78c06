"""Records of any CRM into `raw.crm_records`, from where the last load stopped.

How far a CRM has been read is a row of `raw.crm_cursors`, written once the rows before it are stored. A process that
dies in between repeats that batch, which loads nothing twice. Memory is that of a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
import polars as pl

from crm.base import PLURALS, Connector, Kind, Pulled, require, stamp
from crm.connectors import source_name
from crm.locks import one_at_a_time
from crm.news import named
from crm.settings import CrmSettings
from warehouse.client import Warehouse
from warehouse.loads import LoadResult, clear_quarantine, load_crm_records, quarantine

logger = logging.getLogger(__name__)

_BEGUN: Final = ""
"""A cursor that says: nothing is known to be stored, and cursors are kept."""
_LOOKED_UP: Final = 5_000  # ids; a multiple of what any call carries
_TOLD_BEFORE: Final = timedelta(hours=1)
"""How far back webhooks are believed the first time."""
_TOLD_LATE: Final = timedelta(minutes=1)
"""Events that were stored so long before those that have been seen are looked at again: some are stored later."""
_TIME: Final = pl.Datetime("us", "UTC")


def load(
    warehouse: Warehouse,
    connector: Connector,
    kind: Kind,
    *,
    settings: CrmSettings,
    run_id: str = "",
    is_full: bool = False,
    on_progress: Callable[[int], None] | None = None,
    on_missing: Callable[[int, int], None] | None = None,
) -> LoadResult:
    """Load what changed in a CRM since the last load, all records the first time; one process at a time.

    Records that webhooks named meanwhile and that did not come, since search learns of changes late, are looked up.

    Args:
        warehouse: where to.
        connector: the CRM.
        kind: what to read.
        settings: for the home folder.
        run_id: who loads.
        is_full: read everything again, which stores nothing twice, and look up the records that did not come: a CRM
            need not tell of those it erased. If that is broken off, later loads read on, and look nothing up.
        on_progress: told how many records have been read.
        on_missing: told of each part of the records that did not come, how many they are and how many are gone.

    Raises:
        CrmNotSupportedError: the CRM has no such records.
        CrmError: the CRM refuses or stays silent; what was read before that is loaded, and a later load goes on there.
        WarehouseError: ClickHouse refused.
    """
    require(connector, pull=kind)
    place = f"{connector.name}/{PLURALS[kind]}"
    total = LoadResult()
    with one_at_a_time(settings.home, source_name(connector.name, kind)):
        begun_at: datetime = warehouse.value("select now64(3, 'UTC')")
        cursors = _Cursors(warehouse, connector, kind)
        since = cursors.current
        came: list[pl.Series] = []
        if is_full:
            cursors.store(_BEGUN)
            since = _BEGUN
        if since is None:
            clear_quarantine(warehouse, source=connector.name, object=kind, file=place)
            since = cursors.begin()
        try:
            for pulled in connector.pull(kind, since or None):
                total += _store(warehouse, connector.name, kind, pulled, place, run_id)
                if is_full:
                    came.append(_live_ids(pulled))
                cursors.store(pulled.cursor)
                if on_progress is not None:
                    on_progress(total.read)
            if is_full and connector.capabilities.looks_up:
                for ids in _missing(warehouse, connector.name, kind, came):
                    found = connector.look_up(kind, ids)
                    total += _store(warehouse, connector.name, kind, found, place, run_id, is_looked_up=True)
                    if on_missing is not None:
                        on_missing(len(ids), len(set(ids) - set(_live_ids(found))))
            told = Told(warehouse, connector, kind)
            for found in told.records():
                total += _store(warehouse, connector.name, kind, found, place, run_id, is_looked_up=True)
            told.finish()
        finally:
            if total.quarantined:
                _forget_repeated(warehouse, connector.name, kind, place, begun_at)
    return total


def load_ids(
    warehouse: Warehouse,
    connector: Connector,
    kind: Kind,
    ids: Sequence[str],
    *,
    settings: CrmSettings,
    run_id: str = "",
) -> LoadResult:
    """Load single records: what became of them, without asking what else changed.

    Deleted ones are stored once, however often they are named. Other arguments and errors as in `load`.
    """
    require(connector, pull=kind)
    place = f"{connector.name}/{PLURALS[kind]}"
    with one_at_a_time(settings.home, source_name(connector.name, kind)):
        pulled = connector.look_up(kind, ids)
        return _store(warehouse, connector.name, kind, pulled, place, run_id, is_looked_up=True)


def stored_cursor(warehouse: Warehouse, source: str, kind: str) -> tuple[str, datetime] | None:
    """How far a CRM has been read and when that was stored; None if it never was. '' if no batch is complete yet."""
    found = warehouse.frame(
        """
        select argMax(c.cursor, c.stored_at) as cursor, max(c.stored_at) as stored_at, count() as rows
        from raw.crm_cursors as c
        where source = {source:String} and object = {object:String}
        """,
        {"source": source, "object": kind},
    )
    return (found["cursor"][0], found["stored_at"][0]) if found["rows"][0] else None


class Told:
    """What webhooks named since the last load and is not stored as it is now.

    How far that has been looked at is a row of `raw.crm_cursors`, too, so that one CRM waits for no other.
    """

    def __init__(self, warehouse: Warehouse, connector: Connector, kind: Kind) -> None:
        self._warehouse, self._connector = warehouse, connector
        self._kind: Kind = kind
        self._through: datetime | None = None

    def records(self) -> Iterator[Pulled]:
        """What became of them: nothing where the CRM has no webhooks; their cursors must not be stored.

        Raises:
            CrmError: the CRM refuses or stays silent.
        """
        able = self._connector.capabilities
        if not (able.has_webhooks and able.looks_up):
            return
        stored = stored_cursor(self._warehouse, self._connector.name, f"{self._kind}.webhooks")
        now: datetime = self._warehouse.value("select now64(3, 'UTC')")
        since = datetime.fromisoformat(stored[0]) - _TOLD_LATE if stored else now - _TOLD_BEFORE
        found = named(
            self._warehouse,
            self._connector.name,
            self._kind,
            since,
            has_whole_seconds=able.has_whole_seconds,
        )
        merged = self._connector.merged(found.merges)
        if merged.num_rows:
            yield Pulled(merged, "")
        for part in range(0, len(found.ids), _LOOKED_UP):
            yield self._connector.look_up(self._kind, found.ids[part : part + _LOOKED_UP])
        if found.through > since and (not stored or found.through > datetime.fromisoformat(stored[0])):
            self._through = found.through

    def finish(self) -> None:
        """Remember that all of them are stored."""
        if self._through is not None:
            cursors = _Cursors(self._warehouse, self._connector, self._kind, f"{self._kind}.webhooks")
            cursors.store(self._through.isoformat())


class _Cursors:
    """The row of `raw.crm_cursors` of one CRM and kind."""

    def __init__(self, warehouse: Warehouse, connector: Connector, kind: Kind, place: str = "") -> None:
        self._warehouse, self._connector = warehouse, connector
        self._kind: Kind = kind
        self._place = place or kind
        found = stored_cursor(warehouse, connector.name, self._place)
        self.current = found[0] if found else None
        self._stored_at = found[1] if found else datetime(1970, 1, 1, tzinfo=UTC)

    def begin(self) -> str:
        """The first cursor: after what was loaded before cursors were kept, or at the very beginning."""
        cursor = _BEGUN
        newest = self._warehouse.frame(
            """
            select max(updated_at) as newest, count() as records from raw.crm_records
            where source = {source:String} and object = {object:String} and not is_deleted
            """,
            {"source": self._connector.name, "object": self._kind},
        )
        if newest["records"][0]:
            cursor = self._connector.resume_after(self._kind, newest["newest"][0]) or _BEGUN
        # before any row is: rows without a cursor would look like those of a load that came to its end
        self.store(cursor)
        return cursor

    def store(self, cursor: str) -> None:
        """Remember how far we came."""
        if cursor == self.current:
            return
        # later than the one before, whatever the clock does
        self._stored_at = max(datetime.now(UTC), self._stored_at + timedelta(microseconds=1))
        row = {
            "source": self._connector.name,
            "object": self._place,
            "cursor": cursor,
            "stored_at": self._stored_at,
        }
        self._warehouse.insert("raw.crm_cursors", pl.DataFrame([row], schema_overrides={"stored_at": _TIME}))
        self.current = cursor


def _store(
    warehouse: Warehouse,
    source: str,
    kind: Kind,
    pulled: Pulled,
    place: str,
    run_id: str,
    *,
    is_looked_up: bool = False,
) -> LoadResult:
    if pulled.bad:
        bad = pl.DataFrame(pulled.bad, schema={"reason": pl.String, "content": pl.String}, orient="row")
        bad = bad.with_columns(file=pl.lit(place), line=pl.lit(0, pl.UInt64))
        quarantine(warehouse, bad, source=source, object=kind, run_id=run_id)
    total = LoadResult(read=len(pulled.bad), quarantined=len(pulled.bad))
    frame = pl.from_arrow(pulled.rows)
    assert isinstance(frame, pl.DataFrame)
    if frame.is_empty():
        return total
    if pulled.is_by_content:
        named = frame.with_columns(source=pl.lit(source), object=pl.lit(kind), file=pl.lit(place))
        return total + load_crm_records(warehouse, named.drop("merged_into"), run_id=run_id, by_content=True)
    frame = frame.with_columns(source=pl.lit(source), object=pl.lit(kind), file=pl.lit(place))
    # merged ones come with every version of the record that is left, and deleted ones are looked up at any time:
    # by content they are stored once
    is_repeated = pl.col("is_deleted") if is_looked_up else pl.col("merged_into") != ""
    repeated = frame.filter(is_repeated)
    total += load_crm_records(warehouse, frame.filter(~is_repeated).drop("merged_into"), run_id=run_id)
    if not repeated.is_empty():
        total += load_crm_records(warehouse, _with_merged_into(repeated), run_id=run_id, by_content=True)
    return total


def _live_ids(pulled: Pulled) -> pl.Series:
    frame = pl.from_arrow(pulled.rows)
    assert isinstance(frame, pl.DataFrame)
    return frame.filter(~pl.col("is_deleted"))["external_id"]


def _missing(warehouse: Warehouse, source: str, kind: Kind, came: list[pl.Series]) -> Iterator[list[str]]:
    """Ids of records that are stored as live and did not come, some hundred at a time."""
    stored = warehouse.frame(
        """
        select external_id from raw.crm_records where source = {source:String} and object = {object:String}
        group by external_id having not argMax(is_deleted, tuple(updated_at, loaded_at))
        """,
        {"source": source, "object": kind},
    )
    seen = pl.concat(came) if came else pl.Series("external_id", [], pl.String)
    missing = stored.join(seen.to_frame("external_id"), on="external_id", how="anti")["external_id"].sort()
    for part in range(0, len(missing), _LOOKED_UP):
        yield missing[part : part + _LOOKED_UP].to_list()


def _with_merged_into(rows: pl.DataFrame) -> pl.DataFrame:
    texts = [
        orjson.dumps({**orjson.loads(properties or "{}"), "merged_into": winner}).decode()
        if winner
        else properties
        for properties, winner in rows.select("properties", "merged_into").iter_rows()
    ]
    return rows.drop("merged_into").with_columns(properties=pl.Series(texts, dtype=pl.String))


def _forget_repeated(warehouse: Warehouse, source: str, kind: Kind, place: str, begun_at: datetime) -> None:
    """Quarantined rows of earlier loads that this load found bad again; the others stay to be looked at."""
    parameters = {
        "source": source,
        "object": kind,
        "file": place,
        "begun_at": stamp(begun_at),
    }
    rows = """
        from raw.quarantined_rows
        where source = {source:String} and object = {object:String} and file = {file:String}
    """
    found = warehouse.frame(
        f"""
        select cityHash64(reason, content) as hash {rows}
        group by hash having min(loaded_at) < {{begun_at:DateTime64(3, 'UTC')}}
            and max(loaded_at) >= {{begun_at:DateTime64(3, 'UTC')}}
        """,
        parameters,
    )
    # a delete is a mutation, dear where there is nothing to delete
    if not found.is_empty():
        warehouse.execute(
            f"""
            delete {rows} and loaded_at < {{begun_at:DateTime64(3, 'UTC')}}
                and cityHash64(reason, content) in {{hashes:Array(UInt64)}}
            """,
            {**parameters, "hashes": found["hash"].to_list()},
        )
