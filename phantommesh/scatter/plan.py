# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's table of scatter rules should become, as one transaction at a time. No I/O: `now` and the
counters come in, the text or the maps that the kernel is to have go out.

Each transaction is to be put in place before the next one is asked for: `whole` is followed by `placed` or
`refused`, `changes` by `added` where the kernel took them, `rotation` by `close`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, repeat
from random import Random

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.epochs import (
    EQUAL,
    EpochCounts,
    Keying,
    Moment,
    Numbers,
    PeerScatter,
    ScatterPeer,
)
from phantommesh.scatter.ruleset import (
    FLOWLETS,
    Beyond,
    Frame,
    clear_beyond,
    dropped,
    render,
    render_beyond,
    render_peer,
    render_removal,
    ways,
)
from phantommesh.scatter.steering import NOTHING, Steering
from phantommesh.scatter.transactions import Ended, Reading, Rotation, Snapshot, Transaction
from phantommesh.secret import Secret
from phantommesh.wireguard.device import Network

# Specification: WireGuard's REJECT_AFTER_TIME. A WireGuard session left by an earlier run lives that long. So
# its peer is scattered on, by a map of no agreement, until it is keyed again.
ADOPTED = 180.0

NO_LINK = 0
"""The link's epoch of a map that comes from no agreement."""

# Tuning.
JITTER = 0.1  # of an epoch's length, so that no two peers' maps change together
QUIET_FROM = 30.0  # s: who sets shorter epochs wants maps to change often, whatever flows
QUIET_EPOCHS = 10  # lengths that a map holds at most by which nothing is sent

MAX_GONE = 4096  # peers that are none any more, whose epochs' numbers are remembered

NONE_QUICKEST: Mapping[bytes, int | None] = {}


@dataclass(slots=True)
class _Known:
    """The memory of a peer, scattered or not."""

    wanted: ScatterPeer
    provisional: Secret
    scores: tuple[float, ...] = EQUAL
    quickest: int | None = None
    keyed_once: bool = False
    numbers: Numbers = field(default_factory=Numbers)

    @property
    def in_effect(self) -> list[tuple[float, ...]]:
        """The capacities that the maps are made by, the peer's own and those of its classes."""
        return self.wanted.capacities(self.scores, self.quickest)


class Plan:
    """One node's peers, and what the table has of them. ``me`` is the node's id, ``batch`` and
    ``epoch_seconds`` are as configured, ``secret`` makes 32 fresh bytes."""

    def __init__(
        self,
        me: bytes,
        *,
        batch: int,
        epoch_seconds: float,
        jitter: Random,
        secret: Callable[[], Secret],
    ) -> None:
        self._me, self._batch, self._epoch_seconds = me, batch, epoch_seconds
        self._jitter, self._secret = jitter, secret
        self._peers: dict[bytes, _Known] = {}
        self._numbers: dict[bytes, Numbers] = {}  # of peers that are none now: their links may go on
        self._indexes: tuple[int | None, ...] = (None,) * DIMENSIONS
        self._adopted_until = -math.inf
        self._installed: dict[bytes, PeerScatter] = {}
        self._slots = count(1)
        self._counted: Counter[str] = Counter()  # of this table, what was given as fresh already
        self._carried: Mapping[Network, bytes] = {}  # prefixes beyond the mesh, and who is to carry them
        self._beyond: frozenset[Beyond] = frozenset()  # as the table has it
        self._beyond_next: frozenset[Beyond] = frozenset()  # as the transaction under way has it
        self._taken: Counter[str] = Counter()  # packets by class, of epochs that have ended

    # ---- what others tell ----

    def update(self, peers: Iterable[ScatterPeer], now: Moment) -> bool:
        """Make these the peers; say whether the table has to change for it."""
        wanted = {peer.node_id: peer for peer in peers}
        for gone in self._peers.keys() - wanted.keys():
            self._numbers[gone] = self._peers[gone].numbers
            if len(self._numbers) > MAX_GONE:
                del self._numbers[next(iter(self._numbers))]
        self._peers = {
            node_id: self._peers.get(node_id)
            or _Known(peer, self._secret(), numbers=self._numbers.pop(node_id, Numbers()))
            for node_id, peer in wanted.items()
        }
        changed = [self.change(peer, now) for peer in wanted.values()]
        return any(changed) or bool(self._installed.keys() - self._peers.keys())

    def change(self, peer: ScatterPeer, now: Moment) -> bool:
        """One of the peers is like this now; say whether the table has to change for it. A peer that the last
        `update` did not name is left out."""
        known = self._peers.get(peer.node_id)
        if known is None:
            return False
        known.wanted = peer
        known.keyed_once = known.keyed_once or peer.keying is not None
        if limited := self._limits_changed(peer.node_id):
            self._installed[peer.node_id].due = now.steady
        return limited or not self._as_wanted(peer.node_id, now)

    def carry(self, carried: Mapping[Network, bytes]) -> bool:
        """Send what is for these prefixes beyond the mesh to the peers (node ids) that they name; say whether
        the table has to change for it."""
        self._carried = dict(carried)
        return self._wanted_beyond() != self._beyond

    def devices(self, indexes: Iterable[int | None]) -> bool:
        """These are the dimensions' interfaces, None for a missing one; say whether they were others."""
        before, self._indexes = self._indexes, tuple(indexes)
        return before != self._indexes

    def adopt(self, now: Moment) -> None:
        """An earlier run has left a table: peers that are not keyed yet are scattered on for a while."""
        self._adopted_until = now.steady + ADOPTED

    def score(
        self, wanted: Mapping[bytes, Sequence[float]], quickest: Mapping[bytes, int | None] = NONE_QUICKEST
    ) -> list[bytes]:
        """Take in the capacities of these peers' dimensions, in any unit, and which dimension is the
        quickest, for those that have one; return the peers in the table that are due for it. A member that is
        no peer any more is left out. Raises ValueError for scores that are none; then nothing has changed."""
        for scores in wanted.values():
            if len(scores) != DIMENSIONS or not all(0.0 <= score < math.inf for score in scores):
                raise ValueError("seven scores, finite and not negative")
        changed = []
        for node_id, scores in wanted.items():
            known = self._peers.get(node_id)
            if known is None:
                continue
            before = known.in_effect
            known.scores, known.quickest = tuple(scores), quickest.get(node_id)
            if known.in_effect != before:
                changed.append(node_id)
        return [node_id for node_id in changed if node_id in self._installed]

    # ---- what others ask ----

    @property
    def has_all_seven(self) -> bool:
        """Whether all seven interfaces are there."""
        return None not in self._indexes

    @property
    def ways(self) -> dict[int, int]:
        """The map of ways (`ruleset.ways`); empty while no interface is there."""
        return ways(self._indexes)

    @property
    def installed(self) -> list[bytes]:
        """The peers in the table."""
        return list(self._installed)

    def scores(self, node_id: bytes) -> tuple[float, ...]:
        """The capacities of a peer's dimensions as set. KeyError for an unknown peer."""
        return self._peers[node_id].scores

    def in_order(self, node_id: bytes) -> bool:
        """Whether all traffic to a peer in the table keeps its order, but for flows that are split."""
        found = self._installed.get(node_id)
        return found is not None and all(part.scheduler == "flow" for part in found.map.each)

    def snapshot(self, node_id: bytes) -> Snapshot | None:
        """A peer's counts as last read; None while it is not in the table."""
        found = self._installed.get(node_id)
        if found is None or found.current is None:
            return None
        return Snapshot(found.current, found.previous)

    def taken(self) -> Counter[str]:
        """The packets sent so far to all peers by class of traffic, the rest included; nothing of peers whose
        traffic has no classes."""
        total = Counter(self._taken)
        for found in self._installed.values():
            if found.current is not None:
                total += _taken_in(found.current)
        return total

    def is_placed(self, now: Moment) -> bool:
        """Whether the table has of each peer what it should."""
        everyone = self._peers.keys() | self._installed.keys()
        return self._wanted_beyond() == self._beyond and all(
            self._as_wanted(node_id, now) for node_id in everyone
        )

    def limited(self) -> list[bytes]:
        """The peers in the table whose map lets a class take other dimensions than it may now."""
        return [node_id for node_id in self._installed if self._limits_changed(node_id)]

    def closed(self) -> dict[str, list[bytes]]:
        """The peers to whom nothing of a class is sent, as it may take none of the dimensions that carry
        traffic, by the class's name."""
        found: dict[str, list[bytes]] = {}
        for node_id, one in self._installed.items():
            for part in () if one.current is None else one.current.classes:
                if part.closed:
                    found.setdefault(part.name, []).append(node_id)
        return found

    def next_due(self) -> float:
        """The steady moment at which the next map is due; infinity for none."""
        return min((found.due for found in self._installed.values()), default=math.inf)

    def due(self, now: Moment) -> list[bytes]:
        """The peers whose maps are due."""
        return [node_id for node_id, found in self._installed.items() if found.due <= now.steady]

    def can_rest(self, now: Moment) -> bool:
        """Whether a map that is due may hold on, if nothing was sent by it: then `rest` wants to know."""
        return any(map(self._may_rest, self.due(now), repeat(now)))

    def rest(self, now: Moment) -> None:
        """Let the maps that are due hold for another length where nothing was sent by them, as last read. A
        map that nothing is sent by tells nobody anything, and to change it costs both ends of the link more
        than anything else that they do while they rest. From its first packet on it holds for one length."""
        for node_id in self.due(now):
            if self._may_rest(node_id, now):
                self._installed[node_id].due = now.steady + self._length()

    def _may_rest(self, node_id: bytes, now: Moment) -> bool:
        found = self._installed[node_id]
        if found.current is None or self._epoch_seconds < QUIET_FROM or self._limits_changed(node_id):
            return False
        if found.current.epoch.link == NO_LINK:
            return False  # the link has keyed it by now, or the peer leaves
        longest = QUIET_EPOCHS * self._epoch_seconds
        return not any(found.current.hits.packets) and now.steady - found.current.began < longest

    # ---- transactions ----

    def whole(self, frame: Frame, shown: Mapping[int, int], now: Moment) -> Transaction:
        """The table is not there, or not as we left it: all of it, in the place of what there is."""
        ended = list[Ended]()
        kept = {node_id: found for node_id, found in self._installed.items() if self._as_wanted(node_id, now)}
        for node_id in self._installed.keys() - kept.keys():
            if (counts := self._installed[node_id].gone(now)) is not None:
                ended.append((node_id, counts))
        self._installed = {}
        for node_id, known in self._peers.items():
            keying = self._keying(known, now)
            if keying is None:
                continue
            found = kept.get(node_id) or self._new(known)
            self._open(node_id, found, keying, now)
            if (counts := found.lost(now)) is not None:
                ended.append((node_id, counts))
            self._installed[node_id] = found
        self._note(ended)
        self._beyond_next = self._wanted_beyond()
        maps = [found.map for found in self._installed.values()]
        return Transaction(render(frame, shown, maps, self._beyond_next), ended)

    def placed(self) -> None:
        """The kernel has the whole table, and counts from nothing."""
        self._counted = Counter()
        self._beyond = self._beyond_next
        for found in self._installed.values():
            found.live = True

    def refused(self) -> None:
        """The kernel did not take the whole table: nothing was sent by these maps."""
        self._beyond = frozenset()
        for found in self._installed.values():
            found.live = False

    def changes(self, frame: Frame, counters: Mapping[int, tuple[int, int]], now: Moment) -> Transaction:
        """Add peers to the table that is there, and remove peers from it. `added` follows; or nothing, where
        the kernel refuses it: the epochs that end with it have ended all the same, since their peers are to
        get nothing more."""
        text, ended = "", list[Ended]()
        for node_id in [n for n in self._installed if not self._as_wanted(n, now)]:
            found = self._installed.pop(node_id)
            text += render_removal(frame, found.map)
            if (counts := found.end(counters, now)) is not None:
                ended.append((node_id, counts))
        for node_id, known in self._peers.items():
            keying = self._keying(known, now)
            if node_id not in self._installed and keying is not None:
                self._installed[node_id] = found = self._new(known)
                self._open(node_id, found, keying, now)
                text += render_peer(frame, found.map)
        self._beyond_next = self._wanted_beyond()
        if self._beyond_next != self._beyond:
            text = clear_beyond(frame) + text + render_beyond(frame, self._beyond_next)
        self._note(ended)
        return Transaction(text, ended)

    def added(self) -> None:
        """The kernel has the changes."""
        self._beyond = self._beyond_next
        for found in self._installed.values():
            found.live = True

    def rotation(self, peers: Iterable[bytes], now: Moment) -> Rotation:
        """Begin a new epoch with each of these peers, which are in the table."""
        rotated, maps, leaving = list[bytes](), dict[str, Mapping[int, int]](), False
        for node_id in peers:
            found, keying = self._installed[node_id], self._keying(self._peers.get(node_id), now)
            if keying is None:
                found.due, leaving = math.inf, True
                continue
            self._open(node_id, found, keying, now)
            rotated.append(node_id)
            maps |= found.map.maps
            if any(part.scheduler == "flowlet" for part in found.map.each):
                maps[FLOWLETS] = {}
        return Rotation(maps, rotated, leaving)

    def homes(self, node_id: bytes) -> tuple[Mapping[str, int], Sequence[int | None]] | None:
        """The sets that count the buckets of a peer's flows, each with the number of its first bucket, and
        the dimension of each bucket. None for a peer that is not in the table, or whose flows are never
        split."""
        found = self._installed.get(node_id)
        if found is None or not found.live or not found.map.counted:
            return None
        return found.map.counted, found.map.homes

    def steered(self, node_id: bytes) -> Steering:
        """The buckets of a peer's flows that are split in the table, or moved."""
        found = self._installed.get(node_id)
        return NOTHING if found is None or not found.live else found.map.all_steering

    def steer(self, node_id: bytes, steering: Steering) -> Mapping[str, Mapping[int, int]]:
        """Split and move the flows of these buckets of a peer, for which `homes` is not None; return the maps
        that are to be replaced for it. The epoch under way goes on."""
        before = self._installed[node_id].map
        changed = self._installed[node_id].steer(steering)
        return {
            part.name: part.elements
            for part, was in zip(changed.each, before.each, strict=True)
            if part.steering != was.steering
        }

    def close(
        self, rotation: Rotation, counters: Mapping[int, tuple[int, int]], now: Moment
    ) -> Sequence[Ended]:
        """End the epochs before those of a rotation that is in place, with counters read after that."""
        closed = [(node_id, self._installed[node_id].close(counters, now)) for node_id in rotation.peers]
        ended = [(node_id, counts) for node_id, counts in closed if counts is not None]
        self._note(ended)
        return ended

    def _note(self, ended: Iterable[Ended]) -> None:
        for _, counts in ended:
            self._taken += _taken_in(counts)

    def read(self, counters: Mapping[int, tuple[int, int]]) -> Reading:
        """Bring the counts of the epochs under way up to date."""
        for found in self._installed.values():
            found.read(counters)
        now = Counter(dropped(counters, (found.slot for found in self._installed.values())))
        fresh, self._counted = now - self._counted, now
        marks = (part.card(0) for found in self._installed.values() for part in found.map.each)
        return Reading(fresh, bool(fresh["scatter-missed"]) or any(word not in counters for word in marks))

    def _wanted_beyond(self) -> frozenset[Beyond]:
        """The prefixes beyond the mesh whose peers are in the table."""
        return frozenset(
            Beyond(prefix, self._installed[peer].slot)
            for prefix, peer in self._carried.items()
            if peer in self._installed
        )

    # ---- one peer ----

    def _keying(self, known: _Known | None, now: Moment) -> Keying | None:
        """Return what a peer's map is to come from; None for a peer that gets nothing."""
        if known is None:
            return None
        if known.wanted.keying is not None:
            return Keying(*known.wanted.keying)
        if not known.keyed_once and now.steady < self._adopted_until:
            return Keying(NO_LINK, known.provisional)
        return None

    def _as_wanted(self, node_id: bytes, now: Moment) -> bool:
        """Whether the table has of a peer what it should."""
        known, found = self._peers.get(node_id), self._installed.get(node_id)
        if self._keying(known, now) is None or known is None:
            return found is None
        return (
            found is not None
            and found.addresses == (known.wanted.ip4, known.wanted.ip6)
            and (found.schedule, found.classes) == (known.wanted.schedule, known.wanted.classes)
        )

    def _limits_changed(self, node_id: bytes) -> bool:
        known, found = self._peers.get(node_id), self._installed.get(node_id)
        return known is not None and found is not None and found.limits != known.wanted.limits

    def _new(self, known: _Known) -> PeerScatter:
        return PeerScatter(
            self._me,
            next(self._slots),
            (known.wanted.ip4, known.wanted.ip6),
            known.wanted.schedule,
            self._batch,
            known.numbers,
            known.wanted.classes,
        )

    def _open(self, node_id: bytes, found: PeerScatter, keying: Keying, now: Moment) -> None:
        there = (index is not None for index in self._indexes)
        known = self._peers[node_id]
        scores = [score * here for score, here in zip(known.scores, there, strict=True)]
        found.open(keying, scores, now, quickest=known.quickest, limits=known.wanted.limits)
        found.due = now.steady + self._length()

    def _length(self) -> float:
        return self._epoch_seconds * self._jitter.uniform(1 - JITTER, 1 + JITTER)


def _taken_in(counts: EpochCounts) -> Counter[str]:
    return Counter({part.name: sum(part.hits.packets) for part in counts.classes})
