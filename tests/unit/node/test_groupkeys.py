# SPDX-License-Identifier: GPL-3.0-or-later
"""Which group key a node makes, and what is other than before once it has another."""

from __future__ import annotations

import pytest

from phantommesh.node.groupkeys import NOTHING, Change, HeldKeys
from phantommesh.secret import Secret
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.groupkey import NO_KEY, make_group_key
from phantommesh.trust.meshsecret import MeshSecrets
from phantommesh.trust.revocation import revoke
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, identity, make_mesh

MESH = make_mesh()
ME = identity("me").node_id
EVERYTHING = Change(keys=True, secrets=True)


def held(revocations: Revocations | None = None) -> HeldKeys:
    shared = Revocations(MESH.root) if revocations is None else revocations
    return HeldKeys(ME, MESH.root, shared, MeshSecrets(Secret(b"a" * 32)))


def test_a_first_key_is_due_and_is_used_at_once() -> None:
    keys = held()
    assert keys.due(NOW) == 1 and keys.active_id == NO_KEY
    key = make_group_key(MESH.authority, 1, Revocations(MESH.root), NOW)
    assert keys.install(key, 0.0, NOW) == EVERYTHING
    assert keys.active_id == key.id and keys.due(NOW) is None
    assert keys.tick(0.0, NOW) == NOTHING and keys.in_use(key.id, 0.0, NOW) == NOTHING


def test_a_revoked_node_makes_no_key() -> None:
    revocations = Revocations(MESH.root)
    keys = held(revocations)
    assert keys.due(NOW) == 1
    revocations.add(revoke(MESH.authority, ME, NOW), NOW)
    assert keys.due(NOW) is None


def test_what_a_member_gives_out_is_taken_in_and_sent_with_as_it_does() -> None:
    giver, taker, revocations = held(), held(), Revocations(MESH.root)
    first, second = (make_group_key(MESH.authority, epoch, revocations, NOW) for epoch in (1, 2))
    giver.install(first, 0.0, NOW)
    assert taker.merge(giver.encode(), giver.active_id, 0.0, NOW) == (True, [], EVERYTHING)
    giver.install(second, 0.0, NOW)
    merged = taker.merge(giver.encode(), second.id, 0.0, NOW)
    assert merged.new and taker.active_id == second.id
    assert taker.merge(giver.encode(), second.id, 0.0, NOW) == (False, [], NOTHING)
    assert taker.digest() == giver.digest()


def test_the_keys_on_disk_are_those_of_the_next_start() -> None:
    before, after = held(), held()
    before.install(make_group_key(MESH.authority, 1, Revocations(MESH.root), NOW), 0.0, NOW)
    after.restore(before.ring.encode(), 0.0, NOW)
    assert after.active_id == before.active_id and after.secrets.newest == before.secrets.newest
    with pytest.raises(TrustError):
        held().restore(b"damaged", 0.0, NOW)
