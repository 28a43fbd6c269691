# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest

from phantommesh.dimensions import DIMENSIONS
from phantommesh.scatter.epochs import EQUAL, STEP, Keying, Moment, Numbers, PeerScatter
from phantommesh.scatter.goals import SCHEDULES
from phantommesh.scatter.maps import Epoch
from phantommesh.scatter.peermap import Hits, mark
from phantommesh.secret import Secret

ONE, TWO = Keying(1, Secret(b"1" * 32)), Keying(2, Secret(b"2" * 32))
ADDRESSES = IPv4Address("100.64.0.2"), IPv6Address("fd00::2")


class Counters(dict[int, tuple[int, int]]):
    """What the kernel counts for slot 4."""

    def send(self, parity: int, packets: int) -> None:
        for i in range(DIMENSIONS):
            had = self.get(mark(4, parity, i), (0, 0))
            self[mark(4, parity, i)] = had[0] + packets, had[1] + 100 * packets


def at(seconds: float, *, ahead: float = 0.0) -> Moment:
    """So long after the start; the clock has been set ``ahead`` meanwhile."""
    return Moment(seconds + ahead, 500.0 + seconds)


def scatter() -> PeerScatter:
    made = PeerScatter(b"n" * 16, 4, ADDRESSES, SCHEDULES["throughput"], 8, Numbers())
    made.live = True
    return made


def even(packets: int) -> Hits:
    return Hits((packets,) * DIMENSIONS, (100 * packets,) * DIMENSIONS)


def test_epochs_are_numbered_within_those_of_the_link() -> None:
    peer, seen = scatter(), []
    for keying in (ONE, ONE, ONE, TWO, TWO):
        peer.open(keying, EQUAL, at(0.0))
        assert peer.current is not None
        seen.append(peer.current.epoch)
    assert seen == [Epoch(1, 0), Epoch(1, 1), Epoch(1, 2), Epoch(2, 0), Epoch(2, 1)]


def test_no_number_is_used_twice() -> None:
    numbers = Numbers()
    taken = [numbers.take(link) for link in (5, 6, 5, 6, 7, 5, 7)]
    assert taken == [
        Epoch(5, 0),
        Epoch(6, 0),
        Epoch(5, 1),
        Epoch(6, 1),
        Epoch(7, 0),
        Epoch(5, 2),
        Epoch(7, 1),
    ]
    for link in range(1000, 8, -1):
        numbers.take(link)
    assert numbers.take(9) == Epoch(9, 1)
    assert len(numbers._next) <= 8


def test_each_epoch_counts_its_own_packets() -> None:
    peer, counters = scatter(), Counters()
    parities = []
    for number in range(6):
        parity = peer.open(ONE, EQUAL, at(10.0 * number)).parity
        parities.append(parity)
        if number:
            counters.send(1 - parity, 3)  # they were dealt before the swap and are counted after it
            ended = peer.close(counters, at(10.0 * number))
            assert ended is not None
            assert ended.epoch == Epoch(1, number - 1)
            assert (ended.started, ended.ended) == (10.0 * (number - 1), 10.0 * number)
            assert ended.hits == even(3 + number - 1 + (number - 1))
            assert ended.whole and ended == peer.previous
        counters.send(parity, number)
        peer.read(counters)
        assert peer.current is not None and peer.current.hits == even(number)
        counters.send(parity, number)
    assert parities in ([0, 1] * 3, [1, 0] * 3)


@pytest.mark.parametrize("ahead", [-4.0, 4.0, 86_400.0, -0.3, 0.3])
def test_a_clock_that_is_set_changes_no_epochs_length(ahead: float) -> None:
    peer, counters, ended = scatter(), Counters(), []
    peer.open(ONE, EQUAL, at(1000.0))
    for seconds in (1010.0, 1020.0, 1030.0):
        moment = at(seconds, ahead=ahead if seconds > 1015.0 else 0.0)
        peer.open(ONE, EQUAL, moment)
        ended.append(peer.close(counters, moment))
    lengths = [
        found.ended - found.started for found in ended if found is not None and found.ended is not None
    ]
    assert lengths == pytest.approx([10.0] * 3)
    assert peer.current is not None
    starts = [found.started for found in (*ended, peer.current) if found is not None]
    step = ahead if abs(ahead) >= STEP else 0.0  # a little is how any two clocks go
    assert starts == pytest.approx([1000.0, 1010.0, 1020.0 + step, 1030.0 + step])


def test_without_a_swap_nothing_ends() -> None:
    peer = scatter()
    peer.open(ONE, EQUAL, at(0.0))
    assert peer.close(Counters(), at(1.0)) is None
    assert peer.lost(at(1.0)) is None
    assert peer.previous is None


def test_what_was_read_last_is_kept_when_the_table_is_lost() -> None:
    peer, counters = scatter(), Counters()
    parity = peer.open(ONE, EQUAL, at(0.0)).parity
    counters.send(parity, 5)
    peer.read(counters)
    fresh = Counters()
    parity = peer.open(ONE, EQUAL, at(9.0)).parity
    ended = peer.lost(at(9.0))
    assert ended is not None and ended.hits == even(5) and not ended.whole and ended.ended == 9.0
    fresh.send(parity, 2)
    peer.read(fresh)
    assert peer.current is not None and peer.current.hits == even(2)


def test_a_peer_that_leaves_ends_its_epoch() -> None:
    peer, counters = scatter(), Counters()
    counters.send(peer.open(ONE, EQUAL, at(0.0)).parity, 5)
    ended = peer.end(counters, at(3.0))
    assert ended is not None and ended.hits == even(5) and ended.ended == 3.0
    assert peer.current is None and peer.end(counters, at(4.0)) is None


def test_a_drained_dimension_gets_no_card_and_all_of_them_drop() -> None:
    peer = scatter()
    made = peer.open(ONE, (1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0), at(0.0))
    assert set(made.dealt) == {0, 2, 3, 5, 6}
    assert peer.current is not None and peer.current.cards[1] == peer.current.cards[4] == 0
    made = peer.open(ONE, (0.0,) * DIMENSIONS, at(0.0))
    assert made.dealt == () and set(made.elements.values()) == {4 << 8 | 15}


def test_an_epoch_that_the_kernel_never_had_is_not_reported_and_its_number_not_used_again() -> None:
    peer = scatter()
    peer.live = False
    peer.open(ONE, EQUAL, at(0.0))
    peer.open(ONE, EQUAL, at(1.0))
    assert peer.lost(at(1.0)) is None and peer.close(Counters(), at(1.0)) is None
    assert peer.current is not None and peer.current.epoch == Epoch(1, 1)
