# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.endpoint import Address
from phantommesh.kem import CryptographyKem
from phantommesh.link import keys, wire
from phantommesh.link.effects import PeerAuth
from phantommesh.link.machine import Links
from phantommesh.link.psk import PskState
from phantommesh.link.wire import Kind, Mode
from phantommesh.timers import SLACK, Timers
from tests.simulation.pair import ADMISSION, FOREVER, Simulation, identities

moments = st.one_of(st.floats(0, 100), st.just(FOREVER))
steps = st.lists(st.tuples(st.sampled_from(["set", "cancel", "due"]), st.integers(0, 5), moments))


@given(steps)
def test_timers_are_as_good_as_a_table(steps: list[tuple[str, int, float]]) -> None:
    timers, table = Timers[int](), dict[int, float]()
    for what, key, moment in steps:
        if what == "set":
            timers.set(key, moment)
            table[key] = moment
        elif what == "cancel":
            timers.cancel(key)
            table.pop(key, None)
        elif moment < FOREVER:
            due = timers.due(moment)
            assert sorted(due) == sorted(k for k, at in table.items() if at <= moment)
            taken = [table.pop(k) for k in due]
            assert taken == sorted(taken)
        assert timers.first == min(table.values(), default=FOREVER)


def test_moving_a_moment_again_and_again_keeps_nothing() -> None:
    timers = Timers[int]()
    timers.set(0, 0.0)  # so that nothing else surfaces
    for i in range(10_000):
        timers.set(1, 1.0 + i)
    assert len(timers._heap) <= 2 * 2 + SLACK + 1
    assert timers.due(FOREVER) == [0, 1]


def test_keys_of_one_moment_come_in_the_order_in_which_they_were_set() -> None:
    timers = Timers[int]()
    for key in (3, 1, 2, 0):
        timers.set(key, 1.0)
    assert [timers.take() for _ in range(4)] == [3, 1, 2, 0]
    with pytest.raises(IndexError):
        timers.take()


def test_a_peer_that_left_is_never_due_again() -> None:
    sim = Simulation()
    links = sim.nodes[0].links
    assert links is not None and links.deadline < FOREVER
    links.set_peers({}, sim.now)
    assert links.deadline == FOREVER
    assert links.tick(sim.now + 1000.0) == []


def test_what_a_datagram_costs_does_not_grow_with_the_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver asks for the deadline after every datagram."""
    asked = Counter[str]()
    real = vars(PskState)["deadline"]

    def counted(state: PskState) -> float:
        asked["deadline"] += 1
        return float(real.fget(state))

    def cost(peers: int) -> int:
        me, other = identities(2)
        links = Links(
            node_id=me.node_id, wg_keys=[bytes([i]) * 32 for i in range(7)], admission=ADMISSION,
            kem=CryptographyKem(), random=random.Random(1).randbytes, now=0.0,
        )  # fmt: skip
        ids = [bytes([255]) * 12 + i.to_bytes(4) for i in range(peers)]
        theirs = {n: PeerAuth(n, other.public_key, FOREVER, tuple(bytes(7)), ()) for n in ids}  # type: ignore[arg-type]
        links.set_peers(theirs, 0.0)
        links.tick(0.5)  # starts with all of them: no endpoint is known
        asked.clear()
        key = keys.member_mac_key(ADMISSION, me.node_id)
        for i in range(100):
            now = 0.6 + i / 1000
            fragment = wire.Fragment(
                Kind.RESP, Mode.MEMBER, 0, 5, 5079, os.urandom(8), bytes(wire.CHUNK_SIZE)
            )
            links.receive(fragment.encode(key, bytes(16)), Address("192.0.2.1", 1), now)
            assert now < links.deadline < FOREVER
            links.tick(now)
        return asked["deadline"]

    monkeypatch.setattr(PskState, "deadline", property(counted))
    assert cost(1000) == cost(1) == 0
