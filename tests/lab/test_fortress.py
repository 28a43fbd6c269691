# SPDX-License-Identifier: GPL-3.0-or-later
"""FORTRESS in real nodes: a machine on the underlay floods and scans them, by its own address or others'."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
import pytest
import trio

from phantommesh.acl.banrules import table_name
from phantommesh.client.http import ApiError, NodeClient
from phantommesh.management.threatsview import ThreatsView
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, kill, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.attacks.rig import Neighbour, neighbour_of, run_inside
from tests.lab.conftest import PATIENCE_S

pytestmark = pytest.mark.lab

PACE = 1500.0  # datagrams a second
CONTROL, WIREGUARD = "51800", "51820"
TABLE = ("inet", table_name("pm"))


@pytest.fixture
def neighbour(mesh: up.LabResult, spec: LabSpec) -> Iterator[Neighbour]:
    with neighbour_of(spec) as machine:
        yield machine
        for node in nodes_of(spec):
            for origin in ("own", "operator", "hinted"):
                NodeClient(node.socket).unban(by=origin)


def threats(node: LabNode) -> ThreatsView:
    return NodeClient(node.socket, timeout=30.0).threats()


def lists(node: LabNode, name: str, element: str) -> bool:
    """Whether a set of a node's table of bans has this element."""
    return element in run_inside(node.name, "nft", "list", "set", *TABLE, name).out


def eventually(met: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def attack(machine: Neighbour, how: str, victim: LabNode, seconds: float, *forged: str) -> dict[str, float]:
    """Flood and scan; return how many datagrams were sent."""
    done = machine.run(
        sys.executable, "-m", "tests.attacks.junk",
        how, victim.address(0), CONTROL, WIREGUARD, str(PACE), str(seconds), *forged,
    )  # fmt: skip
    assert done.status == 0, done.err
    sent: dict[str, float] = json.loads(done.out.splitlines()[-1])
    assert sent["sent"] > 0.5 * PACE * seconds, sent
    return sent


def rotated(node: LabNode, peer: LabNode) -> None:
    """A handshake with a peer goes through."""
    done = NodeClient(node.socket, timeout=60.0).rotate(
        peer.name, dry_run=False, idempotency_key=uuid.uuid4().hex
    )
    assert [one.result for one in done.rotations] == ["rotated"]


def test_forged_sources_ban_nobody_are_shed_and_leave_members_alone(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour
) -> None:
    victim, honest, third = nodes_of(spec)
    members = [f"{node.address(0)}/32" for node in (honest, third)]
    flood = neighbour.start(
        sys.executable, "-m", "tests.attacks.junk", "forged", victim.address(0), CONTROL, WIREGUARD,
        str(PACE), "6", *members, "10.201.0.128/26", "198.51.100.0/24", f"{victim.address(0)}/32",
    )  # fmt: skip
    try:
        eventually(lambda: threats(victim).shed_above is not None, "nothing is shed")
        eventually(lambda: threats(victim).shed_s > 0, "nothing is shed")
        rotated(honest, victim)
        rotated(victim, third)
        assert flood.wait(PATIENCE_S) == 0
    finally:
        flood.kill()
        flood.communicate()
    seen = threats(victim)
    assert seen.bans == [] and seen.threats
    assert [one for one in seen.threats if one.proved] == []
    assert any("unknown sources" in fault.text for fault in NodeClient(victim.socket).status().faults)


def test_a_flood_and_a_scan_of_one_machine_are_banned_and_the_next_one_at_its_first_datagram(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour
) -> None:
    victim, honest, third = nodes_of(spec)
    sent = attack(neighbour, "own", victim, 4.0)["sent"]
    (ban,) = threats(victim).bans
    assert (ban.network, ban.by, ban.times) == (f"{neighbour.address()}/32", "own", 1)
    assert ban.packets is not None and sent - ban.packets < 0.6 * sent  # most of it was dropped
    assert neighbour.run("ping", "-c", "1", "-W", "1", victim.address(0)).status != 0
    assert neighbour.run("ping", "-c", "1", "-W", "5", honest.address(0)).status == 0
    rotated(honest, victim)

    kill(victim)
    kept = victim.state_dir / "bans.json"
    stands = NodeClient(victim.socket)
    trio.run(start, victim)
    trio.run(converged, [victim, honest, third], PATIENCE_S)
    assert [one.network for one in stands.threats().bans] == [ban.network]  # a restart lets nobody in

    kill(victim)
    state = json.loads(kept.read_bytes())
    for one in (*state["bans"], *state["offenders"].values()):
        one["until"] = time.time() - 1.0
    kept.write_bytes(json.dumps(state).encode())
    trio.run(start, victim)
    trio.run(converged, [victim, honest, third], PATIENCE_S)
    assert threats(victim).bans == []
    neighbour.python(
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "s.sendto(bytes(8), (sys.argv[1], 51821))",
        victim.address(0),
    )
    eventually(lambda: bool(threats(victim).bans), "one datagram of an offender is not enough")
    assert [(one.network, one.times) for one in threats(victim).bans] == [(ban.network, 2)]


def test_a_table_that_is_flushed_comes_back_with_its_bans(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour
) -> None:
    victim = nodes_of(spec)[0]
    client = NodeClient(victim.socket)
    client.ban("203.0.113.0/24", seconds=600, force=False, dry_run=False, idempotency_key=uuid.uuid4().hex)
    client.ban("203.0.113.9", seconds=6000, force=False, dry_run=False, idempotency_key=uuid.uuid4().hex)
    client.ban("2001:db8::7", seconds=6000, force=False, dry_run=False, idempotency_key=uuid.uuid4().hex)

    def held() -> str:
        return run_inside(victim.name, "nft", "list", "table", *TABLE).out

    assert "203.0.113.0/24" in held() and "2001:db8::/64" in held()
    for command in (["flush", "ruleset"], ["delete", "table", *TABLE], ["flush", "table", *TABLE]):
        run_inside(victim.name, "nft", *command)
        eventually(lambda: "203.0.113.0/24" in held() and "goto control" in held(), f"nft {command}")
    for emptied, back in (
        ("operator4", "203.0.113.0/24"),
        ("operator6", "2001:db8::/64"),
        ("arrived", "51800"),
    ):
        run_inside(victim.name, "nft", "flush", "set", *TABLE, emptied)
        eventually(partial(lists, victim, emptied, back), f"{emptied} emptied")
    client.unban(network="203.0.113.0/24")
    assert "203.0.113.9" in held() and "203.0.113.0/24" not in held()


def test_an_operator_bans_and_is_kept_from_cutting_off_what_the_node_needs(
    mesh: up.LabResult, spec: LabSpec, neighbour: Neighbour
) -> None:
    victim, honest, _ = nodes_of(spec)
    client = NodeClient(victim.socket)
    key = uuid.uuid4().hex
    tried = client.ban(neighbour.address(), seconds=60, force=False, dry_run=True, idempotency_key=key)
    assert tried.dry_run and not threats(victim).bans
    with pytest.raises(ApiError, match="never banned"):
        client.ban(
            victim.address(0), seconds=60, force=False, dry_run=False, idempotency_key=uuid.uuid4().hex
        )
    ban = [sys.executable, "-m", "phantommesh", "--socket", str(victim.socket), "ban", neighbour.address()]
    assert subprocess.run(ban, check=False).returncode == 0
    assert neighbour.run("ping", "-c", "1", "-W", "1", victim.address(0)).status != 0
    decided = client.request("GET", "/v1/events?types=threat.*,agent.*").decode()
    assert "threat.banned" in decided and '"agent":"operator"' in decided
    assert [one.network for one in client.unban(network=neighbour.address()).lifted] == [
        f"{neighbour.address()}/32"
    ]
    assert neighbour.run("ping", "-c", "1", "-W", "5", victim.address(0)).status == 0
    rotated(honest, victim)


def test_the_view_is_what_it_says(mesh: up.LabResult, spec: LabSpec) -> None:
    shown = NodeClient(nodes_of(spec)[1].socket).request("GET", "/v1/threats")
    assert msgspec.json.decode(shown, type=ThreatsView).bans == []
