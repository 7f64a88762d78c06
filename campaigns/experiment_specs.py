"""Experiments as marketers write them: under `experiment` of a campaign, or of a journey's split.

Here is what the file says and what may not be said; `campaigns.experiments` knows who is in which variant.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from pydantic import Field, field_validator, model_validator

from campaigns.assignment import HOLDOUT, REMAINDER, Holdout, LayerSlot, free_slot
from campaigns.spec_types import Address, Line, Name, Share
from warehouse.yaml_specs import Duration, Location, Problem, Spec, nearest, shown_location

MESSAGE_METRICS = ("clicks", "opens", "conversions", "unsubscribes", "complaints", "bounces")
"""Metrics that every experiment has: whether it happened to a contact within the window. Other names are files in
`dbt_project/models/metrics`."""
LOWER_IS_BETTER = ("unsubscribes", "complaints", "bounces")
DEFAULT_END = timedelta(days=14)
_RESERVED = (HOLDOUT, REMAINDER)


class VariantSpec(Spec):
    """One variant of a campaign: its share, and what it has instead of what `send` says."""

    name: Name = Field(description="name of the variant")
    weight: int = Field(1, ge=1, le=10_000, description="its share among the weights of all variants")
    template: Name | None = Field(None, description="name of a file in content/templates, without .mjml")
    subject: Line | None = Field(None, description="one line, as under send")
    preheader: Line | None = Field(None, description="one line that mailboxes show after the subject")
    from_name: Line | None = Field(None, description="the sender's name")
    from_email: Address | None = Field(None, description="the sender's address")
    reply_to: Address | None = Field(None, description="where answers go")
    recommendations: int | None = Field(
        None, ge=0, le=20, description="how many recommended products, 0 to 20"
    )
    delay: Duration | None = Field(None, description="so long after the schedule's time, such as 3h")

    def changes(self) -> dict[str, object]:
        """What it has instead, by the keys of `send`."""
        return self.model_dump(exclude={"name", "weight", "delay"}, exclude_none=True)


class HoldoutSpec(Spec):
    """Contacts who get nothing of this, for comparison: the same in all experiments that name it."""

    name: Line = Field("holdout", description="a name; a new one such as holdout/2026q1 draws others")
    share: Share = Field(description="a percentage of all contacts, such as 5%")


class LayerSpec(Spec):
    """A part of a layer: experiments in parts that do not overlap never share a contact."""

    name: Name = Field(description="name of the layer")
    start: Share = Field(alias="from", description="where the part begins, such as 0%")
    end: Share = Field(alias="to", description="where it ends, such as 50%")

    @model_validator(mode="after")
    def _some_of_it(self) -> LayerSpec:
        if self.start >= self.end:
            raise ValueError("from must be below to")
        return self

    @property
    def slot(self) -> LayerSlot:
        """The same for `Allocation`."""
        return LayerSlot(self.name, self.start, self.end)


class GuardrailSpec(Spec):
    """What must not get worse, and the harm that is tolerated."""

    metric: Name = Field(description="unsubscribes, complaints, bounces or another metric")
    margin: Share = Field(
        0.2, gt=0, description="the harm that is tolerated, in percent of the control's, such as 20%"
    )


class WinnerSpec(Spec):
    """What becomes of those who were not tested: a campaign's remainder, or who comes to a split later."""

    to: Literal["remainder", "arrivals"] | None = Field(
        None,
        description="remainder: all who were not tested; in a journey arrivals: all who come to the split later",
    )
    after: Duration | None = Field(
        None, description="the earliest time after the last variant went, or the first came to the split: 4h"
    )
    otherwise: Literal["control", "best", "none"] = Field(
        "control", description="what they get if there is no winner at the end: control, best or none"
    )
    confidence: Share = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="with decide: bayes, the chance to be the best that is asked for, such as 95%",
    )


class BatchesSpec(Spec):
    """A bandit's batches: after each the weights are made anew."""

    count: int = Field(ge=2, le=100, description="how many, 2 to 100")
    every: Duration = Field(description="the time from one to the next, such as 4h")


class Measures(Spec):
    """What experiments of campaigns and of splits have in common: what is measured, and how it is decided."""

    name: Name | None = Field(None, description="its name; left out, that of the campaign, or JOURNEY.STEP")
    control: Name | None = Field(
        None, description="the variant to compare with; left out, the first that is written"
    )
    metric: Name = Field(
        "clicks", description=f"{', '.join(MESSAGE_METRICS)}, or a file in dbt_project/models/metrics"
    )
    guardrails: list[GuardrailSpec] = Field(
        [GuardrailSpec(metric=name, margin=0.2) for name in LOWER_IS_BETTER],
        description="metrics that must not get worse, each with metric and margin",
    )
    others: list[Name] = Field([], description="further metrics to learn from; they decide nothing")
    within: Duration = Field(
        timedelta(days=7), description="how long after the first message something counts, such as 7d"
    )
    minimum_effect: Share = Field(
        0.1, gt=0, description="the smallest change of the metric that matters, in percent of it, such as 10%"
    )
    power: Share = Field(0.8, gt=0, lt=1, description="the chance to find such a change, such as 80%")
    alpha: Share = Field(0.05, gt=0, lt=0.5, description="the chance of a wrong winner, such as 5%")
    baseline: Share | None = Field(
        None, gt=0, lt=1, description="what the metric is today, such as 4%; left out, what the marts say"
    )
    decide: Literal["fixed", "anytime", "bayes"] = Field("fixed", description="fixed, anytime or bayes")
    end: Duration | None = Field(
        None, description="the planned end, counted from when the last variant went, such as 14d"
    )
    layer: LayerSpec | None = Field(None, description="name, from and to")
    winner: WinnerSpec | None = Field(None, description="to, after, otherwise, confidence")

    @field_validator("guardrails", "others")
    @classmethod
    def _once(cls, value: Sequence[GuardrailSpec | str]) -> Sequence[GuardrailSpec | str]:
        names = [one if isinstance(one, str) else one.metric for one in value]
        if len(set(names)) < len(names):
            raise ValueError("names a metric twice; keep one")
        return value

    @model_validator(mode="after")
    def _metrics_once(self) -> Measures:
        names = [guardrail.metric for guardrail in self.guardrails]
        for name in (self.metric, *names):
            if name in self.others:
                raise ValueError(f"others names {name}, which is measured already; remove it there")
        if self.metric in names:
            raise ValueError(f"guardrails name {self.metric}, which is the metric itself; remove it there")
        return self

    @model_validator(mode="after")
    def _winner_in_time(self) -> Measures:
        if self.winner is not None and self.winner.after is not None and self.end is not None:
            if self.decide == "fixed" and self.winner.after != self.end:
                raise ValueError(
                    "decide: fixed decides at the end alone; leave out winner.after or end, or write decide: anytime"
                )
            if self.winner.after > self.end:
                raise ValueError("winner.after is later than end; make it earlier")
        return self

    def metrics(self) -> list[str]:
        """Names of all metrics, the one that decides first."""
        return [self.metric, *(guardrail.metric for guardrail in self.guardrails), *self.others]

    @property
    def planned_end(self) -> timedelta:
        """When the test is over, counted from when the last variant went, or the first came to the split."""
        return self.end or (self.winner.after if self.winner else None) or DEFAULT_END

    @property
    def earliest(self) -> timedelta:
        """When it may be decided at the earliest, counted from the same moment."""
        after = self.winner.after if self.winner else None
        return self.planned_end if self.decide == "fixed" or after is None else after


class ExperimentSpec(Measures):
    """An experiment of a campaign."""

    variants: list[VariantSpec] = Field(
        description="two or more, each with name, weight and what differs from send"
    )
    traffic: Share = Field(
        1.0,
        gt=0,
        description="the part of the audience that is tested, such as 20%; others are the remainder",
    )
    holdout: HoldoutSpec | None = Field(None, description="share, and name")
    allocation: Literal["fixed", "bandit"] = Field("fixed", description="fixed or bandit")
    batches: BatchesSpec | None = Field(None, description="for a bandit: count and every")

    @field_validator("variants")
    @classmethod
    def _variants(cls, value: list[VariantSpec]) -> list[VariantSpec]:
        check_variants([one.name for one in value])
        return value

    @model_validator(mode="after")
    def _fits(self) -> ExperimentSpec:
        names = [one.name for one in self.variants]
        if self.control is not None and self.control not in names:
            raise ValueError(f"control: there is no variant {self.control!r}. {nearest(self.control, names)}")
        if self.winner is not None and self.winner.to == "arrivals":
            raise ValueError(
                "winner.to: arrivals belongs to a journey's split; write remainder, or leave it out"
            )
        if self.winner is not None and self.traffic == 1:
            raise ValueError("winner needs a remainder; write traffic below 100%, such as traffic: 20%")
        if self.allocation == "bandit":
            for key in ("winner", "decide"):
                if key in self.model_fields_set:
                    raise ValueError(
                        f"{key} has no meaning with a bandit, which decides as it goes; remove it"
                    )
            if self.traffic < 1:
                raise ValueError("a bandit has no remainder; remove traffic")
            if any(one.delay for one in self.variants):
                raise ValueError("a bandit's variants go together; remove delay")
        elif self.batches is not None:
            raise ValueError("batches belong to a bandit; write allocation: bandit, or remove them")
        if self.traffic < 1 and self.winner is None:
            raise ValueError(
                "traffic below 100% leaves a remainder that would get nothing; write winner, or remove traffic"
            )
        return self

    @property
    def weights(self) -> dict[str, int]:
        """Variants and their weights, as written."""
        return {one.name: one.weight for one in self.variants}

    @property
    def control_name(self) -> str:
        """The variant that all others are compared with."""
        return self.control or self.variants[0].name

    def variant(self, name: str) -> VariantSpec:
        """The variant of a name."""
        return next(one for one in self.variants if one.name == name)

    @property
    def holdout_group(self) -> Holdout | None:
        """The holdout for `Allocation`."""
        return Holdout(self.holdout.name, self.holdout.share) if self.holdout else None


class SplitExperiment(Measures):
    """An experiment of a journey's split, whose variants and weights are the split's."""

    @model_validator(mode="after")
    def _to_arrivals(self) -> SplitExperiment:
        if self.winner is not None and self.winner.to == "remainder":
            raise ValueError("winner.to: a split has no remainder; write arrivals, or leave it out")
        return self


def check_variants(names: Sequence[str]) -> None:
    """Two variants or more, each with a name of its own.

    Raises:
        ValueError: they are not.
    """
    if len(names) < 2:
        raise ValueError("needs two variants or more; the first is the control")
    if len(set(names)) < len(names):
        raise ValueError("names a variant twice; give each a name of its own")
    if reserved := set(names) & set(_RESERVED):
        raise ValueError(
            f"has a variant called {sorted(reserved)[0]}, a word that has a meaning of its own; rename it"
        )


@dataclass(frozen=True)
class Placed:
    """An experiment with its place in a file.

    Attributes:
        kind: campaign or journey.
        owner: name of the campaign, or `journey.step`.
        weights: variants and their weights.
    """

    name: str
    kind: str
    owner: str
    weights: dict[str, int]
    measures: Measures
    spec: Spec
    location: Location

    @property
    def control(self) -> str:
        """The variant that all others are compared with."""
        return self.measures.control or next(iter(self.weights))

    @property
    def others(self) -> str:
        """Who gets what won, as a sentence begins with them."""
        return "Whoever comes to the split from now on" if self.kind == "journey" else "The remainder"

    @property
    def nobody(self) -> str:
        """What follows where no variant is put in force."""
        return "The split goes on." if self.kind == "journey" else "The remainder gets nothing."

    @property
    def is_proportion(self) -> bool:
        """Whether its metric is one of `MESSAGE_METRICS`: it happens to a contact, or does not."""
        return self.measures.metric in MESSAGE_METRICS

    def place(self, *location: str | int) -> str:
        """`file:line` of a key of the experiment."""
        return self.spec.place(*self.location, *location)

    def problem(self, what: str, hint: str = "", *location: str | int) -> Problem:
        """A mistake at a key of the experiment."""
        where = shown_location((*self.location, *location))
        return Problem(self.place(*location), f"{where}: {what}", hint)


def experiment_problems(
    experiments: Iterable[Placed], *, goals: Collection[str] = (), metrics: Collection[str] | None = None
) -> list[Problem]:
    """What is wrong between experiments, and with what they name in other files.

    Args:
        experiments: all there are.
        goals: owners that have a goal, without which there are no conversions.
        metrics: names of the files in `dbt_project/models/metrics`; None leaves them unchecked.
    """
    problems: list[Problem] = []
    seen: dict[str, Placed] = {}
    slots: list[tuple[LayerSlot, Placed]] = []
    for one in experiments:
        if (other := seen.setdefault(one.name, one)) is not one:
            problems.append(
                one.problem(
                    f"{one.owner} and {other.owner} ({other.place()}) have an experiment {one.name!r}.",
                    "Give each a name of its own; who gets what is a hash of the name.",
                )
            )
        measures = one.measures
        if measures.control is not None and measures.control not in one.weights:
            problems.append(
                one.problem(
                    f"there is no variant {measures.control!r}.",
                    nearest(measures.control, one.weights),
                    "control",
                )
            )
        for name, *location in (
            (measures.metric, "metric"),
            *((rail.metric, "guardrails", at, "metric") for at, rail in enumerate(measures.guardrails)),
            *((other, "others", at) for at, other in enumerate(measures.others)),
        ):
            if name == "conversions" and one.owner not in goals:
                hint = "Write goal, or another metric."
                problems.append(
                    one.problem(f"conversions need a goal, and {one.owner} has none.", hint, *location)
                )
            if metrics is not None and name not in MESSAGE_METRICS and name not in metrics:
                known = [*MESSAGE_METRICS, *sorted(metrics)]
                problems.append(one.problem(f"there is no metric {name!r}.", nearest(name, known), *location))
        if measures.layer is not None:
            slot = measures.layer.slot
            if clash := next((other for taken, other in slots if taken.overlaps(slot)), None):
                problems.append(
                    one.problem(
                        f"its part of layer {slot.layer} overlaps that of {clash.name} ({clash.place('layer')}).",
                        _free(slot, [taken for taken, _ in slots]),
                        "layer",
                    )
                )
            slots.append((slot, one))
    return problems


def _free(slot: LayerSlot, taken: list[LayerSlot]) -> str:
    try:
        free = free_slot(slot.layer, slot.end - slot.start, taken)
    except ValueError as error:
        return f"{error}."
    return f"Free is from {free.start:.0%} to {free.end:.0%}."
