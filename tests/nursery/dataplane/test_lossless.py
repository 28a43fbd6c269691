# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole nodes that replace their WireGuard keys under traffic, over a model of WireGuard's data plane.

The model knows what matters here: packets pass between two ends that name each other's public key and have a
session; a session is made where both hold one PSK and outlives another PSK, but not another key; and a packet
that comes before that makes WireGuard try in vain and then wait (REKEY_TIMEOUT).
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from time import time
from typing import Any, Self, cast

import pytest
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.dataplane import paths
from phantommesh.nursery.host.fake import FakeBackend
from phantommesh.nursery.node import Node
from phantommesh.paths.state import PathState
from phantommesh.paths.weights import FULL
from phantommesh.scatter.transactions import Snapshot
from phantommesh.wireguard.device import DeviceState
from tests.nursery.members.test_replaced_keys import both, known
from tests.support.loopback import join, make_authority, make_invite, serving, until

REKEY_TIMEOUT = 5.0
PACKET = 100  # bytes
FLIGHT = 0.02  # s
FIRST_INDEX = 100


class Backend(FakeBackend):
    """The model's devices with an index each."""

    async def devices(self, names: Collection[str]) -> dict[str, DeviceState]:
        found = await super().devices(names)
        return {name: replace(state, index=FIRST_INDEX + int(name[-1])) for name, state in found.items()}


class Scatterer:
    """Takes weights, and has them in force a little later."""

    def __init__(self) -> None:
        self.force: dict[bytes, tuple[float, ...]] = {}

    async def set_scores(
        self, wanted: Mapping[bytes, Sequence[float]], quickest: Mapping[bytes, int | None]
    ) -> None:
        await trio.sleep(0.005)
        self.force |= {node_id: tuple(scores) for node_id, scores in wanted.items()}

    def snapshot(self, node_id: bytes) -> Snapshot | None:
        return cast("Snapshot", self)


class Wires:
    """The data plane between nodes."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}
        self.pipes: dict[str, Pipe] = {}
        self.sessions: set[frozenset[bytes]] = set()
        self.blocked: dict[frozenset[bytes], float] = {}
        self.in_vain = 0
        self.cut: set[int] = set()

    def connect(self, node: Node) -> None:
        """Give a node that has not started its place here."""
        backend = Backend()
        node.parts.reconciler._backend = backend
        node.parts = replace(node.parts, backend=backend)
        node.parts.paths._scatterer = Scatterer()
        self.nodes[str(node.parts.own.member.ip4)] = node

    def send(self, source: Node, target: Node, dimension: int) -> bool:
        """Send one packet; say whether it arrives."""
        name = f"pm{dimension}"
        here, there = (cast("Backend", node.parts.backend).state.get(name) for node in (source, target))
        if here is None or there is None or here.public_key is None or there.public_key is None:
            return False
        mine, theirs = here.peers.get(there.public_key), there.peers.get(here.public_key)
        pair = frozenset((here.public_key, there.public_key))
        if dimension in self.cut:
            return False
        if mine is not None and theirs is not None and pair not in self.sessions:
            if trio.current_time() < self.blocked.get(pair, 0.0):
                return False
            if mine.endpoint is None or mine.psk != theirs.psk:
                self.in_vain += 1
                self.blocked[pair] = trio.current_time() + REKEY_TIMEOUT
                return False
            self.sessions.add(pair)
            self._change(source, name, there.public_key, last_handshake=time())
            self._change(target, name, here.public_key, last_handshake=time())
        if mine is None or theirs is None or pair not in self.sessions:
            return False
        if mine.endpoint is None or mine.endpoint.port != there.listen_port:
            return False
        self._change(source, name, there.public_key, tx_bytes=mine.tx_bytes + PACKET)
        self._change(target, name, here.public_key, rx_bytes=theirs.rx_bytes + PACKET)
        return True

    def _change(self, node: Node, name: str, key: bytes, **values: Any) -> None:
        state = cast("Backend", node.parts.backend).state
        device = state[name]
        state[name] = replace(device, peers={**device.peers, key: replace(device.peers[key], **values)})

    async def keep_alive(self) -> None:
        """Do as WireGuard does by itself: where it has an endpoint and a keepalive, it shakes hands."""
        while True:
            for source in self.nodes.values():
                for name, device in dict(cast("Backend", source.parts.backend).state).items():
                    for target in self.nodes.values():
                        there = cast("Backend", target.parts.backend).state.get(name)
                        peer = None if there is None else device.peers.get(there.public_key or b"")
                        if peer is not None and peer.keepalive and peer.endpoint is not None:
                            assert there is not None
                            pair = frozenset((device.public_key or b"", there.public_key or b""))
                            if pair not in self.sessions:
                                self.send(source, target, int(name[-1]))
            await trio.sleep(0.05)


class Pipe:
    """A probe socket of the model."""

    def __init__(self, wires: Wires, address: IPv4Address, port: int) -> None:
        self.address, self._wires = address, wires
        self.socket, self.feed = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self.socket, self.feed):
            end.setblocking(False)
        wires.pipes[str(address)] = self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.feed.close()

    def send(self, datagram: bytes, to: str, interface: int) -> None:
        dimension, nodes = interface - FIRST_INDEX, self._wires.nodes
        pipe = self._wires.pipes.get(to)
        if pipe is not None and self._wires.send(nodes[str(self.address)], nodes[to], dimension):
            pipe.feed.send(bytes([dimension]) + self.address.packed + datagram)

    def receive(self) -> tuple[bytes, str, int]:
        data = self.socket.recv(256)
        return data[5:], str(IPv4Address(data[1:5])), FIRST_INDEX + data[0]


class Pings:
    """One each 10 ms, there and back, each way by the weights of the end that sends."""

    def __init__(self, wires: Wires, source: Node, target: Node) -> None:
        self.wires, self.ends, self.sent, self.lost = wires, (source, target), 0, list[tuple[float, int]]()
        self._rng = random.Random(1)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._ping)
                await trio.sleep(0.01)

    async def _ping(self) -> None:
        began = trio.current_time()
        self.sent += 1
        for source, target in (self.ends, self.ends[::-1]):
            force = cast("Scatterer", source.parts.paths._scatterer).force
            weights = force.get(target.parts.state.identity.node_id, FULL)
            (dimension,) = self._rng.choices(range(DIMENSIONS), weights)
            await trio.sleep(FLIGHT)
            if not self.wires.send(source, target, dimension):
                self.lost.append((began, dimension))
                return


@contextmanager
def wired(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wires]:
    wires = Wires()
    monkeypatch.setattr(paths, "ProbeSocket", partial(Pipe, wires))
    yield wires


def up(node: Node, peer: Node) -> bool:
    views = node.parts.paths.paths.view(peer.parts.state.identity.node_id, trio.current_time())
    return [view.state for view in views] == [PathState.UP] * DIMENSIONS and all(v.rtt for v in views)


async def with_two(
    tmp_path: Path, wires: Wires, work: Callable[[Node, Node, Pings], Any]
) -> tuple[Pings, Wires]:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a", wires.connect) as alpha, trio.open_nursery() as nursery:
        nursery.start_soon(wires.keep_alive)
        await join(tmp_path / "b", make_invite(state), "beta")
        async with serving(tmp_path / "b", wires.connect) as beta:
            await until(lambda: known(alpha, beta) and both(alpha, beta))
            await until(lambda: up(alpha, beta) and up(beta, alpha))
            pings = Pings(wires, alpha, beta)
            async with trio.open_nursery() as pinging:
                pinging.start_soon(pings.run)
                await work(alpha, beta, pings)
                pinging.cancel_scope.cancel()
        nursery.cancel_scope.cancel()
    return pings, wires


async def test_both_ends_replace_every_key_under_traffic_and_no_packet_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(alpha: Node, beta: Node, pings: Pings) -> None:
        before = alpha.parts.own.wg_keys.public + beta.parts.own.wg_keys.public

        async def replace_all(node: Node, order: Sequence[int]) -> None:
            for dimension in order:
                assert await node.parts.rekeying.replace(dimension)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replace_all, alpha, range(DIMENSIONS))
            nursery.start_soon(replace_all, beta, (6, 0, 1, 2, 5, 4, 3))
        await until(lambda: both(alpha, beta) and up(alpha, beta) and up(beta, alpha))
        assert not set(before) & {*alpha.parts.own.wg_keys.public, *beta.parts.own.wg_keys.public}

    with wired(monkeypatch) as wires:
        pings, _ = await with_two(tmp_path, wires, work)
    assert pings.lost == [] and pings.sent > 500
    assert wires.in_vain == 0  # nothing was sent on a dimension that was not ready for it


async def test_a_cut_dimension_is_left_by_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(alpha: Node, beta: Node, pings: Pings) -> None:
        await until(lambda: pings.sent > 300)  # the counters have told that there is traffic
        assert not pings.lost
        pings.wires.cut = {3}
        for node, peer in ((alpha, beta), (beta, alpha)):
            force = cast("Scatterer", node.parts.paths._scatterer).force
            peer_id = peer.parts.state.identity.node_id
            await until(lambda f=force, i=peer_id: f.get(i, FULL)[3] == 0.0)  # type: ignore[misc]
        moved, sent = trio.current_time(), pings.sent
        await until(lambda: pings.sent > sent + 200)
        assert pings.lost and all(began < moved for began, _ in pings.lost)
        assert {dimension for _, dimension in pings.lost} == {3}
        pings.wires.cut = set()
        await until(lambda: up(alpha, beta) and up(beta, alpha))

    with wired(monkeypatch) as wires:
        await with_two(tmp_path, wires, work)
