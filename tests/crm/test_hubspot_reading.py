"""Nothing is missed and nothing is stored that was not so, whatever people do in HubSpot while it is read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hubspot_fake import MS, TOKEN, FakeHubSpot, serve
from hypothesis import given, settings
from hypothesis import strategies as st

from crm.base import Pulled
from crm.hubspot import HubSpot
from crm.pulling import load, load_ids, stored_cursor
from crm.settings import CrmSettings
from warehouse.client import Warehouse
from warehouse.loads import LoadResult

START = datetime(2026, 1, 1, tzinfo=UTC)
PROJECT = Path(__file__).resolve().parents[2]
Row = tuple[bool, str, dict[str, Any]]

acts = st.one_of(
    st.tuples(st.just("edit"), st.integers(0, 30), st.sampled_from([-20, 0, 20])),
    st.tuples(st.just("edit"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("new"), st.integers(1, 5), st.sampled_from([-20, 0, 20])),
    st.tuples(st.just("archive"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("restore"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("merge"), st.integers(0, 30), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([1, 1, 20, 400]), st.just(0)),
    st.tuples(st.just("lag"), st.sampled_from([0, 5, 60]), st.just(0)),
)


class World:
    """A HubSpot in which people are busy, and what was stored of it."""

    def __init__(self, *, agrees: bool, pause: float) -> None:
        self.now = START
        self.lag = 0
        self.fake = FakeHubSpot(clock=lambda: self.now, lag=lambda: timedelta(seconds=self.lag))
        # where the clocks do not agree, records alone say how far we are
        offset = 0 if agrees else 86_400
        self.hubspot = HubSpot(
            CrmSettings.model_validate({"hubspot_token": TOKEN, "hubspot_archived_pause": pause}),
            transport=self.fake.transport(),
            sleep=lambda _: None,
            clock=lambda: self.now.timestamp() + offset,
        )
        self.stored: dict[str, dict[datetime, Row]] = {}
        self.cursor: str | None = None

    def act(self, name: str, which: int, how: Any) -> None:
        """What somebody does."""
        records = self.fake.records["contacts"]
        live = [number for number, one in records.items() if one.archived_at is None]
        gone = [number for number, one in records.items() if one.archived_at is not None]
        if name == "wait":
            self.now += timedelta(seconds=which)
        elif name == "lag":
            self.lag = which
        elif name == "new":
            for _ in range(which):
                number = max([*records, *self.fake.merged["contacts"], 0]) + 1
                self.fake.put("contacts", number, self.at(how), email=f"p{number}@example.com")
        elif name == "restore" and gone:
            number = gone[which % len(gone)]
            self.fake.put("contacts", number, self.at(0, number), **records[number].properties)
        elif not live:
            pass
        elif name == "edit":
            number = live[which % len(live)]
            self.fake.edit("contacts", number, self.at(how, number), firstname=str(which))
        elif name == "archive":
            self.fake.archive("contacts", live[which % len(live)], self.now)
        elif name == "merge" and len(live) > 1:
            winner, loser = live[which % len(live)], live[(which + 1) % len(live)]
            new = max([*records, *self.fake.merged["contacts"]]) + 1 if how else 0
            self.fake.merge("contacts", winner, loser, max(self.at(0, winner), self.at(0, loser)), as_new=new)

    def at(self, skew: int, number: int = 0) -> datetime:
        """The time of a change: by one of HubSpot's clocks, after the record's last one."""
        moment = self.now + timedelta(seconds=skew)
        before = self.fake.records["contacts"].get(number)
        if before is None:
            return moment
        return max(moment, before.at + MS, (before.archived_at or moment) + MS)

    def read(self, *, dies_after: int | None = None) -> None:
        """Read on from the cursor; a process that dies has stored rows, but not their cursor."""
        for index, pulled in enumerate(self.hubspot.pull("contact", self.cursor)):
            self.store(pulled)
            if index == dies_after:
                return
            self.cursor = pulled.cursor

    def store(self, pulled: Pulled) -> None:
        """As `crm.pulling` does: each version once, merged ones by content."""
        assert pulled.bad == ()
        for row in pulled.rows.to_pylist():
            versions = self.stored.setdefault(row["external_id"], {})
            content = (row["is_deleted"], row["merged_into"], json.loads(row["properties"]))
            if row["merged_into"] and versions and versions[max(versions)] == content:
                continue
            versions.setdefault(row["updated_at"], content)

    def known(self) -> dict[str, Row]:
        """The newest version of each record."""
        return {number: versions[max(versions)] for number, versions in self.stored.items()}


@settings(max_examples=40)
@given(
    st.lists(acts, min_size=5, max_size=60),
    st.lists(st.one_of(st.just("read"), st.integers(0, 3), acts), max_size=20),
    st.booleans(),
    st.sampled_from([1, 2, 3, 8]),
    st.integers(1, 3),
)
def test_nothing_is_missed(
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: list[tuple[str, int, Any]],
    steps: list[Any],
    agrees: bool,
    page: int,
    every: int,
) -> None:
    # small pages, so that a few records make many
    with monkeypatch.context() as patch:
        patch.setattr("crm.hubspot.PAGE", page)
        patch.setattr("crm.hubspot.LISTED", page)
        patch.setattr("crm.hubspot.BATCH", 2 * page)
        world = World(agrees=agrees, pause=0)
        world.act("new", 5, 0)
        busy = iter(meanwhile)

        def interrupt(path: str) -> None:
            if len(world.fake.requests) % every == 0 and (act := next(busy, None)):
                world.act(*act)

        world.fake.before = interrupt
        for step in steps:
            if step == "read":
                world.read()
            elif isinstance(step, int):
                world.read(dies_after=step)
            else:
                world.act(*step)
        for act in busy:
            world.act(*act)
        world.now += timedelta(seconds=200)
        world.read()
    known = world.known()
    for number, record in world.fake.records["contacts"].items():
        is_deleted, _, properties = known[str(number)]
        assert is_deleted == (record.archived_at is not None)
        assert properties.get("first_name") == record.properties.get("firstname")
    for number in world.fake.merged["contacts"]:
        if str(number) in known:
            assert known[str(number)][:2] == (True, str(world.fake.resolve("contacts", number)))
    # what was a version for us was one in HubSpot: nothing of two moments is mixed
    assert all(
        row[0] or row[2]["lastmodifieddate"] == f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03}Z"
        for versions in world.stored.values()
        for at, row in versions.items()
    )


@pytest.fixture
def fake() -> FakeHubSpot:
    return FakeHubSpot()


@pytest.fixture
def hubspot(fake: FakeHubSpot) -> Iterator[HubSpot]:
    one = CrmSettings.model_validate({"hubspot_token": TOKEN, "hubspot_archived_pause": 0})
    with HubSpot(one, transport=fake.transport(), sleep=lambda _: None) as client:
        yield client


def test_single_records_are_looked_up_whatever_became_of_them(
    fake: FakeHubSpot, hubspot: HubSpot, warehouse: Warehouse, tmp_path: Path
) -> None:
    home = CrmSettings(home=tmp_path)
    for number in range(1, 121):
        fake.put("contacts", number, START, email=f"p{number}@example.com")
    load(warehouse, hubspot, "contact", settings=home)
    # search learns of nothing for now
    fake.lag = lambda: timedelta(hours=1)
    later = START + timedelta(minutes=1)
    fake.edit("contacts", 1, later, email="new@example.com")
    fake.archive("contacts", 2, later)
    fake.erase("contacts", 3)
    fake.merge("contacts", 5, 4, later)
    fake.merge("contacts", 6, 7, later, as_new=900)
    fake.requests.clear()
    ids = [str(number) for number in range(1, 121)]
    assert load_ids(warehouse, hubspot, "contact", ids, settings=home).loaded == 8
    # 120 in two reads, and one for those that were not there
    assert len(fake.requests) == 3
    found = warehouse.frame(
        """
        select external_id, argMax(is_deleted, updated_at) as gone, argMax(toString(properties), updated_at) as p
        from raw.crm_records group by external_id having gone order by toUInt32(external_id)
        """
    )
    merged = {number: json.loads(text).get("merged_into") for number, _, text in found.rows()}
    assert merged == {"2": None, "3": None, "4": "5", "6": "900", "7": "900"}
    before = stored_cursor(warehouse, "hubspot", "contact")
    again = load_ids(warehouse, hubspot, "contact", ["2", "3", "4", "7"], settings=home)
    assert again.loaded == 0
    assert stored_cursor(warehouse, "hubspot", "contact") == before


def test_a_full_load_finds_what_was_erased_without_a_word(
    fake: FakeHubSpot, hubspot: HubSpot, warehouse: Warehouse, tmp_path: Path
) -> None:
    home = CrmSettings(home=tmp_path)
    for number in range(1, 601):
        fake.put("contacts", number, START + timedelta(seconds=number), email=f"p{number}@example.com")
    load(warehouse, hubspot, "contact", settings=home)
    for number in (7, 8):
        fake.erase("contacts", number)
    fake.archive("contacts", 9, START + timedelta(hours=1))
    fake.put("contacts", 700, START + timedelta(hours=2), email="new@example.com")
    assert load(warehouse, hubspot, "contact", settings=home).loaded == 2
    fake.requests.clear()
    assert load(warehouse, hubspot, "contact", settings=home, is_full=True).loaded == 2
    gone = warehouse.frame(
        """
        select external_id from raw.crm_records group by external_id having argMax(is_deleted, updated_at)
        order by external_id
        """
    )
    assert gone["external_id"].to_list() == ["7", "8", "9"]
    # newest, four pages of a walk, changes, archived; and two reads of those that were missing
    assert len(fake.requests) == 1 + 3 + 1 + 1 + 2
    assert load(warehouse, hubspot, "contact", settings=home, is_full=True).loaded == 0


def test_tasks_are_read(fake: FakeHubSpot, hubspot: HubSpot, warehouse: Warehouse, tmp_path: Path) -> None:
    fake.put("tasks", 1, START, hs_task_subject="Call", hs_task_status="COMPLETED")
    result = load(warehouse, hubspot, "task", settings=CrmSettings(home=tmp_path))
    assert result == LoadResult(2, 1, 1)
    assert warehouse.value("select properties.hs_task_status::String from raw.crm_records") == "COMPLETED"


def test_a_cursor_of_another_is_refused(hubspot: HubSpot) -> None:
    from crm.base import CrmError

    for text in ("[]", "{}", "x", '{"since": "then"}'):
        with pytest.raises(CrmError, match="cursor of HubSpot is none"):
            next(hubspot.pull("contact", text))


_LOADER = """
import sys
from crm.hubspot import HubSpot
from crm.pulling import load
from crm.settings import CrmSettings
from warehouse.client import Warehouse
settings = CrmSettings.load()
import crm.hubspot
crm.hubspot.BATCH = 1_000
with Warehouse.connect(settings) as warehouse, HubSpot(settings) as hubspot:
    load(warehouse, hubspot, "contact", settings=settings, on_progress=lambda read: print(read, flush=True))
print("done", flush=True)
"""


@pytest.mark.slow
def test_a_load_that_is_killed_repeats_at_most_one_batch(
    fake: FakeHubSpot, warehouse: Warehouse, warehouse_server: Any, tmp_path: Path
) -> None:
    records = 12_000
    for number in range(1, records + 1):
        fake.put("contacts", number, START - timedelta(seconds=number), email=f"p{number}@example.com")
    with serve(fake):
        environment = {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "MAILHOUSE_HOME": str(tmp_path),
            "MAILHOUSE_WAREHOUSE_PORT": str(warehouse_server.warehouse_port),
            "MAILHOUSE_HUBSPOT_TOKEN": TOKEN,
            "MAILHOUSE_HUBSPOT_BASE_URL": fake.url,
            "MAILHOUSE_HUBSPOT_OVERLAP": "0",
        }

        def start() -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-c", _LOADER],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
            )

        kills = 0
        for kills in range(1, 4):
            process = start()
            assert process.stdout is not None
            # some die in the midst of a batch, some right after one
            for _ in range(3):
                process.stdout.readline()
            time.sleep(0.01 * kills)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        process = start()
        assert process.communicate()[0].endswith("done\n")
    counted = warehouse.frame("select count() as rows, uniqExact(external_id) as ids from raw.crm_records")
    assert counted.row(0) == (records, records)
    walked = sum(
        target.endswith("/search") and body["sorts"][0]["propertyName"] == "hs_object_id"
        for _, target, body in fake.requests
    )
    # five pages are a batch; a page may have been asked for and not have arrived
    assert records / 200 <= walked <= records / 200 + kills * 6
