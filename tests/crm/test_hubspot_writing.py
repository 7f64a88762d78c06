"""What is written to HubSpot arrives once, or is refused row by row; nobody's later change is overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hubspot_fake import TOKEN, FakeHubSpot
from hypothesis import given, settings
from hypothesis import strategies as st

from crm.base import (
    Change,
    CrmNotSupportedError,
    CrmRefusedError,
    CrmUnavailableError,
    CustomField,
    Pushed,
    Scalar,
)
from crm.hubspot import HubSpot
from crm.hubspot_contract import hubspot_zone, zone_of
from crm.settings import CrmSettings

START = datetime(2026, 1, 1, tzinfo=UTC)
FIELDS = (
    CustomField("mailhouse_score", "Score", "number", "How engaged"),
    CustomField("mailhouse_segment", "Segment", "choice", options=("loyal", "lost")),
    CustomField("mailhouse_opened_at", "Last open", "datetime"),
    CustomField("mailhouse_is_vip", "VIP", "boolean"),
    CustomField("mailhouse_segments", "Segments", "list"),
    CustomField("mailhouse_note", "Note", "text"),
)


class Setup:
    """A fake with three contacts and a client of it."""

    def __init__(self) -> None:
        self.fake = FakeHubSpot()
        for number in (1, 2, 3):
            self.fake.put("contacts", number, START, email=f"p{number}@example.com", firstname="Pat")
        settings = CrmSettings.model_validate({"hubspot_token": TOKEN})
        self.hubspot = HubSpot(settings, transport=self.fake.transport(), sleep=lambda _: None)

    def push(self, *changes: Change) -> list[Pushed]:
        self.fake.requests.clear()
        return self.hubspot.push("contact", changes)

    def contact(self, number: int) -> dict[str, str | None]:
        return self.fake.records["contacts"][number].properties

    def paths(self) -> list[str]:
        return [target.partition("2026-09/")[2] for _, target, _ in self.fake.requests]


@pytest.fixture
def hub() -> Iterator[Setup]:
    setup = Setup()
    yield setup
    setup.hubspot.close()


def change(key: Any, external_id: Any = "", known: datetime | None = None, **fields: Scalar) -> Change:
    return Change(str(key), str(external_id), fields, known)


def test_values_are_written_under_hubspots_names(hub: Setup) -> None:
    (pushed,) = hub.push(
        change(
            "a", 1, START, first_name="Ann", last_name=None, locale="en_GB", timezone="Europe/Berlin",
            lifecyclestage="Customer", birthday="1990-05-04T23:30:00+00:00", score=1.5,
        )
    )  # fmt: skip
    assert (pushed.key, pushed.status, pushed.external_id, pushed.reason) == ("a", "written", "1", "")
    assert pushed.updated_at == hub.fake.records["contacts"][1].at > START
    assert hub.contact(1) == {
        "email": "p1@example.com", "firstname": "Ann", "lastname": "", "hs_language": "en-gb",
        "hs_timezone": "europe_slash_berlin", "lifecyclestage": "customer", "birthday": "1990-05-04", "score": "1.5",
    }  # fmt: skip
    assert hub.paths() == ["contacts", "contacts/batch/read", "contacts/batch/update"]


def test_what_changed_meanwhile_is_a_conflict_and_stays(hub: Setup) -> None:
    later = START + timedelta(seconds=9)
    hub.fake.edit("contacts", 2, later, firstname="Theirs")
    results = hub.push(*(change(number, number, START, first_name="Ours") for number in (1, 2, 3)))
    assert [one.status for one in results] == ["written", "conflict", "written"]
    assert results[1].updated_at == later
    assert hub.contact(2)["firstname"] == "Theirs"
    # who says nothing of a version asks for none to be compared
    assert [one.status for one in hub.push(change(2, 2, first_name="Ours"))] == ["written"]
    assert hub.paths() == ["contacts/batch/update"]


@pytest.mark.parametrize("as_new", [0, 9])
def test_a_merged_record_is_found_under_its_new_id(hub: Setup, as_new: int) -> None:
    at = START + timedelta(hours=1)
    left = hub.fake.merge("contacts", 1, 2, at, as_new=as_new)
    results = hub.push(change("a", 2, at, first_name="Ann"), change("b", 2, START, first_name="Bea"))
    assert [(one.status, one.external_id) for one in results] == [
        ("written", str(left)),
        ("conflict", str(left)),
    ]
    assert hub.contact(left)["firstname"] == "Ann"


def test_what_is_gone_is_told(hub: Setup) -> None:
    hub.fake.archive("contacts", 1, START)
    hub.fake.erase("contacts", 2)
    changes = [change(number, number, START, first_name="X") for number in (1, 2, 3, 77)]
    assert [one.status for one in hub.push(*changes)] == ["gone", "gone", "written", "gone"]
    unread = [change(number, number, first_name="Y") for number in (1, 2, 3, 77)]
    for hub.fake.tells_rows in (True, False):
        assert [one.status for one in hub.push(*unread)] == ["gone", "gone", "written", "gone"]


def test_an_address_makes_one_contact_however_often_it_is_pushed(hub: Setup) -> None:
    new = change("n", email="New@Example.com", first_name="Neo")
    known = change("k", email="P1@example.com", first_name="Kay")
    first, second = hub.push(new, known)
    assert (first.status, first.external_id, second.status, second.external_id) == (
        "created",
        "4",
        "written",
        "1",
    )
    again = hub.push(new, change("m", email="new@example.com", first_name="Later"))
    assert [(one.status, one.external_id) for one in again] == [("written", "4"), ("written", "4")]
    assert hub.contact(4) == {"email": "new@example.com", "firstname": "Later"}
    (nobody,) = hub.push(change("x", first_name="Nobody"))
    assert nobody.status == "invalid"


@pytest.mark.parametrize("tells_rows", [True, False])
def test_a_row_that_hubspot_refuses_does_not_stop_the_others(hub: Setup, tells_rows: bool) -> None:
    hub.fake.tells_rows = tells_rows
    for number in range(4, 151):
        hub.fake.put("contacts", number, START, email=f"p{number}@example.com")
    # an address that another contact has
    changes = [
        change(number, number, email="p1@example.com" if number in (7, 120) else f"q{number}@example.com")
        for number in range(1, 151)
    ]
    changes[0] = change(1, 1, first_name="Kept")
    results = hub.push(*changes)
    assert [one.key for one in results if one.status == "invalid"] == ["7", "120"]
    assert sum(one.status == "written" for one in results) == 148
    assert "already exists" in results[6].reason
    assert hub.contact(120)["email"] == "p120@example.com"
    if tells_rows:
        assert hub.paths() == ["contacts", "contacts/batch/update", "contacts/batch/update"]


def test_values_that_hubspot_never_takes_are_not_sent(hub: Setup) -> None:
    wrong: list[dict[str, Scalar]] = [
        {"lifecyclestage": "Emperor"}, {"score": "many"}, {"score": float("inf")}, {"birthday": "soon"},
        {"timezone": "Mars/Olympus"}, {"locale": "xx"},
    ]  # fmt: skip
    results = hub.push(*(change(index, 1, **fields) for index, fields in enumerate(wrong)))
    assert [one.status for one in results] == ["invalid"] * len(wrong)
    assert hub.paths() == ["contacts"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mailhouse_score": 1}, "no property mailhouse_score"),
        ({"lastmodifieddate": "2026-01-01"}, "sets lastmodifieddate itself"),
        ({"push_token": "x"}, "take no push_token"),
    ],
)
def test_fields_that_cannot_be_written_stop_everything(
    hub: Setup, fields: dict[str, Scalar], message: str
) -> None:
    with pytest.raises(CrmRefusedError, match=message):
        hub.push(change("a", 1, first_name="X"), change("b", 1, **fields))
    assert hub.contact(1)["firstname"] == "Pat"


def test_silence_half_way_leaves_the_rest_to_be_tried_again(hub: Setup) -> None:
    changes = [change(number, email=f"n{number}@example.com") for number in range(250)]

    def fall_silent(path: str) -> None:
        if path.endswith("upsert") and len(hub.fake.records["contacts"]) > 100:
            hub.fake.failures.extend([(503, {}, b"")] * 7)

    hub.fake.before = fall_silent
    results = hub.push(*changes)
    assert [one.status for one in results] == ["created"] * 100 + ["failed"] * 150
    hub.fake.before = lambda path: None
    hub.fake.failures.clear()
    assert {one.status for one in hub.push(*changes)} == {"written", "created"}
    assert len(hub.fake.records["contacts"]) == 253
    hub.fake.failures.extend([(503, {}, b"")] * 7)
    with pytest.raises(CrmUnavailableError):
        hub.push(*changes)


def test_what_is_written_and_not_answered_is_written_to_the_same_effect(hub: Setup) -> None:
    lost = iter([True])

    def answer(method: str, target: str, token: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        result = FakeHubSpot.answer(hub.fake, method, target, token, body)
        return (0, {}, b"") if target.endswith("upsert") and next(lost, False) else result

    hub.fake.answer = answer
    (pushed,) = hub.push(change("n", email="new@example.com"))
    # the second attempt finds what the first one made
    assert (pushed.status, pushed.external_id) == ("written", "4")
    assert len(hub.fake.records["contacts"]) == 4


def test_set_up_makes_what_is_missing_and_is_safe_to_repeat(hub: Setup) -> None:
    made = hub.hubspot.set_up(FIELDS)
    names = tuple(one.name for one in FIELDS)
    assert (made.made, made.kept) == ((*names, "mailhouse_key"), ())
    assert hub.fake.properties["tasks"]["mailhouse_key"]["hasUniqueValue"] is True
    again = hub.hubspot.set_up(FIELDS)
    assert (again.made, again.kept) == ((), (*names, "mailhouse_key"))
    (pushed,) = hub.push(
        change(
            "a", 1, mailhouse_score=0.25, mailhouse_segment="loyal", mailhouse_is_vip=True,
            mailhouse_opened_at="2026-03-01T12:00:00+02:00", mailhouse_segments="a;b", mailhouse_note=None,
        )
    )  # fmt: skip
    assert pushed.status == "written"
    written = {name: value for name, value in hub.contact(1).items() if name.startswith("mailhouse")}
    assert written == {
        "mailhouse_score": "0.25", "mailhouse_segment": "loyal", "mailhouse_is_vip": "true",
        "mailhouse_opened_at": "2026-03-01T10:00:00.000Z", "mailhouse_segments": "a;b", "mailhouse_note": "",
    }  # fmt: skip


def test_options_are_added_and_none_is_lost(hub: Setup) -> None:
    hub.hubspot.set_up(FIELDS)
    hub.hubspot.set_up([CustomField("mailhouse_segment", "Segment", "choice", options=("loyal", "new"))])
    options = hub.fake.properties["contacts"]["mailhouse_segment"]["options"]
    assert [one["value"] for one in options] == ["loyal", "lost", "new"]
    assert hub.push(change("a", 1, mailhouse_segment="new"))[0].status == "written"


def test_a_property_of_another_type_is_refused_before_any_is_made(hub: Setup) -> None:
    wrong = CustomField("score", "Score", "text")
    with pytest.raises(CrmRefusedError, match="score already, of type number instead of string"):
        hub.hubspot.set_up([*FIELDS, wrong])
    assert "mailhouse_score" not in hub.fake.properties["contacts"]


def test_a_task_is_made_once_and_tied_to_its_contact(hub: Setup) -> None:
    task = change("t1", subject="Call <Ann>", note="a < b\nc", due_at="2026-02-01T09:00:00Z", contact_id="2")
    with pytest.raises(CrmRefusedError, match="no property mailhouse_key"):
        hub.hubspot.push("task", [task])
    hub.hubspot.set_up([])
    hub.fake.owners = [{"id": "51", "email": "rep@example.com", "firstName": "Rae", "lastName": "Pole"}]
    by_address = change(
        "t2", email="P3@example.com", subject="Write", due_at="2026-02-01", type="email", owner="Rae Pole"
    )
    for status in ("created", "written"):
        results = hub.hubspot.push("task", [task, by_address])
        assert [one.status for one in results] == [status] * 2
    assert len(hub.fake.records["tasks"]) == 2
    first, second = (hub.fake.records["tasks"][number].properties for number in (1, 2))
    assert first == {
        "hs_task_subject": "Call <Ann>", "hs_task_body": "a &lt; b<br>c", "hs_timestamp": "2026-02-01T09:00:00.000Z",
        "hs_task_status": "NOT_STARTED", "hs_task_type": "TODO", "mailhouse_key": "t1",
    }  # fmt: skip
    assert (second["hs_task_type"], second["hubspot_owner_id"]) == ("EMAIL", "51")
    assert hub.fake.associations == {("tasks", "1", "contacts", "2"), ("tasks", "2", "contacts", "3")}
    (done,) = hub.hubspot.push("task", [change("t1", "1", is_done=True)])
    assert done.status == "written"
    assert hub.fake.records["tasks"][1].properties["hs_task_status"] == "COMPLETED"


def test_tasks_that_cannot_be_are_told_one_by_one(hub: Setup) -> None:
    hub.hubspot.set_up([])
    due: dict[str, Scalar] = {"subject": "X", "due_at": "2026-02-01"}
    results = hub.hubspot.push(
        "task",
        [
            change("a", due_at="2026-02-01"), change("b", subject="X"), change("c", **due, owner="nobody"),
            change("d", **due, email="nobody@example.com"), change("e", **due, colour="red"),
            change("f", **due, contact_id="99"), change("g", **due),
        ],
    )  # fmt: skip
    assert [one.status for one in results] == ["invalid"] * 5 + ["failed", "created"]
    assert [one.reason.partition(":")[0] for one in results] == [
        "a task needs subject", "a task needs due_at",
        "HubSpot has no user 'nobody'; write the address or the name of one",
        "HubSpot has no contact with that address", "a task in HubSpot has no field colour",
        "made, but not tied to its contact", "",
    ]  # fmt: skip


def test_companies_are_not_written(hub: Setup) -> None:
    with pytest.raises(CrmNotSupportedError, match="cannot write a company"):
        hub.hubspot.push("company", [])


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 2, 3, 77]), st.sampled_from(["A", "B", None]), st.booleans(), st.booleans()
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_every_change_has_its_result_and_the_last_one_stays(
    given_changes: list[tuple[int, str | None, bool, bool]], tells_rows: bool
) -> None:
    hub = Setup()
    hub.fake.tells_rows = tells_rows
    changes = [
        change(index, number, START if has_version else None, first_name=value, score="many" if is_bad else 1)
        for index, (number, value, is_bad, has_version) in enumerate(given_changes)
    ]
    results = hub.push(*changes)
    assert [one.key for one in results] == [one.key for one in changes]
    expected: dict[int, str | None] = {1: "Pat", 2: "Pat", 3: "Pat"}
    for one, (number, value, is_bad, _) in zip(results, given_changes, strict=True):
        assert one.status == ("invalid" if is_bad else "gone" if number == 77 else "written")
        if one.status == "written":
            expected[number] = value or ""
    assert {number: hub.contact(number)["firstname"] for number in expected} == expected


def test_time_zones_go_both_ways() -> None:
    for name in (
        "Europe/Berlin",
        "America/Port-au-Prince",
        "America/Argentina/Buenos_Aires",
        "Etc/GMT+5",
        "UTC",
    ):
        assert zone_of(hubspot_zone(name)) == name
    assert hubspot_zone("America/New_York") == "america_slash_new_york"
    assert zone_of("never_slash_land") == "never_slash_land"
