"""What CRMs that speak HTTP have in common: a patient client that is paced and keeps its secrets.

A connector says what an answer means (`judge`) and how it proves who we are (`authorise`); waiting, repeating and
giving up are here.
"""

from __future__ import annotations

import json
import logging
import random
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import httpx

from crm.base import Connector, CrmError, CrmUnavailableError, Usage

logger = logging.getLogger(__name__)

ATTEMPTS = 7
"""How often a request is made before we give up; waits grow from half a second to half a minute."""
LONGEST_WAIT = 60.0
RETRIED = frozenset({408, 423, 429, 500, 502, 503, 504})
"""Statuses after which a request that is safe to repeat is repeated, unless a connector knows better."""


class Pace(Protocol):
    """An allowance that several processes may share."""

    def take(self, cost: float = 1) -> None:
        """Wait until so much may be spent, and spend it."""
        ...


class NoPace:
    """An allowance without an end."""

    def take(self, cost: float = 1) -> None:
        """Do not wait."""


@dataclass(frozen=True, slots=True)
class Again:
    """The answer of `judge` that means: ask once more.

    Attributes:
        trouble: a clause behind the CRM's name: `answers 503`.
        wait: seconds at least before that.
        is_unauthorised: credentials have run out: `renew` is called first, once.
    """

    trouble: str
    wait: float = 0.0
    is_unauthorised: bool = False


class HttpConnector(Connector):
    """A connector over HTTP.

    Args:
        base_url: where the API answers.
        pace: what calls may cost.
        transport: httpx's way out, e.g. `httpx.WSGITransport` of a fake; the network by default.
        sleep: how to wait.
    """

    title: ClassVar[str]
    """What people call the CRM."""

    def __init__(
        self,
        base_url: str,
        *,
        pace: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.usage = Usage()
        self._pace = pace or NoPace()
        self._sleep = sleep
        # httpx logs addresses, and those of searches name people
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._client = httpx.Client(
            base_url=base_url,
            transport=transport,
            timeout=httpx.Timeout(60, connect=10),
            # a redirect would carry the token elsewhere
            follow_redirects=False,
            headers={"accept": "application/json", "user-agent": "mailhouse"},
        )

    def close(self) -> None:
        """Give connections back."""
        self._client.close()

    @abstractmethod
    def authorise(self) -> Mapping[str, str]:
        """Headers that prove who we are."""

    @abstractmethod
    def judge(self, response: httpx.Response, what: str) -> Again | None:
        """None if the answer is one; `Again` if it is worth another attempt.

        Raises:
            CrmError: it is neither. The message holds no secret.
        """

    def renew(self) -> None:
        """Get new credentials; called once a request when `judge` finds them out of date."""

    def request(
        self,
        method: str,
        path: str,
        *,
        what: str,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        cost: float = 1,
        pace: Pace | None = None,
        is_safe: bool = True,
    ) -> httpx.Response:
        """One answer.

        Args:
            method, path: of the request; a whole URL must lead to the same host.
            what: what for, in a word or two: counted in `usage` and told in errors.
            params, body, content, headers: of the request; `body` is sent as JSON.
            cost: what it takes from the pace.
            pace: a second allowance, of which each attempt takes one.
            is_safe: whether it does no harm to make the request twice. If not, it is repeated only where it
                certainly was not carried out: no connection, or a 429.

        Raises:
            CrmUnavailableError: no answer after `ATTEMPTS`.
            CrmError: what `judge` raised.
        """
        trouble, is_renewed = "", False
        for attempt in range(1, ATTEMPTS + 1):
            if pace is not None:
                pace.take()
            self._pace.take(cost)
            self.usage.add(what)
            try:
                response = self._client.request(
                    method,
                    path,
                    params=params,
                    json=body,
                    content=content,
                    headers={**self.authorise(), **(headers or {})},
                )
            except httpx.TransportError as error:
                trouble = f"does not answer ({type(error).__name__})"
                if not is_safe and not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                    raise CrmUnavailableError(
                        f"{self.title} {trouble} on {what}; whether it did what was asked is not known.",
                        fix="Run again: what was done is found by its key.",
                    ) from None
                self._wait(attempt, 0.0, trouble)
                continue
            verdict = self.judge(response, what)
            if verdict is None:
                return response
            trouble = verdict.trouble
            if verdict.is_unauthorised and not is_renewed:
                is_renewed = True
                self.renew()
                continue
            if not is_safe and response.status_code != 429:
                break
            self._wait(attempt, verdict.wait, trouble)
        raise CrmUnavailableError(
            f"{self.title} {trouble} on {what}, however often it was asked.",
            fix="See its status page and the network; then run again, it goes on where it stopped.",
        )

    def json(self, response: httpx.Response) -> Any:
        """An answer's JSON.

        Raises:
            CrmError: it is none.
        """
        try:
            return response.json()
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise CrmError(
                f"{self.title} answers {response.status_code}, but not with JSON.",
                fix="Correct its address: a proxy or a web page seems to answer there.",
            ) from None

    def _wait(self, attempt: int, least: float, trouble: str) -> None:
        if attempt == ATTEMPTS:
            return
        # full jitter, so that several readers do not come back together
        wait = min(max(least, random.uniform(0.25, 1.0) * min(30.0, 0.5 * 2**attempt)), LONGEST_WAIT)
        logger.info("%s %s; attempt %d follows in %.1f s", self.title, trouble, attempt + 1, wait)
        self._sleep(wait)


def is_header_text(text: str) -> bool:
    """Whether a text can be a token in a header; what cannot would come back in the library's error, token and all."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def objects_of(value: Any) -> list[dict[str, Any]]:
    """The objects of a list in an answer, however broken; none if it is no list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def seconds(text: str | None) -> float | None:
    """A number of seconds from a header such as Retry-After; None if it says none."""
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and 0 <= value < 1e9 else None
