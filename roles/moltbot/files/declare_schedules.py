"""Declare to OpenClaw what it does by the clock, by its own command: ``openclaw cron add --declaration-key``.

``declare_schedules.py OPENCLAW…``, given the wanted schedules as JSON, prints which were made or changed, and
which of earlier declarations were taken back. Those that the agent or the person made have no key of ours and
stay. What a run says in the end is sent to the WhatsApp number ``to``; without one it is sent to nobody:
OpenClaw would look for a chat to answer in, and call the run failed when there was none.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

PREFIX = "hotline:"


def openclaw(*arguments: str) -> Any:
    """Run one command of OpenClaw's; return what it prints. It answers some seconds after its port opens."""
    for wait in (1, 3, 5, 10, 0):
        done = subprocess.run([*sys.argv[1:], *arguments], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return json.loads(done.stdout[done.stdout.index("{") :])
        time.sleep(wait)
    sys.exit(f"openclaw {' '.join(arguments[:2])} failed: {(done.stderr or done.stdout).strip()[-500:]}")


def is_as_wanted(job: dict[str, Any], wanted: dict[str, str]) -> bool:
    """Say whether a job is what was asked for."""
    schedule, payload, delivery = job.get("schedule", {}), job.get("payload", {}), job.get("delivery", {})
    return (schedule.get("expr"), schedule.get("tz"), payload.get("message"), delivery.get("to", "")) == (
        wanted["cron"],
        wanted["timezone"],
        wanted["message"],
        wanted["to"],
    ) and delivery.get("mode") == ("announce" if wanted["to"] else "none")


def main() -> None:
    """Read the wanted schedules from standard input."""
    wanted = {f"{PREFIX}{one['name']}": one for one in json.load(sys.stdin)}
    jobs = openclaw("cron", "list", "--all", "--json")["jobs"]
    ours = {job["declarationKey"]: job for job in jobs if job.get("declarationKey", "").startswith(PREFIX)}
    changed, removed = [], []
    for key, one in wanted.items():
        if key in ours and is_as_wanted(ours[key], one):
            continue
        deliver = (
            ["--channel", "whatsapp", "--to", one["to"], "--announce"] if one["to"] else ["--no-deliver"]
        )
        openclaw(
            "cron", "add", "--declaration-key", key, "--name", one["name"], "--cron", one["cron"],
            "--tz", one["timezone"], "--message", one["message"], "--json", *deliver,
        )  # fmt: skip
        changed.append(one["name"])
    for key in ours.keys() - wanted.keys():
        openclaw("cron", "rm", ours[key]["id"], "--json")
        removed.append(key.removeprefix(PREFIX))
    print(json.dumps({"changed": changed, "removed": removed}))


if __name__ == "__main__":
    main()
