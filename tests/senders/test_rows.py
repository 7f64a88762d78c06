"""Rows as plain values: what comes out is what polars says, whole, cut and sent elsewhere."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from senders.rows import Rows

MOMENT = datetime(2026, 6, 27, 9, 30, 0, 123456, tzinfo=ZoneInfo("Europe/London"))
TEXT = st.text(max_size=5) | st.none()
ITEMS = st.lists(
    st.fixed_dictionaries({"name": TEXT, "price": st.decimals(-999, 999, places=2) | st.none()}), max_size=3
)


def frame(texts: list[str | None], items: list[list[dict[str, object]]]) -> pl.DataFrame:
    height = len(texts)
    schema = pl.List(pl.Struct({"name": pl.String, "price": pl.Decimal(18, 2)}))
    return pl.DataFrame(
        {
            "contact_id": range(height),
            "first_name": pl.Series(texts, dtype=pl.String),
            "revenue": pl.Series([Decimal(n) / 4 for n in range(height)], dtype=pl.Decimal(18, 2)),
            "seen_at": pl.Series(
                [MOMENT + timedelta(days=n) for n in range(height)], dtype=pl.Datetime("ms", "Europe/London")
            ),
            "local_at": pl.Series([datetime(1969, 1, 1, n % 24) for n in range(height)]),
            "born_on": pl.Series([date(1950, 1, 1) + timedelta(days=n) for n in range(height)]),
            "score": [n / 3 for n in range(height)],
            "is_new": [n % 2 == 0 for n in range(height)],
            "segments": pl.Series([["a", "b"][: n % 3] for n in range(height)], dtype=pl.List(pl.String)),
            "skip_reason": [""] * height,
            "recommendations": pl.Series(items, dtype=schema),
        }
    )


@given(people=st.lists(st.tuples(TEXT, ITEMS), max_size=8), data=st.data())
def test_rows_are_what_the_frame_says(
    people: list[tuple[str | None, list[dict[str, object]]]], data: st.DataObject
) -> None:
    given_frame = frame([text for text, _ in people], [items for _, items in people])
    places = data.draw(st.lists(st.integers(0, max(len(people) - 1, 0)), max_size=6)) if people else []
    for rows, expected in (
        (Rows.of(given_frame), given_frame),
        (Rows.unpacked(Rows.of(given_frame).packed()), given_frame),
        (Rows.of(given_frame).only(places), given_frame[places]),
        (Rows.of(given_frame).only(range(len(people))), given_frame),
    ):
        contacts = expected.drop("skip_reason", "recommendations").to_dicts()
        assert rows.contacts() == contacts
        assert [list(map(repr, row.values())) for row in rows.contacts()] == [
            list(map(repr, row.values())) for row in contacts
        ]
        assert rows.recommendations() == expected["recommendations"].to_list()
        assert rows.texts("first_name") == ["" if one is None else one for one in expected["first_name"]]
        assert rows.height == expected.height


def test_only_what_is_needed_is_carried() -> None:
    ann = frame(["Ann"], [[{"name": "Lamp", "price": None}]])
    rows = Rows.of(ann, ["first_name", "recommendations"], frozenset({"name"}))
    assert rows.contacts() == [{"first_name": "Ann"}]
    assert rows.recommendations() == [[{"name": "Lamp"}]]
    # a loop that prints no field still goes round
    none = Rows.of(frame(["Ann"], [[{"name": "Lamp", "price": None}] * 2]), None, frozenset())
    assert none.recommendations() == [[{}, {}]]
    assert Rows.of(frame(["Ann"], [[]]), ["first_name"]).recommendations() == [[]]
    assert rows.texts("no_such_column") == [""]


def test_nothing_is_lost_on_the_way_to_another_process() -> None:
    now = datetime.now(UTC)
    rows = Rows.of(pl.DataFrame({"at": [now], "what": pl.Series([timedelta(1)])}))
    assert Rows.unpacked(rows.packed()).contacts() == [{"at": now, "what": timedelta(1)}]
