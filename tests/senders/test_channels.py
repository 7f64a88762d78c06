"""Text and push messages from a campaign's file to the vendor and back: who gets one, who does not and why."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sending import write_content
from test_http_providers import Fcm, fcm_account, fcm_checks, google_error, twilio_checks
from vendor_server import Answer, Request, VendorServer, serve

from campaigns.audience import Recipients
from campaigns.permissions import CHANNELS, refusal
from campaigns.specs import SendSpec
from mailhouse import preview, sending
from orchestration.lib.campaign_runs import Prepared, deliver, export_ledger, prepare
from senders.ledger import Ledger
from senders.providers.fcm import FcmProvider
from senders.settings import SenderSettings
from senders.why import why
from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.settings import MailhouseSettings

NOW = "toDateTime64('2026-01-01', 3, 'UTC')"
TABLES = (
    "create database marts",
    "create database segments",
    """
    create table marts.contact_profiles (
        contact_id Int64, email String, first_name Nullable(String), timezone Nullable(String),
        locale Nullable(String), phone Nullable(String), push_token Nullable(String), is_deleted Bool,
        is_suppressed Bool, is_sms_suppressed Bool, is_push_suppressed Bool, has_marketing_consent Bool,
        has_sms_consent Bool, has_push_consent Bool
    ) engine = MergeTree order by contact_id
    """,
    """
    create table marts.suppressions (
        event_id String, channel String, email String, phone String, reason String, is_bounced Bool, is_global Bool,
        suppressed_at DateTime64(3, 'UTC')
    ) engine = MergeTree order by event_id
    """,
    """
    create table marts.consents (
        contact_id Int64, consent_id String, channel String, purpose String, is_granted Bool,
        occurred_at DateTime64(3, 'UTC')
    ) engine = MergeTree order by contact_id
    """,
    """
    create table marts.recommendations (
        contact_id Int64, rank UInt16, product_id String, product_name String, price Decimal(18, 2), image_url String,
        url String, reason String, model_version String
    ) engine = MergeTree order by contact_id
    """,
    "create table segments.champions (contact_id Int64) engine = MergeTree order by contact_id",
)
CAMPAIGN = """campaign: flash
audience: {{segment: champions}}
schedule: {{cron: "* * * * *"}}
send:
  channel: {channel}
  provider: {provider}
  template: flash
  category: {category}
  subject: "Flash sale, {{{{ contact.first_name | default('you') }}}}"
"""
TEXT = (
    "{{ contact.first_name | default('Hello') }}: everything 20 % off till midnight. Reply STOP to opt out.\n"
)


@pytest.fixture
def world(
    warehouse: Warehouse, warehouse_server: MailhouseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Warehouse, SenderSettings]]:
    """Empty marts, a content folder, and settings that the command reads, too."""
    for name in ("campaigns", "segments", "marts"):
        warehouse.execute(f"drop database if exists {name}")
    for statement in TABLES:
        warehouse.execute(statement)
    content = write_content(tmp_path / "content")
    (content / "campaigns").mkdir()
    (content / "templates/flash.mjml").write_text(
        "<mjml><mj-body><mj-section><mj-column><mj-text>-</mj-text></mj-column></mj-section></mj-body></mjml>"
    )
    (content / "templates/flash.txt").write_text(TEXT)
    account = tmp_path / "account.json"
    account.write_text("{}")
    values = {
        "home": tmp_path, "content_dir": content,
        "warehouse_url": f"http://127.0.0.1:{warehouse_server.warehouse_port}",
        "from_email": "shop@example.com", "company_name": "Shop Ltd", "postal_address": "1 High Street, York",
        "twilio_account": "AC1", "twilio_token": "the-secret-key", "twilio_from": "+447700900000",
        "base_url": "https://m.example", "fcm_credentials": account,
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(f"MAILHOUSE_{name.upper()}", str(value))
    yield warehouse, SenderSettings.load()
    for name in ("campaigns", "segments", "marts"):
        warehouse.execute(f"drop database if exists {name}")


def person(warehouse: Warehouse, contact_id: int, **more: Any) -> None:
    """A contact of the segment; `consents` are channels, granted, or with a minus withdrawn."""
    consents = more.pop("consents", ())
    row = {"contact_id": contact_id, "email": f"c{contact_id}@example.com", **more}
    warehouse.insert("marts.contact_profiles", pl.DataFrame([row]))
    warehouse.execute(f"insert into segments.champions values ({contact_id})")
    for name in consents:
        channel, is_granted = name.removeprefix("-"), not name.startswith("-")
        identifier = f"{channel}-{contact_id}"
        warehouse.execute(
            f"insert into marts.consents values ({contact_id}, '{identifier}', '{channel}', 'marketing', {is_granted},"
            f" {NOW})"
        )
        warehouse.execute(
            "insert into raw.consents (consent_id, source, channel, purpose, is_granted, basis, occurred_at) values"
            f" ('{identifier}', 'form', '{channel}', 'marketing', {is_granted}, 'consent', {NOW})"
        )


def stop(
    warehouse: Warehouse, *, email: str = "", phone: str = "", reason: str = "unsubscribed", **more: Any
) -> None:
    """One suppression."""
    row = {
        "event_id": f"stop:{email}{phone}", "channel": "sms" if phone else "email", "email": email, "phone": phone,
        "reason": reason, "is_bounced": reason == "bounced", "is_global": False,
        "suppressed_at": datetime(2026, 1, 1, tzinfo=UTC), **more,
    }  # fmt: skip
    warehouse.insert("marts.suppressions", pl.DataFrame([row]))


def prepared(
    world: tuple[Warehouse, SenderSettings], channel: str, provider: str, category: str = "marketing"
) -> Prepared:
    warehouse, settings = world
    path = settings.content_dir / "campaigns/flash.yaml"
    path.write_text(CAMPAIGN.format(channel=channel, provider=provider, category=category))
    return prepare(settings, warehouse, "flash")


def decided(warehouse: Warehouse) -> dict[int, tuple[str, str]]:
    rows = warehouse.frame(
        "select contact_id, argMax(status, sequence)::String, argMax(reason, sequence)::String from raw.messages"
        " group by contact_id"
    )
    return {contact: (status, reason) for contact, status, reason in rows.iter_rows()}


class Twilio:
    """Takes text messages; knows who replied STOP and which numbers do not exist."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def __call__(self, request: Request) -> Answer:
        form = request.form
        for ending, code in (("0007", 21610), ("0008", 21211)):
            if form["To"].endswith(ending):
                return Answer(400, {"code": code, "message": f"refused {form['To']}", "status": 400})
        self.texts[form["To"]] = form["Body"]
        return Answer(201, {"sid": f"SM{len(self.texts)}", "status": "queued", "error_code": None})


@pytest.fixture
def twilio(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[VendorServer, Twilio]]:
    vendor = Twilio()
    with serve(vendor, twilio_checks) as server:
        monkeypatch.setenv("MAILHOUSE_TWILIO_URL", server.url)
        yield server, vendor


@pytest.mark.slow
def test_a_campaign_by_text_message(
    twilio: tuple[VendorServer, Twilio], world: tuple[Warehouse, SenderSettings], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    warehouse = world[0]
    world = (warehouse, SenderSettings.load())
    person(warehouse, 1, phone="+447700900001", first_name="Ann", consents=["sms"])
    person(warehouse, 2, phone="+447700900002", consents=["email"])  # to mail alone
    person(warehouse, 3, consents=["sms"])  # no number
    person(warehouse, 4, phone="+447700900004", consents=["sms"])
    stop(warehouse, phone="+447700900004")  # replied STOP
    person(warehouse, 5, phone="+447700900005", consents=["sms"])
    stop(warehouse, email="c5@example.com")  # unsubscribed from mail
    person(warehouse, 6, phone="+447700900006", consents=["sms"])
    stop(warehouse, email="c6@example.com", is_global=True)  # from everything
    person(warehouse, 7, phone="+447700900007", consents=["sms"])  # Twilio knows of a STOP that we do not
    person(warehouse, 8, phone="+447700900008", consents=["sms"])  # no such number
    person(warehouse, 9, phone="+447700900009", email="", consents=["sms"])  # no mail address
    person(warehouse, 10, phone="+447700900010", consents=["-sms"])

    campaign = prepared(world, "sms", "twilio")
    assert campaign.summary.skipped == {"invalid": 1, "no_consent": 2, "suppressed": 2}
    assert campaign.summary.unconsented == 0
    [size] = [check for check in campaign.checks if check.name == "size"]
    assert size.metadata["segments"] == 1 and "Reply STOP" in TEXT

    preview.run("flash", 1, tmp_path / "out")
    assert (tmp_path / "out/flash-1.txt").read_text().startswith("Ann: everything 20 % off")
    assert not (tmp_path / "out/flash-1.html").exists()
    sending.run("flash", dry_run=True)
    assert not twilio[1].texts
    sending.run("flash", dry_run=False)
    shown = capsys.readouterr().out
    assert "3 sent" in shown and "2 skipped: no consent" in shown

    assert sorted(twilio[1].texts) == ["+447700900001", "+447700900005", "+447700900009"]
    assert twilio[1].texts["+447700900005"].startswith("Hello: everything")
    assert decided(warehouse) == {
        1: ("sent", ""), 2: ("skipped", "no_consent"), 3: ("skipped", "invalid"), 4: ("skipped", "suppressed"),
        5: ("sent", ""), 6: ("skipped", "suppressed"), 7: ("rejected", "unsubscribed"), 8: ("rejected", "invalid"),
        9: ("sent", ""), 10: ("skipped", "no_consent"),
    }  # fmt: skip
    # what Twilio knew is known here now, of the number alone
    told = warehouse.frame(
        "select type::String as type, email, properties.phone::String as phone,"
        " ifNull(properties.bounce_class::Nullable(String), '') as class from raw.events order by phone"
    ).rows()
    assert told == [("unsubscribed", "", "+447700900007", ""), ("bounced", "", "+447700900008", "hard")]
    export_ledger(world[1], warehouse)
    assert warehouse.value("select count() from raw.events") == 2

    messages = dict(warehouse.frame("select distinct contact_id, message_id from raw.messages").iter_rows())
    with Ledger.open(world[1]) as ledger:
        got, withdrew, stopped = (
            "\n".join(why(messages[one], ledger, warehouse).lines()) for one in (1, 10, 4)
        )
    assert "to +447700900001 (contact 1)" in got and "(consent sms-1 to marketing by sms)" in got
    assert "no consent to marketing by sms" in withdrew and "withdrawn" in withdrew
    assert "stop:+447700900004" in stopped


def test_an_operational_text_message(
    twilio: tuple[VendorServer, Twilio], world: tuple[Warehouse, SenderSettings]
) -> None:
    warehouse = world[0]
    for contact in range(1, 5):
        person(warehouse, contact, phone=f"+44770090000{contact}")
    stop(warehouse, phone="+447700900002")  # the carrier lets nothing through
    stop(warehouse, email="c3@example.com", is_global=True)
    stop(warehouse, email="c4@example.com", reason="bounced")
    campaign = prepared((warehouse, SenderSettings.load()), "sms", "twilio", "transactional")
    deliver(campaign)
    assert sorted(twilio[1].texts) == ["+447700900001", "+447700900003", "+447700900004"]


def test_advertising_by_text_says_how_to_stop_it(world: tuple[Warehouse, SenderSettings]) -> None:
    warehouse, settings = world
    person(warehouse, 1, phone="+447700900001", consents=["sms"])
    (settings.content_dir / "templates/flash.txt").write_text("Everything 20 % off")
    [lint] = [check for check in prepared(world, "sms", "twilio").checks if check.name == "template_lint"]
    assert not lint.is_passed and "Reply STOP" in lint.message
    (settings.content_dir / "templates/flash.txt").write_text("{{ preferences_url }}" + " and more" * 200)
    checks = {check.name: check for check in prepared(world, "sms", "twilio").checks}
    assert checks["template_lint"].is_passed
    assert not checks["size"].is_passed and checks["size"].metadata["segments"] == 13


class Push(Fcm):
    """FCM, with one answer a call and a device that is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.bodies: dict[str, tuple[str, str]] = {}

    def answer(self, request: Request) -> Answer:
        ids, answer = self(request)
        if ids:
            message = request.json["message"]
            shown = message["notification"]
            self.bodies[message["token"]] = (shown["title"], shown["body"])
        if request.path != "/token" and request.json["message"]["token"] == "other-project":
            return google_error(403, "PERMISSION_DENIED", "SENDER_ID_MISMATCH")
        return answer


@pytest.mark.slow
def test_a_campaign_by_push(
    world: tuple[Warehouse, SenderSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    warehouse, settings = world
    person(warehouse, 1, push_token="t-1", first_name="Ann")  # the platform's opt-in
    person(warehouse, 2, push_token="t-2", consents=["push"])
    person(warehouse, 3, push_token="t-3", consents=["-push"])
    person(warehouse, 4, consents=["push"])  # no device
    person(warehouse, 5, push_token="t-5")
    stop(warehouse, email="c5@example.com", is_global=True)
    person(warehouse, 6, push_token="t-6")
    stop(warehouse, email="c6@example.com")
    person(warehouse, 7, push_token="t-99")  # the app is gone
    person(warehouse, 8, push_token="other-project")
    vendor = Push()
    with serve(vendor.answer, fcm_checks) as server:
        (tmp_path / "account.json").write_text(json.dumps(fcm_account(f"{server.url}/token")))
        defaults = FcmProvider.__init__.__kwdefaults__
        assert defaults is not None
        monkeypatch.setitem(defaults, "base_url", server.url)
        campaign = prepared(world, "push", "fcm")
        assert campaign.summary.skipped == {"invalid": 1, "no_consent": 1, "suppressed": 1}
        assert campaign.summary.unconsented == 0
        deliver(campaign)
        export_ledger(settings, warehouse)
    assert vendor.bodies["t-1"] == (
        "Flash sale, Ann",
        TEXT.replace("{{ contact.first_name | default('Hello') }}", "Ann"),
    )
    assert {one: status for one, (status, _) in decided(warehouse).items()} == {
        1: "sent", 2: "sent", 3: "skipped", 4: "skipped", 5: "skipped", 6: "sent", 7: "rejected", 8: "rejected",
    }  # fmt: skip
    told = warehouse.frame(
        "select type::String as type, properties.push_token::String as token from raw.events order by token"
    ).rows()
    assert told == [("push.unregistered", "other-project"), ("push.unregistered", "t-99")]
    messages = dict(warehouse.frame("select distinct contact_id, message_id from raw.messages").iter_rows())
    with Ledger.open(settings) as ledger:
        allowed, withdrew = ("\n".join(why(messages[one], ledger, warehouse).lines()) for one in (1, 3))
    assert "it was allowed on the device" in allowed
    assert "(consent push-3 to marketing by push)" in withdrew


@pytest.mark.parametrize("category", ["marketing", "transactional"])
def test_the_warehouse_and_a_looked_up_profile_say_the_same(
    world: tuple[Warehouse, SenderSettings], category: str
) -> None:
    """All ways in which somebody may be known, on every channel, by SQL and by `refusal`."""
    warehouse = world[0]
    addresses = (None, "+447700900001", "+1", "07700 900001", "")
    tokens = (None, "t")
    consents: tuple[tuple[str, ...], ...] = ((), ("email", "sms", "push"), ("-email", "-sms", "-push"))
    stops = ("", "unsubscribed", "global", "bounced", "number")
    profiles: list[dict[str, Any]] = []
    rows: list[tuple[str, pl.DataFrame]] = []
    for number, (phone, token, said, stopped, email, is_deleted) in enumerate(
        product(addresses, tokens, consents, stops, ("c{}@example.com", "no address"), (False, True))
    ):
        address = email.format(number)
        own = f"+4477{number:08d}" if phone == "+447700900001" else phone
        is_number_stopped = stopped == "number" and own == f"+4477{number:08d}"
        has_mail_stop = stopped in ("unsubscribed", "global", "bounced") and "@" in address
        is_silenced = stopped == "global" and has_mail_stop
        profiles.append(
            {
                "contact_id": number, "email": address, "phone": own, "push_token": token, "is_deleted": is_deleted,
                "is_suppressed": has_mail_stop, "is_sms_suppressed": is_number_stopped or is_silenced,
                "is_push_suppressed": is_silenced, "has_marketing_consent": "email" in said,
                "has_sms_consent": "sms" in said,
                "has_push_consent": "push" in said or ("-push" not in said and token is not None),
                "dead": {"email": stopped == "bounced" and has_mail_stop, "sms": is_number_stopped, "push": False},
            }
        )  # fmt: skip
        for name in said:
            channel = name.removeprefix("-")
            rows.append(("consents", pl.DataFrame([{
                "contact_id": number, "consent_id": f"{channel}-{number}", "channel": channel, "purpose": "marketing",
                "is_granted": not name.startswith("-"), "occurred_at": datetime(2026, 1, 1, tzinfo=UTC),
            }])))  # fmt: skip
        if has_mail_stop or is_number_stopped:
            rows.append(("suppressions", pl.DataFrame([{
                "event_id": f"e{number}", "channel": "sms" if is_number_stopped else "email",
                "email": "" if is_number_stopped else address, "phone": own if is_number_stopped else "",
                "reason": "bounced" if stopped == "bounced" else "unsubscribed", "is_bounced": stopped == "bounced",
                "is_global": is_silenced, "suppressed_at": datetime(2026, 1, 1, tzinfo=UTC),
            }])))  # fmt: skip
    warehouse.insert("marts.contact_profiles", pl.DataFrame(profiles, infer_schema_length=None).drop("dead"))
    for table in ("consents", "suppressions"):
        warehouse.insert(f"marts.{table}", pl.concat([frame for name, frame in rows if name == table]))
    reasons: set[str] = set()
    for channel in CHANNELS:
        send = SendSpec.model_validate(
            {"channel": channel, "template": "flash", "category": category, "subject": "s"}
        )
        recipients = Recipients(warehouse, send, clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
        judged = recipients.judged("select contact_id from marts.contact_profiles")
        found = dict(
            warehouse.frame(
                f"select contact_id, skip_reason from ({judged}) settings join_use_nulls = 0",
                recipients.parameters(),
            ).iter_rows()
        )
        # ClickHouse gives 0 as an id to what it does not find, and no contact has it
        expected = {
            one["contact_id"]: refusal(
                channel,
                category,
                one,
                lambda one=one, channel=channel: one["dead"][CHANNELS[channel].consent],
            )
            for one in profiles
            if one["contact_id"]
        }
        found.pop(0)
        assert found == expected, channel
        reasons |= set(expected.values())
    assert reasons == {
        "",
        "deleted",
        "invalid",
        "suppressed",
        *(["no_consent"] if category == "marketing" else []),
    }


def test_a_profile_without_the_column_is_an_error(world: tuple[Warehouse, SenderSettings]) -> None:
    world[0].execute("alter table marts.contact_profiles drop column phone settings mutations_sync = 1")
    with pytest.raises(InputError, match="go to the column phone"):
        prepared(world, "sms", "twilio")
