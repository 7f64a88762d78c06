# ruff: noqa: S608  (queries are put together from names of this module)
"""What happened in the last moments: events in flight, and decisions of people that the marts do not have.

`Flight` holds events that the gateway judges before the warehouse has them, so that what happened a second ago counts.
`News` holds all stops and consents since the marts were built, asked in the background while events come, so that
judging asks nobody. Both are of this process; the stream and the warehouse keep what must outlive it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import polars as pl

from campaigns.permissions import restrictions_sql
from warehouse.client import Warehouse

UTC_MS: Final = pl.Datetime("ms", "UTC")
STOPS: Final = ("unsubscribed", "complained", "bounced", "subscribed")
HAPPENED: Final[dict[str, pl.DataType]] = {
    "contact_id": pl.Int64(),
    "event_id": pl.String(),
    "type": pl.String(),
    "source": pl.String(),
    "message_id": pl.String(),
    "is_machine": pl.Boolean(),
    "is_sms": pl.Boolean(),
    "occurred_at": UTC_MS,
    "loaded_at": UTC_MS,
    "order_id": pl.String(),
    "order_revenue": pl.Float64(),
    "order_items": pl.Int64(),
    "is_sale": pl.Boolean(),
}
"""What is known of events that have happened. `is_sms`: it is about a telephone number, and says nothing of mail."""
GIVEN: Final[dict[str, pl.DataType]] = {
    "address": pl.String(),
    "type": pl.String(),
    "consent_id": pl.String(),
    "event_id": pl.String(),
    "is_granted": pl.Boolean(),
    "occurred_at": UTC_MS,
    "loaded_at": UTC_MS,
}
"""What addresses decided: stops, and consents, which have the type `consent`."""
FLIGHT: Final = {**HAPPENED, "address": pl.String(), "is_stop": pl.Boolean()}
"""Events in flight: besides, the normalised address, and whether it stops mail to it (a hard bounce does)."""

RESTRICTED: Final[dict[str, pl.DataType]] = {
    "contact_id": pl.Int64(),
    "email": pl.String(),
    "restriction": pl.String(),
}
"""Whose data may not be processed: a contact, or with contact 0 a normalised address; see `campaigns.permissions`."""

NOT_LOADED: Final = datetime(2200, 1, 1, tzinfo=UTC)
"""`loaded_at` of what is in flight: later than all that a mart has taken in."""
NEWS_SECONDS: Final = 1.0
"""How old the answer of the warehouse about stops and consents may be."""
MOST_NEWS: Final = 50_000
_ASK_EVERY = 0.5
_ASKS_AFTER = 10.0  # seconds for which it goes on asking when nobody wanted to know


class Flight:
    """Events that are judged and that `live.events` may not have. Safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: list[pl.DataFrame] = []
        self._leaving: list[tuple[float, pl.DataFrame]] = []

    def add(self, events: pl.DataFrame) -> None:
        """Count events, columns of `FLIGHT`, until they are dropped; the same may come again."""
        with self._lock:
            self._frames.append(events.select(*FLIGHT))

    def drop(self, event_ids: Collection[str]) -> None:
        """Forget events: the warehouse has them, or will never."""
        gone = pl.Series("event_id", list(event_ids), pl.String())
        is_gone = pl.col("event_id").is_in(gone.implode())
        with self._lock:
            # news that were asked for before may still be believed
            stops = [frame.filter(is_gone & pl.col("type").is_in(STOPS)) for frame in self._frames]
            self._leaving += [(time.monotonic() + 2 * NEWS_SECONDS, frame) for frame in stops if frame.height]
            left = (frame.filter(~is_gone) for frame in self._frames)
            self._frames = [frame for frame in left if frame.height]

    def clear(self) -> None:
        """Forget all: another process has them now."""
        with self._lock:
            self._frames.clear()

    def all(self) -> pl.DataFrame:
        """All of them. Look before you ask the warehouse: what is dropped in between is there."""
        with self._lock:
            if len(self._frames) > 1:
                self._frames = [pl.concat(self._frames).unique("event_id", keep="last", maintain_order=True)]
            if self._leaving:
                now = time.monotonic()
                self._leaving = [one for one in self._leaving if one[0] > now]
            frames = [*self._frames, *(frame for _, frame in self._leaving)]
            return pl.concat(frames) if frames else pl.DataFrame(schema=FLIGHT)


@dataclass(frozen=True)
class Told:
    """Stops and consents since a mart was built.

    Attributes:
        through, messages_through: up to when the mart had taken in events and messages.
        given: `GIVEN`, by address. own: stops, `HAPPENED`, by contact.
        restrictions: `RESTRICTED`, all that are in force.
        asked_at: on the monotonic clock.
    """

    through: datetime
    messages_through: datetime
    given: pl.DataFrame
    own: pl.DataFrame
    restrictions: pl.DataFrame
    asked_at: float


class News:
    """Asks for stops and consents in the background, as long as somebody wants to know.

    Args:
        warehouse: of its own, or shared.
        prefix: what stands before the names of dbt's databases.
    """

    def __init__(self, warehouse: Warehouse, prefix: str) -> None:
        self._warehouse, self._prefix = warehouse, prefix
        self._told: Told | None = None
        self._wanted_at = self._forgotten_at = -1e9

    def fresh(self) -> Told | None:
        """What is known, if it was asked within `NEWS_SECONDS`; None if the warehouse must be asked by address."""
        now = time.monotonic()
        self._wanted_at = now
        told = self._told
        if told is None or now - told.asked_at > NEWS_SECONDS or told.asked_at <= self._forgotten_at:
            return None
        return told

    def forget(self) -> None:
        """Believe nothing that was asked before now: this process has just changed it."""
        self._forgotten_at = time.monotonic()

    def refresh(self) -> None:
        """Ask, if it is time to and somebody wants to know.

        Raises:
            WarehouseError: it does not answer, or the marts have not been built; what was known gets old.
        """
        now = time.monotonic()
        told = self._told
        if now - self._wanted_at > _ASKS_AFTER:
            return
        if told is not None and now - told.asked_at < _ASK_EVERY and told.asked_at > self._forgotten_at:
            return
        marks = self._warehouse.frame(
            f"select events_through, messages_through from {self._prefix}marts.contact_profiles limit 1"
        )
        if marks.is_empty():
            return
        through, messages_through = marks.row(0)
        stops = ", ".join(f"'{one}'" for one in STOPS)
        found = self._warehouse.frame(
            f"""
            with {{through:DateTime64(3, 'UTC')}} as through_
            select 0::Int64 as contact_id, {_email("email")} as address, type::String as type, '' as consent_id,
                event_id, false as is_granted, occurred_at, loaded_at
            from raw.events where type in ({stops}) and loaded_at > through_
                and (type != 'bounced' or properties.bounce_class::Nullable(String) = 'hard')
                and lower(coalesce(properties.is_machine::Nullable(String), '')) not in ('true', '1')
                and coalesce(properties.phone::Nullable(String), '') = ''
            union all
            select 0::Int64, {_email("email")}, 'consent', consent_id, '', is_granted, occurred_at, loaded_at
            from raw.consents where channel = 'email' and purpose = 'marketing' and loaded_at > through_
            union all
            select contact_id, '', type::String, '', event_id, false, occurred_at, loaded_at
            from live.events where type in ({stops}) and loaded_at > through_ and not is_machine
                and coalesce(properties.phone::Nullable(String), '') = ''
            limit {MOST_NEWS + 1}
            """,
            {"through": f"{through:%Y-%m-%d %H:%M:%S}.{through.microsecond // 1000:03d}"},
        )
        if found.height > MOST_NEWS:
            # a mart that nobody builds: addresses are asked for one by one again
            self._told = None
            return
        restrictions = restrictions_in_force(self._warehouse)
        own = found.filter(pl.col("contact_id") != 0)
        self._told = Told(
            through,
            messages_through,
            cast(found.filter(pl.col("contact_id") == 0), GIVEN),
            own.select(
                pl.lit(_EMPTY[name], dtype).alias(name) if name in _EMPTY else pl.col(name).cast(dtype)
                for name, dtype in HAPPENED.items()
            ),
            restrictions,
            now,
        )


def restrictions_in_force(warehouse: Warehouse) -> pl.DataFrame:
    """All restrictions, columns of `RESTRICTED`."""
    return cast(warehouse.frame(restrictions_sql()), RESTRICTED)


_EMPTY: Final = {
    "source": "", "message_id": "", "is_machine": False, "is_sms": False, "order_id": "", "order_revenue": 0.0,
    "order_items": 0, "is_sale": False,
}  # fmt: skip


def cast(frame: pl.DataFrame, schema: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """The columns of a schema, in its order and types."""
    return frame.select(pl.col(name).cast(dtype) for name, dtype in schema.items())


def _email(column: str) -> str:
    # as macros/identity.sql
    return f"lower(trim(both ' \\t\\r\\n' from {column}))"
