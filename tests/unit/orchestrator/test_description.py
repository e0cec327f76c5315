"""What the OpenAPI description says holds, for anything that Schemathesis makes of it, under every key.

The real program on loopback, with an agent and things to look at. Schemathesis (https://schemathesis.io)
makes requests that fit the description and requests that do not, from a fixed seed.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from orchestrator.app import create_app
from orchestrator.asks import CHOICE_CHARS, plain
from orchestrator.questions import LONGEST_WAIT_S
from orchestrator.settings import Settings
from orchestrator.storage import migrate
from schemathesis.specs.openapi.checks import allow_header_conformance, positive_data_acceptance

from .conftest import AGENT, OPERATOR, bearer
from .people import LINK
from .test_main import environment, free_port
from .workshop import workshop

DESCRIPTION = schemathesis.openapi.from_dict(
    create_app(Settings(moshi_url="https://line.example.org", moshi_device="cpu")).openapi()
)
# The tests bring the keys themselves, and a body that is both too long and wrong is refused for its length.
DESCRIPTION.config.generation.update(with_security_parameters=False)
DESCRIPTION.config.checks.negative_data_rejection.expected_statuses.append("413")
KEYS = ["caller", "agent", "operator"]
RULES_BEYOND = {"/api/links", "/api/questions", "/api/questions/{question_id}/answer", "/api/executions"}
"""Where a body can fit the description and be refused: members that do not go together, texts of which
nothing is left when they are cleaned, an agent that there is not."""
EXAMPLES = 4
"""For each address, method and key, beside what Schemathesis always tries."""


@dataclass
class Line:
    """The program, the keys that open it, and what there is on it."""

    base: str
    keys: dict[str, str]
    known: dict[str, str]
    """Ids of things that exist, by the name of the parameter."""
    session: requests.Session


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder, port = tmp_path_factory.mktemp("described"), free_port()
    database = f"sqlite:///{folder}/hotline.db"
    migrate(database)
    with workshop(folder / "shop", "/bin/cat") as shop, (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator"],
            env=environment(
                MOSHI_URL="https://line.example.org",
                LINE_ACCESS="links",
                LINE_ORCHESTRATOR_PORT=str(port),
                DATABASE_URL=database,
                ORCHESTRATOR_OPERATOR_TOKEN=OPERATOR,
                ORCHESTRATOR_AGENT_TOKEN=AGENT,
                AGENT_SOCKET=str(shop.socket),
            ),
            stdout=log,
            stderr=log,
        )
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    assert process.poll() is None and time.monotonic() < until, Path(log.name).read_text()
                    time.sleep(0.05)
            yield furnished(f"http://127.0.0.1:{port}")
        finally:
            process.kill()
            process.wait(10)


def furnished(base: str) -> Line:
    """Put something of each kind on a line."""
    with httpx.Client(base_url=base, headers=bearer(OPERATOR)) as client:

        def made(path: str, **body: object) -> dict[str, str]:
            answer = client.post(path, json=body)
            assert answer.is_success, answer.text
            return dict(answer.json())

        link = made("/api/links", uses=1)
        token = LINK.search(link["url"])
        assert token
        key = made("/api/links/redeem", token=token.group(1))["key"]
        question = made("/api/questions", question="Delete May?", choices=["yes", "no"])
        execution = made("/api/executions", instruction="Say it.", idempotency_key="first")
        call = client.post("/api/calls", headers=bearer(key)).json()
    known = {"question_id": question["id"], "execution_id": execution["id"], "call_id": call["id"]}
    keys = {"caller": key, "agent": AGENT, "operator": OPERATOR}
    return Line(base, keys, known, requests.Session())


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in a body."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts_in(one)
    elif isinstance(value, dict):
        yield from texts_in(list(value.values()))


@DESCRIPTION.hook
def filter_body(_: Any, body: Any) -> bool:
    """Leave out long texts that become shorter when they are cleaned: their limit counts what is left."""
    return not any(len(text) > CHOICE_CHARS and plain(text) != text for text in texts_in(body))


turns = count()


@pytest.mark.parametrize("key", KEYS)
@DESCRIPTION.parametrize()
@settings(
    max_examples=EXAMPLES,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_what_the_description_says_holds(line: Line, case: schemathesis.Case, key: str) -> None:
    number = next(turns)
    # Every second request is about something that exists; streams, which do not end, are not.
    if number % 2 and not case.path.endswith("/events"):
        case.path_parameters |= {n: known for n, known in line.known.items() if n in case.path_parameters}
    with suppress(KeyError, TypeError, ValueError):
        if 0 < float(case.query["wait_s"]) <= LONGEST_WAIT_S:
            case.query["wait_s"] = 0.01
    excused = [positive_data_acceptance] if case.path in RULES_BEYOND else []
    # POST /api/links/redeem is also what DELETE takes for a link's id: its Allow names both, rightly.
    excused += [allow_header_conformance] if case.path == "/api/links/redeem" else []
    case.call_and_validate(
        base_url=line.base,
        session=line.session,
        # Each from an address of its own: what is counted per client is tested elsewhere.
        headers=bearer(line.keys[key]) | {"X-Forwarded-For": f"10.1.{number // 250 % 250}.{number % 250}"},
        timeout=10,
        excluded_checks=excused,
    )
