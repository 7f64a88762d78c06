from __future__ import annotations

import pytest

from campaigns.audience import AudienceSummary
from campaigns.checks import check_consent, check_drift, check_not_empty, check_template, run_checks


@pytest.fixture
def spec(write_spec):
    return write_spec()


def test_all_is_well(spec):
    summary = AudienceSummary(1_200, 1_000, {"no_consent": 150, "suppressed": 50}, 0, 1_100)
    results = run_checks(spec, summary, [])
    assert [result.name for result in results] == [
        "template_lint",
        "consent",
        "audience_not_empty",
        "audience_drift",
    ]
    assert all(result.is_passed for result in results)
    assert [result.message for result in results] == [
        "Template win_back compiles and knows its merge tags.",
        "All 1,000 recipients have consented; 200 without are left out.",
        "1,000 of 1,200 contacts get it.",
        "1,200 contacts, 1.09 times the 1,100 of the occurrence before.",
    ]
    assert results[2].metadata == {"members": 1_200, "sendable": 1_000, "no_consent": 150, "suppressed": 50}


def test_template_problems_block(spec):
    result = check_template(spec, ["a.mjml:3: unknown merge tag {{ x }}.", "a.mjml:4: y"])
    assert not result.is_passed
    assert result.message == "a.mjml:3: unknown merge tag {{ x }}.; a.mjml:4: y"
    assert result.metadata["problems"] == 2


def test_missing_consent_blocks(spec, write_spec):
    summary = AudienceSummary(10, 10, {}, unconsented=2)
    result = check_consent(spec, summary)
    assert not result.is_passed
    assert result.message == "2 recipients lack consent or are suppressed. Nothing was sent."
    assert check_consent(write_spec(send__category="transactional"), AudienceSummary(10, 10)).is_passed


def test_nobody_left_blocks(spec, write_spec):
    empty = check_not_empty(write_spec(audience__where="orders_count > 1"), AudienceSummary(0, 0))
    assert not empty.is_passed
    assert empty.message == "Nobody would get win_back: segment at_risk with its condition is empty."
    skipped = check_not_empty(spec, AudienceSummary(3, 0, {"no_consent": 2, "suppressed": 1}))
    assert not skipped.is_passed
    assert skipped.message == (
        "Nobody would get win_back: all 3 contacts are left out (2 no_consent, 1 suppressed)."
    )


@pytest.mark.parametrize(
    ("members", "before", "is_passed"),
    [
        (1_000, None, True), (1_000, 0, True), (300, 100, True), (301, 100, False), (100, 10, True),
        (101, 10, False), (10, 1_000, True),
    ],
)  # fmt: skip
def test_drift(spec, members, before, is_passed):
    summary = AudienceSummary(members, members, previous_members=before)
    assert check_drift(spec, summary).is_passed is is_passed


def test_a_factor_that_makes_no_sense(spec):
    with pytest.raises(ValueError, match="above 1"):
        check_drift(spec, AudienceSummary(1, 1), factor=1)
