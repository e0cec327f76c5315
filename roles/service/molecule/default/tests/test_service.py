"""What the internal role `service` promises of every service that it installs."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[5]


def properties(host, unit, *names):
    shown = host.check_output("systemctl show %s " + " ".join(f"-p {n}" for n in names), unit)
    return dict(line.split("=", 1) for line in shown.splitlines())


def run_role(host, **variables):
    """The scenario's own converge once more, with other variables."""
    inventory = "/var/lib/hotline-hosts/m-service/inventory.yml"
    playbook = ROOT / "roles/service/molecule/default/converge.yml"
    wanted = {"line_host": "localhost", "sample_instances": [0, 1], "sample_code": "1"} | variables
    return subprocess.run(
        ["ansible-playbook", "-i", inventory, playbook, "-e", json.dumps(wanted)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("instance", [0, 1])
def test_an_instance_answers_on_its_own_port(host, instance):
    assert host.service(f"sample@{instance}").is_running
    assert host.service(f"sample@{instance}").is_enabled
    assert host.socket(f"tcp://127.0.0.1:{18999 + instance}").is_listening


def test_a_start_ends_when_the_port_answers(host):
    host.check_output("systemctl restart sample@0")
    assert host.socket("tcp://127.0.0.1:18999").is_listening


def test_environment_reaches_the_process_and_nobody_else(host):
    pid = properties(host, "sample@0", "MainPID")["MainPID"]
    environment = host.check_output("tr '\\0' '\\n' </proc/%s/environ", pid)
    assert 'OF_NULL=a "quoted" \\ word' in environment
    assert "TOKEN=do-not-tell" in environment
    assert "MOSHI_URL=https://localhost:8998" in environment
    elsewhere = "cat /etc/systemd/system/sample@.service; systemctl show sample@0; ps -ef; journalctl -n 500"
    assert "do-not-tell" not in host.check_output(elsewhere)
    secret = host.file("/etc/hotline/secrets/sample.env")
    assert (secret.user, secret.mode) == ("root", 0o600)


def test_the_sandbox_holds(host):
    expected = {
        "NoNewPrivileges": "yes",
        "ProtectSystem": "strict",
        "ProtectHome": "yes",
        "PrivateDevices": "yes",
        "DevicePolicy": "closed",
        "MemoryDenyWriteExecute": "yes",
        "RestrictNamespaces": "yes",
        "CapabilityBoundingSet": "",
        "User": "sample",
    }
    assert properties(host, "sample@0", *expected) == expected
    pid = properties(host, "sample@0", "MainPID")["MainPID"]
    status = host.check_output("cat /proc/%s/status", pid)
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status


def test_its_exposure_is_2_0_or_better(host):
    scored = host.run(
        "systemd-analyze security --offline=true --threshold=20 /etc/systemd/system/sample@.service"
    )
    assert scored.rc == 0, scored.stdout[-400:]


def test_a_killed_service_comes_back_and_the_breaker_opens_after_three_failures(host):
    host.check_output("systemctl reset-failed sample@1; systemctl restart sample@1")
    for failure in range(1, 4):
        # `restart` above was the first of the three starts that the window allows
        host.check_output("systemctl kill --signal=KILL sample@1")
        deadline = time.monotonic() + 20
        expected = "active" if failure < 3 else "failed"
        while (
            properties(host, "sample@1", "ActiveState")["ActiveState"] != expected
            and time.monotonic() < deadline
        ):
            time.sleep(0.3)
        assert properties(host, "sample@1", "ActiveState")["ActiveState"] == expected, (
            f"after failure {failure}"
        )
    again = run_role(host)
    assert again.returncode == 0, again.stdout[-2000:]
    assert host.service("sample@1").is_running, "the next run is the human who mends: it closes the breaker"


def test_an_interrupted_run_is_healed(host):
    """A run wrote the unit and died before the restart: the next one sees that something older runs."""
    unit = "/etc/systemd/system/sample@.service"
    older = "s/^Environment=HOTLINE_DEPLOYED=.*/Environment=HOTLINE_DEPLOYED=feed/"
    host.check_output(f"cp {unit} /root/kept; sed -i '{older}' {unit}")
    host.check_output(f"systemctl daemon-reload; systemctl restart sample@0; mv /root/kept {unit}")
    before = properties(host, "sample@0", "MainPID")["MainPID"]
    healed = run_role(host)
    assert healed.returncode == 0, healed.stdout[-2000:]
    assert properties(host, "sample@0", "MainPID")["MainPID"] != before
    calm = run_role(host)
    assert "changed=0" in calm.stdout, calm.stdout[-2000:]


def test_new_code_restarts_and_an_unwanted_instance_goes(host):
    before = properties(host, "sample@0", "MainPID")["MainPID"]
    assert run_role(host, sample_code="2", sample_instances=[0]).returncode == 0
    assert properties(host, "sample@0", "MainPID")["MainPID"] != before
    assert not host.service("sample@1").is_running
    assert not host.service("sample@1").is_enabled
    assert run_role(host).returncode == 0


def test_a_service_that_cannot_start_says_why(host):
    folder, broken = "/etc/systemd/system/sample@0.service.d", "/usr/bin/python3 -c 'print(1/0)'"
    lines = "[Service]\\nExecStart=\\nExecStart=%s\\n"
    host.check_output(f"mkdir -p {folder}; printf '{lines}' \"{broken}\" >{folder}/broken.conf")
    try:
        refused = run_role(host, sample_code="3")
    finally:
        host.check_output("rm -r /etc/systemd/system/sample@0.service.d; systemctl daemon-reload")
    assert refused.returncode != 0
    assert "ZeroDivisionError" in refused.stdout
    assert "journalctl" in refused.stdout
    assert run_role(host).returncode == 0


def test_it_refuses_to_be_called_directly(tmp_path):
    playbook = tmp_path / "direct.yml"
    playbook.write_text(
        yaml.safe_dump(
            [
                {
                    "name": "Direct",
                    "hosts": "localhost",
                    "connection": "local",
                    "roles": [{"role": "service", "service_name": "x"}],
                }
            ]
        )
    )
    refused = subprocess.run(
        ["ansible-playbook", str(playbook)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "is internal" in refused.stdout


def test_a_distributions_unit_keeps_its_own_file(host):
    assert host.file("/etc/systemd/system/systemd-logind.service.d/hotline.conf").contains("SAMPLE=1")
    assert "SAMPLE=1" in properties(host, "systemd-logind", "Environment")["Environment"]
