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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateSyntaxError

from senders.assets import Assets
from senders.attachments import load_attachments
from senders.filters import FILTERS
from senders.front_matter import read_front_matter
from senders.links import Links, Tracking
from senders.localisation import known, normalised
from senders.merge_tags import PROFILE_COLUMNS, Findings, Problem, TemplateError, check_tags, context_shape
from senders.mjml import Compiled, Source, compile_mjml, read_source, with_preheader
from senders.tags import product_fields
from senders.templates import (
    HTML,
    NO_TRACKING,
    TEXT,
    Rendered,
    RenderError,
    Template,
    TemplateSource,
    make_environment,
)
from senders.tracking import LinkWriter

__all__ = [
    "PROFILE_COLUMNS",
    "Problem",
    "RenderError",
    "Rendered",
    "Template",
    "TemplateError",
    "TemplateLibrary",
    "TemplateSource",
    "make_environment",
]

_NAME = re.compile(r"[a-z0-9][a-z0-9_/-]*")
# what a change of this code may change in the output belongs to a template's version
_FORMAT = b"2"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a campaign adds to a template; see `TemplateLibrary.template`."""

    subject: str = ""
    preheader: str = ""
    place: str = ""
    tracking: Tracking = NO_TRACKING
    links: Links | None = None
    attachments: tuple[str, ...] = ()
    has_event: bool = False


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
        has_event: bool = False,
    ) -> Template:
        """A template, with a campaign's subject and preheader.

        Args:
            place: where subject and preheader are written, as `file:line`, for messages.
            tracking: what is tracked; needs `links`, which sign the addresses.
            attachments: names of files in `content/attachments`, beside those that the template names itself.
            has_event: there is an event that fires it, which merge tags may name.

        Raises:
            TemplateError: there is no such template, or something is wrong with it; names file and line.
        """
        if tracking.is_on and links is None:
            raise ValueError("tracked links must be signed: give links")
        wanted = _Wanted(subject, preheader, place, tracking, links, tuple(attachments), has_event)
        template, problems = self._load(name, wanted)
        if template is None:
            raise problems[0].error(len(problems) - 1)
        return template

    def check(
        self,
        name: str = "",
        *,
        subject: str = "",
        preheader: str = "",
        place: str = "",
        has_event: bool = False,
    ) -> list[Problem]:
        """All that is wrong with a template, or with all of them; see `template`."""
        problems: list[Problem] = []
        for one in [name] if name else self.names():
            try:
                problems += self._load(one, _Wanted(subject, preheader, place, has_event=has_event))[1]
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
            if source is not None and source.event_place and not wanted.has_event:
                problems.append(_no_event(source.event_place, wanted.place))
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
                product_fields=_together(one.product_fields for one in sources.values()),
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
        html_findings = self._findings(HTML, source, shapes)
        text_findings = self._findings(TEXT, text, shapes) if text else html_findings
        findings = Findings()
        findings.merge(html_findings)
        if text:
            findings.merge(text_findings)
        for label, line in (("subject", subject), ("preheader", preheader)):
            at = place or f"the {label} of {name}"
            findings.merge(self._findings(TEXT, Source(line, ((at, 0),)), shapes, at))
        if findings.problems:
            return None, findings.problems
        if wanted.tracking.is_on and wanted.links:
            writer = LinkWriter(wanted.tracking, wanted.links)
            compiled = compile_mjml(source, HTML, writer.html, writer.text)
            compiled = Compiled(writer.with_pixel(compiled.html), compiled.text)
        else:
            compiled = compile_mjml(source, HTML)
        columns = findings.contact_columns
        made = TemplateSource(
            name=name, version=version, html=compiled.html, text=text.text if text else compiled.text,
            subject=subject, preheader=preheader, columns=None if columns is None else frozenset(columns),
            names=frozenset(findings.names), html_certain=frozenset(html_findings.certain),
            text_certain=frozenset(text_findings.certain), tracking=wanted.tracking, locale=locale,
            attachments=attachments, event_place=findings.event_place,
            product_fields=_together(
                product_fields(HTML.parse(one))[0]
                for one in (compiled.html, text.text if text else compiled.text, subject, preheader)
            ),
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


def _together(parts: Iterable[frozenset[str] | None]) -> frozenset[str] | None:
    """What any of them uses; None if one uses all there is."""
    used = list(parts)
    return None if None in used else frozenset().union(*(one or () for one in used))


def _no_event(event_place: str, place: str) -> Problem:
    sender = f", and what {place} sends is fired by none" if place and place != event_place else ""
    return Problem(
        event_place,
        "event",
        f"{{{{ event }}}} is the event that fires a trigger{sender}.",
        "Send the template by a trigger on an event, or use another one here.",
    )


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
