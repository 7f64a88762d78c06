"""Triggers as marketers write them: one YAML file each in `content/triggers/`.

A trigger is what happens (`event`, `date`, `becomes`, `entered`, `left`), whom it concerns (`when`), when it acts
(`wait`, `unless`, `cooldown`, `quiet_hours`) and what it does (`send`, `enter_journey`, `leave_journey`, `webhook`,
`crm_task`, `tag`). docs/triggers.md has an example of each.

`load_triggers` reads and validates all of them; `check_references` checks what they name in other files.
`gateway.triggers` judges them as events come in.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from campaigns.catalogue import record_rows
from campaigns.predicates import Predicate, check_types, parse_predicate
from campaigns.purposes import purpose_problems
from campaigns.specs import (
    Cap,
    CrmTask,
    Name,
    SendSpec,
    TimeZone,
    WaitingQuietHours,
    content_version,
    provider_refusal,
)
from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.loads import MAIL_EVENT_TYPES
from warehouse.yaml_specs import (
    Duration,
    Problem,
    Spec,
    format_duration,
    load_spec,
    load_specs,
    nearest,
    parse_duration,
    problems_error,
)

KIND = "trigger"
COOLDOWN = timedelta(hours=24)
SOURCES = ("event", "date", "becomes", "entered", "left")
"""What may happen; a trigger has one of them."""
ACTIONS = ("send", "enter_journey", "leave_journey", "webhook", "crm_task", "tag")
"""What may be done; a trigger has one of them."""
MAIL_TYPES = MAIL_EVENT_TYPES
_EVENT_TYPE = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")


def _event_type(value: str) -> str:
    if not is_event_type(value):
        hint = nearest(value, MAIL_TYPES) if "." not in value else ""
        raise ValueError(
            f"{value!r} is no event type; write noun.verb, such as order.placed. {hint}".rstrip()
        )
    return value


def is_event_type(text: str) -> bool:
    """Whether a text is a type of events: `noun.verb`, or one of mail."""
    return text in MAIL_TYPES or _EVENT_TYPE.fullmatch(text) is not None


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _cooldown(value: object) -> object:
    return timedelta(0) if value == "none" else parse_duration(value)


Texts = Annotated[list[str], BeforeValidator(_listed)]
Cooldown = Annotated[
    timedelta,
    BeforeValidator(_cooldown),
    PlainSerializer(lambda value: format_duration(value) if value else "none", return_type=str),
]


class DateSpec(Spec):
    """A day of the contact's own: so long after or before a time in the profile, or its day in every year."""

    column: str = Field(description="a time in the contact's profile, such as last_order_at")
    after: Duration | None = Field(None, description="so long after it, such as 60d")
    before: Duration | None = Field(None, description="so long before it, such as 7d")
    every: Literal["year"] | None = Field(None, description="year: an anniversary, or a birthday")
    at: str = Field("09:00", description='the time of day of an anniversary, such as "09:00"')
    timezone: TimeZone = Field("UTC", description="an IANA time zone such as Europe/London")

    @field_validator("at")
    @classmethod
    def _clock_time(cls, value: str) -> str:
        if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", value):
            raise ValueError(f"{value!r} is no time; write hours and minutes, such as 09:00")
        return value

    @model_validator(mode="after")
    def _one_meaning(self) -> DateSpec:
        if self.after is not None and self.before is not None:
            raise ValueError("has both after and before; write one of the two")
        return self


class TriggerQuietHours(WaitingQuietHours):
    """When the trigger does nothing, by the clock where the contact lives."""

    timezone: TimeZone = Field("UTC", description="for contacts whose time zone is not known")

    def quiet_until(self, now: datetime, timezone: str | None) -> datetime | None:
        """When the quiet hours that are now end, UTC; None if it is not quiet where the contact lives."""
        zone = timezone if timezone in available_timezones() else self.timezone
        return self.end(now, zone) if self.is_quiet(now, zone) else None


class WebhookSpec(Spec):
    """A call to another system, signed as those of the provider `webhook` are."""

    url: str | None = Field(None, description="an https address; left out, MAILHOUSE_WEBHOOK_URL")

    @field_validator("url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if value is not None and (parts.scheme not in ("https", "http") or not parts.hostname):
            raise ValueError(f"{value!r} is no web address; write it like https://hooks.example.com/carts")
        return value


class TagSpec(Spec):
    """A static list that the contact is put on, or taken off."""

    add: Name | None = Field(None, description="the list that the contact is put on")
    remove: Name | None = Field(None, description="the list that the contact is taken off")

    @model_validator(mode="after")
    def _either(self) -> TagSpec:
        if (self.add is None) == (self.remove is None):
            raise ValueError("needs either add or remove; write one of the two")
        return self


class TriggerSpec(Spec):
    """One trigger: when this happens to such a contact, do that."""

    trigger: Name = Field(description="the file's name without .yaml")
    description: str = Field("", description="a sentence or two for colleagues")
    event: Texts | None = Field(None, description="an event type such as cart.updated, or a list of them")
    date: DateSpec | None = Field(None, description="column, and after, before or every")
    becomes: str | None = Field(None, description="a condition over the profile that begins to be met")
    entered: Name | None = Field(None, description="a segment that the contact enters")
    left: Name | None = Field(None, description="a segment that the contact leaves")
    when: str | None = Field(None, description="an SQL condition over the profile and event.<property>")
    wait: Duration | None = Field(None, description="how long after the event, such as 1h")
    unless: Texts = Field([], description="event types that call it off while it waits, or a condition")
    cooldown: Cooldown = Field(
        COOLDOWN, description="at most once a contact within this time; none for no limit"
    )
    cap: Cap | None = Field(None, description="messages and within; left out, the one in the settings")
    quiet_hours: TriggerQuietHours | None = Field(None, description="after, before, then, timezone")
    send: SendSpec | None = Field(None, description="template, category, subject and more")
    enter_journey: Name | None = Field(None, description="a journey that the contact enters")
    leave_journey: Name | None = Field(None, description="a journey that the contact leaves")
    webhook: WebhookSpec | None = Field(None, description="url; {} for that of the settings")
    crm_task: CrmTask | None = Field(None, description="subject, note, due_in")
    tag: TagSpec | None = Field(None, description="add or remove")

    @field_validator("event")
    @classmethod
    def _event_types(cls, value: list[str] | None) -> list[str] | None:
        if value is not None and not value:
            raise ValueError("is empty; name an event type")
        return None if value is None else [_event_type(one) for one in value]

    @model_validator(mode="after")
    def _one_source_one_action(self) -> TriggerSpec:
        for kind, names in (("what happens", SOURCES), ("what is done", ACTIONS)):
            given = [name for name in names if getattr(self, name) is not None]
            if len(given) != 1:
                said = f"both {given[0]} and {given[1]}" if given else "none"
                raise ValueError(f"{kind}: write one of {', '.join(names)}; there is {said}")
        if self.cap is not None and self.send is None:
            raise ValueError("cap counts messages, and this trigger sends none; remove it")
        return self

    @property
    def name(self) -> str:
        """The trigger's name."""
        return self.trigger

    @cached_property
    def version(self) -> str:
        """Twelve hexadecimal digits that change when what the trigger does changes."""
        return content_version(self)

    @property
    def source(self) -> str:
        """Which of `SOURCES` it has."""
        return next(name for name in SOURCES if getattr(self, name) is not None)

    @property
    def action(self) -> str:
        """Which of `ACTIONS` it has."""
        return next(name for name in ACTIONS if getattr(self, name) is not None)

    @property
    def state_condition(self) -> str | None:
        """What begins to be met, for triggers that watch a state: `becomes`, `entered`, `left`."""
        if self.entered is not None:
            return f"has(segments, '{self.entered}')"
        if self.left is not None:
            return f"not has(segments, '{self.left}')"
        return self.becomes

    @property
    def state_key(self) -> str:
        """Twelve hexadecimal digits of `state_condition`: another condition starts from what is so by then."""
        return hashlib.sha256((self.state_condition or "").encode()).hexdigest()[:12]

    @property
    def unless_events(self) -> list[str]:
        """Event types that call it off."""
        return [one for one in self.unless if is_event_type(one)]

    @property
    def unless_conditions(self) -> list[str]:
        """Conditions that call it off."""
        return [one for one in self.unless if not is_event_type(one)]


@dataclass(frozen=True)
class Conditions:
    """A trigger's conditions, parsed.

    Attributes:
        when: None if every event of its types counts.
        unless: conditions that call it off, joined by or; None if there are none.
        state: what begins to be met; None for triggers of events and dates.
    """

    when: Predicate | None
    unless: tuple[Predicate, ...]
    state: Predicate | None

    @property
    def all(self) -> tuple[Predicate, ...]:
        """All of them."""
        return tuple(one for one in (self.when, *self.unless, self.state) if one is not None)


def load_triggers(content_dir: Path) -> dict[str, TriggerSpec]:
    """Read `content_dir/triggers/*.yaml`; from names, in order, to specs.

    Raises:
        InputError: names file, line and key of each mistake, and what is allowed.
    """
    specs = load_specs(content_dir / "triggers", TriggerSpec, name_key="trigger")
    problems = [problem for spec in specs.values() for problem in _condition_problems(spec, None)]
    problems += [problem for spec in specs.values() for problem in _purpose_problems(spec, content_dir)]
    if problems:
        raise problems_error(problems)
    return specs


def load_trigger(path: Path) -> TriggerSpec:
    """Read one file.

    Raises:
        InputError: names the place of the first mistakes.
    """
    spec = load_spec(path, TriggerSpec, name_key="trigger")
    if problems := [*_condition_problems(spec, None), *_purpose_problems(spec, path.parent.parent)]:
        raise problems_error(problems)
    return spec


def conditions_of(spec: TriggerSpec, columns: Collection[str] | None = None) -> Conditions:
    """A trigger's conditions.

    Args:
        columns: of `marts.contact_profiles`, best with their types; None lets any name pass.

    Raises:
        InputError: names the place of a mistake.
    """

    def parsed(text: str | None, *location: str | int, is_event: bool = True) -> Predicate | None:
        if text is None:
            return None
        key = ".".join(str(part) for part in location)
        return parse_predicate(
            text,
            columns=columns,
            qualifiers=("event", "message") if is_event else (),
            place=lambda line: spec.line_place(line, *location),
            key=key,
        )

    unless = tuple(
        predicate
        for index, text in enumerate(spec.unless)
        if not is_event_type(text) and (predicate := parsed(text, "unless", index)) is not None
    )
    state = spec.state_condition
    place = ("becomes",) if spec.becomes is not None else (spec.source,)
    return Conditions(parsed(spec.when, "when"), unless, parsed(state, *place, is_event=False))


def check_references(
    specs: Mapping[str, TriggerSpec],
    templates: Collection[str],
    segments: Collection[str],
    profile_columns: Collection[str] | None = None,
    journeys: Collection[str] = (),
    *,
    provider: str = "",
) -> None:
    """Check that what triggers name exists, and that their providers can do what they ask.

    Args:
        specs: from `load_triggers`.
        templates, segments, journeys: names of those there are.
        profile_columns: of `marts.contact_profiles`, best with their types; None leaves conditions to the warehouse.
        provider: the settings' provider, for triggers that name none; empty leaves those unchecked.

    Raises:
        InputError: names file and line of each name that leads nowhere, and the nearest right one.
    """
    problems: list[Problem] = []
    for spec in specs.values():
        named = [
            (("entered",), "segment", spec.entered, segments, "dbt_project/models/segments"),
            (("left",), "segment", spec.left, segments, "dbt_project/models/segments"),
            (("enter_journey",), "journey", spec.enter_journey, journeys, "content/journeys"),
            (("leave_journey",), "journey", spec.leave_journey, journeys, "content/journeys"),
            (
                ("send", "template"),
                "template",
                spec.send and spec.send.template,
                templates,
                "content/templates",
            ),
        ]
        for location, kind, name, known, folder in named:
            if name is not None and name not in known:
                hint = nearest(name, sorted(known)) or f"There is none yet: add one to {folder}."
                what = f"{'.'.join(location)}: there is no {kind} {name!r} in {folder}."
                problems.append(Problem(spec.place(*location), what, hint))
        problems += _provider_problems(spec, provider)
        found = _condition_problems(spec, profile_columns) if profile_columns is not None else []
        problems += found or _segment_problems(spec, segments)
        if spec.date is not None and profile_columns is not None:
            problems += _date_problems(spec, profile_columns)
    if problems:
        raise problems_error(problems)


def check_conditions(spec: TriggerSpec, warehouse: Warehouse, state_sql: str, now: datetime) -> None:
    """Let the warehouse judge a trigger's conditions once, to see that types fit.

    Args:
        state_sql: a subquery with the profile's columns and those of an event; see `campaigns.live`.

    Raises:
        InputError: they do not.
    """
    parameters = {"now": f"{now:%Y-%m-%d %H:%M:%S}.000"}
    conditions = conditions_of(spec)
    for predicate, location in (
        (conditions.when, "when"), (conditions.state, spec.source), *((one, "unless") for one in conditions.unless),
    ):  # fmt: skip
        if predicate is not None:
            place = spec.line_place(1, location)
            check_types(predicate, warehouse, f"({state_sql})", parameters, place=place, key=location)


def record_triggers(warehouse: Warehouse, specs: Iterable[TriggerSpec]) -> int:
    """Write to `raw.campaigns` (kind `trigger`) what has changed since it was last written; returns the rows.

    Raises:
        WarehouseError: the warehouse does not answer, or its raw tables have not been made.
    """
    return record_rows(warehouse, KIND, [_row(spec) for spec in specs])


def _row(spec: TriggerSpec) -> dict[str, str | int]:
    return {
        "kind": KIND,
        "name": spec.name,
        "version": spec.version,
        "description": spec.description,
        "channel": spec.send.channel if spec.send else "",
        "category": spec.send.category if spec.send else "",
        "segment": spec.entered or spec.left or "",
        "goal_event": "",
        "goal_where": "",
        "goal_within_seconds": 0,
        "experiment": "",
        "spec": json.dumps(spec.model_dump(mode="json", exclude_defaults=True)),
    }


def _condition_problems(spec: TriggerSpec, columns: Collection[str] | None) -> list[Problem]:
    try:
        conditions = conditions_of(spec, columns)
    except InputError as error:
        return [Problem("", error.message, error.fix)]
    if spec.source != "event":
        # there is no event to read: what is due by the clock has no properties
        for predicate in filter(None, (conditions.when, *conditions.unless)):
            read = sorted(name for name in predicate.columns if name.startswith(("event.", "message.")))
            if read:
                where = spec.line_place(1, "when" if predicate is conditions.when else "unless")
                what = f"{read[0]} has no value: {spec.source} is no event."
                return [Problem(where, what, "Compare columns of the profile.")]
    return []


def _purpose_problems(spec: TriggerSpec, content_dir: Path) -> list[Problem]:
    return purpose_problems(spec, [(("send",), spec.send)] if spec.send else [], content_dir)


def _segment_problems(spec: TriggerSpec, segments: Collection[str]) -> list[Problem]:
    problems: list[Problem] = []
    conditions = conditions_of(spec)
    for predicate, location in (
        (conditions.when, "when"), (conditions.state if spec.becomes else None, "becomes"),
        *((one, "unless") for one in conditions.unless),
    ):  # fmt: skip
        for name in sorted(predicate.segments if predicate else ()):
            if name not in segments:
                what = f"{location}: there is no segment {name!r} in dbt_project/models/segments."
                problems.append(Problem(spec.line_place(1, location), what, nearest(name, sorted(segments))))
    return problems


def _date_problems(spec: TriggerSpec, columns: Collection[str]) -> list[Problem]:
    assert spec.date is not None
    types: Mapping[str, str] = columns if isinstance(columns, Mapping) else dict.fromkeys(columns, "")
    times = sorted(
        name for name, kind in types.items() if "Date" in kind or (not kind and name.endswith(("_at", "_on")))
    )
    if spec.date.column in times:
        return []
    what = f"date.column: {spec.date.column} is no time of a contact's profile."
    return [Problem(spec.place("date", "column"), what, nearest(spec.date.column, times))]


def _provider_problems(spec: TriggerSpec, provider: str) -> list[Problem]:
    error = provider_refusal(spec.send, provider) if spec.send else None
    if spec.send is None or error is None:
        return []
    place = spec.place("send", "provider") if spec.send.provider else spec.place("send")
    return [Problem(place, f"send: {error.message}", error.fix)]


def plain(value: Any) -> Any:
    """A value of a contact or event as JSON can hold it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return str(value)
