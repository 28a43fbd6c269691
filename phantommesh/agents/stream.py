# SPDX-License-Identifier: GPL-3.0-or-later
"""STREAM: flows into the overlay, those that weigh, and patterns in who calls whom.

Inputs: the kernel's counters of flows and calls (`scatter/flows.py`), the paths of each peer whose flows can
be steered, and which buckets of flows VELOCITY has dealt.

An elephant is a flow with `elephant_kbit` or more between two looks. An elephant to a peer whose flows can
be steered is pinned, in at most two looks: to the dimension that it has, so that it keeps its order also from
one epoch's map to the next; to the one with the least of other elephants, where its own has another one and
that saves a third or more of the load. It stays there while it sends `FADES` of that rate or more, and for
`LINGERS` after that. A path that it had to leave, as traffic may not take that path any more, is shunned
for `SHUNS`: what was left once is often left again.

What a path holds up is dealt on VELOCITY's word, which goes before STREAM's. A flow that the splitter names
to be dealt, and one that was, is let alone for `YIELDS`. So it is not pinned between two tries to deal it.

A class of application by port and shape (`agents/applications.py`) is part of what is said of an elephant.
A flow of the class ``call`` is pinned to no dimension that is lossier than its own.

A scan and a beacon (`agents/patterns.py`) are raised as findings for as long as they show, with the rule
``pattern-scan`` or ``pattern-beacon``; the node publishes each as the event ``threat.pattern``. FORTRESS
takes them for a hint.

Bounds: the kernel's sets take `most_flows` entries each; what is remembered here is bounded by what they
give, `MOST_PINS` elephants, and the bounds of `agents/patterns.py`. STREAM drops and slows nothing, looks
into no packet beyond its ports, and pins no flow of a peer whose goal deals each packet.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Final

from phantommesh.agents.actions import Pin, Raise
from phantommesh.agents.applications import Application, application_of
from phantommesh.agents.base import Agent, AgentName, Evidence, Expectation, Observation, Proposal, Subject
from phantommesh.agents.patterns import Pattern, Patterns
from phantommesh.config.agents import StreamSection
from phantommesh.scatter.flows import SAMPLE, FlowKey

# Tuning.
BUSY_EVERY: Final = 0.5  # s between looks while flows send: an elephant is to be pinned within 2 s
IDLE_EVERY: Final = 1.0  # s otherwise
STANDS: Final = 6.0  # s that a pin stands without a look
FADES: Final = 0.3  # of an elephant's bound, below which the flow is none any more
LINGERS: Final = 4.0  # s below that until its pin is let go: a sender may wait for a disk
YIELDS: Final = 30.0  # s: VELOCITY tries again 10 s after a flow could not be dealt
SHUNS: Final = 60.0  # s; VELOCITY takes a path back after 5, and leaves it for longer each time that it fails
SAVES: Final = 2 / 3  # of the load that a dimension may have at most after a move, compared with the one left
MOST_PINS: Final = 48  # elephants; the heaviest
SHORTEST: Final = 0.2  # s between two looks that a rate is taken from
KEEPS: Final = 0.8  # of its rate that a pinned elephant should keep
SETTLES: Final = 2.0  # s after which that is measured
MOST_RAISED: Final = 12  # findings of one look: with `MOST_PINS` they keep below `council.MOST_PROPOSALS`
SHOWN: Final = 30.0  # s that a finding stands without a look


@dataclass(frozen=True, slots=True)
class FlowSeen:
    """One flow as sampled so far. ``peer``: the node id that it goes to, ``bucket`` the number of its bucket
    there; None where its flows cannot be steered."""

    key: FlowKey
    packets: int
    bytes: int
    peer: str | None = None
    bucket: int | None = None


@dataclass(frozen=True, slots=True)
class Ways:
    """The paths of a peer whose flows can be steered. ``used``: the dimensions that may carry traffic;
    ``losses``: of the newest probes, by dimension; ``homes``: by bucket, the dimension of the epoch's map;
    ``dealt``: the buckets that go over all dimensions; ``named``: the bucket that the splitter would deal
    next."""

    used: frozenset[int]
    losses: Sequence[float]
    homes: Sequence[int | None]
    dealt: frozenset[int] = frozenset()
    named: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What STREAM looks at. ``calls``: how often each call was made so far; None where they were not read."""

    flows: Sequence[FlowSeen] = ()
    calls: Mapping[FlowKey, int] | None = None
    ways: Mapping[str, Ways] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(slots=True)
class _Elephant:
    """``heavy``: when the flow last sent enough; ``rate`` in bytes a second. ``named``: whether the flow was
    to be dealt at the last look; ``yields``: until when it is let alone. ``fled``: when it had to leave which
    dimension."""

    flow: FlowSeen
    application: Application
    rate: float
    heavy: float
    dimension: int | None = None
    named: bool = False
    yields: float = float("-inf")
    fled: dict[int, float] = field(default_factory=dict)

    def yielding(self, ways: Ways, now: float) -> bool:
        """Whether the flow is VELOCITY's now. Where one is named for long and nobody deals it, it is not."""
        bucket, before = self.flow.bucket, self.named
        self.named = bucket is not None and bucket == ways.named
        if bucket in ways.dealt or (self.named and not before):
            self.yields = now + YIELDS
        return now < self.yields


class Stream(Agent[Seen]):
    """The policy above."""

    name: ClassVar[AgentName] = "stream"

    def __init__(self, settings: StreamSection | None = None) -> None:
        self.settings = StreamSection() if settings is None else settings
        self.every = IDLE_EVERY
        self._before: dict[FlowKey, int] = {}
        self._looked = float("-inf")
        self._elephants: dict[FlowKey, _Elephant] = {}
        self._patterns = Patterns(
            self.settings.scan_targets, self.settings.beacon_contacts, self.settings.expected_ports
        )

    @property
    def remembered(self) -> int:
        """All that is kept, in entries."""
        return len(self._before) + len(self._elephants) + self._patterns.remembered

    def observe(self, observation: Observation[Seen]) -> Iterable[Proposal]:
        now, seen = observation.at.now, observation.seen
        self.every = BUSY_EVERY if seen.flows else IDLE_EVERY
        self._weigh(seen, now)
        yield from self._pins(seen, now)
        if seen.calls is not None:
            shown = sorted(
                self._patterns.look(seen.calls, now), key=lambda one: (one.kind != "scan", one.about)
            )
            # A source has one finding at a time: the scan, where it shows both.
            for one in list({one.source: one for one in reversed(shown)}.values())[:MOST_RAISED]:
                yield self._raise(one, now)

    def measure(self, seen: Seen, proposal: Proposal) -> float | None:
        action = proposal.action
        if not isinstance(action, Pin):
            return None
        which = action.peer, int(action.flow)
        rates = [one.rate for one in self._elephants.values() if (one.flow.peer, one.flow.bucket) == which]
        return sum(rates)

    # Elephants.

    def _weigh(self, seen: Seen, now: float) -> None:
        """Take in the counters, and find who is an elephant now."""
        passed = now - self._looked
        if passed < SHORTEST:
            return
        bound = self.settings.elephant_kbit * 1000 / 8
        known = self._elephants
        self._elephants = {}
        for flow in seen.flows:
            # A flow that was not there has sent all of it since the last look, or since the set forgot it.
            grown = flow.bytes - self._before.get(flow.key, 0)
            rate = max(0, grown) * SAMPLE / min(passed, 1.0 if flow.key not in self._before else passed)
            one = known.get(flow.key)
            if one is not None:
                one.flow, one.rate = flow, rate
                one.heavy = now if rate >= FADES * bound else one.heavy
                if now - one.heavy < LINGERS:
                    self._elephants[flow.key] = one
            elif rate >= bound and self._looked > float("-inf"):
                size = flow.bytes / max(1, flow.packets)
                ports = flow.key.destination_port, flow.key.source_port
                kind = application_of(flow.key.protocol, ports, size, rate)
                self._elephants[flow.key] = _Elephant(flow, kind, rate, now)
        if len(self._elephants) > MOST_PINS:
            heaviest = sorted(self._elephants.items(), key=lambda one: -one[1].rate)[:MOST_PINS]
            self._elephants = dict(heaviest)
        self._before = {flow.key: flow.bytes for flow in seen.flows}
        self._looked = now

    def _pins(self, seen: Seen, now: float) -> Iterator[Proposal]:
        loads = defaultdict[tuple[str, int], float](float)
        for one in self._elephants.values():
            if one.flow.peer is not None and one.dimension is not None:
                loads[one.flow.peer, one.dimension] += one.rate
        pinned = set[tuple[str, int]]()
        for one in sorted(self._elephants.values(), key=lambda one: -one.rate):
            peer, bucket = one.flow.peer, one.flow.bucket
            ways = None if peer is None else seen.ways.get(peer)
            if peer is None or bucket is None or ways is None:
                continue
            if one.yielding(ways, now) or len(ways.used) < 2:
                continue
            if (peer, bucket) in pinned:
                continue  # another elephant of the same bucket has said it
            if one.dimension not in ways.used:
                if one.dimension is not None:
                    loads[peer, one.dimension] -= one.rate
                    one.fled[one.dimension] = now
                one.dimension = _dimension_for(one, bucket, ways, loads, peer, now)
                loads[peer, one.dimension] += one.rate
            pinned.add((peer, bucket))
            yield self._pin(one, peer, bucket, one.dimension, now)

    def _pin(self, one: _Elephant, peer: str, bucket: int, dimension: int, now: float) -> Proposal:
        bound = self.settings.elephant_kbit
        return Proposal(
            agent="stream",
            subject=Subject("flow", f"{peer}/{bucket}"),
            action=Pin(flow=str(bucket), peer=peer, dimension=dimension),
            evidence=(Evidence("flow_kbit_s", one.rate * 8 / 1000, bound, source="flow-counters"),),
            expects=Expectation("flow_rate", "at_least", KEEPS * one.rate, SETTLES),
            until=now + STANDS,
            why=f"{one.flow.key} ({one.application}) is an elephant; it keeps its order on one dimension.",
            incident=peer,
        )

    # Patterns.

    def _raise(self, one: Pattern, now: float) -> Proposal:
        text = f"{one.source} calls {one.count} {one.about}"
        fix = f"see what runs at {one.source}; keep it off with `phantommesh revoke` if it is not yours"
        if one.kind == "beacon":
            text = f"{one.source} calls {one.about} every {one.period:.0f} s"
            fix = f"see what runs at {one.source}; add its port to agents.stream.expected_ports if it may"
        what, bound = "calls", self.settings.beacon_contacts
        if one.kind == "scan":
            what, bound = "targets", self.settings.scan_targets
        return Proposal(
            agent="stream",
            subject=Subject("address", str(one.source)),
            action=Raise(
                rule=f"pattern-{one.kind}", severity="medium" if one.kind == "scan" else "low",
                text=text, fix=fix,
            ),
            evidence=(Evidence(what, one.count, bound, source="calls"),),
            expects=None,
            until=now + SHOWN,
            why=f"{text}.",
            incident=str(one.source),
        )  # fmt: skip


def _dimension_for(
    one: _Elephant, bucket: int, ways: Ways, loads: Mapping[tuple[str, int], float], peer: str, now: float
) -> int:
    """The dimension for an elephant: its own, or one with clearly less of other elephants."""
    home = ways.homes[bucket] if bucket < len(ways.homes) else None
    # Where all are shunned there is nothing to choose by that.
    used = frozenset(i for i in ways.used if now - one.fled.get(i, float("-inf")) >= SHUNS) or ways.used
    free = used
    if one.application == "call" and home in used and home is not None:
        free = frozenset(i for i in used if ways.losses[i] <= ways.losses[home])
    least = min(sorted(free), key=lambda i: loads.get((peer, i), 0.0))
    if home is None or home not in used:
        return least
    here, there = loads.get((peer, home), 0.0), loads.get((peer, least), 0.0)
    return least if there + one.rate <= SAVES * (here + one.rate) else home
