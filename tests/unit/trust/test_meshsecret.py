# SPDX-License-Identifier: GPL-3.0-or-later
"""Which admission secrets count, for how long, and that they follow the group keys."""

from __future__ import annotations

from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.secret import Secret
from phantommesh.trust.certificates import DAY, NODE_LIFE
from phantommesh.trust.groupkey import RETIRE_AFTER, GroupKey, Keyring, make_group_key
from phantommesh.trust.meshsecret import ACCEPT_REPLACED, MAX_REPLACED, MeshSecrets, admission_secret
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, make_mesh

FIRST = Secret(b"f" * 32)


@cache
def key(epoch: int) -> GroupKey:
    mesh = make_mesh()
    return make_group_key(
        mesh.authority, epoch, Revocations(mesh.root), NOW, lambda n: epoch.to_bytes(4) * (n // 4)
    )


def ring(*epochs: int, active: int) -> tuple[list[GroupKey], GroupKey]:
    return [key(epoch) for epoch in epochs], key(active)


def secret(epoch: int) -> Secret:
    return admission_secret(key(epoch))


def test_a_mesh_without_group_keys_uses_what_it_began_with() -> None:
    secrets = MeshSecrets(FIRST)
    assert not secrets.follow([], None, NOW)
    assert (secrets.newest, secrets.current, secrets.replaced) == (FIRST, [FIRST], [])


def test_a_secret_is_received_with_before_it_is_sent_with_and_long_after() -> None:
    secrets = MeshSecrets(FIRST)
    assert secrets.follow(*ring(1, active=1), NOW)
    assert (secrets.newest, secrets.current, secrets.replaced) == (secret(1), [secret(1)], [FIRST])
    assert secrets.follow(*ring(1, 2, active=1), NOW + 1)
    assert (secrets.newest, secrets.current) == (secret(1), [secret(1), secret(2)])
    assert secrets.follow(*ring(1, 2, active=2), NOW + 11)
    assert (secrets.newest, secrets.current) == (secret(2), [secret(2), secret(1)])
    assert secrets.follow(*ring(2, active=2), NOW + 31)
    assert (secrets.current, secrets.replaced) == ([secret(2)], [secret(1), FIRST])
    assert not secrets.follow(*ring(2, active=2), NOW + 31)
    assert ACCEPT_REPLACED == NODE_LIFE + DAY
    assert secrets.follow(*ring(2, active=2), NOW + ACCEPT_REPLACED)
    assert secrets.replaced == [secret(1)]
    assert secrets.follow(*ring(2, active=2), NOW + 31 + ACCEPT_REPLACED) and secrets.replaced == []


def test_of_too_many_the_one_in_use_for_the_shortest_time_goes() -> None:
    """A burst of revocations within a minute must not shut out who slept since yesterday."""
    secrets, now = MeshSecrets(FIRST), NOW
    for epoch in range(1, 6):
        now += 3600.0
        secrets.follow(*ring(epoch, active=epoch), now)
    now += 3600.0
    for epoch in range(6, 60):
        now += 2.0
        secrets.follow(*ring(epoch, active=epoch), now)
    assert len(secrets.replaced) == MAX_REPLACED
    assert all(secret(epoch) in secrets.replaced for epoch in range(1, 6))
    assert secrets.newest == secret(59)


def test_what_is_on_disk_comes_back_and_a_bare_secret_too() -> None:
    secrets = MeshSecrets(FIRST)
    secrets.follow(*ring(1, active=1), NOW)
    secrets.follow(*ring(1, 2, active=2), NOW + 5)
    secrets.follow(*ring(2, 3, active=2), NOW + 25)
    again = MeshSecrets.decode(secrets.encode())
    again.follow(*ring(2, 3, active=2), NOW + 30)
    assert (again.newest, again.current, again.replaced) == (
        secrets.newest, secrets.current, secrets.replaced,
    )  # fmt: skip
    assert MeshSecrets.decode(FIRST.reveal()).current == [FIRST]
    for bad in (b"", b"junk", bytes(31), msgspec.msgpack.encode([]), secrets.encode()[:-1]):
        with pytest.raises(ValueError):
            MeshSecrets.decode(bad)
    assert FIRST.reveal() not in repr(secrets).encode() and "***" in repr(next(iter(secrets._held.values())))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 10 * DAY)), max_size=40))
def test_it_follows_a_real_keyring_wherever_that_goes(steps: list[tuple[int, float]]) -> None:
    held, secrets, now, epoch = Keyring(), MeshSecrets(FIRST), 0.0, 0
    for what, wait in steps:
        now += wait if what == 3 else what * RETIRE_AFTER / 2
        if what < 2:
            epoch += 1
            held.install(key(epoch % 40 + 1), now)
        held.tick(now)
        secrets.follow(held.keys, held.active, NOW + now)
        if held.active is None:
            continue
        assert secrets.newest == secrets.current[0] == admission_secret(held.active)
        assert {s.reveal() for s in secrets.current} == {admission_secret(k).reveal() for k in held.keys}
        assert len(secrets.replaced) <= MAX_REPLACED
        assert not {s.reveal() for s in secrets.replaced} & {s.reveal() for s in secrets.current}
        again = MeshSecrets.decode(secrets.encode())
        again.follow(held.keys, held.active, NOW + now)
        assert (again.current, again.replaced) == (secrets.current, secrets.replaced)
