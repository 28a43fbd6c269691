# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated node's watch for other runs of itself: `node.runs`, driven as `nursery/members/runs.py` does.

Delays are drawn from a source of its own, so that the questions change no other trace. A large mesh leaves
them out: all its nodes start at once, from no disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from phantommesh.control import asking, messages
from phantommesh.node.runs import WITNESSES, Answer, Runs, Witness
from phantommesh.nursery.members.runs import LOOK, PUBLISH
from phantommesh.nursery.sockets.framing import CONNECT
from phantommesh.records.roster import Entry
from phantommesh.records.runs import NOBODY, RUN_BYTES, Run
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId
from tests.simulation.full_calls import Ask, Task, spawn

if TYPE_CHECKING:
    from tests.simulation.full_node import Process


class RunWatch:
    """One process's `Runs`, and its witness of the runs of others."""

    def __init__(self, process: Process) -> None:
        self.process, machine = process, process.machine
        name = hashlib.sha256(b"%d %d %d" % (process.sim.seed, machine.index, machine.life)).digest()
        self._rng = Random(int.from_bytes(name))
        self.runs = Runs(
            machine.identity, machine.generation, name[:RUN_BYTES], process.now, machine.stepped_aside_for
        )
        self.witness = Witness(process.roster)
        self._asking = False
        self._asked_as: tuple[Run, Run | None] = NOBODY, None
        self._unannounced = set[NodeId]()
        self._before, self._publish_from, self._follows = self._record(), 0.0, True

    def start(self) -> None:
        """Look again and again, until the process ends."""
        if not self.process.sim.large:
            self._later(self._rng.random() * LOOK, self._look)

    def answer(self, question: bytes) -> bytes:
        """`RunWatch.answer`."""
        process = self.process
        answer = self.witness.answer(question, process.membership.state, process.now)
        while self.witness.found:
            process.copies.twice(self.witness.found.pop(), process.now)
            process.note_suspicions()
        while self.witness.met:
            word = self.witness.met.pop()
            entry = process.roster.get(word.node)
            if entry is not None and word.node != process.me:
                self._question(entry, word.node + word.raw, lambda answer: None)
        own = question[:NODE_ID_BYTES] == process.me
        if own and self.runs.shown(question[NODE_ID_BYTES:], process.now):
            self._later(0.0, self._look_once)
        return answer

    def _later(self, delay: float, action: Callable[[], None]) -> None:
        """Do this unless the process has ended. One that stepped aside is `Machine.standby` and goes on."""
        machine, life = self.process.machine, self.process.life

        def go() -> None:
            if machine.life != life:
                return
            if machine.stalled:
                self.process.sim.later(0.1, go)
                return
            action()
            if machine.process is self.process:
                self.process.sim.schedule(machine)

        self.process.sim.later(delay, go)

    def _follow_record(self) -> None:
        now, follows = self.process.now, self._follows
        self._follows = self.process.machine.stepped_aside_for != NOBODY
        if follows and self._record() != self._before and now >= self._publish_from:
            self._publish_from = now + PUBLISH
            self.process.own.publish()
            self._before = self._record()
            self._announce_to_all()

    def _record(self) -> int:
        mine = self.process.roster.get(self.process.me)
        return 0 if mine is None else mine.record.seq

    def _announce_to_all(self) -> None:
        self._unannounced = {entry.member.node_id for entry in self.process.roster} - {self.process.me}

    def _look(self) -> None:
        self._look_once()
        self._later(LOOK, self._look)

    def _look_once(self) -> None:
        process, runs = self.process, self.runs
        if process.machine.process is process:
            self._follow_record()
        runs.notice(process.membership.generation, process.membership.incarnation, process.now)
        if not self._asking and process.now >= runs.due:
            self._asking = True
            entries = [entry for entry in process.roster if entry.valid(process.wall)]
            self._asked_as = runs.run, runs.aside
            self._ask(runs.whom(entries), runs.question(), [], WITNESSES)
        for member in [m for m in sorted(self._unannounced) if process.sessions.newest(m) is not None]:
            self._unannounced.discard(member)
            spawn(process, "announce", self._announce(member))

    def _ask(self, waiting: list[Entry], question: bytes, answers: list[Answer], wanted: int) -> None:
        """Ask one after the other until enough have answered. A real node asks three at a time."""
        if not waiting or len(answers) == wanted:
            self._asking = False
            if self._asked_as == (self.runs.run, self.runs.aside):
                self._round(answers)
            return

        def back(answer: bytes) -> None:
            if answer:
                answers.append(Answer.decode_untrusted(answer))
            self._ask(waiting[1:], question, answers, wanted)

        self._question(waiting[0], question, back)

    def _question(self, entry: Entry, question: bytes, back: Callable[[bytes], None]) -> None:
        process, sim = self.process, self.process.sim
        address = next(iter(process.where(entry.member.node_id)), None)
        target = None if address is None else sim.by_address.get(address)
        if target is None or not sim.network.both(process.machine.index, target.index):
            self._later(CONNECT, lambda: back(b""))
            return

        def arrive() -> None:
            server = target.process
            answer = b"" if server is None or target.stalled else server.runs.answer(question)
            self._later(self._hop(), lambda: back(answer))

        sim.later(self._hop() + self._hop(), arrive)

    def _announce(self, member: NodeId) -> Task:
        mine = self.process.roster.get(self.process.me)
        if mine is not None:
            yield Ask(member, _announce(mine.signed.encode()))

    def _hop(self) -> float:
        low, high = self.process.sim.network.delay
        wait = low + (high - low) * self._rng.random()
        while self.process.sim.network.loss and self._rng.random() < self.process.sim.network.loss:
            wait += 0.2
        return wait

    def _round(self, answers: list[Answer]) -> None:
        process, runs = self.process, self.runs
        before = runs.run
        runs.round(answers, process.now)
        if runs.run != before:
            anew = process.membership.begin_anew(runs.run.start, process.now)
            process.carry_gossip(process.gossip.seal(anew, process.now))
        if runs.twin is not None:
            process.copies.twice(None, process.now)
            process.note_suspicions()
        news, runs.news = runs.news, None
        if news is not None:
            process.links.rotate(None, process.now)
            process.sim.schedule(process.machine)
            self._announce_to_all()
            for entry in list(process.roster):
                if entry.member.node_id != process.me:
                    self._question(entry, news, lambda answer: None)
        if runs.aside is not None and process.machine.process is process:
            process.sim.step_aside(process.machine)
        if runs.over and runs.aside is not None:
            process.machine.stepped_aside_for = runs.aside
            process.sim.start(process.machine.index)


def _announce(record: bytes) -> asking.Talk[None]:
    yield messages.Announce(record)
