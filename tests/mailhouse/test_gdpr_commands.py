"""`mailhouse gdpr` as a data-protection officer runs it: what it says, what it leaves, how it ends."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from empty_raw import empty_raw

from crm.connectors import connect
from crm.pulling import load, load_ids
from crm.settings import CrmSettings
from mailhouse.cli import main
from mailhouse.console import console
from privacy.erasing import Place, unfinished
from warehouse.client import Warehouse
from warehouse.loads import load_consents, load_crm_records, load_events
from warehouse.settings import MailhouseSettings

sys.path.append(str(Path(__file__).parent.parent / "crm"))

pytestmark = pytest.mark.slow

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
UTC_MS = pl.Datetime("ms", "UTC")
Command = Callable[..., tuple[int, str]]


class World:
    """A warehouse of some people, and a HubSpot that has some of them."""

    def __init__(self, warehouse: Warehouse, home: Path, hubspot: Any) -> None:
        self.warehouse, self.home, self.hubspot = warehouse, home, hubspot

    def record(self, source: str, external_id: str, at: datetime = AT, **properties: str) -> None:
        """A version of somebody's record."""
        row = {
            "source": source, "object": "contact", "external_id": external_id, "properties": json.dumps(properties),
        }  # fmt: skip
        load_crm_records(self.warehouse, pl.DataFrame([row]).with_columns(updated_at=pl.lit(at).cast(UTC_MS)))

    def contact(self, number: int, **properties: str) -> None:
        """Somebody in HubSpot, loaded."""
        names = {"first_name": "firstname", "last_name": "lastname"}
        self.hubspot.put(
            "contacts",
            number,
            AT,
            **{names.get(name, name): value for name, value in properties.items()},
        )
        self.record("hubspot", str(number), **properties)

    def count(self, where: str, table: str = "raw.crm_records") -> int:
        return int(self.warehouse.value(f"select count() from {table} where {where}"))


@pytest.fixture(scope="module")
def world(warehouse_server: MailhouseSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from hubspot_fake import FakeHubSpot, serve

    home = tmp_path_factory.mktemp("home")
    settings = warehouse_server.model_copy(update={"home": home})
    with Warehouse.connect(settings, comment="test") as warehouse, serve(FakeHubSpot(version="v3")) as fake:
        for database in ("intermediate", "marts"):
            warehouse.execute(f"drop database if exists {database}")
        empty_raw(warehouse)
        yield World(warehouse, home, fake)
        empty_raw(warehouse)


@pytest.fixture
def gdpr(
    world: World,
    warehouse_server: MailhouseSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    from hubspot_fake import TOKEN

    for name, value in {
        "HOME": world.home, "CONTENT_DIR": world.home / "content", "WAREHOUSE_URL": warehouse_server.warehouse.url,
        "HUBSPOT_TOKEN": TOKEN, "HUBSPOT_BASE_URL": world.hubspot.url, "HUBSPOT_API_VERSION": "v3",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"MAILHOUSE_{name}", str(value))
    monkeypatch.setattr(console, "width", 200)
    # there are no other processes that load
    monkeypatch.setattr(Place.__init__, "__defaults__", (*Place.__init__.__defaults__[:-1], 0.0))  # pyright: ignore

    def run(*args: str, answer: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mailhouse", "gdpr", *args])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return run


def test_an_erasure_in_crms_goes_on_when_they_answer(world: World, gdpr: Command) -> None:
    hub = world.hubspot
    world.contact(41, email="erik@people.example", first_name="Erik")
    world.contact(42, email="olga@people.example", first_name="Olga")
    world.record("shop", "erik-of-the-shop", email="erik@people.example")
    hub.put("contacts", 43, AT, email="new@people.example")
    code, said = gdpr("erase", "--email", "erik@people.example", "--in-crms", "--dry-run")
    assert code == 0 and "1 crm: hubspot" in said and "Nothing was changed." in said

    # HubSpot is away: here all is erased, there it is not, and that is no note but an error
    hub.before = lambda path: hub.failures.append((401, {}, b"{}")) if "gdpr" in path else None
    code, said = gdpr("erase", "--email", "erik@people.example", "--in-crms", "--yes", "--reason", "T-1")
    assert code == 2 and "erased here, and not yet in every CRM" in said and "--resume" in said
    assert world.count("external_id in ('41', 'erik-of-the-shop')") == 0
    assert 41 in hub.records["contacts"] and len(unfinished(world.home)) == 1
    # somebody may also do without; here it goes on
    hub.before = lambda path: None
    code, said = gdpr("erase", "--resume")
    assert code == 0 and "Nothing is left here that names the person" in said
    assert "To do: Delete erik-of-the-shop in shop" in said and "Delete 41" not in said
    assert set(hub.records["contacts"]) == {42, 43} and not unfinished(world.home)
    assert gdpr("erase", "--resume") == (0, "No erasure was broken off.")

    # neither a version nor a tombstone of the record comes back, whoever tells of it
    settings = CrmSettings.load()
    hub.put("contacts", 41, AT, email="erik@people.example")
    hub.archive("contacts", 41, AT)
    (crm,) = connect(settings)
    with crm:
        told = load(world.warehouse, crm, "contact", settings=settings)
        assert (told.loaded, told.refused, told.quarantined) == (1, 1, 0)
        hub.erase("contacts", 41)
        told = load_ids(world.warehouse, crm, "contact", ["41"], settings=settings)
        assert (told.loaded, told.refused, told.quarantined) == (0, 1, 0)
    assert world.count("external_id = '41'") == 0
    assert world.count("true", "raw.quarantined_rows") == 0
    _, log = gdpr("log", "--email", "erik@people.example", "--json")
    assert (
        log.count('"verb": "erase"') == 2
        and '"crm: hubspot": 1' in log
        and "erik" not in log.replace("T-1", "")
    )


def test_what_a_crm_will_not_delete_is_left_to_do(world: World, gdpr: Command) -> None:
    hub = world.hubspot
    world.contact(51, email="moira@people.example")
    hub.put("contacts", 52, AT, email="other@people.example")
    hub.merge("contacts", 52, 51, AT)
    code, said = gdpr("erase", "--email", "moira@people.example", "--in-crms", answer="n\n")
    assert code == 1 and world.count("external_id = '51'") == 1
    code, said = gdpr("erase", "--email", "moira@people.example", "--in-crms", answer="y\n")
    assert code == 0 and "To do: Delete 51 in hubspot" in said and "it was merged into 52" in said
    assert 52 in hub.records["contacts"]
