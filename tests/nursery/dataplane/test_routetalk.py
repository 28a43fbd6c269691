# SPDX-License-Identifier: GPL-3.0-or-later
"""Two nodes that ask each other for their routes, on addresses of the loopback device."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_network

import trio

from phantommesh.nursery.dataplane.routetalk import RATE, RouteTalk
from phantommesh.routing.asking import NONCE_BYTES, Answer, Question
from phantommesh.routing.failover import Failover, Standing
from phantommesh.routing.prefixes import Taken
from phantommesh.wireguard.device import Network
from tests.support.loopback import free_port

LAN = ip_network("192.168.50.0/24")
ADDRESSES = {b"a" * 16: IPv4Address("127.0.0.1"), b"b" * 16: IPv4Address("127.0.0.2")}
A, B = ADDRESSES
STRANGER = "127.0.0.3"


@dataclass
class Node:
    talk: RouteTalk
    works: set[Network] = field(default_factory=set)
    moves: int = 0


def make(me: bytes, port: int) -> Node:
    def moved() -> None:
        node.moves += 1

    node = Node(
        RouteTalk(
            Failover(), port, address=lambda: ADDRESSES[me],
            works=lambda: node.works, moved=moved,
        )
    )  # fmt: skip
    node.talk.know({other: at for other, at in ADDRESSES.items() if other != me})
    return node


@asynccontextmanager
async def talking() -> AsyncIterator[tuple[Node, Node, int]]:
    """One that takes the prefix of the other, which routes it."""
    port = free_port()
    taker, router = make(A, port), make(B, port)
    router.works = {LAN}
    taker.talk.failover.take([Taken(LAN, (B,))], trio.current_time())
    async with trio.open_nursery() as nursery:
        for node in (taker, router):
            nursery.start_soon(node.talk.run)
            node.talk.want(True)
        yield taker, router, port
        nursery.cancel_scope.cancel()


async def until(so: Callable[[], bool]) -> None:
    with trio.fail_after(30.0):
        while not so():
            await trio.sleep(0.01)


def send(datagram: bytes, to: IPv4Address, port: int, source: str, *, own_port: bool = True) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((source, port if own_port else 0))
        made.sendto(datagram, (str(to), port))


async def test_a_routers_word_reaches_whoever_takes_its_prefix() -> None:
    async with talking() as (taker, router, _):
        await until(lambda: taker.talk.failover.carried == {LAN: B})
        assert taker.moves == 1
        router.works = set()
        await until(lambda: taker.talk.failover.carried == {})
        assert taker.moves == 2


async def test_a_router_that_stops_says_that_its_routes_do_not_work() -> None:
    """It goes on answering while it says goodbye: its word would give it the prefix back."""
    async with talking() as (taker, router, _):
        await until(lambda: taker.talk.failover.carried == {LAN: B})
        router.talk.leave()
        await until(lambda: taker.talk.failover.carried == {})
        taker.talk.gone(B)
        assert taker.moves == 2


async def test_what_is_not_an_answer_of_a_member_to_a_question_moves_nothing() -> None:
    async with talking() as (taker, router, port):
        router.works = set()

        def standing() -> Sequence[Standing]:
            return taker.talk.failover.standing(LAN, trio.current_time())

        await until(lambda: [r.lives for r in standing() if r.router == B] == [True])
        answer = Answer(bytes(NONCE_BYTES), frozenset({LAN})).encode()
        send(answer, ADDRESSES[A], port, STRANGER)
        send(answer, ADDRESSES[A], port, STRANGER, own_port=False)
        await until(lambda: taker.talk.dropped["routes-stranger"] == 2)
        router.talk.want(False)  # its address is free then
        await trio.sleep(0.1)
        send(answer, ADDRESSES[A], port, str(ADDRESSES[B]))
        send(b"\x01\x02", ADDRESSES[A], port, str(ADDRESSES[B]))
        await until(
            lambda: taker.talk.dropped["routes-unasked"] + taker.talk.dropped["routes-malformed"] == 2
        )
        assert taker.talk.failover.carried == {}


async def test_a_member_that_asks_too_often_is_not_answered() -> None:
    async with talking() as (taker, router, port):
        taker.talk.want(False)
        await trio.sleep(0.1)
        for number in range(3 * RATE[1]):
            send(Question(number.to_bytes(NONCE_BYTES)).encode(), ADDRESSES[B], port, str(ADDRESSES[A]))
        await until(lambda: router.talk.dropped["routes-rate"] > 0)


async def test_a_program_that_has_the_port_is_told_of() -> None:
    """Any user of the machine may have bound it before."""
    port = free_port()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((str(ADDRESSES[B]), port))
        node = make(B, port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.talk.run)
            assert not list(node.talk.faults())
            node.talk.want(True)
            await until(lambda: bool(node.talk.problem))
            (fault,) = node.talk.faults()
            assert fault.code == "routes-not-asked" and str(port) in fault.text and fault.fix
            node.talk.want(False)
            assert not list(node.talk.faults())
            nursery.cancel_scope.cancel()
