"""Whether this machine can become a line: every fault that shows before anything is changed, with its mend.

A pure function of what was seen (library/preflight_probe.py, files/hotline_gpu.py, Ansible's facts) and what
is wanted (the variables of the other roles, as far as they are part of the play: a setting that is None is
not judged, and no default of another role is repeated here).

Sizes are measured ones: kyutai's repositories and the installed environment on disk, one conversation of
moshi.server 0.2.13 on an H100 in GPU memory.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

Settings = dict[str, Any]

SUPPORTED = {"Debian": ("12",), "Ubuntu": ("22.04", "24.04")}
PYTHONS = ((3, 10), (3, 12))  # the locks of requirements exist for these

# In use on an H100 while a call ran, the driver's own included: 17,667 and 10,625 MiB (docs/benchmarks).
GPU_MEMORY_MIB = {"bf16": 18_300, "q8": 10_800}
# MiB that duplex takes of a card without a conversation, and for each with a full context (docs/duplex.md).
DUPLEX_MIB = {"bf16": 17_000, "q8": 9_600}
CONVERSATION_MIB = {"bf16": 1_530, "fp8": 790}
CONTEXT_FRAMES = 3000
SHORT_FRAMES = 375  # half a minute: with less on average a conversation forgets what it is about
FP8 = (8, 9)  # the first compute capability with 8-bit floating point: Ada, Hopper
# On disk, in MB (10^6 bytes). A q8 repository takes Mimi and the tokenizer from the bf16 one: 0.4 GB more.
WEIGHTS_MB = {"bf16": 15_400, "q8": 8_400}
TINY_MB = 50
ENVIRONMENT_MB = {"cuda": 8_000, "cpu": 2_000}
RESERVE_MB = 1_000  # logs, packages, caches: what a file system needs to stay usable
# Main memory as the kernel counts it, in MiB; a machine sold with 8 GB shows about 7,600.
MEMORY_MIB = {"cuda": 7_000, "tiny": 1_400, "cpu": 20_000}
# CPU cores for a talking caller's words: 0.073 measured (docs/words.md), and twice that reckoned, since his
# audio takes 0.10 and comes first; the part of all that words get.
TALKING_CORES = 0.15
SHARE_FOR_WORDS = 0.75
SKEW_S = 120.0
AMPERE = 8  # the first compute capability with bf16 arithmetic in hardware
SMALLEST_TORCH = 7  # torch's CUDA 12.8 wheels bring no code for anything older than Volta
NUMBER = re.compile(r"[1-9]\d{0,3}")
SECONDS = (
    "moshi_resume_grace_s",
    "moshi_idle_timeout_s",
    "moshi_call_max_s",
    "moshi_drain_s",
    "moshi_context_frames",
)
SECRET = re.compile(r"token|secret|password|key$")


class Fault(NamedTuple):
    """What is wrong, and what mends it; both are sentences for the operator."""

    fault: str
    mend: str


def gb(megabytes: float) -> str:
    """A size for people."""
    return f"{megabytes / 1000:.1f} GB"


def listed(names: list[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def settings_known(specs: dict[str, Any], settings: Settings) -> Iterator[Fault]:
    """Settings that no role knows a meaning for, by each role's own argument_specs, long before it runs."""
    for options in specs.values():
        for name, option in options.items():
            value = settings.get(name)
            if value is None:
                if option.get("required") and name in settings:
                    yield Fault(
                        f"{name} is not set",
                        f"set it: {' '.join(str(option.get('description', '')).split())}",
                    )
                continue
            said = "" if option.get("no_log") or SECRET.search(name) else f" {value!r}"
            choices = option.get("choices")
            kind = option.get("type", "str")
            if choices and kind != "list" and value not in choices and str(value) not in map(str, choices):
                names = [str(choice) or "''" for choice in choices]
                near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.75)
                yield Fault(
                    f"{name}:{said} is unknown",
                    f"set {name}: {listed(names)}"
                    + (f" (did you mean {near[0]}?)" if near and len(names) > 1 else ""),
                )
            elif kind == "int" and not re.fullmatch(r"-?\d+", str(value)):
                yield Fault(f"{name}:{said} is not a whole number", f"set {name} to a whole number")
            elif kind == "bool" and str(value).lower() not in (
                "true",
                "false",
                "yes",
                "no",
                "on",
                "off",
                "1",
                "0",
            ):
                yield Fault(f"{name}:{said} is neither true nor false", f"set {name}: true or false")
            elif kind == "list" and not isinstance(value, list):
                yield Fault(
                    f"{name}:{said} is not a list", f"write {name} as a list: {name}: [first, second]"
                )


def settings_wise(settings: Settings) -> Iterator[Fault]:
    """Settings whose values are well formed and still cannot work."""
    extra = settings.get("moshi_extra_args") or []
    arguments = extra.split() if isinstance(extra, str) else [str(argument) for argument in extra]
    if any(argument.split("=")[0] == "--cpu-offload" for argument in arguments):
        yield Fault(
            "moshi_extra_args has --cpu-offload: kyutai's server knows no such flag (NVIDIA's PersonaPlex "
            "does) and "
            "would end at once with exit code 2",
            "take it out; against too little GPU memory set moshi_quantization: q8",
        )
    if (token := settings.get("moshi_hf_token")) and not re.fullmatch(r"hf_[A-Za-z0-9]{10,}", str(token)):
        yield Fault(
            "moshi_hf_token does not look like a Hugging Face token (hf_ and letters and digits)",
            "leave it empty, kyutai's weights need none; or make one at "
            "https://huggingface.co/settings/tokens",
        )
    repository = settings.get("moshi_hf_repo")
    if repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(repository)):
        yield Fault(
            f"moshi_hf_repo: {repository!r} is no repository of the hub",
            "write it as owner/name, for example kyutai/moshiko-pytorch-bf16",
        )
    conversations = str(settings.get("moshi_conversations", "auto"))
    if conversations != "auto" and not NUMBER.fullmatch(conversations):
        yield Fault(
            f"moshi_conversations: {conversations} is no number of conversations",
            "set moshi_conversations: auto, or a number from 1 on",
        )
    elif settings.get("moshi_engine") == "moshi_server" and conversations not in ("auto", "1"):
        yield Fault(
            f"moshi_conversations: {conversations}, but moshi_server carries one conversation per GPU: a "
            "second "
            "caller would hear silence",
            "set moshi_engine: duplex, or moshi_conversations: auto",
        )
    if settings.get("moshi_engine") == "moshi_server" and settings.get("moshi_kv_dtype") == "fp8":
        yield Fault(
            "moshi_kv_dtype: fp8, but moshi_server knows no such memory",
            "set moshi_engine: duplex, or take moshi_kv_dtype out",
        )
    for name in SECONDS:
        if re.fullmatch(r"-\d+", str(settings.get(name))):
            yield Fault(f"{name}: {settings[name]} is less than nothing", f"set {name} to 0 or more")


def system(machine: dict[str, Any], probe: dict[str, Any]) -> Iterator[Fault]:
    """Operating system, rights, Python, clock."""
    name, version = machine.get("distribution", "unknown"), str(machine.get("version", ""))
    if not any(version == known or version.startswith(known + ".") for known in SUPPORTED.get(name, ())):
        yield Fault(
            f"{name} {version} is not supported",
            "take a machine with Debian 12, Ubuntu 22.04 or Ubuntu 24.04",
        )
    if machine.get("architecture") != "x86_64":
        yield Fault(
            f"the processor is {machine.get('architecture')}, the locked packages are for x86-64",
            "take an x86-64 machine",
        )
    if probe.get("effective_user") != 0:
        yield Fault(
            "this runs without root's rights",
            "connect as root, or set ansible_become: true for a user who may use sudo",
        )
    if python := probe.get("python"):
        number = tuple(int(part) for part in str(python).split(".")[:2])
        if not PYTHONS[0] <= number <= PYTHONS[1]:
            yield Fault(
                f"/usr/bin/python3 is Python {python}, the locked packages are for 3.10 to 3.12",
                "leave the distribution's own python3 in its place",
            )
    if error := probe.get("gpu_error"):
        yield Fault(
            f"the script that looks for GPUs fails on this machine: {error}",
            "Python 3.10 or newer is needed there, as Debian 12, Ubuntu 22.04 and 24.04 have it",
        )
    skew = probe.get("skew_s")
    if skew is not None and abs(skew) > SKEW_S:
        yield Fault(
            f"the clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the controller's: "
            "certificates "
            "and tokens would be not valid yet or expired",
            "set the clock: timedatectl set-ntp true (or set the controller's, if that one is wrong)",
        )


def confinement(machine: dict[str, Any], probe: dict[str, Any]) -> Iterator[str]:
    """What is lost where supervisord has to keep the services."""
    if machine.get("service_mgr") == "systemd":
        return
    yield (
        f"there is no systemd (PID 1 is {probe.get('pid1') or machine.get('service_mgr')}): supervisord "
        "keeps the services. Each has its own user, no privileges and none to gain, its limits and its "
        "breaker as everywhere. Lost is what a container cannot give: a file system, devices and addresses "
        "of its own, and the filter of system calls; a virtual machine with systemd has them. The "
        "container's start command has to call `supervised boot` (docs/deployment.md), or the line stays "
        "down when the container is started again"
    )


def memory(settings: Settings, probe: dict[str, Any]) -> Iterator[Fault]:
    """Main memory."""
    device, weights = settings.get("moshi_device"), settings.get("moshi_weights")
    if device is None or weights is None or probe.get("memory_mib") is None:
        return
    needed = MEMORY_MIB[
        "tiny" if weights == "tiny" and device == "cpu" else device if device == "cpu" else "cuda"
    ]
    if probe["memory_mib"] < needed:
        cure = "take a machine with more memory"
        if device == "cpu" and weights != "tiny":
            cure += ", or set moshi_weights: tiny"
        yield Fault(
            f"{needed:,} MiB of main memory are needed for moshi_weights: {weights} with moshi_device: "
            f"{device}, "
            f"this machine has {probe['memory_mib']:,}",
            cure,
        )


def gpu_memory(settings: Settings, gpus: list[dict[str, Any]]) -> Iterator[Fault]:
    """GPU memory and kind, for every card: each gets an engine of its own."""
    quantization = settings.get("moshi_quantization")
    if settings.get("moshi_device") != "cuda" or settings.get("moshi_weights") != "hub":
        return
    for gpu in gpus:
        card = f"GPU {gpu['index']} ({gpu['name']})"
        capability = gpu.get("compute_capability")
        if capability and int(capability.split(".")[0]) < SMALLEST_TORCH:
            yield Fault(
                f"{card} has compute capability {capability}: torch's CUDA 12.8 build has no code for it",
                "take a machine with an Ampere or newer card (24 GB: RTX 3090, 4090, L4, A10)",
            )
            continue
        have, needed = gpu.get("memory_mib"), GPU_MEMORY_MIB.get(quantization or "")
        if have is None or needed is None or have >= needed:
            continue
        if have >= GPU_MEMORY_MIB["q8"]:
            mend = "set moshi_quantization: q8"
        else:
            mend = (
                f"this card is too small for Moshi, moshi_quantization: q8 needs {GPU_MEMORY_MIB['q8']:,} "
                "MiB too; "
                "take a machine with at least 12 GB of GPU memory (24 GB for bf16)"
            )
        yield Fault(
            f"{needed:,} MiB of GPU memory are needed for {quantization}, {card} has {have:,}",
            mend,
        )


def duplex_memory(settings: Settings, gpus: list[dict[str, Any]]) -> Iterator[Fault]:
    """What duplex wants of every card beside the weights: 8-bit arithmetic, room for conversations."""
    if settings.get("moshi_engine") != "duplex" or settings.get("moshi_device") != "cuda":
        return
    for gpu in gpus:
        card = f"GPU {gpu['index']} ({gpu['name']})"
        capability = tuple(int(part) for part in str(gpu.get("compute_capability") or "99.0").split("."))
        if settings.get("moshi_kv_dtype") == "fp8" and capability < FP8:
            yield Fault(
                f"{card} has compute capability {gpu['compute_capability']}, moshi_kv_dtype: fp8 needs 8.9",
                "set moshi_kv_dtype: bf16, or take an Ada, Hopper or newer card (RTX 4090, L4, L40S, H100)",
            )
        frames = frames_each(settings, gpu)
        if frames is not None and frames < min(SHORT_FRAMES, context_of(settings)):
            fit = most_conversations(settings, gpu)
            yield Fault(
                f"{settings['moshi_conversations']} conversations do not fit into the {gpu['memory_mib']:,} "
                f"MiB of {card}: {fit} do with full contexts",
                f"set moshi_conversations: {fit or 1} or auto, moshi_kv_dtype: fp8, moshi_quantization: q8 "
                "or a smaller moshi_context_frames",
            )


def context_of(settings: Settings) -> int:
    """Frames that a conversation remembers; kyutai's own where nothing is said."""
    given = str(settings.get("moshi_context_frames") or "0")
    return int(given) if NUMBER.fullmatch(given) else CONTEXT_FRAMES


def room(settings: Settings, gpu: dict[str, Any]) -> tuple[float, float] | None:
    """MiB of a card that are left for conversations, and what a frame of one takes; None where not known."""
    weights = DUPLEX_MIB.get(settings.get("moshi_quantization") or "")
    each = CONVERSATION_MIB.get(settings.get("moshi_kv_dtype") or "bf16")
    if weights is None or each is None or gpu.get("memory_mib") is None:
        return None
    return gpu["memory_mib"] - weights, each / CONTEXT_FRAMES


def most_conversations(settings: Settings, gpu: dict[str, Any]) -> int:
    """How many conversations with full contexts a card has memory for."""
    left, frame = room(settings, gpu) or (0.0, 1.0)
    return max(0, int(left / (frame * context_of(settings))))


def frames_each(settings: Settings, gpu: dict[str, Any]) -> int | None:
    """Frames that each of the wanted conversations can remember on average; None where not known."""
    wanted = str(settings.get("moshi_conversations"))
    known = room(settings, gpu)
    if known is None or not NUMBER.fullmatch(wanted):
        return None
    left, frame = known
    return max(0, min(context_of(settings), int(left / frame / int(wanted))))


def disk_needs(settings: Settings, paths: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What is still to be written below each path, in MB: what lies there already is not needed again."""
    device, weights = settings.get("moshi_device"), settings.get("moshi_weights")
    needs: dict[str, float] = {}
    if weights is not None:
        size = TINY_MB if weights == "tiny" else WEIGHTS_MB.get(settings.get("moshi_quantization") or "", 0)
        needs["weights"] = size
    if device in ENVIRONMENT_MB:
        needs["environment"] = ENVIRONMENT_MB[device]
    return {
        purpose: max(0.0, need - paths[purpose].get("used_mb", 0))
        for purpose, need in needs.items()
        if purpose in paths
    }


def disk(settings: Settings, paths: dict[str, dict[str, Any]]) -> Iterator[Fault]:
    """Free space, counted per file system: weights and environment often share one."""
    needs = disk_needs(settings, paths)
    systems: dict[Any, list[str]] = {}
    for purpose in needs:
        systems.setdefault(paths[purpose]["device"], []).append(purpose)
    for purposes in systems.values():
        missing = sum(needs[purpose] for purpose in purposes)
        seen = paths[purposes[0]]
        if missing == 0 or seen["free_mb"] >= missing + RESERVE_MB:
            continue
        parts = " and ".join(f"{gb(needs[purpose])} for {paths[purpose]['path']}" for purpose in purposes)
        mend = f"free {gb(missing + RESERVE_MB - seen['free_mb'])} there, or mount a larger disk"
        saved = WEIGHTS_MB["bf16"] - WEIGHTS_MB["q8"]
        if (
            "weights" in purposes
            and settings.get("moshi_quantization") == "bf16"
            and needs["weights"] > saved
        ):
            mend += f", or set moshi_quantization: q8 ({gb(saved)} less)"
        yield Fault(
            f"the disk at {seen['mount']} has {gb(seen['free_mb'])} free; {parts} are needed, and "
            f"{gb(RESERVE_MB)} "
            "besides",
            mend,
        )


def writable(paths: dict[str, dict[str, Any]]) -> Iterator[Fault]:
    """Places that cannot be written to, or not run from."""
    told = set()
    for purpose, seen in paths.items():
        at = seen["existing"]
        if seen.get("blocked"):
            yield Fault(f"{seen['path']} cannot be made: {seen['blocked']}", f"move {at} out of the way")
        elif seen.get("read_only") and at not in told:
            told.add(at)
            yield Fault(
                f"{seen['path']} cannot be written: the file system at {seen['mount']} is mounted read-only",
                f"mount it writable: mount -o remount,rw {seen['mount']} (after an error on the disk: check "
                "it first)",
            )
        elif purpose == "environment" and seen.get("noexec"):
            yield Fault(
                f"nothing may be run from {seen['path']}: {seen['mount']} is mounted noexec",
                f"mount it without noexec: mount -o remount,exec {seen['mount']}, and in /etc/fstab",
            )


def wanted_ports(settings: Settings, engines: list[int]) -> list[tuple[str, int, str]]:
    """(setting, port, unit of ours) for every port that the line will listen on."""
    ports = []
    for name, unit in (("line_port", "nginx.service"), ("line_orchestrator_port", "orchestrator.service")):
        if re.fullmatch(r"\d+", str(settings.get(name))):
            ports.append((name, int(settings[name]), unit))
    for name in (
        "line_engine_port",
        *(["line_status_port"] if settings.get("moshi_engine") == "duplex" else []),
    ):
        if re.fullmatch(r"\d+", str(settings.get(name))):
            ports += [(name, int(settings[name]) + i, f"moshi@{i}.service") for i in engines]
    return ports


def ports(settings: Settings, probe: dict[str, Any], engines: list[int]) -> Iterator[Fault]:
    """Ports out of range, wanted twice, or held by somebody else. What our own units hold is ours."""
    wanted = wanted_ports(settings, engines)
    for index, (name, port, unit) in enumerate(wanted):
        if not 0 < port < 65536:
            yield Fault(
                f"{name} leads to port {port}, which does not exist", f"set {name} between 1024 and 65000"
            )
            continue
        if twin := next((other for other, number, _ in wanted[:index] if number == port), None):
            yield Fault(
                f"{name} and {twin} both lead to port {port}", f"set one of them to another port than {port}"
            )
        for held in probe.get("ports") or []:
            # Where a port's process cannot be seen, its user is: our services have users of their own.
            ours = held.get("unit") == unit or unit in (held.get("units") or ())
            if held["port"] != port or (probe.get("installed") and ours):
                continue
            if name != "line_port" and not held["address"].startswith(("127.", "0.0.0.0", "::")):
                continue  # we listen on loopback there; another address of the machine is not in our way
            who = f"{held.get('process') or 'a process that cannot be seen from here'}"
            details = [
                f"pid {held['pid']}" if held.get("pid") else "",
                held.get("unit") or "",
                held.get("user") or "",
            ]
            described = ", ".join(detail for detail in details if detail)
            stop = f"systemctl disable --now {held['unit']}" if held.get("unit") else "stop it"
            yield Fault(
                f"port {port} is taken by {who}" + (f" ({described})" if described else ""),
                f"{stop}, or set {name} to a free port",
            )
            break


def network(settings: Settings, probe: dict[str, Any], paths: dict[str, dict[str, Any]]) -> Iterator[Fault]:
    """Whether packages and weights can be fetched, as long as they are not here yet."""
    for seen in probe.get("apt_sources") or []:
        if seen.get("error") and not probe.get("installed"):
            yield Fault(
                f"apt's source {seen['url']} cannot be reached: {seen['error']}",
                "let the machine out to it (DNS, firewall), tell apt of a proxy (Acquire::http::Proxy in "
                "/etc/apt/apt.conf.d), or take the source out of /etc/apt/sources.list",
            )
    if not (settings.get("moshi_weights") == "hub" and disk_needs(settings, paths).get("weights", 0) > 0):
        return
    for seen in probe.get("urls") or []:
        if seen.get("error"):
            yield Fault(
                f"the weights are not on this machine yet, and {seen['url']} cannot be reached: "
                f"{seen['error']}",
                "let the machine out to it (DNS, firewall, or a proxy through the environment variables "
                "HTTPS_PROXY "
                "and NO_PROXY), copy the weights to it beforehand, or set moshi_weights: tiny to try the "
                "line",
            )
        elif seen.get("status") in (401, 403, 404):
            yield Fault(
                f"the hub answers {seen['status']} for {seen['url']}: there is no such repository, or it is "
                "not public",
                "check moshi_hf_repo, moshi_voice and moshi_quantization; for a private repository set "
                "moshi_hf_token",
            )


def words(settings: Settings, cores: int | None, engines: int) -> Iterator[str]:
    """How many callers' words the processor keeps up with."""
    wish = settings.get("moshi_transcribe", "none")
    if settings.get("moshi_engine") != "duplex" or wish == "none" or not cores:
        return
    if wish == "auto" and cores < 2:
        yield (
            "one CPU core is too little to write down what callers say: the line hears no words. For them "
            "take a machine with more, or set moshi_transcribe: moonshine"
        )
        return
    most = max(1, int(cores * SHARE_FOR_WORDS / TALKING_CORES))
    wanted = str(settings.get("moshi_conversations", "auto"))
    yield (
        f"{cores} CPU cores write down the words of {most} callers who talk at the same time"
        + (
            f", and {int(wanted) * engines} conversations are wanted: when more talk, some have no words for "
            "a while. Mend: more cores, or moshi_transcribe: none"
            if NUMBER.fullmatch(wanted) and int(wanted) * engines > most
            else ""
        )
    )


def notes(
    settings: Settings, gpus: list[dict[str, Any]], unknown: list[str], known: list[str]
) -> Iterator[str]:
    """What the operator should know, though it stops nothing."""
    if settings.get("moshi_device") == "cpu" and settings.get("moshi_weights") == "hub":
        yield (
            "moshi_device: cpu with the real weights is far slower than speech: the line will answer, but "
            "not in time"
        )
    if settings.get("moshi_device") == "cuda" and settings.get("moshi_weights") == "hub":
        for gpu in gpus:
            card = f"GPU {gpu['index']} ({gpu['name']})"
            capability = gpu.get("compute_capability")
            if capability and SMALLEST_TORCH <= int(capability.split(".")[0]) < AMPERE:
                yield f"{card} computes bf16 in software: speech in real time is not certain"
            if gpu.get("memory_mib") is None:
                yield f"{card} does not tell its memory: it was not judged"
            frames = frames_each(settings, gpu) if settings.get("moshi_engine") == "duplex" else None
            if frames is not None and frames < context_of(settings):
                yield (
                    f"{card} holds {most_conversations(settings, gpu)} conversations with full contexts: "
                    f"{settings['moshi_conversations']} share its memory out as they grow, "
                    f"{frames * 0.08:.0f} s each when all talk"
                )
    for name in unknown:
        near = difflib.get_close_matches(name, known, n=1)
        yield f"{name} is set, but no role knows it" + (f"; did you mean {near[0]}?" if near else "")


def judge(
    probe: dict[str, Any],
    machine: dict[str, Any],
    gpu: dict[str, Any],
    settings: Settings,
    *,
    specs: dict[str, Any] | None = None,
    decision: dict[str, str] | None = None,
    engines: list[int] | None = None,
    names: list[str] | None = None,
) -> dict[str, list[Any]]:
    """All faults (each with its mend) and all notes.

    `decision` is gpu_driver's; `engines` the indices of the engines to come; `names` all variables set.
    """
    paths = probe.get("paths") or {}
    faults = [*settings_known(specs or {}, settings), *settings_wise(settings), *system(machine, probe)]
    if decision and decision["action"] in ("refuse", "reboot") and not probe.get("gpu_error"):
        allowed = decision["action"] == "reboot" and settings.get("nvidia_driver_reboot_ok") is True
        faults += [] if allowed else [Fault(decision["reason"], decision["mend"])]
    faults += [
        *gpu_memory(settings, gpu.get("gpus") or []),
        *duplex_memory(settings, gpu.get("gpus") or []),
        *memory(settings, probe),
        *writable(paths),
        *disk(settings, paths),
        *ports(settings, probe, engines or [0]),
        *network(settings, probe, paths),
    ]
    known = [name for options in (specs or {}).values() for name in options]
    unknown = sorted(
        name
        for name in names or []
        if name not in known and any(name.startswith(f"{role}_") for role in specs or {})
    )
    return {
        "faults": [fault._asdict() for fault in faults],
        "notes": [
            *confinement(machine, probe),
            *words(settings, probe.get("cores"), len(engines or [0])),
            *notes(settings, gpu.get("gpus") or [], unknown, known),
        ],
    }


def port_numbers(settings: Settings, engines: list[int]) -> list[int]:
    """The ports that the line will listen on."""
    return [port for _, port, _ in wanted_ports(settings, engines)]


def specs_of(roles_directory: str, roles: list[str]) -> dict[str, dict[str, Any]]:
    """The options of each of these roles, out of its meta/argument_specs.yml on the controller."""
    specs = {}
    for role in dict.fromkeys(roles):
        path = Path(roles_directory, role, "meta", "argument_specs.yml")
        if path.exists():
            specs[role] = (
                yaml.safe_load(path.read_text())["argument_specs"].get("main", {}).get("options", {})
            )
    return specs


def report(faults: list[dict[str, str]], untouched: bool = True) -> str:
    """The faults as the operator reads them; `untouched` while this run has changed nothing."""
    count = len(faults)
    why = "one reason" if count == 1 else f"{count} reasons"
    head = f"This machine cannot become a line yet, for {why}."
    head += " Nothing was changed on it." if untouched else ""
    lines = [f"{number}. {each['fault']}.\n   Mend: {each['mend']}." for number, each in enumerate(faults, 1)]
    return "\n".join([head, *lines])


class FilterModule:
    """Ansible's door to this module."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """One filter for each thing that the role's tasks ask for."""
        return {
            "preflight_specs": specs_of,
            "preflight_ports": port_numbers,
            "preflight_judge": judge,
            "preflight_report": report,
        }
