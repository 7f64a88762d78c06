"""`mailhouse gdpr` as a data-protection officer runs it: what it says, what it leaves, how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from command_line import mailhouse
from empty_raw import empty_raw

from crm.connectors import connect
from crm.pulling import load, load_ids
from crm.settings import CrmSettings
from mailhouse.console import console
from privacy.erasing import Place, unfinished
from warehouse.client import Warehouse
from warehouse.erasures import erased_people
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
        erased_people(self.warehouse, max_age=0)
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
        self.record("hubspot", str(number), AT, **properties)

    def count(self, where: str, table: str = "raw.crm_records") -> int:
        return int(self.warehouse.value(f"select count() from {table} where {where}"))


@pytest.fixture(scope="module")
def world(warehouse_server: MailhouseSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    from hubspot_fake import FakeHubSpot, serve

    home = tmp_path_factory.mktemp("home")
    settings = warehouse_server.model_copy(update={"home": home})
    with (
        Warehouse.connect(settings, comment="test") as warehouse,
        serve(FakeHubSpot(version="v3", clock=lambda: datetime.now(UTC))) as fake,
    ):
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

    def run(*args: str, answer: str = "", of: str = "gdpr") -> tuple[int, str]:
        return mailhouse(monkeypatch, capsys, of, *args, answer=answer)

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


def test_nobody_and_several_are_errors_that_say_what_to_do(world: World, gdpr: Command) -> None:
    world.record("shop", "tw-1", email="pia@people.example", phone="+44 20 7946 0111")
    world.record("shop", "tw-2", email="ray@people.example", phone="0044 20 79460111")
    before = world.count("true", "raw.audit_log")
    for words, reason in {
        ("export", "--email", "who@people.example"): "Nothing is held of anybody by that name",
        ("export",): "Nobody was named",
        ("restrict", "--record", "shop"): "is no record",
        ("erase", "--phone", "+442079460111", "--yes"): "2 records have that number: shop:tw-1, shop:tw-2",
        ("rectify", "--email", "pia@people.example", "--set", "frist_name=Pia"): "first_name",
        ("rectify", "--email", "pia@people.example", "--set", "Pia"): "is no correction",
        ("restrict", "--email", "pia@people.example", "--reason", "Pia@people.example asked"): "names nobody",
        (
            "readmit",
            "--email",
            "pia@people.example",
            "--reason",
            "signed up",
        ): "Nobody by that name was erased",
        ("readmit", "--email", "pia@people.example", "--reason", " "): "needs its reason",
    }.items():
        code, said = gdpr(*words)
        assert code == 2 and reason in said, (words, said)
    assert gdpr("rectify", "--email", "pia@people.example")[0] == 2
    assert world.count("true", "raw.audit_log") == before
    assert world.count("startsWith(external_id, 'tw-')") == 2
    code, said = gdpr("erase", "--record", "shop:tw-1", answer="\n")
    assert code == 1 and world.count("startsWith(external_id, 'tw-')") == 2
    code, said = gdpr("erase", "--record", "shop:tw-1", "--dry-run")
    assert code == 0 and "1 raw.crm_records" in said and "Nothing was changed." in said


def test_an_export_is_for_one_person_and_the_owner_of_the_files(world: World, gdpr: Command) -> None:
    world.record("shop", "xe-1", email="xenia@people.example", first_name="Xenia", phone="+44 20 7946 0222")
    consent = {
        "consent_id": "xe", "email": "xenia@people.example", "channel": "email", "purpose": "marketing",
        "is_granted": True, "basis": "opt_in",
    }  # fmt: skip
    moment = pl.lit(AT).cast(UTC_MS)
    load_consents(world.warehouse, pl.DataFrame([consent]).with_columns(occurred_at=moment))
    visit = {"event_id": "xe-1", "type": "page.viewed", "source": "web", "email": "Xenia@people.example"}
    load_events(world.warehouse, pl.DataFrame([visit]).with_columns(occurred_at=moment))
    folder = world.home / "exports"
    code, said = gdpr(
        "export", "--phone", "+442079460222", "-o", str(folder), "--actor", "dpo", "--reason", "T-7"
    )
    assert code == 0 and "3 rows of 3 stores:" in said
    html, read = sorted(folder.iterdir(), key=lambda path: path.suffix)
    assert str(html) in said and str(read) in said
    held = json.loads(read.read_text())
    assert [store["store"] for store in held["stores"]] == ["raw.consents", "raw.crm_records", "raw.events"]
    assert "Xenia" in html.read_text() and html.stat().st_mode & 0o077 == 0
    code, said = gdpr("log", "--record", "shop:xe-1")
    assert (
        code == 0 and "export done by dpo" in said and "3 rows: T-7" in said and "xenia" not in said.lower()
    )


def test_a_restriction_counts_at_once_and_is_lifted(world: World, gdpr: Command) -> None:
    world.record("shop", "re-1", email="rita@people.example")
    newest = (
        "select is_restricted, allows_transactional, actor from raw.restrictions where email = 'rita@people.example'"
        " order by recorded_at desc limit 1"
    )
    code, said = gdpr("restrict", "--email", "Rita@people.example", "--allow-transactional", "--actor", "dpo")
    assert code == 0 and "Restricted." in said
    assert world.warehouse.frame(newest).row(0) == (True, True, "dpo")
    code, said = gdpr("unrestrict", "--record", "shop:re-1", "--actor", "dpo")
    assert code == 0 and "lifted" in said
    assert world.warehouse.frame(newest).row(0) == (False, False, "dpo")
    _, said = gdpr("log", "--email", "rita@people.example")
    assert "restrict done by dpo" in said and "unrestrict done by dpo" in said


def test_a_correction_reaches_the_crm_and_is_not_outdone_by_it(world: World, gdpr: Command) -> None:
    from sync_world import identify, make_models

    hub, content = world.hubspot, world.home / "content"
    content.mkdir(exist_ok=True)
    rules = content / "crm.yaml"
    rules.write_text("fields: {first_name: newest}\npush: {hubspot: {fields: [first_name]}}\n")
    world.contact(61, email="rex@people.example", first_name="Rx")
    make_models(world.warehouse)
    try:
        identify(world.warehouse, "toInt64(cityHash64(external_id) % 1000000) + 1")
        assert gdpr("sync", of="crm")[0] == 0
        code, said = gdpr("rectify", "--record", "hubspot:61", "--set", "first_name=Rex", "--reason", "T-9")
        assert code == 0 and "Put right in hubspot:61" in said
        # the CRM changes something else of the record, and still has the old name
        hub.edit("contacts", 61, hub.now(), city="Graz")
        code, said = gdpr("sync", of="crm")
        assert code == 0 and "1 written" in said
        assert hub.records["contacts"][61].properties["firstname"] == "Rex"
        (contact,) = world.warehouse.frame(
            "select contact_id from intermediate.int_contacts__identified where identifier = '61'"
        ).row(0)
        code, said = gdpr("decisions", "--contact", str(contact), of="crm")
        assert (
            code == 0
            and "first_name = 'Rex', of hubspot 61" in said
            and "rectified: it was put right" in said
        )
        assert "lost: 'Rx'" in said
        # somebody there says something else
        hub.edit("contacts", 61, hub.now(), firstname="Roy")
        assert gdpr("sync", of="crm")[0] == 0
        assert hub.records["contacts"][61].properties["firstname"] == "Roy"
        _, said = gdpr("decisions", "--contact", str(contact), of="crm")
        assert "first_name = 'Roy'" in said
    finally:
        rules.unlink()
        for database in ("intermediate", "marts"):
            world.warehouse.execute(f"drop database if exists {database}")


def test_whoever_was_erased_may_be_let_in_again_and_the_log_shows_what_was_done(
    world: World, gdpr: Command
) -> None:
    world.record("shop", "le-1", email="lea@people.example")
    code, said = gdpr("erase", "--email", "lea@people.example", "--yes", "--actor", "dpo", "--reason", "T-3")
    assert code == 0 and "To do: Delete le-1 in shop, and with it what shop itself holds." in said
    world.record("shop", "le-1", email="lea@people.example")
    assert world.count("external_id = 'le-1'") == 0
    code, said = gdpr("readmit", "--email", "lea@people.example", "--reason", "signed up anew")
    assert code == 0 and "may be loaded again" in said
    world.record("shop", "le-1", email="lea@people.example")
    assert world.count("external_id = 'le-1'") == 1
    code, said = gdpr("log", "--verify", "--json", "--limit", "1000")
    assert code == 0 and "the chain is whole" in said
    assert '"verb": "readmit"' in said and '"outcome": "begun"' in said
    # and a log that was changed does not pass
    world.warehouse.execute(
        "alter table raw.audit_log update reason = 'T-4' where reason = 'T-3'",
        settings={"mutations_sync": "2"},
    )
    try:
        code, said = gdpr("log", "--verify")
        assert code == 2 and "not as it was written" in said
    finally:
        world.warehouse.execute(
            "alter table raw.audit_log update reason = 'T-3' where reason = 'T-4'",
            settings={"mutations_sync": "2"},
        )
    assert gdpr("log", "--verify")[0] == 0
