# SPDX-License-Identifier: GPL-3.0-or-later
"""Membership of the mesh: SWIM with Lifeguard, in which one insider's word kills nobody. Sans-I/O.

The owner opens datagrams' envelopes and calls `receive`, calls `tick` when `deadline` has come, and carries
the returned effects out. It keeps the generation: each start uses a greater one than any before. It verifies
records and says so with `verified`: only then does a node become a member.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from random import Random
from typing import NamedTuple

from phantommesh.endpoint import Address
from phantommesh.membership import messages
from phantommesh.membership.carrying import Agree
from phantommesh.membership.core import Core
from phantommesh.membership.effects import Changed, Effect, FetchRecord, Persist, Sync
from phantommesh.membership.merging import Merging
from phantommesh.membership.messages import (
    ALIVE,
    HASH_SIZE,
    KEY,
    LEFT,
    MAX_GENERATION,
    MAX_RECORD_SEQ,
    RECORD,
    Event,
    GossipError,
    Kind,
    State,
)
from phantommesh.membership.presets import LAN, Params
from phantommesh.membership.probing import Probing
from phantommesh.membership.signs import Way
from phantommesh.membership.table import EMPTY, Down, Snapshot, Table

KEPT_PEERS = 256  # in the snapshot that the owner keeps on disk
ROUSED = 8  # members that are asked at once after a move
LINGER_INTERVALS = 4  # probe intervals for which a leaving node still answers


class MemberView(NamedTuple):
    """A member as this node sees it. ``since`` is when it went down, on the protocol's clock; the record
    is the claimed one, which may run ahead of the newest that the owner has verified. ``through``: it is
    partly reachable, by way of these members, the one that carried its last answer first; empty: directly.
    ``way`` says how this node reaches it while it is not down."""

    node: bytes
    state: State
    generation: int
    incarnation: int
    record_seq: int
    record_hash: bytes
    since: float | None
    through: tuple[bytes, ...] = ()
    way: Way = Way.DIRECT


class Membership:
    """The membership protocol of one node.

    ``generation`` is greater than at any start before. ``rng`` also makes the nonces: give it
    ``random.SystemRandom()`` outside of simulations. ``known`` are members from the last run, ``goodbyes``
    the last words of those that had left. ``seeds`` are addresses to try for ever. ``agree`` is what proofs
    are made and checked with, see `carrying.Agree`: without it no member is reached by way of others.
    ``near`` says whether a member is in this node's region (`vicinity`). Nothing is sent before the first
    `tick`.
    """

    def __init__(
        self, *, node: bytes, generation: int, record_seq: int, record_hash: bytes, rng: Random, now: float,
        params: Params = LAN, known: Snapshot = EMPTY, goodbyes: Iterable[bytes] = (),
        seeds: Sequence[Address] = (),
        agree: Agree = lambda node, draw: None,
        near: Callable[[bytes], bool] | None = None,
    ) -> None:  # fmt: skip
        """Raises ValueError for numbers that the wire cannot carry."""
        if not 0 <= generation <= MAX_GENERATION:
            raise ValueError("the generation needs 48 bits")
        record = _record(record_seq, record_hash)
        self._core = core = Core(node, generation, record, params, rng, Table(known), now, near)
        self._probing = probing = Probing(core, agree)
        self._rumours = probing.rumours
        for raw in goodbyes:
            gone, key = raw[:16], raw[KEY]
            if gone != node and self._core.table.get(gone) is None:
                core.table.put(gone + key + bytes((ALIVE,)) + raw[RECORD])
                core.table.put_down(gone, Down(State.LEFT, key, now, now))
        self._merging = Merging(core, probing, tuple(seeds))
        self.left_at: float | None = None
        core.at(now + rng.random() * params.probe_interval, probing.tick)
        self._merging.start()

    # The protocol's shape.

    @property
    def deadline(self) -> float:
        """When `tick` is due, on the owner's clock."""
        return self._core.deadline

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        self._core.advance(now)
        self._core.run_due()
        return self._core.flush()

    def receive(
        self, datagram: bytes, source: Address, now: float, *, at_home: bool = False, usable: bool = False
    ) -> list[Effect]:
        """Take in a datagram whose envelope proved that its sender holds the group key. ``at_home``: the
        source is an address of the sender's signed record; ``usable``: it is none, and the sender may be
        asked there. Never raises."""
        core, probing = self._core, self._probing
        core.advance(now)
        try:
            message = messages.decode_untrusted(datagram)
        except GossipError as error:
            core.drops[error.args[0]] += 1
            return core.flush()
        kind, sender = message.kind, message.sender
        if sender == core.node or sender in self._probing.claims.expelled:
            core.drops["sender"] += 1
            return core.flush()
        core.received[kind] += 1
        known = usable and core.table.get(sender) is not None
        if known and core.places.heard(sender, source, core.clock) and core.params.verify:
            probing.check(sender, False)
        if kind == messages.GOSSIP:
            # The records that a member can have us look for are counted by its name, which others could write
            # too.
            self._rumours.hear(message.events, sender if at_home and core.table.get(sender) else source)
            probing.hint(sender)
        elif kind == messages.PING:
            probing.pinged(message, source)
        elif kind == messages.ACK:
            probing.answered(message, source)
            if probing.contacts:
                self._merging.contacted()
        elif kind == messages.PING_REQ:
            probing.relay(message, source)
        elif kind == messages.CARRIED:
            probing.carried(message)
        elif kind == messages.NACK:
            probing.refused(message)
        elif kind == messages.QUERY:
            probing.judges.queried(message, source)
        else:
            probing.judges.testified(message)
        return core.flush()

    # The owner's word.

    def verified(
        self, node: bytes, record_seq: int, record_hash: bytes, now: float, *, spread: bool = False
    ) -> list[Effect]:
        """This record is verified and kept: its node may be a member. With ``spread`` others are to hear of
        it, though it has not spoken up itself. Raises ValueError for bad numbers."""
        self._core.advance(now)
        self._probing.claims.verified(node, _record(record_seq, record_hash), spread)
        return self._core.flush()

    def publish(self, record_seq: int, record_hash: bytes, now: float) -> list[Effect]:
        """This node has signed a new record of its own. Raises ValueError for numbers out of range."""
        core = self._core
        core.advance(now)
        core.record = _record(record_seq, record_hash)
        core.say(core.incarnation + 1)
        return core.flush()

    def begin_anew(self, generation: int, now: float) -> list[Effect]:
        """The mesh knows a start of this node that this one should have come after, and did not: its clock or
        its state went back. Go on as a later start, so that others see one."""
        core = self._core
        core.advance(now)
        core.generation = min(max(core.generation + 1, generation), MAX_GENERATION)
        core.out.append(Persist(core.generation))
        core.say(0)
        return core.flush()

    def traffic_seen(self, node: bytes, now: float, *, age: float = 0.0) -> list[Effect]:
        """WireGuard has authenticated data from this member, at most ``age`` seconds ago."""
        self._core.advance(now)
        if self._core.table.get(node) is not None:
            self._probing.verdicts.traffic(node, self._core.clock - age)
        return self._core.flush()

    def lives(self, node: bytes, now: float, *, age: float = 0.0) -> list[Effect]:
        """A member has given a sign of life that no other can give, ``age`` seconds ago at most: it finished
        a handshake, sent or answered a probe inside a dimension, or spoke over a channel."""
        self._core.advance(now)
        if self._core.table.get(node) is not None and node not in self._probing.claims.expelled:
            self._probing.verdicts.lives(node, self._core.clock - age)
        return self._core.flush()

    def expel(self, node: bytes, now: float) -> list[Effect]:
        """This node is revoked: forget it, and never hear of it again."""
        self._core.advance(now)
        self._probing.claims.expelled.add(node)
        self._probing.verdicts.forget(node, "expelled")
        return self._core.flush()

    def readmit(self, revoked: Container[bytes]) -> None:
        """Hear again of those that were expelled and are not ``revoked`` any more."""
        expelled = self._probing.claims.expelled
        expelled -= {node for node in expelled if node not in revoked}

    def rouse(self, now: float) -> list[Effect]:
        """This node is somewhere else, or was away: ask some members now. They hear where it is, and whoever
        takes it for gone says so."""
        core = self._core
        core.advance(now)
        others = [node for node in core.table if node != core.node and node not in core.table.down]
        for node in core.rng.sample(others, min(ROUSED, len(others))):
            self._probing.check(node, thorough=False)
        return core.flush()

    def set_seeds(self, seeds: Iterable[Address]) -> None:
        """Try these addresses from now on, for ever."""
        self._merging.set_seeds(seeds)

    def leave(self, now: float) -> list[Effect]:
        """Say goodbye. Go on with `receive` and `tick` until ``left_at``: members ask whether it is true."""
        core = self._core
        core.advance(now)
        if not core.leaving:
            core.leaving = True
            self.left_at = now + LINGER_INTERVALS * core.params.probe_interval
            core.say(core.incarnation + 1)
        return core.flush()

    # Full sync, over an authenticated stream: open -> answer -> close -> finish.

    def sync_open(self, now: float) -> bytes:
        """Return the opening message for a stream to another member."""
        self._core.advance(now)
        return self._merging.open()

    def sync_answer(self, opening: bytes, peer: bytes, now: float) -> tuple[bytes, list[Effect]]:
        """Take in an opening from the member at the other end of the stream, and return the answer. Raises
        `GossipError`: then close the stream."""
        self._core.advance(now)
        answer = self._merging.answer(opening, peer)
        return answer, self.lives(peer, now)

    def sync_close(self, answer: bytes, peer: bytes, now: float) -> tuple[bytes, list[Effect]]:
        """Take in the answer, and return what closes the exchange. Raises `GossipError`."""
        self._core.advance(now)
        closing = self._merging.close(answer, peer)
        return closing, self.lives(peer, now)

    def sync_finish(self, closing: bytes, peer: bytes, now: float) -> list[Effect]:
        """Take in the closing message. Raises `GossipError`."""
        self._core.advance(now)
        self._merging.finish(closing, peer)
        return self.lives(peer, now)

    # Views.

    @property
    def node(self) -> bytes:
        """This node's id."""
        return self._core.node

    @property
    def generation(self) -> int:
        """This node's generation; it may have leapt since the start."""
        return self._core.generation

    @property
    def incarnation(self) -> int:
        """How often this node has spoken up in this generation."""
        return self._core.incarnation

    @property
    def health(self) -> int:
        """Lifeguard's local health score: 0 is well."""
        return self._core.health.score

    @property
    def drops(self) -> Counter[str]:
        """Datagrams and claims not taken in, by reason."""
        return self._core.drops

    @property
    def unsure(self) -> bool:
        """Whether there is a member of which traffic would now be a sign of life."""
        return any(case.kind is not State.ALIVE for case in self._probing.verdicts.cases.values())

    def counts(self) -> dict[str, tuple[int, int]]:
        """Datagrams sent and received, by kind."""
        core = self._core
        return {kind.name.lower(): (core.sent[kind], core.received[kind]) for kind in Kind}

    def state(self, node: bytes) -> State | None:
        """A member's state, or None for one that is not known."""
        down = self._core.table.down.get(node)
        if down is not None:
            return down.state
        case = self._probing.verdicts.cases.get(node)
        if case is not None and case.visible:
            return State.SUSPECT
        return None if self._core.table.get(node) is None else State.ALIVE

    def gone(self, node: bytes) -> bool:
        """Whether a member is held for dead, or has left."""
        return node in self._core.table.down

    def member(self, node: bytes) -> MemberView | None:
        """All there is about one member, this node included."""
        claim, state = self._core.table.get(node), self.state(node)
        if claim is None or state is None:
            return None
        event = Event.of(claim)
        down = self._core.table.down.get(node)
        return MemberView(
            node, state, event.generation, event.incarnation, event.record_seq, event.record_hash,
            None if down is None else down.since, self.through(node), self.way(node),
        )  # fmt: skip

    def through(self, node: bytes) -> tuple[bytes, ...]:
        """By way of whom a partly reachable member is reached, see `MemberView`."""
        return self._core.reach.through(node)

    def way(self, node: bytes) -> Way:
        """How this node reaches a member that is not down. ``DIRECT`` also while too little is known to say
        otherwise."""
        core = self._core
        if core.places.only(node):
            return Way.ELSEWHERE
        if core.reach.through(node):
            return Way.HELPERS
        return Way.TRAFFIC if core.signs.mute(node) else Way.DIRECT

    def heard_at(self, node: bytes) -> list[Address]:
        """The addresses at which a member was lately heard and that its record does not name; the first one
        is proved if any is."""
        return self._core.places.known(node, self._core.clock)

    def proved_at(self, node: bytes, now: float) -> tuple[Address, float] | None:
        """The address that no record names where a member last showed that it gets what is sent there, and
        when, on the owner's clock."""
        found = self._core.places.proof(node)
        return None if found is None else (found[0], now - self._core.age(found[1], now))

    def proved(self, address: Address) -> bool:
        """Whether a member has lately shown that it gets what is sent to an address that no record names."""
        return self._core.places.proved(address, self._core.clock)

    def __iter__(self) -> Iterator[bytes]:
        """Every known node id, this node's own included, in the order of joining."""
        return iter(self._core.table)

    def __len__(self) -> int:
        return len(self._core.table)

    def round_trip(self, node: bytes) -> float | None:
        """The smoothed round-trip time to a member in seconds, if it was ever measured."""
        return self._core.rtt.smoothed(node)

    def silence(self, node: bytes, now: float) -> float | None:
        """Seconds since a member last answered a question of ours; None: never in this run."""
        heard = self._core.heard.get(node)
        return None if heard is None else self._core.age(heard, now)

    def snapshot(self) -> list[bytes]:
        """Claims of up to 256 live members, to be kept and given to `Snapshot` at the next start."""
        core = self._core
        live = [node for node in core.table if node not in core.table.down and node != core.node]
        kept = live if len(live) <= KEPT_PEERS else core.rng.sample(live, KEPT_PEERS)
        return [claim for node in kept if (claim := core.table.get(node))]

    def goodbyes(self) -> list[bytes]:
        """The last words of up to 256 members that have left, to be given to the next start: a member that
        said goodbye is not dead because this node starts again."""
        core = self._core
        left = [(node, down) for node, down in core.table.down.items() if down.state is State.LEFT]
        return [
            node + down.key + bytes((LEFT,)) + claim[RECORD]
            for node, down in left[-KEPT_PEERS:]
            if (claim := core.table.get(node)) is not None
        ]


def _record(seq: int, digest: bytes) -> bytes:
    if not 0 <= seq <= MAX_RECORD_SEQ or len(digest) != HASH_SIZE:
        raise ValueError("a record's sequence number needs 48 bits, its hash 16 bytes")
    return seq.to_bytes(6) + digest


__all__ = ["Changed", "Effect", "FetchRecord", "MemberView", "Membership", "Sync"]
