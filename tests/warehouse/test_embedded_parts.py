"""Rules inside the embedded server that need no engine: cutting statements, decoding bodies, joining streams, errors."""

# ruff: noqa: E501 - statements are easier read unbroken

from __future__ import annotations

import gzip
import importlib.util
import struct
import zlib
from collections.abc import Callable

import lz4.frame
import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.embedded.access import parse_tree
from warehouse.embedded.compression import (
    Encoder,
    chosen_encoding,
    decoded,
    from_native_blocks,
    native_blocks,
)
from warehouse.embedded.errors import ServerError
from warehouse.embedded.formats import StreamJoiner, native_header
from warehouse.embedded.protocol import Request, read_multipart
from warehouse.embedded.statements import asks_for_columns, first_word, input_call, insert_head, output_of

# Statements -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "statement", "format_name", "data"),
    [
        (b"insert into t format CSV\n1,2", b"insert into t ", "CSV", b"1,2"),
        (b"INSERT INTO t (a, b) FORMAT Native \r\n\x01\x02", b"INSERT INTO t (a, b) ", "Native", b"\x01\x02"),
        (b"insert into t values (1)", b"insert into t ", "Values", b" (1)"),
        (b"insert into `format` (`values`) format TSV\n1", b"insert into `format` (`values`) ", "TSV", b"1"),
        (b"insert into format (format) format TSV\n1", b"insert into format (format) ", "TSV", b"1"),
        (b"insert into db.values values (1)", b"insert into db.values ", "Values", b" (1)"),
        (b"/* format X */ insert into t -- values\n format CSV\n1", b"/* format X */ insert into t -- values\n ", "CSV", b"1"),
        (b"insert into t settings a='format' format CSV\n", b"insert into t settings a='format' ", "CSV", b""),
        (b"insert into t format CSV\n format TSV", b"insert into t ", "CSV", b" format TSV"),
        (b"insert into t format CSV;\n1", b"insert into t ", "CSV", b"1"),
        (b"insert into t select a, format from input('a Int8') format CSV\n1", b"insert into t select a, format from input('a Int8') ", "CSV", b"1"),
    ],
)  # fmt: skip
def test_an_insert_is_cut_where_its_data_begins(
    query: bytes, statement: bytes, format_name: str, data: bytes
) -> None:
    head = insert_head(query)
    assert head is not None
    assert (head.statement, head.format, query[head.data_start :]) == (statement, format_name, data)


@pytest.mark.parametrize(
    "query",
    [
        b"insert into t select 1",
        b"insert into t (a) (select 1)",
        b"insert into t with 1 as x select x, 'format CSV'",
    ],
)
def test_an_insert_without_data(query: bytes) -> None:
    assert insert_head(query) is None


def test_settings_are_cut_off_the_target() -> None:
    head = insert_head(b"insert into t (a) settings max_threads = 1 format CSV\n1")
    assert head is not None
    assert (head.target, head.settings) == (b"insert into t (a) ", b"settings max_threads = 1 ")


@given(st.binary(max_size=200))
def test_data_never_moves_the_cut(data: bytes) -> None:
    start = b"insert into t (a, b) format RowBinary\n"
    head = insert_head(start + data)
    assert head is not None and head.data_start == len(start)


@pytest.mark.parametrize(
    ("query", "statement", "format_name"),
    [
        (b"select 1", b"select 1", ""),
        (b"select 1 format CSV", b"select 1", "CSV"),
        (b"select 1 Format\n CSV ; ", b"select 1", "CSV"),
        (b"select 1 format CSV -- x", b"select 1", "CSV"),
        (b"select ' format CSV'", b"select ' format CSV'", ""),
        (b"select 1 -- format CSV", b"select 1 -- format CSV", ""),
        (b"select $$ format CSV$$", b"select $$ format CSV$$", ""),
        (b"select 1 format CSV settings a = 1", b"select 1 format CSV settings a = 1", "CSV"),
    ],
)
def test_output_formats(query: bytes, statement: bytes, format_name: str) -> None:
    found = output_of(query)
    assert (found.statement, found.format) == (statement, format_name)


def test_first_words() -> None:
    assert first_word(b"-- c\n /* d */ (( select 1))") == b"SELECT"
    assert first_word(b"'text'") == b""


def test_input_calls() -> None:
    found = input_call(b"insert into t select * from Input ( 'a Int8' ) where 1")
    assert found is not None and found.structure == b"'a Int8'"
    assert input_call(b"insert into t select input from x") is None
    assert input_call(b"insert into t select * from input(concat('a'))") is None


# Bodies -----------------------------------------------------------------------------------------------------------

FRAMES: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "lz4": lz4.frame.compress,
    "zstd": zstandard.compress,
}


def cut(data: bytes, size: int) -> list[bytes]:
    """Pieces of a size."""
    return [data[place : place + size] for place in range(0, len(data), size)]


@given(st.sampled_from(sorted(FRAMES)), st.lists(st.binary(max_size=3000), max_size=5), st.integers(1, 500))
def test_all_frames_are_decoded_however_the_body_is_cut(
    encoding: str, blocks: list[bytes], size: int
) -> None:
    body = b"".join(FRAMES[encoding](block) for block in blocks)
    assert b"".join(decoded(cut(body, size), encoding)) == b"".join(blocks)


@given(st.sampled_from(sorted(FRAMES)), st.binary(min_size=1, max_size=3000), st.data())
def test_a_body_that_ends_early_is_refused(encoding: str, block: bytes, data: st.DataObject) -> None:
    body = FRAMES[encoding](block)
    end = data.draw(st.integers(1, len(body) - 1))
    with pytest.raises(ServerError, match=encoding):
        list(decoded([body[:end]], encoding))


@given(
    st.sampled_from(["gzip", "deflate", "lz4", "zstd"]),
    st.lists(st.binary(min_size=1, max_size=3000), max_size=5),
)
def test_an_encoder_makes_one_frame(encoding: str, blocks: list[bytes]) -> None:
    encoder = Encoder(encoding)
    packed = b"".join([encoder.encode(block) for block in blocks]) + encoder.end()
    decoder = {"gzip": lambda: zlib.decompressobj(31), "deflate": zlib.decompressobj,
               "lz4": lz4.frame.LZ4FrameDecompressor, "zstd": lambda: zstandard.ZstdDecompressor().decompressobj()}[encoding]()  # fmt: skip
    assert decoder.decompress(packed) == b"".join(blocks)
    assert decoder.eof and not decoder.unused_data


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", ""),
        ("br", ""),
        ("gzip, deflate", "gzip"),
        ("gzip, zstd;q=0.5", "zstd"),
        ("zstd;q=0, lz4", "lz4"),
        ("deflate", "deflate"),
    ],
)
def test_the_best_allowed_encoding_is_chosen(accepted: str, chosen: str) -> None:
    assert chosen_encoding(accepted) == chosen


HAS_CITYHASH = importlib.util.find_spec("clickhouse_cityhash") is not None


def test_native_compression_without_its_library_is_refused_clearly() -> None:
    if HAS_CITYHASH:
        pytest.skip("clickhouse-cityhash is installed")
    with pytest.raises(ServerError, match="clickhouse-cityhash, which is not installed"):
        native_blocks(b"data")


@pytest.mark.skipif(not HAS_CITYHASH, reason="needs clickhouse-cityhash")
@given(st.binary(max_size=5000), st.integers(1, 700))
def test_native_blocks_come_back(data: bytes, size: int) -> None:
    packed = native_blocks(data)
    assert b"".join(from_native_blocks(cut(packed, size))) == data
    if packed:
        broken = bytes([packed[0] ^ 1]) + packed[1:]
        with pytest.raises(ServerError, match="Checksum"):
            list(from_native_blocks([broken]))
        with pytest.raises(ServerError, match="ends within"):
            list(from_native_blocks([packed[:-1]]))


# Streams ----------------------------------------------------------------------------------------------------------


def arrow_stream(table: pa.Table) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@settings(deadline=None)  # pyarrow takes its time to load
@given(
    st.lists(
        st.lists(st.tuples(st.integers(-5, 5), st.text(max_size=5)), max_size=20), min_size=1, max_size=5
    )
)
def test_arrow_streams_join_into_one(parts: list[list[tuple[int, str]]]) -> None:
    kind = pa.schema([("a", pa.int64()), ("s", pa.dictionary(pa.int32(), pa.string()))])
    tables = [
        pa.table({"a": [a for a, _ in part], "s": pa.array([s for _, s in part], pa.string()).dictionary_encode()}).cast(kind)
        for part in parts
    ]  # fmt: skip
    joiner = StreamJoiner()
    whole = b"".join([joiner.join(arrow_stream(table)) for table in tables]) + joiner.end()
    found = pa.ipc.open_stream(whole).read_all()
    assert found.schema == kind
    assert found.to_pylist() == [row for table in tables for row in table.to_pylist()]


def test_a_native_header_says_names_and_types() -> None:
    assert native_header(["a", "é" * 100], ["UInt8", "String"]) == (
        b"\x02\x00\x01a\x05UInt8" + struct.pack("BB", 0xC8, 0x01) + "é".encode() * 100 + b"\x06String"
    )


# Errors, requests, trees --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "name", "message"),
    [
        ("Code: 60. DB::Exception: Table x does not exist. (UNKNOWN_TABLE)", 60, "UNKNOWN_TABLE", "Table x does not exist."),
        ("Code: 115. DB::Exception: Code: 115. DB::Exception: Unknown setting 'a'. (UNKNOWN_SETTING) (version 26.9.2.1). (UNKNOWN_SETTING)",
         115, "UNKNOWN_SETTING", "Unknown setting 'a'."),
        ("Streaming query failed: Code: 27. DB::Exception: Bad (at row 1) (CANNOT_PARSE) (version 26.9 (official build))",
         27, "CANNOT_PARSE", "Bad (at row 1)"),
        ("something else", 1002, "UNKNOWN_EXCEPTION", "something else"),
    ],
)  # fmt: skip
def test_errors_of_the_engine_are_read(text: str, code: int, name: str, message: str) -> None:
    error = ServerError.from_engine(text)
    assert (error.code, error.name, error.message) == (code, name, message)
    again = ServerError.from_engine(error.text("26.9.2.1"))
    assert (again.code, again.name) == (code, name)


def test_a_request_is_read() -> None:
    request = Request.parse(
        "POST",
        b"query=select+1&database=d&max_threads=2&param_x=%C3%BC&t_structure=a+Int8&session_id=s",
        {"authorization": "Basic YTpiOmM="},
    )
    read = request.settings
    assert read == {"max_threads": "2", "t_structure": "a Int8"}
    assert request.query_parameters == {"x": "ü"}
    assert request.credentials == ("a", "b:c")
    assert request.session == ("s", 60.0, False)
    body = b'--B\r\nContent-Disposition: form-data; name="t"; filename="t"\r\n\r\n1\r\n2\r\n--B--\r\n'
    multipart = Request("POST", request.parameters, {"content-type": 'multipart/form-data; boundary="B"'})
    read_multipart(multipart, body)
    assert [(table.name, table.structure, table.data) for table in multipart.external] == [
        ("t", "a Int8", b"1\r\n2")
    ]
    assert multipart.settings == {"max_threads": "2"}
    with pytest.raises(ServerError, match="neither a builtin setting"):
        _ = Request.parse("POST", b"a%3Bb=1", {}).settings


def test_a_syntax_tree_is_read() -> None:
    nodes = parse_tree("Root (children 1)\n A\n  Function File (children 1)\n   ExpressionList\n B\n")
    assert [(node.depth, node.parent, node.function) for node in nodes] == [
        (0, "", ""), (1, "Root (children 1)", ""), (2, "A", "file"), (3, "Function File (children 1)", ""), (1, "Root (children 1)", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "is_asked"),
    [
        (b"SELECT * FROM ( \nselect 1 as a, ')' as b -- )\n \n) LIMIT 0", True),
        (b"/* who */ select * from (select * from (select 1)) as __dbt_sbq limit 0;", True),
        (b"select * from (select 1) union all select * from (select 2) limit 0", False),
        (b"select * from (select 1) as a, (select 2) as b limit 0", False),
        (b"select * from (select 1) limit 0, 5", False),
        (b"select * from (select 1) limit 10", False),
        (b"select count() from (select 1) limit 0", False),
        (b"select * from t limit 0", False),
    ],
)
def test_who_asks_for_columns_alone(query: bytes, is_asked: bool) -> None:
    assert asks_for_columns(query) is is_asked
