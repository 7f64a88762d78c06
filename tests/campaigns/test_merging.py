"""Which contacts are one: whoever merges hold together, whatever order they were made in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from campaigns.merging import survivors

START = datetime(2026, 1, 1, tzinfo=UTC)
EDGES = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5)).map(
        lambda edge: (edge[0], edge[1], START + timedelta(days=edge[2]))
    ),
    max_size=12,
)


@given(edges=EDGES, order=st.randoms(use_true_random=False))
def test_who_stays_is_one_for_all_that_merges_hold_together(edges, order) -> None:
    made = survivors(edges)
    shuffled = list(edges)
    order.shuffle(shuffled)
    assert survivors(shuffled) == made
    goers = {goes for goes, stays, _ in edges if goes != stays}
    together: dict[int, set[int]] = {}
    for goes, stays, _ in edges:
        whole = together.get(goes, {goes}) | together.get(stays, {stays})
        together |= dict.fromkeys(whole, whole)
    for one, whole in together.items():
        assert {made[other] for other in whole} == {made[one]}
        assert made[one] in whole
        assert made[one] not in goers or whole <= goers


def test_chains_and_circles_end() -> None:
    chain = [(number, number + 1, START) for number in range(1, 200)]
    assert set(survivors(chain).values()) == {200}
    circle = [(1, 2, START), (2, 3, START), (3, 1, START + timedelta(days=1))]
    assert survivors(circle) == {1: 1, 2: 1, 3: 1}
    # who was named last stays, of two that nobody went away from
    assert survivors([(1, 2, START), (1, 3, START + timedelta(days=1))]) == {1: 3, 2: 3, 3: 3}
