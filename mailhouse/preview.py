"""`mailhouse preview`: a message as one contact would get it, as files."""

from __future__ import annotations

from pathlib import Path

from campaigns.specs import load_campaigns
from mailhouse.console import console
from mailhouse.engine import open_warehouse
from orchestration.lib.previews import render_preview
from senders.settings import SenderSettings


def run(name: str, contact_id: int, output: Path | None) -> None:
    """Render a campaign, or a template alone, for a contact and write `<name>-<contact>.html` and `.txt`.

    Raises:
        MailhouseError: no such template or contact, or a merge tag that this contact has no value for.
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
    console.print(f"Subject: {rendered.subject}", markup=False)
