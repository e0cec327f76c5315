"""OpenClaw on a host: it answers on loopback, says what it did not send, keeps what its agent wrote."""

import json

PORT = 28789
TOKEN = "0123456789012345678901234567890123456789"  # noqa: S105 - the scenario's
SEND = {"action": "send", "channel": "whatsapp", "target": "+491701234567", "message": "Hello"}


def journal(host):
    return host.run("journalctl --no-pager -u moltbot -n 40").stdout


def invoke(host, token, body):
    done = host.run(
        "curl -s -m 60 -w '\\n%%{http_code}' -H %s -H 'Content-Type: application/json' -d %s http://127.0.0.1:%s/tools/invoke",
        f"Authorization: Bearer {token}",
        json.dumps(body),
        str(PORT),
    )
    text, _, status = done.stdout.rpartition("\n")
    return int(status), text


def test_it_runs_as_its_own_user_on_loopback_only(host):
    assert host.service("moltbot").is_running, journal(host)
    assert host.service("moltbot").is_enabled
    pid = host.check_output("systemctl show moltbot --property MainPID --value")
    assert host.check_output("ps -o user= -p %s", pid).strip() == "moltbot"
    assert host.socket(f"tcp://127.0.0.1:{PORT}").is_listening
    assert not host.socket(f"tcp://0.0.0.0:{PORT}").is_listening


def test_its_settings_are_roots_and_name_no_secret(host):
    config = host.file("/etc/hotline/moltbot.json")
    assert (config.user, config.group, config.mode) == ("root", "moltbot", 0o640)
    assert TOKEN not in config.content_string
    assert "secret" not in config.content_string
    assert host.file("/etc/hotline/secrets/moltbot.env").mode == 0o600
    tools = json.loads(config.content_string)["tools"]
    assert tools["profile"] == "minimal"
    assert "gateway" in tools["deny"]


def test_an_account_that_is_not_linked_is_told_from_one_that_sent(host):
    status, text = invoke(host, TOKEN, {"tool": "message", "args": SEND})
    assert status == 200, text + journal(host)
    assert json.loads(text)["result"]["details"]["status"] == "delivery_queued"


def test_nobody_gets_in_without_the_token(host):
    assert invoke(host, "x" * 40, {"tool": "message", "args": SEND})[0] == 401


def test_programs_cannot_be_run_through_it(host):
    status, _ = invoke(host, TOKEN, {"tool": "exec", "args": {"command": "id"}})
    assert status == 404


def test_the_agent_is_told_about_this_node(host):
    tools = host.file("/var/lib/hotline/moltbot/workspace/TOOLS.md")
    assert tools.user == "moltbot"
    assert "systemctl status moshi@0" in tools.content_string
    assert host.file("/var/lib/hotline/moltbot/workspace/skills/hotline-health/SKILL.md").exists
