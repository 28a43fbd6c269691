# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's real links, offences and FORTRESS under a virtual clock, among honest members that churn and roam.

Each member is a real `Links` behind a NAT: several share one address, ports change while a mapping is
idle, members restart with nothing in memory, move to another NAT (where the node does not know them until a
handshake from there is through), and come back to the node after the node itself restarted, with cookies and
chains that mean nothing any more. The network loses, delays, repeats and reorders. Newcomers guess wrong
invites as people do, health checks connect and say nothing, and a revoked member tries on.

Not in here: the kernel's counters, for no honest node sends what they count, and WireGuard.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from phantommesh.acl.bans import Ban, BanError, Bans, Shield, parse_network
from phantommesh.acl.threats import Offences, judge
from phantommesh.agents import actions
from phantommesh.agents.base import Observation
from phantommesh.agents.fortress import Fortress, FortressSeen, Source
from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.kem import CryptographyKem
from phantommesh.link import keys, wire
from phantommesh.link.effects import Effect, Install, Opened, PeerAuth, Send, Sign
from phantommesh.link.machine import Links
from phantommesh.node.steps import Moment
from phantommesh.secret import Secret
from tests.simulation.pair import ADMISSION, FOREVER, identities

HOUR = 3600.0
NODE = Address("198.51.100.1", 51800)
OLD = Secret(b"o" * 32)  # an admission secret of before: the revoked member's
LOOK = 0.5  # s
STEP = 1.0  # s between ticks of a machine whose deadline has passed


@dataclass
class Scale:
    """How bad it is: times are means in seconds."""

    nats: int = 4
    loss: float = 0.02
    duplicate: float = 0.01
    delay: tuple[float, float] = (0.005, 0.2)
    restarts: float = 2 * HOUR  # of each member
    roams: float = HOUR
    rebinds: float = 300.0
    node_restarts: float = 3 * HOUR
    known_after: float = 60.0  # s until the node hears of a move by the member's record


@dataclass
class Member:
    """One member: its links, where it is, and what the node knows of that."""

    number: int
    host: str
    port: int
    links: Links | None = None
    life: int = 0
    known: dict[str, None] = field(default_factory=dict)


class Siege:
    """The whole of it. ``bans`` are those that came; ``offences`` counts all that was noted."""

    def __init__(self, members: int, seed: int, scale: Scale = Scale()) -> None:
        self.rng, self.scale, self.now = random.Random(seed), scale, 1000.0
        self._order, self._events = itertools.count(), list[tuple[float, int, object]]()
        self._ids = identities(members + 2)
        self._auth = {
            one.node_id: PeerAuth(one.node_id, one.public_key, FOREVER, self._wg_keys(i), ())
            for i, one in enumerate(self._ids)
        }
        self.members = [Member(i, self._nat(), self._port()) for i in range(1, members + 1)]
        self.offences, self.book, self.agent = Offences(), Bans(), Fortress()
        self.bans: list[Ban] = []
        self.noted: Counter[tuple[str, bool]] = Counter()
        self.worst = 0.0
        self.opened = self.roamed = self.restarted = 0
        self.node: Links
        self.life = 0
        self._start_node()
        for member in self.members:
            member.known[member.host] = None
            self._start(member)
            for what, mean in (("restart", scale.restarts), ("roam", scale.roams), ("rebind", scale.rebinds)):
                self._after(self.rng.expovariate(1 / mean), (what, member, mean))
        self._after(scale.node_restarts, ("node",))
        for nuisance, every in (("revoked", 5.0), ("check", 10.0), ("idler", 600.0), ("guess", 900.0)):
            self._after(every, (nuisance, every))
        self._after(LOOK, ("look",))

    # Who and where.

    @staticmethod
    def _wg_keys(number: int) -> tuple[bytes, ...]:
        return tuple(bytes([number + 1, i + 1]) * 16 for i in range(DIMENSIONS))

    def _nat(self) -> str:
        return f"203.0.113.{self.rng.randrange(self.scale.nats)}"

    def _port(self) -> int:
        return self.rng.randrange(1024, 65536)

    def _links(self, number: int) -> Links:
        me, wg = self._ids[number], self._wg_keys(number)
        return Links(
            node_id=me.node_id, wg_keys=wg, admission=ADMISSION, kem=CryptographyKem(),
            random=self.rng.randbytes, now=self.now,
            agree=lambda dimension, theirs: bytes(
                a ^ b for a, b in zip(wg[dimension], theirs, strict=True)
            ),
        )  # fmt: skip

    def _start_node(self) -> None:
        self.life += 1
        self.node = self._links(0)
        self.node.set_admission([ADMISSION], [OLD])
        self.node.blame_by(self._blame)
        peers: dict[bytes, PeerAuth] = {
            self._ids[m.number].node_id: self._auth[self._ids[m.number].node_id] for m in self.members
        }
        self._carry_out(None, self.node.set_peers(peers, self.now))
        self._tick(None)

    def _start(self, member: Member) -> None:
        member.life += 1
        member.links = self._links(member.number)
        node = self._ids[0]
        auth = PeerAuth(node.node_id, node.public_key, FOREVER, self._wg_keys(0), (NODE,))
        self._carry_out(member, member.links.set_peers({node.node_id: auth}, self.now))
        self._tick(member)

    def _blame(self, reason: str, source: Address, proved: bool) -> None:
        self.noted[reason, proved] += 1
        self.offences.note(reason, source.host, "cookie" if proved else None, self.now)

    # Time and datagrams.

    def _after(self, seconds: float, event: object) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def _transmit(self, datagram: bytes, source: Address, target: Address) -> None:
        scale = self.scale
        for _ in range(1 + (self.rng.random() < scale.duplicate)):
            if self.rng.random() >= scale.loss:
                self._after(self.rng.uniform(*scale.delay), ("datagram", datagram, source, target))

    def _carry_out(self, member: Member | None, effects: list[Effect]) -> None:
        links = self.node if member is None else member.links
        life = self.life if member is None else member.life
        for effect in effects:
            match effect:
                case Send(datagram, destination):
                    source = NODE if member is None else Address(member.host, member.port)
                    self._transmit(datagram, source, destination)
                case Sign(token, request):
                    me = self._ids[0 if member is None else member.number]
                    signature = me.sign(request.data, request.context)
                    self._after(0.002, ("signed", member, life, token, signature))
                case Install(peer):
                    self._after(0.003, ("installed", member, life, peer))
                case Opened() if member is None:
                    self.opened += 1
                    if effect.at is not None:
                        who = next(m for m in self.members if self._ids[m.number].node_id == effect.peer)
                        who.known.pop(effect.at.host, None)
                        who.known[effect.at.host] = None
                        while len(who.known) > 16:
                            del who.known[next(iter(who.known))]
                case _:
                    pass
        if links is not None and links.deadline < FOREVER:
            self._after(max(0.0, links.deadline - self.now), ("tick", member, life))

    def _tick(self, member: Member | None) -> None:
        links = self.node if member is None else member.links
        if links is not None and links.deadline <= self.now:
            self._carry_out(member, links.tick(self.now))

    def run(self, seconds: float) -> None:
        """Go on for so long."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, event = heapq.heappop(self._events)
            self._handle(event)
        self.now = end

    def _handle(self, event: Any) -> None:
        match event:
            case ("datagram", bytes() as datagram, Address() as source, Address() as target):
                self._arrive(datagram, source, target)
            case ("tick", member, life) if life == self._life(member):
                self._tick(member)
            case ("signed", member, life, token, signature) if life == self._life(member):
                links = self.node if member is None else member.links
                self._carry_out(member, links.signed(token, signature, self.now))
            case ("installed", member, life, peer) if life == self._life(member):
                links = self.node if member is None else member.links
                known = [self.now] * DIMENSIONS  # WireGuard shakes hands at once
                self._carry_out(member, links.read_back(peer, ALL, known, self.now))
            case ("restart", Member() as member, mean):
                self.restarted += 1
                self._start(member)
                self._after(self.rng.expovariate(1 / mean), event)
            case ("roam", Member() as member, mean):
                self.roamed += 1
                member.host, member.port = self._nat(), self._port()
                self._after(self.scale.known_after, ("heard", member, member.host))
                self._after(self.rng.expovariate(1 / mean), event)
            case ("heard", Member() as member, str() as host):
                member.known.pop(host, None)
                member.known[host] = None
            case ("rebind", Member() as member, mean):
                member.port = self._port()
                self._after(self.rng.expovariate(1 / mean), event)
            case ("node",):
                self._start_node()
                self._after(self.scale.node_restarts, event)
            case ("look",):
                self._look()
                self._after(LOOK, event)
            case (str() as nuisance, float() as every):
                self._annoy(nuisance)
                self._after(every, event)
            case _:
                pass  # of an earlier life

    def _life(self, member: Member | None) -> int:
        return self.life if member is None else member.life

    def _arrive(self, datagram: bytes, source: Address, target: Address) -> None:
        if target == NODE:
            if not self._banned(source.host):
                self._carry_out(None, self.node.receive(datagram, source, self.now))
            return
        for member in self.members:
            if (member.host, member.port) == (target.host, target.port) and member.links is not None:
                self._carry_out(member, member.links.receive(datagram, source, self.now))

    def _annoy(self, nuisance: str) -> None:
        host = self._nat()
        match nuisance:
            case "revoked":  # it has an old secret and tries a name that is no member's any more
                mac = keys.member_mac_key(OLD, self._ids[0].node_id)
                request = wire.CookieRequest(wire.Mode.MEMBER, self.rng.randbytes(8), self._ids[-1].node_id)
                self._transmit(request.encode(mac), Address("203.0.113.200", 40_000), NODE)
            case "check":  # a load balancer that connects and goes
                self.offences.note("stream-ended", "203.0.113.201", "tcp", self.now)
            case "idler":  # a connection that died before it said anything
                self.offences.note("stream-overdue", host, "tcp", self.now)
            case "guess":  # a person who mistypes an invite three times
                for _ in range(3):
                    self.offences.note("invite-proof", host, "cookie", self.now)

    # FORTRESS.

    def _shield(self) -> Shield:
        hosts = {host: None for member in self.members for host in member.known}
        return Shield((), ((ip_network(host), "a member's") for host in hosts))

    def _banned(self, host: str) -> bool:
        return self.book.get(f"{host}/32") is not None

    def _look(self) -> None:
        shield, sources = self._shield(), []
        for ban, _ in self.book.lift(shield):
            assert ban in self.bans
        self.book.expire(self.now)
        for seen in self.offences.bound(self.now):
            self.worst = max(self.worst, judge(seen).score)
            if self.book.get(seen.block) is not None:
                continue
            network = parse_network(seen.block)
            times = self.book.times(seen.block, self.now)
            sources.append(Source(seen, times, member=shield.of_member(network)))
        observation = Observation(at=Moment(self.now, self.now), seen=FortressSeen(tuple(sources)))
        for proposal in self.agent.observe(observation):
            if isinstance(action := proposal.action, actions.Ban):
                kinds = [e.what.removesuffix("_count") for e in proposal.evidence]
                try:
                    self.bans.append(
                        self.book.add(
                            parse_network(action.network), "own", action.seconds, proposal.why, self.now,
                            shield, kinds=kinds,
                        )
                    )  # fmt: skip
                except BanError:
                    continue
                self.offences.forget(action.network)
