# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's books: what it has committed to, what it holds of its peers' commitments, what waits to be signed.

Sans-I/O. All byte totals are `Seven` running totals by dimension; the ledger takes the differences. One epoch
of one link goes like this, A sending to B:

1. A's epoch is over: A reads its totals, `turn` gives two commitments, the one to close and the next, and A
   tells B both. B reads its totals (`turned`), and answers. A reads again (`answered`): now its statement is
   complete.
2. A's round signs the statement with everything else that waits (`gather`, `seal`), and A sends it to B.
3. B checks it and writes a receipt (`take`), which B's next round signs, and B sends it to A (`take`).

A states an epoch only if it knows between which two readings of its own B has read, at the beginning and at
the end. So a turn without an answer costs two epochs: the one that it closes and the one that it opens. So
does a gap in either end's totals (`cut`).
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from phantommesh.proofs import fit, merkle
from phantommesh.proofs.chain import CLOCKS_MS
from phantommesh.proofs.reconcile import MAX_LAG_MS
from phantommesh.proofs.statement import (
    FIRST,
    SALT_BYTES,
    VERSION,
    ZEROS,
    Head,
    Plan,
    Proof,
    ProofError,
    Receipt,
    Seven,
    Signed,
    Statement,
    head_hash,
)
from phantommesh.trust.identity import NodeId

Direction = Literal["sent", "received"]  # what this node sent to the peer, or received from it

# Tuning: how much of each peer is kept while the peer, or this node's next round, is waited for.
MAX_WINDOWS: Final = 8
MAX_HALVES: Final = 32
MAX_UNSENT: Final = 16
MAX_WAITING: Final = 16

# Tuning: what is taken for a peer's next statement.
MAX_APART_MS: Final = 24 * 3600 * 1000  # ms: eight windows of an hour, and a clock that is off by hours
MAX_AHEAD: Final = 64  # numbers: epochs that paths cut short
QUICKEST_MS: Final = 250  # ms: for long, no link's epochs follow each other faster


@dataclass(frozen=True, slots=True)
class Closed:
    """One finished epoch of one link, as the scatterer counted it. Times are Unix milliseconds."""

    plan: Plan
    start_ms: int
    end_ms: int
    packets: Seven
    octets: Seven


@dataclass(frozen=True, slots=True)
class Chain:
    """The place that a chain has got to: the next number, and the hash of the last one. ``end_ms`` is when
    the epoch of a link's last statement ended."""

    next: int = 0
    last: bytes = FIRST
    end_ms: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """A peer's last statement: its number, and when its epoch ended by the peer's clock. That of one that
    nothing is known of was at the beginning of time."""

    number: int = 0
    end_ms: int = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """A proof to store: ``number`` is the sender's. A proof of the same number takes its place."""

    peer: NodeId
    direction: Direction
    number: int
    proof: Proof
    statement: Statement
    receipt: Receipt | None


@dataclass(frozen=True, slots=True)
class Round:
    """The leaves that one signature is for."""

    head: bytes
    leaves: tuple[bytes, ...]
    paths: tuple[tuple[bytes, ...], ...]


@dataclass(slots=True)
class _Open:
    """An epoch under way: the plan committed to, and the totals at its beginning. ``late`` is None until the
    peer has answered."""

    plan: Plan
    salt: bytes
    wire: Seven
    late: Seven | None = None


@dataclass(frozen=True, slots=True)
class _Draft:
    """A finished epoch, while the peer is told."""

    opened: _Open
    closed: Closed
    wire: Seven
    late_open: Seven


@dataclass(frozen=True, slots=True)
class _Held:
    """A peer's commitment, this node's received totals when it came, and when that was."""

    commitment: bytes
    received: Seven
    at: float


@dataclass(slots=True)
class _Waiting:
    """A leaf for the next round; of a receipt, the statement it is of, and the sender's number."""

    peer: NodeId
    leaf: bytes
    statement: Statement
    receipt: Receipt | None = None
    signed: Signed | None = None


@dataclass(slots=True)
class _Peer:
    """All about one peer."""

    chain: Chain = field(default_factory=Chain)
    open: _Open | None = None
    draft: _Draft | None = None
    totals: Seven = ZEROS
    slip: Seven = ZEROS
    cuts: int = 0
    seen: Seen = Seen()
    held: _Held | None = None
    windows: OrderedDict[bytes, tuple[int, Seven, int, Seven, int]] = field(default_factory=OrderedDict)
    halves: OrderedDict[bytes, tuple[Statement, Signed]] = field(default_factory=OrderedDict)
    unsent: deque[bytes] = field(default_factory=lambda: deque(maxlen=MAX_UNSENT))


class Ledger:
    """One node's. ``chains`` and ``heads`` say where it left off; ``random`` gives so many random bytes."""

    def __init__(
        self, me: NodeId, random: Callable[[int], bytes], chains: Mapping[NodeId, Chain], heads: Chain
    ) -> None:
        self._me, self._random, self.heads = me, random, heads
        self._peers = {peer: _Peer(chain) for peer, chain in chains.items()}
        self._waiting: list[_Waiting] = []
        self.untimely = 0  # statements that got no receipt for the length of their epochs

    def retain(self, peers: Collection[NodeId]) -> None:
        """Forget what is under way with others; where their chains have got to is kept."""
        for node_id, peer in self._peers.items():
            kept = _Peer(peer.chain, cuts=peer.cuts, seen=peer.seen)
            if node_id not in peers and peer != kept:
                self._peers[node_id] = kept

    def cut(self, peer: NodeId) -> None:
        """The totals of a peer lack something since they were last read: nothing that is under way is
        proved."""
        known = self._peer(peer)
        known.open = known.draft = known.held = None
        known.cuts += 1

    def remember(self, kept: Kept) -> None:
        """Note a proof from disk, each link's oldest first: a peer goes on where it was."""
        if kept.direction == "received":
            self._peer(kept.peer).seen = Seen(kept.number, kept.statement.end_ms)

    # ---- what this node sends ----

    def turn(
        self, peer: NodeId, closed: Closed | None, plan: Plan | None, wire: Seven, slip: Seven = ZEROS
    ) -> tuple[bytes, bytes]:
        """An epoch is over, another begins (or none). Return the commitments to tell the peer, the one that
        closes and the one that opens; empty where there is none, or nothing that can be proved. ``slip`` is
        what the scheduler had given to the new epoch when ``wire`` was read."""
        known = self._peer(peer)
        opened, closes, opens = known.open, b"", b""
        known.draft = None  # the peer has not answered: nobody knows when it read, if it did
        if opened is not None and opened.late is not None and closed is not None:
            sent = _since(wire, opened.wire)
            if sent is not None and closed.plan == opened.plan:
                known.draft = _Draft(opened, closed, sent, opened.late)
                closes = opened.plan.commitment(opened.salt)
        known.open, known.totals, known.slip = None, wire, slip
        if plan is not None:
            known.open = _Open(plan, self._random(SALT_BYTES), wire)
            opens = plan.commitment(known.open.salt)
        return closes, opens

    def answered(self, peer: NodeId, wire: Seven | None) -> None:
        """The peer has read its counters, and ``wire`` was read after that; None: it did not answer, or too
        late. It may have read them all the same, at a moment that nobody knows."""
        known = self._peer(peer)
        after = None if wire is None else _since(wire, known.totals)
        if after is None:
            known.open = known.draft = None
            return
        late = _most(after, known.slip)
        if known.open is not None:
            known.open.late = late
        self._complete(peer, late)

    def _complete(self, peer: NodeId, late: Seven) -> None:
        known = self._peer(peer)
        draft, known.draft = known.draft, None
        if draft is None or sum(w.peer == peer for w in self._waiting) >= 2 * MAX_WAITING:
            return
        opened, closed = draft.opened, draft.closed
        # The clock was set back, or this node's last run had another: no date may come before the one that
        # was stated last. A number that is left out shows that this statement does not follow that one.
        backwards = closed.start_ms < known.chain.end_ms
        statement = Statement(
            plan=opened.plan,
            salt=opened.salt,
            number=known.chain.next + backwards,
            previous=known.chain.last,
            start_ms=closed.start_ms,
            end_ms=closed.end_ms,
            packets=closed.packets,
            octets=closed.octets,
            wire=draft.wire,
            late_open=draft.late_open,
            late_close=late,
            shannon=fit.millionths(fit.entropy_bits(closed.packets)),
            minimum=fit.millionths(fit.min_entropy_bits(closed.packets)),
        )
        leaf = msgspec.msgpack.encode(statement)
        known.chain = Chain(statement.number + 1, merkle.leaf_hash(leaf), statement.end_ms)
        self._waiting.append(_Waiting(peer, leaf, statement))

    # ---- what peers send ----

    def turned(
        self, peer: NodeId, closes: bytes, opens: bytes, received: Seven, now: float, now_ms: int
    ) -> None:
        """A peer's epoch is over: it closes one commitment and opens another. ``now`` is in seconds, by any
        clock that never goes back, ``now_ms`` the same moment in Unix milliseconds."""
        known = self._peer(peer)
        held = known.held
        if held is not None and closes == held.commitment:
            came = _since(received, held.received)
            if came is not None:
                held_ms = round((now - held.at) * 1000)
                known.windows[closes] = held_ms, came, now_ms, received, known.cuts
            if len(known.windows) > MAX_WINDOWS:
                known.windows.popitem(last=False)
        known.held = _Held(opens, received, now) if opens else None

    def take(self, peer: NodeId, signed: Signed, now_ms: int) -> Kept | None:
        """Take what a peer has signed; the caller has checked its signature. A statement is noted for a
        receipt; a receipt completes the proof that is returned. Anything else is left out, and so is a
        statement of an epoch that was of another length by this end's clock (`untimely` counts those): one of
        the two machines slept, or was late. A receipt for it would say that the peer has cheated. ``now_ms``
        is in Unix milliseconds.

        Raises ProofError for what is not under its own head, and for a statement of another time or with a
        number that its chain cannot have come to.
        """
        head, leaf = signed.open()
        known = self._peer(peer)
        if head.node != peer:
            return None
        if isinstance(leaf, Receipt):
            half = known.halves.get(leaf.statement)
            if half is None or (leaf.witness, leaf.sender) != (peer, self._me):
                return None
            del known.halves[leaf.statement]
            statement, ours = half
            return Kept(peer, "sent", statement.number, Proof(ours, signed), statement, leaf)
        plan = leaf.plan
        if (plan.sender, plan.receiver) != (peer, self._me):
            return None
        commitment = plan.commitment(leaf.salt)
        if commitment in known.windows:
            _check_place(leaf, known.seen, now_ms)
            if abs(leaf.end_ms - known.windows[commitment][2]) > CLOCKS_MS:  # it would spoil the whole link
                raise ProofError(
                    f"statement {leaf.number} ended more than an hour apart by the two ends' clocks",
                    fix="set the clocks of both nodes",
                )
            known.seen = Seen(leaf.number, leaf.end_ms)
        window = known.windows.pop(commitment, None)
        if window is not None and abs(window[0] - (leaf.end_ms - leaf.start_ms)) > MAX_LAG_MS:
            self.untimely += 1
            return None
        if window is not None and sum(w.peer == peer for w in self._waiting) < 2 * MAX_WAITING:
            receipt = Receipt(self._me, peer, merkle.leaf_hash(signed.leaf), commitment, *window)
            self._waiting.append(_Waiting(peer, msgspec.msgpack.encode(receipt), leaf, receipt, signed))
        return None

    # ---- rounds ----

    def gather(self, now_ms: int) -> Round | None:
        """Return what is to be signed, if anything is. Nothing changes until `seal`."""
        if not self._waiting:
            return None
        leaves = tuple(waiting.leaf for waiting in self._waiting)
        root, paths = merkle.tree(leaves)
        head = Head(VERSION, self._me, self.heads.next, self.heads.last, len(leaves), root, now_ms)
        return Round(msgspec.msgpack.encode(head), leaves, tuple(paths))

    def seal(self, made: Round, signature: bytes) -> list[Kept]:
        """The round's head is signed: return the proofs to store. Their parts wait in `unsent`."""
        waiting, self._waiting = self._waiting[: len(made.leaves)], self._waiting[len(made.leaves) :]
        self.heads = Chain(self.heads.next + 1, head_hash(made.head))
        kept = []
        for index, (one, path) in enumerate(zip(waiting, made.paths, strict=True)):
            signed = Signed(one.leaf, index, path, made.head, signature)
            known = self._peer(one.peer)
            known.unsent.append(signed.encode())
            if one.signed is not None:
                proof = Proof(one.signed, signed)
                number = one.statement.number
                kept.append(Kept(one.peer, "received", number, proof, one.statement, one.receipt))
                continue
            known.halves[merkle.leaf_hash(one.leaf)] = (one.statement, signed)
            if len(known.halves) > MAX_HALVES:
                known.halves.popitem(last=False)
            kept.append(Kept(one.peer, "sent", one.statement.number, Proof(signed), one.statement, None))
        return kept

    def unsent(self, peer: NodeId) -> tuple[bytes, ...]:
        """Parts to be sent to a peer: `Signed`, encoded."""
        return tuple(self._peer(peer).unsent)

    def sent(self, peer: NodeId, parts: Collection[bytes]) -> None:
        """The peer has these."""
        known = self._peer(peer)
        known.unsent = deque((part for part in known.unsent if part not in parts), maxlen=MAX_UNSENT)

    def _peer(self, peer: NodeId) -> _Peer:
        return self._peers.setdefault(peer, _Peer())


def _check_place(statement: Statement, seen: Seen, now_ms: int) -> None:
    """Raise ProofError unless a statement is of about now, and its number one that can come after the last.

    A chain grows by one an epoch, also by those that this node has missed. A number that is lower than the
    last is taken: the peer has begun again from an older state, or from none.
    """
    apart = statement.end_ms - now_ms
    if abs(apart) > MAX_APART_MS:
        raise ProofError(
            f"statement {statement.number} is of an epoch that ended {abs(apart) / 3_600_000:.0f} hours "
            f"{'from now' if apart > 0 else 'ago'}",
            fix="set the clocks of both nodes",
        )
    # Either way: the last may be of a clock that was far ahead, and has been set.
    ahead = MAX_AHEAD + abs(statement.end_ms - seen.end_ms) // QUICKEST_MS
    if statement.number > seen.number + ahead:
        raise ProofError(
            f"statement {statement.number} cannot come after statement {seen.number}",
            fix="ask the peer's operator what became of the statements between them",
        )


def _since(now: Seven, before: Seven) -> Seven | None:
    """The difference of two totals; None for totals that went back, of which nothing is known."""
    a, b, c, d, e, f, g = (x - y for x, y in zip(now, before, strict=True))
    return None if min(a, b, c, d, e, f, g) < 0 else (a, b, c, d, e, f, g)


def _most(one: Seven, other: Seven) -> Seven:
    """The greater of each two."""
    a, b, c, d, e, f, g = map(max, one, other)
    return a, b, c, d, e, f, g
