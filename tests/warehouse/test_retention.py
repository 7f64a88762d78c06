"""How long raw rows are kept: every table is named, what is over goes, what must stay stays."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.loads import load_consents, load_events
from warehouse.retention import RetentionSpec, Rule, apply, check_rules, due, summary
from warehouse.settings import PROJECT_ROOT

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
TABLES = (
    "crm_records", "events", "messages", "campaigns", "products", "list_members", "consents", "consent_texts",
    "recommendations", "predictions", "model_evaluations", "quarantined_rows", "retention_runs",
    "crm_cursors", "crm_pushes", "crm_shown", "crm_syncs", "field_decisions", "identity_changes", "imports",
    "rectifications", "erasures", "restrictions", "audit_log",
)  # fmt: skip


def rules(folder: Path, **more: str) -> RetentionSpec:
    """The tables of raw, kept forever unless `more` says otherwise; what names another table comes on top."""
    lines = [
        f"  raw.{name}: {more.get(name, '{keep: forever}')}" for name in (*TABLES, *more.keys() - set(TABLES))
    ]
    folder.mkdir(exist_ok=True)
    (folder / "retention.yaml").write_text("tables:\n" + "\n".join(lines) + "\n")
    return RetentionSpec.load(folder)


def events(warehouse: Warehouse, *rows: tuple[str, str, datetime]) -> None:
    frame = pl.DataFrame(
        [(name, kind, at, f"{name}@example.com") for name, kind, at in rows],
        schema={"event_id": pl.String, "type": pl.String, "occurred_at": pl.Datetime("ms", "UTC"), "email": pl.String},
        orient="row",
    )  # fmt: skip
    load_events(warehouse, frame)


def left(warehouse: Warehouse) -> set[str]:
    return set(warehouse.frame("select event_id from raw.events")["event_id"])


def test_our_own_file_names_every_table_and_deletes_nothing_new(warehouse: Warehouse) -> None:
    spec = RetentionSpec.load(PROJECT_ROOT / "content")
    check_rules(warehouse, spec)
    assert due(warehouse, spec, NOW) == []


def test_what_is_wrong_is_said_with_its_place(warehouse: Warehouse, tmp_path: Path) -> None:
    for table, text, said in (
        ("events", "{keep: 90d, after: ocurred_at}", "occurred_at"),
        ("events", "{keep: 90d, after: email}", "no time"),
        ("evnts", "{keep: forever}", "raw.events"),
        ("consents", "{keep: 90d, after: occurred_at}", "proof"),
        ("consents", "{keep: 90d, after: occurred_at, action: pseudonymise, columns: [email]}", "key"),
        ("messages", "{keep: 90d, after: changed_at, action: pseudonymise, columns: [contact_id]}", "Int64"),
        ("events", "{keep: 90d, after: occurred_at, only: {typ: x}}", "type"),
    ):
        spec = rules(tmp_path, **{table: text})
        with pytest.raises(InputError) as caught:
            apply(warehouse, spec, NOW)
        assert (
            "retention.yaml:" in caught.value.message and said in f"{caught.value.message} {caught.value.fix}"
        )
    for text in (
        "{keep: 90d}", "{keep: sometimes, after: loaded_at}", "{keep: forever, after: loaded_at}", "{kep: 90d}",
        "{keep: 90d, after: loaded_at, action: burn}", "{keep: 90d, after: loaded_at, action: pseudonymise}",
        "{keep: 90d, after: loaded_at, columns: [email]}",
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"retention\.yaml:"):
            rules(tmp_path, events=text)
    spec = rules(tmp_path)
    short = spec.model_copy(
        update={"tables": {name: one for name, one in spec.tables.items() if "events" not in name}}
    )
    with pytest.raises(InputError, match=r"raw\.events has no rule"):
        check_rules(warehouse, short)


def test_what_is_over_goes_and_is_written_down(warehouse: Warehouse, tmp_path: Path) -> None:
    events(
        warehouse,
        ("january", "page.viewed", datetime(2026, 1, 5, tzinfo=UTC)),
        ("february", "page.viewed", datetime(2026, 2, 5, tzinfo=UTC)),
        # who has left must not be written to again
        ("stop", "unsubscribed", datetime(2026, 2, 6, tzinfo=UTC)),
        ("before", "page.viewed", datetime(2026, 3, 3, 11, 59, 59, 999_000, tzinfo=UTC)),
        ("at", "page.viewed", datetime(2026, 3, 3, 12, tzinfo=UTC)),
        ("may", "page.viewed", datetime(2026, 5, 5, tzinfo=UTC)),
    )
    spec = rules(tmp_path, events="{keep: 90d, after: occurred_at}")
    [found] = due(warehouse, spec, NOW)
    assert (found.rows, found.partitions, found.until) == (
        3,
        ("202601",),
        datetime(2026, 3, 3, 12, tzinfo=UTC),
    )
    assert len(left(warehouse)) == 6, "to look is not to delete"
    assert apply(warehouse, spec, NOW, run_id="r") == [found]
    assert left(warehouse) == {"stop", "at", "may"}
    noted = warehouse.frame(
        "select table_name, action, rule, until, rows_count, partitions_count, run_id from raw.retention_runs"
    ).rows()
    assert noted == [("raw.events", "delete", "keep 90d after occurred_at", found.until, 3, 1, "r")]
    assert "3 rows" in summary([found])[0]
    assert apply(warehouse, spec, NOW) == []


def test_some_rows_go_and_others_lose_what_names_people(warehouse: Warehouse, tmp_path: Path) -> None:
    old = NOW - timedelta(days=200)
    events(warehouse, ("asked", "consent.requested", old), ("viewed", "page.viewed", old))
    row = {"consent_id": "c", "email": "ann@example.com", "channel": "email", "purpose": "news", "is_granted": True,
           "basis": "consent", "occurred_at": old, "ip": "192.0.2.1", "user_agent": "Firefox",
           "properties": '{"note": "Ann"}'}  # fmt: skip
    load_consents(warehouse, pl.DataFrame([row, {**row, "consent_id": "d", "occurred_at": NOW}]))
    warehouse.execute(
        "insert into raw.quarantined_rows (source, object, file, line, reason, content, loaded_at)"
        " values ('s', 'o', 'f', 1, 'r', 'ann@example.com', '2026-01-01 00:00:00')"
    )
    spec = rules(
        tmp_path,
        events="[{keep: 90d, after: occurred_at, only: {type: consent.requested}}]",
        consents="{keep: 3 months, after: occurred_at, action: pseudonymise, columns: [ip, user_agent, properties]}",
        quarantined_rows="{keep: 90d, after: loaded_at}",
    )
    assert {one.table: one.rows for one in apply(warehouse, spec, NOW)} == {
        "raw.events": 1, "raw.consents": 1, "raw.quarantined_rows": 1,
    }  # fmt: skip
    assert left(warehouse) == {"viewed"}
    assert warehouse.frame(
        "select consent_id, email, ip, user_agent, toJSONString(properties) from raw.consents order by 1"
    ).rows() == [
        ("c", "ann@example.com", "", "", "{}"),
        ("d", "ann@example.com", "192.0.2.1", "Firefox", '{"note":"Ann"}'),
    ]
    assert warehouse.value("select count() from raw.quarantined_rows") == 0
    assert apply(warehouse, spec, NOW) == []


@given(st.integers(1, 110))
def test_months_are_never_kept_too_short(months: int) -> None:
    rule = Rule.model_validate({"keep": f"{months} months", "after": "loaded_at"})
    assert rule.keep is not None and rule.keep.days >= months * 365.25 / 12
    assert Rule.model_validate(rule.model_dump(mode="json")) == rule
