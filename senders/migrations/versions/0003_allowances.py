"""What was used of a day's allowance, for warm-up ladders; an index of what failed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table and the index."""
    has_failed = sa.text("(status = 'failed' or status = 'rejected' or status = 'invalid')")
    op.create_index(
        "messages_failed", "messages", ["id"], sqlite_where=has_failed, postgresql_where=has_failed
    )
    op.create_table(
        "allowances",
        sa.Column("name", sa.String(100), primary_key=True),
        sa.Column("day", sa.String(10), primary_key=True),
        sa.Column("used", sa.BigInteger, nullable=False),
    )
