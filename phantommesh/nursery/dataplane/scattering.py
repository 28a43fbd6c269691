# SPDX-License-Identifier: GPL-3.0-or-later
"""Has the kernel scatter each peer's traffic, by maps that change from epoch to epoch.

Level-triggered like the reconciler: what is read of the mesh's own interface and of the table is compared
with what should be, at every pass; `scatter/plan.py` says what the table should become. If the kernel cannot
scatter, the interface goes, and with it its routes, so that traffic takes dimension 0; `problem` says why.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from random import Random
from time import time
from typing import Literal

import structlog
import trio

from phantommesh.config.sections import ScatterSection
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Contest, FaultKind
from phantommesh.nursery.dataplane.calm import Calm
from phantommesh.nursery.due import WORK, alive
from phantommesh.nursery.host import marking, master
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.master import MasterConfig
from phantommesh.nursery.host.nft import Fingerprint, NftError, Table
from phantommesh.scatter import cgroups, coverrules, flows
from phantommesh.scatter.epochs import EpochCounts, Moment, ScatterPeer
from phantommesh.scatter.plan import NONE_QUICKEST, Plan
from phantommesh.scatter.ruleset import FAMILY, HITS, PEERS, WAYS, Frame, Hook, table_name
from phantommesh.scatter.steering import Steering
from phantommesh.scatter.transactions import Ended, Snapshot
from phantommesh.secret import Secret
from phantommesh.wireguard.desired import MASTER_METRIC
from phantommesh.wireguard.device import DeviceState, Network, Route
from phantommesh.wireguard.fits import Fitted, fitted_routes, route_to, segment_routes

NOT_SCATTERED = FaultKind("traffic-not-scattered", "high")

# Tuning.
PATIENCE = 10.0  # s that a start waits for the last of the seven interfaces
MAX_BACKOFF = 30.0  # s between attempts while nothing can be installed

log = structlog.get_logger("phantommesh.scatter")


class Scattering:
    """The scatterer of one node. ``routed`` returns the prefixes that lead into the overlay. ``interval`` is
    the seconds between passes, with ``calm`` while something moves. ``fits`` returns what each peer may be
    sent, ``beyond`` the networks beyond the mesh that are carried now, each with the largest packet
    in bytes; `kick` when that has changed. ``closes``: whether traffic that cannot be scattered is dropped,
    as a class of it may not take just any dimension; else it takes dimension 0. ``on_epoch`` is called with a
    peer's node id and each epoch that has ended."""

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
        calm: Calm | None = None,
        fits: Callable[[], Iterable[Fitted]] = lambda: (),
        closes: Callable[[], bool] = lambda: False,
        beyond: Callable[[], Mapping[Network, int]] = dict,
        on_epoch: Callable[[bytes, EpochCounts], None] = lambda node_id, counts: None,
    ) -> None:
        self.settings, self.device, self.names = settings, device, tuple(names)
        self.hook: Hook = "mark" if settings.hook == "mark" else "egress"
        self._interfaces = frozenset((*self.names, device))
        self.on_epoch = on_epoch
        self.problem: PhantomMeshError | None = None
        self.contest = Contest()
        self.dropped: Counter[str] = Counter()
        self._kind, self._mtu, self._ipv6 = kind, mtu, ipv6
        self._addresses, self._wanted, self._interval = addresses, routed, interval
        self._calm, self._fits, self._closes, self._beyond = calm, fits, closes, beyond
        self._seed = int.from_bytes(os.urandom(4))
        self._plan = Plan(
            me,
            batch=settings.batch,
            epoch_seconds=settings.epoch_seconds,
            jitter=Random(),  # noqa: S311  # spreads timers, keys nothing
            secret=lambda: Secret(os.urandom(32)),
        )
        self._began = 0.0
        # The table's content, as far as this knows.
        self._seen: Fingerprint | None = None
        self._networks: Sequence[Network] = ()  # the prefixes that it sends into the overlay
        self._master = 0  # the index of the interface that it hangs on
        self._ways: dict[int, int] = {}
        self._tabled = False  # whether there are routing tables besides the main one
        self._lock = trio.Lock()
        self._kicked = trio.Event()

    # ---- what others tell it ----

    def update(self, peers: Iterable[ScatterPeer]) -> None:
        """Make these the peers, and wake the loop if the table has to change for it."""
        if self._plan.update(peers, _now()):
            self.kick()

    def change(self, peer: ScatterPeer) -> None:
        """One of the peers is like this now. A peer that the last `update` did not name is left out."""
        if self._plan.change(peer, _now()):
            self.kick()

    def carry(self, carried: Mapping[Network, bytes]) -> None:
        """Send what is for these prefixes beyond the mesh to the peers (node ids) that they name."""
        if self._plan.carry(carried):
            self.kick()

    def devices(self, actual: Mapping[str, DeviceState]) -> None:
        """The reconciler has read the dimensions' interfaces."""
        if self._plan.devices(actual[name].index if name in actual else None for name in self.names):
            self.kick()

    async def set_scores(
        self, wanted: Mapping[bytes, Sequence[float]], quickest: Mapping[bytes, int | None] = NONE_QUICKEST
    ) -> None:
        """Set the capacities of these peers' dimensions, in any unit; 0.0 drains one. ``quickest``: the
        dimension that has all traffic to a peer whose schedule wants that. Returns when the kernel has the
        new maps, each of which begins a new epoch. A member that is no peer any more is left out.
        Raises ValueError for scores that are none, NftError when the kernel refuses."""
        async with self._lock:
            due = self._plan.score(wanted, quickest)
            if self._seen is not None:
                await self._rotate(due)

    def scores(self, node_id: bytes) -> tuple[float, ...]:
        """The capacities of a peer's dimensions as set. KeyError for an unknown peer."""
        return self._plan.scores(node_id)

    def in_order(self, node_id: bytes) -> bool:
        """Whether all traffic to a peer keeps its order, but for flows that are split."""
        return self._seen is not None and self._plan.in_order(node_id)

    def snapshot(self, node_id: bytes) -> Snapshot | None:
        """A peer's counts as last read; None while nothing is scattered to it."""
        return None if self._seen is None else self._plan.snapshot(node_id)

    def taken(self) -> Counter[str]:
        """The packets sent so far by class of traffic, as last read."""
        return self._plan.taken()

    async def refresh(self) -> None:
        """Read the counters now. Raises NftError."""
        async with self._lock:
            if self._seen is not None:
                await self._read()

    async def under_way(self) -> dict[bytes, EpochCounts]:
        """Read the counters now, and return each peer's epoch under way. Raises NftError."""
        await self.refresh()
        shown = {node_id: self.snapshot(node_id) for node_id in self._plan.installed}
        return {node_id: found.current for node_id, found in shown.items() if found is not None}

    def splittable(self) -> list[bytes]:
        """The peers some flows of which may be split (`scatter/splitting.py`)."""
        return [node_id for node_id in self._plan.installed if self._plan.homes(node_id) is not None]

    @property
    def seed(self) -> int:
        """The seed of the flows' hash."""
        return self._seed

    def homes(self, node_id: bytes) -> Sequence[int | None] | None:
        """The dimension of each bucket of a peer's flows; None where no flow is split."""
        found = None if self._seen is None else self._plan.homes(node_id)
        return None if found is None else found[1]

    def steered(self, node_id: bytes) -> Steering:
        """The buckets of a peer's flows that are split in the table, or moved."""
        return self._plan.steered(node_id)

    async def count_flows(
        self, node_id: bytes
    ) -> tuple[Mapping[int, tuple[int, int]], Sequence[int | None]] | None:
        """Return the packets and bytes sent to a peer so far by bucket of flows, and each bucket's dimension.
        None where no flow is split. Raises NftError."""
        async with self._lock:
            found = None if self._seen is None else self._plan.homes(node_id)
            if found is None:
                return None
            sent = dict[int, tuple[int, int]]()
            for name, first in found[0].items():
                counters = await self._table.counters(name)
                sent |= {first + bucket: count for bucket, count in counters.items()}
            return sent, found[1]

    async def steer(self, node_id: bytes, steering: Steering) -> None:
        """Split and move the flows of these buckets of a peer, and no others. Raises NftError when the kernel
        refuses."""
        async with self._lock:
            if self._seen is not None and self._plan.homes(node_id) is not None:
                try:
                    await self._table.replace(self._plan.steer(node_id, steering))
                except NftError:
                    self._seen = None  # whatever the table has now, it is not this
                    self.kick()
                    raise

    async def confine(self) -> None:
        """Have no class of traffic take a dimension that it may not take any more; returns at once where the
        kernel has it so. What the kernel refuses is left to the next pass."""
        if not self._plan.limited():
            await trio.lowlevel.checkpoint()
            return
        async with self._lock:
            if self._seen is not None:
                try:
                    await self._rotate(self._plan.limited())
                except NftError as error:
                    log.warning("classes of traffic were not confined at once", error=str(error))

    def closed(self) -> dict[str, list[bytes]]:
        """The peers to whom nothing of a class is sent, by the class's name: see `Plan.closed`."""
        return {} if self._seen is None else self._plan.closed()

    def kick(self) -> None:
        """Start the next pass now."""
        self._kicked.set()

    def hear(self) -> None:
        """What is there may have changed, says the kernel: start the next pass now. Passes that fail keep
        their distance, for each of them makes and removes the interface."""
        if self.problem is None:
            self.kick()

    # ---- the service ----

    async def run(self) -> None:
        """Scatter until cancelled. A failure is logged once and tried again; it never ends this."""
        if self.settings.hook == "off":
            await self.close()
            return
        for family in FAMILY.values():
            try:
                found = await Table(family, self._name).fingerprint() is not None
            except NftError:
                found = False  # this kernel has no such family; `_pass` will say what matters
            if found:
                self._plan.adopt(_now())
        backoff, self._began = self._interval, trio.current_time()
        while True:
            self._kicked = trio.Event()
            alive(WORK)
            try:
                async with self._lock:
                    await self._pass()
                backoff = self._interval
                delay = self._interval if self._calm is None else self._calm.pause
            except PhantomMeshError as error:
                await self._retreat(error)
                backoff = min(max(backoff, 0.5) * 2, MAX_BACKOFF)
                alive(backoff)
                with trio.move_on_after(backoff):
                    await self._kicked.wait()
                continue
            try:
                await self._rotate_until(trio.current_time() + delay)
            except NftError as error:  # most likely the table is gone: see to it at once
                log.debug("a map could not be changed", error=str(error))

    async def _rotate_until(self, end: float) -> None:
        """Change the maps that are due, until it is time for the next pass."""
        while not self._kicked.is_set() and trio.current_time() < end:
            until = min(self._plan.next_due(), end)
            alive(max(0.0, until - trio.current_time()) + WORK)
            with trio.move_on_at(until):
                await self._kicked.wait()
            async with self._lock:
                if self._plan.can_rest(_now()):
                    await self._read()
                    self._plan.rest(_now())
                await self._rotate(self._plan.due(_now()))

    async def close(self) -> None:
        """Remove the interface and the table. Objects that cannot be removed are logged."""
        try:
            await master.remove(self.device)
            for family in FAMILY.values():
                await Table(family, self._name).remove()
            await Table(cgroups.FAMILY, cgroups.table_name(self.device)).remove()
            await Table(flows.FAMILY, flows.table_name(self.device)).remove()
            await Table(coverrules.FAMILY, coverrules.table_name(self.device)).remove()
            await marking.remove(self._interfaces)
        except PhantomMeshError as error:
            log.warning("what scattered could not be removed", error=str(error), fix=error.fix)

    async def _retreat(self, error: PhantomMeshError) -> None:
        """Nothing can be scattered: without the interface's routes traffic takes dimension 0, and with them
        it is dropped there."""
        if str(self.problem) != str(error):
            log.warning("traffic is not scattered", error=str(error), fix=error.fix)
        self.problem, self._seen = error, None
        try:
            if self._closes():
                await Table(FAMILY[self.hook], self._name).remove()
                await master.converge(self._master_config(), routes=True)
            else:
                await master.remove(self.device)
        except PhantomMeshError as also:
            log.warning("the mesh's interface is not as it should be", error=str(also), fix=also.fix)

    # ---- one pass ----

    async def _pass(self) -> None:
        shown = self._plan.ways
        if not shown:
            return  # the dimensions are not there yet: traffic has nowhere to go anyhow
        if (
            self._seen is None
            and not self._plan.has_all_seven
            and trio.current_time() < self._began + PATIENCE
        ):
            return  # a WireGuard link binds some port when it comes up, which must not be one of theirs
        # A table that an earlier run left works on until it is replaced, and so must the routes to it.
        index = await master.converge(self._master_config(), routes=self._closes())
        if self._networks != self._all_networks() and self.hook == "mark":
            self._seen = None  # the rules name them
        if self._seen is None or index != self._master or await self._look() != self._seen:
            if self._calm is not None:
                self._calm.stir()
            await self._install_all(shown)
            self._master = index
        elif not self._plan.is_placed(_now()):
            await self._install_changes()
        if shown != self._ways:
            await self._table.replace({WAYS: shown})
            self._seen, self._ways = await self._look(), shown
            await self._rotate(self._plan.installed)  # a dimension without an interface gets no cards
        await self._converge_tables(shown, index)
        await master.converge(self._master_config(), routes=True)
        await self._read()
        if self.problem is not None:
            self.problem = None
            log.info("traffic is scattered again")

    async def _converge_tables(self, shown: Mapping[int, int], index: int) -> None:
        """Make the routing tables that are not the main one. Its routes come after theirs, so that a
        connection that looks for its route anew finds what is there for it."""
        tables = dict[int, tuple[int, Iterable[Route]]]()
        if self.hook == "mark":
            routes = fitted_routes(self._routed, marking.METRIC, self._mtu, self._fits())
            routes |= {
                route_to(network, marking.METRIC, mtu, self._mtu)
                for network, mtu in self._beyond().items()
                if self._ipv6() or network.version == 4
            }
            tables = {way: (device, routes) for way, device in shown.items()}
        if short := segment_routes(self._routed, marking.METRIC, self._mtu, self._fits()):
            tables[marking.SEGMENTS] = index, short
        if not tables and not self._tabled:
            return
        try:
            await marking.converge(tables, self._interfaces)
        except BackendError as error:
            if self.hook == "mark":
                raise
            if not self._tabled:  # TCP over IPv6 does without
                log.info("TCP over IPv6 is not kept below 1280 bytes", error=str(error))
        self._tabled = bool(tables)

    async def _install_all(self, shown: dict[int, int]) -> None:
        """The table is not there, or not as we left it: put all of it in place in one transaction."""
        if self._seen is not None:
            self.contest.mended("the scatter rules", trio.current_time())
            log.warning("somebody else changed the scatter rules; they are installed again")
        self._seen, self._networks = None, self._all_networks()
        new = self._plan.whole(self._frame(), shown, _now())
        try:
            await self._table.install(new.text)
        except NftError as error:
            self._plan.refused()
            self._report(new.ended)
            if self.settings.hook == "auto" and self.hook == "egress" and error.code == errno.EOPNOTSUPP:
                log.info("this kernel cannot scatter on a device's egress; marks will do it")
                self.hook = "mark"
                self.kick()
            raise
        self._plan.placed()
        self._seen, self._ways = await self._look(), shown
        self._report(new.ended)
        # Remove what an earlier run at the other hook has left.
        await Table(next(f for hook, f in FAMILY.items() if hook != self.hook), self._name).remove()
        if self.hook == "egress":
            await marking.remove(self._interfaces)

    async def _install_changes(self) -> None:
        """Add and remove peers, in one transaction."""
        counters = await self._table.counters(HITS)
        new = self._plan.changes(self._frame(), counters, _now())
        try:
            await self._table.install(new.text)
            self._plan.added()
        finally:  # refused or not, these epochs are over
            self._report(new.ended)
        self._seen = await self._look()

    async def _rotate(self, peers: Iterable[bytes]) -> None:
        """Begin a new epoch with each of these peers, in one transaction."""
        rotation = self._plan.rotation(peers, _now())
        if rotation.leaving:
            self.kick()
        if not rotation.peers:
            return
        try:
            await self._table.replace(rotation.maps)
        except NftError:
            self._seen = None  # whatever the table has now, it is not this
            self.kick()
            raise
        counters = await self._table.counters(HITS)
        self._report(self._plan.close(rotation, counters, _now()))

    async def _look(self) -> Fingerprint | None:
        """Read all of the table that does not change from epoch to epoch."""
        return await self._table.fingerprint(WAYS, *PEERS)

    async def _read(self) -> None:
        reading = self._plan.read(await self._table.counters(HITS))
        self.dropped += reading.fresh
        if reading.emptied:
            self._seen = None
            self.kick()

    def _report(self, ended: Iterable[Ended]) -> None:
        for node_id, counts in ended:
            self.on_epoch(node_id, counts)

    # ---- values ----

    @property
    def _name(self) -> str:
        return table_name(self.device)

    @property
    def _table(self) -> Table:
        return Table(FAMILY[self.hook], self._name)

    def _frame(self) -> Frame:
        return Frame(
            self.hook,
            self._name,
            self.device,
            self._networks,
            self._addresses(),
            self._seed,
            self.settings.flowlet_ms,
            tuple(self._wanted()),
        )

    def _all_networks(self) -> tuple[Network, ...]:
        return *self._wanted(), *self._beyond()

    @property
    def _routed(self) -> Sequence[Network]:
        return [network for network in self._wanted() if self._ipv6() or network.version == 4]

    def _master_config(self) -> MasterConfig:
        four, six = self._addresses()
        addresses: set[IPv4Interface | IPv6Interface] = {IPv4Interface(four)}
        if self._ipv6():
            addresses.add(IPv6Interface(six))
        routes = fitted_routes(self._routed, MASTER_METRIC, self._mtu, self._fits())
        return MasterConfig(self.device, self._kind, self._mtu, frozenset(addresses), routes)


def _now() -> Moment:
    return Moment(time(), trio.current_time())
