# ruff: noqa: S608  (queries are put together from checked conditions, names of checked files and escaped literals)
"""People and histories to try a journey on: those who would have come in lately, and what they did then."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

import polars as pl

from campaigns.journey_simulation import Listening, Person, listeners_of
from campaigns.journey_state import sql_text, sql_time
from campaigns.journey_ticks import event_columns, event_sql
from campaigns.journeys import JourneySpec
from warehouse.client import Warehouse
from warehouse.errors import InputError


def past_entrants(warehouse: Warehouse, spec: JourneySpec, since: datetime, people: int) -> pl.DataFrame:
    """People who would have come in since an instant, and when: contact_id, entered_at; a sample by hash.

    A journey by schedule or on request is tried on members of its segment, or on anybody, as if they came in then.

    Raises:
        InputError: there is nobody.
    """
    entry = spec.entry
    if entry.event is not None:
        predicate = spec.predicate(entry.where) if entry.where else None
        condition, used = event_sql(predicate)
        source = f"""
            select event__contact as contact_id, event__at as entered_at
            from ({_events(entry.event, used, since)}) as event
            {_profile_join([name for name in (predicate.columns if predicate else ()) if "." not in name])}
            where {condition}
        """
    else:
        condition = f"and ifNull({spec.predicate(entry.where).sql}, false)" if entry.where else ""
        known = f"select contact_id from marts.contact_profiles where true {condition}"
        if entry.segment is not None and entry.schedule is None:
            source = f"""
                select contact_id, changed_at as entered_at from marts.segment_changes
                where segment = {sql_text(entry.segment)} and change = 'entered' and changed_at >= {sql_time(since)}
                    and contact_id in ({known})
            """
        else:
            only = (
                f"and contact_id in (select contact_id from segments.`{entry.segment}`)"
                if entry.segment
                else ""
            )
            source = f"select contact_id, {sql_time(since)} as entered_at from ({known}) where true {only}"
    frame = warehouse.frame(
        f"""
        select contact_id, min(came_at) as entered_at
        from (select contact_id, entered_at as came_at from ({source}))
        group by contact_id order by cityHash64(contact_id) limit {people}
        """,
        _now(),
    )
    if not frame.height:
        raise InputError(
            f"Nobody would have come into {spec.name} since {since:%Y-%m-%d}.",
            fix="Look further back with --days, or try it on people made up with --synthetic.",
        )
    return frame


def past_people(
    warehouse: Warehouse, spec: JourneySpec, entrants: pl.DataFrame, since: datetime
) -> list[Person]:
    """What the warehouse knows of people: which conditions hold (as of now) and when they did what is listened to."""
    ids = entrants.select("contact_id")
    conditions = sorted({one.text for one in spec.conditions() if not one.has_event})
    flags = "".join(
        f", toUInt8(ifNull({spec.predicate(text).sql}, false)) as flag__{number}"
        for number, text in enumerate(conditions)
    )
    columns = warehouse.frame(
        "select name from system.columns where database = 'marts' and table = 'contact_profiles'"
    )["name"].to_list()
    zone = "ifNull(timezone, '')" if "timezone" in columns else "''"
    profiles = warehouse.frame(
        f"""
        select contact_id, {zone} as zone {flags} from marts.contact_profiles
        where contact_id in (select contact_id from entrants)
        """,
        _now(),
        external={"entrants": ids},
    )
    happenings: dict[int, dict[Listening, list[datetime]]] = {}
    for listening, (event, message, where) in listeners_of(spec).items():
        if message is not None:
            # a message that was never sent has no events
            continue
        predicate = spec.predicate(where) if where else None
        condition, used = event_sql(predicate)
        profile = _profile_join(
            [name for name in (predicate.columns if predicate else ()) if "." not in name]
        )
        rows = warehouse.frame(
            f"""
            select event__contact as contact_id, event__at as happened_at
            from ({_events(event, used, since)}) as event {profile}
            where {condition} and event__contact in (select contact_id from entrants)
            order by happened_at
            """,
            _now(),
            external={"entrants": ids},
        )
        for contact, moment in rows.iter_rows():
            happenings.setdefault(contact, {}).setdefault(listening, []).append(moment)
    people: list[Person] = []
    for contact, timezone, *values in profiles.iter_rows():
        holds = frozenset(text for text, value in zip(conditions, values, strict=True) if value)
        people.append(Person(contact, holds, happenings.get(contact, {}), timezone))
    return people


def _events(event: str, used: Collection[str], since: datetime) -> str:
    return f"""
        select event_id as event__id, assumeNotNull(contact_id) as event__contact, occurred_at as event__at
            {event_columns(used)}
        from marts.events
        where type = {sql_text(event)} and occurred_at >= {sql_time(since)} and contact_id is not null
            and not is_machine
    """


def _profile_join(columns: list[str]) -> str:
    if not columns:
        return ""
    listed = ", ".join(f"`{name}`" for name in sorted(columns))
    return f"""
        inner join (select contact_id as profile__contact, {listed} from marts.contact_profiles) as profile
            on profile.profile__contact = event__contact
    """


def _now() -> dict[str, str]:
    return {"now": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.000")}
