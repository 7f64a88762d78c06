"""`mailhouse send`: the checks as a table, the send as a bar, the outcome as a sentence."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from campaigns.audience import Shard
from mailhouse.console import console, progress_bar
from mailhouse.engine import open_warehouse
from orchestration.lib.campaign_runs import Prepared, deliver, export_ledger, prepare
from senders.pipeline import SendSummary
from senders.settings import SenderSettings


def run(campaign: str, *, dry_run: bool, shard: str = "") -> None:
    """Judge a campaign's audience and, unless it is a dry run, send to it.

    Raises:
        MailhouseError: a file is wrong, a check failed, or a service does not answer.
    """
    settings = SenderSettings.load()
    part = Shard.parse(shard) if shard else None
    with open_warehouse(settings, f"mailhouse send {campaign}") as warehouse:
        prepared = prepare(settings, warehouse, campaign, is_dry_run=dry_run)
        show_checks(prepared)
        prepared.require_passed()
        if dry_run:
            console.print(
                f"Dry run: {prepared.summary.sendable:,} contacts would get it. Nothing was changed."
            )
            return
        with progress_bar() as bar:
            task = bar.add_task(campaign, total=prepared.summary.members // (part.count if part else 1))
            summary = deliver(
                prepared, on_progress=lambda so_far: bar.update(task, completed=so_far.seen), shard=part
            )
        export_ledger(settings, warehouse)
    show_summary(summary)


def show_checks(prepared: Prepared) -> None:
    """The checks of a campaign as a table."""
    table = Table(
        title=f"{prepared.spec.campaign}, {prepared.occurrence_key}", title_justify="left", box=None
    )
    table.add_column("check")
    table.add_column("")
    table.add_column("finding")
    for check in prepared.checks:
        verdict = "[red]failed[/]" if check.is_blocking else "[yellow]warning[/]"
        table.add_row(check.name, "[green]passed[/]" if check.is_passed else verdict, escape(check.message))
    console.print(table)


def show_summary(summary: SendSummary) -> None:
    """What became of the audience, in a few lines."""
    rate = summary.sent / summary.seconds if summary.seconds else 0.0
    console.print(f"{summary.sent:,} sent in {summary.seconds:.1f} s ({rate:,.0f} a second).")
    if summary.already_claimed:
        console.print(f"{summary.already_claimed:,} had been decided before and were left alone.")
    for reason, number in sorted(summary.skipped.items()):
        console.print(f"{number:,} skipped: {reason.replace('_', ' ')}.")
    if summary.waiting:
        console.print(f"{summary.waiting:,} wait for the end of quiet hours where they live.")
    for name in ("failed", "rejected", "invalid", "unknown"):
        if number := getattr(summary, name):
            console.print(f"{number:,} {name}.")
    if summary.is_paused:
        console.print("Paused: everything under way is recorded. `mailhouse resume` lets it go on from here.")
    elif summary.is_interrupted:
        console.print("Interrupted: everything under way is recorded. The same command goes on from here.")
