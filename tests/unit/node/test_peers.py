# SPDX-License-Identifier: GPL-3.0-or-later
"""Who the peers are, and what the interfaces are told when one of them changes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from hashlib import sha3_256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from random import Random
from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from phantommesh.config.sections import IntentSection, ScatterSection, WireguardSection
from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.endpoint import Address, parse_endpoint
from phantommesh.kem import CryptographyKem
from phantommesh.link.effects import Install
from phantommesh.link.machine import Links
from phantommesh.node.peers import MOST_TCP_PORTS, TURN, Peers, Visitor
from phantommesh.records.candidate import Candidate, Kind
from phantommesh.records.record import NO_KEY, NodeRecord, SignedRecord
from phantommesh.records.roster import Entry, Roster
from phantommesh.routing import ways
from phantommesh.routing.ways import Way, Ways
from phantommesh.scatter.intents import Intents
from phantommesh.scatter.limits import DIRECT
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Member, Role
from phantommesh.trust.identity import NodeId
from phantommesh.trust.pacts import Allowed
from phantommesh.trust.revocations import Revocations
from phantommesh.wireguard.desired import Desired, MeshPeer, OwnSide
from phantommesh.wireguard.device import DeviceState, Endpoint
from tests.support.loopback import make_authority, serving
from tests.support.makemesh import NOW, identity, make_mesh

ME = identity("me")
PORTS = tuple(range(51820, 51827))
PRIVATE = tuple(Secret(bytes([i + 1]) * 32) for i in range(DIMENSIONS))
NETWORKS = (IPv4Network("100.64.0.0/10"), IPv6Network("fd00::/48"))
NAMES = [f"pm{i}" for i in range(DIMENSIONS)]


def key(number: int, dimension: int) -> bytes:
    return sha3_256(b"key %d %d" % (number, dimension)).digest()


@cache
def entry(number: int, *, role: Role = Role.NODE, now: float = NOW, over: float = 1e6) -> Entry:
    """A member as a verified record would give it; nothing here looks at the signature again."""
    node_id = NodeId(number.to_bytes(16))
    four, six = IPv4Address(0x64400000 + number), IPv6Address((0xFD << 120) + number)
    member = Member(node_id, f"n{number}", role, four, six, ME.public_key, now - 1, now + over)
    keys = tuple(key(number, i) for i in range(DIMENSIONS))
    control = (f"192.0.2.{number % 250}:51800",)
    record = NodeRecord(node_id, 1, control, keys, PORTS, "test", (b"proved",) * DIMENSIONS)
    return Entry(member, record, SignedRecord(b"", b"", b"", b""), node_id, None)


def where(one: Entry) -> tuple[Address, ...]:
    return tuple(Address(*parse_endpoint(text)) for text in one.record.control)


def roster_of(*entries: Entry) -> Roster:
    mesh = make_mesh()
    roster = Roster(mesh.root, Revocations(mesh.root))
    for one in entries:
        roster.keep(one, NOW)
    return roster


class World:
    """A node's peers and links."""

    def __init__(self, *entries: Entry, me: NodeId = ME.node_id, revoked: bool = False) -> None:
        self.links = Links(
            node_id=me, wg_keys=[key(0, i) for i in range(DIMENSIONS)], admission=Secret(b"a" * 32),
            kem=CryptographyKem(), random=Random(1).randbytes, now=0.0,
        )  # fmt: skip
        self.ways = Ways()
        self.peers = Peers(me, self.links, WireguardSection(), ScatterSection(), where, ways=self.ways)
        self.own = OwnSide(PRIVATE, PORTS, entry(99).member, NETWORKS)
        self.look(*entries, revoked=revoked)

    def look(self, *entries: Entry, revoked: bool = False, wall: float = NOW) -> None:
        self.peers.look(roster_of(*entries), wall, revoked=revoked)
        self.links.set_peers(self.peers.auths(0.0, wall), 0.0)
        self.scattered = self.peers.arrange(self.own)

    @property
    def placed(self) -> list[set[bytes]]:
        """The public keys that each device is to have."""
        return [set(device.peers) for device in self.peers.devices.values()]


def test_the_others_in_good_standing_are_the_peers() -> None:
    mine = replace(entry(5), member=replace(entry(5).member, node_id=ME.node_id))
    world = World(entry(1), mine, entry(2), entry(3, over=-0.5))
    assert [one.member.node_id for one in world.peers.entries] == [
        entry(1).member.node_id,
        entry(2).member.node_id,
    ]
    assert world.peers.standing == {entry(1).member.node_id, entry(2).member.node_id}
    assert world.placed == [{key(1, i), key(2, i)} for i in range(DIMENSIONS)]
    assert {peer.node_id for peer in world.scattered} == world.peers.standing


def test_members_of_another_mesh_are_linked_apart_from_our_own_and_by_ipv6_alone() -> None:
    world = World(entry(1))
    copied = replace(entry(4), record=structs.replace(entry(4).record, wg_keys=entry(1).record.wg_keys))
    shared = (*entry(3).record.wg_keys[:6], key(5, 6))
    both = replace(entry(5), record=structs.replace(entry(5).record, wg_keys=shared))
    mesh = make_mesh("there").mesh
    visitors = [
        Visitor(one, mesh, Allowed(), bytes(16), Secret(bytes(32))) for one in (entry(3), copied, both)
    ]
    world.peers.visit(visitors, roster_of(entry(1)))
    auths = world.peers.auths(0.0, NOW)
    assert auths.keys() == {one.member.node_id for one in (entry(1), entry(3), copied, both)}
    world.links.set_peers(auths, 0.0)
    scattered = {peer.node_id: peer for peer in world.peers.arrange(world.own)}
    # No list of members has them.
    assert world.peers.entries == [entry(1)] and world.peers.standing == {entry(1).member.node_id}
    assert world.peers.get(entry(3).member.node_id) is None
    assert [peer.node_id for peer in world.peers.reached()] == [entry(1).member.node_id]
    # A key that one of ours has, or two of them claim, leads to nobody of theirs.
    assert world.placed == [{key(1, i)} for i in range(6)] + [{key(1, 6), key(3, 6), key(5, 6)}]
    peer = world.peers.devices["pm6"].peers[key(3, 6)]
    assert peer.allowed_ips == {IPv6Network(entry(3).member.ip6)}
    assert scattered[entry(3).member.node_id].ip4 is None
    world.peers.visit([], roster_of(entry(1)))
    world.look(entry(1))
    assert world.placed == [{key(1, i)} for i in range(DIMENSIONS)]


def test_a_node_that_was_revoked_has_no_peers_but_knows_where_the_authorities_are() -> None:
    world = World(entry(1), entry(2, role=Role.AUTHORITY, over=-0.5), revoked=True)
    assert not world.peers.entries and not world.peers.auths(0.0, NOW)
    assert world.placed == [set()] * DIMENSIONS
    assert list(world.peers.seeds()) == [Address("192.0.2.2", 51800)]


def test_a_link_is_tried_by_udp_and_then_by_tcp() -> None:
    (auth,) = World(entry(1)).peers.auths(50.0, NOW + 10.0).values()
    assert auth.endpoints == (Address("192.0.2.1", 51800), Address("192.0.2.1", 51800, "tcp"))
    assert auth.valid_until == 50.0 + 1e6 - 10.0


def test_further_tcp_ports_go_with_each_address_that_a_record_names() -> None:
    def naming(number: int, *ports: int) -> Entry:
        one = entry(number)
        return replace(one, record=structs.replace(one.record, tcp_ports=ports))

    world = World(naming(1, 443), entry(2), naming(3, 1, 2), naming(4, 3, 443))
    mine, other, shared = (Address(f"192.0.2.{n}", 51800, "tcp") for n in (1, 2, 9))
    ids = [one.member.node_id for one in map(entry, (1, 2, 3, 4))]
    where: dict[bytes, tuple[Address, ...]] = {
        ids[0]: (mine, shared),
        ids[1]: (other, shared),
        ids[2]: (shared,),
        ids[3]: (shared,),
    }
    found = world.peers.tcp_ports({**where, b"?": (other,)})
    assert found == {mine: (443,), other: (), shared: (443, 1, 2, 3)}
    assert len(found[shared]) <= MOST_TCP_PORTS


def test_the_loser_of_an_address_keeps_its_link_and_leaves_the_interfaces() -> None:
    loser = replace(entry(2), member=replace(entry(2).member, ip4=entry(1).member.ip4))
    world = World(entry(1), loser)
    assert world.placed == [{key(1, i)} for i in range(DIMENSIONS)]
    auths = world.peers.auths(0.0, NOW)
    assert set(auths) == {entry(1).member.node_id, loser.member.node_id}
    assert auths[loser.member.node_id].wg_keys == (NO_KEY,) * DIMENSIONS
    assert world.peers.keyed(loser.member.node_id) is None
    assert [one.node_id for one in world.peers.reached()] == [entry(1).member.node_id]
    world.look(entry(1), entry(2))  # it has another address now
    assert world.placed == [{key(1, i), key(2, i)} for i in range(DIMENSIONS)]


def test_a_finished_handshake_changes_its_own_peer_only() -> None:
    world, peer = World(entry(1), entry(2)), entry(1).member.node_id
    before = world.peers.devices
    world.links._peers[peer].psk.unbind(0b1, 0.0)  # other keys than before, as after a handshake
    keyed = world.peers.keyed(peer)
    assert keyed is not None and keyed.scatter.node_id == keyed.reached.node_id == peer
    after = world.peers.devices
    changed = [
        (name, found)
        for name, device in after.items()
        for found, config in device.peers.items()
        if config != before[name].peers[found]
    ]
    assert changed == [("pm0", key(1, 0))]
    assert before["pm0"] != after["pm0"]  # what was read out before has stayed as it was


def test_a_peer_is_not_probed_before_wireguard_knows_where_it_is() -> None:
    world, one = World(entry(1)), entry(1)
    world.links.ready = lambda peer: 0b1111111  # type: ignore[method-assign]
    assert [found.ready for found in world.peers.reached()] == [0]
    actual: dict[str, DeviceState] = {}
    assert world.peers.read(one, actual, 0.0, NOW).reading.located == 0
    assert [found.ready for found in world.peers.reached()] == [0]


def mesh_peer(number: int, keys: Sequence[int], psk: int) -> MeshPeer:
    return MeshPeer(
        bytes([number]) * 16, IPv4Network(0x64400000 + number), IPv6Network((0xFD << 120) + number),
        tuple(key(k, i) if k else NO_KEY for i, k in enumerate(keys)), PORTS, ("192.0.2.1",),
        tuple(Secret(bytes([psk + 1, i]) * 16) for i in range(DIMENSIONS)), psk,
    )  # fmt: skip


@st.composite
def crowds(draw: st.DrawFn) -> list[MeshPeer]:
    """Peers of which no two have one key; a key may be another peer's than in the crowd before."""
    owners = draw(st.permutations(range(1, 6)))
    numbers = draw(st.lists(st.sampled_from(range(1, 6)), unique=True))
    lacking = draw(st.sets(st.integers(0, DIMENSIONS - 1)))
    return [
        mesh_peer(
            n, [0 if i in lacking else owners[n - 1] for i in range(DIMENSIONS)], draw(st.integers(0, 127))
        )
        for n in numbers
    ]


@given(
    st.lists(
        st.tuples(crowds(), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 127)), max_size=3)),
        max_size=4,
    )
)
def test_devices_that_change_peer_by_peer_are_those_made_at_once(
    steps: list[tuple[list[MeshPeer], list[tuple[int, int]]]],
) -> None:
    own = OwnSide(PRIVATE, PORTS, entry(99).member, NETWORKS)
    kept = Desired(WireguardSection())
    for crowd, keyed in steps:
        kept.replace(own, crowd)
        wanted = {peer.node_id: peer for peer in crowd}
        for index, psk in keyed:
            if crowd:
                peer = crowd[index % len(crowd)]
                number = peer.node_id[0]
                changed = replace(mesh_peer(number, [1] * DIMENSIONS, psk), wg_keys=peer.wg_keys)
                wanted[peer.node_id] = changed
                kept.change(changed)
        fresh = Desired(WireguardSection())
        fresh.replace(own, wanted.values())
        assert kept.devices() == fresh.devices()


def calls_of(action: object) -> int:
    """How many functions are called, those of C too."""
    count = 0

    def seen(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    assert callable(action)
    sys.setprofile(seen)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("sizes", [(5, 80)])
async def test_a_finished_handshake_costs_no_more_among_many_peers(
    tmp_path: Path, sizes: tuple[int, int]
) -> None:
    """In calls, from the link's effect to all that it changes: they may grow as a heap does, no more."""
    make_authority(tmp_path)
    async with serving(tmp_path) as node:
        work = []
        for size in sizes:
            for number in range(1, size + 1):
                node.parts.keeper.roster.keep(entry(number, now=time()), time())
            node._weaving.peers_changed()
            assert len(node.parts.peers.entries) == size
            peer = entry(3).member.node_id
            node.parts.links._peers[peer].psk.unbind(0b1111111, 0.0)
            work.append(calls_of(partial(node.parts.driver.carry_out, [Install(peer)])))
        assert work[1] < 1.2 * work[0], work


def test_a_dark_dimension_takes_the_next_address_of_its_endpoint() -> None:
    """An endpoint that is a name has two addresses, the other endpoint has one."""
    world, one = World(entry(1)), entry(1)
    peer = one.member.node_id
    world.peers._uplinks = lambda entry: [("2001:db8::1", "192.0.2.1"), ("198.51.100.1",)]

    def hosts() -> tuple[str, ...]:
        return world.peers._hosts(one)

    assert hosts()[:3] == ("2001:db8::1", "198.51.100.1", "2001:db8::1")
    dark = 0b0000111
    assert not world.peers.turn(peer, dark, 100.0)
    assert not world.peers.turn(peer, dark, 100.0 + TURN - 1)
    assert world.peers.turn(peer, dark, 100.0 + TURN)
    assert hosts()[:5] == ("192.0.2.1", "198.51.100.1", "192.0.2.1", "198.51.100.1", "2001:db8::1")
    assert not world.peers.turn(peer, 0, 200.0)  # they answer: they stay where they are
    assert not world.peers.turn(peer, dark, 201.0)
    assert world.peers.turn(peer, dark, 201.0 + TURN)
    assert hosts()[0] == "2001:db8::1"
    world.peers.turn(peer, dark, 202.0 + 2 * TURN)
    world.peers.heard_from(peer)
    assert hosts()[0] == "2001:db8::1"


def test_a_dimension_goes_to_the_port_of_the_address_that_it_takes() -> None:
    ports = tuple(range(40_001, 40_001 + DIMENSIONS))
    plain = entry(1)
    seen = Candidate.of(Kind.SEEN, ip_address("203.0.113.7"), 40_000, (*ports[:-1], 0))
    one = replace(plain, record=structs.replace(plain.record, candidates=(seen,)))
    world = World(one)
    world.peers._uplinks = lambda entry: [("203.0.113.7",), ("192.0.2.1",)]
    made = world.peers._mesh_peer(one)
    assert made.hosts == ("203.0.113.7", "192.0.2.1") * 3 + ("203.0.113.7",)
    assert made.wg_ports == tuple(ports[i] if i in (0, 2, 4) else PORTS[i] for i in range(DIMENSIONS))
    world.peers._uplinks = lambda entry: []
    assert world.peers._mesh_peer(one).wg_ports == PORTS


def test_a_way_on_offer_takes_the_place_of_the_record_s_address(monkeypatch: pytest.MonkeyPatch) -> None:
    world, one = World(entry(1)), entry(1)
    peer = one.member.node_id
    monkeypatch.setattr(world.links, "dials", lambda peer: 0b0111111)
    relayed = Way(ways.Kind.RELAYED, Endpoint("203.0.113.9", 51900), relay=b"r" * 16)
    world.ways.offer(peer, 2, relayed)
    world.ways.offer(peer, 6, relayed)
    world.ways.hold(peer, 0b110)
    made = world.peers._mesh_peer(one)
    assert made.hosts == tuple("203.0.113.9" if i in (2, 6) else "192.0.2.1" for i in range(DIMENSIONS))
    assert made.wg_ports == tuple(51900 if i in (2, 6) else PORTS[i] for i in range(DIMENSIONS))
    assert made.dials == 0b0111101  # 1 is held; 2 has a way; 6 is not to be dialled at all
    world.look()
    assert world.ways.chosen(peer, 2) is None


def test_a_class_may_take_what_leads_to_a_peer_by_the_hands_that_it_allows() -> None:
    world, peer = World(entry(1), entry(2)), entry(1).member.node_id
    assert world.peers.scattered(peer) is None
    intent = IntentSection("ssh", "order", ports=(22,), never_relays=("n2",))
    world.peers.scatter_by(ScatterSection(), Intents((intent, IntentSection("bulk", "order", ports=(1,)))))
    assert world.peers.confining, "all is direct yet"
    assert world.peers.scattered(peer) is None

    def allowed() -> tuple[int, ...]:
        found = world.peers.scattered(peer)
        return () if found is None else found.limits.allowed

    endpoint = Endpoint("203.0.113.9", 51900)
    world.ways.offer(peer, 2, Way(ways.Kind.RELAYED, endpoint, relay=entry(2).member.node_id))
    world.ways.offer(peer, 3, Way(ways.Kind.FRAMED, endpoint, relay=b"no member".ljust(16)))
    assert allowed() == (0b1110011, ALL)
    world.ways.offer(peer, 2, Way(ways.Kind.DIRECT, Endpoint("198.51.100.7", 51820)))
    assert allowed() == (0b1110111, ALL)
    world.peers._endpoints[peer] = (None, None, endpoint, None, None, None, None)
    assert allowed() == (0b1110011, ALL), "a late packet has taken WireGuard back to the relay"
    world.peers._endpoints.clear()
    # A relay that has given this node a leg may forward before this node takes that way: WireGuard follows.
    lenders = {5: frozenset({entry(2).member.node_id})}
    assert world.ways.lend(peer, lenders)
    assert allowed() == (0b1010111, ALL) and not world.ways.lend(peer, lenders)
    assert [one.node_id for one in world.peers.hands(peer)[5] if one] == [DIRECT, entry(2).member.node_id]
    assert world.peers.confined(peer) and world.ways.lend(peer, {})
    assert allowed() == (0b1110111, ALL)
    world.look(entry(2))
    assert world.peers.scattered(peer) is None and not world.peers._endpoints


def test_a_relay_that_forwards_without_a_lease_gets_nothing_that_it_may_not_have() -> None:
    """WireGuard can forget no endpoint: it stays at a relay's until it has another."""
    world, peer = World(entry(1), entry(2)), entry(1).member.node_id
    intent = IntentSection("ssh", "order", ports=(22,), direct_only=True)
    world.peers.scatter_by(ScatterSection(), Intents((intent,)))
    endpoint = Endpoint("203.0.113.9", 51900)
    world.ways.offer(peer, 2, Way(ways.Kind.RELAYED, endpoint, relay=entry(2).member.node_id))
    world.look(entry(1), entry(2))

    def allowed() -> tuple[int, ...]:
        found = world.peers.scattered(peer)
        return () if found is None else found.limits.allowed

    assert allowed() == (0b1111011,)
    world.peers._endpoints[peer] = (None, None, endpoint, None, None, None, None)
    world.ways.withdraw(peer, 2, ways.Kind.RELAYED)
    assert allowed() == (0b1111011,), "there is no lease, and WireGuard is there yet"
    world.peers._endpoints[peer] = (None, None, Endpoint("192.0.2.1", PORTS[2]), None, None, None, None)
    assert allowed() == (ALL,)
    world.peers._endpoints[peer] = (None, None, endpoint, None, None, None, None)
    world.look(entry(1))
    assert allowed() == (0b1111011,), "the relay is no member any more, and forwards"
    world.look(entry(2))
    assert not world.peers._passed


def test_dimensions_of_endpoints_with_one_address_stay() -> None:
    world, peer = World(entry(1)), entry(1).member.node_id
    assert not any(world.peers.turn(peer, 0b1111111, float(now)) for now in range(100))
