"""Firings: what triggers have decided to do, once each, in the ledger's database.

A firing is one trigger, one contact, one event. It is written before anything is done, under the id that its message
would have, so that the same event after a crash finds it. `waiting` until it is due, `taken` by the run that acts,
`done` with a reason. What a run that died had taken waits again, and goes on where it stopped: the cooldown that let it
through (`fired_at`) is not judged a second time, and the ledger's claim sees to it that no message goes twice.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import orjson
import sqlalchemy as sa

from campaigns.identity import message_id
from senders.ledger import Ledger, Run, _chunks, _insert, _with_ids, milliseconds, moment
from senders.tables import trigger_firings

KIND = "trigger"
KEPT = timedelta(days=35)
"""How long what is done is kept at least; what fired is kept for as long as its trigger's cooldown needs it."""


class Firing(NamedTuple):
    """One trigger, contact and event; a tuple, for a busy second has a thousand of them.

    Attributes:
        event: type, source, email, occurred_at (ISO), properties (JSON text), and words about its message.
        due_at: when it is to be done, UTC.
        fired_at: when its cooldown let it through; None before that.
    """

    name: str
    version: str
    contact_id: int
    event_id: str
    event: Mapping[str, Any]
    due_at: datetime
    row_id: int = 0
    tries: int = 0
    state: str = ""
    reason: str = ""
    fired_at: datetime | None = None
    created_at: datetime | None = None

    @property
    def firing_id(self) -> str:
        """Its id, and that of the message that it sends."""
        return message_id(KIND, self.name, self.contact_id, self.event_id)


class Firings:
    """The firings of one ledger. Safe to share between threads."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def add(
        self, run: Run, firings: Mapping[str, Firing], now: datetime, *, taken: Collection[str] = ()
    ) -> list[Firing]:
        """Write firings that nobody has written; returns those that this call took for the run.

        Args:
            firings: by their ids.
            taken: ids of those that this run acts on at once; the others wait until they are due.
        """
        if not firings:
            return []
        at = milliseconds(now)
        rows = [
            (
                key, one.name, one.version, one.contact_id, one.event_id,
                orjson.dumps(dict(one.event)).decode().replace("\\u0000", "\\ufffd"),
                "taken" if key in taken else "waiting", milliseconds(one.due_at), run.run_id if key in taken else 0,
                at, at,
            )
            for key, one in firings.items()
        ]  # fmt: skip
        with self._ledger._writing(lock="triggers") as connection:
            mark = connection.execute(_NEWEST).scalar_one()
            _insert(connection, trigger_firings, _COLUMNS, rows, "on conflict (firing_id) do nothing")
            created = connection.execute(_CREATED, {"mark": mark, "run_id": run.run_id}).all()
        return [
            firings[firing_id]._replace(row_id=row_id)
            for row_id, firing_id in created
            if firing_id in firings
        ]

    def take(
        self, run: Run, now: datetime, limit: int, *, names: Collection[str], paused: Collection[str] = ()
    ) -> list[Firing]:
        """Take what is due, the longest waiting first, of triggers with these names."""
        wanted = sorted(set(names) - set(paused))
        if limit < 1 or not wanted:
            return []
        with self._ledger._writing() as connection:
            due = connection.execute(
                _DUE.bindparams(sa.bindparam("names", expanding=True)),
                {"at": milliseconds(now), "limit": limit, "names": wanted},
            ).scalars()
            ids = list(due)
            mine: list[int] = []
            for part in _chunks(ids):
                mine += _with_ids(connection, _TAKE, part, run_id=run.run_id, at=milliseconds(now)).scalars()
            rows = [row for part in _chunks(mine) for row in _with_ids(connection, _ROWS, part).mappings()]
        return sorted((_firing(row) for row in rows), key=lambda one: (one.due_at, one.row_id))

    def has_due(self, now: datetime) -> bool:
        """Whether anything waits that is due; cheap enough to be asked ten times a second."""
        with self._ledger._reading() as connection:
            return connection.execute(_ANY_DUE, {"at": milliseconds(now)}).first() is not None

    def recover(self, now: datetime) -> int:
        """Let wait again what dead runs had taken; returns how many."""
        with self._ledger._writing() as connection:
            taken = connection.execute(_TAKEN).all()
            if not taken:
                return 0
            live = self._ledger._live(connection)
            dead = [row.id for row in taken if row.run_id not in live]
            for part in _chunks(dead):
                _with_ids(connection, _AGAIN, part, at=milliseconds(now))
        return len(dead)

    def reserve(
        self, run: Run, firings: Sequence[Firing], cooldowns: Mapping[str, timedelta], now: datetime
    ) -> dict[int, datetime]:
        """Let those fire whose trigger has not fired for the contact within its cooldown.

        Returns:
            of those that may not: row id -> when the other one fired. The rest are marked as fired now.
        """
        blocked: dict[int, datetime] = {}
        new = [one for one in firings if one.fired_at is None]
        if not new:
            return blocked
        at = milliseconds(now)
        with self._ledger._writing(lock="triggers") as connection:
            last: dict[tuple[str, int], int] = {}
            limited: dict[str, set[int]] = {}
            for one in new:
                if cooldowns[one.name]:
                    limited.setdefault(one.name, set()).add(one.contact_id)
            own = {one.row_id for one in new}
            for name, contacts in limited.items():
                since = milliseconds(now - cooldowns[name])
                for part in _chunks(sorted(contacts)):
                    for row in _with_ids(connection, _LAST, part, name=name, since=since):
                        if row.id not in own:
                            key = (name, row.contact_id)
                            last[key] = max(row.fired_at, last.get(key, 0))
            fired: list[int] = []
            for one in new:
                key = (one.name, one.contact_id)
                if key in last and cooldowns[one.name]:
                    blocked[one.row_id] = moment(last[key])
                else:
                    fired.append(one.row_id)
                    last[key] = at
            for part in _chunks(fired):
                _with_ids(connection, _FIRED, part, run_id=run.run_id, at=at)
        return blocked

    def let_go(self, run: Run, row_ids: Sequence[int]) -> None:
        """Take back that firings count for their cooldown: they come to nothing, and `finish` will say so."""
        with self._ledger._writing() as connection:
            for part in _chunks(row_ids):
                _with_ids(connection, _UNFIRED, part, run_id=run.run_id)

    def finish(
        self, run: Run, outcomes: Mapping[int, str], now: datetime, *, unfired: Collection[int] = ()
    ) -> None:
        """Close firings with a reason: `fired`, or why not.

        Args:
            unfired: those that the cooldown had let through and that came to nothing: they hold back no other.
        """
        if not outcomes:
            return
        alike: dict[tuple[str, bool], list[int]] = {}
        for row_id, reason in sorted(outcomes.items()):
            alike.setdefault((reason[:100], row_id in unfired), []).append(row_id)
        with self._ledger._writing() as connection:
            for (reason, is_unfired), row_ids in alike.items():
                statement = _DONE_UNFIRED if is_unfired else _DONE
                for part in _chunks(row_ids):
                    _with_ids(
                        connection, statement, part, run_id=run.run_id, reason=reason, at=milliseconds(now)
                    )

    def postpone(
        self, run: Run, due: Mapping[int, datetime], now: datetime, reason: str, *, is_try: bool = False
    ) -> None:
        """Let firings wait until another time."""
        with self._ledger._writing() as connection:
            for row_id, until in sorted(due.items()):
                connection.execute(
                    _POSTPONE,
                    {"id": row_id, "run_id": run.run_id, "due": milliseconds(until), "reason": reason[:100],
                     "at": milliseconds(now), "tries": int(is_try)},
                )  # fmt: skip

    def revive(self, now: datetime) -> int:
        """Do again what failed for good and has been revived since (`mailhouse deadletters --retry`)."""
        with self._ledger._writing() as connection:
            return connection.execute(_REVIVE, {"at": milliseconds(now)}).rowcount

    def clear(self, now: datetime, cooldowns: Mapping[str, timedelta]) -> int:
        """Forget what is long done and holds back no other."""
        gone = 0
        with self._ledger._writing() as connection:
            gone += connection.execute(_CLEAR_UNFIRED, {"before": milliseconds(now - KEPT)}).rowcount
            for name, cooldown in cooldowns.items():
                before = milliseconds(now - max(KEPT, cooldown))
                gone += connection.execute(_CLEAR, {"name": name, "before": before}).rowcount
        return gone

    def find(self, firing_id: str) -> Firing | None:
        """One firing."""
        with self._ledger._reading() as connection:
            row = connection.execute(_FIND, {"id": firing_id}).mappings().first()
        return _firing(row) if row else None

    def of_contact(self, name: str, contact_id: int, limit: int = 20) -> list[Firing]:
        """The newest firings of a trigger for a contact."""
        with self._ledger._reading() as connection:
            rows = connection.execute(_OF_CONTACT, {"name": name, "contact_id": contact_id, "limit": limit})
            return [_firing(row) for row in rows.mappings()]

    def counts(self, since: datetime) -> dict[str, dict[str, int]]:
        """Firings of each trigger by reason, `waiting` for those that wait; done since, or waiting now."""
        counted: dict[str, dict[str, int]] = {}
        with self._ledger._reading() as connection:
            for name, reason, number in connection.execute(_NUMBERS, {"since": milliseconds(since)}):
                counted.setdefault(name, {})[reason] = number
        return counted


def _firing(row: Any) -> Firing:
    return Firing(
        row["name"], row["version"], row["contact_id"], row["event_id"], json.loads(row["event"]),
        moment(row["due_at"]), row["id"], row["tries"], row["state"], row["reason"],
        moment(row["fired_at"]) if row["fired_at"] is not None else None, moment(row["created_at"]),
    )  # fmt: skip


_COLUMNS = (
    "firing_id", "name", "version", "contact_id", "event_id", "event", "state", "due_at", "run_id", "created_at",
    "changed_at",
)  # fmt: skip
_NEWEST = sa.text("select coalesce(max(id), 0) from trigger_firings")
_CREATED = sa.text(
    "select id, firing_id from trigger_firings where id > :mark and run_id = :run_id and state = 'taken' order by id"
)
_DUE = sa.text(
    "select id from trigger_firings where state = 'waiting' and due_at <= :at and name in :names "
    "order by due_at, id limit :limit"
)
_ANY_DUE = sa.text("select 1 from trigger_firings where state = 'waiting' and due_at <= :at limit 1")
_TAKE = (
    "update trigger_firings set state = 'taken', run_id = :run_id, changed_at = :at "
    "where id in :ids and state = 'waiting' returning id"
)
_ROWS = "select * from trigger_firings where id in :ids"
_TAKEN = sa.text("select id, run_id from trigger_firings where state = 'taken' order by id")
_AGAIN = (
    "update trigger_firings set state = 'waiting', due_at = :at, changed_at = :at "
    "where id in :ids and state = 'taken'"
)
_LAST = (
    "select id, contact_id, fired_at from trigger_firings where name = :name and contact_id in :ids "
    "and fired_at > :since"
)
_FIRED = (
    "update trigger_firings set fired_at = :at, changed_at = :at "
    "where id in :ids and run_id = :run_id and state = 'taken'"
)
_UNFIRED = (
    "update trigger_firings set fired_at = null where id in :ids and run_id = :run_id and state = 'taken'"
)
_DONE = (
    "update trigger_firings set state = 'done', reason = :reason, changed_at = :at "
    "where id in :ids and run_id = :run_id and state = 'taken'"
)
_DONE_UNFIRED = (
    "update trigger_firings set state = 'done', reason = :reason, fired_at = null, changed_at = :at "
    "where id in :ids and run_id = :run_id and state = 'taken'"
)
_POSTPONE = sa.text(
    "update trigger_firings set state = 'waiting', due_at = :due, reason = :reason, tries = tries + :tries, "
    "changed_at = :at where id = :id and run_id = :run_id and state = 'taken'"
)
_REVIVE = sa.text(
    "update trigger_firings set state = 'waiting', due_at = :at, tries = 0, changed_at = :at "
    "where state = 'done' and firing_id in (select m.message_id from messages m "
    "join plans p on p.plan_id = m.plan_id "
    "where (m.status = 'failed' or m.status = 'rejected' or m.status = 'invalid') and m.status = 'failed' "
    "and m.reason = 'revived' and p.kind = 'trigger')"
)
_CLEAR_UNFIRED = sa.text(
    "delete from trigger_firings where state = 'done' and fired_at is null and changed_at < :before"
)
_CLEAR = sa.text("delete from trigger_firings where state = 'done' and name = :name and changed_at < :before")
_FIND = sa.text("select * from trigger_firings where firing_id = :id")
_OF_CONTACT = sa.text(
    "select * from trigger_firings where name = :name and contact_id = :contact_id order by id desc limit :limit"
)
_NUMBERS = sa.text(
    "select name, case when state = 'done' then reason else 'waiting' end as what, count(*) from trigger_firings "
    "where state <> 'done' or changed_at >= :since group by 1, 2"
)
