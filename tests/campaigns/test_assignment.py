"""Who gets which variant: the same in Python and in the engine, in the planned shares, independent between salts."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from campaigns.assignment import (
    HOLDOUT,
    OUTSIDE,
    REMAINDER,
    Allocation,
    Holdout,
    LayerSlot,
    batch_sql,
    free_slot,
    siphash,
)
from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings

INT64 = st.integers(-(2**63), 2**63 - 1)
SHARES = st.integers(0, 100).map(lambda percent: percent / 100)
NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_./-]{0,20}\Z").filter(lambda n: n not in (HOLDOUT, REMAINDER))


@st.composite
def allocations(draw: st.DrawFn) -> Allocation:
    variants = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    first, last = sorted(
        draw(st.tuples(st.integers(0, 99), st.integers(1, 100)).filter(lambda p: p[0] != p[1]))
    )
    return Allocation(
        draw(NAMES),
        {variant: draw(st.floats(0.01, 100)) for variant in variants},
        traffic=draw(SHARES),
        layer=draw(st.none() | NAMES.map(lambda name: LayerSlot(name, first / 100, last / 100))),
        holdout=draw(st.none() | st.builds(Holdout, NAMES, SHARES)),
    )


@pytest.fixture(scope="module")
def engine(warehouse_server: MailhouseSettings):
    with Warehouse.connect(warehouse_server, comment="test") as connection:
        yield connection


@settings(max_examples=10)
@given(st.lists(allocations(), min_size=1, max_size=6), st.lists(INT64, max_size=30))
def test_python_and_the_engine_agree(engine, several, ids):
    contacts = pl.DataFrame({"contact_id": [*ids, *range(-20, 200)]}, schema={"contact_id": pl.Int64})
    columns = ", ".join(f"{allocation.sql()} as variant_{i}" for i, allocation in enumerate(several))
    found = engine.frame(f"select contact_id, {columns} from contacts", external={"contacts": contacts})
    assert found.height == contacts.height
    for i, allocation in enumerate(several):
        assert found[f"variant_{i}"].to_list() == allocation.assign(found["contact_id"]).to_list()


def test_null_contacts_are_outside_in_both(engine):
    allocation = Allocation("nulls", {"a": 1, "b": 1})
    sql = allocation.sql("id")
    answer = engine.frame(f"select {sql} as variant from (select arrayJoin([toNullable(7), null]) as id)")
    assert answer["variant"].to_list() == allocation.assign(pl.Series([7, None])).to_list()
    assert allocation.assign(pl.Series([None], dtype=pl.Int64)).to_list() == [OUTSIDE]


def test_the_hash_is_siphash():
    # the eighth of the test vectors that the authors of SipHash publish: key 00 .. 0f, message 00 .. 07
    word, high = 0x0706050403020100, 0x0F0E0D0C0B0A0908
    assert siphash(np.array([word], dtype=np.uint64), word, high)[0] == 0x93F5F5799A932462


def test_assignments_do_not_move_between_releases():
    allocation = Allocation(
        "spring_sale",
        {"plain": 2, "emoji": 1},
        traffic=0.8,
        layer=LayerSlot("subject_lines", 0.2, 0.9),
        holdout=Holdout("holdout/2026q1", 0.1),
    )
    # fmt: off
    assert allocation.assign(range(12)).to_list() == [
        "plain", "emoji", HOLDOUT, OUTSIDE, OUTSIDE, REMAINDER, "emoji", HOLDOUT, HOLDOUT, "emoji", REMAINDER, "emoji",
    ]


def test_shares_are_those_planned_and_salts_are_independent():
    ids = np.arange(200_000)
    first = Allocation("first", {"a": 1, "b": 2, "c": 7})
    second = Allocation("second", {"x": 1, "y": 1})
    frame = pl.DataFrame({"first": first.assign(ids), "second": second.assign(ids)})
    counts = frame["first"].value_counts().sort("first")["count"].to_numpy()
    assert stats.chisquare(counts, np.array([0.1, 0.2, 0.7]) * len(ids)).pvalue > 1e-4
    table = frame.group_by("first", "second").len().pivot("second", index="first", values="len")
    assert stats.chi2_contingency(table.select("x", "y").to_numpy()).pvalue > 1e-4
    # neighbours share nothing either
    runs = frame["second"].to_numpy()
    pairs = np.array([[np.sum((runs[:-1] == a) & (runs[1:] == b)) for a in "xy"] for b in "xy"])
    assert stats.chi2_contingency(pairs).pvalue > 1e-4


def test_raising_the_traffic_keeps_everybodys_variant():
    ids = np.arange(20_000)
    low = Allocation("ramp", {"a": 1, "b": 1}, traffic=0.1).assign(ids)
    high = Allocation("ramp", {"a": 1, "b": 1}, traffic=0.6).assign(ids)
    is_tested = low != REMAINDER
    assert 1_700 < is_tested.sum() < 2_300
    assert (low.filter(is_tested) == high.filter(is_tested)).all()


def test_the_holdout_is_the_same_in_all_experiments_and_layers_exclude_each_other():
    ids = np.arange(50_000)
    holdout = Holdout("all", 0.05)
    slot = free_slot("l", 0.3, [])
    other = free_slot("l", 0.7, [slot])
    a = Allocation("a", {"x": 1}, layer=slot, holdout=holdout).assign(ids)
    b = Allocation("b", {"y": 1}, layer=other, holdout=holdout).assign(ids)
    assert not slot.overlaps(other)
    assert ((a == HOLDOUT) == (b == HOLDOUT)).all()
    assert not ((a == "x") & (b == "y")).any()
    assert ((a == "x") | (b == "y") | (a == HOLDOUT)).all()  # 0.3 + 0.7 leaves nobody out


@given(st.lists(st.integers(1, 30), max_size=12), st.integers(1, 100))
def test_free_slots_never_overlap_and_are_found_where_there_is_room(widths, wanted):
    taken: list[LayerSlot] = []
    for width in widths:
        try:
            slot = free_slot("l", width / 100, taken)
        except ValueError as error:
            assert sum(round((s.end - s.start) * 100) for s in taken) + width > 100
            assert "no free range" in str(error)
            continue
        assert not any(slot.overlaps(other) for other in taken)
        assert round((slot.end - slot.start) * 100) == width
        taken.append(slot)
    del taken[::2]  # gaps
    try:
        slot = free_slot("l", wanted / 100, [*taken, LayerSlot("other", 0, 1)])
    except ValueError:
        return
    assert not any(slot.overlaps(other) for other in taken)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Allocation("x", {}), "no variants"),
        (lambda: Allocation("x'", {"a": 1}), "a name is letters"),
        (lambda: Allocation("x", {"a'; drop": 1}), "a name is letters"),
        (lambda: Allocation("x", {"holdout": 1}), "may be called holdout"),
        (lambda: Allocation("x", {"a": 0}), "must be above 0"),
        (lambda: Allocation("x", {"a": float("nan")}), "must be above 0"),
        (lambda: Allocation("x", {"a": 1, "b": 1e-9}), "below a millionth"),
        (lambda: Allocation("x", {"a": 1}, traffic=1.5), "between 0 and 1"),
        (lambda: Holdout("h", -0.1), "between 0 and 1"),
        (lambda: LayerSlot("l", 0.5, 0.5), "start must be below end"),
        (lambda: free_slot("l", 0.6, [LayerSlot("l", 0.3, 0.6)]), "no free range"),
        (lambda: Allocation("x", {"a": 1}).assign(pl.Series(["1"])), "must be integers"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_batches_are_about_equal_and_say_nothing_about_variants(engine):
    allocation = Allocation("batched", {"a": 1, "b": 1})
    found = engine.frame(
        f"""
        select {batch_sql("batched", 4)} as batch, {allocation.sql()} as variant, count() as contacts
        from (select number::Int64 as contact_id from numbers(40000)) group by batch, variant order by batch, variant
        """
    )
    assert found["batch"].unique(maintain_order=True).to_list() == [0, 1, 2, 3]
    counts = found["contacts"].to_numpy().reshape(4, 2)
    assert stats.chi2_contingency(counts).pvalue > 1e-4 and stats.chisquare(counts.sum(axis=1)).pvalue > 1e-4


def test_how_a_contact_came_to_its_variant_is_said_as_it_is():
    allocation = Allocation(
        "offer", {"a": 1, "b": 3}, traffic=0.5, layer=LayerSlot("l", 0.0, 0.5), holdout=Holdout("h", 0.05)
    )
    said = allocation.words(7)
    assert "a 0.00% to 25.00%, b 25.00% to 100.00%" in said
    assert "layer l, 0.00% to 50.00%" in said and "h below 5.00%" in said
    for contact_id in range(50):
        place = float(Allocation("offer", {"a": 1, "b": 3}).words(contact_id).split(": ")[1].split("%")[0])
        assert Allocation("offer", {"a": 1, "b": 3}).assign([contact_id])[0] == ("a" if place < 25 else "b")
