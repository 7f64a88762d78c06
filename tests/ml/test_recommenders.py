"""Every recommender against a formula written out, and what holds for all of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import lognorm
from sklearn.base import clone

from ml.dataset import InteractionMatrix
from ml.recommend import (
    RECOMMENDATION_SCHEMA,
    ALSRecommender,
    ContentRecommender,
    EASERecommender,
    HybridRecommender,
    ItemToItemRecommender,
    PopularityRecommender,
    Recommender,
    RepurchaseRecommender,
    Rules,
)
from ml.recommend import base as base_module
from ml.recommend import ease as ease_module
from ml.recommend.content import content_vectors, descriptions, validated_catalogue
from ml.recommend.topk import best_of_rows, largest_of_rows

DAY = datetime(2011, 1, 1, tzinfo=UTC)
ALLOW = Rules(exclude_bought=False)

CATALOGUE = pl.DataFrame(
    {
        "product_id": list("abcdefgh"),
        "name": ["Red mug", "Blue mug", "Red plate", "Blue plate", "Green bag", None, "Red bag!", "Mug"],
        "category": ["cup", "cup", "plate", "plate", "bag", None, "bag", "cup"],
        "price": [1.0, 2.0, 3.0, 4.0, float("nan"), None, 7.0, 8.0],
        "tags": [["x", "y"], ["x"], [], None, ["y"], None, ["x"], ["y"]],
        "is_new": [True, False, None, True, False, True, False, True],
    }
)


def orders(*lines: tuple[int, str, float]) -> pl.DataFrame:
    """Interactions from (contact, product, day)."""
    return pl.DataFrame(
        {
            "contact_id": [line[0] for line in lines],
            "product_id": [line[1] for line in lines],
            "ordered_at": [DAY + timedelta(days=line[2]) for line in lines],
            "quantity": [1] * len(lines),
        },
        schema={
            "contact_id": pl.Int64,
            "product_id": pl.String,
            "ordered_at": pl.Datetime("ms", "UTC"),
            "quantity": pl.Int64,
        },
    )


ESTIMATORS: dict[str, Recommender] = {
    "popularity": PopularityRecommender(half_life=60),
    "item_to_item": ItemToItemRecommender(),
    "sar": ItemToItemRecommender(similarity="jaccard", repeats=True),
    "ease": EASERecommender(regularisation=0.5),
    "als": ALSRecommender(factors=4, regularisation=0.1, iterations=3, n_jobs=1),
    "content": ContentRecommender(),
    "repurchase": RepurchaseRecommender(),
    "hybrid": HybridRecommender(
        [
            ("item_to_item", ItemToItemRecommender()),
            ("content", ContentRecommender()),
            ("popularity", PopularityRecommender()),
        ],
        horizon=10,
    ),
}
every_estimator = pytest.mark.parametrize("name", ESTIMATORS)

LINES = st.lists(
    st.tuples(st.integers(1, 8), st.sampled_from("abcdefg"), st.integers(0, 60)), min_size=1, max_size=40
)


def fit(name: str, interactions: pl.DataFrame, **more) -> Recommender:
    return clone(ESTIMATORS[name]).fit(interactions, catalogue=CATALOGUE, **more)


@every_estimator
@settings(max_examples=3, deadline=None)
@given(lines=LINES, k=st.integers(1, 12), shift=st.integers(1, 5), random=st.randoms())
def test_what_holds_for_all(name, lines, k, shift, random):
    contacts = list(range(1, 11))
    model = fit(name, orders(*lines))
    found = model.recommend(contacts, k, explain=True)
    assert found.schema == RECOMMENDATION_SCHEMA
    # masked: nothing bought comes back; k beyond the catalogue gives all there is
    bought = {(contact, product) for contact, product, _ in lines}
    lists = found.partition_by("contact_id", as_dict=True)
    for contact in contacts:
        rows = lists.get((contact,), found.clear())
        left = 8 - len({p for c, p in bought if c == contact})
        assert rows["rank"].to_list() == list(range(1, min(k, left) + 1))
        assert rows["product_id"].n_unique() == rows.height
        assert not {(contact, p) for p in rows["product_id"]} & bought
        assert rows["score"].is_sorted(descending=True)
        for because in rows["because"].drop_nulls():
            assert (contact, because) in bought
    # deterministic, whatever the order of rows, contacts and chunks
    shuffled, others = list(lines), list(contacts)
    random.shuffle(shuffled)
    random.shuffle(others)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_module, "_CELLS", 8 * shift)
        again = fit(name, orders(*shuffled)).recommend(others, k, explain=True, n_jobs=2)
    assert again["contact_id"].unique(maintain_order=True).to_list() == [
        c for c in others if c in set(found["contact_id"])
    ]
    order = ["contact_id", "rank"]
    # products of dense matrices may differ in the last digit with the shape of a chunk
    same = (
        ["contact_id", "rank"] if name == "als" else ["contact_id", "rank", "product_id", "reason", "because"]
    )
    assert again.sort(order).select(same).equals(found.sort(order).select(same))
    np.testing.assert_allclose(again.sort(order)["score"], found.sort(order)["score"], rtol=1e-4, atol=1e-6)
    # with products bought before allowed, everything is there
    assert model.recommend([1], 12, rules=ALLOW).height == 8


@every_estimator
def test_degenerate(name):
    for history in (orders(), orders((1, "a", 0)), orders((1, "a", 0), (1, "a", 0), (2, "a", 0))):
        model = fit(name, history)
        found = model.recommend([1, 2, 3], 10, explain=True)
        assert found.filter(pl.col("contact_id") == 3).height == 8
        assert found["score"].is_finite().all()
    with pytest.raises(ValueError, match="quantity must be"):
        fit(name, orders((1, "a", 0)).with_columns(quantity=pl.lit(-1)))
    with pytest.raises(ValueError, match="quantity must be"):
        fit(name, orders((1, "a", 0)).with_columns(quantity=pl.lit(float("nan"))))
    if name != "content" and name != "hybrid":
        assert clone(ESTIMATORS[name]).fit(orders()).recommend([1]).height == 0
    else:
        with pytest.raises(ValueError, match="needs a catalogue"):
            clone(ESTIMATORS[name]).fit(orders())


@settings(max_examples=15, deadline=None)
@given(LINES, st.integers(1, 5))
def test_the_matrix_holds_what_was_given(lines, unit):
    frame = orders(*lines).with_columns(
        pl.col("contact_id") * 10**unit, pl.col("product_id").cast(pl.Categorical if unit > 2 else pl.String)
    )
    until = DAY + timedelta(days=70)
    matrix = InteractionMatrix.from_interactions(frame, products=["a", "z"], until=until)
    pairs: dict[tuple[int, str], set[int]] = {}
    for contact, product, day in lines:
        pairs.setdefault((contact * 10**unit, product), set()).add(day)
    buyers = {p: sum(q == p for _, q in pairs) for p in {"a", "z", *(p for _, p, _ in lines)}}
    assert matrix.product_ids.tolist() == sorted(buyers, key=lambda p: (-buyers[p], p))
    seen = {}
    for row, contact in enumerate(matrix.contact_ids.tolist()):
        for pair in range(matrix.indptr[row], matrix.indptr[row + 1]):
            ages = matrix.purchase_ages[matrix.purchase_starts[pair] : matrix.purchase_starts[pair + 1]]
            assert (np.diff(ages) < 0).all() and ages[-1] == matrix.ages[pair]
            seen[(contact, matrix.product_ids[matrix.indices[pair]])] = {
                round(70 - age) for age in ages.tolist()
            }
    assert seen == pairs
    sums = matrix.weights(30.0).sum(axis=0)
    np.testing.assert_allclose(matrix.column_sums(30.0), np.asarray(sums).ravel(), rtol=1e-6)
    again = InteractionMatrix.from_interactions(matrix.purchases(), products=["a", "z"], until=until)
    np.testing.assert_array_equal(again.indices, matrix.indices)
    np.testing.assert_allclose(again.purchase_ages, matrix.purchase_ages, atol=1e-3)


def test_many_contacts_and_products_leave_few_bits_for_time():
    ids = np.arange(0, 2**40, 2**38)
    frame = pl.DataFrame(
        {
            "contact_id": ids,
            "product_id": ["a", "b", "a", "b"],
            "ordered_at": [DAY + timedelta(days=400 * i) for i in range(4)],
            "quantity": 1.0,
        }
    )
    assert InteractionMatrix.from_interactions(frame).ages.round().tolist() == [1200, 800, 400, 0]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
def test_best_of_rows(seed, n, m, k):
    random = np.random.default_rng(seed)
    keys = random.integers(-2, 3, (n, m)).astype(np.float32)
    keys[random.random((n, m)) < 0.3] = -np.inf
    top, values = best_of_rows(keys, k)
    for row in range(n):
        wanted = sorted((c for c in range(m) if np.isfinite(keys[row, c])), key=lambda c: (-keys[row, c], c))[
            :k
        ]
        assert [c for c in top[row].tolist() if c >= 0] == wanted
        assert values[row, : len(wanted)].tolist() == keys[row, wanted].tolist()
    from scipy import sparse

    positive = np.where(keys > 0, keys, 0).astype(np.float32)
    kept = largest_of_rows(sparse.csr_matrix(positive), k).toarray()
    for row in range(n):
        wanted = sorted((c for c in range(m) if positive[row, c] > 0), key=lambda c: (-keys[row, c], c))[:k]
        assert np.flatnonzero(kept[row]).tolist() == sorted(wanted)


@settings(max_examples=12, deadline=None)
@given(LINES, st.floats(0.1, 10), st.integers(1, 8))
def test_ease_is_the_formula(lines, regularisation, block):
    model = EASERecommender(regularisation=regularisation, neighbours=99, half_life=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ease_module, "_BLOCK", block)
        model.fit(orders(*lines))
    x = model.interactions_.weights().toarray().astype(np.float64)
    gram = x.T @ x
    inverse = np.linalg.inv(gram + regularisation * gram.diagonal().mean() * np.eye(len(gram)))
    expected = -inverse / inverse.diagonal()
    np.fill_diagonal(expected, 0.0)
    np.testing.assert_allclose(model.weights_.toarray(), expected, atol=1e-4)
    fewer = EASERecommender(regularisation=regularisation, neighbours=2, half_life=None).fit(orders(*lines))
    assert (np.diff(fewer.weights_.indptr) <= 2).all()
    kept = np.abs(fewer.weights_.toarray()).sum(axis=1)
    np.testing.assert_allclose(kept, np.sort(np.abs(expected), axis=1)[:, -2:].sum(axis=1), atol=1e-4)


def test_ease_of_the_most_bought_only():
    history = orders(*((c, p, 0) for c in range(6) for p in "abc"[: 1 + c % 3]), (9, "d", 0))
    model = EASERecommender(max_products=2).fit(history)
    assert model.weights_.shape == (4, 4) and not model.weights_.toarray()[2:].any()
    assert model.recommend([9], 3)["product_id"].to_list() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="regularisation must be above 0"):
        EASERecommender(regularisation=0).fit(history)


def test_als_solves_its_equations_and_finds_tastes():
    random = np.random.default_rng(0)
    lines = [
        (c, "abcd"[i] if c < 20 else "efgh"[i], 0.0) for c in range(40) for i in random.permutation(4)[:2]
    ]
    model = ALSRecommender(
        factors=3, alpha=5.0, regularisation=0.3, iterations=30, half_life=None, n_jobs=1, seed=3
    )
    found = model.fit(orders(*lines)).recommend(range(40), 2)
    assert all((p in "abcd") == (c < 20) for c, p in found.select("contact_id", "product_id").iter_rows())
    assert set(found["reason"]) == {"taste"}
    # products are solved last: each solves the normal equations of Hu, Koren and Volinsky
    x, bought = model.contact_vectors_.astype(np.float64), model.interactions_.weights().toarray()
    for item in range(8):
        confidence = 1 + (5.0 - 1) * bought[:, item]  # implicit counts alpha r in place of 1 + alpha r
        left = x.T @ (confidence[:, None] * x) + 0.3 * np.eye(3)
        right = x.T @ (confidence * bought[:, item])
        np.testing.assert_allclose(model.product_vectors_[item], np.linalg.solve(left, right), atol=2e-2)
    same = clone(model).fit(orders(*lines)).recommend(range(40), 2)
    assert same.equals(found)
    with pytest.raises(ValueError, match="alpha"):
        ALSRecommender(alpha=0).fit(orders(*lines))


def test_content_is_tf_idf_of_names_and_attributes():
    said = dict(zip(CATALOGUE["product_id"], descriptions(CATALOGUE), strict=True))
    assert said["a"] == ["red", "mug", "category=cup", "price=0", "tags=x", "tags=y", "is_new=true"]
    assert said["e"] == ["green", "bag", "category=bag", "tags=y", "is_new=false"]
    assert said["f"] == ["is_new=true"]
    names = CATALOGUE.select("product_id", "name")
    vectors = content_vectors(names, np.array(list("aceh"), dtype=object)).toarray()
    terms = {"a": ["red", "mug"], "c": ["red", "plate"], "e": ["green", "bag"], "h": ["mug"]}
    idf = {
        t: np.log(5 / (1 + sum(t in of for of in terms.values()))) + 1 for of in terms.values() for t in of
    }
    lengths = {p: np.sqrt(sum(idf[t] ** 2 for t in of)) for p, of in terms.items()}
    cosine = idf["red"] ** 2 / lengths["a"] / lengths["c"]
    assert vectors[0] @ vectors[1] == pytest.approx(cosine, rel=1e-5)
    assert vectors[0] @ vectors[2] == 0
    assert not content_vectors(names.clear(), np.array(["a"], dtype=object)).nnz
    model = ContentRecommender(half_life=None).fit(orders((1, "a", 0), (2, "e", 0)), catalogue=names)
    found = model.recommend([1], 8, explain=True)
    # nobody has bought any of these yet
    assert set(found.filter(pl.col("reason") == "similar")["product_id"]) == {"b", "c", "g", "h"}
    assert set(found.filter(pl.col("reason") == "similar")["because"]) == {"a"}
    for wrong, message in (
        (names.drop("product_id"), "needs a column product_id"),
        (pl.concat([names, names]), "unique"),
        (names.with_columns(at=pl.lit(DAY)), "at is Datetime"),
    ):
        with pytest.raises(ValueError, match=message):
            validated_catalogue(wrong)


def test_repurchase_is_the_formula():
    # contact 1 buys tea every 10 days, contact 2 bought it once, 3 bought a pot twice on one day and once before
    history = orders((1, "tea", 0), (1, "tea", 10), (1, "tea", 20), (2, "tea", 25), (3, "pot", 0), (3, "pot", 0.2),
                     (3, "cup", 30))  # fmt: skip
    model = RepurchaseRecommender(horizon=7).fit(history)
    place = {name: i for i, name in enumerate(model.interactions_.product_ids)}
    assert model.log_interval_[place["tea"]] == pytest.approx(np.log(10))
    assert model.spread_ == pytest.approx(0.1)
    overall = 1 / 4  # of four pairs one came back
    habit = (1 + 10 * overall) / (2 + 10)
    assert model.habit_[place["tea"]] == pytest.approx(habit)
    survival = lognorm(s=0.1, scale=10).sf
    scores = dict(
        zip(
            [(c, p) for c, p in ((1, "tea"), (2, "tea"))],
            [(2 + habit) / 3 * (1 - survival(17) / survival(10)), habit * (1 - survival(12) / survival(5))],
            strict=True,
        )
    )
    found = model.recommend([1, 2, 3], 3, rules=ALLOW, explain=True)
    for (contact, product), score in scores.items():
        row = found.filter((pl.col("contact_id") == contact) & (pl.col("product_id") == product))
        assert row["score"].item() == pytest.approx(score, rel=1e-4)
        assert row["reason"].item() == "buy_again" and row["because"].item() is None
    # due before it is early, and nothing that the rules leave out
    assert scores[(1, "tea")] > scores[(2, "tea")]
    assert set(model.recommend([1, 2], 3)["reason"]) == {"popular"}


def test_sar_adds_up_decayed_purchases():
    history = orders(
        (1, "a", 0), (1, "a", 10), (1, "b", 10), (2, "a", 10), (2, "b", 10), (2, "c", 10), (3, "c", 10)
    )
    model = ItemToItemRecommender(similarity="jaccard", shrinkage=0, half_life=10, repeats=True).fit(history)
    scores = dict(model.recommend([1], 5).select("product_id", "score").iter_rows())
    # jaccard of a and c, and of b and c: 1 of 3; a counts 1 + 1/2, b counts 1
    assert scores["c"] == pytest.approx(2.5 / 3, rel=1e-5)


def test_strangers_get_what_their_group_buys():
    history = orders(*((c, "a", 0) for c in range(200)), *((c, "b", 0) for c in range(200, 320)))
    groups = pl.DataFrame(
        {
            "contact_id": [*range(320), 900, 901, 902],
            "group": ["north"] * 200 + ["south"] * 120 + ["north", "south", "east"],
        }
    )
    for model in (PopularityRecommender(), ItemToItemRecommender()):
        found = model.fit(history, groups=groups).recommend([900, 901, 902, 999], 1)
        assert found["product_id"].to_list() == ["a", "b", "a", "a"]
        assert found["reason"].to_list() == ["popular_in_group"] * 3 + ["popular"]
    with pytest.raises(ValueError, match="in two groups"):
        PopularityRecommender().fit(history, groups=pl.concat([groups, groups]))
    with pytest.raises(ValueError, match="groups need columns"):
        PopularityRecommender().fit(history, groups=groups.drop("group"))


def test_a_hybrid_adds_what_its_parts_say():
    history = orders(*((c, p, c) for c in range(12) for p in "abcdefg"[c % 4 : c % 4 + 3]))
    parts = [("i", ItemToItemRecommender(shrinkage=1)), ("p", PopularityRecommender())]
    model = HybridRecommender(parts, weights=[1.0, 0.5]).fit(history)
    matrix = model.interactions_
    positions = np.arange(12)
    bought = matrix.weights().toarray() > 0
    total = np.zeros(bought.shape)
    for (_, part), weight in zip(parts, (1.0, 0.5), strict=True):
        share = np.where(bought, 0.0, clone(part).fit(history)._affinities(positions))
        total += weight * share / np.maximum(share.max(axis=1, keepdims=True), 1e-9)
    found = model.recommend(range(12), 7)
    place = {name: i for i, name in enumerate(matrix.product_ids)}
    for contact, product, score in found.select("contact_id", "product_id", "score").iter_rows():
        assert score == pytest.approx(total[contact, place[product]], rel=1e-5)
    for wrong in ([1.0], [0.0, 0.0], [-1.0, 1.0]):
        with pytest.raises(ValueError, match="weights must be"):
            HybridRecommender(parts, weights=wrong).fit(history)


def test_a_hybrid_learns_which_part_to_believe():
    # who buys the first of a pair buys the second next; what is popular is never bought next
    pairs = ["ab", "cd", "ef"]
    lines = [(c, pairs[c % 3][0], 0.0) for c in range(60)] + [(c, pairs[c % 3][1], 20.0) for c in range(30)]
    lines += [(c, pairs[c % 3][1], 50.0) for c in range(30, 60)] + [(c, "g", 0.0) for c in range(100, 200)]
    parts = [("p", PopularityRecommender()), ("i", ItemToItemRecommender(shrinkage=0))]
    model = HybridRecommender(parts, horizon=15).fit(orders(*lines))
    assert model.weights_[1] == 1.0 and model.weights_[0] < 1.0
    # too short for a fold: all alike
    assert HybridRecommender(parts, horizon=99).fit(orders(*lines)).weights_.tolist() == [1.0, 1.0]


RANKED = orders(*((c, p, 0) for p, n in zip("abcdegh", (9, 8, 7, 6, 5, 4, 3), strict=True) for c in range(n)))


def test_a_category_is_capped():
    model = PopularityRecommender().fit(RANKED, catalogue=CATALOGUE)
    found = model.recommend([99], 8, rules=Rules(per_category=1))
    assert found["product_id"].to_list() == ["a", "c", "e", "f"]  # f has no category
    found = model.recommend([99, 98], 5, rules=Rules(per_category=2, candidates=list("abchgf")))
    assert found["product_id"].to_list() == ["a", "b", "c", "g", "f"] * 2
    for rules in (Rules(per_category=1), Rules(diversity=0.5)):
        with pytest.raises(ValueError, match="need a catalogue"):
            PopularityRecommender().fit(RANKED).recommend([1], rules=rules)


@pytest.mark.parametrize("diversity", [0.2, 0.5, 0.9])
def test_diversity_is_maximal_marginal_relevance(diversity):
    model = PopularityRecommender().fit(RANKED, catalogue=CATALOGUE)
    found = model.recommend([99], 6, rules=Rules(diversity=diversity))["product_id"].to_list()
    ids = model.interactions_.product_ids
    vectors = content_vectors(CATALOGUE, ids).toarray()
    place = {name: i for i, name in enumerate(ids)}
    score = {p: (9 - i) / 9 for i, p in enumerate("abcdegh")} | {"f": -1e-3}
    chosen: list[str] = []
    while len(chosen) < 6:

        def value(p: str) -> float:
            nearest = max((vectors[place[p]] @ vectors[place[q]] for q in chosen), default=0.0)
            return (1 - diversity) * score[p] - diversity * nearest

        chosen.append(max((p for p in score if p not in chosen), key=value))
    assert found == chosen


def test_bought_a_while_ago_may_come_back():
    history = orders((1, "a", 0), (1, "b", 25), (2, "c", 30))
    model = PopularityRecommender().fit(history)
    assert set(model.recommend([1], rules=Rules(exclude_bought=timedelta(days=10)))["product_id"]) == {
        "a",
        "c",
    }
    for wrong in ({"diversity": 2}, {"per_category": 0}, {"exclude_bought": timedelta(0)}, {"pool": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Rules(**wrong)
