# SPDX-License-Identifier: GPL-3.0-or-later
"""Pings between the lab's nodes: one raw ICMP socket in each namespace, all driven by one task each.

A process a ping would cost more than everything that is measured.
"""

import itertools
import secrets
import socket
import struct
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio
from pyroute2 import netns

from phantommesh.checksum import checksum
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.lab.net import one_error

# RFC 792: type, code, checksum, identifier, sequence number.
_ECHO: Final = struct.Struct("!BBHHH")
_ECHO_REQUEST: Final = 8
_ECHO_REPLY: Final = 0
_IP_HEADER_BYTES: Final = 20  # at least; a raw IPv4 socket receives it too
_TOKEN_BYTES: Final = 8


@dataclass(slots=True)
class Flow:
    """Pings from one namespace to one address. Times are trio's, in seconds."""

    source: str
    target: str
    address: str
    sent: int = 0
    received: int = 0
    rtt_s: float = 0.0
    last_answered: float = -1.0
    """When the latest ping that was answered was sent; negative: none was."""
    silence_s: float = 0.0
    """The longest time between two pings that were answered."""
    pending: dict[int, float] = field(default_factory=dict)

    def answered(self, sequence: int, now: float) -> bool:
        """Count a reply; False for one that was not asked for or is here already."""
        sent_at = self.pending.pop(sequence, None)
        if sent_at is None:
            return False
        self.received += 1
        self.rtt_s = now - sent_at
        if self.last_answered >= 0:
            self.silence_s = max(self.silence_s, sent_at - self.last_answered)
        self.last_answered = max(self.last_answered, sent_at)
        return True


class Traffic:
    """A ping every ``interval`` seconds on each flow, for as long as ``open_traffic`` is open."""

    def __init__(self, flows: Sequence[Flow], interval: float) -> None:
        self.flows = flows
        self.interval = interval
        self._token = secrets.token_bytes(_TOKEN_BYTES)  # tells our replies from another traffic's
        self._news = Bell()
        self._paused = False

    async def wait_answered(self, flow: Flow, after: float) -> None:
        """Return when a ping that was sent later than ``after`` has been answered."""
        while flow.last_answered <= after:
            await self._news.wait()

    async def settle(self, seconds: float = 1.0) -> None:
        """Send no more, and wait up to that long for the replies that are still on their way."""
        self._paused = True
        with trio.move_on_after(seconds):
            while any(flow.pending for flow in self.flows):
                await self._news.wait()

    def resume(self) -> None:
        """Go on after ``settle``."""
        self._paused = False

    async def send(self, sender: trio.socket.SocketType, numbers: Sequence[int]) -> None:
        """Ping on the flows of one namespace, evenly spread over the interval."""
        due = trio.current_time()
        for turn in itertools.count():
            flow = self.flows[number := numbers[turn % len(numbers)]]
            sequence = turn // len(numbers) & 0xFFFF
            # A late turn is not made up for by a burst.
            due = max(due + self.interval / len(numbers), trio.current_time())
            await trio.sleep_until(due)
            if self._paused:
                continue
            flow.sent += 1
            flow.pending[sequence] = trio.current_time()
            try:
                await sender.sendto(self._request(number, sequence), (flow.address, 0))
            except OSError:
                pass  # no route yet, or not any more: a ping that is lost

    async def receive(self, receiver: trio.socket.SocketType) -> None:
        """Match what one namespace receives with what was sent."""
        while True:
            packet, _ = await receiver.recvfrom(2048)
            icmp = packet[(packet[0] & 0x0F) * 4 :] if len(packet) >= _IP_HEADER_BYTES else b""
            if len(icmp) != _ECHO.size + _TOKEN_BYTES or icmp[_ECHO.size :] != self._token:
                continue
            kind, _, _, number, sequence = _ECHO.unpack_from(icmp)
            if kind != _ECHO_REPLY or number >= len(self.flows):
                continue
            if self.flows[number].answered(sequence, trio.current_time()):
                self._news.ring()

    def _request(self, number: int, sequence: int) -> bytes:
        header = _ECHO.pack(_ECHO_REQUEST, 0, 0, number, sequence)
        return _ECHO.pack(_ECHO_REQUEST, 0, checksum(header + self._token), number, sequence) + self._token


@asynccontextmanager
async def open_traffic(flows: Sequence[Flow], interval: float) -> AsyncIterator[Traffic]:
    """Ping on all flows until the block is left."""
    traffic = Traffic(flows, interval)
    with one_error():
        async with trio.open_nursery() as nursery:
            for source in dict.fromkeys(flow.source for flow in flows):
                opened = trio.socket.from_stdlib_socket(await trio.to_thread.run_sync(_open_in, source))
                numbers = [number for number, flow in enumerate(flows) if flow.source == source]
                nursery.start_soon(_serve, traffic, opened, numbers)
            yield traffic
            nursery.cancel_scope.cancel()


async def _serve(traffic: Traffic, opened: trio.socket.SocketType, numbers: Sequence[int]) -> None:
    with opened:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic.send, opened, numbers)
            nursery.start_soon(traffic.receive, opened)


def _open_in(namespace: str) -> socket.socket:
    """Open a raw ICMP socket in a namespace. It stays there, whichever thread uses it."""
    opened: list[socket.socket | OSError] = []

    def enter() -> None:
        try:
            netns.setns(namespace)  # of this thread alone, which ends right after
            opened.append(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
        except OSError as error:
            opened.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    if isinstance(opened[0], OSError):
        raise opened[0]
    return opened[0]
