# SPDX-License-Identifier: GPL-3.0-or-later
"""UPnP against a model of miniupnpc: its calls, its bare exceptions and the texts that it has for codes."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address
from operator import index

import pytest

from phantommesh.nursery.host import upnp
from phantommesh.portmap.values import NO_ADDRESS, Protocol, Wanted

OWN = IPv4Address("192.168.1.5")
WANTED = [(Wanted(Protocol.UDP, 51820 + i), 51820 + i) for i in range(7)]


class Gateway:
    """As the library shows one. ``lifetimes``: whether it knows any but "for good"; ``renews``: whether it
    takes a mapping that it has; ``outside``: its address there."""

    def __init__(
        self, *, lifetimes: bool = True, says: str = "OnlyPermanentLeasesSupported", renews: bool = True,
        outside: str = "203.0.113.7",
    ) -> None:  # fmt: skip
        self.table: dict[tuple[int, str], tuple[str, int]] = {}
        self.asked, self.lifetimes, self.says = 0, lifetimes, says
        self.renews, self.outside = renews, outside

    def UPnP(  # the library's
        self, multicastif: str, minissdpdsocket: str | None = None, discoverdelay: int = 0
    ) -> Session:
        assert multicastif and discoverdelay
        return Session(self)


class Session:
    """What the library's class makes. Like that class it has no attribute that can be set, and takes a
    lifetime as a number only: `tests/lab/test_portmap.py` has the library itself."""

    __slots__ = ("_gateway",)

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def discover(self) -> int:
        return 1

    def selectigd(self) -> str:
        return "http://192.168.1.1/ctl"

    def externalipaddress(self) -> str:
        return self._gateway.outside

    def addportmapping(
        self, external: int, protocol: str, host: str, port: int, name: str, remote: str, life: int
    ) -> bool:
        index(life)
        self._gateway.asked += 1
        if life and not self._gateway.lifetimes:
            raise Exception(self._gateway.says)
        held = self._gateway.table.get((external, protocol))
        if held is not None and (held[0] != host or not self._gateway.renews):
            raise Exception("ConflictInMappingEntry")
        self._gateway.table[external, protocol] = host, port
        return True

    def getspecificportmapping(
        self, external: int, protocol: str, remote: str | None = None
    ) -> tuple[str, int, str, bool, int] | None:
        held = self._gateway.table.get((external, protocol))
        return None if held is None else (*held, upnp.NAME, True, 0)

    def deleteportmapping(self, external: int, protocol: str, remote: str) -> bool:
        if (external, protocol) not in self._gateway.table:
            raise Exception("NoSuchEntryInArray")
        del self._gateway.table[external, protocol]
        return True


def use(monkeypatch: pytest.MonkeyPatch, gateway: Gateway) -> Gateway:
    monkeypatch.setitem(sys.modules, upnp.LIBRARY, gateway)  # the library's one class
    return gateway


@pytest.mark.parametrize("says", ["OnlyPermanentLeasesSupported", "Invalid Args"])
def test_a_gateway_without_lifetimes_is_asked_without(monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    gateway = use(monkeypatch, Gateway(lifetimes=False, says=says))
    granted = upnp.open_ports(OWN, WANTED, 1800).granted
    assert [granted[one].port for one, _ in WANTED] == [port for _, port in WANTED]
    assert gateway.asked == len(WANTED) + 1  # it is not asked twice for each
    upnp.close_ports(OWN, granted)
    assert not gateway.table


def test_a_second_node_behind_the_gateway_gets_all_its_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = use(monkeypatch, Gateway())
    upnp.open_ports(IPv4Address("192.168.1.4"), WANTED, 1800)
    granted = upnp.open_ports(OWN, WANTED, 1800).granted
    assert granted.keys() == {one for one, _ in WANTED}
    assert len(gateway.table) == 2 * len(WANTED)


def test_a_gateway_that_renews_nothing_keeps_its_ports_where_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else each renewal takes another port, and where mappings are for good the ones before stay open."""
    gateway = use(monkeypatch, Gateway(lifetimes=False, renews=False))
    upnp.open_ports(IPv4Address("192.168.1.4"), WANTED, 1800)
    first = upnp.open_ports(OWN, WANTED, 1800).granted
    again = upnp.open_ports(OWN, [(one, at.port) for one, at in first.items()], 1800).granted
    assert again == first and len(gateway.table) == 2 * len(WANTED)


@pytest.mark.parametrize("outside", ["0.0.0.0", ""])
def test_a_gateway_that_is_not_connected_has_mapped_nothing(
    outside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = use(monkeypatch, Gateway(outside=outside))
    assert upnp.open_ports(OWN, WANTED, 1800) == upnp.Opened({}, NO_ADDRESS)
    assert not gateway.table


def test_one_that_is_gone_keeps_none_of_the_others_open(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = use(monkeypatch, Gateway())
    granted = upnp.open_ports(OWN, WANTED, 1800).granted
    del gateway.table[51820, "UDP"]
    upnp.close_ports(OWN, granted)
    assert not gateway.table


def test_a_gateway_that_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Gateway(lifetimes=False, says="Action Not Authorized"))
    assert upnp.open_ports(OWN, WANTED, 1800) == upnp.Opened({}, "Action Not Authorized")


def test_a_call_that_the_library_does_not_take_is_not_a_gateway_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(monkeypatch, Gateway())
    with pytest.raises(TypeError):
        upnp.open_ports(OWN, WANTED, "1800")  # type: ignore[arg-type]
