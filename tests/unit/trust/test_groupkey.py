# SPDX-License-Identifier: GPL-3.0-or-later
"""The keyring and the authority's part. The members' clocks and the network's delays are Hypothesis's."""

from dataclasses import dataclass, field
from math import inf

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.node.groupkeys import PATIENCE, KeyTurn
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.groupkey import (
    MAX_AGE,
    MAX_KEYS,
    PROMOTE_AFTER,
    RETIRE_AFTER,
    GroupKey,
    Keyring,
    decode_keys_untrusted,
    encode_keys,
    make_group_key,
    next_epoch,
    take_keys,
    verify_group_key,
)
from phantommesh.trust.revocation import revoke
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, identity, make_mesh

MESH = make_mesh()
NONE = Revocations(MESH.root)
KEY = make_group_key(MESH.authority, 1, NONE, NOW)


def fake(epoch: int, tag: int = 0) -> GroupKey:
    """An unsigned key: the ring verifies nothing."""
    return GroupKey(epoch, bytes(32), 0, bytes([tag]) * 28 + epoch.to_bytes(4), b"", b"")


def ring(*keys: GroupKey, now: float = 0.0) -> Keyring:
    made = Keyring()
    for key in keys:
        made.install(key, now)
    return made


def test_a_made_key_verifies_and_shows_nothing() -> None:
    verify_group_key(KEY, MESH.root, NONE, NOW)
    assert decode_keys_untrusted(encode_keys([KEY])) == [KEY]
    assert KEY.key.hex() not in repr(KEY) + str(KEY)
    assert repr(KEY.key)[2:-1] not in repr(KEY)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 2},
        {"epoch": 0},
        {"epoch": 2**32},
        {"revoked": bytes(32)},
        {"revoked": b""},
        {"made": 5},
        {"made": -1},
        {"key": bytes(32)},
        {"key": b"short"},
        {"signature": bytes(3309)},
        {"authority_cert": make_mesh("else").authority.der},
        {"authority_cert": b"junk"},
    ],
)
def test_a_changed_key_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(TrustError):
        verify_group_key(msgspec.structs.replace(KEY, **change), MESH.root, NONE, NOW)


def test_a_revoked_authoritys_key_is_refused() -> None:
    revoked = Revocations(MESH.root)
    revoked.add(revoke(MESH.authority, identity("mesh first").node_id, NOW), NOW)
    with pytest.raises(TrustError, match="revoked authority"):
        verify_group_key(KEY, MESH.root, revoked, NOW)


def test_junk_is_no_keys() -> None:
    many = [fake(i + 1) for i in range(MAX_KEYS + 1)]
    for data in (b"", b"junk", msgspec.msgpack.encode([1]), encode_keys(many), encode_keys([fake(0)])):
        with pytest.raises(TrustError):
            decode_keys_untrusted(data)


def test_when_an_authority_makes_a_key() -> None:
    keys, revocations = Keyring(), Revocations(MESH.root)
    assert next_epoch(keys, revocations, NOW) == 1
    keys.install(make_group_key(MESH.authority, 1, revocations, NOW), 0.0)
    assert next_epoch(keys, revocations, NOW) is None
    assert next_epoch(keys, revocations, NOW + MAX_AGE) == 2
    revocations.add(revoke(MESH.authority, identity("gone").node_id, NOW), NOW)
    assert next_epoch(keys, revocations, NOW) == 2
    keys.install(make_group_key(MESH.authority, 2, revocations, NOW), 0.0)
    assert next_epoch(keys, revocations, NOW) is None  # though it is not sent with yet


def test_each_authority_gives_those_before_it_time_to_make_the_key() -> None:
    ids = sorted(identity(name).node_id for name in "abc")
    turns = [KeyTurn() for _ in ids]

    def whose(due: bool, now: float) -> list[bool]:
        return [turn.ours(due, mine, ids, now) for turn, mine in zip(turns, ids, strict=True)]

    assert whose(False, 0.0) == [False] * 3
    assert whose(True, 100.0) == [True, False, False]
    assert whose(True, 100.0 + PATIENCE) == [True, True, False]
    assert whose(False, 101.0 + PATIENCE) == [False] * 3  # somebody made it
    assert whose(True, 200.0) == [True, False, False]
    assert whose(True, 200.0 + 2 * PATIENCE) == [True] * 3


def test_keys_of_others_are_taken_in_and_what_does_not_hold_is_left_out() -> None:
    revocations, keys = Revocations(MESH.root), Keyring()
    forged = msgspec.structs.replace(KEY, epoch=9)
    came, refused = take_keys(keys, encode_keys([forged, KEY]), MESH.root, revocations, 0.0, NOW)
    assert came and len(refused) == 1 and keys.keys == [KEY]
    assert take_keys(keys, encode_keys([KEY]), MESH.root, revocations, 0.0, NOW) == (False, [])
    assert take_keys(keys, b"", MESH.root, revocations, 0.0, NOW) == (False, [])
    with pytest.raises(TrustError):
        take_keys(keys, b"junk", MESH.root, revocations, 0.0, NOW)


def test_authorities_that_rotated_apart_agree_on_a_key_that_no_revoked_node_has() -> None:
    """Each revoked another node; each key may be known to the node that the other revoked."""
    rings, sets = [Keyring(), Keyring()], [Revocations(MESH.root), Revocations(MESH.root)]
    for keys, revocations, gone in zip(rings, sets, ("x", "y"), strict=True):
        keys.install(KEY, 0.0)
        revocations.add(revoke(MESH.authority, identity(gone).node_id, NOW), NOW)
        assert next_epoch(keys, revocations, NOW) == 2
        keys.install(make_group_key(MESH.authority, 2, revocations, NOW), 0.0)
        assert next_epoch(keys, revocations, NOW) is None
    for one, other in ((0, 1), (1, 0)):  # the partition heals
        for entry in list(sets[other]):
            sets[one].add(entry, NOW)
        for key in list(rings[other].keys):
            rings[one].install(key, 1.0)
        assert next_epoch(rings[one], sets[one], NOW) == 3
    assert rings[0].newest == rings[1].newest
    last = make_group_key(MESH.authority, 3, sets[0], NOW)
    for keys, revocations in zip(rings, sets, strict=True):
        keys.install(last, 2.0)
        assert next_epoch(keys, revocations, NOW) is None


def test_a_key_is_received_with_before_it_is_sent_with() -> None:
    first, second = fake(1), fake(2)
    keys = ring(first)
    assert keys.active == first
    assert keys.deadline == inf
    keys.install(second, 100.0)
    assert (keys.active, keys.newest, keys.get(second.id)) == (first, second, second)
    assert keys.deadline == 100.0 + PROMOTE_AFTER
    assert not keys.tick(99.0 + PROMOTE_AFTER)
    assert keys.tick(100.0 + PROMOTE_AFTER)
    assert keys.active == second
    assert keys.get(first.id) == first
    assert keys.deadline == 100.0 + PROMOTE_AFTER + RETIRE_AFTER
    assert keys.tick(keys.deadline)
    assert (keys.get(first.id), keys.deadline) == (None, inf)
    assert not keys.install(first, 200.0)  # retired for good


def test_promote_and_retire_by_hand() -> None:
    first, second, third = fake(1), fake(2), fake(3)
    keys = ring(first, second, third)
    assert not keys.retire(first.id)  # it is sent with
    assert not keys.promote(fake(9).id, 0.0)
    assert keys.promote(third.id, 0.0)
    assert not keys.promote(second.id, 0.0)  # never back
    assert keys.retire(first.id)
    assert not keys.retire(first.id)
    assert [key.epoch for key in keys.keys] == [2, 3]


def test_of_two_keys_of_one_epoch_all_choose_the_same() -> None:
    a, b = sorted([fake(2, 1), fake(2, 2)], key=lambda key: key.id)
    for order in ((a, b), (b, a)):
        keys = ring(fake(1), *order)
        keys.tick(PROMOTE_AFTER)
        assert keys.active == b


def test_the_ring_is_bounded_and_keeps_what_it_sends_with() -> None:
    keys = ring(*(fake(epoch) for epoch in range(1, 3 * MAX_KEYS)))
    assert len(keys.keys) == MAX_KEYS
    assert keys.active == fake(1)
    assert keys.newest == fake(3 * MAX_KEYS - 1)


def test_the_ring_survives_a_restart() -> None:
    keys = ring(fake(1))
    keys.install(fake(2), 1.0)
    keys.tick(1.0 + PROMOTE_AFTER)
    keys.install(fake(3), 12.0)
    again = Keyring()
    again.restore(keys.encode(), 0.0)
    assert (again.active, again.keys) == (keys.active, keys.keys)
    again.tick(PROMOTE_AFTER)
    assert again.active == fake(3)
    again.tick(PROMOTE_AFTER + RETIRE_AFTER)
    assert again.keys == [fake(3)]
    final = Keyring()
    final.restore(again.encode(), 0.0)
    assert not final.install(fake(2), 0.0)  # what was retired stays so
    for junk in (b"", b"junk", msgspec.msgpack.encode((b"", b"", []))):
        with pytest.raises(TrustError):
            Keyring().restore(junk, 0.0)


def test_a_full_ring_survives_a_restart_with_the_key_that_joins_it() -> None:
    keys = ring(*(fake(epoch) for epoch in range(1, MAX_KEYS + 1)))
    more = fake(MAX_KEYS + 1)
    again = Keyring()
    again.restore(keys.encode(more), 0.0)
    assert keys.install(more, 0.0)
    assert (again.keys, again.active) == (keys.keys, keys.active)


def test_the_slowest_member_and_the_fastest() -> None:
    """The first to promote and the last are PROMOTE_AFTER apart: each opens what the other sends."""
    fast, slow = ring(fake(1)), ring(fake(1))
    fast.install(fake(2), 0.0)
    slow.install(fake(2), PROMOTE_AFTER - 0.1)
    fast.tick(PROMOTE_AFTER)
    assert fast.active == fake(2)
    assert slow.get(fake(2).id) is not None
    last = 2 * PROMOTE_AFTER - 0.2
    slow.tick(last)
    assert slow.active == fake(1)
    fast.tick(last + FLIGHT)
    assert fast.get(fake(1).id) is not None


FLIGHT = 2.0  # s at most that a datagram is under way


@dataclass
class Member:
    """A keyring, and what is still to reach it: (when, key)."""

    keys: Keyring
    coming: list[tuple[float, GroupKey]] = field(default_factory=list)

    def at(self, now: float) -> None:
        """Let everything happen that is due by now, in its order."""
        while True:
            arrival = min((moment for moment, _ in self.coming), default=inf)
            moment = min(arrival, self.keys.deadline)
            if moment > now:
                return
            if arrival <= self.keys.deadline:
                one = min(self.coming, key=lambda item: item[0])
                self.coming.remove(one)
                self.keys.install(one[1], moment)
            else:
                self.keys.tick(moment)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_rotations_leave_no_gap(data: st.DataObject) -> None:
    """Whatever the delays below PROMOTE_AFTER and however rotations overlap, also two authorities' of one
    epoch: what anyone sends, everyone can open for as long as it may be under way."""
    count = data.draw(st.integers(2, 5), label="members")
    members = [Member(ring(fake(1))) for _ in range(count)]
    instant = st.integers(0, 30).map(float)  # coarse, so that much happens at the edges
    keys = data.draw(
        st.lists(st.tuples(instant, st.integers(2, 4), st.integers(0, 2)), min_size=1, max_size=4),
        label="keys",
    )
    for made, epoch, tag in keys:
        for member in members:
            delay = data.draw(st.sampled_from([0.0, PROMOTE_AFTER / 2, PROMOTE_AFTER - 0.5]))
            member.coming.append((made + delay, fake(epoch, tag)))
    # an authority makes an epoch only after the one before it has reached it: late keys of an old epoch are
    # those of an authority that was cut off, which is another test's
    for member in members:
        member.coming = [item for item in member.coming if not _stale(item[1], keys)]
    events = sorted(
        data.draw(
            st.lists(
                st.tuples(
                    st.integers(0, 70).map(float), st.integers(0, count - 1), st.sampled_from([0.0, FLIGHT])
                ),
                min_size=1,
                max_size=30,
            ),
            label="datagrams",
        )
    )
    flying: list[tuple[float, bytes]] = []
    for sent, who, flight in events:
        for arrived, key_id in sorted(item for item in flying if item[0] <= sent):
            _all_open(members, arrived, key_id)
        flying = [item for item in flying if item[0] > sent]
        members[who].at(sent)
        active = members[who].keys.active
        assert active is not None
        flying.append((sent + flight, active.id))
    for arrived, key_id in sorted(flying):
        _all_open(members, arrived, key_id)


def _stale(key: GroupKey, keys: list[tuple[float, int, int]]) -> bool:
    """Whether the key was made when a later epoch was long in use somewhere."""
    made = min(moment for moment, epoch, tag in keys if fake(epoch, tag) == key)
    return any(epoch > key.epoch and moment + PROMOTE_AFTER <= made for moment, epoch, _ in keys)


def _all_open(members: list[Member], now: float, key_id: bytes) -> None:
    for member in members:
        member.at(now)
        assert member.keys.get(key_id) is not None
