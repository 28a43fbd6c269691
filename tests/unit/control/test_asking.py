# SPDX-License-Identifier: GPL-3.0-or-later
"""The members that a node asks for records, in which order, and how much it looks for at one time."""

from collections.abc import Sequence
from random import Random

import pytest

from phantommesh.control import messages
from phantommesh.control.asking import (
    FETCH_BATCH,
    FETCH_QUEUE,
    FETCHES_PER_SOURCE,
    MAX_UNLINKED,
    PAUSES,
    QUICK,
    AskingError,
    Call,
    CallUnlinked,
    Fetching,
    Keep,
    Pause,
    fetch,
    look_for,
    missing,
    whom,
)
from phantommesh.endpoint import Address
from phantommesh.membership.effects import FetchRecord
from phantommesh.records.record import record_hash
from phantommesh.records.roster import Roster
from phantommesh.trust.identity import NodeId
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, identity, make_mesh

MESH = make_mesh()
A, B, C, D = (identity(name) for name in ("a", "b", "c", "d"))
RECORDS = {node.node_id: MESH.record(node, f"n{i}") for i, node in enumerate((A, B, C, D))}
HOME = Address("192.0.2.1", 51800)


def roster(*nodes: NodeId) -> Roster:
    made = Roster(MESH.root, Revocations(MESH.root))
    for node in nodes:
        made.add(RECORDS[node], NOW)
    return made


def wanted(node: NodeId, source: bytes | Address, hash_: bytes = b"h" * 16, seq: int = 2) -> FetchRecord:
    return FetchRecord(node, seq, hash_, source)


def steps(held: Roster, batch: Sequence[FetchRecord], linked: Sequence[NodeId]) -> list[object]:
    """What is done for records that nobody has: the members asked, the pauses, the addresses."""
    looking = look_for(
        batch, held, member_at=lambda peer: None if isinstance(peer, Address) else NodeId(peer),
        callable=lambda first: sorted(linked, key=lambda n: first.index(n) if n in first else len(first)),
        where=lambda node: (HOME,),
    )  # fmt: skip
    return [step.member if isinstance(step, Call) else step for step in looking]


def test_who_passed_the_news_on_is_asked_again_and_whose_record_it_is_at_the_end() -> None:
    a, b, c, d = A.node_id, B.node_id, C.node_id, D.node_id
    found = steps(roster(a, b, c, d), [wanted(c, b)], [d, b, c])
    assert found == [
        b, d, Pause(PAUSES[1]), b, d, Pause(PAUSES[2]), b, d, Pause(PAUSES[3]), b, c, d,
        CallUnlinked(HOME, [b"h" * 16]),
    ]  # fmt: skip


def test_a_member_that_moved_is_asked_where_it_speaks_before_where_it_was() -> None:
    """Its old address lets the question wait, and in a mesh of two nobody else has its record."""
    a, c, there = A.node_id, C.node_id, Address("192.0.2.9", 51800)
    found = steps(roster(a, c), [wanted(c, there)], [c])
    asked = [step for step in found if not isinstance(step, Pause)]
    assert asked == [CallUnlinked(there, [b"h" * 16], QUICK), CallUnlinked(there, [b"h" * 16]), c]
    assert found.index(asked[1]) < found.index(Pause(PAUSES[-1]))


def test_nobody_else_is_asked_before_whoever_speaks_from_an_unknown_address() -> None:
    """The others may have moved too."""
    there = Address("192.0.2.9", 51800)
    found = steps(roster(A.node_id, B.node_id), [wanted(C.node_id, there)], [A.node_id, B.node_id])
    assert found[0] == CallUnlinked(there, [b"h" * 16], QUICK)


def test_it_ends_as_soon_as_the_records_are_here() -> None:
    held = roster(A.node_id, B.node_id)
    entry = roster(C.node_id).get(C.node_id)
    assert entry is not None
    batch = [wanted(C.node_id, B.node_id, entry.hash, 1)]
    looking = look_for(
        batch, held, member_at=lambda _: B.node_id, callable=lambda _: [B.node_id], where=lambda _: ()
    )
    assert [type(next(looking)), type(next(looking))] == [Call, Pause]
    held.add(RECORDS[C.node_id], NOW)
    assert list(looking) == [] and missing(batch, held) == []


def test_without_any_link_whoever_spoke_is_asked_for_a_few() -> None:
    many = [wanted(NodeId(bytes([i]) * 16), HOME, bytes([i]) * 16) for i in range(40)]
    found = [step for step in steps(roster(), many, []) if not isinstance(step, Pause)]
    few = [one.record_hash for one in many[:MAX_UNLINKED]]
    assert found == [CallUnlinked(HOME, few, QUICK), CallUnlinked(HOME, few)]


def test_a_later_record_than_the_one_wanted_is_as_good() -> None:
    held = roster(A.node_id)
    entry = held.get(A.node_id)
    assert entry is not None and entry.record.seq == 1
    assert missing([wanted(A.node_id, HOME, b"h" * 16, 0)], held) == []
    assert missing([wanted(A.node_id, HOME, b"h" * 16, 1)], held) == [b"h" * 16]  # two with one number
    assert missing([wanted(A.node_id, HOME, entry.hash, 1)], held) == []


def test_one_source_and_all_of_them_can_have_only_so_much_looked_for() -> None:
    looking = Fetching()
    for i in range(3 * FETCHES_PER_SOURCE):
        assert looking.want(wanted(NodeId(b"n" * 16), b"s" * 16, i.to_bytes(16)), 1.0) == (
            i < FETCHES_PER_SOURCE
        )
    for source in range(100):
        for i in range(FETCHES_PER_SOURCE):
            looking.want(wanted(NodeId(b"n" * 16), bytes([source]) * 16, bytes([source, i]) * 8), 2.0)
    assert looking.full and len(looking) == FETCH_QUEUE
    first = looking.batch()
    assert len(first) == FETCH_BATCH
    assert looking.want(wanted(NodeId(b"n" * 16), b"z" * 16, b"z" * 16), 2.0)  # there is room again
    looking.over(looking.batch())
    assert looking.came(first[0].record_hash) == 1.0 and looking.came(first[0].record_hash) is None
    assert not looking.want(first[1], 3.0)  # is being looked for
    looking.over(first)
    assert looking.want(first[1], 3.0)
    while batch := looking.batch():
        looking.over(batch)
    assert len(looking) == 0


def test_the_named_come_first_and_nobody_asks_itself() -> None:
    entries = list(roster(*RECORDS))
    for seed in range(5):
        found = whom(entries, A.node_id, [C.node_id, B.node_id, C.node_id], Random(seed))
        assert found == [C.node_id, B.node_id, D.node_id]


def test_an_answer_of_another_kind_ends_the_conversation() -> None:
    talk = fetch([b"h" * 16])
    assert next(talk) == messages.Fetch((b"h" * 16,))
    with pytest.raises(AskingError):
        talk.send(messages.Done())


def test_of_an_answer_only_what_was_asked_for_is_kept_and_once() -> None:
    encoded = {node: signed.encode() for node, signed in RECORDS.items()}
    a, b, c, d = (encoded[node.node_id] for node in (A, B, C, D))
    talk = fetch([record_hash(RECORDS[A.node_id]), record_hash(RECORDS[C.node_id]), b"h" * 16])
    next(talk)
    assert talk.send(messages.Records((b, a, a, c, d, b"junk", a))) == Keep((a, c), 5)
    with pytest.raises(StopIteration) as end:
        talk.send(1)
    assert end.value.value == 1
