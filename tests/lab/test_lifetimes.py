# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a NAT keeps what is idle, and whether strangers' datagrams come in: measured against the kernel's
own NAT and firewall, and a witness at WireGuard's port."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from ipaddress import ip_address

import pytest
import trio

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.node.lifetimes import Measurement
from phantommesh.nursery.members.lifetimes import conduct, greet
from phantommesh.nursery.sockets.wgports import WireguardPorts
from phantommesh.routing.echoes import MAGIC, TRIALS, Keys, Kind, Send, Witness, decode_untrusted, genuine
from tests.support.spaces import cable, run, spaces, within

pytestmark = pytest.mark.lab

NODE, NAT, THERE = (f"lives{os.getpid()}{name}" for name in ("n", "t", "w"))
FIRST = 51820
TOKEN = bytes(range(16))
KEYS = Keys.of(TOKEN)

RULES = """
table ip lab {
    chain forward {
        type filter hook forward priority filter; policy accept;
        iifname "out" ct state new drop
    }
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "out" masquerade
    }
}
"""

WALL = """
table ip wall
delete table ip wall
table ip wall {{
    chain input {{
        type filter hook input priority filter; policy accept;
        {rule}
    }}
}}
"""


@pytest.fixture(scope="module", autouse=True)
def net() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    with spaces((NODE, NAT, THERE)):
        cable(NODE, "up0", NAT, "in")
        cable(NAT, "out", THERE, "up0")
        for space, name, address in (
            (NODE, "up0", "192.168.7.2/24"),
            (NAT, "in", "192.168.7.1/24"),
            (NAT, "out", "10.94.1.2/24"),
            (THERE, "up0", "10.94.1.1/24"),
        ):
            run(space, "ip", "addr", "add", address, "dev", name)
        run(NODE, "ip", "route", "add", "default", "via", "192.168.7.1")
        run(NAT, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        run(NAT, "nft", "-f", "-", script=RULES)
        yield


def together(*tasks: tuple[str, Callable[[], Awaitable[None]]]) -> None:
    """Run these in their namespaces at once, until the first of them is done."""
    done = threading.Event()

    async def until_done(task: Callable[[], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, done, nursery.cancel_scope)
            await task()
            done.set()

    threads = [
        threading.Thread(target=within, args=(space, partial(trio.run, until_done, task)))
        for space, task in tasks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


async def _watch(done: threading.Event, scope: trio.CancelScope) -> None:
    while not done.is_set():
        await trio.sleep(0.05)
    scope.cancel()


async def at_ports(
    take: Callable[[WireguardPorts, int, Address, bytes], None], each: Callable[[], float]
) -> None:
    """Hear what comes to WireGuard's ports; WireGuard is some sockets. ``each`` is called all the time."""
    ports = WireguardPorts()
    ports.listen(MAGIC, lambda dimension, source, data: take(ports, dimension, source, data))
    ports.open_ports(range(FIRST, FIRST + DIMENSIONS))
    holders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(DIMENSIONS)]
    for number, holder in enumerate(holders):
        holder.bind(("", FIRST + number))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ports.run)
            ports.keep("test", True)
            while True:
                await trio.sleep(each())
    finally:
        for holder in holders:
            holder.close()


def test_the_kernels_nat_is_found_to_keep_what_is_idle_for_as_long_as_it_was_told() -> None:
    for name, seconds in (("udp_timeout", 3), ("udp_timeout_stream", 4)):
        run(NAT, "sysctl", "-qw", f"net.netfilter.nf_conntrack_{name}={seconds}")
    found: list[Measurement] = []

    async def node() -> None:
        measurement = Measurement(KEYS, (2.0, 3.0, 5.5, 9.0), trio.current_time(), {ip_address("10.94.1.2")})
        await conduct(measurement, KEYS, Address("10.94.1.1", FIRST))
        found.append(measurement)

    async def witness() -> None:
        machine = Witness(lambda peer, host: True, trio.current_time())
        assert machine.grant(b"a", TOKEN, (2.0, 3.0, 5.5, 9.0, 0.0, 0.0), trio.current_time()) == ""

        def send(ports: WireguardPorts, effects: list[Send]) -> None:
            for effect in effects:
                assert ports.send(0, effect.destination, effect.datagram)

        held: list[WireguardPorts] = []

        def take(ports: WireguardPorts, dimension: int, source: Address, data: bytes) -> None:
            assert dimension == 0
            held[:] = [ports]
            send(ports, machine.receive(source, data, trio.current_time()))

        def each() -> float:
            if held:
                send(held[0], machine.tick(trio.current_time()))
            return 0.02

        await at_ports(take, each)

    together((NODE, node), (THERE, witness))
    outcome = found[0].outcome()
    assert (outcome.good, outcome.bad) == (3.0, 5.5)
    assert outcome.seen == {ip_address("10.94.1.2")}
    assert outcome.hairpin is False  # Linux leads nothing back that is masqueraded alone


@pytest.mark.parametrize("drops", [False, True])
def test_strangers_datagrams_come_in_unless_a_firewall_drops_them(drops: bool) -> None:
    rule = 'iifname "up0" ct state new udp dport 51820-51830 drop' if drops else ""
    run(THERE, "nft", "-f", "-", script=WALL.format(rule=rule))
    came = set[int]()

    def take(ports: WireguardPorts, dimension: int, source: Address, data: bytes) -> None:
        echo = decode_untrusted(data)
        assert echo.kind is Kind.UNASKED and genuine(data, KEYS) and echo.number == TRIALS + dimension
        came.add(dimension)

    async def node() -> None:
        await trio.sleep(0.3)  # until the sockets are there
        await greet("10.94.1.1", range(FIRST, FIRST + DIMENSIONS), KEYS)

    together((NODE, node), (THERE, lambda: at_ports(take, lambda: 0.05)))
    assert came == (set() if drops else set(range(DIMENSIONS)))
