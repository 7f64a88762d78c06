"""The embedded server's HTTP protocol, byte by byte, and its refusals. No ClickHouse client in between."""

# ruff: noqa: E501 - statements are easier read unbroken

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import lz4.frame
import pytest
import zstandard
from pydantic import SecretStr

from warehouse.embedded import launcher
from warehouse.embedded.launcher import RunningServer, free_port
from warehouse.settings import MailhouseSettings

OWNER = ("default", "owner's pässword")
READER = ("grafana", "reader's")
MASKED = ("superset", "m4sked")


@pytest.fixture(scope="module")
def http(warehouse_server: MailhouseSettings) -> Iterator[httpx.Client]:
    """A client on the shared server, which has no password."""
    with httpx.Client(base_url=f"http://127.0.0.1:{warehouse_server.warehouse_port}", timeout=30) as client:
        client.post("/", content="create database if not exists http").raise_for_status()
        yield client


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with a password, a reader, and a small memory limit."""
    port = free_port()
    settings = MailhouseSettings(
        home=tmp_path_factory.mktemp("guarded"),
        warehouse_port=port,
        warehouse_password=SecretStr(OWNER[1]),
        warehouse_readers={READER[0]: SecretStr(READER[1]), MASKED[0]: SecretStr(MASKED[1])},
        warehouse_personal_readers=READER[0],
    )
    with launcher.start(settings, options={"memory-mb": "900"}) as server:
        yield server


def asking(server: RunningServer, user: tuple[str, str] | None) -> httpx.Client:
    """A client of a server as a user."""
    headers = {} if user is None else {"X-ClickHouse-User": user[0], "X-ClickHouse-Key": user[1].encode()}
    return httpx.Client(
        base_url=server.settings.warehouse.url, timeout=30,
        headers=[(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers.items()],
    )  # fmt: skip


@pytest.fixture(scope="module")
def owner(guarded: RunningServer) -> Iterator[httpx.Client]:
    """The owner of the guarded server, with a table `t` of three rows."""
    with asking(guarded, OWNER) as client:
        for statement in (
            "create table t (a Int64) engine = MergeTree order by a",
            "insert into t values (1), (2), (3)",
        ):
            client.post("/", content=statement).raise_for_status()
        yield client


@pytest.fixture(scope="module")
def reader(guarded: RunningServer, owner: httpx.Client) -> Iterator[httpx.Client]:
    """The reader of the guarded server."""
    with asking(guarded, READER) as client:
        yield client


def code_of(response: httpx.Response) -> int:
    """The error code, checked to be the same in header and text, in ClickHouse's shape."""
    code = int(response.headers["x-clickhouse-exception-code"])
    assert response.text.startswith(f"Code: {code}. DB::Exception: ")
    assert response.text.endswith(" (official build))\n")
    return code


# The protocol -----------------------------------------------------------------------------------------------------


def test_health_checks(http: httpx.Client) -> None:
    for path in ("/ping", "/", "/replicas_status"):
        assert (http.get(path).status_code, http.get(path).text) == (200, "Ok.\n")
    assert http.get("/nowhere").status_code == 404
    assert http.delete("/").status_code == 501


def test_an_answer_carries_what_a_server_says(http: httpx.Client) -> None:
    response = http.post("/?query_id=mine", content="select number from numbers(3) format JSONEachRow")
    assert response.text == '{"number":0}\n{"number":1}\n{"number":2}\n'
    assert response.headers["x-clickhouse-query-id"] == "mine"
    assert response.headers["x-clickhouse-format"] == "JSONEachRow"
    assert response.headers["content-type"] == "application/x-ndjson; charset=UTF-8"
    assert response.headers["x-clickhouse-timezone"]
    summary = json.loads(response.headers["x-clickhouse-summary"])
    assert summary["read_rows"] == "3" and int(summary["elapsed_ns"]) > 0


@pytest.mark.parametrize(
    ("params", "headers", "content", "expected"),
    [
        ({"query": "select 1"}, {}, "", "1\n"),
        ({"query": "select 1"}, {}, " + 1", "2\n"),
        ({"query": "select 'ü☃' as x", "default_format": "TSVWithNames"}, {}, "", "x\nü☃\n"),
        ({}, {"X-ClickHouse-Format": "CSV"}, "select 'a'", '"a"\n'),
        ({}, {"X-ClickHouse-Database": "system"}, "select currentDatabase()", "system\n"),
        ({"database": "system"}, {}, "select currentDatabase()", "system\n"),
        ({"param_x": "a'b"}, {}, "select {x:String}", "a\\'b\n"),
        ({"max_threads": "3"}, {}, "select getSetting('max_threads')", "3\n"),
        ({}, {}, "select 1; -- the end", "1\n"),
        ({}, {}, "select 1 format TSV -- the end", "1\n"),
        ({}, {}, "select 'x format CSV'", "x format CSV\n"),
        ({}, {}, "select 1 as x -- format CSV", "1\n"),
        ({}, {}, "/* c */ select 'a' as x format CSV settings max_threads = 1", '"a"\n'),
        ({}, {}, "select sum(number) from numbers(4) group by number % 2 with totals order by 1", "2\n4\n\n6\n"),
    ],
)  # fmt: skip
def test_ways_to_ask(
    http: httpx.Client, params: dict[str, str], headers: dict[str, str], content: str, expected: str
) -> None:
    response = http.post("/", params=params, headers=headers, content=content)
    assert (response.status_code, response.text) == (200, expected)


def test_settings_in_the_url_are_gone_with_the_query(http: httpx.Client) -> None:
    default = http.post("/", content="select getSetting('max_threads')").text
    for _ in range(20):
        http.post("/?max_threads=7&database=system", content="select 1")
        assert (
            http.post("/", content="select getSetting('max_threads'), currentDatabase()").text
            == f"{default[:-1]}\tdefault\n"
        )


@pytest.mark.parametrize(
    ("format_name", "start"),
    [
        ("JSON", b'{'), ("JSONCompact", b'{'), ("CSVWithNames", b'"number"\n0\n'), ("Native", b"\x01"),
        ("TabSeparatedWithNamesAndTypes", b"number\nUInt64\n0\n"), ("Parquet", b"PAR1"), ("Arrow", b"ARROW1"),
        ("ArrowStream", b"\xff\xff\xff\xff"), ("RowBinaryWithNamesAndTypes", b"\x01\x06number\x06UInt64"),
        ("Pretty", b" "), ("Vertical", b"Row 1:"), ("XML", b"<?xml"), ("Null", b""),
    ],
)  # fmt: skip
def test_a_format_comes_as_one_document_however_many_blocks(
    http: httpx.Client, format_name: str, start: bytes
) -> None:
    sql = "select number from numbers(3000)"
    answer = http.post("/?max_block_size=100", content=f"{sql} format {format_name}").content
    assert answer.startswith(start)
    if format_name in (
        "CSVWithNames",
        "TabSeparatedWithNamesAndTypes",
        "RowBinaryWithNamesAndTypes",
        "XML",
        "Vertical",
    ):
        assert answer.count(start) == 1
    if format_name in ("JSON", "JSONCompact"):
        assert json.loads(answer)["rows"] == 3000


def test_get_only_reads(http: httpx.Client) -> None:
    assert http.get("/", params={"query": "select 1"}).text == "1\n"
    for sql in (
        "create table http.g (a Int8) engine = Memory",
        "insert into http.g values (1)",
        "drop table http.g",
    ):
        response = http.get("/", params={"query": sql})
        assert (code_of(response), response.status_code) == (164, 500)
    head = http.head("/", params={"query": "select 1"})
    assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize(
    ("sql", "code", "status"),
    [
        ("", 62, 400),
        ("   ", 62, 400),
        ("select 1; select 2", 62, 400),
        ("select", 62, 400),
        ("select nope", 47, 404),
        ("select * from no.no", 81, 404),
        ("insert into no_table values (1)", 60, 404),
        ("select 1 format NoFormat", 73, 404),
        ("select toInt8('x')", 6, 400),
        ("select sleep(3) settings max_execution_time = 0.1", 159, 408),
        ("select {x:String}", 456, 500),
    ],
)
def test_error_codes_and_statuses(http: httpx.Client, sql: str, code: int, status: int) -> None:
    response = http.post("/", content=sql)
    assert (code_of(response), response.status_code) == (code, status)


# Bodies -----------------------------------------------------------------------------------------------------------


def lz4_of_two_frames(data: bytes) -> bytes:
    """As clickhouse-connect sends it: a frame a block."""
    half = len(data) // 2
    return lz4.frame.compress(data[:half]) + lz4.frame.compress(data[half:])


def zstd_of_two_frames(data: bytes) -> bytes:
    """Two frames, one after the other."""
    half = len(data) // 2
    return zstandard.compress(data[:half]) + zstandard.compress(data[half:])


ENCODERS = {
    "gzip": lambda data: gzip.compress(data[:100]) + gzip.compress(data[100:]),
    "deflate": zlib.compress,
    "lz4": lz4_of_two_frames,
    "zstd": zstd_of_two_frames,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", list(ENCODERS))
@pytest.mark.parametrize("is_chunked", [False, True])
def test_compressed_bodies_are_read_to_the_last_frame(
    http: httpx.Client, encoding: str, is_chunked: bool
) -> None:
    http.post("/", content="create or replace table http.z (a Int64) engine = MergeTree order by a")
    rows = b"".join(b"%d\n" % number for number in range(40_000))
    body = ENCODERS[encoding](b"insert into http.z format TSV\n" + rows)
    pieces = (body[place : place + 997] for place in range(0, len(body), 997))
    response = http.post("/", content=pieces if is_chunked else body, headers={"Content-Encoding": encoding})
    assert response.status_code == 200, response.text
    assert json.loads(response.headers["x-clickhouse-summary"])["written_rows"] == "40000"
    assert (
        http.post("/", content="select count(), sum(a) from http.z").text
        == f"40000\t{40_000 * 39_999 // 2}\n"
    )


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd"])
def test_broken_and_cut_bodies_are_refused_and_nothing_is_stored(http: httpx.Client, encoding: str) -> None:
    http.post("/", content="create or replace table http.cut (a Int64) engine = MergeTree order by a")
    rows = b"insert into http.cut format TSV\n" + b"".join(b"%d\n" % number for number in range(200_000))
    whole = ENCODERS[encoding](rows)
    for broken in (whole[:-20], whole[: len(whole) // 2], b"nonsense"):
        response = http.post("/", content=broken, headers={"Content-Encoding": encoding})
        assert code_of(response) == 271
    assert http.post("/", content="select count() from http.cut").text == "0\n"


def test_an_unknown_encoding_is_refused(http: httpx.Client) -> None:
    assert code_of(http.post("/", content=b"x", headers={"Content-Encoding": "br"})) == 48


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "lz4", "zstd"])
@pytest.mark.parametrize(
    "sql", ["select number from numbers(20000)", "select number from numbers(20000) format JSONCompact"]
)
def test_answers_are_compressed_on_request(http: httpx.Client, encoding: str, sql: str) -> None:
    plain = http.post(
        "/?max_block_size=1000&max_threads=1", content=sql, headers={"Accept-Encoding": "identity"}
    ).content
    url = "/?max_block_size=1000&max_threads=1&enable_http_compression=1"
    with http.stream("POST", url, content=sql, headers={"Accept-Encoding": encoding}) as response:
        packed = b"".join(response.iter_raw())
        assert response.headers["content-encoding"] == encoding
    decode: Any = {
        "gzip": gzip.decompress, "deflate": zlib.decompress, "lz4": lz4.frame.decompress,
        "zstd": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    }[encoding]  # fmt: skip
    cut = plain.find(b'"statistics"')  # the engine's own clock
    assert decode(packed)[:cut] == plain[:cut]
    assert len(packed) < len(plain)


def test_insert_forms(http: httpx.Client) -> None:
    http.post(
        "/",
        content="create or replace table http.forms (a Int64, format String) engine = MergeTree order by a",
    )
    statements: list[tuple[dict[str, str], bytes]] = [
        ({}, b"insert into http.forms values (1, 'values'), (1 + 1, upper('x'))"),
        ({"query": "insert into http.forms values"}, b"(3, 'in body')"),
        ({"query": "insert into http.forms (format, a) format CSV"}, b'"csv; format TSV",4\n'),
        (
            {},
            b"/* format CSV */ insert into http.forms settings max_threads = 1 format JSONEachRow\n"
            b'{"a": 5, "format": "x"}',
        ),
        (
            {},
            b"insert into http.forms select a * 2, format from input('a Int64, format String') format CSV\n3,doubled\n",
        ),
        ({}, b"insert into http.forms select 7, 'selected'"),
        ({"param_a": "8"}, b"insert into http.forms values ({a:Int64}, 'bound')"),
        ({}, b"insert into http.forms format RowBinary\n" + (9).to_bytes(8, "little") + b"\x03\xff\xfe'"),
        ({}, b"INSERT INTO `http`.`forms` (`a`, `format`) FORMAT Values (10, 'quoted')"),
    ]
    for params, body in statements:
        response = http.post("/", params=params, content=body)
        assert response.status_code == 200, (body, response.text)
    assert (
        http.post("/", content="select groupArray(a) from (select a from http.forms order by a)").text
        == "[1,2,3,4,5,6,7,8,9,10]\n"
    )


def test_multipart_errors(http: httpx.Client) -> None:
    files = {"t": ("t", b"1\n")}
    assert (
        http.post("/", params={"query": "select * from t", "t_structure": "a Int8"}, files=files).text
        == "1\n"
    )
    assert code_of(http.post("/", params={"query": "select * from t"}, files=files)) == 36
    bad = {"Content-Type": "multipart/form-data; boundary=b"}
    assert code_of(http.post("/?query=select+1", content=b"--b\r\nno end", headers=bad)) == 36
    assert (
        code_of(
            http.post("/?query=select+1", content=b"--b--", headers={"Content-Type": "multipart/form-data"})
        )
        == 36
    )


def test_sessions(http: httpx.Client) -> None:
    assert code_of(http.post("/?session_id=none&session_check=1", content="select 1")) == 372
    assert code_of(http.post("/?session_id=x&session_timeout=99999", content="select 1")) == 374
    http.post("/?session_id=short&session_timeout=1", content="create temporary table gone (a Int8)")
    assert http.post("/?session_id=short&session_timeout=1", content="select count() from gone").text == "0\n"
    time.sleep(1.2)
    assert code_of(http.post("/?session_id=short&session_check=1", content="select count() from gone")) == 372


def test_a_client_that_goes_silent_in_its_body_harms_nobody(
    http: httpx.Client, warehouse_server: MailhouseSettings
) -> None:
    http.post("/", content="create or replace table http.half (a Int64) engine = MergeTree order by a")
    with socket.create_connection(("127.0.0.1", warehouse_server.warehouse_port)) as raw:
        raw.sendall(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\ninsert into http.half format TSV\n1\n2\n"
            + b"3\n" * 99_000
        )
        time.sleep(0.2)
    time.sleep(0.2)
    assert http.post("/", content="select count() from http.half").text == "0\n"


# Who may ask, and what nobody may ask --------------------------------------------------------------------------------


def test_passwords(guarded: RunningServer, owner: httpx.Client) -> None:
    for user in (
        None,
        ("default", ""),
        ("default", "wrong"),
        ("nobody", ""),
        ("", OWNER[1] + "x"),
        (READER[0], OWNER[1]),
    ):
        with asking(guarded, user) as client:
            response = client.post("/", content="select 1")
            assert (code_of(response), response.status_code) == (516, 403)
            assert OWNER[1] not in response.text
    url = guarded.settings.warehouse.url
    assert httpx.post(url, content="select 1", auth=OWNER).text == "1\n"
    assert httpx.post(url, content="select 1", params={"user": "default", "password": OWNER[1]}).text == "1\n"
    assert httpx.post(url, content="select 1", headers={"Authorization": "Basic !"}).status_code == 403
    assert httpx.get(f"{url}/ping").text == "Ok.\n"
    log = (guarded.settings.home / "logs/warehouse.log").read_text()
    assert OWNER[1] not in log and READER[1] not in log


def test_a_reader_reads(reader: httpx.Client) -> None:
    assert reader.post("/", content="select sum(a) from t").text == "6\n"
    assert reader.post("/?max_threads=1&database=system", content="select count() from one").text == "1\n"
    for sql in (
        "show tables",
        "describe t",
        "explain select 1",
        "select * from numbers(1)",
        "select 1 from values('a Int8', 1)",
    ):
        assert reader.post("/", content=sql).status_code == 200, sql
    files = {"ids": ("ids", b"2\n")}
    found = reader.post(
        "/", params={"query": "select a from t where a in ids", "ids_structure": "a Int64"}, files=files
    )
    assert found.text == "2\n"
    session = {"session_id": "r"}
    assert reader.post("/", params=session, content="use system").status_code == 200
    assert reader.post("/", params=session, content="select currentDatabase()").text == "system\n"


@pytest.mark.parametrize(
    "sql",
    [
        "insert into t values (4)", "insert into t select 4", "create table u (a Int8) engine = Memory", "drop table t",
        "alter table t delete where 1", "delete from t where 1", "truncate table t", "optimize table t",
        "kill query where 1", "system flush logs", "create temporary table x (a Int8)", "rename table t to u",
        "create function f as x -> x", "detach table t", "create view v as select 1", "exchange tables t and t",
        "insert into t format TSV\n4\n",
    ],
)  # fmt: skip
def test_a_reader_changes_nothing(reader: httpx.Client, owner: httpx.Client, sql: str) -> None:
    assert code_of(reader.post("/", content=sql)) == 164
    assert code_of(reader.post("/?readonly=0", content=sql)) == 164
    assert owner.post("/", content="select count(), sum(a) from t").text == "3\t6\n"


def test_a_reader_stays_one_in_a_session(reader: httpx.Client, owner: httpx.Client) -> None:
    params = {"session_id": "trick"}
    reader.post("/", params=params, content="set readonly = 0")
    assert code_of(reader.post("/", params=params, content="insert into t values (4)")) == 164
    # sessions belong to their user: the owner's of the same name is another
    owner.post("/", params=params, content="create temporary table secret (a Int8)")
    assert code_of(reader.post("/", params=params, content="select * from secret")) == 60


@pytest.fixture(scope="module")
def masked(guarded: RunningServer, owner: httpx.Client) -> Iterator[httpx.Client]:
    """A reader who must not see personal data, and something to be seen in each database."""
    for statement in (
        "create database marts", "create database bi", "create database raw",
        "create table marts.people (a Int64, email String) engine = MergeTree order by a",
        "insert into marts.people values (1, 'ann@example.com')",
        "create table raw.codes (email String, code String) engine = Join(any, left, email)",
        "insert into raw.codes values ('ann@example.com', 'ann@example.com')",
        "create dictionary raw.names (a Int64, email String) primary key a source(clickhouse(table 'people' db 'marts'))"
        " layout(hashed()) lifetime(0)",
        "create view bi.people definer = current_user sql security definer as"
        " select a, concat(substring(email, 1, 1), '***') as email from marts.people",
    ):  # fmt: skip
        owner.post("/", content=statement).raise_for_status()
    with asking(guarded, MASKED) as client:
        yield client


def test_a_masked_reader_reads_what_is_masked(masked: httpx.Client) -> None:
    for sql, found in (
        ("select email from bi.people", "a***"),
        (
            "with x as (select a from bi.people) select count() from x where a in (select a from bi.people)",
            "1",
        ),
        ("select count() from bi.people as p where p.a in (1, 2)", "1"),
        ("select sum(number) from numbers(3)", "3"),
        ("select count() > 3 from system.columns where database = 'bi' or 1", "1"),
        ("select table_name from information_schema.tables where table_schema = 'bi'", "people"),
        ("select count() from bi.people, (select 1 as b) as inner_rows", "1"),
        ("select count() from (select a from bi.people union all select a from bi.people where a > 1)", "1"),
    ):
        assert masked.post("/", content=sql).text == f"{found}\n", sql
    assert masked.post("/?database=bi", content="select email from people").text == "a***\n"
    for sql in (
        "show tables from bi",
        "describe bi.people",
        "show databases",
        "explain select * from bi.people",
    ):
        assert masked.post("/", content=sql).status_code == 200, sql
    session = {"session_id": "m"}
    assert masked.post("/", params=session, content="use bi").status_code == 200
    assert masked.post("/", params=session, content="select email from people").text == "a***\n"


MASKED_ESCAPES = [
    "select * from marts.people", "select * from `marts`.`people`", 'select * from "mar\\x74s".people',
    "select * from bi.people where email in marts.people", "select (select email from marts.people)",
    "select 1 where 'ann@example.com' in (select email from marts.people)",
    "select 'ann@example.com' global not in marts.people",
    "select toUInt8((select email from marts.people))", "explain select toUInt8((select email from marts.people))",
    "select * from merge('marts', '.*')", "select * from merge(marts, 'people')", "select 1 in merge('marts', '.*')",
    "select * from view(select * from marts.people)", "select * from loop(marts.people)",
    "select * from mergeTreeIndex('marts', 'people')", "select * from cluster('default', marts.people)",
    "select joinGet('raw.codes', 'code', 'ann@example.com')", "select dictGet('raw.names', 'email', 1)",
    "select dictGet(raw.names, 'email', 1)", "select * from dictionary('raw.names')", "select * from raw.names",
    "with x as (select * from marts.people) select * from x", "from marts.people select *",
    "select * from bi.people as p join marts.people as q on p.a = q.a",
    "select * from bi.people settings additional_table_filters = {'bi.people': 'email in (select email from marts.people)'}",
    "select * from bi.people settings `additional\\x5ftable_filters` = {'bi.people': '1'}",
    "select query from system.processes", "select * from system.query_log", "select * from system.dictionaries",
    "check table marts.people", "use marts", "use system", "set additional_result_filter = '1'", "show processlist",
    "select * from bi.people intersect select a, email from marts.people", "describe (select * from marts.people)",
    "select * from bi.people order by (select email from marts.people)",
    "select * from bi.people window w as (order by (select any(email) from marts.people))",
    "select arrayMap(x -> joinGet('raw.codes', 'code', x), ['ann@example.com'])",
    "select * from viewIfPermitted(select * from marts.people else null('a Int8'))",
]  # fmt: skip


@pytest.mark.parametrize("sql", MASKED_ESCAPES)
def test_a_masked_reader_reaches_nobodys_data(masked: httpx.Client, sql: str) -> None:
    answer = masked.post("/", content=sql)
    assert answer.status_code != 200, answer.text
    assert "ann@" not in answer.text


def test_a_masked_reader_reaches_nothing_by_parameters(masked: httpx.Client, owner: httpx.Client) -> None:
    for place in ("/?database=marts", "/?database=system"):
        assert code_of(masked.post(place, content="select * from people")) == 497
    named = {
        "param_d": "marts",
        "param_t": "people",
        "query": "select * from {d:Identifier}.{t: Identifier }",
    }
    assert code_of(masked.post("/", params=named)) == 497
    filters = {"additional_table_filters": "{'bi.people': 'email in (select email from marts.people)'}"}
    assert code_of(masked.post("/", params=filters, content="select * from bi.people")) == 452
    assert code_of(masked.post("/?dialect=prql", content="from marts.people")) == 452
    # it is the reader that is masked, not the warehouse
    assert owner.post("/", content="select email from marts.people").text == "ann@example.com\n"


def test_who_may_see_personal_data_reads_all(masked: httpx.Client, reader: httpx.Client) -> None:
    del masked
    assert reader.post("/", content="select email from marts.people").text == "ann@example.com\n"


ESCAPES = [
    "select file('/etc/hostname')",
    "select * from file('/etc/hostname', 'LineAsString')",
    "select * from `/etc/hostname`",
    "select * from default.`/etc/hostname`",
    "select * from \"f\\x69le\"('/etc/hostname', 'LineAsString')",
    "select `f\\x69le`('/etc/hostname')",
    "select FILE /* c */ ('/etc/hostname')",
    "select 1 where file('/etc/hostname') != ''",
    "with file('/etc/hostname') as x select x",
    "explain select file('/etc/hostname')",
    "describe table file('/etc/hostname', 'LineAsString')",
    "select * from view(select file('/etc/hostname'))",
    "select * from viewExplain('EXPLAIN', '', (select file('/etc/hostname')))",
    "select * from eval('select 1') settings allow_experimental_eval_table_function = 1",
    "select * from python(x)",
    "select * from Python(sys)",
    "select * from url('http://127.0.0.1:1/', 'CSV', 'a String')",
    "select * from s3('http://127.0.0.1:1/bucket/key', 'CSV', 'a String')",
    "select * from remote('127.0.0.2', 'system', 'one')",
    "select * from mysql('127.0.0.1:1', 'a', 'b', 'c', 'd')",
    "select * from sqlite('/tmp/x.db', 't')",
    "select * from executable('ls', 'TSV', 'a String')",
    "select * from icebergLocal('/tmp')",
    "select * from filesystem('/etc')",
    "select 1 into outfile '/tmp/mailhouse_escape'",
    "show tables into outfile '/tmp/mailhouse_escape'",
    "explain select 1 into outfile '/tmp/mailhouse_escape'",
    "select * from format(JSONEachRow, 'a String, b String default file(''/etc/hostname'')', '{\"a\": \"1\"}')",
    "select * from format/**/(JSONEachRow, 'a String, b String default file(''/etc/hostname'')', '{\"a\": \"1\"}')",
    "select * from format(JSONEachRow, concat('a String, b String default fi', 'le(''/etc/hostname'')'), '{\"a\": \"1\"}')",
    'select * from format(JSONEachRow, {s:String}, \'{"a": "1"}\')',
    "select * from format(Values, 'a String', concat('(fi', 'le(''/etc/hostname''))'))",
    "select * from format(Values, 'a String', '(upper(''x''))') settings input_format_values_interpret_expressions = 1",
    "select * from values('a String, b String default file(''/etc/hostname'')', ('x', 'y'))",
    "select 1 format Template settings format_template_row = '/etc/hostname'",
    "select 1 settings dialect = 'prql'",
    "select * from system.one settings additional_table_filters = {'system.one': 'file(''/etc/hostname'') != \\'\\''}",
    "select 1 as x settings additional_result_filter = 'file(''/etc/hostname'') != \\'\\''",
    "select addressToLine(1) settings allow_introspection_functions = 1",
]
OWNER_ESCAPES = [
    "system shutdown",
    "system kill",
    "insert into t values (file('/etc/hostname'))",
    "insert into t from infile '/etc/hostname' format TSV",
    "insert into function file('/tmp/mailhouse_escape', 'CSV', 'a Int8') select 1",
    "create table e (a String) engine = File(CSV)",
    "create table e (a String) engine = Executable('ls', 'TSV')",
    "create table e (a String) engine = URL('http://127.0.0.1:1/', CSV)",
    "create table e (a String default file('/etc/hostname')) engine = Memory",
    "create table e as file('/etc/hostname', 'LineAsString')",
    "create table e (a Int8) engine = MergeTree order by a settings disk = disk(type = local, path = '/tmp/x/')",
    "create table e (a Int8) engine = MergeTree order by a settings `d\\x69sk` = 'x'",
    "create materialized view e engine = Executable('ls') as select 1 as a",
    "create database e engine = Filesystem('/etc')",
    "create database e engine = SQLite('/tmp/x.db')",
    "create view e as select file('/etc/hostname')",
    "create function e as x -> file(x)",
    "create dictionary e (a UInt64, b String) primary key a source(executable(command 'ls' format 'TSV')) layout(flat()) lifetime(0)",
    "create dictionary e (a UInt64, b String) primary key a source(http(url 'http://127.0.0.1:1/' format 'TSV')) layout(flat()) lifetime(0)",
    "create dictionary e (a UInt64, b String) primary key a source(clickhouse(host '127.0.0.2' table 'x')) layout(flat()) lifetime(0)",
    "create dictionary e (a UInt64, b String) primary key a source(clickhouse(query 'select 1 as a, file(''/etc/hostname'') as b')) layout(flat()) lifetime(0)",
    "create dictionary e (a UInt64, b String) primary key a source(clickhouse(query 'select 1 as a, `f\\\\x69le`(''/etc/hostname'') as b')) layout(flat()) lifetime(0)",
    "create dictionary e (a UInt64) primary key a source(clickhouse(table 't' where 'file(''/etc/hostname'') = 1')) layout(flat()) lifetime(0)",
    "create table e (a Int8) engine = MergeTree order by a partition by file('/etc/hostname')",
    "create table e (a Int8, index i file('/etc/hostname') type set(1)) engine = MergeTree order by a",
    "create table e (a Date) engine = MergeTree order by a ttl a + toIntervalDay(length(file('/etc/hostname')))",
    "create user e",
    "grant select on *.* to e",
    "backup table t to File('/tmp/mailhouse_escape')",
    "restore table t from File('/tmp/mailhouse_escape')",
    "alter table t add column b String default file('/etc/hostname')",
    "alter table t update a = length(file('/etc/hostname')) where 1",
    "delete from t where file('/etc/hostname') != ''",
    "attach table e from '/tmp/' (a Int8) engine = MergeTree order by a",
    "create named collection e as a = 1",
    "execute as e select 1",
    "create temporary table e (a String) engine = File(CSV)",
]


def test_values_inserts_leave_no_door_open(owner: httpx.Client) -> None:
    """The server lets rows behind VALUES be expressions, for that statement alone: handle and session forget it."""
    owner.post("/", content="create or replace table doors (a String) engine = Memory")
    for params in ({}, {"session_id": "doors"}):
        for _ in range(10):
            assert (
                owner.post("/", params=params, content="insert into doors values (upper('x'))").status_code
                == 200
            )
        sql = (
            "select groupArray(value) from system.settings where name like 'input_format_values%expressions'"
        )
        assert owner.post("/", params=params, content=sql).text == "['0','0']\n"
        for sql in ("insert into doors select * from input('a String') format Values ('x'), (upper('y'))",):
            assert code_of(owner.post("/", params=params, content=sql)) == 344
    owner.post("/?min_insert_block_size_rows=1", content="select 1")
    floor = owner.post("/", content="select getSetting('min_free_disk_bytes_to_perform_insert')").text
    assert int(floor) > 0
    assert code_of(owner.post("/?min_free_disk_bytes_to_perform_insert=0", content="select 1")) == 452


@pytest.mark.parametrize("sql", ESCAPES)
def test_nobody_reaches_outside_by_a_query(owner: httpx.Client, reader: httpx.Client, sql: str) -> None:
    params = {"param_s": "a String, b String default file('/etc/hostname')"} if "{s:" in sql else {}
    host = socket.gethostname()
    for client in (owner, reader):
        response = client.post("/", params=params, content=sql)
        assert response.status_code != 200, response.text
        assert code_of(response) in (47, 60, 62, 164, 344, 452, 497, 446, 42), response.text
        assert host not in response.text.replace("hostname", "")


@pytest.mark.parametrize("sql", OWNER_ESCAPES)
def test_not_even_the_owner_reaches_outside_by_a_statement(owner: httpx.Client, sql: str) -> None:
    response = owner.post("/", content=sql)
    assert response.status_code != 200, response.text
    assert code_of(response) in (36, 164, 452, 481, 497), response.text
    assert owner.post("/", content="select count(), sum(a) from t").text == "3\t6\n"


def test_an_external_table_computes_nothing(owner: httpx.Client) -> None:
    params = {
        "query": "select * from x",
        "x_structure": "a String, b String default file('/etc/hostname')",
        "x_format": "JSONEachRow",
    }
    assert code_of(owner.post("/", params=params, files={"x": ("x", b'{"a": "1"}')})) == 497


def test_ordinary_work_is_not_refused(owner: httpx.Client) -> None:
    statements = [
        "select * from numbers(2)", "select * from generateRandom('a Int8') limit 1", "select * from zeros(1)",
        "select * from format(CSV, '1,2')", "select * from values('a Int8, b String', (1, 'default (x)'))",
        "select format('{} file {}', 'a', 'b')", "select 'file(x)', 'INTO OUTFILE'", "select 1 as file, 2 as python",
        "select * from merge('system', '^one$')", "system flush logs", "kill query where query_id = 'x'",
        "create or replace table f (file String, `python` Int8) engine = MergeTree order by file",
        "insert into f values ('select file(\\'x\\')', 1)", "alter table f add column c Int8 default 1",
        "create or replace function square as x -> x * x", "select square(2)", "drop function square",
        "create or replace dictionary d (a UInt64) primary key a source(clickhouse(table t)) layout(hashed()) lifetime(0)",
        "select dictHas('d', 1)", "create or replace view w as select * from t", "detach table f", "attach table f",
        "create or replace table g as values('a Int8', 1)", "optimize table f final", "check table f",
    ]  # fmt: skip
    for sql in statements:
        response = owner.post("/", content=sql)
        assert response.status_code == 200, (sql, response.text)


def test_one_bad_query_does_not_take_the_machines_memory(owner: httpx.Client) -> None:
    response = owner.post(
        "/?max_memory_usage=0", content="select length(groupArray(number)) from numbers(300000000)"
    )
    assert (code_of(response), response.status_code) == (241, 500)
    assert owner.post("/", content="select 1").text == "1\n"
