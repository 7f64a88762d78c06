"""Experiments: who gets which variant, what came of it, and how sure that is.

The way through, each step a pure function of the one before:

1. `Allocation(...).assign(contact_ids)` or `.sql()`: variants, the same in Python and in ClickHouse.
2. `aggregate(frame, plan.metrics, ...)` or `aggregate_sql(...)`: sufficient statistics, one row a variant.
3. `analyse(sums, plan, is_final=...)`: tests, sequences, posteriors, guardrails, checks.
4. `judge(analysis)`: the verdict in words; `report_html(analysis, verdict)`: its page.

Single statistics are in the modules: `compare`, `sequential`, `bayes`, `power`, `multiple`, `validity`, `segments`,
`guardrails`, `bandit`. Uplift models are in `ml.experiments.uplift`, which imports scikit-learn and is therefore not
imported here; nor are reports (`ml.experiments.report`).
"""

from __future__ import annotations

from ml.experiments.analysis import Analysis, Plan, analyse
from ml.experiments.assignment import (
    HOLDOUT,
    OUTSIDE,
    REMAINDER,
    Allocation,
    Holdout,
    LayerSlot,
    free_slot,
)
from ml.experiments.bandit import thompson_weights
from ml.experiments.guardrails import Guardrail
from ml.experiments.summaries import Metric, Sums, aggregate, aggregate_sql, first_exposures, roll_up
from ml.experiments.verdict import Verdict, judge

__all__ = [
    "HOLDOUT",
    "OUTSIDE",
    "REMAINDER",
    "Allocation",
    "Analysis",
    "Guardrail",
    "Holdout",
    "LayerSlot",
    "Metric",
    "Plan",
    "Sums",
    "Verdict",
    "aggregate",
    "aggregate_sql",
    "analyse",
    "first_exposures",
    "free_slot",
    "judge",
    "roll_up",
    "thompson_weights",
]
