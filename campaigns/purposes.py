"""What people are asked for: purposes, in the words that they read, of `content/preferences.yaml`.

A purpose is what marketing is consented to: `newsletter`, `offers`. The words have a version and a digest, which each
consent carries; `campaigns.consents` keeps the words themselves, so that they can be shown years later.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import Field

from campaigns.permissions import PURPOSE
from warehouse.yaml_specs import Location, Problem, Spec, load_spec, nearest, shown_location

if TYPE_CHECKING:
    from campaigns.specs import SendSpec

CHANNEL_WORDS: Final[Mapping[str, str]] = {
    "email": "Email", "sms": "Text messages (SMS)", "push": "Notifications in our app", "chat": "Chat messages",
    "video": "Video messages by email", "journey": "Automated emails", "webhook": "Partner services",
}  # fmt: skip
"""Channels as people are shown them."""


@dataclass(frozen=True)
class ConsentText:
    """The words that somebody was shown.

    Attributes:
        place: where: `preferences`, `subscribe`.
        label: the version that `preferences.yaml` states.
        content: all that was said, lines apart.
    """

    place: str
    label: str
    purpose: str
    channel: str
    content: str

    @property
    def digest(self) -> str:
        """SHA-256 of the words, hexadecimal: who has the words can prove that they are these."""
        return hashlib.sha256(self.content.encode("utf-8", "replace")).hexdigest()

    @property
    def version(self) -> str:
        """Place, label and the digest's beginning: another text is another version, label or not."""
        return f"{self.place}-{self.label}-{self.digest[:8]}"


class PurposeText(Spec):
    """How a purpose is put to people.

    Attributes:
        title: a few words.
        description: a sentence on what comes, and how often.
        channels: offered for it.
        double_opt_in: who subscribes by form or API must confirm by a link that comes by mail. Without it, a request
            grants at once, unless the address is unsubscribed.
        agreement: the sentence that who subscribes agrees to; left out, it is made of title and company.
        has_form: the public form offers it.
    """

    title: Annotated[str, Field(min_length=1, max_length=100, description="a few words")]
    description: Annotated[str, Field(max_length=500, description="what comes, and how often")] = ""
    channels: Annotated[
        list[Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,30}$")]],
        Field(min_length=1, description="a list such as [email, sms]"),
    ] = Field(default_factory=lambda: ["email"])
    double_opt_in: bool = Field(default=True, description="true or false: confirmed by mail before it holds")
    agreement: str = Field(default="", max_length=1_000, description="the sentence that people agree to")
    has_form: bool = Field(default=True, description="true or false: on the public form")

    def agreed(self, company: str) -> str:
        """The sentence that who subscribes agrees to."""
        sender = f" from {company}" if company else ""
        return self.agreement or (
            f"I would like to get {self.title}{sender} by email. I can stop it at any time by a link in each message."
        )


class PreferencesSpec(Spec):
    """`content/preferences.yaml`, which need not exist: what is offered, in its order.

    Attributes:
        version: a name for this wording, of your own: `2026-06`. A change of words is told by a digest anyway.
        purposes: by the purpose that consents carry. Campaigns ask for `marketing` unless they name another.
    """

    version: str = Field(default="1", pattern=r"^[A-Za-z0-9._-]{1,40}$", description="a name such as 2026-06")
    purposes: Annotated[
        dict[Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,62}$")], PurposeText], Field(min_length=1)
    ]

    @classmethod
    def load(cls, folder: Path) -> PreferencesSpec:
        """Read `preferences.yaml` of a content folder.

        Raises:
            InputError: the file does not say what it must; names the line.
        """
        path = folder / "preferences.yaml"
        if path.exists():
            return load_spec(path, cls)
        text = PurposeText(
            title="Offers and news", description="Offers, new products and stories, now and then."
        )
        return cls(purposes={PURPOSE: text})

    def offered(self) -> dict[str, PurposeText]:
        """What can be subscribed to by mail: a link proves who reads an address, not whose a number is."""
        return {name: text for name, text in self.purposes.items() if "email" in text.channels}

    def choice_text(self, purpose: str, channel: str, title: str, description: str) -> ConsentText:
        """What the page of preferences says of a purpose and a channel, which may not be in the file any more."""
        words = "\n".join((title, description, CHANNEL_WORDS.get(channel, channel.capitalize())))
        return ConsentText("preferences", self.version, purpose, channel, words)

    def subscription_text(self, purpose: str, company: str) -> ConsentText:
        """What the form says of a purpose."""
        text = self.purposes[purpose]
        words = "\n".join((text.title, text.description, text.agreed(company)))
        return ConsentText("subscribe", self.version, purpose, "email", words)


def purpose_problems(
    spec: Spec, sends: Collection[tuple[Location, SendSpec]], content_dir: Path
) -> list[Problem]:
    """What is wrong with the purposes that a campaign, journey or trigger names.

    Args:
        sends: each `send` of the spec, and where it stands.

    Raises:
        InputError: `preferences.yaml` does not say what it must.
    """
    named = [(location, one) for location, one in sends if one.purpose is not None]
    if not named:
        return []
    known = {PURPOSE, *PreferencesSpec.load(content_dir).purposes}
    problems: list[Problem] = []
    for location, send in named:
        at = (*location, "purpose")
        if send.purpose not in known:
            what = f"{shown_location(at)}: there is no purpose {send.purpose!r} in content/preferences.yaml."
            hint = nearest(str(send.purpose), sorted(known))
            problems.append(Problem(spec.place(*at), what, hint))
        elif send.category != "marketing":
            what = (
                f"{shown_location(at)}: a {send.category} message asks for no consent, so it has no purpose."
            )
            problems.append(Problem(spec.place(*at), what, "Remove purpose, or write category: marketing."))
    return problems
