# SPDX-License-Identifier: GPL-3.0-or-later
"""What AEGIS sees of a node's host, and its safe fixes. Both block in a thread: files and /proc are read, and
``nft`` and such are run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import msgspec
import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.hostcheck.scan import scan
from phantommesh.hostcheck.seen import HostSeen
from phantommesh.nursery.host import mending, scanning
from phantommesh.nursery.host.scanning import Where
from phantommesh.nursery.parts import Parts

_THREAD: Final = trio.lowlevel.RunVar[trio.CapacityLimiter]("AEGIS's thread")


async def look(parts: Parts) -> HostSeen:
    """Take the snapshot, as ``phantommesh doctor`` does. A node that runs knows better than the kernel
    whether its clock is right, by the clocks of members (`node/clocks.py`): that is left to it."""
    seen = await _scan(_where(parts))
    return msgspec.structs.replace(seen, clock_synchronised=None)


async def mend(parts: Parts, rule: str) -> None:
    """Carry out the safe fixes of a rule's findings, as they are now. Raises PhantomMeshError where one could
    not be carried out; the others have been then."""
    seen = await _scan(_where(parts))

    def run() -> None:
        errors = list[PhantomMeshError]()
        for one in scan(seen):
            if one.rule == rule and one.mend is not None:
                try:
                    mending.carry_out(one.mend, seen.interfaces)
                except PhantomMeshError as error:
                    errors.append(error)
        if errors:
            raise errors[0]

    await trio.to_thread.run_sync(run)


async def _scan(where: Where) -> HostSeen:
    """Take the snapshot in a thread. Where the thread hangs, say on a file system that does not answer, it is
    left behind when this is cancelled; another begins when it has ended, so no more than one hangs."""
    try:
        limiter = _THREAD.get()
    except LookupError:
        limiter = trio.CapacityLimiter(1)
        _THREAD.set(limiter)
    return await trio.to_thread.run_sync(scanning.look, where, abandon_on_cancel=True, limiter=limiter)


def _where(parts: Parts) -> Where:
    settings = parts.settings
    return Where(
        parts.state.state.path,
        settings.file or Path(os.devnull),
        settings.socket,
        node=os.getpid(),
        config=settings.config,
    )
