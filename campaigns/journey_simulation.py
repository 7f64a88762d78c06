"""What a journey does to one person, in plain Python: to try a journey out, and to hold the SQL tick to.

`Walk` is the journey as a marketer would think of it, one person at a time. The tests compare every path of
`campaigns.journey_ticks` with it; `mailhouse journey test` runs it over people made up, or over what really happened.
"""

from __future__ import annotations

import functools
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

from campaigns.journeys import END, JourneySpec, Node

Listening = tuple[str, str]
"""Who listens to an event: `('goal', '')`, `('exit', '0')` by the rule's number, `('wait_for', step)`."""


@functools.cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


@dataclass(frozen=True)
class Person:
    """Somebody as the simulation knows them.

    Attributes:
        holds: conditions over the profile that are true of them, as they are written.
        happenings: from who listens to the instants at which that happened, ascending.
        timezone: empty where none is known.
    """

    contact_id: int
    holds: frozenset[str] = frozenset()
    happenings: Mapping[Listening, Sequence[datetime]] = field(default_factory=dict)
    timezone: str = ""


@dataclass(frozen=True)
class Move:
    """One move: how the step before ended, the step come to (`END` for none), the ending if it is one."""

    at: datetime
    previous_step: str
    outcome: str
    step: str
    ending: str
    due_at: datetime


class Walk:
    """One person's stay in a journey.

    Args:
        entered_at: the tick at which they come in.
        answer: what becomes of the message of a send step.
        winners: from experiments that were decided to their variants: a split leads there whoever comes to it.
    """

    def __init__(
        self,
        spec: JourneySpec,
        person: Person,
        entered_at: datetime,
        answer: Callable[[Node], str] = lambda _: "sent",
        winners: Mapping[str, str] | None = None,
    ) -> None:
        self.spec, self.person, self.started_at, self.answer = spec, person, entered_at, answer
        self.winners = winners or {}
        self.zone = person.timezone if person.timezone in _zones() else spec.timezone
        self.moves: list[Move] = []
        self.step, self.due_at, self.entered_at = END, entered_at, entered_at
        self._go(entered_at, "", "entered", spec.first)
        self._settle(entered_at)

    @property
    def is_over(self) -> bool:
        """Whether they have left."""
        return self.step == END

    def tick(self, now: datetime) -> None:
        """What a tick does to them."""
        if self.is_over:
            return
        for ending in ("goal", "exit"):
            if self._is_told(ending, now):
                self._go(now, self.step, ending, END, ending)
                return
        node = self.spec.nodes[self.step]
        if node.step.wait_for is not None and node.step.wait_for.event is not None:
            if self._heard(("wait_for", node.id), self.entered_at, now):
                self._follow(now, node, 0)
            elif self.due_at <= now:
                self._follow(now, node, 1)
        self._settle(now)

    def next_at(self, after: datetime) -> datetime:
        """When next something may happen to them, if nothing new does."""
        moments = [self.due_at, *(at for moments in self.person.happenings.values() for at in moments)]
        return min((at for at in moments if at > after), default=after + timedelta(days=1))

    def _heard(self, listening: Listening, since: datetime, now: datetime) -> bool:
        return any(since <= at <= now for at in self.person.happenings.get(listening, ()))

    def _is_told(self, ending: str, now: datetime) -> bool:
        if ending == "goal":
            goal = self.spec.goal
            if goal is None:
                return False
            last = min(now, self.started_at + goal.within) if goal.within else now
            return self._heard(("goal", ""), self.started_at, last)
        return any(
            self._heard(("exit", str(number)), self.started_at, now)
            if rule.event is not None
            else rule.where in self.person.holds
            for number, rule in enumerate(self.spec.exits)
        )

    def _settle(self, now: datetime) -> None:
        """Go on until somewhere they have to wait."""
        while not self.is_over:
            node = self.spec.nodes[self.step]
            step = node.step
            if step.send is not None:
                hours = self.spec.quiet_hours
                if self.due_at > now:
                    return
                if hours is not None and hours.is_quiet(now, self.zone):
                    self._go(now, node.id, "quiet hours", node.id, entered_at=self.entered_at)
                    return
                self._go(now, node.id, self.answer(node), node.edges[0].target)
            elif node.kind == "wait":
                if self.due_at > now:
                    return
                self._follow(now, node, 0)
            elif (wait := step.wait_for) is not None:
                if wait.event is None and wait.where in self.person.holds:
                    self._follow(now, node, 0)
                elif self.due_at <= now:
                    self._follow(now, node, 1)
                else:
                    return
            elif step.branch is not None:
                ways = [at for at, edge in enumerate(node.edges) if edge.when in self.person.holds]
                self._follow(now, node, ways[0] if ways else len(node.edges) - 1)
            elif step.split is not None:
                names = [variant.name for variant in step.split]
                name = self.winners.get(self.spec.experiment(node.id))
                if name not in names:
                    drawn = self.spec.allocation(node.id).assign([self.person.contact_id])[0]
                    name = drawn or self.spec.control(node.id)
                self._follow(now, node, names.index(name))
            else:
                self._follow(now, node, 0)

    def _follow(self, now: datetime, node: Node, edge: int) -> None:
        chosen = node.edges[edge]
        self._go(now, node.id, chosen.label, chosen.target, "exit" if node.kind == "exit" else "")

    def _go(
        self,
        now: datetime,
        previous: str,
        outcome: str,
        step: str,
        ending: str = "",
        *,
        entered_at: datetime | None = None,
    ) -> None:
        self.step, self.entered_at = step, entered_at or now
        self.due_at = self._due(now)
        ending = ending or ("finished" if step == END else "")
        self.moves.append(Move(now, previous, outcome, step, ending, self.due_at))

    def _due(self, now: datetime) -> datetime:
        if self.step == END:
            return now
        step = self.spec.nodes[self.step].step
        if step.wait is not None or step.until is not None:
            base = now + (step.wait or timedelta(0))
            return step.until.following(base, ZoneInfo(self.zone)) if step.until is not None else base
        if step.wait_for is not None:
            return now + step.wait_for.within
        if step.send is not None and self.spec.quiet_hours is not None:
            return self.spec.quiet_hours.end(now, self.zone)
        return now


def walk_through(
    spec: JourneySpec,
    person: Person,
    entered_at: datetime,
    until: datetime,
    winners: Mapping[str, str] | None = None,
) -> Walk:
    """A whole stay, as if somebody looked at every instant at which something may happen."""
    walk, now = Walk(spec, person, entered_at, winners=winners), entered_at
    while not walk.is_over and (now := walk.next_at(now)) <= until:
        walk.tick(now)
    return walk


def _instants(chance: random.Random, start: datetime, half: timedelta) -> list[datetime]:
    """A Poisson process of half a year, in which something happens within `half` with even chances."""
    rate, at, found = math.log(2) / half.total_seconds(), 0.0, []
    while (at := at + chance.expovariate(rate)) < 182 * 86_400 and len(found) < 1000:
        found.append(start + timedelta(seconds=at))
    return found


def made_up(spec: JourneySpec, people: int, entered_at: datetime, *, seed: int = 0) -> list[Person]:
    """People of whom each condition holds with even chances, and who do what a step waits for with even chances.

    The goal is reached by half of them within 60 days, rules of exit by few.
    """
    chance = random.Random(seed)
    conditions = sorted({one.text for one in spec.conditions() if not one.has_event})
    # half of all would leave at once by each rule: too few would be left to look at
    leaving = {rule.where for rule in spec.exits}
    halves: dict[Listening, timedelta] = {}
    for kind, step in listeners_of(spec):
        wait = spec.nodes[step].step.wait_for if kind == "wait_for" else None
        halves[kind, step] = wait.within if wait else timedelta(days=60 if kind == "goal" else 600)
    made: list[Person] = []
    for number in range(1, people + 1):
        holds = frozenset(text for text in conditions if chance.random() < (0.02 if text in leaving else 0.5))
        happenings = {
            listening: sorted(_instants(chance, entered_at, half)) for listening, half in halves.items()
        }
        made.append(Person(number, holds, happenings))
    return made


def listeners_of(spec: JourneySpec) -> dict[Listening, tuple[str, str | None, str | None]]:
    """Who listens, and to what: event, message (a step's id) and condition."""
    found: dict[Listening, tuple[str, str | None, str | None]] = {}
    if spec.goal is not None:
        found["goal", ""] = (spec.goal.event, spec.goal.message, spec.goal.where)
    for number, rule in enumerate(spec.exits):
        if rule.event is not None:
            found["exit", str(number)] = (rule.event, rule.message, rule.where)
    for node in spec.nodes.values():
        wait = node.step.wait_for
        if wait is not None and wait.event is not None:
            found["wait_for", node.id] = (wait.event, wait.message, wait.where)
    return found


@dataclass(frozen=True)
class StepResult:
    """How one step did: who came, how they went on, how long they stayed (median, of those who have gone on)."""

    step: str
    arrivals: int
    outcomes: Mapping[str, int]
    median_stay: timedelta | None


def funnel(spec: JourneySpec, walks: Iterable[Walk]) -> tuple[list[StepResult], dict[str, int]]:
    """Steps in the order of the file, and endings; who is still under way counts as `under way`."""
    arrivals: Counter[str] = Counter()
    outcomes: dict[str, Counter[str]] = {}
    stays: dict[str, list[float]] = {}
    endings: Counter[str] = Counter()
    for walk in walks:
        came_at = walk.started_at
        for move in walk.moves:
            if move.previous_step and move.step != move.previous_step:
                outcomes.setdefault(move.previous_step, Counter())[move.outcome] += 1
                stays.setdefault(move.previous_step, []).append((move.at - came_at).total_seconds())
            if move.step != move.previous_step:
                came_at = move.at
                if move.step != END:
                    arrivals[move.step] += 1
        endings[walk.moves[-1].ending or "under way"] += 1
    steps = [
        StepResult(
            key,
            arrivals[key],
            dict(outcomes.get(key, Counter()).most_common()),
            timedelta(seconds=statistics.median(stays[key])) if key in stays else None,
        )
        for key in spec.nodes
    ]
    return steps, dict(endings.most_common())
