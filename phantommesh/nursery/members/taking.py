# SPDX-License-Identifier: GPL-3.0-or-later
"""Which routes of others this node takes: `node.routes` decides, on this node's roster and host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import structlog
import trio

from phantommesh.config.sections import RoutesSection
from phantommesh.errors import PhantomMeshError
from phantommesh.node.routes import Change, Routes
from phantommesh.nursery.due import WORK, alive
from phantommesh.nursery.overlay import hostview
from phantommesh.overlay.prefixes import HostRange
from phantommesh.records.roster import Entry
from phantommesh.routable import Network
from phantommesh.routing.prefixes import Taken
from phantommesh.trust.revocations import Revocations

# Tuning.
LOOK: Final = 30.0  # s between looks while nothing is heard
PAUSE: Final = 0.2  # s between two looks, however fast members change
SHARE: Final = 20.0  # a look may take one part in so many of a core, on a host with very many routes

log = structlog.get_logger("phantommesh.routes")


class Taking:
    """``entries`` gives the members in good standing, ``overlay`` are the mesh's networks, ``names`` this
    node's interfaces. ``told`` is called with each change.

    ``carried`` is for the part that moves packets: it says which member carries each prefix now, by node id.
    Without such a part nothing is carried. That part reads ``taken``, and sets ``changed``, which is called
    after each change of ``taken``.
    """

    def __init__(
        self,
        section: RoutesSection,
        region: str,
        overlay: Iterable[Network],
        names: Sequence[str],
        entries: Callable[[], Sequence[Entry]],
        revocations: Revocations,
    ) -> None:
        self.routes = Routes(section, overlay, region)
        self.dropped: Counter[str] = Counter()
        self.carried: Callable[[], Mapping[Network, bytes]] = dict
        self.changed: Callable[[], None] = lambda: None
        self.told: Callable[[Change], None] = lambda change: None
        self._names, self._entries, self._revocations = names, entries, revocations
        self._kicked = trio.Event()

    @property
    def taken(self) -> tuple[Taken, ...]:
        """The prefixes that this node takes, each with its routers in order of preference."""
        return self.routes.taken

    def configure(self, section: RoutesSection) -> None:
        """Judge by these settings from now on."""
        self.routes.configure(section)
        self.kick()

    def kick(self) -> None:
        """Look again: members, revocations or the host may have changed."""
        self._kicked.set()

    async def run(self) -> None:
        """Judge whenever something may have changed, until cancelled."""
        while True:
            self._kicked, began = trio.Event(), trio.current_time()
            alive(WORK)
            try:
                await self.look()
            except PhantomMeshError as error:  # the host cannot be read: what was taken stays
                log.warning("the host's own ranges are not known", error=str(error), fix=error.fix)
            took = trio.current_time() - began
            alive(max(LOOK, SHARE * took))
            with trio.move_on_after(max(LOOK, SHARE * took)):
                await self._kicked.wait()
            await trio.sleep_until(began + max(PAUSE, SHARE * took))

    async def look(self) -> None:
        """Judge anew. Raises BackendError where the host cannot be read."""
        self._judge(await self._host())

    async def _host(self) -> tuple[HostRange, ...]:
        networks = self.routes.networks
        if not networks:
            return ()
        view = await trio.to_thread.run_sync(partial(hostview.look, networks, self._names))
        return view.ranges

    def _judge(self, host: Iterable[HostRange]) -> None:
        before = self.routes.taken
        changes, claims = self.routes.look(self._entries(), self._revocations, host)
        for claim in claims:
            self.dropped["route-not-certified"] += 1
            log.warning(
                "a member offers a route that it was not granted", peer=claim.name, route=claim.prefix
            )
        for change in changes:
            self.told(change)
        if self.routes.taken != before:
            self.changed()
