"""Which mail programs would not show what a message uses.

A short table of our own of what makes content or layout go missing where it is not supported; what only degrades, as
round corners do, is left out. Support: caniemail.com as of June 2026 (MIT licence, © 2019 HTeuMeuLeu), its clients
Gmail, Outlook, Yahoo Mail, AOL, Apple Mail and Samsung Email.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from campaigns.checks import CheckResult
from deliverability.markup import Markup
from deliverability.samples import Sample

_NAME = "client_support"
_SHOWN = 5

_GMAIL = ("Gmail",)
_OUTLOOK_WINDOWS = ("Outlook for Windows",)
_OUTLOOKS = ("Outlook",)  # all of them: Windows, macOS, iOS, Android and outlook.com
_YAHOO = ("Yahoo Mail", "AOL")
_SAMSUNG = ("Samsung Email",)


@dataclass(frozen=True)
class Feature:
    """Something that HTML or CSS can have.

    Attributes:
        name: for people.
        slug: its page is `https://www.caniemail.com/features/<slug>/`.
        clients: mail programs that do not show it, wholly or in all their versions.
        is_used: whether a message uses it.
    """

    name: str
    slug: str
    clients: tuple[str, ...]
    is_used: Callable[[Markup], bool]


def _tag(*names: str) -> Callable[[Markup], bool]:
    return lambda markup: not markup.tags.isdisjoint(names)


def _declares(name: str, value: str = "") -> Callable[[Markup], bool]:
    """Whether CSS declares a property, with a value that fits a pattern."""
    pattern = re.compile(rf"(?<![\w-]){name}\s*:\s*[^;}}]*{value}", re.IGNORECASE)
    return lambda markup: bool(pattern.search(markup.css))


def _has(pattern: str) -> Callable[[Markup], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda markup: bool(compiled.search(markup.css))


def _image(pattern: str) -> Callable[[Markup], bool]:
    compiled = re.compile(pattern, re.IGNORECASE)
    return lambda markup: any(
        one.kind == "image" and compiled.search(one.url) is not None for one in markup.references
    )


#: Features and who does not show them.
FEATURES: tuple[Feature, ...] = (
    Feature("<video>", "html-video", (*_GMAIL, "Outlook (but for macOS)", *_YAHOO), _tag("video")),
    Feature("<audio>", "html-audio", (*_GMAIL, *_OUTLOOKS, *_YAHOO), _tag("audio")),
    Feature("<object>", "html-object", (*_GMAIL, *_OUTLOOKS, *_YAHOO), _tag("object")),
    Feature("<svg> in the HTML", "html-svg", (*_GMAIL, *_OUTLOOKS, *_YAHOO), _tag("svg")),
    Feature("<form>", "html-form", (*_OUTLOOK_WINDOWS, "Yahoo Mail for iOS"), _tag("form")),
    Feature("SVG images", "image-svg", ("Gmail on the web",), _image(r"\.svg([?#]|$)")),
    Feature("WebP images", "image-webp", _OUTLOOK_WINDOWS, _image(r"\.webp([?#]|$)")),
    Feature("AVIF images", "image-avif", _OUTLOOK_WINDOWS, _image(r"\.avif([?#]|$)")),
    Feature("display: flex", "css-display-flex", _OUTLOOK_WINDOWS, _declares("display", r"\b(inline-)?flex\b")),
    Feature("display: grid", "css-display-grid", _OUTLOOK_WINDOWS, _declares("display", r"\b(inline-)?grid\b")),
    Feature(
        "gap", "css-gap", ("Gmail for mobile browsers", *_OUTLOOK_WINDOWS, *_YAHOO), _declares("(row-|column-)?gap")
    ),
    Feature(
        "position", "css-position", (*_GMAIL, *_OUTLOOK_WINDOWS, "Outlook for iOS"),
        _declares("position", r"\b(absolute|fixed|sticky|relative)\b"),
    ),
    Feature("transform", "css-transform", (*_GMAIL, *_OUTLOOKS, *_YAHOO), _declares("transform")),
    Feature("animation", "css-animation", (*_GMAIL, *_OUTLOOKS, *_YAHOO), _declares("animation(-name)?")),
    Feature("custom properties (var)", "css-variables", (*_GMAIL, *_OUTLOOKS, *_YAHOO), _has(r"\bvar\(\s*--")),
    Feature("calc()", "css-unit-calc", (*_OUTLOOKS, *_YAHOO), _has(r"\bcalc\(")),
    Feature("clamp()", "css-function-clamp", (*_OUTLOOKS, *_YAHOO), _has(r"\bclamp\(")),
    Feature(
        "background images", "css-background-image", _OUTLOOK_WINDOWS,
        _declares("background(-image)?", r"url\("),
    ),
    Feature("linear-gradient", "css-linear-gradient", (*_OUTLOOKS, *_YAHOO), _has(r"linear-gradient\(")),
    Feature(
        "opacity", "css-opacity", ("Gmail for mobile browsers", *_OUTLOOK_WINDOWS, "AOL"),
        _declares("opacity", r"(?<![\d.])0?\.\d*[1-9]"),
    ),
    Feature(
        "object-fit", "css-object-fit", ("Gmail for mobile browsers", *_OUTLOOK_WINDOWS, *_YAHOO),
        _declares("object-fit"),
    ),
)  # fmt: skip


def unsupported(markup: Markup) -> list[Feature]:
    """Features that a message uses and some mail program does not show."""
    return [feature for feature in FEATURES if feature.is_used(markup)]


def check_support(samples: Sequence[Sample]) -> CheckResult:
    """`client_support`: mail programs that many use show what the message has. A warning, it blocks nothing."""
    used = {feature.slug: feature for sample in samples for feature in unsupported(sample.markup)}
    metadata: dict[str, int | float | str] = {
        "features": len(used),
        "source": "caniemail.com",
        **{feature.slug: ", ".join(feature.clients) for feature in used.values()},
    }
    if not used:
        return CheckResult(
            _NAME,
            True,
            "It uses nothing of our list that mail programs do not show.",
            metadata,
            is_blocking=False,
        )
    listed = [f"{one.name} is not shown by {', '.join(one.clients)}" for one in used.values()]
    more = f"; and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return CheckResult(_NAME, False, "; ".join(listed[:_SHOWN]) + f"{more}.", metadata, is_blocking=False)
