"""`mailhouse demo`: the whole loop on real customers, in a home of its own.

The clock is set to Monday, 27 June 2011, half past nine in London's morning, when the orders are fresh and the
campaigns of `content/` are due; recipients are simulated and answer within the day that follows.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from demo import report as reports
from demo.data import write_inputs
from demo.simulator import simulate
from demo.smtp_sink import SmtpSink
from mailhouse.console import console, progress_bar, step
from mailhouse.services import Dagster, ServiceError
from mailhouse.settings import CommandSettings
from senders.settings import SenderSettings
from warehouse.client import Warehouse
from warehouse.embedded.launcher import free_port, start
from warehouse.embedded.process import is_locked, read_info
from warehouse.errors import MailhouseError
from warehouse.schema import migrate
from warehouse.settings import PREFIX, PROJECT_ROOT, MailhouseSettings

if TYPE_CHECKING:
    import dagster as dg

NOW = datetime(2011, 6, 27, 8, 30, tzinfo=UTC)
DAY_AFTER = timedelta(days=1)
_STATE = "demo.json"


class DemoError(MailhouseError):
    """The demo cannot go on."""


def run() -> None:
    """Run the loop from files to report; running it again sends nothing twice.

    Raises:
        MailhouseError: a service did not start, or a step failed.
    """
    begun = time.perf_counter()
    settings = MailhouseSettings.load()
    if settings.warehouse_url is not None:
        raise DemoError(
            "The demo brings a warehouse of its own and will not write to yours.",
            fix="Unset MAILHOUSE_WAREHOUSE_URL for this command.",
        )
    home = settings.home.absolute() / "demo"
    home.mkdir(parents=True, exist_ok=True)
    (home / _STATE).write_text(json.dumps({"clock_offset": NOW.timestamp() - time.time()}))
    os.environ.update(_environment(home, free_port()))

    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(SmtpSink(home / "mailboxes"))
        os.environ[PREFIX + "PROVIDER"] = "smtp"
        os.environ[PREFIX + "SMTP_URL"] = f"smtp://127.0.0.1:{sink.port}?tls=none"
        settings = SenderSettings.load()
        with step("Start the embedded ClickHouse engine"):
            stack.enter_context(start(settings))
            warehouse = stack.enter_context(Warehouse.connect(settings, comment="mailhouse demo"))
            migrate(warehouse)
        with step("Parse the dbt project"):
            dagster = Dagster(settings, ui_port=None)
            dagster.prepare()
        pipeline = time.perf_counter()
        with step("Write the customers as a CRM would export them"):
            inputs = write_inputs(home / "inbox")
        # they take as long to start as the models take to build; the sensor waits until there is something to send
        stack.callback(dagster.stop)
        background = stack.enter_context(ThreadPoolExecutor(1))
        starting = background.submit(dagster.start)
        with _jobs() as run_job:
            with step(f"Load {inputs.contacts:,} contacts and 240,007 invoice rows"):
                run_job("ingest")
            with step("Build and test the models that campaigns read"):
                run_job("build_live_models")
            with step("Fit, measure and store recommendations and predictions"):
                run_job("recommend")
            with step("Dagster's daemon, whose sensor finds the campaigns that are due"):
                starting.result()
            _await_campaigns(settings, dagster)
            stopping = background.submit(dagster.stop)
            # the day passes: recipients answer until tomorrow
            tomorrow = settings.model_copy(
                update={"clock_offset": settings.clock_offset + DAY_AFTER.total_seconds()}
            )
            os.environ[PREFIX + "CLOCK_OFFSET"] = repr(tomorrow.clock_offset)
            with step("Simulate what recipients do (no humans behind example.com)"):
                events = simulate(home / "mailboxes", home / "inbox" / "events", now=tomorrow.now())
            with step(f"Load {events:,} simulated mail events"):
                run_job("ingest")
            with step("Build them again: opens, clicks and unsubscribes move the marts"):
                run_job("build_live_models")
            with step("Write the report"):
                why, example = _why_example(tomorrow, warehouse)
                report = reports.read(warehouse, why, _experiments(tomorrow, warehouse))
                page = reports.write_page(report, home / "output" / "report.html", now=tomorrow.now())
            stopping.result()
            elapsed = time.perf_counter() - pipeline
            with step("Build the other reports, attribution and the views of BI, to look around in"):
                run_job("build_reports")
    _show(report, page, example, pipeline_seconds=elapsed, seconds=time.perf_counter() - begun)


def enter() -> dict[str, str]:
    """Environment variables with which other commands work on the demo's home.

    Raises:
        DemoError: the demo has not been run.
    """
    settings = MailhouseSettings.load()
    home = settings.home.absolute() / "demo"
    if not (home / _STATE).exists():
        raise DemoError("There is no demo yet.", fix="Run `mailhouse demo` first.")
    return _environment(home, settings.warehouse_port)


def _environment(home: Path, port: int) -> dict[str, str]:
    """The demo's settings; the engine's port is that of the running one, else `port`."""
    state = json.loads((home / _STATE).read_text())
    engine = home / "warehouse"
    if is_locked(engine) and (info := read_info(engine)) is not None:
        port = info.port
    values = {
        "HOME": str(home),
        "CONTENT_DIR": str(PROJECT_ROOT / "content"),
        "WAREHOUSE_PORT": str(port),
        "CLOCK_OFFSET": repr(state["clock_offset"]),
        "PROVIDER": "maildir",
        "FROM_EMAIL": "shop@example.com",
        "FROM_NAME": "Online Retail (demo)",
        "COMPANY_NAME": "Online Retail (demo)",
        "POSTAL_ADDRESS": "1 Example Street, Exampletown, United Kingdom",
        "BASE_URL": f"http://127.0.0.1:{CommandSettings.load().gateway_port}",
    }
    return {PREFIX + name: value for name, value in values.items()}


@contextlib.contextmanager
def _jobs() -> Iterator[Callable[[str], None]]:
    """A function that runs one of the code location's jobs in this process, recorded in Dagster's storage."""
    import dagster as dg

    from orchestration.definitions import defs

    with step("Load Dagster's code location"):
        definitions = defs()
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    with dg.DagsterInstance.get() as instance:

        def run_job(name: str) -> None:
            result = definitions.resolve_job_def(name).execute_in_process(
                run_config=quiet, instance=instance, raise_on_error=False
            )
            if not result.success:
                raise DemoError(
                    f"Job {name} failed. {_reason(result)}", fix="See the run in `mailhouse --demo up`."
                )

        yield run_job


def _reason(result: dg.ExecuteInProcessResult) -> str:
    """What the first failed step said."""
    for event in result.all_events:
        if event.is_step_failure:
            error = event.step_failure_data.error
            while error is not None and error.cause is not None:
                error = error.cause
            return f"{event.step_key}: {error.message.strip() if error else event.message}"
    return "No step says why."


def _await_campaigns(settings: SenderSettings, dagster: Dagster) -> None:
    """Wait until the sensor has launched a run for every campaign that is due, and each has ended."""
    import dagster as dg

    from campaigns.identity import occurrence_key
    from campaigns.specs import is_due, load_campaigns, occurrence
    from orchestration.defs.campaigns.sensors import ATTEMPTS, CAMPAIGN_TAG, OCCURRENCE_TAG
    from senders.ledger import Ledger

    now = settings.now()
    due = {
        name: occurrence_key(moment)
        for name, spec in load_campaigns(settings.content_dir).items()
        if is_due(spec, now) and (moment := occurrence(spec, now)) is not None
    }
    deadline = time.monotonic() + 120
    finished: set[str] = set()
    with dg.DagsterInstance.get() as instance, Ledger.open(settings) as ledger, progress_bar() as bar:
        tasks = {name: bar.add_task(f"Campaign {name}", total=None) for name in due}
        while len(finished) < len(due):
            if time.monotonic() > deadline:
                raise ServiceError(
                    f"Campaigns {', '.join(sorted(due.keys() - finished))} were not sent in time.",
                    fix=f"Read {settings.home / 'logs'}, or look at the runs in `mailhouse --demo up`.",
                )
            for name, moment in due.items():
                counts = ledger.counts("campaign", name, moment)
                bar.update(tasks[name], completed=sum(counts.values()))
                runs = instance.get_runs(dg.RunsFilter(tags={CAMPAIGN_TAG: name, OCCURRENCE_TAG: moment}))
                if any(one.status == dg.DagsterRunStatus.SUCCESS for one in runs):
                    finished.add(name)
                    bar.update(tasks[name], total=sum(counts.values()), completed=sum(counts.values()))
                elif len(runs) >= ATTEMPTS and all(one.status == dg.DagsterRunStatus.FAILURE for one in runs):
                    raise DemoError(
                        f"Campaign {name} failed {len(runs)} times.",
                        fix="See its runs in `mailhouse --demo up`.",
                    )
            for service in dagster.services:
                if service.has_ended:
                    raise ServiceError(f"{service.name} ended:\n{service.tail()}", fix=f"Read {service.log}.")
            time.sleep(0.25)


def _why_example(settings: SenderSettings, warehouse: Warehouse) -> tuple[list[str], tuple[str, int]]:
    """The explanation of one clicked message, and its id and contact."""
    from senders.ledger import Ledger
    from senders.why import why

    row = warehouse.frame(
        """
        select message_id, contact_id from marts.messages
        where status = 'sent' order by is_clicked desc, message_id limit 1
        """
    ).row(0, named=True)
    with Ledger.open(settings) as ledger:
        lines = why(row["message_id"], ledger, warehouse).lines()
    return lines, (row["message_id"], row["contact_id"])


def _experiments(settings: SenderSettings, warehouse: Warehouse) -> list[tuple[str, str, list[str]]]:
    """How the experiments stand, their pages written."""
    from orchestration.lib.experiment_analysis import look, write_report
    from orchestration.lib.experiment_runs import load_experiments

    found: list[tuple[str, str, list[str]]] = []
    for name, running in load_experiments(settings.content_dir).items():
        seen = look(warehouse, running, settings.now())
        write_report(settings, seen)
        found.append((name, seen.headline, list(seen.verdict.evidence) if seen.verdict else []))
    return found


def _show(
    report: reports.Report, page: Path, example: tuple[str, int], *, pipeline_seconds: float, seconds: float
) -> None:
    console.print()
    facts = Table(box=None, show_header=False)
    for name, value in report.facts:
        facts.add_row(name, value)
    console.print(facts)
    console.print()
    table = Table(
        title="Campaigns (opens and clicks are simulated, machines left out)", title_justify="left", box=None
    )
    columns = ("audience", "sent", "skipped", "delivered", "opened", "clicked", "bounced", "unsubscribed")
    table.add_column("campaign")
    for name in columns:
        table.add_column(name, justify="right")
    for row in report.campaigns.to_dicts():
        table.add_row(row["campaign"], *(f"{row[f'{name}_count']:,}" for name in columns))
    console.print(table)
    console.print()
    for name, headline, _ in report.experiments:
        console.print(f"Experiment {name}: {headline}", markup=False, soft_wrap=True)
    console.print()
    message_id, contact_id = example
    console.print(f"Report   {page}", soft_wrap=True)
    console.print(f"Mail     {page.parent.parent / 'mailboxes' / 'new'}", soft_wrap=True)
    console.print(f"Why      .venv/bin/mailhouse --demo why {message_id}")
    console.print(f"Preview  .venv/bin/mailhouse --demo preview win_back --contact {contact_id}")
    for name, _, _ in report.experiments:
        console.print(f"Test     .venv/bin/mailhouse --demo experiment show {name}", markup=False)
    console.print("Look     .venv/bin/mailhouse --demo up")
    console.print(
        f"\nPipeline {pipeline_seconds:.1f} s, from files to report; with services and other reports {seconds:.1f} s."
    )
