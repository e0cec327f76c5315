"""Rented nodes as an inventory. It asks `python -m rental nodes --json`: one place knows the providers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable

DOCUMENTATION = """
name: rental
short_description: Nodes that were rented for a line at Vast, Salad or RunPod
description:
  - Every node with a label of ours is a host of the group C(line), named after its line, and of groups by
    line (C(line_talk)), card (C(gpu_rtx_4090)), kind (C(kind_vm)) and provider (C(provider_vast)).
  - Host variables follow from what the provider says; the ssh host key is the one pinned when it was rented.
author: The Hotline authors
extends_documentation_fragment: [constructed, inventory_cache]
options:
  plugin:
    description: This plugin's name.
    required: true
    choices: [rental]
  provider:
    description: Whose nodes.
    required: true
    choices: [vast, salad, runpod]
  keys:
    description:
      - Keys that do not stand in the environment, by the names they have there, such as VAST_API_KEY.
      - Write a lookup or a vaulted value here, never the key itself.
    type: dict
    default: {}
"""

EXAMPLES = """
plugin: rental
provider: vast
"""

ROOT = Path(__file__).resolve().parents[2]


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):  # type: ignore[misc]
    """See DOCUMENTATION."""

    NAME = "rental"

    def verify_file(self, path: str) -> bool:
        """Any YAML file that names this plugin; `auto` looks inside."""
        return bool(super().verify_file(path)) and path.endswith((".yml", ".yaml"))

    def parse(self, inventory: object, loader: object, path: str, cache: bool = True) -> None:
        """Fill the inventory from the provider, or from the cache while that is fresh."""
        super().parse(inventory, loader, path)
        self._read_config_data(path)
        key = self.get_cache_key(path)
        wanted = cache and self.get_option("cache")
        found = None
        if wanted:
            try:
                found = self._cache[key]
            except KeyError:
                found = None
        if found is None:
            found = self._nodes()
            if self.get_option("cache"):
                self._cache[key] = found
        self._populate(found)

    def _nodes(self) -> list[dict[str, object]]:
        keys = {name: self.templar.template(value) for name, value in (self.get_option("keys") or {}).items()}
        whose = self.get_option("provider")
        # Keys go through standard input: an argument would stand in the process list.
        done = subprocess.run(
            [sys.executable, "-m", "rental", "--secrets-from-stdin", "nodes", "--json", "--provider", whose],
            input=json.dumps(keys),
            cwd=ROOT,
            env=dict(os.environ),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            raise AnsibleParserError(
                said[-1] if said else f"rental nodes ended with status {done.returncode}"
            )
        return list(json.loads(done.stdout))

    def _populate(self, found: list[dict[str, object]]) -> None:
        self.inventory.add_group("line")
        lines = [row["line"] for row in found if row.get("node")]
        for row in found:
            node, variables = row.get("node"), row.get("variables")
            if not isinstance(node, dict) or not isinstance(variables, dict) or not node["host"]:
                continue  # no address yet
            # Two nodes of one line stay apart: the second name has the node's id.
            name = str(row["line"]) if lines.count(row["line"]) == 1 else f"{row['line']}-{node['id']}"
            self.inventory.add_host(name, group="line")
            for group in row["groups"]:  # type: ignore[attr-defined]
                self.inventory.add_group(group)
                self.inventory.add_host(name, group=group)
            for variable, value in variables.items():
                self.inventory.set_variable(name, variable, value)
            strict = self.get_option("strict")
            self._set_composite_vars(self.get_option("compose"), variables, name, strict=strict)
            self._add_host_to_composed_groups(self.get_option("groups"), variables, name, strict=strict)
            self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, name, strict=strict)
