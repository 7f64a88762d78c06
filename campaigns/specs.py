"""Campaigns as marketers write them: one YAML file each in `content/campaigns/`.

`load_campaigns` reads and validates all of them; `check_references` checks what they name in other files.
`occurrence` and `is_due` tell when a campaign is to be sent.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from campaigns.experiment_specs import ExperimentSpec, Placed, experiment_problems
from campaigns.predicates import Predicate, parse_predicate
from campaigns.purposes import purpose_problems
from campaigns.spec_types import Address, Line, Name, TimeZone
from warehouse.errors import InputError, SettingsError
from warehouse.yaml_specs import (
    Duration,
    Location,
    Problem,
    Spec,
    format_duration,
    load_specs,
    nearest,
    problems_error,
    shown_location,
)

CATCH_UP = timedelta(hours=24)


class AudienceSpec(Spec):
    """Who: a segment, narrowed by a predicate over the contact's profile."""

    segment: Name = Field(description="name of a file in dbt_project/models/segments, without .sql")
    where: str | None = Field(None, description="an SQL condition over the columns of marts.contact_profiles")

    @property
    def predicate(self) -> Predicate | None:
        """The condition, parsed; None if there is none."""
        return parse_predicate(self.where) if self.where else None


class Schedule(Spec):
    """When: once `at` an instant, or again and again by `cron`."""

    at: datetime | None = Field(None, description="an instant such as 2026-06-27T09:00:00Z")
    cron: str | None = Field(None, description='five fields such as "0 9 * * mon"')
    timezone: TimeZone = Field("UTC", description="an IANA time zone such as Europe/London")

    @field_validator("cron")
    @classmethod
    def _cron_that_happens(cls, value: str | None) -> str | None:
        if value is None:
            return None
        fields = "write five fields: minute hour day month weekday, such as 0 9 * * mon"
        if len(value.split()) != 5:
            raise ValueError(f"has {len(value.split())} fields; {fields}")
        try:
            next(CronSim(value, datetime(2000, 1, 1)))
        except CronSimError as error:
            raise ValueError(f"{value!r} is no schedule ({error}); {fields}") from None
        except StopIteration:
            raise ValueError(f"{value!r} never happens; correct day and month") from None
        return value

    @model_validator(mode="after")
    def _either(self) -> Schedule:
        if (self.at is None) == (self.cron is None):
            raise ValueError("needs either at or cron; write one of the two")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The time zone in which `cron`, and an `at` without offset, are meant."""
        return ZoneInfo(self.timezone)

    def latest(self, now: datetime) -> datetime | None:
        """The newest scheduled instant that is not after `now`, UTC; None if there is none yet."""
        if self.at is not None:
            instant = self._instant()
            return instant if instant <= now else None
        assert self.cron is not None
        # start beyond `now`: where clocks change, the order of local times is not the order of instants
        start = (now.astimezone(UTC).replace(microsecond=0) + timedelta(hours=3)).astimezone(self.zone)
        for moment in _ticks(CronSim(self.cron, start, reverse=True)):
            if moment <= now:
                return moment
        return None

    def following(self, now: datetime) -> datetime | None:
        """The first scheduled instant after `now`, UTC; None if there is none any more."""
        if self.at is not None:
            instant = self._instant()
            return instant if instant > now else None
        assert self.cron is not None
        start = (now.astimezone(UTC).replace(microsecond=0) - timedelta(hours=3)).astimezone(self.zone)
        return next((moment for moment in _ticks(CronSim(self.cron, start)) if moment > now), None)

    def _instant(self) -> datetime:
        assert self.at is not None
        moment = self.at if self.at.tzinfo else self.at.replace(tzinfo=self.zone)
        return moment.astimezone(UTC).replace(microsecond=0)


class Goal(Spec):
    """What counts as success: an event of the contact within a time after the message."""

    event: str = Field(description="an event type such as order.placed")
    within: Duration = Field(description="a duration such as 14d")

    @field_validator("event")
    @classmethod
    def _noun_verb(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*", value):
            raise ValueError(f"{value!r} is no event type; write noun.verb, such as order.placed")
        return value


class Cap(Spec):
    """At most so many messages to a contact within a time, over all campaigns."""

    messages: int = Field(ge=1, le=1000, description="how many, at least 1")
    within: Duration = Field(description="a duration such as 7d")


class QuietHours(Spec):
    """When nobody gets mail of a campaign, by the clock where the contact lives."""

    after: str = Field(description='a time such as "21:00"')
    before: str = Field(description='a time such as "08:00"')

    @field_validator("after", "before")
    @classmethod
    def _clock_time(cls, value: str) -> str:
        if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
            raise ValueError(f"{value!r} is no time; write hours and minutes, such as 21:00")
        return value

    @model_validator(mode="after")
    def _some_of_the_day(self) -> QuietHours:
        if self.after == self.before:
            raise ValueError("after and before are the same time; the whole day would be quiet")
        return self

    def end(self, now: datetime, timezone: str) -> datetime:
        """When it is not quiet any more in a time zone, UTC; `now` if it is not quiet."""
        if not self.is_quiet(now, timezone):
            return now.astimezone(UTC)
        return next_clock_time(now, self.before, ZoneInfo(timezone))

    def is_quiet(self, now: datetime, timezone: str) -> bool:
        """Whether an instant is in the quiet hours of a time zone; they may go over midnight."""
        clock = now.astimezone(ZoneInfo(timezone)).strftime("%H:%M")
        if self.after < self.before:
            return self.after <= clock < self.before
        return clock >= self.after or clock < self.before


class WaitingQuietHours(QuietHours):
    """Quiet hours, and what becomes of who would get something in them."""

    then: Literal["wait", "skip"] = Field("wait", description="wait until they end, or skip")

    def end_between(self, since: datetime, now: datetime) -> bool:
        """Whether they have ended anywhere in the world between two instants."""
        return any(
            self.is_quiet(since, zone) and not self.is_quiet(now, zone) for zone in available_timezones()
        )


def next_clock_time(moment: datetime, clock: str, zone: ZoneInfo, weekdays: Collection[int] = ()) -> datetime:
    """The first instant at or after a moment when a zone's clock shows a time such as `09:00`, UTC.

    A time that a change of clocks leaves out counts by the clock of before the change; one that comes twice, the
    first time.

    Args:
        weekdays: on these days alone, Monday being 0; empty means on all.
    """
    hour, minute = map(int, clock.split(":"))
    for days in range(9):
        day = moment.astimezone(zone).date() + timedelta(days=days)
        if not weekdays or day.weekday() in weekdays:
            chosen = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone).astimezone(UTC)
            if chosen >= moment:
                return chosen
    raise AssertionError("within nine days every weekday has come")


class Track(Spec):
    """What of a campaign's messages is tracked."""

    clicks: bool | None = Field(None, description="true or false; left out, as the settings say")
    opens: bool | None = Field(None, description="true or false; left out, as the settings say")


class Utm(Spec):
    """Parameters that web links get, without `utm_`."""

    source: Line = Field(description="where visitors come from, such as newsletter")
    medium: Line = Field("email", description="email if left out")
    campaign: Line | None = Field(None, description="the campaign's name if left out")
    term: Line | None = Field(None, description="a search term")
    content: Line | None = Field(None, description="tells variants apart")


class SendSpec(Spec):
    """What is sent, and from whom."""

    channel: Literal["email", "journey", "video", "sms", "push", "chat", "webhook"] = Field(
        "email", description="email, journey, video, sms, push, chat or webhook"
    )
    template: Name = Field(description="name of a file in content/templates, without .mjml")
    category: Literal["marketing", "transactional"] = Field(description="marketing or transactional")
    purpose: Name | None = Field(
        None,
        description="what marketing must have been consented to, as in content/preferences.yaml; else marketing",
    )
    subject: Line = Field(description="one line; merge tags such as {{ contact.first_name }} are filled in")
    preheader: Line | None = Field(None, description="one line that mailboxes show after the subject")
    provider: Name | None = Field(None, description="name of a provider; left out, the one in the settings")
    from_name: Line | None = Field(None, description="the sender's name; left out, the one in the settings")
    from_email: Address | None = Field(
        None, description="the sender's address; left out, that of the settings"
    )
    reply_to: Address | None = Field(None, description="where answers go; left out, to the sender")
    track: Track | None = Field(None, description="clicks, opens: true or false")
    utm: Utm | None = Field(None, description="source, medium, campaign, term, content")
    attachments: list[Line] = Field([], description="names of files in content/attachments")
    recommendations: int = Field(0, ge=0, le=20, description="how many recommended products, 0 to 20")
    provider_tracking: bool = Field(False, description="whether the provider counts opens and clicks")
    hold: Duration | None = Field(None, description="how long the provider holds messages back, such as 1h")
    cancellable: bool = Field(False, description="whether what is held back can be cancelled")


class CrmTask(Spec):
    """A task for a colleague: an event `crm.task_requested` in raw.events, which the CRM sync takes over."""

    subject: Line = Field(description="what is to be done, in one line")
    note: str = Field("", description="more about it")
    due_in: Duration | None = Field(None, description="until when, such as 2d")
    owner: Line | None = Field(None, description="who is to do it, as the CRM names them")


class CampaignSpec(Spec):
    """One campaign: who gets what, when, and what it is to achieve."""

    campaign: Name = Field(description="the file's name without .yaml")
    description: str = Field("", description="a sentence or two for colleagues")
    audience: AudienceSpec = Field(description="segment, and where")
    schedule: Schedule = Field(description="at or cron, and timezone")
    goal: Goal | None = Field(None, description="event and within")
    send: SendSpec = Field(description="template, category, subject and more")
    cap: Cap | None = Field(None, description="messages and within; left out, the one in the settings")
    quiet_hours: WaitingQuietHours | None = Field(
        None, description="after and before, times where the contact lives, and then: wait or skip"
    )
    experiment: ExperimentSpec | None = Field(
        None, description="variants, metric, winner and more: who gets what, and how it is decided"
    )

    def send_of(self, variant: str) -> SendSpec:
        """What a variant of the experiment sends; what `send` says for everybody else."""
        if self.experiment is None or variant not in self.experiment.weights:
            return self.send
        return self.send.model_copy(update=self.experiment.variant(variant).changes())

    def placed_experiment(self) -> Placed | None:
        """The campaign's experiment with its place in the file, None if it has none."""
        found = self.experiment
        if found is None:
            return None
        name = found.name or self.campaign
        return Placed(name, "campaign", self.campaign, found.weights, found, self, ("experiment",))

    @property
    def name(self) -> str:
        """The campaign's name."""
        return self.campaign

    @property
    def version(self) -> str:
        """Twelve hexadecimal digits that change when what the campaign does changes.

        Comments, layout and the description do not count, nor does a default that is written out.
        """
        return content_version(self)


def content_version(spec: Spec) -> str:
    """Twelve hexadecimal digits of what a spec says, its description left out."""
    content = spec.model_dump(mode="json", exclude={"description"}, exclude_defaults=True)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def load_campaigns(content_dir: Path) -> dict[str, CampaignSpec]:
    """Read `content_dir/campaigns/*.yaml`; from names, in order, to specs.

    Raises:
        InputError: names file, line and key of each mistake, and what is allowed.
    """
    specs = load_specs(content_dir / "campaigns", CampaignSpec, name_key="campaign")
    problems = [problem for spec in specs.values() for problem in _predicate_problems(spec, None)]
    problems += [problem for spec in specs.values() for problem in _time_problems(spec)]
    problems += [
        problem
        for spec in specs.values()
        for problem in purpose_problems(spec, [(("send",), spec.send)], content_dir)
    ]
    problems += experiment_problems(
        [one for spec in specs.values() if (one := spec.placed_experiment()) is not None],
        goals=[spec.name for spec in specs.values() if spec.goal is not None],
    )
    if problems:
        raise problems_error(problems)
    return specs


def check_references(
    specs: Mapping[str, CampaignSpec],
    templates: Collection[str],
    segments: Collection[str],
    profile_columns: Collection[str] | None = None,
    *,
    provider: str = "",
    metrics: Collection[str] | None = None,
) -> None:
    """Check that what campaigns name exists, and that their providers can do what they ask.

    Args:
        specs: from `load_campaigns`.
        templates: names of the templates there are.
        segments: names of the segments there are.
        profile_columns: columns of `marts.contact_profiles`; None leaves conditions to the warehouse.
        provider: the settings' provider, for campaigns that name none; empty leaves those unchecked.
        metrics: names of the files in dbt_project/models/metrics; None leaves metrics of experiments unchecked.

    Raises:
        InputError: names file and line of each name that leads nowhere, and the nearest right one.
    """
    problems: list[Problem] = []
    for spec in specs.values():
        named: tuple[tuple[Location, str, str, Collection[str], str], ...] = (
            (
                ("audience", "segment"),
                "segment",
                spec.audience.segment,
                segments,
                "dbt_project/models/segments",
            ),
            (("send", "template"), "template", spec.send.template, templates, "content/templates"),
            *(
                (
                    ("experiment", "variants", at, "template"),
                    "template",
                    one.template,
                    templates,
                    "content/templates",
                )
                for at, one in enumerate(spec.experiment.variants if spec.experiment else ())
                if one.template is not None
            ),
        )
        for location, kind, name, known, folder in named:
            if name not in known:
                hint = nearest(name, sorted(known)) or f"There is none yet: add one to {folder}."
                what = f"{shown_location(location)}: there is no {kind} {name!r} in {folder}."
                problems.append(Problem(spec.place(*location), what, hint))
        problems.extend(_provider_problems(spec, provider))
        if (placed := spec.placed_experiment()) is not None and metrics is not None:
            goals = [spec.name] if spec.goal else []
            problems.extend(experiment_problems([placed], goals=goals, metrics=metrics))
        if profile_columns is not None:
            problems.extend(_predicate_problems(spec, profile_columns))
    if problems:
        raise problems_error(problems)


def _provider_problems(spec: CampaignSpec, provider: str) -> list[Problem]:
    error = provider_refusal(spec.send, provider)
    if error is None:
        return []
    place = spec.place("send", "provider") if spec.send.provider else spec.place("send")
    return [Problem(place, f"send: {error.message}", error.fix)]


def provider_refusal(send: SendSpec, provider: str) -> SettingsError | None:
    """Why the provider cannot send this; None if it can, or none is named.

    Args:
        provider: the one of the settings, if `send` names none.
    """
    # senders.pipeline knows campaigns, so this one way is left to the moment it is needed
    from senders.providers import get_capabilities
    from senders.providers.base import Needs, require_capabilities

    name = send.provider or provider
    if not name:
        return None
    needs = Needs(
        channel=send.channel, category=send.category, has_attachments=bool(send.attachments),
        is_tracked=send.provider_tracking, hold=send.hold or timedelta(0),
        is_cancellable=send.cancellable,
    )  # fmt: skip
    try:
        require_capabilities(name, get_capabilities(name), needs)
    except SettingsError as error:
        return error
    return None


def _time_problems(spec: CampaignSpec) -> list[Problem]:
    """What of an experiment would last longer than from one occurrence to the next."""
    experiment = spec.experiment
    if experiment is None or spec.schedule.cron is None:
        return []
    start = spec.schedule.following(datetime(2026, 1, 1, tzinfo=UTC))
    following = spec.schedule.following(start) if start else None
    if start is None or following is None:
        return []
    last = max((one.delay or timedelta(0) for one in experiment.variants), default=timedelta(0))
    lasts: list[tuple[str, timedelta]] = [("variants", last)]
    if experiment.winner is not None:
        lasts.append(("winner", last + experiment.planned_end))
    if experiment.batches is not None:
        lasts.append(("batches", experiment.batches.every * (experiment.batches.count - 1)))
    return [
        Problem(
            spec.place("experiment", key),
            f"experiment.{key}: takes {format_duration(duration)}, and the campaign goes again after "
            f"{format_duration(following - start)}.",
            "Make it shorter, so that one occurrence is over before the next.",
        )
        for key, duration in lasts
        if duration >= following - start
    ]


def _predicate_problems(spec: CampaignSpec, columns: Collection[str] | None) -> list[Problem]:
    if spec.audience.where is None:
        return []
    try:
        parse_predicate(
            spec.audience.where,
            columns=columns,
            place=lambda line: predicate_place(spec, line),
            key="audience.where",
        )
    except InputError as error:
        return [Problem("", error.message, error.fix)]
    return []


def predicate_place(spec: CampaignSpec, line: int = 1) -> str:
    """`file:line` of a line of the campaign's condition, counted from 1."""
    return spec.line_place(line, "audience", "where")


def occurrence(spec: CampaignSpec, now: datetime) -> datetime | None:
    """Which time round it is: the newest scheduled instant that is not after `now`, UTC, or None."""
    return spec.schedule.latest(now)


def next_occurrence(spec: CampaignSpec, now: datetime) -> datetime | None:
    """The first scheduled instant after `now`, UTC, or None."""
    return spec.schedule.following(now)


def is_due(spec: CampaignSpec, now: datetime, catch_up: timedelta = CATCH_UP) -> bool:
    """Whether the newest occurrence is to be sent: it has come, no longer than `catch_up` ago.

    What has been sent already is the ledger's to know; sending an occurrence again sends nothing.
    """
    instant = occurrence(spec, now)
    return instant is not None and now - instant <= catch_up


def segment_version(segments_dir: Path, segment: str) -> str:
    """Twelve hexadecimal digits of SHA-256 over the text of a segment's SQL file.

    Raises:
        InputError: there is no such file; names the nearest.
    """
    path = segments_dir / f"{segment}.sql"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    except FileNotFoundError:
        known = sorted(file.stem for file in segments_dir.glob("*.sql"))
        hint = nearest(segment, known) or "There are no segments yet: add an SQL file."
        raise InputError(f"There is no segment {segment!r} in {segments_dir.name}.", fix=hint) from None


def _ticks(simulation: CronSim) -> Iterator[datetime]:
    for moment in simulation:
        yield moment.astimezone(UTC)
