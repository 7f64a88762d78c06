"""A campaign's message, rendered for contacts who would get it and judged before anybody does."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from campaigns.audience import Audience
from campaigns.checks import CheckResult
from campaigns.identity import message_id
from campaigns.specs import CampaignSpec
from deliverability.preflight import Sender, Surroundings, not_judged, preflight
from deliverability.samples import Sample
from deliverability.sender_dns import Selector
from deliverability.size import TEXT_CHANNELS, check_text_size
from deliverability.spamd import Spamd
from senders.composing import Composer, Envelope, sender_of
from senders.dkim import DkimSigner
from senders.links import Links
from senders.mime import ascii_domain
from senders.plan import SendPlan
from senders.providers import get_capabilities, get_provider
from senders.rendering import RenderError, TemplateLibrary, TemplateSource
from senders.rows import NOT_PROFILE
from senders.settings import SenderSettings
from senders.tracking import tracking_of
from warehouse.errors import MailhouseError

_CONTACTS = 20


def judge_message(
    settings: SenderSettings,
    spec: CampaignSpec,
    occurrence: datetime,
    audience: Audience,
    templates: TemplateLibrary,
    *,
    has_problems: bool = False,
) -> list[CheckResult]:
    """Render the message for the first contacts, in every locale of the template, and judge it.

    Args:
        has_problems: the template is known to be wrong, so there is nothing to render.
    """
    channel = spec.send.channel
    if channel not in ("email", *TEXT_CHANNELS):
        return not_judged(f"channel {channel} is not email.", is_passed=True)
    if has_problems:
        return not_judged("template_lint failed.", is_passed=True)
    plan = SendPlan.from_campaign(spec, occurrence)
    try:
        samples, error = _samples(settings, plan, audience, templates)
    except MailhouseError as problem:
        return not_judged(f"{problem.message} {problem.fix}", is_passed=False)
    if not samples and error:
        return not_judged(
            f"the message could be rendered for none of the first {_CONTACTS} contacts: {error}.",
            is_passed=False,
        )
    if not samples:
        return not_judged("nobody would get it.", is_passed=True)
    if channel in TEXT_CHANNELS:
        rest = not_judged(f"channel {channel} is not email.", is_passed=True)
        return [check_text_size(channel, samples), *(one for one in rest if one.name != "size")]
    links = Links(settings.signing_key(), settings.base_url)
    base = f"{links.base_url}/"

    def unwrap(url: str) -> str | None:
        if not url.startswith(f"{base}c/"):
            return None
        click = links.resolve(url.removeprefix(f"{base}c/"))
        return click.url if click else None

    return preflight(
        samples,
        Surroundings(
            reaches_people=reaches_people(settings, plan.provider),
            uses_network=settings.preflight_network,
            unwrap=unwrap,
            is_own=lambda url: url.startswith(base),
            sender=_sender(settings, plan),
            spamd=Spamd.parse(settings.spamd_url) if settings.spamd_url else None,
            spam_limit=settings.spam_limit,
        ),
    )


def _sender(settings: SenderSettings, plan: SendPlan) -> Sender:
    """Whose domain receivers look up, and where our DKIM keys, or the provider's, must be."""
    address = sender_of(plan, settings).email
    domain = ascii_domain(address.rpartition("@")[2])
    return_path = ascii_domain((settings.bounce_address or address).rpartition("@")[2])
    is_ours = (plan.provider or settings.provider) == "smtp"
    signer = DkimSigner.from_settings(settings, address) if is_ours else None
    public = {key.selector: key.record().partition("p=")[2] for key in signer.keys} if signer else {}
    names = dict.fromkeys(
        name for name in (settings.dkim_selector, settings.dkim_second_selector, *public) if name
    )
    return Sender(
        domain,
        tuple(Selector(name, public.get(name, "")) for name in names),
        dkim_domain=settings.dkim_domain,
        # others than SMTP servers of our own choice have bounces come to a domain of theirs
        envelope_domain=return_path if is_ours else "",
    )


def reaches_people(settings: SenderSettings, provider: str) -> bool:
    """Whether what a provider sends leaves this machine; of one that is not set up yet, whether it would by default."""
    try:
        with get_provider(settings, provider) as made:
            return made.capabilities.reaches_people
    except MailhouseError:
        return get_capabilities(provider or settings.provider).reaches_people


def _samples(
    settings: SenderSettings, plan: SendPlan, audience: Audience, templates: TemplateLibrary
) -> tuple[list[Sample], str]:
    """Samples, and why the last contact has none."""
    template = templates.template(
        plan.template, subject=plan.subject, preheader=plan.preheader, place=plan.place,
        tracking=tracking_of(plan, settings), links=Links(settings.signing_key(), settings.base_url),
        attachments=plan.attachments,
    )  # fmt: skip
    # a signature changes nothing that is judged
    composer = Composer(template, replace(Envelope.of(plan, settings), signer=None))
    now = settings.now()
    samples: list[Sample] = []
    error = ""
    for row in audience.sample(_CONTACTS).to_dicts():
        contact = {name: value for name, value in row.items() if name not in NOT_PROFILE}
        # no message of this id was or will be sent: its links lead to nobody's preferences
        ident = message_id(plan.kind, plan.name, contact["contact_id"], "preflight")
        for locale in _locales(template.source.translations, contact.get("locale")):
            try:
                context = composer.context({**contact, "locale": locale}, row["recommendations"], ident, now)
                if plan.channel in TEXT_CHANNELS:
                    rendered = template.render(context)
                    said = Sample(b"", subject=rendered.subject, text=rendered.text.strip())
                else:
                    said = Sample(composer.compose(context, ident, now.replace(microsecond=0)))
            except RenderError as problem:
                error = str(problem)
            else:
                samples.append(replace(said, locale=template.in_locale(locale).source.locale))
    return samples, error


def _locales(translations: tuple[TemplateSource, ...], own: object) -> list[object]:
    """The contact's own locale, and one for each translation, so that none goes unseen."""
    return [own, *(one.locale for one in translations if one.locale != own)]
