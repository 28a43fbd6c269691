# SPDX-License-Identifier: GPL-3.0-or-later
"""Drains this node: `node.draining` decides, on this node's record, disk and counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import time
from typing import Final, Literal

import msgspec
import structlog
import trio

from phantommesh.faults import Fault, FaultKind
from phantommesh.node.draining import LONGEST, Drained, Draining, Work
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.due import alive, moment
from phantommesh.records.record import Condition
from phantommesh.records.roster import Entry
from phantommesh.state.directory import DRAIN, StateDir
from phantommesh.state.files import StateError
from phantommesh.trust.identity import NodeId

NOT_KEPT: Final = FaultKind("drain-not-kept", "low")

# Tuning.
LOOK: Final = 0.5  # s between looks at what is forwarded, while the node drains
WATCH: Final = 60.0  # s between looks at who drains: turns are of a day

log = structlog.get_logger("phantommesh.draining")


class Drainer:
    """The draining of one node. ``entries`` gives the other members; ``work`` what the node does for others
    now; ``publish`` has the record follow `condition`; ``told`` is called with each change (``begun``,
    ``drained`` or ``ended``), and why. ``health`` and ``policy`` are what the record says beside."""

    def __init__(
        self, me: NodeId, region: str, state: StateDir, *,
        entries: Callable[[], Sequence[Entry]],
        work: Callable[[], Work],
        publish: Callable[[], None],
    ) -> None:  # fmt: skip
        self.machine = Draining(me, region, _kept(state))
        self.health, self.policy = 0, tuple[int, ...]()
        self.problem: StateError | None = None
        self.told: Callable[[str, str], None] = lambda kind, text: None
        self._state, self._entries, self._work, self._publish = state, entries, work, publish
        self.able = True
        """Whether all but the draining speaks for this node's readiness."""
        self._bell, self._by_nexus = Bell(), 0.0
        self.taken_back = float("-inf")
        """When the operator last said, on trio's clock, that this node is to be at work."""
        self.gave_way = ""
        """Why this node stopped draining by itself the last time, if it did."""

    @property
    def on(self) -> bool:
        """Whether this node drains."""
        return bool(self.by)

    @property
    def by(self) -> Literal["", "operator", "nexus"]:
        """By whose word this node drains, if it does."""
        return "operator" if self.machine.on else "nexus" if self._by_nexus else ""

    def by_agent(self, drains: bool) -> None:
        """Drain on an agent's word, or no more. That does not outlive this run, and what the operator has
        said stands beside it."""
        if drains != bool(self._by_nexus):
            self._by_nexus = moment().wall + LONGEST if drains else 0.0
            self._publish()

    def condition(self) -> Condition:
        """What the record says of how this node stands."""
        drained = self.machine.drained
        until = max(self._by_nexus, 0.0 if drained is None else drained.until)
        return Condition(self.on, self.health, self.policy, int(min(until, time() + LONGEST)))

    def holding(self) -> list[Entry]:
        """The members of this node's region that drain, so that it may not."""
        at = moment()
        return self.machine.holding(self._entries(), at.now, at.wall)

    def idle(self) -> bool:
        """Whether this node drains, and forwards nothing for others any more."""
        return self.machine.idle(trio.current_time())

    def left(self) -> Work:
        """What this node does for others now."""
        return self._work()

    def faults(self) -> list[Fault]:
        """Why a restart would forget that this node drains."""
        if self.problem is None:
            return []
        return [NOT_KEPT.fault(f"that this node drains is not on disk: {self.problem}", self.problem.fix)]

    def check(self, *, force: bool) -> None:
        """Raise DrainRefusedError where `begin` would."""
        at = moment()
        self.machine.check(self._entries(), force=force, now=at.now, wall=at.wall)

    async def begin(self, seconds: float, *, force: bool = False) -> None:
        """Drain for so long at most, from now on or still. Raises DrainRefusedError."""
        at, was = moment(), self.machine.on
        self.machine.begin(self._entries(), at.wall + seconds, force=force, now=at.now, wall=at.wall)
        await self._keep()
        if not was:
            log.warning("this node drains: others are to choose other routers and relays")
            self.told("begun", "")
        self.gave_way = ""
        self._publish()
        self._bell.ring()

    async def end(self, why: str = "") -> bool:
        """Be at work again; return whether this node drained."""
        if not self.machine.end():
            return False
        await self._keep()
        log.warning("this node is at work again", why=why)
        self.told("ended", why)
        self._publish()
        return True

    async def take_back(self) -> None:
        """The operator wants this node to be at work: whoever had it drain, it does no more. NEXUS heeds
        `taken_back`."""
        self.taken_back = trio.current_time()
        await self.end("somebody took it back")
        self.by_agent(False)

    async def run(self) -> None:
        """Look at what is forwarded while this node drains, and else at who does, until cancelled."""
        said = False
        while True:
            if not self.machine.on:
                said = False
                self.holding()
                alive(WATCH)
                with trio.move_on_after(WATCH):
                    await self._bell.wait()
                continue
            at = moment()
            self.machine.count(self._work(), at.now)
            if self.machine.clamp(at.wall):
                log.warning(
                    "this node drained for too long, by its clock: it drains for a day at most from now"
                )
                await self._keep()
                self._publish()
            if self.machine.over(at.wall):
                await self.end("its time is over")
                continue
            if name := self.machine.gives_way(self._entries(), at.now, at.wall):
                self.gave_way = f"{name} of the same region began to drain at the same moment"
                await self.end(self.gave_way)
                continue
            if self.idle() and not said:
                said = True
                log.info("this node forwards nothing for others any more")
                self.told("drained", "")
            alive(LOOK)
            await trio.sleep(LOOK)

    async def _keep(self) -> None:
        kept = self.machine.drained
        try:
            if kept is None:
                await trio.to_thread.run_sync(lambda: (self._state.path / DRAIN).unlink(missing_ok=True))
            else:
                await trio.to_thread.run_sync(self._state.write, DRAIN, msgspec.json.encode(kept))
            self.problem = None
        except (StateError, OSError) as error:
            self.problem = (
                error
                if isinstance(error, StateError)
                else StateError(str(error), fix="look at the state directory and its file system")
            )
            log.error("draining is not written", error=str(self.problem), fix=self.problem.fix)


def _kept(state: StateDir) -> Drained | None:
    """What an earlier run has left. A file that cannot be read counts as none."""
    try:
        return msgspec.json.decode((state.path / DRAIN).read_bytes(), type=Drained)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.warning("draining of an earlier run is not known", error=type(error).__name__)
        return None
