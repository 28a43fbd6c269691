# SPDX-License-Identifier: GPL-3.0-or-later
"""Threats and bans, as an operator is told of them and asks for them; their events and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import time

import trio

from phantommesh.acl.banrules import ARRIVED, ODD, SHED
from phantommesh.acl.bans import ORIGINS, Ban, BanError, parse_network
from phantommesh.acl.threats import Threat
from phantommesh.agents import actions
from phantommesh.agents.base import AgentName, Evidence, Proposal, Subject
from phantommesh.management.threatsview import (
    BanResult,
    BansView,
    BanView,
    By,
    ThreatsView,
    ThreatView,
    UnbanResult,
)
from phantommesh.moments import rfc3339
from phantommesh.nursery.dataplane.banning import EXPIRED, LIFTED
from phantommesh.nursery.host.nft import NftError
from phantommesh.nursery.keeping import offenders
from phantommesh.nursery.parts import Parts
from phantommesh.nursery.reporting.agents import members_at
from phantommesh.rates import Bucket
from phantommesh.routable import Network, within

DROPPED = "an operator lifted all of them"  # a word on the origin, and not on each source

# Tuning.
MOST_NAMED = 8  # members that one note names
EVENT_RATE, EVENT_BURST = 1.0, 32.0  # events of threats and bans, a second and at once; all are counted


async def view(parts: Parts) -> ThreatsView:
    """All of it."""
    banning = parts.banning
    rates, shown = banning.rates, await _shown(parts, banning.bans)
    banned = {ban.network for ban in shown}
    return ThreatsView(
        unknown_s=round(rates[ARRIVED], 1),
        shed_s=round(rates[SHED], 1),
        odd_s=round(rates[ODD], 1),
        shed_above=banning.shed,
        threats=[_threat(threat, threat.source in banned) for threat in reversed(list(banning.log))],
        bans=shown,
    )


async def bans(parts: Parts) -> BansView:
    """The bans that stand."""
    return BansView(bans=await _shown(parts, parts.banning.bans))


async def ban(parts: Parts, wanted: str, seconds: float, *, force: bool, dry_run: bool) -> BanResult:
    """Ban an address or a network on an operator's word. Raises BanError and NftError."""
    network, why = parse_network(wanted), "an operator's word"
    made = (parts.banning.plan if dry_run else parts.banning.ban)(
        network, "operator", seconds, why, force=force
    )
    done = await made
    if not dry_run:
        _record(parts, done, seconds)
    return BanResult(ban=_ban(done, {}), dry_run=dry_run, notes=_meant(parts, done))


def _meant(parts: Parts, done: Ban) -> list[str]:
    """Say which members are cut off by a ban: nothing that they send outside the tunnels' interfaces comes
    in, and neither do the tunnels' own packets."""
    names = sorted(member.name for member in members_at(parts, done.parsed))
    if not names:
        return []
    left = len(names) - MOST_NAMED
    shown = ", ".join(names[:MOST_NAMED]) + (f" and {left} more" if left > 0 else "")
    are = "is a member that is" if len(names) == 1 else "are members that are"
    here = f"{shown} {are} at an address of {done.network} now: this node hears nothing from there"
    return [f"{here}. `phantommesh unban {done.network}` takes it back; to cut a member off, revoke it"]


def _record(parts: Parts, done: Ban, seconds: float) -> None:
    """Have the operator's word among the decisions: what an agent has there gives way to it."""
    proposal = Proposal(
        agent="operator",
        subject=Subject("address", done.network),
        action=actions.Ban(done.network, seconds),
        evidence=(Evidence("asked", 1.0, source="the API"),),
        expects=None,
        until=trio.current_time() + seconds,
        why=done.why,
        incident=done.network,
    )
    parts.decisions.operate([proposal])


async def unban(parts: Parts, network: str | None, by: str | None, *, dry_run: bool) -> UnbanResult:
    """Lift the bans of a network, or all bans of one origin. Raises BanError and NftError."""
    banning = parts.banning
    if (network is None) == (by is None):
        raise BanError("this needs a network, or whose bans to lift", fix="give one of network and by")
    if network is not None:
        asked = parse_network(network)
        wider = [ban.network for ban in banning.bans if _holds(ban, asked)]
        same = [ban for ban in banning.bans if ban.network == str(asked)]
        lifted = same if dry_run else await banning.unban(asked)
        if not lifted and wider:
            raise BanError(
                f"{asked} has no ban of its own: it is in {wider[0]}, which is banned",
                fix=f"lift that: `phantommesh unban {wider[0]}`; then ban what is still to be kept out",
            )
        if not lifted:
            raise BanError(f"{asked} is not banned", fix="see `phantommesh threats` for what is")
        notes = [f"{asked} is still kept out: it is in {one}, which is banned" for one in wider]
        return UnbanResult(lifted=[_ban(ban, {}) for ban in lifted], notes=notes, dry_run=dry_run)
    origin = next((origin for origin in ORIGINS if origin == by), None)
    if origin is None:
        raise BanError("there are no such bans", fix=f"give one of {', '.join(ORIGINS)}")
    lifted = list(banning.bans.of(origin)) if dry_run else await banning.drop(origin, DROPPED)
    return UnbanResult(lifted=[_ban(ban, {}) for ban in lifted], dry_run=dry_run)


def _holds(ban: Ban, network: Network) -> bool:
    """Whether a ban is of a wider network, which this one is in."""
    return ban.network != str(network) and within(network, ban.parsed)


async def _shown(parts: Parts, found: Iterable[Ban]) -> list[BanView]:
    try:
        hits = await parts.banning.hits()
    except NftError:
        hits = {}
    return [_ban(ban, hits) for ban in found]


def _ban(ban: Ban, hits: Mapping[tuple[By, str], int]) -> BanView:
    return BanView(
        network=ban.network,
        by=ban.origin,
        since=rfc3339(ban.since),
        until=rfc3339(ban.until),
        left_s=round(max(0.0, ban.until - time()), 1),
        why=ban.why,
        kinds=list(ban.kinds),
        times=ban.times,
        packets=hits.get((ban.origin, ban.network)),
    )


def _threat(threat: Threat, banned: bool) -> ThreatView:
    return ThreatView(
        kind=threat.kind,
        severity=threat.severity,
        source=threat.source,
        proved=list(threat.proofs),
        count=threat.count,
        first=rfc3339(threat.first),
        last=rfc3339(threat.last),
        banned=banned,
    )


class ThreatNews:
    """Counts threats and bans in the metrics, and publishes their events, at a pace that no attacker sets."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._pace, self._untold = Bucket(EVENT_RATE, EVENT_BURST, trio.current_time()), 0
        parts.banning.told, parts.banning.changed = self.threat, self.ban

    def threat(self, threat: Threat) -> None:
        """A new threat."""
        self._parts.metrics.threats.labels(threat.kind, threat.severity).inc()
        data = {"source": threat.source, "severity": threat.severity, "proved": list(threat.proofs)}
        self._publish(f"threat.{threat.kind}", {**data, "count": threat.count})

    def ban(self, ban: Ban, gone: bool, why: str) -> None:
        """A ban has come or gone."""
        self._parts.metrics.bans.set(len(self._parts.banning.bans))
        if gone and why not in (EXPIRED, DROPPED) and ban.origin != "operator":
            offenders.lifted(self._parts.memory, ban)
            if why == LIFTED:
                offenders.refuted(self._parts.memory, ban, time())
        if gone:  # however it went: the same agent may ban it again
            agent: AgentName = "operator" if ban.origin == "operator" else "fortress"
            subject = Subject("address", ban.network)
            self._parts.council.apex.withdraw(agent, trio.current_time(), subject)
        data: dict[str, object] = {"network": ban.network, "by": ban.origin, "why": why}
        if not gone:
            data |= {"until": rfc3339(ban.until), "times": ban.times}
        self._publish("threat.unbanned" if gone else "threat.banned", data)

    def _publish(self, kind: str, data: dict[str, object]) -> None:
        if not self._pace.take(trio.current_time()):
            self._untold += 1
            return
        if self._untold:
            data["untold"], self._untold = self._untold, 0
        self._parts.events.publish(kind, None, data)
