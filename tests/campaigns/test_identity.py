from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaigns.identity import KINDS, NAMESPACE, message_id, message_ids, occurrence_key

NAMES = st.text(st.characters(blacklist_characters="\n", blacklist_categories=("Cs",)), max_size=30)
CONTACTS = st.integers(1, 2**63 - 1)


@given(st.sampled_from(KINDS), NAMES, st.lists(CONTACTS, max_size=20), NAMES)
def test_ids_are_the_standard_uuid5(kind, name, contacts, occurrence):
    expected = [str(uuid5(NAMESPACE, f"{kind}\n{name}\n{occurrence}\n{contact}")) for contact in contacts]
    assert message_ids(kind, name, contacts, occurrence) == expected
    for contact, found in zip(contacts, expected, strict=True):
        assert message_id(kind, name, contact, occurrence) == found
        assert UUID(found).version == 5


@given(
    st.tuples(st.sampled_from(KINDS), NAMES, CONTACTS, NAMES),
    st.tuples(st.sampled_from(KINDS), NAMES, CONTACTS, NAMES),
)
def test_different_messages_have_different_ids(one, other):
    assert (message_id(*one) == message_id(*other)) == (one == other)


def test_parts_cannot_run_into_each_other():
    assert message_id("campaign", "a", 11, "1") != message_id("campaign", "a", 1, "11")
    with pytest.raises(ValueError, match="line breaks"):
        message_id("campaign", "a\nb", 1, "c")


def test_an_id_never_changes():
    occurrence = datetime(2011, 6, 27, 9, tzinfo=UTC)
    assert message_id("campaign", "win_back", 42, occurrence) == "813fd33a-a1c0-5c84-a865-ce1310380d78"


def test_unknown_kind():
    with pytest.raises(ValueError, match="none of campaign, journey, trigger"):
        message_id("campain", "a", 1, "b")


@given(st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1)), st.integers(-23, 23))
def test_the_same_instant_has_one_key(moment, hours):
    moment = moment.replace(microsecond=0, tzinfo=UTC)
    assert occurrence_key(moment.astimezone(timezone(timedelta(hours=hours)))) == occurrence_key(moment)
    assert datetime.fromisoformat(occurrence_key(moment)) == moment


@pytest.mark.parametrize("moment", [datetime(2011, 6, 27), datetime(2011, 6, 27, 0, 0, 0, 1000, tzinfo=UTC)])
def test_what_is_no_occurrence(moment):
    with pytest.raises(ValueError, match="occurrence"):
        occurrence_key(moment)
