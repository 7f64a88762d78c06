"""Random journeys and histories: the SQL tick takes everybody the way that plain Python says."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from test_journey_ticks import MAIL, START, Bench, bench, day

from campaigns.journey_simulation import Person, Walk, listeners_of
from campaigns.journeys import JourneySpec
from warehouse.errors import InputError

__all__ = ["bench"]

ZONES = ("", "America/New_York", "Asia/Kolkata", "Pacific/Auckland")
CONDITIONS = ("orders_count % 2 = 0", "orders_count % 3 = 0", "country = 'Spain'")
EVENTS = ("order.placed", "page.viewed")


@st.composite
def step_lists(draw: st.DrawFn, ids: list[str], depth: int = 0) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(0 if depth else 1, 3))):
        kinds = ["send", "wait", "until", "tag"] + (
            ["branch", "split", "wait_for", "wait_for"] if depth < 2 else []
        )
        kind = draw(st.sampled_from(kinds))
        ids.append(f"s{len(ids)}")
        step: dict[str, Any] = {"id": ids[-1]}
        inner = step_lists(ids, depth + 1)
        match kind:
            case "send":
                step["send"] = MAIL
            case "wait":
                step["wait"] = draw(st.sampled_from(("6h", "1d", "36h")))
            case "until":
                step["wait"] = "2h"
                step["until"] = draw(st.sampled_from(({"time": "09:30"}, {"weekdays": ["wed", "sat"]},
                                                      {"time": "22:00", "weekdays": ["tue"]})))  # fmt: skip
            case "tag":
                step["tag"] = {"add": ["seen"]}
            case "branch":
                step["branch"] = [{"when": draw(st.sampled_from(CONDITIONS)), "then": draw(inner)}]
                if draw(st.booleans()):
                    step["else"] = draw(inner)
            case "split":
                step["split"] = [
                    {"name": "a", "weight": 1, "then": draw(inner)}, {"name": "b", "weight": 2, "then": draw(inner)},
                ]  # fmt: skip
            case _:
                waited: dict[str, Any] = {"within": draw(st.sampled_from(("12h", "2d")))}
                if draw(st.integers(0, 3)):
                    waited["event"] = draw(st.sampled_from(EVENTS))
                    if draw(st.booleans()):
                        waited["where"] = "event.value > 5"
                else:
                    waited["where"] = draw(st.sampled_from(CONDITIONS))
                step["wait_for"] = waited
                step["then"], step["else"] = draw(inner), draw(inner)
        steps.append(step)
        if depth and draw(st.integers(0, 5)) == 0:
            steps.append({"exit": "enough"})
            break
    return steps


@st.composite
def journeys(draw: st.DrawFn) -> dict[str, Any]:
    ids: list[str] = []
    content: dict[str, Any] = {"entry": {"segment": "at_risk"}, "steps": draw(step_lists(ids))}
    if draw(st.booleans()):
        content["quiet_hours"] = {"after": "21:00", "before": "08:00"}
    if draw(st.booleans()):
        content["goal"] = {"event": "order.placed", "where": "event.value > 8"}
        if draw(st.booleans()):
            content["goal"]["within"] = "3d"
    if draw(st.booleans()):
        content["exit"] = [{"event": "page.viewed", "where": "event.value = 1"}]
    if draw(st.integers(0, 3)) == 0:
        content.setdefault("exit", []).append({"where": "country = 'Spain'"})
    return content


happenings = st.lists(
    st.tuples(st.integers(1, 8), st.sampled_from(EVENTS), st.integers(0, 10), st.integers(1, 14 * 24)),
    max_size=25,
)


def _fits(where: str | None, value: int) -> bool:
    return {
        None: True,
        "event.value > 5": value > 5,
        "event.value > 8": value > 8,
        "event.value = 1": value == 1,
    }[where]


def _people(spec: JourneySpec, events: list[tuple[int, str, int, int]]) -> list[Person]:
    made: list[Person] = []
    for contact in range(1, 9):
        truths = (contact % 2 == 0, contact % 3 == 0, contact > 6)
        holds = frozenset(text for text, is_true in zip(CONDITIONS, truths, strict=True) if is_true)
        heard = {
            listening: sorted(
                START + timedelta(hours=hours, minutes=7)
                for who, type_, value, hours in events
                if who == contact and type_ == event and _fits(where, value)
            )
            for listening, (event, _, where) in listeners_of(spec).items()
        }
        made.append(Person(contact, holds, heard, ZONES[contact % 4]))
    return made


def _compare(
    bench: Bench, content: dict[str, Any], events: list[tuple[int, str, int, int]], gaps: list[int]
) -> None:
    warehouse = bench.warehouse
    for table in ("journey_moves", "journey_ticks", "journey_states", "journey_signals", "journey_cursors"):
        warehouse.execute(f"truncate table campaigns.{table}")
    for table in (
        "marts.events",
        "marts.contact_profiles",
        "marts.segment_changes",
        "segments.at_risk",
        "raw.messages",
    ):
        warehouse.execute(f"truncate table {table}")
    bench.sent.clear()
    try:
        spec = bench.write(**content)
    except InputError:
        # where every way ends before it, a step that nobody can come to is rightly refused
        reject()
    people = _people(spec, events)
    for person in people:
        country = "Spain" if person.contact_id > 6 else "France"
        bench.people(person.contact_id, zone=person.timezone or None, country=country)
    bench.tick(day(0))
    # all in one go: what lets them in happens before the second tick
    bench.enter(day(0.01), *(person.contact_id for person in people))
    now = day(0.02)
    bench.tick(now)
    walks = {person.contact_id: Walk(spec, person, now) for person in people}
    hour = 0
    for gap in gaps:
        last, hour = hour, hour + gap
        rows = [one for one in events if last <= one[3] < hour]
        for who, type_, value, hours in rows:
            bench.event(type_, who, START + timedelta(hours=hours, minutes=7), value=value)
        now = START + timedelta(hours=hour)
        bench.tick(now)
        for walk in walks.values():
            walk.tick(now)
    rows = warehouse.frame(
        """
        select contact_id, previous_step, toString(outcome) as outcome, toString(step) as step,
            toString(ending) as ending, due_at
        from campaigns.journey_steps order by contact_id, sequence
        """
    )
    got: dict[int, list[tuple[object, ...]]] = {contact: [] for contact in walks}
    for contact, *rest in rows.iter_rows():
        got[contact].append(tuple(rest))
    for contact, walk in walks.items():
        wanted = [(one.previous_step, one.outcome, one.step, one.ending, one.due_at) for one in walk.moves]
        assert got[contact] == wanted, json.dumps(content)


GAPS = st.lists(st.integers(1, 60), min_size=2, max_size=8)


@pytest.mark.slow
@settings(max_examples=12)
@given(content=journeys(), events=happenings, gaps=GAPS)
def test_the_tick_takes_everybody_where_the_model_says(
    bench: Bench, content: dict[str, Any], events: list[tuple[int, str, int, int]], gaps: list[int]
) -> None:
    _compare(bench, content, events, gaps)


@pytest.mark.slow
def test_people_of_the_past_are_taken_from_what_happened(bench: Bench) -> None:
    from campaigns.journey_simulation import funnel, walk_through
    from campaigns.journey_trials import past_entrants, past_people

    spec = bench.write(
        entry={"segment": "at_risk", "where": "country = 'France'"},
        goal={"event": "order.placed", "where": "event.value > 5 and orders_count < 99"},
        steps=[
            {"id": "wait", "wait": "1d"},
            {"id": "rich", "branch": [{"when": "orders_count > 1", "then": [{"exit": "rich"}]}]},
            {"id": "seen", "wait_for": {"event": "page.viewed", "within": "3d"}},
        ],
    )
    bench.people(1, 2, 3)
    bench.people(4, country="Spain")
    with pytest.raises(InputError, match="Nobody would have come"):
        past_entrants(bench.warehouse, spec, day(0), 10)
    bench.enter(day(1), 1, 2, 3, 4)
    bench.event("page.viewed", 1, day(3))
    bench.event("order.placed", 2, day(1.5), value=9)
    bench.event("order.placed", 3, day(1.5), value=1)
    entrants = past_entrants(bench.warehouse, spec, day(0), 10)
    entered = dict(entrants.iter_rows())
    assert entered == {1: day(1), 2: day(1), 3: day(1)}
    people = past_people(bench.warehouse, spec, entrants, day(0))
    walks = [walk_through(spec, one, entered[one.contact_id], day(30)) for one in people]
    steps, endings = funnel(spec, walks)
    assert endings == {"finished": 1, "goal": 1, "exit": 1}
    assert [(step.step, step.arrivals) for step in steps] == [
        ("wait", 3), ("rich", 2), ("exit_2_branch_1_then_1", 1), ("seen", 1),
    ]  # fmt: skip
    # an event lets people in by itself
    spec = bench.write(
        entry={"event": "page.viewed", "where": "orders_count = 1"}, steps=[{"id": "a", "wait": "1d"}]
    )
    assert past_entrants(bench.warehouse, spec, day(0), 10).rows() == [(1, day(3))]
