"""The choice of a recommender: no fold sees what comes after it, and a better one is needed to replace another."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ml.recommend import HybridRecommender, ItemToItemRecommender, PopularityRecommender, Recommender, Rules
from ml.recommend.card import model_card
from ml.recommend.selection import COMPARISON_SCHEMA, TEST, VALIDATION, default_candidates, select

DAY = datetime(2011, 1, 1, tzinfo=UTC)
WEEK = timedelta(days=7)
PAIRS = ["ab", "cd", "ef", "gh"]

CANDIDATES: dict[str, Recommender] = {
    "popularity": PopularityRecommender(),
    "item_to_item": ItemToItemRecommender(shrinkage=0),
    "hybrid": HybridRecommender(
        [("p", PopularityRecommender()), ("i", ItemToItemRecommender(shrinkage=0))], horizon=7
    ),
}


def history(*, in_test: str = "follows", contacts: int = 160) -> pl.DataFrame:
    """Contacts buy the first of a pair, weeks later the second; in the last week perhaps what all buy instead."""
    lines = []
    for contact in range(contacts):
        first, second = PAIRS[contact % 4]
        lines.append((contact, first, 0.0))
        day = (10.0, 20.0, 26.0, 33.0)[contact // 4 % 4]
        lines.append((contact, "z" if day == 33.0 and in_test == "popular" else second, day))
    lines += [(1_000 + i, "z", 1.0) for i in range(80)] + [(5_000, "a", 34.9)]
    random = np.random.default_rng(0)
    random.shuffle(lines)
    return pl.DataFrame(
        {
            "contact_id": [line[0] for line in lines],
            "product_id": [line[1] for line in lines],
            "ordered_at": [DAY + timedelta(days=line[2]) for line in lines],
            "quantity": [1.0] * len(lines),
        },
        schema_overrides={"ordered_at": pl.Datetime("ms", "UTC")},
    ).sort("ordered_at", maintain_order=True)


def test_the_best_on_validation_is_chosen_and_reported_on_the_test_fold():
    selection = select(history(), CANDIDATES, horizon=WEEK, k=3)
    assert selection.chosen == selection.winner == "item_to_item"
    assert selection.is_promoted and selection.incumbent is None and selection.gain is None
    assert selection.comparison.schema == COMPARISON_SCHEMA
    assert set(selection.comparison["fold"]) == {VALIDATION, TEST}
    assert set(selection.comparison.filter(pl.col("is_chosen"))["estimator"]) == {"item_to_item"}
    assert selection.metric("item_to_item", "ndcg@3") == pytest.approx(1.0)
    assert selection.metric("popularity", "ndcg@3") < 0.9
    assert selection.curve.height == 9
    assert selection.summary()["estimator"][0] in ("item_to_item", "hybrid")
    again = select(history(), CANDIDATES, horizon=WEEK, k=3)
    drop = selection.comparison.drop("seconds")
    assert again.comparison.drop("seconds").equals(drop)


def test_no_fold_sees_what_comes_after_it():
    """Another last week changes nothing that was measured or learnt before it."""
    one, other = (
        select(history(in_test=kind), CANDIDATES, horizon=WEEK, k=3) for kind in ("follows", "popular")
    )
    assert one.chosen == other.chosen
    before = [
        s.comparison.filter(pl.col("fold") == VALIDATION).drop("seconds", "is_chosen") for s in (one, other)
    ]
    assert before[0].equals(before[1])
    after = [s.metric("popularity", "ndcg@3") for s in (one, other)]
    assert after[0] != after[1]


def test_the_weights_of_a_hybrid_are_those_reported_on():
    only = {"popularity": CANDIDATES["popularity"], "hybrid": CANDIDATES["hybrid"]}
    one, other = (select(history(in_test=kind), only, horizon=WEEK, k=3) for kind in ("follows", "popular"))
    assert one.winner == "hybrid"
    assert one.estimator.get_params()["weights"] == other.estimator.get_params()["weights"] is not None


def test_the_one_in_place_gives_way_to_a_better_one_only():
    kept = select(history(in_test="popular"), CANDIDATES, incumbent="popularity", horizon=WEEK, k=3)
    assert kept.chosen == "item_to_item" and kept.winner == "popularity" and not kept.is_promoted
    assert kept.gain is not None and kept.gain.mean <= 0
    assert "which stays" in kept.why
    replaced = select(history(), CANDIDATES, incumbent="popularity", horizon=WEEK, k=3)
    assert replaced.winner == "item_to_item" and replaced.is_promoted
    assert replaced.gain is not None and replaced.gain.mean > 0
    same = select(history(), CANDIDATES, incumbent="item_to_item", horizon=WEEK, k=3)
    assert same.winner == "item_to_item" and not same.is_promoted
    gone = select(history(), CANDIDATES, incumbent="no longer there", horizon=WEEK, k=3)
    assert gone.is_promoted and gone.incumbent is None


@pytest.mark.parametrize("frame", [history().clear(), history().head(3)])
def test_too_little_to_choose_by(frame):
    selection = select(frame, CANDIDATES, horizon=WEEK)
    assert selection.winner == "popularity" and "too few orders" in selection.why
    assert select(frame, CANDIDATES, incumbent="hybrid", horizon=WEEK).winner == "hybrid"
    card = model_card(selection, frame, version="1", fitted_at=DAY, rules=Rules())
    assert "too few orders" in card
    with pytest.raises(ValueError, match="no candidates"):
        select(frame, {})


def test_a_sample_of_contacts_is_compared():
    selection = select(history(), CANDIDATES, horizon=WEEK, k=3, max_contacts=120, max_judged=10, seed=1)
    assert selection.contacts == 120
    assert selection.comparison["contacts"].max() == 10


def test_the_card_says_what_how_and_what_not():
    frame = history()
    selection = select(frame, CANDIDATES, horizon=WEEK, k=3)
    rules = Rules(exclude_bought=timedelta(days=30), candidates=["a"], per_category=2, diversity=0.1)
    card = model_card(selection, frame, version="20110704T000000Z", fitted_at=DAY, rules=rules)
    said = (
        "item_to_item, version 20110704T000000Z",
        "401 order lines of 241 contacts",
        "01 Jan 2011 to 04 Feb 2011",
        "after 30 days",
        "1 products available",
        "at most 2 of a category",
        "| popularity |",
        "**Limits.**",
        "'shrinkage': 0",
    )
    assert [one for one in said if one not in card] == []


def test_default_candidates_follow_the_rules():
    assert list(default_candidates()) == ["popularity", "item_to_item", "ease", "als", "hybrid"]
    # where EASE takes in all products and none come back, ALS costs much and adds nothing
    assert list(default_candidates(products=12_000)) == ["popularity", "item_to_item", "ease", "hybrid"]
    assert "als" in default_candidates(products=12_001)
    assert "als" in default_candidates(products=100, rules=Rules(exclude_bought=False))
    everything = default_candidates(rules=Rules(exclude_bought=False, candidates=["a"]), has_catalogue=True)
    assert {"content", "repurchase"} <= set(everything)
    hybrid = everything["hybrid"].get_params(deep=False)
    assert [name for name, _ in hybrid["estimators"]] == [name for name in everything if name != "hybrid"]
    assert hybrid["rules"].candidates is None
