# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps this host's routes to the prefixes beyond the mesh that the node takes of others.

Level-triggered: what the kernel has is compared with what should be, whenever the kernel tells of a change, a
router takes over from another, and now and then. What is taken is closed for all other ways before anything
leads to it, and stays closed when the node ends. With `routes.exit` all is closed so, in both families, from
the node's first step on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

import structlog
import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Fault, FaultKind
from phantommesh.names.resolvers import MAX_BYTES, Address, name_servers, out_of_reach
from phantommesh.nursery.host import beyond as table
from phantommesh.nursery.host import netlink
from phantommesh.nursery.host.hostroutes import read_connected
from phantommesh.nursery.overlay import hostview
from phantommesh.nursery.overlay.hostview import HostView
from phantommesh.overlay.beyond import Beyond, beyond
from phantommesh.overlay.exits import NOT_THE_INTERNET
from phantommesh.records.roster import Entry
from phantommesh.routable import Places, is_exit
from phantommesh.routing.prefixes import Taken
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.desired import FIRST_METRIC, MASTER_METRIC
from phantommesh.wireguard.device import Network, Route
from phantommesh.wireguard.fits import route_to

# Tuning.
INTERVAL: Final = 10.0  # s between looks when the kernel tells of nothing
MAX_HELD: Final = 1024  # prefixes, of which an authority has granted each
MAX_NAMED: Final = 8  # of them that faults name
PAUSE: Final = 0.05  # s between two looks, however fast things change
SHARE: Final = 20.0  # reading the host may take one part in so many of a core: it may have very many routes

NOT_ROUTED = FaultKind("routes-not-taken", "high")
NOT_CARRIED = FaultKind("route-not-carried", "medium")
NO_EXIT = FaultKind("exit-not-offered", "high")
ONE_FAMILY = FaultKind("exit-one-family", "low")
NO_NAMES = FaultKind("exit-without-dns", "medium")

# What the C library asks; and where that is systemd-resolved on this host, what systemd-resolved asks.
RESOLVERS: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))

log = structlog.get_logger("phantommesh.routes")


class BeyondMesh:
    """The prefixes that one node takes. ``device`` is its scattering interface, ``names`` the seven.
    ``carried`` returns the prefixes that are carried now, by router; ``fits`` the largest packet in bytes for
    each peer; ``allows`` says whether the operator lets a prefix be taken; ``changed`` is called when other
    prefixes mean the mesh on this host, or are carried, than before; ``ipv6`` says whether interfaces here
    can hold IPv6: without that prefixes of IPv6 are closed alone. ``own`` are the prefixes that this node
    routes itself, which may be parts of those: they stay the host's. ``gates``: the default routes, where the
    operator names an exit: they are closed whether anybody offers them or not. ``lan``: the private networks
    of the host's own interfaces stay beside the exit. ``overlay`` are the mesh's networks."""

    def __init__(
        self,
        device: str,
        names: Sequence[str],
        *,
        carried: Callable[[], Mapping[Network, bytes]],
        fits: Callable[[], Mapping[bytes, int]],
        mtu: int,
        allows: Callable[[Network], bool],
        changed: Callable[[], None],
        ipv6: Callable[[], bool] = lambda: True,
        own: Iterable[Network] = (),
        gates: Collection[Network] = (),
        lan: bool = False,
        overlay: Sequence[Network] = (),
    ) -> None:
        self.plan = Beyond()
        self.problem: PhantomMeshError | None = None
        self.taken: tuple[Taken, ...] = ()
        self._device, self._names = device, tuple(names)
        self._carried, self._fits, self._mtu, self._changed = carried, fits, mtu, changed
        self._allows, self._ipv6 = allows, ipv6
        self._own = tuple(own)
        self._gates, self._lan, self._overlay = tuple(gates), lan, tuple(overlay)
        self._servers: tuple[Address, ...] = ()  # that this host asks for names
        self._held: set[Network] | None = None  # what is closed until the operator opens it
        self._clean = False  # whether the kernel has nothing of it, as last left
        self._passed_over = 0  # prefixes that are more than `MAX_HELD`
        self._host = HostView((), frozenset())  # as last read, for these prefixes
        self._read_for: tuple[Network, ...] = ()
        self._read_at = -math.inf  # when the host is to be read again
        self._kicked = trio.Event()

    @property
    def closed(self) -> tuple[Network, ...]:
        """The prefixes that leave by the mesh or not at all."""
        return self.plan.closed

    def carriers(self, members: Iterable[Entry]) -> tuple[tuple[Network, IPv4Address | IPv6Address], ...]:
        """The networks that are carried now, each with the overlay address of its router in that family."""
        at = {entry.member.node_id: entry.member for entry in members}
        return tuple(
            (network, at[NodeId(router)].ip4 if network.version == 4 else at[NodeId(router)].ip6)
            for network, router in self.plan.routed
            if router in at
        )

    @property
    def beside(self) -> tuple[Network, ...]:
        """The host's own networks that are reached directly though all is closed for other ways than an
        exit."""
        return self.plan.beside

    def sizes(self) -> dict[Network, int]:
        """The networks that are carried now, each with the largest packet in bytes that all ways to its
        router carry."""
        fits = self._fits()
        return {network: fits.get(router, self._mtu) for network, router in self.plan.routed}

    def spare(self, own: Iterable[Network]) -> None:
        """These are the prefixes that this node routes itself, from now on."""
        self._own = tuple(own)
        self.kick()

    def take(self, taken: Iterable[Taken]) -> bool:
        """Take these prefixes and no others, as far as there is room to close them; return whether that is
        another choice than before."""
        before, wanted = self.taken, tuple(taken)
        if self._held is not None:
            self._hold(one.prefix for one in wanted)
            self.taken = tuple(one for one in wanted if one.prefix in self._held)
        else:
            self.taken = wanted[:MAX_HELD]
        self._passed_over = len(wanted) - len(self.taken)
        if self.taken != before:
            self.kick()
        return self.taken != before

    def faults(self) -> Iterator[Fault]:
        """What is wrong with the routes that this node takes."""
        if self.problem is not None:
            yield NOT_ROUTED.fault(
                f"prefixes beyond the mesh are not routed: {self.problem}", self.problem.fix
            )
        if self._passed_over:
            yield NOT_ROUTED.fault(
                f"a node closes {MAX_HELD} prefixes beyond the mesh at most: {self._passed_over} that are "
                "offered are not taken, and leave as the host routes them",
                "allow fewer in routes.accept; `phantommesh down` lets go of those that nobody offers now",
            )
        for conflict in self.plan.conflicts[:MAX_NAMED]:
            yield NOT_ROUTED.fault(
                f"{conflict}: it is not routed, and what was not closed there before leaves by other ways",
                "allow narrower prefixes in routes.accept, and have their routers advertise those",
            )
        carried = self._carried()
        taken = Places((one.prefix, one) for one in self.taken if not is_exit(one.prefix))
        left = (one for one in self._held or () if not is_exit(one) and not taken.meets(one))
        for prefix in sorted(left, key=str)[:MAX_NAMED]:
            if self._allows(prefix):
                yield NOT_CARRIED.fault(
                    f"{prefix} was taken, and nobody offers it any more: what is for it is refused here",
                    "wait for its router; or take it out of routes.accept and send the node SIGHUP, or run "
                    "`phantommesh down`, to have it leave by other ways",
                )
        for one in self.taken:
            if one.prefix not in carried:
                yield NOT_CARRIED.fault(
                    f"no router carries {one.prefix}: what is for it is refused here, and leaves by no "
                    "other way",
                    "see `phantommesh status` on its routers; `ip route get` there shows their own route",
                )

        yield from _without_exit(self._gates, [one.prefix for one in self.taken])
        if self._gates and self._servers:
            led = [one.prefix for one in self.taken if not is_exit(one.prefix)]
            lost = out_of_reach(self._servers, [*led, *self._overlay], NOT_THE_INTERNET)
            if len(lost) == len(self._servers):
                yield NO_NAMES.fault(
                    f"names are asked of {', '.join(map(str, lost))} alone, where no exit leads: questions "
                    "for names leave by the exit or not at all",
                    "have this host ask a name server of the internet, or a member: in /etc/resolv.conf, or "
                    "with systemd-resolved by DNS= and Domains=~. in /etc/systemd/resolved.conf",
                )

    def kick(self) -> None:
        """Look now: what should be, or what the kernel has, may have changed."""
        self._kicked.set()

    async def run(self) -> None:
        """Keep the routes until cancelled. A failure is logged once and tried again; it never ends this."""
        while True:
            self._kicked = trio.Event()
            try:
                await self.converge()
                self.problem = None
            except PhantomMeshError as error:
                if str(self.problem) != str(error):
                    log.warning("prefixes beyond the mesh are not routed", error=str(error), fix=error.fix)
                self.problem = error
            await trio.sleep(PAUSE)
            with trio.move_on_after(INTERVAL):
                await self._kicked.wait()

    async def converge(self) -> None:
        """Look once, and put right what is not as it should be. Raises BackendError."""
        number = table.table_of(self._device)
        if self._held is None:  # an earlier run may have left something closed
            left = await trio.to_thread.run_sync(table.closed_in, number)
            self._held = set()
            self._hold(self._gates)
            self._hold(one.prefix for one in self.taken)
            self._hold(left)
            self.plan = Beyond(tuple(left))
        prefixes = tuple(network for network in self._held if self._allows(network))
        if not prefixes and self._clean:
            return
        host, before = await self._read_host(tuple(one for one in prefixes if not is_exit(one))), self.plan
        lan: tuple[Network, ...] = ()
        if self._gates:
            self._servers = await trio.to_thread.run_sync(_read_servers)
        if self._lan and any(map(is_exit, prefixes)):
            lan = await trio.to_thread.run_sync(partial(read_connected, (self._device, *self._names)))
        self.plan = beyond(prefixes, self._carried(), host.ranges, before.closed, self._own, lan)
        for conflict in self.plan.conflicts:
            if conflict not in before.conflicts:
                log.warning("a prefix beyond the mesh is not routed", conflict=conflict)
        if self.plan != before:
            self._changed()
        links = await trio.to_thread.run_sync(partial(_indexes, (self._device, self._names[0])))
        want = table.Wanted(
            frozenset(self._routes(links)),
            frozenset(self.plan.closed),
            frozenset() if self.plan.exit else host.uplinks,  # with an exit the guard marks what comes
            frozenset(self.plan.beside),
        )
        if await trio.to_thread.run_sync(partial(table.converge, number, want)):
            log.info("routes beyond the mesh", closed=[str(n) for n in want.closed], routes=len(want.routes))
        self._clean = not prefixes

    async def _read_host(self, prefixes: tuple[Network, ...]) -> HostView:
        """What the host has in these prefixes: as last read, where reading took long. Raises BackendError."""
        if not prefixes:
            self._host, self._read_for = HostView((), frozenset()), ()
            return self._host
        began = trio.current_time()
        if prefixes != self._read_for or began >= self._read_at:
            ours = (self._device, *self._names)
            self._host = await trio.to_thread.run_sync(partial(hostview.look, prefixes, ours))
            self._read_for = prefixes
            now = trio.current_time()
            self._read_at = now + SHARE * (now - began)
        return self._host

    def _hold(self, prefixes: Iterable[Network]) -> None:
        """Keep these closed from now on: whoever was to carry them may be revoked, or gone for good, and that
        opens nothing."""
        held = set() if self._held is None else self._held
        for prefix in prefixes:
            if len(held) < MAX_HELD:
                held.add(prefix)

    def _routes(self, links: Mapping[str, int]) -> Iterable[tuple[int, Route]]:
        """The routes over the interface that scatters, and worse ones over dimension 0 where nothing can."""
        six = self._ipv6()
        sizes = {network: mtu for network, mtu in self.sizes().items() if six or network.version == 4}
        for name, metric in ((self._device, MASTER_METRIC), (self._names[0], FIRST_METRIC)):
            if name in links:
                for network, mtu in sizes.items():
                    yield links[name], route_to(network, metric, mtu, self._mtu)


def _read_servers() -> tuple[Address, ...]:
    """The name servers that this host asks; none where they cannot be read."""
    found: tuple[Address, ...] = ()
    for path in RESOLVERS:
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                found = name_servers(file.read(MAX_BYTES))
        except OSError:
            break
        if not found or not all(one.is_loopback for one in found):
            break
    return found


def _without_exit(gates: Sequence[Network], taken: Collection[Network]) -> Iterator[Fault]:
    """What is closed because none of the members that the operator names as exits offers it."""
    lacking = [prefix for prefix in gates if prefix not in taken]
    if lacking and len(lacking) == len(gates):
        yield NO_EXIT.fault(
            "no member that routes.exit names is an exit: all that is for the internet is refused here",
            "see `phantommesh route list`, and run `phantommesh route approve NAME exit` on an authority; or "
            "empty routes.exit and restart the node to have traffic leave by this host's own ways",
        )
        return
    for prefix in lacking:
        yield ONE_FAMILY.fault(
            f"no exit of this node's carries IPv{prefix.version}: it is refused here, and leaves by no other "
            "way",
            f"leave it so; or have an exit advertise {prefix}, and approve that",
            subject=str(prefix),
        )


def _indexes(names: Collection[str]) -> dict[str, int]:
    return {name: link.index for name, link in netlink.read_links(names).items() if link.ours and link.up}
