"""Questions to a person, and the messages by which the person hears of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from orchestrator.tables import UtcTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the database here."""
    op.create_table(
        "questions",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("asked_by", sa.Text(), nullable=False),
        sa.Column("ask_key", sa.Text(), unique=True),
        sa.Column("execution_id", sa.Text(), index=True),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("context", sa.Text(), nullable=False),
        sa.Column("choices", sa.JSON(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, index=True),
        sa.Column("asked_at", UtcTime(), nullable=False),
        sa.Column("deadline", UtcTime(), nullable=False, index=True),
        sa.Column("settled_at", UtcTime()),
        sa.Column("answer", sa.Text()),
        sa.Column("answer_key", sa.Text()),
        sa.Column("handed_over_at", UtcTime()),
    )
    op.create_table(
        "notifications",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("event", sa.Text(), nullable=False, unique=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("question_id", sa.Text(), index=True),
        sa.Column("state", sa.Text(), nullable=False, index=True),
        sa.Column("made_at", UtcTime(), nullable=False),
        sa.Column("due_at", UtcTime(), nullable=False, index=True),
        sa.Column("taken_until", UtcTime()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("refusals", sa.JSON(), nullable=False),
        sa.Column("settled_at", UtcTime()),
        sa.Column("delivered_by", sa.Text()),
    )
