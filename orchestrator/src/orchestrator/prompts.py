"""For clients of the older system, which gave its voice a text prompt: what there is instead.

Moshi has fixed personalities and takes no text prompt. What a caller must know is shown beside the call, not
told to the voice.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from orchestrator import tables
from orchestrator.problems import Problem
from orchestrator.questions import Questions, QuestionState, UnknownError
from orchestrator.scopes import Identity, Scope, require

WHY = (
    "Moshi has fixed personalities and takes no text prompt: it cannot be told anything before a call. "
    "Show the context to the caller instead."
)

router = APIRouter(tags=["prompt"])


class Prompt(BaseModel):
    """What a client that wants to set a text prompt gets."""

    voice: str
    text_prompt: None = None
    supported: Literal[False] = False
    reason: str = WHY
    question_id: str | None = None
    question: str | None = None
    context: str | None = None


Somebody = Annotated[Identity, Depends(require(Scope.CALLER, Scope.AGENT, Scope.OPERATOR))]


async def open_question(questions: Questions, who: Identity) -> tables.Question | None:
    """Return the question that this key is about: a caller's own, for others the newest that is open."""
    if who.scope is not Scope.CALLER:
        return next(iter(await questions.listed(QuestionState.OPEN, 1)), None)
    if who.question_id is None:
        return None
    try:
        return await questions.get(who.question_id)
    except UnknownError:
        return None


@router.get("/moshi/prompt")
@router.get("/api/moshi/prompt")
async def prompt(request: Request, who: Somebody) -> Prompt:
    """Say which voice speaks, and that it takes no prompt."""
    return Prompt(voice=request.state.line.settings.moshi_voice)


@router.get("/moshi/prompt/question")
@router.get("/api/moshi/prompt/question")
async def prompt_of_the_question(request: Request, who: Somebody) -> Prompt:
    """The same, with the question to talk over and what to know for it."""
    row = await open_question(request.state.questions, who)
    if row is None:
        raise Problem(404, "no_question", "There is no question to talk over.")
    return Prompt(
        voice=request.state.line.settings.moshi_voice,
        question_id=row.id,
        question=row.question,
        context=row.context,
    )
