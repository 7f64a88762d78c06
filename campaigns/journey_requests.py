"""Requests that somebody enter or leave a journey, from triggers, the API and people.

A request is a row of `campaigns.journey_requests`, once by request_id: the same request made again changes
nothing, so whoever asks may ask again after a crash. The next tick of the journey (`campaigns.journey_ticks`)
acts on it; what the journey's re-entry policy refuses stays refused.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from warehouse.client import Warehouse
from warehouse.errors import InputError

REQUEST_COLUMNS: Final[dict[str, pl.DataType]] = {
    "request_id": pl.String(),
    "journey": pl.String(),
    "contact_id": pl.Int64(),
    "action": pl.String(),
    "cause": pl.String(),
    "requested_at": pl.Datetime("ms", "UTC"),
}
"""What a frame of requests holds; `cause` may be left out."""

ACTIONS: Final = ("enter", "leave")

_TABLES: Final = (
    "create database if not exists campaigns",
    """
    create table if not exists campaigns.journey_requests (
        request_id String,
        journey LowCardinality(String),
        contact_id Int64,
        action Enum8('enter' = 1, 'leave' = 2),
        cause String,
        requested_at DateTime64(3, 'UTC'),
        loaded_at DateTime64(3, 'UTC') default now64(3),
        index by_request_id request_id type bloom_filter(0.01) granularity 4
    ) engine = MergeTree order by (journey, loaded_at, request_id)
    comment 'One request that a contact enter or leave a journey: request_id, of which the first row counts.'
    """,
)


def define_requests(warehouse: Warehouse) -> None:
    """Make `campaigns.journey_requests` unless it is there; cheap enough to call before every first use."""
    for statement in _TABLES:
        warehouse.define(statement)


def request_moves(warehouse: Warehouse, frame: pl.DataFrame) -> int:
    """Ask that contacts enter or leave journeys; returns how many of the requests are new.

    Args:
        warehouse: where the requests are kept. `define_requests` is run if the table is missing.
        frame: one row a request, with `REQUEST_COLUMNS`. The first row of a request_id counts.

    Raises:
        InputError: a column is missing or of another type, an action is none of `ACTIONS`, or a request
            has no request_id, no journey or no contact_id.
    """
    requests = _checked(frame)
    if not requests.height:
        return 0
    ids = requests.select("request_id")
    if not warehouse.value(
        "select count() from system.tables where database = 'campaigns' and name = 'journey_requests'"
    ):
        define_requests(warehouse)
    known = warehouse.frame(
        """
        select distinct request_id from campaigns.journey_requests
        where request_id in (select request_id from asked)
        """,
        external={"asked": ids},
    )
    new = requests.join(known, on="request_id", how="anti", maintain_order="left")
    return warehouse.insert("campaigns.journey_requests", new)


def _checked(frame: pl.DataFrame) -> pl.DataFrame:
    if "cause" not in frame.columns:
        frame = frame.with_columns(cause=pl.lit(""))
    for name, wanted in REQUEST_COLUMNS.items():
        if name not in frame.columns:
            raise InputError(
                f"Requests to a journey lack the column {name}.",
                fix=f"Give them {', '.join(REQUEST_COLUMNS)}.",
            )
        given = frame.schema[name]
        is_time = isinstance(wanted, pl.Datetime)
        fits = isinstance(given, pl.Datetime) and given.time_zone == "UTC" if is_time else given == wanted
        if not fits and frame.height:
            raise InputError(
                f"Requests to a journey have {name} as {given}, not {wanted}.", fix="Cast the column."
            )
    requests = frame.select(
        [pl.col(name).cast(dtype) for name, dtype in REQUEST_COLUMNS.items()]
    ).with_columns(cause=pl.col("cause").fill_null(""))
    wrong = requests.filter(
        pl.any_horizontal(pl.col(name).is_null() for name in REQUEST_COLUMNS)
        | (pl.col("request_id") == "")
        | (pl.col("journey") == "")
        | (pl.col("contact_id") == 0)
        | ~pl.col("action").is_in(ACTIONS)
    )
    if wrong.height:
        shown = {name: wrong.item(0, name) for name in ("request_id", "journey", "contact_id", "action")}
        raise InputError(
            f"{wrong.height} of {requests.height} requests to journeys say too little, such as {shown}.",
            fix=f"Give each a request_id, a journey, a contact_id and an action ({' or '.join(ACTIONS)}).",
        )
    return requests.unique("request_id", keep="first", maintain_order=True)
