# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay's driver against a model of nftables: the kernel is made to forward what the leases say."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Address
from math import inf
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from phantommesh.config.sections import RelaySection
from phantommesh.control import messages
from phantommesh.endpoint import Address
from phantommesh.nftables.messages import Change
from phantommesh.nursery.dataplane.fastlane import AGAIN, FastLane
from phantommesh.nursery.dataplane.lending import Lending
from phantommesh.nursery.dataplane.relaying import COUNT, IDLE, Relaying
from phantommesh.nursery.host.nft import NftError
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.routing import binding
from phantommesh.routing.fastlane import Hop, Lane, key_of
from phantommesh.routing.forwarding import COUNTED, PASSED, RELAY_MARK, Frame
from phantommesh.routing.leases import Forward, Grant, Leases, Terms
from phantommesh.trust.identity import NodeId

A, B = NodeId(b"a" * 16), NodeId(b"b" * 16)
ONE, TWO = Address("192.0.2.1", 1), Address("192.0.2.2", 2)


async def alone(table: str) -> frozenset[str]:
    """No other node relays on this host."""
    return frozenset()


class Model:
    """A table as its scripts leave it: the numbers that are counted, with their bytes."""

    def __init__(self) -> None:
        self.held: dict[int, int] | None = None
        self.came, self.passed = 1, 0
        self.scripts: list[str] = []

    async def install(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        self.scripts.append(text)
        if text.startswith("add table"):
            self.held = {}
        if self.held is None:
            raise NftError("no such table")
        for verb, numbers in re.findall(r"(add|delete) element \S+ \S+ counted \{ (.*) \}", text):
            for number in map(int, numbers.split(", ")):
                if verb == "add":
                    self.held[number] = 0
                else:
                    del self.held[number]

    async def remove(self) -> None:
        await trio.lowlevel.checkpoint()
        self.held = None

    async def names(self, name: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        raise NftError("no such table")

    async def counters(self, name: str) -> Mapping[int, tuple[int, int]]:
        await trio.lowlevel.checkpoint()
        if self.held is None:
            raise NftError("no such table")
        if name == PASSED:
            return {RELAY_MARK: (self.passed, 0)}
        return {number: (self.came, size) for number, size in self.held.items()} if name == COUNTED else {}


NEAR = Hop("192.0.2.254", 2, 1500)


def key(forward: Forward) -> bytes:
    return key_of(Lane(forward, NEAR, NEAR.interface))


class Lanes:
    """The short way's table, as a model: what is in it, with bytes."""

    def __init__(self) -> None:
        self.there, self.refused = False, False
        self.held: dict[bytes, int] = {}
        self.changes = list[Change]()

    def hold(self, forwards: Collection[Forward]) -> None:
        """Hold these, without a packet."""
        self.held = {key(each): 0 for each in forwards}

    async def commit(self, changes: Sequence[Change]) -> None:
        await trio.lowlevel.checkpoint()
        if self.refused:
            raise NftError("not supported")
        self.there = True
        self.changes += changes

    async def remove(self) -> None:
        await trio.lowlevel.checkpoint()
        self.there = False

    async def counters_by_key(self, name: str) -> Mapping[bytes, tuple[int, int]]:
        await trio.lowlevel.checkpoint()
        if not self.there:
            raise NftError("no such table")
        return {key: (1, size) for key, size in self.held.items()} if name == "lanes4" else {}


async def hops(targets: Collection[str], mark: int) -> tuple[dict[str, Hop], frozenset[str]]:
    await trio.lowlevel.checkpoint()
    return dict.fromkeys(targets, NEAR), frozenset({"up0"})


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class World:
    def __init__(self, quota: int = 1_000_000) -> None:
        self.out, self.model = set[NodeId](), Model()
        self.leases = Leases(
            Terms(rate=1_000_000, quota=quota),
            lambda one, two: not {one, two} & self.out,
            lambda place: False,
            lambda size: next(self.random).to_bytes(size, "big"),
        )
        self.random, self.told = iter(range(1, 1000)), 0
        self.port = free_port()
        frame = Frame("pm", self.port, IPv4Address("127.0.0.1"), None, 1_000_000)
        self.lanes = Lanes()
        fast = FastLane(frame, ["up0"], rules=self.lanes, hops=hops)
        self.relaying = Relaying(
            self.leases, frame, rules=self.model, fast=fast, beside=alone, told=self.tell
        )

    def tell(self) -> None:
        self.told += 1

    def bind(self) -> None:
        now = trio.current_time()
        for asker, peer, place in ((A, B, ONE), (B, A, TWO)):
            grant = self.leases.ask(asker, peer, 0, now, tagging=False)
            assert isinstance(grant, Grant)
            self.leases.bind(grant.ticket, place, now)
        self.relaying.changed()

    def there(self) -> bool:
        return self.model.held is not None

    @property
    def counted(self) -> set[int]:
        return set(self.model.held or ())


def of(number: int) -> set[int]:
    return set(range(1, number + 1))


async def until(relaying: Relaying, number: int) -> None:
    with trio.fail_after(30):
        await relaying.settled(lambda forwards: len(forwards) == number)


async def test_a_lease_comes_and_goes_and_nothing_is_left_at_the_end() -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        world.bind()
        await until(world.relaying, 2)
        assert world.counted == of(2)
        world.out.add(A)
        world.relaying.changed()
        await until(world.relaying, 0)
        assert world.counted == set()
        nursery.cancel_scope.cancel()
    assert world.model.held is None


@pytest.mark.parametrize("flushed", [True, False])
async def test_a_table_that_somebody_changed_is_installed_anew(
    flushed: bool, autojump_clock: trio.testing.MockClock
) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        world.bind()
        await until(world.relaying, 2)
        assert world.model.held is not None
        if flushed:
            world.model.held = None
        else:
            world.model.held.clear()
        await trio.sleep(COUNT + 1)
        assert world.counted == of(2)
        nursery.cancel_scope.cancel()


async def test_rules_are_there_only_while_somebody_is_relayed(autojump_clock: trio.testing.MockClock) -> None:
    """Most nodes that offer relay for nobody: their hosts are left as they are."""
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        await trio.sleep(COUNT)
        assert not world.there()
        world.bind()
        await until(world.relaying, 2)
        assert world.counted == of(2)
        world.out.add(A)
        world.relaying.changed()
        await until(world.relaying, 0)
        assert world.there() and not world.counted
        await trio.sleep(IDLE + 1)
        assert not world.there()
        world.out.clear()
        world.bind()
        await until(world.relaying, 2)
        nursery.cancel_scope.cancel()


async def test_a_host_that_drops_what_is_relayed_is_noticed(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        world.bind()
        await until(world.relaying, 2)
        for came, passed, blocked in ((1, 0, False), (50, 0, True), (50, 0, True), (60, 20, False)):
            world.model.came, world.model.passed = came, passed
            await trio.sleep(COUNT + 0.1)
            assert world.relaying.blocked is blocked
        nursery.cancel_scope.cancel()


async def test_a_relay_whose_host_drops_does_not_offer_but_tries_again_ever_more_seldom(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()

    def useful() -> bool:
        return world.relaying.useful

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        world.bind()
        await until(world.relaying, 2)
        for pause in (300, 600):
            world.model.came += 50
            await trio.sleep(COUNT + 0.1)
            assert not useful()
            await trio.sleep(pause - 2 * COUNT)
            assert not useful()
            world.bind()
            await trio.sleep(3 * COUNT)
            assert useful()
            assert world.relaying.blocked
        world.model.passed = 1
        await trio.sleep(COUNT + 0.1)
        assert useful()
        assert not world.relaying.blocked
        assert world.told == 4
        nursery.cancel_scope.cancel()


async def test_data_takes_the_short_way_once_it_is_seen_to_leave(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        world.bind()
        await until(world.relaying, 2)
        await trio.sleep(COUNT + 0.1)
        assert not world.relaying.short  # nothing has left yet
        world.model.passed = 1
        await trio.sleep(COUNT + 0.1)
        assert world.relaying.short == world.relaying.forwarded
        world.lanes.hold(world.relaying.forwarded)
        world.model.came += 10  # a firewall drops what takes the long way
        await trio.sleep(COUNT + 0.1)
        assert world.relaying.blocked
        assert not world.relaying.short
        assert not world.lanes.there
        nursery.cancel_scope.cancel()


async def test_a_lease_leaves_the_short_way_before_the_long_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        world.bind()
        await until(world.relaying, 2)
        world.model.passed = 1
        await trio.sleep(COUNT + 0.1)
        world.lanes.hold(world.relaying.forwarded)
        assert world.relaying.short
        seen = list[int]()
        install = world.model.install

        async def watch(text: str) -> None:
            seen.append(len(world.relaying.short))
            await install(text)

        world.model.install = watch  # type: ignore[method-assign]
        world.out.add(A)
        world.relaying.changed()
        await until(world.relaying, 0)
        assert seen == [0]
        nursery.cancel_scope.cancel()


async def test_a_kernel_without_a_short_way_relays_all_the_same(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    world.lanes.refused = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        world.bind()
        await until(world.relaying, 2)
        world.model.passed = 1
        await trio.sleep(COUNT + 0.1)
        assert not world.relaying.short
        assert world.relaying.problem is None
        assert world.counted == of(2)
        world.lanes.refused = False
        await trio.sleep(AGAIN + COUNT)
        assert world.relaying.short == world.relaying.forwarded
        nursery.cancel_scope.cancel()


async def test_the_quota_counts_both_ways_through_the_kernel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(quota=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        world.bind()
        await until(world.relaying, 2)
        world.model.passed = 1
        await trio.sleep(COUNT + 0.1)
        assert world.model.held is not None
        one, two = sorted(world.relaying.forwarded, key=lambda each: each.number)
        world.lanes.held = {key(one): 40, key(two): 0}
        world.model.held[1], world.model.passed = 40, 2
        await trio.sleep(COUNT + 0.1)
        assert len(world.relaying.forwarded) == 2
        world.lanes.held[key(two)] = 20
        await trio.sleep(COUNT + 0.1)
        assert world.relaying.forwarded == frozenset[Forward]()
        nursery.cancel_scope.cancel()


async def test_a_spent_quota_ends_the_lease(autojump_clock: trio.testing.MockClock) -> None:
    world = World(quota=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        world.bind()
        await until(world.relaying, 2)
        assert world.model.held is not None
        world.model.held[1] = 100
        await trio.sleep(COUNT + 1)
        assert world.relaying.forwarded == frozenset[Forward]()
        assert world.counted == set()
        nursery.cancel_scope.cancel()


async def test_a_leg_that_is_not_bound_anew_ends_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        world.bind()
        await until(world.relaying, 2)
        await trio.sleep(61)
        assert world.counted == set()
        nursery.cancel_scope.cancel()


async def test_a_member_binds_its_leg_over_the_relays_socket() -> None:
    world = World()
    now = trio.current_time()
    grant = world.leases.ask(A, B, 0, now, tagging=False)
    other = world.leases.ask(B, A, 0, now, tagging=False)
    assert isinstance(grant, Grant)
    assert isinstance(other, Grant)
    world.leases.bind(other.ticket, TWO, now)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.relaying.run)
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, trio.fail_after(30):
            await sock.bind(("127.0.0.1", 0))
            await sock.connect(("127.0.0.1", world.port))
            await trio.testing.wait_all_tasks_blocked()
            await sock.send(binding.ask(grant.ticket, grant.key))
            back = binding.answer(await sock.recv(100), grant.ticket, grant.key)
            assert isinstance(back, bytes)
            await sock.send(back)
            told = binding.answer(await sock.recv(100), grant.ticket, grant.key)
            assert isinstance(told, binding.Datagram)
            assert told.forwarding
            assert told.seen == Address(*sock.getsockname())
            await until(world.relaying, 2)
        nursery.cancel_scope.cancel()


async def test_a_leg_that_moves_all_the_time_costs_few_processes(
    autojump_clock: trio.testing.MockClock,
) -> None:
    changes = 0

    async def install(text: str) -> None:
        nonlocal changes
        changes += 1
        await trio.sleep(0.01)

    async def counters(name: str) -> dict[int, tuple[int, int]]:
        return {}

    def forwards(now: float) -> frozenset[Forward]:
        return frozenset({Forward(1, 0, Address("192.0.2.1", moved), Address("192.0.2.2", 1))})

    moved, leases = 1, SimpleNamespace(
        tick=lambda now: None, forwards=forwards, begun=lambda numbers: None, deadline=inf,
        account=lambda counted, now: [],
    )  # fmt: skip
    rules = SimpleNamespace(install=install, counters=counters)
    frame = Frame("pm", 51810, None, None, 1_000_000)
    fast = FastLane(frame, [], rules=Lanes(), hops=hops)
    relaying = Relaying(cast("Any", leases), frame, rules=cast("Any", rules), fast=fast, beside=alone)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relaying._apply)
        for _ in range(1000):
            await trio.sleep(0.01)
            moved += 1
            relaying._stir()
        nursery.cancel_scope.cancel()
    assert 20 <= changes <= 20 + 5 * 10 + 1


async def test_a_member_that_does_not_answer_keeps_no_other_from_being_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    mute, other, asker = (NodeId(bytes((n,)) * 16) for n in (1, 2, 3))
    told = list[tuple[NodeId, messages.OfferRelay]]()

    async def ask(member: NodeId, word: messages.OfferRelay, patience: float) -> None:
        await trio.sleep(patience if member == mute else 0.01)
        if member == mute:
            raise StreamError("no answer in time")
        told.append((member, word))

    config = SimpleNamespace(
        relay=RelaySection(offer=True), wireguard=SimpleNamespace(prefix="pm"),
        node=SimpleNamespace(endpoints=()), control=SimpleNamespace(port=1),
    )  # fmt: skip
    lending = Lending(
        cast("Any", config), NodeId(bytes(16)), cast("Any", None), cast("Any", None),
        cast("Any", SimpleNamespace(ask=ask)), far=lambda peer: 0.01, publish=lambda: None,
    )  # fmt: skip
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lending._tell_all)
        for _ in range(240):  # as often as one member may ask
            lending._to_tell(mute, messages.OfferRelay(asker, 1))
            await trio.sleep(0.25)
        lending._to_tell(other, messages.OfferRelay(asker, 1))
        lending._to_tell(other, messages.OfferRelay(asker, 6))
        lending._to_tell(other, messages.OfferRelay(mute, 8))
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
    assert told == [(other, messages.OfferRelay(asker, 7)), (other, messages.OfferRelay(mute, 8))]
