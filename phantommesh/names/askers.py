# SPDX-License-Identifier: GPL-3.0-or-later
"""What each asker of the name server does of late, and how many of its queries are answered. Pure.

Three things speak of abuse: queries without end, names that do not exist (somebody guesses names), and
addresses that have no name (somebody walks the reverse zones, where an empty name tells from a missing one
what is below it: RFC 8020). An honest machine has a resolver that keeps answers, and does little of each.

An asker is one overlay address: a member owns its address alone, and no block around it. Counts fade
(`rates.Faded`). ``now`` is seconds on a clock that does not go back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from phantommesh.rates import FADE, Bucket, Faded

AskKind = Literal["asked", "missing", "walked"]

# Tuning.
MOST: Final = 1024  # askers that are remembered; who asked least lately makes room
LATELY: Final = 3 * FADE  # s without a query after which nothing is told of an asker
_REVERSE: Final = b"\x04arpa\x00"  # the end of a name in a reverse zone: RFC 1035 section 3.5, RFC 3596


class AskerSeen(msgspec.Struct, frozen=True):
    """One asker: its faded counts of queries, of names and of addresses that it asked for and that are not
    there, and how many queries a second it is kept to (None: the server's own rate)."""

    address: str
    asked: float
    missing: float = 0.0
    walked: float = 0.0
    kept_to: float | None = None


class _Asker:
    __slots__ = ("counts", "touched")

    def __init__(self) -> None:
        self.counts: dict[AskKind, Faded] = {}
        self.touched = float("-inf")


class Askers:
    """The askers of one name server."""

    def __init__(self) -> None:
        self._askers: OrderedDict[str, _Asker] = OrderedDict()
        self._kept: dict[str, Bucket] = {}

    def __len__(self) -> int:
        return len(self._askers)

    def note(self, address: str, kind: AskKind, now: float) -> None:
        """Count one."""
        asker = self._askers.get(address)
        if asker is None:
            asker = self._askers[address] = _Asker()
            if len(self._askers) > MOST:
                self._askers.popitem(last=False)
        else:
            self._askers.move_to_end(address)
        asker.touched = now
        asker.counts.setdefault(kind, Faded()).add(1.0, now)

    def allow(self, address: str, now: float) -> bool:
        """Whether a query of this asker is within what it is kept to."""
        kept = self._kept.get(address)
        return kept is None or kept.take(now)

    def keep_to(self, address: str, rate: float | None, now: float) -> None:
        """Answer so many queries a second of this asker at most; None: as many as of any other."""
        self._kept.pop(address, None)
        if rate is not None:
            self._kept[address] = Bucket(rate, rate, now)

    def seen(self, now: float) -> Iterator[AskerSeen]:
        """Those that asked of late, the latest first."""
        for address in reversed(self._askers):
            asker = self._askers[address]
            if now - asker.touched > LATELY:
                return
            asked, missing, walked = (
                round(asker.counts[kind].at(now), 1) if kind in asker.counts else 0.0
                for kind in ("asked", "missing", "walked")
            )
            kept = self._kept.get(address)
            yield AskerSeen(address, asked, missing, walked, None if kept is None else kept.rate)


def kind_of(result: str, query: bytes) -> AskKind | None:
    """What a query that was answered speaks for beside its being one. ``result`` is `zone.respond`'s."""
    if result != "nxdomain":
        return None
    return "walked" if _REVERSE in query.lower() else "missing"
