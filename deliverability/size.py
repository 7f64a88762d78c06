"""Whether Gmail shows a message whole."""

from __future__ import annotations

from collections.abc import Sequence

from campaigns.checks import CheckResult
from deliverability.samples import Sample

#: Bytes of HTML from which Gmail clips a message and hides the rest, unsubscribe link and pixel with it, behind
#: "View entire message". Google documents no number; 102 KB is what senders measure.
CLIPPED_FROM = 102 * 1024
_NAME = "size"


def check_size(samples: Sequence[Sample], *, limit: int = CLIPPED_FROM) -> CheckResult:
    """`size`: the HTML part of the largest sample stays under Gmail's limit.

    Args:
        limit: bytes of UTF-8, once transfer encoding is undone.
    """
    sizes = [(len(sample.html.encode()), sample) for sample in samples]
    largest, sample = max(sizes, key=lambda one: one[0])
    metadata = {
        "html_bytes": largest,
        "limit_bytes": limit,
        "message_bytes": max(len(sample.raw) for sample in samples),
        "samples": len(samples),
    }
    label = f" in {sample.locale}" if sample.locale else ""
    message = f"The HTML part{label} has {largest / 1024:.1f} KB of the {limit / 1024:g} KB that Gmail shows"
    if largest < limit:
        return CheckResult(_NAME, True, f"{message}.", metadata)
    return CheckResult(
        _NAME, False, f"{message}: it would clip the end, unsubscribe link and all. Shorten it.", metadata
    )
