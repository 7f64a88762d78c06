"""The marts over the demo's data: counts that are published, and that building twice changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from models import NOW, PREFIX, Models

from crm.files import ingest_files, load_sources
from demo.data import write_inputs
from warehouse.settings import PROJECT_ROOT

TABLES = (
    *("contacts", "orders", "order_items", "products", "events", "messages", "rfm", "retention_cohorts"),
    *("campaign_performance", "contact_profiles", "segment_memberships", "consents", "suppressions"),
)
AGES = {"contact_profiles": "engagement_score"}


@pytest.fixture(scope="module")
def built(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """The demo's data, built once with every data test and unit test."""
    home = tmp_path_factory.mktemp("home")
    write_inputs(home / "inbox")
    for source in load_sources(PROJECT_ROOT / "content").values():
        ingest_files(models.warehouse, source, base_dir=home, run_id="test", now=NOW)
    models.build()
    yield models


def fingerprints(models: Models) -> dict[str, Any]:
    """Rows and a hash of each mart, without what ages."""
    found = {}
    for table in TABLES:
        columns = models.frame(f"select * from marts.{table} limit 0").columns
        kept = ", ".join(name for name in columns if name != AGES.get(table) and name != "properties")
        found[table] = models.rows(
            f"select count(), groupBitXor(sipHash64(tuple({kept}))) from marts.{table}"
        )[0]
    return found


def test_order_items(built: Models) -> None:
    [row] = built.rows(
        """
        select count(), uniqExact(order_id), uniqExact(contact_id), countIf(contact_id is null),
            countIf(status = 'cancelled')
        from marts.order_items
        """
    )
    assert row == (240_007, 12_468, 2_974, 67_225, 4_350)


def test_cleaned_sales(built: Models) -> None:
    by_line = """
        select countIf(true), uniqExact(contact_id), uniqExact(order_id), sum(amount) from marts.order_items
        where contact_id is not null and status = 'placed' and quantity > 0 and unit_price > 0
    """
    assert built.rows(by_line) == [(168_662, 2_931, 8_589, Decimal("3888971.74"))]
    by_order = """
        select uniqExact(contact_id), count(), sum(revenue) from marts.orders where is_sale and contact_id is not null
    """
    assert built.rows(by_order) == [(2_931, 8_589, Decimal("3888971.74"))]
    assert built.rows("select count(), sum(revenue) from marts.rfm") == [(2_931, Decimal("3888971.74"))]
    assert built.value("select sum(revenue) from marts.contact_profiles") == Decimal("3888971.74")


def test_cohorts(built: Models) -> None:
    cohorts = """
        select active_count from marts.retention_cohorts where months_since_first_order = 0 order by cohort_month
    """
    assert [row[0] for row in built.rows(cohorts)] == [885, 417, 380, 452, 300, 284, 213]
    active = """
        select sum(active_count) from marts.retention_cohorts
        group by addMonths(cohort_month, months_since_first_order) as month order by month
    """
    assert [row[0] for row in built.rows(active)] == [885, 741, 758, 974, 856, 1_056, 882]


def test_scores_split_customers_in_fifths(built: Models) -> None:
    sizes = dict(built.rows("select monetary_score, count() from marts.rfm group by 1"))
    assert set(sizes) == {1, 2, 3, 4, 5}
    assert all(abs(size - 2_931 / 5) < 2 for size in sizes.values())
    # 46 % ordered once: they cannot be told apart, so none of them may be better than another
    scores = "select uniqExact(frequency_score) from marts.rfm group by orders_count"
    assert set(built.rows(scores)) == {(1,)}
    monotone = """
        select count() from marts.rfm as a, marts.rfm as b
        where (a.orders_count < b.orders_count and a.frequency_score > b.frequency_score)
            or (a.revenue < b.revenue and a.monetary_score > b.monetary_score)
            or (a.last_order_at < b.last_order_at and a.recency_score > b.recency_score)
    """
    assert built.value(monotone) == 0


def test_profiles_hold_everybody_once(built: Models) -> None:
    [row] = built.rows(
        """
        select count(), uniqExact(contact_id), min(contact_id) > 0, countIf(has_marketing_consent),
            countIf(is_suppressed), countIf(rfm_segment != '')
        from marts.contact_profiles
        """
    )
    assert row == (2_974, 2_974, True, 2_814, 0, 2_931)
    known = """
        select orders_count, revenue, days_since_last_order, country from marts.contact_profiles
        where email = 'customer-12346@example.com'
    """
    # the famous order of 74,215 pieces, cancelled a quarter of an hour later by a credit note of its own
    assert built.rows(known) == [(1, Decimal("77183.60"), 160, "United Kingdom")]


def test_postage_is_no_product_to_recommend(built: Models) -> None:
    services = built.rows(
        "select product_id, is_available from marts.products where is_service order by product_id"
    )
    assert ("POST", False) in services
    assert ("DOT", False) in services
    assert built.value("select countIf(is_available) from marts.products where not is_service") > 2_500


def test_engagement_ages_without_a_build(built: Models) -> None:
    def score(at: str) -> float:
        """The score of everybody at a time, from the stored sums."""
        return built.value(
            f"""
            with dateDiff('second', toDateTime('2020-01-01 00:00:00', 'UTC'), toDateTime('{at}', 'UTC')) / 86400 as age
            select sum(decayed_sum / exp2(age / half_life_days)) from intermediate.int_engagement__decayed
            """
        )

    direct = """
        with dateDiff('second', occurred_at, toDateTime64('2011-06-27 00:00:00', 3, 'UTC')) / 86400 as age
        select sum(10 * exp2(-age / 60)) from marts.events where type = 'order.placed' and contact_id is not null
    """
    assert score("2011-06-27 00:00:00") == pytest.approx(built.value(direct), rel=1e-9)
    # a half-life of 60 days later, from the same table
    assert score("2011-08-26 00:00:00") == pytest.approx(score("2011-06-27 00:00:00") / 2)
    viewed = built.value("select sum(engagement_score) from marts.engagement")
    # the view is read minutes after NOW
    assert viewed == pytest.approx(score(f"{NOW:%F %T}"), rel=0.001)


def test_views_read_the_same_with_either_join_setting(built: Models) -> None:
    for view in ("consents", "suppressions", "recommendations", "segment_memberships", "engagement"):
        columns = "*" if view != "engagement" else "contact_id, engagement_band, last_engaged_at"
        read = f"select count(), groupBitXor(sipHash64(tuple({columns}))) from marts.{view}"
        off, on = (built.rows(f"{read} settings join_use_nulls = {value}") for value in (0, 1))
        assert off == on, view


def test_descriptions_reach_the_warehouse(built: Models) -> None:
    bare = f"""
        select table, name from system.columns
        where database in ('{PREFIX}marts', '{PREFIX}segments') and comment = ''
    """
    assert built.rows(bare) == []
    tables = f"select name from system.tables where database in ('{PREFIX}marts', '{PREFIX}segments') and comment = ''"
    assert built.rows(tables) == []


@pytest.mark.slow
def test_building_again_changes_nothing(built: Models) -> None:
    before = fingerprints(built)
    changes = built.value("select count() from intermediate.int_segments__changed")
    parts = f"""
        select name, rows from system.parts
        where database = '{PREFIX}intermediate' and table = 'int_events__recorded' and active order by name
    """
    loaded = built.rows(parts)
    result = built.build("--exclude-resource-type", "unit_test", offset=timedelta(minutes=5))
    assert {one.status for one in result.results} <= {"success", "pass", "no-op"}
    assert fingerprints(built) == before
    assert built.value("select count() from intermediate.int_segments__changed") == changes
    # not one part of the events was written anew
    assert built.rows(parts) == loaded


def test_compiled_queries_leave_nothing_behind(built: Models) -> None:
    left = f"select database, name from system.tables where database like '{PREFIX}%' and name like '%\\_\\_dbt\\_%'"
    assert built.rows(left) == []


def test_artefacts_name_no_password(built: Models, dbt_target: Path) -> None:
    assert "CLICKHOUSE_PASSWORD" not in (dbt_target / "manifest.json").read_text()
