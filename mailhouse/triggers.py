"""`mailhouse trigger`: the commands; what they do is in `mailhouse.trigger_work`, imported when it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

trigger = typer.Typer(help="Check, try, pause and list triggers.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The trigger's name.")]
File = Annotated[Path, typer.Argument(help="A file in content/triggers.")]


@trigger.command("check")
def check(file: File) -> None:
    """Check a trigger: its keys, what it names, and its conditions against the marts if they are built."""
    from mailhouse.trigger_work import run_check

    run_check(file)


@trigger.command("test")
def test(
    file: File,
    event: Annotated[
        str, typer.Option("--event", "-e", help="The event as JSON: type, email, properties ...")
    ] = "{}",
    contact: Annotated[
        int, typer.Option("--contact", help="The contact_id, instead of hints in the event.")
    ] = 0,
) -> None:
    """Show how a trigger would decide about an event now; nothing is stored, nothing is done."""
    from mailhouse.trigger_work import run_test

    run_test(file, event, contact)


@trigger.command("list")
def list_triggers() -> None:
    """Show all triggers, and what became of events in the last day."""
    from mailhouse.trigger_work import run_list

    run_list()


@trigger.command("pause")
def pause(name: Name) -> None:
    """Hold a trigger back: what it decides to do waits."""
    from mailhouse.trigger_work import run_pause

    run_pause(name)


@trigger.command("resume")
def resume(name: Name) -> None:
    """Let a paused trigger go on: what has waited is done."""
    from mailhouse.trigger_work import run_resume

    run_resume(name)
