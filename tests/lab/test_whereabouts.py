# SPDX-License-Identifier: GPL-3.0-or-later
"""A node whose host gets another address: its record says so, and its peers find it there."""

from __future__ import annotations

import subprocess
from ipaddress import ip_interface

import msgspec
import pytest

from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.attacks.rig import status_of
from tests.lab.conftest import PATIENCE_S
from tests.lab.test_lab import until

pytestmark = pytest.mark.lab


def ip(node: str, *words: str) -> bytes:
    return subprocess.run(["ip", "-n", node, "-j", *words], capture_output=True, check=True).stdout


def hosts(node: LabNode) -> set[str]:
    """The addresses at which a node says that it may be reached."""
    return {one.endpoint.partition(":")[0] for one in status_of(node).whereabouts.candidates}


async def test_another_address_is_in_the_record_and_at_the_peers(mesh: up.LabResult, spec: LabSpec) -> None:
    moved = nodes_of(spec)[1]
    before = moved.address(0).partition(":")[0]
    device, prefix = next(
        (link["ifname"], one["prefixlen"])
        for link in msgspec.json.decode(ip(moved.name, "-4", "address"))
        for one in link["addr_info"]
        if one["local"] == before
    )
    after = str(ip_interface(f"{before}/{prefix}").ip + 100)
    # An uplink that another test took away and gave back is in the record a little later.
    await until(lambda: before in hosts(moved))
    # The old one goes first: a second one of its network would go with it.
    ip(moved.name, "address", "del", f"{before}/{prefix}", "dev", device)
    ip(moved.name, "address", "add", f"{after}/{prefix}", "dev", device)
    try:
        await until(lambda: after in hosts(moved))
        await converged(nodes_of(spec), PATIENCE_S)
    finally:
        ip(moved.name, "address", "flush", "dev", device)
        ip(moved.name, "address", "add", f"{before}/{prefix}", "dev", device)
    await converged(nodes_of(spec), PATIENCE_S)
