# SPDX-License-Identifier: GPL-3.0-or-later
"""The log's budget: others may cause lines, and may cause only so many bytes of them. Sans-I/O.

A line has a kind, which is in our code, and a subject: the member, host or interface that it is about. Each
subject has a budget within its kind, each kind has one, and all have one in bytes. The first line of a kind
in an hour is always written, so no flood of one kind hides that another kind of thing happened. Lines that
are left out are counted, and the count is written with the next line that is let through.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from phantommesh.rates import Bucket, Rates

# Tuning.
SUBJECT_RATE, SUBJECT_BURST = 1 / 60, 6  # lines a second, and at once, of one kind about one subject
KIND_RATE, KIND_BURST = 0.2, 200  # lines of one kind: as many as a start of a large mesh tells of
BYTES_RATE, BYTES_BURST = 1024.0, 1 << 20  # bytes of all lines together: 3.7 MB in an hour, once 1 MiB more
HOUR: Final = 3_600.0  # s after which the next line of a kind counts as its first again
MAX_KINDS: Final = 256  # kinds beyond these count as one kind
MAX_SUBJECTS: Final = 1_024  # of one kind
MAX_LINE: Final = 4_096  # characters of one text in a line, a traceback too
TELL: Final = 60.0  # s between two summaries of what was left out
TOLD_KINDS: Final = 8  # kinds that a summary names

OTHER: Final = "other"


@dataclass(slots=True)
class _Kind:
    lines: Bucket
    subjects: Rates[str]
    first: float
    left_out: dict[str, int] = field(default_factory=dict)  # by subject, since its last line


class LogBudget:
    """Decides on each line. ``now`` is seconds on a clock that does not go back."""

    def __init__(self, now: float) -> None:
        self._kinds: OrderedDict[str, _Kind] = OrderedDict()
        self._bytes = Bucket(BYTES_RATE, BYTES_BURST, now)
        self._untold: dict[str, int] = {}
        self._told = now
        self.left_out = 0  # lines in all

    def admit(self, kind: str, subject: str, now: float) -> int | None:
        """Say whether to write a line: None where not, else how many like it were left out before it."""
        known, first = self._kind(kind, now)
        if first:
            known.first = now
            known.subjects.allow(subject, now)
            known.lines.take(now)
        elif not (
            self._bytes.wait(now) == 0 and known.subjects.wait(subject, now) == 0 and known.lines.take(now)
        ):
            self._leave_out(kind, known, subject)
            return None
        else:
            known.subjects.allow(subject, now)
        return known.left_out.pop(subject, 0)

    def wrote(self, size: int, now: float) -> None:
        """A line of so many bytes was written."""
        self._bytes.owe(now, size)

    def summary(self, now: float) -> dict[str, int]:
        """Return how many lines were left out since the last summary, by kind: the kinds with the most lines.
        Empty while a summary is not due. Write it, whatever `admit` would say."""
        if not self._untold or now < self._told + TELL:
            return {}
        most = sorted(self._untold.items(), key=lambda item: -item[1])[:TOLD_KINDS]
        self._untold, self._told = {}, now
        return dict(most)

    def _kind(self, kind: str, now: float) -> tuple[_Kind, bool]:
        if kind not in self._kinds and len(self._kinds) >= MAX_KINDS:
            kind = OTHER
        known = self._kinds.get(kind)
        if known is None:
            subjects = Rates[str](SUBJECT_RATE, SUBJECT_BURST, MAX_SUBJECTS)
            known = self._kinds[kind] = _Kind(Bucket(KIND_RATE, KIND_BURST, now), subjects, now)
            return known, True
        return known, now - known.first >= HOUR

    def _leave_out(self, kind: str, known: _Kind, subject: str) -> None:
        self.left_out += 1
        if subject in known.left_out or len(known.left_out) < MAX_SUBJECTS:
            known.left_out[subject] = known.left_out.get(subject, 0) + 1
        if kind in self._untold or len(self._untold) < MAX_KINDS:
            self._untold[kind] = self._untold.get(kind, 0) + 1
