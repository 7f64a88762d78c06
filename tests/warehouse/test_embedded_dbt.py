"""The embedded server as unmodified dbt-clickhouse sees it: one small project with every kind of node we use."""

# ruff: noqa: E501 - statements are easier read unbroken

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from warehouse.client import Warehouse
from warehouse.settings import MailhouseSettings

FILES = {
    "dbt_project.yml": """
        name: shop
        version: "1.0"
        profile: shop
        flags: {send_anonymous_usage_stats: false, require_batched_execution_for_custom_microbatch_strategy: false}
        models: {shop: {+persist_docs: {relation: true, columns: true}}}
        seeds: {shop: {+column_types: {amount: "Decimal(18, 2)", ordered_at: "DateTime64(3, 'UTC')"}}}
        """,
    "seeds/raw_orders.csv": """
        order_id,customer,amount,ordered_at
        1,ann,10.50,2011-06-01 10:00:00
        2,bob,20.00,2011-06-02 10:00:00
        3,ann,5.25,2011-06-03 10:00:00
        """,
    "seeds/notes.csv": """
        id,note
        1,"quoted 'text', select file('x') into outfile; drop"
        2,ünïcode ☃
        """,
    "models/orders_view.sql": """
        {{ config(materialized='view') }}
        select order_id, customer, amount, ordered_at from {{ ref('raw_orders') }}
        """,
    "models/orders_table.sql": """
        {{ config(materialized='table', engine='MergeTree()', order_by='(customer, order_id)',
                  settings={'allow_nullable_key': 1}, query_settings={'join_use_nulls': 1}) }}
        -- a comment; with a semicolon and format CSV
        select v.order_id, v.customer, v.amount, v.ordered_at, n.note
        from {{ ref('orders_view') }} v left join {{ ref('notes') }} n on n.id = v.order_id
        """,
    "models/appended.sql": """
        {{ config(materialized='incremental', incremental_strategy='append', order_by='run', engine='MergeTree()') }}
        select {{ var('round') }} as run
        """,
    "models/replaced.sql": """
        {{ config(materialized='incremental', incremental_strategy='insert_overwrite', engine='MergeTree()',
                  partition_by='day', order_by='order_id') }}
        select toDate(ordered_at) as day, order_id, {{ var('round') }} as run from {{ ref('raw_orders') }}
        {% if is_incremental() %} where toDate(ordered_at) >= '2011-06-02' {% endif %}
        """,
    "models/merged.sql": """
        {{ config(materialized='incremental', incremental_strategy='delete+insert', unique_key='order_id',
                  engine='MergeTree()', order_by='order_id', on_schema_change='append_new_columns') }}
        select order_id, amount, {{ var('round') }} as run
        {% if var('round') == 2 %}, 'new' as added {% endif %}
        from {{ ref('raw_orders') }} {% if is_incremental() %} where order_id >= 2 {% endif %}
        """,
    "models/batched.sql": """
        {{ config(materialized='incremental', incremental_strategy='microbatch', event_time='ordered_at',
                  batch_size='day', begin='2011-06-01', unique_key='order_id', order_by='order_id',
                  engine='MergeTree()') }}
        select order_id, ordered_at, {{ var('round') }} as run from {{ ref('orders_view') }}
        """,
    "models/contracted.sql": """
        {{ config(materialized='table', contract={'enforced': true}, order_by='customer', engine='MergeTree()') }}
        select customer, toUInt64(count()) as orders_count, toDecimal64(sum(amount), 2) as revenue
        from {{ ref('orders_table') }} group by customer
        """,
    "models/numbered.sql": """
        {{ config(materialized='table', order_by='n', engine='MergeTree()') }}
        select number as n, format('{} of {}', toString(number), '5') as label
        from numbers(5) where number in (select a from values('a UInt64', 1, 2, 3))
        """,
    "models/schema.yml": """
        version: 2
        models:
          - name: orders_view
            config: {event_time: ordered_at}
          - name: orders_table
            description: "Orders, it's \\"one row\\" an order."
            columns:
              - name: order_id
                description: "The order's number."
                data_tests: [unique, not_null]
              - name: customer
                data_tests:
                  - accepted_values: {arguments: {values: [ann, bob]}}
                  - relationships: {arguments: {to: ref('contracted'), field: customer}, config: {severity: warn}}
          - name: contracted
            columns:
              - {name: customer, data_type: String}
              - {name: orders_count, data_type: UInt64}
              - {name: revenue, data_type: "Decimal(18, 2)"}
        unit_tests:
          - name: revenue_is_a_sum
            model: contracted
            given:
              - input: ref('orders_table')
                rows: [{customer: x, amount: 1.25}, {customer: x, amount: 2.5}]
            expect:
              rows: [{customer: x, orders_count: 2, revenue: 3.75}]
        """,
    "snapshots/orders.yml": """
        snapshots:
          - name: orders_snapshot
            relation: ref('contracted')
            config: {unique_key: customer, strategy: check, check_cols: [revenue]}
        """,
    "tests/no_negative.sql": "select * from {{ ref('orders_table') }} where amount < 0",
    "tests/fails.sql": "{{ config(severity='warn') }} select 1 as x from {{ ref('orders_table') }} where customer = 'ann'",
    "macros/later.sql": """
        {% macro change() %}
          {% do run_query("alter table " ~ ref('raw_orders') ~ " update amount = 99 where order_id = 2 settings mutations_sync = 2") %}
        {% endmacro %}
        """,
}  # fmt: skip

# one process: dbt's own start is most of its time
SCRIPT = """
import json, sys
from dbt.cli.main import dbtRunner
runner = dbtRunner()
outcomes = []
for arguments in json.loads(sys.argv[1]):
    result = runner.invoke(arguments)
    nodes = {r.node.name: str(r.status) for r in result.result if hasattr(r, "node")} if hasattr(result.result, "__iter__") else {}
    outcomes.append({"ok": result.success, "nodes": nodes, "error": str(result.exception or "")})
print("OUTCOMES " + json.dumps(outcomes))
"""


def run_dbt(settings: MailhouseSettings, project: Path) -> list[dict[str, Any]]:
    """Two builds with a change between them, and docs, in one process; what came of each, and docs' catalogue."""
    for name, text in FILES.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    profile: dict[str, Any] = {
        "type": "clickhouse", "driver": "http", "host": "127.0.0.1", "port": settings.warehouse_port,
        "user": "default", "password": "", "schema": "shop", "threads": 4, "use_lw_deletes": True,
    }  # fmt: skip
    (project / "profiles.yml").write_text(
        json.dumps({"shop": {"target": "dev", "outputs": {"dev": profile}}})
    )
    end = ["--event-time-start", "2011-06-01", "--event-time-end", "2011-06-04"]
    commands = [
        ["build", "--vars", "{round: 1}", *end],
        ["run-operation", "change", "--vars", "{round: 2}"],
        ["build", "--vars", "{round: 2}", "--exclude-resource-type", "seed", *end],
        ["docs", "generate", "--vars", "{round: 2}"],
    ]
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        cwd=project, capture_output=True, text=True, timeout=180,
        env={**os.environ, "DO_NOT_TRACK": "1", "DBT_PROFILES_DIR": str(project)},
    )  # fmt: skip
    lines = [line for line in ended.stdout.splitlines() if line.startswith("OUTCOMES ")]
    assert lines, ended.stdout + ended.stderr
    found = json.loads(lines[0].removeprefix("OUTCOMES "))
    if not all(outcome["ok"] for outcome in found):
        print(ended.stdout)
    return [*found, json.loads((project / "target" / "catalog.json").read_text())]


@pytest.mark.slow
def test_dbt_clickhouse_builds_rebuilds_and_documents(
    warehouse_server: MailhouseSettings, tmp_path: Path
) -> None:
    """One test, for dbt's own start is most of its time."""
    *outcomes, catalog = run_dbt(warehouse_server, tmp_path)

    assert [outcome["ok"] for outcome in outcomes] == [True] * 4, outcomes
    statuses = outcomes[0]["nodes"]
    assert {name: s for name, s in statuses.items() if s not in ("success", "pass")} == {"fails": "warn"}
    assert statuses["revenue_is_a_sum"] == "pass"
    assert len(statuses) >= 18

    with Warehouse.connect(warehouse_server) as shop:
        notes = shop.frame("select note from shop.notes order by id")["note"].to_list()
        assert notes == ["quoted 'text', select file('x') into outfile; drop", "ünïcode ☃"]
        # join_use_nulls of the model held: the third order has no note
        assert shop.value("select count() from shop.orders_table where note is null") == 1
        labels = shop.frame("select label from shop.numbered order by n")["label"].to_list()
        assert labels == ["1 of 5", "2 of 5", "3 of 5"]

        # each incremental strategy: which run the rows are from
        for table, key, runs in (
            ("appended", "run", [1, 2]),
            ("replaced", "order_id", [1, 2, 2]),
            ("merged", "order_id", [1, 2, 2]),
            ("batched", "order_id", [2, 2, 2]),
        ):
            found = shop.frame(f"select run from shop.{table} order by {key}")["run"].to_list()
            assert found == runs, table
        assert shop.value("select count() from shop.merged where added = 'new'") == 2

        # the snapshot keeps the old version
        rows = shop.frame(
            "select toFloat64(revenue) as revenue, dbt_valid_to is null as is_current from shop.orders_snapshot "
            "where customer = 'bob' order by is_current"
        )
        assert rows.rows() == [(20.0, 0), (99.0, 1)]

        assert set(catalog["nodes"]["model.shop.contracted"]["columns"]) == {
            "customer",
            "orders_count",
            "revenue",
        }
        comment = shop.value(
            "select comment from system.columns "
            "where database = 'shop' and table = 'orders_table' and name = 'order_id'"
        )
        assert comment == "The order's number."
