"""Personal data is tagged wherever it is, and masked where those look who must not see it."""

from __future__ import annotations

from typing import Any

import pytest
from models import PREFIX, Models

#: What a column of this name holds, wherever it is.
KINDS = {
    "email": "email", "emails": "email", "first_email": "email", "last_email": "email", "phone": "phone",
    "first_name": "name", "last_name": "name", "full_name": "name", "recorded_by": "name", "city": "address",
    "street": "address", "postcode": "address", "address": "address", "birthday": "birth", "birth_date": "birth",
    "ip": "ip", "requested_ip": "ip", "user_agent": "device", "push_token": "device", "external_id": "identifier",
    "anonymous_id": "identifier", "identifier": "identifier", "contact_key": "identifier", "properties": "content",
    "properties_text": "content", "esp_event": "content", "details": "content", "provider_reply": "content",
    "subject": "content", "content": "content", "into_email": "email", "into_external_id": "identifier",
}  # fmt: skip
#: These say nothing of a person.
IMPERSONAL = {
    ("products", "properties"), ("stg_catalogue__products", "properties"), ("model_evaluations", "properties"),
    ("predictions", "properties"), ("int_predictions__current", "properties"), ("consent_texts", "content"),
    # a keyed hash
    ("audit_log", "subject"),
}  # fmt: skip
#: Addresses of pages that people looked at: they may hold anything.
ALSO = {(table, "url"): "content" for table in ("stg_events__events", "int_events__recorded", "events")} | {
    # what somebody had put right
    ("rectifications", "wrong"): "content", ("rectifications", "value"): "content",
    ("stg_crm__rectified", "put_right"): "content",
}  # fmt: skip
CLEAR = {"customers": "personal_customers", "consent_proofs": "personal_consent_proofs"}


def kind_of(table: str, column: str) -> str | None:
    if (table, column) in IMPERSONAL:
        return None
    return ALSO.get((table, column)) or KINDS.get(column)


def tags(manifest: Any) -> dict[tuple[str, str, str], tuple[str, bool]]:
    """By folder (raw for sources), table and column: the kind, and whether it is masked."""
    found: dict[tuple[str, str, str], tuple[str, bool]] = {}
    for node in [*manifest.nodes.values(), *manifest.sources.values()]:
        if node.resource_type not in ("model", "source"):
            continue
        folder = "raw" if node.resource_type == "source" else node.fqn[1]
        name = getattr(node, "alias", None) or node.name
        for column in node.columns.values():
            meta = column.config.meta
            assert set(meta) <= {"pii", "masked"}, f"{node.name}.{column.name}"
            if "pii" in meta:
                found[folder, name, column.name] = meta["pii"], meta.get("masked") is True
    return found


def test_columns_that_are_named_say_what_they_hold(manifest: Any) -> None:
    tagged = tags(manifest)
    assert len(tagged) > 80
    for node in [*manifest.nodes.values(), *manifest.sources.values()]:
        if node.resource_type not in ("model", "source"):
            continue
        folder = "raw" if node.resource_type == "source" else node.fqn[1]
        name = getattr(node, "alias", None) or node.name
        for column in node.columns:
            kind, _ = tagged.get((folder, name, column), (None, False))
            assert kind == kind_of(name, column), f"{folder}.{name}.{column}"


def test_only_bi_masks_and_each_masked_view_stands_in_clear_beside_it(manifest: Any) -> None:
    tagged = tags(manifest)
    for (folder, name, column), (_, is_masked) in tagged.items():
        assert is_masked == (folder == "bi"), f"{folder}.{name}.{column}"
    for name in {name for folder, name, _ in tagged if folder == "bi"}:
        masked = manifest.nodes[f"model.mailhouse.{name}"]
        clear = manifest.nodes[f"model.mailhouse.{CLEAR[name]}"]
        assert clear.schema == f"{PREFIX}bi_personal" and clear.alias == name
        assert {one.name: one.data_type for one in masked.columns.values()} == {
            one.name: one.data_type for one in clear.columns.values()
        }
    for node in manifest.nodes.values():
        if node.resource_type == "model" and node.fqn[1] in ("bi", "bi_personal"):
            assert node.config.get("sql_security") == "definer", node.name


@pytest.mark.slow
def test_every_column_there_is_says_what_it_holds_and_bi_shows_nobody(models: Models, manifest: Any) -> None:
    models.contact(
        "1", "zebulina.quackenbush@example.com", "01-01", first_name="Zebulina", last_name="Quackenbush",
        phone="+44 7700 900123", country="France",
    )  # fmt: skip
    models.contact("2", "o@example.org", "01-02", first_name="Ωmega")
    models.consent("zebulina.quackenbush@example.com", "01-03")
    models.warehouse.execute(
        "insert into raw.consents (consent_id, source, email, channel, purpose, is_granted, basis, ip, requested_ip,"
        " user_agent, recorded_by, confirmed_at, occurred_at) values ('x', 'gateway',"
        " 'zebulina.quackenbush@example.com', 'email', 'offers', true, 'double_opt_in', '192.0.2.77', '198.51.100.77',"
        " 'Firefox 7', 'eve adams', '2011-02-01 00:00:00', '2011-02-01 00:00:00')"
    )
    models.build("--exclude-resource-type", "unit_test", "test")
    tagged = tags(manifest)
    columns = models.rows(
        f"select database, table, name from system.columns where database = 'raw' or startsWith(database, '{PREFIX}')"
    )
    seen: set[tuple[str, str, str]] = set()
    wrong: list[str] = []
    for database, table, column in columns:
        folder = database.removeprefix(PREFIX)
        if table == "schema_migrations":
            continue
        kind, _ = tagged.get((folder, table, column), (None, False))
        if kind != kind_of(table, column):
            wrong.append(f"{folder}.{table}.{column}: {kind}, should be {kind_of(table, column)}")
        seen.add((folder, table, column))
    assert wrong == []
    assert set(tagged) <= seen, "tags of columns that do not exist"

    customers = models.rows("select email, full_name, phone from bi.customers order by email desc")
    assert customers == [("z***@example.com", "Z. Q.", "+44•••23"), ("o***@example.org", "Ω.", "")]
    assert models.rows("select email, full_name, phone from bi_personal.customers order by email desc")[0] == (
        "zebulina.quackenbush@example.com", "Zebulina Quackenbush", "+447700900123",
    )  # fmt: skip
    proofs = models.rows(
        "select email, ip, user_agent, recorded_by, basis, contact_id from bi.consent_proofs where purpose = 'offers'"
    )
    contact = models.value("select contact_id from marts.contacts where startsWith(email, 'zebulina')")
    assert proofs == [("z***@example.com", "", "", "E.", "double_opt_in", contact)]
    assert models.rows(
        "select email, ip, user_agent, recorded_by from bi_personal.consent_proofs where consent_id = 'x'"
    ) == [("zebulina.quackenbush@example.com", "192.0.2.77", "Firefox 7", "eve adams")]
