"""Keys, machines and orders as they are judged here are those of the engine."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from campaigns.live import Live, _columns
from campaigns.machines import KINDS, MachineRules
from campaigns.recent import HAPPENED
from campaigns.siphash import (
    contact_of,
    identity_of,
    identity_of_message,
    normalised_email,
    sip_hash,
    visitor_of,
)
from warehouse.client import Warehouse

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS, st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=50)
)
@hypothesis_settings(max_examples=15, deadline=None)
def test_keys_are_those_of_the_engine(warehouse: Warehouse, rows: list[tuple[str, str, str, int]]) -> None:
    frame = pl.DataFrame(
        rows, schema={"a": pl.String, "b": pl.String, "c": pl.String, "n": pl.Int64}, orient="row"
    )
    found = warehouse.frame(
        """
        with lower(trim(both ' \\t\\r\\n' from c)) as address
        select sipHash64(a), sipHash64(a, b), sipHash64(a, b, c), sipHash64(a, n), address,
            toInt64(bitShiftRight(sipHash64(address), 1)),
            if(b = '' and address = '', 0,
                toInt64(bitShiftRight(sipHash64(if(b = '', '', a), b, address), 1))),
            toInt64(bitShiftRight(sipHash64('message', n, address), 1)),
            -toInt64(bitShiftRight(sipHash64(a, b), 1))
        from given
        """,
        external={"given": frame},
    )
    for (a, b, c, n), told in zip(rows, found.iter_rows(), strict=True):
        address = normalised_email(c)
        assert told == (
            sip_hash(a), sip_hash(a, b), sip_hash(a, b, c), sip_hash(a, n), address, contact_of(address),
            identity_of(a, b, address), identity_of_message(n, address), visitor_of(a, b),
        )  # fmt: skip


RULES = [("user_agent", "", "Bot"), ("user_agent", "clicked", "scan/"), ("user_agent_is", "opened", "Mozilla/5.0"),
         ("user_agent_is", "", "curl")]  # fmt: skip
AGENTS = st.sampled_from(
    ["", "Mozilla/5.0", "mozilla/5.0", "a robot", "x SCAN/1 y", "CURL", "curl/8", "Ünbot"]
)
FLAGS = st.sampled_from(
    ["true", "TRUE", "1", "yes", "", True, False, 0, 1, 2, -1, 256, 1.0, 0.5, 300.5, -0.5, None, [], {}]
)


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from([*KINDS, "bounced", "cart.updated"]),
            st.fixed_dictionaries(
                {}, optional={"is_machine": FLAGS, "user_agent": AGENTS | FLAGS, "x": st.integers()}
            ),
        ),
        min_size=1,
        max_size=60,
    )
)
@hypothesis_settings(max_examples=15, deadline=None)
def test_machines_are_those_of_the_engine(
    warehouse: Warehouse, rows: list[tuple[str, dict[str, Any]]]
) -> None:
    rules = MachineRules.of(RULES)
    frame = pl.DataFrame(
        [(kind, json.dumps(said)) for kind, said in rows], schema=["type", "properties"], orient="row"
    )

    def patterns(name: str, kind: str) -> str:
        return (
            f"(select arrayMap(one -> lower(one), groupArray(pattern)) from rules where field = '{name}'"
            f" and event_type in ('', '{kind}'))"
        )

    by_agent = " or ".join(
        f"(type = '{kind}' and (multiSearchAny(agent, {patterns('user_agent', kind)})"
        f" or has({patterns('user_agent_is', kind)}, agent)))"
        for kind in KINDS
    )
    found = warehouse.frame(
        f"""
        with lower(JSONExtractString(properties, 'user_agent')) as agent
        select ((lower(JSONExtractString(properties, 'is_machine')) in ('true', '1')
            or JSONExtractBool(properties, 'is_machine')) or (agent != '' and ({by_agent})))::Bool as is_machine
        from given
        """,
        external={
            "given": frame,
            "rules": pl.DataFrame(RULES, schema=["field", "event_type", "pattern"], orient="row"),
        },
    )
    assert found["is_machine"].to_list() == [rules.is_machine(*one) for one in frame.iter_rows()]


def test_orders_in_flight_sell_what_they_sell_when_stored(warehouse: Warehouse) -> None:
    live = Live(warehouse)
    live.prepare()
    lines: list[Any] = [
        {
            "order_id": "a",
            "items": [{"quantity": 2, "unit_price": 24.5}, {"quantity": "3", "unit_price": "1.005"}],
        },
        {
            "items": [
                {"quantity": 1.0, "unit_price": 3},
                {"quantity": "1.0", "unit_price": 3},
                {"quantity": 0},
            ]
        },
        {"order_id": "", "items": []},
        {
            "order_id": 7,
            "items": [{"quantity": -1, "unit_price": 5}, {"quantity": 1, "unit_price": "2026-01-01"}],
        },
        {"order_id": None, "items": [{"quantity": 10**7, "unit_price": 1e-3}]},
        {"items": "none"},
    ]
    orders = pl.DataFrame(
        [(f"e{n}", json.dumps(one)) for n, one in enumerate(lines)],
        schema=["event_id", "properties"],
        orient="row",
    )
    moment = pl.lit(datetime.now(UTC)).cast(HAPPENED["loaded_at"])
    stored = orders.with_columns(
        pl.lit(5).cast(pl.Int64).alias("contact_id"), pl.lit("order.placed").alias("type"),
        pl.lit("web").alias("source"), pl.lit("").alias("message_id"), pl.lit(False).alias("is_machine"),
        *(moment.alias(name) for name in ("occurred_at", "received_at", "loaded_at")),
    )  # fmt: skip
    warehouse.insert("live.events", stored)
    names = ("event_id", "order_id", "order_revenue", "order_items", "is_sale")
    told = warehouse.frame(f"select {_columns({'order.placed'})} from live.events order by event_id").select(
        names
    )
    assert live._sold(orders).sort("event_id").select(names).rows() == told.rows()
    warehouse.execute("drop database live")


@pytest.fixture(autouse=True)
def _no_live(warehouse: Warehouse) -> None:
    warehouse.execute("drop database if exists live")
