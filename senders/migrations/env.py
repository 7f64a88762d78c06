"""Alembic's entry point: runs on the connection that `senders.ledger` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from senders.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
