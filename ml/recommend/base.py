"""What all recommenders have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import polars as pl
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ml.dataset import InteractionMatrix
from ml.recommend.content import categories_of, content_vectors, nearest_of_vectors, validated_catalogue
from ml.recommend.rules import Rules
from ml.recommend.topk import best_of_rows

RECOMMENDATION_SCHEMA = pl.Schema(
    {
        "contact_id": pl.Int64(),
        "rank": pl.UInt16(),
        "product_id": pl.String(),
        "score": pl.Float64(),
        "reason": pl.String(),
        "because": pl.String(),
    }
)
"""What `recommend` returns: a row a contact and rank, rank 1 is best. Scores never rise with the rank, unless a rule
asks for diversity. `because` is the product that the contact bought and that speaks most for this one."""

POPULAR = "popular"
"""Reason: many buy it; nothing of the contact's own spoke for another product."""

POPULAR_IN_GROUP = "popular_in_group"
"""Reason: many of the contact's group buy it."""

_CELLS = 8_000_000  # dense scores held at a time by a thread: 32 MB
_GROUP_PRIOR = 100.0  # buyers of everybody's taste that each group starts with
_GROUP_CELLS = 50_000_000


class Recommender(BaseEstimator, ABC):
    """An estimator that ranks products for contacts.

    Subclasses learn in `_fit` and say in `_affinities` what speaks for a product. Products for which nothing speaks
    follow in the order of popularity (among the contact's group, if groups are given), score 0.

    Attributes:
        interactions_: what was learnt from.
        popular_: (n_groups + 1, n_products) float32 keys of products for which nothing speaks, all below 0, higher is
            more popular; the last row is everybody.
    """

    interactions_: InteractionMatrix
    popular_: np.ndarray

    _is_personal = True
    """Whether a contact's own purchases speak for products."""

    def fit(
        self,
        interactions: pl.DataFrame | InteractionMatrix,
        y: None = None,  # noqa: ARG002 for scikit-learn's sake
        *,
        catalogue: pl.DataFrame | None = None,
        groups: pl.DataFrame | None = None,
    ) -> Self:
        """Learn from interactions. Without any products, `recommend` returns no rows.

        Args:
            interactions: contact_id, product_id, ordered_at and quantity (see `ml.dataset`), or these encoded.
            y: not used.
            catalogue: product_id and whatever describes a product: name, category, price ... (see
                `ml.recommend.content`); products in it can be recommended before anybody buys them.
            groups: contact_id and group (text): for contacts of whom nothing is known but what they belong to.

        Raises:
            ValueError: a parameter is out of range, or a frame is none of those.
        """
        self._validate()
        if catalogue is not None:
            catalogue = validated_catalogue(catalogue)
        if not isinstance(interactions, InteractionMatrix):
            products = None if catalogue is None else catalogue["product_id"].to_list()
            interactions = InteractionMatrix.from_interactions(interactions, products=products)
        self.interactions_ = interactions
        self.catalogue_ = catalogue
        self._fit_groups(groups)
        self._fit(interactions)
        return self

    def _validate(self) -> None:
        """Raise ValueError for parameters out of range."""

    @abstractmethod
    def _fit(self, interactions: InteractionMatrix) -> None:
        """Learn; `interactions_`, `catalogue_` and `popular_` are there."""

    @abstractmethod
    def _affinities(self, positions: np.ndarray) -> np.ndarray | None:
        """(n, n_products) float32 scores for rows of the interaction matrix (-1: a stranger), above 0 where something
        speaks for the product; None if nothing ever does. The caller may write into it."""

    def _scored(self, positions: np.ndarray) -> tuple[np.ndarray | None, list[tuple[str, np.ndarray | None]]]:
        """Affinities, and what they consist of: reasons with their shares; the largest share is the reason."""
        return self._affinities(positions), [(self._reason, None)]

    @property
    @abstractmethod
    def _reason(self) -> str:
        """Why a product with an affinity is recommended."""

    def _pull(self, bought: np.ndarray, found: np.ndarray) -> np.ndarray | None:  # noqa: ARG002
        """(n,) how much each product bought speaks for each product found; None if it isn't purchases that speak."""
        return None

    def _largest_pull(self) -> float:
        """The most that `_pull` can say."""
        return 1.0

    @property
    def _half_life(self) -> float | None:
        """Days in which a purchase loses half of what it says about a contact or of its part in popularity."""
        return getattr(self, "half_life", None)

    def _fit_groups(self, groups: pl.DataFrame | None) -> None:
        n_products = self.interactions_.shape[1]
        everybody = self.interactions_.column_sums(self._half_life)
        shares = everybody[None, :]
        self.group_contacts_ = np.zeros(0, dtype=np.int64)
        self.group_codes_ = np.zeros(0, dtype=np.int64)
        if groups is not None and groups.height:
            if (
                not {"contact_id", "group"} <= set(groups.columns)
                or not groups.schema["contact_id"].is_integer()
            ):
                raise ValueError("groups need columns contact_id (integers) and group")
            known = groups.select(
                pl.col("contact_id").cast(pl.Int64), pl.col("group").cast(pl.String)
            ).drop_nulls()
            if known["contact_id"].is_duplicated().any():
                raise ValueError("groups: a contact is in two groups")
            known = known.sort("contact_id")
            self.group_contacts_ = known["contact_id"].to_numpy()
            names = known["group"].unique().sort()
            if len(names) * n_products > _GROUP_CELLS:
                raise ValueError(
                    f"groups: {len(names)} groups are too many for {n_products} products; join them"
                )
            self.group_codes_ = names.search_sorted(known["group"]).to_numpy().astype(np.int64)
            shares = self._group_shares(len(names), everybody)
        # minus the place: below every affinity, and different for each product; of equals the column further left
        keys = np.empty(shares.shape, dtype=np.float32)
        order = np.argsort(-shares, axis=1, kind="stable")
        places = np.broadcast_to(-np.arange(1, n_products + 1, dtype=np.float32), shares.shape)
        np.put_along_axis(keys, order, places, axis=1)
        self.popular_ = keys
        self.shares_ = shares

    def _group_shares(self, n_groups: int, everybody: np.ndarray) -> np.ndarray:
        """(n_groups + 1, n_products) weighted buyers, each group starting with some of everybody's taste."""
        matrix = self.interactions_
        of_rows = self._groups_of(matrix.contact_ids)
        n_products = matrix.shape[1]
        total = everybody.sum()
        prior = _GROUP_PRIOR * everybody / total if total > 0 else everybody
        shares = np.empty((n_groups + 1, n_products))
        weights = matrix.weights(self._half_life)
        for code in range(n_groups):
            members = np.flatnonzero(of_rows == code)
            shares[code] = prior + np.asarray(weights[members].sum(axis=0)).ravel()
        shares[-1] = everybody
        return shares

    def _groups_of(self, contacts: np.ndarray) -> np.ndarray:
        """(n,) row of `popular_` for each contact."""
        everybody = -1 if not len(self.group_codes_) else int(self.group_codes_.max()) + 1
        if everybody < 0:
            return np.zeros(len(contacts), dtype=np.int64)
        place = np.minimum(np.searchsorted(self.group_contacts_, contacts), len(self.group_contacts_) - 1)
        return np.where(self.group_contacts_[place] == contacts, self.group_codes_[place], everybody)

    def recommend(
        self,
        contact_ids: Collection[int] | np.ndarray | pl.Series,
        k: int = 10,
        *,
        rules: Rules | None = None,
        explain: bool = False,
        n_jobs: int = 1,
    ) -> pl.DataFrame:
        """The k best products for each contact.

        Args:
            contact_ids: distinct contacts; those without interactions get what is popular.
            k: products a contact, 1 to 1,000. Fewer come back where there are not so many.
            rules: what may be recommended; left out, anything that the contact has not bought.
            explain: fill `because`, which takes as long again.
            n_jobs: threads; each holds some hundred megabytes.

        Returns:
            A frame of `RECOMMENDATION_SCHEMA`, contacts in the order given.

        Raises:
            ValueError: k is out of range, a contact is given twice, or a rule needs a catalogue and there is none.
            sklearn.exceptions.NotFittedError: `fit` was not called.
        """
        frames = list(self.recommend_batches(contact_ids, k, rules=rules, explain=explain, n_jobs=n_jobs))
        return pl.concat(frames) if frames else RECOMMENDATION_SCHEMA.to_frame()

    def recommend_batches(
        self,
        contact_ids: Collection[int] | np.ndarray | pl.Series,
        k: int = 10,
        *,
        rules: Rules | None = None,
        explain: bool = False,
        n_jobs: int = 1,
    ) -> Iterator[pl.DataFrame]:
        """`recommend` a chunk of contacts at a time, in bounded memory; the same rows in the same order."""
        check_is_fitted(self, "interactions_")
        rules = rules or Rules()
        if not 1 <= k <= 1_000:
            raise ValueError("k must be between 1 and 1,000")
        if n_jobs < 1:
            raise ValueError("n_jobs must be at least 1")
        contacts = np.asarray(list(contact_ids) if isinstance(contact_ids, (set, frozenset)) else contact_ids)
        contacts = contacts.astype(np.int64)
        if len(np.unique(contacts)) != len(contacts):
            raise ValueError("a contact is given twice")
        n_products = self.interactions_.shape[1]
        if not n_products:
            return
        refused = None
        if rules.candidates is not None:
            allowed = np.array(sorted(rules.candidates), dtype=str)
            refused = np.flatnonzero(~np.isin(self.interactions_.product_ids.astype(str), allowed))
        if rules.reranks:
            self._prepare_rules(rules)
        size = max(1, _CELLS // n_products)
        chunks = (contacts[first : first + size] for first in range(0, len(contacts), size))

        def score(chunk: np.ndarray) -> pl.DataFrame:
            return self._chunk(chunk, k, rules, refused, explain)

        if n_jobs == 1:
            yield from map(score, chunks)
            return
        with ThreadPoolExecutor(n_jobs) as pool:
            waiting: deque[Any] = deque()
            for chunk in chunks:
                waiting.append(pool.submit(score, chunk))
                if len(waiting) > n_jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _prepare_rules(self, rules: Rules) -> None:
        """What rules over the catalogue need, made once a fit."""
        if self.catalogue_ is None:
            raise ValueError("category caps and diversity need a catalogue; give one to fit")
        if rules.per_category is not None and "category" not in self.catalogue_.columns:
            raise ValueError("category caps need a catalogue with a column category")
        if not hasattr(self, "categories_"):
            self.categories_ = categories_of(self.catalogue_, self.interactions_.product_ids)
        if rules.diversity > 0 and not hasattr(self, "likeness_"):
            vectors = content_vectors(self.catalogue_, self.interactions_.product_ids)
            self.likeness_ = nearest_of_vectors(vectors, 200)

    def _chunk(
        self, contacts: np.ndarray, k: int, rules: Rules, refused: np.ndarray | None, explain: bool
    ) -> pl.DataFrame:
        matrix = self.interactions_
        positions = matrix.rows_of(contacts)
        keys, parts = self._scored(positions)
        groups = self._groups_of(contacts)
        fill = self.popular_[groups] if len(self.popular_) > 1 else self.popular_
        if keys is None:
            keys = np.array(np.broadcast_to(fill, (len(contacts), matrix.shape[1])))
        else:
            np.copyto(keys, fill, where=~(keys > 0))
        if rules.exclude_bought is not False:
            indptr, pairs = matrix.pairs_of(positions)
            is_out = rules.excludes(matrix.ages[pairs])
            rows = np.repeat(np.arange(len(contacts)), np.diff(indptr))
            keys[rows[is_out], matrix.indices[pairs[is_out]]] = -np.inf
        if refused is not None:
            keys[:, refused] = -np.inf
        top, top_keys = best_of_rows(keys, max(k, rules.pool) if rules.reranks else k)
        if rules.reranks:
            likeness = self.likeness_ if rules.diversity > 0 else None
            top, top_keys = rules.rerank(top, top_keys, k, self.categories_, likeness)
        return self._frame(contacts, positions, groups, top, top_keys, parts, explain)

    def _frame(
        self,
        contacts: np.ndarray,
        positions: np.ndarray,
        groups: np.ndarray,
        top: np.ndarray,
        top_keys: np.ndarray,
        parts: list[tuple[str, np.ndarray | None]],
        explain: bool,
    ) -> pl.DataFrame:
        is_there = np.isfinite(top_keys) & (top >= 0)
        width = top.shape[1]
        rows = np.repeat(np.arange(len(contacts)), width).reshape(top.shape)
        names = pl.Series(self.interactions_.product_ids, dtype=pl.String)
        has_groups = len(self.popular_) > 1
        fallback = np.where(has_groups & (groups < len(self.popular_) - 1), POPULAR_IN_GROUP, POPULAR)
        reasons = np.array([reason for reason, _ in parts] + [POPULAR, POPULAR_IN_GROUP], dtype=object)
        codes = np.zeros(top.shape, dtype=np.int64)
        if len(parts) > 1:
            columns = np.maximum(top, 0)
            shares = [part[rows, columns] for _, part in parts if part is not None]
            codes = np.argmax(np.stack(shares), axis=0)
        nothing = np.where(fallback == POPULAR, len(parts), len(parts) + 1)[:, None]
        codes = np.where(top_keys > 0, codes, nothing)
        if not self._is_personal:
            codes = np.broadcast_to(nothing, top.shape)
        because = np.full(top.shape, -1)
        if explain and self._is_personal and width:
            because = self._because(positions, top, top_keys)
        return pl.DataFrame(
            {
                "contact_id": np.repeat(contacts, width),
                "rank": np.tile(np.arange(1, width + 1, dtype=np.uint16), len(contacts)),
                "product_id": names.gather(np.maximum(top, 0).ravel()),
                "score": np.maximum(top_keys.ravel(), 0.0).astype(np.float64),
                "reason": pl.Series(reasons, dtype=pl.String).gather(codes.ravel()),
                "because": names.gather(pl.Series(because.ravel()).replace(-1, None)),
            },
            schema=RECOMMENDATION_SCHEMA,
        ).filter(pl.Series(is_there.ravel()))

    def _because(self, positions: np.ndarray, top: np.ndarray, top_keys: np.ndarray) -> np.ndarray:
        """(n, k) column of the purchase that speaks most for each product found, -1 for none."""
        n, k = top.shape
        history = self.interactions_.rows(positions, self._half_life)
        lengths = np.diff(history.indptr)
        # all purchases of a contact beside each of its k products
        rows = np.repeat(np.arange(n), lengths)
        found = top[rows]
        bought = np.broadcast_to(history.indices[:, None], found.shape)
        because = np.full((n, k), -1)
        if not len(rows):
            return because
        pull = self._pull(bought.ravel(), np.maximum(found, 0).ravel())
        if pull is None:
            return because
        strength = pull.reshape(found.shape) * history.data[:, None]
        strength[~(strength > 0)] = 0.0
        filled = np.flatnonzero(lengths)
        starts = history.indptr[filled]
        largest = np.maximum.reduceat(strength, starts, axis=0)
        is_it = strength == np.repeat(largest, lengths[filled], axis=0)
        place = np.where(is_it, np.arange(len(rows))[:, None], len(rows))
        first = np.minimum.reduceat(place, starts, axis=0)
        because[filled] = np.where(largest > 0, history.indices[np.minimum(first, len(rows) - 1)], -1)
        # what was bought before speaks for itself
        again = np.zeros((n, k), dtype=bool)
        again[filled] = np.logical_or.reduceat(found == bought, starts, axis=0)
        because[~(top_keys > 0) | (top < 0) | again] = -1
        return because
