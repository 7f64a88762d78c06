"""Small histories: identity, suppression, late and repeated events, who enters and leaves segments."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from models import PREFIX, Models, moment, order

EVENTS = "+events"
"""What identity and events need, and nothing more."""
SEGMENTS = "int_contacts__profiled+,+segment_memberships"
"""What only the clock moves, as far as stays need it."""


@pytest.fixture
def history(models: Models) -> Iterator[Models]:
    """Empty raw tables, no models."""
    models.clear()
    yield models


def profile(models: Models, email: str) -> dict[str, Any]:
    [row] = models.frame(f"select * from marts.contact_profiles where email = '{email}'").to_dicts()
    return row


@pytest.mark.slow
def test_a_change_of_email_keeps_the_person(history: Models) -> None:
    history.contact("1", "Ann@Example.com ", "01-01", first_name="Ann", country="France")
    history.contact("9", "gone@example.com", "01-01")
    history.contact("9", "gone@example.com", "02-01", is_deleted=True)
    history.events(
        order("100", "01-05", external_id="1"),
        {"id": "seen", "type": "page.viewed", "at": "01-06", "email": "visitor@example.com"},
        order("101", "01-07"),
    )
    history.consent("ann@example.com", "01-02")
    history.run()
    before = profile(history, "ann@example.com")
    visitor = profile(history, "visitor@example.com")
    assert before["orders_count"] == 1
    assert before["has_marketing_consent"]
    assert before["first_name"] == "Ann"
    assert visitor["orders_count"] == 0
    assert visitor["rfm_segment"] == ""
    assert visitor["recency_score"] is None
    assert profile(history, "gone@example.com")["is_deleted"]
    assert history.value("select countIf(contact_id is null) from marts.orders") == 1

    history.contact("1", "ann@example.org", "03-01", first_name="Ann", country="Spain")
    # the other CRM knows her by the first address, and the visitor turns out to be a customer
    history.contact("h-5", "ann@example.com", "03-02", source="hubspot", last_name="Smith")
    history.contact("2", "bob@example.com", "03-01")
    history.contact("2", "visitor@example.com", "03-02")
    history.events(order("102", "03-05", email="ann@example.org"), order("103", "03-06", external_id="1"))
    history.run(offset=timedelta(minutes=1))
    [after] = history.frame(
        f"select * from marts.contact_profiles where contact_id = {before['contact_id']}"
    ).to_dicts()
    assert after["orders_count"] == 3
    assert after["has_marketing_consent"]
    # of two CRMs the one that was changed last says what is so, where it says anything
    assert (after["email"], after["country"], after["last_name"]) == ("ann@example.com", "Spain", "Smith")
    bob = profile(history, "visitor@example.com")
    assert bob["contact_id"] != visitor["contact_id"]
    owner = "select contact_id from marts.events where event_id = 'seen'"
    assert history.value(owner) == bob["contact_id"], "an event moves when its address finds an owner"
    assert history.value("select count() from marts.contacts") == 3
    assert history.value("select count() from marts.contacts where email = ''") == 0


def test_suppression_counts_the_moment_it_is_stored(history: Models) -> None:
    history.contact("1", "ann@example.com", "01-01")
    history.contact("1", "ann@example.org", "02-01")
    history.build("--exclude-resource-type", "unit_test", "test", "--select", "+suppressions")
    stop = "select email, reason, event_id from marts.suppressions order by email"
    assert history.rows(stop) == []
    history.events(
        {"id": "e1", "type": "unsubscribed", "at": "03-01", "email": "Ann@Example.com"},
        {"id": "e2", "type": "bounced", "at": "03-02", "email": "soft@example.com", "bounce_class": "soft"},
        {"id": "e3", "type": "bounced", "at": "03-02", "email": "hard@example.com", "bounce_class": "hard"},
        {"id": "e4", "type": "clicked", "at": "03-02", "email": "scan@example.com", "is_machine": True},
        {"id": "e5", "type": "unsubscribed", "at": "03-02", "email": "scan@example.com", "is_machine": True},
    )
    expected = [
        ("ann@example.com", "unsubscribed", "e1"),
        ("ann@example.org", "unsubscribed", "e1"),
        ("hard@example.com", "bounced", "e3"),
    ]
    assert history.rows(stop) == expected
    history.events({"id": "e6", "type": "subscribed", "at": "04-01", "email": "ann@example.com"})
    assert history.rows(stop) == expected[2:]


@pytest.mark.slow
def test_machines_move_no_score_and_no_segment(history: Models) -> None:
    history.contact("1", "ann@example.com", "01-01")
    history.contact("2", "bob@example.com", "01-01")
    for number in range(8):
        history.events(
            {
                "id": f"m{number}",
                "type": "clicked",
                "at": f"06-2{number % 5}",
                "email": "ann@example.com",
                "is_machine": True,
            },
            {
                "id": f"p{number}",
                "type": "clicked",
                "at": f"06-2{number % 5}",
                "email": "bob@example.com",
                "is_machine": False,
            },
        )
    history.run()
    assert profile(history, "ann@example.com")["engagement_score"] == 0
    assert profile(history, "ann@example.com")["segments"] == []
    assert profile(history, "bob@example.com")["engagement_score"] > 20
    assert profile(history, "bob@example.com")["segments"] == ["engaged"]


@pytest.mark.slow
def test_a_stay_is_an_interval_and_coming_back_another(history: Models) -> None:
    for customer in range(1, 6):
        history.contact(str(customer), f"c{customer}@example.com", "01-01")
    history.events(
        order("1", "06-20", "500.00", external_id="1"), order("2", "05-01", "10.00", external_id="2")
    )
    stays = """
        select segment, email, valid_from, valid_to from marts.segment_memberships
        inner join (select contact_id, email from marts.contacts) as contacts using contact_id
        where segment = 'new_customers' order by email, valid_from
    """
    history.run()
    first = history.rows(stays)
    assert [(row[1], row[3]) for row in first] == [("c1@example.com", None), ("c2@example.com", None)]

    # five months on nobody is new any more, but for one whose order was late to arrive
    later = timedelta(days=150)
    history.events(order("3", "10-30", external_id="3"))
    history.run(offset=later)
    second = history.rows(stays)
    assert [row[1] for row in second] == ["c1@example.com", "c2@example.com", "c3@example.com"]
    assert second[0][3] is not None
    assert second[0][3] - second[0][2] > timedelta(days=149)
    assert second[2][3] is None

    # the clock is set back, as a rehearsal does; they are new again, and no interval runs backwards
    history.build("--select", SEGMENTS, command="run")
    third = history.rows(stays)
    assert [row[1] for row in third] == ["c1@example.com"] * 2 + ["c2@example.com"] * 2 + ["c3@example.com"]
    assert all(row[3] is None or row[3] > row[2] for row in third)
    assert third[1][2] > third[0][3]

    # a run that was killed while it noted changes leaves some of them for the next
    log = f"{PREFIX}intermediate.int_segments__changed"
    complete = history.rows(stays)
    history.warehouse.execute(
        f"delete from {log} where changed_at = (select max(changed_at) from {log}) and contact_id % 2 = 0"
    )
    history.build("--select", SEGMENTS, command="run", offset=timedelta(seconds=30))
    again = history.rows(stays)
    assert [(row[1], row[3] is None) for row in again] == [(row[1], row[3] is None) for row in complete]


@pytest.mark.slow
def test_messages_and_campaigns(history: Models) -> None:
    history.contact("1", "ann@example.com", "01-01")
    history.contact("2", "bob@example.com", "01-01")
    history.contact("3", "eve@example.com", "01-01")
    history.build("--exclude-resource-type", "unit_test", "test", "--select", EVENTS, "+contacts")
    people = dict(history.rows("select email, contact_id from marts.contacts"))
    rows = []
    for number, (email, status, reason) in enumerate(
        [
            ("ann@example.com", "sent", ""),
            ("bob@example.com", "sent", ""),
            ("eve@example.com", "skipped", "no_consent"),
        ]
    ):
        life = [("claimed", ""), (status, reason)] if status == "sent" else [(status, reason)]
        for sequence, (step, why) in enumerate(life):
            rows.append(
                {
                    "message_id": f"m{number}",
                    "sequence": sequence,
                    "status": step,
                    "reason": why,
                    "kind": "campaign",
                    "name": "win_back",
                    "occurrence": "2011-06-20T09:00:00Z",
                    "contact_id": people[email],
                    "email": email,
                    "channel": "email",
                    "changed_at": moment("06-20 09:00") + timedelta(seconds=sequence),
                    "details": "{}",
                }
            )
    frame = pl.DataFrame(rows).with_columns(
        pl.col("sequence").cast(pl.UInt32), pl.col("changed_at").cast(pl.Datetime("ms", "UTC"))
    )
    history.warehouse.insert("raw.messages", frame)
    # the ledger is copied again after a crash: a row that is there twice counts once
    history.warehouse.insert("raw.messages", frame.head(2))
    history.events(
        {"id": "d0", "type": "delivered", "at": "06-20 09:01", "message_id": "m0"},
        {"id": "o0", "type": "opened", "at": "06-20 10:00", "message_id": "m0", "is_machine": False},
        {"id": "o1", "type": "opened", "at": "06-20 11:00", "message_id": "m0", "is_machine": False},
        {"id": "d1", "type": "delivered", "at": "06-20 09:01", "message_id": "m1"},
        {"id": "x1", "type": "opened", "at": "06-20 09:02", "message_id": "m1", "is_machine": True},
        order("7", "06-21", "30.00", external_id="1"),
        order("8", "06-22", "12.50", external_id="2"),
    )
    history.build("--exclude-resource-type", "unit_test", offset=timedelta(minutes=1))
    [row] = history.frame("select * from marts.campaign_performance").to_dicts()
    counts = {name: row[name] for name in row if name.endswith("_count")}
    assert {name: count for name, count in counts.items() if count} == {
        "audience_count": 3,
        "sent_count": 2,
        "skipped_count": 1,
        "skipped_no_consent_count": 1,
        "delivered_count": 2,
        "opened_count": 1,
        "machine_opened_count": 1,
        "opens_count": 2,
        "machine_opens_count": 1,
        "converted_count": 2,
        "orders_count": 2,
    }
    assert (row["open_rate"], row["click_to_open_rate"], float(row["revenue"])) == (0.5, 0.0, 42.5)
    ann = profile(history, "ann@example.com")
    assert (ann["messages_sent_count"], ann["messages_opened_count"]) == (1, 1)
    assert "never_opened" in profile(history, "bob@example.com")["segments"]
    assert "never_opened" not in profile(history, "eve@example.com")["segments"]
    owner = "select distinct contact_id from marts.events where message_id = 'm0'"
    assert history.value(owner) == people["ann@example.com"], "a provider may name nothing but the message"
