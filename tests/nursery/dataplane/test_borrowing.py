# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes' drivers of borrowed leases, and a relay between them, on one clock: channels and raw sockets are
models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from msgspec import structs

from phantommesh.config.sections import RelaySection
from phantommesh.control import messages
from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.node.relaying import Lends, Relay
from phantommesh.nursery.dataplane import tags
from phantommesh.nursery.dataplane.borrowing import ALONE, Borrower
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.paths.effects import PathView
from phantommesh.paths.state import PathState
from phantommesh.records.record import NodeRecord, RelayOffer
from phantommesh.routing.binding import Challenger
from phantommesh.routing.leases import Leases, Terms
from phantommesh.routing.legs import HURRY, Use
from phantommesh.routing.tagging import Tagged
from phantommesh.routing.ways import Kind, Way, Ways
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.device import Endpoint
from tests.support.makemesh import identity, plain_record

A, B, P, Q = (NodeId(bytes((n,)) * 16) for n in (1, 2, 11, 12))
HOSTS = {A: "192.0.2.1", B: "192.0.2.2", P: "192.0.2.11", Q: "192.0.2.12"}
UP = PathView(PathState.UP, 1.0, 0.02, 0.0, 0.0, 1.0, 1.0, 0.1, 0.1, True)
DARK = replace(UP, state=PathState.DARK, answers=False)


class World:
    def __init__(
        self, *, offers: bool = True, section: RelaySection = RelaySection(), confining: bool = False
    ) -> None:
        self.section, self.confining = section, confining
        self.bound: dict[tuple[NodeId, int], float] = {}  # when a dimension first bound a leg
        self.told: list[tuple[NodeId, float, frozenset[int]]] = []  # changes, with the dimensions lent then
        base = plain_record(identity("a"))
        self.records: dict[NodeId, NodeRecord] = {
            member: structs.replace(
                base,
                control=(f"{host}:1",),
                relay=RelayOffer(51810, 1) if member in (P, Q) and offers else None,
            )
            for member, host in HOSTS.items()
        }
        self.random = iter(range(1, 10_000))
        self.direct = False
        self.hosts = dict(HOSTS)
        self.ends: dict[NodeId, Borrower] = {}
        self.ways = {A: Ways(), B: Ways()}
        self.handles: dict[NodeId, Callable[[int, Address, bytes], None]] = {}
        self.leases = {relay: self._leases() for relay in (P, Q)}
        self.challengers = {relay: Challenger(self.leases[relay], self.some) for relay in (P, Q)}
        self.relays = {relay: self._relay(relay) for relay in (P, Q)}
        for me, peer in ((A, B), (B, A)):
            self.ends[me] = self._end(me, peer)

    def some(self, size: int) -> bytes:
        return next(self.random).to_bytes(size, "big")

    def _leases(self) -> Leases:
        lends = Lends(P, lambda: {A, B}, frozenset, None)
        return Leases(Terms(rate=1, quota=1), lends, lambda place: False, self.some)

    def _relay(self, relay: NodeId) -> Relay:
        return Relay(
            self.leases[relay], 51810, far=lambda peer: 0.01,
            tell=lambda to, word: self.ends[to].offered(relay, word), changed=lambda: None,
        )  # fmt: skip

    def _end(self, me: NodeId, peer: NodeId) -> Borrower:
        entries = [
            SimpleNamespace(member=SimpleNamespace(node_id=m, name=str(m[0])), record=self.records[m])
            for m in HOSTS
            if m != me
        ]
        by_id = {entry.member.node_id: entry for entry in entries}
        peers = SimpleNamespace(
            entries=entries, get=by_id.get, standing=set(by_id), needs=lambda peer: (),
            confined=lambda peer: self.confining, confining=self.confining,
        )  # fmt: skip

        @asynccontextmanager
        async def call(relay: NodeId) -> AsyncIterator[object]:
            await trio.sleep(0.01)
            if relay not in self.relays:
                raise StreamError("down")

            async def ask(request: Any) -> messages.Answer:
                await trio.sleep(0.01)
                return self.relays[relay].answer(me, request, trio.current_time())

            yield SimpleNamespace(ask=ask)

        def send(dimension: int, to: Address, datagram: bytes) -> bool:
            relay = next((m for m, host in self.hosts.items() if host == to.host), None)
            if relay is None:
                return True  # nobody is there any more
            self.bound.setdefault((me, dimension), trio.current_time())
            place = Address(self.hosts[me], 51820 + dimension)
            heard = self.challengers[relay].receive(datagram, place, trio.current_time())
            if heard.answer is not None and relay in self.relays:
                self.handles[me](dimension, to, heard.answer)
            return True

        def listen(magic: int, handle: Callable[[int, Address, bytes], None]) -> None:
            self.handles[me] = handle

        return Borrower(
            me, self.section, "pm",
            peers=cast("Any", peers), ways=self.ways[me], caller=cast("Any", SimpleNamespace(call=call)),
            ports=cast("Any", SimpleNamespace(listen=listen, send=send)),
            record=lambda: self.records[me], own_ports=lambda: range(51820, 51827),
            where=lambda entry: [Address(self.hosts[entry.member.node_id], 1)],
            views=lambda member: [self._view(me, member, i) for i in range(DIMENSIONS)],
            down=lambda member: False, keyed=lambda member: ALL,
            changed=lambda member: self.told.append((me, trio.current_time(), self.lent(me, member))),
        )  # fmt: skip

    def lent(self, me: NodeId, peer: NodeId) -> frozenset[int]:
        return frozenset(self.ways[me].lenders(peer))

    def _view(self, me: NodeId, member: NodeId, dimension: int) -> PathView:
        if member in (P, Q):
            return UP if member in self.relays else DARK
        way = self.ways[me].chosen(member, dimension)
        if way is None:
            return UP if self.direct else DARK
        if way.kind is Kind.DIRECT:
            return UP
        relay = NodeId(way.relay)
        return UP if relay in self.relays and way.endpoint.host == self.hosts[relay] else DARK

    def over(self, me: NodeId, peer: NodeId) -> list[bytes]:
        chosen = (self.ways[me].chosen(peer, i) for i in range(DIMENSIONS))
        return [b"" if way is None else way.relay for way in chosen]

    def doubt(self) -> None:
        self.ends[A].doubt((B,))
        self.ends[B].doubt((A,))


@asynccontextmanager
async def running(world: World) -> AsyncIterator[None]:
    """Both ends run, and look at each other."""
    async with trio.open_nursery() as nursery:
        for end in world.ends.values():
            nursery.start_soon(end.run)
        world.doubt()
        yield
        nursery.cancel_scope.cancel()


async def test_dimensions_are_dealt_over_two_relays_and_leave_the_one_that_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    async with running(world):
        await trio.sleep(2.0)
        assert sorted(map(world.over(A, B).count, (P, Q))) == [3, 4]
        assert world.over(A, B) == world.over(B, A)
        assert len(world.leases[P].forwards(trio.current_time())) in (6, 8)
        del world.relays[P]
        world.doubt()
        await trio.sleep(3.0)
        assert world.over(A, B) == world.over(B, A) == [Q] * DIMENSIONS


async def test_what_may_not_go_by_a_relay_is_told_before_the_relay_can_forward(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(confining=True)
    async with running(world):
        await trio.sleep(3.0)
    assert sorted(map(world.over(A, B).count, (P, Q))) == [3, 4] and len(world.bound) == 2 * DIMENSIONS
    for (me, dimension), bound in world.bound.items():
        told = [when for who, when, lent in world.told if who == me and dimension in lent]
        assert bound - min(told) >= HURRY - 0.001


async def test_dimensions_follow_a_relay_that_has_another_address(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its leases go on there, so nothing begins anew: there is no other relay."""
    world = World()
    del world.relays[Q]
    async with running(world):
        await trio.sleep(8.0)
        assert world.over(A, B) == world.over(B, A) == [P] * DIMENSIONS
        world.hosts[P] = "192.0.2.111"
        world.doubt()
        await trio.sleep(8.0)
        for me, peer in ((A, B), (B, A)):
            ways = [world.ways[me].chosen(peer, i) for i in range(DIMENSIONS)]
            assert {way.endpoint.host for way in ways if way is not None} == {"192.0.2.111"}
            assert None not in ways


async def test_a_node_that_has_moved_binds_its_legs_at_once(autojump_clock: trio.testing.MockClock) -> None:
    """To the relay it is a stranger until then, in all dimensions."""
    world = World()
    async with running(world):
        await trio.sleep(8.0)
        world.hosts[A] = "192.0.2.99"
        world.ends[A].moved()
        await trio.sleep(0.05)
        now = trio.current_time()
        known = {one.source.host for leases in world.leases.values() for one in leases.forwards(now)}
        assert known == {"192.0.2.99", HOSTS[B]}


async def test_a_direct_way_ends_the_leases_after_a_while(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with running(world):
        await trio.sleep(2.0)
        for me, peer in ((A, B), (B, A)):
            for i in range(DIMENSIONS):
                world.ways[me].offer(peer, i, Way(Kind.DIRECT, Endpoint(HOSTS[peer], 51820 + i)))
        world.doubt()
        await trio.sleep(2.0)
        assert len(world.leases[P]) and len(world.leases[Q])  # the other end may be later
        await trio.sleep(10.0)
        assert not len(world.leases[P]) and not len(world.leases[Q])
        assert not world.ways[A].on_offer(B, Kind.RELAYED)


async def test_a_peer_without_any_way_is_a_fault_until_somebody_relays(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(offers=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.ends[A].run)
        world.doubt()
        await trio.sleep(ALONE + 2.0)
        assert [fault.code for fault in world.ends[A].faults()] == ["no-relay"]
        assert "and no member relays" in next(world.ends[A].faults()).text
        world.direct = True
        await trio.sleep(2.0)
        assert not list(world.ends[A].faults())
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (RelaySection(direct_only=True), "relay.direct_only"),
        (RelaySection(never=("11", "12")), "relay.never"),
        (RelaySection(only=("db",)), "relay.only"),
        (RelaySection(regions=("eu",)), "relay.regions"),
    ],
)
async def test_relays_that_are_forbidden_are_not_used_and_the_fault_names_key_and_members(
    autojump_clock: trio.testing.MockClock, section: RelaySection, key: str
) -> None:
    world = World(section=section)
    async with running(world):
        await trio.sleep(ALONE + 2.0)
        assert world.over(A, B) == world.over(B, A) == [b""] * DIMENSIONS
        assert not len(world.leases[P]) and not len(world.leases[Q])
        (fault,) = world.ends[A].faults()
        assert fault.code == "no-way-allowed" and key in fault.text and key in (fault.fix or "")
        assert "11, 12" in fault.text


async def test_of_several_relays_those_that_are_allowed_are_used(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World(section=RelaySection(never=("11",)))
    async with running(world):
        await trio.sleep(5.0)
        assert world.over(A, B) == world.over(B, A) == [Q] * DIMENSIONS


async def test_where_members_relay_the_fault_names_them(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.ends[A].run)  # the other end does not follow
        world.doubt()
        await trio.sleep(ALONE + 2.0)
        (fault,) = world.ends[A].faults()
        assert fault.code == "no-relay" and fault.fix is not None
        assert "no member relays" not in fault.text and "set relay.offer" not in fault.fix
        assert all(name in fault.text for name in ("11", "12"))
        nursery.cancel_scope.cancel()


async def test_what_does_not_belong_to_a_lease_is_dropped_and_counted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    async with running(world):
        await trio.sleep(2.0)
        handle, before = world.handles[A], world.over(A, B)
        handle(0, Address(HOSTS[P], 51810), bytes(64))
        ticket = next(iter(world.ends[A]._tickets))
        where = world.ends[A]._tickets[ticket][2]
        forged = b"PMR1\x04" + ticket + bytes(51)
        handle(where, Address("198.51.100.1", 51810), forged)
        handle(where, Address(HOSTS[world.ends[A]._tickets[ticket][0]], 51810), forged)
        world.ends[A].offered(P, messages.OfferRelay(b"x" * 16, 1))
        assert world.ends[A].dropped == {"relay-ticket": 1, "relay-source": 1, "relay-offer": 1}
        assert world.over(A, B) == before


async def test_what_is_forged_or_repeated_from_another_address_of_a_relay_ends_no_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world, other = World(), "198.51.100.9"
    del world.relays[Q]
    end, repeated = world.ends[A], dict[int, bytes]()
    send, take = end._ports.send, world.handles[A]
    end._where = lambda entry: [Address(HOSTS[entry.member.node_id], 1), Address(other, 1)]
    cast("Any", end._ports).send = lambda i, to, data: to.host == other or send(i, to, data)

    def noted(dimension: int, source: Address, data: bytes) -> None:
        repeated[dimension] = data if data[4] == 2 else repeated[dimension]  # a CHALLENGE
        take(dimension, source, data)

    world.handles[A] = noted
    async with running(world):
        for genuine in (False, True):
            await trio.sleep(5.0)
            assert world.over(A, B) == world.over(B, A) == [P] * DIMENSIONS
            for ticket, (_, _, i) in end._tickets.items():
                data = repeated[i] if genuine else b"PMR1\x04" + ticket + bytes(51)
                take(i, Address(other, 51810), data)
            await trio.sleep(150.0)
        assert world.over(A, B) == world.over(B, A) == [P] * DIMENSIONS


async def test_a_relay_does_not_take_over_the_ticket_of_another_one(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    async with running(world):
        await trio.sleep(2.0)
        end = world.ends[A]
        ticket, which = next((t, which) for t, which in end._tickets.items() if which[0] == P)
        legs = (messages.Leg(which[2], 0, ticket, bytes(32), False),)
        asked = messages.AskRelay(B, 1 << which[2], tagging=True)
        end._answered(Q, B, asked, messages.Relayed(51810, 1, legs))
        assert end._tickets[ticket] == which
        assert end.dropped["relay-ticket-taken"] == 1


async def test_two_relays_at_one_address_have_no_alias_in_common() -> None:
    end, peers = World().ends[A], (B, NodeId(bytes((3,)) * 16))
    for peer, relay, port in zip(peers, (P, Q), (51810, 51811), strict=True):
        end._heard_from[relay, peer, 0] = "192.0.2.11"
        end._take(Use(peer, 0, relay, port, 1))
    assert len({tagged.alias for tagged, _ in end._tags.tagged.values()}) == 2


async def test_no_empty_table_of_tags_stays(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = list[str]()

    class Table:
        def __init__(self, *names: str) -> None:
            pass

        async def install(self, rules: str) -> None:
            done.append("install")

        async def remove(self) -> None:
            done.append("remove")

    monkeypatch.setattr(tags, "Table", Table)
    end = World().ends[A]
    tagged = Tagged(51820, Address(HOSTS[P], 51810), 1, 50001)
    end._tags.tagged[B, 0] = tagged, Way(Kind.RELAYED, Endpoint(HOSTS[P], 50001), relay=P)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end._tags.keep)
        await trio.sleep(1.0)
        end._tags.tagged.clear()
        end._tags.bell.ring()
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
    assert done == ["install", "remove"]
