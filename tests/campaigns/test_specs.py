from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from campaigns.specs import (
    CampaignSpec,
    Schedule,
    check_references,
    is_due,
    load_campaigns,
    next_occurrence,
    occurrence,
    segment_version,
)
from warehouse.errors import InputError
from warehouse.yaml_specs import format_duration, load_spec, parse_duration

GOOD = """\
campaign: win_back
description: A campaign.
audience: {segment: at_risk}
schedule:
  cron: "0 9 * * mon"
  timezone: Europe/London
goal: {event: order.placed, within: 14d}
send:
  template: win_back
  category: marketing
  subject: "Hello {{ contact.first_name | default('there') }}"
cap: {messages: 3, within: 7d}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A content folder that messages show as it is: relative to the working directory."""
    (tmp_path / "content/campaigns").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "content"


def refusal(folder: Path, text: str | bytes, name: str = "win_back.yaml") -> tuple[str, str]:
    """Message and fix of the error that a file gets."""
    path = folder / "campaigns" / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as error:
        load_campaigns(folder)
    return error.value.message, error.value.fix


def test_a_campaign_is_read(folder):
    (folder / "campaigns/win_back.yaml").write_text(GOOD)
    spec = load_campaigns(folder)["win_back"]
    assert spec.audience.segment == "at_risk"
    assert spec.goal is not None and spec.goal.within == timedelta(days=14)
    assert spec.cap is not None and spec.cap.messages == 3
    assert spec.place("send", "subject") == "content/campaigns/win_back.yaml:11"


PLACE = "content/campaigns/win_back.yaml"
MISTAKES = [
    (
        ("  template: win_back", "  templat: win_back"),
        f"{PLACE}:9: send.templat is no key here.",
        "Did you mean template? Allowed: channel, template, category, purpose, subject, preheader, provider,"
        " from_name, from_email, reply_to, track, utm, attachments, recommendations, provider_tracking, hold,"
        " cancellable.",
    ),
    (
        ("  category: marketing\n", ""),
        f"{PLACE}:8: send.category is missing.",
        "category: marketing or transactional.",
    ),
    (
        ("category: marketing", "category: Marketing"),
        f"{PLACE}:10: send.category cannot be 'Marketing'.",
        "Did you mean marketing? Allowed: marketing, transactional.",
    ),
    (
        ("campaign: win_back", "campaign: winback"),
        f"{PLACE}:1: campaign is 'winback', but the file is win_back.yaml.",
        "Write campaign: win_back, or rename the file to winback.yaml.",
    ),
    (
        ("goal: {event: order.placed, within: 14d}", "goal: {event: order.placed, within: 14}"),
        f"{PLACE}:7: goal.within is no duration.",
        "Write a number and a unit, such as 30m, 24h, 7d or 2w.",
    ),
    (
        ("Europe/London", "Europe/Londn"),
        f"{PLACE}:6: schedule.timezone is no time zone: 'Europe/Londn'.",
        "Did you mean Europe/London? Allowed: Africa/Abidjan, Africa/Accra, Africa/Addis_Ababa and",
    ),
    (
        ('"0 9 * * mon"', '"0 9 * *"'),
        f"{PLACE}:5: schedule.cron has 4 fields.",
        "Write five fields: minute hour day month weekday, such as 0 9 * * mon.",
    ),
    (
        ('"0 9 * * mon"', '"0 9 31 2 *"'),
        f"{PLACE}:5: schedule.cron '0 9 31 2 *' is no schedule (Bad day-of-month).",
        "Write five fields",
    ),
    (
        ('  cron: "0 9 * * mon"\n', ""),
        f"{PLACE}:4: schedule needs either at or cron.",
        "Write one of the two.",
    ),
    (
        ("cap: {messages: 3", "cap: {messages: 0"),
        f"{PLACE}:12: cap.messages: input should be greater than or equal to 1.",
        "messages: how many, at least 1.",
    ),
    (
        ("description: A campaign.", "campaign: win_back"),
        f"{PLACE}:2: campaign is written twice, first on line 1.",
        "Keep one of them.",
    ),
    (
        ("subject: \"Hello {{", 'subject: "Hello\\r\\nBcc: b@example.com {{'),
        f"{PLACE}:11: send.subject must be one line.",
        "Write it without line breaks.",
    ),
    (
        ("subject: \"Hello {{ contact.first_name | default('there') }}\"", "subject: {{ contact.name }}"),
        f"{PLACE}:11: send.subject: a key must be a word.",
        "Write it as `key: value`.",
    ),
    (
        ("event: order.placed", "event: bought"),
        f"{PLACE}:7: goal.event 'bought' is no event type.",
        "Write noun.verb",
    ),
    (("  category:", "\tcategory:"), f"{PLACE}:10: this is not YAML: ", "Indent with spaces"),
    (
        ("audience: {segment: at_risk}", "audience: at_risk"),
        f"{PLACE}:3: audience must hold keys and values.",
        "Write key: value pairs. Keys: segment, where.",
    ),
    (
        ("{segment: at_risk}", "!!python/name:os.system {}"),
        f"{PLACE}:3: audience: tags such as ",
        "Remove the tag.",
    ),
    (
        ("{segment: at_risk}", "{segment: at_risk, where: countri = 'x' and}"),
        f"{PLACE}:3: audience.where, character 18: it ends here.",
        "Join conditions",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message", "fix"), MISTAKES)
def test_one_mistake_one_message(folder, change, message, fix):
    assert change[0] in GOOD
    found, hint = refusal(folder, GOOD.replace(*change))
    assert found.startswith(message), found
    assert "\n" not in found
    assert hint.startswith(fix), hint


def test_several_mistakes_in_the_order_of_the_files(folder):
    (folder / "campaigns/a.yaml").write_text("campaign: a\n")
    text = GOOD.replace("segment:", "segmnt:").replace("category: marketing", "category: x")
    message, fix = refusal(folder, text)
    lines = message.splitlines()
    assert [line.split(" ")[0] for line in lines] == [
        "content/campaigns/a.yaml:1:",
        "content/campaigns/a.yaml:1:",
        "content/campaigns/a.yaml:1:",
        f"{PLACE}:3:",
        f"{PLACE}:10:",
    ]
    assert "Did you mean segment?" in lines[3]
    assert fix == "Correct these 5 places."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"{PLACE}:1: the file is empty."),
        (b"- a\n- b\n", f"{PLACE}:1: the file does not hold keys and values."),
        (b"a: 1\nb: \xff\n", f"{PLACE}:2: this is not UTF-8."),
        (b"a: [1, 2\n", f"{PLACE}:2: this is not YAML: while parsing a flow sequence"),
        (b"a: 1\n---\nb: 2\n", f"{PLACE}:2: this is not YAML: expected a single document"),
        (b"a: &a [*a]\n", f"{PLACE}:1: a[1][1]: this nests or repeats too much."),
        (b"a: " + b"[" * 1_000, f"{PLACE}:1: this nests too deeply."),
        (b"a: " + b"x" * 2_000_000, f"{PLACE} has 2,000,003 bytes; at most 1,000,000 are read."),
    ],
)
def test_files_that_are_no_specs(folder, content, message):
    assert refusal(folder, content)[0].startswith(message)


def test_aliases_that_multiply_are_refused(folder):
    lines = ["a: &a [" + ",".join("1" * 10) + "]"]
    for before, after in zip("abcdefg", "bcdefgh", strict=True):
        lines.append(f"{after}: &{after} [" + ",".join([f"*{before}"] * 10) + "]")
    assert "this nests or repeats too much" in refusal(folder, "\n".join(lines))[0]


def test_a_file_that_would_be_overlooked(folder):
    message, fix = refusal(folder, GOOD, "win_back.yml")
    assert message == "content/campaigns/win_back.yml:1: it would be overlooked."
    assert fix == "Rename it to win_back.yaml."


def test_a_missing_file(folder):
    with pytest.raises(InputError, match=r"content/nothing\.yaml does not exist"):
        load_spec(folder / "nothing.yaml", CampaignSpec)


def test_a_mistake_in_a_long_condition_names_its_own_line(folder):
    where = "audience:\n  segment: at_risk\n  where: |\n    orders_count > 1\n    and countrry = 'France'\n"
    (folder / "campaigns/win_back.yaml").write_text(GOOD.replace("audience: {segment: at_risk}\n", where))
    specs = load_campaigns(folder)
    with pytest.raises(InputError) as error:
        check_references(specs, ["win_back"], ["at_risk"], ["orders_count", "country"])
    assert error.value.message == (
        f"{PLACE}:7: audience.where, character 5: countrry is no column of a contact's profile."
    )
    assert error.value.fix == "Did you mean country? Allowed: country, orders_count."


def test_references(folder):
    (folder / "campaigns/win_back.yaml").write_text(GOOD)
    specs = load_campaigns(folder)
    check_references(specs, ["win_back"], ["at_risk"])
    with pytest.raises(InputError) as error:
        check_references(specs, ["winback"], ["at_rsk", "champions"])
    assert error.value.message == (
        f"{PLACE}:3: audience.segment: there is no segment 'at_risk' in dbt_project/models/segments."
        " Did you mean at_rsk? Allowed: at_rsk, champions.\n"
        f"{PLACE}:9: send.template: there is no template 'win_back' in content/templates."
        " Did you mean winback? Allowed: winback."
    )


def test_the_version_follows_what_the_campaign_does(folder):
    def version(text: str) -> str:
        (folder / "campaigns/win_back.yaml").write_text(text)
        return load_campaigns(folder)["win_back"].version

    first = version(GOOD)
    assert len(first) == 12
    assert version("# a comment\n" + GOOD.replace("{segment: at_risk}", "\n  segment: at_risk")) == first
    assert version(GOOD.replace("A campaign.", "Another text.")) == first
    assert version(GOOD.replace("14d", "2w")) == first
    assert version(GOOD.replace("  template", "  channel: email\n  template")) == first
    assert version(GOOD.replace("Hello", "Hi")) != first
    assert version(GOOD.replace("messages: 3", "messages: 2")) != first


@given(st.timedeltas(min_value=timedelta(milliseconds=1), max_value=timedelta(days=3650)))
def test_durations_are_read_back(duration):
    duration -= timedelta(microseconds=duration.microseconds % 1000)
    if duration:
        assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    "text", ["", "7", "7 days", "d", "-7d", "7d and", "1.2.3d", "0d", "9999w", None, 7, True]
)
def test_what_is_no_duration(text):
    with pytest.raises(ValueError, match=r"duration|longer"):
        parse_duration(text)


def test_compound_durations():
    assert (
        parse_duration("1h 30m") == parse_duration("90m") == parse_duration("1.5h") == timedelta(minutes=90)
    )


ZONES = [
    "UTC",
    "Europe/London",
    "America/New_York",
    "Asia/Kolkata",
    "Australia/Lord_Howe",
    "America/Sao_Paulo",
]
CRONS = [
    "0 9 * * mon", "30 1 * * *", "30 2 * * sun", "0 */6 * * *", "*/20 * * * *", "15 0 1 * *", "0 0 L * *",
    "45 23 28-31 * *", "0 12 * 6 fri", "0 2 29 2 *",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(CRONS),
    st.sampled_from(ZONES),
    st.datetimes(datetime(2010, 1, 1), datetime(2026, 12, 31), timezones=st.just(UTC)),
)
def test_occurrence_is_the_newest_instant_not_after_now(cron, zone, now):
    schedule = Schedule(cron=cron, timezone=zone)
    found = schedule.latest(now)
    assert found is not None and found <= now and found.tzinfo == UTC
    # going forward from there, the next instant is beyond now
    following = schedule.following(found)
    assert following is not None and following > now
    assert schedule.following(now) == following
    assert schedule.latest(following) == following
    # it is one of the instants that a walk forward visits
    start = (found - timedelta(days=1)).astimezone(ZoneInfo(zone))
    for moment in CronSim(cron, start):
        if moment.astimezone(UTC) >= found:
            assert moment.astimezone(UTC) == found
            break


def spec_at(**schedule: object) -> CampaignSpec:
    return CampaignSpec.model_validate(
        {
            "campaign": "c",
            "audience": {"segment": "s"},
            "schedule": schedule,
            "send": {"template": "t", "category": "marketing", "subject": "x"},
        }
    )


def test_due_within_the_catch_up():
    spec = spec_at(cron="0 9 * * mon", timezone="Europe/London")
    nine = datetime(2011, 6, 27, 8, tzinfo=UTC)  # summer time
    assert occurrence(spec, nine) == nine
    assert occurrence(spec, nine - timedelta(milliseconds=1)) == nine - timedelta(days=7)
    assert is_due(spec, nine)
    assert is_due(spec, nine + timedelta(hours=24))
    assert not is_due(spec, nine + timedelta(hours=24, milliseconds=1))
    assert not is_due(spec, nine - timedelta(seconds=1))
    assert is_due(spec, nine + timedelta(days=2), catch_up=timedelta(days=3))
    winter = datetime(2011, 12, 5, 9, tzinfo=UTC)
    assert occurrence(spec, winter) == winter


def test_once_at_an_instant():
    spec = spec_at(at="2011-06-27T09:00:00", timezone="Europe/London")
    nine = datetime(2011, 6, 27, 8, tzinfo=UTC)
    assert occurrence(spec, nine - timedelta(seconds=1)) is None
    assert not is_due(spec, nine - timedelta(seconds=1))
    assert next_occurrence(spec, nine - timedelta(seconds=1)) == nine
    assert occurrence(spec, nine + timedelta(days=400)) == nine
    assert next_occurrence(spec, nine) is None
    assert occurrence(spec_at(at="2011-06-27T09:00:00+01:00"), nine) == nine


def test_segment_version(tmp_path):
    (tmp_path / "at_risk.sql").write_text("select 1")
    first = segment_version(tmp_path, "at_risk")
    assert first == "822ae07d4783"
    (tmp_path / "at_risk.sql").write_text("select 2")
    assert segment_version(tmp_path, "at_risk") != first
    with pytest.raises(InputError) as error:
        segment_version(tmp_path, "at_rsk")
    assert error.value.fix == "Did you mean at_risk? Allowed: at_risk."
