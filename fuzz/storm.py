# SPDX-License-Identifier: GPL-3.0-or-later
"""A storm of bad datagrams on two nodes that keep a link meanwhile: from outsiders, who have no key and can
only replay and damage what they saw, and from insiders, who hold the mesh's admission secret and lie.

After every datagram the stated limits are checked. Everything follows from one seed.
"""

from __future__ import annotations

import random
import struct
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from phantommesh.endpoint import Address
from phantommesh.kem import EK_SIZE, CryptographyKem
from phantommesh.link import keys, wire
from phantommesh.link.admission import HALF_OPEN, MAX_SOURCES
from phantommesh.link.context import Timing
from phantommesh.link.effects import Effect, PeerAuth, Send, Sign
from phantommesh.link.fragments import IN_ALL, PER_SOURCE
from phantommesh.link.halfopen import SEEN_NONCES
from phantommesh.link.handshake import HandshakeError, Initiator
from phantommesh.link.wire import CookieReply, Kind, Mode
from phantommesh.trust.identity import Identity
from tests.simulation.pair import ADMISSION, FOREVER, Node, Simulation

#: Every reason there is to drop a datagram.
REASONS = {
    "malformed", "cookie", "mac", "session", "duplicate", "rate", "quota", "unknown-node", "expired",
    "glare", "half-open", "budget", "replay", "overtaken", "aead", "confirmation", "signature",
    "identity", "x25519", "encapsulation key", "chain", "epoch", "ack", "invite", "invite-proof",
}  # fmt: skip

PACE = 0.001  # s of virtual time a datagram
CROWD = 80  # further members that the victim knows, whose names insiders may claim

EXPIRED, REMOVED = Identity.from_seed(b"e" * 32), Identity.from_seed(b"r" * 32)
IMPOSTOR = Identity.from_seed(b"i" * 32)


class CountingKem(CryptographyKem):
    """Counts the dear operation that a stranger must not cause."""

    def __init__(self) -> None:
        self.encapsulations = 0

    def encapsulate(self, ek: bytes) -> tuple[bytes, bytes]:
        """See `phantommesh.kem.Kem.encapsulate`."""
        self.encapsulations += 1
        return super().encapsulate(ek)


@dataclass
class Peak:
    """The most state seen at any moment, of either node."""

    reassembly_bytes: int = 0
    one_source_bytes: int = 0
    half_open: int = 0
    rate_entries: int = 0
    nonces: int = 0


@dataclass
class Attempt:
    """An insider's handshake, kept to be continued."""

    initiator: Initiator
    source: Address
    cookie: bytes


class Storm:
    """Throws datagrams at the second of two nodes (and some at the first)."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.kem = CountingKem()
        self.sim = Simulation(seed=seed, kem=self.kem, timing=Timing(rotate=10.0, jitter=1.0))
        self.peak = Peak()
        self.thrown: Counter[str] = Counter()
        self.seen: deque[tuple[bytes, Address, Node]] = deque(maxlen=400)
        self.attempts: dict[bytes, Attempt] = {}
        self.ahead = 0.0  # how probable it is that a datagram is overtaken by a forged one
        self.sim.network.cut = self._record
        self.crowd = [self.rng.randbytes(16) for _ in range(CROWD)]
        self._admit_doubtful()
        self.sim.run(2)
        self.ahead = 0.1
        outsider: list[tuple[float, Callable[[], None]]] = [
            (20, self.junk), (20, self.header), (25, self.flipped), (8, self.cut_short), (8, self.replayed),
            (8, self.elsewhere),
        ]  # fmt: skip
        insider: list[tuple[float, Callable[[], None]]] = [
            (4, self.cookie_flood), (4, self.lone_fragment), (2, self.liar), (3, self.resend),
            (2, self.enrol), (0.002, self.fragment_flood), (0.002, self.half_open_flood), (6, self.forged),
            (0.5, self.patchwork),
        ]  # fmt: skip
        self._weights = [weight for weight, _ in outsider + insider]
        self._throws = [throw for _, throw in outsider + insider]

    @property
    def victim(self) -> Node:
        """The node that most of it is for."""
        return self.sim.nodes[1]

    def _admit_doubtful(self) -> None:
        """Make both nodes know a member whose certificate has expired and a crowd, and forget one that was
        removed."""
        for node in self.sim.nodes:
            other = self.sim.nodes[0 if node is self.victim else 1]
            expired = PeerAuth(EXPIRED.node_id, EXPIRED.public_key, node.clock, other.wg_keys, ())
            removed = PeerAuth(REMOVED.node_id, REMOVED.public_key, FOREVER, other.wg_keys, ())
            peers: dict[bytes, PeerAuth] = {other.identity.node_id: other.auth(), EXPIRED.node_id: expired}
            peers |= {name: replace(removed, node_id=name) for name in self.crowd}
            assert node.links is not None
            for roster in ({**peers, REMOVED.node_id: removed}, peers):
                self.sim.carry_out(node, node.links.set_peers(roster, node.clock))

    def _record(self, datagram: bytes, source: Address, destination: Address) -> bool:
        for node in self.sim.nodes:
            if node.address == destination:
                self.seen.append((datagram, source, node))
                if self.rng.random() < self.ahead:
                    self.ahead, ahead = 0.0, self.ahead  # what this brings about is left alone
                    self._forge(datagram, source, node)
                    self.ahead = ahead
        return False

    def run(self, count: int) -> None:
        """Throw ``count`` datagrams."""
        thrown = self.thrown
        start, since = thrown.total(), thrown.total()
        while thrown.total() - start < count:
            self.rng.choices(self._throws, self._weights)[0]()
            if thrown.total() - since >= 200:
                self.sim.run(PACE * (thrown.total() - since))
                since = thrown.total()

    def calm(self, seconds: float = 60.0) -> None:
        """Let the nodes be."""
        self.sim.run(seconds)

    def drops(self) -> Counter[str]:
        """All drops of both nodes, by reason."""
        return sum((n.links.drops for n in self.sim.nodes if n.links), Counter())

    def throw(self, name: str, datagram: bytes, source: Address, node: Node | None = None) -> list[Effect]:
        """Let a node receive one datagram, and check its limits. Returns what it would send to strangers."""
        node = node or self.victim
        assert node.links is not None
        self.thrown[name] += 1
        effects = node.links.receive(datagram, source, node.clock)
        self.check(node)
        honest = {n.address for n in self.sim.nodes}
        own = [e for e in effects if not isinstance(e, Send) or e.destination in honest]
        if source not in honest and self.rng.random() < 0.8:  # most signatures come too late for the liar
            own = [e for e in own if not isinstance(e, Sign)]
        if own:
            self.sim.carry_out(node, own)
        return [e for e in effects if isinstance(e, Send) and e.destination not in honest]

    def check(self, node: Node) -> None:
        """Assert every stated limit."""
        links, peak = node.links, self.peak
        assert links is not None
        held, half_open = links.held
        rates = max(map(len, links._answerer._rates.values()))
        nonces = max(map(len, links._answerer.responses._nonces.values()))
        assert held <= IN_ALL and half_open <= HALF_OPEN and rates <= MAX_SOURCES and nonces <= SEEN_NONCES
        if held > peak.reassembly_bytes:
            reassembler = links._context.reassembler
            one = max(reassembler.of_source(host) for _, host in reassembler._by_source)
            assert one <= PER_SOURCE
            peak.one_source_bytes = max(peak.one_source_bytes, one)
            peak.reassembly_bytes = held
        peak.half_open = max(peak.half_open, half_open)
        peak.rate_entries = max(peak.rate_entries, rates)
        peak.nonces = max(peak.nonces, nonces)
        assert links.drops.keys() <= REASONS, links.drops.keys() - REASONS

    # --- outsiders ---

    def _stranger(self) -> Address:
        rng = self.rng
        if rng.random() < 0.3:
            return Address(
                f"2001:db8:{rng.randrange(64):x}::{rng.randrange(65536):x}", rng.randrange(1, 65536)
            )
        return Address(f"198.51.{rng.randrange(100)}.{rng.randrange(256)}", rng.randrange(1, 65536))

    def _cheap(self, name: str, datagram: bytes, source: Address, node: Node | None = None) -> None:
        """Throw what cannot have a right MAC: nothing dear may follow, and nothing may be kept."""
        node = node or self.victim
        assert node.links is not None
        before, held = self.kem.encapsulations, node.links.held
        assert self.throw(name, datagram, source, node) == []
        assert self.kem.encapsulations == before and node.links.held == held

    def junk(self) -> None:
        """Random bytes."""
        size = self.rng.choice([0, 1, 16, 47, 48, 64, 89, 1232, 1233, self.rng.randrange(1500)])
        self._cheap("junk", self.rng.randbytes(size), self._stranger())

    def header(self) -> None:
        """A plausible header before random bytes: also unknown versions and kinds."""
        rng = self.rng
        kind, total = rng.randrange(9), rng.choice([0, 1, 3, 41, 1184, 1748, 3381, 5079, 65535])
        count = -(-total // wire.CHUNK_SIZE) % 256
        index = rng.randrange(max(count, 1))
        size = max(0, min(wire.CHUNK_SIZE, total - index * wire.CHUNK_SIZE)) + 32
        if kind < 3:
            index, count, total, size = 0, 1, 0, 48
        head = struct.pack(
            "!BBBBHH8s", rng.choice([1, 1, 1, 1, 0, 2]), kind, index, count, total, rng.choice([0, 0, 1, 7]),
            rng.choice([rng.randbytes(8), self._session()]),
        )  # fmt: skip
        self._cheap("header", head + rng.randbytes(size), self._stranger())

    def _session(self) -> bytes:
        return self.seen[self.rng.randrange(len(self.seen))][0][8:16] if self.seen else b"12345678"

    def flipped(self) -> None:
        """A true datagram with a few bits flipped, from where the true one came."""
        datagram, source, node = self.rng.choice(self.seen)
        bad = bytearray(datagram)
        for _ in range(self.rng.choice([1, 1, 2, 3])):
            bit = self.rng.randrange(len(bad) * 8)
            bad[bit // 8] ^= 1 << bit % 8
        if bytes(bad) != datagram:
            self._cheap("flipped", bytes(bad), source, node)

    def cut_short(self) -> None:
        """A true datagram that lacks its end, or has one too many."""
        datagram, source, node = self.rng.choice(self.seen)
        if self.rng.random() < 0.2:
            bad = datagram + self.rng.randbytes(self.rng.randrange(1, 40))
        else:
            bad = datagram[: self.rng.randrange(len(datagram))]
        self._cheap("cut short", bad, source, node)

    def replayed(self) -> None:
        """Some earlier true datagrams, in any order, once or twice."""
        for datagram, source, node in self.rng.choices(self.seen, k=self.rng.randrange(1, 4)):
            self.throw("replayed", datagram, source, node)

    def elsewhere(self) -> None:
        """A true datagram from another address, or to the other node."""
        datagram, source, node = self.rng.choice(self.seen)
        if self.rng.random() < 0.3:
            node = self.sim.nodes[0 if node is self.victim else 1]
        elif self.rng.random() < 0.5:
            source = source._replace(port=self.rng.randrange(1, 65536))
        else:
            source = self._stranger()
        self.throw("elsewhere", datagram, source, node)

    # --- insiders ---

    def _key(self) -> bytes:
        return keys.member_mac_key(ADMISSION, self.victim.identity.node_id)

    def _cookie(self, source: Address) -> bytes:
        request = wire.CookieRequest(Mode.MEMBER, self.rng.randbytes(8), IMPOSTOR.node_id).encode(self._key())
        for effect in self.throw("cookie request", request, source):
            assert isinstance(effect, Send)
            assert len(effect.datagram) <= len(request)
            reply = wire.decode_untrusted(effect.datagram)
            assert isinstance(reply, CookieReply)
            return reply.cookie
        raise AssertionError("no cookie")

    def _initiator(self, node_id: bytes, interface_hash: bytes) -> Initiator:
        return Initiator(
            kem=CryptographyKem(), random=self.rng.randbytes, mode=Mode.MEMBER, node_id=node_id,
            epoch=self.rng.choice([0, 1, 2**63 - 1, 2**64 - 1]), credential=self.rng.randbytes(32),
            interface_hash=interface_hash,
        )  # fmt: skip

    def _hash(self) -> bytes:
        return keys.interface_hash(self.sim.nodes[0].wg_keys, self.victim.wg_keys)

    def cookie_flood(self) -> None:
        """Ask for cookies from anywhere."""
        self._cookie(self._stranger())

    def lone_fragment(self) -> None:
        """First fragments only, from few sources or many."""
        source = self._stranger()
        if self.rng.random() < 0.5:
            source = Address("203.0.113.5", self.rng.randrange(1, 4))
        kind = self.rng.choice([Kind.INIT, Kind.INIT, Kind.AUTH])
        pieces = wire.fragments(kind, Mode.MEMBER, self.rng.randbytes(8), bytes(wire.MAX_BODY[kind]))
        cookie = self._cookie(source)
        for piece in self.rng.sample(pieces, self.rng.randrange(1, len(pieces))):
            self.throw("lone fragment", piece.encode(self._key(), cookie), source)

    def fragment_flood(self) -> None:
        """First fragments from two thousand sources at once: the limit for all together."""
        piece = wire.fragments(Kind.INIT, Mode.MEMBER, self.rng.randbytes(8), bytes(wire.INIT_SIZE))[0]
        for i in range(2000):
            source = Address(f"10.{self.rng.randrange(256)}.{i >> 8}.{i & 255}", 51800)
            self.throw("fragment flood", piece.encode(self._key(), self._cookie(source)), source)

    def half_open_flood(self) -> None:
        """A whole INIT from each of many sources at once, in many members' names: half-open handshakes."""
        first = self._initiator(self.crowd[0], self._hash()).init
        for i in range(400):
            source = Address(f"10.{self.rng.randrange(256)}.{i >> 8}.{i & 255}", 51801)
            name, session = self.crowd[i % CROWD], self.rng.randbytes(8)
            init = replace(first, epoch=1, node_id=name, session=session, nonce=self.rng.randbytes(32))
            cookie = self._cookie(source)
            for piece in wire.fragments(Kind.INIT, Mode.MEMBER, session, init.encode()):
                self.throw("half-open flood", piece.encode(self._key(), cookie), source)

    def resend(self) -> None:
        """Ask for fragments of messages, known or not."""
        source = self._stranger()
        session = self._session()
        if self.attempts and self.rng.random() < 0.5:
            session, attempt = self.rng.choice(list(self.attempts.items()))
            source = attempt.source
        body = struct.pack("!BH", self.rng.randrange(8), self.rng.randrange(65536))[
            : self.rng.choice([3, 3, 2])
        ]
        piece = wire.fragments(Kind.RESEND, Mode.MEMBER, session, body)[0]
        self.throw("resend", piece.encode(self._key(), self._cookie(source)), source)

    def _right_macs(self, datagram: bytes, source: Address, node: Node) -> bytes:
        """The same but for its MACs, which are made as a member on the path can make them."""
        links = node.links
        assert links is not None
        key = keys.member_mac_key(ADMISSION, node.identity.node_id)
        if datagram[1] in (Kind.COOKIE_REQUEST, Kind.COOKIE_REPLY):
            return wire.sign_first(datagram[: -wire.MAC_SIZE], key)
        peer = links._context.initiations.get(datagram[8:16])
        if peer is not None and peer.initiation is not None:
            cookie = wire.return_cookie(peer.initiation.handshake.init.nonce)
        else:
            cookie = links._answerer._cookies.current(source, node.clock)
        return wire.sign_cookie(wire.sign_first(datagram[: -wire.TRAILER_SIZE], key), cookie)

    def forged(self) -> None:
        """An earlier datagram changed in header or body, with MACs that hold."""
        self._forge(*self.rng.choice(self.seen))

    def _forge(self, datagram: bytes, source: Address, node: Node) -> None:
        rng, bad = self.rng, bytearray(datagram)
        for _ in range(rng.choice([1, 1, 1, 2])):
            if rng.random() < 0.5:
                bad[rng.randrange(wire.HEADER_SIZE)] = rng.choice(
                    [0, 1, 2, 3, 4, 5, 6, 7, rng.randrange(256)]
                )
            elif len(bad) > wire.HEADER_SIZE + wire.TRAILER_SIZE:
                at = rng.randrange(wire.HEADER_SIZE, len(bad) - wire.TRAILER_SIZE)
                bad[at] ^= 1 << rng.randrange(8)
        if bytes(bad) != datagram:
            self.throw("forged", self._right_macs(bytes(bad), source, node), source, node)

    def patchwork(self) -> None:
        """One message in fragments that do not agree on its size or kind, or come twice with two contents."""
        rng, source = self.rng, self._stranger()
        cookie, session = self._cookie(source), rng.randbytes(8)
        for _ in range(rng.randrange(2, 8)):
            kind = rng.choice([Kind.INIT, Kind.AUTH, Kind.RESP, Kind.ACK])
            size = rng.choice([wire.MAX_BODY[kind], rng.randrange(1, wire.MAX_BODY[kind] + 1)])
            piece = rng.choice(wire.fragments(kind, rng.choice(list(Mode)), session, rng.randbytes(size)))
            self.throw("patchwork", piece.encode(self._key(), cookie), source)

    def enrol(self) -> None:
        """Enrolment at a node that enrols nobody."""
        source = self._stranger()
        request = wire.CookieRequest(Mode.ENROL, self.rng.randbytes(8), IMPOSTOR.node_id)
        self.throw(
            "enrol", request.encode(keys.enrol_mac_key(bytes(32), self.victim.identity.node_id)), source
        )

    def liar(self) -> None:
        """A whole INIT that claims something untrue, and where it is answered, an AUTH that does."""
        rng, peer = self.rng, self.sim.nodes[0].identity.node_id
        strangers = [IMPOSTOR.node_id, EXPIRED.node_id, REMOVED.node_id]
        name = rng.choice([peer, *strangers, *rng.sample(self.crowd, 6)])
        interface_hash = self._hash() if rng.random() < 0.8 else rng.randbytes(32)
        source = self._stranger()
        cookie = self._cookie(source)
        initiator = self._initiator(name, interface_hash)
        lie = rng.randrange(10)
        if lie == 0:
            initiator.init = replace(initiator.init, ek=bytes([255]) * EK_SIZE)
        elif lie == 1:
            initiator.init = replace(initiator.init, share=bytes(32))
        init = initiator.init
        pieces = wire.fragments(Kind.INIT, Mode.MEMBER, init.session, init.encode())
        sent = [piece.encode(self._key(), cookie) for piece in pieces]
        rng.shuffle(sent)
        for datagram in [*sent, *rng.sample(sent, rng.randrange(2))]:
            self.throw("liar", datagram, source)
        self.attempts[init.session] = Attempt(initiator, source, cookie)
        if len(self.attempts) > 50:
            self.attempts.pop(next(iter(self.attempts)))
        if rng.random() < 0.3:
            self._impersonate(self.attempts[init.session])

    def _impersonate(self, attempt: Attempt) -> None:
        """Go on as a member: read RESP as that member could, and sign AUTH with a key of one's own."""
        links = self.victim.links
        assert links is not None
        for response in links._answerer.responses.of_peer(attempt.initiator.init.node_id):
            if response.source != attempt.source or response.fragments:
                continue
            request = response.handshake.signing_request()
            signature = self.victim.identity.sign(request.data, request.context)
            links.signed(response.handshake.own, signature, self.victim.clock)
            body = b"".join(f.chunk for f in response.fragments)
            resp = wire.decode_resp_untrusted(body)
            try:
                _, wanted = attempt.initiator.on_resp(
                    resp, keys.FIRST_CHAIN, lambda *_: self.victim.identity.public_key
                )
            except HandshakeError:
                continue
            auth = attempt.initiator.auth(IMPOSTOR.sign(wanted.data, wanted.context)).encode()
            for piece in wire.fragments(Kind.AUTH, Mode.MEMBER, resp.own, auth):
                self.throw("impostor", piece.encode(self._key(), attempt.cookie), attempt.source)
