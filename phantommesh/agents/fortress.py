# SPDX-License-Identifier: GPL-3.0-or-later
"""FORTRESS: keeps those out who attack this node, and lets nobody be kept out by a lie.

**Sees** what could not be used and from which source block (`acl.threats.Offences`): datagrams at the control
port with bad MACs, replays, more handshakes than the rates allow, guesses at invites; connections that say
nothing; datagrams at WireGuard's ports that are none of WireGuard's, by source and port, from the kernel's
sets; and how many datagrams of unknown sources came to the control port at all.

**Bans** a source block whose offences reach `acl.threats.ENOUGH`, summed over the kinds as shares of each.
Only offences with a proof count: a cookie of ours in the datagram, a TCP connection, the neighbour's own MAC
address. The ban lasts ten minutes, an hour, six hours, a
day, by how often the block was banned within a week (`acl.bans.STEPS`); a block that was banned before is
banned at its first offence. Hints of other members lower what is enough, by three quarters at most: own
evidence is always needed, and a ban that rests on a hint is put into a set of its own.

**Sheds** when more than ``shed_at`` datagrams a second of unknown sources come: the kernel then takes
``shed_rate`` a second of them in all, until `CALM` seconds after the flood's end. Members and seeds at the
addresses where they are known are not touched. Nobody is banned for what may be forged.

**Throttles** an asker of this node's name server, an overlay address, to ``dns_rate`` queries a second, where
its counts of late (`names.askers`, fading in 10 s) reach `ENOUGH_ASKED`: queries without end, names that do
not exist, addresses without a name. Till then the server's own rates hold. The throttle goes on while the
asker asks for `STILL` times what it gets, and for `CALM` seconds after that, so a scan that is slowed down
does not make it come and go. Nobody is banned for DNS: only members can ask, and a ban does not reach into
the tunnels.

**Raises** a finding while it sheds or throttles, and where a source that is never banned, a member's address
among those, reaches what would be enough.

**Never** bans: members' addresses, for a stranger behind the same NAT connects from there, and whoever reads
the path sends the member's datagrams again, so that takes a second signal, which is a person's word; seeds,
relays, gateways, resolvers, this host's own addresses and link, the other end of an operator's session; a
block that proved nothing; anything wider than an IPv4 address or an IPv6 /64.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar, Final

import msgspec

from phantommesh.acl import threats
from phantommesh.acl.bans import step_of
from phantommesh.acl.threats import ENOUGH, LATELY, LEAST_SHARE, Judgement, SourceSeen
from phantommesh.agents.actions import Ban, Raise, Shed, Throttle
from phantommesh.agents.base import (
    Agent,
    AgentName,
    Evidence,
    Expectation,
    Observation,
    Proposal,
    Subject,
)
from phantommesh.config.agents import FortressSection
from phantommesh.names.askers import AskerSeen
from phantommesh.rates import FADE

# Tuning.
MOST_BANS: Final = 32  # proposed at one look, the worst first
CALM: Final = (
    30.0  # s without a flood until nothing is shed any more: longer than shedding may not begin again
)
MOST_ASKERS: Final = 8  # throttled at once, the worst first; with `MOST_BANS` below `council.MOST_PROPOSALS`
ENOUGH_ASKED: Final = 400.0  # queries of late, 40 a second; a machine that keeps answers asks fewer than ten
ENOUGH_MISSING: Final = 150.0  # names that do not exist; a browser with a search domain asks for some forty
ENOUGH_WALKED: Final = 100.0  # addresses without a name; programs look up addresses that they talk to
STILL: Final = 2.0  # times what it gets that an asker asks for while it is throttled, so that it goes on
EFFECT: Final = 2.0  # s in which a ban or shedding shows its effect
STANDS: Final = 300.0  # s that a finding stands after it was last seen: who attacks in bursts is told once
FLOOD_RULE: Final = "threat-flood"
SHIELDED_RULE: Final = "threat-shielded"
DNS_RULE: Final = "threat-dns"
HINT: Final = "hint_lowering"
"""The measure in the evidence of a ban that own offences alone would not have been enough for."""


class Source(msgspec.Struct, frozen=True):
    """One source block with bound offences. ``times``: how often it was banned of late; ``lowering``: what
    hints take off the threshold, 0 to 0.75; ``never``: why it is never banned; ``member``: whether a member
    is at an address of it."""

    seen: SourceSeen
    times: int = 0
    lowering: float = 0.0
    never: str = ""
    member: bool = False


class FortressSeen(msgspec.Struct, frozen=True):
    """``sources``: those with bound offences of late that are not banned. ``arrived``, ``shed``, ``odd``: a
    second of late, datagrams of unknown sources that came to the control port and were shed there, and those
    at WireGuard's ports that are not WireGuard's. ``askers``: those that asked the name server of late."""

    sources: tuple[Source, ...] = ()
    arrived: float = 0.0
    shed: float = 0.0
    odd: float = 0.0
    askers: tuple[AskerSeen, ...] = ()


class Fortress(Agent[FortressSeen]):
    """The policy. It keeps no state but when it last saw a flood, and an asker go too far."""

    name: ClassVar[AgentName] = "fortress"
    wakes: ClassVar[frozenset[str]] = frozenset(f"threat.{kind}" for kind in threats.KINDS)

    def __init__(self, tunables: FortressSection = FortressSection()) -> None:
        self.every = 0.5  # s; banned within a second, and a threat's event has it look at once
        self._tunables = tunables
        self._flood = float("-inf")
        self._abused: dict[str, float] = {}  # by asker, the latest last

    def observe(self, observation: Observation[FortressSeen]) -> Iterable[Proposal]:
        """Propose bans, shedding and findings."""
        now, seen = observation.at.now, observation.seen
        yield from self._shed(seen, now)
        yield from self._throttle(seen, now)
        judged = [(source, threats.judge(source.seen)) for source in seen.sources]
        judged.sort(key=lambda each: each[1].score, reverse=True)
        for source, judgement in judged[:MOST_BANS]:
            if judgement.score >= _need(source):
                yield from _ban(source, judgement, now)

    def _shed(self, seen: FortressSeen, now: float) -> Iterator[Proposal]:
        tunables = self._tunables
        if seen.arrived > tunables.shed_at:
            self._flood = now
        if now >= self._flood + CALM:
            return
        evidence = (
            Evidence("unknown_datagrams_s", round(seen.arrived, 1), tunables.shed_at, "the kernel's counter"),
        )
        why = f"{seen.arrived:.0f} datagrams a second of unknown sources come to the control port"
        yield Proposal(
            agent=self.name,
            subject=Subject("service", "control"),
            action=Shed(tunables.shed_rate),
            evidence=evidence,
            expects=Expectation("let_through_s", "at_most", 2 * tunables.shed_rate, EFFECT),
            until=self._flood + CALM,
            why=why,
            incident="flood",
        )
        yield Proposal(
            agent=self.name,
            subject=Subject("rule", FLOOD_RULE),
            action=Raise(
                FLOOD_RULE,
                "medium",
                "a flood of datagrams from unknown sources comes to the control port; all but "
                f"{tunables.shed_rate:g} a second are shed, and newcomers may have to try again",
                "see `phantommesh threats`; filter the flood before it reaches this host",
            ),
            evidence=evidence,
            expects=None,
            until=self._flood + CALM,
            why=why,
            incident="flood",
        )

    def _throttle(self, seen: FortressSeen, now: float) -> Iterator[Proposal]:
        rate = self._tunables.dns_rate
        self._abused = {address: at for address, at in self._abused.items() if now < at + CALM}
        askers = {one.address: one for one in seen.askers}
        for one in sorted(seen.askers, key=_abuse, reverse=True):
            known = one.address in self._abused
            if not known and (_abuse(one) < 1.0 or len(self._abused) >= MOST_ASKERS):
                continue
            if _abuse(one) >= 1.0 or one.asked >= STILL * rate * FADE:
                self._abused[one.address] = now
        for address, at in self._abused.items():
            asker = askers.get(address, AskerSeen(address, 0.0))
            evidence = _asked(asker)
            why = f"{address} abuses the name server: {asker.asked / FADE:.0f} queries a second of late"
            yield Proposal(
                agent=self.name,
                subject=Subject("service", f"dns/{address}"),
                action=Throttle(address, rate),
                evidence=evidence,
                expects=Expectation("kept_to_s", "at_most", rate, EFFECT),
                until=at + CALM,
                why=why,
                incident=address,
            )
            yield Proposal(
                agent=self.name,
                subject=Subject("rule", f"{DNS_RULE} {address}"),
                action=Raise(
                    DNS_RULE,
                    "low",
                    f"{address}, a member, asks the name server too much, or for what is not there: it is "
                    f"answered {rate:g} times a second",
                    "find out what runs there; `phantommesh revoke NAME` puts a member out",
                ),
                evidence=evidence,
                expects=None,
                until=at + CALM,
                why=why,
                incident=address,
            )

    def measure(self, seen: FortressSeen, proposal: Proposal) -> float | None:
        """``let_through_s``: datagrams of unknown sources that were not shed; ``offends``: 1 where the banned
        source still gets through; ``kept_to_s``: the answers a second that an asker is kept to."""
        match proposal.action:
            case Shed():
                return max(0.0, seen.arrived - seen.shed)
            case Throttle(address, _):
                return next((one.kept_to for one in seen.askers if one.address == address), None)
            case Ban(network, _):
                return float(any(one.seen.block == network and _fresh(one) for one in seen.sources))
            case _:
                return None


def kinds_of(proposal: Proposal) -> tuple[str, ...]:
    """The kinds of proved offences that weigh, of the evidence of a ban."""
    counts = {
        kind: one.value / ENOUGH[kind]
        for kind in threats.KINDS
        for one in proposal.evidence
        if one.what == f"{kind}_count"
    }
    weigh = tuple(kind for kind, share in counts.items() if share >= LEAST_SHARE)
    return weigh or tuple(sorted(counts, key=lambda kind: -counts[kind])[:1])


def _abuse(asker: AskerSeen) -> float:
    """How much of what is enough an asker did; 1 is enough."""
    return max(asker.asked / ENOUGH_ASKED, asker.missing / ENOUGH_MISSING, asker.walked / ENOUGH_WALKED)


def _asked(asker: AskerSeen) -> tuple[Evidence, ...]:
    return (
        Evidence("dns_asked_count", asker.asked, ENOUGH_ASKED, "the name server"),
        Evidence("dns_missing_count", asker.missing, ENOUGH_MISSING, "the name server"),
        Evidence("dns_walked_count", asker.walked, ENOUGH_WALKED, "the name server"),
    )


def _fresh(source: Source) -> bool:
    return threats.judge(source.seen).score >= _need(source)


def _need(source: Source) -> float:
    """The score that is enough. A block that was banned before has used up its patience: one bound offence is
    enough, so the least share of any kind."""
    if source.times and any(count >= LATELY for _, count in source.seen.bound):
        return 0.0
    return 1.0 - source.lowering


def _evidence(source: Source, judgement: Judgement) -> tuple[Evidence, ...]:
    lowered = 1.0 - source.lowering
    proofs = ", ".join(source.seen.proofs) or "none"
    found = [
        Evidence(f"{kind}_count", count, round(ENOUGH[kind] * lowered, 1), f"proved by: {proofs}")
        for kind, count in source.seen.bound
        if ENOUGH[kind] < float("inf")
    ]
    if source.times:
        found.append(Evidence("bans_before", source.times, 1.0, "bans of the last week"))
    if source.lowering and not source.times and judgement.score < 1.0:
        found.append(Evidence(HINT, source.lowering, None, "hints of other members"))
    return tuple(found)


def _ban(source: Source, judgement: Judgement, now: float) -> Iterator[Proposal]:
    block, seconds = source.seen.block, step_of(source.times + 1)
    evidence = _evidence(source, judgement)
    kinds = judgement.kinds or tuple(kind for kind, _ in source.seen.bound)
    what = " and ".join(kinds)
    if not evidence:
        return
    refused = source.never
    if not refused and source.member:
        refused = "a member's address, and what comes from there may be a stranger's"
    if refused:
        yield Proposal(
            agent="fortress",
            subject=Subject("rule", f"{SHIELDED_RULE} {block}"),
            action=Raise(
                SHIELDED_RULE,
                "medium",
                f"{block} attacks this node ({what}) and is not banned: it is {refused}"[:300],
                "find out what runs there; `phantommesh revoke NAME` puts a member out, and "
                "`phantommesh ban` keeps out what is no seed, relay or host like that",
            ),
            evidence=evidence,
            expects=None,
            until=now + STANDS,
            why=f"{what} from {block}, which is {refused}",
            incident=block,
        )
        return
    again = f", for the {source.times + 1}. time" if source.times else ""
    yield Proposal(
        agent="fortress",
        subject=Subject("address", block),
        action=Ban(block, seconds),
        evidence=evidence,
        expects=Expectation("offends", "at_most", 0.0, EFFECT),
        until=now + seconds,
        why=f"{what} from {block}{again}",
        incident=block,
    )
