"""`mailhouse segment`: begin a segment, see whom it would hold and what it would cost, list all there are.

A preview compiles the file as dbt does and asks the warehouse read-only; nothing is built, so a condition can be tried
until it is right.
"""

from __future__ import annotations

import re
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from rich.markup import escape
from rich.table import Table

from mailhouse.console import console
from mailhouse.engine import open_warehouse
from orchestration.lib import dbt_runs
from warehouse.client import Warehouse
from warehouse.errors import InputError, WarehouseError
from warehouse.settings import MailhouseSettings
from warehouse.yaml_specs import nearest, read_document, shown_path

KINDS = ("rule", "behavioural", "rfm", "predictive", "static", "nested")
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_LONGEST_NAME = 60
_DEFAULT_DESCRIPTION = "Say here in plain words who is in this segment, and what to do with them."
_LIST_HEADER = "email,external_id,source\n"
_WRITES = re.compile(r"\b(insert|alter|drop|create|truncate|rename|delete|update|grant|optimize)\b", re.I)
# error codes of ClickHouse that are the query's fault
_UNKNOWN_TABLE = 60
_SETTINGS = {"readonly": "2", "join_use_nulls": "1"}
"""As dbt sets them, and nothing may be written."""


# Files


def segments_dir() -> Path:
    """Folder of the segments' files."""
    return dbt_runs.PROJECT_DIR / "models" / "segments"


def segment_files() -> dict[str, Path]:
    """SQL file of each segment, by name."""
    return {path.stem: path for path in sorted(segments_dir().rglob("*.sql"))}


def segment_file(name: str) -> Path:
    """The SQL file of a segment.

    Raises:
        InputError: there is none.
    """
    files = segment_files()
    if name not in files:
        hint = nearest(name, list(files)) or "There are no segments yet."
        raise InputError(
            f"There is no segment {name!r} in {shown_path(segments_dir())}.",
            fix=f"{hint} Begin a new one with `mailhouse segment new {name}`.",
        )
    return files[name]


def kind_of(path: Path) -> str:
    """Kind of a segment, as the YAML file beside it says under `config.meta.kind`; empty if it does not."""
    beside = path.with_suffix(".yml")
    if not beside.exists():
        return ""
    for model in read_document(beside).values.get("models") or []:
        if isinstance(model, dict) and model.get("name") == path.stem:
            meta = (model.get("config") or {}).get("meta") or {}
            return str(meta.get("kind", ""))
    return ""


# New


def new(name: str, kind: str, description: str | None) -> list[Path]:
    """Write the SQL and YAML of a new segment, for a static one its list too; returns the files.

    Raises:
        InputError: the name is taken or cannot be one, the kind does not exist, or the description cannot be kept.
    """
    _check_name(name)
    if kind not in KINDS:
        raise InputError(f"{kind!r} is no kind of segment.", fix=nearest(kind, KINDS))
    text = " ".join((description or _DEFAULT_DESCRIPTION).split())
    if not text or any(ord(character) < 32 for character in text) or re.search(r"\{\{|\{%|\{#", text):
        raise InputError(
            "The description is empty or holds {{, {% or {#, which dbt would take for its own.",
            fix='Write a sentence: --description "People who ..."',
        )
    sql = segments_dir() / f"{name}.sql"
    files = {sql.with_suffix(".yml"): _yaml(name, kind, text), sql: _sql(name, kind)}
    if kind == "static":
        members = MailhouseSettings.load().content_dir / "lists" / f"{name}.csv"
        if not members.exists():
            files[members] = _LIST_HEADER
    written: list[Path] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x") as file:
                file.write(content)
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        what = (
            "exists already" if isinstance(error, FileExistsError) else f"cannot be written: {error.strerror}"
        )
        raise InputError(
            f"{shown_path(Path(str(error.filename)))} {what}.",
            fix="Choose another name, or edit or delete the file.",
        ) from None
    return list(files)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST_NAME:
        tried = re.sub(r"_+", "_", re.sub(r"[^a-z0-9]+", "_", name.lower())).strip("_")[:_LONGEST_NAME]
        raise InputError(
            f"{name!r} cannot name a segment: it becomes a table, so write small letters, digits and single _"
            f" between them, beginning with a letter, at most {_LONGEST_NAME} characters.",
            fix=f"Try {tried}." if _NAME.fullmatch(tried) else "Try one such as french_champions.",
        )
    project = dbt_runs.PROJECT_DIR
    taken = [*(project / "models").rglob("*.sql"), *(project / "seeds").rglob("*.csv")]
    for path in (*taken, segments_dir() / f"{name}.yml"):
        if path.stem == name and path.exists():
            raise InputError(
                f"The name {name} is taken: {shown_path(path)} exists.",
                fix="Choose another name, or edit that file.",
            )


def _yaml(name: str, kind: str, description: str) -> str:
    body = textwrap.fill(description, 112, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return f"""version: 2

models:
  - name: {name}
    description: >
{body}

      Key: contact_id. Grain: one contact in the segment now.
    config:
      meta: {{kind: {kind}}}
    columns:
      - name: contact_id
        description: The contact.
        data_type: Int64
"""


def _sql(name: str, kind: str) -> str:
    profiles = _source("profiles", "int_contacts__profiled")
    match kind:
        case "rule":
            sources, more = (
                [profiles],
                (
                    "-- any columns of int_contacts__profiled\nand has_marketing_consent\nand orders_count >= 1"
                ),
            )
        case "rfm":
            sources, more = (
                [profiles],
                (
                    "-- names are in seeds/rfm_segments.csv; scores are 1 (least) to 5 (most)\n"
                    "and rfm_segment in ('champions', 'loyal_customers')\nand monetary_score >= 4"
                ),
            )
        case "behavioural":
            sources, more = (
                [profiles, _source("browsed", "int_contacts__browsed")],
                (
                    "-- looked at something within two days and has not ordered since\n"
                    "and contact_id in (\n"
                    "    select browsed.contact_id from browsed\n"
                    "    where browsed.last_viewed_at >= {{ now() }} - toIntervalDay(2)\n"
                    ")\n"
                    "and (last_order_at is null or last_order_at < {{ now() }} - toIntervalDay(2))"
                ),
            )
        case "predictive":
            sources, more = (
                [profiles, _source("predictions", "int_predictions__current")],
                (
                    "-- scores of the model version in use, as raw.predictions has them\n"
                    "and contact_id in (select contact_id from predictions where model = 'churn' and score >= 0.5)"
                ),
            )
        case "static":
            sources, more = (
                [profiles, _source("members", "int_lists__identified")],
                (
                    f"-- the people of content/lists/{name}.csv\n"  # noqa: S608
                    f"and contact_id in (select contact_id from members where list = '{name}')"
                ),
            )
        case _:
            others = [other for other in segment_files() if other != name]
            if not others:
                raise InputError(
                    "A nested segment builds on another, and there is none yet.",
                    fix="Begin with one of another kind.",
                )
            other = "champions" if "champions" in others else others[0]
            sources, more = (
                [profiles, _source(other, other)],
                (
                    f"-- whoever is in {other}, narrowed by what you add\n"  # noqa: S608
                    f"and contact_id in (select contact_id from {other})\nand has_marketing_consent"
                ),
            )
    condition = textwrap.indent(f"not is_deleted\n{more}", "    ")
    return "with\n\n" + ",\n\n".join(sources) + f"\n\nselect contact_id\nfrom profiles\nwhere\n{condition}\n"


def _source(name: str, model: str) -> str:
    return f"{name} as (\n\n    select * from {{{{ ref('{model}') }}}}\n\n)"  # noqa: S608


def run_new(name: str, kind: str, description: str | None) -> None:
    """`mailhouse segment new`."""
    for path in new(name, kind, description):
        console.print(f"[green]wrote[/] {escape(shown_path(path))}", soft_wrap=True)
    steps = [
        f"Edit the condition in {name}.sql" + ("" if description else f" and the description in {name}.yml")
    ]
    if kind == "static":
        steps = [f"Put people into content/lists/{name}.csv, one a line: an email, or external_id and source"]
        steps.append("Load the list: materialise the asset of the lists in Dagster")
    steps += [
        f"See who would be in it: mailhouse segment preview {name}",
        f"Build it: materialise segments/{name} in Dagster",
        f"Name it in a campaign: audience: {{segment: {name}}}",
    ]
    for number, step in enumerate(steps, 1):
        console.print(f"{number}. {step}", markup=False, soft_wrap=True)


# Preview


@dataclass(frozen=True)
class Cost:
    """What a query read and how long it took, as the engine told."""

    rows: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Preview:
    """Whom a segment would hold if it were built now.

    Attributes:
        name: the segment.
        size: contacts in it.
        contacts: contacts there are, deleted ones not counted; None if `marts.contacts` has not been built.
        repeated: rows beyond the first of a contact, which a segment must not have.
        would_enter: contacts that building it would add; None if it was never built.
        would_leave: contacts that building it would remove.
        sample: contact_id, email and country of some members.
        overlaps: segment, size and shared of the other segments that share somebody, most shared first.
        cost: of finding the members.
    """

    name: str
    size: int
    contacts: int | None
    repeated: int
    would_enter: int | None
    would_leave: int | None
    sample: pl.DataFrame
    overlaps: pl.DataFrame
    cost: Cost


def preview(settings: MailhouseSettings, warehouse: Warehouse, name: str, *, sample: int = 10) -> Preview:
    """Compile a segment and ask whom it would hold; builds and writes nothing.

    Raises:
        InputError: there is no such segment, it does not compile, reads a model that was never built, or is no
            query that ClickHouse understands; names file, line and remedy.
    """
    path = segment_file(name)
    sql = _compiled(settings, warehouse, path)
    members = f"(\n{sql}\n)"
    _check_columns(warehouse, path, members)
    counted, cost = _measured(
        warehouse,
        path,
        f"select count(), uniqExact(contact_id) from {members} where contact_id is not null",  # noqa: S608
    )
    rows, size = counted
    built = _tables(warehouse)
    contacts = None
    if "marts.contacts" in built:
        contacts = int(
            _ask(warehouse, path, "select count() from marts.contacts where not is_deleted").item()
        )
    entering = leaving = None
    if f"segments.{name}" in built:
        change = _ask(
            warehouse,
            path,
            f"""
            select uniqExactIf(contact_id, is_new) as entering, uniqExactIf(contact_id, not is_new) as leaving
            from (
                select contact_id, true as is_new from {members}
                where contact_id not in (select contact_id from segments.`{name}`)
                union all
                select contact_id, false as is_new from segments.`{name}`
                where contact_id not in (select contact_id from {members})
            )
            """,  # noqa: S608
        )
        entering, leaving = (int(value) for value in change.row(0))
    found = _ask(
        warehouse,
        path,
        f"select distinct assumeNotNull(contact_id)::Int64 as contact_id from {members}"  # noqa: S608
        f" where contact_id is not null order by sipHash64(contact_id) limit {int(sample)}",
    )
    return Preview(
        name,
        size,
        contacts,
        rows - size,
        entering,
        leaving,
        _with_emails(warehouse, found) if "marts.contacts" in built else found,
        _overlaps(warehouse, path, name, members) if "marts.segment_memberships" in built else _no_overlaps(),
        cost,
    )


def _compiled(settings: MailhouseSettings, warehouse: Warehouse, path: Path) -> str:
    """The segment's SQL with every ref resolved, all of which exist."""
    from dbt_common.exceptions import DbtBaseException

    name = path.stem
    try:
        manifest = dbt_runs.load_manifest(settings)
        with tempfile.TemporaryDirectory() as target:
            result = dbt_runs.invoke(
                ["compile", "--select", name, "--no-write-json"],
                settings,
                manifest=manifest,
                target=Path(target),
            )
    except (dbt_runs.ModelsError, DbtBaseException) as error:
        raise _uncompiled(path, str(getattr(error, "message", "") or error)) from None
    [node] = [one.node for one in result.result.results if one.node.name == name]
    nodes = {**manifest.nodes, **manifest.sources}
    needed = [nodes[unique_id] for unique_id in node.depends_on.nodes]
    built = _tables(warehouse)
    for other in needed:
        table = getattr(other, "alias", None) or getattr(other, "identifier", other.name)
        if f"{other.schema}.{table}" not in built:
            raise InputError(
                f"{_place(path, other.name)}: it reads {other.name}, which has never been built.",
                fix=_unbuilt_fix(other),
            )
    sql = node.compiled_code.strip().rstrip(";").rstrip()
    if re.match(r"\s*(--[^\n]*\n\s*)*" + _WRITES.pattern, sql, re.IGNORECASE):
        raise InputError(
            f"{_place(path)}: it is no query.", fix="A segment is one select that gives contact_id."
        )
    return sql


def _unbuilt_fix(other: Any) -> str:
    if other.resource_type == "source":
        return "Start Mailhouse once with `mailhouse up`: it makes the raw tables."
    if other.fqn[1] == "segments":
        return f"Build {other.name} first: materialise segments/{other.name} in Dagster, or preview that one."
    return f"Build the models first: materialise {other.schema}/{other.name} and what it needs in Dagster."


def _uncompiled(path: Path, message: str) -> InputError:
    """dbt's complaint as one sentence with file, line and remedy."""
    unknown = re.search(r"depends on a (?:node|source) named '([^']+)'[^']*which was not found", message)
    if unknown and path.name in message:
        missing = unknown.group(1)
        models = sorted(file.stem for file in (dbt_runs.PROJECT_DIR / "models").rglob("*.sql"))
        close = nearest(missing, models, shown=0).removesuffix("Allowed: .").strip()
        return InputError(
            f"{_place(path, missing)}: there is no model {missing!r}.",
            fix=close if close.startswith("Did") else "Name a model or a segment in ref('...').",
        )
    lines = [
        line.strip() for line in message.splitlines() if line.strip() and not line.strip().startswith(">")
    ]
    told = " ".join(
        line for line in lines if not re.match(r"(line \d+$|Compilation Error|dbt \w+ failed)", line)
    )
    number = re.search(r"\bline (\d+)", message)
    if path.name in message:
        # jinja counts lines of the file itself
        place = f"{shown_path(path)}:{number.group(1) if number else 1}"
        return InputError(f"{place}: {told or message}", fix="Correct the file at that line.")
    return InputError(
        f"The dbt project does not parse: {told or message}",
        fix="Correct the file that dbt names, then preview again.",
    )


def _check_columns(warehouse: Warehouse, path: Path, members: str) -> None:
    described = _ask(warehouse, path, f"describe table {members}")
    types = dict(zip(described["name"], described["type"], strict=True))
    if "contact_id" not in types:
        raise InputError(
            f"{_place(path)}: it selects {', '.join(types)}, and no contact_id.",
            fix="Let the last select give contact_id.",
        )
    if types["contact_id"] not in ("Int64", "Nullable(Int64)"):
        raise InputError(
            f"{_place(path, 'contact_id', is_last=True)}: contact_id is {types['contact_id']}, not Int64.",
            fix="Select contact_id from int_contacts__profiled or another segment.",
        )


def _measured(warehouse: Warehouse, path: Path, sql: str) -> tuple[list[int], Cost]:
    begun = time.perf_counter()
    try:
        row, told = warehouse.measured(sql, _SETTINGS)
    except WarehouseError as error:
        raise _misunderstood(path, error) from None
    seconds = time.perf_counter() - begun
    if told.get("elapsed_ns"):
        seconds = told["elapsed_ns"] / 1e9
    return [int(value) for value in row], Cost(told.get("read_rows", 0), told.get("read_bytes", 0), seconds)


def _ask(warehouse: Warehouse, path: Path, sql: str) -> pl.DataFrame:
    try:
        return warehouse.frame(sql, settings=_SETTINGS)
    except WarehouseError as error:
        raise _misunderstood(path, error) from None


def _misunderstood(path: Path, error: WarehouseError) -> Exception:
    """ClickHouse's complaint with the place in the segment's file that it most likely means."""
    if error.code is None or not error.code:
        return error
    message = error.message.removeprefix("ClickHouse refused a query: ")
    message = (
        re.split(r" ?[Ii]n scope |: [Ww]hile |\. Expected one of|Stack trace", message)[0]
        .strip()
        .rstrip(".: ")
    )
    words = re.findall(r"[`']([A-Za-z_][\w.]*)[`']", message)
    failed = re.search(r"failed at position \d+ \(([^)]+)\)", message)
    word = failed.group(1) if failed else words[0].split(".")[-1] if words else ""
    suggested = re.search(r"[Mm]aybe you meant:? ?\[?'?([\w.`, ']+?)'?\]?$", message)
    fix = "Correct the SQL there."
    if suggested:
        message = message[: suggested.start()].rstrip(". ")
        fix = f"Did you mean {suggested.group(1)}?"
    elif error.code == _UNKNOWN_TABLE:
        fix = "Write {{ ref('model') }} rather than the table's name, so that it is built before."
    return InputError(f"{_place(path, word)}: ClickHouse says: {message}.", fix=fix)


def _place(path: Path, word: str = "", *, is_last: bool = False) -> str:
    """`file:line` of the first line with a word, the last if asked; line 1 if none has it."""
    numbers = [
        number
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if word and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", line)
    ]
    return f"{shown_path(path)}:{numbers[-1 if is_last else 0] if numbers else 1}"


def _tables(warehouse: Warehouse) -> set[str]:
    frame = warehouse.frame("select concat(database, '.', name) as name from system.tables")
    return set(frame["name"])


def _with_emails(warehouse: Warehouse, sample: pl.DataFrame) -> pl.DataFrame:
    if sample.is_empty():
        return sample
    people = warehouse.frame(
        "select contact_id, email, ifNull(country, '') as country from marts.contacts"
        " where contact_id in (select contact_id from sample)",
        external={"sample": sample},
    )
    return sample.join(people, on="contact_id", how="left", maintain_order="left")


def _overlaps(warehouse: Warehouse, path: Path, name: str, members: str) -> pl.DataFrame:
    return _ask(
        warehouse,
        path,
        f"""
        select segment::String as segment, count()::UInt64 as size,
            countIf(contact_id in (select contact_id from {members}))::UInt64 as shared
        from marts.segment_memberships
        where valid_to is null and segment != '{name}'
        group by segment having shared > 0 order by shared desc, size, segment
        """,  # noqa: S608
    )


def _no_overlaps() -> pl.DataFrame:
    return pl.DataFrame(schema={"segment": pl.String(), "size": pl.UInt64(), "shared": pl.UInt64()})


def masked(email: str | None) -> str:
    """An address that nobody can write to: `ann@example.com` as `a**@example.com`."""
    local, at, host = (email or "").rpartition("@")
    return f"{local[:1]}{'*' * max(len(local) - 1, 2)}{at}{host}" if at else ""


def run_preview(name: str, *, show_emails: bool, sample: int) -> None:
    """`mailhouse segment preview`."""
    path = segment_file(name)
    settings = MailhouseSettings.load()
    with open_warehouse(settings, "mailhouse segment preview") as warehouse:
        found = preview(settings, warehouse, name, sample=sample)
    share = f", {found.size / found.contacts:.1%} of {found.contacts:,} contacts" if found.contacts else ""
    console.print(f"[bold]{name}[/] [dim]{escape(shown_path(path))}[/]", soft_wrap=True)
    console.print(f"Size      {found.size:,}{share}")
    if found.would_enter is None:
        console.print("Built     never; this is whom it would hold")
    else:
        console.print(f"Building  would add {found.would_enter:,} and remove {found.would_leave:,}")
    cost = found.cost
    console.print(f"Cost      {cost.rows:,} rows, {_bytes(cost.bytes)} read, {cost.seconds:.2f} s")
    if found.repeated:
        console.print(
            f"[yellow]Warning[/]   {found.repeated:,} rows repeat a contact; a segment holds each once."
            " Write `select distinct contact_id`.",
            soft_wrap=True,
        )
    if found.sample.height:
        table = Table("contact_id", "email", "country", title="Some of them", title_justify="left")
        for row in found.sample.iter_rows(named=True):
            email = row.get("email") or ""
            shown = email if show_emails else masked(email)
            table.add_row(str(row["contact_id"]), escape(shown), escape(row.get("country") or ""))
        console.print(table)
    if found.overlaps.height:
        table = Table("segment", title="Who of them is elsewhere too", title_justify="left")
        for heading in ("its size", "shared", "share of this", "jaccard"):
            table.add_column(heading, justify="right")
        for row in found.overlaps.iter_rows(named=True):
            either = found.size + row["size"] - row["shared"]
            table.add_row(
                row["segment"],
                f"{row['size']:,}",
                f"{row['shared']:,}",
                f"{row['shared'] / found.size:.0%}",
                f"{row['shared'] / either:.2f}",
            )
        console.print(table)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError


# List


@dataclass(frozen=True)
class Listed:
    """One segment in the list.

    Attributes:
        name: the segment.
        kind: as its YAML says.
        size: members as of the last build, None if it was never built.
        entered: times somebody entered within a day.
        left: times somebody left within a day.
        built_at: when it was last built, by the wall clock.
        has_file: whether its file is still there.
    """

    name: str
    kind: str
    size: int | None
    entered: int
    left: int
    built_at: datetime | None
    has_file: bool = True


def listed(settings: MailhouseSettings, warehouse: Warehouse) -> list[Listed]:
    """All segments, those whose file is gone but whose table is still there last."""
    built = {
        str(row["name"]): row
        for row in warehouse.frame(
            """
            select name, total_rows as size, metadata_modification_time as built_at
            from system.tables where database = 'segments'
                and name not like '%\\_\\_dbt\\_%' and not startsWith(name, '_tmp_replace_')
            """
        ).to_dicts()
    }
    changes: dict[str, tuple[int, int]] = {}
    if "marts.segment_changes" in _tables(warehouse):
        since = settings.now() - timedelta(days=1)
        frame = warehouse.frame(
            """
            select segment::String as segment, countIf(change = 'entered') as entered, countIf(change = 'left') as left
            from marts.segment_changes where changed_at >= {since:DateTime64(3, 'UTC')} group by segment
            """,
            {"since": since.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]},
        )
        changes = {segment: (int(entered), int(left)) for segment, entered, left in frame.iter_rows()}
    files = segment_files()
    rows: list[Listed] = []
    for name in (*files, *sorted(built.keys() - files.keys())):
        there = built.get(name)
        entered, left = changes.get(name, (0, 0))
        rows.append(
            Listed(
                name,
                kind_of(files[name]) if name in files else "",
                int(there["size"]) if there else None,
                entered,
                left,
                _utc(there["built_at"]) if there else None,
                name in files,
            )
        )
    return rows


def _utc(moment: datetime | int) -> datetime:
    """A DateTime as Arrow gives it: with a zone, without (UTC), or as seconds."""
    if isinstance(moment, datetime):
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return datetime.fromtimestamp(moment, UTC)


def run_list() -> None:
    """`mailhouse segment list`."""
    settings = MailhouseSettings.load()
    with open_warehouse(settings, "mailhouse segment list") as warehouse:
        rows = listed(settings, warehouse)
    table = Table()
    table.add_column("segment", no_wrap=True)
    table.add_column("kind", no_wrap=True)
    for heading in ("size", "entered", "left", "built"):
        table.add_column(heading, justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for row in rows:
        built = "never" if row.built_at is None else _ago(now - row.built_at)
        size = "" if row.size is None else f"{row.size:,}"
        name = row.name if row.has_file else f"{row.name} (file deleted)"
        table.add_row(
            name, row.kind or "?", size, *(f"{n:,}" if n else "" for n in (row.entered, row.left)), built
        )
    console.print(table)
    console.print("[dim]entered, left: within 24 hours[/]")
    _say(rows)


def _say(rows: Sequence[Listed]) -> None:
    if not rows:
        console.print("There are no segments. Begin one with `mailhouse segment new NAME`.")
    elif all(row.size is None for row in rows):
        console.print("None has been built. Materialise them in Dagster: `mailhouse up`.")


def _ago(span: timedelta) -> str:
    seconds = max(span.total_seconds(), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"
