"""Purposes of what is sent: what a file may name, and that campaigns are judged by it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from campaigns.audience import Recipients
from campaigns.consents import consents_of
from campaigns.journeys import load_journeys
from campaigns.permissions import unconsented_sql
from campaigns.purposes import PreferencesSpec
from campaigns.specs import SendSpec, load_campaigns
from campaigns.triggers import load_trigger, load_triggers
from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.yaml_specs import Spec

PREFERENCES = "purposes:\n  newsletter: {title: News}\n  offers: {title: Offers, channels: [email, sms]}\n"
SEND = "{{template: t, category: {category}, purpose: {purpose}, subject: Hello}}"
FILES = {
    "campaigns": "campaign: one\naudience: {{segment: all}}\nschedule: {{at: 2026-06-01T09:00, timezone: UTC}}\n"
    "send: {send}\n",
    "journeys": "journey: one\nentry: {{event: order.placed}}\nsteps:\n  - id: hello\n    send: {send}\n",
    "triggers": "trigger: one\nevent: order.placed\nsend: {send}\n",
}
LOADS = {"campaigns": load_campaigns, "journeys": load_journeys, "triggers": load_triggers}


def write(content: Path, kind: str, purpose: str, category: str = "marketing") -> Path:
    (content / kind).mkdir(parents=True, exist_ok=True)
    path = content / kind / "one.yaml"
    path.write_text(FILES[kind].format(send=SEND.format(category=category, purpose=purpose)))
    return path


@pytest.mark.parametrize("kind", list(FILES))
def test_a_purpose_is_one_that_people_are_offered(kind: str, tmp_path: Path) -> None:
    (tmp_path / "preferences.yaml").write_text(PREFERENCES)
    for purpose in ("newsletter", "offers", "marketing"):
        write(tmp_path, kind, purpose)
        [spec] = LOADS[kind](tmp_path).values()
        assert isinstance(spec, Spec)
    write(tmp_path, kind, "newsleter")
    with pytest.raises(InputError, match=r"one\.yaml:\d+.*purpose.*newsleter") as caught:
        LOADS[kind](tmp_path)
    assert "newsletter" in (caught.value.fix or "") and "offers" in (caught.value.fix or "")
    path = write(tmp_path, kind, "offers", "transactional")
    with pytest.raises(InputError, match="no purpose"):
        LOADS[kind](tmp_path)
    if kind == "triggers":
        with pytest.raises(InputError, match="no purpose"):
            load_trigger(path)


def test_another_purpose_is_another_version_and_none_is_as_before(tmp_path: Path) -> None:
    (tmp_path / "preferences.yaml").write_text(PREFERENCES)
    write(tmp_path, "campaigns", "offers")
    offers = load_campaigns(tmp_path)["one"]
    path = write(tmp_path, "campaigns", "x")
    path.write_text(path.read_text().replace("purpose: x, ", ""))
    plain = load_campaigns(tmp_path)["one"]
    assert plain.send.purpose is None and plain.version != offers.version


def test_words_have_a_version_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "preferences.yaml").write_text("version: june\n" + PREFERENCES)
    spec = PreferencesSpec.load(tmp_path)
    first = spec.subscription_text("newsletter", "Shop Ltd")
    assert "News" in first.content and "Shop Ltd" in first.content and len(first.digest) == 64
    assert first.version == f"subscribe-june-{first.digest[:8]}"
    assert spec.subscription_text("newsletter", "Other Ltd").version != first.version
    assert spec.choice_text("offers", "sms", "Offers", "").version.startswith("preferences-june-")


def test_campaigns_and_real_time_ask_for_the_same_purpose(warehouse: Warehouse) -> None:
    """The batch's query and the look-up of triggers, over the same rows."""
    for statement in (
        "create database if not exists marts",
        "create table marts.contact_profiles (contact_id Int64, email String, phone String, is_deleted Bool,"
        " timezone String) engine = Memory",
        "create table marts.suppressions (email String, phone String, event_id String, is_bounced Bool,"
        " is_global Bool, suppressed_at DateTime64(3, 'UTC')) engine = Memory",
        "create table marts.consents (contact_id Int64, consent_id String, channel String, purpose String,"
        " is_granted Bool, occurred_at DateTime64(3, 'UTC')) engine = Memory",
    ):
        warehouse.execute(statement)
    try:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        warehouse.insert(
            "marts.contact_profiles",
            pl.DataFrame(
                {
                    "contact_id": [1, 2, 3],
                    "email": [f"p{one}@example.com" for one in (1, 2, 3)],
                    "phone": ["+447700900123"] * 3,
                    "is_deleted": [False] * 3,
                    "timezone": [""] * 3,
                }
            ),
        )
        rows = [
            (1, "email", "newsletter", True), (1, "email", "marketing", False), (2, "email", "marketing", True),
            (2, "sms", "offers", True), (3, "email", "offers", True), (3, "email", "newsletter", False),
        ]  # fmt: skip
        warehouse.insert(
            "marts.consents",
            pl.DataFrame(
                [(*row, f"c{at_}", at) for at_, row in enumerate(rows)],
                schema={
                    "contact_id": pl.Int64, "channel": pl.String, "purpose": pl.String, "is_granted": pl.Boolean,
                    "consent_id": pl.String, "occurred_at": pl.Datetime("ms", "UTC"),
                },
                orient="row",
            ),
        )  # fmt: skip
        for channel, purpose, reached in (
            ("email", "newsletter", {1}), ("email", None, {2}), ("email", "offers", {3}), ("sms", "offers", {2}),
            ("sms", "newsletter", set[int]()),
        ):  # fmt: skip
            send = SendSpec.model_validate(
                {
                    "channel": channel,
                    "template": "t",
                    "category": "marketing",
                    "subject": "s",
                    "purpose": purpose,
                }
            )
            people = Recipients(warehouse, send, clock=lambda: at)
            judged = people.judge([1, 2, 3])
            assert set(judged.filter(pl.col("skip_reason") == "")["contact_id"]) == reached
            found = consents_of(warehouse, channel, purpose, [1, 2, 3])
            assert {one for one, (_, is_granted) in found.items() if is_granted} == reached
            assert {one: consent for one, (consent, _) in found.items()} == {
                row["contact_id"]: row["consent_id"] for row in judged.to_dicts() if row["consent_id"]
            }
            # counted the second way, the check before a send finds nobody
            left = people.judged("select contact_id from marts.contact_profiles", ", profile.phone as phone")
            assert not warehouse.value(
                f"select count() from ({left}) where skip_reason = '' and {unconsented_sql(channel)}"
                " settings join_use_nulls = 0",
                people.parameters(),
            )
    finally:
        warehouse.execute("drop database marts")
