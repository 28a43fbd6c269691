# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab's regions: a round trip between two of them takes as long as was said, by netem or without."""

from __future__ import annotations

import os
import re
import sys

import pytest
import trio

from phantommesh.nursery.lab import net
from phantommesh.nursery.lab.net import LabSpec, nodes_of
from phantommesh.nursery.lab.underlay import Regions, Underlay
from tests.attacks.rig import run_inside, start_inside
from tests.lab.conftest import NAME

pytestmark = pytest.mark.lab
DELAY_MS, BYTES = 60.0, 2_000_000
SERVER = """
import socket
server = socket.create_server(("0.0.0.0", 5))
print("up", flush=True)
end, count = server.accept()[0], 0
while got := end.recv(1 << 16):
    count += len(got)
print(count)
"""
CLIENT = f"""
import socket, sys
socket.create_connection((sys.argv[1], 5)).sendall(bytes({BYTES}))
"""


def pings(node: str, address: str) -> list[float]:
    """Round trips in ms, without the first one, which waits for ARP."""
    done = run_inside(node, "ping", "-c", "6", "-i", "0.05", "-w", "20", address)
    found = [float(text) for text in re.findall(r"time=([0-9.]+)", done.out)]
    assert len(found) >= 6, done.out  # with a time limit it goes on sending until so many are answered
    return found[1:]


def transfer(source: str, target: str, address: str) -> int:
    """Bytes that come in over TCP: it needs whole checksums and lengths, which pings of the kernel have."""
    with start_inside(target, sys.executable, "-c", SERVER) as server:
        assert server.stdout is not None and server.stdout.readline() == b"up\n"
        assert run_inside(source, sys.executable, "-c", CLIENT, address).status == 0
        return int(server.stdout.readline())


@pytest.mark.parametrize("netem", [True, False])
async def test_packets_between_regions_take_their_time(
    monkeypatch: pytest.MonkeyPatch, *, netem: bool
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    spec = LabSpec(f"{NAME}g", nodes=4, uplinks=1, underlay=Underlay(regions=Regions(3, DELAY_MS)))
    if not netem:  # a kernel that has none does the same twice

        async def none(namespace: str) -> bool:
            await trio.lowlevel.checkpoint()
            return False

        monkeypatch.setattr(net, "_has_netem", none)
    net.STATE.mkdir(parents=True, exist_ok=True)
    one, two, three, four = nodes_of(spec)
    try:
        await net.build(spec)
        assert min(pings(one.name, two.address(0))) < DELAY_MS / 2  # the same region
        for other in (three, four):
            assert min(pings(one.name, other.address(0))) >= DELAY_MS
        assert transfer(one.name, four.name, four.address(0)) == BYTES
    finally:
        with trio.CancelScope(shield=True):
            await net.destroy(spec.namespaces)
            for node in nodes_of(spec):
                node.wireguard_sockets.rmdir()
            net.delay_log(spec.name).unlink(missing_ok=True)
