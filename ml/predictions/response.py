"""What goes with more opens: words in the subject line, and how often one writes.

Subject lines are compared within one send only, where people were alike but for the subject. With a test's
random split that is the subject's effect; how often one writes is no experiment, so frequencies are shown for
people of like readiness to read, and may still differ for other reasons.

- Mantel-Haenszel: the odds ratio over strata, sum a d / n over sum b c / n (Mantel and Haenszel, Journal of
  the National Cancer Institute 22, 1959); variance of its logarithm by Robins, Breslow and Greenland,
  Biometrics 42, 1986.
- Direct standardisation: rates of each stratum, weighted alike for all frequencies.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from scipy.special import ndtri

from ml.predictions.base import NotEnoughData

LONG_FROM = 45
"""Characters from which a subject counts as long: about what telephones show."""
TRAITS = {
    "is_long": pl.col("subject").str.len_chars() >= LONG_FROM,
    "has_question": pl.col("subject").str.contains("?", literal=True),
    "has_exclamation": pl.col("subject").str.contains("!", literal=True),
    "has_number": pl.col("subject").str.contains(r"\d"),
    "has_emoji": pl.col("subject").str.contains(r"[\u{2600}-\u{27BF}\u{1F300}-\u{1FAFF}]"),
}
SUBJECT_SCHEMA = pl.Schema(
    {
        "trait": pl.String(),
        "sends": pl.Int64(),
        "messages": pl.Int64(),
        "odds_ratio": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
    }
)
MIN_MESSAGES = 200
"""Messages that a frequency needs in each stratum in which it is compared."""
MOST_BEFORE = 3


def subject_response(messages: pl.DataFrame) -> pl.DataFrame:
    """How opens differ with traits of the subject, within sends that had subjects with and without.

    Args:
        messages: send (text: what went out together), subject, sent and opened (counts), a row a send and
            subject.

    Returns:
        A frame of `SUBJECT_SCHEMA`, a row a trait that can be told: in how many sends, the odds of an open
        with it over those without, and the 95 % interval.

    Raises:
        ValueError: a count is negative, or more were opened than sent.
        NotEnoughData: no send had subjects that differ in a trait.
    """
    if messages.filter((pl.col("opened") < 0) | (pl.col("opened") > pl.col("sent"))).height:
        raise ValueError("messages: opened must be between 0 and sent")
    frame = messages.with_columns(
        pl.col("sent", "opened").cast(pl.Float64), *(trait.alias(name) for name, trait in TRAITS.items())
    )
    rows = []
    for name in TRAITS:
        cells = (
            frame.group_by("send")
            .agg(
                pl.col("opened").filter(pl.col(name)).sum().alias("a"),
                (pl.col("sent") - pl.col("opened")).filter(pl.col(name)).sum().alias("b"),
                pl.col("opened").filter(~pl.col(name)).sum().alias("c"),
                (pl.col("sent") - pl.col("opened")).filter(~pl.col(name)).sum().alias("d"),
            )
            .filter((pl.col("a") + pl.col("b") > 0) & (pl.col("c") + pl.col("d") > 0))
        )
        found = _mantel_haenszel(*(cells[letter].to_numpy() for letter in "abcd"))
        if found is not None:
            total = int(cells.select(pl.sum_horizontal("a", "b", "c", "d").sum()).item())
            rows.append((name, cells.height, total, *found))
    if not rows:
        raise NotEnoughData(
            "not enough data: no send went out with subjects that differ in length, a question, an exclamation, a "
            "number or an emoji, and was opened; test two subjects in one campaign"
        )
    return pl.DataFrame(rows, schema=SUBJECT_SCHEMA, orient="row")


def _mantel_haenszel(
    a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray
) -> tuple[float, float, float] | None:
    n = a + b + c + d
    if not len(n):
        return None
    r, s = a * d / n, b * c / n
    if r.sum() <= 0 or s.sum() <= 0:
        return None
    p, q = (a + d) / n, (b + c) / n
    variance = (
        (p * r).sum() / (2 * r.sum() ** 2)
        + (p * s + q * r).sum() / (2 * r.sum() * s.sum())
        + (q * s).sum() / (2 * s.sum() ** 2)
    )
    log_ratio, half = np.log(r.sum() / s.sum()), ndtri(0.975) * np.sqrt(variance)
    return float(np.exp(log_ratio)), float(np.exp(log_ratio - half)), float(np.exp(log_ratio + half))


def frequency_response(messages: pl.DataFrame) -> pl.DataFrame:
    """Opens, clicks and unsubscribes of a message by how many were sent in the week before it.

    Args:
        messages: before (messages in the seven days before), readiness (any: people of one value are alike),
            sent, opened, clicked and unsubscribed (counts).

    Returns:
        before (0 to 3, 3 for three and more), sent, and open_rate, click_rate and unsubscribe_rate, as they
        would be if all had the same mix of readiness: that of all messages in strata where every frequency
            shown has 200.

    Raises:
        NotEnoughData: fewer than two frequencies can be compared.
    """
    counts = ("sent", "opened", "clicked", "unsubscribed")
    cells = (
        messages.with_columns(pl.col("before").clip(0, MOST_BEFORE).cast(pl.Int64))
        .group_by("before", "readiness")
        .agg(pl.col(counts).cast(pl.Float64).sum())
        .filter(pl.col("sent") >= MIN_MESSAGES)
    )
    # the frequencies that most strata share, and the strata that have them all
    per_frequency = cells.group_by("before").agg(pl.col("readiness").n_unique().alias("strata"))
    shown = per_frequency.filter(pl.col("strata") == pl.col("strata").max())["before"]
    strata = (
        cells.filter(pl.col("before").is_in(shown.implode()))
        .group_by("readiness")
        .agg(pl.len().alias("n"), pl.col("sent").sum().alias("weight"))
        .filter(pl.col("n") == shown.len())
    )
    if shown.len() < 2 or not strata.height:
        raise NotEnoughData(
            f"not enough data: frequencies are compared where at least two of them have {MIN_MESSAGES} messages to "
            "people who are alike"
        )
    total = float(strata["weight"].sum())
    share = pl.col("weight") / total
    return (
        cells.join(strata, on="readiness")
        .filter(pl.col("before").is_in(shown.implode()))
        .group_by("before")
        .agg(
            pl.col("sent").sum().cast(pl.Int64),
            (pl.col("opened") / pl.col("sent") * share).sum().alias("open_rate"),
            (pl.col("clicked") / pl.col("sent") * share).sum().alias("click_rate"),
            (pl.col("unsubscribed") / pl.col("sent") * share).sum().alias("unsubscribe_rate"),
        )
        .sort("before")
    )
