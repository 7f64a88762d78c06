"""What a recipient wants to get: read as campaigns read it, changed by rows that prove it.

Consent is what `marts.consents` says, and a suppression what `marts.suppressions` says: the very relations that
`campaigns.audience` asks before a send. A change appends rows to `raw.consents`; nothing is overwritten. Three things
follow from how these are read:

- An unsubscribe by a link suppresses the address for mail, whatever consents say, and one from everything for all
  channels. Who then chooses something of that again gets a `subscribed` event, which lifts it, and rows that withdraw
  what was not chosen, so that nothing else comes back. A number that replied STOP is lifted by the reply START alone.
- A complaint or a mailbox that does not exist is not lifted by anybody's choice.
- A pause is one row that withdraws and says `paused_until`; from then on it grants again, unless a later row decides.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from campaigns.consents import Proof, consent_frame, record_texts
from campaigns.permissions import CHANNELS, PURPOSE
from campaigns.purposes import CHANNEL_WORDS, ConsentText, PreferencesSpec
from gateway.unsubscribes import NotStoredError, Recipient, Unsubscribes
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import WarehouseError
from warehouse.loads import load_consents

PAUSE = timedelta(days=30)
"""How long a pause lasts."""

_UNKNOWN_TABLE, _UNKNOWN_DATABASE = 60, 81
#: Purpose and channel.
Pair = tuple[str, str]
_PUSH: Pair = (PURPOSE, "push")


@dataclass(frozen=True)
class Choice:
    """One thing that a recipient may want: purpose and channel, in words and as it stands.

    Attributes:
        stopped_by: why the channel is suppressed: unsubscribed, complained, bounced; `stop` if the number replied STOP.
    """

    pair: Pair
    title: str
    description: str
    channel: str
    is_granted: bool
    consent_id: str = ""
    paused_until: datetime | None = None
    stopped_by: str = ""

    @property
    def is_final(self) -> bool:
        """Whether nobody's choice can lift the suppression."""
        return self.stopped_by not in ("", "unsubscribed")


@dataclass(frozen=True)
class Preferences:
    """All choices of a recipient.

    Attributes:
        choices: in the page's order; none is granted while its channel is suppressed.
        suppressed_by: why the address gets no mail: unsubscribed, complained, bounced; empty: it is not suppressed.
        is_global: whether the person unsubscribed from all channels.
    """

    choices: tuple[Choice, ...]
    suppressed_by: str = ""
    is_global: bool = False

    @property
    def is_final(self) -> bool:
        """Whether there is nothing to choose."""
        return bool(self.choices) and all(one.is_final for one in self.choices)

    @property
    def paused_until(self) -> datetime | None:
        """The end of a pause; None if nothing is paused."""
        return max((one.paused_until for one in self.choices if one.paused_until), default=None)

    @property
    def granted(self) -> list[Choice]:
        """What the recipient gets now."""
        return [one for one in self.choices if one.is_granted]


@dataclass(frozen=True)
class _Stored:
    consent_id: str
    is_granted: bool
    paused_until: datetime | None = None


@dataclass(frozen=True)
class Caller:
    """Who changes something: their address and program, which the rows keep as proof."""

    ip: str = ""
    user_agent: str = ""


@dataclass(frozen=True)
class Grant:
    """A consent that somebody gave elsewhere than on the page.

    Attributes:
        row: columns of `raw.consents`; its `consent_id` says which it is.
    """

    pair: Pair
    row: dict[str, Any]


_NOBODY = Caller()


@dataclass
class PreferenceCentre:
    """Reads and changes recipients' preferences. Safe to share between threads.

    Args:
        changed: is called when the warehouse has a change, so that triggers of this process heed it at once.
    """

    settings: SenderSettings
    warehouse: Warehouse
    unsubscribes: Unsubscribes
    changed: Callable[[], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, recipient: Recipient) -> Preferences:
        """The choices as they stand.

        Raises:
            NotStoredError: the warehouse does not answer.
        """
        try:
            stored, (suppressed_by, is_global) = self._stored(recipient), self._suppressed_by(recipient)
        except WarehouseError as error:
            raise NotStoredError(str(error)) from error
        spec = PreferencesSpec.load(self.settings.content_dir)
        offered = {
            (purpose, channel): (text.title, text.description)
            for purpose, text in spec.purposes.items()
            for channel in text.channels
        }
        # what somebody has consented to is shown, offered or not: or it could not be taken back
        for (purpose, channel), kept in stored.items():
            if (purpose, channel) in offered or not (kept.is_granted or kept.paused_until):
                continue
            known = spec.purposes.get(purpose)
            title = known.title if known else purpose.replace("_", " ").capitalize()
            offered[purpose, channel] = title, known.description if known else ""
        now = self.settings.now()
        is_number_stopped = any(channel == "sms" for _, channel in offered) and self._is_number_stopped(
            recipient
        )
        choices: list[Choice] = []
        for pair, (title, description) in offered.items():
            one = stored.get(pair, _Stored("", False))
            paused = one.paused_until if one.paused_until and one.paused_until > now else None
            reach = CHANNELS.get(pair[1])
            stopped_by = suppressed_by if is_global or reach is None or reach.is_mail else ""
            if pair[1] == "sms" and is_number_stopped:
                stopped_by = "stop"
            choices.append(
                Choice(
                    pair, title, description, CHANNEL_WORDS.get(pair[1], pair[1].capitalize()),
                    one.is_granted and not stopped_by, one.consent_id, None if stopped_by else paused, stopped_by,
                )
            )  # fmt: skip
        return Preferences(tuple(choices), suppressed_by, is_global)

    def save(self, recipient: Recipient, wanted: Iterable[Pair], *, caller: Caller = _NOBODY) -> Preferences:
        """Let the recipient have these and nothing else; returns what then stands, which the warehouse has.

        Raises:
            NotStoredError: the warehouse did not take it, or not all of it; the same call again completes it.
        """
        chosen = set(wanted)
        return self._change(recipient, lambda one: one.pair in chosen, caller)

    def pause(self, recipient: Recipient, *, caller: Caller = _NOBODY) -> Preferences:
        """Stop what the recipient gets for `PAUSE`.

        Raises:
            NotStoredError: as in `save`.
        """
        return self._change(recipient, lambda _: False, caller, self.settings.now() + PAUSE)

    def stop(self, recipient: Recipient, *, caller: Caller = _NOBODY) -> Preferences:
        """Withdraw everything and suppress the address.

        Raises:
            NotStoredError: as in `save`.
        """
        # first what stops all mail: should the rest fail, it holds
        self.unsubscribes.unsubscribe(recipient, "preferences")
        return self._change(recipient, lambda _: False, caller)

    def grant(self, recipient: Recipient, grants: Sequence[Grant]) -> bool:
        """Store consents that were given elsewhere; what else the recipient chose stays as it is.

        If an unsubscribe stands against mail, what they had before it is withdrawn, so that the `subscribed` event that
        the caller stores next brings back nothing but these. Rows that are there already stay.

        Returns:
            False if a complaint or a dead mailbox stands against the address: nothing was stored then.

        Raises:
            NotStoredError: the warehouse did not take it; the same call again completes it.
        """
        with self._lock:
            before = self.read(recipient)
            if before.suppressed_by not in ("", "unsubscribed"):
                return False
            try:
                rows = [one.row for one in grants]
                texts: list[ConsentText] = []
                if before.suppressed_by:
                    stored = self._stored(recipient)
                    chosen = {one.pair for one in grants}
                    rest = [
                        one
                        for one in before.choices
                        if one.pair not in chosen and (one.stopped_by or before.is_global)
                    ]
                    rows += self._rows(
                        recipient, before, stored, rest, lambda _: False, _NOBODY, None, texts, lifts=True
                    )
                record_texts(self.warehouse, texts, self.settings.now())
                load_consents(self.warehouse, consent_frame(rows), run_id="gateway")
            except WarehouseError as error:
                raise NotStoredError(str(error)) from error
            if self.changed is not None:
                self.changed()
        return True

    def _change(
        self,
        recipient: Recipient,
        wants: Callable[[Choice], bool],
        caller: Caller,
        paused_until: datetime | None = None,
    ) -> Preferences:
        with self._lock:
            before = self.read(recipient)
            try:
                stored = self._stored(recipient)
                texts: list[ConsentText] = []
                lifts = any(wants(one) and one.stopped_by == "unsubscribed" for one in before.choices)
                rows = self._rows(
                    recipient, before, stored, before.choices, wants, caller, paused_until, texts, lifts=lifts
                )
                if rows:
                    # the words first: a row never speaks of a text that nobody has
                    record_texts(self.warehouse, texts, self.settings.now())
                    load_consents(self.warehouse, consent_frame(rows), run_id="gateway")
                    if self.changed is not None:
                        self.changed()
                if lifts:
                    moment = self.settings.now().isoformat()
                    event_id = f"gateway:subscribed:{_digest(recipient.message_id, moment)}"
                    self.unsubscribes.store(recipient, event_id, "subscribed", "preferences")
            except WarehouseError as error:
                raise NotStoredError(str(error)) from error
            return self.read(recipient) if rows or lifts else before

    def _rows(
        self,
        recipient: Recipient,
        before: Preferences,
        stored: Mapping[Pair, _Stored],
        choices: Sequence[Choice],
        wants: Callable[[Choice], bool],
        caller: Caller,
        paused_until: datetime | None,
        texts: list[ConsentText],
        *,
        lifts: bool,
    ) -> list[dict[str, Any]]:
        """The rows that make it so; adds the words that the recipient was shown to `texts`."""
        spec = PreferencesSpec.load(self.settings.content_dir)
        if lifts and before.is_global and _PUSH not in stored and _PUSH not in {one.pair for one in choices}:
            # a device's own permission counts unless it was withdrawn: with the stop of all channels it would come back
            choices = [*choices, Choice(_PUSH, "", "", CHANNEL_WORDS["push"], False)]
            stored = {**stored, _PUSH: _Stored("", True)}
        rows: list[dict[str, Any]] = []
        for one in choices:
            kept = stored.get(one.pair, _Stored("", False))
            wanted = wants(one)
            if (wanted and one.is_final) or (paused_until and not one.is_granted):
                continue
            # a pause that goes on would grant again by itself, so a choice made during it is a row, too
            if wanted != kept.is_granted or (one.paused_until and paused_until is None):
                text = spec.choice_text(*one.pair, one.title, one.description)
                texts.append(text)
                rows.append(self._row(recipient, one, kept, wanted, paused_until, caller, text))
        return rows

    def _row(
        self,
        recipient: Recipient,
        choice: Choice,
        kept: _Stored,
        wanted: bool,
        paused_until: datetime | None,
        caller: Caller,
        text: ConsentText,
    ) -> dict[str, Any]:
        purpose, channel = choice.pair
        basis = "pause" if paused_until else "consent" if wanted else "withdrawal"
        said: dict[str, Any] = {
            "message_id": recipient.message_id,
            "contact_id": recipient.contact_id,
            "title": choice.title,
            "description": choice.description,
        }
        if paused_until:
            said["paused_until"] = paused_until.strftime("%Y-%m-%dT%H:%M:%SZ")
        # named by what it replaces: the same form sent twice is one row, and a change back is another
        name = _digest(recipient.message_id, purpose, channel, basis, kept.consent_id)
        return {
            "consent_id": f"gateway:{name}",
            "source": "gateway",
            "email": recipient.email,
            "channel": channel,
            "purpose": purpose,
            "is_granted": wanted,
            "basis": basis,
            "occurred_at": self.settings.now(),
            **Proof(
                text,
                caller.ip,
                caller.user_agent,
                f"{self.settings.base_url.rstrip('/')}/preferences",
                recorded_by="gateway",
                more=said,
            ).columns(),
        }

    def _stored(self, recipient: Recipient) -> dict[Pair, _Stored]:
        """The consents of the recipient that stand, by the models; by the address alone where none are built."""
        parameters: dict[str, Any] = {
            "contact_id": recipient.contact_id,
            "email": recipient.email.strip().lower(),
        }
        try:
            rows = self.warehouse.frame(
                """
                select consents.purpose, consents.channel, consents.consent_id, consents.is_granted,
                    toUnixTimestamp64Milli(paused.until) as paused_until
                from (
                    select purpose::String as purpose, channel::String as channel, consent_id, is_granted
                    from marts.consents where contact_id = {contact_id:Int64}
                ) as consents
                left join (
                    select consent_id,
                        parseDateTime64BestEffortOrZero(properties.paused_until::String, 3, 'UTC') as until
                    from raw.consents where basis = 'pause' and lower(trim(email)) = {email:String}
                ) as paused on paused.consent_id = consents.consent_id
                order by purpose, channel
                settings join_use_nulls = 0
                """,
                parameters,
            )
        except WarehouseError as error:
            if error.code not in (_UNKNOWN_TABLE, _UNKNOWN_DATABASE):
                raise
            rows = self.warehouse.frame(
                """
                select purpose, channel, newest.1 as consent_id, newest.2 as is_granted,
                    toUnixTimestamp64Milli(newest.3) as paused_until
                from (
                    select purpose::String as purpose, channel::String as channel,
                        argMax(
                            tuple(consent_id, is_granted,
                                parseDateTime64BestEffortOrZero(properties.paused_until::String, 3, 'UTC')),
                            tuple(occurred_at, not is_granted)
                        ) as newest
                    from raw.consents where lower(trim(email)) = {email:String}
                    group by purpose, channel
                )
                order by purpose, channel
                """,
                parameters,
            )
        now = self.settings.now()
        found: dict[Pair, _Stored] = {}
        for purpose, channel, consent_id, is_granted, until in rows.iter_rows():
            end = datetime.fromtimestamp(until / 1000, now.tzinfo) if until else None
            found[purpose, channel] = _Stored(
                consent_id, bool(is_granted) or (end is not None and end <= now), end
            )
        return found

    def _suppressed_by(self, recipient: Recipient) -> tuple[str, bool]:
        """Why the address is suppressed, and whether for all channels."""
        email = {"email": recipient.email.strip().lower()}
        if not email["email"]:
            return "", False
        try:
            rows = self.warehouse.frame(
                "select reason, is_global from marts.suppressions where lower(trim(email)) = {email:String}"
                " order by reason = 'unsubscribed' limit 1",
                email,
            ).rows()
            return (str(rows[0][0]), bool(rows[0][1])) if rows else ("", False)
        except WarehouseError as error:
            if error.code not in (_UNKNOWN_TABLE, _UNKNOWN_DATABASE):
                raise
        [(complaints, back, left, left_all)] = self.warehouse.frame(
            """
            select countIf(type = 'complained'), toUnixTimestamp64Milli(maxIf(occurred_at, type = 'subscribed')),
                toUnixTimestamp64Milli(maxIf(occurred_at, type = 'unsubscribed')),
                toUnixTimestamp64Milli(maxIf(occurred_at, type = 'unsubscribed' and
                    ifNull(properties.channel::Nullable(String), '') = 'all'))
            from raw.events
            where type in ('unsubscribed', 'subscribed', 'complained') and lower(trim(email)) = {email:String}
            """,
            email,
        ).rows()
        reason = "complained" if complaints else "unsubscribed" if left > 0 and left >= back else ""
        return reason, left_all > 0 and left_all >= back

    def _is_number_stopped(self, recipient: Recipient) -> bool:
        """Whether text messages to the recipient's number are stopped; False where no models are built."""
        try:
            return bool(
                self.warehouse.value(
                    """
                    select count() from marts.suppressions where phone != '' and phone in (
                        {phone:String},
                        (select any(ifNull(phone, '')) from marts.contact_profiles
                            where contact_id = {contact_id:Int64})
                    )
                    """,
                    {"phone": recipient.phone, "contact_id": recipient.contact_id},
                )
            )
        except WarehouseError as error:
            if error.code not in (_UNKNOWN_TABLE, _UNKNOWN_DATABASE):
                raise
            return False


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:32]
