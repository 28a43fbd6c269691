# SPDX-License-Identifier: GPL-3.0-or-later
"""All of a node's links as one protocol: datagrams, time, signatures and the kernel's state in, effects out.

It never raises for anything that came from the network: what it cannot use is counted in `drops`, by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random as JitterRandom

from phantommesh.dimensions import bits, has
from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.kem import Kem
from phantommesh.link import wire
from phantommesh.link.attempt import Stage
from phantommesh.link.context import Agree, Context, Elsewhere, Peer, Timing, no_agreement
from phantommesh.link.effects import Alarm, Effect, Enrolment, Install, LinkState, PeerAuth, Role
from phantommesh.link.fragments import QuotaError
from phantommesh.link.handshake import HandshakeError, Random
from phantommesh.link.initiator import Starter
from phantommesh.link.psk import FORGET_OLD_AFTER, PskPhase, PskState
from phantommesh.link.responder import Answerer
from phantommesh.link.wire import Kind
from phantommesh.secret import Secret

# Tuning.
FIRST_GLARE_DELAY = 1.0  # s; GLARE_DELAY where there is no agreement at all yet, so that a restart heals fast
START_SPREAD = 0.1  # s
RESTARTED = 3.0  # s after a handshake in which the news that the peer has started is taken for that start's
RECORD_DELAY = 1.5  # s in which a peer hears of a new WireGuard key of ours, and starts the handshake itself


class Links:
    """Every link of one node. ``now`` is seconds on any clock that only goes forward."""

    def __init__(
        self,
        *,
        node_id: bytes,
        wg_keys: Sequence[bytes],
        admission: Secret,
        kem: Kem,
        random: Random,
        now: float,
        timing: Timing = Timing(),
        enrolment: Enrolment | None = None,
        agree: Agree = no_agreement,
    ) -> None:
        """``agree`` gives the X25519 of this node's WireGuard key of a dimension and a peer's, 32 bytes, or
        None for a key that is none: with it INITs prove the node id that they claim."""
        jitter = JitterRandom(random(16))  # noqa: S311  # spreads timers, keys nothing
        self._context = Context(node_id, tuple(wg_keys), admission, kem, random, timing, enrolment, jitter)
        self._context.agree = agree
        self._peers = self._context.peers
        self._starter = Starter(self._context)
        self._answerer = Answerer(self._context, now)

    def look_elsewhere(self, elsewhere: Elsewhere) -> None:
        """From now on try these addresses of a peer as well. They may be anybody's: a handshake shows whose
        they are."""
        self._context.elsewhere = elsewhere

    def carry_by(self, ways: Elsewhere) -> None:
        """From now on try these addresses of a peer as well, at which other members carry datagrams to it."""
        self._context.ways = ways

    def carriers_changed(self, now: float) -> None:
        """Other members carry for this node than before. Try them at once with each peer that nothing else
        reaches; the next `tick` does."""
        for node_id, peer in self._peers.items():
            if peer.initiation is not None:
                if peer.initiation.waits(self._context.ways(node_id)):
                    peer.initiation.deadline = now
            elif peer.failures or peer.psk.age(now) is None:
                delay = 0.0 if self._context.starts_with(node_id) else FIRST_GLARE_DELAY
                peer.start_by(now + delay + self._spread())
            self._context.settle(peer)

    @property
    def timing(self) -> Timing:
        """When PSKs are replaced, and when a link counts as stale."""
        return self._context.timing

    @property
    def drops(self) -> Counter[str]:
        """Datagrams that could not be used, by reason."""
        return self._context.drops

    @property
    def handshakes(self) -> Counter[tuple[Role, str]]:
        """Handshakes that ended, by role and result."""
        return self._context.handshakes

    @property
    def held(self) -> tuple[int, int]:
        """Bytes held for reassembly, and half-open handshakes: what strangers can make this node keep."""
        return self._context.reassembler.held, len(self._answerer.responses)

    def set_peers(self, peers: Mapping[bytes, PeerAuth], now: float) -> list[Effect]:
        """Keep links with exactly these members. A peer that is gone loses its keys at once."""
        for node_id in [n for n in self._peers if n not in peers]:
            self._forget(self._peers.pop(node_id))
            self._context.timers.cancel(node_id)
        for node_id, auth in peers.items():
            peer = self._peers.get(node_id)
            if peer is None:
                delay = 0.0 if self._context.starts_with(node_id) else FIRST_GLARE_DELAY
                self._peers[node_id] = Peer(auth, self._new_psk(), now + delay + self._spread())
            elif peer.auth != auth:
                replaced = _different(peer.auth.wg_keys, auth.wg_keys)
                peer.auth = auth
                if replaced:
                    self._unbind(peer, replaced, now + self._spread(), now)
        for peer in self._peers.values():
            self._context.settle(peer)
        return self.tick(now)

    def set_admission(self, current: Sequence[Secret], replaced: Sequence[Secret]) -> None:
        """Take over the mesh's admission secrets. The first of ``current`` is sent with, and tried first;
        ``replaced`` are those that a member which was away since may still have, newest first."""
        self._context.set_admission(current, replaced)

    def set_pacts(self, pacts: Iterable[tuple[Secret, frozenset[bytes]]]) -> None:
        """Take over the secrets of pacts with other meshes, each with the node ids of those members of theirs
        that links are kept with."""
        self._context.set_pacts(pacts)

    def enrol_by(self, enrolment: Enrolment | None) -> None:
        """Take handshakes of nodes without a certificate of this mesh by this from now on; None: take
        none."""
        self._context.enrol_by(enrolment)

    def set_wg_keys(self, wg_keys: Sequence[bytes], now: float) -> list[Effect]:
        """This node has replaced some of its own WireGuard keys; ``wg_keys`` are all seven public ones."""
        replaced = _different(self._context.wg_keys, wg_keys)
        self._context.wg_keys = tuple(wg_keys)
        if not replaced:
            return []
        for peer in self._peers.values():
            self._unbind(peer, replaced, now + RECORD_DELAY + self._spread(), now)
            self._context.settle(peer)
        return [*(Install(node_id) for node_id in self._peers), *self.tick(now)]

    def _unbind(self, peer: Peer, dimensions: int, start: float, now: float) -> None:
        """PSKs are bound to the keys of both ends: those of these dimensions are void, and so is every
        handshake under way, for it names the old keys. The next one follows at ``start``."""
        initiation = peer.initiation
        unsure = initiation is not None and initiation.stage is Stage.AUTH
        self._forget(peer)
        peer.psk.unbind(dimensions, now)
        if unsure:
            peer.psk.doubt(now)
        peer.failures = 0
        peer.start_by(start)

    def _spread(self) -> float:
        return self._context.jitter.uniform(0, START_SPREAD)

    def _new_psk(self) -> PskState:
        timing = self._context.timing
        return PskState(
            self._context.random, alarm_after=timing.stale_alarm, random_after=timing.stale_random
        )

    def _forget(self, peer: Peer) -> None:
        self._context.end_initiation(peer)
        for response in self._answerer.responses.of_peer(peer.node_id):
            self._answerer.responses.drop(response)

    def rotate(self, peer: bytes | None, now: float) -> list[bytes]:
        """Start a new epoch with one peer, or with all, at the next tick. Returns the peers; KeyError for an
        unknown one."""
        chosen = list(self._peers) if peer is None else [peer]
        for node_id in chosen:
            self._peers[node_id].start_by(now)
            self._context.settle(self._peers[node_id])
        return chosen

    def restarted(self, peer: bytes, now: float) -> None:
        """Gossip says that a peer has started anew. It has lost all keys, and a peer behind which this node
        is out of reach (a NAT) can not call: so call it, at the next tick, unless that has happened since."""
        known = self._peers.get(peer)
        age = None if known is None else known.psk.age(now)
        if known is None or (age is not None and age < RESTARTED):
            return
        delay = 0.0 if self._context.starts_with(peer) else FIRST_GLARE_DELAY
        known.start_by(now + delay + self._spread())
        self._context.settle(known)

    def psks(self, peer: bytes) -> tuple[Secret, ...]:
        """The preshared key that each dimension of this peer should have now."""
        return self._peers[peer].psk.desired

    def scatter(self, peer: bytes) -> tuple[int, Secret] | None:
        """The epoch whose keys are in use with this peer and its scatter secret; None while it has none."""
        agreed = self._peers[peer].psk.agreed
        return None if agreed is None else (agreed.epoch, agreed.scatter)

    def keyed(self, peer: bytes) -> bool:
        """Whether any of those keys comes from a finished handshake."""
        return bool(self._peers[peer].psk.bound)

    def bound(self, peer: bytes) -> int:
        """The dimensions whose key does, as a bitmap."""
        return self._peers[peer].psk.bound

    def dials(self, peer: bytes) -> int:
        """The dimensions on which the peer gets its endpoint, so that this end may start WireGuard
        handshakes, as a bitmap."""
        return self._peers[peer].psk.dials

    def ready(self, peer: bytes) -> int:
        """The dimensions on which something may be sent to the peer, as a bitmap."""
        return self._peers[peer].psk.ready

    def read_back(
        self, peer: bytes, bitmap: int, handshakes: Sequence[float | None], now: float
    ) -> list[Effect]:
        """Take in what the kernel holds: the dimensions whose PSK equals `psks`, and the time of the newest
        WireGuard handshake on each."""
        known = self._peers.get(peer)
        if known is None:
            return []
        psk = known.psk
        installed = psk.installed(bitmap, now)
        wanted, dialled = psk.desired, psk.dials
        psk.observe(handshakes, now)
        if psk.confirmed and not known.timed_by_handshake and psk.committed is not None:
            known.timed_by_handshake = True
            # A time in the future is of a clock that was ahead: it would put the next handshake off as long.
            newest = max((h for h in handshakes if h is not None and h <= now), default=now)
            put_off = min(self._context.after(newest, peer), self._context.latest(psk.committed.born, peer))
            known.next_start = max(known.next_start, put_off)
        effects = self._answerer.acknowledge(known, installed, now)
        self._context.settle(known)
        if psk.desired is not wanted or psk.dials != dialled:
            effects.append(Install(peer))
        return effects

    def settled(self, peer: bytes, handshakes: Sequence[float | None], now: float) -> bool:
        """Whether nothing is to be heard from the kernel about this peer soon: how things stand is sure, and
        WireGuard has a session on each dimension that it should have one on. ``handshakes`` as for
        `read_back`. A peer that is not keyed is settled."""
        known = self._peers.get(peer)
        if known is None:
            return True
        return known.psk.phase(now) is not PskPhase.UNSURE and all(
            moment is not None and 0 <= now - moment < FORGET_OLD_AFTER
            for i, moment in enumerate(handshakes)
            if has(known.psk.bound, i)
        )

    def signed(self, token: bytes, signature: bytes, now: float) -> list[Effect]:
        """Go on with the handshake that asked for this signature."""
        return self._starter.signed(token, signature, now) or self._answerer.signed(token, signature, now)

    def state(self, peer: bytes, now: float) -> LinkState:
        """Return what to report of a link."""
        known = self._peers[peer]
        psk = known.psk
        epoch = psk.committed.epoch if psk.committed else 0
        return LinkState(
            psk.phase(now),
            epoch,
            known.role,
            psk.age(now),
            psk.confirmed,
            known.chain_reset,
            known.last_error,
        )

    @property
    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return min(
            self._context.timers.first, self._answerer.responses.deadline, self._context.reassembler.deadline
        )

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        effects: list[Effect] = []
        self._answerer.responses.tick(now)
        for missing in self._context.reassembler.tick(now):
            side = self._starter if missing.kind is Kind.RESP else self._answerer
            effects += side.ask_again(missing)
        for node_id in self._context.timers.due(now):
            peer = self._peers[node_id]
            changed, alarms = peer.psk.tick(now)
            if changed:
                effects.append(Install(node_id))
            effects += [Alarm(node_id, kind) for kind in alarms]
            effects += self._starter.tick(peer, now)
            self._context.settle(peer)
        return effects

    def receive(self, datagram: bytes, source: Address, now: float) -> list[Effect]:
        """Take one datagram from the network."""
        self._context.source, self._context.proved = source, False
        try:
            return self._receive(datagram, source, now)
        finally:
            self._context.source = None

    def blame_by(self, blame: Callable[[str, Address, bool], None]) -> None:
        """From now on tell this of each datagram that cannot be used: see `Context.blame`."""
        self._context.blame = blame

    def _receive(self, datagram: bytes, source: Address, now: float) -> list[Effect]:
        try:
            parsed = wire.decode_untrusted(datagram)
            match parsed:
                case wire.CookieRequest():
                    return self._answerer.on_cookie_request(parsed, datagram, source, now)
                case wire.CookieReply():
                    return self._starter.on_cookie_reply(parsed, datagram, now)
                case wire.Fragment():
                    side = self._starter if _for_initiator(parsed) else self._answerer
                    return side.receive(parsed, datagram, source, now)
        except DecodeError:
            return self._context.drop("malformed")
        except QuotaError:
            return self._context.drop("quota")
        except HandshakeError as error:
            return self._context.drop(error.args[0])


def _different(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    return bits(a != b for a, b in zip(one, other, strict=True))


def _for_initiator(fragment: wire.Fragment) -> bool:
    """RESP and ACK are for the initiator, and so is a request to resend anything but RESP."""
    if fragment.kind is Kind.RESEND:
        return fragment.chunk[0] != Kind.RESP
    return fragment.kind in (Kind.RESP, Kind.ACK)
