# SPDX-License-Identifier: GPL-3.0-or-later
"""The roster of this node while it changes: what is added, who waits for it, what is on disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from time import time

import structlog
import trio

from phantommesh import statedir
from phantommesh.errors import PhantomMeshError
from phantommesh.identity import NodeId, format_node_id
from phantommesh.nodestate import NodeState
from phantommesh.records import PossessionError, SignedRecord
from phantommesh.revocation import Revocation
from phantommesh.statedir import StateError

# Tuning.
SAVE_AGAIN = 5.0  # s after the disk refused

log = structlog.get_logger("phantommesh.roster")


class RosterKeeper:
    """This node's roster. ``changed`` is called after every change, which is then also on its way to disk.

    ``dropped`` counts the records that were refused, by reason.
    """

    def __init__(self, node: NodeState, changed: Callable[[], None]) -> None:
        self.roster = node.roster
        self.dropped: Counter[str] = Counter()
        self._reported: set[NodeId] = set()
        self._node, self._changed = node, changed
        self._change = trio.Event()
        self._dirty = trio.Event()
        self._saving = trio.Lock()

    def add(self, signed: SignedRecord) -> bool:
        """Keep a record if it is newer. Raises TrustError or RecordError."""
        if not self._add(signed):
            self._report_equivocations()
            return False
        self._note_change()
        return True

    def _add(self, signed: SignedRecord) -> bool:
        try:
            return self.roster.add(signed, time())
        except PossessionError:
            self.dropped["record-possession"] += 1
            raise
        except PhantomMeshError:
            self.dropped["record"] += 1
            raise

    def revoke(self, revocation: Revocation) -> bool:
        """Keep a revocation; say whether it is new here. Raises TrustError."""
        if not self._node.revocations.add(revocation, time()):
            return False
        self._note_change()
        return True

    @property
    def revoked(self) -> Revocation | None:
        """The revocation of this node itself."""
        return self._node.revocations.get(self._node.identity.node_id)

    async def changes(self) -> None:
        """Return at the next change of roster or revocations."""
        await self._change.wait()

    def _note_change(self) -> None:
        self._report_equivocations()
        self._change.set()
        self._change = trio.Event()
        self._dirty.set()
        self._changed()

    def _report_equivocations(self) -> None:
        for node_id in self.roster.equivocations.keys() - self._reported:
            self._reported.add(node_id)
            log.error(
                "a node signed two different records with one number: it was copied, or it lies",
                node_id=format_node_id(node_id),
                fix="find out which, and revoke it if in doubt",
            )

    def take_revocations(self, encoded: bytes) -> bool:
        """Add the revocations that another member has; say whether one is new here. Raises TrustError where
        they do not hold."""
        if not self._node.revocations.take(encoded, time()):
            return False
        self._note_change()
        return True

    async def take(self, records: Iterable[bytes]) -> int:
        """Add encoded records that somebody sent; those that do not hold are left out, and logged once.
        Return how many changed the roster, which is told once."""
        came, refused = 0, list[str]()
        try:
            for data in records:
                await trio.lowlevel.checkpoint()  # each takes about two milliseconds to verify
                try:
                    came += self._add(SignedRecord.decode_untrusted(data))
                except PhantomMeshError as error:
                    refused.append(str(error))
        finally:
            if refused:
                log.warning("records refused", count=len(refused), error=refused[0])
            self._report_equivocations()
            if came:
                self._note_change()
        return came

    async def save(self) -> None:
        """Write what has changed since the last time; it is on disk when this returns. Raises StateError."""
        async with self._saving:
            if not self._dirty.is_set():
                return
            self._dirty = trio.Event()
            try:
                for name, encoded in (
                    (statedir.REVOCATIONS, self._node.revocations.encode()),
                    (statedir.ROSTER, self.roster.encode_kept()),
                ):
                    await trio.to_thread.run_sync(self._node.state.write, name, encoded)
            except BaseException:
                self._dirty.set()
                raise

    async def keep(self) -> None:
        """Write the roster whenever it has changed, until cancelled. A full disk does not end the node."""
        while True:
            await self._dirty.wait()
            try:
                await self.save()
            except StateError as error:
                log.error("roster not written", error=str(error), fix=error.fix)
                await trio.sleep(SAVE_AGAIN)
