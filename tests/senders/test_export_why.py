"""From the ledger into the warehouse and back, and the answers to 'why did I get this?'."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from sending import audience, plan, sender_settings, write_content

from campaigns.identity import message_id
from senders.export import export_messages, settle_from_events
from senders.ledger import Ledger
from senders.message import Delivery, Status
from senders.pipeline import send
from senders.plan import Cap
from senders.providers import get_provider
from senders.settings import SenderSettings
from senders.why import why
from warehouse.client import Warehouse
from warehouse.errors import InputError, WarehouseError
from warehouse.loads import load_consents, load_events
from warehouse.settings import MailhouseSettings

THING = ("campaign", "offer", "2026-06-27T09:00:00Z")


def mid(number: int, name: str = "offer") -> str:
    return message_id("campaign", name, number, THING[2])


@pytest.fixture
def sender(settings: MailhouseSettings) -> SenderSettings:
    write_content(settings.home / "content")
    return sender_settings(settings.home, warehouse_port=settings.warehouse_port)


def send_some(sender: SenderSettings, ledger: Ledger, people: int = 20, **more: object) -> None:
    with get_provider(sender) as provider:
        send(plan(**more), audience(people, skip_every=10), settings=sender, ledger=ledger, provider=provider)


def event(kind: str, message: str, sender: SenderSettings, **more: str) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "event_id": [f"{kind}:{message}"], "type": [kind], "message_id": [message], "occurred_at": [sender.now()],
            **{name: [value] for name, value in more.items()},
        },
        schema_overrides={"occurred_at": pl.Datetime("ms", "UTC")},
    )  # fmt: skip


def stored(warehouse: Warehouse) -> int:
    return warehouse.value("select count() from raw.messages")


def test_export_copies_each_change_once(sender: SenderSettings, warehouse: Warehouse) -> None:
    with Ledger.open(sender) as ledger:
        send_some(sender, ledger)
        assert export_messages(ledger, warehouse) == 20
        assert export_messages(ledger, warehouse) == 0
        rows = warehouse.frame(
            "select * except details, toJSONString(details) as details from raw.messages order by contact_id"
        )
        found = ledger.find(mid(1))
    assert rows["contact_id"].to_list() == list(range(1, 21))
    first, skipped = rows.row(0, named=True), rows.row(9, named=True)
    assert found is not None
    for name in ("message_id", "kind", "name", "version", "occurrence", "email", "template", "template_version",
                 "segment",
                 "segment_version", "subject", "provider", "category", "changed_at", "sequence", "status"):  # fmt: skip
        assert first[name] == getattr(found, name), name
    assert (first["status"], first["sequence"], first["subject"]) == ("sent", 1, "For Zoë 1")
    assert '"consent_id":"consent-1"' in first["details"]
    assert (skipped["status"], skipped["reason"]) == ("skipped", "no_consent")


def test_export_after_a_crash_between_warehouse_and_ledger(
    sender: SenderSettings, warehouse: Warehouse
) -> None:
    with Ledger.open(sender) as ledger:
        send_some(sender, ledger)
        kept = ledger.mark_exported

        def die(_: object) -> None:
            raise KeyboardInterrupt

        ledger.mark_exported = die
        with pytest.raises(KeyboardInterrupt):
            export_messages(ledger, warehouse)
        assert stored(warehouse) == 20
        ledger.mark_exported = kept
        send_some(sender, ledger, 30)
        assert export_messages(ledger, warehouse) == 10
        assert stored(warehouse) == 30
        assert not ledger.changes_to_export(1)


def test_exports_at_once_do_not_double(sender: SenderSettings, warehouse: Warehouse) -> None:
    with Ledger.open(sender) as ledger:
        send_some(sender, ledger, 200)
        counts: list[int] = []
        threads = [
            threading.Thread(target=lambda: counts.append(export_messages(ledger, warehouse)))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        export_messages(ledger, warehouse)
    assert sum(counts) <= 200 == stored(warehouse)


def test_events_settle_what_is_unknown(sender: SenderSettings, warehouse: Warehouse) -> None:
    with Ledger.open(sender) as ledger:
        run = ledger.begin_run(*THING, sender.now())
        from senders.ledger import PLAN_COLUMNS, Claim, Outcome

        numbers = list(range(1, 6))
        values = {
            **dict.fromkeys(PLAN_COLUMNS, ""),
            "kind": THING[0],
            "name": THING[1],
            "occurrence": THING[2],
        }
        rows = ledger.claim(
            run,
            Claim(values, [mid(n) for n in numbers], numbers, ["a@example.com"] * 5, [""] * 5, ["{}"] * 5),
            sender.now(),
        ).rows
        ledger.dispatch(run, list(rows.values()), sender.now())
        ledger.record(
            run, [Outcome.of(row, Delivery("", Status.UNKNOWN)) for row in rows.values()], sender.now()
        )
        load_events(warehouse, event("delivered", mid(1), sender))
        load_events(warehouse, event("deferred", mid(2), sender))
        load_events(warehouse, event("bounced", mid(2), sender))
        load_events(warehouse, event("rejected", mid(3), sender))
        load_events(warehouse, event("queued", mid(4), sender))
        assert settle_from_events(ledger, warehouse, sender.now()) == {"sent": 2, "rejected": 1, "queued": 1}
        assert ledger.unknown_message_ids() == [mid(5)]
        assert settle_from_events(ledger, warehouse, sender.now()) == {}


def test_why_it_was_sent(sender: SenderSettings, warehouse: Warehouse) -> None:
    load_consents(
        warehouse,
        pl.DataFrame(
            {
                "consent_id": ["consent-1"], "source": ["shop"], "email": ["person1@example.com"], "channel": ["email"],
                "purpose": ["marketing"], "is_granted": [True], "basis": ["consent"], "text_version": ["2026-01"],
                "occurred_at": [sender.now() - timedelta(days=30)],
            },
            schema_overrides={"occurred_at": pl.Datetime("ms", "UTC")},
        ),
    )  # fmt: skip
    with Ledger.open(sender) as ledger:
        send_some(sender, ledger, cap=Cap(3, timedelta(days=7)))
        export_messages(ledger, warehouse)
        load_events(
            warehouse,
            event(
                "clicked", mid(1), sender, properties='{"url": "https://shop.example/1", "is_machine": true}'
            ),
        )
        found = why(mid(1).upper(), ledger, warehouse)
    text = "\n".join(found.lines())
    assert found.answer == "It was sent: the provider accepted it."
    for part in ("person1@example.com", "offer, version abc", "champions, version seg1", THING[2], "given",
                 "basis consent", "text version 2026-01", "model version model-7", "3 marketing messages in 7 days",
                 "stored as new/",
                 "clicked: https://shop.example/1, by a machine"):  # fmt: skip
        assert part in text, part
    assert not found.notes


def test_why_it_was_not_sent(sender: SenderSettings, warehouse: Warehouse) -> None:
    load_events(warehouse, event("unsubscribed", mid(2, "older"), sender, email="person2@example.com"))
    frame = next(audience(3)).with_columns(
        skip_reason=pl.Series(["", "suppressed", "no_consent"]),
        suppression_event_id=pl.Series(["", f"unsubscribed:{mid(2, 'older')}", ""]),
        consent_id=pl.lit(""),
    )
    with Ledger.open(sender) as ledger, get_provider(sender) as provider:
        send(plan(), [frame], settings=sender, ledger=ledger, provider=provider)
        send(
            plan(name="more", cap=Cap(1, timedelta(days=1))),
            [frame],
            settings=sender,
            ledger=ledger,
            provider=provider,
        )
        suppressed, capped = why(mid(2), ledger, warehouse), why(mid(1, "more"), ledger, warehouse)
        unconsented = why(mid(3), ledger, warehouse)
    assert "unsubscribed" in "\n".join(suppressed.lines())
    assert suppressed.suppression is not None
    assert "the address is suppressed" in suppressed.answer
    assert "frequency cap" in capped.answer
    assert "no consent" in unconsented.answer
    assert "Consent:                none found" in "\n".join(unconsented.lines())
    assert "not in the warehouse yet" in capped.notes[0]


def test_why_from_the_warehouse_alone_and_from_the_ledger_alone(
    sender: SenderSettings, warehouse: Warehouse, tmp_path: Path
) -> None:
    with Ledger.open(sender) as ledger:
        send_some(sender, ledger)
        export_messages(ledger, warehouse)
        away = Warehouse.connect(sender.model_copy(update={"warehouse_port": 9}))
        alone = why(mid(1), ledger, away)
        assert "could not be asked" in alone.notes[0]
        assert alone.answer.startswith("It was sent")
    with Ledger.open(sender_settings(tmp_path / "other")) as empty:
        kept = why(mid(1), empty, warehouse)
        assert "no longer has" in kept.notes[0]
        assert kept.lines()[:2] == alone.lines()[:2]
        with pytest.raises(InputError, match="is no message id"):
            why("offer", empty, warehouse)
        with pytest.raises(InputError, match="is known"):
            why(mid(99), empty, warehouse)
        with pytest.raises((InputError, WarehouseError)):
            why(mid(1), empty, away)
