"""The ledger: who may send what, after any order of claims, crashes and settlements."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

import senders.ledger as ledger_module
from senders.ledger import PLAN_COLUMNS, Claim, Claimed, Ledger, LedgerError, Outcome, Run, milliseconds
from senders.liveness import own_process, process_started_at
from senders.message import Delivery, Status
from senders.plan import Cap
from senders.settings import SenderSettings

NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)
PLAN = {**dict.fromkeys(PLAN_COLUMNS, ""), "kind": "campaign", "name": "offer", "occurrence": "o",
        "category": "marketing",
        "provider": "maildir"}  # fmt: skip


def claim(
    numbers: list[int], *, skip: str = "", prefix: str = "m", plan: dict[str, str] | None = None
) -> Claim:
    return Claim(
        plan or PLAN, [f"{prefix}{n}" for n in numbers], numbers, [f"p{n}@example.com" for n in numbers],
        [skip] * len(numbers), ["{}"] * len(numbers),
    )  # fmt: skip


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.service)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> SenderSettings:
    """Settings of an empty ledger, on either database."""
    if request.param == "sqlite":
        return SenderSettings(home=tmp_path)
    return SenderSettings(home=tmp_path, ledger_url=request.getfixturevalue("new_postgres_ledger")())


@pytest.fixture
def ledger(settings: SenderSettings) -> Iterator[Ledger]:
    with Ledger.open(settings) as opened:
        yield opened


def begin(ledger: Ledger, name: str = "offer") -> Run:
    return ledger.begin_run("campaign", name, "o", NOW)


def kill(ledger: Ledger, run: Run) -> None:
    """As if the run's process had died: another number, another start."""
    ledger._active.discard(run.run_id)
    with ledger._engine.begin() as connection:
        connection.execute(
            sa.text("update runs set process_id = 999999999, process_started_at = 'gone' where run_id = :id"),
            {"id": run.run_id},
        )


def sent(ledger: Ledger, run: Run, claimed: Claimed, at: datetime = NOW) -> None:
    rows = sorted(claimed.rows.values())
    assert ledger.dispatch(run, rows, at) == set(rows)
    ledger.record(run, [Outcome(row, Status.SENT, reply="250 ok") for row in rows], at)


def test_claims_belong_to_one_run(ledger: Ledger) -> None:
    first, second = begin(ledger), begin(ledger)
    one = ledger.claim(first, claim([1, 2, 3]), NOW)
    two = ledger.claim(second, claim([3, 4]), NOW)
    assert (sorted(one.rows), one.already_claimed) == ([0, 1, 2], 0)
    assert (sorted(two.rows), two.already_claimed) == ([1], 1)
    assert ledger.claim(first, claim([1]), NOW).already_claimed == 1
    # keys grow in send order
    assert [one.rows[n] for n in range(3)] == sorted(one.rows.values())


def test_a_live_owner_keeps_its_claims_and_a_dead_one_loses_them(ledger: Ledger) -> None:
    first, second = begin(ledger), begin(ledger)
    held = ledger.claim(first, claim([1, 2]), NOW)
    ledger.dispatch(first, [held.rows[1]], NOW)
    assert not ledger.claim(second, claim([1, 2]), NOW).rows
    kill(ledger, first)
    taken = ledger.claim(second, claim([1, 2]), NOW)
    # the second message may have gone: nobody gets it again
    assert sorted(taken.rows) == [0]
    # the first run was only thought to be dead: it finds that it may not send any more
    assert ledger.dispatch(first, [held.rows[0]], NOW) == set()
    assert ledger.dispatch(second, [taken.rows[0]], NOW) == {taken.rows[0]}
    ledger.record(first, [Outcome(held.rows[0], Status.FAILED)], NOW)
    found = ledger.find("m1")
    assert found is not None
    assert found.status == "dispatching"


def test_an_ended_run_gives_its_claims_back_at_once(ledger: Ledger) -> None:
    first = begin(ledger)
    ledger.claim(first, claim([1]), NOW)
    ledger.end_run(first, "interrupted", NOW)
    assert ledger.claim(begin(ledger), claim([1]), NOW).rows


def test_a_taken_over_claim_is_judged_anew(ledger: Ledger) -> None:
    first = begin(ledger)
    ledger.claim(first, claim([1, 2]), NOW)
    ledger.end_run(first, "interrupted", NOW)
    answer = ledger.claim(begin(ledger), claim([1], skip="suppressed", plan={**PLAN, "version": "v2"}), NOW)
    assert (answer.rows, answer.skipped) == ({}, Counter(suppressed=1))
    found = ledger.find("m1")
    assert found is not None
    assert (found.status, found.reason, found.version, len(found.changes)) == (
        "skipped",
        "suppressed",
        "v2",
        1,
    )


def test_skips_are_rows_and_stay(ledger: Ledger) -> None:
    run = begin(ledger)
    assert ledger.claim(run, claim([1, 2], skip="no_consent"), NOW).skipped == {"no_consent": 2}
    again = ledger.claim(run, claim([1]), NOW)
    assert (again.rows, again.already_claimed) == ({}, 1)
    found = ledger.find("m1")
    assert found is not None
    assert [(change["sequence"], change["status"], change["reason"]) for change in found.changes] == [
        (1, "skipped", "no_consent")
    ]


def test_failures_that_never_left_may_be_claimed_again(ledger: Ledger) -> None:
    run = begin(ledger)
    rows = ledger.claim(run, claim([1, 2, 3]), NOW).rows
    ledger.fail_claimed(run, [Outcome(rows[0], Status.FAILED, "not_rendered")], NOW)
    ledger.dispatch(run, [rows[1], rows[2]], NOW)
    ledger.record(
        run, [Outcome(rows[1], Status.FAILED, "deferred"), Outcome(rows[2], Status.REJECTED, "invalid")], NOW
    )
    assert sorted(ledger.claim(run, claim([1, 2, 3]), NOW).rows) == [0, 1]


def test_cap_counts_what_was_or_may_be_sent(ledger: Ledger) -> None:
    cap = Cap(2, timedelta(days=7))
    run = begin(ledger)
    sent(ledger, run, ledger.claim(run, claim([1, 2], prefix="a"), NOW - timedelta(days=8)), NOW)
    sent(ledger, run, ledger.claim(run, claim([1], prefix="b"), NOW - timedelta(days=1), cap=cap))
    ledger.claim(run, claim([1], prefix="c"), NOW, cap=cap)
    transactional = {**PLAN, "category": "transactional"}
    ledger.claim(run, claim([2], prefix="t1", plan=transactional), NOW)
    ledger.claim(run, claim([2], prefix="t2", plan=transactional), NOW)
    answer = ledger.claim(run, claim([1, 2], prefix="d"), NOW, cap=cap)
    assert (sorted(answer.rows), answer.skipped) == ([1], {"frequency_cap": 1})


def test_a_claim_taken_over_does_not_count_against_itself(ledger: Ledger) -> None:
    cap = Cap(1, timedelta(days=7))
    first = begin(ledger)
    ledger.claim(first, claim([1]), NOW, cap=cap)
    ledger.end_run(first, "interrupted", NOW)
    assert ledger.claim(begin(ledger), claim([1]), NOW, cap=cap).rows


def test_an_old_claim_taken_over_leaves_no_room_in_the_cap(ledger: Ledger) -> None:
    cap = Cap(1, timedelta(days=7))
    first, second = begin(ledger), begin(ledger)
    ledger.claim(first, claim([1]), NOW - timedelta(days=9), cap=cap)
    ledger.end_run(first, "interrupted", NOW)
    sent(ledger, second, ledger.claim(second, claim([1], prefix="n"), NOW - timedelta(days=1), cap=cap))
    assert ledger.claim(second, claim([1]), NOW, cap=cap).skipped == {"frequency_cap": 1}


def test_cap_holds_between_two_senders_at_once(settings: SenderSettings) -> None:
    cap = Cap(1, timedelta(days=7))
    Ledger.open(settings).close()
    granted: list[int] = []

    def sender(name: str) -> None:
        with Ledger.open(settings) as own:
            run = begin(own, name)
            for number in range(1, 101):
                answer = own.claim(run, claim([number], prefix=name), NOW, cap=cap)
                granted.extend([number] * len(answer.rows))

    threads = [threading.Thread(target=sender, args=(f"campaign{n}",)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(granted) == list(range(1, 101))


def test_recovery(ledger: Ledger) -> None:
    run = begin(ledger)
    rows = ledger.claim(run, claim([1, 2, 3, 4]), NOW).rows
    ledger.dispatch(run, [rows[0], rows[1], rows[2]], NOW)
    assert ledger.recover(NOW) == {}
    kill(ledger, run)
    known = {"m1": Delivery("m1", Status.SENT, reply="found"), "m2": Delivery("m2", Status.FAILED)}
    settled = ledger.recover(NOW, provider="maildir", lookup=lambda _: known)
    assert settled == {"sent": 1, "claimed": 1, "unknown": 1}
    assert sorted(ledger.claim(begin(ledger), claim([1, 2, 3, 4]), NOW).rows) == [1, 3]
    assert ledger.unknown_message_ids() == ["m3"]
    assert ledger.settle({"m3": Status.SENT, "m1": Status.REJECTED, "nobody": Status.SENT}, NOW) == {
        "sent": 1
    }
    assert ledger.settle({"m3": Status.REJECTED}, NOW) == {}
    found = ledger.find("m3")
    assert found is not None
    assert [change["status"] for change in found.changes] == ["unknown", "sent"]


def test_unknown_is_looked_up_where_the_provider_can_tell_later(ledger: Ledger) -> None:
    run = begin(ledger)
    rows = ledger.claim(run, claim([1, 2]), NOW).rows
    ledger.dispatch(run, list(rows.values()), NOW)
    kill(ledger, run)
    assert ledger.recover(NOW, provider="smtp") == {"unknown": 2}
    known = {"m1": Delivery("m1", Status.SENT), "m2": Delivery("m2", Status.FAILED)}
    assert ledger.recover(NOW, provider="smtp", lookup=lambda _: known) == {}
    assert ledger.recover(NOW, provider="maildir", lookup=lambda _: known) == {"sent": 1, "claimed": 1}


def test_abandon_skips_only_what_dead_runs_left(ledger: Ledger) -> None:
    dead, live, now = begin(ledger), begin(ledger), begin(ledger)
    ledger.claim(dead, claim([1, 2]), NOW)
    ledger.claim(live, claim([3]), NOW)
    kill(ledger, dead)
    assert len(ledger.claim(now, claim([2, 4]), NOW).rows) == 2
    assert ledger.abandon(now, NOW) == 1
    assert ledger.counts("campaign", "offer", "o") == {"skipped": 1, "claimed": 3}


def test_a_reused_process_number_fools_nobody(ledger: Ledger) -> None:
    run = begin(ledger)
    ledger._active.discard(run.run_id)
    with ledger._engine.begin() as connection:
        # a process that lives under that number but began at another time
        connection.execute(sa.text("update runs set process_id = 1, process_started_at = '1'"))
    assert ledger.live_runs() == set()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with ledger._engine.begin() as connection:
            connection.execute(
                sa.text("update runs set process_id = :pid, process_started_at = :at"),
                {"pid": child.pid, "at": process_started_at(child.pid)},
            )
        assert ledger.live_runs() == {run.run_id}
    finally:
        child.kill()
        child.wait()
    assert ledger.live_runs() == set()
    assert own_process()[1] == os.getpid()


def test_a_sender_on_another_machine_lives_by_its_heartbeat(settings: SenderSettings) -> None:
    with Ledger.open(settings.model_copy(update={"claim_lease": 1.0})) as ledger:
        run = begin(ledger)
        with ledger._engine.begin() as connection:
            connection.execute(sa.text("update runs set host = 'elsewhere'"))
        assert ledger.live_runs() == {run.run_id}
        time.sleep(1.1)
        assert ledger.live_runs() == set()
        ledger.heartbeat(run)
        assert ledger.live_runs() == {run.run_id}


def test_export_outbox(ledger: Ledger) -> None:
    run = begin(ledger)
    sent(ledger, run, ledger.claim(run, claim([1, 2]), NOW))
    ledger.claim(run, claim([3], skip="holdout"), NOW)
    changes = ledger.changes_to_export(2)
    assert [(c["message_id"], c["status"], c["sequence"]) for c in changes] == [
        ("m1", "sent", 1),
        ("m2", "sent", 1),
    ]
    ledger.mark_exported([c["change_id"] for c in changes])
    assert [c["message_id"] for c in ledger.changes_to_export(10)] == ["m3"]


# what a person is told when the disk, the file or another process is in the way


def test_full_disk(tmp_path: Path) -> None:
    with Ledger.open(SenderSettings(home=tmp_path)) as ledger:
        run = begin(ledger)
        held = ledger.claim(run, claim([1]), NOW)

        @event.listens_for(ledger._engine, "begin")
        def limit(connection: sa.Connection) -> None:
            pages = connection.exec_driver_sql("pragma page_count").scalar_one()
            connection.exec_driver_sql(f"pragma max_page_count = {pages}")

        with pytest.raises(LedgerError, match="the disk is full"):
            for start in range(2, 5000, 500):
                ledger.claim(run, claim(list(range(start, start + 500))), NOW)
        # a claim is whole or not at all
        assert ledger.counts("campaign", "offer", "o")["claimed"] % 500 == 1
        event.remove(ledger._engine, "begin", limit)
    with Ledger.open(SenderSettings(home=tmp_path)) as ledger:
        ledger._active.add(run.run_id)
        sent(ledger, run, held)


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(LedgerError, match="is damaged"):
        Ledger.open(SenderSettings(home=tmp_path))


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("")
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger.open(SenderSettings(home=tmp_path / "home"))


def test_read_only(tmp_path: Path) -> None:
    Ledger.open(SenderSettings(home=tmp_path)).close()
    url = f"sqlite:///file:{tmp_path / 'ledger.db'}?mode=ro&uri=true"
    settings = SenderSettings(home=tmp_path, ledger_url=url)  # pyright: ignore[reportArgumentType]
    with Ledger.open(settings) as ledger, pytest.raises(LedgerError, match="read-only"):
        begin(ledger)


def test_locked(tmp_path: Path) -> None:
    settings = SenderSettings(home=tmp_path)
    Ledger.open(settings).close()
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("begin immediate")
    with Ledger.open(settings) as ledger:

        @event.listens_for(ledger._engine, "connect")
        def hurry(connection: Any, _: object) -> None:
            connection.execute("pragma busy_timeout = 100")

        ledger._engine.dispose()
        with pytest.raises(LedgerError, match="is locked"):
            begin(ledger)
    other.close()


def test_unusable_urls_and_secrets(tmp_path: Path) -> None:
    for url in (
        "nonsense", "postgresql+nosuchdriver://u:hunter2@h/db", "nosuch://u:hunter2@h/db", "mysql://u:hunter2@h/db",
    ):  # fmt: skip
        with pytest.raises(LedgerError, match="MAILHOUSE_LEDGER_URL") as caught:
            Ledger.open(SenderSettings(home=tmp_path, ledger_url=url))  # pyright: ignore[reportArgumentType]
        assert "hunter2" not in str(caught.value)


def test_a_ledger_from_the_future(settings: SenderSettings) -> None:
    with Ledger.open(settings) as ledger, ledger._engine.begin() as connection:
        connection.exec_driver_sql("update alembic_version set version_num = '9999'")
    with pytest.raises(LedgerError, match="newer Mailhouse"):
        Ledger.open(settings)


def test_migrations_make_the_tables_that_the_code_knows(ledger: Ledger) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from senders.tables import metadata

    with ledger._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_processes_that_open_a_new_ledger_at_once(settings: SenderSettings) -> None:
    code = "import senders.ledger as l, senders.settings as s; l.Ledger.open(s.SenderSettings())"
    environment = {
        **os.environ,
        "MAILHOUSE_HOME": str(settings.home),
        "MAILHOUSE_LEDGER_URL": settings.ledger_address,
    }
    processes = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]


def test_a_ledger_of_the_first_schema_keeps_all_it_knew(settings: SenderSettings) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(ledger_module.__file__).parent / "migrations"))
    engine = sa.create_engine(settings.ledger_address)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            sa.text(
                "insert into runs (kind, name, occurrence, host, process_id, process_started_at, started_at, "
                "heartbeat_at) values ('campaign', 'offer', 'o', 'elsewhere', 1, '', 0, 0)"
            )
        )
        for number, (name, status) in enumerate(
            [("offer", "sent"), ("offer", "claimed"), ("other", "unknown"), ("offer", "skipped")], start=1
        ):
            connection.execute(
                sa.text(
                    "insert into messages (message_id, status, sequence, run_id, kind, name, version, occurrence, "
                    "contact_id, email, channel, provider, category, template, template_version, segment, "
                    "segment_version, experiment, variant, subject, provider_reply, claimed_at, changed_at) values "
                    "(:id, :status, 1, 1, 'campaign', :name, 'v', 'o', :number, 'a@b.example', 'email', 'smtp', "
                    "'marketing', 't', '', '', '', '', 'b', :subject, 'fine', :at, 1000)"
                ),
                {"id": f"m{number}", "status": status, "name": name, "number": number, "at": milliseconds(NOW),
                 "subject": f"Subject {number}"},
            )  # fmt: skip
        connection.execute(
            sa.text(
                "insert into message_changes (message_row, sequence, status, provider_reply, changed_at) "
                "values (1, 1, 'sent', 'fine', 1000), (4, 1, 'skipped', '', 1000)"
            )
        )
    engine.dispose()
    with Ledger.open(settings) as ledger:
        found = ledger.find("m1")
        assert found is not None
        assert (found.name, found.version, found.subject, found.provider_reply) == (
            "offer",
            "v",
            "Subject 1",
            "fine",
        )
        assert ledger.counts("campaign", "offer", "o") == {"sent": 1, "claimed": 1, "skipped": 1}
        assert [(c["message_id"], c["subject"], c["name"]) for c in ledger.changes_to_export(9)] == [
            ("m1", "Subject 1", "offer"), ("m4", "Subject 4", "offer"),
        ]  # fmt: skip
        assert ledger.unknown_message_ids() == ["m3"]
        # what was sent counts for caps, what was left claimed is taken over, and new rows come after the old
        run = begin(ledger)
        answer = ledger.claim(run, claim([1, 2, 5]), NOW, cap=Cap(1, timedelta(days=7)))
        assert sorted(answer.rows) == [1, 2]
        assert answer.rows[2] > 4
        assert (
            ledger.claim(run, claim([1], prefix="n"), NOW, cap=Cap(1, timedelta(days=7))).skipped.total() == 1
        )


def test_whatever_a_provider_says_can_be_kept(ledger: Ledger) -> None:
    run = begin(ledger)
    rows = ledger.claim(run, claim([1, 2]), NOW).rows
    ledger.dispatch(run, list(rows.values()), NOW)
    words = "550 \0 {\"a\\b\", NULL}\n\u00e9\U0001f600 'x' %s :y"
    ledger.record(
        run,
        [Outcome(rows[0], Status.REJECTED, "r" * 150, "p" * 400, words * 30, subject=words),
         Outcome(rows[1], Status.SENT)],
        NOW,
    )  # fmt: skip
    found = ledger.find("m1")
    assert found is not None
    assert found.subject.replace("\ufffd", "\0") == words
    assert (len(found.provider_message_id), len(found.reason), len(found.provider_reply)) == (250, 100, 500)


def test_a_row_is_granted_once(ledger: Ledger) -> None:
    run = begin(ledger)
    rows = list(ledger.claim(run, claim([1, 2, 3]), NOW).rows.values())
    assert ledger.dispatch(run, rows[:2], NOW) == set(rows[:2])
    assert ledger.dispatch(run, rows, NOW) == {rows[2]}


def test_settling_keeps_what_the_provider_said_before(ledger: Ledger) -> None:
    run = begin(ledger)
    rows = ledger.claim(run, claim([1]), NOW).rows
    ledger.dispatch(run, [rows[0]], NOW)
    ledger.record(run, [Outcome(rows[0], Status.UNKNOWN, "", "esp-1", "connection reset", "Hello")], NOW)
    assert ledger.unknown_message_ids() == ["m1"]
    assert ledger.settle({"m1": Status.SENT}, NOW, reply="by event") == {"sent": 1}
    found = ledger.find("m1")
    assert found is not None
    assert (found.subject, found.provider_message_id, found.provider_reply) == ("Hello", "esp-1", "by event")
    assert ledger.unknown_message_ids() == []


def test_open_rows_are_found_by_their_index(tmp_path: Path) -> None:
    with Ledger.open(SenderSettings(home=tmp_path)) as ledger, ledger._engine.connect() as connection:
        values = {"name": "", "tries": 1, "limit": 1}
        for statement, index in (
            (ledger_module._UNKNOWN, "messages_open"), (ledger_module._OPEN, "messages_open"),
            (ledger_module._DEAD, "messages_failed"), (ledger_module._DEFERRED, "messages_failed"),
        ):  # fmt: skip
            own = {name: values[name] for name in statement._bindparams}
            plan = connection.execute(sa.text(f"explain query plan {statement.text}"), own).all()
            assert any(index in row[3] for row in plan), plan


@pytest.mark.service
def test_what_postgresql_refuses_is_told_without_secrets(
    tmp_path: Path, postgres_server: str, new_postgres_ledger: Callable[[], str]
) -> None:
    for url in (
        postgres_server.replace("mailhouse@", "mailhouse:hunter2@").replace("/postgres", "/nosuch"),
        "postgresql+psycopg://u:hunter2@127.0.0.1:1/db",
    ):
        settings = SenderSettings(home=tmp_path, ledger_url=url)  # pyright: ignore[reportArgumentType]
        with pytest.raises(LedgerError, match="failed") as caught:
            Ledger.open(settings)
        assert "hunter2" not in str(caught.value)
    settings = SenderSettings(home=tmp_path, ledger_url=new_postgres_ledger())  # pyright: ignore[reportArgumentType]
    with Ledger.open(settings) as ledger:
        with ledger._engine.connect() as connection:
            assert connection.exec_driver_sql("show synchronous_commit").scalar() == "on"
            connection.exec_driver_sql("set lock_timeout = '100ms'")
        with ledger._engine.connect() as other:
            other.exec_driver_sql("lock table locks in access exclusive mode")
            with pytest.raises(LedgerError, match="is locked by another session"):
                run = begin(ledger)
                with ledger._engine.connect() as connection:
                    connection.exec_driver_sql("set lock_timeout = '100ms'")
                    connection.commit()
                ledger.claim(run, claim([1]), NOW)
