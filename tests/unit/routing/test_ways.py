# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of the ways on offer is taken."""

from phantommesh.routing.ways import Kind, Way, Ways
from phantommesh.wireguard.device import Endpoint

A, B = b"a" * 16, b"b" * 16
DIRECT = Way(Kind.DIRECT, Endpoint("192.0.2.1", 51820))
RELAYED = Way(Kind.RELAYED, Endpoint("192.0.2.9", 51900), relay=b"r" * 16)
FRAMED = Way(Kind.FRAMED, Endpoint("127.0.0.1", 40000), room=40)


def test_the_best_way_on_offer_is_taken() -> None:
    ways = Ways()
    assert ways.chosen(A, 3) is None
    assert ways.offer(A, 3, RELAYED)
    assert not ways.offer(A, 3, FRAMED)  # worse than what is taken
    assert ways.offer(A, 3, DIRECT)
    assert ways.chosen(A, 3) == DIRECT
    assert not ways.withdraw(A, 3, Kind.FRAMED)
    assert ways.withdraw(A, 3, Kind.DIRECT)
    assert ways.chosen(A, 3) == RELAYED
    assert ways.withdraw(A, 3, Kind.RELAYED)
    assert ways.chosen(A, 3) is None
    assert ways.chosen(A, 2) is None
    assert ways.chosen(B, 3) is None


def test_a_relay_is_left_once_a_better_way_is_taken_and_as_long_as_it_is_on_offer() -> None:
    ways = Ways()
    ways.offer(A, 3, RELAYED)
    ways.offer(A, 3, FRAMED)
    assert ways.left(A, 3) is None
    ways.offer(A, 3, DIRECT)
    assert ways.left(A, 3) == RELAYED.endpoint
    assert ways.left(A, 2) is None
    assert ways.left(B, 3) is None
    ways.withdraw(A, 3, Kind.RELAYED)
    assert ways.left(A, 3) is None


def test_an_offer_takes_the_place_of_the_one_before() -> None:
    ways, moved = Ways(), Way(Kind.DIRECT, Endpoint("192.0.2.1", 40000))
    ways.offer(A, 0, DIRECT)
    assert not ways.offer(A, 0, DIRECT)
    assert ways.offer(A, 0, moved)
    assert ways.on_offer(A, Kind.DIRECT) == 1
    ways.withdraw(A, 0, Kind.DIRECT)
    assert ways.on_offer(A, Kind.DIRECT) == 0


def test_what_is_known_of_other_peers_is_forgotten() -> None:
    ways = Ways()
    for peer in (A, B):
        ways.offer(peer, 0, DIRECT)
        assert ways.hold(peer, 0b11)
        assert not ways.hold(peer, 0b11)
    ways.retain({A})
    assert (ways.chosen(A, 0), ways.held(A)) == (DIRECT, 0b11)
    assert (ways.chosen(B, 0), ways.held(B)) == (None, 0)
    assert ways.hold(A, 0)
    assert ways.held(A) == 0


def test_a_direct_way_that_was_lost_leaves_silence_while_the_peer_is_held_and_has_no_other() -> None:
    ways = Ways()
    ways.offer(A, 0, DIRECT)
    ways.withdraw(A, 0, Kind.DIRECT)
    assert ways.quiet(A) == 0  # nothing is held: WireGuard may try by itself
    ways.hold(A, 0b11)
    ways.offer(A, 0, DIRECT)
    ways.offer(A, 1, DIRECT)
    ways.offer(A, 1, RELAYED)
    for dimension in (0, 1):
        ways.withdraw(A, dimension, Kind.DIRECT)
    assert ways.quiet(A) == 0b01
    ways.offer(A, 0, RELAYED)
    assert ways.quiet(A) == 0
    ways.withdraw(A, 0, Kind.RELAYED)
    ways.offer(A, 0, DIRECT)
    ways.withdraw(A, 0, Kind.DIRECT)
    assert ways.quiet(A) == 0b01
    ways.hold(A, 0)
    assert ways.quiet(A) == 0


def test_what_one_kind_holds_another_does_not_let_go() -> None:
    ways = Ways()
    assert ways.hold(A, 0b011)
    assert ways.hold(A, 0b110, by=Kind.FRAMED)
    assert ways.held(A) == 0b111
    assert ways.hold(A, 0, by=Kind.FRAMED)
    assert not ways.hold(A, 0, by=Kind.FRAMED)
    assert ways.held(A) == 0b011


def test_frames_are_no_way_to_insist_on() -> None:
    """A packet that came in without them shows that the peer has left them: it takes none out any more."""
    ways = Ways()
    for way in (DIRECT, RELAYED, FRAMED):
        ways.offer(A, 3, way)
    assert ways.proved() == {DIRECT.endpoint, RELAYED.endpoint}
