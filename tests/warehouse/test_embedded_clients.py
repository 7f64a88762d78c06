"""The embedded server as unmodified clickhouse-connect sees it."""

from __future__ import annotations

import datetime as dt
import decimal
import ipaddress
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clickhouse_connect
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData

from warehouse.settings import MailhouseSettings

Connect = Callable[..., Any]


@pytest.fixture(scope="module")
def connect(warehouse_server: MailhouseSettings) -> Iterator[Connect]:
    """Opens clients on the shared server; closes them at the end."""
    opened: list[Any] = []

    def open_client(**options: Any) -> Any:
        options.setdefault("autogenerate_session_id", False)
        client = clickhouse_connect.get_client(
            host="127.0.0.1", port=warehouse_server.warehouse_port, **options
        )
        opened.append(client)
        return client

    admin = open_client()
    admin.command("create database if not exists clients")
    yield open_client
    for client in opened:
        client.close()


@pytest.fixture(scope="module")
def client(connect: Connect) -> Any:
    """A client whose database is `clients`."""
    return connect(database="clients")


TYPES: list[tuple[str, Any]] = [
    ("Int8", -128),
    ("UInt64", 2**64 - 1),
    ("Int256", -(2**255)),
    ("Float64", 0.1),
    ("Decimal(18, 2)", decimal.Decimal("12345.67")),
    ("Bool", True),
    ("String", "naïve ☃\t\n'\\"),
    ("FixedString(3)", b"abc"),
    ("Date", dt.date(2011, 6, 27)),
    ("DateTime64(3, 'UTC')", dt.datetime(2011, 6, 27, 9, 30, 0, 123000)),
    ("UUID", uuid.UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")),
    ("Nullable(Int32)", None),
    ("LowCardinality(String)", "low"),
    ("Array(Nullable(String))", ["a", None, ""]),
    ("Map(String, Array(UInt8))", {"k": [1, 2]}),
    ("Tuple(Int8, String)", (1, "x")),
    ("Enum8('a' = 1, 'b' = 2)", "b"),
    ("IPv4", ipaddress.IPv4Address("10.0.0.1")),
    ("JSON", {"a": {"b": 1}, "c": "text"}),
]


def test_types_come_back_as_they_went_in(client: Any) -> None:
    columns = ", ".join(f"c{place} {kind}" for place, (kind, _) in enumerate(TYPES))
    client.command(f"create or replace table types ({columns}) engine = MergeTree order by tuple()")
    client.insert("types", [[value for _, value in TYPES]])

    (row,) = client.query("select * from types").result_rows
    for (kind, expected), found in zip(TYPES, row, strict=True):
        found = found.replace(tzinfo=None) if isinstance(found, dt.datetime) else found
        assert found == expected, kind


@pytest.mark.parametrize("compression", [False, "lz4", "zstd", "gzip"])
def test_large_inserts_of_several_blocks_lose_no_row(connect: Connect, compression: str | bool) -> None:
    client = connect(database="clients", compress=compression)
    client.command("create or replace table blocks (a Int64, s String) engine = MergeTree order by a")
    rows = 250_000
    # clickhouse-connect cuts this into several blocks, and compresses each as a frame of its own
    client.insert(
        "blocks", [list(range(rows)), [f"row {n}" * 3 for n in range(rows)]],
        column_names=["a", "s"], column_oriented=True,
    )  # fmt: skip

    assert client.query("select count(), uniqExact(a), sum(a) from blocks").result_rows == [
        (rows, rows, rows * (rows - 1) // 2)
    ]
    assert sorted(client.query("select a from blocks").result_columns[0]) == list(range(rows))


def test_arrow_goes_in_and_out_and_streams(client: Any) -> None:
    client.command(
        "create or replace table arrow (a Int64, s Nullable(String)) engine = MergeTree order by a"
    )
    sent = pa.table({"a": list(range(200_000)), "s": [None if n % 3 else str(n) for n in range(200_000)]})
    client.insert_arrow("arrow", sent)

    text = {"output_format_arrow_string_as_string": "1"}
    assert client.query_arrow("select * from arrow order by a", settings=text).to_pydict() == sent.to_pydict()
    with client.query_arrow_stream(
        "select * from arrow order by a", settings={**text, "max_block_size": "10000"}
    ) as stream:
        batches = list(stream)
    assert len(batches) > 5
    tables = [pa.Table.from_batches([b]) if isinstance(b, pa.RecordBatch) else b for b in batches]
    assert pa.concat_tables(tables).to_pydict() == sent.to_pydict()


def test_an_arrow_stream_without_rows_still_has_columns(client: Any) -> None:
    table = client.query_arrow("select 1 as a, 'x' as b where 0")
    assert (table.num_rows, table.column_names) == (0, ["a", "b"])


def test_low_cardinality_streams_as_one_arrow_dictionary_stream(client: Any) -> None:
    sql = "select toLowCardinality(toString(number % 7)) as c from numbers(100000)"
    settings = {"output_format_arrow_low_cardinality_as_dictionary": "1", "max_block_size": "20000"}
    table = client.query_arrow(sql, settings=settings)
    assert table.num_rows == 100_000
    assert set(table["c"].to_pylist()) in ({str(n) for n in range(7)}, {str(n).encode() for n in range(7)})


def test_rows_stream_in_blocks(client: Any) -> None:
    with client.query_row_block_stream(
        "select number from numbers(500000)", settings={"max_block_size": "50000"}
    ) as stream:
        sizes = [len(block) for block in stream]
    assert sum(sizes) == 500_000
    assert len(sizes) >= 5


@pytest.mark.parametrize(
    "sql",
    ["select 1 as a, 'x' as b limit 0", "select number as a, 's' as b from numbers(9) where number > 99"],
)
def test_an_answer_without_rows_has_its_columns(client: Any, sql: str) -> None:
    result = client.query(sql)
    assert (result.column_names, result.result_rows) == (("a", "b"), [])


def test_columns_of_a_query_are_told_without_running_it(client: Any) -> None:
    endless = "select number from numbers(20000000000)"
    # a scalar sub-query is computed by the engine even when it only describes; sets and joins are not
    heavy = f"select a, (select max(number) from numbers(9)) as b from (select 1 as a) where a in ({endless})"
    result = client.query(f"SELECT * FROM ( \n{heavy} \n) LIMIT 0", settings={"max_execution_time": "20"})
    assert result.column_names == ("a", "b")
    assert result.column_types[0].name == "UInt8"


def test_parameters(client: Any) -> None:
    sql = "select {text:String} as t, {list:Array(Int64)} as l, {maybe:Nullable(Int64)} as m from {db:Identifier}.one"
    found = client.query(sql, parameters={"text": "it's\t\\n", "list": [1, 2], "maybe": None, "db": "system"})
    assert found.result_rows == [("it's\t\\n", [1, 2], None)]
    client.command("create or replace table bound (a Int64, s String) engine = MergeTree order by a")
    client.command("insert into bound values ({a:Int64}, {s:String})", parameters={"a": 7, "s": "o'b"})
    assert client.query("select * from bound").result_rows == [(7, "o'b")]


def test_external_tables(client: Any) -> None:
    data = ExternalData(
        file_name="people.csv", fmt="CSV", structure=["id Int64", "name String"], data=b"1,ann\n2,bob\n"
    )
    data.add_file(file_name="ids.tsv", fmt="TSV", types="Int64", data=b"2\n")
    sql = "select name from people where id in (select _1 from ids) and id = {id:Int64}"
    assert client.query(sql, parameters={"id": 2}, external_data=data).result_rows == [("bob",)]
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.query("select * from people")


def test_a_session_keeps_temporary_tables_settings_and_database(connect: Connect) -> None:
    session = connect(session_id=f"s{uuid.uuid4()}")
    session.command("create temporary table kept (a Int64)")
    session.command("insert into kept values (1), (1 + 1)")
    session.command("set max_threads = 3")
    session.command("use system")
    assert session.query("select a from kept order by a").result_rows == [(1,), (2,)]
    assert session.query("select getSetting('max_threads'), currentDatabase()").result_rows == [(3, "system")]

    once = session.query("select getSetting('max_threads')", settings={"max_threads": 1}).result_rows
    assert once == [(1,)]
    assert session.query("select getSetting('max_threads')").result_rows == [(3,)]

    other = connect(session_id=f"s{uuid.uuid4()}")
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        other.query("select a from kept")


def test_settings_hold_for_one_query_and_leave_no_trace_in_the_pool(client: Any) -> None:
    before = client.query("select getSetting('max_block_size')").result_rows
    for _ in range(3):
        changed = client.query(
            "select getSetting('max_block_size')", settings={"max_block_size": 77}
        ).result_rows
        assert changed == [(77,)]
    with pytest.raises(DatabaseError):
        client.query("select throwIf(1)", settings={"max_block_size": 78})
    client.command("set max_block_size = 79")
    assert [client.query("select getSetting('max_block_size')").result_rows for _ in range(8)] == [before] * 8


@pytest.mark.parametrize(
    ("sql", "code", "name"),
    [
        ("select nope", 47, "UNKNOWN_IDENTIFIER"),
        ("select * from nowhere", 60, "UNKNOWN_TABLE"),
        ("selec 1", 62, "SYNTAX_ERROR"),
        ("select throwIf(1, 'mine')", 395, "FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        ("select 1 settings no_such_setting = 1", 115, "UNKNOWN_SETTING"),
        ("drop table nowhere", 60, "UNKNOWN_TABLE"),
    ],
)
def test_errors_have_clickhouses_code_and_name(client: Any, sql: str, code: int, name: str) -> None:
    with pytest.raises(
        DatabaseError, match=rf"Code: {code}\. DB::Exception: (?s:.*)\({name}\) \(version"
    ) as caught:
        client.command(sql)
    assert "query_id=" not in str(caught.value)


@pytest.mark.parametrize("compression", [False, "lz4", "zstd"])
def test_an_error_in_the_midst_of_a_stream_reaches_the_reader(
    connect: Connect, compression: str | bool
) -> None:
    client = connect(compress=compression)
    rows = 0
    with (
        pytest.raises(StreamFailureError, match="FUNCTION_THROW_IF_VALUE_IS_NON_ZERO"),
        client.query_row_block_stream("select throwIf(number = 900000) from numbers(1000000)") as stream,
    ):
        for block in stream:
            rows += len(block)
    assert 0 < rows <= 900_000


def test_a_broken_insert_leaves_nothing(client: Any) -> None:
    client.command("create or replace table broken (a Int64) engine = MergeTree order by a")
    with pytest.raises(DatabaseError, match="CANNOT_PARSE"):
        client.raw_insert("broken", insert_block=b"1\n2\nthree\n", fmt="TSV")
    with pytest.raises(DatabaseError, match="UNKNOWN_TABLE"):
        client.raw_insert("no_such_table", insert_block=b"1\n" * 500_000, fmt="TSV")
    assert client.command("select count() from broken") == 0


def test_queries_run_at_the_same_time(connect: Connect) -> None:
    clients = [connect() for _ in range(6)]
    found: list[Any] = []

    def ask(number: int) -> None:
        sql = f"select {number}, sleep(0.5), currentDatabase()"
        found.append(clients[number].query(sql, settings={"max_threads": number + 1}).result_rows[0][0])

    started = time.monotonic()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(6))
    assert time.monotonic() - started < 2.5  # one after the other would be 3.0


@pytest.mark.parametrize(
    "sql", ["select sum(sleepEachRow(0.1)) from numbers(600)", "select sleepEachRow(0.1) from numbers(600)"]
)
def test_the_query_of_a_client_that_left_is_cancelled(connect: Connect, client: Any, sql: str) -> None:
    mark = uuid.uuid4().hex
    running = (
        f"select count() from system.processes where query like '%{mark}%' and query not like '%processes%'"
    )
    seen: list[int] = []

    def leave() -> None:
        with pytest.raises(OperationalError):
            connect(send_receive_timeout=1).query(f"{sql} /* {mark} */ settings max_block_size = 1")
        seen.append(1)

    thread = threading.Thread(target=leave)
    thread.start()
    deadline = time.monotonic() + 0.9
    while client.command(running) == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert client.command(running) == 1
    thread.join()
    deadline = time.monotonic() + 5
    while client.command(running) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (seen, client.command(running)) == ([1], 0)


def test_a_result_far_larger_than_a_block_is_not_held_whole(
    client: Any, warehouse_server: MailhouseSettings
) -> None:
    """600 MB read slowly: the server's memory must not grow by anything like that."""
    from warehouse.embedded.launcher import data_path
    from warehouse.embedded.process import read_info

    info = read_info(data_path(warehouse_server))
    assert info is not None

    def resident() -> int:
        return int(Path(f"/proc/{info.pid}/statm").read_text().split()[1]) * 4096

    before, peak, size = resident(), 0, 0
    with client.raw_stream(
        "select repeat('x', 1000) from numbers(600000)",
        fmt="TSV",
        settings={"max_threads": 1, "max_block_size": 8192},
    ) as stream:
        while piece := stream.read(1 << 20):
            size += len(piece)
            peak = max(peak, resident()) if size % (20 << 20) < (1 << 20) else peak
    assert size > 600_000_000
    assert peak - before < 300_000_000
