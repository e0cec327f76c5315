"""Instructions that agents carry out, what they were told, and what became of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from orchestrator.tables import UtcTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the database here."""
    op.create_table(
        "executions",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("key", sa.Text(), unique=True),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, index=True),
        sa.Column("ask_token", sa.Text(), nullable=False),
        sa.Column("made_at", UtcTime(), nullable=False, index=True),
        sa.Column("started_at", UtcTime()),
        sa.Column("ended_at", UtcTime()),
        sa.Column("question_id", sa.Text(), index=True),
        sa.Column("woken_for", sa.Text()),
        sa.Column("result", sa.Text()),
        sa.Column("error", sa.Text()),
    )
    owner = sa.ForeignKey("executions.id", ondelete="CASCADE")
    op.create_table(
        "turns",
        sa.Column("execution_id", sa.Text(), owner, primary_key=True),
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("began_at", UtcTime(), nullable=False),
        sa.Column("ended_at", UtcTime()),
        sa.Column("output", sa.Text()),
    )
    op.create_table(
        "execution_events",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column(
            "execution_id",
            sa.Text(),
            sa.ForeignKey("executions.id", ondelete="CASCADE"),
            nullable=False,
            index=True,
        ),
        sa.Column("at", UtcTime(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
    )
