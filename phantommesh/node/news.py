# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's questions to other members, after gossip told it of something: which records to look for and at
which members, with whom to compare tables, whom to ask for group keys, and whether this node was revoked.
Sans-I/O.

`News.wish` takes a question of gossip's, `News.next` gives out the task that is to be worked on next. A task
is a generator that yields one `Step` after the other and is sent each step's result. The task's owner holds
the conversations, waits, and takes in the answers; where a step fails, the owner sends None.

``now`` is gossip's clock, seconds; ``wall`` is unix time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from math import inf
from random import Random
from typing import Final, Literal, NamedTuple, TypeVar

from phantommesh.control import asking, messages
from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.gossip.acquaintance import Acquaintance
from phantommesh.gossip.envelope import Envelope
from phantommesh.gossip.machine import AskKeys, Effect, Gossip
from phantommesh.membership.effects import FetchRecord, Sync
from phantommesh.node.clocks import Clocks
from phantommesh.node.steps import Moment
from phantommesh.records.roster import Entry, Roster
from phantommesh.trust.identity import NodeId
from phantommesh.trust.revocations import Revocations

Kind = Literal["fetch", "sync", "ask"]

# Tuning.
WORKERS: Final[Mapping[Kind, int]] = {"fetch": 3, "sync": 2, "ask": 2}  # tasks of each kind at one time
SYNC_QUEUE: Final = 8
ASK_QUEUE: Final = 64
ASKED: Final = 3  # members asked for keys, until one answers, where no datagram says who has them
QUIET: Final = 5.0  # s without a genuine datagram
SLOW: Final = 2.0  # s that a question may take; a member that lets it wait longer is asked last
SILENT: Final = 60.0  # s that a member is asked last for
DATA: Final = 256  # bytes received on one interface between two readings; more of them is no keepalives
STANDING_FIRST: Final = 1.0  # s between questions whether this node was revoked, at first and at most
STANDING_MAX: Final = 15.0
STANDING_ASKED: Final = 3  # members asked each time


class Take(NamedTuple):
    """Take in revocations and group keys that a member gave. Send whether any of them was new here, None
    where they could not be read."""

    member: NodeId
    told: asking.Shut


Step = asking.Call | asking.CallUnlinked | asking.Pause | Take
Task = Generator[Step, object, None]
Item = TypeVar("Item")


class News:
    """One node's questions to others. ``told`` are the members that membership was told of before, with the
    hash of the record. ``learned`` is called with the seconds from the first word of a record until it was
    verified here."""

    def __init__(
        self,
        me: NodeId,
        roster: Roster,
        revocations: Revocations,
        gossip: Gossip,
        requests: Envelope,
        *,
        told: dict[NodeId, bytes],
        learned: Callable[[float], None] = lambda seconds: None,
        where: Callable[[NodeId], Sequence[Address]],
        may: Callable[[bytes | None, str], bool] = lambda member, host: True,
        reachable: Callable[[Sequence[bytes]], Sequence[NodeId]],
        linked: Callable[[NodeId], bool],
        carry_out: Callable[[list[Effect]], None],
        pacts: Callable[[], bytes] = lambda: b"",
        policies: Callable[[], bytes] = lambda: b"",
    ) -> None:
        """``where`` gives the addresses of a member's record that may be used; ``may`` says whether somebody
        may be spoken to at an address; ``reachable`` returns the members that can be called, the given ones
        first; ``linked`` says whether a member can be called. ``carry_out`` takes gossip's effects while a
        conversation goes on. ``requests`` seals questions to whoever is at an address. ``pacts`` and
        ``policies`` are the digests of what is known of pacts and of the mesh's policies."""
        self._pacts, self._policies = pacts, policies
        self._roster, self._revocations, self._gossip = roster, revocations, gossip
        self._requests, self._where, self._may = requests, where, may
        self._reachable, self._linked, self._carry_out = reachable, linked, carry_out
        self.clocks = Clocks()
        self.fetching = asking.Fetching()
        self._acquaintance = Acquaintance(
            me, roster, revocations, gossip.membership, self.fetching, told=told, learned=learned
        )
        self.told = self._acquaintance.told
        self.dropped: Counter[str] = Counter()
        self._to_sync = deque[bytes | Address]()
        self._to_ask = deque[AskKeys]()
        # Of whom keys are asked now or next. Else one member that tells of something new each second, and
        # lets each question wait, would have every place; nobody who knows of its revocation would be asked.
        self._asking = set[NodeId | None]()
        # Members that let a question for records wait, until when they are asked last. One of the workers at
        # most looks for what such a member told of, or a member could have all of them by false news.
        self._silent: dict[NodeId, float] = {}
        self._waiting_for_silent = False
        self._received: dict[NodeId, tuple[Sequence[int], float]] = {}  # bytes, and when they were read
        self._lived: dict[NodeId, float] = {}  # the latest sign of life that membership was told of

    # News from outside.

    def roster_changed(self, now: float, wall: float) -> None:
        """Tell membership of records that are new here, and of members that were revoked."""
        for effects in self._acquaintance.roster_changed(now, wall):
            self._carry_out(self._gossip.seal(effects, now))
        self._gossip.forget(set(self.told))
        self._received = {peer: seen for peer, seen in self._received.items() if peer in self.told}
        self._lived = {peer: when for peer, when in self._lived.items() if peer in self.told}

    def read_interfaces(self, received: Mapping[NodeId, Sequence[int]], now: float) -> None:
        """Take the bytes that each member's WireGuard has brought so far, by dimension. Data is a sign of
        life from after the last reading. Keepalives and handshakes are none: WireGuard sends them by
        itself."""
        for peer, counts in received.items():
            before, then = self._received.get(peer, (counts, now))
            self._received[peer] = counts, now
            if any(count - last > DATA for count, last in zip(counts, before, strict=True)):
                seen = self._gossip.membership.traffic_seen(peer, now, age=now - then)
                self._carry_out(self._gossip.seal(seen, now))

    def lives(self, peer: NodeId, when: float, now: float) -> None:
        """A member gave a sign of life that no other can give, at ``when``: see `Membership.lives`. The same
        one may be told again."""
        if when > self._lived.get(peer, -inf):
            self._lived[peer] = when
            seen = self._gossip.membership.lives(peer, now, age=now - when)
            self._carry_out(self._gossip.seal(seen, now))

    def quiet(self, now: float) -> bool:
        """Whether nobody has been heard for a while."""
        return now - self._gossip.heard_at > QUIET

    def wish(self, wanted: FetchRecord | Sync | AskKeys, now: float, wall: float) -> bool:
        """Queue a question of gossip's, if there is room; say whether it was queued. Gossip asks again for
        anything that matters."""
        match wanted:
            case FetchRecord():
                told, fetch = self._acquaintance.wished(wanted, now, wall)
                self._carry_out(self._gossip.seal(told, now))
                return fetch and self._want(wanted, now)
            case Sync(peer):
                return self._queue(self._to_sync, peer, SYNC_QUEUE, "gossip-sync-queue")
            case AskKeys():
                if wanted.member in self._asking:
                    return False
                if queued := self._queue(self._to_ask, wanted, ASK_QUEUE, "gossip-ask-queue"):
                    self._asking.add(wanted.member)
                return queued

    def _want(self, wanted: FetchRecord, now: float) -> bool:
        if NodeId(wanted.node) in self._roster.waiting:
            self.dropped["gossip-fetch-paced"] += 1  # the node makes too many records; membership asks again
            return False
        queued = self.fetching.want(wanted, now)
        if not queued and self.fetching.full:
            self.dropped["gossip-fetch-queue"] += 1
        return queued

    def _queue(self, queue: deque[Item], item: Item, room: int, reason: str) -> bool:
        if len(queue) >= room:
            self.dropped[reason] += 1
            return False
        queue.append(item)
        return True

    # Tasks.

    def next(self, kind: Kind, now: Callable[[], float], wall: Callable[[], float]) -> Task | None:
        """Take the next task of a kind; None where there is none. At most `WORKERS` of a kind are to be under
        way at one time."""
        match kind:
            case "fetch":
                return self._next_fetch(now)
            case "sync":
                return self._sync(self._to_sync.popleft(), now, wall) if self._to_sync else None
            case "ask":
                return self._ask_queued(self._to_ask.popleft()) if self._to_ask else None

    def _next_fetch(self, now: Callable[[], float]) -> Task | None:
        self._silent = {member: until for member, until in self._silent.items() if until > now()}
        batch = self.fetching.batch(self._is_silent, too=not self._waiting_for_silent)
        return self._fetch_queued(batch, now, silent=self._is_silent(batch[0].source)) if batch else None

    def _is_silent(self, source: bytes | Address) -> bool:
        return not isinstance(source, Address) and NodeId(source) in self._silent

    def _fetch_queued(self, batch: Sequence[FetchRecord], now: Callable[[], float], *, silent: bool) -> Task:
        self._waiting_for_silent |= silent
        try:
            yield from self.fetch(batch, now)
        finally:
            self._waiting_for_silent &= not silent
            self.fetching.over(batch)

    def fetch(self, batch: Sequence[FetchRecord], now: Callable[[], float]) -> Task:
        """Fetch a batch of records that are said to exist."""
        for step in asking.look_for(
            batch, self._roster, member_at=self._member_at, callable=self._reachable, where=self._where,
            silent=self._silent.__contains__,
        ):  # fmt: skip
            began = now()
            came = yield step
            if isinstance(step, asking.Call) and came is None and now() - began > SLOW:
                self._silent[step.member] = now() + SILENT
        self.dropped["gossip-record-not-found"] += len(asking.missing(batch, self._roster))

    def _sync(self, peer: bytes | Address, now: Callable[[], float], wall: Callable[[], float]) -> Task:
        """Compare tables, and then records and keys, with a member over a channel."""
        member = self._member_at(peer)
        if member is None or not self._linked(member):
            self.dropped["gossip-sync-unlinked"] += 1
            return
        membership = self._gossip.membership

        def close(answer: bytes) -> bytes:
            moment = now()
            rest, effects = membership.sync_close(answer, member, moment)
            self._carry_out(self._gossip.seal(effects, moment))
            return rest

        def clock(theirs: float) -> None:
            self.clocks.heard(member, theirs, Moment(now(), wall()))

        talk = asking.compare(lambda: membership.sync_open(now()), close, self._roster, wall, clock)
        yield asking.Call(member, talk)

    def _ask_queued(self, wanted: AskKeys) -> Task:
        try:
            yield from self._ask(wanted)
        finally:
            self._asking.discard(wanted.member)

    def _ask(self, wanted: AskKeys) -> Task:
        """Ask for revocations and group keys."""
        if self._gossip.moot(wanted):
            return
        members = self._reachable(()) if wanted.member is None else [NodeId(wanted.member)]
        for member in members[:ASKED]:  # the first may be away
            if not self._linked(member):
                return  # no link with it yet: its next datagram says the same
            question = asking.keys(self._revocations, self._pacts(), self._policies())
            told = yield asking.Call(member, question)
            if not isinstance(told, asking.Shut):
                continue
            new = yield Take(member, told)
            if isinstance(new, bool):
                self._gossip.asked(wanted.digest, news=new)
                return

    def _member_at(self, peer: bytes | Address) -> NodeId | None:
        if not isinstance(peer, Address):
            return NodeId(peer)
        return next((node_id for node_id in self.told if peer in self._where(node_id)), None)

    # Questions to whoever is at an address, above all for that node's own record. Nobody else can be asked
    # while the members that know the node are away, and no link comes about without its record.

    def question(self, step: asking.CallUnlinked) -> bytes | None:
        """Return the sealed question for records; None where nothing may be sent to the address."""
        if not self._may(None, step.address.host):
            self.dropped["gossip-record-forbidden"] += 1
            return None
        return self._requests.seal(0, b"".join(step.hashes)) if self._requests.ready else None

    def answered(self, step: asking.CallUnlinked, question: bytes, answer: bytes) -> asking.Keep | None:
        """Return the records of an answer that are to be kept. Raises EnvelopeError or ControlError for bytes
        that are no answer."""
        told = messages.decode_answer_untrusted(self._requests.open_answer(question, answer))
        return asking.asked_for(told.records, step.hashes) if isinstance(told, messages.Records) else None


class Standing:
    """Decides when a node asks others whether it was revoked, and which members. Members stop linking with a
    revoked node and gossiping to it: it hears of its revocation, and of its pardon, no other way."""

    def __init__(self, me: NodeId, rng: Random, first: float) -> None:
        """``first`` is when to `look` for the first time."""
        self._me, self._rng = me, rng
        self._pause = STANDING_FIRST
        self.due = first

    def look(self, roster: Roster, now: float, *, quiet: bool, revoked: bool) -> list[Entry]:
        """Return the members to ask now: none before ``due``."""
        if now < self.due:
            return []
        asked = list[Entry]()
        if quiet or revoked:
            self._pause = min(STANDING_MAX, self._pause * 1.5)
            others = [entry for entry in roster.everyone() if entry.member.node_id != self._me]
            asked = self._rng.sample(others, min(len(others), STANDING_ASKED))
        else:
            self._pause = STANDING_FIRST
        self.due = now + self._pause * self._rng.uniform(0.75, 1.25)
        return asked


def agreement(
    roster: Roster, node: bytes, draw: int, agree: Callable[[int, bytes], bytes | None]
) -> bytes | None:
    """See `membership.carrying.Agree`: X25519 of the two nodes' WireGuard keys in one dimension, which their
    signed records name. While a key is being replaced, the two ends may have different values for a moment.
    ``agree`` is `WgKeys.agree` of this node's keys."""
    entry, dimension = roster.get(NodeId(node)), draw % DIMENSIONS
    return None if entry is None else agree(dimension, entry.record.wg_keys[dimension])
