# ruff: noqa: S608  (queries are put together from checked conditions and names from allow-lists)
"""Who a campaign goes to in one occurrence, and why some of them get nothing.

The audience is the campaign's segment, narrowed by its condition. Who belongs to it is settled once, when the
sending begins, and kept in `campaigns.audience_members`: a send that was interrupted goes on with the same
contacts, whatever the segment says by then. Consent, suppression, deletion and the profile are never kept:
they are read anew for every page of contacts, so that somebody who unsubscribes while a campaign is under way
gets no more of it.

A row of `campaigns.audiences` is what makes a kept audience count. It is written after the members, so a
process that dies in between leaves members that nothing refers to, and the next one starts over.
"""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from zoneinfo import available_timezones

import polars as pl

from campaigns.identity import occurrence_key
from campaigns.permissions import CHANNELS, reach_parameters, reach_sql, restricted_sql, unconsented_sql
from campaigns.predicates import Predicate, check_types, parse_predicate
from campaigns.specs import CampaignSpec, QuietHours, SendSpec, predicate_place
from warehouse.client import Warehouse
from warehouse.errors import InputError, WarehouseError
from warehouse.yaml_specs import nearest

AUDIENCE_COLUMNS = (
    "contact_id",
    "email",
    "skip_reason",
    "consent_id",
    "suppression_event_id",
    "recommendations",
    "recommendation_version",
)
"""Columns of every batch, beside all others of `marts.contact_profiles`."""

SKIP_REASONS = ("deleted", "restricted", "invalid", "suppressed", "no_consent", "quiet_hours")
"""Why a contact gets nothing, in the order in which they are judged; '' is a contact who does."""

_TABLES = (
    "create database if not exists campaigns",
    """
    create table if not exists campaigns.audience_members (
        audience_id UUID,
        contact_id Int64 codec(Delta, ZSTD(1)),
        frozen_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree partition by toYYYYMM(frozen_at) order by (audience_id, contact_id)
    comment 'One contact of one kept audience. Counts only if campaigns.audiences has the audience_id.'
    """,
    """
    create table if not exists campaigns.audiences (
        audience_id UUID,
        campaign LowCardinality(String),
        occurrence String,
        members UInt64,
        campaign_version String,
        segment LowCardinality(String),
        segment_version String,
        condition String,
        as_of DateTime64(3, 'UTC'),
        frozen_at DateTime64(3, 'UTC') default now64(3)
    ) engine = MergeTree order by (campaign, occurrence, frozen_at, audience_id)
    comment 'One kept audience of one campaign and occurrence, of which the first counts.'
    """,
)

_RECOMMENDATIONS = (
    "Array(Tuple(product_id String, name String, price Nullable(Decimal(18, 2)), image_url String,"
    " url String, reason String))"
)


@dataclass(frozen=True)
class Shard:
    """One of several parts of an audience, by a hash of the contact: part `number` (from 1) of `count`."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/4` is the second of four parts.

        Raises:
            InputError: it is no such pair.
        """
        number, _, count = text.partition("/")
        if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= 10_000:
            return cls(int(number), int(count))
        raise InputError(f"{text!r} is no part of an audience.", fix="Write it like 2/4: the second of four.")


@dataclass(frozen=True)
class FrozenAudience:
    """A kept audience: the versions that chose its members, for `mailhouse why`."""

    audience_id: str
    members: int
    campaign_version: str
    segment: str
    segment_version: str
    frozen_at: datetime


@dataclass(frozen=True)
class AudienceSummary:
    """An audience in numbers, as of when it was asked for.

    Attributes:
        members: contacts in the audience, sendable or not.
        sendable: contacts without a skip reason.
        skipped: from skip reason to contacts, reasons that occur only.
        unconsented: sendable contacts who, counted a second way, lack consent or are suppressed; must be 0.
        previous_members: members of the occurrence before, None if there was none.
        is_frozen: whether the members are settled.
    """

    members: int
    sendable: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    unconsented: int = 0
    previous_members: int | None = None
    is_frozen: bool = False


class Recipients:
    """Consent, suppression, deletion and quiet hours of contacts, and what templates use, all read live.

    What campaigns and journeys have in common: each gives a query of contacts, and gets them judged.

    Args:
        warehouse: where the marts are.
        send: what is to be sent; its channel and category decide what a contact must have agreed to.
        quiet_hours: when nobody gets anything; `timezone` is that of contacts of whom none is known.
        clock: tells the time by which quiet hours are judged.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        send: SendSpec,
        *,
        quiet_hours: QuietHours | None = None,
        timezone: str = "UTC",
        clock: Callable[[], datetime],
    ) -> None:
        self.warehouse = warehouse
        self.send = send
        self._quiet_hours = quiet_hours
        self._timezone = timezone
        self._clock = clock
        self._profile_columns: list[str] | None = None

    def profile_columns(self) -> list[str]:
        """The columns of `marts.contact_profiles`, in their order.

        Raises:
            WarehouseError: the table has not been built.
        """
        if self._profile_columns is None:
            self._profile_columns = profile_columns(self.warehouse)
        return self._profile_columns

    def parameters(self) -> dict[str, Any]:
        """Query parameters that `judged` and `personalised` need."""
        return {
            **reach_parameters(self.send.channel, self.send.purpose),
            "recommendations": self.send.recommendations,
        }

    def judged(self, members: str, more_columns: str = "") -> str:
        """Members with consent, suppression and skip reason, read live.

        Raises:
            InputError: profiles have no column for addresses of this channel.
        """
        columns = self.profile_columns()
        channel = self.send.channel
        address = CHANNELS[channel].address
        if address not in columns:
            raise InputError(
                f"Messages by {channel} go to the column {address}, and contacts have no such column.",
                fix=f"Add {address} to the contacts' profile (marts.contact_profiles), or use another channel.",
            )
        reasons, found, source = reach_sql(
            channel, self.send.category, members, has_deleted="is_deleted" in columns
        )
        return f"""
            select
                member.contact_id as contact_id,
                profile.email as email,
                multiIf({reasons} {self._quiet(columns)}, 'quiet_hours', '') as skip_reason,
                {found}
                {more_columns}
            from {source}
        """

    def judge(self, contact_ids: Collection[int]) -> pl.DataFrame:
        """`contact_id`, `email`, `skip_reason`, `consent_id`, `suppression_event_id` of some contacts, read live."""
        return self.warehouse.frame(
            f"{self.judged('select contact_id from asked')} settings join_use_nulls = 0",
            self.parameters(),
            external={
                "asked": pl.DataFrame({"contact_id": sorted(contact_ids)}, schema={"contact_id": pl.Int64})
            },
        )

    def _quiet(self, columns: Sequence[str]) -> str:
        """SQL: whether it is quiet where a contact lives; without a time zone that is known, where `timezone` is."""
        hours = self._quiet_hours
        if hours is None:
            return "false"
        now = self._clock()
        is_quiet_here = hours.is_quiet(now, self._timezone)
        if "timezone" not in columns:
            return "true" if is_quiet_here else "false"
        # the engine takes no time zone from a column, so it is given those where things are otherwise than here
        others = sorted(zone for zone in _zones() if hours.is_quiet(now, zone) != is_quiet_here)
        listed = ", ".join(f"'{zone}'" for zone in others)
        is_other = f"has(cast([{listed}], 'Array(String)'), ifNull(profile.timezone, ''))"
        return f"not {is_other}" if is_quiet_here else is_other

    def personalised(self, page: str) -> str:
        """A page of members with all that templates may use."""
        own = ("contact_id", "email")
        profile = "".join(
            f", profile.`{name}` as `{name}`" for name in self.profile_columns() if name not in own
        )
        judged = self.judged(page, profile)
        if not self.send.recommendations:
            return f"""
                select *, cast([], '{_RECOMMENDATIONS}') as recommendations, '' as recommendation_version
                from ({judged}) order by contact_id settings join_use_nulls = 0
            """
        return f"""
            select judged.*, recommended.items as recommendations,
                recommended.version as recommendation_version
            from ({judged}) as judged
            left join (
                select contact_id,
                    cast(arrayMap(item -> item.2, arraySlice(arraySort(item -> item.1, groupArray((rank,
                        (product_id, product_name, price, ifNull(image_url, ''), ifNull(url, ''), reason)))),
                        1, {{recommendations:UInt64}})), '{_RECOMMENDATIONS}') as items,
                    any(model_version) as version
                from marts.recommendations
                where contact_id in ({page})
                group by contact_id
            ) as recommended on recommended.contact_id = judged.contact_id
            order by judged.contact_id settings join_use_nulls = 0
        """


class Audience(Recipients):
    """The audience of one occurrence of one campaign.

    Args:
        warehouse: where the marts are.
        spec: the campaign.
        occurrence: the scheduled instant.
        now: what `now()` in the campaign's condition means; left out, the occurrence, so that a late send
            chooses the same contacts.
        segment_version: from `campaigns.specs.segment_version`, kept with the audience.
        is_dry_run: never settle the members, only look.
        page_rows: contacts a query; bounds the memory.
        clock: tells the time by which quiet hours are judged, for each page of contacts anew; left out, it is `now`.
    """

    def __init__(
        self,
        warehouse: Warehouse,
        spec: CampaignSpec,
        occurrence: datetime,
        *,
        now: datetime | None = None,
        segment_version: str = "",
        is_dry_run: bool = False,
        page_rows: int = 10_000,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.spec = spec
        self.occurrence = occurrence_key(occurrence)
        self.now = (now or occurrence).astimezone(UTC)
        super().__init__(
            warehouse,
            spec.send,
            quiet_hours=spec.quiet_hours,
            timezone=spec.schedule.timezone,
            clock=clock or (lambda: self.now),
        )
        self.segment_version = segment_version
        self.is_dry_run = is_dry_run
        self.page_rows = page_rows

    def frozen(self) -> FrozenAudience | None:
        """The kept audience of this occurrence, None if its members are not settled yet."""
        if not self._has_table("campaigns", "audiences"):
            return None
        rows = self.warehouse.frame(
            """
            select toString(audience_id) as audience_id, members, campaign_version, segment, segment_version,
                frozen_at
            from campaigns.audiences
            where campaign = {campaign:String} and occurrence = {occurrence:String}
            order by frozen_at, audience_id limit 1
            """,
            self._parameters(),
        )
        return FrozenAudience(**rows.row(0, named=True)) if rows.height else None

    def freeze(self) -> FrozenAudience | None:
        """Settle the members, once; later calls, also of other processes, give the same audience.

        An audience without members is not kept, so that a send refused for that can be tried again.

        Raises:
            InputError: the campaign's condition does not fit the profile, or its segment has not been built.
        """
        if (kept := self.frozen()) is not None:
            return kept
        chosen = self._chosen()
        for statement in _TABLES:
            self.warehouse.define(statement)
        parameters = self._parameters(audience_id=str(uuid.uuid4()))
        self.warehouse.execute(
            f"""
            insert into campaigns.audience_members (audience_id, contact_id)
            select {{audience_id:UUID}}, contact_id from ({chosen})
            """,
            parameters,
        )
        members = self.warehouse.value(
            "select count() from campaigns.audience_members where audience_id = {audience_id:UUID}",
            parameters,
        )
        if not members:
            return None
        self.warehouse.execute(
            """
            insert into campaigns.audiences (audience_id, campaign, occurrence, members, campaign_version,
                segment, segment_version, condition, as_of)
            select {audience_id:UUID}, {campaign:String}, {occurrence:String}, {members:UInt64},
                {campaign_version:String}, {segment:String}, {segment_version:String}, {condition:String},
                {now:DateTime64(3, 'UTC')}
            """,
            {
                **parameters,
                "members": members,
                "campaign_version": self.spec.version,
                "segment": self.spec.audience.segment,
                "segment_version": self.segment_version,
                "condition": self.spec.audience.where or "",
            },
        )
        # another process may have been first: the earliest row counts for all
        return self.frozen()

    def count(self) -> int:
        """Contacts in the audience, sendable or not. Settles nothing."""
        members, parameters = self._members()
        return int(self.warehouse.value(f"select count() from ({members})", parameters))

    def summary(self) -> AudienceSummary:
        """The audience in numbers, for the checks that stand before a send. Settles nothing."""
        kept = self.frozen()
        members, parameters = self._members(kept)
        counts = self.warehouse.frame(
            f"select skip_reason, count() as contacts from ({self.judged(members)})"
            " group by skip_reason settings join_use_nulls = 0",
            parameters,
        )
        by_reason = {str(reason): int(contacts) for reason, contacts in counts.iter_rows()}
        return AudienceSummary(
            members=sum(by_reason.values()),
            sendable=by_reason.pop("", 0),
            skipped=dict(sorted(by_reason.items())),
            unconsented=self._unconsented(members, parameters),
            previous_members=self._previous_members(),
            is_frozen=kept is not None,
        )

    def counts_by(self, label: str) -> dict[str, int]:
        """Contacts in the audience, sendable or not, by an SQL expression over `contact_id`. Settles nothing."""
        members, parameters = self._members()
        rows = self.warehouse.frame(
            f"select toString({label}) as label, count() as contacts from ({members}) group by label",
            parameters,
        )
        return {str(name): int(contacts) for name, contacts in rows.iter_rows()}

    def batches(
        self, rows: int = 1_000, *, shard: Shard | None = None, where: str = ""
    ) -> Iterator[pl.DataFrame]:
        """The audience in order of contact_id; settles its members first, unless this is a dry run.

        Args:
            rows: contacts a frame, at most.
            shard: only this part of it.
            where: only contacts for whom this SQL condition over `contact_id` holds; of our own making.

        Yields:
            Frames with `AUDIENCE_COLUMNS` and the profile's columns. `recommendations` is a list of structs
            of product_id, name, price, image_url, url and reason, best first; empty where there are none.
        """
        if rows < 1:
            raise ValueError("rows must be at least 1")
        if not self.is_dry_run and self.freeze() is None:
            return
        members, parameters = self._members()
        part = "and cityHash64(contact_id) % {shards:UInt64} = {shard:UInt64}" if shard else ""
        if shard:
            parameters |= {"shards": shard.count, "shard": shard.number - 1}
        part += f" and {where}" if where else ""
        last = -(2**63)
        while True:
            page = f"""
                select contact_id from ({members}) where contact_id > {{last:Int64}} {part}
                order by contact_id limit {{page_rows:UInt64}}
            """
            frame = self.warehouse.frame(
                self.personalised(page), {**parameters, "last": last, "page_rows": self.page_rows}
            )
            yield from frame.iter_slices(rows)
            if frame.height < self.page_rows:
                return
            last = int(frame["contact_id"][-1])

    def sample(self, rows: int = 20) -> pl.DataFrame:
        """The first contacts, by contact_id, who would get it now; columns as of `batches`. Settles nothing."""
        members, parameters = self._members()
        chosen = self.warehouse.frame(
            f"""
            select contact_id from ({self.judged(members)}) where skip_reason = ''
            order by contact_id limit {{rows:UInt64}} settings join_use_nulls = 0
            """,
            {**parameters, "rows": rows},
        )
        page = "select arrayJoin({contact_ids:Array(Int64)}) as contact_id"
        return self.warehouse.frame(
            self.personalised(page), {**parameters, "contact_ids": chosen["contact_id"].to_list()}
        )

    def _parameters(self, **more: Any) -> dict[str, Any]:
        return {
            "campaign": self.spec.campaign,
            "occurrence": self.occurrence,
            "now": self.now.strftime("%Y-%m-%d %H:%M:%S.") + f"{self.now.microsecond // 1000:03d}",
            **self.parameters(),
            **more,
        }

    def _members(self, kept: FrozenAudience | None = None) -> tuple[str, dict[str, Any]]:
        """A query that gives the members' contact_id once each, and its parameters."""
        kept = kept or self.frozen()
        if kept is not None:
            return (
                "select contact_id from campaigns.audience_members where audience_id = {audience_id:UUID}",
                self._parameters(audience_id=kept.audience_id),
            )
        return self._chosen(), self._parameters()

    def _chosen(self) -> str:
        """Who belongs to the audience now."""
        self._check_segment()
        predicate = self._predicate()
        condition = f"and {predicate.sql}" if predicate else ""
        return f"""
            select contact_id from marts.contact_profiles
            where contact_id in (select contact_id from segments.`{self.spec.audience.segment}`)
                and not {restricted_sql("contact_id", "email", category=self.spec.send.category)} {condition}
        """

    def _check_segment(self) -> None:
        segment = self.spec.audience.segment
        known = self.warehouse.frame(
            "select name from system.tables where database = 'segments' order by name"
        )
        if segment not in known["name"].to_list():
            raise InputError(
                f"{self.spec.place('audience', 'segment')}: audience.segment: the warehouse has no segment"
                f" {segment!r}.",
                fix=nearest(segment, known["name"].to_list()) or "Build the dbt models first.",
            )

    def _predicate(self) -> Predicate | None:
        if self.spec.audience.where is None:
            return None
        predicate = parse_predicate(
            self.spec.audience.where,
            columns=self.profile_columns(),
            place=lambda line: predicate_place(self.spec, line),
            key="audience.where",
        )
        check_types(
            predicate,
            self.warehouse,
            "marts.contact_profiles",
            self._parameters(),
            place=predicate_place(self.spec),
            key="audience.where",
        )
        return predicate

    def _unconsented(self, members: str, parameters: Mapping[str, Any]) -> int:
        """Sendable contacts who should not be, counted from the rows of consent and suppression."""
        if self.spec.send.category != "marketing":
            return 0
        channel = self.send.channel
        address = CHANNELS[channel].address
        more = "" if address == "email" else f", profile.`{address}` as `{address}`"
        return int(
            self.warehouse.value(
                f"""
                select count() from ({self.judged(members, more)})
                where skip_reason = '' and {unconsented_sql(channel)}
                settings join_use_nulls = 0
                """,
                parameters,
            )
        )

    def _previous_members(self) -> int | None:
        if not self._has_table("campaigns", "audiences"):
            return None
        return self.warehouse.value(
            """
            select members from campaigns.audiences
            where campaign = {campaign:String} and occurrence < {occurrence:String}
            order by occurrence desc, frozen_at, audience_id limit 1
            """,
            self._parameters(),
        )

    def _has_table(self, database: str, table: str) -> bool:
        return bool(
            self.warehouse.value(
                """
                select count() from system.tables
                where database = {database:String} and name = {table:String}
                """,
                {"database": database, "table": table},
            )
        )


@functools.cache
def _zones() -> frozenset[str]:
    """Time zones whose names may stand in SQL, which are all that there are."""
    return frozenset(zone for zone in available_timezones() if re.fullmatch(r"[A-Za-z0-9_+/-]+", zone))


def profile_columns(warehouse: Warehouse) -> list[str]:
    """The columns of `marts.contact_profiles`, which conditions and templates may use.

    Raises:
        WarehouseError: the table has not been built.
    """
    rows = warehouse.frame(
        """
        select name from system.columns where database = 'marts' and table = 'contact_profiles'
        order by position
        """
    )
    if not rows.height:
        raise WarehouseError(
            "The warehouse has no marts.contact_profiles.",
            fix="Build the dbt models first: materialise the marts.",
        )
    names = [str(name) for name in rows["name"]]
    odd = [name for name in names if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]
    if odd:
        raise WarehouseError(
            f"marts.contact_profiles has a column named {odd[0]!r}, which no merge tag can name.",
            fix="Give it a name of letters, digits and _ in the dbt model.",
        )
    return names
