"""Who is asking, and what may he do? Bearer keys and tokens; there are no cookies (DESIGN.md says why).

Scopes are separate: a *caller* has a session key, redeemed from a link; *agents* and the *operator* have one
token each, from the unit's secrets. None of them includes another: an address lists whom it is for,

    @router.get("/api/questions/{id}")
    async def question(who: Annotated[Identity, Depends(require(Scope.CALLER, Scope.AGENT))]) -> …

Where everybody may call (``line_access: open``) whoever brings no key is a caller without a session.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from fastapi import Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select

from orchestrator import tables
from orchestrator.problems import Problem
from orchestrator.settings import Settings
from orchestrator.storage import Storage, now
from orchestrator.throttle import client_of

KEY_CHARACTERS = 43
"""256 bits in base64url."""


class Scope(str, Enum):
    """What a key or token opens."""

    CALLER = "caller"
    AGENT = "agent"
    OPERATOR = "operator"


def new_key() -> str:
    """Return 256 random bits as text, for a link or a session."""
    return secrets.token_urlsafe(32)


def hash_of(key: str) -> bytes:
    """Return what is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


@dataclass(frozen=True)
class Identity:
    """Who is asking. A caller of an open line has no session."""

    scope: Scope
    session_id: str | None = None
    link_id: str | None = None
    purpose: str = "talk"
    question_id: str | None = None
    execution_id: str | None = None

    @property
    def name(self) -> str:
        """By what limits and records tell askers apart."""
        return self.session_id or self.scope.value


@dataclass(frozen=True)
class Keys:
    """The tokens that settings hold, hashed, so that all are as long as each other when they are compared."""

    operator: bytes | None
    agent: bytes | None

    @classmethod
    def of(cls, settings: Settings) -> Keys:
        """Read them; one that is unset opens nothing."""
        operator, agent = (
            hash_of(secret.get_secret_value()) if secret.get_secret_value() else None
            for secret in (settings.orchestrator_operator_token, settings.orchestrator_agent_token)
        )
        return cls(operator, agent)

    def scope_of(self, hashed: bytes) -> Scope | None:
        """Return what a token opens. Both are compared in any case, each in constant time."""
        nothing = b"\0" * 32
        operator = hmac.compare_digest(hashed, self.operator or nothing) and self.operator is not None
        agent = hmac.compare_digest(hashed, self.agent or nothing) and self.agent is not None
        return Scope.OPERATOR if operator else Scope.AGENT if agent else None


def bearer_of(header: str | None) -> str | None:
    """Return the key in an Authorization header; None when there is none."""
    kind, _, key = (header or "").partition(" ")
    return key.strip() or None if kind.lower() == "bearer" else None


async def session_of(storage: Storage, hashed: bytes) -> Identity | None:
    """Return whose session key this is; None when it is nobody's any more."""
    async with storage.reading() as session:
        found = (
            await session.execute(
                select(tables.Session, tables.Link)
                .join(tables.Link, tables.Link.id == tables.Session.link_id)
                .where(
                    tables.Session.key_hash == hashed,
                    tables.Session.revoked_at.is_(None),
                    tables.Session.expires_at > now(),
                )
            )
        ).one_or_none()
    if found is None:
        return None
    made, link = found
    return Identity(Scope.CALLER, made.id, link.id, link.purpose, link.question_id, link.execution_id)


async def identity_of(header: str | None, keys: Keys, storage: Storage) -> Identity | None:
    """Return who stands behind an Authorization header; None when nobody does."""
    key = bearer_of(header)
    if key is None:
        return None
    hashed = hash_of(key)
    scope = keys.scope_of(hashed)
    if scope is not None:
        return Identity(scope)
    return await session_of(storage, hashed) if len(key) == KEY_CHARACTERS else None


# For the OpenAPI description: where a key goes. What it opens is decided here.
bearer = HTTPBearer(
    auto_error=False, description="A session key (caller), or the agents' or operator's token."
)

NO_KEY = (
    "This needs a key. Callers get one by opening a link; agents and operators send their token as "
    "'Authorization: Bearer …' (on the node, `hotline` has it)."
)
WRONG_KEY = (
    "This key opens nothing: it is wrong, or its link has expired or was revoked. "
    "Ask for a new link, or look up the token."
)
WRONG_SCOPE = "This key is not for that: it is a key of scope {has}, and the address is for {wanted}."
FOREIGN = "A page from elsewhere may not ask this line for anything."


def require(*scopes: Scope) -> Callable[..., Awaitable[Identity]]:
    """Make a dependency that lets in these scopes and nobody else."""

    async def allowed(
        request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
    ) -> Identity:
        if not request.state.doors.admit(request.headers.get("origin")):
            raise Problem(403, "not_allowed", FOREIGN)
        header = request.headers.get("authorization")
        throttle, client = request.state.throttle, client_of(request.client.host if request.client else None)
        if header is not None:
            throttle.check_failures(client)
        identity = await identity_of(header, request.state.keys, request.state.storage)
        if identity is None and header is not None:
            throttle.failed(client)
        if identity is None and header is None and request.state.line.settings.line_access == "open":
            identity = Identity(Scope.CALLER)
            if Scope.CALLER not in scopes:
                identity = None
        if identity is None:
            raise Problem(
                401,
                "no_key" if header is None else "wrong_key",
                NO_KEY if header is None else WRONG_KEY,
                headers={"WWW-Authenticate": "Bearer"},
            )
        if identity.scope not in scopes:
            wanted = " or ".join(scope.value for scope in scopes)
            raise Problem(403, "wrong_scope", WRONG_SCOPE.format(has=identity.scope.value, wanted=wanted))
        return identity

    return allowed
