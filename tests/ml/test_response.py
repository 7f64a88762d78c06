"""What subject lines and frequency go with: known tables, made-up people, and too little mail."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from ml.predictions.base import NotEnoughData
from ml.predictions.response import frequency_response, subject_response


def test_one_send_gives_the_odds_ratio_of_its_table() -> None:
    table = pl.DataFrame(
        {"send": ["a", "a"], "subject": ["Ready?", "Ready"], "sent": [1_000, 1_000], "opened": [300, 200]}
    )
    row = subject_response(table).row(0, named=True)
    assert row["trait"] == "has_question" and row["sends"] == 1 and row["messages"] == 2_000
    assert row["odds_ratio"] == pytest.approx(300 * 800 / (200 * 700))
    # of one table: Woolf's variance of the logarithm
    half = 1.96 * np.sqrt(1 / 300 + 1 / 700 + 1 / 200 + 1 / 800)
    assert np.log(row["high"] / row["odds_ratio"]) == pytest.approx(half, rel=1e-3)


def test_sends_to_different_people_are_not_compared_with_each_other() -> None:
    """Questions went to keen readers, but within each send they made no difference."""
    table = pl.DataFrame(
        {
            "send": ["keen", "keen", "cool", "cool", "other"],
            "subject": ["Ready?", "Ready", "Ready?", "Ready", "Ready? Now? 🎁"],
            "sent": [900, 100, 100, 900, 500],
            "opened": [540, 60, 10, 90, 499],
        }
    )
    found = subject_response(table)
    assert found["trait"].to_list() == ["has_question"]
    assert found["odds_ratio"][0] == pytest.approx(1.0)
    assert found["low"][0] < 1 < found["high"][0]


def test_without_two_subjects_in_a_send_nothing_is_told() -> None:
    single = pl.DataFrame(
        {"send": ["a", "b"], "subject": ["Ready?", "Ready"], "sent": [9, 9], "opened": [3, 3]}
    )
    for table in (single, single.head(0)):
        with pytest.raises(NotEnoughData, match="test two subjects"):
            subject_response(table)
    with pytest.raises(ValueError, match="between 0 and sent"):
        subject_response(single.with_columns(opened=pl.lit(10)))


def test_frequencies_are_compared_among_people_who_are_alike() -> None:
    """The keen get more mail; among people who are alike each further message lowers opens by a tenth."""
    rows = [
        (before, band, sent, int(sent * rate * 0.9**before), 0, int(sent * 0.01 * (1 + before)))
        for band, rate in (("keen", 0.5), ("cool", 0.1))
        for before, sent in ((0, 1_000), (1, 5_000 if band == "keen" else 500), (2, 400))
    ]
    schema = ["before", "readiness", "sent", "opened", "clicked", "unsubscribed"]
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    found = frequency_response(
        pl.concat([frame, frame.head(1).with_columns(before=pl.lit(7, pl.Int64), sent=pl.lit(50, pl.Int64))])
    )
    assert found["before"].to_list() == [0, 1, 2]
    rates = found["open_rate"].to_list()
    assert rates[1] / rates[0] == pytest.approx(0.9, abs=0.01)
    assert rates[2] / rates[0] == pytest.approx(0.81, abs=0.01)
    assert found["unsubscribe_rate"].to_list() == pytest.approx([0.01, 0.02, 0.03])
    for few in (frame.head(0), frame.filter(pl.col("before") == 0), frame.with_columns(sent=pl.lit(10))):
        with pytest.raises(NotEnoughData, match="at least two"):
            frequency_response(few)
