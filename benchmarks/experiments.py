"""What an experiment of many contacts costs: python benchmarks/experiments.py [--contacts 10000000].

Assignment beside a loop over SHA-256 (a tenth of the contacts, scaled), sufficient statistics beside Welch's tests by
scipy on the contacts' own values, and the analysis that needs nothing but the sums. Times are of the processor, all
cores together; memory is the most that the process has held by then, the frame of contacts included.
"""

# ruff: noqa: E402 - the path must be set right first

from __future__ import annotations

import argparse
import hashlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# the folder of this file has names of ours in it: imports must not find this very file
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import polars as pl
from scipy import stats

from campaigns.assignment import Allocation
from ml.experiments import (
    Guardrail,
    Metric,
    Plan,
    aggregate,
    analyse,
    first_exposures,
    judge,
)
from ml.experiments.report import report_html

WEIGHTS = {"plain": 1.0, "emoji": 1.0}
ORDERED = Metric("ordered", "proportion")
REVENUE = Metric("revenue", covariates=("revenue_before",))
UNSUBSCRIBED = Metric("unsubscribed", "proportion", lower_is_better=True)
DAYS = 14


def contacts(n: int, allocation: Allocation) -> pl.DataFrame:
    """n contacts with three metrics and one covariate; no variant does anything."""
    rng = np.random.default_rng(0)
    is_buyer = rng.random(n, dtype=np.float32) < 0.05
    before = rng.gamma(2, 20, n)
    return pl.DataFrame(
        {
            "contact_id": np.arange(n),
            "variant": allocation.assign(np.arange(n)),
            "exposed_at": pl.Series(rng.integers(0, DAYS * 86_400_000, n)).cast(pl.Datetime("ms", "UTC")),
            "ordered": is_buyer.astype(np.int8),
            "revenue": is_buyer * (before + rng.gamma(2, 20, n)),
            "revenue_before": before,
            "unsubscribed": (rng.random(n, dtype=np.float32) < 0.002).astype(np.int8),
        }
    )


def loop_over_sha256(n: int) -> list[bool]:
    """The assignment that is written first."""
    return [hashlib.sha256(b"test/%d" % contact).digest()[0] < 128 for contact in range(n)]


def tests_on_values(frame: pl.DataFrame) -> list[float]:
    """p-values of all metrics, unadjusted, from the values themselves."""
    is_plain = frame["variant"] == "plain"
    names = ("ordered", "revenue", "unsubscribed")
    return [
        float(stats.ttest_ind(frame[n].filter(is_plain), frame[n].filter(~is_plain), equal_var=False).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
        for n in names
    ]


def measured(name: str, contacts: int, call: Callable[[], Any], *, scale: int = 1) -> Any:
    """Run, print a line, return what came out."""
    started = time.process_time()
    result = call()
    seconds = (time.process_time() - started) * scale
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{name:<44} {seconds:8.2f} s  {contacts / max(seconds, 1e-9) / 1e6:9.2f} M/s  {peak:8,.0f} MB")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contacts", type=int, default=10_000_000)
    n = parser.parse_args().contacts
    allocation = Allocation("benchmark", WEIGHTS)
    print(f"{n:,} contacts{'':<33} processor      contacts        peak")
    frame = contacts(n, allocation)
    measured("assign", n, lambda: allocation.assign(frame["contact_id"]))
    measured("  a loop over SHA-256 (scaled)", n, lambda: loop_over_sha256(n // 10), scale=10)
    plan = Plan(
        "benchmark",
        WEIGHTS,
        "plain",
        ORDERED,
        n,
        0.02,
        (Guardrail(UNSUBSCRIBED, 0.1),),
        (REVENUE,),
        ("revenue_before",),
    )
    sums = measured("aggregate", n, lambda: aggregate(frame, plan.metrics, balance=plan.balance))
    measured("  scipy's Welch tests on the values", n, lambda: tests_on_values(frame))
    analysis = measured("analyse the sums", n, lambda: analyse(sums, plan, is_final=True))
    measured("judge and write the page", n, lambda: report_html(analysis, judge(analysis)))
    measured("first_exposures", n, lambda: first_exposures(frame))


if __name__ == "__main__":
    main()
