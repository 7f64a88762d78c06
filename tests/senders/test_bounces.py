"""Bounces and complaints: what real mail servers wrote, what they mean, and what becomes of them."""

from __future__ import annotations

import imaplib
import json
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from senders.bounce_intake import escalate, ingest_bounces
from senders.bounces import bounce_class_of, parse
from senders.export import export_messages
from senders.ledger import PLAN_COLUMNS, Claim, Ledger, Outcome
from senders.message import EventType, Status
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.embedded.launcher import free_port
from warehouse.errors import InputError, SettingsError
from warehouse.loads import load_events
from warehouse.settings import MailhouseSettings

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED = json.loads((FIXTURES / "bounces_expected.json").read_text())
ID = "0b6f0c5e-7a0e-5b0e-8a53-2d6a3c1c7d10"
#: Given up, and yet no fault of the address: full, too large, timed out, or refused for what was written.
GIVEN_UP_SOFTLY = {
    "aol_01", "dsn_02", "hotpop_01", "postfix_03", "postfix_05", "qmail_02", "qmail_06", "simple_01", "simple_07",
    "simple_09", "simple_45", "yahoo_02", "yahoo_04",
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_real_bounces(name: str) -> None:
    expected = EXPECTED[name]
    reports = [one for one in parse((FIXTURES / "bounces" / name).read_bytes()) if one.email]
    for is_permanent, key in ((True, "permanent"), (False, "temporary")):
        found = sorted({one.email for one in reports if one.is_permanent == is_permanent})
        assert found == sorted(address.lower() for address in expected[key])
    is_soft = name.removesuffix(".txt") in GIVEN_UP_SOFTLY
    for one in reports:
        assert one.bounce_class == ("soft" if is_soft or not one.is_permanent else "hard")
        assert one.type == (EventType.BOUNCED if one.is_permanent else EventType.DEFERRED)


def test_complaints() -> None:
    (simple,) = parse((FIXTURES / "arf" / "rfc5965_b1_simple.eml").read_bytes())
    assert (simple.type, simple.email, simple.diagnostic) == (EventType.COMPLAINED, "", "abuse")
    (full,) = parse((FIXTURES / "arf" / "rfc5965_b2_full.eml").read_bytes())
    assert (full.type, full.email) == (EventType.COMPLAINED, "user@example.com")
    raw = (FIXTURES / "arf" / "rfc5965_b1_simple.eml").read_bytes()
    ours = raw.replace(b"8787KJKJ3K4J3K4J3K4J3.mail@example.net", f"<{ID}@example.net>".encode())
    assert parse(ours)[0].message_id == ID
    assert parse(raw.replace(b"Feedback-Type: abuse", b"Feedback-Type: not-spam")) == []
    assert (
        parse(raw.replace(b"Feedback-Type: abuse", b"Feedback-Type: opt-out"))[0].type
        == EventType.UNSUBSCRIBED
    )


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("550 5.1.1 no such user", "hard"), ("550 5.1.1 mailbox full", "hard"), ("552 5.2.2 over quota", "soft"),
        ("550 5.7.1 spam from unknown user", "soft"), ("550 user unknown", "hard"), ("550 blocked by policy", "soft"),
        ("554 transaction failed", "soft"), ("550 5.2.1 mailbox disabled", "hard"), ("451 4.7.1 greylisted", "soft"),
        ("550 5.0.0 no such mailbox", "hard"), ("550-10.1.1.5 refused, no such user", "hard"), ("", "hard"),
    ],
)  # fmt: skip
def test_classes(reply: str, expected: str) -> None:
    assert bounce_class_of(reply) == expected
    assert bounce_class_of(reply, is_permanent=False) == "soft"


def dsn(
    address: str, *, status: str = "5.1.1", to: str = "bounce@shop.example", message_id: str = ID
) -> bytes:
    """A delivery status report on one recipient, as servers write it today."""
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S +0000")
    return (
        f"From: MAILER-DAEMON@mx.example\r\nTo: {to}\r\nSubject: Undelivered\r\nDate: {date}\r\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="b"\r\nMIME-Version: 1.0\r\n\r\n'
        "--b\r\nContent-Type: text/plain\r\n\r\nIt could not be delivered.\r\n"
        "--b\r\nContent-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mx.example\r\n\r\n"
        f"Final-Recipient: rfc822; {address}\r\nAction: failed\r\nStatus: {status}\r\n"
        f"Diagnostic-Code: smtp; 550 {status} refused\r\n\r\n"
        f"--b\r\nContent-Type: text/rfc822-headers\r\n\r\nMessage-ID: <{message_id}@shop.example>\r\n\r\n--b--\r\n"
    ).encode()


def test_our_messages_are_recognised() -> None:
    (report,) = parse(dsn("Ann@X.example"))
    assert (report.email, report.message_id, report.status) == ("ann@x.example", ID, "5.1.1")
    other = "11111111-2222-5333-8444-555555555555"
    (report,) = parse(dsn("a@x.example", to=f"bounce+{other.replace('-', '')}@shop.example"))
    assert report.message_id == other
    assert parse(dsn("a@x.example", message_id="none"))[0].message_id == ""


def test_what_people_write_is_no_bounce() -> None:
    letter = b"From: ann@x.example\nTo: shop@y.example\nSubject: My order\n\nI could not pay. Write to bob@x.example."
    assert parse(letter) == []


@given(st.binary(max_size=300), st.sampled_from(sorted(EXPECTED)), st.integers(0, 2000))
def test_nothing_that_comes_in_breaks_it(noise: bytes, name: str, place: int) -> None:
    raw = (FIXTURES / "bounces" / name).read_bytes()
    for report in parse(raw[:place] + noise + raw[place:]) + parse(noise):
        assert report.type in EventType


@pytest.fixture
def sender(settings: MailhouseSettings) -> SenderSettings:
    """Settings with a folder of bounces, on the shared warehouse."""
    folder = settings.home / "bounced"
    folder.mkdir()
    return with_bounces(settings, bounce_folder=folder, bounce_soft_limit=3)


def with_bounces(settings: MailhouseSettings, **more: object) -> SenderSettings:
    """The settings, some of them changed."""
    return SenderSettings(**(settings.model_dump() | more))  # pyright: ignore[reportArgumentType]


def events(warehouse: Warehouse) -> pl.DataFrame:
    return warehouse.frame(
        "select type::String as type, email, message_id, source::String as source, "
        "properties.bounce_class::String as bounce_class from raw.events order by email, type, bounce_class"
    )


def test_a_folder_becomes_events_once(sender: SenderSettings, warehouse: Warehouse) -> None:
    folder = sender.bounce_folder
    assert folder is not None
    (folder / "1.eml").write_bytes(dsn("a@x.example"))
    (folder / "2.eml").write_bytes(dsn("b@x.example", status="5.2.2"))
    (folder / "3.eml").write_bytes((FIXTURES / "arf" / "rfc5965_b2_full.eml").read_bytes())
    (folder / "4.eml").write_bytes(b"Subject: hello\n\nnothing")
    with Ledger.open(sender) as ledger:
        intake = ingest_bounces(sender, warehouse, ledger)
        assert (intake.read, intake.events, intake.unreadable) == (4, Counter(bounced=2, complained=1), 1)
        assert sorted(path.name for path in (folder / "done").iterdir()) == [
            "1.eml",
            "2.eml",
            "3.eml",
            "4.eml",
        ]
        # as after a crash between loading and putting aside
        for path in (folder / "done").iterdir():
            path.rename(folder / path.name)
        again = ingest_bounces(sender, warehouse, ledger)
        assert (again.read, again.events.total(), again.duplicates) == (4, 0, 3)
    assert events(warehouse).rows() == [
        ("bounced", "a@x.example", ID, "bounces", "hard"), ("bounced", "b@x.example", ID, "bounces", "soft"),
        ("complained", "user@example.com", "", "bounces", ""),
    ]  # fmt: skip


def test_a_maildir_and_a_folder_that_is_not_there(sender: SenderSettings, warehouse: Warehouse) -> None:
    folder = sender.bounce_folder
    assert folder is not None
    for name in ("new", "cur", "tmp"):
        (folder / name).mkdir()
    (folder / "new" / "1.host").write_bytes(dsn("a@x.example"))
    with Ledger.open(sender) as ledger:
        assert ingest_bounces(sender, warehouse, ledger).events == {"bounced": 1}
        assert (folder / "cur" / "1.host:2,S").exists()
        missing = sender.model_copy(update={"bounce_folder": folder / "nowhere"})
        with pytest.raises(InputError, match="MAILHOUSE_BOUNCE_FOLDER"):
            ingest_bounces(missing, warehouse, ledger)


def test_soft_bounces_on_many_days_become_a_hard_one(sender: SenderSettings, warehouse: Warehouse) -> None:
    now = datetime.now(UTC)

    def soft(address: str, days: list[float]) -> None:
        load_events(
            warehouse,
            pl.DataFrame(
                {
                    "event_id": [f"{address} {day}" for day in days], "type": ["bounced"] * len(days),
                    "email": [address] * len(days), "occurred_at": [now - timedelta(days=day) for day in days],
                    "properties": ['{"bounce_class": "soft"}'] * len(days), "source": ["sendgrid"] * len(days),
                }
            ).with_columns(pl.col("occurred_at").cast(pl.Datetime("ms", "UTC"))),
        )  # fmt: skip

    soft("Often@x.example", [1, 5, 9])
    soft("seldom@x.example", [1, 5, 50])
    soft("oneday@x.example", [1, 1.00001, 1.00002])
    assert escalate(sender, warehouse) == 1
    assert escalate(sender, warehouse) == 0
    hard = events(warehouse).filter(pl.col("bounce_class") == "hard")
    assert hard["email"].to_list() == ["often@x.example"]
    assert escalate(sender.model_copy(update={"bounce_soft_limit": 0}), warehouse) == 0


def test_a_refusal_at_once_is_a_bounce_too(sender: SenderSettings, warehouse: Warehouse) -> None:
    now = datetime.now(UTC)
    plan = {**dict.fromkeys(PLAN_COLUMNS, ""), "kind": "campaign", "name": "offer", "provider": "smtp"}
    emails = ["No@x.example", "spam@x.example", "ok@x.example", "api@x.example"]
    with Ledger.open(sender) as ledger:
        run = ledger.begin_run("campaign", "offer", "", now)
        rows = ledger.claim(
            run, Claim(plan, ["1", "2", "3", "4"], [1, 2, 3, 4], emails, [""] * 4, ["{}"] * 4), now
        ).rows
        ledger.dispatch(run, list(rows.values()), now)
        ledger.record(
            run,
            [
                Outcome(rows[0], Status.REJECTED, "invalid", reply="550 5.1.1 no such user"),
                Outcome(rows[1], Status.REJECTED, "blocked", reply="554 5.7.1 spam"),
                Outcome(rows[2], Status.SENT, reply="250 ok"),
                Outcome(rows[3], Status.REJECTED, "invalid", reply="address refused"),
            ],
            now,
        )
        assert export_messages(ledger, warehouse) == 4
    assert events(warehouse).rows() == [("bounced", "no@x.example", "1", "smtp", "hard")]


@pytest.fixture
def imap_url() -> Iterator[str]:
    """Dovecot with one mailbox, on loopback."""
    if not shutil.which("dovecot"):
        pytest.skip("there is no Dovecot here; `apt-get install -y dovecot-imapd` brings it")
    if os.getuid():
        pytest.skip("Dovecot starts as root only")
    port = free_port()
    home = Path(tempfile.mkdtemp(prefix="mailhouse-imap-"))
    home.chmod(0o755)
    user = pwd.getpwnam("nobody")
    (home / "mail").mkdir()
    os.chown(home / "mail", user.pw_uid, user.pw_gid)
    (home / "users").write_text(f"bounces:{{PLAIN}}se/cret:{user.pw_uid}:{user.pw_gid}::{home}/mail::\n")
    (home / "dovecot.conf").write_text(
        f"base_dir = {home}/run\nlog_path = {home}/log\nprotocols = imap\nlisten = 127.0.0.1\nssl = no\n"
        f"disable_plaintext_auth = no\nfirst_valid_uid = 1\nmail_location = maildir:{home}/mail\n"
        f"passdb {{\n driver = passwd-file\n args = {home}/users\n}}\n"
        f"userdb {{\n driver = passwd-file\n args = {home}/users\n}}\n"
        "service imap-login {\n chroot =\n"
        f" inet_listener imap {{\n port = {port}\n }}\n inet_listener imaps {{\n port = 0\n }}\n}}\n"
        "service anvil {\n chroot =\n}\n"
    )
    process = subprocess.Popen(["dovecot", "-F", "-c", str(home / "dovecot.conf")], stderr=subprocess.DEVNULL)
    try:
        for _ in range(50):
            try:
                with imaplib.IMAP4("127.0.0.1", port, timeout=5) as client:
                    client.login("bounces", "se/cret")
                    contents = (
                        dsn("a@x.example"),
                        dsn("b@x.example", status="5.2.2"),
                        b"Subject: hi\r\n\r\nhello",
                    )
                    for content in contents:
                        client.append("INBOX", "", imaplib.Time2Internaldate(time.time()), content)
                break
            except (OSError, imaplib.IMAP4.error):
                assert process.poll() is None, (home / "log").read_text()[-500:]
                time.sleep(0.1)
        yield f"imap://bounces:se%2Fcret@127.0.0.1:{port}/INBOX"
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.service
def test_a_mailbox_becomes_events_once(sender: SenderSettings, warehouse: Warehouse, imap_url: str) -> None:
    own = with_bounces(sender, bounce_folder=None, bounce_imap_url=imap_url)
    with Ledger.open(own) as ledger:
        intake = ingest_bounces(own, warehouse, ledger)
        assert (intake.read, intake.events, intake.unreadable) == (3, Counter(bounced=2), 1)
        assert ingest_bounces(own, warehouse, ledger).read == 0
        with pytest.raises(InputError, match="The mailbox of bounces") as caught:
            url = imap_url.replace("se%2Fcret", "hunter2")
            ingest_bounces(with_bounces(own, bounce_imap_url=url), warehouse, ledger)
        assert "hunter2" not in str(caught.value)
        with pytest.raises(SettingsError, match="MAILHOUSE_BOUNCE_IMAP_URL"):
            ingest_bounces(with_bounces(own, bounce_imap_url="http://u:hunter2@h"), warehouse, ledger)


def test_a_subject_in_broken_base64_breaks_nothing() -> None:
    assert parse(b"From: mailer-daemon@example.org\r\nSubject: =?utf-8?b?/0JLQ?=\r\n\r\nHello\r\n") == []
