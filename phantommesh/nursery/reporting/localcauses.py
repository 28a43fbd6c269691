# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks for what on this host keeps traffic from flowing and shows in no probe: routes that lead past the
mesh's interfaces, and programs that have its ports.

A probe names the interface to leave by, so it flows where traffic that follows the routes does not.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address

import structlog
import trio

from phantommesh.dimensions import master_name
from phantommesh.faults import Fault, FaultKind
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.whose import program_of, ways_to
from phantommesh.nursery.parts import Parts

ROUTE_STOLEN = FaultKind("route-stolen", "high")

# Tuning.
LOOK = 4.0  # s between two looks; what two looks in a row find is told
MOST = 32  # peers whose routes one look asks for
MAX_NAMED = 8  # peers that a fault names

log = structlog.get_logger("phantommesh.local")

Astray = Mapping[str, str]  # by peer's name: the interface that is not the mesh's


class LocalCauses:
    """Looks at the host from time to time."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._astray: dict[str, str] = {}
        self._suspects: dict[str, str] = {}
        self._place = 0
        self._programs: dict[int, str] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await trio.sleep(LOOK)
            await self.look()

    async def look(self) -> None:
        """Look once."""
        await self._look_at_ports()
        await self._look_at_routes()

    def program(self, port: int) -> str:
        """What has a port that an interface of ours cannot have; empty where that is not known."""
        return self._programs.get(port, "")

    def faults(self) -> Iterator[Fault]:
        """Return the routes that lead astray."""
        by_interface: dict[str, list[str]] = {}
        for name, interface in sorted(self._astray.items()):
            by_interface.setdefault(interface, []).append(name)
        for interface, names in by_interface.items():
            more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
            yield ROUTE_STOLEN.fault(
                f"what is sent to {', '.join(names[:MAX_NAMED])}{more} leaves this host by {interface}, not "
                "by the mesh: a route or a rule of the host's takes it",
                "see `ip route get` with the peer's overlay address, and `ip rule`; remove the route or the "
                "rule that is more to the point than the mesh's",
                subject=interface,
            )

    async def _look_at_ports(self) -> None:
        ports = {port for _, port in taken_ports(self._parts)}
        self._programs = {port: name for port, name in self._programs.items() if port in ports}
        for port in ports - self._programs.keys():
            self._programs[port] = await trio.to_thread.run_sync(program_of, port)

    async def _look_at_routes(self) -> None:
        parts = self._parts
        entries = parts.peers.entries
        ours = {*parts.names, master_name(parts.config.wireguard.prefix)}
        if not all(name in parts.reconciler.actual for name in parts.names):
            return  # the overlay's range is closed meanwhile
        some = [entries[(self._place + i) % len(entries)] for i in range(min(MOST, len(entries)))]
        self._place = (self._place + len(some)) % max(1, len(entries))
        named: dict[IPv4Address | IPv6Address, str] = {}
        for entry in some:
            named[entry.member.ip4] = entry.member.name
            if parts.backend.ipv6:
                named[entry.member.ip6] = entry.member.name
        try:
            found = await trio.to_thread.run_sync(ways_to, list(named))
        except OSError as error:
            log.debug("routes could not be asked for", error=str(error))
            return
        foreign = {named[a]: way for a, way in found.items() if way not in ours and way != "lo"}
        asked = {entry.member.name for entry in some}
        twice = {name: way for name, way in foreign.items() if self._suspects.get(name) == way}
        kept = {name: way for name, way in self._astray.items() if name not in asked}
        members = {entry.member.name for entry in entries}
        self._astray = {name: way for name, way in (kept | twice).items() if name in members}
        self._suspects = {n: w for n, w in self._suspects.items() if n not in asked} | foreign


def taken_ports(parts: Parts) -> Iterator[tuple[str, int]]:
    """Yield the interfaces of ours that cannot have their UDP port, with it, because something else has."""
    failed = parts.reconciler.problems
    if not any(
        isinstance(p.error, BackendError) and p.error.code == errno.EADDRINUSE for p in failed.values()
    ):
        return
    desired = parts.reconciler.desired
    for name, problem in failed.items():
        error = problem.error
        if name in desired and isinstance(error, BackendError) and error.code == errno.EADDRINUSE:
            yield name, desired[name].listen_port
