"""What people write in `content/crm.yaml`: whose value of a field counts, and what is pushed to which CRM.

`docs/crm-sync.md` is the reference. Without the file contacts are only read, nothing is pushed and nothing decided.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from crm.base import FIELDS, CustomField
from warehouse.yaml_specs import Duration, Problem, Spec, load_spec, nearest, problems_error

TWO_WAY: Final = tuple(name for name in FIELDS if name != "created_at")
"""Fields that rules may speak of; nobody edits when a record was made."""
OPT_OUTS: Final[Mapping[str, str]] = {"email": "email_opt_out", "sms": "sms_opt_out"}
"""Channels whose opt-out CRMs hold, and what the field is called in decisions; its values are `true` and `false`."""

RuleName = Literal["newest", "source", "prefer", "stricter"]
Word = Annotated[str, Field(min_length=1)]
CrmName = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$", description="a CRM's name, such as hubspot")
]
Property = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9_]{1,100}$", description="letters, digits and _, as the CRM's API names it"),
]
FieldType = Literal["text", "number", "datetime", "boolean", "list"]


@dataclass(frozen=True)
class Engagement:
    """Something that we know about a contact and a CRM may show.

    Attributes:
        label: what people see there.
        type: what it holds.
        sql: text of the value, '' if there is none, of `profiles` (marts.contact_profiles) and `predicted`
            (marts.contact_predictions).
        description: what it means.
        is_predicted: whether it is a prediction.
    """

    label: str
    type: FieldType
    sql: str
    description: str
    is_predicted: bool = False


def _text(column: str) -> str:
    return f"toString(profiles.{column})"


def _moment(column: str) -> str:
    # to the minute: nobody reads seconds, and CRMs round them differently
    return f"ifNull(formatDateTime(toDateTime(profiles.{column}, 'UTC'), '%Y-%m-%dT%H:%i:00Z', 'UTC'), '')"


# the score halves with time: a whole number changes seldom enough for a CRM
ENGAGEMENT: Final[Mapping[str, Engagement]] = {
    "engagement_score": Engagement(
        "Engagement score", "number", "toString(toInt64(round(profiles.engagement_score)))",
        "Points for orders, clicks, opens and visits, which halve with time; a whole number.",
    ),
    "engagement_band": Engagement(
        "Engagement band", "text", _text("engagement_band"), "active, cooling, cold, gone or never."
    ),
    "rfm_segment": Engagement(
        "RFM segment", "text", _text("rfm_segment"), "Group by recency, frequency and spending, such as champions."
    ),
    "segments": Engagement(
        "Segments", "list", "arrayStringConcat(profiles.segments, ';')", "Segments of Mailhouse they are in now."
    ),
    "last_opened_at": Engagement(
        "Last open", "datetime", _moment("last_opened_at"), "When they last opened a message."
    ),
    "last_clicked_at": Engagement(
        "Last click", "datetime", _moment("last_clicked_at"), "When they last clicked in a message."
    ),
    "last_message_at": Engagement(
        "Last message", "datetime", _moment("last_message_at"), "When we last sent them a message."
    ),
    "last_order_at": Engagement(
        "Last order", "datetime", _moment("last_order_at"), "When they last ordered."
    ),
    "orders_count": Engagement("Orders", "number", _text("orders_count"), "Number of orders."),
    "revenue": Engagement("Revenue", "number", _text("revenue"), "What they have spent in all."),
    "average_order_value": Engagement(
        "Average order value", "number", _text("average_order_value"), "Spent per order."
    ),
    "lifetime_value": Engagement(
        "Lifetime value", "number", "ifNull(toString(predicted.lifetime_value), '')",
        "What they are predicted to spend from now on.", is_predicted=True,
    ),
    "churn_probability": Engagement(
        "Churn probability", "number", "ifNull(toString(round(predicted.churn_probability, 2)), '')",
        "How probable it is that they do not come back, 0 to 1.", is_predicted=True,
    ),
    "has_marketing_consent": Engagement(
        "Marketing consent", "boolean", _text("has_marketing_consent"), "Whether they agreed to marketing by email."
    ),
    "is_suppressed": Engagement(
        "Suppressed", "boolean", _text("is_suppressed"), "Whether their address must not get marketing."
    ),
}  # fmt: skip
"""What may be pushed, by its name in `content/crm.yaml`."""


class FieldRule(Spec):
    """Whose value of a field counts. One of `rule: newest`, `source` and `prefer`; also written as bare `newest`.

    Attributes:
        rule: `newest`: the value that was written last.
        source: the CRM or other source of contacts whose value counts, whatever others write.
        prefer: sources, the best first; the value of the first that has one counts.
        keep_filled: whether a value that is there outdoes an empty one; left out, as `keep_filled` of the file.
    """

    rule: Literal["newest"] | None = Field(None, description="newest")
    source: CrmName | None = Field(None, description="the source whose value counts, such as hubspot")
    prefer: list[CrmName] | None = Field(None, min_length=1, description="sources, the best first")
    keep_filled: bool | None = Field(None, description="true or false")

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"rule": given}
        return given

    @model_validator(mode="after")
    def _one(self) -> FieldRule:
        if sum(one is not None for one in (self.rule, self.source, self.prefer)) != 1:
            raise ValueError(
                "needs exactly one of rule, source and prefer; write newest, {source: hubspot} or {prefer: [a, b]}"
            )
        if self.prefer is not None and len(set(self.prefer)) < len(self.prefer):
            raise ValueError("names a source twice in prefer; name each once")
        return self

    @property
    def name(self) -> RuleName:
        """Which of the rules it is."""
        return "source" if self.source else "prefer" if self.prefer else "newest"

    @property
    def order(self) -> tuple[str, ...]:
        """Sources that come before all others, the best first."""
        return (self.source,) if self.source else tuple(self.prefer or ())


class PushSpec(Spec):
    """What one CRM gets.

    Attributes:
        fields: which of the file's `fields` are written there; left out, all.
        engagement: what we know about a contact, and the name of the field that shows it.
        create: a segment of whose people those that the CRM has not are created there.
        tasks: whether tasks that campaigns, triggers and journeys ask for are made there.
        tasks_within: how old such a request may be.
    """

    fields: list[Word] | None = Field(None, description="names of fields from `fields` above")
    engagement: dict[str, Property] = Field(
        default_factory=dict, description="a list of names, or name: the CRM's name for it"
    )
    create: Word | None = Field(None, description="the name of a segment")
    tasks: bool = Field(False, description="true or false")
    tasks_within: Duration = Field("7d", validate_default=True, description="a duration such as 7d")  # pyright: ignore

    @field_validator("engagement", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        if isinstance(given, list):
            return {str(name): f"mailhouse_{name}" for name in given}
        return given

    @field_validator("engagement")
    @classmethod
    def _distinct(cls, given: dict[str, str]) -> dict[str, str]:
        if len(set(given.values())) < len(given):
            raise ValueError("writes two things into one field; give each a name of its own")
        return given


class CrmRules(Spec):
    """The whole file.

    Attributes:
        fields: by name of the field, whose value counts; fields that are not named are read and never written.
        keep_filled: whether a value that is there outdoes an empty one, where a field does not say.
        opt_outs: by channel and CRM, the CRM's field that says whether somebody opted out: the stricter wins.
        push: by CRM, what it gets.
    """

    fields: dict[str, FieldRule] = Field(default_factory=dict, description="name: rule")
    keep_filled: bool = Field(default=True, description="true or false")
    opt_outs: dict[Literal["email", "sms"], dict[CrmName, Property]] = Field(
        default_factory=dict, description="channel: {crm: field}"
    )
    push: dict[CrmName, PushSpec] = Field(default_factory=dict, description="crm: {fields, engagement, ...}")

    @property
    def is_idle(self) -> bool:
        """Whether nothing is to be decided and nothing to be pushed."""
        return not (self.fields or self.opt_outs or self.push)

    @property
    def version(self) -> str:
        """Changes with what the file says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]

    def rules(self) -> list[Rule]:
        """One rule a field, opt-outs among them."""
        found = [
            Rule(
                name,
                rule.name,
                rule.order,
                self.keep_filled if rule.keep_filled is None else rule.keep_filled,
            )
            for name, rule in self.fields.items()
        ]
        return found + [Rule(OPT_OUTS[channel], "stricter", (), True) for channel in self.opt_outs]

    def pushed_fields(self, crm: str) -> tuple[str, ...]:
        """Fields that are written to a CRM when they differ there."""
        spec = self.push.get(crm)
        if spec is None:
            return ()
        outs = tuple(OPT_OUTS[channel] for channel, names in self.opt_outs.items() if crm in names)
        return (tuple(self.fields) if spec.fields is None else tuple(spec.fields)) + outs

    def without(self, crm: str, fields: Collection[str]) -> CrmRules:
        """The same rules, but some fields are not written to one CRM."""
        spec = self.push.get(crm)
        left = list(self.fields if spec is None or spec.fields is None else spec.fields)
        kept = [name for name in left if name not in fields]
        if spec is None or kept == left:
            return self
        changed = spec.model_copy(update={"fields": kept})
        return self.model_copy(update={"push": {**self.push, crm: changed}})

    def opt_out_names(self, field: str) -> dict[str, str]:
        """By CRM, what its records call an opt-out; empty for other fields."""
        return next(
            (dict(names) for channel, names in self.opt_outs.items() if OPT_OUTS[channel] == field), {}
        )

    def name_at(self, crm: str, field: str) -> str:
        """What a CRM's records call a field."""
        return self.opt_out_names(field).get(crm, field)

    def types_at(self, crm: str) -> dict[str, FieldType]:
        """What fields of a CRM hold, where it is no text."""
        spec = self.push.get(crm)
        types: dict[str, FieldType] = {}
        for key, name in (spec.engagement if spec else {}).items():
            types[name] = ENGAGEMENT[key].type
        for names in self.opt_outs.values():
            if crm in names:
                types[names[crm]] = "boolean"
        return types

    def custom_fields(self, crm: str) -> list[CustomField]:
        """Fields that `mailhouse crm setup` makes in a CRM."""
        spec = self.push.get(crm)
        return [
            CustomField(name, f"{known.label} (Mailhouse)", known.type, known.description)
            for key, name in (spec.engagement if spec else {}).items()
            for known in (ENGAGEMENT[key],)
        ]


@dataclass(frozen=True)
class Rule:
    """How one field is decided.

    Attributes:
        field: its name.
        name: which rule.
        order: sources that come before all others, the best first.
        keeps_filled: whether a value outdoes an empty one.
    """

    field: str
    name: RuleName
    order: tuple[str, ...] = ()
    keeps_filled: bool = True


def load_rules(
    content_dir: Path,
    crms: Collection[str] | None = None,
    *,
    sources: Collection[str] = (),
    segments: Collection[str] = (),
) -> CrmRules:
    """Read `content_dir/crm.yaml`; without it, rules that decide and push nothing.

    Args:
        content_dir: the content folder.
        crms: names of the connectors that there are; None: any.
        sources: names of other sources of contacts, whose values rules may prefer.
        segments: names of the segments that there are; none: any.

    Raises:
        InputError: file, line, what is wrong, and the nearest right name.
    """
    path = content_dir / "crm.yaml"
    if not path.exists():
        return CrmRules()
    rules = load_spec(path, CrmRules)
    if problems := _problems(rules, crms, sources, segments):
        raise problems_error(problems)
    return rules


def segment_names(project_dir: Path) -> list[str]:
    """Names of the segments of a dbt project."""
    return sorted(path.stem for path in (project_dir / "models" / "segments").glob("*.sql"))


def _problems(
    rules: CrmRules, crms: Collection[str] | None, sources: Collection[str], segments: Collection[str]
) -> list[Problem]:
    problems: list[Problem] = []

    def refuse(what: str, hint: str, *location: str | int) -> None:
        problems.append(Problem(rules.place(*location), what, hint))

    known = [*(crms or ()), *sorted(set(sources) - set(crms or ()))]
    for name, rule in rules.fields.items():
        if name not in TWO_WAY:
            refuse(f"fields.{name}: there is no field {name}.", nearest(name, TWO_WAY), "fields", name)
        for index, source in enumerate(rule.order):
            if crms is not None and source not in known:
                place = ("source",) if rule.source else ("prefer", index)
                refuse(
                    f"fields.{name}: there is no source {source}.",
                    nearest(source, known),
                    "fields",
                    name,
                    *place,
                )
    for channel, names in rules.opt_outs.items():
        for crm in names:
            if crms is not None and crm not in crms:
                refuse(
                    f"opt_outs.{channel}: there is no CRM {crm}.",
                    nearest(crm, crms),
                    "opt_outs",
                    channel,
                    crm,
                )
    for crm, spec in rules.push.items():
        if crms is not None and crm not in crms:
            refuse(f"push.{crm}: there is no CRM {crm}.", nearest(crm, crms), "push", crm)
        for index, name in enumerate(spec.fields or ()):
            if name not in rules.fields:
                refuse(
                    f"push.{crm}.fields: {name} has no rule.",
                    nearest(name, rules.fields) if rules.fields else f"Write `{name}: newest` under fields.",
                    "push", crm, "fields", index,
                )  # fmt: skip
        for name in spec.engagement:
            if name not in ENGAGEMENT:
                refuse(
                    f"push.{crm}.engagement: {name} is nothing we know about a contact.",
                    nearest(name, ENGAGEMENT), "push", crm, "engagement", name,
                )  # fmt: skip
        if spec.create and segments and spec.create not in segments:
            refuse(
                f"push.{crm}.create: there is no segment {spec.create}.",
                nearest(spec.create, segments), "push", crm, "create",
            )  # fmt: skip
        taken = {*TWO_WAY, *(names[crm] for names in rules.opt_outs.values() if crm in names)}
        for key, name in spec.engagement.items():
            if name in taken:
                refuse(
                    f"push.{crm}.engagement.{key}: {name} is a field of its own.",
                    f"Write another name, such as mailhouse_{key}.", "push", crm, "engagement", key,
                )  # fmt: skip
    return problems
