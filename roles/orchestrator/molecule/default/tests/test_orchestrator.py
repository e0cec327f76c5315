"""The orchestrator on a host: what it answers, what it may do, and that it comes back."""

import json
import time

import pytest

PORT, ENGINE_PORT = 15000, 18999
ENGINE = f"""
import socket, time
s = socket.create_server(("127.0.0.1", {ENGINE_PORT}), reuse_port=False)
while True:
    c, _ = s.accept()
    d = c.recv(4096)
    if d.startswith(b"GET"):
        c.sendall(b"HTTP/1.1 400 Bad Request\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n")
        c.close()
    else:
        keep = c
"""
CALLER = f"""
import socket, sys, time
c = socket.create_connection(("127.0.0.1", {ENGINE_PORT}))
c.sendall(b"x")
print("connected", flush=True)
time.sleep(60)
"""
ASK = """
import http.client, json, sys
from concurrent.futures import ThreadPoolExecutor
port, path, times, headers = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
def ask(_):
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    c.request("GET", path, headers=headers)
    r = c.getresponse()
    return [r.status, {k.lower(): v for k, v in r.getheaders()}, r.read().decode()]
with ThreadPoolExecutor(times) as pool:
    print(json.dumps(list(pool.map(ask, range(times)))))
"""


def ask(host, path, *, times=1, headers=None):
    """GET from the orchestrator, on the host: (status, headers, body) of each."""
    done = host.run("python3 -c %s %s %s %s %s", ASK, str(PORT), path, str(times), json.dumps(headers or {}))
    assert done.rc == 0, done.stderr
    return json.loads(done.stdout)


def health(host, path="/health"):
    status, _, body = ask(host, path)[0]
    return status, json.loads(body)


@pytest.fixture
def stand_in(host):
    """A real socket on the engine's port, which answers as an engine does."""
    host.check_output("systemd-run --quiet --collect --unit=stand-in-engine python3 -c %s", ENGINE)
    for _ in range(50):
        if host.socket(f"tcp://127.0.0.1:{ENGINE_PORT}").is_listening:
            break
        time.sleep(0.1)
    yield
    host.run("systemctl stop stand-in-caller stand-in-engine")


def journal(host):
    return host.run("journalctl --no-pager -u orchestrator -n 40").stdout


def test_it_runs_as_its_own_user_and_listens_on_loopback_only(host):
    assert host.service("orchestrator").is_running, journal(host)
    assert host.service("orchestrator").is_enabled
    pid = host.check_output("systemctl show orchestrator --property MainPID --value")
    assert host.check_output("ps -o user= -p %s", pid).strip() == "hotline"
    assert host.socket(f"tcp://127.0.0.1:{PORT}").is_listening
    assert not host.socket(f"tcp://0.0.0.0:{PORT}").is_listening
    assert not host.socket(f"tcp://:::{PORT}").is_listening


def test_without_an_engine_it_says_so_and_how_to_mend_it(host):
    status, body = health(host)
    assert (status, body["status"]) == (503, "unhealthy"), body
    assert body["version"] == host.check_output(
        "/opt/hotline/orchestrator/venv/bin/hotline-orchestrator --version"
    )
    assert len(body["reasons"]) == 1
    assert "moshi@0 does not run" in body["reasons"][0]
    assert "Mend:" in body["reasons"][0]
    assert health(host, "/health/live")[0] == 200


def test_with_an_engine_it_is_well(host, stand_in):
    assert health(host) == (200, {**health(host)[1], "status": "ok", "reasons": []})


def test_deep_health_names_every_part(host, stand_in):
    status, body = health(host, "/health/deep")
    assert status == 503  # no nginx in this scenario
    assert {name: check["status"] for name, check in body["checks"].items()} == {
        "moshi": "ok",
        "nginx": "unhealthy",
        "disk": "ok",
        "gpu": "ok",
    }
    assert "nothing listens on port 18998" in body["reasons"][0]
    assert all(check["ms"] < 2500 for check in body["checks"].values())


def test_a_free_engine_is_given_to_one_caller_of_the_same_instant(host, stand_in):
    started = time.monotonic()
    answers = ask(host, "/internal/authorize", times=2)
    # The first call never comes, so the second waits for it, and gets the engine.
    assert [status for status, _, _ in answers] == [204, 204]
    assert time.monotonic() - started > 1.5
    assert {headers["x-engine"] for _, headers, _ in answers} == {"moshi_0"}
    assert len({headers["x-call-id"] for _, headers, _ in answers}) == 2


def test_an_engine_in_a_conversation_is_given_to_nobody(host, stand_in):
    host.check_output("systemd-run --quiet --collect --unit=stand-in-caller python3 -c %s", CALLER)
    time.sleep(1)
    status, headers, body = ask(host, "/internal/authorize")[0]
    assert (status, headers["x-refusal"]) == (503, "line_full"), body
    assert "busy" in json.loads(body)["detail"]


def test_pages_from_elsewhere_are_refused(host, stand_in):
    for origin, admitted in (
        ("https://localhost:18998", True),
        ("https://voice.example.org:18998", True),
        ("https://evil.example", False),
        ("null", False),
    ):
        status, headers, _ = ask(host, "/internal/authorize", headers={"Origin": origin})[0]
        assert (status == 204) == admitted, origin
        assert headers.get("x-refusal") == (None if admitted else "not_allowed")


def test_it_reads_why_an_engine_stays_stopped(host):
    folder = "/var/lib/hotline/moshi/0"
    host.check_output(f"install -d -o root -g moshi -m 0750 /var/lib/hotline/moshi {folder}")
    note = {
        "reason": "cuda_out_of_memory",
        "detail": "The card is full. Set moshi_quantization: q8.",
        "failures": 3,
        "open": True,
    }
    try:
        host.check_output(f"echo %s > {folder}/failure.json", json.dumps(note))
        status, body = health(host, "/health/live")
        assert status == 503
        assert "moshi_quantization: q8" in body["reasons"][0]
    finally:
        host.check_output("rm -r /var/lib/hotline/moshi")


def test_everything_else_is_a_problem_document(host):
    for path, expected in (("/api/nothing", 404), ("/docs", 404), ("/openapi.json", 404)):
        status, headers, body = ask(host, path)[0]
        assert status == expected
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(body)["status"] == expected


def test_its_code_is_not_its_own(host):
    assert host.run("find /opt/hotline -not -user root").stdout == ""
    assert host.run("runuser -u hotline -- touch /opt/hotline/orchestrator/venv/x").rc != 0


def test_its_secrets_are_for_root_alone(host):
    secrets = host.file("/etc/hotline/secrets/orchestrator.env")
    assert (secrets.user, secrets.mode) == ("root", 0o600)


def test_the_sandbox_holds(host):
    for name, expected in {
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "NoNewPrivileges": "yes",
        "PrivateDevices": "yes",
        "MemoryDenyWriteExecute": "yes",
        "ProcSubset": "all",  # /proc/net would be hidden otherwise
        "User": "hotline",
    }.items():
        assert host.check_output("systemctl show orchestrator --property %s --value", name) == expected, name


def test_systemd_calls_it_safe(host):
    judged = host.run("systemd-analyze security --threshold=20 --no-pager orchestrator.service")
    assert judged.rc == 0, judged.stdout[-2000:]


def test_it_comes_back_when_it_is_killed(host):
    before = host.check_output("systemctl show orchestrator --property MainPID --value")
    host.check_output("kill -9 %s", before)
    for _ in range(100):
        time.sleep(0.2)
        if host.service("orchestrator").is_running:
            break
    assert host.service("orchestrator").is_running, journal(host)
    assert host.check_output("systemctl show orchestrator --property MainPID --value") != before
    assert health(host)[0] == 503


def test_wrong_settings_are_one_clear_line(host):
    done = host.run("MOSHI_URL=nonsense /opt/hotline/orchestrator/venv/bin/hotline-orchestrator --check")
    assert done.rc == 78
    assert len(done.stderr.splitlines()) == 1
    assert "MOSHI_URL" in done.stderr
    assert "set line_url" in done.stderr


def test_the_system_kept_its_owners(host):
    for path in ("/etc", "/usr", "/var", "/var/lib", "/opt"):
        folder = host.file(path)
        assert (folder.user, folder.group, folder.mode) == ("root", "root", 0o755), path


HAND_OVER = """
import http.client, json, re, sys, time
secrets = open("/etc/hotline/secrets/orchestrator.env").read()
token = re.search('ORCHESTRATOR_OPERATOR_TOKEN="(.*)"', secrets).group(1)
headers = {"Authorization": "Bearer " + token, "Content-Type": "application/json"}
def ask(method, path, body=None):
    c = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=10)
    c.request(method, path, body=json.dumps(body) if body else None, headers=headers)
    return json.load(c.getresponse())
made = ask("POST", "/api/executions", {"instruction": "Clean up.", "idempotency_key": str(time.time())})
for _ in range(100):
    made = ask("GET", "/api/executions/" + made["id"])
    if made["state"] not in ("pending", "running"):
        break
    time.sleep(0.1)
print(json.dumps(made))
"""


def test_the_agents_program_runs_as_its_own_user_in_a_sandbox(host):
    done = host.run("python3 -c %s %s", HAND_OVER, str(PORT))
    assert done.rc == 0, done.stderr + journal(host)
    made = json.loads(done.stdout)
    assert (made["state"], made["agent"]) == ("completed", "command"), made
    assert made["result"] == "Clean up."  # the program is `head -n 1`
    assert host.file(f"/var/lib/hotline-agent/turns/{made['id']}/1/result.json").user == "hotline-agent"
    score = host.run("systemd-analyze security --offline=true --threshold=30 hotline-agent@.service")
    assert score.rc == 0, score.stdout[-300:]
    assert host.file("/etc/hotline/secrets/hotline-agent.env").mode == 0o600
    assert host.run("runuser -u hotline-agent -- cat /etc/hotline/secrets/orchestrator.env").rc != 0


def test_the_operators_command_works_for_root_and_for_nobody_else(host):
    made = host.run("hotline --json link --note molecule")
    assert made.rc == 0, made.stderr
    made = json.loads(made.stdout)
    assert made["url"].startswith("https://localhost:18998/#t=")
    assert made["id"] in host.check_output("hotline links")
    assert host.run("hotline revoke %s", made["id"]).rc == 0
    assert "revoked" in host.check_output("hotline links")
    refused = host.run("setpriv --reuid=nobody --clear-groups hotline links")
    assert refused.rc == 78
    assert "root's alone" in refused.stderr


def test_tokens_and_database_are_for_those_who_need_them(host):
    secrets = host.file("/etc/hotline/secrets/orchestrator.env")
    assert (secrets.user, secrets.mode) == ("root", 0o600)
    database = host.file("/var/lib/hotline/orchestrator/hotline.db")
    assert (database.user, database.mode & 0o007) == ("hotline", 0)
    # Nothing of the operator's is open without a token.
    assert ask(host, "/api/links")[0][0] == 401
    assert ask(host, "/api/links", headers={"Authorization": "Bearer "})[0][0] == 401


def test_what_it_remembers_outlives_a_kill(host):
    made = json.loads(host.check_output("hotline --json link --note survives"))
    host.check_output("systemctl kill --kill-who=main --signal=KILL orchestrator")
    for _ in range(100):
        if host.run("hotline links").rc == 0:
            break
        time.sleep(0.1)
    assert made["id"] in host.check_output("hotline links")
