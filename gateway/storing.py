"""One event that the gateway has seen, as a row of `raw.events`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import polars as pl

from warehouse.client import Warehouse
from warehouse.loads import load_events


def store_event(
    warehouse: Warehouse,
    event_id: str,
    type_: str,
    message_id: str,
    email: str,
    now: datetime,
    properties: Mapping[str, Any],
) -> None:
    """Store one event; returns when the warehouse has it. An event_id that it has already is not stored again.

    Raises:
        WarehouseError: it did not take it.
    """
    load_events(
        warehouse,
        pl.DataFrame(
            {
                "event_id": [event_id],
                "type": [type_],
                "source": ["gateway"],
                "email": [email],
                "message_id": [message_id],
                "occurred_at": [now],
                "received_at": [now],
                "properties": [json.dumps(properties)],
            },
            schema_overrides={
                "occurred_at": pl.Datetime("ms", "UTC"),
                "received_at": pl.Datetime("ms", "UTC"),
            },
        ),
        run_id="gateway",
    )
