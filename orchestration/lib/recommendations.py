"""Recommendations from the warehouse and back: read orders, measure, fit, store a version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import polars as pl

from ml.evaluate import evaluate_on_temporal_split
from ml.recommend.item_to_item import ItemToItemRecommender
from ml.recommend.popularity import PopularityRecommender
from warehouse.client import Warehouse

MODEL = "item_to_item"
BASELINE = "popularity"
PRODUCTS_EACH = 10


@dataclass(frozen=True)
class Refreshed:
    """What a refresh stored and how good it was.

    Attributes:
        model_version: the time it was fitted, to the second.
        contacts: how many contacts got recommendations.
        evaluation: rows of `ml.evaluate.EVALUATION_SCHEMA`; empty if there were too few orders to judge by.
    """

    model: str
    model_version: str
    contacts: int
    evaluation: pl.DataFrame

    def metric(self, name: str) -> float | None:
        """A metric of the stored model, None if it could not be judged."""
        rows = self.evaluation.filter((pl.col("estimator") == self.model) & (pl.col("metric") == name))
        return rows["value"].item() if rows.height else None


def refresh_recommendations(warehouse: Warehouse, now: datetime) -> Refreshed:
    """Fit on every order so far, judge on a temporal split, store the best products of every contact.

    The version is the time, to the second: running it again for the same second replaces its rows, and any other run
    adds a version, of which models read the newest.
    """
    version = now.strftime("%Y%m%dT%H%M%SZ")
    interactions = warehouse.frame(
        """
        select assumeNotNull(contact_id) as contact_id, product_id, ordered_at, quantity
        from marts.order_items
        where contact_id is not null and status = 'placed' and quantity > 0 and unit_price > 0
        """
    )
    estimators = {BASELINE: PopularityRecommender(half_life=60.0), MODEL: ItemToItemRecommender()}
    evaluation = evaluate_on_temporal_split(interactions, estimators).drop_nulls("value")
    for table in ("recommendations", "model_evaluations"):
        warehouse.execute(
            f"delete from raw.{table} where model in ({{model:String}}, {{baseline:String}}) "  # noqa: S608
            "and model_version = {version:String}",
            {"model": MODEL, "baseline": BASELINE, "version": version},
        )
    if evaluation.height:
        warehouse.insert(
            "raw.model_evaluations",
            evaluation.select(
                pl.col("estimator").alias("model"),
                pl.lit(version).alias("model_version"),
                pl.lit(now).cast(pl.Datetime("ms", "UTC")).alias("as_of"),
                "metric",
                "value",
                pl.struct("low", "high", "gain", "gain_low", "gain_high", "contacts")
                .struct.json_encode()
                .alias("properties"),
            ),
        )
    contacts = warehouse.frame("select contact_id from marts.contacts order by contact_id")["contact_id"]
    candidates = warehouse.frame("select product_id from marts.products where is_available")[
        "product_id"
    ].to_list()
    if interactions.height == 0 or not candidates:
        return Refreshed(MODEL, version, 0, evaluation)
    fitted = estimators[MODEL].fit(interactions)
    stored = 0
    ranked = pl.concat(fitted.recommend_batches(contacts, PRODUCTS_EACH, candidates=candidates))
    if ranked.height:
        stored = ranked["contact_id"].n_unique()
        # one insert, one block: a version is there whole or not at all
        warehouse.insert(
            "raw.recommendations",
            ranked.with_columns(
                pl.lit(MODEL).alias("model"),
                pl.lit(version).alias("model_version"),
                pl.lit(now).cast(pl.Datetime("ms", "UTC")).alias("as_of"),
                pl.col("rank").cast(pl.UInt16),
            ),
        )
    return Refreshed(MODEL, version, stored, evaluation)
