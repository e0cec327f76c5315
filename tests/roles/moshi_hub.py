"""A stand-in for a Hugging Face hub on loopback: its documented API, and the ways in which it fails.

``/api/models/{repo}/revision/{revision}?blobs=true`` lists a commit's files;
``/{repo}/resolve/{commit}/{file}`` sends small files itself and redirects large ones to a content network
(here: the same server under another host name), which knows ranges. Errors carry ``X-Error-Code`` as the
hub's do (huggingface_hub, utils/_http.py, hf_raise_for_status).
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Repository:
    """Files of one commit; those in ``large`` are kept as LFS objects."""

    files: dict[str, bytes]
    revision: str = "main"
    commit: str = ""
    gated: bool = False
    private: bool = False

    def __post_init__(self) -> None:
        text = json.dumps(
            {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self.files.items())}
        )
        self.commit = self.commit or hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    @staticmethod
    def is_large(name: str) -> bool:
        return name.endswith((".safetensors", ".model"))


@dataclass
class Asked:
    """One request as it arrived."""

    host: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class Hub:
    """What is stored, what was asked, and the faults that the next requests for a file meet, one each."""

    repositories: dict[str, Repository]
    token: str = "hf_good"
    asked: list[Asked] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)
    ranges: bool = True
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked_for(self, name: str) -> list[Asked]:
        """Requests for a file's content: those to the content network for a large one."""
        return [
            asked
            for asked in self.asked
            if asked.path.split("?")[0].endswith(name)
            and (not Repository.is_large(name) or asked.path.startswith("/cdn/"))
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the tests' output readable."""

    def refuse(self, status: int, code: str = "", **headers: str) -> None:
        body = json.dumps({"error": code or "refused"}).encode()
        self.send_response(status)
        for name, value in ({"X-Error-Code": code} if code else {}).items() | headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        hub = self.hub
        path = urllib.parse.unquote(self.path)
        hub.asked.append(
            Asked(self.headers["Host"], path, self.headers["Range"], self.headers["Authorization"])
        )
        name = path.split("?")[0].rsplit("/", 1)[-1]
        fault = hub.faults[name].pop(0) if hub.faults.get(name) and not self.path_redirects(path) else ""
        if fault[:3].isdigit():
            status, _, rest = fault.partition(" ")
            return self.refuse(
                int(status),
                **({"Retry_After": rest} if rest.isdigit() else {"X_Error_Code": rest} if rest else {}),
            )
        if fault == "silence":
            time.sleep(1.5)
            return self.vanish()
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^?]+)(\?blobs=true)?", path):
            return self.list_files(found[1], found[2])
        if found := re.fullmatch(r"/cdn/([^/]+/[^/]+)/(.+)\?signature=1", path):
            return self.send_content(hub.repositories[found[1]].files[found[2]], fault, {})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([0-9a-f]{40})/(.+)", path):
            return self.resolve(found[1], found[2], found[3], fault)
        return self.refuse(404)

    def path_redirects(self, path: str) -> bool:
        return "/resolve/" in path and Repository.is_large(path)

    def vanish(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def allowed(self, repository: str) -> Repository | None:
        stored = self.hub.repositories.get(repository)
        given = self.headers["Authorization"]
        if given and given != f"Bearer {self.hub.token}":
            self.refuse(401)
        elif stored is None or (stored.private and not given):
            self.refuse(404 if given else 401, "RepoNotFound")
        else:
            return stored
        return None

    def list_files(self, repository: str, revision: str) -> None:
        if (stored := self.allowed(repository)) is None:
            return
        if revision not in {stored.revision, stored.commit}:
            self.refuse(404, "RevisionNotFound")
            return
        siblings = []
        for name, content in stored.files.items():
            blob = hashlib.sha1(
                f"blob {len(content)}\0".encode() + content, usedforsecurity=False
            ).hexdigest()
            entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
            if stored.is_large(name):
                digest = hashlib.sha256(content).hexdigest()
                entry |= {
                    "blobId": "0" * 40,
                    "lfs": {"sha256": digest, "size": len(content), "pointerSize": 135},
                }
            siblings.append(entry)
        body = json.dumps(
            {"id": repository, "sha": stored.commit, "gated": stored.gated, "siblings": siblings}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def resolve(self, repository: str, commit: str, name: str, fault: str) -> None:
        if (stored := self.allowed(repository)) is None:
            return None
        if stored.gated and not self.headers["Authorization"]:
            return self.refuse(401, "GatedRepo")
        if commit != stored.commit:
            return self.refuse(404, "RevisionNotFound")
        if name not in stored.files:
            return self.refuse(404, "EntryNotFound")
        content = stored.files[name]
        if not stored.is_large(name):
            return self.send_content(content, fault, {"X-Repo-Commit": stored.commit, "ETag": '"blob"'})
        self.send_response(302)
        self.send_header("Location", f"http://localhost:{self.hub.port}/cdn/{repository}/{name}?signature=1")
        self.send_header("X-Repo-Commit", stored.commit)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def send_content(self, content: bytes, fault: str, headers: dict[str, str]) -> None:
        if fault == "wrong":
            content = bytes(len(content))
        if fault == "short":
            content = content[: len(content) // 2]
        first = (
            int(found[1])
            if self.hub.ranges and (found := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""))
            else 0
        )
        body = content[first:]
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault.startswith("break "):
            self.wfile.write(body[: int(fault.split()[1])])
            self.wfile.flush()
            return self.vanish()
        self.wfile.write(body)
        return None


@contextmanager
def running(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Run a hub on a free port of loopback."""
    hub = Hub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HandlerOfThisHub", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
