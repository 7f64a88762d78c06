"""Links in messages: unsubscribe and preferences, clicks that are counted, the pixel that tells of an open.

A message has one signed token for what is tracked in it. A tracked link is

    BASE/c/TOKEN/INDEX/TARGET

where TARGET is a signature and the address that the link leads to, and INDEX is the link's number in the template. The
signature covers both, so the gateway leads nobody anywhere we have not written ourselves, and it needs no table of
links: a link works as long as the key is kept. TARGET is the same for all messages, so where the address is constant it
is part of the compiled template, and where it is a product's it is signed once a product; only the token is signed anew
for each message. UTM parameters are added to the target before it is signed.
"""

from __future__ import annotations

import binascii
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import quote, urlsplit

from senders.pieces import Ready, Stem
from senders.unsubscribe import TOKEN_LENGTH, LinkKey, id_content, verify_token

__all__ = ["PAGES", "Click", "Links", "Tracking", "with_parameters"]

_SIGNATURE = 16
_LONGEST = 1500  # characters; encoded, and with what is not ASCII trebled, some 6,000
_TARGETS_KEPT = 8192
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_WEB = re.compile(r"https?://[^/?#\s]", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
#: Pages of the gateway that a message leads to; in templates `unsubscribe_url` and so on.
PAGES = ("unsubscribe", "preferences", "confirm")
UTM_NAMES = ("source", "medium", "campaign", "term", "content")


@dataclass(frozen=True)
class Tracking:
    """What is tracked in a send; part of a template's version.

    Attributes:
        clicks: whether links lead through the gateway.
        opens: whether the HTML part ends with a picture of one pixel.
        utm: parameters that are added to web links, `source` and so on without `utm_`; a link's own win.
    """

    clicks: bool = False
    opens: bool = False
    utm: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> tuple[tuple[str, str], ...]:
        """The UTM parameters with their whole names, in the usual order."""
        return tuple((f"utm_{name}", self.utm[name]) for name in UTM_NAMES if self.utm.get(name))

    @property
    def is_on(self) -> bool:
        """Whether any link changes."""
        return bool(self.clicks or self.opens or self.parameters)


@dataclass(frozen=True, slots=True)
class Click:
    """What a tracked link says: whose message, which link of its template, and where it leads."""

    message_id: str
    index: int
    url: str


class Links:
    """Makes and reads the links of messages. Holds the signing key: never log it. Can be pickled.

    Args:
        key: from `SenderSettings.signing_key`.
        base_url: where the gateway is reached from outside.
    """

    def __init__(self, key: bytes, base_url: str) -> None:
        self.base_url = base_url.rstrip("/")
        self._key = LinkKey(key)
        self._targets: dict[tuple[int, str, tuple[tuple[str, str], ...]], Ready | None] = {}
        self._pages = {purpose: Stem(f"{self.base_url}/{purpose}/", TOKEN_LENGTH) for purpose in PAGES}
        self._click = Stem(f"{self.base_url}/c/", TOKEN_LENGTH, "/")
        self._pixel = Stem(f"{self.base_url}/o/", TOKEN_LENGTH, ".gif")

    def __reduce__(self) -> tuple[type[Links], tuple[bytes, str]]:
        return Links, (self._key.key, self.base_url)

    def page(self, purpose: str, content: bytes) -> Ready:
        """The link of one message to a page: `unsubscribe`, `preferences` or `confirm`.

        Args:
            content: the message's id, see `senders.unsubscribe.id_content`.
        """
        return self._pages[purpose].ready(self._key.token_of(content, purpose))

    def unsubscribe(self, message_id: str) -> Ready:
        """The link of one message: GET shows a page that asks, POST unsubscribes (RFC 8058)."""
        return self.page("unsubscribe", id_content(message_id))

    def preferences(self, message_id: str) -> Ready:
        """The link to the page where the recipient chooses what to get."""
        return self.page("preferences", id_content(message_id))

    def confirm(self, message_id: str) -> Ready:
        """The link that confirms a subscription: GET shows a page that asks, POST confirms."""
        return self.page("confirm", id_content(message_id))

    def tracking_token(self, content: bytes) -> bytes:
        """The token of what is tracked in one message, from its id's bytes."""
        return self._key.token_of(content, "track")

    def click(self, token: bytes) -> Ready:
        """What tracked links of a message begin with, from its `tracking_token`."""
        return self._click.ready(token)

    def pixel(self, token: bytes) -> Ready:
        """The address of a message's pixel, from its `tracking_token`."""
        return self._pixel.ready(token)

    def tracked(self, message_id: str) -> tuple[Ready, Ready]:
        """What tracked links of one message begin with, and the address of its pixel."""
        token = self.tracking_token(id_content(message_id))
        return self.click(token), self.pixel(token)

    def target(self, index: int, url: str) -> Ready:
        """The part of a tracked link behind the token: number, signature and address."""
        content = url.encode()
        blob = self._key.sign("click", b"%d:" % index + content) + content
        encoded = binascii.b2a_base64(blob, newline=False).translate(_URL_SAFE).rstrip(b"=").decode()
        return Ready(f"{index}/{encoded}")

    def target_with(self, index: int, url: str, parameters: tuple[tuple[str, str], ...]) -> Ready | None:
        """The same of an address with more parameters, kept for the next message; None if clicks cannot be counted."""
        key = (index, url, parameters)
        if key in self._targets:
            return self._targets[key]
        made = self.target(index, with_parameters(url, parameters)) if is_web(url) else None
        if len(self._targets) >= _TARGETS_KEPT:
            self._targets.clear()
        self._targets[key] = made
        return made

    def resolve(self, path: str) -> Click | None:
        """What a tracked link leads to; None if we did not make it.

        Args:
            path: what stands behind `/c/`: `TOKEN/INDEX/TARGET`.
        """
        token, _, rest = path.partition("/")
        number, _, blob = rest.partition("/")
        message_id = self.opened(token)
        if message_id is None or not re.fullmatch(r"0|[1-9][0-9]{0,4}", number):
            return None
        if not re.fullmatch(r"[A-Za-z0-9_-]+", blob):
            return None
        try:
            content = binascii.a2b_base64(blob.translate({45: "+", 95: "/"}) + "=" * (-len(blob) % 4))
            url = content[_SIGNATURE:].decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        expected = self._key.sign("click", b"%d:" % int(number) + content[_SIGNATURE:])
        if not hmac.compare_digest(expected, content[:_SIGNATURE]) or not is_web(url):
            return None
        return Click(message_id, int(number), url)

    def opened(self, token: str) -> str | None:
        """The message whose token this is; None if we did not make it."""
        return verify_token(self._key.key, token, "track")


def is_web(url: str) -> bool:
    """Whether a URL is http or https with a host, and short enough, so that clicks on it can be counted."""
    return len(url) <= _LONGEST and bool(_WEB.match(url)) and not _CONTROL.search(url)


def with_parameters(url: str, parameters: tuple[tuple[str, str], ...]) -> str:
    """The URL with more query parameters, before its fragment; those that it has already stay as they are."""
    if not parameters:
        return url
    rest, mark, fragment = url.partition("#")
    query = urlsplit(rest).query
    present = {part.partition("=")[0] for part in query.split("&")}
    added = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters if name not in present)
    if not added:
        return url
    joint = "" if rest.endswith(("?", "&")) else "&" if "?" in rest else "?"
    return f"{rest}{joint}{added}{mark}{fragment}"
