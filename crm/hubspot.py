"""HubSpot: contacts, companies, deals and tasks, read and written.

**The first reading** walks through search by id (keyset), 200 records a call: half the calls of a list. Nothing that
changes meanwhile can push a record out of it, and there are no ties.

**Later readings** ask search for what changed, sorted by the time of change, from where the last reading was, less an
overlap, since search learns of changes late. Every page starts at the time where the last one ended, never at an
offset: an offset skips records when one before it changes meanwhile, and search refuses offsets beyond 10,000. Where
more records than a page holds changed in the same millisecond, as after an import, that millisecond is read by id.

**Archived records** are no part of search, and cannot be listed since a time: all of them are, but the more there are
the rarer. **Merged ones** are neither found nor archived: they are named by the record that is left, which may be a
new one. A record whose person had it erased is nowhere: `look_up` finds that, after the webhook that tells of it or a
full reading that it did not come with.

**Deleting for a person's sake** is HubSpot's permanent deletion, a call a contact.

**Writing** goes in batches of 100, by id, and by address where no id is known. HubSpot has no If-Match: a batch is
read before it is written, and what changed since it was last seen is a conflict. Tasks carry their key in a property
of ours whose values are unique, so that none is made twice.

Contract: HubSpot's CRM API, date-based paths (`/crm/objects/2026-09/...`) or v3.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Final, Self

import httpx
import orjson
import pyarrow as pa
from pydantic import SecretStr

from crm.base import (
    PLURALS,
    PULLED,
    Capabilities,
    Change,
    CrmError,
    CrmUnavailableError,
    CustomField,
    Kind,
    Pulled,
    Pushed,
    Removed,
    SetUp,
    require,
    utc_time,
)
from crm.http import RETRIED, Again, HttpConnector, Pace, is_header_text, seconds
from crm.hubspot_contract import (
    CHANGED,
    READ,
    RENAMED,
    HubSpotRefusalError,
    changed_at,
    merged_ids,
    milliseconds,
    zone_of,
)
from crm.hubspot_writing import (
    NOT_WRITTEN,
    Definitions,
    erase_contacts,
    push_contacts,
    push_tasks,
    set_up_fields,
)
from crm.pacing import allowance
from crm.settings import CrmSettings
from warehouse.errors import SettingsError
from warehouse.loads import CONTENT_CHARACTERS

PAGE: Final = 200
"""Records a search returns at most."""
LISTED: Final = 100
"""Records a list returns at most."""
INPUTS: Final = 100
"""Records of one call that reads by id or writes."""
BATCH: Final = 10_000
"""Records of one batch handed over: what is read again after a crash, and what is kept in memory."""

_RETRIED = RETRIED | {477, 521, 522, 523, 524}
_VERSION_FIX = "Set MAILHOUSE_HUBSPOT_API_VERSION to a version that this connector knows, e.g. 2026-09."


class HubSpot(HttpConnector):
    """A HubSpot account.

    Args:
        settings: token, address and version.
        pace: what all calls may cost; searches have a smaller one beside it.
        search_pace: what a search takes one of.
        transport: httpx's way out; the network by default.
        sleep: how to wait.
        clock: our time, in seconds since 1970.

    Raises:
        SettingsError: no token is set, or what is set cannot be one.
    """

    name: ClassVar[str] = "hubspot"
    title: ClassVar[str] = "HubSpot"
    capabilities: ClassVar[Capabilities] = Capabilities(
        kinds=frozenset({"contact", "company", "deal", "task"}),
        pushes=frozenset({"contact", "task"}),
        erases=frozenset({"contact"}),
        can_set_up=True,
        tells_deletes=True,
        tells_merges=True,
        has_webhooks=True,
        looks_up=True,
        most_per_push=INPUTS,
    )

    def __init__(
        self,
        settings: CrmSettings,
        *,
        pace: Pace | None = None,
        search_pace: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        token = settings.hubspot_token.get_secret_value().strip() if settings.hubspot_token else ""
        if not is_header_text(token):
            raise SettingsError(
                "HubSpot has no token." if not token else "The token of HubSpot holds what no token holds.",
                fix="Set MAILHOUSE_HUBSPOT_TOKEN to the access token of a service key (or private app).",
            )
        super().__init__(settings.hubspot_base_url, pace=pace, transport=transport, sleep=sleep)
        self._settings = settings
        self._token = SecretStr(token)
        self._search_pace, self._clock = search_pace, clock
        self.definitions = Definitions(self)

    @classmethod
    def is_configured(cls, settings: CrmSettings) -> bool:
        """Whether a token is set."""
        return settings.hubspot_token is not None

    @classmethod
    def from_settings(
        cls,
        settings: CrmSettings,
        *,
        pace: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Self:
        """The account of the settings; without a pace, in step with all other processes that use it."""
        searches: Pace | None = None
        if pace is None:
            pace = allowance(
                settings, cls.name, calls=settings.hubspot_calls_per_10_seconds, seconds=10, sleep=sleep
            )
            searches = allowance(
                settings,
                f"{cls.name}_search",
                calls=settings.hubspot_searches_per_second,
                seconds=1,
                sleep=sleep,
            )
        return cls(settings, pace=pace, search_pace=searches, transport=transport, sleep=sleep)

    def check(self) -> str:
        """Whether contacts may be read."""
        self.ask("GET", self.path("contact"), what="check", params={"limit": "1", "properties": "email"})
        return f"{self._settings.hubspot_base_url}, contacts may be read"

    # What changed

    def resume_after(self, kind: Kind, newest: datetime) -> str | None:
        """Older versions loaded in order of time: all up to the newest is there."""
        del kind
        return _Place(since=milliseconds(newest)).text()

    def pull(self, kind: Kind, since: str | None) -> Iterator[Pulled]:
        """See `Connector.pull`: a walk by id the first time, then what changed, then what was archived."""
        require(self, pull=kind)
        reading = _Reading(kind, _Place.parse(since) if since else _Place(since=self._start(kind), walked=0))
        for pages in (self._walk(reading), self._changes(reading), self._archived(reading)):
            rows = _Rows(kind)
            try:
                for records, is_deleted in pages:
                    rows.add(records, is_deleted=is_deleted)
                    if len(rows) >= BATCH:
                        yield rows.pulled(reading.place.text())
                        rows = _Rows(kind)
            except CrmError:
                # what came before the trouble is good, and moves the cursor
                if len(rows):
                    yield rows.pulled(reading.place.text())
                raise
            if len(rows):
                yield rows.pulled(reading.place.text())
        yield _Rows(kind).pulled(reading.place.text())

    def look_up(self, kind: Kind, ids: Sequence[str]) -> Pulled:
        """See `Connector.look_up`. Reads the records themselves, not search's index, which learns of changes late."""
        require(self, pull=kind)
        rows = _Rows(kind)
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), INPUTS):
            left = set(wanted[start : start + INPUTS])
            found = self.read(kind, left, self._properties(kind))
            rows.add(found, is_deleted=False)
            for record in found:
                left -= {str(record["id"])} | merged_ids(record)
            if left:
                archived = self.read(kind, left, self._properties(kind), is_archived=True)
                rows.add(archived, is_deleted=True)
                left -= {str(record["id"]) for record in archived}
            rows.add_gone(left, datetime.fromtimestamp(self._clock(), UTC))
        return rows.pulled("")

    def _start(self, kind: Kind) -> int:
        """From when on changes must be read after a walk that begins now."""
        page = self._search(kind, [], CHANGED[kind], limit=1, direction="DESCENDING")
        newest = [at for record in page.records if (at := changed_at(record, kind))]
        return page.at if page.at is not None else max(map(milliseconds, newest), default=0)

    def _walk(self, reading: _Reading) -> Iterator[_Page]:
        while reading.place.walked is not None:
            last = _filter("hs_object_id", "GT", reading.place.walked)
            page = self._search(reading.kind, [last], "hs_object_id")
            highest = max((int(record["id"]) for record in page.records), default=None)
            reading.place = replace(reading.place, walked=highest if page.is_more else None)
            yield page.records, False

    def _changes(self, reading: _Reading) -> Iterator[_Page]:
        kind, field = reading.kind, CHANGED[reading.kind]
        newest = reading.place.since
        start = max(0, newest - int(self._settings.hubspot_overlap * 1000))
        until: int | None = None
        is_first = True
        while True:
            page = self._search(kind, [_filter(field, "GTE", start)], field)
            if is_first:
                until, is_first = page.at, False
            last = max(
                (milliseconds(at) for one in page.records if (at := changed_at(one, kind))), default=start
            )
            newest = max(newest, last)
            # a record from the future must not lead past those that change before then
            reading.place = replace(reading.place, since=newest if until is None else min(newest, until))
            yield page.records, False
            if not page.is_more:
                break
            if last > start:
                start = last
                continue
            # a full page of one millisecond: keyset by id within it, then go on after it
            highest, is_more = 0, True
            while is_more:
                filters = [_filter(field, "EQ", start), _filter("hs_object_id", "GT", highest)]
                tied = self._search(kind, filters, "hs_object_id")
                highest = max((int(record["id"]) for record in tied.records), default=highest)
                is_more = tied.is_more
                yield tied.records, False
            start += 1
        if until is not None:
            # nothing more is known to have changed before we asked: the same records are not read for ever
            reading.place = replace(reading.place, since=until)

    def _archived(self, reading: _Reading) -> Iterator[_Page]:
        place, now = reading.place, self._clock()
        if (
            place.listed_at
            <= now
            < place.listed_at + place.listed_calls * self._settings.hubspot_archived_pause
        ):
            return
        query = {
            "archived": "true", "limit": str(LISTED), "properties": ",".join(self._properties(reading.kind)),
        }  # fmt: skip
        calls = 0
        while True:
            what = f"list of archived {PLURALS[reading.kind]}"
            answer = self.ask("GET", self.path(reading.kind), what=what, params=query)
            calls += 1
            yield _results(answer, reading.kind), True
            following = _next(answer)
            if following is None or following == query.get("after"):
                break
            query["after"] = following
        reading.place = replace(reading.place, listed_at=now, listed_calls=calls)

    def _search(
        self,
        kind: Kind,
        filters: list[dict[str, str]],
        sort: str,
        *,
        limit: int = PAGE,
        direction: str = "ASCENDING",
    ) -> _Found:
        body = {
            "filterGroups": [{"filters": filters}] if filters else [],
            "sorts": [{"propertyName": sort, "direction": direction}],
            "properties": self._properties(kind),
            "limit": limit,
        }
        response = self._send(
            "POST",
            self.path(kind, "search"),
            what=f"search of {PLURALS[kind]}",
            body=body,
            pace=self._search_pace,
        )
        answer = response.extensions["answer"]
        return _Found(_results(answer, kind), _next(answer) is not None, self._time(response))

    def _time(self, response: httpx.Response) -> int | None:
        """HubSpot's time of an answer, in milliseconds.

        None if it does not say so, or if its clock and ours differ by more than the overlap makes up for: then one of
        them is wrong, and records alone say how far we are.
        """
        try:
            moment = parsedate_to_datetime(response.headers["date"])
        except (KeyError, ValueError, TypeError):
            return None
        said = moment.timestamp()
        if abs(said - self._clock()) > self._settings.hubspot_overlap / 2:
            return None
        return int(said * 1000)

    def _properties(self, kind: Kind) -> list[str]:
        given = self._settings.hubspot_properties.items()
        more = [name for plural, names in given if plural == PLURALS[kind] for name in names]
        return list(dict.fromkeys((*READ[kind], *more)))

    # Writing

    def push(self, kind: Kind, changes: Sequence[Change]) -> list[Pushed]:
        """See `Connector.push`.

        A contact's fields are `FIELDS` but for push_token and created_at, and any property of HubSpot by its own name.
        A task's are `TASK_FIELDS`.
        """
        require(self, push=kind)
        return push_contacts(self, changes) if kind == "contact" else push_tasks(self, changes)

    def unwritable(self, names: Sequence[str]) -> Mapping[str, str]:
        """See `Connector.unwritable`. Asks nothing of HubSpot."""
        return {name: "" for name in names if name in NOT_WRITTEN}

    def erase(self, kind: Kind, ids: Sequence[str]) -> list[Removed]:
        """See `Connector.erase`. HubSpot's permanent deletion: nothing can be restored."""
        require(self, erase=kind)
        return erase_contacts(self, ids)

    def set_up(self, fields: Sequence[CustomField]) -> SetUp:
        """See `Connector.set_up`. Also makes the property by which tasks are found again."""
        return set_up_fields(self, fields)

    # What the parts share

    def path(self, kind: Kind, action: str = "", *, of: str = "objects") -> str:
        """Where an object's records, or its properties, are."""
        version = self._settings.hubspot_api_version
        start = f"/crm/v3/{of}" if version == "v3" else f"/crm/{of}/{version}"
        return f"{start}/{PLURALS[kind]}{'/' if action else ''}{action}"

    def other_path(self, name: str) -> str:
        """Where what is no record is: `owners`, `associations/tasks/contacts`."""
        version = self._settings.hubspot_api_version
        first, slash, rest = name.partition("/")
        if version == "v3":
            # associations went from v3 to v4 before there were dates
            return f"/crm/{'v4' if first == 'associations' else 'v3'}/{first}{slash}{rest}"
        return f"/crm/{first}/{version}{slash}{rest}"

    def read(
        self,
        kind: Kind,
        ids: Sequence[str] | set[str],
        properties: Sequence[str],
        *,
        is_archived: bool = False,
        id_property: str = "",
    ) -> list[dict[str, Any]]:
        """Records by id, at most `INPUTS`; those that are not there are left out. A merged one comes under another id.

        Raises:
            CrmError: HubSpot refuses or stays silent.
        """
        body: dict[str, Any] = {
            "inputs": [{"id": number} for number in sorted(ids)],
            "properties": list(properties),
        }
        if id_property:
            body["idProperty"] = id_property
        try:
            answer = self.ask(
                "POST",
                self.path(kind, "batch/read"),
                what=f"read of {PLURALS[kind]}",
                params={"archived": "true"} if is_archived else None,
                body=body,
            )
        except HubSpotRefusalError as error:
            # none of them is there
            if error.status != 404 or error.is_about_path:
                raise
            return []
        return _results(answer, kind)

    def ask(
        self,
        method: str,
        path: str,
        *,
        what: str,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        is_safe: bool = True,
    ) -> dict[str, Any]:
        """The JSON object of an answer.

        Raises:
            HubSpotRefusalError: HubSpot refuses.
            CrmError: it stays silent.
        """
        return self._send(method, path, what=what, params=params, body=body, is_safe=is_safe).extensions[
            "answer"
        ]

    def _send(
        self,
        method: str,
        path: str,
        *,
        what: str,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        pace: Pace | None = None,
        is_safe: bool = True,
    ) -> httpx.Response:
        return self.request(
            method,
            path,
            what=what,
            params=params,
            content=None if body is None else orjson.dumps(body),
            headers={} if body is None else {"content-type": "application/json"},
            pace=pace,
            is_safe=is_safe,
        )

    def authorise(self) -> Mapping[str, str]:
        """The token."""
        return {"authorization": f"Bearer {self._token.get_secret_value()}"}

    def judge(self, response: httpx.Response, what: str) -> Again | None:
        """An answer is JSON with a status below 300."""
        status = response.status_code
        if status in _RETRIED:
            return self._again(response, what)
        if not 200 <= status < 300:
            raise self._refused(response, what)
        answer = _loaded(response.content) if response.content else {}
        if not isinstance(answer, dict):
            # a proxy's page with status 200: perhaps gone on the next attempt
            return Again(f"answers {status}, but not with JSON")
        response.extensions["answer"] = answer
        # wait for the next interval rather than run into the limit: others share it
        remaining = seconds(response.headers.get("x-hubspot-ratelimit-remaining"))
        interval = seconds(response.headers.get("x-hubspot-ratelimit-interval-milliseconds"))
        if remaining is not None and remaining < 1 and interval is not None:
            self._sleep(min(interval / 1000, 60.0))
        return None

    def _again(self, response: httpx.Response, what: str) -> Again:
        status = response.status_code
        wait = 2.0 if status == 423 else 0.0
        asked = seconds(response.headers.get("retry-after"))
        if status == 429:
            if str(_said(response).get("policyName") or "").upper() == "DAILY":
                raise CrmUnavailableError(
                    f"HubSpot's daily limit of calls is used up, on {what}.",
                    fix="It begins anew at midnight in the account's time zone; then run again, "
                    "it goes on where it stopped.",
                )
            interval = seconds(response.headers.get("x-hubspot-ratelimit-interval-milliseconds"))
            asked = interval / 1000 if asked is None and interval is not None else asked
        return Again(f"answers {status}", max(wait, asked or 0.0))

    def _refused(self, response: httpx.Response, what: str) -> HubSpotRefusalError:
        said, status = _said(response), response.status_code
        reason = str(said.get("message") or "").replace(self._token.get_secret_value(), "...")[:300]
        trace = f" (correlation id {said['correlationId']})" if said.get("correlationId") else ""
        path = response.request.url.path
        message = f"HubSpot answers {status} to {path}: {reason or 'no reason given'}{trace}."
        fix = "If it names a property, correct MAILHOUSE_HUBSPOT_PROPERTIES."
        if status == 401:
            message = f"HubSpot does not accept the token{trace}."
            fix = "Set MAILHOUSE_HUBSPOT_TOKEN to a valid token; this one may have expired."
        elif status == 403:
            message = f"HubSpot's token does not allow the {what} ({path}): {reason or 'forbidden'}{trace}."
            fix = "Give it the scopes that docs/crm.md names, or leave this out: MAILHOUSE_CRM_SKIPPED."
        elif status == 404 and said.get("category") != "OBJECT_NOT_FOUND":
            message = f"HubSpot has no {path}{trace}."
            fix = "Correct MAILHOUSE_HUBSPOT_API_VERSION and MAILHOUSE_HUBSPOT_BASE_URL."
        return HubSpotRefusalError(message, fix=fix, status=status, said=said)


_Page = tuple[list[dict[str, Any]], bool]
"""Records, and whether they are deleted."""


@dataclass(frozen=True, slots=True)
class _Found:
    """Records of a search, whether there are more, and HubSpot's time in milliseconds if we trust it."""

    records: list[dict[str, Any]]
    is_more: bool
    at: int | None


@dataclass(frozen=True, slots=True)
class _Place:
    """How far one object has been read.

    Attributes:
        since: changes up to then are known, in milliseconds.
        walked: the last id of the first reading; None once it is at its end.
        listed_at, listed_calls: when archived records were listed, in seconds of our clock, and in how many calls.
    """

    since: int
    walked: int | None = None
    listed_at: float = 0.0
    listed_calls: int = 0

    def text(self) -> str:
        """As a cursor."""
        parts = {"since": self.since, "listed_at": self.listed_at, "listed_calls": self.listed_calls}
        return json.dumps(parts if self.walked is None else {**parts, "walked": self.walked})

    @classmethod
    def parse(cls, text: str) -> _Place:
        """A cursor.

        Raises:
            CrmError: it is none of ours.
        """
        try:
            parts = json.loads(text)
            return cls(
                int(parts["since"]),
                None if parts.get("walked") is None else int(parts["walked"]),
                float(parts.get("listed_at", 0)),
                int(parts.get("listed_calls", 0)),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CrmError(
                f"The cursor of HubSpot is none: {text[:80]!r}.",
                fix="Load all again (docs/crm.md); nothing is stored twice.",
            ) from None


@dataclass(slots=True)
class _Reading:
    kind: Kind
    place: _Place


class _Rows:
    """Columns of `PULLED` that grow."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind
        self._ids: list[str] = []
        self._changed: list[int] = []
        self._deleted: list[bool] = []
        self._merged_into: list[str] = []
        self._texts: list[str] = []
        self._bad: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._ids) + len(self._bad)

    def add(self, records: list[dict[str, Any]], *, is_deleted: bool) -> None:
        """Rows of records, and of those that were merged into them; what cannot be a row is told of by `pulled`."""
        for record in records:
            try:
                changed, text = _row(record, self._kind, is_deleted)
            except ValueError as error:
                self._bad.append((str(error), json.dumps(record, ensure_ascii=True)[:CONTENT_CHARACTERS]))
                continue
            self._append(str(record["id"]), changed, is_deleted, "", text)
            for loser in merged_ids(record):
                self._append(loser, changed, True, str(record["id"]), "{}")

    def add_gone(self, ids: set[str], at: datetime) -> None:
        """Rows of records that are nowhere."""
        for number in sorted(ids):
            self._append(number, milliseconds(at), True, "", "{}")

    def _append(self, number: str, changed: int, is_deleted: bool, merged_into: str, text: str) -> None:
        self._ids.append(number)
        self._changed.append(changed)
        self._deleted.append(is_deleted)
        self._merged_into.append(merged_into)
        self._texts.append(text)

    def pulled(self, cursor: str) -> Pulled:
        """All of them."""
        columns = [
            pa.array(self._ids, pa.string()),
            pa.array(self._changed, pa.int64()).cast(pa.timestamp("ms", tz="UTC")),
            pa.array(self._deleted, pa.bool_()),
            pa.array(self._merged_into, pa.string()),
            pa.array(self._texts, pa.string()),
        ]
        return Pulled(pa.Table.from_arrays(columns, schema=PULLED), cursor, tuple(self._bad))


def _row(record: dict[str, Any], kind: Kind, is_deleted: bool) -> tuple[int, str]:
    """A record's time of change and properties.

    Raises:
        ValueError: it lacks one of them.
    """
    changed = changed_at(record, kind)
    if changed is None:
        raise ValueError("the record says not when it changed")
    if is_deleted:
        # archiving need not touch the record's own time; as a version it comes after all it had before, also where
        # the clock that told of the last one was ahead
        archived = utc_time(record.get("archivedAt")) or changed
        changed = max(changed + timedelta(milliseconds=1), archived)
    properties = record.get("properties")
    if not isinstance(properties, dict):
        raise ValueError("the record has no properties")
    named = {
        RENAMED.get(name, name): value
        for name, value in properties.items()
        if value is not None and value != ""
    }
    if kind == "contact" and isinstance(zone := named.get("timezone"), str):
        named["timezone"] = zone_of(zone)
    try:
        return milliseconds(changed), orjson.dumps(named).decode()
    except TypeError:
        raise ValueError("the record holds half of a surrogate pair") from None


def _results(answer: dict[str, Any], kind: Kind) -> list[dict[str, Any]]:
    results = answer.get("results")
    if not isinstance(results, list) or not all(isinstance(record, dict) for record in results):
        raise CrmError(f"HubSpot's answer about {PLURALS[kind]} has no list of results.", fix=_VERSION_FIX)
    for record in results:
        if not str(record.get("id", "")).isdigit():
            raise CrmError(
                f"HubSpot's answer about {PLURALS[kind]} has a record without a numeric id: {str(record)[:80]}.",
                fix=_VERSION_FIX,
            )
    return results


def _next(answer: dict[str, Any]) -> str | None:
    """The place at which a list goes on, None at its end."""
    paging = answer.get("paging")
    following = paging.get("next") if isinstance(paging, dict) else None
    after = following.get("after") if isinstance(following, dict) else None
    return None if after is None else str(after)


def _filter(name: str, operator: str, value: int) -> dict[str, str]:
    return {"propertyName": name, "operator": operator, "value": str(value)}


def _loaded(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        # the library of Python takes half of a surrogate pair: one record is at fault then, not the page
        try:
            return json.loads(content)
        except (json.JSONDecodeError, UnicodeDecodeError):
            return None


def _said(response: httpx.Response) -> dict[str, Any]:
    said = _loaded(response.content)
    return said if isinstance(said, dict) else {}
