"""A HubSpot of our own: keeps records, searches, lists, archives, and fails on demand; over real HTTP."""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "pat-eu1-secret-of-the-test"
CHANGED = {"contacts": "lastmodifieddate", "companies": "hs_lastmodifieddate", "deals": "hs_lastmodifieddate"}


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
        failures: answers to give instead of working, each used once: (status, headers, body).
        before: called with each request's path before it is answered; may change records.
        requests: method, path and parsed body of each request.
    """

    version: str = "2026-09"
    records: dict[str, dict[int, Record]] = field(default_factory=lambda: {kind: {} for kind in CHANGED})
    failures: deque[tuple[int, dict[str, str], bytes]] = field(default_factory=deque)
    before: Callable[[str], None] = lambda path: None
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    url: str = ""

    def put(self, kind: str, number: int, at: datetime, **properties: str | None) -> None:
        self.records[kind][number] = Record(number, at, dict(properties))

    def archive(self, kind: str, number: int, at: datetime) -> None:
        self.records[kind][number].archived_at = at

    def answer(self, method: str, target: str, token: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(target)
        parsed = json.loads(body) if body else {}
        self.requests.append((method, target, parsed))
        self.before(parts.path)
        if self.failures:
            return self.failures.popleft()
        if token != f"Bearer {TOKEN}":
            message = "Authentication credentials not found: " + token
            return _error(401, message, category="INVALID_AUTHENTICATION")
        prefix = "/crm/v3/objects/" if self.version == "v3" else f"/crm/objects/{self.version}/"
        kind, _, action = parts.path.removeprefix(prefix).partition("/")
        if not parts.path.startswith(prefix) or kind not in CHANGED:
            return _error(404, "no such path")
        if method == "POST" and action == "search":
            return self._search(kind, parsed)
        if method == "GET" and not action:
            return self._list(kind, {key: values[0] for key, values in parse_qs(parts.query).items()})
        return _error(405, "no such method")

    def _search(self, kind: str, body: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        limit, after = body["limit"], int(body.get("after", 0))
        if limit > 200:
            return _error(400, "limit above 200")
        if after + limit > 10_000:
            return _error(400, "search results are limited to 10000")
        ((group),) = body["filterGroups"]
        tests = group["filters"]

        def value(record: Record, name: str) -> int:
            return record.number if name == "hs_object_id" else _milliseconds(record.at)

        known = {CHANGED[kind], "hs_object_id"}
        if {test["propertyName"] for test in tests} - known:
            return _error(400, "unknown property in filter")
        operators = {"GTE": int.__ge__, "GT": int.__gt__, "EQ": int.__eq__}
        found = [
            record
            for record in self.records[kind].values()
            if record.archived_at is None
            and all(
                operators[test["operator"]](value(record, test["propertyName"]), int(test["value"]))
                for test in tests
            )
        ]
        (sort,) = body["sorts"]
        # ties come in no useful order: highest id first
        found.sort(key=lambda record: -record.number)
        found.sort(key=lambda record: value(record, sort["propertyName"]))
        page = found[after : after + limit]
        answer: dict[str, Any] = {
            "total": len(found),
            "results": [self._shown(kind, record, body["properties"]) for record in page],
        }
        if after + limit < len(found):
            answer["paging"] = {"next": {"after": str(after + limit)}}
        return 200, {}, json.dumps(answer).encode()

    def _list(self, kind: str, query: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if query.get("archived") != "true" or int(query["limit"]) > 100:
            return _error(400, "only archived records are listed here, 100 a page")
        found = sorted(
            (record for record in self.records[kind].values() if record.archived_at),
            key=lambda record: record.number,
        )
        after, limit = int(query.get("after", 0)), int(query["limit"])
        answer: dict[str, Any] = {
            "results": [
                self._shown(kind, record, query["properties"].split(","))
                for record in found[after : after + limit]
            ]
        }
        if after + limit < len(found):
            answer["paging"] = {"next": {"after": str(after + limit)}}
        return 200, {}, json.dumps(answer).encode()

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


def _error(status: int, message: str, **more: str) -> tuple[int, dict[str, str], bytes]:
    body = {"status": "error", "message": message, "correlationId": "c0ffee", **more}
    return status, {}, json.dumps(body).encode()


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
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, content = fake.answer(
                self.command, self.path, self.headers.get("authorization", ""), body
            )
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
