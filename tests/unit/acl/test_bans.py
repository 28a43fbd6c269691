# SPDX-License-Identifier: GPL-3.0-or-later
"""Bans: how long, of whom never, how many, and what is left of them after a restart."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from phantommesh.acl import bans as module
from phantommesh.acl.bans import (
    FORGIVEN,
    MOST,
    OPEN,
    STEPS,
    Ban,
    BanError,
    Bans,
    Shield,
    block_of,
    for_kernel,
    parse_network,
)
from phantommesh.errors import DecodeError
from phantommesh.routable import Network

A, B, SIX = ip_network("192.0.2.1/32"), ip_network("192.0.2.2/32"), ip_network("2001:db8:1:2::/64")


def ban(bans: Bans, network: Network = A, now: float = 0.0, shield: Shield = OPEN, **more: object) -> Ban:
    seconds = module.step_of(bans.times(str(network), now) + 1)
    return bans.add(network, "own", seconds, "why", now, shield, **more)  # type: ignore[arg-type]


def test_a_ban_grows_by_repetition_and_is_forgiven_after_a_week() -> None:
    bans, now, lasted = Bans(), 1000.0, []
    for _ in range(5):
        made = ban(bans, now=now)
        lasted.append(made.until - now)
        now = made.until + 60.0
        assert bans.expire(now) == [made]
    assert lasted == [*STEPS, STEPS[-1]] and bans.times(str(A), now) == 5
    now += FORGIVEN + STEPS[-1]
    bans.expire(now)
    assert bans.times(str(A), now) == 0 and ban(bans, now=now).until - now == STEPS[0]


def test_a_ban_made_again_while_it_stands_is_one_offence() -> None:
    bans = Bans()
    ban(bans, now=0.0)
    assert ban(bans, now=5.0).times == 1 and len(bans) == 1


def test_all_survives_a_restart_but_what_is_over() -> None:
    bans = Bans()
    bans.add(B, "operator", 50.0, "mine", 0.0, OPEN)
    bans.add(SIX, "hinted", 600.0, "hint", 0.0, OPEN, kinds=["scan"])
    ban(bans)
    again = Bans.decode(bans.encode(), 100.0)
    assert {b.network for b in again} == {str(A), str(SIX)}
    assert again.times(str(A), 100.0) == 1
    assert {b.kinds for b in again.of("hinted")} == {("scan",)}


@given(st.binary(max_size=200))
def test_a_damaged_file_is_refused_and_raises_nothing_else(data: bytes) -> None:
    try:
        Bans.decode(data, 0.0)
    except DecodeError:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b'{"bans":[{"network":"x","origin":"own","since":0,"until":9,"why":""}]}',
        b'{"bans":[{"network":"1.2.3.4/8","origin":"own","since":0,"until":9,"why":""}]}',
        b'{"offenders":{"x":{"times":1,"until":1}}}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_network_is_damage(data: bytes) -> None:
    with pytest.raises(DecodeError):
        Bans.decode(data, 0.0)


def test_what_is_never_banned_is_not_and_members_are_by_an_operator() -> None:
    shield = Shield([(ip_network("192.0.2.1/32"), "a seed")], [(ip_network("192.0.2.2/32"), "member b")])
    bans = Bans()
    with pytest.raises(BanError, match="a seed"):
        ban(bans, A, shield=shield, kinds=["scan", "flood"])
    with pytest.raises(BanError, match="member b"):
        ban(bans, B, shield=shield, kinds=["scan", "flood", "replay"])
    bans.add(B, "operator", 60.0, "", 0.0, shield)
    assert [b.network for b in bans] == [str(B)]
    bans.remove(B)
    with pytest.raises(BanError, match="a seed"):  # a network around it is no way
        bans.add(ip_network("192.0.2.0/24"), "operator", 60.0, "", 0.0, shield)
    bans.add(ip_network("192.0.2.0/24"), "operator", 60.0, "", 0.0, shield, force=True)
    assert [b.network for b in bans.of("operator")] == ["192.0.2.0/24"]


def test_a_member_that_appears_lifts_the_ban_and_that_it_offended_is_remembered() -> None:
    bans = Bans()
    ban(bans, B, kinds=["flood"])
    bans.add(ip_network("192.0.2.0/24"), "operator", 60.0, "", 0.0, OPEN)
    shield = Shield((), [(ip_network("192.0.2.2/32"), "member b")])
    assert [(b.network, why) for b, why in bans.lift(shield)] == [(str(B), "member b")]
    assert bans.times(str(B), 0.0) == 1 and [b.origin for b in bans] == ["operator"]


def test_an_agent_bans_blocks_alone() -> None:
    with pytest.raises(BanError):
        Bans().add(ip_network("192.0.2.0/24"), "own", 60.0, "", 0.0, OPEN)
    assert block_of("2001:db8:1:2:3:4:5:6") == "2001:db8:1:2::/64" and block_of("192.0.2.9") == "192.0.2.9/32"


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.7", "192.0.2.7/32"),
        ("192.0.2.7/24", "192.0.2.0/24"),
        ("[2001:db8::7]", "2001:db8::/64"),
        ("2001:db8::7/128", "2001:db8::/64"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::ffff:192.0.2.7", "192.0.2.7/32"),
    ],
)
def test_what_an_operator_writes(text: str, network: str) -> None:
    assert str(parse_network(text)) == network


@pytest.mark.parametrize("text", ["", "host", "0.0.0.0/0", "::/0", "192.0.2.300", "1.2.3.4/33"])
def test_what_an_operator_may_not_write(text: str) -> None:
    with pytest.raises(BanError):
        parse_network(text)


def test_a_full_set_loses_the_ban_that_ends_first_and_the_operator_is_told() -> None:
    bans = Bans()
    networks = [ip_network((0x0A000000 + i, 32)) for i in range(MOST["operator"] + 1)]
    for i, network in enumerate(networks[: MOST["hinted"]]):
        bans.add(network, "hinted", 1000.0 + i, "", 0.0, OPEN)
    bans.add(networks[-1], "hinted", 5000.0, "", 0.0, OPEN)
    held = {b.network for b in bans.of("hinted")}
    assert len(held) == MOST["hinted"] and str(networks[0]) not in held and str(networks[-1]) in held
    for network in networks[:-1]:
        bans.add(network, "operator", 1000.0, "", 0.0, OPEN)
    with pytest.raises(BanError, match="bans already"):
        bans.add(networks[-1], "operator", 1000.0, "", 0.0, OPEN)


def test_one_origin_goes_as_a_whole() -> None:
    bans = Bans()
    ban(bans, A)
    bans.add(B, "hinted", 60.0, "", 0.0, OPEN)
    assert [b.network for b in bans.drop("hinted")] == [str(B)] and [b.network for b in bans] == [str(A)]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(20, 32)), max_size=30))
def test_a_set_of_intervals_gets_no_overlap_and_leaves_nobody_out(drawn: list[tuple[int, int]]) -> None:
    networks = {IPv4Network((value >> 32 - bits << 32 - bits, bits)) for value, bits in drawn}
    bans = [
        Ban(network=str(network), origin="operator", since=0, until=9, why="") for network in sorted(networks)
    ]
    chosen = [b.parsed for b in for_kernel(bans).values()]
    assert not any(a.overlaps(b) for a in chosen for b in chosen if a is not b)
    assert all(any(network.subnet_of(c) for c in chosen) for network in networks)  # type: ignore[arg-type]


class Banned(RuleBasedStateMachine):
    """Whatever is asked: bounds hold, nothing shielded stands, and what is kept is what stood."""

    @initialize()
    def begin(self) -> None:
        self.bans, self.now = Bans(), 1000.0
        self.always: set[Network] = set()
        self.members: set[Network] = set()

    def shield(self) -> Shield:
        return Shield(((n, "always") for n in self.always), ((n, "member") for n in self.members))

    @rule(host=st.integers(0, 7), kinds=st.sets(st.sampled_from(["scan", "flood"])), hinted=st.booleans())
    def ban(self, host: int, kinds: set[str], hinted: bool) -> None:
        network = ip_network((0xC0000200 + host, 32))
        refused = self.shield().why(network)
        try:
            self.bans.add(
                network, "hinted" if hinted else "own", 600.0, "", self.now, self.shield(), kinds=kinds
            )
        except BanError:
            assert refused
        else:
            assert not refused

    @rule(host=st.integers(0, 7), member=st.booleans())
    def appear(self, host: int, member: bool) -> None:
        (self.members if member else self.always).add(ip_network((0xC0000200 + host, 32)))
        self.bans.lift(self.shield())

    @rule(host=st.integers(0, 7))
    def unban(self, host: int) -> None:
        network = ip_network((0xC0000200 + host, 32))
        self.bans.remove(network)
        assert self.bans.get(str(network)) is None and not self.bans.times(str(network), self.now)

    @rule(seconds=st.floats(0, 5000))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.bans.expire(self.now)

    @rule()
    def restart(self) -> None:
        before = {(b.origin, b) for b in self.bans}
        self.bans = Bans.decode(self.bans.encode(), self.now)
        assert {(b.origin, b) for b in self.bans} == before

    @invariant()
    def nobody_shielded(self) -> None:
        for one in self.bans:
            assert not self.shield().why(one.parsed) and one.until > self.now


TestBanned = Banned.TestCase
