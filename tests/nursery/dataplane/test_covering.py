# SPDX-License-Identifier: GPL-3.0-or-later
"""Cover traffic on loopback: it goes where it should, within its budget, and nothing that fails ends it; and
the table that drops what peers send is kept."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from random import Random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from phantommesh.nursery.dataplane import covering
from phantommesh.nursery.dataplane.covering import LOOK, RETRY, CoverTraffic, Place
from phantommesh.nursery.host.nft import Fingerprint, NftError
from phantommesh.scatter.cover import HEADERS, SAVED

HERE, SIX = IPv4Address("127.0.0.1"), IPv6Address("::1")
PEER, RATE = b"p" * 16, 40_000.0


class Kernel:
    """The table in place of the kernel's."""

    def __init__(self) -> None:
        self.made, self.table, self.count, self.broken = 0, 0, 0, False

    async def install(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise NftError("refused")
        assert "goto dropping" in text
        self.made, self.table, self.count = self.made + 1, self.made + 1, 0

    async def fingerprint(self) -> Fingerprint | None:
        await trio.lowlevel.checkpoint()
        return Fingerprint(self.table, frozenset(), ()) if self.table else None

    async def counters_of(self, *names: str) -> dict[str, dict[bytes, tuple[int, int]]]:
        await trio.lowlevel.checkpoint()
        if not self.table:
            raise NftError("gone", code=errno.ENOENT)
        return {name: {b"\0\x09\0\0": (self.count, 0)} for name in names}


class Host:
    """What a node knows, as far as cover depends on it."""

    def __init__(self) -> None:
        self.place: Place | None = (HERE, 1420)
        self.budget, self.counted, self.kernel = RATE, 0, Kernel()

    def make(self) -> CoverTraffic:
        return CoverTraffic(
            "pm", ["pm0"],
            own=lambda: (HERE, SIX), place=lambda peer: self.place, budget=lambda: self.budget,
            spent=self.spent, random=Random(4), rules=self.kernel,
        )  # fmt: skip

    def spent(self, peer: bytes, size: int) -> None:
        assert peer == PEER
        self.counted += size


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where dummies come, in place of the discard port, which takes root."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind((str(HERE), 0))
        monkeypatch.setattr(covering, "DISCARD", sink.getsockname()[1])
        yield sink


async def test_dummies_come_from_several_ports_within_the_budget(
    port: socket.socket, autojump_clock: MockClock
) -> None:
    host, came, sources = Host(), list[int](), set[int]()
    cover = host.make()

    async def take() -> None:
        sink = trio.socket.from_stdlib_socket(port)
        while True:
            datagram, (_, source) = await sink.recvfrom(2048)
            came.append(len(datagram))
            sources.add(source)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cover.run)
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        assert cover.cover(PEER, RATE)
        await trio.sleep(20.0)
        await wait_all_tasks_blocked()
        assert len(came) == cover.packets > 100 and len(sources) > 8
        assert 0.5 * RATE * 20.0 < cover.bytes == cover.sent(PEER) <= RATE * (20.0 + SAVED)
        assert host.counted == cover.bytes - HEADERS * cover.packets
        host.budget = 0.0
        await trio.sleep(LOOK)
        before = cover.packets
        await trio.sleep(60.0)
        assert cover.packets == before, "the budget of now counts"
        cover.uncover(PEER)
        assert cover.sent(PEER) == 0
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_sent_is_counted_and_ends_nothing(
    port: socket.socket, autojump_clock: MockClock
) -> None:
    host = Host()
    cover = host.make()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cover.run)
        assert cover.cover(PEER, RATE)
        await trio.sleep(5.0)
        before, host.place = cover.packets, None
        await trio.sleep(5.0)
        assert cover.packets == before and cover.dropped["cover-no-peer"] > 0
        assert not cover.cover(PEER, RATE), "a peer that is not there is not covered anew"
        host.place = IPv4Address("255.255.255.255"), 1420  # the kernel refuses that without SO_BROADCAST
        await trio.sleep(5.0)
        assert cover.packets == before and cover.dropped["cover-not-sent"] > 0
        host.place = HERE, 1420
        await trio.sleep(5.0)
        assert cover.packets > before
        nursery.cancel_scope.cancel()


async def test_the_table_is_kept_and_read(autojump_clock: MockClock) -> None:
    host = Host()
    cover, kernel = host.make(), host.kernel
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cover.run)
        await trio.sleep(1.0)
        assert kernel.made == 1
        kernel.count = 7
        await trio.sleep(LOOK)
        assert cover.dropped["cover"] == 7 and kernel.made == 1
        kernel.count = 9
        await trio.sleep(LOOK)
        assert cover.dropped["cover"] == 9
        kernel.table, kernel.broken = 0, True  # somebody flushes it, and nothing can be done
        await trio.sleep(LOOK)
        assert str(cover.problem) == "refused"
        kernel.broken = False
        await trio.sleep(RETRY)
        assert str(cover.problem) == "None" and kernel.made == 2
        kernel.count = 5
        await trio.sleep(LOOK)
        assert cover.dropped["cover"] == 14
        nursery.cancel_scope.cancel()
