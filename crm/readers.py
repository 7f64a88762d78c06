"""CSV, Parquet and JSON Lines as chunks of rows, each with the place where it stands.

A line that is no row (wrong number of fields, quotes that do not match, bytes that are no text, bad JSON)
is set apart with its reason and does not harm its neighbours. A file that as a whole is not what it should
be raises `InputError`. Memory: one chunk.
"""

from __future__ import annotations

import csv
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.errors import InputError
from warehouse.loads import CONTENT_CHARACTERS
from warehouse.yaml_specs import nearest

CHUNK_ROWS = 50_000
_LONGEST_LINE = 16 << 20  # bytes; a JSON line or CSV line above this is no row of ours


@dataclass(frozen=True)
class BadRow:
    """A line that is no row: where, why, and what it says."""

    line: int
    reason: str
    content: str


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file.

    Attributes:
        frame: the columns asked for, strings but for Parquet; row by row with `lines`. lines: `UInt64`, the
        line at which each row begins, the header being line 1; in Parquet the row's number. texts: the rows
        as they stand in the file; None for Parquet. extras: what JSON Lines have beyond the columns asked
        for: a JSON object a row; None for other formats. bad: lines that are no rows.
    """

    frame: pl.DataFrame
    lines: pl.Series
    texts: list[str] | None
    extras: list[str] | None
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True)
class Want:
    """What is read of a file.

    Attributes:
        columns: columns that must be there.
        optional: columns that are read if they are there.
        is_rest: whether all other columns are wanted, too, but for `ignore`.
        ignore: columns that are not.
    """

    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()
    is_rest: bool = False
    ignore: tuple[str, ...] = ()


def read_chunks(
    path: Path,
    form: str,
    want: Want,
    *,
    shown: str,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    rows: int = CHUNK_ROWS,
) -> Iterator[Chunk]:
    """Read a file in chunks of up to `rows` rows. A file that is wrong as a whole raises before the first.

    Args:
        path: the file.
        form: csv, parquet or jsonl.
        want: the columns.
        shown: the file's name in messages.
        delimiter: of CSV; a comma if None, a tab in files that end in `.tsv`.
        encoding: of CSV and JSON Lines.
        rows: rows a chunk.

    Raises:
        InputError: the file is missing, unreadable, not of this form, or lacks a column.
    """
    try:
        with path.open("rb") as handle:
            start = handle.read(65536)
            _check_form(start, form, shown)
            handle.seek(0)
            if form == "parquet":
                yield from _parquet(handle, want, shown, rows)
            elif form == "csv":
                delimiter = delimiter or ("\t" if path.suffix == ".tsv" else ",")
                yield from _csv(handle, want, shown, delimiter, encoding, rows)
            else:
                yield from _jsonl(handle, want, shown, encoding, rows)
    except FileNotFoundError:
        raise InputError(f"{shown} does not exist.", fix="Put the file there, or correct `files:`.") from None
    except OSError as error:
        raise InputError(
            f"{shown} cannot be read: {error.strerror or error}.", fix="Make it a readable file."
        ) from None


def _check_form(start: bytes, form: str, shown: str) -> None:
    """Refuse what evidently is another kind of file."""
    kinds = {
        b"PAR1": "a Parquet file",
        b"PK\x03\x04": "a zip archive or an Excel workbook",
        b"\x1f\x8b": "compressed by gzip",
        b"\x28\xb5\x2f\xfd": "compressed by zstd",
        b"\xff\xfe": "UTF-16 text",
        b"\xfe\xff": "UTF-16 text",
        b"\xd0\xcf\x11\xe0": "an old Excel workbook",
        b"%PDF": "a PDF",
        b"SQLite format 3": "a SQLite database",
    }
    is_kind = next((kind for magic, kind in kinds.items() if start.startswith(magic)), "")
    names = {"csv": "CSV", "parquet": "Parquet", "jsonl": "JSON Lines"}
    if form == "parquet":
        if not start.startswith(b"PAR1"):
            what = is_kind or ("empty" if not start else "another kind of file")
            raise InputError(f"{shown} is no Parquet file: it is {what}.", fix=_as(form))
        return
    if not is_kind and b"\x00" in start:
        is_kind = "binary"
    if not is_kind and form == "csv":
        text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
        if text.startswith((b'{"', b'[{"')):
            is_kind = "JSON"
        elif text[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            is_kind = "HTML or XML, perhaps a login page that was saved instead"
        elif b"\r" in start and b"\n" not in start:
            is_kind = "text with the line ends of old Macs"
    if not is_kind and form == "jsonl" and start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        is_kind = "one JSON array"
    if is_kind:
        raise InputError(f"{shown} is no {names[form]} file: it is {is_kind}.", fix=_as(form))


def _as(form: str) -> str:
    return {
        "csv": "Save it as CSV in UTF-8 with one header line, or correct its ending or `format:`.",
        "parquet": "Write it as Parquet, or correct its ending or `format:`.",
        "jsonl": "Write one JSON object a line, or correct the file's ending or `format:`.",
    }[form]


def _check_columns(want: Want, there: Sequence[str], shown: str, hint: str = "") -> None:
    missing = [name for name in want.columns if name not in there]
    if missing:
        raise InputError(
            f"{shown} has no column {missing[0]!r}.",
            fix=hint or f"{nearest(missing[0], there)} Correct `columns:` of the source, or the file.",
        )


def _chosen(want: Want, there: Sequence[str]) -> list[str]:
    """Columns to read, in the file's order."""
    named = {*want.columns, *want.optional}
    return [name for name in there if name in named or (want.is_rest and name not in want.ignore and name)]


# CSV


class _Lines:
    """Lines of a text file that may be handed out again; `taken` holds those of the current record."""

    def __init__(self, handle: BinaryIO, encoding: str) -> None:
        self.handle = handle
        self.encoding = encoding
        self.again: deque[tuple[str, str]] = deque()
        self.taken: list[tuple[str, str]] = []
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.again:
            line = self.again.popleft()
        else:
            raw = self.handle.readline(_LONGEST_LINE)
            if not raw:
                raise StopIteration
            try:
                line = (raw.decode(self.encoding), "")
            except UnicodeDecodeError as error:
                where = f"byte {error.start + 1} of the line is 0x{raw[error.start]:02X}"
                line = (raw.decode(self.encoding, "replace"), f"not {self.encoding} text: {where}")
        self.number += 1
        self.taken.append(line)
        return line[0]

    def keep_first(self) -> None:
        """Give all lines of the current record but the first back."""
        rest = self.taken[1:]
        self.again.extendleft(reversed(rest))
        self.number -= len(rest)
        del self.taken[1:]

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.taken)[:CONTENT_CHARACTERS].rstrip("\r\n")


def _csv(
    handle: BinaryIO, want: Want, shown: str, delimiter: str, encoding: str, rows: int
) -> Iterator[Chunk]:
    lines = _Lines(handle, "utf-8-sig" if encoding == "utf-8" else encoding)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
    except StopIteration:
        raise InputError(f"{shown} is empty.", fix="Write a header line with the columns' names.") from None
    except csv.Error as error:
        raise InputError(f"{shown}:1: the header cannot be read: {error}.", fix=_as("csv")) from None
    if lines.taken[0][1]:
        raise InputError(
            f"{shown}:1: the header is {lines.taken[0][1]}.",
            fix="Save the file as UTF-8, or set `encoding:`.",
        )
    lines.encoding = encoding
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise InputError(
            f"{shown}:1: column {min(twice)!r} is there twice.", fix="Rename one of the two in the header."
        )
    hint = ""
    if len(header) == 1:
        other = next((mark for mark in (";", "\t", "|", ",") if mark != delimiter and mark in header[0]), "")
        if other:
            hint = (
                f"Set `delimiter: {json.dumps(other)}` in the source: the header seems to be separated by it."
            )
    _check_columns(want, header, shown, hint)
    chosen = _chosen(want, header)
    places = [header.index(name) for name in chosen]
    width = len(header)

    values: list[list[str]] = []
    numbers: list[int] = []
    texts: list[str] = []
    bad: list[BadRow] = []
    while True:
        lines.taken.clear()
        first = lines.number + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            # a stray quote must not swallow the rows after it
            lines.keep_first()
            bad.append(BadRow(first, f"malformed CSV: {error}", lines.text))
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            row = None
        if row is not None and len(row) == width:
            trouble = next((said for _, said in lines.taken if said), "")
            if trouble:
                bad.append(BadRow(first, trouble, lines.text))
            else:
                values.append(row)
                numbers.append(first)
                texts.append(lines.text)
        elif row:
            if len(lines.taken) > 1:
                lines.keep_first()
                reader = csv.reader(lines, delimiter=delimiter, strict=True)
                said = "a quote that opens on this line closes nowhere sensible"
            else:
                said = lines.taken[0][1] or f"{len(row)} fields where the header has {width}"
            bad.append(BadRow(first, f"malformed CSV: {said}", lines.text))
        if len(values) + len(bad) >= rows:
            yield _text_chunk(chosen, places, values, numbers, texts, bad)
            values, numbers, texts, bad = [], [], [], []
    if values or bad:
        yield _text_chunk(chosen, places, values, numbers, texts, bad)


def _text_chunk(
    names: Sequence[str],
    places: Sequence[int],
    values: list[list[str]],
    numbers: list[int],
    texts: list[str],
    bad: list[BadRow],
) -> Chunk:
    frame = pl.DataFrame(
        [
            pl.Series(name, [row[place] for row in values], pl.String)
            for name, place in zip(names, places, strict=True)
        ]
    )
    return Chunk(frame, pl.Series("line", numbers, pl.UInt64), texts, None, bad)


# JSON Lines


def _not_json(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _jsonl(handle: BinaryIO, want: Want, shown: str, encoding: str, rows: int) -> Iterator[Chunk]:
    names = [*want.columns, *(name for name in want.optional if name not in want.columns)]
    known = {*names, *want.ignore}
    values: list[tuple[str | None, ...]] = []
    numbers: list[int] = []
    texts: list[str] = []
    extras: list[str] = []
    bad: list[BadRow] = []
    is_first = True
    number = 0
    while raw := handle.readline(_LONGEST_LINE):
        number += 1
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.isspace():
            continue
        try:
            text = raw.decode(encoding).strip()
            row = json.loads(text, parse_constant=_not_json)
            if not isinstance(row, dict):
                raise ValueError("the line is no JSON object")
            taken = tuple([_text(row.get(name)) for name in names])
            extra = (
                _dump({key: item for key, item in row.items() if key not in known}) if want.is_rest else "{}"
            )
            # half of a surrogate pair is no text, and neither polars nor ClickHouse take it
            for part in (*taken, extra):
                if part is not None and not part.isascii():
                    part.encode("utf-8")
        except UnicodeDecodeError as error:
            where = f"byte {error.start + 1} of the line is 0x{raw[error.start]:02X}"
            bad.append(BadRow(number, f"not {encoding} text: {where}", _cut(raw.decode(encoding, "replace"))))
        except UnicodeEncodeError:
            bad.append(BadRow(number, "bad JSON: half of a surrogate pair", _cut(raw.decode(encoding))))
        except RecursionError:
            bad.append(BadRow(number, "bad JSON: nested too deeply", _cut(raw.decode(encoding))))
        except ValueError as error:
            bad.append(BadRow(number, f"bad JSON: {error}", _cut(raw.decode(encoding))))
        else:
            values.append(taken)
            numbers.append(number)
            texts.append(text[:CONTENT_CHARACTERS])
            extras.append(extra)
        if len(values) + len(bad) >= rows:
            yield _json_chunk(names, values, numbers, texts, extras, bad, want if is_first else None, shown)
            values, numbers, texts, extras, bad = [], [], [], [], []
            is_first = False
    if values or bad:
        yield _json_chunk(names, values, numbers, texts, extras, bad, want if is_first else None, shown)


def _json_chunk(
    names: Sequence[str],
    values: list[tuple[str | None, ...]],
    numbers: list[int],
    texts: list[str],
    extras: list[str],
    bad: list[BadRow],
    want: Want | None,
    shown: str,
) -> Chunk:
    if want is not None and values:
        there = [name for place, name in enumerate(names) if any(row[place] is not None for row in values)]
        others = [name for name in json.loads(extras[0]) if name not in there]
        _check_columns(want, [*there, *others], shown)
    frame = pl.DataFrame(
        [pl.Series(name, [row[place] for row in values], pl.String) for place, name in enumerate(names)]
    )
    return Chunk(frame, pl.Series("line", numbers, pl.UInt64), texts, extras, bad)


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return _dump(value)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _cut(text: str) -> str:
    return text.strip()[:CONTENT_CHARACTERS]


# Parquet


def _parquet(handle: BinaryIO, want: Want, shown: str, rows: int) -> Iterator[Chunk]:
    try:
        file = pq.ParquetFile(handle, page_checksum_verification=True)
        names = file.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{shown} is no whole Parquet file: {_first(error)}.", fix=_as("parquet")) from None
    _check_columns(want, names, shown)
    chosen = _chosen(want, names)
    if not chosen:
        return
    done = 0
    try:
        for batch in file.iter_batches(batch_size=rows, columns=chosen):
            frame = pl.from_arrow(pa.Table.from_batches([batch]))
            assert isinstance(frame, pl.DataFrame)
            lines = pl.int_range(done + 1, done + frame.height + 1, dtype=pl.UInt64, eager=True)
            yield Chunk(frame.select(chosen), lines.alias("line"), None, None)
            done += frame.height
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError) as error:
        raise InputError(
            f"{shown} is damaged after row {done}: {_first(error)}.", fix="Write the file again."
        ) from None


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:200]
