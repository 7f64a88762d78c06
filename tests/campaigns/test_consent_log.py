"""The log of consents: written by hand with a basis, read with its proof, changed by nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from campaigns.consents import Proof, consent_log, record_consent, record_texts
from campaigns.purposes import ConsentText
from mailhouse.consents import proof_lines
from warehouse.client import Warehouse
from warehouse.errors import InputError, WarehouseError
from warehouse.settings import PROJECT_ROOT

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
TEXT = ConsentText("call", "2026-06", "offers", "email", "May we send you offers by email?")
WELL = {
    "email": " Ann@Example.com",
    "channel": "email",
    "purpose": "offers",
    "is_granted": True,
    "basis": "consent",
}


def test_what_was_said_on_the_telephone_is_proven_later(warehouse: Warehouse) -> None:
    proof = Proof(TEXT, ip="192.0.2.7", page="call 4711", recorded_by="eve", more={"note": "recorded call"})
    first = record_consent(warehouse, **WELL, now=NOW, source="call_centre", proof=proof)
    # the same call, entered twice
    assert record_consent(warehouse, **WELL, now=NOW, source="call_centre", proof=proof) == first
    record_consent(
        warehouse,
        **{**WELL, "is_granted": False, "basis": ""},
        now=NOW + timedelta(days=1),
        source="call_centre",
    )
    newest, oldest = consent_log(warehouse, email="ANN@example.com ")
    assert (newest["is_granted"], newest["basis"], newest["is_current"]) == (False, "withdrawal", True)
    assert newest["recorded_by"]
    assert (oldest["consent_id"], oldest["is_granted"], oldest["is_current"]) == (first, True, False)
    assert (oldest["text"], oldest["text_digest"]) == (TEXT.content, TEXT.digest)
    said = "\n".join(proof_lines(oldest, has_text=True))
    for part in (
        "consent",
        "call_centre",
        "192.0.2.7",
        "call 4711",
        "eve",
        "recorded call",
        TEXT.version,
        TEXT.content,
    ):
        assert part in said
    # words are kept once
    assert record_texts(warehouse, [TEXT], NOW) == 0
    assert warehouse.value("select count() from raw.consent_texts") == 1


def test_what_proves_nothing_is_not_taken(warehouse: Warehouse) -> None:
    cases: list[tuple[dict[str, object], str]] = [
        ({"basis": ""}, "needs a basis"),
        ({"basis": "consnt"}, "consent"),
        ({"email": "ann"}, "no mail address"),
        ({"channel": "fax"}, "fax"),
        ({"purpose": "offer"}, "no purpose"),
        ({"occurred_at": NOW + timedelta(days=1)}, "future"),
        ({"occurred_at": datetime(2026, 1, 1)}, "time zone"),
        ({"proof": Proof(ip="here")}, "IP"),
    ]
    for wrong, said in cases:
        given: Any = {**WELL, **wrong}
        with pytest.raises(InputError) as caught:
            record_consent(warehouse, **given, now=NOW, purposes=["offers", "news"])
        assert said in f"{caught.value.message} {caught.value.fix}"
    assert warehouse.value("select count() from raw.consents") == 0


def test_whose_log_must_be_said(warehouse: Warehouse) -> None:
    wrong: tuple[dict[str, Any], ...] = ({}, {"contact_id": 7, "email": "ann@example.com"})
    for given in wrong:
        with pytest.raises(InputError):
            consent_log(warehouse, **given)
    assert consent_log(warehouse, email="nobody@example.com") == []
    with pytest.raises(WarehouseError):
        consent_log(warehouse, contact_id=7)  # no models, so nobody has an id


_CHANGES = re.compile(
    r"(?is)\b(alter\s+table|delete\s+from|update|truncate(\s+table)?|drop\s+table(\s+if\s+exists)?|replace\s+partition|"
    r"optimize\s+table)\s+raw\.consents?(_texts)?\b(?!\s+(add|materialize|modify\s+comment))"
)
#: What the law asks for may change the log: erasing a person, and what is kept for a time only.
_LAWFUL = ("gdpr", "erasure", "retention")


def test_no_code_of_ours_changes_the_log() -> None:
    assert _CHANGES.search("alter table raw.consents update email = ''")
    assert _CHANGES.search("delete from raw.consents where 1")
    assert not _CHANGES.search("alter table raw.consents\n        add column x String")
    rooms = ("campaigns", "crm", "dbt_project/macros", "dbt_project/models", "demo", "gateway", "mailhouse",
             "orchestration", "senders", "warehouse")  # fmt: skip
    read = 0
    for room in rooms:
        for path in (PROJECT_ROOT / room).rglob("*"):
            if path.suffix not in (".py", ".sql") or any(word in path.stem for word in _LAWFUL):
                continue
            read += 1
            found = _CHANGES.search(path.read_text())
            assert found is None, f"{path.relative_to(PROJECT_ROOT)} changes the log of consents: {found[0]}"
    assert read > 300
