"""The `mailhouse` command.

Each verb is a thin call into a room; what it needs is imported when it runs, so that `--help` answers at once. An error
that a person can mend ends it with one message, its fix and exit code 2.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mailhouse import consents, gateway, gdpr
from mailhouse.console import console, show_error
from mailhouse.contacts import app as contacts
from mailhouse.crm import app as crm
from mailhouse.experiments import app as experiment
from mailhouse.journeys import app as journey
from mailhouse.triggers import trigger as trigger_commands
from warehouse.errors import MailhouseError
from warehouse.settings import MailhouseSettings, check_environment

app = typer.Typer(
    help="Email marketing that lives in the warehouse.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

segment = typer.Typer(help="Begin a segment, see whom it would hold, list all.", no_args_is_help=True)
app.add_typer(segment, name="segment")
app.add_typer(journey, name="journey")
app.add_typer(experiment, name="experiment")
app.add_typer(contacts, name="contacts")
app.add_typer(crm, name="crm")


assets = typer.Typer(help="Pictures that templates show.", no_args_is_help=True)
app.add_typer(assets, name="assets")
app.add_typer(gateway.app, name="gateway")
app.add_typer(consents.app, name="consent")
app.add_typer(gdpr.app, name="gdpr")
app.add_typer(trigger_commands, name="trigger")


@app.callback()
def setup(
    demo: Annotated[bool, typer.Option("--demo", help="Work on what `mailhouse demo` made.")] = False,
) -> None:
    """Email marketing that lives in the warehouse."""
    if demo:
        from demo.run import enter

        os.environ.update(enter())
    check_environment(_settings_classes())


@app.command()
def demo() -> None:
    """Run the whole loop on real customers of a gift shop, and write a report."""
    from demo.run import run

    run()


@app.command()
def up() -> None:
    """Start the warehouse, the gateway and Dagster with its UI, and watch over them until Ctrl-C."""
    from mailhouse.up import run

    run()


@app.command()
def send(
    campaign: Annotated[str, typer.Option("--campaign", "-c", help="Name of a file in content/campaigns.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge and count, change nothing.")] = False,
    shard: Annotated[
        str, typer.Option("--shard", help="Only this part, like 2/4; other processes send the others.")
    ] = "",
) -> None:
    """Send a campaign's newest occurrence; what has been sent already is not sent again."""
    from mailhouse.sending import run

    run(campaign, dry_run=dry_run, shard=shard)


@app.command()
def preview(
    template: Annotated[str, typer.Argument(help="A campaign, or a template in content/templates.")],
    contact: Annotated[int, typer.Option("--contact", help="The contact_id to fill it in for.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write to.")] = None,
    screenshots: Annotated[
        bool, typer.Option("--screenshots", help="Take pictures too: phone and desktop, light and dark.")
    ] = False,
    litmus: Annotated[
        bool,
        typer.Option("--litmus", help="Take pictures by the mail programs at Litmus (needs an account)."),
    ] = False,
    event: Annotated[
        str, typer.Option("--event", help="The event, as JSON, that fires a template which a trigger sends.")
    ] = "",
) -> None:
    """Write a message as one contact would get it: HTML and text."""
    from mailhouse.preview import run

    run(template, contact, output, screenshots=screenshots, litmus=litmus, event=event)


@app.command()
def why(
    message_id: Annotated[str, typer.Argument(help="The id of a message, sent or not.")] = "",
    contact: Annotated[int, typer.Option("--contact", help="A contact_id, with --trigger.")] = 0,
    trigger: Annotated[
        str, typer.Option("--trigger", help="A trigger: what it decided about the contact.")
    ] = "",
    event: Annotated[str, typer.Option("--event", help="About this event alone.")] = "",
) -> None:
    """Say why a contact got a message, or why not, from what is stored."""
    from mailhouse.trigger_work import explain

    for line in explain(message_id, contact, trigger, event):
        console.print(line, markup=False, soft_wrap=True)


@app.command()
def replay(
    trigger: Annotated[str, typer.Option("--trigger", help="Name of a file in content/triggers.")],
    since: Annotated[str, typer.Option("--since", help="From then on: 2026-06-01, or 7d for a week ago.")],
    until: Annotated[str, typer.Option("--until", help="Up to then; left out, now.")] = "",
    send: Annotated[bool, typer.Option("--send", help="Do what would have fired, once each.")] = False,
) -> None:
    """Show what a trigger would decide about past events, with the state as of each of them."""
    from mailhouse.trigger_work import run_replay

    run_replay(trigger, since, until, send=send)


@app.command()
def pause(campaign: Annotated[str, typer.Argument(help="The campaign's name.")]) -> None:
    """Hold a campaign back: a send under way stops within seconds, and none begins."""
    from orchestration.lib.campaign_runs import campaign_named
    from senders.ledger import Ledger
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    campaign_named(settings, campaign)
    with Ledger.open(settings) as ledger:
        is_new = ledger.pause("campaign", campaign, settings.now())
    console.print(
        f"{campaign} {'is paused' if is_new else 'was paused already'}. `mailhouse resume {campaign}` lets it go on."
    )


@app.command()
def resume(campaign: Annotated[str, typer.Argument(help="The campaign's name.")]) -> None:
    """Let a paused campaign go on where it stopped; the sensor launches it if it is still due."""
    from senders.ledger import Ledger
    from senders.settings import SenderSettings

    with Ledger.open(SenderSettings.load()) as ledger:
        was_paused = ledger.resume("campaign", campaign)
    console.print(f"{campaign} {'goes on' if was_paused else 'was not paused'}.")


@app.command()
def deadletters(
    campaign: Annotated[str, typer.Option("--campaign", "-c", help="Only those of this campaign.")] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most so many.")] = 100,
    retry: Annotated[bool, typer.Option("--retry", help="Let the next run try them once more.")] = False,
) -> None:
    """List messages that failed for good or too often, newest first, and why."""
    from senders.ledger import Ledger
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    with Ledger.open(settings) as ledger:
        letters = ledger.dead_letters(limit, name=campaign)
        revived = ledger.revive([letter["message_id"] for letter in letters], settings.now()) if retry else 0
    for letter in letters:
        reason = f" ({letter['reason']})" if letter["reason"] else ""
        tries = f", put off {letter['tries']} times" if letter["tries"] else ""
        words = f": {letter['provider_reply']}" if letter["provider_reply"] else ""
        console.print(
            f"{letter['changed_at']:%Y-%m-%d %H:%M}  {letter['message_id']}  {letter['email']}  {letter['name']}  "
            f"{letter['status']}{reason}{tries}{words}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if not letters:
        console.print("There are no dead letters.")
    elif retry:
        console.print(f"{revived:,} will be tried once more by the next run of their campaign.")
    elif len(letters) == limit:
        console.print(f"These are the newest {limit:,}; --limit shows more.")


@app.command()
def cancel(
    batch: Annotated[
        str, typer.Argument(help="The batch that `mailhouse why` shows in the provider's reply.")
    ],
    provider: Annotated[str, typer.Option("--provider", "-p", help="Who holds it; else the settings'.")] = "",
) -> None:
    """Stop messages that a provider still holds back (`send.hold` of a campaign)."""
    from senders.providers import get_provider
    from senders.settings import SenderSettings

    with get_provider(SenderSettings.load(), provider) as holder:
        holder.cancel(batch)
        console.print(f"{holder.name} has cancelled batch {batch}.", markup=False, soft_wrap=True)


@app.command()
def retention(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is over, delete nothing.")] = False,
) -> None:
    """Delete raw rows that content/retention.yaml keeps no longer."""
    from mailhouse.retention import run

    run(is_dry_run=dry_run)


@app.command()
def doctor() -> None:
    """Check every service and file, and say how to mend what is wrong."""
    from mailhouse.doctor import run

    raise typer.Exit(run())


@assets.command("publish")
def assets_publish(
    store: Annotated[
        str, typer.Option("--store", help="A folder, s3://bucket/path or gs://bucket/path; else the setting.")
    ] = "",
) -> None:
    """Put content/assets where templates' `asset:` addresses lead; files that are there already stay."""
    from senders.assets import Assets, PublishError, publish
    from senders.settings import SenderSettings

    settings = SenderSettings.load()
    target = store or settings.assets_store
    if not target:
        raise PublishError(
            "There is no place to publish assets to.", fix="Set MAILHOUSE_ASSETS_STORE, or give --store."
        )
    new, kept = publish(Assets(settings.content_dir / "assets", settings.assets_url), target)
    for name in new:
        console.print(name, markup=False, soft_wrap=True)
    console.print(f"{len(new)} published, {kept} there already.", markup=False)


@segment.command("new")
def segment_new(
    name: Annotated[str, typer.Argument(help="Its name, such as french_champions.")],
    kind: Annotated[
        str, typer.Option("--kind", "-k", help="rule, behavioural, rfm, predictive, static or nested.")
    ] = "rule",
    description: Annotated[
        str | None, typer.Option("--description", "-d", help="Who is in it, in a marketer's words.")
    ] = None,
) -> None:
    """Write the SQL and YAML of a new segment, to be edited."""
    from mailhouse.segments import run_new

    run_new(name, kind, description)


@segment.command("preview")
def segment_preview(
    name: Annotated[str, typer.Argument(help="A file in dbt_project/models/segments, built or not.")],
    show_emails: Annotated[bool, typer.Option("--show-emails", help="Show whole addresses.")] = False,
    sample: Annotated[int, typer.Option("--sample", min=0, max=1_000, help="Members to show.")] = 10,
) -> None:
    """Show whom a segment would hold now and what it would cost; builds nothing."""
    from mailhouse.segments import run_preview

    run_preview(name, show_emails=show_emails, sample=sample)


@segment.command("list")
def segment_list() -> None:
    """Show all segments: kind, size, who came and went, when they were last built."""
    from mailhouse.segments import run_list

    run_list()


def _settings_classes() -> list[type[MailhouseSettings]]:
    from crm.settings import CrmSettings
    from gateway.settings import GatewaySettings
    from mailhouse.settings import CommandSettings
    from orchestration.settings import OrchestrationSettings

    return [CommandSettings, CrmSettings, GatewaySettings, OrchestrationSettings]


def main() -> None:
    """Entry point of the `mailhouse` command."""
    # libraries' own complaints would stand beside our one message
    for name in ("clickhouse_connect", "dagster", "dagster.builtin"):
        logging.getLogger(name).addHandler(logging.NullHandler())
    try:
        app()
    except MailhouseError as error:
        show_error(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
