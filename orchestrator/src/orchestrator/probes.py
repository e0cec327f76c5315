"""Looking at the line's neighbours: does something answer HTTP, is there room on the disk, is the GPU there?

Each function does one look and raises ProbeError with a sentence when it cannot. None bounds its own time,
but for the HTTP one, whose answer is more precise than a caller's time limit; health.py bounds them all.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

PROBE_S = 1.5
HEAD_BYTES = 8192
OBJECT_BYTES = 256 * 1024


class ProbeError(Exception):
    """Nothing could be seen; the text says why."""


def trust_nobody_needs() -> ssl.SSLContext:
    """Make a TLS context for our own nginx: what is asked is whether it answers, not who it is."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def http_status(
    port: int,
    path: str,
    *,
    tls: ssl.SSLContext | None = None,
    host: str = "127.0.0.1",
    known_as: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> int:
    """Return the status with which 127.0.0.1:``port`` answers a GET.

    ``known_as`` is entered with the local port before the connection exists, so that nobody takes it for a
    caller. Raises ProbeError when nothing answers within PROBE_S seconds, or answers something that is not
    HTTP.
    """

    async def ask() -> int:
        with socket.socket() as connection:
            connection.setblocking(False)
            connection.bind((host, 0))
            with known_as(connection.getsockname()[1]):
                await asyncio.get_running_loop().sock_connect(connection, (host, port))
                reader, writer = await asyncio.open_connection(
                    sock=connection, ssl=tls, server_hostname="localhost" if tls else None, limit=HEAD_BYTES
                )
                try:
                    writer.write(
                        f"GET {path} HTTP/1.1\r\nHost: localhost:{port}\r\nUser-Agent: hotline-health\r\n"
                        "Connection: close\r\n\r\n".encode()
                    )
                    await writer.drain()
                    words = (await reader.readline()).split()
                    # Wait until the other side has closed, or it would still count as somebody's connection.
                    with contextlib.suppress(OSError, asyncio.TimeoutError):
                        await asyncio.wait_for(reader.read(), 0.2)
                finally:
                    writer.transport.abort()
        if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
            raise ProbeError(f"what answers on port {port} does not speak HTTP")
        return int(words[1])

    try:
        return await asyncio.wait_for(ask(), PROBE_S)
    except asyncio.TimeoutError:
        raise ProbeError(f"port {port} is open, but nothing answered within {PROBE_S} s") from None
    except ConnectionRefusedError:
        raise ProbeError(f"nothing listens on port {port}") from None
    except (OSError, ValueError, asyncio.LimitOverrunError) as error:
        raise ProbeError(f"port {port}: {error}") from None


async def http_object(port: int, path: str) -> dict[str, Any]:
    """Return the JSON object with which 127.0.0.1:``port`` answers a GET.

    HTTP/1.0: the answer ends with its connection. Raises ProbeError when it is anything but a 200 with an
    object of at most OBJECT_BYTES; bounds no time.
    """
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=HEAD_BYTES)
        try:
            writer.write(f"GET {path} HTTP/1.0\r\nHost: localhost:{port}\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            body = b""
            while len(body) <= OBJECT_BYTES and (piece := await reader.read(OBJECT_BYTES)):
                body += piece
        finally:
            writer.transport.abort()
        if head.split(maxsplit=2)[1] != b"200":
            raise ProbeError(f"port {port} answers {head.splitlines()[0].decode(errors='replace')!r:.80}")
        found = json.loads(body)
    except ConnectionRefusedError:
        raise ProbeError(f"nothing listens on port {port}") from None
    except (OSError, EOFError, asyncio.LimitOverrunError) as error:
        raise ProbeError(f"port {port}: {error}") from None
    except (ValueError, IndexError, RecursionError):
        raise ProbeError(f"what answers on port {port} is no JSON over HTTP") from None
    if not isinstance(found, dict):
        raise ProbeError(f"what answers on port {port} is no JSON object")
    return found


class Space(NamedTuple):
    """The room on a file system, in bytes."""

    free: int
    total: int


def space_at(path: Path) -> Space:
    """Return the room left for an ordinary user where ``path`` lies, or its nearest ancestor that exists.

    Touches the disk: call it in a thread. Raises ProbeError.
    """
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        found = os.statvfs(path)
    except OSError as error:
        raise ProbeError(f"the disk under {path} cannot be looked at: {error}") from None
    return Space(found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)


class Gpu(NamedTuple):
    """One GPU, in nvidia-smi's words; memory in MiB, None where it does not say."""

    number: int
    name: str
    used_mib: int | None
    total_mib: int | None


QUERY = ("--query-gpu=index,name,memory.used,memory.total", "--format=csv,noheader,nounits")


def gpus_in(answer: str) -> list[Gpu]:
    """Read nvidia-smi's answer to QUERY. Raises ProbeError when it is none."""

    def mib(text: str) -> int | None:
        return int(text) if text.isdigit() else None

    gpus = []
    for row in csv.reader(answer.splitlines(), skipinitialspace=True):
        if len(row) != 4 or not row[0].isdigit():
            raise ProbeError(f"nvidia-smi answered '{' '.join(answer.split())[:200]}'")
        gpus.append(Gpu(int(row[0]), row[1], mib(row[2].strip()), mib(row[3].strip())))
    return gpus


class NoNvidiaSmiError(ProbeError):
    """nvidia-smi is not installed, so nothing is known about the GPU."""


async def gpus(nvidia_smi: str) -> list[Gpu]:
    """Ask nvidia-smi. It may hang for as long as the driver does. Raises ProbeError."""
    try:
        # It is given no setting of ours: an environment can hold secrets.
        process = await asyncio.create_subprocess_exec(
            nvidia_smi,
            *QUERY,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise NoNvidiaSmiError(f"{nvidia_smi} is not there") from None
    except OSError as error:
        raise ProbeError(f"{nvidia_smi} cannot be started: {error}") from None
    try:
        answer = (await process.communicate())[0].decode(errors="replace")
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    if process.returncode != 0:
        raise ProbeError(f"nvidia-smi ended with {process.returncode}: {' '.join(answer.split())[:300]}")
    return gpus_in(answer)
