"""Services of ours where no systemd is: what a unit file says there, done here, one process per service.

On rented containers PID 1 is the provider's. supervisord keeps `supervised run NAME` alive, and that keeps
the service as its unit file would: state and cache folders, environment files, commands before and after, a
user of its own without privileges to gain, readiness by port, an end with nothing left over, and systemd's
rule for how often a service may be started. What a container cannot give (namespaces, device policy, system
call filters) it does not pretend to.

    supervised boot              start supervisord unless it runs; for the container's start command
    supervised status            every service and how it is
    supervised start|stop|restart NAME
    supervised reset NAME        forget the starts that were counted (systemctl reset-failed)
    supervised state NAME        state, main process, what that was deployed as, what is deployed now
    supervised update            take in new and changed programs, let go of removed ones
    supervised run NAME          by supervisord alone

A service is /etc/hotline/units/NAME.json (NAME@.json for instances NAME@1), made by the role `service`.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import re
import resource
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import xmlrpc.client
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

UNITS = Path("/etc/hotline/units")
SUPERVISOR = Path("/etc/hotline/supervisor")
RUN = Path("/run/hotline")
LOGS = Path("/var/log/hotline")
TEMPORARY = Path("/var/tmp")  # noqa: S108 - each folder there is its service's alone
BIN = Path(sys.prefix) / "bin"

# How `run` ends: supervisord starts it again unless it ends with STAY_DOWN (`exitcodes` in program.conf.j2).
AGAIN, STAY_DOWN = 1, 3
CANNOT_EXECUTE = 203  # systemd.exec(5), "Process exit codes"
CLEAN_SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)  # systemd.service(5)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONNECTIONS = 32
PR_SET_CHILD_SUBREAPER = 36


class SupervisedError(Exception):
    """A sentence for whoever called."""


@dataclass(frozen=True)
class Unit:
    """One service, as the role declares it; `instance` is what stands for %i."""

    command: list[str]
    user: str
    description: str = ""
    literal: bool = False  # the command's words are meant as they stand
    groups: list[str] = field(default_factory=list)
    command_pre: list[str] = field(default_factory=list)
    command_post_stop: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    environment_files: list[str] = field(default_factory=list)
    state_directory: str = ""
    cache_directory: str = ""
    directory_mode: str = "0750"
    home: str = ""
    umask: str = "0027"
    files_max: int = 65536
    failures_max: int = 5
    failures_window_s: float = 60
    restart_delay_s: float = 1
    start_timeout_s: float = 60
    stop_timeout_s: float = 15
    ready_port: str = ""
    after: list[str] = field(default_factory=list)
    socket: str = ""
    socket_group: str = ""
    deployed: str = ""
    instance: str = ""


def load(name: str) -> Unit:
    """Read a service's declaration."""
    base, at, instance = name.partition("@")
    try:
        return Unit(**json.loads((UNITS / f"{base}{at}.json").read_text()), instance=instance)
    except FileNotFoundError:
        raise SupervisedError(
            f"there is no service {name} here. Mend: supervised status lists them"
        ) from None


# ------------------------------------------------------------------------------------- what a unit file means


def read_environment(text: str) -> dict[str, str]:
    """Read an environment file of ours: NAME="value" in each line, with backslashes before \" and \\."""
    found = re.findall(r'(?m)^([A-Za-z_]\w*)="(.*)"$', text)
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in found}


def expand(word: str, instance: str, environment: Mapping[str, str]) -> str:
    """Put instance and environment into a word: %i and ${NAME}, as systemd does; an unknown name is empty."""
    word = re.sub(r"%(.)", lambda m: {"i": instance, "%": "%"}.get(m[1], m[0]), word)
    return re.sub(r"\$\{(\w+)\}", lambda m: environment.get(m[1], ""), word)


def environment_of(unit: Unit) -> dict[str, str]:
    """Everything that the service's processes find in their environment, and nothing of our own."""
    account = pwd.getpwnam(unit.user)
    found = {
        "PATH": PATH,
        "LANG": "C.UTF-8",
        "USER": unit.user,
        "LOGNAME": unit.user,
        "HOME": unit.home or account.pw_dir,
        "SHELL": account.pw_shell,
        "INVOCATION_ID": uuid.uuid4().hex,
    }
    for name, folder in (("STATE_DIRECTORY", state_of(unit)), ("CACHE_DIRECTORY", cache_of(unit))):
        if folder:
            found[name] = str(folder)
    found |= {name: expand(value, unit.instance, {}) for name, value in unit.environment.items()}
    for file in unit.environment_files:
        path = Path(expand(file.removeprefix("-"), unit.instance, {}))
        try:
            found |= read_environment(path.read_text())
        except FileNotFoundError:
            if not file.startswith("-"):
                raise SupervisedError(f"{path} is missing. Mend: run site.yml again") from None
    return found | {"HOTLINE_DEPLOYED": unit.deployed}


def state_of(unit: Unit) -> Path | None:
    """Return its folder below /var/lib."""
    return Path("/var/lib", unit.state_directory) if unit.state_directory else None


def cache_of(unit: Unit) -> Path | None:
    """Return its folder below /var/cache."""
    return Path("/var/cache", unit.cache_directory) if unit.cache_directory else None


def make_folders(unit: Unit) -> None:
    """Make its folders and give them to its user, as StateDirectory= and CacheDirectory= do."""
    for folder in (state_of(unit), cache_of(unit)):
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.chown(folder, unit.user, unit.user)
            folder.chmod(int(unit.directory_mode, 8))


@dataclass(frozen=True)
class Starts:
    """Starts within the window that began at `begin` (seconds of the monotonic clock)."""

    begin: float
    count: int


def counted(before: Starts | None, most: int, window: float, now: float) -> Starts | None:
    """Count a start by systemd's rule (src/basic/ratelimit.c); None if it is one too many."""
    if before is None or now - before.begin > window:
        return Starts(now, 1)
    return Starts(before.begin, before.count + 1) if before.count < most else None


def ended_as(status: int, *, late: bool) -> dict[str, str]:
    """Say how a process ended in systemd's words (systemd.exec(5), "SERVICE_RESULT")."""
    if os.WIFEXITED(status):
        number = os.WEXITSTATUS(status)
        how, what, result = "exited", str(number), "exit-code" if number else "success"
    else:
        number = os.WTERMSIG(status)
        how = "dumped" if os.WCOREDUMP(status) else "killed"
        what = signal.Signals(number).name.removeprefix("SIG")
        result = "success" if number in CLEAN_SIGNALS else "core-dump" if how == "dumped" else "signal"
    return {"SERVICE_RESULT": "timeout" if late else result, "EXIT_CODE": how, "EXIT_STATUS": what}


def without_privileges(unit: Unit) -> list[str]:
    """Return the words before a command that make it the service's user, for good, and end it with us."""
    if unit.user == "root":  # a distribution's service, which gives up its privileges itself
        return ["/usr/bin/setpriv", "--pdeathsig=TERM", "--"]
    account = pwd.getpwnam(unit.user)
    groups = [account.pw_gid, *(grp.getgrnam(name).gr_gid for name in unit.groups)]
    return [
        "/usr/bin/setpriv",
        f"--reuid={account.pw_uid}",
        f"--regid={account.pw_gid}",
        f"--groups={','.join(map(str, groups))}",
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--pdeathsig=KILL",
        "--",
    ]


# ----------------------------------------------------------------------------------------------- one service


class Watch:
    """Signals and ended processes, taken in one at a time: nothing happens behind the back of `run`."""

    def __init__(self) -> None:
        self.asked_to_stop = False
        self.ended: dict[int, int] = {}
        self._signals = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        import ctypes  # noqa: PLC0415 - here only: what a service leaves behind becomes our child

        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def wait(self, seconds: float) -> None:
        """Wait for the next of them, at most so long."""
        came = signal.sigtimedwait(self._signals, max(seconds, 0))
        if came and came.si_signo in (signal.SIGTERM, signal.SIGINT):
            self.asked_to_stop = True
        with contextlib.suppress(ChildProcessError):
            while (pair := os.waitpid(-1, os.WNOHANG))[0]:
                self.ended[pair[0]] = pair[1]

    def until_ended(self, pid: int, seconds: float) -> bool:
        """Wait for the end of a process; say whether it came in time."""
        deadline = time.monotonic() + seconds
        while pid not in self.ended and time.monotonic() < deadline:
            self.wait(deadline - time.monotonic())
        return pid in self.ended

    def clear_up(self) -> None:
        """Kill everything that still runs below us, as systemd empties a control group."""
        deadline = time.monotonic() + 10
        while (left := list(descendants(os.getpid()))) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.wait(0.1)


def descendants(pid: int) -> Iterator[int]:
    """Return every process below this one."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text().rpartition(")")[2].split()
            if words[0] != "Z":
                parents[int(stat.parent.name)] = int(words[1])
    below = {pid}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    return iter(below - {pid})


def spawn(
    words: Sequence[str], unit: Unit, environment: Mapping[str, str], *, stdin: Any = subprocess.DEVNULL
) -> int:
    """Start a process in a session of its own, with the unit's limits; its standard output is the log."""

    def limits() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        for wanted in (unit.files_max, min(unit.files_max, hard)):  # more than `hard` needs a privilege
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
                return

    started = subprocess.Popen(
        words,
        stdin=stdin,
        env=dict(environment),
        cwd=state_of(unit) if unit.socket else "/",
        start_new_session=True,
        umask=int(unit.umask, 8),
        preexec_fn=limits,  # noqa: PLW1509 - this process has one thread
    )
    started.returncode = 0  # it is reaped by Watch
    return started.pid


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(content))
    draft.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read it back; empty if there is none."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}


def tell(name: str, unit: Unit, state: str, main: int = 0, result: str = "") -> None:
    """Write down how the service is; `result` says that this life of it is over, and how."""
    told = {"state": state, "keeper": os.getpid(), "main": main, "result": result}
    write(RUN / "units" / f"{name}.json", told | {"deployed": unit.deployed})


def answers(port: int) -> bool:
    """Say whether something accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def await_others(names: Sequence[str], watch: Watch) -> None:
    """Wait until the services that come first are up or have failed, a minute at most."""
    deadline = time.monotonic() + 60
    for name in (other.removesuffix(".service") for other in names):
        while (
            (SUPERVISOR / f"{name}.conf").exists()
            and read(RUN / "units" / f"{name}.json").get("state") not in ("active", "failed")
            and time.monotonic() < deadline
            and not watch.asked_to_stop
        ):
            watch.wait(0.2)


def before(unit: Unit, environment: Mapping[str, str], watch: Watch) -> dict[str, str] | None:
    """Run the commands that come first; how one ended that must not fail. `+`: as root, `-`: may fail."""
    for line in unit.command_pre:
        marks = re.match(r"[+-]*", line)
        prefix = marks[0] if marks else ""
        words = [expand(word, unit.instance, environment) for word in shlex.split(line[len(prefix) :])]
        if shutil.which(words[0]) is None:
            if "-" in prefix:
                continue
            return {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": str(CANNOT_EXECUTE)}
        pid = spawn([*([] if "+" in prefix else without_privileges(unit)), *words], unit, environment)
        late = not watch.until_ended(pid, unit.start_timeout_s)
        watch.clear_up()
        watch.until_ended(pid, 10)
        if "-" not in prefix and (late or watch.ended.get(pid, 1)):
            return ended_as(watch.ended.get(pid, 1), late=late)
    return None


def attend(name: str, unit: Unit, environment: Mapping[str, str], watch: Watch) -> dict[str, str]:
    """Start the service and stay with it to its end; how it ended."""
    words = [w if unit.literal else expand(w, unit.instance, environment) for w in unit.command]
    if shutil.which(words[0]) is None:
        print(f"{words[0]} is not there or cannot be run", file=sys.stderr, flush=True)
        return {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": str(CANNOT_EXECUTE)}
    main = spawn([*without_privileges(unit), *words], unit, environment)
    port = expand(unit.ready_port, unit.instance, environment)
    deadline = time.monotonic() + unit.start_timeout_s
    ready = late = False
    while main not in watch.ended and not watch.asked_to_stop and not late:
        if not ready and (not port or answers(int(port))):
            ready = True
        late = not ready and time.monotonic() > deadline
        tell(name, unit, "active" if ready else "activating", main)
        watch.wait(3600 if ready else 0.2)
    if main not in watch.ended:
        tell(name, unit, "deactivating", main)
        os.kill(main, signal.SIGTERM)
        late = not watch.until_ended(main, unit.stop_timeout_s) or late
    watch.clear_up()
    watch.until_ended(main, 10)
    return ended_as(watch.ended.get(main, int(signal.SIGKILL)), late=late)


def run(name: str) -> int:
    """One life of a service, from its first command to its last."""
    watch = Watch()
    os.umask(0o022)
    try:
        unit = load(name)
    except SupervisedError as error:
        print(error, file=sys.stderr, flush=True)
        return STAY_DOWN
    if unit.socket:
        return listen(name, unit, watch)
    await_others(unit.after, watch)
    counter = RUN / "units" / f"{name}.starts"
    seen = read(counter)
    starts = counted(
        Starts(**seen) if seen else None, unit.failures_max, unit.failures_window_s, time.monotonic()
    )
    if starts is None:
        print(
            f"{name} was started {unit.failures_max} times within {unit.failures_window_s:g} s and stays "
            f"down. Mend the reason above, then: supervised reset {name}; supervised start {name}",
            file=sys.stderr,
            flush=True,
        )
        tell(name, unit, "failed", result="start-limit-hit")
        return STAY_DOWN
    write(counter, starts.__dict__)
    tell(name, unit, "activating")
    make_folders(unit)
    # In the place of PrivateTmp=: nobody else's, and gone afterwards.
    forget_temporary(name)
    own_tmp = tempfile.mkdtemp(prefix=f"hotline-{name}-", dir=TEMPORARY)
    shutil.chown(own_tmp, unit.user)
    try:
        environment = {"TMPDIR": own_tmp, **environment_of(unit)}
        ended = before(unit, environment, watch) or attend(name, unit, environment, watch)
        tell(name, unit, "deactivating", result="" if watch.asked_to_stop else ended["SERVICE_RESULT"])
        after(unit, environment | ended, watch)
    except (OSError, ValueError, LookupError, SupervisedError) as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        ended = {"SERVICE_RESULT": "resources"}
    finally:
        shutil.rmtree(own_tmp, ignore_errors=True)
    if not watch.asked_to_stop:
        print(f"{name} ended: {', '.join(ended.values())}", file=sys.stderr, flush=True)
        tell(name, unit, "activating", result=ended["SERVICE_RESULT"])
        deadline = time.monotonic() + unit.restart_delay_s
        while not watch.asked_to_stop and time.monotonic() < deadline:
            watch.wait(deadline - time.monotonic())
    if watch.asked_to_stop:
        tell(name, unit, "inactive")
        return 0
    return AGAIN


def forget_temporary(name: str) -> None:
    """Remove what a life that was cut off left of its temporary folder."""
    for left in TEMPORARY.glob(f"hotline-{name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def after(unit: Unit, environment: Mapping[str, str], watch: Watch) -> None:
    """Run the commands that come last, whatever came before."""
    for line in unit.command_post_stop:
        words = [expand(word, unit.instance, environment) for word in shlex.split(line)]
        pid = spawn([*without_privileges(unit), *words], unit, environment)
        watch.until_ended(pid, unit.stop_timeout_s)
        watch.clear_up()


def listen(name: str, unit: Unit, watch: Watch) -> int:
    """Start the command once per connection to a socket, which is its standard input (Accept=yes)."""
    make_folders(unit)
    path = Path(unit.socket)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    running: set[int] = set()
    with socket.socket(socket.AF_UNIX) as door:
        os.umask(0o177)
        door.bind(str(path))
        shutil.chown(path, "root", unit.socket_group)
        path.chmod(0o660)
        door.listen(CONNECTIONS)
        tell(name, unit, "active", os.getpid())
        while not watch.asked_to_stop:
            came = select.select([door], [], [], 0.5)[0]
            watch.wait(0)
            running -= watch.ended.keys()
            watch.ended.clear()
            if not came:
                continue
            connection, _ = door.accept()
            with connection:
                if len(running) < CONNECTIONS:
                    words = [*without_privileges(unit), *unit.command]
                    running.add(spawn(words, unit, environment_of(unit), stdin=connection))
    path.unlink(missing_ok=True)
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + unit.stop_timeout_s
    while running - watch.ended.keys() and time.monotonic() < deadline:
        watch.wait(deadline - time.monotonic())
    watch.clear_up()
    tell(name, unit, "inactive")
    return 0


# ------------------------------------------------------------------------------------- with supervisord


def supervisord() -> Any:
    """Return supervisord's own interface."""
    from supervisor.xmlrpc import SupervisorTransport  # noqa: PLC0415 - the tests of the rest do without

    transport = SupervisorTransport(None, None, f"unix://{RUN}/supervisor.sock")
    return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor


def is_up() -> bool:
    """Say whether supervisord runs."""
    try:
        supervisord().getState()
    except (OSError, xmlrpc.client.Error):
        return False
    return True


def boot() -> None:
    """Start supervisord, and with it every service, unless it runs. After the container's own start."""
    if is_up():
        return
    # A container's /run may be its disk: what stands there about processes is of an earlier life.
    shutil.rmtree(RUN / "units", ignore_errors=True)
    RUN.mkdir(mode=0o755, exist_ok=True)
    LOGS.mkdir(mode=0o750, parents=True, exist_ok=True)
    subprocess.run(
        [str(BIN / "supervisord"), "--configuration", str(SUPERVISOR / "supervisord.ini")],
        check=True,
        cwd="/",
        env={"PATH": PATH, "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not is_up():
        if time.monotonic() > deadline:
            raise SupervisedError(f"supervisord did not start. Mend: {LOGS}/supervisord.log says why")
        time.sleep(0.1)
    print("supervisord started")


def update() -> None:
    """Take in what programs there are now; without any supervisord has nothing to do and ends."""
    if not is_up():
        return
    its = supervisord()
    [[added, changed, removed]] = its.reloadConfig()
    for name in [*changed, *removed]:
        its.stopProcessGroup(name, True)
        its.removeProcessGroup(name)
    for name in [*added, *changed]:
        its.addProcessGroup(name)
    for name in removed:
        forget_temporary(name)
        for file in (RUN / "units").glob(f"{name}.*"):
            file.unlink()
    if added or changed or removed:
        print("updated:", *added, *changed, *removed)
    if not list(SUPERVISOR.glob("*.conf")):
        its.shutdown()
        deadline = time.monotonic() + 20
        while is_up() and time.monotonic() < deadline:
            time.sleep(0.1)


def info(name: str) -> dict[str, Any]:
    """Return what supervisord says about a service; an empty answer if it does not know it."""
    try:
        return dict(supervisord().getProcessInfo(name))
    except (OSError, xmlrpc.client.Error):
        return {}


def seen_state(name: str) -> tuple[str, int, str]:
    """Return state, main process and how its last life ended; what its keeper wrote counts while it lives."""
    told, known = read(RUN / "units" / f"{name}.json"), info(name)
    state, main, result = str(told.get("state", "")), int(told.get("main", 0)), str(told.get("result", ""))
    if known.get("statename") in ("RUNNING", "STARTING", "STOPPING"):
        return (state, main, result) if told.get("keeper") == known["pid"] else ("activating", 0, "")
    if known.get("statename") == "EXITED" and state != "failed":
        return "activating", 0, result  # between two lives
    return ("failed" if state == "failed" else "inactive"), 0, result


def start(name: str) -> None:
    """Start a service and wait until it is up; raise SupervisedError if it does not get there."""
    unit = load(name)
    boot()
    update()
    fresh = info(name).get("statename") not in ("RUNNING", "STARTING")
    if fresh:
        (RUN / "units" / f"{name}.json").unlink(missing_ok=True)
        with contextlib.suppress(xmlrpc.client.Fault):  # it may have started by itself meanwhile
            supervisord().startProcess(name, False)
    deadline = time.monotonic() + unit.start_timeout_s + 30
    while time.monotonic() < deadline:
        state, _, result = seen_state(name)
        if state == "active":
            return
        if state == "failed" or result:
            raise SupervisedError(
                f"{name} did not start ({result or state}). Mend: {LOGS}/{name}.log says why"
            )
        time.sleep(0.2)
    raise SupervisedError(f"{name} did not start in time. Mend: {LOGS}/{name}.log says why")


def stop(name: str) -> None:
    """Stop a service; it starts again with the container."""
    if not is_up():
        return
    with contextlib.suppress(xmlrpc.client.Fault):  # not running, or not known
        supervisord().stopProcess(name, True)


def restart(name: str) -> None:
    """Stop and start."""
    stop(name)
    start(name)


def reset(name: str) -> None:
    """Forget how often it was started."""
    for file in (RUN / "units").glob(f"{name}.starts"):
        file.unlink()


def state(name: str) -> None:
    """Print the state, the main process, what it was deployed as and what is deployed now."""
    now, main, _ = seen_state(name)
    running = read(RUN / "units" / f"{name}.json").get("deployed", "none") if main else "none"
    print(now, main, running, load(name).deployed)


def status() -> None:
    """Print every service and how it is."""
    for file in sorted(SUPERVISOR.glob("*.conf")):
        now, main, result = seen_state(file.stem)
        print(f"{file.stem:<20} {now:<13}{f'pid {main}' if main else result}")


def fail(message: str) -> NoReturn:
    """End with a sentence."""
    sys.exit(f"supervised: {message}")


def main(words: Sequence[str]) -> int:
    """Read the command line."""
    alone = {"boot": boot, "update": update, "status": status}
    named = {"start": start, "stop": stop, "restart": restart, "reset": reset, "state": state}
    try:
        match list(words):
            case ["run", name]:
                return run(name)
            case [verb] if verb in alone:
                alone[verb]()
            case [verb, *names] if verb in named and names:
                for name in names:
                    named[verb](name)
            case _:
                fail(__doc__ or "")
    except SupervisedError as error:
        fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
