# SPDX-License-Identifier: GPL-3.0-or-later
"""Proves what the scatterer does: commits to each epoch, states what was sent, has the peers countersign.

`Ledger` keeps the books; this module reads counters for it, carries its messages, signs and stores. Nothing
waits for a peer: an epoch at whose beginning or end the peer did not answer is not proved.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from time import time
from typing import Protocol, TypeVar

import structlog
import trio
from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh.control import messages
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.unexpected import left_out
from phantommesh.proofs.archive import Archive, Certificates
from phantommesh.proofs.ledger import Chain, Closed, Kept, Ledger
from phantommesh.proofs.review import Review
from phantommesh.proofs.shelf import Shelf
from phantommesh.proofs.statement import (
    CONTEXT,
    VERSION,
    ZEROS,
    Plan,
    Proof,
    ProofError,
    Seven,
    Signed,
    head_hash,
)
from phantommesh.proofs.tally import Counters, Tally
from phantommesh.records.roster import Entry, Roster
from phantommesh.scatter.epochs import EpochCounts
from phantommesh.state.start import NodeState
from phantommesh.trust.identity import NodeId, format_node_id

SHORTEST: float = 1.0
"""Seconds an epoch must last to be proved: both ends read their counters when it ends."""

# Tuning.
# s after a change of the map, within which both ends must have read their counters; less than the lag that a
# proof may have.
PATIENCE = 2.5
# s that packets under way are given to arrive before the peer is told to read: the least and the most. The
# slowest path's round trip is added, since probes wait in the same queues.
SETTLE, SETTLE_MOST = 0.1, 1.0
OFTEN = 0.25  # s between two turns that a peer may ask for: each has its counters read
QUEUE = 4096  # epochs that wait to be looked at
UNHEARD = 2  # turns in a row that do not reach a peer, before it is asked to attend: one is a restart's

log = structlog.get_logger("phantommesh.proofs")

What = TypeVar("What")


class Asks(Protocol):
    """A channel to a peer: `channels.Client`. Raises `StreamError`."""

    async def ask(self, request: messages.Request) -> messages.Answer: ...


Call = Callable[[NodeId], AbstractAsyncContextManager[Asks]]


@dataclass(frozen=True, slots=True)
class _Event:
    """A link's epoch is over. ``plan`` is the plan of the epoch that has begun; ``at`` is the moment, by
    trio's clock."""

    peer: NodeId
    closed: Closed | None
    plan: Plan | None
    at: float


class Proving:
    """One node's proofs. ``read`` has the interfaces' counters read and told to `look`; ``scattered`` has the
    scheduler's read, and returns each peer's epoch under way; ``delay`` says how many seconds packets to a
    peer may be on their way; ``count`` is given each result; ``attend`` is called with a peer that waits for
    this node to call."""

    def __init__(
        self,
        state: NodeState,
        shelf: Shelf,
        roster: Roster,
        *,
        epoch_seconds: float,
        batch: int,
        keep: int,
        call: Call,
        read: Callable[[], Awaitable[object]],
        scattered: Callable[[], Awaitable[Mapping[bytes, EpochCounts]]],
        delay: Callable[[NodeId], float],
        count: Callable[[str], None],
        attend: Callable[[NodeId], None] = lambda peer: None,
    ) -> None:
        self._state, self._shelf, self._roster = state, shelf, roster
        self._me = state.identity.node_id
        self._epoch, self._batch = epoch_seconds, batch
        self._call, self._read, self._scattered, self._count = call, read, scattered, count
        self._delay = delay
        self._tally = Tally()
        self._ledger: Ledger | None = None
        self.review = Review(keep)
        self._ended, self._to_turn = trio.open_memory_channel[_Event](QUEUE)
        self._reading = trio.Lock()
        self._read_began = -1.0
        self._storing = trio.Lock()
        self._telling: dict[NodeId, trio.CancelScope] = {}
        self._asked: dict[NodeId, float] = {}
        self._attend = attend
        self._unheard: Counter[NodeId] = Counter()  # how often in a row each peer could not be told anything
        self.dropped: Counter[str] = Counter()

    @property
    def ready(self) -> bool:
        """Whether what is on disk has been read."""
        return self._ledger is not None

    # ---- news from other parts ----

    def look(self, counters: Mapping[NodeId, Sequence[Counters | None]]) -> None:
        """The interfaces were read: these are the counters of each peer, a dimension each."""
        self._tally.retain(counters.keys())
        for peer, readings in counters.items():
            if not self._tally.look(peer, readings) and self._ledger is not None:
                self._ledger.cut(peer)
        for known in self._asked.keys() - counters.keys():
            del self._asked[known]
        for known in self._unheard.keys() - counters.keys():
            del self._unheard[known]
        if self._ledger is not None:
            self._ledger.retain(counters.keys())

    def epoch(self, peer: bytes, ended: EpochCounts, current: EpochCounts | None) -> None:
        """An epoch of the scatter to a peer has ended, and the next is under way, if there is one."""
        if self._epoch < SHORTEST:
            return
        plan = None if current is None else self._plan(peer, current)
        stopped = ended.ended if current is None else ended.after(current.began)
        if stopped is None:
            return
        closed = None
        if not ended.by_plan:
            self._count("mixed")
        elif ended.whole and int(ended.started * 1000) < int(stopped * 1000):
            closed = Closed(
                self._plan(peer, ended),
                int(ended.started * 1000),
                int(stopped * 1000),
                _seven(ended.hits.packets),
                _seven(ended.hits.bytes),
            )
        try:
            at = ended.began + stopped - ended.started
            self._ended.send_nowait(_Event(NodeId(peer), closed, plan, at))
        except trio.WouldBlock:
            self._count("dropped")

    def _plan(self, peer: bytes, counts: EpochCounts) -> Plan:
        run = self._batch if counts.scheduler == "batch" else 1
        epoch, cards = counts.epoch, _seven(counts.cards)
        return Plan(self._me, peer, epoch.link, epoch.number, counts.scheduler, run, cards)

    # ---- requests of peers ----

    async def turn(self, entry: Entry, request: messages.Turn) -> messages.Answer:
        """A peer's epoch is over: read what has come from that peer."""
        peer, now = entry.member.node_id, trio.current_time()
        if self._ledger is None or now - self._asked.get(peer, -OFTEN) < OFTEN:
            return messages.Refused("not now", "ask again for the next epoch")
        self._asked[peer] = now
        await self._fresh()
        self._ledger.turned(
            peer, request.closes, request.opens, self._tally.received(peer), trio.current_time(),
            int(time() * 1000),
        )  # fmt: skip
        return self._done(peer)

    def _done(self, peer: NodeId) -> messages.Done:
        return messages.Done(waiting=self._unheard[peer] >= UNHEARD)

    def _heard(self, peer: NodeId, answer: messages.Answer) -> bool:
        """Note what a peer answers; return whether it has done its part."""
        self._unheard.pop(peer, None)
        if isinstance(answer, messages.Done) and answer.waiting:
            self._attend(peer)
        return isinstance(answer, messages.Done)

    async def take(self, entry: Entry, request: messages.Prove) -> messages.Answer:
        """A peer has signed statements and receipts. Parts that do not hold are counted and left out."""
        if self._ledger is None:
            return messages.Refused("not now", "send it again later")
        verified: set[tuple[bytes, bytes]] = set()
        for part in request.parts:
            await trio.lowlevel.checkpoint()  # each signature takes a fraction of a millisecond to verify
            try:
                signed = Signed.decode_untrusted(part)
                if (signed.head, signed.signature) not in verified:
                    signed.check_signature(entry.member.public_key)
                    verified.add((signed.head, signed.signature))
                before = self._ledger.untimely
                kept = self._ledger.take(entry.member.node_id, signed, int(time() * 1000))
                if self._ledger.untimely > before:
                    self._count("untimely")
                    log.info(
                        "an epoch is not countersigned: it was of another length by this node's clock",
                        peer=entry.member.name,
                    )
            except ProofError as error:
                self._count("refused")
                log.warning(
                    "part of a proof refused", peer=entry.member.name, error=str(error), fix=error.fix
                )
                continue
            if kept is not None:
                await self._store([kept])
        return self._done(entry.member.node_id)

    # ---- the service ----

    async def run(self) -> None:
        """Prove until cancelled."""
        if self._ledger is None:
            chains, heads = await trio.to_thread.run_sync(self._shelf.load)
            found, damaged = await trio.to_thread.run_sync(self._shelf.kept)
            for path, error in damaged:
                log.warning("a proof on disk is thrown away", file=str(path), error=str(error))
            ledger = Ledger(self._me, os.urandom, chains, heads)
            for kept in found:
                self.review.add(kept)
                ledger.remember(kept)
            self._ledger = ledger
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._rounds)
            async for event in self._to_turn.clone():
                events = [event]
                while True:
                    try:
                        events.append(self._to_turn.receive_nowait())
                    except trio.WouldBlock:
                        break
                under_way: Mapping[bytes, EpochCounts] = {}
                try:
                    await self._fresh()
                    under_way = await self._scattered()
                except PhantomMeshError as error:
                    log.debug("epochs are not proved: counters cannot be read", error=str(error))
                for each in events:
                    self._turn(self._ledger, each, under_way.get(each.peer), nursery)

    async def _rounds(self) -> None:
        while True:
            await trio.sleep(max(self._epoch, SHORTEST))
            await self.round()

    def _turn(
        self, ledger: Ledger, event: _Event, under_way: EpochCounts | None, nursery: trio.Nursery
    ) -> None:
        """Go on to the next epoch of a link. ``under_way`` was read after the interfaces were: it shows what
        they may have sent of that epoch already."""
        peer = event.peer
        if (before := self._telling.pop(peer, None)) is not None:
            before.cancel()  # the peer has not answered for an epoch
            self._unheard[peer] += 1
            self._count("unwitnessed")
        closed, plan, slip = event.closed, event.plan, ZEROS
        if under_way is not None and plan is not None and self._plan(peer, under_way) == plan:
            slip = _seven(under_way.hits.bytes)
        elif plan is not None:
            closed = plan = None  # another epoch has begun since, or nothing could be read
            self._count("unwitnessed")
        closes, opens = ledger.turn(peer, closed, plan, self._tally.sent(peer), slip)
        if closes or opens:
            # Note the scope here, before its task begins: two tasks may begin in either order.
            self._telling[peer] = scope = trio.CancelScope(deadline=event.at + PATIENCE)
            nursery.start_soon(self._tell, ledger, peer, messages.Turn(closes, opens), scope)

    async def _tell(
        self, ledger: Ledger, peer: NodeId, request: messages.Turn, scope: trio.CancelScope
    ) -> None:
        """Tell a peer that an epoch is over, and read again when it has done its part.

        The peer is told when all that was counted here has arrived: else packets on their way would count for
        this epoch here, and for the next one there.
        """
        wire: Seven | None = None
        answer: messages.Answer | None = None
        settled = trio.current_time() + min(SETTLE + self._delay(peer), SETTLE_MOST)
        with self._left_out(peer), scope:
            try:
                async with self._call(peer) as client:
                    await trio.sleep_until(settled)
                    answer = await client.ask(request)
                if self._heard(peer, answer):
                    await self._fresh()
                    wire = self._tally.sent(peer)
            except (StreamError, PhantomMeshError) as error:
                log.debug("a peer was not told of an epoch", peer=format_node_id(peer), error=str(error))
        if self._telling.get(peer) is scope:
            del self._telling[peer]
            ledger.answered(peer, wire)
            if wire is None:
                self._count("unwitnessed")
            if answer is None:
                self._unheard[peer] += 1

    async def _fresh(self) -> None:
        """Have the counters read, from now on: one reading serves all who asked before it began. Raises
        PhantomMeshError."""
        asked = trio.current_time()
        async with self._reading:
            if self._read_began < asked:
                began = trio.current_time()
                await self._read()
                self._read_began = began

    async def round(self) -> None:
        """Sign all that waits, store it, and send each peer its part. Parts that do not arrive go with the
        next round."""
        ledger = self._ledger
        if ledger is None:
            return
        made = ledger.gather(int(time() * 1000))
        if made is not None:
            # The number is on disk before anything is signed under it. Else a node that ends here, or whose
            # disk is full, would sign another head of this number after its next start.
            following = Chain(ledger.heads.next + 1, head_hash(made.head))
            if await self._write(self._shelf.put_heads, following):
                sign = self._state.identity.sign
                kept = ledger.seal(made, await trio.to_thread.run_sync(sign, made.head, CONTEXT))
                await self._store(kept)
        async with trio.open_nursery() as nursery:
            for peer in self._tally.peers():
                if ledger.unsent(peer):
                    nursery.start_soon(self._deliver, ledger, peer)

    def _left_out(self, peer: NodeId) -> AbstractContextManager[None]:
        what = "proofs with a peer were left out after an unexpected error"
        return left_out(self.dropped, "proof-broken", what, peer=format_node_id(peer))

    async def _deliver(self, ledger: Ledger, peer: NodeId) -> None:
        with self._left_out(peer), trio.move_on_after(PATIENCE):
            try:
                async with self._call(peer) as client:
                    while parts := ledger.unsent(peer)[: messages.MAX_PARTS]:
                        if not self._heard(peer, await client.ask(messages.Prove(parts))):
                            return
                        ledger.sent(peer, parts)
            except StreamError as error:
                log.debug("proofs not delivered", peer=format_node_id(peer), error=str(error))

    async def _store(self, proofs: Iterable[Kept]) -> None:
        for kept in proofs:
            result, problem = self.review.add(kept)
            self._count(result)
            if problem is not None:
                log.warning(
                    "a scatter proof does not hold",
                    peer=format_node_id(NodeId(kept.peer)), error=problem, direction=kept.direction,
                )  # fmt: skip
            await self._write(self._shelf.put, kept)

    async def _write(self, write: Callable[[What], None], what: What) -> bool:
        """Write, and say whether it is on disk: a full disk costs evidence, not the node."""
        async with self._storing:
            try:
                await trio.to_thread.run_sync(write, what)
            except PhantomMeshError as error:
                log.error("proofs not written", error=str(error), fix=error.fix)
                return False
        return True

    async def export(self, wanted: NodeId | None = None) -> bytes:
        """A file of all proofs without gaps, or of those with one peer. Raises ProofError where there is
        none."""
        async with self._storing:
            found = await trio.to_thread.run_sync(self._unbroken, wanted)
        certificates, proofs = dict[bytes, Certificates](), list[Proof]()
        mine = self._roster.get(self._me)
        for peer, run in found:
            entry = self._roster.get(peer)
            if entry is None or mine is None:  # without its certificate nobody could check them
                continue
            proofs += run
            for known in (entry, mine):
                certified = Certificates(known.signed.node_cert, known.signed.authority_cert)
                certificates[bytes(known.member.node_id)] = certified
        if not proofs and any(run for _, run in found):
            raise ProofError(
                "no certificate is known of the peers that there are scatter proofs with, and nobody could "
                "check them without",
                fix="wait until the node is linked with its peers",
            )
        if not proofs:
            raise ProofError("there are no scatter proofs yet", fix="wait until an epoch has ended")
        root = self._state.root.public_bytes(Encoding.DER)
        return await trio.to_thread.run_sync(Archive(VERSION, root, certificates, tuple(proofs)).encode)

    def _unbroken(self, wanted: NodeId | None) -> list[tuple[NodeId, list[Proof]]]:
        return [
            (peer, self._shelf.unbroken(peer, direction))
            for peer, direction in self._shelf.links()
            if wanted in (None, peer)
        ]


def _seven(values: Sequence[int]) -> Seven:
    a, b, c, d, e, f, g = values
    return a, b, c, d, e, f, g
