# SPDX-License-Identifier: GPL-3.0-or-later
"""What truly happened on one direction of a link, what its sender says of it, and what an honest receiver
signs: as a real file, or as its parts alone where thousands are judged."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import msgspec

from phantommesh.proofs import fit, merkle
from phantommesh.proofs.archive import Archive
from phantommesh.proofs.chain import Checked
from phantommesh.proofs.ledger import Chain, Kept
from phantommesh.proofs.statement import (
    CONTEXT,
    FIRST,
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
from phantommesh.proofs.verdict import DEMANDS, Demands, LinkReport, judge
from phantommesh.trust.identity import NodeId
from tests.support.makemesh import NOW
from tests.support.makeproofs import World, node, plus

A, B = "pm-1", "pm-2"
START = NOW + 3600


@dataclass(frozen=True)
class Act:
    """One epoch. ``opened`` and ``closed`` are the true times at which the receiver was told, in seconds from
    ``START``; ``came`` are the bytes that came between them, and ``before`` those that came since the act
    before. The rest is what the sender says; ``signed_ms`` is when, by its clock. ``told``: whether the
    receiver heard of the epoch; ``restarted``: it forgot its totals before this act. ``ahead`` is how many
    seconds its clock is."""

    plan: Plan
    opened: float
    closed: float
    came: Seven
    packets: Seven
    octets: Seven
    wire: Seven
    start_ms: int
    end_ms: int
    before: Seven = ZEROS
    late_open: Seven = ZEROS
    late_close: Seven = ZEROS
    signed_ms: int | None = None
    told: bool = True
    restarted: bool = False
    ahead: float = 0.0

    def statement(self, salt: bytes, number: int, previous: bytes) -> Statement:
        return Statement(
            plan=self.plan, salt=salt, number=number, previous=previous, start_ms=self.start_ms,
            end_ms=self.end_ms, packets=self.packets, octets=self.octets, wire=self.wire,
            late_open=self.late_open, late_close=self.late_close,
            shannon=fit.millionths(fit.entropy_bits(self.packets)),
            minimum=fit.millionths(fit.min_entropy_bits(self.packets)),
        )  # fmt: skip

    @property
    def sent_at(self) -> int:
        """When the sender signs, Unix milliseconds by its clock."""
        return self.end_ms + 500 if self.signed_ms is None else self.signed_ms


def clock_ms(seconds: float, ahead: float = 0.0) -> int:
    """A time of a story, Unix milliseconds."""
    return round((START + seconds + ahead) * 1000)


Story = list[Act]


def parts(story: Story, signed: Sequence[bool] | None = None) -> list[Checked]:
    """What the verifier makes of a story's file below signatures. ``signed`` leaves receipts out."""
    found, totals, previous = list[Checked](), ZEROS, FIRST
    for number, act in enumerate(story):
        totals = plus(ZEROS if act.restarted else totals, act.before, act.came)
        statement = act.statement(bytes(32), number, previous)
        previous = (number + 1).to_bytes(32)
        head = Head(VERSION, act.plan.sender, number, FIRST, 1, FIRST, act.sent_at)
        if not act.told or not (signed is None or signed[number]):
            found.append(Checked(statement, previous, head))
            continue
        until = clock_ms(act.closed, act.ahead)
        receipt = Receipt(
            act.plan.receiver, act.plan.sender, previous, FIRST,
            round((act.closed - act.opened) * 1000), act.came, until, totals, 0,
        )  # fmt: skip
        theirs = Head(VERSION, act.plan.receiver, number, FIRST, 1, FIRST, until + 900)
        found.append(Checked(statement, previous, head, receipt, theirs))
    return found


def verdict(story: Story, demands: Demands = DEMANDS, signed: Sequence[bool] | None = None) -> LinkReport:
    """Judge a story as its own file."""
    return judge(parts(story, signed), (A, B), demands, len(story), 1)


@dataclass
class Telling:
    """A sender that says what it likes, and the real books of an honest receiver."""

    world: World = field(default_factory=World)
    proofs: list[Proof] = field(default_factory=list)

    def tell(self, story: Story) -> Archive:
        """Play a story, and return the file that the sender makes of it."""
        receiver, me, you = self.world.ledgers[B], node(A).node_id, node(B).node_id
        totals, previous, heads = ZEROS, FIRST, Chain()
        for number, act in enumerate(story):
            salt = number.to_bytes(32)
            commitment = act.plan.commitment(salt)
            statement = act.statement(salt, number, previous)
            leaf = msgspec.msgpack.encode(statement)
            previous = merkle.leaf_hash(leaf)
            root, (path,) = merkle.tree([leaf])
            head = Head(VERSION, me, heads.next, heads.last, 1, root, act.sent_at)
            body = msgspec.msgpack.encode(head)
            heads = Chain(heads.next + 1, head_hash(body))
            signed = Signed(leaf, 0, path, body, node(A).sign(body, CONTEXT))
            if act.restarted:
                totals = ZEROS
            totals = plus(totals, act.before)
            if act.told:
                receiver.turned(me, b"", commitment, totals, act.opened, clock_ms(act.opened, act.ahead))
            totals = plus(totals, act.came)
            kept = list[Kept]()
            if act.told:
                until = clock_ms(act.closed, act.ahead)
                receiver.turned(me, commitment, b"", totals, act.closed, until)
                with suppress(ProofError):  # an honest receiver signs no statement of another time
                    receiver.take(me, Signed.decode_untrusted(signed.encode()), until + 600)
                made = receiver.gather(until + 900)
                if made is not None:
                    kept = receiver.seal(made, node(B).sign(made.head, CONTEXT))
                receiver.sent(me, receiver.unsent(me))
            mine = [k for k in kept if k.direction == "received" and k.peer == NodeId(me)]
            self.proofs += [k.proof for k in mine] or [Proof(signed)]
        assert all(statement_of.plan.receiver == you for statement_of in story)
        return self.world.archive(self.proofs)
