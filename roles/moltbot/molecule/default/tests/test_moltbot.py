"""The real OpenClaw on a host: the orchestrator's agent, with the line's tools, and a way to WhatsApp.

It talks to stand_ins.py, a model's server on loopback that speaks OpenAI's chat completions.
"""

import json
import re
import time
import uuid
from pathlib import Path

import pytest

PORT, ORCHESTRATOR, STAND_INS = 28789, 15000, 28798
STATE = "/var/lib/hotline/moltbot"
SEND = {"action": "send", "channel": "whatsapp", "target": "+491701234567", "message": "Hello"}
# A turn takes seconds, and a minute on a machine that does other things as well.
TURN_S = 180
# Debian's cloud images have Python, but not always curl.
ASK = """
import sys, urllib.error, urllib.request
url, token, body = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
request = urllib.request.Request(url, body.encode() or None, headers)
try:
    answer = urllib.request.urlopen(request, timeout=120)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode(), sep="\\n")
"""


def journal(host):
    return host.run("journalctl --no-pager -u moltbot -u orchestrator -n 60").stdout


def secret(host, unit, name):
    found = re.search(
        rf'^{name}="(.*)"$', host.file(f"/etc/hotline/secrets/{unit}.env").content_string, re.MULTILINE
    )
    return found[1]


def ask(host, port, path, body=None, token=""):
    """Ask a server on the host: (status, what it answered as JSON, or as text when it is none)."""
    url, said = f"http://127.0.0.1:{port}{path}", "" if body is None else json.dumps(body)
    status, _, text = host.check_output("python3 -c %s %s %s %s", ASK, url, token, said).partition("\n")
    try:
        return int(status), json.loads(text)
    except ValueError:
        return int(status), text


@pytest.fixture(scope="module")
def line(host):
    """Asks the orchestrator, as operator."""
    token = secret(host, "orchestrator", "ORCHESTRATOR_OPERATOR_TOKEN")

    def asked(path, body=None):
        status, said = ask(host, ORCHESTRATOR, path, body, token)
        assert status < 300, (status, said, journal(host))
        return said

    return asked


@pytest.fixture(scope="module")
def gateway(host):
    """Asks the gateway for a tool."""
    token = secret(host, "moltbot", "OPENCLAW_GATEWAY_TOKEN")
    return lambda body, by=token: ask(host, PORT, "/tools/invoke", body, by)


@pytest.fixture(scope="module")
def told(host):
    """What the model and the inbox were told so far."""
    program = (Path(__file__).parent / "stand_ins.py").read_text()
    host.check_output(
        "systemd-run --quiet --collect --unit=stand-ins python3 -c %s %s", program, str(STAND_INS)
    )
    until(host, lambda: host.socket(f"tcp://127.0.0.1:{STAND_INS}").is_listening)
    yield lambda: ask(host, STAND_INS, "/")[1]
    host.run("systemctl stop stand-ins")


def until(host, holds):
    """Wait until something holds; return it."""
    end = time.monotonic() + TURN_S
    while time.monotonic() < end:
        found = holds()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(journal(host))


def hand_over(line, instruction):
    return line("/api/executions", {"instruction": instruction, "idempotency_key": str(uuid.uuid4())})["id"]


def asked_by(host, line, context):
    """The question with this context, once it is asked."""
    return until(
        host,
        lambda: next((one for one in line("/api/questions?state=open") if one["context"] == context), None),
    )


def ended(host, line, execution):
    found = until(
        host,
        lambda: next(
            iter([one] for one in [line(f"/api/executions/{execution}")] if one["ended_at"] is not None), None
        ),
    )
    return found[0]


def newest(told):
    """The messages of the last request to the model, without OpenClaw's own."""
    return [one for one in told()["model"][-1]["messages"] if one["role"] != "system"]


# ---------------------------------------------------------------------------------------------- how it stands


def test_it_runs_as_its_own_user_on_loopback_only(host):
    assert host.service("moltbot").is_running, journal(host)
    assert host.service("moltbot").is_enabled
    pid = host.check_output("systemctl show moltbot --property MainPID --value")
    assert host.check_output("ps -o user= -p %s", pid).strip() == "moltbot"
    assert host.socket(f"tcp://127.0.0.1:{PORT}").is_listening
    assert not host.socket(f"tcp://0.0.0.0:{PORT}").is_listening


def test_its_exposure_is_2_0_or_better_though_it_may_call_openat2(host):
    scored = host.run(
        "systemd-analyze security --offline=true --threshold=20 /etc/systemd/system/moltbot.service"
    )
    assert scored.rc == 0, scored.stdout[-400:]
    # A setuid file of its own would be of use to nobody: none but it and root enters its folder.
    assert host.file(STATE).mode == 0o750
    assert host.file(STATE).user == host.file(STATE).group == "moltbot"


def test_its_settings_are_roots_and_name_no_secret(host):
    config = host.file("/etc/hotline/moltbot.json")
    assert (config.user, config.group, config.mode) == ("root", "moltbot", 0o640)
    for secret_of in ("OPENCLAW_GATEWAY_TOKEN", "HOTLINE_AGENT_TOKEN", "MODEL_KEY"):
        assert secret(host, "moltbot", secret_of) not in config.content_string
    assert host.file("/etc/hotline/secrets/moltbot.env").mode == 0o600
    settings = json.loads(config.content_string)
    assert settings["tools"]["profile"] == "minimal"
    assert "gateway" in settings["tools"]["deny"]
    whatsapp = settings["channels"]["whatsapp"]
    assert (whatsapp["dmPolicy"], whatsapp["allowFrom"]) == ("allowlist", ["+491701234567"])
    assert set(settings["mcp"]["servers"]) == {"hotline", "notes"}


def test_openclaws_own_audit_finds_nothing_critical(host):
    found = json.loads(host.check_output("openclaw security audit --json"))
    assert found["summary"]["critical"] == 0, found


def test_the_agent_is_told_about_this_node_and_has_the_operators_skill(host):
    tools = host.file(f"{STATE}/workspace/TOOLS.md")
    assert tools.user == "moltbot"
    assert "systemctl status moshi@0" in tools.content_string
    assert f"127.0.0.1:{ORCHESTRATOR}" in tools.content_string
    assert "short sentences" in host.file(f"{STATE}/workspace/USER.md").content_string
    for skill in ("hotline-health", "greeting"):
        assert host.file(f"{STATE}/workspace/skills/{skill}/SKILL.md").user == "moltbot"


def test_its_schedules_have_their_zones_and_know_whom_to_tell(host):
    jobs = json.loads(host.check_output("openclaw cron list --all --json"))["jobs"]
    ours = {job["name"]: job for job in jobs if job.get("declarationKey", "").startswith("hotline:")}
    zones = {name: job["schedule"]["tz"] for name, job in ours.items()}
    assert zones == {"hotline-health": "Europe/Berlin", "evening": "America/Lima"}
    assert ours["hotline-health"]["delivery"]["mode"] == "none"
    assert ours["evening"]["delivery"]["to"] == "+491701234567"


# ----------------------------------------------------------------------------------------------- who may what


def test_nobody_gets_in_without_the_token(gateway):
    assert gateway({"tool": "message", "args": SEND}, "x" * 40)[0] == 401


@pytest.mark.parametrize("tool", ["exec", "read", "write", "gateway", "web_fetch", "browser"])
def test_its_tools_are_at_their_tightest(gateway, tool):
    assert gateway({"tool": tool, "args": {"command": "id", "path": "/etc/passwd"}})[0] == 404


# ----------------------------------------------------------------------------------------------- what it does


def test_an_instruction_runs_in_a_session_and_is_resumed_with_only_the_answer(host, line, told):
    execution = hand_over(line, "Clean up, and ask by the block.")
    question = asked_by(host, line, "12 GB, by the block")
    assert question["execution_id"] == execution
    line(f"/api/questions/{question['id']}/answer", {"text": "Yes, but keep May."})
    done = ended(host, line, execution)
    assert (done["state"], done["error"]) == ("completed", None), journal(host)
    assert done["result"].endswith("] Yes, but keep May.")
    first, asked, second = newest(told)
    assert "Clean up, and ask by the block." in first["content"]
    assert f"session=agent:main:hotline-{execution}" in first["content"]
    assert asked["role"] == "assistant"
    # OpenClaw puts the time before what it is told.
    assert re.fullmatch(r"\[[^]]+\] Yes, but keep May\.", second["content"])
    assert told()["model"][-1]["authorization"] == "Bearer secret-of-the-model"
    assert execution in [one["id"] for one in line("/api/agent/sessions")]


def test_it_asks_by_voice_with_the_lines_own_tool(host, line, told):
    execution = hand_over(line, "Clean up, and ask by the tool.")
    question = asked_by(host, line, "12 GB, by the tool")
    assert question["asked_by"] == "agent"
    line(f"/api/questions/{question['id']}/answer", {"text": 'Only "April" & May.'})
    done = ended(host, line, execution)
    assert done["state"] == "completed", (done, journal(host))
    heard = newest(told)[-1]
    assert heard["role"] == "tool"
    assert "answered" in heard["content"]
    assert "April" in heard["content"]


def test_its_health_skill_sees_how_the_line_is(host, told):
    """The schedule is run now, by hand. No engine and no nginx are here, so the line is not well."""
    jobs = json.loads(host.check_output("openclaw cron list --all --json"))["jobs"]
    job = next(job for job in jobs if job.get("declarationKey") == "hotline:hotline-health")
    host.check_output("openclaw cron run %s", job["id"])

    def seen():
        tools = [one for said in told()["model"] for one in said["messages"] if one["role"] == "tool"]
        return any("Mend: " in json.dumps(one) and "unhealthy" in json.dumps(one) for one in tools)

    until(host, seen)


def test_what_openclaw_only_queued_goes_to_the_next_service(host, line, gateway, told):
    """WhatsApp is not linked here: the gateway answers 200 and delivery_queued, which is not delivered."""
    status, said = gateway({"tool": "message", "args": SEND})
    assert (status, said["result"]["details"]["status"]) == (200, "delivery_queued"), journal(host)
    by_name = {one["sender"]: one for one in line("/api/notifications/test", {})}
    assert not by_name["openclaw"]["sent"]
    assert "delivery_queued" in by_name["openclaw"]["why"]
    assert by_name["json"]["sent"]
    rows = until(
        host, lambda: [one for one in line("/api/notifications?limit=50") if one["delivered_by"] == "json"]
    )
    refusal = rows[0]["refusals"]["openclaw"]
    assert refusal["final"]
    assert "delivery_queued" in refusal["why"]
    assert told()["inbox"]


def test_what_was_said_is_in_no_journal(host):
    for words in ("Yes, but keep May", "May the old backups go", "secret-of-the-model"):
        assert words not in host.run("journalctl --no-pager -u moltbot -u orchestrator").stdout
