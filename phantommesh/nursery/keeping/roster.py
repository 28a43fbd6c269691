# SPDX-License-Identifier: GPL-3.0-or-later
"""The roster of this node while it changes: who waits for changes, the turns of the loop, its file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from math import inf
from typing import TypeVar

import structlog
import trio

from phantommesh.endpoint import Address
from phantommesh.node.intake import BROKEN, Intake
from phantommesh.node.steps import Told
from phantommesh.nursery import unexpected
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.saver import Patience
from phantommesh.nursery.logs import tell
from phantommesh.records.roster import Entry
from phantommesh.state import directory
from phantommesh.state.start import NodeState
from phantommesh.trust.identity import NodeId
from phantommesh.trust.rootword import RootWord
from phantommesh.trust.statements import Held

# Tuning.
LOOK = 1.0  # s between looks at records that wait
# bytes a second that the writes of the roster, and of the revocations, may take on the average. After each
# there is a pause, the longer the more was written, from 2 s to 10 min. The roster's are what changed, and
# now and then all of it: see `rosterlog`. The revocations are written whole each time; the first few writes
# that come in a row do not wait.
DISK_RATE = 64 * 1024
LEAST_PAUSE, MOST_PAUSE = 2.0, 600.0  # s
AHEAD = 20.0  # s of such pauses that revocations may run up

T = TypeVar("T")

log = structlog.get_logger("phantommesh.roster")


class RosterKeeper(Intake):
    """This node's roster. ``changed`` is called after every change, which is then also on its way to disk.

    `Intake` says what is taken in. Changes by others' records and revocations are written with pauses. A
    crash loses no more than others have too: a newcomer, a revocation that is made here and this node's own
    record are written at once.
    """

    def __init__(self, node: NodeState, changed: Callable[[], None]) -> None:
        super().__init__(node.identity.node_id, node.roster, node.revocations, moment)
        self.disk = Patience(log, "roster")
        self._node, self._told = node, changed
        self._change = Bell()
        self._unsaved: set[str] = set()  # files; the roster's own changes are in the log
        self._log = node.roster_log
        self._dirty = trio.Event()
        self._saving = trio.Lock()
        # By file, until when no change by others is reason to write it.
        self._rest_until = dict.fromkeys((directory.ROSTER, directory.REVOCATIONS), -inf)
        self._urgent = False  # this node's own record has changed
        self._waiting = trio.Event()

    def _kept(self, entry: Entry) -> None:
        self._log.note(entry)
        self._urgent |= entry.member.node_id == self._me

    def _changed(self, *, revoked: bool) -> None:
        self._change.ring()
        if revoked:  # the roster's file has revoked nodes too, so it stays as it is
            self._unsaved.add(directory.REVOCATIONS)
        self._dirty.set()
        self._told()

    def _waits(self) -> None:
        self._waiting.set()

    def _tell(self, told: Told) -> None:
        tell(told)

    def _unexpected(self, error: Exception, about: dict[str, str]) -> None:
        unexpected.note(BROKEN, error, **about)

    async def changes(self) -> None:
        """Return at the next change of roster or revocations."""
        await self._change.wait()

    async def take(self, records: Iterable[bytes], of: NodeId | Address, *, unasked: int = 0) -> int:
        """Do `taking`."""
        return await in_turns(self.taking(records, of, unasked=unasked))

    async def hear(self, member: NodeId, parts: Iterable[bytes]) -> bool:
        """Do `hearing`."""
        return await in_turns(self.hearing(member, parts))

    async def hold(self, verified: Iterable[RootWord | Held]) -> bool:
        """Do `holding`. Raises TrustError."""
        return await in_turns(self.holding(verified))

    async def save(self) -> None:
        """Write what has changed since the last time; it is on disk when this returns. Raises StateError."""
        await self._save((directory.REVOCATIONS, directory.ROSTER))

    async def _save(self, names: Iterable[str]) -> None:
        async with self._saving:
            for name in names:
                if name not in self._changed_files():
                    continue
                before = self._rest_until[name]
                if name == directory.ROSTER:
                    written, before = await self._save_roster(), -inf
                else:
                    written = await self._save_revocations()
                pause = min(MOST_PAUSE, max(LEAST_PAUSE, written / DISK_RATE))
                self._rest_until[name] = pause + max(trio.current_time(), before)

    async def _save_roster(self) -> int:
        job, urgent = self._log.take(self.roster), self._urgent
        self._urgent = False
        try:
            written = await trio.to_thread.run_sync(self._log.write, job)
        except BaseException:
            self._log.give_back(job)
            self._urgent |= urgent
            raise
        finally:
            self._report_replaced()
        if (refused := self._log.refused) is not None:
            log.warning("roster not compacted: its file goes on growing", error=str(refused), fix=refused.fix)
        return written

    def _report_replaced(self) -> None:
        if (replaced := self._log.replaced) is not None:
            log.warning(
                "the roster's file is written anew from what this node knows",
                error=str(replaced),
                fix=replaced.fix,
            )

    async def _save_revocations(self) -> int:
        self._unsaved.discard(directory.REVOCATIONS)
        try:
            encoded = await trio.to_thread.run_sync(self._node.revocations.encoder())
            await trio.to_thread.run_sync(self._node.state.write, directory.REVOCATIONS, encoded)
        except BaseException:
            self._unsaved.add(directory.REVOCATIONS)
            raise
        return len(encoded)

    def _changed_files(self) -> set[str]:
        return self._unsaved | ({directory.ROSTER} if self._log.unsaved else set())

    async def keep(self) -> None:
        """Write the roster and the revocations when they have changed, and let records in that wait, until
        cancelled. A full disk does not end the node."""
        self._report_damage()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._admit)
            while True:
                self._dirty = trio.Event()
                due = {name: self._due(name) for name in self._changed_files()}
                # Revocations come first: a crash between the two leaves no revoked node behind.
                if names := sorted(name for name in due if due[name] <= trio.current_time()):
                    async with self.disk.patiently():
                        await self._save(names)
                    continue
                with trio.move_on_at(min(due.values(), default=inf)):
                    await self._dirty.wait()

    def _report_damage(self) -> None:
        path = str(self._node.state.path / directory.ROSTER)
        if self._log.damage:
            log.error(
                "a part of the roster's file cannot be read: other members give again what it held",
                file=path,
                error=str(self._log.damage),
                members=len(self.roster),
                fix="nothing, after a power cut: the file is written anew; else check the disk",
            )
        if self._log.torn:
            log.warning(
                "the end of the roster's file is no whole record: a write that was cut off, or damage",
                file=path,
                bytes=self._log.torn,
                members=len(self.roster),
                fix="nothing, after a crash or a power cut: other members give it again; else check the disk",
            )

    def _due(self, name: str) -> float:
        """When a file that has changed is written."""
        if name == directory.ROSTER:
            return -inf if self._urgent else self._rest_until[name]
        return self._rest_until[name] - AHEAD

    async def _admit(self) -> None:
        while True:
            await self._waiting.wait()
            await trio.sleep(LOOK)
            self.let_in()
            if not self.roster.waiting:
                self._waiting = trio.Event()


async def in_turns(work: Generator[None, None, T]) -> T:
    """Do work that takes long, with a turn of the loop at each of its steps. Raises the work's errors."""
    with closing(work):
        while True:
            try:
                next(work)
            except StopIteration as end:
                found: T = end.value
                return found
            await trio.lowlevel.checkpoint()
