"""DDL for a ClickHouse cluster: the same statements, run on every node, with tables that are kept on every replica.

Statements are written for one server (`warehouse.schema`). On a cluster of replicas each is sent once, `on cluster`,
and each `MergeTree` becomes its replicated form. dbt does the same for its models (`dbt_project/macros/engine.sql`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_DATABASE = re.compile(
    r"^\s*(?:create|drop)\s+database\s+(?:if\s+(?:not\s+)?exists\s+)?[\w.`]+", re.IGNORECASE
)
_TABLE = re.compile(
    r"^\s*(?:(?:create|drop|truncate)\s+table\s+(?:if\s+(?:not\s+)?exists\s+)?|alter\s+table\s+)[\w.`]+",
    re.IGNORECASE,
)
_ENGINE = re.compile(r"(\bengine\s*=\s*)(\w*MergeTree)\b(?:\s*\(([^()]*)\))?", re.IGNORECASE)


@dataclass(frozen=True)
class Cluster:
    """How tables are spread: not at all (the default), or kept whole on every replica of a cluster.

    Attributes:
        name: the cluster, as `system.clusters` calls it; statements run ON CLUSTER.
        database_engine: engine of databases, e.g. `Replicated('/clickhouse/databases/{database}', '{shard}',
            '{replica}')`; such a database passes its own DDL on.
        replica_path: path of a table in the keeper; the server's `default_replica_path` if empty.
        replica_name: a replica's name under that path.
    """

    name: str = ""
    database_engine: str = ""
    replica_path: str = ""
    replica_name: str = "{replica}"

    @property
    def has_replicas(self) -> bool:
        """Whether tables are replicated."""
        return bool(self.name) or self._is_database_replicated

    @property
    def _is_database_replicated(self) -> bool:
        return self.database_engine.startswith("Replicated")

    def ddl(self, statement: str) -> str:
        """A statement for one server as this cluster needs it; what is no DDL stays as it is."""
        where = f' on cluster "{self.name}"' if self.name else ""
        if found := _DATABASE.match(statement):
            engine = f" engine = {self.database_engine}" if self.database_engine else ""
            is_creation = statement.lstrip()[:6].lower() == "create"
            return f"{found[0]}{where}{engine if is_creation else ''}{statement[found.end() :]}"
        found = _TABLE.match(statement)
        if found is None or not self.has_replicas:
            return statement
        if self._is_database_replicated:
            where = ""
        return f"{found[0]}{where}{_ENGINE.sub(self._replicated, statement[found.end() :])}"

    def _replicated(self, engine: re.Match[str]) -> str:
        family, own = engine[2], (engine[3] or "").strip()
        if family.startswith(("Replicated", "Shared")):
            return engine[0]
        places = [f"'{self.replica_path}'", f"'{self.replica_name}'"]
        arguments = [
            *(places if self.replica_path and not self._is_database_replicated else []),
            *([own] if own else []),
        ]
        return f"{engine[1]}Replicated{family}({', '.join(arguments)})"
