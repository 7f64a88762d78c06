from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import process_time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from ml.dataset import InteractionMatrix, validated_interactions
from ml.evaluate import EVALUATION_SCHEMA, evaluate_on_temporal_split
from ml.recommend import RECOMMENDATION_SCHEMA, ItemToItemRecommender, PopularityRecommender, Rules, base

DAY = datetime(2011, 1, 1, tzinfo=UTC)


def orders(*pairs: tuple[int, str] | tuple[int, str, int]) -> pl.DataFrame:
    """Interactions from (contact, product) or (contact, product, day)."""
    return pl.DataFrame(
        {
            "contact_id": [pair[0] for pair in pairs],
            "product_id": [pair[1] for pair in pairs],
            "ordered_at": [DAY + timedelta(days=pair[2] if len(pair) > 2 else 0) for pair in pairs],
            "quantity": [1] * len(pairs),
        },
        schema={
            "contact_id": pl.Int64,
            "product_id": pl.String,
            "ordered_at": pl.Datetime("ms", "UTC"),
            "quantity": pl.Int64,
        },
    )


BASKETS = orders(
    (1, "tea"), (1, "pot"), (1, "milk"),
    (2, "tea"), (2, "pot"),
    (3, "tea"), (3, "pot"), (3, "cup"),
    (4, "milk"), (4, "jam"),
    (5, "jam"),
    (6, "tea"),
)  # fmt: skip


def products(frame: pl.DataFrame, contact: int) -> list[str]:
    return frame.filter(pl.col("contact_id") == contact).sort("rank")["product_id"].to_list()


def test_similarity_is_the_formula():
    model = ItemToItemRecommender(damping=0.5, shrinkage=2, neighbours=10, half_life=None).fit(BASKETS)
    place = {name: i for i, name in enumerate(model.interactions_.product_ids)}
    similarity = model.weights_.toarray()
    # tea: 4 buyers, pot: 3, both: 3; cosine 3 / sqrt(12), shrunk by 3 / 5
    assert similarity[place["tea"], place["pot"]] == pytest.approx(3 / np.sqrt(12) * 3 / 5)
    assert similarity[place["pot"], place["tea"]] == pytest.approx(3 / np.sqrt(12) * 3 / 5)
    assert similarity[place["tea"], place["jam"]] == 0
    assert not similarity.diagonal().any()
    damped = ItemToItemRecommender(damping=0.3, shrinkage=0, neighbours=10, half_life=None).fit(BASKETS)
    assert damped.weights_.toarray()[place["tea"], place["pot"]] == pytest.approx(3 / (4**0.3 * 3**0.7))
    assert damped.weights_.toarray()[place["pot"], place["tea"]] == pytest.approx(3 / (3**0.3 * 4**0.7))


def test_what_goes_together_comes_first_then_what_is_popular():
    model = ItemToItemRecommender(shrinkage=0, half_life=None).fit(BASKETS)
    frame = model.recommend([6, 5, 99], k=10)
    assert frame.schema == RECOMMENDATION_SCHEMA
    assert frame["contact_id"].unique(maintain_order=True).to_list() == [6, 5, 99]
    assert products(frame, 6)[0] == "pot"
    assert products(frame, 6)[-1] == "jam"  # nothing connects it with tea
    assert products(frame, 5) == ["milk", "tea", "pot", "cup"]
    assert products(frame, 99) == ["tea", "pot", "jam", "milk", "cup"]  # a stranger: by buyers, then by name
    reasons = dict(frame.filter(pl.col("contact_id") == 5).select("product_id", "reason").iter_rows())
    assert reasons == {"milk": "bought_together", "tea": "popular", "pot": "popular", "cup": "popular"}
    popular = frame.filter(pl.col("reason") == "popular")
    assert (popular["score"] == 0).all() and (frame.filter(pl.col("reason") != "popular")["score"] > 0).all()


def test_bought_products_and_candidates():
    model = ItemToItemRecommender(half_life=None).fit(BASKETS)
    assert "tea" not in products(model.recommend([2]), 2)
    assert "tea" in products(model.recommend([2], rules=Rules(exclude_bought=False)), 2)
    assert set(products(model.recommend([2], rules=Rules(candidates=["jam", "cup", "unknown"])), 2)) == {
        "jam",
        "cup",
    }
    assert model.recommend([2], rules=Rules(candidates=[])).height == 0


def test_recent_purchases_count_more():
    history = orders(
        (1, "old", 0), (1, "new", 100), (2, "old", 0), (2, "a", 0), (3, "new", 100), (3, "b", 100)
    )
    assert products(ItemToItemRecommender(half_life=10).fit(history).recommend([1]), 1) == ["b", "a"]
    trend = orders((1, "old", 0), (2, "old", 0), (3, "old", 0), (4, "new", 99), (5, "new", 100))
    assert products(PopularityRecommender().fit(trend).recommend([9]), 9) == ["old", "new"]
    assert products(PopularityRecommender(half_life=10).fit(trend).recommend([9]), 9) == ["new", "old"]


EMPTY = BASKETS.clear()


@pytest.mark.parametrize(
    "model", [ItemToItemRecommender(), PopularityRecommender(), PopularityRecommender(30)]
)
def test_degenerate_input(model):
    nobody = clone(model).fit(EMPTY).recommend([1, 2])
    assert nobody.height == 0 and nobody.schema == RECOMMENDATION_SCHEMA
    one = clone(model).fit(orders((1, "tea"), (1, "tea")))
    assert one.recommend([1]).height == 0
    assert one.recommend([1], rules=Rules(exclude_bought=False))["product_id"].to_list() == ["tea"]
    assert one.recommend([2]).select("rank", "product_id").rows() == [(1, "tea")]
    assert one.recommend([]).height == 0
    single = clone(model).fit(orders((1, "tea"), (1, "pot")))
    assert single.recommend([1]).height == 0 and single.recommend([2]).height == 2
    ancient = clone(model).fit(orders((1, "tea", -20_000), (1, "pot", -20_000), (2, "tea", 0)))
    assert products(ancient.recommend([2]), 2) == ["pot"]
    assert ancient.recommend([1]).height == 0  # bought long ago is still bought


def test_refusals():
    model = PopularityRecommender()
    with pytest.raises(NotFittedError):
        model.recommend([1])
    model.fit(BASKETS)
    for k in (0, -1, 1_001):
        with pytest.raises(ValueError, match="k must be"):
            model.recommend([1], k=k)
    with pytest.raises(ValueError, match="twice"):
        model.recommend([1, 1])
    with pytest.raises(ValueError, match="half_life"):
        PopularityRecommender(half_life=0).fit(BASKETS)
    for wrong in (ItemToItemRecommender(damping=2), ItemToItemRecommender(shrinkage=-1)):
        with pytest.raises(ValueError, match="damping must be"):
            wrong.fit(BASKETS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("quantity") * 0, "quantity must be a number above 0"),
        (pl.lit(None, pl.String).alias("product_id"), "product_id is null in 12 rows"),
        (pl.lit("1").alias("contact_id"), "contact_id must hold integers, not String"),
        (pl.lit("2011").alias("ordered_at"), "ordered_at must hold times"),
        (pl.lit(float("nan")).alias("quantity"), "quantity must be a number above 0"),
    ],
)
def test_input_that_is_no_interactions(change, message):
    with pytest.raises(ValueError, match=message):
        validated_interactions(BASKETS.with_columns(change))
    with pytest.raises(ValueError, match="interactions lack ordered_at"):
        ItemToItemRecommender().fit(BASKETS.drop("ordered_at"))


INTERACTIONS = st.lists(
    st.tuples(st.integers(1, 8), st.sampled_from("abcdefg"), st.integers(0, 50)), min_size=1, max_size=40
)


@settings(max_examples=60, deadline=None)
@given(INTERACTIONS, st.integers(1, 8), st.booleans(), st.integers(0, 10))
def test_scores_are_those_of_a_naive_implementation(pairs, k, exclude, shrinkage):
    model = ItemToItemRecommender(damping=0.4, shrinkage=shrinkage, neighbours=100, half_life=None)
    found = model.fit(orders(*pairs)).recommend(range(1, 10), k, rules=Rules(exclude_bought=exclude))
    bought = {c: {p for cc, p, _ in pairs if cc == c} for c in range(1, 10)}
    buyers = {p: {c for c, pp, _ in pairs if pp == p} for _, p, _ in pairs}
    for contact in range(1, 10):
        expected = {}
        for j in buyers:
            if exclude and j in bought[contact]:
                continue
            total = 0.0
            for i in bought[contact] - {j}:
                both = len(buyers[i] & buyers[j])
                if both:
                    damped = len(buyers[i]) ** 0.4 * len(buyers[j]) ** 0.6
                    total += both / damped * both / (both + shrinkage)
            expected[j] = total
        rows = found.filter(pl.col("contact_id") == contact)
        assert rows["rank"].to_list() == list(range(1, min(k, len(expected)) + 1))
        assert rows["product_id"].n_unique() == rows.height
        best = sorted(expected.values(), reverse=True)[: rows.height]
        np.testing.assert_allclose(rows["score"].to_numpy(), best, rtol=1e-5)
        for name, score in rows.select("product_id", "score").iter_rows():
            assert score == pytest.approx(expected[name], rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(INTERACTIONS, st.randoms())
def test_order_of_rows_and_chunks_change_nothing(pairs, random):
    whole = ItemToItemRecommender().fit(orders(*pairs)).recommend(range(1, 10), 4)
    shuffled = list(pairs)
    random.shuffle(shuffled)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_CELLS", 10)
        chunked = ItemToItemRecommender().fit(orders(*shuffled)).recommend(range(1, 10), 4)
    assert whole.equals(chunked)


@settings(max_examples=30, deadline=None)
@given(INTERACTIONS, st.integers(1, 6))
def test_a_shorter_list_begins_the_longer_one(pairs, k):
    model = ItemToItemRecommender().fit(orders(*pairs))
    longer = model.recommend(range(1, 10), 7)
    assert model.recommend(range(1, 10), k).equals(longer.filter(pl.col("rank") <= k))


def test_of_equals_the_first_by_name_is_taken():
    names = [f"p{i:03}" for i in range(200)]
    history = orders((1, "seed"), *((2, name) for name in ["seed", *names]))
    model = ItemToItemRecommender(neighbours=500).fit(history)
    assert products(model.recommend([1], k=5), 1) == names[:5]


def test_neighbours_keep_the_nearest():
    model = ItemToItemRecommender(shrinkage=0, neighbours=1, half_life=None).fit(BASKETS)
    full = ItemToItemRecommender(shrinkage=0, neighbours=99, half_life=None).fit(BASKETS)
    assert (np.diff(model.weights_.indptr) <= 1).all()
    np.testing.assert_allclose(model.weights_.toarray().max(axis=1), full.weights_.toarray().max(axis=1))


def test_matrix_of_strangers():
    matrix = InteractionMatrix.from_interactions(BASKETS)
    assert matrix.shape == (6, 5)
    rows = matrix.rows(matrix.rows_of(np.array([99, 1, -5])))
    assert np.asarray(rows.sum(axis=1)).ravel().tolist() == [0, 3, 0]


def test_item_to_item_beats_popularity_on_real_orders(online_retail):
    """On the last four weeks of Online Retail, by more than chance could."""
    started = process_time()
    frame = evaluate_on_temporal_split(
        online_retail,
        {
            "popularity": PopularityRecommender(),
            "recent_popularity": PopularityRecommender(half_life=60),
            "item_to_item": ItemToItemRecommender(),
        },
    )
    assert process_time() - started < 20
    assert frame.schema == EVALUATION_SCHEMA
    ndcg = {
        row["estimator"]: row for row in frame.filter(pl.col("metric") == "ndcg@10").iter_rows(named=True)
    }
    assert ndcg["popularity"]["value"] == pytest.approx(0.0488, abs=0.0005)
    assert ndcg["recent_popularity"]["value"] == pytest.approx(0.0551, abs=0.0005)
    assert ndcg["item_to_item"]["value"] == pytest.approx(0.1095, abs=0.002)
    assert ndcg["item_to_item"]["gain_low"] > 0.04
    assert ndcg["item_to_item"]["low"] < ndcg["item_to_item"]["value"] < ndcg["item_to_item"]["high"]
    assert ndcg["item_to_item"]["contacts"] == 652


def test_everybody_in_the_demo_gets_recommendations(online_retail):
    model = ItemToItemRecommender().fit(online_retail)
    contacts = online_retail["contact_id"].unique().sort()
    frame = model.recommend(contacts, 10)
    assert frame.group_by("contact_id").len()["len"].to_list() == [10] * 2_931
    bought = online_retail.select("contact_id", "product_id").unique()
    assert frame.join(bought, on=["contact_id", "product_id"]).height == 0
    assert (
        (frame.sort("contact_id", "rank").select(pl.col("score").diff().over("contact_id")) <= 0)
        .to_series()
        .drop_nulls()
        .all()
    )


def test_a_split_without_anybody_to_judge():
    frame = evaluate_on_temporal_split(BASKETS, {"popularity": PopularityRecommender()})
    assert frame["contacts"].to_list() == [0] * 6
    assert frame["value"].null_count() == 6
    assert evaluate_on_temporal_split(EMPTY, {"popularity": PopularityRecommender()})["contacts"].sum() == 0
    with pytest.raises(ValueError, match="no estimators"):
        evaluate_on_temporal_split(BASKETS, {})
