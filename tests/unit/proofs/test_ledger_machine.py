# SPDX-License-Identifier: GPL-3.0-or-later
"""Two ledgers over a network that delays, loses and reorders: what honest ends sign is so.

The bytes are true: each is sent at a moment, and is on its way, received or lost. Both ends read counters one
dimension after another while bytes go on. Messages take any time and any order, answers get lost, counters
begin anew, dimensions come and go, ends restart and clocks are set. Whatever proof comes of that, the
receiver's bytes lie within what the statement says.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from phantommesh.dimensions import DIMENSIONS
from phantommesh.proofs.ledger import Chain, Closed, Kept, Ledger
from phantommesh.proofs.statement import ZEROS, Plan, Signed, Statement
from phantommesh.proofs.tally import Counters, Tally
from phantommesh.trust.identity import NodeId
from tests.support.makeproofs import cards_of, seven

A, B = NodeId(b"a" * 16), NodeId(b"b" * 16)
CARDS = cards_of("deck")


@dataclass(slots=True)
class Flight:
    """Bytes on their way in one dimension; ``number`` says in which order they were sent."""

    number: int
    dimension: int
    size: int


@dataclass(slots=True)
class Message:
    """A turn on its way. All that was sent before A read, up to ``after``, has arrived or is lost when B
    hears of it: that is what `Proving` waits for."""

    closes: bytes
    opens: bytes
    after: int
    turn: int


class End:
    """One node's counters, totals and books."""

    def __init__(self, me: NodeId, peer: NodeId, draw: random.Random) -> None:
        self.me, self.peer, self.draw = me, peer, draw
        self.chain, self.heads = Chain(), Chain()  # on disk
        self.key = bytes(32)
        self.counters = [[0, 0] for _ in range(DIMENSIONS)]  # received, sent
        self.there = [True] * DIMENSIONS
        self.begin()

    def begin(self) -> None:
        """Start, from what is on disk."""
        self.tally = Tally()
        self.ledger = Ledger(self.me, self.draw.randbytes, {self.peer: self.chain}, self.heads)

    def look(self, readings: list[Counters | None]) -> None:
        if not self.tally.look(self.peer, readings):
            self.ledger.cut(self.peer)

    def counter(self, dimension: int) -> Counters | None:
        received, sent = self.counters[dimension]
        return (self.key, received, sent) if self.there[dimension] else None

    def counted(self) -> list[Counters | None]:
        return [self.counter(dimension) for dimension in range(DIMENSIONS)]


class Link:
    """A sends to B. Each of `EVENTS` is something that may happen, at any time and as often as it likes."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.a, self.b = End(A, B, self.draw), End(B, A, self.draw)
        self.now, self.ahead = 1_000_000, 100_000  # ms by the steady clock, and how far the date is from it
        self.flying: list[Flight] = []
        self.numbers = 0
        self.lost = [0] * DIMENSIONS  # so far
        self.lost_before: dict[bytes, list[int]] = {}  # when a commitment was made
        self.given = [0] * DIMENSIONS  # by A's scheduler, in the epoch under way
        self.epoch = self.turns = self.proved = 0
        self.began: tuple[Plan, int, int] | None = None
        self.messages: list[Message] = []
        self.answers: list[int] = []
        self.telling: int | None = None
        self.stated: Statement | None = None
        for end in (self.a, self.b):
            end.look(end.counted())

    # ---- bytes ----

    def bytes_are_sent(self) -> None:
        dimension, size = self.draw.randrange(DIMENSIONS), self.draw.randrange(1, 10**7)
        if not self.a.there[dimension]:
            return
        self.given[dimension] += size
        self.a.counters[dimension][1] += size
        self.numbers += 1
        self.flying.append(Flight(self.numbers, dimension, size))

    def bytes_arrive(self) -> None:
        if self.flying:
            self._arrives(self.draw.choice(self.flying))

    def _arrives(self, flight: Flight) -> None:
        self.flying.remove(flight)
        if self.draw.random() < 0.1 or not self.b.there[flight.dimension]:
            self.lost[flight.dimension] += flight.size
        else:
            self.b.counters[flight.dimension][0] += flight.size

    def time_passes(self) -> None:
        self.now += self.draw.randrange(1, 5000)

    def a_clock_is_set(self) -> None:
        self.ahead += self.draw.randrange(-20_000, 20_000)

    def _read(self, end: End) -> None:
        """Read all dimensions, one after the other; bytes go on meanwhile."""
        readings = []
        for dimension in range(DIMENSIONS):
            readings.append(end.counter(dimension))
            for happens in (self.bytes_are_sent, self.bytes_arrive):
                if self.draw.random() < 0.2:
                    happens()
        end.look(readings)

    def somebody_reads(self) -> None:
        self._read(self.draw.choice((self.a, self.b)))

    # ---- epochs ----

    def an_epoch_ends(self) -> None:
        """A's map changes, now and then to none. Some time later A reads its counters, and tells B."""
        closed, octets = None, seven(self.given)
        if self.began is not None and self.now > self.began[1]:
            plan, began, date = self.began
            closed = Closed(plan, date, date + self.now - began, ZEROS, octets)
        self.given = [0] * DIMENSIONS
        self.epoch += 1
        opened = Plan(A, B, 1, self.epoch, "deck", 1, CARDS) if self.draw.random() < 0.95 else None
        self.began = None if opened is None else (opened, self.now, self.now + self.ahead)
        before = list(self.lost)
        self._read(self.a)
        slip = seven(self.given)
        self.turns += 1
        closes, opens = self.a.ledger.turn(B, closed, opened, self.a.tally.sent(B), slip)
        self.telling = None
        if closes or opens:
            self.telling = self.turns
            self.messages.append(Message(closes, opens, self.numbers, self.turns))
            self.lost_before[opens] = before

    def a_turn_arrives(self) -> None:
        """In any order, and whether or not A still waits for the answer."""
        if self.messages:
            message = self.messages.pop(self.draw.randrange(len(self.messages)))
            for flight in [flight for flight in self.flying if flight.number <= message.after]:
                self._arrives(flight)
            self._read(self.b)
            now = self.now / 1000
            self.b.ledger.turned(
                A, message.closes, message.opens, self.b.tally.received(A), now, round(now * 1000)
            )
            self.answers.append(message.turn)

    def a_turn_is_lost(self) -> None:
        if self.messages:
            self.messages.pop(self.draw.randrange(len(self.messages)))

    def an_answer_arrives(self) -> None:
        if self.answers:
            turn = self.answers.pop(self.draw.randrange(len(self.answers)))
            if turn == self.telling:  # else nobody listens any more
                self.telling = None
                self._read(self.a)
                self.a.ledger.answered(B, self.a.tally.sent(B))

    def a_waits_no_longer(self) -> None:
        if self.telling is not None:
            self.telling = None
            self.a.ledger.answered(B, None)

    def an_epoch_goes_by(self) -> None:
        """As nearly all do."""
        self.messages.clear()
        self.answers.clear()
        for happens in (
            self.bytes_are_sent, self.time_passes, self.an_epoch_ends, self.bytes_are_sent,
            self.a_turn_arrives, self.bytes_are_sent, self.an_answer_arrives, self.both_sign,
        ):  # fmt: skip
            happens()

    # ---- what goes wrong at an end ----

    def counters_begin_anew(self) -> None:
        """With another key, or in one dimension with the same. A node reads before and after it does that."""
        end, dimension = self.draw.choice((self.a, self.b)), self.draw.randrange(DIMENSIONS)
        end.look(end.counted())
        if self.draw.random() < 0.5:
            end.key = self.draw.randbytes(32)
            end.counters = [[0, 0] for _ in range(DIMENSIONS)]
        else:
            end.counters[dimension] = [0, 0]
        end.look(end.counted())

    def a_dimension_comes_or_goes(self) -> None:
        end, dimension = self.draw.choice((self.a, self.b)), self.draw.randrange(DIMENSIONS)
        end.there[dimension] = not end.there[dimension]

    def an_end_restarts(self) -> None:
        end = self.draw.choice((self.a, self.b))
        end.begin()
        if end is self.a:
            self.telling = self.began = None
        end.look(end.counted())

    def a_peer_leaves_and_comes_back(self) -> None:
        end = self.draw.choice((self.a, self.b))
        end.tally.retain(())
        end.ledger.retain(())
        end.look(end.counted())

    # ---- rounds ----

    def both_sign(self) -> None:
        """Now and then nothing is delivered."""
        date, delivered = self.now + self.ahead, self.draw.random() < 0.9
        for end, other in ((self.a, self.b), (self.b, self.a), (self.a, self.b)):
            made = end.ledger.gather(date)
            if made is not None:
                for kept in end.ledger.seal(made, b""):
                    if kept.direction == "sent":
                        self._stated(kept.statement)
                end.heads, end.chain = end.ledger.heads, end.ledger._peer(end.peer).chain
            if delivered:
                parts = end.ledger.unsent(other.me)
                for part in parts:
                    whole = other.ledger.take(end.me, Signed.decode_untrusted(part), date)
                    if whole is not None:
                        self._proved(whole)
                end.ledger.sent(other.me, parts)

    def _stated(self, statement: Statement) -> None:
        """Dates go on where numbers do; a number is left out where the dates went back."""
        assert statement.start_ms < statement.end_ms
        if self.stated is not None:
            assert statement.number > self.stated.number
            assert statement.number > self.stated.number + 1 or self.stated.end_ms <= statement.start_ms
        self.stated = statement

    def _proved(self, kept: Kept) -> None:
        """B counted as much as A says, but for losses and for the bytes that A says were sent meanwhile."""
        statement, receipt = kept.statement, kept.receipt
        assert receipt is not None
        for i in range(DIMENSIONS):
            lost = self.lost[i] - self.lost_before[receipt.commitment][i]
            least = statement.wire[i] - statement.late_open[i] - lost
            assert least <= receipt.received[i] <= statement.wire[i] + statement.late_close[i], statement
            # WireGuard counts at once here what the scheduler gives, and without overhead.
            apart = statement.wire[i] - statement.octets[i]
            assert -statement.late_open[i] <= apart <= statement.late_close[i], statement
        self.proved += 1


EVENTS: dict[Callable[[Link], None], int] = {  # with how often each happens
    Link.bytes_are_sent: 30, Link.bytes_arrive: 30, Link.time_passes: 10, Link.a_clock_is_set: 1,
    Link.somebody_reads: 10, Link.an_epoch_ends: 10, Link.a_turn_arrives: 12, Link.a_turn_is_lost: 2,
    Link.an_answer_arrives: 12, Link.a_waits_no_longer: 1, Link.an_epoch_goes_by: 20,
    Link.counters_begin_anew: 2, Link.a_dimension_comes_or_goes: 1, Link.an_end_restarts: 1,
    Link.a_peer_leaves_and_comes_back: 1, Link.both_sign: 10,
}  # fmt: skip


class Links(RuleBasedStateMachine):
    """Finds the shortest way to a proof that does not hold."""

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.link = Link(seed)

    @rule(event=st.sampled_from(list(EVENTS)), seed=st.integers(0, 2**32))
    def something_happens(self, event: Callable[[Link], None], seed: int) -> None:
        self.link.draw.seed(seed)
        event(self.link)


TestLinks = Links.TestCase
TestLinks.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("seed", range(10))
def test_a_long_life_of_a_link(seed: int) -> None:
    link = Link(seed)
    for event in link.draw.choices(list(EVENTS), list(EVENTS.values()), k=3000):
        event(link)
    assert link.proved > 100
