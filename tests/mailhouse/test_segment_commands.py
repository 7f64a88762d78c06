"""`mailhouse segment`: files that build, previews that say whom and at what cost, errors that name the line."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mailhouse import segments
from mailhouse.cli import main
from mailhouse.segments import KINDS, masked
from orchestration.lib import dbt_runs
from warehouse.client import Warehouse
from warehouse.embedded import launcher
from warehouse.embedded.launcher import free_port
from warehouse.schema import migrate
from warehouse.settings import PROJECT_ROOT, MailhouseSettings

PROFILES = """
    create table intermediate.int_contacts__profiled engine = MergeTree order by contact_id as
    select
        number::Int64 as contact_id, concat('p', number::String, '@example.com') as email,
        if(number % 4 = 0, 'champions', 'at_risk')::LowCardinality(String) as rfm_segment,
        (number % 5 + 1)::Nullable(UInt8) as monetary_score, (number % 3)::UInt32 as orders_count,
        number = 99 as is_deleted, number % 2 = 0 as has_marketing_consent, false as is_suppressed,
        (now64(3, 'UTC') - toIntervalDay(30))::Nullable(DateTime64(3, 'UTC')) as last_order_at
    from numbers(100)
"""
BROKEN = {
    "misspelt": "select contact_id\nfrom {{ ref('int_contacts__profiled') }}\nwhere rfm_segmen = 'champions'\n",
    "no_contact": "select email from {{ ref('int_contacts__profiled') }}\n",
    "unbuilt": "select contact_id\n-- comes later\nfrom {{ ref('hibernating') }}\n",
    "no_query": "drop table {{ ref('int_contacts__profiled') }}\n",
    "bad_syntax": "select contact_id\nfrom {{ ref('int_contacts__profiled') }}\nwhere and orders_count\n",
    "bare_table": "select contact_id\nfrom marts.nowhere\n",
    "repeated": (
        "select contact_id from {{ ref('int_contacts__profiled') }} where contact_id < 10\nunion all\n"
        "select contact_id from {{ ref('int_contacts__profiled') }} where contact_id < 5 -- again"
    ),
}


@dataclass
class Place:
    """A copy of the dbt project, and a warehouse of its own with a hundred contacts."""

    project: Path
    settings: MailhouseSettings
    warehouse: Warehouse

    @property
    def folder(self) -> Path:
        return self.project / "models" / "segments"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("segments")
    project = root / "dbt_project"
    shutil.copytree(dbt_runs.PROJECT_DIR, project, ignore=shutil.ignore_patterns("target", "logs"))
    shutil.copytree(PROJECT_ROOT / "content", root / "content")
    port = free_port()
    settings = MailhouseSettings(home=root / "home", content_dir=root / "content", warehouse_port=port)
    with pytest.MonkeyPatch.context() as patch, launcher.start(settings):
        patch.setattr(dbt_runs, "PROJECT_DIR", project)
        patch.setenv("MAILHOUSE_HOME", str(settings.home))
        patch.setenv("MAILHOUSE_CONTENT_DIR", str(settings.content_dir))
        patch.setenv("MAILHOUSE_WAREHOUSE_PORT", str(port))
        with Warehouse.connect(settings, comment="test") as warehouse:
            migrate(warehouse)
            for statement in (
                *(f"create database {name}" for name in ("intermediate", "marts", "segments")),
                PROFILES,
                "create table intermediate.int_contacts__browsed engine = MergeTree order by contact_id as select"
                " contact_id, (now64(3, 'UTC') - toIntervalHour(5))::Nullable(DateTime64(3, 'UTC')) as last_viewed_at"
                " from intermediate.int_contacts__profiled where contact_id < 3",
                "create table intermediate.int_lists__identified engine = MergeTree order by contact_id as"
                " select 7::Int64 as contact_id, 'new_static' as list",
                "create view intermediate.int_predictions__current as"
                " select 8::Int64 as contact_id, 'churn' as model, 0.9 as score",
                "create table marts.contacts engine = MergeTree order by contact_id as"
                " select contact_id, email, 'France' as country, is_deleted from intermediate.int_contacts__profiled",
                # built when there were two more, and one fewer
                "create table segments.champions engine = MergeTree order by contact_id as select contact_id"
                " from intermediate.int_contacts__profiled"
                " where (contact_id % 4 = 0 and contact_id > 0) or contact_id in (1, 2)",
                "create table marts.segment_memberships engine = MergeTree order by contact_id as"
                " select 'champions'::LowCardinality(String) as segment, contact_id,"
                " null::Nullable(DateTime64(3, 'UTC')) as valid_to from segments.champions",
            ):
                warehouse.execute(statement)
            yield Place(project, settings, warehouse)


@pytest.fixture(scope="module")
def written(place: Place) -> Place:
    """One new segment of each kind, and some with mistakes."""
    for kind in KINDS:
        segments.new(
            f"new_{kind}", kind, f"People of the kind {kind}, whom a test wants to see in one place."
        )
    for name, sql in BROKEN.items():
        (place.folder / f"{name}.sql").write_text(sql)
    return place


def run(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What a command prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mailhouse", "segment", *args])
        with pytest.raises(SystemExit) as end:
            main()
    captured = capsys.readouterr()
    assert end.value.code in (0, None), captured.err
    return captured.out


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The error of a command that must end with code 2, on one line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mailhouse", "segment", *args])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 2
    error = " ".join(capsys.readouterr().err.split())
    assert (
        error.startswith("Error")
        and error.count("Error") == 1
        and "Fix" in error
        and "Traceback" not in error
    )
    return error


@pytest.mark.slow
def test_new_segments_of_every_kind_build(written: Place) -> None:
    names = [f"new_{kind}" for kind in KINDS]
    dbt_runs.invoke(
        ["run", "--select", *names], written.settings, manifest=dbt_runs.load_manifest(written.settings)
    )
    sizes = {kind: written.warehouse.value(f"select count() from segments.new_{kind}") for kind in KINDS}
    assert sizes["static"] == sizes["predictive"] == 1
    assert sizes["behavioural"] == 3
    assert 0 < sizes["nested"] <= 27 and 0 < sizes["rfm"] <= 25 and sizes["rule"] > 20
    manifest = dbt_runs.load_manifest(written.settings)
    node = manifest.nodes["model.mailhouse.new_rule"]
    assert node.description.startswith("People of the kind rule") and "Grain: " in node.description
    assert node.config.meta == {"kind": "rule"}
    assert (written.settings.content_dir / "lists" / "new_static.csv").read_text().startswith("email,")


def test_a_preview_shows_whom_and_at_what_cost(written: Place, capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(run(capsys, "preview", "champions").split())
    assert "Size 25, 25.3% of 99 contacts" in shown
    assert "would add 1 and remove 2" in shown
    assert "Cost 100 rows" in shown
    assert "p**@example.com" in shown or "p*@example.com" in shown
    tables = "select count() from system.tables where database = 'segments' and name = 'misspelt'"
    assert written.warehouse.value(tables) == 0
    plain = run(capsys, "preview", "new_rule", "--show-emails", "--sample", "100")
    assert "p4@example.com" in plain and "p**@example.com" not in plain
    assert "champions" in plain and "jaccard" in plain


def test_a_preview_warns_of_contacts_that_are_there_twice(
    written: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = " ".join(run(capsys, "preview", "repeated", "--sample", "0").split())
    assert "Size 10" in shown and "5 rows repeat a contact" in shown and "Built never" in shown


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("misspelt", ("misspelt.sql:3: ClickHouse says: Unknown expression", "Did you mean rfm_segment?")),
        ("no_contact", ("no_contact.sql:1: it selects email, and no contact_id",)),
        (
            "unbuilt",
            ("unbuilt.sql:3: it reads hibernating, which has never been built", "segments/hibernating"),
        ),
        ("no_query", ("no_query.sql:1: it is no query",)),
        ("bad_syntax", ("bad_syntax.sql:3: ClickHouse says: Syntax error",)),
        ("bare_table", ("bare_table.sql:2: ClickHouse says:", "ref('model')")),
        ("champion", ("There is no segment 'champion'", "Did you mean champions?")),
    ],
)
def test_mistakes_name_file_line_and_remedy(
    written: Place, capsys: pytest.CaptureFixture[str], name: str, expected: tuple[str, ...]
) -> None:
    error = fails(capsys, "preview", name)
    for part in expected:
        assert part in error
    assert written.warehouse.value("select count() from intermediate.int_contacts__profiled") == 100


def test_a_ref_to_nothing_is_answered_with_the_nearest(
    written: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written.folder / "dangling.sql"
    path.write_text("select contact_id\nfrom {{ ref('champoins') }}\n")
    try:
        error = fails(capsys, "preview", "dangling")
    finally:
        path.unlink()
    assert "dangling.sql:2: there is no model 'champoins'" in error and "Did you mean champions?" in error


def test_the_list_shows_kind_size_and_who_came(written: Place, capsys: pytest.CaptureFixture[str]) -> None:
    moment = (datetime.now(UTC) - timedelta(hours=2)).strftime("%Y-%m-%d %H:%M:%S")
    written.warehouse.execute(
        "create or replace table marts.segment_changes engine = MergeTree order by changed_at as select"
        " 'champions'::LowCardinality(String) as segment, if(number < 3, 'entered', 'left') as change,"
        f" if(number = 4, '2020-01-01 00:00:00', '{moment}')::DateTime64(3, 'UTC') as changed_at from numbers(5)"
    )
    with Warehouse.connect(written.settings) as warehouse:
        rows = {row.name: row for row in segments.listed(written.settings, warehouse)}
    champions = rows["champions"]
    assert (champions.kind, champions.size, champions.entered, champions.left) == ("rfm", 26, 3, 1)
    assert champions.built_at is not None
    assert abs(datetime.now(UTC) - champions.built_at) < timedelta(minutes=10)
    assert (rows["hibernating"].size, rows["hibernating"].built_at) == (None, None)
    assert {row.kind for row in rows.values() if row.name not in BROKEN} == set(KINDS)
    shown = run(capsys, "list")
    assert "champions" in shown and "never" in shown
    assert "just now" in shown or "min ago" in shown


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("new", "French Champions!"), "Try french_champions."),
        (("new", "champions"), "The name champions is taken"),
        (("new", "rfm"), "marts/revenue/rfm.sql exists"),
        (("new", "engagement_weights"), "seeds/engagement_weights.csv exists"),
        (("new", "2fast"), "cannot name a segment"),
        (("new", "x" * 80), "at most 60"),
        (("new", "fine", "--kind", "behavioral"), "Did you mean behavioural?"),
        (("new", "fine", "--description", "see {{ this }}"), "description"),
    ],
)
def test_names_and_kinds_that_cannot_be(
    place: Place, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], expected: str
) -> None:
    before = {
        path: path.read_text() for path in place.project.rglob("*.*") if path.suffix in (".sql", ".yml")
    }
    assert expected in fails(capsys, *args)
    after = {path: path.read_text() for path in place.project.rglob("*.*") if path.suffix in (".sql", ".yml")}
    assert after == before


def test_a_list_that_is_there_already_is_kept(place: Place) -> None:
    members = place.settings.content_dir / "lists" / "beta_testers.csv"
    members.write_text("email\nann@example.com\n")
    files = segments.new("beta_testers", "static", None)
    for path in files:
        path.unlink()
    assert [path.name for path in files] == ["beta_testers.yml", "beta_testers.sql"]
    assert "ann" in members.read_text()


def test_addresses_are_masked() -> None:
    assert masked("ann.smith@example.com") == "a********@example.com"
    assert masked("a@example.com") == "a**@example.com"
    assert masked("") == masked(None) == ""


def test_no_warehouse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MAILHOUSE_HOME", str(tmp_path))
    monkeypatch.setenv("MAILHOUSE_WAREHOUSE_URL", "http://127.0.0.1:1")
    assert "does not answer at http://127.0.0.1:1" in fails(capsys, "list")
    monkeypatch.delenv("MAILHOUSE_WAREHOUSE_URL")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["mailhouse", "--demo", "segment", "list"])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 2
    assert "mailhouse demo" in capsys.readouterr().err
