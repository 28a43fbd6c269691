# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the rules in the kernel that mark packets by the cgroup of their socket (`scatter/cgroups.py`).

A service that starts anew has another cgroup of the same path, and the kernel tells nobody. So the numbers of
the paths are looked at twice a second, while there are intents by cgroup.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.faults import FaultKind
from phantommesh.nursery.host import cgroups as host
from phantommesh.nursery.host.nft import Fingerprint, NftError, Table
from phantommesh.scatter import cgroups

UNKNOWN_CGROUP: Final = FaultKind("intent-unknown-cgroup", "low")
CGROUPS_UNSEEN: Final = FaultKind("intent-cgroups-unseen", "medium")

# Tuning.
LOOK: Final = 0.5  # s between looks at the paths
CHECK: Final = 5.0  # s between looks at whether the table is there as it was left
RETRY: Final = 10.0  # s between attempts at what the kernel refused

_FIX: Final = "needs Linux 5.13 with nft_socket, nft 0.9.9, and cgroups of version 2 at /sys/fs/cgroup"

log = structlog.get_logger("phantommesh.scatter")


class CgroupMarks:
    """The marks of one node. ``device`` is the mesh's own interface, ``wanted`` returns the paths of the
    cgroups that intents name. ``missing`` are those of them that are not there, and ``problem`` says why the
    kernel does not mark by cgroup."""

    def __init__(self, device: str, wanted: Callable[[], Sequence[str]]) -> None:
        self._device, self._wanted = device, wanted
        self.missing: frozenset[str] = frozenset()
        self.problem: PhantomMeshError | None = None
        self._installed: dict[str, int] = {}
        self._seen: Fingerprint | None = None
        self._checked = 0.0

    async def run(self) -> None:
        """Mark until cancelled; the table stays, as the scatter rules do. A failure is logged once and tried
        again."""
        while True:
            pause = LOOK
            try:
                await self.look()
            except PhantomMeshError as error:
                if str(self.problem) != str(error):
                    log.warning("packets are not told by cgroup", error=str(error), fix=error.fix)
                self.problem, self._seen, pause = error, None, RETRY
            await trio.sleep(pause)

    async def look(self) -> None:
        """Have the kernel mark by the cgroups as they are now. Raises PhantomMeshError."""
        paths, table = self._wanted(), Table(cgroups.FAMILY, cgroups.table_name(self._device))
        if not paths:
            if self._seen is not None:
                await table.remove()
            self._seen, self._installed, self.missing, self.problem = None, {}, frozenset(), None
            return
        mounted = host.mount()
        if mounted is None:
            raise NftError("this machine has no cgroups of version 2", fix=_FIX)
        there = host.numbers_of(mounted, paths)
        self.missing = frozenset(paths) - there.keys()
        now = trio.current_time()
        if self._seen is not None and there == self._installed:
            if now < self._checked + CHECK:
                return
            self._checked = now
            if await table.fingerprint() == self._seen:
                return
        try:
            await table.install(cgroups.render(self._device, mounted, there))
        except NftError as error:
            raise NftError(str(error), fix=_FIX, code=error.code) from error
        self._seen, self._installed, self._checked = await table.fingerprint(), there, now
        if self.problem is not None:
            self.problem = None
            log.info("packets are told by cgroup again")
