# SPDX-License-Identifier: GPL-3.0-or-later
"""The driver of a relay's short way, against a model of its table and of the host's routes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address

import pytest
import trio

from phantommesh.endpoint import Address
from phantommesh.nftables.messages import Change
from phantommesh.nursery.dataplane.fastlane import LOOK, FastLane
from phantommesh.nursery.host.nft import NftError
from phantommesh.routing.fastlane import Hop, Lane, key_of
from phantommesh.routing.forwarding import Frame
from phantommesh.routing.leases import Forward

FRAME = Frame("pm", 51810, IPv4Address("192.0.2.100"), None, 1_000_000)
ONE, TWO, THREE = (Address(f"192.0.2.{n}", n) for n in (1, 2, 3))
THERE, BACK = Forward(1, 0, ONE, TWO), Forward(2, 0, TWO, ONE)
NEAR = Hop("192.0.2.254", 2, 1500)
BOTH = frozenset({THERE, BACK})


class Kernel:
    """The table as far as it is read, and the routes."""

    def __init__(self) -> None:
        self.held: dict[bytes, int] = {}
        self.there, self.whole, self.asked = False, 0, list[set[str]]()
        self.refuses = False
        self.gateway, self.uplinks = "192.0.2.254", frozenset({"up0"})
        self.fast = FastLane(FRAME, ["up0", "up1"], rules=self, hops=self.hops)

    async def commit(self, changes: Sequence[Change]) -> None:
        await trio.sleep(0.01)
        self.whole += len(changes) > 2
        self.there = True
        self.refuse()

    def refuse(self) -> None:
        if self.refuses:
            raise NftError("no descriptor left")

    async def remove(self) -> None:
        await trio.sleep(0.01)
        self.refuse()
        self.there = False

    async def counters_by_key(self, name: str) -> Mapping[bytes, tuple[int, int]]:
        found = dict(self.held)
        await trio.sleep(0.01)
        if not self.there:
            raise NftError("no such table")
        return {key: (1, size) for key, size in found.items()} if name == "lanes4" else {}

    async def hops(self, targets: Collection[str], mark: int) -> tuple[dict[str, Hop], frozenset[str]]:
        await trio.lowlevel.checkpoint()
        self.asked.append(set(targets))
        return {target: Hop(self.gateway, 2, 1500) for target in targets}, self.uplinks

    def hold(self, sizes: Mapping[Forward, int]) -> None:
        self.held = {key_of(Lane(one, NEAR, NEAR.interface)): size for one, size in sizes.items()}


async def test_readings_at_one_time_count_each_byte_once(autojump_clock: trio.testing.MockClock) -> None:
    kernel = Kernel()
    await kernel.fast.follow(BOTH, 0.0)
    kernel.hold({THERE: 100, BACK: 0})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kernel.fast.read)
        await trio.sleep(0.005)
        kernel.hold({THERE: 150, BACK: 0})
        nursery.start_soon(kernel.fast.read)
        nursery.start_soon(kernel.fast.withdraw, frozenset({BACK}))
    assert (await kernel.fast.read())[1] == 150
    assert {lane.forward for lane in kernel.fast.lanes} == {BACK}


async def test_a_table_that_somebody_edited_is_made_anew(autojump_clock: trio.testing.MockClock) -> None:
    kernel = Kernel()
    await kernel.fast.follow(BOTH, 0.0)
    kernel.hold({THERE: 100})
    await kernel.fast.read()
    assert not kernel.fast.lanes
    await kernel.fast.follow(BOTH, 1.0)
    assert kernel.whole == 2
    assert len(kernel.fast.lanes) == 2


async def test_what_could_not_be_closed_is_closed_later(autojump_clock: trio.testing.MockClock) -> None:
    """It was taken for closed, and the lanes of a pair that was revoked stayed for good."""
    for withdrawn in (True, False):
        kernel = Kernel()
        fast = kernel.fast
        ends = partial(fast.withdraw, frozenset()) if withdrawn else partial(fast.follow, frozenset(), 1.0)
        await kernel.fast.follow(BOTH, 0.0)
        kernel.hold({THERE: 0, BACK: 0})
        kernel.refuses = True
        for _ in range(2):
            with pytest.raises(NftError):
                await ends()
        assert kernel.there
        kernel.refuses = False
        await ends()
        assert not kernel.there and not kernel.fast.lanes


async def test_a_table_that_was_made_though_an_error_came_is_closed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    kernel = Kernel()
    kernel.refuses = True
    with pytest.raises(NftError):
        await kernel.fast.follow(BOTH, 0.0)
    kernel.refuses = False
    await kernel.fast.withdraw(frozenset())
    assert not kernel.there


async def test_lanes_follow_the_routes(autojump_clock: trio.testing.MockClock) -> None:
    kernel = Kernel()
    await kernel.fast.follow(BOTH, 0.0)
    kernel.hold({THERE: 0, BACK: 0})
    kernel.gateway = "192.0.2.253"
    await kernel.fast.follow(BOTH, 1.0)
    assert {lane.hop.via for lane in kernel.fast.lanes} == {"192.0.2.254"}
    kernel.fast.moved()
    await kernel.fast.follow(BOTH, 1.0)
    assert {lane.hop.via for lane in kernel.fast.lanes} == {"192.0.2.253"}
    kernel.gateway = "192.0.2.252"
    await kernel.fast.follow(BOTH, 1.0 + LOOK)
    assert {lane.hop.via for lane in kernel.fast.lanes} == {"192.0.2.252"}
    kernel.uplinks = frozenset()
    await kernel.fast.follow(BOTH, 1.0 + 2 * LOOK)
    assert not kernel.there


async def test_a_leg_that_moves_costs_one_look_up(autojump_clock: trio.testing.MockClock) -> None:
    kernel = Kernel()
    await kernel.fast.follow(BOTH, 0.0)
    kernel.hold({THERE: 0, BACK: 0})
    moved = frozenset({Forward(1, 0, ONE, THREE), Forward(2, 0, THREE, ONE)})
    await kernel.fast.follow(moved, 1.0)
    assert kernel.asked == [{ONE.host, TWO.host}, {THREE.host}]
    assert {lane.forward for lane in kernel.fast.lanes} == moved
