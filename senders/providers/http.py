"""What all providers that speak HTTP have in common: build calls, post them, read the answers.

A provider's file fills in three steps: `calls` (messages to requests), `parse` (an accepted answer to deliveries) and,
where the vendor has its own words for failure, `judge`. What is decided here, once: a message may be sent again only
if the provider certainly did not take it. That is so before the request's first byte went out, and when the provider
itself says no. A connection that is lost after that, or an answer that is not the provider's own (a gateway's page),
leaves the outcome `unknown`, and only the provider's events or `lookup` settle it.
"""

from __future__ import annotations

import functools
import logging
import re
import ssl
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr

from senders.loopback import is_loopback
from senders.message import Delivery, Message, Reason, RejectReason, Status
from senders.mime import mailbox
from senders.providers.base import Provider, ProviderRefusedError, ProviderUnavailableError
from senders.retries import is_retryable, parse_retry_after
from warehouse.errors import SettingsError

CONNECT_SECONDS = 10.0
#: How long an answer may take. Long: a message whose answer is not awaited is of unknown outcome.
ANSWER_SECONDS = 120.0
#: A connection that idled longer is not used again: the other end may be closing it as we begin.
IDLE_SECONDS = 4.0
_REPLY = 500
_BLANKS = re.compile(r"[\x00-\x20\x7f]+")


_T = TypeVar("_T")


class Verdict(Enum):
    """What an answer means for all messages of its call."""

    ACCEPTED = "accepted"
    #: certainly not accepted, and worth another try
    LATER = "later"
    #: certainly not accepted, because of what the call holds
    BAD = "bad"
    #: certainly not accepted, because of who we are or how we are set up
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Call:
    """One request and the messages it carries, in the order in which `parse` answers."""

    messages: Sequence[Message]
    path: str
    json: bytes | None = None
    form: Mapping[str, str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    note: str = ""


class NotSentError(Exception):
    """The request certainly did not reach the provider."""


class LostError(Exception):
    """The request may have reached the provider, and there is no answer."""


class TokenError(Exception):
    """No access token can be had; certainly nothing was sent.

    Attributes:
        is_refused: the vendor refuses our credentials, so trying again changes nothing.
    """

    def __init__(self, message: str, *, is_refused: bool) -> None:
        super().__init__(message)
        self.is_refused = is_refused


class TokenAuth(httpx.Auth):
    """OAuth 2 bearer tokens: fetched when needed, kept until a minute before they expire, once more after a 401.

    Args:
        fetch: asks the vendor for a token; returns the response of its token endpoint (RFC 6749 section 5).
    """

    def __init__(self, fetch: Callable[[], httpx.Response]) -> None:
        self._fetch = fetch
        self._token, self._expires_at = "", 0.0
        self._lock = threading.Lock()

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """httpx's hook."""
        token = self.token()
        request.headers["authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == 401:
            request.headers["authorization"] = f"Bearer {self.token(instead_of=token)}"
            yield request

    def token(self, *, instead_of: str = "") -> str:
        """A token that is good now.

        Args:
            instead_of: one that the vendor would not take.

        Raises:
            TokenError: there is none to be had.
        """
        with self._lock:
            if self._token and self._token != instead_of and time.monotonic() < self._expires_at:
                return self._token
            try:
                response = self._fetch()
            except httpx.RequestError as error:
                raise TokenError(f"no access token: {type(error).__name__}", is_refused=False) from error
            answer = json_object(response) or {}
            token, lasts = answer.get("access_token"), answer.get("expires_in", 3600)
            if not (response.is_success and isinstance(token, str) and token):
                words = answer.get("error") if isinstance(answer.get("error"), str) else ""
                raise TokenError(
                    f"no access token: {response.status_code} {words}".strip(),
                    is_refused=response.status_code in (400, 401, 403) and bool(answer),
                )
            seconds = float(lasts) if isinstance(lasts, int | float) else 3600.0
            self._token, self._expires_at = token, time.monotonic() + max(0.0, seconds - 60)
            return token


class HttpProvider(Provider):
    """Base of the providers that speak HTTP.

    Args:
        base_url: the vendor's address, without a trailing slash.
        secrets: never shown in a reply or an error, whatever the provider answers.
        connections: calls under way at once, each on a connection that is kept open (HTTP/1.1).
        transport: for tests.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: httpx.Auth | tuple[str, str] | None = None,
        secrets: Sequence[SecretStr | None] = (),
        connections: int = 4,
        timeout: float = ANSWER_SECONDS,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if connections < 1:
            raise SettingsError(f"MAILHOUSE_HTTP_CONNECTIONS is {connections}.", fix="Set it to 1 or more.")
        # httpx logs addresses, and some of them are secrets
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._secrets = [secret.get_secret_value() for secret in secrets if secret is not None]
        self._base_url, self._timeout, self._transport = base_url, timeout, transport
        self._headers, self._auth = {"user-agent": "mailhouse", **(headers or {})}, auth
        if is_loopback(urlsplit(base_url).hostname or ""):
            self.capabilities = replace(self.capabilities, reaches_people=False)
        self._connections = connections
        self._pool: ThreadPoolExecutor | None = None
        self._refused: ProviderRefusedError | None = None
        self._lock = threading.Lock()

    @cached_property
    def _client(self) -> httpx.Client:
        # made when it is first needed: whoever only reads webhooks calls nobody
        return httpx.Client(
            base_url=self._base_url,
            headers=self._headers,
            auth=self._auth,
            timeout=httpx.Timeout(self._timeout, connect=CONNECT_SECONDS),
            limits=httpx.Limits(
                max_connections=self._connections,
                max_keepalive_connections=self._connections,
                keepalive_expiry=IDLE_SECONDS,
            ),
            transport=self._transport,
            verify=_trust(),
            follow_redirects=False,
        )

    # what a vendor's file fills in

    @abstractmethod
    def calls(self, batch: Sequence[Message]) -> Iterable[Call]:
        """Spread messages over calls; each message is in exactly one."""

    @abstractmethod
    def parse(self, call: Call, response: httpx.Response) -> list[Delivery]:
        """Deliveries of an accepted call, one for each message.

        May raise ValueError, KeyError, TypeError or AttributeError where the answer is not what the vendor
        promises: the outcome is then unknown.
        """

    def problem(self, message: Message) -> str:
        """Why a message cannot go, in words; empty if it can."""
        try:
            for address in (
                message.recipient,
                message.sender,
                *((message.reply_to,) if message.reply_to else ()),
            ):
                mailbox(address.email)
        except ValueError as error:
            return str(error)
        return ""

    def judge(self, response: httpx.Response) -> Verdict:
        """What an answer means; vendors with words of their own override it."""
        status = response.status_code
        if 200 <= status < 300:
            return Verdict.ACCEPTED
        if is_retryable(status):
            return Verdict.LATER
        if status == 403 and not self.is_own(response):
            # what stands before the vendor's servers says 403 to those who call too often
            return Verdict.LATER
        if status in (400, 409, 410, 413, 415, 422):
            return Verdict.BAD
        if status < 500:
            return Verdict.REFUSED
        return Verdict.UNKNOWN

    def is_own(self, response: httpx.Response) -> bool:
        """Whether an answer is the vendor's own rather than a gateway's page."""
        return json_object(response) is not None

    def culprits(self, call: Call, response: httpx.Response) -> set[int] | None:
        """Positions of the messages that a bad call was refused for.

        None if the answer does not tell, and the call is then halved; all of them if it is what they share.
        """
        del call, response
        return None

    def reject_reason(self, response: httpx.Response) -> RejectReason:
        """Why a call with one message was refused."""
        del response
        return RejectReason.OTHER

    def retry_after(self, response: httpx.Response) -> float | None:
        """Seconds that an answer asks us to wait."""
        return parse_retry_after(response.headers.get("retry-after", ""))

    # the same for all

    def send(self, batch: Sequence[Message]) -> list[Delivery]:
        """Hand messages over, several calls at a time.

        Raises:
            ProviderUnavailableError, ProviderRefusedError: nothing was handed over.
        """
        if self._refused is not None:
            raise self._refused
        answers: dict[str, Delivery] = {}
        sendable: list[Message] = []
        for message in batch:
            if problem := self.problem(message):
                answers[message.message_id] = Delivery(
                    message.message_id, Status.INVALID, RejectReason.INVALID, reply=problem[:_REPLY]
                )
            else:
                sendable.append(message)
        for delivery in self._deliver(sendable):
            answers[delivery.message_id] = delivery
        tried = [answers[message.message_id] for message in sendable if message.message_id in answers]
        if self._refused is not None and all(_was_not_taken(answer) for answer in tried):
            raise self._refused
        if tried and all(answer.is_transient for answer in tried):
            waits = [answer.retry_after for answer in tried if answer.retry_after is not None]
            raise ProviderUnavailableError(
                f"Provider {self.name} takes nothing now: {tried[0].reply or 'no answer'}.",
                fix="Try again later; what was not sent waits for the next run.",
                retry_after=max(waits, default=None),
            )
        return [
            answers.get(message.message_id)
            or Delivery(message.message_id, Status.UNKNOWN, reply="the provider gave no answer about it")
            for message in batch
        ]

    def _deliver(self, messages: Sequence[Message]) -> list[Delivery]:
        calls = list(self.calls(messages)) if messages else []
        if len(calls) <= 1 or self._connections == 1:
            return [delivery for call in calls for delivery in self._run(call)]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._connections, thread_name_prefix=self.name)
        return [delivery for answers in self._pool.map(self._run, calls) for delivery in answers]

    def _run(self, call: Call) -> list[Delivery]:
        if self._refused is not None:
            return _each(call, Status.FAILED, Reason.SENDER_REFUSED, self._refused.message)
        try:
            response = self.request(call)
        except NotSentError as error:
            return self._later(call, str(error), None)
        except TokenError as error:
            if not error.is_refused:
                return self._later(call, self.clean(str(error)), None)
            with self._lock:
                self._refused = self._refused or self._token_refusal(error)
            return _each(call, Status.FAILED, Reason.SENDER_REFUSED, self.clean(str(error)))
        except LostError as error:
            return _each(call, Status.UNKNOWN, "", str(error))
        verdict = self.judge(response)
        if verdict is Verdict.ACCEPTED:
            try:
                return self.parse(call, response)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                return _each(call, Status.UNKNOWN, "", f"not the vendor's answer: {self.words(response)}")
        if verdict is Verdict.LATER:
            return self._later(call, self.words(response), self.retry_after(response))
        if verdict is Verdict.BAD:
            return self._isolate(call, response)
        if verdict is Verdict.REFUSED:
            with self._lock:
                self._refused = self._refused or self.refusal(response)
            return _each(call, Status.FAILED, Reason.SENDER_REFUSED, self.words(response))
        return _each(call, Status.UNKNOWN, "", self.words(response))

    def _later(self, call: Call, reply: str, retry_after: float | None) -> list[Delivery]:
        return [
            Delivery(
                message.message_id, Status.FAILED, Reason.DEFERRED, reply=reply[:_REPLY], is_transient=True,
                retry_after=retry_after,
            )
            for message in call.messages
        ]  # fmt: skip

    def _isolate(self, call: Call, response: httpx.Response) -> list[Delivery]:
        """Refuse the messages that a call failed for, and send the others, since none of them was taken."""
        count = len(call.messages)
        guilty = set(range(count)) if count == 1 else self.culprits(call, response)
        if not guilty:
            half = count // 2
            return self._again(call.messages[:half]) + self._again(call.messages[half:])
        reason, reply = self.reject_reason(response), self.words(response)
        refused = [
            Delivery(call.messages[position].message_id, Status.REJECTED, reason, reply=reply)
            for position in sorted(guilty)
        ]
        return refused + self._again([m for at, m in enumerate(call.messages) if at not in guilty])

    def _again(self, messages: Sequence[Message]) -> list[Delivery]:
        # not by the pool: this is one of its threads already
        return [
            delivery for call in (self.calls(messages) if messages else ()) for delivery in self._run(call)
        ]

    def refusal(self, response: httpx.Response) -> ProviderRefusedError:
        """The error for an answer that refuses us altogether."""
        return ProviderRefusedError(
            f"Provider {self.name} refuses us: {self.words(response)}.",
            fix=f"Correct the settings of {self.name} (docs/providers.md), then send again.",
        )

    def _token_refusal(self, error: TokenError) -> ProviderRefusedError:
        return ProviderRefusedError(
            f"Provider {self.name} refuses our credentials: {self.clean(str(error))}.",
            fix=f"Correct the credentials of {self.name} (docs/providers.md), then send again.",
        )

    def request(self, call: Call) -> httpx.Response:
        """Make one request.

        Raises:
            NotSentError: it certainly did not get there.
            LostError: it may have got there.
            TokenError: there is no access token for it.
        """
        has_begun = False

        def trace(event: str, _: Mapping[str, Any]) -> None:
            nonlocal has_begun
            has_begun = has_begun or event.endswith("send_request_headers.started")

        headers = dict(call.headers)
        if call.json is not None:
            headers.setdefault("content-type", "application/json")
        try:
            return self._client.request(
                call.method, call.path, content=call.json, data=dict(call.form) if call.form is not None else None,
                headers=headers, extensions={"trace": trace},
            )  # fmt: skip
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise NotSentError(f"no connection: {self.clean(str(error)) or type(error).__name__}") from error
        except httpx.RequestError as error:
            words = self.clean(str(error)) or type(error).__name__
            if has_begun:
                raise LostError(f"connection lost after the call began: {words}") from error
            raise NotSentError(f"connection lost before the call began: {words}") from error

    def ask(self, call: Call, what: str) -> httpx.Response:
        """A call that carries no message; the answer is one that accepts.

        Raises:
            ProviderUnavailableError: no answer, or not now. ProviderRefusedError: the provider says no.
        """
        try:
            response = self.request(call)
        except TokenError as error:
            if error.is_refused:
                raise self._token_refusal(error) from error
            raise ProviderUnavailableError(
                f"Provider {self.name} gives us no token: {self.clean(str(error))}.", fix="Try again later."
            ) from error
        except (NotSentError, LostError) as error:
            raise ProviderUnavailableError(
                f"Provider {self.name} did not answer when asked to {what}: {error}.", fix="Try again later."
            ) from error
        verdict = self.judge(response)
        if verdict is Verdict.ACCEPTED:
            return response
        message = f"Provider {self.name} would not {what}: {self.words(response)}."
        if verdict in (Verdict.LATER, Verdict.UNKNOWN):
            raise ProviderUnavailableError(
                message, fix="Try again later.", retry_after=self.retry_after(response)
            )
        raise ProviderRefusedError(message, fix=f"Correct the settings of {self.name} (docs/providers.md).")

    def words(self, response: httpx.Response) -> str:
        """Status and text of an answer on one line, without secrets, at most 500 characters."""
        try:
            text = response.text
        except (UnicodeDecodeError, LookupError):
            text = ""
        return self.clean(f"{response.status_code} {text[: 4 * _REPLY]}")[:_REPLY]

    def clean(self, text: str) -> str:
        """A text on one line, without secrets."""
        for secret in self._secrets:
            if secret:
                text = text.replace(secret, "***")
        return _BLANKS.sub(" ", text).strip()

    def close(self) -> None:
        """Give connections back."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        if "_client" in self.__dict__:
            self._client.close()


@functools.cache
def _trust() -> ssl.SSLContext:
    # reading the authorities takes longer than a call
    return httpx.create_ssl_context()


def required(value: _T | None, provider: str, what: str, setting: str, fix: str) -> _T:
    """A setting that a provider cannot do without.

    Args:
        what: it is, with its article.
        setting: its name in `SenderSettings`.

    Raises:
        SettingsError: it is not set.
    """
    if not value:
        raise SettingsError(
            f"Provider {provider} needs {what}, and MAILHOUSE_{setting.upper()} is not set.", fix=fix
        )
    return value


def json_object(response: httpx.Response) -> dict[str, Any] | None:
    """The body as a JSON object; None if it is none."""
    try:
        value = response.json()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def seconds_until(epoch: str) -> float | None:
    """Seconds until a moment given in seconds since 1970, such as `X-RateLimit-Reset`; None if it is no number."""
    try:
        return max(0.0, float(epoch) - time.time())
    except ValueError:
        return None


def unique_recipients(messages: Iterable[Message], most: int) -> list[list[Message]]:
    """Spread messages so that no group has an address twice (case does not count), nor more than `most`.

    Raises:
        ValueError: an address is none; `HttpProvider.problem` finds those before.
    """
    given = list(messages)
    keys = [mailbox(message.recipient.email).lower() for message in given]
    groups: list[list[Message]] = [given] if given else []
    # nearly always no address is there twice
    if len(set(keys)) < len(keys):
        groups = []
        counts: dict[str, int] = {}
        for key, message in zip(keys, given, strict=True):
            layer = counts.get(key, 0)
            counts[key] = layer + 1
            while len(groups) <= layer:
                groups.append([])
            groups[layer].append(message)
    return [group[start : start + most] for group in groups for start in range(0, len(group), most)]


def _was_not_taken(answer: Delivery) -> bool:
    return answer.is_transient or answer.reason == Reason.SENDER_REFUSED


def _each(call: Call, status: Status, reason: str, reply: str) -> list[Delivery]:
    return [Delivery(message.message_id, status, reason, reply=reply[:_REPLY]) for message in call.messages]
