# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions that other members ask by way of this node, and questions by such ways about this node itself.

A ping-req names its asker, the asker's nonce and how many more members it may pass. The member that it is
about answers with a proof for the asker (`reach.proof`). Members that carry the answer can neither check the
proof nor make one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from phantommesh.endpoint import Address
from phantommesh.membership.core import Core
from phantommesh.membership.messages import NACK, PING_REQ, Errand, Message
from phantommesh.membership.reach import MAX_HOPS, proof
from phantommesh.membership.verdicts import Verdicts
from phantommesh.rates import Bucket

LATE: Final = 3.0  # s for which a late answer is still carried
MAX_CARRIED: Final = 256  # questions that this node carries at once, and
MAX_REMEMBERED: Final = 2048  # those together with the ones whose answer may still come
MAX_WAYS: Final = 8  # by which one question may come
MAX_WAIT: Final = 5.0  # s that a question may take, whatever it asks for
AGAIN: Final = 0.12  # s after which a question goes out once more
SEARCHERS: Final = 3  # members that are asked for one of which nobody here knows a way

# Bounds on what others' questions cost this node, a second and in a row: proofs, some 0.1 ms each; and
# questions passed on to more members than the one that they are about.
PROOF_RATE, PROOF_BURST = 300.0, 600
FURTHER_RATE, FURTHER_BURST = 100.0, 200

#: ``agree(node, draw)`` gives what this node and another member, and nobody else, have in common; ``draw``, 0
#: to 255, chooses among several such secrets. None where there is none (yet).
Agree = Callable[[bytes, int], bytes | None]


class _Question:
    """A question that this node carries: its asker, the member it is about, the ways it came by, the members
    that this node has asked, and the answer, once it is there.

    One question may come by several ways. It goes on once, and the answer goes back on all of them: so none
    of those who bring it can keep the answer from the others, and it does not run in circles.
    """

    __slots__ = ("answer", "asked", "errand", "target", "ways")

    def __init__(self, errand: Errand, target: bytes) -> None:
        self.errand, self.target = errand, target
        self.ways: dict[tuple[Address, bytes], None] = {}  # where from, and with which nonce
        self.asked: list[bytes] = []  # nonces
        self.answer: tuple[bytes, bytes] | None = None  # proof and event


class _Asked(NamedTuple):
    question: _Question
    member: bytes
    wait_ms: int


class Carrying:
    """``told_first`` gives the events that a member is to hear before others."""

    def __init__(
        self, core: Core, agree: Agree, verdicts: Verdicts, told_first: Callable[[bytes], list[bytes]]
    ) -> None:
        self._core, self._agree, self._verdicts, self._told_first = core, agree, verdicts, told_first
        self._asked: dict[bytes, _Asked] = {}  # by nonce
        self._questions: dict[tuple[bytes, bytes, bytes], _Question] = {}  # by asker, its nonce, and target
        self._under_way = 0
        self._proofs = Bucket(PROOF_RATE, PROOF_BURST, core.clock)
        self._passed_on = Bucket(FURTHER_RATE, FURTHER_BURST, core.clock)

    def asked(self, message: Message, source: Address) -> None:
        """Answer a ping-req that is about this node; pass on one that is about another."""
        core, target, errand = self._core, message.target, Errand.of(message.extra)
        if target != core.node:
            self._carry(message, errand, source)
        elif not self._proofs.take(core.clock):
            core.drops["relay"] += 1
        elif (secret := self._agree(errand.asker, errand.nonce[0])) is not None or not core.params.verify:
            code = proof(secret or b"", errand.asker, core.node, errand.nonce, core.own)
            core.carry(source, message.nonce, core.node, code, core.own)
        else:
            core.drops["proof"] += 1

    def _carry(self, message: Message, errand: Errand, source: Address) -> None:
        core, target = self._core, message.target
        place = errand.asker, errand.nonce, target
        question, wait = self._questions.get(place), min(message.wait_ms / 1000, MAX_WAIT)
        following = []
        if question is None:
            full = self._under_way >= MAX_CARRIED or len(self._questions) >= MAX_REMEMBERED
            if full or core.table.get(target) is None or errand.asker == core.node:
                core.drops["relay"] += 1
                return
            question = self._questions[place] = _Question(errand, target)
            following.append(target)
            self._under_way += 1
            core.at(core.clock + wait, self._in_vain, question)
            core.at(core.clock + wait + LATE, self._over, place)
        elif question.answer is not None:
            core.carry(source, message.nonce, target, *question.answer)
            return
        elif len(question.ways) >= MAX_WAYS:
            core.drops["relay"] += 1
            return
        question.ways[source, message.nonce] = None
        if len(question.asked) <= 1:  # it may have come with too few hops left before
            following += self._further(target, errand, message.sender)
        nonces = []
        for member in following:
            nonces.append(nonce := core.nonce())
            self._asked[nonce] = _Asked(question, member, int(800 * wait))
        question.asked += nonces
        onward = errand._replace(hops=max(0, min(errand.hops, MAX_HOPS) - 1))
        self._pass_on((question, onward, nonces))
        if (
            wait > 2 * AGAIN and core.reach
        ):  # else it is a question through one member, and asked often enough
            core.at(core.clock + AGAIN, self._pass_on, (question, onward, nonces))

    def _further(self, target: bytes, errand: Errand, sender: bytes) -> list[bytes]:
        """Return the members, other than the one asked about, that may bring a question on: its helpers. If
        this node is badly placed and the member does not answer it, any members that do. In a mesh of which
        all reach all, a question passes one member."""
        core, verdicts = self._core, self._verdicts
        if errand.hops <= 0 or not core.reach or not self._passed_on.take(core.clock):
            return []
        out = {target, sender, errand.asker}
        helpers = core.reach.helpers(target, core.clock, out | core.table.down.keys())
        case = verdicts.cases.get(target)
        if not helpers and case is not None and case.accuses and core.reach.elsewhere(target):
            helpers = core.peers(SEARCHERS, lambda n: n in out or verdicts.doubted(n))
        return helpers

    def _pass_on(self, asking: tuple[_Question, Errand, list[bytes]]) -> None:
        question, errand, nonces = asking
        if question.answer is None:
            for nonce in nonces:
                if (asked := self._asked.get(nonce)) is None:
                    continue  # the question came a second time shortly before it was over
                _, member, wait_ms = asked
                there = member == question.target  # perhaps it is not: then news would be told in vain
                first = self._told_first(member) if there else ()
                extra, target = errand.encode(), question.target
                self._core.send(member, PING_REQ, nonce, target, first, wait_ms, extra, news=not there)

    def answered(self, message: Message) -> None:
        """An answer to a question that this node carries: it goes back where the question came from."""
        core, asked = self._core, self._asked.get(message.nonce)
        if asked is None:
            core.drops["nonce"] += 1
        elif message.sender != asked.member or len(message.events) != 1:
            core.drops["impostor"] += 1
        elif asked.question.answer is None:
            question = asked.question
            question.answer = message.extra, message.events[0]
            for source, nonce in question.ways:
                core.carry(source, nonce, question.target, *question.answer)

    def _in_vain(self, question: _Question) -> None:
        self._under_way -= 1
        if question.answer is None and self._core.params.lifeguard:
            for source, nonce in question.ways:
                self._core.send(source, NACK, nonce, question.target)

    def _over(self, place: tuple[bytes, bytes, bytes]) -> None:
        for nonce in self._questions.pop(place).asked:
            del self._asked[nonce]
