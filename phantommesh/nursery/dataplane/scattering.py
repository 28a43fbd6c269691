# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the kernel scatter each peer's traffic, by maps that change from epoch to epoch.

Level-triggered like the reconciler: what is read of the mesh's own interface and of the table is compared
with what should be, at every pass. If the kernel cannot scatter, the interface goes, and with it its routes,
so that traffic takes dimension 0; `problem` says why.
"""

from __future__ import annotations

import errno
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from itertools import count
from random import Random
from time import time
from typing import Literal

import structlog
import trio

from phantommesh.config.sections import ScatterSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import FaultKind
from phantommesh.nursery.host import marking, master
from phantommesh.nursery.host.master import MasterConfig
from phantommesh.nursery.host.nft import Fingerprint, NftError, Table
from phantommesh.scatter.epochs import (
    EQUAL,
    EpochCounts,
    Keying,
    Moment,
    Numbers,
    PeerScatter,
    ScatterPeer,
)
from phantommesh.scatter.maps import entropy_bits
from phantommesh.scatter.ruleset import (
    FAMILY,
    FLOWLETS,
    HITS,
    PEERS,
    WAYS,
    Frame,
    Mode,
    dropped,
    render,
    render_peer,
    render_removal,
    table_name,
    ways,
)
from phantommesh.secret import Secret
from phantommesh.wireguard.desired import MASTER_METRIC
from phantommesh.wireguard.device import DeviceState, Network, Route

NOT_SCATTERED = FaultKind("traffic-not-scattered", "high")

# Specification: WireGuard's REJECT_AFTER_TIME. A WireGuard session left by an earlier run lives that long. So
# its peer is scattered on, by a map of no agreement, until it is keyed again.
ADOPTED = 180.0

# Tuning.
PATIENCE = 10.0  # s that a start waits for the last of the seven interfaces
JITTER = 0.1  # of an epoch's length, so that no two peers' maps change together
MAX_BACKOFF = 30.0  # s between attempts while nothing can be installed

log = structlog.get_logger("phantommesh.scatter")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A peer's epoch under way, as last read, and the one before."""

    current: EpochCounts
    previous: EpochCounts | None

    @property
    def entropy_bits(self) -> float | None:
        """Shannon's entropy of the dimensions of the packets sent in both; None where there are none."""
        before = (0,) * DIMENSIONS if self.previous is None else self.previous.hits.packets
        sent = [a + b for a, b in zip(self.current.hits.packets, before, strict=True)]
        return entropy_bits(sent) if any(sent) else None


@dataclass(slots=True)
class _Known:
    """The memory of a peer, scattered or not."""

    wanted: ScatterPeer
    scores: tuple[float, ...] = EQUAL
    keyed_once: bool = False
    numbers: Numbers = field(default_factory=Numbers)
    provisional: Secret = field(default_factory=lambda: Secret(os.urandom(32)))


class Scattering:
    """The scatterer of one node. ``routed`` returns the prefixes that lead into the overlay. ``on_epoch`` is
    called with a peer's node id and each epoch that has ended."""

    def __init__(
        self,
        settings: ScatterSection,
        *,
        device: str,
        names: Sequence[str],
        kind: Literal["wireguard", "tun"],
        mtu: int,
        ipv6: Callable[[], bool],
        me: bytes,
        addresses: Callable[[], tuple[IPv4Address, IPv6Address]],
        routed: Callable[[], Sequence[Network]],
        interval: float,
        on_epoch: Callable[[bytes, EpochCounts], None] = lambda node_id, counts: None,
    ) -> None:
        self.settings, self.device, self.names = settings, device, tuple(names)
        self.mode: Mode = "mark" if settings.mode == "mark" else "egress"
        self.on_epoch = on_epoch
        self.problem: PhantomMeshError | None = None
        self.dropped: Counter[str] = Counter()
        self._kind, self._mtu, self._ipv6, self._me = kind, mtu, ipv6, me
        self._addresses, self._wanted, self._interval = addresses, routed, interval
        self._seed = int.from_bytes(os.urandom(4))
        self._jitter = Random()  # noqa: S311  # spreads timers, keys nothing
        self._peers: dict[bytes, _Known] = {}
        self._indexes: tuple[int | None, ...] = (None,) * DIMENSIONS
        self._began = self._adopted_until = 0.0
        # The table's content, as far as this knows.
        self._seen: Fingerprint | None = None
        self._networks: Sequence[Network] = ()  # the prefixes that it sends into the overlay
        self._master = 0  # the index of the interface that it hangs on
        self._ways: dict[int, int] = {}
        self._installed: dict[bytes, PeerScatter] = {}
        self._slots = count(1)
        self._counted: Counter[str] = Counter()  # of this table, what `dropped` has already
        self._lock = trio.Lock()
        self._kicked = trio.Event()

    # ---- what others tell it ----

    def update(self, peers: Iterable[ScatterPeer]) -> None:
        """Make these the peers, and wake the loop if the table has to change for it."""
        wanted = {peer.node_id: peer for peer in peers}
        self._peers = {node_id: self._peers.get(node_id) or _Known(peer) for node_id, peer in wanted.items()}
        for peer in wanted.values():
            self.change(peer)
        if any(not self._as_wanted(node_id) for node_id in self._installed.keys() - self._peers.keys()):
            self.kick()

    def change(self, peer: ScatterPeer) -> None:
        """One of the peers is like this now. A peer that the last `update` did not name is left out."""
        known = self._peers.get(peer.node_id)
        if known is None:
            return
        known.wanted = peer
        known.keyed_once = known.keyed_once or peer.keying is not None
        if not self._as_wanted(peer.node_id):
            self.kick()

    def devices(self, actual: Mapping[str, DeviceState]) -> None:
        """The reconciler has read the dimensions' interfaces."""
        indexes = tuple(actual[name].index if name in actual else None for name in self.names)
        if indexes != self._indexes:
            self._indexes = indexes
            self.kick()

    async def set_scores(self, wanted: Mapping[bytes, Sequence[float]]) -> None:
        """Set the capacities of these peers' dimensions, in any unit; 0.0 drains one. Returns when the kernel
        has the new maps, each of which begins a new epoch. A member that is no peer any more is left out.
        Raises ValueError for scores that are none, NftError when the kernel refuses."""
        for scores in wanted.values():
            if len(scores) != DIMENSIONS or not all(0.0 <= score < math.inf for score in scores):
                raise ValueError("seven scores, finite and not negative")
        async with self._lock:
            changed = []
            for node_id, scores in wanted.items():
                known = self._peers.get(node_id)
                if known is not None and known.scores != tuple(scores):
                    known.scores = tuple(scores)
                    changed.append(node_id)
            if self._seen is not None:
                await self._rotate([node_id for node_id in changed if node_id in self._installed])

    def scores(self, node_id: bytes) -> tuple[float, ...]:
        """The capacities of a peer's dimensions as set. KeyError for an unknown peer."""
        return self._peers[node_id].scores

    def snapshot(self, node_id: bytes) -> Snapshot | None:
        """A peer's counts as last read; None while nothing is scattered to it."""
        found = self._installed.get(node_id)
        if self._seen is None or found is None or found.current is None:
            return None
        return Snapshot(found.current, found.previous)

    async def refresh(self) -> None:
        """Read the counters now. Raises NftError."""
        async with self._lock:
            if self._seen is not None:
                await self._read()

    async def under_way(self) -> dict[bytes, EpochCounts]:
        """Read the counters now, and return each peer's epoch under way. Raises NftError."""
        await self.refresh()
        shown = {node_id: self.snapshot(node_id) for node_id in self._installed}
        return {node_id: found.current for node_id, found in shown.items() if found is not None}

    def kick(self) -> None:
        """Start the next pass now."""
        self._kicked.set()

    # ---- the service ----

    async def run(self) -> None:
        """Scatter until cancelled. A failure is logged once and tried again; it never ends this."""
        if self.settings.mode == "off":
            await self.close()
            return
        for family in FAMILY.values():
            try:
                found = await Table(family, self._name).fingerprint() is not None
            except NftError:
                found = False  # this kernel has no such family; `_pass` will say what matters
            if found:
                self._adopted_until = trio.current_time() + ADOPTED
        delay, self._began = self._interval, trio.current_time()
        while True:
            self._kicked = trio.Event()
            try:
                async with self._lock:
                    await self._pass()
                delay = self._interval
            except PhantomMeshError as error:
                await self._retreat(error)
                delay = min(max(delay, 0.5) * 2, MAX_BACKOFF)
                with trio.move_on_after(delay):
                    await self._kicked.wait()
                continue
            try:
                await self._rotate_until(trio.current_time() + delay)
            except NftError as error:  # most likely the table is gone: see to it at once
                log.debug("a map could not be changed", error=str(error))

    async def _rotate_until(self, end: float) -> None:
        """Change the maps that are due, until it is time for the next pass."""
        while not self._kicked.is_set() and trio.current_time() < end:
            due = min((found.due for found in self._installed.values()), default=end)
            with trio.move_on_at(min(due, end)):
                await self._kicked.wait()
            async with self._lock:
                now = trio.current_time()
                await self._rotate([n for n, found in self._installed.items() if found.due <= now])

    async def close(self) -> None:
        """Remove the interface and the table. Objects that cannot be removed are logged."""
        try:
            await master.remove(self.device)
            for family in FAMILY.values():
                await Table(family, self._name).remove()
            await marking.remove()
        except PhantomMeshError as error:
            log.warning("what scattered could not be removed", error=str(error), fix=error.fix)

    async def _retreat(self, error: PhantomMeshError) -> None:
        """Nothing can be scattered: without the interface's routes traffic takes dimension 0."""
        if str(self.problem) != str(error):
            log.warning("traffic is not scattered", error=str(error), fix=error.fix)
        self.problem, self._seen = error, None
        try:
            await master.remove(self.device)
        except PhantomMeshError as also:
            log.warning("the mesh's interface could not be removed", error=str(also), fix=also.fix)

    # ---- one pass ----

    async def _pass(self) -> None:
        shown = ways(self._indexes)
        if not shown:
            return  # the dimensions are not there yet: traffic has nowhere to go anyhow
        if self._seen is None and None in self._indexes and trio.current_time() < self._began + PATIENCE:
            return  # a WireGuard link binds some port when it comes up, which must not be one of theirs
        # A table that an earlier run left works on until it is replaced, and so must the routes to it.
        index = await master.converge(self._master_config(), routes=False)
        if self._networks != tuple(self._wanted()) and self.mode == "mark":
            self._seen = None  # the rules name them
        if self._seen is None or index != self._master or await self._look() != self._seen:
            await self._install_all(shown)
            self._master = index
        elif any(not self._as_wanted(node_id) for node_id in self._peers.keys() | self._installed.keys()):
            await self._install_changes()
        if shown != self._ways:
            await self._table.replace({WAYS: shown})
            self._seen, self._ways = await self._look(), shown
            await self._rotate(list(self._installed))  # a dimension without an interface gets no cards
        if self.mode == "mark":
            await marking.converge(shown, self._routed)
        await master.converge(self._master_config(), routes=True)
        await self._read()
        if self.problem is not None:
            self.problem = None
            log.info("traffic is scattered again")

    async def _install_all(self, shown: dict[int, int]) -> None:
        """The table is not there, or not as we left it: put all of it in place in one transaction."""
        if self._seen is not None:
            log.warning("somebody else changed the scatter rules; they are installed again")
        self._seen, now, ended = None, _now(), list[tuple[bytes, EpochCounts]]()
        self._networks = tuple(self._wanted())
        kept = {node_id: found for node_id, found in self._installed.items() if self._as_wanted(node_id)}
        self._installed = {}
        for node_id, known in self._peers.items():
            keying = self._keying(known)
            if keying is None:
                continue
            found = kept.get(node_id) or self._new(known)
            self._open(node_id, found, keying)
            if (counts := found.lost(now)) is not None:
                ended.append((node_id, counts))
            self._installed[node_id] = found
        text = render(self._frame(), shown, [found.map for found in self._installed.values()])
        try:
            await self._table.install(text)
        except NftError as error:
            for found in self._installed.values():
                found.live = False
            self._report(ended)
            if self.settings.mode == "auto" and self.mode == "egress" and error.code == errno.EOPNOTSUPP:
                log.info("this kernel cannot scatter on a device's egress; marks will do it")
                self.mode = "mark"
                self.kick()
            raise
        for found in self._installed.values():
            found.live = True
        self._seen, self._ways, self._counted = await self._look(), shown, Counter()
        self._report(ended)
        # Remove what an earlier run in the other mode has left.
        await Table(next(f for mode, f in FAMILY.items() if mode != self.mode), self._name).remove()
        if self.mode == "egress":
            await marking.remove()

    async def _install_changes(self) -> None:
        """Add and remove peers, in one transaction."""
        frame, text, ended = self._frame(), "", list[tuple[bytes, EpochCounts]]()
        counters = await self._table.counters(HITS)
        for node_id in [n for n in self._installed if not self._as_wanted(n)]:
            found = self._installed.pop(node_id)
            text += render_removal(frame, found.map)
            if (counts := found.end(counters, _now())) is not None:
                ended.append((node_id, counts))
        for node_id, known in self._peers.items():
            keying = self._keying(known)
            if node_id not in self._installed and keying is not None:
                self._installed[node_id] = found = self._new(known)
                self._open(node_id, found, keying)
                found.live = True
                text += render_peer(frame, found.map)
        await self._table.install(text)
        self._seen = await self._look()
        self._report(ended)

    async def _rotate(self, peers: Iterable[bytes]) -> None:
        """Begin a new epoch with each of these peers, in one transaction."""
        rotated, maps = list[tuple[bytes, PeerScatter]](), dict[str, dict[int, int]]()
        for node_id in peers:
            found, keying = self._installed[node_id], self._keying(self._peers.get(node_id))
            if keying is None:
                self.kick()  # it is to leave the table; until then the old map holds
                found.due = math.inf
                continue
            self._open(node_id, found, keying)
            rotated.append((node_id, found))
            maps[found.map.name] = found.map.elements
            if found.manner.scheduler == "flowlet":
                maps[FLOWLETS] = {}
        if not rotated:
            return
        try:
            await self._table.replace(maps)
        except NftError:
            self._seen = None  # whatever the table has now, it is not this
            self.kick()
            raise
        counters, now = await self._table.counters(HITS), _now()
        closed = [(node_id, found.close(counters, now)) for node_id, found in rotated]
        self._report((node_id, counts) for node_id, counts in closed if counts is not None)

    async def _look(self) -> Fingerprint | None:
        """Read all of the table that does not change from epoch to epoch."""
        return await self._table.fingerprint(WAYS, *PEERS)

    async def _read(self) -> None:
        counters = await self._table.counters(HITS)
        for found in self._installed.values():
            found.read(counters)
        now = Counter(dropped(counters, (found.slot for found in self._installed.values())))
        fresh = now - self._counted
        self.dropped += fresh
        self._counted = now
        marks = (found.map.elements[0] for found in self._installed.values())
        if fresh["scatter-missed"] or any(word not in counters for word in marks):
            self._seen = None  # somebody has emptied a map, or the set of counters
            self.kick()

    def _report(self, ended: Iterable[tuple[bytes, EpochCounts]]) -> None:
        for node_id, counts in ended:
            self.on_epoch(node_id, counts)

    def _keying(self, known: _Known | None) -> Keying | None:
        """Return what a peer's map is to come from; None for a peer that gets nothing."""
        if known is None:
            return None
        if known.wanted.keying is not None:
            return Keying(*known.wanted.keying)
        if not known.keyed_once and trio.current_time() < self._adopted_until:
            return Keying(0, known.provisional)
        return None

    def _as_wanted(self, node_id: bytes) -> bool:
        """Whether the table has of a peer what it should."""
        known, found = self._peers.get(node_id), self._installed.get(node_id)
        if self._keying(known) is None or known is None:
            return found is None
        return (
            found is not None
            and found.addresses == (known.wanted.ip4, known.wanted.ip6)
            and found.manner == known.wanted.manner
        )

    def _new(self, known: _Known) -> PeerScatter:
        return PeerScatter(
            self._me,
            next(self._slots),
            (known.wanted.ip4, known.wanted.ip6),
            known.wanted.manner,
            self.settings.batch,
            known.numbers,
        )

    def _open(self, node_id: bytes, found: PeerScatter, keying: Keying) -> None:
        there = (index is not None for index in self._indexes)
        scores = self._peers[node_id].scores
        found.open(keying, [score * here for score, here in zip(scores, there, strict=True)], _now())
        length = self.settings.epoch_seconds * self._jitter.uniform(1 - JITTER, 1 + JITTER)
        found.due = trio.current_time() + length

    # ---- values ----

    @property
    def _name(self) -> str:
        return table_name(self.device)

    @property
    def _table(self) -> Table:
        return Table(FAMILY[self.mode], self._name)

    def _frame(self) -> Frame:
        return Frame(
            self.mode,
            self._name,
            self.device,
            self._networks,
            self._addresses(),
            self._seed,
            self.settings.flowlet_ms,
        )

    @property
    def _routed(self) -> Sequence[Network]:
        return [network for network in self._wanted() if self._ipv6() or network.version == 4]

    def _master_config(self) -> MasterConfig:
        four, six = self._addresses()
        addresses: set[IPv4Interface | IPv6Interface] = {IPv4Interface(four)}
        if self._ipv6():
            addresses.add(IPv6Interface(six))
        routes = frozenset(Route(network, MASTER_METRIC) for network in self._routed)
        return MasterConfig(self.device, self._kind, self._mtu, frozenset(addresses), routes)


def _now() -> Moment:
    return Moment(time(), trio.current_time())
