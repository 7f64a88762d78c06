"""Pipedrive's records arrive completely and are written once; its limits, guards and lost answers are survived."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipedrive_fake import CLIENT_SECRET, REFRESH_TOKEN, SHIELD, START, TOKEN, FakePipedrive

from crm import pipedrive
from crm.base import (
    PULLED,
    Change,
    CrmError,
    CrmRefusedError,
    CrmUnavailableError,
    CustomField,
    Kind,
    Pulled,
    Pushed,
)
from crm.pipedrive import Pipedrive
from crm.pulling import load
from crm.settings import CrmSettings
from warehouse.client import Warehouse
from warehouse.errors import SettingsError
from warehouse.loads import LoadResult

Version = tuple[str, datetime]
SCORE = CustomField("mailhouse_engagement_score", "Engagement score", "number")
SEGMENT = CustomField("mailhouse_rfm_segment", "RFM segment", "choice", options=("Champions", "At risk"))
OPENED = CustomField("mailhouse_last_open_at", "Last open", "datetime")
OPTED = CustomField("mailhouse_is_opted_in", "Opted in", "boolean")
SEGMENTS = CustomField("mailhouse_segments", "Segments", "list")


def crm_of(fake: FakePipedrive, **changes: Any) -> Pipedrive:
    chosen = CrmSettings.model_validate({"pipedrive_token": TOKEN, **changes})
    return Pipedrive(chosen, transport=fake.transport, sleep=fake.sleep, clock=fake.clock)


class Stored:
    """What a loader would hold: the first row of each version, and the cursor that was stored last."""

    def __init__(self) -> None:
        self.rows: dict[Version, dict[str, Any]] = {}
        self.cursors: list[str] = []

    def add(self, pulled: Pulled) -> None:
        assert pulled.rows.schema == PULLED
        for row in pulled.rows.to_pylist():
            self.rows.setdefault((row["external_id"], row["updated_at"]), row)
        self.cursors.append(pulled.cursor)

    @property
    def cursor(self) -> str | None:
        return self.cursors[-1] if self.cursors else None

    def newest(self) -> dict[str, dict[str, Any]]:
        newest: dict[str, dict[str, Any]] = {}
        for (number, _), row in sorted(self.rows.items(), key=lambda item: item[0]):
            newest[number] = row
        return newest

    def alive(self) -> dict[str, dict[str, Any]]:
        return {
            number: json.loads(row["properties"])
            for number, row in self.newest().items()
            if not row["is_deleted"]
        }


def pull(fake: FakePipedrive, stored: Stored, kind: Kind = "contact", **changes: Any) -> Stored:
    with crm_of(fake, **changes) as crm:
        for one in crm.pull(kind, stored.cursor):
            stored.add(one)
    return stored


def person(fake: FakePipedrive, name: str, **values: Any) -> int:
    emails = [{"value": f"{name.split()[0].lower()}@example.com", "primary": True, "label": "work"}]
    return fake.put("persons", **{"name": name, "emails": emails, **values})


def push(fake: FakePipedrive, *changes: Change, kind: Kind = "contact", **settings: Any) -> list[Pushed]:
    with crm_of(fake, **settings) as crm:
        return crm.push(kind, changes)


def change(key: str = "k", external_id: str = "", known: datetime | None = None, **fields: Any) -> Change:
    return Change(key, external_id, fields, known)


@pytest.fixture
def fake() -> FakePipedrive:
    return FakePipedrive()


# Reading


def test_people_arrive_under_our_names(fake: FakePipedrive) -> None:
    country = fake.add_field("Country", "varchar")
    colour = fake.add_field("Favourite colour", "enum", ["Red", "Blue"])
    likes = fake.add_field("Likes", "set", ["Tea", "Milk"])
    own = fake.add_field("Email", "varchar")
    ours = fake.add_field("My score (mailhouse_engagement_score)", "double")
    fake.put(
        "persons",
        name="Ann Ö",
        org_id=5,
        emails=[
            {"value": "old@example.com", "primary": False, "label": "home"},
            {"value": "Ann@example.com", "primary": True, "label": "work"},
        ],
        phones=[
            {"value": "+491", "primary": True, "label": "work"},
            {"value": "+492", "primary": False, "label": "mobile"},
        ],
        custom_fields={
            country: "DE",
            colour: 101,
            likes: [102 - 2, 101],
            own: "x",
            ours: 7.5,
            "0" * 40: None,
        },
    )
    fake.fields["personFields"][2]["options"] = [{"id": 300, "label": "Tea"}, {"id": 301, "label": "Milk"}]
    fake.records["persons"][1]["custom_fields"][likes] = [300, 301]
    fake.sleep(60)
    ((_, row),) = pull(fake, Stored()).rows.items()
    assert (row["external_id"], row["updated_at"], row["is_deleted"]) == ("1", START, False)
    properties = json.loads(row["properties"])
    assert properties.pop("emails")[1]["value"] == "Ann@example.com"
    assert len(properties.pop("phones")) == 2
    assert properties == {
        "id": 1, "name": "Ann Ö", "first_name": "Ann", "last_name": "Ö", "org_id": 5, "is_deleted": False,
        "email": "Ann@example.com", "phone": "+491", "mobile_phone": "+492", "country": "DE",
        "created_at": "2031-03-01T12:00:00Z", "update_time": "2031-03-01T12:00:00Z", "favourite_colour": "Blue",
        "likes": "Tea;Milk", f"email_{own[:8]}": "x", "mailhouse_engagement_score": 7.5,
    }  # fmt: skip


def test_organisations_activities_and_deals(fake: FakePipedrive) -> None:
    fake.put("organizations", name="Example Ltd")
    fake.put("activities", subject="Call", done=False)
    reason = fake.add_field("Reason", "enum", ["Price", "Time"], of="dealFields")
    fake.put("deals", title="Lamps", value=5, custom_fields={reason: 100})
    fake.put("deals", title="Old lamps", is_archived=True, custom_fields={reason: 101})
    fake.put("deals", title="No lamps")
    fake.delete("deals", 3)
    fake.sleep(60)
    assert pull(fake, Stored(), "company").alive()["1"]["name"] == "Example Ltd"
    assert pull(fake, Stored(), "task").alive()["1"]["subject"] == "Call"
    deals = pull(fake, Stored(), "deal")
    assert {number: (row["title"], row["reason"]) for number, row in deals.alive().items()} == {
        "1": ("Lamps", "Price"),
        "2": ("Old lamps", "Time"),
    }
    assert deals.newest()["3"]["is_deleted"]
    for path in ("organizations", "activities"):
        fake.delete(path, 1)
    stored = Stored()
    fake.sleep(60)
    kinds: tuple[tuple[Kind, str], ...] = (("company", "organizations"), ("task", "activities"))
    for kind, _ in kinds:
        assert pull(fake, stored, kind).rows == {}, "what was deleted before a first load is no news"


def test_a_second_load_reads_what_changed_and_little_more(fake: FakePipedrive) -> None:
    for index in range(1_200):
        fake.put("persons", name=f"P{index}", at=START - timedelta(hours=1) + timedelta(seconds=index))
    fake.sleep(60)
    stored = pull(fake, Stored())
    assert len(stored.rows) == 1_200
    assert len(fake.requests) == 3 + 1
    fake.requests.clear()
    fake.put("persons", number=7, name="Changed")
    fake.delete("persons", 8)
    fake.sleep(60)
    pull(fake, stored)
    assert stored.alive()["7"]["name"] == "Changed"
    assert stored.newest()["8"]["is_deleted"]
    assert len(stored.rows) == 1_202
    # the list, the recents, and a look whether the deleted one is really gone
    assert [path for _, path, _ in fake.requests] == ["/api/v2/persons", "/v1/recents", "/api/v2/persons/8"]
    assert fake.requests[0][2]["updated_since"] == "2031-03-01T11:18:59Z"


@pytest.mark.parametrize(("shows", "touches"), [(False, True), (True, True), (False, False)])
def test_deleted_people_are_deleted_versions(fake: FakePipedrive, shows: bool, touches: bool) -> None:
    fake.shows_deleted, fake.touches_deleted = shows, touches
    for index in range(3):
        person(fake, f"P{index}")
    fake.sleep(600)
    stored = pull(fake, Stored())
    fake.delete("persons", 1)
    fake.delete("persons", 2)
    fake.sleep(600)
    pull(fake, stored)
    assert stored.alive().keys() == {"3"}
    assert stored.newest()["1"]["merged_into"] == ""
    # and back again
    fake.records["persons"][1]["is_deleted"] = False
    fake.put("persons", number=1, name="Back")
    fake.sleep(60)
    pull(fake, stored)
    assert stored.alive().keys() == {"1", "3"}


@pytest.mark.parametrize("names", ["loser", "winner"])
def test_merged_people_say_into_whom(fake: FakePipedrive, names: str) -> None:
    fake.names_merged = names
    for name in ("Ann", "Ben", "Cem"):
        person(fake, name)
    fake.sleep(600)
    stored = pull(fake, Stored())
    fake.merge(1, 2)
    fake.sleep(600)
    pull(fake, stored)
    assert (stored.newest()["1"]["is_deleted"], stored.newest()["1"]["merged_into"]) == (True, "2")
    assert stored.alive()["2"]["email"] == "ben@example.com"
    assert [one["value"] for one in stored.alive()["2"]["emails"]] == ["ben@example.com", "ann@example.com"]
    # a stale mark on a person who is there proves nothing
    fake.records["persons"][3]["_merge_what_id"] = 2
    fake.put("persons", number=3, name="Cem")
    fake.sleep(60)
    pull(fake, stored)
    assert stored.alive().keys() == {"2", "3"}


def test_a_second_that_is_not_over_is_waited_for(fake: FakePipedrive) -> None:
    person(fake, "Ann")
    fake.latency = 0.0
    stored = pull(fake, Stored())
    assert stored.alive().keys() == {"1"}, "found by the same pull, a few seconds later"
    assert fake.now - START < timedelta(seconds=6)
    # a change later in the second of one that was read would be its version, and lost
    assert stored.newest()["1"]["updated_at"] < fake.now.replace(microsecond=0) - timedelta(seconds=2)


def test_times_are_sent_without_milliseconds_and_our_clock_is_not_asked(fake: FakePipedrive) -> None:
    person(fake, "Ann")
    fake.sleep(0.123)
    stored = pull(fake, Stored())
    fake.skew = 0.7
    fake.put("persons", number=1, name="Anna")
    fake.sleep(3)
    pull(fake, stored)
    assert stored.alive()["1"]["name"] == "Anna"
    since = [query["updated_since"] for _, _, query in fake.requests if "updated_since" in query]
    assert since
    assert all(len(one) == 20 and one.startswith("2031-03-01T11:59") for one in since[-1:])


def test_a_marker_that_pipedrive_forgot_is_replaced_by_time(
    fake: FakePipedrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipedrive, "BATCH", 1)
    fake.page = 2
    for index in range(7):
        fake.put("persons", name=f"P{index}", at=START - timedelta(minutes=index))
    fake.sleep(60)
    stored = Stored()
    with crm_of(fake) as crm:
        for index, one in enumerate(crm.pull("contact", None)):
            stored.add(one)
            if index == 1:
                break
    assert "following" in json.loads(stored.cursors[-1])["changed"]
    stored.cursors[-1] = stored.cursors[-1].replace('"following": "', '"following": "x')
    pull(fake, stored)
    assert len(stored.alive()) == 7


edits = st.lists(
    st.tuples(
        st.sampled_from(["edit", "edit", "edit", "add", "delete", "merge", "wait"]), st.integers(0, 10**6)
    ),
    max_size=12,
)


happenings = given(
    records=st.integers(0, 25),
    seconds=st.integers(1, 6),
    page=st.integers(1, 6),
    rounds=st.lists(edits, min_size=1, max_size=14),
    stops=st.lists(st.integers(1, 6), max_size=5),
    latency=st.sampled_from([0.01, 0.3, 1.1]),
    skew=st.sampled_from([0.0, 0.9]),
    touches=st.booleans(),
)


@settings(max_examples=10)
@happenings
def test_nothing_is_missed_whatever_happens_while_we_read(**happening: Any) -> None:
    read_while(**happening)


@pytest.mark.slow
@settings(max_examples=120)
@happenings
def test_nothing_is_missed_whatever_happens_at_length(**happening: Any) -> None:
    read_while(**happening)


def read_while(
    records: int,
    seconds: int,
    page: int,
    rounds: list[list[tuple[str, int]]],
    stops: list[int],
    latency: float,
    skew: float,
    touches: bool,
) -> None:
    """Edits during each call, many in the same second; the reader dies now and then and goes on from its cursor."""
    fake = FakePipedrive(
        latency=latency, page=page, skew=skew, touches_deleted=touches, burst=10**6, shows_limits=False
    )
    for index in range(records):
        fake.put("persons", name=f"P{index}", at=START - timedelta(seconds=index % seconds))
    happening = iter(rounds)

    def happen(path: str, method: str) -> None:
        for what, number in next(happening, []):
            alive = sorted(fake.alive("persons"), key=int)
            one = int(alive[number % len(alive)]) if alive else 0
            if what == "wait":
                fake.sleep(number % 40 / 10)
            elif what == "add" or not one:
                fake.put("persons", name=f"new {number}")
            elif what == "edit":
                fake.put("persons", number=one, name=f"edit {number}")
            elif what == "delete":
                fake.delete("persons", one)
            elif len(alive) > 1:
                fake.merge(one, int(alive[(number + 1) % len(alive)]))

    fake.before = happen
    stored = Stored()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipedrive, "BATCH", 1)
        for stop in stops:
            with crm_of(fake, pipedrive_overlap=0) as crm:
                for index, one in enumerate(crm.pull("contact", stored.cursor)):
                    if index == stop:
                        break  # what was not stored is read again
                    stored.add(one)
        for _ in range(3):
            pull(fake, stored, pipedrive_overlap=0)
        fake.before = lambda path, method: None
        fake.sleep(10)
        pull(fake, stored, pipedrive_overlap=0)
    shown = {number: (row["name"], row["update_time"]) for number, row in stored.alive().items()}
    assert shown == {
        number: (row["name"], row["update_time"]) for number, row in fake.alive("persons").items()
    }


def test_single_records_are_looked_up(fake: FakePipedrive) -> None:
    for name in ("Ann", "Ben", "Cem"):
        person(fake, name)
    fake.sleep(60)
    stored = pull(fake, Stored())
    fake.put("persons", number=1, name="Anna")
    fake.delete("persons", 2)
    fake.sleep(60)
    with crm_of(fake) as crm:
        found = crm.look_up("contact", ["1", "2", "1", "77", "x"])
        assert found.cursor == ""
        stored.add(found)
        assert crm.check() == "Example Ltd, as Sam Seller"
    assert stored.alive().keys() == {"1", "3"}
    assert stored.alive()["1"]["name"] == "Anna"
    assert stored.newest()["77"]["is_deleted"]
    # a second that is not over may bring another version
    stored.cursors.pop()
    fake.put("persons", number=3, name="Ben the first")
    with crm_of(fake) as crm:
        stored.add(crm.look_up("contact", ["3"]))
    stored.cursors.pop()
    fake.put("persons", number=3, name="Ben the second")
    fake.sleep(60)
    assert pull(fake, stored).alive()["3"]["name"] == "Ben the second"
    fake.put("deals", title="Lamps")
    fake.put("deals", title="Old lamps", is_archived=True)
    with crm_of(fake) as crm:
        deals = Stored()
        deals.add(crm.look_up("deal", ["1", "2", "3"]))
    assert deals.alive().keys() == {"1", "2"}, "archived ones are in a list of their own"


# Limits and troubles


def test_the_burst_limit_is_not_run_into(fake: FakePipedrive) -> None:
    fake.latency, fake.page = 0.001, 1
    for index in range(75):
        fake.put("persons", name=f"P{index}", at=START - timedelta(minutes=index + 1))
    pull(fake, Stored())
    assert fake.refused == 0
    assert timedelta(seconds=7) < fake.now - START < timedelta(seconds=15)
    # a larger plan is learnt from the answers
    fake.burst, began = 120, fake.now
    pull(fake, Stored())
    assert fake.refused == 0
    assert fake.now - began < timedelta(seconds=5)


@pytest.mark.parametrize("shows", [True, False])
def test_searches_have_a_limit_of_their_own(fake: FakePipedrive, shows: bool) -> None:
    fake.latency, fake.shows_limits, fake.burst = 0.001, shows, 120 if shows else 20
    push(fake, *(change(str(index), email=f"p{index}@example.com") for index in range(40)))
    assert fake.refused == 0
    assert len(fake.alive("persons")) == 40


def test_others_who_use_up_the_burst_limit_are_waited_out(fake: FakePipedrive) -> None:
    person(fake, "Ann")
    fake.sleep(60)
    fake.burst, fake.shows_limits = 1, False
    fake.latency = 0.001
    assert pull(fake, Stored()).alive().keys() == {"1"}
    assert fake.refused == 1
    assert fake.shielded == 0


@pytest.mark.parametrize(
    ("failure", "least"),
    [
        ((403, {"content-type": "text/html; charset=UTF-8"}, SHIELD), 60),
        ((429, {"x-ratelimit-reset": "5"}, b"{}"), 5),
        ((429, {}, b"<html>"), 2),
        ((503, {}, b""), 0.2),
        ((520, {}, b""), 0.2),
        ((200, {}, b"<html>proxy</html>"), 0.2),
        ("before", 0.2),
        ("after", 0.2),
    ],
)
def test_what_passes_is_waited_out(fake: FakePipedrive, failure: Any, least: float) -> None:
    person(fake, "Ann")
    fake.sleep(60)
    fake.failures.append(failure)
    began = fake.now
    assert pull(fake, Stored()).alive().keys() == {"1"}
    assert least <= (fake.now - began).total_seconds() < least + 3


def test_the_days_budget_is_not_waited_for_and_what_came_before_is_kept(
    fake: FakePipedrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.page, fake.daily = 10, 25
    for index in range(40):
        fake.put("persons", name=f"P{index}", at=START - timedelta(minutes=index + 1))
    stored = Stored()
    with pytest.raises(CrmUnavailableError, match="daily budget"):
        pull(fake, stored)
    assert len(stored.rows) == 20
    assert fake.now - START < timedelta(seconds=5)
    fake.daily, fake.now = 10**6, fake.now + timedelta(days=1)
    assert len(pull(fake, stored).rows) == 40
    assert fake.costs["GET /api/v2/persons"] == 40, "no page was read twice"


def test_what_was_deleted_during_a_long_first_load_is_found(
    fake: FakePipedrive, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.page = 2
    for index in range(6):
        fake.put("persons", name=f"P{index}", at=START - timedelta(minutes=60 - index))
    deleted: list[str] = []

    def delete(path: str, method: str) -> None:
        if len(fake.requests) == 2:
            fake.delete("persons", 1)
            deleted.append(path)

    fake.before = delete
    stored = pull(fake, Stored())
    assert deleted
    assert stored.newest()["1"]["is_deleted"]
    assert len(stored.alive()) == 5


def test_a_cursor_that_is_older_than_pipedrives_memory_is_told(
    fake: FakePipedrive, caplog: pytest.LogCaptureFixture
) -> None:
    person(fake, "Ann")
    fake.sleep(60)
    stored = pull(fake, Stored())
    assert not caplog.records
    fake.sleep(31 * 86_400)
    pull(fake, stored)
    assert "does not remember them that long" in caplog.text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}, b'{"success":false,"error":"unauthorized access"}'), "does not accept the token"),
        (
            (403, {}, b'{"success":false,"error":"Scope and URL mismatch"}'),
            "refuses .*Scope and URL mismatch",
        ),
        ((404, {}, b"<html>"), "has no such thing"),
        (
            (400, {}, b'{"success":false,"error":"bad","error_info":"see docs"}'),
            r"answers 400 .*bad \(see docs\)",
        ),
        ((200, {}, b'{"success":false,"error":"strange"}'), "answers 200 .*strange"),
        ((302, {"location": "http://127.0.0.1:9/"}, b""), "answers 302"),
    ],
)
def test_refusals_are_explained_at_once(fake: FakePipedrive, answer: Any, message: str) -> None:
    fake.failures.append(answer)
    with pytest.raises(CrmRefusedError, match=message):
        pull(fake, Stored())
    assert fake.now - START < timedelta(seconds=1)


def test_a_list_without_ids_and_a_strange_cursor(fake: FakePipedrive) -> None:
    fake.failures.append((200, {}, b'{"success":true,"data":[{"name":"x"}]}'))
    with pytest.raises(CrmError, match="a record without an id"):
        pull(fake, Stored())
    for cursor in ("x", "[]", '{"changed": {"offset": 3}}', '{"changed": 1}'):
        with pytest.raises(CrmError, match="cursor cannot be read"), crm_of(fake) as crm:
            list(crm.pull("contact", cursor))


# Getting in

APP = {
    "pipedrive_token": None,
    "pipedrive_client_id": "client",
    "pipedrive_client_secret": CLIENT_SECRET,
    "pipedrive_refresh_token": REFRESH_TOKEN,
}


def test_an_app_gets_and_renews_its_token(fake: FakePipedrive) -> None:
    person(fake, "Ann")
    fake.sleep(60)
    with crm_of(fake, **APP) as crm:
        list(crm.pull("contact", None))
        assert len(fake.access_tokens) == 1
        fake.sleep(3_500)
        list(crm.pull("contact", None))
        assert len(fake.access_tokens) == 2, "it was renewed before it ended"
        fake.access_tokens.clear()
        fake.access_tokens["x"] = START
        list(crm.pull("contact", None))
        assert len(fake.access_tokens) == 2, "it was renewed as it was not taken any more"


def test_an_app_that_was_removed_is_told(fake: FakePipedrive) -> None:
    with pytest.raises(CrmRefusedError, match="gives no access token: invalid_grant") as caught:
        pull(fake, Stored(), **{**APP, "pipedrive_client_secret": "another"})
    assert REFRESH_TOKEN not in str(caught.value)
    fake.failures.extend([(401, {}, b'{"success":false,"error":"no"}')] * 2)
    with pytest.raises(CrmRefusedError, match="does not accept the token"):
        pull(fake, Stored(), **APP)


def test_secrets_are_never_told(fake: FakePipedrive, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for logger in ("httpx", "httpcore"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    told: list[str] = []
    for access, secrets in (({}, [TOKEN]), (APP, [CLIENT_SECRET, REFRESH_TOKEN, "access-0"])):
        told.append(repr(CrmSettings.model_validate({"pipedrive_token": TOKEN, **access})))
        words = "bad " + " ".join(secrets) + "x" * (250 - len(" ".join(secrets))) + secrets[0]
        body = json.dumps({"success": False, "error": words, "error_info": words}).encode()
        for failure in ((400, {}, body), (403, {}, body), (503, {}, body), "before"):
            fake.access_tokens.clear()
            fake.failures.extend([failure] * 7)  # pyright: ignore[reportArgumentType]
            with pytest.raises(CrmError) as caught:
                pull(fake, Stored(), **access)
            told.append(str(caught.value))
            fake.failures.clear()
        person(fake, "Ann")
        fake.access_tokens.clear()

        def refuse(path: str, method: str, body: bytes = body) -> None:
            if method == "PATCH":
                fake.failures.append((400, {}, body))

        fake.before = refuse
        (result,) = push(fake, change("a", "1", first_name="Bea"), **access)
        assert (result.status, "..." in result.reason) == ("invalid", True)
        told.append(result.reason)
        fake.before = lambda path, method: None
    shown = " ".join([*told, caplog.text])
    for secret in (TOKEN, CLIENT_SECRET, REFRESH_TOKEN, "access-0", TOKEN[:8]):
        assert secret not in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "API token, or all three"),
        ({"pipedrive_client_id": "x", "pipedrive_refresh_token": "y"}, "API token, or all three"),
        ({"pipedrive_token": "two words"}, "token is none"),
        ({"pipedrive_token": "tökèn"}, "token is none"),
    ],
)
def test_settings_that_do_not_let_us_in(given: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        Pipedrive.from_settings(CrmSettings.model_validate(given))
    assert "MAILHOUSE_PIPEDRIVE_TOKEN" in caught.value.fix


def test_processes_share_what_may_be_asked(fake: FakePipedrive, tmp_path: Path) -> None:
    chosen = CrmSettings.model_validate(
        {"pipedrive_token": TOKEN, "home": tmp_path, "pipedrive_calls_per_2_seconds": 20}
    )
    waits: list[float] = []
    for _ in range(2):
        with Pipedrive.from_settings(chosen, transport=fake.transport, sleep=waits.append) as crm:
            for _ in range(6):
                crm.check()
    # a tenth at once, the others drip in: 12 calls take more than a second of waiting, whoever makes them
    assert sum(waits) > 1.0


def test_whether_it_is_configured() -> None:
    assert not Pipedrive.is_configured(CrmSettings.model_validate({}))
    assert Pipedrive.is_configured(CrmSettings.model_validate({"pipedrive_token": TOKEN}))
    assert Pipedrive.is_configured(CrmSettings.model_validate({"pipedrive_refresh_token": TOKEN}))


# Setting up


def test_fields_are_made_once_and_known_again(fake: FakePipedrive) -> None:
    fields = (SCORE, SEGMENT, OPENED, OPTED, SEGMENTS)
    with crm_of(fake) as crm:
        assert crm.set_up(fields).made == tuple(one.name for one in fields)
        assert crm.set_up(fields).kept == tuple(one.name for one in fields)
    made = {one["field_name"]: one["field_type"] for one in fake.fields["personFields"]}
    assert made == {
        "Engagement score (mailhouse_engagement_score)": "double",
        "RFM segment (mailhouse_rfm_segment)": "enum",
        "Last open (mailhouse_last_open_at)": "date",
        "Opted in (mailhouse_is_opted_in)": "enum",
        "Segments (mailhouse_segments)": "text",
    }
    fake.fields["personFields"][0]["field_name"] = "Renamed by Sam (mailhouse_engagement_score)"
    more = CustomField(SEGMENT.name, SEGMENT.label, "choice", options=("Champions", "Lost"))
    with crm_of(fake) as crm:
        assert crm.set_up([SCORE, more]).made == ()
    labels = [option["label"] for option in fake.fields["personFields"][1]["options"]]
    assert labels == ["Champions", "At risk", "Lost"]


def test_a_field_of_another_type_is_not_taken(fake: FakePipedrive) -> None:
    fake.add_field("Engagement score (mailhouse_engagement_score)", "varchar")
    with (
        pytest.raises(CrmRefusedError, match="of type varchar; mailhouse_engagement_score needs double"),
        crm_of(fake) as crm,
    ):
        crm.set_up([SCORE])


def test_a_field_whose_making_was_not_answered_is_not_made_twice(fake: FakePipedrive) -> None:

    def lose(path: str, method: str) -> None:
        if method == "POST":
            fake.failures.append("after")

    fake.before = lose
    with crm_of(fake) as crm:
        assert crm.set_up([SCORE]).made == (SCORE.name,)
    assert len(fake.fields["personFields"]) == 1


# Writing


def test_values_are_written_as_pipedrive_takes_them(fake: FakePipedrive) -> None:
    with crm_of(fake) as crm:
        crm.set_up((SCORE, SEGMENT, OPENED, OPTED, SEGMENTS))
    country = fake.add_field("Country", "varchar")
    number = str(person(fake, "Ann Lee", phones=[{"value": "1", "primary": True, "label": "work"}]))
    fake.sleep(60)
    (result,) = push(
        fake,
        change(
            "k", number, START,
            mailhouse_engagement_score=71.0, mailhouse_rfm_segment="At risk", mailhouse_is_opted_in=True,
            mailhouse_last_open_at="2031-02-01T23:30:00-05:00", mailhouse_segments="a;b", country="FR",
            last_name="Li", mobile_phone="+33", email="ann.li@example.com",
        ),
    )  # fmt: skip
    assert (result.status, result.external_id) == ("written", number)
    record = fake.records["persons"][1]
    assert result.updated_at == datetime.fromisoformat(record["update_time"])
    key = {
        one["field_name"].partition("(")[2].strip(")"): one["field_code"]
        for one in fake.fields["personFields"]
    }
    custom = record["custom_fields"]
    assert custom[key[SCORE.name]] == 71
    assert custom[key[SEGMENT.name]] == 101
    assert custom[key[OPENED.name]] == "2031-02-02"
    assert custom[key[SEGMENTS.name]] == "a;b"
    assert custom[country] == "FR"
    assert record["name"] == "Ann Li"
    assert record["emails"] == [{"value": "ann.li@example.com", "primary": True, "label": "work"}]
    assert record["phones"] == [
        {"value": "1", "primary": True, "label": "work"}, {"value": "+33", "primary": False, "label": "mobile"},
    ]  # fmt: skip
    # what reads the same is not written again
    fake.requests.clear()
    (again,) = push(
        fake, change("k", number, result.updated_at, mailhouse_rfm_segment="at risk", last_name="Li")
    )
    assert (again.status, again.updated_at) == ("written", result.updated_at)
    assert {method for method, _, _ in fake.requests} == {"GET"}
    (cleared,) = push(
        fake, change("k", number, None, mailhouse_segments=None, country="", email=None, phone=None)
    )
    assert cleared.status == "written"
    record = fake.records["persons"][1]
    assert (record["custom_fields"][country], record["custom_fields"][key[SEGMENTS.name]]) == (None, None)
    assert record["emails"] == []
    assert record["phones"] == [{"value": "+33", "primary": True, "label": "mobile"}]


def test_other_addresses_and_numbers_stay(fake: FakePipedrive) -> None:
    emails = [
        {"value": "a@example.com", "primary": True, "label": "work"},
        {"value": "b@example.com", "primary": False, "label": "home"},
    ]
    number = str(fake.put("persons", name="Ann", emails=emails))

    def meanwhile(path: str, method: str) -> None:
        # a colleague adds a number between the look-up of many and the change of this one
        if len(fake.requests) == 1:
            fake.sleep(5)
            fake.put("persons", number=1, phones=[{"value": "9", "primary": True, "label": "work"}])

    fake.before = meanwhile
    (result,) = push(fake, change("k", number, email="B@example.com", mobile_phone="8"))
    assert result.status == "written"
    assert fake.records["persons"][1]["emails"] == [
        {"value": "a@example.com", "primary": False, "label": "work"},
        {"value": "B@example.com", "primary": True, "label": "home"},
    ]
    assert [one["value"] for one in fake.records["persons"][1]["phones"]] == ["9", "8"]


def test_every_change_has_an_answer_of_its_own(fake: FakePipedrive) -> None:
    text = fake.add_field("Nickname", "varchar")
    fake.add_field("Level", "enum", ["Gold"])
    fake.add_field("Budget", "monetary")
    for name in ("Ann", "Ben", "Cem", "Dan", "Eva"):
        person(fake, name)
    fake.sleep(60)
    fake.put("persons", number=2, name="Benjamin")
    fake.delete("persons", 3)
    fake.sleep(60)
    results = push(
        fake,
        change("ok", "1", START, nickname="A"),
        change("twice", "1", START, nickname="AA"),
        change("conflict", "2", START, nickname="B"),
        change("gone", "3", START, nickname="C"),
        change("nobody", "99", START, nickname="C"),
        change("odd", "x1", START, nickname="C"),
        change("long", "4", START, nickname="D" * 256),
        change("option", "4", START, level="Silver"),
        change("number", "4", START, budget=3),
        change("unknown", "4", START, timezone="UTC"),
        change("own", "4", START, created_at="2031-01-01"),
        change("nameless", "4", START, first_name=None),
        change("no address", "", None, nickname="E"),
        change("bad", "5", START, nickname="\0"),
        change("last", "5", START, nickname="E"),
    )
    assert [result.key for result in results] == [
        "ok", "twice", "conflict", "gone", "nobody", "odd", "long", "option", "number", "unknown", "own", "nameless",
        "no address", "bad", "last",
    ]  # fmt: skip
    assert {result.key: result.status for result in results} == {
        "ok": "written", "twice": "written", "conflict": "conflict", "gone": "gone", "nobody": "gone", "odd": "gone",
        "long": "invalid", "option": "invalid", "number": "invalid", "unknown": "invalid", "own": "invalid",
        "nameless": "invalid", "no address": "invalid", "bad": "written", "last": "written",
    }  # fmt: skip
    reasons = {result.key: result.reason for result in results}
    assert "no option 'Silver'" in reasons["option"]
    assert "no field timezone: label a custom field so" in reasons["unknown"]
    # asked before, it says so; of what people have anyway nothing is asked
    fake.requests.clear()
    with crm_of(fake) as crm:
        assert crm.unwritable(["email", "first_name"]) == {}
        assert fake.requests == []
        assert crm.unwritable(["email", "timezone", "nickname"]) == {
            "timezone": "label a custom field so in Pipedrive"
        }
    assert fake.records["persons"][1]["custom_fields"][text] == "AA"
    assert fake.records["persons"][2]["custom_fields"] == {}


def test_a_hundred_are_looked_up_at_once(fake: FakePipedrive) -> None:
    fake.add_field("Nickname", "varchar")
    for index in range(250):
        fake.put("persons", name=f"P{index}")
    results = push(fake, *(change(str(index), str(index), nickname="N") for index in range(1, 251)))
    assert {result.status for result in results} == {"written"}
    assert len(fake.requests) == 250 + 3 + 1
    assert sum(fake.costs.values()) == 250 * 5 + 3 * 10 + 10


def test_unknown_people_are_found_by_address_or_made_once(fake: FakePipedrive) -> None:
    person(fake, "Ann")
    fake.sleep(60)
    changes = (
        change("found", email="ANN@example.com", last_name="Lee"),
        change("made", email="new@example.com", first_name="New", last_name="One"),
        change("same", email="New@example.com", phone="1"),
        change("unnamed", email="x@example.com"),
    )
    results = push(fake, *changes)
    assert [(result.status, result.external_id) for result in results] == [
        ("written", "1"), ("created", "2"), ("written", "2"), ("created", "3"),
    ]  # fmt: skip
    assert fake.records["persons"][2]["name"] == "New One"
    assert fake.records["persons"][3]["name"] == "x@example.com"
    # search does not know them yet; the process died before it stored who they are
    results = push(fake, *changes)
    assert [(result.status, result.external_id) for result in results] == [
        ("written", "1"), ("written", "2"), ("written", "2"), ("written", "3"),
    ]  # fmt: skip
    assert len(fake.alive("persons")) == 3


@pytest.mark.parametrize("failure", ["after", (503, {}, b""), (403, {"content-type": "text/html"}, SHIELD)])
@pytest.mark.parametrize("kind", ["contact", "task"])
def test_a_lost_answer_makes_no_second_record(fake: FakePipedrive, failure: Any, kind: Kind) -> None:
    person(fake, "Ann")
    fake.sleep(60)

    def lose(path: str, method: str) -> None:
        if method == "POST":
            fake.failures.append(failure)

    fake.before = lose
    one = change(email="new@example.com") if kind == "contact" else change(contact_id="1", subject="Call Ann")
    other = (
        change("other", "1", last_name="Lee") if kind == "contact" else change("other", contact_id="1", x=1)
    )
    path = "persons" if kind == "contact" else "activities"
    before = len(fake.alive(path))
    first, second = push(fake, one, other, kind=kind)
    assert first.status == ("created" if failure == "after" else "failed")
    assert second.status == ("written" if kind == "contact" else "invalid")
    fake.before = lambda path, method: None
    again, _ = push(fake, one, other, kind=kind)
    assert again.status == ("written" if failure == "after" else "created")
    assert len(fake.alive(path)) == before + 1


def test_trouble_on_the_way_leaves_the_rest_for_later(fake: FakePipedrive) -> None:
    fake.add_field("Nickname", "varchar")
    for index in range(5):
        fake.put("persons", name=f"P{index}")
    changes = [change(str(index), str(index), nickname="N") for index in range(1, 6)]
    fake.daily = 10 + 10 + 3 * 5
    assert [result.status for result in push(fake, *changes)] == ["written"] * 3 + ["failed"] * 2
    fake.costs.clear()
    fake.daily = 1
    with pytest.raises(CrmUnavailableError, match="daily budget"):
        push(fake, *changes)
    fake.daily = 10**6
    assert [result.status for result in push(fake, *changes)] == ["written"] * 5


def test_what_a_refusal_of_one_change_means(fake: FakePipedrive) -> None:
    def refuse(status: int, **said: str) -> Pushed:
        fake.before = lambda path, method: (
            fake.failures.append((status, {}, json.dumps({"success": False, **said}).encode()))
            if method != "GET"
            else None
        )
        (result,) = push(fake, change("k", str(person(fake, "Ann")), last_name="Lee"))
        return result

    assert refuse(400, error="never").status == "invalid"
    assert refuse(404, error="not found").status == "gone"
    assert refuse(403, error="limit", code="feature_capping_deals_limit").status == "failed"
    with pytest.raises(CrmRefusedError, match="refuses change of a person"):
        refuse(403, error="no permission")


def test_a_conflict_is_found_however_late_and_by_pipedrives_time(fake: FakePipedrive) -> None:
    number = str(person(fake, "Ann"))
    known = datetime.fromisoformat(fake.records["persons"][1]["update_time"])
    fake.sleep(5)
    fake.put("persons", number=1, name="Anna")
    (result,) = push(fake, change("k", number, known, last_name="Lee"))
    assert result.status == "conflict"
    assert result.updated_at == known + timedelta(seconds=5)
    assert fake.records["persons"][1]["name"] == "Anna"
    # a version known to the millisecond, as a deletion's is
    (result,) = push(
        fake, change("k", number, result.updated_at + timedelta(milliseconds=2), last_name="Lee")
    )
    assert result.status == "written"


# Tasks


def test_tasks_are_made_once(fake: FakePipedrive) -> None:
    number = str(person(fake, "Ann"))
    fake.sleep(60)
    task = change(
        "journey/welcome/1", contact_id=number, subject="Call Ann", note="She <clicked>\ntwice",
        due_at="2031-03-04T09:30:00Z", owner="SAM@example.com", is_done=False,
    )  # fmt: skip
    (result,) = push(fake, task, kind="task")
    assert (result.status, result.external_id) == ("created", "1")
    record = fake.records["activities"][1]
    assert record["participants"] == [{"person_id": 1, "primary": True}]
    assert (record["subject"], record["type"], record["owner_id"], record["done"]) == (
        "Call Ann",
        "task",
        7,
        False,
    )
    assert (record["due_date"], record["due_time"]) == ("2031-03-04", "09:30:00")
    assert record["note"].startswith("She &lt;clicked&gt;<br>twice<br><small>mailhouse:")
    # once more, as after a crash; Sam has worked on it meanwhile
    fake.put("activities", number=1, done=True)
    (again,) = push(fake, task, kind="task")
    assert (again.status, again.external_id) == ("written", "1")
    assert fake.records["activities"][1]["done"] is True
    assert len(fake.records["activities"]) == 1
    other, none, strange, nobody = push(
        fake,
        change("journey/welcome/2", email="ann@example.com", subject="Call Ann"),
        change("x", subject="Call nobody"),
        change("y", contact_id=number, subject="s", colour="red"),
        change("z", contact_id=number, subject="s", owner="Nobody"),
        kind="task",
    )
    assert (other.status, other.external_id) == ("created", "2")
    assert [one.status for one in (none, strange, nobody)] == ["invalid"] * 3
    assert "no active user 'Nobody'" in nobody.reason


def test_tasks_that_are_known_are_changed(fake: FakePipedrive) -> None:
    number = str(person(fake, "Ann"))
    (made,) = push(fake, change("k", contact_id=number, subject="Call"), kind="task")
    fake.sleep(60)
    done = change("k", made.external_id, made.updated_at, is_done=True)
    (result,) = push(fake, done, kind="task")
    assert result.status == "written"
    assert fake.records["activities"][1]["done"] is True
    assert "mailhouse:" in fake.records["activities"][1]["note"]
    fake.sleep(60)
    fake.put("activities", number=1, subject="Call soon")
    results = push(
        fake, change("k", "1", result.updated_at, is_done=False), change("k", "9", is_done=True), kind="task"
    )
    assert [one.status for one in results] == ["conflict", "gone"]


# The warehouse


@pytest.mark.slow
def test_people_are_loaded_as_they_come_and_go(
    fake: FakePipedrive, warehouse: Warehouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = CrmSettings.model_validate({"pipedrive_token": TOKEN, "home": tmp_path})
    key = fake.add_field("Favourite colour", "varchar")
    for index in range(1_100):
        person(fake, f"P{index}", custom_fields={key: "Red"})
        fake.sleep(0.2)
    fake.sleep(60)

    def read() -> LoadResult:
        with Pipedrive(chosen, transport=fake.transport, sleep=fake.sleep, clock=fake.clock) as crm:
            return load(warehouse, crm, "contact", settings=chosen)

    monkeypatch.setattr(pipedrive, "BATCH", 500)
    fake.daily = 25
    with pytest.raises(CrmUnavailableError):
        read()
    fake.daily = 10**6
    assert read().loaded == 1_100 - 500
    fake.put("persons", number=1, name="Anna")
    fake.delete("persons", 2)
    fake.merge(3, 4)
    fake.sleep(60)
    assert read().loaded == 4
    assert read().loaded == 0
    rows = warehouse.frame(
        """
        select external_id, argMax(is_deleted, updated_at) as is_deleted, argMax(toString(properties), updated_at) as p
        from raw.crm_records where source = 'pipedrive' and object = 'contact'
        group by external_id having toUInt32(external_id) < 6 order by external_id
        """
    ).rows()
    assert [(number, is_deleted) for number, is_deleted, _ in rows] == [
        ("1", False), ("2", True), ("3", True), ("4", False), ("5", False),
    ]  # fmt: skip
    assert json.loads(rows[2][2]) == {"merged_into": "4"}
    assert json.loads(rows[3][2])["emails"][1]["value"] == "p2@example.com"
    assert json.loads(rows[0][2])["favourite_colour"] == "Red"
