# SPDX-License-Identifier: GPL-3.0-or-later
"""The group keys while they change: taken in, promoted in time, kept on disk, made anew by an authority."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import time

import structlog
import trio

from phantommesh import statedir
from phantommesh.groupkey import (
    NO_KEY,
    GroupKey,
    Keyring,
    Turn,
    encode_keys,
    gossip_digest,
    greatest_epoch,
    make_group_key,
    next_epoch,
    take_keys,
)
from phantommesh.identity import NodeId, format_node_id
from phantommesh.nodestate import NodeState
from phantommesh.nursery.saver import Saver, patiently
from phantommesh.trust import Role

# Tuning.
LOOK = 1.0  # s between looks at whether a key is due

log = structlog.get_logger("phantommesh.groupkeys")


class GroupKeys:
    """This node's `Keyring`, and the admission secrets that come with its keys. ``changed`` is called when
    those are others than before."""

    def __init__(self, node: NodeState, changed: Callable[[], None] = lambda: None) -> None:
        self.ring = Keyring()
        self._changed = changed
        self._node = node
        self._saver = Saver(self._write)
        self._turn = Turn()
        self.ring.shun(node.revocations)
        if node.keyring:
            self.ring.restore(node.keyring, trio.current_time(), greatest_epoch(node.root, time()))
            node.admission.follow(self.ring.keys, self.ring.active, time())

    def digest(self) -> bytes:
        """Eight bytes that differ between nodes with other revocations or another newest key."""
        return gossip_digest(self._node.revocations, self.ring)

    def encode(self) -> bytes:
        """Every key, for a member in good standing."""
        return encode_keys(self.ring.keys)

    @property
    def active_id(self) -> bytes:
        """The id of the key that this node sends with."""
        return NO_KEY if self.ring.active is None else self.ring.active.id

    def merge(self, keys: bytes, active: bytes, member: NodeId) -> bool:
        """Take in what another ``member`` gave out, after its revocations, and say whether a key is new here.
        ``active`` is what it sends with: so may we. A key that does not hold is logged and left out. Raises
        TrustError where none can be read."""
        node = self._node
        came, refused = take_keys(self.ring, keys, node.root, node.revocations, trio.current_time(), time())
        for error in refused:
            log.warning("group key refused", peer=format_node_id(member), error=str(error))
        self.in_use(active)
        if came:
            self._note_change()
        return came

    def in_use(self, key_id: bytes) -> None:
        """Another member sends with this key, so we may too."""
        if self.ring.promote(key_id, trio.current_time()):
            self._note_change()

    def _note_change(self) -> None:
        self._saver.mark()
        if self._node.admission.follow(self.ring.keys, self.ring.active, time()):
            self._changed()

    async def rotate(self) -> GroupKey | None:
        """Make the key that is due, on disk before anybody hears of it. Raises StateError.

        Returns None where none is due, or this node is no authority in good standing.
        """
        node = self._node
        async with self._saver.lock:
            authority = node.authority
            epoch = next_epoch(self.ring, node.revocations, time())
            if authority is None or epoch is None or node.identity.node_id in node.revocations:
                return None
            key = await trio.to_thread.run_sync(
                partial(make_group_key, authority, epoch, node.revocations, time())
            )
            await trio.to_thread.run_sync(node.state.write, statedir.KEYRING, self.ring.encode(key))
            self.ring.install(key, trio.current_time())
            self._note_change()  # the ring may have let others go for it, or have begun to send with it
        log.info("group key made", epoch=epoch, key=key.id.hex())
        return key

    async def run(self) -> None:
        """Promote, retire, make and save what is due, until cancelled."""
        while True:
            before = self.active_id
            if self.ring.tick(trio.current_time()):
                self._note_change()
            if self.active_id != before:
                log.info("group key in use", key=self.active_id.hex())
            async with patiently(log, "group keys"):
                if self._is_ours_to_make():
                    await self.rotate()
                await self.save()
            with trio.move_on_after(min(LOOK, max(0.0, self.ring.deadline - trio.current_time()))):
                await self._saver.marked()

    async def save(self) -> None:
        """Write the keys if they have changed. Raises StateError."""
        await self._saver.save()

    async def _write(self) -> None:
        files = {
            statedir.KEYRING: self.ring.encode(),
            statedir.ADMISSION_KEY: self._node.admission.encode(),
        }
        for name, encoded in files.items():
            await trio.to_thread.run_sync(self._node.state.write, name, encoded)

    def _is_ours_to_make(self) -> bool:
        node, wall = self._node, time()
        if node.authority is None:
            return False
        due = next_epoch(self.ring, node.revocations, wall) is not None
        authorities = [
            entry.member.node_id
            for entry in node.roster
            if entry.member.role is Role.AUTHORITY and entry.valid(wall)
        ]
        return self._turn.ours(due, node.identity.node_id, authorities, trio.current_time())
