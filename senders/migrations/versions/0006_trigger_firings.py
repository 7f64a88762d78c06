"""What triggers have decided to do: at once, or when it is due."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from senders.tables import Identifier

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the table, and the lock under which cooldowns are judged."""
    op.create_table(
        "trigger_firings",
        sa.Column("id", Identifier, primary_key=True, autoincrement=True),
        sa.Column("firing_id", sa.String(36), nullable=False, unique=True),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("contact_id", sa.BigInteger, nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("state", sa.String(12), nullable=False),
        sa.Column("reason", sa.String(100), nullable=False, server_default=""),
        sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("due_at", sa.BigInteger, nullable=False),
        sa.Column("fired_at", sa.BigInteger),
        sa.Column("run_id", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("trigger_firings_by_contact", "trigger_firings", ["name", "contact_id", "fired_at"])
    for name, columns, state in (
        ("trigger_firings_due", ["due_at"], "waiting"),
        ("trigger_firings_taken", ["run_id"], "taken"),
    ):
        where = sa.text(f"state = '{state}'")
        op.create_index(name, "trigger_firings", columns, sqlite_where=where, postgresql_where=where)
    op.bulk_insert(
        sa.table("locks", sa.column("name"), sa.column("taken")), [{"name": "triggers", "taken": 0}]
    )
