# SPDX-License-Identifier: GPL-3.0-or-later
"""A relayed pair whose relay dies, and one that finds a direct way: what a ping every 10 ms loses.

    python -m benchmarks.relayed [--rounds N] [--backend B] [--json] [--quick]

Four nodes of one uplink: two relay, the other two let nothing through between their WireGuard ports. In each
round the direct way is opened again while pings are relayed (``direct``); then it is closed, and once both
relays are in use one of them dies (``killed``): its processes get SIGKILL, its host forwards nothing and lets
nothing in or out, so that no word of its end comes. A round has a lab of its own.

``lost`` counts the pings of both directions that were never answered, ``lost_s`` is the time from the event
to the last of them, ``silence_s`` the longest time between two that were answered. Each ping crosses the mesh
twice, over a dimension each. ``short`` is how many packets had taken the relays' short way by then.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial

import trio

from benchmarks.failover import paths_of
from benchmarks.machine import describe
from phantommesh.client.http import NodeClient
from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.lab import net, up
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Flow, Traffic, open_traffic
from phantommesh.routing.fastlane import lanes_of
from phantommesh.routing.forwarding import table_name

PING = 0.01  # s
WATCH = 10.0  # s that pings are watched after it: a lease ends 5 s after its dimension is direct
CALM = 10.0  # s of undisturbed pings before an event
PATIENCE = 120.0  # s
_PORTS = "51820-51840"


@dataclass(frozen=True, slots=True)
class Event:
    """The effect of one event on the pings."""

    case: str
    lost: int
    lost_s: float
    silence_s: float
    short: int


def over(node: LabNode, peer: LabNode, relay: LabNode) -> int:
    """How many dimensions to a peer go over a relay. A lease with a tag has a port of its own."""
    here = f"{relay.address(0)}:"
    return sum(view.peer == peer.name and (view.endpoint or "").startswith(here) for view in paths_of(node))


@contextmanager
def apart(one: LabNode, two: LabNode) -> Iterator[None]:
    """Let nothing through between the WireGuard ports of two nodes; their control ports still meet."""
    script = f"""table inet apart {{
        chain input {{
            type filter hook prerouting priority -400; policy accept;
            ip saddr {two.address(0)} udp dport {_PORTS} drop
        }}
        chain output {{
            type filter hook output priority -400; policy accept;
            ip daddr {two.address(0)} udp dport {_PORTS} drop
        }}
    }}
    """
    _nft(one, script)
    try:
        yield
    finally:
        _nft(one, "delete table inet apart\n")


def kill(relay: LabNode) -> None:
    """A machine that is gone from one moment to the next, without a word."""
    _nft(
        relay,
        """table netdev gone {
            chain arriving { type filter hook ingress device "up0" priority -600; policy drop; }
        }
        table inet gone {
            chain leaving { type filter hook postrouting priority 400; policy drop; }
        }
    """,
    )
    for pid in net.processes_in([relay.name]):
        os.kill(pid, signal.SIGKILL)


def _nft(node: LabNode, script: str) -> None:
    argv = ["ip", "netns", "exec", node.name, "nft", "-f", "-"]
    subprocess.run(argv, input=script.encode(), check=True)


async def _spread(one: LabNode, two: LabNode, relays: Sequence[LabNode], wanted: int) -> None:
    """Wait until so many dimensions of both ends go over the relays, and each relay has its share, and they
    answer."""

    def so() -> bool:
        for node, peer in ((one, two), (two, one)):
            shares = [over(node, peer, relay) for relay in relays]
            if sum(shares) != wanted or (wanted and min(shares) < wanted // len(relays)):
                return False
            views = [view for view in paths_of(node) if view.peer == peer.name]
            if not all(view.state == "up" for view in views):
                return False
        return True

    with trio.fail_after(PATIENCE):
        while True:
            if await trio.to_thread.run_sync(so):
                return
            await trio.sleep(0.1)


def _short(relay: LabNode) -> int:
    """Packets that have taken the short way through this relay."""
    argv = ["ip", "netns", "exec", relay.name, "nft", "list", "map", "netdev", table_name("pm"), lanes_of(4)]
    said = subprocess.run(argv, check=False, capture_output=True, text=True).stdout
    return sum(int(found) for found in re.findall(r"packets (\d+)", said))


async def watch(
    case: str,
    traffic: Traffic,
    relays: Sequence[LabNode],
    act: Callable[[], None],
    settled: Callable[[], Awaitable[None]],
) -> Event:
    """Do it under pings, and wait until its effects have `settled`."""
    await trio.sleep(CALM)
    short = sum([await trio.to_thread.run_sync(_short, relay) for relay in relays])
    for flow in traffic.flows:
        flow.silence_s = 0.0
        flow.pending.clear()
    began = trio.current_time()
    await trio.to_thread.run_sync(act)
    await settled()
    await trio.sleep(WATCH)
    end = trio.current_time()
    lost = [at for flow in traffic.flows for at in flow.pending.values() if at < end - 1.0]
    silence = max(max(flow.silence_s, end - 1.0 - flow.last_answered) for flow in traffic.flows)
    return Event(case, len(lost), max(lost, default=began) - began, silence, short)


async def measure(backend: str) -> list[Event]:
    """One lab."""
    spec = LabSpec(f"rd{os.getpid()}", nodes=4, uplinks=1, backend=backend, patience_s=PATIENCE)
    found = list[Event]()
    async with up.running(spec):
        first, second, one, two = nodes_of(spec)
        addresses = {node: NodeClient(node.socket).status().ip4 for node in (one, two)}
        flows = [Flow(a.name, b.name, addresses[b]) for a, b in ((one, two), (two, one))]
        async with open_traffic(flows, PING) as traffic:
            with ExitStack() as blocked:
                blocked.enter_context(apart(one, two))
                await _spread(one, two, (first, second), DIMENSIONS)
                direct = partial(_spread, one, two, (first, second), 0)
                found.append(await watch("direct", traffic, (first, second), blocked.close, direct))
            with apart(one, two):
                await _spread(one, two, (first, second), DIMENSIONS)
                found.append(
                    await watch(
                        "killed", traffic, (first, second), partial(kill, first), trio.lowlevel.checkpoint
                    )
                )
        if os.environ.get("KEEP_LOGS"):
            for node in (one, two):
                print(f"==== {node.name}\n", node.log.read_text()[-30000:], file=sys.stderr)
    return found


def main() -> None:
    """Print one line an event; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relayed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one round")
    given = parser.parse_args()
    events = list[Event]()
    try:
        for _ in range(1 if given.quick else given.rounds):
            events += (some := trio.run(measure, given.backend))
            for one in some:
                print(
                    f"{one.case}: {one.lost} pings lost, the last {one.lost_s:.2f} s after it; "
                    f"longest silence {one.silence_s:.2f} s; {one.short} packets went the short way before",
                    flush=True,
                )
    except PhantomMeshError as error:
        parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
    if given.json:
        middle = {
            case: round(statistics.median(one.lost_s for one in events if one.case == case), 3)
            for case in ("direct", "killed")
        }
        runs = [asdict(one) for one in events]
        print(json.dumps({"name": "relayed", "machine": describe(), "runs": runs, "lost_s": middle}))


if __name__ == "__main__":
    main()
