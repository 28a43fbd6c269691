# SPDX-License-Identifier: GPL-3.0-or-later
"""Has WireGuard keep to an endpoint that was chosen while packets still come in by another way.

WireGuard sends to where a peer's latest packet came from. Two ends that move from one way that works to
another both go on receiving what the other had sent before: each is led back to the old way by that, sends
there, and leads the other one back. With packets on the way all the time neither would ever move. Each time
that the chosen endpoint is set again, some more packets take the new way, and none takes the old one that did
not before. So after a few times all do.

This is for ways that were proved only. An address of a record may be wrong, and then WireGuard's own idea of
where the peer is must stand.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from math import inf
from typing import Final

from phantommesh.rates import Bucket
from phantommesh.wireguard.device import DeviceState, Endpoint
from phantommesh.wireguard.diff import DeviceDiff

# Tuning.
LASTS: Final = 10.0  # s for which a chosen endpoint is set again
AGAIN: Final = 0.1  # s between two looks,
LOOKS: Final = 5  # of them after WireGuard was last found led back; then
SURE: Final = 1.0  # s
PASSES: Final = 1.0, 120.0  # looks a second and at once: each reads all interfaces


class Insisting:
    """The endpoints of one node's peers that were chosen a moment ago. ``proved`` gives those at which
    packets have passed. Peers that lead WireGuard back all the time cost no more looks than `PASSES`."""

    def __init__(self, proved: Callable[[], Container[Endpoint]] = tuple) -> None:
        self._proved = proved
        # By device, peer and the endpoint that was chosen: the one before, and until when.
        self._chosen: dict[tuple[str, bytes, Endpoint], tuple[Endpoint, float]] = {}
        self._looks = 0
        self._passes = Bucket(*PASSES, 0.0)

    def applied(self, changes: Iterable[DeviceDiff], before: Mapping[str, DeviceState], now: float) -> None:
        """These changes are made to what the interfaces had before."""
        moved = list[tuple[tuple[str, bytes, Endpoint], Endpoint]]()
        for change in changes:
            peers = before[change.name].peers if change.name in before else {}
            for peer in change.peers:
                had, chosen = peers.get(peer.public_key), peer.endpoint
                if had is None or had.endpoint is None or chosen is None or chosen == had.endpoint:
                    continue
                moved.append(((change.name, peer.public_key, chosen), had.endpoint))
        proved = self._proved() if moved else ()
        for which, left in moved:
            if which[2] in proved:
                self._chosen.setdefault(which, (left, now + LASTS))
                self._looks = LOOKS

    def insists(self, device: str, peer: bytes, endpoint: Endpoint, have: Endpoint) -> bool:
        """Whether WireGuard is to send to a peer at an endpoint, and not at the one that it has: that one is
        where it sent before. A third one is where the peer has moved to."""
        before, _ = self._chosen.get((device, peer, endpoint), (None, 0.0))
        return before == have

    def pause(self, now: float) -> float:
        """Forget what is long enough ago. Return how long until the next look at the interfaces."""
        self._chosen = {which: kept for which, kept in self._chosen.items() if kept[1] > now}
        if not self._chosen:
            return inf
        self._looks -= 1
        return AGAIN if self._looks >= 0 and self._passes.take(now) else SURE
