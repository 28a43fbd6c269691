# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's part of routes beyond the mesh: the table that closes and routes; the look for ways out."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from phantommesh.nursery.host import beyond, waysout
from phantommesh.nursery.host.beyond import Wanted, table_of
from phantommesh.nursery.host.waysout import WayOut
from phantommesh.nursery.overlay import hostview
from phantommesh.overlay.prefixes import Address
from phantommesh.wireguard.device import Network, Route
from tests.support.spaces import within

pytestmark = pytest.mark.lab

ETH_P_IP = 0x0800

# Runs in the namespace: a node that takes the prefix, or takes nothing any more, as its operator allows.
LIFE = """
import sys, trio
from ipaddress import ip_network
from phantommesh.nursery.dataplane.beyond import BeyondMesh
from phantommesh.routing.prefixes import Taken

lan = ip_network("192.168.50.0/24")

def make(allowed):
    return BeyondMesh(
        "pm", tuple(f"pm{i}" for i in range(7)), carried=dict, fits=dict, mtu=1420,
        allows=lambda network: allowed, changed=lambda: None,
    )

async def main():
    first = make(True)
    for word in sys.argv[1:]:
        match word:
            case "take":
                first.take([Taken(lan, (b"r" * 16,))])
            case "lose":
                first.take([])
            case "again":
                first = make(True)
            case "forbidden":
                first = make(False)
        await first.converge()
    print(*(fault.code for fault in first.faults()))

trio.run(main)
"""

LAN, SIX = ip_network("192.168.50.0/24"), ip_network("fd77::/64")
TABLE = table_of("pm")


def ip(space: str, *words: str) -> str:
    done = subprocess.run(["ip", "-n", space, *words], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def space() -> Iterator[str]:
    """A host with an uplink and an interface ``pm``, each of which has a carrier."""
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    name = f"bt{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for device in ("pm", "up0"):
            ip(name, "link", "add", device, "type", "veth", "peer", "name", f"{device}x")
            for end in (device, f"{device}x"):
                ip(name, "link", "set", end, "up")
        ip(name, "address", "add", "100.64.0.1/32", "dev", "pm")
        ip(name, "address", "add", "10.0.0.5/24", "dev", "up0")
        ip(name, "route", "add", "default", "via", "10.0.0.1")
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False)


def index(space: str, device: str) -> int:
    return int(ip(space, "-o", "link", "show", device).partition(":")[0])


def way(space: str, address: str, *more: str) -> str:
    done = subprocess.run(
        ["ip", "-n", space, "route", "get", address, *more], capture_output=True, text=True, check=False
    )
    return done.stdout or done.stderr


def converge(space: str, want: Wanted) -> bool:
    return within(space, lambda: beyond.converge(TABLE, want))


def test_what_is_closed_has_no_way_and_what_is_routed_goes_by_the_mesh(space: str) -> None:
    routes = frozenset((index(space, "pm"), Route(network, 50, 1300)) for network in (LAN, SIX))
    closed = Wanted(closed=frozenset({LAN, SIX}))
    assert converge(space, closed) and not converge(space, closed)
    assert "No route to host" in way(space, "192.168.50.3") and "No route to host" in way(space, "fd77::3")
    carried = Wanted(routes, closed.closed)
    assert converge(space, carried) and not converge(space, carried)
    assert "dev pm" in way(space, "192.168.50.3") and "dev pm" in way(space, "fd77::3")
    assert "dev up0" in way(space, "192.168.50.3", "mark", "0x50000000")  # what carries the mesh
    assert "dev up0" in way(space, "192.0.2.1")
    ip(space, "link", "delete", "pm")
    assert "No route to host" in way(space, "192.168.50.3") and "No route to host" in way(space, "fd77::3")


ECHO = """
import socket
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(("0.0.0.0", 51820))
heard.settimeout(5)
print("ready", flush=True)
print(heard.recvfrom(64)[1][0])
"""


def heard_from(space: str, source: str) -> str:
    """Whose datagram the host takes that comes by its uplink to port 51820: the source's, or nobody's."""
    run = ["ip", "netns", "exec", space, sys.executable, "-c", ECHO]
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as echo:
        assert echo.stdout is not None and echo.stdout.readline() == "ready\n"

        def send() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
                raw.bind(("up0x", ETH_P_IP))
                raw.send(b"\xff" * 6 + bytes(6) + struct.pack("!H", ETH_P_IP) + datagram(source, "10.0.0.5"))

        within(space, send)
        return echo.communicate()[0].strip()


def datagram(source: str, target: str) -> bytes:
    """UDP from and to port 51820, without its own checksum."""
    ends = ip_address(source).packed + ip_address(target).packed
    head = struct.pack("!BBHHHBB", 0x45, 0, 32, 7, 0, 64, socket.IPPROTO_UDP)
    words = sum(struct.unpack("!10H", head + bytes(2) + ends))
    check = 0xFFFF - (words % 0xFFFF)
    return head + struct.pack("!H", check) + ends + struct.pack("!HHHH", 51820, 51820, 12, 0) + b"mesh"


@pytest.mark.parametrize("rp_filter", [1, 2], ids=["strict", "loose"])
def test_a_router_is_heard_at_its_own_address_in_its_prefix(space: str, rp_filter: int) -> None:
    """Its handshakes and WireGuard packets come by the uplink, while what is for the prefix goes by the mesh
    or nowhere."""
    within(space, lambda: Path("/proc/sys/net/ipv4/conf/up0/rp_filter").write_text(f"{rp_filter}\n"))
    assert heard_from(space, "192.168.50.3") == "192.168.50.3"
    view = within(space, lambda: hostview.look([LAN], ["pm"]))
    assert {str(one) for one in view.uplinks if one.version == 4} == {"10.0.0.5"}
    want = Wanted(closed=frozenset({LAN}), uplinks=view.uplinks)
    assert converge(space, want) and not converge(space, want)
    assert heard_from(space, "192.168.50.3") == "192.168.50.3"
    assert "No route to host" in way(space, "192.168.50.3")
    for protocol in ("tcp", "udp", "icmp"):  # what a program sends from there is closed as before
        assert "No route to host" in way(space, "192.168.50.3", "from", "10.0.0.5", "ipproto", protocol)
    # Another address: the rules follow, and go with the table.
    moved = Wanted(closed=frozenset({LAN}), uplinks=frozenset({ip_address("10.0.0.6")}))
    assert converge(space, moved) and not converge(space, moved)
    assert "10.0.0.5" not in ip(space, "rule") and "from 10.0.0.6" in ip(space, "rule")
    assert within(space, beyond.remove) and "112" not in ip(space, "rule")


def test_a_route_changes_its_limit_in_place_and_others_changes_are_mended(space: str) -> None:
    pm = index(space, "pm")
    wants = [Wanted(frozenset({(pm, Route(LAN, 50, mtu))}), frozenset({LAN})) for mtu in (1300, 1200)]
    assert converge(space, wants[0]) and converge(space, wants[1]) and not converge(space, wants[1])
    assert "mtu 1200" in way(space, "192.168.50.3")
    ip(space, "rule", "add", "priority", "9", "table", str(TABLE), "protocol", "112")
    ours = ["table", str(TABLE), "protocol", "112", "metric", "7"]
    ip(space, "route", "add", "192.168.51.0/24", "dev", "pm", *ours)
    assert converge(space, wants[1]) and not converge(space, wants[1])
    assert "dev up0" in way(space, "192.168.51.3")
    rules = [line for line in ip(space, "rule").splitlines() if "112" in line]
    assert len(rules) == 1 and "not from all fwmark 0x50000000/0xff000000" in rules[0]


def test_all_of_it_goes_but_what_is_another_nodes(space: str) -> None:
    other = table_of("zz")
    want = Wanted(closed=frozenset({LAN, SIX}))
    converge(space, want)
    within(space, lambda: beyond.converge(other, Wanted(closed=frozenset({ip_network("10.9.0.0/16")}))))
    assert within(space, lambda: beyond.remove([other]))
    assert str(TABLE) not in ip(space, "rule") and "No route" in way(space, "10.9.0.1")
    assert within(space, beyond.remove) and not within(space, beyond.remove)
    assert "112" not in ip(space, "rule") and "unreachable" not in ip(space, "route", "show", "table", "all")


def live(space: str, *words: str) -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", space, sys.executable, "-c", LIFE, *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()[-1]  # the log goes before


def test_what_was_taken_stays_closed_until_the_operator_opens_it(space: str) -> None:
    assert live(space, "take") == "route-not-carried"
    assert "No route" in way(space, "192.168.50.3")
    assert (
        live(space, "take", "lose") == "route-not-carried"
    )  # its router is revoked, or takes its offer back
    assert "No route" in way(space, "192.168.50.3")
    assert live(space, "again") == "route-not-carried"  # over a restart
    assert "No route" in way(space, "192.168.50.3")
    assert live(space, "forbidden") == ""  # the operator took it out of `routes.accept`
    assert "dev up0" in way(space, "192.168.50.3")


def test_a_way_out_needs_a_route_and_a_carrier(space: str) -> None:
    def look() -> waysout.WayOut | None:
        return within(space, lambda: waysout.look([LAN], ["pm"])).get(LAN)

    found = look()
    assert found is not None and found.default and found.interfaces == ("up0",)
    ip(space, "address", "add", "192.168.50.2/24", "dev", "up0")
    found = look()
    assert found is not None and not found.default
    ip(space, "link", "set", "up0x", "down")  # its other end: the carrier is gone, the route stays
    assert look() is None
    ip(space, "link", "set", "up0x", "up")
    ip(space, "route", "add", "192.168.50.0/25", "dev", "pm")
    assert look() is None  # into the mesh itself


def test_a_wide_prefix_is_made_up_of_the_networks_in_it(space: str) -> None:
    """A site's prefix, of which this host has networks at two interfaces, and another one behind a router."""
    wide, targets = ip_network("10.9.0.0/16"), {ip_network("10.9.0.0/16"): ip_address("10.9.200.1")}
    assert within(space, lambda: waysout.look([wide], ["pm"]))[wide] == WayOut(("up0",), default=True)
    for number, device in enumerate(("lan0", "lan1", "lan2"), 5):
        ip(space, "link", "add", device, "type", "veth", "peer", "name", f"{device}x")
        for end in (device, f"{device}x"):
            ip(space, "link", "set", end, "up")
        ip(space, "address", "add", f"10.{8 if device == 'lan2' else 9}.{number}.2/24", "dev", device)
    ip(space, "route", "add", "10.9.200.0/24", "via", "10.8.7.1")
    ip(space, "address", "add", "10.9.77.1/32", "dev", "up0")  # an address alone is no network

    def look(targets: Mapping[Network, Address]) -> WayOut:
        return within(space, lambda: waysout.look([wide], ["pm"], targets))[wide]

    assert look({}) == WayOut(("lan0", "lan1"), default=False)
    assert look(targets) == WayOut(("lan0", "lan1", "lan2", "up0"), default=False)
    ip(space, "link", "set", "lan0x", "down")
    assert look({}) == WayOut(("lan1",), default=False)
    for device in ("lan1x", "lan2x"):
        ip(space, "link", "set", device, "down")
    assert look({}) == WayOut(("up0",), default=True)


def test_the_table_of_a_node_is_among_those_that_are_looked_for() -> None:
    assert {table_of(name) in beyond.TABLES for name in ("pm", "zz", "mesh0")} == {True}
