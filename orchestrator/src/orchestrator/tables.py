"""What is kept: one class per table. Nothing here decides anything.

Links, sessions and tokens are kept as SHA-256 of 256 random bits: whoever reads the database gets in nowhere.
(A slow hash is for secrets that people choose.)
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from sqlalchemy import JSON, DateTime, ForeignKey, Index, LargeBinary, MetaData, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcTime(TypeDecorator[datetime]):
    """A moment: with its zone in Python and in PostgreSQL, as naive UTC in SQLite, which knows no zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a moment without a zone: nobody could tell when it was."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs its zone")
        moment = value.astimezone(timezone.utc)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return it in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)


class Table(DeclarativeBase):
    """The root of all tables. Constraints have names that do not depend on the database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it from the class
        datetime: UtcTime,
        str: Text,
        bytes: LargeBinary,
        dict[str, Any]: JSON,
        list[str]: JSON,
    }


class Link(Table):
    """A door that the operator, or an agent for its own question, opens to whoever has the URL."""

    __tablename__ = "links"

    id: Mapped[str] = mapped_column(primary_key=True)
    token_hash: Mapped[bytes] = mapped_column(unique=True)
    purpose: Mapped[str]
    """talk, answer or view."""
    question_id: Mapped[str | None]
    execution_id: Mapped[str | None]
    note: Mapped[str] = mapped_column(default="")
    made_by: Mapped[str]
    """agent or operator."""
    made_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    uses: Mapped[int]
    """How many sessions it may make."""
    uses_left: Mapped[int]
    revoked_at: Mapped[datetime | None]


class Session(Table):
    """A browser that redeemed a link, until the link's expiry."""

    __tablename__ = "sessions"

    id: Mapped[str] = mapped_column(primary_key=True)
    key_hash: Mapped[bytes] = mapped_column(unique=True)
    link_id: Mapped[str] = mapped_column(ForeignKey("links.id", ondelete="CASCADE"), index=True)
    made_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class Call(Table):
    """A conversation, from the wish for it to what is remembered of it."""

    __tablename__ = "calls"

    id: Mapped[str] = mapped_column(primary_key=True)
    session_id: Mapped[str | None] = mapped_column(ForeignKey("sessions.id", ondelete="SET NULL"), index=True)
    link_id: Mapped[str | None] = mapped_column(ForeignKey("links.id", ondelete="SET NULL"), index=True)
    question_id: Mapped[str | None]
    through: Mapped[str]
    """How the caller came: page, ticket (a native client), bearer, or open (without having asked)."""
    state: Mapped[str] = mapped_column(index=True)
    """waiting, called, connecting, talking or ended (switchboard.State)."""
    priority: Mapped[int] = mapped_column(default=0)
    """Larger goes first."""
    asked_at: Mapped[datetime] = mapped_column(index=True)
    called_at: Mapped[datetime | None]
    began_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None] = mapped_column(index=True)
    reason: Mapped[str | None]
    """Why it ended."""
    engine: Mapped[int | None]
    voice: Mapped[str | None]
    latency: Mapped[dict[str, Any] | None]
    """Of duplex: turnaround_ms as p50, p95 and p99 of what its status said while the call was on, and frames
    dropped.
    """


class Said(Table):
    """One utterance of a call's transcript, in the order in which they ended."""

    __tablename__ = "transcripts"
    __table_args__ = (Index("ix_transcripts_call", "call_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    call_id: Mapped[str] = mapped_column(ForeignKey("calls.id", ondelete="CASCADE"))
    number: Mapped[int]
    who: Mapped[str]
    """caller or moshi."""
    text: Mapped[str]
    start_ms: Mapped[int | None]
    end_ms: Mapped[int | None]
    said_at: Mapped[datetime]


class Question(Table):
    """What an agent asked a person, until it is answered, declined or expired, and afterwards."""

    __tablename__ = "questions"

    id: Mapped[str] = mapped_column(primary_key=True)
    asked_by: Mapped[str]
    """agent, operator or execution."""
    ask_key: Mapped[str | None] = mapped_column(unique=True)
    """By which the same asking, tried again, finds this question instead of making another one."""
    execution_id: Mapped[str | None] = mapped_column(index=True)
    question: Mapped[str]
    context: Mapped[str]
    choices: Mapped[list[str]]
    state: Mapped[str] = mapped_column(index=True)
    """open, answered, declined or expired."""
    asked_at: Mapped[datetime]
    deadline: Mapped[datetime] = mapped_column(index=True)
    settled_at: Mapped[datetime | None]
    answer: Mapped[str | None]
    answer_key: Mapped[str | None]
    """By which the same answer, sent again, is told from a second one."""
    handed_over_at: Mapped[datetime | None]
    """When its end was first told to whoever asked."""


class Notification(Table):
    """A message that is to reach the person. Its event is unique: nobody is told the same thing twice."""

    __tablename__ = "notifications"

    id: Mapped[str] = mapped_column(primary_key=True)
    event: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]
    """The template in templates/messages/."""
    facts: Mapped[dict[str, Any]]
    """What the template is given, but for the link, which is made when the message goes out."""
    question_id: Mapped[str | None] = mapped_column(index=True)
    state: Mapped[str] = mapped_column(index=True)
    """pending, delivered, failed or superseded."""
    made_at: Mapped[datetime]
    due_at: Mapped[datetime] = mapped_column(index=True)
    taken_until: Mapped[datetime | None]
    """While it is being sent: nobody else sends it before this moment."""
    attempts: Mapped[int] = mapped_column(default=0)
    refusals: Mapped[dict[str, Any]]
    """Why which sender did not take it; one that is final is not asked again."""
    settled_at: Mapped[datetime | None]
    delivered_by: Mapped[str | None]


class Execution(Table):
    """An instruction that an agent carries out, and what became of it."""

    __tablename__ = "executions"

    id: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str | None] = mapped_column(unique=True)
    """By which the same instruction, handed over again, finds this one."""
    asked_by: Mapped[str]
    """agent, operator or caller."""
    agent: Mapped[str]
    instruction: Mapped[str]
    state: Mapped[str] = mapped_column(index=True)
    """pending, running, waiting_for_input, completed, failed, cancelled or expired."""
    ask_token: Mapped[str]
    """What opens the block by which its agent asks."""
    made_at: Mapped[datetime] = mapped_column(index=True)
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    question_id: Mapped[str | None] = mapped_column(index=True)
    """The question that it waits for, or waited for last."""
    woken_for: Mapped[str | None]
    """The last question whose end was passed on to it."""
    result: Mapped[str | None]
    error: Mapped[str | None]


class Turn(Table):
    """One thing that an execution's agent was told, and its output."""

    __tablename__ = "turns"

    execution_id: Mapped[str] = mapped_column(
        ForeignKey("executions.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str]
    attempts: Mapped[int] = mapped_column(default=0)
    began_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    output: Mapped[str | None]


class Happened(Table):
    """A change of an execution's state, in the order in which they came."""

    __tablename__ = "execution_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    execution_id: Mapped[str] = mapped_column(ForeignKey("executions.id", ondelete="CASCADE"), index=True)
    at: Mapped[datetime]
    state: Mapped[str]
    detail: Mapped[str] = mapped_column(default="")
