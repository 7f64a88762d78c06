"""Holding processing back, letting it go on, and putting data right: what a person may ask short of erasure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

import polars as pl

from privacy.person import Person
from privacy.stores import quoted
from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.loads import RECTIFICATION, load_crm_records
from warehouse.yaml_specs import nearest

_WRONGS: Final = {
    "source": pl.String(), "external_id": pl.String(), "field": pl.String(), "wrong": pl.String(),
    "value": pl.String(), "corrected_at": pl.Datetime("ms", "UTC"),
}  # fmt: skip
FIELDS: Final = (
    "email", "first_name", "last_name", "country", "city", "timezone", "locale", "phone", "mobile_phone",
)  # fmt: skip
"""What can be put right: what `stg_crm__contacts` reads."""


def change(
    warehouse: Warehouse,
    person: Person,
    *,
    is_restricted: bool,
    allows_transactional: bool,
    reason: str,
    actor: str,
    now: datetime,
) -> int:
    """Restrict the processing of a person's data, or let it go on; counts at once. Returns rows written."""
    rows: list[tuple[int, str]] = [(one, "") for one in sorted(person.contact_ids)]
    rows += [(0, one) for one in sorted(person.emails)]
    frame = pl.DataFrame(rows, schema={"contact_id": pl.Int64(), "email": pl.String()}, orient="row")
    return warehouse.insert(
        "raw.restrictions",
        frame.with_columns(
            is_restricted=pl.lit(is_restricted),
            allows_transactional=pl.lit(allows_transactional),
            reason=pl.lit(reason),
            actor=pl.lit(actor),
            changed_at=pl.lit(now).cast(pl.Datetime("ms", "UTC")),
        ),
    )


def forget(warehouse: Warehouse, person: Person) -> None:
    """Delete a person's restrictions: nothing of them is left to be restricted."""
    from privacy.erasing import scratch  # it uses this module, too

    with scratch(warehouse, person.keys()) as keys:
        warehouse.execute(
            f"alter table {quoted('raw.restrictions')} delete where"  # noqa: S608 - names of this package
            f" contact_id in (select number from {keys} where kind = 'contact')"
            f" or email in (select value from {keys} where kind = 'email')",
            settings={"mutations_sync": "2", "allow_nondeterministic_mutations": "1"},
        )


def parsed_changes(given: list[str]) -> dict[str, str]:
    """`["first_name=Ann"]` as a mapping.

    Raises:
        InputError: it is no such pair, or the field cannot be put right here.
    """
    changes: dict[str, str] = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not sign:
            raise InputError(
                f"{one!r} is no correction.", fix="Write field=value, like --set first_name=Ann."
            )
        if name not in FIELDS:
            raise InputError(
                f"{name!r} is no field that can be put right.",
                fix=nearest(name, FIELDS) or f"There are {', '.join(FIELDS)}.",
            )
        changes[name] = value.strip()
    if not changes:
        raise InputError("There is nothing to put right.", fix="Give --set field=value, once or more.")
    return changes


def rectify(warehouse: Warehouse, person: Person, changes: Mapping[str, str], now: datetime) -> list[str]:
    """Write a corrected version of each of the person's records, newer than all that are there.

    A correction stands in the record's own history, under its own source and id, so that identity, marts and profiles
    take it as what was said last. The value that was wrong is kept (`raw.rectifications`): where the record goes on
    saying it, the correction holds (`stg_crm__rectified` of the models, `crm.conflicts` of the sync), until it says
    something else.

    Returns:
        the records, as source:external_id.

    Raises:
        InputError: there is no record to put right.
    """
    rows = warehouse.frame(
        """
        select source::String as source, external_id,
            argMax(toJSONString(made.properties), tuple(made.updated_at, made.loaded_at)) as properties,
            -- what the source itself said last
            argMaxIf(
                toJSONString(made.properties), tuple(made.updated_at, made.loaded_at), made.run_id != {ours:String}
            ) as told,
            argMax(made.is_deleted, tuple(made.updated_at, made.loaded_at)) as is_deleted,
            max(made.updated_at) as updated_at
        from raw.crm_records as made
        where object = 'contact'
            and concat(source::String, '\\x1f', external_id) in (select value from keys where kind = 'record')
        group by source, external_id order by source, external_id
        """,
        {"ours": RECTIFICATION},
        external={"keys": person.keys()},
    )
    if rows.is_empty():
        raise InputError(
            "There is no record of the person that could be put right.",
            fix="Import one, or let the person sign up again.",
        )
    made: list[dict[str, object]] = []
    wrongs: list[tuple[str, str, str, str, str, datetime]] = []
    for row in rows.iter_rows(named=True):
        at = max(now, row["updated_at"] + timedelta(milliseconds=1))
        before = json.loads(row["properties"] or "{}")
        told = json.loads(row["told"] or "{}")
        for name, value in changes.items():
            wrong = str(told.get(name) or "").strip()
            if wrong != value:
                wrongs.append((row["source"], row["external_id"], name, wrong, value, at))
        made.append(
            {
                "source": row["source"], "object": "contact", "external_id": row["external_id"],
                "updated_at": at, "is_deleted": row["is_deleted"],
                "properties": json.dumps(
                    {
                        **before, **changes,
                        "rectification": {"fields": sorted(changes), "at": now.isoformat(timespec="milliseconds")},
                    }
                ),
            }
        )  # fmt: skip
    # first what was wrong: a version without it would be outdone by the next that the source sends
    warehouse.insert("raw.rectifications", pl.DataFrame(wrongs, schema=_WRONGS, orient="row"))
    load_crm_records(warehouse, pl.DataFrame(made), run_id=RECTIFICATION)
    return [f"{row['source']}:{row['external_id']}" for row in made]
