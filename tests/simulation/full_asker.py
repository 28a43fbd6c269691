# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated node's questions to others: runs the tasks of `node.news`, as many at once as a real node does.

Records, comparisons and group keys are asked for over channels. Two questions go on connections of their own:
for records, to whoever is at an address; and whether the node was revoked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from phantommesh.control import asking, messages
from phantommesh.gossip.envelope import EnvelopeError
from phantommesh.node.news import WORKERS, Kind, Standing
from phantommesh.nursery.sockets.framing import CONNECT
from phantommesh.trust.identity import NodeId
from tests.simulation.full_calls import spawn
from tests.simulation.full_keeper import at_once

if TYPE_CHECKING:
    from tests.simulation.full_node import Process


class Asker:
    """Works on the tasks that `node.news` gives out."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.busy: dict[str, int] = dict.fromkeys(WORKERS, 0)
        self._standing = Standing(process.me, process.rng, process.now)

    def callable(self, first: Sequence[bytes]) -> list[NodeId]:
        """`Caller.callable`. In a large mesh those that are named, and the authorities, can all be called."""
        process = self.process
        if process.sim.large and first:
            authorities = (entry.member.node_id for entry in process.peers.authorities)
            named = dict.fromkeys(NodeId(node_id) for node_id in (*first, *authorities))
            return [n for n in named if n != process.me and process.roster.get(n) is not None]
        ordered = asking.whom(process.roster, process.me, first, process.rng)
        return [m for m in ordered if process.sim.large or process.sessions.newest(m) is not None]

    def pump(self) -> None:
        """Start the tasks that wait, as far as there are workers."""
        process = self.process
        if process.machine.life != process.life:
            return
        for kind, workers in WORKERS.items():
            self._pump(kind, workers)

    def _pump(self, kind: Kind, workers: int) -> None:
        process = self.process
        while self.busy[kind] < workers:
            task = process.news.next(kind, lambda: process.now, lambda: process.wall)
            if task is None:
                return
            spawn(process, kind, task)

    # On connections of their own.

    def ask_unlinked(self, step: asking.CallUnlinked, done: Callable[[], None]) -> None:
        """Put a sealed question to whoever is at an address."""
        process, sim = self.process, self.process.sim
        target, question = sim.by_address.get(step.address), process.news.question(step)
        if target is None or question is None or not sim.network.begins(process.machine.index, target.index):
            sim.at_process(process, min(CONNECT, step.patience), done)
            return

        def arrive() -> None:
            server, answer = target.process, b""
            if server is not None and not target.stalled:
                answer = server.desk.answer_records(question)

            def back() -> None:
                self._take_unlinked(step, question, answer)
                done()

            sim.at_process(process, sim.hop(), back)

        sim.later(sim.hop() + sim.hop(), arrive)

    def _take_unlinked(self, step: asking.CallUnlinked, question: bytes, answer: bytes) -> None:
        try:
            kept = self.process.news.answered(step, question, answer)
        except (EnvelopeError, messages.ControlError):
            return
        if kept is not None:
            at_once(self.process.keeper.taking(kept.records, step.address, unasked=kept.unasked))

    def ask_standing(self) -> None:
        """Ask whether this node was revoked, where it is time to."""
        process = self.process
        quiet, revoked = process.news.quiet(process.now), process.revoked
        for entry in self._standing.look(process.roster, process.now, quiet=quiet, revoked=revoked):
            self.ask_revoked(entry.member.node_id)

    def ask_revoked(self, of: NodeId, about: NodeId | None = None) -> None:
        """`channels.ask_standing`: any node may ask whether it, or another one, was revoked."""
        process, sim = self.process, self.process.sim
        machine = sim.by_id[of]
        if machine.process is None or machine.stalled:
            return
        if not sim.network.begins(process.machine.index, machine.index):
            return
        question = (process.me if about is None else about) + process.revocations.plea()
        standing = machine.process.keeper.answer_standing(question, process.machine.address)

        def heard() -> None:
            if standing:
                process.keeper.take_standing(standing, about)

        sim.at_process(process, sim.hop() + sim.hop(), heard)
