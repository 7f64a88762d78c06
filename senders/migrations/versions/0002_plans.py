"""What all messages of a run share moves to `plans`, what a provider answered to `message_changes`."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_IDENTIFIER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_LENGTHS = {
    "kind": 20, "name": 200, "version": 64, "occurrence": 100, "channel": 20, "provider": 50, "category": 50,
    "template": 200, "template_version": 64, "segment": 200, "segment_version": 64, "experiment": 200,
}  # fmt: skip
_PLAN = tuple(_LENGTHS)


def upgrade() -> None:
    """Make `plans`, move the columns, keep every row."""
    connection = op.get_bind()
    plans = op.create_table(
        "plans",
        sa.Column("plan_id", _IDENTIFIER, primary_key=True, autoincrement=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        *(sa.Column(name, sa.String(length), nullable=False) for name, length in _LENGTHS.items()),
        sqlite_autoincrement=True,
    )
    op.create_index("plans_by_name", "plans", ["kind", "name", "occurrence"])
    op.drop_index("messages_open", "messages")
    op.add_column("messages", sa.Column("plan_id", sa.BigInteger))
    op.add_column(
        "messages", sa.Column("is_open", sa.Boolean, nullable=False, server_default=sa.text("false"))
    )
    op.add_column("message_changes", sa.Column("subject", sa.Text, nullable=False, server_default=""))
    messages = sa.table("messages", *(sa.column(name) for name in ("plan_id", *_PLAN)))
    columns = [messages.c[name] for name in _PLAN]
    for row in connection.execute(sa.select(*columns).distinct()).all():
        digest = hashlib.sha256(json.dumps(list(row), ensure_ascii=False).encode()).hexdigest()
        values = dict(zip(_PLAN, row, strict=True))
        key = connection.execute(plans.insert().values(digest=digest, **values)).inserted_primary_key
        assert key is not None
        connection.execute(
            messages.update()
            .where(*(column == value for column, value in zip(columns, row, strict=True)))
            .values(plan_id=key[0])
        )
    op.execute("update messages set is_open = true where status in ('claimed', 'dispatching', 'unknown')")
    op.execute(
        "update message_changes set subject = "
        "(select subject from messages where messages.id = message_changes.message_row)"
    )
    with op.batch_alter_table("messages", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.alter_column("plan_id", existing_type=sa.BigInteger, nullable=False)
        batch.alter_column("variant", existing_type=sa.String(100), server_default="")
        batch.create_foreign_key("messages_plan_id_fkey", "plans", ["plan_id"], ["plan_id"])
        for name in (*_PLAN, "subject", "provider_message_id", "provider_reply"):
            batch.drop_column(name)
    is_open = sa.text("is_open")
    op.create_index("messages_open", "messages", ["id"], sqlite_where=is_open, postgresql_where=is_open)
    if connection.dialect.name == "postgresql":
        # room on the page for the next version of a row: a step from claimed to dispatching then touches no index
        op.execute("alter table messages set (fillfactor = 50)")
