"""Alembic migrations of the ledger; `senders.ledger.Ledger.open` runs what is missing."""
