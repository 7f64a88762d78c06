"""One message as one contact would get it, with nothing claimed and nothing sent."""

from __future__ import annotations

import polars as pl

from campaigns.specs import CampaignSpec
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
) -> Rendered:
    """Render a campaign's message, or a template alone, for a contact.

    Raises:
        InputError: no such contact, or the message cannot be rendered for them; names the merge tag.
        TemplateError: no such template, or something is wrong with it.
    """
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
    library = TemplateLibrary.load(settings.content_dir / "templates", profile.columns)
    compiled = library.template(
        spec.send.template if spec else template,
        subject=spec.send.subject if spec else f"Preview of {template}",
        preheader=(spec.send.preheader or "") if spec else "",
        place=spec.place("send", "subject") if spec else template,
    )
    try:
        return compiled.render(
            {
                "contact": profile.row(0, named=True),
                "recommendations": _plain(products),
                "campaign": {"name": spec.campaign if spec else "preview"},
                "unsubscribe_url": f"{settings.base_url}/preview",
                "preferences_url": f"{settings.base_url}/preview",
                "postal_address": settings.postal_address or "(postal address not set)",
                "company_name": settings.company_name or "(company name not set)",
                "now": settings.now(),
            }
        )
    except RenderError as error:
        raise InputError(
            f"The message cannot be rendered for contact {contact_id}: {error}.",
            fix="Give the merge tag a default, such as {{ contact.first_name | default('there') }}.",
        ) from None


def _plain(frame: pl.DataFrame) -> list[dict[str, object]]:
    return frame.with_columns(pl.col(pl.String).fill_null("")).to_dicts()
