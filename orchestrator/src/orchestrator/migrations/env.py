"""Where Alembic comes in: it is always handed a connection, by ``orchestrator.storage.migrate``."""

from __future__ import annotations

from alembic import context

from orchestrator import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.Table.metadata,
    render_as_batch=True,  # SQLite changes a table by making it anew
    transaction_per_migration=True,
)
with context.begin_transaction():
    context.run_migrations()
