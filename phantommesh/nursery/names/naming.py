# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's names on one node: the zone as the roster has it now, its server, and the machine's resolver,
which is told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from time import time

from phantommesh.config.sections import DnsSection
from phantommesh.names.zone import Zone, hosts_of, zone_names
from phantommesh.nursery.names.server import Ip, NameServer
from phantommesh.nursery.names.split import SplitDns
from phantommesh.trust.certificates import Member, Mesh


class Naming:
    """Zone, name server and split DNS of one node. ``link`` is the interface that stands for the mesh, ``me``
    returns this node's own membership, ``answered`` is called with the result of each query."""

    def __init__(
        self,
        settings: DnsSection,
        mesh: Mesh,
        *,
        link: str,
        me: Callable[[], Member],
        answered: Callable[[str], None],
    ) -> None:
        self._settings, self._mesh, self._me = settings, mesh, me
        self.zone = Zone(mesh, me().name, (), int(time()))
        self._server = NameServer(
            port=settings.port,
            addresses=self._addresses,
            networks=(mesh.network4, mesh.network6),
            zone=lambda: self.zone,
            answered=answered,
        )
        self._split = SplitDns(
            settings,
            mesh=mesh.name,
            link=link,
            server=lambda: me().ip4,
            zones=zone_names(mesh),
            hosts=lambda: self.zone.hosts,
        )

    def update(self, members: Iterable[Member]) -> None:
        """Make these the members that have names, this node among them."""
        hosts = hosts_of(members)
        if hosts != self.zone.hosts:
            serial = max(self.zone.soa.serial + 1, int(time()))
            self.zone = Zone(self._mesh, self._me().name, hosts, serial)
            self._split.changed()

    @property
    def dropped(self) -> Counter[str]:
        """Queries without an answer, by reason."""
        return self._server.dropped

    def services(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return what to run, by name."""
        services: dict[str, Callable[[], Awaitable[None]]] = {"names": self._split.run}
        if self._settings.serve:
            services["dns"] = self._server.run
        return services

    def _addresses(self) -> tuple[Ip, Ip]:
        me = self._me()
        return me.ip4, me.ip6
