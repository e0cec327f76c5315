"""The page, its files, its headers, and what people read when there is nothing to serve."""

from __future__ import annotations

import gzip
import shutil
import socket
import ssl

import pytest

POLICY = {
    "default-src": ["'none'"],
    "script-src": ["'self'", "'wasm-unsafe-eval'"],
    "worker-src": ["'self'"],
    "style-src": ["'self'"],
    "img-src": ["'self'", "data:"],
    "media-src": ["'self'", "blob:"],
    "font-src": ["'self'"],
    "manifest-src": ["'self'"],
    "base-uri": ["'none'"],
    "form-action": ["'none'"],
    "frame-ancestors": ["'none'"],
}


def policy(answer) -> dict[str, list[str]]:
    return {
        name: sources
        for name, *sources in (part.split() for part in answer.headers["Content-Security-Policy"].split(";"))
    }


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", "localhost"])
async def test_the_page_is_served_on_both_internets(line, caller, address):
    answer = await caller.ask(line, "/", address=address)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Hotline" in answer.text


def own_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # nothing is sent
        return str(probe.getsockname()[0])


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", "own"])
async def test_a_line_that_needs_a_link_listens_on_every_address(line, caller, address):
    address = own_address() if address == "own" else address
    async with caller.session(line).get(line.url("/", address), ssl=False) as answer:
        assert answer.status == 200


async def test_an_open_line_that_is_told_so_listens_on_every_address(manual, caller):
    async with caller.session(manual).get(manual.url("/", own_address()), ssl=False) as answer:
        assert answer.status == 200


async def test_an_open_line_listens_on_loopback_only(tight):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((own_address(), tight.port), 5)


async def test_the_page_is_asked_for_anew_and_its_hashed_files_never_again(line, caller):
    for path in ("/", "/index.html", "/manifest.webmanifest"):
        assert (await caller.ask(line, path)).headers["Cache-Control"] == "no-cache"
    asset = await caller.ask(line, "/assets/call-4f2a.js")
    assert asset.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    missing = await caller.ask(line, "/assets/call-0000.js")
    assert (missing.status, missing.headers["Cache-Control"]) == (404, "no-store")


async def test_a_page_that_did_not_change_is_not_sent_again(line, caller):
    first = await caller.ask(line, "/")
    again = await caller.ask(line, "/", headers={"If-None-Match": first.headers["ETag"]})
    assert (again.status, again.text) == (304, "")
    assert again.headers["Cache-Control"] == "no-cache"


async def test_files_compressed_at_build_time_go_out_compressed(line, caller):
    plain = await caller.ask(line, "/assets/call-4f2a.js", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    async with caller.session(line).get(
        line.url("/assets/call-4f2a.js"), headers={"Accept-Encoding": "gzip"}
    ) as answer:
        body = await answer.read()
    assert answer.headers["Content-Encoding"] == "gzip"
    assert answer.headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress(body).decode() == plain.text


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/assets/call-4f2a.js", "text/javascript; charset=utf-8"),
        ("/assets/opus-99.wasm", "application/wasm"),
        ("/manifest.webmanifest", "application/manifest+json"),
    ],
)
async def test_files_have_the_type_that_a_browser_insists_on(line, caller, path, kind):
    answer = await caller.ask(line, path, headers={"Accept-Encoding": "identity"})
    assert (answer.status, answer.headers["Content-Type"]) == (200, kind)


async def test_every_answer_carries_the_security_headers(line, host, caller):
    for path in (
        "/",
        "/assets/call-4f2a.js",
        "/nowhere",
        "/api/x",
        "/health",
        "/health/startup",
        "/hotline-ca.pem",
    ):
        headers = (await caller.ask(line, path)).headers
        assert headers["X-Content-Type-Options"] == "nosniff", path
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        permissions = headers["Permissions-Policy"].split(", ")
        assert "microphone=(self)" in permissions
        assert "camera=()" in permissions
        assert headers["Server"] == "nginx"
        for name in ("Content-Security-Policy", "X-Content-Type-Options", "Cache-Control"):
            assert len(headers.getall(name, [])) <= 1, f"{path} has {name} twice"


async def test_the_policy_lets_the_page_work_and_nothing_else(line, caller):
    found = policy(await caller.ask(line, "/"))
    assert found.pop("connect-src") == ["'self'", f"wss://127.0.0.1:{line.port}"]
    assert found == POLICY


async def test_the_policy_names_the_port_that_the_caller_sees(line, caller):
    found = policy(await caller.ask(line, "/", headers={"Host": "hotline.example:40123"}))
    assert found["connect-src"] == ["'self'", "wss://hotline.example:40123"]


@pytest.mark.parametrize("name", ["x;script-src", "x *", "'unsafe-inline'", "[::1]:8998", "a,b"])
async def test_a_hostile_host_header_cannot_change_the_policy(line, caller, name):
    answer = await caller.ask(line, "/", headers={"Host": name})
    if answer.status != 400:
        found = policy(answer)
        assert found.pop("connect-src")[0] == "'self'"
        assert found == POLICY
        assert name not in answer.headers["Content-Security-Policy"]


async def test_only_a_real_certificate_binds_browsers_to_https(line, manual, caller):
    assert "Strict-Transport-Security" not in (await caller.ask(line, "/")).headers
    assert (await caller.ask(manual, "/")).headers["Strict-Transport-Security"] == "max-age=15768000"


async def test_the_authority_is_offered_as_phones_want_it(line, manual, caller):
    answer = await caller.ask(line, "/hotline-ca.pem")
    assert answer.headers["Content-Type"] == "application/x-x509-ca-cert"
    assert answer.text == (line.folder / "tls" / "ca.pem").read_text()
    profile = await caller.ask(line, "/hotline-ca.mobileconfig")
    assert profile.headers["Content-Type"] == "application/x-apple-aspen-config"
    for path in ("/hotline-ca.pem", "/hotline-ca.mobileconfig"):
        assert (await caller.ask(manual, path)).status == 404


@pytest.mark.parametrize(
    "path", ["/.secret", "/../tls/privkey.pem", "/assets/..%2f..%2ftls/privkey.pem", "/..%2f..%2fnginx.conf"]
)
async def test_nothing_but_the_page_can_be_read(line, caller, path):
    answer = await caller.ask(line, path)
    assert answer.status in (400, 404)
    assert "PRIVATE" not in answer.text
    assert "not for callers" not in answer.text


async def test_a_folder_shows_neither_its_files_nor_a_wrong_address(line, caller):
    for path in ("/assets", "/assets/"):
        answer = await caller.ask(line, path)
        assert answer.status == 404
        assert "Location" not in answer.headers


async def test_people_read_words_and_programs_a_problem(line, caller):
    page = await caller.ask(line, "/nowhere", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (page.status, page.headers["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert "There is nothing here" in page.text
    assert 'href="/"' in page.text
    problem = await caller.ask(line, "/nowhere", headers={"Accept": "application/json"})
    assert (problem.status, problem.headers["Content-Type"]) == (404, "application/problem+json")
    assert problem.json()["code"] == "not_found"


async def test_the_page_of_words_needs_nothing_from_elsewhere(line, caller):
    answer = await caller.ask(line, "/nowhere")
    assert policy(answer)["default-src"] == ["'none'"]
    assert policy(answer)["style-src"] == ["'unsafe-inline'"]
    assert "src=" not in answer.text
    assert "<script" not in answer.text
    assert "http:" not in answer.text


async def test_without_a_page_the_front_page_says_what_is_going_on(line, caller):
    away = line.folder / "page-away"
    shutil.move(line.folder / "page", away)
    try:
        answer = await caller.ask(line, "/", headers={"Accept": "text/html"})
        assert answer.status == 503
        assert "The line is down" in answer.text
        assert 'http-equiv="refresh" content="10"' in answer.text
        assert answer.headers["Retry-After"] == "10"
        assert "hotline status" in answer.text
    finally:
        shutil.move(away, line.folder / "page")


async def test_posting_to_the_page_is_refused_in_words(line, caller):
    assert (await caller.ask(line, "/", "POST")).status == 405


def test_old_tls_is_refused_and_http2_is_spoken(line):
    def shake(minimum, maximum, ciphers=None):
        context = line.trust()
        context.minimum_version, context.maximum_version = minimum, maximum
        if ciphers:
            context.set_ciphers(ciphers)
        context.set_alpn_protocols(["h2", "http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", line.port), 5) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as shaken,
        ):
            return shaken.version(), shaken.selected_alpn_protocol()

    assert shake(ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_3) == ("TLSv1.3", "h2")
    assert shake(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2) == ("TLSv1.2", "h2")
    with pytest.raises((ssl.SSLError, ConnectionError)), pytest.warns(DeprecationWarning):
        shake(ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, "DEFAULT:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake(ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2, "AES128-SHA:AES256-SHA:@SECLEVEL=0")


@pytest.mark.parametrize(
    ("host_header", "target"),
    [
        ("hotline.example:40123", "https://hotline.example:40123/x?y=1"),
        ("127.0.0.1:8998", "https://127.0.0.1:8998/x?y=1"),
        ("[::1]:8998", "https://[::1]:8998/x?y=1"),
    ],
)
async def test_plain_http_on_the_tls_port_is_shown_the_way(line, caller, host_header, target):
    answer = await caller.ask(line, "/x?y=1", scheme="http", headers={"Host": host_header})
    assert (answer.status, answer.headers["Location"]) == (308, target)


async def test_a_hostile_host_is_not_sent_elsewhere(line, caller):
    answer = await caller.ask(line, "/", scheme="http", headers={"Host": "evil.example/\\@x"})
    assert answer.status == 400 or answer.headers["Location"].startswith("https://127.0.0.1:")


async def test_a_program_that_sends_data_in_the_clear_is_told_not_redirected(line, caller):
    answer = await caller.ask(line, "/api/links", "POST", scheme="http", data=b"{}")
    assert answer.status == 400
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "https://" in answer.json()["detail"]


async def test_behind_a_gateway_the_page_is_plain_http(gateway, gateway_host, caller):
    answer = await caller.ask(gateway, "/", headers={"Host": "line.salad.cloud"})
    assert answer.status == 200
    assert policy(answer)["connect-src"] == ["'self'", "ws://line.salad.cloud", "wss://line.salad.cloud"]
    assert "Strict-Transport-Security" not in answer.headers
