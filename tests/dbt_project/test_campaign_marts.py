"""Marts of campaigns: random sendings beside a reference in Python; links, segments, list growth; increments."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from models import PREFIX, Models, moment, order

# all marts of campaigns are built several times over: minutes, so it is run with the slow tests
pytestmark = pytest.mark.slow

MARTS = ("path:models/marts/campaigns", "path:models/marts/deliverability")
UPSTREAM = (
    "+messages",
    "+contacts",
    "+events",
    "stg_consents__changes",
    "reputation_thresholds",
    "int_contacts__merged",
    "+campaign_conversions",
)
ORDERS = ("converted_count", "orders_count", "goal_reached_count")
COUNTING = ("path:models/intermediate/campaigns", *MARTS)
TABLES = (
    *("campaign_performance", "campaign_performance_by_segment", "campaign_performance_by_mailbox_provider"),
    *("campaign_performance_by_channel", "campaign_performance_by_day", "campaign_performance_by_hour"),
    *("campaign_activity", "campaign_links", "list_growth"),
    *("deliverability_by_day", "reputation", "bounce_reasons"),
)
DOMAINS = {"gmail.com": "gmail", "hotmail.co.uk": "outlook", "firm.example": "other"}
LINKS = ("https://shop.example/", "https://shop.example/sale?colour=red", "https://shop.example/unsubscribe")


class Sendings:
    """Random messages and what came of them: loaded into the warehouse, and kept for the reference."""

    def __init__(self, models: Models, seed: int) -> None:
        self.models = models
        self.dice = random.Random(seed)
        self.messages: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.people: list[tuple[str, int]] = []
        self.stays: list[tuple[str, int, datetime, datetime | None]] = []

    def join_segments(self) -> None:
        """Put everybody into some segments for a while, some of them until now."""
        for _, contact_id in self.people:
            for segment in self.dice.sample(["champions", "engaged", "new_customers"], 2):
                since = moment("04-20") + timedelta(minutes=self.dice.randrange(60_000))
                until = since + timedelta(minutes=self.dice.randrange(60_000))
                self.stays.append((segment, contact_id, since, self.dice.choice([None, until])))
        schema = {
            "segment": pl.String,
            "contact_id": pl.Int64,
            "valid_from": pl.Datetime("ms", "UTC"),
            "valid_to": pl.Datetime("ms", "UTC"),
        }
        frame = pl.DataFrame(self.stays, schema=schema, orient="row")
        self.models.warehouse.insert(f"{PREFIX}marts.segment_memberships", frame)

    def send(self, count: int, first_day: datetime, days: int) -> None:
        """Put messages of random campaigns into the ledger."""
        rows = []
        for _ in range(count):
            email, contact_id = self.dice.choice(self.people)
            number = len(self.messages)
            kind, name = self.dice.choice(
                [("campaign", "win_back"), ("campaign", "spring"), ("trigger", "hello")]
            )
            day = first_day + timedelta(days=self.dice.randrange(days))
            message = {
                "message_id": f"m{number}",
                "kind": kind,
                "name": name,
                "occurrence": f"{day:%F}" if kind == "campaign" else f"event-{number}",
                "variant": self.dice.choice(["", "b"]),
                "contact_id": contact_id,
                "email": email,
                "channel": "email",
                "provider": self.dice.choice(["smtp", "sendgrid"]),
                "segment": "champions",
                "status": self.dice.choices(["sent", "skipped", "failed", "unknown"], [8, 2, 1, 1])[0],
                "at": day + timedelta(minutes=self.dice.randrange(1440)),
            }
            message["reason"] = {
                "skipped": self.dice.choice(["no_consent", "suppressed", "frequency_cap", "deleted"]),
                "failed": self.dice.choice(["invalid", "blocked"]),
            }.get(message["status"], "")
            self.messages[message["message_id"]] = message
            for sequence, status in enumerate(("claimed", message["status"])):
                row = {key: value for key, value in message.items() if key != "at"}
                reason = message["reason"] if sequence else ""
                row.update(sequence=sequence, status=status, reason=reason, details="{}")
                row["changed_at"] = message["at"] + timedelta(seconds=sequence)
                rows.append(row)
        frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(
            pl.col("sequence").cast(pl.UInt32), pl.col("changed_at").cast(pl.Datetime("ms", "UTC"))
        )
        self.models.warehouse.insert("raw.messages", frame)

    def happen(self, count: int) -> None:
        """Put random events of random messages, some late, into the raw events."""
        sent = [message for message in self.messages.values() if message["status"] == "sent"]
        fresh = []
        for _ in range(count):
            message = self.dice.choice(sent)
            kind = self.dice.choices(
                ["delivered", "opened", "clicked", "bounced", "complained", "unsubscribed"],
                [8, 8, 6, 2, 1, 1],
            )[0]
            event = {
                "id": f"e{len(self.events) + len(fresh)}",
                "type": kind,
                "at": message["at"] + timedelta(minutes=1 + self.dice.randrange(20_000)),
                "message_id": message["message_id"],
                "source": message["provider"],
            }
            if kind in ("opened", "clicked", "unsubscribed"):
                event["is_machine"] = self.dice.random() < 0.4
            if kind == "clicked":
                event["url"] = self.dice.choice(
                    [
                        "https://Shop.example?utm_source=mail&gclid=1",
                        f"https://shop.example/sale?utm_campaign={message['name']}&colour=red#top",
                        f"https://shop.example:443/unsubscribe/{message['message_id']}-{'x' * 30}",
                    ]
                )
            if kind == "bounced":
                event["properties"] = {
                    "bounce_class": self.dice.choice(["hard", "soft"]),
                    "reject_reason": self.dice.choice(["bounced", "timed_out", "spam"]),
                }
            fresh.append(event)
        self.events += fresh
        self.models.events(*fresh)

    def reference(self) -> dict[tuple[str, ...], Counter[str]]:
        """Counts by kind, campaign, occurrence and variant, told from what was loaded."""
        by_message = defaultdict(list)
        for event in self.events:
            by_message[event["message_id"]].append(event)
        found: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for message in self.messages.values():
            occurrence = message["occurrence"] if message["kind"] == "campaign" else ""
            counts = found[message["kind"], message["name"], occurrence, message["variant"]]
            events = by_message[message["message_id"]]
            kinds = Counter((event["type"], event.get("is_machine", False)) for event in events)
            people_opens, people_clicks = kinds["opened", False], kinds["clicked", False]
            classes = {event["properties"]["bounce_class"] for event in events if event["type"] == "bounced"}
            counts.update(
                audience_count=1,
                sent_count=message["status"] == "sent",
                skipped_count=message["status"] == "skipped",
                skipped_no_consent_count=message["reason"] == "no_consent",
                skipped_suppressed_count=message["reason"] == "suppressed",
                skipped_frequency_cap_count=message["reason"] == "frequency_cap",
                failed_count=message["status"] == "failed",
                unknown_count=message["status"] == "unknown",
                delivered_count=kinds["delivered", False] > 0,
                opened_count=people_opens + people_clicks > 0,
                machine_opened_count=people_opens + people_clicks == 0 and kinds["opened", True] > 0,
                opens_count=people_opens,
                machine_opens_count=kinds["opened", True],
                clicked_count=people_clicks > 0,
                machine_clicked_count=people_clicks == 0 and kinds["clicked", True] > 0,
                clicks_count=people_clicks,
                machine_clicks_count=kinds["clicked", True],
                bounced_count=bool(classes),
                hard_bounced_count="hard" in classes,
                complained_count=kinds["complained", False] > 0,
                unsubscribed_count=kinds["unsubscribed", False] > 0,
            )
        return found


def content(models: Models) -> dict[str, pl.DataFrame]:
    """Every mart, in an order that does not depend on how it was built."""
    found = {}
    for table in TABLES:
        frame = models.frame(f"select * from marts.{table}")
        found[table] = frame.sort(
            [name for name, kind in frame.schema.items() if not kind.is_float()], nulls_last=True
        )
    return found


@pytest.fixture(scope="module")
def sendings(models: Models) -> Iterator[Sendings]:
    """Two loads, the second of them taken in by an increment."""
    sendings = Sendings(models, seed=20110627)
    for number in range(12):
        email = f"c{number}@{list(DOMAINS)[number % 3]}"
        models.contact(str(number), email, f"01-{10 + number}")
        models.consent(email, f"02-{10 + number}")
        models.events(order(str(number), f"06-0{1 + number % 5}", "20.00", external_id=str(number)))
        # a contact is named by their first address
        contact_id = models.value(f"select toInt64(bitShiftRight(sipHash64('{email}'), 1))")
        sendings.people.append((email, contact_id))
    # who was in what when: the interface that segments keep, without building them
    models.warehouse.execute(f"create database if not exists {PREFIX}marts")
    models.warehouse.execute(
        f"""
        create table {PREFIX}marts.segment_memberships (
            segment LowCardinality(String), contact_id Int64, valid_from DateTime64(3, 'UTC'),
            valid_to Nullable(DateTime64(3, 'UTC'))
        ) engine = MergeTree order by (segment, contact_id)
        """
    )
    sendings.join_segments()
    goal = {
        "kind": "campaign",
        "name": "win_back",
        "goal_event": "order.placed",
        "goal_within_seconds": 864_000,
    }
    goals = pl.DataFrame([{**goal, "spec": "{}"}]).with_columns(pl.col("goal_within_seconds").cast(pl.UInt32))
    models.warehouse.insert("raw.campaigns", goals)
    sendings.send(80, moment("04-25"), 40)
    sendings.happen(250)
    models.build("--select", *UPSTREAM, *COUNTING, "--exclude-resource-type", "unit_test", "test")
    # more of what was there, new messages, and an order that counts for another message than the one before it
    sendings.send(60, moment("05-28"), 20)
    sendings.happen(150)
    models.events(*(order(f"late-{number}", "05-26", "5.00", external_id=str(number)) for number in range(6)))
    models.build("--select", *UPSTREAM, *COUNTING, "--exclude", "path:models/staging", command="run")
    yield sendings


@pytest.fixture(scope="module")
def increments(sendings: Sendings) -> dict[str, pl.DataFrame]:
    """The marts as increments left them."""
    return content(sendings.models)


def test_counts_equal_the_reference(sendings: Sendings, increments: dict[str, pl.DataFrame]) -> None:
    frame = increments["campaign_performance"]
    names = [name for name in frame.columns if name.endswith("_count")]
    found = {
        tuple(row[key] for key in ("kind", "campaign", "occurrence", "variant")): {
            name: row[name] for name in names if row[name] and name not in ORDERS
        }
        for row in frame.to_dicts()
    }
    expected = {
        key: {name: int(count) for name, count in counts.items() if count}
        for key, counts in sendings.reference().items()
    }
    assert found == expected
    assert ("trigger", "hello", "", "b") in found, "triggers are one row, whatever fired them"


def test_breakdowns_add_up(increments: dict[str, pl.DataFrame]) -> None:
    whole = increments["campaign_performance"]
    names = [name for name in whole.columns if name.endswith("_count") and name != "goal_reached_count"]
    for table in ("mailbox_provider", "channel", "day"):
        part = increments[f"campaign_performance_by_{table}"]
        assert part.select(names).sum().equals(whole.select(names).sum()), table
        assert part["revenue"].sum() == whole["revenue"].sum(), table
    by_hour = increments["campaign_performance_by_hour"]
    assert by_hour["opened_count"].sum() == whole["opened_count"].sum()
    assert by_hour["audience_count"].sum() == whole["sent_count"].sum()
    activity = increments["campaign_activity"]
    for name in (
        "sent",
        "delivered",
        "opened",
        "clicked",
        "bounced",
        "complained",
        "unsubscribed",
        "converted",
    ):
        assert activity[f"{name}_count"].sum() == whole[f"{name}_count"].sum(), name
    providers = set(increments["campaign_performance_by_mailbox_provider"]["mailbox_provider"])
    assert providers == {"gmail", "outlook", "other"}
    assert whole["converted_count"].sum() > 0
    assert whole["revenue"].sum() > 0


def test_a_campaign_s_own_goal_stands_beside_its_orders(
    sendings: Sendings, increments: dict[str, pl.DataFrame]
) -> None:
    frame = increments["campaign_performance"]
    reached = frame.filter(pl.col("goal_reached_count") > 0)
    assert set(reached["campaign"]) == {"win_back"}
    # counted from the messages, occurrence by occurrence
    conversions = sendings.models.frame(
        """
        select occurrence, variant, count() as reached, sum(revenue) as revenue from marts.campaign_conversions
        group by occurrence, variant
        """
    )
    found = reached.select("occurrence", "variant", "goal_reached_count", "goal_revenue")
    assert sorted(found.rows()) == sorted(conversions.rows())


def test_click_map_counts_people_once(sendings: Sendings, increments: dict[str, pl.DataFrame]) -> None:
    clicks = [event for event in sendings.events if event["type"] == "clicked"]
    links = increments["campaign_links"].group_by("url").agg(pl.col("^.*_count$").sum()).sort("url")
    assert set(links["url"]) == set(LINKS)
    place = {"Shop": LINKS[0], "sale": LINKS[1], "unsubscribe": LINKS[2]}
    for url, clickers, human, machine in links.select(
        "url", "clickers_count", "clicks_count", "machine_clicks_count"
    ).rows():
        mine = [
            event for event in clicks if place[next(k for k in reversed(place) if k in event["url"])] == url
        ]
        people = [event["message_id"] for event in mine if not event["is_machine"]]
        assert (clickers, human, machine) == (len(set(people)), len(people), len(mine) - len(people)), url


def test_rates_by_segment_at_the_instant_of_sending(
    sendings: Sendings, increments: dict[str, pl.DataFrame]
) -> None:
    by_segment = increments["campaign_performance_by_segment"]
    audience = by_segment.filter(pl.col("is_audience"))
    whole = increments["campaign_performance"]
    assert set(audience["segment"]) == {"champions"}
    assert audience["audience_count"].sum() == whole["audience_count"].sum()
    expected: Counter[tuple[str, str]] = Counter()
    for message in sendings.messages.values():
        at = message["at"] + timedelta(seconds=message["status"] == "sent")
        for segment, contact_id, since, until in sendings.stays:
            inside = since <= at and (until is None or at < until)
            if contact_id == message["contact_id"] and inside and segment != "champions":
                expected[message["name"], segment] += 1
    others = by_segment.filter(~pl.col("is_audience"))
    found = {
        (campaign, segment): count
        for campaign, segment, count in others.group_by("campaign", "segment")
        .agg(pl.col("audience_count").sum())
        .rows()
    }
    assert found == dict(expected)
    assert found


def test_why_mail_did_not_arrive(sendings: Sendings, increments: dict[str, pl.DataFrame]) -> None:
    reasons = increments["bounce_reasons"]
    failed = reasons.filter(pl.col("outcome") == "failed")
    assert failed["messages_count"].sum() == sum(
        message["status"] == "failed" for message in sendings.messages.values()
    )
    bounced = reasons.filter(pl.col("outcome") == "bounced")
    expected = {
        (event["at"].date(), event["message_id"], *event["properties"].values())
        for event in sendings.events
        if event["type"] == "bounced"
    }
    assert bounced["messages_count"].sum() == len(expected)
    assert set(bounced["reason"]) == {"bounced", "timed_out", "spam"}


def test_list_growth_adds_up_to_those_who_may_be_mailed(
    sendings: Sendings, increments: dict[str, pl.DataFrame]
) -> None:
    growth = increments["list_growth"]
    assert growth["new_contacts_count"].sum() == len(sendings.people)
    left = {
        sendings.messages[event["message_id"]]["contact_id"]
        for event in sendings.events
        if (event["type"] in ("complained", "unsubscribed") and not event.get("is_machine"))
        or event.get("properties", {}).get("bounce_class") == "hard"
    }
    assert 0 < len(left) <= 12
    assert growth["joined_count"].sum() == 12
    assert growth["lost_count"].sum() == len(left), "nobody leaves twice"
    assert growth["net_count"].sum() == 12 - len(left)
    last = growth.sort("day").group_by("source").last()
    assert last["subscribers_count"].sum() == 12 - len(left)


def test_building_again_and_a_full_refresh_change_nothing(
    sendings: Sendings, increments: dict[str, pl.DataFrame]
) -> None:
    models = sendings.models
    whole_months = models.rows(
        f"""
        select partition, groupArray(name) from system.parts
        where database = '{PREFIX}intermediate' and table = 'int_campaigns__counted' and active group by partition
        """
    )
    assert len(whole_months) >= 3
    selected = ("--select", *COUNTING, "--exclude", "suppressions")
    models.build(*selected, "--full-refresh", command="run", offset=timedelta(minutes=9))
    full = content(models)
    for table in TABLES:
        assert increments[table].height > 0, table
        assert full[table].equals(increments[table]), table


@pytest.fixture(scope="module")
def link(models: Models) -> Callable[[Sequence[str]], list[str]]:
    """Normalises addresses in the warehouse, with the macro that the models use."""
    compiled = (
        models.build("--inline", "{{ link_of('url') }}", command="compile").results[0].node.compiled_code
    )

    def normalised(urls: Sequence[str]) -> list[str]:
        frame = pl.DataFrame(
            {"row": range(len(urls)), "url": urls}, schema={"row": pl.Int64, "url": pl.String}
        )
        query = f"select {compiled} as link from given order by row"
        return models.warehouse.frame(query, external={"given": frame})["link"].to_list()

    return normalised


WORDS = st.text("abcXYZ019-_~.", min_size=1, max_size=6)
PARAMETERS = st.dictionaries(WORDS.map("p{}".format), WORDS, max_size=3).map(
    lambda found: [f"{name}={value}" for name, value in found.items()]
)
TRACKING = st.lists(
    st.sampled_from(["utm_source=mail", "UTM_Term=x%20y", "gclid=a_b", "fbclid", "mc_eid=1", "mtm_kwd=a"]),
    max_size=4,
)


@given(
    host=WORDS,
    path=st.lists(WORDS, max_size=3),
    parameters=PARAMETERS,
    tracking=TRACKING,
    fragment=WORDS,
    data=st.data(),
)
@hypothesis_settings(max_examples=40)
def test_a_link_is_where_it_leads(
    link: Callable[[Sequence[str]], list[str]],
    host: str,
    path: list[str],
    parameters: list[str],
    tracking: list[str],
    fragment: str,
    data: st.DataObject,
) -> None:
    plain = "/".join([f"https://{host.lower()}.example", *path])
    shuffled = data.draw(st.permutations(parameters + tracking))
    query = f"?{'&'.join(shuffled)}" if shuffled else ""
    variants = (
        plain + (f"?{'&'.join(parameters)}" if parameters else ""),
        f"{plain}{query}#{fragment}",
        plain.replace("https://", "HTTPS://").replace(
            f"{host.lower()}.example", f"{host.upper()}.EXAMPLE:443"
        )
        + query,
    )
    first, *others = link(variants)
    assert others == [first, first]
    assert link([first]) == [first], "what is normalised stays as it is"
    assert (
        first == f"{plain if path else plain + '/'}{'?' if parameters else ''}{'&'.join(sorted(parameters))}"
    )


def test_links_that_are_special(link: Callable[[Sequence[str]], list[str]]) -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.abcdef"
    cases = {
        "": "",
        "mailto:help@shop.example?subject=a": "mailto:help@shop.example?subject=a",
        "http://shop.example:80": "http://shop.example/",
        "http://shop.example:8080/a": "http://shop.example:8080/a",
        f"https://m.example/unsubscribe/{token}": "https://m.example/unsubscribe",
        f"https://m.example/mail/preferences/{token}?utm_medium=email": "https://m.example/mail/preferences",
        "https://shop.example/preferences/colours": "https://shop.example/preferences/colours",
        "https://shop.example?a=1": "https://shop.example/?a=1",
        "https://shop.example/p?utm_source=a?b&c=1": "https://shop.example/p?c=1",
        "https://shop.example/p?&&": "https://shop.example/p",
    }
    assert dict(zip(cases, link(list(cases)), strict=True)) == cases
