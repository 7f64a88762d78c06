"""Several recommenders as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Self, cast

import numpy as np
import polars as pl
from sklearn.base import clone

from ml.dataset import InteractionMatrix
from ml.recommend.base import Recommender
from ml.recommend.ease import EASERecommender
from ml.recommend.item_to_item import ItemToItemRecommender
from ml.recommend.popularity import PopularityRecommender
from ml.recommend.rules import Rules
from ml.recommend.topk import best_of_rows
from ml.splits import temporal_folds

_POOL = 50
"""So many of the best of each part compete while weights are learnt."""

_STEPS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)
_PASSES = 4
_LEAST_GAIN = 1e-4


class HybridRecommender(Recommender):
    """A weighted sum of the scores of several recommenders.

    Each part's scores of a contact are divided by their largest, so that parts compare; scores below 0 count as 0.
    Weights are those with the best NDCG@k on the last `horizon` of the interactions given, learnt by parts fitted on
    what came before (coordinate ascent: Metzler and Croft, Linear feature-based models for information retrieval,
    Information Retrieval 10, 2007); the parts are then fitted on everything. So whoever judges a hybrid on a later fold
    judges weights that never saw it. If the interactions are too short for a fold, all parts count alike.

    Args:
        estimators: (name, estimator) pairs; left out: what is bought together (two ways) and what is popular.
        weights: of the estimators, in order, 0 or more; left out, they are learnt.
        horizon: days of the fold that weights are learnt on.
        k: length of the lists that weights are judged by.
        rules: what the lists may hold: with products excluded that a contact bought, they don't count in learning.
        max_contacts: learn weights from a sample of so many contacts.
        half_life: of popularity, in days, for products that no part speaks for.
        seed: of the sample.

    Attributes:
        estimators_: fitted estimators.
        weights_: (n_estimators,) weights; the largest is 1 if they were learnt.
    """

    def __init__(
        self,
        estimators: Sequence[tuple[str, Recommender]] | None = None,
        weights: Sequence[float] | None = None,
        horizon: float = 28.0,
        k: int = 10,
        rules: Rules | None = None,
        max_contacts: int = 20_000,
        half_life: float | None = 60.0,
        seed: int = 0,
    ) -> None:
        self.estimators = estimators
        self.weights = weights
        self.horizon = horizon
        self.k = k
        self.rules = rules
        self.max_contacts = max_contacts
        self.half_life = half_life
        self.seed = seed

    def _validate(self) -> None:
        if not self.horizon > 0 or self.k < 1 or self.max_contacts < 1:
            raise ValueError("horizon must be longer than nothing, k and max_contacts 1 or more")
        if self.estimators is not None and not self.estimators:
            raise ValueError("a hybrid needs at least one estimator")
        if self.weights is not None:
            weights = np.asarray(self.weights, dtype=np.float64)
            if weights.shape != (len(self._parts()),) or not (weights >= 0).all() or not weights.any():
                raise ValueError("weights must be one for each estimator, 0 or more, not all 0")

    def _parts(self) -> Sequence[tuple[str, Recommender]]:
        if self.estimators is not None:
            return self.estimators
        return (
            ("item_to_item", ItemToItemRecommender()),
            ("ease", EASERecommender()),
            ("popularity", PopularityRecommender(half_life=60.0)),
        )

    def _fit(self, interactions: InteractionMatrix) -> None:
        parts = self._parts()
        if self.weights is None:
            self.weights_ = self._learn(interactions)
        else:
            self.weights_ = np.asarray(self.weights, dtype=np.float64)
        self.estimators_ = self._fitted(interactions, self.catalogue_)
        self._known = []
        assert len(parts) == len(self.weights_)

    def _fitted(self, interactions: InteractionMatrix, catalogue: pl.DataFrame | None) -> list[Recommender]:
        groups = None
        if len(self.group_contacts_):
            groups = pl.DataFrame(
                {"contact_id": self.group_contacts_, "group": self.group_codes_.astype(str)}
            )
        known = {repr(one): one for one in getattr(self, "_known", ()) if one.interactions_ is interactions}
        return [
            known[repr(part)]
            if repr(part) in known
            else cast(Recommender, clone(part)).fit(interactions, catalogue=catalogue, groups=groups)
            for _, part in self._parts()
        ]

    def reuse(self, fitted: Iterable[Recommender]) -> Self:
        """Take parts from these in the next `fit` rather than fit them again, where parameters and the very object of
        interactions are the same; catalogue and groups have to be."""
        self._known = list(fitted)
        return self

    def _learn(self, interactions: InteractionMatrix) -> np.ndarray:
        alike = np.ones(len(self._parts()))
        n_contacts = interactions.shape[0]
        rows = np.arange(n_contacts)
        if n_contacts > self.max_contacts:
            rows = np.sort(
                np.random.default_rng(self.seed).choice(n_contacts, self.max_contacts, replace=False)
            )
        folds = temporal_folds(interactions.purchases(rows), horizon=timedelta(days=self.horizon))
        if not folds or len(alike) == 1:
            return alike
        fold, rules = folds[-1], self.rules or Rules()
        catalogue = self.catalogue_
        known = fold.train["product_id"].unique()
        if catalogue is not None:
            catalogue = catalogue.filter(pl.col("product_id").is_in(known.implode()))
        train = InteractionMatrix.from_interactions(fold.train)
        relevant = rules.unmasked(fold.test.select("contact_id", "product_id").unique(), fold.train)
        relevant = relevant.filter(pl.col("contact_id").is_in(pl.Series(train.contact_ids).implode()))
        if not relevant.height:
            return alike
        parts = self._fitted(train, catalogue)
        contacts = relevant["contact_id"].unique().sort().to_numpy()
        column_of = {name: column for column, name in enumerate(train.product_ids)}
        relevant = relevant.with_columns(
            column=pl.col("product_id").replace_strict(column_of, default=-1, return_dtype=pl.Int64)
        )
        features, hits, sizes = [], [], []
        size = max(1, 2_000_000 // max(1, train.shape[1]))
        for first in range(0, len(contacts), size):
            chunk = contacts[first : first + size]
            positions = train.rows_of(chunk)
            shares = _shares(parts, train, positions, rules)
            pools = [best_of_rows(np.where(share > 0, share, -np.inf), _POOL)[0] for share in shares]
            pool = np.sort(np.concatenate(pools, axis=1), axis=1)
            # what several parts name competes once
            pool[:, 1:][pool[:, 1:] == pool[:, :-1]] = -1
            there = np.maximum(pool, 0)
            feature = np.stack([np.take_along_axis(share, there, axis=1) for share in shares], axis=2)
            feature[pool < 0] = -1.0
            bought = np.zeros((len(chunk), train.shape[1]), dtype=bool)
            mine = relevant.filter(pl.col("contact_id").is_in(pl.Series(chunk).implode()))
            row = np.searchsorted(chunk, mine["contact_id"].to_numpy())
            column = mine["column"].to_numpy()
            bought[row[column >= 0], column[column >= 0]] = True
            features.append(feature)
            hits.append(np.take_along_axis(bought, there, axis=1) & (pool >= 0))
            sizes.append(np.bincount(row, minlength=len(chunk)))
        width = max(feature.shape[1] for feature in features)
        padded = [
            np.pad(feature, ((0, 0), (0, width - feature.shape[1]), (0, 0)), constant_values=-1.0)
            for feature in features
        ]
        hit = np.concatenate([np.pad(one, ((0, 0), (0, width - one.shape[1]))) for one in hits])
        return _best_weights(np.concatenate(padded), hit, np.concatenate(sizes), self.k)

    def _scored(self, positions: np.ndarray) -> tuple[np.ndarray | None, list[tuple[str, np.ndarray | None]]]:
        shares = _shares(self.estimators_, self.interactions_, positions, self.rules or Rules())
        parts: list[tuple[str, np.ndarray | None]] = []
        total = np.zeros((len(positions), self.interactions_.shape[1]), dtype=np.float32)
        for estimator, weight, share in zip(self.estimators_, self.weights_, shares, strict=True):
            if weight > 0:
                share *= np.float32(weight)
                total += share
                parts.append((estimator._reason, share))
        return total, parts

    def _affinities(self, positions: np.ndarray) -> np.ndarray | None:
        return self._scored(positions)[0]

    def _pull(self, bought: np.ndarray, found: np.ndarray) -> np.ndarray | None:
        total = None
        for estimator, weight in zip(self.estimators_, self.weights_, strict=True):
            if weight > 0 and estimator._is_personal and (pull := estimator._pull(bought, found)) is not None:
                largest = estimator._largest_pull()
                if largest > 0:
                    part = pull * np.float32(weight / largest)
                    total = part if total is None else total + part
        return total

    @property
    def _reason(self) -> str:
        return "hybrid"


def _shares(
    parts: Sequence[Recommender], matrix: InteractionMatrix, positions: np.ndarray, rules: Rules
) -> list[np.ndarray]:
    """Of each part, (n, n_products) float32 scores from 0 to 1, the best that may be recommended at 1."""
    indptr, pairs = matrix.pairs_of(positions)
    is_out = rules.excludes(matrix.ages[pairs])
    rows = np.repeat(np.arange(len(positions)), np.diff(indptr))[is_out]
    columns = matrix.indices[pairs[is_out]]
    shares = []
    for part in parts:
        scores = part._affinities(positions)
        if scores is None:
            scores = np.zeros((len(positions), matrix.shape[1]), dtype=np.float32)
        np.maximum(scores, 0.0, out=scores)
        scores[rows, columns] = 0.0
        largest = scores.max(axis=1, keepdims=True, initial=0.0)
        scores /= np.where(largest > 0, largest, 1.0)
        shares.append(scores)
    return shares


def _best_weights(features: np.ndarray, hits: np.ndarray, sizes: np.ndarray, k: int) -> np.ndarray:
    """(n_parts,) weights with the best mean NDCG@k, the largest 1.

    Args:
        features: (n, pool, n_parts) scores, -1 where the pool is shorter.
        hits: (n, pool) whether the product was bought.
        sizes: (n,) products bought.
        k: length of the list.
    """
    n, pool, n_parts = features.shape
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.cumsum(discounts)[np.minimum(sizes, k) - 1]
    flat = features.reshape(n * pool, n_parts)
    width = min(k, pool)

    def ndcg(weights: np.ndarray) -> float:
        scores = (flat @ weights.astype(np.float32)).reshape(n, pool)
        top = np.argpartition(-scores, width - 1, axis=1)[:, :width]
        order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
        found = np.take_along_axis(hits, np.take_along_axis(top, order, axis=1), axis=1)
        return float((found @ discounts[:width] / ideal).mean())

    starts = [np.ones(n_parts), *np.eye(n_parts)]
    values = [ndcg(start) for start in starts]
    best, value = starts[int(np.argmax(values))].copy(), max(values)
    for _ in range(_PASSES):
        before = value
        for part in range(n_parts):
            for step in _STEPS:
                tried = best.copy()
                tried[part] = step * best.max()
                if tried.any() and (reached := ndcg(tried)) > value + _LEAST_GAIN:
                    best, value = tried, reached
        if value == before:
            break
    return best / best.max()
