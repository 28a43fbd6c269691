# SPDX-License-Identifier: GPL-3.0-or-later
"""UPnP against a model of miniupnpc: its calls, its bare exceptions and the texts that it has for codes."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from phantommesh.nursery.host import upnp
from phantommesh.portmap.values import Protocol, Wanted

OWN = IPv4Address("192.168.1.5")
WANTED = [(Wanted(Protocol.UDP, 51820 + i), 51820 + i) for i in range(7)]


class Gateway:
    """As the library shows one. ``lifetimes``: whether it knows any but "for good"."""

    def __init__(self, *, lifetimes: bool = True, says: str = "OnlyPermanentLeasesSupported") -> None:
        self.table: dict[tuple[int, str], tuple[str, int]] = {}
        self.asked, self._lifetimes, self._says = 0, lifetimes, says

    def externalipaddress(self) -> str:
        return "203.0.113.7"

    def addportmapping(
        self, external: int, protocol: str, host: str, port: int, name: str, remote: str, life: str
    ) -> bool:
        self.asked += 1
        if life != "0" and not self._lifetimes:
            raise Exception(self._says)
        if self.table.get((external, protocol), (host, port))[0] != host:
            raise Exception("ConflictInMappingEntry")
        self.table[external, protocol] = host, port
        return True

    def deleteportmapping(self, external: int, protocol: str, remote: str) -> bool:
        if (external, protocol) not in self.table:
            raise Exception("NoSuchEntryInArray")
        del self.table[external, protocol]
        return True


def use(monkeypatch: pytest.MonkeyPatch, gateway: Gateway) -> Gateway:
    def there(own: IPv4Address) -> Any:
        return gateway

    monkeypatch.setattr(upnp, "_gateway", there)
    return gateway


@pytest.mark.parametrize("says", ["OnlyPermanentLeasesSupported", "Invalid Args"])
def test_a_gateway_without_lifetimes_is_asked_without(monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    gateway = use(monkeypatch, Gateway(lifetimes=False, says=says))
    granted = upnp.open_ports(OWN, WANTED, 1800)
    assert [granted[one].port for one, _ in WANTED] == [port for _, port in WANTED]
    assert gateway.asked == len(WANTED) + 1  # it is not asked twice for each
    upnp.close_ports(OWN, granted)
    assert not gateway.table


def test_a_second_node_behind_the_gateway_gets_all_its_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = use(monkeypatch, Gateway())
    upnp.open_ports(IPv4Address("192.168.1.4"), WANTED, 1800)
    granted = upnp.open_ports(OWN, WANTED, 1800)
    assert granted.keys() == {one for one, _ in WANTED}
    assert len(gateway.table) == 2 * len(WANTED)


def test_one_that_is_gone_keeps_none_of_the_others_open(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = use(monkeypatch, Gateway())
    granted = upnp.open_ports(OWN, WANTED, 1800)
    del gateway.table[51820, "UDP"]
    upnp.close_ports(OWN, granted)
    assert not gateway.table
