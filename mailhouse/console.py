"""What the command prints: one console, one way to show progress, one way to show an error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from warehouse.errors import MailhouseError

console = Console(highlight=False)
error_console = Console(stderr=True, highlight=False)


def show_error(error: MailhouseError) -> None:
    """One message and one fix, on standard error."""
    error_console.print("[bold red]Error[/]", escape(error.message), soft_wrap=True)
    if error.fix:
        error_console.print("[bold]  Fix[/]", escape(error.fix), soft_wrap=True)


@contextmanager
def step(title: str) -> Iterator[None]:
    """Show a spinner while the block runs, then how long it took."""
    start = time.perf_counter()
    if console.is_terminal:
        with console.status(title):
            yield
    else:
        yield
    console.print(f"[green]done[/] {title} [dim]{time.perf_counter() - start:.1f} s[/]")


def progress_bar(*, transient: bool = False) -> Progress:
    """A bar with count, elapsed and remaining time."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=transient,
    )
