"""Files of the home folder in which something of a person may stand, and how it goes from each.

Everything under the home folder is looked at, whatever it is, byte by byte and uncompressed, but for the warehouse's
own data, which the engine itself is asked for, keys, locks and the plans of erasures. What is done follows from what a
file is: mail and previews are deleted whole, rows go from files of sources, databases lose what stands in their rows,
logs and all other text have it crossed out in place, so that whoever writes them goes on. A file that none of this fits
is reported, never passed over.
"""

from __future__ import annotations

import contextlib
import csv
import email.parser
import email.policy
import gzip
import io
import mmap
import os
import sqlite3
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import orjson
import polars as pl

from crm.files import find_files
from crm.specs import load_sources
from privacy.person import Person
from privacy.search import Search
from senders.ledger import Ledger
from warehouse.erasures import normalised_email
from warehouse.errors import InputError, MailhouseError

Kind = Literal["mail", "preview", "source rows", "database", "model", "text", "unknown"]

_SKIPPED_FOLDERS: Final = frozenset(("warehouse", "locks", "erasures"))
_SKIPPED_FILES: Final = frozenset(("secret_key", "erasure_key", "audit_head"))
_MAIL_FOLDERS: Final = frozenset(("maildir", "mailboxes"))
_TABLES: Final = frozenset((".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet"))
_SQLITE: Final = b"SQLite format 3\0"
_ADDRESSED: Final = ("to", "cc", "bcc", "delivered-to", "x-original-to", "envelope-to", "message-id")
_LOCK_SECONDS = 30


@dataclass(frozen=True)
class Found:
    """A file with something of the person.

    Attributes:
        reason: what was found, never what stands there.
    """

    path: Path
    kind: Kind
    reason: str


@dataclass(frozen=True)
class SourceColumns:
    """Where a source's file names people: columns of addresses and of the source's own ids."""

    source: str
    emails: tuple[str, ...] = ()
    external_ids: tuple[str, ...] = ()
    delimiter: str = ","
    encoding: str = "utf-8"


def source_columns(content_dir: Path, home: Path) -> dict[Path, SourceColumns]:
    """The files that sources name, wherever they lie, with the columns that name people; sources that are wrong are
    passed over: loading them says what is wrong.
    """
    try:
        sources = load_sources(content_dir)
    except MailhouseError:
        return {}
    found: dict[Path, SourceColumns] = {}
    for source in sources.values():
        mapping = source.mapping
        names: dict[str, tuple[str, ...]] = {"email": ("email",), "external_id": ("external_id",)}
        if mapping is not None:
            fields = mapping.mapped()
            names = {name: tuple(fields[name].columns) if name in fields else () for name in names}
        columns = SourceColumns(
            source.source,
            names["email"],
            names["external_id"],
            source.delimiter or ",",
            source.encoding or "utf-8",
        )
        with contextlib.suppress(InputError):
            for path in find_files(source, home):
                found[path] = columns
    return found


@dataclass
class Finder:
    """Finds files of a person under a home folder, and takes the person out of them.

    Attributes:
        sources: gives the files of sources (`source_columns`).
    """

    home: Path
    sources: Callable[[], Mapping[Path, SourceColumns]] = dict

    def find(self, person: Person) -> list[Found]:
        """Every file with something of the person."""
        search = Search.of(person)
        packed = [struct.pack("<q", one) for one in sorted(person.contact_ids)]
        sources = self.sources()
        found: list[Found] = []
        for path in self._files():
            one = self._judge(path, search, packed, person, sources.get(path.resolve()))
            if one is not None:
                found.append(one)
        return found

    def outside(self, person: Person) -> list[Path]:
        """Files of sources that lie elsewhere and have rows of the person: they are others' to change."""
        search, home = Search.of(person), self.home.resolve()
        return [
            path
            for path, columns in self.sources().items()
            if not path.is_relative_to(home) and self._has_rows(path, columns, person, search)
        ]

    def erase(self, found: Found, person: Person) -> None:
        """Take the person out of a file; what cannot be done stays for `find` to report."""
        search = Search.of(person)
        path = found.path
        match found.kind:
            case "mail" | "preview" | "model":
                overwrite(path)
                path.unlink(missing_ok=True)
            case "source rows":
                _without_rows(path, self.sources().get(path.resolve()) or SourceColumns(""), person, search)
            case "database":
                _scrubbed(path, search)
            case "text":
                _masked(path, search)
            case "unknown":
                pass

    def _files(self) -> Iterator[Path]:
        for folder, folders, names in os.walk(self.home):
            here = Path(folder)
            if here == self.home:
                folders[:] = [one for one in folders if one not in _SKIPPED_FOLDERS]
            for name in sorted(names):
                path = here / name
                if path.is_symlink() or (here == self.home and name in _SKIPPED_FILES):
                    continue
                yield path

    def _judge(
        self, path: Path, search: Search, packed: list[bytes], person: Person, columns: SourceColumns | None
    ) -> Found | None:
        parts = path.relative_to(self.home).parts if path.is_relative_to(self.home) else path.parts
        try:
            with _mapped(path) as data:
                if data is None:
                    return None
                head = bytes(data[:16])
                if head == _SQLITE:
                    return (
                        Found(path, "database", "rows or free pages name the person")
                        if search.is_in(data)
                        else None
                    )
                if (
                    path.name.endswith(("-wal", "-journal"))
                    and path.with_name(path.name.rsplit("-", 1)[0]).exists()
                ):
                    # part of a database, which is compacted as a whole
                    return (
                        Found(
                            path.with_name(path.name.rsplit("-", 1)[0]),
                            "database",
                            "its log names the person",
                        )
                        if search.is_in(data)
                        else None
                    )
                content = gzip.decompress(data[:]) if head[:2] == b"\x1f\x8b" else data
                is_binary = b"\0" in bytes(content[:8192])
                if _MAIL_FOLDERS & set(parts):
                    is_theirs = search.is_in(content) or _is_addressed(bytes(content[: 1 << 20]), search)
                    return Found(path, "mail", "a message to the person") if is_theirs else None
                if columns is not None or (parts[0] == "inbox" and _format(path) in _TABLES):
                    has = self._has_rows(path, columns or SourceColumns(""), person, search)
                    return Found(path, "source rows", "rows of the person") if has else None
                if path.suffix == ".model":
                    has = search.is_in(content) or any(content.find(one) >= 0 for one in packed)
                    return Found(path, "model", "the model holds the person's id") if has else None
                if not search.is_in(content):
                    return None
                if "previews" in parts:
                    return Found(path, "preview", "a preview for the person")
                return Found(path, "unknown" if is_binary else "text", "names the person")
        except (OSError, EOFError) as error:
            return Found(path, "unknown", f"cannot be read: {error}")

    @staticmethod
    def _has_rows(path: Path, columns: SourceColumns, person: Person, search: Search) -> bool:
        try:
            return next(_their_rows(path, columns, person, search), None) is not None
        except (OSError, ValueError, pl.exceptions.PolarsError):
            return False


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | None]:
    """A file's bytes; None if it is empty, is no file, or went meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        yield None
        return
    try:
        if not path.is_file() or not os.fstat(descriptor).st_size:
            yield None
            return
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as data:
            yield data
    finally:
        os.close(descriptor)


def _is_addressed(content: bytes, search: Search) -> bool:
    """Headers may be encoded, so that the bytes do not show whom a message is to."""
    headers = email.parser.BytesHeaderParser(policy=email.policy.default).parsebytes(content)
    for name in _ADDRESSED:
        for value in headers.get_all(name, []):
            if search.is_in(str(value).encode("utf-8", "replace")):
                return True
    return False


def _format(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def _write(path: Path, content: bytes) -> None:
    """Put new content in a file's place, with its times: sources without times of their own go by the file's."""
    before = path.stat()
    packed = gzip.compress(content, mtime=0) if path.suffix == ".gz" else content
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("wb") as file:
        file.write(packed)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(partial, before.st_mode)  # noqa: PTH101 - by the mode of another file
    os.utime(partial, ns=(before.st_atime_ns, before.st_mtime_ns))
    overwrite(path)
    partial.replace(path)


def overwrite(path: Path) -> None:
    """Write zeros over a file's bytes, as far as the file system lets that reach the disk."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        left = os.fstat(file.fileno()).st_size
        while left > 0:
            left -= file.write(bytes(min(left, 1 << 20)))
        file.flush()
        os.fsync(file.fileno())


# files of sources


def _records(content: bytes) -> Iterator[bytes]:
    """Records of a table in text: a line, or several where a quoted field has line breaks."""
    pending = b""
    for line in content.splitlines(keepends=True):
        pending += line
        if pending.count(b'"') % 2 == 0:
            yield pending
            pending = b""
    if pending:
        yield pending


def _their_rows(path: Path, columns: SourceColumns, person: Person, search: Search) -> Iterator[int]:
    """Numbers of the records (from 0, the header included) of the person."""
    form = _format(path)
    if form == ".parquet":
        frame = pl.read_parquet(path)
        yield from (
            place for place, theirs in enumerate(_theirs_of(frame, columns, person, search)) if theirs
        )
        return
    content = _read(path)
    header: list[str] = []
    for place, record in enumerate(
        _records(content) if form in (".csv", ".tsv", ".txt") else content.splitlines()
    ):
        if form in (".csv", ".tsv", ".txt"):
            text = record.decode(columns.encoding, "replace")
            fields = next(
                csv.reader(io.StringIO(text), delimiter="\t" if form == ".tsv" else columns.delimiter), []
            )
            if place == 0:
                header = [one.lstrip("\ufeff").strip() for one in fields]
                continue
            values: Mapping[str, object] = dict(zip(header, fields, strict=False))
        else:
            try:
                said = orjson.loads(record)
            except orjson.JSONDecodeError:
                said = None
            values = said if isinstance(said, dict) else {}
        if search.is_in(record) or _is_named(values, columns, person):
            yield place


def _is_named(values: Mapping[str, object], columns: SourceColumns, person: Person) -> bool:
    source = str(values.get("source") or columns.source)
    return any(
        normalised_email(str(values.get(name) or "")) in person.emails for name in columns.emails
    ) or any((source, str(values.get(name) or "").strip()) in person.records for name in columns.external_ids)


def _theirs_of(frame: pl.DataFrame, columns: SourceColumns, person: Person, search: Search) -> list[bool]:
    wanted = [one for one in (*columns.emails, *columns.external_ids) if one in frame.columns]
    texts = [name for name, kind in frame.schema.items() if kind == pl.String and name not in wanted]
    found = [False] * frame.height
    for name in wanted:
        values = frame[name].cast(pl.String, strict=False).fill_null("")
        for place, value in enumerate(values.to_list()):
            if value and _is_named({name: value}, columns, person):
                found[place] = True
    for name in texts:
        unique = [one for one in frame[name].unique().to_list() if one and search.is_in(one.encode())]
        if unique:
            theirs = frame[name].is_in(unique).fill_null(False).to_list()
            found = [before or now for before, now in zip(found, theirs, strict=True)]
    return found


def _without_rows(path: Path, columns: SourceColumns, person: Person, search: Search) -> None:
    theirs = set(_their_rows(path, columns, person, search))
    if not theirs:
        return
    form = _format(path)
    if form == ".parquet":
        frame = pl.read_parquet(path)
        kept = frame.filter(pl.Series([place not in theirs for place in range(frame.height)]))
        body = io.BytesIO()
        kept.write_parquet(body)
        _write(path, body.getvalue())
        return
    content = _read(path)
    records = _records(content) if form in (".csv", ".tsv", ".txt") else content.splitlines(keepends=True)
    _write(path, b"".join(one for place, one in enumerate(records) if place not in theirs))


# text and databases


def _masked(path: Path, search: Search) -> None:
    """Cross the person out where they stand; the length stays, so that a program which appends goes on."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        _write(path, search.masked(gzip.decompress(content)))
        return
    masked = search.masked(content)
    with path.open("r+b") as file:
        for start in range(0, len(content), 1 << 16):
            if masked[start : start + (1 << 16)] != content[start : start + (1 << 16)]:
                file.seek(start)
                file.write(masked[start : start + (1 << 16)])
        file.flush()
        os.fsync(file.fileno())


def _scrubbed(path: Path, search: Search) -> None:
    """Cross the person out of every text and blob of a SQLite database: Dagster's own, and whatever else lies there.

    The ledger and the stream have been dealt with by then: what is left in them is free pages.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)) as connection:
        connection.execute("pragma secure_delete = on")
        tables = [
            row[0]
            for row in connection.execute(
                "select name from sqlite_master where type = 'table' and name not like 'sqlite_%' and sql not like"
                " 'create virtual%'"
            )
        ]
        for table in tables:
            names = [row[1] for row in connection.execute(f'pragma table_info("{table}")')]
            for name in names:
                changed: list[tuple[object, int]] = []
                rows = connection.execute(
                    f'select rowid, "{name}" from "{table}" where typeof("{name}") in (\'text\', \'blob\')'  # noqa: S608 - names of the database's own
                )
                for rowid, value in rows:
                    data = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)
                    if search.is_in(data):
                        masked = search.masked(data)
                        changed.append((masked.decode() if isinstance(value, str) else masked, rowid))
                connection.executemany(f'update "{table}" set "{name}" = ? where rowid = ?', changed)  # noqa: S608
    vacuum(path)


def vacuum(path: Path) -> None:
    """Let no page of a SQLite database keep what was deleted, nor its log.

    Raises:
        InputError: another process has it open and does not let go.
    """
    try:
        with contextlib.closing(
            sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)
        ) as connection:
            connection.execute("pragma secure_delete = on")
            connection.execute("vacuum")
            connection.execute("pragma wal_checkpoint(truncate)")
    except sqlite3.OperationalError as error:
        raise InputError(
            f"{path} cannot be compacted: {error}.",
            fix="Let the process that uses it end, then give the same command again; it goes on from here.",
        ) from error


def compact(home: Path, ledger: Ledger) -> None:
    """The ledger and the stream, without what was deleted in them; PostgreSQL's own autovacuum does the same."""
    if ledger.engine.dialect.name == "postgresql":
        return
    database = ledger.engine.url.database
    for path in {
        *home.glob("*.db"),
        *([Path(database)] if database and not database.startswith("file:") else []),
    }:
        if path.exists():
            vacuum(path)
