# SPDX-License-Identifier: GPL-3.0-or-later
"""Which prefixes beyond the mesh a node holds closed. What it does in a kernel: tests/lab."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

import pytest
import trio
import trio.testing

from phantommesh.nursery.dataplane import beyond as beyond_mesh
from phantommesh.nursery.dataplane.beyond import MAX_HELD, SHARE, BeyondMesh
from phantommesh.nursery.host import beyond as table
from phantommesh.nursery.host import netlink
from phantommesh.nursery.overlay import hostview
from phantommesh.nursery.overlay.hostview import HostView
from phantommesh.overlay.prefixes import Address, HostRange
from phantommesh.routable import EXITS
from phantommesh.routing.prefixes import Taken
from phantommesh.wireguard.device import Network

ROUTER = b"r" * 16
LAN, WIDE = IPv4Network("192.168.50.0/24"), IPv4Network("10.0.0.0/8")
HOLES = [IPv4Network((10 << 24 | i << 16 | 1, 32)) for i in range(256)]


def prefix(number: int) -> IPv4Network:
    return IPv4Network((10 << 24 | number << 8, 24))


class Host:
    """A kernel with its tables and the host's own ranges."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ranges, self.closed = tuple[HostRange, ...](), frozenset[Network]()
        self.routed, self.looks = set[tuple[int, Network]](), 0
        self.uplinks, self.past = frozenset[Address](), frozenset[Address]()
        monkeypatch.setattr(hostview, "look", self._look)
        monkeypatch.setattr(table, "closed_in", lambda number: self.closed)
        monkeypatch.setattr(table, "converge", self._converge)
        monkeypatch.setattr(netlink, "read_links", self._links)

    def _look(self, networks: Sequence[Network], names: Collection[str]) -> HostView:
        self.looks += 1
        return HostView(self.ranges, frozenset(), self.uplinks)

    def _links(self, names: Collection[str]) -> dict[str, netlink.Link]:
        link = netlink.Link(1, "wireguard", True, True, 1420, frozenset(), frozenset(), True)
        return {name: replace(link, index=i) for i, name in enumerate(names, 1)}

    def _converge(self, number: int, want: table.Wanted) -> bool:
        changed, self.closed = self.closed != want.closed, want.closed
        self.routed = {(index, route.network) for index, route in want.routes}
        self.past = want.uplinks
        return changed


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def make(*own: IPv4Network) -> BeyondMesh:
    return BeyondMesh(
        "pm", tuple(f"pm{i}" for i in range(7)), carried=dict, fits=dict, mtu=1420,
        allows=lambda network: True, changed=lambda: None, own=own,
    )  # fmt: skip


def taken(*numbers: int) -> list[Taken]:
    return [Taken(prefix(number), (ROUTER,)) for number in numbers]


@pytest.mark.parametrize("started", [False, True])
async def test_what_there_is_no_room_to_close_is_not_taken_and_named(host: Host, started: bool) -> None:
    node = make()
    if started:
        await node.converge()
    node.take(taken(*range(MAX_HELD + 2)))
    await node.converge()
    assert len(node.taken) == MAX_HELD and {one.prefix for one in node.taken} == host.closed
    first, *_ = node.faults()
    assert (
        first.code == "routes-not-taken" and ": 2 that are offered are not taken" in first.text and first.fix
    )


async def test_prefixes_that_are_gone_leave_no_room_and_let_nothing_pass_unnamed(host: Host) -> None:
    node = make()
    node.take(taken(*range(MAX_HELD)))
    await node.converge()
    node.take(taken(MAX_HELD))
    await node.converge()
    assert node.taken == () and len(host.closed) == MAX_HELD
    assert "routes-not-taken" in {fault.code for fault in node.faults()}


async def test_a_host_with_too_many_networks_of_its_own_in_a_prefix_is_named(host: Host) -> None:
    """A route for each pod, say."""
    node = make()
    host.ranges = tuple(HostRange("route", one, "cali0") for one in HOLES)
    node.take([Taken(WIDE, (ROUTER,))])
    await node.converge()
    first, *_ = node.faults()
    assert node.closed == () and first.code == "routes-not-taken"
    assert "more ranges of its own in 10.0.0.0/8" in first.text and "narrower" in first.fix


async def test_a_prefix_that_the_node_routes_itself_stays_out_of_a_wider_one_that_it_takes(
    host: Host,
) -> None:
    node, part = make(prefix(5)), IPv4Network("10.0.5.128/25")
    node.take([Taken(WIDE, (ROUTER,)), Taken(part, (ROUTER,))])
    await node.converge()
    assert [one for one in node.closed if one.overlaps(prefix(5))] == [part]
    assert sum(one.num_addresses for one in node.closed) == WIDE.num_addresses - 256 + 128


async def test_very_many_networks_of_the_links_open_no_prefix_that_was_closed(host: Host) -> None:
    node = make()
    node.take([Taken(WIDE, (ROUTER,))])
    await node.converge()
    host.ranges = tuple(HostRange("route", one, "eth0") for one in HOLES)
    for one in (node, make()):  # and after a restart
        await one.converge()
        assert one.closed == (WIDE,) and host.closed == {WIDE}


async def test_the_uplinks_addresses_go_with_the_table(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    node = make()
    node.take([Taken(LAN, (ROUTER,))])
    for address in ("10.0.0.5", "10.0.0.6"):  # and the next one, after a move
        host.uplinks = frozenset({IPv4Address(address)})
        await node.converge()
        assert host.past == host.uplinks


async def test_a_host_that_takes_long_to_read_is_read_seldom(
    host: Host, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    node, slow = make(), 2.0
    node.take([Taken(LAN, (ROUTER,))])

    async def run_sync(call: Callable[..., object], *args: object) -> object:
        before = host.looks
        found = call(*args)
        await trio.sleep(slow if host.looks > before else 0)
        return found

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    for _ in range(5):  # the kernel tells of changes again and again
        await node.converge()
    assert host.looks == 1
    await trio.sleep(SHARE * slow)
    await node.converge()
    assert host.looks == 2


async def test_without_ipv6_its_prefixes_are_closed_and_ipv4s_are_routed(host: Host) -> None:
    """The kernel refuses routes of IPv6 then, and would be left with a part of the others."""
    six, has = IPv6Network("fd77::/64"), False
    node = BeyondMesh(
        "pm", tuple(f"pm{i}" for i in range(7)), carried=lambda: {LAN: ROUTER, six: ROUTER}, fits=dict,
        mtu=1420, allows=lambda network: True, changed=lambda: None, ipv6=lambda: has,
    )  # fmt: skip
    node.take([Taken(LAN, (ROUTER,)), Taken(six, (ROUTER,))])
    await node.converge()
    assert host.closed == {LAN, six} and {network for _, network in host.routed} == {LAN}
    has = True
    await node.converge()
    assert {network for _, network in host.routed} == {LAN, six}


def gated(lan: bool = False) -> BeyondMesh:
    return BeyondMesh(
        "pm", tuple(f"pm{i}" for i in range(7)), carried=dict, fits=dict, mtu=1420,
        allows=lambda network: True, changed=lambda: None, gates=EXITS, lan=lan, overlay=(WIDE,),
    )  # fmt: skip


async def test_both_default_routes_are_closed_before_anybody_offers_one(host: Host) -> None:
    node = gated()
    await node.converge()
    assert host.closed == frozenset(EXITS) and host.looks == 0, "nothing of the host's makes a hole"
    assert [fault.code for fault in node.faults() if "dns" not in fault.code] == ["exit-not-offered"]
    node.take([Taken(EXITS[0], (ROUTER,))])
    await node.converge()
    assert host.closed == frozenset(EXITS)
    codes = {fault.code: fault for fault in node.faults()}
    assert "::/0" in codes["exit-one-family"].fix and "0.0.0.0/0" in codes["route-not-carried"].text


async def test_the_hosts_own_networks_are_beside_an_exit_where_the_operator_says_so(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = IPv4Network("203.0.113.0/24")
    monkeypatch.setattr(beyond_mesh, "read_connected", lambda names: (LAN, public))
    for lan, wanted in ((True, (LAN,)), (False, ())):
        node = gated(lan)
        await node.converge()
        assert node.beside == wanted


@pytest.mark.parametrize(
    ("server", "named"),
    [("192.168.1.1", True), ("9.9.9.9", False), ("10.3.2.1", False), ("127.0.0.53", False)],
)
async def test_name_servers_that_no_exit_leads_to_are_named(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str, named: bool
) -> None:
    (tmp_path / "resolv.conf").write_text(f"nameserver {server}\n")
    monkeypatch.setattr(beyond_mesh, "RESOLVERS", (tmp_path / "resolv.conf", tmp_path / "none"))
    node = gated()
    await node.converge()
    found = [fault for fault in node.faults() if fault.code == "exit-without-dns"]
    assert [server in fault.text for fault in found] == [True] * named


async def test_what_a_stub_on_this_host_asks_counts(
    host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\n")
    (tmp_path / "real").write_text("nameserver 192.168.1.1\n")
    monkeypatch.setattr(beyond_mesh, "RESOLVERS", (tmp_path / "stub", tmp_path / "real"))
    node = gated()
    await node.converge()
    assert any("192.168.1.1" in fault.text for fault in node.faults())
