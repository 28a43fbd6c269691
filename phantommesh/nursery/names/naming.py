# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's names on one node: the zone as the roster has it now, its server, and the machine's resolver,
which is told of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from time import time

import trio

from phantommesh.config.sections import DnsSection
from phantommesh.names.askers import Askers
from phantommesh.names.zone import Zone, hosts_of, zone_names
from phantommesh.nursery.names.server import Ip, NameServer
from phantommesh.nursery.names.split import SplitDns
from phantommesh.trust.certificates import Member, Mesh


class Naming:
    """Zone, name server and split DNS of one node. ``link`` is the interface that stands for the mesh, ``me``
    returns this node's own membership, ``answered`` is called with the result of each query, ``blame`` with
    the reason and the asker of each that was beyond a rate."""

    def __init__(
        self,
        settings: DnsSection,
        mesh: Mesh,
        *,
        link: str,
        me: Callable[[], Member],
        answered: Callable[[str], None],
        blame: Callable[[str, str], None] = lambda reason, host: None,
    ) -> None:
        self._settings, self._mesh, self._me = settings, mesh, me
        self._link, self._answered, self._blame = link, answered, blame
        self.askers = Askers()
        """What each asker does; outlives a change of the settings."""
        self.zone = Zone(mesh, me().name, (), int(time()))
        self._dropped = Counter[str]()  # by name servers before this one
        self._server, self._split = self._make()
        self._running: list[trio.CancelScope] = []

    def _make(self) -> tuple[NameServer, SplitDns]:
        mesh, me = self._mesh, self._me
        server = NameServer(
            port=self._settings.port,
            addresses=self._addresses,
            networks=(mesh.network4, mesh.network6),
            zone=lambda: self.zone,
            answered=self._answered,
            askers=self.askers,
            blame=self._blame,
        )
        split = SplitDns(
            self._settings,
            mesh=mesh.name,
            link=self._link,
            server=lambda: me().ip4,
            zones=zone_names(mesh),
            hosts=lambda: self.zone.hosts,
        )
        return server, split

    def reload(self, settings: DnsSection) -> None:
        """Serve and tell by these settings from now on. What was told by the old ones is undone first."""
        if settings == self._settings:
            return
        self._settings = settings
        self._dropped += self._server.dropped
        self._server, self._split = self._make()
        for scope in self._running:
            scope.cancel()

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
        return self._dropped + self._server.dropped

    def services(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Return what to run, by name."""
        return {"names": partial(self._keep, self._tell), "dns": partial(self._keep, self._serve)}

    async def _keep(self, service: Callable[[], Awaitable[None]]) -> None:
        """Run a service until cancelled, and anew where the settings have changed."""
        while True:
            with trio.CancelScope() as scope:
                self._running.append(scope)
                try:
                    await service()
                    await trio.sleep_forever()
                finally:
                    self._running.remove(scope)

    async def _tell(self) -> None:
        await self._split.run()

    async def _serve(self) -> None:
        if self._settings.serve:
            await self._server.run()

    def _addresses(self) -> tuple[Ip, Ip]:
        me = self._me()
        return me.ip4, me.ip6
