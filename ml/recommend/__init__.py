"""Recommenders: scikit-learn-style estimators from interactions to ranked products."""

from __future__ import annotations

from ml.recommend.base import POPULAR, RECOMMENDATION_SCHEMA, Recommender
from ml.recommend.item_to_item import BOUGHT_TOGETHER, ItemToItemRecommender
from ml.recommend.popularity import PopularityRecommender

__all__ = [
    "BOUGHT_TOGETHER",
    "POPULAR",
    "RECOMMENDATION_SCHEMA",
    "ItemToItemRecommender",
    "PopularityRecommender",
    "Recommender",
]
