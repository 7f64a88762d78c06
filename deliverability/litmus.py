"""Pictures of a message by real mail programs, from Litmus (its Instant API), for those who have an account there.

    POST /v1/emails                                  the message; answers with its email_guid
    GET  /v1/emails/GUID/previews/CLIENT/full        a PNG; the answer comes when the picture is taken
    GET  /v1/clients                                 names of the mail programs

The message is stored at Litmus for some time: choose a contact whose data may go there. Contract:
https://docs.litmus.com/instant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from deliverability.screenshots import VIEWS, ScreenshotError, View
from warehouse.yaml_specs import nearest

__all__ = ["LitmusScreenshots"]

_URL = "https://instant-api.litmus.com/v1"
_PNG = b"\x89PNG\r\n\x1a\n"
# a picture comes within seconds, one of a desktop program within half a minute
_AT_ONCE = 8
_LONGEST_PICTURE = 64 << 20


@dataclass(frozen=True)
class LitmusScreenshots:
    """Mail programs at Litmus, one picture each.

    Attributes:
        key: of the Instant API.
        clients: names of mail programs as Litmus has them, such as `OL2019`, `GMAILNEW` and `IPHONE13`; dark mode is
            a program of its own there.
        url: where the API is.
        seconds: limit for one call.
        transport: for tests; left out, the network.
    """

    key: str = field(repr=False)
    clients: tuple[str, ...]
    url: str = _URL
    seconds: float = 90.0
    transport: httpx.BaseTransport | None = None

    def take(self, html: str, views: Sequence[View] = VIEWS) -> Mapping[str, bytes]:  # noqa: ARG002
        """The message in each mail program, as PNG, by the program's name; `views` are a browser's and not used.

        Raises:
            ScreenshotError: Litmus refuses the key or a name, or does not answer as it should.
        """
        with httpx.Client(
            base_url=self.url, auth=(self.key, ""), timeout=self.seconds, transport=self.transport
        ) as http:
            known = self._names(http)
            if not self.clients:
                raise ScreenshotError(
                    "No mail program is named that Litmus is to show the message in.",
                    fix=f"Set MAILHOUSE_LITMUS_CLIENTS to some of: {', '.join(sorted(known))}.",
                )
            for name in self.clients:
                if name not in known:
                    hint = nearest(name, sorted(known), shown=20)
                    raise ScreenshotError(f"Litmus has no mail program {name!r}.", fix=hint)
            body = _json(self._call(http, "POST", "/emails", json={"html_text": html}))
            guid = body.get("email_guid") if isinstance(body, dict) else None
            if not isinstance(guid, str) or not guid.replace("-", "").isalnum():
                raise ScreenshotError("Litmus took the message but gave it no email_guid.")
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                pictures = pool.map(lambda name: self._picture(http, guid, name), self.clients)
                return dict(zip(self.clients, pictures, strict=True))

    def _names(self, http: httpx.Client) -> set[str]:
        body = _json(self._call(http, "GET", "/clients"))
        if not isinstance(body, list) or not body:
            raise ScreenshotError("Litmus does not say which mail programs it has.")
        return {str(name) for name in body}

    def _picture(self, http: httpx.Client, guid: str, name: str) -> bytes:
        # the picture may lie elsewhere: httpx follows without the key where the host is another one
        answer = self._call(http, "GET", f"/emails/{guid}/previews/{name}/full", follow_redirects=True)
        if not answer.content.startswith(_PNG) or len(answer.content) > _LONGEST_PICTURE:
            raise ScreenshotError(f"What Litmus sent for {name} is no PNG.", fix="Try again later.")
        return answer.content

    def _call(self, http: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            answer = http.request(method, path, **more)
        except httpx.TimeoutException:
            raise ScreenshotError(f"Litmus did not answer within {self.seconds:g} s.") from None
        except httpx.RequestError as error:
            raise ScreenshotError(f"Litmus cannot be reached: {type(error).__name__}.") from None
        if answer.status_code in (401, 403):
            raise ScreenshotError("Litmus refuses the key.", fix="Correct MAILHOUSE_LITMUS_KEY.")
        if not answer.is_success:
            raise ScreenshotError(f"Litmus answered {method} {path} with {answer.status_code}.")
        return answer


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        raise ScreenshotError("Litmus answered with something that is no JSON.") from None
