"""`mailhouse retention`: delete what has been kept long enough, or say what would be."""

from __future__ import annotations

from mailhouse.console import console
from warehouse.client import Warehouse
from warehouse.retention import RetentionSpec, apply, due, summary
from warehouse.settings import MailhouseSettings


def run(*, is_dry_run: bool) -> None:
    """Apply content/retention.yaml; a dry run changes nothing."""
    settings = MailhouseSettings.load()
    spec = RetentionSpec.load(settings.content_dir)
    with Warehouse.connect(settings, comment="mailhouse retention") as warehouse:
        now = settings.now()
        found = due(warehouse, spec, now) if is_dry_run else apply(warehouse, spec, now, run_id="mailhouse")
    for line in summary(found):
        console.print(f"Would be: {line}" if is_dry_run else line, markup=False, soft_wrap=True)
    if not found:
        console.print("Nothing has been kept too long.")
