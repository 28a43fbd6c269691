# SPDX-License-Identifier: GPL-3.0-or-later
"""The group keys while they change: taken in, promoted in time, kept on disk, made anew by an authority."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import time

import structlog
import trio

from phantommesh.node.groupkeys import Change, HeldKeys
from phantommesh.nursery.keeping.saver import Patience, Saver
from phantommesh.state import directory
from phantommesh.state.start import NodeState
from phantommesh.trust.groupkey import GroupKey, make_group_key
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
LOOK = 1.0  # s between an authority's looks at whether a key is due
SELDOM = 15.0  # s between looks of others. They wake when a key comes, is to be promoted or to be retired

log = structlog.get_logger("phantommesh.groupkeys")


class GroupKeys:
    """Runs one `HeldKeys`: gives it the clock, the disk and a thread to sign in. ``changed`` is called when
    the admission secrets that come with the keys are others than before."""

    def __init__(self, node: NodeState, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self._node = node
        self._saver = Saver(self._write)
        self.disk = Patience(log, "group keys")
        self._held = HeldKeys(node.identity.node_id, node.root, node.revocations, node.admission)
        if node.keyring:
            self._held.restore(node.keyring, trio.current_time(), time())
        self.ring = self._held.ring
        self.digest, self.encode = self._held.digest, self._held.encode

    @property
    def active_id(self) -> bytes:
        """The id of the key that this node sends with."""
        return self._held.active_id

    def merge(self, keys: bytes, active: bytes, member: NodeId) -> bool:
        """Take in what another ``member`` gave out, after its revocations, and say whether a key is new here.
        ``active`` is what it sends with: so may we. A key that does not hold is logged and left out. Raises
        TrustError where none can be read."""
        merged = self._held.merge(keys, active, trio.current_time(), time())
        for error in merged.refused:
            log.warning("group key refused", peer=format_node_id(member), error=str(error))
        self._note(merged.change)
        return merged.new

    def in_use(self, key_id: bytes) -> None:
        """Another member sends with this key, so we may too."""
        self._note(self._held.in_use(key_id, trio.current_time(), time()))

    def _note(self, change: Change) -> None:
        if change.keys:
            self._saver.mark()
        if change.secrets:
            self._changed()

    def due(self) -> bool:
        """Whether an authority is to make a key now."""
        return self._held.due(time()) is not None

    async def rotate(self) -> GroupKey | None:
        """Make the key that is due, on disk before anybody hears of it. Raises StateError.

        Returns None where none is due, or this node is no authority in good standing.
        """
        node = self._node
        async with self._saver.lock:
            authority, epoch = node.authority, self._held.due(time())
            if authority is None or epoch is None:
                return None
            key = await trio.to_thread.run_sync(
                partial(make_group_key, authority, epoch, node.revocations, time())
            )
            await trio.to_thread.run_sync(node.state.write, directory.KEYRING, self.ring.encode(key))
            self._note(self._held.install(key, trio.current_time(), time()))
        log.info("group key made", epoch=epoch, key=key.id.hex())
        return key

    async def run(self) -> None:
        """Promote, retire, make and save what is due, until cancelled."""
        while True:
            before = self.active_id
            self._note(self._held.tick(trio.current_time(), time()))
            if self.active_id != before:
                log.info("group key in use", key=self.active_id.hex())
            async with self.disk.patiently():
                node = self._node
                if node.authority is not None and self._held.ours(node.roster, trio.current_time(), time()):
                    await self.rotate()
                await self.save()
            look = LOOK if node.authority is not None else SELDOM
            with trio.move_on_after(min(look, max(0.0, self.ring.deadline - trio.current_time()))):
                await self._saver.marked()

    async def save(self) -> None:
        """Write the keys if they have changed. Raises StateError."""
        await self._saver.save()

    async def _write(self) -> None:
        files = {
            directory.KEYRING: self.ring.encode(),
            directory.ADMISSION_KEY: self._node.admission.encode(),
        }
        for name, encoded in files.items():
            await trio.to_thread.run_sync(self._node.state.write, name, encoded)
