# SPDX-License-Identifier: GPL-3.0-or-later
"""A node with the rights that its systemd unit leaves it, and what it tells its supervisor."""

import select
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio

from phantommesh.cli.unitfile import CAPABILITIES, state_dir_of
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import converged
from phantommesh.nursery.lab.net import LabSpec, nodes_of
from tests.lab.conftest import PATIENCE_S
from tests.lab.test_down import ask
from tests.lab.test_node import interfaces

pytestmark = pytest.mark.lab


async def test_a_node_works_with_what_its_unit_leaves_it_and_tells_its_supervisor(
    other: LabSpec, tmp_path: Path
) -> None:
    await up.up(other)
    _, node = nodes_of(other)
    await trio.to_thread.run_sync(ask, node, "down")
    wanted = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in CAPABILITIES)])
    rights = ["setpriv", "--no-new-privs", f"--bounding-set={wanted}"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard, (tmp_path / "log").open("wb") as errors:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(PATIENCE_S)
        told = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "9000000"}
        with subprocess.Popen(
            node.inside([*rights, sys.executable, "-m", "phantommesh", "run"]),
            env={**node.environment(), **told},
            stderr=errors,
        ) as process:
            try:
                await trio.to_thread.run_sync(until_told, heard, "READY=1")
                await converged(nodes_of(other), PATIENCE_S)
                assert held(process.pid) == set(CAPABILITIES)
                await trio.to_thread.run_sync(until_told, heard, "WATCHDOG=1")
                assert ask(node, "status")["ready"]
                drain(heard)  # a socket's queue is short, and a word that finds it full is lost
                process.send_signal(signal.SIGTERM)
                await trio.to_thread.run_sync(until_told, heard, "STOPPING=1")
                assert await trio.to_thread.run_sync(process.wait, PATIENCE_S) == 0
            finally:
                process.kill()
    log = (tmp_path / "log").read_text("utf-8")
    assert "Operation not permitted" not in log and "Permission denied" not in log


async def test_up_and_down_as_an_operator_types_them(other: LabSpec, tmp_path: Path) -> None:
    await up.up(other)
    _, node = nodes_of(other)
    assert ask(node, "up") == {"up": True, "unit": None}  # it runs already, and no service started it
    assert ask(node, "wait", "--ready")["ready"]
    unit = await trio.to_thread.run_sync(ask, node, "service", "install", "--dry-run")
    assert state_dir_of(unit["text"]) == node.state_dir and f" --config {node.config} " in unit["text"]
    assert (await trio.to_thread.run_sync(ask, node, "down"))["node"] == "stopped"
    assert interfaces(node) == []

    refused = await trio.to_thread.run_sync(partial(ask, node, "up", status=1))
    assert f"--state-dir {node.state_dir} " in refused and "up --foreground" in refused
    assert "not running" in await trio.to_thread.run_sync(partial(ask, node, "status", status=3))
    with (
        (tmp_path / "log").open("wb") as errors,
        subprocess.Popen(
            node.inside([sys.executable, "-m", "phantommesh", "up", "--foreground"]),
            env=node.environment(),
            stderr=errors,
        ) as process,
    ):
        try:
            assert (await trio.to_thread.run_sync(ask, node, "wait", "--ready", "--timeout", "2m"))["ready"]
            await converged(nodes_of(other), PATIENCE_S)
            assert (await trio.to_thread.run_sync(ask, node, "down"))["node"] == "stopped"
            assert await trio.to_thread.run_sync(process.wait, PATIENCE_S) == 0
        finally:
            process.kill()
    assert interfaces(node) == []


def until_told(heard: socket.socket, wanted: str) -> None:
    while wanted not in heard.recv(4096).decode().splitlines():
        pass


def drain(heard: socket.socket) -> None:
    while select.select([heard], [], [], 0)[0]:
        heard.recv(4096)


def held(pid: int) -> set[str]:
    """The capabilities of the child that is the node, of those that the unit knows by name."""
    numbers = {"CAP_CHOWN": 0, "CAP_NET_BIND_SERVICE": 10, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    bits = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    assert bits & ~sum(1 << number for number in numbers.values()) == 0, "it has more than the unit leaves"
    return {name for name, number in numbers.items() if bits >> number & 1}
