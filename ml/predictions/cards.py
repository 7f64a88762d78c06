"""Model cards: what a model predicts, what it was learnt from, how it did and what it cannot do, as Markdown
with its plot.

After Mitchell and others, Model cards for model reporting, FAT* 2019.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import polars as pl

from ml.predictions.drift import LARGE, MODERATE

_INK, _ACCENT, _SOFT = "#1f2933", "#2563eb", "#9db8f2"


def model_card(
    title: str,
    facts: Mapping[str, str],
    evaluation: pl.DataFrame,
    deciles: pl.DataFrame,
    drift: pl.DataFrame,
    *,
    is_share: bool,
) -> str:
    """A card.

    Args:
        title: its heading.
        facts: lines of what it is.
        evaluation: model, metric and value.
        deciles: as in `ml.predictions.predictors.Judgement`.
        drift: `ml.predictions.drift.DRIFT_SCHEMA`; may be empty.
        is_share: whether scores are probabilities; else counts.

    Returns:
        Markdown; the plot is inside, as a data URI.
    """
    lines = [f"## {title}", "", *(f"- **{name}**: {value}" for name, value in facts.items()), ""]
    lines += [f"![forecast and what came, by tenths of the score]({_plot(deciles, is_share=is_share)})", ""]
    models = evaluation["model"].unique(maintain_order=True).to_list()
    lines += ["| metric | " + " | ".join(models) + " |", "| --- |" + " ---: |" * len(models)]
    values = {(row["model"], row["metric"]): row["value"] for row in evaluation.to_dicts()}
    for metric in evaluation["metric"].unique(maintain_order=True):
        cells = [values.get((model, metric)) for model in models]
        lines.append(f"| {metric} | " + " | ".join("" if x is None else f"{x:.4f}" for x in cells) + " |")
    if drift.height:
        lines += [
            "",
            f"Population stability (below {MODERATE} stable, from {LARGE} large), furthest first:",
            "",
        ]
        lines += ["| feature | index | chance | verdict |", "| --- | ---: | ---: | --- |"]
        lines += [
            f"| {row['feature']} | {row['psi']:.3f} | {row['chance']:.3f} | {row['verdict']} |"
            for row in drift.head(8).to_dicts()
        ]
    return "\n".join(lines)


def _plot(deciles: pl.DataFrame, *, is_share: bool) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.4), layout="constrained", dpi=80)
    axes = figure.add_subplot()
    x, y = deciles["mean_score"].to_numpy(), deciles["happened"].to_numpy()
    below, above = y - deciles["low"].to_numpy(), deciles["high"].to_numpy() - y
    end = 1.0 if is_share else float(max(x.max(), deciles["high"].max(), 1e-9)) * 1.05  # pyright: ignore
    axes.plot([0, end], [0, end], color=_SOFT, linewidth=1)
    axes.errorbar(
        x, y, yerr=[below.clip(0), above.clip(0)], fmt="o", color=_ACCENT, ecolor=_SOFT, markersize=4
    )
    axes.set_xlim(0, end)
    axes.set_ylim(0, end)
    axes.set_xlabel("mean score" if is_share else "days with an order, forecast", color=_INK)
    axes.set_ylabel("share to whom it happened" if is_share else "days with an order, came", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
