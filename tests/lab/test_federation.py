# SPDX-License-Identifier: GPL-3.0-or-later
"""Two meshes with a pact: a service of one is open to a member of the other, and nothing else is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Network

import msgspec
import pytest
import trio

from phantommesh.management.federationview import FederationView, PactResult
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import answering, converged, phantommesh, start, view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.lab.conftest import BACKEND, PATIENCE_S, make_spec
from tests.lab.test_lab import run_in
from tests.lab.test_node import edit, stop

pytestmark = pytest.mark.lab

MESH, CIDR = "there", "10.99.0.0/16"
CLOSED_WITHIN = 5.0  # s from a revocation in one mesh until the other has closed what it opens

SERVE = """
import select, socket, sys
tcp = [socket.create_server(("::", p), family=socket.AF_INET6, dualstack_ipv6=True) for p in (5432, 5433)]
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind(("::", 5353))
print("up", flush=True)
while True:
    for ready in select.select([*tcp, udp], [], [])[0]:
        if ready is udp:
            udp.sendto(*udp.recvfrom(100))
        else:
            ready.accept()[0].sendall(b"hello")
"""
ASK = """
import socket, sys
host, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with socket.socket(socket.AF_INET6, getattr(socket, kind)) as one:
    one.settimeout(1.0)
    try:
        one.connect((host, port))
        if kind == "SOCK_DGRAM":
            one.send(b"hello")
        sys.exit(one.recv(100) != b"hello")
    except OSError:
        sys.exit(1)
"""


@pytest.fixture
def four() -> Iterator[LabSpec]:
    spec = make_spec("f", nodes=4, uplinks=1)
    yield spec
    trio.run(up.down, spec.name)


async def begin(node: LabNode) -> None:
    edit(node.config, wireguard={"backend": BACKEND})
    await start(node)
    await answering(node, PATIENCE_S)


async def second_mesh(first: LabNode, member: LabNode) -> None:
    """Have two hosts of the lab leave its mesh, and make another."""
    for node in (first, member):
        await stop(node)
        await phantommesh(node, "down")
        shutil.rmtree(node.state_dir)
        node.config.unlink()
    where = ["--name", first.name, "--endpoint", first.address(0)]
    await phantommesh(first, "init", "--mesh", MESH, *where, "--cidr", CIDR)
    await begin(first)
    invite = await phantommesh(first, "invite")
    await phantommesh(member, "join", invite, "--name", member.name, "--endpoint", member.address(0))
    await begin(member)
    await converged([first, member], PATIENCE_S)


@contextmanager
def served(*nodes: LabNode) -> Iterator[None]:
    """Serve TCP at 5432 and 5433 and UDP at 5353 on each of these hosts."""
    running = [
        subprocess.Popen(
            ["ip", "netns", "exec", node.name, sys.executable, "-c", SERVE], stdout=subprocess.PIPE
        )
        for node in nodes
    ]
    try:
        for one in running:
            assert one.stdout is not None and one.stdout.readline() == b"up\n"
        yield
    finally:
        for one in running:
            one.kill()
            one.communicate()


async def answers(node: LabNode, ip6: str, port: int, kind: str = "SOCK_STREAM") -> bool:
    inside = ["ip", "netns", "exec", node.name, sys.executable, "-c", ASK, ip6, str(port), kind]
    return (await trio.run_process(inside, check=False)).returncode == 0


async def pings(node: LabNode, ip6: str) -> bool:
    inside = ["ip", "netns", "exec", node.name, "ping", "-6", "-c", "1", "-W", "1", ip6]
    return (await trio.run_process(inside, check=False, capture_stdout=True)).returncode == 0


async def pacts(node: LabNode) -> FederationView:
    return msgspec.json.decode(await phantommesh(node, "federation", "list", "--json"), type=FederationView)


async def linked(node: LabNode, names: list[str]) -> None:
    """Wait until a node links with exactly these members of the other mesh."""
    with trio.fail_after(PATIENCE_S):
        while [one.name for one in (await pacts(node)).visitors if one.linked] != names:
            await trio.sleep(0.2)


async def agreed(here: LabNode, there: LabNode, service: str, user: str) -> PactResult:
    line = await phantommesh(here, "federation", "invite", "--service", f"{service}:tcp/5432,udp/5353:{user}")
    made = await phantommesh(there, "federation", "accept", line.strip(), "--member", user, "--json")
    return msgspec.json.decode(made, type=PactResult)


async def test_a_service_of_one_mesh_for_a_member_of_another(four: LabSpec) -> None:
    await up.up(four)
    alpha, db, omega, web = nodes_of(four)
    await second_mesh(omega, web)
    at = {node.name: (await view_of(node)).status.ip6 for node in nodes_of(four)}
    assert not (await pacts(alpha)).pacts
    with served(*nodes_of(four)):
        assert not await answers(web, at[db.name], 5432)
        made = await agreed(alpha, omega, db.name, web.name)
        await linked(db, [web.name])
        await linked(web, [db.name])

        # The allowed pair, at the allowed ports.
        with trio.fail_after(PATIENCE_S):
            while not await answers(web, at[db.name], 5432):
                await trio.sleep(0.2)
        assert await answers(web, at[db.name], 5353, "SOCK_DGRAM")

        # All others, both ways: other ports, the way back, other members, and by the allowed pair's links.
        assert not await answers(web, at[db.name], 5433)
        assert not await pings(web, at[db.name])
        assert not await answers(db, at[web.name], 5432)
        assert not await answers(db, at[web.name], 5353, "SOCK_DGRAM")
        for node, other in ((omega, db), (omega, alpha), (web, alpha), (alpha, web), (alpha, omega)):
            assert not await answers(node, at[other.name], 5432)
        shown = run_in(db, "wg", "show", "all", "allowed-ips")
        assert at[web.name] in shown and at[omega.name] not in shown and "10.99." not in shown
        assert [one.name for one in (await pacts(alpha)).visitors] == []
        peers = msgspec.json.decode(await phantommesh(db, "peers", "--json"))
        assert web.name not in {one["name"] for one in peers["items"] if one["ip4"].startswith("10.99.")}

        # What one mesh revokes, the other closes.
        began = trio.current_time()
        await phantommesh(omega, "revoke", web.name)
        while at[web.name] in run_in(db, "wg", "show", "all", "allowed-ips"):
            await trio.sleep(0.05)
        took = trio.current_time() - began
        assert not await answers(web, at[db.name], 5432)
        print(f"closed {took:.2f} s after the command to revoke began")
        assert took <= CLOSED_WITHIN, f"closed after {took:.1f} s"

        # A node that is taken down opens the other mesh's network again, too.
        network = str(IPv6Network((at[web.name], 48), strict=False))
        assert network in run_in(db, "ip", "-6", "route", "show", "table", "all")
        await stop(db)
        assert network in run_in(db, "ip", "-6", "route", "show", "table", "all")
        await phantommesh(db, "down")
        assert network not in run_in(db, "ip", "-6", "route", "show", "table", "all")

        # Either mesh ends the pact alone.
        await phantommesh(alpha, "federation", "end", made.pact[:8])
        with trio.fail_after(PATIENCE_S):
            while [one.state for one in (await pacts(omega)).pacts] != ["ended"]:
                await trio.sleep(0.2)
