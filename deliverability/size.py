"""Whether a message is shown whole: by Gmail, or where it is no mail, sent at all."""

from __future__ import annotations

from collections.abc import Sequence

from campaigns.checks import CheckResult
from deliverability.samples import Sample

#: Bytes of HTML from which Gmail clips a message and hides the rest, unsubscribe link and pixel with it, behind
#: "View entire message". Google documents no number; 102 KB is what senders measure.
CLIPPED_FROM = 102 * 1024
_NAME = "size"
#: Channels of which the text alone is sent.
TEXT_CHANNELS = ("sms", "push")
#: Characters of a text message, bytes of a push message: what Twilio and Firebase take.
_MOST = {"sms": 1600, "push": 4096}
# 3GPP TS 23.038: the default alphabet, and the extension table, whose characters take two places
_GSM = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
_GSM_EXTENSION = frozenset("^{}\\[~]|€\f")


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


def segments_of(text: str) -> int:
    """How many messages a text travels as, and costs (3GPP TS 23.040): 160 characters, or 153 each of several.

    One character outside of GSM's alphabet makes it 70, or 67 each: UTF-16.
    """
    if all(one in _GSM or one in _GSM_EXTENSION for one in text):
        length, alone, each = len(text) + sum(one in _GSM_EXTENSION for one in text), 160, 153
    else:
        length, alone, each = len(text.encode("utf-16-le")) // 2, 70, 67
    return 1 if length <= alone else -(-length // each)


def check_text_size(channel: str, samples: Sequence[Sample]) -> CheckResult:
    """`size`: the longest text is taken by the provider; says how many text messages it makes."""
    if channel == "sms":
        longest = max((sample.text for sample in samples), key=lambda text: (segments_of(text), len(text)))
        number, unit = len(longest), "characters"
        segments = segments_of(longest)
        more = f", sent and paid as {segments} text message{'s' if segments > 1 else ''}"
        metadata: dict[str, int | float | str] = {"characters": number, "segments": segments}
    else:
        number = max(len((sample.subject + sample.text).encode()) for sample in samples)
        unit, more = "bytes", ""
        metadata = {"bytes": number}
    metadata |= {"limit": _MOST[channel], "samples": len(samples)}
    message = f"The longest text has {number:,} {unit} of {_MOST[channel]:,}{more}"
    if number <= _MOST[channel]:
        return CheckResult(_NAME, True, f"{message}.", metadata)
    return CheckResult(_NAME, False, f"{message}: the provider takes no more. Shorten it.", metadata)
