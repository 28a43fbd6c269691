# SPDX-License-Identifier: GPL-3.0-or-later
"""GENESIS over two real `Paths` in a modelled network: what it tunes, and what that is worth."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from phantommesh.agents.actions import Tune
from phantommesh.agents.council import Council
from phantommesh.agents.genesis import LOST, Genesis, GenesisSeen
from phantommesh.dimensions import DIMENSIONS
from phantommesh.node.steps import Moment
from phantommesh.paths.probe import ON_WIRE
from tests.simulation.paths_sim import INTERVAL, World

KEY = "paths.probe_seconds"
PAYLOAD = 1400  # bytes a packet


@dataclass(frozen=True)
class Weather:
    """Outages of single paths: so many an hour over all paths, each ``lasts`` seconds."""

    outages: float
    lasts: float = 5.0


class Tuned:
    """A node that GENESIS tunes. ``rate``: packets a second to its peer."""

    def __init__(
        self, weather: Weather, rate: float, seed: int, *, taken: Mapping[str, float] | None = None
    ) -> None:
        self.world, self.weather, self.rng = World(seed), weather, random.Random(seed)
        self.world.rate = rate
        self.agent = Genesis(random.Random(seed + 1))
        traces = iter(range(10**9))
        self.council = Council([self.agent], trace=lambda: str(next(traces)), now=self.world.now)
        self.value, self.taken = INTERVAL, dict(taken or {})
        self.tunes: list[tuple[float, Tune]] = []
        self._cut_until: dict[int, float] = {}
        self._next_outage = self._outage_after(self.world.now)

    def _outage_after(self, now: float) -> float:
        if not self.weather.outages:
            return float("inf")
        return now + self.rng.expovariate(self.weather.outages / 3600)

    def seen(self) -> GenesisSeen:
        end = self.world.a
        return GenesisSeen(
            sent=float(sum(end.sent)) - end.probes * ON_WIRE,
            lost=end.paths.vain,
            probes=float(end.probes * ON_WIRE),
            configured={KEY: INTERVAL},
            taken=self.taken,
        )

    def set(self, value: float) -> None:
        self.value = value
        self.world.a.paths.probe_every(value)

    def run(self, seconds: float) -> None:
        end = self.world.now + seconds
        while self.world.now < end:
            stops = [end, self._next_outage, *self._cut_until.values()]
            look = max(self.world.now, self.council.due("genesis", self.world.now))
            self.world.run(max(0.0, min(*stops, look) - self.world.now))
            self._outages()
            if self.world.now >= look and self.council.looks("genesis", self.world.now):
                self._look()

    def _outages(self) -> None:
        now = self.world.now
        for dimension, until in list(self._cut_until.items()):
            if until <= now:
                del self._cut_until[dimension]
        if self._next_outage <= now:
            self._cut_until[self.rng.randrange(DIMENSIONS)] = now + self.weather.lasts
            self._next_outage = self._outage_after(now)
        self.world.cut = sum(1 << dimension for dimension in self._cut_until)

    def _look(self) -> None:
        at = Moment(self.world.now, 1.8e9 + self.world.now)
        look = self.council.look("genesis", self.seen(), (), at)
        minutes = self.council.looked("genesis", look(), 0.0, at)
        for order in (*minutes.orders, *self.council.lapse(self.world.now)):
            assert isinstance(order.proposal.action, Tune)
            self.tunes.append((self.world.now, order.proposal.action))
            self.set(INTERVAL if order.lift else order.proposal.action.value)

    def shares(self, seconds: float) -> tuple[float, float]:
        """The shares of bytes that the network really lost, and of probes, over the next seconds."""
        end = self.world.a
        sent, lost, probes = sum(self.world.carried), len(self.world.lost), end.probes
        self.run(seconds)
        packets = sum(self.world.carried) - sent
        return (
            (len(self.world.lost) - lost) / packets,
            2 * (end.probes - probes) * ON_WIRE / (packets * PAYLOAD),
        )

    def cost(self, seconds: float) -> float:
        """What GENESIS is to lessen, by what really happens."""
        lost, probes = self.shares(seconds)
        return LOST * lost + probes


def fixed(weather: Weather, rate: float, seed: int, value: float) -> Tuned:
    """A node on which one value stays."""
    node = Tuned(weather, rate, seed)
    node.council.pause("genesis", node.world.now)
    node.set(value)
    node.run(60)
    return node


if __name__ == "__main__":
    import sys

    outages, rate, hours = float(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    for value in (0.05, 0.1, 0.2, 0.4):
        lost, probes = fixed(Weather(outages), rate, 1, value).shares(1800)
        print(f"{value}: lost {lost:.4f} probes {probes:.4f} cost {LOST * lost + probes:.4f}", flush=True)
    for seed in range(2):
        node = Tuned(Weather(outages), rate, seed)
        node.run(hours * 3600)
        print(seed, node.value, node.agent.taken, len(node.tunes), flush=True)
