# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways to stop traffic, each played on a real mesh: the end that can know names the fault in `status`,
/readyz, the metrics and the exit status, and no fault is left when the cause is gone.

The stops of one round are played at once, each on a node of its own, so that the file takes few minutes. Node
1 has no stop: it is the other end of all of them.
"""

from __future__ import annotations

import http.client
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import msgspec
import pytest
import trio

from phantommesh.client.http import NodeClient, connect
from phantommesh.errors import PhantomMeshError
from phantommesh.management.bodies import Probe
from phantommesh.management.views import Problem, Status
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import crash, kill, pid_file, start
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.net import start as start_in
from tests.lab.conftest import PATIENCE_S, make_spec
from tests.lab.test_lab import is_gone, run_in

pytestmark = [pytest.mark.lab, pytest.mark.alone]

NODES = 5
DATA = "udp dport 51820-51833"
HOLD = """
import socket, sys, time
held = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
held[1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
for one in held:
    one.bind(('', 51822))
print('up', flush=True)
time.sleep(3600)
"""
READ_ONLY = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "


@dataclass(frozen=True)
class Stop:
    """One way to stop traffic. ``script`` runs in the node's namespace once, ``again`` over and over until
    the stop ends; ``undo`` ends it. ``{one}`` is node 1's underlay address, ``{overlay}`` its overlay
    address, ``{me}`` the node's own underlay address. ``codes``: the fault is one of these; ``seen`` says at
    which end; ``words`` are in its text; ``ready`` is what /readyz says there."""

    name: str
    codes: tuple[str, ...]
    script: str = ""
    again: str = ""
    undo: str = ""
    seen: Literal["here", "there"] = "here"
    words: str = ""
    ready: bool | None = None
    special: Literal["", "frozen", "killed", "revoked", "port", "read-only"] = ""


def firewall(hook: str, match: str) -> str:
    """Return the command that has another program's table drop what matches."""
    chain = f"add chain inet stranger one {{ type filter hook {hook} priority -300; }}"
    return f"nft 'add table inet stranger; {chain}; add rule inet stranger one {match} drop'"


OPEN = "nft delete table inet stranger"
STOPPED = ("traffic-stopped",)
GONE = ("peer-gone", "peer-dark", "peer-partly-reachable")
MESH = "{ pm0, pm1, pm2, pm3, pm4, pm5, pm6 }"

ROUNDS: list[list[Stop]] = [
    [
        Stop(
            "another firewall drops what comes out of the interfaces", STOPPED,
            firewall("input", f"iifname {MESH}"),
            undo=OPEN, ready=False, words="answer",
        ),
        Stop(
            "another firewall drops what goes into the interfaces", STOPPED,
            firewall("output", f"oifname {MESH}"),
            undo=OPEN, ready=False, words="packet filter of this host",
        ),
        Stop("WireGuard's ports are blocked", STOPPED, firewall("output", DATA), undo=OPEN, ready=False),
    ],
    [
        Stop("the peer's process is frozen", GONE, special="frozen", seen="there"),
        Stop("the peer's machine is gone", GONE, special="killed", seen="there"),
        Stop(
            "all that comes from one peer is lost", GONE, firewall("prerouting", "ip saddr {one}"), undo=OPEN,
            seen="there",
        ),
        Stop(
            "a blackhole route to one peer's host", GONE, "ip route add blackhole {one}/32",
            undo="ip route del blackhole {one}/32",
        ),
    ],
    [
        Stop("a route takes a peer's address", ("route-stolen", "overlay-conflict"),
             "ip route add {overlay}/32 dev up0", undo="ip route del {overlay}/32 dev up0"),
        Stop("a rule takes the overlay", ("route-stolen", "overlay-conflict"),
             "ip route add default dev up0 table 99 && ip rule add to 100.64.0.0/10 lookup 99 pref 5",
             undo="ip rule del pref 5; ip route flush table 99"),
        Stop("the uplink loses its address", STOPPED, "ip addr flush dev up0",
             undo="ip addr add {me}/24 dev up0", ready=False),
        Stop("the uplink is down", STOPPED, "ip link set up0 down", undo="ip link set up0 up", ready=False),
    ],
    [
        Stop("an interface is set down again and again", ("setup-contested",), again="ip link set pm3 down",
             words="pm3"),
        Stop("an interface loses its addresses again and again", ("setup-contested",),
             again="ip addr flush dev pm4", words="pm4"),
        Stop("the packet filter is flushed again and again", ("setup-contested", "overlay-unguarded"),
             again="nft flush ruleset"),
        Stop("an interface is deleted again and again",
             ("setup-contested", "interfaces-missing", "interface-not-set-up"), again="ip link del pm2",
             words="pm2"),
    ],
    [
        Stop("another program has a WireGuard port", ("interface-not-set-up",), special="port",
             words="UDP port 51822 is taken by python"),
        Stop("rp_filter is strict and /proc/sys read-only", ("interfaces-missing",), special="read-only",
             ready=False, words="Read-only file system"),
        Stop("the interfaces' MTU is set down again and again", ("setup-contested",),
             again="ip link set pm5 mtu 700", words="pm5"),
        Stop("one dimension's port is blocked", ("dimensions-dark",),
             firewall("output", "udp sport 51821"), undo=OPEN, words="dark: 1"),
    ],
    [
        Stop(
            "one direction only is blocked", ("peer-dark",), firewall("input", DATA), undo=OPEN, seen="there",
            words="does not arrive there", ready=True,
        ),
        Stop("a peer's host has a wrong hardware address", GONE,
             "ip neigh replace {one} lladdr 02:00:00:00:00:99 dev up0 nud permanent",
             undo="ip neigh del {one} dev up0"),
        Stop("routes of the interfaces are deleted again and again", ("setup-contested", *STOPPED),
             again="ip route flush dev pm1 proto 112"),
        Stop("the node is revoked", ("node-revoked",), special="revoked", ready=False),
    ],
]  # fmt: skip


@pytest.fixture(scope="module")
def mesh() -> Iterator[LabSpec]:
    spec = make_spec("s", nodes=NODES, uplinks=1)
    trio.run(up.up, spec)
    yield spec
    trio.run(partial(up.down, spec.name))


def in_node(node: LabNode, script: str) -> None:
    done = subprocess.run(
        node.inside(["sh", "-c", script]), env=node.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (script, done.stderr)


async def ended(node: LabNode) -> None:
    kill(node, signal.SIGTERM)
    while not is_gone(node):
        await trio.sleep(0.1)


@asynccontextmanager
async def special(stop: Stop, node: LabNode, one: LabNode) -> AsyncIterator[None]:
    """The stops that are no script in the node's namespace."""
    with ExitStack() as stack:
        match stop.special:
            case "frozen":
                kill(node, signal.SIGSTOP)
                yield
                kill(node, signal.SIGCONT)
            case "killed":
                await crash(node)
                yield
                await start(node)
            case "revoked":
                run_in(one, "phantommesh", "revoke", node.name)
                yield
                run_in(one, "phantommesh", "revoke", node.name, "--undo")
            case "port":
                await ended(node)
                argv = node.inside([sys.executable, "-c", HOLD])
                holder = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE))
                stack.callback(holder.kill)
                assert holder.stdout is not None
                assert await trio.to_thread.run_sync(holder.stdout.readline) == b"up\n"
                await start(node)
                yield
            case "read-only":
                await ended(node)
                strict = "for n in all default; do echo {} > /proc/sys/net/ipv4/conf/$n/rp_filter; done"
                in_node(node, strict.replace("{}", "1"))
                run = f"{READ_ONLY} {sys.executable} -m phantommesh run"
                pid = await start_in(node, ["sh", "-c", run])
                pid_file(node).write_text(f"{pid}\n", encoding="ascii")
                yield
                in_node(node, strict.replace("{}", "0"))
                await ended(node)
                await start(node)
            case _:
                yield


@asynccontextmanager
async def played(stop: Stop, node: LabNode, one: LabNode, overlay: str) -> AsyncIterator[None]:
    """Play a stop while the block runs."""
    places = {"{one}": one.address(0), "{overlay}": overlay, "{me}": node.address(0)}

    def filled(script: str) -> str:
        for place, value in places.items():
            script = script.replace(place, value)
        return script

    looping = None
    async with special(stop, node, one):
        if stop.script:
            in_node(node, filled(stop.script))
        if stop.again:
            loop = f"while :; do {filled(stop.again)}; sleep 0.2; done"
            looping = subprocess.Popen(
                node.inside(["sh", "-c", loop]), env=node.environment(), start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        try:
            yield
        finally:
            if looping is not None:
                looping.send_signal(signal.SIGKILL)
                looping.wait()
            if stop.undo:
                in_node(node, filled(stop.undo))


async def ask(node: LabNode) -> Status | None:
    try:
        return await trio.to_thread.run_sync(NodeClient(node.socket).status)
    except PhantomMeshError:
        return None


async def wait_for(node: LabNode, wanted: Callable[[Status], bool]) -> Status:
    """Ask a node until its status is as wanted. After a while that is generous, fail with what it says."""
    now = None
    with trio.move_on_after(PATIENCE_S):
        while True:
            now = await ask(node)
            if now is not None and wanted(now):
                return now
            await trio.sleep(0.25)
    raise AssertionError((node.name, now and (now.state, now.peers_up, now.degraded)))


async def check_named(stop: Stop, node: LabNode, one: LabNode) -> float:
    """Wait until the stop is named, then look wherever an operator or a machine may look. Return the seconds
    that it took."""
    end, subject = (node, "") if stop.seen == "here" else (one, node.name)
    began = trio.current_time()

    def matching(status: Status) -> list[str]:
        return [
            fault.code
            for fault in status.faults
            if fault.code in stop.codes
            and stop.words in fault.text
            and subject in (fault.subject, "")
            and fault.fix
        ]

    await wait_for(end, lambda status: bool(matching(status)))
    took = trio.current_time() - began
    said = None
    for _ in range(20):  # the four are asked one after the other, and a cause may be known better meanwhile
        status = await ask(end)
        if status is not None and (found := matching(status)):
            exited = await exit_status(end)
            ready, codes = await trio.to_thread.run_sync(readyz, end)
            counted = await trio.to_thread.run_sync(counted_faults, end)
            said = (found, codes, counted, exited, ready, status.ready)
            agreed = exited == (4 if ready else 5) and ready == status.ready
            if agreed and stop.ready in (None, ready) and set(found) & codes & counted:
                return took
        await trio.sleep(0.5)
    raise AssertionError(said)


async def exit_status(node: LabNode) -> int:
    argv = node.inside(["phantommesh", "status", "--exit-code"])
    run = partial(subprocess.run, argv, env=node.environment(), capture_output=True, check=False)
    return (await trio.to_thread.run_sync(run)).returncode


def readyz(node: LabNode) -> tuple[bool, set[str]]:
    """Return whether a node says that it is ready, and the codes of its faults."""
    with connect(node.socket, 10.0) as sock:
        sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        response = http.client.HTTPResponse(sock)
        response.begin()
        body = response.read()
    if response.status == 200:
        return True, set(msgspec.json.decode(body, type=Probe).faults)
    assert response.status == 503
    return False, set(msgspec.json.decode(body, type=Problem).codes)


def counted_faults(node: LabNode) -> set[str]:
    text = bytes(NodeClient(node.socket).request("GET", "/metrics")).decode()
    return set(re.findall(r'^phantommesh_faults\{code="([a-z-]+)".*\} [1-9]', text, re.MULTILINE))


async def all_well(nodes: list[LabNode]) -> None:
    for node in nodes:
        await wait_for(node, lambda s: not s.faults and s.ready and s.peers_up == s.peers_total == NODES - 1)


def test_there_are_at_least_twenty_ways_each_of_its_own() -> None:
    names = [stop.name for stops in ROUNDS for stop in stops]
    assert len(set(names)) == len(names) >= 20
    assert all(len(stops) < NODES for stops in ROUNDS)


@pytest.mark.parametrize("number", range(len(ROUNDS)))
async def test_what_stops_traffic_is_named_and_healed(mesh: LabSpec, number: int) -> None:
    one, *others = nodes_of(mesh)
    await all_well([one, *others])
    status = await ask(one)
    assert status is not None
    failures = list[str]()

    async def play(stop: Stop, node: LabNode) -> None:
        async with played(stop, node, one, status.ip4):
            try:
                took = await check_named(stop, node, one)
            except AssertionError as error:
                failures.append(f"{stop.name}: {error}")
            else:
                print(f"{took:5.1f} s  {stop.name}")
            done[stop.name].set()
            for each in done.values():
                await each.wait()

    stops = ROUNDS[number]
    done = {stop.name: trio.Event() for stop in stops}
    async with trio.open_nursery() as nursery:
        for stop, node in zip(stops, others, strict=False):
            nursery.start_soon(play, stop, node)
    assert not failures, failures
    began = trio.current_time()
    await all_well([one, *others])
    print(f"{trio.current_time() - began:5.1f} s  until all is well")
