"""Reputation: rolling rates of random days held against the published lines, beside a reference in Python."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from datetime import date, timedelta
from typing import Any

import polars as pl
import pytest
from models import PREFIX, Models

from orchestration.lib.dbt_runs import PROJECT_DIR

COUNTS = ("sent_count", "reached_count", "hard_bounced_count", "complained_count")
KEY = ("sending_domain", "provider", "mailbox_provider")


def lines() -> list[dict[str, Any]]:
    """The seed, numbers as numbers."""
    with (PROJECT_DIR / "seeds/reputation_thresholds.csv").open() as file:
        return [
            {
                **line,
                "threshold": float(line["threshold"]),
                "minimum_messages": int(line["minimum_messages"]),
                "minimum_cases": int(line["minimum_cases"]),
            }
            for line in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def days() -> list[dict[str, Any]]:
    """Days of sending with gaps, from tiny to large, from spotless to terrible."""
    dice = random.Random(2024)
    rows = []
    for domain, provider, mailbox_provider in (
        ("shop.example", "smtp", "gmail"),
        ("shop.example", "smtp", "yahoo"),
        ("shop.example", "sendgrid", "gmail"),
        ("news.example", "smtp", "other"),
    ):
        for number in range(70):
            if dice.random() < 0.4:
                continue
            sent = int(10 ** dice.uniform(0, 4))
            rate = dice.choice([0, 0.005, 0.01, 0.03, 0.2])
            hard = sum(dice.random() < rate for _ in range(sent))
            reached = sent - hard
            complained = min(reached, int(reached * dice.choice([0, 0, 0.0005, 0.002, 0.006])))
            rows.append(
                {
                    "day": date(2011, 3, 1) + timedelta(days=number),
                    "sending_domain": domain,
                    "provider": provider,
                    "mailbox_provider": mailbox_provider,
                    "sent_count": sent,
                    "reached_count": reached,
                    "hard_bounced_count": hard,
                    "complained_count": complained,
                }
            )
    return rows


@pytest.fixture(scope="module")
def judged(models: Models, days: list[dict[str, Any]]) -> Iterator[pl.DataFrame]:
    """The mart over those days."""
    models.warehouse.execute(f"create database if not exists {PREFIX}marts")
    models.warehouse.execute(
        f"""
        create table {PREFIX}marts.deliverability_by_day (
            day Date, {", ".join(f"{name} String" for name in KEY)}, {", ".join(f"{name} UInt64" for name in COUNTS)}
        ) engine = MergeTree order by (day, sending_domain, provider, mailbox_provider)
        """
    )
    frame = pl.DataFrame(days).with_columns(pl.col(*COUNTS).cast(pl.UInt64))
    models.warehouse.insert(f"{PREFIX}marts.deliverability_by_day", frame)
    models.build(
        "--select",
        "reputation",
        "reputation_thresholds",
        "mailbox_providers",
        "--exclude-resource-type",
        "unit_test",
    )
    yield models.frame("select * from marts.reputation")


def expected(row: dict[str, Any], known: list[dict[str, Any]]) -> tuple[str, str, float | None]:
    """Status, metric and line of a window with these counts."""
    rates = {
        "complaint_rate": (row["complained_count"], row["reached_count"]),
        "hard_bounce_rate": (row["hard_bounced_count"], row["sent_count"]),
    }
    crossed = []
    for metric, (cases, whole) in rates.items():
        of_metric = [line for line in known if line["metric"] == metric]
        own = [line for line in of_metric if line["mailbox_provider"] == row["mailbox_provider"]]
        for line in own or [line for line in of_metric if line["mailbox_provider"] == ""]:
            enough = whole >= line["minimum_messages"] and cases >= line["minimum_cases"]
            if enough and cases / whole >= line["threshold"]:
                excess = cases / whole / line["threshold"]
                crossed.append((line["level"] != "critical", -excess, metric, line))
    if not crossed:
        return "ok", "", None
    *_, metric, line = min(crossed, key=lambda found: found[:3])
    return line["level"], metric, line["threshold"]


def test_windows_roll_over_days_without_mail(judged: pl.DataFrame, days: list[dict[str, Any]]) -> None:
    found = {
        (row["day"], row["window_days"], *(row[name] for name in KEY)): tuple(row[name] for name in COUNTS)
        for row in judged.to_dicts()
    }
    assert len(found) == judged.height == 3 * len(days)
    for (day, window, *place), counts in found.items():
        inside = [
            row
            for row in days
            if [row[name] for name in KEY] == place and day - timedelta(days=window) < row["day"] <= day
        ]
        assert counts == tuple(sum(row[name] for row in inside) for name in COUNTS), (day, window, place)


def test_every_window_is_judged_by_the_published_lines(judged: pl.DataFrame) -> None:
    known = lines()
    seen = set()
    for row in judged.to_dicts():
        verdict = (row["status"], row["crossed_metric"], row["crossed_threshold"])
        assert verdict == expected(row, known), row
        assert (row["crossed_source"] == "") == (row["status"] == "ok")
        seen.add(verdict[:2])
    assert seen == {
        ("ok", ""),
        *(
            (level, metric)
            for level in ("warning", "critical")
            for metric in ("complaint_rate", "hard_bounce_rate")
        ),
    }


def test_tiny_numbers_never_alarm(judged: pl.DataFrame) -> None:
    least = min(line["minimum_messages"] for line in lines())
    tiny = judged.filter(pl.col("sent_count") < least)
    assert tiny.height > 20
    assert tiny.filter(pl.col("hard_bounce_rate") > 0.02).height > 5
    assert set(tiny["status"]) == {"ok"}
    assert not tiny["is_judged"].any()


def test_the_newest_day_tells_how_things_stand(judged: pl.DataFrame) -> None:
    latest = judged.filter(pl.col("is_latest"))
    assert latest.height == 3 * 4
    assert latest.select(pl.struct("window_days", *KEY).n_unique()).item() == latest.height
    newest = judged.group_by("window_days", *KEY).agg(pl.col("day").max()).sort("window_days", *KEY)
    assert latest.sort("window_days", *KEY)["day"].to_list() == newest["day"].to_list()


def test_published_lines_are_in_the_seed() -> None:
    general = {
        (line["metric"], line["level"]): line["threshold"] for line in lines() if not line["mailbox_provider"]
    }
    assert general["complaint_rate", "warning"] == 0.001
    assert general["complaint_rate", "critical"] == 0.003
    assert general["hard_bounce_rate", "warning"] == 0.02
    assert all(line["source"] for line in lines())


def test_who_keeps_a_mailbox(models: Models, judged: pl.DataFrame) -> None:
    assert not judged.is_empty()
    cases = {
        "ann@gmail.com": "gmail",
        "Ann@GoogleMail.com ": "gmail",
        "bob@hotmail.co.uk": "outlook",
        "eve@yahoo.co.jp": "yahoo_japan",
        "eve@yahoo.co.uk": "yahoo",
        "dan@aol.com": "yahoo",
        '"a@gmail.com"@me.com': "icloud",
        "joe@gmail.com.example": "other",
        "gmail.com": "",
        "": "",
    }
    inline = "{{ mailbox_provider_of('email') }}"
    compiled = models.build("--inline", inline, command="compile").results[0].node.compiled_code
    frame = pl.DataFrame({"row": range(len(cases)), "email": list(cases)})
    found = models.warehouse.frame(
        f"select {compiled} as mailbox_provider from given order by row", external={"given": frame}
    )
    assert dict(zip(cases, found["mailbox_provider"].to_list(), strict=True)) == cases
