# SPDX-License-Identifier: GPL-3.0-or-later
"""All of a node's paths as one protocol: probes, counters, keys and time in; probes and weights out.

It never raises for anything that came from the network: what it cannot use is counted in `drops`, by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final

from phantommesh.dimensions import DIMENSIONS, bits, has
from phantommesh.errors import DecodeError
from phantommesh.paths.effects import Effect, PathView, Rescore, Send, Turned
from phantommesh.paths.pace import CLOSER, FURTHER, Pace, Watch
from phantommesh.paths.probe import Probe, decode_probe_untrusted
from phantommesh.paths.quickest import Candidate, Quickest
from phantommesh.paths.state import MISSES, SILENT, Path, PathState
from phantommesh.paths.weights import FULL, leaves, weigh, weights
from phantommesh.rates import Bucket
from phantommesh.timers import Timers

# Tuning.
SLOW: Final = 10.0  # s between probes of a path while there is no traffic to its peer
RETURN: Final = 1.0  # s between probes of a dark path of a peer that answers on others
BUDGET: Final = (
    150.0  # fast probes a second at most, over all peers: each is answered by a node that is as busy
)
COUNT: Final = 0.25  # s between two counts of what probing fast would take
SLOW_BUDGET: Final = 20.0  # slow ones
SPREAD: Final = 0.15  # of the interval, either way: an observer should not find seven probes at one moment
SLOT: Final = 1.0  # s between the moments at which slow probes leave: a wake-up costs more than a probe
ANSWERS: Final = 50.0, 100.0  # pings of a path that are answered, a second and at once
LOOK: Final = 0.1  # s between two looks for the quickest path of a peer
STALL: Final = 0.1  # s that a tick may be late before this node itself is taken for the cause of silence
WEIGH: Final = 1.0  # s between two looks at the shares
LATELY: Final = 3.0  # slow pauses within which a probe has to have come back for its path to carry anything
ROUSED: Final = 5.0  # s after a move for which a path that does not answer yet is asked as often as a new one


@dataclass(slots=True)
class Seek:
    """The search for the quickest path to one peer."""

    watch: Watch
    found: Quickest = field(default_factory=Quickest)
    look_at: float = float("-inf")


@dataclass(slots=True)
class _Peer:
    paths: list[Path]
    scores: tuple[float, ...] = FULL
    quickest: int | None = None  # the dimension that traffic takes which waits for answers
    in_force: tuple[float, ...] = FULL
    pace: Pace = field(default_factory=Pace)
    answered: float = float("-inf")  # when the newest answered ping was sent, on any path
    heard: float = float("-inf")  # when its latest probe came, on any path
    roused: float = float("-inf")  # until when it may have to be found anew
    sent: list[int | None] = field(default_factory=lambda: [None] * DIMENSIONS)
    probes: list[int] = field(default_factory=lambda: [0] * DIMENSIONS)  # bytes of them, as of `sent`
    received: list[tuple[float, int] | None] = field(default_factory=lambda: [None] * DIMENSIONS)
    seek: Seek | None = None  # only where its traffic takes the quickest path
    answers: list[Bucket] = field(default_factory=lambda: [Bucket(*ANSWERS, 0.0) for _ in range(DIMENSIONS)])


class Paths:
    """Every path of one node. ``now`` is seconds on any clock that only goes forward; ``interval`` is the
    time between probes of a path under traffic."""

    def __init__(self, *, random: Random, interval: float) -> None:
        self._random, self._interval = random, interval
        self._thrift = (float("-inf"), 1.0)  # when it was counted, and by how much fast probes are too many
        self._peers: dict[bytes, _Peer] = {}
        self._leaving = 0
        self._timers = Timers[tuple[bytes, int]]()  # by peer and dimension
        self._weigh_at = float("inf")
        self._hold = float("-inf")
        self.drops: Counter[str] = Counter()

    # --- what the node knows ---

    def set_peers(self, peers: Mapping[bytes, int], now: float) -> list[Effect]:
        """Keep paths with exactly these peers, open on the dimensions of each bitmap: where both ends have
        keys, so that something may be sent."""
        effects: list[Effect] = []
        for gone in self._peers.keys() - peers.keys():
            for path in self._peers.pop(gone).paths:
                path.close(now)
                self._schedule(path)
        for node_id, ready in peers.items():
            if node_id not in self._peers:
                numbers = [self._random.getrandbits(32) for _ in range(DIMENSIONS)]
                self._peers[node_id] = _Peer([Path(node_id, i, n, since=now) for i, n in enumerate(numbers)])
            effects += self.set_ready(node_id, ready, now)
        return effects

    def set_ready(self, node_id: bytes, ready: int, now: float) -> list[Effect]:
        """Open the paths with one of the peers on the dimensions of this bitmap, and close the others."""
        peer, effects = self._peers.get(node_id), list[Effect]()
        if peer is None:
            return effects
        first = not any(path.state in (PathState.UP, PathState.PROVING) for path in peer.paths)
        for i, path in enumerate(peer.paths):
            before = path.state
            if has(ready, i) and before is PathState.CLOSED:
                path.open(now, first=first)
                self._schedule(path)
            elif not has(ready, i) and before is not PathState.CLOSED:
                path.close(now)
                self._schedule(path)
            if path.state is not before:
                effects.append(Turned(node_id, i, before, path.state))
        return effects + self._rescore(node_id, peer, now)

    def seek_quickest(self, peers: Container[bytes], now: float) -> list[Effect]:
        """Look for the quickest path to these of the peers, and to no others."""
        effects: list[Effect] = []
        for node_id, peer in self._peers.items():
            if (node_id in peers) == (peer.seek is not None):
                continue
            peer.seek = Seek(Watch(now)) if peer.seek is None else None
            effects += self._rescore(node_id, peer, now)
        return effects

    def quickest(self, node_id: bytes) -> Quickest | None:
        """The search for the quickest path to a peer as it is; None where there is none."""
        peer = self._peers.get(node_id)
        return None if peer is None or peer.seek is None else peer.seek.found

    def read(self, node_id: bytes, counters: Sequence[tuple[int, int] | None], now: float) -> None:
        """Take in WireGuard's counters of a peer: bytes sent and received on each dimension."""
        peer = self._peers.get(node_id)
        if peer is None:
            return
        carried = 0
        for i, counted in enumerate(counters):
            path, before = peer.paths[i], peer.sent[i]
            if counted is None:
                peer.sent[i] = peer.received[i] = None
                continue
            sent, received = counted
            peer.received[i] = (now, received)
            path.quality.counted.sent(sent, now)
            if before is not None and sent > before:
                carried += sent - before - (path.probe_bytes - peer.probes[i])
            peer.sent[i], peer.probes[i] = sent, path.probe_bytes
        if peer.pace.carried(carried, now):
            for path in peer.paths:
                if path.state is PathState.UP:
                    pause = self._pause(peer, path, now)
                    path.next_probe = min(path.next_probe, now + self._random.uniform(0, pause))
                    self._schedule(path)
        if peer.pace.busy(now):
            self._weigh_at = min(self._weigh_at, now + WEIGH)

    def leave(self, dimensions: int, now: float) -> list[Effect]:
        """Take these dimensions, a bitmap, out of use with all peers, and give the others back."""
        changed, self._leaving = self._leaving ^ dimensions, dimensions
        effects: list[Effect] = []
        for node_id, peer in self._peers.items():
            for path in peer.paths:
                if has(changed, path.dimension) and path.state in (PathState.UP, PathState.PROVING):
                    path.next_probe = now  # so that the peer hears of it
                    self._schedule(path)
            effects += self._rescore(node_id, peer, now)
        return effects

    def set_aside(self, node_id: bytes, dimensions: int, now: float) -> list[Effect]:
        """Take these dimensions of one peer, a bitmap, out of use at both ends, and give its others back.
        Those are probed all the time, and may fall silent without being taken for dark."""
        peer = self._peers.get(node_id)
        if peer is None:
            return []
        for path in peer.paths:
            if path.aside != has(dimensions, path.dimension):
                path.aside = not path.aside
                path.pardon()
                if path.state is not PathState.CLOSED:
                    path.next_probe = now  # so that the peer hears of it
                    self._schedule(path)
        return self._rescore(node_id, peer, now)

    def at_rest(self, node_id: bytes) -> int:
        """The dimensions of a peer, a bitmap, by which neither end sends traffic."""
        peer = self._peers.get(node_id)
        if peer is None:
            return 0
        return bits(
            path.peer_drained and force == 0.0 for path, force in zip(peer.paths, peer.in_force, strict=True)
        )

    def in_force(self, node_id: bytes, scores: tuple[float, ...]) -> None:
        """The kernel sends by these weights now."""
        if (peer := self._peers.get(node_id)) is not None:
            peer.in_force = scores

    def drained(self, dimension: int) -> bool:
        """Whether neither end of any working path sends on this dimension."""
        return all(
            peer.in_force[dimension] == 0.0 and path.peer_drained
            for peer in self._peers.values()
            if (path := peer.paths[dimension]).state in (PathState.UP, PathState.PROVING)
        )

    def restored(self, dimension: int) -> bool:
        """Whether this dimension works again with every peer that answers on some other."""
        return all(
            peer.paths[dimension].state is PathState.UP
            for peer in self._peers.values()
            if any(path.state is PathState.UP for path in peer.paths)
        )

    # --- the protocol ---

    @property
    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return min(self._timers.first, self._weigh_at)

    def receive(self, datagram: bytes, node_id: bytes, dimension: int, now: float) -> list[Effect]:
        """Take a probe that came in through this dimension from this peer."""
        peer = self._peers.get(node_id)
        if peer is None:
            return self._drop("probe-peer")
        try:
            probe = decode_probe_untrusted(datagram)
        except DecodeError:
            return self._drop("probe-malformed")
        if probe.dimension != dimension:
            return self._drop("probe-dimension")
        peer.heard = now
        path, effects = peer.paths[dimension], list[Effect]()
        was = path.state, path.share, self._leaves(path)
        if not probe.pong:
            if not peer.answers[dimension].take(now):
                return self._drop("probe-rate")
            if path.state is PathState.DARK and path.misses:
                path.misses = 0  # it answers no more, but may by now: ask at once
                path.next_probe = min(path.next_probe, now)
                self._schedule(path)
            path.probes += 1
            path.heard_at = now
            effects.append(self._probe(peer, path, probe.number, pong=True, now=now))
        else:
            before = path.state
            sent = path.answered(probe.number, now)
            if sent is None:
                return self._drop("probe-late")
            peer.answered = max(peer.answered, sent)
            if before is not path.state:
                effects.append(Turned(node_id, dimension, before, path.state))
            if path.state is PathState.PROVING and before is PathState.DARK:
                path.next_probe = now + self._spread(self._interval * self._too_many(now))
            self._schedule(path)
            if probe.age is not None and path.quality.rtt is not None:
                path.quality.counted.arrived(probe.received, now - path.quality.rtt / 2 - probe.age)
        if path.peer_leaving and not probe.leaving:
            path.pardon()
            self._schedule(path)
        path.peer_leaving, path.peer_drained, path.sizes = probe.leaving, probe.drained, probe.sizes
        if (path.state, path.share, self._leaves(path)) != was:
            effects += self._rescore(node_id, peer, now)
        elif probe.pong:
            effects += self._seek(node_id, peer, now)
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Send the probes that are due, and count those whose answers are."""
        effects: list[Effect] = []
        if now - self.deadline > STALL:
            self._hold = now + self._interval
        while self.deadline <= now:
            if self._weigh_at <= now:
                self._weigh(now)
                for node_id, peer in self._peers.items():
                    effects += self._rescore(node_id, peer, now)
                continue
            node_id, dimension = self._timers.take()
            peer = self._peers[node_id]
            path = peer.paths[dimension]
            before = path.state
            path.overdue(now, self._hold)
            if path.misses:
                watched = self._watch(peer, path, now) is not None
                path.judge(peer.answered, now, self._interval if watched else 0.0)
            if path.misses >= MISSES and peer.answered < path.first_missed:
                self._ask_all(peer, now)
            if path.state is not before:
                effects.append(Turned(path.peer, path.dimension, before, path.state))
                effects += self._rescore(path.peer, peer, now)
            elif path.misses:
                effects += self._seek(path.peer, peer, now)
            pause = self._pause(peer, path, now)
            if path.misses:
                path.next_probe = min(path.next_probe, now + pause)
            if path.next_probe <= now:
                if (watch := self._watch(peer, path, now)) is not None:
                    watch.sent(now)
                number = path.ping(now, max(self._interval, path.quality.timeout))
                effects.append(self._probe(peer, path, number, pong=False, now=now))
                path.next_probe = self._next(peer, now, pause)
            self._schedule(path)
        return effects

    def _ask_all(self, peer: _Peer, now: float) -> None:
        """No dimension of this peer has answered since one of them fell silent: ask all of them now, so that
        a peer with whom nothing flows is known within few seconds even where there is no traffic."""
        for path in peer.paths:
            if path.state is PathState.UP and not path.misses and path.next_probe > now and not path.waits:
                path.next_probe = now
                self._schedule(path)

    def _pause(self, peer: _Peer, path: Path, now: float) -> float:
        """How long until the next probe."""
        if (watch := self._watch(peer, path, now)) is not None:
            suspects = path.quality.alarm.suspects
            return watch.pause(self._interval * self._too_many(now), now, suspects=suspects)
        unsure = 0 < path.misses < SILENT and path.state is not PathState.DARK
        leaving = path.aside or (has(self._leaving, path.dimension) and not path.peer_drained)
        if unsure or (_new(path) and path.misses < MISSES):
            return self._interval * self._too_many(now)
        if path.state is PathState.UP and (leaving or path.peer_leaving):
            return self._interval * self._too_many(now)
        if path.state is PathState.UP and peer.pace.busy(now):
            return self._busy_pause(peer) * self._too_many(now)
        if now < peer.roused and (path.misses or path.state is not PathState.UP):
            return self._interval * self._too_many(now)
        slow = self._slow
        alive = any(other.state in (PathState.UP, PathState.PROVING) for other in peer.paths)
        return RETURN if path.state is PathState.DARK and alive else slow

    def _watch(self, peer: _Peer, path: Path, now: float) -> Watch | None:
        """What says how closely to watch a path that has a peer's traffic as the quickest; None for another
        path, and while there is no traffic."""
        if peer.seek is None or peer.quickest != path.dimension or not peer.pace.busy(now):
            return None
        return peer.seek.watch if path.state is PathState.UP else None

    def _busy_pause(self, peer: _Peer) -> float:
        """The seconds between probes of a path of a peer with traffic; of the quickest there are more, and
        fewer of the others, so that all are as many as without."""
        pause = peer.pace.pause(self._interval)
        return pause if peer.quickest is None else max(FURTHER * self._interval, pause)

    @property
    def _slow(self) -> float:
        """The seconds between probes of a path while there is no traffic to its peer."""
        return max(SLOW, len(self._peers) * DIMENSIONS / SLOW_BUDGET)

    def _too_many(self, now: float) -> float:
        """By how much pauses have to be longer so that all fast probes stay within `BUDGET`; 1 or more."""
        counted_at, factor = self._thrift
        if now >= counted_at + COUNT:
            eager = sum(self._eager(peer, now) for peer in self._peers.values())
            factor = max(1.0, eager / BUDGET)
            self._thrift = now, factor
        return factor

    def _eager(self, peer: _Peer, now: float) -> float:
        """How many fast probes a second a peer is sent."""
        if any(map(_new, peer.paths)) or now < peer.roused:
            return DIMENSIONS / self._interval
        if not peer.pace.busy(now):
            return 0.0
        others = DIMENSIONS / self._busy_pause(peer)
        return others if peer.seek is None or peer.quickest is None else others + CLOSER / self._interval

    def _next(self, peer: _Peer, now: float, pause: float) -> float:
        """When to probe a path again after a pause. Slow probes of different peers leave in one wake-up, and
        those of one peer at different moments."""
        moment = now + self._spread(pause)
        if pause < SLOW:
            return moment
        slot = round(moment / SLOT)
        slots = [around * SLOT for around in (slot, slot - 1, slot + 1, slot + 2, slot - 2)]
        taken = {path.next_probe for path in peer.paths}
        return next((free for free in slots if free not in taken and free > now), moment)

    def _spread(self, pause: float) -> float:
        return pause * self._random.uniform(1 - SPREAD, 1 + SPREAD)

    def _schedule(self, path: Path) -> None:
        self._timers.set((path.peer, path.dimension), path.due)

    def _probe(self, peer: _Peer, path: Path, number: int, *, pong: bool, now: float) -> Send:
        counted = peer.received[path.dimension]
        # Without keys it is not to be used either: the kernel may still have old ones that go any moment.
        leaving = path.aside or has(self._leaving, path.dimension) or path.state is PathState.CLOSED
        probe = Probe(
            pong,
            path.dimension,
            number,
            leaving=leaving,
            drained=peer.in_force[path.dimension] == 0.0,
            received=0 if counted is None else counted[1],
            age=None if counted is None else now - counted[0],
        )
        return Send(path.peer, path.dimension, probe.encode())

    def _drop(self, reason: str) -> list[Effect]:
        self.drops[reason] += 1
        return []

    # --- weights ---

    def _weigh(self, now: float) -> None:
        """Move the shares of all peers with traffic, and of those whose paths have some to win back: what was
        lost may be long ago by the next traffic."""
        moving = [
            peer
            for peer in self._peers.values()
            if peer.pace.busy(now)
            or any(path.state is PathState.UP and path.share < 1.0 for path in peer.paths)
        ]
        self._weigh_at = now + WEIGH if moving else float("inf")
        for peer in moving:
            weigh(peer.paths)

    def scores(self, node_id: bytes) -> tuple[float, ...]:
        """The weights of a peer's dimensions, by capacity and loss; delay does not count. There is always one
        that is not zero: where no path is up, the likeliest carry the traffic. An unknown peer has equal
        ones."""
        peer = self._peers.get(node_id)
        return FULL if peer is None else peer.scores

    def _rescore(self, node_id: bytes, peer: _Peer, now: float) -> list[Effect]:
        scores, quickest = weights(peer.paths, self._leaving), None
        if peer.seek is not None:
            peer.seek.look_at = now + LOOK
            held = peer.seek.found.chosen
            seen = [
                _candidate(path, score, now, held=path.dimension == held)
                for path, score in zip(peer.paths, scores, strict=True)
            ]
            quickest = peer.seek.found.look(seen, now)
        if (scores, quickest) == (peer.scores, peer.quickest):
            return []
        peer.scores, peer.quickest = scores, quickest
        return [Rescore(node_id, scores, quickest)]

    def _seek(self, node_id: bytes, peer: _Peer, now: float) -> list[Effect]:
        """Look for the quickest path, if it is time."""
        if peer.seek is None or now < peer.seek.look_at:
            return []
        return self._rescore(node_id, peer, now)

    def _leaves(self, path: Path) -> bool:
        return leaves(path, self._leaving)

    def delay(self, node_id: bytes) -> float:
        """How long a packet to a peer may be on its way, by the slowest of its paths: seconds there and back,
        and 0.0 while nothing is known."""
        peer = self._peers.get(node_id)
        return max((path.quality.timeout for path in peer.paths), default=0.0) if peer is not None else 0.0

    def path(self, node_id: bytes, dimension: int) -> Path | None:
        """One path as it is; None for an unknown peer."""
        peer = self._peers.get(node_id)
        return None if peer is None else peer.paths[dimension]

    def rate(self, node_id: bytes, now: float) -> float:
        """The bytes a second that a peer is sent, probes aside; 0.0 while there is no traffic."""
        peer = self._peers.get(node_id)
        return 0.0 if peer is None else peer.pace.rate(now)

    def beside(self, node_id: bytes, dimension: int, size: int) -> None:
        """A sized probe or its answer is sent by this path, of ``size`` bytes as WireGuard counts them."""
        path = self.path(node_id, dimension)
        if path is not None:
            path.beside += size

    def set_narrow(self, node_id: bytes, dimension: int, narrow: bool, now: float) -> list[Effect]:
        """Take a path out of use that answers small probes and swallows all packets of a useful size, or give
        it back."""
        peer = self._peers.get(node_id)
        if peer is None:
            return []
        peer.paths[dimension].narrow = narrow
        return self._rescore(node_id, peer, now)

    def ask(self, node_id: bytes, dimension: int, number: int, now: float) -> Send | None:
        """A ping of somebody else's number, which this does not wait for (`paths.burst`); None where the path
        has no keys."""
        peer = self._peers.get(node_id)
        if peer is None or (path := peer.paths[dimension]).state is PathState.CLOSED:
            return None
        path.probes += 1
        return self._probe(peer, path, number, pong=False, now=now)

    def hurry(self, node_id: bytes, dimension: int, now: float) -> None:
        """Send a probe by this path now, unless one is under way: it matters whether the path answers."""
        path = self.path(node_id, dimension)
        if path is not None and path.state is not PathState.CLOSED and not path.waits:
            path.next_probe = min(path.next_probe, now)
            self._schedule(path)

    def rouse(self, node_id: bytes, dimensions: int, now: float) -> None:
        """One of the ends is somewhere else on these dimensions of a peer, a bitmap: send a probe now. The
        peer's WireGuard follows the packet to where this node is, and each end learns whether the other
        answers."""
        peer = self._peers.get(node_id)
        if peer is None:
            return
        peer.roused = now + ROUSED
        for path in peer.paths:
            if has(dimensions, path.dimension) and path.state is not PathState.CLOSED:
                path.move(now)
                self._schedule(path)

    def dark(self, node_id: bytes) -> int:
        """The dark dimensions of a peer, as a bitmap."""
        peer = self._peers.get(node_id)
        return 0 if peer is None else bits(path.state is PathState.DARK for path in peer.paths)

    def heard(self, node_id: bytes) -> float:
        """When the latest probe came from a peer, asking or answering: then its process was there. -inf:
        never."""
        peer = self._peers.get(node_id)
        return float("-inf") if peer is None else peer.heard

    def view(self, node_id: bytes, now: float) -> list[PathView]:
        """Return what to report of a peer's paths, by dimension."""
        peer = self._peers.get(node_id)
        if peer is None:
            return []
        lately = LATELY * self._slow
        return [
            PathView(
                path.state,
                now - path.since,
                path.quality.rtt,
                path.quality.jitter,
                path.quality.loss,
                score,
                _ago(path.opened_at, now),
                _ago(path.answered_at, now),
                _ago(path.heard_at, now),
                path.answers(now, lately),
            )
            for path, score in zip(peer.paths, peer.scores, strict=True)
        ]


def _ago(moment: float | None, now: float) -> float | None:
    return None if moment is None else now - moment


def _new(path: Path) -> bool:
    """Whether a path has to show first that it carries anything."""
    return path.state is PathState.PROVING or path.quality.rtt is None


def _candidate(path: Path, score: float, now: float, *, held: bool) -> Candidate:
    """One path as a candidate for the quickest. ``held``: it is the one that is taken now."""
    quality = path.quality
    return Candidate(
        score > 0.0,
        quality.rtt,
        quality.jitter,
        quality.loss,
        quality.standing.least(now) if held else None,
        quality.standing.queue(now) if held else 0.0,
        quality.alarm.sure,
        not path.misses,
    )
