"""Run the orchestrator: ``python -m orchestrator`` (or ``hotline-orchestrator``)."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Sequence

import uvicorn
from fastapi import FastAPI

from orchestrator import __version__, logs
from orchestrator.app import create_app
from orchestrator.settings import Settings, SettingsError, is_secret, read_settings
from orchestrator.storage import StorageError, check, migrate

EXIT_SETTINGS = 78  # sysexits.h EX_CONFIG
EXIT_PORT = 69  # sysexits.h EX_UNAVAILABLE
EXIT_STORAGE = 74  # sysexits.h EX_IOERR
HOST = "127.0.0.1"

log = logging.getLogger("orchestrator")


def settings_table() -> str:
    """Return every setting with what it means and its default, for --help."""
    lines = []
    for name, found in Settings.model_fields.items():
        default = found.get_default()
        value = ",".join(map(str, default)) if isinstance(default, tuple) else default
        if is_secret(found):
            value = default.get_secret_value()
        needed = (
            "needed" if found.is_required() else f"default {value!r}" if value == "" else f"default {value}"
        )
        lines.append(f"  {name.upper():<24} {found.description} ({needed})")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="hotline-orchestrator",
        description="Decides who may speak on the line, to which engine, and says whether the line is well.\n"
        f"Listens on {HOST} only; nginx stands before it.",
        epilog="settings, from the environment (on a host /etc/hotline/hotline.env):\n" + settings_table(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--version", action="version", version=__version__)
    made.add_argument(
        "command",
        nargs="?",
        choices=["serve", "migrate"],
        default="serve",
        help="serve: answer until told to stop. migrate: bring the database to this program's state and end",
    )
    made.add_argument(
        "--wait",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="migrate: how long to wait for a database that is being started",
    )
    made.add_argument(
        "--check", action="store_true", help="read the settings, say what is wrong with them, and end"
    )
    return made


def bound(port: int) -> socket.socket:
    """Return a socket that listens on loopback. Raises OSError when the port cannot be had."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(512)
    except OSError:
        listener.close()
        raise
    return listener


class Server(uvicorn.Server):
    """One that ends streams of events when it is told to stop: they would hold it up until they are cut."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let whoever follows events go, then stop as usual. Pages come back by themselves."""
        goodbye = getattr(self.config.app.state, "goodbye", None)  # type: ignore[union-attr]
        if goodbye is not None:
            goodbye()
        await super().shutdown(sockets)


def server_of(app: FastAPI) -> uvicorn.Server:
    """Return the server of one application, ready to run."""
    return Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="websockets-sansio",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            # Only what stands on this machine may say who the caller is.
            proxy_headers=True,
            forwarded_allow_ips="127.0.0.1,::1",
            ws_max_size=64 * 1024,
            h11_max_incomplete_event_size=16 * 1024,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
        )
    )


def bring_up_to_date(settings: Settings, wait_s: float) -> int:
    """Migrate the database; return the exit status."""
    try:
        done = migrate(settings.database_url.get_secret_value(), wait_s=wait_s)
    except StorageError as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        return EXIT_STORAGE
    print(
        f"orchestrator: the database has had {', '.join(done)}"
        if done
        else "orchestrator: the database is as it should be"
    )
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until told to stop; return the exit status."""
    asked = parser().parse_args(arguments)
    try:
        settings = read_settings()
    except SettingsError as error:
        print(f"orchestrator: the settings are wrong: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    if asked.check:
        print("orchestrator: the settings are fine")
        return 0
    logs.install(settings.orchestrator_log_level)
    if asked.command == "migrate":
        return bring_up_to_date(settings, asked.wait)
    try:
        check(settings.database_url.get_secret_value())
    except StorageError as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        return EXIT_STORAGE
    port = settings.line_orchestrator_port
    try:
        listener = bound(port)
    except OSError as error:
        print(
            f"orchestrator: cannot listen on {HOST}:{port} ({error.strerror}). "
            f"Mend: `ss -ltnp sport = :{port}` shows who has the port; "
            "stop that, or set line_orchestrator_port and run site.yml again",
            file=sys.stderr,
        )
        return EXIT_PORT
    log.info(
        "listening",
        extra={"address": f"{HOST}:{port}", "line": settings.moshi_url, "access": settings.line_access},
    )
    # uvicorn stops on these and then raises them again, which would end the process before it has said so.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        server_of(create_app(settings)).run(sockets=[listener])
    finally:
        listener.close()
    log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
