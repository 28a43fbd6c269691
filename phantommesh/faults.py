# SPDX-License-Identifier: GPL-3.0-or-later
"""A fault: what is wrong with a node, as a value that a script can tell by its code and a person by its text.

Each kind of fault is a `FaultKind` at the head of the module that it comes from. docs/runbook.md has a
section for each; a test holds the two against each other.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

# Tuning.
OFTEN: Final = 3  # times within `WITHIN` that something had to be put right until that is told
WITHIN: Final = 20.0  # s
MOST_CONTESTED: Final = 64  # things that are counted

Severity = Literal["low", "medium", "high", "critical"]


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong now."""

    code: str
    """Its kind, for scripts and docs/runbook.md. A code keeps its meaning."""
    severity: Severity
    """``low``: a setting has no effect. ``medium``: a peer or a path is worse off. ``high``: a promise of the
    mesh does not hold here, or soon will not. ``critical``: the node cannot do its work, or an identity may
    be stolen."""
    subject: str
    """What it is about: a member's name, an interface, an endpoint; empty: this node."""
    text: str
    """What is wrong, for people."""
    fix: str
    """What to do about it; may be empty."""

    @property
    def line(self) -> str:
        """Both in one line."""
        return f"{self.text}; {self.fix}" if self.fix else self.text


@dataclass(frozen=True, slots=True)
class FaultKind:
    """The properties that all faults with one code share."""

    code: str
    severity: Severity

    def fault(self, text: str, fix: str, *, subject: str = "") -> Fault:
        """Return one of them."""
        return Fault(code=self.code, severity=self.severity, subject=subject, text=text, fix=fix)


@dataclass(slots=True)
class Contest:
    """Counts what a part had to put right because somebody else changed it. Once is an accident, and mended.
    Again and again means that another program works against this node, and that traffic suffers meanwhile."""

    _mended: dict[str, deque[float]] = field(default_factory=dict)

    def mended(self, what: str, now: float) -> None:
        """Count that ``what`` had to be put right at ``now``, in seconds on any clock."""
        if what in self._mended or len(self._mended) < MOST_CONTESTED:
            self._mended.setdefault(what, deque(maxlen=OFTEN)).append(now)

    def lasting(self, now: float) -> Iterator[str]:
        """Yield what had to be put right `OFTEN` times of late."""
        for what, moments in self._mended.items():
            if len(moments) == OFTEN and now - moments[0] <= WITHIN:
                yield what
