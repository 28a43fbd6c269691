# SPDX-License-Identifier: GPL-3.0-or-later
"""A host whose provider uses the overlay's range: node 2 has an address in 100.64/10 and no other, and its
default gateway is in there, too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import msgspec
import pytest
import trio

from phantommesh.config.reading import load
from phantommesh.config.writing import render
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, kill, pid_file, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of, processes_in
from tests.attacks.rig import Neighbour, run_inside, status_of
from tests.lab.conftest import PATIENCE_S

pytestmark = pytest.mark.lab


def setting(name: str, *commands: str) -> None:
    for command in commands:
        done = run_inside(name, *command.split())
        assert done.status == 0, (command, done.err)


async def until(seen: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not seen():
            await trio.sleep(0.1)


async def stopped(node: LabNode) -> None:
    pid = int(pid_file(node).read_text(encoding="ascii"))
    if pid in processes_in([node.name]):
        kill(node)
    await until(lambda: pid not in processes_in([node.name]))


def pings(node: LabNode, address: str) -> bool:
    return run_inside(node.name, "ping", "-c", "3", "-W", "5", "-i", "0.2", address).status == 0


@pytest.fixture(scope="module")
def subnet(mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour) -> str:
    """The first three bytes of the provider's /24, with .2 for node 2 and .250 for the gateway."""
    first, node = nodes_of(spec)
    members = [ip_address(status_of(each).ip4) for each in (first, node)]
    found = next(
        prefix
        for prefix in (f"100.64.{third}" for third in range(1, 4))
        if not any(member in ip_network(f"{prefix}.0/24") for member in members)
    )
    trio.run(stopped, node)
    setting(
        neighbour.name,
        f"ip address add {found}.250/24 dev up0",
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0",
    )
    setting(first.name, f"ip route add {found}.0/24 via {neighbour.address()}")
    setting(
        node.name,
        f"ip address add {found}.2/24 dev up0",
        f"ip address delete {node.address(0)}/24 dev up0",
        f"ip route add default via {found}.250",
    )
    config = load(node.config)
    there = msgspec.structs.replace(config.node, endpoints=(f"{found}.2",))
    node.config.write_text(render(msgspec.structs.replace(config, node=there)), encoding="ascii")
    return found


async def test_the_gateway_stays_and_the_mesh_works(spec: LabSpec, subnet: str) -> None:
    first, node = nodes_of(spec)
    await start(node)
    await converged(nodes_of(spec), PATIENCE_S)
    assert pings(node, f"{subnet}.250")
    assert pings(first, f"{subnet}.2")
    assert pings(node, "10.201.0.250"), "by way of the gateway"
    there = status_of(first)
    await until(lambda: pings(node, there.ip4) and pings(node, there.ip6))
    for each in (first, node):
        assert not [said for said in status_of(each).degraded if "this host's" in said]
    shown = run_inside(node.name, "ip", "route", "show", "type", "unreachable").out
    closed = [ip_network(line.removeprefix("unreachable ").split()[0]) for line in shown.splitlines()]
    assert closed
    assert not any(ip_address(f"{subnet}.250") in network for network in closed)
    assert any(ip_address("100.100.0.1") in network for network in closed)


async def test_a_members_address_on_the_host_is_refused_by_name(spec: LabSpec, subnet: str) -> None:
    first, node = nodes_of(spec)
    taken = status_of(first).ip4
    await stopped(node)
    setting(node.name, f"ip address add {taken}/32 dev up0")
    try:
        done = await trio.run_process(
            node.inside([sys.executable, "-m", "phantommesh", "run"]),
            env=node.environment(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    finally:
        setting(node.name, f"ip address delete {taken}/32 dev up0")
    said = done.stderr.decode()
    assert done.returncode == 1, said
    assert f"this host's address {taken} (up0) is the overlay address of {first.name}" in said
    assert "fix:" in said
    assert "Traceback" not in said


async def test_a_collision_that_comes_later_is_told(spec: LabSpec, subnet: str) -> None:
    first, node = nodes_of(spec)
    taken = ip_address(status_of(first).ip4)
    route = f"{ip_network((int(taken) & ~0xFF, 24))} via {subnet}.250"
    await stopped(node)
    await start(node)
    await converged(nodes_of(spec), PATIENCE_S)

    def told() -> list[str]:
        return [said for said in status_of(node).degraded if "this host's route" in said]

    setting(node.name, f"ip route add {route}")
    await until(lambda: bool(told()))
    assert first.name in told()[0]
    await until(lambda: pings(node, str(taken)))  # the member's address leads into the overlay again
    assert "the host's own range meets the overlay's" in node.log.read_text(encoding="utf-8")
    setting(node.name, f"ip route delete {route}")
    await until(lambda: not told())
    await until(lambda: pings(node, str(taken)))


async def test_a_range_that_comes_later_is_left_to_the_host(
    spec: LabSpec, subnet: str, neighbour: Neighbour
) -> None:
    node = nodes_of(spec)[1]
    other = "100.99.1"
    assert not any(ip_address(status_of(each).ip4) in ip_network(f"{other}.0/24") for each in nodes_of(spec))
    setting(neighbour.name, f"ip address add {other}.250/24 dev up0")
    setting(node.name, f"ip address add {other}.2/24 dev up0")

    def closed() -> str:
        return run_inside(node.name, "ip", "route", "show", "type", "unreachable").out

    await until(lambda: "100.99.0.0/24" in closed())  # its neighbour, cut out by itself
    assert pings(node, f"{other}.250")
    setting(node.name, f"ip address delete {other}.2/24 dev up0")
