"""Static lists: who is on them is a file that people edit, `content/lists/<list>.csv`.

The header names `email`, `external_id` or both, and may name `source`, the system that the external_id is of; other
columns are notes. The file says who is on the list: a line that was added enters, one that was taken out leaves, a file
that was deleted is left by all. Each change is a row of `raw.list_members`; loading the same file again adds none.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from crm import columns as read
from crm.locks import one_at_a_time
from crm.readers import Want, read_chunks
from crm.specs import Value
from warehouse.client import Warehouse
from warehouse.erasures import without_erased
from warehouse.errors import InputError
from warehouse.loads import UTC_MS, clear_quarantine, quarantine
from warehouse.yaml_specs import nearest, shown_path

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_KEY = ("source", "external_id", "email")
_EXAMPLES = 5
_SOURCE, _OBJECT = "lists", "list_member"


@dataclass(frozen=True)
class ListReport:
    """What became of one list.

    Attributes:
        name: the list.
        file: where it stands.
        members: people on it now, as the file names them.
        entered: lines that are new.
        left: lines that are gone.
        quarantined: lines that could not be read.
        examples: the first of them, as `file:line: reason`.
    """

    name: str
    file: str
    members: int
    entered: int
    left: int
    quarantined: int = 0
    examples: tuple[str, ...] = ()


def find_lists(content_dir: Path) -> dict[str, Path]:
    """Files of `content/lists`, by the name of the list.

    Raises:
        InputError: a file there is no list.
    """
    folder = content_dir / "lists"
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith((".", "_")) or path.suffix == ".md":
            continue
        if path.suffix != ".csv" or not _NAME.fullmatch(path.stem):
            raise InputError(
                f"{shown_path(path)} is no list.",
                fix="Name it in small letters, digits and _ with the ending .csv, or move it elsewhere.",
            )
        found[path.stem] = path
    return found


def load_lists(
    warehouse: Warehouse, content_dir: Path, *, base_dir: Path, run_id: str = "", now: datetime | None = None
) -> tuple[ListReport, ...]:
    """Bring `raw.list_members` in line with the files of `content/lists`; safe to repeat at any time.

    Args:
        warehouse: where to.
        content_dir: the folder of what marketers write.
        base_dir: the home folder, where loads take turns.
        run_id: who loads, e.g. Dagster's run.
        now: the time through the settings' clock.

    Raises:
        InputError: a file is no list, or has not one line that can be read though it has some; before anything is
            changed.
        WarehouseError: ClickHouse refused.
    """
    moment = (now or datetime.now(UTC)).astimezone(UTC)
    files = find_lists(content_dir)
    with one_at_a_time(base_dir, _SOURCE):
        read_lists = {name: _read(path) for name, path in files.items()}
        reports = []
        for name, (rows, bad) in read_lists.items():
            shown = shown_path(files[name])
            clear_quarantine(warehouse, source=_SOURCE, object=_OBJECT, file=shown)
            if bad.height:
                quarantine(warehouse, bad, source=_SOURCE, object=_OBJECT, run_id=run_id)
            entered, left = _apply(warehouse, name, rows, moment)
            examples = tuple(
                f"{shown}:{line}: {why}" for line, why in bad.select("line", "reason").head(_EXAMPLES).rows()
            )
            reports.append(ListReport(name, shown, rows.height, entered, left, bad.height, examples))
        if (content_dir / "lists").is_dir():
            # without the folder nothing is said of any list; a deleted file says that the list is over
            for name in _stored_lists(warehouse) - files.keys():
                shown = shown_path(content_dir / "lists" / f"{name}.csv")
                _, left = _apply(warehouse, name, _no_rows(), moment)
                if left:
                    reports.append(ListReport(name, shown, 0, 0, left))
    return tuple(reports)


def _no_rows() -> pl.DataFrame:
    return pl.DataFrame(schema=dict.fromkeys(_KEY, pl.String()))


def _read(path: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The list's people, each once, and the lines that name nobody: file, line, reason, content."""
    shown = shown_path(path)
    _check_header(path, shown)
    people: list[pl.DataFrame] = [_no_rows()]
    bad: list[tuple[str, int, str, str]] = []
    for chunk in read_chunks(path, "csv", Want((), _KEY), shown=shown):
        bad += [(shown, row.line, row.reason, row.content) for row in chunk.bad]
        if chunk.frame.is_empty():
            continue
        schema = chunk.frame.schema
        parsed = read.email("email", Value(column="email"), chunk.frame)
        rows = chunk.frame.select(
            read.text(Value(column="source"), schema).alias("source"),
            read.text(Value(column="external_id"), schema).alias("external_id"),
            parsed.value.str.to_lowercase().alias("email"),
            parsed.reason.alias("reason"),
        ).with_columns(
            chunk.lines.alias("line"),
            pl.Series("content", chunk.texts or [""] * chunk.frame.height, pl.String),
            pl.coalesce(
                "reason",
                pl.when(pl.col("email").is_null() & pl.col("external_id").is_null()).then(
                    pl.lit("email and external_id are missing")
                ),
            ).alias("reason"),
        )
        for line, reason, content in (
            rows.filter(pl.col("reason").is_not_null()).select("line", "reason", "content").rows()
        ):
            bad.append((shown, line, reason, content))
        good = rows.filter(pl.col("reason").is_null())
        people.append(
            good.select(
                # without an external_id its source says nothing
                pl.when(pl.col("external_id").is_not_null())
                .then(pl.col("source").fill_null(""))
                .otherwise(pl.lit("")),
                pl.col("external_id").fill_null(""),
                pl.col("email").fill_null(""),
            ).select(pl.nth(0).alias("source"), pl.nth(1).alias("external_id"), pl.nth(2).alias("email"))
        )
    rows = pl.concat(people).unique(_KEY, keep="first", maintain_order=True)
    if bad and rows.is_empty():
        _, line, reason, _ = min(bad, key=lambda row: row[1])
        raise InputError(
            f"{shown}:{line}: {reason}; no line of the list can be read, so it was left as it is.",
            fix="Correct the lines. To empty the list, leave the header alone in the file.",
        )
    columns = {"file": pl.String(), "line": pl.UInt64(), "reason": pl.String(), "content": pl.String()}
    return rows, pl.DataFrame(sorted(bad, key=lambda row: row[1]), schema=columns, orient="row")


def _check_header(path: Path, shown: str) -> None:
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            header = [name.strip() for name in next(_lines(csv.reader(handle)), [])]
    except UnicodeDecodeError:
        return  # the reader says what is wrong with it
    except OSError as error:
        raise InputError(
            f"{shown} cannot be read: {error.strerror}.", fix="Make it a readable file."
        ) from None
    if header and not {"email", "external_id"} & set(header):
        close = next((nearest(name, ("email", "external_id"), shown=2) for name in header), "")
        raise InputError(
            f"{shown}:1: the header has neither email nor external_id.",
            fix=f"{close} Write a header line such as: email,external_id,source",
        )


def _lines(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    try:
        yield from reader
    except csv.Error:
        return


def _apply(warehouse: Warehouse, name: str, rows: pl.DataFrame, now: datetime) -> tuple[int, int]:
    """Note who entered and who left; returns how many. Who was erased is on no list."""
    rows = without_erased(warehouse, rows)
    stored = warehouse.frame(
        """
        select source::String as source, external_id, lower(trim(email)) as email,
            argMax(is_member, tuple(list_members.changed_at, loaded_at)) as is_member,
            max(list_members.changed_at) as changed_at
        from raw.list_members as list_members where list = {list:String}
        group by source, external_id, email
        """,
        {"list": name},
    )
    before = stored.filter("is_member")
    entered = rows.join(before, on=list(_KEY), how="anti").with_columns(pl.lit(True).alias("is_member"))
    left = (
        before.select(_KEY)
        .join(rows, on=list(_KEY), how="anti")
        .with_columns(pl.lit(False).alias("is_member"))
    )
    changes = pl.concat([entered.select(*_KEY, "is_member"), left])
    if changes.is_empty():
        return 0, 0
    at = pl.lit(now.replace(tzinfo=None), pl.Datetime("ms")).dt.replace_time_zone("UTC")
    known = stored.select(*_KEY, pl.col("changed_at").cast(UTC_MS))
    changes = changes.join(known, on=list(_KEY), how="left").select(
        pl.lit(name).alias("list"),
        *_KEY,
        "is_member",
        # the clock may have been set back: the last change has to stay the last
        pl.max_horizontal(at, pl.col("changed_at") + pl.duration(milliseconds=1))
        .cast(UTC_MS)
        .alias("changed_at"),
    )
    warehouse.insert("raw.list_members", changes)
    return entered.height, left.height


def _stored_lists(warehouse: Warehouse) -> set[str]:
    return set(warehouse.frame("select distinct list::String as list from raw.list_members")["list"])
