"""Segments: who belongs to each kind, and who came and went, on random histories against plain Python."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import polars as pl
import pytest
from models import PREFIX, Models

from orchestration.lib.dbt_runs import PROJECT_DIR

SEGMENTS = PROJECT_DIR / "models" / "segments"
LOG = f"{PREFIX}intermediate.int_segments__changed"
OFTEN = ("champions", "engaged", "advocates")
"""Segments that the random histories fill; the others stay empty."""
AFTER = ("segment_changes", "int_segments__settled", "segment_sizes")
"""What is made from the log, in the order in which it is made."""


PROFILES = {
    # what the segments tested here read of int_contacts__profiled, by the contact
    1: {
        "last_order_at": "06-26",
        "orders_count": 1,
        "first_order_at": "06-26",
        "has_marketing_consent": True,
    },
    2: {"has_marketing_consent": True},
    3: {},
    4: {},
    5: {},
    6: {"has_marketing_consent": True},
    7: {"last_order_at": "06-26 13:00", "orders_count": 3, "first_order_at": "04-01"},
    8: {"last_order_at": "2010-06-28", "orders_count": 1, "first_order_at": "2010-06-28"},
    9: {"last_order_at": "2010-07-04", "orders_count": 1, "first_order_at": "2010-07-04"},
    10: {"has_marketing_consent": True, "is_suppressed": True},
    11: {"last_order_at": "06-26", "orders_count": 2, "first_order_at": "2010-06-27"},
    12: {"is_deleted": True, "has_marketing_consent": True},
}
EVENTS = [
    # looked and bought; looked and did not buy; looked long ago; a machine looked; a deleted contact looked
    ("product.viewed", 1, "06-25", False),
    ("product.viewed", 2, "06-25", False),
    ("product.viewed", 3, "06-10", False),
    ("product.viewed", 4, "06-25", True),
    ("product.viewed", 12, "06-25", False),
    # filled the cart yesterday; a minute ago; yesterday, and ordered after that
    ("cart.updated", 5, "06-26 12:00", False),
    ("cart.updated", 6, "06-27 09:29", False),
    ("cart.updated", 7, "06-26 12:00", False),
]
MEMBERS = [
    ("customer_council", "shop", "", "3", True, "06-01"),
    ("customer_council", "", "P4@example.com ", "", True, "06-01"),
    ("customer_council", "", "", "5", True, "06-01"),
    ("customer_council", "shop", "", "6", True, "06-01"),
    ("customer_council", "shop", "", "6", False, "06-02"),
    ("customer_council", "shop", "", "12", True, "06-01"),
    ("customer_council", "shop", "nobody@example.com", "99", True, "06-01"),
    ("press", "", "p7@example.com", "", True, "06-01"),
]
KINDS = (
    "viewed_not_bought",
    "abandoned_carts",
    "order_anniversaries",
    "one_time_buyers",
    "subscribers_without_order",
    "likely_to_churn",
    "likely_to_buy",
    "high_future_value",
    "customer_council",
)


@pytest.fixture(scope="module")
def built(models: Models) -> Iterator[Models]:
    """What segments read, made by hand for a day in June 2011, and the segments built from it."""
    warehouse = models.warehouse
    for name in ("staging", "intermediate", "marts", "segments"):
        warehouse.execute(f"create database {PREFIX}{name}")
    tables = {
        "intermediate.int_contacts__profiled": (
            "contact_id Int64, orders_count UInt32, is_deleted Bool, is_suppressed Bool, has_marketing_consent Bool,"
            " first_order_at Nullable(DateTime64(3, 'UTC')), last_order_at Nullable(DateTime64(3, 'UTC'))"
        ),
        "intermediate.int_contacts__identified": (
            "identity_id Int64, contact_id Int64, kind LowCardinality(String), source LowCardinality(String),"
            " identifier String"
        ),
        "intermediate.int_events__recorded": (
            "type LowCardinality(String), identity_id Int64, is_machine Bool, occurred_at DateTime64(3, 'UTC'),"
            " loaded_on Date default today()"
        ),
        "marts.contact_profiles": "contact_id Int64, segments Array(String)",
        **{
            f"segments.{path.stem}": "contact_id Int64"
            for path in SEGMENTS.glob("*.sql")
            if path.stem not in KINDS
        },
    }
    for name, columns in tables.items():
        warehouse.execute(f"create table {PREFIX}{name} ({columns}) engine = MergeTree order by tuple()")
    times = ("first_order_at", "last_order_at")
    insert(
        models,
        "intermediate.int_contacts__profiled",
        [
            {
                "contact_id": contact,
                "orders_count": profile.get("orders_count", 0),
                **{
                    name: profile.get(name, False)
                    for name in ("is_deleted", "is_suppressed", "has_marketing_consent")
                },
                **{name: at(profile[name]) if name in profile else None for name in times},
            }
            for contact, profile in PROFILES.items()
        ],
        **dict.fromkeys(times, pl.Datetime("ms", "UTC")),
    )
    insert(
        models,
        "intermediate.int_contacts__identified",
        [
            {
                "identity_id": contact * 10 + number,
                "contact_id": contact,
                "kind": kind,
                "source": source,
                "identifier": name,
            }
            for contact in PROFILES
            for number, (kind, source, name) in enumerate(
                [("record", "shop", str(contact)), ("email", "", f"p{contact}@example.com")]
            )
        ],
    )
    insert(
        models,
        "intermediate.int_events__recorded",
        [
            {
                "type": kind,
                "identity_id": contact * 10 + contact % 2,
                "is_machine": machine,
                "occurred_at": at(moment),
            }
            for kind, contact, moment, machine in EVENTS
        ],
    )
    insert(
        models,
        "raw.list_members",
        [
            dict(
                zip(
                    ("list", "source", "email", "external_id", "is_member", "changed_at"),
                    (*row[:5], at(row[5])),
                    strict=True,
                )
            )
            for row in MEMBERS
        ],
    )
    predict(models, "churn", "1", "06-01", {1: 0.9, 8: 0.2})
    predict(models, "churn", "2", "06-20", {8: 0.8, 9: 0.69, 10: 0.95})
    predict(models, "purchase", "1", "06-20", {2: 0.5, 3: 0.49, 7: 0.9, 12: 0.9})
    predict(models, "lifetime_value", "1", "06-20", {1: 10.0, 7: 500.0, 8: 20.0, 9: 0.0, 11: 30.0})
    models.build(
        *("--select", "int_contacts__browsed", "int_predictions__current", "stg_lists__members"),
        *("int_lists__identified", *KINDS, "int_segments__changed", *AFTER, "segment_memberships"),
        command="run",
    )
    yield models


def at(text: str) -> datetime:
    """`06-25`, `06-25 12:00` of 2011, or with the year before it."""
    return datetime.fromisoformat(text if text.startswith("20") else f"2011-{text}").replace(tzinfo=UTC)


def insert(models: Models, table: str, rows: list[dict[str, Any]], **types: Any) -> None:
    """Put rows into a table of the tests, or of the raw ones."""
    times = {name: pl.Datetime("ms", "UTC") for name in ("occurred_at", "changed_at")}
    frame = pl.DataFrame(rows, schema_overrides={**times, **types})
    models.warehouse.insert(table if table.startswith("raw.") else f"{PREFIX}{table}", frame)


def predict(models: Models, model: str, version: str, as_of: str, scores: dict[int, float]) -> None:
    """Load scores of a model version."""
    insert(
        models,
        "raw.predictions",
        [
            {
                "model": model,
                "model_version": version,
                "as_of": at(as_of),
                "contact_id": contact,
                "score": score,
            }
            for contact, score in scores.items()
        ],
        as_of=pl.Datetime("ms", "UTC"),
    )


def people(models: Models, segment: str) -> set[int]:
    """Members of a segment."""
    return set(models.frame(f"select contact_id from segments.{segment}")["contact_id"])


def test_each_kind_of_segment_finds_its_people(built: Models) -> None:
    found = {name: people(built, name) for name in KINDS}
    assert found == {
        "viewed_not_bought": {2},
        "abandoned_carts": {5},
        "order_anniversaries": {8, 11},
        "one_time_buyers": {8, 9},
        "subscribers_without_order": {2, 6},
        # of the newest version alone, and only customers
        "likely_to_churn": {8},
        # half and more, customers or not, but nobody who is deleted
        "likely_to_buy": {2, 7},
        # a fifth of five
        "high_future_value": {7},
        # by number, by address and by a number that one source has; 6 was taken off, 12 is deleted
        "customer_council": {3, 4, 5},
    }


def test_a_version_that_was_not_promoted_is_not_used(built: Models) -> None:
    built.warehouse.execute(
        "insert into raw.model_evaluations (model, model_version, as_of, metric, value)"
        " values ('churn', '1', now64(3), 'promoted', 1)"
    )
    built.build("--select", "likely_to_churn", command="run")
    # 8 scores 0.2 there
    assert people(built, "likely_to_churn") == {1}
    built.warehouse.execute("truncate table raw.model_evaluations")
    built.warehouse.execute("truncate table raw.predictions")
    built.build("--select", "likely_to_churn", command="run")
    assert people(built, "likely_to_churn") == set()


Change = tuple[str, int, str, datetime, datetime]


class Expected:
    """What should be known of segments: the same log, folded by plain Python."""

    def __init__(self) -> None:
        self.entered: dict[tuple[str, int], datetime] = {}
        self.changes: list[Change] = []

    @property
    def members(self) -> set[tuple[str, int]]:
        """Who is in what, as far as it is noted."""
        return set(self.entered)

    def note(self, keys: set[tuple[str, int]], at: datetime) -> None:
        """Whoever is in leaves, whoever is not enters."""
        for segment, contact in keys:
            key = (segment, contact)
            if key in self.entered:
                self.changes.append((segment, contact, "left", self.entered.pop(key), at))
            else:
                self.entered[key] = at
                self.changes.append((segment, contact, "entered", at, at))

    def stays(self) -> list[tuple[Any, ...]]:
        """Rows of segment_memberships."""
        ended = [(s, c, began, at) for s, c, change, began, at in self.changes if change == "left"]
        going = [(s, c, began, None) for (s, c), began in self.entered.items()]
        return sorted(ended + going, key=lambda row: row[:3])

    def sizes(self, today: date) -> list[tuple[Any, ...]]:
        """Rows of segment_sizes, a day at a time."""
        rows: list[tuple[Any, ...]] = []
        for segment in sorted({change[0] for change in self.changes}):
            mine = [change for change in self.changes if change[0] == segment]
            day, size = min(change[4] for change in mine).date(), 0
            while day <= today:
                entered = sum(1 for change in mine if change[4].date() == day and change[2] == "entered")
                left = sum(1 for change in mine if change[4].date() == day and change[2] == "left")
                size += entered - left
                rows.append((segment, day, size, entered, left))
                day += timedelta(days=1)
        return rows


@pytest.mark.slow
def test_random_histories_equal_plain_python(built: Models) -> None:
    """Days without builds, builds without change, killed runs, two runs at once, a clock that is set back."""
    dice = random.Random(20110627)
    expected = Expected()
    warehouse = built.warehouse
    for segment in [
        row[0] for row in built.rows(f"select name from system.tables where database = '{PREFIX}segments'")
    ]:
        warehouse.execute(f"truncate table {PREFIX}segments.{segment}")
    for table in (LOG, f"{PREFIX}marts.segment_changes", f"{PREFIX}marts.segment_sizes"):
        warehouse.execute(f"truncate table {table}")
    warehouse.execute(f"truncate table {PREFIX}intermediate.int_segments__settled")

    offset = timedelta(0)
    latest = datetime(1970, 1, 1, tzinfo=UTC)
    kinds = ["whole", "changes", "killed", "twice", "late", "same", "back"]
    for turn, kind in enumerate(kinds):
        offset += timedelta(days=dice.choice([0, 1, 3, 17]), minutes=dice.randrange(1, 90))
        if kind == "back":
            offset -= timedelta(days=25)
        current = (
            expected.members
            if kind == "same"
            else {(segment, contact) for segment in OFTEN for contact in range(1, 40) if dice.random() < 0.4}
        )
        if turn == 1:
            current = {key for key in current if key[0] != "advocates"}
        for segment in OFTEN:
            ids = [contact for name, contact in current if name == segment]
            warehouse.execute(f"truncate table {PREFIX}segments.{segment}")
            warehouse.execute(f"insert into {PREFIX}segments.{segment} select arrayJoin({ids}::Array(Int64))")

        after = {"killed": (), "twice": (), "changes": AFTER[:1]}.get(kind, AFTER)
        built.build("--select", "int_segments__changed", *after, command="run", offset=offset)
        noted = built.rows(
            f"select segment, contact_id, is_member, changed_at from {LOG} where changed_at > '{latest:%F %T.%f}'"
        )
        differing = current ^ expected.members
        assert {row[:2] for row in noted} == differing, kind
        moments = {row[3] for row in noted}
        assert len(moments) == (1 if differing else 0), "one moment for all that a run notes"
        if kind == "killed":
            lost = {key for key in differing if dice.random() < 0.5}
            warehouse.execute(
                f"delete from {LOG} where changed_at = '{max(moments):%F %T.%f}'"
                f" and (segment, contact_id) in ({', '.join(str(key) for key in lost)})"
            )
            differing -= lost
        if differing:
            latest = max(moments)
            assert latest > built.now + offset - timedelta(minutes=1)
            expected.note(differing, latest)
        again = f"""
            insert into {LOG} select segment, contact_id, is_member, changed_at + toIntervalMillisecond(7)
            from {LOG} where changed_at = '{latest:%F %T.%f}' and contact_id % 3 = 0
        """
        if kind == "twice":
            warehouse.execute(again)
            latest += timedelta(milliseconds=7)
            built.build("--select", *AFTER, command="run", offset=offset)
        if kind == "killed":
            continue
        if kind == "late":
            # the other of two runs ends after all was settled
            warehouse.execute(again)
            latest += timedelta(milliseconds=7)
        check(built, expected, kind, settled=kind != "changes", today=(built.now + offset).date())

    increments = {name: everything(built, name) for name in AFTER}
    built.build("--select", *AFTER, "--full-refresh", command="run", offset=offset)
    for name in AFTER:
        assert everything(built, name).equals(increments[name]), name


def check(models: Models, expected: Expected, kind: str, *, settled: bool, today: date) -> None:
    changes = models.rows(
        "select segment::String, contact_id, change::String, entered_at, changed_at from marts.segment_changes"
    )
    assert sorted(changes) == sorted(expected.changes), kind
    if not settled:
        return
    stays = models.rows(
        "select segment::String, contact_id, valid_from, valid_to from marts.segment_memberships"
        " order by 1, 2, 3"
    )
    assert stays == expected.stays(), kind
    sizes = models.rows(
        "select segment::String, day, members_count, entered_count, left_count from marts.segment_sizes"
        " order by 1, 2"
    )
    last = max(today, max(change[4] for change in expected.changes).date())
    assert sizes == expected.sizes(last), kind


def everything(models: Models, name: str) -> pl.DataFrame:
    place = "intermediate" if name.startswith("int_") else "marts"
    frame = models.frame(f"select * from {place}.{name}")
    return frame.sort([column for column in frame.columns if column != "folded_through"])


def test_stays_while_changes_are_a_step_ahead(built: Models) -> None:
    """Between two models of a build no stay is told both as ended and as going on."""
    warehouse = built.warehouse
    warehouse.execute(f"truncate table {PREFIX}segments.engaged")
    before = built.rows("select * from marts.segment_memberships order by 1, 2, 3, 4")
    later = timedelta(days=200)
    built.build("--select", "int_segments__changed", "segment_changes", command="run", offset=later)
    assert built.rows("select * from marts.segment_memberships order by 1, 2, 3, 4") == before
    built.build("--select", "int_segments__settled", command="run", offset=later)
    after = built.rows("select * from marts.segment_memberships order by 1, 2, 3, 4")
    assert len(after) == len(before)
    assert [row for row in after if row[0] == "engaged" and row[3] is None] == []


def test_overlaps_of_random_people(built: Models) -> None:
    dice = random.Random(7)
    names = ["a", "b", "c", "d"]
    people = {contact: [name for name in names if dice.random() < 0.4] for contact in range(60)}
    table = f"{PREFIX}marts.contact_profiles"
    built.warehouse.execute(f"truncate table {table}")
    built.warehouse.insert(
        table,
        pl.DataFrame(
            {"contact_id": list(people), "segments": list(people.values())},
            schema={"contact_id": pl.Int64(), "segments": pl.List(pl.String())},
        ),
    )
    built.build("--select", "segment_overlaps", command="run")
    found = {
        (row["segment"], row["other_segment"]): row
        for row in built.frame("select * from marts.segment_overlaps").to_dicts()
    }
    sets = {name: {contact for contact, segments in people.items() if name in segments} for name in names}
    assert set(found) == {(one, other) for one in names for other in names if one != other}
    for (one, other), row in found.items():
        both, either = len(sets[one] & sets[other]), len(sets[one] | sets[other])
        assert (row["segment_size"], row["other_size"]) == (len(sets[one]), len(sets[other]))
        assert row["shared_count"] == both
        assert row["jaccard"] == pytest.approx(both / either)
        assert row["share_of_segment"] == pytest.approx(both / len(sets[one]))


def test_rules_and_keys_hold(built: Models) -> None:
    """Unit tests and data tests of what is made from segments, on what the histories left."""
    built.build(
        "--select", "segment_overlaps", "int_contacts__browsed", "int_predictions__current", command="run"
    )
    mine = ("int_segments__changed", *AFTER, "segment_memberships", "segment_overlaps")
    read = ("int_contacts__browsed", "int_predictions__current", "int_lists__identified")
    tested = built.build(
        "--select",
        *mine,
        *read,
        "--exclude",
        "relationships_*",
        "--indirect-selection",
        "cautious",
        command="test",
    )
    names = {one.node.name for one in tested.results}
    assert {"each_change_counts_once", "sizes_of_days_without_change", "overlaps_of_pairs"} <= names
    assert {"newest_promoted_version", "lists_find_their_people", "a_week_of_browsing"} <= names
