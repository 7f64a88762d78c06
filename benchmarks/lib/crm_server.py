"""A HubSpot that answers at once: so many contacts, all of them in memory, over HTTP in a process of its own.

    python benchmarks/lib/crm_server.py PORT CONTACTS

It has what loads and pushes ask for: search by id and by time of change (200 a call, no offsets), archived records,
reading and writing of batches, properties. Contact n has the id n; the first CONTACTS are as they were made until they
are edited. Texts are made of what was formatted beforehand, so that the client is measured and not the server.

Beside HubSpot's paths: `POST /edit {"first": 1, "count": 2000}` changes contacts as people would, `GET /calls` counts
what was asked since the last time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Sequence
from email.utils import formatdate
from typing import Any

import orjson

TOKEN = "pat-of-the-benchmark"  # noqa: S105
PAGE, LISTED, INPUTS = 200, 100, 100
OBJECTS, PROPERTIES = "/crm/objects/2026-09/contacts", "/crm/properties/2026-09/contacts"
FIRST_CHANGE = 1_600_000_000_000
"""When contact 0 changed, in milliseconds; the others 20 seconds after each other."""
STEP = 20_000
_CONTACT = (
    b'{"id":"%d","properties":{"associatedcompanyid":null,"city":"Town %d","country":"Germany","createdate":"%s",'
    b'"email":"person%d@example.com","firstname":"Pat","hs_additional_emails":null,"hs_calculated_merged_vids":null,'
    b'"hs_language":"en-gb","hs_merged_object_ids":null,"hs_object_id":"%d","hs_timezone":"europe_slash_berlin",'
    b'"lastmodifieddate":"%s","lastname":"Person %d","lifecyclestage":"lead","mobilephone":null,'
    b'"phone":"+49 30 %d"},"createdAt":"%s","updatedAt":"%s","archived":false,"url":"https://app.example/%d"}'
)
_PROPERTY = {"groupName": "contactinformation", "hidden": False, "calculated": False}
_FOUND = (
    "email", "firstname", "lastname", "city", "country", "phone", "mobilephone", "hs_additional_emails",
)  # fmt: skip


class Account:
    """The contacts, and what was asked of them."""

    def __init__(self, contacts: int) -> None:
        self.contacts = contacts
        self.calls: Counter[str] = Counter()
        # what was edited: id -> (time, properties); and in the order of time
        self.edited: dict[int, tuple[int, dict[str, Any]]] = {}
        self.order: list[tuple[int, int]] = []
        self.made: dict[str, int] = {}
        self.properties: list[dict[str, Any]] = [
            {"name": name, "label": name, "type": "string", "fieldType": "text", **_PROPERTY}
            for name in _FOUND
        ]
        self.now = FIRST_CHANGE + STEP * contacts

    def changed(self, number: int) -> int:
        """When a contact changed."""
        found = self.edited.get(number)
        return found[0] if found else FIRST_CHANGE + STEP * number

    def edit(self, number: int, properties: dict[str, Any]) -> int:
        """Change a contact; the time of it."""
        before = self.edited.get(number)
        if before is not None:
            del self.order[bisect_left(self.order, (before[0], number))]
        # readers go by the wall clock once they have read all
        self.now = max(self.now + 1, int(time.time() * 1_000))
        self.edited[number] = self.now, {**(before[1] if before else {}), **properties}
        insort(self.order, (self.now, number))
        return self.now

    def shown(self, number: int) -> bytes:
        """A contact as JSON."""
        at = _iso(self.changed(number))
        text = _CONTACT % (number, number % 1_000, at, number, number, at, number, number, at, at, number)
        found = self.edited.get(number)
        if found is None:
            return text
        record = orjson.loads(text)
        record["properties"] |= found[1]
        return orjson.dumps(record)

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        """Status and JSON."""
        path, _, query = target.partition("?")
        given = orjson.loads(body) if body else {}
        if path == "/calls":
            counted, self.calls = self.calls, Counter()
            return 200, orjson.dumps(counted)
        if path == "/edit":
            for number in range(given["first"], given["first"] + given["count"]):
                self.edit(number, {"city": f"Edited {self.now}"})
            return 200, b"{}"
        self.calls[path.removeprefix(OBJECTS) or "list"] += 1
        if path == f"{OBJECTS}/search":
            return self._search(given)
        if path == OBJECTS:
            return 200, b'{"results":[]}' if "archived=true" in query else self._list([1])
        if path.startswith(f"{OBJECTS}/batch/"):
            return self._batch(path.rpartition("/")[2], given)
        if path.startswith(PROPERTIES):
            return self._properties(method, given)
        return 404, b'{"message":"no such path"}'

    def _search(self, given: dict[str, Any]) -> tuple[int, bytes]:
        limit = min(PAGE, given["limit"])
        tests = {
            (test["propertyName"], test["operator"]): int(test["value"])
            for group in given["filterGroups"]
            for test in group["filters"]
        }
        if given["sorts"][0]["direction"] == "DESCENDING":
            newest = self.order[-1][1] if self.order else self.contacts
            return 200, self._list([newest], is_more=self.contacts > 1)
        last = self.contacts + len(self.made)
        if (after := tests.get(("hs_object_id", "GT"))) is not None and len(tests) == 1:
            numbers = range(after + 1, min(after + limit, last) + 1)
            return 200, self._list(numbers, is_more=after + limit < last)
        since = tests.get(("lastmodifieddate", "GTE"))
        if since is None:
            return 400, b'{"message":"this server has no such search"}'
        # those as they were made come first: all edits are later
        first = max(1, -(-(since - FIRST_CHANGE) // STEP))
        found: list[int] = []
        while first <= self.contacts and len(found) <= limit:
            if first not in self.edited:
                found.append(first)
            first += 1
        place = bisect_left(self.order, (since, 0))
        found += [number for _, number in self.order[place : place + limit + 1 - len(found)]]
        return 200, self._list(found[:limit], is_more=len(found) > limit)

    def _list(self, numbers: Sequence[int], *, is_more: bool = False) -> bytes:
        paging = b',"paging":{"next":{"after":"200"}}' if is_more else b""
        return b'{"total":%d,"results":[%s]%s}' % (
            self.contacts,
            b",".join([self.shown(number) for number in numbers]),
            paging,
        )

    def _batch(self, action: str, given: dict[str, Any]) -> tuple[int, bytes]:
        inputs = given["inputs"]
        if not 0 < len(inputs) <= INPUTS:
            return 400, b'{"message":"from 1 to 100 inputs"}'
        if action == "read":
            return 200, self._list([int(one["id"]) for one in inputs])
        results: list[dict[str, Any]] = []
        for one in inputs:
            number = self._number(one["id"]) if action == "upsert" else int(one["id"])
            is_new = number > self.contacts and number not in self.edited
            at = _iso(self.edit(number, one["properties"])).decode()
            results.append(
                {
                    "id": str(number), "properties": {**one["properties"], "lastmodifieddate": at}, "updatedAt": at,
                    "objectWriteTraceId": one.get("objectWriteTraceId"), "new": is_new,
                }
            )  # fmt: skip
        return 200, orjson.dumps({"status": "COMPLETE", "results": results})

    def _number(self, email: str) -> int:
        name = email.removeprefix("person").partition("@")[0]
        if name.isdigit() and 1 <= int(name) <= self.contacts:
            return int(name)
        return self.made.setdefault(email, self.contacts + len(self.made) + 1)

    def _properties(self, method: str, given: dict[str, Any]) -> tuple[int, bytes]:
        if method == "POST":
            self.properties += given.get("inputs", [given] if "type" in given else [])
        return 200, orjson.dumps({"results": self.properties})


def _iso(milliseconds: int) -> bytes:
    seconds, rest = divmod(milliseconds, 1_000)
    days, seconds = divmod(seconds, 86_400)
    day = _days.get(days)
    if day is None:
        import datetime

        day = _days[days] = (datetime.date(1970, 1, 1) + datetime.timedelta(days)).isoformat().encode()
    return b"%sT%02d:%02d:%02d.%03dZ" % (day, seconds // 3_600, seconds // 60 % 60, seconds % 60, rest)


_days: dict[int, bytes] = {}


class Server(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._transport: Any = None
        self._buffer = b""

    def connection_made(self, transport: Any) -> None:
        """Remember whom to answer."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._buffer += data
        while True:
            head, mark, rest = self._buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            _, found, length = head.lower().partition(b"\r\ncontent-length:")
            size = int(length.split(b"\r\n", 1)[0]) if found else 0
            if len(rest) < size:
                return
            self._buffer = rest[size:]
            method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            status, content = self._account.answer(method, target, rest[:size])
            self._transport.write(
                b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ndate: %s\r\ncontent-length: %d\r\n\r\n"
                % (status, formatdate(usegmt=True).encode(), len(content))
                + content
            )


async def serve(port: int, contacts: int) -> None:
    """Answer until killed."""
    account = Account(contacts)
    server = await asyncio.get_running_loop().create_server(lambda: Server(account), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2])))
