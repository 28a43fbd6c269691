# SPDX-License-Identifier: GPL-3.0-or-later
"""When a router says that its route works. What it does in a kernel: tests/lab."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network

import pytest
import trio

from phantommesh.checksum import checksum
from phantommesh.config.sections import RoutesSection
from phantommesh.nursery.dataplane.gateway import PACE, GatewayDriver
from phantommesh.nursery.host import hostroutes, waysout
from phantommesh.nursery.host.waysout import WayOut
from phantommesh.nursery.sockets.echo import LOST
from phantommesh.overlay.exits import MAX_AROUND
from phantommesh.routable import EXITS
from phantommesh.wireguard.device import Network

LAN, HOST = ip_network("192.168.50.0/24"), ip_address("192.168.50.10")


def make(probe: dict[str, str]) -> GatewayDriver:
    return GatewayDriver(RoutesSection(probe=probe), ("pm", "pm0"), networks=lambda: ())


@pytest.mark.parametrize("data", [b"", b"\x08\x00\x00\x00\x12\x34", b"odd"])
def test_a_packet_with_its_checksum_sums_up_to_nothing(data: bytes) -> None:
    padded = data + bytes(len(data) % 2)
    assert checksum(padded + checksum(data).to_bytes(2)) == 0


def test_a_route_needs_an_interface_with_a_carrier() -> None:
    driver = make({})
    assert "carrier" in driver._flaw(LAN, None)
    assert driver._flaw(LAN, WayOut(("lan0",), False)) == ""


async def test_a_target_has_to_answer_and_to_go_on_answering(autojump_clock: trio.testing.MockClock) -> None:
    driver, way = make({str(LAN): str(HOST)}), WayOut(("lan0",), False)
    assert str(HOST) in driver._flaw(LAN, way)
    driver.offer([LAN])
    driver._echo._heard[HOST] = trio.current_time()
    assert driver._flaw(LAN, way) == ""
    await trio.sleep(LOST * PACE)
    assert str(HOST) in driver._flaw(LAN, way)


def test_what_is_wrong_is_named_with_a_fix() -> None:
    driver = make({})
    driver.why = {LAN: driver._flaw(LAN, None)}
    (fault,) = driver.faults()
    assert fault.code == "route-not-working" and str(LAN) in fault.text and fault.fix


async def test_members_that_ask_have_the_routes_looked_at_often(
    autojump_clock: trio.testing.MockClock,
) -> None:
    driver = make({})
    assert driver.asked() == frozenset() and driver._kicked.is_set()
    driver._kicked = trio.Event()
    driver.asked()
    assert not driver._kicked.is_set()


async def test_it_is_the_sites_route_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix may be anything on this host; the fault names both."""
    prefix, way = ip_network("10.77.1.0/24"), WayOut(("lan0",), False)
    looked, forwarded = list[set[Network]](), list[Mapping[Network, WayOut]]()

    def look(prefixes: set[Network], ours: object, targets: object) -> dict[Network, WayOut]:
        looked.append(prefixes)
        return {prefix: WayOut(("wan0",), False)} if len(looked) == 1 else {LAN: way}

    async def forward(self: GatewayDriver, routes: Sequence[Network], ways: Mapping[Network, WayOut]) -> None:
        forwarded.append(ways)

    monkeypatch.setattr(waysout, "look", look)
    monkeypatch.setattr(GatewayDriver, "_forward", forward)
    section = RoutesSection(advertise=(str(prefix),), sites={str(prefix): str(LAN)})
    driver = GatewayDriver(section, ("pm", "pm0"), networks=lambda: ())
    driver.offer([prefix])
    await driver._look()
    assert looked == [{LAN}] and driver.works == frozenset()
    (fault,) = driver.faults()
    assert str(LAN) in fault.text and str(prefix) in fault.text
    await driver._look()
    assert driver.works == {prefix} and forwarded[1] == {prefix: way}


async def test_a_default_route_is_what_an_exit_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    driver = GatewayDriver(
        RoutesSection(), ("pm", "pm0"), networks=lambda: (), changed=lambda: told.append("changed")
    )
    way = WayOut(("eth0",), True)
    assert "networks of its own" in driver._flaw(EXITS[0], way)
    monkeypatch.setattr(hostroutes, "read_connected", lambda names: (LAN,))
    await driver._read_around([LAN])
    assert not told, "no exit"
    await driver._read_around(EXITS)
    await driver._read_around(EXITS)
    assert driver.around == (LAN,) and told == ["changed"]
    assert driver._flaw(EXITS[0], way) == ""
    assert "no default route of IPv4" in driver._flaw(EXITS[0], None)


async def test_an_exit_with_more_networks_than_can_be_closed_leads_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = make({})
    many = tuple(ip_network((10 << 24 | i << 8, 24)) for i in range(MAX_AROUND + 1))
    monkeypatch.setattr(hostroutes, "read_connected", lambda names: many)
    await driver._read_around(EXITS)
    assert driver.around is None and str(MAX_AROUND) in driver._flaw(EXITS[0], WayOut(("eth0",), True))
