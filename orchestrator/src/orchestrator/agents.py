"""Agents that carry out an instruction: a program behind a socket, and OpenClaw behind its gateway.

An agent runs one *turn*: it is handed a text in a session of its own (the task's) and gives back its output.
The first turn's text is the instruction with what an agent is told about asking; every later one is only the
answer. A turn that was begun and not finished, because this process was killed, is asked for again: the
program's runner then hands back the run that there was; OpenClaw, which ends a run whose caller goes away, is
told that the message comes a second time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from orchestrator.senders import cleaned
from orchestrator.settings import Settings

OUTPUT_CHARS = 256 * 1024
"""More than what the program's runner keeps, so that nothing is cut twice."""
HEAD_CHARS = 64 * 1024
LINE_BYTES = 1024 * 1024
CONNECT_S = 10.0

AGAIN = (
    "(This message comes a second time, because the line was interrupted. If you have done it already, do "
    "not do it again: report what you did.)\n\n"
)


class AgentError(Exception):
    """The agent could not do its turn; the text says why, for the person."""


@dataclass(frozen=True)
class Turn:
    """One thing that an agent is told. ``attempt`` counts from 1."""

    execution_id: str
    number: int
    attempt: int
    text: str
    limit_s: int


class Agent(Protocol):
    """Who carries out instructions."""

    name: str

    async def run(self, turn: Turn, stop: asyncio.Event) -> str:
        """Do one turn; return the output. Raises AgentError.

        Cancelled with ``stop`` set, the agent is to stop; without, nobody listens for the moment.
        """


def bounded(output: str) -> str:
    """Leave out the middle of an output that is too long. Its end stays: there a question would be."""
    surplus = len(output) - OUTPUT_CHARS
    if surplus <= 0:
        return output
    tail = output[HEAD_CHARS + surplus :]
    return f"{output[:HEAD_CHARS]}\n[… {surplus} characters are left out here …]\n{tail}"


# ---------------------------------------------------------------------------------------------------- command


class Command:
    """A program that systemd starts per connection, by roles/orchestrator/files/run_agent.py."""

    name = "command"

    def __init__(self, path: Path) -> None:
        self._path = path

    async def run(self, turn: Turn, stop: asyncio.Event) -> str:
        """Have the program run, or get the output of the run that there was."""
        async with self._connected() as (reader, writer):
            request = {
                "execution": turn.execution_id,
                "session": turn.execution_id,
                "turn": turn.number,
                "attempt": turn.attempt,
                "text": turn.text,
                "limit_s": turn.limit_s,
            }
            writer.write(json.dumps(request).encode() + b"\n")
            await writer.drain()
            try:
                return await self._output(reader)
            except asyncio.CancelledError:
                if stop.is_set():
                    with contextlib.suppress(OSError):
                        writer.write(b'{"cancel": true}\n')
                raise

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        try:
            reader, writer = await asyncio.wait_for(
                asyncio.open_unix_connection(str(self._path), limit=LINE_BYTES), CONNECT_S
            )
        except (OSError, asyncio.TimeoutError) as error:
            raise AgentError(
                f"The agent's program cannot be reached at {self._path} ({type(error).__name__}). "
                "Mend: systemctl status hotline-agent.socket"
            ) from None
        try:
            yield reader, writer
        finally:
            writer.close()

    async def _output(self, reader: asyncio.StreamReader) -> str:
        """Read lines until the last one. Raises AgentError."""
        output: list[str] = []
        while True:
            try:
                line = await reader.readline()
                said = json.loads(line) if line else None
            except (ValueError, OSError):
                said = None
            if not isinstance(said, dict):
                raise AgentError(
                    "The agent's program was killed before it was done. Its log (hotline logs "
                    "hotline-agent) may say why"
                )
            if "out" in said:
                output.append(str(said["out"]))
            elif "error" in said:
                raise AgentError(f"The agent's program was not started: {str(said['error'])[:300]}")
            elif isinstance(said.get("end"), dict):
                return self._ended(bounded("".join(output)), said["end"])

    @staticmethod
    def _ended(output: str, end: dict[str, Any]) -> str:
        status, note = end.get("status"), str(end.get("note") or "")
        if status == 0 and not note:
            return output
        last = output.strip()[-1500:]
        why = note or f"it ended with status {status}"
        raise AgentError(f"The agent's program failed: {why}.{f' Its last words: {last}' if last else ''}")


# --------------------------------------------------------------------------------------------------- OpenClaw


class OpenClaw:
    """OpenClaw through its gateway's HTTP interface: POST /v1/chat/completions in a named session."""

    name = "openclaw"

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token

    def _headers(self, session: str) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self._token}",
            "x-openclaw-session-key": f"agent:main:hotline-{session}",
        }

    async def run(self, turn: Turn, stop: asyncio.Event) -> str:
        """Say it in the task's session, and wait for what the agent has to say in the end."""
        text = turn.text if turn.attempt == 1 else AGAIN + turn.text
        body = {"model": "openclaw/default", "messages": [{"role": "user", "content": text}]}
        try:
            async with httpx.AsyncClient(
                timeout=httpx.Timeout(turn.limit_s, connect=CONNECT_S), trust_env=False
            ) as client:
                answer = await client.post(
                    f"{self._url}/v1/chat/completions", json=body, headers=self._headers(turn.execution_id)
                )
        except httpx.TimeoutException:
            raise AgentError(f"OpenClaw did not come to an end within {turn.limit_s} s") from None
        except httpx.HTTPError as error:
            raise AgentError(
                f"OpenClaw's gateway broke off ({type(error).__name__}). Mend: hotline logs moltbot"
            ) from None
        return self._said(answer)

    def _said(self, answer: httpx.Response) -> str:
        """Read the gateway's answer. Raises AgentError."""
        try:
            body = answer.json()
        except ValueError:
            body = {}
        if answer.status_code != 200:
            error = body.get("error") if isinstance(body, dict) else None
            said = error.get("message") if isinstance(error, dict) else "it does not say why"
            raise AgentError(cleaned(f"OpenClaw refused (HTTP {answer.status_code}): {said}", [self._token]))
        try:
            content = body["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str):
            raise AgentError("OpenClaw answered with something that is no message")
        return bounded(content)


def agents_of(settings: Settings) -> dict[str, Agent]:
    """Return the agents of this line by name; the first is the one that is asked when nobody says which."""
    agents: list[Agent] = []
    if settings.moltbot_agent and settings.moltbot_token.get_secret_value():
        agents.append(OpenClaw(settings.moltbot_url, settings.moltbot_token.get_secret_value()))
    if settings.agent_socket:
        agents.append(Command(Path(settings.agent_socket)))
    return {agent.name: agent for agent in agents}
