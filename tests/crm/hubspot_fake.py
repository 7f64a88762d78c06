"""A HubSpot of our own: keeps records, searches an index that lags, lists, merges, writes, and fails on demand.

It is asked over real HTTP (`serve`), or without a socket (`transport`). It behaves as the vendor documents, traps
included: 10,000 results of a search, 100 inputs of a batch, 207 where some of them fail, ids that were merged away.
"""

from __future__ import annotations

import json
import sys
import threading
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx

TOKEN = "pat-eu1-secret-of-the-test"
CHANGED = {
    "contacts": "lastmodifieddate",
    "companies": "hs_lastmodifieddate",
    "deals": "hs_lastmodifieddate",
    "tasks": "hs_lastmodifieddate",
}
MS = timedelta(milliseconds=1)
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Record:
    """One record; `at` is when it last changed."""

    number: int
    at: datetime
    properties: dict[str, str | None]
    archived_at: datetime | None = None


@dataclass
class FakeHubSpot:
    """State and wire of the fake.

    Attributes:
        version: the one that the paths must name.
        records: of each object, archived ones too; erased and merged ones are in none.
        merged: ids that were merged away, to the ids that are left, by object.
        properties: definitions by object and name; what is not defined cannot be written.
        associations: pairs that were tied, by their objects.
        clock: HubSpot's time, told in `Date`; None: no such header, and what is written now is the newest.
        lag: after how much of HubSpot's time search learns of a change.
        calls_per_10_seconds, searches_per_second, calls_per_day: limits that are kept by `clock`; 0: none.
        tells_rows: whether errors of a batch name their rows by trace id; if not, the whole batch is refused.
        failures: answers to give instead of working, each used once: (status, headers, body).
        before: called with each request's path before it is answered; may change records.
        requests: method, path and parsed body of each request.
    """

    version: str = "2026-09"
    records: dict[str, dict[int, Record]] = field(default_factory=lambda: {kind: {} for kind in CHANGED})
    merged: dict[str, dict[int, int]] = field(default_factory=lambda: {kind: {} for kind in CHANGED})
    properties: dict[str, dict[str, dict[str, Any]]] = field(default_factory=lambda: _properties())
    groups: set[tuple[str, str]] = field(default_factory=set)
    associations: set[tuple[str, str, str, str]] = field(default_factory=set)
    owners: list[dict[str, str]] = field(default_factory=list)
    clock: Callable[[], datetime] | None = None
    lag: Callable[[], timedelta] = lambda: timedelta(0)
    calls_per_10_seconds: int = 0
    searches_per_second: int = 0
    calls_per_day: int = 0
    tells_rows: bool = True
    failures: deque[Answer] = field(default_factory=deque)
    before: Callable[[str], None] = lambda path: None
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    refused: int = 0
    url: str = ""
    _index: dict[str, dict[int, Record]] = field(default_factory=lambda: {kind: {} for kind in CHANGED})
    _orders: dict[tuple[str, bool], tuple[list[Record], list[int]]] = field(default_factory=dict)
    _learned: list[tuple[datetime, str, int, Record | None]] = field(default_factory=list)
    _calls: deque[datetime] = field(default_factory=deque)
    _searches: deque[datetime] = field(default_factory=deque)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    # What people do in HubSpot

    def now(self) -> datetime:
        """HubSpot's time, in whole milliseconds."""
        if self.clock is not None:
            moment = self.clock()
            return moment.replace(microsecond=moment.microsecond // 1000 * 1000)
        everything = [one.at for records in self.records.values() for one in records.values()]
        return max(everything, default=datetime(2026, 1, 1, tzinfo=UTC)) + MS

    def put(self, kind: str, number: int, at: datetime, **properties: str | None) -> None:
        """A record as it is from now on."""
        with self._lock:
            self.records[kind][number] = Record(number, at, dict(properties))
            self._learn(kind, number)

    def edit(self, kind: str, number: int, at: datetime, **properties: str | None) -> None:
        """Change some of its properties."""
        self.put(kind, number, at, **{**self.records[kind][number].properties, **properties})

    def archive(self, kind: str, number: int, at: datetime) -> None:
        """Delete a record: it can be restored, and listed."""
        with self._lock:
            self.records[kind][number].archived_at = at
            self._learn(kind, number)

    def erase(self, kind: str, number: int) -> None:
        """Delete a record for its person's sake: it is nowhere."""
        with self._lock:
            self.records[kind].pop(number)
            self._learn(kind, number)

    def merge(self, kind: str, winner: int, loser: int, at: datetime, *, as_new: int = 0) -> int:
        """Merge one record into another, or both into a new one; the id that is left."""
        with self._lock:
            records = self.records[kind]
            kept, gone = records[winner], records[loser]
            losers = {loser} if not as_new else {winner, loser}
            left = as_new or winner
            names = {**gone.properties, **{name: value for name, value in kept.properties.items() if value}}
            ids = {
                number
                for one in (kept, gone)
                for number in (one.properties.get("hs_merged_object_ids") or "").split(";")
                if number
            }
            names["hs_merged_object_ids"] = ";".join(sorted(ids | {str(number) for number in losers}))
            for number in losers:
                records.pop(number)
                self.merged[kind][number] = left
                self._learn(kind, number)
            self.put(kind, left, at, **names)
            return left

    def resolve(self, kind: str, number: int) -> int:
        """The id under which a record is now."""
        while number in self.merged[kind]:
            number = self.merged[kind][number]
        return number

    def _learn(self, kind: str, number: int) -> None:
        found = self.records[kind].get(number)
        if found is not None and found.archived_at is not None:
            found = None
        shown = None if found is None else Record(found.number, found.at, dict(found.properties))
        lag = self.lag()
        if lag:
            self._learned.append((self.now() + lag, kind, number, shown))
        else:
            self._show(kind, number, shown)

    def _show(self, kind: str, number: int, shown: Record | None) -> None:
        self._orders.clear()
        if shown is None:
            self._index[kind].pop(number, None)
            return
        # what search is told late must not undo what it was told since
        current = self.records[kind].get(number)
        if current is not None and current.archived_at is None:
            before = self._index[kind].get(number)
            if before is None or before.at <= shown.at:
                self._index[kind][number] = shown

    def _catch_up(self) -> None:
        now = self.now()
        due = [one for one in self._learned if one[0] <= now]
        self._learned = [one for one in self._learned if one[0] > now]
        for _, kind, number, shown in due:
            self._show(kind, number, shown)

    # The wire

    def transport(self) -> httpx.MockTransport:
        """A way to it without a socket."""

        def handle(request: httpx.Request) -> httpx.Response:
            target = request.url.raw_path.decode()
            token = request.headers.get("authorization", "")
            status, headers, content = self.answer(request.method, target, token, request.read())
            if status == 0:
                raise httpx.ReadError("gone")
            return httpx.Response(status, headers=headers, content=content)

        return httpx.MockTransport(handle)

    def answer(self, method: str, target: str, token: str, body: bytes) -> Answer:
        """The answer to a request: status (0: the connection is dropped), headers, body."""
        with self._lock:
            parts = urlsplit(target)
            parsed = json.loads(body) if body else {}
            self.requests.append((method, target, parsed))
            self.before(parts.path)
            status, headers, content = self._answer(method, parts.path, parts.query, token, parsed)
            if self.clock is not None:
                headers = {"date": format_datetime(self.now().replace(microsecond=0), usegmt=True), **headers}
            return status, headers, content

    def _answer(self, method: str, path: str, query: str, token: str, body: dict[str, Any]) -> Answer:
        if self.failures:
            return self.failures.popleft()
        if token != f"Bearer {TOKEN}":
            message = "Authentication credentials not found: " + token
            return _error(401, message, category="INVALID_AUTHENTICATION")
        if limited := self._limited(path):
            self.refused += 1
            return limited
        self._catch_up()
        given = {key: values[0] for key, values in parse_qs(query).items()}
        if (method, path) == ("POST", "/crm/v3/objects/contacts/gdpr-delete"):
            return self._erase(body)
        is_old = self.version == "v3"
        for name, handle in (
            ("objects", self._objects),
            ("properties", self._definitions),
            ("owners", self._owners),
            ("associations", self._associate),
        ):
            old = "v4" if name == "associations" else "v3"
            prefix = f"/crm/{old}/{name}" if is_old else f"/crm/{name}/{self.version}"
            if path == prefix or path.startswith(prefix + "/"):
                return handle(
                    method, [one for one in path.removeprefix(prefix).split("/") if one], given, body
                )
        return _error(404, "no such path")

    def _limited(self, path: str) -> Answer | None:
        now = self.now()
        for calls, span, most, name in (
            (self._calls, timedelta(days=1), self.calls_per_day, "DAILY"),
            (self._calls, timedelta(seconds=10), self.calls_per_10_seconds, "TEN_SECONDLY_ROLLING"),
            (self._searches, timedelta(seconds=1), self.searches_per_second, "SECONDLY"),
        ):
            recent = sum(one > now - span for one in calls)
            if most and recent >= most and (calls is self._calls or path.endswith("/search")):
                return 429, {}, json.dumps({"status": "error", "policyName": name}).encode()
        self._calls.append(now)
        if path.endswith("/search"):
            self._searches.append(now)
        return None

    def _objects(self, method: str, path: list[str], query: dict[str, str], body: dict[str, Any]) -> Answer:
        if not path or path[0] not in CHANGED:
            return _error(404, "no such path")
        kind, action = path[0], "/".join(path[1:])
        if method == "POST" and action == "search":
            return self._search(kind, body)
        if method == "GET" and not action:
            return self._list(kind, query)
        if method == "POST" and action in ("batch/read", "batch/update", "batch/upsert"):
            if not 0 < len(body["inputs"]) <= 100:
                return _error(400, "from 1 to 100 inputs")
            if action == "batch/read":
                return self._read(kind, body, query.get("archived") == "true")
            return self._write(kind, body["inputs"], is_upsert=action == "batch/upsert")
        return _error(405, "no such method")

    def _erase(self, body: dict[str, Any]) -> Answer:
        """Permanent deletion, of archived records too; an id that was merged away leads to what is left of it."""
        found = self._found("contacts", str(body["objectId"]), body.get("idProperty", ""))
        if found is None:
            return _error(404, "contact does not exist", category="OBJECT_NOT_FOUND")
        self.erase("contacts", found.number)
        return 204, {}, b""

    def _search(self, kind: str, body: dict[str, Any]) -> Answer:
        limit, after = body["limit"], int(body.get("after", 0))
        if limit > 200:
            return _error(400, "limit above 200")
        if after + limit > 10_000:
            return _error(400, "search results are limited to 10000")
        tests = [test for group in body["filterGroups"] for test in group["filters"]]

        (sort,) = body["sorts"]
        name, is_descending = sort["propertyName"], sort["direction"] == "DESCENDING"
        if {name, *(test["propertyName"] for test in tests)} - {CHANGED[kind], "hs_object_id"}:
            return _error(400, "unknown property in filter or sort")
        found, keys = self._sorted(kind, is_by_id=name == "hs_object_id")
        for test in tests:
            number = int(test["value"])
            if test["propertyName"] == name:
                bound = {"GTE": bisect_left, "GT": bisect_right}[test["operator"]](keys, number)
                found, keys = found[bound:], keys[bound:]
            else:
                assert (test["operator"], test["propertyName"]) == ("EQ", CHANGED[kind])
                found = [record for record in found if _milliseconds(record.at) == number]
                keys = [record.number for record in found]
        if is_descending:
            found = found[::-1]
        page = found[after : after + limit]
        answer: dict[str, Any] = {
            "total": len(found),
            "results": [self._shown(kind, record, body["properties"]) for record in page],
        }
        if after + limit < len(found):
            answer["paging"] = {"next": {"after": str(after + limit)}}
        return _json(200, answer)

    def _sorted(self, kind: str, *, is_by_id: bool) -> tuple[list[Record], list[int]]:
        """What search knows, in order; ties come in no useful order: highest id first."""
        cached = self._orders.get((kind, is_by_id))
        if cached is None:
            found = sorted(self._index[kind].values(), key=lambda record: -record.number)
            if is_by_id:
                found.reverse()
                keys = [record.number for record in found]
            else:
                found.sort(key=lambda record: record.at)
                keys = [_milliseconds(record.at) for record in found]
            cached = self._orders[kind, is_by_id] = found, keys
        return cached

    def _list(self, kind: str, query: dict[str, str]) -> Answer:
        if int(query["limit"]) > 100:
            return _error(400, "100 a page")
        is_archived = query.get("archived") == "true"
        found = sorted(
            (
                record
                for record in self.records[kind].values()
                if (record.archived_at is not None) == is_archived
            ),
            key=lambda record: record.number,
        )
        # the place is an id, so that what goes meanwhile makes no gap
        after, limit = int(query.get("after", 0)), int(query["limit"])
        found = [record for record in found if record.number > after]
        names = query.get("properties", "").split(",")
        page = found[:limit]
        answer: dict[str, Any] = {"results": [self._shown(kind, record, names) for record in page]}
        if limit < len(found):
            answer["paging"] = {"next": {"after": str(page[-1].number)}}
        return _json(200, answer)

    def _read(self, kind: str, body: dict[str, Any], is_archived: bool) -> Answer:
        results: list[dict[str, Any]] = []
        missing: list[str] = []
        for one in body["inputs"]:
            found = self._found(kind, str(one["id"]), body.get("idProperty", ""))
            if found is None or (found.archived_at is not None) != is_archived:
                missing.append(str(one["id"]))
            else:
                results.append(self._shown(kind, found, body.get("properties", [])))
        # in no useful order, and each once
        unique = {one["id"]: one for one in reversed(results)}
        answer: dict[str, Any] = {"status": "COMPLETE", "results": list(unique.values())}
        if missing:
            answer |= {
                "numErrors": 1,
                "errors": [
                    {
                        "status": "error",
                        "category": "OBJECT_NOT_FOUND",
                        "message": "Could not get some objects, they may be deleted or not exist.",
                        "context": {"ids": missing},
                    }
                ],
            }
        return _json(207 if missing else 200, answer)

    def _found(self, kind: str, value: str, id_property: str) -> Record | None:
        if not id_property:
            return self.records[kind].get(self.resolve(kind, int(value))) if value.isdigit() else None
        wanted = value.lower()
        for record in self.records[kind].values():
            own = (record.properties.get(id_property) or "").lower()
            others = (record.properties.get("hs_additional_emails") or "").lower().split(";")
            if own == wanted or (id_property == "email" and wanted in others):
                return record
        return None

    def _write(self, kind: str, inputs: list[dict[str, Any]], *, is_upsert: bool) -> Answer:
        ids = [str(one["id"]) for one in inputs]
        if len(set(ids)) < len(ids):
            return _error(400, "Duplicate ids in the batch", category="VALIDATION_ERROR")
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for one in inputs:
            trouble = self._trouble(kind, one, is_upsert=is_upsert)
            if trouble is not None:
                category, message = trouble
                trace = one.get("objectWriteTraceId")
                context = {"objectWriteTraceId": [trace]} if trace else {}
                errors.append(
                    {"status": "error", "category": category, "message": message, "context": context}
                )
        if errors and not (self.tells_rows and all("objectWriteTraceId" in one for one in inputs)):
            status = {"OBJECT_NOT_FOUND": 404, "CONFLICT": 409}.get(errors[0]["category"], 400)
            return _error(status, errors[0]["message"], category=errors[0]["category"])
        bad = {trace for error in errors for trace in error["context"]["objectWriteTraceId"]}
        for one in inputs:
            if one.get("objectWriteTraceId") not in bad or not bad:
                results.append(self._written(kind, one, is_upsert=is_upsert))
        answer: dict[str, Any] = {"status": "COMPLETE", "results": list(reversed(results))}
        if errors:
            answer |= {"numErrors": len(errors), "errors": errors}
        return _json(207 if errors else 200, answer)

    def _trouble(self, kind: str, one: dict[str, Any], *, is_upsert: bool) -> tuple[str, str] | None:
        found = self._found(kind, str(one["id"]), one.get("idProperty", ""))
        if not is_upsert and (found is None or found.archived_at is not None):
            return "OBJECT_NOT_FOUND", f"No {kind} with id {one['id']}"
        if is_upsert and not self.properties[kind].get(one["idProperty"], {}).get("hasUniqueValue"):
            return "VALIDATION_ERROR", f"{one['idProperty']} is no unique property"
        if is_upsert and kind == "tasks" and "hs_timestamp" not in one["properties"] and found is None:
            return "VALIDATION_ERROR", "hs_timestamp is required"
        for name, value in one["properties"].items():
            definition = self.properties[kind].get(name)
            if definition is None:
                return "VALIDATION_ERROR", f"Property {name} does not exist"
            if definition.get("modificationMetadata", {}).get("readOnlyValue"):
                return "VALIDATION_ERROR", f"{name} is read only"
            if problem := _problem(definition, value):
                return "VALIDATION_ERROR", problem
        email = (one["properties"].get("email") or "").lower()
        other = self._found(kind, email, "email") if email and kind == "contacts" else None
        if other is not None and other is not found:
            return "CONFLICT", f"Contact already exists. Existing ID: {other.number}"
        return None

    def _written(self, kind: str, one: dict[str, Any], *, is_upsert: bool) -> dict[str, Any]:
        found = self._found(kind, str(one["id"]), one.get("idProperty", ""))
        is_new = found is None
        names = dict(one["properties"])
        if found is None:
            number = max([*self.records[kind], *self.merged[kind], 0]) + 1
            names.setdefault(one["idProperty"], str(one["id"]))
            self.put(kind, number, self.now(), **names)
        else:
            number = found.number
            self.edit(kind, number, self.now(), **names)
        shown = self._shown(kind, self.records[kind][number], [*names, CHANGED[kind]])
        if "objectWriteTraceId" in one:
            shown["objectWriteTraceId"] = one["objectWriteTraceId"]
        return {**shown, "new": is_new} if is_upsert else shown

    def _definitions(
        self, method: str, path: list[str], query: dict[str, str], body: dict[str, Any]
    ) -> Answer:
        del query
        if not path or path[0] not in CHANGED:
            return _error(404, "no such path")
        kind, rest = path[0], path[1:]
        known = self.properties[kind]
        if method == "GET" and not rest:
            return _json(200, {"results": list(known.values())})
        if method == "POST" and rest == ["groups"]:
            if (kind, body["name"]) in self.groups:
                return _error(409, "Property group exists", category="OBJECT_ALREADY_EXISTS")
            self.groups.add((kind, body["name"]))
            return _json(201, body)
        if method == "POST" and rest in ([], ["batch", "create"]):
            inputs = body["inputs"] if rest else [body]
            for one in inputs:
                if one["name"] in known:
                    return _error(409, "Property exists", category="OBJECT_ALREADY_EXISTS")
                if (kind, one["groupName"]) not in self.groups:
                    return _error(400, f"no group {one['groupName']}", category="VALIDATION_ERROR")
                if one["type"] in ("enumeration", "bool") and not one.get("options"):
                    return _error(400, "options are required", category="VALIDATION_ERROR")
            known.update({one["name"]: dict(one) for one in inputs})
            return _json(201, {"status": "COMPLETE", "results": inputs} if rest else body)
        if method == "PATCH" and len(rest) == 1 and rest[0] in known:
            known[rest[0]] |= body
            return _json(200, known[rest[0]])
        return _error(405, "no such method")

    def _owners(self, method: str, path: list[str], query: dict[str, str], body: dict[str, Any]) -> Answer:
        del method, path, query, body
        return _json(200, {"results": self.owners})

    def _associate(self, method: str, path: list[str], query: dict[str, str], body: dict[str, Any]) -> Answer:
        del method, query
        if path[2:] != ["batch", "associate", "default"]:
            return _error(404, "no such path")
        results: list[dict[str, Any]] = []
        errors: list[dict[str, Any]] = []
        for one in body["inputs"]:
            task, end = str(one["from"]["id"]), str(one["to"]["id"])
            if self._found(path[0], task, "") is None or self._found(path[1], end, "") is None:
                message = f"No {path[1]} with id {end}"
                errors.append(
                    {"category": "OBJECT_NOT_FOUND", "message": message, "context": {"toObjectId": [end]}}
                )
                continue
            self.associations.add((path[0], task, path[1], end))
            results.append({"from": {"id": task}, "to": {"id": end}, "associationSpec": {}})
        return _json(207 if errors else 200, {"results": results, **({"errors": errors} if errors else {})})

    @staticmethod
    def _shown(kind: str, record: Record, names: list[str]) -> dict[str, Any]:
        properties = {
            **record.properties,
            CHANGED[kind]: _iso(record.at),
            "hs_object_id": str(record.number),
        }
        shown: dict[str, Any] = {
            "id": str(record.number),
            "properties": {name: properties.get(name) for name in (*names, "hs_object_id")},
            "updatedAt": _iso(record.at),
            "archived": record.archived_at is not None,
        }
        if record.archived_at is not None:
            shown["archivedAt"] = _iso(record.archived_at)
        return shown


def _properties() -> dict[str, dict[str, dict[str, Any]]]:
    def text(*names: str) -> dict[str, dict[str, Any]]:
        return {name: {"name": name, "type": "string", "fieldType": "text"} for name in names}

    def choice(name: str, **options: str) -> dict[str, dict[str, Any]]:
        listed = [{"value": value, "label": label} for value, label in options.items()]
        return {name: {"name": name, "type": "enumeration", "fieldType": "select", "options": listed}}

    contacts = text("email", "firstname", "lastname", "country", "city", "phone", "mobilephone")
    contacts["email"]["hasUniqueValue"] = True
    contacts |= choice("hs_timezone", europe_slash_berlin="UTC +01:00 Europe Berlin")
    contacts |= choice("hs_language", en="English", **{"en-gb": "English - United Kingdom"})
    contacts |= choice("lifecyclestage", lead="Lead", customer="Customer")
    contacts["birthday"] = {"name": "birthday", "type": "date", "fieldType": "date"}
    contacts["score"] = {"name": "score", "type": "number", "fieldType": "number"}
    contacts["lastmodifieddate"] = {
        "name": "lastmodifieddate", "type": "datetime", "modificationMetadata": {"readOnlyValue": True},
    }  # fmt: skip
    tasks = text("hs_task_subject", "hs_task_body", "hubspot_owner_id")
    tasks |= choice("hs_task_status", NOT_STARTED="Not started", COMPLETED="Completed")
    tasks |= choice("hs_task_type", TODO="To-do", CALL="Call", EMAIL="Email")
    tasks["hs_timestamp"] = {"name": "hs_timestamp", "type": "datetime", "fieldType": "date"}
    return {"contacts": contacts, "companies": text("name"), "deals": text("dealname"), "tasks": tasks}


def _problem(definition: dict[str, Any], value: str) -> str:
    kind = definition["type"]
    if value == "":
        return ""
    if kind in ("enumeration", "bool") and value not in {one["value"] for one in definition["options"]}:
        return f"{value} was not one of the allowed options"
    if kind == "number":
        try:
            float(value)
        except ValueError:
            return f"{value} was not a valid number"
    if kind == "date" and not (len(value) == 10 or (value.isdigit() and int(value) % 86_400_000 == 0)):
        return f"{value} is not midnight UTC"
    return ""


def _json(status: int, body: Any) -> Answer:
    return status, {"content-type": "application/json"}, json.dumps(body).encode()


def _error(status: int, message: str, **more: str) -> Answer:
    body = {"status": "error", "message": message, "correlationId": "c0ffee", **more}
    return status, {"content-type": "application/json"}, json.dumps(body).encode()


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def _milliseconds(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


@contextmanager
def serve(fake: FakeHubSpot) -> Iterator[FakeHubSpot]:
    """Answer on a free port of the loopback interface."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                # whoever asked was killed
                self.close_connection = True
                return
            status, headers, content = fake.answer(
                self.command, self.path, self.headers.get("authorization", ""), body
            )
            if status == 0:
                self.close_connection = True
                return
            # without a Date of the machine's
            self.send_response_only(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PATCH = do_POST  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            del format, args

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), ConnectionError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
