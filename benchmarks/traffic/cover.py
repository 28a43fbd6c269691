# SPDX-License-Identifier: GPL-3.0-or-later
"""Cover traffic: datagrams over the overlay that look, once encrypted, like any others.

    python -m benchmarks.traffic.cover adaptive|constant PEER_ADDRESS INTERFACE...

A process of its own in each node's namespace, until it is terminated; each takes what the other sends.
``adaptive`` watches how much its own node sends over the interfaces and adds a share of that: it costs what
it may, and is there when there is something to hide. ``constant`` sends at its rate whatever happens.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import trio

PORT = 9  # discard (RFC 863)
SOURCES = 32  # sockets: schedulers that choose a path a flow see so many

# Tuning.
SHARE = 0.05  # of the bytes that the node sends, the most that adaptive cover adds
LOOK = 0.005  # s between two looks at the counters
RATE = 100.0  # packets a second of constant cover, each way, in the mean
LEAST, MOST = 40, 1392  # bytes of payload: what gives WireGuard's shortest and longest data packets
INNER, OUTER = 28, 60  # bytes of headers: UDP and IP; and once encrypted WireGuard's, UDP and IP again


def size(rng: random.Random) -> int:
    """Draw a decoy's payload. Short ones are likelier: real packets that tell pages apart are short ones too,
    and the same bytes make more of them."""
    drawn: float = LEAST * (MOST / LEAST) ** rng.random()
    return round(drawn)


def sent(interfaces: list[str]) -> int:
    """Return the bytes that have left by these interfaces, as they are on the uplinks."""
    total: int = 0
    for name in interfaces:
        counters = Path("/sys/class/net") / name / "statistics"
        total += int((counters / "tx_bytes").read_text())
        total += int((counters / "tx_packets").read_text()) * OUTER
    return total


class Budget:
    """How much adaptive cover may be sent. Bytes in, bytes out; no clock."""

    def __init__(self, start: int) -> None:
        self.counted, self.allowed = start, 0.0

    def seen(self, counted: int) -> None:
        """The interfaces have sent so many bytes in all, cover included."""
        self.allowed += SHARE * (counted - self.counted)
        self.counted = counted

    def take(self, payload: int) -> bool:
        """Whether a decoy of so many bytes may go; if so, it is paid for."""
        cost = payload + INNER + OUTER
        if cost > self.allowed:
            return False
        # Its own bytes come back in the next count and would earn it another share.
        self.allowed -= cost
        self.counted += cost
        return True


async def main() -> None:
    """Send and receive until terminated."""
    mode, peer, *interfaces = sys.argv[1:]
    rng = random.Random()
    sockets = [trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) for _ in range(SOURCES)]
    sink = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    await sink.bind(("0.0.0.0", PORT))

    async def discard() -> None:
        while True:
            await sink.recvfrom(2048)

    async def send(payload: int) -> None:
        await rng.choice(sockets).sendto(bytes(payload), (peer, PORT))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(discard)
        budget = Budget(sent(interfaces))
        waiting = size(rng)
        while True:
            if mode == "constant":
                await trio.sleep(rng.expovariate(RATE))
                await send(size(rng))
                continue
            await trio.sleep(LOOK)
            budget.seen(sent(interfaces))
            while budget.take(waiting):
                await send(waiting)
                waiting = size(rng)


if __name__ == "__main__":
    trio.run(main)
