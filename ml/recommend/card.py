"""A model card: what a recommender was trained on, how it was chosen, how good it is, and what it can't do."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import polars as pl

from ml.recommend.base import Recommender
from ml.recommend.rules import Rules
from ml.recommend.selection import BASELINE, TEST, VALIDATION, Selection


def model_card(
    selection: Selection, interactions: pl.DataFrame, *, version: str, fitted_at: datetime, rules: Rules
) -> str:
    """The card in Markdown.

    Args:
        selection: how it was chosen.
        interactions: all that the winner is fitted on.
        version: of the model.
        fitted_at: when.
        rules: that its lists keep.
    """
    k = selection.k
    newest, oldest = interactions["ordered_at"].max(), interactions["ordered_at"].min()
    span = f"{oldest:%d %b %Y} to {newest:%d %b %Y}" if interactions.height else "nothing"
    lines = [
        f"### {selection.winner}, version {version}",
        "",
        f"{selection.why}",
        "",
        f"- **Trained on** {interactions.height:,} order lines of {interactions['contact_id'].n_unique():,} "
        f"contacts and {interactions['product_id'].n_unique():,} products, {span} (UTC); "
        f"fitted {fitted_at:%d %b %Y %H:%M} UTC.",
        f"- **Parameters** `{parameters(selection.estimator)}`",
        f"- **Rules** {_rules(rules)}",
    ]
    for fold, purpose in ((VALIDATION, "chosen on"), (TEST, "reported on")):
        rows = selection.comparison.filter((pl.col("fold") == fold) & (pl.col("metric") == f"ndcg@{k}"))
        if rows.height:
            row = rows.row(0, named=True)
            lines.append(
                f"- **{fold.capitalize()} fold** ({purpose}): what {row['contacts']:,} contacts bought from "
                f"{row['cutoff']:%d %b %Y} on; learnt from what came before."
            )
    if selection.comparison.height:
        lines += ["", *_table(selection)]
    lines += [
        "",
        "**Limits.** Judged on contacts who had bought before and came back; for all others nothing is known but "
        "what is popular. A purchase that no mail suggested says little about one that a mail would cause: "
        f"NDCG@{k} ranks models, it does not forecast sales; a holdout or an experiment does. Intervals are 95 % "
        "bootstrap over contacts of one period, and know nothing of seasons. Names and prices of the catalogue are "
        "today's, also in the folds.",
    ]
    return "\n".join(lines)


def parameters(estimator: Recommender) -> dict[str, Any]:
    """The parameters of an estimator, and of its parts, as they can be written down."""
    found: dict[str, Any] = {"class": type(estimator).__name__}
    for name, value in estimator.get_params(deep=False).items():
        if name == "estimators" and value is not None:
            found[name] = {part: parameters(one) for part, one in value}
        elif isinstance(value, str | int | float | bool | list) or value is None:
            found[name] = value
        else:
            found[name] = str(value)
    return found


def _rules(rules: Rules) -> str:
    said = [
        "what a contact bought is not recommended again"
        if rules.exclude_bought is True
        else "what a contact bought may be recommended again"
        + ("" if rules.exclude_bought is False else f" after {rules.exclude_bought.days} days")
    ]
    if rules.candidates is not None:
        said.append(f"{len(rules.candidates):,} products available")
    if rules.per_category is not None:
        said.append(f"at most {rules.per_category} of a category")
    if rules.diversity > 0:
        said.append(f"diversity {rules.diversity:g}")
    return "; ".join(said) + "."


def _table(selection: Selection) -> list[str]:
    k = selection.k
    lines = [
        f"| candidate | NDCG@{k} validation | NDCG@{k} test | over {BASELINE} | recall@{k} | products shown "
        "| seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in selection.summary().iter_rows(named=True):
        name = f"**{row['estimator']}**" if row["is_chosen"] else row["estimator"]
        gain = (
            ""
            if row["gain"] is None
            else f"{row['gain']:+.4f} ({row['gain_low']:+.4f} to {row['gain_high']:+.4f})"
        )
        cells = [
            name,
            _number(row[f"ndcg@{k} validation"]),
            _number(row[f"ndcg@{k} test"]),
            gain,
            _number(row[f"recall@{k} test"]),
            "" if row[f"coverage@{k} test"] is None else f"{row[f'coverage@{k} test']:.1%}",
            f"{row['seconds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
