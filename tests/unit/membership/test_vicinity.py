# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a node probes and tells news where the mesh has regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from phantommesh.membership.messages import State
from phantommesh.membership.table import Down, Snapshot, Table
from phantommesh.membership.vicinity import BEYOND, LEAST, LOOK, Vicinity
from phantommesh.node.regions import nearness
from phantommesh.records.record import sign_record
from phantommesh.records.roster import Roster
from phantommesh.trust.revocations import Revocations
from tests.simulation.gossip_sim import claim, node_id
from tests.support.makemesh import NOW, identity, make_mesh, plain_record

OWN = node_id(0)


def table_of(count: int) -> Table:
    return Table(Snapshot(claim(i) for i in range(count)))


def within(count: int) -> Callable[[bytes], bool]:
    """The first so many are near."""
    near = {node_id(i) for i in range(count)}
    return lambda node: node in near


def test_each_of_the_region_is_probed_once_a_round_and_the_others_in_one_of_so_many_turns() -> None:
    table, near = table_of(60), within(20)
    vicinity, rng = Vicinity(near), Random(1)
    assert vicinity.split(table, OWN, 0.0)
    turns = [vicinity.next(table, rng) for _ in range(BEYOND * 19)]
    inside = [node for node in turns if node is not None and near(node)]
    assert len(turns) - len(inside) == 19
    assert len(set(inside[:19])) == 19 and set(Counter(inside).values()) == {19}
    outside = [node for node in turns if node is not None and not near(node)]
    assert len(set(outside)) == 19 and OWN not in turns


@given(st.integers(1, 30), st.integers(0, 30), st.sets(st.integers(1, 59)), st.randoms(use_true_random=False))
def test_nobody_who_is_down_is_drawn_and_a_lone_node_talks_to_all(
    near: int, far: int, down: set[int], rng: Random
) -> None:
    table, vicinity = table_of(near + far), Vicinity(within(near))
    for index in down:
        if index < near + far:
            table.put_down(node_id(index), Down(State.DEAD, claim(index)[16:25], 0.0))
    assert vicinity.split(table, OWN, 0.0) == (near - 1 >= LEAST and far > 0)
    if vicinity.split(table, OWN, 0.0):
        for _ in range(50):
            for node in (vicinity.next(table, rng), vicinity.draw(table, rng)):
                assert node is None or (node not in table.down and node != OWN)


def test_a_member_that_comes_is_seen_at_once_and_one_that_moves_a_little_later() -> None:
    table, there = table_of(9), {node_id(i) for i in range(5)}
    vicinity = Vicinity(lambda node: node in there)
    assert vicinity.split(table, OWN, 0.0)
    there |= {node_id(i) for i in range(9)}
    assert vicinity.split(table, OWN, LOOK / 2)
    assert not vicinity.split(table, OWN, LOOK)
    table.put(claim(40))
    assert vicinity.split(table, OWN, LOOK)


def test_without_regions_nothing_is_split() -> None:
    assert not Vicinity(None).split(table_of(9), OWN, 0.0)
    assert nearness("", lambda node: None) is None


def test_a_member_is_near_by_its_own_word_or_for_want_of_one() -> None:
    mesh = make_mesh()
    roster = Roster(mesh.root, Revocations(mesh.root))
    for name, region in (("a", "eu"), ("b", "us"), ("c", "")):
        one = identity(name)
        record = structs.replace(plain_record(one), region=region)
        roster.add(sign_record(one, record, mesh.certify(one, name), mesh.authority.der), NOW)
    near = nearness("eu", roster.get)
    assert near is not None
    assert [near(identity(name).node_id) for name in "abcd"] == [True, False, True, True]
