# SPDX-License-Identifier: GPL-3.0-or-later
"""Which statements count, in whatever order they come; how they get from one member to another, in parts."""

import itertools
from collections.abc import Callable
from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.control import asking, messages
from phantommesh.control.channel import MAX_REQUEST
from phantommesh.idtree import ID_BYTES
from phantommesh.trust.certificates import EARLY, TrustError
from phantommesh.trust.identity import NodeId
from phantommesh.trust.issuing import Authority, issue_authority
from phantommesh.trust.revocation import Packed, Revocation, revoke
from phantommesh.trust.revocations import MAX_PART, MAX_PLEA, MAX_STANDING, Revocations
from phantommesh.trust.rootword import MAX_NAMED, RootWord, say
from phantommesh.trust.statements import Held
from tests.support.makemesh import NOW, identity, make_mesh

MESH = make_mesh()
A, B, C = (identity(name).node_id for name in ("mesh first", "second", "third"))
X, Y, Z = (NodeId(bytes([i]) * 16) for i in (1, 2, 3))


@cache
def authority(node: NodeId) -> Authority:
    if node == A:
        return MESH.authority
    label = "second" if node == B else "third"
    key = identity(f"{label} authority")
    return Authority(MESH.root, issue_authority(MESH.root, MESH.root_key, key.spki, node, NOW), key)


def word(*, pardoned: tuple[NodeId, ...] = (), cast_out: tuple[NodeId, ...] = (), last: int = 0) -> RootWord:
    return say(MESH.root_key, pardoned=pardoned, cast_out=cast_out, last=last, now=NOW)


def fresh(*statements: Revocation | RootWord) -> Revocations:
    made = Revocations(MESH.root)
    for one in statements:
        made.add(one, NOW)
    return made


# A pool in which everything happens: two words of the root, statements before, between and after them, by
# authorities that revoke each other, and one that names a word which nobody has.
FIRST = word(pardoned=(X,), cast_out=(C,))
SECOND = word(pardoned=(B,), last=FIRST.number)
POOL: list[Revocation | RootWord] = [
    FIRST,
    SECOND,
    *(
        revoke(authority(by), of, NOW, after=after)
        for by, of in ((A, X), (A, B), (B, A), (B, Y), (C, Z), (C, A), (A, C))
        for after in (b"", FIRST.id, SECOND.id)
    ),
    revoke(authority(B), Z, NOW, after=b"nobody knows it."),
    revoke(authority(A), Y, NOW, origin=C),
]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_all_hold_the_same_in_the_end(data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(POOL), unique_by=id, max_size=12))
    one, other = fresh(*some), Revocations(MESH.root)
    order = data.draw(st.permutations(some))
    while order:  # in parcels
        cut = data.draw(st.integers(1, len(order)))
        other.take(order[:cut], NOW)
        order = order[cut:]
    for each in (one, other):  # whoever has one that names a word has the word, and offers both again
        each.take(some, NOW)
    assert one.digest() == other.digest()
    for each in (one, other):
        again = Revocations.decode(each.encode(), MESH.root, NOW)
        assert (again.digest(), again.nodes) == (each.digest(), each.nodes)


FLOOD: list[Revocation | RootWord] = [
    revoke(authority(B), NodeId(bytes([9, i]) * 8), NOW, after=after, origin=origin)
    for i, (after, origin) in enumerate(itertools.product((b"", FIRST.id, SECOND.id), (b"", A, C)))
]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_full_ones_hold_the_same_when_they_have_exchanged_what_they_hold(data: st.DataObject) -> None:
    pool = [*POOL, *FLOOD]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phantommesh.trust.statements.MAX_OF_AUTHORITY", 3)
        mesh = [Revocations(MESH.root) for _ in range(3)]
        for each in mesh:
            some = data.draw(st.lists(st.sampled_from(pool), unique_by=id, max_size=20))
            for one in some:
                each.add(one, NOW)
        for each, other in [*itertools.permutations(mesh, 2)] * 2:
            each.take([*other.words, *other], NOW)
        assert len({each.digest() for each in mesh}) == 1
        again = mesh[0].copy()
        assert not again.take([*mesh[1].words, *mesh[1]], NOW) and again.nodes == mesh[0].nodes
        assert Revocations.decode(mesh[0].encode(), MESH.root, NOW).digest() == mesh[0].digest()


@settings(max_examples=40, deadline=None)
@given(st.permutations([one for one in POOL if isinstance(one, Revocation) and one.node_id not in (A, B, C)]))
def test_where_no_authority_is_revoked_all_agree_on_who_is(order: list[Revocation]) -> None:
    assert fresh(*order, FIRST, SECOND, *order).nodes == fresh(FIRST, SECOND, *reversed(order)).nodes


def test_of_what_comes_at_one_time_the_revocations_of_authorities_are_first() -> None:
    """So one that was away does not take a rogue at its last word."""
    its, of_it = revoke(authority(B), X, NOW - 9), revoke(authority(A), B, NOW)
    for parcel in itertools.permutations([its, of_it]):
        held = Revocations(MESH.root)
        held.take(parcel, NOW)
        assert held.nodes == {B} and held.moot == {X}
        held.add(word(cast_out=(B,)), NOW)
        assert held.nodes == {B} and held.moot == frozenset()


def test_what_an_authority_rightly_revoked_stands_when_it_is_revoked() -> None:
    """The authority that revokes it takes its revocation over: so that stands also with members that hear of
    the new one first."""
    held = fresh(revoke(authority(B), X, NOW - 9))
    signed = held.sign(authority(A), B, NOW)
    assert [(one.node_id, one.at, one.origin) for one in signed] == [
        (X, int(NOW) - 9, B),
        (B, int(NOW), b""),
    ]
    held.take(signed, NOW)
    other = Revocations(MESH.root)
    other.take([*signed, revoke(authority(B), X, NOW - 9), revoke(authority(B), Y, NOW - 9)], NOW)
    assert held.nodes == other.nodes == {X, B}
    cast = word(cast_out=(B,))
    held.add(cast, NOW)  # and the root voids that with the rest of the rogue's
    assert held.nodes == {B} and list(held) == [one for one in signed if one.node_id == B]


def test_the_last_of_the_roots_words_counts_in_whatever_order_they_come() -> None:
    first = word(cast_out=(B,))
    second = word(pardoned=(B,), last=first.number)
    third = word(cast_out=(B,), last=second.number)
    for order in itertools.permutations([first, second, third]):
        assert fresh(*order).nodes == {B}
    for order in itertools.permutations([first, second]):
        assert fresh(*order).nodes == frozenset()
    # what it signed while it was out stays void, what it signs when it is back counts
    while_out = revoke(authority(B), X, NOW, after=first.id)
    back = revoke(authority(B), Y, NOW, after=second.id)
    pool: list[Revocation | RootWord] = [first, second, while_out, back]
    for mixed in itertools.permutations(pool):
        assert fresh(*mixed, *pool).nodes == {Y}


def test_what_names_a_word_that_is_not_known_is_not_held_without_it() -> None:
    late = revoke(authority(A), X, NOW, after=FIRST.id)
    held = fresh(late)
    assert held.nodes == frozenset() and list(held) == [] and held.digest() == fresh().digest()
    held.take([late, FIRST], NOW)  # whoever has it has the word, too
    assert held.nodes == {X, C}
    theirs, mine = fresh(FIRST, late), Revocations(MESH.root)
    for ids in (lambda: [late.id], lambda: [late.id, FIRST.id]):  # it lists that one first, or not the word
        mine = Revocations(MESH.root)

        def reply(request: object, ids: Callable[[], list[bytes]] = ids) -> messages.Answer:
            if isinstance(request, messages.CompareRevocations):
                return messages.RevocationsDiffer(bytes(32) + b"".join(ids()))
            return answer(theirs, request)

        came = hold(mine, reply)
        assert mine.take([one for data in came for one in mine.unpack(data)], NOW)
        assert mine.digest() == theirs.digest()


def test_only_the_root_speaks_for_the_root() -> None:
    for change in (
        {"number": FIRST.number + 1},
        {"pardoned": ()},
        {"cast_out": (X,)},
        {"signature": bytes(3309)},
        {"signature": b""},
        {"number": -1},
        {"number": 2**64},
        {"pardoned": (b"short",)},
        {"pardoned": (bytes(16),) * (MAX_NAMED + 1)},
    ):
        held = Revocations(MESH.root)
        with pytest.raises(TrustError):
            held.add(msgspec.structs.replace(FIRST, **change), NOW)
        assert len(held.words) == 0
    by_authority = say(MESH.authority.key, pardoned=(X,), cast_out=(), last=0, now=NOW)
    with pytest.raises(TrustError, match="not signed by the root"):
        Revocations(MESH.root).add(by_authority, NOW)
    # names cannot be moved from one list to the other
    moved = msgspec.structs.replace(FIRST, pardoned=(X, C), cast_out=())
    with pytest.raises(TrustError):
        Revocations(MESH.root).add(moved, NOW)


def test_a_date_ahead_of_its_time_is_refused_but_not_on_our_own_disk() -> None:
    ahead = revoke(authority(A), X, NOW + EARLY + 2)
    with pytest.raises(TrustError, match="ahead of its time"):
        fresh(ahead)
    held = Revocations(MESH.root)
    held.add(ahead, NOW + 9)
    assert X in Revocations.decode(held.encode(), MESH.root, NOW)  # the clock went back meanwhile


def test_a_list_of_a_version_before_is_read() -> None:
    old = [revoke(authority(A), one, NOW) for one in (X, Y)]
    data = msgspec.msgpack.encode([(one.node_id, one.at, one.signature, one.authority_cert) for one in old])
    assert Revocations.decode(data, MESH.root, NOW).nodes == {X, Y}
    assert len(Revocations.decode(msgspec.msgpack.encode([]), MESH.root, NOW)) == 0


def test_what_one_authority_can_fill_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of its statements go is the same on every node; those of others stay."""
    monkeypatch.setattr("phantommesh.trust.statements.MAX_OF_AUTHORITY", 5)
    flood = [revoke(authority(B), NodeId(bytes([9, i]) * 8), NOW) for i in range(9)]
    honest = revoke(authority(A), X, NOW)
    one, other = fresh(honest, *flood), fresh(*reversed(flood), honest)
    third = Revocations(MESH.root)
    third.take([*flood, honest], NOW)
    assert one.digest() == other.digest() == third.digest()
    assert one.nodes == other.nodes == third.nodes and len(one) == 6 and X in one


def test_a_full_list_is_made_room_in_by_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.trust.revocations.MAX_REVOCATIONS", 3)
    held = fresh(*(revoke(authority(B), NodeId(bytes([i]) * 16), NOW) for i in range(3)))
    with pytest.raises(TrustError, match="too many") as caught:
        held.add(revoke(authority(A), B, NOW), NOW)
    assert "--undo-all" in caught.value.fix
    held.add(word(cast_out=(B,)), NOW)
    assert held.nodes == {B}
    held.take(held.sign(authority(A), X, NOW), NOW)
    assert held.nodes == {B, X}


# --- in parts, from member to member


def answer(server: Revocations, request: object) -> messages.Answer:
    match request:
        case messages.CompareRevocations(prefix, parts):
            return messages.RevocationsDiffer(server.tree.differing(prefix, parts))
        case messages.FetchRevocations(ids, certs):
            return messages.SomeRevocations(server.pack(ids, certs))
    raise AssertionError(request)


def hold(
    client: Revocations, reply: Callable[[object], messages.Answer], sizes: list[int] | None = None
) -> list[bytes]:
    """One conversation: what came."""
    talk = asking.revocations(client)
    step = next(talk)
    try:
        while True:
            assert not isinstance(step, asking.Keep)
            asked = messages.encode(step)
            assert len(asked) < MAX_REQUEST
            said = messages.encode(reply(messages.decode_request_untrusted(asked)))
            if sizes is not None:
                sizes.append(len(said))
            step = talk.send(messages.decode_answer_untrusted(said))
    except StopIteration as end:
        came: list[bytes] = end.value
        return came


def unsigned(count: int) -> Revocations:
    """So many statements, as if each had been verified: signing and verifying them takes a second a
    thousand."""
    held = Revocations(MESH.root)
    held.add(revoke(authority(A), X, NOW), NOW)
    template = next(iter(held))
    for number in range(1, count):
        one = msgspec.structs.replace(template, node_id=number.to_bytes(16))
        key = held._authorities[one.authority_cert]
        held._hold(Held(one, key[1], one.id))
    return held


def test_five_thousand_go_over_in_small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, mine, sizes, talks = unsigned(5_000), Revocations(MESH.root), list[int](), 0
    mine.add(revoke(authority(A), Y, NOW), NOW)
    key = mine._authorities[authority(A).der]
    monkeypatch.setattr(Revocations, "_verify", lambda self, one, now: Held(one, key[1], one.id))
    while mine.tree.digest() != theirs.tree.digest():
        before = len(list(mine))
        came = hold(mine, lambda request: answer(theirs, request), sizes)
        if not mine.take((one for data in came for one in mine.unpack(data)), NOW):
            break
        assert len(list(mine)) - before <= asking.MAX_STATEMENTS
        talks += 1
    assert theirs.nodes <= mine.nodes
    assert max(sizes) < MAX_PART + 6_000
    assert talks <= 6
    assert sum(sizes) < 5_000 * 3_800  # the authority's certificate was sent a few times, not 5,000 times


def test_a_few_that_lack_come_in_one_conversation() -> None:
    theirs = fresh(
        FIRST, *(revoke(authority(A), NodeId(bytes([i]) * 16), NOW, after=FIRST.id) for i in range(9))
    )
    mine = fresh(*list(theirs)[:4])
    came = hold(mine, lambda request: answer(theirs, request))
    assert mine.take([one for data in came for one in mine.unpack(data)], NOW)
    assert (mine.digest(), mine.nodes) == (theirs.digest(), theirs.nodes)
    assert hold(mine, lambda request: answer(theirs, request)) == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_member_that_answers_nonsense_costs_a_bounded_amount(data: st.DataObject) -> None:
    theirs, asked = fresh(*POOL[:9]), 0
    ids = st.binary(min_size=ID_BYTES, max_size=ID_BYTES)

    def lie(request: object) -> messages.Answer:
        nonlocal asked
        asked += 1
        match request:
            case messages.CompareRevocations(prefix, _):
                honest = theirs.tree.differing(prefix, bytes(4096))
                made_up = b"".join((prefix + one)[:ID_BYTES] for one in data.draw(st.lists(ids, max_size=40)))
                junk = data.draw(st.sampled_from([b"\xff" * 32 + made_up, honest, made_up, b"\xff" * 32]))
                return messages.RevocationsDiffer(junk)
            case messages.FetchRevocations(wanted, _):
                return messages.SomeRevocations(
                    data.draw(st.sampled_from([theirs.pack(wanted), theirs.encode(), b"junk", b""]))
                )
        raise AssertionError(request)

    try:
        came = hold(Revocations(MESH.root), lie)
    except asking.AskingError:
        came = []
    assert asked <= asking.MAX_COMPARED + asking.MAX_STATEMENTS
    assert len(came) <= asking.MAX_STATEMENTS


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.builds(
    msgspec.msgpack.encode,
    st.builds(
        Packed, st.integers(0, 3), st.just([]), st.lists(st.binary(max_size=8), max_size=2),
        st.lists(st.tuples(st.binary(max_size=17), st.integers(-9, 2**64), st.binary(max_size=9),
                           st.integers(-2, 3), st.binary(max_size=17), st.binary(max_size=17)), max_size=3),
    ).filter(lambda packed: all(row[1] < 2**64 for row in packed.rows)),
)))  # fmt: skip
def test_junk_is_no_list(data: bytes) -> None:
    held = Revocations(MESH.root)
    for read in (held.unpack, lambda data: Revocations.decode(data, MESH.root, NOW)):
        try:
            read(data)
        except TrustError:
            continue


def test_what_strangers_are_told_is_small() -> None:
    words = [
        word(pardoned=tuple(NodeId(bytes([i, 100 + k]) * 8) for k in range(100)), last=int(NOW) + i)
        for i in range(40)
    ]
    held = fresh(*words, revoke(authority(A), X, NOW, after=words[0].id))
    assert 0 < len(held.plea()) <= MAX_PLEA
    assert 0 < len(held.standing(X)) <= MAX_STANDING
    assert Revocations(MESH.root).standing(X) == Revocations(MESH.root).plea() == b""
    heard = Revocations(MESH.root)
    heard.take(heard.unpack(held.standing(X)), NOW)
    assert X in heard


def test_a_joiner_gets_authorities_and_the_newest_first() -> None:
    held = unsigned(300)
    held.take(held.sign(authority(A), B, NOW), NOW)
    held.add(revoke(authority(B), Y, NOW), NOW)  # so that it is known for an authority
    limit = 100_000
    some = held.encode(limit)
    assert len(some) <= limit
    rows = msgspec.msgpack.decode(some, type=Packed).rows
    assert rows[-2][0] == B and rows[-3][0] == (299).to_bytes(16) and 10 < len(rows) < 300
    assert len(msgspec.msgpack.decode(held.encode(), type=Packed).rows) == 302


def test_size_of_a_statement_without_its_certificate() -> None:
    held = unsigned(1_001)
    assert (len(held.encode()) - len(unsigned(1).encode())) / 1_000 < 3_400
