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

from crm.hubspot import HubSpot, HubSpotError, cursor, ingest_hubspot
from crm.settings import CrmSettings
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
                "hubspot_searches_per_second": 1e9,
                "hubspot_overlap": 60,
            }
        )

    def client(self, **changes: Any) -> HubSpot:
        return HubSpot(
            CrmSettings.model_validate({**self.settings.model_dump(), **changes}), sleep=self.waits.append
        )

    def ingest(self, kind: Any = "contacts", **changes: Any) -> LoadResult:
        with self.client(**changes) as hubspot:
            return ingest_hubspot(self.warehouse, hubspot, kind, settings=self.settings, run_id="run")

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
        favourite_colour="red",
        city=None,
        phone="",
    )
    assert hub.ingest(hubspot_properties={"contacts": ["favourite_colour"]}) == LoadResult(1, 1)
    row = hub.warehouse.frame(
        "select source, object, external_id, updated_at, is_deleted, toString(properties) p from raw.crm_records"
    ).row(0)
    assert row[:5] == ("hubspot", "contact", "7", START + timedelta(milliseconds=5), False)
    assert json.loads(row[5]) == {
        "email": "Ann@example.com",
        "first_name": "Ann",
        "last_name": "Ö",
        "locale": "en-gb",
        "created_at": "2025-12-01T00:00:00.000Z",
        "favourite_colour": "red",
        "lastmodifieddate": "2026-01-01T00:00:00.005Z",
        "hs_object_id": "7",
    }


def test_companies_and_deals_and_the_old_paths(hub: Setup) -> None:
    hub.fake.version = "v3"
    hub.fake.put("companies", 1, START, name="Example Ltd")
    hub.fake.put("deals", 2, START, dealname="Lamps", amount="12.50")
    assert hub.ingest("companies", hubspot_api_version="v3").loaded == 1
    assert hub.ingest("deals", hubspot_api_version="v3").loaded == 1
    found = hub.warehouse.frame("select object, external_id from raw.crm_records order by object").rows()
    assert found == [("company", "1"), ("deal", "2")]


def test_the_cursor_moves_and_the_overlap_is_read_again(hub: Setup) -> None:
    hub.fill(300)
    assert cursor(hub.warehouse, "contacts") is None
    assert hub.ingest().loaded == 300
    newest = START + timedelta(seconds=299)
    assert cursor(hub.warehouse, "contacts") == newest
    hub.fake.requests.clear()
    hub.fake.put("contacts", 5, newest + timedelta(seconds=30), email="new@example.com")
    # a change that search did not know of at the time
    hub.fake.put("contacts", 999, newest - timedelta(seconds=59), email="late@example.com")
    result = hub.ingest()
    assert result.loaded == 2
    assert result.read == 61 + 2
    assert len(hub.fake.requests) == 2
    filters = hub.fake.requests[0][2]["filterGroups"][0]["filters"]
    since = int((newest - timedelta(seconds=60)).timestamp() * 1000)
    assert filters == [{"propertyName": "lastmodifieddate", "operator": "GTE", "value": str(since)}]
    assert len([row for row in rows(hub.warehouse) if row[0] == "5"]) == 2


def test_more_than_search_would_page_through(hub: Setup) -> None:
    hub.fill(10_450, step=timedelta(milliseconds=3))
    assert hub.ingest().loaded == 10_450
    searches = len([1 for method, _, _ in hub.fake.requests if method == "POST"])
    assert searches <= 1.05 * 10_450 / 200 + 1


@pytest.mark.parametrize("count", [199, 200, 201, 700])
def test_many_changed_in_the_same_millisecond(hub: Setup, count: int) -> None:
    hub.fill(50, at=START - timedelta(hours=1))
    hub.fill(count, step=timedelta(0), first=1000)
    hub.fill(250, at=START + timedelta(milliseconds=1), step=timedelta(milliseconds=1), first=5000)
    assert hub.ingest().loaded == 50 + count + 250
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
    hub.ingest()
    newest = {row[0]: row[1] for row in rows(hub.warehouse)}
    assert newest == {str(number): record.at for number, record in hub.fake.records["contacts"].items()}


def test_archived_records_are_deleted_versions(hub: Setup) -> None:
    hub.fill(250)
    hub.ingest()
    for number in range(1, 151):
        hub.fake.archive("contacts", number, START + timedelta(days=1))
    assert hub.ingest().loaded == 150
    assert hub.ingest().loaded == 0
    assert [row for row in rows(hub.warehouse) if row[0] == "1"] == [
        ("1", START, False),
        ("1", START + timedelta(days=1), True),
    ]
    # archivings do not push the cursor past live changes
    assert cursor(hub.warehouse, "contacts") == START + timedelta(seconds=249)


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
    assert hub.ingest().loaded == 3
    (wait,) = hub.waits
    assert least <= wait <= max(least, 1.0) + 0.01


def test_waits_grow_and_end_with_a_sentence(hub: Setup) -> None:
    hub.fake.failures.extend([HTML] * 100)
    with pytest.raises(HubSpotError, match="HubSpot answers 502, 7 times in a row"):
        hub.ingest()
    assert len(hub.waits) == 6
    assert hub.waits[-1] > hub.waits[0]
    assert all(wait <= 60 for wait in hub.waits)


def test_what_came_before_the_trouble_is_kept(hub: Setup) -> None:
    hub.fill(450)
    searches = 0

    def break_down(path: str) -> None:
        nonlocal searches
        searches += 1
        if searches == 3:
            hub.fake.failures.extend([HTML] * 7)

    hub.fake.before = break_down
    with pytest.raises(HubSpotError):
        hub.ingest()
    assert len(rows(hub.warehouse)) == 399
    hub.fake.failures.clear()
    assert hub.ingest().loaded == 51


def test_the_daily_limit_is_not_waited_for(hub: Setup) -> None:
    hub.fake.failures.append((429, {"retry-after": "10"}, b'{"policyName":"DAILY"}'))
    with pytest.raises(HubSpotError, match="daily limit"):
        hub.ingest()
    assert hub.waits == []


def test_the_rate_limit_is_not_run_into(hub: Setup) -> None:
    hub.fill(1)
    headers = {"x-hubspot-ratelimit-remaining": "0", "x-hubspot-ratelimit-interval-milliseconds": "10000"}
    hub.fake.failures.append((200, headers, b'{"total":0,"results":[]}'))
    hub.ingest()
    assert hub.waits == [10.0]


def test_searches_are_paced(hub: Setup) -> None:
    hub.fill(450)
    hub.ingest(hubspot_searches_per_second=4)
    assert len(hub.waits) == 2
    assert all(0.1 < wait <= 0.5 for wait in hub.waits)


@pytest.mark.parametrize(
    ("changes", "failure", "message", "fix"),
    [
        ({"hubspot_token": "wrong"}, None, "does not accept the token", "MAILHOUSE_HUBSPOT_TOKEN"),
        ({"hubspot_api_version": "2031-01"}, None, "HubSpot has no /crm/objects/2031-01", "API_VERSION"),
        ({}, (403, {}, b'{"message":"requires scope x"}'), "may not read.*requires scope x", "scopes"),
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
    with pytest.raises(HubSpotError, match=message) as caught:
        hub.ingest(**changes)
    assert fix in caught.value.fix
    assert hub.waits == []
    assert hub.warehouse.value("select count() from raw.crm_records") == 0


def test_the_token_is_never_told(hub: Setup, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    told: list[str] = [repr(hub.settings), str(hub.settings.model_dump())]
    for failure in ((400, {}, f'{{"message":"bad header Bearer {TOKEN}"}}'.encode()), HTML, (0, {}, b"")):
        hub.fake.failures.extend([failure] * 7)
        with pytest.raises(HubSpotError) as caught:
            hub.ingest()
        told.append(str(caught.value))
        hub.fake.failures.clear()
    assert TOKEN not in " ".join([*told, caplog.text])


def test_nobody_there_is_an_error_of_one_sentence(hub: Setup, free_port: int) -> None:
    with pytest.raises(HubSpotError, match=r"does not answer \(ConnectError\), 7 times"):
        hub.ingest(hubspot_base_url="http://127.0.0.1:1")


def test_a_record_without_a_time_is_set_apart(hub: Setup) -> None:
    page = {
        "results": [
            {"id": "1", "properties": {"email": "a@example.com"}},
            {"id": "2", "updatedAt": "2026-01-01T00:00:00Z", "properties": {"email": "b@example.com"}},
        ]
    }
    hub.fake.failures.append((200, {}, json.dumps(page).encode()))
    assert hub.ingest() == LoadResult(2, 1, 0, 1)
    found = hub.warehouse.frame("select source, object, file, reason from raw.quarantined_rows").rows()
    assert found == [("hubspot", "contact", "hubspot/contacts", "the record says not when it changed")]
    assert hub.ingest().quarantined == 0
    assert hub.warehouse.value("select count() from raw.quarantined_rows") == 0


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
