"""A checked template, ready to be filled in: what a process that sends needs of it, and no more.

How a template is found, read and checked is in `senders.rendering`; workers need none of that, and start quicker
without. Merge tags are jinja2's, sandboxed and escaped for HTML. What is missing for a contact fails that contact's
message unless the tag has a default.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, TemplateSyntaxError, Undefined, UndefinedError, nodes
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, escape

from campaigns.permissions import MAIL_CHANNELS
from senders.filters import FILTERS, FilterError
from senders.links import Tracking
from senders.localisation import fallbacks
from senders.merge_tags import Findings, TemplateError, check_tags, context_shape
from senders.mime import one_line
from senders.tags import Product, Tags
from senders.tracking import tracked, with_utm
from senders.wire import WirePart, wire_environment

if TYPE_CHECKING:
    from senders.attachments import Attachment

# the word that carriers and providers understand
_STOP = re.compile(r"\bSTOP\b")
# the prefixes of mail programs in English, German, French, Spanish, Italian, Dutch and the Nordic languages
_PRETENDS = re.compile(
    r"\s*(re|aw|antw|antwort|sv|vs|rif|fwd?|wg|tr|rv|doorst|vb)\s*(\[\d+\])?\s*:", re.IGNORECASE
)
_BLANK_LINES = re.compile(r"\n[ \n]*\n[ \n]*\n")
#: Names that a heading may use beside fields of the contact and still depend on those alone within a send.
_SAME_FOR_ALL = frozenset({"contact", "preheader", "company_name", "postal_address", "locale"})
_GLOBALS = ("range", "dict", "namespace")
_KEPT_LENGTH = 200  # characters of values whose escaped text is kept
_KEPT_VALUES = 4096
NO_TRACKING = Tracking()


class RenderError(ValueError):
    """One contact's message cannot be rendered; the text says which tag and why."""


class _Missing(Undefined):
    """A name that nobody gave, or a value that is empty for this contact: false, but never printed."""

    def _fail(self) -> UndefinedError:
        name = self._undefined_name
        return UndefinedError(self._undefined_hint or f"{name!r} is missing")

    def __str__(self) -> str:
        raise self._fail()

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Undefined)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(None)

    # as NULL in SQL: not less, not more
    def __lt__(self, other: object) -> bool:
        return False

    __le__ = __gt__ = __ge__ = __lt__


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, in which a dot means a field and never a method of dict."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict or type(obj) is Product:
            value = obj.get(attribute)
            if value is None or value == "":
                what = "is empty for this contact" if attribute in obj else "does not exist"
                return _Missing(f"{attribute!r} {what} and has no default", obj, attribute)
            return value
        if type(obj) is _Missing:
            # a part of what is missing is missing: one default behind event.cart.value is enough
            return obj
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, str) and (type(obj) is dict or type(obj) is Product or type(obj) is _Missing):
            return self.getattr(obj, argument)
        return super().getitem(obj, argument)


def make_environment(*, autoescape: bool) -> Environment:
    """A jinja2 environment for merge tags."""
    environment = _Environment(autoescape=autoescape, undefined=_Missing, keep_trailing_newline=True)
    environment.filters.update(FILTERS, tracked=tracked, with_utm=with_utm)
    environment.globals = {name: environment.globals[name] for name in _GLOBALS}
    return environment


#: Environments of the two kinds of parts; subject and preheader are text.
HTML = make_environment(autoescape=True)
TEXT = make_environment(autoescape=False)
#: Functions that templates may call, by name.
GLOBALS: Mapping[str, Any] = dict(HTML.globals)
_WIRE_HTML = wire_environment(HTML)
_WIRE_TEXT = wire_environment(TEXT)

#: What filling a template in may raise because a contact's values do not fit; `render_error` makes one error of it.
RENDER_ERRORS = (JinjaError, FilterError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)


def render_error(error: Exception) -> RenderError:
    """One of `RENDER_ERRORS` as the error of one contact's message."""
    if isinstance(error, RenderError):
        return error
    if isinstance(error, JinjaError | FilterError):
        return RenderError(str(error))
    # an expression in the template that does not fit this contact's values
    return RenderError(f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Rendered:
    """One message's content.

    Attributes:
        html_pieces, text_pieces: what the template wrote, constants and values in turn.
    """

    subject: str
    html_pieces: Sequence[str]
    text_pieces: Sequence[str]
    preheader: str = ""

    @cached_property
    def html(self) -> str:
        """The HTML part."""
        return "".join(self.html_pieces)

    @cached_property
    def text(self) -> str:
        """The text part."""
        return "".join(self.text_pieces)


class Recommendations(list[Any]):
    """Recommended products, best first; `recommendations(n=4)` are the first four, `(n=4, skip=4)` the next."""

    def __call__(self, n: int | None = None, skip: int = 0) -> Recommendations:
        """At most `n` products, after the first `skip`."""
        return Recommendations(self[skip : None if n is None else skip + n])


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """A checked template: what other processes need to make the same `Template`, and nothing that cannot be pickled.

    Attributes:
        name: the file's name without `.mjml`.
        version: twelve hexadecimal digits that change when the output could: of template, includes, text, subject.
        html, text, subject, preheader: MJML compiled, merge tags still in it.
        columns: profile columns that it uses; None if it uses the contact as a whole.
        names: names of the context that any part uses, subject and preheader too.
        html_certain, text_certain: names that HTML and text print for everybody, outside of conditions and loops.
        tracking: which of its links are tracked; their addresses are signed already.
        locale: of the file, as `de_AT`; empty for the one without, which everybody gets who has no other.
        attachments: what goes with every message.
        translations: the same template in other locales. `version`, `columns`, `names` and `product_fields` cover them
            too.
        product_fields: fields of recommended products that it uses; None if it uses products as a whole.
        event_place: where it uses the event that fired a trigger, as `file:line`; empty where it does not.
    """

    name: str
    version: str
    html: str
    text: str
    subject: str
    preheader: str
    columns: frozenset[str] | None
    names: frozenset[str]
    html_certain: frozenset[str]
    text_certain: frozenset[str]
    tracking: Tracking = NO_TRACKING
    locale: str = ""
    attachments: tuple[Attachment, ...] = ()
    translations: tuple[TemplateSource, ...] = ()
    product_fields: frozenset[str] | None = None
    event_place: str = ""


class Template:
    """A template with subject and preheader, ready to render; see `TemplateSource` for its attributes."""

    def __init__(self, source: TemplateSource, place: str = "") -> None:
        self.source = source
        self.name, self.version = source.name, source.version
        self.columns, self.names = source.columns, source.names
        place = place or source.name
        self._html = _function(HTML, source.html, place)
        self._text = _function(TEXT, source.text, place)
        self._subject = _function(TEXT, source.subject, place)
        self._preheader = _function(TEXT, source.preheader, place)
        self._translations = {one.locale: Template(one, place) for one in source.translations}

    def in_locale(self, locale: object) -> Template:
        """The translation that somebody with this locale gets: `de_AT`, else `de`, else the template itself."""
        if self._translations and isinstance(locale, str):
            for name in fallbacks(locale):
                if name in self._translations:
                    return self._translations[name]
        return self

    def __reduce__(self) -> tuple[type[Template], tuple[TemplateSource]]:
        return Template, (self.source,)

    @cached_property
    def wire_parts(self) -> tuple[WirePart, WirePart]:
        """Text and HTML, compiled to write encoded bytes; what `senders.composing` makes messages of."""
        return (
            WirePart(_WIRE_TEXT, self.source.text, self.text, is_trimmed=True, tags=self.tags),
            WirePart(_WIRE_HTML, self.source.html, self.html, is_trimmed=False, tags=self.tags),
        )

    @cached_property
    def tags(self) -> Tags:
        """Tags of `wire_parts` that print one field; filled when those are made."""
        return Tags(_WIRE_TEXT, _WIRE_HTML)

    @cached_property
    def heading_fields(self) -> tuple[str, ...] | None:
        """Fields of the contact that subject and preheader depend on; None if on anything else."""
        findings = Findings()
        for source in (self.source.subject, self.source.preheader):
            tree = TEXT.parse(source)
            if any(one.name == "random" for one in tree.find_all(nodes.Filter)):
                return None
            findings.merge(check_tags(tree, context_shape(()), str, TEXT.globals))
        if findings.contact_columns is None or not findings.names <= _SAME_FOR_ALL:
            return None
        return tuple(sorted(findings.contact_columns))

    def heading(self, context: Mapping[str, Any]) -> tuple[str, str]:
        """Subject and preheader, each on one line; the subject may use `preheader`."""
        if not self.source.preheader:
            return one_line("".join(self._subject(context))), ""
        preheader = one_line("".join(self._preheader(context)))
        return one_line("".join(self._subject({**context, "preheader": preheader}))), preheader

    def html(self, context: Mapping[str, Any]) -> str:
        """The HTML part."""
        return "".join(self._html(context))

    def text(self, context: Mapping[str, Any]) -> str:
        """The text part, blank lines joined to one."""
        return "".join(self._text_pieces(context))

    def _text_pieces(self, context: Mapping[str, Any]) -> list[str]:
        pieces = self._text(context)
        written = "".join(pieces)
        text = _BLANK_LINES.sub("\n\n", written)
        if len(text) < len(written) or not pieces or pieces[0][:1].isspace() or not pieces[-1].strip():
            return [text.strip() + "\n"]
        pieces[0], pieces[-1] = pieces[0].lstrip(), pieces[-1].rstrip() + "\n"
        return pieces

    def render(self, context: Mapping[str, Any]) -> Rendered:
        """Fill the template in.

        Args:
            context: contact (a dict of profile columns), recommendations (a list of dicts), campaign (a dict),
                postal_address, company_name, now, and what `senders.tracking.link_context` gives.

        Raises:
            RenderError: something is missing for this contact and has no default, or a filter cannot work on it.
        """
        chosen = self.in_locale(context["contact"].get("locale")) if self._translations else self
        if chosen is not self:
            return chosen.render(context)
        context = {**context, "locale": self.source.locale}
        try:
            subject, preheader = self.heading(context)
            given = {**context, "preheader": preheader}
            html, text = self._html(given), self._text_pieces(given)
            return Rendered(subject, html, text, preheader)
        except RENDER_ERRORS as error:
            raise render_error(error) from error

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """All that goes with it, in one locale or another."""
        return tuple(
            dict.fromkeys(
                one for source in (self.source, *self.source.translations) for one in source.attachments
            )
        )

    def require_marketing(self, place: str = "", *, channel: str = "email") -> None:
        """Check what the law asks of advertising, as far as a template can tell.

        By mail: HTML and text say how to unsubscribe and the sender's postal address, to everybody (CAN-SPAM, 15 U.S.C.
        7704(a)(3) and (5); GDPR, article 21(4)), and the subject is not made to look like an answer or a forwarded
        message (7704(a)(2)). By text message: it says how to stop them (ePrivacy directive 2002/58/EC, article 13(4)).
        Push messages are stopped on the device.

        Raises:
            TemplateError: names what is missing.
        """
        label = f"{place or self.name}{f' in {self.source.locale}' if self.source.locale else ''}"
        if channel == "sms" and not (
            _STOP.search(self.source.text)
            or {"unsubscribe_url", "preferences_url"} & self.source.text_certain
        ):
            raise TemplateError(
                f"{label}: an advertising text message says how to stop them, and its text part does not.",
                fix="Write 'Reply STOP to opt out', or put {{ preferences_url }} where everybody gets it.",
            )
        for translation in self._translations.values():
            translation.require_marketing(place, channel=channel)
        if channel not in MAIL_CHANNELS:
            return
        for kind, names in (("HTML", self.source.html_certain), ("text", self.source.text_certain)):
            for name in ("unsubscribe_url", "postal_address"):
                if name not in names:
                    where = "only within a condition or loop" if name in self.source.names else "none"
                    raise TemplateError(
                        f"{label}: marketing mail needs {{{{ {name} }}}}, and its {kind} part has {where}.",
                        fix=f"Put {{{{ {name} }}}} where everybody gets it, best into an included footer.",
                    )
        if _PRETENDS.match(self.source.subject):
            raise TemplateError(
                f"{label}: the subject {self.source.subject!r} pretends to be an answer or forwarded, which the law"
                " forbids in advertising.",
                fix="Begin it with what the message is about.",
            )


class _Escaped(dict[str, Markup]):
    """Texts escaped for HTML: the same value is the same object, so `senders.providers.batching` need not compare."""

    def __missing__(self, value: str) -> Markup:
        made = escape(value)
        if len(value) <= _KEPT_LENGTH:
            if len(self) >= _KEPT_VALUES:
                self.clear()
            self[value] = made
        return made


_known_texts = _Escaped()


def _escaped(value: Any) -> Markup:
    return _known_texts[value] if type(value) is str else escape(value)


def _function(environment: Environment, source: str, place: str) -> Callable[[Mapping[str, Any]], list[str]]:
    """A function that fills in one part, piece by piece; a part without tags is its own answer."""
    if "{{" not in source and "{%" not in source and "{#" not in source:
        return lambda _: [source]
    try:
        template = environment.from_string(source)
    except TemplateSyntaxError as error:
        raise TemplateError(
            f"{place}: the merge tags do not fit together once compiled: {error.message}.",
            fix="Open and close each if and for in the same element or on the same level of elements.",
        ) from None
    root, known = template.root_render_func, environment.globals
    root.__globals__["escape"] = _escaped

    def fill(context: Mapping[str, Any]) -> list[str]:
        # what Template.render does, without copying the context thrice
        return list(root(Context(environment, {**known, **context}, None, {})))

    return fill
