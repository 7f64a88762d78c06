"""What `content/crm.yaml` may say, and what mistakes in it are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from crm.rules import ENGAGEMENT, CrmRules, load_rules
from warehouse.errors import InputError

CRMS = ("hubspot", "salesforce")


def written(folder: Path, text: str) -> CrmRules:
    (folder / "crm.yaml").write_text(text)
    return load_rules(folder, CRMS, sources=["shop"], segments=["champions"])


def test_without_the_file_nothing_is_decided_or_pushed(tmp_path: Path) -> None:
    rules = load_rules(tmp_path)
    assert rules.is_idle
    assert rules.pushed_fields("hubspot") == ()


def test_rules_say_whose_value_counts_and_what_is_pushed(tmp_path: Path) -> None:
    rules = written(
        tmp_path,
        """
fields:
  first_name: newest
  city: {source: shop, keep_filled: false}
  phone: {prefer: [salesforce, hubspot]}
opt_outs:
  email: {salesforce: HasOptedOutOfEmail}
push:
  hubspot:
    fields: [city]
    engagement: [engagement_score, last_opened_at]
    create: champions
  salesforce:
    engagement: {is_suppressed: Suppressed__c}
    tasks: true
    tasks_within: 2d
""",
    )
    assert [(rule.field, rule.name, rule.order, rule.keeps_filled) for rule in rules.rules()] == [
        ("first_name", "newest", (), True),
        ("city", "source", ("shop",), False),
        ("phone", "prefer", ("salesforce", "hubspot"), True),
        ("email_opt_out", "stricter", (), True),
    ]
    assert rules.pushed_fields("hubspot") == ("city",)
    assert rules.pushed_fields("salesforce") == ("first_name", "city", "phone", "email_opt_out")
    assert rules.name_at("salesforce", "email_opt_out") == "HasOptedOutOfEmail"
    assert [(one.name, one.type) for one in rules.custom_fields("hubspot")] == [
        ("mailhouse_engagement_score", "number"),
        ("mailhouse_last_opened_at", "datetime"),
    ]
    assert rules.types_at("salesforce") == {"Suppressed__c": "boolean", "HasOptedOutOfEmail": "boolean"}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("fields:\n  frist_name: newest\n", 2, "Did you mean first_name?"),
        ("fields:\n  city: latest\n", 2, "Allowed: newest"),
        ("fields:\n  city: {source: hubspott}\n", 2, "Did you mean hubspot?"),
        ("fields:\n  city:\n    prefer: [hubspot, shopp]\n", 3, "Did you mean shop?"),
        ("fields:\n  city: {source: hubspot, rule: newest}\n", 2, "exactly one of rule, source and prefer"),
        ("fields:\n  city: {keep: true, rule: newest}\n", 2, "keep is no key here"),
        ("push:\n  pipedriv: {}\n", 2, "there is no CRM pipedriv"),
        ("push:\n  hubspot:\n    engagement: [engagment_score]\n", 3, "Did you mean engagement_score?"),
        ("push:\n  hubspot:\n    fields: [city]\n", 3, "city has no rule"),
        ("push:\n  hubspot:\n    create: champion\n", 3, "Did you mean champions?"),
        ("push:\n  hubspot:\n    engagement: {revenue: phone}\n", 3, "phone is a field of its own"),
        (
            "push:\n  hubspot:\n    engagement: {revenue: x, orders_count: x}\n",
            3,
            "two things into one field",
        ),
        ("push:\n  hubspot:\n    engagement: {revenue: 'a b'}\n", 3, "engagement"),
        ("opt_outs:\n  mail: {hubspot: x}\n", 2, "mail"),
        ("pushes: {}\n", 1, "Did you mean push?"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_the_nearest_right_name(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        written(tmp_path, text)
    assert f"crm.yaml:{line}:" in caught.value.message
    assert words in f"{caught.value.message} {caught.value.fix}"


def test_everything_that_may_be_pushed_says_what_it_is() -> None:
    assert all(one.label and one.description and one.sql for one in ENGAGEMENT.values())
