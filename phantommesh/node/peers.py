# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's peers: which members they are, and what its links and interfaces are to know of them. Sans-I/O.

A member goes by many names on its way from the roster to the kernel. The table says which kind comes from
which:

| kind | of | comes from |
|---|---|---|
| `trust.Member` | what a certificate says: node id, name, role, overlay addresses | a verified certificate |
| `records.NodeRecord` | what a node says of itself: endpoints, WireGuard keys and ports | a verified record |
| `records.Entry` | a member of the roster | Member and NodeRecord |
| `link.effects.PeerAuth` | whom a link authenticates, and where | Entry (`Peers.auth`) |
| `link.context.Peer` | one link under way, with its PSKs | PeerAuth |
| `dataplane.MeshPeer` | a peer as the seven devices need it | Entry and the link's PSKs (`Peers.keyed`) |
| `wireguard.PeerConfig` | the same on one device, as it should be | MeshPeer |
| `wireguard.PeerState` | the same on one device, as WireGuard reports it | the kernel |
| `dataplane.PeerReading` | what all seven devices hold of a peer | PeerStates against PSKs (`Peers.read`) |
| `scatter.epochs.ScatterPeer` | a peer as the scatterer needs it | Entry and the link (`Peers.keyed`) |
| `scatter.epochs.PeerScatter` | its scatter from epoch to epoch | ScatterPeer |
| `scatter.peermap.PeerMap` | its part of the packet filter's table | PeerScatter |
| `membership.machine.MemberView` | whether a member is alive | gossip, not the roster |
| `views.PeerView` | what an operator is shown | all of these |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from phantommesh.config.sections import ScatterSection, WireguardSection
from phantommesh.dimensions import DIMENSIONS, bits, has, interface_names, without
from phantommesh.endpoint import Address
from phantommesh.link.effects import PeerAuth
from phantommesh.link.machine import Links
from phantommesh.membership.machine import Membership
from phantommesh.records.record import NO_KEY, wg_ports_at
from phantommesh.records.roster import Dispute, Entry, Roster
from phantommesh.routing.choice import Need
from phantommesh.routing.classlimits import DIRECTLY, ClassLimits, Hand, passing
from phantommesh.routing.ways import Way, Ways
from phantommesh.scatter.epochs import ScatterPeer
from phantommesh.scatter.goals import SCHEDULES, schedule_of
from phantommesh.scatter.intents import Intents
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Mesh, Role
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.trust.pacts import Allowed
from phantommesh.wireguard.desired import Desired, MeshPeer, OwnSide, PeerReading, read_peer
from phantommesh.wireguard.device import DeviceConfig, DeviceState, Endpoint, Network
from phantommesh.wireguard.fits import Fitted

Where = Callable[[Entry], tuple[Address, ...]]
Uplinks = Callable[[Entry], Sequence[Sequence[str]]]

# Tuning.
TURN = 12.0  # s that a dark dimension keeps to an address: WireGuard tries it twice, 5 s apart
MOST_PASSED = 64  # endpoints of a peer that are remembered as those of members that pass on its packets
MOST_TCP_PORTS = 4  # further TCP ports that are tried at one address, however many members name it


class Reached(NamedTuple):
    """A peer of the interfaces: its overlay address, and the bitmap of dimensions on which something may be
    sent to it."""

    node_id: NodeId
    ip4: IPv4Address
    ready: int


class Keyed(NamedTuple):
    """The state of one peer's keys, for the scatterer and for the paths."""

    scatter: ScatterPeer
    reached: Reached


@dataclass(frozen=True, slots=True)
class Seen:
    """One reading of the interfaces about a peer: ``handshakes`` are the times of the last on each dimension
    on the links' clock (None: never), ``wg_keys`` the peer's keys as this node uses them."""

    peer: NodeId
    reading: PeerReading
    handshakes: tuple[float | None, ...]
    wg_keys: tuple[bytes, ...]

    @property
    def received(self) -> list[int]:
        """The bytes received so far, by dimension."""
        return [0 if moved is None else moved[1] for moved in self.reading.counters]

    @property
    def counted(self) -> list[tuple[bytes, int, int] | None]:
        """By dimension: the peer's WireGuard key, the bytes received and sent; None where it is not there."""
        return [
            None if moved is None else (key, moved[1], moved[0])
            for key, moved in zip(self.wg_keys, self.reading.counters, strict=True)
        ]


@dataclass(slots=True)
class _Turns:
    """Of one peer, by dimension: how many addresses were tried in vain, and since when it is dark."""

    tried: list[int] = field(default_factory=lambda: [0] * DIMENSIONS)
    since: list[float | None] = field(default_factory=lambda: [None] * DIMENSIONS)


@dataclass(frozen=True, slots=True)
class Visitor:
    """A member of another mesh with which a pact lets this node link. ``allowed`` is what the two may do,
    ``secret`` that of ``pact``."""

    entry: Entry
    mesh: Mesh
    allowed: Allowed
    pact: bytes
    secret: Secret


class Peers:
    """The other members, for one node's links and interfaces.

    `visitors` are members of other meshes, which links and interfaces have too, and nobody else: no list of
    members names them.

    ``where`` gives the addresses of a member's control port, as far as they may be used, the likeliest first;
    ``uplinks`` the same hosts by endpoint, where one endpoint may have several (a name); ``ways`` has what
    is to be taken instead; ``keepalive`` gives the seconds between keepalives to a host (None: as
    configured). Call `look` when the
    roster, a revocation, a resolved name or the time may have changed who the peers are; give the links
    `auths`; then call `arrange`. Call `keyed` for each `Install` of the links: it costs the same in a mesh of
    any size.
    """

    def __init__(
        self,
        me: NodeId,
        links: Links,
        wireguard: WireguardSection,
        scatter: ScatterSection,
        where: Where,
        uplinks: Uplinks | None = None,
        ways: Ways | None = None,
        keepalive: Callable[[str], int] | None = None,
        intents: Intents = Intents(),
    ) -> None:
        self.entries: list[Entry] = []
        self.standing: set[NodeId] = set()  # all others in good standing
        self.authorities: list[Entry] = []
        self.visitors: dict[NodeId, Visitor] = {}
        self.fits: frozenset[Fitted] = frozenset()
        self._me, self._links, self._scatter, self._where = me, links, scatter, where
        self._intents, self.class_limits = intents, ClassLimits(intents.constrained)
        self._names = interface_names(wireguard.prefix)
        self._entry: dict[NodeId, Entry] = {}
        self._left: dict[NodeId, tuple[bytes, ...]] = {}  # in a dispute: the keys left to use
        self._uplinks = (lambda entry: [(a.host,) for a in where(entry)]) if uplinks is None else uplinks
        self._ways = Ways() if ways is None else ways
        self._keepalive = keepalive
        self._turns: dict[NodeId, _Turns] = {}
        self._located: dict[NodeId, int] = {}
        self._endpoints: dict[NodeId, Sequence[Endpoint | None]] = {}  # that WireGuard had when last read
        self._passed: dict[NodeId, dict[tuple[int, Endpoint], Way]] = {}  # by members that pass on packets
        self._carried: dict[NodeId, frozenset[Network]] = {}
        self._apart: set[NodeId] = set()  # in quarantine
        self._desired = Desired(wireguard)

    def scatter_by(self, scatter: ScatterSection, intents: Intents) -> None:
        """Scatter for these goals and intents from the next `arrange` or `keyed` on."""
        self._scatter, self._intents = scatter, intents
        self.class_limits = ClassLimits(intents.constrained)

    def look(
        self, roster: Roster, wall: float, *, revoked: bool, linked: Container[bytes] | None = None
    ) -> None:
        """Note who the peers are at ``wall``, unix time. ``revoked``: this node was revoked, so it speaks to
        nobody. ``linked`` are the only members to keep links with; None: all."""
        everyone = [entry for entry in roster if entry.member.node_id != self._me]
        self.authorities = [entry for entry in everyone if entry.member.role is Role.AUTHORITY]
        valid = [] if revoked else [entry for entry in everyone if entry.valid(wall)]
        self.standing = {entry.member.node_id for entry in valid}
        self.entries = [entry for entry in valid if linked is None or entry.member.node_id in linked]
        self._entry = {entry.member.node_id: entry for entry in self.entries}
        disputes = roster.disputes(wall)
        ends = {node_id for dispute in disputes for node_id in (dispute.winner, dispute.loser)}
        self._left = {
            node_id: usable_keys(self._entry[node_id], disputes, self._me)
            for node_id in ends
            if node_id in self._entry
        }
        self._located = {peer: bitmap for peer, bitmap in self._located.items() if peer in self._entry}
        self._endpoints = {peer: found for peer, found in self._endpoints.items() if peer in self._entry}
        self._passed = {peer: found for peer, found in self._passed.items() if peer in self._entry}
        self._turns = {peer: turns for peer, turns in self._turns.items() if peer in self._entry}
        self._ways.retain(self._entry)

    def visit(self, visitors: Iterable[Visitor], roster: Roster) -> None:
        """Note who of other meshes there is a pact with now. A WireGuard key that a member of this mesh has
        is not used for any of them, nor one that two of them claim: a peer's packets go where its key is."""
        self.visitors = {visitor.entry.member.node_id: visitor for visitor in visitors}
        if not self.visitors:
            return
        taken = Counter(
            key for visitor in self.visitors.values() for key in set(visitor.entry.record.wg_keys)
        )
        taken.update({key: 2 for entry in roster for key in entry.record.wg_keys if key in taken})
        for node_id, visitor in self.visitors.items():
            keys = visitor.entry.record.wg_keys
            self._left[node_id] = tuple(NO_KEY if taken[key] > 1 else key for key in keys)

    def get(self, peer: bytes) -> Entry | None:
        """One of `entries` by its node id."""
        return self._entry.get(NodeId(peer))

    def _reachable(self) -> list[Entry]:
        """All that links are kept with: `entries`, and then `visitors`."""
        return [*self.entries, *(visitor.entry for visitor in self.visitors.values())]

    def _linked(self, peer: bytes) -> Entry | None:
        visitor = self.visitors.get(NodeId(peer))
        return self.get(peer) if visitor is None else visitor.entry

    def wg_keys_of(self, entry: Entry) -> tuple[bytes, ...]:
        """The WireGuard keys that this node uses for one of `entries` or `visitors`, by dimension: see
        `usable_keys`."""
        return self._left.get(entry.member.node_id, entry.record.wg_keys)

    def auths(self, now: float, wall: float) -> dict[bytes, PeerAuth]:
        """The peers as the links take them, by node id. ``now`` is the links' clock, ``wall`` unix time. UDP
        comes first, then TCP at the same addresses."""
        peers: dict[bytes, PeerAuth] = {}
        for entry in self._reachable():
            member, addresses = entry.member, self._where(entry)
            peers[member.node_id] = PeerAuth(
                member.node_id,
                member.public_key,
                now + member.not_after - wall,
                self.wg_keys_of(entry),
                addresses + tuple(address._replace(transport="tcp") for address in addresses),
            )
        return peers

    def tcp_ports(self, where: Mapping[bytes, Iterable[Address]]) -> dict[Address, tuple[int, ...]]:
        """The addresses of peers, as ``where`` gives them by node id, each with further TCP ports to try:
        those of the records of all peers that name it, up to `MOST_TCP_PORTS`."""
        found: dict[Address, tuple[int, ...]] = {}
        for peer, addresses in where.items():
            ports = () if (entry := self._linked(peer)) is None else entry.record.tcp_ports
            for address in addresses:
                both = dict.fromkeys((*found.get(address, ()), *ports))
                found[address] = tuple(both)[:MOST_TCP_PORTS]
        return found

    def seeds(self) -> Iterator[Address]:
        """Yield the addresses at which the mesh is found again: the authorities', also where a certificate
        has run out."""
        for entry in self.authorities:
            yield from self._where(entry)

    # Interfaces.

    @property
    def cgroups(self) -> Sequence[str]:
        """The cgroups of this machine that classes of traffic go by."""
        return self._intents.cgroups

    @property
    def confining(self) -> bool:
        """Whether a class of traffic may not go by whatever way there is."""
        return bool(self._intents.constrained)

    @property
    def devices(self) -> Mapping[str, DeviceConfig]:
        """The seven interfaces as they should be now, by name; none before the first `arrange`."""
        return self._desired.devices()

    def arrange(self, own: OwnSide) -> list[ScatterPeer]:
        """Make the interfaces anew for all `entries`; ``own`` is our own end. Return the peers that traffic
        is scattered to. The links must know the entries already."""
        placed = [entry for entry in self._reachable() if self._placed(entry)]
        self._desired.replace(own, map(self._mesh_peer, placed))
        return [self._scatter_peer(entry) for entry in placed]

    def keyed(self, peer: bytes) -> Keyed | None:
        """Have one peer's part of the interfaces follow its desired PSKs (`Install`) and the dimensions on
        which it may be dialled. None for a peer that is kept out of the interfaces."""
        entry = self._linked(peer)
        if entry is None or not self._placed(entry):
            return None
        self._desired.change(self._mesh_peer(entry))
        return Keyed(self._scatter_peer(entry), self._reached(entry))

    def scattered(self, peer: bytes) -> ScatterPeer | None:
        """One peer as traffic is scattered to it after a reading of where WireGuard sends to. None where a
        reading changes nothing: no class has constraints, or all is sent to the peer's own addresses."""
        entry = self.get(peer)
        if entry is None or not self.confining or not self._indirect(peer) or not self._placed(entry):
            return None
        return self._scatter_peer(entry)

    def carry(self, carried: Mapping[Network, bytes]) -> None:
        """Have each of these prefixes beyond the mesh carried by the peer (a node id) that it names, and by
        no other; the seven interfaces get all of it at once."""
        by: dict[NodeId, set[Network]] = {}
        for prefix, router in carried.items():
            by.setdefault(NodeId(router), set()).add(prefix)
        before, self._carried = self._carried, {peer: frozenset(all_) for peer, all_ in by.items()}
        changed = [p for p in before.keys() | by.keys() if before.get(p) != self._carried.get(p)]
        for peer in changed:
            entry = self.get(peer)
            if entry is not None and self._placed(entry):
                self._desired.change(self._mesh_peer(entry))

    def quarantine(self, peer: bytes, *, on: bool) -> None:
        """Have a peer carry nothing beyond the mesh, and be one of `quarantined`; or no longer. The guard and
        the interfaces are to follow."""
        apart = self._apart.add if on else self._apart.discard
        apart(NodeId(peer))
        entry = self._linked(peer)
        if entry is not None and self._placed(entry):
            self._desired.change(self._mesh_peer(entry))

    @property
    def quarantined(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """The overlay addresses of the peers in quarantine."""
        members = [entry.member for entry in self._reachable() if entry.member.node_id in self._apart]
        return tuple(sorted(member.ip4 for member in members)) + tuple(sorted(m.ip6 for m in members))

    def turn(self, peer: bytes, dark: int, now: float) -> bool:
        """These dimensions of a peer, a bitmap, are dark. One whose endpoint has several addresses takes the
        next of them, after `TURN`. Return whether any did: then `keyed` is to be called."""
        if not dark:  # at nearly every look; to know the endpoints takes a tenth of a millisecond a peer
            if (known := self._turns.get(NodeId(peer))) is not None:
                known.since[:] = [None] * DIMENSIONS
            return False
        entry = self.get(peer)
        uplinks = [] if entry is None else self._uplinks(entry)
        if all(len(hosts) < 2 for hosts in uplinks):
            return False
        turns, turned = self._turns.setdefault(NodeId(peer), _Turns()), False
        for i in range(DIMENSIONS):
            if not has(dark, i):
                turns.since[i] = None
            elif (since := turns.since[i]) is None:
                turns.since[i] = now
            elif now >= since + TURN and len(uplinks[i % len(uplinks)]) > 1:
                turns.since[i], turned = now, True
                turns.tried[i] += 1
        return turned

    def heard_from(self, peer: bytes) -> None:
        """A peer finished a handshake from another address than before: try its dimensions there first."""
        self._turns.pop(NodeId(peer), None)

    def _hosts(self, entry: Entry) -> tuple[str, ...]:
        """The host of each dimension: dimension i takes endpoint i, modulo their number."""
        uplinks = [hosts for hosts in self._uplinks(entry) if hosts]
        if not uplinks:
            return ()
        turns = self._turns.get(entry.member.node_id)
        tried = (0,) * DIMENSIONS if turns is None else turns.tried
        chosen = (uplinks[i % len(uplinks)] for i in range(DIMENSIONS))
        return tuple(hosts[turn % len(hosts)] for hosts, turn in zip(chosen, tried, strict=True))

    def refit(self, fit: Callable[[bytes], int]) -> bool:
        """Keep packets to what ``fit`` says that each peer may be sent, in bytes. Return whether that is
        another than before."""
        members = [entry.member for entry in self.entries if self._placed(entry)]
        self.fits = frozenset(Fitted(m.ip4, m.ip6, fit(m.node_id)) for m in members)
        return self._desired.fit(self.fits)

    def reached(self) -> list[Reached]:
        """The peers that the interfaces have."""
        return [self._reached(entry) for entry in self.entries if self._placed(entry)]

    def read(self, entry: Entry, actual: Mapping[str, DeviceState], now: float, wall: float) -> Seen:
        """Return what the interfaces hold of one of `entries`, as just read. ``now`` is the links' clock,
        ``wall`` unix time, by which WireGuard dates its handshakes."""
        peer, wg_keys = entry.member.node_id, self.wg_keys_of(entry)
        reading = read_peer(actual, self._names, wg_keys, self._links.psks(peer))
        self._located[peer], self._endpoints[peer] = reading.located, reading.endpoints
        found = enumerate(reading.endpoints)
        self._remember(peer, [None if at is None else self._ways.at(peer, i, at) for i, at in found])
        seen = (None if moment is None else now - (wall - moment) for moment in reading.handshakes)
        return Seen(peer, reading, tuple(seen), wg_keys)

    def _placed(self, entry: Entry) -> bool:
        """Whether the interfaces have a peer: a peer without any usable key is left out."""
        return any(map(any, self.wg_keys_of(entry)))

    def _mesh_peer(self, entry: Entry) -> MeshPeer:
        member, record = entry.member, entry.record
        hosts = self._hosts(entry) or ("",) * DIMENSIONS
        ports = {host: wg_ports_at(record, host) if host else record.wg_ports for host in hosts}
        ways = self._ways.taken(member.node_id)
        self._remember(member.node_id, ways)
        where = [
            (host, ports[host][i]) if way is None else (way.endpoint.host, way.endpoint.port)
            for i, (host, way) in enumerate(zip(hosts, ways, strict=True))
        ]
        # What is held is the peer's own addresses: a way on offer may be dialled.
        held = without(self._ways.held(member.node_id), bits(way is not None for way in ways))
        return MeshPeer(
            member.node_id,
            None if member.node_id in self.visitors else IPv4Network(member.ip4),
            IPv6Network(member.ip6),
            self.wg_keys_of(entry),
            tuple(port for _, port in where),
            tuple(host for host, _ in where),
            self._links.psks(member.node_id),
            without(self._links.dials(member.node_id), held),
            () if self._keepalive is None else tuple(self._keepalive(host) for host, _ in where),
            frozenset() if member.node_id in self._apart else self._carried.get(member.node_id, frozenset()),
            self._links.bound(member.node_id),
        )

    def _scatter_peer(self, entry: Entry) -> ScatterPeer:
        member, visitor = entry.member, self.visitors.get(entry.member.node_id)
        # Goals and intents name members of this mesh, and nobody measures paths to those of others.
        order = SCHEDULES["order"]
        classes = () if visitor else self._intents.classes(member.name)
        concerned = self.class_limits.concern(classes)
        return ScatterPeer(
            member.node_id,
            None if visitor else member.ip4,
            member.ip6,
            self._links.scatter(member.node_id),
            order if visitor else schedule_of(member.name, self._scatter),
            classes,
            self.class_limits.limits(classes, self.hands(member.node_id) if concerned else ()),
        )

    def hands(self, peer: NodeId) -> list[list[Hand | None]]:
        """The members that packets to a peer go by, by dimension: see `ClassLimits.limits`. WireGuard goes
        to where the latest packet came from, so the way that it takes, and the relays that may forward to
        this node, count beside the way to take."""
        if not self._indirect(peer):
            return [[] for _ in range(DIMENSIONS)]
        endpoints = self._endpoints.get(peer, (None,) * DIMENSIONS)
        found, passed = list[list[Hand | None]](), self._passed.get(peer, {})
        lenders = self._ways.lenders(peer)
        for i, endpoint in enumerate(endpoints):
            chosen = passing((self._ways.chosen(peer, i),))
            way = None if endpoint is None else self._ways.at(peer, i, endpoint) or passed.get((i, endpoint))
            there = passing((way,)) - chosen
            lent = lenders.get(i, frozenset()) - chosen - there
            now = [self.hand(one) for one in (*chosen, *sorted(there))] or ([DIRECTLY] if lent else [])
            found.append([*now, *(self.hand(one) for one in sorted(lent))])
        return found

    def _indirect(self, peer: bytes) -> bool:
        """Whether there is a way on offer to a peer, or WireGuard may be, or get, where one led."""
        return self._ways.known(peer) or bool(self._ways.lenders(peer)) or NodeId(peer) in self._passed

    def _remember(self, peer: NodeId, ways: Iterable[Way | None]) -> None:
        """Note where members pass on packets. A relay whose lease has ended may forward all the same, and
        WireGuard, which can forget no endpoint, stays there until it has another."""
        passed = self._passed.get(peer, {})
        for i, way in enumerate(ways):
            if way is None:
                continue
            passed.pop((i, way.endpoint), None)
            if passing((way,)):
                passed[i, way.endpoint] = way
                if len(passed) > MOST_PASSED:
                    del passed[next(iter(passed))]
        if passed:
            self._passed[peer] = passed

    def confined(self, peer: NodeId) -> bool:
        """Whether any class of the traffic to a peer may not go by whatever way there is."""
        entry = self.get(peer) if self.confining else None
        return entry is not None and self.class_limits.concern(self._intents.classes(entry.member.name))

    def needs(self, peer: NodeId) -> list[Need]:
        """The needs that the classes of the traffic to a peer have of relays."""
        if not self.confining or (entry := self.get(peer)) is None:
            return []
        classes = self._intents.classes(entry.member.name)
        return self.class_limits.needs(classes, self.hand)

    def hand(self, relay: bytes) -> Hand | None:
        """A member that passes on packets; None for one that is no peer."""
        entry = self.get(relay)
        if entry is None:
            return None
        return Hand(relay, entry.member.name, entry.record.region, format_node_id(entry.member.node_id))

    def _reached(self, entry: Entry) -> Reached:
        """Do not probe a peer before WireGuard knows its endpoint: a failed attempt delays the next one by
        5 s."""
        peer = entry.member.node_id
        usable = self._links.ready(peer) & self._located.get(peer, 0)
        return Reached(peer, entry.member.ip4, without(usable, self._ways.quiet(peer)))


def usable_keys(entry: Entry, disputes: Collection[Dispute], me: NodeId) -> tuple[bytes, ...]:
    """Return a member's WireGuard keys, by dimension, `NO_KEY` in place of those that cannot be used for it.

    On one interface a key and an address can be one peer's only. ``me`` is this node. A key is not used for a
    member if another has the better claim to it, or if it is this node's own. No key is used for a member
    that has to give up its address, or whose address this node has to give up.
    """
    node_id = entry.member.node_id
    lost = [d for d in disputes if node_id == d.loser or {node_id, me} == {d.loser, d.winner}]
    if any(d.over == "address" for d in lost):
        return (NO_KEY,) * DIMENSIONS
    taken = {d.key for d in lost if d.key}
    return tuple(NO_KEY if key in taken else key for key in entry.record.wg_keys)


def generation_of(membership: Membership, peer: bytes) -> int | None:
    """Return how often a member has started, as gossip counts it. None where gossip knows of no start, or
    still holds the member for gone: then the news of a start is on its way."""
    member = membership.member(peer)
    return None if member is None or membership.gone(peer) else member.generation
