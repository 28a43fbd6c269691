# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated node's roster while it changes: drives `node.intake`, as `nursery/keeping/roster.py` does."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, TypeVar

from phantommesh.node.intake import Intake
from phantommesh.node.steps import Moment, Told
from phantommesh.records.roster import Entry

if TYPE_CHECKING:
    from tests.simulation.full_node import Process

T = TypeVar("T")


class Keeper(Intake):
    """The roster and the revocations of a process."""

    def __init__(self, process: Process) -> None:
        self.process = process
        super().__init__(
            process.me, process.roster, process.revocations, lambda: Moment(process.now, process.wall)
        )

    def _kept(self, entry: Entry) -> None:
        """`Process.write` writes the whole roster."""

    def _changed(self, *, revoked: bool) -> None:
        self.process.note_change()

    def _waits(self) -> None:
        """`Process.housekeeping` looks once a second."""

    def _tell(self, told: Told) -> None:
        self.process.sim.tally[told.event] += 1

    def _unexpected(self, error: Exception, about: dict[str, str]) -> None:
        raise error


def at_once(work: Generator[None, None, T]) -> T:
    """Do work without its pauses: no time passes in the simulation meanwhile."""
    try:
        while True:
            next(work)
    except StopIteration as end:
        found: T = end.value
        return found
