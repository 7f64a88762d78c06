"""Journeys as files: what is understood, what is refused and where, and how they are drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from campaigns.journey_drawing import layers, mermaid, page, svg
from campaigns.journey_simulation import Person, funnel, made_up, walk_through
from campaigns.journeys import (
    UntilSpec,
    check_journeys,
    load_journey,
    load_journeys,
    read_definition,
)
from campaigns.specs import QuietHours
from warehouse.errors import InputError
from warehouse.settings import PROJECT_ROOT

CONTENT = PROJECT_ROOT / "content"
HEAD = "journey: j\nentry: {segment: s}\n"
SEND = "send: {template: t, category: marketing, subject: Hi}"


def journey(folder: Path, text: str):
    (folder / "j.yaml").write_text(text)
    return load_journey(folder / "j.yaml")


@pytest.mark.parametrize(
    ("winner", "said"),
    [
        ("{to: remainder}", "a split has no remainder"),
        ("{after: 20d}", "decide: fixed decides at the end alone"),
        ("{after: 20d}, decide: anytime", "winner.after is later than end"),
        ("{to: arrivals}", ""),
    ],
)
def test_a_split_may_choose_its_winner(tmp_path: Path, winner: str, said: str) -> None:
    text = (
        HEAD
        + f"""steps:
  - id: a
    split: [{{name: x, weight: 1}}, {{name: y, weight: 1}}]
    experiment: {{end: 10d, winner: {winner}}}
"""
    )
    if said:
        with pytest.raises(InputError, match=said):
            journey(tmp_path, text)
        return
    (placed,) = journey(tmp_path, text).experiments()
    assert placed.measures.earliest == timedelta(days=10)
    assert placed.others.startswith("Whoever comes to the split")


def test_lists_of_steps_are_a_graph(tmp_path: Path) -> None:
    spec = journey(
        tmp_path,
        HEAD
        + f"""steps:
  - id: a
    branch:
      - when: orders_count > 1
        then:
          - id: b
            split:
              - {{name: x, weight: 1, then: [{{id: c, {SEND}}}]}}
              - {{name: y, weight: 3}}
      - when: country = 'France'
        then: [{{go: e}}]
    else: [{{exit: over}}]
  - id: d
    wait_for: {{event: clicked, message: c, within: 2d}}
    then: []
    else: [{{id: pause, wait: 1d}}, {{go: a}}]
  - id: e
    wait: 1d
""",
    )
    ways = {key: [(edge.label, edge.target) for edge in node.edges] for key, node in spec.nodes.items()}
    assert ways == {
        "a": [("way 1", "b"), ("way 2", "e"), ("else", "exit_1_else_1")],
        "b": [("x", "c"), ("y", "d")],
        "c": [("sent", "d")],
        "exit_1_else_1": [("exit", "")],
        "d": [("happened", "e"), ("timed out", "pause")],
        "pause": [("waited", "a")],
        "e": [("waited", "")],
    }
    assert spec.first == "a"
    assert spec.nodes["c"].variant == ("b", "x") and spec.nodes["d"].variant is None
    assert spec.repeated == {"a", "b", "c", "d", "pause"}
    again = read_definition(spec.definition)
    assert again.version == spec.version and again.nodes == spec.nodes


def test_the_version_is_of_what_it_does(tmp_path: Path) -> None:
    text = HEAD + "steps: [{id: a, wait: 24h}]\n"
    version = journey(tmp_path, text).version
    same = "# a note\n" + text.replace("24h", "1d") + "description: for colleagues\nreentry: never\n"
    assert journey(tmp_path, same).version == version
    assert journey(tmp_path, text.replace("24h", "25h")).version != version


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: [{id: a, wait: 1d}, {go: b}]", "3: steps[2].go: there is no step 'b' in this journey"),
        ("steps: [{id: a, wait: 1d}, {id: a, wait: 2d}]", "3: steps[2]: the id a is taken, by steps[1]"),
        ("steps:\n  - {exit: done}\n  - {id: b, wait: 1d}", "5: steps[2]: nobody can come to b"),
        ("steps: [{id: a, tag: {add: [x]}}, {go: a}]", "the way a > a goes round without a wait"),
        (
            "steps: [{id: a, wait_for: {where: orders_count > 1, within: 1d}}, {go: a}]",
            "the way a > a goes round without a wait",
        ),
        ("steps: [{id: a, until: {time: '09:00'}}, {go: a}]", "the way a > a goes round without a wait"),
        ("steps: [{wait: 1d}]", "steps[1] needs an id. Write one, such as id: wait_1"),
        ("steps: [{id: a}]", "steps[1] does nothing. Write one of send, wait"),
        ("steps: [{id: a, wait: 1d, exit: x}]", "steps[1] does 2 things (wait, exit)"),
        ("steps: [{id: a, wait: 1d, then: [{exit: x}]}]", "then has no meaning with wait"),
        ("steps: [{id: a, wiat: 1d}]", "Did you mean wait?"),
        ("steps: [{id: a, wait: soon}]", "is no duration"),
        ("steps: [{id: a, split: [{name: x, weight: 1}]}]", "split needs two variants or more"),
        (
            "steps: [{id: a, branch: [{when: orders >, then: []}]}]",
            "steps[1].branch[1].when, character 9: it ends here",
        ),
        ("steps: [{id: a, branch: [{when: event.x > 1, then: []}]}]", "event. has no place in a condition"),
        (
            "steps:\n  - id: a\n    branch:\n      - when: |\n          x > 1\n          and y >\n        then: []",
            ":8:",
        ),
        ("steps: [{id: a, wait_for: {within: 1d}}]", "waits for nothing"),
        ("steps: [{id: a, wait_for: {event: opened, message: m, within: 1d}}]", "there is no send step 'm'"),
        ("reentry: sometimes\nsteps: [{id: a, wait: 1d}]", "cannot be 'sometimes'"),
        ("goal: {event: Bought}\nsteps: [{id: a, wait: 1d}]", "is no event type"),
        ("steps: [{id: a, until: {time: 9am}}]", "is no time"),
        ("steps: []", "steps"),
    ],
)
def test_mistakes_are_named_with_place_and_remedy(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as error:
        journey(tmp_path, HEAD + text + "\n")
    assert said in f"{error.value.message} {error.value.fix}"
    assert "j.yaml:" in error.value.message


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{}", "needs a way in"),
        ("{segment: s, event: a.b}", "has two ways in"),
        ("{event: a.b, schedule: {cron: '0 9 * * *'}}", "has two ways in"),
        ("{requests: true, existing: true}", "existing needs a segment"),
    ],
)
def test_ways_in_are_one(tmp_path: Path, entry: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        journey(tmp_path, f"journey: j\nentry: {entry}\nsteps: [{{id: a, wait: 1d}}]\n")


def test_what_other_files_do_not_have_is_named(tmp_path: Path) -> None:
    text = (
        f"journey: j\nentry: {{segment: champion, where: order_count > 1}}\nsteps:\n  - id: a\n    {SEND}\n"
        "  - id: b\n    tag: {add: [council]}\n  - id: c\n"
        "    send: {channel: sms, provider: smtp, template: t, category: transactional, subject: Hi}\n"
    )
    spec = journey(tmp_path, text)
    with pytest.raises(InputError) as error:
        check_journeys(
            {"j": spec}, ["hello"], ["champions"], ["orders_count"], lists=["council"], provider="maildir"
        )
    said = str(error.value)
    assert (
        "j.yaml:2: entry.segment: there is no segment 'champion'" in said
        and "Did you mean champions?" in said
    )
    assert "j.yaml:5: steps[1].send.template: there is no template 't'" in said
    assert "order_count is no column" in said and "Did you mean orders_count?" in said
    assert "the list council is the file content/lists/council.csv" in said
    assert "Provider smtp sends email, not sms" in said


def test_shipped_journeys_load_draw_and_run(tmp_path: Path) -> None:
    specs = load_journeys(CONTENT)
    assert specs
    templates = [path.stem for path in (CONTENT / "templates").glob("[!_]*.mjml")]
    segments = [path.stem for path in (PROJECT_ROOT / "dbt_project" / "models" / "segments").glob("*.sql")]
    lists = [path.stem for path in (CONTENT / "lists").glob("*.csv")]
    check_journeys(specs, templates, segments, lists=lists, provider="maildir")
    start = datetime(2026, 3, 2, 10, tzinfo=UTC)
    for spec in specs.values():
        people = made_up(spec, 300, start)
        steps, endings = funnel(
            spec, [walk_through(spec, one, start, start + timedelta(days=400)) for one in people]
        )
        assert sum(endings.values()) == 300 and "under way" not in endings
        assert all(step.arrivals for step in steps)


def test_drawings_hold_every_step_once_and_are_well_formed(tmp_path: Path) -> None:
    spec = load_journeys(CONTENT)["first_order"]
    assert sorted(key for row in layers(spec) for key in row) == sorted(spec.nodes)
    text = mermaid(spec, {"looked": 1234})
    assert text.startswith("flowchart TD\n") and "1,234 here" in text
    assert text.count("-->") == 1 + sum(len(node.edges) for node in spec.nodes.values())
    picture = ElementTree.fromstring(svg(spec, {"looked": 1234}))
    boxes = picture.findall("{http://www.w3.org/2000/svg}g")
    assert len(boxes) == len(spec.nodes) + 2
    assert "<svg" in page(spec)
    odd = journey(tmp_path, HEAD + "steps: [{id: end, exit: \"<b> & 'so'\"}]\n")
    ElementTree.fromstring(svg(odd))
    assert "#lt;b#gt; #38;" in mermaid(odd)


def test_clock_times_are_found_across_changes_of_the_clock() -> None:
    new_york, london = ZoneInfo("America/New_York"), ZoneInfo("Europe/London")
    saturday = datetime(2026, 3, 7, 20, 0, tzinfo=UTC)
    assert UntilSpec(time="09:00").following(saturday, new_york) == datetime(2026, 3, 8, 13, 0, tzinfo=UTC)
    assert UntilSpec(time="02:30").following(saturday, new_york) == datetime(2026, 3, 8, 7, 30, tzinfo=UTC)
    assert UntilSpec(weekdays=["sat"]).following(saturday, london) == saturday
    assert UntilSpec(weekdays=["mon"]).following(saturday, london) == datetime(2026, 3, 9, 0, 0, tzinfo=UTC)
    hours = QuietHours(after="21:00", before="08:00")
    night = datetime(2026, 6, 1, 23, 0, tzinfo=UTC)
    assert hours.end(night, "Europe/London") == datetime(2026, 6, 2, 7, 0, tzinfo=UTC)
    assert hours.end(saturday, "Europe/London") == saturday


def test_a_walk_waits_out_what_nobody_does(tmp_path: Path) -> None:
    spec = journey(
        tmp_path, HEAD + f"steps: [{{id: a, {SEND}}}, {{id: b, wait_for: {{event: x.y, within: 2d}}}}]\n"
    )
    start = datetime(2026, 3, 2, 10, tzinfo=UTC)
    walk = walk_through(spec, Person(1), start, start + timedelta(days=9))
    assert [(move.outcome, move.step) for move in walk.moves] == [
        ("entered", "a"),
        ("sent", "b"),
        ("timed out", ""),
    ]
    assert walk.moves[-1].at == start + timedelta(days=2)
