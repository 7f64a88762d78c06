"""Who is in which variant of an experiment, as it was settled, and what was decided: rows that a rerun finds.

`campaigns.experiment_allocations` holds how each occurrence of a campaign was divided (and each batch of a bandit),
written before the first message goes: what somebody edits in the file meanwhile moves nobody. Which contact is where
follows from it by the hash of `campaigns.assignment`. `campaigns.experiment_decisions` holds the one decision that an
experiment comes to. Of two rows that say the same thing the first counts.

`parts_of` cuts an occurrence into parts: each variant, who is outside, who is held out, and, once it is decided, the
remainder. Parts have a message each; the ledger takes care that nobody gets two.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from campaigns.assignment import HOLDOUT, OUTSIDE, REMAINDER, Allocation, Holdout, LayerSlot, batch_sql
from campaigns.catalogue import record_rows
from campaigns.experiment_specs import Placed
from campaigns.specs import CampaignSpec
from warehouse.client import Warehouse
from warehouse.errors import InputError

KIND = "experiment"
"""What rows of `raw.campaigns` about experiments have as their kind."""

_TABLES = (
    "create database if not exists campaigns",
    """
    create table if not exists campaigns.experiment_allocations (
        experiment LowCardinality(String),
        occurrence String,
        batch UInt16,
        definition String,
        settled_at DateTime64(6, 'UTC') default now64(6),
        row_id UUID
    ) engine = MergeTree order by (experiment, occurrence, batch, settled_at, row_id)
    comment 'How an occurrence (a batch of it) was divided: experiment, occurrence, batch. The first row counts.'
    """,
    """
    create table if not exists campaigns.experiment_decisions (
        experiment LowCardinality(String),
        outcome LowCardinality(String),
        winner String,
        rule LowCardinality(String),
        headline String,
        words String,
        decided_at DateTime64(3, 'UTC'),
        written_at DateTime64(6, 'UTC') default now64(6),
        row_id UUID
    ) engine = MergeTree order by (experiment, written_at, row_id)
    comment 'What an experiment came to: experiment. The first row counts.'
    """,
)


@dataclass(frozen=True)
class Decision:
    """What an experiment came to.

    Attributes:
        outcome: of `ml.experiments.verdict`, `best_chance` (bayes), or `by_hand`.
        winner: the variant that the remainder gets, or whoever comes to the split later; empty if the remainder gets
            nothing, and the split goes on dividing.
        rule: how it was decided: fixed, anytime, bayes, otherwise or by_hand.
        headline: a sentence.
        words: all that was said, as Markdown.
    """

    experiment: str
    outcome: str
    winner: str
    rule: str
    headline: str
    words: str
    decided_at: datetime


@dataclass(frozen=True)
class Settled:
    """How an occurrence, or a batch of it, is divided.

    Attributes:
        batch: which of a bandit's batches, from 0; `batches` is how many there are.
        winner: the experiment was decided before: everybody but the holdout is the remainder and gets this variant.
    """

    experiment: str
    occurrence: str
    allocation: Allocation
    batch: int = 0
    batches: int = 1
    winner: str = ""

    def label_sql(self, contact_id: str = "contact_id") -> str:
        """A ClickHouse expression of a contact's variant, `holdout`, `remainder`, or empty for outside."""
        return self.allocation.sql(contact_id)

    def condition_sql(self, contact_id: str = "contact_id") -> str:
        """Whether a contact is in this batch."""
        if self.batches == 1:
            return "true"
        return f"{batch_sql(self.experiment, self.batches, contact_id)} = {self.batch}"


@dataclass(frozen=True)
class Part:
    """A part of an occurrence that is sent by itself.

    Attributes:
        key: names it among the parts of the occurrence.
        label: what its messages have as their variant.
        variant: whose content it gets; empty is what `send` says.
        condition: SQL over `contact_id`.
        due_at: when it may go, at the earliest.
    """

    key: str
    label: str
    variant: str
    condition: str
    due_at: datetime


def define_tables(warehouse: Warehouse) -> None:
    """Make the tables if they are not there."""
    for statement in _TABLES:
        warehouse.define(statement)


def has_tables(warehouse: Warehouse) -> bool:
    """Whether an experiment has ever been settled here."""
    return bool(
        warehouse.value(
            "select count() from system.tables where database = 'campaigns' and name = 'experiment_allocations'"
        )
    )


def record_experiments(warehouse: Warehouse, experiments: Iterable[tuple[Placed, str]]) -> int:
    """Write to `raw.campaigns` what the files say of experiments, for the marts; returns the number of rows.

    Args:
        experiments: each with the version of the file that it is in.
    """
    return record_rows(
        warehouse,
        KIND,
        [
            {
                "kind": KIND, "name": one.name, "version": version, "description": "", "channel": "", "category": "",
                "segment": "", "goal_event": "", "goal_where": "", "goal_within_seconds": 0, "experiment": one.name,
                "spec": json.dumps(
                    {
                        "owner_kind": one.kind, "owner": one.owner, "control": one.control,
                        "metric": one.measures.metric,
                        "window_seconds": int(one.measures.within.total_seconds()),
                    }
                ),
            }
            for one, version in experiments
        ],
    )  # fmt: skip


def settled(warehouse: Warehouse, experiment: str) -> dict[tuple[str, int], Settled]:
    """How each occurrence and batch of an experiment was divided, oldest first."""
    if not has_tables(warehouse):
        return {}
    rows = warehouse.frame(
        """
        select occurrence, batch, definition from campaigns.experiment_allocations
        where experiment = {experiment:String}
        order by occurrence, batch, settled_at, row_id limit 1 by occurrence, batch
        """,
        {"experiment": experiment},
    )
    return {
        (occurrence, batch): _read(experiment, occurrence, batch, json.loads(definition))
        for occurrence, batch, definition in rows.iter_rows()
    }


def settle(
    warehouse: Warehouse,
    spec: CampaignSpec,
    occurrence: str,
    *,
    batch: int = 0,
    weights: Mapping[str, float] | None = None,
    decision: Decision | None = None,
) -> Settled:
    """Settle how an occurrence is divided, once: later calls, also of other processes, give the same.

    Args:
        batch: which of a bandit's batches.
        weights: a bandit's; left out, those of the file.
        decision: the experiment has been decided: nobody is tested any more.
    """
    placed, experiment = spec.placed_experiment(), spec.experiment
    assert placed is not None and experiment is not None
    known = settled(warehouse, placed.name)
    if (occurrence, batch) in known:
        return known[occurrence, batch]
    define_tables(warehouse)
    holdout, layer = experiment.holdout, experiment.layer
    definition = {
        "weights": dict(weights or experiment.weights),
        "traffic": 0 if decision else experiment.traffic,
        "layer": [layer.name, layer.start, layer.end] if layer and not decision else None,
        "holdout": [holdout.name, holdout.share] if holdout else None,
        "batches": experiment.batches.count if experiment.batches else 1,
        "winner": decision.winner if decision else "",
    }
    warehouse.insert(
        "campaigns.experiment_allocations",
        pl.DataFrame(
            {
                "experiment": [placed.name], "occurrence": [occurrence], "batch": [batch],
                "definition": [json.dumps(definition)], "row_id": [str(uuid.uuid4())],
            }
        ),
    )  # fmt: skip
    # another process may have been first: the earliest row counts for all
    return settled(warehouse, placed.name)[occurrence, batch]


def _read(experiment: str, occurrence: str, batch: int, definition: dict[str, Any]) -> Settled:
    holdout, layer = definition["holdout"], definition["layer"]
    allocation = Allocation(
        experiment,
        definition["weights"],
        traffic=definition["traffic"],
        layer=LayerSlot(*layer) if layer else None,
        holdout=Holdout(*holdout) if holdout else None,
    )
    return Settled(experiment, occurrence, allocation, batch, definition["batches"], definition["winner"])


def parts_of(
    spec: CampaignSpec, occurrence: datetime, divisions: Sequence[Settled], decision: Decision | None
) -> list[Part]:
    """The parts of an occurrence, in the order in which they go.

    Args:
        divisions: of this occurrence, one a batch that has been settled.
        decision: what the experiment came to, None if nothing yet: the remainder waits.

    Raises:
        InputError: the file no longer has a variant that was settled.
    """
    experiment = spec.experiment
    assert experiment is not None
    parts: list[Part] = []
    moment = occurrence.astimezone(UTC)
    for one in divisions:
        at = moment + (experiment.batches.every * one.batch if experiment.batches else timedelta(0))
        label, within = one.label_sql(), one.condition_sql()
        suffix = f"#{one.batch}" if one.batches > 1 else ""

        def part(
            name: str,
            variant: str,
            due_at: datetime,
            *,
            label: str = label,
            within: str = within,
            suffix: str = suffix,
        ) -> Part:
            condition = f"{label} = '{name}'" + (f" and {within}" if within != "true" else "")
            return Part(f"{name or 'outside'}{suffix}", name, variant, condition, due_at)

        allocation = one.allocation
        if allocation.traffic > 0:
            for name in allocation.weights:
                _require_variant(spec, name)
                delay = experiment.variant(name).delay or timedelta(0)
                parts.append(part(name, name, at + delay))
        if allocation.layer is not None:
            parts.append(part(OUTSIDE, "", at))
        if allocation.holdout is not None:
            parts.append(part(HOLDOUT, "", at))
        winner = one.winner or (decision.winner if decision else "")
        if allocation.traffic < 1 and winner:
            _require_variant(spec, winner)
            parts.append(part(REMAINDER, winner, max(at, decision.decided_at) if decision else at))
    return parts


def _require_variant(spec: CampaignSpec, name: str) -> None:
    experiment = spec.experiment
    assert experiment is not None
    if name not in experiment.weights:
        raise InputError(
            f"{spec.place('experiment', 'variants')}: the experiment is under way with a variant {name!r}, which the "
            "file no longer has.",
            fix="Put it back, or give the experiment a new name, which begins a new one.",
        )


def decision_of(warehouse: Warehouse, experiment: str) -> Decision | None:
    """What an experiment came to, None if it has not been decided."""
    if not has_tables(warehouse):
        return None
    rows = warehouse.frame(
        """
        select toString(experiment) as experiment, toString(outcome) as outcome, winner, toString(rule) as rule,
            headline, words, decided_at
        from campaigns.experiment_decisions where experiment = {experiment:String}
        order by written_at, row_id limit 1
        """,
        {"experiment": experiment},
    )
    return Decision(**rows.row(0, named=True)) if rows.height else None


def winners_of(warehouse: Warehouse, experiments: Collection[str]) -> dict[str, Decision]:
    """Those of several experiments that have been decided for a variant."""
    if not experiments or not has_tables(warehouse):
        return {}
    found = {name: decision_of(warehouse, name) for name in experiments}
    return {name: decision for name, decision in found.items() if decision is not None and decision.winner}


def decide(warehouse: Warehouse, decision: Decision) -> Decision:
    """Write a decision, once; the answer is the one that counts, which may be an earlier one.

    Two processes must not do this at a time: hold `senders.leases`.
    """
    if (known := decision_of(warehouse, decision.experiment)) is not None:
        return known
    define_tables(warehouse)
    warehouse.insert(
        "campaigns.experiment_decisions",
        pl.DataFrame(
            {
                "experiment": [decision.experiment], "outcome": [decision.outcome], "winner": [decision.winner],
                "rule": [decision.rule], "headline": [decision.headline], "words": [decision.words],
                "decided_at": [decision.decided_at], "row_id": [str(uuid.uuid4())],
            }
        ),
    )  # fmt: skip
    written = decision_of(warehouse, decision.experiment)
    assert written is not None
    return written


def assignment_lines(
    warehouse: Warehouse, experiment: str, variant: str, occurrence: str, contact_id: int
) -> list[str]:
    """How a contact came to a variant, from what was settled; for `mailhouse why`. Empty if nothing is stored."""
    known = settled(warehouse, experiment)
    here = [one for (which, _), one in known.items() if which == occurrence] or list(known.values())[:1]
    batch = 0
    if here and here[0].batches > 1:
        batch = int(
            warehouse.value(
                f"select toUInt16({batch_sql(experiment, here[0].batches, '{contact_id:Int64}')})",
                {"contact_id": contact_id},
            )
        )
    division = next((one for one in here if one.batch == batch), None)
    lines: list[str] = []
    if division is not None:
        words = division.allocation.words(contact_id)
        lines.append(words + (f" (batch {batch + 1} of {division.batches})" if division.batches > 1 else ""))
    if variant == REMAINDER and (decision := decision_of(warehouse, experiment)) is not None:
        lines.append(
            f"not tested; got {decision.winner}, decided {decision.decided_at:%Y-%m-%d %H:%M UTC}: {decision.headline}"
        )
    return lines
