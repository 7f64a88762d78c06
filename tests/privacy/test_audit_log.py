"""The audit log shows what was done, names nobody, and shows when somebody has been at it."""

from __future__ import annotations

import pytest

from privacy import audit
from privacy.person import Person
from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.settings import MailhouseSettings

PERSON = Person(contact_ids={4711}, emails={"ann@example.com", "old@example.com"}, records={("crm", "1")})


@pytest.fixture
def log(warehouse: Warehouse, settings: MailhouseSettings):
    """Three rows."""
    subject = audit.subject_of(settings, PERSON)
    for verb, outcome in (("export", "done"), ("erase", "begun"), ("erase", "done")):
        audit.record(
            warehouse, settings, verb=verb, subject=subject, outcome=outcome, actor="dpo", reason="ticket 7",
            counts={"raw.events": 3},
        )  # fmt: skip
    return warehouse


def change(warehouse: Warehouse, what: str) -> None:
    warehouse.execute(f"alter table raw.audit_log {what}", settings={"mutations_sync": "2"})


def test_the_chain_holds_and_rows_are_found_by_any_name(log: Warehouse, settings: MailhouseSettings):
    assert audit.problems(log, settings) == []
    rows = audit.entries(log, subject=audit.subject_for(settings, email="OLD@example.com"))
    assert [(row.sequence, row.verb, row.outcome) for row in rows] == [
        (1, "export", "done"), (2, "erase", "begun"), (3, "erase", "done"),
    ]  # fmt: skip
    assert audit.entries(log, subject=audit.subject_for(settings, contact_id=4712)) == []
    said = str(log.frame("select * from raw.audit_log").to_dicts())
    assert "example.com" not in said and "4711" not in said
    assert [row.sequence for row in audit.entries(log, limit=1)] == [3]


@pytest.mark.parametrize(
    ("tampering", "found"),
    [
        ("update reason = 'nothing' where sequence = 2", "row 2 was changed"),
        ("update counts = '{}' where sequence = 3", "row 3 was changed"),
        ("delete where sequence = 2", "row 2 is missing"),
        ("delete where sequence = 3", "row 3, the newest"),
        ("delete where sequence = 1", "row 1 is missing"),
    ],
)
def test_tampering_shows(log: Warehouse, settings: MailhouseSettings, tampering: str, found: str):
    change(log, tampering)
    assert any(found in one for one in audit.problems(log, settings))


def test_a_row_slipped_in_without_the_key_shows(log: Warehouse, settings: MailhouseSettings):
    log.execute(
        "insert into raw.audit_log select 4, now64(3), 'dpo', 'erase', 'x', 'done', '', '{}', hash,"
        " hex(SHA256('guess')), now64(6) from raw.audit_log where sequence = 3"
    )
    assert any("row 4 was changed" in one for one in audit.problems(log, settings))


def test_another_key_is_told_from_tampering(log: Warehouse, settings: MailhouseSettings):
    (settings.home / "erasure_key").write_text("quite another key, of some length")
    with pytest.raises(InputError, match="key of erasures"):
        audit.problems(log, settings)
