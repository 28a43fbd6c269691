# SPDX-License-Identifier: GPL-3.0-or-later
"""Membership and roster agree on who there is, also where membership has forgotten somebody."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.control.asking import Fetching
from phantommesh.endpoint import Address
from phantommesh.gossip.acquaintance import MAX_ADDRESSES, MAX_LOST, Acquaintance, LastAddresses
from phantommesh.membership.effects import Changed, Effect, FetchRecord
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import GOSSIP, NOBODY, Event, State, encode
from phantommesh.records.record import SignedRecord, sign_record
from phantommesh.records.roster import Roster
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, identity, make_mesh, plain_record

MESH = make_mesh()
ME, OTHER = identity("me"), identity("other")
CERTS = {node.node_id: MESH.certify(node, name) for node, name in ((ME, "me"), (OTHER, "other"))}
HERE = Address("192.0.2.7", 51800)


def signed(seq: int) -> SignedRecord:
    return sign_record(OTHER, plain_record(OTHER, seq), CERTS[OTHER.node_id], MESH.authority.der)


class Told:
    """A roster, and a membership that is told of it. Time on both clocks is ``now``."""

    def __init__(self) -> None:
        self.roster = Roster(MESH.root, Revocations(MESH.root))
        self.membership = Membership(
            node=ME.node_id, generation=1, record_seq=1, record_hash=bytes(16), rng=random.Random(1), now=0.0
        )
        self.acquaintance = Acquaintance(
            ME.node_id, self.roster, Revocations(MESH.root), self.membership, Fetching(), told={}
        )

    def add(self, seq: int) -> bytes:
        self.roster.add(signed(seq), NOW)
        list(self.acquaintance.roster_changed(0.0, NOW))
        entry = self.roster.get(OTHER.node_id)
        assert entry is not None
        return entry.hash

    def forget(self) -> None:
        self.membership._probing.verdicts.forget(OTHER.node_id, "purged")
        assert self.membership.member(OTHER.node_id) is None

    def hear(self, seq: int, digest: bytes) -> list[Effect]:
        event = Event(OTHER.node_id, 5, 0, State.ALIVE, seq, digest).encode()
        return self.membership.receive(encode(GOSSIP, bytes(8), OTHER.node_id, NOBODY, [event]), HERE, 0.0)


def wishes(effects: list[Effect]) -> list[FetchRecord]:
    return [effect for effect in effects if isinstance(effect, FetchRecord)]


def test_a_member_that_was_forgotten_is_one_again_when_it_is_heard_of() -> None:
    told = Told()
    digest = told.add(1)
    told.forget()
    list(told.acquaintance.roster_changed(0.0, NOW))  # nobody is brought back by that
    assert told.membership.member(OTHER.node_id) is None
    [wish] = wishes(told.hear(1, digest))
    effects, fetch = told.acquaintance.wished(wish, 0.0, NOW)
    assert not fetch
    assert Changed(OTHER.node_id, None, State.ALIVE, "joined") in effects
    view = told.membership.member(OTHER.node_id)
    assert view is not None and (view.state, view.generation) == (State.ALIVE, 5)


def test_one_that_has_a_newer_record_by_now_is_one_again_and_its_record_is_fetched() -> None:
    told = Told()
    told.add(1)
    told.forget()
    [wish] = wishes(told.hear(2, b"n" * 16))
    assert told.acquaintance.wished(wish, 0.0, NOW).fetch
    assert told.membership.state(OTHER.node_id) is State.ALIVE


def test_a_wish_of_a_stranger_stands() -> None:
    told = Told()
    [wish] = wishes(told.hear(1, b"n" * 16))
    assert told.acquaintance.wished(wish, 0.0, NOW) == ([], True)
    assert told.membership.member(OTHER.node_id) is None


def test_a_record_that_has_run_out_makes_nobody_a_member() -> None:
    told = Told()
    digest = told.add(1)
    told.forget()
    [wish] = wishes(told.hear(1, digest))
    late = NOW + 400 * 86_400
    assert told.acquaintance.wished(wish, 0.0, late) == ([], False)
    assert told.membership.member(OTHER.node_id) is None


# Last addresses.

GONE = Changed(b"x" * 16, State.DEAD, None, "purged")


def lose(last: LastAddresses, number: int) -> bool:
    changed = GONE._replace(node=number.to_bytes(16))
    return last.heard(changed, lambda _: [Address("192.0.2.1", 1 + number), Address("2001:db8::1", 2)])


def test_last_addresses_are_kept_until_the_member_is_there_or_revoked() -> None:
    for after in ("joined", "expelled"):
        last = LastAddresses(random.Random(1))
        assert lose(last, 7)
        assert last.addresses() == [Address("192.0.2.1", 8), Address("2001:db8::1", 2)]
        node = (7).to_bytes(16)
        old, new = (None, State.ALIVE) if after == "joined" else (State.DEAD, None)
        assert not last.heard(Changed(node, State.ALIVE, State.SUSPECT, "suspected"), lambda _: [])
        assert last.heard(Changed(node, old, new, after), lambda _: [])
        assert last.addresses() == [] and not last


def test_one_without_addresses_is_not_kept() -> None:
    last = LastAddresses(random.Random(1))
    assert not last.heard(GONE, lambda _: [])


def test_of_many_some_are_kept_and_they_come_back_from_the_disk() -> None:
    last = LastAddresses(random.Random(1))
    for number in range(500):
        lose(last, number)
    assert len(last) == MAX_LOST
    assert last.heard(GONE, lambda _: [Address("192.0.2.1", 1 + i) for i in range(9)]) in (True, False)
    again = LastAddresses(random.Random(2))
    again.restore(last.encode())
    assert sorted(again.addresses()) == sorted(last.addresses())
    assert len(again.addresses()) <= MAX_LOST * MAX_ADDRESSES


@given(st.binary(max_size=200))
def test_any_bytes_on_disk_are_read_or_refused(data: bytes) -> None:
    last = LastAddresses(random.Random(1))
    try:
        last.restore(data)
    except ValueError:
        return
    assert all(isinstance(node, bytes) for node in last._lost)


@pytest.mark.parametrize("bad", [[[b"short", [["192.0.2.1", 1]]]], [[b"x" * 16, [["a host", 1]]]],
                                 [[b"x" * 16, [["192.0.2.1", 0]]]]])  # fmt: skip
def test_what_cannot_be_an_address_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match=r"last addresses|does not appear"):
        LastAddresses(random.Random(1)).restore(msgspec.msgpack.encode(bad))
