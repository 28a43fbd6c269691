# SPDX-License-Identifier: GPL-3.0-or-later
"""Two runs of one node at one time: a copied disk, or a restored snapshot, started beside the original.

Each run gives its signed word (`records.runs`) to the members that are nearest to the node by a hash, which
are the same ones for all runs of the node, and asks them for the words that they hold in its name. Three
things can come back:

- **No later run**: nothing to do.
- **A later run, while this one comes into the mesh**: the machine's clock went back, or a snapshot was
  restored. This run takes a number above that one: the run that comes into the mesh last is the later one,
  whatever its clock says.
- **A later run, once this one has settled**: only this node's identity key can sign such a word, so the key
  is in use elsewhere. This run says so to every member in a last word that names the other one, which nobody
  else can make, and steps aside.

A run that has stepped aside sends nothing and asks on. When the members that answer hold the node for gone,
it may start again, as a new run. No word of another member, and no number of gossip's, makes a node step
aside. Sans-I/O: ``now`` is seconds on a clock that only goes forward.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from heapq import nsmallest
from typing import Final

from phantommesh.faults import FaultKind
from phantommesh.membership.messages import State
from phantommesh.records.roster import Entry, Roster
from phantommesh.records.runs import (
    MAX_ANSWER,
    MAX_START,
    NOBODY,
    WORD_BYTES,
    Run,
    RunError,
    RunWord,
    node_of_untrusted,
    open_word,
    sign_word,
)
from phantommesh.trust.identity import NODE_ID_BYTES, Identity, NodeId

COPY_RUNNING = FaultKind("copy-running", "critical")

# Tuning. Seconds, unless it says otherwise.
WITNESSES: Final = 3  # members that answer in one round
TRIED: Final = 8  # members that are asked in one round, at most
# Pauses between rounds after a start or a sign of another run: another run that was told of this one has
# stepped aside before the first is over.
ROUNDS: Final = (0.3, 1.0, 1.0, 2.0, 3.0, 4.0)
PROMPTED: Final = 1.0  # between two rounds that signs of another run bring about
RECHECK: Final = 10.0  # between the ends of two such series, whatever others say of this node
MAX_VAIN: Final = 5  # the pause between rounds that nobody answers doubles so often at most, from a second
SHOW: Final = 10.0  # between rounds of a run that another one stepped aside for
SHOWN: Final = 25.0  # that a run counts as there since it last showed its word
ASIDE: Final = 5.0  # between rounds of a node that has stepped aside
GONE_ROUNDS: Final = 2  # of them in a row that find the node gone, before it starts again
KEPT: Final = 86_400.0  # that the proof of two runs is shown
MAX_HELD: Final = 2_048  # nodes whose words a witness holds
MAX_MET: Final = 16  # earlier runs that are to be told of a later one


class There(IntEnum):
    """Whether a witness finds the node alive: the first byte of an answer."""

    UNKNOWN = 0
    ALIVE = 1
    GONE = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to the question which runs a node has: whether it is there, and at most two words, not
    verified yet."""

    there: There
    words: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes."""
        return bytes([self.there]) + b"".join(self.words)

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Answer:
        """Read an answer. Raises RunError for bytes that are none."""
        if not data or len(data) > MAX_ANSWER or (len(data) - 1) % WORD_BYTES or data[0] not in tuple(There):
            raise RunError("answer")
        cut = range(1, len(data), WORD_BYTES)
        return cls(There(data[0]), tuple(data[i : i + WORD_BYTES] for i in cut))


@dataclass(slots=True)
class _Held:
    newest: RunWord | None = None
    shown: float = 0.0  # when the newest was shown first: a copy of it that comes later says nothing
    proof: RunWord | None = None
    proved: float = 0.0


class Witness:
    """What this node has heard of the runs of others. ``found`` grows by each node of which two runs are
    proved, and ``met`` by the words of those whose earlier run may be there still, and should hear of it.
    Their owner takes both out."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._held = OrderedDict[NodeId, _Held]()
        self.found: list[NodeId] = []
        self.met: list[RunWord] = []
        self.dropped: Counter[str] = Counter()

    def answer(self, question: bytes, state: Callable[[bytes], State | None], now: float) -> bytes:
        """Answer anybody: the question is a node id, and perhaps that node's word. ``state`` is what gossip
        says of a node."""
        node, raw = NodeId(question[:NODE_ID_BYTES]), question[NODE_ID_BYTES:]
        word = self._take(node, raw, state(node), now) if raw else None
        held = self._held.get(node, _Held())
        shown = [
            one.raw
            for one in (held.newest, held.proof if now - held.proved < KEPT else None)
            if one is not None and (word is None or one.run.name != word.run.name)
        ]
        return Answer(self._there(held, state(node), word, now), tuple(shown)).encode()

    @staticmethod
    def _there(held: _Held, state: State | None, word: RunWord | None, now: float) -> There:
        """Whether a run other than the asker's is there. Gossip alone may call a run dead that has just come
        to another address; a goodbye is the run's own."""
        other = held.newest is not None and (word is None or held.newest.run.name != word.run.name)
        match state:
            case None:
                return There.UNKNOWN
            case State.LEFT:
                return There.GONE
            case State.DEAD:
                return There.ALIVE if other and now - held.shown < SHOWN else There.GONE
            case _:
                return There.ALIVE

    def _take(self, node: NodeId, raw: bytes, state: State | None, now: float) -> RunWord | None:
        entry, held = self._roster.get(node), self._held.get(node, _Held())
        known = next((w for w in (held.newest, held.proof) if w is not None and w.raw == raw), None)
        if known is not None:
            return known
        try:
            if entry is None or node_of_untrusted(raw) != node:
                raise RunError("node")
            word = open_word(raw, entry.member.public_key)
        except RunError as error:
            self.dropped[f"run-{error}"] += 1
            return None
        self._held[node] = held
        self._held.move_to_end(node)
        if len(self._held) > MAX_HELD:
            self._held.popitem(last=False)
        if word.proves_two:
            if held.newest is not None and _is_past(word, held.newest.run):
                return word
            if held.proof is None or now - held.proved >= KEPT or word.seen >= held.proof.seen:
                held.proof, held.proved = word, now
                self.found.append(node)
        elif held.newest is None or (word.run, word.count) > (held.newest.run, held.newest.count):
            other = held.newest is None or held.newest.run.name != word.run.name
            if other and state in (State.ALIVE, State.SUSPECT) and len(self.met) < MAX_MET:
                self.met.append(word)
            held.newest, held.shown = word, now
        return word


def _is_past(proof: RunWord, present: Run) -> bool:
    """Whether a proof is of two runs that were there before the present one: anybody may show it for ever."""
    return proof.seen < present and proof.seen.name != present.name


class Runs:
    """This run of the node, as it watches for others. ``above`` is a run that this one is to be later than:
    the one for which the process stepped aside before."""

    def __init__(self, identity: Identity, start: int, name: bytes, now: float, above: Run = NOBODY) -> None:
        self._identity = identity
        self.run = Run(min(max(start, above.start + 1), MAX_START), name)
        self._word: RunWord | None = None
        self._count = 0  # of the words that this run has signed
        self.aside: Run | None = None  # the run for which this one has stepped aside
        self.twin: Run | None = None  # a run that was there beside this one, or beside another of this node
        self.settled = False
        self.news: bytes | None = (
            None  # a proof that every member is to have, as a question; its owner takes it
        )
        self.due = now
        self._gone, self._vain = 0, 0  # rounds in a row that found the node gone, or that nobody answered
        self._rounds, self._quiet_until = 0, now  # of the present series; before its end none begins
        self._seen: tuple[int, int] | None = None
        self._prompted = float("-inf")

    # What to do, and when.

    def notice(self, generation: int, incarnation: int, now: float) -> None:
        """Take the numbers of this node's own claims. Gossip raises them when others hold claims in its name
        that it did not make: a sign of another run, which anybody can forge, so it only makes this node
        ask."""
        before, self._seen = self._seen, (generation, incarnation)
        if before is None or self._seen == before or self.aside is not None:
            return
        if generation != before[0] or now >= self._quiet_until:
            self._hunt(now)

    def _hunt(self, now: float) -> None:
        if now < self._quiet_until:
            self.due = min(self.due, now + PROMPTED)
            return
        self._rounds, self._quiet_until, self.due = 0, now + RECHECK, min(self.due, now)

    def shown(self, raw: bytes, now: float) -> bool:
        """Take a word of this node's that somebody shows unasked. One of a later run makes this one ask at
        once, and no more: it may be an old one. Return whether it does."""
        if self.aside is not None or not self.settled or now < self._prompted + PROMPTED:
            return False
        try:
            word = open_word(raw, self._identity.public_key)
        except RunError:
            return False
        if word.node != self._identity.node_id or word.run.name == self.run.name or word.run <= self.run:
            return False
        self._prompted = now
        self._rounds, self._quiet_until, self.due = 0, now + RECHECK, now
        return True

    def whom(self, entries: Iterable[Entry]) -> list[Entry]:
        """The members to ask in a round, in order, until `WITNESSES` of them have answered. All runs of this
        node come to the same order."""
        me = self._identity.node_id
        others = (entry for entry in entries if entry.member.node_id != me)
        return nsmallest(TRIED, others, key=lambda one: hashlib.sha3_256(me + one.member.node_id).digest())

    def question(self) -> bytes:
        """Return the question of a round: this node's id and word. The word is a new one each time, unless
        this run has stepped aside: then it stays the last word."""
        seen = NOBODY if self.aside is None else self.aside
        if self._word is None or seen == NOBODY or (self._word.run, self._word.seen) != (self.run, seen):
            self._count += 1
            self._word = sign_word(self._identity, self.run, seen, self._count)
        return self._identity.node_id + self._word.raw

    # What comes of it.

    def round(self, answers: Sequence[Answer], now: float) -> None:
        """Take the answers of one round; `due` is set to when the next one is."""
        for answer in answers:
            for raw in answer.words:
                self._hear(raw)
        if self.aside is not None:
            # Most of them, not all: one that lies would keep this node away for good.
            gone = 2 * sum(answer.there is There.GONE for answer in answers) > len(answers)
            self._gone = self._gone + 1 if gone else 0
            self.due = now + ASIDE
            return
        self.settled = self.settled or bool(answers)
        self._vain = 0 if answers else min(self._vain + 1, MAX_VAIN)
        if not answers:
            self.due = now + 2.0 ** (self._vain - 1)
        elif self._rounds < len(ROUNDS):
            self.due = now + ROUNDS[self._rounds]
            self._rounds += 1
        else:
            self.due = float("inf") if self.twin is None else now + SHOW

    @property
    def over(self) -> bool:
        """Whether this run stepped aside and the other one has gone: it is time to start again."""
        return self._gone >= GONE_ROUNDS

    def _hear(self, raw: bytes) -> None:
        try:
            word = open_word(raw, self._identity.public_key)
        except RunError:
            return
        if word.node != self._identity.node_id or word.run.name == self.run.name:
            return
        if word.proves_two:
            if _is_past(word, self.run):
                return
            if self.twin is None and self.settled:
                self.news = self._identity.node_id + raw
            self.twin = self.twin or word.run
        latest = max(word.run, word.seen)
        if latest <= self.run or latest.name == self.run.name or latest.start >= MAX_START:
            return  # nobody could take a number above the last one, so that one outbids nobody
        if self.settled:
            self.aside = self.twin = latest if self.aside is None else max(self.aside, latest)
            self.news = self.question()
        else:
            self.run = Run(latest.start + 1, self.run.name)
