# SPDX-License-Identifier: GPL-3.0-or-later
"""AEGIS: what is unsafe about this host and its configuration.

**Inputs.** A snapshot of the host (`hostcheck.seen`): modes and owners of the state, the configuration, the
socket and the programs; copies of keys; the kernel's network settings; listening ports; other programs'
packet filters; ages of keys; the clock; versions; swap, core dumps and debug settings. The rules are those of
`hostcheck.scan`, the same that ``phantommesh doctor`` goes through; docs/hardening.md has a section for each,
with where its threshold comes from.

**Actions.** One `Raise` for each rule that found something, with the evidence and the fix. It stands as long
as the rule goes on finding it: `LASTS` looks, so that one look that fails lifts nothing. Where the operator
allows it (``mend``, off by default) and all that a rule found has a safe fix, `Mend` in its place: once, and
if the finding is there again at the next look, `Raise` as usual.

**Bounds.** A look every ``every`` seconds (ten minutes: these things change by people's hands), and one each
minute while anything is found, so that a finding that was mended stands for two minutes at most. At most as
many proposals as there are rules. A safe fix takes permissions from files of the node's own, or sets a
setting of an interface of the node's own (`nursery/host/mending.py` checks both again when it is carried
out).

**Never.** It touches no other program's packet filter, no file of another user's, no setting of the host's;
it stops nothing, and deletes nothing. It reads no key's bytes into a finding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Final

from phantommesh.agents.actions import MOST_TEXT, Mend, Raise
from phantommesh.agents.base import Agent, AgentName, Evidence, Expectation, Observation, Proposal, Subject
from phantommesh.hostcheck.finding import Finding
from phantommesh.hostcheck.scan import scan
from phantommesh.hostcheck.seen import HostSeen

# Tuning.
EVERY: Final = 600.0  # s between two scans, of some 0.1 s of CPU each
AGAIN: Final = 60.0  # s between scans while something is found: 0.2 % of a core
LASTS: Final = 1.6  # looks that a finding stands without being found again
MENDED_WITHIN: Final = 1.2  # looks after which a mended finding has to be gone

_MEASURE: Final = "findings"
_MOST_SOURCE: Final = 120  # bytes of a file's name in the evidence


class Aegis(Agent[HostSeen]):
    """The policy. ``every``: seconds between scans; ``mend``: whether safe fixes are allowed."""

    name: ClassVar[AgentName] = "aegis"

    def __init__(self, *, every: float = EVERY, mend: bool = False) -> None:
        self.every = self._every = every
        self.mend = mend
        self._tried: set[str] = set()

    def observe(self, observation: Observation[HostSeen]) -> Iterable[Proposal]:
        """Propose a finding, or a safe fix, for each rule that found something."""
        found = _by_rule(scan(observation.seen))
        self.every = min(AGAIN, self._every) if found else self._every
        self._tried &= found.keys()  # what is gone may be mended again when it comes back
        for rule, findings in found.items():
            safe = self.mend and rule not in self._tried and all(one.mend is not None for one in findings)
            if safe:
                self._tried.add(rule)
            yield self._propose(rule, findings, observation.at.now, safe=safe)

    def _propose(self, rule: str, findings: Sequence[Finding], now: float, *, safe: bool) -> Proposal:
        first, more = findings[0], len(findings) - 1
        and_more = f" (and {more} more of this kind: see `phantommesh doctor`)" if more else ""
        text = _short(first.text, MOST_TEXT - len(and_more)) + and_more
        source = _short(first.subject, _MOST_SOURCE)
        return Proposal(
            agent=self.name,
            subject=Subject("rule", rule),
            action=Mend(rule) if safe else Raise(rule, first.severity, text, _short(first.fix, MOST_TEXT)),
            evidence=(Evidence(_MEASURE, float(len(findings)), 0.0, source),),
            expects=Expectation(_MEASURE, "at_most", 0.0, MENDED_WITHIN * self.every) if safe else None,
            until=now + LASTS * self.every,
            why=text,
        )

    def measure(self, seen: HostSeen, proposal: Proposal) -> float | None:
        """How often the proposal's rule finds something now."""
        if not isinstance(proposal.action, Mend):
            return None
        return float(sum(one.rule == proposal.action.rule for one in scan(seen)))


def _short(text: str, most: int) -> str:
    """At most ``most`` bytes of a text. A hostile user's file may have a name of four bytes a character, and
    a proposal's bound is in bytes (`council.MOST_OF_ONE`)."""
    data = text.encode()
    return text if len(data) <= most else f"{data[: most - 3].decode(errors='ignore')}..."


def _by_rule(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    for one in findings:
        found.setdefault(one.rule, []).append(one)
    return found
