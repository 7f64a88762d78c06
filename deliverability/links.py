"""Whether links and images of a message can work for who gets it; by their text alone, no network is touched."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from urllib.parse import unquote, urlsplit

from campaigns.checks import CheckResult
from deliverability.markup import Reference
from deliverability.samples import Sample
from senders.mime import ascii_domain

_NAME = "links"
_SHOWN = 5
_CONTROL = re.compile(r"[\x00-\x20\x7f<>\"]")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.IGNORECASE)
_ADDRESS = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+", re.IGNORECASE)
# RFC 2606, 6761, 6762, 8375, and what networks at home and at work are named
_PRIVATE_ENDINGS = frozenset(
    {"localhost", "local", "internal", "intranet", "lan", "home", "corp", "private", "test", "invalid", "example",
     "localdomain", "home.arpa"}
)  # fmt: skip
# schemes that mail programs open; what stands behind them is not judged further
_OTHER_SCHEMES = frozenset({"tel", "sms", "geo", "webcal", "maps", "whatsapp", "sgnl", "tg", "facetime"})

Unwrap = Callable[[str], str | None]


def is_private_host(host: str) -> bool:
    """Whether only this machine or network knows a host: no global address, or a name such as `x.local`."""
    host = host.lower().strip("[]").rstrip(".")
    try:
        return not ipaddress.ip_address(host.partition("%")[0]).is_global
    except ValueError:
        labels = host.split(".")
        return len(labels) == 1 or labels[-1] in _PRIVATE_ENDINGS or ".".join(labels[-2:]) in _PRIVATE_ENDINGS


def shown(url: str) -> str:
    """An address for people: without user, query and fragment, which may hold what is personal, and shortened."""
    bare = re.split(r"[?#]", re.sub(r"//[^/@]*@", "//", url), maxsplit=1)[0]
    return bare if len(bare) <= 80 else f"{bare[:77]}..."


def url_problem(reference: Reference, *, is_rehearsal: bool) -> str:
    """What is wrong with an address; empty if nothing is.

    Args:
        is_rehearsal: nobody but this machine gets the message, so that addresses of this machine work.
    """
    url, is_link = reference.url, reference.kind == "link"
    if not url or url == "#":
        return "leads nowhere" if is_link else "has no address"
    if "{{" in url or "{%" in url:
        return "holds a merge tag that was not filled in"
    if _CONTROL.search(url):
        return "holds white space or quotes"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        return f"is no address: {error}"
    scheme = parts.scheme.lower()
    if scheme in ("http", "https"):
        return _web_problem(scheme, host, reference, is_rehearsal)
    if is_link:
        if url.startswith("#"):
            return ""
        if scheme == "mailto":
            wrong = [
                one for one in unquote(parts.path).split(",") if one and not _ADDRESS.fullmatch(one.strip())
            ]
            return f"{wrong[0]!r} is no mail address" if wrong or not (parts.path or parts.query) else ""
        if scheme in _OTHER_SCHEMES:
            return "" if parts.path or parts.query else "leads nowhere"
    elif scheme == "cid":
        return ""
    elif scheme == "data":
        return "is part of the HTML (data:), which Gmail and Outlook do not show: publish it as an asset"
    return (
        f"has scheme {scheme}, which mail programs refuse"
        if scheme
        else "is relative: there is no page it belongs to"
    )


def _web_problem(scheme: str, host: str, reference: Reference, is_rehearsal: bool) -> str:
    if not host:
        return "has no host"
    is_private = is_private_host(host)
    if is_private and is_rehearsal:
        return ""
    if is_private:
        return "leads to a host that only this machine or network knows"
    try:
        labels = [] if ":" in host else ascii_domain(host.rstrip(".")).split(".")
    except ValueError:
        return f"has no host: {host!r}"
    if any(not _LABEL.fullmatch(label) for label in labels):
        return f"has no host: {host!r}"
    if labels and _NUMBER.fullmatch(labels[-1]) and not _is_address(host):
        return f"has a number for a host: {host!r}"
    if scheme == "http" and reference.kind != "link":
        return "is loaded by http://, which mail programs block or warn of: use https://"
    return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def references_of(samples: Iterable[Sample], unwrap: Unwrap) -> list[Reference]:
    """Addresses of all samples, each once.

    Args:
        unwrap: for an address of a tracked link where it leads to; None for any other.
    """
    found: dict[Reference, None] = {}
    for sample in samples:
        for reference in sample.markup.references:
            found[reference] = None
            if target := unwrap(reference.url):
                found[Reference(target, reference.kind)] = None
    return list(found)


def check_links(
    samples: Sequence[Sample],
    *,
    is_rehearsal: bool,
    unwrap: Unwrap = lambda _: None,
    reached: Mapping[str, str] | None = None,
) -> CheckResult:
    """`links`: every link and image has an address that works for who gets it, and every image a text.

    Args:
        reached: what is wrong with addresses that were asked for, from `reachability.reach`; empty text where nothing
            is. None: the network was not touched.
    """
    references = references_of(samples, unwrap)
    names = {"link": "link", "image": "image", "style": "style sheet or font"}
    problems: dict[str, None] = {}
    for reference in references:
        problem = url_problem(reference, is_rehearsal=is_rehearsal)
        if not problem and reached:
            problem = reached.get(reference.url, "")
        if problem:
            problems[f"{names[reference.kind]} {shown(reference.url)!r} {problem}"] = None
    for sample in samples:
        for url in sample.markup.images_without_alt:
            problems[f'image {shown(url)!r} has no alt text (write alt="" if it is only decoration)'] = None
        for url in sample.markup.silent_links:
            problems[
                f"link {shown(unwrap(url) or url)!r} is an image without alt text: nobody is told where it leads"
            ] = None
    metadata: dict[str, int | float | str] = {
        "links": sum(one.kind == "link" for one in references),
        "images": sum(one.kind == "image" for one in references),
        "problems": len(problems),
        "is_network_used": int(reached is not None),
        "asked": len(reached or {}),
    }
    if problems:
        listed = "; ".join(list(problems)[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        return CheckResult(_NAME, False, f"{listed[0].upper()}{listed[1:]}{more}.", metadata)
    how = f"{len(reached)} of them answer" if reached is not None else "whether they answer was not asked"
    return CheckResult(
        _NAME,
        True,
        f"{metadata['links']} links and {metadata['images']} images are well formed; {how}.",
        metadata,
    )
