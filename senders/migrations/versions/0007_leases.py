"""Leases: one process at a time moves the people of a journey."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "leases",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("committed", sa.BigInteger, nullable=False),
        sa.Column("host", sa.String(200), nullable=False),
        sa.Column("process_id", sa.BigInteger, nullable=False),
        sa.Column("process_started_at", sa.String(40), nullable=False),
        sa.Column("heartbeat_at", sa.Float, nullable=False),
    )
