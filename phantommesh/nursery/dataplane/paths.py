# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives the paths protocol its socket, its clock and its scatterer.

One UDP socket on the overlay address serves all dimensions: each probe names the interface to leave by, and
each that arrives says by which it came (IP_PKTINFO, ip(7)). The dimension's own route leads there, whatever
the route that traffic takes; and one that did not come through a dimension is nobody's.
"""

from __future__ import annotations

import os
import socket
import struct
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from random import Random
from typing import Protocol, Self

import structlog
import trio

from phantommesh.dimensions import ALL, DIMENSIONS, bits
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import FaultKind
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.dataplane.outside import Outside
from phantommesh.nursery.due import Due, alive
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.unexpected import left_out
from phantommesh.paths.burst import Burst, Tally
from phantommesh.paths.effects import AskHops, Effect, Fit, Rescore, Send, Turned
from phantommesh.paths.fitting import Fitting
from phantommesh.paths.machine import Paths
from phantommesh.paths.pmtu import rung
from phantommesh.paths.probe import SIZE
from phantommesh.paths.sized import HEADERS, MAX_DATAGRAM, is_sized
from phantommesh.paths.state import PathState
from phantommesh.paths.weights import FULL
from phantommesh.rates import Bucket
from phantommesh.routing.ways import Kind, Way
from phantommesh.scatter.transactions import Snapshot
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.wireguard.device import DeviceState, Endpoint

PATHS_UNMEASURED = FaultKind("paths-unmeasured", "medium")

_FREEBIND, _PKTINFO = 15, 8  # IP_FREEBIND, IP_PKTINFO: linux/in.h
# IP_MTU_DISCOVER, IP_PMTUDISC_PROBE: never in fragments, up to the interface's MTU, whatever a route says.
_MTU_DISCOVER, _PROBE = 10, 3
_INFO = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, local address, destination
_NOWHERE: tuple[Endpoint | None, ...] = (None,) * DIMENSIONS
_ONLY_FIRST = (1.0,) + (0.0,) * (DIMENSIONS - 1)

# Tuning.
BATCH = 256  # probes read in a row before other tasks have their turn
RETRY = 1.0  # s between attempts at what failed
FOLLOW = 0.3  # s between two looks at the uplinks, however fast the kernel's words come
BURSTS = 1.0, 10  # bursts of pings that operators may ask for, a second and at once

BROKEN = "a probe was left out after an unexpected error"

log = structlog.get_logger("phantommesh.paths")


class Scatterer(Protocol):
    """The part of `Scattering` that is needed here."""

    async def set_scores(
        self, wanted: Mapping[bytes, Sequence[float]], quickest: Mapping[bytes, int | None]
    ) -> None: ...

    def snapshot(self, node_id: bytes) -> Snapshot | None: ...


class ProbeSocket:
    """The socket, bound to this node's overlay address. Raises OSError."""

    def __init__(self, address: IPv4Address, port: int) -> None:
        self.address = address
        self._local, self._port = address.packed, port
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self.socket.setsockopt(socket.IPPROTO_IP, _FREEBIND, 1)
            self.socket.setsockopt(socket.IPPROTO_IP, _PKTINFO, 1)
            self.socket.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _PROBE)
            self.socket.bind((str(address), port))
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, datagram: bytes, to: str, interface: int) -> None:
        """Send one probe to an overlay address by an interface, given by its index. Raises OSError."""
        info = _INFO.pack(interface, self._local, bytes(4))
        self.socket.sendmsg([datagram], [(socket.IPPROTO_IP, _PKTINFO, info)], 0, (to, self._port))

    def receive(self) -> tuple[bytes, str, int]:
        """Return a probe, its source and the index of the interface that it came by. Raises OSError."""
        datagram, control, _, source = self.socket.recvmsg(MAX_DATAGRAM + 1, socket.CMSG_SPACE(_INFO.size))
        for level, kind, data in control:
            if (level, kind) == (socket.IPPROTO_IP, _PKTINFO):
                return datagram, source[0], _INFO.unpack(data[: _INFO.size])[0]
        return datagram, source[0], 0


class PathDriver:
    """Runs one `Paths`. ``address`` gives this node's overlay address; ``turned`` is called when a path
    changes its state, ``refitted`` when a peer may be sent larger or smaller packets than before. ``way``
    gives the way that is to be taken to a peer in a dimension, where it is not an address of its record."""

    def __init__(
        self, paths: Paths, scatterer: Scatterer, *, port: int, names: Sequence[str],
        address: Callable[[], IPv4Address], fitting: Fitting,
        turned: Callable[[Turned], None] = lambda turned: None,
        refitted: Callable[[], None] = lambda: None,
        way: Callable[[bytes, int], Way | None] = lambda peer, dimension: None,
    ) -> None:  # fmt: skip
        self.paths, self.fitting = paths, fitting
        self.problem: PhantomMeshError | None = None
        self.sent = 0  # probes and answers that left, sized pings aside
        self.sized = 0  # sized pings that did
        self.sized_bytes = 0  # the bytes of these, as packets of the overlay
        self.unsent: dict[tuple[bytes, int], str] = {}
        """By peer and dimension: why the kernel did not take the newest probe. What it takes has no entry."""
        self._dropped: Counter[str] = Counter()
        self._turned, self._refitted, self._way = turned, refitted, way
        self._outside = Outside(fitting.largest)
        self._scatterer, self._port, self._names, self._address = scatterer, port, names, address
        self._addresses: dict[bytes, str] = {}
        self._sources: dict[str, bytes] = {}
        self._indexes: list[int] = [0] * DIMENSIONS
        self._dimensions: dict[int, int] = {}
        self._quickest: dict[bytes, int] = {}
        self._to_apply: dict[bytes, Rescore] = {}
        self._applied: dict[bytes, tuple[float, ...]] = {}
        self._socket: ProbeSocket | None = None
        self._endpoints: dict[bytes, Sequence[Endpoint | None]] = {}  # as located last
        self._apply_now, self._changed, self._moved = trio.Event(), Bell(), trio.Event()
        self._follow_now = trio.Event()
        self._bursts: dict[bytes, Burst] = {}
        self._bursting = Bucket(*BURSTS, trio.current_time())
        self._random = Random()  # noqa: S311  # spreads pings, keys nothing
        self._due = Due(lambda: self._deadline, turns=True)

    # --- what the node tells it ---

    @property
    def dropped(self) -> Counter[str]:
        """Probes that were dropped, by reason."""
        return self._dropped + self.paths.drops + self.fitting.drops

    @property
    def _deadline(self) -> float:
        bursts = (burst.deadline for burst in self._bursts.values())
        return min(self.paths.deadline, self.fitting.deadline, *bursts)

    def set_peers(self, peers: Iterable[tuple[bytes, IPv4Address, int]]) -> None:
        """Make these the peers: node id, overlay address, and the bitmap of dimensions to be used. Our own
        address may be another since the call before."""
        known = {node_id: (str(address), ready) for node_id, address, ready in peers}
        self._addresses = {node_id: address for node_id, (address, _) in known.items()}
        self._sources = {address: node_id for node_id, address in self._addresses.items()}
        for gone in self._applied.keys() - known.keys():
            del self._applied[gone]
        self._quickest = {peer: found for peer, found in self._quickest.items() if peer in known}
        self._endpoints = {peer: found for peer, found in self._endpoints.items() if peer in known}
        self.unsent = {which: why for which, why in self.unsent.items() if which[0] in known}
        ready = {node_id: ready for node_id, (_, ready) in known.items()}
        self.fitting.set_peers(known)
        self.carry_out(self.paths.set_peers(ready, trio.current_time()))
        if self._socket is not None and self._socket.address != self._address():
            self._moved.set()

    def set_ready(self, node_id: bytes, ready: int) -> None:
        """One of the peers has other dimensions to be used than before, a bitmap."""
        self.carry_out(self.paths.set_ready(node_id, ready, trio.current_time()))

    def seek_quickest(self, peers: Container[bytes]) -> None:
        """Look for the quickest path to these of the peers, and to no others."""
        self.carry_out(self.paths.seek_quickest(peers, trio.current_time()))

    def devices(self, actual: Mapping[str, DeviceState]) -> None:
        """The reconciler has read the interfaces."""
        self._indexes = [actual[name].index if name in actual else 0 for name in self._names]
        self._dimensions = {index: i for i, index in enumerate(self._indexes) if index}
        for node_id in self._addresses:
            self._tell_force(node_id)
        self._tell()

    def read(self, node_id: bytes, counters: Sequence[tuple[int, int] | None]) -> None:
        """The reconciler has read what WireGuard has sent to a peer and received, in bytes by dimension."""
        now = trio.current_time()
        self.paths.read(node_id, counters, now)
        self.fitting.traffic(node_id, now)
        self._tell()  # traffic has begun, perhaps: who waits for that hears of it now,
        self._due.look()  # and probes are sooner

    def locate(self, node_id: bytes, endpoints: Sequence[Endpoint | None]) -> None:
        """The reconciler has read where WireGuard sends to a peer, by dimension."""
        before = self._endpoints.get(node_id, _NOWHERE)
        if node_id in self._addresses:
            self._endpoints[node_id] = endpoints
        effects = list[Effect]()
        for dimension, endpoint in enumerate(endpoints):
            if endpoint is not None:
                way = self._way(node_id, dimension)
                framed = way is not None and way.kind is Kind.FRAMED and way.endpoint == endpoint
                # TCP cuts what frames carry to what its way takes.
                own = self._frame(way) if way is not None and framed else self._outside.takes(endpoint.host)
                effects += self.fitting.way(
                    node_id, dimension, endpoint, own, trio.current_time(), whole=framed
                )
        moved = bits(
            b is not None and e is not None and b != e for b, e in zip(before, endpoints, strict=True)
        )
        if moved:
            self.paths.rouse(node_id, moved, trio.current_time())
        self.carry_out(effects)

    def rouse(self) -> None:
        """This node may be somewhere else, or has slept: ask all peers now."""
        for node_id in self._addresses:
            self.paths.rouse(node_id, ALL, trio.current_time())
        self._due.look()

    def uplinks_changed(self) -> None:
        """A link, an address or a way out of this host is another: look what the uplinks take now."""
        self._outside.changed()
        self._follow_now.set()

    def _frame(self, way: Way) -> int:
        """The largest overlay packet in bytes that a way over TCP takes."""
        return rung(self.fitting.largest - way.room, self.fitting.largest)

    def _note_quickest(self, peer: bytes, dimension: int | None) -> None:
        if dimension == self._quickest.get(peer):
            return
        if dimension is None:
            del self._quickest[peer]
            return
        self._quickest[peer] = dimension
        found = self.paths.quickest(peer)
        log.info(
            "quickest path", peer=format_node_id(NodeId(peer)), dimension=dimension,
            why=None if found is None else found.reason,
        )  # fmt: skip

    def _ask_hops(self, peer: bytes, dimension: int, size: int) -> None:
        """Find out whether a hop cuts packets of this size. The peer has just answered from there, so nobody
        else is sent anything. A relay would count what is no packet of its leases."""
        endpoint, way = self._endpoints.get(peer, _NOWHERE)[dimension], self._way(peer, dimension)
        if endpoint is not None and (way is None or way.kind is Kind.DIRECT):
            self._outside.ask_hops(endpoint, size)

    def leave(self, dimensions: int) -> None:
        """Take these dimensions, a bitmap, out of use at both ends, and give the others back."""
        self.carry_out(self.paths.leave(dimensions, trio.current_time()))

    def weigh(self, node_id: bytes, dimension: int, factor: float) -> None:
        """Multiply the weight of a dimension of one node by this from now on; 1 for as measured."""
        self.carry_out(self.paths.set_factor(node_id, dimension, factor, trio.current_time()))

    async def wait(self, wanted: Callable[[], bool]) -> None:
        """Return once this is so; it is asked again whenever something has changed."""
        while not wanted():
            await self._changed.wait()

    async def ping(self, node_id: bytes, *, count: int, size: int | None) -> Sequence[Tally]:
        """Send a peer so many pings inside each dimension, of this size as overlay packets or as small as
        probes, and return what came of them. Raises PhantomMeshError where that cannot be now."""
        if self.problem is not None:
            raise self.problem
        if size is not None and size > self.fitting.largest:
            raise PhantomMeshError(
                f"no packet of {size} bytes fits the interfaces", fix=f"give at most {self.fitting.largest}"
            )
        if node_id in self._bursts:
            raise PhantomMeshError("another ping of this peer is under way", fix="try again in some seconds")
        if not self._bursting.take(trio.current_time()):
            raise PhantomMeshError("too many pings were asked for", fix="try again in some seconds")
        burst = self._bursts[node_id] = Burst(
            self.paths, self.fitting, node_id,
            count=count, size=size, random=self._random, now=trio.current_time(),
        )  # fmt: skip
        self._due.look()
        try:
            with trio.move_on_at(burst.end + RETRY):  # nothing ticks while there is no socket
                await self.wait(lambda: burst.done)
        finally:
            del self._bursts[node_id]
        return burst.tallies

    # --- the services ---

    async def run(self) -> None:
        """Probe until cancelled. A socket that cannot be had is logged once and tried again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._outside.run)
            nursery.start_soon(self._apply)
            nursery.start_soon(self._follow)
            while True:
                try:
                    with ProbeSocket(self._address(), self._port) as self._socket:
                        self.problem = None
                        await self._serve(self._socket)
                except OSError as error:
                    if self.problem is None:
                        self.problem = BackendError(
                            f"paths are not measured: UDP port {self._port} of {self._address()}: "
                            f"{error.strerror or error}",
                            fix="stop what uses it, or set paths.port in the config",
                        )
                        log.warning(str(self.problem), fix=self.problem.fix)
                finally:
                    self._socket = None
                alive(RETRY)
                await trio.sleep(RETRY)

    async def _serve(self, sock: ProbeSocket) -> None:
        """Serve until this node's address changes."""
        self._moved = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tick, sock)
            nursery.start_soon(self._read, sock)
            await self._moved.wait()
            nursery.cancel_scope.cancel()

    async def _read(self, sock: ProbeSocket) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock.socket)
            self._receive(sock)

    async def _tick(self, sock: ProbeSocket) -> None:
        while True:
            await self._due.sleep()
            self._receive(sock)  # an answer that is here already is not missing
            now = trio.current_time()
            for protocol in (self.paths, self.fitting):
                if now >= protocol.deadline:
                    self.carry_out(protocol.tick(now))
            for burst in [burst for burst in self._bursts.values() if now >= burst.deadline]:
                self.carry_out(burst.tick(now))

    def _receive(self, sock: ProbeSocket) -> None:
        for _ in range(BATCH):
            try:
                datagram, source, index = sock.receive()
            except BlockingIOError:
                return
            except OSError:
                self._dropped["probe-unread"] += 1
                continue
            dimension, node_id = self._dimensions.get(index), self._sources.get(source)
            if dimension is None or node_id is None:
                self._dropped["probe-source"] += 1
                continue
            peer = format_node_id(NodeId(node_id))
            with left_out(self._dropped, "probe-broken", BROKEN, peer=peer):
                now, burst = trio.current_time(), self._bursts.get(node_id)
                if burst is not None and burst.receive(datagram, dimension, now):
                    self._tell()
                    continue
                protocol = self.fitting if is_sized(datagram) else self.paths
                self.carry_out(protocol.receive(datagram, node_id, dimension, now))

    def carry_out(self, effects: list[Effect]) -> None:
        """Do what the protocol asked for."""
        for effect in effects:
            match effect:
                case Send(peer, dimension, datagram):
                    self._send(peer, dimension, datagram)
                case Rescore(peer, scores, quickest):
                    self._note_quickest(peer, quickest)
                    self._to_apply[peer] = effect
                    self._apply_now.set()
                    self.carry_out(self.fitting.rescored(peer, scores))
                case Fit(peer, mtu):
                    log.info("path MTU", peer=format_node_id(NodeId(peer)), bytes=mtu)
                    self._refitted()
                case AskHops(peer, dimension, size):
                    self._ask_hops(peer, dimension, size)
                case Turned(peer, dimension, before, after):
                    level = log.info if PathState.DARK in (before, after) else log.debug
                    level(
                        "path", peer=format_node_id(NodeId(peer)), dimension=dimension, was=before.value,
                        now=after.value,
                    )  # fmt: skip
                    self._turned(effect)
                    self.carry_out(self.fitting.turned(effect, trio.current_time()))
        self._tell()
        self._due.look()

    def _tell(self) -> None:
        self._changed.ring()

    def _send(self, peer: bytes, dimension: int, datagram: bytes) -> None:
        to, index = self._addresses.get(peer), self._indexes[dimension]
        if self._socket is None or to is None or not index:
            self._dropped["probe-unsent"] += 1
            return
        try:
            self._socket.send(datagram, to, index)
        except OSError as error:  # the interface is down or its queue full: lost, as other packets would be
            self._dropped["probe-unsent"] += 1
            self.unsent[peer, dimension] = os.strerror(error.errno or 0)
        else:
            if len(datagram) > SIZE:
                self.sized += 1
                self.sized_bytes += len(datagram) + HEADERS
            else:
                self.sent += 1
            self.unsent.pop((peer, dimension), None)

    async def _apply(self) -> None:
        """Have the kernel scatter by the newest weights: those that came meanwhile, together."""
        while True:
            self._apply_now = trio.Event()
            while self._to_apply:
                wanted, self._to_apply = self._to_apply, {}
                try:
                    await self._scatterer.set_scores(
                        {peer: effect.scores for peer, effect in wanted.items()},
                        {peer: effect.quickest for peer, effect in wanted.items()},
                    )
                except PhantomMeshError as error:
                    log.warning("the weights could not be set", error=str(error), fix=error.fix)
                    self._to_apply = wanted | self._to_apply
                    await trio.sleep(RETRY)
                    continue
                for node_id in wanted.keys() & self._addresses.keys():
                    self._applied[node_id] = wanted[node_id].scores
                    self._tell_force(node_id)
                self._tell()
            await self._apply_now.wait()

    async def _follow(self) -> None:
        """Look at the uplinks when the kernel says that one changed."""
        while True:
            await self._follow_now.wait()
            self._follow_now = trio.Event()
            for node_id, endpoints in list(self._endpoints.items()):
                self.locate(node_id, endpoints)
            await trio.sleep(FOLLOW)

    def _tell_force(self, node_id: bytes) -> None:
        """Tell what the kernel sends by: without a map of the peer's, dimension 0 alone."""
        scattered = self._scatterer.snapshot(node_id) is not None
        self.paths.in_force(node_id, self._applied.get(node_id, FULL) if scattered else _ONLY_FIRST)
