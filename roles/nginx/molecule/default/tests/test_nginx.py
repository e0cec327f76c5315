"""nginx on a host: that it serves, comes back, logs into the journal, and let the rest of the host be.

What it answers to whom is tried in tests/nginx, by requests to the same configuration.
"""

import json
import time

URL = "https://localhost:18998"
ASK = """
import ssl, sys, urllib.error, urllib.request
trust = ssl.create_default_context(cafile="/etc/hotline/tls/ca.pem")
try:
    request = urllib.request.Request(sys.argv[1], headers={"Accept": sys.argv[2]})
    answer = urllib.request.urlopen(request, context=trust, timeout=10)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status)
print(answer.read().decode())
"""


def journal(host):
    return host.run("journalctl --no-pager -u nginx -t nginx -n 40").stdout


def ask(host, path, accept="*/*"):
    """GET with the certificate checked: (status, body)."""
    done = host.run("python3 -c %s %s %s", ASK, URL + path, accept)
    assert done.rc == 0, done.stderr + journal(host)
    status, _, body = done.stdout.partition("\n")
    return int(status), body


def test_it_runs_at_every_boot_and_listens_where_callers_come_from(host):
    assert host.service("nginx").is_running, journal(host)
    assert host.service("nginx").is_enabled
    listening = host.check_output("ss -Hltn 'sport = :18998' | awk '{print $4}' | sort")
    assert listening.split() == ["0.0.0.0:18998", "[::]:18998"]


def test_the_lines_port_is_its_only_one(host):
    """Nothing of the distribution's default site; the machine's own port 80 is not ours to look at."""
    assert not host.file("/etc/nginx/sites-enabled/default").exists
    assert host.file("/etc/nginx/sites-available/default").exists
    assert (
        host.file("/var/lib/hotline/nginx/default-site").content_string.strip()
        == "/etc/nginx/sites-available/default"
    )
    ports = host.check_output("ss -Hltnp | grep nginx | awk '{print $4}' | sort -u").split()
    assert ports == ["0.0.0.0:18998", "[::]:18998"]


def test_it_answers_by_itself_while_nothing_else_is_there(host):
    status, body = ask(host, "/health/startup")
    assert (status, json.loads(body)["status"]) == (200, "ok")
    status, body = ask(host, "/health")
    assert (status, json.loads(body)["status"]) == (503, "unhealthy")
    status, body = ask(host, "/", "text/html")
    assert status == 503
    assert "The line is down" in body
    status, body = ask(host, "/hotline-ca.pem")
    assert status == 200
    assert "BEGIN CERTIFICATE" in body


def test_what_it_serves_is_what_is_written(host):
    _, body = ask(host, "/health/startup")
    assert (
        json.loads(body)["configuration"]
        in host.file("/etc/nginx/sites-available/hotline.conf").content_string
    )


def test_requests_are_in_the_journal_without_their_queries(host):
    ask(host, "/api/links?ticket=SECRET91")
    time.sleep(0.5)
    log = host.check_output("journalctl --no-pager -t nginx -o cat -n 20")
    assert '"GET /api/links HTTP/1.1" 502' in log
    everything = host.run("journalctl --no-pager; cat /var/log/nginx/*").stdout
    assert "SECRET91" not in everything


def test_its_limits_are_ours(host):
    assert host.check_output("systemctl show nginx -p LimitNOFILE --value") == "16384"
    worker = host.check_output("pgrep -u www-data -n nginx")
    assert "16384" in host.check_output("grep 'open files' /proc/%s/limits", worker)
    assert host.file("/etc/nginx/nginx.conf").contains(r"^\sworker_connections 4096;")


def test_it_comes_back_when_it_is_killed(host):
    before = host.check_output("systemctl show nginx -p MainPID --value")
    # Its workers outlive it for a moment and would go on answering: only all of them gone is gone.
    host.check_output("kill -9 %s $(pgrep -P %s)", before, before)
    deadline = time.monotonic() + 20
    after = before
    while after in ("0", before) and time.monotonic() < deadline:
        time.sleep(0.2)
        after = host.check_output("systemctl show nginx -p MainPID --value")
    assert host.service("nginx").is_running, journal(host)
    assert ask(host, "/health/startup")[0] == 200, journal(host)
    serving = host.check_output("ss -Hltnp 'sport = :18998'")
    assert f"pid={after}," in serving


def test_the_key_is_not_the_workers(host):
    assert host.run("runuser -u www-data -- cat /etc/hotline/tls/privkey.pem").rc != 0


def test_the_system_kept_its_owners(host):
    for path in ("/etc", "/usr", "/var", "/var/lib", "/opt"):
        folder = host.file(path)
        assert (folder.user, folder.group, folder.mode) == ("root", "root", 0o755), path
