"""Recommenders: scikit-learn-style estimators from interactions to ranked products."""

from __future__ import annotations

from ml.recommend.als import TASTE, ALSRecommender
from ml.recommend.base import POPULAR, POPULAR_IN_GROUP, RECOMMENDATION_SCHEMA, Recommender
from ml.recommend.content_based import SIMILAR, ContentRecommender
from ml.recommend.ease import EASERecommender
from ml.recommend.hybrid import HybridRecommender
from ml.recommend.item_to_item import BOUGHT_TOGETHER, ItemToItemRecommender
from ml.recommend.popularity import PopularityRecommender
from ml.recommend.repurchase import BUY_AGAIN, RepurchaseRecommender
from ml.recommend.rules import Rules

__all__ = [
    "BOUGHT_TOGETHER",
    "BUY_AGAIN",
    "POPULAR",
    "POPULAR_IN_GROUP",
    "RECOMMENDATION_SCHEMA",
    "SIMILAR",
    "TASTE",
    "ALSRecommender",
    "ContentRecommender",
    "EASERecommender",
    "HybridRecommender",
    "ItemToItemRecommender",
    "PopularityRecommender",
    "Recommender",
    "RepurchaseRecommender",
    "Rules",
]
