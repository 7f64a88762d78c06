"""`mailhouse gdpr`: the rights of the people in the database, a verb each (docs/privacy.md)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mailhouse.console import console
from warehouse.actor import own_name
from warehouse.errors import InputError

if TYPE_CHECKING:
    from crm.base import Connector
    from privacy.erasing import Place, Plan
    from privacy.person import Person
    from privacy.stores import Relation
    from warehouse.settings import MailhouseSettings

app = typer.Typer(
    help="Show, correct, restrict and erase what is held of a person, and prove it.", no_args_is_help=True
)

Contact = Annotated[int, typer.Option("--contact", help="The contact_id.")]
Email = Annotated[str, typer.Option("--email", help="Any address the person ever had.")]
Phone = Annotated[str, typer.Option("--phone", help="A telephone number.")]
Record = Annotated[str, typer.Option("--record", help="A record of a source, like hubspot:151.")]
Actor = Annotated[str, typer.Option("--actor", help="Who acts, for the audit log; else the system's user.")]
Reason = Annotated[str, typer.Option("--reason", help="Why, or the ticket, for the audit log; name nobody.")]

#: Contact, address, telephone number and record; what was not given is 0 or empty.
Names = tuple[int, str, str, str]


@contextlib.contextmanager
def _place(verb: str) -> Iterator[Place]:
    from gateway.settings import GatewaySettings
    from mailhouse.engine import open_warehouse
    from privacy.erasing import Place
    from privacy.files import Finder, source_columns
    from senders.ledger import Ledger

    settings = GatewaySettings.load()
    with open_warehouse(settings, f"mailhouse gdpr {verb}") as warehouse, Ledger.open(settings) as ledger:
        finder = Finder(settings.home, lambda: source_columns(settings.content_dir, settings.home))
        yield Place(settings, warehouse, ledger, relations=_relations(settings), finder=finder)


def _relations(settings: MailhouseSettings) -> list[Relation]:
    from orchestration.lib.dbt_runs import load_manifest
    from privacy.stores import Relation

    return [
        Relation(f"{node.schema}.{node.alias}", node.description)
        for node in load_manifest(settings).nodes.values()
        if node.resource_type in ("model", "seed", "snapshot")
    ]


def _find(place: Place, names: Names, *texts: str) -> Person:
    """The person of the options, whom texts for the audit log do not name."""
    from privacy.person import find_person

    contact, email, phone, record = names
    person = find_person(
        place.warehouse, place.ledger, contact_id=contact, email=email, phone=phone, record=record
    )
    _name_nobody(person, *texts)
    return person


@contextlib.contextmanager
def _act(verb: str, names: Names, actor: str, reason: str) -> Iterator[tuple[Place, Person, dict[str, int]]]:
    """What a verb works on; the counts that it fills in are in the audit log once it is done."""
    from privacy import audit

    counts: dict[str, int] = {}
    with _place(verb) as place:
        person = _find(place, names, reason, actor)
        yield place, person, counts
        audit.record(
            place.warehouse, place.settings, verb=verb, subject=audit.subject_of(place.settings, person),
            outcome="done", actor=actor, reason=reason, counts=counts,
        )  # fmt: skip


@app.command()
def export(
    contact: Contact = 0,
    email: Email = "",
    phone: Phone = "",
    record: Record = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write to.")] = None,
    actor: Actor = "",
    reason: Reason = "",
) -> None:
    """Write everything that is held of a person: JSON for machines, a page for people."""
    from privacy import exporting

    with _act("export", (contact, email, phone, record), actor, reason) as (place, person, counts):
        done = exporting.export(place, person, output or Path.cwd(), place.settings.now())
        counts |= done.counts
    console.print(f"{sum(done.counts.values()):,} rows of {len(done.counts)} stores:", markup=False)
    for path in (done.html, done.json):
        console.print(str(path), markup=False, soft_wrap=True)


@app.command()
def erase(
    contact: Contact = 0,
    email: Email = "",
    phone: Phone = "",
    record: Record = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go, change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with erasures that were broken off.")
    ] = False,
    in_crms: Annotated[
        bool | None,
        typer.Option(
            "--in-crms/--no-in-crms",
            help="Delete their records in CRMs and databases, too. An erasure that goes on does as it was begun.",
            show_default=False,
        ),
    ] = None,
    actor: Actor = "",
    reason: Reason = "",
) -> None:
    """Erase a person from every store, keep them from coming back, and search for what is left."""
    from crm.erasing import reach
    from privacy import audit
    from privacy.erasing import Plan, planned, unfinished

    with _place("erase") as place, contextlib.ExitStack() as stack:
        begun = unfinished(place.settings.home)
        for plan in begun:
            plan.in_crms = plan.in_crms if in_crms is None else in_crms
        connectors: Sequence[Connector] = ()
        if in_crms or any(plan.in_crms for plan in begun):
            connectors = stack.enter_context(_crms(place))
        if begun and not dry_run:
            console.print(f"{len(begun)} erasures were broken off; they go on first.", markup=False)
            for plan in begun:
                _carry_out(place, plan)
        if resume:
            if not begun:
                console.print("No erasure was broken off.")
            return
        person = _find(place, (contact, email, phone, record), reason, actor)
        for name, rows in planned(place, person).items():
            console.print(f"{rows:>9,}  {name}", markup=False, highlight=False)
        for name, ids in (reach(person.records, connectors) if in_crms else {}).items():
            console.print(f"{len(ids):>9,}  crm: {name}", markup=False, highlight=False)
        if dry_run:
            console.print("Nothing was changed.")
            return
        if not yes and not typer.confirm("Erase all of this? It cannot be undone"):
            raise typer.Exit(1)
        subject = audit.subject_of(place.settings, person)
        audit.record(
            place.warehouse,
            place.settings,
            verb="erase",
            subject=subject,
            outcome="begun",
            actor=actor,
            reason=reason,
        )
        _carry_out(
            place, Plan.new(person, actor=actor, reason=reason, subject=subject, in_crms=bool(in_crms))
        )


@contextlib.contextmanager
def _crms(place: Place) -> Iterator[Sequence[Connector]]:
    """The CRMs in which a place erases from then on; what is wrong in their settings is told before that."""
    from crm.base import CrmError
    from crm.erasing import erase_records
    from crm.settings import CrmSettings
    from crm.syncing import connected

    settings = CrmSettings.load()
    with connected(settings) as connectors:
        if not connectors:
            raise InputError(
                "No CRM is set up that records could be deleted in.",
                fix="Set it up (docs/crm.md), or give --no-in-crms: then what is to be deleted there is listed.",
            )

        def erase_there(records: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
            try:
                return erase_records(settings, records, connectors)
            except CrmError as error:
                raise CrmError(
                    f"The person is erased here, and not yet in every CRM. {error.message}",
                    fix=f"{error.fix} Then `mailhouse gdpr erase --resume` goes on; with --no-in-crms it lists what is"
                    " to be deleted there by hand, and ends.",
                ) from None

        place.on_crm = erase_there
        yield connectors


def _carry_out(place: Place, plan: Plan) -> None:
    from privacy import audit
    from privacy.erasing import ResidueError
    from privacy.erasing import erase as carry_out

    done = carry_out(place, plan, lambda step: console.print(f"- {step}", markup=False))
    audit.record(
        place.warehouse, place.settings, verb="erase", subject=plan.subject,
        outcome="residue" if done.residue else "done", actor=plan.actor, reason=plan.reason, counts=done.counts,
    )  # fmt: skip
    for note in done.notes:
        console.print(f"To do: {note}", markup=False, soft_wrap=True)
    if done.residue:
        raise ResidueError(done.residue)
    console.print(
        f"Erased: {sum(done.counts.values()):,} rows, files and records. Nothing is left here that names the person.",
        markup=False,
    )


@app.command()
def rectify(
    given: Annotated[list[str], typer.Option("--set", help="field=value, once or more.")],
    contact: Contact = 0,
    email: Email = "",
    phone: Phone = "",
    record: Record = "",
    actor: Actor = "",
    reason: Reason = "",
) -> None:
    """Put right what is held of a person; the next build of the models has it."""
    from privacy import restricting

    changes = restricting.parsed_changes(given)
    with _act("rectify", (contact, email, phone, record), actor, reason) as (place, person, counts):
        records = restricting.rectify(place.warehouse, person, changes, place.settings.now())
        counts |= {"raw.crm_records": len(records), **{f"field {name}": 1 for name in changes}}
    console.print(f"Put right in {', '.join(records)}.", markup=False, soft_wrap=True)


@app.command()
def restrict(
    contact: Contact = 0,
    email: Email = "",
    phone: Phone = "",
    record: Record = "",
    allow_transactional: Annotated[
        bool, typer.Option("--allow-transactional", help="What they ordered may still be told to them.")
    ] = False,
    actor: Actor = "",
    reason: Reason = "",
) -> None:
    """Process nothing of a person's data: no message, no audience, no training, from now on."""
    _restrict("restrict", (contact, email, phone, record), True, allow_transactional, actor, reason)
    console.print("Restricted. `mailhouse gdpr unrestrict` lets processing go on.")


@app.command()
def unrestrict(
    contact: Contact = 0,
    email: Email = "",
    phone: Phone = "",
    record: Record = "",
    actor: Actor = "",
    reason: Reason = "",
) -> None:
    """Let the processing of a person's data go on."""
    _restrict("unrestrict", (contact, email, phone, record), False, False, actor, reason)
    console.print("The restriction is lifted.")


def _restrict(verb: str, names: Names, is_restricted: bool, allows: bool, actor: str, reason: str) -> None:
    from privacy import restricting

    with _act(verb, names, actor, reason) as (place, person, counts):
        counts["raw.restrictions"] = restricting.change(
            place.warehouse, person, is_restricted=is_restricted, allows_transactional=allows, reason=reason,
            actor=actor or own_name(), now=place.settings.now(),
        )  # fmt: skip


@app.command()
def readmit(
    reason: Annotated[str, typer.Option("--reason", help="Why: what the person did, such as a new sign-up.")],
    email: Email = "",
    record: Record = "",
    actor: Actor = "",
) -> None:
    """Let somebody who was erased be loaded again, because they came back themselves."""
    from privacy import audit
    from privacy.erasing import readmit as let_in

    if not reason.strip():
        raise InputError(
            "A readmission needs its reason.", fix="Say what the person did: --reason 'signed up anew'."
        )
    if not email and not record:
        raise InputError("Nobody was named.", fix="Give --email ADDRESS or --record SOURCE:ID.")
    if any(one and one.lower() in reason.lower() for one in (email, record)):
        raise InputError(
            "The audit log names nobody.", fix="Leave the name out of --reason; a ticket's number will do."
        )
    with _place("readmit") as place:
        count = let_in(place, email=email, record=record)
        if not count:
            raise InputError(
                "Nobody by that name was erased.", fix="Name them as they were named when they were erased."
            )
        audit.record(
            place.warehouse, place.settings, verb="readmit",
            subject=audit.subject_for(place.settings, email=email, record=record), outcome="done", actor=actor,
            reason=reason, counts={"raw.erasures": count},
        )  # fmt: skip
    console.print("They may be loaded again, from now on.")


@app.command()
def log(
    contact: Contact = 0,
    email: Email = "",
    record: Record = "",
    verify: Annotated[
        bool, typer.Option("--verify", help="See that no row was changed or taken away.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest so many.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show what was done for the rights of people: all, or for one person."""
    from privacy import audit

    with _place("log") as place:
        if verify:
            wrong = audit.problems(place.warehouse, place.settings)
            if wrong:
                raise InputError(
                    f"The audit log is not as it was written: {'; '.join(wrong)}.",
                    fix="Compare it with a backup, and find out who may write to raw.audit_log.",
                )
        subject = audit.subject_for(place.settings, contact_id=contact, email=email, record=record)
        rows = audit.entries(place.warehouse, subject=subject, limit=limit)
    for row in rows:
        if as_json:
            said = {**vars(row), "occurred_at": row.occurred_at.astimezone(UTC).isoformat()}
            console.print(json.dumps(said), markup=False, highlight=False, soft_wrap=True)
            continue
        reason = f": {row.reason}" if row.reason else ""
        console.print(
            f"{row.sequence:>5}  {row.occurred_at:%Y-%m-%d %H:%M}  {row.verb} {row.outcome}  by {row.actor}  for"
            f" {row.subject.partition(' ')[0]}  {sum(row.counts.values()):,} rows{reason}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if not rows:
        console.print("Nothing was done.")
    if verify:
        console.print(f"{len(rows):,} rows shown; the chain is whole.", markup=False)


def _name_nobody(person: Person, *texts: str) -> None:
    """The audit log outlives the person: what is written there may not name them."""
    from privacy.search import Search

    search = Search.of(person)
    if any(search.is_in(text.encode()) for text in texts):
        raise InputError(
            "The audit log names nobody, and --reason or --actor names the person.",
            fix="Leave the name out; a ticket's number will do.",
        )
