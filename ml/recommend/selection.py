"""Which recommender suits a shop: candidates compared on the past, the choice reported on what came after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import cast

import numpy as np
import polars as pl
from sklearn.base import clone

from ml.dataset import validated_interactions
from ml.evaluate import CURVE_SCHEMA, EVALUATION_SCHEMA, Judgement, judge_on_split
from ml.metrics import Interval, bootstrap_mean
from ml.recommend.als import ALSRecommender
from ml.recommend.base import Recommender
from ml.recommend.content_based import ContentRecommender
from ml.recommend.ease import EASERecommender
from ml.recommend.hybrid import HybridRecommender
from ml.recommend.item_to_item import ItemToItemRecommender
from ml.recommend.popularity import PopularityRecommender
from ml.recommend.repurchase import RepurchaseRecommender
from ml.recommend.rules import Rules
from ml.splits import temporal_folds

BASELINE = "popularity"
"""What every choice is compared with, and what is chosen if there is too little to choose by."""

VALIDATION, TEST = "validation", "test"

COMPARISON_SCHEMA = pl.Schema({"fold": pl.String(), **EVALUATION_SCHEMA, "is_chosen": pl.Boolean()})


def default_candidates(
    *, rules: Rules | None = None, has_catalogue: bool = False, products: int | None = None, seed: int = 0
) -> dict[str, Recommender]:
    """Candidates for a catalogue of up to some ten thousand products, the baseline first.

    Where all products are to be new to the contact and EASE takes in the whole catalogue, ALS is left out: there EASE
    was better on every data set that we measured, and the hybrid is within 1 % without ALS, which costs as much as all
    others (`benchmarks/recommend.py`). For products that come back ALS is better than EASE.

    Args:
        rules: with products allowed that a contact bought before, re-purchase competes too.
        has_catalogue: whether names and attributes are known, without which content says nothing.
        products: how many products there are; None leaves no candidate out.
        seed: of those that draw random numbers.
    """
    rules = rules or Rules()
    ease = EASERecommender()
    found: dict[str, Recommender] = {
        BASELINE: PopularityRecommender(half_life=60.0),
        "item_to_item": ItemToItemRecommender(),
        "ease": ease,
    }
    if products is None or products > ease.max_products or rules.exclude_bought is not True:
        found["als"] = ALSRecommender(seed=seed)
    if has_catalogue:
        found["content"] = ContentRecommender()
    if rules.exclude_bought is not True:
        found["repurchase"] = RepurchaseRecommender()
    parts = [(name, cast(Recommender, clone(one))) for name, one in found.items()]
    found["hybrid"] = HybridRecommender(parts, rules=replace(rules, candidates=None), seed=seed)
    return found


def _or_least(mean: float | None) -> float:
    return -np.inf if mean is None else mean


@dataclass(frozen=True)
class Selection:
    """The outcome of a comparison.

    Attributes:
        winner: the candidate to use: the chosen one, or the one in place if the chosen one does no better.
        estimator: the winner, unfitted.
        chosen: the candidate with the best NDCG@k on the validation fold.
        incumbent: the candidate in place, None if there is none among the candidates.
        is_promoted: whether `winner` takes the place of another, or an empty place.
        gain: mean NDCG@k of `chosen` less that of `incumbent` on the test fold, and its interval over contacts; None
            without an incumbent or without anybody to judge.
        why: the decision in a sentence.
        comparison: rows of `COMPARISON_SCHEMA`: every candidate on both folds beside the baseline, as far as the
            interactions reach.
        curve: rows of `ml.evaluate.CURVE_SCHEMA` on the test fold.
        k: length of the lists compared.
        contacts: how many contacts the comparison learnt from.
    """

    winner: str
    estimator: Recommender
    chosen: str
    incumbent: str | None
    is_promoted: bool
    gain: Interval | None
    why: str
    comparison: pl.DataFrame
    curve: pl.DataFrame
    k: int
    contacts: int

    def metric(self, estimator: str, metric: str, fold: str = TEST) -> float | None:
        """A metric of a candidate, such as `ndcg@10`; None if it could not be judged."""
        rows = self.comparison.filter(
            (pl.col("fold") == fold) & (pl.col("estimator") == estimator) & (pl.col("metric") == metric)
        )
        return rows["value"].item() if rows.height else None

    def summary(self) -> pl.DataFrame:
        """A row a candidate, best on the test fold first: NDCG@k on both folds, and on the test fold recall@k, the
        gain over the baseline with its interval, coverage, and seconds of fitting and scoring."""
        ndcg, recall, coverage = (f"{name}@{self.k}" for name in ("ndcg", "recall", "coverage"))
        of = self.comparison.filter
        test = of((pl.col("fold") == TEST) & (pl.col("metric") == ndcg)).select(
            "estimator", "is_chosen", pl.col("value").alias(f"{ndcg} test"),
            "gain", "gain_low", "gain_high", "contacts", "seconds",
        )  # fmt: skip
        validation = of((pl.col("fold") == VALIDATION) & (pl.col("metric") == ndcg)).select(
            "estimator", pl.col("value").alias(f"{ndcg} validation")
        )
        others = [
            of((pl.col("fold") == TEST) & (pl.col("metric") == name)).select(
                "estimator", pl.col("value").alias(f"{name} test")
            )
            for name in (recall, coverage)
        ]
        for frame in (validation, *others):
            test = test.join(frame, on="estimator", how="left", maintain_order="left")
        return test.sort(f"{ndcg} test", descending=True, nulls_last=True, maintain_order=True)


def select(
    interactions: pl.DataFrame,
    candidates: Mapping[str, Recommender],
    *,
    incumbent: str | None = None,
    horizon: timedelta = timedelta(days=28),
    k: int = 10,
    rules: Rules | None = None,
    catalogue: pl.DataFrame | None = None,
    groups: pl.DataFrame | None = None,
    max_contacts: int = 100_000,
    max_judged: int = 20_000,
    seed: int = 0,
) -> Selection:
    """Choose a recommender on a temporal split.

    The last `horizon` is the test fold, the one before it the validation fold, all before that the training fold.
    Candidates learn from the training fold and the best NDCG@k on the validation fold is chosen. All then learn from
    training and validation folds and are reported on the test fold, which no choice looks at but this: the chosen one
    takes the place of the incumbent only if it does better there. Without a validation fold with anybody to judge, the
    incumbent stays, or the first candidate is taken.

    The winner comes unfitted, the weights of a hybrid as they were reported on: fit it on everything.

    Args:
        interactions: see `ml.dataset`.
        candidates: from names to unfitted estimators, the baseline first.
        incumbent: name of the one in place; a name that is no candidate counts as none.
        horizon: length of a fold.
        k: length of the lists compared.
        rules: as for `recommend`, but for `candidates`: what is in stock today was not known then.
        catalogue: as for `fit`.
        groups: as for `fit`.
        max_contacts: compare on the purchases of a sample of so many contacts.
        max_judged: judge a sample of so many contacts in each fold.
        seed: of the samples and the bootstrap.

    Raises:
        ValueError: no candidates, or an argument that `fit`, `recommend` or `ml.splits` refuses.
    """
    if not candidates:
        raise ValueError("no candidates to choose from")
    rules = replace(rules or Rules(), candidates=None)
    contacts = (
        interactions["contact_id"].unique().sort() if "contact_id" in interactions.columns else pl.Series([])
    )
    if contacts.len() > max_contacts:
        sample = contacts.sample(max_contacts, seed=seed)
        interactions = interactions.filter(pl.col("contact_id").is_in(sample.implode()))
        contacts = sample
    interactions = validated_interactions(interactions)
    first = next(iter(candidates))
    incumbent = incumbent if incumbent in candidates else None
    folds = temporal_folds(interactions, horizon=horizon, folds=2)
    newest = interactions["ordered_at"].max()
    judged: dict[str, Judgement] = {}
    for fold in folds:
        assert isinstance(newest, datetime)
        name = TEST if fold.cutoff + horizon > newest else VALIDATION
        judged[name] = judge_on_split(
            fold,
            candidates,
            k=k,
            rules=rules,
            catalogue=catalogue,
            groups=groups,
            max_judged=max_judged,
            with_curve=name == TEST,
            seed=seed,
        )

    chosen = incumbent or first
    gain: Interval | None = None
    validation, test = judged.get(VALIDATION), judged.get(TEST)
    means = {name: validation.mean(name) if validation else None for name in candidates}
    if all(mean is None for mean in means.values()):
        winner = chosen
        why = f"{winner}: there are too few orders to compare candidates on."
    else:
        # of equals the one named first, which is the simpler one
        chosen = max(candidates, key=lambda name: _or_least(means[name]))
        winner = chosen
        why = f"{chosen} had the best NDCG@{k} on the validation fold ({means[chosen]:.4f})."
        if incumbent is not None and chosen != incumbent:
            difference = test.ndcg[chosen] - test.ndcg[incumbent] if test else np.zeros(0)
            if len(difference):
                gain = bootstrap_mean(difference, seed=seed)
            if gain is None or gain.mean <= 0:
                winner = incumbent
                why += f" On the test fold it did no better than {incumbent}, which stays."
            else:
                why += f" On the test fold it did better than {incumbent}, whose place it takes."
        elif incumbent is not None:
            why += " It is in place already."
    estimator = cast(Recommender, clone(candidates[winner]))
    if test is not None and winner in test.weights:
        # as they were when the test fold was reported on, learnt from what came before it
        estimator.set_params(weights=test.weights[winner])
    frames = [
        judgement.metrics.select(
            pl.lit(name).alias("fold"), *EVALUATION_SCHEMA, (pl.col("estimator") == winner).alias("is_chosen")
        )
        for name, judgement in judged.items()
    ]
    return Selection(
        winner=winner,
        estimator=estimator,
        chosen=chosen,
        incumbent=incumbent,
        is_promoted=winner != incumbent,
        gain=gain,
        why=why,
        comparison=pl.concat(frames) if frames else COMPARISON_SCHEMA.to_frame(),
        curve=test.curve if test else CURVE_SCHEMA.to_frame(),
        k=k,
        contacts=contacts.len(),
    )
