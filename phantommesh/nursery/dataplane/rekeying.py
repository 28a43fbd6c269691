# SPDX-License-Identifier: GPL-3.0-or-later
"""Replaces the WireGuard key pair and port of one dimension at a time: drain, swap, publish, restore.

1. Drain: the weights of the dimension become 0 here, and the probes in it say so, so that every peer stops
   sending on it too and says that it has.
2. Swap: the new private key is written down, then given to the links, which take the dimension's PSK away.
3. Publish: the record goes out with the new public key and port. Whoever hears of it shakes hands.
4. Restore: the path proves itself by probes under the new keys, at each end, before it carries traffic.

All of it is derived from state on both sides, so a crash after any step leaves one that the next start goes
on from: with the old key if the new one was not on disk, else with the new one, which is published again.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from time import time

import structlog
import trio

from phantommesh.config.sections import WireguardSection
from phantommesh.dimensions import only
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.dataplane.paths import PathDriver
from phantommesh.nursery.members.own import OwnRecord
from phantommesh.wireguard.keys import port

# Tuning.
DRAIN = 5.0  # s that the peers have to stop sending on a dimension
SETTLE = 0.25  # s for what is on its way to arrive
RESTORE = 30.0  # s that a dimension has to come back before the next one is looked at
LOOK = 60.0  # s between looks at the clock, which may be set
AGAIN = 60.0  # s before another attempt where the dimension could not be drained or the disk was full
HASTE = (0.75, 1.0)

log = structlog.get_logger("phantommesh.rekeying")


class KeyReplacer:
    """Keeps this node's WireGuard keys young. ``adopt`` makes the keys in ``own`` those of the node."""

    def __init__(
        self, settings: WireguardSection, own: OwnRecord, paths: PathDriver, adopt: Callable[[], None]
    ) -> None:
        self._settings, self._own, self._paths, self._adopt = settings, own, paths, adopt
        self.replaced = 0
        self._one = trio.Lock()  # one dimension at a time: an agent may ask for another
        self._spoilt: set[bytes] = set()

    async def run(self) -> None:
        """Replace keys as they come of age, or as another member turns out to hold one, until cancelled."""
        haste = random.uniform(*HASTE)  # noqa: S311  # spreads moments, keys nothing
        while True:
            due, dimension = self._own.wg_keys.next(self._settings.key_seconds, haste)
            if (shared := self._shared()) is not None:
                due, dimension = 0.0, shared
            if (left := due - time()) > 0:
                with trio.move_on_after(min(left, LOOK)):
                    await self._own.changes()
            elif await self._try(dimension):
                haste = random.uniform(*HASTE)  # noqa: S311
            else:
                await trio.sleep(min(AGAIN, self._settings.key_seconds / 16))

    async def _try(self, dimension: int) -> bool:
        try:
            return await self.replace(dimension)
        except PhantomMeshError as error:
            log.error("a WireGuard key could not be replaced", error=str(error), fix=error.fix)
            return False

    def _shared(self) -> int | None:
        """A dimension whose key another member holds, or held: once the other has replaced it there is no
        dispute any more, but the private key is known to two machines all the same."""
        public = self._own.wg_keys.public
        if (found := self._own.shared_dimension()) is not None:
            self._spoilt.add(public[found])
        self._spoilt &= set(public)
        return next((i for i, key in enumerate(public) if key in self._spoilt), None)

    def _overdue(self, dimension: int) -> bool:
        if self._shared() == dimension:
            return True
        made = self._own.wg_keys.keys[dimension].made
        return made is not None and time() - made >= self._settings.key_seconds

    async def replace(self, dimension: int) -> bool:
        """Replace one dimension's key now. False if it cannot be done without loss.

        A key whose time is over is replaced all the same, and so is one that another member holds too. Raises
        StateError where the new key cannot be written down.
        """
        async with self._one:
            return await self._replace(dimension)

    async def _replace(self, dimension: int) -> bool:
        paths = self._paths.paths
        self._paths.leave(only(dimension))
        try:
            with trio.move_on_after(DRAIN) as patience:
                await self._paths.wait(lambda: paths.drained(dimension))
            if patience.cancelled_caught and not self._overdue(dimension):
                log.info("a dimension cannot be drained now", dimension=dimension)
                return False
            await trio.sleep(SETTLE)
            await self._own.replace_key(dimension, self._slot(dimension))
            self._adopt()
        finally:
            self._paths.leave(0)  # without PSKs nothing is sent on it anyhow
        self.replaced += 1
        log.info("a WireGuard key was replaced", dimension=dimension)
        with trio.move_on_after(RESTORE) as patience:
            await self._paths.wait(lambda: paths.restored(dimension))
        if patience.cancelled_caught:
            log.warning("a dimension with a new key is not back with every peer", dimension=dimension)
        return True

    def _slot(self, dimension: int) -> int:
        """The next of the dimension's ports that nobody has; the present one if somebody has all others."""
        choices = self._settings.port_choices
        present = self._own.wg_keys.keys[dimension].slot % choices
        for step in range(1, choices):
            slot = (present + step) % choices
            if _is_free(port(self._settings.base_port, dimension, slot)):
                return slot
        return present


def _is_free(number: int) -> bool:
    """Whether a UDP port can be had."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.bind(("", number))
        except OSError:
            return False
        return True
