"""Features as of a day: nothing that happens later changes a row, and orders are counted as plain Python
counts them.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

import polars as pl
import pytest
from models import Models, order

from ml.predictions.lifetime import purchase_summaries
from ml.predictions.propensity import FEATURES

pytestmark = pytest.mark.slow

PEOPLE = 12
TODAY = datetime(2011, 6, 27, tzinfo=UTC)
LATER = timedelta(days=40)


def at(day: int, hour: int = 12) -> datetime:
    """So many days before today, at an hour."""
    return TODAY - timedelta(days=day) + timedelta(hours=hour)


def happenings(seed: int, first: int, last: int) -> list[dict]:
    """Orders, cancellations, orders told anew, visits, carts, opens and clicks, from `first` to `last` days
    before today.
    """
    dice = random.Random(seed)
    events: list[dict] = []
    orders: list[str] = []
    for number in range(160):
        day = dice.randint(last, first)
        who = {"external_id": str(dice.randrange(PEOPLE))}
        when = at(day, dice.randrange(24))
        kind = dice.choice(
            [
                "order",
                "order",
                "order",
                "cancel",
                "again",
                "product.viewed",
                "cart.updated",
                "opened",
                "clicked",
            ]
        )
        if kind in ("cancel", "again") and not orders:
            kind = "order"
        if kind == "order":
            orders.append(f"{seed}-{number}")
            events.append(order(orders[-1], when, f"{dice.randint(1, 90)}.50", **who))
        elif kind == "cancel":
            event = order(dice.choice(orders), when, **who)
            events.append({**event, "id": f"cancel:{seed}:{number}", "type": "order.cancelled"})
        elif kind == "again":
            event = order(dice.choice(orders), when, f"{dice.randint(1, 90)}.25", **who)
            events.append({**event, "id": f"again:{seed}:{number}"})
        else:
            events.append({"id": f"{kind}:{seed}:{number}", "type": kind, "at": when, **who})
    return events


def message(models: Models, number: int, contact_id: int, sent_at: datetime) -> None:
    """The ledger's row of a message that was sent."""
    models.warehouse.insert(
        "raw.messages",
        pl.DataFrame(
            {
                "message_id": [f"m{number}"],
                "sequence": [1],
                "status": ["sent"],
                "kind": ["campaign"],
                "name": ["news"],
                "contact_id": [contact_id],
                "email": [f"p{number % PEOPLE}@example.com"],
                "channel": ["email"],
                "changed_at": [sent_at],
            },
            schema_overrides={"sequence": pl.UInt32, "changed_at": pl.Datetime("ms", "UTC")},
        ),
    )


def build(models: Models, offset: timedelta = timedelta(0)) -> None:
    models.build(
        *("--select", "+contact_features", "+orders", "+contacts"),
        *("--exclude-resource-type", "unit_test", "test"),
        offset=offset,
    )


def rows(models: Models) -> pl.DataFrame:
    """All rows as of today and before."""
    return models.frame(
        "select * from features.contact_features where as_of <= toDate('2011-06-27') order by contact_id, as_of"
    )


@pytest.fixture(scope="module")
def history(models: Models) -> Iterator[tuple[Models, list[dict], pl.DataFrame]]:
    """A year of a small shop, its features, and then forty days more: their events come in, and models are
    built again.
    """
    models.now = TODAY + timedelta(hours=9)
    for number in range(PEOPLE):
        models.contact(str(number), f"p{number}@example.com", at(400))
    events = happenings(1, first=380, last=1)
    # on the day itself: not seen as of it
    events.append(order("today", at(0, 8), "1000.00", external_id="1"))
    models.events(*events)
    models.build("--select", "+contacts", "--exclude-resource-type", "unit_test", "test")
    ids = models.rows("select contact_id, toInt64(extract(email, '[0-9]+')) from marts.contacts")
    contact_of = {number: contact for contact, number in ids}
    for number in range(30):
        message(models, number, contact_of[number % PEOPLE], at(3 + 7 * number, 9))
    build(models)
    yield (
        models,
        events,
        rows(models).join(
            pl.DataFrame({"contact_id": list(contact_of.values()), "number": list(contact_of)}),
            on="contact_id",
        ),
    )


def test_the_key_is_one(history: tuple[Models, list[dict], pl.DataFrame]) -> None:
    _, _, before = history
    assert before.height > 500
    assert not before.select("contact_id", "as_of").is_duplicated().any()
    days = before["as_of"].unique()
    assert days.dt.weekday().unique().to_list() == [1]
    assert days.max() == date(2011, 6, 27)


def test_orders_are_counted_as_they_stood(history: tuple[Models, list[dict], pl.DataFrame]) -> None:
    """The same from the events, a day at a time: the last content told before it, unless cancelled before
    it.
    """
    _, events, before = history
    checked = 0
    for day in [*sorted(before["as_of"].unique())[::7], date(2011, 6, 27)]:
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        known: dict[str, dict] = {}
        for event in sorted(events, key=lambda one: (one["at"], one["id"])):
            if event["at"] >= midnight or not event["type"].startswith("order."):
                continue
            number = event["properties"]["order_id"]
            found = known.setdefault(number, {"first": None, "is_cancelled": False})
            if event["type"] == "order.cancelled":
                found["is_cancelled"] = True
            else:
                found["first"] = found["first"] or event["at"].date()
                item = event["properties"]["items"][0]
                found["revenue"] = float(item["unit_price"]) * item["quantity"]
                found["who"] = int(event["external_id"])
        sales = [one for one in known.values() if one["first"] and not one["is_cancelled"]]
        summaries = purchase_summaries(
            pl.DataFrame(
                [{"contact_id": s["who"], "ordered_on": s["first"], "revenue": s["revenue"]} for s in sales],
                schema={"contact_id": pl.Int64, "ordered_on": pl.Date, "revenue": pl.Float64},
            ),
            day - timedelta(days=1),
        )
        ours = before.filter((pl.col("as_of") == day) & (pl.col("orders_count") > 0)).sort("number")
        assert ours["number"].to_list() == summaries["contact_id"].to_list()
        for name, theirs in (("frequency", "frequency"), ("recency_days", "recency"), ("age_days", "age")):
            assert ours[name].cast(pl.Float64).to_list() == summaries[theirs].cast(pl.Float64).to_list(), day
        assert ours["monetary_value"].to_list() == pytest.approx(summaries["monetary_value"].to_list())
        assert ours["revenue"].sum() == pytest.approx(sum(s["revenue"] for s in sales))
        assert ours["orders_count"].sum() == len(sales)
        checked += len(sales)
    assert checked > 100


def test_visits_and_mail_are_counted_up_to_the_day(history: tuple[Models, list[dict], pl.DataFrame]) -> None:
    _, events, before = history
    for day in (date(2011, 6, 27), date(2011, 3, 7)):
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)
        ours = {row["number"]: row for row in before.filter(pl.col("as_of") == day).to_dicts()}
        for number, row in ours.items():

            def count(kind: str, days: int, who: int = number, end: datetime = midnight) -> int:
                return sum(
                    event["type"] == kind
                    and event["external_id"] == str(who)
                    and end - timedelta(days=days) <= event["at"] < end
                    for event in events
                )

            assert row["visits_30d"] == count("product.viewed", 30)
            assert row["carts_30d"] == count("cart.updated", 30)
            assert row["opens_90d"] == count("opened", 90)
            assert row["clicks_90d"] == count("clicked", 90)
            sent = [at(3 + 7 * k, 9) for k in range(30) if k % PEOPLE == number]
            in_reach = [moment for moment in sent if moment < midnight]
            assert row["messages_90d"] == sum(moment >= midnight - timedelta(days=90) for moment in in_reach)
            last = max(in_reach, default=None)
            assert row["days_since_message"] == (None if last is None else (day - last.date()).days - 1)


def test_what_happens_later_changes_no_row(history: tuple[Models, list[dict], pl.DataFrame]) -> None:
    """Later orders, cancellations and corrections of earlier orders, visits, reads and messages; built again,
    later.
    """
    models, events, before = history
    later = happenings(2, first=0, last=-39)
    placed = [event["properties"]["order_id"] for event in events if event["type"] == "order.placed"]
    who = {e["properties"]["order_id"]: e["external_id"] for e in events if e["type"] == "order.placed"}
    for number, name in enumerate(sorted(set(placed))):
        event = order(name, at(-number % 30 - 30, 7), "9999.00", external_id=who[name])
        if number % 2:
            event |= {"type": "order.cancelled"}
        later.append({**event, "id": f"later:{name}"})
    models.events(*later)
    for number in range(PEOPLE):
        contact = before.filter(pl.col("number") == number)["contact_id"][0]
        message(models, 100 + number, contact, at(-5, 9))
    build(models, offset=LATER)
    after = rows(models)
    kept = before.drop("number").filter(pl.col("as_of") >= after["as_of"].min()).sort("contact_id", "as_of")
    assert kept.height > 400
    assert after.equals(kept)
    # and they were seen: today's rows have moved, or the test would prove nothing
    new = models.frame("select * from features.contact_features where as_of = toDate('2011-08-06')")
    old = before.filter(pl.col("as_of") == date(2011, 6, 27))
    assert new.height and new["revenue"].sum() != old["revenue"].sum()
    assert new["messages_90d"].sum() > 0
    assert set(FEATURES) <= set(new.columns)
