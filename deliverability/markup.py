"""Reads a message's HTML for what the checks ask: links, images, elements, CSS."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Literal

_CSS_URL = re.compile(r"""url\(\s*(?:"([^"]*)"|'([^']*)'|([^)"'\s]*))\s*\)""", re.IGNORECASE)
_CSS_IMPORT = re.compile(r"""@import\s+(?:url\(\s*)?["']?([^"')\s;]+)""", re.IGNORECASE)
_CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class Reference:
    """An address in the HTML.

    Attributes:
        kind: `link` is followed by the reader, `image` is loaded to be shown, `style` is a style sheet or font.
    """

    url: str
    kind: Literal["link", "image", "style"]


@dataclass
class Markup:
    """What stands in a message's HTML; what conditional comments hide from all but Outlook is left out.

    Attributes:
        references: addresses in their order, each once.
        tags: names of the elements that occur.
        css: all CSS: style sheets, then `style` attributes, without comments.
        images_without_alt: addresses of images without the attribute `alt`.
        silent_links: addresses of links that hold nothing but images with an empty `alt`.
    """

    references: list[Reference] = field(default_factory=list)
    tags: set[str] = field(default_factory=set)
    css: str = ""
    images_without_alt: list[str] = field(default_factory=list)
    silent_links: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, html: str) -> Markup:
        """Read HTML, well-formed or not."""
        parser = _Parser()
        parser.feed(html)
        parser.close()
        markup = parser.markup
        markup.css = _CSS_COMMENT.sub("", "\n".join([*parser.sheets, *parser.styles]))
        imports = {match[1] for match in _CSS_IMPORT.finditer(markup.css)}
        parser.refer("style", *imports)
        for match in _CSS_URL.finditer(markup.css):
            url = match[1] or match[2] or match[3] or ""
            if url and url not in imports:
                is_font = re.search(r"\.(woff2?|ttf|otf|eot)([?#]|$)", url, re.IGNORECASE)
                parser.refer("style" if is_font else "image", url)
        markup.references = list(dict.fromkeys(markup.references))
        return markup


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.markup = Markup()
        self.sheets: list[str] = []
        self.styles: list[str] = []
        self._in_style = False
        # the open link: its address, whether it says anything, whether it has an image
        self._link: tuple[str, bool, bool] | None = None

    def refer(self, kind: Literal["link", "image", "style"], *urls: str) -> None:
        self.markup.references += [Reference(url, kind) for url in urls]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.markup.tags.add(tag)
        if "style" in given:
            # in a rule of its own, so that a reader of declarations finds their end
            self.styles.append(f"{{{given['style']}}}")
        if background := given.get("background", "").strip():
            self.refer("image", background)
        if tag == "style":
            self._in_style = True
        elif tag in ("a", "area"):
            if "href" in given:
                self.refer("link", given["href"].strip())
            if tag == "a":
                says = bool(given.get("aria-label") or given.get("title"))
                self._link = (given["href"].strip(), says, False) if "href" in given else None
        elif tag == "link" and "href" in given:
            self.refer("style", given["href"].strip())
        elif tag == "img":
            self._image(given)

    def _image(self, given: dict[str, str]) -> None:
        url = given.get("src", "").strip()
        self.refer("image", url)
        for candidate in given.get("srcset", "").split(", "):
            if candidate.strip():
                self.refer("image", candidate.split()[0])
        if "alt" not in given:
            self.markup.images_without_alt.append(url)
        if self._link is not None:
            self._link = (self._link[0], self._link[1] or bool(given.get("alt", "").strip()), True)

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self._in_style = False
        elif tag == "a" and self._link is not None:
            url, says, has_image = self._link
            if has_image and not says:
                self.markup.silent_links.append(url)
            self._link = None

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.sheets.append(data)
        elif self._link is not None and data.strip():
            self._link = (self._link[0], True, self._link[2])
