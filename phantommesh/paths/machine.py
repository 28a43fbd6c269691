# SPDX-License-Identifier: GPL-3.0-or-later
"""All of a node's paths as one protocol: probes, counters, keys and time in; probes and weights out.

It never raises for anything that came from the network: what it cannot use is counted in `drops`, by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from random import Random
from typing import Final

from phantommesh.dimensions import DIMENSIONS, bits, has
from phantommesh.errors import DecodeError
from phantommesh.paths.effects import Effect, PathView, Rescore, Send, Turned
from phantommesh.paths.pace import Watch
from phantommesh.paths.peer import Peer, Seek, candidate
from phantommesh.paths.probe import Probe, decode_probe_untrusted
from phantommesh.paths.quickest import Candidate, Quickest
from phantommesh.paths.schedule import Schedule
from phantommesh.paths.state import MISSES, Path, PathState
from phantommesh.paths.weights import FULL, NO_FACTORS, leaves, weigh, weights
from phantommesh.timers import Timers

# Tuning.
LOOK: Final = 0.1  # s between two looks for the quickest path of a peer
STALL: Final = 0.1  # s that a tick may be late before this node itself is taken for the cause of silence
WEIGH: Final = 1.0  # s between two looks at the shares
LATELY: Final = 3.0  # slow pauses within which a probe has to have come back for its path to carry anything
ROUSED: Final = 5.0  # s after a move for which a path that does not answer yet is asked as often as a new one


class Paths:
    """Every path of one node. ``now`` is seconds on any clock that only goes forward; ``interval`` is the
    time between probes of a path under traffic."""

    def __init__(self, *, random: Random, interval: float) -> None:
        self._random, self._interval = random, interval
        self._peers: dict[bytes, Peer] = {}
        self._when = Schedule(self._peers, random, interval)
        self._leaving = 0
        self._factors: dict[bytes, dict[int, float]] = {}  # by peer and dimension, without those of 1
        self._timers = Timers[tuple[bytes, int]]()  # by peer and dimension
        self._weigh_at = float("inf")
        self._hold = float("-inf")
        self.drops: Counter[str] = Counter()
        self.vain = 0.0
        """Bytes that paths were given after their last answer, until they were taken for dark: by the rate
        and the shares of the time, so an estimate."""

    @property
    def interval(self) -> float:
        """The time between probes of a path under traffic, in seconds."""
        return self._interval

    def probe_every(self, interval: float) -> None:
        """Have paths under traffic probed this often from now on, in seconds."""
        self._interval = self._when.interval = interval

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
                self._peers[node_id] = Peer([Path(node_id, i, n, since=now) for i, n in enumerate(numbers)])
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
        carried, peer.cover = carried - peer.cover, 0
        if peer.pace.carried(carried, now):
            for path in peer.paths:
                if path.state is PathState.UP:
                    pause = self._when.pause(peer, path, now, self._leaving)
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

    def set_factor(self, node_id: bytes, dimension: int, factor: float, now: float) -> list[Effect]:
        """Multiply the weight of a dimension of one node by this from now on; 1 for as measured. A factor
        holds also while the node is no peer."""
        factors = self._factors.setdefault(node_id, {})
        if factor == 1.0:
            factors.pop(dimension, None)
        else:
            factors[dimension] = factor
        if not factors:
            del self._factors[node_id]
        peer = self._peers.get(node_id)
        return [] if peer is None else self._rescore(node_id, peer, now)

    def weighed(self, node_id: bytes) -> bool:
        """Whether the weight of any dimension of a node is multiplied by anything."""
        return node_id in self._factors

    def candidates(self, node_id: bytes, now: float) -> list[Candidate]:
        """The paths of a peer by dimension as they are without factors: usable by their own weights."""
        peer = self._peers.get(node_id)
        if peer is None:
            return []
        own = weights(peer.paths, self._leaving)
        return [candidate(one, own[i], now, held=True) for i, one in enumerate(peer.paths)]

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
                path.next_probe = now + self._when.spread(self._interval * self._when.too_many(now))
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
                watched = peer.watch(path, now) is not None
                closer = watched or path.quality.alarm.doubts(now)
                path.judge(peer.answered, now, self._interval if closer else 0.0)
            if path.misses >= MISSES and peer.answered < path.first_missed:
                self._ask_all(peer, now)
            if path.state is not before:
                if before is PathState.UP and path.state is PathState.DARK:
                    self._count_vain(peer, path, now)
                effects.append(Turned(path.peer, path.dimension, before, path.state))
                effects += self._rescore(path.peer, peer, now)
            elif path.misses:
                effects += self._seek(path.peer, peer, now)
            pause = self._when.pause(peer, path, now, self._leaving)
            if path.misses:
                path.next_probe = min(path.next_probe, now + pause)
            if path.next_probe <= now:
                if (watch := peer.watch(path, now)) is not None:
                    watch.sent(now)
                elif path.quality.alarm.doubts(now):
                    peer.doubts.take(now)
                number = path.ping(now, max(self._interval, path.quality.timeout))
                effects.append(self._probe(peer, path, number, pong=False, now=now))
                path.next_probe = self._when.next(peer, now, pause)
            self._schedule(path)
        return effects

    def _count_vain(self, peer: Peer, path: Path, now: float) -> None:
        share, given = peer.in_force[path.dimension], sum(peer.in_force)
        if given > 0 and path.answered_at is not None:
            self.vain += peer.pace.rate(now) * share / given * (now - path.answered_at)

    def _ask_all(self, peer: Peer, now: float) -> None:
        """No dimension of this peer has answered since one of them fell silent: ask all of them now, so that
        a peer with whom nothing flows is known within few seconds even where there is no traffic."""
        for path in peer.paths:
            if path.state is PathState.UP and not path.misses and path.next_probe > now and not path.waits:
                path.next_probe = now
                self._schedule(path)

    def _schedule(self, path: Path) -> None:
        self._timers.set((path.peer, path.dimension), path.due)

    def _probe(self, peer: Peer, path: Path, number: int, *, pong: bool, now: float) -> Send:
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

    def _rescore(self, node_id: bytes, peer: Peer, now: float) -> list[Effect]:
        factors = self._factors.get(node_id, NO_FACTORS)
        scores, quickest = weights(peer.paths, self._leaving, factors), None
        if peer.seek is not None:
            peer.seek.look_at = now + LOOK
            held = peer.seek.found.chosen
            seen = [
                candidate(path, score, now, held=path.dimension == held)
                for path, score in zip(peer.paths, scores, strict=True)
            ]
            quickest = peer.seek.found.look(seen, now)
        if (scores, quickest) == (peer.scores, peer.quickest):
            return []
        peer.scores, peer.quickest = scores, quickest
        return [Rescore(node_id, scores, quickest)]

    def _seek(self, node_id: bytes, peer: Peer, now: float) -> list[Effect]:
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

    def covered(self, node_id: bytes, size: int) -> None:
        """Cover traffic is sent to a peer, of ``size`` bytes as WireGuard counts them: it is no traffic that
        paths should be watched for."""
        peer = self._peers.get(node_id)
        if peer is not None:
            peer.cover += size

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
        lately = LATELY * self._when.slow
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
