"""The checklist of the plan for this system, as tests: what must hold before anybody is given a link.

Notification links join with their own issue.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest

from .conftest import Line


def test_the_voice_server_listens_on_8999_on_loopback_alone(line: Line) -> None:
    line.await_health("ok")
    listening = line.run("ss -Hltn 'sport = :8999' | awk '{print $4}'").split()
    assert listening == ["127.0.0.1:8999"]
    assert "moshi" in line.run("ps -o user= -p $(systemctl show -p MainPID --value moshi@0)")


def test_nginx_alone_listens_where_callers_come_from(line: Line) -> None:
    ours = "( sport = :8998 or sport = :8999 or sport = :9299 or sport = :5000 )"
    listening = set(line.run(f"ss -Hltn '{ours}' | awk '{{print $4}}'").split())
    assert listening >= {"0.0.0.0:8998", "[::]:8998"}
    assert {one for one in listening if not one.startswith("127.0.0.1:")} == {"0.0.0.0:8998", "[::]:8998"}


def test_nobody_gets_in_without_a_link(line: Line) -> None:
    status, report = line.speak(line.url)
    assert status == 5, report
    assert report["outcome"] == "refused"
    assert line.speak(f"{line.url}/#t={'x' * 43}")[0] == 5


def test_it_runs_on_kyutais_own_package(line: Line) -> None:
    pid = line.run("systemctl show -p MainPID --value moshi@0").strip()
    assert "/launch_duplex.py" in line.run(f"tr '\\0' ' ' </proc/{pid}/cmdline")
    asked = "import importlib.metadata as m; print(m.version('moshi'))"
    assert line.run(f'/opt/hotline/moshi/venv/bin/python -c "{asked}"').strip() == "0.2.13"


@pytest.mark.parametrize(
    ("path", "status", "holds"),
    [
        ("/", 200, "<!doctype html"),
        ("/health", 200, '"status"'),
        ("/health/live", 200, ""),
        ("/health/startup", 200, ""),
        ("/health/deep", 200, '"checks"'),
        ("/hotline-ca.pem", 200, "BEGIN CERTIFICATE"),
        ("/api/nothing-here", 404, '"status"'),
        ("/internal/authorize", 404, ""),
    ],
)
def test_nginx_routes(line: Line, path: str, status: int, holds: str) -> None:
    answered, body = line.get(path)
    assert answered == status, body[:500]
    assert holds.lower() in body.lower()


def test_health_passes(line: Line) -> None:
    health = line.await_health("ok")
    assert health["reasons"] == []
    deep = json.loads(line.get("/health/deep")[1])
    assert set(deep["checks"]) == {"moshi", "nginx", "disk", "gpu"}


def test_a_caller_is_answered_within_limits(line: Line) -> None:
    """Through TLS and nginx, in real time. What duplex drops on a busy machine is no fault of the line."""
    status, report = line.speak()
    assert status == 0, report
    assert report["frames"]["answered"] >= 25, report


def test_plain_http_on_the_tls_port_is_sent_to_https(line: Line) -> None:
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object, **__: object) -> None:
            return None

    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.build_opener(Stay).open("http://localhost:8998/health", timeout=10)
    assert refused.value.code in (301, 302, 307, 308)
    assert refused.value.headers["Location"] == "https://localhost:8998/health"


def test_nothing_that_is_said_is_in_a_log(line: Line) -> None:
    _, report = line.speak()
    assert report["text_pieces"] > 0, report
    journal = line.run("journalctl --no-pager -u 'moshi@*' -o cat")
    assert "text token" not in journal
    assert "frame handled" not in journal
