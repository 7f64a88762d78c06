"""The event API: our own form at /v1/events, Segment's at /v1/track and so on, and entries of journeys.

An answer of success means that the events are on disk in the stream. Whatever is not taken is said event by event, and
field by field, in one sentence; it is logged and counted, without what the caller wrote.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol, TypeVar

from gateway.appending import Appender
from gateway.events import MOST_EVENTS, Event, EventError, parse_event, parse_json
from gateway.http import Answer, BadEncodingError, Request, TooLargeError, TooSlowError
from gateway.keys import Keys, given_key
from gateway.metrics import Metrics, Refusal
from gateway.segment import ROUTES, parse_message
from gateway.settings import ApiKey, GatewaySettings
from gateway.streams import StreamError, StreamFullError
from warehouse.buckets import Buckets, Demand, LimitError, LocalBuckets, RedisBuckets
from warehouse.errors import MailhouseError

LONGEST_BODY = 2 << 20
"""Bytes of a request, unpacked."""
_COME_AGAIN = 2  # seconds, when the stream is full
_LATER = 5  # seconds, when it does not answer
_LONG_BYTES = 50_000
_USUAL_BYTES = 500  # of an event
_CONTACT = ("email", "external_id", "source", "anonymous_id")
_JOURNEY = re.compile(r"/v1/journeys/([a-z][a-z0-9_]{0,62})/entries")
T = TypeVar("T")
_log = logging.getLogger("mailhouse.gateway")


class JourneyMoves(Protocol):
    """Moves contacts into journeys and out of them."""

    def move(
        self,
        journey: str,
        action: Literal["enter", "leave"],
        contact: dict[str, str],
        request_id: str,
        cause: str,
        now: datetime,
    ) -> Literal["accepted", "unknown_journey", "unknown_contact"]:
        """Ask for a move; the same request_id counts once. Returns when the warehouse has it.

        Args:
            contact: hints: email, external_id with source, anonymous_id; those that were given.

        Raises:
            MailhouseError: it could not be stored.
        """
        ...


class EventApi:
    """Answers what begins with /v1/.

    Args:
        journeys: takes requests for journeys; None where there are none.
        now: the time, through the settings' clock.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        appender: Appender,
        metrics: Metrics,
        *,
        journeys: JourneyMoves | None = None,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        self._settings, self._appender, self._metrics = settings, appender, metrics
        self._journeys = journeys
        self._now = now or settings.now
        self._keys = Keys(settings.gateway_keys)
        self._origins = settings.origins
        self._is_shared = settings.redis_url is not None
        self._buckets: Buckets = (
            RedisBuckets(settings.redis_url.get_secret_value()) if settings.redis_url else LocalBuckets()
        )

    async def answer(self, request: Request) -> Answer:
        """Answer one request."""
        answer = await self._answer(request)
        origin = request.header(b"origin")
        if origin and (origin in self._origins or "*" in self._origins):
            # no cookies are ever read, so any page may be told
            answer.headers += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"vary", b"origin"),
            ]
            if request.method == "OPTIONS":
                answer.headers += [
                    (b"access-control-allow-methods", b"POST"),
                    (
                        b"access-control-allow-headers",
                        b"authorization, content-type, x-api-key, content-encoding",
                    ),
                    (b"access-control-max-age", b"86400"),
                ]
        return answer

    async def _answer(self, request: Request) -> Answer:
        name = request.path.removeprefix("/v1/").rstrip("/")
        journey = _JOURNEY.fullmatch(request.path)
        if name not in ("events", "m") and name not in ROUTES and journey is None:
            return _error(404, "not_found", "There is nothing at this address.")
        if request.method == "OPTIONS":
            return Answer(204, headers=[(b"allow", b"POST, OPTIONS")])
        if request.method != "POST":
            return _error(405, "not_allowed", "Events are posted.", (b"allow", b"POST, OPTIONS"))
        if name == "m":
            # counters about itself that a library in browsers posts
            return Answer.json(200, {"success": True})
        key = self._keys.find(given_key(request))
        # in a page there is no place for headers: Segment's script puts its key into the message
        if key is None and (name not in ROUTES or request.header(b"authorization")):
            return self._bad_key()
        try:
            body = await request.body(LONGEST_BODY)
            value = await _in_thread(len(body), lambda: parse_json(body))
        except TooLargeError:
            return self._refuse("too_large", 413, f"A request has {LONGEST_BODY:,} bytes at most.")
        except TooSlowError:
            return self._refuse("hostile_body", 408, "The body did not arrive in time.")
        except BadEncodingError:
            return self._refuse(
                "hostile_body", 415, "Content-Encoding is gzip, deflate or identity, or none."
            )
        except EventError as error:
            return self._refuse("hostile_body" if error.is_hostile else "invalid", 400, error.problem)
        if key is None and isinstance(value, dict) and isinstance(value.get("writeKey"), str):
            key = self._keys.find(value["writeKey"])
        if key is None:
            return self._bad_key()
        if journey is not None:
            return await self._move(journey[1], value, *key)
        if name == "events":
            return await self._post_events(value, *key)
        return await self._post_messages(value, ROUTES[name], *key)

    async def _post_events(self, value: Any, name: str, limits: ApiKey) -> Answer:
        is_batch = isinstance(value, list) or (isinstance(value, dict) and "events" in value)
        if isinstance(value, dict) and is_batch:
            if strange := next((key for key in value if key != "events"), None):
                return self._refuse(
                    "invalid", 400, f"A batch has events and nothing else, not {strange[:60]!r}."
                )
            value = value["events"]
        given: Any = value if is_batch else [value]
        if problem := _wrong_number(given, "events"):
            return self._refuse(*problem)
        now = self._now()
        events, refused = await self._parsed(given, lambda one: parse_event(one, name, now))
        if not is_batch and refused:
            first = refused[0]
            return _error(400, "invalid", str(first["message"]), field=first["field"])
        if not events:
            return Answer.json(400, {"error": _said("invalid", "No event was taken."), "refused": refused})
        if (failure := await self._append(events, name, limits)) is not None:
            return failure
        ids: list[str | None] = [event.event_id for event in events]
        for one in refused:
            ids.insert(one["index"], None)
        return Answer.json(202, {"accepted": len(events), "event_ids": ids, "refused": refused})

    async def _post_messages(self, value: Any, kind: str, name: str, limits: ApiKey) -> Answer:
        sent_at = value.get("sentAt") if isinstance(value, dict) else None
        given: Any = [value]
        if not kind:
            given = value.get("batch") if isinstance(value, dict) else None
            if problem := _wrong_number(given, "batch"):
                return self._refuse(*problem)
        now = self._now()
        events, refused = await self._parsed(given, lambda one: parse_message(one, kind, name, sent_at, now))
        if not events:
            return Answer.json(
                400,
                {"success": False, "error": _said("invalid", "No message was taken."), "refused": refused},
            )
        if (failure := await self._append(events, name, limits)) is not None:
            return failure
        # 200 and not 202: some of Segment's libraries take nothing else for success
        return Answer.json(200, {"success": True, **({"refused": refused} if refused else {})})

    async def _parsed(
        self, given: Sequence[Any], parse: Callable[[Any], Event]
    ) -> tuple[list[Event], list[dict[str, Any]]]:
        events: list[Event] = []
        refused: list[dict[str, Any]] = []
        hostile = 0

        def work() -> None:
            nonlocal hostile
            for index, one in enumerate(given):
                try:
                    events.append(parse(one))
                except EventError as error:
                    refused.append({"index": index, "field": error.field, "message": str(error)})
                    hostile += error.is_hostile

        await _in_thread(len(given) * _USUAL_BYTES, work)
        if refused:
            _log.warning(
                "%d of %d events were refused, %d of them hostile", len(refused), len(given), hostile
            )
            self._metrics.refused("hostile_body", hostile)
            self._metrics.refused("invalid", len(refused) - hostile)
        return events, refused

    async def _append(self, events: list[Event], name: str, limits: ApiKey) -> Answer | None:
        """Store events; an answer if they were not."""
        try:
            wait = await self._wait(name, limits, len(events))
            if wait > 0:
                return self._refuse(
                    "rate_limited", 429, f"The key {name} posts more events than it may.", math.ceil(wait)
                )
            await self._appender.append(events)
        except StreamFullError:
            return self._refuse("stream_full", 429, "Too many events wait; send them again.", _COME_AGAIN)
        except (StreamError, LimitError) as error:
            _log.error("events were not taken: %s", error.message)
            return _error(
                503,
                "not_stored",
                "The events were not stored; send them again.",
                (b"retry-after", b"%d" % _LATER),
            )
        return None

    async def _wait(self, name: str, limits: ApiKey, number: int) -> float:
        """Seconds until a key may post so many events; 0: it may, and they count."""
        rate = limits.per_second or self._settings.gateway_rate_per_second
        if not rate:
            return 0.0
        burst = limits.burst or max(1, int(2 * rate))
        demand = Demand(f"gateway:{name}", rate, burst, min(number, burst))
        reserve = self._buckets.reserve
        wait = await asyncio.to_thread(reserve, [demand]) if self._is_shared else reserve([demand])
        if wait > 0:
            back = [Demand(demand.bucket, rate, burst, -demand.tokens)]
            await asyncio.to_thread(reserve, back) if self._is_shared else reserve(back)
        return wait

    async def _move(self, journey: str, value: Any, name: str, limits: ApiKey) -> Answer:
        if self._journeys is None:
            return _error(404, "unknown_journey", "There are no journeys here.")
        if not isinstance(value, dict):
            return self._refuse("invalid", 400, "An entry is an object.")
        try:
            contact, request_id, action = _move(value, name)
        except EventError as error:
            self._metrics.refused("hostile_body" if error.is_hostile else "invalid")
            return _error(400, "invalid", str(error), field=error.field)
        try:
            wait = await self._wait(name, limits, 1)
            if wait > 0:
                return self._refuse(
                    "rate_limited", 429, f"The key {name} posts more than it may.", math.ceil(wait)
                )
            result = await asyncio.to_thread(
                self._journeys.move, journey, action, contact, request_id, f"API key {name}", self._now()
            )
        except MailhouseError as error:
            _log.error("a journey's entry was not taken: %s", error.message)
            return _error(
                503, "not_stored", "It was not stored; send it again.", (b"retry-after", b"%d" % _LATER)
            )
        if result == "accepted":
            return Answer.json(202, {"accepted": 1, "request_id": request_id})
        words = {
            "unknown_journey": "There is no such journey.",
            "unknown_contact": "There is no such contact.",
        }
        return _error(404, result, words[result])

    def _bad_key(self) -> Answer:
        self._metrics.refused("bad_key")
        _log.warning("a call without a good API key was refused")
        return _error(
            401, "bad_key", "Send a key of this gateway: Authorization: Bearer KEY.",
            (b"www-authenticate", b'Bearer realm="events"'),
        )  # fmt: skip

    def _refuse(self, kind: Refusal, status: int, message: str, retry_after: int = 0) -> Answer:
        self._metrics.refused(kind)
        _log.warning("a call was refused: %s", kind)
        headers = [(b"retry-after", b"%d" % retry_after)] if retry_after else []
        return _error(status, kind, message, *headers)


async def _in_thread(size: int, work: Callable[[], T]) -> T:
    """Do what is long in a thread: meanwhile others are answered, clicks above all."""
    return await asyncio.to_thread(work) if size > _LONG_BYTES else work()


def _wrong_number(given: Any, name: str) -> tuple[Refusal, int, str] | None:
    if not isinstance(given, list):
        return "invalid", 400, f"{name} is a list of 1 to {MOST_EVENTS:,}."
    if not given:
        return "invalid", 400, f"{name} is empty."
    if len(given) > MOST_EVENTS:
        return "too_large", 413, f"{name} has {len(given):,} entries; {MOST_EVENTS:,} is the most."
    return None


def _move(value: dict[str, Any], name: str) -> tuple[dict[str, str], str, Literal["enter", "leave"]]:
    action = value.get("action", "enter")
    if action not in ("enter", "leave"):
        raise EventError("action", "It is enter or leave.")
    if strange := next((key for key in value if key not in (*_CONTACT, "request_id", "action")), None):
        raise EventError(strange[:60], "There is no such field.")
    hints = {key: value[key] for key in _CONTACT if key in value}
    # the rules for an event's hints and id are these, too
    checked = parse_event(
        {**hints, "type": "journey.requested", "event_id": value.get("request_id")},
        name,
        datetime.now().astimezone(),
    )
    if not value.get("request_id"):
        raise EventError("request_id", "It is missing. The same request sent twice counts once by it.")
    contact = {key: text for key in _CONTACT if (text := getattr(checked, key))}
    if "external_id" not in contact:
        contact.pop("source", None)
    return contact, checked.event_id, action


def _said(code: str, message: str, field: str = "") -> dict[str, str]:
    return {"code": code, "message": message, **({"field": field} if field else {})}


def _error(status: int, code: str, message: str, *headers: tuple[bytes, bytes], field: str = "") -> Answer:
    return Answer.json(status, {"error": _said(code, message, field)}, *headers)
