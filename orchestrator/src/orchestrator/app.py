"""The application: made from settings, with everything that lives as long as it made in one place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypedDict

from fastapi import FastAPI
from starlette.routing import Route

from orchestrator import (
    __version__,
    calls,
    desk,
    entrance,
    executions,
    health,
    instructions,
    links,
    outbox,
    problems,
    prompts,
    questions,
    refusal,
)
from orchestrator.authorize import Doors
from orchestrator.edge import Edge
from orchestrator.executions import Executions
from orchestrator.health import Health
from orchestrator.line import Line, Surroundings
from orchestrator.outbox import Outbox
from orchestrator.questions import Questions
from orchestrator.scopes import Keys
from orchestrator.settings import Settings
from orchestrator.storage import Storage
from orchestrator.switchboard import Switchboard
from orchestrator.throttle import Throttle
from orchestrator.tools import Door


class State(TypedDict):
    """What requests find in ``request.state``."""

    line: Line
    doors: Doors
    health: Health
    storage: Storage
    keys: Keys
    switchboard: Switchboard
    throttle: Throttle
    questions: Questions
    outbox: Outbox
    executions: Executions | None


def create_app(settings: Settings, surroundings: Surroundings | None = None) -> FastAPI:
    """Make the application of one line."""
    around = surroundings or Surroundings()
    door = Door()

    @asynccontextmanager
    async def lifespan(made: FastAPI) -> AsyncIterator[State]:
        line = Line(settings, around)
        checks = Health(line)
        storage = Storage(settings.database_url.get_secret_value())
        switchboard = Switchboard(line, storage)
        await switchboard.start()
        made.state.goodbye = switchboard.say_goodbye
        try:
            async with desk.opened(settings, storage, door, checks) as open_desk:
                yield State(
                    line=line,
                    doors=Doors.of(settings),
                    health=checks,
                    storage=storage,
                    keys=Keys.of(settings),
                    switchboard=switchboard,
                    throttle=Throttle(),
                    questions=open_desk.questions,
                    outbox=open_desk.outbox,
                    executions=open_desk.executions,
                )
        finally:
            await checks.stop()
            await switchboard.stop()
            await storage.close()

    docs = settings.orchestrator_docs
    app = FastAPI(
        title="Hotline",
        version=__version__,
        lifespan=lifespan,
        docs_url="/docs" if docs else None,
        redoc_url=None,
        openapi_url="/openapi.json" if docs else None,
        redirect_slashes=False,
    )
    routed = (
        health,
        entrance,
        refusal,
        links,
        calls,
        questions,
        outbox,
        executions,
        prompts,
        instructions,
    )
    for module in routed:
        app.include_router(module.router)
    app.router.routes.append(Route("/mcp", endpoint=door))
    problems.install(app)
    app.add_middleware(Edge, clock=around.clock)
    return app
