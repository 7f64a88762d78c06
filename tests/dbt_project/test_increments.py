"""Random histories, loaded over several days in random batches: increments give what a full refresh gives, row for row.

Late events, events loaded twice and in another day, people who turn out to be one, visitors who are named late or were
several people, records that were deleted or merged into others, merges and splits by hand and what undoes them, orders
without a contact, cancellations, providers that are quicker than the ledger, machines, and runs that end half way.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from models import PREFIX, Models

from warehouse.client import Warehouse

CORE = (
    *(
        "+int_contacts__profiled",
        "+messages",
        "+products",
        "+orders",
        "+order_items",
        "+events",
        "+int_engagement__decayed",
        "+best_hours",
        "+cohort_retention",
        "+retention_cohorts",
    ),
    "+suppressions",
    "+funnels",
    "+consents",
    "+conversions",
    "+list_growth",
)
EVENTS = "+int_events__recorded"
KEYS: dict[str, str] = {
    "marts.events": "event_id, occurred_at",
    "marts.orders": "source, order_id",
    "marts.order_items": "source, order_id, line_number",
    "marts.products": "product_id",
    "marts.rfm": "contact_id",
    "marts.messages": "message_id",
    "marts.contacts": "contact_id",
    "marts.consents": "contact_id, channel, purpose",
    "marts.suppressions": "email, phone",
    "marts.conversions": "conversion_id",
    "marts.list_growth": "day, source",
    "marts.funnels": "funnel, entry_month, step",
    "marts.best_hours": "contact_id",
    "marts.cohort_members": "cohort, contact_id",
    "marts.cohort_retention": "cohort, is_member, anchor_month, months_since",
    "marts.retention_cohorts": "cohort_month, months_since_first_order",
    "intermediate.int_engagement__decayed": "contact_id, half_life_days",
    "intermediate.int_contacts__identified": "identity_id",
    "intermediate.int_contacts__profiled": "contact_id",
    "intermediate.int_subscribers__changed": "contact_id, changed_at, change",
}
# stamps say when a row was built; what ages is of the moment of the run
LEFT_OUT = {
    *("rebuilt_at", "moved_at", "records_through", "hints_through", "visitors_through"),
    *("previous_contact_id", "engagement_score", "properties"),
}
FIRST_DAY = datetime(2011, 6, 20, tzinfo=UTC)


class History:
    """Raw rows of random days, in the order in which they are loaded."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.emails = [f"p{number}@example.com" for number in range(8)]
        self.events: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.unled: list[dict[str, Any]] = []
        self.changes: list[dict[str, Any]] = []
        self.number = 0
        self.clock = FIRST_DAY

    def moment(self, day: int, *, late: bool = False) -> datetime:
        back = self.dice.randrange(35) if late else 0
        return FIRST_DAY + timedelta(days=day - back, seconds=self.dice.randrange(86_400))

    def hints(self) -> dict[str, str]:
        source = self.dice.choice(["shop", "web"])
        external_id = self.dice.choice(["", "", str(self.dice.randrange(8))])
        email = self.dice.choice(["", "", *self.emails])
        return {"source": source, "external_id": external_id, "email": email}

    def batch(self, day: int, contacts: list[tuple[int, str]]) -> dict[str, list[dict[str, Any]]]:
        """One load of a day: rows by raw table. contacts: those of the marts, whom the ledger may write to."""
        self.clock = max(self.moment(day), self.clock + timedelta(minutes=1))
        loaded_at = self.clock
        rows: dict[str, list[dict[str, Any]]] = {
            "crm_records": [self._record(day) for _ in range(self.dice.randrange(4))],
            "consents": [self._consent(day) for _ in range(self.dice.randrange(2))],
            "identity_changes": [self._change(day) for _ in range(self.dice.randrange(3))],
            "messages": [],
            "events": [self._event(day) for _ in range(self.dice.randrange(15, 40))],
        }
        for _ in range(self.dice.randrange(8) if contacts else 0):
            self._message(day, self.dice.choice(contacts), rows)
        # the ledger is copied late, some of it another day
        if self.unled and self.dice.random() < 0.7:
            rows["messages"] += self.unled
            self.unled = []
        if self.sent and self.dice.random() < 0.2:
            rows["messages"].append(self.dice.choice(self.sent))
        # two loads at once both find an event missing, or a queue delivers again another day (the fourth, for certain)
        if self.events and (self.dice.random() < 0.5 or day == 3):
            rows["events"] += self.dice.sample(self.events, min(3, len(self.events)))
        self.events += rows["events"]
        return {
            table: [{**row, "loaded_at": loaded_at} for row in of_table] for table, of_table in rows.items()
        }

    def deal(self, day: int) -> dict[str, Any]:
        """A goal that is no order, reached further back each day; takes nothing from the dice."""
        at = FIRST_DAY - timedelta(days=9 * day)
        return {
            "event_id": f"deal-{day}",
            "type": "deal.closed",
            "source": "shop",
            "email": self.emails[day],
            "occurred_at": at,
            "received_at": self.clock,
            "properties": json.dumps({"amount": f"{100 + day}.50"}),
            "loaded_at": self.clock,
        }

    def _change(self, day: int) -> dict[str, Any]:
        """A merge or a split of whatever a record or an address leads to, or an undo of one before."""

        def key() -> tuple[str, str, str]:
            if self.dice.random() < 0.4:
                return "", "", self.dice.choice(self.emails)
            return self.dice.choice(["shop", "web"]), str(self.dice.randrange(8)), ""

        one, other = key(), key()
        change = {
            "change_id": f"c{self._id()}",
            "action": self.dice.choice(["merge", "merge", "split", "undo"]) if self.changes else "merge",
            "occurred_at": self.moment(day),
        }
        if change["action"] == "undo":
            change["undoes"] = self.dice.choice(self.changes)["change_id"]
        else:
            change |= dict(zip(("source", "external_id", "email"), one, strict=True))
            self.changes.append(change)
        if change["action"] == "merge":
            change |= dict(zip(("into_source", "into_external_id", "into_email"), other, strict=True))
        return change

    def _id(self) -> str:
        self.number += 1
        return str(self.number)

    def _record(self, day: int) -> dict[str, Any]:
        properties = {
            "email": self.dice.choice(["", *self.emails]),
            "first_name": self.dice.choice(["", "Ann", "Bob"]),
        }
        is_deleted = self.dice.random() < 0.2
        if is_deleted and self.dice.random() < 0.5:
            properties["merged_into"] = str(self.dice.randrange(8))
        return {
            "source": self.dice.choice(["shop", "web"]),
            "object": "contact",
            "external_id": str(self.dice.randrange(8)),
            "updated_at": self.moment(day, late=True),
            "is_deleted": is_deleted,
            "properties": json.dumps(properties),
        }

    def _consent(self, day: int) -> dict[str, Any]:
        return {
            **self.hints(),
            "consent_id": self._id(),
            "channel": "email",
            "purpose": "marketing",
            "is_granted": self.dice.random() < 0.7,
            "basis": "opt_in",
            "occurred_at": self.moment(day),
        }

    def _event(self, day: int) -> dict[str, Any]:
        types = ["order.placed"] * 3 + ["order.cancelled", "page.viewed", "opened", "clicked", "unsubscribed"]
        type_ = self.dice.choice(types)
        properties: dict[str, Any] = {"is_machine": self.dice.random() < 0.3}
        message_id = (
            self.dice.choice(self.sent)["message_id"] if self.sent and self.dice.random() < 0.5 else ""
        )
        if type_.startswith("order"):
            items = [
                {
                    "product_id": f"P{self.dice.randrange(4)}",
                    "quantity": self.dice.randrange(-1, 4),
                    "unit_price": "2.55",
                }
                for _ in range(self.dice.randrange(3))
            ]
            properties = {"order_id": str(self.dice.randrange(60)), "currency": "GBP", "items": items}
            message_id = ""
        at = self.moment(day, late=self.dice.random() < 0.3)
        hints = self.hints()
        if self.sent and type_ == "order.placed" and self.dice.random() < 0.5:
            # somebody orders after a message
            message = self.dice.choice(self.sent)
            hints["email"] = message["email"]
            at = max(at, message["changed_at"] + timedelta(hours=self.dice.randrange(400)))
        return {
            **hints,
            "event_id": f"e{self._id()}",
            "type": type_,
            "message_id": message_id,
            "anonymous_id": self.dice.choice(["", "a1", "a2", "a3"]),
            "occurred_at": at,
            "received_at": at,
            "properties": json.dumps(properties),
        }

    def _message(self, day: int, contact: tuple[int, str], rows: dict[str, list[dict[str, Any]]]) -> None:
        contact_id, email = contact
        message_id, at = f"m{self._id()}", self.moment(day, late=self.dice.random() < 0.3)
        if self.dice.random() < 0.2:
            # the ledger of a year ago is copied, too
            at -= timedelta(days=self.dice.randrange(100, 300))
        last = self.dice.choice(["sent", "sent", "unknown", "skipped"])
        life = ["claimed", last] if last != "skipped" else ["skipped"]
        ledger = [
            {
                "message_id": message_id,
                "sequence": sequence,
                "status": status,
                "kind": "campaign",
                "name": "win_back",
                "occurrence": f"{day // 2}",
                "contact_id": contact_id,
                "email": email,
                "channel": "email",
                "changed_at": at + timedelta(seconds=sequence),
                "details": "{}",
            }
            for sequence, status in enumerate(life)
        ]
        self.sent.append(ledger[0])
        (self.unled if self.dice.random() < 0.5 else rows["messages"]).extend(ledger)
        if last != "skipped":
            delivered = at + timedelta(minutes=1)
            rows["events"].append(
                {
                    **(
                        {"source": "smtp"} if self.dice.random() < 0.5 else {**self.hints(), "source": "smtp"}
                    ),
                    "event_id": f"e{self._id()}",
                    "type": "delivered",
                    "message_id": message_id,
                    "occurred_at": delivered,
                    "received_at": delivered,
                    "properties": "{}",
                }
            )


def load(warehouse: Warehouse, rows: dict[str, list[dict[str, Any]]]) -> None:
    """Append rows with their own loaded_at, as no loader would."""
    for table, of_table in rows.items():
        if of_table:
            frame = pl.DataFrame(of_table, infer_schema_length=None)
            moments = [name for name, kind in frame.schema.items() if isinstance(kind, pl.Datetime)]
            warehouse.insert(
                f"raw.{table}",
                frame.with_columns(pl.col(moments).cast(pl.Datetime("ms", "UTC"))).with_columns(
                    *([pl.col("sequence").cast(pl.UInt32)] if "sequence" in frame.columns else []),
                    *([pl.col(pl.String).fill_null("")]),
                ),
            )


def marts(models: Models) -> dict[str, pl.DataFrame]:
    """Every mart in the order of its key."""
    found = {}
    for table, key in KEYS.items():
        columns = [
            name for name in models.frame(f"select * from {table} limit 0").columns if name not in LEFT_OUT
        ]
        found[table] = models.frame(f"select {', '.join(columns)} from {table} order by {key}")
    return found


def differences(left: dict[str, pl.DataFrame], right: dict[str, pl.DataFrame]) -> list[str]:
    """What differs, mart by mart; sums of floating point numbers may in the ninth digit."""
    found = []
    for table, one in left.items():
        mine, theirs = (
            frame.with_columns(pl.col(pl.Float64).round_sig_figs(9)) for frame in (one, right[table])
        )
        if mine.equals(theirs):
            continue
        if mine.height != theirs.height:
            found.append(f"{table}: {mine.height} and {theirs.height} rows")
            continue
        for column in mine.columns:
            unlike = mine[column].ne_missing(theirs[column])
            if unlike.any():
                pair = mine.filter(unlike)[column][0], theirs.filter(unlike)[column][0]
                found.append(f"{table}.{column}: {unlike.sum()} rows, such as {pair[0]} and {pair[1]}")
    return found


def flags_that_differ(models: Models) -> int:
    """Profiles that say of suppression or consent what the marts, which read raw rows, do not."""
    return models.value("""
        select count() from intermediate.int_contacts__profiled
        where
            is_suppressed != (email != '' and email in (select email from marts.suppressions))
            or has_marketing_consent != (
                contact_id in (
                    select contact_id from marts.consents
                    where channel = 'email' and purpose = 'marketing' and is_granted
                )
            )
    """)


def build(models: Models, *args: str, minutes: int, **variables: Any) -> None:
    """Seeds and models of the core, no tests."""
    models.build(
        *("--exclude-resource-type", "unit_test", "test", "--select", *(args or CORE)),
        offset=timedelta(minutes=minutes),
        fold_after_days=2,
        message_life_days=20,
        **variables,
    )


@pytest.fixture
def history(models: Models) -> Iterator[Models]:
    """Empty raw tables, no models."""
    models.clear()
    yield models


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [3])
def test_increments_equal_a_full_refresh(history: Models, seed: int) -> None:
    told = History(seed)
    contacts: list[tuple[int, str]] = []
    for day in range(5):
        for _ in range(told.dice.randrange(1, 3)):
            load(history.warehouse, told.batch(day, contacts))
        load(history.warehouse, {"events": [told.deal(day)]})
        if day == 2:
            # a run that ended after some of its models; the next one has to make up for it
            build(history, EVENTS, "+int_orders__combined", minutes=day)
        else:
            build(history, minutes=day)
            contacts = history.rows(
                "select contact_id, email from marts.contacts where email != '' order by 1"
            )
    increments = marts(history)
    assert flags_that_differ(history) == 0
    assert increments["intermediate.int_contacts__profiled"]["is_suppressed"].n_unique() == 2
    folded = "select count() > 0 from intermediate.int_engagement__summed where folded_through > '1970-01-01'"
    assert history.value(folded)
    assert increments["marts.messages"].height > 3
    told_once = {event["event_id"] for event in told.events}
    deals = increments["marts.events"].filter(pl.col("type") == "deal.closed").height
    assert deals == 5
    assert increments["marts.events"].height - deals == len(told_once) < len(told.events), (
        "some were loaded twice"
    )
    assert increments["marts.messages"]["orders_count"].sum() > 3
    goals = increments["marts.conversions"]["goal"].value_counts()
    assert dict(goals.iter_rows())["deal"] == 5
    assert increments["marts.funnels"].filter(pl.col("step") > 1)["passed_count"].sum() > 0

    build(history, minutes=5)
    assert differences(increments, marts(history)) == [], "a run without new rows changes nothing"
    build(history, *CORE, "--full-refresh", minutes=6)
    assert differences(increments, marts(history)) == []
    assert flags_that_differ(history) == 0

    # any day may be built again, one that was added up long ago too
    again = ["2011-06-20", "2011-06-23"]
    build(history, minutes=7, load_days=again)
    assert differences(increments, marts(history)) == []


@pytest.mark.slow
def test_best_hours_follow_their_window(history: Models) -> None:
    """What was read too long ago is forgotten as time goes on, and known again when the clock is set back."""
    told = History(11)
    for day in range(4):
        load(history.warehouse, told.batch(day, []))
    table = "intermediate.int_contacts__read"
    counts = f"select contact_id, timezone, counts, events_count from {table} final where events_count > 0 order by 1"
    seen = []
    for days in (0, 3, -2):
        build(history, "+int_contacts__read", minutes=days * 1440, best_hour_days=8)
        seen.append(history.rows(counts))
    assert sum(row[3] for row in seen[0]) > sum(row[3] for row in seen[1]) > 0
    build(history, "+int_contacts__read", "--full-refresh", minutes=-2 * 1440, best_hour_days=8)
    assert history.rows(counts) == seen[2]
    build(history, "+int_contacts__read", "--full-refresh", minutes=3 * 1440, best_hour_days=8)
    assert history.rows(counts) == seen[1]


def test_late_events_rebuild_their_load_day_alone(history: Models) -> None:
    told = History(7)
    for day in range(3):
        load(history.warehouse, told.batch(day, []))
    build(history, EVENTS, minutes=0)
    parts = f"""
        select partition, groupArray(name), sum(rows) from system.parts
        where database = '{PREFIX}intermediate' and table = 'int_events__recorded' and active
        group by partition order by partition
    """
    before = {day: names for day, names, _ in history.rows(parts)}
    late = {**told._event(2), "event_id": "late", "occurred_at": FIRST_DAY - timedelta(days=30)}
    load(history.warehouse, {"events": [{**late, "loaded_at": told.moment(2)}]})
    build(history, EVENTS, minutes=1)
    after = {day: names for day, names, _ in history.rows(parts)}
    assert {day for day, names in after.items() if names != before[day]} == {"2011-06-22"}
    assert (
        history.value(
            "select loaded_on::String from intermediate.int_events__recorded where event_id = 'late'"
        )
        == "2011-06-22"
    )


@pytest.mark.slow
def test_what_a_killed_run_left_behind_is_dropped_when_it_is_a_day_old(history: Models) -> None:
    """`create or replace table` fills a table of a name of its own; killed half way, the engine keeps that."""
    model = "int_consents__latest"
    build(history, f"+{model}", minutes=0)
    names = ("_tmp_replace_old", "_tmp_replace_new")
    for name in names:
        history.warehouse.execute(
            f"create table {PREFIX}intermediate.{name} (a Int64) engine = MergeTree order by a"
        )
    left = f"select name from system.tables where database = '{PREFIX}intermediate' and startsWith(name, '_tmp_')"
    path = history.value(
        f"select metadata_path from system.tables where database = '{PREFIX}intermediate' and name = '{names[0]}'"
    )
    [file] = Path(history.settings.home).rglob(path)
    os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 2 * 86_400))
    build(history, f"+{model}", minutes=1)
    assert history.rows(left) == [(names[1],)]
