# SPDX-License-Identifier: GPL-3.0-or-later
"""Running totals of counters that begin anew."""

import pytest

from phantommesh.dimensions import DIMENSIONS
from phantommesh.proofs.tally import MAX_GONE, Counters, Tally
from phantommesh.trust.identity import NodeId

PEER, KEY, OTHER = NodeId(b"p" * 16), bytes(32), b"k" * 32


def counted(received: int, sent: int, key: bytes = KEY) -> list[Counters | None]:
    return [(key, received, sent)] * DIMENSIONS


def test_totals_are_what_was_counted_since_the_first_look() -> None:
    tally = Tally()
    assert tally.look(PEER, counted(100, 10))
    assert tally.look(PEER, counted(103, 15)) and tally.look(PEER, counted(103, 15))
    assert tally.received(PEER) == (3,) * DIMENSIONS and tally.sent(PEER) == (5,) * DIMENSIONS


@pytest.mark.parametrize(
    "changed", [(OTHER, 200, 20), (KEY, 99, 10), (KEY, 100, 9), None], ids=["key", "received", "sent", "gone"]
)
@pytest.mark.parametrize("dimension", [0, DIMENSIONS - 1])
def test_a_look_that_lacks_something_says_so(changed: Counters | None, dimension: int) -> None:
    tally, readings = Tally(), counted(100, 10)
    assert tally.look(PEER, readings)
    readings[dimension] = changed
    assert not tally.look(PEER, readings)
    assert tally.look(PEER, readings)  # nothing since
    assert min(*tally.received(PEER), *tally.sent(PEER)) == 0


def test_a_dimension_that_comes_back_has_counted_what_nobody_saw() -> None:
    tally, readings = Tally(), counted(100, 10)
    tally.look(PEER, readings)
    tally.look(PEER, [None, *readings[1:]])
    assert not tally.look(PEER, [(KEY, 900, 90), *readings[1:]])
    assert tally.look(PEER, [(KEY, 901, 90), *readings[1:]])
    assert tally.received(PEER)[0] == 1


def test_who_leaves_and_comes_back_goes_on_in_its_totals() -> None:
    """Else a sender could have them forgotten, and with them what it sent by the wrong ways."""
    tally = Tally()
    tally.look(PEER, counted(100, 0))
    tally.look(PEER, counted(700, 0))
    tally.retain([])
    assert (tally.peers(), tally.received(PEER)) == ([], (0,) * DIMENSIONS)
    assert not tally.look(PEER, counted(5, 0))  # what came before this look is missing
    assert tally.look(PEER, counted(25, 0))
    assert tally.received(PEER) == (620,) * DIMENSIONS
    tally.retain([])
    for number in range(MAX_GONE + 1):
        tally.look(NodeId(number.to_bytes(16)), [])
        tally.retain([])
    assert tally.look(PEER, counted(25, 0))  # too many have left since: it is new
    assert tally.received(PEER) == (0,) * DIMENSIONS
