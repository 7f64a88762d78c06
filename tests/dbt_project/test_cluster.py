"""The same project for a ClickHouse cluster: every table on every node, kept by all replicas; nothing of it otherwise.

A real run of the project, as dbt would run it against a cluster, with what it sends written down. What the embedded
engine has no cluster for (ON CLUSTER, Replicated engines, replicas to wait for) is taken out on the way, so that
exchanges, replaced partitions and all other statements are carried out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from models import Models, dbt, environment

from orchestration.lib.dbt_runs import dbt_environment, failure_text
from warehouse.client import Warehouse
from warehouse.cluster import Cluster
from warehouse.schema import MIGRATIONS, migrate
from warehouse.settings import MailhouseSettings

PREFIX = "cluster_test_"
pytestmark = pytest.mark.slow

CLUSTER = "mail"
ON_CLUSTER = f'ON CLUSTER "{CLUSTER}"'
REPLICATED_DATABASE = "Replicated('/clickhouse/databases/{database}', '{shard}', '{replica}')"
DATABASES = ("staging", "intermediate", "marts", "features", "segments", "metrics", "bi")

DDL = re.compile(r"^\s*(create|drop|rename|exchange|alter|truncate|attach|detach|system)\b", re.IGNORECASE)
TABLE = re.compile(r"^\s*create\s+table\s+(?:if\s+not\s+exists\s+)?`(\w+)`\.`(\w+)`", re.IGNORECASE)
ENGINE = re.compile(r"\bengine\s*=\s*(\w+)", re.IGNORECASE)
# a replicated table carries these to its replicas itself
CARRIED_BY_THE_TABLE = re.compile(
    r"\b(replace|drop|move|attach)\s+partition\b|\bupdate\b|\bdelete\b", re.IGNORECASE
)
QUERY_COMMENT = re.compile(r"^\s*/\*.*?\*/", re.DOTALL)
# the adapter tries once whether the server it talks to can exchange tables
PROBE = "__dbt_exchange_test"


def for_one_server(sql: str) -> str:
    """A statement for a cluster as an engine without one can run it."""
    sql = re.sub(r'on\s+cluster\s+"\w+"', " ", sql, flags=re.IGNORECASE)
    sql = re.sub(r"engine\s*=?\s*Replicated\('[^)]*\)", " ", sql, flags=re.IGNORECASE)
    sql = re.sub(r"\bReplicated(\w*MergeTree)\b(?:\('[^)]*\))?", r"\1", sql)
    sql = re.sub(
        r'clusterAllReplicas\("\w+", system.tables\)', "(select *, 1 as _shard_num from system.tables)", sql
    )
    return "select 1" if re.match(r"\s*system\s+sync\s+replica", sql, re.IGNORECASE) else sql


class Recorded:
    """Runs of the project on the shared engine; what they send is in `statements`."""

    statements: ClassVar[list[str]] = []

    def __init__(self, server: MailhouseSettings, manifest: Any, target: Path) -> None:
        self.server, self.manifest, self.target = server, manifest, target

    def run(self, *args: str, **cluster: str) -> list[str]:
        """Statements of one run of all seeds and models."""
        settings = self.server.model_copy(update=cluster)
        self.statements.clear()
        with environment(dbt_environment(settings)):
            result = dbt(
                ["build", "--exclude-resource-type", "unit_test", "test", "--no-write-json", *args],
                self.target,
                manifest=self.manifest,
            )
        if not result.success:
            pytest.fail(failure_text(result))
        return list(self.statements)


@pytest.fixture(scope="module")
def recorded(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """The project parsed for databases of its own, and dbt's client listened to."""
    from dbt.adapters.clickhouse import dbclient, httpclient

    def noted(sql: str) -> str:
        Recorded.statements.append(QUERY_COMMENT.sub("", sql))
        return Recorded.statements[-1]

    class Listening(httpclient.ChHttpClient):
        def query(self, sql: str, **options: Any) -> Any:
            return super().query(for_one_server(noted(sql)), **options)

        def command(self, sql: str, **options: Any) -> Any:
            return super().command(for_one_server(noted(sql)), **options)

    target = tmp_path_factory.mktemp("cluster")
    variables = json.dumps({"database_prefix": PREFIX})
    parsed = dbt(["parse", "--vars", variables], target)
    assert parsed.success, parsed.exception
    drop = [f"drop database if exists {PREFIX}{name}" for name in DATABASES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(httpclient, "ChHttpClient", Listening)
        patch.setattr(dbclient, "_exchange_result", None)
        for statement in drop:
            models.warehouse.execute(statement)
        yield Recorded(models.settings, parsed.result, target)
        for statement in drop:
            models.warehouse.execute(statement)


@pytest.fixture(scope="module")
def runs(recorded: Recorded) -> dict[str, list[str]]:
    """What is sent when nothing exists, when everything does, at a full refresh, and to a single server."""
    mail = {"warehouse_cluster": CLUSTER}
    # what dbt sends for a model that exists depends on how it is materialised, and on its hooks
    examples = ("--select", *example_nodes(recorded.manifest))
    return {
        "first": recorded.run("--exclude", "path:models/bi", **mail),
        "next": recorded.run(*examples, **mail),
        "full": recorded.run(*examples, "--full-refresh", **mail),
        "single": recorded.run(*examples, "--full-refresh"),
    }


def ddl(statements: list[str]) -> list[str]:
    return [one for one in statements if DDL.match(one) and PROBE not in one]


def created(statements: list[str]) -> dict[str, str]:
    """Tables made, with the engine of each."""
    tables = {}
    for statement in ddl(statements):
        if found := TABLE.match(statement):
            engine = ENGINE.search(statement)
            assert engine, statement
            tables[found[2]] = engine[1]
    return tables


def stored_nodes(manifest: Any) -> set[str]:
    """Models and seeds that are tables."""
    return {
        node.name
        for node in manifest.nodes.values()
        if node.resource_type == "seed"
        or (node.resource_type == "model" and node.config.materialized not in ("view", "ephemeral"))
    }


def example_nodes(manifest: Any) -> list[str]:
    """Two models of each kind that dbt makes in its own way, and all that have hooks."""
    kinds: dict[Any, list[str]] = {}
    hooked = []
    for node in sorted(manifest.nodes.values(), key=lambda node: node.name):
        if node.resource_type == "model" and node.fqn[1] != "bi":
            strategy = node.config.get("incremental_strategy"), node.config.contract.enforced
            kinds.setdefault((node.config.materialized, *strategy), []).append(node.name)
            if node.config.post_hook or node.config.pre_hook:
                hooked.append(node.name)
    return sorted({*hooked, *(name for names in kinds.values() for name in names[:2])})


def test_every_table_is_kept_by_all_replicas(runs: dict[str, list[str]], recorded: Recorded) -> None:
    tables = created(runs["first"])
    assert stored_nodes(recorded.manifest) <= set(tables)
    for run in ("first", "next", "full"):
        local = {
            name: engine
            for name, engine in created(runs[run]).items()
            if not re.fullmatch(r"Replicated\w*MergeTree", engine)
        }
        assert local == {}, run


def test_every_statement_about_a_table_runs_on_every_node(runs: dict[str, list[str]]) -> None:
    for run in ("first", "next", "full"):
        alone = [
            one
            for one in ddl(runs[run])
            if ON_CLUSTER not in one and not CARRIED_BY_THE_TABLE.search(one.split("$dbt_comment")[0])
        ]
        assert alone == [], run


def test_partitions_and_exchanges_are_among_what_was_seen(
    runs: dict[str, list[str]], recorded: Recorded
) -> None:
    exchanged = [one for one in runs["next"] if re.match(r"\s*exchange\s+tables", one, re.IGNORECASE)]
    synced = [one for one in runs["next"] if re.match(r"\s*system\s+sync\s+replica", one, re.IGNORECASE)]
    assert len(exchanged) >= 4
    # whoever reads from another replica after the exchange must find the rows there
    assert len(synced) == len(exchanged)
    examples = example_nodes(recorded.manifest)
    replaced = [
        node.name
        for node in recorded.manifest.nodes.values()
        if node.name in examples and node.config.get("incremental_strategy") == "insert_overwrite"
    ]
    # where nothing is due nothing is asked
    made = {
        name
        for name in replaced
        if any(f"`{name}__dbt_new_data_" in one and TABLE.match(one) for one in runs["next"])
    }
    assert made
    for name in made:
        dropped = [one for one in runs["next"] if f"`{name}__dbt_new_data_" in one and DDL.match(one)]
        assert any(one.lower().lstrip().startswith("drop") for one in dropped), name


def test_a_single_server_gets_none_of_it(runs: dict[str, list[str]]) -> None:
    assert created(runs["single"])
    for statement in runs["single"]:
        bare = statement.split("$dbt_comment")[0]
        assert not re.search(r"on\s+cluster|\breplicated\w*mergetree|sync\s+replica", bare, re.IGNORECASE)


def test_the_engine_reads_every_statement(runs: dict[str, list[str]], models: Models) -> None:
    for run in ("first", "next", "full"):
        for statement in ddl(runs[run]):
            models.warehouse.value("select formatQuery({sql:String})", {"sql": statement})


def test_a_replicated_database_carries_its_tables_itself(recorded: Recorded, models: Models) -> None:
    models.warehouse.execute(f"drop database if exists {PREFIX}staging")
    sent = recorded.run(
        "--select",
        "engagement_weights",
        "rfm_segments",
        warehouse_cluster=CLUSTER,
        warehouse_database_engine=REPLICATED_DATABASE,
        warehouse_replica_path="/not/allowed/there",
    )
    databases = [one for one in ddl(sent) if re.match(r"\s*create\s+database", one, re.IGNORECASE)]
    assert databases
    assert all(ON_CLUSTER in one and "ENGINE Replicated(" in one for one in databases)
    assert set(created(sent).values()) == {"ReplicatedMergeTree"}
    for statement in ddl(sent):
        if TABLE.match(statement):
            assert ON_CLUSTER not in statement
            assert "/not/allowed" not in statement


class Sent(Warehouse):
    """A warehouse that writes down what it is asked to run and passes it on to the embedded engine."""

    def execute(self, sql: str, parameters: Any = None) -> None:
        self.__dict__.setdefault("statements", []).append(sql)
        super().execute(for_one_server(sql), parameters)


def test_raw_tables_are_kept_by_all_replicas(warehouse: Warehouse) -> None:
    warehouse.execute("drop database raw")
    with Sent(warehouse.address, cluster=Cluster(CLUSTER, replica_path="/tables/{uuid}/mail")) as sent:
        migrate(sent)
        statements = ddl(sent.__dict__["statements"])
    written = sum(len(migration.statements) for migration in MIGRATIONS)
    assert len(statements) == written + 2
    for statement in statements:
        assert f'on cluster "{CLUSTER}"' in statement
        if "create table" in statement:
            # those that keep the latest row name its time, too
            assert re.search(
                r"engine = Replicated(Replacing)?MergeTree\('/tables/\{uuid\}/mail', '\{replica\}'[,)]",
                statement,
            )
        warehouse.value("select formatQuery({sql:String})", {"sql": statement})


def test_one_server_runs_raw_ddl_as_it_is_written() -> None:
    for migration in MIGRATIONS:
        for statement in migration.statements:
            assert Cluster().ddl(statement) == statement


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("MergeTree", "ReplicatedMergeTree()"),
        ("ReplacingMergeTree(rebuilt_at)", "ReplicatedReplacingMergeTree(rebuilt_at)"),
        ("AggregatingMergeTree()", "ReplicatedAggregatingMergeTree()"),
        ("ReplicatedMergeTree('/a', 'b')", "ReplicatedMergeTree('/a', 'b')"),
        ("Memory", "Memory"),
    ],
)
def test_engines(engine: str, expected: str) -> None:
    statement = "create table if not exists a.b (c String) engine = {} order by c"
    in_database = Cluster(CLUSTER, REPLICATED_DATABASE, replica_path="/x").ddl(statement.format(engine))
    assert in_database == statement.format(expected)
