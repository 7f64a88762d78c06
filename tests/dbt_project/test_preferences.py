"""What the preference centre writes, the models read: what it shows is what a campaign would find."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from models import PREFIX, Models

from campaigns.consents import consent_log
from gateway.preferences import PAUSE, Grant, PreferenceCentre
from gateway.settings import GatewaySettings
from gateway.unsubscribes import Recipient, Unsubscribes
from senders.ledger import Ledger

pytestmark = pytest.mark.slow
EMAIL, SMS = ("marketing", "email"), ("marketing", "sms")


@pytest.fixture
def centre(models: Models, tmp_path: Path) -> Iterator[PreferenceCentre]:
    """The centre over the project's own models, which are built once."""
    models.clear()
    models.now = datetime.now(UTC)
    models.contact("1", "ann@example.com", "01-01")
    models.contact("1", "ann@new.example", "02-01")
    models.consent("ann@example.com", "01-03")
    models.contact("2", "bob@example.com", "01-01")
    models.consent("bob@example.com", "01-03")
    models.build(
        "--exclude-resource-type", "unit_test", "test", "--select", "+consents", "+suppressions", "+contacts"
    )
    # the centre reads the databases as they are called in production
    models.warehouse.execute("create database if not exists marts")
    for name in ("consents", "suppressions"):
        models.warehouse.execute(f"create or replace view marts.{name} as select * from {PREFIX}marts.{name}")
    content = tmp_path / "content"
    content.mkdir()
    (content / "preferences.yaml").write_text(
        "purposes:\n  marketing: {title: News, channels: [email, sms]}\n"
    )
    settings = GatewaySettings(
        home=tmp_path, content_dir=content, warehouse_port=models.settings.warehouse_port
    )
    with Ledger.open(settings) as ledger:
        unsubscribes = Unsubscribes(settings, ledger, models.warehouse, lambda _: None)
        yield PreferenceCentre(settings, models.warehouse, unsubscribes)
    models.warehouse.execute("drop database marts")


def person(models: Models, address: str) -> Recipient:
    contact = models.value(f"select contact_id from marts.contacts where email = '{address}'")
    return Recipient("00000000-0000-5000-8000-000000000001", address, int(contact))


def reached(models: Models, who: Recipient) -> set[str]:
    """The channels by which a campaign would reach somebody, as `campaigns.audience` judges."""
    return {
        channel
        for (channel,) in models.rows(
            f"select channel from marts.consents where contact_id = {who.contact_id} and purpose = 'marketing'"
            f" and is_granted and '{who.email}' not in (select email from marts.suppressions where is_global)"
            f" and (channel != 'email' or '{who.email}' not in (select email from marts.suppressions))"
        )
    }


def test_the_page_and_the_campaigns_agree(centre: PreferenceCentre, models: Models) -> None:
    ann, bob = person(models, "ann@new.example"), person(models, "bob@example.com")

    def shown() -> set[str]:
        preferences = centre.read(ann)
        found = {one.pair[1] for one in preferences.granted}
        assert found == reached(models, ann)
        return found

    # the consent was given under an address of before
    assert shown() == {"email"}
    centre.save(ann, [EMAIL, SMS])
    assert shown() == {"email", "sms"}
    centre.save(ann, [SMS])
    assert shown() == {"sms"}
    centre.stop(ann)
    assert shown() == set()
    # an unsubscribe in between, from another message, by a mailbox provider
    centre.save(ann, [EMAIL, SMS])
    assert shown() == {"email", "sms"}
    centre.unsubscribes.unsubscribe(Recipient("00000000-0000-5000-8000-000000000002", *_of(ann)), "one_click")
    # of mail: text messages go on
    assert shown() == {"sms"}
    centre.save(ann, [EMAIL])
    assert shown() == {"email"}
    paused = centre.pause(ann)
    assert paused.paused_until is not None and shown() == set()
    # nobody else is touched
    assert reached(models, bob) == {"email"}

    # when the pause is over, all is as it was
    models.warehouse.execute(
        "alter table raw.consents update properties = cast(replace(toJSONString(properties), substring("
        "toString(properties.paused_until), 1, 4), '2020'), 'JSON') where basis = 'pause' settings mutations_sync = 1"
    )
    assert shown() == {"email"}
    assert centre.read(ann).paused_until is None
    centre.pause(ann)
    assert shown() == set()
    centre.stop(ann)
    assert shown() == set()
    assert PAUSE.days == 30

    # a subscription that was confirmed lifts it, and brings back what was confirmed alone
    row = {
        "consent_id": "gateway:subscribe:1:marketing", "source": "gateway", "email": ann.email, "channel": "email",
        "purpose": "marketing", "is_granted": True, "basis": "double_opt_in", "occurred_at": centre.settings.now(),
    }  # fmt: skip
    assert centre.grant(ann, [Grant(EMAIL, row)])
    centre.unsubscribes.store(ann, "gateway:subscribed:gateway:subscribe:1", "subscribed", "subscription")
    assert shown() == {"email"}

    # the log knows a person by all their addresses
    models.warehouse.execute("create database if not exists intermediate")
    models.warehouse.execute(
        "create or replace view intermediate.int_contacts__identified as"
        f" select * from {PREFIX}intermediate.int_contacts__identified"
    )
    log = consent_log(models.warehouse, contact_id=ann.contact_id)
    models.warehouse.execute("drop database intermediate")
    assert {entry["email"] for entry in log} == {"ann@example.com", "ann@new.example"}
    [current] = [one for one in log if one["is_current"] and (one["purpose"], one["channel"]) == EMAIL]
    assert current["basis"] == "double_opt_in"


def _of(who: Recipient) -> tuple[str, int]:
    return who.email, who.contact_id
