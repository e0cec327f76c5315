"""Engines are seen from outside: the kernel's table of sockets, and two files."""

from __future__ import annotations

import json
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from orchestrator.engines import (
    CLOSE_WAIT,
    ESTABLISHED,
    LISTEN,
    Condition,
    Engine,
    EngineFiles,
    Failure,
    Peer,
    Phase,
    Socket,
    SocketsUnreadableError,
    address_of,
    parse_sockets,
    read_files,
    read_sockets,
    sentence_of,
    sockets_on,
)

# Debian 12, Linux 6.1: an engine with one caller, a time-wait of an earlier one, sshd.
TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode                                                     
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17385 1 ffff9c8d00d10000 100 0 0 10 0                     
   1: 0100007F:2327 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 24741 1 0000000000000000 100 0 0 10 0                     
   2: 0100007F:2327 0100007F:AF64 01 00000000:00000000 00:00000000 00000000   998        0 24755 1 0000000000000000 20 4 30 10 -1                    
   3: 0100007F:AF64 0100007F:2327 01 00000000:00000000 02:000006F2 00000000    33        0 24754 2 0000000000000000 20 4 30 10 -1                    
   4: 0100007F:2327 0100007F:AF60 06 00000000:00000000 03:00000A7B 00000000     0        0 0 3 0000000000000000                                      
   5: 0A02000F:0016 0302000A:E2F4 01 00000024:00000000 01:00000014 00000000     0        0 20877 4 ffff9c8d01a3a300 20 4 31 10 17                    
"""  # noqa: E501, W291 - the kernel pads its lines
# The same machine's tcp6: nginx on ::, a caller over IPv4 to a socket of both families, one over ::1.
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:2326 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 24000 1 0000000000000000 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:2326 0000000000000000FFFF00000100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 24001 1 0000000000000000 20 4 28 10 -1
   2: 00000000000000000000000001000000:2326 00000000000000000000000001000000:D432 08 00000000:00000000 00:00000000 00000000     0        0 24002 1 0000000000000000 20 4 28 10 -1
"""  # noqa: E501


def test_the_kernels_table_of_ipv4_sockets() -> None:
    rows = parse_sockets(TCP)
    assert len(rows) == 6
    assert rows[1] == Socket("127.0.0.1", 8999, Peer("0.0.0.0", 0), LISTEN)
    assert rows[2] == Socket("127.0.0.1", 8999, Peer("127.0.0.1", 44900), ESTABLISHED)
    assert rows[5].address == "15.0.2.10"


def test_the_kernels_table_of_ipv6_sockets() -> None:
    rows = parse_sockets(TCP6)
    assert [ip_address(row.address) for row in rows] == [
        ip_address(address) for address in ("::", "::ffff:127.0.0.1", "::1")
    ]
    assert rows[2] == Socket("::1", 8998, Peer("::1", 54322), CLOSE_WAIT)


def test_an_engines_callers_are_those_connected_to_its_port() -> None:
    seen = sockets_on([8999, 9000], parse_sockets(TCP))
    assert seen.listening == {8999}
    assert seen.peers == {8999: {Peer("127.0.0.1", 44900)}, 9000: frozenset()}


def test_a_caller_that_left_unnoticed_still_holds_the_engine() -> None:
    assert len(sockets_on([8998], parse_sockets(TCP6)).peers[8998]) == 2


def test_our_own_look_ins_are_no_callers() -> None:
    assert sockets_on([8999], parse_sockets(TCP), own_ports=frozenset({44900})).peers[8999] == frozenset()


@pytest.mark.parametrize("text", ["", "\n", "nonsense\n", "<html>"])
def test_a_text_that_is_no_table_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="heading"):
        parse_sockets(text)


@given(st.text())
def test_rows_that_are_none_are_passed_over(noise: str) -> None:
    clean = " ".join(noise.split())
    rows = parse_sockets(f"{TCP}{clean}\n")
    assert rows[:6] == parse_sockets(TCP)


@given(st.text(alphabet="0123456789ABCDEFabcdef:. \n", max_size=400))
def test_no_table_makes_it_fail(noise: str) -> None:
    for row in parse_sockets(f"  sl  local_address\n{noise}"):
        assert row.port >= 0


@given(st.ip_addresses())
def test_every_address_is_read_as_it_was_written(address: IPv4Address | IPv6Address) -> None:
    packed = address.packed
    words = b"".join(packed[i : i + 4][::-1] for i in range(0, len(packed), 4)).hex().upper()
    assert address_of(words) == address.compressed


@pytest.mark.parametrize("words", ["", "0100007", "0100007F0", "XX00007F", "+100007F"])
def test_what_is_no_address_is_refused(words: str) -> None:
    with pytest.raises(ValueError, match=r"digits|hexadecimal"):
        address_of(words)


def test_the_table_of_the_kernel_that_runs_this_test() -> None:
    """No stand-in: a real socket, a real connection, the real /proc/net."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert sockets_on([port], read_sockets(Path("/proc/net"), [port])).peers[port] == frozenset()
        with socket.create_connection(("127.0.0.1", port)) as caller:
            seen = sockets_on([port], read_sockets(Path("/proc/net"), [port]))
            assert seen.listening == {port}
            assert seen.peers[port] == {Peer(*caller.getsockname())}
    assert sockets_on([port], read_sockets(Path("/proc/net"), [port])).listening == frozenset()


def test_a_machine_without_ipv6_has_no_tcp6(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(TCP)
    ports = {row.port for row in parse_sockets(TCP)}
    assert len(read_sockets(tmp_path, ports)) == 6
    assert len(read_sockets(tmp_path, [8999])) == sum(r.port == 8999 for r in parse_sockets(TCP)) > 0


def test_a_hidden_table_is_said_with_its_mend(tmp_path: Path) -> None:
    with pytest.raises(SocketsUnreadableError, match="must not set ProcSubset=pid"):
        read_sockets(tmp_path, [8999])


def test_a_foreign_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text("something else")
    with pytest.raises(SocketsUnreadableError, match="heading"):
        read_sockets(tmp_path, [8999])


# ------------------------------------------------------------------------ conditions

OUT_OF_MEMORY = Failure("cuda_out_of_memory", "The card is full. Set moshi_quantization: q8.", 3, open=True)


def engine(*, listening: bool = False, phase: Phase | None = None, failure: Failure | None = None) -> Engine:
    return Engine(0, 8999, listening, files=EngineFiles(phase, failure))


@pytest.mark.parametrize(
    ("seen", "condition", "sentence"),
    [
        (engine(listening=True), Condition.READY, "moshi@0 is ready"),
        (engine(listening=True, failure=OUT_OF_MEMORY), Condition.READY, "moshi@0 is ready"),
        (engine(), Condition.ABSENT, "nothing listens on port 8999"),
        (engine(phase=Phase("stopped")), Condition.ABSENT, "Mend: hotline start moshi@0"),
        (
            engine(phase=Phase("fetching", "3.1 of 15.4 GB")),
            Condition.STARTING,
            "fetches its weights (3.1 of 15.4 GB)",
        ),
        (engine(phase=Phase("loading")), Condition.STARTING, "moshi@0 loads its weights"),
        (engine(phase=Phase("something new")), Condition.STARTING, "moshi@0 starts"),
        (engine(phase=Phase("ready")), Condition.STARTING, "has gone away and is being started again"),
        (
            engine(phase=Phase("loading"), failure=Failure("killed", "", 1, open=False)),
            Condition.STARTING,
            "started again after failure 1, killed. Mend: look at dmesg",
        ),
        (
            engine(phase=Phase("failed"), failure=OUT_OF_MEMORY),
            Condition.BROKEN,
            "stays stopped after 3 failures, the last time for cuda out of memory. The card is full. Set",
        ),
        (engine(failure=OUT_OF_MEMORY), Condition.BROKEN, "stays stopped"),
        (engine(failure=Failure("other", "", 3)), Condition.BROKEN, "hotline logs moshi@0"),
        (engine(failure=Failure("other", "", 2)), Condition.STARTING, "after failure 2"),
        (engine(failure=Failure("other", "", 3, open=False)), Condition.STARTING, "after failure 3"),
        (
            engine(phase=Phase("failed", "No weights. Fetch them.")),
            Condition.BROKEN,
            "stays stopped: No weights. Fetch them",
        ),
    ],
)
def test_what_an_engine_is_good_for_and_what_mends_it(
    seen: Engine, condition: Condition, sentence: str
) -> None:
    assert seen.condition is condition
    assert sentence in sentence_of(seen)
    assert ".." not in sentence_of(seen)


# ------------------------------------------------------------------------ notes


def test_an_engine_that_left_no_notes(tmp_path: Path) -> None:
    assert read_files(tmp_path / "0") == EngineFiles()


def test_the_notes_that_the_breaker_leaves(tmp_path: Path) -> None:
    (tmp_path / "phase.json").write_text('{"phase": "failed", "detail": "x", "at": "2026-11-22T11:00:00Z"}\n')
    (tmp_path / "failure.json").write_text(
        json.dumps(
            {
                "at": "2026-11-22T11:00:00Z",
                "reason": "killed",
                "detail": "two\nlines",
                "exit_code": None,
                "signal": "SIGKILL",
                "failures": 2,
                "open": True,
            }
        )
    )
    assert read_files(tmp_path) == EngineFiles(
        Phase("failed", "x"), Failure("killed", "two lines", 2, open=True)
    )


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "nul", "[" * 100_000, "\xff"])
def test_notes_that_cannot_be_read_are_said(tmp_path: Path, content: str) -> None:
    (tmp_path / "phase.json").write_bytes(content.encode("latin-1"))
    files = read_files(tmp_path)
    assert files.phase is None
    assert "cannot be read" in files.trouble
    assert "cannot be read" in sentence_of(Engine(0, 8999, listening=False, files=files))


def test_notes_that_the_system_refuses_are_said(tmp_path: Path) -> None:
    (tmp_path / "phase.json").mkdir()
    assert "Is a directory" in read_files(tmp_path).trouble


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@hypothesis_settings(max_examples=50)
@given(
    content=st.dictionaries(
        st.sampled_from(["phase", "detail", "reason", "failures", "open", "at"]), json_values, max_size=6
    )
)
def test_whatever_stands_in_the_notes_there_is_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("notes")
    for name in ("phase", "failure"):
        (folder / f"{name}.json").write_text(json.dumps(content))
    sentence = sentence_of(Engine(0, 8999, listening=False, files=read_files(folder)))
    assert sentence.startswith("moshi@0 ")
    assert len(sentence.splitlines()) == 1
    assert len(sentence) < 2000
