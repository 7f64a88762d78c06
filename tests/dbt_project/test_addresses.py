"""Where text and push messages go, and who may get them: through the models, first from nothing, then by increments."""

from __future__ import annotations

from datetime import timedelta

import pytest
from models import Models

SELECTED = (
    "--exclude-resource-type",
    "unit_test",
    "test",
    "--select",
    "+int_contacts__profiled",
    "suppressions",
)
COLUMNS = (
    "phone, push_token, is_suppressed, is_sms_suppressed, is_push_suppressed, has_sms_consent, has_push_consent,"
    " has_unusable_phone"
)


def by_email(models: Models) -> dict[str, tuple[object, ...]]:
    rows = models.rows(f"select email, {COLUMNS} from intermediate.int_contacts__profiled order by email")
    return {row[0]: row[1:] for row in rows}


def told(event_id: str, kind: str, email: str, at: str, **properties: object) -> dict[str, object]:
    return {"id": event_id, "type": kind, "email": email, "at": at, "properties": properties}


@pytest.mark.slow
def test_addresses_and_permissions_of_each_channel(models: Models) -> None:
    models.contact(
        "1", "ann@example.com", "01-01", phone="+44 20 7946 0018", mobilephone="+44 (0)7700 900001"
    )
    models.contact("2", "bob@example.com", "01-01", phone="07700 900002")
    models.contact("3", "cat@example.com", "01-01", Phone="0044 7700 900003", push_token="cat-1")
    models.contact("4", "dan@example.com", "01-01", phone="+44 7700 900004")
    models.contact("5", "", "01-01", phone="+44 7700 900005")
    models.events(
        told(
            "b", "contact.identified", "bob@example.com", "01-02", phone="+44 7700 900012", push_token="bob-1"
        ),
        told("stop", "unsubscribed", "", "01-03", phone="+447700900003"),
        told("mail", "unsubscribed", "ann@example.com", "01-03", channel="email"),
        told("all", "unsubscribed", "dan@example.com", "01-03", channel="all"),
    )
    for email in ("ann", "cat", "dan"):
        models.consent(f"{email}@example.com", "01-02", channel="sms")
    models.build(*SELECTED)
    assert by_email(models) == {
        "": ("+447700900005", None, False, False, False, False, False, False),
        # who unsubscribed from mail gets text messages
        "ann@example.com": ("+447700900001", None, True, False, False, True, False, False),
        # a token is the platform's opt-in; an event's number with a country outdoes a record's without
        "bob@example.com": ("+447700900012", "bob-1", False, False, False, False, True, False),
        "cat@example.com": ("+447700900003", "cat-1", False, True, False, True, True, False),
        "dan@example.com": ("+447700900004", None, True, True, True, True, False, False),
    }
    assert sorted(models.rows("select channel, email, phone, is_global from marts.suppressions")) == [
        ("email", "ann@example.com", "", False),
        ("email", "dan@example.com", "", True),
        ("sms", "", "+447700900003", False),
    ]

    models.contact("1", "ann@example.com", "02-01", phone="+44 20 7946 0018", mobilephone="07700 900001")
    models.contact("2", "bob@example.com", "02-01", phone="+44 7700 900022")
    models.events(
        told("start", "subscribed", "", "02-01", phone="+447700900003"),
        told("gone", "push.unregistered", "", "02-01", push_token="cat-1"),
        told("new", "push.registered", "ann@example.com", "02-01", push_token="bob-1"),
        told("back", "subscribed", "dan@example.com", "02-01"),
        told("nobody", "bounced", "", "02-01", phone="+447700900022", bounce_class="hard"),
        told("local", "contact.identified", "eve@example.com", "02-01", phone="555 0123"),
    )
    models.consent("ann@example.com", "02-02", channel="push", is_granted=False)
    models.consent("cat@example.com", "02-02", channel="sms", is_granted=False)
    models.build(*SELECTED, offset=timedelta(minutes=5))
    assert by_email(models) == {
        "": ("+447700900005", None, False, False, False, False, False, False),
        # the device is Ann's now, who said no to push messages; of her numbers the landline is left
        "ann@example.com": ("+442079460018", "bob-1", True, False, False, True, False, False),
        # the record says another number since, which does not exist
        "bob@example.com": ("+447700900022", None, False, True, False, False, False, False),
        "cat@example.com": ("+447700900003", None, False, False, False, False, False, False),
        "dan@example.com": ("+447700900004", None, False, False, False, True, False, False),
        "eve@example.com": (None, None, False, False, False, False, False, True),
    }
    assert models.rows("select channel, email, phone from marts.suppressions order by channel") == [
        ("email", "ann@example.com", ""),
        ("sms", "", "+447700900022"),
    ]
