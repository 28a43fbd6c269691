# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's memory of the proofs that it has stored: how many, the newest, and whether that holds."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from phantommesh.proofs import fit
from phantommesh.proofs.ledger import Direction, Kept
from phantommesh.proofs.verdict import check_proof
from phantommesh.trust.identity import NodeId

Result = Literal["signed", "countersigned", "witnessed", "mismatch"]


@dataclass(slots=True)
class Shown:
    """One direction of one link. ``whole`` says of each number whether both ends have signed."""

    whole: dict[int, bool] = field(default_factory=dict)
    newest: Kept | None = None
    problem: str | None = None


class Review:
    """Remembers the ``keep`` newest proofs of each link and direction."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._links: dict[tuple[NodeId, Direction], Shown] = {}

    def add(self, kept: Kept) -> tuple[Result, str | None]:
        """Note a proof; return what became of it, and what of it does not hold by the counters."""
        shown = self._links.setdefault((kept.peer, kept.direction), Shown())
        if kept.direction == "received":
            self._go_back(shown, kept.number)
        shown.whole[kept.number] = kept.receipt is not None
        for old in sorted(shown.whole)[: -self._keep]:
            del shown.whole[old]
        if kept.receipt is None:
            if shown.newest is None:
                shown.newest = kept
            return "signed", None
        problem = check_proof(kept.statement, kept.receipt, fit.FALSE_REJECTIONS / 4 / self._keep)
        newer = shown.newest is None or shown.newest.receipt is None or shown.newest.number <= kept.number
        if newer:
            shown.newest, shown.problem = kept, problem
        if problem is not None:
            return "mismatch", problem
        return ("countersigned" if kept.direction == "sent" else "witnessed"), None

    @staticmethod
    def _go_back(shown: Shown, number: int) -> None:
        """Forget what a peer stated under higher numbers, as the shelf does: it has begun again."""
        for newer in [known for known in shown.whole if known > number]:
            del shown.whole[newer]
        if shown.newest is not None and shown.newest.number > number:
            shown.newest = shown.problem = None

    def link(self, peer: NodeId, direction: Direction) -> Shown:
        """Return what is known of one direction of a link."""
        return self._links.get((peer, direction), Shown())

    def links(self) -> Iterator[NodeId]:
        """The peers of which there are proofs."""
        return iter(sorted({peer for peer, _ in self._links}))
