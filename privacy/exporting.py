# ruff: noqa: S608  (queries are put together from the warehouse's own catalogue and names of this package)
"""Everything that is held of a person, for the person: one JSON file for machines, one HTML page for people.

The proof of consent comes first. Every row of every store is there, with what the store is for; nobody else's data, and
no secrets. Rows are written as they come, so that a long history needs no memory.
"""

from __future__ import annotations

import base64
import html
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO

import sqlalchemy as sa

from privacy import streams
from privacy.erasing import Place, firings_of, parts_of, theirs
from privacy.person import Person
from privacy.stores import LEDGER, StoreTable, quoted, require_registered
from senders.tables import message_changes, messages, plans, trigger_firings

FORMAT: Final = "mailhouse-gdpr-export"
_FIRST: Final = ("raw.consents", "raw.crm_records", "marts.contact_profiles", "raw.events", "raw.messages")
_ROWS_SHOWN: Final = 500
_COLUMNS_SHOWN: Final = 8  # of a table; rows with more are lists
_ROWS = 5_000
_INTERNAL: Final = frozenset(("event_hash", "message_hash", "run_id"))
_NAMES: Final = (
    ("contact_ids", "Contacts"), ("emails", "Addresses"), ("records", "Records at sources"), ("phones", "Telephones"),
    ("push_tokens", "Devices"), ("visitors", "Visitors"), ("spellings", "As written"),
)  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What was written: the files, and rows by store."""

    json: Path
    html: Path
    counts: dict[str, int]


def export(place: Place, person: Person, folder: Path, now: datetime) -> Exported:
    """Write everything that is held of a person into a folder, readable by its owner only.

    Raises:
        InputError: a store is not known, so that nobody could say that this is everything.
        OSError: the folder cannot be written.
    """
    require_registered(place.warehouse)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    stem = f"person-{min(person.contact_ids, default=0) or 'unknown'}"
    paths = folder / f"{stem}.json", folder / f"{stem}.html"
    counts: dict[str, int] = {}
    with ExitStack() as stack:
        data, page = (stack.enter_context(_private(path)) for path in paths)
        head = {
            "format": FORMAT, "format_version": 1, "exported_at": now.isoformat(timespec="seconds"),
            "person": {name: sorted(_plain(one) for one in getattr(person, name)) for name, _ in _NAMES},
        }  # fmt: skip
        data.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "stores": [')
        page.write(_page_head(head["person"], now))
        is_first = True
        for name, purpose, rows in _stores(place, person):
            writer = _StoreWriter(data, page, name, purpose, is_first=is_first)
            for row in rows:
                writer.add(row)
            if writer.rows:
                counts[name] = writer.rows
                is_first = False
            writer.end()
        data.write("]}\n")
        page.write(_page_foot(counts))
    return Exported(*paths, counts)


def _private(path: Path) -> TextIO:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)
    return os.fdopen(descriptor, "w", encoding="utf-8")


def _plain(value: Any) -> Any:
    return ":".join(value) if isinstance(value, tuple) else value


def _stores(place: Place, person: Person) -> Iterator[tuple[str, str, Iterator[dict[str, Any]]]]:
    tables = [one for one in place.tables() if one.condition]
    order = {name: number for number, name in enumerate(_FIRST)}
    tables.sort(key=lambda one: (order.get(one.name, 99), one.is_dbt, one.name))
    for table in tables:
        yield table.name, table.rule.purpose, _warehouse_rows(place, table, person)
    for name in ("messages", "message_changes", "trigger_firings"):
        yield f"ledger {name}", LEDGER[name].purpose, _ledger_rows(place, name, person)
    yield (
        "streams", "Events on their way into the warehouse",
        (
            {"stream": name, "event": payload.decode("utf-8", "replace")}
            for name, payload in streams.waiting(place.settings, place.ledger, person)
        ),
    )  # fmt: skip
    yield (
        "files", "Files that Mailhouse keeps: mail that went to a folder, previews, files of sources, logs",
        ({"file": str(one.path), "what": one.reason} for one in place.files.find(person)),
    )  # fmt: skip


def _warehouse_rows(place: Place, table: StoreTable, person: Person) -> Iterator[dict[str, Any]]:
    columns = [
        f"{_shown(kind, name)} as `{name}`"
        for name, kind in table.columns.items()
        if name not in _INTERNAL and "AggregateFunction(" not in kind.replace("SimpleAggregateFunction(", "")
    ]
    # frames of strings alone: what a column is made of is of no interest to the person
    # names of what is selected must not stand for columns in the condition
    sql = f"select {', '.join(columns)} from (select * from {quoted(table.name)} where {table.condition})"
    for frame in place.warehouse.batches(sql, rows=_ROWS, external={"keys": person.keys()}):
        yield from frame.iter_rows(named=True)


def _shown(kind: str, name: str) -> str:
    plain = kind.removeprefix("LowCardinality(").removeprefix("Nullable(")
    if plain.startswith(("String", "Int", "UInt", "Bool", "Float")) and "SimpleAggregate" not in kind:
        return f"`{name}`::Nullable(String)" if "String" in plain else f"`{name}`"
    return (
        f"toJSONString(`{name}`)"
        if kind.startswith(("JSON", "Tuple", "Array", "Map"))
        else f"toString(`{name}`)"
    )


def _ledger_rows(place: Place, name: str, person: Person) -> Iterator[dict[str, Any]]:
    with place.ledger.engine.connect().execution_options(is_reading=True) as connection:
        if name == "trigger_firings":
            for part in parts_of(sorted(firings_of(connection, person))):
                yield from (
                    dict(row)
                    for row in connection.execute(
                        sa.select(trigger_firings).where(trigger_firings.c.id.in_(part))
                    ).mappings()
                )
            return
        ids = sorted(
            {
                row.id
                for where in theirs(person)
                for row in connection.execute(sa.select(messages.c.id).where(where))
            }
        )
        for part in parts_of(ids):
            query = (
                sa.select(messages, plans.c.kind, plans.c.name, plans.c.occurrence, plans.c.channel, plans.c.category,
                          plans.c.template)
                .join(plans, plans.c.plan_id == messages.c.plan_id).where(messages.c.id.in_(part))
                if name == "messages"
                else sa.select(message_changes).where(message_changes.c.message_row.in_(part))
            )  # fmt: skip
            yield from (dict(row) for row in connection.execute(query).mappings())


class _StoreWriter:
    """Writes the rows of one store into both files; a store without rows leaves no trace."""

    def __init__(self, data: TextIO, page: TextIO, name: str, purpose: str, *, is_first: bool) -> None:
        self._data, self._page, self._name, self._purpose = data, page, name, purpose
        self._is_first = is_first
        self._is_list = False
        self.rows = 0

    def add(self, row: dict[str, Any]) -> None:
        text = json.dumps(row, ensure_ascii=False, default=_jsonable)
        if not self.rows:
            about = json.dumps({"store": self._name, "purpose": self._purpose}, ensure_ascii=False)[:-1]
            self._data.write(f'{"" if self._is_first else ","}\n{about}, "rows": [\n{text}')
            self._begin(list(row))
        else:
            self._data.write(f",\n{text}")
        self.rows += 1
        if self.rows <= _ROWS_SHOWN:
            self._page.write(_listed(row) if self._is_list else _lined(row))

    def end(self) -> None:
        if not self.rows:
            return
        self._data.write("\n]}")
        self._page.write("" if self._is_list else "</tbody></table></div>\n")
        if self.rows > _ROWS_SHOWN:
            more = self.rows - _ROWS_SHOWN
            self._page.write(f"<p>{more:,} more rows are in the JSON file beside this page.</p>\n")
        self._page.write("</section>\n")

    def _begin(self, columns: Sequence[str]) -> None:
        anchor = html.escape(self._name.replace(" ", "-"), quote=True)
        # what dbt's descriptions say of keys is for engineers
        purpose = self._purpose.partition(" Key: ")[0]
        self._page.write(
            f'<section aria-labelledby="{anchor}"><h2 id="{anchor}">{html.escape(purpose)}</h2>\n'
            f"<p>Kept in <code>{html.escape(self._name)}</code>.</p>\n"
        )
        self._is_list = len(columns) > _COLUMNS_SHOWN
        if not self._is_list:
            heads = "".join(f'<th scope="col">{_label(one)}</th>' for one in columns)
            self._page.write(
                f'<div class="wide" tabindex="0" role="region" aria-labelledby="{anchor}"><table>'
                f"<thead><tr>{heads}</tr></thead><tbody>\n"
            )


def _label(column: str) -> str:
    return html.escape(column.replace("_", " "))


def _lined(row: dict[str, Any]) -> str:
    cells = "".join(f"<td>{html.escape(_cell(value))}</td>" for value in row.values())
    return f"<tr>{cells}</tr>\n"


def _listed(row: dict[str, Any]) -> str:
    """A row of many columns, one below the other; what is empty is in the JSON file alone."""
    items = "".join(
        f"<div><dt>{_label(name)}</dt><dd>{html.escape(text)}</dd></div>"
        for name, value in row.items()
        if (text := _cell(value))
    )
    return f'<dl class="row">{items}</dl>\n'


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _cell(value: Any) -> str:
    return (
        ""
        if value is None
        else value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=_jsonable)
    )


_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { border: 1px solid #767676; padding: .25rem .5rem; text-align: left; vertical-align: top; max-width: 40rem; }
td, dd { overflow-wrap: anywhere; } td { min-width: 6rem; } dt { font-weight: 600; }
.row { border: 1px solid #767676; columns: 22rem; font-size: .85rem; margin: .5rem 0; padding: .5rem .75rem; }
.row div { break-inside: avoid; display: flex; gap: .75rem; } .row dt { flex: 0 0 11rem; } .row dd { margin: 0; }
"""


def _page_head(person: dict[str, list[Any]], now: datetime) -> str:
    names = "".join(
        f"<dt>{html.escape(title)}</dt><dd>{html.escape(', '.join(str(one) for one in person[name]))}</dd>\n"
        for name, title in _NAMES
        if person[name]
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="robots" content="noindex"><title>What we hold about you</title><style>{_STYLE}</style></head>
<body><main><h1>What we hold about you</h1>
<p>Written {now:%Y-%m-%d %H:%M} UTC. Every row that names you is here, with what it is kept for: first
what you agreed to, then what we were told, what you did, what was sent, and what follows from it.</p>
<dl>
{names}</dl>
"""


def _page_foot(counts: dict[str, int]) -> str:
    rows = "".join(
        f'<tr><th scope="row"><a href="#{html.escape(name.replace(" ", "-"), quote=True)}">{html.escape(name)}</a></th>'
        f"<td>{number:,}</td></tr>\n"
        for name, number in counts.items()
    )
    return f"""<section aria-labelledby="all-stores"><h2 id="all-stores">All stores</h2>
<table><thead><tr><th scope="col">store</th><th scope="col">rows</th></tr></thead><tbody>
{rows}</tbody></table></section></main></body></html>
"""
