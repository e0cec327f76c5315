"""What preflight refuses, with which mend, and what it lets pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from roles.preflight.filter_plugins.preflight import judge, report, specs_of

ROLES = Path(__file__).parents[2] / "roles"
MACHINE = {
    "distribution": "Debian",
    "version": "12.11",
    "architecture": "x86_64",
    "service_mgr": "systemd",
}
SETTINGS = {
    "line_port": 8998,
    "line_engine_port": 8999,
    "line_orchestrator_port": 5000,
    "moshi_device": "cuda",
    "moshi_engine": "moshi_server",
    "moshi_weights": "hub",
    "moshi_voice": "moshiko",
    "moshi_quantization": "bf16",
    "moshi_hf_repo": "kyutai/moshiko-pytorch-bf16",
    "moshi_extra_args": [],
    "moshi_conversations": 1,
}
SPECS = {
    "moshi": {
        "moshi_voice": {"type": "str", "choices": ["moshiko", "moshika"]},
        "moshi_quantization": {"type": "str", "choices": ["bf16", "q8"]},
        "moshi_device": {"type": "str", "choices": ["cuda", "cpu"]},
        "moshi_engine": {"type": "str", "choices": ["moshi_server", "duplex"]},
        "moshi_weights": {"type": "str", "choices": ["hub", "tiny"]},
        "moshi_max_failures": {"type": "int"},
        "moshi_extra_args": {"type": "list"},
        "moshi_hf_token": {"type": "str", "no_log": True},
    }
}


def place(path: str, **seen: Any) -> dict[str, Any]:
    """A path as the probe sees it on an ordinary machine."""
    return {
        "path": path,
        "existing": "/var",
        "blocked": "",
        "device": 1,
        "mount": "/",
        "free_mb": 200_000.0,
        "used_mb": 0.0,
        "read_only": False,
        "noexec": False,
        **seen,
    }


def seen(**other: Any) -> dict[str, Any]:
    """What the probe sees on an ordinary machine."""
    return {
        "effective_user": 0,
        "pid1": "systemd",
        "python": "3.11.2",
        "memory_mib": 31_900,
        "skew_s": 0.4,
        "paths": {
            "weights": place("/var/lib/hotline/models"),
            "environment": place("/opt/hotline/moshi"),
            "settings": place("/etc/hotline"),
        },
        "ports": [],
        "urls": [{"url": "https://huggingface.co/api/models/kyutai/x", "status": 200, "error": None}],
        "installed": False,
        **other,
    }


def gpu(name: str = "NVIDIA H100 80GB HBM3", memory: int | None = 81_559, cap: str = "9.0") -> dict[str, Any]:
    return {"gpus": [{"index": 0, "name": name, "memory_mib": memory, "compute_capability": cap}]}


def faults(
    probe: dict[str, Any] | None = None,
    machine: dict[str, Any] | None = None,
    card: dict[str, Any] | None = None,
    decision: dict[str, str] | None = None,
    engines: list[int] | None = None,
    **settings: Any,
) -> list[tuple[str, str]]:
    """(fault, mend) of an ordinary machine that differs in what is given."""
    verdict = judge(
        probe or seen(),
        {**MACHINE, **(machine or {})},
        card or gpu(),
        {**SETTINGS, **settings},
        specs=SPECS,
        decision=decision,
        engines=engines,
    )
    return [(each["fault"], each["mend"]) for each in verdict["faults"]]


def only(found: list[tuple[str, str]]) -> tuple[str, str]:
    assert len(found) == 1, found
    return found[0]


def test_an_ordinary_machine_passes() -> None:
    assert faults() == []


# The system


@pytest.mark.parametrize(
    ("distribution", "version"),
    [("Debian", "12"), ("Debian", "12.11"), ("Ubuntu", "22.04"), ("Ubuntu", "24.04")],
)
def test_supported_systems(distribution: str, version: str) -> None:
    assert faults(machine={"distribution": distribution, "version": version}) == []


@pytest.mark.parametrize(
    ("distribution", "version"),
    [("Debian", "11.9"), ("Debian", "13"), ("Ubuntu", "20.04"), ("Ubuntu", "24.10"), ("Rocky", "9.4")],
)
def test_other_systems_are_refused(distribution: str, version: str) -> None:
    fault, mend = only(faults(machine={"distribution": distribution, "version": version}))
    assert fault == f"{distribution} {version} is not supported"
    assert mend == "take a machine with Debian 12, Ubuntu 22.04 or Ubuntu 24.04"


def test_another_processor_is_refused() -> None:
    fault, mend = only(faults(machine={"architecture": "aarch64"}))
    assert "aarch64" in fault
    assert mend == "take an x86-64 machine"


def test_without_systemd_it_is_said_once_what_is_lost() -> None:
    machine = {**MACHINE, "service_mgr": "bash"}
    verdict = judge(seen(pid1="bash"), machine, gpu(), SETTINGS, specs=SPECS)
    assert verdict["faults"] == []
    (note,) = verdict["notes"]
    assert note.startswith("there is no systemd (PID 1 is bash)")
    assert "supervised boot" in note


def test_without_root_nothing_can_be_installed() -> None:
    fault, mend = only(faults(seen(effective_user=1000)))
    assert "root" in fault
    assert "ansible_become: true" in mend


@pytest.mark.parametrize(("python", "count"), [("3.10.12", 0), ("3.12.3", 0), ("3.9.2", 1), ("3.13.1", 1)])
def test_the_locks_are_for_certain_pythons(python: str, count: int) -> None:
    assert len(faults(seen(python=python))) == count


def test_a_host_whose_python_cannot_run_the_gpu_script_is_told_why() -> None:
    decision = {"action": "refuse", "reason": "this machine shows no GPU", "mend": "x"}
    fault, _ = only(faults(seen(gpu_error="SyntaxError: invalid syntax"), decision=decision))
    assert fault == "the script that looks for GPUs fails on this machine: SyntaxError: invalid syntax"


@pytest.mark.parametrize(("skew", "words"), [(3600.0, "3600 s ahead of"), (-300.0, "300 s behind")])
def test_a_wrong_clock_breaks_certificates(skew: float, words: str) -> None:
    fault, mend = only(faults(seen(skew_s=skew)))
    assert words in fault
    assert "timedatectl" in mend


@pytest.mark.parametrize("skew", [0.0, 20.0, -90.0, None])
def test_a_clock_that_is_right_enough_passes(skew: float | None) -> None:
    assert faults(seen(skew_s=skew)) == []


# Settings


@pytest.mark.parametrize(
    ("name", "value", "mend"),
    [
        ("moshi_voice", "moshka", "set moshi_voice: moshiko or moshika (did you mean moshika?)"),
        ("moshi_quantization", "int8", "set moshi_quantization: bf16 or q8"),
        ("moshi_quantization", "bf-16", "set moshi_quantization: bf16 or q8 (did you mean bf16?)"),
        ("moshi_engine", "vllm", "set moshi_engine: moshi_server or duplex"),
        ("moshi_device", "gpu", "set moshi_device: cuda or cpu"),
        ("moshi_weights", "big", "set moshi_weights: hub or tiny"),
    ],
)
def test_values_that_no_role_knows(name: str, value: str, mend: str) -> None:
    settings: dict[str, Any] = {name: value}
    assert faults(**settings)[0] == (f"{name}: {value!r} is unknown", mend)


def test_values_of_the_wrong_kind() -> None:
    assert only(faults(moshi_max_failures="three"))[0] == "moshi_max_failures: 'three' is not a whole number"
    fault, mend = only(faults(moshi_extra_args="--cfg-coef 1.0"))
    assert fault == "moshi_extra_args: '--cfg-coef 1.0' is not a list"
    assert mend == "write moshi_extra_args as a list: moshi_extra_args: [first, second]"


@pytest.mark.parametrize("arguments", [["--cpu-offload"], ["--half", "--cpu-offload=1"]])
def test_cpu_offload_is_refused_with_the_reason(arguments: list[str]) -> None:
    fault, mend = only(faults(moshi_extra_args=arguments))
    assert "--cpu-offload" in fault
    assert "exit code 2" in fault
    assert "moshi_quantization: q8" in mend


def test_other_extra_arguments_pass() -> None:
    assert faults(moshi_extra_args=["--cfg-coef", "1.5"]) == []


def test_a_token_of_another_shape_is_refused_and_not_shown() -> None:
    fault, mend = only(faults(moshi_hf_token="sk-proj-verysecret"))
    assert "verysecret" not in fault + mend
    assert "leave it empty" in mend
    assert faults(moshi_hf_token="") == []
    assert faults(moshi_hf_token="hf_aBcDeFgHiJkLmNoPqRsT") == []


def test_a_repository_must_be_one() -> None:
    assert only(faults(moshi_hf_repo="https://huggingface.co/kyutai/x"))[1].startswith(
        "write it as owner/name"
    )
    assert faults(moshi_hf_repo="someone/my-moshi_v1.2") == []


def test_moshi_server_carries_one_conversation() -> None:
    assert only(faults(moshi_conversations=4))[1] == "set moshi_engine: duplex, or moshi_conversations: auto"
    assert only(faults(moshi_kv_dtype="fp8"))[1] == "set moshi_engine: duplex, or take moshi_kv_dtype out"
    assert faults(moshi_conversations="auto") == []


@pytest.mark.parametrize("number", ["many", 0, -1, "4.5", 10000])
def test_conversations_are_a_number_or_auto(number: object) -> None:
    fault = only(faults(moshi_engine="duplex", moshi_conversations=number))
    assert fault[1] == "set moshi_conversations: auto, or a number from 1 on"


DUPLEX: dict[str, Any] = {"moshi_engine": "duplex", "moshi_kv_dtype": "bf16", "moshi_context_frames": 0}
RTX_3090 = gpu("NVIDIA GeForce RTX 3090", 24_576, "8.6")
RTX_4090 = gpu("NVIDIA GeForce RTX 4090", 24_564, "8.9")


@pytest.mark.parametrize(
    ("card", "settings"),
    [
        (gpu(), {"moshi_conversations": 38}),
        (gpu(), {"moshi_conversations": 76, "moshi_kv_dtype": "fp8"}),
        (gpu(), {"moshi_conversations": "auto"}),
        (RTX_4090, {"moshi_conversations": 4}),
        (RTX_4090, {"moshi_conversations": 8, "moshi_quantization": "q8"}),
        (RTX_4090, {"moshi_conversations": 16, "moshi_quantization": "q8", "moshi_kv_dtype": "fp8"}),
        (RTX_4090, {"moshi_conversations": 12}),  # they share the memory out
        (RTX_3090, {"moshi_conversations": 4}),
    ],
)
def test_conversations_that_a_card_holds(card: dict[str, Any], settings: dict[str, Any]) -> None:
    """Those of the table in docs/duplex.md among them."""
    assert faults(card=card, **DUPLEX | settings) == []


def test_conversations_that_a_card_does_not_hold() -> None:
    fault, mend = only(faults(card=RTX_4090, **DUPLEX, moshi_conversations=64))
    assert fault == (
        "64 conversations do not fit into the 24,564 MiB of GPU 0 (NVIDIA GeForce RTX 4090): "
        "4 do with full contexts"
    )
    assert mend.startswith("set moshi_conversations: 4 or auto, moshi_kv_dtype: fp8")
    assert faults(card=RTX_4090, **DUPLEX | {"moshi_context_frames": 128}, moshi_conversations=64) == []


def test_conversations_that_share_the_memory_are_told_what_it_means() -> None:
    verdict = judge(seen(), MACHINE, RTX_4090, {**SETTINGS, **DUPLEX, "moshi_conversations": 12}, specs=SPECS)
    assert "holds 4 conversations with full contexts: 12 share its memory out" in verdict["notes"][0]


def test_an_8_bit_memory_needs_a_card_that_computes_in_8_bits() -> None:
    fault, mend = only(faults(card=RTX_3090, **DUPLEX | {"moshi_kv_dtype": "fp8"}))
    assert "compute capability 8.6, moshi_kv_dtype: fp8 needs 8.9" in fault
    assert mend.startswith("set moshi_kv_dtype: bf16")


@pytest.mark.parametrize("name", ["moshi_resume_grace_s", "moshi_drain_s", "moshi_call_max_s"])
def test_no_time_is_less_than_nothing(name: str) -> None:
    assert only(faults(**{name: -1})) == (f"{name}: -1 is less than nothing", f"set {name} to 0 or more")


def test_a_setting_that_no_role_says_is_not_judged() -> None:
    assert judge(seen(), MACHINE, {}, {})["faults"] == []


@pytest.mark.parametrize(
    ("cores", "settings", "words"),
    [
        (16, {"moshi_transcribe": "auto", "moshi_conversations": "auto"}, ["of 80 callers"]),
        (16, {"moshi_transcribe": "moonshine", "moshi_conversations": 48}, ["of 80 callers"]),
        (
            2,
            {"moshi_transcribe": "auto", "moshi_conversations": 12},
            ["of 10 callers", "12 conversations", "more cores"],
        ),
        (1, {"moshi_transcribe": "auto"}, ["no words", "more"]),
        (1, {"moshi_transcribe": "moonshine"}, ["of 5 callers"]),
        (16, {"moshi_transcribe": "none"}, []),
        (16, {"moshi_transcribe": "auto", "moshi_engine": "moshi_server"}, []),
    ],
)
def test_how_many_callers_words_the_cores_carry(
    cores: int, settings: dict[str, Any], words: list[str]
) -> None:
    wanted = {**SETTINGS, "moshi_engine": "duplex", **settings}
    told = judge(seen(cores=cores), MACHINE, gpu(), wanted, specs=SPECS)["notes"]
    assert all(word in " ".join(told) for word in words)
    assert bool(told) is bool(words)


def test_a_misspelt_name_is_noticed_but_stops_nothing() -> None:
    verdict = judge(
        seen(), MACHINE, gpu(), SETTINGS, specs=SPECS, names=["moshi_quantisation", "moshi_voice"]
    )
    assert verdict["faults"] == []
    assert verdict["notes"] == [
        "moshi_quantisation is set, but no role knows it; did you mean moshi_quantization?"
    ]


def test_every_roles_own_argument_specs_are_readable() -> None:
    specs = specs_of(str(ROLES), ["preflight", "nvidia_driver", "no_such_role"])
    assert set(specs) == {"preflight", "nvidia_driver"}
    assert specs["nvidia_driver"]["nvidia_driver_branch"]["default"] == 580


# GPU memory: 18.3 GB in bf16, 10.1 GB in q8


@pytest.mark.parametrize(
    ("name", "memory", "quantization"),
    [
        ("NVIDIA H100 80GB HBM3", 81_559, "bf16"),
        ("NVIDIA GeForce RTX 4090", 24_564, "bf16"),
        ("NVIDIA L4", 23_034, "bf16"),
        ("NVIDIA RTX 4000 Ada Generation", 20_475, "bf16"),
        ("NVIDIA GeForce RTX 4080", 16_376, "q8"),
        ("NVIDIA GeForce RTX 3060", 12_288, "q8"),
        ("Tesla T4", 15_360, "q8"),
    ],
)
def test_cards_that_are_large_enough(name: str, memory: int, quantization: str) -> None:
    assert faults(card=gpu(name, memory), moshi_quantization=quantization) == []


@pytest.mark.parametrize("memory", [16_376, 15_360, 12_288])
def test_a_card_that_is_too_small_for_bf16_is_told_q8(memory: int) -> None:
    fault, mend = only(faults(card=gpu("NVIDIA GeForce RTX 4080", memory)))
    assert fault == (
        f"18,300 MiB of GPU memory are needed for bf16, GPU 0 (NVIDIA GeForce RTX 4080) has {memory:,}"
    )
    assert mend == "set moshi_quantization: q8"


@pytest.mark.parametrize("quantization", ["bf16", "q8"])
@pytest.mark.parametrize("memory", [8_192, 10_240])
def test_a_card_that_is_too_small_at_all_is_told_no(memory: int, quantization: str) -> None:
    fault, mend = only(faults(card=gpu("NVIDIA GeForce RTX 3070", memory), moshi_quantization=quantization))
    assert f"has {memory:,}" in fault
    assert mend.startswith("this card is too small for Moshi")
    assert "at least 12 GB" in mend


def test_every_card_gets_an_engine_and_is_judged() -> None:
    cards = {
        "gpus": [
            {"index": 0, "name": "NVIDIA L4", "memory_mib": 23_034, "compute_capability": "8.9"},
            {"index": 1, "name": "NVIDIA T400", "memory_mib": 4_096, "compute_capability": "7.5"},
        ]
    }
    assert "GPU 1 (NVIDIA T400)" in only(faults(card=cards, engines=[0, 1]))[0]


def test_tiny_weights_fit_everywhere() -> None:
    assert faults(card=gpu("NVIDIA T400", 4_096, "7.5"), moshi_weights="tiny") == []


def test_a_card_that_torch_has_no_code_for() -> None:
    fault, _ = only(faults(card=gpu("Tesla P40", 24_576, "6.1")))
    assert "compute capability 6.1" in fault


def test_a_card_without_bf16_in_hardware_is_noted() -> None:
    verdict = judge(
        seen(), MACHINE, gpu("Tesla T4", 15_360, "7.5"), {**SETTINGS, "moshi_quantization": "q8"}, specs=SPECS
    )
    assert verdict["faults"] == []
    assert "bf16 in software" in verdict["notes"][0]


def test_a_card_that_does_not_tell_its_memory_is_noted() -> None:
    verdict = judge(seen(), MACHINE, gpu("NVIDIA A10", None, "8.6"), SETTINGS, specs=SPECS)
    assert verdict == {
        "faults": [],
        "notes": ["GPU 0 (NVIDIA A10) does not tell its memory: it was not judged"],
    }


def test_what_the_driver_decision_refuses_is_told_here() -> None:
    decision = {"action": "refuse", "reason": "no GPU", "mend": "take one"}
    assert only(faults(decision=decision, card={})) == ("no GPU", "take one")


@pytest.mark.parametrize("action", ["leave", "install", "upgrade", "skip"])
def test_other_driver_decisions_pass(action: str) -> None:
    assert faults(decision={"action": action, "reason": "x", "mend": ""}) == []


def test_a_missing_reboot_is_a_fault_unless_it_is_allowed() -> None:
    decision = {"action": "reboot", "reason": "upgraded without a reboot", "mend": "reboot"}
    assert only(faults(decision=decision))[1] == "reboot"
    assert faults(decision=decision, nvidia_driver_reboot_ok=True) == []


# Main memory


@pytest.mark.parametrize(
    ("memory", "settings", "count"),
    [
        (7_600, {}, 0),
        (3_900, {}, 1),
        (1_900, {"moshi_device": "cpu", "moshi_weights": "tiny"}, 0),
        (900, {"moshi_device": "cpu", "moshi_weights": "tiny"}, 1),
        (7_600, {"moshi_device": "cpu"}, 1),
    ],
)
def test_main_memory(memory: int, settings: dict[str, Any], count: int) -> None:
    assert len(faults(seen(memory_mib=memory), **settings)) == count


def test_the_real_weights_on_a_cpu_are_noted() -> None:
    verdict = judge(seen(), MACHINE, {}, {**SETTINGS, "moshi_device": "cpu"}, specs=SPECS)
    assert verdict["notes"][0].startswith("moshi_device: cpu with the real weights is far slower than speech")


# Disk: 15.4 GB of weights (8 in q8), 8 GB of environment


def disks(free_gb: float, **weights: Any) -> dict[str, Any]:
    """One disk for everything."""
    return seen(
        paths={
            "weights": place("/var/lib/hotline/models", free_mb=free_gb * 1000, **weights),
            "environment": place("/opt/hotline/moshi", free_mb=free_gb * 1000),
        }
    )


def test_too_little_disk_counts_weights_and_environment_together() -> None:
    fault, mend = only(faults(disks(20)))
    assert fault == (
        "the disk at / has 20.0 GB free; 15.4 GB for /var/lib/hotline/models and 8.0 GB for "
        "/opt/hotline/moshi are needed, and 1.0 GB besides"
    )
    assert mend == ("free 4.4 GB there, or mount a larger disk, or set moshi_quantization: q8 (7.0 GB less)")


@pytest.mark.parametrize(
    ("free", "settings", "count"),
    [
        (25, {}, 0),
        (24, {}, 1),
        (18, {"moshi_quantization": "q8"}, 0),
        (17, {"moshi_quantization": "q8"}, 1),
        (4, {"moshi_device": "cpu", "moshi_weights": "tiny"}, 0),
        (2, {"moshi_device": "cpu", "moshi_weights": "tiny"}, 1),
    ],
)
def test_disk_depends_on_what_is_installed(free: float, settings: dict[str, Any], count: int) -> None:
    assert len(faults(disks(free), **settings)) == count


def test_two_disks_are_judged_apart() -> None:
    probe = seen(
        paths={
            "weights": place("/var/lib/hotline/models", device=7, mount="/var", free_mb=17_000.0),
            "environment": place("/opt/hotline/moshi", device=1, free_mb=3_000.0),
        }
    )
    fault, _ = only(faults(probe))
    assert fault.startswith("the disk at / has 3.0 GB free; 8.0 GB for /opt/hotline/moshi are needed")


def test_what_is_there_already_is_not_needed_again() -> None:
    probe = seen(
        paths={
            "weights": place("/var/lib/hotline/models", free_mb=2_000.0, used_mb=15_500.0),
            "environment": place("/opt/hotline/moshi", free_mb=2_000.0, used_mb=8_100.0),
        }
    )
    assert faults(probe) == []


def test_a_half_fetched_download_counts() -> None:
    assert faults(disks(17, used_mb=8_000.0)) == []


# Places


def test_a_read_only_file_system() -> None:
    paths = {"settings": place("/etc/hotline", read_only=True, existing="/etc")}
    fault, mend = only(faults(seen(paths=paths)))
    assert "mounted read-only" in fault
    assert "mount -o remount,rw /" in mend


def test_one_file_system_is_told_once() -> None:
    paths = {
        "weights": place("/var/lib/hotline/models", read_only=True, existing="/var/lib"),
        "state": place("/var/lib/hotline", read_only=True, existing="/var/lib"),
    }
    assert len(faults(seen(paths=paths))) == 1


def test_programs_must_be_runnable() -> None:
    paths = {"environment": place("/opt/hotline/moshi", noexec=True, mount="/opt")}
    assert "mounted noexec" in only(faults(seen(paths=paths)))[0]
    paths = {"weights": place("/var/lib/hotline/models", noexec=True)}
    assert faults(seen(paths=paths)) == []


def test_a_file_in_the_way() -> None:
    paths = {"environment": place("/opt/hotline", blocked="/opt/hotline is a file", existing="/opt/hotline")}
    assert only(faults(seen(paths=paths)))[1] == "move /opt/hotline out of the way"


# Ports


def held(port: int, **other: Any) -> dict[str, Any]:
    return {
        "port": port,
        "address": "0.0.0.0",
        "user": "bob",
        "pid": 812,
        "process": "python3",
        "unit": None,
        **other,
    }


@pytest.mark.parametrize(
    ("port", "setting"),
    [(8998, "line_port"), (8999, "line_engine_port"), (5000, "line_orchestrator_port")],
)
def test_a_port_that_somebody_else_has(port: int, setting: str) -> None:
    fault, mend = only(faults(seen(ports=[held(port)])))
    assert fault == f"port {port} is taken by python3 (pid 812, bob)"
    assert mend == f"stop it, or set {setting} to a free port"


def test_where_duplex_tells_about_itself_is_a_port_like_the_others() -> None:
    somebody = seen(ports=[held(9299)])
    assert faults(somebody, line_status_port=9299) == []
    assert only(faults(somebody, line_status_port=9299, moshi_engine="duplex"))[1].endswith(
        "or set line_status_port to a free port"
    )


def test_a_service_is_named_and_how_to_stop_it() -> None:
    fault, mend = only(
        faults(seen(ports=[held(5000, unit="registry.service", process="registry", user="root")]))
    )
    assert fault == "port 5000 is taken by registry (pid 812, registry.service, root)"
    assert mend.startswith("systemctl disable --now registry.service, or set line_orchestrator_port")


def test_a_process_of_another_namespace_is_still_told() -> None:
    fault, _ = only(faults(seen(ports=[{"port": 8998, "address": "::", "user": "root"}])))
    assert fault == "port 8998 is taken by a process that cannot be seen from here (root)"


OWN = [
    held(8998, unit="nginx.service"),
    held(8999, unit="moshi@0.service"),
    held(9000, unit="moshi@1.service"),
    held(5000, unit="orchestrator.service"),
]


def test_our_own_units_are_in_nobodys_way() -> None:
    assert faults(seen(ports=OWN, installed=True), engines=[0, 1]) == []


def test_in_a_container_a_port_is_ours_by_its_user() -> None:
    ours = {"port": 8999, "address": "127.0.0.1", "user": "moshi", "units": ["moshi@0.service"]}
    assert faults(seen(ports=[ours], installed=True)) == []
    fault, _ = only(faults(seen(ports=[ours | {"user": "bob", "units": []}], installed=True)))
    assert fault == "port 8999 is taken by a process that cannot be seen from here (bob)"


def test_a_foreign_nginx_before_the_first_installation_is_in_the_way() -> None:
    fault, _ = only(faults(seen(ports=[held(8998, unit="nginx.service")], installed=False)))
    assert "nginx.service" in fault


def test_another_unit_of_ours_on_the_wrong_port_is_in_the_way() -> None:
    assert len(faults(seen(ports=[held(5000, unit="moshi@0.service")], installed=True))) == 1


def test_engines_listen_on_loopback_only() -> None:
    assert faults(seen(ports=[held(8999, address="10.0.0.5")])) == []
    assert len(faults(seen(ports=[held(8999, address="127.0.0.1")]))) == 1
    assert len(faults(seen(ports=[held(8998, address="10.0.0.5")]))) == 1


def test_every_engine_has_a_port() -> None:
    assert len(faults(seen(ports=[held(9002)]), engines=[0, 1, 2, 3])) == 1
    assert faults(seen(ports=[held(9002)]), engines=[0]) == []


def test_one_port_for_two_of_our_own() -> None:
    fault, _ = only(faults(line_orchestrator_port=8998))
    assert fault == "line_orchestrator_port and line_port both lead to port 8998"
    assert len(faults(line_port=9001, engines=[0, 1, 2])) == 1


def test_ports_that_do_not_exist() -> None:
    assert "port 70000" in only(faults(line_port=70_000))[0]


# Network


DOWN = [
    {"url": "https://huggingface.co/api/models/kyutai/x", "status": None, "error": "Name does not resolve"}
]


def test_the_hub_must_be_reachable_as_long_as_the_weights_are_not_here() -> None:
    fault, mend = only(faults(seen(urls=DOWN)))
    assert fault.endswith("cannot be reached: Name does not resolve")
    assert "HTTPS_PROXY" in mend


def test_weights_that_are_here_need_no_network() -> None:
    assert faults(disks(50, used_mb=15_500.0) | {"urls": DOWN}) == []


def test_tiny_weights_need_no_network() -> None:
    assert faults(seen(urls=DOWN), moshi_weights="tiny") == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_repository_that_is_not_there(status: int) -> None:
    fault, mend = only(faults(seen(urls=[{"url": "https://hub/x", "status": status, "error": None}])))
    assert f"answers {status}" in fault
    assert "moshi_hf_token" in mend


def test_a_hub_that_stumbles_is_left_to_the_download_which_repeats() -> None:
    assert faults(seen(urls=[{"url": "https://hub/x", "status": 503, "error": None}])) == []


def test_apts_sources_must_be_reachable_before_the_first_installation() -> None:
    down = [
        {"url": "http://deb.debian.org/debian/dists/bookworm/InRelease", "status": None, "error": "No route"}
    ]
    fault, mend = only(faults(seen(apt_sources=down)))
    assert fault.startswith(
        "apt's source http://deb.debian.org/debian/dists/bookworm/InRelease cannot be reached"
    )
    assert "Acquire::http::Proxy" in mend
    assert faults(seen(apt_sources=down, installed=True)) == []


# Telling


def test_all_faults_are_told_together_each_with_its_mend() -> None:
    found = judge(
        seen(ports=[held(8998)], memory_mib=2_000),
        {**MACHINE, "version": "11"},
        gpu("NVIDIA GeForce RTX 3070", 8_192),
        {**SETTINGS, "moshi_voice": "moshi"},
        specs=SPECS,
    )["faults"]
    assert len(found) == 5
    text = report(found)
    assert text.startswith(
        "This machine cannot become a line yet, for 5 reasons. Nothing was changed on it.\n"
        "1. moshi_voice: 'moshi'"
    )
    assert text.count("Mend: ") == 5
    assert "Nothing was changed" not in report(found, untouched=False)
