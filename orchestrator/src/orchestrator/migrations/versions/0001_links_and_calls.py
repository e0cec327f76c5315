"""Links, the sessions made from them, calls and what was said in them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from orchestrator.tables import UtcTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Bring the database here."""
    op.create_table(
        "links",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False, unique=True),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("question_id", sa.Text()),
        sa.Column("execution_id", sa.Text()),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("made_by", sa.Text(), nullable=False),
        sa.Column("made_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("uses_left", sa.Integer(), nullable=False),
        sa.Column("revoked_at", UtcTime()),
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False, unique=True),
        sa.Column(
            "link_id", sa.Text(), sa.ForeignKey("links.id", ondelete="CASCADE"), nullable=False, index=True
        ),
        sa.Column("made_at", UtcTime(), nullable=False),
        sa.Column("expires_at", UtcTime(), nullable=False),
        sa.Column("revoked_at", UtcTime()),
    )
    op.create_table(
        "calls",
        sa.Column("id", sa.Text(), primary_key=True),
        sa.Column("session_id", sa.Text(), sa.ForeignKey("sessions.id", ondelete="SET NULL"), index=True),
        sa.Column("link_id", sa.Text(), sa.ForeignKey("links.id", ondelete="SET NULL"), index=True),
        sa.Column("question_id", sa.Text()),
        sa.Column("through", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, index=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("asked_at", UtcTime(), nullable=False, index=True),
        sa.Column("called_at", UtcTime()),
        sa.Column("began_at", UtcTime()),
        sa.Column("ended_at", UtcTime(), index=True),
        sa.Column("reason", sa.Text()),
        sa.Column("engine", sa.Integer()),
        sa.Column("voice", sa.Text()),
        sa.Column("latency", sa.JSON()),
    )
    op.create_table(
        "transcripts",
        sa.Column("id", sa.Integer(), primary_key=True, autoincrement=True),
        sa.Column("call_id", sa.Text(), sa.ForeignKey("calls.id", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("start_ms", sa.Integer()),
        sa.Column("end_ms", sa.Integer()),
        sa.Column("said_at", UtcTime(), nullable=False),
    )
    op.create_index("ix_transcripts_call", "transcripts", ["call_id", "number"])
