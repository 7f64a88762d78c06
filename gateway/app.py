"""The gateway as an ASGI application.

    GET  /unsubscribe/TOKEN    a page that asks; changes nothing
    POST /unsubscribe/TOKEN    unsubscribes: a mailbox provider's one-click call (RFC 8058), or the page's form
    GET, POST /preferences/TOKEN   the same page, from the link to preferences
    GET  /c/TOKEN/INDEX/TARGET leads on to the link's address, having stored `clicked`
    GET  /o/TOKEN.gif          a picture of one pixel, having stored `opened`
    POST /webhooks/PROVIDER    stores what a provider reports about messages; GET answers its check of the address
    GET  /healthz              200 if ledger and warehouse answer, 503 if not

A token that we did not make gets 404 and no reason, and so does a provider that is not set up. A POST is answered with
200 only when the event is stored. A click leads on whether or not it could be stored: the person is not to suffer for
our warehouse.
"""

from __future__ import annotations

import asyncio
import email.parser
import email.policy
import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, quote

from gateway.clicks import PIXEL, Clicks
from gateway.pages import confirm_page, done_page, refused_page, unstored_page
from gateway.unsubscribes import NotStoredError, Unsubscribes
from gateway.webhooks import Webhooks, answer_body
from senders.ledger import LedgerError
from warehouse.errors import WarehouseError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_LINK = re.compile(r"/(unsubscribe|preferences)/([A-Za-z0-9_-]{1,100})/?")
_CLICK = re.compile(r"/c/([A-Za-z0-9_-]{43}/[0-9]{1,5}/[A-Za-z0-9_-]{1,8000})")
_OPEN = re.compile(r"/o/([A-Za-z0-9_-]{43})\.gif")
_STORE_SECONDS = 2.0  # how long a person who clicked waits for the warehouse at most
_WEBHOOK = re.compile(r"/webhooks/([a-z0-9_]{1,40})/?")
_LONGEST_BODY = 16_384
# a thousand events of the wordiest provider
_LONGEST_WEBHOOK = 16 << 20
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
_HTML = b"text/html; charset=utf-8"

_log = logging.getLogger("mailhouse.gateway")


class _TooLongError(Exception):
    pass


class Gateway:
    """The application; `python -m gateway` serves it."""

    def __init__(self, unsubscribes: Unsubscribes, clicks: Clicks, webhooks: Webhooks) -> None:
        self.unsubscribes, self.clicks, self.webhooks = unsubscribes, clicks, webhooks
        self._storing: set[asyncio.Future[None]] = set()
        self.company = unsubscribes.settings.company_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the gateway does not speak {scope['type']}")
        method, path = scope["method"], scope["path"]
        if path == "/healthz":
            await self._health(method, send)
        elif link := _LINK.fullmatch(path):
            await self._link(method, link[1], link[2], scope, receive, send)
        elif click := _CLICK.fullmatch(path):
            await self._click(method, click[1], scope, send)
        elif opened := _OPEN.fullmatch(path):
            await self._open(method, opened[1], scope, send)
        elif webhook := _WEBHOOK.fullmatch(path):
            await self._webhook(method, webhook[1], scope, receive, send)
        else:
            await _not_found(method, send)

    async def _click(self, method: str, path: str, scope: Scope, send: Send) -> None:
        click = self.clicks.resolve(path)
        if click is None:
            await _not_found(method, send)
        elif method not in ("GET", "HEAD"):
            await _not_allowed(send, b"GET, HEAD")
        else:
            agent = _header(scope, b"user-agent")
            await self._store(
                lambda: self.clicks.store(
                    "clicked", click.message_id, agent=agent, click=click, method=method
                )
            )
            location = quote(click.url, safe=_URL_CHARACTERS)
            await _answer(send, 302, b"", extra=[(b"location", location.encode("ascii"))])

    async def _open(self, method: str, token: str, scope: Scope, send: Send) -> None:
        message_id = self.clicks.opened(token)
        if message_id is None:
            await _not_found(method, send)
        elif method not in ("GET", "HEAD"):
            await _not_allowed(send, b"GET, HEAD")
        else:
            agent = _header(scope, b"user-agent")
            await self._store(lambda: self.clicks.store("opened", message_id, agent=agent, method=method))
            body = b"" if method == "HEAD" else PIXEL
            await _answer(send, 200, body, content_type=b"image/gif")

    async def _store(self, work: Callable[[], None]) -> None:
        """Store an event; after a while the answer goes out and the storing goes on."""

        def store() -> None:
            try:
                work()
            except WarehouseError as error:
                _log.error("a click or open could not be stored: %s", error.message)

        # kept, or it may be collected before it is done
        storing = asyncio.ensure_future(asyncio.to_thread(store))
        self._storing.add(storing)
        storing.add_done_callback(self._storing.discard)
        await asyncio.wait([storing], timeout=_STORE_SECONDS)

    async def _health(self, method: str, send: Send) -> None:
        if method not in ("GET", "HEAD"):
            await _not_allowed(send, b"GET, HEAD")
            return

        def check() -> dict[str, str]:
            states: dict[str, str] = {}
            for name, probe in (
                ("warehouse", lambda: self.unsubscribes.warehouse.value("select 1")),
                ("ledger", self.unsubscribes.ledger.live_runs),
            ):
                try:
                    probe()
                    states[name] = "ok"
                except (WarehouseError, LedgerError) as error:
                    _log.warning("health of %s: %s", name, error.message)
                    states[name] = "does not answer"
            return states

        states = await asyncio.to_thread(check)
        is_well = all(state == "ok" for state in states.values())
        body = b"" if method == "HEAD" else json.dumps(states).encode()
        await _answer(send, 200 if is_well else 503, body, content_type=b"application/json")

    async def _webhook(self, method: str, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        if method not in ("GET", "HEAD", "POST"):
            await _not_allowed(send, b"GET, HEAD, POST")
            return
        if not await asyncio.to_thread(self.webhooks.knows, name):
            await _not_found(method, send)
            return
        if method != "POST":
            await _answer(send, 200, b"" if method == "HEAD" else b"{}", content_type=b"application/json")
            return
        try:
            body = await _body(receive, _LONGEST_WEBHOOK)
        except _TooLongError:
            await _answer(send, 413, answer_body("too long"), content_type=b"application/json")
            return
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        query = scope["query_string"].decode("latin-1")
        # the address as the provider was told it: some sign that
        target = scope.get("raw_path", scope["path"].encode()).decode("latin-1") + (
            f"?{query}" if query else ""
        )
        status, word = await asyncio.to_thread(self.webhooks.take, name, body, headers, target)
        extra = [(b"retry-after", b"60")] if status == 503 else None
        await _answer(send, status, answer_body(word), content_type=b"application/json", extra=extra)

    async def _link(
        self, method: str, purpose: str, token: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if method not in ("GET", "HEAD", "POST"):
            await _not_allowed(send, b"GET, HEAD, POST")
            return
        try:
            recipient = await asyncio.to_thread(self.unsubscribes.recipient, token, purpose)
            if recipient is None:
                await _not_found(method, send)
                return
            if method != "POST":
                page = confirm_page(recipient.email, self.company)
                await _answer(send, 200, b"" if method == "HEAD" else page)
                return
            fields = _fields(scope, await _body(receive))
            if fields.get("List-Unsubscribe") == "One-Click":
                how = "one_click"
            elif fields.get("confirm") == "yes":
                how = "form"
            else:
                page = refused_page("Nothing was changed", "This request does not say what to do.")
                await _answer(send, 400, page)
                return
            await asyncio.to_thread(self.unsubscribes.unsubscribe, recipient, how)
            await _answer(send, 200, done_page(recipient.email, self.company))
        except _TooLongError:
            await _answer(send, 413, refused_page("Too long", "This request is longer than it can be."))
        except NotStoredError as error:
            _log.error("an unsubscribe could not be stored: %s", error)
            page = b"" if method == "HEAD" else unstored_page()
            await _answer(send, 503, page, extra=[(b"retry-after", b"60")])


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _answer(
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: bytes = _HTML,
    extra: list[tuple[bytes, bytes]] | None = None,
) -> None:
    headers = [
        *_HEADERS, *(extra or []), (b"content-type", content_type), (b"content-length", str(len(body)).encode()),
    ]  # fmt: skip
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _not_found(method: str, send: Send) -> None:
    page = refused_page("Not found", "There is nothing at this address.")
    await _answer(send, 404, b"" if method == "HEAD" else page)


async def _not_allowed(send: Send, allowed: bytes) -> None:
    page = refused_page("Not possible", "This address does not take such requests.")
    await _answer(send, 405, page, extra=[(b"allow", allowed)])


async def _body(receive: Receive, longest: int = _LONGEST_BODY) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > longest:
            raise _TooLongError
        if not message.get("more_body"):
            return bytes(body)


def _header(scope: Scope, name: bytes) -> str:
    return next((value for known, value in scope["headers"] if known == name), b"").decode("latin-1")


def _fields(scope: Scope, body: bytes) -> dict[str, str]:
    """A form's fields; RFC 8058 allows both encodings."""
    content_type = _header(scope, b"content-type").encode("latin-1")
    if content_type.lower().startswith(b"multipart/form-data"):
        parsed = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(
            b"Content-Type: " + content_type + b"\r\n\r\n" + body
        )
        return {
            str(part.get_param("name", header="content-disposition")): str(part.get_payload()).strip()
            for part in (parsed.iter_parts() if parsed.is_multipart() else ())
        }
    # keep_blank_values: a field that is there is there
    values = parse_qs(body.decode("utf-8", "replace").strip(), keep_blank_values=True)
    return {name: entries[-1] for name, entries in values.items()}
