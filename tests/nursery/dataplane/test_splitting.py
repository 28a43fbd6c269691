# SPDX-License-Identifier: GPL-3.0-or-later
"""From probes of a path with a queue to a map in the kernel's table, and back: the real parts, on a virtual
clock, over a model of the kernel and of one full path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import trio

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.nursery.dataplane.scattering import Scattering
from phantommesh.nursery.dataplane.splitting import LOOK, READS, Splitter
from phantommesh.paths.effects import Send
from phantommesh.paths.machine import Paths
from phantommesh.paths.probe import Probe, decode_probe_untrusted
from phantommesh.scatter.goals import SCHEDULES
from phantommesh.scatter.intents import TrafficClass
from phantommesh.scatter.peermap import mark
from phantommesh.scatter.splitting import EVERY
from phantommesh.scatter.steering import Steering
from tests.nursery.dataplane.test_scattering import Kernel, devices, kernel, make, peer, running

__all__ = ["kernel"]  # a fixture

STEP = 0.02
BUCKET = 5


@dataclass
class World:
    """A peer behind seven paths of 20 ms, one of them with a queue, and one flow of ``rate`` bytes a
    second."""

    kernel: Kernel
    scatter: Scattering
    paths: Paths
    queued: bool = True
    rate: float = 200e3

    def split(self) -> set[int]:
        return {bucket for bucket, value in self.kernel.deck().items() if value & 15 == 9}

    async def wait(self, wanted: Callable[[], bool]) -> None:
        while not wanted():
            await trio.sleep(STEP)

    async def run(self, node_id: bytes) -> None:
        """Answer the probes, each after its path's time, and count the flow's bytes."""
        answers: list[tuple[float, int, bytes]] = []
        sent, read = 0.0, 0.0
        while True:
            now = trio.current_time()
            home = (self.kernel.deck()[BUCKET] & 15) - 1
            self.queued = self.rate > 60e3 and home < DIMENSIONS
            for due, dimension, datagram in [one for one in answers if one[0] <= now]:
                answers.remove((due, dimension, datagram))
                self.paths.receive(datagram, node_id, dimension, now)
            for effect in self.paths.tick(now) if self.paths.deadline <= now else []:
                if isinstance(effect, Send):
                    ping = decode_probe_untrusted(effect.datagram)
                    delay = 0.080 if self.queued and effect.dimension == home else 0.020
                    pong = Probe(True, effect.dimension, ping.number).encode()
                    answers.append((now + delay, effect.dimension, pong))
            sent += STEP * (min(self.rate, 60e3) if self.queued else self.rate)
            had = self.kernel.flows["flows_1"][BUCKET][0]
            self.kernel.flows["flows_1"][BUCKET] = had + 1, round(sent)
            if now - read >= 1.0:
                read = now
                counted = round(sent / DIMENSIONS)
                self.paths.read(node_id, [(counted, counted)] * DIMENSIONS, now)
            await trio.sleep(STEP)


async def test_a_flow_is_split_while_a_queue_stands_in_its_path_and_goes_back_after(
    kernel: Kernel, autojump_clock: object
) -> None:
    one, scatter = peer(2), make()
    scatter.update([type(one)(one.node_id, one.ip4, one.ip6, one.keying, SCHEDULES["auto"])])
    scatter.devices(devices())
    paths = Paths(random=Random(1), interval=0.1)
    paths.set_peers({one.node_id: ALL}, trio.current_time())
    world = World(kernel, scatter, paths, rate=30e3)
    async with running(scatter), trio.open_nursery() as nursery:
        nursery.start_soon(world.run, one.node_id)
        nursery.start_soon(Splitter(world, scatter).run)
        await trio.sleep(20.0)
        assert not world.split()
        others = {bucket: value for bucket, value in kernel.deck().items() if bucket != BUCKET}
        world.rate = 200e3
        await trio.sleep(8.0)
        assert world.split() == {BUCKET} and scatter.steered(one.node_id).split == {BUCKET}
        assert {bucket: value for bucket, value in kernel.deck().items() if bucket != BUCKET} == others
        dealt = kernel.tables["netdev"]["split_1"]
        assert set(dealt.values()) == {mark(1, 1, i) for i in range(DIMENSIONS)}
        world.rate = 20e3
        await trio.sleep(8.0)
        assert not world.split() and scatter.steered(one.node_id) == Steering()
        nursery.cancel_scope.cancel()


async def test_the_flows_of_each_class_are_counted_and_split_apart(
    kernel: Kernel, autojump_clock: object
) -> None:
    """By numbers of their own: the splitter looks at all of a peer's flows together, as they share paths."""
    one, scatter = peer(2), make()
    ssh = TrafficClass("ssh", "order", SCHEDULES["order"], ("meta l4proto 6",))
    bulk = TrafficClass("bulk", "auto", SCHEDULES["auto"], ("meta l4proto 17",))
    scatter.update([replace(one, schedule=SCHEDULES["auto"], classes=(ssh, bulk))])
    scatter.devices(devices())
    async with running(scatter):
        assert scatter.splittable() == [one.node_id]
        kernel.flows["flows_1"][5] = 1, 70
        kernel.flows["flows_1_2"][5] = 2, 90
        found = await scatter.count_flows(one.node_id)
        assert found is not None
        counted, homes = found
        assert (counted[5], counted[2 * 256 + 5], homes[256 + 5]) == ((1, 70), (2, 90), None)
        before = {name: dict(kernel.tables["netdev"][name]) for name in ("deck_1", "deck_1_1", "deck_1_2")}
        await scatter.steer(one.node_id, Steering(frozenset({2 * 256 + 5})))
        assert kernel.replaced == ["deck_1_2"]
        after = kernel.tables["netdev"]
        assert after["deck_1_2"][5] == 1 << 8 | 2 << 5 | 9 != before["deck_1_2"][5]
        assert (after["deck_1"], after["deck_1_1"]) == (before["deck_1"], before["deck_1_1"])
        assert scatter.steered(one.node_id).split == {2 * 256 + 5}


@dataclass
class Busy:
    """Twenty peers, each with one steady flow, and how often the counters of each were read."""

    paths: Paths
    peers: Sequence[bytes] = tuple(bytes([n]) * 16 for n in range(1, 21))
    read: list[tuple[float, bytes]] = field(default_factory=list)

    async def wait(self, wanted: Callable[[], bool]) -> None:
        assert wanted()

    def splittable(self) -> Sequence[bytes]:
        return self.peers

    def steered(self, node_id: bytes) -> Steering:
        return Steering()

    async def count_flows(
        self, node_id: bytes
    ) -> tuple[Mapping[int, tuple[int, int]], Sequence[int | None]] | None:
        now = trio.current_time()
        self.read.append((now, node_id))
        return {1: (round(now * 1e3), round(now * 1e6))}, [0] * 256

    async def steer(self, node_id: bytes, steering: Steering) -> None: ...


async def test_however_many_peers_are_busy_few_are_read_in_a_look_and_all_have_their_turn(
    autojump_clock: object,
) -> None:
    paths = Paths(random=Random(1), interval=0.1)
    world = Busy(paths)
    paths.set_peers(dict.fromkeys(world.peers, ALL), trio.current_time())
    for second in range(4):
        for node_id in world.peers:
            paths.read(node_id, [(second * 100_000,) * 2] * DIMENSIONS, trio.current_time() + second)
    with trio.move_on_after(8.0):
        await Splitter(world, world).run()
    looks = Counter(at for at, _ in world.read)
    assert max(looks.values()) == READS
    times = Counter(node_id for _, node_id in world.read)
    assert times.keys() == set(world.peers) and max(times.values()) - min(times.values()) <= 1
    assert max(times.values()) <= 8.0 / EVERY and len(looks) <= 8.0 / LOOK + 1
