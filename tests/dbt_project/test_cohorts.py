"""Funnels, behavioural cohorts and best hours over a random history, beside the same told in plain Python."""

from __future__ import annotations

import csv
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from models import NOW, Models, moment, order

from orchestration.lib.dbt_runs import PROJECT_DIR

ZONES = ["Europe/London", "America/New_York", "Asia/Kolkata", None]
PRIOR = 12


def seed_rows(name: str) -> list[dict[str, str]]:
    with (PROJECT_DIR / f"seeds/{name}.csv").open() as file:
        return list(csv.DictReader(file))


class History:
    """Who did what when, as it was loaded."""

    def __init__(self, models: Models, seed: int) -> None:
        dice = random.Random(seed)
        types = ["product.viewed", "cart.updated", "delivered", "opened", "clicked"]
        self.zones: dict[str, str | None] = {}
        self.events: dict[str, list[tuple[str, datetime]]] = defaultdict(list)
        self.orders: dict[str, list[datetime]] = defaultdict(list)
        self.since: dict[str, datetime] = {}
        loaded = []
        for number in range(40):
            email = f"p{number}@example.com"
            self.zones[email] = dice.choice(ZONES)
            self.since[email] = moment("01-03") + timedelta(minutes=dice.randrange(200_000))
            zone: dict[str, Any] = {"timezone": self.zones[email]} if self.zones[email] else {}
            models.contact(str(number), email, self.since[email], **zone)
            hour = dice.randrange(24)
            for _ in range(dice.randrange(30)):
                kind, is_machine = dice.choice(types), dice.random() < 0.2
                at = self.since[email] + timedelta(minutes=dice.randrange(60_000))
                if dice.random() < 0.5:
                    at = at.replace(hour=hour)
                at = max(at, self.since[email])
                event = {
                    "id": f"e{len(loaded)}",
                    "type": kind,
                    "email": email,
                    "at": at,
                    "is_machine": is_machine,
                }
                loaded.append(event)
                if not is_machine and at <= NOW:
                    self.events[email].append((kind, at))
            for _ in range(dice.randrange(4)):
                at = self.since[email] + timedelta(minutes=dice.randrange(60_000))
                loaded.append(order(f"o{len(loaded)}", at, email=email))
                if at <= NOW:
                    self.orders[email].append(at)
                if dice.random() < 0.2:
                    gone = order(f"o{len(loaded)}", at, email=email)
                    loaded += [gone, gone | {"id": f"x{len(loaded)}", "type": "order.cancelled"}]
        models.events(*loaded)

    def happened(self, email: str, kind: str) -> list[datetime]:
        if kind == "order.placed":
            return sorted(self.orders[email])
        return sorted(at for type_, at in self.events[email] if type_ == kind)


@pytest.fixture(scope="module")
def history(models: Models) -> Iterator[tuple[Models, History]]:
    told = History(models, 7)
    models.build(
        *("--select", "+funnels", "+cohort_retention", "+best_hours"),
        *("--exclude-resource-type", "unit_test", "test"),
    )
    models.build(
        "--select",
        "path:models/marts/engagement,resource_type:test",
        "--exclude",
        "engagement",
        command="test",
    )
    yield models, told


def test_funnels(history: tuple[Models, History]) -> None:
    models, told = history
    definitions: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in seed_rows("funnel_steps"):
        definitions[row["funnel"]].append(row)
    expected: Counter[tuple[str, Any, int]] = Counter()
    for funnel, steps in definitions.items():
        within = timedelta(days=int(steps[0]["within_days"]))
        for email in told.zones:
            best: dict[Any, int] = {}
            for entered in told.happened(email, steps[0]["event_type"]):
                # the earliest next step is never worse than a later one
                passed, at = 1, entered
                for step in steps[1:]:
                    later = [
                        when
                        for when in told.happened(email, step["event_type"])
                        if at <= when <= entered + within
                    ]
                    if not later:
                        break
                    passed, at = passed + 1, later[0]
                month = entered.date().replace(day=1)
                best[month] = max(best.get(month, 0), passed)
            for month, passed in best.items():
                expected.update((funnel, month, step) for step in range(1, passed + 1))
    found = {
        (row[0], row[1], row[2]): row[3]
        for row in models.rows(
            "select funnel, entry_month, step, passed_count from marts.funnels where passed_count > 0"
        )
    }
    assert found == dict(expected)
    assert max(step for _, _, step in found) == 4
    assert models.value("select countIf(is_closed) from marts.funnels where entry_month = '2011-06-01'") == 0


def test_cohorts(history: tuple[Models, History]) -> None:
    models, told = history
    found = {
        (row["cohort"], row["email"]): row
        for row in models.frame(
            """
            select cohort, email, events_count, is_member, is_decided, joined_at
            from marts.cohort_members as members
            inner join (select contact_id, email from marts.contacts) as contacts using contact_id
            """
        ).to_dicts()
    }
    expected = {}
    for row in seed_rows("behavioural_cohorts"):
        for email in told.zones:
            orders = told.happened(email, "order.placed")
            anchors = {"first_seen": told.since[email], "first_order": orders[0] if orders else None}
            anchor = anchors[row["anchor"]]
            if anchor is None:
                continue
            end = anchor + timedelta(days=int(row["within_days"]))
            done = [at for at in told.happened(email, row["event_type"]) if anchor <= at < end]
            times = int(row["times"])
            expected[row["cohort"], email] = {
                "cohort": row["cohort"],
                "email": email,
                "events_count": len(done),
                "is_member": len(done) >= times,
                "is_decided": len(done) >= times or end <= NOW,
                "joined_at": done[times - 1] if len(done) >= times else None,
            }
    # a build takes seconds, so that nobody's days end within it is a matter of the seed
    assert found == expected
    assert {row["is_member"] for row in found.values()} == {True, False}

    sizes = models.rows(
        "select cohort, is_member, sum(cohort_size) from marts.cohort_retention where months_since = 0 group by 1, 2"
    )
    counts = Counter((row["cohort"], row["is_member"]) for row in expected.values() if row["is_decided"])
    assert {(row[0], row[1]): row[2] for row in sizes} == dict(counts)
    # everybody whose days count from their first order orders in that month
    first = "select min(retention_rate) from marts.cohort_retention where cohort like 'bought%' and months_since = 0"
    assert models.value(first) == 1
    assert (
        models.value(
            "select count() from marts.cohort_retention where retention_rate < 1 and months_since > 0"
        )
        > 0
    )


def test_best_hours(history: tuple[Models, History]) -> None:
    models, told = history
    own: dict[str, list[float]] = {}
    everybody = {True: [0.0] * 24, False: [0.0] * 24}
    for email, zone in told.zones.items():
        counts = [0.0] * 24
        for kind in ("opened", "clicked"):
            for at in told.happened(email, kind):
                counts[at.astimezone(ZoneInfo(zone or "UTC")).hour] += 1
        own[email] = counts
        everybody[bool(zone)] = [a + b for a, b in zip(everybody[bool(zone)], counts, strict=True)]
    found = {
        row["email"]: row
        for row in models.frame(
            """
            select email, best_hours.* from marts.best_hours as best_hours
            inner join (select contact_id, email from marts.contacts) as contacts using contact_id
            """
        ).to_dicts()
    }
    assert set(found) == set(told.zones)
    for email, zone in told.zones.items():
        row, counts, total = found[email], own[email], sum(own[email])
        population = everybody[bool(zone)]

        def around(hours: list[float], hour: int) -> float:
            return (hours[hour - 1] + 2 * hours[hour] + hours[(hour + 1) % 24]) / 4

        shares = [
            (around(counts, hour) + PRIOR * around(population, hour) / sum(population)) / (total + PRIOR)
            for hour in range(24)
        ]
        assert row["best_hour_share"] == pytest.approx(max(shares), rel=1e-9)
        assert shares[row["best_hour"]] == pytest.approx(max(shares), rel=1e-9)
        assert (row["timezone"], row["has_timezone"]) == (zone or "UTC", bool(zone))
        assert row["events_count"] == total
        assert row["own_weight"] == pytest.approx(total / (total + PRIOR))
    assert len({row["best_hour"] for row in found.values()}) > 3
