# SPDX-License-Identifier: GPL-3.0-or-later
"""The audit trail of the API while it grows, and on disk: `audit/` in the state directory, in the form of the
record of decisions, so that `phantommesh decisions --verify` checks it too."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path
from time import time
from typing import Final

import structlog
import trio

from phantommesh.agents.ledger import WriteLine
from phantommesh.management.audit import DENIED, WRITTEN, AuditEntry, Write, entry
from phantommesh.management.events import EventLog
from phantommesh.nursery.keeping import ledger
from phantommesh.nursery.keeping.journal import Journal
from phantommesh.nursery.keeping.ledger import Ledger
from phantommesh.rates import Bucket
from phantommesh.state.files import StateError

# Tuning.
KEPT: Final = 1024  # entries that the API shows; the files have more
DENIED_RATE, DENIED_BURST = 1.0, 64.0  # refused requests that are on record, a second and at once
PATIENCE: Final = 1.0  # s that an answer waits for its line to be on disk

log = structlog.get_logger("phantommesh.audit")


class Audit:
    """The node's `AuditTrail`. ``directory``: where its files are, which need not be there yet."""

    def __init__(self, directory: Path, events: EventLog) -> None:
        self._directory, self._events = directory, events
        self._journal = Journal(
            log, "the audit trail", Ledger(directory, "audit"), run=events.run, gather=0.0,
            reason="audit-unwritten",
        )  # fmt: skip
        self.disk = self._journal.disk
        self.dropped: Counter[str] = self._journal.dropped
        self._entries = deque[AuditEntry](maxlen=KEPT)
        self._seq = 0
        self._denied = Bucket(DENIED_RATE, DENIED_BURST, trio.current_time())

    async def begin(self) -> None:
        """Read the latest entries of earlier runs. What cannot be read is said, and stops nothing."""
        try:
            lines = await trio.to_thread.run_sync(ledger.latest, self._directory, KEPT)
        except StateError as error:
            log.error("the audit trail of earlier runs is not read", error=str(error), fix=error.fix)
            return
        for line in lines:
            if isinstance(line, WriteLine):
                self._entries.append(entry(_write(line), line.seq, line.at))
                self._seq = max(self._seq, line.seq)

    async def keep(self) -> None:
        """Write what is added, until cancelled."""
        await self._journal.keep()

    async def wrote(self, write: Write) -> None:
        """Put a write on record. Refused ones that are too many are counted only, so that nobody fills the
        record who may do nothing."""
        if write.denied and not self._denied.take(trio.current_time()):
            self._journal.lost()
            return
        self._seq, at = self._seq + 1, time()
        self._entries.append(entry(write, self._seq, at))
        data: dict[str, object] = {
            "seq": self._seq, "who": write.who, "address": write.address, "method": write.method,
            "path": write.path, "status": write.status,
        }  # fmt: skip
        log.info("API write", **data)
        self._events.publish(DENIED if write.denied else WRITTEN, None, data)
        self._journal.add(
            WriteLine(
                prev="", seq=self._seq, at=at, who=write.who, address=write.address, method=write.method,
                path=write.path, asked=write.asked, status=write.status, detail=write.detail,
            )
        )  # fmt: skip
        with trio.move_on_after(PATIENCE):
            await self._journal.written()

    def read(self, after: int, limit: int) -> list[AuditEntry]:
        """At most so many entries with a number above ``after``, oldest first."""
        return [one for one in self._entries if one.seq > after][:limit]


def _write(line: WriteLine) -> Write:
    return Write(**{name: getattr(line, name) for name in Write.__struct_fields__})
