"""A Pipedrive of our own: v2 lists with markers, v1 recents, search that lags, token costs, burst limit, Cloudflare.

It has a clock of its own, which calls and `sleep` move; nothing in it takes the machine's time.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import parse_qs

import httpx

TOKEN = "pd-secret-token-of-the-test"
CLIENT_SECRET = "pd-client-secret-of-the-test"
REFRESH_TOKEN = "pd-refresh-token-of-the-test"
START = datetime(2031, 3, 1, 12, tzinfo=UTC)
SHIELD = b"<!DOCTYPE html><html><title>Attention Required! | Cloudflare</title></html>"
PATHS = {"persons": "person", "organizations": "organization", "deals": "deal", "activities": "activity"}
LISTED = {"sort_by", "sort_direction", "limit", "cursor", "updated_since", "ids", "include_option_labels"}
EXTRA = {"persons": set(), "organizations": set(), "deals": {"status"}, "activities": {"person_id"}}
WRITABLE = {
    "persons": {"name", "owner_id", "org_id", "emails", "phones", "visible_to", "label_ids", "custom_fields"},
    "activities": {
        "subject",
        "type",
        "owner_id",
        "deal_id",
        "due_date",
        "due_time",
        "done",
        "participants",
        "note",
    },
}


@dataclass
class FakePipedrive:
    """State and wire of the fake.

    Attributes:
        latency: seconds that a call takes. skew: seconds that times of records are ahead of the Date header.
        burst, searches: requests a token may make in two seconds. daily: tokens of the day's budget.
        shows_limits: whether answers carry x-ratelimit headers.
        shows_deleted: whether a look-up by id shows a deleted record as such, rather than 404.
        touches_deleted: whether a deletion moves update_time.
        names_merged: which record of a merge has `merge_what_id` in recents: "loser" or "winner".
        search_lag: seconds until search knows of a new record.
        page: most records of a page.
        failures: what happens instead of an answer, each used once: an answer, or an exception ("before": nothing is
            done, "after": it is done and its answer is lost).
        before: called with path and method before each answer; may change records.
        requests: method, path and parameters or body of each request. costs: tokens used, by path.
        calls: bodies of webhook calls (version 2).
    """

    latency: float = 0.05
    skew: float = 0.0
    burst: int = 20
    searches: int = 10
    daily: int = 10**9
    shows_limits: bool = True
    shows_deleted: bool = False
    touches_deleted: bool = True
    names_merged: str = "loser"
    search_lag: float = 20.0
    page: int = 500
    now: datetime = START
    records: dict[str, dict[int, dict[str, Any]]] = field(
        default_factory=lambda: {path: {} for path in PATHS}
    )
    fields: dict[str, list[dict[str, Any]]] = field(
        default_factory=lambda: {"personFields": [], "organizationFields": [], "dealFields": []}
    )
    users: list[dict[str, Any]] = field(
        default_factory=lambda: [
            {"id": 7, "name": "Sam Seller", "email": "sam@example.com", "active_flag": True}
        ]
    )
    failures: deque[tuple[int, dict[str, str], bytes] | str] = field(default_factory=deque)
    before: Callable[[str, str], None] = lambda path, method: None
    requests: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    costs: Counter[str] = field(default_factory=Counter)
    calls: list[dict[str, Any]] = field(default_factory=list)
    refused: int = 0
    shielded: int = 0
    access_tokens: dict[str, datetime] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._made: deque[datetime] = deque()
        self._searched: deque[datetime] = deque()
        self._strikes: deque[datetime] = deque()
        self._shield_until = self.now
        self._numbers = Counter(dict.fromkeys(PATHS, 0))
        self._began = self.now

    # What a person, or another program, does

    def stamp(self) -> str:
        return (self.now + timedelta(seconds=self.skew)).strftime("%Y-%m-%dT%H:%M:%SZ")

    def sleep(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def clock(self) -> float:
        return (self.now - self._began).total_seconds()

    def put(self, path: str, *, number: int = 0, at: datetime | None = None, **values: Any) -> int:
        """Add a record, or change one."""
        if not number:
            self._numbers[path] += 1
            number = self._numbers[path]
        self._numbers[path] = max(self._numbers[path], number)
        stamp = at.strftime("%Y-%m-%dT%H:%M:%SZ") if at else self.stamp()
        before = self.records[path].get(number)
        record = {
            "id": number,
            "add_time": stamp,
            "is_deleted": False,
            **(before or {}),
            **values,
            "update_time": stamp,
        }
        if path == "deals":
            record = {"status": "open", "is_archived": False, **record}
        if path == "persons":
            record = {"emails": [], "phones": [], "custom_fields": {}, **record}
            first, _, last = str(record.get("name", "")).partition(" ")
            record |= {"first_name": first or None, "last_name": last or None}
        record.setdefault("_since", self.now)
        self.records[path][number] = record
        self._call(path, "create" if before is None else "change", number, record, before)
        return number

    def delete(self, path: str, number: int, *, merged_into: int = 0) -> None:
        before = self.records[path][number]
        record = {**before, "is_deleted": True, "_deleted": self.now}
        if self.touches_deleted:
            record["update_time"] = self.stamp()
        self.records[path][number] = record
        self._call(
            path, "delete", number, None, before, merged_to_id=str(merged_into) if merged_into else None
        )

    def merge(self, loser: int, winner: int) -> None:
        """One person becomes part of another."""
        emails = [*self.records["persons"][winner]["emails"]]
        emails += [{**one, "primary": False} for one in self.records["persons"][loser]["emails"]]
        self.delete("persons", loser, merged_into=winner)
        self.put("persons", number=winner, emails=emails)
        self.calls[-1]["meta"]["merged_from_id"] = str(loser)
        named = {"loser": (loser, winner), "winner": (winner, loser)}[self.names_merged]
        self.records["persons"][named[0]]["_merge_what_id"] = named[1]

    def alive(self, path: str) -> dict[str, dict[str, Any]]:
        return {str(number): one for number, one in self.records[path].items() if not one["is_deleted"]}

    def add_field(
        self, name: str, type_: str, options: list[str] | None = None, of: str = "personFields"
    ) -> str:
        key = hashlib.sha1(f"{of}{name}{len(self.fields[of])}".encode()).hexdigest()
        self.fields[of].append(
            {
                "field_name": name, "field_code": key, "field_type": type_, "is_custom_field": True,
                "is_optional_response_field": False,
                "options": [{"id": 100 + index, "label": label} for index, label in enumerate(options)]
                if options is not None else None,
            }
        )  # fmt: skip
        return key

    def _call(self, path: str, action: str, number: int, data: Any, before: Any, **meta: Any) -> None:
        shown = {key: value for key, value in (data or {}).items() if key[0] != "_"}
        self.calls.append(
            {
                "meta": {
                    "action": action, "entity": PATHS[path], "entity_id": str(number), "change_source": "app",
                    "id": hashlib.sha1(f"{len(self.calls)}".encode()).hexdigest(), "timestamp": self.stamp(),
                    "version": "2.0", "attempt": 1, **{key: value for key, value in meta.items() if value},
                },
                "data": shown if data else None,
                "previous": {key: value for key, value in (before or {}).items() if key[0] != "_"} or None,
            }
        )  # fmt: skip

    # The wire

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.handle)

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.now += timedelta(seconds=self.latency)
        path, method = request.url.path, request.method
        query = {
            key: values[0]
            for key, values in parse_qs(request.url.query.decode(), keep_blank_values=True).items()
        }
        if path == "/oauth/token":
            return self._oauth(request)
        body = json.loads(request.content) if request.content else {}
        self.requests.append((method, path, query or body))
        self.before(path, method)
        if self._guarded(path):
            return self._guarded_answer
        failure = self.failures.popleft() if self.failures else None
        if failure == "before":
            raise httpx.ConnectError("no route to host")
        if isinstance(failure, tuple):
            return httpx.Response(failure[0], headers=failure[1], content=failure[2])
        if not self._is_known(request):
            return self._error(401, "unauthorized access " + str(request.headers.get("x-api-token")))
        cost = self._cost(path, method)
        if sum(self.costs.values()) + cost > self.daily:
            return self._answer(429, {"success": False, "error": "request over limit"}, daily=0)
        self.costs[f"{method} {path}"] += cost
        answer = self._route(method, path, query, body)
        if failure == "after":
            raise httpx.ReadTimeout("timed out")
        return answer

    def _is_known(self, request: httpx.Request) -> bool:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if bearer:
            return self.access_tokens.get(bearer, self.now) > self.now
        return request.headers.get("x-api-token") == TOKEN

    def _oauth(self, request: httpx.Request) -> httpx.Response:
        given = parse_qs(request.content.decode())
        basic = base64.b64encode(f"client:{CLIENT_SECRET}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {basic}" or given.get("refresh_token") != [
            REFRESH_TOKEN
        ]:
            return httpx.Response(
                400, json={"success": False, "error": "invalid_grant " + request.content.decode()}
            )
        token = f"access-{len(self.access_tokens)}"
        self.access_tokens[token] = self.now + timedelta(hours=1)
        said = {
            "access_token": token,
            "token_type": "Bearer",
            "refresh_token": REFRESH_TOKEN,
            "expires_in": 3600,
        }
        return httpx.Response(200, json={**said, "api_domain": "https://example.pipedrive.com"})

    def _guarded(self, path: str) -> bool:
        """Whether burst limit or Cloudflare stands before the API."""
        start = self.now - timedelta(seconds=2)
        for times in (self._made, self._searched):
            while times and times[0] <= start:
                times.popleft()
        if self.now < self._shield_until:
            self.shielded += 1
            self._guarded_answer = httpx.Response(
                403, headers={"content-type": "text/html", "date": self._date()}, content=SHIELD
            )
            return True
        self._made.append(self.now)
        if path.endswith("/search"):
            self._searched.append(self.now)
        if len(self._made) <= self.burst and len(self._searched) <= self.searches:
            return False
        self.refused += 1
        self._strikes.append(self.now)
        while self._strikes[0] < self.now - timedelta(seconds=10):
            self._strikes.popleft()
        if len(self._strikes) > 5:
            self._shield_until = self.now + timedelta(seconds=30)
        self._guarded_answer = self._answer(429, {"success": False, "error": "request over limit"})
        return True

    def _date(self) -> str:
        return format_datetime(self.now.replace(microsecond=0), usegmt=True)

    def _answer(self, status: int, content: dict[str, Any], daily: int | None = None) -> httpx.Response:
        headers = {"date": self._date()}
        if self.shows_limits:
            left = max(0, self.burst - len(self._made))
            headers |= {"x-ratelimit-limit": str(self.burst), "x-ratelimit-remaining": str(left),
                        "x-ratelimit-reset": "2"}  # fmt: skip
        if daily is not None:
            headers["x-daily-ratelimit-token-remaining"] = str(daily)
        return httpx.Response(status, headers=headers, json=content)

    def _error(self, status: int, error: str, **more: str) -> httpx.Response:
        return self._answer(status, {"success": False, "error": error, **more})

    def _data(self, data: Any, **more: Any) -> httpx.Response:
        return self._answer(200, {"success": True, "data": data, **more})

    @staticmethod
    def _cost(path: str, method: str) -> int:
        if path.endswith(("/search", "/archived", "/recents", "/users")):
            return 20
        if path.endswith("/me"):
            return 2
        if method != "GET":
            return 3 if method == "DELETE" else 5
        return 1 if path.rpartition("/")[2].isdigit() else 10

    def _route(self, method: str, path: str, query: dict[str, str], body: Any) -> httpx.Response:
        if path == "/v1/recents":
            return self._recents(query)
        if path == "/v1/users/me":
            return self._data({"id": 7, "name": "Sam Seller", "company_name": "Example Ltd"})
        if path == "/v1/users":
            return self._data(self.users)
        parts = path.removeprefix("/api/v2/").split("/")
        if not path.startswith("/api/v2/") or parts[0] not in {*PATHS, *self.fields}:
            return self._error(404, "no such path")
        kind = parts[0]
        if kind in self.fields:
            return self._field(method, kind, parts[1:], body)
        if len(parts) == 2 and parts[1] == "search":
            return self._search(query)
        if method == "GET" and (len(parts) == 1 or parts[1] == "archived"):
            return self._list(kind, query, is_archived=len(parts) == 2)
        if method == "GET":
            record = self.records[kind].get(int(parts[1]))
            if record is None or (record["is_deleted"] and not self.shows_deleted):
                return self._error(404, f"{PATHS[kind]} not found")
            return self._data(self._shown(record))
        if method == "DELETE":
            return self._delete(kind, int(parts[1]))
        return self._write(method, kind, int(parts[1]) if len(parts) == 2 else 0, body)

    def _list(self, kind: str, query: dict[str, str], *, is_archived: bool) -> httpx.Response:
        allowed = (LISTED | EXTRA[kind]) - ({"include_option_labels"} if is_archived else set())
        if strange := query.keys() - allowed:
            return self._error(400, f"unknown parameter {sorted(strange)[0]}")
        limit, since = int(query.get("limit", 100)), query.get("updated_since", "")
        if limit > 500:
            return self._error(400, "limit must be at most 500")
        if since and len(since) != len("2031-01-01T00:00:00Z"):
            return self._error(400, "updated_since must be RFC 3339")
        limit = min(limit, self.page)
        found = list(self.records[kind].values())
        if kind == "deals" and query.get("status") == "deleted":
            kept = self.now - timedelta(days=30)
            found = [one for one in found if one["is_deleted"] and one["_deleted"] >= kept]
        else:
            found = [one for one in found if not one["is_deleted"]]
        if kind == "deals" and query.get("status") != "deleted":
            found = [one for one in found if one["is_archived"] == is_archived]
        if "ids" in query:
            numbers = [int(number) for number in query["ids"].split(",")]
            if len(numbers) > 100:
                return self._error(400, "at most 100 ids")
            found = [one for one in found if one["id"] in numbers]
        if "person_id" in query:
            found = [one for one in found if one.get("person_id") == int(query["person_id"])]
        found = [one for one in found if one["update_time"] >= since]
        by, order = query.get("sort_by", "id"), query.get("sort_direction", "asc")
        same = hashlib.sha1(json.dumps({**query, "cursor": "", "path": is_archived}).encode()).hexdigest()[:8]

        def key(one: dict[str, Any]) -> tuple[Any, int]:
            return one[by], one["id"]

        found.sort(key=key, reverse=order == "desc")
        if query.get("cursor"):
            try:
                marker = json.loads(base64.urlsafe_b64decode(query["cursor"]))
            except ValueError:
                return self._error(400, "cursor is invalid")
            if marker["same"] != same:
                return self._error(400, "cursor is of another list")
            place = (marker["value"], marker["id"])
            found = [one for one in found if (key(one) > place if order == "asc" else key(one) < place)]
        page = found[:limit]
        following = None
        if len(found) > limit:
            marker = {"value": page[-1][by], "id": page[-1]["id"], "same": same}
            following = base64.urlsafe_b64encode(json.dumps(marker).encode()).decode()
        shown = [self._shown(one, labels=query.get("include_option_labels") == "true") for one in page]
        return self._data(shown, additional_data={"next_cursor": following})

    def _shown(self, record: dict[str, Any], *, labels: bool = False) -> dict[str, Any]:
        shown = {key: value for key, value in record.items() if key[0] != "_"}
        if labels and record.get("custom_fields"):
            names = {
                option["id"]: option["label"]
                for fields in self.fields.values() for one in fields for option in one["options"] or ()
            }  # fmt: skip

            def label(value: Any) -> Any:
                if isinstance(value, list):
                    return [label(part) for part in value]
                return (
                    {"id": value, "label": names[value]}
                    if isinstance(value, int) and value in names
                    else value
                )

            shown["custom_fields"] = {key: label(value) for key, value in record["custom_fields"].items()}
        return shown

    def _recents(self, query: dict[str, str]) -> httpx.Response:
        since = query["since_timestamp"].replace(" ", "T") + "Z"
        path = next(path for path, item in PATHS.items() if item == query["items"])
        found = [one for one in self.records[path].values() if one["update_time"] > since]
        found += [
            one for one in self.records[path].values()
            if one["is_deleted"] and one["update_time"] <= since
            and one["_deleted"].strftime("%Y-%m-%dT%H:%M:%SZ") > since
        ]  # fmt: skip
        found.sort(key=lambda one: (max(one["update_time"], self._gone_at(one)), one["id"]))
        start, limit = int(query["start"]), min(int(query["limit"]), self.page)
        page = found[start : start + limit]
        last = max(page[-1]["update_time"], self._gone_at(page[-1])) if page else None
        more: dict[str, Any] = {
            "since_timestamp": query["since_timestamp"],
            "last_timestamp_on_page": last and _v1(last),
            "pagination": {
                "start": start,
                "limit": limit,
                "more_items_in_collection": start + limit < len(found),
            },
        }
        data = [{"item": query["items"], "id": one["id"], "data": self._shown_v1(one)} for one in page]
        return self._data(data or None, additional_data=more)

    @staticmethod
    def _gone_at(record: dict[str, Any]) -> str:
        return record["_deleted"].strftime("%Y-%m-%dT%H:%M:%SZ") if record["is_deleted"] else ""

    @staticmethod
    def _shown_v1(record: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": record["id"], "active_flag": not record["is_deleted"], "name": record.get("name"),
            "update_time": _v1(record["update_time"]), "merge_what_id": record.get("_merge_what_id"),
        }  # fmt: skip

    def _search(self, query: dict[str, str]) -> httpx.Response:
        assert query["exact_match"] == "true"
        assert query["fields"] == "email"
        known = self.now - timedelta(seconds=self.search_lag)
        items = [
            {"result_score": 0.5, "item": {"id": one["id"], "type": "person", "name": one.get("name"),
             "emails": [email["value"] for email in one["emails"]]}}
            for one in self.records["persons"].values()
            if not one["is_deleted"] and one["_since"] <= known
            and query["term"].casefold() in {email["value"].casefold() for email in one["emails"]}
        ]  # fmt: skip
        return self._data({"items": items}, additional_data={"next_cursor": None})

    def _field(self, method: str, kind: str, rest: list[str], body: Any) -> httpx.Response:
        if method == "GET":
            return self._data(self.fields[kind], additional_data={"next_cursor": None})
        if rest:
            (one,) = [one for one in self.fields[kind] if one["field_code"] == rest[0]]
            added = [{"id": 200 + len(one["options"]) + index, **option} for index, option in enumerate(body)]
            one["options"] += added
            return self._data(added)
        if body["field_type"] == "enum" and not body.get("options"):
            return self._error(400, "options are required")
        options = [option["label"] for option in body["options"]] if "options" in body else None
        key = self.add_field(body["field_name"], body["field_type"], options)
        return self._data(next(one for one in self.fields[kind] if one["field_code"] == key))

    def _delete(self, kind: str, number: int) -> httpx.Response:
        if number not in self.records[kind] or self.records[kind][number]["is_deleted"]:
            return self._error(404, f"{PATHS[kind]} not found")
        self.delete(kind, number)
        self.calls[-1]["meta"]["change_source"] = "api"
        return self._data({"id": number})

    def _write(self, method: str, kind: str, number: int, body: dict[str, Any]) -> httpx.Response:
        if strange := body.keys() - WRITABLE[kind]:
            return self._error(400, f"Validation failed: {sorted(strange)[0]}: unrecognized key")
        if method == "POST" and kind == "persons" and not body.get("name"):
            return self._error(400, "Validation failed: name: Name must be given.")
        if method == "PATCH" and (
            number not in self.records[kind] or self.records[kind][number]["is_deleted"]
        ):
            return self._error(404, f"{PATHS[kind]} not found")
        if problem := self._custom_problem(body.get("custom_fields") or {}):
            return self._error(400, problem)
        for name in ("emails", "phones"):
            if name in body and sum(bool(one.get("primary")) for one in body[name]) != bool(body[name]):
                return self._error(400, f"Validation failed: {name}: exactly one must be primary")
        if "custom_fields" in body and number:
            body = {
                **body,
                "custom_fields": {**self.records[kind][number]["custom_fields"], **body["custom_fields"]},
            }
        if body.get("participants"):
            body = {
                **body,
                "person_id": next(one["person_id"] for one in body["participants"] if one["primary"]),
            }
        number = self.put(kind, number=number, **body)
        self.calls[-1]["meta"]["change_source"] = "api"
        return self._data(self._shown(self.records[kind][number]))

    def _custom_problem(self, custom: dict[str, Any]) -> str:
        known = {one["field_code"]: one for one in self.fields["personFields"]}
        for key, value in custom.items():
            if key not in known:
                return f"Validation failed: custom_fields: {key} is unknown"
            if value is None:
                continue
            type_, options = known[key]["field_type"], {one["id"] for one in known[key]["options"] or ()}
            fits = {
                "varchar": isinstance(value, str) and len(value) <= 255,
                "text": isinstance(value, str),
                "double": isinstance(value, int | float) and not isinstance(value, bool),
                "date": isinstance(value, str) and len(value) == 10,
                "enum": value in options if isinstance(value, int) else False,
                "set": isinstance(value, list) and bool(value) and set(value) <= options,
            }
            if not fits.get(type_, True):
                return f"Validation failed: custom_fields.{key}: {value!r} is no {type_}"
        return ""


def _v1(stamp: str) -> str:
    return stamp.replace("T", " ").removesuffix("Z")
