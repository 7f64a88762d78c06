"""HubSpot's records arrive completely, once, and from where we stopped; its moods are survived or explained."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hubspot_fake import TOKEN, FakeHubSpot, serve

from crm.base import CrmError, CrmUnavailableError
from crm.hubspot import HubSpot
from crm.pacing import Allowance
from crm.pulling import load, stored_cursor
from crm.settings import CrmSettings
from warehouse.buckets import LocalBuckets
from warehouse.client import Warehouse
from warehouse.errors import SettingsError
from warehouse.loads import LoadResult

START = datetime(2026, 1, 1, tzinfo=UTC)


class Setup:
    """A fake, a client of it, and how long the client would have waited."""

    def __init__(self, fake: FakeHubSpot, warehouse: Warehouse, home: Path) -> None:
        self.fake = fake
        self.warehouse = warehouse
        self.waits: list[float] = []
        self.settings = CrmSettings.model_validate(
            {
                "home": home,
                "hubspot_token": TOKEN,
                "hubspot_base_url": fake.url,
                "hubspot_overlap": 60,
                "hubspot_archived_pause": 0,
            }
        )

    def client(self, **changes: Any) -> HubSpot:
        return HubSpot(
            CrmSettings.model_validate({**self.settings.model_dump(), **changes}), sleep=self.waits.append
        )

    def load(self, kind: Any = "contact", **changes: Any) -> LoadResult:
        with self.client(**changes) as hubspot:
            return load(self.warehouse, hubspot, kind, settings=self.settings, run_id="run")

    def since(self) -> datetime:
        found = stored_cursor(self.warehouse, "hubspot", "contact")
        assert found is not None
        return datetime.fromtimestamp(json.loads(found[0])["since"] / 1000, UTC)

    def fill(
        self, count: int, *, at: datetime = START, step: timedelta = timedelta(seconds=1), first: int = 1
    ) -> None:
        for index in range(count):
            number = first + index
            self.fake.put(
                "contacts", number, at + step * index, email=f"p{number}@example.com", firstname="Pat"
            )


@pytest.fixture
def hub(warehouse: Warehouse, tmp_path: Path) -> Iterator[Setup]:
    with serve(FakeHubSpot()) as fake:
        yield Setup(fake, warehouse, tmp_path)


def rows(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    return warehouse.frame(
        "select external_id, updated_at, is_deleted from raw.crm_records order by external_id, updated_at"
    ).rows()


def test_contacts_arrive_under_our_names(hub: Setup) -> None:
    hub.fake.put(
        "contacts",
        7,
        START + timedelta(milliseconds=5),
        email="Ann@example.com",
        firstname="Ann",
        lastname="Ö",
        hs_language="en-gb",
        createdate="2025-12-01T00:00:00.000Z",
        hs_timezone="america_slash_port_hyphen_au_hyphen_prince",
        favourite_colour="red",
        city=None,
        phone="",
    )
    # the walk finds it, and then it is among the newest changes
    assert hub.load(hubspot_properties={"contacts": ["favourite_colour"]}) == LoadResult(2, 1, 1)
    row = hub.warehouse.frame(
        "select source, object, external_id, updated_at, is_deleted, toString(properties) p from raw.crm_records"
    ).row(0)
    assert row[:5] == ("hubspot", "contact", "7", START + timedelta(milliseconds=5), False)
    assert json.loads(row[5]) == {
        "email": "Ann@example.com",
        "first_name": "Ann",
        "last_name": "Ö",
        "locale": "en-gb",
        "timezone": "America/Port-au-Prince",
        "created_at": "2025-12-01T00:00:00.000Z",
        "favourite_colour": "red",
        "lastmodifieddate": "2026-01-01T00:00:00.005Z",
        "hs_object_id": "7",
    }


def test_companies_and_deals_and_the_old_paths(hub: Setup) -> None:
    hub.fake.version = "v3"
    hub.fake.put("companies", 1, START, name="Example Ltd")
    hub.fake.put("deals", 2, START, dealname="Lamps", amount="12.50")
    assert hub.load("company", hubspot_api_version="v3").loaded == 1
    assert hub.load("deal", hubspot_api_version="v3").loaded == 1
    found = hub.warehouse.frame("select object, external_id from raw.crm_records order by object").rows()
    assert found == [("company", "1"), ("deal", "2")]


def test_the_cursor_moves_and_the_overlap_is_read_again(hub: Setup) -> None:
    hub.fill(300)
    assert hub.load().loaded == 300
    newest = START + timedelta(seconds=299)
    assert hub.since() == newest
    hub.fake.requests.clear()
    hub.fake.put("contacts", 5, newest + timedelta(seconds=30), email="new@example.com")
    # a change that search did not know of at the time
    hub.fake.put("contacts", 999, newest - timedelta(seconds=59), email="late@example.com")
    result = hub.load()
    assert result.loaded == 2
    assert result.read == 61 + 2
    assert len(hub.fake.requests) == 2
    filters = hub.fake.requests[0][2]["filterGroups"][0]["filters"]
    since = int((newest - timedelta(seconds=60)).timestamp() * 1000)
    assert filters == [{"propertyName": "lastmodifieddate", "operator": "GTE", "value": str(since)}]
    assert len([row for row in rows(hub.warehouse) if row[0] == "5"]) == 2


def test_what_was_loaded_before_there_were_cursors_is_not_loaded_again(hub: Setup) -> None:
    hub.fill(1_000)
    hub.load()
    hub.warehouse.execute("truncate table raw.crm_cursors")
    hub.fake.requests.clear()
    hub.fake.put("contacts", 5, START + timedelta(hours=1), email="new@example.com")
    assert hub.load().loaded == 1
    # one search, one list of archived records
    assert len(hub.fake.requests) == 2


def test_when_clocks_agree_a_quiet_account_is_not_read_again(hub: Setup) -> None:
    now = datetime.now(UTC)
    hub.fake.clock = lambda: now
    hub.fill(300, at=now - timedelta(seconds=40), step=timedelta(0))
    hub.fake.put("contacts", 1000, now + timedelta(hours=2), email="from-the-future@example.com")
    hub.load()
    assert hub.since() == now.replace(microsecond=0)
    # nothing has changed for a while: only what is from the future comes again
    later = now + timedelta(seconds=25)
    hub.fake.clock = lambda: later
    hub.load()
    assert hub.since() == later.replace(microsecond=0)
    hub.fake.put("contacts", 1001, later, email="x@example.com")
    assert hub.load().read == 2
    hub.settings = hub.settings.model_copy(update={"hubspot_overlap": 20.0})
    hub.fake.clock = None
    assert hub.load().read == 2


def test_a_clock_that_is_wrong_is_not_believed(hub: Setup) -> None:
    hub.fake.clock = lambda: datetime.now(UTC) + timedelta(days=1)
    hub.fill(10)
    hub.load()
    assert hub.since() == START + timedelta(seconds=9)


def test_more_than_search_would_page_through(tmp_path: Path) -> None:
    fake = FakeHubSpot()
    records = 10_450

    def fill(start: datetime, step: timedelta) -> None:
        fake.requests.clear()
        for number in range(1, records + 1):
            fake.put("contacts", number, start + step * number, email=f"p{number}@example.com")

    def pull(since: str | None) -> tuple[int, str]:
        pulled = list(hubspot.pull("contact", since))
        ids = {number.as_py() for one in pulled for number in one.rows.column("external_id")}
        return len(ids), pulled[-1].cursor

    settings = CrmSettings.model_validate({"hubspot_token": TOKEN})
    with HubSpot(settings, transport=fake.transport()) as hubspot:
        fill(START, timedelta(seconds=30))
        found, cursor = pull(None)
        assert found == records
        # the newest, a walk, what changed meanwhile, archived ones
        assert len(fake.requests) == 1 + 53 + 1 + 1
        fill(START + timedelta(days=9), timedelta(milliseconds=3))
        found, cursor = pull(cursor)
        assert found == records
        assert len(fake.requests) <= 1.05 * records / 200 + 1


@pytest.mark.parametrize("count", [199, 200, 201, 700])
def test_many_changed_in_the_same_millisecond(hub: Setup, count: int) -> None:
    hub.fill(50, at=START - timedelta(hours=1))
    hub.load()
    hub.fill(count, step=timedelta(0), first=1000)
    hub.fill(250, at=START + timedelta(milliseconds=1), step=timedelta(milliseconds=1), first=5000)
    assert hub.load().loaded == count + 250
    assert len({row[0] for row in rows(hub.warehouse)}) == 50 + count + 250


def test_records_that_change_while_we_read_are_not_lost(hub: Setup) -> None:
    hub.fill(1_000)
    moved = iter(range(1, 1_000))

    def change(path: str) -> None:
        # what was read already moves to the end: with offsets the next page would skip as many
        if path.endswith("search") and len(hub.fake.requests) < 5:
            for number in (next(moved), next(moved), next(moved)):
                hub.fake.put(
                    "contacts", number, START + timedelta(hours=1, seconds=number), email="x@example.com"
                )

    hub.fake.before = change
    hub.load()
    newest = {row[0]: row[1] for row in rows(hub.warehouse)}
    assert newest == {str(number): record.at for number, record in hub.fake.records["contacts"].items()}


def test_archived_records_are_deleted_versions(hub: Setup) -> None:
    hub.fill(250)
    hub.load()
    for number in range(1, 151):
        hub.fake.archive("contacts", number, START + timedelta(days=1))
    assert hub.load().loaded == 150
    assert hub.load().loaded == 0
    assert [row for row in rows(hub.warehouse) if row[0] == "1"] == [
        ("1", START, False),
        ("1", START + timedelta(days=1), True),
    ]
    # archivings do not push the cursor past live changes
    assert hub.since() == START + timedelta(seconds=249)


def test_the_more_records_are_archived_the_rarer_they_are_listed(hub: Setup) -> None:
    hub.fill(250)
    for number in range(1, 251):
        hub.fake.archive("contacts", number, START + timedelta(days=1))
    now = 1_000_000.0

    def lists() -> int:
        hub.fake.requests.clear()
        settings = hub.settings.model_copy(update={"hubspot_archived_pause": 100.0})
        with HubSpot(settings, clock=lambda: now) as hubspot:
            load(hub.warehouse, hubspot, "contact", settings=settings)
        return sum(method == "GET" for method, _, _ in hub.fake.requests)

    assert lists() == 3
    now += 299
    assert lists() == 0
    now += 1
    assert lists() == 3
    # a clock that was set back does not stop it
    now = 5.0
    assert lists() == 3


HTML = (502, {"content-type": "text/html"}, b"<html><h1>Bad Gateway</h1></html>")


@pytest.mark.parametrize(
    ("failure", "least"),
    [
        ((429, {"retry-after": "7"}, b"{}"), 7),
        ((429, {"x-hubspot-ratelimit-interval-milliseconds": "10000"}, b'{"policyName":"SECONDLY"}'), 10),
        ((423, {}, b"{}"), 2),
        ((477, {"retry-after": "3"}, b""), 3),
        (HTML, 0.2),
        ((503, {}, b""), 0.2),
        ((200, {"content-type": "text/html"}, b"<html>proxy</html>"), 0.2),
        ((200, {}, b"[]"), 0.2),
        ((0, {}, b""), 0.2),
    ],
    ids=["retry-after", "interval", "locked", "migrating", "html-502", "503", "html-200", "array", "dropped"],
)
def test_a_failure_that_passes_is_waited_out(
    hub: Setup, failure: tuple[int, dict[str, str], bytes], least: float
) -> None:
    hub.fill(3)
    hub.fake.failures.append(failure)
    assert hub.load().loaded == 3
    (wait,) = hub.waits
    assert least <= wait <= max(least, 1.0) + 0.01


def test_waits_grow_and_end_with_a_sentence(hub: Setup) -> None:
    hub.fake.failures.extend([HTML] * 100)
    with pytest.raises(CrmError, match="HubSpot answers 502 on search of contacts, however often"):
        hub.load()
    assert len(hub.waits) == 6
    assert hub.waits[-1] > hub.waits[0]
    assert all(wait <= 60 for wait in hub.waits)


def test_what_came_before_the_trouble_is_kept(hub: Setup) -> None:
    hub.fill(450)
    searches = 0

    def break_down(path: str) -> None:
        nonlocal searches
        searches += 1
        if searches == 4:
            hub.fake.failures.extend([HTML] * 7)

    hub.fake.before = break_down
    with pytest.raises(CrmUnavailableError):
        hub.load()
    assert len(rows(hub.warehouse)) == 400
    hub.fake.failures.clear()
    hub.fake.requests.clear()
    assert hub.load().loaded == 50
    # on with the walk, what changed meanwhile, archived ones
    assert len(hub.fake.requests) == 3


def test_the_daily_limit_is_not_waited_for(hub: Setup) -> None:
    hub.fake.failures.append((429, {"retry-after": "10"}, b'{"policyName":"DAILY"}'))
    with pytest.raises(CrmError, match="daily limit"):
        hub.load()
    assert hub.waits == []


def test_the_rate_limit_is_not_run_into(hub: Setup) -> None:
    hub.fill(1)
    headers = {"x-hubspot-ratelimit-remaining": "0", "x-hubspot-ratelimit-interval-milliseconds": "10000"}
    hub.fake.failures.append((200, headers, b'{"total":0,"results":[]}'))
    hub.load()
    assert hub.waits == [10.0]


def test_calls_and_searches_are_paced(hub: Setup) -> None:
    hub.fill(450)
    calls: list[float] = []
    searches: list[float] = []

    def pace(waits: list[float], rate: float) -> Allowance:
        return Allowance(LocalBuckets(clock=lambda: 0.0), "x", per_second=rate, sleep=waits.append)

    with HubSpot(hub.settings, pace=pace(calls, 10), search_pace=pace(searches, 4)) as hubspot:
        load(hub.warehouse, hubspot, "contact", settings=hub.settings)
    # 1 newest, 3 pages, 1 of changes; and a list
    assert searches == [0.25, 0.5, 0.75, 1.0]
    assert calls == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_processes_pace_themselves_by_the_settings(tmp_path: Path) -> None:
    now = [START]
    fake = FakeHubSpot(clock=lambda: now[0], calls_per_10_seconds=12, searches_per_second=3)
    for number in range(1, 1_001):
        fake.put("contacts", number, START + timedelta(seconds=number), email=f"p{number}@example.com")
    settings = CrmSettings.model_validate(
        {
            "home": tmp_path, "hubspot_token": TOKEN,
            "hubspot_calls_per_10_seconds": 12, "hubspot_searches_per_second": 3,
        }
    )  # fmt: skip

    def sleep(seconds: float) -> None:
        now[0] += timedelta(seconds=seconds)

    for _ in range(2):
        hubspot = HubSpot.from_settings(settings, transport=fake.transport(), sleep=sleep)
        for pace in (hubspot._pace, hubspot._search_pace):
            assert isinstance(pace, Allowance)
            pace._buckets._clock = lambda: now[0].timestamp()  # pyright: ignore
        assert sum(pulled.rows.num_rows for pulled in hubspot.pull("contact", None)) == 1_302
    assert fake.refused == 0
    assert len(fake.requests) == 2 * (1 + 5 + 2 + 1)


def test_limits_that_others_use_up_are_waited_out_and_a_day_is_not() -> None:
    now = [START]

    def sleep(seconds: float) -> None:
        now[0] += timedelta(seconds=seconds)

    fake = FakeHubSpot(clock=lambda: now[0], calls_per_10_seconds=7, searches_per_second=2)
    for number in range(1, 3_001):
        fake.put("contacts", number, START + timedelta(seconds=number), email=f"p{number}@example.com")
    with HubSpot(
        CrmSettings.model_validate({"hubspot_token": TOKEN}), transport=fake.transport(), sleep=sleep
    ) as hubspot:
        ids = {one.as_py() for pulled in hubspot.pull("contact", None) for one in pulled.rows["external_id"]}
        assert len(ids) == 3_000
        assert fake.refused > 3
        fake.calls_per_day = len(fake.requests) - fake.refused + 5
        with pytest.raises(CrmUnavailableError, match="daily limit"):
            list(hubspot.pull("contact", None))


@pytest.mark.parametrize(
    ("changes", "failure", "message", "fix"),
    [
        ({"hubspot_token": "wrong"}, None, "does not accept the token", "MAILHOUSE_HUBSPOT_TOKEN"),
        ({"hubspot_api_version": "2031-01"}, None, "HubSpot has no /crm/objects/2031-01", "API_VERSION"),
        (
            {},
            (403, {}, b'{"message":"requires scope x"}'),
            "does not allow the search of contacts.*requires scope x",
            "scopes",
        ),
        ({}, (400, {}, b'{"message":"no property y"}'), "answers 400 .*no property y", "PROPERTIES"),
        ({}, (302, {"location": "http://127.0.0.1:9/"}, b""), "answers 302", ""),
        ({}, (200, {}, b'{"items":[]}'), "has no list of results", "API_VERSION"),
        ({}, (200, {}, b'{"results":[{"name":"x"}]}'), "a record without a numeric id", "API_VERSION"),
    ],
)
def test_refusals_are_explained_at_once(
    hub: Setup, changes: dict[str, Any], failure: Any, message: str, fix: str
) -> None:
    if failure is not None:
        hub.fake.failures.append(failure)
    with pytest.raises(CrmError, match=message) as caught:
        hub.load(**changes)
    assert fix in caught.value.fix
    assert hub.waits == []
    assert hub.warehouse.value("select count() from raw.crm_records") == 0


def test_the_token_is_never_told(hub: Setup, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = [repr(hub.settings), str(hub.settings.model_dump())]
    for failure in ((400, {}, f'{{"message":"bad header Bearer {TOKEN}"}}'.encode()), HTML, (0, {}, b"")):
        hub.fake.failures.extend([failure] * 7)
        with pytest.raises(CrmError) as caught:
            hub.load()
        told.append(str(caught.value))
        hub.fake.failures.clear()
    assert TOKEN not in " ".join([*told, caplog.text])


def test_nobody_there_is_an_error_of_one_sentence(hub: Setup, free_port: int) -> None:
    with pytest.raises(CrmError, match=r"does not answer \(ConnectError\) on search of contacts"):
        hub.load(hubspot_base_url="http://127.0.0.1:1")


def test_a_record_without_a_time_is_set_apart(hub: Setup) -> None:
    start = (200, {}, b'{"results": []}')
    page = {
        "results": [
            {"id": "1", "properties": {"email": "a@example.com"}},
            {"id": "2", "updatedAt": "2026-01-01T00:00:00Z", "properties": {"email": "b@example.com"}},
            {
                "id": "3",
                "updatedAt": "2026-01-01T00:00:00Z",
                "properties": {"firstname": "half \ud83d of it"},
            },
            {"id": "4", "updatedAt": "2026-01-01T00:00:00Z"},
        ]
    }
    hub.fake.failures.extend([start, (200, {}, json.dumps(page).encode())])
    assert hub.load() == LoadResult(4, 1, 0, 3)
    found = hub.warehouse.frame(
        "select source, object, file, reason from raw.quarantined_rows order by reason"
    )
    assert found.rows() == [
        ("hubspot", "contact", "hubspot/contacts", reason)
        for reason in (
            "the record has no properties", "the record holds half of a surrogate pair",
            "the record says not when it changed",
        )
    ]  # fmt: skip


@pytest.mark.parametrize("token", [None, "", "  ", "two words", "tökèn", "line\nbreak"])
def test_a_token_that_is_none_is_a_settings_error(token: str | None) -> None:
    with pytest.raises(SettingsError, match="token") as caught:
        HubSpot(CrmSettings.model_validate({"hubspot_token": token}))
    assert "MAILHOUSE_HUBSPOT_TOKEN" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("BASE_URL", "http://api.example.com"),
        ("BASE_URL", "ftp://api.hubapi.com"),
        ("API_VERSION", "v9"),
        ("API_VERSION", "2026-9"),
        ("PROPERTIES", "colour"),
        ("PROPERTIES", '{"contact": ["colour"]}'),
        ("OVERLAP", "-1"),
    ],
)
def test_wrong_settings_name_their_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"MAILHOUSE_HUBSPOT_{name}", value)
    with pytest.raises(SettingsError, match=f"MAILHOUSE_HUBSPOT_{name}"):
        CrmSettings.load()


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILHOUSE_HUBSPOT_PROPERTIES", '{"contacts": ["colour"]}')
    monkeypatch.setenv("MAILHOUSE_HUBSPOT_BASE_URL", "http://127.0.0.1:9/")
    settings = CrmSettings.load()
    assert settings.hubspot_properties == {"contacts": ["colour"]}
    assert settings.hubspot_base_url == "http://127.0.0.1:9"
