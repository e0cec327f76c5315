"""A node as Ansible sees it: the variables that follow from what the provider said. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from rental.market import Node, Wanted
from rental.vast import LINE_PORT


def public_url(node: Node) -> str:
    """Under which URL the outside reaches the line: the gateway's, or address and outside port."""
    if node.url:
        return node.url
    if not node.host:
        return ""
    host = f"[{node.host}]" if ":" in node.host else node.host
    return f"https://{host}:{node.ports.get(LINE_PORT, LINE_PORT)}"


def host_variables(node: Node, ssh_options: Sequence[str] = ()) -> dict[str, Any]:
    """What the provider's answer says about one host of the line."""
    variables: dict[str, Any] = {
        "ansible_host": node.host,
        "ansible_port": node.port,
        "ansible_user": node.user,
        "line_addresses": [node.host],
        "line_outside_port": node.ports.get(LINE_PORT, LINE_PORT),
        "hotline_provider": node.provider,
        "hotline_node": node.id,
        "hotline_label": node.label,
        "hotline_gpu": node.gpu,
        "hotline_kind": node.kind,
        "hotline_price": node.price,
    }
    if node.url:
        # The gateway has one name and a certificate for it. Elsewhere the role `line` makes the URL.
        variables |= {
            "line_host": node.url.partition("://")[2],
            "line_url": node.url,
            "tls_provider": "none",
        }
    if ssh_options:
        variables["ansible_ssh_common_args"] = shlex.join(ssh_options)
    return variables


def lease_variables(node: Node, wanted: Wanted, ends_at: float, ends_itself: bool) -> dict[str, Any]:
    """What role `lease` needs to know; nothing when the node is rented until it is released."""
    if not ends_at and not wanted.idle_minutes:
        return {}
    return {
        "lease_provider": node.provider if ends_itself else "",
        "lease_node": node.id,
        "lease_ends_at": int(ends_at),
        "lease_idle_minutes": wanted.idle_minutes,
        "lease_price": round(node.price, 4),
    }


def groups(node: Node, line: str) -> list[str]:
    """The groups of a dynamic inventory that a node belongs to, `line` first."""
    words = [f"line_{line}", f"gpu_{node.gpu}", f"kind_{node.kind}", f"provider_{node.provider}"]
    return ["line", *(_group(word) for word in words)]


def _group(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text.lower())
