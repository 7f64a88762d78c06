"""Requests that somebody enter or leave a journey, as the API takes them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Literal

import polars as pl

from campaigns.journey_requests import REQUEST_COLUMNS, request_moves
from campaigns.live import Live
from warehouse.client import Warehouse


class Moves:
    """Finds out who is meant, and asks for the move. A `gateway.api.JourneyMoves`; safe to share between threads.

    Args:
        folder: the journeys' files, `content/journeys`; read at each call, so that a new one counts at once.
    """

    def __init__(self, folder: Path, warehouse: Warehouse) -> None:
        self._folder, self._warehouse = folder, warehouse
        self._live = Live(warehouse)

    def move(
        self,
        journey: str,
        action: Literal["enter", "leave"],
        contact: dict[str, str],
        request_id: str,
        cause: str,
        now: datetime,
    ) -> Literal["accepted", "unknown_journey", "unknown_contact"]:
        """See `gateway.api.JourneyMoves.move`.

        Raises:
            WarehouseError: it could not be stored.
        """
        if journey not in {path.stem for path in self._folder.glob("*.yaml")}:
            return "unknown_journey"
        contact_id = int(
            self._live.resolve(pl.DataFrame({name: [text] for name, text in contact.items()}))[0]
        )
        if contact_id == 0:
            return "unknown_contact"
        row = (request_id, journey, contact_id, action, cause, now)
        request_moves(self._warehouse, pl.DataFrame([row], schema=REQUEST_COLUMNS, orient="row"))
        return "accepted"
