"""What the role `service` promises where there is no systemd: the same, by supervisord and supervised.py."""

import json
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[5]
CALL = (
    "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/hotline/turn.sock'); "
    "s.sendall(b'hello\\n'); print(s.recv(200).decode())"
)


def told(host, name):
    """State and main process of a service."""
    state, main = host.check_output("supervised state %s", name).split()[:2]
    return state, int(main)


def await_state(host, name, state, seconds=20):
    """Wait for a state; the main process of then."""
    deadline = time.monotonic() + seconds
    while (now := told(host, name))[0] != state:
        assert time.monotonic() < deadline, (
            f"{name} is {now}\n" + host.run("tail -20 /var/log/hotline/*").stdout
        )
        time.sleep(0.2)
    return now[1]


def run_role(host, **variables):
    """The scenario's own converge once more, with other variables."""
    inventory = "/var/lib/hotline-hosts/m-service-container/inventory.yml"
    playbook = ROOT / "roles/service/molecule/default/converge.yml"
    wanted = {"line_host": "localhost", "sample_instances": [0, 1], "sample_code": "1"} | variables
    return subprocess.run(
        ["ansible-playbook", "-i", inventory, playbook, "-e", json.dumps(wanted)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_there_is_no_systemd_here(host):
    assert host.check_output("cat /proc/1/comm") == "bash"
    assert not host.exists("systemctl")


@pytest.mark.parametrize("instance", [0, 1])
def test_an_instance_answers_on_its_own_port(host, instance):
    assert told(host, f"sample@{instance}")[0] == "active"
    assert host.socket(f"tcp://127.0.0.1:{18999 + instance}").is_listening


def test_a_start_ends_when_the_port_answers(host):
    host.check_output("supervised restart sample@0")
    assert host.socket("tcp://127.0.0.1:18999").is_listening


def test_environment_reaches_the_process_and_nobody_else(host):
    _, pid = told(host, "sample@0")
    # Root of a container may not look into what runs as others; the user may.
    as_sample = "setpriv --reuid=sample --regid=sample --clear-groups"
    environment = host.check_output(f"{as_sample} cat /proc/%s/environ | tr '\\0' '\\n'", str(pid))
    assert 'OF_NULL=a "quoted" \\ word' in environment
    assert "TOKEN=do-not-tell" in environment
    assert "MOSHI_URL=https://localhost:8998" in environment
    assert "the-key-of-this-instance-alone" not in environment, "what PID 1 was given is not for services"
    elsewhere = "cat /etc/hotline/units/* /etc/hotline/supervisor/* /var/log/hotline/*; ps -ef"
    assert "do-not-tell" not in host.check_output(elsewhere)
    secret = host.file("/etc/hotline/secrets/sample.env")
    assert (secret.user, secret.mode) == ("root", 0o600)
    assert host.file("/var/log/hotline/sample@0.log").mode == 0o640


def test_what_of_the_sandbox_a_container_can_give_holds(host):
    _, pid = told(host, "sample@0")
    status = host.check_output("cat /proc/%s/status", str(pid))
    user, group, readers = (host.check_output(f"getent {what} | cut -d: -f3") for what in
                            ("passwd sample", "group sample", "group readers"))  # fmt: skip
    assert f"Uid:\t{user}\t{user}\t{user}\t{user}" in status
    assert f"Groups:\t{' '.join(sorted((group, readers), key=int))}" in status
    assert "NoNewPrivs:\t1" in status
    assert "Umask:\t0027" in status
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert f"Cap{kind}:\t0000000000000000" in status
    hard = int(host.check_output("bash -c 'ulimit -Hn'"))
    assert f"{min(65536, hard)}  " in host.check_output("grep 'open files' /proc/%s/limits", str(pid))
    state = host.file("/var/lib/hotline/sample")
    assert (state.user, state.mode) == ("sample", 0o750)
    assert host.file("/var/lib/hotline/sample/before-0").user == "sample"


def test_a_killed_service_comes_back_and_the_breaker_opens_after_three_failures(host):
    host.check_output("supervised reset sample@1; supervised restart sample@1")
    for failure in range(1, 4):
        # `restart` above was the first of the three starts that the window allows
        before = await_state(host, "sample@1", "active")
        host.check_output("kill -9 %s", str(before))
        if failure < 3:
            deadline = time.monotonic() + 20
            while told(host, "sample@1") in (("active", before), ("activating", 0)):
                assert time.monotonic() < deadline
                time.sleep(0.1)
    await_state(host, "sample@1", "failed")
    log = host.check_output("cat /var/log/hotline/sample@1.log")
    assert "signal\nkilled\nKILL\n" in log, "the command that comes last was told how it ended"
    assert "was started 3 times within 300 s and stays down" in log
    again = run_role(host)
    assert again.returncode == 0, again.stdout[-2000:]
    assert told(host, "sample@1")[0] == "active", "the next run is the human who mends: it closes the breaker"


def test_what_a_service_started_ends_with_it(host):
    """A keeper that is killed takes the service along, and supervisord brings both back."""
    _, before = told(host, "sample@0")
    keeper = host.check_output("ps -o ppid= -p %s", str(before)).strip()
    host.check_output("kill -9 %s", keeper)
    deadline = time.monotonic() + 20
    while (after := told(host, "sample@0"))[0] != "active" or after[1] == before:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert host.run("kill -0 %s", str(before)).rc != 0


def test_a_socket_starts_its_service_for_each_connection_as_its_user(host):
    door = host.file("/run/hotline/turn.sock")
    assert (door.user, door.group, door.mode) == ("root", "callers", 0o660)
    for _ in range(2):
        assert host.check_output("python3 -c %s", CALL).strip() == "sample-turn do-not-tell hello"
    assert "do-not-tell" not in host.check_output("cat /etc/hotline/units/*; ps -ef")


def test_an_interrupted_run_is_healed(host):
    """A run wrote the unit and died before the restart: the next one sees that something older runs."""
    unit = "/etc/hotline/units/sample@.json"
    host.check_output('sed -i \'s/"deployed": ".*"/"deployed": "feed"/\' %s', unit)
    healed = run_role(host)
    assert healed.returncode == 0, healed.stdout[-2000:]
    calm = run_role(host)
    assert "changed=0" in calm.stdout, calm.stdout[-2000:]
    host.check_output('cp %s /root/kept; sed -i \'s/"deployed": ".*"/"deployed": "feed"/\' %s', unit, unit)
    host.check_output("supervised restart sample@0; mv /root/kept %s", unit)
    _, before = told(host, "sample@0")
    assert run_role(host).returncode == 0
    assert told(host, "sample@0")[1] != before


def test_new_code_restarts_and_an_unwanted_instance_goes(host):
    _, before = told(host, "sample@0")
    assert run_role(host, sample_code="2", sample_instances=[0]).returncode == 0
    assert told(host, "sample@0")[1] != before
    assert not host.socket("tcp://127.0.0.1:19000").is_listening
    assert "sample@1" not in host.check_output("supervised status")
    assert run_role(host).returncode == 0


def test_a_service_that_cannot_start_says_why(host):
    host.check_output('supervised reset sample@1; sed -i \'s/"-m"/"-c"/\' /etc/hotline/units/sample@.json')
    refused = host.run("supervised restart sample@1; supervised stop sample@1")
    assert "sample@1 did not start (exit-code)" in refused.stderr
    assert "/var/log/hotline/sample@1.log says why" in refused.stderr
    assert "NameError" in host.check_output("cat /var/log/hotline/sample@1.log")
    assert run_role(host).returncode == 0
    assert told(host, "sample@1")[0] == "active"


def test_a_container_that_was_started_again_has_its_services_back(host):
    """The provider stops and starts it: `supervised boot` in its start command brings everything up."""
    host.check_output("echo supervised boot >/root/onstart.sh")
    kit = ROOT / "tests/hosts/host.py"
    for word in ("stop", "start"):
        subprocess.run([kit, word, "m-service-container"], check=True, capture_output=True)
    for name in ("sample@0", "sample@1", "distributed", "sample-turn"):
        await_state(host, name, "active", seconds=40)
    calm = run_role(host)
    assert "changed=0" in calm.stdout, calm.stdout[-2000:]
