# SPDX-License-Identifier: GPL-3.0-or-later
"""Two sets of ids find what either lacks; what a liar answers costs a bounded amount."""

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.idtree import (
    DIGEST_BYTES,
    FEW,
    ID_BYTES,
    MAX_DEPTH,
    MAX_LISTED,
    PARTS,
    IdTree,
    IdTreeError,
    parse_differing_untrusted,
)

# Ids that often share a beginning, so that parts are uneven.
IDS = st.builds(
    lambda start, rest: (bytes(start) + rest)[:ID_BYTES],
    st.lists(st.sampled_from([0, 1, 255]), max_size=5),
    st.binary(min_size=ID_BYTES, max_size=ID_BYTES),
)


def tree(*ids: bytes) -> IdTree:
    made = IdTree()
    for one in ids:
        made.add(one)
    return made


def pull(mine: IdTree, theirs: IdTree, rounds: int = 100_000) -> tuple[set[bytes], int]:
    """What `asking.revocations` does, without its budget: the ids found, and in how many questions."""
    look, found, asked = [b""], set[bytes](), 0
    while look and asked < rounds:
        prefix = look.pop()
        answer = theirs.differing(prefix, mine.parts(prefix))
        assert len(answer) <= PARTS // 8 + MAX_LISTED * ID_BYTES
        apart = parse_differing_untrusted(prefix, answer)
        look += apart.closer
        found.update(mine.lacking(apart.ids))
        asked += 1
    return found, asked


@settings(max_examples=200, deadline=None)
@given(st.sets(IDS, max_size=300), st.sets(IDS, max_size=300), st.sets(IDS, max_size=300))
def test_each_finds_exactly_what_it_lacks(both: set[bytes], a: set[bytes], b: set[bytes]) -> None:
    one, other = tree(*both, *a), tree(*both, *b)
    assert pull(one, other)[0] == set(both | b) - set(both | a)
    assert (one.digest() == other.digest()) == (both | a == both | b)
    for lacked in pull(one, other)[0]:
        one.add(lacked)
    for lacked in pull(other, one)[0]:
        other.add(lacked)
    assert one.digest() == other.digest()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), IDS), max_size=60))
def test_a_tree_is_a_set_whatever_its_history(steps: list[tuple[bool, bytes]]) -> None:
    made, model = IdTree(), set[bytes]()
    for put, one in steps:
        (made.add if put else made.discard)(one)
        (model.add if put else model.discard)(one)
        made.digest()  # so that stale digests would show
    assert len(made) == len(model) and all(one in made for one in model)
    assert made.digest() == tree(*model).digest()
    assert made.parts(b"") == tree(*model).parts(b"")


def test_a_few_that_lack_among_a_hundred_thousand_are_found_in_a_few_questions() -> None:
    rng = random.Random(1)
    many = [rng.randbytes(ID_BYTES) for _ in range(100_000)]
    mine, theirs = IdTree(), IdTree()
    mine._ids, theirs._ids = sorted(many[3:]), sorted(many)
    found, asked = pull(mine, theirs)
    assert found == set(many[:3]) and asked <= 4


def test_ids_ground_to_one_beginning_cost_their_maker_alone() -> None:
    start = b"\7" * (MAX_DEPTH + 1)
    ground = [start + hashlib.sha256(bytes([i & 255, i >> 8])).digest()[:12] for i in range(2 * MAX_LISTED)]
    honest = [hashlib.sha256(bytes([i])).digest()[:ID_BYTES] for i in range(FEW)]
    found, asked = pull(IdTree(), tree(*ground, *honest))
    assert set(honest) <= found and len(found) == FEW + MAX_LISTED
    assert asked <= 1 + MAX_DEPTH


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=4).filter(lambda p: len(p) <= MAX_DEPTH), st.binary(max_size=200))
def test_junk_is_no_difference(prefix: bytes, data: bytes) -> None:
    try:
        apart = parse_differing_untrusted(prefix, data)
    except IdTreeError:
        return
    assert len(apart.closer) <= PARTS and len(apart.ids) <= MAX_LISTED
    assert all(one.startswith(prefix) and len(one) == ID_BYTES for one in apart.ids)
    assert all(len(one) == len(prefix) + 1 <= MAX_DEPTH for one in apart.closer)


def test_odd_questions_are_refused() -> None:
    full = bytes(PARTS * DIGEST_BYTES)
    for prefix, parts in ((b"", b""), (b"", full[1:]), (bytes(MAX_DEPTH + 1), full)):
        with pytest.raises(IdTreeError):
            tree(bytes(ID_BYTES)).differing(prefix, parts)
