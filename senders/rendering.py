"""Templates: compiled once a content, checked before anybody is written to, rendered strictly.

A template is `content/templates/<name>.mjml`, and if its text part is to be written by hand, `<name>.txt` beside it.
`<name>.<locale>.mjml` is the same template for those who have that locale.
Merge tags are jinja2's, sandboxed and escaped for HTML. What is missing for a contact fails that contact's message
unless the tag has a default; what is missing for everybody is found when the template is loaded.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, Undefined, UndefinedError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from senders.assets import Assets
from senders.attachments import Attachment, load_attachments
from senders.filters import FILTERS, FilterError
from senders.front_matter import read_front_matter
from senders.links import Links, Tracking
from senders.localisation import fallbacks, known, normalised
from senders.merge_tags import PROFILE_COLUMNS, Findings, Problem, TemplateError, check_tags, context_shape
from senders.mime import one_line
from senders.mjml import Compiled, Source, compile_mjml, read_source, with_preheader
from senders.tracking import LinkWriter, tracked, with_utm
from senders.wire import WirePart, wire_environment

__all__ = [
    "PROFILE_COLUMNS",
    "Problem",
    "RenderError",
    "Rendered",
    "Template",
    "TemplateError",
    "TemplateLibrary",
    "TemplateSource",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9_/-]*")
# the prefixes of mail programs in English, German, French, Spanish, Italian, Dutch and the Nordic languages
_PRETENDS = re.compile(
    r"\s*(re|aw|antw|antwort|sv|vs|rif|fwd?|wg|tr|rv|doorst|vb)\s*(\[\d+\])?\s*:", re.IGNORECASE
)
_BLANK_LINES = re.compile(r"\n[ \n]*\n[ \n]*\n")
_GLOBALS = ("range", "dict", "namespace")
# what a change of this code may change in the output belongs to a template's version
_FORMAT = b"2"
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
        if type(obj) is dict:
            value = obj.get(attribute)
            if value is None or value == "":
                what = "is empty for this contact" if attribute in obj else "does not exist"
                return _Missing(f"{attribute!r} {what} and has no default", obj, attribute)
            return value
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(obj) is dict and isinstance(argument, str):
            return self.getattr(obj, argument)
        return super().getitem(obj, argument)


def make_environment(*, autoescape: bool) -> Environment:
    """A jinja2 environment for merge tags."""
    environment = _Environment(autoescape=autoescape, undefined=_Missing, keep_trailing_newline=True)
    environment.filters.update(FILTERS, tracked=tracked, with_utm=with_utm)
    environment.globals = {name: environment.globals[name] for name in _GLOBALS}
    return environment


_HTML = make_environment(autoescape=True)
_TEXT = make_environment(autoescape=False)
#: Functions that templates may call, by name.
GLOBALS: Mapping[str, Any] = dict(_HTML.globals)
_WIRE_HTML = wire_environment(_HTML)
_WIRE_TEXT = wire_environment(_TEXT)

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


@dataclass(frozen=True, slots=True)
class Rendered:
    """One message's content."""

    subject: str
    html: str
    text: str
    preheader: str = ""


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
        translations: the same template in other locales. `version`, `columns` and `names` cover them too.
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


class Template:
    """A template with subject and preheader, ready to render; see `TemplateSource` for its attributes."""

    def __init__(self, source: TemplateSource, place: str = "") -> None:
        self.source = source
        self.name, self.version = source.name, source.version
        self.columns, self.names = source.columns, source.names
        place = place or source.name
        self._html = _function(_HTML, source.html, place)
        self._text = _function(_TEXT, source.text, place)
        self._subject = _function(_TEXT, source.subject, place)
        self._preheader = _function(_TEXT, source.preheader, place)
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
            WirePart(_WIRE_TEXT, self.source.text, self.text, is_trimmed=True),
            WirePart(_WIRE_HTML, self.source.html, self._html, is_trimmed=False),
        )

    def heading(self, context: Mapping[str, Any]) -> tuple[str, str]:
        """Subject and preheader, each on one line; the subject may use `preheader`."""
        if not self.source.preheader:
            return one_line(self._subject(context)), ""
        preheader = one_line(self._preheader(context))
        return one_line(self._subject({**context, "preheader": preheader})), preheader

    def text(self, context: Mapping[str, Any]) -> str:
        """The text part, blank lines joined to one."""
        return _BLANK_LINES.sub("\n\n", self._text(context)).strip() + "\n"

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
            return Rendered(subject, self._html(given), self.text(given), preheader)
        except RENDER_ERRORS as error:
            raise render_error(error) from error

    def require_marketing(self, place: str = "") -> None:
        """Check what the law asks of advertising, as far as a template can tell.

        HTML and text say how to unsubscribe and the sender's postal address, to everybody (CAN-SPAM, 15 U.S.C.
        7704(a)(3) and (5); GDPR, article 21(4)), and the subject is not made to look like an answer or a forwarded
        message (7704(a)(2)).

        Raises:
            TemplateError: names what is missing.
        """
        label = f"{place or self.name}{f' in {self.source.locale}' if self.source.locale else ''}"
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
        for translation in self._translations.values():
            translation.require_marketing(place)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a campaign adds to a template; see `TemplateLibrary.template`."""

    subject: str = ""
    preheader: str = ""
    place: str = ""
    tracking: Tracking = NO_TRACKING
    links: Links | None = None
    attachments: tuple[str, ...] = ()


class TemplateLibrary:
    """The templates of a folder. Each is compiled on first use, and again only when its files change."""

    def __init__(
        self, folder: Path, contact_columns: Iterable[str] = PROFILE_COLUMNS, assets_url: str = ""
    ) -> None:
        self.folder = folder
        self.assets = Assets(folder.parent / "assets", assets_url)
        self.contact_columns = tuple(contact_columns)
        self._compiled: dict[str, Template] = {}
        self._sources: dict[str, TemplateSource] = {}

    @classmethod
    def load(
        cls, folder: Path, contact_columns: Iterable[str] = PROFILE_COLUMNS, *, assets_url: str = ""
    ) -> TemplateLibrary:
        """The templates of a folder.

        Args:
            contact_columns: columns of `marts.contact_profiles`, as the warehouse has them.
            assets_url: where published assets are served from; templates that name none need none.

        Raises:
            TemplateError: there is no such folder.
        """
        if not folder.is_dir():
            raise TemplateError(
                f"There is no templates folder {folder}.",
                fix="Make it, or set MAILHOUSE_CONTENT_DIR to its parent.",
            )
        return cls(folder, contact_columns, assets_url)

    def names(self) -> list[str]:
        """Names of the templates, in order; files whose name begins with `_` are for including only.

        Translations (`offer.de.mjml`) belong to the template that they translate.
        """
        return sorted(
            str(path.relative_to(self.folder).with_suffix(""))
            for path in self.folder.rglob("*.mjml")
            if not path.name.startswith("_") and "." not in path.stem
        )

    def template(
        self,
        name: str,
        *,
        subject: str = "",
        preheader: str = "",
        place: str = "",
        tracking: Tracking = NO_TRACKING,
        links: Links | None = None,
        attachments: Sequence[str] = (),
    ) -> Template:
        """A template, with a campaign's subject and preheader.

        Args:
            place: where subject and preheader are written, as `file:line`, for messages.
            tracking: what is tracked; needs `links`, which sign the addresses.
            attachments: names of files in `content/attachments`, beside those that the template names itself.

        Raises:
            TemplateError: there is no such template, or something is wrong with it; names file and line.
        """
        if tracking.is_on and links is None:
            raise ValueError("tracked links must be signed: give links")
        wanted = _Wanted(subject, preheader, place, tracking, links, tuple(attachments))
        template, problems = self._load(name, wanted)
        if template is None:
            raise problems[0].error(len(problems) - 1)
        return template

    def check(
        self, name: str = "", *, subject: str = "", preheader: str = "", place: str = ""
    ) -> list[Problem]:
        """All that is wrong with a template, or with all of them."""
        problems: list[Problem] = []
        for one in [name] if name else self.names():
            try:
                problems += self._load(one, _Wanted(subject, preheader, place))[1]
            except TemplateError as error:
                at, _, message = error.message.partition(": ")
                problems.append(
                    Problem(at, "", message or at, error.fix) if message else Problem(one, "", at, error.fix)
                )
        return problems

    def _load(self, name: str, wanted: _Wanted) -> tuple[Template | None, list[Problem]]:
        path = self._path(name)
        files = {"": path, **self._translations(path)}
        sources: dict[str, TemplateSource] = {}
        problems: list[Problem] = []
        for locale, file in files.items():
            source, found = self._source(name, file, locale, wanted)
            problems += found
            if source is not None:
                sources[locale] = source
        if problems:
            return None, problems
        main, *others = sources.values()
        if others:
            columns = [one.columns for one in sources.values()]
            main = replace(
                main,
                version=_version(*(one.version for one in sources.values())),
                columns=None
                if None in columns
                else frozenset({"locale"}.union(*(one or () for one in columns))),
                names=frozenset().union(*(one.names for one in sources.values())),
                translations=tuple(others),
            )
        template = self._compiled.get(main.version)
        if template is None:
            template = self._compiled[main.version] = Template(main, f"{self._label(path)}:1")
        return template, []

    def _translations(self, path: Path) -> dict[str, Path]:
        """Files of the same template in other locales, by locale."""
        found: dict[str, Path] = {}
        for file in sorted(path.parent.glob(f"{path.stem}.*.mjml")):
            label = file.stem.removeprefix(f"{path.stem}.")
            locale = normalised(label)
            if known(locale) is None:
                raise TemplateError(
                    f"{self._label(file)}: {label!r} is no locale.",
                    fix="Name the file like offer.de.mjml or offer.pt_BR.mjml.",
                )
            if locale in found:
                raise TemplateError(
                    f"{self._label(file)}: {found[locale].name} is in the same locale.",
                    fix="Delete one of the two.",
                )
            found[locale] = file
        return found

    def _source(
        self, name: str, path: Path, locale: str, wanted: _Wanted
    ) -> tuple[TemplateSource | None, list[Problem]]:
        source = read_source(path, self.folder, self._label)
        head, source = read_front_matter(source)
        subject, preheader, place = wanted.subject, wanted.preheader, wanted.place
        if locale:
            # a translation's own words; the campaign's are in the language of the template without locale
            subject, preheader = head.subject or subject, head.preheader or preheader
        else:
            subject, preheader = subject or head.subject, preheader or head.preheader
        attachments = load_attachments(
            (*wanted.attachments, *(one for one in head.attachments if one not in wanted.attachments)),
            self.folder.parent / "attachments",
            place if wanted.attachments and place else source.place(1),
        )
        source = self._with_assets(source)
        if preheader:
            source = with_preheader(source)
        by_hand = path.with_suffix(".txt")
        text = read_source(by_hand, self.folder, self._label) if by_hand.is_file() else None
        version = _version(
            source.text, text.text if text else "", subject, preheader, *self.contact_columns, locale,
            repr(wanted.tracking) if wanted.tracking.is_on else "", *(one.version for one in attachments),
        )  # fmt: skip
        if version in self._sources:
            return self._sources[version], []
        shapes = context_shape(self.contact_columns)
        html_findings = self._findings(_HTML, source, shapes)
        text_findings = self._findings(_TEXT, text, shapes) if text else html_findings
        findings = Findings()
        findings.merge(html_findings)
        if text:
            findings.merge(text_findings)
        for label, line in (("subject", subject), ("preheader", preheader)):
            at = place or f"the {label} of {name}"
            findings.merge(self._findings(_TEXT, Source(line, ((at, 0),)), shapes, at))
        if findings.problems:
            return None, findings.problems
        if wanted.tracking.is_on and wanted.links:
            writer = LinkWriter(wanted.tracking, wanted.links)
            compiled = compile_mjml(source, _HTML, writer.html, writer.text)
            compiled = Compiled(writer.with_pixel(compiled.html), compiled.text)
        else:
            compiled = compile_mjml(source, _HTML)
        columns = findings.contact_columns
        made = TemplateSource(
            name=name, version=version, html=compiled.html, text=text.text if text else compiled.text,
            subject=subject, preheader=preheader, columns=None if columns is None else frozenset(columns),
            names=frozenset(findings.names), html_certain=frozenset(html_findings.certain),
            text_certain=frozenset(text_findings.certain), tracking=wanted.tracking, locale=locale,
            attachments=attachments,
        )  # fmt: skip
        self._sources[version] = made
        return made, []

    def _with_assets(self, source: Source) -> Source:
        """The template with the addresses of the assets that it names."""
        parts: list[str] = []
        at = 0
        for match in self.assets.references(source.text):
            parts += [
                source.text[at : match.start()],
                self.assets.address(match[1], source.place_at(match.start())),
            ]
            at = match.end()
        return Source("".join([*parts, source.text[at:]]), source.places) if parts else source

    def _findings(
        self, environment: Environment, source: Source, shapes: Mapping[str, Any], at: str = ""
    ) -> Findings:
        place = (lambda _: at) if at else source.place
        try:
            tree = environment.parse(source.text)
            # unknown filters and tests are found only when code is made
            environment.compile(source.text)
        except TemplateSyntaxError as error:
            problem = Problem(place(error.lineno), "", f"{error.message}", "Correct the merge tag.")
            return Findings(problems=[_with_nearest_filter(problem, environment)])
        return check_tags(tree, shapes, place, environment.globals)

    def _path(self, name: str) -> Path:
        path = self.folder / f"{name}.mjml"
        if not _NAME.fullmatch(name) or not path.is_file():
            names = self.names()
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"Templates are: {', '.join(names) or 'none'}."
            raise TemplateError(f"There is no template {name!r} in {self.folder}.", fix=hint)
        return path

    def _label(self, path: Path) -> str:
        """`content/templates/x.mjml`: the folder's last two parts, whatever machine it is on."""
        relative = path.resolve().relative_to(self.folder.resolve())
        return str(Path(*self.folder.resolve().parts[-2:]) / relative)


def _with_nearest_filter(problem: Problem, environment: Environment) -> Problem:
    found = re.match(r"No filter named '(\w+)'", problem.message)
    if not found:
        return problem
    near = difflib.get_close_matches(found[1], sorted(environment.filters), n=1)
    fix = f"Did you mean {near[0]}?" if near else f"Mailhouse's own are: {', '.join(sorted(FILTERS))}."
    return Problem(problem.place, found[1], problem.message, fix)


def _version(*contents: str) -> str:
    digest = hashlib.sha256(_FORMAT)
    for content in contents:
        encoded = content.encode()
        digest.update(b"%d:" % len(encoded) + encoded)
    return digest.hexdigest()[:12]


def _function(environment: Environment, source: str, place: str) -> Callable[[Mapping[str, Any]], str]:
    """A function that fills in one part; a part without tags is its own answer."""
    if "{{" not in source and "{%" not in source and "{#" not in source:
        return lambda _: source
    try:
        template = environment.from_string(source)
    except TemplateSyntaxError as error:
        raise TemplateError(
            f"{place}: the merge tags do not fit together once compiled: {error.message}.",
            fix="Open and close each if and for in the same element or on the same level of elements.",
        ) from None
    root, known = template.root_render_func, environment.globals

    def fill(context: Mapping[str, Any]) -> str:
        # what Template.render does, without copying the context thrice
        return "".join(root(Context(environment, {**known, **context}, None, {})))

    return fill
