"""What is written to HubSpot: contacts, tasks, and the properties that hold what we know.

Each change becomes a row of a batch, or a result at once if HubSpot could never take it. A batch answers 207 where
some of its rows failed, each named by its trace id; one that is refused as a whole is halved until the rows at fault
are alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from crm.base import (
    Change,
    CrmError,
    CrmRefusedError,
    CustomField,
    Kind,
    Pushed,
    PushStatus,
    Removed,
    Scalar,
    SetUp,
)
from crm.http import objects_of
from crm.hubspot_contract import (
    CHANGED,
    MERGED,
    RENAMED,
    TASK_KEY,
    HubSpotRefusalError,
    changed_at,
    hubspot_zone,
    merged_ids,
)

if TYPE_CHECKING:
    from crm.hubspot import HubSpot

GROUP: Final = "mailhouse"
"""The group of our properties."""

# has no path with a date
_ERASE = "/crm/v3/objects/contacts/gdpr-delete"
_INPUTS = 100
_OURS: Final[Mapping[str, str]] = {ours: theirs for theirs, ours in RENAMED.items()}
NOT_WRITTEN: Final = frozenset({"created_at", "push_token"})
"""Fields of ours that HubSpot's contacts have no property for, or that it sets itself."""
# whole batches that are refused for the sake of a row
_ROW_AT_FAULT: Final = frozenset({400, 404, 409})
_STATUSES: Final[Mapping[str, PushStatus]] = {
    "VALIDATION_ERROR": "invalid",
    "CONFLICT": "invalid",
    "OBJECT_ALREADY_EXISTS": "invalid",
    "OBJECT_NOT_FOUND": "gone",
}
_TYPES: Final[Mapping[str, tuple[str, str]]] = {
    "text": ("string", "text"),
    "number": ("number", "number"),
    "datetime": ("datetime", "date"),
    "boolean": ("bool", "booleancheckbox"),
    "choice": ("enumeration", "select"),
    "list": ("string", "textarea"),
}
_SET_UP_FIX = "Run `mailhouse crm setup`; the token needs the scopes that docs/crm.md names."


@dataclass(frozen=True, slots=True)
class Property:
    """A property of an object as HubSpot defines it.

    Attributes:
        name: HubSpot's.
        type: string, number, date, datetime, bool, enumeration.
        is_read_only: its values cannot be set.
        takes_several: an enumeration whose value is several options, with `;` between them.
        options: label in lower case, and value, to value; empty where it takes any value.
        labels: value to label.
    """

    name: str
    type: str
    is_read_only: bool = False
    takes_several: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Property:
        """One of HubSpot's answer."""
        options: dict[str, str] = {}
        labels: dict[str, str] = {}
        for option in given.get("options") or []:
            value, label = str(option.get("value", "")), str(option.get("label", ""))
            options.setdefault(label.casefold(), value)
            labels[value] = label
        # a value means itself, whatever is labelled so
        options |= {value: value for value in labels}
        restrictions = given.get("modificationMetadata") or {}
        return cls(
            str(given.get("name", "")),
            str(given.get("type", "")),
            bool(restrictions.get("readOnlyValue")) or bool(given.get("calculated")),
            str(given.get("fieldType", "")) == "checkbox",
            {} if given.get("externalOptions") else options,
            labels,
        )

    def value(self, given: Scalar) -> str:
        """A value as HubSpot takes it.

        Raises:
            ValueError: it can never take it.
        """
        if given is None or given == "":
            return ""
        if self.type == "bool":
            return _boolean(given)
        if self.type == "number":
            return _number(given)
        if self.type in ("date", "datetime"):
            moment = _moment(given)
            # HubSpot refuses a date that is not midnight in UTC; the day alone is that
            return f"{moment:%Y-%m-%d}" if self.type == "date" else _iso(moment)
        text = str(given).lower() if isinstance(given, bool) else str(given)
        if self.type != "enumeration" or not self.options:
            return text
        parts = [part.strip() for part in text.split(";")] if self.takes_several else [text.strip()]
        return ";".join(self._option(part) for part in parts if part)

    def _option(self, text: str) -> str:
        found = self.options.get(text)
        if found is None:
            found = self.options.get(text.casefold())
        if found is None:
            raise ValueError(f"{self.name} has no option {text[:60]!r}")
        return found


class Definitions:
    """Properties of HubSpot's objects, asked for once."""

    def __init__(self, hub: HubSpot) -> None:
        self._hub = hub
        self._known: dict[Kind, dict[str, Property]] = {}

    def of(self, kind: Kind, *, is_fresh: bool = False) -> dict[str, Property]:
        """By name.

        Raises:
            CrmError: HubSpot refuses or stays silent.
        """
        if is_fresh or kind not in self._known:
            answer = self._hub.ask("GET", self._hub.path(kind, of="properties"), what="list of properties")
            found = [Property.of(one) for one in answer.get("results") or [] if isinstance(one, dict)]
            self._known[kind] = {one.name: one for one in found}
        return self._known[kind]


@dataclass(frozen=True, slots=True)
class _Row:
    """A change on its way: its place among those given, the record's id (or other unique value), properties."""

    index: int
    id: str
    properties: Mapping[str, str]

    @property
    def trace(self) -> str:
        """What results and errors name it by; unlike any id."""
        return f"row-{self.index}"


class _Pushing:
    """The results of one push."""

    def __init__(self, hub: HubSpot, kind: Kind, changes: Sequence[Change]) -> None:
        self._hub, self._changes = hub, changes
        self._kind: Kind = kind
        self._results: dict[int, Pushed] = {}
        self._has_written = False
        self._trouble: CrmError | None = None

    def results(self) -> list[Pushed]:
        """A result for each change, in order."""
        return [self._results[index] for index in range(len(self._changes))]

    @property
    def kind(self) -> Kind:
        """What is written."""
        return self._kind

    def external_id(self, index: int) -> str:
        """The id of the record that a change was written to."""
        return self._results[index].external_id

    def result(self, index: int) -> Pushed | None:
        """What became of a change, None if nothing did so far."""
        return self._results.get(index)

    def finish(
        self,
        index: int,
        status: PushStatus,
        *,
        reason: str = "",
        external_id: str = "",
        updated_at: datetime | None = None,
    ) -> None:
        """Say what became of a change."""
        change = self._changes[index]
        self._results[index] = Pushed(
            change.key, status, external_id or change.external_id, updated_at, reason[:300]
        )

    def give_up(self, indexes: Iterable[int], error: CrmError) -> None:
        """HubSpot stays silent: an error if nothing was written, else what is left may be tried again.

        Raises:
            CrmError: nothing was written.
        """
        if not self._has_written:
            raise error
        self._trouble = error
        for index in indexes:
            self.finish(index, "failed", reason=error.message)

    def write(self, action: str, rows: Sequence[_Row], id_property: str = "") -> None:
        """Write rows in as few calls as can be.

        Raises:
            CrmError: see `give_up`.
        """
        for batch in _batches(rows):
            self._call(action, batch, id_property)

    def _call(self, action: str, rows: Sequence[_Row], id_property: str) -> None:
        if self._trouble is not None:
            self.give_up((row.index for row in rows), self._trouble)
            return
        inputs: list[dict[str, Any]] = [
            {"id": row.id, "properties": row.properties, "objectWriteTraceId": row.trace} for row in rows
        ]
        if id_property:
            inputs = [{**one, "idProperty": id_property} for one in inputs]
        try:
            answer = self._hub.ask(
                "POST",
                self._hub.path(self._kind, f"batch/{action}"),
                what=f"{action} of {self._kind}",
                body={"inputs": inputs},
            )
        except HubSpotRefusalError as error:
            if error.status not in _ROW_AT_FAULT or error.is_about_path:
                self.give_up((row.index for row in rows), error)
            elif len(rows) == 1:
                refused: PushStatus = _STATUSES.get(str(error.said.get("category")), "invalid")
                self.finish(rows[0].index, refused, reason=_reason(error.said))
            else:
                half = len(rows) // 2
                self._call(action, rows[:half], id_property)
                self._call(action, rows[half:], id_property)
            return
        except CrmError as error:
            self.give_up((row.index for row in rows), error)
            return
        self._has_written = True
        self._read_answer(answer, rows, id_property)

    def _read_answer(self, answer: Mapping[str, Any], rows: Sequence[_Row], id_property: str) -> None:
        left = {row.trace: row for row in rows}
        by_id = {row.id.casefold(): row.trace for row in rows}
        for record in objects_of(answer.get("results")):
            own = str(record.get("id", ""))
            properties = record.get("properties") or {}
            known_as = str(properties.get(id_property) or "").casefold() if id_property else own
            trace = str(record.get("objectWriteTraceId") or "")
            row = left.pop(trace if trace in left else by_id.get(known_as, ""), None)
            if row is not None:
                done: PushStatus = "created" if record.get("new") is True else "written"
                self.finish(
                    row.index,
                    done,
                    external_id=own,
                    updated_at=changed_at(record, self._kind),
                )
        others = ""
        for error in objects_of(answer.get("errors")):
            status: PushStatus = _STATUSES.get(str(error.get("category")), "failed")
            named = [
                row
                for one in _named(error)
                if (row := left.pop(one if one in left else by_id.get(one.casefold(), ""), None))
            ]
            others = others or ("" if named else _reason(error))
            for row in named:
                self.finish(row.index, status, reason=_reason(error))
        for row in left.values():
            self.finish(row.index, "failed", reason=others or "HubSpot does not say what became of it")


def push_contacts(hub: HubSpot, changes: Sequence[Change]) -> list[Pushed]:
    """See `HubSpot.push`."""
    pushing = _Pushing(hub, "contact", changes)
    names = {name: _OURS.get(name, name) for change in changes for name in change.fields}
    definitions = _writable(hub, "contact", names)
    known: list[_Row] = []
    new: list[_Row] = []
    for index, change in enumerate(changes):
        try:
            properties = {
                names[name]: _value(definitions[names[name]], value) for name, value in change.fields.items()
            }
        except ValueError as error:
            pushing.finish(index, "invalid", reason=str(error))
            continue
        email = str(change.fields.get("email") or "").strip().lower()
        if change.external_id:
            known.append(_Row(index, change.external_id, properties))
        elif "@" in email:
            new.append(_Row(index, email, {**properties, "email": email}))
        else:
            pushing.finish(
                index, "invalid", reason="neither an id nor an address says which contact is meant"
            )
    pushing.write("update", _unchanged(hub, pushing, changes, known))
    pushing.write("upsert", new, "email")
    return pushing.results()


def push_tasks(hub: HubSpot, changes: Sequence[Change]) -> list[Pushed]:
    """See `HubSpot.push`."""
    pushing = _Pushing(hub, "task", changes)
    definitions = hub.definitions.of("task")
    if TASK_KEY not in definitions:
        raise CrmRefusedError(f"HubSpot's tasks have no property {TASK_KEY}.", fix=_SET_UP_FIX)
    contacts = _contacts_of(hub, changes)
    owners = _Owners(hub)
    known: list[_Row] = []
    new: list[_Row] = []
    associated: dict[int, list[tuple[Kind, str]]] = {}
    for index, change in enumerate(changes):
        try:
            properties = _task(change, owners, definitions)
            associated[index] = _associated(change, contacts)
        except ValueError as error:
            pushing.finish(index, "invalid", reason=str(error))
            continue
        if change.external_id:
            known.append(_Row(index, change.external_id, properties))
        else:
            new.append(_Row(index, change.key, {**properties, TASK_KEY: change.key}))
    pushing.write("update", _unchanged(hub, pushing, changes, known))
    pushing.write("upsert", new, TASK_KEY)
    for kind in ("contact", "deal"):
        wanted = {
            index: number
            for index, ends in associated.items()
            for end, number in ends
            if end == kind and (done := pushing.result(index)) and done.status in ("written", "created")
        }
        _associate(hub, pushing, kind, wanted)
    return pushing.results()


def erase_contacts(hub: HubSpot, ids: Sequence[str]) -> list[Removed]:
    """See `HubSpot.erase`."""
    wanted = list(dict.fromkeys(ids))
    # an id that was merged away leads to the record that is left, and deleting it would delete that
    there: dict[str, str] = {}
    numbers = [number for number in wanted if number.isdigit()]
    for start in range(0, len(numbers), _INPUTS):
        left = set(numbers[start : start + _INPUTS])
        for is_archived in (False, True):
            for record in hub.read("contact", left, MERGED, is_archived=is_archived) if left else ():
                found = ({str(record["id"])} | merged_ids(record)) & left
                there |= dict.fromkeys(found, str(record["id"]))
                left -= found
    results = {number: _erased(hub, number, there.get(number, ""), wanted) for number in wanted}
    return [results[number] for number in ids]


def _erased(hub: HubSpot, number: str, now: str, wanted: Sequence[str]) -> Removed:
    if now != number:
        if not now or now in wanted:
            return Removed(number, "gone")
        return Removed(number, "refused", f"it was merged into {now}: see whether that is the same person")
    try:
        hub.ask("POST", _ERASE, what="permanent deletion", body={"objectId": number})
    except HubSpotRefusalError as error:
        if error.status == 404 and not error.is_about_path:
            return Removed(number, "gone")
        if error.status not in _ROW_AT_FAULT or error.is_about_path:
            raise
        return Removed(number, "refused", _reason(error.said))
    return Removed(number, "erased")


def set_up_fields(hub: HubSpot, fields: Sequence[CustomField]) -> SetUp:
    """See `HubSpot.set_up`."""
    existing = hub.definitions.of("contact", is_fresh=True)
    for one in fields:
        _require_type(one, existing.get(one.name))
    missing = [one for one in fields if one.name not in existing]
    if missing:
        _make_group(hub, "contact")
    for start in range(0, len(missing), _INPUTS):
        hub.ask(
            "POST",
            hub.path("contact", "batch/create", of="properties"),
            what="creation of properties",
            body={"inputs": [_definition(one) for one in missing[start : start + _INPUTS]]},
        )
    for one in fields:
        _add_options(hub, one, existing.get(one.name))
    made = [one.name for one in missing]
    found = hub.definitions.of("contact", is_fresh=True) if missing else existing
    if lacking := [one.name for one in fields if one.name not in found]:
        raise CrmRefusedError(f"HubSpot made no property {', '.join(lacking)}.", fix=_SET_UP_FIX)
    kept = [one.name for one in fields if one.name in existing]
    (made if _make_task_key(hub) else kept).append(TASK_KEY)
    return SetUp(tuple(made), tuple(kept))


def _make_task_key(hub: HubSpot) -> bool:
    """The property by which a task is found that was made before; whether it was made now."""
    if TASK_KEY in hub.definitions.of("task", is_fresh=True):
        return False
    _make_group(hub, "task")
    hub.ask(
        "POST",
        hub.path("task", of="properties"),
        what="creation of properties",
        body={
            "name": TASK_KEY,
            "label": "Mailhouse key",
            "description": "By it Mailhouse finds a task that it made before.",
            "groupName": GROUP,
            "type": "string",
            "fieldType": "text",
            # can be said only now
            "hasUniqueValue": True,
        },
    )
    hub.definitions.of("task", is_fresh=True)
    return True


def _make_group(hub: HubSpot, kind: Kind) -> None:
    try:
        hub.ask(
            "POST",
            hub.path(kind, "groups", of="properties"),
            what="creation of a group of properties",
            body={"name": GROUP, "label": "Mailhouse"},
        )
    except HubSpotRefusalError as error:
        # it is there
        if error.status != 409:
            raise


def _definition(one: CustomField) -> dict[str, Any]:
    type_, look = _TYPES[one.type]
    body: dict[str, Any] = {
        "name": one.name,
        "label": one.label,
        "description": one.description,
        "groupName": GROUP,
        "type": type_,
        "fieldType": look,
    }
    if one.type == "boolean":
        body["options"] = [
            {"label": "Yes", "value": "true", "displayOrder": 0, "hidden": False},
            {"label": "No", "value": "false", "displayOrder": 1, "hidden": False},
        ]
    if one.type == "choice":
        body["options"] = _options(one.options)
    return body


def _options(values: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"label": value, "value": value, "displayOrder": index, "hidden": False}
        for index, value in enumerate(values)
    ]


def _add_options(hub: HubSpot, one: CustomField, existing: Property | None) -> None:
    if existing is None or one.type != "choice":
        return
    if all(value in existing.labels for value in one.options):
        return
    # the list that is given replaces the one there is: records may hold its values
    merged = {
        **{value: existing.labels[value] for value in existing.labels},
        **{one_: one_ for one_ in one.options},
    }
    options = [
        {"label": existing.labels.get(value, label), "value": value, "displayOrder": index, "hidden": False}
        for index, (value, label) in enumerate(merged.items())
    ]
    hub.ask(
        "PATCH",
        hub.path("contact", one.name, of="properties"),
        what="change of a property",
        body={"options": options},
    )
    hub.definitions.of("contact", is_fresh=True)


def _require_type(wanted: CustomField, existing: Property | None) -> None:
    # a box to tick is told as either
    alike = {"bool", "enumeration"} if wanted.type == "boolean" else {_TYPES[wanted.type][0]}
    if existing is not None and existing.type not in alike:
        raise CrmRefusedError(
            f"HubSpot has a property {wanted.name} already, of type {existing.type} instead of "
            f"{_TYPES[wanted.type][0]}.",
            fix="Rename or delete it in HubSpot, or give ours another name.",
        )


def _writable(hub: HubSpot, kind: Kind, names: Mapping[str, str]) -> dict[str, Property]:
    """Definitions of all properties that are to be written.

    Raises:
        CrmRefusedError: one is not there, or takes no values.
    """
    if refused := sorted(NOT_WRITTEN & names.keys()):
        raise CrmRefusedError(
            f"HubSpot's contacts take no {refused[0]}.", fix="Take it out of content/crm.yaml."
        )
    definitions = hub.definitions.of(kind)
    for name, theirs in names.items():
        found = definitions.get(theirs)
        if found is None:
            raise CrmRefusedError(f"HubSpot's contacts have no property {theirs}.", fix=_SET_UP_FIX)
        if found.is_read_only:
            raise CrmRefusedError(
                f"HubSpot sets {theirs} itself.", fix=f"Take {name} out of content/crm.yaml."
            )
    return definitions


def _unchanged(
    hub: HubSpot, pushing: _Pushing, changes: Sequence[Change], rows: Sequence[_Row]
) -> list[_Row]:
    """Rows whose records are there and as they were known, under the ids that they have now."""
    if all(changes[row.index].known_updated_at is None for row in rows):
        # a record that was merged away is written under its old id, too
        return list(rows)
    kind = pushing.kind
    result: list[_Row] = []
    wanted = list(dict.fromkeys(row.id for row in rows))
    found: dict[str, dict[str, Any]] = {}
    merged: dict[str, dict[str, Any]] = {}
    properties = (CHANGED[kind], *MERGED) if kind == "contact" else (CHANGED[kind],)
    for start in range(0, len(wanted), _INPUTS):
        for record in hub.read(kind, wanted[start : start + _INPUTS], properties):
            found[str(record["id"])] = record
            merged |= dict.fromkeys(merged_ids(record), record)
    for row in rows:
        record = found.get(row.id) or merged.get(row.id)
        if record is None:
            pushing.finish(row.index, "gone", reason="HubSpot has no such record any more")
            continue
        own, known, now = str(record["id"]), changes[row.index].known_updated_at, changed_at(record, kind)
        if known is not None and now is not None and now > known:
            pushing.finish(
                row.index,
                "conflict",
                external_id=own,
                updated_at=now,
                reason="it has changed in HubSpot since",
            )
            continue
        result.append(_Row(row.index, own, row.properties))
    return result


def _value(definition: Property, value: Scalar) -> str:
    text = "" if value is None else str(value)
    if text and definition.name == "hs_timezone":
        value = hubspot_zone(text)
    if text and definition.name == "hs_language":
        # HubSpot writes en-gb; a language that it has without the country will do
        wanted = text.lower().replace("_", "-")
        value = wanted if wanted in definition.options else wanted.partition("-")[0]
    return definition.value(value)


def _task(change: Change, owners: _Owners, definitions: Mapping[str, Property]) -> dict[str, str]:
    fields, result = change.fields, dict[str, str]()
    for name, value in fields.items():
        if name == "subject":
            result["hs_task_subject"] = "" if value is None else str(value)
        elif name == "note":
            text = "" if value is None else str(value)
            result["hs_task_body"] = html.escape(text, quote=False).replace("\n", "<br>")
        elif name == "due_at":
            if value is not None:
                result["hs_timestamp"] = _iso(_moment(value))
        elif name == "is_done":
            result["hs_task_status"] = "COMPLETED" if value else "NOT_STARTED"
        elif name == "type":
            found = definitions.get("hs_task_type")
            given = str(value or "todo").upper()
            result["hs_task_type"] = found.value(given) if found is not None else given
        elif name == "owner":
            result["hubspot_owner_id"] = owners.id_of(str(value)) if value else ""
        elif name not in ("deal_id", "contact_id", "email"):
            raise ValueError(f"a task in HubSpot has no field {name}")
    if not change.external_id:
        for name, theirs in (("subject", "hs_task_subject"), ("due_at", "hs_timestamp")):
            if not result.get(theirs):
                raise ValueError(f"a task needs {name}")
        result = {"hs_task_status": "NOT_STARTED", "hs_task_type": "TODO", **result}
    return result


def _contacts_of(hub: HubSpot, changes: Sequence[Change]) -> dict[str, str]:
    """Ids of the contacts that changes name by their addresses."""
    emails = sorted(
        {
            str(change.fields["email"]).strip().lower()
            for change in changes
            if change.fields.get("email") and not change.fields.get("contact_id")
        }
    )
    found: dict[str, str] = {}
    for start in range(0, len(emails), _INPUTS):
        for record in hub.read("contact", emails[start : start + _INPUTS], ("email",), id_property="email"):
            address = str((record.get("properties") or {}).get("email") or "")
            found[address.lower()] = str(record["id"])
    return found


def _associated(change: Change, contacts: Mapping[str, str]) -> list[tuple[Kind, str]]:
    ends: list[tuple[Kind, str]] = []
    email = str(change.fields.get("email") or "").strip().lower()
    if contact := change.fields.get("contact_id"):
        ends.append(("contact", str(contact)))
    elif email:
        if email not in contacts:
            raise ValueError("HubSpot has no contact with that address")
        ends.append(("contact", contacts[email]))
    if deal := change.fields.get("deal_id"):
        ends.append(("deal", str(deal)))
    return ends


def _associate(hub: HubSpot, pushing: _Pushing, kind: Kind, wanted: Mapping[int, str]) -> None:
    """Tie tasks to contacts or deals; doing it again changes nothing."""
    pairs = list(wanted.items())
    for start in range(0, len(pairs), _INPUTS):
        part = {
            index: (pushing.external_id(index), number) for index, number in pairs[start : start + _INPUTS]
        }
        body = {"inputs": [{"from": {"id": task}, "to": {"id": end}} for task, end in part.values()]}
        path = hub.other_path(f"associations/tasks/{'contacts' if kind == 'contact' else 'deals'}")
        reason = ""
        tied: set[tuple[str, str]] = set()
        try:
            answer = hub.ask(
                "POST", f"{path}/batch/associate/default", what="association of tasks", body=body
            )
        except CrmError as error:
            reason = error.message
        else:
            for one in objects_of(answer.get("results")):
                ends = one.get("from") or {}, one.get("to") or {}
                tied.add((str(ends[0].get("id")), str(ends[1].get("id"))))
            errors = objects_of(answer.get("errors"))
            reason = _reason(errors[0]) if errors else ""
        if not reason:
            continue
        for index, pair in part.items():
            if pair not in tied:
                pushing.finish(
                    index, "failed", external_id=pair[0], reason=f"made, but not tied to its {kind}: {reason}"
                )


class _Owners:
    """Ids of HubSpot's users by id, address or name; asked for once."""

    def __init__(self, hub: HubSpot) -> None:
        self._hub = hub
        self._known: dict[str, str] | None = None

    def id_of(self, name: str) -> str:
        """The id.

        Raises:
            ValueError: HubSpot has no such user.
        """
        if name.isdigit():
            return name
        if self._known is None:
            self._known = dict(self._all())
        found = self._known.get(name.strip().casefold())
        if found is None:
            raise ValueError(f"HubSpot has no user {name[:60]!r}; write the address or the name of one")
        return found

    def _all(self) -> Iterator[tuple[str, str]]:
        query = {"limit": "100"}
        while True:
            answer = self._hub.ask("GET", self._hub.other_path("owners"), what="list of owners", params=query)
            for one in objects_of(answer.get("results")):
                number = str(one.get("id", ""))
                name = f"{one.get('firstName') or ''} {one.get('lastName') or ''}".strip()
                for word in (one.get("email"), name):
                    if word:
                        yield str(word).casefold(), number
            following = ((answer.get("paging") or {}).get("next") or {}).get("after")
            if following is None or str(following) == query.get("after"):
                return
            query["after"] = str(following)


def _batches(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Rows in calls of `_INPUTS`, in order, none with a record twice: HubSpot refuses that."""
    batch: list[_Row] = []
    seen: set[str] = set()
    for row in rows:
        if len(batch) == _INPUTS or row.id in seen:
            yield batch
            batch, seen = [], set()
        batch.append(row)
        seen.add(row.id)
    if batch:
        yield batch


def _named(error: Mapping[str, Any]) -> list[str]:
    """Trace ids or ids of the rows that an error is about."""
    context = error.get("context")
    if not isinstance(context, dict):
        return []
    for name in ("objectWriteTraceId", "objectWriteTraceIds", "id", "ids"):
        if found := context.get(name):
            return [str(one) for one in (found if isinstance(found, list) else [found])]
    return []


def _reason(error: Mapping[str, Any]) -> str:
    return str(error.get("message") or error.get("category") or "no reason given")


def _boolean(given: Scalar) -> str:
    text = str(given).strip().lower()
    if text in ("true", "1", "yes"):
        return "true"
    if text in ("false", "0", "no"):
        return "false"
    raise ValueError(f"{text[:60]!r} is neither true nor false")


def _number(given: Scalar) -> str:
    if isinstance(given, bool):
        return str(int(given))
    try:
        number = float(given or 0)
    except ValueError:
        raise ValueError(f"{str(given)[:60]!r} is no number") from None
    if not math.isfinite(number):
        raise ValueError("a number without an end is none that HubSpot takes")
    return str(given).strip()


def _moment(given: Scalar) -> datetime:
    if isinstance(given, str):
        try:
            moment = datetime.fromisoformat(given.strip())
        except ValueError:
            moment = None
        if moment is not None:
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    raise ValueError(f"{str(given)[:60]!r} is no time as ISO 8601 writes it")


def _iso(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
