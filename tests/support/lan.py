# SPDX-License-Identifier: GPL-3.0-or-later
"""A network beyond a lab's mesh: a bridge in a namespace of its own, with one host on it, behind routers."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from phantommesh.nursery.lab.net import LabNode, LabSpec

LAN, HOST = "192.168.50.0/24", "192.168.50.10"


def ip(*words: str) -> None:
    """Run ``ip``. Raises CalledProcessError."""
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def network_behind(spec: LabSpec, *routers: LabNode) -> Iterator[str]:
    """The network, with ``lan0`` on each router: .2, .3. Yields its namespace; the cable of the router with
    .N is ``lN``."""
    lan = f"{spec.name}-lan"
    ip("netns", "add", lan)
    try:
        ip("-n", lan, "link", "add", "br0", "type", "bridge")
        for device in ("br0", "lo"):
            ip("-n", lan, "link", "set", device, "up")
        ip("-n", lan, "address", "add", f"{HOST}/24", "dev", "br0")
        for number, router in enumerate(routers, 2):
            cable = f"l{number}"
            ip("-n", lan, "link", "add", cable, "type", "veth", "peer", "name", "lan0", "netns", router.name)
            ip("-n", lan, "link", "set", cable, "master", "br0", "up")
            ip("-n", router.name, "address", "add", f"192.168.50.{number}/24", "dev", "lan0")
            ip("-n", router.name, "link", "set", "lan0", "up")
        yield lan
    finally:
        ip("netns", "delete", lan)
