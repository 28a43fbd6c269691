# SPDX-License-Identifier: GPL-3.0-or-later
"""All rules, gone through once."""

from __future__ import annotations

from typing import Final

from phantommesh.hostcheck import ages, exposure, files, kernel, process, versions
from phantommesh.hostcheck.finding import Finding
from phantommesh.hostcheck.seen import HostSeen

RULES: Final = {
    rule.id: rule
    for rule in (
        *files.RULES, *kernel.RULES, *exposure.RULES, *process.RULES, *ages.RULES, *versions.RULES,
    )
}  # fmt: skip
"""Every rule by its id."""

_WORST_FIRST: Final = {"critical": 0, "high": 1, "medium": 2, "low": 3}


def scan(seen: HostSeen) -> tuple[Finding, ...]:
    """Return what is unsafe, the worst first."""
    found = [
        *files.findings(seen), *kernel.findings(seen), *exposure.findings(seen), *process.findings(seen),
        *ages.findings(seen), *versions.findings(seen),
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda one: (_WORST_FIRST[one.severity], one.rule, one.subject)))
