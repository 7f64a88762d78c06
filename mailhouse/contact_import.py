"""`mailhouse contacts import`: which column is what, a bar, what became of every row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo, available_timezones

import typer
from rich.markup import escape
from rich.table import Table

from mailhouse.console import console, progress_bar
from warehouse.actor import own_name
from warehouse.errors import InputError

if TYPE_CHECKING:
    from crm.importing import ConsentBasis, ImportPlan, ImportReport


class _Basis(StrEnum):
    CONSENT = "consent"
    CONTRACT = "contract"
    LEGITIMATE_INTEREST = "legitimate_interest"


class _Policy(StrEnum):
    KEEP = "keep"
    REFUSE = "refuse"


class _Format(StrEnum):
    CSV = "csv"
    PARQUET = "parquet"
    JSONL = "jsonl"


def import_contacts(
    file: Annotated[
        Path, typer.Argument(help="A CSV, TSV, Parquet or JSON Lines file, a row for each contact.")
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--map", "-m", help='What a column is, e.g. "Vorname=first_name"; "Column=" keeps it as it is.'
        ),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option("--ignore", help="A column that is not kept.")] = None,
    source: Annotated[str, typer.Option("--source", help="Where the contacts come from.")] = "import",
    basis: Annotated[
        _Basis | None, typer.Option("--basis", help="The ground on which they may be written to.")
    ] = None,
    no_consent: Annotated[
        bool, typer.Option("--no-consent", help="There is none: they come in and get no marketing.")
    ] = False,
    purpose: Annotated[str, typer.Option("--purpose", help="What they may be written to for.")] = "marketing",
    channel: Annotated[
        list[str] | None,
        typer.Option("--channel", help="By what: email (if left out), sms, push ...; may be repeated."),
    ] = None,
    consent_date: Annotated[
        str, typer.Option("--consent-date", help="When they consented, where no column says it: 2026-05-31.")
    ] = "",
    consent_text_version: Annotated[
        str,
        typer.Option(
            "--consent-text-version", help="The wording they consented to, where no column says it."
        ),
    ] = "",
    role_accounts: Annotated[
        _Policy | None,
        typer.Option(
            "--role-accounts", help="info@, sales@ ...; left out, refused under consent and else kept."
        ),
    ] = None,
    disposable: Annotated[
        _Policy, typer.Option("--disposable", help="Throwaway addresses.")
    ] = _Policy.REFUSE,
    fix_typos: Annotated[
        bool,
        typer.Option("--fix-typos", help="Take addresses that are nearly one as they were probably meant."),
    ] = False,
    check_mx: Annotated[
        bool, typer.Option("--check-mx", help="Ask DNS whether each domain takes mail.")
    ] = False,
    put_on: Annotated[str, typer.Option("--list", help="Put all who are taken on this static list.")] = "",
    timezone: Annotated[str, typer.Option("--timezone", help="Of times that do not say theirs.")] = "UTC",
    date_format: Annotated[
        str, typer.Option("--date-format", help="Of times that are not ISO 8601: %d.%m.%Y")
    ] = "",
    form: Annotated[
        _Format | None, typer.Option("--format", help="Of the file; left out, by its ending.")
    ] = None,
    delimiter: Annotated[str, typer.Option("--delimiter", help="Of CSV; left out, the likeliest.")] = "",
    encoding: Annotated[str, typer.Option("--encoding", help="Of text files.")] = "utf-8",
    report: Annotated[
        Path | None, typer.Option("--report", help="A CSV file for the rows that were refused, and why.")
    ] = None,
    save_as: Annotated[
        str,
        typer.Option("--save-as", help="Write the mapping as a source of this name into content/sources."),
    ] = "",
    imported_by: Annotated[str, typer.Option("--by", help="Who imports; left out, who is logged in.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge and count, store nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit code 1 if any row was refused.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Import a file of contacts: judged, without those who are in it twice, with the ground for writing to them."""
    from campaigns.permissions import CHANNELS
    from crm.importing import ConsentBasis, ImportOptions, plan_import, run_import, save_source
    from crm.mail_servers import mail_server_problems
    from crm.specs import check_name
    from mailhouse.engine import open_warehouse
    from warehouse.settings import MailhouseSettings
    from warehouse.yaml_specs import nearest

    settings = MailhouseSettings.load()
    for what, name in (("--source", source), ("--list", put_on), ("--save-as", save_as)):
        if name:
            check_name(what, name)
    zone = _zone(timezone)
    if (basis is None) == (not no_consent):
        raise InputError(
            "Nothing says on which ground these people may be written to."
            if basis is None
            else "--basis and --no-consent exclude each other.",
            fix="Give --basis consent, contract or legitimate_interest; or --no-consent, and they get no marketing.",
        )
    consent: ConsentBasis | None = None
    kept = sorted({reach.consent for reach in CHANNELS.values()})
    if strange := [name for name in channel or [] if name not in kept]:
        raise InputError(f"No consent is kept for channel {strange[0]!r}.", fix=nearest(strange[0], kept))
    if basis is not None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", purpose):
            raise InputError(f"--purpose {purpose!r} is no name.", fix="Write a word such as marketing.")
        consent = ConsentBasis(
            basis.value,
            purpose,
            tuple(dict.fromkeys(channel or ["email"])),
            consent_text_version,
            _moment(consent_date, zone, settings.now()),
        )
    elif consent_date or consent_text_version or channel:
        raise InputError(
            "With --no-consent nothing can be said of consent.",
            fix="Leave out --channel, --consent-date and the like.",
        )
    options = ImportOptions(
        source=source,
        consent=consent,
        imported_by=imported_by or own_name(),
        role_accounts=role_accounts.value if role_accounts else None,
        disposable=disposable.value,
        is_correcting=fix_typos,
        list=put_on,
        timezone=timezone,
        time_format=date_format or None,
        form=form.value if form else None,
        delimiter=delimiter or None,
        encoding=encoding,
        ignore=tuple(ignore or ()),
    )
    plan = plan_import(file, options, _mapping(columns or []))
    show_plan(plan)
    if save_as:
        saved = save_source(plan, save_as, settings.content_dir)
        console.print(
            f"The mapping is saved as {saved.name} in content/sources.", markup=False, soft_wrap=True
        )
    if not (dry_run or yes or typer.confirm(f"Import about {plan.rows:,} rows?")):
        raise typer.Exit(1)
    with (
        open_warehouse(settings, "mailhouse contacts import") as warehouse,
        progress_bar(transient=True) as bar,
    ):
        task = bar.add_task(file.name, total=plan.rows)
        done = run_import(
            warehouse,
            plan,
            home=settings.home,
            content_dir=settings.content_dir,
            now=settings.now(),
            report_path=report,
            is_dry=dry_run,
            problems=mail_server_problems() if check_mx else None,
            on_progress=lambda rows: bar.update(task, completed=rows, total=max(rows, plan.rows)),
        )
    show_report(plan, done, report)
    if not done.taken or (strict and done.refused_rows):
        raise typer.Exit(1)


def _mapping(given: list[str]) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for text in given:
        column, mark, name = text.rpartition("=")
        if not mark or not column.strip():
            raise InputError(f"--map {text!r} says nothing.", fix='Write --map "Column=field".')
        mapping[column.strip()] = name.strip()
    return mapping


def _zone(name: str) -> ZoneInfo:
    if name not in available_timezones():
        raise InputError(f"{name!r} is no time zone.", fix="Write an IANA name such as Europe/London.")
    return ZoneInfo(name)


def _moment(text: str, zone: ZoneInfo, now: datetime) -> datetime | None:
    if not text:
        return None
    try:
        # a day begins at midnight
        moment = (
            datetime.fromisoformat(text)
            if len(text) > 10
            else datetime(*date.fromisoformat(text).timetuple()[:3])
        )
    except ValueError:
        raise InputError(
            f"--consent-date {text!r} is no date.", fix="Write 2026-05-31 or 2026-05-31T10:00:00+02:00."
        ) from None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
    if moment > now:
        raise InputError(
            f"--consent-date {text} lies in the future.", fix="Write the day when they consented."
        )
    return moment.astimezone(UTC)


def show_plan(plan: ImportPlan) -> None:
    """Which column becomes what, and on which ground."""
    table = Table(title=f"{plan.path.name}: about {plan.rows:,} rows", title_justify="left", box=None)
    table.add_column("column")
    table.add_column("becomes")
    for name, column in plan.fields.items():
        table.add_row(escape(column), name)
    for column in plan.properties:
        table.add_row(escape(column), "[dim]a property of its own name[/]")
    for column in plan.options.ignore:
        table.add_row(escape(column), "[dim]nothing[/]")
    console.print(table)
    options, consent = plan.options, plan.options.consent
    ground = "without consent: no marketing goes to them"
    if consent is not None:
        basis = consent.basis.replace("_", " ")
        ground = f"on the ground of {basis}, for {consent.purpose} by {', '.join(consent.channels)}"
    console.print(
        f"Into source {options.source}, {ground}; offices' addresses: {options.keeps_roles}, throwaway addresses: "
        f"{options.disposable}; times without a zone are of {options.timezone}; of a person who is there twice the "
        "first row counts.",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def show_report(plan: ImportPlan, report: ImportReport, path: Path | None) -> None:
    """What became of the rows."""
    from crm.importing import NOTES, PROTECTED, REASONS

    table = Table(box=None, show_header=False)
    table.add_column("", justify="right")
    table.add_column("")

    def lines(counts: Mapping[str, int], words: Mapping[str, str], style: str) -> None:
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            table.add_row(f"{count:,}", f"[{style}]{words[name]}[/]")

    known = f", of whom {report.known:,} were known from elsewhere" if report.known else ""
    for count, what in (
        (report.new, f"[green]new contacts{known}[/]"),
        (report.changed, "[green]changed[/]"),
        (report.unchanged, "unchanged"),
        (report.repeated, "again the same person"),
        (report.refused_rows, "[red]refused[/]"),
    ):
        table.add_row(f"{count:,}", what)
    lines(report.refused, {name: f"  {words}" for name, words in REASONS.items()}, "red")
    lines(report.notes, NOTES, "yellow")
    if plan.options.consent is not None:
        table.add_row(f"{report.consents:,}", f"consents ({plan.options.consent.basis.replace('_', ' ')})")
        if report.withdrawals:
            table.add_row(f"{report.withdrawals:,}", "said no")
        lines(
            report.protected,
            {name: f"got no consent: they {words}" for name, words in PROTECTED.items()},
            "yellow",
        )
    if report.listed:
        table.add_row(f"{report.listed:,}", f"new on the list {plan.options.list}")
    console.print(table)
    for example in report.examples:
        console.print(example, markup=False, highlight=False, soft_wrap=True)
    if path is not None:
        console.print(f"Every row that was refused, repeated or noted: {path}", markup=False, soft_wrap=True)
    elif report.refused_rows > len(report.examples):
        console.print("[dim]--report FILE.csv lists them all.[/]")
    if report.is_dry:
        console.print("Dry run: nothing was stored.")
    elif report.first_started_at is not None:
        began = f"{report.first_started_at:%Y-%m-%d %H:%M} UTC"
        console.print(f"This import was begun on {began} already; what was there was left as it is.")
