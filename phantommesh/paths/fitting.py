# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a packet to each peer may be: what all of its paths in use carry.

A packet may take any of a peer's dimensions, so the smallest of those in use counts. Each end measures its
own direction. It never raises for anything that came from the network: what it cannot use is counted in
`drops`, by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from phantommesh.dimensions import DIMENSIONS, bits, has
from phantommesh.errors import DecodeError
from phantommesh.faults import Fault, FaultKind
from phantommesh.paths.effects import AskHops, Effect, Fit, Send, Turned
from phantommesh.paths.machine import Paths
from phantommesh.paths.pmtu import BASE, NEVER, OVER_IP4, OVER_IP6, PATIENCE, PathMtu, misses_needed
from phantommesh.paths.probe import ON_WIRE, OVER
from phantommesh.paths.restraint import Allowance, Restraint
from phantommesh.paths.sized import SizedProbe, decode_sized_untrusted
from phantommesh.paths.state import PathState
from phantommesh.paths.weights import FULL
from phantommesh.rates import Bucket
from phantommesh.timers import Timers

BLACK_HOLE = FaultKind("path-black-hole", "medium")

# Tuning.
BUDGET: Final = 100.0  # sized probes a second at most, over all peers; a burst of as many
ANSWERS: Final = 40.0  # sized pings a second and peer that are answered, over all its dimensions
ANSWERS_BURST: Final = 100.0  # one search in all of them at once
ALL_ANSWERS: Final = 500.0  # sized pings a second that are answered, over all peers; a burst of as many
RESERVE: Final = 8.0  # a second and peer that are answered beyond that: what watching a busy peer takes
RESERVE_BURST: Final = 40.0
SHARE: Final = 0.02  # of a peer's traffic that watching its MTU may cost
WATCH: Final = 1.0  # s between two looks at a peer's MTU at most while there is traffic, over all dimensions
CLOSEST: Final = 1 / DIMENSIONS  # s between two at least, so that each dimension has its turn each second
FASTER: Final = 1.5  # times the traffic, from which on it is watched closer at once
UNHEARD: Final = 0.25  # s until a path is looked at again by which no probe has come back yet
OTHERWISE: Final = 60.0  # s until a peer is looked at again whose version answers no sized probes
PUT_OFF: Final = 0.1  # s until a probe that was over the budget is tried again
STALL: Final = 0.1  # s that a tick may be late before this node itself is taken for the cause of silence


@dataclass(slots=True)
class _Peer:
    paths: list[PathMtu | None] = field(default_factory=lambda: [None] * DIMENSIONS)
    scores: Sequence[float] = FULL
    fit: int = 0  # as told last; 0: nothing was told
    rate: float = 0.0  # bytes a second that the watch is for
    ways: list[object] = field(default_factory=lambda: [None] * DIMENSIONS)
    since: list[float] = field(default_factory=lambda: [0.0] * DIMENSIONS)  # when its way, or keys, were new
    own: list[int] = field(default_factory=lambda: [0] * DIMENSIONS)
    whole: list[bool] = field(default_factory=lambda: [False] * DIMENSIONS)
    restraints: list[Restraint] = field(default_factory=lambda: [Restraint() for _ in range(DIMENSIONS)])
    allowance: Allowance = field(default_factory=Allowance)
    answers: Bucket = field(default_factory=lambda: Bucket(ANSWERS, ANSWERS_BURST, 0.0))
    reserve: Bucket = field(default_factory=lambda: Bucket(RESERVE, RESERVE_BURST, 0.0))


@dataclass(frozen=True, slots=True)
class Hole:
    """Dimensions of a peer, a bitmap, on which packets vanish that both ends' uplinks take: those above
    ``size`` bytes, though up to ``top`` should pass. ``narrow``: not even `BASE` bytes do."""

    peer: bytes
    dimensions: int
    size: int
    top: int
    narrow: bool

    def fault(self, name: str) -> Fault:
        """What an operator is told; ``name`` is the peer's."""
        listed = ", ".join(str(i) for i in range(DIMENSIONS) if has(self.dimensions, i))
        whose = f"{'dimension' if self.dimensions.bit_count() == 1 else 'dimensions'} {listed} of peer {name}"
        if self.narrow:
            return BLACK_HOLE.fault(
                f"{whose}: small packets pass, and those of {self.size} bytes vanish on the way there",
                f"find what drops UDP packets of {self.size + OVER_IP4} bytes between the two nodes; let "
                "them, or their fragments, pass",
                subject=name,
            )
        return BLACK_HOLE.fault(
            f"{whose}: something on the way swallows packets of more than {self.size} bytes without a word, "
            f"and both uplinks take {self.top}; what is sent to that peer is kept to {self.size}",
            f"nothing has to be done for the traffic; to end this, tell both ends what the way between them "
            f"takes, {self.size + OVER_IP4} bytes over IPv4 and {self.size + OVER_IP6} over IPv6: "
            f"`ip link set dev UPLINK mtu {self.size + OVER_IP4}`, or the same MTU on the route to the other "
            "end; or have the hop take longer packets, or let UDP fragments pass",
            subject=name,
        )


class Fitting:
    """The path MTUs of one node. ``largest`` is the interfaces' MTU in bytes, ``now`` is seconds on the clock
    of ``paths``, whose small probes say whether a path answers at all."""

    def __init__(self, paths: Paths, *, random: Random, largest: int) -> None:
        self.largest = largest
        self.drops: Counter[str] = Counter()
        self._paths, self._random = paths, random
        self._peers: dict[bytes, _Peer] = {}
        self._timers = Timers[tuple[bytes, int]]()
        self._budget: Bucket | None = None
        self._answers = Bucket(ALL_ANSWERS, ALL_ANSWERS, 0.0)
        self._hold = float("-inf")

    # --- what the node knows ---

    def set_peers(self, peers: Iterable[bytes]) -> None:
        """Know exactly these peers. Their paths open with `turned`."""
        wanted = set(peers)
        for gone in self._peers.keys() - wanted:
            for dimension in range(DIMENSIONS):
                self._timers.cancel((gone, dimension))
            del self._peers[gone]
        for node_id in wanted - self._peers.keys():
            self._peers[node_id] = _Peer()

    def turned(self, effect: Turned, now: float) -> list[Effect]:
        """A path changed its state."""
        peer = self._peers.get(effect.peer)
        if peer is None:
            return []
        known, dimension = peer.paths[effect.dimension], effect.dimension
        if effect.after is PathState.CLOSED:
            peer.paths[dimension] = None
            self._timers.cancel((effect.peer, dimension))
        elif known is None:
            peer.since[dimension] = now
            known = peer.paths[dimension] = PathMtu(
                self.largest,
                self._random.getrandbits(32),
                own=peer.own[dimension],
                whole=peer.whole[dimension],
                restraint=peer.restraints[dimension],
            )
            known.begin(now + self._random.uniform(0.0, len(self._peers) * DIMENSIONS / BUDGET))
        elif effect.after is PathState.DARK:
            known.pause()
        elif effect.before is PathState.DARK:
            known.resume(now)
        self._schedule(effect.peer, peer, dimension)
        return self._refit(effect.peer, peer)

    def rescored(self, node_id: bytes, scores: Sequence[float]) -> list[Effect]:
        """The paths of a peer that have a score above 0.0 carry its traffic."""
        peer = self._peers.get(node_id)
        if peer is None:
            return []
        peer.scores = scores
        return self._refit(node_id, peer)

    def way(
        self, node_id: bytes, dimension: int, way: object, own: int, now: float, *, whole: bool = False
    ) -> list[Effect]:
        """Our packets on a dimension go by this way, which may be any value, and our own uplink takes overlay
        packets of ``own`` bytes whole there; 0: it is not known. ``whole``: what it takes arrives, so nothing
        is asked."""
        peer = self._peers.get(node_id)
        known = None if peer is None else (peer.ways[dimension], peer.own[dimension], peer.whole[dimension])
        if peer is None or known == (way, own, whole):
            return []
        moved = peer.ways[dimension] not in (None, way) and way is not None
        if moved:
            peer.since[dimension] = now
        peer.ways[dimension], peer.own[dimension] = way or peer.ways[dimension], own
        peer.whole[dimension] = whole
        path = peer.paths[dimension]
        if path is None:
            return []
        narrow = path.narrow
        path.take_whole(now, whole)
        path.limit(now, own=own or self.largest)
        path.confirm(now)  # so that the peer hears of it
        if moved and path.next_at != NEVER:
            path.begin(now)
        small = self._paths.path(node_id, dimension)
        if small is not None and small.state is PathState.DARK:
            path.pause()
        self._schedule(node_id, peer, dimension)
        effects = self._refit(node_id, peer)
        if path.narrow is not narrow:
            effects += self._paths.set_narrow(node_id, dimension, path.narrow, now)
        return effects

    def traffic(self, node_id: bytes, now: float) -> None:
        """WireGuard's counters were read: watch closer if there is more traffic than before."""
        peer, rate = self._peers.get(node_id), self._paths.rate(node_id, now)
        if peer is None or (0.0 < rate <= peer.rate * FASTER):
            return
        closer, peer.rate = rate > 0.0, rate
        for dimension, path in enumerate(peer.paths):
            if path is not None and closer:
                path.confirm(now + self._random.uniform(0.0, DIMENSIONS * self._watch(peer)))
                self._schedule(node_id, peer, dimension)

    # --- the protocol ---

    @property
    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return self._timers.first

    def receive(self, datagram: bytes, node_id: bytes, dimension: int, now: float) -> list[Effect]:
        """Take a sized probe that came in through this dimension from this peer."""
        peer = self._peers.get(node_id)
        if peer is None:
            return self._drop("probe-peer")
        try:
            probe = decode_sized_untrusted(datagram)
        except DecodeError:
            return self._drop("probe-malformed")
        if probe.dimension != dimension:
            return self._drop("probe-dimension")
        path, effects = peer.paths[dimension], list[Effect]()
        narrow = path is not None and path.narrow
        if not probe.pong:
            # Who asks little is answered whatever others ask: a missing answer would make its packets small.
            if not (peer.answers.take(now) and (self._answers.take(now) or peer.reserve.take(now))):
                return self._drop("probe-rate")
            effects.append(self._send(node_id, peer, SizedProbe(True, dimension, probe.number, probe.size)))
        elif path is None or not path.answered(probe.number, probe.size, now):
            return self._drop("probe-late")
        if path is not None:
            path.limit(now, theirs=max(BASE, probe.ceiling) if probe.ceiling else self.largest)
            if path.settled:
                effects += self._settle(node_id, peer, dimension, path, now)
            self._schedule(node_id, peer, dimension)
            if path.narrow is not narrow:
                effects += self._paths.set_narrow(node_id, dimension, path.narrow, now)
        return effects + self._refit(node_id, peer)

    def tick(self, now: float) -> list[Effect]:
        """Send the probes that are due, and judge those whose answers are."""
        if now - self.deadline > STALL:
            self._hold = now + PATIENCE
        effects: list[Effect] = []
        for node_id, dimension in self._timers.due(now):
            peer = self._peers[node_id]
            path = peer.paths[dimension]
            if path is not None:
                effects += self._ask(node_id, peer, dimension, path, now)
                self._schedule(node_id, peer, dimension)
                effects += self._refit(node_id, peer)
        return effects

    def _ask(self, node_id: bytes, peer: _Peer, dimension: int, path: PathMtu, now: float) -> list[Effect]:
        small = self._paths.path(node_id, dimension)
        if small is None or small.latest < peer.since[dimension]:
            # Nobody has answered by this way yet. Its address may be one that the peer merely names.
            path.hold(now + UNHEARD)
            return []
        if not small.sizes:
            path.hold(now + OTHERWISE)  # its version answers none
            return []
        asked, missed, narrow = path.asked, path.missed, path.narrow
        size = path.tick(
            now,
            small=small.latest,
            patience=2 * small.quality.timeout,
            needed=misses_needed(small.quality.probe_loss),
            hold=self._hold,
        )
        if path.lost:
            small.quality.counted.forgive(path.lost)
            path.lost = 0
        effects = list[Effect]()
        if path.narrow is not narrow:
            effects = self._paths.set_narrow(node_id, dimension, path.narrow, now)
        if path.missed > missed:
            self._paths.hurry(node_id, dimension, now)
            if asked and not missed and asked <= path.size:
                self._doubt(node_id, peer, now)
        if path.settled:
            effects += self._settle(node_id, peer, dimension, path, now)
        if size is None:
            return effects
        if self._budget is None:
            self._budget = Bucket(BUDGET, BUDGET, now)
        wait = peer.allowance.take(now, self._watch(peer) if peer.rate else NEVER)
        if wait or not self._budget.take(now):
            path.put_off(now + max(wait, PUT_OFF) * self._random.uniform(1.0, 2.0))
            return effects
        probe = SizedProbe(False, dimension, path.sent(), size)
        return [*effects, self._send(node_id, peer, probe)]

    def ask(self, node_id: bytes, dimension: int, number: int, size: int) -> Send | None:
        """A sized ping of somebody else's number, which this does not wait for (`paths.burst`); None where
        the path has no keys."""
        peer = self._peers.get(node_id)
        if peer is None or peer.paths[dimension] is None:
            return None
        return self._send(node_id, peer, SizedProbe(False, dimension, number, size))

    def _doubt(self, node_id: bytes, peer: _Peer, now: float) -> None:
        """What one path no longer carries, the others may not carry either: ask them now."""
        for dimension, path in enumerate(peer.paths):
            if path is not None:
                path.confirm(now)
                self._schedule(node_id, peer, dimension)

    def _settle(self, node_id: bytes, peer: _Peer, dimension: int, path: PathMtu, now: float) -> list[Effect]:
        """A path's size was found or confirmed: say when to look again, and at the end of a search have the
        hops asked whether they cut what both ends take."""
        for other in peer.paths:
            if other is not None and other is not path:
                other.hint = path.size
        rate = peer.rate = self._paths.rate(node_id, now)
        if rate:
            path.confirm(now + DIMENSIONS * self._watch(peer) * self._random.uniform(0.85, 1.15))
        return [AskHops(node_id, dimension, path.top)] if path.take_found(now) else []

    def _watch(self, peer: _Peer) -> float:
        """The seconds between two looks at a busy peer's MTU, over all of its dimensions."""
        busy = sum(1 for other in self._peers.values() if other.rate)
        pause = min(WATCH, max(CLOSEST, self.largest / (SHARE * peer.rate)))
        return max(pause, 2 * busy / BUDGET)  # half of the budget is for searches

    def _send(self, node_id: bytes, peer: _Peer, probe: SizedProbe) -> Send:
        self._paths.beside(node_id, probe.dimension, ON_WIRE if probe.pong else probe.size + OVER)
        # An uplink of which nothing is known leaves the interface as the only limit.
        told = replace(probe, ceiling=peer.own[probe.dimension] or self.largest)
        return Send(node_id, probe.dimension, told.encode())

    def _schedule(self, node_id: bytes, peer: _Peer, dimension: int) -> None:
        path = peer.paths[dimension]
        if path is not None:
            self._timers.set((node_id, dimension), path.due)

    def _drop(self, reason: str) -> list[Effect]:
        self.drops[reason] += 1
        return []

    # --- what it comes to ---

    def fit(self, node_id: bytes) -> int:
        """The largest packet in bytes that all paths in use to a peer carry; `largest` for a stranger."""
        peer = self._peers.get(node_id)
        if peer is None:
            return self.largest
        there = [(path, score) for path, score in zip(peer.paths, peer.scores, strict=True) if path]
        used = [path.size for path, score in there if score > 0.0] or [path.size for path, _ in there]
        return min(used, default=self.largest)

    def sizes(self, node_id: bytes) -> list[int | None]:
        """What each path of a peer carries, in bytes; None where there is no path, or no such peer."""
        peer = self._peers.get(node_id)
        known = [None] * DIMENSIONS if peer is None else peer.paths
        return [None if path is None else path.size for path in known]

    def settled(self, node_id: bytes) -> int:
        """The dimensions of a peer, a bitmap, whose size was found and is not in question."""
        peer = self._peers.get(node_id)
        return 0 if peer is None else bits(path is not None and path.settled for path in peer.paths)

    def holes(self) -> Iterator[Hole]:
        """The paths that swallow what they should carry, those of a peer with one size together."""
        for node_id, peer in self._peers.items():
            found = {(p.size, p.top, p.narrow) for p in peer.paths if p is not None and p.hole}
            for size, top, narrow in sorted(found):
                which = bits(
                    p is not None and p.hole and (p.size, p.top, p.narrow) == (size, top, narrow)
                    for p in peer.paths
                )
                yield Hole(node_id, which, size, top, narrow)

    def _refit(self, node_id: bytes, peer: _Peer) -> list[Effect]:
        fit = self.fit(node_id)
        if fit == (peer.fit or self.largest):
            return []
        peer.fit = fit
        return [Fit(node_id, fit)]
