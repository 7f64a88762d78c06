"""A vendor in a thread: takes calls on a real socket, holds them to a specification, fails as it is told."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from jsonschema import Draft202012Validator

VENDORS = Path(__file__).parent / "vendors"
HTML = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"


@dataclass
class Request:
    """A call as it came in; header names in small letters."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True))


@dataclass
class Answer:
    """What the vendor says; a dict is said in JSON."""

    status: int = 200
    body: Any = ""
    headers: dict[str, str] = field(default_factory=dict)


Vendor = Callable[[Request], Answer]

#: Failures that a script can name. `*_after` happens once the vendor has done what it was asked.
FAILURES: dict[str, Answer] = {
    "429": Answer(429, {"errors": [{"message": "too many requests"}]}, {"retry-after": "0"}),
    "503": Answer(503, {"errors": [{"message": "not now"}]}),
    "html_403": Answer(403, "<html><h1>Access denied</h1>you are being rate limited</html>"),
    "html_500": Answer(500, HTML),
    "html_502": Answer(502, HTML),
    "html_503": Answer(503, HTML),
    "html_504": Answer(504, HTML),
}


class VendorServer:
    """What tests see of a running vendor.

    Attributes:
        script: what happens to the next calls, one word each: `ok`, a word of `FAILURES`, `reset_before`
            (the connection is reset, nothing was done), `reset_after` (it is reset after all was done),
            `html_200_after`.
        taken: how often each message id was accepted.
        mistakes: calls that the specification does not allow; a test fails on any.
    """

    def __init__(self, vendor: Vendor, checks: Callable[[Request], None] | None) -> None:
        self.script: list[str] = []
        self.requests: list[Request] = []
        self.taken: Counter[str] = Counter()
        self.mistakes: list[str] = []
        self.url = ""
        self._vendor, self._checks = vendor, checks
        self._lock = threading.Lock()

    def take(self, request: Request) -> tuple[str, Answer]:
        with self._lock:
            self.requests.append(request)
            word = self.script.pop(0) if self.script else "ok"
            if self._checks is not None:
                try:
                    self._checks(request)
                except Exception as error:
                    self.mistakes.append(f"{request.method} {request.path}: {error}")
                    return "ok", Answer(400, {"errors": [{"message": str(error)[:200], "field": None}]})
            if word in FAILURES:
                return word, FAILURES[word]
            if word == "reset_before":
                return word, Answer()
            return word, self._vendor(request)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Http  # pyright: ignore[reportIncompatibleVariableOverride]

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _any(self) -> None:
        length = int(self.headers.get("content-length", "0"))
        body = self.rfile.read(length)
        parts = urlsplit(self.path)
        request = Request(
            self.command, parts.path, dict(parse_qsl(parts.query)),
            {name.lower(): value for name, value in self.headers.items()}, body,
        )  # fmt: skip
        word, answer = self.server.state.take(request)
        if word.startswith("reset"):
            # RST rather than FIN: what a balancer that dies does
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if word == "html_200_after":
            answer = Answer(200, HTML)
        content = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        data = content.encode()
        self.send_response(answer.status)
        kind = "text/html" if content.startswith("<") else "application/json"
        for name, value in {"content-type": kind, "content-length": str(len(data)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _any  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, state: VendorServer) -> None:
        self.state = state
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def serve(vendor: Vendor, checks: Callable[[Request], None] | None = None) -> Iterator[VendorServer]:
    """Run a vendor; on leaving, no call may have broken its specification and no message been taken twice."""
    state = VendorServer(vendor, checks)
    server = _Http(state)
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not state.mistakes, state.mistakes[:3]
    assert not [name for name, count in state.taken.items() if count > 1], "taken twice"


def _strict(schema: Any) -> Any:
    """The schema with every object closed to properties that it does not name."""
    if isinstance(schema, list):
        return [_strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _strict(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


def _path_matches(template: str, path: str) -> bool:
    ours, theirs = path.split("/"), template.split("/")
    return len(ours) == len(theirs) and all(
        a == b or (b.startswith("{") and a) for a, b in zip(ours, theirs, strict=True)
    )


def openapi_checks(*files: str) -> Callable[[Request], None]:
    """Hold calls to OpenAPI 3.1 files: path, method, bearer token, content type, and a body of known properties."""
    operations: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = []
    for file in files:
        spec = json.loads((VENDORS / file).read_text())
        for path, entry in spec["paths"].items():
            operations += [(path, method, entry[method], spec) for method in entry if method != "parameters"]

    def check(request: Request) -> None:
        found = [
            (operation, spec)
            for path, method, operation, spec in operations
            if method == request.method.lower() and _path_matches(path, request.path)
        ]
        assert found, "no such operation"
        operation, spec = found[0]
        assert request.headers.get("authorization", "").startswith("Bearer "), "no bearer token"
        body = operation.get("requestBody")
        if body is None:
            assert not request.body, "no body is expected"
            return
        if "$ref" in body:
            body = spec["components"]["requestBodies"][body["$ref"].rpartition("/")[2]]
        assert request.headers["content-type"] == "application/json"
        schema = {
            **_strict(body["content"]["application/json"]["schema"]), "components": _strict(spec["components"])
        }  # fmt: skip
        Draft202012Validator(schema).validate(request.json)

    return check


def form_checks(spec: Mapping[str, Any], request: Request) -> None:
    """Hold a form to Swagger 2.0: path and method, required fields, no others, whole numbers where asked."""
    found = [
        entry[request.method.lower()]
        for path, entry in spec["paths"].items()
        if _path_matches(path.rstrip("/"), request.path.rstrip("/")) and request.method.lower() in entry
    ]
    assert found, "no such operation"
    fields = {p["name"]: p for p in found[0]["parameters"] if p["in"] == "formData"}
    if request.method == "POST" and request.body:
        assert request.headers["content-type"].startswith(tuple(found[0]["consumes"]))
    form = request.form
    assert form.keys() <= fields.keys(), f"unknown fields {form.keys() - fields.keys()}"
    assert {name for name, p in fields.items() if p.get("required")} <= form.keys(), (
        "a required field is missing"
    )
    for name, value in form.items():
        assert fields[name]["type"] != "integer" or value.isdigit(), f"{name} is no whole number"
