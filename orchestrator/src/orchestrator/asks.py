"""What an agent may ask a person, and the strict block by which an agent without tools asks it.

An agent that cannot call a tool ends its output with a block::

    [[hotline:ask 3f9c2a7be1d04c58]]
    {"question": "Delete the old backups?", "context": "12 GB, newest from May", "choices": ["yes", "no"]}
    [[hotline:end]]

The key in the opening line is made anew for every run and told to the agent in the run's instruction, so a
block that stands in a file, a log or a tool's output opens nothing. The rules, all of them:

- The opening line carries this run's key, starts in the first column and is alone on its line.
- Between it and the closing line stands one JSON object of the form of `Ask`, and nothing else.
- Nothing but white space follows the closing line.
- There is one such block.

An output with this run's opening line that breaks one of them is malformed: an error that is shown, never a
completion. An output without one is a completion, whatever else it quotes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

QUESTION_CHARS = 2000
CONTEXT_CHARS = 16000
CHOICE_CHARS = 200
CHOICES = 12
ANSWER_CHARS = 16000
DEADLINE_MINUTES = 60 * 24 * 31

# Characters that reorder what stands around them, so that a text reads otherwise than it is
# (https://www.unicode.org/reports/tr9/, explicit directional formatting).
REORDERING = re.compile("[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]")
# What a terminal takes as a command (ECMA-48): colours, cursor, title.
TERMINAL = re.compile("\x1b(?:\\[[0-?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)|[@-Z\\\\-_])")


def plain(text: str) -> str:
    """Return a text as a person may read it: no control characters but line ends and tabs, nothing reordered.

    It stays text: what looks like HTML or an order to a model is kept letter by letter, and shown as letters.
    """
    unified = TERMINAL.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    kept = (c for c in unified if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))
    return REORDERING.sub("", "".join(kept)).strip()


def plain_or_none(value: object) -> object:
    """Clean a text before its length is looked at; what is no text is left to the type's own check."""
    return plain(value) if isinstance(value, str) else value


def one_plain_line(value: object) -> object:
    """Clean a text that stands on one line: a choice, a title."""
    return " ".join(plain(value).split()) if isinstance(value, str) else value


Question = Annotated[str, Field(min_length=1, max_length=QUESTION_CHARS), BeforeValidator(plain_or_none)]
Context = Annotated[str, Field(max_length=CONTEXT_CHARS), BeforeValidator(plain_or_none)]
Choice = Annotated[str, Field(min_length=1, max_length=CHOICE_CHARS), BeforeValidator(one_plain_line)]
Answer = Annotated[str, Field(min_length=1, max_length=ANSWER_CHARS), BeforeValidator(plain_or_none)]
Minutes = Annotated[int, Field(ge=1, le=DEADLINE_MINUTES)]


class Ask(BaseModel):
    """One question to a person. Nothing else is taken: a misspelt member would be lost silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    question: Question = Field(description="what the person is asked, in a sentence or two")
    context: Context = Field(
        default="", description="what the person must know to answer; shown beside the question, never spoken"
    )
    choices: tuple[Choice, ...] = Field(
        default=(),
        max_length=CHOICES,
        description="answers to choose from; another one may be given",
    )
    deadline_minutes: Minutes | None = Field(
        default=None, description="after how many minutes nobody needs the answer any more"
    )


def problems_of(error: ValidationError) -> str:
    """Say what is wrong with an ask, member by member, without repeating what was given."""
    return "; ".join(
        f"{'.'.join(str(step) for step in found['loc']) or 'the block'}: {found['msg']}"
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    )


# -------------------------------------------------------------------------------- the block

CLOSING = "[[hotline:end]]"


def opening(key: str) -> str:
    """Return the line that opens the block of one run."""
    return f"[[hotline:ask {key}]]"


@dataclass(frozen=True)
class Completed:
    """The output is the result."""

    result: str


@dataclass(frozen=True)
class Asks:
    """The agent waits for an answer; ``said`` is what it said before the block."""

    ask: Ask
    said: str


@dataclass(frozen=True)
class Malformed:
    """The output has this run's opening line and breaks a rule; ``why`` is a sentence for people."""

    why: str


def read_output(output: str, key: str) -> Completed | Asks | Malformed:
    """Decide what an agent's whole output of one run means."""
    lines = output.replace("\r\n", "\n").split("\n")
    opened = [number for number, line in enumerate(lines) if line.rstrip() == opening(key)]
    if not opened:
        return Completed("\n".join(lines).strip())
    if len(opened) > 1:
        return Malformed("The agent opened more than one block; one question at a time can be asked.")
    closed = [n for n, line in enumerate(lines) if n > opened[0] and line.rstrip() == CLOSING]
    if not closed:
        return Malformed(f"The agent opened a block and did not close it with {CLOSING}.")
    if any(line.strip() for line in lines[closed[0] + 1 :]):
        return Malformed("Text follows the block; it must be the end of the output.")
    try:
        members = json.loads("\n".join(lines[opened[0] + 1 : closed[0]]))
    except (ValueError, RecursionError):
        return Malformed("Between the block's lines stands something that is not one JSON object.")
    if not isinstance(members, dict):
        return Malformed("Between the block's lines stands JSON that is not an object.")
    try:
        return Asks(Ask.model_validate(members), "\n".join(lines[: opened[0]]).strip())
    except ValidationError as error:
        return Malformed(f"The block is not a question: {problems_of(error)}.")


def how_to_ask(key: str) -> str:
    """Return what an agent is told about asking.

    The opening line is described, not shown: an agent that repeats this text asks nothing by it.
    """
    return (
        "If you cannot go on without a person's decision, stop and end your output with a block of three "
        "parts, then write nothing more. Its first line, alone and without indentation, is two opening "
        "square brackets, then hotline:ask, a space, the key of this run, two closing square brackets. "
        f"The key of this run is {key} . Then one JSON object with the members "
        '"question" (needed), "context" (what the person must know), "choices" (a list of answers) and '
        f'"deadline_minutes". Its last line is {CLOSING} . You will be given the answer in this session. '
        "Do not ask for what you can decide yourself."
    )
