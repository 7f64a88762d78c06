"""Experiments: what came of each variant, and how sure that is. Who gets which is told by whoever sends.

The way through, each step a pure function of the one before:

1. `aggregate(frame, plan.metrics, ...)` or `aggregate_sql(...)`: sufficient statistics, one row a variant.
2. `analyse(sums, plan, is_final=...)`: tests, sequences, posteriors, guardrails, checks.
3. `judge(analysis)`: the verdict in words; `report_html(analysis, verdict)`: its page.

Single statistics are in the modules: `compare`, `sequential`, `bayes`, `power`, `multiple`, `validity`, `segments`,
`guardrails`, `bandit`. Uplift models are in `ml.experiments.uplift`, which imports scikit-learn and is therefore not
imported here; nor are reports (`ml.experiments.report`).
"""

from __future__ import annotations

from ml.experiments.analysis import Analysis, Plan, analyse
from ml.experiments.bandit import thompson_weights
from ml.experiments.guardrails import Guardrail
from ml.experiments.summaries import Metric, Sums, aggregate, aggregate_sql, first_exposures, roll_up
from ml.experiments.verdict import Verdict, judge

__all__ = [
    "Analysis",
    "Guardrail",
    "Metric",
    "Plan",
    "Sums",
    "Verdict",
    "aggregate",
    "aggregate_sql",
    "analyse",
    "first_exposures",
    "judge",
    "roll_up",
    "thompson_weights",
]
