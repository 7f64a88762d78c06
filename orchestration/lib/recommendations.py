"""Recommendations from the warehouse and back: read orders, compare models, fit the best, store a version."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from datetime import datetime, timedelta

import orjson
import polars as pl

from campaigns.permissions import restricted_sql
from ml.dataset import InteractionMatrix
from ml.recommend import Rules
from ml.recommend.card import model_card, parameters
from ml.recommend.selection import TEST, Selection, default_candidates, select
from orchestration.settings import OrchestrationSettings
from warehouse.client import Warehouse

PRODUCTS_EACH = 10
IN_PLACE = "recommender_in_place"
"""Metric of `raw.model_evaluations`: a row a refresh, its model the one whose recommendations are stored; 1 if it took
the place of another, 0 if it was in place before."""

BECAUSE = "because you bought "
"""How a reason begins that names a purchase; the product's name follows."""


@dataclass(frozen=True)
class Refreshed:
    """What a refresh stored and how good it was.

    Attributes:
        selection: how the model was chosen.
        model_version: the time it was fitted, to the second.
        contacts: how many contacts got recommendations.
        card: the model card, in Markdown.
    """

    selection: Selection
    model_version: str
    contacts: int
    card: str

    @property
    def model(self) -> str:
        """Name of the model whose recommendations are stored."""
        return self.selection.winner

    def metric(self, name: str) -> float | None:
        """A metric of the stored model on the test fold, None if it could not be judged."""
        return self.selection.metric(self.model, name)


def rules_of(settings: OrchestrationSettings, candidates: list[str] | None = None) -> Rules:
    """The rules that the settings ask for."""
    days = settings.recommend_again_after_days
    return Rules(
        exclude_bought=timedelta(days=days) if days else True,
        candidates=candidates,
        per_category=settings.recommend_per_category or None,
        diversity=settings.recommend_diversity,
    )


def refresh_recommendations(
    warehouse: Warehouse, now: datetime, settings: OrchestrationSettings | None = None
) -> Refreshed:
    """Compare the candidates on every order so far, fit the winner on all, store the best products of every contact.

    The one in place stays unless the one chosen does better than it on the last fold; whichever wins is fitted anew, so
    that new orders and contacts count. The version is the time, to the second: running it again for the same second
    replaces its rows, and any other run adds a version, of which models read the newest.
    """
    settings = settings or OrchestrationSettings.load()
    version = now.strftime("%Y%m%dT%H%M%SZ")
    interactions = warehouse.frame(
        f"""
        select assumeNotNull(contact_id) as contact_id, product_id, ordered_at, quantity
        from marts.order_items
        where contact_id is not null and status = 'placed' and quantity > 0 and unit_price > 0
            and product_id not in (select product_id from marts.products where is_service)
            and not {restricted_sql("contact_id")}
        """  # noqa: S608 - of our own making
    )
    products = warehouse.frame(
        """
        select product_id, name, category, toFloat64(price) as price, is_available
        from marts.products where not is_service order by product_id
        """
    )
    catalogue = products.drop("is_available")
    people = warehouse.frame(
        f"""
        select contact_id, country from marts.contacts where not {restricted_sql("contact_id")} order by contact_id
        """  # noqa: S608 - of our own making
    )
    groups = people.select("contact_id", pl.col("country").cast(pl.String).alias("group"))
    groups = groups.filter(pl.col("group") != "")
    available = products.filter(pl.col("is_available"))["product_id"].to_list()
    rules = rules_of(settings, available)
    candidates = default_candidates(rules=rules, has_catalogue=True, products=catalogue.height)
    _forget(warehouse, version, list(candidates))
    incumbent = warehouse.value(
        "select argMax(model, tuple(as_of, model_version)) from raw.model_evaluations "
        "where metric = {metric:String} having count() > 0",
        {"metric": IN_PLACE},
    )
    selection = select(
        interactions,
        candidates,
        incumbent=None if incumbent is None else str(incumbent),
        k=PRODUCTS_EACH,
        rules=rules,
        catalogue=catalogue,
        groups=groups,
    )
    card = model_card(selection, interactions, version=version, fitted_at=now, rules=rules)
    stored = 0
    if interactions.height and available:
        matrix = InteractionMatrix.from_interactions(
            interactions, products=catalogue["product_id"].to_list(), until=now
        )
        fitted = selection.estimator.fit(matrix, catalogue=catalogue, groups=groups)
        ranked = pl.concat(
            fitted.recommend_batches(
                people["contact_id"],
                PRODUCTS_EACH,
                rules=rules,
                explain=True,
                n_jobs=min(2, os.cpu_count() or 1),
            )
        )
        stored = ranked["contact_id"].n_unique()
        # one insert, one block: a version is there whole or not at all
        warehouse.insert("raw.recommendations", _stored(ranked, products, selection.winner, version, now))
    # after the products, so that a run that failed before leaves the model in place as it was
    warehouse.insert("raw.model_evaluations", _evaluations(selection, version, now))
    return Refreshed(selection, version, stored, card)


def _forget(warehouse: Warehouse, version: str, models: list[str]) -> None:
    """Remove what an earlier run for the same second wrote."""
    warehouse.execute(
        "delete from raw.recommendations where model_version = {version:String}", {"version": version}
    )
    warehouse.execute(
        "delete from raw.model_evaluations "
        "where has({models:Array(String)}, model) and model_version = {version:String}",
        {"models": models, "version": version},
    )


def _stored(
    ranked: pl.DataFrame, products: pl.DataFrame, model: str, version: str, now: datetime
) -> pl.DataFrame:
    """Rows of `raw.recommendations`; where a purchase speaks for a product, the reason names it."""
    names = products.select(pl.col("product_id").alias("because"), pl.col("name").alias("because_name"))
    return ranked.join(names, on="because", how="left", maintain_order="left").select(
        "contact_id",
        pl.col("rank").cast(pl.UInt16),
        "product_id",
        "score",
        pl.when(pl.col("because_name").is_not_null())
        .then(pl.lit(BECAUSE) + pl.col("because_name"))
        .otherwise(pl.col("reason"))
        .alias("reason"),
        pl.lit(model).alias("model"),
        pl.lit(version).alias("model_version"),
        pl.lit(now).cast(pl.Datetime("ms", "UTC")).alias("as_of"),
    )


def _evaluations(selection: Selection, version: str, now: datetime) -> pl.DataFrame:
    """Rows of `raw.model_evaluations`: every candidate on both folds, and which is in place."""
    measured = (
        selection.comparison.drop_nulls("value")
        .with_columns(
            pl.when(pl.col("fold") == TEST)
            .then(pl.col("metric"))
            .otherwise(pl.col("fold") + " " + pl.col("metric"))
            .alias("metric")
        )
        .select(
            pl.col("estimator").alias("model"),
            "metric",
            "value",
            pl.struct("fold", "low", "high", "gain", "gain_low", "gain_high", "contacts")
            .struct.json_encode()
            .alias("properties"),
        )
    )
    decision = {
        "why": selection.why,
        "chosen": selection.chosen,
        "incumbent": selection.incumbent,
        "gain": selection.gain.mean if selection.gain else None,
        "parameters": parameters(selection.estimator),
    }
    in_place = pl.DataFrame(
        {
            "model": [selection.winner],
            "metric": [IN_PLACE],
            "value": [float(selection.is_promoted)],
            "properties": [orjson.dumps(decision).decode()],
        }
    )
    return pl.concat([measured, in_place]).with_columns(
        pl.lit(version).alias("model_version"), pl.lit(now).cast(pl.Datetime("ms", "UTC")).alias("as_of")
    )


def curve_plot(selection: Selection) -> str:
    """NDCG by the length of the list, a line a candidate, as an image in Markdown; empty if nobody could be judged."""
    curve = selection.curve.drop_nulls("ndcg")
    if not curve.height:
        return ""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    last = curve.filter(pl.col("k") == curve["k"].max()).sort("ndcg", descending=True, maintain_order=True)
    for name in last["estimator"]:
        line = curve.filter(pl.col("estimator") == name).sort("k")
        axes.plot(
            line["k"].to_list(),
            line["ndcg"].to_list(),
            label=name.replace("_", " "),
            linewidth=2.5 if name == selection.winner else 1.2,
        )
    axes.set_xlabel("products in the list")
    axes.set_ylabel("NDCG on the test fold")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    return f"![NDCG by list length](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
