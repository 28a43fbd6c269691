# SPDX-License-Identifier: GPL-3.0-or-later
"""The means of an attacker: a machine on the underlay, or a member's own keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time

from phantommesh.config.reading import load
from phantommesh.config.sections import Config
from phantommesh.management.views import Status
from phantommesh.nursery.lab.net import LabNode, LabSpec
from phantommesh.state.start import NodeState, load_node

NEIGHBOUR = 250  # the last byte of the neighbour's address on each segment


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A namespace on the lab's segments: ``upU`` with 10.201.U.250/24, as a member's would be."""

    name: str

    def address(self, uplink: int = 0) -> str:
        """Its address on a segment."""
        return f"10.201.{uplink}.{NEIGHBOUR}"

    def run(self, *command: str, seconds: float = 60.0) -> Done:
        """Run a command there and wait for its end."""
        return run_inside(self.name, *command, seconds=seconds)

    def python(self, script: str, *arguments: str, seconds: float = 60.0) -> Done:
        """Run a Python script there; the project can be imported."""
        return self.run(sys.executable, "-c", script, *arguments, seconds=seconds)

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command there that goes on; the caller ends it."""
        return start_inside(self.name, *command)


def run_inside(namespace: str, *command: str, seconds: float = 60.0) -> Done:
    """Run a command in a namespace and wait for its end."""
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, *command],
        capture_output=True, text=True, check=False, timeout=seconds, env=_environment(),
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def start_inside(namespace: str, *command: str) -> subprocess.Popen[bytes]:
    """Start a command in a namespace that goes on; its output can be read."""
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, *command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment(),
    )  # fmt: skip


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path.cwd())}


def link_local(node: LabNode, interface: str = "up0") -> str:
    """A node's IPv6 link-local address on a segment: the IPv6 way to a machine that has no other."""
    shown = json.loads(run_inside(node.name, "ip", "-j", "-6", "address", "show", "dev", interface).out)
    return str(next(a["local"] for a in shown[0]["addr_info"] if a["scope"] == "link"))


def status_of(node: LabNode) -> Status:
    """A node's own report. Raises NodeNotRunningError or ApiError."""
    from phantommesh.client.http import NodeClient

    return NodeClient(node.socket).status()


def insider(node: LabNode) -> tuple[Config, NodeState]:
    """All that a member has on its disk, its keys among it."""
    return load(node.config), load_node(node.state_dir, time())


@contextmanager
def neighbour_of(spec: LabSpec) -> Iterator[Neighbour]:
    """Plug one more machine into each segment of a lab that is up."""
    machine, net = Neighbour(f"{spec.name}-x"), f"{spec.name}-net"
    _ip("netns", "add", machine.name)
    try:
        _ip("-n", machine.name, "link", "set", "lo", "up")
        for uplink in range(spec.uplinks):
            port, cable = f"x{uplink}", f"up{uplink}"
            _ip("-n", net, "link", "add", port, "type", "veth", "peer", "name", cable, "netns", machine.name)
            _ip("-n", net, "link", "set", port, "master", f"seg{uplink}", "up")
            _ip("-n", machine.name, "address", "add", f"{machine.address(uplink)}/24", "dev", cable)
            _ip("-n", machine.name, "link", "set", cable, "up")
        yield machine
    finally:
        for pid in subprocess.run(
            ["ip", "netns", "pids", machine.name], capture_output=True, text=True, check=False
        ).stdout.split():
            subprocess.run(["kill", "-9", pid], check=False)
        _ip("netns", "delete", machine.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def counted(node: LabNode, interfaces: Sequence[str]) -> int:
    """Bytes that a node has sent by these interfaces so far."""
    shown = json.loads(run_inside(node.name, "ip", "-j", "-s", "link").out)
    return sum(i["stats64"]["tx"]["bytes"] for i in shown if i["ifname"] in interfaces)
