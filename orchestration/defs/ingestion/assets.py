"""One asset a source: files that `content/sources/*.yaml` describes, and what each CRM has that the settings name.

A source's rows land in raw tables that several sources share. Each raw table is an asset of its own, downstream of its
sources: it says what the table holds, and it is what the models depend on.
"""

from collections.abc import Iterator, Mapping, Sequence

import dagster as dg

from campaigns.catalogue import record_specs
from campaigns.experiments import record_experiments
from campaigns.specs import load_campaigns
from crm.base import PLURALS, Connector, Kind
from crm.connectors import configured, kinds, source_name
from crm.files import FileSource, ingest_files, load_sources
from crm.lists import load_lists
from crm.pulling import load as load_crm
from crm.settings import CrmSettings
from orchestration.lib.resources import counts_metadata, open_warehouse
from senders.bounce_intake import ingest_bounces
from senders.ledger import Ledger
from senders.settings import SenderSettings
from warehouse.settings import MailhouseSettings

GROUP = "ingestion"
# raw tables that several sources write; raw/messages, raw/campaigns and others have assets of their own
RAW_TABLES = {
    "crm_records": "Every version of every CRM object that a source has shown us.",
    "events": "Every event, behaviour or mail, once.",
    "consents": "Every change of a consent: the proof of it.",
    "products": "Every version of every product of a catalogue.",
}
WRITTEN_ELSEWHERE = {
    "model_evaluations": "How good each model version was on what came later.",
    "identity_changes": "Who is one person with whom, as people have said: merges, splits, and what took them back.",
    "rectifications": "What people had put right in records, and the wrong values, which CRMs may go on saying.",
}
# what a source's object is -> the raw tables it writes; exhaustive
TABLES_OF: Mapping[str, tuple[str, ...]] = {
    "contacts": ("crm_records", "consents"),
    "orders": ("events",),
    "events": ("events",),
    "products": ("products",),
    "consents": ("consents",),
}


def file_source_asset(source: FileSource) -> dg.AssetsDefinition:
    """The asset that loads one file source."""

    @dg.asset(
        key=["sources", source.name],
        group_name=GROUP,
        description=source.description or f"{source.object.capitalize()} from files.",
        kinds={"python", "file"},
        pool="clickhouse",
        metadata={"files": ", ".join(source.files), "loads": source.object},
    )
    def load(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        settings = MailhouseSettings.load()
        with open_warehouse(context.run.run_id) as warehouse:
            report = ingest_files(
                warehouse, source, base_dir=settings.home, run_id=context.run.run_id, now=settings.now()
            )
        for file in report.files:
            context.log.info(
                f"{file.file}: {file.rows:,} rows, {file.loaded:,} new, {file.quarantined:,} quarantined"
            )
        if report.quarantined:
            context.log.warning(
                f"{report.quarantined:,} rows could not be loaded; see raw.quarantined_rows. The first: "
                + "; ".join(report.examples)
            )
        counts = {
            name: getattr(report, name)
            for name in ("rows", "loaded", "duplicates", "quarantined", "consents")
        }
        return dg.MaterializeResult(metadata=counts_metadata(counts))

    return load


def crm_asset(connector: type[Connector], kind: Kind) -> dg.AssetsDefinition:
    """The asset that loads one kind of a CRM's records, from where the last load stopped."""
    told = {"deleted": connector.capabilities.tells_deletes, "merged": connector.capabilities.tells_merges}
    also = " and ".join(word for word, is_told in told.items() if is_told)

    @dg.asset(
        key=["sources", source_name(connector.name, kind)],
        group_name=GROUP,
        description=f"{connector.name}'s {PLURALS[kind]}: what changed since the last load"
        + (f", {also} ones too." if also else "."),
        kinds={"python", connector.name},
        pool=connector.name,
    )
    def load(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        settings = CrmSettings.load()
        with open_warehouse(context.run.run_id) as warehouse, connector.from_settings(settings) as crm:
            result = load_crm(warehouse, crm, kind, settings=settings, run_id=context.run.run_id)
            calls = crm.usage.calls
        counts = {name: getattr(result, name) for name in ("read", "loaded", "duplicates", "quarantined")}
        return dg.MaterializeResult(metadata=counts_metadata({**counts, "calls": calls}))

    return load


def raw_tables(writers: Mapping[str, Sequence[dg.AssetKey]]) -> dg.AssetsDefinition:
    """The raw tables, each downstream of the sources that write to it."""

    @dg.multi_asset(
        name="raw_tables",
        specs=[
            dg.AssetSpec(
                ["raw", table],
                group_name=GROUP,
                description=RAW_TABLES[table],
                deps=keys,
                kinds={"clickhouse"},
                skippable=True,
            )
            for table, keys in writers.items()
        ],
        can_subset=True,
        pool="clickhouse",
    )
    def tables(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        with open_warehouse(context.run.run_id) as warehouse:
            for key in sorted(context.selected_asset_keys):
                rows = warehouse.value(f"select count() from raw.{key.path[-1]}")  # noqa: S608
                yield dg.MaterializeResult(asset_key=key, metadata={"dagster/row_count": int(rows)})

    return tables


@dg.asset(
    key=["raw", "campaigns"],
    group_name=GROUP,
    description="Every version of every campaign's file: its goal, channel and segment, so that marts know them.",
    kinds={"python", "yaml"},
    pool="clickhouse",
)
def campaign_files(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Record the versions that have not been recorded."""
    settings = MailhouseSettings.load()
    specs = load_campaigns(settings.content_dir)
    with open_warehouse(context.run.run_id) as warehouse:
        changed = record_specs(warehouse, specs.values())
        placed = [(one, spec.version) for spec in specs.values() if (one := spec.placed_experiment())]
        record_experiments(warehouse, placed)
    return dg.MaterializeResult(metadata=counts_metadata({"campaigns": len(specs), "changed": changed}))


@dg.asset(
    key=["raw", "list_members"],
    group_name=GROUP,
    description="Who entered and who left each static list, as the files of content/lists say.",
    kinds={"python", "file"},
    pool="clickhouse",
)
def static_lists(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Bring the lists in line with their files."""
    settings = MailhouseSettings.load()
    with open_warehouse(context.run.run_id) as warehouse:
        reports = load_lists(
            warehouse,
            settings.content_dir,
            base_dir=settings.home,
            run_id=context.run.run_id,
            now=settings.now(),
        )
    for one in reports:
        context.log.info(f"{one.file}: {one.members:,} people, {one.entered:,} entered, {one.left:,} left")
        if one.quarantined:
            context.log.warning(
                f"{one.file}: {one.quarantined:,} lines could not be read; see raw.quarantined_rows. The first: "
                + "; ".join(one.examples)
            )
    counts = {
        name: sum(getattr(one, name) for one in reports)
        for name in ("members", "entered", "left", "quarantined")
    }
    return dg.MaterializeResult(metadata=counts_metadata({"lists": len(reports), **counts}))


@dg.asset(
    key=["sources", "bounces"],
    group_name=GROUP,
    description=(
        "Bounces and complaints from the folder and the mailbox of the settings, as events; "
        "addresses that bounced softly too often are given up."
    ),
    kinds={"python", "clickhouse"},
    pool="clickhouse",
)
def bounces(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Read what mail servers have sent back; where neither folder nor mailbox is set, only soft bounces are counted."""
    settings = SenderSettings.load()
    with open_warehouse(context.run.run_id) as warehouse, Ledger.open(settings) as ledger:
        intake = ingest_bounces(settings, warehouse, ledger, run_id=context.run.run_id)
    counts = {name: getattr(intake, name) for name in ("read", "duplicates", "unreadable", "escalated")}
    return dg.MaterializeResult(
        metadata={**counts_metadata(counts), **counts_metadata(intake.events, "events_")}
    )


@dg.definitions
def ingestion() -> dg.Definitions:
    """A source asset for each YAML file and each kind of record of each CRM, and the raw tables downstream of them."""
    settings = CrmSettings.load()
    writers: dict[str, list[dg.AssetKey]] = {table: [] for table in RAW_TABLES}
    assets: list[dg.AssetsDefinition] = []
    for source in load_sources(settings.content_dir).values():
        assets.append(file_source_asset(source))
        for table in TABLES_OF[source.object]:
            writers[table].append(dg.AssetKey(["sources", source.name]))
    for connector in configured(settings):
        for kind in kinds(connector, settings):
            assets.append(crm_asset(connector, kind))
            writers["crm_records"].append(dg.AssetKey(["sources", source_name(connector.name, kind)]))
    writers["crm_records"].append(dg.AssetKey(["crm", "sync"]))
    writers["events"].append(bounces.key)
    # what models of `ml` write beside their own assets, and what people decide by commands; nothing here makes them
    written_elsewhere = [
        dg.AssetSpec(["raw", name], group_name=GROUP, description=description, kinds={"clickhouse"})
        for name, description in WRITTEN_ELSEWHERE.items()
    ]
    return dg.Definitions(
        assets=[*assets, bounces, campaign_files, static_lists, raw_tables(writers), *written_elsewhere]
    )
