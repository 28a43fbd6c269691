# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated node's own word: `node.own`, driven as `nursery/members/own.py` drives it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from msgspec import structs

from phantommesh.control import asking, messages
from phantommesh.errors import PhantomMeshError
from phantommesh.node.own import (
    AskRename,
    AskRenewal,
    AskReturn,
    AskRoutes,
    Certified,
    NotTakenBackError,
    Own,
    Rejoin,
    witnesses,
)
from phantommesh.nursery.members.own import AGAIN, ASK_ROUTES_SOON, LOOK_UNCERTIFIED
from phantommesh.nursery.members.returning import WITNESS
from phantommesh.records.record import NodeRecord
from phantommesh.records.roster import Entry
from phantommesh.trust.certificates import Member, Role, TrustError, validity, verify_chain
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.keys import WgKeys
from tests.simulation.full_calls import Ask, Task, spawn
from tests.simulation.full_joining import come_back
from tests.simulation.full_keeper import at_once
from tests.simulation.full_parts import generated, plain_record
from tests.simulation.full_working import Done, Has

if TYPE_CHECKING:
    from tests.simulation.full_node import Process


class OwnRecord:
    """This node as others know it. ``held`` is this node's entry in the roster that the process started
    with."""

    def __init__(self, process: Process, held: Entry | None) -> None:
        self.process, machine = process, process.machine
        node_cert, authority_cert = machine.node_cert, machine.authority_cert
        if held is not None and held.signed.node_cert == node_cert:
            member = held.member
        else:
            at_issue = validity(node_cert)[1]
            member = verify_chain(process.sim.mesh.root, authority_cert, node_cert, at_issue)
        keys = generated(machine.identity)
        if "wireguard" in machine.disk:
            keys = WgKeys.decode(json.loads(machine.disk["wireguard"]))
        certified = Certified(node_cert, authority_cert, member)
        self.word = Own(Has.of(process), certified, keys, self._words, machine.advertised)
        self._renewing = False
        self._renew_after = self._routes_after = process.now

    def _words(self, keys: WgKeys, seq: int) -> NodeRecord:
        """The record, with the keys that the node was generated with: none is replaced here."""
        machine = self.process.machine
        plain = plain_record(machine.identity, seq, machine.address, machine.version, *machine.also)
        return structs.replace(plain, routes=tuple(map(str, self.word.routes.offered)))

    @property
    def member(self) -> Member:
        """This node, as its certificate describes it."""
        return self.word.member

    def start(self) -> None:
        """Do what `Node.serve` begins with."""
        worker = self.process.desk.worker
        worker.do(self.word.reserve(worker.moment()), lambda _: self.publish())

    def publish(self, version: str | None = None) -> None:
        """Put our record into the roster if it says anything new."""
        process, machine = self.process, self.process.machine
        machine.version = machine.version if version is None else version
        try:
            if (signed := self.word.record(process.wall)) is not None:
                process.keeper.add(signed)
        except PhantomMeshError:
            process.sim.tally["own-record-refused"] += 1

    def look(self) -> None:
        """Get another certificate if it is time, and ask for the routes that are advertised."""
        self._ask_routes()
        process, worker = self.process, self.process.desk.worker
        if self._renewing or process.now < self._renew_after or not self.word.due(process.wall):
            return
        if self.word.refrains(worker.moment()):
            return
        alone = not self.word.certified_at(process.wall) or self.word.forlorn(process.wall)
        pause = LOOK_UNCERTIFIED if alone else AGAIN
        self._renew_after, self._renewing = process.now + pause, True
        worker.do(self.word.renew(worker.moment()), self._renewed)

    def _ask_routes(self) -> None:
        process, worker = self.process, self.process.desk.worker
        if self._renewing or process.now < self._routes_after or not self.word.routes.lacking:
            return
        self._routes_after, self._renewing = process.now + ASK_ROUTES_SOON, True
        worker.do(self.word.ask_routes(worker.moment()), self._renewed)

    def _renewed(self, outcome: object) -> None:
        self._renewing = False

    def rename(self, name: str, done: Done) -> None:
        """`OwnRecord.rename`: call ``done`` with None, or with the error."""
        worker = self.process.desk.worker
        worker.do(self.word.rename(name, worker.moment()), done)

    def ask(self, step: AskRenewal | AskRename | AskRoutes, back: Done) -> None:
        """`Caller.renew` and `Caller.rename`: call ``back`` with the answer of the first authority that
        grants it, or with the reason of the last one that does not. An authority asks itself for another
        name."""
        mine, desk = self.process.roster.get(self.process.me), self.process.desk
        alone = self.process.machine.authority is not None and mine is not None
        if isinstance(step, AskRename) and alone and mine is not None:
            work = desk.desk.rename(mine, messages.Rename(step.csr), desk.worker.moment())
            desk.worker.do(work, lambda answer: back(_at(answer, desk.worker.moment())))
        elif isinstance(step, AskRoutes) and alone and mine is not None:
            asked = desk.desk.granting.ask(mine, step.request, desk.worker.moment())
            desk.worker.do(asked, lambda answer: back(_at(_given(answer), desk.worker.moment())))
        else:
            spawn(self.process, "renew", self._ask(step, back))

    def _ask(self, step: AskRenewal | AskRename | AskRoutes, back: Done) -> Task:
        process, why, heard = self.process, "no authority renewed the certificate", False
        roster, worker = process.roster, process.desk.worker
        for member in process.asker.callable(()):
            entry, mine = roster.get(member), roster.get(process.me)
            if entry is None or mine is None or entry.member.role is not Role.AUTHORITY:
                continue
            answer = yield Ask(member, _renew(mine.signed.encode(), step))
            if isinstance(answer, messages.Renewed):
                back((answer, worker.moment()))
                return
            heard |= isinstance(step, AskRoutes) and isinstance(answer, messages.Done)
            why = answer.message if isinstance(answer, messages.Refused) else why
        back((None, worker.moment()) if heard else TrustError(why))

    def come_back(self, step: AskReturn, back: Done) -> None:
        """`returning.come_back`: call ``back`` with the answer of the first authority that takes this node
        back."""
        process, sim, reasons, kind = self.process, self.process.sim, list[str](), TrustError
        entries = [
            entry
            for entry in process.roster
            if entry.member.role is Role.AUTHORITY and entry.member.node_id != process.me
        ]

        def following(answer: object) -> None:
            nonlocal kind
            if isinstance(answer, messages.Returned):
                for entry in witnesses(process.roster, process.me, asked[-1], process.rng):
                    process.asker.ask_revoked(entry.member.node_id, asked[-1])
                sim.at_process(process, WITNESS, lambda: judge(answer))
                return
            if isinstance(answer, messages.Refused):
                reasons.append(answer.message)
                kind = NotTakenBackError
            if not entries:
                self.process.machine.told = reasons
                back(kind(f"no authority takes this node back: {'; '.join(reasons)}"))
                return
            asked.append(entries.pop(0).member.node_id)
            come_back(sim, process.machine, sim.by_id[asked[-1]], step.request, following)

        def judge(answer: messages.Returned) -> None:
            if asked[-1] in process.revocations:
                reasons.append("it was revoked while this node was away")
                following(None)
            else:
                back((answer, asked[-1], process.desk.worker.moment()))

        asked = list[NodeId]()
        following(None)

    def rejoin(self, step: Rejoin) -> None:
        """`OwnRecord._rejoin`."""
        process = self.process
        process.keeper.add(step.mine)
        at_once(process.keeper.taking([step.returned.record], step.authority))
        process.merge(step.returned.keys, step.returned.active_key)


def _renew(mine: bytes, step: AskRenewal | AskRename | AskRoutes) -> asking.Talk[Any]:
    if isinstance(step, AskRename):
        return (yield messages.Rename(step.csr))
    yield messages.Announce(mine)
    if isinstance(step, AskRoutes):
        return (yield step.request)
    return (yield messages.Renew(step.csr, step.evidence))


def _given(answer: object) -> object:
    return None if isinstance(answer, messages.Done) else answer


def _at(answer: object, moment: object) -> object:
    return answer if isinstance(answer, PhantomMeshError) else (answer, moment)
