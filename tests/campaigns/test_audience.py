from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from campaigns.audience import AUDIENCE_COLUMNS, Audience, Shard
from campaigns.checks import check_drift, run_checks
from privacy.person import Person
from privacy.restricting import change
from warehouse.client import Warehouse
from warehouse.errors import InputError

MONDAY = datetime(2011, 6, 27, 8, tzinfo=UTC)
LAST_MONDAY = MONDAY - timedelta(days=7)


def rows(audience: Audience, size: int = 1_000) -> pl.DataFrame:
    return pl.concat(list(audience.batches(size)))


def reasons(audience: Audience) -> dict[int, str]:
    return dict(rows(audience).select("contact_id", "skip_reason").iter_rows())


def test_reasons_are_judged_in_order(marts, write_spec):
    marts.contacts(1, 6)
    warehouse = marts.warehouse
    warehouse.execute(
        "insert into segments.at_risk values (7), (8)"
    )  # 7 has no profile any more, 8 no consent
    warehouse.execute("insert into marts.contact_profiles (contact_id, email) values (8, 'c8@example.com')")
    warehouse.execute("alter table marts.contact_profiles update email = 'no address' where contact_id = 2")
    marts.suppress("no address", "bounced")  # invalid comes before suppressed
    marts.suppress("C3@example.com ", "unsubscribed")
    marts.suppress("c8@example.com", "complained")  # suppressed comes before no_consent
    warehouse.execute("alter table marts.consented update is_granted = false where contact_id = 4")
    warehouse.execute("alter table marts.consented update purpose = 'orders' where contact_id = 5")
    warehouse.execute("alter table marts.consented update channel = 'sms' where contact_id = 6")

    audience = Audience(warehouse, write_spec(), MONDAY)
    assert audience.freeze() is not None
    warehouse.execute("delete from marts.contact_profiles where contact_id = 7")
    warehouse.execute(
        "insert into campaigns.audience_members (audience_id, contact_id) values ({a:UUID}, 7)",
        {"a": audience.freeze().audience_id},
    )
    frame = rows(audience)

    assert frame["contact_id"].to_list() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert frame["skip_reason"].to_list() == [
        "", "invalid", "suppressed", "no_consent", "no_consent", "no_consent", "deleted", "suppressed",
    ]  # fmt: skip
    # the change that decided, a withdrawal too
    assert frame["consent_id"].to_list()[:5] == [*(f"consent-{number}" for number in range(1, 5)), ""]
    assert frame["suppression_event_id"].to_list()[2] == "event-unsubscribed"


def test_transactional_needs_no_consent_but_honours_hard_bounces(marts, write_spec):
    marts.contacts(1, 3)
    marts.warehouse.execute("insert into segments.at_risk values (4)")
    marts.warehouse.execute(
        "insert into marts.contact_profiles (contact_id, email) values (4, 'd@example.com')"
    )
    marts.suppress("c1@example.com", "bounced")
    marts.suppress("c2@example.com", "unsubscribed")
    audience = Audience(marts.warehouse, write_spec(send__category="transactional"), MONDAY)
    assert reasons(audience) == {1: "suppressed", 2: "", 3: "", 4: ""}


def test_quiet_hours_are_by_the_contacts_clock(marts, write_spec):
    zones = {
        1: "Europe/London", 2: "America/Los_Angeles", 3: "Asia/Tokyo", 4: None, 5: "Nowhere/At_All", 6: "",
        7: "Asia/Kolkata",
    }  # fmt: skip
    marts.contacts(1, 7)
    for contact_id, zone in zones.items():
        marts.warehouse.execute(
            "alter table marts.contact_profiles update timezone = {zone:Nullable(String)} where contact_id = {id:Int64}"
            " settings mutations_sync = 1",
            {"zone": zone, "id": contact_id},
        )
    marts.suppress("c2@example.com", "unsubscribed")
    spec = write_spec(quiet_hours={"after": "17:00", "before": "08:30"})

    def skipped(hour: int) -> list[int]:
        now = MONDAY.replace(hour=hour)
        found = reasons(Audience(marts.warehouse, spec, MONDAY, clock=lambda: now))
        assert found.pop(2) == "suppressed"
        assert set(found.values()) <= {"", "quiet_hours"}
        return [contact_id for contact_id, reason in found.items() if reason]

    # 8 UTC is 9:00 in London (also for those without a zone), 17:00 in Tokyo, 13:30 in Kolkata
    assert skipped(8) == [3]
    # 7 UTC is 8:00 in London, 16:00 in Tokyo
    assert skipped(7) == [1, 4, 5, 6]
    # 12 UTC is 13:00 in London, 21:00 in Tokyo, 17:30 in Kolkata
    assert skipped(12) == [3, 7]
    summary = Audience(marts.warehouse, spec, MONDAY, clock=lambda: MONDAY).summary()
    assert (summary.sendable, summary.skipped) == (5, {"quiet_hours": 1, "suppressed": 1})


@pytest.mark.parametrize(
    ("after", "before", "quiet"),
    [("21:00", "08:00", [21, 23, 0, 7]), ("12:00", "14:00", [12, 13]), ("00:00", "06:00", [0, 5])],
)
def test_quiet_hours_may_go_over_midnight(write_spec, after, before, quiet):
    hours = write_spec(quiet_hours={"after": after, "before": before}).quiet_hours
    found = [hour for hour in range(24) if hours.is_quiet(MONDAY.replace(hour=hour), "UTC")]
    assert set(quiet) <= set(found)
    assert all(
        (hour in found) != hours.is_quiet(MONDAY.replace(hour=(hour + 12) % 24), "UTC") for hour in quiet
    )


ADDRESSES = {
    "ann@example.com": True,
    "Ann.O'Hara+news@mail.example.co.uk": True,
    "ann@xn--bcher-kva.example": True,
    "": False,
    "ann": False,
    "ann@example": False,
    "ann@@example.com": False,
    "a b@example.com": False,
    "ann@example.com, bob@example.com": False,
    "ann@example.com\nBcc: bob@example.com": False,
    "<ann@example.com>": False,
    "ann@-example.com": False,
    "a" * 65 + "@example.com": False,
}


def test_which_addresses_are_valid(marts, write_spec):
    marts.contacts(101, 100 + len(ADDRESSES))
    marts.warehouse.execute(
        """
        alter table marts.contact_profiles update email = {emails:Array(String)}[contact_id - 100] where 1
        settings mutations_sync = 1
        """,
        {"emails": list(ADDRESSES)},
    )
    found = rows(Audience(marts.warehouse, write_spec(), MONDAY)).select("email", "skip_reason")
    expected = {email: "" if is_valid else "invalid" for email, is_valid in ADDRESSES.items()}
    assert dict(found.iter_rows()) == expected


def test_batches_carry_profile_and_ranked_recommendations(marts, write_spec):
    marts.contacts(1, 3)
    marts.warehouse.execute(
        """
        insert into marts.recommendations values
            (2, 9, 'p3', 'Three', 3.5, '', '', 'item_to_item', 'v7', 'popular'),
            (2, 1, 'p1', 'One', 1.25, 'https://example.com/1.png', '', 'item_to_item', 'v7',
                'bought_together'),
            (2, 4, 'p2', 'Two', 2, '', '', 'item_to_item', 'v7', 'bought_together')
        """
    )
    audience = Audience(marts.warehouse, write_spec(send__recommendations=2), MONDAY)
    frame = rows(audience)
    assert set(AUDIENCE_COLUMNS) <= set(frame.columns)
    assert set(audience.profile_columns()) <= set(frame.columns)
    assert frame.schema["contact_id"] == pl.Int64
    items = frame["recommendations"].to_list()
    assert items[0] == [] and items[2] == []
    assert [(item["product_id"], item["name"], str(item["price"]), item["reason"]) for item in items[1]] == [
        ("p1", "One", "1.25", "bought_together"),
        ("p2", "Two", "2.00", "bought_together"),
    ]
    assert items[1][0]["image_url"] == "https://example.com/1.png"
    assert frame["recommendation_version"].to_list() == ["", "v7", ""]

    none = rows(Audience(marts.warehouse, write_spec(), MONDAY))
    assert none.schema["recommendations"] == frame.schema["recommendations"]
    assert none["recommendations"].to_list() == [[], [], []]


@pytest.mark.parametrize(("page_rows", "size"), [(4, 1), (7, 3), (10, 10), (1_000, 4)])
def test_pages_lose_and_double_nobody(marts, write_spec, page_rows, size):
    marts.contacts(1, 30)
    audience = Audience(marts.warehouse, write_spec(), MONDAY, page_rows=page_rows)
    frames = list(audience.batches(size))
    assert all(frame.height <= size for frame in frames)
    assert pl.concat(frames)["contact_id"].to_list() == list(range(1, 31))


@pytest.mark.parametrize("count", [1, 3, 8])
def test_parts_lose_and_double_nobody(marts, write_spec, count):
    marts.contacts(1, 30)
    found = []
    for number in range(1, count + 1):
        audience = Audience(marts.warehouse, write_spec(), MONDAY, page_rows=7)
        for frame in audience.batches(4, shard=Shard.parse(f"{number}/{count}")):
            found += frame["contact_id"].to_list()
    assert sorted(found) == list(range(1, 31))


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "-1/4", "1/0", "a/b", "1/99999"])
def test_what_is_no_part(text):
    with pytest.raises(InputError, match="no part"):
        Shard.parse(text)


def test_condition_narrows_the_segment(marts, write_spec):
    marts.contacts(1, 10)
    marts.contacts(11, 20, country="United Kingdom")
    where = "country = 'United Kingdom' and engagement_score > 15 and last_order_at < now() - interval 30 day"
    assert list(reasons(Audience(marts.warehouse, write_spec(audience__where=where), MONDAY))) == [
        16,
        17,
        18,
        19,
        20,
    ]


def test_a_late_send_chooses_the_same_contacts(marts, write_spec):
    marts.contacts(1, 10)
    spec = write_spec(audience__where="last_order_at > now() - interval 30 day")
    assert Audience(marts.warehouse, spec, MONDAY).count() == 3


def test_members_are_settled_once_but_consent_is_live(marts, write_spec):
    marts.contacts(1, 4)
    spec = write_spec()
    first = Audience(marts.warehouse, spec, MONDAY, segment_version="abc", page_rows=2)
    batches = first.batches(2)
    assert next(batches)["contact_id"].to_list() == [1, 2]

    # in the middle of the send: 4 unsubscribes, 3 leaves the segment, 9 enters it
    marts.suppress("c4@example.com", "unsubscribed")
    marts.warehouse.execute("truncate table segments.at_risk")
    marts.contacts(9, 9)
    assert next(batches)["skip_reason"].to_list() == ["", "suppressed"]
    assert next(batches, None) is None

    # another process takes over
    again = Audience(marts.warehouse, write_spec(audience__where="contact_id = 9"), MONDAY)
    assert reasons(again) == {1: "", 2: "", 3: "", 4: "suppressed"}
    kept = again.frozen()
    assert kept is not None
    assert (kept.members, kept.segment_version, kept.campaign_version) == (4, "abc", spec.version)

    assert marts.warehouse.value("select count() from campaigns.audiences") == 1

    # the next occurrence asks anew
    assert reasons(Audience(marts.warehouse, spec, MONDAY + timedelta(days=7))) == {9: ""}


def test_an_unfinished_freeze_does_not_count(marts, write_spec):
    marts.contacts(1, 3)
    audience = Audience(marts.warehouse, write_spec(), MONDAY)
    Audience(marts.warehouse, write_spec(), LAST_MONDAY).freeze()
    # what a process leaves that died between the two inserts
    marts.warehouse.execute(
        "insert into campaigns.audience_members (audience_id, contact_id) select generateUUIDv4(), 99"
    )
    assert audience.frozen() is None
    assert list(reasons(audience)) == [1, 2, 3]


def test_concurrent_freezes_agree(marts, write_spec, warehouse_server):
    marts.contacts(1, 500)
    spec = write_spec()
    Audience(marts.warehouse, spec, LAST_MONDAY).freeze()
    start, found = threading.Barrier(4), []

    def freeze() -> None:
        with Warehouse.connect(warehouse_server) as connection:
            start.wait()
            Audience(connection, spec, MONDAY).freeze()
            found.append(connection)

    threads = [threading.Thread(target=freeze) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert list(reasons(Audience(marts.warehouse, spec, MONDAY))) == list(range(1, 501))


def test_an_empty_audience_is_not_kept(marts, write_spec):
    audience = Audience(marts.warehouse, write_spec(), MONDAY)
    assert list(audience.batches()) == []
    assert audience.frozen() is None
    marts.contacts(1, 2)
    assert reasons(audience) == {1: "", 2: ""}


def test_dry_run_keeps_nothing(marts, write_spec):
    marts.contacts(1, 2)
    audience = Audience(marts.warehouse, write_spec(), MONDAY, is_dry_run=True)
    assert reasons(audience) == {1: "", 2: ""}
    assert audience.count() == 2
    assert audience.frozen() is None


def test_a_sample_is_of_those_who_would_get_it(marts, write_spec):
    marts.contacts(1, 50)
    marts.suppress("c1@example.com", "unsubscribed")
    marts.suppress("c3@example.com", "unsubscribed")
    audience = Audience(marts.warehouse, write_spec(), MONDAY)
    sample = audience.sample(3)
    assert sample["contact_id"].to_list() == [2, 4, 5]
    assert sample["skip_reason"].to_list() == ["", "", ""]
    assert audience.frozen() is None
    audience.freeze()
    marts.suppress("c2@example.com", "unsubscribed")
    assert audience.sample(1)["contact_id"].to_list() == [4]
    whole = Audience(marts.warehouse, write_spec(), MONDAY, is_dry_run=True)
    assert sample.columns == next(whole.batches()).columns
    nobody = write_spec(audience__where="orders_count < 0")
    assert Audience(marts.warehouse, nobody, LAST_MONDAY).sample().is_empty()


def test_summary_and_checks(marts, write_spec):
    spec = write_spec()
    marts.contacts(1, 50)
    assert Audience(marts.warehouse, spec, LAST_MONDAY).summary().previous_members is None
    Audience(marts.warehouse, spec, LAST_MONDAY).freeze()
    marts.contacts(51, 210)
    marts.suppress("c7@example.com", "unsubscribed")
    marts.warehouse.execute("insert into segments.at_risk values (500)")
    marts.warehouse.execute(
        "insert into marts.contact_profiles (contact_id, email) values (500, 'x@example.com')"
    )

    audience = Audience(marts.warehouse, spec, MONDAY)
    summary = audience.summary()
    assert (summary.members, summary.sendable, dict(summary.skipped)) == (
        211,
        209,
        {"no_consent": 1, "suppressed": 1},
    )
    assert (summary.unconsented, summary.previous_members, summary.is_frozen) == (0, 50, False)
    assert audience.frozen() is None

    results = {result.name: result for result in run_checks(spec, summary, [])}
    assert [name for name, result in results.items() if not result.is_passed] == ["audience_drift"]
    assert results["audience_drift"].message == (
        "211 contacts, 4.22 times the 50 of the occurrence before; at most 3 times is let through."
        " Look at segment at_risk."
    )
    assert check_drift(spec, summary, factor=5).is_passed


def test_a_segment_that_was_not_built(marts, write_spec):
    with pytest.raises(InputError) as error:
        Audience(marts.warehouse, write_spec(audience__segment="champion"), MONDAY).count()
    assert "win_back.yaml:" in error.value.message and "no segment 'champion'" in error.value.message
    assert error.value.fix == "Did you mean champions? Allowed: at_risk, champions."


MISFITS = {
    "countri = 'France'": "countri is no column of a contact's profile",
    "country > 5": "does not fit the columns",
    "has(country, 'x')": "does not fit the columns",
    "match(email, '(')": "does not fit the columns",
    "toDate(email) > today()": "does not fit the columns",
    "orders_count > 'many'": "does not fit the columns",
    "last_order_at > 'yesterday'": "does not fit the columns",
    "engagement_score + 1": "gives a Float64, not true or false",
    "country": "gives a String, not true or false",
}


def test_conditions_that_do_not_fit_the_profile(marts, write_spec):
    marts.contacts(1, 1)
    for where, message in MISFITS.items():
        with pytest.raises(InputError) as error:
            Audience(marts.warehouse, write_spec(audience__where=where), MONDAY).count()
        assert message in error.value.message
        assert "win_back.yaml:" in error.value.message
        assert error.value.fix


def test_texts_in_conditions_reach_the_engine_as_written(marts, write_spec):
    marts.contacts(1, 1)
    for text, literal in {
        "O'Brien": "'O''Brien'",
        "a\\b": r"'a\\b'",
        "50%": "'50%'",
        "{now:String}": "'{now:String}'",
        "%(x)s": "'%(x)s'",
        "Łódź – 東京": "'Łódź – 東京'",
    }.items():
        marts.warehouse.execute(
            "alter table marts.contact_profiles update city = {t:String} where 1 settings mutations_sync = 1",
            {"t": text},
        )
        spec = write_spec(audience__where=f"city = {literal} and last_order_at < now()")
        assert Audience(marts.warehouse, spec, MONDAY, is_dry_run=True).count() == 1, text
        assert len(rows(Audience(marts.warehouse, spec, MONDAY, is_dry_run=True))) == 1, text


def test_nobody_whose_data_are_restricted_is_chosen_or_written_to(marts, write_spec):
    marts.contacts(1, 5)
    warehouse = marts.warehouse

    def restrict(person: Person, *, is_restricted: bool = True, allows: bool = False) -> None:
        change(
            warehouse,
            person,
            is_restricted=is_restricted,
            allows_transactional=allows,
            reason="",
            actor="",
            now=MONDAY,
        )

    restrict(Person(contact_ids={1}))
    restrict(Person(emails={"c2@example.com"}), allows=True)
    restrict(Person(contact_ids={3}))
    restrict(Person(contact_ids={3}), is_restricted=False)
    assert reasons(Audience(warehouse, write_spec(), MONDAY)) == {3: "", 4: "", 5: ""}
    orders = Audience(warehouse, write_spec(send__category="transactional"), LAST_MONDAY)
    assert reasons(orders) == {2: "", 3: "", 4: "", 5: ""}
    # after the audience was settled
    restrict(Person(contact_ids={4}, emails={"c4@example.com"}))
    assert reasons(Audience(warehouse, write_spec(), MONDAY)) == {3: "", 4: "restricted", 5: ""}
    assert Audience(warehouse, write_spec(), MONDAY).summary().skipped == {"restricted": 1}
