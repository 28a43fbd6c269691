# SPDX-License-Identifier: GPL-3.0-or-later
"""How long NATs keep what is idle: measured against a model of one on a virtual clock, and remembered."""

from __future__ import annotations

from contextlib import suppress
from heapq import heappop, heappush
from ipaddress import ip_address
from itertools import count
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.node.lifetimes import (
    FIRST,
    LASTS,
    LEAST,
    MAX_KNOWN,
    MOST,
    NEVER,
    OPEN_LASTS,
    SHARE,
    Lifetimes,
    Measurement,
    Outcome,
    Scope,
    Voice,
    agree,
    between,
    decode,
)
from phantommesh.reachable import IpAddress
from phantommesh.routing import echoes
from phantommesh.routing.echoes import Keys, Kind, Witness, encode

TOKEN = bytes(range(16))
SELF, OUTSIDE = "192.168.1.5", "203.0.113.7"
WITNESS = Address("198.51.100.1", 51_820)
FAR = Scope(4, False)
PUBLIC = frozenset({ip_address(OUTSIDE)})


def measure(
    lives: float,
    *,
    after: tuple[float, ...] = FIRST,
    hairpin: bool = False,
    lost: frozenset[int] = frozenset(),
    trip: float = 0.02,
) -> tuple[Outcome, int, float]:
    """Run a measurement through a NAT that forgets a mapping which was idle for ``lives`` seconds. The
    datagrams with the numbers ``lost`` get lost. Return the outcome, how many were sent, and the time."""
    keys = Keys.of(TOKEN)
    one, two = Measurement(keys, after, 0.0, PUBLIC), Witness(lambda peer, host: True, 0.0)
    assert two.grant(b"a", TOKEN, one.after, 0.0) == ""
    used: dict[int, float] = {}  # of the mapping of each socket, when
    flying: list[tuple[float, int, str, int, Address, bytes]] = []
    numbers, now = count(), 0.0

    def send(way: str, socket: int, source: Address, data: bytes) -> None:
        if (number := next(numbers)) not in lost:
            heappush(flying, (now + trip, number, way, socket, source, data))

    def alive(socket: int) -> bool:
        return now - used.get(socket, -inf) <= lives

    while not one.over:
        now = max(now, min(one.deadline, two.deadline, flying[0][0] if flying else inf))
        while flying and flying[0][0] <= now:
            _, _, way, socket, source, data = heappop(flying)
            if way == "out":
                for effect in two.receive(source, data, now):
                    send("in", effect.destination.port - 40_000, WITNESS, effect.datagram)
            elif alive(socket):
                used[socket] = now
                one.receive(socket, source, echoes.decode_untrusted(data), WITNESS, now)
        for effect in two.tick(now):
            send("in", effect.destination.port - 40_000, WITNESS, effect.datagram)
        for socket, there, data in one.tick(now) if now >= one.deadline else ():
            used[socket] = now
            if there is None:
                send("out", socket, Address(OUTSIDE, 40_000 + socket), data)
            elif hairpin:
                send("in", there.port - 40_000, Address(OUTSIDE, 40_000 + socket), data)
        assert now < 1000
    return one.outcome(), next(numbers), now


@settings(max_examples=60, deadline=None)
@given(st.floats(1.0, 400.0))
def test_a_mapping_is_found_to_live_for_no_longer_than_it_does(lives: float) -> None:
    outcome, sent, _ = measure(lives)
    assert outcome.good <= lives and outcome.bad >= lives - 0.1
    if times := between(outcome.good, outcome.bad):
        closer, more, _ = measure(lives, after=times)
        good, bad = max(outcome.good, closer.good), min(outcome.bad, closer.bad)
        assert good <= lives and bad >= lives - 0.1 and bad <= good * 1.2
        sent += more
    assert sent <= 100  # 64 bytes each


def test_a_nat_that_keeps_mappings_for_longer_than_matters_is_measured_once() -> None:
    outcome, _, took = measure(600.0)
    assert outcome.good == FIRST[-1] and outcome.bad == inf and between(outcome.good, outcome.bad) == ()
    assert took < FIRST[-1] + 10


def test_a_short_memory_is_found_soon() -> None:
    outcome, _, took = measure(10.0)
    assert outcome.good == 0.0 and outcome.bad == FIRST[0] and took < FIRST[0] + 10


@settings(max_examples=60, deadline=None)
@given(st.floats(5.0, 200.0), st.frozensets(st.integers(0, 60), max_size=4))
def test_what_gets_lost_makes_a_lifetime_shorter_and_never_longer(lives: float, lost: frozenset[int]) -> None:
    outcome, _, _ = measure(lives, lost=lost)
    assert outcome.good <= lives


@pytest.mark.parametrize("hairpin", [True, False])
def test_whether_the_nat_leads_back_is_found_out_on_the_way(hairpin: bool) -> None:
    outcome, _, _ = measure(30.0, hairpin=hairpin)
    assert outcome.hairpin is hairpin and outcome.seen == PUBLIC


@pytest.mark.parametrize("named", ["127.0.0.1", "169.254.169.254", "100.64.0.1", "203.0.113.8", "::1"])
def test_nothing_goes_to_a_place_that_the_witness_merely_names(named: str) -> None:
    """It was believed: a witness could have six datagrams sent to loopback or a metadata service."""
    keys = Keys.of(TOKEN)
    one = Measurement(keys, FIRST, 0.0, PUBLIC)
    sent = list[Address | None]()
    for tick in range(200):
        sent += [there for _, there, _ in one.tick(tick / 10)]
        for number in range(len(one.after)):
            now = echoes.decode_untrusted(encode(Kind.NOW, number, keys, Address(named, 53)))
            one.receive(number, WITNESS, now, WITNESS, tick / 10)
    assert sent and not any(sent)


def test_a_witness_that_answers_nothing_shows_nothing() -> None:
    outcome, sent, took = measure(30.0, lost=frozenset(range(100)))
    assert outcome == Outcome(frozenset(), 0.0, inf, None) and took < 10 and sent <= 24


def voice(good: float, *, opened: bool = False, authority: bool = False, hairpin: bool = True) -> Voice:
    seen = frozenset[IpAddress]() if opened else PUBLIC
    return Voice(Outcome(seen, good, inf, None if opened else hairpin), opened, authority)


def test_two_witnesses_or_an_authority_are_believed_and_the_least_of_what_they_show() -> None:
    opened, long, short = voice(0.0, opened=True), voice(140.0), voice(20.0, hairpin=False)
    assert agree([], 25) is None and agree([opened], 25) is None
    for lone in (voice(0.0, opened=True, authority=True),), (opened, opened):
        assert (believed := agree(lone, 25)) is not None and believed[1]
    for voices, good, hairpin in (
        ([long], 25 / SHARE, True),
        ([short], 20.0, False),
        ([voice(140.0, authority=True)], 140.0, True),
        ([long, long], 140.0, True),
        ([long, short], 20.0, False),
        ([opened, short], 20.0, False),
    ):
        assert (believed := agree(voices, 25)) is not None
        assert (believed[0].good, believed[0].hairpin, believed[1]) == (good, hairpin, False)


def there(configured: int = 25) -> Lifetimes:
    found = Lifetimes(configured)
    found.at(FAR, PUBLIC)
    return found


@pytest.mark.parametrize(
    ("good", "keepalive"), [(0.0, LEAST), (20.0, 16), (32.0, 25), (95.0, 76), (130.0, 104), (140.0, MOST)]
)
def test_keepalives_are_as_seldom_as_the_lifetime_allows(good: float, keepalive: int) -> None:
    found = there()
    assert found.keepalive(FAR) == 25 and found.wanted(FAR, 0.0)
    found.found(FAR, 0.0, opened=False, good=good)
    assert found.keepalive(FAR) == keepalive and not found.wanted(FAR, LASTS - 1)
    assert found.wanted(FAR, LASTS + 1) and found.wanted(FAR, -LASTS)  # a clock that was set back


def test_where_strangers_come_in_there_are_none_and_that_is_tried_again() -> None:
    found = there()
    found.found(FAR, 0.0, opened=True)
    assert found.keepalive(FAR) == NEVER
    assert not found.wanted(FAR, OPEN_LASTS - 1) and found.wanted(FAR, OPEN_LASTS + 1)
    assert found.keepalive(Scope(6, False)) == 25  # nothing is known of another scope


def test_the_operators_word_is_the_least_and_off_is_off() -> None:
    found = there(10)
    found.found(FAR, 0.0, opened=False, good=0.0)
    assert found.keepalive(FAR) == 10
    off = there(0)
    assert not off.wanted(FAR, 0.0) and off.keepalive(FAR) == 0


def test_another_network_is_another_matter_and_the_first_is_remembered() -> None:
    found = there()
    found.found(FAR, 0.0, opened=False, good=95.0)
    assert found.at(FAR, {ip_address("192.0.2.9")}) and found.keepalive(FAR) == 25
    assert found.at(FAR, PUBLIC) and found.keepalive(FAR) == 76
    assert not found.at(FAR, PUBLIC)
    anew = Lifetimes(25, decode(found.encode()))
    assert anew.keepalive(FAR) == 25  # it is not known yet where this is
    assert anew.at(FAR, PUBLIC) and anew.keepalive(FAR) == 76 and not anew.wanted(FAR, 10.0)


def test_a_node_with_several_uplinks_measures_none() -> None:
    found = Lifetimes(25)
    found.at(FAR, {*PUBLIC, ip_address("192.0.2.9")})
    assert not found.wanted(FAR, 0.0) and found.keepalive(FAR) == 25
    found.found(FAR, 0.0, opened=True)
    assert found.keepalive(FAR) == 25


def test_so_many_networks_are_remembered_and_no_more() -> None:
    found = Lifetimes(25)
    for number in range(2 * MAX_KNOWN):
        found.at(FAR, {ip_address(f"192.0.2.{number}")})
        found.found(FAR, 0.0, opened=False, good=95.0)
    assert len(decode(found.encode())) == MAX_KNOWN


@given(st.binary(max_size=200))
def test_a_damaged_file_is_refused(data: bytes) -> None:
    with suppress(DecodeError):
        decode(data)
