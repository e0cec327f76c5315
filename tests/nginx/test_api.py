"""What programs and probes meet: the API, health, and what nginx says in the orchestrator's place."""

from __future__ import annotations

import aiohttp
import pytest

OURS = {"X-Call-Id": "forged", "X-Engine": "moshi_1", "X-Refusal": "line_full", "X-Original-URI": "/forged"}


async def test_the_api_is_the_orchestrators(line, host, caller):
    answer = await caller.ask(line, "/api/links?since=1", "POST", data=b"x" * 1000)
    assert answer.json() == {"path": "/api/links", "bytes": 1000}
    method, path, headers = host.orchestrator.seen[-1]
    assert (method, path) == ("POST", "/api/links?since=1")
    assert headers["Host"] == f"127.0.0.1:{line.port}"
    assert headers["X-Real-IP"] == "127.0.0.1"
    assert headers["X-Forwarded-Proto"] == "https"


async def test_the_orchestrator_is_told_who_really_calls(line, host, caller):
    await caller.ask(
        line,
        "/api/x",
        headers={"X-Forwarded-For": "8.8.8.8", "X-Real-IP": "8.8.8.8", "X-Forwarded-Proto": "http"} | OURS,
    )
    headers = host.orchestrator.seen[-1][2]
    assert headers["X-Forwarded-For"] == "127.0.0.1"
    assert headers["X-Real-IP"] == "127.0.0.1"
    assert headers["X-Forwarded-Proto"] == "https"
    assert not set(OURS) & set(headers)


async def test_a_trusted_gateway_says_who_really_calls(gateway, gateway_host, caller):
    seen = gateway_host.orchestrator.seen
    await caller.ask(
        gateway, "/api/x", headers={"X-Forwarded-For": "6.6.6.6, 9.9.9.9", "X-Forwarded-Proto": "https"}
    )
    assert seen[-1][2]["X-Real-IP"] == "9.9.9.9"
    assert seen[-1][2]["X-Forwarded-Proto"] == "https"
    await caller.ask(gateway, "/api/x", headers={"X-Forwarded-Proto": "gopher"})
    assert seen[-1][2]["X-Forwarded-Proto"] == "http"


@pytest.mark.parametrize("path", ["/mcp", "/mcp/x"])
async def test_agents_reach_the_orchestrator(line, host, caller, path):
    assert (await caller.ask(line, path, "POST", data=b"{}")).json()["path"] == path


@pytest.mark.parametrize(
    "path",
    [
        "/internal/authorize",
        "/internal/refusal",
        "/internal",
        "//internal/authorize",
        "/api/../internal/authorize",
        "/api/%2e%2e/internal/authorize",
        "/api/x/..%2f..%2finternal/authorize",
        "/health/../internal/refusal",
        "/%69nternal/authorize",
        "/_problem/html",
    ],
)
async def test_what_is_internal_stays_internal(line, host, caller, path):
    answer = await caller.ask(line, path)
    assert answer.status == 404
    assert not host.orchestrator.asked
    assert not host.orchestrator.refused
    assert not [path for _, path, _ in host.orchestrator.seen if "internal" in path]


async def test_an_odd_spelling_reaches_the_orchestrator_as_nginx_read_it(line, host, caller):
    for spelled in ("/internal/%2e%2e/api/x", "/internal/authorize%3f/../../api/x", "//api/./x"):
        await caller.ask(line, spelled)
        assert host.orchestrator.seen[-1][1] == "/api/x"


async def test_the_orchestrators_own_errors_pass_unchanged(line, host, caller):
    host.orchestrator.health = 503
    answer = await caller.ask(line, "/health")
    assert (answer.status, answer.json()["status"]) == (503, "ok")


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/deep"])
async def test_health_is_the_orchestrators_word(line, host, caller, path):
    answer = await caller.ask(line, path)
    assert (answer.status, answer.json()["path"]) == (200, path)
    assert answer.headers.getall("Cache-Control") == ["no-store"]


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/deep"])
async def test_health_without_an_orchestrator_is_nginx_word(line, caller, path):
    answer = await caller.ask(line, path)
    assert (answer.status, answer.headers["Content-Type"]) == (503, "application/json")
    assert answer.json()["status"] == "unhealthy"
    assert answer.json()["version"] == "1.2.3"
    assert "hotline logs orchestrator" in answer.json()["reasons"][0]


async def test_startup_is_nginx_alone(line, caller):
    answer = await caller.ask(line, "/health/startup")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json()["status"] == "ok"
    assert answer.json()["configuration"]


async def test_an_unknown_probe_is_told_so_in_json(line, host, caller):
    answer = await caller.ask(line, "/health/nix")
    assert (answer.status, answer.json()["code"]) == (404, "not_found")


async def test_the_api_without_an_orchestrator_is_a_problem_document(line, caller):
    answer = await caller.ask(line, "/api/links")
    assert (answer.status, answer.headers["Content-Type"]) == (502, "application/problem+json")
    assert answer.headers["Retry-After"] == "10"
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (502, "orchestrator_down")
    assert "hotline logs orchestrator" in problem["detail"]


async def test_a_person_at_the_api_without_an_orchestrator_reads_words(line, caller):
    answer = await caller.ask(line, "/api/links", headers={"Accept": "text/html"})
    assert answer.status == 502
    assert "The line is down" in answer.text
    assert "orchestrator" in answer.text


async def test_a_slow_orchestrator_ends_in_504(tight, tight_host, caller):
    tight_host.orchestrator.api_delay_s = 8
    answer = await caller.ask(tight, "/api/slow")
    assert (answer.status, answer.json()["code"]) == (504, "orchestrator_slow")


async def test_too_large_a_body_is_a_problem_document(tight, tight_host, caller):
    fits = await caller.ask(tight, "/api/x", "POST", data=b"x" * 1024)
    assert fits.json()["bytes"] == 1024
    answer = await caller.ask(tight, "/api/x", "POST", data=b"x" * 1025)
    assert (answer.status, answer.json()["code"]) == (413, "body_too_large")
    assert "nginx_body_max_kib" in answer.json()["detail"]
    assert len(tight_host.orchestrator.seen) == 1


async def test_a_body_without_an_announced_end_is_limited_too(tight, tight_host, caller):
    async def endless():
        for _ in range(64):
            yield b"x" * 64

    try:
        answer = await caller.ask(tight, "/api/x", "POST", data=endless())
    except aiohttp.ClientConnectionError:
        pass  # the rest was still being sent when nginx hung up
    else:
        assert answer.status == 413
    assert not tight_host.orchestrator.seen
