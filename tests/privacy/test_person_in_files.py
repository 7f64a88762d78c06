"""Files: what is found, what goes, and what of others stays."""

from __future__ import annotations

import gzip
import os
import sqlite3
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.files import Finder, SourceColumns
from privacy.person import Person
from privacy.search import Search

PERSON = Person(
    contact_ids={8357103000278811112},
    emails={"ann@example.com"},
    records={("shop", "17")},
    message_ids={"0b6f0c5e-7a0e-5b0e-8a53-2d6a3c1c7d10"},
)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def cleaned(home: Path, sources: dict[Path, SourceColumns] | None = None) -> dict[str, str]:
    """Find, erase, and find nothing but what is reported; kinds by name."""
    finder = Finder(home, lambda: sources or {})
    found = {one.path.name: one.kind for one in finder.find(PERSON)}
    for one in finder.find(PERSON):
        finder.erase(one, PERSON)
    left = finder.find(PERSON)
    assert all(one.kind == "unknown" for one in left), left
    return found


def test_each_kind_of_file_loses_the_person_and_keeps_the_others(tmp_path: Path):
    mail = put(tmp_path / "maildir/new/1", b"To: =?utf-8?q?ann=40example=2Ecom?=\r\n\r\nHello")
    other = put(tmp_path / "maildir/new/2", b"To: bob@example.com\r\n\r\nHello")
    log = put(tmp_path / "logs/a.log", b"sent to Ann@Example.com\nsent to bob@example.com\n")
    packed = put(
        tmp_path / "logs/old.log.gz", gzip.compress(b"contact 8357103000278811112 and 18357103000278811112")
    )
    preview = put(tmp_path / "output/previews/x.html", b"<p>ann@example.com")
    model = put(tmp_path / "models/m/1.model", b"{}\n\x80\x05" + (8357103000278811112).to_bytes(8, "little"))
    strange = put(tmp_path / "strange.bin", b"\0\1ann@example.com")
    put(tmp_path / "warehouse/data.bin", b"ann@example.com")
    put(tmp_path / "erasure_key", b"ann@example.com")
    assert cleaned(tmp_path) == {
        "1": "mail", "a.log": "text", "old.log.gz": "text", "x.html": "preview", "1.model": "model",
        "strange.bin": "unknown",
    }  # fmt: skip
    assert not mail.exists() and not preview.exists() and not model.exists()
    assert other.exists() and strange.exists()
    assert log.read_bytes() == b"sent to xxxxxxxxxxxxxxx\nsent to bob@example.com\n"
    assert gzip.decompress(packed.read_bytes()) == b"contact xxxxxxxxxxxxxxxxxxx and 18357103000278811112"


def test_rows_go_from_tables_and_the_files_keep_their_times(tmp_path: Path):
    csv = put(
        tmp_path / "inbox/c.csv",
        b'id;mail;note\n17;x@example.com;"a\nb"\n18;ANN@example.com;\n19;"c";"d ""17"""\n',
    )
    lines = put(
        tmp_path / "inbox/e.jsonl",
        b'{"external_id": "17", "source": "shop"}\n{"external_id": "17", "source": "o"}\n',
    )
    table = tmp_path / "inbox/p.parquet"
    pl.DataFrame({"id": [16, 17, 18], "mail": ["a", "b", " ann@example.com"]}).write_parquet(table)
    os.utime(csv, (1_000_000_000, 1_000_000_000))
    sources = {
        csv: SourceColumns("shop", ("mail",), ("id",), ";"),
        lines: SourceColumns("shop", ("email",), ("external_id",)),
        table: SourceColumns("shop", ("mail",), ("id",)),
    }
    assert set(cleaned(tmp_path, {path.resolve(): one for path, one in sources.items()}).values()) == {
        "source rows"
    }
    assert csv.read_bytes() == b'id;mail;note\n19;"c";"d ""17"""\n'
    assert csv.stat().st_mtime == 1_000_000_000
    assert lines.read_bytes() == b'{"external_id": "17", "source": "o"}\n'
    assert pl.read_parquet(table)["id"].to_list() == [16]


def test_databases_keep_no_byte_of_the_person(tmp_path: Path):
    path = tmp_path / "dagster/runs.db"
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("create table logs (id integer primary key, event text, body blob)")
        connection.executemany(
            "insert into logs (event, body) values (?, ?)",
            [('{"mail": "ann@example.com"}', b"\0Ann@example.com"), ('{"mail": "bob@example.com"}', None)],
        )
        # freed, but not gone
        connection.execute("create table old (t text)")
        connection.execute("insert into old values (?)", ("ann@example.com" * 500,))
        connection.execute("drop table old")
    connection.close()
    assert cleaned(tmp_path) == {"runs.db": "database"}
    rows = sqlite3.connect(path).execute("select event, body from logs order by id").fetchall()
    assert rows == [
        ('{"mail": "xxxxxxxxxxxxxxx"}', b"\0xxxxxxxxxxxxxxx"),
        ('{"mail": "bob@example.com"}', None),
    ]
    for file in path.parent.iterdir():
        assert b"ann@example.com" not in file.read_bytes().lower()


@given(st.lists(st.sampled_from(
    ["ann@example.com", "ANN@example.com", "8357103000278811112", "0B6F0C5E-7a0e-5b0e-8a53-2d6a3c1c7d10",
     "bob@example.com", "7", " ", "x", "83571030002788111123"]
), max_size=12))  # fmt: skip
def test_what_is_crossed_out_is_not_found_again_and_nothing_else_changes(parts: list[str]):
    search = Search.of(PERSON)
    text = " | ".join(parts).encode()
    masked = search.masked(text)
    assert len(masked) == len(text)
    assert not search.is_in(masked)
    if not search.is_in(text):
        assert masked == text


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"ann@example.co", b"18357103000278811112"])
def test_others_are_not_found(text: bytes):
    assert not Search.of(PERSON).is_in(text)
