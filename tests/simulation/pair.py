# SPDX-License-Identifier: GPL-3.0-or-later
"""Two or more real `Links` under a virtual clock, each with seven modelled WireGuard interfaces.

The network may lose, delay, duplicate and reorder; a node may crash and come back with nothing in memory, and
each has a clock of its own. The WireGuard model knows what matters here: a handshake succeeds if and only if
both ends hold the same PSK and each other's public key at that moment, rekeys are due 120 s after the last,
and failed attempts are repeated every 5 s. A key that is replaced ends its sessions.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha3_256

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.kem import CryptographyKem, Kem
from phantommesh.link.context import Timing
from phantommesh.link.effects import (
    Alarm,
    Effect,
    Install,
    LinkState,
    Opened,
    PeerAuth,
    ResetSign,
    Send,
    Sign,
)
from phantommesh.link.machine import Links
from phantommesh.secret import Secret
from phantommesh.trust.identity import Identity

REKEY, RETRY, REJECT = 120.0, 5.0, 180.0  # WireGuard's REKEY_AFTER_TIME, REKEY_TIMEOUT, REJECT_AFTER_TIME
ADMISSION = Secret(b"a" * 32)
FOREVER = float("inf")


@cache
def identities(count: int) -> list[Identity]:
    """Identities from fixed seeds, the lowest node id first: that one is designated initiator."""
    return sorted((Identity.from_seed(bytes([i]) * 32) for i in range(count)), key=lambda i: i.node_id)


@dataclass
class Network:
    """How bad the network is. Probabilities per datagram, delays in seconds one way."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: tuple[float, float] = (0.005, 0.005)
    block: set[int] = field(default_factory=set)  # kinds of datagram that never arrive
    cut: Callable[[bytes, Address, Address], bool] | None = None  # whether to drop this one


class Kernel:
    """One node's seven interfaces: per peer and dimension the PSK and the last handshake."""

    def __init__(self) -> None:
        self.psks: dict[bytes, list[bytes | None]] = {}
        self.handshakes: dict[bytes, list[float | None]] = {}
        self.reported: dict[bytes, list[float | None]] = {}  # the same on the node's own clock
        self.attempts: dict[bytes, list[float]] = {}
        self.keyed: dict[bytes, int] = {}
        self.own: tuple[bytes, ...] = ()
        self.dead: set[tuple[bytes, int]] = set()  # the session ended with a key
        self.theirs: dict[bytes, tuple[bytes, ...]] = {}

    def add(self, peer: bytes) -> None:
        self.psks.setdefault(peer, [None] * DIMENSIONS)
        self.handshakes.setdefault(peer, [None] * DIMENSIONS)
        self.reported.setdefault(peer, [None] * DIMENSIONS)
        self.attempts.setdefault(peer, [-FOREVER] * DIMENSIONS)


class Node:
    """A node that can crash: `links` is gone then, `kernel` stays."""

    def __init__(self, sim: Simulation, index: int, identity: Identity, offset: float) -> None:
        self.sim, self.identity, self.offset = sim, identity, offset
        self.address = Address(f"192.0.2.{index + 1}", 51800)
        self.wg_keys = tuple(bytes([index * 16 + i + 1]) * 32 for i in range(DIMENSIONS))
        self.kernel = Kernel()
        self.alarms: list[Alarm] = []
        self.alarmed_at: list[tuple[float, str]] = []
        self.opened: list[Opened] = []
        self.life = 0
        self.replaced = 64 * (index + 1)
        self.install_works = True
        self.links: Links | None = None
        self.start()

    def replace_key(self, dimension: int) -> None:
        """Take another WireGuard key in one dimension. The others have to be told (`Simulation.tell`)."""
        self.replaced += 1
        new = bytes([self.replaced, dimension]) * 16
        self.wg_keys = tuple(new if i == dimension else key for i, key in enumerate(self.wg_keys))
        if self.links is not None:
            self.sim.carry_out(self, self.links.set_wg_keys(self.wg_keys, self.clock))

    def auth(self) -> PeerAuth:
        identity = self.identity
        return PeerAuth(identity.node_id, identity.public_key, FOREVER, self.wg_keys, (self.address,))

    @property
    def clock(self) -> float:
        """This node's own time."""
        return self.sim.now + self.offset

    def start(self) -> None:
        self.life += 1
        self.links = Links(
            node_id=self.identity.node_id, wg_keys=self.wg_keys, admission=ADMISSION, kem=self.sim.kem,
            random=self.sim.rng.randbytes, now=self.clock, timing=self.sim.timing, agree=self.agree,
        )  # fmt: skip

    def agree(self, dimension: int, theirs: bytes) -> bytes:
        """In place of X25519, since the keys are no keys: the value that the owners of both would get. Nobody
        else may compute it here."""
        return sha3_256(b"".join(sorted((self.wg_keys[dimension], theirs)))).digest()

    def crash(self) -> None:
        self.links = None


class Simulation:
    """The event loop. ``datagrams`` counts what was sent, by kind byte."""

    def __init__(
        self, *, nodes: int = 2, seed: int = 0, timing: Timing = Timing(), offsets: tuple[float, ...] = (),
        kem: Kem | None = None,
    ) -> None:  # fmt: skip
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.timing = timing
        self.kem: Kem = CryptographyKem() if kem is None else kem
        self.network = Network()
        self.on_event: Callable[[str, Node], None] | None = None  # what is about to happen at which node
        self.stolen = False  # whether two nodes have one identity
        self.sent: Counter[int] = Counter()
        self._queue: list[tuple[float, int, int, object]] = []
        self._order = itertools.count()
        clocks = [*offsets, *[0.0] * nodes]
        self.nodes = [Node(self, i, identities(nodes)[i], clocks[i]) for i in range(nodes)]
        for node in self.nodes:
            self.introduce(node)

    def introduce(self, node: Node) -> None:
        """Tell a (re)started node of all others."""
        peers: dict[bytes, PeerAuth] = {
            other.identity.node_id: other.auth() for other in self.nodes if other is not node
        }
        assert node.links is not None
        for peer in peers:
            node.kernel.add(peer)
        self.carry_out(node, node.links.set_peers(peers, node.clock))
        self.reconcile(node)

    def tell(self, node: Node, about: Node) -> None:
        """Let a node have another's newest record."""
        if node.links is None:
            return
        known = {p: peer.auth for p, peer in node.links._peers.items()}
        known[about.identity.node_id] = about.auth()
        self.carry_out(node, node.links.set_peers(known, node.clock))
        self.reconcile(node)

    def restart(self, node: Node) -> None:
        node.start()
        self.introduce(node)

    def carry_out(self, node: Node, effects: list[Effect]) -> None:
        """Do what a node's links asked for."""
        for effect in effects:
            if self._dead(node, type(effect).__name__):
                return
            match effect:
                case Send(datagram, destination):
                    self.sent[datagram[1]] += 1
                    self._transmit(datagram, node.address, destination)
                case Sign(token, request):
                    signature = node.identity.sign(request.data, request.context)
                    self._later(0.002, ("signed", node, node.life, token, signature))
                case Install():
                    self._later(0.003, ("reconcile", node, node.life))
                case Opened():
                    node.opened.append(effect)
                case Alarm():
                    # Nothing that befalls honest nodes brings a replaced chain back.
                    assert self.stolen or effect.sign not in (ResetSign.SUPERSEDED, ResetSign.UNKNOWN)
                    node.alarms.append(effect)
                    node.alarmed_at.append((self.now, effect.kind))

    def _dead(self, node: Node, event: str) -> bool:
        """Announce an event; whoever listens may crash the node now."""
        life = node.life
        if self.on_event is not None:
            self.on_event(event, node)
        return node.links is None or node.life != life

    def _later(self, delay: float, event: object) -> None:
        heapq.heappush(self._queue, (self.now + delay, next(self._order), 0, event))

    def _transmit(self, datagram: bytes, source: Address, destination: Address) -> None:
        if datagram[1] in self.network.block:
            return
        if self.network.cut is not None and self.network.cut(datagram, source, destination):
            return
        for _ in range(2 if self.rng.random() < self.network.duplicate else 1):
            if self.rng.random() >= self.network.loss:
                self._later(
                    self.rng.uniform(*self.network.delay), ("datagram", destination, datagram, source)
                )

    def reconcile(self, node: Node) -> None:
        """The level-triggered part: make the modelled kernel as desired, and report what it holds."""
        if node.links is not None and node.install_works:
            self._swap_keys(node, node.links)
        for peer, psks in node.kernel.psks.items():
            if node.links is None:
                return
            wanted = node.links.psks(peer)
            if node.install_works:
                psks[:] = [psk.reveal() for psk in wanted]
                node.kernel.keyed[peer] = node.links.dials(peer)
            bitmap = sum(1 << i for i in range(DIMENSIONS) if psks[i] == wanted[i].reveal())
            seen = node.kernel.reported[peer]
            self.carry_out(node, node.links.read_back(peer, bitmap, seen, node.clock))

    def _swap_keys(self, node: Node, links: Links) -> None:
        """Take over the WireGuard keys as the node knows them; the sessions under old ones are gone."""
        kernel = node.kernel
        for peer, known in links._peers.items():
            before = kernel.theirs.get(peer, known.auth.wg_keys)
            for i in range(DIMENSIONS):
                if before[i] != known.auth.wg_keys[i]:
                    kernel.handshakes[peer][i] = kernel.reported[peer][i] = None
                if before[i] != known.auth.wg_keys[i] or (kernel.own and kernel.own[i] != node.wg_keys[i]):
                    kernel.attempts[peer][i] = -FOREVER
                    kernel.dead.add((peer, i))
            kernel.theirs[peer] = known.auth.wg_keys
        kernel.own = node.wg_keys

    def _wireguard(self) -> None:
        for a, b in itertools.permutations(self.nodes, 2):
            mine, theirs = a.identity.node_id, b.identity.node_id
            if mine == theirs:
                continue  # one of them stole it
            for i in range(DIMENSIONS):
                last = a.kernel.handshakes[theirs][i]
                if not a.kernel.keyed.get(theirs, 0) >> i & 1:
                    continue
                if last is not None and self.now - last < REKEY and (theirs, i) not in a.kernel.dead:
                    continue
                if self.now - a.kernel.attempts[theirs][i] < RETRY:
                    continue
                a.kernel.attempts[theirs][i] = self.now
                if (
                    a.kernel.psks[theirs][i] == b.kernel.psks[mine][i]
                    and a.kernel.psks[theirs][i] is not None
                    and (a.kernel.own[i], a.kernel.theirs[theirs][i])
                    == (b.kernel.theirs[mine][i], b.kernel.own[i])
                ):
                    a.kernel.dead.discard((theirs, i))
                    b.kernel.dead.discard((mine, i))
                    a.kernel.handshakes[theirs][i] = b.kernel.handshakes[mine][i] = self.now
                    a.kernel.reported[theirs][i], b.kernel.reported[mine][i] = a.clock, b.clock

    def _check_timers(self) -> None:
        """A link whose moment is not noted would sleep through it."""
        for links in (node.links for node in self.nodes if node.links is not None):
            moments = [peer.deadline for peer in links._peers.values()]
            assert links._context.timers.first == min(moments, default=FOREVER)

    def run(self, seconds: float) -> None:
        """Let virtual time pass. Each node's kernel is read once a second, as the reconciler would."""
        end = self.now + seconds
        poll = self.now
        while True:
            self._check_timers()
            deadline = min(
                (n.links.deadline - n.offset for n in self.nodes if n.links is not None), default=FOREVER
            )
            queue = self._queue[0][0] if self._queue else FOREVER
            moment = max(self.now, min(deadline, queue, poll))
            if moment > end:
                self.now = end
                return
            self.now = moment
            while self._queue and self._queue[0][0] <= self.now:
                self._handle(heapq.heappop(self._queue)[3])
            for node in self.nodes:
                if node.links is not None and node.links.deadline - node.offset <= self.now + 1e-9:
                    self.carry_out(node, node.links.tick(max(node.clock, node.links.deadline)))
            if self.now >= poll:
                poll = self.now + 1.0
                self._wireguard()
                for node in self.nodes:
                    self.reconcile(node)

    def _handle(self, event: object) -> None:
        match event:
            case ("signed", Node() as node, life, bytes() as token, bytes() as signature):
                if node.life == life and not self._dead(node, "signed") and node.links is not None:
                    self.carry_out(node, node.links.signed(token, signature, node.clock))
            case ("reconcile", Node() as node, life):
                if node.life == life and not self._dead(node, "install"):
                    self.reconcile(node)
                    self._dead(node, "installed")
            case ("datagram", destination, bytes() as datagram, Address() as source):
                for node in self.nodes:
                    if node.address == destination and not self._dead(node, "datagram"):
                        assert node.links is not None
                        self.carry_out(node, node.links.receive(datagram, source, node.clock))

    def agree(self, a: int = 0, b: int = 1) -> bool:
        """Whether both ends' kernels hold the same PSKs on all dimensions."""
        first, second = self.nodes[a], self.nodes[b]
        return (
            first.kernel.psks[second.identity.node_id] == second.kernel.psks[first.identity.node_id]
            and None not in first.kernel.psks[second.identity.node_id]
        )

    def alive(self, a: int = 0, b: int = 1) -> int:
        """The dimensions with a WireGuard session between two nodes under their present keys, as a bitmap."""
        (ka, na), (kb, nb) = ((n.kernel, n.identity.node_id) for n in (self.nodes[a], self.nodes[b]))
        return sum(
            1 << i
            for i in range(DIMENSIONS)
            if ka.handshakes[nb][i] is not None
            and kb.handshakes[na][i] is not None
            and (nb, i) not in ka.dead
            and (na, i) not in kb.dead
        )

    def state(self, a: int = 0, b: int = 1) -> LinkState:
        """Node a's view of its link with node b."""
        links = self.nodes[a].links
        assert links is not None
        return links.state(self.nodes[b].identity.node_id, self.nodes[a].clock)
