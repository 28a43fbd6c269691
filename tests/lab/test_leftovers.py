# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node has left on its host under other names, or with its state lost; and a rule that is deleted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from phantommesh.config.reading import load
from phantommesh.dimensions import all_names
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged, pid_file, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from tests.lab.conftest import PATIENCE_S
from tests.lab.test_down import ask, left_over, runs
from tests.lab.test_lab import until

pytestmark = pytest.mark.lab

SPACE = f"left{os.getpid()}"
# Run in the namespace: an overlay that looks for itself once an hour, and a rule that somebody deletes.
DELETED = """
import subprocess, sys, trio
from ipaddress import ip_network
from phantommesh.nursery.overlay.holding import Overlay

networks = ip_network("100.64.0.0/10"), ip_network("fd00:1::/48")
family = sys.argv[1]

def shown():
    done = subprocess.run(["ip", family, "rule"], capture_output=True, text=True, check=True)
    return done.stdout.count("11217:")

async def main():
    overlay = Overlay(networks, ("pm",), dict, interval=3600.0)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(overlay.run)
            while not shown():
                await trio.sleep(0.05)
            await trio.sleep(1)  # what it did itself is heard of, too
            subprocess.run(["ip", family, "rule", "delete", "priority", "11217"], check=True)
            while not shown():
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

trio.run(main)
"""


@pytest.fixture
def space() -> Iterator[list[str]]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    subprocess.run(["ip", "netns", "add", SPACE], check=True)
    subprocess.run(["ip", "-n", SPACE, "link", "set", "lo", "up"], check=True)
    try:
        yield ["ip", "netns", "exec", SPACE]
    finally:
        subprocess.run(["ip", "netns", "delete", SPACE], check=True)


@pytest.mark.parametrize("family", ["-4", "-6"])
def test_a_deleted_rule_is_back_as_soon_as_the_kernel_tells(space: list[str], family: str) -> None:
    run = [*space, sys.executable, "-c", DELETED, family]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def inside(node: LabNode, *command: str) -> str:
    run = ["ip", "netns", "exec", node.name, *command]
    return subprocess.run(run, capture_output=True, text=True, check=False).stdout


def pid_of(node: LabNode) -> int:
    return int(pid_file(node).read_text(encoding="ascii"))


def rename(node: LabNode, prefix: str) -> None:
    text = node.config.read_text(encoding="utf-8")
    settings = load(node.config).wireguard
    if f'"{settings.prefix}"' in text:
        text = text.replace(f'prefix = "{settings.prefix}"', f'prefix = "{prefix}"')
    else:
        text = text.replace("[wireguard]\n", f'[wireguard]\nprefix = "{prefix}"\n')
    node.config.write_text(text, encoding="utf-8")
    assert load(node.config).wireguard.prefix == prefix


async def test_what_is_left_under_other_names_or_without_state_is_removed(other: LabSpec) -> None:
    await up.up(other)
    first, node = nodes_of(other)
    peer = ask(first, "status")["ip4"]

    async def stopped() -> None:
        subprocess.run(["kill", str(pid_of(node))], check=True)
        await until(lambda: not runs(node))

    # A table that a node holds which runs here, and one that nobody holds.
    holding = (
        "import sys; from phantommesh.nursery.host.owning import owned\n"
        "with owned('xx') as free: print(free, flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        ["ip", "netns", "exec", node.name, sys.executable, "-c", holding],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"True\n"
    for name in ("xx", "yy"):
        inside(node, "nft", "add", "table", "inet", f"phantommesh_guard_{name}")
    await stopped()
    rename(node, "qm")
    await start(node)
    await converged(nodes_of(other), PATIENCE_S)
    assert " 0% packet loss" in inside(node, "ping", "-c", "3", "-i", "0.2", "-W", "5", peer)
    tables = inside(node, "nft", "list", "tables")
    assert "guard_qm" in tables and "guard_xx" in tables
    assert "guard_pm" not in tables and "guard_yy" not in tables
    assert "inet phantommesh_guard_pm" in node.log.read_text(encoding="utf-8")

    # `down` takes those of earlier names along, and leaves the running node's.
    inside(node, "nft", "add", "table", "arp", "phantommesh_guard_yy")
    inside(node, "nft", "add", "table", "netdev", "phantommesh_yy")
    done = await trio.to_thread.run_sync(ask, node, "down")
    assert {"arp phantommesh_guard_yy", "netdev phantommesh_yy"} <= set(done["tables"])
    assert done["running"] == ["xx"]
    assert inside(node, "nft", "list", "tables") == "table inet phantommesh_guard_xx\n"
    holder.communicate(b"")
    inside(node, "nft", "delete", "table", "inet", "phantommesh_guard_xx")

    # Without state: a node that runs keeps all, one that is gone leaves nothing.
    await start(node)
    await converged(nodes_of(other), PATIENCE_S)
    await until(lambda: " dev qm " in left_over(node))  # the scatter's interface gets its routes last
    before = left_over(node)
    lost = node.state_dir.with_name(f"{node.name}.lost")
    node.state_dir.rename(lost)
    said = ask(node, "down", status=1)
    assert "there is no state directory" in said and "a node runs here" in said
    assert left_over(node) == before
    subprocess.run(["kill", "-9", str(pid_of(node))], check=True)
    await until(lambda: not runs(node))
    done = ask(node, "down")
    assert done["mesh"] is None
    assert done["interfaces"] == sorted(all_names("qm"))
    assert done["prefixes"][0] == "100.64.0.0/10"
    assert (" qm" in inside(node, "ip", "-o", "link"), left_over(node)) == (False, "")
    said = ask(node, "down", status=1)
    assert "there is no state directory" in said and "a node runs" not in said
    lost.rename(node.state_dir)  # for the lab to delete
