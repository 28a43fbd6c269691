# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes behind a NAT each, and a router between the NATs: which kinds of NAT let knocks through, however
late one end begins. The NATs are the kernel's, and the ports are held by sockets, as WireGuard's are."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from itertools import count
from random import Random

import pytest
import trio

from phantommesh.dimensions import ALL, DIMENSIONS, bits
from phantommesh.endpoint import Address
from phantommesh.nursery.sockets.wgports import WireguardPorts
from phantommesh.routing.knocks import MAGIC, Keys
from phantommesh.routing.punching import Punching
from phantommesh.routing.search import Effect, Send, Target, Won
from phantommesh.secret import Secret
from tests.support.spaces import cable, run, spaces, within

pytestmark = pytest.mark.lab

ME = os.getpid()
A, B, NAT_A, NAT_B, CORE = (f"punch{ME}{name}" for name in ("a", "b", "na", "nb", "c"))
OUTSIDE = {A: "10.94.1.2", B: "10.94.2.2"}
IPV6 = {A: "fd95:1::2", B: "fd95:2::2"}
ROUNDS = count()
PATIENCE = 2.2  # s that a round may take; all of it where there is no way

RULES = """
table ip nat
delete table ip nat
table ip nat {{
    chain input {{
        type filter hook input priority filter; policy accept;
        iifname "out" {input}
    }}
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "out" ct state new drop
    }}
    chain post {{
        type nat hook postrouting priority srcnat; policy accept;
        oifname "out" masquerade {how}
    }}
}}
table ip6 wall
delete table ip6 wall
table ip6 wall {{
    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname "out" ct state new drop
    }}
}}
"""
ACCEPTS, DROPS = "accept", "ct state new drop"


@pytest.fixture(scope="module", autouse=True)
def net() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    with spaces((A, B, NAT_A, NAT_B, CORE)):
        for number, (node, nat) in enumerate(((A, NAT_A), (B, NAT_B)), 1):
            cable(node, "up0", nat, "in")
            cable(nat, "out", CORE, f"to{number}")
            for space, name, address in (
                (node, "up0", "192.168.7.2/24"),
                (nat, "in", "192.168.7.1/24"),
                (nat, "out", f"10.94.{number}.2/24"),
                (CORE, f"to{number}", f"10.94.{number}.1/24"),
                (node, "up0", f"fd95:{number}::2/64"),
                (nat, "in", f"fd95:{number}::1/64"),
                (nat, "out", f"fd94:{number}::2/64"),
                (CORE, f"to{number}", f"fd94:{number}::1/64"),
            ):
                run(space, "ip", "addr", "add", address, "dev", name, *["nodad"] * (":" in address))
            run(node, "ip", "route", "add", "default", "via", f"fd95:{number}::1")
            run(nat, "ip", "route", "add", "default", "via", f"fd94:{number}::1")
            run(CORE, "ip", "route", "add", f"fd95:{number}::/64", "via", f"fd94:{number}::2")
            run(node, "ip", "route", "add", "default", "via", "192.168.7.1")
            run(nat, "ip", "route", "add", "default", "via", f"10.94.{number}.1")
        for space in (NAT_A, NAT_B, CORE):
            run(space, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield


def become(nat: str, takes: str, how: str = "") -> None:
    """Make a NAT another one. What it remembers stays: each round has other ports."""
    run(nat, "nft", "-f", "-", script=RULES.format(input=takes, how=how))


def knock(*, late: float, opening: bool = True, hosts: dict[str, str] = OUTSIDE) -> tuple[int, int]:
    """Have both ends knock at these addresses, B so many seconds later. Return the dimensions that each
    won."""
    keys = {A: (Secret(b"1" * 32), Secret(b"2" * 32)), B: (Secret(b"2" * 32), Secret(b"1" * 32))}
    first = 51820 + DIMENSIONS * next(ROUNDS)
    wireguard = range(first, first + DIMENSIONS)
    begin = time.monotonic() + 0.3
    won: dict[str, dict[int, Address]] = {A: {}, B: {}}

    async def node(me: str, peer: str, start: float) -> None:
        targets = [[Target(Address(hosts[peer], port), 2, opening)] for port in wireguard]
        machine = Punching(
            me.encode(), targets=lambda _: targets, may=lambda *_: True, random=os.urandom, chance=Random(1)
        )
        ports = WireguardPorts()

        def carry_out(effects: list[Effect]) -> None:
            for effect in effects:
                match effect:
                    case Send(dimension, destination, datagram, hops):
                        assert ports.send(dimension, destination, datagram, hops)
                    case Won(_, dimension, address):
                        won[me][dimension] = address
                    case _:
                        pass

        def take(dimension: int, source: Address, data: bytes) -> None:
            carry_out(machine.receive(dimension, source, data, trio.current_time()))

        ports.listen(MAGIC, take)
        ports.open_ports(list(wireguard))
        holders = [socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) for _ in wireguard]
        for holder, port in zip(holders, wireguard, strict=True):
            holder.bind(("::", port))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ports.run)
            now = trio.current_time()
            machine.key(peer.encode(), Keys.of(*keys[me]), now)
            machine.want(peer.encode(), ALL, now, soon=True)
            machine.agreed(peer.encode(), now + start - time.monotonic(), now)
            with trio.move_on_after(PATIENCE):
                while any(len(each) < DIMENSIONS for each in won.values()):
                    await trio.sleep(0.02)
                    carry_out(machine.tick(trio.current_time()))
            nursery.cancel_scope.cancel()
        for holder in holders:
            holder.close()

    threads = [
        threading.Thread(
            target=within, args=(me, lambda me=me, peer=peer, at=at: trio.run(node, me, peer, at))
        )
        for me, peer, at in ((A, B, begin), (B, A, begin + late))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, two = (bits(i in won[me] for i in range(DIMENSIONS)) for me in (A, B))
    return one, two


@pytest.mark.parametrize("takes_a", [ACCEPTS, DROPS])
@pytest.mark.parametrize("takes_b", [ACCEPTS, DROPS])
@pytest.mark.parametrize("late", [0.05, -0.05])
def test_nats_that_keep_ports_let_both_ends_through(takes_a: str, takes_b: str, late: float) -> None:
    become(NAT_A, takes_a)
    become(NAT_B, takes_b)
    assert knock(late=late) == (ALL, ALL)


def test_without_an_opening_knock_an_early_packet_spoils_it() -> None:
    """So the lab has what the first knock is for."""
    become(NAT_A, ACCEPTS)
    become(NAT_B, ACCEPTS)
    assert knock(late=0.08, opening=False) == (0, 0)


def test_nats_with_random_ports_for_each_destination_let_nobody_through() -> None:
    """Neither end can know the port that the other's NAT takes for it."""
    become(NAT_A, DROPS, "random")
    become(NAT_B, DROPS, "fully-random")
    assert knock(late=0.0) == (0, 0)


def test_firewalls_of_ipv6_open_for_what_was_asked_for() -> None:
    become(NAT_A, DROPS)
    become(NAT_B, DROPS)
    assert knock(late=0.08, opening=False, hosts=IPV6) == (ALL, ALL)
