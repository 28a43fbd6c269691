# SPDX-License-Identifier: GPL-3.0-or-later
"""A dimension whose own uplink was out goes back there once the uplink answers, and not too often."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.dimensions import only
from phantommesh.endpoint import Address
from phantommesh.routing import knocks
from phantommesh.routing.homing import MOST_FLAPS, PAUSES, STAY, Homing
from phantommesh.routing.knocks import Keys, Kind
from phantommesh.routing.punching import LASTS, LATE, PROVES, SETTLE, SPREAD, Punching
from phantommesh.routing.search import OTHER, Ask, Effect, Lost, Send, Target, Won
from phantommesh.secret import Secret

PEER = b"b" * 16
OURS, THEIRS = (Secret(b"1" * 32), Secret(b"2" * 32)), (Secret(b"2" * 32), Secret(b"1" * 32))
OWN, ANOTHER = Address("192.0.2.2", 51820), Address("198.51.100.2", 51820)
DELAY = 0.01  # s to the peer and back


class End:
    """A node that looks for ways in dimension 0. The peer answers at the addresses in ``whole``, and agrees
    to all rounds."""

    def __init__(self, me: bytes = b"a" * 16) -> None:
        self.now, self.whole = 0.0, {OWN, ANOTHER}
        self.way: Address | None = None
        self.ways, self.knocked, self.asked = list[tuple[float, Address]](), Counter[Address](), 0
        self.targets = [[Target(OWN, 2), Target(ANOTHER, OTHER + 2)]]
        rng = Random(7)
        self.punching = Punching(
            me, targets=lambda peer: self.targets, may=lambda peer, host: True,
            random=rng.randbytes, chance=rng,
        )  # fmt: skip
        self.punching.key(PEER, Keys.of(*OURS), 0.0)

    def take(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Ask():
                    self.asked += 1
                    self.punching.agreed(PEER, self.now, self.now)
                case Won(_, _, address):
                    self.way = address
                    self.ways.append((self.now, address))
                case Lost():
                    self.way = None
                case Send(dimension, to, datagram):
                    self.knocked[to] += 1
                    if to in self.whole:
                        nonce = knocks.decode_untrusted(datagram).nonce
                        answer = knocks.encode(
                            Kind.ANSWER, dimension, nonce, Keys.of(*THEIRS), Address("192.0.2.1", 1)
                        )
                        self.take(self.punching.receive(dimension, to, answer, self.now + DELAY))

    def run(self, until: float) -> None:
        """Meanwhile a way that does not answer goes dark at once."""
        while self.now < until:
            self.now = max(self.now, min(until, self.punching.deadline, self.now + 1.0))
            self.take(self.punching.tick(self.now))
            dark = self.way is None or self.way not in self.whole
            self.take(self.punching.want(PEER, only(0) if dark else 0, self.now, soon=True))

    def lose(self) -> None:
        """The dimension's own uplink is out, for longer than a new way has to prove itself."""
        self.run(self.now + PROVES + LASTS)
        self.whole = {ANOTHER}
        self.run(self.now + LASTS + 2.0)
        assert self.way == ANOTHER

    def back(self) -> None:
        """The own uplink answers again. No record says so."""
        self.whole = {OWN, ANOTHER}


def test_a_dimension_goes_back_to_its_own_uplink_without_a_gap() -> None:
    end = End()
    end.run(5.0)
    assert end.way == OWN
    end.lose()
    end.back()
    end.run(end.now + PAUSES[0] * 2)
    assert [address for _, address in end.ways] == [OWN, ANOTHER, OWN]
    assert end.way == OWN  # and there was no `Lost` between the two
    asked = end.asked
    end.run(end.now + 3600.0)
    assert end.asked == asked


def test_while_the_own_uplink_is_out_it_is_tried_seldom_and_the_other_one_stays() -> None:
    end = End()
    end.run(5.0)
    end.lose()
    before, asked = end.knocked[OWN], end.asked
    end.run(end.now + sum(PAUSES))
    assert end.way == ANOTHER and end.ways[-1][1] == ANOTHER and len(end.ways) == 2
    assert 0 < end.asked - asked <= len(PAUSES)
    assert end.knocked[OWN] > before


def test_a_record_that_names_the_uplink_again_has_it_tried_at_once() -> None:
    end = End()
    end.run(5.0)
    end.lose()
    end.run(end.now + STAY + PAUSES[0] * (1 + SPREAD) + LASTS)  # one try that failed
    end.back()
    end.punching.anew(PEER, end.now)
    end.run(end.now + SETTLE + LASTS)
    assert end.way == OWN


def test_a_newer_record_may_make_a_way_one_of_another_uplink() -> None:
    """A host with one uplink has two now, and the dimension's own is the new one."""
    end = End(b"c" * 16)  # the end that lets the other ask first
    end.targets = [[Target(ANOTHER, 2)]]
    end.run(5.0)
    assert end.way == ANOTHER
    end.targets = [[Target(OWN, 2), Target(ANOTHER, OTHER + 2)]]
    end.punching.anew(PEER, end.now)
    end.run(end.now + SETTLE + LATE + LASTS)
    assert end.way == OWN


def test_an_uplink_that_comes_and_goes_is_left_alone_for_longer_each_time() -> None:
    end, stays = End(), list[float]()
    end.run(5.0)
    for _ in range(5):
        end.lose()
        left = end.now
        end.back()
        while end.way != OWN and end.now < left + 1000.0:
            end.punching.anew(PEER, end.now)
            end.run(end.now + 1.0)
        stays.append(end.now - left)
    assert all(later > 1.5 * sooner for sooner, later in pairwise(stays)), stays


@given(st.lists(st.tuples(st.integers(0, 127), st.floats(0.0, 1000.0), st.booleans()), max_size=60))
def test_tries_are_never_soon_after_a_dimension_left(rounds: list[tuple[int, float, bool]]) -> None:
    homing, now, left = Homing(), 0.0, -1000.0
    for away, after, moved in rounds:
        now += after
        if away & ~homing.away:
            left = now
        homing.tried(away, now)
        assert (homing.due == float("inf")) == (away == 0)
        if moved:
            homing.anew(now, SETTLE)
        assert homing.due >= min(left + STAY, homing.due if not away else float("inf")) or not away
        assert not away or homing.due <= now + max(PAUSES[-1], STAY * 2**MOST_FLAPS)
