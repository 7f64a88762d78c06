"""Static lists: the file says who is on the list, however often it is loaded and whatever is wrong with a line."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from crm.lists import ListReport, load_lists
from warehouse.client import Warehouse
from warehouse.errors import InputError
from warehouse.settings import PROJECT_ROOT

NOW = datetime(2011, 6, 27, 9, 30, tzinfo=UTC)
MEMBERS = """
    select source::String, external_id, email from (
        select source, external_id, email, argMax(is_member, tuple(list_members.changed_at, loaded_at)) as is_member
        from raw.list_members as list_members where list = '{}' group by source, external_id, email
    ) where is_member order by 1, 2, 3
"""


class Lists:
    """A content folder with lists, and the warehouse that they are loaded into."""

    def __init__(self, warehouse: Warehouse, root: Path) -> None:
        self.warehouse, self.root = warehouse, root
        self.folder = root / "content" / "lists"
        self.folder.mkdir(parents=True)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def load(self, after: timedelta = timedelta(0)) -> dict[str, ListReport]:
        reports = load_lists(self.warehouse, self.root / "content", base_dir=self.root, now=NOW + after)
        return {report.name: report for report in reports}

    def members(self, name: str) -> list[tuple[str, ...]]:
        return self.warehouse.frame(MEMBERS.format(name)).rows()


@pytest.fixture
def lists(warehouse: Warehouse, tmp_path: Path) -> Lists:
    return Lists(warehouse, tmp_path)


def changes(report: ListReport) -> tuple[int, int, int, int]:
    return report.members, report.entered, report.left, report.quarantined


def test_a_line_taken_out_has_left_and_a_second_load_changes_nothing(lists: Lists) -> None:
    lists.write("press.csv", "email,external_id,source,note\nAnn@Example.com ,,,editor\n,7,shop,\n,8,shop,\n")
    assert changes(lists.load()["press"]) == (3, 3, 0, 0)
    assert changes(lists.load()["press"]) == (3, 0, 0, 0)
    assert lists.members("press") == [("", "", "ann@example.com"), ("shop", "7", ""), ("shop", "8", "")]
    lists.write("press.csv", "email,external_id,source\nann@EXAMPLE.com,,crm\n,7,shop\n,9,\n")
    assert changes(lists.load(timedelta(days=1))["press"]) == (3, 1, 1, 0)
    assert lists.members("press") == [("", "", "ann@example.com"), ("", "9", ""), ("shop", "7", "")]
    # the clock is set back: the last change stays the last
    lists.write("press.csv", "email\n")
    assert changes(lists.load(timedelta(days=-9))["press"]) == (0, 0, 3, 0)
    assert lists.members("press") == []


def test_a_deleted_file_is_left_by_all_but_a_missing_folder_says_nothing(lists: Lists) -> None:
    lists.write("press.csv", "email\nann@example.com\n")
    lists.load()
    lists.folder.rename(lists.root / "aside")
    assert lists.load(timedelta(hours=1)) == {}
    assert len(lists.members("press")) == 1
    (lists.root / "aside").rename(lists.folder)
    (lists.folder / "press.csv").unlink()
    assert changes(lists.load(timedelta(hours=2))["press"]) == (0, 0, 1, 0)
    assert lists.load(timedelta(hours=3)) == {}
    assert lists.members("press") == []


def test_bad_lines_are_set_apart_with_file_line_and_reason(lists: Lists) -> None:
    lists.write(
        "press.csv", 'email,external_id\nann@example.com,\nnot an address,\n,\n"x,\nbob@example.com,3,4\n,5\n'
    )
    report = lists.load()["press"]
    assert changes(report) == (2, 2, 0, 4)
    assert any(
        example.endswith('press.csv:3: email "not an address" is no e-mail address')
        for example in report.examples
    )
    stored = "select line, reason from raw.quarantined_rows where object = 'list_member' order by line"
    assert lists.warehouse.frame(stored)["line"].to_list() == [3, 4, 5, 6]
    lists.write("press.csv", "email,external_id\nann@example.com,\n,5\n")
    assert changes(lists.load()["press"]) == (2, 0, 0, 0)
    assert lists.warehouse.frame(stored).height == 0


@pytest.mark.parametrize(
    ("name", "text", "message", "fix"),
    [
        ("press.csv", "mail,name\na@example.com,A\n", r"press\.csv:1: the header has neither", "email"),
        ("press.csv", "", r"press\.csv is empty", "header"),
        (
            "press.csv",
            "email\nnobody\nnowhere\n",
            r"press\.csv:2: email \"nobody\" .* left as it is",
            "header alone",
        ),
        ("Press list.csv", "email\n", "Press list.csv is no list", "small letters"),
        ("press.xlsx", "x", "press.xlsx is no list", r"\.csv"),
    ],
)
def test_a_file_that_is_no_list_changes_none(
    lists: Lists, name: str, text: str, message: str, fix: str
) -> None:
    lists.write("a.csv", "email\nann@example.com\n")
    lists.load()
    lists.write("a.csv", "email\n")
    lists.write(name, text)
    with pytest.raises(InputError, match=message) as caught:
        lists.load()
    assert fix.replace("\\", "") in caught.value.fix
    assert len(lists.members("a")) == 1


def test_any_edits_leave_what_the_file_says(lists: Lists) -> None:
    dice = random.Random(4)
    pool = [f"p{number}@example.com" for number in range(12)]
    before: set[str] = set()
    for turn in range(6):
        chosen = {email for email in pool if dice.random() < 0.5}
        lines = [
            dice.choice([email, email.upper(), f" {email} "])
            for email in chosen
            for _ in range(dice.randrange(1, 3))
        ]
        dice.shuffle(lines)
        lists.write("press.csv", "\n".join(["email", *lines]))
        report = lists.load(timedelta(seconds=turn))["press"]
        assert changes(report) == (len(chosen), len(chosen - before), len(before - chosen), 0)
        assert {email for _, _, email in lists.members("press")} == chosen
        before = chosen


def test_the_lists_of_the_project_are_right(warehouse: Warehouse, tmp_path: Path) -> None:
    reports = load_lists(warehouse, PROJECT_ROOT / "content", base_dir=tmp_path, now=NOW)
    assert [report.examples for report in reports if report.quarantined] == []
    assert {report.name: report.members for report in reports}["customer_council"] >= 5
