"""Decisions follow from what was read and written, and from nothing else: cases with known answers, in any order."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from crm.conflicts import CANDIDATES, CORRECTIONS, DECIDED, PUSHES, VERSIONS, Resolution, resolve
from crm.rules import Rule

START = datetime(2026, 3, 1, tzinfo=UTC)
NEWEST = Rule("city", "newest")
BOTH = {"north": ("city", "phone"), "south": ("city", "phone")}


def at(minutes: int) -> datetime:
    return START + timedelta(minutes=minutes)


def version(source: str, minutes: int, city: str = "", **more: object) -> dict[str, object]:
    return {
        "contact_id": 1, "source": source, "external_id": f"{source}1", "updated_at": at(minutes), "loaded_at": at(500),
        "is_deleted": False, "merged_into": "", "city": city, "phone": "", "email_opt_out": "", **more,
    }  # fmt: skip


def push(
    source: str, value: str, known: int, written: int | None, status: str = "written"
) -> dict[str, object]:
    return {
        "contact_id": 1, "source": source, "external_id": f"{source}1", "field": "city", "value": value,
        "known_at": at(known), "status": status, "record_at": None if written is None else at(written),
        "pushed_at": at(known),
    }  # fmt: skip


def decide(
    versions: list[dict[str, object]],
    pushes: list[dict[str, object]] | None = None,
    *rules: Rule,
    own: list[dict[str, object]] | None = None,
    decided: list[dict[str, object]] | None = None,
    corrections: list[dict[str, object]] | None = None,
) -> Resolution:
    columns = dict.fromkeys(("city", "phone", "email_opt_out"), pl.String)
    return resolve(
        rules or (NEWEST,),
        BOTH,
        pl.DataFrame(versions, schema={**VERSIONS, **columns}),
        pl.DataFrame(pushes or [], schema=dict(PUSHES)),
        pl.DataFrame(decided or [], schema=dict(DECIDED)),
        pl.DataFrame(own or [], schema=dict(CANDIDATES)),
        pl.DataFrame(corrections or [], schema=dict(CORRECTIONS)),
    )


def golden(found: Resolution) -> list[tuple[str, str]]:
    return found.golden.select("value", "source").rows()


def changes(found: Resolution) -> list[tuple[str, str, str]]:
    return found.changes.select("source", "old", "value").rows()


def test_the_last_writer_wins_and_the_loser_is_told() -> None:
    found = decide([version("north", 1, "York"), version("south", 2, "Bath")])
    assert golden(found) == [("Bath", "south")]
    assert changes(found) == [("north", "York", "Bath")]
    decision = found.decisions.row(0, named=True)
    assert decision["why"] == "south wrote it last, at 2026-03-01 00:02:00 UTC"
    assert json.loads(decision["losers"]) == [
        {"source": "north", "external_id": "north1", "value": "York", "at": "2026-03-01T00:01:00.000Z"}
    ]


def test_what_we_wrote_and_read_again_is_no_edit() -> None:
    before = [version("north", 1, "York"), version("south", 2, "Bath")]
    written = push("north", "Bath", 1, 5)
    # known by the answer alone, then read, then read with another field changed
    for versions in (before, [*before, version("north", 5, "Bath")], [*before, version("north", 9, "Bath")]):
        found = decide(versions, [written])
        assert golden(found) == [("Bath", "south")]
        assert changes(found) == []
    # somebody puts back what had been there: that is one
    assert golden(decide([*before, version("north", 9, "York")], [written])) == [("York", "north")]


def test_a_write_without_an_answer_is_known_by_its_value_once() -> None:
    before = [version("north", 1, "York"), version("south", 2, "Bath")]
    lost = push("north", "Bath", 1, None, "sent")
    assert changes(decide(before, [lost])) == [("north", "York", "Bath")]
    read = [*before, version("north", 5, "Bath")]
    assert golden(decide(read, [lost])) == [("Bath", "south")]
    # later somebody writes something else, and then that again
    again = [*read, version("north", 6, "Leeds"), version("north", 7, "Bath")]
    found = decide(again, [lost])
    assert found.golden.select("source", "at").row(0) == ("north", at(7))


def test_a_spelling_of_the_crms_own_is_left_as_it_is() -> None:
    phone = Rule("phone", "newest")
    versions = [version("north", 1, phone="+44 (7700) 900-123"), version("south", 2, phone="+447700900123")]
    found = decide(versions, None, phone)
    assert (changes(found), found.decisions.height) == ([], 0)
    shortened = [version("north", 1, "York"), version("south", 2, "Bath Spa"), version("north", 5, "Bath")]
    found = decide(shortened, [push("north", "Bath Spa", 1, 5)])
    assert (golden(found), changes(found)) == ([("Bath Spa", "south")], [])


def test_an_empty_value_replaces_none_unless_it_may() -> None:
    versions = [version("north", 1, "York"), version("south", 2, "York"), version("south", 3, "")]
    found = decide(versions)
    assert (golden(found), changes(found)) == ([("York", "south")], [("south", "", "York")])
    assert "empty" in found.decisions["why"][0]
    assert changes(decide(versions, None, Rule("city", "newest", (), keeps_filled=False))) == [
        ("north", "York", "")
    ]


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (Rule("city", "source", ("north",)), "York"),
        (Rule("city", "prefer", ("west", "north", "south")), "York"),
        (Rule("city", "prefer", ("west",)), "Bath"),
    ],
)
def test_a_source_that_is_preferred_wins_whatever_the_time(rule: Rule, value: str) -> None:
    found = decide([version("north", 1, "York"), version("south", 2, "Bath")], None, rule)
    assert found.golden["value"].to_list() == [value]


def test_a_clock_that_is_ahead_wins_nothing_beyond_the_moment_of_reading() -> None:
    ahead = version("north", 400, "York", loaded_at=at(10))
    assert golden(decide([ahead, version("south", 11, "Bath", loaded_at=at(12))])) == [("Bath", "south")]


def test_a_merged_record_counts_no_more_and_a_deleted_one_is_left_alone() -> None:
    other = version("north", 3, "Leeds", external_id="north2")
    merged = version("north", 4, "", external_id="north2", is_deleted=True, merged_into="north1")
    found = decide([version("north", 1, "York"), version("south", 2, "York"), other, merged])
    assert (golden(found)[0][0], changes(found)) == ("York", [])
    assert "merged" in found.decisions["why"][0]
    gone = version("north", 4, "", is_deleted=True)
    found = decide([version("north", 3, "York"), gone, version("south", 2, "Bath")])
    assert changes(found) == [("south", "Bath", "York")]


def test_what_a_crm_will_never_take_waits_until_the_record_changes() -> None:
    versions = [version("north", 1, "York"), version("south", 2, "Bath")]
    refused = push("north", "Bath", 1, None, "invalid")
    assert changes(decide(versions, [refused])) == []
    assert changes(decide([*versions, version("north", 3, "York")], [refused])) == [("north", "York", "Bath")]


def test_an_opt_out_is_lifted_where_it_was_made_or_by_a_later_consent() -> None:
    rule = Rule("email_opt_out", "stricter")
    versions = [version("north", 1, email_opt_out="true"), version("south", 2, email_opt_out="false")]
    agreed = {
        "contact_id": 1, "source": "mailhouse", "external_id": "", "field": "email_opt_out", "value": "false",
        "at": at(5),
    }  # fmt: skip
    assert golden(decide(versions, None, rule)) == [("true", "north")]
    assert golden(decide(versions, None, rule, own=[{**agreed, "at": at(0)}]))[0][0] == "true"
    assert golden(decide(versions, None, rule, own=[agreed]))[0][0] == "false"
    assert golden(decide([*versions, version("north", 6, email_opt_out="no")], None, rule))[0][0] == "false"


def test_the_order_of_rows_does_not_matter() -> None:
    dice = random.Random(5)
    rules = (NEWEST, Rule("phone", "prefer", ("south",)), Rule("email_opt_out", "stricter"))
    versions = [
        version(
            source, dice.randrange(6), dice.choice(["", "York", "Bath"]), phone=dice.choice(["", "1", "2"]),
            email_opt_out=dice.choice(["true", "false"]), external_id=f"{source}{dice.randrange(3)}",
            contact_id=dice.randrange(3), loaded_at=at(500 + number),
        )
        for number in range(60) for source in ("north", "south")
    ]  # fmt: skip
    # a record belongs to one contact
    owners = {one["external_id"]: one["contact_id"] for one in versions}
    versions = [{**one, "contact_id": owners[one["external_id"]]} for one in versions]
    pushes = [
        push("north", dice.choice(["York", "Bath"]), dice.randrange(6), dice.choice([None, 3, 4]))
        for _ in range(9)
    ]
    first = decide(versions, pushes, *rules)
    for _ in range(3):
        dice.shuffle(versions)
        dice.shuffle(pushes)
        again = decide(versions, pushes, *rules)
        assert again.decisions.equals(first.decisions)
        assert again.changes.equals(first.changes)
