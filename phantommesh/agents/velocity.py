# SPDX-License-Identifier: GPL-3.0-or-later
"""VELOCITY: which paths of a peer are left for a while, and which flows are dealt over several.

What must react within a round trip stays in the data plane: a path that answers nothing is dark and left
(`paths/machine.py`), a share follows loss step by step (`paths/weights.py`), and traffic of the goal
`latency` takes the quickest path (`paths/quickest.py`). VELOCITY decides what stands for seconds to minutes.
The data plane obeys: a factor of 0 takes a path from every goal, and a flow is dealt on VELOCITY's word only
(`scatter/splitting.py` says which flow a path may hold up, and judges afterwards whether dealing gained).

Inputs: each peer's paths as its probes tell (`paths.quickest.Candidate`), the rate of its traffic, the flow
that the splitter would deal next, and those that it deals.

A path is left

- as lossy, where its loss is sure (`paths/lossalarm.py`: Page's test for one probe in 25 against one in 250)
  and another path loses nothing;
- as late, where no answer of the last 0.6 s (`paths/standing.py`, the least wait as in RFC 8289) was less
  than `late_ms` above the least ever, nor as fast as another path costs (`paths/cost.py`). Lateness
  counts only for peers all of whose traffic keeps its order: elsewhere capacity is worth more.

It is taken back after it was neither lossy nor late, whichever it was left for, for `return_seconds`. These
double each time it is left again before `CALM` has passed, up to `LONGEST_HOLD`. For the ten seconds that
APEX has a path rest after that, it is not left again; what ails it by then may be over.

A path that is no longer late as soon as the traffic has left was late by that traffic, and is taken back at
once. So was one that is late as soon as the traffic has come back. No path of that peer is then left as late
for `OWN_PAUSE`, doubled each time: more traffic than a path carries is the splitter's business.

A flow is dealt when the splitter names it. The splitter brings it back by itself where dealing gains nothing
or is needed no more, and VELOCITY lets go of it then.

Bounds: at most `most_left` paths of a peer are left at once, and never the last sound one. VELOCITY
chooses no relay (`routing/borrowing.py` has its own hysteresis), makes no path carry more than its measured
share, and never deals flows of a peer whose goal keeps their order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, Literal

from phantommesh.agents.actions import Deal, Weigh
from phantommesh.agents.base import Agent, AgentName, Evidence, Expectation, Observation, Proposal, Subject
from phantommesh.config.agents import VelocitySection
from phantommesh.paths.cost import worth
from phantommesh.paths.quickest import Candidate

# Tuning.
BUSY_EVERY: Final = 0.25  # s between looks while a peer has traffic: a path is to be left within 2 s
IDLE_EVERY: Final = 2.0  # s otherwise; without traffic nothing is probed often enough to judge sooner
STANDS: Final = 5.0  # s that a proposal stands without a look: an agent that hangs takes nothing from traffic
CALM: Final = 600.0  # s in use after which a path that was left counts as never left
LONGEST_HOLD: Final = 900.0  # s
OWN: Final = (
    3.0  # s after it was left, or taken back, within which a path sound, or late, is so by its traffic
)
OWN_PAUSE: Final = 60.0  # s
MOST_OWN_PAUSE: Final = 960.0  # s
GAINS: Final = (
    1.1  # times as much as before that a dealt flow's peer should get: `scatter.splitting.GAIN_ALL`
)
TRIED: Final = 4.0  # s after which that is known: `scatter.splitting.MAX_TRIAL`
SEEN_WITHIN: Final = 2.0  # s after which a path that was left should no longer count


@dataclass(frozen=True, slots=True)
class Nominee:
    """A flow that its path may hold up: the number of its bucket, the bytes a second that it has, the
    dimension, and what stands in that path's queue (seconds) and is lost there."""

    bucket: int
    rate: float
    dimension: int
    queue: float
    loss: float


@dataclass(frozen=True, slots=True)
class PeerSeen:
    """One peer. ``in_order``: all of its traffic keeps its order, so that delay matters. ``rate``: bytes a
    second to it. ``dealt``: the buckets that are dealt over several dimensions now."""

    node_id: str
    in_order: bool
    rate: float
    paths: Sequence[Candidate]
    nominee: Nominee | None = None
    dealt: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Seen:
    """What VELOCITY looks at: the peers with traffic, and those of whom a path is left."""

    peers: Sequence[PeerSeen] = ()


Why = Literal["lossy", "late"]


@dataclass(slots=True)
class _Left:
    """A path that is left: why, since when, its round trip before it became late (seconds), how long it has
    to be sound, and since when it is."""

    why: Why
    since: float
    before: float
    hold: float
    sound: float | None = None


@dataclass(slots=True)
class _Peer:
    left: dict[int, _Left] = field(default_factory=dict)
    holds: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By dimension: how long it had to be sound when it was left last, and when it was taken back."""
    own_pause: float = 0.0
    late_from: float = float("-inf")  # until then no path is left as late

    def pause(self, now: float) -> None:
        """A path was late by this peer's own traffic: leave none as late for a while."""
        calm = now >= self.late_from + CALM
        self.own_pause = OWN_PAUSE if calm else min(MOST_OWN_PAUSE, 2.0 * self.own_pause or OWN_PAUSE)
        self.late_from = now + self.own_pause


class Velocity(Agent[Seen]):
    """The policy above."""

    name: ClassVar[AgentName] = "velocity"

    def __init__(self, settings: VelocitySection | None = None) -> None:
        self.settings = VelocitySection() if settings is None else settings
        self.every = BUSY_EVERY
        self._peers: dict[str, _Peer] = {}

    def left(self, node_id: str) -> frozenset[int]:
        """The dimensions of a peer that are left."""
        known = self._peers.get(node_id)
        return frozenset(() if known is None else known.left)

    def observe(self, observation: Observation[Seen]) -> Iterable[Proposal]:
        now, peers = observation.at.now, observation.seen.peers
        self._peers = {one.node_id: self._peers.get(one.node_id) or _Peer() for one in peers}
        self.every = BUSY_EVERY if any(one.rate > 0.0 for one in peers) else IDLE_EVERY
        for one in peers:
            yield from self._paths(one, self._peers[one.node_id], now)
            yield from self._flows(one, now)

    def holds(self, seen: Seen, proposal: Proposal) -> bool:
        """A path that is taken back is free at once: another may be left in its place now."""
        action = proposal.action
        return not isinstance(action, Weigh) or action.dimension in self.left(action.peer)

    def measure(self, seen: Seen, proposal: Proposal) -> float | None:
        action, expects = proposal.action, proposal.expects
        if not isinstance(action, Weigh | Deal) or expects is None:
            return None
        peer = next((one for one in seen.peers if one.node_id == action.peer), None)
        if peer is None:
            return None
        used = [c for i, c in enumerate(peer.paths) if c.usable and i not in self.left(peer.node_id)]
        match expects.what:
            case "rate":
                return peer.rate
            case "lossy_paths":
                return float(sum(c.lossy for c in used))
            case "rtt_ms":
                return _mean_ms(used)
        return None

    # Paths.

    def _paths(self, peer: PeerSeen, known: _Peer, now: float) -> Iterator[Proposal]:
        for dimension, one in list(known.left.items()):
            self._take_back(peer, known, dimension, one, now)
        for dimension, one in list(known.left.items()):
            yield self._leave(peer, dimension, one, now, ())
        for dimension, path in enumerate(peer.paths):
            if dimension in known.left or not path.usable or len(known.left) >= self.settings.most_left:
                continue
            refuges = [
                other
                for i, other in enumerate(peer.paths)
                if i != dimension and i not in known.left and _is_sound(other)
            ]
            found = self._sick(peer, known, path, refuges, now) if refuges else None
            if found is not None:
                why, evidence = found
                _, returned = known.holds.get(dimension, (0.0, float("-inf")))
                if why == "late" and now - returned <= OWN:
                    known.pause(now)
                if now - returned < Weigh.rests:  # it would be refused, and may be over by then
                    continue
                before = (path.rtt or 0.0) if path.least is None else path.least - path.rose
                known.left[dimension] = left = _Left(why, now, before, self._hold(known, dimension, now))
                yield self._leave(peer, dimension, left, now, evidence, path, refuges)

    def _sick(
        self, peer: PeerSeen, known: _Peer, path: Candidate, refuges: Sequence[Candidate], now: float
    ) -> tuple[Why, tuple[Evidence, ...]] | None:
        if path.lossy:
            loss = Evidence("probe_loss", path.loss, source="probes")
            return "lossy", (Evidence("loss_alarm", 1.0, 1.0, source="page-test"), loss)
        late = self.settings.late_ms / 1000
        cost = _better(peer, path, refuges) if now >= known.late_from and path.rose >= late else None
        if cost is None or path.least is None:
            return None
        return "late", (
            Evidence("rtt_rose_ms", path.rose * 1000, self.settings.late_ms, source="probes"),
            Evidence("least_rtt_ms", path.least * 1000, cost * 1000, source="probes"),
        )

    def _hold(self, known: _Peer, dimension: int, now: float) -> float:
        """How long a path has to be sound that is left now."""
        before, at = known.holds.get(dimension, (0.0, float("-inf")))
        if now - at >= CALM or not before:
            return self.settings.return_seconds
        return min(LONGEST_HOLD, 2.0 * before)

    def _take_back(self, peer: PeerSeen, known: _Peer, dimension: int, one: _Left, now: float) -> None:
        path = peer.paths[dimension]
        late = self.settings.late_ms / 1000 / 2
        trip = path.rtt if path.least is None else path.least
        sound = _is_sound(path) and not path.doubted
        if one.why == "late":
            sound = sound and trip is not None and trip <= one.before + late
        elif path.rose >= late:  # as late it would be left again at once
            refuges = [path for i, path in enumerate(peer.paths) if i not in known.left and _is_sound(path)]
            sound = sound and _better(peer, path, refuges) is None
        if not sound:
            one.sound = None
            return
        one.sound = now if one.sound is None else one.sound
        own = one.why == "late" and one.sound - one.since <= OWN
        if own:
            known.pause(now)
        if own or now - one.sound >= one.hold:
            known.holds[dimension] = one.hold, now
            del known.left[dimension]

    def _leave(
        self,
        peer: PeerSeen,
        dimension: int,
        left: _Left,
        now: float,
        evidence: tuple[Evidence, ...],
        path: Candidate | None = None,
        refuges: Sequence[Candidate] = (),
    ) -> Proposal:
        expects = None
        if path is not None:
            expects = Expectation("lossy_paths", "at_most", 0.0, SEEN_WITHIN)
            if left.why == "late":
                expects = Expectation("rtt_ms", "at_most", _mean_ms([path, *refuges]), SEEN_WITHIN)
        since = Evidence("left_s", now - left.since)
        return Proposal(
            agent="velocity",
            subject=Subject("path", f"{peer.node_id}/{dimension}"),
            action=Weigh(peer=peer.node_id, dimension=dimension, factor=0.0),
            evidence=evidence or (since,),
            expects=expects,
            until=now + STANDS,
            why=f"Dimension {dimension} became {left.why}, and other paths of the peer did not.",
            incident=peer.node_id,
        )

    # Flows.

    def _flows(self, peer: PeerSeen, now: float) -> Iterator[Proposal]:
        named, one = set(peer.dealt), peer.nominee
        if one is not None and one.bucket not in named:
            yield self._deal(
                peer,
                one.bucket,
                now,
                (
                    Evidence("rate", one.rate, source="flow-counters"),
                    Evidence("queue_ms", one.queue * 1000, source="probes"),
                    Evidence("probe_loss", one.loss, source="probes"),
                ),
                f"Dimension {one.dimension} may hold this flow up, and another has room.",
                Expectation("rate", "at_least", GAINS * peer.rate, TRIED),
            )
        for bucket in sorted(named):
            evidence = (Evidence("rate", peer.rate, source="flow-counters"),)
            yield self._deal(peer, bucket, now, evidence, "Dealing this flow gains.", None)

    def _deal(
        self,
        peer: PeerSeen,
        bucket: int,
        now: float,
        evidence: tuple[Evidence, ...],
        why: str,
        expects: Expectation | None,
    ) -> Proposal:
        return Proposal(
            agent="velocity",
            subject=Subject("flow", f"{peer.node_id}/{bucket}"),
            action=Deal(flow=str(bucket), peer=peer.node_id, dealt=True),
            evidence=evidence,
            expects=expects,
            until=now + STANDS,
            why=why,
        )


def _is_sound(path: Candidate) -> bool:
    """Whether traffic may flee to a path, or return."""
    return path.usable and path.fresh and not path.lossy and path.rtt is not None


def _better(peer: PeerSeen, path: Candidate, refuges: Sequence[Candidate]) -> float | None:
    """What the best of the others costs, where order is kept and that is worth leaving a late path for."""
    cost = min((one.cost for one in refuges if one.cost is not None), default=None)
    found = peer.in_order and path.least is not None and cost is not None and worth(path.least, cost)
    return cost if found else None


def _mean_ms(paths: Sequence[Candidate]) -> float:
    """The mean round trip of those that are measured, in milliseconds; 0 of none."""
    trips = [path.rtt for path in paths if path.rtt is not None]
    return 1000 * sum(trips) / len(trips) if trips else 0.0
