"""What ClickHouse makes of messages from Kafka: the views as they are, over a table that stands in for the topic."""

from __future__ import annotations

import json

import pytest
from click.testing import Result
from typer.testing import CliRunner

from gateway.kafka import statements, views
from gateway.keys import Keys
from gateway.settings import GatewaySettings
from mailhouse.gateway import app
from warehouse.client import Warehouse
from warehouse.errors import InputError

GOOD = {"event_id": "k1", "type": "cart.updated", "email": "a@b.example", "occurred_at": "2026-06-27T09:00:00+02:00",
        "properties": {"cart_value": 5}}  # fmt: skip


def test_messages_become_events_or_are_quarantined(warehouse: Warehouse) -> None:
    warehouse.execute(
        "create table raw.kafka_events (message String, _topic String, _partition UInt64, _offset UInt64,"
        " _timestamp_ms Nullable(DateTime64(3))) engine = Null"
    )
    for statement in views("raw.kafka_events"):
        warehouse.execute(statement)
    messages = [
        GOOD, {"type": "page.viewed", "anonymous_id": "v", "source": "app"}, {**GOOD, "type": "clicked"},
        {"type": "a.b"}, {**GOOD, "email": "x"}, {**GOOD, "occurred_at": "soon"}, {**GOOD, "properties": [1]},
    ]  # fmt: skip
    texts = [
        *map(json.dumps, messages),
        "no json",
        '{"type":"a.b","email":"a@b.example","properties":{"a":1,"a":2}}',
    ]
    for number, text in enumerate(texts):
        warehouse.execute(
            "insert into raw.kafka_events select {text:String}, 'clicks', 3, {number:UInt64}, now64(3)",
            {"text": text, "number": number},
        )
    rows = warehouse.frame(
        "select event_id, type, source, toString(occurred_at) as at, toJSONString(properties) as said"
        " from raw.events order by type"
    ).to_dicts()
    assert [(row["type"], row["source"], row["said"]) for row in rows] == [
        ("cart.updated", "clicks", '{"cart_value":5}'), ("page.viewed", "app", "{}"),
    ]  # fmt: skip
    assert (rows[0]["event_id"], rows[0]["at"]) == ("k1", "2026-06-27 07:00:00.000")
    bad = warehouse.frame("select file, line, reason from raw.quarantined_rows order by line")
    assert bad["line"].to_list() == [2, 3, 4, 5, 6, 7, 8]
    assert set(bad["file"]) == {"clicks/3"}


def test_names_that_cannot_be_are_refused() -> None:
    assert "kafka_topic_list = 'clicks'" in statements("a:9092,b:9092", "clicks")[0]
    for brokers, topic in (("a", "t"), ("a:1'", "t"), ("a:1", "t'; drop"), ("a:1", "")):
        with pytest.raises(InputError):
            statements(brokers, topic)


def test_the_command_makes_keys_and_prints_statements(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    first = run("key", "website", "--per-second", "50")
    assert first.exit_code == 0, first.output
    line = next(line for line in first.output.splitlines() if line.startswith("MAILHOUSE_GATEWAY_KEYS="))
    keys = line.partition("=")[2].strip("'")
    assert json.loads(keys)["website"]["per_second"] == 50
    key = first.output.partition("once: ")[2].split()[0]
    assert key.startswith("mh_") and key not in line
    monkeypatch.setenv("MAILHOUSE_GATEWAY_KEYS", keys)
    assert Keys(GatewaySettings.load().gateway_keys).find(key) is not None
    again = run("key", "website")
    assert isinstance(again.exception, InputError) and "already" in str(again.exception)
    assert set(json.loads(run("key", "app").output.partition("KEYS='")[2].partition("'")[0])) == {
        "website",
        "app",
    }
    assert "create materialized view" in run("kafka", "k:9092", "clicks").output
