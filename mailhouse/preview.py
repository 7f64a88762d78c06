"""`mailhouse preview`: a message as one contact would get it, as files."""

from __future__ import annotations

from pathlib import Path

from campaigns.specs import load_campaigns
from deliverability.screenshots import ChromiumScreenshots, Screenshots
from mailhouse.console import console
from mailhouse.engine import open_warehouse
from orchestration.lib.previews import render_preview
from senders.settings import SenderSettings


def run(name: str, contact_id: int, output: Path | None, *, screenshots: Screenshots | bool = False) -> None:
    """Render a campaign, or a template alone, for a contact and write `<name>-<contact>.html` and `.txt`.

    Args:
        screenshots: whether to take pictures too, `<name>-<contact>-<view>.png`, or what takes them; by itself
            Chromium, which loads images if MAILHOUSE_PREFLIGHT_NETWORK is on.

    Raises:
        MailhouseError: no such template or contact, a merge tag that this contact has no value for, or no browser.
    """
    settings = SenderSettings.load()
    spec = load_campaigns(settings.content_dir).get(name)
    with open_warehouse(settings, "mailhouse preview") as warehouse:
        rendered = render_preview(settings, warehouse, contact_id, spec=spec, template=name)
    folder = output or settings.home / "output" / "previews"
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".html", rendered.html), (".txt", rendered.text)):
        path = folder / f"{name}-{contact_id}{suffix}"
        path.write_text(content)
        console.print(str(path), soft_wrap=True)
    if screenshots is True:
        screenshots = ChromiumScreenshots(loads_images=settings.preflight_network)
    if screenshots:
        for view, picture in screenshots.take(rendered.html).items():
            path = folder / f"{name}-{contact_id}-{view}.png"
            path.write_bytes(picture)
            console.print(str(path), soft_wrap=True)
    console.print(f"Subject: {rendered.subject}", markup=False)
