# SPDX-License-Identifier: GPL-3.0-or-later
"""State that the two roles of a node share: its peers, its secrets, its counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random as JitterRandom

from phantommesh.dimensions import has
from phantommesh.endpoint import Address
from phantommesh.kem import Kem
from phantommesh.link import keys, wire
from phantommesh.link.attempt import Initiation
from phantommesh.link.effects import Effect, Enrolment, Opened, PeerAuth, Role, Send
from phantommesh.link.fragments import Reassembler
from phantommesh.link.handshake import Random
from phantommesh.link.psk import Agreement, PskState
from phantommesh.secret import Secret
from phantommesh.timers import Timers

# Specification (docs/protocol.md, "Who starts").
GLARE_DELAY = 10.0  # s that the end with the higher node id leaves the other to start


@dataclass(frozen=True, slots=True)
class Timing:
    """When PSKs are replaced, and when a link counts as stale. Seconds."""

    rotate: float = 90.0
    jitter: float = 5.0
    stale_alarm: float = 180.0
    stale_random: float = 300.0

    @property
    def latest(self) -> float:
        """The age of a PSK at which the next one is begun, whatever WireGuard's handshakes say."""
        return (self.rotate + self.stale_alarm) / 2


_Pair = tuple[bytes, bytes, bytes | None, bytes | None]

#: The X25519 of this node's WireGuard key of a dimension and another public key; None where there is none.
Agree = Callable[[int, bytes], bytes | None]


#: The addresses at which a member was heard although its record does not name them, the likeliest first.
Elsewhere = Callable[[bytes], Sequence[Address]]


def no_agreement(dimension: int, theirs: bytes) -> bytes | None:
    """For a node without WireGuard private keys at hand: its INITs prove nothing, and it takes no proof."""
    return None


@dataclass(frozen=True, slots=True)
class Gate:
    """One secret that the first MAC may be keyed with. ``mac_in`` is the key of what comes to this node.
    ``current`` is False for an admission secret that was replaced: nodes revoked since hold it as well.
    ``only``: the gate is for these node ids, members of another mesh; None: for members of this one."""

    mode: wire.Mode
    secret: Secret
    mac_in: bytes = field(repr=False)
    current: bool = True
    only: frozenset[bytes] | None = None

    def mac_out(self, node_id: bytes) -> bytes:
        """The key of what goes to ``node_id``."""
        if self.mode is wire.Mode.ENROL:
            return keys.enrol_mac_key(self.secret.reveal(), node_id)
        return keys.member_mac_key(self.secret, node_id)


@dataclass(slots=True)
class Peer:
    """One member as this node's links see it. ``cookie`` is the last one given, and by which address;
    ``answered`` is where the last handshake that this node started went through, ``avoided`` an address that
    gave a cookie and nothing more; ``seen_at`` the host that the last handshake which the peer started came
    from. ``pairs`` holds what `Context.pair_key` computed, by dimension: both WireGuard keys, then the keys
    of INIT's proof for what this node and the peer start."""

    auth: PeerAuth
    psk: PskState
    next_start: float
    initiation: Initiation | None = None
    failures: int = 0
    cookie: tuple[Address, bytes] | None = field(default=None, repr=False)
    answered: Address | None = None
    avoided: Address | None = None
    role: Role | None = None
    chain_reset: bool = False
    last_error: str | None = None
    timed_by_handshake: bool = False
    seen_at: str | None = None
    pairs: dict[int, tuple[bytes, bytes, bytes | None, bytes | None]] = field(
        default_factory=dict, repr=False
    )

    @property
    def node_id(self) -> bytes:
        """The member's node id."""
        return self.auth.node_id

    def start_by(self, moment: float) -> None:
        """Start the next handshake then, if not before; no read-back puts it off again."""
        self.next_start = min(self.next_start, moment)
        self.timed_by_handshake = True

    @property
    def deadline(self) -> float:
        """When this peer next has something to do: start a handshake, go on with it, age."""
        start = self.next_start if self.initiation is None else self.initiation.deadline
        return min(start, self.psk.deadline)


@dataclass(slots=True)
class Context:
    """The node itself, and its peers by node id."""

    node_id: bytes
    wg_keys: tuple[bytes, ...]
    admission: Secret
    kem: Kem
    random: Random
    timing: Timing
    enrolment: Enrolment | None
    jitter: JitterRandom
    peers: dict[bytes, Peer] = field(default_factory=dict)
    initiations: dict[bytes, Peer] = field(default_factory=dict)
    timers: Timers[bytes] = field(default_factory=Timers)
    reassembler: Reassembler = field(default_factory=Reassembler)
    drops: Counter[str] = field(default_factory=Counter)
    handshakes: Counter[tuple[Role, str]] = field(default_factory=Counter)
    agree: Agree = no_agreement
    elsewhere: Elsewhere = lambda peer: ()
    ways: Elsewhere = lambda peer: ()
    blame: Callable[[str, Address, bool], None] = lambda reason, source, proved: None
    """Told of each datagram that could not be used: why, and where it seems to come from. True: it had a
    cookie of ours, so its sender gets what is sent there."""
    source: Address | None = None  # of the datagram at hand
    proved: bool = False
    gates: tuple[Gate, ...] = field(init=False)  # members': the first is sent with
    pact_gates: tuple[Gate, ...] = ()
    enrol_gate: Gate | None = field(init=False)

    def __post_init__(self) -> None:
        """Derive the keys of the first MAC of what is sent to this node, for the modes it serves."""
        self.set_admission([self.admission], [])
        self.enrol_by(self.enrolment)

    def enrol_by(self, enrolment: Enrolment | None) -> None:
        """Take handshakes of nodes without a certificate of this mesh by this from now on; None: take
        none."""
        self.enrolment, self.enrol_gate = enrolment, None
        if enrolment is not None:
            root = enrolment.root_hash
            self.enrol_gate = Gate(wire.Mode.ENROL, Secret(root), keys.enrol_mac_key(root, self.node_id))

    def set_admission(self, current: Sequence[Secret], replaced: Sequence[Secret]) -> None:
        """Take over the mesh's admission secrets, the one to send with first."""
        secrets = [(secret, True) for secret in current] + [(secret, False) for secret in replaced]
        self.gates = tuple(
            Gate(wire.Mode.MEMBER, secret, keys.member_mac_key(secret, self.node_id), is_current)
            for secret, is_current in secrets
        )

    def set_pacts(self, pacts: Iterable[tuple[Secret, frozenset[bytes]]]) -> None:
        """Take over the secrets of pacts with other meshes, each with the node ids that it is for. Who knows
        one can claim any of those, as a revoked node can under a secret that was replaced."""
        self.pact_gates = tuple(
            Gate(wire.Mode.MEMBER, secret, keys.member_mac_key(secret, self.node_id), False, only)
            for secret, only in pacts
        )

    def gates_to(self, node_id: bytes) -> tuple[Gate, ...]:
        """The gates for a peer, the one to send with first."""
        return tuple(g for g in self.pact_gates if g.only and node_id in g.only) or self.gates

    def passed(self, datagram: bytes, mode: wire.Mode, *, with_cookie: bool) -> Gate | None:
        """The gate that the datagram's first MAC opens; None where there is none, so that it is to be
        dropped."""
        gates = (*self.gates, *self.pact_gates) if mode is wire.Mode.MEMBER else (self.enrol_gate,)
        for gate in gates:
            if gate is not None and wire.first_mac_ok(datagram, gate.mac_in, with_cookie=with_cookie):
                return gate
        return None

    def pair_key(self, peer: Peer, dimension: int, *, starts: bool) -> bytes | None:
        """The key of the proof in INIT between this node and a peer, of which this node ``starts`` or the
        peer; None where the two have no X25519 in this dimension. That is computed once for each pair of
        keys."""
        ours, theirs = self.wg_keys[dimension], peer.auth.wg_keys[dimension]
        pair = peer.pairs.get(dimension)
        if pair is None or pair[:2] != (ours, theirs):
            shared = self.agree(dimension, theirs) if any(theirs) else None
            ends = (self.node_id, peer.node_id)
            out = None if shared is None else keys.pair_proof_key(shared, *ends)
            back = None if shared is None else keys.pair_proof_key(shared, *reversed(ends))
            pair = peer.pairs[dimension] = (ours, theirs, out, back)
        return pair[2] if starts else pair[3]

    def drop(self, reason: str) -> list[Effect]:
        """Count a datagram that cannot be used."""
        self.drops[reason] += 1
        if self.source is not None:
            self.blame(reason, self.source, self.proved)
        return []

    def starts_with(self, peer: bytes) -> bool:
        """Whether this end is the one to start handshakes with that peer."""
        return self.node_id < peer

    def after(self, moment: float, peer: bytes) -> float:
        """When this end should replace the epoch that began at ``moment``."""
        jitter = self.jitter.uniform(-self.timing.jitter, self.timing.jitter)
        return moment + self.timing.rotate + jitter + (0.0 if self.starts_with(peer) else GLARE_DELAY)

    def latest(self, born: float, peer: bytes) -> float:
        """When this end replaces an epoch that began at ``born`` at the latest. WireGuard's first handshake
        under it may come two minutes later, and the link must not be stale before the next epoch."""
        return born + self.timing.latest + (0.0 if self.starts_with(peer) else GLARE_DELAY)

    def interface_hash(self, auth: PeerAuth) -> bytes:
        """The hash of both ends' WireGuard keys that INIT and RESP must carry.

        If this node has no key to use for the peer, the ends must not agree, even if the peer has none for
        this node either: each end then hashes its own node id.
        """
        theirs = tuple(key if any(key) else self.node_id for key in auth.wg_keys)
        return keys.interface_hash(self.wg_keys, theirs)

    def agreement(
        self,
        peer: Peer,
        session: keys.SessionKeys,
        epoch: int,
        common: int,
        *,
        by_lower_id: bool,
        now: float,
    ) -> Agreement:
        """Return the agreement of a handshake that got this far. ``common``: the dimensions on which both
        ends know each other's WireGuard key. The others get a random PSK until the missing record arrives."""
        agreed = keys.preshared_keys(session.wg_root, self.wg_keys, peer.auth.wg_keys, epoch)
        psks = tuple(psk if has(common, i) else Secret(self.random(32)) for i, psk in enumerate(agreed))
        return Agreement(
            epoch, by_lower_id, session.chain_id, session.chain_key, psks, session.scatter, now, common
        )

    def opened(
        self,
        peer: Peer,
        role: Role,
        name: bytes,
        session: keys.SessionKeys,
        epoch: int,
        began: float,
        at: Address,
        now: float,
    ) -> Opened:
        """Note that a handshake finished, and plan the next."""
        peer.role, peer.failures, peer.last_error = role, 0, None
        peer.timed_by_handshake = False
        peer.next_start = self.after(now, peer.node_id)
        self.handshakes[role, "ok"] += 1
        key_out, key_in = session.channel_i, session.channel_r
        if role == "responder":
            key_out, key_in = key_in, key_out
        where = None if at.transport == "via" else at
        return Opened(peer.node_id, role, name, key_out, key_in, epoch, now - began, at=where)

    def settle(self, peer: Peer) -> None:
        """Note when the peer is due. To be called after anything that may have changed its ``deadline``."""
        self.timers.set(peer.node_id, peer.deadline)

    def end_initiation(self, peer: Peer) -> None:
        """Give up this node's own attempt with a peer, if there is one."""
        if peer.initiation is not None:
            self.initiations.pop(peer.initiation.session, None)
            peer.initiation = None


def sends(datagrams: list[bytes], destination: Address) -> list[Effect]:
    """One Send a datagram."""
    return [Send(datagram, destination) for datagram in datagrams]
