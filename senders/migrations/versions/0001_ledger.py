"""The ledger's first tables: runs, messages, their changes, and locks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_IDENTIFIER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "runs",
        sa.Column("run_id", _IDENTIFIER, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("occurrence", sa.String(100), nullable=False),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("process_id", sa.BigInteger, nullable=False),
        sa.Column("process_started_at", sa.String(40), nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("heartbeat_at", sa.Float, nullable=False),
        sa.Column("finished_at", sa.BigInteger),
        sa.Column("outcome", sa.String(20), nullable=False, server_default=""),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "messages",
        sa.Column("id", _IDENTIFIER, primary_key=True, autoincrement=True),
        sa.Column("message_id", sa.String(36), nullable=False, unique=True),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("reason", sa.String(100), nullable=False, server_default=""),
        sa.Column("sequence", sa.Integer, nullable=False, server_default="0"),
        sa.Column("run_id", sa.BigInteger, sa.ForeignKey("runs.run_id"), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("occurrence", sa.String(100), nullable=False),
        sa.Column("contact_id", sa.BigInteger, nullable=False),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("channel", sa.String(20), nullable=False),
        sa.Column("provider", sa.String(50), nullable=False),
        sa.Column("category", sa.String(50), nullable=False),
        sa.Column("template", sa.String(200), nullable=False),
        sa.Column("template_version", sa.String(64), nullable=False),
        sa.Column("segment", sa.String(200), nullable=False),
        sa.Column("segment_version", sa.String(64), nullable=False),
        sa.Column("experiment", sa.String(200), nullable=False),
        sa.Column("variant", sa.String(100), nullable=False),
        sa.Column("subject", sa.Text, nullable=False, server_default=""),
        sa.Column("provider_message_id", sa.String(250), nullable=False, server_default=""),
        sa.Column("provider_reply", sa.Text, nullable=False, server_default=""),
        sa.Column("claimed_at", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.Column("details", sa.Text, nullable=False, server_default="{}"),
        sqlite_autoincrement=True,
    )
    op.create_index("messages_by_contact", "messages", ["contact_id", "claimed_at"])
    is_open = sa.text("status in ('claimed', 'dispatching', 'unknown')")
    op.create_index(
        "messages_open", "messages", ["status", "run_id"], sqlite_where=is_open, postgresql_where=is_open
    )
    op.create_table(
        "message_changes",
        sa.Column("id", _IDENTIFIER, primary_key=True, autoincrement=True),
        sa.Column("message_row", sa.BigInteger, sa.ForeignKey("messages.id"), nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("reason", sa.String(100), nullable=False, server_default=""),
        sa.Column("provider_message_id", sa.String(250), nullable=False, server_default=""),
        sa.Column("provider_reply", sa.Text, nullable=False, server_default=""),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.Column("is_exported", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sqlite_autoincrement=True,
    )
    op.create_index("message_changes_by_message", "message_changes", ["message_row"])
    to_export = sa.text("not is_exported")
    op.create_index(
        "message_changes_to_export",
        "message_changes",
        ["id"],
        sqlite_where=to_export,
        postgresql_where=to_export,
    )
    op.create_table(
        "locks",
        sa.Column("name", sa.String(50), primary_key=True),
        sa.Column("taken", sa.BigInteger, nullable=False, server_default="0"),
    )
    op.execute("insert into locks (name) values ('claims'), ('exports')")
