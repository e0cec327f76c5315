"""A real nginx with the role's configuration, between real clients and stand-ins for what is behind it."""

from __future__ import annotations

import asyncio
import datetime
import gzip
import ipaddress
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType, web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from multidict import CIMultiDictProxy
from yarl import URL

ROOT = Path(__file__).parents[2]
NGINX = os.environ.get("HOTLINE_NGINX", "nginx")  # to try the configuration on another version
HANDSHAKE, AUDIO, ERROR = b"\x00", b"\x01", b"\x05"
FULL = 4  # connections that one client may have on the line with tight limits

# What differs between the lines under test. Everything else is the roles' defaults.
LINES: dict[str, dict[str, Any]] = {
    "usual": {"line_names": ["hotline.example"]},
    "tight": {
        "line_access": "open",
        "nginx_silence_s": 2,
        "nginx_requests_per_second": 1,
        "nginx_requests_burst": 20,
        "nginx_connections_per_client": FULL,
        "nginx_body_max_kib": 1,
        "nginx_answer_timeout_s": 5,
        "moshi_conversations": 6,
    },
    "many": {"moshi_engine": "duplex", "moshi_conversations": "auto"},
    "gateway": {"tls_provider": "none", "nginx_trusted_proxies": ["127.0.0.1"]},
    "manual": {"tls_provider": "manual", "line_access": "open", "line_listen": "all"},
    "proven": {
        "tls_provider": "acme",
        "tls_acme_challenge": "http",
        "line_access": "open",
        "line_listen": "all",
    },
}


def free_ports(count: int) -> list[int]:
    """So many ports in a row that nobody has, on both loopback addresses."""
    for first in range(20000 + os.getpid() % 9000, 32000, count):
        try:
            for port in range(first, first + count):
                for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                    with socket.socket(family) as probe:
                        probe.bind((address, port))
        except OSError:
            continue
        return list(range(first, first + count))
    raise RuntimeError("no free ports")


def make_certificate(folder: Path, names: list[str]) -> None:
    """A certificate for `names`, signed by an authority made for it, where the role `tls` would put them."""
    folder.mkdir(parents=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
    for key, subject, ca in ((keys[0], authority, True), (keys[1], x509.Name([]), False)):
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=90))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            alternatives: list[x509.GeneralName] = []
            for name in names:
                try:
                    alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
                except ValueError:
                    alternatives.append(x509.DNSName(name))
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=True)
        pem = builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        (folder / ("ca.pem" if ca else "fullchain.pem")).write_bytes(pem)
    (folder / "privkey.pem").write_bytes(
        keys[1].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def make_page(folder: Path) -> None:
    """What the role `voice_client` would leave: a page, hashed assets, compressed copies beside them."""
    (folder / "assets").mkdir(parents=True)
    (folder / "index.html").write_text("<!doctype html><title>Hotline</title>")
    (folder / "assets" / "call-4f2a.js").write_text("export const call = 1;\n" * 100)
    (folder / "assets" / "call-4f2a.js.gz").write_bytes(
        gzip.compress((folder / "assets" / "call-4f2a.js").read_bytes())
    )
    (folder / "assets" / "opus-99.wasm").write_bytes(b"\0asm")
    (folder / "manifest.webmanifest").write_text("{}")
    (folder / ".secret").write_text("not for callers")


def main_configuration(folder: Path) -> str:
    """As Debian's nginx.conf, in the foreground and with its files in `folder`."""
    return f"""
user {"root" if os.getuid() == 0 else "nobody"};
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/main-error.log;
events {{
	worker_connections 768;
	# multi_accept on;
}}
http {{
    sendfile on;
    tcp_nopush on;
    types_hash_max_size 2048;
    default_type application/octet-stream;
    ssl_protocols TLSv1 TLSv1.1 TLSv1.2 TLSv1.3;
    ssl_prefer_server_ciphers on;
    access_log {folder}/main-access.log;
    gzip on;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/sites-enabled/*;
}}
"""


@dataclass
class Line:
    """One nginx under test. Its site was written by the role; ports are of its own."""

    name: str
    folder: Path
    port: int
    orchestrator_port: int
    engine_ports: list[int]
    tls: bool
    process: subprocess.Popen[bytes] | None = None
    proof_port: int = 0

    def url(self, path: str = "/", host: str = "127.0.0.1", scheme: str | None = None) -> str:
        return f"{scheme or ('https' if self.tls else 'http')}://{host}:{self.port}{path}"

    def chat(self, query: str = "", host: str = "127.0.0.1") -> str:
        return self.url("/api/chat" + query, host, "wss" if self.tls else "ws")

    def trust(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.folder / "tls" / "ca.pem"))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context

    def logs(self) -> str:
        """Everything nginx wrote, access and error, of this line and of its surroundings."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def start(self) -> None:
        self.process = subprocess.Popen([NGINX, "-c", str(self.folder / "nginx.conf")])
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError("nginx did not start: " + self.logs())

    def reload(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(10)


def variables(folder: Path) -> dict[str, Any]:
    """Extra variables that move every path of the roles into the sandbox of each line."""
    own = f"{folder}/{{{{ inventory_hostname }}}}"
    return {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "_line_version": "1.2.3",
        "_line_state": f"{own}/state",
        "_line_engines": [0, 1],
        "_nginx_main": f"{own}/nginx.conf",
        "_nginx_site": f"{own}/sites-available/hotline.conf",
        "_nginx_site_enabled": f"{own}/sites-enabled/hotline.conf",
        "_nginx_default_site": f"{own}/sites-enabled/default",
        "_nginx_page": f"{own}/page",
        "_nginx_tls_dir": f"{own}/tls",
        "_nginx_pid": f"{own}/nginx.pid",
        "_nginx_test": [NGINX, "-t", "-q", "-c", f"{own}/nginx.conf"],
        "_nginx_access_log": f"{own}/access.log",
        "_nginx_error_log": f"{own}/error.log crit",
    }


def configure(
    folder: Path, lines: dict[str, dict[str, Any]], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Run the role's configure phase on sandboxes in `folder`, one for each of `lines`."""
    inventory = folder / "inventory.json"
    inventory.write_text(json.dumps({"line": {"hosts": lines}}))
    extra = folder / "extra.json"
    extra.write_text(json.dumps(variables(folder)))
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        *("-i", str(inventory)),
        *("-e", f"@{extra}"),
        *("--tags", "nginx_preflight,nginx_configure"),
        *arguments,
        str(Path(__file__).with_name("render.yml")),
    ]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_PIPELINING": "1"}
    return subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )


def prepare(folder: Path, name: str) -> None:
    """A host on which nginx is installed and the other roles have run, as far as nginx sees it."""
    own = folder / name
    for part in ("sites-available", "sites-enabled", "state"):
        (own / part).mkdir(parents=True)
    (own / "nginx.conf").write_text(main_configuration(own))
    (own / "sites-available" / "default").write_text("server { listen 80 default_server; }\n")
    (own / "sites-enabled" / "default").symlink_to(own / "sites-available" / "default")
    make_page(own / "page")
    make_certificate(own / "tls", ["localhost", "127.0.0.1", "::1", "hotline.example"])
    (own / "tls" / "ca.mobileconfig").write_text("a profile")


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Line]]:
    """All the lines, configured by one run of the role, started when first asked for."""
    folder = tmp_path_factory.mktemp("nginx")
    ports = free_ports(4 * len(LINES) + 1)
    made: dict[str, Line] = {}
    hosts = {}
    for place, (name, settings) in enumerate(LINES.items()):
        prepare(folder, name)
        port, orchestrator, *engines = ports[4 * place : 4 * place + 4]
        made[name] = Line(
            name, folder / name, port, orchestrator, engines, settings.get("tls_provider") != "none"
        )
        hosts[name] = {
            "line_host": "127.0.0.1",
            "line_port": port,
            "line_orchestrator_port": orchestrator,
            "line_engine_port": engines[0],
            "tls_acme_http_port": ports[-1],
            **settings,
        }
    made["proven"].proof_port = ports[-1]
    done = configure(folder, hosts)
    assert done.returncode == 0, done.stdout + done.stderr
    yield made
    for line in made.values():
        line.stop()


def _started(lines: dict[str, Line], name: str) -> Line:
    if lines[name].process is None:
        lines[name].start()
    return lines[name]


@pytest.fixture
def line(lines: dict[str, Line]) -> Line:
    """The line as the roles' defaults make it."""
    return _started(lines, "usual")


@pytest.fixture
def proven(lines: dict[str, Line]) -> Line:
    """A line whose name an authority proves at port 80."""
    return _started(lines, "proven")


@pytest.fixture
def tight(lines: dict[str, Line]) -> Line:
    """A line with small limits."""
    return _started(lines, "tight")


@pytest.fixture
def gateway(lines: dict[str, Line]) -> Line:
    """A line behind a gateway that ends TLS."""
    return _started(lines, "gateway")


@pytest.fixture
def manual(lines: dict[str, Line]) -> Line:
    """A line with the operator's own certificate."""
    return _started(lines, "manual")


@dataclass
class Engine:
    """Stands in for kyutai's moshi.server: a frame in, a frame out, silence otherwise."""

    greets: bool = True
    status: int = 101
    goes_on: bool = False
    max_message: int = 4 * 1024 * 1024
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    open: int = 0

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        self.paths.append(request.path_qs)
        if self.status != 101:
            return web.Response(status=self.status)
        socket_ = web.WebSocketResponse(max_msg_size=self.max_message, protocols=("hotline",))
        await socket_.prepare(request)
        self.open += 1
        chatter = asyncio.create_task(self._chat_on(socket_))
        try:
            if self.greets:
                await socket_.send_bytes(HANDSHAKE)
            async for message in socket_:
                if message.type == WSMsgType.BINARY:
                    await socket_.send_bytes(message.data)
        finally:
            chatter.cancel()
            self.open -= 1
        return socket_

    async def _chat_on(self, socket_: web.WebSocketResponse) -> None:
        while self.goes_on:
            await asyncio.sleep(0.001)
            await socket_.send_bytes(b"\x02" + bytes(60000))

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/api/chat", self.chat)
        return application


@dataclass
class Orchestrator:
    """Speaks the orchestrator's side of what it and nginx agreed upon; a test says what it answers."""

    engine: str = "moshi_0"
    call: str = "0b6ac7c1-7a52-4c86-9a5c-1d2f4d3c9b11"
    refuse: tuple[int, str] | None = None
    health: int = 200
    api_delay_s: float = 0.0
    asked: list[dict[str, str]] = field(default_factory=list)
    refused: list[dict[str, str]] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    async def authorize(self, request: web.Request) -> web.Response:
        self.asked.append(dict(request.headers))
        if self.refuse:
            return web.Response(status=self.refuse[0], headers={"X-Refusal": self.refuse[1]})
        return web.Response(status=204, headers={"X-Engine": self.engine, "X-Call-Id": self.call})

    async def refusal(self, request: web.Request) -> web.StreamResponse:
        self.refused.append(dict(request.headers) | {"path": request.path_qs})
        code = request.headers["X-Refusal"]
        socket_ = web.WebSocketResponse(protocols=("hotline",))
        await socket_.prepare(request)
        words = {"code": code, "message": f"the words for {code}"}
        await socket_.send_bytes(ERROR + json.dumps(words).encode())
        await socket_.close(code=1008 if code == "not_allowed" else 1013)
        return socket_

    async def anything(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.api_delay_s)
        self.seen.append((request.method, request.raw_path, dict(request.headers)))
        if request.path.startswith("/health"):
            body = {"status": "ok", "path": request.path}
            return web.json_response(body, status=self.health, headers={"Cache-Control": "no-store"})
        body = await request.read()
        return web.json_response({"path": request.path, "bytes": len(body)})

    def application(self) -> web.Application:
        application = web.Application(client_max_size=2**30)
        application.router.add_get("/internal/authorize", self.authorize)
        application.router.add_get("/internal/refusal", self.refusal)
        application.router.add_route("*", "/{path:.*}", self.anything)
        return application


class Host:
    """The stand-ins of one line, listening. `await host.down("engine")` takes one away."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self.orchestrator = Orchestrator()
        self.engines = [Engine(), Engine()]
        self._runners: dict[str, web.AppRunner] = {}

    async def up(self) -> None:
        parts = {"orchestrator": (self.orchestrator.application(), self.line.orchestrator_port)}
        for number, engine in enumerate(self.engines):
            parts[f"engine{number}"] = (engine.application(), self.line.engine_ports[number])
        for name, (application, port) in parts.items():
            runner = web.AppRunner(application, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self._runners[name] = runner

    async def down(self, *names: str) -> None:
        for name in names or tuple(self._runners):
            await self._runners.pop(name).cleanup()

    async def freed(self, engine: int = 0, within_s: float = 15.0) -> float:
        """Seconds until the engine has nobody; fails after `within_s`."""
        begun = time.monotonic()
        while self.engines[engine].open:
            assert time.monotonic() - begun < within_s, f"the engine is still held after {within_s} s"
            await asyncio.sleep(0.05)
        return time.monotonic() - begun


async def _host(line: Line) -> AsyncIterator[Host]:
    host = Host(line)
    await host.up()
    yield host
    await host.down()


@pytest.fixture
async def host(line: Line) -> AsyncIterator[Host]:
    """Orchestrator and engines behind `line`."""
    async for made in _host(line):
        yield made


@pytest.fixture
async def tight_host(tight: Line) -> AsyncIterator[Host]:
    """Orchestrator and engines behind `tight`."""
    async for made in _host(tight):
        yield made


@pytest.fixture
async def many_host(lines: dict[str, Line]) -> AsyncIterator[Host]:
    """Orchestrator and engines behind a line whose engines say themselves that they are full."""
    async for made in _host(_started(lines, "many")):
        yield made


@pytest.fixture
async def gateway_host(gateway: Line) -> AsyncIterator[Host]:
    """Orchestrator and engines behind `gateway`."""
    async for made in _host(gateway):
        yield made


@dataclass
class Answer:
    """What came back from one request."""

    status: int
    headers: CIMultiDictProxy[str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


class Caller:
    """A client of any line: trusts the authority that signed for it, and no other."""

    def __init__(self) -> None:
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    def session(self, line: Line) -> aiohttp.ClientSession:
        if line.name not in self._sessions:
            connector = aiohttp.TCPConnector(ssl=line.trust(), limit=0)
            self._sessions[line.name] = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        return self._sessions[line.name]

    async def ask(self, line: Line, path: str = "/", method: str = "GET", **options: Any) -> Answer:
        """One request. `path` goes out as it is written, without aiohttp's own tidying."""
        options.setdefault("allow_redirects", False)
        url = URL(
            line.url(path, options.pop("address", "127.0.0.1"), options.pop("scheme", None)), encoded=True
        )
        async with self.session(line).request(method, url, **options) as answer:
            body = await answer.read()
            return Answer(answer.status, answer.headers, body.decode(errors="replace"))

    async def call(self, line: Line, query: str = "", **options: Any) -> aiohttp.ClientWebSocketResponse:
        """Open a call."""
        address = options.pop("address", "127.0.0.1")
        return await self.session(line).ws_connect(line.chat(query, address), **options)

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    """Requests and calls."""
    made = Caller()
    yield made
    await made.close()


async def words_of(call: aiohttp.ClientWebSocketResponse) -> tuple[str, int | None]:
    """The code that a refused call was told, and the code with which its socket closed."""
    told = await call.receive_bytes(timeout=5)
    assert told[:1] == ERROR
    closed = await call.receive(timeout=5)
    assert closed.type == WSMsgType.CLOSE
    said = json.loads(told[1:])
    assert said["message"]
    return said["code"], closed.data


@pytest.fixture
def refused() -> Callable[[aiohttp.ClientWebSocketResponse], Awaitable[tuple[str, int | None]]]:
    """Reads what a refused call is told."""
    return words_of
