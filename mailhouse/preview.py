"""`mailhouse preview`: a message as one contact would get it, as files."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from campaigns.specs import CampaignSpec, load_campaigns
from deliverability.litmus import LitmusScreenshots
from deliverability.screenshots import ChromiumScreenshots, Screenshots
from deliverability.size import TEXT_CHANNELS, segments_of
from mailhouse.console import console
from mailhouse.engine import open_warehouse
from orchestration.lib.previews import render_preview
from senders.settings import SenderSettings
from warehouse.errors import InputError, SettingsError
from warehouse.loads import EVENT_COLUMNS


def run(
    name: str,
    contact_id: int,
    output: Path | None,
    *,
    screenshots: Screenshots | bool = False,
    litmus: bool = False,
    event: str = "",
) -> None:
    """Render a campaign, or a template alone, for a contact and write `<name>-<contact>.html` and `.txt` (of a text or
    push message, `.txt` alone).

    Args:
        screenshots: whether to take pictures too, `<name>-<contact>-<view>.png`, or what takes them; by itself
            Chromium, which loads images if MAILHOUSE_PREFLIGHT_NETWORK is on.
        event: JSON of the event that fires a template which a trigger sends, as for `mailhouse trigger test`.
        litmus: whether the mail programs at Litmus take some too, `<name>-<contact>-<program>.png`.

    Raises:
        MailhouseError: no such template or contact, a merge tag that this contact has no value for, or no browser.
    """
    settings = SenderSettings.load()
    takers: list[Screenshots] = []
    if screenshots:
        is_own = screenshots is True
        takers.append(ChromiumScreenshots(loads_images=settings.preflight_network) if is_own else screenshots)
    if litmus:
        takers.append(_litmus(settings))
    spec = load_campaigns(settings.content_dir).get(name)
    given = _event(event, spec) if event else None
    with open_warehouse(settings, "mailhouse preview") as warehouse:
        rendered = render_preview(settings, warehouse, contact_id, spec=spec, template=name, event=given)
    folder = output or settings.home / "output" / "previews"
    folder.mkdir(parents=True, exist_ok=True)
    # of a text or push message the text is all that goes out
    is_text = spec is not None and spec.send.channel in TEXT_CHANNELS
    parts = ((".txt", rendered.text),) if is_text else ((".html", rendered.html), (".txt", rendered.text))
    for suffix, content in parts:
        path = folder / f"{name}-{contact_id}{suffix}"
        path.write_text(content)
        console.print(str(path), soft_wrap=True)
    for taker in [] if is_text else takers:
        for view, picture in taker.take(rendered.html).items():
            path = folder / f"{name}-{contact_id}-{view}.png"
            path.write_bytes(picture)
            console.print(str(path), soft_wrap=True)
    if spec is not None and spec.send.channel == "sms":
        text = rendered.text.strip()
        console.print(f"Text message: {len(text)} characters, sent and paid as {segments_of(text)}.")
        return
    console.print(f"Subject: {rendered.subject}", markup=False)


def _event(text: str, spec: CampaignSpec | None) -> dict[str, Any]:
    if spec is not None:
        raise InputError(
            f"{spec.name} is a campaign, and no event fires it.",
            fix="Leave --event away, or name the template that a trigger sends.",
        )
    try:
        given = json.loads(text)
        if not isinstance(given, dict) or not isinstance(given.get("properties", {}), dict):
            raise ValueError("it is no object, or its properties are none")
        strange = sorted(given.keys() - EVENT_COLUMNS.keys())
        if strange:
            raise ValueError(f"it has {strange[0]!r}. Properties go into properties")
        if given.get("occurred_at"):
            datetime.fromisoformat(given["occurred_at"])
    except (ValueError, TypeError) as error:
        raise InputError(
            f"The event is no JSON of an event: {error}.",
            fix="""Write it like '{"type": "cart.updated", "properties": {"cart_value": 60}}'.""",
        ) from None
    return given


def _litmus(settings: SenderSettings) -> LitmusScreenshots:
    if settings.litmus_key is None:
        raise SettingsError(
            "MAILHOUSE_LITMUS_KEY is not set.", fix="Set it to the key of your account's Instant API."
        )
    clients = tuple(name for name in settings.litmus_clients.replace(",", " ").split() if name)
    return LitmusScreenshots(settings.litmus_key.get_secret_value(), clients)
