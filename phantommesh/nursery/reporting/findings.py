# SPDX-License-Identifier: GPL-3.0-or-later
"""What agents have found, as faults."""

from __future__ import annotations

from collections.abc import Iterator

from phantommesh.agents.actions import Raise
from phantommesh.faults import Fault, FaultKind
from phantommesh.nursery.parts import Parts

AGENT_FINDING = FaultKind("agent-finding", "medium")  # the severity is the finding's own


def faults(parts: Parts) -> Iterator[Fault]:
    """Return the findings that stand. The subject is the rule."""
    for one in parts.council.apex.standing():
        if isinstance(found := one.proposal.action, Raise):
            yield Fault(
                code=AGENT_FINDING.code, severity=found.severity, subject=found.rule, text=found.text,
                fix=found.fix,
            )  # fmt: skip
