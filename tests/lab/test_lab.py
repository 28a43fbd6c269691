# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab, and by it the whole node: real processes, namespaces and WireGuards."""

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.mesh import (
    answered,
    converged,
    crash,
    flows_between,
    kill,
    pid_file,
    start,
    view_of,
)
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import open_traffic
from tests.lab.conftest import PATIENCE_S

pytestmark = pytest.mark.lab

INTERFACES = [f"pm{index}" for index in range(DIMENSIONS)]
WATCH = 'while :; do wg show all preshared-keys; sleep 0.05; done >"$0"'
UP = """import sys, trio
from phantommesh.nursery.lab.net import LabSpec
from phantommesh.nursery.lab.up import up
trio.run(up, LabSpec(sys.argv[1], 2, 1))
"""


def try_in(node: LabNode, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        node.inside(command), env=node.environment(), capture_output=True, text=True, check=False
    )


def run_in(node: LabNode, *command: str) -> str:
    done = try_in(node, *command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_psks(spec: LabSpec) -> dict[tuple[str, str, str], str]:
    """Return every PSK by (interface, own public key, peer's public key)."""
    found = {}
    for node in nodes_of(spec):
        own = dict(line.split("\t") for line in run_in(node, "wg", "show", "all", "public-key").splitlines())
        for line in run_in(node, "wg", "show", "all", "preshared-keys").splitlines():
            interface, peer, psk = line.split("\t")
            found[interface, own[interface], peer] = psk
    return found


def own_keys(node: LabNode) -> set[str]:
    return {line.split("\t")[1] for line in run_in(node, "wg", "show", "all", "public-key").splitlines()}


def check_psks(spec: LabSpec) -> None:
    """Every peer on every interface has a PSK, and no two pairs or dimensions have the same one.

    Links rotate by themselves, and one may do so while this reads; so it reads until the ends agree.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        psks = read_psks(spec)
        differing = [key for key, psk in psks.items() if psks.get((key[0], key[2], key[1])) != psk]
        if not differing or time.monotonic() > deadline:
            break
    pairs = spec.nodes * (spec.nodes - 1) // 2
    assert differing == []
    assert {interface for interface, _, _ in psks} == set(INTERFACES)
    assert len(psks) == 2 * pairs * DIMENSIONS
    assert len(set(psks.values())) == pairs * DIMENSIONS
    assert all(any(base64.b64decode(psk, validate=True)) for psk in psks.values())


async def until(seen: Callable[[], bool]) -> None:
    with trio.fail_after(PATIENCE_S):
        while not seen():
            await trio.sleep(0.1)


def is_gone(node: LabNode) -> bool:
    return int(pid_file(node).read_text(encoding="ascii")) not in net.processes_in([node.name])


def left_by(spec: LabSpec) -> list[str]:
    """Return whatever of a lab is still there: namespaces, processes and files."""
    names = [f"{spec.name}-net", *(node.name for node in nodes_of(spec))]
    left = [name for name in names if net.namespace_exists(name)]
    for directory in (net.STATE, net.RUN):
        left += [str(path) for path in directory.glob(f"*{spec.name}*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        except OSError:
            continue
        if any(f"{name}.sock".encode() in arguments for name in names):
            left.append(str(process))
    return left


def test_every_pair_is_keyed_in_every_dimension(mesh: up.LabResult, spec: LabSpec) -> None:
    assert mesh.backend == spec.backend
    assert [(link.a, link.b) for link in mesh.links] == [
        (f"{spec.name}-1", f"{spec.name}-2"),
        (f"{spec.name}-1", f"{spec.name}-3"),
        (f"{spec.name}-2", f"{spec.name}-3"),
    ]
    assert {link.dimensions for link in mesh.links} == {DIMENSIONS}
    assert sorted(mesh.joins) == [f"{spec.name}-2", f"{spec.name}-3"]


def test_both_ends_hold_the_same_psk_on_every_interface(mesh: up.LabResult, spec: LabSpec) -> None:
    check_psks(spec)


def answered_by(node: LabNode, peer: LabNode, *options: str) -> list[tuple[str, int]]:
    """The way of each dimension and how many of two pings it answers."""
    done = try_in(node, "phantommesh", "ping", peer.name, "-c", "2", "--json", *options)
    assert done.stdout, done.stderr
    return [(one["way"], one["received"]) for one in json.loads(done.stdout)["dimensions"]]


OPEN = {("udp", True), ("tcp", True)}  # what reaches a node that is behind nothing


async def test_every_dimension_answers_a_ping_on_a_direct_way(mesh: up.LabResult, spec: LabSpec) -> None:
    first, second, third = nodes_of(spec)
    await converged([first, second, third], PATIENCE_S)

    # An emulated machine is slow: a probe, a datagram of gossip or an answer may be late at any one moment.
    def paths() -> list[dict[str, Any]]:
        done = try_in(first, "phantommesh", "paths", "--json")
        return [] if done.returncode else list(json.loads(done.stdout)["items"])

    everywhere = [
        (node.name, "direct", None, True, True) for node in (second, third) for _ in range(DIMENSIONS)
    ]
    await until(
        lambda: (
            sorted(
                (one["peer"], one["way"], one["via"], one["why"] != "", (one["mtu"] or 0) >= 1280)
                for one in paths()
            )
            == everywhere
        )
    )
    # The first packets of a dimension wait for WireGuard's own handshake, longer on a busy machine.
    await until(lambda: answered_by(first, second) == [("direct", 2)] * DIMENSIONS)
    await until(lambda: answered_by(first, second, "--size", "1280") == [("direct", 2)] * DIMENSIONS)
    assert try_in(first, "phantommesh", "ping", "nobody").returncode == 1


async def test_netcheck_tells_of_a_node_behind_nothing(mesh: up.LabResult, spec: LabSpec) -> None:
    nodes = nodes_of(spec)
    await converged(nodes, PATIENCE_S)
    # A node whose addresses have just settled asks anew where members see it: until then its NAT is unknown.
    found: dict[str, Any] = {}

    def reached() -> bool:
        done = try_in(nodes[0], "phantommesh", "netcheck", "--json")
        found.update({} if done.returncode else json.loads(done.stdout))
        return {(one["transport"], one["reached"]) for one in found.get("reached", ())} == OPEN and {
            nat["kind"] for nat in found["nat"]
        } == {"none"}

    await until(reached)
    assert len([uplink for uplink in found["uplinks"] if uplink["addresses"]]) == spec.uplinks


async def test_members_tell_each_other_their_links_and_nothing_is_weak(
    mesh: up.LabResult, spec: LabSpec
) -> None:
    nodes = nodes_of(spec)
    await converged(nodes, PATIENCE_S)
    names = {node.name for node in nodes}

    def known() -> bool:
        found = json.loads(run_in(nodes[0], "phantommesh", "topology", "--json"))
        return (found["asked"], found["heard"], found["links_total"], found["advice"]) == (2, 2, 3, []) and {
            end for link in found["links"] for end in (link["one"], link["two"])
        } == names

    await until(known)
    assert run_in(nodes[0], "phantommesh", "topology", "--dot").count(" -- ") == 3


async def test_rotation_changes_every_psk_and_loses_no_ping(mesh: up.LabResult, spec: LabSpec) -> None:
    nodes = nodes_of(spec)
    before = read_psks(spec)
    of_first = {key for key in before if key[1] in own_keys(nodes[0])}
    async with open_traffic(await flows_between(nodes), 0.05) as traffic:
        await answered(traffic, -1.0, PATIENCE_S)
        # On an emulated machine `rotate` may end before the rotations do, and says so by its exit status.
        await trio.to_thread.run_sync(try_in, nodes[0], "phantommesh", "rotate")
        await until(lambda: all(read_psks(spec)[key] != before[key] for key in of_first))
        await converged(nodes, PATIENCE_S)
        await traffic.settle(PATIENCE_S)
        assert [flow.sent - flow.received for flow in traffic.flows] == [0] * len(traffic.flows)
    check_psks(spec)


async def test_killed_node_returns_as_itself_and_traffic_goes_on(mesh: up.LabResult, spec: LabSpec) -> None:
    nodes = nodes_of(spec)
    victim = nodes[1]
    before = (await view_of(victim)).status
    async with open_traffic(await flows_between(nodes), 0.05) as traffic:
        await answered(traffic, -1.0, PATIENCE_S)
        kill(victim)
        await until(lambda: is_gone(victim))
        await start(victim)
        await converged(nodes, PATIENCE_S)
        await answered(traffic, trio.current_time(), PATIENCE_S)
        await traffic.settle(PATIENCE_S)
        assert [flow.sent - flow.received for flow in traffic.flows] == [0] * len(traffic.flows)
    after = (await view_of(victim)).status
    assert (after.node_id, after.ip4, after.ip6) == (before.node_id, before.ip4, before.ip6)
    check_psks(spec)


async def test_node_that_lost_its_wireguard_too_returns(mesh: up.LabResult, spec: LabSpec) -> None:
    nodes = nodes_of(spec)
    async with open_traffic(await flows_between(nodes), 0.05) as traffic:
        await crash(nodes[2])
        assert net.processes_in([nodes[2].name]) == []
        await start(nodes[2])
        await converged(nodes, PATIENCE_S)
        await answered(traffic, trio.current_time(), PATIENCE_S)
    check_psks(spec)


async def test_second_lab_coexists_and_leaves_nothing(
    mesh: up.LabResult, spec: LabSpec, other: LabSpec, tmp_path: Path
) -> None:
    seen = [tmp_path / node.name for node in nodes_of(other)]
    async with trio.open_nursery() as nursery:

        async def watch(node: LabNode, path: Path) -> None:
            await until(node.wireguard_sockets.exists)
            await net.start(node, ["sh", "-c", WATCH, str(path)])

        for node, path in zip(nodes_of(other), seen, strict=True):
            nursery.start_soon(watch, node, path)
        await up.up(other)
    check_psks(other)
    check_psks(spec)
    with pytest.raises(LabError, match="up already"):
        await up.up(other)
    assert left_by(other)
    assert await up.down(other.name)
    assert left_by(other) == []
    for path in seen:  # from the first moment on, no peer was ever without a PSK
        lines = [line.split("\t") for line in path.read_text(encoding="ascii").splitlines()]
        assert {interface for interface, *_ in lines} == set(INTERFACES)
        assert not [line for line in lines if line[-1] == "(none)"]
    assert not await up.down(other.name)
    await converged(nodes_of(spec), PATIENCE_S)


async def test_down_after_the_lab_command_was_killed(other: LabSpec) -> None:
    first = nodes_of(other)[0]
    builder = subprocess.Popen([sys.executable, "-c", UP, other.name], stderr=subprocess.DEVNULL)
    try:
        await until(lambda: builder.poll() is not None or first.socket.exists())
        assert builder.poll() is None
    finally:
        builder.kill()
        builder.wait()
    assert left_by(other)
    assert await up.down(other.name)
    assert left_by(other) == []


async def test_down_removes_what_interrupted_joins_left(other: LabSpec) -> None:
    name = nodes_of(other)[1].name
    net.STATE.mkdir(parents=True, exist_ok=True)
    up._write_manifest(other, "building")
    half_made = net.STATE / f".{name}.creating"
    half_made.mkdir()
    (half_made / "node.key").touch()
    (net.STATE / f"..{name}.toml.writing.new").touch()
    assert await up.down(other.name)
    assert left_by(other) == []


async def test_what_no_lab_made_is_not_touched(other: LabSpec) -> None:
    stranger = f"{other.name}-2"
    subprocess.run(["ip", "netns", "add", stranger], check=True)
    try:
        with pytest.raises(LabError, match=f"{stranger} exists"):
            await up.up(other)
        assert not await up.down(other.name)
        assert net.namespace_exists(stranger)
    finally:
        subprocess.run(["ip", "netns", "delete", stranger], check=True)
    assert left_by(other) == []


async def test_without_root_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root") as caught:
        await up.up(LabSpec("nobody"))
    assert "sudo" in caught.value.fix
    with pytest.raises(LabError, match="needs root"):
        await up.down("nobody")
