# SPDX-License-Identifier: GPL-3.0-or-later
"""What the ways outside the dimensions take, by the kernel's knowledge, and a question to the hops of one."""

from __future__ import annotations

import structlog
import trio

from phantommesh.nursery.host import uplinkmtu
from phantommesh.paths.pmtu import OVER_IP4, ceiling
from phantommesh.reachable import is_loopback
from phantommesh.wireguard.device import Endpoint

# Tuning.
KEPT = 5.0  # s that an uplink's MTU is taken for what it was, unless the kernel says that one changed
HOPS = 1.0  # s between two datagrams to one host that no hop may cut: its dimensions need one together

log = structlog.get_logger("phantommesh.paths")


class Outside:
    """The ways to the hosts that WireGuard sends to. ``largest`` is the interfaces' MTU in bytes."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._known: dict[str, tuple[float, int | None]] = {}  # by host: when asked, and its MTU
        self._hops: dict[str, float] = {}  # by host: when its hops were asked
        self._uncut: uplinkmtu.Uncut | None = None

    def changed(self) -> None:
        """A link, an address or a way out of this host is another."""
        self._known.clear()

    def takes(self, host: str) -> int:
        """The largest overlay packet that our uplink to this host takes whole, in bytes; 0: not known."""
        if is_loopback(host):
            return 0  # a program of this machine passes them on
        now = trio.current_time()
        asked, mtu = self._known.get(host, (float("-inf"), None))
        if now - asked >= KEPT:
            self._known = {h: kept for h, kept in self._known.items() if now - kept[0] < KEPT}
            mtu = uplinkmtu.read(host)
            self._known[host] = now, mtu
        return 0 if mtu is None else ceiling(mtu, ipv6=":" in host, largest=self._largest)

    def ask_hops(self, endpoint: Endpoint, size: int) -> None:
        """Have a hop that cuts overlay packets of ``size`` bytes say so: WireGuard's may be cut, and then all
        sizes arrive, or their fragments vanish. A peer has just answered there. IPv6's hops cut nothing."""
        host, now = endpoint.host, trio.current_time()
        if self._uncut is None or ":" in host or is_loopback(host):
            return
        if now >= self._hops.get(host, float("-inf")) + HOPS:
            self._hops = {h: asked for h, asked in self._hops.items() if now < asked + HOPS} | {host: now}
            self._uncut.send(host, endpoint.port, size + OVER_IP4)
            self._known.pop(host, None)

    async def run(self) -> None:
        """Have a socket for the question until cancelled: the kernel keeps a hop's word for its sake. Without
        one, hops are not asked."""
        try:
            with uplinkmtu.Uncut() as self._uncut:
                await trio.sleep_forever()
        except OSError as error:
            log.info("hops that cut packets are not found", error=error.strerror)
        finally:
            self._uncut = None
