# SPDX-License-Identifier: GPL-3.0-or-later
"""PSK rotations under a ping, with the two ends out of step: are packets lost?

    python -m benchmarks.rotation [--skew S] [--seconds N] [--backend B] [--json] [--quick]

One node rotates its link with each of the others every few seconds, under a ping every 10 ms. To put the
ends out of step, nftables keeps from the initiator all that would tell it that the responder has installed
the new PSKs (ACK, cookies, TCP) for ``skew`` seconds after each rotation begins. The initiator is then unsure
and shows old and new PSKs in turn, as it would on a network that loses these packets. Each run outlives
WireGuard's rekey at 120 s, and its end of a session without one at 180 s: a link whose ends do not agree goes
dark in it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from benchmarks.machine import describe
from phantommesh.client.http import NodeClient
from phantommesh.errors import PhantomMeshError
from phantommesh.link.wire import Kind
from phantommesh.management.views import RotationResult
from phantommesh.nursery.lab import up
from phantommesh.nursery.lab.mesh import view_of
from phantommesh.nursery.lab.net import LabNode, LabSpec, nodes_of
from phantommesh.nursery.lab.ping import Flow, open_traffic

SKEWS = (0.0, 2.0, 20.0, 60.0)  # s
SECONDS = 240.0  # two of WireGuard's rekeys
PAUSE = 3.0  # s of agreement between two rotations
PING = 0.01  # s
CONTROL_PORT = 51800

_KEPT_BACK = ", ".join(str(int(kind)) for kind in (Kind.ACK, Kind.COOKIE_REPLY))


@dataclass(slots=True)
class SkewResult:
    """The effect of one skew: rotations that both ends finished, pings sent and lost, the longest silence in
    s."""

    skew: float
    rotations: int = 0
    sent: int = 0
    lost: int = 0
    silence_s: float = 0.0


async def _nft(node: LabNode, script: str) -> None:
    command = ["ip", "netns", "exec", node.name, "nft", "-f", "-"]
    await trio.run_process(command, stdin=script.encode())


async def _keep_back(node: LabNode, peer: LabNode, uplinks: int) -> None:
    addresses = ", ".join(peer.address(uplink) for uplink in range(uplinks))
    table = f"keepback{peer.number}"
    await _nft(
        node,
        f"""table ip {table} {{
            chain input {{
                type filter hook input priority 0; policy accept;
                ip saddr {{ {addresses} }} udp sport {CONTROL_PORT} @th,72,8 {{ {_KEPT_BACK} }} drop
                ip saddr {{ {addresses} }} tcp sport {CONTROL_PORT} drop
            }}
        }}
        """,
    )


async def _let_through(node: LabNode, peer: LabNode) -> None:
    await _nft(node, f"delete table ip keepback{peer.number}\n")


async def _rotate(node: LabNode, peer: str) -> RotationResult:
    client = NodeClient(node.socket, timeout=30.0)
    node_id = (await view_of(node)).links[peer].node_id
    return await trio.to_thread.run_sync(
        lambda: client.rotate(node_id, dry_run=False, idempotency_key=os.urandom(8).hex())
    )


async def _cycle(spec: LabSpec, hub: LabNode, peer: LabNode, result: SkewResult, seconds: float) -> None:
    """Rotate one link again and again, out of step by ``result.skew``."""
    end = trio.current_time() + seconds
    while trio.current_time() < end:
        before = (await view_of(hub)).links[peer.name].epoch
        async with trio.open_nursery() as nursery:
            if result.skew:
                await _keep_back(hub, peer, spec.uplinks)
            nursery.start_soon(_rotate, hub, peer.name)
            if result.skew:
                await trio.sleep(result.skew)
                await _let_through(hub, peer)
        await _agreed(hub, peer, before)
        result.rotations += 1
        await trio.sleep(PAUSE)


async def _agreed(hub: LabNode, peer: LabNode, before: int) -> None:
    """Wait until both ends show the same, new epoch as fresh."""
    while True:
        mine = (await view_of(hub)).links[peer.name]
        theirs = (await view_of(peer)).links[hub.name]
        if mine.state == theirs.state == "fresh" and mine.epoch == theirs.epoch > before:
            return
        await trio.sleep(0.2)


async def measure(spec: LabSpec, skews: Sequence[float], seconds: float) -> list[SkewResult]:
    """Run every skew at once, each on a link of its own, in one lab of 1 + len(skews) nodes."""
    results = [SkewResult(skew) for skew in skews]
    async with up.running(spec):
        hub, *peers = nodes_of(spec)
        addresses = [(await view_of(peer)).status.ip4 for peer in peers]
        flows = [Flow(hub.name, peer.name, ip4) for peer, ip4 in zip(peers, addresses, strict=True)]
        async with open_traffic(flows, PING) as traffic:
            async with trio.open_nursery() as nursery:
                for peer, result in zip(peers, results, strict=True):
                    nursery.start_soon(_cycle, spec, hub, peer, result, seconds)
            await traffic.settle(5.0)
        for flow, result in zip(flows, results, strict=True):
            result.sent, result.lost = flow.sent, flow.sent - flow.received
            result.silence_s = round(flow.silence_s, 3)
    return results


def make_spec(skews: Sequence[float], backend: str, patience_s: float = 600.0) -> LabSpec:
    """A lab for `measure`: a hub and one node a skew."""
    name = f"rot{os.getpid()}"
    return LabSpec(name, nodes=1 + len(skews), uplinks=1, backend=backend, patience_s=patience_s)


def main() -> None:
    """Print one line a skew; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rotation")
    parser.add_argument("--skew", type=float, action="append", help="seconds; may be given more than once")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--backend", default="auto", choices=("auto", "kernel", "userspace"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="20 s a run: no WireGuard rekey falls into it")
    given = parser.parse_args()
    skews = tuple(given.skew or SKEWS)
    seconds = 20.0 if given.quick else given.seconds
    try:
        results = trio.run(measure, make_spec(skews, given.backend), skews, seconds)
    except PhantomMeshError as error:
        parser.exit(1, f"error: {error}\nfix: {error.fix}\n")
    for result in results:
        print(
            f"skew {result.skew:g} s: {result.rotations} rotations, {result.sent} pings sent, "
            f"{result.lost} lost, longest silence {result.silence_s:g} s"
        )
    if given.json:
        document = {
            "name": "rotation",
            "machine": describe(),
            "runs": [
                {"skew": r.skew, "rotations": r.rotations, "sent": r.sent, "lost": r.lost} for r in results
            ],
            "rotations": sum(r.rotations for r in results),
            "sent": sum(r.sent for r in results),
            "lost": sum(r.lost for r in results),
        }
        print(json.dumps(document))


if __name__ == "__main__":
    main()
