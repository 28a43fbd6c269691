# SPDX-License-Identifier: GPL-3.0-or-later
"""The seven WireGuard key pairs: their file, their ports, and when each is replaced."""

import base64
import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.secret import Secret
from phantommesh.wireguard.keys import MAX_SLOT, SPARE, WgKey, WgKeys
from phantommesh.wireguard.possession import is_seed, new_seed, proves

DAY = 86_400.0


def made_at(*moments: float) -> WgKeys:
    return WgKeys(tuple(WgKey(new_seed(), 0, moment) for moment in moments))


@given(
    st.lists(st.integers(0, MAX_SLOT - 1), min_size=7, max_size=7),
    st.lists(st.none() | st.floats(0, 4e9), min_size=7, max_size=7),
    st.integers(0, 2**62),
)
def test_a_file_of_keys_reads_back(slots: list[int], made: list[float | None], seq: int) -> None:
    keys = WgKeys(tuple(WgKey(new_seed(), slot, when) for slot, when in zip(slots, made, strict=True)), seq)
    assert WgKeys.decode(json.loads(json.dumps(keys.encode()))) == keys
    assert not any(key.seed.reveal().hex() in repr(keys) for key in keys.keys)
    assert not any(repr(key.seed.reveal()) in repr(keys) for key in keys.keys)


@pytest.mark.parametrize("bare", [True, False])
def test_a_file_of_an_earlier_version_reads_as_new_keys_of_unknown_age(bare: bool) -> None:
    """It held private keys, bare or with their ports and ages. No seed is known for these, so no proof."""
    old = WgKeys.generate()
    listed = [base64.b64encode(key.reveal()).decode() for key in old.private]
    written = {"keys": listed, "slots": [0, 1, 2, 3, 4, 5, 6], "made": [1.0] * 7, "seq": 9}
    keys = WgKeys.decode(listed if bare else written)
    assert keys.in_place and not set(keys.public) & set(old.public)
    assert {key.made for key in keys.keys} == {None}
    assert {key.made for key in keys.dated(7.0).keys} == {7.0}
    assert [key.slot for key in keys.keys] == ([0] * 7 if bare else [0, 1, 2, 3, 4, 5, 6])
    assert keys.seq == (0 if bare else 9)
    again = WgKeys.decode(json.loads(json.dumps(keys.encode())))
    assert again == keys and not again.in_place


def test_every_key_is_proved_for_its_dimension_alone() -> None:
    keys, node = WgKeys.generate(), b"n" * 16
    proofs = keys.proofs(node)
    assert proofs == keys.proofs(node)  # else a node's record would change all the time
    for i, (proof, key) in enumerate(zip(proofs, keys.public, strict=True)):
        assert [proves(proof, key, node, j) for j in range(7)] == [i == j for j in range(7)]


good = WgKeys.generate().encode()
odd = next(
    base64.b64encode(bytes([i]) * 32).decode() for i in range(99) if not is_seed(Secret(bytes([i]) * 32))
)


@pytest.mark.parametrize(
    "bad",
    [
        None, 7, [], {}, "x", [1] * 7, good | {"seeds": [*good["seeds"][:6], good["seeds"][0]]},  # type: ignore[index]
        good | {"seeds": good["seeds"][:6]}, good | {"seeds": ["!" * 44] * 7},  # type: ignore[index]
        good | {"seeds": [base64.b64encode(bytes([i]) * 31).decode() for i in range(7)]},
        good | {"seeds": [*good["seeds"][:6], odd]}, good | {"keys": good["seeds"]},  # type: ignore[index]
        ["x"] * 7, {"keys": good["seeds"], "slots": [0] * 7, "made": [None] * 7, "seq": -1},
        good | {"slots": [0] * 6}, good | {"slots": [MAX_SLOT, *[0] * 6]}, good | {"slots": [-1, *[0] * 6]},
        good | {"made": [None] * 8}, good | {"seq": -1}, good | {"seq": "1"}, good | {"more": 1},
    ],
)  # fmt: skip
def test_a_damaged_file_is_a_value_error_that_quotes_nothing(bad: object) -> None:
    with pytest.raises(ValueError) as caught:
        WgKeys.decode(bad)
    assert "=" not in str(caught.value)


def test_replacing_changes_one_dimension_and_its_port() -> None:
    keys = made_at(*[1.0] * 7)
    after = keys.replaced(3, 1, 9.0, 40)
    assert [a == b for a, b in zip(keys.keys, after.keys, strict=True)] == [True] * 3 + [False] + [True] * 3
    assert (after.keys[3].made, after.keys[3].slot, after.seq) == (9.0, 1, 40)
    assert after.ports(100, 2) == (100, 101, 102, 110, 104, 105, 106)
    assert after.ports(100, 1) == tuple(range(100, 107))
    assert len({*keys.ports(100, 2), *after.ports(100, 2)}) == 8
    assert after.replaced(0, 0, 10.0, 5).seq == 40  # never goes back
    assert after.keys[3].public != keys.keys[3].public


@given(st.randoms(use_true_random=False), st.floats(20.0, 30 * DAY))
def test_no_key_outlives_its_time_and_replacements_keep_apart(rng: random.Random, longest: float) -> None:
    keys = made_at(*[0.0] * 7)
    now, replaced = 0.0, []
    for _ in range(40):
        due, dimension = keys.next(longest, rng.uniform(0.75, 1.0))
        assert due <= now + longest * SPARE + 1e-6
        now = max(now, due)
        assert all(now - key.made <= longest for key in keys.keys if key.made is not None)
        keys = keys.replaced(dimension, 0, now, 0)
        replaced.append((now, dimension))
    assert [dimension for _, dimension in replaced[:14]] == [*range(7), *range(7)]
    for (before, _), (after, _) in itertools.pairwise(replaced):
        assert after - before >= longest * SPARE * 0.7


def test_keys_that_are_overdue_are_replaced_at_once() -> None:
    due, dimension = made_at(5.0, 3.0, *[9.0] * 5).next(DAY, 1.0)
    assert (due, dimension) == (min(3.0 + DAY, 9.0 + DAY / 8), 1)
    assert made_at(0.0, 2 * DAY, *[2 * DAY] * 5).next(DAY, 1.0) == (DAY, 0)
