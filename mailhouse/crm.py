"""`mailhouse crm`: fields made, records read, a sync or its dry run, how syncs stand, why a field has its value."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from mailhouse.console import console, progress_bar
from warehouse.errors import InputError, MailhouseError

if TYPE_CHECKING:
    from crm.base import Connector, Kind
    from crm.settings import CrmSettings
    from crm.sync import Report
    from warehouse.client import Warehouse

app = typer.Typer(help="Sync contacts with CRMs, see how that stands and why.", no_args_is_help=True)


@app.command()
def setup() -> None:
    """Make the fields that content/crm.yaml names in each CRM; what is there already stays."""
    from crm.settings import CrmSettings
    from crm.syncing import set_up_crms

    done, lacking = set_up_crms(CrmSettings.load(), _segments())
    if not done:
        console.print("content/crm.yaml names no fields to make: see docs/crm-sync.md.")
    for name, one in done.items():
        made = f"made {', '.join(one.made)}" if one.made else "nothing to make"
        console.print(f"{name}: {made}; {len(one.kept)} were there.", markup=False, soft_wrap=True)
    for name, fields in lacking.items():
        _tell_unwritten(name, fields)


@app.command()
def pull(
    crm: Annotated[str, typer.Argument(help="The CRM or database; all that are set up, if left out.")] = "",
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help="contact, company, deal or task; may be given several times."),
    ] = None,
    full: Annotated[
        bool,
        typer.Option("--full", help="Read all records again, and mark those that are gone as deleted."),
    ] = False,
    record: Annotated[
        list[str] | None,
        typer.Option("--id", help="Look up this record of the CRM alone; may be given several times."),
    ] = None,
) -> None:
    """Read what changed in CRMs since it was last read; writes nothing to them."""
    from crm.base import PLURALS, CrmError
    from crm.connectors import connect
    from crm.settings import CrmSettings
    from mailhouse.engine import open_warehouse

    if record and (not crm or len(kind or ()) > 1 or full):
        raise InputError(
            "--id looks up records of one kind in one CRM.",
            fix="Name the CRM and one --kind, and leave --full out: mailhouse crm pull hubspot --kind contact --id 1.",
        )
    settings = CrmSettings.load()
    failures: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        connectors = [stack.enter_context(one) for one in connect(settings)]
        chosen = _chosen(connectors, crm, kind or (["contact"] if record else []), settings)
        warehouse = stack.enter_context(open_warehouse(settings, "mailhouse crm pull"))
        for connector, one in chosen:
            try:
                told = _pull(warehouse, connector, one, settings, full, record or [])
            except CrmError as error:
                failures[f"{connector.name} {PLURALS[one]}"] = error.message
                continue
            console.print(f"{connector.name} {PLURALS[one]}: {told}.", markup=False, soft_wrap=True)
    if failures:
        again = "What was read is stored; run again: it goes on where it stopped."
        if full:
            again += " What is gone is found by a run with --full that comes to its end."
        raise CrmError("; ".join(f"{name}: {message}" for name, message in failures.items()), fix=again)


@app.command()
def sync(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would be written, and write nothing anywhere.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows of the dry run that are shown.")] = 50,
) -> None:
    """Read the CRMs, decide what differs, write it where it is missing."""
    from crm.settings import CrmSettings
    from crm.syncing import sync_crms
    from mailhouse.engine import open_warehouse

    settings = CrmSettings.load()
    with open_warehouse(settings, "mailhouse crm sync") as warehouse:
        report = sync_crms(
            settings, warehouse, segments=_segments(), run_id="mailhouse crm sync", dry_run=dry_run
        )
    if dry_run:
        _show_changes(report, limit)
    else:
        told = ", ".join(f"{number:,} {name}" for name, number in report.counts.items() if number)
        console.print(told or "Nothing has changed.", markup=False, soft_wrap=True)
    if waiting := report.counts["waiting"]:
        console.print(
            f"{waiting:,} records wait until the models have been built: then they belong to a contact."
        )
    _raise(report)


@app.command()
def status() -> None:
    """Show how far each CRM has been read, what the last sync did, what waits and what failed."""
    from crm.connectors import configured
    from crm.pulling import stored_cursor
    from crm.settings import CrmSettings
    from crm.sync_store import WarehouseStore
    from crm.syncing import rules_in_force, unwritten
    from mailhouse.engine import open_warehouse

    settings = CrmSettings.load()
    rules = rules_in_force(settings, _segments())
    with open_warehouse(settings, "mailhouse crm status") as warehouse:
        store = WarehouseStore(warehouse, settings)
        table = Table(box=None)
        for name in ("crm", "read until", "cursor", "pushes", "last write", "waits", "refused"):
            table.add_column(name)
        known = configured(settings)
        outcomes = store.outcomes()
        for connector in known:
            cursor = stored_cursor(warehouse, connector.name, "contact")
            one = outcomes.get(connector.name, {})
            written = one.get("last_written_at")
            table.add_row(
                connector.name,
                f"{cursor[1]:%Y-%m-%d %H:%M:%S}" if cursor else "never",
                escape(cursor[0][:40]) if cursor else "",
                "yes" if connector.name in rules.push else "no",
                f"{written:%Y-%m-%d %H:%M:%S}" if written else "never",
                str(one.get("pending", 0)),
                str(one.get("refused", 0)),
            )
        if known:
            console.print(table)
        else:
            console.print("No CRM is set up: see docs/sources.md.")
        last = store.last()
        reasons = store.refusals()
    if last.started_at.year > 1970:
        counts = (
            ", ".join(f"{number:,} {name}" for name, number in last.counts.items() if number) or "nothing new"
        )
        console.print(
            f"Last sync: {last.started_at:%Y-%m-%d %H:%M:%S} UTC, {counts}.", markup=False, soft_wrap=True
        )
    else:
        console.print("Nothing has been synced yet.")
    for name, message in last.failures.items():
        console.print(f"{name}: {message}", markup=False, soft_wrap=True)
    for one in known:
        if one.name in rules.push:
            # what is not set up right is the doctor's to tell
            with contextlib.suppress(MailhouseError), one.from_settings(settings) as crm:
                _tell_unwritten(one.name, unwritten(rules, crm))
    for source, external_id, reason, at in reasons:
        console.print(f"{source} {external_id}: {reason} ({at:%Y-%m-%d %H:%M})", markup=False, soft_wrap=True)


@app.command()
def decisions(
    contact: Annotated[int, typer.Option("--contact", help="The contact_id.")],
    every: Annotated[bool, typer.Option("--all", help="Earlier decisions too.")] = False,
) -> None:
    """Show why a contact's fields have their values: who wrote what, which rule decided, and who lost."""
    from crm.settings import CrmSettings
    from crm.sync_store import WarehouseStore
    from mailhouse.engine import open_warehouse

    settings = CrmSettings.load()
    with open_warehouse(settings, "mailhouse crm decisions") as warehouse:
        found = WarehouseStore(warehouse, settings).decisions(contact, every=every)
    if not found:
        console.print(
            f"Nothing was decided about contact {contact}: their sources agree, or there is one alone."
        )
    for one in found:
        console.print(
            f"{one['field']} = {one['value']!r}, of {one['source']} {one['external_id']}"
            f" at {one['value_at']:%Y-%m-%d %H:%M:%S} UTC",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        console.print(
            f"  {one['rule']}: {one['why']} (decided {one['decided_at']:%Y-%m-%d %H:%M:%S} UTC)",
            markup=False, soft_wrap=True,
        )  # fmt: skip
        for loser in json.loads(one["losers"]):
            console.print(
                f"  lost: {loser['value']!r}, of {loser['source']} {loser['external_id']} at {loser['at']}",
                markup=False, soft_wrap=True,
            )  # fmt: skip


def _tell_unwritten(crm: str, fields: Mapping[str, str]) -> None:
    for field, hint in fields.items():
        told = f"{crm}: {field} is not written there, which has no place for it{f'; {hint}' if hint else ''}."
        console.print(told, markup=False, soft_wrap=True)


def _chosen(
    connectors: Sequence[Connector], crm: str, wanted: Sequence[str], settings: CrmSettings
) -> list[tuple[Connector, Kind]]:
    """CRMs and kinds that are to be read.

    Raises:
        InputError: there is no such CRM, or it has no such kind.
    """
    from crm.base import PLURALS
    from crm.connectors import kinds

    names = [one.name for one in connectors]
    if not names:
        raise InputError("No CRM is set up.", fix="Set one up: see docs/crm.md.")
    if crm and crm not in names:
        raise InputError(f"{crm} is no CRM that is set up.", fix=f"Name one of: {', '.join(names)}.")
    if strange := next((one for one in wanted if one not in PLURALS), None):
        raise InputError(f"{strange} is no kind of record.", fix=f"Name one of: {', '.join(PLURALS)}.")
    found: list[tuple[Connector, Kind]] = [
        (one, kind)
        for one in connectors
        if crm in ("", one.name)
        for kind in kinds(one, settings)
        if not wanted or kind in wanted
    ]
    if not found:
        what = " or ".join(PLURALS[kind] for kind in PLURALS if not wanted or kind in wanted)
        raise InputError(
            f"{crm or 'No CRM'} has {'no ' if crm else ''}{what} that are read.",
            fix="Look into docs/crm.md for what it has, and into MAILHOUSE_CRM_SKIPPED.",
        )
    return found


def _pull(
    warehouse: Warehouse,
    connector: Connector,
    kind: Kind,
    settings: CrmSettings,
    full: bool,
    ids: Sequence[str],
) -> str:
    """Read one kind of records; what is to be told of it.

    Raises:
        CrmError: the CRM refuses or stays silent.
    """
    from crm.base import PLURALS
    from crm.pulling import load, load_ids

    calls, run_id = connector.usage.calls, "mailhouse crm pull"
    missing = gone = 0

    def count(looked_up: int, not_there: int) -> None:
        nonlocal missing, gone
        missing, gone = missing + looked_up, gone + not_there

    if ids:
        result = load_ids(warehouse, connector, kind, ids, settings=settings, run_id=run_id)
    else:
        with progress_bar(transient=True) as bar:
            task = bar.add_task(f"{connector.name} {PLURALS[kind]}", total=None)
            result = load(
                warehouse,
                connector,
                kind,
                settings=settings,
                run_id=run_id,
                is_full=full,
                on_progress=lambda read: bar.update(task, completed=read),
                on_missing=count,
            )
    parts = [f"{result.read:,} read", f"{result.loaded:,} new or changed"]
    if result.quarantined:
        parts.append(f"{result.quarantined:,} that cannot be rows (raw.quarantined_rows)")
    if result.refused:
        parts.append(f"{result.refused:,} of people who were erased")
    if full and connector.capabilities.looks_up:
        parts.append(f"{missing:,} did not come, of which {gone:,} are gone")
    elif full:
        parts.append("what did not come cannot be looked up there")
    if made := connector.usage.calls - calls:
        parts.append(f"{made:,} calls")
    return ", ".join(parts)


def _show_changes(report: Report, limit: int) -> None:
    table = Table(box=None)
    for name in ("contact", "crm", "record", "field", "from", "to", "rule", "why"):
        table.add_column(name, overflow="fold")
    columns = ("contact_id", "source", "external_id", "field", "old", "value", "rule", "why")
    for row in report.changes.head(limit).select(columns).iter_rows():
        table.add_row(*(escape("" if cell is None else str(cell)) for cell in row))
    if report.changes.height:
        console.print(table)
    for crm, task in report.tasks[:limit]:
        console.print(f"{crm} task: {task.fields.get('subject', '')}", markup=False, soft_wrap=True)
    console.print(f"{report.changes.height:,} fields and {len(report.tasks):,} tasks would be written.")


def _raise(report: Report) -> None:
    from crm.base import CrmError

    if report.failures:
        raise CrmError(
            "; ".join(f"{name}: {message}" for name, message in report.failures.items()),
            fix="Run again: it goes on where it stopped.",
        )


def _segments() -> list[str]:
    from crm.rules import segment_names
    from orchestration.lib.dbt_runs import PROJECT_DIR

    return segment_names(PROJECT_DIR)
