# SPDX-License-Identifier: GPL-3.0-or-later
"""The probes' socket and driver, on the loopback device: two nodes, whose dimension 3 it is."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.dataplane import paths as probes
from phantommesh.nursery.dataplane.paths import PathDriver, ProbeSocket
from phantommesh.nursery.host import uplinkmtu
from phantommesh.paths.effects import Rescore
from phantommesh.paths.fitting import Fitting
from phantommesh.paths.machine import Paths
from phantommesh.paths.probe import Probe
from phantommesh.paths.state import PathState
from phantommesh.paths.weights import FULL
from phantommesh.routing.ways import Kind, Way
from phantommesh.scatter.transactions import Snapshot
from phantommesh.wireguard.device import DeviceState, Endpoint
from tests.support.loopback import free_port, until

A, B = b"a" * 16, b"b" * 16
ADDRESSES = {A: IPv4Address("127.0.0.1"), B: IPv4Address("127.0.0.2")}
NAMES = tuple(f"pm{i}" for i in range(7))
LOOPBACK = socket.if_nametoindex("lo")
DEVICE = DeviceState("pm3", LOOPBACK, True, bytes(32), 1, 1420, frozenset(), frozenset(), {})


class FakeScatterer:
    """Remembers the weights; ``refuses`` so many times first."""

    def __init__(self, refuses: int = 0) -> None:
        self.set: list[tuple[bytes, tuple[float, ...]]] = []
        self.refuses = refuses

    async def set_scores(
        self, wanted: Mapping[bytes, Sequence[float]], quickest: Mapping[bytes, int | None]
    ) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            self.refuses -= 1
            raise PhantomMeshError("not now")
        self.set += [(node_id, tuple(scores)) for node_id, scores in wanted.items()]

    def snapshot(self, node_id: bytes) -> Snapshot | None:
        return None


def driver(
    me: bytes,
    peer: bytes,
    port: int,
    scatterer: FakeScatterer | None = None,
    way: Callable[[bytes, int], Way | None] = lambda peer, dimension: None,
) -> PathDriver:
    paths = Paths(random=random.Random(1), interval=0.05)
    made = PathDriver(
        paths,
        scatterer or FakeScatterer(),
        port=port,
        names=NAMES,
        address=lambda: ADDRESSES[me],
        fitting=Fitting(paths, random=random.Random(1), largest=1420),
        way=way,
    )
    made.devices({"pm3": DEVICE})
    made.set_peers([(peer, ADDRESSES[peer], 0b1000)])
    return made


def states(it: PathDriver, peer: bytes) -> list[PathState]:
    return [view.state for view in it.paths.view(peer, trio.current_time())]


async def test_two_nodes_measure_the_dimension_between_them() -> None:
    port = free_port()
    a, b = driver(A, B, port), driver(B, A, port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        nursery.start_soon(b.run)
        await until(lambda: a.paths.view(B, trio.current_time())[3].rtt is not None)
        await until(lambda: b.paths.view(A, trio.current_time())[3].rtt is not None)
        assert states(a, B) == [PathState.CLOSED] * 3 + [PathState.UP] + [PathState.CLOSED] * 3
        nursery.cancel_scope.cancel()


async def test_two_nodes_find_what_the_dimension_between_them_carries() -> None:
    port = free_port()
    a, b = driver(A, B, port), driver(B, A, port)
    a.locate(B, [None] * 3 + [Endpoint("127.0.0.2", 9)] + [None] * 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        nursery.start_soon(b.run)
        await until(lambda: a.sized > 0 and b.sized > 0)
        await until(lambda: a.fitting.settled(B) == b.fitting.settled(A) == 0b1000)
        assert a.fitting.sizes(B)[3] == a.fitting.fit(B) == 1420
        assert (a.sized_bytes, a.dropped) == (1420 * a.sized, {})
        nursery.cancel_scope.cancel()


async def test_an_uplink_is_asked_for_when_the_kernel_says_that_one_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mtus, asked = {"10.0.0.1": 1500}, list[str]()

    def read(host: str) -> int | None:
        asked.append(host)
        return mtus.get(host)

    monkeypatch.setattr(uplinkmtu, "read", read)
    monkeypatch.setattr(probes, "FOLLOW", 0.0)
    a = driver(A, B, free_port())
    a.locate(B, [None] * 3 + [Endpoint("10.0.0.1", 9)] + [None] * 3)
    a.locate(B, [None] * 3 + [Endpoint("10.0.0.1", 9)] + [None] * 3)
    assert a.fitting.fit(B) == 1420 and asked == ["10.0.0.1"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        mtus["10.0.0.1"] = 1400
        a.uplinks_changed()
        await until(lambda: a.fitting.fit(B) == 1328)
        a.set_peers([])
        a.uplinks_changed()
        await trio.testing.wait_all_tasks_blocked()
        assert len(asked) == 2
        nursery.cancel_scope.cancel()


async def test_frames_over_tcp_have_no_limit_and_what_a_relay_is_reached_by_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uplinkmtu, "read", {"10.0.0.2": 1450}.get)
    frames, relay = Endpoint("127.0.0.1", 4000), Endpoint("10.0.0.2", 51)
    ways = {3: Way(Kind.FRAMED, frames)}
    a = driver(A, B, free_port(), way=lambda peer, dimension: ways.get(dimension))
    a.locate(B, [None] * 3 + [relay] + [None] * 3)  # until the reconciler has set the way
    assert a.fitting.fit(B) == 1376
    a.locate(B, [None] * 3 + [frames] + [None] * 3)
    assert a.fitting.fit(B) == 1420 and a.fitting.settled(B) == 0b1000
    ways[3] = Way(Kind.RELAYED, relay, b"r" * 16)
    a.locate(B, [None] * 3 + [relay] + [None] * 3)
    assert a.fitting.fit(B) == 1376 and a.fitting.settled(B) == 0
    await trio.lowlevel.checkpoint()


def test_the_kernel_says_what_an_uplink_takes() -> None:
    assert uplinkmtu.read("127.0.0.1") == min(65535, int(Path("/sys/class/net/lo/mtu").read_text()))


async def test_a_dimension_is_asked_at_once_when_wireguard_sends_elsewhere() -> None:
    paths = driver(A, B, free_port())
    paths.paths.tick(trio.current_time())
    first, second = ([None] * 3 + [Endpoint("127.0.0.2", port)] + [None] * 3 for port in (9, 10))
    paths.locate(B, first)
    waits = paths.paths.deadline
    paths.locate(B, first)
    assert paths.paths.deadline == waits > trio.current_time()
    paths.locate(B, second)
    assert paths.paths.deadline <= trio.current_time()


async def test_probes_that_did_not_come_through_a_dimension_are_nobodys() -> None:
    port = free_port()
    a = driver(A, B, port)
    a.devices({"pm3": replace(DEVICE, index=LOOPBACK + 1000)})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        with ProbeSocket(ADDRESSES[B], port) as sock:

            def sent(reason: str, count: int) -> bool:
                try:
                    sock.send(Probe(False, 3, 1).encode(), str(ADDRESSES[A]), LOOPBACK)
                except OSError:
                    pass  # a is not listening yet
                return a.dropped[reason] >= count

            await until(lambda: sent("probe-source", 3))
            a.devices({"pm3": DEVICE})
            with ProbeSocket(IPv4Address("127.0.0.9"), port) as stranger:
                before = a.dropped["probe-source"]

                def strange() -> bool:
                    stranger.send(Probe(False, 3, 1).encode(), str(ADDRESSES[A]), LOOPBACK)
                    return a.dropped["probe-source"] > before

                await until(strange)
        nursery.cancel_scope.cancel()


async def test_an_interface_that_is_not_there_costs_a_counted_probe() -> None:
    a = driver(A, B, free_port())
    a.devices({})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        await until(lambda: a.dropped["probe-unsent"] >= 2)
        nursery.cancel_scope.cancel()


async def test_a_port_that_somebody_has_is_said_once_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "RETRY", 0.02)
    port = free_port()
    a = driver(A, B, port)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            with ProbeSocket(ADDRESSES[A], port):
                nursery.start_soon(a.run)
                await until(lambda: a.problem is not None)
                await trio.sleep(0.1)
            assert a.problem is not None and "paths.port" in a.problem.fix
            await until(lambda: a.problem is None)
            nursery.cancel_scope.cancel()
    assert len([entry for entry in logs if "not measured" in entry["event"]]) == 1


async def test_weights_are_set_again_until_the_kernel_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "RETRY", 0.02)
    scatterer = FakeScatterer(refuses=2)
    a = driver(A, B, free_port(), scatterer)
    drained = (1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0)
    a._to_apply = {peer: Rescore(peer, scores) for peer, scores in ((b"gone", FULL), (B, drained))}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        await until(lambda: (B, drained) in scatterer.set)
        nursery.cancel_scope.cancel()


async def test_who_waits_for_traffic_hears_of_it_when_it_is_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Not when some probe comes back: paths without traffic are asked seldom."""
    a = driver(A, B, free_port())
    async with trio.open_nursery() as nursery:
        for second in range(3):
            a.read(B, [(second * 100_000,) * 2] * 7)
            if not second:
                nursery.start_soon(a.wait, lambda: a.paths.rate(B, trio.current_time()) > 0.0)
            await trio.sleep(1.0)
            if second == 1:
                assert nursery.child_tasks == frozenset()


def test_without_a_map_dimension_0_alone_carries_the_traffic() -> None:
    async def main() -> None:
        a = driver(A, B, free_port())
        a.devices({"pm3": DEVICE})
        assert a.paths._peers[B].in_force == (1.0, *[0.0] * 6)
        await trio.lowlevel.checkpoint()

    trio.run(main)


async def test_an_operators_ping_is_answered_and_one_at_a_time() -> None:
    port = free_port()
    a, b = driver(A, B, port), driver(B, A, port)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run)
        nursery.start_soon(b.run)
        await until(lambda: states(a, B)[3] is PathState.UP and a.problem is None)
        async with trio.open_nursery() as asking:
            asking.start_soon(second_is_refused, a)
            tallies = await a.ping(B, count=2, size=None)
        assert [(one.sent, len(one.times)) for one in tallies] == [(2 * (i == 3),) * 2 for i in range(7)]
        sized = await a.ping(B, count=1, size=1000)
        assert len(sized[3].times) == 1
        with pytest.raises(PhantomMeshError, match="no packet of 1421 bytes"):
            await a.ping(B, count=1, size=1421)
        nursery.cancel_scope.cancel()


async def second_is_refused(a: PathDriver) -> None:
    await until(lambda: B in a._bursts)
    with pytest.raises(PhantomMeshError, match="another ping of this peer"):
        await a.ping(B, count=1, size=None)


async def test_too_many_pings_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    a = driver(A, B, free_port())  # nothing runs, so each is waited for and given up
    for _ in range(probes.BURSTS[1]):
        with trio.move_on_after(0.0):
            await a.ping(B, count=1, size=None)
    with pytest.raises(PhantomMeshError, match="too many pings"):
        await a.ping(B, count=1, size=None)


async def test_without_its_socket_a_ping_ends(autojump_clock: trio.testing.MockClock) -> None:
    a = driver(A, B, free_port())
    assert [one.sent for one in await a.ping(B, count=3, size=None)] == [0] * 7
    a.problem = PhantomMeshError("paths are not measured", fix="so and so")
    with pytest.raises(PhantomMeshError, match="not measured"):
        await a.ping(B, count=3, size=None)
