# SPDX-License-Identifier: GPL-3.0-or-later
"""Cover traffic between real nodes: sent within its budget, counted and dropped in the peer's kernel. No
socket has it, and no ICMP answers it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import msgspec
import pytest
import trio

from phantommesh.client.http import NodeClient
from phantommesh.config.agents import AgentsSection, PhantomSection
from phantommesh.config.reading import load
from phantommesh.config.sections import ScatterSection
from phantommesh.config.writing import render
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import kill
from phantommesh.nursery.lab.net import LabNode, nodes_of
from phantommesh.nursery.lab.ping import Flow, open_traffic
from phantommesh.scatter.cover import DISCARD, SAVED
from phantommesh.scatter.coverrules import COVER, FAMILY, table_name
from tests.attacks.rig import status_of
from tests.lab.conftest import make_spec
from tests.lab.test_lab import run_in, until

pytestmark = pytest.mark.lab

RATE = 30_000.0  # bytes a second
LEARNT = 300  # dummies to wait for
OTHER = 10  # a port that is not cover's

LISTEN = """
import socket, sys
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.bind((sys.argv[1], int(sys.argv[2])))
print("listens", flush=True)
print("got", own.recvfrom(2048), flush=True)
"""
SAY = 'import socket, sys; socket.socket(2, 2).sendto(b"x" * 100, (sys.argv[1], int(sys.argv[2])))'


@contextmanager
def listening(node: LabNode, port: int) -> Iterator[subprocess.Popen[str]]:
    """A socket of a program in a node's namespace. The program ends when something comes."""
    command = node.inside(["python3", "-c", LISTEN, status_of(node).ip4, str(port)])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "listens\n"
        try:
            yield process
        finally:
            process.kill()


def say(one: LabNode, other: LabNode, port: int) -> None:
    run_in(one, "python3", "-c", SAY, status_of(other).ip4, str(port))


def unreachable(node: LabNode) -> int:
    """ICMP messages of the kind "destination unreachable" that came to a node."""
    names, values = (
        line.split() for line in run_in(node, "cat", "/proc/net/snmp").splitlines() if line[:5] == "Icmp:"
    )
    return int(dict(zip(names, values, strict=True))["InDestUnreachs"])


def metric(node: LabNode, name: str) -> int:
    text = NodeClient(node.socket).request("GET", "/metrics").decode()
    return sum(int(float(line.split()[-1])) for line in text.splitlines() if line.startswith(f"{name} "))


def sent(node: LabNode) -> tuple[int, int]:
    """Packets and bytes of cover, as the node says."""
    return (
        metric(node, "phantommesh_cover_packets_total"),
        metric(node, "phantommesh_cover_bytes_total"),
    )


def dropped(node: LabNode) -> int:
    """What the kernel of a node has dropped as cover."""
    table = table_name(load(node.config).wireguard.prefix)
    shown = json.loads(run_in(node, "nft", "-j", "list", "set", FAMILY, table, COVER))
    (found,) = [one["set"]["elem"] for one in shown["nftables"] if "set" in one]
    return sum(one["elem"]["counter"]["packets"] for one in found)


def set_phantom(node: LabNode, phantom: PhantomSection) -> None:
    config = load(node.config)
    node.config.write_text(
        render(msgspec.structs.replace(config, agents=AgentsSection(phantom=phantom))), encoding="ascii"
    )
    kill(node, signal.SIGHUP)


async def test_cover_is_sent_counted_and_dropped_and_nobody_has_it() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    spec = replace(make_spec("c", nodes=2, uplinks=3), scatter=ScatterSection(goal="private"))
    async with up.running(spec):
        one, two = nodes_of(spec)
        # What shows the one and the other is not blind.
        before = unreachable(one)
        say(one, two, OTHER)
        await until(lambda: unreachable(one) == before + 1)
        with listening(two, OTHER) as program:
            say(one, two, OTHER)
            assert program.stdout is not None and program.stdout.readline().startswith("got")
        before = unreachable(one)
        assert sent(one) == (0, 0) and dropped(two) == 0, "nobody asked for cover"

        async with open_traffic([Flow(one.name, two.name, status_of(two).ip4)], 0.005):
            set_phantom(one, PhantomSection(cover_bytes_per_second=RATE, cover_peer_bytes_per_second=RATE))
            began = trio.current_time()
            await until(lambda: sent(one)[0] > 0)
            with listening(two, DISCARD) as program:
                await until(lambda: sent(one)[0] >= LEARNT)
                assert program.poll() is None, "a socket has had cover"
            packets, size = sent(one)
            assert size <= RATE * (trio.current_time() - began + SAVED)
            await until(lambda: sent(one)[0] >= packets + 20)  # now nobody listens there
            set_phantom(one, PhantomSection())
            await until(lambda: dropped(two) == sent(one)[0])
            packets = sent(one)[0]
            await trio.sleep(3.0)
            assert sent(one)[0] == dropped(two) == packets, "the agent's action was lifted"
        assert unreachable(one) == before, "something has answered"
        await until(lambda: metric(two, 'phantommesh_dropped_total{reason="cover"}') == packets)
        print(f"{packets} dummies")
