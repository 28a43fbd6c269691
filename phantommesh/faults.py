# SPDX-License-Identifier: GPL-3.0-or-later
"""A fault: what is wrong with a node, as a value that a script can tell by its code and a person by its text.

Each kind of fault is a `FaultKind` at the head of the module that it comes from. docs/runbook.md has a
section for each; a test holds the two against each other.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

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
