# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.link.admission import COOKIE_SECRET_LIFE, INIT_BURST, INIT_RATE, MAX_SOURCES, Cookies
from phantommesh.rates import Rates, source_block

HERE, THERE = Address("192.0.2.1", 51800), Address("192.0.2.2", 51800)


def cookies() -> Cookies:
    return Cookies(random.Random(1).randbytes, 0.0)


def test_a_cookie_is_for_one_address_port_and_transport() -> None:
    jar = cookies()
    given_out = jar.current(HERE, 0.0)
    assert given_out in jar.accepted(HERE, 0.0)
    for other in (THERE, HERE._replace(port=1), HERE._replace(transport="tcp")):
        assert given_out not in jar.accepted(other, 0.0)


@given(st.floats(0, 1000), st.floats(0, 2000))
def test_a_cookie_lives_one_to_two_secret_lives(asked: float, later: float) -> None:
    jar = cookies()
    cookie = jar.current(HERE, asked)
    held = cookie in jar.accepted(HERE, asked + later)
    if later < COOKIE_SECRET_LIFE:
        assert held
    if later >= 2 * COOKIE_SECRET_LIFE:
        assert not held


def test_cookies_of_steady_use_rotate() -> None:
    jar = cookies()
    seen = {jar.current(HERE, now) for now in range(0, 2400, 10)}
    assert len(seen) == 10
    assert all(len(list(jar.accepted(HERE, 2400.0 + i))) == 2 for i in range(5))


def sources() -> Rates[str]:
    return Rates[str](INIT_RATE, INIT_BURST, MAX_SOURCES)


def test_a_source_is_an_ipv4_address_or_an_ipv6_64() -> None:
    assert source_block("192.0.2.1") != source_block("192.0.2.2")
    assert source_block("2001:db8:0:1::1") == source_block("2001:db8:0:1:ffff::9")
    assert source_block("2001:db8:0:1::1") != source_block("2001:db8:0:2::1")
    assert source_block("::ffff:192.0.2.1") == source_block("192.0.2.1")
    assert source_block("fe80::1%lo") == source_block("fe80::2")


def test_the_rate_is_two_a_second_with_a_burst_of_five() -> None:
    rates = sources()
    assert [rates.allow("192.0.2.1", 10.0) for _ in range(6)] == [True] * 5 + [False]
    assert rates.allow("192.0.2.2", 10.0)
    assert not rates.allow("192.0.2.1", 10.4)
    assert rates.allow("192.0.2.1", 10.5)
    allowed = sum(rates.allow("192.0.2.1", 11.0 + i / 100) for i in range(1000))
    assert 20 <= allowed <= 22  # ten seconds' worth, however often it is asked
    assert sum(rates.allow("192.0.2.1", 1000.0) for _ in range(50)) == 5


def test_an_ipv6_64_shares_one_bucket() -> None:
    rates = sources()
    assert sum(rates.allow(source_block(f"2001:db8::{i:x}"), 0.0) for i in range(100)) == 5


def test_the_table_of_rates_is_bounded() -> None:
    rates = sources()
    for i in range(MAX_SOURCES + 500):
        rates.allow(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", 0.0)
    assert len(rates) == MAX_SOURCES
