"""People are named as a person would write them, and decisions read as sentences."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from campaigns.siphash import identity_of
from mailhouse.identities import Key, described
from warehouse.errors import InputError


def test_a_key_is_a_record_or_an_address() -> None:
    assert Key.parse(" Ann@Example.com ") == Key(email="ann@example.com")
    assert Key.parse("hubspot:501") == Key("hubspot", "501")
    assert Key.parse("shop:a:b").external_id == "a:b"
    assert Key.parse("web:ann@example.com") == Key("web", "ann@example.com")
    assert Key.parse("hubspot:501").identity_id == identity_of("hubspot", "501", "")
    assert (str(Key.parse("hubspot:501")), str(Key.parse("A@b.c"))) == ("hubspot:501", "a@b.c")


@pytest.mark.parametrize("text", ["", "ann", ":5", "hubspot:", "a@b:c"])
def test_what_names_nobody(text: str) -> None:
    with pytest.raises(InputError, match="names nobody") as caught:
        Key.parse(text)
    assert "source:external_id" in caught.value.fix


def test_decisions_as_sentences() -> None:
    change = {
        "change_id": "c1", "action": "merge", "contact_id": 1, "into_contact_id": 2,
        "source": "shop", "external_id": "5",
        "email": "", "into_source": "", "into_external_id": "", "into_email": "bob@example.com", "undoes": "",
        "undone_by": "c2", "reason": "one man", "actor": "eve", "occurred_at": datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    }  # fmt: skip
    assert described(change) == (
        "2026-01-02 03:04 c1 eve: merged 1 (shop:5) into 2 (bob@example.com) because: one man [undone by c2]"
    )
    split = {**change, "action": "split", "undone_by": "", "reason": "", "actor": ""}
    assert described(split) == "2026-01-02 03:04 c1 took shop:5 out of 1, as 2"
    assert described({**split, "action": "undo", "undoes": "c0"}).endswith("undid c0")
