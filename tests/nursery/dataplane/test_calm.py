# SPDX-License-Identifier: GPL-3.0-or-later
"""How much a node reads while nothing moves, and how soon it reads again when something does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from ipaddress import ip_network

import structlog
import trio

from phantommesh.nursery.dataplane.calm import BUSY_RATE, SELDOM, STIRRED, Calm
from phantommesh.nursery.dataplane.reconciler import Reconciler
from phantommesh.nursery.host.fake import FakeBackend
from phantommesh.secret import Secret
from phantommesh.wireguard.device import DeviceConfig, PeerConfig, Route, peers_by_key

INTERVAL = 2.0
KEY = b"\x01" * 32


@dataclass
class World:
    """What a `Calm` asks of the world."""

    told: bool = True
    sent: int | None = 0
    probed: int = 0
    peers: int = 1
    woken: int = 0
    calm: Calm = field(init=False)

    def __post_init__(self) -> None:
        self.calm = Calm(
            INTERVAL,
            told=lambda: self.told,
            sent=lambda: self.sent,
            probed=lambda: self.probed,
            peers=lambda: self.peers,
            woken=self.wake,
        )

    def wake(self) -> None:
        self.woken += 1

    async def rest(self, *, sent: int = 0, probed: int = 0) -> None:
        """So many bytes are sent between two looks, of which so many are probes."""
        self.calm.look()
        await trio.sleep(1.0)
        self.sent = sent + (self.sent or 0)
        self.probed += probed
        self.calm.look()


async def test_readings_are_frequent_at_the_start_and_seldom_once_nothing_has_moved(
    autojump_clock: object,
) -> None:
    world = World()
    assert world.calm.pause == INTERVAL
    await trio.sleep(STIRRED)
    assert world.calm.pause == SELDOM and not world.woken


async def test_a_kernel_that_does_not_tell_is_looked_at_as_ever(autojump_clock: object) -> None:
    world = World(told=False)
    await trio.sleep(10 * STIRRED)
    assert world.calm.pause == INTERVAL


async def test_traffic_ends_the_calm_and_probes_do_not(autojump_clock: object) -> None:
    world = World(peers=0)
    await trio.sleep(STIRRED)
    await world.rest(sent=5000, probed=5000)
    await world.rest(sent=int(BUSY_RATE) - 1)
    assert (world.calm.pause, world.woken) == (SELDOM, 0)
    await world.rest(sent=5000 + int(BUSY_RATE), probed=5000)
    assert (world.calm.pause, world.woken) == (INTERVAL, 1)
    await world.rest(sent=5000)
    assert world.woken == 1, "it was awake"
    await trio.sleep(STIRRED)
    assert world.calm.pause == SELDOM


async def test_counters_that_go_back_or_cannot_be_read_end_the_calm(autojump_clock: object) -> None:
    world = World(sent=10_000)
    await trio.sleep(STIRRED)
    await world.rest(sent=-10_000)  # the interfaces were made anew
    assert world.woken == 1
    await trio.sleep(STIRRED)
    world.sent = None
    world.calm.look()
    assert world.woken == 2


def reconciler_of(backend: FakeBackend) -> Reconciler:
    return Reconciler(backend, interval=INTERVAL, on_actual=lambda actual: None, log=structlog.get_logger())


def device(psk: int) -> DeviceConfig:
    peer = PeerConfig(KEY, Secret(bytes([psk]) * 32), None, frozenset({ip_network("10.0.0.1/32")}))
    routes = frozenset({Route(ip_network("10.0.0.0/8"), 100)})
    return DeviceConfig("pm0", Secret(b"k" * 32), 51820, 1420, frozenset(), routes, peers_by_key([peer]))


async def test_an_idle_minute_takes_a_handful_of_readings(autojump_clock: object) -> None:
    """The bound on work: 30 readings a minute once, of seven devices each."""
    world, backend = World(), FakeBackend()
    reconciler = Reconciler(
        backend, interval=INTERVAL, on_actual=lambda actual: None, log=structlog.get_logger(), calm=world.calm
    )
    world.calm._woken = reconciler.kick
    reconciler.follow(lambda: {"pm0": device(1)})
    async with trio.open_nursery() as nursery:
        await nursery.start(reconciler.run)
        await trio.sleep(2 * STIRRED)
        before = backend.reads
        await trio.sleep(60.0)
        assert backend.reads - before <= 7
        before, world.sent = backend.reads, 1_000_000  # traffic begins
        await trio.sleep(INTERVAL + 0.1)
        assert backend.reads > before
        await trio.sleep(STIRRED / 2)
        assert backend.reads - before >= 3
        nursery.cancel_scope.cancel()


async def test_a_handshakes_new_keys_take_one_reading() -> None:
    """It tells what the kernel has after they were written: what it had before tells nothing."""
    backend = FakeBackend()
    reconciler = reconciler_of(backend)
    reconciler.follow(lambda: {"pm0": device(1)})
    await reconciler.converge()
    before = backend.reads
    reconciler.follow(lambda: {"pm0": device(2)})
    actual = await reconciler.converge()
    assert actual["pm0"].peers[KEY].psk == Secret(b"\x02" * 32)
    assert backend.reads - before == 1


async def test_new_keys_for_a_peer_that_somebody_removed_are_there_after_the_pass() -> None:
    backend = FakeBackend()
    reconciler = reconciler_of(backend)
    reconciler.follow(lambda: {"pm0": device(1)})
    await reconciler.converge()
    backend.state["pm0"] = replace(backend.state["pm0"], routes=frozenset())
    reconciler.follow(lambda: {"pm0": device(2)})
    actual = await reconciler.converge()
    assert actual["pm0"].peers[KEY].psk == Secret(b"\x02" * 32) and actual["pm0"].routes


async def test_an_attempt_that_fails_does_not_hasten_the_next(autojump_clock: object) -> None:
    """The kernel tells of what an attempt changes and takes back: each would begin the next at once."""
    backend = FakeBackend()
    backend.broken = {"pm0"}
    reconciler = Reconciler(
        backend, interval=INTERVAL, on_actual=lambda actual: reconciler.hear(), log=structlog.get_logger()
    )
    reconciler.follow(lambda: {"pm0": device(1)})
    async with trio.open_nursery() as nursery:
        await nursery.start(reconciler.run)
        await trio.sleep(60.0)
        assert 2 <= reconciler.failures <= 8
        backend.broken = set()
        reconciler.kick()
        await trio.sleep(0.1)
        assert not reconciler.problems
        nursery.cancel_scope.cancel()


async def test_a_psk_that_cannot_be_written_counts_as_one_failure_a_pass() -> None:
    """What fails in two passes is told as a fault: one pass that tries twice is one."""
    backend = FakeBackend()
    reconciler = reconciler_of(backend)
    reconciler.follow(lambda: {"pm0": device(1)})
    await reconciler.converge()
    backend.broken = {"pm0"}
    reconciler.follow(lambda: {"pm0": device(2)})
    await reconciler.converge()
    assert (reconciler.failures, reconciler.problems["pm0"].times) == (1, 1)
