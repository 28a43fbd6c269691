# SPDX-License-Identifier: GPL-3.0-or-later
"""Honest handshakes while a crowd of addresses sends INITs in the honest member's name.

    python -m benchmarks.flood [--runs N] [--pace INITS_A_SECOND] [--json] [--quick]

Three processes on loopback: a member, the node that answers it, and a flood of INITs to that node from 256
addresses of 127/8 with cookies and first MACs that hold. The member starts a handshake every 0.6 s, which is
within the rate of its own name, by turns of calm and flood. ``ratio`` is the flood's median over calm's.
``cpu_share`` is what the answering node spends of a core under the flood, less what it spends in calm; an
INIT is two datagrams.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import trio

from benchmarks.handshake import IDENTITIES, End, answer, ask
from benchmarks.machine import describe
from phantommesh.nursery.sockets.udp import UdpPort

ADDRESSES = [f"127.1.0.{i}" for i in range(1, 255)] + ["127.1.1.1", "127.1.1.2"]
ADMISSION = b"bench" * 8
GAP = 0.6  # s
SETTLE = 1.5  # s until every address of the flood has its cookie, and all bounds are reached


class Turn:
    """One measurement, in calm or under the flood."""

    def __init__(self) -> None:
        self.walls: list[float] = []
        self.cpu = self.seconds = 0.0

    @property
    def share(self) -> float:
        """Cores that the answering node took."""
        return self.cpu / self.seconds


def flooding(port: int, pace: float, seconds: float) -> subprocess.Popen[str]:
    """Start the flood; it ends by itself and prints what it sent."""
    target, claimed = IDENTITIES[1].node_id.hex(), IDENTITIES[0].node_id.hex()
    words = [target, claimed, "127.0.0.1", str(port), str(pace), str(seconds), *ADDRESSES]
    flood = subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.flooding", *words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert flood.stdin is not None
    flood.stdin.write(ADMISSION.hex() + "\n")
    flood.stdin.close()
    return flood


async def shake(end: End, pipe: Connection, turn: Turn, runs: int) -> None:
    """Some honest handshakes, far enough apart, and what they cost the other end."""
    spent, began = ask(pipe), time.perf_counter()
    for _ in range(runs):
        turn.walls.append(await end.shake())
        await trio.sleep(GAP)
    turn.cpu += ask(pipe) - spent
    turn.seconds += time.perf_counter() - began


async def measure(pipe: Connection, pace: float, runs: int, turns: int) -> tuple[Turn, Turn, dict[str, int]]:
    """Calm and flood in turn; also what the floods sent in all."""
    calm, flooded, sent = Turn(), Turn(), dict[str, int]()
    port = pipe.recv()
    with UdpPort(0) as udp:
        async with trio.open_nursery() as nursery:
            end = End(0, "cryptography", udp, port, limited=True)
            nursery.start_soon(udp.receive, end.driver.receive)
            nursery.start_soon(end.driver.run)
            await end.shake()
            for _ in range(turns):
                await trio.sleep(GAP)
                await shake(end, pipe, calm, runs)
                flood = flooding(port, pace, SETTLE + (runs + 1) * (GAP + 0.1))
                await trio.sleep(SETTLE)
                await shake(end, pipe, flooded, runs)
                assert flood.stdout is not None
                said = await trio.to_thread.run_sync(flood.stdout.read)
                flood.wait()
                for what, count in json.loads(said).items():
                    sent[what] = sent.get(what, 0) + count
            nursery.cancel_scope.cancel()
    return calm, flooded, sent


def responder() -> tuple[Connection, BaseProcess]:
    """Start the node that answers."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=answer, args=(theirs, "cryptography", True))
    process.start()
    return ours, process


def main() -> None:
    """Print the figures; with --json as one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood")
    parser.add_argument("--runs", type=int, default=15, help="handshakes a turn")
    parser.add_argument("--pace", type=float, default=1000.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one turn of six handshakes")
    given = parser.parse_args()
    runs, turns = (6, 1) if given.quick else (given.runs, 3)
    pipe, process = responder()
    try:
        calm, flooded, sent = trio.run(measure, pipe, given.pace, runs, turns)
        pipe.send("stop")
        process.join(10.0)
    finally:
        process.kill()
    medians = [statistics.median(turn.walls) * 1e3 for turn in (calm, flooded)]
    document = {
        "name": "flood",
        "machine": describe(),
        "inits_a_second": given.pace,
        "addresses": len(ADDRESSES),
        "runs": len(flooded.walls),
        "sent": sent,
        "calm_ms_median": round(medians[0], 3),
        "flood_ms_median": round(medians[1], 3),
        "flood_ms_worst": round(max(flooded.walls) * 1e3, 3),
        "ratio": round(medians[1] / medians[0], 3),
        "cpu_share": round(flooded.share - calm.share, 4),
        "cpu_us_a_datagram": round((flooded.share - calm.share) / (2 * given.pace) * 1e6, 1),
    }
    print(
        f"handshake: {document['calm_ms_median']} ms in calm, {document['flood_ms_median']} ms at "
        f"{given.pace:g} INIT/s from {len(ADDRESSES)} addresses: {document['ratio']} times; "
        f"{100 * (flooded.share - calm.share):.1f} % of a core"
    )
    if given.json:
        print(json.dumps(document))


if __name__ == "__main__":
    main()
