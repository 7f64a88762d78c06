"""Machines are told from people by versioned rules; another version and a backfill change what counts, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from models import Models, moment

CORE = ("+int_contacts__profiled", "+messages", "+events", "+suppressions")


def clicked(number: str, at: str, message: str, **properties: Any) -> dict[str, Any]:
    return {
        "id": number,
        "type": "clicked",
        "at": moment(at.split(".")[0]) + timedelta(milliseconds=int(at.partition(".")[2] or 0)),
        "email": f"{message}@example.com",
        "message_id": message,
        "properties": properties,
    }


EVENTS = (
    # a scanner that says nothing of itself follows every link at once
    clicked("b1", "06-20 10:00:00.000", "burst", url="/a"),
    clicked("b2", "06-20 10:00:00.900", "burst", url="/b"),
    clicked("b3", "06-20 10:00:01.900", "burst", url="/c"),
    clicked("b4", "06-20 11:00:00.000", "burst", url="/a"),
    # the same link three times is an impatient person, three links in six seconds a quick one
    clicked("p1", "06-20 10:00:00.000", "person", url="/a"),
    clicked("p2", "06-20 10:00:00.500", "person", url="/a"),
    clicked("p3", "06-20 10:00:01.500", "person", url="/a"),
    clicked("p4", "06-20 10:00:03.600", "person", url="/b"),
    clicked("p5", "06-20 10:00:06.000", "person", url="/c"),
    {"id": "d1", "type": "delivered", "at": "06-20 09:00:00", "message_id": "quick"},
    clicked("q1", "06-20 09:00:02.000", "quick", url="/a"),
    clicked("q2", "06-20 09:00:02.001", "quick", url="/a"),
    clicked("u1", "06-20 12:00:00.000", "scanned", url="/a", user_agent="Mozilla/5.0 (Barracuda Sentinel)"),
    clicked("v1", "06-20 12:00:00.000", "told", url="/a", is_machine=True),
    {
        **clicked("s1", "06-20 12:00:00.000", "stopped", user_agent="python-requests/2.32"),
        "type": "unsubscribed",
    },
)
PROVIDER_SAYS = {"v1"}
RULES_SAY = {"b1", "b2", "b3", "q1", "u1", "s1"}


@pytest.fixture(scope="module")
def built(models: Models) -> Iterator[Models]:
    """The events above, by the rules of today."""
    models.events(*EVENTS)
    models.build("--exclude-resource-type", "unit_test", "test", "--select", *CORE, "suppressions")
    yield models


def machines(models: Models) -> set[str]:
    return {row[0] for row in models.rows("select event_id from marts.events where is_machine")}


def scores(models: Models) -> dict[str, float]:
    return dict(models.rows("select email, engagement_score from intermediate.int_contacts__profiled"))


def test_rules_find_what_the_provider_does_not_say_and_a_version_takes_it_back(built: Models) -> None:
    assert machines(built) == PROVIDER_SAYS | RULES_SAY
    assert built.rows("select email from marts.suppressions") == []
    strict = scores(built)
    untouched = (
        "select event_id, identity_id, occurred_at, url, loads_count from marts.events order by event_id"
    )
    rows = built.rows(untouched)

    days = [built.value("select toString(max(loaded_on)) from marts.events")]
    # the views of today go by the version of today; the facts of a day when they are built again
    built.build(
        *("--exclude-resource-type", "unit_test", "test", "--select", *CORE, "suppressions"),
        load_days=days,
        machine_rule_version=1,
    )
    assert machines(built) == PROVIDER_SAYS
    assert built.rows("select email from marts.suppressions") == [("stopped@example.com",)]
    lenient = scores(built)
    # a score decays between the two builds, by far less than a click counts
    moved = {email for email in strict if abs(lenient[email] - strict[email]) > 0.01}
    assert {email.split("@")[0] for email in moved} == {*("burst", "quick", "scanned", "stopped")}
    assert built.rows(untouched) == rows
