# SPDX-License-Identifier: GPL-3.0-or-later
"""Pings of hosts, to see whether what is behind a link answers (ICMP echo: RFC 792, RFC 4443)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import structlog
import trio

from phantommesh.checksum import checksum

Target = IPv4Address | IPv6Address

# Tuning.
LOST: Final = 3.5  # paces without an answer until a target counts as gone: three may be lost

_ASK: Final = {4: 8, 6: 128}
_ANSWER: Final = {4: 0, 6: 129}

log = structlog.get_logger("phantommesh.routes")


class Echo:
    """Pings the hosts that ``targets`` returns, each every ``pace`` seconds."""

    def __init__(self, targets: Callable[[], Collection[Target]], pace: float) -> None:
        self._targets, self._pace = targets, pace
        self._heard: dict[Target, float] = {}
        self._key = os.urandom(8)  # told by nobody but the target
        self._sequence = 0

    def answers(self, target: Target) -> bool:
        """Whether a target answers."""
        return trio.current_time() < self._heard.get(target, float("-inf")) + LOST * self._pace

    async def run(self) -> None:
        """Ping until cancelled. Needs CAP_NET_RAW: without it no target answers, which is logged."""
        with ExitStack() as stack:
            sockets = dict[int, trio.socket.SocketType]()
            for version, family, protocol in (
                (4, socket.AF_INET, socket.IPPROTO_ICMP),
                (6, socket.AF_INET6, socket.IPPROTO_ICMPV6),
            ):
                try:
                    # Trio's own would be marked as the underlay's.
                    made = trio.socket.from_stdlib_socket(socket.socket(family, socket.SOCK_RAW, protocol))
                except OSError as error:
                    log.warning("hosts of this family cannot be pinged", version=version, error=str(error))
                    continue
                sockets[version] = stack.enter_context(made)
            async with trio.open_nursery() as nursery:
                for version, made in sockets.items():
                    nursery.start_soon(self._receive, made, version)
                while True:
                    await self._ask(sockets)
                    await trio.sleep(self._pace)

    async def _ask(self, sockets: Mapping[int, trio.socket.SocketType]) -> None:
        self._sequence = self._sequence + 1 & 0xFFFF
        targets = list(self._targets())
        self._heard = {target: when for target, when in self._heard.items() if target in targets}
        for target in targets:
            made = sockets.get(target.version)
            if made is None:
                continue
            body = struct.pack("!HH", 0, self._sequence) + self._key
            kind = _ASK[target.version]
            sum_ = checksum(struct.pack("!BBH", kind, 0, 0) + body)  # the kernel makes ICMPv6's itself
            try:
                await made.sendto(struct.pack("!BBH", kind, 0, sum_) + body, (str(target), 0))
            except OSError:
                continue  # there is no way to it

    async def _receive(self, made: trio.socket.SocketType, version: int) -> None:
        while True:
            try:
                packet, source = await made.recvfrom(2048)
            except OSError:
                continue
            if version == 4 and packet:
                packet = packet[(packet[0] & 15) * 4 :]  # the header of IPv4 comes along
            if packet[:1] == bytes([_ANSWER[version]]) and packet[8:16] == self._key:
                host = ip_address(source[0].partition("%")[0])
                if host in self._targets():
                    self._heard[host] = trio.current_time()
