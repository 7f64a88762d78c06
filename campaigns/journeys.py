"""Journeys as marketers write them: one YAML file each in `content/journeys/`.

A journey is a list of steps, read from top to bottom. A step that decides (`branch`, `split`, `wait_for`) holds the
lists that its ways go through; where such a list ends, the way goes on with the step after the deciding one, unless
`exit` ends it or `go` leads to another step. `JourneySpec.nodes` is the same as a flat graph, which the tick
(`campaigns.journey_ticks`), the simulation and the drawing work on.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from campaigns.assignment import Allocation
from campaigns.experiment_specs import Placed, SplitExperiment, check_variants, experiment_problems
from campaigns.predicates import Predicate, parse_predicate
from campaigns.purposes import purpose_problems
from campaigns.specs import (
    Cap,
    CrmTask,
    Line,
    Name,
    QuietHours,
    Schedule,
    SendSpec,
    TimeZone,
    next_clock_time,
    provider_refusal,
)
from warehouse.errors import InputError
from warehouse.yaml_specs import (
    Duration,
    Location,
    Problem,
    Spec,
    format_duration,
    load_spec,
    load_specs,
    named,
    nearest,
    parse_duration,
    problems_error,
    shown_location,
)

KIND = "journey"
"""What messages, pauses and rows of `raw.campaigns` of journeys have as their kind."""
END = ""
"""The target of an edge that leaves the journey."""
EVENT_COLUMNS = ("event_id", "type", "occurred_at", "message_id", "url")
"""What `event.` means in conditions beside the event's properties."""
_WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_ACTIONS = ("send", "wait", "wait_for", "branch", "split", "crm_task", "tag", "exit", "go")


def _event_type(value: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?", value):
        raise ValueError(
            f"{value!r} is no event type; write noun.verb such as order.placed, or a mail event such as opened"
        )
    return value


class _Happening(Spec):
    """An event, perhaps of one message of this journey, perhaps under a condition."""

    @field_validator("event", check_fields=False)
    @classmethod
    def _is_event(cls, value: str | None) -> str | None:
        return None if value is None else _event_type(value)


class EventMatch(_Happening):
    """An event of the contact."""

    event: str = Field(description="an event type such as order.placed or clicked")
    message: Name | None = Field(None, description="id of a send step, for events of its message alone")
    where: str | None = Field(None, description="an SQL condition; event.name is a property of the event")


class EntrySpec(_Happening):
    """Who comes in: those who enter a segment, who do something, who are in a segment at a time, who are asked for."""

    segment: Name | None = Field(None, description="name of a file in dbt_project/models/segments")
    event: str | None = Field(None, description="an event type such as contact.created")
    schedule: Schedule | None = Field(None, description="at or cron, and timezone; with segment")
    requests: bool = Field(False, description="true: triggers, the API and people may put contacts in")
    where: str | None = Field(None, description="an SQL condition over marts.contact_profiles, and event.")
    existing: bool = Field(
        False, description="true: also those who are in the segment when the journey begins"
    )

    @model_validator(mode="after")
    def _some_way(self) -> EntrySpec:
        if self.event and (self.segment or self.schedule):
            raise ValueError("has two ways in; keep either event or segment")
        if not (self.segment or self.event or self.requests):
            raise ValueError("needs a way in; write segment, event or requests: true")
        if self.schedule and not self.segment:
            raise ValueError("has a schedule for nobody; name the segment whose members come in then")
        if self.existing and (not self.segment or self.schedule):
            raise ValueError("existing needs a segment without schedule; remove existing")
        return self


class GoalSpec(EventMatch):
    """What the journey is for: whoever does this is done, wherever they are in it."""

    within: Duration | None = Field(None, description="how long after coming in it counts; else for good")


class ExitRule(_Happening):
    """Whoever does this, or of whom this holds, leaves at once."""

    event: str | None = Field(None, description="an event type such as unsubscribed")
    message: Name | None = Field(None, description="id of a send step, for events of its message alone")
    where: str | None = Field(None, description="an SQL condition; with event, event.name is its property")

    @model_validator(mode="after")
    def _something(self) -> ExitRule:
        if self.event is None and self.where is None:
            raise ValueError("says nothing; write event, where or both")
        if self.message and not self.event:
            raise ValueError("message needs an event; write which event of the message it is")
        return self


class UntilSpec(Spec):
    """A time of day and weekdays, by the clock where the contact lives."""

    time: str | None = Field(None, description='a time such as "09:00"')
    weekdays: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = Field(
        [], description="mon, tue, wed, thu, fri, sat, sun"
    )

    @field_validator("time")
    @classmethod
    def _clock_time(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
            raise ValueError(f'{value!r} is no time; write hours and minutes in quotes, such as "09:00"')
        return value

    @model_validator(mode="after")
    def _something(self) -> UntilSpec:
        if self.time is None and not self.weekdays:
            raise ValueError("says nothing; write time, weekdays or both")
        return self

    def following(self, moment: datetime, zone: ZoneInfo) -> datetime:
        """The first instant at or after a moment that fits by the clock of a zone, UTC."""
        days = [_WEEKDAYS.index(day) for day in self.weekdays]
        if self.time is not None:
            return next_clock_time(moment, self.time, zone, days)
        if moment.astimezone(zone).weekday() in days:
            return moment.astimezone(UTC)
        return next_clock_time(moment, "00:00", zone, days)


class WaitForSpec(_Happening):
    """Wait until the contact does something, or something holds of them, but no longer than `within`."""

    event: str | None = Field(None, description="an event type such as order.placed or opened")
    message: Name | None = Field(None, description="id of a send step, for events of its message alone")
    where: str | None = Field(None, description="an SQL condition; with event, event.name is its property")
    within: Duration = Field(description="the longest wait, such as 3d")

    @model_validator(mode="after")
    def _something(self) -> WaitForSpec:
        if self.event is None and self.where is None:
            raise ValueError("waits for nothing; write event, where or both")
        if self.message and not self.event:
            raise ValueError("message needs an event; write which event of the message it is")
        return self


class Way(Spec):
    """One way of a branch: the first whose condition holds is taken."""

    when: str = Field(description="an SQL condition over marts.contact_profiles")
    then: list[Step] = Field(description="steps; [] goes on with the next step")


class Variant(Spec):
    """One variant of a split."""

    name: Name = Field(description="name of the variant")
    weight: int = Field(ge=1, le=10_000, description="its share among the weights of all variants")
    then: list[Step] = Field([], description="steps; left out, the next step")


class TagSpec(Spec):
    """Static lists that the contact joins or leaves; segments may read them."""

    add: list[Name] = Field([], description="names of lists")
    remove: list[Name] = Field([], description="names of lists")

    @model_validator(mode="after")
    def _something(self) -> TagSpec:
        if not self.add and not self.remove:
            raise ValueError("says nothing; write add, remove or both")
        if both := set(self.add) & set(self.remove):
            raise ValueError(f"adds and removes {sorted(both)[0]}; keep one of the two")
        return self


class Step(Spec):
    """One step: exactly one of send, wait (or until), wait_for, branch, split, crm_task, tag, exit and go."""

    id: Name | None = Field(
        None, description="a name that stays; messages and people in flight are known by it"
    )
    send: SendSpec | None = Field(None, description="template, category, subject and more, as in campaigns")
    wait: Duration | None = Field(None, description="a duration such as 3d")
    until: UntilSpec | None = Field(None, description="time and weekdays, where the contact lives")
    wait_for: WaitForSpec | None = Field(None, description="event or where, and within")
    branch: list[Way] | None = Field(None, description="ways, each with when and then; else beside them")
    split: list[Variant] | None = Field(None, description="variants, each with name, weight and then")
    experiment: Name | SplitExperiment | None = Field(
        None,
        description="the split's experiment: its name, or metric, end and more; JOURNEY.STEP if left out",
    )
    crm_task: CrmTask | None = Field(None, description="subject and more")
    tag: TagSpec | None = Field(None, description="add, remove: names of static lists")
    exit: Line | None = Field(None, description="a word for why it ends here, such as bought")
    go: Name | None = Field(None, description="id of the step to go on with")
    then: list[Step] | None = Field(None, description="for wait_for: steps if it happened")
    otherwise: list[Step] | None = Field(None, alias="else", description="steps if it did not")

    @property
    def kind(self) -> str:
        """Which of the step's keys says what it does."""
        if self.until is not None:
            return "wait"
        return next(name for name in _ACTIONS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one_thing(self) -> Step:
        given = [name for name in _ACTIONS if getattr(self, name) is not None]
        if self.until is not None and "wait" not in given:
            given.append("until")
        if len(given) != 1:
            what = f"does {len(given)} things ({', '.join(given)})" if given else "does nothing"
            raise ValueError(f"{what}; write one of {', '.join(_ACTIONS)}")
        if self.until is not None and self.wait is None and given != ["until"]:
            raise ValueError("until belongs to wait; write it in a step of its own")
        kind = given[0]
        for key, value, owners in (
            ("then", self.then, ("wait_for",)),
            ("else", self.otherwise, ("wait_for", "branch")),
            ("experiment", self.experiment, ("split",)),
        ):
            if value is not None and kind not in owners:
                raise ValueError(f"{key} has no meaning with {kind}; it belongs to {' or '.join(owners)}")
        if self.id is None and kind not in ("exit", "go"):
            raise ValueError(f"needs an id; write one, such as id: {kind}_1")
        if kind == "go" and self.id is not None:
            raise ValueError("go is no place to be in; remove its id")
        if kind == "branch" and not self.branch:
            raise ValueError("branch has no way; write at least one with when and then")
        if self.split is not None:
            try:
                check_variants([one.name for one in self.split])
            except ValueError as error:
                raise ValueError(f"split {error}") from None
        return self


class JourneySpec(Spec):
    """One journey: who comes in, what they go through, when they leave."""

    journey: Name = Field(description="the file's name without .yaml")
    description: str = Field("", description="a sentence or two for colleagues")
    entry: EntrySpec = Field(description="segment, event, schedule or requests; and where")
    reentry: str = Field(
        "never", description="never, after_leaving, or a duration since they left such as 30d"
    )
    goal: GoalSpec | None = Field(None, description="event, where, within")
    exits: list[ExitRule] = Field([], alias="exit", description="rules, each with event or where")
    cap: Cap | None = Field(None, description="messages and within; left out, the one in the settings")
    quiet_hours: QuietHours | None = Field(
        None, description="after and before: messages wait until they end where the contact lives"
    )
    timezone: TimeZone = Field("UTC", description="time zone of contacts of whom none is known")
    steps: list[Step] = Field(min_length=1, description="a list of steps, each with an id")

    @property
    def name(self) -> str:
        """The journey's name."""
        return self.journey

    @field_validator("reentry")
    @classmethod
    def _policy(cls, value: str) -> str:
        if value not in ("never", "after_leaving"):
            try:
                return format_duration(parse_duration(value))
            except ValueError:
                raise ValueError(
                    f"cannot be {value!r}; write never, after_leaving or a time such as 30d"
                ) from None
        return value

    @property
    def reentry_after(self) -> timedelta | None:
        """How long after leaving somebody may come in again; None if never."""
        if self.reentry == "never":
            return None
        return timedelta(0) if self.reentry == "after_leaving" else parse_duration(self.reentry)

    @property
    def definition(self) -> str:
        """What the journey does as compact JSON, from which `read_definition` makes it again."""
        content = self.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits that change when what the journey does changes.

        Comments, layout and the description do not count, nor does a default that is written out.
        """
        content = self.model_dump(mode="json", exclude={"description"}, exclude_defaults=True, by_alias=True)
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @functools.cached_property
    def nodes(self) -> dict[str, Node]:
        """The steps as a graph, from ids, in the order of the file, to nodes."""
        nodes: dict[str, Node] = {}
        _flatten(self.steps, END, ("steps",), nodes)
        return nodes

    @functools.cached_property
    def repeated(self) -> frozenset[str]:
        """Steps that somebody may come to more than once in one stay."""
        return frozenset(key for key in self.nodes if key in self._beyond(key))

    def _beyond(self, key: str) -> set[str]:
        found: set[str] = set()
        todo = [edge.target for edge in self.nodes[key].edges]
        while todo:
            target = todo.pop()
            if target != END and target not in found:
                found.add(target)
                todo += [edge.target for edge in self.nodes[target].edges]
        return found

    @functools.cached_property
    def first(self) -> str:
        """Id of the step that everybody begins with."""
        return _start(self.steps, END, ("steps",))

    def experiment(self, step: str) -> str:
        """Name of the experiment of a split."""
        given = self.nodes[step].step.experiment
        name = given.name if isinstance(given, SplitExperiment) else given
        return name or f"{self.journey}.{step}"

    def allocation(self, step: str) -> Allocation:
        """How a split divides people. Who is outside its part of a layer goes the way of the control, untested."""
        given = self.nodes[step].step.experiment
        weights = {one.name: one.weight for one in self.nodes[step].step.split or ()}
        layer = given.layer.slot if isinstance(given, SplitExperiment) and given.layer else None
        return Allocation(self.experiment(step), weights, layer=layer)

    def control(self, step: str) -> str:
        """The variant of a split that the others are compared with: the first, unless the file says another."""
        given = self.nodes[step].step.experiment
        named = given.control if isinstance(given, SplitExperiment) else None
        return named or next(one.name for one in self.nodes[step].step.split or ())

    def experiments(self) -> Iterator[Placed]:
        """The journey's splits that say how they are measured, each with its place in the file."""
        for node in self.nodes.values():
            given = node.step.experiment
            if isinstance(given, SplitExperiment):
                weights = {one.name: one.weight for one in node.step.split or ()}
                name = self.experiment(node.id)
                location = (*node.location, "experiment")
                yield Placed(name, KIND, f"{self.journey}.{node.id}", weights, given, self, location)

    def conditions(self) -> Iterator[Condition]:
        """Every condition of the journey, with its place."""
        yield from _conditions(self)

    def predicate(self, text: str) -> Predicate:
        """A condition of the journey, parsed; it was checked when the file was read."""
        return _parsed(text)


@functools.lru_cache(maxsize=4096)
def _parsed(text: str) -> Predicate:
    return parse_predicate(text, qualifiers=("event",))


@dataclass(frozen=True)
class Edge:
    """A way on from a step.

    Attributes:
        label: what it is called in the log and the drawing: `waited`, `happened`, a variant's name ...
        target: id of the step it leads to; `END` leaves the journey.
        when: for ways of a branch, the condition; empty for the last, which needs none.
    """

    label: str
    target: str
    when: str = ""


@dataclass(frozen=True)
class Node:
    """A step in the graph.

    Attributes:
        location: where the file has it.
        variant: the split and the name of its variant that the step is part of, None if of none.
    """

    id: str
    kind: str
    step: Step
    edges: tuple[Edge, ...]
    location: Location = field(compare=False)
    variant: tuple[str, str] | None = None

    @property
    def is_resting(self) -> bool:
        """Whether people stay here from one tick to another; all other steps are passed through at once."""
        return self.kind in ("send", "wait", "wait_for")


@dataclass(frozen=True)
class Condition:
    """A condition of a journey and where it is written."""

    location: Location
    text: str
    has_event: bool = False


def _key(step: Step, location: Location) -> str:
    """The id of a step; one that the file leaves out is made of its place."""
    if step.id is not None:
        return step.id
    return "exit_" + "_".join(str(part + 1) if isinstance(part, int) else part for part in location[1:])


def _start(steps: Sequence[Step], after: str, location: Location, index: int = 0) -> str:
    """The id that a list of steps goes on with at an index."""
    if index >= len(steps):
        return after
    step = steps[index]
    return str(step.go) if step.kind == "go" else _key(step, (*location, index))


def _flatten(
    steps: Sequence[Step],
    after: str,
    location: Location,
    nodes: dict[str, Node],
    variant: tuple[str, str] | None = None,
) -> None:
    for index, step in enumerate(steps):
        here = (*location, index)
        if step.kind == "go":
            continue
        following = _start(steps, after, location, index + 1)
        inner: list[tuple[Sequence[Step], Location]] = []
        edges: list[Edge] = []

        def lead(label: str, way: Sequence[Step] | None, *place: str | int, when: str = "") -> None:
            inner.append((way or [], (*here, *place)))  # noqa: B023
            edges.append(Edge(label, _start(way or [], following, inner[-1][1]), when))  # noqa: B023

        match step.kind:
            case "branch":
                for number, way in enumerate(step.branch or []):
                    lead(f"way {number + 1}", way.then, "branch", number, "then", when=way.when)
                lead("else", step.otherwise, "else")
            case "split":
                for number, share in enumerate(step.split or []):
                    lead(share.name, share.then, "split", number, "then")
            case "wait_for":
                lead("happened", step.then, "then")
                lead("timed out", step.otherwise, "else")
            case "exit":
                edges.append(Edge("exit", END))
            case kind:
                label = {"send": "sent", "wait": "waited"}.get(kind, "done")
                edges.append(Edge(label, following))
        # of two steps with one id the first stays; `check_journey` complains about the other
        key = _key(step, here)
        nodes.setdefault(key, Node(key, step.kind, step, tuple(edges), here, variant))
        for number, (steps_within, place) in enumerate(inner):
            within = (key, step.split[number].name) if step.split else variant
            _flatten(steps_within, following, place, nodes, within)


def _walk(steps: Sequence[Step], location: Location) -> Iterator[tuple[Step, Location]]:
    for index, step in enumerate(steps):
        here = (*location, index)
        yield step, here
        for place, way in enumerate(step.branch or []):
            yield from _walk(way.then, (*here, "branch", place, "then"))
        for place, variant in enumerate(step.split or []):
            yield from _walk(variant.then, (*here, "split", place, "then"))
        yield from _walk(step.then or [], (*here, "then"))
        yield from _walk(step.otherwise or [], (*here, "else"))


def _conditions(spec: JourneySpec) -> Iterator[Condition]:
    if spec.entry.where is not None:
        yield Condition(("entry", "where"), spec.entry.where, spec.entry.event is not None)
    if spec.goal is not None and spec.goal.where is not None:
        yield Condition(("goal", "where"), spec.goal.where, True)
    for index, rule in enumerate(spec.exits):
        if rule.where is not None:
            yield Condition(("exit", index, "where"), rule.where, rule.event is not None)
    for step, location in _walk(spec.steps, ("steps",)):
        for place, way in enumerate(step.branch or []):
            yield Condition((*location, "branch", place, "when"), way.when)
        if step.wait_for is not None and step.wait_for.where is not None:
            yield Condition(
                (*location, "wait_for", "where"), step.wait_for.where, step.wait_for.event is not None
            )


# Reading


def load_journeys(content_dir: Path) -> dict[str, JourneySpec]:
    """Read `content_dir/journeys/*.yaml`; from names, in order, to specs.

    Raises:
        InputError: names file, line and key of each mistake, and what is allowed.
    """
    specs = load_specs(content_dir / "journeys", JourneySpec, name_key="journey")
    _require([problem for spec in specs.values() for problem in graph_problems(spec)])
    _require([problem for spec in specs.values() for problem in _purpose_problems(spec, content_dir)])
    _require(
        experiment_problems(
            [one for spec in specs.values() for one in spec.experiments()],
            goals=[one.owner for spec in specs.values() if spec.goal for one in spec.experiments()],
        )
    )
    return specs


def load_journey(path: Path) -> JourneySpec:
    """Read one file, wherever it lies.

    Raises:
        InputError: as `load_journeys`.
    """
    spec = load_spec(path, JourneySpec, name_key="journey")
    _require(graph_problems(spec))
    _require(_purpose_problems(spec, path.parent.parent))
    return spec


def read_definition(text: str) -> JourneySpec:
    """The journey of a `definition` that was kept; it was checked when it was a file."""
    return JourneySpec.model_validate(json.loads(text))


def check_journeys(
    specs: Mapping[str, JourneySpec],
    templates: Collection[str],
    segments: Collection[str],
    profile_columns: Collection[str] | None = None,
    *,
    lists: Collection[str] = (),
    provider: str = "",
) -> None:
    """Check that what journeys name exists, and that their providers can do what they ask.

    Args:
        specs: from `load_journeys`.
        templates: names of the templates there are.
        segments: names of the segments there are.
        profile_columns: columns of `marts.contact_profiles`; None leaves conditions to the warehouse.
        lists: lists that files in content/lists decide, which `tag` may not change.
        provider: the settings' provider, for steps that name none; empty leaves those unchecked.

    Raises:
        InputError: names file and line of each name that leads nowhere, and the nearest right one.
    """
    problems: list[Problem] = []
    for spec in specs.values():
        if spec.entry.segment is not None and spec.entry.segment not in segments:
            problems.append(
                _lost(
                    spec,
                    ("entry", "segment"),
                    "segment",
                    spec.entry.segment,
                    segments,
                    "dbt_project/models/segments",
                )
            )
        for node in spec.nodes.values():
            if (tag := node.step.tag) is not None:
                problems += [
                    Problem(
                        spec.place(*node.location, "tag"),
                        f"{shown_location(node.location)}: the list {name} is the file content/lists/{name}.csv,"
                        " which alone says who is on it.",
                        "Tag with a list that has no file.",
                    )
                    for name in (*tag.add, *tag.remove)
                    if name in lists
                ]
            send = node.step.send
            if send is None:
                continue
            if send.template not in templates:
                problems.append(
                    _lost(spec, (*node.location, "send", "template"), "template", send.template, templates,
                          "content/templates")
                )  # fmt: skip
            problems.extend(_provider_problems(spec, node, send, provider))
        if profile_columns is not None:
            problems.extend(_condition_problems(spec, profile_columns))
    _require(problems)


def _purpose_problems(spec: JourneySpec, content_dir: Path) -> list[Problem]:
    sends = [
        ((*node.location, "send"), node.step.send)
        for node in spec.nodes.values()
        if node.step.send is not None
    ]
    return purpose_problems(spec, sends, content_dir)


def _require(problems: list[Problem]) -> None:
    if problems:
        raise problems_error(problems)


def _lost(
    spec: JourneySpec, location: Location, kind: str, name: str, known: Collection[str], folder: str
) -> Problem:
    hint = nearest(name, sorted(known)) or f"There is none yet: add one to {folder}."
    return Problem(
        spec.place(*location), f"{shown_location(location)}: there is no {kind} {name!r} in {folder}.", hint
    )


def _provider_problems(spec: JourneySpec, node: Node, send: SendSpec, provider: str) -> list[Problem]:
    error = provider_refusal(send, provider)
    if error is None:
        return []
    location = (*node.location, "send", "provider") if send.provider else (*node.location, "send")
    return [Problem(spec.place(*location), f"{shown_location(location)}: {error.message}", error.fix)]


def _condition_problems(spec: JourneySpec, columns: Collection[str] | None) -> list[Problem]:
    problems: list[Problem] = []
    for condition in spec.conditions():
        try:
            predicate = parse_predicate(
                condition.text,
                columns=columns,
                qualifiers=("event",) if condition.has_event else (),
                place=functools.partial(_line_place, spec, condition.location),
                key=shown_location(condition.location),
            )
            if predicate.calls:
                called = min(predicate.calls).function
                problems.append(
                    Problem(
                        spec.place(*condition.location),
                        f"{shown_location(condition.location)}: {called}() is for triggers only.",
                        "Wait for the event in a step of its own, or use a column of the profile.",
                    )
                )
        except InputError as error:
            problems.append(Problem("", error.message, error.fix))
    return problems


def _line_place(spec: JourneySpec, location: Location, line: int) -> str:
    return spec.line_place(line, *location)


def graph_problems(spec: JourneySpec) -> list[Problem]:
    """What is wrong with a journey by itself: ids, ways that lead nowhere or round and round, conditions."""
    problems: list[Problem] = []
    seen: dict[str, Location] = {}
    steps = list(_walk(spec.steps, ("steps",)))
    for step, location in steps:
        if step.kind == "go":
            continue
        key = _key(step, location)
        if key in seen:
            problems.append(
                Problem(
                    spec.place(*location, "id"),
                    f"{shown_location(location)}: the id {key} is taken, by {shown_location(seen[key])}.",
                    "Give one of them another id; people in flight are known by it.",
                )
            )
        seen.setdefault(key, location)
    senders = [key for key, node in spec.nodes.items() if node.kind == "send"]
    for step, location in steps:
        if step.kind == "go" and step.go not in seen:
            problems.append(_no_step(spec, (*location, "go"), str(step.go), list(seen)))
        if step.wait_for is not None and step.wait_for.message not in (None, *senders):
            problems.append(
                _no_step(spec, (*location, "wait_for", "message"), str(step.wait_for.message), senders)
            )
    named = [(("goal", "message"), spec.goal.message)] if spec.goal else []
    named += [(("exit", index, "message"), rule.message) for index, rule in enumerate(spec.exits)]
    problems += [
        _no_step(spec, location, name, senders) for location, name in named if name not in (None, *senders)
    ]
    if not problems:
        problems += _reach_problems(spec) + _loop_problems(spec)
    return problems + _condition_problems(spec, None)


def _no_step(spec: JourneySpec, location: Location, name: str, known: Sequence[str]) -> Problem:
    what = "send step" if location[-1] == "message" else "step"
    return Problem(
        spec.place(*location),
        f"{shown_location(location)}: there is no {what} {name!r} in this journey.",
        nearest(name, known) or f"This journey has no {what}.",
    )


def _reach_problems(spec: JourneySpec) -> list[Problem]:
    reached: set[str] = set()
    todo = [spec.first]
    while todo:
        key = todo.pop()
        if key != END and key not in reached:
            reached.add(key)
            todo += [edge.target for edge in spec.nodes[key].edges]
    problems = [
        Problem(
            spec.place(*node.location),
            f"{shown_location(node.location)}: nobody can come to {key}: every way before it ends or goes elsewhere.",
            "Remove it, or lead a way to it with go.",
        )
        for key, node in spec.nodes.items()
        if key not in reached
    ]
    for steps, location in _lists(spec.steps, ("steps",)):
        for index, step in enumerate(steps[:-1]):
            if step.kind == "go" and steps[index + 1].kind == "go":
                place = (*location, index + 1)
                problems.append(
                    Problem(
                        spec.place(*place),
                        f"{shown_location(place)}: nobody can come to this go.",
                        "Remove it.",
                    )
                )
    return problems


def _lists(steps: Sequence[Step], location: Location) -> Iterator[tuple[Sequence[Step], Location]]:
    yield steps, location
    for index, step in enumerate(steps):
        here = (*location, index)
        for place, way in enumerate(step.branch or []):
            yield from _lists(way.then, (*here, "branch", place, "then"))
        for place, variant in enumerate(step.split or []):
            yield from _lists(variant.then, (*here, "split", place, "then"))
        yield from _lists(step.then or [], (*here, "then"))
        yield from _lists(step.otherwise or [], (*here, "else"))


def _takes_time(node: Node) -> bool:
    """Whether some time passes here for sure: a condition may hold, and the hour of `until` be there, at once."""
    return node.step.wait is not None or (
        node.step.wait_for is not None and node.step.wait_for.event is not None
    )


def _loop_problems(spec: JourneySpec) -> list[Problem]:
    """Ways round on which nobody waits: somebody would go round and round in one tick."""
    state: dict[str, int] = {}

    def visit(key: str, path: list[str]) -> list[str] | None:
        if key == END or _takes_time(spec.nodes[key]):
            return None
        if state.get(key) == 1:
            return path[path.index(key) :]
        if state.get(key) == 2:
            return None
        state[key] = 1
        for edge in spec.nodes[key].edges:
            if (loop := visit(edge.target, [*path, key])) is not None:
                return loop
        state[key] = 2
        return None

    for key in spec.nodes:
        if (loop := visit(key, [])) is not None:
            location = spec.nodes[loop[0]].location
            return [
                Problem(
                    spec.place(*location),
                    f"{shown_location(location)}: the way {' > '.join([*loop, loop[0]])} goes round without a wait.",
                    "Put a wait on it, or end it with exit.",
                )
            ]
    return []


def journey_named(content_dir: Path, name: str) -> JourneySpec:
    """The journey of that name.

    Raises:
        InputError: there is none; names the nearest.
    """
    place = f"{content_dir.name}/journeys"
    return named(load_journeys(content_dir), name, "journey", place, fix="Add a YAML file there.")


def shown_step(node: Node) -> str:
    """What a step does, in a few words, for drawings and lists."""
    step = node.step
    match node.kind:
        case "send":
            assert step.send is not None
            return f"{step.send.channel}: {step.send.template}"
        case "wait":
            parts = [format_duration(step.wait)] if step.wait else []
            if step.until is not None:
                days = " ".join(step.until.weekdays)
                parts.append("until " + " ".join(part for part in (days, step.until.time or "") if part))
            return "wait " + ", ".join(parts)
        case "wait_for":
            assert step.wait_for is not None
            what = step.wait_for.event or step.wait_for.where or ""
            return f"wait for {_short(what)} within {format_duration(step.wait_for.within)}"
        case "branch":
            return "branch"
        case "split":
            return "split " + " : ".join(str(variant.weight) for variant in step.split or [])
        case "crm_task":
            assert step.crm_task is not None
            return f"task: {_short(step.crm_task.subject)}"
        case "tag":
            assert step.tag is not None
            return "tag " + " ".join(
                [*(f"+{name}" for name in step.tag.add), *(f"-{name}" for name in step.tag.remove)]
            )
        case _:
            return f"exit: {_short(step.exit or '')}"


def edge_text(edge: Edge) -> str:
    """What is written at an edge of a drawing."""
    return (
        _short(edge.when)
        if edge.when
        else ""
        if edge.label in ("sent", "waited", "done", "exit")
        else edge.label
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 40 else line[:39] + "…"


for _model in (Way, Variant, Step, JourneySpec):
    _model.model_rebuild()
