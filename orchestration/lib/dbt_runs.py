"""Run dbt inside the process that asks, and tell Dagster what it did.

`dagster_dbt`'s own resource starts a `dbt` process for each run and asks for its version first, which costs more
seconds than our models take. Here the parsed project is read from a file that `prepare_project` keeps fresh, and dbt's
events are turned into Dagster's by `dagster_dbt`'s own code, so that the UI shows the same materialisations and checks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warehouse.errors import MailhouseError
from warehouse.settings import PROJECT_ROOT, MailhouseSettings

if TYPE_CHECKING:
    import dagster as dg
    from dagster_dbt.core.dbt_cli_event import DbtCoreCliEventMessage
    from dbt.contracts.graph.manifest import Manifest

    from orchestration.lib.dbt_specs import Dbt

PROJECT_DIR = PROJECT_ROOT / "dbt_project"
_SOURCE_SUFFIXES = {".sql", ".yml", ".yaml", ".csv", ".md", ".py"}
_RESULT_EVENTS = {"LogSeedResult", "LogModelResult", "LogSnapshotResult", "LogTestResult"}
_STAMP = "source.sha256"
_lock = threading.Lock()
_manifests: dict[tuple[Path, str], Manifest] = {}


class ModelsError(MailhouseError):
    """dbt could not parse or build the project."""


def target_path(settings: MailhouseSettings) -> Path:
    """Folder of dbt's artefacts: the manifest that Dagster reads, compiled SQL, run results."""
    return settings.home / "dbt" / "target"


def dbt_environment(settings: MailhouseSettings) -> dict[str, str]:
    """Environment variables that `dbt_project/profiles.yml` and the macros read."""
    address = settings.warehouse
    return {
        "CLICKHOUSE_HOST": address.host,
        "CLICKHOUSE_PORT": str(address.port),
        "CLICKHOUSE_USER": address.user,
        "CLICKHOUSE_PASSWORD": address.password,
        "CLICKHOUSE_SECURE": str(address.scheme == "https"),
        # the embedded engine shares the machine with us: more builders than cores only wait for each other
        "CLICKHOUSE_THREADS": str(max(2, min(4, os.cpu_count() or 2)) if settings.is_embedded else 4),
        "CLICKHOUSE_CLUSTER": settings.warehouse_cluster,
        "CLICKHOUSE_DATABASE_ENGINE": settings.warehouse_database_engine,
        "CLICKHOUSE_REPLICA_PATH": settings.warehouse_replica_path,
        "CLICKHOUSE_REPLICA_NAME": settings.warehouse_replica_name,
        "MAILHOUSE_CLOCK_OFFSET": repr(settings.clock_offset),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        "DO_NOT_TRACK": "1",
    }


def prepare_project(settings: MailhouseSettings) -> Path:
    """Parse the dbt project if anything in it changed since it was last parsed; returns the manifest's path.

    Raises:
        ModelsError: the project does not parse; the message is dbt's, naming the file.
    """
    target = target_path(settings)
    manifest, stamp = target / "manifest.json", target / _STAMP
    digest = project_digest()
    if manifest.exists() and stamp.exists() and parsed_digest(settings) == digest:
        return manifest
    target.mkdir(parents=True, exist_ok=True)
    parsed = invoke(["parse"], settings)
    stamp.write_text(digest)
    _manifests[(target, digest)] = parsed.result
    return manifest


def parsed_digest(settings: MailhouseSettings) -> str:
    """Hash of the files as they were when `prepare_project` last parsed them."""
    return (target_path(settings) / _STAMP).read_text()


def invoke(
    args: Sequence[str],
    settings: MailhouseSettings,
    *,
    manifest: Manifest | None = None,
    callbacks: Sequence[Any] = (),
    target: Path | None = None,
    raise_on_error: bool = True,
) -> Any:
    """Run one dbt command in this process; returns dbt's own result object.

    Raises:
        ModelsError: the command failed; the message has the first failures in dbt's words.
    """
    from dbt.adapters.factory import reset_adapters
    from dbt.cli.main import dbtRunner

    # with a manifest at hand dbt keeps the adapter of the run before, and with it that run's warehouse
    reset_adapters()
    target = target or target_path(settings)
    command = [
        *args,
        *("--project-dir", str(PROJECT_DIR), "--profiles-dir", str(PROJECT_DIR)),
        *("--target-path", str(target), "--log-path", str(target)),
        # what failed is in the result, and each result is an event; the log file costs a third of dbt's own time
        *("--log-level", "none", "--log-level-file", "none", "--no-use-colors"),
    ]
    with _environment(dbt_environment(settings)):
        result = dbtRunner(manifest=manifest, callbacks=list(callbacks)).invoke(command)
    if raise_on_error and not result.success:
        raise ModelsError(
            f"dbt {args[0]} failed: {failure_text(result)}",
            fix="Correct the file that dbt names.",
        )
    return result


def failure_text(result: Any, limit: int = 5) -> str:
    """The first failures of a dbt result, one a line, in dbt's words."""
    if result.exception is not None:
        return str(result.exception).strip() or repr(result.exception)
    nodes = [
        one
        for one in getattr(result.result, "results", [])
        if one.status in ("error", "fail", "runtime error")
    ]
    lines = [f"{one.node.unique_id}: {(one.message or one.status).strip()}" for one in nodes[:limit]]
    if len(nodes) > limit:
        lines.append(f"and {len(nodes) - limit} more")
    return "\n".join(lines) or "no reason given"


def stream(
    args: Sequence[str], context: dg.AssetExecutionContext, settings: MailhouseSettings
) -> Iterator[Any]:
    """Run a dbt command for the assets selected in `context`; yields Dagster events as dbt finishes each node.

    Raises:
        ModelsError: a model or an error-severity test failed; raised after every event was yielded.
    """
    from orchestration.lib.dbt_specs import load_dbt

    dbt = load_dbt(settings)
    yield from _events([*args, *_selection(context, dbt)], context, settings, dbt, asset_context=context)


def report(
    args: Sequence[str], context: dg.AssetExecutionContext, settings: MailhouseSettings
) -> Iterator[dg.AssetMaterialization]:
    """Run a dbt command from an asset that is not one of dbt's; yields what the command built.

    Raises:
        ModelsError: a model or an error-severity test failed; raised after everything built was yielded.
    """
    import dagster as dg

    from orchestration.lib.dbt_specs import load_dbt

    for event in _events(args, context, settings, load_dbt(settings), asset_context=None):
        if isinstance(event, dg.AssetMaterialization):
            yield event


def _events(
    command: Sequence[str],
    context: dg.AssetExecutionContext,
    settings: MailhouseSettings,
    dbt: Dbt,
    *,
    asset_context: dg.AssetExecutionContext | None,
) -> Iterator[Any]:
    """Dagster's events of a dbt command: outputs of the assets of `asset_context`, or news of assets elsewhere."""
    with _run_target(settings, context.run.run_id) as target:
        for message in results(command, settings, target):
            context.log.debug(str(message))
            yield from message.to_default_asset_events(
                manifest=dbt.manifest,
                dagster_dbt_translator=dbt.translator,
                context=asset_context,
                target_path=target,
                project=dbt.project,
            )


def results(
    command: Sequence[str], settings: MailhouseSettings, target: Path
) -> Iterator[DbtCoreCliEventMessage]:
    """Run a dbt command in a thread of its own; yields a message for each node that has ended.

    Raises:
        ModelsError: a node failed; raised after every message was yielded.
    """
    from dagster_dbt.core.dbt_cli_event import DbtCoreCliEventMessage
    from dbt_common.events.functions import msg_to_dict

    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    outcome: list[Any] = []

    def on_event(message: Any) -> None:
        if message.info.name in _RESULT_EVENTS:
            events.put(msg_to_dict(message))

    def run() -> None:
        try:
            outcome.append(
                invoke(
                    command,
                    settings,
                    manifest=load_manifest(settings),
                    callbacks=[on_event],
                    target=target,
                    raise_on_error=False,
                )
            )
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            outcome.append(error)
        finally:
            events.put(None)

    worker = threading.Thread(target=run, name="dbt", daemon=True)
    worker.start()
    while (raw := events.get()) is not None:
        message = DbtCoreCliEventMessage(raw_event=raw, event_history_metadata={})
        if message.is_result_event:
            yield message
    worker.join()
    result = outcome[0]
    if isinstance(result, BaseException):
        raise result
    if not result.success:
        raise ModelsError(
            f"dbt {command[0]} failed.\n{failure_text(result)}", fix="Correct the model or the data."
        )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger from telling people at a terminal the hundred names that it has put into a command."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


@dataclass(frozen=True)
class SourceAge:
    """How old the newest row of a source is: `pass`, `warn` or `error`, and in words."""

    unique_id: str
    status: str
    text: str


def source_freshness(settings: MailhouseSettings) -> list[SourceAge]:
    """Ask dbt how old each source is, by what `_sources.yml` allows.

    Raises:
        ModelsError: a source could not be read.
    """
    ages = []
    result = invoke(
        ["source", "freshness", "--no-write-json"],
        settings,
        manifest=load_manifest(settings),
        raise_on_error=False,
    )
    for one in getattr(result.result, "results", None) or []:
        status = str(one.status)
        if status == "runtime error" and getattr(one, "max_loaded_at", None) is None and one.message:
            raise ModelsError(
                f"dbt source freshness failed: {one.message}", fix="Correct the source in _sources.yml."
            )
        # dbt measures from the epoch where there is no row
        is_empty = one.max_loaded_at is None or one.max_loaded_at.year < 1971
        text = "It has no rows." if is_empty else f"The newest row came {one.age / 3600:,.1f} hours ago."
        ages.append(SourceAge(one.node.unique_id, status, text))
    if not ages and result.exception is not None:
        raise ModelsError(f"dbt source freshness failed: {failure_text(result)}", fix="Correct the source.")
    return ages


@contextmanager
def _run_target(settings: MailhouseSettings, run_id: str) -> Iterator[Path]:
    """A folder for the SQL that a run compiles; it stays if the run fails, for whoever looks why."""
    target = settings.home / "dbt" / "runs" / run_id
    target.mkdir(parents=True, exist_ok=True)
    yield target
    shutil.rmtree(target, ignore_errors=True)


def _selection(context: dg.AssetExecutionContext, dbt: Dbt) -> list[str]:
    """dbt's arguments for the assets and checks that a run selects; none for all of them."""
    from dagster_dbt.asset_utils import get_subset_selection_for_context

    assets = context.assets_def
    is_whole = (
        assets.keys_by_output_name == assets.node_keys_by_output_name
        and assets.check_specs_by_output_name == assets.node_check_specs_by_output_name
    )
    if is_whole:
        return []
    with _quiet("dagster.builtin"):
        arguments, indirect = get_subset_selection_for_context(
            context=context,
            manifest=dbt.manifest,
            select="fqn:*",
            exclude=None,
            selector=None,
            dagster_dbt_translator=dbt.translator,
            current_dbt_indirect_selection_env=None,
        )
    # dbt wants one argument a node name; dagster_dbt joins them with spaces
    words = [word for argument in arguments for word in argument.split(" ")]
    # a test that compares a model with one that is not selected waits for a build that has both
    return [*words, "--indirect-selection", indirect or "buildable"]


def load_manifest(settings: MailhouseSettings) -> Manifest:
    """The parsed project, from memory or from the file that `prepare_project` wrote."""
    from dbt.contracts.graph.manifest import Manifest

    prepare_project(settings)
    target = target_path(settings)
    key = (target, parsed_digest(settings))
    if key not in _manifests:
        manifest = Manifest.from_msgpack((target / "partial_parse.msgpack").read_bytes())
        # what macros see as `graph`; parsing makes it, reading does not
        manifest.build_flat_graph()
        _manifests[key] = manifest
    return _manifests[key]


def project_digest() -> str:
    """Hash of every file that dbt parses."""
    digest = hashlib.sha256()
    for path in sorted(PROJECT_DIR.rglob("*")):
        if path.suffix in _SOURCE_SUFFIXES and "target" not in path.parts:
            digest.update(str(path.relative_to(PROJECT_DIR)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for dbt, which reads nothing else, and put back what was there."""
    with _lock:
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
