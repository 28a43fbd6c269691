# SPDX-License-Identifier: GPL-3.0-or-later
"""A leg is bound to the address that a challenge came back from, and to no other."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.routing import binding
from phantommesh.routing.binding import PERIOD, SIZE, Challenger, Datagram, Heard, Kind
from phantommesh.routing.leases import Grant, Leases
from phantommesh.secret import Secret
from tests.unit.routing.test_leases import AT, A, B, C, counting, granted, make

KEY = Secret(bytes(32))
HOSTS = st.ip_addresses().map(str).filter(lambda host: "::ffff:" not in host)
PLACES = st.tuples(HOSTS, st.integers(1, 65535)).map(lambda both: Address(*both))


def relay() -> tuple[Leases, Challenger, Grant, Grant]:
    leases = make(refuses=lambda place: place == AT[C])
    first, second = granted(leases, A, B), granted(leases, B, A)
    return leases, Challenger(leases, counting()), first, second


def exchange(challenger: Challenger, grant: Grant, place: Address, now: float) -> Heard:
    heard = challenger.receive(binding.ask(grant.ticket, grant.key), place, now)
    assert heard.answer is not None
    back = binding.answer(heard.answer, grant.ticket, grant.key)
    assert isinstance(back, bytes)
    return challenger.receive(back, place, now)


def test_two_ends_are_bound_and_told_what_the_relay_sees() -> None:
    leases, challenger, first, second = relay()
    heard = exchange(challenger, first, AT[A], 0.0)
    assert heard.bound and heard.answer is not None
    told = binding.answer(heard.answer, first.ticket, first.key)
    assert isinstance(told, Datagram) and told.seen == AT[A] and not told.forwarding
    heard = exchange(challenger, second, AT[B], 0.0)
    assert heard.answer is not None
    told = binding.answer(heard.answer, second.ticket, second.key)
    assert isinstance(told, Datagram) and told.forwarding
    assert len(leases.forwards(0.0)) == 2


def test_a_forged_source_binds_nothing() -> None:
    """ASK from the victim's address, RETURN with a challenge that another address was given."""
    leases, challenger, first, second = relay()
    exchange(challenger, second, AT[B], 0.0)
    victim = Address("198.51.100.1", 53)
    heard = challenger.receive(binding.ask(first.ticket, first.key), AT[A], 0.0)
    assert heard.answer is not None
    back = binding.answer(heard.answer, first.ticket, first.key)
    assert isinstance(back, bytes)
    for place in (victim, Address(AT[A].host, AT[A].port + 1), Address(victim.host, AT[A].port)):
        assert challenger.receive(back, place, 0.0) == Heard(dropped="relay-challenge")
    assert not leases.forwards(0.0)


def test_a_challenge_is_good_for_its_leg_and_for_a_short_time_only() -> None:
    _, challenger, first, second = relay()
    heard = challenger.receive(binding.ask(first.ticket, first.key), AT[A], 0.0)
    assert heard.answer is not None
    challenge = binding.decode_untrusted(heard.answer).challenge
    of_second = binding.encode(Datagram(Kind.RETURN, second.ticket, challenge), second.key)
    assert challenger.receive(of_second, AT[A], 0.0).dropped == "relay-challenge"
    back = binding.encode(Datagram(Kind.RETURN, first.ticket, challenge), first.key)
    assert challenger.receive(back, AT[A], 2 * PERIOD - 0.1).bound
    assert challenger.receive(back, AT[A], 2 * PERIOD).dropped == "relay-challenge"


def test_what_is_not_ones_own_is_dropped_without_an_answer() -> None:
    _, challenger, first, _ = relay()
    assert challenger.receive(binding.ask(bytes(8), KEY), AT[A], 0.0) == Heard(dropped="relay-ticket")
    assert challenger.receive(binding.ask(first.ticket, KEY), AT[A], 0.0) == Heard(dropped="relay-mac")
    own = binding.encode(Datagram(Kind.CHALLENGE, first.ticket), first.key)
    assert challenger.receive(own, AT[A], 0.0) == Heard(dropped="relay-malformed")
    heard = challenger.receive(binding.ask(first.ticket, first.key), AT[C], 0.0)
    assert heard.answer is not None
    back = binding.answer(heard.answer, first.ticket, first.key)
    assert isinstance(back, bytes)
    assert challenger.receive(back, AT[C], 0.0) == Heard(dropped="relay-address")


@given(st.sampled_from(Kind), st.binary(min_size=8, max_size=8), st.binary(min_size=16, max_size=16), PLACES)
def test_what_is_encoded_is_read_again(kind: Kind, ticket: bytes, challenge: bytes, place: Address) -> None:
    seen = place if kind is Kind.BOUND else None
    datagram = Datagram(kind, ticket, challenge, seen, forwarding=kind is Kind.BOUND)
    data = binding.encode(datagram, KEY)
    assert len(data) == SIZE
    assert binding.genuine(data, KEY)
    assert binding.decode_untrusted(data) == datagram


@given(st.binary(max_size=80) | st.binary(min_size=60, max_size=60).map(lambda rest: b"PMR1" + rest))
def test_anything_may_come(data: bytes) -> None:
    _, challenger, first, _ = relay()
    heard = challenger.receive(data, AT[A], 0.0)
    assert heard.answer is None and not heard.bound and heard.dropped
    assert binding.answer(data, first.ticket, first.key) is None
    with suppress(DecodeError):
        binding.decode_untrusted(data)


@given(st.integers(0, SIZE - 1), st.integers(1, 255))
def test_a_changed_byte_is_noticed(at: int, by: int) -> None:
    _, challenger, first, _ = relay()
    data = bytearray(binding.ask(first.ticket, first.key))
    data[at] ^= by
    assert challenger.receive(bytes(data), AT[A], 0.0).dropped
