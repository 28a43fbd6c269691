# SPDX-License-Identifier: GPL-3.0-or-later
"""Two rosters meet. Records are signed once and drawn from by Hypothesis."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.errors import PhantomMeshError
from phantommesh.records.antientropy import (
    BUCKETS,
    AntiEntropyError,
    buckets,
    differing,
    parse_difference_untrusted,
    records,
    surplus,
    wanted,
)
from phantommesh.records.record import SignedRecord, sign_record
from phantommesh.records.roster import Roster
from phantommesh.trust.certificates import NODE_LIFE
from phantommesh.trust.identity import Identity
from phantommesh.trust.revocation import revoke
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, identity, make_mesh, plain_record

MESH = make_mesh()
NODES = [identity(f"node {i}") for i in range(6)]


def says(node: Identity, seq: int, version: str, cert: bytes) -> SignedRecord:
    record = msgspec.structs.replace(plain_record(node, seq), version=version)
    return sign_record(node, record, cert, MESH.authority.der)


def words(index: int, node: Identity) -> list[SignedRecord]:
    """Three records of a node, and a second one with the number 2; two of one text, signed twice."""
    cert = MESH.certify(node, f"node-{index}")
    return [says(node, seq, text, cert) for seq, text in ((1, "a"), (2, "a"), (2, "b"), (3, "a"), (3, "a"))]


WORDS = [words(i, node) for i, node in enumerate(NODES)]
EVERY = [signed for held in WORDS for signed in held]
FORGED = [msgspec.structs.replace(signed, signature=bytes(3309)) for signed in EVERY[::7]]


def roster(given: list[SignedRecord]) -> Roster:
    made = Roster(MESH.root, Revocations(MESH.root))
    for signed in given:
        made.add(signed, NOW)
    return made


def take(held: Roster, encoded: list[bytes]) -> None:
    for data in encoded:
        held.add(SignedRecord.decode_untrusted(data), NOW)


def meet(asker: Roster, answerer: Roster) -> int:
    """One round from the asker's side, as two nodes would; return how many messages it took."""
    if buckets(asker, NOW) == buckets(answerer, NOW):
        return 0  # what gossip carries: no message at all
    answer = differing(answerer, buckets(asker, NOW), NOW)
    difference = parse_difference_untrusted(answer)
    messages = 2
    theirs = surplus(asker, difference, NOW)
    if hashes := wanted(asker, difference):
        take(asker, records(answerer, hashes, NOW))
        messages += 2
    if theirs:
        take(answerer, [signed.encode() for signed in theirs])
        messages += 2
    return messages


drawn = st.lists(st.integers(0, len(EVERY) - 1), max_size=12)  # by number: a record is long to print


def holding(numbers: list[int]) -> Roster:
    return roster([EVERY[i] for i in numbers])


@settings(max_examples=60, deadline=None)
@given(drawn, drawn)
def test_any_two_rosters_agree_after_one_meeting(mine: list[int], theirs: list[int]) -> None:
    a, b = holding(mine), holding(theirs)
    lies = [
        entry.member.node_id
        for entry in a
        if (other := b.get(entry.member.node_id)) is not None
        and other.record.seq == entry.record.seq
        and other.signed.body != entry.signed.body
    ]
    assert meet(a, b) <= 6
    assert a.digest() == b.digest() == holding(mine + theirs).digest()
    assert meet(b, a) == 0
    for node_id in lies:
        assert node_id in a.equivocations and node_id in b.equivocations


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(12)))
def test_the_order_does_not_matter(order: list[int]) -> None:
    """Forged records among them change nothing; no number ever falls."""
    held = Roster(MESH.root, Revocations(MESH.root))
    heights: dict[bytes, int] = {}
    for number in order:
        held.add(EVERY[number], NOW)
        for entry in held:
            assert entry.record.seq >= heights.get(entry.member.node_id, 0)
            heights[entry.member.node_id] = entry.record.seq
        before = held.digest()
        with pytest.raises(PhantomMeshError):
            held.add(FORGED[number % len(FORGED)], NOW)
        assert held.digest() == before
    assert held.digest() == roster(EVERY[:12]).digest()
    assert heights[NODES[0].node_id] == 3


@settings(max_examples=20, deadline=None)
@given(st.lists(drawn, min_size=3, max_size=4), st.data())
def test_several_rosters_agree_by_pairs(given_: list[list[int]], data: st.DataObject) -> None:
    rosters = [holding(one) for one in given_]
    pairs = [(a, b) for a in range(len(rosters)) for b in range(len(rosters)) if a < b]
    for _ in range(2):
        for a, b in data.draw(st.permutations(pairs)):
            meet(rosters[a], rosters[b])
    assert len({held.digest() for held in rosters}) == 1


def test_only_what_differs_travels() -> None:
    a, b = roster([held[3] for held in WORDS]), roster([held[3] for held in WORDS[1:]])
    difference = parse_difference_untrusted(differing(a, buckets(b, NOW), NOW))
    assert difference.buckets == {NODES[0].node_id[0]}
    assert [place.node_id for place in difference.places][0:1] == [NODES[0].node_id]
    assert len(records(a, wanted(b, difference), NOW)) == 1
    assert len(buckets(a, NOW)) == 2048


def test_what_nobody_would_take_is_not_offered() -> None:
    late = NOW + NODE_LIFE + 1
    a, b = roster([WORDS[0][0]]), roster([])
    assert buckets(a, late) == buckets(b, late)
    assert records(a, [entry.hash for entry in a], late) == []


def test_a_revoked_node_is_in_no_difference() -> None:
    revoked = Revocations(MESH.root)
    a = Roster(MESH.root, revoked)
    a.add(WORDS[0][0], NOW)
    revoked.add(revoke(MESH.authority, NODES[0].node_id, NOW), NOW)
    assert buckets(a, NOW) == buckets(roster([]), NOW)


@given(st.binary(max_size=200))
def test_junk_raises_one_error(junk: bytes) -> None:
    try:
        difference = parse_difference_untrusted(junk)
    except AntiEntropyError:
        pass
    else:
        assert all(0 <= bucket < BUCKETS for bucket in difference.buckets)
    with pytest.raises(AntiEntropyError):
        differing(roster([]), junk, NOW)


def test_a_proof_of_equivocation_reaches_who_only_saw_the_record_that_was_kept() -> None:
    liar, (_, first, second, _, _) = NODES[0].node_id, WORDS[0]
    witness, other = roster([first, second]), roster([first])
    kept = witness.equivocations[liar].kept
    late, last = roster([kept]), roster([kept])
    assert witness.digest() == late.digest() == last.digest()
    meet(late, witness)  # the asker had not seen it
    meet(late, last)  # the answerer had not
    meet(other, last)  # has the one that was given up
    for held in (witness, late, last, other):
        assert liar in held.equivocations
        assert meet(held, witness) == 0
