# ruff: noqa: S608  (queries are put together from checked conditions and names of this module)
"""Live state: what is so of the people whom events concern now, the last second included.

Marts are built now and then; triggers and journeys must know what happened since. `live.events` holds the events of
the last 35 days that came through the gateway's stream, each with the contact that dbt gives it, or will give it once
it is built (`campaigns.resolving`). Where an event led to nobody, `contact_id` is 0; once the visitor is named, it
stands there again for the contact. An event may stand there twice after a crash: readers count each `event_id` once.
Events that are judged before they are there are in flight (`campaigns.recent`) and count all the same, in the process
that judges them.

`Live.judge` tells for a whole batch what conditions say of events: over the columns of `marts.contact_profiles`, moved
by what was loaded after the mart was built (its `events_through`), and over counts of earlier events. The rows of the
batch's contacts are read by key with a query a table, side by side, and added up here: planning one query with all
the joins would cost ten times as much. `Live.take` asks for the profiles of those whom the events will most likely
concern while it finds out whom they do. Conditions are judged in process (`campaigns.evaluating`); what that declines
travels to ClickHouse as one flat table, over which one query judges it.
Everything is as of each event's own time (`as_of`), so that a batch is judged the same however it is
cut, and `is_history` judges the past in the same way from all events that there are.

What moves, and what does not: orders (count, pieces, revenue, first, last, days since), messages sent, opened and
clicked, suppression and consent move. Scores, bands, segments and what the CRM says are those of the last build.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
import polars as pl

from campaigns.evaluating import Judged, Rows, judged
from campaigns.predicates import EventCall, Predicate, property_sql
from campaigns.recent import (
    FLIGHT,
    GIVEN,
    HAPPENED,
    NOT_LOADED,
    STOPS,
    UTC_MS,
    Flight,
    News,
    Told,
    cast,
    restrictions_in_force,
)
from campaigns.resolving import Guess, Resolver, keyed_frame, loads_of
from campaigns.siphash import normalised_email
from warehouse.client import INSERT_SETTINGS, Warehouse
from warehouse.errors import WarehouseError
from warehouse.loads import EVENT_COLUMNS

DAYS: Final = 35
"""How long `live.events` keeps what was loaded."""

TABLES: Final = (
    "create database if not exists live",
    f"""
    create table if not exists live.events (
        event_id String,
        contact_id Int64,
        type LowCardinality(String),
        source LowCardinality(String),
        message_id String,
        is_machine Bool,
        occurred_at DateTime64(3, 'UTC'),
        received_at DateTime64(3, 'UTC'),
        properties JSON,
        loaded_at DateTime64(3, 'UTC')
    ) engine = ReplacingMergeTree partition by toMonday(loaded_at)
    order by (contact_id, type, occurred_at, event_id)
    ttl toDateTime(loaded_at) + toIntervalDay({DAYS}) settings ttl_only_drop_parts = 1
    comment 'One event of the last {DAYS} days with its contact, 0 if it led to none; count each event_id once.'
    """,
)
JUDGED_COLUMNS: Final[dict[str, pl.DataType]] = {
    "row": pl.Int64(),
    "contact_id": pl.Int64(),
    "email": pl.String(),
    "as_of": UTC_MS,
    "event_id": pl.String(),
    "event_type": pl.String(),
    "event_source": pl.String(),
    "event_occurred_at": UTC_MS,
    "event_properties": pl.String(),
    "message_kind": pl.String(),
    "message_name": pl.String(),
    "message_template": pl.String(),
    "message_occurrence": pl.String(),
}
"""Columns of a frame that `Live.judge` takes. `email` is the event's, for contacts that marts do not have yet."""
SENT_COLUMNS: Final[dict[str, pl.DataType]] = {
    "message_id": pl.String(),
    "contact_id": pl.Int64(),
    "sent_at": UTC_MS,
}
"""Messages that the ledger has and the warehouse may not."""

ORDER_COLUMNS: Final = frozenset(
    ("orders_count", "items_count", "revenue", "average_order_value", "first_order_at", "last_order_at",
     "days_since_last_order")
)  # fmt: skip
READ_COLUMNS: Final = frozenset(
    ("messages_opened_count", "messages_clicked_count", "last_opened_at", "last_clicked_at")
)
SENT: Final = frozenset(("messages_sent_count", "first_message_at", "last_message_at"))
PERMISSION_COLUMNS: Final = frozenset(("is_suppressed", "has_marketing_consent"))
MOVING_TYPES: Final = frozenset((*STOPS, "order.placed", "order.cancelled", "opened", "clicked"))
"""Events that move profiles, whatever conditions say."""
MOVED_COLUMNS: Final = ORDER_COLUMNS | READ_COLUMNS | SENT | PERMISSION_COLUMNS
"""Columns of a profile that are moved by what happened since the mart was built."""

_PROPERTY = re.compile(r"JSONExtract\(`event_properties`(?:, '[A-Za-z_0-9]+')+, '[A-Za-z()]+'\)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WATERMARKS = frozenset(("events_through", "messages_through"))
_LOOK_SECONDS, _UNBUILT_SECONDS = 30.0, 2.0
_MOST_ADOPTED, _MOST_REMEMBERED = 1_000, 100_000
"""Events of one visitor that are given to a contact late, and visitors of whom it is known that this was done."""


def _email(column: str) -> str:
    # as macros/identity.sql
    return f"lower(trim(both ' \\t\\r\\n' from {column}))"


@dataclass(frozen=True)
class Needs:
    """What of the live state is asked for.

    Attributes:
        columns: of the profile, that must be moved where they move.
        calls: what conditions ask about earlier events.
        properties: paths of the event's properties to be returned, as `cart.value`.
        has_permission: consent and suppression, with the rows that prove them.
        has_proof: false if the consent's row is of no interest, which may spare a query.
    """

    columns: frozenset[str] = frozenset()
    calls: frozenset[EventCall] = frozenset()
    properties: frozenset[str] = frozenset()
    has_permission: bool = False
    has_proof: bool = True

    @classmethod
    def of(cls, predicates: Iterable[Predicate], *, has_permission: bool = False) -> Needs:
        """What conditions need."""
        columns: set[str] = set()
        calls: set[EventCall] = set()
        properties: set[str] = set()
        for predicate in predicates:
            calls |= predicate.calls
            for name in predicate.columns:
                qualifier, dot, path = name.partition(".")
                if not dot:
                    columns.add(name)
                elif qualifier == "event" and path not in ("type", "source", "occurred_at"):
                    properties.add(path)
        return cls(frozenset(columns), frozenset(calls), frozenset(properties), has_permission)

    def and_also(self, other: Needs) -> Needs:
        """What both need."""
        return Needs(
            self.columns | other.columns,
            self.calls | other.calls,
            self.properties | other.properties,
            self.has_permission or other.has_permission,
            (self.has_permission and self.has_proof) or (other.has_permission and other.has_proof),
        )


@dataclass(frozen=True)
class Ahead:
    """Profiles that were asked for before it was certain whom events concern.

    Attributes:
        asked: contacts; one of them who is not in the answer is not in the mart.
        columns: of the profile.
    """

    asked: frozenset[int]
    columns: frozenset[str]
    answer: Future[pl.DataFrame]


@dataclass
class Live:
    """Live state over one warehouse. Safe to share between threads.

    Args:
        prefix: what stands before the names of dbt's databases, for tests and branches.
    """

    warehouse: Warehouse
    prefix: str = ""
    _looked_at: float = field(default=-1e9, init=False)
    _tables: frozenset[str] = field(default=frozenset(), init=False)
    _columns: dict[str, str] = field(default_factory=dict, init=False)
    _readable: dict[str, str] = field(default_factory=dict, init=False)
    _adopted: dict[tuple[str, str, int], None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.flight = Flight()
        self.news: News | None = None
        self.changed_at = -1e9
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="live")
        self.resolver = Resolver(self.warehouse, self.prefix, lambda: self._tables, self._pool)

    def follow(self) -> None:
        """Let `refresh` be called every now and then by a thread, so that judging need not ask what it can know.

        Stops and consents that another process writes then count after `recent.NEWS_SECONDS` at most.
        """
        self.news = News(self.warehouse, self.prefix)

    def refresh(self) -> None:
        """Ask for what changes by itself: tables, rules about machines, stops and consents.

        Raises:
            WarehouseError: it does not answer.
        """
        pause = _LOOK_SECONDS / 2 if self._columns else _UNBUILT_SECONDS
        if time.monotonic() - self._looked_at >= pause:
            self._look(0.0)
        self.resolver.look()
        if self.news is not None and "events_through" in self._columns:
            self.news.refresh()

    def known_since(self) -> float:
        """Since when, on the monotonic clock, what judging says of permissions may have changed unnoticed."""
        told = self.news.fresh() if self.news is not None else None
        return time.monotonic() if told is None else told.asked_at

    def changed_permissions(self) -> None:
        """This process has stored a consent or a stop: it counts for what is judged from now on."""
        self.changed_at = time.monotonic()
        if self.news is not None:
            self.news.forget()

    def prepare(self) -> None:
        """Make the tables, if they are not there."""
        for statement in TABLES:
            self.warehouse.define(statement)

    def columns(self) -> dict[str, str]:
        """Columns of `marts.contact_profiles` that conditions may read, with their types; empty before it is built.

        The very same object as long as they are the same: what follows from them may be kept.
        """
        self._look()
        return self._readable

    def require_marts(self) -> None:
        """Refuse to judge anybody by a mart that is not there, or does not say what it has taken in.

        Raises:
            WarehouseError: the models must be built.
        """
        if not self._is_watermarked():
            self._looked_at = -1e9
            if not self._is_watermarked():
                what = "does not say which events it has taken in" if self._columns else "has not been built"
                raise WarehouseError(
                    f"marts.contact_profiles {what}, so triggers cannot be judged.",
                    fix="Build the dbt models (in Dagster, or `mailhouse demo`); events wait until then.",
                )

    def _is_watermarked(self) -> bool:
        self._look()
        return "events_through" in self._columns

    # whom events concern

    def resolve(self, hints: pl.DataFrame, messages: pl.DataFrame | None = None) -> pl.Series:
        """The contact of each row, as dbt gives it or will give it; 0 for nobody.

        Args:
            hints: any of `source`, `external_id`, `email`, `message_id`.
            messages: columns of `MESSAGE_COLUMNS`, of messages that the warehouse may not know.
        """
        self._look()
        return self.resolver.resolved(hints, messages)["contact_id"]

    def resolved(
        self, events: pl.DataFrame, messages: pl.DataFrame | None = None, *, guess: Guess | None = None
    ) -> pl.DataFrame:
        """Find the contact of each event; nothing is kept.

        Args:
            events: columns of `warehouse.loads.EVENT_COLUMNS`.
            messages: as for `resolve`.

        Returns:
            the events with `contact_id`, `is_machine`, and `message_kind`, `message_name`, `message_template`,
            `message_occurrence` of the message that they are about.
        """
        self._look()
        found = self.resolver.resolved(events, messages, guess=guess)
        said = found.drop_in_place("message_email")
        made = events.hstack(found.get_columns())
        if (said != "").any():
            # some providers name only the message
            email = pl.when(pl.col("email") == "").then(said).otherwise("email")
            made = made.with_columns(email.alias("email"))
        return made

    def take(
        self, events: pl.DataFrame, messages: pl.DataFrame | None = None, *, needs: Needs | None = None
    ) -> tuple[pl.DataFrame, Ahead | None]:
        """Find the contact of each event, and count the events from now on; `keep` them when the warehouse has them.

        Args:
            events, messages: as for `resolved`.
            needs: what `judge` will be asked for.

        Returns:
            what `resolved` returns, and what was asked ahead for `judge`.
        """
        self._look()
        ahead: list[Ahead] = []

        def guess(contacts: Collection[int]) -> None:
            if needs is not None and contacts and self._columns:
                names = self._profile_columns(needs)
                answer = self._pool.submit(self._profiles, frozenset(contacts), names)
                ahead.append(Ahead(frozenset(contacts), names, answer))

        types = events["type"].to_list()
        sold = None
        if not _ORDERS.isdisjoint(types):
            orders = events.filter(pl.col("type").is_in(_ORDERS)).select("event_id", "properties")
            sold = self._pool.submit(self._sold, orders)
        made = self.resolved(events, messages, guess=guess)
        stops = [_stop_of(*one) for one in zip(types, events["properties"].to_list(), strict=True)]
        flying = made.hstack(
            [
                pl.Series(
                    "address", [normalised_email(one) for one in events["email"].to_list()], pl.String()
                ),
                pl.Series("is_stop", [is_stop for is_stop, _ in stops], pl.Boolean()),
                pl.Series("is_sms", [is_sms for _, is_sms in stops], pl.Boolean()),
            ]
        )
        if sold is not None:
            flying = flying.join(sold.result(), on="event_id", how="left", maintain_order="left").with_columns(
                pl.col("order_id").fill_null(""), pl.col("order_revenue", "order_items").fill_null(0),
                pl.col("is_sale").fill_null(False),
            )  # fmt: skip
        unsold = {} if sold is not None else _UNSOLD
        given = {"loaded_at": NOT_LOADED, **unsold}
        self.flight.add(
            flying.select(
                (pl.lit(given[name]) if name in given else pl.col(name)).cast(dtype).alias(name)
                for name, dtype in FLIGHT.items()
            )
        )
        if any(is_stop for is_stop, _ in stops):
            # what was handed on before does not know of it
            self.changed_at = time.monotonic()
        return made, ahead[0] if ahead else None

    def keep(self, resolved: pl.DataFrame, loads: pl.DataFrame) -> None:
        """Keep events in `live.events`; the same events may come again.

        Args:
            resolved: what `take` or `resolved` returned.
            loads: `event_id` and `loaded_at` as `raw.events` has them; events that are not among them are forgotten.
        """
        self.warehouse.insert("live.events", resolved.join(loads, on="event_id").select(_KEPT))
        self.flight.drop(resolved["event_id"].to_list())
        self._adopt(resolved)

    def _adopt(self, resolved: pl.DataFrame) -> None:
        """Give a contact what its visitor did before anybody knew who it was, the first time that it is named."""
        if "anonymous_id" not in resolved.columns:
            return
        named = resolved.filter(
            (pl.col("anonymous_id") != "")
            & (pl.col("contact_id") != 0)
            & ((pl.col("external_id") != "") | (pl.col("email") != ""))
        ).select("source", "anonymous_id", "contact_id")
        fresh = set(named.iter_rows()) - self._adopted.keys()
        if not fresh:
            return
        columns = ", ".join(
            "toJSONString(properties) as properties" if name == "properties" else name
            for name in EVENT_COLUMNS
        )
        found = keyed_frame(
            self.warehouse,
            f"""
            select {columns}, loaded_at from raw.events
            where anonymous_id in {{keys}} and external_id = '' and email = '' and message_id = ''
                and loaded_at > now64(3, 'UTC') - toIntervalDay({DAYS})
            order by occurred_at desc limit {_MOST_ADOPTED} by source, anonymous_id
            """,
            {anonymous_id for _, anonymous_id, _ in fresh},
            "String",
        )
        events = found.select(pl.col(name).cast(dtype) for name, dtype in EVENT_COLUMNS.items())
        made = self.resolved(events).filter(pl.col("contact_id") != 0)
        loads = found.select("event_id", pl.col("loaded_at").cast(UTC_MS)).unique("event_id")
        if made.height:
            self.warehouse.insert("live.events", made.join(loads, on="event_id").select(_KEPT))
        self._adopted |= dict.fromkeys(fresh)
        while len(self._adopted) > _MOST_REMEMBERED:
            del self._adopted[next(iter(self._adopted))]

    def store(self, events: pl.DataFrame, messages: pl.DataFrame | None = None) -> pl.DataFrame:
        """Find the contact of each event and keep the events, which `raw.events` has; returns as `resolved`."""
        made = self.resolved(events, messages)
        loads = made.select("event_id").join(
            loads_of(self.warehouse, events), on="event_id", how="left", maintain_order="left"
        )
        self.keep(made, loads.with_columns(pl.col("loaded_at").fill_null(datetime.now(UTC)).cast(UTC_MS)))
        return made

    def _sold(self, orders: pl.DataFrame) -> pl.DataFrame:
        """What orders sold, by the very expressions that read them where they are stored."""
        # a text that looks like a day stays a text, as where they are stored
        found = self.warehouse.frame(
            f"""
            select event_id, order_id, order_revenue, order_items, is_sale from (
                select {_sold_columns()} from (select event_id, properties::JSON as properties from orders)
            )
            """,
            external={"orders": orders.unique("event_id")},
            settings=INSERT_SETTINGS,
        )
        return cast(found, {"event_id": pl.String(), **{name: FLIGHT[name] for name in _SOLD}})

    # what is so of them

    def judge(
        self,
        rows: pl.DataFrame,
        conditions: Mapping[str, Predicate],
        needs: Needs,
        *,
        sent: pl.DataFrame | None = None,
        is_history: bool = False,
        ahead: Ahead | None = None,
    ) -> pl.DataFrame:
        """What conditions say of events, and the state that they read.

        Args:
            rows: columns of `JUDGED_COLUMNS`, `row` unique; everything is as of `as_of`, which is `now()` too.
            conditions: from names of columns to conditions.
            needs: what of the state is needed.
            sent: columns of `SENT_COLUMNS`.
            is_history: judge from all events up to `as_of` rather than from the mart and what came since.
            ahead: what `take` has asked for.

        Returns:
            `row`, `contact_id`, a Boolean for each condition, the columns that are needed, `email`, `is_known` (marts
            have the contact), a column for each call and each property (`event.PATH`, as text), and with permissions
            `consent_id`, `suppression_event_id`, `is_live_bounced`, `restriction`. In the order of `row`.

        Raises:
            WarehouseError: the marts have not been built, or the warehouse does not answer.
        """
        state, verdicts = self._judged(rows, conditions, needs, sent, is_history, ahead)
        return state.hstack(verdicts.frame(state["row"]).get_columns()[1:]) if verdicts.schema else state

    def judged(
        self,
        rows: pl.DataFrame,
        conditions: Mapping[str, Predicate],
        needs: Needs,
        *,
        sent: pl.DataFrame | None = None,
        is_history: bool = False,
        ahead: Ahead | None = None,
    ) -> dict[str, list[Any]]:
        """What `judge` says, column by column: a frame of many conditions costs more than judging a few rows."""
        state, verdicts = self._judged(rows, conditions, needs, sent, is_history, ahead)
        return state.to_dict(as_series=False) | verdicts.values

    def _judged(
        self,
        rows: pl.DataFrame,
        conditions: Mapping[str, Predicate],
        needs: Needs,
        sent: pl.DataFrame | None,
        is_history: bool,
        ahead: Ahead | None,
    ) -> tuple[pl.DataFrame, Judged]:
        """The state and what was judged, in the order of `row`."""
        self.require_marts()
        frame = rows
        if rows.schema != JUDGED_COLUMNS:
            frame = rows.select(pl.col(name).cast(dtype) for name, dtype in JUDGED_COLUMNS.items())
        if not frame["row"].is_sorted():
            frame = frame.sort("row")
        state = self._state(frame, needs, sent, is_history=is_history, ahead=ahead)
        return state, self._verdicts(frame, state, conditions, needs)

    def _verdicts(
        self, frame: pl.DataFrame, state: pl.DataFrame, conditions: Mapping[str, Predicate], needs: Needs
    ) -> Judged:
        """In process what can be judged so, the rest by one query over a flat table that travels with it."""
        if not conditions and not needs.properties:
            return Judged()
        types = {name: kind for name, kind in self._columns.items() if name in needs.columns}
        types |= {
            call.column: "UInt64" if call.function == "event_count" else "Nullable(DateTime64(3, 'UTC'))"
            for call in needs.calls
        }
        found = judged(Rows([state, frame], types), conditions, types, sorted(needs.properties))
        if found.declined:
            places = sorted({place for rows in found.declined.values() for place in rows})
            rest = {name: one for name, one in conditions.items() if name in found.declined}
            paths = [path for path in needs.properties if f"event.{path}" in found.declined]
            asked = self._asked(frame[places], state[places], rest, paths, types)
            for name, rows in found.declined.items():
                values, answers = found.values[name], dict(zip(places, asked[name], strict=True))
                for place in rows:
                    values[place] = answers[place]
        return found

    def _asked(
        self,
        frame: pl.DataFrame,
        state: pl.DataFrame,
        conditions: Mapping[str, Predicate],
        paths: Iterable[str],
        types: Mapping[str, str],
    ) -> pl.DataFrame:
        """What ClickHouse says of conditions and properties, in the order of the rows."""
        events = [
            name for name in JUDGED_COLUMNS if name.startswith(("event_", "message_")) or name == "as_of"
        ]
        flat = state.select("row", *types).join(
            frame.select("row", *(name for name in events if name not in types)), on="row"
        )
        # each property is read once, whatever the number of conditions that ask for it
        aliases: dict[str, str] = {}

        def alias(found: re.Match[str]) -> str:
            return aliases.setdefault(found[0], f"`property {len(aliases)}`")

        verdicts = [
            f"{_PROPERTY.sub(alias, _as_of(predicate.sql))} as `{name}`"
            for name, predicate in conditions.items()
        ]
        texts = [f"{_PROPERTY.sub(alias, property_sql(path))} as `event.{path}`" for path in paths]
        given = ", ".join(f"{sql} as {name}" for sql, name in aliases.items())
        found = self.warehouse.frame(
            f"{'with ' + given if given else ''} select row, {', '.join([*verdicts, *texts])} from judged_events"
            " order by row",
            external={"judged_events": flat},
            external_types={"judged_events": types},
        )
        return found.with_columns(pl.col(name).cast(pl.Boolean).fill_null(False) for name in conditions)

    def state_sql(self, predicates: Iterable[Predicate]) -> str:
        """A subquery with all that these conditions may read and no row, to see that types fit."""
        self.require_marts()
        profile = ", ".join(f"`{name}`" for name in self.columns())
        calls = {call for predicate in predicates for call in predicate.calls}
        counts = "".join(
            f", {'0::UInt64' if call.function == 'event_count' else 'null::Nullable(DateTime64(3))'} as `{call.column}`"
            for call in sorted(calls)
        )
        return f"""
            select {profile}, '' as event_type, '' as event_source, now64(3) as event_occurred_at,
                '{{}}' as event_properties, '' as message_kind, '' as message_name, '' as message_template,
                '' as message_occurrence{counts}
            from {self.prefix}marts.contact_profiles limit 1
        """

    def _state(
        self,
        frame: pl.DataFrame,
        needs: Needs,
        sent: pl.DataFrame | None,
        *,
        is_history: bool,
        ahead: Ahead | None,
    ) -> pl.DataFrame:
        """The needed columns of each row."""
        has_permission = needs.has_permission or bool(needs.columns & PERMISSION_COLUMNS)
        moved_types = {
            *(("order.placed", "order.cancelled") if needs.columns & ORDER_COLUMNS else ()),
            *(("opened", "clicked") if needs.columns & READ_COLUMNS else ()),
        }
        types = moved_types | {call.event_type for call in needs.calls}
        ids = frozenset(frame["contact_id"].to_list()) - {0}
        contacts = pl.DataFrame({"contact_id": pl.Series(list(ids), dtype=pl.Int64())})
        since = frame["as_of"].min()
        said = {normalised_email(one) for one in frame["email"].to_list() if one}
        # before the warehouse is asked: what it gets in between is in either
        flying = self.flight.all()
        is_there = set(flying["type"].unique().to_list())
        if is_there.isdisjoint((*types, *STOPS)):
            # nothing of it is asked about
            flying = flying.clear()
        else:
            flying = flying.filter(
                pl.col("contact_id").is_in(contacts["contact_id"].implode()) | pl.col("is_stop"),
                pl.col("type").is_in((*types, *STOPS)),
            )
        told = self.news.fresh() if self.news is not None and has_permission and not is_history else None
        names = self._profile_columns(needs)

        def started(is_wanted: object, work: Callable[..., pl.DataFrame], *arguments: Any) -> Any:
            # a copy for each thread: polars locks a frame while it is written, and may wait for Python's lock
            given = [one.clone() if isinstance(one, pl.DataFrame) else one for one in arguments]
            return self._pool.submit(work, *given) if is_wanted and ids else None

        live = started(types, self._live, ids, types)
        stops = started(has_permission and told is None, self._live, ids, STOPS)
        # live events alone reach back far enough for what moved since the mart was built
        past = moved_types if is_history else set[str]()
        recorded_types = past | {call.event_type for call in needs.calls}
        longest = max((call.seconds for call in needs.calls), default=0)
        recorded = started(
            recorded_types, self._recorded, contacts, recorded_types, None if past else (since, longest)
        )
        restricted = started(has_permission and told is None, self._restricted)
        proofs = started(told is not None and needs.has_proof and said, self._consents, frozenset(said))
        profiles = self._people(ids, names, ahead)
        through, messages_through = self._watermarks(profiles, told)
        sends = started(needs.columns & SENT, self._sends, contacts, messages_through, sent, is_history)
        given = pl.DataFrame(schema=GIVEN)
        if has_permission and ids:
            if told is not None and told.through > through:
                # a mart that was built meanwhile: what it took in is not among the news
                told = None
                stops = self._pool.submit(self._live, ids, STOPS)
            addresses = said | {one for one in profiles["email"].cast(pl.String).to_list() if one}
            if told is None:
                asked = pl.DataFrame({"address": sorted(addresses)}, {"address": pl.String()})
                given = self._permissions(asked, through)
            else:
                known = set(profiles["contact_id"].to_list())
                strange = {
                    normalised_email(email)
                    for contact, email in frame.select("contact_id", "email").iter_rows()
                    if contact not in known and email
                }
                given = self._told(told, addresses, strange, through, needs, said if proofs else frozenset())
                if proofs:
                    given = pl.concat([given, cast(proofs.result(), GIVEN)])
            given = cast(given, GIVEN) if given.schema != GIVEN else given
            if flying.height and flying["is_stop"].any():
                given = pl.concat([given, _stops_of(flying, addresses)])
            if given.height:
                given = given.unique(
                    ("address", "type", "consent_id", "event_id"), keep="first", maintain_order=True
                )
        happened = [cast(one.result(), HAPPENED) for one in (live, stops, recorded) if one is not None]
        if told is not None and told.own.height:
            happened.append(told.own.filter(pl.col("contact_id").is_in(contacts["contact_id"].implode())))
        if flying.height:
            happened.append(flying.select(*HAPPENED))
        messages = sends.result() if sends else None
        happened = [one for one in happened if one.height]
        history = (
            pl.concat(happened).unique(("contact_id", "event_id"), keep="first", maintain_order=True)
            if happened
            else pl.DataFrame(schema=HAPPENED)
        )
        state = frame.select(
            "row", "contact_id", "as_of", pl.col("email").alias("event_email"), "event_occurred_at"
        )
        state = state.join(profiles, on="contact_id", how="left", maintain_order="left")
        state = self._with_defaults(state, is_history=is_history)
        near = _up_to(frame, history) if types else pl.DataFrame()
        if needs.columns & ORDER_COLUMNS:
            orders = near.filter(pl.col("type").is_in(("order.placed", "order.cancelled")))
            state = self._with_orders(state, orders, None if is_history else through)
        if needs.columns & READ_COLUMNS:
            reads = near.filter(pl.col("type").is_in(("opened", "clicked")))
            state = _with_reads(state, reads, None if is_history else through)
        if messages is not None:
            state = _with_sends(state, _up_to(frame, messages.rename({"sent_at": "occurred_at"})))
        if has_permission:
            state = _with_permissions(state, history, given, through)
            restrictions = (
                told.restrictions if told is not None else restricted.result() if restricted else None
            )
            state = _with_restrictions(state, self._restricted() if restrictions is None else restrictions)
        for call in sorted(needs.calls):
            state = _with_call(state, near, call)
        return state.drop("as_of", "event_email", "event_occurred_at")

    def _restricted(self) -> pl.DataFrame:
        return restrictions_in_force(self.warehouse)

    def _profile_columns(self, needs: Needs) -> frozenset[str]:
        """Columns of the mart that the state is made of."""
        wanted = {"email", "events_through"} | needs.columns
        if needs.columns & SENT:
            wanted.add("messages_through")
        if needs.columns & ORDER_COLUMNS:
            wanted |= ORDER_COLUMNS
        if needs.has_permission or needs.columns & PERMISSION_COLUMNS:
            wanted |= PERMISSION_COLUMNS
        return frozenset(wanted & self._columns.keys()) - {"contact_id"}

    def _people(self, contacts: frozenset[int], names: frozenset[str], ahead: Ahead | None) -> pl.DataFrame:
        """Profiles of contacts, of which some may have been asked for ahead."""
        if ahead is None or not names <= ahead.columns or not contacts & ahead.asked:
            return self._profiles(contacts, names)
        columns = ["contact_id", "is_known", *(name for name in self._columns if name in names)]
        found = ahead.answer.result()
        if not ahead.asked <= contacts:
            found = found.filter(pl.col("contact_id").is_in(pl.Series(list(contacts)).implode()))
        found = found.select(columns)
        others = contacts - ahead.asked
        return pl.concat([found, self._profiles(others, names).select(columns)]) if others else found

    def _profiles(self, contacts: frozenset[int], names: frozenset[str]) -> pl.DataFrame:
        listed = ", ".join(f"`{name}`" for name in self._columns if name in names)
        return keyed_frame(
            self.warehouse,
            f"select contact_id, true as is_known, {listed} from {self.prefix}marts.contact_profiles"
            " where contact_id in {keys}",
            contacts,
        )

    def _watermarks(self, profiles: pl.DataFrame, told: Told | None) -> tuple[datetime, datetime]:
        """Up to when the mart has taken in events and, if that was asked for, messages."""
        if profiles.is_empty() and told is not None:
            return told.through, told.messages_through
        if profiles.is_empty():
            profiles = self.warehouse.frame(
                f"select events_through, messages_through from {self.prefix}marts.contact_profiles limit 1"
            )
        if profiles.is_empty():
            return _EPOCH, _EPOCH
        sent = profiles["messages_through"][0] if "messages_through" in profiles.columns else _EPOCH
        return profiles["events_through"][0], sent

    def _live(self, contacts: frozenset[int], types: Collection[str]) -> pl.DataFrame:
        return keyed_frame(
            self.warehouse,
            f"select contact_id, {_columns(types)} from live.events"
            f" where contact_id in {{keys}} and type in {_listed(types)}",
            contacts,
        )

    def _told(
        self,
        told: Told,
        addresses: Collection[str],
        strange: Collection[str],
        through: datetime,
        needs: Needs,
        asked: Collection[str],
    ) -> pl.DataFrame:
        """What `_permissions` returns, of which the news are known: consents are asked for where they matter."""
        news = told.given
        if news.height:
            is_consent = pl.col("type") == "consent"
            news = news.filter(
                pl.col("address").is_in(pl.Series(list(addresses), dtype=pl.String()).implode())
                & (is_consent | (pl.col("loaded_at") > through))
            )
            strange = {*strange, *news.filter(is_consent)["address"]}
        matters = set(strange) & set(addresses)
        wanted = (set(addresses) if needs.has_proof else matters) - set(asked)
        if wanted:
            news = pl.concat([news, cast(self._consents(frozenset(wanted)), GIVEN)])
        return news

    def _consents(self, addresses: frozenset[str]) -> pl.DataFrame:
        """All that these addresses have consented to and withdrawn."""
        return keyed_frame(
            self.warehouse,
            f"""
            select {_email("email")} as address, 'consent' as type, consent_id, '' as event_id, is_granted, occurred_at,
                loaded_at
            from raw.consents where channel = 'email' and purpose = 'marketing' and email in {{keys}}
            """,
            addresses,
            "String",
        )

    def _recorded(
        self, contacts: pl.DataFrame, types: Collection[str], look_back: tuple[datetime, int] | None
    ) -> pl.DataFrame:
        """The events of marts, which have those that came another way than through the gateway."""
        identified = f"{self.prefix}intermediate.int_contacts__identified"
        if "intermediate.int_events__recorded" not in self._tables:
            return pl.DataFrame(schema=HAPPENED)
        since = "{since:DateTime64(3, 'UTC')}"
        # nothing is loaded before it happens: partitions of older loads are not read
        recent = f"and occurred_at > {since} and loaded_on >= toDate({since})" if look_back else ""
        parameters = {"since": _text(look_back[0] - timedelta(seconds=look_back[1]))} if look_back else {}
        return self.warehouse.frame(
            f"""
            with known as (
                select identity_id, contact_id from {identified}
                where contact_id in (select contact_id from contacts)
            )
            select known.contact_id as contact_id, recorded.* except (identity_id)
            from (
                select identity_id, {_columns(types)} from {self.prefix}intermediate.int_events__recorded
                where type in {_listed(types)} and identity_id in (select identity_id from known) {recent}
            ) as recorded
            inner join known on known.identity_id = recorded.identity_id
            """,
            parameters,
            external={"contacts": contacts},
        )

    def _permissions(self, addresses: pl.DataFrame, through: datetime) -> pl.DataFrame:
        """What these addresses decided: stops since the mart was built, and all consents."""
        wanted = "(select address from addresses)"
        since = "{through:DateTime64(3, 'UTC')}"
        consent = "channel = 'email' and purpose = 'marketing'"
        fields = f"{_email('email')} as address, type, '' as consent_id, event_id, false as is_granted"
        changes = f"{_email('email')} as address, 'consent' as type, consent_id, '' as event_id, is_granted"
        return self.warehouse.frame(
            f"""
            select {fields}, occurred_at, loaded_at from raw.events
            where type in {_listed(STOPS)} and loaded_at > {since} and address in {wanted}
                and (type != 'bounced' or properties.bounce_class::Nullable(String) = 'hard')
                and lower(coalesce(properties.is_machine::Nullable(String), '')) not in ('true', '1')
                and coalesce(properties.phone::Nullable(String), '') = ''
            union all
            select {changes}, occurred_at, loaded_at from raw.consents where {consent} and email in {wanted}
            union all
            select {changes}, occurred_at, loaded_at from raw.consents
            where {consent} and loaded_at > {since} and address in {wanted} and email not in {wanted}
            """,
            {"through": _text(through)},
            external={"addresses": addresses},
        )

    def _sends(
        self, contacts: pl.DataFrame, through: datetime, sent: pl.DataFrame | None, is_history: bool
    ) -> pl.DataFrame:
        where = "contact_id in (select contact_id from contacts)"
        stored = (
            f"select message_id, contact_id, sent_at from {self.prefix}marts.messages"
            f" where sent_at is not null and {where}"
            if is_history
            else "select message_id, any(contact_id) as contact_id, min(changed_at) as sent_at from ("
            "select message_id, contact_id, changed_at from raw.messages"
            f" where loaded_at > {{through:DateTime64(3, 'UTC')}} and status in ('sent', 'queued') and {where}"
            ") group by message_id"
        )
        found = self.warehouse.frame(stored, {"through": _text(through)}, external={"contacts": contacts})
        found = found.select(pl.col(name).cast(dtype) for name, dtype in SENT_COLUMNS.items())
        more = pl.DataFrame(schema=SENT_COLUMNS) if sent is None else sent.select(*SENT_COLUMNS)
        return pl.concat([found, more]).unique("message_id", keep="first")

    def _with_defaults(self, state: pl.DataFrame, *, is_history: bool) -> pl.DataFrame:
        """Values of contacts that marts do not have yet, and of those whose past is added up from events."""
        is_whole = state["is_known"].null_count() == 0
        values: list[pl.Expr] = [] if is_whole else [pl.col("is_known").fill_null(False)]
        for name in state.columns:
            kind = self._columns.get(name, "")
            if name in ("row", "contact_id") or not kind:
                continue
            if is_whole and not is_history and state[name].null_count() == 0:
                continue  # marts have said it
            value = pl.col(name)
            if is_history and name in (MOVED_COLUMNS - PERMISSION_COLUMNS):
                value = pl.lit(None, state.schema[name])
            if name == "email":
                is_known = pl.col("is_known").fill_null(False)
                value = pl.when(is_known).then(value).otherwise(_normalised("event_email"))
            elif name == "created_at":
                value = value.fill_null(pl.col("event_occurred_at"))
            elif name == "engagement_band":
                value = value.fill_null("never")
            elif "Nullable" not in kind:
                value = value.fill_null(_zero(state.schema[name]))
            values.append(value.alias(name))
        return state.with_columns(values) if values else state

    def _with_orders(
        self, state: pl.DataFrame, happened: pl.DataFrame, through: datetime | None
    ) -> pl.DataFrame:
        """Orders as int_orders__combined has them: the last placement counts, a cancellation takes it all back."""
        news = happened if through is None else happened.filter(pl.col("loaded_at") > through)
        state = state.with_columns(
            pl.col("orders_count", "items_count").cast(pl.Int64), pl.col("revenue").cast(pl.Decimal(18, 2))
        )
        if news.height:
            is_placement = pl.col("type") == "order.placed"
            orders = (
                news.sort("occurred_at", "event_id")
                .group_by("row", "source", "order_id", maintain_order=True)
                .agg(
                    is_placement.any().alias("is_placed"),
                    (~is_placement).any().alias("is_cancelled"),
                    pl.col("occurred_at").filter(is_placement).min().alias("placed_at"),
                    pl.col("order_revenue").filter(is_placement).last().cast(pl.Decimal(18, 2)),
                    pl.col("order_items").filter(is_placement).last(),
                    pl.col("is_sale").filter(is_placement).last().fill_null(False),
                )
            )
            known = self._known_orders(orders) if through is not None else None
            if known is None:
                known = pl.DataFrame(schema=_KNOWN_ORDERS)
            orders = orders.join(known, on=("source", "order_id"), how="left").with_columns(
                pl.col("was_sale").fill_null(False),
                pl.col("known_revenue").fill_null(0),
                pl.col("known_items").fill_null(0),
            )
            orders = orders.with_columns(
                (
                    ~pl.col("is_cancelled")
                    & pl.col("cancelled_at").is_null()
                    & pl.when("is_placed").then("is_sale").otherwise("was_sale")
                ).alias("is_now"),
                pl.min_horizontal("ordered_at", "placed_at").alias("at"),
            )
            zero = pl.lit(0, pl.Decimal(18, 2))
            revenue = pl.when("is_placed").then("order_revenue").otherwise("known_revenue")
            pieces = pl.when("is_placed").then("order_items").otherwise("known_items")
            moved = orders.group_by("row").agg(
                (pl.col("is_now").cast(pl.Int64) - pl.col("was_sale").cast(pl.Int64))
                .sum()
                .alias("more_orders"),
                (pl.when("is_now").then(pieces).otherwise(0) - pl.col("known_items"))
                .sum()
                .alias("more_items"),
                (pl.when("is_now").then(revenue).otherwise(zero) - pl.col("known_revenue"))
                .sum()
                .alias("more_revenue"),
                pl.col("at").filter(pl.col("is_now")).min().alias("first_new"),
                pl.col("at").filter(pl.col("is_now")).max().alias("last_new"),
            )
            state = state.join(moved, on="row", how="left", maintain_order="left").with_columns(
                pl.max_horizontal(pl.col("orders_count") + pl.col("more_orders").fill_null(0), 0).alias(
                    "orders_count"
                ),
                (pl.col("items_count") + pl.col("more_items").fill_null(0)).alias("items_count"),
                (pl.col("revenue") + pl.col("more_revenue").fill_null(0))
                .cast(pl.Decimal(18, 2))
                .alias("revenue"),
                pl.min_horizontal("first_order_at", "first_new").alias("first_order_at"),
                pl.max_horizontal("last_order_at", "last_new").alias("last_order_at"),
            )
            state = state.drop("more_orders", "more_items", "more_revenue", "first_new", "last_new")
        has_ordered = pl.col("orders_count") > 0
        average = (pl.col("revenue").cast(pl.Float64) / pl.col("orders_count")).round(2)
        return state.with_columns(
            pl.when(has_ordered)
            .then(average)
            .otherwise(0.0)
            .cast(pl.Decimal(18, 2))
            .alias("average_order_value"),
            pl.when(has_ordered).then("first_order_at").alias("first_order_at"),
            pl.when(has_ordered).then("last_order_at").alias("last_order_at"),
        ).with_columns(
            (pl.col("as_of").dt.date() - pl.col("last_order_at").dt.date())
            .dt.total_days()
            .cast(pl.Int64)
            .alias("days_since_last_order")
        )

    def _known_orders(self, orders: pl.DataFrame) -> pl.DataFrame | None:
        """The same orders as the mart has them."""
        if "intermediate.int_orders__combined" not in self._tables:
            return None
        return self.warehouse.frame(
            f"""
            select source::String as source, order_id, is_sale as was_sale, revenue as known_revenue,
                items_count as known_items, ordered_at, cancelled_at
            from {self.prefix}intermediate.int_orders__combined final
            where (source, order_id) in (select source, order_id from orders)
            """,
            external={"orders": orders.select("source", "order_id").unique()},
        ).select(pl.col(name).cast(dtype) for name, dtype in _KNOWN_ORDERS.items())

    def happened(self, rows: pl.DataFrame, types: Collection[str]) -> pl.DataFrame:
        """Events of these types that each row's contact has had within a time.

        Args:
            rows: `row`, `contact_id`, `since` and `until`, UTC.

        Returns:
            `row`, `type`, `event_id`, `occurred_at`, oldest first: since < occurred_at <= until.
        """
        self._look()
        contacts = rows.select(pl.col("contact_id").cast(pl.Int64)).unique()
        since: Any = rows["since"].min()
        flying = self.flight.all().filter(pl.col("type").is_in(list(types)))
        live = self._pool.submit(self._live, frozenset(contacts["contact_id"].to_list()), types)
        recorded = self._recorded(contacts, types, (since, 0))
        happened = [cast(one, HAPPENED) for one in (live.result(), recorded, flying)]
        found = pl.concat(happened).unique(("contact_id", "event_id"), keep="first")
        return (
            rows.select("row", pl.col("contact_id").cast(pl.Int64), "since", "until")
            .join(found, on="contact_id")
            .filter(
                (pl.col("occurred_at") > pl.col("since"))
                & (pl.col("occurred_at") <= pl.col("until"))
                & ~pl.col("is_machine")
            )
            .sort("row", "occurred_at", "event_id")
            .select("row", "type", "event_id", "occurred_at")
        )

    def _look(self, seconds: float = _LOOK_SECONDS) -> None:
        """See which tables there are; they change when models are built for the first time."""
        now = time.monotonic()
        if now - self._looked_at < seconds and self._columns:
            return
        wanted = ("staging", "intermediate", "marts")
        found = self.warehouse.frame(
            "select database, name from system.tables where database in {databases:Array(String)}",
            {"databases": [self.prefix + name for name in wanted]},
        )
        self._tables = frozenset(f"{row[0].removeprefix(self.prefix)}.{row[1]}" for row in found.iter_rows())
        columns = self.warehouse.frame(
            """
            select name, type from system.columns
            where database = {database:String} and table = 'contact_profiles' order by position
            """,
            {"database": f"{self.prefix}marts"},
        )
        self._columns = dict(columns.iter_rows())
        readable = {name: kind for name, kind in self._columns.items() if name not in _WATERMARKS}
        if list(readable.items()) != list(self._readable.items()):
            self._readable = readable
        self._looked_at = now


_ORDERS: Final = frozenset(("order.placed", "order.cancelled"))
_SOLD = ("order_id", "order_revenue", "order_items", "is_sale")
_UNSOLD: Final = {"order_id": "", "order_revenue": 0.0, "order_items": 0, "is_sale": False}
_KEPT = (
    "event_id", "contact_id", "type", "source", "message_id", "is_machine", "occurred_at", "received_at", "properties",
    "loaded_at",
)  # fmt: skip
_KNOWN_ORDERS: Final[dict[str, pl.DataType]] = {
    "source": pl.String(),
    "order_id": pl.String(),
    "was_sale": pl.Boolean(),
    "known_revenue": pl.Decimal(18, 2),
    "known_items": pl.Int64(),
    "ordered_at": UTC_MS,
    "cancelled_at": UTC_MS,
}


def _columns(types: Collection[str]) -> str:
    """SQL: columns of `HAPPENED` after the contact; what orders sold as int_orders__combined counts it."""
    is_sms = "coalesce(properties.phone::Nullable(String), '') != ''" if set(STOPS) & set(types) else "false"
    names = "type::String as type, source::String as source, message_id, is_machine, occurred_at, loaded_at"
    names += f", {is_sms} as is_sms"
    if not {"order.placed", "order.cancelled"} & set(types):
        return f"event_id, {names}, '' as order_id, 0. as order_revenue, 0::Int64 as order_items, false as is_sale"
    return f"{names}, {_sold_columns()}"


def _sold_columns() -> str:
    return """event_id,
        coalesce(nullIf(properties.order_id::Nullable(String), ''), event_id) as order_id,
        arrayFilter(
            line -> line.1 > 0 and line.2 > 0,
            arrayMap(
                (quantity, price) -> (
                    coalesce(toInt64OrNull(quantity), 0), coalesce(toDecimal64OrNull(price, 4), 0)
                ),
                properties.items[].quantity::Array(Nullable(String)),
                properties.items[].unit_price::Array(Nullable(String))
            )
        ) as sold,
        toFloat64(arraySum(arrayMap(line -> round(line.1 * line.2, 2)::Decimal(18, 2), sold))) as order_revenue,
        arraySum(arrayMap(line -> line.1, sold))::Int64 as order_items,
        notEmpty(sold) as is_sale"""


def _listed(types: Collection[str]) -> str:
    return "(" + ", ".join(f"'{one}'" for one in sorted(types)) + ")"


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"


def _zero(dtype: pl.DataType) -> pl.Expr:
    if isinstance(dtype, pl.List):
        return pl.lit([], dtype)
    if dtype == pl.String:
        return pl.lit("")
    if dtype == pl.Boolean:
        return pl.lit(False)
    if isinstance(dtype, pl.Datetime):
        return pl.lit(_EPOCH).cast(dtype)
    return pl.lit(0).cast(dtype)


def _normalised(column: str) -> pl.Expr:
    # as macros/identity.sql
    return pl.col(column).str.strip_chars(" \t\r\n").str.to_lowercase()


def _stop_of(type_: str, properties: str) -> tuple[bool, bool]:
    """Whether an event stops mail to its address, or lets it go again, as `_permissions` has it, and whether it is
    about a telephone number, as macros/stops.sql has it.
    """
    if type_ not in STOPS:
        return False, False
    try:
        said = orjson.loads(properties)
    except orjson.JSONDecodeError:
        return False, False
    if not isinstance(said, dict):
        return False, False
    is_sms = bool(said.get("phone"))
    is_machine = str(said.get("is_machine", "")).lower() in ("true", "1")
    is_soft = type_ == "bounced" and said.get("bounce_class") != "hard"
    return not (is_sms or is_machine or is_soft), is_sms


def _stops_of(flying: pl.DataFrame, addresses: Collection[str]) -> pl.DataFrame:
    """Stops in flight, as `_permissions` returns stops."""
    stops = flying.filter(
        pl.col("is_stop") & pl.col("address").is_in(pl.Series(list(addresses), dtype=pl.String()).implode())
    )
    return stops.select(
        "address", "type", pl.lit("").alias("consent_id"), "event_id", pl.lit(False).alias("is_granted"),
        "occurred_at", "loaded_at",
    )  # fmt: skip


def _up_to(frame: pl.DataFrame, happened: pl.DataFrame) -> pl.DataFrame:
    """What had happened to the contact of each row by then, the row's own event included."""
    return (
        frame.select("row", "contact_id", "as_of")
        .join(happened, on="contact_id")
        .filter(pl.col("occurred_at") <= pl.col("as_of"))
    )


def _with_reads(state: pl.DataFrame, happened: pl.DataFrame, through: datetime | None) -> pl.DataFrame:
    """Messages read and clicked by people; a message counts as read if it was clicked."""
    is_click = pl.col("type") == "clicked"
    by_message = (
        happened.filter(~pl.col("is_machine") & (pl.col("message_id") != ""))
        .group_by("row", "message_id")
        .agg(
            pl.col("loaded_at").min().alias("first_read"),
            pl.col("loaded_at").filter(is_click).min().alias("first_click"),
            pl.col("occurred_at").filter(~is_click).max().alias("new_opened_at"),
            pl.col("occurred_at").filter(is_click).max().alias("new_clicked_at"),
        )
    )
    start = _EPOCH if through is None else through
    moved = by_message.group_by("row").agg(
        (pl.col("first_read") > start).sum().cast(pl.Int64).alias("more_read"),
        (pl.col("first_click") > start).sum().cast(pl.Int64).alias("more_clicked"),
        pl.col("new_opened_at").max(),
        pl.col("new_clicked_at").max(),
    )
    state = state.join(moved, on="row", how="left", maintain_order="left")
    made: list[pl.Expr] = []
    for name, more in (("messages_opened_count", "more_read"), ("messages_clicked_count", "more_clicked")):
        if name in state.columns:
            made.append((pl.col(name).cast(pl.Int64) + pl.col(more).fill_null(0)).alias(name))
    for name, new in (("last_opened_at", "new_opened_at"), ("last_clicked_at", "new_clicked_at")):
        if name in state.columns:
            made.append(pl.max_horizontal(name, new).alias(name))
    return state.with_columns(made).drop("more_read", "more_clicked", "new_opened_at", "new_clicked_at")


def _with_sends(state: pl.DataFrame, messages: pl.DataFrame) -> pl.DataFrame:
    moved = messages.group_by("row").agg(
        pl.len().cast(pl.Int64).alias("more_sent"),
        pl.col("occurred_at").min().alias("first_new"),
        pl.col("occurred_at").max().alias("last_new"),
    )
    state = state.join(moved, on="row", how="left", maintain_order="left")
    made: list[pl.Expr] = []
    if "messages_sent_count" in state.columns:
        made.append(
            (pl.col("messages_sent_count").cast(pl.Int64) + pl.col("more_sent").fill_null(0)).alias(
                "messages_sent_count"
            )
        )
    if "first_message_at" in state.columns:
        made.append(pl.min_horizontal("first_message_at", "first_new").alias("first_message_at"))
    if "last_message_at" in state.columns:
        made.append(pl.max_horizontal("last_message_at", "last_new").alias("last_message_at"))
    return state.with_columns(made).drop("more_sent", "first_new", "last_new")


def _with_call(state: pl.DataFrame, happened: pl.DataFrame, call: EventCall) -> pl.DataFrame:
    asked = happened.filter(
        (pl.col("type") == call.event_type)
        & ~pl.col("is_machine")
        & (pl.col("occurred_at") > pl.col("as_of") - timedelta(seconds=call.seconds))
    )
    is_count = call.function == "event_count"
    answer = pl.len().cast(pl.UInt64) if is_count else pl.col("occurred_at").max()
    found = asked.group_by("row").agg(answer.alias(call.column))
    state = state.join(found, on="row", how="left", maintain_order="left")
    return state.with_columns(pl.col(call.column).fill_null(0)) if is_count else state


def _with_permissions(
    state: pl.DataFrame, history: pl.DataFrame, given: pl.DataFrame | None, through: datetime
) -> pl.DataFrame:
    """Suppression and consent of now, whatever `as_of` is: nobody is written to by what they once allowed."""
    # what a person decided holds for every address of theirs; a dead mailbox is one address
    own = history
    if history.height:
        own = history.filter(
            pl.col("type").is_in(STOPS)
            & (pl.col("type") != "bounced")
            & (pl.col("loaded_at") > through)
            & ~pl.col("is_machine")
            & ~pl.col("is_sms")
        )
    if (given is None or given.is_empty()) and own.is_empty():
        # nearly all: nobody has decided anything since the mart was built
        return state.with_columns(
            pl.col("is_suppressed", "has_marketing_consent").fill_null(False),
            pl.lit(False).alias("is_live_bounced"),
            pl.lit("").alias("suppression_event_id"),
            pl.lit("").alias("consent_id"),
        )
    if given is None:
        given = pl.DataFrame(schema=GIVEN)
    given = given.select(pl.col(name).cast(dtype) for name, dtype in GIVEN.items())
    stops = given.filter(pl.col("type") != "consent")
    by_address = _stopped(stops, "address", "a")
    by_contact = _stopped(own, "contact_id", "c")
    newest = pl.col("occurred_at") == pl.col("occurred_at").max()
    consents = (
        given.filter(pl.col("type") == "consent")
        .sort("occurred_at", "loaded_at")
        .group_by("address", maintain_order=True)
        .agg(
            pl.col("occurred_at").max().alias("consent_changed_at"),
            pl.col("loaded_at").max().alias("consent_loaded_at"),
            # of two changes at the same moment the withdrawal counts
            pl.col("is_granted").filter(newest).all().alias("is_consent_granted"),
            pl.col("consent_id").filter(pl.col("is_granted")).last(),
        )
    )
    state = (
        state.with_columns(
            _normalised("email").alias("address"),
            pl.col("is_suppressed", "has_marketing_consent").fill_null(False),
        )
        .join(by_address, on="address", how="left", maintain_order="left")
        .join(by_contact, on="contact_id", how="left", maintain_order="left")
        .join(consents, on="address", how="left", maintain_order="left")
    )
    is_trusted = (
        (pl.col("consent_changed_at") > through) | ~pl.col("is_known") | pl.col("has_marketing_consent")
    )
    return state.with_columns(
        (
            pl.col("is_suppressed") | pl.col("a_stopped").fill_null(False) | pl.col("c_stopped").fill_null(False)
        ).alias("is_suppressed"),
        pl.col("a_bounced").fill_null(False).alias("is_live_bounced"),
        pl.coalesce("a_event", "c_event", pl.lit("")).alias("suppression_event_id"),
        # a grant that was loaded late may have been withdrawn before: the next build knows
        pl.when(pl.col("consent_loaded_at").is_null() | (pl.col("consent_loaded_at") <= through))
        .then("has_marketing_consent")
        .otherwise(pl.col("is_consent_granted") & is_trusted)
        .alias("has_marketing_consent"),
        pl.col("consent_id").fill_null(""),
    ).drop(
        "address", "a_stopped", "c_stopped", "a_bounced", "c_bounced", "a_event", "c_event", "consent_changed_at",
        "consent_loaded_at", "is_consent_granted",
    )  # fmt: skip


def _with_restrictions(state: pl.DataFrame, restrictions: pl.DataFrame) -> pl.DataFrame:
    """Whose data may not be processed, by contact or by address; the stricter counts."""
    if restrictions.is_empty():
        return state.with_columns(pl.lit("").alias("restriction"))
    contacts = restrictions.filter(pl.col("contact_id") != 0).select("contact_id", by_contact="restriction")
    addresses = restrictions.filter(pl.col("email") != "").select(address="email", by_address="restriction")
    joined = (
        state.with_columns(_normalised("email").alias("address"))
        .join(contacts, on="contact_id", how="left", maintain_order="left")
        .join(addresses, on="address", how="left", maintain_order="left")
    )
    said = [pl.col("by_contact").fill_null(""), pl.col("by_address").fill_null("")]
    # "all" sorts before "marketing", and what is empty before both
    stricter = (
        pl.when(said[0] == "")
        .then(said[1])
        .when(said[1] == "")
        .then(said[0])
        .otherwise(pl.min_horizontal(said))
    )
    return joined.with_columns(stricter.alias("restriction")).drop("address", "by_contact", "by_address")


def _stopped(stops: pl.DataFrame, key: str, prefix: str) -> pl.DataFrame:
    """Who signs up again takes back an unsubscribe, never a complaint or a bounce; as marts.suppressions."""
    kind = pl.col("type")
    signed_up = pl.col("occurred_at").filter(kind == "subscribed").max().fill_null(_EPOCH)
    unsubscribed = pl.col("occurred_at").filter(kind == "unsubscribed").max()
    return (
        stops.sort("occurred_at")
        .group_by(key, maintain_order=True)
        .agg(
            (
                kind.is_in(("complained", "bounced")).any() | (unsubscribed >= signed_up).fill_null(False)
            ).alias(f"{prefix}_stopped"),
            (kind == "bounced").any().alias(f"{prefix}_bounced"),
            pl.col("event_id").filter(kind != "subscribed").first().alias(f"{prefix}_event"),
        )
    )


def _as_of(sql: str) -> str:
    return sql.replace("{now:DateTime64(3, 'UTC')}", "`as_of`")


def judged_rows(events: pl.DataFrame, as_of: datetime | None = None) -> pl.DataFrame:
    """Events of `Live.store` as `Live.judge` takes them, numbered from 0.

    Args:
        as_of: left out, each event's own time.
    """
    instant: Any = pl.col("occurred_at") if as_of is None else pl.lit(as_of).cast(UTC_MS)
    return events.select(
        pl.int_range(events.height, dtype=pl.Int64).alias("row"),
        "contact_id",
        "email",
        instant.alias("as_of"),
        "event_id",
        pl.col("type").alias("event_type"),
        pl.col("source").alias("event_source"),
        pl.col("occurred_at").alias("event_occurred_at"),
        pl.col("properties").alias("event_properties"),
        "message_kind",
        "message_name",
        "message_template",
        "message_occurrence",
    )
