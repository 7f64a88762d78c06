"""What campaigns are set out to do, as rows: every version of every spec, so that marts know goals and channels.

Files are the source; a row is written when a version is seen that is not the newest one recorded of its name. So a spec
that is changed and changed back is three rows, and recording the same files again writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import polars as pl

from campaigns.specs import CampaignSpec
from warehouse.client import Warehouse

KIND = "campaign"


def record_specs(warehouse: Warehouse, specs: Iterable[CampaignSpec]) -> int:
    """Write to `raw.campaigns` what has changed since it was last written; returns the number of rows.

    Raises:
        WarehouseError: the warehouse does not answer, or its raw tables have not been made.
    """
    return record_rows(warehouse, KIND, [_row(spec) for spec in specs])


def record_rows(warehouse: Warehouse, kind: str, rows: Iterable[dict[str, str | int]]) -> int:
    """Write rows of one kind to `raw.campaigns` whose version is not the newest recorded of their name.

    Raises:
        WarehouseError: as `record_specs`.
    """
    newest = warehouse.frame(
        """
        select name, argMax(version, loaded_at) as version
        from raw.campaigns where kind = {kind:String} group by name
        """,
        {"kind": kind},
    )
    known = dict(newest.iter_rows())
    changed = [row for row in rows if known.get(row["name"]) != row["version"]]
    return warehouse.insert("raw.campaigns", pl.DataFrame(changed))


def _row(spec: CampaignSpec) -> dict[str, str | int]:
    placed = spec.placed_experiment()
    return {
        "kind": KIND,
        "name": spec.name,
        "version": spec.version,
        "description": spec.description,
        "channel": spec.send.channel,
        "category": spec.send.category,
        "segment": spec.audience.segment,
        "goal_event": spec.goal.event if spec.goal else "",
        "goal_where": "",
        "goal_within_seconds": int(spec.goal.within.total_seconds()) if spec.goal else 0,
        "experiment": placed.name if placed else "",
        "spec": json.dumps(spec.model_dump(mode="json", exclude_defaults=True)),
    }
