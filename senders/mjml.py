"""From MJML with merge tags to HTML and text with the same merge tags.

MJML is compiled once, tags and all: each tag is replaced by a placeholder that MJML compiler and CSS inliner leave
alone, and put back afterwards. Statements (`{% for %}`, `{% if %}`) become HTML comments on the way, since text
between the rows of a table would be moved out of it by any HTML parser; between MJML elements they are wrapped into
`mj-raw`, so an author may write a loop around a section, a column, or anything in it. Nothing is ever fetched:
`mj-include` reads files of the templates' folder only, and remote style sheets stay links.
"""

from __future__ import annotations

import difflib
import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import css_inline
import mrml
from inscriptis import get_text
from inscriptis.css_profiles import CSS_PROFILES
from inscriptis.model.config import ParserConfig
from jinja2 import Environment, TemplateSyntaxError

from senders.merge_tags import Problem, TemplateError

_PLACEHOLDER = re.compile(r"<!--(mhtag\d{4}x)-->|(mhtag\d{4}x)")
_INCLUDE = re.compile(r"<mj-include\b([^>]*?)/?>(?:\s*</mj-include>)?")
_MARKUP = re.compile(
    r"<!--.*?-->|<!\[CDATA\[.*?\]\]>|<(?P<close>/?)(?P<tag>[A-Za-z][\w:-]*)(?P<attributes>(?:\"[^\"]*\"|'[^']*'|[^>\"'])*?)(?P<empty>/?)>",
    re.DOTALL,
)
_ATTRIBUTE = re.compile(r"([\w:-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')", re.DOTALL)
_VOID = re.compile(
    r"<(br|hr|img|input|wbr|col|area|source)\b((?:\"[^\"]*\"|'[^']*'|[^>\"'])*?)/?>", re.IGNORECASE
)
_ANCHOR = re.compile(r"<a\b((?:\"[^\"]*\"|'[^']*'|[^>\"'])*)>(.*?)</a\s*>", re.DOTALL | re.IGNORECASE)
_TABLE_ROW = re.compile(r"<(/?)(?:tr|table|tbody|thead|tfoot)\b[^>]*>", re.IGNORECASE)
_TABLE_CELL = re.compile(r"<(/?)(?:td|th)\b[^>]*>", re.IGNORECASE)
_STYLE = re.compile(r"(\sstyle=)(\"[^\"]*\"|'[^']*')")
_HREF = re.compile(r'(<(?:a|area)\b(?:[^>"]|"[^"]*")*?\shref=")([^"]*)"', re.IGNORECASE)
_RESET_STYLE = '<style type="text/css">\n#outlook a'

#: Elements whose content is text or HTML; all others hold elements only.
_ENDING = frozenset(
    [
        "mj-text",
        "mj-button",
        "mj-table",
        "mj-raw",
        "mj-style",
        "mj-title",
        "mj-preview",
        "mj-accordion-text",
        "mj-accordion-title",
        "mj-navbar-link",
        "mj-social-element",
    ]
)
_PLAIN = frozenset(["mj-style", "mj-title", "mj-preview"])
_BLOCKS = frozenset(["if", "for", "with", "macro", "call", "filter"])
_HEAD = frozenset(["mj-head", "mj-attributes", "mj-html-attributes", "mj-selector"])
_KNOWN = (
    _ENDING
    | _HEAD
    | frozenset(
        [
            "mjml",
            "mj-body",
            "mj-all",
            "mj-class",
            "mj-font",
            "mj-breakpoint",
            "mj-html-attribute",
            "mj-wrapper",
            "mj-section",
            "mj-column",
            "mj-group",
            "mj-hero",
            "mj-image",
            "mj-divider",
            "mj-spacer",
            "mj-social",
            "mj-navbar",
            "mj-carousel",
            "mj-carousel-image",
            "mj-accordion",
            "mj-accordion-element",
            "mj-include",
            "mj-list",
            "mj-li",
            "mj-chart",
        ]
    )
)

_CONFIG = ParserConfig(css=CSS_PROFILES["relaxed"].copy(), display_links=False, display_images=False)


#: A piece of a link: whether it is a merge tag, and its text.
LinkPart = tuple[bool, str]
#: Gets a link's pieces and gives the text with merge tags to write instead; None leaves the link as it is.
WriteLink = Callable[[list[LinkPart]], str | None]


@dataclass(frozen=True)
class Source:
    """A template with its includes put in.

    Attributes:
        text: MJML, line for line as in the files.
        places: (file, line) of each line of `text`.
    """

    text: str
    places: tuple[tuple[str, int], ...]

    def place(self, line: int) -> str:
        """`file:line` of a line of the text, counted from 1."""
        name, number = self.places[min(max(line, 1), len(self.places)) - 1]
        return f"{name}:{number}"

    def place_at(self, offset: int) -> str:
        """`file:line` of a character of the text."""
        return self.place(self.text.count("\n", 0, offset) + 1)


@dataclass
class _Element:
    tag: str
    attributes: dict[str, str]
    offset: int
    content: str = ""
    opened: list[str] = field(default_factory=list)
    wraps: bool = False
    children: list[_Element | str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Compiled:
    """HTML and text with the author's merge tags in them."""

    html: str
    text: str


def read_source(path: Path, folder: Path, label: Callable[[Path], str]) -> Source:
    """Read a template and what it includes.

    Args:
        folder: includes may not leave it.
        label: how to call a file in messages.

    Raises:
        TemplateError: a file cannot be read, is not UTF-8, or includes itself or a file outside the folder.
    """
    return _read(path, folder.resolve(), label, ())


def _read(path: Path, folder: Path, label: Callable[[Path], str], above: tuple[Path, ...]) -> Source:
    name = label(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TemplateError(
            f"{name}: not UTF-8 at byte {error.start}.", fix="Save the file with encoding UTF-8."
        ) from None
    except OSError as error:
        raise TemplateError(f"{name}: cannot be read: {error.strerror}.", fix="Check the file.") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    parts: list[str] = []
    places: list[tuple[str, int]] = []
    at = 0

    def add(part: str, start: int) -> None:
        first = text.count("\n", 0, start) + 1
        parts.append(part)
        places.extend((name, first + index) for index in range(part.count("\n") + 1))

    for match in _INCLUDE.finditer(text):
        add(text[at : match.start()], at)
        at = match.end()
        place = f"{name}:{text.count(chr(10), 0, match.start()) + 1}"
        attributes = _attributes(match[1])
        included = _included(path, folder, attributes.get("path", ""), place, (*above, path.resolve()))
        inner = _read(included, folder, label, (*above, path.resolve()))
        inner = _fragment(inner, attributes.get("type", "mjml"), place)
        # on lines of its own, so that every line belongs to one file
        parts.append(inner.text)
        places.extend(inner.places)
    add(text[at:], at)
    return Source("\n".join(parts), tuple(places))


def _included(path: Path, folder: Path, wanted: str, place: str, above: tuple[Path, ...]) -> Path:
    if not wanted or "://" in wanted:
        raise TemplateError(
            f"{place}: mj-include needs the path of a file in {folder.name}/, and has {wanted!r}.",
            fix='Write <mj-include path="./footer.mjml" />. Nothing is fetched from elsewhere.',
        )
    target = (path.parent / wanted).resolve()
    if not target.suffix:
        target = target.with_suffix(".mjml")
    if not target.is_relative_to(folder):
        raise TemplateError(
            f"{place}: mj-include leaves {folder.name}/: {wanted}.", fix="Move the file into the folder."
        )
    if not target.is_file():
        names = [str(file.relative_to(folder)) for file in folder.rglob("*.mjml")]
        near = difflib.get_close_matches(wanted, names, n=1, cutoff=0.3)
        raise TemplateError(
            f"{place}: mj-include names no file: {wanted}.",
            fix=f"Did you mean {near[0]}?" if near else "Write the path relative to this file.",
        )
    if target in above:
        raise TemplateError(f"{place}: {wanted} includes itself.", fix="Take one of the includes out.")
    return target


def _fragment(source: Source, kind: str, place: str) -> Source:
    """The part of an included file that goes in."""
    if kind == "mjml":
        body = re.search(r"<mj-body\b[^>]*>(.*?)</mj-body\s*>", source.text, re.DOTALL)
        if body is None:
            return source
        first = source.text.count("\n", 0, body.start(1))
        return Source(body[1], source.places[first : first + body[1].count("\n") + 1])
    wrap = {"css": ("<mj-style>", "</mj-style>"), "html": ("<mj-raw>", "</mj-raw>")}.get(kind)
    if wrap is None:
        raise TemplateError(
            f"{place}: mj-include has no type {kind!r}.", fix="Types are mjml (the default), css and html."
        )
    return Source(wrap[0] + source.text + wrap[1], source.places)


def with_preheader(source: Source) -> Source:
    """The template with `{{ preheader }}` as its preview text, whatever it had before."""
    content = "<mj-preview>{{ preheader }}</mj-preview>"
    text = source.text
    for pattern, replacement in (
        (r"<mj-preview\b[^>]*>.*?</mj-preview\s*>", content),
        (r"<mj-head\b[^>]*/>", f"<mj-head>{content}</mj-head>"),
        (r"<mj-head\b[^>]*>", rf"\g<0>{content}"),
        (r"<mjml\b[^>]*>", rf"\g<0><mj-head>{content}</mj-head>"),
    ):
        match = re.search(pattern, text, re.DOTALL)
        if match:
            # line breaks that go stay behind, so that lines keep their numbers
            kept = "\n" * match[0].count("\n") if "preview" in pattern else ""
            return Source(
                text[: match.start()] + match.expand(replacement) + kept + text[match.end() :], source.places
            )
    return source


def compile_mjml(
    source: Source,
    environment: Environment,
    html_link: WriteLink | None = None,
    text_link: WriteLink | None = None,
) -> Compiled:
    """Compile to HTML, CSS inlined, and to text.

    Args:
        html_link, text_link: what to write for each link instead, in HTML and in the text part.

    Raises:
        TemplateError: the MJML or the tags in it are malformed; names file and line.
    """
    masked, tags, lines = _mask(source, environment)
    root, marked = _parse(source, masked, tags, lines)
    content = _to_html(source, marked, root)
    content = _inline(source, content)
    for placeholder, tag in tags.items():
        if placeholder not in content:
            raise TemplateError(
                f"{source.place(lines[placeholder])}: {tag} stands where MJML drops it.",
                fix="Put it into the text of an element, or into an attribute that the element has.",
            )
    text = _text(root, tags, lambda href: _rewritten(href, tags, text_link))
    if html_link is not None:
        # href values of elements that people click, not those of style sheets
        content = _HREF.sub(lambda match: match[1] + _rewritten(match[2], tags, html_link) + '"', content)
    return Compiled(_restore(content, tags), _restore(text, tags))


def _rewritten(href: str, tags: dict[str, str], write: WriteLink | None) -> str:
    """A link with placeholders, or what the writer puts in its place under a placeholder of its own."""
    if write is None:
        return href
    parts: list[LinkPart] = []
    at = 0
    for match in _PLACEHOLDER.finditer(href):
        parts += [(False, html.unescape(href[at : match.start()])), (True, tags[match[1] or match[2]])]
        at = match.end()
    parts.append((False, html.unescape(href[at:])))
    written = write([part for part in parts if part[1]] or [(False, "")])
    if written is None:
        return href
    placeholder = f"mhtag{len(tags):04d}x"
    tags[placeholder] = written
    return placeholder


def _mask(source: Source, environment: Environment) -> tuple[str, dict[str, str], dict[str, int]]:
    """The text with a placeholder for each tag; the tags, and their lines, by placeholder."""
    tags: dict[str, str] = {}
    lines: dict[str, int] = {}
    parts: list[str] = []
    current = ""
    kind = ""
    start = 0
    try:
        for line, token, value in environment.lex(source.text):
            if token in ("variable_begin", "block_begin", "comment_begin"):
                current, kind, start = value, token, line
            elif token in ("variable_end", "block_end", "comment_end"):
                current += value
                if token.startswith("comment"):
                    # a comment's line breaks stay, for the line numbers of what follows
                    parts.append("\n" * current.count("\n"))
                else:
                    # one line, for the same reason the other way round
                    placeholder = f"mhtag{len(tags):04d}x"
                    tags[placeholder] = current.strip()
                    lines[placeholder] = start
                    parts.append(placeholder + "\n" * current.count("\n"))
                current = kind = ""
            elif token in ("raw_begin", "raw_end"):
                raise TemplateError(
                    f"{source.place(line)}: raw is not possible in a template.",
                    fix="Write {{ '{{' }} for two braces.",
                )
            elif kind:
                current += value
            else:
                parts.append(value)
    except TemplateSyntaxError as error:
        raise Problem(
            source.place(error.lineno), "", f"{error.message}.", "Correct the merge tag."
        ).error() from None
    return "".join(parts), tags, lines


def _is_statement(tag: str) -> bool:
    return tag.startswith("{%")


def _parse(source: Source, masked: str, tags: dict[str, str], lines: dict[str, int]) -> tuple[_Element, str]:
    """The tree of MJML elements, and the text with placeholders in the form that their position needs."""
    root = _Element("", {}, 0)
    stack = [root]
    out: list[str] = []
    at = 0

    def place(offset: int) -> str:
        return source.place(masked.count("\n", 0, offset) + 1)

    def count(placeholder: str) -> None:
        """Statements must begin and end in one element, or HTML is cut in half when they are false."""
        words = tags[placeholder].strip("{%-+} \n").split(None, 1)
        word, rest = words[0], words[1] if len(words) > 1 else ""
        opened = stack[-1].opened
        if word in _BLOCKS or (word == "set" and "=" not in rest):
            opened.append(placeholder)
        elif word in ("else", "elif") or word.startswith("end"):
            if not opened:
                raise TemplateError(
                    f"{source.place(lines[placeholder])}: {tags[placeholder]} belongs to a statement outside of "
                    f"<{stack[-1].tag}>.",
                    fix="Begin and end a statement in the same element, or around whole elements.",
                )
            if word.startswith("end"):
                opened.pop()

    def check_closed(element: _Element) -> None:
        if element.opened:
            placeholder = element.opened[-1]
            raise TemplateError(
                f"{source.place(lines[placeholder])}: {tags[placeholder]} does not end within <{element.tag}>.",
                fix="Begin and end a statement in the same element, or around whole elements.",
            )

    def structural(part: str) -> str:
        def wrap(match: re.Match[str]) -> str:
            placeholder = match[0]
            tag, parent = tags[placeholder], stack[-1].tag or "the template"
            if not _is_statement(tag) or parent in _HEAD or len(stack) == 1:
                raise TemplateError(
                    f"{source.place(lines[placeholder])}: {tag} stands in {parent}, which holds no text.",
                    fix="Put it into mj-text, mj-button, mj-table or an attribute.",
                )
            count(placeholder)
            stack[-1].children.append(placeholder)
            return f"<mj-raw><!--{placeholder}--></mj-raw>"

        return _PLACEHOLDER.sub(wrap, part)

    def flowing(part: str) -> str:
        def mark(match: re.Match[str]) -> str:
            if not _is_statement(tags[match[0]]):
                return match[0]
            count(match[0])
            return match[0] if stack[-1].tag in _PLAIN else f"<!--{match[0]}-->"

        return _PLACEHOLDER.sub(mark, part)

    for match in _MARKUP.finditer(masked):
        text, markup, tag = masked[at : match.start()], match[0], (match["tag"] or "").lower()
        inside = stack[-1].tag in _ENDING
        if inside:
            is_end = tag == stack[-1].tag and match["close"]
            if (
                stack[-1].tag == "mj-table"
                and not stack[-1].content
                and "<tbody" not in masked[at:].split("</mj-table", 1)[0]
            ):
                # any HTML parser puts one in, and would put its ends on different sides of a loop
                out.append("<tbody>")
                stack[-1].wraps = True
            out.append(flowing(text))
            stack[-1].content += text
            if is_end:
                check_closed(stack[-1])
                if stack.pop().wraps:
                    out.append("</tbody>")
            else:
                stack[-1].content += markup
                markup = _VOID.sub(r"<\1\2/>", markup) if match["tag"] else markup
            out.append(markup)
        else:
            out.append(structural(text))
            if not match["tag"]:
                # tags that are commented out between elements
                for placeholder in _PLACEHOLDER.finditer(markup):
                    tags.pop(placeholder[0], None)
                markup = "" if _PLACEHOLDER.search(markup) else markup
            out.append(markup)
            if match["tag"]:
                if match["close"]:
                    check_closed(stack[-1])
                _nest(stack, match, tag, place)
        at = match.end()
    out.append(structural(masked[at:]))
    if len(stack) > 1:
        raise TemplateError(
            f"{place(stack[-1].offset)}: <{stack[-1].tag}> is never closed.", fix=f"Add </{stack[-1].tag}>."
        )
    if not any(isinstance(child, _Element) and child.tag == "mjml" for child in root.children):
        raise TemplateError(
            f"{source.place(1)}: the template has no <mjml> element.", fix="Begin it with <mjml>."
        )
    return root, "".join(out)


def _nest(stack: list[_Element], match: re.Match[str], tag: str, place: Callable[[int], str]) -> None:
    if match["close"]:
        if stack[-1].tag != tag:
            opened = (
                f"<{stack[-1].tag}> of {place(stack[-1].offset)} is open"
                if stack[-1].tag
                else "nothing is open"
            )
            raise TemplateError(
                f"{place(match.start())}: </{tag}> closes nothing: {opened}.",
                fix="Close elements in the order they opened.",
            )
        stack.pop()
        return
    if tag not in _KNOWN:
        near = difflib.get_close_matches(tag, sorted(_KNOWN), n=1)
        raise TemplateError(
            f"{place(match.start())}: <{tag}> is no MJML element that may stand here.",
            fix=f"Did you mean {near[0]}?" if near else "Put HTML into mj-text, mj-table or mj-raw.",
        )
    element = _Element(tag, _attributes(match["attributes"]), match.start())
    stack[-1].children.append(element)
    if not match["empty"]:
        stack.append(element)


def _attributes(text: str) -> dict[str, str]:
    return {
        match[1].lower(): match[2] if match[2] is not None else match[3]
        for match in _ATTRIBUTE.finditer(text)
    }


def _to_html(source: Source, marked: str, root: _Element) -> str:
    options = mrml.ParserOptions(include_loader=mrml.noop_loader())
    try:
        return mrml.to_html(marked, options).content
    except (OSError, ValueError, RuntimeError) as error:
        # the compiler does not say where, so try the pieces with free content one by one
        for element in _walk(root):
            if element.tag in ("mj-text", "mj-button", "mj-table", "mj-raw"):
                piece = _VOID.sub(r"<\1\2/>", element.content)
                body = f"<mj-text>{piece}</mj-text>"
                try:
                    mrml.to_html(
                        f"<mjml><mj-body><mj-section><mj-column>{body}</mj-column></mj-section></mj-body></mjml>"
                    )
                except (OSError, ValueError, RuntimeError):
                    raise TemplateError(
                        f"{source.place_at(element.offset)}: the HTML in <{element.tag}> is not well formed ({error}).",
                        fix="Close every tag that you open, and write < as &lt;.",
                    ) from None
        raise TemplateError(
            f"{source.place(1)}: the MJML cannot be compiled: {error}.", fix="Check tags and quotes."
        ) from None


def _inline(source: Source, content: str) -> str:
    """Write the author's styles into the elements they select; media queries and hover stay in the head."""
    # MJML's own resets stay in the head, where MJML puts them: inlined they would be a fifth of the message
    content = content.replace(
        _RESET_STYLE, _RESET_STYLE.replace("<style", '<style data-css-inline="ignore"', 1), 1
    )
    # a two-character \n in a style is an editor's accident, seen in the wild: browsers skip it, the inliner stops
    content = _STYLE.sub(lambda match: match[1] + match[2].replace("\\n", " "), content)
    inliner = css_inline.CSSInliner(
        load_remote_stylesheets=False, keep_style_tags=True, keep_link_tags=True, keep_at_rules=True
    )
    try:
        inlined = inliner.inline(content)
    except css_inline.InlineError as error:
        for match in _STYLE.finditer(content):
            try:
                inliner.inline(f"<style>p {{ color: red }}</style><p style={match[2]}></p>")
            except css_inline.InlineError:
                offset = source.text.find(match[2][1:40])
                raise TemplateError(
                    f"{source.place_at(offset) if offset >= 0 else source.place(1)}: "
                    f"style {match[2][:80]} is not CSS: {error}.",
                    fix="Write declarations as `name: value;`.",
                ) from None
        raise TemplateError(
            f"{source.place(1)}: a style is not CSS: {error}.", fix="Check mj-style."
        ) from None
    return inlined.replace(' data-css-inline="ignore"', "", 1)


def _restore(content: str, tags: dict[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda match: tags.get(match[1] or match[2], match[0]), content)


def _walk(element: _Element) -> list[_Element]:
    found = [element]
    for child in element.children:
        if isinstance(child, _Element):
            found += _walk(child)
    return found


def _text(root: _Element, tags: dict[str, str], link: Callable[[str], str]) -> str:
    """The body as plain text: paragraphs, buttons and pictures with their links, statements between them."""
    parts: list[str] = []

    def visit(element: _Element) -> None:
        for child in element.children:
            if isinstance(child, str):
                parts.append(child)
                continue
            paragraph = _paragraph(child, link)
            if paragraph:
                parts.append(paragraph + "\n\n")
            visit(child)

    for element in _walk(root):
        if element.tag == "mj-body":
            visit(element)

    def joined(match: re.Match[str]) -> str:
        """Statements at the beginning of a line leave neither its end nor its indent behind."""
        is_silent = all(_is_statement(tags[one]) for one in re.findall(r"mhtag\d{4}x", match[1]))
        return match[1] if is_silent else match[0]

    text = re.sub(r"(?m)^((?:mhtag\d{4}x)+)\n", joined, "".join(parts))
    return re.sub(r"(?m)^((?:mhtag\d{4}x)+) +", joined, text)


def _paragraph(element: _Element, link: Callable[[str], str]) -> str:
    attributes = element.attributes
    href = html.unescape(attributes.get("href", ""))
    if element.tag in ("mj-text", "mj-table", "mj-accordion-title", "mj-accordion-text"):
        return _plain(element.content, link)
    if element.tag in ("mj-button", "mj-social-element", "mj-navbar-link"):
        return _linked(_plain(element.content, link), href, link)
    if element.tag in ("mj-image", "mj-carousel-image"):
        return _linked(html.unescape(attributes.get("alt", "")), href, link) if attributes.get("alt") else ""
    if element.tag == "mj-divider":
        return "-" * 40
    if element.tag == "mj-raw" and _PLACEHOLDER.search(element.content):
        # only its statements: raw HTML is layout
        return ""
    return ""


def _plain(content: str, link: Callable[[str], str]) -> str:
    content = _TABLE_ROW.sub(r"<\1div>", content)
    content = _TABLE_CELL.sub(lambda match: "</span> &nbsp;" if match[1] else "<span>", content)
    content = _ANCHOR.sub(
        lambda match: _linked(match[2].strip(), _attributes(match[1]).get("href", ""), link), content
    )
    text = get_text(f"<div>{content}</div>", _CONFIG).replace("\u00a0", " ")
    # spaces that keep the layout in HTML only get in the way here
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.strip() for line in text.split("\n"))).strip()


def _linked(label: str, href: str, link: Callable[[str], str]) -> str:
    if not href or href.startswith("#"):
        return label
    shown = link(href)
    return f"{label} ({shown})" if label and label != href else shown
