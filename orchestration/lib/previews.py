"""One message as one contact would get it, with nothing claimed and nothing sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from campaigns.identity import message_id
from campaigns.specs import CampaignSpec
from senders.composing import Composer, Envelope, constants_of
from senders.event_context import EVENT_COLUMN, event_text
from senders.links import Links
from senders.message import Address
from senders.plan import SendPlan
from senders.rendering import Rendered, RenderError, TemplateLibrary
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import InputError

_PRODUCTS = 20


def render_preview(
    settings: SenderSettings,
    warehouse: Warehouse,
    contact_id: int,
    *,
    template: str,
    spec: CampaignSpec | None = None,
    event: Mapping[str, Any] | None = None,
) -> Rendered:
    """Render a campaign's message, or a template alone, for a contact.

    Args:
        event: what fires a template that a trigger sends: `properties`, `type`, `source`, `occurred_at`.

    Raises:
        InputError: no such contact, or the message cannot be rendered for them; names the merge tag.
        TemplateError: no such template, or something is wrong with it.
    """
    # a preview says what is not set yet, a send refuses
    settings = settings.model_copy(
        update={
            "postal_address": settings.postal_address or "(postal address not set)",
            "company_name": settings.company_name or "(company name not set)",
        }
    )
    profile = warehouse.frame(
        "select * from marts.contact_profiles where contact_id = {contact_id:Int64}",
        {"contact_id": contact_id},
    )
    if not profile.height:
        raise InputError(
            f"There is no contact {contact_id}.",
            fix="Take a contact_id from marts.contacts, such as one that `mailhouse why` names.",
        )
    products = warehouse.frame(
        """
        select product_id, product_name as name, price, image_url, url, reason
        from marts.recommendations where contact_id = {contact_id:Int64} order by rank limit {limit:UInt32}
        """,
        {"contact_id": contact_id, "limit": (spec.send.recommendations if spec else 0) or _PRODUCTS},
    )
    library = TemplateLibrary.load(
        settings.content_dir / "templates", profile.columns, assets_url=settings.assets_url
    )
    if spec is not None:
        plan = SendPlan.from_campaign(spec, settings.now().replace(microsecond=0))
    else:
        plan = SendPlan(
            name="preview", occurrence="", template=template, subject=f"Preview of {template}", place=template
        )
    compiled = library.template(
        plan.template,
        subject=plan.subject,
        preheader=plan.preheader,
        place=plan.place,
        has_event=spec is None,
    )
    # what a message's tags may name is the composer's to say; nothing is signed or written
    envelope = Envelope(
        sender=Address("preview@localhost"),
        constants=constants_of(plan, settings),
        links=Links(b"preview", settings.base_url),
    )
    given = dict(event or {})
    given["properties"] = json.dumps(given.get("properties") or {})
    context = Composer(compiled, envelope).context(
        {**profile.row(0, named=True), EVENT_COLUMN: event_text(given)},
        _plain(products),
        message_id(plan.kind, plan.name, contact_id, "preview"),
        settings.now(),
    )
    context |= dict.fromkeys(
        ("unsubscribe_url", "preferences_url", "confirm_url"), f"{settings.base_url}/preview"
    )
    try:
        return compiled.render(context)
    except RenderError as error:
        raise InputError(
            f"The message cannot be rendered for contact {contact_id}: {error}.",
            fix="Give the merge tag a default, such as {{ contact.first_name | default('there') }}."
            + (" Or give the event, with --event." if compiled.source.event_place and event is None else ""),
        ) from None


def _plain(frame: pl.DataFrame) -> list[dict[str, object]]:
    return frame.with_columns(pl.col(pl.String).fill_null("")).to_dicts()
