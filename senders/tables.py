"""The ledger's tables, as SQLAlchemy knows them; `senders/migrations` makes them.

Times are whole milliseconds since 1970 UTC (BIGINT): compact, exact, and the same on SQLite and PostgreSQL.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()

# SQLite counts up only in a column of exactly this type
Identifier = BigInteger().with_variant(Integer, "sqlite")

runs = Table(
    "runs",
    metadata,
    Column("run_id", Identifier, primary_key=True, autoincrement=True),
    Column("kind", String(20), nullable=False),
    Column("name", String(200), nullable=False),
    Column("occurrence", String(100), nullable=False),
    Column("host", String(200), nullable=False),
    Column("process_id", BigInteger, nullable=False),
    Column("process_started_at", String(40), nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("heartbeat_at", Float, nullable=False),
    Column("finished_at", BigInteger),
    Column("outcome", String(20), nullable=False, server_default=""),
    sqlite_autoincrement=True,
)

#: What is the same for every message of a run, once: rows of a million messages need not repeat it.
plans = Table(
    "plans",
    metadata,
    Column("plan_id", Identifier, primary_key=True, autoincrement=True),
    # of all columns below; see senders.ledger
    Column("digest", String(64), nullable=False, unique=True),
    Column("kind", String(20), nullable=False),
    Column("name", String(200), nullable=False),
    Column("version", String(64), nullable=False),
    Column("occurrence", String(100), nullable=False),
    Column("channel", String(20), nullable=False),
    Column("provider", String(50), nullable=False),
    Column("category", String(50), nullable=False),
    Column("template", String(200), nullable=False),
    Column("template_version", String(64), nullable=False),
    Column("segment", String(200), nullable=False),
    Column("segment_version", String(64), nullable=False),
    Column("experiment", String(200), nullable=False),
    Index("plans_by_name", "kind", "name", "occurrence"),
    sqlite_autoincrement=True,
)

# word for word what queries say: SQLite takes the index for nothing less. Not `in`: SQLite would make a little table
# for the list with every row that is written, and the ledger would cost a quarter more
_HAS_FAILED = text("(status = 'failed' or status = 'rejected' or status = 'invalid')")

messages = Table(
    "messages",
    metadata,
    Column("id", Identifier, primary_key=True, autoincrement=True),
    Column("message_id", String(36), nullable=False, unique=True),
    Column("status", String(12), nullable=False),
    Column("reason", String(100), nullable=False, server_default=""),
    Column("sequence", Integer, nullable=False, server_default="0"),
    Column("run_id", BigInteger, ForeignKey("runs.run_id"), nullable=False),
    Column("plan_id", BigInteger, ForeignKey("plans.plan_id"), nullable=False),
    Column("contact_id", BigInteger, nullable=False),
    Column("email", String(320), nullable=False),
    Column("variant", String(100), nullable=False, server_default=""),
    Column("claimed_at", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Column("details", Text, nullable=False, server_default="{}"),
    # claimed, dispatching or unknown. A column of its own, so that the step from claimed to dispatching leaves the
    # index alone: an index over the status cost a third of all that the ledger costs
    Column("is_open", Boolean, nullable=False, server_default=text("false")),
    Index("messages_by_contact", "contact_id", "claimed_at"),
    # only the few rows that still await an outcome: cheap to keep, quick to find after a crash
    Index("messages_failed", "id", sqlite_where=_HAS_FAILED, postgresql_where=_HAS_FAILED),
    Index("messages_open", "id", sqlite_where=text("is_open"), postgresql_where=text("is_open")),
    sqlite_autoincrement=True,
)

message_changes = Table(
    "message_changes",
    metadata,
    Column("id", Identifier, primary_key=True, autoincrement=True),
    Column("message_row", BigInteger, ForeignKey("messages.id"), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("status", String(12), nullable=False),
    Column("reason", String(100), nullable=False, server_default=""),
    Column("subject", Text, nullable=False, server_default=""),
    Column("provider_message_id", String(250), nullable=False, server_default=""),
    Column("provider_reply", Text, nullable=False, server_default=""),
    Column("changed_at", BigInteger, nullable=False),
    Column("is_exported", Boolean, nullable=False, server_default=text("false")),
    Index("message_changes_by_message", "message_row"),
    Index(
        "message_changes_to_export",
        "id",
        sqlite_where=text("not is_exported"),
        postgresql_where=text("not is_exported"),
    ),
    sqlite_autoincrement=True,
)

#: What was used of a day's allowance (warm-up ladders): one row a name and day.
allowances = Table(
    "allowances",
    metadata,
    Column("name", String(100), primary_key=True),
    Column("day", String(10), primary_key=True),
    Column("used", BigInteger, nullable=False),
)

#: What people have paused: one row a campaign, journey or trigger.
pauses = Table(
    "pauses",
    metadata,
    Column("kind", String(20), primary_key=True),
    Column("name", String(200), primary_key=True),
    Column("paused_at", BigInteger, nullable=False),
)

#: One row a name: whoever updates it first in a transaction makes the others wait.
locks = Table(
    "locks",
    metadata,
    Column("name", String(50), primary_key=True),
    Column("taken", BigInteger, nullable=False, server_default="0"),
)

#: Events of the gateway that wait for the warehouse; used where the ledger is on PostgreSQL.
stream_events = Table(
    "stream_events",
    metadata,
    Column("id", Identifier, primary_key=True, autoincrement=True),
    Column("payload", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

#: Webhook calls that were taken, so that none is taken twice, whichever gateway it comes to.
seen_calls = Table(
    "seen_calls",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("expires_at", BigInteger, nullable=False),
    Index("seen_calls_by_expiry", "expires_at"),
)

#: Who does a thing that only one process at a time may do, and how far it has come: one row a thing.
leases = Table(
    "leases",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("token", BigInteger, nullable=False),
    Column("committed", BigInteger, nullable=False),
    Column("host", String(200), nullable=False),
    Column("process_id", BigInteger, nullable=False),
    Column("process_started_at", String(40), nullable=False),
    Column("heartbeat_at", Float, nullable=False),
)

#: What triggers have decided to do: one row a trigger, contact and event. `waiting` until it is due, `taken` by the run
#: that acts, then `done`; `fired_at` is kept from the moment that the cooldown let it through.
trigger_firings = Table(
    "trigger_firings",
    metadata,
    Column("id", Identifier, primary_key=True, autoincrement=True),
    # the id of the message that it sends, if it sends one
    Column("firing_id", String(36), nullable=False, unique=True),
    Column("name", String(200), nullable=False),
    Column("version", String(64), nullable=False),
    Column("contact_id", BigInteger, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("state", String(12), nullable=False),
    Column("reason", String(100), nullable=False, server_default=""),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("due_at", BigInteger, nullable=False),
    Column("fired_at", BigInteger),
    Column("run_id", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
    Index("trigger_firings_by_contact", "name", "contact_id", "fired_at"),
    Index(
        "trigger_firings_due",
        "due_at",
        sqlite_where=text("state = 'waiting'"),
        postgresql_where=text("state = 'waiting'"),
    ),
    Index(
        "trigger_firings_taken",
        "run_id",
        sqlite_where=text("state = 'taken'"),
        postgresql_where=text("state = 'taken'"),
    ),
    sqlite_autoincrement=True,
)
