# SPDX-License-Identifier: GPL-3.0-or-later
"""A node behind a NAT whose network changes under traffic: what is lost, and whether TCP lives on.

    sudo python -m benchmarks.roaming [--rounds N] [--case CASE] [--backend B] [--json] [--quick]

Node 1 is public, nodes 2 and 3 are behind NATs of their own. Node 2 pings both every 10 ms over the
overlay, and has a TCP connection to node 3, like somebody who types. Then one thing happens to node 2:

``address``: it gets another address from its router. ``nat``: its NAT gets another public address, and
forgets its mappings. ``pulled``: one of its two uplinks goes. ``suspend``: its process and its WireGuard
stand still for ``--asleep`` seconds. ``restart``: its process and its WireGuard are killed and started
again. TCP is not tried with the last two.

``silent_s`` is the longest time between two pings to one node that were answered, ``lost`` how many were
not. For ``suspend`` and ``restart`` both count from the moment when it is awake or started until both
nodes answer. ``stall_s`` is the longest wait of the TCP connection for an answer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import trio

from benchmarks.machine import describe
from benchmarks.reachability import patient_flows
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.mesh import crash, start, view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Flow, Traffic, open_traffic
from phantommesh.nursery.lab.underlay import Underlay, parse_nat

CASES = ("address", "nat", "pulled", "suspend", "restart")
PING = 0.01  # s
TYPED = 0.05  # s between two lines over TCP
WARM = 4.0  # s of traffic before something happens
WATCH = 15.0  # s afterwards
ASLEEP = 60.0  # s
PATIENCE = 60.0  # s until the first pings are answered
ANOTHER = 100  # what is added to an address

ECHO = """
import socket, sys
connection, _ = socket.create_server((sys.argv[1], 7007)).accept()
while part := connection.recv(4096):
    connection.sendall(part)
"""
TYPE = """
import socket, sys, time
end = time.monotonic() + float(sys.argv[2])
while True:
    try:
        connection = socket.create_connection((sys.argv[1], 7007), timeout=60)
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
worst = 0.0
while time.monotonic() < end:
    asked = time.monotonic()
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    worst = max(worst, time.monotonic() - asked)
    time.sleep(float(sys.argv[3]))
print(worst)
"""


@dataclass(frozen=True, slots=True)
class Change:
    """The outcome of one change. ``stall_s`` is None where TCP was not tried, and -1 where it broke."""

    case: str
    silent_s: float
    lost: int
    stall_s: float | None


def ip(namespace: str, *words: str) -> None:
    """Change something in a namespace. Raises CalledProcessError."""
    subprocess.run(["ip", "-n", namespace, *words], check=True)


def readdress(namespace: str, device: str, network: str, host: int) -> None:
    """Give an interface another address of its network, and its routes back: they go with the old one."""
    words = ["ip", "-n", namespace, "-o", "route", "show", "dev", device, "via", f"{network}.254"]
    routes = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    ip(namespace, "address", "flush", "dev", device)
    ip(namespace, "address", "add", f"{network}.{host}/24", "dev", device)
    for route in routes:
        ip(namespace, "route", "replace", *route.replace(" linkdown", "").split(), "dev", device)


async def happen(case: str, spec: LabSpec, asleep: float) -> None:
    """Do what a case says to node 2. Raises CalledProcessError or LabError."""
    node = nodes_of(spec)[1]
    router = f"{spec.name}-r{node.number}"
    if case == "address":
        readdress(node.name, "up0", "192.168.0", node.number + ANOTHER)
    elif case == "nat":
        readdress(router, "w0", "10.201.0", node.number + ANOTHER)
    elif case == "pulled":
        ip(router, "link", "set", f"n{node.number}u0", "down")
    elif case == "suspend":
        pids = net.processes_in([node.name])
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        await trio.sleep(asleep)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    else:
        await crash(node)
        await start(node)


@contextmanager
def typing(source: LabNode, target: LabNode, address: str, seconds: float) -> Iterator[Callable[[], float]]:
    """A TCP connection over the overlay for so many seconds. Gives a function that waits for its end and
    returns the longest wait for an answer, -1 if it broke."""
    server = subprocess.Popen(target.inside([sys.executable, "-c", ECHO, address]), stderr=subprocess.DEVNULL)
    command = source.inside([sys.executable, "-c", TYPE, address, str(seconds), str(TYPED)])
    client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def ended() -> float:
        said = client.communicate(timeout=PATIENCE + seconds)[0]
        return float(said) if client.returncode == 0 else -1.0

    try:
        yield ended
    finally:
        for process in (client, server):
            process.kill()
            process.wait()


async def once(case: str, backend: str, *, asleep: float = ASLEEP, watch: float = WATCH) -> Change:
    """Build a lab, have it happen, and take the lab down. Raises LabError, or TooSlowError where the nodes do
    not answer each other within `PATIENCE`."""
    underlay = Underlay(nat=parse_nat("preserve,preserve-drop"))
    spec = LabSpec(f"ro{os.getpid()}", 3, 1 + (case == "pulled"), backend, underlay=underlay)
    async with up.running(spec, partial(print, file=sys.stderr), pairs=False):
        nodes = nodes_of(spec)
        await patient_flows(nodes, PATIENCE)
        overlay = {node.name: (await view_of(node)).status.ip4 for node in nodes}
        mine, theirs = nodes[1:]
        flows = [Flow(mine.name, other.name, overlay[other.name]) for other in (nodes[0], theirs)]
        async with open_traffic(flows, PING) as traffic:
            with trio.fail_after(PATIENCE):
                await answered(traffic, -1.0)
            if case in ("suspend", "restart"):
                await trio.sleep(WARM)
                await happen(case, spec, asleep)
                back = trio.current_time()
                before = sum(flow.sent - flow.received for flow in flows)
                with trio.move_on_after(PATIENCE):
                    await answered(traffic, back)
                silent = trio.current_time() - back
                return Change(case, silent, sum(flow.sent - flow.received for flow in flows) - before, None)
            with typing(mine, theirs, overlay[theirs.name], WARM + watch) as ended:
                await trio.sleep(WARM)
                for flow in flows:
                    flow.silence_s = 0.0
                before = sum(flow.sent - flow.received for flow in flows)
                await happen(case, spec, asleep)
                stall = await trio.to_thread.run_sync(ended)
                await traffic.settle()
            lost = sum(flow.sent - flow.received for flow in flows) - before
            return Change(case, max(flow.silence_s for flow in flows), lost, stall)


async def answered(traffic: Traffic, after: float) -> None:
    """Wait until every flow has an answer to a ping that was sent later."""
    async with trio.open_nursery() as nursery:
        for flow in traffic.flows:
            nursery.start_soon(traffic.wait_answered, flow, after)


async def measure(given: argparse.Namespace) -> list[Change]:
    """Do all rounds of all cases. A round that fails is said, and is not counted."""
    found = []
    for _ in range(given.rounds):
        for case in [given.case] if given.case else CASES:
            try:
                found.append(await once(case, given.backend, asleep=given.asleep))
            except (LabError, trio.TooSlowError) as error:
                print(f"{case}: {error}", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--asleep", type=float, default=ASLEEP, metavar="SECONDS")
    parser.add_argument("--backend", choices=("auto", "kernel", "userspace"), default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    given.rounds = given.rounds or (1 if given.quick else 5)
    found = trio.run(measure, given)
    if given.json:
        print(json.dumps({"machine": describe(), "changes": [asdict(one) for one in found]}))
    else:
        print(
            "| case | rounds | silent, s: median (worst) | pings lost: median (worst) | TCP stall, s: worst |"
        )
        print("|---|---|---|---|---|")
        for case in dict.fromkeys(one.case for one in found):
            print(row(case, [one for one in found if one.case == case]))
        machine = describe()
        print(f"\n`python -m benchmarks.roaming {' '.join(sys.argv[1:])}`")
        print(f"{machine['cores']} cores ({machine['cpu']}), {machine['kernel']}")
    sys.exit(not found or any(one.stall_s == -1 for one in found))


def row(case: str, found: Sequence[Change]) -> str:
    """One line of the table."""
    silent, lost = [one.silent_s for one in found], [one.lost for one in found]
    stalls = [one.stall_s for one in found if one.stall_s is not None]
    broke = stalls.count(-1)
    tcp = f"{max(stalls):.1f}{f', broke {broke} times' if broke else ''}" if stalls else "not tried"
    return (
        f"| {case} | {len(found)} | {statistics.median(silent):.2f} ({max(silent):.2f}) "
        f"| {statistics.median(lost):g} ({max(lost)}) | {tcp} |"
    )


if __name__ == "__main__":
    main()
