"""Salesforce: contacts, accounts, opportunities and tasks read; contacts and tasks written.

**Reading.** What changed comes in order of (SystemModstamp, Id). Every page is a query of its own that starts behind
the last record of the page before (keyset), never `nextRecordsUrl`: it costs the same calls, and a record that is
edited meanwhile moves behind us and comes again, while a page of an old result would show it with a new stamp, and a
cursor made of that would skip what lies between. A record is stamped when its transaction begins and seen when that
ends, so a reading that has come to its end starts the next one an overlap before the earlier of its own beginning (by
Salesforce's clock) and the newest stamp it saw. One that was interrupted goes on exactly where it stopped.
`queryAll` shows deleted and merged records, as long as they are in the recycle bin (15 days).

Stamps are whole seconds, and a record may change again in the second in which it was read, under the same stamp. So a
record that is that fresh is handed over as of a millisecond before its stamp, and when the overlap is read, as of its
stamp: whoever keeps one row a version keeps the last one.

The first load of many records is a job of Bulk API 2.0; its cursor is job and locator, good for the seven days that
Salesforce keeps results.

**Writing.** Up to 200 records a call (sObject collections), more than 2,000 by a Bulk job. Just before, records are
read: a version newer than the one that the caller knows is a conflict. (Salesforce has no condition that covers a
batch, so an edit in the moment between is overwritten in the fields that are written, and in no other.) Records we
make are upserted by an external id of ours, so that no repetition makes a second one.

Contract: Salesforce REST API, Bulk API 2.0, Tooling API.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, Self, TypeGuard

import httpx

from crm.base import (
    Capabilities,
    Change,
    CrmError,
    CrmRefusedError,
    CrmUnavailableError,
    CustomField,
    Kind,
    Pulled,
    Pushed,
    PushStatus,
    Removed,
    Row,
    Scalar,
    SetUp,
    require,
    table_of,
    utc_time,
)
from crm.http import RETRIED, Again, HttpConnector, Pace, seconds
from crm.salesforce_login import Login, Session
from crm.salesforce_records import (
    ID,
    MOST_VALUES,
    OURS,
    Place,
    address,
    api_name,
    csv_records,
    digest,
    dumped,
    groups,
    inner,
    literal,
    our_name,
    select,
    text_of,
    whole,
)
from crm.settings import CrmSettings

logger = logging.getLogger(__name__)

PAGE: Final = 2_000
"""Records of one answer to a query, at most."""
BULK_ROWS: Final = 50_000
"""Records of one answer to a Bulk query: what a batch has at most."""
COLLECTION: Final = 200
"""Records that one call writes at most."""
BULK_FROM: Final = 2_000
"""Changes above which a Bulk job writes them."""
READ_FIRST: Final = MOST_VALUES
"""Records looked at before they are written: as many ids as an address holds, and no more, so that they are fresh."""

_FEWEST = 25  # records of a page that was too slow
_JOB_ROWS = 100_000
_JOB_CHARACTERS = 30 << 20  # less than 100 MB as UTF-8, whatever the script
_JOB_SECONDS = 3 * 3600.0
_LOCK_TRIES = 5
_MOST_SPLITS = 40  # calls spent on finding what a refused batch is refused for
_MOMENT = timedelta(milliseconds=1)
_FRESH = timedelta(seconds=5)  # a second, and how far clocks within Salesforce may differ
_LIMITS_SECONDS = 600.0  # how long what Salesforce said of its limits is believed

_OBJECTS: Mapping[Kind, str] = {
    "contact": "Contact", "company": "Account", "deal": "Opportunity", "task": "Task",
}  # fmt: skip
# the first row of each is always there; what follows may be hidden from our user, and is left out then
_NEEDED: Mapping[Kind, tuple[str, ...]] = {
    "contact": ("Id", "SystemModstamp", "IsDeleted", "MasterRecordId", "Email"),
    "company": ("Id", "SystemModstamp", "IsDeleted", "MasterRecordId", "Name"),
    "deal": ("Id", "SystemModstamp", "IsDeleted", "Name", "StageName", "IsClosed", "IsWon"),
    "task": ("Id", "SystemModstamp", "IsDeleted", "Subject", "Status", "IsClosed"),
}
_READ: Mapping[Kind, tuple[str, ...]] = {
    "contact": (
        "FirstName", "LastName", "MailingCountry", "MailingCity", "Phone", "MobilePhone", "CreatedDate", "AccountId",
        "LeadSource", "HasOptedOutOfEmail",
    ),
    "company": ("Website", "Industry", "BillingCountry", "BillingCity", "CreatedDate"),
    "deal": ("Amount", "CloseDate", "AccountId", "ContactId", "CreatedDate"),
    "task": ("Priority", "ActivityDate", "WhoId", "WhatId", "OwnerId", "CreatedDate"),
}  # fmt: skip
_CONTACT: Mapping[str, str] = {
    "email": "Email",
    "first_name": "FirstName",
    "last_name": "LastName",
    "country": "MailingCountry",
    "city": "MailingCity",
    "phone": "Phone",
    "mobile_phone": "MobilePhone",
    "created_at": "CreatedDate",
}
_TASK: Mapping[str, str] = {
    "subject": "Subject",
    "note": "Description",
    "due_at": "ActivityDate",
    "is_done": "Status",
    "type": "Type",
    "owner": "OwnerId",
    "contact_id": "WhoId",
    "deal_id": "WhatId",
    # finds the contact where its id is not given
    "email": "",
}
_UNMAPPED = frozenset({"timezone", "locale", "push_token"})
_READ_ONLY = frozenset(
    {"Id", "CreatedDate", "SystemModstamp", "LastModifiedDate", "IsDeleted", "MasterRecordId"}
)

KEY: Final = "mailhouse_key"
"""The external id by which records that we made are ours."""
_KEY_FIELD = "Mailhouse_Key__c"
_OUR_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_API_NAME = re.compile(r"[A-Z][A-Za-z0-9_]*|[a-z][A-Za-z0-9_]*__c")
_USER = re.compile(r"00[5G][A-Za-z0-9]{12}([A-Za-z0-9]{3})?")  # of a user or a queue
_USER_NAMES = ("Username", "Email", "Name")
_SHORT_ID = 15  # characters that tell records apart; three more are a checksum
_NO_FIELD = re.compile(r"No such column '([A-Za-z0-9_.]+)'")
_LIMIT = re.compile(r"\bapi-usage=(\d+)/(\d+)")
EMPTY = "#N/A"  # an emptied field in a job's CSV; a cell without anything leaves the field as it is

_GONE = frozenset({"ENTITY_IS_DELETED", "NOT_FOUND", "MALFORMED_ID"})
_LOCKED = frozenset({"UNABLE_TO_LOCK_ROW"})
_INVALID = frozenset(
    {
        "CANNOT_UPDATE_CONVERTED_LEAD",
        "DUPLICATES_DETECTED",
        "DUPLICATE_EXTERNAL_ID",
        "FIELD_CUSTOM_VALIDATION_EXCEPTION",
        "FIELD_FILTER_VALIDATION_EXCEPTION",
        "FIELD_INTEGRITY_EXCEPTION",
        "INSUFFICIENT_ACCESS_ON_CROSS_REFERENCE_ENTITY",
        "INSUFFICIENT_ACCESS_OR_READONLY",
        "INVALID_CROSS_REFERENCE_KEY",
        "INVALID_EMAIL_ADDRESS",
        "INVALID_FIELD",
        "INVALID_FIELD_FOR_INSERT_UPDATE",
        "INVALID_OR_NULL_FOR_RESTRICTED_PICKLIST",
        "INVALID_TYPE_ON_FIELD_IN_RECORD",
        "MULTIPLE_CHOICES",
        "NUMBER_OUTSIDE_VALID_RANGE",
        "REQUIRED_FIELD_MISSING",
        "STRING_TOO_LONG",
    }
)
# of a whole call, where one record's value may be at fault
_ONE_AT_FAULT = frozenset({"JSON_PARSER_ERROR", "INVALID_FIELD", "INVALID_TYPE", "MULTIPLE_CHOICES"})

_TYPES: Mapping[str, tuple[Mapping[str, Any], frozenset[str]]] = {
    # as the Tooling API makes it, and as `describe` names it: any of these holds what we write
    "text": ({"type": "Text", "length": 255}, frozenset({"string", "textarea"})),
    "number": ({"type": "Number", "precision": 18, "scale": 4}, frozenset({"double", "currency", "percent"})),
    "datetime": ({"type": "DateTime"}, frozenset({"datetime"})),
    "boolean": ({"type": "Checkbox", "defaultValue": "false"}, frozenset({"boolean"})),
    "choice": ({"type": "Picklist"}, frozenset({"picklist", "string"})),
    "list": ({"type": "LongTextArea", "length": 32_768, "visibleLines": 3}, frozenset({"textarea"})),
}


class RefusedCallError(CrmRefusedError):
    """Salesforce refuses one call.

    Attributes:
        code: its errorCode, '' if it said none.
        status: of the answer.
        field: the field that it does not know, '' if it is not about one.
    """

    def __init__(
        self, message: str, *, fix: str = "", code: str = "", status: int = 0, field: str = ""
    ) -> None:
        super().__init__(message, fix=fix)
        self.code, self.status, self.field = code, status, field


class TooSlowError(CrmUnavailableError):
    """A query took longer than Salesforce allows; a smaller one may not."""


class Salesforce(HttpConnector):
    """One organisation.

    Args:
        settings: see `CrmSettings`.
        pace: what calls may cost.
        transport: httpx's way out.
        sleep: how to wait.

    Raises:
        SettingsError: no app, or not exactly one way to log in.
    """

    name = "salesforce"
    title = "Salesforce"
    capabilities = Capabilities(
        kinds=frozenset(_OBJECTS),
        pushes=frozenset({"contact", "task"}),
        erases=frozenset({"contact"}),
        can_set_up=True,
        tells_deletes=True,
        tells_merges=True,
        has_webhooks=True,
        looks_up=True,
        has_whole_seconds=True,
        most_per_push=COLLECTION,
    )

    def __init__(
        self,
        settings: CrmSettings,
        *,
        pace: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(settings.salesforce_login_url, pace=pace, transport=transport, sleep=sleep)
        self._settings = settings
        self._login = Login.from_settings(settings, transport=transport, wait=self._wait)
        self._session: Session | None = None
        self._renewed_at = -1
        self._limits: tuple[int, int, float] | None = None
        # change events say who made a change, so that ours are known again
        self._client.headers["sforce-call-options"] = "client=mailhouse"
        self._data = f"/services/data/v{settings.salesforce_api_version}"
        self._mapped = _mapped(settings)
        self._hidden: dict[Kind, set[str]] = {kind: set() for kind in _OBJECTS}

    @classmethod
    def is_configured(cls, settings: CrmSettings) -> bool:
        """Whether a connected app is set."""
        return bool(settings.salesforce_client_id)

    @classmethod
    def from_settings(
        cls,
        settings: CrmSettings,
        *,
        pace: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Self:
        """The organisation of the settings; asks nothing of it."""
        return cls(settings, pace=pace, transport=transport, sleep=sleep)

    def check(self) -> str:
        """Log in, and tell where and how much of the daily limit is used."""
        said = self.json(self.request("GET", f"{self._data}/limits", what="limits"))
        daily = said.get("DailyApiRequests") if isinstance(said, dict) else None
        assert self._session is not None
        where = f"{self._session.instance_url}"
        if not isinstance(daily, dict):
            return where
        return f"{where}, {daily.get('Remaining')} of {daily.get('Max')} calls left in 24 hours"

    # calls

    def authorise(self) -> Mapping[str, str]:
        """The session's token; calls go where the session is good."""
        if self._session is None:
            self._session = self._login.session()
        self._client.base_url = self._session.instance_url
        return {"authorization": f"Bearer {self._session.token}"}

    def renew(self) -> None:
        """Log in anew."""
        self._session = self._login.session(refused=self._session)
        self._renewed_at = self.usage.calls

    def request(self, method: str, path: str, *, what: str, **options: Any) -> httpx.Response:
        """See `HttpConnector.request`; refuses while others need what is left of the organisation's daily limit.

        Raises:
            CrmUnavailableError: our share of the day is used up.
        """
        if self._limits is not None:
            used, most, at = self._limits
            if (
                used >= most * self._settings.salesforce_daily_share
                and time.monotonic() - at < _LIMITS_SECONDS
            ):
                raise CrmUnavailableError(
                    f"Of Salesforce's {most:,} calls in 24 hours {used:,} are used, and the rest is left to others.",
                    fix="Run again in some hours, it goes on where it stopped; or raise "
                    "MAILHOUSE_SALESFORCE_DAILY_SHARE or the organisation's limit.",
                )
        return super().request(method, path, what=what, **options)

    def judge(self, response: httpx.Response, what: str) -> Again | None:
        """By Salesforce's codes: 403 may mean a limit, 401 a session that has ended."""
        if found := _LIMIT.search(response.headers.get("sforce-limit-info", "")):
            self._limits = int(found[1]), int(found[2]), time.monotonic()
        status = response.status_code
        if status in (200, 201, 202, 204):
            return None
        errors = _errors(response)
        codes = [code for code, _ in errors]
        said = "; ".join(f"{code}: {message}" for code, message in errors)
        if status == 401:
            if self._renewed_at == self.usage.calls - 1:
                raise CrmRefusedError(
                    f"Salesforce refuses a session that it has just given ({', '.join(codes) or 401}).",
                    fix="See that the user may use the API (permission `API Enabled`) from this address.",
                )
            return Again("has ended the session", is_unauthorised=True)
        if "REQUEST_LIMIT_EXCEEDED" in codes:
            if "concurrent" in said.lower():
                return Again("has too many long calls at once", wait=5.0)
            raise CrmUnavailableError(
                f"Salesforce's limit of calls in 24 hours is used up ({self._clean(said)}).",
                fix="Run again when it has room, it goes on where it stopped; see who uses it under Setup, System "
                "Overview, or raise the organisation's limit.",
            )
        if "QUERY_TIMEOUT" in codes:
            raise TooSlowError(
                f"Salesforce gave up on {what}: the query took too long.",
                fix="Run again later, it goes on where it stopped.",
            )
        if status in RETRIED or "UNABLE_TO_LOCK_ROW" in codes or "SERVER_UNAVAILABLE" in codes:
            return Again(f"answers {status}", wait=seconds(response.headers.get("retry-after")) or 0.0)
        raise self._refusal(status, errors, what)

    def _refusal(self, status: int, errors: list[tuple[str, str]], what: str) -> RefusedCallError:
        said = self._clean("; ".join(f"{code}: {message}" for code, message in errors)) or "no reason given"
        code = errors[0][0] if errors else ""
        found = _NO_FIELD.search(said)
        if found:
            fix = (
                "Run `mailhouse crm setup`, which makes our fields and shows them to our user; of fields in "
                "MAILHOUSE_SALESFORCE_PROPERTIES see that they exist and that our user may see them."
            )
        elif status == 404:
            fix = "Correct MAILHOUSE_SALESFORCE_API_VERSION, or give our user the object."
        elif status == 403 or code.startswith(("INSUFFICIENT_ACCESS", "API_", "INVALID_TYPE")):
            fix = "Give our user the rights that docs/crm-salesforce.md lists: the API, the object and its fields."
        else:
            fix = "See docs/crm-salesforce.md; if it names a field, correct MAILHOUSE_SALESFORCE_PROPERTIES."
        return RefusedCallError(
            f"Salesforce answers {status} on {what}: {said}.",
            fix=fix,
            code=code,
            status=status,
            field=found[1] if found else "",
        )

    def _clean(self, text: str) -> str:
        return self._login.clean(text)[:300]

    def _query(
        self, soql: str, *, what: str, with_deleted: bool = True
    ) -> tuple[list[dict[str, Any]], bool, Any]:
        """Records of the first page, whether they are all, and the whole answer."""
        path = f"{self._data}/{'queryAll' if with_deleted else 'query'}"
        return self._page(self.request("GET", path, what=what, params={"q": soql}))

    def _page(self, response: httpx.Response) -> tuple[list[dict[str, Any]], bool, Any]:
        answer = self.json(response)
        records = answer.get("records") if isinstance(answer, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise CrmError(
                "Salesforce's answer to a query has no list of records.",
                fix="Set MAILHOUSE_SALESFORCE_API_VERSION to a version that this connector knows, e.g. 63.0.",
            )
        return records, answer.get("done") is not False, (answer, response)

    def _found(
        self, soql: str, *, what: str, with_deleted: bool = False, times: list[datetime] | None = None
    ) -> Iterator[dict[str, Any]]:
        """All records of a small query; `times` is told Salesforce's when it was asked."""
        records, is_all, (answer, response) = self._query(soql, what=what, with_deleted=with_deleted)
        if times is not None and (asked_at := _server_time(response)) is not None:
            times.append(asked_at)
        while True:
            yield from records
            following = str(answer.get("nextRecordsUrl") or "")
            if is_all or not following.startswith("/services/data/"):
                return
            records, is_all, (answer, _) = self._page(self.request("GET", following, what=what))

    # reading

    def resume_after(self, kind: Kind, newest: datetime) -> str | None:
        """A cursor for records that were loaded before cursors were kept."""
        del kind
        return Place(until=newest).text()

    def pull(self, kind: Kind, since: str | None) -> Iterator[Pulled]:
        """See `Connector.pull`."""
        if kind not in _OBJECTS:
            raise CrmRefusedError(f"Salesforce has no {kind}.", fix=f"Read one of: {', '.join(_OBJECTS)}.")
        place = Place.parse(since)
        if place.job or (since is None and self._is_large(_OBJECTS[kind])):
            yield from self._pull_in_bulk(kind, place)
        else:
            yield from self._pull_pages(kind, place)

    def look_up(self, kind: Kind, ids: Sequence[str]) -> Pulled:
        """What has become of single records; one that is unknown is a deleted row, as of now.

        A merged record brings the row of the record that took it in. The cursor is '' and must not be stored.
        """
        rows: dict[str, Row] = {}
        times: list[datetime] = []
        wanted = list(dict.fromkeys(ids))
        for _ in range(2):
            for row in self._read_ids(kind, [number for number in wanted if ID.fullmatch(number)], times):
                rows[row.external_id] = row
            wanted = [
                row.merged_into for row in rows.values() if row.merged_into and row.merged_into not in rows
            ]
            if not wanted:
                break
        known = {number[:_SHORT_ID] for number in rows}
        now = max(times, default=datetime.now(UTC))
        gone: list[Row] = [
            Row(number, whole(now), True, "", "{}")
            for number in dict.fromkeys(ids)
            if number[:_SHORT_ID] not in known
        ]
        return Pulled(table_of([*_aged(list(rows.values()), min(times, default=None)), *gone]), "")

    def _read_ids(self, kind: Kind, ids: Sequence[str], times: list[datetime]) -> Iterator[Row]:
        for group in groups(ids):
            while True:
                soql = select(self._columns(kind), _OBJECTS[kind], f"WHERE Id IN ({group})")
                try:
                    records = list(
                        self._found(soql, what=f"look at {_OBJECTS[kind]}", with_deleted=True, times=times)
                    )
                except RefusedCallError as error:
                    self._without(kind, error)
                    continue
                yield from self._rows(kind, records)
                break

    def _is_large(self, sobject: str) -> bool:
        least = self._settings.salesforce_bulk_from
        if least == 0:
            return True
        try:
            _, _, (answer, _) = self._query(select(["COUNT()"], sobject), what=f"count {sobject}")
        except TooSlowError:
            return True
        return int(answer.get("totalSize") or 0) >= least

    def _columns(self, kind: Kind) -> list[str]:
        wanted = [*_NEEDED[kind], *_READ[kind], *self._mapped[kind].values()]
        return [name for name in dict.fromkeys(wanted) if name not in self._hidden[kind]]

    def _without(self, kind: Kind, error: RefusedCallError) -> None:
        """Leave out a field that our user does not see.

        Raises:
            RefusedCallError: the one given, if the field was asked for or is needed.
        """
        hidden = next((name for name in _READ[kind] if name.lower() == error.field.lower()), "")
        if not hidden or hidden in self._mapped[kind].values() or hidden in self._hidden[kind]:
            raise error
        logger.warning("Salesforce does not show %s.%s to our user; it is not read", _OBJECTS[kind], hidden)
        self._hidden[kind].add(hidden)

    def _pull_pages(self, kind: Kind, place: Place) -> Iterator[Pulled]:
        sobject, limit = _OBJECTS[kind], PAGE
        overlap = timedelta(seconds=self._settings.salesforce_overlap)
        while True:
            where = ""
            if place.at is not None:
                at = literal(place.at)
                where = f"WHERE (SystemModstamp > {at} OR (SystemModstamp = {at} AND Id > '{place.id}')) "
            elif place.until is not None:
                where = f"WHERE SystemModstamp >= {literal(place.until - overlap)} "
            columns = self._columns(kind)
            soql = select(columns, sobject, f"{where}ORDER BY SystemModstamp, Id LIMIT {limit}")
            try:
                records, is_all, (_, response) = self._query(soql, what=f"read {sobject}")
            except TooSlowError:
                if limit <= _FEWEST:
                    raise
                limit = max(_FEWEST, limit // 4)
                continue
            except RefusedCallError as error:
                self._without(kind, error)
                continue
            asked_at = _server_time(response)
            found = self._rows(kind, records)
            began = place.began or asked_at
            newest = _newest(found, place.newest)
            rows = _aged(found, asked_at)
            # the server may cut a page short of its limit, and says so
            if is_all and len(found) < limit:
                after = place.finished(began, newest)
                if rows or after != place:
                    yield Pulled(table_of(rows), after.text())
                return
            if not found or (found[-1][1], found[-1][0]) == (place.at, place.id):
                raise CrmError("Salesforce sends the same page again and again.", fix="Run again later.")
            place = Place(at=found[-1][1], id=found[-1][0], began=began, newest=newest)
            yield Pulled(table_of(rows), place.text())

    def _pull_in_bulk(self, kind: Kind, place: Place) -> Iterator[Pulled]:
        is_resumed = bool(place.job)
        while True:
            if not place.job:
                place = self._start_job(kind)
                # kept before anything is read, so that whoever dies while the job runs finds it again
                yield Pulled(table_of([]), place.text())
            try:
                trouble = self._await_job(f"{self._data}/jobs/query/{place.job}")
                if not trouble:
                    break
                if not is_resumed:
                    raise self._refusal(
                        200, [("", f"the job failed: {trouble}")], f"read {_OBJECTS[kind]} in bulk"
                    )
            except RefusedCallError as error:
                if error.status == 200:
                    self._without(kind, error)
                elif not is_resumed or error.status not in (400, 404, 410):
                    raise
            logger.info("a load of Salesforce in bulk begins anew: its job %s is gone or failed", place.job)
            is_resumed, place = False, Place()
        while True:
            query = {"maxRecords": str(BULK_ROWS), **({"locator": place.locator} if place.locator else {})}
            try:
                response = self.request(
                    "GET",
                    f"{self._data}/jobs/query/{place.job}/results",
                    what=f"read {_OBJECTS[kind]} in bulk",
                    params=query,
                    headers={"accept": "text/csv"},
                )
            except RefusedCallError as error:
                if not is_resumed or error.status not in (400, 404, 410):
                    raise
                logger.info("a load of Salesforce in bulk begins anew: the result of %s is gone", place.job)
                yield from self._pull_in_bulk(kind, Place())
                return
            is_resumed = False
            found = self._rows(kind, csv_records(response.content, place.columns))
            newest = _newest(found, place.newest)
            # at some moment after the job began
            rows = _aged(found, place.began)
            locator = response.headers.get("sforce-locator", "")
            if locator in ("", "null"):
                yield Pulled(table_of(rows), place.finished(place.began, newest).text())
                return
            if locator == place.locator:
                raise CrmError(
                    "Salesforce sends the same part of a job's result twice.", fix="Run again later."
                )
            place = Place(
                job=place.job, locator=locator, began=place.began, newest=newest, columns=place.columns
            )
            yield Pulled(table_of(rows), place.text())

    def _start_job(self, kind: Kind) -> Place:
        while True:
            columns = self._columns(kind)
            body = {"operation": "queryAll", "query": select(columns, _OBJECTS[kind])}
            try:
                response = self.request(
                    "POST", f"{self._data}/jobs/query", what=f"start a load of {_OBJECTS[kind]}", body=body
                )
            except RefusedCallError as error:
                if error.field:
                    self._without(kind, error)
                    continue
                raise
            return Place(job=self._job_id(response), began=_server_time(response), columns=tuple(columns))

    def _job_id(self, response: httpx.Response) -> str:
        answer = self.json(response)
        job = str(answer.get("id") or "") if isinstance(answer, dict) else ""
        if not ID.fullmatch(job):
            raise CrmError("Salesforce's answer about a job has no id.", fix="Run again later.")
        return job

    def _await_job(self, path: str) -> str:
        """Wait until a job is done; why it failed, '' if it did not.

        Raises:
            CrmUnavailableError: it runs for hours.
        """
        waited, wait = 0.0, 1.0
        while True:
            answer = self.json(self.request("GET", path, what="ask for a job"))
            state = str(answer.get("state") or "") if isinstance(answer, dict) else ""
            if state == "JobComplete":
                return ""
            if state in ("Failed", "Aborted"):
                return self._clean(str(answer.get("errorMessage") or state))
            if waited >= _JOB_SECONDS:
                raise CrmUnavailableError(
                    f"A job of Salesforce still is {state or 'nowhere'} after {waited / 3600:.0f} hours.",
                    fix="See Setup, Bulk Data Load Jobs; then run again.",
                )
            self._sleep(wait)
            waited += wait
            wait = min(30.0, wait * 2)

    def _rows(self, kind: Kind, records: Iterable[Mapping[str, Any]]) -> list[Row]:
        names = [(self._our_name(kind, column), column) for column in self._columns(kind)]
        names = [
            pair for pair in names if pair[1] not in ("Id", "SystemModstamp", "IsDeleted", "MasterRecordId")
        ]
        unknown_name = self._settings.salesforce_last_name if kind == "contact" else None
        rows: list[Row] = []
        for record in records:
            number, stamp = record.get("Id"), utc_time(record.get("SystemModstamp"))
            if not isinstance(number, str) or not ID.fullmatch(number) or stamp is None:
                raise CrmError(
                    f"Salesforce sends a {kind} without Id or SystemModstamp.",
                    fix="Set MAILHOUSE_SALESFORCE_API_VERSION to a version that this connector knows, e.g. 63.0.",
                )
            values: dict[str, str] = {}
            for ours, column in names:
                value = text_of(inner(record, column))
                if value and not (column == "LastName" and value == unknown_name):
                    values[ours] = value
            is_deleted = text_of(record.get("IsDeleted")) == "true"
            merged = text_of(record.get("MasterRecordId")) if is_deleted else ""
            rows.append(Row(number, stamp, is_deleted, merged, dumped(values)))
        return rows

    def _our_name(self, kind: Kind, column: str) -> str:
        for ours, theirs in self._mapped[kind].items():
            if theirs == column:
                return ours
        if kind == "contact" and column in _CONTACT.values():
            return next(ours for ours, theirs in _CONTACT.items() if theirs == column)
        return our_name(column)

    # writing

    def unwritable(self, names: Sequence[str]) -> Mapping[str, str]:
        """See `Connector.unwritable`. Asks nothing of Salesforce."""
        return {
            name: f'name a field for it: MAILHOUSE_SALESFORCE_PROPERTIES={{"Contact": ["{name}=Field__c"]}}'
            for name in names
            if not _is_writable(self._api_name("contact", name))
        }

    def push(self, kind: Kind, changes: Sequence[Change]) -> list[Pushed]:
        """See `Connector.push`.

        A contact that is not known is found by its email; a task that is not known is made, once for its key: the
        keys of tasks must last.
        """
        if kind not in self.capabilities.pushes:
            return super().push(kind, changes)
        results: dict[int, Pushed] = {}
        written: set[str] = set()
        pending = list(enumerate(changes))
        while pending:
            # of several changes to one record each waits for the one before it
            now, later = _firsts(kind, pending)
            size = len(now) if len(now) > BULK_FROM else READ_FIRST
            for start in range(0, len(now), size):
                slice_ = now[start : start + size]
                try:
                    later += self._push_slice(kind, slice_, written, results)
                except CrmError as error:
                    if not any(result.status in ("written", "created") for result in results.values()):
                        raise
                    # something is written, so all must be answered for
                    for index, change in (*slice_, *now[start + size :], *later):
                        results.setdefault(
                            index, Pushed(change.key, "failed", change.external_id, reason=error.message)
                        )
                    return [results[index] for index in range(len(changes))]
            pending = sorted(later, key=lambda pair: pair[0])
        return [results[index] for index in range(len(changes))]

    def _push_slice(
        self, kind: Kind, changes: list[tuple[int, Change]], written: set[str], results: dict[int, Pushed]
    ) -> list[tuple[int, Change]]:
        """Write changes to different records, as far as is known; those that turn out to be of one are given back."""
        sobject, later = _OBJECTS[kind], list[tuple[int, Change]]()
        updates, made = list[_Write](), list[_Write]()
        wanted = {change.external_id for _, change in changes if ID.fullmatch(change.external_id)}
        states = self._states(sobject, wanted)
        people = self._people(
            change.fields.get("email")
            for _, change in changes
            if not (change.external_id if kind == "contact" else change.fields.get("contact_id"))
        )
        users = self._users(change.fields.get("owner") for _, change in changes) if kind == "task" else {}
        taken: set[str] = set()
        for index, change in changes:
            number, state = change.external_id, None
            record, trouble = self._record(kind, change)
            status: PushStatus = "invalid"
            if kind == "task" and not trouble:
                status, trouble = _assign(record, change, people, users)
            if number:
                if not ID.fullmatch(number):
                    trouble = f"{number[:40]!r} is no id of Salesforce"
                state = states.get(number[:_SHORT_ID])
            elif kind == "contact" and not trouble:
                email = address(change.fields.get("email"))
                found = people.get(email, [])
                if not email:
                    trouble = "neither an id nor an email says which contact it is"
                elif len(found) > 1:
                    trouble = (
                        f"{len(found)} contacts have this email: {', '.join(sorted(s.id for s in found)[:5])}"
                    )
                elif found:
                    (state,) = found
                    number = state.id
            if trouble:
                results[index] = Pushed(change.key, status, number, reason=trouble)
            elif number and (state is None or state.is_deleted):
                # of one that was merged the other's id is told
                merged = state.merged_into if state else ""
                reason = (
                    f"was merged into {merged}" if merged else "is deleted" if state else "does not exist"
                )
                results[index] = Pushed(change.key, "gone", merged or number, reason=f"{number} {reason}")
            elif state is not None:
                if state.id in taken:
                    later.append((index, change))
                    continue
                taken.add(state.id)
                known = change.known_updated_at
                if known is not None and state.stamp > whole(known) and state.id not in written:
                    results[index] = Pushed(
                        change.key,
                        "conflict",
                        state.id,
                        state.stamp,
                        "changed in Salesforce since it was read",
                    )
                elif not record:
                    results[index] = Pushed(change.key, "written", state.id, state.stamp)
                else:
                    updates.append(_Write(index, change, {"Id": state.id, **record}))
            else:
                made.append(_Write(index, change, record))
        self._complete(kind, made)
        for writes, path in ((updates, ""), (made, f"/{sobject}/{_KEY_FIELD}")):
            if len(writes) > BULK_FROM:
                self._write_in_bulk(sobject, writes, _KEY_FIELD if path else "Id", results)
            else:
                self._write(sobject, writes, path, results)
        written.update(
            results[write.index].external_id
            for write in (*updates, *made)
            if results[write.index].status in ("written", "created")
        )
        return later

    def _record(self, kind: Kind, change: Change) -> tuple[dict[str, Any], str]:
        """The change in Salesforce's words, and what it has no words for."""
        record: dict[str, Any] = {}
        for name, value in change.fields.items():
            column = self._api_name(kind, name)
            if column == "":
                continue
            if not _is_writable(column):
                return {}, f"Salesforce has no field to write {name} to"
            value = value.strip() if column == "Email" and isinstance(value, str) else value
            record[column] = None if value == "" else value
        if kind == "task":
            if (due := record.get("ActivityDate")) is not None and "due_at" in change.fields:
                try:
                    record["ActivityDate"] = datetime.fromisoformat(str(due)).date().isoformat()
                except ValueError:
                    return {}, f"due_at {str(due)[:40]!r} is no time"
            if "is_done" in change.fields:
                record["Status"] = "Completed" if change.fields["is_done"] is True else "Not Started"
                if not change.external_id and record["Status"] != "Completed":
                    # a task that is made again must not be opened again
                    del record["Status"]
        return record, ""

    def _complete(self, kind: Kind, made: list[_Write]) -> None:
        """Give records that may be made their key, and the name that Salesforce wants."""
        if kind == "task":
            for write in made:
                write.record[_KEY_FIELD] = digest(write.change.key)
            return
        missing = made
        keys = {id(write): digest(address(write.change.fields.get("email"))) for write in made}
        while missing:
            # who has the key of an address, but another address now, is somebody else
            held: dict[str, str] = {}
            for group in groups([keys[id(write)] for write in missing]):
                soql = select(["Id", _KEY_FIELD], "Contact", f"WHERE {_KEY_FIELD} IN ({group})")
                for record in self._found(soql, what="look up keys"):
                    held[str(record.get(_KEY_FIELD))] = str(record.get("Id"))
            missing = [write for write in missing if keys[id(write)] in held]
            for write in missing:
                key = keys[id(write)]
                keys[id(write)] = digest(f"{key}\0{held[key]}")
        for write in made:
            write.record[_KEY_FIELD] = keys[id(write)]
            if not write.record.get("LastName"):
                write.record["LastName"] = self._settings.salesforce_last_name

    def _api_name(self, kind: Kind, name: str) -> str | None:
        """Salesforce's name of a field of ours; None if it has none."""
        if (mapped := self._mapped[kind].get(name)) is not None:
            return mapped
        known = _CONTACT if kind == "contact" else _TASK
        if name in known:
            return known[name]
        if name in _UNMAPPED:
            return None
        if _OUR_NAME.fullmatch(name):
            return api_name(name)
        return name if _API_NAME.fullmatch(name) else None

    def _states(self, sobject: str, ids: Iterable[str]) -> dict[str, _State]:
        """What records are like now, deleted ones too, by the part of their ids that tells them apart."""
        columns = ["Id", "SystemModstamp", "IsDeleted", *(["MasterRecordId"] if sobject == "Contact" else [])]
        states: dict[str, _State] = {}
        for group in groups(sorted(ids)):
            soql = select(columns, sobject, f"WHERE Id IN ({group})")
            for record in self._found(soql, what=f"look at {sobject}", with_deleted=True):
                state = self._state(record)
                states[state.id[:_SHORT_ID]] = state
        return states

    def _people(self, emails: Iterable[Any]) -> dict[str, list[_State]]:
        """Contacts by address."""
        people: dict[str, dict[str, _State]] = {}
        wanted = dict.fromkeys(found for email in emails if (found := address(email)))
        for group in groups(list(wanted)):
            soql = select(["Id", "SystemModstamp", "Email"], "Contact", f"WHERE Email IN ({group})")
            for record in self._found(soql, what="look up emails"):
                state = self._state(record)
                people.setdefault(address(record.get("Email")), {})[state.id] = state
        return {email: list(found.values()) for email, found in people.items()}

    def _users(self, owners: Iterable[Any]) -> dict[str, set[str]]:
        """Ids of active users by their user name, address and name."""
        users: dict[str, set[str]] = {}
        wanted = [
            owner for owner in dict.fromkeys(owners) if isinstance(owner, str) and not _USER.fullmatch(owner)
        ]
        for start in range(0, len(wanted), 50):
            for group in groups([owner.strip() for owner in wanted[start : start + 50] if owner.strip()]):
                where = " OR ".join(f"{name} IN ({group})" for name in _USER_NAMES)
                soql = select(["Id", *_USER_NAMES], "User", f"WHERE IsActive = true AND ({where})")
                for record in self._found(soql, what="look up users"):
                    for name in _USER_NAMES:
                        users.setdefault(address(record.get(name)), set()).add(str(record.get("Id")))
        return users

    @staticmethod
    def _state(record: Mapping[str, Any]) -> _State:
        number, stamp = str(record.get("Id") or ""), utc_time(record.get("SystemModstamp"))
        if not ID.fullmatch(number) or stamp is None:
            raise CrmError("Salesforce sends a record without Id or SystemModstamp.", fix="Run again later.")
        return _State(number, stamp, record.get("IsDeleted") is True, str(record.get("MasterRecordId") or ""))

    def _write(self, sobject: str, writes: list[_Write], path: str, results: dict[int, Pushed]) -> None:
        """Write by collections; records that another transaction holds are tried again."""
        for attempt in range(_LOCK_TRIES):
            locked: list[_Write] = []
            for start in range(0, len(writes), COLLECTION):
                batch = writes[start : start + COLLECTION]
                locked += self._write_batch(sobject, batch, path, results, [_MOST_SPLITS])
            if not locked:
                return
            writes = locked
            if attempt < _LOCK_TRIES - 1:
                self._sleep(min(30.0, 2.0**attempt))

    def _write_batch(
        self, sobject: str, writes: list[_Write], path: str, results: dict[int, Pushed], splits: list[int]
    ) -> list[_Write]:
        """Write up to 200 records by one call; those that were locked."""
        records = [{"attributes": {"type": sobject}, **write.record} for write in writes]
        try:
            response = self.request(
                "PATCH",
                f"{self._data}/composite/sobjects{path}",
                what=f"write {sobject}",
                body={"allOrNone": False, "records": records},
            )
        except RefusedCallError as error:
            if error.status not in (300, 400) or error.code not in _ONE_AT_FAULT:
                raise
            return self._find_fault(sobject, writes, path, results, splits, error)
        answer = self.json(response)
        if not isinstance(answer, list) or len(answer) != len(writes):
            raise CrmUnavailableError(
                "Salesforce's answer to a batch does not say what became of each record.",
                fix="Run again later.",
            )
        locked: list[_Write] = []
        for write, said in zip(writes, answer, strict=True):
            said = said if isinstance(said, dict) else {}
            number = str(said.get("id") or write.record.get("Id") or "")
            if said.get("success") is True:
                status: PushStatus = "created" if said.get("created") is True else "written"
                results[write.index] = Pushed(write.change.key, status, number)
                continue
            errors = [entry for entry in said.get("errors") or () if isinstance(entry, dict)]
            codes = [str(entry.get("statusCode") or "") for entry in errors]
            reason = "; ".join(
                f"{code}: {entry.get('message') or ''}" for code, entry in zip(codes, errors, strict=True)
            )
            fields = [name for entry in errors for name in entry.get("fields") or ()]
            if _is_locked(codes, reason):
                locked.append(write)
            self._answer(write, results, codes, reason, fields)
        return locked

    def _answer(
        self,
        write: _Write,
        results: dict[int, Pushed],
        codes: Sequence[str],
        reason: str,
        fields: Sequence[str] = (),
    ) -> None:
        number = str(write.record.get("Id") or "")
        is_own_id = number and "INVALID_CROSS_REFERENCE_KEY" in codes and set(fields) <= {"Id", "id"}
        status: PushStatus = (
            "gone"
            if is_own_id or (number and _GONE & set(codes))
            else "invalid"
            if _INVALID & set(codes) and not _is_locked(codes, reason)
            else "failed"
        )
        results[write.index] = Pushed(
            write.change.key, status, number, reason=self._clean(reason) or "no reason given"
        )

    def _find_fault(
        self,
        sobject: str,
        writes: list[_Write],
        path: str,
        results: dict[int, Pushed],
        splits: list[int],
        error: RefusedCallError,
    ) -> list[_Write]:
        """A batch is refused as a whole: find whose value it is, and write the others."""
        if OURS.fullmatch(error.field) or _KEY_FIELD in error.message:
            # nobody's value is wrong: fields are missing that `set_up` makes
            raise error
        at_fault = [write for write in writes if error.field and error.field in write.record]
        if not at_fault and len(writes) == 1:
            at_fault = writes
        if at_fault:
            for write in at_fault:
                # a field that is missing may come yet, a value stays what it is
                self._answer(write, results, [] if error.field else ["INVALID_FIELD"], error.message)
            rest = [write for write in writes if write not in at_fault]
            return self._write_batch(sobject, rest, path, results, splits) if rest else []
        if splits[0] <= 0:
            for write in writes:
                self._answer(write, results, [], error.message)
            return []
        splits[0] -= 2
        middle = len(writes) // 2
        return [
            locked
            for half in (writes[:middle], writes[middle:])
            for locked in self._write_batch(sobject, half, path, results, splits)
        ]

    def _write_in_bulk(
        self, sobject: str, writes: list[_Write], key: str, results: dict[int, Pushed]
    ) -> None:
        """Write by jobs of Bulk API 2.0: by Id, or made by our key."""
        # a text that a job would take for an emptied field
        odd = [write for write in writes if EMPTY in write.record.values()]
        path = "" if key == "Id" else f"/{sobject}/{key}"
        self._write(sobject, odd, path, results)
        locked: list[_Write] = []
        for job in _jobs([write for write in writes if EMPTY not in write.record.values()]):
            locked += self._run_job(sobject, job, key, results)
        self._write(sobject, locked, path, results)

    def _run_job(
        self, sobject: str, writes: list[_Write], key: str, results: dict[int, Pushed]
    ) -> list[_Write]:
        body = {
            "object": sobject, "operation": "update" if key == "Id" else "upsert", "contentType": "CSV",
            "lineEnding": "LF", "columnDelimiter": "COMMA",
            **({} if key == "Id" else {"externalIdFieldName": key}),
        }  # fmt: skip
        what = f"write {sobject} in bulk"
        job = self._job_id(self.request("POST", f"{self._data}/jobs/ingest", what=what, body=body))
        path = f"{self._data}/jobs/ingest/{job}"
        try:
            self.request(
                "PUT",
                f"{path}/batches",
                what=what,
                content=_csv_of(writes).encode(),
                headers={"content-type": "text/csv"},
            )
            self.request("PATCH", path, what=what, body={"state": "UploadComplete"})
        except CrmError:
            # a job that was not closed writes nothing
            self._abort(path)
            raise
        by_key = {str(write.record[key])[: _SHORT_ID if key == "Id" else None]: write for write in writes}
        trouble = self._await_job(path)
        locked: list[_Write] = []
        for said in self._job_rows(f"{path}/successfulResults", what):
            if write := by_key.pop(_row_key(said, key), None):
                is_new = key != "Id" and said.get("sf__Created") == "true"
                results[write.index] = Pushed(
                    write.change.key,
                    "created" if is_new else "written",
                    said.get("sf__Id") or str(write.record.get("Id")),
                )
        for said in self._job_rows(f"{path}/failedResults", what):
            if write := by_key.pop(_row_key(said, key), None):
                # CODE:words:fields --
                reason = said.get("sf__Error") or ""
                code, _, rest = reason.partition(":")
                if _is_locked([code], reason):
                    locked.append(write)
                names = rest.rpartition(":")[2].removesuffix("--").replace(",", " ").split()
                self._answer(write, results, [code], reason, names)
        for write in by_key.values():
            self._answer(
                write, results, [], f"the job {job} did not come to it{f': {trouble}' if trouble else ''}"
            )
        return locked

    def _abort(self, path: str) -> None:
        try:
            self.request("PATCH", path, what="abort a job", body={"state": "Aborted"})
        except CrmError as error:
            logger.info("a job of Salesforce could not be aborted: %s", error.message)

    def _job_rows(self, path: str, what: str) -> Iterator[dict[str, str]]:
        locator, columns = "", tuple[str, ...]()
        while True:
            response = self.request(
                "GET",
                path,
                what=what,
                params={"locator": locator} if locator else None,
                headers={"accept": "text/csv"},
            )
            for record in csv_records(response.content, columns):
                columns = columns or tuple(record)
                yield record
            following = response.headers.get("sforce-locator", "")
            if following in ("", "null", locator):
                return
            locator = following

    # custom fields

    def erase(self, kind: Kind, ids: Sequence[str]) -> list[Removed]:
        """See `Connector.erase`. Records go to the recycle bin, which Salesforce empties by itself."""
        require(self, erase=kind)
        wanted = list(dict.fromkeys(ids))
        results: dict[str, Removed] = {}
        due: list[str] = []
        states = self._states(_OBJECTS[kind], [number for number in wanted if ID.fullmatch(number)])
        shorts = {number[:_SHORT_ID] for number in wanted}
        for number in wanted:
            state = states.get(number[:_SHORT_ID])
            if state is not None and not state.is_deleted:
                due.append(number)
            elif state is None or not state.merged_into or state.merged_into[:_SHORT_ID] in shorts:
                results[number] = Removed(number, "gone")
            else:
                reason = f"it was merged into {state.merged_into}: see whether that is the same person"
                results[number] = Removed(number, "refused", reason)
        for attempt in range(_LOCK_TRIES):
            for start in range(0, len(due), COLLECTION):
                results |= self._erase_batch(due[start : start + COLLECTION])
            due = [number for number in due if results[number].status == "failed"]
            if not due:
                break
            if attempt < _LOCK_TRIES - 1:
                self._sleep(min(30.0, 2.0**attempt))
        return [results[number] for number in ids]

    def _erase_batch(self, numbers: Sequence[str]) -> dict[str, Removed]:
        """Delete up to 200 records by one call; those that others hold locked have failed."""
        answer = self.json(
            self.request(
                "DELETE",
                f"{self._data}/composite/sobjects",
                what="deletion",
                params={"ids": ",".join(numbers), "allOrNone": "false"},
            )
        )
        if not isinstance(answer, list) or len(answer) != len(numbers):
            raise CrmUnavailableError(
                "Salesforce's answer to a deletion does not say what became of each record.",
                fix="Run again later.",
            )
        results: dict[str, Removed] = {}
        for number, said in zip(numbers, answer, strict=True):
            said = said if isinstance(said, dict) else {}
            errors = [entry for entry in said.get("errors") or () if isinstance(entry, dict)]
            codes = [str(entry.get("statusCode") or "") for entry in errors]
            reason = self._clean(
                "; ".join(
                    f"{code}: {entry.get('message') or ''}" for code, entry in zip(codes, errors, strict=True)
                )
            )
            if said.get("success") is True:
                results[number] = Removed(number, "erased")
            elif (_GONE | {"INVALID_CROSS_REFERENCE_KEY"}) & set(codes):
                results[number] = Removed(number, "gone")
            else:
                status = "failed" if _is_locked(codes, reason) else "refused"
                results[number] = Removed(number, status, reason or "no reason given")
        return results

    def set_up(self, fields: Sequence[CustomField]) -> SetUp:
        """Make fields on Contact, and an external id on Contact and Task; show them all to our user.

        Fields made by the API are hidden from everyone, so a permission set shows them to whoever we are here. It
        takes the rights `Customize Application` and `Assign Permission Sets`.

        Raises:
            CrmRefusedError: see `Connector.set_up`.
        """
        wanted = [
            *fields,
            CustomField(KEY, "Mailhouse key", "text", "Made by Mailhouse; tells its records again."),
        ]
        for one in wanted:
            if not _OUR_NAME.fullmatch(one.name) or len(api_name(one.name)) > 43 or "__" in one.name:
                raise CrmRefusedError(
                    f"{one.name!r} is no name of a custom field: 40 small letters, digits and single _ at most.",
                    fix="Rename it in content/crm.yaml.",
                )
        on_contact, on_task = self._described("Contact"), self._described("Task")
        made, kept = list[str](), list[str]()
        for one in wanted:
            if (there := on_contact.get(api_name(one.name))) is None:
                continue
            if there["type"] not in _TYPES[one.type][1] or (
                one.name == KEY and there.get("externalId") is not True
            ):
                raise CrmRefusedError(
                    f"Salesforce's field Contact.{api_name(one.name)} is a {there['type']}, not a {one.type}"
                    f"{' that is an external id' if one.name == KEY else ''}.",
                    fix="Delete or rename it in Salesforce, then run `mailhouse crm setup` again.",
                )
        for one in wanted:
            is_there = api_name(one.name) in on_contact or not self._make("Contact", one)
            (kept if is_there else made).append(one.name)
        if _KEY_FIELD not in on_task:
            # custom fields of tasks and events are those of activities
            self._make("Activity", wanted[-1])
        self._show(["Contact." + api_name(one.name) for one in wanted] + [f"Task.{_KEY_FIELD}"])
        return SetUp(tuple(made), tuple(kept))

    def _described(self, sobject: str) -> dict[str, dict[str, Any]]:
        answer = self.json(
            self.request("GET", f"{self._data}/sobjects/{sobject}/describe", what=f"describe {sobject}")
        )
        found = answer.get("fields") if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise CrmError(f"Salesforce's description of {sobject} has no fields.", fix="Run again later.")
        return {
            str(one.get("name")): one
            for one in found
            if isinstance(one, dict) and isinstance(one.get("type"), str)
        }

    def _make(self, sobject: str, one: CustomField) -> bool:
        """Make a field; whether it was not there, hidden."""
        metadata = {
            **_TYPES[one.type][0],
            "label": one.label[:40],
            "description": one.description[:1000],
            "inlineHelpText": one.description[:255],
            "required": False,
        }
        if one.name == KEY:
            # fields of activities cannot be unique
            metadata |= {
                "length": 64,
                "externalId": True,
                **({"unique": True} if sobject == "Contact" else {}),
            }
        if one.type == "choice":
            values = [{"fullName": option, "label": option, "default": False} for option in one.options]
            # open, so that a new option needs nobody's hand
            metadata["valueSet"] = {
                "restricted": False,
                "valueSetDefinition": {"sorted": False, "value": values},
            }
        try:
            self.request(
                "POST",
                f"{self._data}/tooling/sobjects/CustomField",
                what="make a field",
                body={"FullName": f"{sobject}.{api_name(one.name)}", "Metadata": metadata},
            )
        except RefusedCallError as error:
            if error.code not in ("DUPLICATE_DEVELOPER_NAME", "DUPLICATE_VALUE"):
                raise
            return False
        return True

    def _show(self, names: Sequence[str]) -> None:
        """Give our user the right to fields, by a permission set."""
        name = self._settings.salesforce_permission_set
        sets = list(
            self._found(select(["Id"], "PermissionSet", f"WHERE Name = '{name}'"), what="permissions")
        )
        if sets:
            number = str(sets[0].get("Id"))
        else:
            record = {
                "Name": name,
                "Label": name,
                "Description": "Made by Mailhouse: shows its fields to its user.",
            }
            (number,) = self._insert("PermissionSet", [record])
        soql = select(
            ["Field"], "FieldPermissions", f"WHERE ParentId = '{number}' AND PermissionsEdit = true"
        )
        shown = {str(record.get("Field")) for record in self._found(soql, what="permissions")}
        self._insert(
            "FieldPermissions",
            [
                {
                    "ParentId": number, "SobjectType": name.partition(".")[0], "Field": name,
                    "PermissionsRead": True, "PermissionsEdit": True,
                }
                for name in names
                if name not in shown
            ],
        )  # fmt: skip
        user = self._session.user_id if self._session else ""
        if not ID.fullmatch(user):
            return
        where = f"WHERE PermissionSetId = '{number}' AND AssigneeId = '{user}'"
        soql = select(["Id"], "PermissionSetAssignment", where)
        if not list(self._found(soql, what="permissions")):
            self._insert("PermissionSetAssignment", [{"PermissionSetId": number, "AssigneeId": user}])

    def _insert(self, sobject: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """Make records of which Salesforce itself allows no second; their ids.

        Raises:
            CrmRefusedError: one could not be made.
        """
        made: list[str] = []
        for start in range(0, len(records), COLLECTION):
            body = {
                "allOrNone": False,
                "records": [
                    {"attributes": {"type": sobject}, **one} for one in records[start : start + COLLECTION]
                ],
            }
            answer = self.json(
                self.request("POST", f"{self._data}/composite/sobjects", what=f"make {sobject}", body=body)
            )
            for said in answer if isinstance(answer, list) else []:
                errors = said.get("errors") or []
                if said.get("success") is not True and errors[0].get("statusCode") != "DUPLICATE_VALUE":
                    raise CrmRefusedError(
                        f"Salesforce does not let us make a {sobject}: "
                        f"{self._clean(str(errors[0].get('statusCode')) + ': ' + str(errors[0].get('message')))}.",
                        fix="Run `mailhouse crm setup` as a user with `Assign Permission Sets`, or let an administrator"
                        " show our fields to our user.",
                    )
                made.append(str(said.get("id") or ""))
        return made


@dataclass(frozen=True, slots=True)
class _State:
    """What a record is like now."""

    id: str
    stamp: datetime
    is_deleted: bool = False
    merged_into: str = ""


@dataclass(slots=True, eq=False)
class _Write:
    """A record as it goes out."""

    index: int
    change: Change
    record: dict[str, Any]


def _is_writable(column: str | None) -> TypeGuard[str]:
    return column is not None and column not in _READ_ONLY and "." not in column


def _mapped(settings: CrmSettings) -> dict[Kind, dict[str, str]]:
    """Fields of the settings by their names: ours if given, else Salesforce's."""
    mapped: dict[Kind, dict[str, str]] = {}
    for kind, sobject in _OBJECTS.items():
        entries = settings.salesforce_properties.get(sobject, ())  # pyright: ignore[reportArgumentType, reportCallIssue]
        mapped[kind] = {}
        for entry in entries:
            ours, _, column = entry.rpartition("=")
            mapped[kind][ours or our_name(column)] = column
    return mapped


def _aged(rows: list[Row], asked_at: datetime | None) -> list[Row]:
    """Rows, with those that may still change under their stamp a moment before it."""
    if asked_at is None:
        return rows
    since = asked_at - _FRESH
    return [
        row._replace(updated_at=row.updated_at - _MOMENT) if row.updated_at >= since else row for row in rows
    ]


def _assign(
    record: dict[str, Any],
    change: Change,
    people: Mapping[str, list[_State]],
    users: Mapping[str, set[str]],
) -> tuple[PushStatus, str]:
    """Give a task its contact and its owner; why that cannot be, '' if it can."""
    email = address(change.fields.get("email"))
    if email and not record.get("WhoId"):
        found = sorted(state.id for state in people.get(email, ()))
        if not found:
            # it may be made yet
            return "failed", f"no contact of Salesforce has the email {email}"
        # of several any will do, but always the same
        record["WhoId"] = found[0]
    owner = record.get("OwnerId")
    if owner is None:
        # nobody's task is its maker's
        record.pop("OwnerId", None)
    elif not _USER.fullmatch(str(owner)):
        ids = users.get(address(owner), set())
        if len(ids) != 1:
            return "invalid", f"{len(ids) or 'no'} active users of Salesforce are called {str(owner)[:80]}"
        (record["OwnerId"],) = ids
    return "invalid", ""


def _newest(rows: Iterable[Row], before: datetime | None) -> datetime | None:
    stamps = [row.updated_at for row in rows]
    if before is not None:
        stamps.append(before)
    return max(stamps) if stamps else None


def _firsts(
    kind: Kind, pending: list[tuple[int, Change]]
) -> tuple[list[tuple[int, Change]], list[tuple[int, Change]]]:
    """Changes that are the first of their record, and the others."""
    seen: set[str] = set()
    now, later = list[tuple[int, Change]](), list[tuple[int, Change]]()
    for index, change in pending:
        who = change.external_id[:_SHORT_ID]
        if not who:
            email = address(change.fields.get("email")) if kind == "contact" else ""
            who = f"@{email}" if email else f"#{change.key}" if kind == "task" else f"#{index}"
        (later if who in seen else now).append((index, change))
        seen.add(who)
    return now, later


def _jobs(writes: list[_Write]) -> Iterator[list[_Write]]:
    """Records in as many jobs as their size needs."""
    job, size = list[_Write](), 0
    for write in writes:
        length = sum(len(str(value)) + 3 for value in write.record.values())
        if job and (len(job) >= _JOB_ROWS or size + length > _JOB_CHARACTERS):
            yield job
            job, size = [], 0
        job.append(write)
        size += length
    if job:
        yield job


def _csv_of(writes: list[_Write]) -> str:
    columns = list(dict.fromkeys(name for write in writes for name in write.record))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(write.record, name) for name in columns] for write in writes)
    return out.getvalue()


def _cell(record: Mapping[str, Scalar], name: str) -> str:
    if name not in record:
        return ""
    value = record[name]
    return EMPTY if value is None else text_of(value)


def _row_key(said: Mapping[str, str], key: str) -> str:
    return (said.get("Id") or said.get("sf__Id") or "")[:_SHORT_ID] if key == "Id" else said.get(key, "")


def _is_locked(codes: Sequence[str], reason: str) -> bool:
    # a trigger that runs into a lock tells it in its own error
    return bool(_LOCKED & set(codes)) or "UNABLE_TO_LOCK_ROW" in reason


def _errors(response: httpx.Response) -> list[tuple[str, str]]:
    """Codes and messages of a refusal: a list of objects, or one."""
    try:
        said = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return []
    entries = said if isinstance(said, list) else [said]
    return [
        (str(entry.get("errorCode") or entry.get("error") or ""), str(entry.get("message") or ""))
        for entry in entries
        if isinstance(entry, dict)
    ]


def _server_time(response: httpx.Response) -> datetime | None:
    """Salesforce's time when it was asked: an answer is dated when it is ready, which may be a while later."""
    try:
        dated = parsedate_to_datetime(response.headers.get("date", "")).astimezone(UTC)
    except (ValueError, TypeError):
        return None
    try:
        return dated - response.elapsed
    except RuntimeError:
        # nobody measured it: the answer did not come over a wire
        return dated
