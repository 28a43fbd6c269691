# SPDX-License-Identifier: GPL-3.0-or-later
"""Two meshes on the same two hosts: a node of each runs on each host, and neither is in the other's way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from phantommesh.dimensions import all_names
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.mesh import (
    answered,
    answering,
    converged,
    flows_between,
    phantommesh,
    start,
    view_of,
)
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import open_traffic
from tests.lab.conftest import BACKEND, PATIENCE_S
from tests.lab.test_down import ask
from tests.lab.test_lab import run_in, until
from tests.lab.test_node import COMMAND, edit, fails, stop

pytestmark = pytest.mark.lab

MESH = "beside"
CIDR = "10.99.0.0/16"
DIRECTORY = Path("/run/phantommesh") / f"beside{os.getpid()}"  # a socket's path has to be short


@dataclass(frozen=True, slots=True)
class Second(LabNode):
    """The second mesh's node on a host of the lab: it has the host's name, too."""

    @property
    def state_dir(self) -> Path:
        return DIRECTORY / f"{self.number}"

    @property
    def config(self) -> Path:
        return DIRECTORY / f"{self.number}.toml"

    @property
    def log(self) -> Path:
        return DIRECTORY / f"{self.number}.log"

    @property
    def socket(self) -> Path:
        return DIRECTORY / f"{self.number}.sock"


@pytest.fixture
def directory() -> Iterator[Path]:
    """The directory of the second nodes' states, configurations and sockets. A test asks for this directory
    before its lab: the lab's end kills those nodes, and then nobody writes here any more."""
    DIRECTORY.mkdir(mode=0o700, parents=True)
    try:
        yield DIRECTORY
    finally:
        shutil.rmtree(DIRECTORY)


def set_apart(node: Second, hook: str, hosts: Path) -> None:
    """Set what two nodes of one host cannot both have, as docs/operations.md says."""
    edit(
        node.config,
        control={"port": 52800},
        wireguard={"prefix": "qm", "base_port": 52820, "backend": BACKEND},
        relay={"port": 52810},
        api={"socket": str(node.socket)},
        scatter={"hook": hook},
        dns={"mode": "hosts", "hosts": str(hosts)},
    )


async def begin(node: Second) -> int:
    pid = await net.start(node, [*COMMAND, "run"])
    await answering(node, PATIENCE_S)
    return pid


async def end(node: Second, pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    await until(lambda: pid not in net.processes_in([node.name]))


async def whole(*meshes: Sequence[LabNode]) -> None:
    """Wait until each mesh is whole, and answers pings over its own overlay that are sent from now on."""
    for nodes in meshes:
        await converged(nodes, PATIENCE_S)
        async with open_traffic(await flows_between(nodes), 0.1) as traffic:
            await answered(traffic, -1.0, PATIENCE_S)


def put_there(node: LabNode, marks: Collection[str]) -> list[str]:
    """The routes, rules and tables of nftables on a host that say one of these words."""
    commands = [["ip", family, "route", "show", "table", "all", "proto", "112"] for family in ("-4", "-6")]
    commands += [["ip", family, "rule"] for family in ("-4", "-6")] + [["nft", "list", "tables"]]
    shown = "".join(run_in(node, *command) for command in commands)
    return sorted({line.strip() for line in shown.splitlines() if any(mark in line for mark in marks)})


def answers(node: LabNode, source: str, target: str) -> bool:
    done = subprocess.run(
        ["ip", "netns", "exec", node.name, "ping", "-c", "2", "-i", "0.3", "-W", "1", "-I", source, target],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.parametrize("hook", ["egress", "mark"])
async def test_two_meshes_on_one_host(directory: Path, other: LabSpec, tmp_path: Path, hook: str) -> None:
    await up.up(other)
    first = nodes_of(other)
    second = [Second(node.lab, node.number) for node in first]
    hosts = [tmp_path / f"hosts{node.number}" for node in first]
    for node, path in zip(first, hosts, strict=True):
        path.write_text("127.0.0.1 localhost\n", encoding="ascii")
        edit(node.config, scatter={"hook": hook}, dns={"mode": "hosts", "hosts": str(path)})
        await stop(node)
        await start(node)
    await whole(first)

    # With what both meshes have by default: the error says what another range is chosen with.
    said = fails(second[0], "init", "--mesh", MESH, "--name", second[0].name)
    assert "100.64.0.0/10" in said and "another mesh's" in said and "--cidr" in said

    where = ["--name", second[0].name, "--endpoint", second[0].address(0)]
    await phantommesh(second[0], "init", "--mesh", MESH, *where, "--cidr", CIDR)
    assert "for a node of a second mesh, set wireguard.prefix" in fails(second[0], "run")
    set_apart(second[0], hook, hosts[0])
    pids = [await begin(second[0])]
    invite = await phantommesh(second[0], "invite")
    where = ["--name", second[1].name, "--endpoint", second[1].address(0)]
    await phantommesh(second[1], "join", invite, *where)
    set_apart(second[1], hook, hosts[1])
    pids.append(await begin(second[1]))
    await whole(first, second)

    # Names: a block each in one hosts file, and the node's name in both zones.
    text = hosts[0].read_text(encoding="ascii")
    for mesh in ("lab", MESH):
        assert text.count(f"# BEGIN phantommesh {mesh}\n") == 1
        assert f"{first[1].name}.{mesh}.internal" in text

    # Neither mesh carries the other's packets.
    here = [(await view_of(node)).status for node in first]
    there = [(await view_of(node)).status for node in second]
    assert answers(first[0], here[0].ip4, here[1].ip4) and answers(first[0], there[0].ip4, there[1].ip4)
    assert not answers(first[0], here[0].ip4, there[1].ip4)
    assert not answers(first[0], there[0].ip6, here[1].ip6)

    # One that ends and begins again leaves the other's traffic and its routes alone.
    ours = {"100.64.0.0", "_pm", " pm", str(here[1].ip6)[:14]}
    theirs = {"10.99.0.0", "_qm", " qm", str(there[1].ip6)[:14]}
    for pair, nodes, marks in ((first, second, theirs), (second, first, ours)):
        async with open_traffic(await flows_between(nodes), 0.1) as traffic:
            await answered(traffic, -1.0, PATIENCE_S)
            before = put_there(nodes[1], marks)
            if pair is first:
                await stop(first[1])
            else:
                await end(second[1], pids[1])
            assert put_there(nodes[1], marks) == before
            if pair is first:
                await start(first[1])
            else:
                pids[1] = await begin(second[1])
            await traffic.settle(PATIENCE_S)
            assert [flow.sent - flow.received for flow in traffic.flows] == [0] * len(traffic.flows)
        await whole(first, second)

    # `down` of one takes its own away alone.
    before = put_there(first[1], theirs)
    assert before and put_there(first[1], ours)
    done = ask(first[1], "down")
    assert done["interfaces"] == sorted(all_names("pm")) and done["running"] == ["qm"]
    assert put_there(first[1], theirs) == before
    assert put_there(first[1], ours) == []
    links = run_in(first[1], "ip", "-o", "link")
    assert " qm0" in links and " pm0" not in links
    await whole(second)
