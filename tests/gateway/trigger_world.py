"""Marts, content and events for the tests of triggers; run by itself, a gateway's consumer that may be killed."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from mailbox import Maildir
from pathlib import Path
from typing import Any

import polars as pl

from campaigns.resolving import loads_of
from gateway.triggers import QUEUE, TriggerHandler
from senders.ledger import Ledger
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.loads import EVENT_COLUMNS, load_events

START = datetime(2026, 6, 1, 12, 0, tzinfo=UTC)
DATABASES = ("campaigns", "live", "marts", "intermediate", "staging", "segments")
TABLES = (
    *(f"create database {name}" for name in ("marts", "intermediate", "staging", "segments")),
    """
    create table marts.contact_profiles (
        contact_id Int64, email String, first_name Nullable(String), last_name Nullable(String),
        country Nullable(String), timezone Nullable(String), locale Nullable(String),
        engagement_band LowCardinality(String),
        orders_count UInt32, items_count Int64, revenue Decimal(18, 2), average_order_value Decimal(18, 2),
        days_since_last_order Nullable(Int32), engagement_score Float64, messages_sent_count UInt32,
        messages_opened_count UInt32, messages_clicked_count UInt32, is_deleted Bool, is_suppressed Bool,
        has_marketing_consent Bool, created_at DateTime64(3, 'UTC'), first_order_at Nullable(DateTime64(3, 'UTC')),
        last_order_at Nullable(DateTime64(3, 'UTC')), first_message_at Nullable(DateTime64(3, 'UTC')),
        last_message_at Nullable(DateTime64(3, 'UTC')), last_opened_at Nullable(DateTime64(3, 'UTC')),
        last_clicked_at Nullable(DateTime64(3, 'UTC')), events_through DateTime64(3, 'UTC'),
        messages_through DateTime64(3, 'UTC'), segments Array(String)
    ) engine = MergeTree order by contact_id
    """,
    """
    create table intermediate.int_contacts__identified (
        identity_id Int64, contact_id Int64, kind LowCardinality(String),
        named_contact_id Int64 default contact_id, own_contact_id Int64 default contact_id
    ) engine = MergeTree order by identity_id
    """,
    """
    create table intermediate.int_events__recorded (
        event_id String, identity_id Int64, message_id String, source LowCardinality(String),
        type LowCardinality(String), is_machine Bool, properties JSON, occurred_at DateTime64(3, 'UTC'),
        loaded_at DateTime64(3, 'UTC'), loaded_on Date
    ) engine = MergeTree order by (type, identity_id, occurred_at)
    """,
    """
    create table intermediate.int_orders__combined (
        source LowCardinality(String), order_id String, is_sale Bool, revenue Decimal(18, 2), items_count Int64,
        ordered_at DateTime64(3, 'UTC'), cancelled_at Nullable(DateTime64(3, 'UTC'))
    ) engine = ReplacingMergeTree order by (source, order_id)
    """,
    """
    create table marts.suppressions (email String, is_bounced Bool, event_id String) engine = MergeTree order by email
    """,
    """
    create table marts.recommendations (
        contact_id Int64, rank UInt16, product_id String, product_name String, price Decimal(18, 2),
        image_url String, url String, reason String, model_version String
    ) engine = MergeTree order by (contact_id, rank)
    """,
    "create view marts.messages as select message_id, contact_id, changed_at as sent_at from raw.messages",
)
TEMPLATE = """<mjml><mj-body><mj-section><mj-column>
<mj-text>Hello {{ contact.first_name | default('there') }} at {{ contact.email }}.
{{ company_name }}, {{ postal_address }}. <a href="{{ unsubscribe_url }}">Unsubscribe</a></mj-text>
</mj-column></mj-section></mj-body></mjml>
"""


def build(warehouse: Warehouse) -> None:
    """Empty marts as the dbt models promise them."""
    for name in DATABASES:
        warehouse.execute(f"drop database if exists {name}")
    for statement in TABLES:
        warehouse.execute(statement)


def drop(warehouse: Warehouse) -> None:
    """Leave nothing behind."""
    for name in DATABASES:
        warehouse.execute(f"drop database if exists {name}")


def people(warehouse: Warehouse, count: int, *, columns: str = "", first: int = 1) -> None:
    """Contacts p1@example.com and so on, consenting; `columns` are `value as name` that are otherwise."""
    given = f", {columns}" if columns else ""
    names = [part.rsplit(" as ", 1)[1].strip() for part in columns.split(";") if part.strip()]
    given = "".join(f", {part.strip()}" for part in columns.split(";") if part.strip())
    more = "".join(f", {name}" for name in names if name not in ("has_marketing_consent",))
    consent = "" if "has_marketing_consent" in names else ", true as has_marketing_consent"
    warehouse.execute(
        f"""
        insert into marts.contact_profiles (contact_id, email, has_marketing_consent, created_at, events_through,
            messages_through{more})
        select contact_id, email, has_marketing_consent, created_at, events_through, messages_through{more} from (
            select toInt64(bitShiftRight(sipHash64(email), 1)) as contact_id,
                'p' || toString(number) || '@example.com' as email,
                toDateTime64('2026-01-01', 3, 'UTC') as created_at, now64(3) as events_through,
                now64(3) as messages_through{consent}{given}
            from numbers({first}, {count})
        )
        """
    )
    warehouse.execute(
        f"""
        insert into intermediate.int_contacts__identified (identity_id, contact_id, kind)
        select toInt64(bitShiftRight(sipHash64('', '', email), 1)), contact_id, 'email' from marts.contact_profiles
        where email in (select 'p' || toString(number) || '@example.com' from numbers({first}, {count}))
        """
    )


def contact_of(warehouse: Warehouse, person: int) -> int:
    """The contact_id of p<person>@example.com."""
    return warehouse.value(f"select toInt64(bitShiftRight(sipHash64('p{person}@example.com'), 1))")


def events(*rows: dict[str, Any]) -> pl.DataFrame:
    """Events: `id`, `type`, `person` or hints, `at` (seconds after START), and anything else is a property."""
    made: list[dict[str, Any]] = []
    for row in rows:
        rest = dict(row)
        person = rest.pop("person", None)
        at = START + timedelta(seconds=rest.pop("at", 0))
        made.append(
            {
                "event_id": rest.pop("id"),
                "type": rest.pop("type", "cart.updated"),
                "source": rest.pop("source", "web"),
                "email": rest.pop("email", f"p{person}@example.com" if person else ""),
                "external_id": rest.pop("external_id", ""),
                "anonymous_id": rest.pop("anonymous_id", ""),
                "message_id": rest.pop("message_id", ""),
                "occurred_at": at,
                "received_at": START + timedelta(seconds=rest.pop("received", 0))
                if "received" in rest
                else at,
                "properties": json.dumps(rest),
                "esp_event": "",
            }
        )
    frame = pl.DataFrame(made, infer_schema_length=None)
    return frame.select(pl.col(name).cast(dtype) for name, dtype in EVENT_COLUMNS.items())


def order(id: str, person: int, at: int, price: float, quantity: int = 1, **more: Any) -> dict[str, Any]:  # noqa: A002
    """An order of one line."""
    items = [{"product_id": "1", "quantity": quantity, "unit_price": price}]
    return {
        "id": id,
        "type": "order.placed",
        "person": person,
        "at": at,
        "order_id": id,
        "items": items,
        **more,
    }


def write_content(folder: Path, **triggers: str) -> Path:
    """Templates and triggers; a trigger's text is what follows its name."""
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    (folder / "triggers").mkdir(exist_ok=True)
    (folder / "templates" / "reminder.mjml").write_text(TEMPLATE)
    for name, text in triggers.items():
        (folder / "triggers" / f"{name}.yaml").write_text(f"trigger: {name}\n{text}")
    return folder


SEND = "send: {template: reminder, category: transactional, subject: Your cart}\n"
MARKETING = "send: {template: reminder, category: marketing, subject: Your cart}\n"


def sender_settings(base: Any, home: Path, **more: Any) -> SenderSettings:
    """Settings on an engine that runs, sending into `home/maildir`."""
    values = {
        "home": home, "content_dir": home / "content", "warehouse_port": base.warehouse_port,
        "from_email": "shop@example.com", "company_name": "Shop Ltd", "postal_address": "1 High Street, York",
    }  # fmt: skip
    return SenderSettings(**{**values, **more})


def received(settings: SenderSettings) -> Counter[str]:
    """How many messages each address got."""
    folder = settings.maildir
    if not folder.exists():
        return Counter()
    return Counter(
        str(message["To"]).rpartition("<")[2].rstrip(">") for message in Maildir(folder, create=False)
    )


def feed(handler: TriggerHandler, frame: pl.DataFrame, now: datetime) -> None:
    """What the consumer does with a micro-batch: judge first, load behind."""
    handler.handle(frame, now)
    keep(handler, frame)


def keep(handler: TriggerHandler, frame: pl.DataFrame) -> None:
    """Load what was handled, and let the handler write down what it must."""
    load_events(handler.warehouse, frame)
    handler.keep(loads_of(handler.warehouse, frame))


def main() -> None:
    """Take batches of ten events, again and again from the first that is not marked as done; may be killed."""
    home, port, total = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    settings = SenderSettings(
        home=home, content_dir=home / "content", warehouse_port=port, from_email="shop@example.com",
        company_name="Shop Ltd", postal_address="1 High Street, York",
    )  # fmt: skip
    done = home / "done"
    begun = int(done.read_text() or 0) if done.exists() else 0
    with (
        Ledger.open(settings) as ledger,
        Warehouse.connect(settings, comment="test") as warehouse,
        TriggerHandler(settings, ledger, warehouse, clock=lambda: START + timedelta(hours=2)) as handler,
    ):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        for first in range(begun, total, 10):
            numbers = range(first, min(first + 10, total))
            frame = events(*({"id": f"e{n}", "person": n + 1, "at": 7200 + n, "value": 60} for n in numbers))
            handler.handle(frame, handler.clock())
            keep(handler, frame)
            handler.tick(handler.clock())
            spare = home / "done.new"
            spare.write_text(str(first + 10))
            spare.replace(done)
        # what is put off waits longer than this process lives
        while handler.firings.has_due(handler.clock()) or any(
            lane.room < QUEUE for lane in handler._lanes.values()
        ):
            handler.tick(handler.clock())
            time.sleep(0.05)


if __name__ == "__main__":
    main()
