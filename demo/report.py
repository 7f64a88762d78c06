"""The demo's report: who got what, what came back and why, as tables in the terminal and as a page with plots.

Everything shown is read from the marts; the page is one file with its plots inside and fetches nothing.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import polars as pl

from warehouse.client import Warehouse

_INK, _ACCENT, _SOFT = "#1f2933", "#2563eb", "#9db8f2"


@dataclass(frozen=True)
class Report:
    """Frames and facts of one demo run; see the queries for their columns."""

    facts: list[tuple[str, str]]
    customers: pl.DataFrame
    segments: pl.DataFrame
    cohorts: pl.DataFrame
    campaigns: pl.DataFrame
    recommender: pl.DataFrame
    predictions: pl.DataFrame
    predicted: pl.DataFrame
    skips: pl.DataFrame
    why: list[str]
    experiments: list[tuple[str, str, list[str]]]


def read(warehouse: Warehouse, why: list[str], experiments: list[tuple[str, str, list[str]]]) -> Report:
    """Read the report's frames from the marts.

    Args:
        warehouse: the demo's warehouse, models built.
        why: the answer of `mailhouse why` for one message, line by line.
        experiments: of each its name, how it stands in a sentence, and the evidence.
    """
    orders = warehouse.frame(
        """
        select
            count() as rows_read,
            countIf(contact_id is null) as rows_without_customer,
            countIf(status = 'cancelled') as cancellation_rows,
            uniqExact(order_id) as invoices,
            uniqExact(contact_id) as customers
        from marts.order_items
        """
    ).row(0, named=True)
    cleaned = warehouse.frame(
        """
        select count() as rows, uniqExact(order_id) as invoices, uniqExact(contact_id) as customers,
            sum(amount) as revenue
        from marts.order_items
        where contact_id is not null and status = 'placed' and quantity > 0 and unit_price > 0
        """
    ).row(0, named=True)
    facts = [
        ("Rows of the invoice file", f"{orders['rows_read']:,}"),
        ("Invoices, cancellations included", f"{orders['invoices']:,}"),
        ("Customers known", f"{orders['customers']:,}"),
        ("Rows without a customer", f"{orders['rows_without_customer']:,}"),
        ("Rows of cancellations", f"{orders['cancellation_rows']:,}"),
        (
            "Cleaned: rows, invoices, customers",
            f"{cleaned['rows']:,}, {cleaned['invoices']:,}, {cleaned['customers']:,}",
        ),
        ("Cleaned: revenue", f"£{cleaned['revenue']:,.2f}"),
    ]
    return Report(
        facts=facts,
        customers=warehouse.frame(
            """
            select rfm_segment, count() as customers, sum(revenue) as revenue
            from marts.contact_profiles where rfm_segment != ''
            group by rfm_segment order by revenue desc
            """
        ),
        segments=warehouse.frame(
            """
            select segment, count() as contacts from marts.segment_memberships
            where valid_to is null group by segment order by contacts desc
            """
        ),
        cohorts=warehouse.frame("select * from marts.retention_cohorts order by 1, 2"),
        campaigns=warehouse.frame(
            """
            select * replace (if(variant = '', campaign, campaign || ' (' || variant || ')') as campaign)
            from marts.campaign_performance order by campaign, occurrence
            """
        ),
        recommender=warehouse.frame(
            """
            select model, metric, argMax(value, as_of) as value from raw.model_evaluations
            where metric in ('ndcg@10', 'recall@10', 'coverage@10')
            group by model, metric order by metric = 'ndcg@10' desc, metric, value desc, model
            """
        ),
        predictions=warehouse.frame(
            """
            select current.model as model, count() as contacts, avg(current.score) as mean_score,
                any(judged.auc) as auc, any(judged.recency_auc) as recency_auc
            from intermediate.int_predictions__current as current
            left any join (
                select model, model_version,
                    anyIf(value::Nullable(Float64), metric = 'auc') as auc,
                    anyIf(value::Nullable(Float64), metric = 'recency_auc') as recency_auc
                from raw.model_evaluations group by model, model_version
            ) as judged on judged.model = current.model and judged.model_version = current.model_version
            group by model order by model
            """
        ),
        predicted=warehouse.frame(
            """
            select segment, count() as contacts from marts.segment_memberships
            where valid_to is null and segment in ('likely_to_buy', 'likely_to_churn', 'high_future_value')
            group by segment order by segment
            """
        ),
        skips=warehouse.frame(
            """
            select name as campaign, reason, count() as contacts from marts.messages
            where status = 'skipped' group by campaign, reason order by campaign, contacts desc
            """
        ),
        why=why,
        experiments=experiments,
    )


def write_page(report: Report, path: Path, *, now: datetime) -> Path:
    """Write the report as one HTML file; returns its path."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html.j2").render(
        report=report,
        now=now,
        plots={
            "customers": _bars(report.customers, "rfm_segment", "customers", "Customers by RFM segment"),
            "cohorts": _cohorts(report.cohorts),
            "funnel": _funnel(report.campaigns),
        },
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    return path


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _bars(frame: pl.DataFrame, label: str, value: str, title: str) -> str:
    figure, axes = _figure(7, 0.36 * max(frame.height, 3) + 0.8)
    ordered = frame.sort(value)
    bars = axes.barh(
        [name.replace("_", " ") for name in ordered[label]], ordered[value].to_list(), color=_ACCENT
    )
    axes.bar_label(bars, fmt="{:,.0f}", padding=3, color=_INK)
    axes.set_title(title, loc="left", color=_INK)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    return _svg(figure)


def _cohorts(frame: pl.DataFrame) -> str:
    months = sorted(frame["cohort_month"].unique())
    width = int(frame["months_since_first_order"].max() or 0) + 1  # pyright: ignore[reportArgumentType]
    grid = [[float("nan")] * width for _ in months]
    sizes = dict.fromkeys(months, 0)
    for row in frame.to_dicts():
        grid[months.index(row["cohort_month"])][row["months_since_first_order"]] = row["retention_rate"]
        sizes[row["cohort_month"]] = row["cohort_size"]
    figure, axes = _figure(7, 0.42 * len(months) + 1.1)
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=0.6, aspect="auto")
    for y, line in enumerate(grid):
        for x, share in enumerate(line):
            if share == share:  # not NaN
                axes.text(
                    x, y, f"{share:.0%}", ha="center", va="center", color="white" if share > 0.35 else _INK
                )
    axes.set_yticks(range(len(months)), [f"{month:%b %Y}  ({sizes[month]:,})" for month in months])
    axes.set_xticks(range(width), [str(number) for number in range(width)])
    axes.set_xlabel("months since the first order")
    axes.set_title("Share of customers who ordered again", loc="left", color=_INK)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return _svg(figure)


def _funnel(frame: pl.DataFrame) -> str:
    stages = ["sent", "delivered", "opened", "clicked"]
    figure, axes = _figure(7, 3)
    names = frame["campaign"].to_list()
    step = 0.8 / max(len(names), 1)
    shades = [_ACCENT, _SOFT, "#0f766e", "#f59e0b", "#9333ea", "#64748b"]
    for index, row in enumerate(frame.to_dicts()):
        heights = [row[f"{stage}_count"] for stage in stages]
        positions = [x + index * step for x in range(len(stages))]
        bars = axes.bar(
            positions, heights, step * 0.92, label=row["campaign"], color=shades[index % len(shades)]
        )
        axes.bar_label(bars, fmt="{:,.0f}", fontsize=7, color=_INK)
    axes.set_xticks([x + 0.4 - step / 2 for x in range(len(stages))], stages)
    axes.legend(frameon=False, fontsize=8)
    axes.yaxis.set_visible(False)
    axes.spines["left"].set_visible(False)
    axes.set_title("From sent to clicked (people, machines left out)", loc="left", color=_INK)
    return _svg(figure)
