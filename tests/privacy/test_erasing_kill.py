"""An erasure that is killed at every step ends like one that was not: nothing is left, what stays is there once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from pydantic import SecretStr

from privacy.erasing import Place, Plan, erase, residue, unfinished
from privacy.person import find_person
from senders.export import export_messages
from senders.ledger import PLAN_COLUMNS, Claim, Ledger, Outcome
from senders.message import Status
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.loads import load_consents, load_crm_records, load_events
from warehouse.settings import MailhouseSettings

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
ORDERS = 300


def world(warehouse: Warehouse, settings: SenderSettings) -> None:
    """Two people: ann, who goes, and bob."""
    for number, name in enumerate(("ann", "bob")):
        email = f"{name}@people.example"
        moment = pl.lit(AT).cast(pl.Datetime("ms", "UTC"))
        record = {
            "source": "crm", "object": "contact", "external_id": f"{name}-of-the-crm",
            "properties": json.dumps({"email": email}),
        }  # fmt: skip
        load_crm_records(warehouse, pl.DataFrame([record]).with_columns(updated_at=moment))
        events = [
            {
                "event_id": f"{name}-{order}", "type": "order.placed", "source": "crm", "email": email,
                "properties": json.dumps({"order_id": f"{number}-{order}", "total": "2.50"}),
            }
            for order in range(ORDERS)
        ]  # fmt: skip
        load_events(warehouse, pl.DataFrame(events).with_columns(occurred_at=moment))
        consent = {
            "consent_id": name, "email": email, "channel": "email", "purpose": "marketing", "is_granted": True,
            "basis": "b",
        }  # fmt: skip
        load_consents(warehouse, pl.DataFrame([consent]).with_columns(occurred_at=moment))
        with Ledger.open(settings) as ledger:
            plan = {**dict.fromkeys(PLAN_COLUMNS, "x"), "kind": "campaign", "category": "marketing"}
            run = ledger.begin_run("campaign", "x", "x", AT)
            ids = [f"0b6f0c5e-7a0e-5b0e-8a5{number}-{message:012d}" for message in range(50)]
            count = len(ids)
            claimed = ledger.claim(
                run,
                Claim(plan, ids, [100 + number] * count, [email] * count, [""] * count, ["{}"] * count),
                AT,
            )
            ledger.dispatch(run, list(claimed.rows.values()), AT)
            outcomes = [
                Outcome(row, Status.SENT, "", "", f"250 {email}", email) for row in claimed.rows.values()
            ]
            ledger.record(run, outcomes, AT)
            ledger.end_run(run, "done", AT)
            export_messages(ledger, warehouse, now=AT)
        mail = settings.maildir / "new" / name
        mail.parent.mkdir(parents=True, exist_ok=True)
        mail.write_text(f"To: {email}\n\nHello")


@pytest.mark.slow
def test_an_erasure_that_is_killed_at_every_step_ends_all_the_same(
    warehouse: Warehouse, settings: MailhouseSettings, tmp_path: Path
):
    sender = SenderSettings(home=tmp_path, warehouse_port=settings.warehouse_port)
    warehouse.settings = sender
    world(warehouse, sender)
    with Ledger.open(sender) as ledger:
        place = Place(sender, warehouse, ledger, wait=0.0)
        person = find_person(warehouse, ledger, email="Ann@people.example")
        assert len(person.message_ids) == 50
        Plan.new(person).save(tmp_path)
    chance = random.Random(7)
    for step in ("ledger", "pseudonyms", "pseudonyms", "rows", "rows", "files"):
        child = subprocess.Popen(
            [sys.executable, __file__],
            env={
                **os.environ, "MAILHOUSE_HOME": str(tmp_path),
                "MAILHOUSE_WAREHOUSE_PORT": str(settings.warehouse_port),
            },
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip() == step:
                time.sleep(chance.uniform(0, 0.15))
                break
        child.send_signal(signal.SIGKILL)
        child.wait(30)
    with Ledger.open(sender) as ledger:
        place = Place(sender, warehouse, ledger, wait=0.0)
        for plan in unfinished(tmp_path):
            assert erase(place, plan).residue == []
        assert not unfinished(tmp_path)
        assert residue(place, person) == []
        with ledger.engine.connect() as connection:
            emails = connection.exec_driver_sql(
                "select email, count(*) from messages group by email order by email"
            )
            assert [tuple(row) for row in emails] == [("", 50), ("bob@people.example", 50)]
            replies = connection.exec_driver_sql(
                "select provider_reply, subject, count(*) from message_changes where provider_reply != ''"
                " group by provider_reply, subject"
            )
            assert [tuple(row) for row in replies] == [("250 bob@people.example", "bob@people.example", 50)]
    orders = warehouse.frame(
        "select count(), uniqExact(event_id), sum(toDecimal64(properties.total::String, 2)) from raw.events"
    ).row(0)
    assert (orders[0], orders[1], float(orders[2])) == (2 * ORDERS, 2 * ORDERS, 2 * ORDERS * 2.5)
    assert warehouse.value("select count() from raw.events where email = 'bob@people.example'") == ORDERS
    kept = "select count(), uniqExact(message_id), countIf(contact_id = 101) from raw.messages"
    assert warehouse.frame(kept).row(0) == (100, 100, 50)
    assert warehouse.value("select count() from raw.crm_records") == 1
    assert [path.name for path in (tmp_path / "maildir/new").iterdir()] == ["bob"]


@pytest.mark.slow
@pytest.mark.service
def test_a_ledger_on_postgresql_loses_the_person_too(
    warehouse: Warehouse, settings: MailhouseSettings, tmp_path: Path, new_postgres_ledger: Callable[[], str]
):
    url = SecretStr(new_postgres_ledger())
    sender = SenderSettings(home=tmp_path, warehouse_port=settings.warehouse_port, ledger_url=url)
    warehouse.settings = sender
    world(warehouse, sender)
    with Ledger.open(sender) as ledger:
        place = Place(sender, warehouse, ledger, wait=0.0)
        person = find_person(warehouse, ledger, record="crm:ann-of-the-crm")
        assert erase(place, Plan.new(person)).residue == []
        with ledger.engine.connect() as connection:
            emails = connection.exec_driver_sql(
                "select email, count(*) from messages group by email order by email"
            )
            assert [tuple(row) for row in emails] == [("", 50), ("bob@people.example", 50)]


def main() -> None:
    """Go on with the erasure, and say which step begins."""
    settings = SenderSettings.load()
    with Warehouse.connect(settings) as warehouse, Ledger.open(settings) as ledger:
        for plan in unfinished(settings.home):
            erase(Place(settings, warehouse, ledger, wait=0.0), plan, lambda step: print(step, flush=True))


if __name__ == "__main__":
    main()
