"""The `bi` schema: one view a question, said in plain words, that shows nobody's name or address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from models import PREFIX, Models, order

from dashboards.build import Bundle

# what names a person, or leads to one without the marts
PERSONAL = re.compile(
    r"email|phone|name$|address$|(^|_)ip$|user_agent|external_id|anonymous_id|identifier|subject$|birth|city|postcode"
)
# of a campaign, an order, a segment; of a step
ALLOWED = {"subject_name", "step_name"}
PERSON = {
    "first_name": "Zebulina",
    "last_name": "Quackenbush",
    "phone": "+44 7700 900123",
    "city": "Llanfair",
}
EMAIL = "zebulina.quackenbush@example.com"


def bi_views(manifest: Any) -> list[Any]:
    return [node for node in manifest.nodes.values() if node.resource_type == "model" and node.fqn[1] == "bi"]


def test_every_view_begins_with_the_question_it_answers(manifest: Any) -> None:
    views = bi_views(manifest)
    assert len(views) >= 18
    for view in views:
        assert view.config.materialized == "view", view.name
        assert view.config.contract.enforced, view.name
        assert view.description.partition("?")[1], f"{view.name} asks nothing"
        assert len(view.description.partition("?")[0].split()) <= 16, view.name


def test_every_column_is_described_in_words(manifest: Any) -> None:
    for view in bi_views(manifest):
        assert view.columns, view.name
        for column in view.columns.values():
            words = column.description.split()
            assert words and column.description.strip().endswith("."), f"{view.name}.{column.name}"
            assert column.data_type, f"{view.name}.{column.name}"


def test_no_column_is_personal_and_not_masked(manifest: Any) -> None:
    for view in bi_views(manifest):
        for name, column in view.columns.items():
            is_masked = column.config.meta.get("masked") is True
            assert name in ALLOWED or is_masked or not PERSONAL.search(name), f"{view.name}.{name}"
        # these are about single people; no other says who
        is_about_people = view.name in ("customer_timeline", "customers", "consent_proofs")
        assert ("contact_id" in view.columns) == is_about_people, view.name


def test_views_read_marts_only(manifest: Any) -> None:
    for view in bi_views(manifest):
        assert view.depends_on.nodes, view.name
        for parent in view.depends_on.nodes:
            assert manifest.nodes[parent].fqn[1] == "marts", f"{view.name} reads {parent}"


def test_exposures_name_teams_and_models(manifest: Any) -> None:
    assert len(manifest.exposures) >= 9
    for exposure in manifest.exposures.values():
        assert exposure.depends_on.nodes, exposure.name
        for parent in exposure.depends_on.nodes:
            assert parent in manifest.nodes, f"{exposure.name} reads {parent}"
        assert exposure.owner.email is None, exposure.name
        assert exposure.owner.name in ("Lifecycle marketing", "Analytics engineering", "Data science"), (
            exposure.name
        )
        assert len(exposure.description.split()) >= 8, exposure.name


def test_each_dashboard_is_an_exposure_of_the_views_it_reads(manifest: Any) -> None:
    bundle = Bundle()
    assert len(bundle.dashboards) == 6
    exposures = {exposure.name: exposure for exposure in manifest.exposures.values()}
    for name, views in bundle.reads().items():
        exposure = exposures[f"dashboard_{name}"]
        assert exposure.label == bundle.dashboards[name].title
        assert {parent.split(".")[-1] for parent in exposure.depends_on.nodes} == views, name


@pytest.fixture(scope="module")
def built(models: Models) -> Iterator[Models]:
    """A person with everything that could give them away, and what was sent to them."""
    models.contact("1", EMAIL, "01-01", country="France", **PERSON)
    models.contact("2", "other@example.org", "01-02")
    models.consent(EMAIL, "01-03")
    models.events(
        order("1001", "02-01", "20.00", email=EMAIL),
        order("1002", "06-20", "30.00", email=EMAIL),
        order("1003", "03-05", "10.00", email="other@example.org"),
        {"id": "v1", "type": "page.viewed", "at": "06-01", "email": EMAIL,
         "properties": {"url": f"https://pots.example/account?email={EMAIL}"}},
        {"id": "u1", "type": "unsubscribed", "at": "06-21", "email": "other@example.org"},
    )  # fmt: skip
    rows = [
        {
            "message_id": f"m{number}",
            "sequence": 1,
            "status": "sent",
            "kind": "campaign",
            "name": "spring",
            "occurrence": "2011-06-10T08:00:00Z",
            # an id of before a merge: the address leads to the person
            "contact_id": 99,
            "email": email,
            "channel": "email",
            "provider": "smtp",
            "category": "marketing",
            "subject": f"{PERSON['first_name']}, your pots",
            "changed_at": "2011-06-10 08:00:00.000",
        }
        for number, email in enumerate((EMAIL, "other@example.org"))
    ]
    values = ", ".join(str(tuple(row.values())) for row in rows)
    models.warehouse.execute(f"insert into raw.messages ({', '.join(rows[0])}) values {values}")
    models.events(
        {"id": "d0", "type": "delivered", "at": "06-10 08:01", "message_id": "m0", "email": EMAIL},
        {"id": "o0", "type": "opened", "at": "06-10 09:00", "message_id": "m0", "email": EMAIL},
        {"id": "c0", "type": "clicked", "at": "06-10 09:01", "message_id": "m0", "email": EMAIL,
         "properties": {"url": "https://pots.example/blue?utm_source=mail&mc_eid=zebulina", "is_machine": False}},
        {"id": "b1", "type": "bounced", "at": "06-10 08:02", "message_id": "m1", "email": "other@example.org",
         "properties": {"bounce_class": "hard", "reject_reason": "bounced"}},
    )  # fmt: skip
    models.build("--select", "+path:models/bi", "--exclude-resource-type", "unit_test", "test")
    yield models


@pytest.mark.slow
def test_nothing_personal_is_in_any_view(built: Models, manifest: Any) -> None:
    # of a masked address the first letter and the domain stay
    giveaways = re.compile(r"zebulina|quackenbush|7700\D?900123|llanfair|other@|[^*]@example", re.IGNORECASE)
    filled = 0
    for view in bi_views(manifest):
        rows = built.rows(f"select * from bi.{view.name}")
        filled += bool(rows)
        assert not giveaways.search(repr(rows)), view.name
    # the search had something to search
    assert filled >= 14
    assert giveaways.search(repr(built.rows("select * from marts.contacts")))


@pytest.mark.slow
def test_views_say_what_marts_say(built: Models) -> None:
    [sums] = built.rows("select sum(sent_count), sum(opened_count), sum(revenue) from bi.campaign_results")
    assert sums == (2, 1, 30)
    assert built.rows(
        "select sum(sent_count), sum(opened_count), sum(revenue) from bi.campaign_results_by_day"
    ) == [sums]
    assert built.rows("select sum(customers_count), sum(orders_count), sum(revenue) from bi.rfm_grid") == [
        (2, 3, 60)
    ]
    sales = "select customer_type, sum(orders_count), sum(revenue) from bi.sales_by_day group by 1 order by 1"
    assert built.rows(sales) == [("new", 2, 30), ("returning", 1, 30)]
    bands = "select sum(contacts_count), sum(mailable_count), sum(customers_count) from bi.engagement_bands"
    assert built.rows(bands) == [(2, 1, 2)]
    lost = "select reason, addresses_count from bi.lost_addresses order by 1"
    assert built.rows(lost) == [("bounced", 1)]
    assert built.rows("select url, clickers_count from bi.link_clicks") == [("https://pots.example/blue", 1)]


@pytest.mark.slow
def test_a_timeline_tells_one_customers_story(built: Models) -> None:
    [(contact,)] = built.rows(f"select contact_id from marts.contacts where email = '{EMAIL}'")
    story = built.rows(
        f"""
        select area, happening, subject_name, revenue from bi.customer_timeline
        where contact_id = {contact} and area != 'segment' order by happened_at
        """
    )
    assert story == [
        ("shop", "ordered", "1001", 20),
        ("mail", "sent", "spring", 0),
        ("mail", "delivered", "spring", 0),
        ("mail", "opened", "spring", 0),
        ("mail", "clicked", "spring", 0),
        ("shop", "ordered", "1002", 30),
    ]
    entered = built.value(
        "select count() from bi.customer_timeline where area = 'segment' and happening = 'entered'"
    )
    assert entered == built.value("select count() from marts.segment_memberships") > 0


@pytest.mark.slow
@pytest.mark.parametrize("view", ["marts.messages", "intermediate.int_messages__owned"])
def test_messages_of_other_months_are_not_read(built: Models, view: str) -> None:
    # all of these were sent in June
    plans = [
        "\n".join(
            row[0] for row in built.rows(f"explain indexes = 1 select count() from {view} where {condition}")
        )
        for condition in ("created_at < '2011-06-01'", "created_at >= '2011-06-01'")
    ]
    read = [re.findall(r"int_messages__followed\).*?Parts: (\d+)", plan, re.DOTALL) for plan in plans]
    assert read[0] in (["0"], []), plans[0]
    assert read[1] == ["1"], plans[1]


@pytest.mark.slow
def test_views_read_the_same_with_either_join_setting(built: Models, manifest: Any) -> None:
    for view in bi_views(manifest):
        # scores age between two reads
        columns = "* except engagement_score_sum" if view.name == "engagement_bands" else "*"
        read = f"select {columns} from bi.{view.name} order by all settings join_use_nulls ="
        assert built.rows(f"{read} 0") == built.rows(f"{read} 1"), view.name


@pytest.mark.slow
def test_descriptions_reach_the_warehouse(built: Models) -> None:
    bare = f"select table, name from system.columns where database = '{PREFIX}bi' and comment = ''"
    assert built.rows(bare) == []
    assert built.rows(f"select name from system.tables where database = '{PREFIX}bi' and comment = ''") == []


@pytest.mark.slow
def test_every_figure_of_the_dashboards_can_be_asked(built: Models) -> None:
    catalogue = Bundle().catalogue
    for name, view in catalogue.views.items():
        figures = [f"{metric.expression} as {title}" for title, metric in view.metrics.items()]
        labels = [f"any({column.sql}) as {title}" for title, column in view.computed.items()]
        assert len(built.rows(f"select {', '.join(figures + labels)} from bi.{name}")) == 1, name
