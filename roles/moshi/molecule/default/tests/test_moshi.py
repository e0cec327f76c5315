"""What the role moshi promises, on a real host with the tiny weights: a server that answers, and its unit."""

import asyncio
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import sphn

ROOT = Path(__file__).parents[5]
sys.path.insert(0, str(ROOT))  # testinfra's own run does not read the repository's settings of pytest

from tests.roles.moshi_hub import Repository, running  # noqa: E402

STATE = "/var/lib/hotline/moshi/0"
UNIT = "moshi@0"
DUPLEX = {"moshi_engine": "duplex"}


def properties(host, *names):
    shown = host.check_output("systemctl show %s " + " ".join(f"-p {name}" for name in names), UNIT)
    return dict(line.split("=", 1) for line in shown.splitlines())


def wait_for(host, wanted, seconds=90):
    """Wait until systemd reports these properties."""
    end = time.monotonic() + seconds
    while (seen := properties(host, *wanted)) != wanted:
        assert time.monotonic() < end, f"{seen} instead of {wanted}; its journal:\n{journal(host)}"
        time.sleep(0.5)


def comes_back(host, *kill):
    """Kill the engine in one way and wait until another process answers in its place."""
    before = properties(host, "MainPID")["MainPID"]
    host.check_output(*kill, before)
    end = time.monotonic() + 90
    while properties(host, "MainPID")["MainPID"] in {before, "0"}:
        assert time.monotonic() < end, journal(host)
        time.sleep(0.5)
    wait_for(host, {"ActiveState": "active", "SubState": "running"})


def journal(host, *options):
    return host.check_output("journalctl --no-pager -o cat -u %s " + " ".join(options), UNIT)


def state(host, name):
    return json.loads(host.check_output("cat %s", f"{STATE}/{name}"))


def count_anew(host):
    """Both counts of starts begin again: systemd's, and the one that breaker.py keeps beside it."""
    host.check_output("systemctl reset-failed %s; rm -f %s", UNIT, f"{STATE}/starts.json")


@pytest.fixture
def fresh(host):
    """An engine that runs, with all its starts before it."""
    count_anew(host)
    host.check_output("systemctl restart %s", UNIT)
    wait_for(host, {"ActiveState": "active", "SubState": "running"})
    yield host
    count_anew(host)
    host.check_output("systemctl restart %s", UNIT)


def talk(frames=25, every_s=0.0, enough=None):
    """Call the engine on its own port (the host shares the machine's network) and return what came back.

    moshi.server takes frames as fast as they come. duplex drops what is more than 400 ms late or early, so it
    is spoken to in real time, and a busy machine may keep it from some of the frames.
    """
    enough = frames - 3 if enough is None else enough

    async def call():
        writer, reader = sphn.OpusStreamWriter(24_000), sphn.OpusStreamReader(24_000)
        heard, words = 0, 0
        address = "http://127.0.0.1:8999/api/chat"
        async with aiohttp.ClientSession() as session, session.ws_connect(address) as socket:
            assert (await socket.receive(timeout=30)).data == b"\x00"
            noise = np.random.default_rng(1).uniform(-0.3, 0.3, (frames, 1920)).astype(np.float32)
            for frame in noise:
                await socket.send_bytes(b"\x01" + writer.append_pcm(frame))
                await asyncio.sleep(every_s)
            while heard < enough * 1920:
                message = await socket.receive(timeout=30)
                assert isinstance(message.data, bytes), message
                if message.data[0] == 1:
                    heard += reader.append_bytes(message.data[1:]).shape[-1]
                words += message.data[0] == 2
        return heard, words

    return asyncio.run(call())


def run_role(host, **variables):
    """The scenario's own converge once more, with other variables."""
    inventory = "/var/lib/hotline-hosts/m-moshi/inventory.yml"
    given = {
        "line_host": "localhost",
        "moshi_device": "cpu",
        "moshi_weights": "tiny",
        "moshi_engine": "moshi_server",
        "role": "moshi",
    }
    return subprocess.run(
        [
            "ansible-playbook",
            "-i",
            inventory,
            ".config/molecule/converge.yml",
            "-e",
            json.dumps(given | variables),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


# ---------------------------------------------------------------------------------------------- it answers


def test_it_runs_and_is_started_at_every_boot(host):
    assert host.service(UNIT).is_running
    assert host.service(UNIT).is_enabled
    assert host.socket("tcp://127.0.0.1:8999").is_listening
    assert not host.socket("tcp://0.0.0.0:8999").is_listening


def test_audio_comes_back_for_audio(fresh):
    heard, _ = talk()
    assert heard >= 22 * 1920


def test_the_journal_holds_the_call_and_nothing_of_what_was_said(fresh):
    since = fresh.check_output("date +%s")
    _, words = talk()
    assert words > 0
    said = journal(fresh, f"--since=@{since}")
    assert "accepted connection" in said
    assert "text token" not in said
    assert "frame handled" not in said
    assert "text token" not in fresh.check_output("cat %s/run.log", STATE)


def test_its_program_is_the_unchanged_server_with_local_files(host):
    pid = properties(host, "MainPID")["MainPID"]
    command = host.check_output("tr '\\0' ' ' </proc/%s/cmdline", pid)
    assert "/opt/hotline/moshi/bin/launch.py --host 127.0.0.1 --port 8999 --device cpu" in command
    assert command.rstrip().endswith("--static none")
    assert "--moshi-weight /var/lib/hotline/models/serving/moshi.safetensors" in command
    installed = host.check_output(
        "/opt/hotline/uv/bin/uv pip freeze --python /opt/hotline/moshi/venv/bin/python"
    )
    assert "moshi==0.2.13" in installed.splitlines()


def test_it_says_what_it_serves(host):
    served = json.loads(host.check_output("cat /var/lib/hotline/models/serving/weights.json"))
    assert served["repository"] == "tiny"
    assert state(host, "phase.json")["phase"] == "ready"


# --------------------------------------------------------------------------------------------- the sandbox


def test_the_sandbox_holds_as_systemd_reports_it(host):
    held = {
        "User": "moshi", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes",
        "PrivateTmp": "yes", "ProtectKernelTunables": "yes", "ProtectKernelModules": "yes",
        "ProtectControlGroups": "yes", "ProtectClock": "yes", "ProtectHostname": "yes",
        "ProtectProc": "invisible", "RestrictNamespaces": "yes", "LockPersonality": "yes",
        "RestrictRealtime": "yes", "RestrictSUIDSGID": "yes", "RemoveIPC": "yes", "CapabilityBoundingSet": "",
        "DevicePolicy": "closed", "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
        "IPAddressDeny": "0.0.0.0/0 ::/0", "IPAddressAllow": "127.0.0.0/8 ::1/128",
    }  # fmt: skip
    seen = properties(host, *held)
    assert {name: set(value.split()) for name, value in seen.items()} == {
        name: set(value.split()) for name, value in held.items()
    }


def test_the_sandbox_holds_as_the_kernel_reports_it(host):
    pid = properties(host, "MainPID")["MainPID"]
    status = host.check_output("cat /proc/%s/status", pid)
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status
    tried = host.run(
        "nsenter -t %s -m -- touch /opt/hotline/moshi/bin/x /var/lib/hotline/models/x /etc/x", pid
    )
    assert tried.stderr.count("Read-only file system") == 3, (
        "not even root could write there, where the engine is"
    )


def test_it_can_compile_and_run_what_it_compiled(host):
    """torch.compile writes libraries into the cache and loads them: it may write and run there."""
    pid = properties(host, "MainPID")["MainPID"]
    code = (
        "import os, shutil, subprocess; os.setgroups([]); os.setgid({0}); os.setuid({0}); "
        "shutil.copy('/bin/true', '/var/cache/hotline/moshi/true'); "
        "subprocess.run(['/var/cache/hotline/moshi/true'], check=True); "
        "os.remove('/var/cache/hotline/moshi/true')"
    ).format(host.user("moshi").uid)
    host.check_output("nsenter -t %s -m -- /usr/bin/python3 -c %s", pid, code)


def test_its_exposure_is_2_0_or_better(host):
    scored = host.run(
        "systemd-analyze security --offline=true --threshold=20 /etc/systemd/system/moshi@.service"
    )
    assert scored.rc == 0, scored.stdout[-400:]


def test_it_cannot_change_its_own_code_or_weights(host):
    for path in (
        "opt/hotline/moshi/bin/launch.py",
        "opt/hotline/moshi/venv/bin",
        "var/lib/hotline/models/tiny/config.json",
    ):
        file = host.file(f"/{path}")
        assert file.user == "root"
        assert not file.mode & 0o022


def test_system_folders_kept_their_owners(host):
    for path in ("/etc", "/usr", "/var", "/opt", "/var/lib", "/var/cache"):
        assert (host.file(path).user, host.file(path).group) == ("root", "root"), path


# --------------------------------------------------------------------------------------------- the breaker


def test_a_killed_engine_comes_back_by_itself(fresh):
    comes_back(fresh, "kill -9 %s")
    assert talk(10)[0] > 0
    assert "killed: Somebody sent SIGKILL to the engine. (failure 1, 3 starts are allowed in" in journal(
        fresh
    )
    assert state(fresh, "last_failure.json")["signal"] == "SIGKILL"
    assert not fresh.file(f"{STATE}/failure.json").exists, "an engine that answers has no failure"


def test_a_segmentation_fault_is_told_from_a_kill(fresh):
    comes_back(fresh, "kill -SEGV %s")
    assert state(fresh, "last_failure.json")["reason"] == "segmentation_fault"
    assert "Fatal Python error: Segmentation fault" in journal(fresh)


def test_an_engine_without_weights_stays_down_after_three_failures_and_says_why(fresh):
    fresh.check_output("mv /var/lib/hotline/models/serving /var/lib/hotline/models/elsewhere")
    try:
        count_anew(fresh)
        fresh.run("systemctl restart %s", UNIT)
        wait_for(fresh, {"ActiveState": "failed"})
    finally:
        fresh.check_output("mv /var/lib/hotline/models/elsewhere /var/lib/hotline/models/serving")
    failure = state(fresh, "failure.json")
    assert failure["reason"] == "missing_weights"
    assert failure["failures"] == 3
    assert failure["open"] is True, "what it says agrees with what systemd does"
    assert "ansible-playbook site.yml" in failure["detail"]
    assert state(fresh, "phase.json")["phase"] == "failed"
    healed = run_role(fresh)
    assert healed.returncode == 0, healed.stdout[-2000:]
    assert fresh.service(UNIT).is_running


def test_a_deliberate_stop_is_no_failure(fresh):
    began = time.monotonic()
    fresh.check_output("systemctl stop %s", UNIT)
    assert time.monotonic() - began < 15
    assert properties(fresh, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert state(fresh, "phase.json")["phase"] == "stopped"
    assert not fresh.file(f"{STATE}/failure.json").exists


# ----------------------------------------------------------------------------------------------------- bad
# input, healing


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"moshi_extra_args": ["--cpu-offload"]}, ["does not know --cpu-offload", "--no_fuse_lora"]),
        ({"moshi_extra_args": ["--cfg-coef", "much"]}, ["invalid float value: 'much'", "correct moshi_ext"]),
        ({"moshi_extra_args": ["--port=1", "--half"]}, ["--port (engine N listens on line_engine_port + N"]),
        ({**DUPLEX, "moshi_extra_args": ["--slots=9"]}, ["--slots (set moshi_conversations)"]),
        ({**DUPLEX, "moshi_extra_args": ["--cfg-coef", "2"]}, ["duplex does not know --cfg-coef"]),
        ({"moshi_voice": "moshikoto"}, ["value of moshi_voice must be one of: moshiko, moshika"]),
        ({"moshi_sampling": {"temperature": 1}}, ["temperature"]),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_anything_is_changed(host, variables, says):
    before = properties(host, "MainPID")["MainPID"]
    refused = run_role(host, **variables)
    assert refused.returncode != 0
    told = " ".join(refused.stdout.split())
    for words in says:
        assert words in told, refused.stdout[-3000:]
    assert properties(host, "MainPID")["MainPID"] == before


def test_extra_arguments_and_sampling_reach_the_server(host):
    done = run_role(host, moshi_extra_args=["--half"], moshi_sampling={"temp": 0.5, "top_k_text": 5})
    assert done.returncode == 0, done.stdout[-2000:]
    pid = properties(host, "MainPID")["MainPID"]
    assert host.check_output("tr '\\0' ' ' </proc/%s/cmdline", pid).rstrip().endswith("--half")
    config = json.loads(host.check_output("cat /var/lib/hotline/models/serving/config.json"))
    assert config["lm_gen_config"] == {"temp": 0.5, "top_k_text": 5}
    assert talk(10)[0] > 0
    assert run_role(host).returncode == 0


def test_duplex_is_one_variable_away_and_carries_several(host):
    """The same unit, weights, breaker and sandbox; its own program and port, and callers at the same time."""
    many = {**DUPLEX, "moshi_conversations": 2, "moshi_extra_args": ["--codec-workers", "1"]}
    done = run_role(host, **many)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Fetch and install the packages" not in done.stdout
    again = run_role(host, **many)
    assert "changed=0" in again.stdout, again.stdout[-6000:] + journal(host, "--lines=60")
    assert host.socket("tcp://127.0.0.1:9299").is_listening
    assert not host.socket("tcp://0.0.0.0:9299").is_listening
    pid = properties(host, "MainPID")["MainPID"]
    command = host.check_output("tr '\\0' ' ' </proc/%s/cmdline", pid)
    assert "/launch_duplex.py --host 127.0.0.1 --port 8999" in command
    assert "--slots 2 --kv-dtype bf16 --resume-grace 15" in command
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(talk, 25, 0.08, 5) for _ in range(2)]
        assert all(call.result()[0] >= 5 * 1920 for call in calls)
    assert state(host, "phase.json")["phase"] == "ready"
    comes_back(host, "kill -9 %s")
    assert state(host, "last_failure.json")["signal"] == "SIGKILL"
    assert talk(25, 0.08, 5)[0] >= 5 * 1920
    scored = host.run(
        "systemd-analyze security --offline=true --threshold=20 /etc/systemd/system/moshi@.service"
    )
    assert scored.rc == 0, scored.stdout[-400:]
    assert run_role(host).returncode == 0
    assert "/launch.py" in host.check_output(
        "tr '\\0' ' ' </proc/%s/cmdline", properties(host, "MainPID")["MainPID"]
    )


def test_a_damaged_environment_and_damaged_weights_are_healed(host):
    """What a full disk, a hand or a kill in the middle leaves behind (more of it: the role python_venv)."""
    site = "/opt/hotline/moshi/venv/lib/python3.11/site-packages"
    host.check_output("rm -r %s/einops %s/sphn; : >%s/moshi/server.py", site, site, site)
    host.check_output("rm -r /var/lib/hotline/models/tiny; rm /opt/hotline/moshi/bin/launch.py")
    healed = run_role(host)
    assert healed.returncode == 0, healed.stdout[-2000:]
    host.check_output("systemctl restart %s", UNIT)
    assert talk(10)[0] > 0
    calm = run_role(host)
    assert "changed=0" in calm.stdout, calm.stdout[-2000:]


def test_weights_of_a_hub_come_through_the_role(host, tmp_path):
    """A stand-in hub on loopback holds the tiny weights under kyutai's name; the connection breaks midway."""
    names = ("config.json", "model.safetensors", "mimi.safetensors", "mimi.json", "tokenizer.model")
    files = {}
    for name in names:
        host.check_output("cp /var/lib/hotline/models/tiny/%s /root/handed-over", name)
        files[name] = Path("/var/lib/hotline-hosts/m-moshi/root/root/handed-over").read_bytes()
    with running({"kyutai/moshiko-pytorch-bf16": Repository(files)}) as hub:
        hub.faults["model.safetensors"] = ["break 1000000"]
        fetched = run_role(host, moshi_weights="hub", moshi_hf_endpoint=hub.url)
        assert fetched.returncode == 0, fetched.stdout[-3000:]
        commit = hub.repositories["kyutai/moshiko-pytorch-bf16"].commit
    served = json.loads(host.check_output("cat /var/lib/hotline/models/serving/weights.json"))
    assert served["commit"] == commit
    assert talk(10)[0] > 0
    calm = run_role(host, moshi_weights="hub", moshi_hf_endpoint=hub.url)
    assert "changed=0" in calm.stdout, "the hub is gone, and nobody asks it"
    other = {"moshi_voice": "moshika", "moshi_hf_token": "hf_" + "x" * 20}
    refused = run_role(host, moshi_weights="hub", moshi_hf_endpoint=hub.url, **other)
    assert refused.returncode != 0
    assert "name resolution, firewall" in " ".join(refused.stdout.split())
    assert "hf_xxxx" not in refused.stdout + journal(host)
    secret = host.file("/etc/hotline/secrets/moshi-weights.env")
    assert (secret.user, secret.mode) == ("root", 0o600)
    assert run_role(host).returncode == 0
