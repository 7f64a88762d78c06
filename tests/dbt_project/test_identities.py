"""Who is who: visitors, accounts, merges, splits and what undoes them, in stories and in random histories."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest
from models import PREFIX, Models, moment, order
from test_increments import History, load
from test_live_parity import stored
from typer.testing import CliRunner

import mailhouse.contacts
from campaigns.live import Live
from campaigns.siphash import person_of, visitor_of
from mailhouse.identities import Identities
from warehouse.errors import InputError
from warehouse.loads import EVENT_COLUMNS, append_events

IDENTITY = ("+events", "+orders", "+contacts", "+suppressions", "+consents", "+int_emails__stopped")
"""What tells who is who, what they did and whether they may be written to, and nothing more."""
STORY = ("+contact_emails", "+contact_identities", "+identity_changes")
TABLES = {
    "intermediate.int_contacts__identified": "identity_id",
    "intermediate.int_visitors__shared": "visitor_id",
    "marts.events": "event_id, occurred_at",
    "marts.orders": "source, order_id",
    "marts.contacts": "contact_id",
    "marts.suppressions": "email, phone",
    "marts.consents": "contact_id, channel, purpose",
    "marts.contact_emails": "contact_id, email, source, valid_from",
    "marts.contact_identities": "identity_id",
}
LEFT_OUT = {
    *("moved_at", "previous_contact_id", "records_through", "hints_through", "visitors_through"),
    *("recorded_at", "properties"),
}


@pytest.fixture
def history(models: Models) -> Iterator[Models]:
    """Empty raw tables, no models."""
    models.clear()
    models.warehouse.execute("drop database if exists live")
    yield models
    models.warehouse.execute("drop database if exists live")


def identify(models: Models, *args: str, minutes: int = 0) -> None:
    """Build what tells who is who."""
    models.build(
        *("--exclude-resource-type", "unit_test", "test", "--select", *IDENTITY, *STORY, *args),
        offset=timedelta(minutes=minutes),
    )


def tables(models: Models) -> dict[str, pl.DataFrame]:
    """Each table in the order of its key."""
    found = {}
    for table, key in TABLES.items():
        names = [
            name for name in models.frame(f"select * from {table} limit 0").columns if name not in LEFT_OUT
        ]
        final = " final" if table.endswith("__shared") else ""
        found[table] = models.frame(f"select {', '.join(names)} from {table}{final} order by {key}")
    return found


def unlike(left: dict[str, pl.DataFrame], right: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """Rows that only one side has, table by table."""
    return {
        table: (one.join(right[table], on=one.columns, how="anti", nulls_equal=True).rows(named=True)[:3],
                right[table].join(one, on=one.columns, how="anti", nulls_equal=True).rows(named=True)[:3])
        for table, one in left.items()
        if not one.equals(right[table])
    }  # fmt: skip


def commands(models: Models, *args: str) -> str:
    """What `mailhouse contacts` prints, on the warehouse of the tests."""

    @contextlib.contextmanager
    def here() -> Iterator[Identities]:
        yield Identities(models.warehouse, prefix=PREFIX)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mailhouse.contacts, "_identities", here)
        patch.setattr(mailhouse.contacts.console, "_width", 200)
        result = CliRunner().invoke(mailhouse.contacts.app, args)
    assert result.exit_code == 0, result.output
    return result.output


def contacts_of(models: Models) -> dict[str, int]:
    """Contact of each event, 0 for nobody's."""
    return dict(models.rows("select event_id, ifNull(contact_id, 0) from marts.events"))


def live_contacts(models: Models, live: Live) -> dict[str, int]:
    """The same as the gateway has it now."""
    live._looked_at = live.resolver._merges_at = -1e9
    return dict(live.store(stored(models)).select("event_id", "contact_id").iter_rows())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [4])
def test_who_is_who_is_the_same_however_it_was_found_out(history: Models, seed: int) -> None:
    told = History(seed)
    for day in range(3):
        load(history.warehouse, told.batch(day, []))
        if day == 1:
            split = {
                "change_id": "s",
                "action": "split",
                "email": told.emails[0],
                "occurred_at": moment("06-21"),
            }
            load(history.warehouse, {"identity_changes": [split]})
        identify(history, minutes=day)
    increments = tables(history)
    identify(history, minutes=5)
    assert unlike(increments, tables(history)) == {}, "a run without new rows changes nothing"
    identify(history, "--full-refresh", minutes=6)
    assert unlike(increments, tables(history)) == {}
    identified = increments["intermediate.int_contacts__identified"]
    assert set(identified["kind"]) == {"record", "email", "hint", "account", "visitor"}
    merged = identified.filter(pl.col("contact_id") != pl.col("named_contact_id"))
    assert not merged.is_empty()
    assert (identified["own_contact_id"] != identified["named_contact_id"]).any()
    assert increments["intermediate.int_visitors__shared"].height > 0
    # whoever merges hold together is worked out a second time, in Python
    live = Live(history.warehouse, prefix=PREFIX)
    live.prepare()
    assert live_contacts(history, live) == contacts_of(history)
    known = live.resolver.merges
    assert known.is_needed
    for named, contact in identified.select("named_contact_id", "contact_id").unique().iter_rows():
        assert known.contact(named) == contact

    # a merge and a split by hand, and what undoes them, leave no trace
    minutes = itertools.count()
    decide = Identities(
        history.warehouse, prefix=PREFIX, clock=lambda: moment("06-27") + timedelta(minutes=next(minutes))
    )
    people = increments["marts.contacts"]["contact_id"].to_list()
    one, other, third = told.dice.sample(people, 3)
    whys = {"reason": "the same street", "actor": "test"}
    made = [decide.merge(str(one), str(other), **whys), decide.merge(str(other), str(third), **whys)]
    before = live_contacts(history, live)
    identify(history, minutes=7)
    assert before == contacts_of(history), "the gateway knew before it was built"
    assert history.value("select count() from marts.contacts") == len(people) - 2
    rows = identified.filter(pl.col("kind") == "email").sort("identifier")
    taken = ""
    for contact, email in rows.select("contact_id", "identifier").iter_rows():
        # some are all that their contact is
        with contextlib.suppress(InputError):
            made.append(decide.split(str(contact), email, **whys))
            taken = email
            break
    identify(history, minutes=8)
    after = tables(history)
    owners = set(after["intermediate.int_contacts__identified"]["contact_id"])
    assert owners <= set(after["marts.contacts"]["contact_id"]), "whom anything leads to is a contact"
    assert len(made) == 3
    [named] = (
        after["intermediate.int_contacts__identified"]
        .filter((pl.col("kind") == "email") & (pl.col("identifier") == taken))["named_contact_id"]
        .to_list()
    )
    assert named == made[-1].into_contact_id
    for change in made:
        decide.undo(change.change_id, **whys)
    identify(history, minutes=9)
    assert unlike(increments, tables(history)) == {}
    assert live_contacts(history, live) == contacts_of(history)


def turns_of(told: list[tuple[str, datetime, int]]) -> dict[int, list[tuple[datetime, int]]]:
    """Turns of visitors who were several people, from all there ever was: visitor, time and person of each event."""
    turns: dict[int, list[tuple[datetime, int]]] = {}
    for visitor in {one for one, _, _ in told}:
        persons: dict[datetime, int] = {}
        for _, at, person in (one for one in told if one[0] == visitor):
            persons[at] = max(person, persons.get(at, person))
        if len({person for one, _, person in told if one == visitor}) > 1:
            own = turns[visitor_of("web", visitor)] = []
            for at, person in sorted(persons.items()):
                if not own or own[-1][1] != person:
                    own.append((at, person))
    return turns


@pytest.mark.slow
def test_a_visitor_of_one_contact_stays_where_it_is(history: Models) -> None:
    def seen(number: int, visitor: str, **hints: str) -> dict[str, Any]:
        at = moment("06-20") + timedelta(hours=number)
        return {"id": f"v{number}", "type": "page.viewed", "at": at, "anonymous_id": visitor, **hints}

    def moved() -> dict[str, Any]:
        """When each identity of a visitor moved."""
        identified = (
            "select identifier, identity_id, moved_at from intermediate.int_contacts__identified"
            " where kind = 'visitor' order by identifier, identity_id"
        )
        return {f"{name}{identity}": at for name, identity, at in history.rows(identified)}

    address, account = {"email": "ann@example.com"}, {"external_id": "1"}
    other = {"email": "bob@example.com"}
    history.contact("1", "ann@example.com", "01-01")
    history.contact("2", "bob@example.com", "01-01")
    for number, (phone, shared) in enumerate(((address, address), (account, other))):
        history.events(seen(2 * number, "phone", **phone), seen(2 * number + 1, "shared", **shared))
        identify(history, minutes=number)
    before = moved()
    assert len(before) == 4
    # an address again, after an account of the same contact; and somebody who was there before another
    history.events(seen(8, "phone", **address), seen(9, "shared", **address))
    identify(history, minutes=2)
    after = moved()
    assert {name for name in before if before[name] != after[name]} == {
        name for name in before if name.startswith("shared")
    }
    assert set(before) == set(after)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_turns_of_visitors_go_on_from_where_they_were(history: Models, seed: int) -> None:
    dice = random.Random(seed)
    told: list[tuple[str, datetime, int]] = []
    started = moment("06-01")
    for day in range(6):
        # loaded at noon of the next day: most happened since the last load, some long before, and some clocks run ahead
        loaded = started + timedelta(days=day + 1, hours=12)
        rows = []
        for number in range(dice.randrange(8, 25)):
            hours = dice.choices(
                (dice.randrange(13, 36), -24 * dice.randrange(5), dice.randrange(37, 70)),
                (80, 17, 3 * (day > 1)),
            )[0]
            at = started + timedelta(days=day, hours=hours, minutes=dice.choice((0, 30)))
            visitor = dice.choice("abcdefgh"[: 4 + day])
            email, account = dice.choice((("ann@x.example", ""), ("", "u1"), ("bob@x.example", "u2")))
            told.append((visitor, at, person_of("web", account, email)))
            named = {"anonymous_id": visitor, "email": email, "external_id": account}
            what = {"event_id": f"{day}-{number}", "type": "page.viewed", "source": "web", "properties": "{}"}
            rows.append(
                dict.fromkeys(EVENT_COLUMNS, "") | what | named | {"occurred_at": at, "received_at": at}
            )
        append_events(history.warehouse, pl.DataFrame(rows, schema=EVENT_COLUMNS), loaded_at=loaded)
        history.build(
            *("--exclude-resource-type", "unit_test", "test", "--select", "+int_visitors__shared"),
            offset=timedelta(minutes=day),
        )
        shared = "select visitor_id, turns from intermediate.int_visitors__shared final"
        stored = {
            visitor: [tuple(turn.values()) for turn in turns] for visitor, turns in history.rows(shared)
        }
        assert stored == turns_of(told), f"after day {day}"
    assert len(stored) > 3


@pytest.mark.slow
def test_visitors_are_whoever_was_named_last(history: Models) -> None:
    def seen(id_: str, at: str, **hints: str) -> dict[str, Any]:
        return {"id": id_, "type": "page.viewed", "at": f"06-20 {at}", "source": "web", **hints}

    visitor: dict[str, Any] = {"anonymous_id": "pc"}
    history.events(
        seen("v1", "10:00", **visitor),
        order("1", moment("06-20 10:05"), source="web", **visitor),
        seen("other", "10:00", anonymous_id="phone"),
    )
    live = Live(history.warehouse, prefix=PREFIX)
    live.prepare()
    live.store(stored(history))
    identify(history)
    assert set(contacts_of(history).values()) == {0}
    # ann signs in, then bob, who has an account, then ann again
    history.events(
        {**seen("a1", "11:00", email="ann@example.com", **visitor), "type": "contact.identified"},
        seen("v2", "12:00", **visitor),
        {
            **seen("b1", "13:00", email="bob@example.com", external_id="u2", **visitor),
            "type": "contact.identified",
        },
        seen("v3", "14:00", **visitor),
        order("2", moment("06-20 14:10"), source="web", **visitor),
        seen("b2", "15:00", external_id="u2"),
        seen("a2", "16:00", email="ann@example.com", **visitor),
        seen("v4", "17:00", **visitor),
    )
    live.store(stored(history).filter(pl.col("event_id").is_in(["a1", "b1"])))
    adopted = "select distinct event_id from live.events where contact_id != 0 order by event_id"
    visits = ["shop:order:1", "shop:order:2", "v1", "v2", "v3", "v4"]
    assert history.rows(adopted) == [(name,) for name in ("a1", "b1", *visits)]
    known = live_contacts(history, live)
    identify(history, minutes=1)
    assert known == contacts_of(history), "the gateway knew before it was built"
    ann, bob = known["a1"], known["b1"]
    assert [known[name] for name in ("v1", "v2", "v3", "b2", "v4", "other")] == [ann, ann, bob, bob, ann, 0]
    owners = "select order_id, contact_id from marts.orders order by order_id"
    assert history.rows(owners) == [("1", ann), ("2", bob)]
    # eve was there in between, and before them all somebody whom nobody knows yet; both are told late
    history.events(
        seen("e1", "13:30", email="eve@example.com", **visitor),
        seen("u1", "09:00", external_id="u9", **visitor),
    )
    known = live_contacts(history, live)
    identify(history, minutes=2)
    assert known == contacts_of(history)
    eve = known["e1"]
    assert [known[name] for name in ("v1", "v2", "v3", "b2", "v4")] == [0, ann, eve, bob, ann]
    assert history.rows(owners) == [("1", None), ("2", eve)]
    increments = tables(history)
    identify(history, "--full-refresh", minutes=3)
    assert unlike(increments, tables(history)) == {}
    why = "select rule, source from marts.contact_identities where kind = 'visitor' order by first_seen_at"
    assert history.rows(why) == [("named_by_event", "web")] * 3


@pytest.mark.slow
def test_merges_are_followed_and_taken_back(history: Models) -> None:
    for number, email in enumerate(("dup@example.com", "anna@example.com", "ann@example.org"), 7):
        history.contact(str(number), email, "01-01", source="hubspot", first_name=f"Ann {number}")
    history.contact("1", "ann@example.com", "01-02")
    history.contact("1", "ann@example.net", "03-01")
    history.contact("20", "x@example.com", "01-01", source="hubspot")
    history.contact("21", "y@example.com", "01-01", source="hubspot")
    history.consent("dup@example.com", "02-01", is_granted=False)
    history.consent("ann@example.org", "02-02")
    history.events(
        {"id": "stop", "type": "unsubscribed", "at": "02-03", "email": "dup@example.com"},
        {"id": "again", "type": "subscribed", "at": "02-04", "email": "ann@example.org"},
        {"id": "old", "type": "opened", "at": "03-02", "email": "ann@example.com"},
    )
    identify(history)
    winner = contacts_of(history)["again"]
    # a chain, and two that a CRM merged into each other
    for number, into in (("7", "8"), ("8", "9"), ("20", "21"), ("21", "20")):
        history.contact(number, "", "04-01", source="hubspot", is_deleted=True, merged_into=into)
    identify(history, minutes=1)
    told = contacts_of(history)
    assert told["stop"] == told["again"] == winner
    emails = dict(
        history.rows(
            "select identifier, contact_id from intermediate.int_contacts__identified where kind = 'email'"
        )
    )
    assert emails["dup@example.com"] == emails["anna@example.com"] == emails["ann@example.org"] == winner
    assert emails["x@example.com"] == emails["y@example.com"]
    [row] = history.frame(f"select * from marts.contacts where contact_id = {winner}").to_dicts()
    assert (row["email"], row["first_name"], row["is_deleted"]) == ("ann@example.org", "Ann 9", False)
    # the stricter of what the two said before they were one
    assert history.value(f"select is_granted from marts.consents where contact_id = {winner}") is False
    stopped = "select email from marts.suppressions order by email"
    everyone = [("ann@example.org",), ("anna@example.com",), ("dup@example.com",)]
    assert history.rows(stopped) == everyone
    assert history.rows("select email from intermediate.int_emails__stopped order by email") == everyone
    history.consent("ann@example.org", "05-01")
    history.events({"id": "back", "type": "subscribed", "at": "05-01", "email": "ann@example.org"})
    assert history.value(f"select is_granted from marts.consents where contact_id = {winner}") is True
    assert history.rows(stopped) == []

    whys = {"reason": "wrote to us", "actor": "support"}
    decide = Identities(history.warehouse, prefix=PREFIX, clock=lambda: moment("06-01"))
    before = tables(history)
    made = decide.merge("ann@example.com", str(winner), **whys)
    assert (made.contact_id, made.into_contact_id) == (told["old"], winner), "whom we knew first stays"
    split = decide.split("hubspot:9", "hubspot:7", **whys)
    with pytest.raises(InputError, match="reason"):
        decide.merge("x@example.com", str(winner), reason=" ", actor="")
    with pytest.raises(InputError, match="Nobody is known"):
        decide.merge("nobody@example.com", str(winner), **whys)
    with pytest.raises(InputError, match="does not lead"):
        decide.split("hubspot:9", "x@example.com", **whys)
    identify(history, minutes=2)
    told = contacts_of(history)
    assert (told["old"], told["again"], told["stop"]) == (winner, winner, split.into_contact_id)
    story = decide.history("ann@example.com")
    assert story.contact_id == winner
    assert set(story.changes["change_id"]) == {
        made.change_id,
        split.change_id,
        "crm:hubspot:7",
        "crm:hubspot:8",
    }
    by = dict(story.identities.select("identifier", "merge_change_id").iter_rows())
    assert by["1"] == by["ann@example.com"] == made.change_id
    assert by["8"] == "crm:hubspot:8" and by["9"] == ""
    shown = commands(history, "history", "ann@example.com")
    assert all(
        word in shown
        for word in (made.change_id, split.change_id, "hubspot:8", "wrote to us", "ann@example.net")
    )
    periods = story.emails.filter(pl.col("source") == "shop").select("email", "valid_from", "valid_to").rows()
    assert periods == [
        ("ann@example.com", moment("01-02"), moment("03-01")),
        ("ann@example.net", moment("03-01"), None),
    ]
    with pytest.raises(InputError, match="already"):
        decide.merge("shop:1", "hubspot:9", **whys)
    with pytest.raises(InputError, match="CRM made"):
        decide.undo("crm:hubspot:7", **whys)
    for change in (made, split):
        undone = decide.undo(change.change_id, **whys)
        with pytest.raises(InputError, match=undone.change_id):
            decide.undo(change.change_id, **whys)
    identify(history, minutes=3)
    after = tables(history)
    # it was stored, but not built yet
    after["marts.events"] = after["marts.events"].filter(pl.col("event_id") != "back")
    assert unlike(before, after) == {}
    assert set(history.rows("select action, is_in_force from marts.identity_changes where decided_by = 'hand'")) == {
        ("merge", False), ("split", False), ("undo", False)
    }  # fmt: skip
