"""Stand-ins for Vast, Salad and RunPod: HTTP servers on loopback, written from the providers' documentation.

They are as strict as the documentation: unknown fields, wrong names and pages that are too large are
refused. Whatever a provider does badly can be asked of them: `fail` for what HTTP does, attributes for what
markets and machines do.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Answer = tuple[int, Any]


class RefusalError(Exception):
    """What a provider answers instead."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class StandIn:
    """The HTTP part of all three: who asks, what is scripted to go wrong, what was asked."""

    key = "secret-of-the-account-0123456789"

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._faults: list[dict[str, Any]] = []
        self.clock: Callable[[], float] = time.time
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet an answer

            def _any(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length)
                parts = urlsplit(self.path)
                with outer.lock:
                    status, body, headers, cut = outer.serve(
                        self.command,
                        parts.path,
                        dict(parse_qsl(parts.query)),
                        raw,
                        {k.lower(): v for k, v in self.headers.items()},
                    )
                if cut:
                    self.close_connection = True
                    return
                text = body if isinstance(body, str) else json.dumps(body)
                data = b"" if body is None else text.encode()
                self.send_response_only(status)
                self.send_header("Date", formatdate(outer.clock(), usegmt=True))
                self.send_header(
                    "Content-Type", "text/plain" if isinstance(body, str) else "application/json"
                )
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _any  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(
        self,
        method: str,
        path: str,
        status: int = 500,
        body: Any = "",
        *,
        times: int = 1,
        headers: dict[str, str] | None = None,
        cut: bool = False,
        after: bool = False,
    ) -> None:
        """Answer the next `times` requests so; `cut` hangs up; `after` does the work before it fails."""
        self._faults.append(
            {
                "method": method,
                "path": path,
                "status": status,
                "body": body,
                "times": times,
                "headers": headers or {},
                "cut": cut,
                "after": after,
            }
        )

    def serve(
        self, method: str, path: str, query: dict[str, str], raw: bytes, headers: dict[str, str]
    ) -> tuple[int, Any, dict[str, str], bool]:
        body = json.loads(raw) if raw else None
        self.asked.append((method, path, body))
        self.headers.append(headers)
        fault = next(
            (
                f
                for f in self._faults
                if f["times"] > 0 and f["method"] == method and path.startswith(f["path"])
            ),
            None,
        )
        if fault:
            fault["times"] -= 1
            if not fault["after"]:
                return fault["status"], fault["body"], fault["headers"], fault["cut"]
        try:
            self.authenticate(headers)
            status, answer = self.answer(method, path, query, body)
        except RefusalError as refusal:
            status, answer = refusal.status, refusal.body
        if fault:
            return fault["status"], fault["body"], fault["headers"], fault["cut"]
        return status, answer, {}, False

    def authenticate(self, headers: dict[str, str]) -> None:
        raise NotImplementedError

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Answer:
        raise NotImplementedError

    def calls(self, method: str, path: str = "") -> list[Any]:
        """The bodies of what was asked so."""
        return [body for m, p, body in self.asked if m == method and p.startswith(path)]
