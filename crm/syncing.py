"""The sync of the settings in force: its rules, its CRMs, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from crm.base import Connector, CrmError, CrmNotSupportedError, Kind, SetUp, require
from crm.connectors import CONNECTORS, connect, kinds
from crm.files import load_sources
from crm.locks import one_at_a_time
from crm.rules import CrmRules, load_rules
from crm.settings import CrmSettings
from crm.sync import Report, Sync
from crm.sync_store import DryStore, WarehouseStore
from warehouse.client import Warehouse
from warehouse.errors import SettingsError


def rules_in_force(settings: CrmSettings, segments: Collection[str] = ()) -> CrmRules:
    """What `content/crm.yaml` says, held against the CRMs, sources and segments that there are.

    Raises:
        InputError: file, line, what is wrong, and the nearest right name.
    """
    sources = [
        source.source for source in load_sources(settings.content_dir).values() if source.object == "contacts"
    ]
    return load_rules(settings.content_dir, list(CONNECTORS), sources=sources, segments=segments)


@contextmanager
def connected(settings: CrmSettings) -> Iterator[list[Connector]]:
    """The CRMs that the settings name.

    Raises:
        SettingsError: what one of them needs is missing.
    """
    with ExitStack() as stack:
        yield [stack.enter_context(connector) for connector in connect(settings)]


def check_pushes(rules: CrmRules, connectors: Sequence[Connector]) -> None:
    """Refuse what no CRM of the settings can do, before anything is read or written.

    Raises:
        SettingsError: a CRM that shall be written to is not set up.
        CrmNotSupportedError: it cannot do what is asked.
    """
    known = {connector.name: connector for connector in connectors}
    for name, spec in rules.push.items():
        if name not in known:
            raise SettingsError(
                f"{rules.place('push', name)}: {name} shall be written to, and is not set up.",
                fix=f"Set the MAILHOUSE_{name.upper()}_ settings, or take {name} out of `push`.",
            )
        if spec.engagement or spec.create or rules.pushed_fields(name):
            require(known[name], push="contact")
        if spec.fields is not None:
            for field, hint in unwritten(rules, known[name]).items():
                place = rules.place("push", name, "fields", spec.fields.index(field))
                raise SettingsError(
                    f"{place}: {name} has no place for {field}.",
                    fix=f"Take it out, or {hint}." if hint else "Take it out.",
                )
        if spec.tasks:
            require(known[name], push="task")
        if spec.engagement and not known[name].capabilities.can_set_up:
            raise CrmNotSupportedError(
                f"{rules.place('push', name, 'engagement')}: {name} takes no fields of ours.",
                fix="Take `engagement` out.",
            )


def unwritten(rules: CrmRules, connector: Connector) -> dict[str, str]:
    """Fields that rules would write to a CRM which has no place for them, and what gives them one.

    A CRM that must be asked and does not answer lacks nothing, as far as is known: its sync tells of that.
    """
    fields = [name for name in rules.pushed_fields(connector.name) if name in rules.fields]
    try:
        return dict(connector.unwritable(fields)) if fields else {}
    except CrmError:
        return {}


def sync_crms(
    settings: CrmSettings,
    warehouse: Warehouse,
    *,
    segments: Collection[str] = (),
    wanted: Collection[Kind] = ("contact",),
    run_id: str = "",
    dry_run: bool = False,
    on_progress: Callable[[str, int], None] | None = None,
    connectors: Sequence[Connector] | None = None,
) -> Report:
    """Read the CRMs, decide what differs, write it where it is missing; one process at a time.

    Args:
        settings: which CRMs, where the rules are.
        warehouse: where to.
        segments: names of the segments that there are.
        wanted: what is read; contacts are decided, all else is stored.
        run_id: who syncs.
        dry_run: decide and tell, and write nothing anywhere.
        on_progress: told what is being done and how many are done.
        connectors: other CRMs than those of the settings.

    Raises:
        InputError: a mistake in content/crm.yaml.
        SettingsError: a CRM is not set up.
        WarehouseError: ClickHouse refused; running again goes on.
    """
    rules = rules_in_force(settings, segments)
    with ExitStack() as stack:
        if connectors is None:
            connectors = stack.enter_context(connected(settings))
        check_pushes(rules, connectors)
        stack.enter_context(one_at_a_time(settings.home, "crm_sync"))
        store = (DryStore if dry_run else WarehouseStore)(warehouse, settings, run_id=run_id)
        return Sync(
            store,
            connectors,
            rules,
            now=settings.now,
            run_id=run_id,
            dry_run=dry_run,
            kinds=lambda connector: [kind for kind in kinds(connector, settings) if kind in wanted],
            on_progress=on_progress,
        ).run()


def set_up_crms(
    settings: CrmSettings, segments: Collection[str] = ()
) -> tuple[dict[str, SetUp], dict[str, dict[str, str]]]:
    """Make the fields that `content/crm.yaml` names in each CRM; safe to repeat.

    Returns:
        By CRM, what was made, and what is not written there: see `unwritten`.

    Raises:
        CrmError: a CRM refuses; those before it are done.
    """
    rules = rules_in_force(settings, segments)
    done: dict[str, SetUp] = {}
    lacking: dict[str, dict[str, str]] = {}
    with connected(settings) as connectors:
        check_pushes(rules, connectors)
        for connector in connectors:
            lacking[connector.name] = unwritten(rules, connector)
            # some need a field of their own to know tasks again
            if connector.name in rules.push and connector.capabilities.can_set_up:
                done[connector.name] = connector.set_up(rules.custom_fields(connector.name))
    return done, lacking
