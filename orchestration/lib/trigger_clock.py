"""Triggers that no event fires: whom a day, a state or a segment concerns now, handed to where events are judged.

Whoever is found becomes a firing in the ledger; the gateway's lanes do the rest, as for any other. No Dagster in here.
"""

from __future__ import annotations

from datetime import datetime

from campaigns.deciding import STATES, clock_events, note_states
from gateway.triggers import TriggerHandler


def tick(handler: TriggerHandler, now: datetime) -> dict[str, int]:
    """Judge all triggers that follow the clock; returns how many contacts each is to fire for. Safe to repeat.

    Raises:
        WarehouseError: the models have not been built, or the warehouse does not answer.
    """
    specs = [spec for spec in handler.decider.specs.values() if spec.event is None]
    if not specs:
        return {}
    handler.prepare()
    handler.warehouse.define(STATES)
    counts: dict[str, int] = {}
    for spec in specs:
        found = clock_events(handler.warehouse, handler.live, spec, now)
        decided = handler.decide(found, now, names=[spec.name]) if found.height else None
        if decided is not None:
            handler.act(decided, now)
        if spec.date is None:
            # after the firings: whoever is found twice is the same event
            note_states(handler.warehouse, handler.live, spec, now)
        counts[spec.name] = len(decided.due) if decided is not None else 0
    return counts
