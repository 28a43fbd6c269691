# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes prefixes beyond the mesh for other members: forwarding, masquerade, and which routes work.

A route works if the kernel has one to the prefix, or to a part of it, by an interface with a carrier, and,
where the configuration names a target there, the target answers pings. Of a prefix whose site has other
addresses, it is the site's route that counts. A default route leads anywhere, so it proves nothing of a
prefix: it counts only with such a target. Of an exit the default route is what is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Final

import structlog
import trio

from phantommesh.config.sections import RoutesSection
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Fault, FaultKind
from phantommesh.node.routes import sites
from phantommesh.nursery.due import WORK, alive
from phantommesh.nursery.host import forwarding as switches
from phantommesh.nursery.host import hostroutes, waysout
from phantommesh.nursery.host.leftovers import close_left, opened_beside
from phantommesh.nursery.host.nft import Fingerprint, NftError, Table
from phantommesh.nursery.host.waysout import WayOut
from phantommesh.nursery.sockets.echo import Echo, Target
from phantommesh.overlay.exits import MAX_AROUND
from phantommesh.routable import in_order, is_exit
from phantommesh.routing import gateway
from phantommesh.routing.gateway import CAME, DROPS, FAMILY, LEFT, OPENED, Gateway, Passing
from phantommesh.wireguard.device import Network

NOT_FORWARDED = FaultKind("routes-not-forwarded", "high")
NOT_WORKING = FaultKind("route-not-working", "medium")
BLOCKED = FaultKind("routes-blocked", "medium")

# Tuning.
PACE: Final = 0.3  # s between two looks at the routes, and two pings, while members ask
IDLE_PACE: Final = 5.0  # s between two looks while nobody does
AROUND: Final = 30.0  # s between looks at an exit's own networks while the kernel tells of nothing
SHARE: Final = 20.0  # such a look may take one part in so many of a core
ASKED: Final = 15.0  # s after a question in which members are said to ask

log = structlog.get_logger("phantommesh.routes")


class GatewayDriver:
    """Routes for others what `offer` was given last. ``mesh`` are this node's own interfaces, the scattering
    one first; ``networks`` the overlay's. ``changed`` is called when `around` has changed."""

    def __init__(
        self,
        settings: RoutesSection,
        mesh: Sequence[str],
        *,
        networks: Callable[[], Sequence[Network]],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.works: frozenset[Network] = frozenset()
        self.why: dict[Network, str] = {}
        """Why a route does not work, by prefix."""
        self.problem: PhantomMeshError | None = None
        self.dropped: Counter[str] = Counter()
        self.around: tuple[Network, ...] | None = None
        """The networks of this host's own interfaces, where it is an exit; None while they are not known."""
        self._around_at = float("-inf")  # when they are to be read again
        self._mesh, self._networks = tuple(mesh), networks
        self._routes, self._changed = tuple[Network, ...](), changed
        self.settings, self._targets, self._sites = _read(settings)
        self._echo = Echo(self._wanted_targets, PACE)
        self._installed: tuple[str, Fingerprint] | None = None
        self._counted, self._passing = Counter[str](), Passing()
        self._opened: tuple[str, ...] = ()
        self._asked_at, self._kicked = float("-inf"), trio.Event()

    def offer(self, routes: Sequence[Network]) -> bool:
        """Route these prefixes and no others: those that this node's certificate grants and that it offers
        now. Return whether that are others than before."""
        before, self._routes = self._routes, tuple(routes)
        if self._routes != before:
            self.kick()
        return self._routes != before

    def configure(self, settings: RoutesSection) -> None:
        """Route by these settings from now on."""
        self.settings, self._targets, self._sites = _read(settings)
        self.kick()

    def asked(self) -> frozenset[Network]:
        """Return what works: a member asks. From now on it is looked at often."""
        now = trio.current_time()
        if now >= self._asked_at + ASKED:
            self._kicked.set()
        self._asked_at = now
        return self.works

    def faults(self) -> Iterator[Fault]:
        """What is wrong with the routes that this node offers."""
        if self.problem is not None:
            yield NOT_FORWARDED.fault(
                f"prefixes beyond the mesh are not forwarded: {self.problem}", self.problem.fix
            )
        for prefix, why in sorted(self.why.items(), key=str):
            yield NOT_WORKING.fault(
                f"the route to {self._sites.get(prefix, prefix)} does not work: {why}"
                + (f" (members know it as {prefix})" if prefix in self._sites else ""),
                "see `ip route get` and `ip link` for an address there; members use another router meanwhile",
            )

        if self._passing.blocked:
            master = self._mesh[0]
            yield BLOCKED.fault(
                "what is to go between members and the prefixes that this node routes comes in and does not "
                "leave: another packet filter of this host drops it",
                f"in each chain of the hook forward accept what comes by {master} and {master}0 to {master}6 "
                f"and what leaves by them: with Docker `iptables -I DOCKER-USER -i {master}+ -j ACCEPT`, and "
                "the same with -o; with ufw both in FORWARD; else see `nft list ruleset`",
            )

    @property
    def passed(self) -> int | None:
        """The packets that came to be forwarded, as of the last look; None: nothing is routed."""
        return self._passing.came if self._installed is not None else None

    def kick(self) -> None:
        """Look now: the routes, the host's or those to offer, may have changed."""
        self._kicked.set()

    def moved(self) -> None:
        """The host's addresses or routes have changed."""
        self._around_at = float("-inf")
        self.kick()

    async def run(self) -> None:
        """Route until cancelled; then nothing is forwarded any more. A failure is logged once and tried
        again."""
        table = gateway.table_name(self._mesh[0])
        try:
            await close_left(Table(FAMILY, table), table, OPENED)
        except NftError as error:
            self._tell(error)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._echo.run)
                while True:
                    self._kicked = trio.Event()
                    alive(WORK)
                    try:
                        await self._look()
                        self.problem = None
                    except PhantomMeshError as error:
                        self._tell(error)
                    often = bool(self._routes) and trio.current_time() < self._asked_at + ASKED
                    alive(PACE if often else IDLE_PACE)
                    with trio.move_on_after(PACE if often else IDLE_PACE):
                        await self._kicked.wait()
        finally:
            self.works = frozenset()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5.0):
                await self._end()

    # ---- one look ----

    async def _look(self) -> None:
        routes = self._routes
        if not routes:
            self.works, self.why = frozenset(), {}
            await self._end()
            return
        await self._read_around(routes)
        there = {prefix: self._sites.get(prefix, prefix) for prefix in routes}
        targets = {there[prefix]: self._targets[prefix] for prefix in routes if prefix in self._targets}
        found = await trio.to_thread.run_sync(partial(waysout.look, set(there.values()), self._mesh, targets))
        ways = {
            prefix: found[site]
            for prefix, site in there.items()
            if site in found and (not found[site].default or is_exit(prefix) or prefix in self._targets)
        }
        await self._forward(routes, ways)
        why = {prefix: self._flaw(prefix, ways.get(prefix)) for prefix in routes}
        works = frozenset(prefix for prefix, flaw in why.items() if not flaw)
        if works != self.works:
            for prefix in routes:
                if (prefix in works) != (prefix in self.works):
                    log.info(
                        "route beyond the mesh", prefix=str(prefix), works=prefix in works, why=why[prefix]
                    )
        self.works, self.why = works, {prefix: flaw for prefix, flaw in why.items() if flaw}

    async def _read_around(self, routes: Sequence[Network]) -> None:
        """Find out which networks are this host's own: an exit does not lead there. Raises BackendError."""
        now = trio.current_time()
        if not any(map(is_exit, routes)) or now < self._around_at:
            return
        found = await trio.to_thread.run_sync(partial(hostroutes.read_connected, self._mesh))
        took = trio.current_time() - now
        self._around_at = now + max(AROUND, SHARE * took)
        around = in_order(found) if len(found) <= MAX_AROUND else None
        if around != self.around:
            self.around = around
            self._changed()

    def _flaw(self, prefix: Network, way: WayOut | None) -> str:
        """Why a route does not work; empty where it does."""
        target = self._targets.get(prefix)
        if is_exit(prefix) and self.around is None:
            return f"this host has more than {MAX_AROUND} networks of its own, which no exit may lead into"
        if way is None and is_exit(prefix):
            return f"this host has no default route of IPv{prefix.version} by an interface with a carrier"
        if way is None:
            return (
                "this host has no route there, nor a network in it, by an interface with a carrier; a "
                "default route counts only with a host that routes.probe names"
            )
        if prefix.version == 6 and not switches.forwards(6):
            return "this host does not forward IPv6: set net.ipv6.conf.all.forwarding=1"
        if target is not None and not self._echo.answers(target):
            return f"{target}, which routes.probe names, does not answer pings"
        return ""

    def _wanted_targets(self) -> list[Target]:
        return [target for prefix, target in self._targets.items() if prefix in self._routes]

    async def _forward(self, routes: Sequence[Network], ways: Mapping[Network, WayOut]) -> None:
        """Have the kernel forward between the mesh and these prefixes. Raises PhantomMeshError."""
        outward = {name for prefix, way in ways.items() if prefix.version == 4 for name in way.interfaces}
        closed = []
        if not switches.forwards(4):
            closed = switches.closed(sorted(outward)) if any(p.version == 4 for p in routes) else []
        else:
            self._opened = ()  # another program wants this host to forward: that is not ours to drop
        opened = tuple(sorted({*self._opened, *closed} & outward))
        unused = [name for name in self._opened if name not in opened]
        wanted = Gateway(
            self._mesh[0],
            self._mesh,
            tuple(self._networks()),
            tuple(routes),
            self.settings.masquerade,
            opened,
            self._sites,
        )
        await self._keep(gateway.render(wanted))  # before anything is forwarded
        if unused:
            await self._give_back(unused)
        self._opened = opened
        mesh = switches.closed(self._mesh) if not switches.forwards(4) else []
        try:
            # The guard drops what comes by the mesh and is not for these prefixes.
            switches.open_for([*closed, *mesh])
        except OSError as error:
            raise PhantomMeshError(
                f"cannot turn on forwarding on {', '.join([*closed, *mesh])}: {error.strerror}",
                fix="mount /proc/sys writable, or set net.ipv4.ip_forward=1 on the host",
            ) from None

    async def _keep(self, text: str) -> None:
        table = Table(FAMILY, gateway.table_name(self._mesh[0]))
        seen = await table.fingerprint(OPENED)
        if self._installed is None or self._installed != (text, seen):
            await table.install(text)
            seen = await table.fingerprint(OPENED)
            if seen is None:
                raise NftError(
                    "the rules of routes beyond the mesh are gone as soon as they are made",
                    fix="stop the program that flushes the firewall's rules",
                )
            self._installed, self._counted = (text, seen), Counter()
            self._passing.restart()
        now = Counter(gateway.read_drops(await table.counters(DROPS)))
        self.dropped += now - self._counted
        self._counted = now
        self._passing.count(await table.counters_by_key(CAME), await table.counters_by_key(LEFT))

    # ---- the end ----

    async def _end(self) -> None:
        """Forward nothing more, and give the interfaces back what they were."""
        if self._installed is None:
            return
        await self._give_back([*self._opened, *self._mesh])
        self._opened, self._installed, self._passing = (), None, Passing()
        try:
            await Table(FAMILY, gateway.table_name(self._mesh[0])).remove()
        except NftError as error:
            self._tell(error)

    async def _give_back(self, interfaces: Iterable[str]) -> None:
        """Turn forwarding off again, but for what a relay or another node here needs."""
        beside = await opened_beside(gateway.table_name(self._mesh[0]))
        switches.close_for(name for name in interfaces if name not in beside)

    def _tell(self, error: PhantomMeshError) -> None:
        if str(self.problem) != str(error):
            log.warning("routes beyond the mesh are not forwarded", error=str(error), fix=error.fix)
        self.problem = error


def _read(settings: RoutesSection) -> tuple[RoutesSection, dict[Network, Target], dict[Network, Network]]:
    """The settings, with the hosts to ping and the sites by prefix. The texts were checked when the
    configuration was read."""
    targets = {ip_network(prefix): ip_address(target) for prefix, target in settings.probe.items()}
    return settings, targets, sites(settings)
