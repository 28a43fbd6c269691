# SPDX-License-Identifier: GPL-3.0-or-later
"""One node's life as its operator sees it: starting, leaving, failing to start, healing."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from benchmarks import restart
from phantommesh.config.reading import load
from phantommesh.config.sections import IntentSection
from phantommesh.config.writing import render
from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.mesh import answered, converged, crash, flows_between, kill, start, view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import open_traffic
from tests.attacks.rig import status_of
from tests.lab.conftest import BACKEND, PATIENCE_S
from tests.lab.test_lab import INTERFACES, check_psks, is_gone, run_in, until

pytestmark = pytest.mark.lab

COMMAND = [sys.executable, "-m", "phantommesh"]
LISTEN = """
import socket, time
s = socket.create_server(('0.0.0.0', 20999))
print('up', flush=True)
time.sleep(600)
"""
OTHER_INTERFACES: dict[str, object] = {"backend": BACKEND, "prefix": "zz", "base_port": 40000}
MUTE = """table inet mute {
    chain out { type filter hook output priority 0; policy accept; udp dport 51800 drop; }
    chain in { type filter hook input priority 0; policy accept; udp dport 51800 drop; }
}
"""


@pytest.fixture
def node(mesh: up.LabResult, spec: LabSpec) -> LabNode:
    return nodes_of(spec)[1]


def interfaces(node: LabNode) -> list[str]:
    links = subprocess.run(["ip", "-n", node.name, "-o", "link"], capture_output=True, text=True, check=True)
    names = [line.split(": ")[1].split("@")[0] for line in links.stdout.splitlines()]
    return sorted(name for name in names if name in INTERFACES)


def index_of(node: LabNode, interface: str) -> int | None:
    """Return the kernel's number of an interface, which one that is made again does not share."""
    argv = ["ip", "-n", node.name, "-j", "link", "show", interface]
    shown = subprocess.run(argv, capture_output=True, check=False)
    return int(msgspec.json.decode(shown.stdout)[0]["ifindex"]) if shown.returncode == 0 else None


def wireguards(node: LabNode) -> dict[str, int]:
    """Return the userspace WireGuards in a node's namespace: the process of each interface."""
    found = {}
    for pid in net.processes_in([node.name]):
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
        if "wireguard" in words[0] and len(words) > 2:
            found[words[2]] = pid
    return found


def edit(path: Path, intent: tuple[IntentSection, ...] = (), **sections: dict[str, object]) -> None:
    config = load(path)
    changed: dict[str, object] = {
        name: msgspec.structs.replace(getattr(config, name), **values) for name, values in sections.items()
    }
    changed["intent"] = intent
    path.write_text(render(msgspec.structs.replace(config, **changed)), encoding="ascii")


@contextmanager
def configured(
    node: LabNode, intent: tuple[IntentSection, ...] = (), **sections: dict[str, object]
) -> Iterator[None]:
    before = node.config.read_bytes()
    edit(node.config, intent, **sections)
    try:
        yield
    finally:
        node.config.write_bytes(before)


async def stop(node: LabNode) -> None:
    kill(node, signal.SIGTERM)
    await until(lambda: is_gone(node))


@asynccontextmanager
async def in_foreground(node: LabNode, tmp_path: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a node of the lab as a child of the test, and give it back to the lab afterwards."""
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(node.inside([*COMMAND, "run"]), env=node.environment(), stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            await start(node)


async def ended(process: subprocess.Popen[bytes]) -> int:
    await until(lambda: process.poll() is not None)
    return process.wait()


async def whole(spec: LabSpec) -> None:
    await converged(nodes_of(spec), PATIENCE_S)


async def test_sigterm_takes_the_vpn_down(spec: LabSpec, node: LabNode, tmp_path: Path) -> None:
    await stop(node)
    assert interfaces(node) == []
    assert net.processes_in([node.name]) == []
    async with in_foreground(node, tmp_path) as process:
        await whole(spec)
        assert interfaces(node) == INTERFACES
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
        assert interfaces(node) == []
        assert net.processes_in([node.name]) == []
        assert not node.socket.exists()
        assert "Traceback" not in (tmp_path / "log").read_text(encoding="utf-8")
    await whole(spec)


async def test_signals_reload_or_are_ignored_and_sockets_come_back(spec: LabSpec, node: LabNode) -> None:
    with configured(node, log={"level": "debug"}, wireguard={"keepalive": 20}):
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            kill(node, number)
        await until(lambda: "config-needs-restart" in {fault.code for fault in status_of(node).faults})
        assert not is_gone(node) and interfaces(node) == INTERFACES
    kill(node, signal.SIGHUP)
    await until(lambda: "config-needs-restart" not in {fault.code for fault in status_of(node).faults})
    node.socket.unlink()
    await until(node.socket.exists)
    assert status_of(node).node == node.name
    await whole(spec)


async def test_kept_interfaces_carry_on_through_a_restart(spec: LabSpec, node: LabNode) -> None:
    before = (await view_of(node)).status
    with configured(node, wireguard={"keep_interfaces": True}):
        await stop(node)
        await start(node)
        await whole(spec)
    async with open_traffic(await flows_between(nodes_of(spec)), 0.05) as traffic:
        await answered(traffic, -1.0, PATIENCE_S)
        held = wireguards(node)
        await stop(node)
        assert interfaces(node) == INTERFACES
        assert wireguards(node) == held
        await answered(traffic, trio.current_time(), PATIENCE_S)  # with nobody at the wheel
        await start(node)
        await whole(spec)
        assert wireguards(node) == held
        await traffic.settle(PATIENCE_S)
        assert [flow.sent - flow.received for flow in traffic.flows] == [0] * len(traffic.flows)
    after = (await view_of(node)).status
    assert (after.node_id, after.ip4) == (before.node_id, before.ip4)


@pytest.mark.parametrize("moment", ["lock", "interface"])
async def test_sigterm_while_it_starts_leaves_nothing(
    spec: LabSpec, node: LabNode, tmp_path: Path, moment: str
) -> None:
    await stop(node)
    (node.state_dir / "lock").unlink()
    async with in_foreground(node, tmp_path) as process:
        seen: dict[str, Callable[[], bool]] = {
            "lock": (node.state_dir / "lock").exists,
            "interface": lambda: bool(interfaces(node)),
        }
        await until(lambda: process.poll() is not None or seen[moment]())
        process.send_signal(signal.SIGTERM)
        assert await ended(process) == 0
        assert interfaces(node) == []
        assert net.processes_in([node.name]) == []
    await whole(spec)


def fails(node: LabNode, *arguments: str) -> str:
    """Run the command line where it must fail with an error of one line and its fix; return both."""
    done = subprocess.run(
        node.inside([*COMMAND, *arguments]),
        env=node.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # those are the log
    assert [line.split(":")[0] for line in said] == ["error", "fix"], done.stderr
    assert "Traceback" not in done.stderr
    return "\n".join(said)


async def test_a_second_run_on_one_state_directory_is_refused(spec: LabSpec, node: LabNode) -> None:
    said = fails(node, "run")
    assert f"another node is running on {node.state_dir}" in said
    await whole(spec)


# Ports outside the range from which the kernel picks those of outgoing connections.
TAKEN: dict[str, tuple[int, dict[str, object], str]] = {
    "udp": (51800, OTHER_INTERFACES, "cannot listen on UDP port 51800: Address already in use"),
    "tcp": (20999, OTHER_INTERFACES, "cannot listen on TCP port 20999: Address already in use"),
    "interfaces": (20998, {"backend": BACKEND}, "another node here has the interfaces pm0 to pm6"),
    "socket": (20998, OTHER_INTERFACES, "already answers on"),
}


@pytest.mark.parametrize("what", TAKEN)
async def test_what_another_has_taken_is_named_and_left_alone(
    spec: LabSpec, node: LabNode, tmp_path: Path, what: str
) -> None:
    port, wireguard, message = TAKEN[what]
    mine = ["--state-dir", str(tmp_path / "state"), "--config", str(tmp_path / "pm.toml")]
    elsewhere = ["--endpoint", "192.0.2.1", "--cidr", "10.99.0.0/16"]
    run_in(node, *COMMAND, *mine, "init", "--mesh", "other", "--name", "second", *elsewhere)
    edit(tmp_path / "pm.toml", control={"port": port}, wireguard=wireguard)
    keys = run_in(node, "wg", "show", "all", "public-key")
    listener = subprocess.Popen(node.inside([sys.executable, "-c", LISTEN]), stdout=subprocess.PIPE)
    try:
        assert listener.stdout is not None and listener.stdout.readline() == b"up\n"
        said = fails(node, *mine, "run")
    finally:
        listener.kill()
        listener.communicate()
    assert message in said
    assert "zz" not in run_in(node, "ip", "-o", "link")
    assert run_in(node, "wg", "show", "all", "public-key") == keys
    await whole(spec)


async def test_links_are_made_over_tcp_where_udp_is_blocked(spec: LabSpec, node: LabNode) -> None:
    run = node.inside(["nft", "-f", "-"])
    subprocess.run(run, input=MUTE, text=True, check=True)
    try:
        await crash(node)
        await start(node)
        await whole(spec)
    finally:
        run_in(node, "nft", "delete", "table", "inet", "mute")
    await crash(node)
    await start(node)
    await whole(spec)


@pytest.mark.parametrize("moment", [name for name in restart.MOMENTS if name != "first_run"])
async def test_killed_at_any_moment_it_comes_back_as_itself(
    spec: LabSpec, node: LabNode, moment: str
) -> None:
    await restart.come_back(restart.Round(spec, node), moment)
    await whole(spec)
    check_psks(spec)


async def test_killed_in_its_first_run_it_comes_back_as_itself(other: LabSpec) -> None:
    await up.up(other)
    await restart.come_back(restart.Round(other, nodes_of(other)[1]), "first_run")


async def test_an_interface_that_goes_away_is_made_again(spec: LabSpec, node: LabNode) -> None:
    gone = index_of(node, "pm3")
    if BACKEND == "userspace":
        os.kill(wireguards(node)["pm3"], signal.SIGKILL)
    else:
        subprocess.run(["ip", "-n", node.name, "link", "delete", "pm3"], check=True)
    # Not "until it is missing": on a kernel it may be back before anybody looks.
    await until(lambda: index_of(node, "pm3") not in (None, gone) and interfaces(node) == INTERFACES)
    await whole(spec)
    links = (await view_of(node)).links
    assert {link.dimensions for link in links.values()} == {DIMENSIONS}


def test_a_damaged_configuration_is_one_error(node: LabNode, tmp_path: Path) -> None:
    path = tmp_path / "pm.toml"
    path.write_text(node.config.read_text(encoding="ascii") + "[wiregard]\nmtu = 1\n", encoding="ascii")
    assert "did you mean wireguard" in fails(node, "--config", str(path), "run")
