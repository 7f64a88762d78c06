# ruff: noqa: S608  (queries are put together from names of this module)
"""Whether a person may get something on a channel: one definition for campaigns, journeys and triggers.

A person can be reached on a channel if the profile has an address of it, and may be written to if no stop stands
against that address, none against the person on all channels, and, for marketing, consent to it is on record:

| channel | address | a stop is | consent |
| --- | --- | --- | --- |
| email, journey, video, chat, webhook | `email` | unsubscribed, complained, bounced hard | to `email` |
| sms | `phone` | STOP, no such number | to `sms` |
| push | `push_token` | the token is taken away | to `push`; unless withdrawn, the platform's opt-in: the token |

Consent is to a purpose: `send.purpose`, such as newsletter, or else `marketing`; to one it says nothing of another.
A stop by mail silences no other channel unless the person said so (`is_global` in `marts.suppressions`). What is
operational needs no consent, and only what cannot arrive stands against it: a dead mailbox, a number that does not
exist or replied STOP, after which the provider refuses everything.

Whose data may not be processed (`raw.restrictions`, `mailhouse gdpr restrict`), gets nothing on any channel; what is
operational only if the restriction allows it. It counts as soon as it is written, by contact and by address: what a
restriction says stands in no mart.

`reach_sql` judges a query of contacts by the warehouse; `refusal` judges one person who has been looked up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

PURPOSE: Final = "marketing"
"""The purpose of the consent that marketing needs, unless `send.purpose` names another."""

_EMAIL = r"^[^\s@<>,;:\"()\[\]\\]{1,64}@([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]$"
_LONGEST_EMAIL = 254


@dataclass(frozen=True)
class Reach:
    """How people are reached on a channel.

    Attributes:
        consent: the channel of `marts.consents` that marketing needs.
        address: the profile's column that says where a message goes.
        pattern: what an address looks like, in small letters: a regular expression that Python and RE2 read alike.
        longest: characters of an address, at most.
        suppressed, consented: the profile's columns that say whether a stop and consent stand, as of the last build.
        stop: the column of `marts.suppressions` with addresses of this channel; empty if it has none.
        is_opt_out: whether marketing needs no consent on record, only that none was withdrawn.
    """

    consent: str
    address: str
    pattern: str
    longest: int
    suppressed: str
    consented: str
    stop: str = ""
    is_opt_out: bool = False

    @property
    def is_mail(self) -> bool:
        """Whether it is by mail."""
        return self.address == "email"

    def is_address(self, value: Any) -> bool:
        """Whether something can be an address of the channel."""
        return (
            isinstance(value, str)
            and len(value) <= self.longest
            and "\n" not in value
            and re.search(self.pattern, value.lower()) is not None
        )


_MAIL = Reach(
    "email", "email", _EMAIL, _LONGEST_EMAIL, "is_suppressed", "has_marketing_consent", stop="email"
)
_SMS = Reach(
    "sms", "phone", r"^\+[1-9][0-9]{6,14}$", 16, "is_sms_suppressed", "has_sms_consent", stop="phone"
)
_PUSH = Reach("push", "push_token", r"^\S+$", 4096, "is_push_suppressed", "has_push_consent", is_opt_out=True)

CHANNELS: Final[Mapping[str, Reach]] = MappingProxyType(
    {
        "email": _MAIL,
        "journey": _MAIL,
        "video": _MAIL,
        "chat": _MAIL,
        "webhook": _MAIL,
        "sms": _SMS,
        "push": _PUSH,
    }
)
"""All channels. Consent to mail covers those that reach people by mail."""

MARKETING_CHANNELS: Final = ("email", "journey", "video", "sms", "push")
"""Channels for which consent is kept, so that marketing may go out by them."""

MAIL_CHANNELS: Final = ("email", "journey", "video")
"""Channels whose messages are mail: marketing mail must carry List-Unsubscribe and a postal address."""

ADDRESS_COLUMNS: Final[Mapping[str, str]] = MappingProxyType(
    {name: reach.address for name, reach in CHANNELS.items() if not reach.is_mail}
)
"""Channel -> the profile's column that says where a message goes, where that is not the mail address. Messages of
`chat` and `webhook` go where the settings say."""


def refusal(
    channel: str, category: str, person: Mapping[str, Any], is_dead: Callable[[], bool] = lambda: False
) -> str:
    """Why a person may get nothing on a channel; empty if they may.

    Args:
        person: columns of the profile: `is_deleted` if there is one, and those that `Reach` names; and `restriction`,
            as `is_restricted` takes it.
        is_dead: whether nothing can arrive at the address; asked for what needs no consent alone.
    """
    reach = CHANNELS[channel]
    if person.get("is_deleted"):
        return "deleted"
    if is_restricted(category, person.get("restriction") or ""):
        return "restricted"
    if not reach.is_address(person.get(reach.address)):
        return "invalid"
    if category != "marketing":
        return "suppressed" if is_dead() else ""
    if person[reach.suppressed]:
        return "suppressed"
    return "" if person[reach.consented] else "no_consent"


MARKETING_RESTRICTED, ALL_RESTRICTED = "marketing", "all"
"""What a restriction forbids: `all` means what is operational, too."""

_NEWEST = "tuple(recorded_at, is_restricted)"


def is_restricted(category: str, restriction: str) -> bool:
    """Whether a restriction forbids messages of a category.

    Args:
        restriction: empty, `MARKETING_RESTRICTED` or `ALL_RESTRICTED`.
    """
    return restriction == ALL_RESTRICTED or (restriction != "" and category == "marketing")


def restrictions_sql() -> str:
    """A query of all restrictions in force: `contact_id` (0 for an address), `email` (normalised) and `restriction`."""
    return f"""
        select contact_id, email,
            if(argMax(allows_transactional, {_NEWEST}), '{MARKETING_RESTRICTED}', '{ALL_RESTRICTED}') as restriction
        from raw.restrictions
        group by contact_id, email
        having argMax(is_restricted, {_NEWEST})
    """


def restricted_sql(contact_id: str, email: str = "", *, category: str = "marketing") -> str:
    """SQL: whether a contact, or an address of theirs, is restricted for a category; for anybody else than a message's
    receiver (audiences, journeys, training) the category is marketing.
    """
    only = "" if category == "marketing" else f"where restriction = '{ALL_RESTRICTED}'"
    by_contact = f"{contact_id} in (select contact_id from ({restrictions_sql()}) {only})"
    if not email:
        return f"({contact_id} != 0 and {by_contact})"
    return (
        f"(({contact_id} != 0 and {by_contact}) or"
        f" ({_key(email)} != '' and {_key(email)} in (select email from ({restrictions_sql()}) {only})))"
    )


def reach_sql(channel: str, category: str, members: str, *, has_deleted: bool) -> tuple[str, str, str]:
    """What the warehouse says of contacts, in three parts of one query.

    Needs the parameters `channel` (of consents) and `purpose`; see `reach_parameters`.

    Args:
        members: a query of `contact_id`.
        has_deleted: whether profiles have `is_deleted`.

    Returns:
        The cases of a `multiIf` that give the reason, up to consent; columns `consent_id` (the change that decided,
        granted or withdrawn) and `suppression_event_id`; and the joins, of `member` with `profile` and what else.
    """
    reach = CHANNELS[channel]
    is_marketing = category == "marketing"
    deleted = "profile.contact_id = 0" + (" or profile.is_deleted" if has_deleted else "")
    address = f"ifNull(profile.`{reach.address}`, '')"
    pattern = reach.pattern.replace("\\", "\\\\").replace("'", "\\'")
    invalid = f"not match(lower({address}), '{pattern}') or length({address}) > {reach.longest}"
    stops: list[str] = []
    joins: list[str] = []
    if reach.stop:
        # an operational message may go to somebody who unsubscribed, never to where nothing can arrive
        only = "" if is_marketing or not reach.is_mail else "and is_bounced"
        stops.append("stopped.event_id")
        joins.append(
            f"""
            left join (
                select {_key(reach.stop)} as address, argMax(event_id, suppressed_at) as event_id
                from marts.suppressions where {reach.stop} != '' {only} group by address
            ) as stopped on stopped.address = {_key(address)}
            """
        )
    if is_marketing and not reach.is_mail:
        stops.append("silenced.event_id")
        joins.append(
            f"""
            left join (
                select {_key("email")} as address, argMax(event_id, suppressed_at) as event_id
                from marts.suppressions where email != '' and is_global group by address
            ) as silenced on silenced.address = {_key("profile.email")}
            """
        )
    named = ", ".join(f"nullIf({one}, '')" for one in stops)
    stop = f"coalesce({named}, '')" if stops else "''"
    if not is_marketing:
        unconsented = "false"
    elif reach.is_opt_out:
        unconsented = "consent.consent_id != '' and not consent.is_granted"
    else:
        unconsented = "not consent.is_granted"
    cases = f"""
        {deleted}, 'deleted',
        {restricted_sql("member.contact_id", "profile.email", category=category)}, 'restricted',
        {invalid}, 'invalid',
        {stop} != '', 'suppressed',
        {unconsented}, 'no_consent',
    """
    columns = f"consent.consent_id as consent_id, {stop} as suppression_event_id"
    source = f"""
        ({members}) as member
        left join (
            select * from marts.contact_profiles where contact_id in ({members})
        ) as profile on profile.contact_id = member.contact_id
        {"".join(joins)}
        left join (
            select contact_id, argMax(consents.consent_id, consents.occurred_at) as consent_id,
                argMax(consents.is_granted, consents.occurred_at) as is_granted
            from marts.consents as consents
            where channel = {{channel:String}} and purpose = {{purpose:String}} and contact_id in ({members})
            group by contact_id
        ) as consent on consent.contact_id = member.contact_id
    """
    return cases, columns, source


def unconsented_sql(channel: str) -> str:
    """SQL: whether somebody lacks consent or is suppressed, counted a second way, over contact, email and address."""
    reach = CHANNELS[channel]
    decided = """(
        select contact_id from marts.consents
        where channel = {channel:String} and purpose = {purpose:String} and """
    consent = (
        f"contact_id in {decided} not is_granted)"
        if reach.is_opt_out
        else f"contact_id not in {decided} is_granted)"
    )
    stopped = (
        f"or {_key(reach.address)} in (select {_key(reach.stop)} from marts.suppressions where {reach.stop} != '')"
        if reach.stop
        else ""
    )
    silenced = (
        ""
        if reach.is_mail
        else f"or {_key('email')} in (select {_key('email')} from marts.suppressions where email != '' and is_global)"
    )
    return f"({consent} {stopped} {silenced})"


def reach_parameters(channel: str, purpose: str | None = None) -> dict[str, str]:
    """Parameters of `reach_sql` and `unconsented_sql`.

    Args:
        purpose: what must have been consented to; None means `PURPOSE`.
    """
    return {"channel": CHANNELS[channel].consent, "purpose": purpose or PURPOSE}


def _key(column: str) -> str:
    return f"lower(trim({column}))"
