"""The gateway as an ASGI application: which request goes where.

    POST /v1/events            events from shops and apps, one or many; /v1/track, /v1/batch ... as Segment sends them
    POST /v1/journeys/NAME/entries   puts a contact into a journey, or takes it out
    GET  /openapi.json         all of /v1/, as OpenAPI 3.1
    GET  /unsubscribe/TOKEN    a page that asks; changes nothing
    POST /unsubscribe/TOKEN    unsubscribes: a mailbox provider's one-click call (RFC 8058), or the page's form
    POST /v1/subscribe         asks for a subscription; GET, POST /subscribe is the form for people
    GET  /confirm/TOKEN        a page that asks; POST confirms a subscription (double opt-in)
    GET, POST /preferences/TOKEN   what the recipient gets, and changing it
    GET  /c/TOKEN/INDEX/TARGET leads on to the link's address; `clicked` goes into the stream
    GET  /o/TOKEN.gif          a picture of one pixel; `opened` goes into the stream
    POST /webhooks/NAME        takes what a provider or a CRM reports; GET answers its check of the address
    GET  /healthz              200 if this process works
    GET  /readyz               200 if stream and ledger answer, and the warehouse too, or says which does not (503)
    GET  /metrics              what was counted, for Prometheus

A token that we did not make gets 404 and no reason, and so does a provider that is not set up. A success means that
what was sent is on disk. A click leads on whether or not it could be stored: the person is not to suffer for it.
"""

from __future__ import annotations

import asyncio
import email.parser
import email.policy
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, quote

from gateway import openapi
from gateway.api import EventApi
from gateway.appending import Appender
from gateway.clicks import PIXEL, Clicks
from gateway.events import EventError
from gateway.http import (
    JSON,
    Answer,
    BadEncodingError,
    Receive,
    Request,
    Scope,
    Send,
    TooLargeError,
    TooSlowError,
)
from gateway.metrics import CONTENT_TYPE, Metrics, Refusal
from gateway.pages import (
    blocked_page,
    confirm_page,
    confirm_subscription_page,
    confirmed_page,
    done_page,
    expired_page,
    preferences_page,
    refused_page,
    requested_page,
    subscribe_page,
    unstored_page,
)
from gateway.preferences import Caller, PreferenceCentre
from gateway.streams import EventStream, StreamError
from gateway.subscriptions import Subscriptions, Wish, clean_address, wished_purposes
from gateway.unsubscribes import NotStoredError, Recipient, Unsubscribes
from gateway.webhooks import Webhooks, answer_body
from senders.ledger import LedgerError
from senders.unsubscribe import make_token
from warehouse.errors import MailhouseError, WarehouseError

_LINK = re.compile(r"/(unsubscribe|preferences|confirm)/([A-Za-z0-9_-]{1,100})/?")
_CLICK = re.compile(r"/c/([A-Za-z0-9_-]{43}/[0-9]{1,5}/[A-Za-z0-9_-]{1,8000})")
_OPEN = re.compile(r"/o/([A-Za-z0-9_-]{43})\.gif")
_WEBHOOK = re.compile(r"/webhooks/([a-z0-9_]{1,40})/?")
_STORE_SECONDS = 2.0  # how long a person who clicked waits for the stream at most
_LONGEST_BODY = 16_384
# a thousand events of the wordiest provider
_LONGEST_WEBHOOK = 16 << 20
_MOST_FIELDS = 200
_LONGEST_AGENT = 500
_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
     b"frame-ancestors 'none'; base-uri 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-robots-tag", b"noindex"),
]  # fmt: skip
# what may stand in a URL as it is (RFC 3986), and %, for what is encoded already
_URL_CHARACTERS = "%:/?#[]@!$&'()*+,;=-._~"
_DONE = {
    "save": "Your choices are saved.",
    "pause": "You will hear nothing from us for 30 days.",
    "stop": "You are unsubscribed from everything.",
}

_log = logging.getLogger("mailhouse.gateway")


class Gateway:
    """The application; `python -m gateway` serves it."""

    def __init__(
        self,
        api: EventApi,
        unsubscribes: Unsubscribes,
        preferences: PreferenceCentre,
        clicks: Clicks,
        webhooks: Webhooks,
        stream: EventStream,
        appender: Appender,
        metrics: Metrics,
        subscriptions: Subscriptions | None = None,
    ) -> None:
        self.subscriptions = subscriptions
        self.api, self.unsubscribes, self.preferences = api, unsubscribes, preferences
        self.clicks, self.webhooks = clicks, webhooks
        self.stream, self.appender, self.metrics = stream, appender, metrics
        self._storing: set[asyncio.Task[None]] = set()
        self.company = unsubscribes.settings.company_name
        self._described = openapi.document_bytes(unsubscribes.settings.base_url)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway does not speak {scope['type']}")
        started = time.perf_counter()
        request = Request(scope, receive)
        area, work = self._route(request)
        try:
            answer = await work
        except TooLargeError:
            answer = self._refuse("too_large", 413, "Too long", "This request is longer than it can be.")
        except TooSlowError:
            answer = self._refuse("hostile_body", 408, "Too slow", "This request did not arrive in time.")
        except BadEncodingError:
            answer = self._refuse(
                "hostile_body", 415, "Not readable", "This request is packed in no way we know."
            )
        except Exception:  # noqa: BLE001 - the caller is told, the log knows why
            _log.exception("a request of area %s failed", area)
            answer = Answer(500, refused_page("Something went wrong", "Please try again in a minute."))
        self.metrics.answered(area, answer.status, time.perf_counter() - started)
        body = b"" if request.method == "HEAD" else answer.body
        headers = [
            *_HEADERS, *answer.headers, (b"content-type", answer.content_type),
            (b"content-length", b"%d" % len(body)),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _route(self, request: Request) -> tuple[str, Awaitable[Answer]]:
        path = request.path
        if path.startswith("/v1/"):
            return "api", self.api.answer(request)
        if click := _CLICK.fullmatch(path):
            return "click", self._click(request, click[1])
        if opened := _OPEN.fullmatch(path):
            return "open", self._open(request, opened[1])
        if link := _LINK.fullmatch(path):
            purpose, token = link[1], link[2]
            return purpose, self._link(request, purpose, token)
        if webhook := _WEBHOOK.fullmatch(path):
            return "webhook", self._webhook(request, webhook[1])
        fixed: dict[str, Callable[[Request], Awaitable[Answer]]] = {
            "/healthz": self._health,
            "/readyz": self._ready,
            "/metrics": self._counted,
            "/openapi.json": self._openapi,
            "/subscribe": self._subscribe,
        }
        if path in fixed:
            return path[1:].partition(".")[0], fixed[path](request)
        # a token or a link that is not ours by its very form
        if path.startswith(("/c/", "/o/", "/unsubscribe/", "/preferences/", "/confirm/")):
            return "forged", self._forged()
        return "unknown", _not_found()

    # links in messages

    async def _click(self, request: Request, path: str) -> Answer:
        click = self.clicks.resolve(path)
        if click is None:
            return await self._forged()
        if request.method not in ("GET", "HEAD"):
            return _not_allowed(b"GET, HEAD")
        agent = request.header(b"user-agent")
        await self._store(
            lambda: self.clicks.event(
                "clicked", click.message_id, agent=agent, click=click, method=request.method
            )
        )
        location = quote(click.url, safe=_URL_CHARACTERS)
        return Answer(302, headers=[(b"location", location.encode("ascii"))])

    async def _open(self, request: Request, token: str) -> Answer:
        message_id = self.clicks.opened(token)
        if message_id is None:
            return await self._forged()
        if request.method not in ("GET", "HEAD"):
            return _not_allowed(b"GET, HEAD")
        agent = request.header(b"user-agent")
        await self._store(lambda: self.clicks.event("opened", message_id, agent=agent, method=request.method))
        return Answer(200, PIXEL, b"image/gif")

    async def _store(self, make: Callable[[], Any]) -> None:
        """Store an event; after a while the answer goes out and the storing goes on."""

        async def store() -> None:
            try:
                event = await asyncio.to_thread(make)
                await self.appender.append([event], is_promised=True)
            except MailhouseError as error:
                _log.error("a click or open could not be stored: %s", error.message)

        # kept, or it may be collected before it is done
        storing = asyncio.get_running_loop().create_task(store())
        self._storing.add(storing)
        storing.add_done_callback(self._storing.discard)
        await asyncio.wait([storing], timeout=_STORE_SECONDS)

    async def _link(self, request: Request, purpose: str, token: str) -> Answer:
        if request.method not in ("GET", "HEAD", "POST"):
            return _not_allowed(b"GET, HEAD, POST")
        try:
            if purpose == "confirm":
                return await self._confirm(request, token)
            recipient = await asyncio.to_thread(self.unsubscribes.recipient, token, purpose)
            if recipient is None:
                return await self._forged()
            if purpose == "preferences":
                return await self._choose(request, recipient)
            if request.method != "POST":
                return Answer(200, confirm_page(recipient, self.company))
            fields = _fields(request, await request.body(_LONGEST_BODY))
            if ("List-Unsubscribe", "One-Click") in fields:
                how = "one_click"
            elif ("confirm", "yes") in fields:
                how = "form"
            else:
                return _unclear()
            await asyncio.to_thread(self.unsubscribes.unsubscribe, recipient, how)
            return Answer(200, done_page(recipient, self.company))
        except NotStoredError as error:
            _log.error("a recipient's choice could not be stored: %s", error)
            return Answer(503, unstored_page(), headers=[(b"retry-after", b"60")])

    async def _choose(self, request: Request, recipient: Recipient) -> Answer:
        centre, status = self.preferences, ""
        if request.method != "POST":
            preferences = await asyncio.to_thread(centre.read, recipient)
        else:
            fields = _fields(request, await request.body(_LONGEST_BODY))
            what = next((value for name, value in fields if name == "do"), "")
            split = (value.partition(":") for name, value in fields if name == "want")
            pairs = [(purpose, channel) for purpose, _, channel in split]
            caller = _caller(request)
            if what == "save":
                preferences = await asyncio.to_thread(centre.save, recipient, pairs, caller=caller)
            elif what == "pause":
                preferences = await asyncio.to_thread(centre.pause, recipient, caller=caller)
            elif what == "stop":
                preferences = await asyncio.to_thread(centre.stop, recipient, caller=caller)
            else:
                return _unclear()
            status = _DONE[what]
        return Answer(200, preferences_page(recipient, self.company, preferences, status))

    # subscribing

    async def _subscribe(self, request: Request) -> Answer:
        subscriptions = self.subscriptions
        if request.method not in ("GET", "HEAD", "POST"):
            return _not_allowed(b"GET, HEAD, POST")
        if subscriptions is None:
            return await _not_found()
        try:
            offered = (await asyncio.to_thread(subscriptions.spec)).offered()
        except MailhouseError as error:
            _log.error("what can be subscribed to is not known: %s", error.message)
            return Answer(503, unstored_page(), headers=[(b"retry-after", b"60")])
        on_form = {name: text for name, text in offered.items() if text.has_form}
        # a page may lead to the form of one purpose: /subscribe?purpose=newsletter
        asked = [value for name, value in parse_qsl(request.target.partition("?")[2]) if name == "purpose"]
        shown = {name: text for name, text in on_form.items() if name in asked} or on_form
        if not shown:
            return await _not_found()
        if request.method != "POST":
            return Answer(200, subscribe_page(shown, self.company))
        fields = _fields(request, await request.body(_LONGEST_BODY))
        if any(name == "website" and value for name, value in fields):
            self.metrics.refused("honeypot")
            return Answer(200, requested_page(self.company))
        given = next((value for name, value in fields if name == "email"), "")
        chosen = [value for name, value in fields if name == "purpose"]
        problems: dict[str, str] = {}
        purposes: tuple[str, ...] = ()
        address = ""
        try:
            address = clean_address(given)
        except ValueError:
            problems["email"] = "This is no email address. Write it like ann@example.com."
        try:
            purposes = wished_purposes(chosen or None, list(on_form))
        except EventError:
            problems["purpose"] = "Choose at least one of what is offered."
        if problems:
            page = subscribe_page(shown, self.company, email=given[:300], chosen=chosen, problems=problems)
            return Answer(400, page)
        caller = _caller(request)
        where = next((value for name, value in fields if name == "page"), "") or request.header(b"referer")
        wish = Wish(
            address, purposes, ip=caller.ip, user_agent=caller.user_agent[:_LONGEST_AGENT],
            page=(where or f"{subscriptions.settings.base_url.rstrip('/')}/subscribe")[:_LONGEST_AGENT],
        )  # fmt: skip
        try:
            wait = await asyncio.to_thread(subscriptions.wait, caller.ip or "unknown")
            if wait > 0:
                self.metrics.refused("rate_limited")
                page = refused_page(
                    "Please wait a moment", "This was asked for too often. Try again in a minute."
                )
                return Answer(429, page, headers=[(b"retry-after", b"%d" % math.ceil(wait))])
            await asyncio.to_thread(subscriptions.request, wish)
        except (MailhouseError, NotStoredError) as error:
            _log.error("a subscription was not taken: %s", error)
            page = refused_page(
                "Please try again in a minute", "We could not store this just now; nothing has changed."
            )
            return Answer(503, page, headers=[(b"retry-after", b"60")])
        return Answer(200, requested_page(self.company))

    async def _confirm(self, request: Request, token: str) -> Answer:
        subscriptions = self.subscriptions
        if subscriptions is None:
            return await _not_found()
        is_new = False
        if request.method != "POST":
            found = await asyncio.to_thread(subscriptions.look, token)
        else:
            fields = _fields(request, await request.body(_LONGEST_BODY))
            if ("confirm", "yes") not in fields:
                return _unclear()
            chosen = [value for name, value in fields if name == "request"]
            before = await asyncio.to_thread(subscriptions.look, token)
            found = await asyncio.to_thread(subscriptions.confirm, token, chosen, _caller(request))
            is_new = before is not None and before.state == "open"
        if found is None:
            return await self._forged()
        if found.state == "open":
            return Answer(200, confirm_subscription_page(found, self.company))
        if found.state == "done":
            link = self.preference_link(found.recipient.message_id)
            return Answer(200, confirmed_page(found, self.company, link, is_new=is_new))
        if found.state == "refused":
            return Answer(409, blocked_page(found, self.company))
        return Answer(410, expired_page(self.company))

    def preference_link(self, message_id: str) -> str:
        """Where the recipient of a message chooses what to get."""
        token = make_token(self.unsubscribes.settings.signing_key(), message_id, "preferences")
        return f"/preferences/{token}"

    async def _forged(self) -> Answer:
        self.metrics.refused("forged_token")
        _log.warning("a link that we did not make was refused")
        return await _not_found()

    # others

    async def _webhook(self, request: Request, name: str) -> Answer:
        if request.method not in ("GET", "HEAD", "POST"):
            return _not_allowed(b"GET, HEAD, POST")
        if not await asyncio.to_thread(self.webhooks.knows, name):
            return await _not_found()
        if request.method != "POST":
            return Answer(200, b"{}", JSON)
        try:
            body = await request.body(_LONGEST_WEBHOOK)
        except TooLargeError:
            self.metrics.refused("too_large")
            return Answer(413, answer_body("too long"), JSON)
        status, word = await asyncio.to_thread(
            self.webhooks.take, name, body, request.headers, request.target
        )
        extra = [(b"retry-after", b"60")] if status == 503 else []
        answer, content_type = self.webhooks.answer(name, body, status, word)
        return Answer(status, answer, content_type, extra)

    async def _health(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return _not_allowed(b"GET, HEAD")
        return Answer.json(200, {"gateway": "ok"})

    async def _ready(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return _not_allowed(b"GET, HEAD")

        def check() -> dict[str, str]:
            states: dict[str, str] = {}
            for name, probe in (
                ("warehouse", lambda: self.unsubscribes.warehouse.value("select 1")),
                ("ledger", self.unsubscribes.ledger.live_runs),
                ("stream", self.stream.depth),
            ):
                try:
                    probe()
                    states[name] = "ok"
                except (WarehouseError, LedgerError, StreamError) as error:
                    _log.warning("%s is not ready: %s", name, error.message)
                    states[name] = "does not answer"
            return states

        states = await asyncio.to_thread(check)
        return Answer.json(200 if all(state == "ok" for state in states.values()) else 503, states)

    async def _counted(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return _not_allowed(b"GET, HEAD")
        return Answer(200, await asyncio.to_thread(self.metrics.text), CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return _not_allowed(b"GET, HEAD")
        return Answer(200, self._described, JSON, [(b"access-control-allow-origin", b"*")])

    def _refuse(self, kind: Refusal, status: int, title: str, text: str) -> Answer:
        self.metrics.refused(kind)
        _log.warning("a request was refused: %s", kind)
        return Answer(status, refused_page(title, text))


def _caller(request: Request) -> Caller:
    return Caller(request.client, request.header(b"user-agent")[:_LONGEST_AGENT].replace("\0", ""))


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _not_found() -> Answer:
    return Answer(404, refused_page("Not found", "There is nothing at this address."))


def _not_allowed(allowed: bytes) -> Answer:
    page = refused_page("Not possible", "This address does not take such requests.")
    return Answer(405, page, headers=[(b"allow", allowed)])


def _unclear() -> Answer:
    return Answer(400, refused_page("Nothing was changed", "This request does not say what to do."))


def _fields(request: Request, body: bytes) -> list[tuple[str, str]]:
    """A form's fields in order; RFC 8058 allows both encodings."""
    content_type = request.header(b"content-type").encode("latin-1")
    if content_type.lower().startswith(b"multipart/form-data"):
        parsed = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
            b"Content-Type: " + content_type + b"\r\n\r\n" + body
        )
        return [
            (str(part.get_param("name", header="content-disposition")), str(part.get_payload()).strip())
            for part in (parsed.iter_parts() if parsed.is_multipart() else ())
        ]
    try:
        # keep_blank_values: a field that is there is there
        return parse_qsl(
            body.decode("utf-8", "replace").strip(), keep_blank_values=True, max_num_fields=_MOST_FIELDS
        )
    except ValueError:
        return []
