# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads what the kernel counts of flows and calls (`scatter/flows.py`), and keeps that table in place.

The table comes with the first reading, and goes with the node. Flows are read only while the node's
interfaces send, or flows are remembered: an idle node asks the kernel for its calls alone, and not often.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import structlog
import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.host import traffic
from phantommesh.nursery.host.nft import Fingerprint, NftError, Table
from phantommesh.scatter import flows
from phantommesh.scatter.flows import FlowKey

# Tuning.
MOVED: Final = 4096  # bytes sent since the last look, below which nothing can be an elephant
CALLS_EVERY: Final = 2.0  # s between readings of the calls: what a beacon's distances are known to
CHECK: Final = 30.0  # s between looks at whether the table is there as it was left
RETRY: Final = 30.0  # s between attempts at what the kernel refused

Counts = Mapping[tuple[int, bytes], tuple[int, int]]
"""Packets and bytes by IP version and key of the kernel's."""

log = structlog.get_logger("phantommesh.flows")


class FlowCounts:
    """The counters of one node. ``names``: the dimensions' interfaces; ``own_ports``: UDP ports of the node's
    own probes; ``most`` returns how many entries each set may have."""

    def __init__(
        self, device: str, names: Collection[str], own_ports: Sequence[int], most: Callable[[], int]
    ) -> None:
        self.problem: PhantomMeshError | None = None
        self._device, self._names, self._own_ports, self._most = device, tuple(names), own_ports, most
        self._table = Table(flows.FAMILY, flows.table_name(device))
        self._seen: Fingerprint | None = None
        self._size = 0
        self._checked = self._called = self._failed = float("-inf")
        self._sent = 0
        self._some = False

    async def sent(self) -> Counts:
        """The flows into the overlay, sampled; none while nothing is sent, or the kernel does not count."""
        total = traffic.sent(self._names) or 0
        moved, self._sent = abs(total - self._sent) >= MOVED, total
        if not moved and not self._some:
            await trio.lowlevel.checkpoint()
            return {}
        found = await self._read(flows.SENT)
        self._some = bool(found)
        return found

    async def calls(self) -> Mapping[FlowKey, int] | None:
        """How often each call was made so far; None where it is not time to read that."""
        now = trio.current_time()
        if now < self._called + CALLS_EVERY:
            return None
        self._called = now
        found = await self._read(flows.CALLS)
        keys = {which: flows.decode_key(which[1], which[0]) for which in found}
        return {key: found[which][0] for which, key in keys.items() if key is not None}

    async def _read(self, sets: Mapping[int, str]) -> Counts:
        now = trio.current_time()
        if now < self._failed + RETRY:
            return {}
        try:
            await self._keep(now)
            read = await self._table.counters_of(*sets.values())
        except NftError as error:
            self._seen = None
            if error.code == errno.ENOENT and self._failed < now - RETRY:
                self._checked = float("-inf")  # somebody has removed it: it is made again at the next look
            self._fail(error, now)
            return {}
        self.problem = None
        return {(version, key): count for version, name in sets.items() for key, count in read[name].items()}

    def _fail(self, error: NftError, now: float) -> None:
        if error.code != errno.ENOENT:
            self._failed = now
        if str(self.problem) != str(error):
            log.warning("flows are not counted", error=str(error), fix=error.fix)
        self.problem = error

    async def _keep(self, now: float) -> None:
        """Have the table as it should be. Raises NftError."""
        most = self._most()
        if self._seen is not None and self._size == most:
            if now < self._checked + CHECK:
                return
            self._checked = now
            if await self._table.fingerprint() == self._seen:
                return
        text = flows.render(self._device, self._names, self._own_ports, most)
        await self._table.install(text)
        self._seen, self._size, self._checked = await self._table.fingerprint(), most, now
