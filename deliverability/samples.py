"""Messages that the checks judge: rendered for contacts who would get them, sent to nobody."""

from __future__ import annotations

import email
import email.policy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from deliverability.markup import Markup


@dataclass(frozen=True)
class Sample:
    """One whole message.

    Attributes:
        raw: header and body, as it would be sent; empty if it is no mail.
        locale: of its template, empty for the one that everybody gets who has no other.
        subject, text: where it is no mail, all that is sent of it.
    """

    raw: bytes
    locale: str = ""
    subject: str = ""
    text: str = ""

    @cached_property
    def html(self) -> str:
        """The HTML part, decoded; empty if there is none."""
        message = email.message_from_bytes(self.raw, policy=email.policy.default)
        part = message.get_body(("html",))
        return part.get_content() if part is not None else ""

    @cached_property
    def markup(self) -> Markup:
        """The HTML part, read."""
        return Markup.read(self.html)


def one_a_locale(samples: Sequence[Sample]) -> list[Sample]:
    """The largest sample of each locale."""
    chosen: dict[str, Sample] = {}
    for sample in sorted(samples, key=lambda one: len(one.raw)):
        chosen[sample.locale] = sample
    return list(chosen.values())
