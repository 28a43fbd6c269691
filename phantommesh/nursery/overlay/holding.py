# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the overlay's addresses for the overlay: closed where it is not there, and off the host's own ranges.

It is the first thing of a node that touches the host and the last that stops, and what it has closed stays
closed when the node is gone. It looks again whenever the kernel says that an address, a route or a policy
rule has changed.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import structlog
import trio

from phantommesh.errors import PhantomMeshError
from phantommesh.faults import Contest, FaultKind
from phantommesh.nursery.due import WORK, alive
from phantommesh.nursery.overlay import closing, hostview
from phantommesh.overlay.prefixes import Address, Closing, Plan, plan, refusal
from phantommesh.wireguard.device import Network

OVERLAY_NOT_HELD = FaultKind("overlay-not-held", "high")

# Tuning.
TOLD = 30.0  # s between looks while the kernel tells of changes, or the interval where that is longer
PAUSE = 0.1  # s between two looks, however fast addresses and routes change
SHARE = 20.0  # a look may take one part in so many of a core, on a host with very many routes

log = structlog.get_logger("phantommesh.overlay")


class Overlay:
    """The overlay's range on this host. ``names`` are this node's interfaces, ``members`` returns the names
    of all members by overlay address, ``interval`` is in seconds."""

    def __init__(
        self,
        networks: Sequence[Network],
        names: Sequence[str],
        members: Callable[[], Mapping[Address, str]],
        *,
        interval: float,
    ) -> None:
        self.networks, self.names = tuple(networks), tuple(names)
        self._others: tuple[Network, ...] = ()
        self._former = set[Network]()  # of others, all there have been: what closed them is to go
        self.plan = plan(self.networks, {}, ())
        self.problem: PhantomMeshError | None = None
        self.contest = Contest()
        self.on_change: Callable[[], None] = lambda: None
        self._members, self._interval = members, interval
        self._closed: frozenset[Closing] | None = None  # as it was last left
        self._told = False  # whether the kernel tells of changes
        self._kicked = trio.Event()

    @property
    def routed(self) -> tuple[Network, ...]:
        """The prefixes that mean the overlay on this host: for routes, rules and guards alike."""
        return self.plan.routed

    def prefixes(self) -> tuple[Network, ...]:
        """``routed``, for those that ask again and again."""
        return self.plan.routed

    def join_with(self, others: Sequence[Network]) -> None:
        """Have these networks of other meshes mean the overlay, too, from the next look on."""
        if self._others != tuple(others):
            self._former.update(self._others, others)
            self._others = tuple(others)
            self.kick()

    def kick(self) -> None:
        """Look again now: the members may have changed."""
        self._kicked.set()

    async def examine(self) -> None:
        """Say what would be routed and closed, before anything is done. Raises OverlapError where the host's
        own range is in the way, and BackendError."""
        view = await self._look()
        found = plan((*self.networks, *self._others), self._members(), view.ranges)
        if (error := refusal(found)) is not None:
            raise error
        self._tell(found)

    async def converge(self) -> None:
        """Look once, and put right what is not as it should be. Raises BackendError."""
        view = await self._look()
        found = plan((*self.networks, *self._others), self._members(), view.ranges)
        before, self._closed = self._closed, found.closed
        rerouted = found.routed != self.plan.routed
        self._tell(found)
        if await self._close(found, view) and before == found.closed:
            self.contest.mended("the routes and rules that close the overlay's range", trio.current_time())
            log.warning("somebody else opened the overlay's range; it is closed again")
        if rerouted:
            self.on_change()

    async def run(self) -> None:
        """Hold the range until cancelled. A failure is logged once and tried again; it never ends this."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            while True:
                self._kicked = trio.Event()
                alive(WORK)
                began = trio.current_time()
                try:
                    await self.converge()
                    if self.problem is not None:
                        self.problem = None
                        log.info("the overlay's range is held again")
                except PhantomMeshError as error:
                    if str(self.problem) != str(error):
                        log.warning("the overlay's range is not held", error=str(error), fix=error.fix)
                    self.problem = error
                took = trio.current_time() - began
                interval = max(TOLD, self._interval) if self._told else self._interval
                alive(max(interval, SHARE * took, PAUSE))
                with trio.move_on_after(max(interval, SHARE * took)):
                    await self._kicked.wait()
                await trio.sleep_until(began + max(PAUSE, SHARE * took))

    async def _listen(self) -> None:
        """Wake the loop whenever the host's addresses, routes or policy rules change."""
        try:
            with socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                socket.NETLINK_ROUTE,
            ) as heard:
                heard.bind((0, hostview.GROUPS))
                self._told = True
                self.kick()  # what changed before this was not told
                while True:
                    await trio.lowlevel.wait_readable(heard)
                    _drain(heard)
                    self.kick()
                    await trio.sleep(PAUSE)
        except OSError as error:  # then it is the interval alone
            self._told = False
            log.debug("changes of routes and rules are not heard of", error=str(error))

    async def _look(self) -> hostview.HostView:
        return await trio.to_thread.run_sync(
            partial(hostview.look, (*self.networks, *self._former), self.names)
        )

    async def _close(self, found: Plan, view: hostview.HostView) -> bool:
        return await trio.to_thread.run_sync(partial(closing.close, found.closed, view.closed))

    def _tell(self, found: Plan) -> None:
        before, self.plan = self.plan, found
        for conflict in found.conflicts:
            if conflict not in before.conflicts:
                log.warning("the host's own range meets the overlay's", conflict=conflict)
        for left_out in found.avoided:
            if left_out not in before.avoided:
                log.info("a range of the host's is left out of the overlay", left_out=str(left_out))


def _drain(heard: socket.socket) -> None:
    while True:
        try:
            heard.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            return  # ENOBUFS: more has changed than fits, which is news enough
