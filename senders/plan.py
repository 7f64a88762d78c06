"""What is to be sent, once its audience is decided: all that a worker process must know of a campaign."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from campaigns.identity import occurrence_key
from senders.providers.base import Needs

if TYPE_CHECKING:
    from campaigns.specs import CampaignSpec, SendSpec
    from campaigns.specs import Cap as CapSpec


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `messages` marketing messages to one person within `within`."""

    messages: int
    within: timedelta


@dataclass(frozen=True, kw_only=True)
class SendPlan:
    """What is sent, once the audience is decided.

    Attributes:
        kind, name, version, occurrence: the campaign, journey step or trigger; with the contact they make the message.
        subject, preheader: templates; `place` says where they are written, for messages about them.
        cap: frequency cap; None takes the default of the settings. Counts for marketing only.
        provider: name of a provider; empty takes that of the settings.
        from_email, from_name, reply_to: empty takes those of the settings.
        variant: the experiment's variant whose content this is; what templates know as `campaign.variant`. Empty: what
            each row of the audience says.
        attachments: names of files in `content/attachments`.
        track_clicks, track_opens, utm: None takes what the settings say for the category.
        waits_for_quiet: who is in quiet hours gets it when these are over, by a later run; otherwise not at all.
        is_tracked: the provider counts opens and clicks.
        hold: the provider holds each message back for so long; `is_cancellable` until then.
    """

    name: str
    occurrence: str
    template: str
    subject: str
    kind: str = "campaign"
    version: str = ""
    category: str = "marketing"
    channel: str = "email"
    preheader: str = ""
    place: str = ""
    segment: str = ""
    segment_version: str = ""
    provider: str = ""
    from_email: str = ""
    from_name: str = ""
    reply_to: str = ""
    cap: Cap | None = None
    experiment: str = ""
    variant: str = ""
    track_clicks: bool | None = None
    track_opens: bool | None = None
    utm: Mapping[str, str] | None = None
    attachments: tuple[str, ...] = ()
    waits_for_quiet: bool = False
    is_tracked: bool = False
    hold: timedelta = timedelta(0)
    is_cancellable: bool = False

    def needs(self) -> Needs:
        """What this asks of its provider."""
        return Needs(
            channel=self.channel, category=self.category, has_attachments=bool(self.attachments),
            is_tracked=self.is_tracked, hold=self.hold, is_cancellable=self.is_cancellable,
        )  # fmt: skip

    @classmethod
    def from_campaign(
        cls, spec: CampaignSpec, occurrence: datetime, *, segment_version: str = "", variant: str = ""
    ) -> SendPlan:
        """The plan of one occurrence of a campaign, or of a variant of its experiment."""
        placed = spec.placed_experiment()
        return cls.of(
            spec.send_of(variant),
            spec.cap,
            kind="campaign",
            name=spec.campaign,
            version=spec.version,
            occurrence=occurrence_key(occurrence),
            place=spec.place("send", "subject"),
            segment=spec.audience.segment,
            segment_version=segment_version,
            experiment=placed.name if placed else "",
            variant=variant,
            waits_for_quiet=spec.quiet_hours is not None and spec.quiet_hours.then == "wait",
        )

    @classmethod
    def of(cls, send: SendSpec, cap: CapSpec | None, *, name: str, occurrence: str, **more: Any) -> SendPlan:
        """The plan of what a file says under `send`.

        Args:
            more: what the plan has besides: `kind`, `version`, `place`, `segment` and the like.
        """
        return cls(
            name=name,
            occurrence=occurrence,
            template=send.template,
            subject=send.subject,
            preheader=send.preheader or "",
            category=send.category,
            channel=send.channel,
            provider=send.provider or "",
            from_email=send.from_email or "",
            from_name=send.from_name or "",
            reply_to=send.reply_to or "",
            cap=Cap(cap.messages, cap.within) if cap else None,
            attachments=tuple(send.attachments),
            track_clicks=send.track.clicks if send.track else None,
            track_opens=send.track.opens if send.track else None,
            utm={"campaign": name, **send.utm.model_dump(exclude_none=True)} if send.utm else None,
            is_tracked=send.provider_tracking,
            hold=send.hold or timedelta(0),
            is_cancellable=send.cancellable,
            **more,
        )
