"""Links: who has one may talk, answer one question, or watch one execution.

A link is ``MOSHI_URL/#t=TOKEN``. The token, 256 random bits, stands in the fragment, which browsers keep to
themselves: no server, log or preview sees it. Opening a link spends nothing; the page redeems it by POST
for a session key. One statement checks and counts a use, so that two pages of the same instant cannot share
the last one, and every link that opens nothing (wrong, spent, expired, revoked, cut off) gets the same
answer after the same work.
"""

from __future__ import annotations

import logging
import secrets
from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy import func, select, update

from orchestrator import tables
from orchestrator.problems import Problem
from orchestrator.scopes import Identity, Scope, hash_of, new_key, require
from orchestrator.storage import Storage, now
from orchestrator.throttle import LINKS, Throttle, client_of

USES = 5
"""How often a link opens unless told otherwise: chat apps open links in a browser of their own first."""
DAYS = 7
LISTED = 500

log = logging.getLogger("orchestrator.links")
router = APIRouter(tags=["links"])

OneLine = Annotated[
    str, StringConstraints(strip_whitespace=True, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")
]
Id = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
Purpose = Literal["talk", "answer", "view"]
State = Literal["open", "spent", "expired", "revoked"]


class Wish(BaseModel):
    """What a new link is to be."""

    model_config = ConfigDict(extra="forbid")

    purpose: Purpose = "talk"
    question_id: Id | None = Field(None, description="of purpose answer: the question")
    execution_id: Id | None = Field(None, description="of purpose view: the execution")
    uses: int = Field(USES, ge=1, le=1000, description="how many browsers may open it")
    expires_in_s: int = Field(
        DAYS * 86400, ge=60, le=366 * 86400, description="seconds until it and its sessions end"
    )
    note: OneLine = Field("", description="for whom or what it is; shown in lists")

    @model_validator(mode="after")
    def belongs(self) -> Wish:
        """See that a purpose has what it is about, and nothing else."""
        if (self.purpose == "answer") != (self.question_id is not None):
            raise ValueError("question_id goes with purpose answer, and only with it")
        if (self.execution_id is not None and self.purpose == "talk") or (
            self.purpose == "view" and not self.execution_id
        ):
            raise ValueError("execution_id goes with purpose view")
        return self


class Made(BaseModel):
    """A new link. Its URL is told here and never again."""

    id: str
    url: str
    expires_at: datetime
    uses: int


class Listed(BaseModel):
    """A link as lists show it."""

    id: str
    purpose: Purpose
    question_id: str | None
    execution_id: str | None
    note: str
    made_by: str
    made_at: datetime
    expires_at: datetime
    uses: int
    uses_left: int
    state: State


class Token(BaseModel):
    """What stands in a link's fragment."""

    token: Annotated[str, StringConstraints(max_length=500)]


class Opened(BaseModel):
    """A session: its key opens what the link was for until it expires."""

    key: str
    expires_at: datetime
    purpose: Purpose
    question_id: str | None
    execution_id: str | None


async def mint(storage: Storage, line_url: str, wish: Wish, made_by: str) -> Made:
    """Make a link."""
    token, moment = new_key(), now()
    link = tables.Link(
        id=f"link_{secrets.token_hex(8)}",
        token_hash=hash_of(token),
        purpose=wish.purpose,
        question_id=wish.question_id,
        execution_id=wish.execution_id,
        note=wish.note,
        made_by=made_by,
        made_at=moment,
        expires_at=moment + timedelta(seconds=wish.expires_in_s),
        uses=wish.uses,
        uses_left=wish.uses,
    )
    async with storage.writing() as session:
        session.add(link)
    log.info("a link was made", extra={"link": link.id, "purpose": link.purpose, "by": made_by})
    return Made(id=link.id, url=f"{line_url}/#t={token}", expires_at=link.expires_at, uses=link.uses)


async def redeem(storage: Storage, token: str) -> Opened | None:
    """Spend one use of a link for a session; None when it opens nothing."""
    moment, key = now(), new_key()
    async with storage.writing() as session:
        link = (
            await session.execute(
                update(tables.Link)
                .where(
                    tables.Link.token_hash == hash_of(token),
                    tables.Link.revoked_at.is_(None),
                    tables.Link.expires_at > moment,
                    tables.Link.uses_left > 0,
                )
                .values(uses_left=tables.Link.uses_left - 1)
                .returning(tables.Link)
            )
        ).scalar_one_or_none()
        if link is None:
            return None
        made = tables.Session(
            id=f"session_{secrets.token_hex(8)}",
            key_hash=hash_of(key),
            link_id=link.id,
            made_at=moment,
            expires_at=link.expires_at,
        )
        session.add(made)
    log.info("a link was opened", extra={"link": link.id, "session": made.id})
    return Opened.model_validate(
        {
            "key": key,
            "expires_at": link.expires_at,
            "purpose": link.purpose,
            "question_id": link.question_id,
            "execution_id": link.execution_id,
        }
    )


async def revoke(storage: Storage, link_id: str) -> bool:
    """End a link and its sessions; False when there is no such link. Revoking it again is no error."""
    moment = now()
    async with storage.writing() as session:
        found = await session.execute(
            update(tables.Link)
            .where(tables.Link.id == link_id)
            .values(revoked_at=func.coalesce(tables.Link.revoked_at, moment))
            .returning(tables.Link.id)
        )
        if found.scalar_one_or_none() is None:
            return False
        await session.execute(
            update(tables.Session)
            .where(tables.Session.link_id == link_id, tables.Session.revoked_at.is_(None))
            .values(revoked_at=moment)
        )
    log.info("a link was revoked", extra={"link": link_id})
    return True


def state_of(link: tables.Link, moment: datetime) -> State:
    """Say what a link is good for."""
    if link.revoked_at is not None:
        return "revoked"
    if link.expires_at <= moment:
        return "expired"
    return "open" if link.uses_left > 0 else "spent"


NOT_FOUND = Problem(404, "link_unknown", "There is no such link. `hotline links` lists those there are.")
INVALID = (
    "This link does not open anything (any more). Ask whoever sent it for a new one; "
    "on the node, `hotline link` makes it."
)


@router.post("/api/links", status_code=201, summary="Make a link")
async def make(
    request: Request, wish: Wish, who: Annotated[Identity, Depends(require(Scope.OPERATOR, Scope.AGENT))]
) -> Made:
    """Make a link and tell its URL, which is told only once. Agents make links to their questions only."""
    if who.scope is Scope.AGENT and wish.purpose == "talk":
        raise Problem(
            403,
            "wrong_scope",
            "An agent's link is for a question or an execution; the operator makes others.",
        )
    request.state.throttle.count(LINKS, "links", who.name)
    return await mint(request.state.storage, request.state.line.settings.moshi_url, wish, who.scope.value)


@router.get("/api/links", summary="List the links")
async def list_links(
    request: Request, who: Annotated[Identity, Depends(require(Scope.OPERATOR))]
) -> list[Listed]:
    """List the newest links, without their tokens, which nobody has."""
    storage: Storage = request.state.storage
    moment = now()
    async with storage.reading() as session:
        found = await session.execute(select(tables.Link).order_by(tables.Link.made_at.desc()).limit(LISTED))
        return [
            Listed.model_validate(
                {name: getattr(link, name) for name in Listed.model_fields if name != "state"}
                | {"state": state_of(link, moment)}
            )
            for link in found.scalars()
        ]


@router.delete("/api/links/{link_id}", status_code=204, summary="Revoke a link")
async def revoke_link(
    request: Request, link_id: Id, who: Annotated[Identity, Depends(require(Scope.OPERATOR))]
) -> None:
    """End a link, the sessions made from it, and their calls."""
    if not await revoke(request.state.storage, link_id):
        raise NOT_FOUND
    await request.state.switchboard.revoke(link_id)


@router.post("/api/links/redeem", summary="Open a link")
async def redeem_link(request: Request, given: Token) -> Opened:
    """Spend one use of a link for a session key. The key goes into ``Authorization: Bearer …``."""
    throttle: Throttle = request.state.throttle
    client = client_of(request.client.host if request.client else None)
    throttle.check_failures(client)
    opened = await redeem(request.state.storage, given.token)
    if opened is None:
        throttle.failed(client)
        raise Problem(404, "link_invalid", INVALID)
    return opened
