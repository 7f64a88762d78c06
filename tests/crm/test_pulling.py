"""Any CRM is read to the end, once, and from where it was left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from crm.base import (
    PULLED,
    Capabilities,
    Connector,
    CrmNotSupportedError,
    CrmUnavailableError,
    Kind,
    Pulled,
    Usage,
)
from crm.connectors import CONNECTORS, connect, kinds
from crm.pulling import load, stored_cursor
from crm.settings import CrmSettings
from warehouse.client import Warehouse
from warehouse.errors import SettingsError
from warehouse.loads import LoadResult, load_crm_records

START = datetime(2026, 1, 1, tzinfo=UTC)


def row(number: int, *, at: int | None = None, merged_into: str = "", properties: str = "") -> dict[str, Any]:
    """A record that changed `at` seconds after the start."""
    return {
        "external_id": str(number),
        "updated_at": START + timedelta(seconds=number if at is None else at),
        "is_deleted": bool(merged_into),
        "merged_into": merged_into,
        "properties": properties
        or ("{}" if merged_into else json.dumps({"email": f"p{number}@example.com"})),
    }


class Ledger(Connector):
    """A CRM that is a list of batches; a cursor is how many of them were read."""

    name = "ledger"
    capabilities = Capabilities(kinds=frozenset({"contact"}))

    def __init__(self, batches: list[list[dict[str, Any]]], fails_after: int = 99) -> None:
        self.usage = Usage()
        self.batches, self.fails_after = batches, fails_after
        self.bad: tuple[tuple[str, str], ...] = ()
        self.asked: list[str | None] = []

    @classmethod
    def is_configured(cls, settings: CrmSettings) -> bool:
        return False

    @classmethod
    def from_settings(cls, settings: CrmSettings, **_: Any) -> Ledger:
        return cls([])

    def resume_after(self, kind: Kind, newest: datetime) -> str | None:
        return str(int((newest - START).total_seconds()))

    def pull(self, kind: Kind, since: str | None) -> Iterator[Pulled]:
        self.asked.append(since)
        for index, batch in enumerate(self.batches[int(since or 0) :], int(since or 0) + 1):
            if index > self.fails_after:
                raise CrmUnavailableError("The ledger is shut.")
            yield Pulled(pa.Table.from_pylist(batch, PULLED), str(index), self.bad)


@pytest.fixture
def settings(tmp_path: Path) -> CrmSettings:
    return CrmSettings(home=tmp_path)


def store(warehouse: Warehouse, rows: list[dict[str, Any]]) -> None:
    """Rows as they are stored before anything is said of a cursor."""
    frame = pl.from_arrow(pa.Table.from_pylist(rows, PULLED).drop_columns(["merged_into"]))
    assert isinstance(frame, pl.DataFrame)
    load_crm_records(warehouse, frame.with_columns(source=pl.lit("ledger"), object=pl.lit("contact")))


def stored(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    frame = warehouse.frame(
        "select external_id, is_deleted, toString(properties) p from raw.crm_records order by external_id, updated_at"
    )
    return [(number, deleted, json.loads(text)) for number, deleted, text in frame.rows()]


def test_a_load_goes_on_where_the_last_one_stopped(warehouse: Warehouse, settings: CrmSettings) -> None:
    ledger = Ledger([[row(1), row(2)], [row(3)], [row(4)]], fails_after=2)
    seen: list[int] = []
    with pytest.raises(CrmUnavailableError):
        load(warehouse, ledger, "contact", settings=settings, on_progress=seen.append)
    assert seen == [2, 3]
    found = stored_cursor(warehouse, "ledger", "contact")
    assert found is not None
    assert found[0] == "2"
    ledger.fails_after = 99
    assert load(warehouse, ledger, "contact", settings=settings) == LoadResult(1, 1)
    assert ledger.asked == [None, "2"]
    assert [number for number, _, _ in stored(warehouse)] == ["1", "2", "3", "4"]


def test_a_batch_whose_cursor_was_not_stored_is_loaded_once(
    warehouse: Warehouse, settings: CrmSettings
) -> None:
    ledger = Ledger([[row(1)], [row(2)]])
    load(warehouse, ledger, "contact", settings=settings)
    # as if the process had died between the rows and their cursor
    warehouse.execute("alter table raw.crm_cursors delete where cursor = '2' settings mutations_sync = 1")
    warehouse.insert(
        "raw.crm_cursors",
        warehouse.frame("select 'ledger' source, 'contact' object, '1' cursor, now64(6, 'UTC') stored_at"),
    )
    assert load(warehouse, ledger, "contact", settings=settings) == LoadResult(1, 0, 1)
    assert len(stored(warehouse)) == 2


def test_records_from_before_there_were_cursors_are_not_read_again(
    warehouse: Warehouse, settings: CrmSettings
) -> None:
    ledger = Ledger([[row(1)], [row(2)], [row(3)]])
    store(warehouse, [row(1), row(2)])
    assert load(warehouse, ledger, "contact", settings=settings) == LoadResult(1, 1)
    assert ledger.asked == ["2"]


def test_a_first_load_that_died_before_its_first_cursor_is_no_old_load(
    warehouse: Warehouse, settings: CrmSettings
) -> None:
    ledger = Ledger([[row(1)], [row(9)], [row(3)]], fails_after=0)
    with pytest.raises(CrmUnavailableError):
        load(warehouse, ledger, "contact", settings=settings)
    store(warehouse, [row(9)])
    ledger.fails_after = 99
    assert load(warehouse, ledger, "contact", settings=settings) == LoadResult(3, 2, 1)
    assert ledger.asked == [None, None]


def test_who_was_merged_is_told_in_the_properties_and_stored_once(
    warehouse: Warehouse, settings: CrmSettings
) -> None:
    ledger = Ledger([[row(1), row(2)], [row(2, at=9), row(1, at=9, merged_into="2")]])
    ledger.batches.append([row(2, at=20), row(1, at=20, merged_into="2")])
    assert load(warehouse, ledger, "contact", settings=settings) == LoadResult(6, 5, 1)
    assert stored(warehouse)[:2] == [
        ("1", False, {"email": "p1@example.com"}),
        ("1", True, {"merged_into": "2"}),
    ]


def test_bad_records_are_set_apart_and_not_twice(warehouse: Warehouse, settings: CrmSettings) -> None:
    ledger = Ledger([[row(1)]])
    ledger.bad = (("no time", '{"id": 7}'),)
    assert load(warehouse, ledger, "contact", settings=settings) == LoadResult(2, 1, 0, 1)
    ledger.batches.append([row(2, properties='{"a": 1, "a.b": [}')])
    assert load(warehouse, ledger, "contact", settings=settings) == LoadResult(2, 0, 0, 2)
    found = warehouse.frame("select source, object, file, reason from raw.quarantined_rows order by reason")
    assert [name[:3] for name in found.rows()] == [("ledger", "contact", "ledger/contacts")] * 2
    ledger.batches.append([])
    ledger.bad = ()
    assert load(warehouse, ledger, "contact", settings=settings) == LoadResult()
    assert warehouse.value("select count() from raw.quarantined_rows") == 2


def test_a_cursor_is_the_latest_whatever_the_clock_does(warehouse: Warehouse, settings: CrmSettings) -> None:
    load(warehouse, Ledger([[row(1)]]), "contact", settings=settings)
    warehouse.execute(
        "insert into raw.crm_cursors values ('ledger', 'contact', '1', now64(6, 'UTC') + interval 1 day)"
    )
    ledger = Ledger([[row(1)], [row(2)]])
    load(warehouse, ledger, "contact", settings=settings)
    found = stored_cursor(warehouse, "ledger", "contact")
    assert found is not None
    assert found[0] == "2"


def test_what_a_crm_has_not_is_an_error(warehouse: Warehouse, settings: CrmSettings) -> None:
    with pytest.raises(CrmNotSupportedError, match="ledger cannot read a deal"):
        load(warehouse, Ledger([]), "deal", settings=settings)


def test_every_connector_is_what_it_says() -> None:
    for name, connector in CONNECTORS.items():
        assert connector.name == name
        assert issubclass(connector, Connector)
        assert connector.capabilities.kinds
        assert not connector.is_configured(CrmSettings())
    assert connect(CrmSettings()) == []


def test_what_is_left_out_must_exist() -> None:
    left = kinds(
        CONNECTORS["hubspot"], CrmSettings.model_validate({"crm_skipped": "hubspot_tasks, hubspot_deals"})
    )
    assert left == ["contact", "company"]
    with pytest.raises(SettingsError, match="MAILHOUSE_CRM_SKIPPED names hubspot_leads"):
        kinds(CONNECTORS["hubspot"], CrmSettings.model_validate({"crm_skipped": "hubspot_leads"}))
