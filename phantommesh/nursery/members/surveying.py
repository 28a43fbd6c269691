# SPDX-License-Identifier: GPL-3.0-or-later
"""Surveys the mesh: asks members for their links, and has the graph analysed in a thread."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import time
from typing import Final

import structlog
import trio

from phantommesh.control import messages
from phantommesh.membership.machine import Membership
from phantommesh.node import surveying
from phantommesh.node.peers import Peers
from phantommesh.node.surveying import Sweep
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members.calling import Caller
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.nursery.unexpected import left_out
from phantommesh.paths.machine import Paths
from phantommesh.records.roster import Entry
from phantommesh.routing import drift
from phantommesh.routing.graph import Analysis, Finding, Station, analyse
from phantommesh.routing.neighbours import Look, link_of
from phantommesh.routing.ways import Ways
from phantommesh.state import directory
from phantommesh.state.files import atomic_write
from phantommesh.state.start import NodeState
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
AT_ONCE: Final = 8  # members that are asked at once when an operator waits
ANSWER: Final = 5.0  # s that each has
FRESH: Final = 30.0  # s between two sweeps that operators ask for
SETTLE: Final = 60.0  # s from the start to the first sweep: until then links come up one after the other
LINKS: Final = 2_000  # that are kept to be shown, the worst first

log = structlog.get_logger("phantommesh.topology")


@dataclass(frozen=True, slots=True)
class Known:
    """The newest analysis. ``at`` and ``took`` are on trio's clock, ``thought`` is how many seconds the
    analysis took; ``heard`` and ``asked`` count members, this node aside; ``links`` how many there are."""

    stations: dict[NodeId, Station]
    analysis: Analysis
    at: float
    took: float
    thought: float
    heard: int
    asked: int
    links: int


@dataclass(slots=True, eq=False)
class Surveying:
    """``entries`` gives the members, ``gone`` those that are not to be asked. ``look`` is this node's own
    link to one. ``own`` is this node's entry."""

    me: NodeId
    caller: Caller
    entries: Callable[[], Iterable[Entry]]
    own: Callable[[], Entry | None]
    gone: Callable[[NodeId], bool]
    look: Look
    path: Path
    known: Known | None = None
    dropped: Counter[str] = field(default_factory=Counter)
    _days: drift.Days = field(default_factory=drift.Days)
    _asked: trio.Event = field(default_factory=trio.Event)
    _done: Bell = field(default_factory=Bell)

    @property
    def findings(self) -> Sequence[Finding]:
        """What is weak, the worst first."""
        return () if self.known is None else self.known.analysis.findings

    def answer(self, request: messages.AskNeighbours) -> messages.NeighboursAre:
        """Answer a member."""
        return surveying.answer(self.me, self._there(), self.look, request)

    async def ask(self, patience: float) -> None:
        """Have a sweep made soon, unless the newest is fresh; return when it is done, or when patience
        ends."""
        if self.known is not None and trio.current_time() - self.known.at < FRESH:
            return
        self._asked.set()
        with trio.move_on_after(patience):
            await self._done.wait()

    async def run(self) -> None:
        """Sweep until cancelled."""
        self._days = await trio.to_thread.run_sync(self._read)
        due = trio.current_time() + SETTLE
        while True:
            with trio.move_on_at(due):
                await self._asked.wait()
            hurried, self._asked = self._asked.is_set(), trio.Event()
            there = self._there()
            if hurried or len(there) >= surveying.ENOUGH:
                await self._sweep(there, hurried=hurried)
                self._asked = trio.Event()  # whoever asked meanwhile has what this one found
            due = trio.current_time() + surveying.period(len(there))

    def _there(self) -> Collection[NodeId]:
        members = {entry.member.node_id for entry in self.entries()}
        return {member for member in members if not self.gone(member)}

    async def _sweep(self, there: Collection[NodeId], *, hurried: bool) -> None:
        began = trio.current_time()
        sweep = Sweep(self.me, there, os.urandom(surveying.SALT))
        pause = 0.0 if hurried else surveying.pace(len(there))
        try:
            for questions in (sweep.begin(self.look), None):
                await self._ask_all(sweep, questions or sweep.confirm(self.look), pause)
            if sweep.enough:
                await self._think(sweep, began)
        finally:
            self._done.ring()

    async def _ask_all(
        self, sweep: Sweep, questions: Sequence[tuple[NodeId, messages.AskNeighbours]], pause: float
    ) -> None:
        limit = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for member, question in questions:
                if not self._asked.is_set():  # else an operator waits
                    with trio.move_on_after(pause):
                        await self._asked.wait()
                await limit.acquire_on_behalf_of(member)
                nursery.start_soon(self._ask, sweep, member, question, limit)

    async def _ask(
        self, sweep: Sweep, member: NodeId, question: messages.AskNeighbours, limit: trio.CapacityLimiter
    ) -> None:
        told = format_node_id(member)
        try:
            with left_out(self.dropped, "neighbours-broken", "a member's links were left out", peer=told):
                try:
                    with trio.fail_after(ANSWER):
                        async with self.caller.call(member) as client:
                            answer = await client.ask(question)
                    if isinstance(answer, messages.NeighboursAre):
                        sweep.heard(member, answer)
                except (StreamError, trio.TooSlowError) as error:
                    log.debug("a member does not tell its links", peer=told, error=str(error))
        finally:
            limit.release_on_behalf_of(member)

    async def _think(self, sweep: Sweep, began: float) -> None:
        own, wall = self.own(), time()
        entries = [entry for entry in self.entries() if entry.member.node_id in sweep.members]
        there = surveying.stations([*entries, *([] if own is None else [own])])
        held = {} if self.known is None else self.known.analysis.detours
        survey = sweep.survey(there, wall, drift.yesterday(self._days, wall), held)
        swept = trio.current_time()
        found = await trio.to_thread.run_sync(analyse, survey, abandon_on_cancel=True)
        now = trio.current_time()
        worst = sorted(found.edges, key=lambda ends: -found.edges[ends].rtt)[:LINKS]
        shown = replace(found, edges={ends: found.edges[ends] for ends in worst}, summary=None)
        self.known = Known(
            there, shown, now, swept - began, now - swept, len(sweep.words) - 1, len(sweep.members),
            len(found.edges),
        )  # fmt: skip
        if found.summary is not None:
            days = drift.follow(self._days, found.summary)
            if days != self._days:
                self._days = days
                await trio.to_thread.run_sync(self._write)

    def _read(self) -> drift.Days:
        try:
            with self.path.open("rb") as file:
                return drift.decode(file.read(drift.MAX_BYTES + 1))
        except OSError:
            return drift.Days()

    def _write(self) -> None:
        try:
            atomic_write(self.path, drift.encode(self._days))
        except OSError as error:
            log.warning("what the mesh is like is not kept", error=str(error))


def make_surveying(
    state: NodeState, keeper: RosterKeeper, caller: Caller, peers: Peers, membership: Membership,
    paths: Paths, ways: Ways,
) -> Surveying:  # fmt: skip
    """Make a node's survey of the mesh."""
    me = state.identity.node_id
    return Surveying(
        me, caller, lambda: peers.entries, lambda: keeper.roster.get(me), membership.gone,
        look=lambda peer: link_of(paths.view(peer, trio.current_time()), ways.taken(peer)),
        path=state.state.path / directory.TOPOLOGY,
    )  # fmt: skip
