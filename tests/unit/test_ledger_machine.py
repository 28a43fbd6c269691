# SPDX-License-Identifier: GPL-3.0-or-later
"""Two ledgers over a network that delays, loses and reorders: what honest ends state is so.

The bytes are true: each is sent at a moment, and is on its way, received or lost. Both ends read counters one
dimension after another while bytes go on. Messages take any time and any order, answers get lost, counters
begin anew, dimensions come and go, ends restart and clocks are set. Whatever proof comes of that, the
receiver's bytes lie within what the statement says.
"""

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from phantommesh.identity import NodeId
from phantommesh.proofs.ledger import Chain, Closed, Kept, Ledger
from phantommesh.proofs.statement import ZEROS, Plan, Signed, Statement
from phantommesh.proofs.tally import Counters, Tally
from phantommesh.sizes import DIMENSIONS
from tests.unit.makeproofs import cards_of, seven

A, B = NodeId(b"a" * 16), NodeId(b"b" * 16)
CARDS = cards_of("deck")
SALTS = iter(range(2**60))

dimensions = st.integers(0, DIMENSIONS - 1)
sizes = st.integers(1, 10**7)


@dataclass(slots=True)
class Flight:
    """Bytes on their way in one dimension; ``number`` says in which order they were sent."""

    number: int
    dimension: int
    size: int


@dataclass(slots=True)
class Message:
    """A turn on its way. All that was sent before it, up to ``after``, has arrived or is lost before it is
    read: that is what `Proving` waits for."""

    closes: bytes
    opens: bytes
    after: int
    turn: int


class End:
    """One node's counters, totals and books."""

    def __init__(self, me: NodeId, peer: NodeId) -> None:
        self.me, self.peer = me, peer
        self.chain, self.heads = Chain(), Chain()
        self.key = bytes(32)
        self.counters = [[0, 0] for _ in range(DIMENSIONS)]  # received, sent
        self.there = [True] * DIMENSIONS
        self.begin()

    def begin(self) -> None:
        """Start, from what is on disk."""
        self.tally = Tally()
        self.ledger = Ledger(self.me, lambda n: next(SALTS).to_bytes(n), {self.peer: self.chain}, self.heads)

    def look(self, readings: list[Counters | None]) -> None:
        if not self.tally.look(self.peer, readings):
            self.ledger.cut(self.peer)

    def counter(self, dimension: int) -> Counters | None:
        received, sent = self.counters[dimension]
        return (self.key, received, sent) if self.there[dimension] else None


class Links(RuleBasedStateMachine):
    """A sends to B."""

    @initialize()
    def start(self) -> None:
        self.a, self.b = End(A, B), End(B, A)
        self.now, self.ahead = 1_000_000, 0  # ms by the steady clock, and how far the date is from it
        self.flying: list[Flight] = []
        self.sent_number = 0
        self.lost = [0] * DIMENSIONS  # so far
        self.given = [0] * DIMENSIONS  # by A's scheduler, in the epoch under way
        self.epoch = self.turns = 0
        self.began: tuple[Plan, int, int] | None = None
        self.messages: list[Message] = []
        self.answers: list[int] = []
        self.telling: int | None = None
        self.lost_at: dict[bytes, tuple[list[int], int]] = {}
        self.kept: list[Kept] = []
        self.stated: list[Statement] = []
        self.read_both()

    # ---- bytes ----

    def send(self, dimension: int, size: int) -> None:
        self.given[dimension] += size
        self.a.counters[dimension][1] += size
        self.sent_number += 1
        self.flying.append(Flight(self.sent_number, dimension, size))

    def arrive(self, index: int, *, lost: bool = False) -> None:
        flight = self.flying.pop(index)
        if lost:
            self.lost[flight.dimension] += flight.size
        else:
            self.b.counters[flight.dimension][0] += flight.size

    @rule(dimension=dimensions, size=sizes)
    def bytes_are_sent(self, dimension: int, size: int) -> None:
        self.send(dimension, size)

    @rule(data=st.data(), lost=st.booleans())
    def bytes_arrive(self, data: st.DataObject, lost: bool) -> None:
        if self.flying:
            self.arrive(data.draw(st.integers(0, len(self.flying) - 1)), lost=lost)

    @rule(ms=st.integers(1, 5000))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @rule(ahead=st.integers(-20_000, 20_000))
    def the_clock_is_set(self, ahead: int) -> None:
        self.ahead += ahead

    # ---- readings ----

    def read(self, end: End, data: st.DataObject) -> None:
        """Read all dimensions, one after the other; bytes go on meanwhile."""
        readings = []
        for dimension in range(DIMENSIONS):
            readings.append(end.counter(dimension))
            busy = data.draw(st.sampled_from((0, 0, 0, 1, 2)))
            if busy:
                self.send(data.draw(dimensions), data.draw(sizes))
            if busy > 1:
                self.arrive(data.draw(st.integers(0, len(self.flying) - 1)))
        end.look(readings)

    def read_both(self) -> None:
        for end in (self.a, self.b):
            end.look([end.counter(dimension) for dimension in range(DIMENSIONS)])

    @rule(data=st.data(), at_a=st.booleans())
    def somebody_reads(self, data: st.DataObject, at_a: bool) -> None:
        self.read(self.a if at_a else self.b, data)

    # ---- epochs ----

    @rule(data=st.data(), on=st.booleans())
    def an_epoch_ends(self, data: st.DataObject, on: bool) -> None:
        self.an_epoch_ends_with(data, on=on)

    def an_epoch_ends_with(self, data: st.DataObject, *, on: bool) -> None:
        """A's map changes; some time later A reads its counters, and tells B."""
        closed, octets = None, seven(self.given)
        if self.began is not None and self.now > self.began[1]:
            plan, began, date = self.began
            closed = Closed(plan, date, date + self.now - began, ZEROS, octets)
        self.given = [0] * DIMENSIONS
        self.epoch += 1
        plan = Plan(A, B, 1, self.epoch, "deck", 1, CARDS)
        self.began = (plan, self.now, self.now + self.ahead) if on else None
        self.read(self.a, data)
        slip = seven(self.given)
        self.turns += 1
        closes, opens = self.a.ledger.turn(B, closed, plan if on else None, self.a.tally.sent(B), slip)
        self.telling = None
        if closes or opens:
            self.telling = self.turns
            self.messages.append(Message(closes, opens, self.sent_number, self.turns))
            self.lost_at[opens] = list(self.lost), self.turns

    @rule(data=st.data())
    def a_turn_arrives(self, data: st.DataObject) -> None:
        """In any order, and whether or not A still waits for the answer."""
        if self.messages:
            self.turn_arrives(data.draw(st.integers(0, len(self.messages) - 1)), data)

    def turn_arrives(self, index: int, data: st.DataObject) -> None:
        message = self.messages.pop(index)
        while any(flight.number <= message.after for flight in self.flying):
            index = next(i for i, flight in enumerate(self.flying) if flight.number <= message.after)
            self.arrive(index, lost=data.draw(st.booleans()))
        self.read(self.b, data)
        self.b.ledger.turned(A, message.closes, message.opens, self.b.tally.received(A), self.now / 1000)
        self.answers.append(message.turn)

    @rule(data=st.data(), ms=st.integers(1, 60_000), size=sizes, dimension=dimensions)
    def an_epoch_goes_by(self, data: st.DataObject, ms: int, size: int, dimension: int) -> None:
        """As nearly all do."""
        self.send(dimension, size)
        self.now += ms
        self.an_epoch_ends_with(data, on=True)
        if self.messages and self.messages[-1].turn == self.telling:
            self.turn_arrives(len(self.messages) - 1, data)
            self.answer_arrives(len(self.answers) - 1, data)
        self.sign(delivered=True)

    @rule(data=st.data())
    def a_turn_is_lost(self, data: st.DataObject) -> None:
        if self.messages:
            self.messages.pop(data.draw(st.integers(0, len(self.messages) - 1)))

    @rule(data=st.data())
    def an_answer_arrives(self, data: st.DataObject) -> None:
        if self.answers:
            self.answer_arrives(data.draw(st.integers(0, len(self.answers) - 1)), data)

    def answer_arrives(self, index: int, data: st.DataObject) -> None:
        turn = self.answers.pop(index)
        if turn == self.telling:  # else nobody listens any more
            self.telling = None
            self.read(self.a, data)
            self.a.ledger.answered(B, self.a.tally.sent(B))

    @precondition(lambda self: self.telling is not None)
    @rule()
    def a_waits_no_longer(self) -> None:
        self.telling = None
        self.a.ledger.answered(B, None)

    # ---- what goes wrong at an end ----

    @rule(at_a=st.booleans(), dimension=dimensions, key=st.booleans())
    def counters_begin_anew(self, at_a: bool, dimension: int, key: bool) -> None:
        end = self.a if at_a else self.b
        self.read_both()  # as before each change that a node makes
        if key:
            end.key = (int.from_bytes(end.key) + 1).to_bytes(32)
            end.counters = [[0, 0] for _ in range(DIMENSIONS)]
        elif end.counters[dimension] != [0, 0]:
            end.counters[dimension] = [0, 0]
        self.read_both()

    @rule(at_a=st.booleans(), dimension=dimensions)
    def a_dimension_comes_or_goes(self, at_a: bool, dimension: int) -> None:
        end = self.a if at_a else self.b
        end.there[dimension] = not end.there[dimension]

    @rule(at_a=st.booleans())
    def an_end_restarts(self, at_a: bool) -> None:
        end = self.a if at_a else self.b
        end.begin()
        if at_a:
            self.telling, self.began = None, None
        end.look([end.counter(dimension) for dimension in range(DIMENSIONS)])

    @rule(at_a=st.booleans())
    def a_peer_leaves_and_comes_back(self, at_a: bool) -> None:
        end = self.a if at_a else self.b
        end.tally.retain(())
        end.ledger.retain(())
        end.look([end.counter(dimension) for dimension in range(DIMENSIONS)])

    # ---- rounds ----

    @rule(delivered=st.booleans())
    def both_sign(self, delivered: bool) -> None:
        self.sign(delivered=delivered)

    def sign(self, *, delivered: bool) -> None:
        date = self.now + self.ahead
        for end, other in ((self.a, self.b), (self.b, self.a), (self.a, self.b)):
            made = end.ledger.gather(max(0, date))
            if made is not None:
                for kept in end.ledger.seal(made, b""):
                    end.heads = end.ledger.heads
                    if kept.direction == "sent":
                        end.chain = end.ledger._peer(end.peer).chain
                        self.stated.append(kept.statement)
            if delivered:
                parts = end.ledger.unsent(other.me)
                for part in parts:
                    kept_there = other.ledger.take(end.me, Signed.decode_untrusted(part), max(0, date))
                    if kept_there is not None:
                        self.kept.append(kept_there)
                end.ledger.sent(other.me, parts)

    @invariant()
    def what_is_signed_is_so(self) -> None:
        for kept in getattr(self, "kept", ()):
            assert kept.receipt is not None
            statement, receipt = kept.statement, kept.receipt
            for i in range(DIMENSIONS):
                most = statement.wire[i] + statement.late_close[i]
                lost = self.lost[i] - self.lost_at[receipt.commitment][0][i]
                least = statement.wire[i] - statement.late_open[i] - lost
                assert least <= receipt.received[i] <= most, (i, statement, receipt)
                # WireGuard counts at once here what the scheduler gives, and without overhead.
                apart = abs(statement.wire[i] - statement.octets[i])
                assert apart <= max(statement.late_open[i], statement.late_close[i]), (i, statement)
        self.kept = []

    @invariant()
    def dates_go_on(self) -> None:
        """Those of statements whose numbers follow each other; a number is left out where they went back."""
        for before, after in pairwise(getattr(self, "stated", ())):
            assert before.number < after.number
            assert before.start_ms < before.end_ms
            assert after.number > before.number + 1 or before.end_ms <= after.start_ms


TestLinks = Links.TestCase
TestLinks.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
