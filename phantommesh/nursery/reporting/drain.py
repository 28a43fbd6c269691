# SPDX-License-Identifier: GPL-3.0-or-later
"""Draining, as the API shows it."""

from __future__ import annotations

from typing import Final

import trio

from phantommesh.agents.actions import Drain
from phantommesh.agents.base import Evidence, Proposal, Subject
from phantommesh.management.drainview import DrainView
from phantommesh.moments import rfc3339
from phantommesh.nursery.parts import Parts

NODE: Final = Subject("node")


def asked(seconds: float, *, force: bool) -> Proposal:
    """The operator's word, as a proposal: it is on record, and no agent has the subject meanwhile."""
    return Proposal(
        agent="operator",
        subject=NODE,
        action=Drain(),
        evidence=(Evidence("asked_s", seconds, source="operator"),),
        expects=None,
        until=trio.current_time() + seconds,
        why="the operator wants this node to drain"
        + (", also as a second one of its region" if force else ""),
    )


def view(parts: Parts) -> DrainView:
    """How this node stands."""
    drainer, work, region = parts.drainer, parts.drainer.left(), parts.config.node.region
    drained = drainer.machine.drained
    others = sorted(entry.member.name for entry in drainer.holding())
    return DrainView(
        state="working" if not drainer.by else "drained" if drainer.idle() else "draining",
        by=drainer.by,
        since=None if drained is None else rfc3339(drained.since),
        until=None if drained is None else rfc3339(drained.until),
        forced=drained is not None and drained.forced,
        packets=work.packets,
        leases=work.leases,
        bridges=work.bridges,
        region=region,
        others=others,
        ended=drainer.gave_way,
    )
