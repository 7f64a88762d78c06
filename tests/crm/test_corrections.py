"""What was put right is a decision that holds until somebody says something else, and goes to every CRM."""

from __future__ import annotations

import json
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from test_conflicts import NEWEST, at, changes, golden, push, version
from test_conflicts import decide as decide_all

from crm.conflicts import DECIDED, Resolution
from crm.rules import Rule


def correction(source: str, minutes: int, value: str, wrong: str, field: str = "city") -> dict[str, object]:
    return {
        "contact_id": 1, "source": source, "external_id": f"{source}1", "field": field, "value": value, "wrong": wrong,
        "at": at(minutes), "updated_at": at(minutes),
    }  # fmt: skip


def decide(
    versions: list[dict[str, object]],
    corrections: list[dict[str, object]],
    *rules: Rule,
    pushes: list[dict[str, object]] | None = None,
    decided: list[dict[str, object]] | None = None,
) -> Resolution:
    return decide_all(versions, pushes, *rules, decided=decided, corrections=corrections)


def test_one_record_alone_is_put_right_where_it_comes_from() -> None:
    told = [version("north", 1, "York"), version("north", 9, "York", phone="1")]
    found = decide(told, [correction("north", 5, "Bath", "York")])
    assert golden(found) == [("Bath", "north")]
    assert changes(found) == [("north", "York", "Bath")]
    assert found.changes["known_at"].to_list() == [at(9)], "no more is known of the record than it told"
    (decision,) = found.decisions.rows(named=True)
    assert decision["rule"] == "rectified"
    assert (
        decision["why"]
        == "it was put right at 2026-03-01 00:05:00 UTC, and north has said nothing else since"
    )
    assert [one["value"] for one in json.loads(decision["losers"])] == ["York"]
    known = [{name: decision[name] for name in DECIDED}]
    again = decide(told, [correction("north", 5, "Bath", "York")], decided=known)
    assert again.decisions.is_empty() and changes(again) == changes(found)
    # it was written, and read again
    written = [push("north", "Bath", 9, 10)]
    told.append(version("north", 10, "Bath", phone="1"))
    assert changes(decide(told, [correction("north", 5, "Bath", "York")], pushes=written)) == []
    # and was put back there, by somebody who means it
    told.append(version("north", 12, "York", phone="1"))
    last = decide(told, [correction("north", 5, "Bath", "York")], pushes=written, decided=known)
    assert golden(last) == [("York", "north")]
    assert last.decisions["rule"].to_list() == ["newest"]


def test_it_outdoes_every_rule_and_goes_to_every_crm() -> None:
    told = [version("north", 1, "York"), version("south", 2, "Leeds"), version("north", 8, "York", phone="1")]
    both = [correction("north", 5, "Bath", "York"), correction("south", 5, "Bath", "Leeds")]
    for rule in (NEWEST, Rule("city", "source", ("north",)), Rule("city", "prefer", ("south", "north"))):
        found = decide(told, both, rule)
        assert {value for value, _ in golden(found)} == {"Bath"}
        assert changes(found) == [("north", "York", "Bath"), ("south", "Leeds", "Bath")]
    # what another source says since counts where its word counts
    told.append(version("south", 9, "Hull"))
    assert golden(decide(told, both)) == [("Hull", "south")]
    assert golden(decide(told, both, Rule("city", "source", ("north",)))) == [("Bath", "north")]


def test_a_value_that_was_taken_out_stays_out() -> None:
    told = [version("north", 1, "York"), version("north", 8, "York", phone="1")]
    found = decide(told, [correction("north", 5, "", "York")])
    assert golden(found) == [("", "north")]
    assert changes(found) == [("north", "York", "")]


def test_only_fields_that_have_a_rule_are_decided() -> None:
    found = decide([version("north", 1, "York", phone="1")], [correction("north", 5, "2", "1", "phone")])
    assert found.decisions.is_empty() and found.changes.is_empty()


@settings(max_examples=30)
@given(
    told=st.lists(st.sampled_from(["York", " york", "York ", "Hull", "Bath", ""]), min_size=1, max_size=8),
    place=st.integers(0, 8),
)
def test_it_holds_exactly_until_something_else_is_said(told: list[str], place: int) -> None:
    place = min(place, len(told))
    versions = [version("north", 2 * index, city) for index, city in enumerate(told, 1)]
    wrong = told[place - 1].strip() if place else ""
    found = decide(
        versions, [correction("north", 2 * place + 1, "Bath", wrong)], Rule("city", "newest", (), False)
    )
    expected, before = "Bath", wrong
    for city in (one.strip() for one in told[place:]):
        if city != before:
            expected = city
        before = city
    assert golden(found) == [(expected, "north")]
    shown = told[-1].strip()
    assert changes(found) == (
        [("north", told[-1], expected)] if shown != expected and expected == "Bath" else []
    )
    assert found.known["known_at"].to_list() == [at(0) + timedelta(minutes=2 * len(told))]
