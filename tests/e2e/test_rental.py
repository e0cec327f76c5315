"""From a market to a voice: `rental rent` with the real site.yml and verify.yml; then the node is given back.

The market is the stand-in for Vast; what it rents out is a throwaway host that greets as rented machines do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, Host, throwaway
from tests.providers.vast import VastStandIn, offer

GREETING = """
printf 'Banner /etc/greeting\\n' > /etc/ssh/sshd_config.d/greeting.conf
printf '*** Welcome. Have fun! ***\\nhotline-ready ok\\n' > /etc/greeting
sed -i '1i echo "Run [tmux] to keep your session"' /root/.bashrc
printf 'exec tmux\\n' > /root/.bash_profile
systemctl restart ssh
"""


@pytest.fixture(scope="module")
def rented() -> Iterator[Host]:
    with throwaway("rented") as host:
        host.run(GREETING)
        yield host


@pytest.fixture
def market(rented: Host) -> Iterator[VastStandIn]:
    stand_in = VastStandIn()
    inventory = json.loads(Path("/var/lib/hotline-hosts/rented/inventory.yml").read_text())
    port = inventory["line"]["hosts"]["rented"]["ansible_port"]
    stand_in.offers = [offer(101, dph_total=0.2), offer(102)]
    stand_in.ssh = ("127.0.0.1", port)
    stand_in.ports = {"22/tcp": [{"HostPort": str(port)}], "8998/tcp": [{"HostPort": "8998"}]}
    yield stand_in
    stand_in.close()


def test_rent_speak_keep_and_give_back(rented: Host, market: VastStandIn, tmp_path: Path) -> None:
    environment = os.environ | {
        "HOTLINE_RENTAL_STATE": str(tmp_path / "state"),
        "HOTLINE_RENTAL_PATIENCE": json.dumps({"poll_s": 0.5, "destroy_pause_s": 0.2}),
        "VAST_API_KEY": market.key,
        "HOTLINE_VAST_URL": market.url,
        "HOME": str(tmp_path),
        "NO_COLOR": "1",
    }
    settings = tmp_path / "line.json"
    settings.write_text(
        json.dumps({"moshi_device": "cpu", "moshi_weights": "tiny", "tls_ca_dir": str(tmp_path / "ca")})
    )

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        logs = "".join(p.read_text()[-4000:] for p in (tmp_path / "state").glob("nodes/*/log"))
        assert done.returncode == 0, done.stdout + done.stderr + logs
        return done.stdout

    def rental(*words: str) -> str:
        return run(sys.executable, "-m", "rental", *words)

    # The cheaper one is taken by somebody else in this moment; the next becomes a line that speaks.
    gone = {"success": False, "error": "no_such_ask", "msg": "no longer available"}
    market.fail("PUT", "/api/v0/asks/101/", 410, gone)
    said = rental(
        "rent", "talk", "--max-price", "0.5", "--max-hours", "10", "--release-when-idle-minutes", "600",
        "--ssh-key", "/var/lib/hotline-hosts/key", "-e", f"@{settings}",
    )  # fmt: skip
    assert "its host key is pinned" in said
    assert "Line 'talk' speaks" in said
    assert "$0.400 an hour" in said
    assert "-L 8998:127.0.0.1:8998" in said
    assert list(market.instances) == [7001]
    assert "MOSHI_URL=" in rented.run("grep -o MOSHI_URL= /etc/hotline/hotline.env")

    # The same node by the dynamic inventory, with the key that was pinned.
    inventory = ("-i", "inventory/vast.yml")
    assert "SUCCESS" in run("ansible", "line_talk", *inventory, "-m", "ansible.builtin.ping")
    second = run("ansible-playbook", "site.yml", *inventory, "-e", f"@{settings}", "--tags", "line,tls,nginx")
    assert re.search(r"talk +: .*failed=0", second)

    # It is kept while it is called or not yet idle for long, and given back after that.
    assert "in 10.0 h or idle 600 min" in rental("nodes")
    rental("keep", "--once")
    assert market.instances
    rented.run("touch -d '11 hours ago' /var/lib/hotline/lease/active")
    assert "nobody called for 660 minutes" in rental("keep", "--once")
    assert market.instances == {}
    assert "Nothing of ours runs" in rental("nodes")


def test_a_machine_that_shows_another_host_key_is_not_used(
    rented: Host, market: VastStandIn, tmp_path: Path
) -> None:
    """Salad publishes fingerprints; the first contact with a node that has another one ends there."""
    from rental import ssh
    from rental.errors import NodeError

    lines = ssh.scan("127.0.0.1", market.ssh[1])
    assert lines
    with pytest.raises(NodeError, match="not the one that the provider published"):
        ssh.pin(lines, "SHA256:nThbg6kXUpJWGl7E1IGOCspRomTxdCARLviKw6E5SY8")
