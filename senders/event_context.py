"""The event that fired a trigger, as merge tags name it: `{{ event.cart_value | money }}`.

It travels with a message's row as a text, in the column `EVENT_COLUMN`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

EVENT_COLUMN: Final = "trigger_event"
"""Column of an audience that holds the event; no column of the contact's profile."""


def event_text(event: Mapping[str, Any]) -> str:
    """An event for `EVENT_COLUMN`.

    Args:
        event: `type`, `source`, `occurred_at` (ISO 8601), and `properties`, the text of a JSON object.
    """
    names = ("type", "source", "occurred_at", "properties")
    return json.dumps({name: event.get(name) or "" for name in names}, ensure_ascii=False)


def event_context(text: str | None) -> dict[str, Any]:
    """What `event` is in a template: the properties, and the event's own type, source and occurred_at.

    Numbers with a point are decimals, so that 12.50 stays that.
    """
    given = json.loads(text) if text else {}
    properties = json.loads(given.get("properties") or "{}", parse_float=Decimal)
    context: dict[str, Any] = dict(properties) if isinstance(properties, dict) else {}
    context |= {"type": given.get("type", ""), "source": given.get("source", ""), "occurred_at": None}
    if given.get("occurred_at"):
        moment = datetime.fromisoformat(given["occurred_at"])
        context["occurred_at"] = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return context
