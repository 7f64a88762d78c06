"""`mailhouse contacts`: who is who by hand (`mailhouse.identities`), files of people (`mailhouse.contact_import`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mailhouse.console import console
from mailhouse.contact_import import import_contacts
from warehouse.actor import own_name

if TYPE_CHECKING:
    from mailhouse.identities import Identities

app = typer.Typer(
    help="Bring contacts in from files; say who is who: merge, split, undo, and see why.",
    no_args_is_help=True,
)
app.command("import")(import_contacts)

Contact = Annotated[str, typer.Argument(help="A contact_id, an email address, or source:external_id.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the decision.")]
Actor = Annotated[str, typer.Option("--actor", help="Who decides; left out, you.")]
_NEXT = "It holds with the next build of the marts, and for triggers within half a minute."


@app.command("merge")
def merge(
    one: Contact,
    other: Contact,
    reason: Reason,
    keep: Annotated[str, typer.Option("--keep", help="Who stays; left out, whom we knew first.")] = "",
    actor: Actor = "",
) -> None:
    """Make one contact of two."""
    with _identities() as identities:
        made = identities.merge(one, other, reason=reason, actor=actor or own_name(), keep=keep)
    console.print(f"{made.contact_id} goes into {made.into_contact_id}: change {made.change_id}. {_NEXT}")


@app.command("split")
def split(
    contact: Contact,
    identity: Annotated[
        str, typer.Option("--identity", help="What is taken out: source:external_id, or an email address.")
    ],
    reason: Reason,
    actor: Actor = "",
) -> None:
    """Take a CRM record, an account or an address out of a contact."""
    with _identities() as identities:
        made = identities.split(contact, identity, reason=reason, actor=actor or own_name())
    console.print(f"{identity} becomes contact {made.into_contact_id}: change {made.change_id}. {_NEXT}")


@app.command("undo")
def undo(
    change_id: Annotated[str, typer.Argument(help="A merge or split that `history` lists.")],
    reason: Reason,
    actor: Actor = "",
) -> None:
    """Take a merge or a split back; everything is as before."""
    with _identities() as identities:
        made = identities.undo(change_id, reason=reason, actor=actor or own_name())
    console.print(f"{change_id} is undone: change {made.change_id}. {_NEXT}")


@app.command("history")
def history(contact: Contact) -> None:
    """Show why somebody is one contact: what leads to them, their addresses over time, merges and splits."""
    from rich.markup import escape
    from rich.table import Table

    from mailhouse.identities import described

    with _identities() as identities:
        story = identities.history(contact)
    console.print(f"[bold]Contact {story.contact_id}[/]")
    table = Table(
        "kind", "what", "rule", "first seen", "by change", title="What leads to them", title_justify="left"
    )
    for one in story.identities.iter_rows(named=True):
        name = one["identifier"] if one["kind"] == "email" else f"{one['source']}:{one['identifier']}"
        change = ", ".join(filter(None, (one["split_change_id"], one["merge_change_id"])))
        table.add_row(
            one["kind"], escape(name), one["rule"], f"{one['first_seen_at']:%Y-%m-%d %H:%M}", escape(change)
        )
    console.print(table)
    table = Table("email", "from", "to", "source", "", title="Addresses", title_justify="left")
    for one in story.emails.iter_rows(named=True):
        until = f"{one['valid_to']:%Y-%m-%d %H:%M}" if one["valid_to"] else ""
        table.add_row(
            escape(one["email"]), f"{one['valid_from']:%Y-%m-%d %H:%M}", until, one["source"],
            "current" if one["is_current"] else "",
        )  # fmt: skip
    console.print(table)
    console.print("[bold]Merges and splits[/]" if story.changes.height else "No merges, no splits.")
    for one in story.changes.iter_rows(named=True):
        console.print(described(one), markup=False, soft_wrap=True)


@contextlib.contextmanager
def _identities() -> Iterator[Identities]:
    from mailhouse.engine import open_warehouse
    from mailhouse.identities import Identities
    from warehouse.settings import MailhouseSettings

    settings = MailhouseSettings.load()
    with open_warehouse(settings, "mailhouse contacts") as warehouse:
        yield Identities(warehouse, clock=settings.now)
