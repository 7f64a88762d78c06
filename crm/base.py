"""The protocol of a CRM: what it can do, what it hands over, what it takes.

A CRM is one file: a class derived from `Connector` with a `capabilities`, registered in `crm.connectors`. One that
speaks HTTP derives from `crm.http.HttpConnector`. What it cannot do is an error before anything is read or written.

`pull` yields batches in an order that can be taken up again: once the rows of a batch are stored, its cursor may be
stored, too, and a later `pull` from that cursor misses nothing; it may yield rows again that were stored, which load
once. `push` answers for every change it was given, one by one, and never raises for a single one; so does `erase` for
every record.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar, Final, Literal, NamedTuple, Self

import pyarrow as pa

from warehouse.errors import MailhouseError

if TYPE_CHECKING:
    import httpx

    from crm.http import Pace
    from crm.settings import CrmSettings

Kind = Literal["contact", "company", "deal", "task"]
"""What a record is, as in `raw.crm_records.object`."""
PLURALS: Final[Mapping[Kind, str]] = {
    "contact": "contacts",
    "company": "companies",
    "deal": "deals",
    "task": "tasks",
}
"""What several of a kind are called, in names of assets and locks."""
Scalar = str | int | float | bool | None

PULLED: Final = pa.schema(
    [
        pa.field("external_id", pa.string(), nullable=False),
        pa.field("updated_at", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("is_deleted", pa.bool_(), nullable=False),
        # the record that this one was merged into; '' but for deleted ones
        pa.field("merged_into", pa.string(), nullable=False),
        # a JSON object: our names for fields of contacts (`FIELDS`), the CRM's own for all others; without empty ones
        pa.field("properties", pa.string(), nullable=False),
    ]
)
"""Columns of a batch. `merged_into` is stored in the properties, as `merged_into`."""


class Row(NamedTuple):
    """A row of `PULLED`."""

    external_id: str
    updated_at: datetime
    is_deleted: bool
    merged_into: str
    properties: str


def table_of(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table with the columns of `PULLED`."""
    columns = zip(*rows, strict=True) if rows else [()] * len(PULLED)
    return pa.table(
        [pa.array(list(values), column.type) for values, column in zip(columns, PULLED, strict=True)],
        schema=PULLED,
    )


def utc_time(value: object) -> datetime | None:
    """An ISO 8601 time in UTC and whole milliseconds, one without a zone being of UTC; None if it is none."""
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def stamp(moment: datetime) -> str:
    """A time as a parameter of type `DateTime64(3, 'UTC')` is written."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]


FIELDS: Final = (
    "email",
    "first_name",
    "last_name",
    "country",
    "city",
    "timezone",
    "locale",
    "phone",
    "mobile_phone",
    "push_token",
    "created_at",
)
"""Fields of a contact that every CRM's records name alike."""

TASK_FIELDS: Final = (
    "subject",
    "note",
    "due_at",
    "is_done",
    "type",
    "owner",
    "deal_id",
    "contact_id",
    "email",
)
"""Fields of a task that is pushed: `due_at` in ISO 8601; `owner` is an address, a name or an id of the CRM's users;
`contact_id` and `deal_id` are the CRM's; `email` finds the contact where `contact_id` is not known."""


class CrmError(MailhouseError):
    """A CRM refuses or stays silent; never contains a secret."""


class CrmUnavailableError(CrmError):
    """The CRM does not answer, or its limit is used up: running again later goes on where it stopped."""


class CrmRefusedError(CrmError):
    """The CRM refuses us or what we ask; trying again changes nothing."""


class CrmNotSupportedError(CrmError):
    """The CRM cannot do this; `capabilities` says so too."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a CRM can do.

    Attributes:
        kinds: objects that `pull` reads.
        pushes: objects that `push` writes.
        erases: objects that `erase` deletes for their person's sake.
        can_set_up: `set_up` makes custom fields.
        tells_deletes: `pull` reports deleted records.
        tells_merges: `pull` reports which record another was merged into.
        has_webhooks: the gateway reads its calls (`gateway.crm_webhooks`).
        looks_up: `look_up` reads single records.
        has_whole_seconds: it dates records by the second, and hands over what a second that is over has come to.
        most_per_push: changes that one call carries at most; the least possible calls follow from it.
    """

    kinds: frozenset[Kind] = frozenset({"contact"})
    pushes: frozenset[Kind] = frozenset()
    erases: frozenset[Kind] = frozenset()
    can_set_up: bool = False
    tells_deletes: bool = False
    tells_merges: bool = False
    has_webhooks: bool = False
    looks_up: bool = False
    has_whole_seconds: bool = False
    most_per_push: int = 1


@dataclass(frozen=True, slots=True)
class Pulled:
    """A batch of records.

    Attributes:
        rows: columns of `PULLED`.
        cursor: where to go on once the rows are stored: JSON text that the connector alone understands.
        bad: reason and text of each record that cannot be a row, as it has no id, no time or no properties.
        is_by_content: the CRM does not say when a record changed, so `updated_at` is when it was read: a row that
            equals the newest stored version is no news (`by_content` of `warehouse.loads.load_crm_records`).
    """

    rows: pa.Table
    cursor: str
    bad: tuple[tuple[str, str], ...] = ()
    is_by_content: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What shall be written to one record.

    Attributes:
        key: ours; the result comes back under it.
        external_id: the CRM's id; '' where the record is not known: then the CRM's record with that email is
            changed, and one is created if there is none.
        fields: values by our names (`FIELDS`, names of custom fields); None empties a field.
        known_updated_at: the newest version that we have seen. Where the CRM's own is newer the change is a
            `conflict` and not written, as far as the CRM can tell.
    """

    key: str
    external_id: str
    fields: Mapping[str, Scalar]
    known_updated_at: datetime | None = None


PushStatus = Literal["written", "created", "conflict", "gone", "invalid", "failed"]
"""`conflict`: the record has changed since. `gone`: it is deleted. `invalid`: the CRM will never take this value.
`failed`: not written, may be tried again."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a change.

    Attributes:
        key: of the change.
        status: see `PushStatus`.
        external_id: the record's id, also where it was created or merged into another.
        updated_at: the CRM's time of the record after it was written, None if it does not say.
        reason: the CRM's words, without secrets; '' if all is well.
    """

    key: str
    status: PushStatus
    external_id: str = ""
    updated_at: datetime | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Removed:
    """What became of a record that was to be deleted for its person's sake.

    Attributes:
        external_id: as it was given.
        status: `erased`: deleted now. `gone`: it was not there. `refused`: the CRM will not, and trying again changes
            nothing. `failed`: it is still there, and may be tried again.
        reason: why it is there, without secrets; '' if it is not.
    """

    external_id: str
    status: Literal["erased", "gone", "refused", "failed"]
    reason: str = ""

    @property
    def is_away(self) -> bool:
        """Whether the CRM has it no longer."""
        return self.status in ("erased", "gone")


@dataclass(frozen=True, slots=True)
class CustomField:
    """A field of ours that a CRM shall have.

    Attributes:
        name: in our words: `mailhouse_engagement_score`. The CRM may know it by another; the connector translates.
        label: what people see.
        type: what it holds. A `choice` has `options`; a `list` is text with `;` between its parts.
    """

    name: str
    label: str
    type: Literal["text", "number", "datetime", "boolean", "choice", "list"]
    description: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SetUp:
    """What `set_up` did: names of fields made, and of those that were there already."""

    made: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


@dataclass
class Usage:
    """Calls made so far, repeated ones too."""

    calls: int = 0
    by_what: dict[str, int] = field(default_factory=dict)

    def add(self, what: str) -> None:
        """Count a call."""
        self.calls += 1
        self.by_what[what] = self.by_what.get(what, 0) + 1


class Connector(ABC):
    """One CRM account.

    Attributes:
        name: source in `raw.crm_records`: lower case letters, digits and _.
        capabilities: what it can do.
        usage: what it has asked of the CRM.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]
    usage: Usage

    @classmethod
    @abstractmethod
    def is_configured(cls, settings: CrmSettings) -> bool:
        """Whether the settings say that this CRM is in use; they may still be wrong."""

    @classmethod
    @abstractmethod
    def from_settings(
        cls,
        settings: CrmSettings,
        *,
        pace: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Self:
        """The account of the settings. Asks nothing of the CRM.

        Args:
            settings: where it is, and how to prove who we are.
            pace: what calls may cost; by default the allowance that the settings name, shared with other processes.
            transport: httpx's way out; the network by default.
            sleep: how to wait.

        Raises:
            SettingsError: something is missing or cannot be right; names the variable.
        """

    def check(self) -> str:
        """Prove by one cheap call that the credentials work; what to tell about the account, '' if it was not tried.

        Raises:
            CrmError: they do not, or nobody answers.
        """
        return ""

    def resume_after(self, kind: Kind, newest: datetime) -> str | None:
        """A cursor for records that were loaded before cursors were kept; None: load all again.

        Args:
            kind: what is loaded.
            newest: the newest change that is stored; all before it are stored, too.
        """
        del kind, newest
        return None

    @abstractmethod
    def pull(self, kind: Kind, since: str | None) -> Iterator[Pulled]:
        """Batches of what changed since a cursor, all records if None; deletes and merges too.

        Memory: a few batches, however many records there are.

        Raises:
            CrmUnavailableError: what was yielded before is good; so is its cursor.
            CrmRefusedError: as above, but trying again changes nothing.
        """

    def look_up(self, kind: Kind, ids: Sequence[str]) -> Pulled:
        """What has become of single records, as a webhook names them; its cursor is '' and must not be stored.

        An id that is deleted, unknown or merged into another is a deleted row; a merged one brings the row of the
        record it was merged into.

        Raises:
            CrmUnavailableError: nothing is known.
            CrmRefusedError: as above, but trying again changes nothing.
        """
        del ids
        raise CrmNotSupportedError(
            f"{self.name} cannot look up a single {kind}.", fix="Its changes come with the next sync."
        )

    def merged(self, merges: Sequence[tuple[str, datetime, str]]) -> pa.Table:
        """Rows of `PULLED` for records that webhooks say were merged away; none where `look_up` tells of merges.

        Args:
            merges: id, time, and the id of the record that is left.
        """
        del merges
        return table_of([])

    def push(self, kind: Kind, changes: Sequence[Change]) -> list[Pushed]:
        """Write changes in the largest batches that the CRM takes; a result for each, in the order given.

        Safe to repeat: a change that was written is written again to the same effect, and never makes a second record.

        Raises:
            CrmUnavailableError: before anything was written, as far as is known.
            CrmRefusedError: the account may not write at all.
        """
        del changes
        raise CrmNotSupportedError(
            f"{self.name} cannot write a {kind}.", fix="Take it out of `push` in content/crm.yaml."
        )

    def unwritable(self, names: Sequence[str]) -> Mapping[str, str]:
        """Of fields of a contact those that this account has no place for, and what gives them one ('': nothing does).

        They are left out of what is pushed; all else of a change is written.

        Args:
            names: of `FIELDS`.

        Raises:
            CrmError: the CRM had to be asked, and refuses or stays silent.
        """
        del names
        return {}

    def erase(self, kind: Kind, ids: Sequence[str]) -> list[Removed]:
        """Delete records for their person's sake, as thoroughly as the CRM can; a result for each, in the order given.

        Safe to repeat: what is gone stays so, and says it. A record that was merged into one that is not named is not
        followed there, but `refused`: that one may be about somebody else.

        Raises:
            CrmUnavailableError: how many are deleted is not known; repeating goes on.
            CrmRefusedError: the account may not delete at all.
        """
        del ids
        raise CrmNotSupportedError(f"{self.name} cannot delete a {kind}.", fix="Delete it there by hand.")

    def set_up(self, fields: Sequence[CustomField]) -> SetUp:
        """Make custom fields on contacts that are not there yet; safe to repeat.

        Raises:
            CrmRefusedError: the account may not, or has a field of that name and another type.
        """
        del fields
        raise CrmNotSupportedError(
            f"{self.name} takes no custom fields.", fix="Take it out of `push` in content/crm.yaml."
        )

    def close(self) -> None:  # noqa: B027
        """Give connections back."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def require(
    connector: Connector, *, pull: Kind | None = None, push: Kind | None = None, erase: Kind | None = None
) -> None:
    """Refuse what the CRM cannot do.

    Raises:
        CrmNotSupportedError: names the object and what it can do.
    """
    for verb, wanted, able in (
        ("read", pull, connector.capabilities.kinds),
        ("write", push, connector.capabilities.pushes),
        ("delete", erase, connector.capabilities.erases),
    ):
        if wanted is not None and wanted not in able:
            raise CrmNotSupportedError(
                f"{connector.name} cannot {verb} a {wanted}.",
                fix=f"It can {verb}: {', '.join(sorted(able)) or 'nothing'}.",
            )
