"""The ledger against a plain model of it: runs that claim, send, crash, come back and recover, in any order.

The model holds what each message must be, and what a provider really got: no order of events may let one message
reach it twice, lose one, or give a person more than the cap allows.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from senders.ledger import PLAN_COLUMNS, TRIES, Claim, Ledger, Outcome, Run, milliseconds
from senders.message import DELIVERABLE, RETRYABLE, Delivery, Status
from senders.plan import Cap
from senders.settings import SenderSettings
from senders.tables import message_changes, messages, metadata

NOW = datetime(2026, 6, 27, 9, tzinfo=UTC)
PEOPLE = st.sets(st.integers(1, 3), min_size=1)
WHO = st.integers(0, 3)
CAMPAIGN = st.sampled_from(["a", "b", "t"])
OUTCOMES = ["sent", "queued", "deferred", "rejected", "unknown", "released", "crash", "crash_after"]
DRAWS = {
    "begin": {"campaign": CAMPAIGN},
    "claim": {
        "who": WHO,
        "people": PEOPLE,
        "skip": st.sampled_from(["", "", "", "suppressed"]),
        "limit": st.sampled_from([0, 1, 1, 2]),
    },
    "dispatch": {"who": WHO, "how": st.sampled_from(OUTCOMES)},
    "recover": {"can_tell": st.booleans()},
    "provider_events": {"people": PEOPLE, "campaign": CAMPAIGN},
    "time_passes": {"days": st.sampled_from([1, 8])},
    "export": {"number": st.integers(1, 5), "is_lost": st.booleans()},
    **{name: {"who": WHO} for name in ("cannot_render", "abandon", "end", "crash", "ghost_goes_on")},
}
OPEN = {"claimed", "dispatching", "unknown"}


@dataclass(frozen=True)
class Expected:
    """What the model says a message is."""

    contact: int
    campaign: str
    status: str
    reason: str
    run: int
    claimed_at: datetime
    changes: tuple[str, ...] = ()
    deferrals: int = 0

    def to(self, status: str, reason: str = "") -> Expected:
        """The message after a decision that the warehouse is told of."""
        deferrals = self.deferrals + (reason == "deferred")
        return replace(
            self, status=status, reason=reason, changes=(*self.changes, status), deferrals=deferrals
        )


class LedgerMachine(RuleBasedStateMachine):
    """Any history of a few senders and a few messages; see the module."""

    def __init__(self, url: str | None = None) -> None:
        super().__init__()
        self.url = url

    @initialize()
    def start(self) -> None:
        memory = Path("/dev/shm")
        self.folder = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
        more = {"ledger_url": self.url} if self.url else {}
        self.ledger = Ledger.open(SenderSettings(home=self.folder.name, **more))  # pyright: ignore
        with self.ledger._engine.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                if self.url and table.name != "locks":
                    connection.execute(table.delete())
        self.model: dict[str, Expected] = {}
        self.rows: dict[str, int] = {}
        self.live: dict[int, Run] = {}
        self.got: Counter[str] = Counter()
        self.exported: Counter[tuple[str, int]] = Counter()
        self.ghosts: dict[int, Run] = {}
        self.at = NOW
        self.begin(None, "a")

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger._active.clear()
            self.ledger.close()
            self.folder.cleanup()

    # senders

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """One of all that may happen now. Drawn here, not as rules: those would mostly have nothing to act upon."""
        steps = ["dispatch"] * 5 + ["cannot_render"] if self._holders() else []
        steps += ["claim"] * 5 + ["abandon", "end", "crash"] if self.live else []
        steps += ["ghost_goes_on"] * 2 if self.ghosts and self.rows else []
        steps += ["begin"] * (len(self.live) < 3)
        steps += ["recover", "recover", "provider_events", "export", "time_passes"]
        name = data.draw(st.sampled_from(steps))
        draws = {key: data.draw(strategy, key) for key, strategy in DRAWS.get(name, {}).items()}
        getattr(self, name)(data, **draws)

    def _pick(self, runs: dict[int, Run], number: int) -> Run:
        return sorted(runs.items())[number % len(runs)][1]

    def begin(self, _: object, campaign: str) -> None:
        run = self.ledger.begin_run("campaign", campaign, "o", self.at)
        self.live[run.run_id] = run

    def claim(self, _: object, who: int, people: set[int], skip: str, limit: int) -> None:
        run = self._pick(self.live, who)
        numbers, name = sorted(people), run.name
        category = "transactional" if name == "t" else "marketing"
        cap = Cap(limit, timedelta(days=7)) if limit else None
        plan = {**dict.fromkeys(PLAN_COLUMNS, ""), "kind": "campaign", "name": name, "occurrence": "o",
                "category": category, "provider": "maildir"}  # fmt: skip
        ids = [f"{name}{number}" for number in numbers]
        answer = self.ledger.claim(
            run,
            Claim(
                plan,
                ids,
                numbers,
                [f"p{n}@example.com" for n in numbers],
                [skip] * len(ids),
                ["{}"] * len(ids),
            ),
            self.at,
            cap=cap,
        )
        granted: set[str] = set()
        skipped: Counter[str] = Counter()
        for number, message_id in zip(numbers, ids, strict=True):
            before = self.model.get(message_id)
            if before is not None and not self._may_be_taken(before, run):
                continue
            others = [
                one for key, one in self.model.items()
                if key != message_id and one.contact == number and one.campaign != "t"
                and one.status in DELIVERABLE and one.claimed_at > self.at - timedelta(days=7)
            ]  # fmt: skip
            reason = skip or ("frequency_cap" if cap and len(others) >= cap.messages else "")
            fresh = Expected(number, name, "claimed", "", run.run_id, self.at)
            if before:
                fresh = replace(fresh, changes=before.changes, deferrals=before.deferrals)
            if reason:
                fresh = fresh.to("skipped", reason)
                skipped[reason] += 1
            else:
                granted.add(message_id)
            self.model[message_id] = fresh
        assert {ids[position] for position in answer.rows} == granted
        assert answer.skipped == skipped
        assert answer.already_claimed == len(ids) - len(granted) - skipped.total()
        self.rows.update({ids[position]: row for position, row in answer.rows.items()})

    def _may_be_taken(self, one: Expected, run: Run) -> bool:
        is_left = one.status == "claimed" and one.run not in self.live and one.run != run.run_id
        is_dead = one.reason == "deferred" and one.deferrals >= TRIES
        return is_left or (one.status == "failed" and one.reason in RETRYABLE and not is_dead)

    def _held(self, run: Run) -> list[str]:
        return sorted(
            key for key, one in self.model.items() if (one.run, one.status) == (run.run_id, "claimed")
        )

    def _holders(self) -> dict[int, Run]:
        return {number: run for number, run in self.live.items() if self._held(run)}

    def dispatch(self, data: st.DataObject, who: int, how: str) -> None:
        run = self._pick(self._holders(), who)
        held = self._held(run)
        some = sorted(data.draw(st.sets(st.sampled_from(held), min_size=1)))
        rows = [self.rows[one] for one in some]
        assert self.ledger.dispatch(run, rows, self.at) == set(rows)
        assert self.ledger.dispatch(run, rows, self.at) == set(), "granted twice"
        for one in some:
            self.model[one] = replace(self.model[one], status="dispatching")
        if how in ("sent", "queued", "unknown", "crash_after"):
            self.got.update(some)
        if how.startswith("crash"):
            self._die(run)
        else:
            self._record(run, some, how)

    def _record(self, run: Run, some: list[str], how: str) -> None:
        rows = [self.rows[one] for one in some]
        known = {"deferred": ("failed", "deferred"), "rejected": ("rejected", "invalid")}
        status, reason = known.get(how, (how, ""))
        if how == "released":
            self.ledger.record(run, [], self.at, release=rows)
        else:
            self.ledger.record(run, [Outcome(row, Status(status), reason) for row in rows], self.at)
        for one in some:
            message = self.model[one]
            if (message.status, message.run) != ("dispatching", run.run_id):
                continue
            self.model[one] = (
                replace(message, status="claimed") if how == "released" else message.to(status, reason)
            )

    def cannot_render(self, data: st.DataObject, who: int) -> None:
        run = self._pick(self._holders(), who)
        held = self._held(run)
        one = data.draw(st.sampled_from(held))
        self.ledger.fail_claimed(run, [Outcome(self.rows[one], Status.FAILED, "not_rendered")], self.at)
        self.model[one] = self.model[one].to("failed", "not_rendered")

    def abandon(self, _: object, who: int) -> None:
        run = self._pick(self.live, who)
        left = [
            key for key, one in self.model.items()
            if one.status == "claimed" and one.campaign == run.name and one.run not in self.live
        ]  # fmt: skip
        assert self.ledger.abandon(run, self.at) == len(left)
        for one in left:
            self.model[one] = self.model[one].to("skipped", "left_audience")

    def end(self, _: object, who: int) -> None:
        run = self._pick(self.live, who)
        del self.live[run.run_id]
        self.ledger.end_run(run, "finished", self.at)

    def crash(self, _: object, who: int) -> None:
        self._die(self._pick(self.live, who))

    def _die(self, run: Run) -> None:
        """As if the run's process had died: another number, another start."""
        self.ghosts[run.run_id] = self.live.pop(run.run_id)
        self.ledger._active.discard(run.run_id)
        with self.ledger._engine.begin() as connection:
            connection.execute(
                sa.text(
                    "update runs set process_id = 999999999, process_started_at = 'x' where run_id = :id"
                ),
                {"id": run.run_id},
            )

    def ghost_goes_on(self, data: st.DataObject, who: int) -> None:
        """A run that was only thought to be dead: it may send what nobody took from it, and nothing else."""
        ghost = self._pick(self.ghosts, who)
        some = sorted(data.draw(st.sets(st.sampled_from(sorted(self.rows)), min_size=1)))
        allowed = {one for one in some if one in self._held(ghost)}
        granted = self.ledger.dispatch(ghost, [self.rows[one] for one in some], self.at)
        assert granted == {self.rows[one] for one in allowed}
        for one in allowed:
            self.model[one] = replace(self.model[one], status="dispatching")
        self.got.update(allowed)
        # it writes down what it knows: nobody else's message changes by that
        self._record(ghost, [one for one in some if self.got[one]], "sent")

    # after a crash

    def recover(self, _: object, can_tell: bool) -> None:
        def look_up(ids: object) -> dict[str, Delivery]:
            assert isinstance(ids, list)
            return {one: Delivery(one, Status.SENT if self.got[one] else Status.FAILED) for one in ids}

        settled = self.ledger.recover(self.at, provider="maildir" if can_tell else "smtp", lookup=look_up)
        expected: Counter[str] = Counter()
        for key, one in self.model.items():
            if one.run in self.live or not (
                one.status == "dispatching" or (one.status == "unknown" and can_tell)
            ):
                continue
            if not can_tell:
                self.model[key] = one.to("unknown", "crashed")
            else:
                self.model[key] = (
                    one.to("sent") if self.got[key] else replace(one, status="claimed", reason="")
                )
            expected[self.model[key].status] += 1
        assert settled == expected

    def provider_events(self, _: object, people: set[int], campaign: str) -> None:
        """Events come in late, twice, and about messages that need none."""
        ids = {f"{campaign}{number}" for number in people}
        unknown = {key for key in ids if key in self.model and self.model[key].status == "unknown"}
        outcomes = {one: Status.SENT if self.got[one] else Status.FAILED for one in ids}
        settled = self.ledger.settle(outcomes, self.at)
        assert settled.total() == len(unknown)
        for one in unknown:
            self.model[one] = self.model[one].to(outcomes[one].value)

    def time_passes(self, _: object, days: int) -> None:
        self.at += timedelta(days=days)

    def export(self, _: object, number: int, is_lost: bool) -> None:
        changes = self.ledger.changes_to_export(number)
        if is_lost:
            return
        self.exported.update((change["message_id"], change["sequence"]) for change in changes)
        self.ledger.mark_exported([change["change_id"] for change in changes])

    # what must hold

    @invariant()
    def the_ledger_is_as_the_model_says(self) -> None:
        if not hasattr(self, "ledger"):
            return
        assert all(count <= 1 for count in self.got.values()), "sent twice"
        with self.ledger._engine.connect() as connection:
            stored = connection.execute(messages.select()).all()
            told: dict[int, list[str]] = {}
            for row in connection.execute(
                message_changes.select().order_by(message_changes.c.sequence)
            ).all():
                told.setdefault(row.message_row, []).append(row.status)
                assert row.sequence == len(told[row.message_row])
        assert {row.message_id for row in stored} == set(self.model)
        for row in stored:
            one = self.model[row.message_id]
            assert (row.status, row.reason, row.run_id) == (one.status, one.reason, one.run), row.message_id
            assert row.claimed_at == milliseconds(one.claimed_at)
            assert row.is_open == (one.status in OPEN)
            assert tuple(told.get(row.id, ())) == one.changes
            assert row.sequence == len(one.changes)
            if self.got[row.message_id]:
                assert one.status in ("sent", "queued", "dispatching", "unknown"), (
                    "sent, and the ledger forgot"
                )
            else:
                assert one.status not in ("sent", "queued")
        assert set(self.exported.values()) <= {1}
        left = {(change["message_id"], change["sequence"]) for change in self.ledger.changes_to_export(1000)}
        everything = {(key, n) for key, one in self.model.items() for n in range(1, len(one.changes) + 1)}
        assert left | set(self.exported) == everything
        assert not left & set(self.exported)


def test_any_history_on_sqlite() -> None:
    run_state_machine_as_test(
        LedgerMachine, settings=hypothesis_settings(max_examples=20, stateful_step_count=30, deadline=None)
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_histories_on_sqlite() -> None:
    run_state_machine_as_test(
        LedgerMachine, settings=hypothesis_settings(max_examples=80, stateful_step_count=50, deadline=None)
    )


@pytest.mark.service
def test_any_history_on_postgresql(new_postgres_ledger: Callable[[], str]) -> None:
    url = new_postgres_ledger()
    run_state_machine_as_test(
        lambda: LedgerMachine(url),  # pyright: ignore[reportArgumentType]
        settings=hypothesis_settings(max_examples=40, stateful_step_count=40, deadline=None),
    )
