"""Which links of a template are tracked, and how: decided when it is compiled, once for all messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jinja2 import pass_context
from jinja2.runtime import Context
from markupsafe import escape

from senders.links import PAGES, Links, Tracking, is_web, with_parameters
from senders.unsubscribe import id_content

if TYPE_CHECKING:
    from senders.mjml import LinkPart
    from senders.plan import SendPlan
    from senders.settings import SenderSettings

#: Names of the context whose links must reach their page as they are.
_OWN_LINKS = re.compile(r"\b(unsubscribe_url|preferences_url|confirm_url)\b")
_BODY_END = re.compile(r"</body\s*>", re.IGNORECASE)
_PIXEL = (
    '<img src="{{ open_url }}" width="1" height="1" alt="" '
    'style="display:block;width:1px;height:1px;border:0;" />'
)


class LinkWriter:
    """Rewrites the links of one template.

    What is tracked are links to the web in `href`, whether constant or filled in. Links of our own (unsubscribe,
    preferences), mailto and the like stay, and so does a link that holds a statement such as `{% if %}`.
    """

    def __init__(self, tracking: Tracking, links: Links) -> None:
        self.tracking, self.links = tracking, links
        self._count = 0

    def html(self, parts: list[LinkPart]) -> str | None:
        """What stands in `href` instead, with merge tags; None leaves the link as it is."""
        expression = _expression(parts)
        if expression is None or not (self.tracking.clicks or self.tracking.parameters):
            return None
        if isinstance(expression, _Constant):
            url = with_parameters(str(expression), self.tracking.parameters)
            if not is_web(url):
                return None
            if not self.tracking.clicks:
                return str(escape(url))
            return "{{ click_url }}" + self.links.target(self._number(), url)
        if self.tracking.clicks:
            return f"{{{{ ({expression}) | tracked({self._number()}) }}}}"
        return f"{{{{ ({expression}) | with_utm }}}}"

    def text(self, parts: list[LinkPart]) -> str | None:
        """The same for the text part, where a person reads the link: UTM parameters, but no detour."""
        expression = _expression(parts)
        if expression is None or not self.tracking.parameters:
            return None
        if isinstance(expression, _Constant):
            url = str(expression)
            return with_parameters(url, self.tracking.parameters) if is_web(url) else None
        return f"{{{{ ({expression}) | with_utm }}}}"

    def with_pixel(self, html: str) -> str:
        """The HTML with the pixel at its end, if opens are tracked."""
        if not self.tracking.opens:
            return html
        ends = list(_BODY_END.finditer(html))
        at = ends[-1].start() if ends else len(html)
        return html[:at] + _PIXEL + html[at:]

    def _number(self) -> int:
        self._count += 1
        return self._count


class _Constant(str):
    __slots__ = ()


def _expression(parts: list[LinkPart]) -> str | None:
    """A link as one jinja2 expression, or as a constant; None if it is not to be touched."""
    if all(not is_tag for is_tag, _ in parts):
        return _Constant("".join(text for _, text in parts))
    if any(is_tag and (not text.startswith("{{") or _OWN_LINKS.search(text)) for is_tag, text in parts):
        return None
    if not parts[0][0] and not re.match(r"https?://", parts[0][1], re.IGNORECASE):
        return None
    return " ~ ".join(f"({text[2:-2].strip('-+ ')})" if is_tag else repr(text) for is_tag, text in parts)


@pass_context
def tracked(context: Context, url: Any, index: int) -> str:
    """A link that leads through the gateway; what is no web address stays as it is."""
    link = str(url)
    given = context.parent
    target = given["_links"].target_with(index, link, given["_tracking"].parameters)
    return link if target is None else given["click_url"].joined(target)


@pass_context
def with_utm(context: Context, url: Any) -> str:
    """A web link with the send's UTM parameters."""
    link = str(url)
    return with_parameters(link, context["_tracking"].parameters) if is_web(link) else link


class MessageLinks:
    """The links of one message after the other, by the names that templates know them by.

    Args:
        names: names that the template uses; a link that it does not use is not signed.
    """

    def __init__(self, links: Links, tracking: Tracking, names: frozenset[str]) -> None:
        self._links, self._has_clicks, self._has_opens = links, tracking.clicks, tracking.opens
        self._pages = [(f"{page}_url", page) for page in PAGES if f"{page}_url" in names]
        #: What is the same for all messages.
        self.constants: dict[str, Any] = {"_links": links, "_tracking": tracking} if tracking.is_on else {}

    def of(self, message_id: str) -> dict[str, Any]:
        """The links of a message.

        Raises:
            ValueError: the message id is no UUID.
        """
        content = id_content(message_id)
        links = self._links
        made: dict[str, Any] = {name: links.page(page, content) for name, page in self._pages}
        if self._has_clicks or self._has_opens:
            token = links.tracking_token(content)
            if self._has_clicks:
                made["click_url"] = links.click(token)
            if self._has_opens:
                made["open_url"] = links.pixel(token)
        return made


def tracking_of(plan: SendPlan, settings: SenderSettings) -> Tracking:
    """What is tracked in a send: what the campaign says, else what the settings say for its category."""
    clicks = plan.track_clicks if plan.track_clicks is not None else settings.tracks("clicks", plan.category)
    opens = plan.track_opens if plan.track_opens is not None else settings.tracks("opens", plan.category)
    utm: Mapping[str, str] = {}
    if plan.utm is not None:
        utm = plan.utm
    elif settings.utm_source:
        utm = {"source": settings.utm_source, "medium": settings.utm_medium, "campaign": plan.name}
    return Tracking(clicks=clicks, opens=opens, utm=dict(utm))
