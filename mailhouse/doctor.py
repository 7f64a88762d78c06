"""`mailhouse doctor`: look at every service and file, and say how to mend what is wrong."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from rich.table import Table

from mailhouse.console import console
from mailhouse.services import answers
from mailhouse.settings import CommandSettings
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.errors import MailhouseError, WarehouseUnavailable

if TYPE_CHECKING:
    from crm.base import Connector

_LOW_DISK = 2 << 30


class Verdict(StrEnum):
    """`ok`, something to know, or something to mend."""

    OK = "ok"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    verdict: Verdict
    text: str
    fix: str = ""


def run() -> int:
    """Print all findings; returns the exit code, 2 if something is wrong."""
    findings = diagnose(SenderSettings.load(), CommandSettings.load())
    colours = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.WRONG: "red"}
    table = Table(box=None, show_header=False)
    for finding in findings:
        colour = colours[finding.verdict]
        table.add_row(finding.subject, f"[{colour}]{finding.verdict}[/]", finding.text)
        if finding.fix:
            table.add_row("", "", f"[dim]{finding.fix}[/]")
    console.print(table)
    return 2 if any(finding.verdict == Verdict.WRONG for finding in findings) else 0


def diagnose(settings: SenderSettings, command: CommandSettings) -> list[Finding]:
    """Look at everything; one thing that is wrong does not keep the others from being looked at."""
    looks: dict[str, Callable[[], Finding]] = {
        "home": lambda: _home(settings),
        "clock": lambda: _clock(settings),
        "warehouse": lambda: _warehouse(settings),
        "dbt project": lambda: _models(settings),
        "sources": lambda: _sources(settings),
        **_crms(),
        "campaigns": lambda: _campaigns(settings),
        "experiments": lambda: _experiments(settings),
        "triggers": lambda: _triggers(settings),
        "templates": lambda: _templates(settings),
        "assets": lambda: _assets(settings),
        "ledger": lambda: _ledger(settings),
        "provider": lambda: _provider(settings),
        "gateway": lambda: _gateway(settings, command),
        "dagster": lambda: _dagster(command),
    }
    return [_looked(subject, look) for subject, look in looks.items()]


def _crms() -> dict[str, Callable[[], Finding]]:
    """A look at each CRM that the settings name; if they are wrong, that is what is found."""
    from crm.connectors import configured
    from crm.settings import CrmSettings

    try:
        settings = CrmSettings.load()
    except MailhouseError as error:
        finding = Finding("crm", Verdict.WRONG, error.message, error.fix)
        return {"crm": lambda: finding}

    def look(connector: type[Connector]) -> Finding:
        # whoever looks does not want to be patient
        with connector.from_settings(settings, sleep=lambda seconds: time.sleep(min(seconds, 1.0))) as crm:
            said = crm.check()
        return Finding(crm.name, Verdict.OK, said or "set up; nothing was asked of it")

    return {connector.name: lambda connector=connector: look(connector) for connector in configured(settings)}


def _looked(subject: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except MailhouseError as error:
        return Finding(subject, Verdict.WRONG, error.message, error.fix)
    except OSError as error:
        return Finding(
            subject, Verdict.WRONG, f"{error.strerror}: {error.filename}", "Check the path and its rights."
        )


def _home(settings: SenderSettings) -> Finding:
    settings.home.mkdir(parents=True, exist_ok=True)
    probe = settings.home / ".doctor"
    probe.touch()
    probe.unlink()
    free = shutil.disk_usage(settings.home).free
    text = f"{settings.home}, {free / (1 << 30):,.1f} GiB free"
    if free < _LOW_DISK:
        return Finding(
            "home", Verdict.NOTE, text, "Less than 2 GiB is little for a warehouse: free some space."
        )
    return Finding("home", Verdict.OK, text)


def _clock(settings: SenderSettings) -> Finding:
    now = f"{settings.now():%Y-%m-%d %H:%M:%S} UTC"
    if settings.clock_offset:
        return Finding(
            "clock", Verdict.NOTE, f"{now}, a rehearsal", "Only maildir and local SMTP can send now."
        )
    return Finding("clock", Verdict.OK, now)


def _warehouse(settings: SenderSettings) -> Finding:
    try:
        with Warehouse.connect(settings, comment="mailhouse doctor") as warehouse:
            version = warehouse.value("select version()")
            tables = warehouse.value("select count() from system.tables where database = 'raw'")
    except WarehouseUnavailable as error:
        if settings.is_embedded:
            return Finding(
                "warehouse", Verdict.NOTE, "The embedded engine is not running.", "`mailhouse up` starts it."
            )
        raise error from None
    kind = "embedded" if settings.is_embedded else "server"
    text = f"ClickHouse {version} ({kind}) at {settings.warehouse.url}, {tables} raw tables"
    if not tables:
        return Finding("warehouse", Verdict.NOTE, text, "`mailhouse up` makes the raw tables.")
    return Finding("warehouse", Verdict.OK, text)


def _models(settings: SenderSettings) -> Finding:
    from orchestration.lib.dbt_runs import load_manifest

    manifest = load_manifest(settings)
    models = [node for node in manifest.nodes.values() if node.resource_type == "model"]
    segments = sum("segments" in node.fqn for node in models)
    return Finding("dbt project", Verdict.OK, f"{len(models)} models, {segments} of them in segments/")


def _sources(settings: SenderSettings) -> Finding:
    from crm.files import load_sources

    return Finding("sources", Verdict.OK, f"{len(load_sources(settings.content_dir))} file sources")


def _campaigns(settings: SenderSettings) -> Finding:
    from campaigns.specs import check_references, load_campaigns
    from orchestration.lib.campaign_runs import SEGMENTS_DIR
    from senders.rendering import TemplateLibrary

    specs = load_campaigns(settings.content_dir)
    templates = TemplateLibrary.load(settings.content_dir / "templates").names()
    segments = [path.stem for path in SEGMENTS_DIR.glob("*.sql")]
    check_references(specs, templates, segments, provider=settings.provider)
    return Finding("campaigns", Verdict.OK, f"{len(specs)} campaigns")


def _experiments(settings: SenderSettings) -> Finding:
    from orchestration.lib.experiment_runs import load_experiments, needed

    known = load_experiments(settings.content_dir)
    words = [
        f"{one.name} needs {needed(one.placed, one.placed.measures.baseline).total:,} contacts"
        for one in known.values()
        if one.placed.measures.baseline is not None and one.placed.is_proportion
    ]
    said = f": {', '.join(words)}" if words else ""
    return Finding("experiments", Verdict.OK, f"{len(known)} experiments{said}")


def _triggers(settings: SenderSettings) -> Finding:
    from campaigns.triggers import load_triggers
    from mailhouse.trigger_work import check_files

    specs = load_triggers(settings.content_dir)
    check_files(settings, specs)
    return Finding("triggers", Verdict.OK, f"{len(specs)} triggers")


def _templates(settings: SenderSettings) -> Finding:
    from senders.rendering import TemplateLibrary

    library = TemplateLibrary.load(settings.content_dir / "templates", assets_url=settings.assets_url)
    problems = library.check(has_event=True)
    if problems:
        raise problems[0].error(len(problems) - 1)
    return Finding("templates", Verdict.OK, f"{len(library.names())} templates compile")


def _assets(settings: SenderSettings) -> Finding:
    from senders.assets import Assets, unpublished

    assets = Assets(settings.content_dir / "assets", settings.assets_url)
    count = len(list(assets.names()))
    if not count:
        return Finding("assets", Verdict.OK, "none")
    if not (settings.assets_store and settings.assets_url):
        return Finding(
            "assets",
            Verdict.NOTE,
            f"{count}, and no place to publish them to",
            "Set MAILHOUSE_ASSETS_STORE and MAILHOUSE_ASSETS_URL if templates show them.",
        )
    missing = unpublished(assets, settings.assets_store)
    if missing:
        return Finding(
            "assets",
            Verdict.NOTE,
            f"{len(missing)} of {count} are not published as they are now, such as {missing[0]}",
            "Run `mailhouse assets publish` before you send.",
        )
    return Finding("assets", Verdict.OK, f"{count}, all published")


def _ledger(settings: SenderSettings) -> Finding:
    from senders.ledger import Ledger

    with Ledger.open(settings) as ledger:
        unknown = len(ledger.unknown_message_ids())
    if unknown:
        return Finding(
            "ledger",
            Verdict.NOTE,
            f"{unknown:,} messages may or may not have gone",
            "The provider's events settle them; `mailhouse why MESSAGE_ID` explains one.",
        )
    return Finding("ledger", Verdict.OK, "open, no message in doubt")


def _provider(settings: SenderSettings) -> Finding:
    from senders.providers import get_provider
    from senders.settings import require_identity, require_rehearsal_safe

    provider = get_provider(settings)
    require_rehearsal_safe(settings, reaches_people=provider.capabilities.reaches_people)
    try:
        require_identity(settings, category="marketing")
    except MailhouseError as error:
        return Finding("provider", Verdict.NOTE, f"{provider.name}. {error.message}", error.fix)
    return Finding("provider", Verdict.OK, provider.name)


def _gateway(settings: SenderSettings, command: CommandSettings) -> Finding:
    local = f"http://127.0.0.1:{command.gateway_port}"
    if not answers(f"{local}/readyz"):
        return Finding("gateway", Verdict.NOTE, f"does not answer at {local}", "`mailhouse up` starts it.")
    return Finding("gateway", Verdict.OK, f"{local}, links lead to {settings.base_url}")


def _dagster(command: CommandSettings) -> Finding:
    url = f"http://127.0.0.1:{command.dagster_port}"
    if not answers(f"{url}/server_info"):
        return Finding("dagster", Verdict.NOTE, f"no UI at {url}", "`mailhouse up` starts it.")
    return Finding("dagster", Verdict.OK, url)
