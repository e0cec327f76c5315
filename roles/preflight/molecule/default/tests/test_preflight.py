"""What preflight leaves on a host that it lets pass: the fact, and nothing else."""

import json

FACT = "/etc/ansible/facts.d/hotline_gpu.fact"


def test_the_fact_belongs_to_root_and_runs(host):
    fact = host.file(FACT)
    assert (fact.user, fact.group, fact.mode) == ("root", "root", 0o755)
    facts = json.loads(host.check_output(FACT))
    assert facts["gpus"] == []
    assert facts["container"] == "systemd-nspawn"
    assert not facts["driver_working"]


def test_ansible_reads_it_as_a_local_fact(host):
    local = host.ansible("setup", "filter=ansible_local")["ansible_facts"]["ansible_local"]
    assert local["hotline_gpu"]["container"] == "systemd-nspawn"


def test_a_stand_in_for_the_root_can_be_given(host):
    answer = host.check_output(f"mkdir -p /tmp/nothing && HOTLINE_GPU_ROOT=/tmp/nothing {FACT}")
    assert json.loads(answer)["container"] is None


def test_nothing_else_was_put_below_etc_ansible(host):
    assert host.check_output("find /etc/ansible -type f") == FACT


def test_the_system_kept_its_owners(host):
    for path in ("/etc", "/usr", "/var", "/opt", "/etc/ansible", "/etc/ansible/facts.d"):
        folder = host.file(path)
        assert (folder.user, folder.group, folder.mode) == ("root", "root", 0o755), path


def test_units_of_ours_kept_their_ports_through_the_second_run(host):
    for unit, port in (("nginx", 8998), ("moshi@0", 8999), ("orchestrator", 5000)):
        assert host.service(unit).is_running, host.run(f"journalctl -n 20 -u {unit}").stdout
        assert f":{port}" in host.check_output("ss -Hltn")
