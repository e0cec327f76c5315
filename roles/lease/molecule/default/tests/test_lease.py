"""The lease on a host: it watches in a sandbox, sees callers and no probes, ends the node by its own key."""

import json
import time

VAST = """
import http.server, json, pathlib
class Vast(http.server.BaseHTTPRequestHandler):
    def do_DELETE(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pathlib.Path("/run/ended.json").write_text(json.dumps([self.path, self.headers["Authorization"]]))
        body = b'{"success": true}'
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", 18097), Vast).serve_forever()
"""
PROBE = "import socket; socket.create_connection(('127.0.0.1', 18999)).sendall(b'p')"
ENGINE = """
import socket, time
s = socket.create_server(("127.0.0.1", 18999))
while True:
    c, _ = s.accept()
    c.settimeout(90)
    d = c.recv(1)
    if d == b"p":
        c.close()
    else:
        keep = c
"""
CALL = (
    "import socket, time; c = socket.create_connection(('127.0.0.1', 18999)); c.sendall(b'c'); time.sleep({})"
)


def age(host):
    return int(host.check_output("echo $(( $(date +%s) - $(stat -c %Y /var/lib/hotline/lease/active) ))"))


def test_it_runs_as_its_own_user_in_the_sandbox(host):
    assert host.service("lease").is_running, host.run("journalctl -u lease --no-pager -n 20").stdout
    pid = host.check_output("systemctl show lease --property MainPID --value")
    assert host.check_output("ps -o user= -p %s", pid).strip() == "lease"
    assert host.check_output("systemctl show lease --property ProtectSystem --value") == "strict"


def test_without_a_key_of_the_machine_it_ends_nothing_and_says_so(host):
    assert "LEASE_KEY" not in host.check_output("cat /etc/systemd/system/lease.service")
    assert not host.file("/etc/hotline/secrets/lease.env").contains("LEASE_KEY")


def test_a_call_counts_and_a_probe_does_not(host):
    host.check_output("systemd-run --quiet --collect --unit=stand-in-engine python3 -c %s", ENGINE)
    try:
        time.sleep(1)
        host.check_output("touch -d '1 hour ago' /var/lib/hotline/lease/active")
        for _ in range(4):
            host.check_output("python3 -c %s", PROBE)
        time.sleep(12)
        assert age(host) > 3000
        host.check_output("timeout 60 python3 -c %s", CALL.format(25))
        assert age(host) < 30
    finally:
        host.run("systemctl stop stand-in-engine")


def test_when_its_time_is_up_it_ends_the_node_with_its_own_key(host):
    """The installed program, with the environment that a Vast container's key makes."""
    host.check_output("systemd-run --quiet --collect --unit=stand-in-vast python3 -c %s", VAST)
    try:
        time.sleep(1)
        command = (
            "systemd-run --quiet --collect --unit=lease-now -p DynamicUser=yes -p StateDirectory=lease-now"
            " -E LEASE_PORTS=18999 -E LEASE_ENDS_AT=1 -E LEASE_NODE=7001 -E LEASE_KEY=the-key"
            " -E LEASE_API_URL=http://127.0.0.1:18097 /usr/bin/python3 /opt/hotline/lease/lease.py"
        )
        host.check_output(command)
        for _ in range(50):
            if host.file("/run/ended.json").exists:
                break
            time.sleep(0.2)
        assert json.loads(host.file("/run/ended.json").content_string) == [
            "/api/v0/instances/7001/",
            "Bearer the-key",
        ]
        assert "the-key" not in host.check_output("journalctl -u lease-now --no-pager")
    finally:
        host.run("systemctl stop lease-now stand-in-vast")
