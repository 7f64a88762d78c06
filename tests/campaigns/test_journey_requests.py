from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import polars as pl
import pytest

from campaigns.journey_requests import REQUEST_COLUMNS, define_requests, request_moves
from warehouse.client import Warehouse
from warehouse.errors import InputError

AT = datetime(2026, 3, 2, 9, 0, 0, 123000, UTC)


def requests(*rows: tuple[str, str, int, str], cause: str = "api") -> pl.DataFrame:
    return pl.DataFrame([(*row, cause, AT) for row in rows], schema=REQUEST_COLUMNS, orient="row")


@pytest.fixture
def kept(warehouse: Warehouse) -> Iterator[Warehouse]:
    warehouse.execute("drop table if exists campaigns.journey_requests")
    yield warehouse
    warehouse.execute("drop table if exists campaigns.journey_requests")


def test_a_request_counts_once_however_often_it_is_made(kept: Warehouse) -> None:
    first = requests(
        ("r1", "welcome", 7, "enter"), ("r1", "welcome", 8, "enter"), ("r2", "welcome", 7, "leave")
    )
    assert request_moves(kept, first) == 2
    assert request_moves(kept, first) == 0
    assert request_moves(kept, requests(("r2", "welcome", 9, "enter"), ("r3", "win_back", 9, "enter"))) == 1
    rows = kept.frame(
        """
        select request_id, journey, contact_id, toString(action) as action, cause, requested_at
        from campaigns.journey_requests order by request_id
        """
    )
    assert rows.rows() == [
        ("r1", "welcome", 7, "enter", "api", AT),
        ("r2", "welcome", 7, "leave", "api", AT),
        ("r3", "win_back", 9, "enter", "api", AT),
    ]


def test_no_requests_are_no_work_and_the_table_is_made_by_need(kept: Warehouse) -> None:
    assert request_moves(kept, pl.DataFrame(schema=REQUEST_COLUMNS)) == 0
    define_requests(kept)
    define_requests(kept)
    assert request_moves(kept, requests(("r1", "welcome", 7, "enter")).drop("cause")) == 1


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (requests(("r1", "welcome", 7, "join")), "'action': 'join'"),
        (requests(("", "welcome", 7, "enter")), "'request_id': ''"),
        (requests(("r1", "", 7, "enter")), "'journey': ''"),
        (requests(("r1", "welcome", 0, "enter")), "'contact_id': 0"),
        (requests(("r1", "welcome", 7, "enter")).drop("contact_id"), "lack the column contact_id"),
        (requests(("r1", "welcome", 7, "enter")).with_columns(contact_id=pl.lit("7")), "contact_id as String"),
        (
            requests(("r1", "welcome", 7, "enter")).with_columns(requested_at=pl.lit(AT.replace(tzinfo=None))),
            "requested_at as Datetime",
        ),
    ],
)  # fmt: skip
def test_requests_that_say_too_little_are_refused_whole(
    kept: Warehouse, frame: pl.DataFrame, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        request_moves(kept, frame)
