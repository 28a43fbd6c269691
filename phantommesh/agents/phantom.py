# SPDX-License-Identifier: GPL-3.0-or-later
"""PHANTOM: what an observer of one path sees of this node's traffic, and what is done about it.

What one path shows is dealt with in the data plane first: the goal `private` deals by secret weights, in
batches, with segments of changing sizes (`scatter/goals.py`). PHANTOM adds what costs money or trouble, so
all of it is off until an operator asks.

Inputs: each peer's rate of real traffic (`Paths.rate`, to which neither probes nor cover count), whether the
peer's traffic is private by its goal or by an intent's, by how many hosts WireGuard reaches the peer, the
bytes of cover sent, and the ages of this node's WireGuard keys.

- Cover (`Cover`): a peer that has `ACTIVE` bytes a second of traffic is covered, until `LINGERS` after the
  last of it. `cover_peers` says which peers: those with private traffic, or all. The shape is FRONT's, by
  `scatter/cover.py`, which also holds the budgets: `cover_bytes_per_second` for the node (0, the default:
  none is sent) and `cover_peer_bytes_per_second` for a peer. The rate never follows the traffic's: that would
  tell every path the total (docs/traffic-analysis.md). That a peer is in use at all stays to be seen.
- Port hops (`ReplaceKey`): with `hop_hours` a dimension whose WireGuard key and port are older gets others,
  one at a time, `HOP_APART` at least after another had its key replaced, whoever did that. So who watches
  one path cannot follow it by its port for longer.
- A finding (`Raise`, rule `private-one-uplink`), where private traffic is all sent to one host: who watches
  there sees all seven dimensions, and scattering hides nothing. The finding stands for `CLEARS` after that
  was so last: a peer that moves is sent to at two hosts for a while, and is no better hidden.

Bounds: no more than `MOST_PEERS` peers are covered at once, none with more than `actions.MOST_COVER`, and all
together never beyond the node's budget. PHANTOM delays no packet, sets no weights, covers no peer without
traffic, and reads no packet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from phantommesh.agents.actions import MOST_COVER, Cover, Raise, ReplaceKey
from phantommesh.agents.base import Agent, AgentName, Evidence, Expectation, Observation, Proposal, Subject
from phantommesh.config.agents import PhantomSection

# Tuning.
EVERY: Final = 1.0  # s between looks while cover may be sent: rates are read once a second
IDLE_EVERY: Final = 30.0  # s otherwise: what is looked at then changes by people's hands
ACTIVE: Final = 3000.0  # bytes/s of traffic: above what a reading of counters can be wrong by cover under way
LINGERS: Final = 30.0  # s: people read a page for some ten seconds, and the next load should be covered
SHOWN: Final = 3 * IDLE_EVERY  # s that the finding stands without a look
CLEARS: Final = 180.0  # s; each WireGuard session is made anew after 120, and then at the peer's new host
STANDS: Final = 5.0  # s that a proposal stands without a look: an agent that hangs costs no more than that
MOST_PEERS: Final = 16  # covered at once
KNOWN_AFTER: Final = 15.0  # s after which cover is to be seen in the counters: several fronts
LEAST_SENT: Final = (
    0.1  # of its share that must have been sent by then; fronts are drawn from 0 to twice that
)
HOP_APART: Final = 600.0  # s: a replacement takes a minute, in which a dimension carries nothing
HOPPED_WITHIN: Final = 300.0  # s
ONE_UPLINK: Final = "private-one-uplink"


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """One peer. ``private``: some of its traffic is, by goal or intent; ``rate``: bytes a second to it;
    ``hosts``: different hosts that WireGuard sends to for it, 0 where that is not known; ``cover``: bytes of
    cover that it was sent since its cover began."""

    node_id: str
    private: bool
    rate: float = 0.0
    hosts: int = 0
    cover: int = 0


@dataclass(frozen=True, slots=True)
class Seen:
    """What PHANTOM looks at. ``key_ages``: of the WireGuard keys by dimension in seconds, None where that is
    not known."""

    peers: Sequence[PeerSeen] = ()
    key_ages: Sequence[float | None] = ()


class Phantom(Agent[Seen]):
    """The policy above."""

    name: ClassVar[AgentName] = "phantom"

    def __init__(self, settings: PhantomSection | None = None) -> None:
        self.settings = PhantomSection() if settings is None else settings
        self.every = EVERY if self._rate else IDLE_EVERY
        self._active: dict[str, float] = {}  # covered peers, by when they had traffic last
        self._hopped = float("-inf")
        self._exposed = (
            0,
            float("-inf"),
        )  # how many peers' private traffic was sent to one host, and when last

    @property
    def _rate(self) -> float:
        """The bytes of cover a second that one peer may have."""
        settings = self.settings
        return min(settings.cover_bytes_per_second, settings.cover_peer_bytes_per_second, MOST_COVER)

    def observe(self, observation: Observation[Seen]) -> Iterable[Proposal]:
        now, seen = observation.at.now, observation.seen
        yield from self._cover(seen, now)
        yield from self._hop(seen, now)
        yield from self._finding(seen, now)

    def holds(self, seen: Seen, proposal: Proposal) -> bool:
        match proposal.action:
            case Cover(peer):
                return peer in self._active
            case Raise():
                return self._exposed[0] > 0
            case _:
                return True

    def measure(self, seen: Seen, proposal: Proposal) -> float | None:
        match proposal.action:
            case Cover(peer):
                return next((float(one.cover) for one in seen.peers if one.node_id == peer), None)
            case ReplaceKey(dimension) if dimension < len(seen.key_ages):
                return seen.key_ages[dimension]
            case _:
                return None

    # Cover.

    def _cover(self, seen: Seen, now: float) -> Iterator[Proposal]:
        wanted = {
            one.node_id: one
            for one in seen.peers
            if self._rate and (one.private or self.settings.cover_peers == "all")
        }
        self._active = {
            peer: last for peer, last in self._active.items() if peer in wanted and now - last < LINGERS
        }
        for one in sorted(wanted.values(), key=lambda one: (-one.rate, one.node_id)):
            if one.rate >= ACTIVE and (one.node_id in self._active or len(self._active) < MOST_PEERS):
                self._active[one.node_id] = now
        for peer, last in self._active.items():
            yield self._propose(wanted[peer], now - last, now)

    def _propose(self, one: PeerSeen, quiet: float, now: float) -> Proposal:
        share = min(self._rate, self.settings.cover_bytes_per_second / len(self._active))
        return Proposal(
            agent="phantom", subject=Subject("peer", one.node_id), action=Cover(one.node_id, self._rate),
            evidence=(
                Evidence("rate", one.rate, ACTIVE, "wireguard-counters"),
                Evidence("quiet_s", quiet, LINGERS, "wireguard-counters"),
            ),
            expects=Expectation("cover_bytes", "at_least", LEAST_SENT * share * KNOWN_AFTER, KNOWN_AFTER),
            until=now + STANDS,
            why="The peer has traffic that is to be hidden, and there is a budget for cover.",
        )  # fmt: skip

    # The rest.

    def _hop(self, seen: Seen, now: float) -> Iterator[Proposal]:
        life = 3600.0 * self.settings.hop_hours
        ages = [(age, i) for i, age in enumerate(seen.key_ages) if age is not None and age > life]
        youngest = min((age for age in seen.key_ages if age is not None), default=0.0)
        if not life or not ages or youngest < HOP_APART or now < self._hopped + HOP_APART:
            return  # the ages also tell of what this node did before it began anew
        self._hopped = now
        age, dimension = max(ages)
        yield Proposal(
            agent="phantom", subject=Subject("dimension", str(dimension)), action=ReplaceKey(dimension),
            evidence=(Evidence("wireguard_key_age_s", age, life, "wireguard keys"),),
            expects=Expectation("wireguard_key_age_s", "at_most", HOPPED_WITHIN, HOPPED_WITHIN),
            until=now + STANDS,
            why=f"Dimension {dimension} has had one port and key for longer than it may.",
        )  # fmt: skip

    def _finding(self, seen: Seen, now: float) -> Iterator[Proposal]:
        exposed, last = self._exposed
        if shown := sum(one.private and one.hosts == 1 for one in seen.peers):
            exposed, last = shown, now
        self._exposed = (exposed, last) if now - last < CLEARS else (0, last)
        if exposed := self._exposed[0]:
            yield Proposal(
                agent="phantom", subject=Subject("rule", ONE_UPLINK),
                action=Raise(
                    rule=ONE_UPLINK, severity="low",
                    text=f"private traffic to {exposed} of this node's peers is all sent to one host each: "
                    "who watches there sees all of it",
                    fix="give these peers more uplinks or relays, or another goal",
                ),
                evidence=(Evidence("peers_with_one_host", float(exposed), 0.0, "wireguard"),),
                expects=None, until=now + SHOWN,
                why="Scattering hides nothing from an observer of all dimensions.",
            )  # fmt: skip
