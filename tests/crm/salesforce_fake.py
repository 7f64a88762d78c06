"""A Salesforce of our own: organisation, OAuth, SOQL, collections, Bulk API 2.0 and Tooling, with the vendor's traps.

It is an `httpx.MockTransport` handler: `Salesforce(settings, transport=httpx.MockTransport(fake))`.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs

import httpx

LOGIN = "https://login.example"
INSTANCE = "https://acme.example"
CLIENT_ID = "3MVG9.consumer.key"
CLIENT_SECRET = "client-secret-of-the-test"
REFRESH_TOKEN = "refresh-token-of-the-test"
USER_ID = "005000000000001AAA"
PREFIXES = {
    "Contact": "003", "Account": "001", "Opportunity": "006", "Task": "00T", "User": "005", "PermissionSet": "0PS",
    "FieldPermissions": "01k", "PermissionSetAssignment": "0Pa",
}  # fmt: skip
_SYSTEM = {"Id": "id", "SystemModstamp": "datetime", "IsDeleted": "boolean", "CreatedDate": "datetime"}
_FIELDS: dict[str, dict[str, str]] = {
    "Contact": {
        "MasterRecordId": "reference", "Email": "email", "FirstName": "string", "LastName": "string",
        "MailingCountry": "string", "MailingCity": "string", "Phone": "phone", "MobilePhone": "phone",
        "AccountId": "reference", "LeadSource": "picklist", "HasOptedOutOfEmail": "boolean",
    },
    "Account": {
        "MasterRecordId": "reference", "Name": "string", "Website": "url", "Industry": "picklist",
        "BillingCountry": "string", "BillingCity": "string",
    },
    "Opportunity": {
        "Name": "string", "StageName": "picklist", "IsClosed": "boolean", "IsWon": "boolean", "Amount": "currency",
        "CloseDate": "date", "AccountId": "reference", "ContactId": "reference",
    },
    "Task": {
        "Subject": "string", "Status": "picklist", "IsClosed": "boolean", "Priority": "picklist",
        "Description": "textarea", "Type": "picklist",
        "ActivityDate": "date", "WhoId": "reference", "WhatId": "reference", "OwnerId": "reference",
    },
    "User": {"Username": "string", "Email": "email", "Name": "string", "IsActive": "boolean"},
    "PermissionSet": {"Name": "string", "Label": "string", "Description": "string"},
    "FieldPermissions": {
        "ParentId": "reference", "SobjectType": "string", "SObjectType": "string", "Field": "string",
        "PermissionsRead": "boolean", "PermissionsEdit": "boolean",
    },
    "PermissionSetAssignment": {"PermissionSetId": "reference", "AssigneeId": "reference"},
}  # fmt: skip
_TOOLING_TYPES = {
    "Text": "string", "Number": "double", "DateTime": "datetime", "Checkbox": "boolean", "Picklist": "picklist",
    "LongTextArea": "textarea",
}  # fmt: skip
_TOKEN = re.compile(
    r"\s*(>=|<=|!=|[()=<>,]|'(?:\\.|[^'\\])*'|\d{4}-\d\d-\d\dT[\d:.]+Z|\d+|[A-Za-z_][A-Za-z0-9_.]*(?:\(\))?)"
)
_SOQL = re.compile(
    r"SELECT (?P<columns>.+?) FROM (?P<object>\w+)(?: WHERE (?P<where>.*?))?(?: ORDER BY (?P<order>.*?))?"
    r"(?: LIMIT (?P<limit>\d+))?",
    re.DOTALL,
)


@dataclass
class Field:
    """One field of an object; what is not visible is as if it were not there."""

    type: str
    is_external_id: bool = False
    is_visible: bool = True


@dataclass
class Record:
    """One record. `stamp` is when its last transaction began, `seen_at` when that ended and others see it."""

    id: str
    stamp: datetime
    fields: dict[str, Any]
    seen_at: datetime
    is_deleted: bool = False


@dataclass
class Job:
    """A Bulk job."""

    id: str
    body: dict[str, Any]
    state: str
    polls: int
    rows: list[list[str]] = field(default_factory=list)
    upload: bytes = b""
    good: list[dict[str, str]] = field(default_factory=list)
    bad: list[dict[str, str]] = field(default_factory=list)
    trouble: str = ""


@dataclass
class FakeSalesforce:
    """State and wire of the fake.

    Attributes:
        now: its clock; each call takes a quarter of a second, and stamps are whole seconds.
        page: records of a query's page at most.
        used, most: calls of the last 24 hours, and how many there may be.
        failures: answers to give instead of working, each used once; None works.
        after: as `failures`, but the work is done first.
        before: called with each request before it is answered; may change records.
        locked: how often each record still says that it is locked.
        held: records that cannot be deleted, since others need them.
        polls: how often a job says that it is not done yet.
        has_headers: parts of a job's result all begin with the columns' names, not only the first.
        calls: path and query of each call; `by_path` counts them.
    """

    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    page: int = 2_000
    used: int = 0
    most: int = 100_000
    failures: deque[httpx.Response | Exception | None] = field(default_factory=deque)
    after: deque[httpx.Response | Exception | None] = field(default_factory=deque)
    before: Callable[[httpx.Request], None] = lambda request: None
    locked: Counter[str] = field(default_factory=Counter)
    held: set[str] = field(default_factory=set)
    polls: int = 1
    has_headers: bool = True
    records: dict[str, dict[str, Record]] = field(default_factory=lambda: {name: {} for name in PREFIXES})
    fields: dict[str, dict[str, Field]] = field(
        default_factory=lambda: {
            name: {column: Field(type_) for column, type_ in {**_SYSTEM, **columns}.items()}
            for name, columns in _FIELDS.items()
        }
    )
    calls: list[httpx.Request] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    logins: list[dict[str, str]] = field(default_factory=list)
    jobs: dict[str, Job] = field(default_factory=dict)
    locators: dict[str, tuple[str, list[str], list[str]]] = field(default_factory=dict)
    check: Callable[[httpx.Request], None] = lambda request: None
    # what a login answers beside the token
    login_answer: dict[str, Any] = field(default_factory=dict)
    _numbers: int = 0

    # what a test does to it

    def new_id(self, sobject: str) -> str:
        self._numbers += 1
        return f"{PREFIXES.get(sobject, '750')}{self._numbers:012d}AAA"

    def put(
        self,
        sobject: str = "Contact",
        *,
        id: str = "",  # noqa: A002
        stamp: datetime | None = None,
        seen_after: float = 0,
        **fields: Any,
    ) -> str:
        """Make or change a record, as somebody in the organisation does."""
        number = id or self.new_id(sobject)
        stamp = (stamp or self.now).replace(microsecond=0)
        there = self.records[sobject].get(number)
        values = {**(there.fields if there else {"CreatedDate": _stamp(stamp)}), **fields}
        values = {name: value for name, value in values.items() if value is not None}
        seen_at = stamp + timedelta(seconds=seen_after)
        self.records[sobject][number] = Record(number, stamp, values, seen_at)
        return number

    def delete(self, number: str, *, merged_into: str = "", sobject: str = "Contact") -> None:
        """Put a record into the recycle bin, perhaps because another has taken it in."""
        record = self.records[sobject][number]
        record.is_deleted, record.stamp = True, self.now.replace(microsecond=0)
        if merged_into:
            record.fields["MasterRecordId"] = merged_into
            self.records[sobject][merged_into].stamp = record.stamp

    def custom(self, sobject: str, name: str, type_: str = "string", *, is_external_id: bool = False) -> None:
        """Make a field that everyone sees."""
        self.fields[sobject][name] = Field(type_, is_external_id)

    def expire(self) -> None:
        """End all sessions."""
        self.tokens.clear()

    def count(self, part: str, method: str = "") -> int:
        """Calls whose path holds a text."""
        return sum(part in call.url.path and method in ("", call.method) for call in self.calls)

    def value(self, number: str, name: str, sobject: str = "Contact") -> Any:
        return self.records[sobject][number].fields.get(name)

    # the wire

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.calls.append(request)
        self.now += timedelta(milliseconds=250)
        self.before(request)
        self.check(request)
        if self.failures and (failure := self.failures.popleft()) is not None:
            return self._raise(failure)
        is_login = request.url.path == "/services/oauth2/token"
        answer = self._login(request) if is_login else self._api(request)
        if self.after and (failure := self.after.popleft()) is not None:
            return self._raise(failure)
        return answer

    def _raise(self, failure: httpx.Response | Exception) -> httpx.Response:
        if isinstance(failure, Exception):
            raise failure
        failure.headers.setdefault("date", format_datetime(self.now, usegmt=True))
        return failure

    def _login(self, request: httpx.Request) -> httpx.Response:
        form = {name: values[0] for name, values in parse_qs(request.content.decode()).items()}
        self.logins.append(form)
        grant = form.get("grant_type", "")
        good = {
            "client_credentials": form.get("client_id") == CLIENT_ID
            and form.get("client_secret") == CLIENT_SECRET,
            "refresh_token": form.get("client_id") == CLIENT_ID
            and form.get("refresh_token") == REFRESH_TOKEN,
            "urn:ietf:params:oauth:grant-type:jwt-bearer": "assertion" in form,
        }.get(grant)
        if good is None:
            return httpx.Response(400, json={"error": "unsupported_grant_type", "error_description": grant})
        if not good:
            # some proxies repeat what they were sent
            said = f"no such {form.get('client_secret', '')}{form.get('refresh_token', '')}"
            return httpx.Response(400, json={"error": "invalid_grant", "error_description": said})
        token = f"00D000000000001!token-{len(self.logins)}"
        self.tokens.add(token)
        return httpx.Response(
            200,
            json={
                "access_token": token, "instance_url": INSTANCE, "token_type": "Bearer",
                "id": f"https://login.salesforce.com/id/00D000000000001EAA/{USER_ID}", **self.login_answer,
            },
        )  # fmt: skip

    def _api(self, request: httpx.Request) -> httpx.Response:
        self.used += 1
        answer = self._answer(request)
        answer.headers["sforce-limit-info"] = f"api-usage={self.used}/{self.most}"
        answer.headers["date"] = format_datetime(self.now, usegmt=True)
        return answer

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            said = "Session expired or invalid: " + request.headers.get("authorization", "")
            return error(401, "INVALID_SESSION_ID", said)
        if str(request.url).partition("/services")[0] != INSTANCE:
            return error(404, "NOT_FOUND", "another instance")
        if self.used > self.most:
            return error(403, "REQUEST_LIMIT_EXCEEDED", "TotalRequests Limit exceeded.")
        if len(str(request.url)) > 16_384:
            return error(414, "URI_TOO_LONG", "the address is too long")
        path = request.url.path.removeprefix("/services/data/v63.0")
        query = dict(request.url.params)
        match request.method, path.split("/")[1:]:
            case "GET", ["query" | "queryAll" as verb]:
                return self._query(query["q"], with_deleted=verb == "queryAll")
            case "GET", ["query" | "queryAll", locator]:
                return self._more(locator)
            case "PATCH", ["composite", "sobjects"]:
                return self._collection(json.loads(request.content), None)
            case "POST", ["composite", "sobjects"]:
                return self._collection(json.loads(request.content), None, is_insert=True)
            case "DELETE", ["composite", "sobjects"]:
                return self._delete(query["ids"].split(","))
            case "PATCH", ["composite", "sobjects", sobject, name]:
                return self._collection(json.loads(request.content), name, sobject=sobject)
            case "POST", ["jobs", "query"]:
                return self._start_query(json.loads(request.content))
            case "GET", ["jobs", "query" | "ingest", number]:
                return self._job(number)
            case "GET", ["jobs", "query", number, "results"]:
                return self._results(number, query)
            case "POST", ["jobs", "ingest"]:
                job = Job(self.new_id("job"), json.loads(request.content), "Open", self.polls)
                self.jobs[job.id] = job
                return httpx.Response(200, json={"id": job.id, "state": job.state})
            case "PUT", ["jobs", "ingest", number, "batches"]:
                self.jobs[number].upload = request.content
                return httpx.Response(201)
            case "PATCH", ["jobs", "ingest", number]:
                return self._close(self.jobs[number], json.loads(request.content)["state"])
            case "GET", ["jobs", "ingest", number, "successfulResults" | "failedResults" as which]:
                job = self.jobs[number]
                return _csv(job.good if which == "successfulResults" else job.bad)
            case "GET", ["sobjects", sobject, "describe"]:
                return self._describe(sobject)
            case "POST", ["tooling", "sobjects", "CustomField"]:
                return self._make_field(json.loads(request.content))
            case "GET", ["limits"]:
                daily = {"Max": self.most, "Remaining": self.most - self.used}
                return httpx.Response(200, json={"DailyApiRequests": daily})
        return error(404, "NOT_FOUND", f"The requested resource does not exist: {request.method} {path}")

    # queries

    def _visible(self, sobject: str, names: Iterable[str]) -> httpx.Response | None:
        known = {name.lower() for name, one in self.fields[sobject].items() if one.is_visible}
        for name in names:
            if name.partition(".")[0].lower() not in known and "." not in name:
                said = f"\nSELECT {name}\nERROR at Row:1:Column:8\nNo such column '{name}' on entity '{sobject}'. If"
                return error(400, "INVALID_FIELD", said)
        return None

    def _query(self, soql: str, *, with_deleted: bool) -> httpx.Response:
        parts = _SOQL.fullmatch(soql)
        if parts is None:
            return error(400, "MALFORMED_QUERY", soql[:200])
        sobject, columns = parts["object"], parts["columns"].replace(" ", "").split(",")
        where = _Where(parts["where"]) if parts["where"] else None
        if columns != ["COUNT()"] and (
            wrong := self._visible(sobject, [*columns, *(where.names if where else ())])
        ):
            return wrong
        found = [
            record
            for record in self.records[sobject].values()
            if record.seen_at <= self.now
            and (with_deleted or not record.is_deleted)
            and (where is None or where.holds(lambda name, one=record: self._get(one, name)))
        ]
        if columns == ["COUNT()"]:
            return httpx.Response(200, json={"totalSize": len(found), "done": True, "records": []})
        if parts["order"] == "SystemModstamp, Id":
            found.sort(key=lambda record: (record.stamp, record.id))
        else:
            assert parts["order"] is None, parts["order"]
            found.sort(key=lambda record: record.id, reverse=True)
        if parts["limit"]:
            found = found[: int(parts["limit"])]
        return self._paged(sobject, columns, [record.id for record in found], len(found))

    def _paged(self, sobject: str, columns: list[str], ids: list[str], total: int) -> httpx.Response:
        # rows are read when their page is asked for, not when the query was
        now, later = ids[: self.page], ids[self.page :]
        answer: dict[str, Any] = {
            "totalSize": total,
            "done": not later,
            "records": [self._shown(sobject, self.records[sobject][number], columns) for number in now],
        }
        if later:
            locator = f"01g{len(self.locators):012d}AAA-{self.page}"
            self.locators[locator] = (sobject, columns, later)
            answer["nextRecordsUrl"] = f"/services/data/v63.0/query/{locator}"
        return httpx.Response(200, json=answer)

    def _more(self, locator: str) -> httpx.Response:
        if locator not in self.locators:
            return error(400, "INVALID_QUERY_LOCATOR", "invalid query locator")
        sobject, columns, ids = self.locators[locator]
        return self._paged(sobject, columns, ids, len(ids))

    def _get(self, record: Record, name: str) -> Any:
        match name:
            case "Id":
                return record.id
            case "SystemModstamp":
                return record.stamp
            case "IsDeleted":
                return record.is_deleted
        return record.fields.get(name)

    def _shown(self, sobject: str, record: Record, columns: list[str]) -> dict[str, Any]:
        shown: dict[str, Any] = {"attributes": {"type": sobject, "url": f"/services/data/v63.0/{record.id}"}}
        for column in columns:
            if "." in column:
                parent, _, name = column.partition(".")
                of = self.records["Account"].get(record.fields.get(f"{parent}Id", ""))
                shown[parent] = {"attributes": {}, name: of.fields.get(name)} if of else None
                continue
            value = self._get(record, column)
            shown[column] = _stamp(value) if isinstance(value, datetime) else value
            if value is None and self.fields[sobject][column].type == "boolean":
                shown[column] = False
        return shown

    # writing

    def _collection(
        self, body: dict[str, Any], key: str | None, *, sobject: str = "", is_insert: bool = False
    ) -> httpx.Response:
        records = body["records"]
        if len(records) > 200:
            return error(
                400, "EXCEEDED_ID_LIMIT", "record limit reached. cannot submit more than 200 records"
            )
        ids = [record["Id"] for record in records if "Id" in record]
        if len(ids) != len(set(ids)):
            return error(400, "DUPLICATE_VALUE", "duplicate id specified")
        for record in records:
            type_ = record["attributes"]["type"]
            for name, value in record.items():
                if name in ("attributes", "Id"):
                    continue
                one = self.fields[type_].get(name)
                if one is None or not one.is_visible:
                    return error(400, "INVALID_FIELD", f"No such column '{name}' on sobject of type {type_}")
                if one.type == "double" and isinstance(value, str):
                    said = f"Cannot deserialize instance of double from VALUE_STRING value {value}"
                    return error(400, "JSON_PARSER_ERROR", said)
        if key is not None and not self.fields[sobject][key].is_external_id:
            return error(400, "INVALID_FIELD", f"{key} is not an External ID")
        answers = [
            self._write(
                record["attributes"]["type"],
                {n: v for n, v in record.items() if n != "attributes"},
                key,
                is_insert,
            )
            for record in records
        ]
        return httpx.Response(200, json=answers)

    def _write(
        self, sobject: str, record: dict[str, Any], key: str | None, is_insert: bool = False
    ) -> dict[str, Any]:
        def bad(code: str, message: str, *names: str) -> dict[str, Any]:
            entry = {"statusCode": code, "message": message, "fields": list(names)}
            return {"success": False, "errors": [entry], **({"id": number} if number else {})}

        table, number = self.records[sobject], record.pop("Id", "")
        if key is not None:
            held = [
                one.id
                for one in table.values()
                if not one.is_deleted and str(one.fields.get(key, "")).lower() == str(record[key]).lower()
            ]
            if len(held) > 1:
                return bad(
                    "DUPLICATE_EXTERNAL_ID", f"more than one record found for external id field: {held}"
                )
            number = held[0] if held else ""
        elif not is_insert:
            if number not in table:
                return bad("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id", "Id")
            if table[number].is_deleted:
                return bad("ENTITY_IS_DELETED", "entity is deleted")
        if self.locked[number] > 0:
            self.locked[number] -= 1
            return bad("UNABLE_TO_LOCK_ROW", "unable to obtain exclusive access to this record")
        if (email := record.get("Email")) and "@" not in email:
            return bad("INVALID_EMAIL_ADDRESS", f"Email: invalid email address: {email}", "Email")
        if (name := record.get("FirstName")) and len(name) > 40:
            return bad("STRING_TOO_LONG", "First Name: data value too large (max length=40)", "FirstName")
        if (who := record.get("WhoId")) and who not in self.records["Contact"]:
            return bad("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id", "WhoId")
        if sobject == "Contact" and not number and not record.get("LastName"):
            return bad("REQUIRED_FIELD_MISSING", "Required fields are missing: [LastName]", "LastName")
        if sobject == "FieldPermissions":
            parent, _, column = record["Field"].partition(".")
            assert record["SobjectType"] == parent
            self.fields[parent][column].is_visible = True
        created = not number
        number = self.put(
            sobject,
            id=number,
            **({"Status": "Not Started"} if sobject == "Task" and created else {}) | record,
        )
        return {"id": number, "success": True, "errors": [], **({"created": created} if key else {})}

    def _delete(self, ids: list[str]) -> httpx.Response:
        if len(ids) > 200:
            return error(
                400, "EXCEEDED_ID_LIMIT", "record limit reached. cannot submit more than 200 records"
            )
        return httpx.Response(200, json=[self._deleted(number) for number in ids])

    def _deleted(self, number: str) -> dict[str, Any]:
        def bad(code: str, message: str) -> dict[str, Any]:
            return {
                "id": number,
                "success": False,
                "errors": [{"statusCode": code, "message": message, "fields": []}],
            }

        record = self.records["Contact"].get(number)
        if record is None:
            return bad("INVALID_CROSS_REFERENCE_KEY", "invalid cross reference id")
        if record.is_deleted:
            return bad("ENTITY_IS_DELETED", "entity is deleted")
        if self.locked[number] > 0:
            self.locked[number] -= 1
            return bad("UNABLE_TO_LOCK_ROW", "unable to obtain exclusive access to this record")
        if number in self.held:
            return bad("DELETE_FAILED", "it is associated with the following cases.: 00001026")
        self.delete(number)
        return {"id": number, "success": True, "errors": []}

    # Bulk API 2.0

    def _start_query(self, body: dict[str, Any]) -> httpx.Response:
        if "ORDER BY" in body["query"] or "COUNT()" in body["query"]:
            return error(400, "API_ERROR", "not in bulk")
        page, self.page = self.page, 10**9
        answer = self._query(body["query"], with_deleted=body["operation"] == "queryAll")
        self.page = page
        if answer.status_code != 200:
            return answer
        columns = body["query"].split(" ")[1].split(",")
        rows = [[_cell(_nested(record, column)) for column in columns] for record in answer.json()["records"]]
        job = Job(self.new_id("job"), body, "UploadComplete", self.polls, [columns, *rows])
        self.jobs[job.id] = job
        return httpx.Response(200, json={"id": job.id, "operation": body["operation"], "state": job.state})

    def _job(self, number: str) -> httpx.Response:
        job = self.jobs.get(number)
        if job is None:
            return error(404, "NOT_FOUND", "The requested resource does not exist")
        if job.state in ("UploadComplete", "InProgress"):
            job.state, job.polls = ("JobComplete" if job.polls <= 0 else "InProgress"), job.polls - 1
            if job.state == "JobComplete" and job.trouble:
                job.state = "Failed"
        return httpx.Response(
            200, json={"id": job.id, "state": job.state, "errorMessage": job.trouble or None}
        )

    def _results(self, number: str, query: Mapping[str, str]) -> httpx.Response:
        job = self.jobs[number]
        if job.state != "JobComplete":
            return error(400, "INVALIDJOBSTATE", "no results yet")
        columns, rows = job.rows[0], job.rows[1:]
        start = int(base64.b64decode(query["locator"])) if "locator" in query else 0
        end = start + int(query.get("maxRecords", 50_000))
        out = io.StringIO()
        writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([*([columns] if self.has_headers or not start else []), *rows[start:end]])
        locator = base64.b64encode(str(end).encode()).decode() if end < len(rows) else "null"
        headers = {"sforce-locator": locator, "sforce-numberofrecords": str(len(rows[start:end]))}
        return httpx.Response(200, content=out.getvalue().encode(), headers=headers)

    def _close(self, job: Job, state: str) -> httpx.Response:
        job.state = state
        if state == "UploadComplete":
            key = job.body.get("externalIdFieldName")
            for row in csv.DictReader(io.StringIO(job.upload.decode(), newline="")):
                # an empty cell leaves the field as it is
                record = {name: None if cell == "#N/A" else cell for name, cell in row.items() if cell}
                if "stop" in record.get("FirstName", ""):
                    break
                said = self._write(job.body["object"], record, key)
                number = str(said.get("id", ""))
                if said["success"]:
                    created = str(said.get("created", False)).lower()
                    job.good.append({"sf__Id": number, "sf__Created": created, **row})
                else:
                    (entry,) = said["errors"]
                    reason = f"{entry['statusCode']}:{entry['message']}:{','.join(entry['fields'])} --"
                    job.bad.append({"sf__Id": number, "sf__Error": reason, **row})
        return httpx.Response(200, json={"id": job.id, "state": job.state})

    # Tooling

    def _describe(self, sobject: str) -> httpx.Response:
        shown = [
            {"name": name, "type": one.type, "externalId": one.is_external_id}
            for name, one in self.fields[sobject].items()
            if one.is_visible
        ]
        return httpx.Response(200, json={"name": sobject, "fields": shown})

    def _make_field(self, body: dict[str, Any]) -> httpx.Response:
        sobject, _, name = body["FullName"].partition(".")
        metadata = body["Metadata"]
        table = self.fields["Task" if sobject == "Activity" else sobject]
        if name in table:
            return error(400, "DUPLICATE_DEVELOPER_NAME", "There is already a field named that on Contact.")
        if sobject == "Activity" and metadata.get("unique"):
            return error(400, "FIELD_INTEGRITY_EXCEPTION", "Activity fields cannot be unique")
        needed = {"Text": {"length"}, "Number": {"precision", "scale"}, "Checkbox": {"defaultValue"},
                  "Picklist": {"valueSet"}, "LongTextArea": {"length", "visibleLines"}}  # fmt: skip
        if needed.get(metadata["type"], set()) - set(metadata):
            return error(400, "FIELD_INTEGRITY_EXCEPTION", "attributes are missing")
        # made for nobody: field-level security hides it
        table[name] = Field(
            _TOOLING_TYPES[metadata["type"]], bool(metadata.get("externalId")), is_visible=False
        )
        return httpx.Response(201, json={"id": self.new_id("job"), "success": True, "errors": []})


class _Where:
    """A condition of SOQL, as far as it is used."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        position = 0
        while position < len(text.rstrip()):
            found = _TOKEN.match(text, position)
            assert found, text[position:]
            self._tokens.append(found[1])
            position = found.end()
        self.names: set[str] = set()
        self._at = 0
        self._test = self._or()
        assert self._at == len(self._tokens), self._tokens[self._at :]

    def holds(self, get: Callable[[str], Any]) -> bool:
        return self._test(get)

    def _next(self) -> str:
        self._at += 1
        return self._tokens[self._at - 1]

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _or(self) -> Callable[[Callable[[str], Any]], bool]:
        tests = [self._and()]
        while self._peek() == "OR":
            self._next()
            tests.append(self._and())
        return lambda get: any(test(get) for test in tests)

    def _and(self) -> Callable[[Callable[[str], Any]], bool]:
        tests = [self._atom()]
        while self._peek() == "AND":
            self._next()
            tests.append(self._atom())
        return lambda get: all(test(get) for test in tests)

    def _atom(self) -> Callable[[Callable[[str], Any]], bool]:
        if self._peek() == "(":
            self._next()
            inner = self._or()
            assert self._next() == ")"
            return inner
        name, operator = self._next(), self._next()
        self.names.add(name)
        if operator == "IN":
            assert self._next() == "("
            values = set()
            while (token := self._next()) != ")":
                if token != ",":
                    values.add(str(_literal(token)).lower())
            return lambda get: str(get(name)).lower() in values
        value = _literal(self._next())
        compare = {"=": lambda a, b: a == b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b}[operator]
        return lambda get: compare(get(name), value)


def _literal(token: str) -> Any:
    if token.startswith("'"):
        return re.sub(r"\\(.)", r"\1", token[1:-1])
    if token in ("true", "false"):
        return token == "true"
    return datetime.fromisoformat(token) if "T" in token else int(token)


def error(status: int, code: str, message: str, **headers: str) -> httpx.Response:
    """A refusal as Salesforce words it."""
    return httpx.Response(status, json=[{"message": message, "errorCode": code}], headers=headers)


def _nested(record: Mapping[str, Any], column: str) -> Any:
    value: Any = record
    for part in column.split("."):
        value = (value or {}).get(part)
    return value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).replace("+0000", "Z")


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.000+0000")


def _csv(rows: list[dict[str, str]]) -> httpx.Response:
    out = io.StringIO()
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return httpx.Response(200, content=out.getvalue().encode())
