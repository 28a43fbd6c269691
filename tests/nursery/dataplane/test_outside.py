# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts are sent so that hops say that they cut packets. The kernel's part: tests/lab/test_mtu.py."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from phantommesh.nursery.dataplane.outside import HOPS, Outside
from phantommesh.nursery.host import uplinkmtu
from phantommesh.wireguard.device import Endpoint


class FakeUncut:
    """Notes what it is to send."""

    sent: list[tuple[str, int, int]] = []

    def __enter__(self) -> FakeUncut:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, host: str, port: int, length: int) -> None:
        self.sent.append((host, port, length))


async def test_one_host_gets_one_datagram_a_second_at_most_and_some_get_none(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    mtus = {"192.0.2.1": 1500}
    monkeypatch.setattr(uplinkmtu, "Uncut", FakeUncut)
    monkeypatch.setattr(uplinkmtu, "read", mtus.get)
    sent = list[tuple[str, int, int]]()
    monkeypatch.setattr(FakeUncut, "sent", sent)
    outside = Outside(1420)
    outside.ask_hops(Endpoint("192.0.2.1", 51821), 1420)
    assert sent == []  # it does not run
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outside.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            assert outside.takes("192.0.2.1") == 1420
            for dimension in range(7):
                outside.ask_hops(Endpoint("192.0.2.1", 51821 + dimension), 1420)
            await trio.sleep(HOPS)
        assert sent == [("192.0.2.1", 51821, 1480)] * 3
        mtus["192.0.2.1"] = 1380  # a hop has said so
        assert outside.takes("192.0.2.1") == 1312
        for host in ("127.0.0.1", "2001:db8::1"):
            outside.ask_hops(Endpoint(host, 51821), 1420)
        assert len(sent) == 3
        nursery.cancel_scope.cancel()
