# SPDX-License-Identifier: GPL-3.0-or-later
"""Pacts between two meshes: what both sign together is what members may do, and nothing else is."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import cache

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.secret import Secret
from phantommesh.trust import pacts as held_pacts
from phantommesh.trust.certificates import EARLY, Member, TrustError, verify_chain
from phantommesh.trust.federation import (
    LAST,
    LINE,
    MAX_HALF_BYTES,
    MAX_LIFE,
    FederationInvite,
    Gateway,
    Half,
    Ports,
    Service,
    Terms,
    Who,
    by_id,
    lock_of,
    sign,
    verify,
)
from phantommesh.trust.identity import NodeId
from phantommesh.trust.pacts import MAX_BUNDLE_BYTES, Allowed, Bundle, Pact, Pacts, agree
from tests.support.makemesh import NOW, TestMesh, identity, make_mesh

HERE, THERE = make_mesh("here"), make_mesh("there")
PACT = bytes(range(16))
SECRET = Secret(bytes(range(32)))
NOBODY = frozenset[NodeId]()
WEB, SSH, DNS = Ports("tcp", 443, 443), Ports("tcp", 22, 22), Ports("udp", 53, 53)


@cache
def member(mesh: TestMesh, name: str, label: str = "") -> Member:
    node = identity(label or f"{name} of {mesh.mesh.root_hash.hex()}")
    return verify_chain(mesh.root, mesh.authority.der, mesh.certify(node, name), NOW)


def terms(
    mesh: TestMesh, other: TestMesh, *, members: tuple[Who, ...] = ("db", "web"),
    services: tuple[Service, ...] = (), now: float = NOW, last: int = 0, life: float = MAX_LIFE,
    pact: bytes = PACT,
) -> Terms:  # fmt: skip
    return Terms.make(
        pact, mesh.mesh.root_hash, other.mesh.root_hash, members=members,
        gateways=[Gateway(member(mesh, "web").node_id, ("192.0.2.1:51800",))], services=services,
        lock=lock_of(SECRET), now=now, last=last, life=life,
    )  # fmt: skip


def half(mesh: TestMesh, other: TestMesh, **how: object) -> Half:
    return sign(mesh.authority, terms(mesh, other, **how))  # type: ignore[arg-type]


def ending(mesh: TestMesh, other: TestMesh, now: float = NOW) -> Half:
    return sign(mesh.authority, Terms.ending(PACT, mesh.mesh.root_hash, other.mesh.root_hash, now))


def agreed(ours: Half, theirs: Half, now: float = NOW, **revoked: frozenset[NodeId]) -> Pact:
    return agree(
        HERE.root, ours, THERE.root_der, theirs, now,
        revoked=revoked.get("revoked", NOBODY), their_revoked=revoked.get("their_revoked", NOBODY),
    )  # fmt: skip


FIRST = identity("here first").node_id  # the node that holds the authority's key
THEIR_FIRST = identity("there first").node_id
SERVICE = Service("db", (WEB, SSH), ("web",))
OURS, THEIRS = half(HERE, THERE, services=(SERVICE,)), half(THERE, HERE)


def test_a_pair_may_do_what_one_mesh_exposes_and_both_name() -> None:
    pact = agreed(OURS, THEIRS)
    db, web = member(HERE, "db"), member(HERE, "web")
    their_web, their_db = member(THERE, "web"), member(THERE, "db")
    assert pact.allows(db, their_web, NOW) == Allowed(inbound=(SSH, WEB))
    for pair in ((web, their_web), (db, their_db), (web, their_db)):
        assert not pact.allows(*pair, NOW)
    # the other mesh sees the same from its side
    back = agree(THERE.root, THEIRS, HERE.root_der, OURS, NOW, revoked=NOBODY, their_revoked=NOBODY)
    assert back.allows(their_web, db, NOW) == Allowed(outbound=(SSH, WEB))
    assert not pact.allows(db, their_web, pact.until)
    assert pact.until == OURS_TERMS.until


OURS_TERMS = verify(OURS, HERE.root, NOW, revoked=NOBODY)


def test_neither_mesh_draws_in_the_others_member_alone() -> None:
    """A service to a member that its own mesh does not name is open to nobody."""
    for ours, theirs in (
        (OURS, half(THERE, HERE, members=("db",))),
        (half(HERE, THERE, members=("web",)), half(THERE, HERE, services=(Service("web", (WEB,), ("db",)),))),
    ):
        pact = agreed(ours, theirs)
        for own in ("db", "web"):
            for other in ("db", "web"):
                assert not pact.allows(member(HERE, own), member(THERE, other), NOW)


def test_a_member_named_by_its_id_is_that_key() -> None:
    db = member(HERE, "db")
    service = Service(by_id(db.node_id), (DNS,), (by_id(member(THERE, "web").node_id),))
    pact = agreed(half(HERE, THERE, members=(by_id(db.node_id),), services=(service,)), THEIRS)
    assert pact.allows(db, member(THERE, "web"), NOW).inbound == (DNS,)
    assert not pact.allows(member(HERE, "db", "another key"), member(THERE, "web"), NOW)
    assert not pact.allows(db, member(THERE, "web", "another key"), NOW)


def test_of_more_ranges_than_the_guard_takes_none_is_open() -> None:
    def between(count: int) -> Allowed:
        ports = [Ports("udp", i, i) for i in range(1, count + 1)]
        each = tuple(Service("web", tuple(ports[i : i + 16]), ("db",)) for i in range(0, count, 16))
        found = agreed(half(HERE, THERE), half(THERE, HERE, services=each))
        return found.allows(member(HERE, "db"), member(THERE, "web"), NOW)

    most = held_pacts.MAX_RANGES
    assert len(between(most).outbound) == most and not between(most + 1)


def test_halves_that_do_not_fit_make_no_pact() -> None:
    third = make_mesh("third")
    elsewhere = half(THERE, third)
    for ours, theirs, why in (
        (OURS, half(THERE, HERE, pact=bytes(16)), "two pacts"),
        (OURS, elsewhere, "two pacts"),
        (half(HERE, third), THEIRS, "another mesh's"),
        (OURS, OURS, "not signed by the root"),
        (THEIRS, THEIRS, "not signed by the root"),
        (ending(HERE, THERE), THEIRS, "this mesh has ended"),
        (OURS, ending(THERE, HERE), "the other mesh has ended"),
    ):
        with pytest.raises(TrustError, match=why):
            agreed(ours, theirs)


def test_a_mesh_with_our_ipv6_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A root key for a network of 40 bits can be looked for."""
    mesh = HERE.mesh
    monkeypatch.setattr(held_pacts, "describe_mesh", lambda root: replace(THERE.mesh, network6=mesh.network6))
    with pytest.raises(TrustError, match="IPv6 network"):
        agreed(OURS, THEIRS)


def test_time_and_revoked_signers_end_it() -> None:
    with pytest.raises(TrustError, match="ran out"):
        agreed(half(HERE, THERE, life=60), THEIRS, now=NOW + 61)
    with pytest.raises(TrustError, match="ahead of its time"):
        agreed(half(HERE, THERE, now=NOW + 2 * EARLY), THEIRS)
    with pytest.raises(TrustError, match="ahead of its time"):
        agreed(half(HERE, THERE, last=int(NOW + 2 * EARLY)), THEIRS)
    with pytest.raises(TrustError, match="revoked"):
        agreed(OURS, THEIRS, revoked=frozenset({FIRST}))
    with pytest.raises(TrustError, match="revoked"):
        agreed(OURS, THEIRS, their_revoked=frozenset({THEIR_FIRST}))
    agreed(OURS, THEIRS, revoked=frozenset({THEIR_FIRST}), their_revoked=frozenset({FIRST}))


def signed(encoded: bytes, mesh: TestMesh = HERE) -> Half:
    """A half by an authority that checks nothing."""
    return Half(1, encoded, mesh.authority.key.sign(encoded, b"phantommesh pact v1"), mesh.authority.der)


def test_what_an_authority_that_checks_nothing_signs_is_refused() -> None:
    ahead = int(NOW + 2 * EARLY)
    late = msgspec.structs.replace(OURS_TERMS, at=ahead, until=ahead + 60)
    dateless = msgspec.structs.replace(OURS_TERMS, at=2**62, until=2**62 + 60)
    for one, root, why in (
        (signed(msgspec.msgpack.encode(late)), HERE.root, "begins on"),
        (signed(msgspec.msgpack.encode(dateless)), HERE.root, "out of range"),
        (signed(OURS.terms, THERE), THERE.root, "another mesh's than its signature"),
        (msgspec.structs.replace(OURS, terms=THEIRS.terms), HERE.root, "not signed by its authority"),
        (msgspec.structs.replace(OURS, signature=b""), HERE.root, "out of range"),
    ):
        with pytest.raises(TrustError, match=why):
            verify(one, root, NOW, revoked=NOBODY)


@pytest.mark.parametrize("change", [
    {"format": 2}, {"pact": b"short"}, {"mesh": b""}, {"other": b""}, {"number": 0}, {"number": 2**63},
    {"at": -1}, {"until": int(NOW)}, {"until": int(NOW + MAX_LIFE + 2)}, {"members": ()}, {"gateways": ()},
    {"gateways": (Gateway(b"short", ("192.0.2.1:51800",)),)}, {"lock": b""},
    {"gateways": (Gateway(bytes(16), ("nowhere",)),)}, {"gateways": (Gateway(bytes(16), ()),)},
    {"members": ("Not a label",)}, {"members": ("id:short",)}, {"number": LAST},
    {"services": (Service("else", (WEB,), ("web",)),)},
    {"services": (Service("db", (Ports("tcp", 9, 8),), ("web",)),)},
    {"services": (Service("db", (WEB,), ("Not a label",)),)},
    {"members": tuple(f"node{i}" for i in range(1_024)),
     "services": tuple(Service("node1", (WEB,), ("somebody-else",) * 90) for _ in range(60))},
])  # fmt: skip
def test_terms_that_are_none_are_not_signed(change: dict[str, object]) -> None:
    good = terms(HERE, THERE)
    bad = msgspec.structs.replace(good, **change)
    with pytest.raises(TrustError):
        sign(HERE.authority, bad)
    encoded = msgspec.msgpack.encode(bad)  # and an authority that signs them all the same is not believed
    forged = signed(encoded)
    with pytest.raises(TrustError):
        verify(forged, HERE.root, NOW, revoked=NOBODY)


def test_an_authority_signs_for_its_own_mesh_and_not_with_itself() -> None:
    with pytest.raises(TrustError, match="another mesh's"):
        sign(THERE.authority, terms(HERE, THERE))
    with pytest.raises(TrustError, match="no pact with itself"):
        terms(HERE, HERE)


def test_a_pact_is_renewed_narrowed_and_ended() -> None:
    revoked = set[NodeId]()
    mine = Pacts(HERE.root, revoked)
    hash_ = THERE.mesh.root_hash
    with pytest.raises(TrustError, match="signed no half"):
        mine.take_theirs(THEIRS, THERE.root_der, NOW, revoked=NOBODY)
    assert mine.take_ours(OURS, NOW) and not mine.take_ours(OURS, NOW)
    assert mine.in_force(NOW, {hash_: NOBODY}) == []
    assert mine.take_theirs(THEIRS, THERE.root_der, NOW, revoked=NOBODY)
    assert not mine.take_theirs(THEIRS, THERE.root_der, NOW, revoked=NOBODY)
    (pact,) = mine.in_force(NOW, {hash_: NOBODY})
    assert pact.allows(member(HERE, "db"), member(THERE, "web"), NOW)
    assert mine.in_force(NOW, {}) == []  # nobody knows whom the other mesh has revoked
    assert mine.in_force(NOW, {hash_: {THEIR_FIRST}}) == []
    third = make_mesh("third")
    with pytest.raises(TrustError, match="two pacts"):
        mine.take_theirs(half(third, HERE, now=NOW + 9), third.root_der, NOW + 9, revoked=NOBODY)
    revoked.add(FIRST)
    assert mine.in_force(NOW, {hash_: NOBODY}) == []
    revoked.clear()
    last = mine.ours(PACT)
    assert last is not None
    narrow = half(HERE, THERE, last=last.number)
    assert mine.take_ours(narrow, NOW) and not mine.take_ours(OURS, NOW)
    (pact,) = mine.in_force(NOW, {hash_: NOBODY})
    assert not pact.allows(member(HERE, "db"), member(THERE, "web"), NOW)
    with pytest.raises(TrustError, match="with another mesh"):
        mine.take_ours(half(HERE, third, last=last.number + 9), NOW)
    assert mine.take_theirs(ending(THERE, HERE), THERE.root_der, NOW, revoked=NOBODY)
    later = half(THERE, HERE, now=NOW + 9)
    assert not mine.take_theirs(later, THERE.root_der, NOW + 9, revoked=NOBODY)
    assert mine.in_force(NOW + 9, {hash_: NOBODY}) == []
    mine.forget(NOW + MAX_LIFE)
    assert len(mine) == 0


def test_what_a_revoked_authority_signed_last_makes_way_for_nothing_earlier() -> None:
    hash_ = THERE.mesh.root_hash
    # Two nodes that hold both halves: one hears of the revocation before the end of the pact.
    first, second = Pacts(HERE.root, NOBODY), Pacts(HERE.root, {FIRST})
    for node in (first, second):
        assert node.take_ours(OURS, NOW, kept=True)
        node.take_theirs(THEIRS, THERE.root_der, NOW, revoked=NOBODY)
    (early,) = first.bundles()
    assert first.take_ours(ending(HERE, THERE), NOW)
    (late,) = first.bundles()
    assert second.take(late, NOW, {}) and second.ended(PACT)
    # A node that starts again has it from its disk, and a member's older word does not undo it.
    again = Pacts(HERE.root, {FIRST})
    with pytest.raises(TrustError, match="revoked"):
        again.take(late, NOW, {})  # of a pact that it knows nothing of, a revoked authority says nothing
    assert again.take(late, NOW, {}, kept=True) and again.ended(PACT)
    assert not again.take(early, NOW, {}) and again.ended(PACT)
    # So it is with the other mesh's half.
    their = Pacts(HERE.root, NOBODY)
    their.take_ours(OURS, NOW)
    with pytest.raises(TrustError, match="revoked"):
        their.take_theirs(THEIRS, THERE.root_der, NOW, revoked={THEIR_FIRST})
    their.take_theirs(THEIRS, THERE.root_der, NOW, revoked=NOBODY)
    assert their.take_theirs(ending(THERE, HERE), THERE.root_der, NOW, revoked={THEIR_FIRST})
    assert their.in_force(NOW, {hash_: NOBODY}) == []


def test_where_both_meshes_ended_a_pact_nobody_waits_for_its_secret() -> None:
    mine, fresh = Pacts(HERE.root, NOBODY), Pacts(HERE.root, NOBODY)
    mine.take_ours(OURS, NOW)
    mine.take_theirs(THEIRS, THERE.root_der, NOW, revoked=NOBODY)
    mine.unlock(PACT, SECRET)
    mine.take_ours(ending(HERE, THERE), NOW)
    mine.take_theirs(ending(THERE, HERE), THERE.root_der, NOW, revoked=NOBODY)
    (bundle,) = mine.bundles()
    assert fresh.take(bundle, NOW, {}) and fresh.secret(PACT) is None
    assert fresh.digest() == mine.digest()  # else the two would ask each other for ever


def test_pacts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_pacts, "MAX_PACTS", 2)
    mine = Pacts(HERE.root, NOBODY)
    halves = [half(HERE, THERE, pact=bytes([i]) * 16, life=100 + i) for i in range(3)]
    for one in halves[:2]:
        assert mine.take_ours(one, NOW)
    with pytest.raises(TrustError, match="2 pacts at most"):
        mine.take_ours(halves[2], NOW)
    ends = sign(HERE.authority, Terms.ending(bytes(16), HERE.mesh.root_hash, THERE.mesh.root_hash, NOW))
    assert mine.take_ours(ends, NOW)  # there is always room to end one
    assert mine.take_ours(halves[2], NOW + 101)  # the second has run out


POOL = [
    OURS,
    half(HERE, THERE, now=NOW + 1),
    half(HERE, THERE, now=NOW + 1, members=("db",), services=(Service("db", (DNS,), ("db",)),)),
    half(HERE, THERE, now=NOW + 2, services=(SERVICE,)),
    ending(HERE, THERE),
    ending(HERE, THERE, NOW + 3),
]
THEIR_POOL = [THEIRS, half(THERE, HERE, now=NOW + 1), ending(THERE, HERE)]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_order_in_which_halves_come_does_not_matter(data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from([*POOL, *THEIR_POOL]), unique_by=id))
    nodes = [Pacts(HERE.root, NOBODY) for _ in range(2)]
    for node in nodes:
        for _ in range(2):  # what came too early is offered again
            for one in data.draw(st.permutations(some)):
                with contextlib.suppress(TrustError):
                    if any(one is mine for mine in POOL):
                        node.take_ours(one, NOW)
                    else:
                        node.take_theirs(one, THERE.root_der, NOW, revoked=NOBODY)
    mine, also = nodes
    assert mine._held == also._held
    ended = any(one is end for one in some for end in (*POOL[4:], THEIR_POOL[2]))
    halves = [any(one is a for one in some for a in pool) for pool in (POOL, THEIR_POOL)]
    assert bool(mine.in_force(NOW, {THERE.mesh.root_hash: NOBODY})) == (all(halves) and not ended)


def test_members_of_a_mesh_give_each_other_what_they_know_of_a_pact() -> None:
    hash_ = THERE.mesh.root_hash
    mine, also = Pacts(HERE.root, NOBODY), Pacts(HERE.root, NOBODY)
    assert mine.digest() == b"" and mine.bundles() == ()
    mine.take_ours(OURS, NOW)
    mine.take_theirs(THEIRS, THERE.root_der, NOW, revoked=NOBODY)
    before = mine.digest()
    assert mine.unlock(PACT, SECRET) and not mine.unlock(PACT, SECRET) and mine.digest() != before
    (bundle,) = mine.bundles()
    assert also.take(bundle, NOW, {}) and not also.take(bundle, NOW, {})
    assert also.digest() == mine.digest() and also.secret(PACT) == SECRET
    assert also.in_force(NOW, {hash_: NOBODY})
    # One that has the end of the pact keeps it, and the secret: it tells the other mesh's members of it.
    assert mine.take_ours(ending(HERE, THERE), NOW)
    assert mine.ended(PACT) and mine.secret(PACT) == SECRET
    assert not mine.take(bundle, NOW, {}) and mine.ended(PACT)
    (ended,) = mine.bundles()
    assert also.take(ended, NOW, {}) and also.in_force(NOW, {hash_: NOBODY}) == []
    fresh = Pacts(HERE.root, NOBODY)
    assert fresh.take(ended, NOW, {}) and fresh.secret(PACT) == SECRET


def test_a_member_cannot_pass_on_another_secret_or_the_halves_of_nobody() -> None:
    mine = Pacts(HERE.root, NOBODY)
    wrong = Bundle(OURS.encode(), THERE.root_der, THEIRS.encode(), bytes(32))
    with pytest.raises(TrustError, match="another than the meshes signed"):
        mine.take(wrong.encode(), NOW, {})
    assert mine.secret(PACT) is None and mine.theirs(PACT) is not None  # what holds is held
    third = make_mesh("third")
    for bundle in (
        Bundle(half(third, THERE).encode(), THERE.root_der, THEIRS.encode(), b""),
        Bundle(OURS.encode(), third.root_der, half(third, HERE).encode(), b""),
    ):
        with pytest.raises(TrustError):
            Pacts(HERE.root, NOBODY).take(bundle.encode(), NOW, {})
    for junk in (b"", b"\x90", bytes(MAX_BUNDLE_BYTES + 1)):
        with pytest.raises(TrustError):
            mine.take(junk, NOW, {})


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_hostile_bytes_are_no_half(data: st.DataObject) -> None:
    good = OURS.encode()
    at, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
    flipped = good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :]
    cut = good[: data.draw(st.integers(0, len(good)))]
    some = data.draw(st.one_of(st.binary(max_size=300), st.just(flipped), st.just(cut)))
    try:
        read = Half.decode_untrusted(some)
    except TrustError:
        return
    if read == OURS:
        return
    with pytest.raises(TrustError):
        verify(read, HERE.root, NOW, revoked=NOBODY)


who = st.one_of(st.text(max_size=9), st.text("abc2", max_size=30).map("id:".__add__), st.none())
ports = st.lists(st.tuples(st.sampled_from(["tcp", "udp", "x"]), st.integers(-1, 70_000), st.integers(0, 9)))
services = st.lists(st.tuples(who, ports, st.lists(who, max_size=3)), max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.builds(msgspec.msgpack.encode, st.tuples(
    st.integers(0, 2), st.binary(max_size=17), st.integers(-(2**63), 2**64 - 1), st.just(HERE.mesh.root_hash),
    st.binary(max_size=33), st.integers(-9, 2**63), st.integers(-9, 2**63), st.lists(who, max_size=3),
    st.lists(st.binary(max_size=17), max_size=5), services,
))))  # fmt: skip
def test_an_authority_that_signs_nonsense_is_refused_in_one_way(encoded: bytes) -> None:
    """A member that holds an authority's key is an attacker, too."""
    with pytest.raises(TrustError):
        verify(signed(encoded), HERE.root, NOW, revoked=NOBODY)


def test_too_long_a_half_is_not_read() -> None:
    with pytest.raises(TrustError, match="too long"):
        Half.decode_untrusted(bytes(MAX_HALF_BYTES + 1))


# --- the line


INVITE = FederationInvite(
    THERE.mesh.root_hash, PACT, Secret(b"\xa5" * 32), THEIR_FIRST, "pm", int(NOW) + 3600,
    ("192.0.2.1:51800", "[2001:db8::1]:51800"),
)  # fmt: skip


def test_the_line_says_what_it_was_made_of_and_hides_its_secret() -> None:
    line = INVITE.encode()
    assert line.startswith("pmf1_") and FederationInvite.parse_untrusted(f" {line}\n") == INVITE
    assert "Secret(***)" in repr(INVITE) and "\\xa5" * 2 not in repr(INVITE)


def test_an_invite_of_another_kind_is_not_taken_for_one() -> None:
    line = INVITE.encode()
    for bad, why in (
        (line.replace("pmf1_", "pm1_"), "does not start with pmf1_"),
        (line[:-1], "checksum"),
        (line[:60] + ("A" if line[60] != "A" else "B") + line[61:], "checksum"),
        (replace(INVITE, mesh="Not a label").encode(), "mesh name"),
        (replace(INVITE, endpoints=()).encode(), "this version"),
        (replace(INVITE, endpoints=("no-port",)).encode(), "not usable"),
        (replace(INVITE, expires=2**63).encode(), "this version"),
    ):
        with pytest.raises(TrustError, match=why) as caught:
            FederationInvite.parse_untrusted(bad)
        assert caught.value.fix


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=300), st.binary(max_size=400).map(LINE.encode)))
def test_any_text_is_refused_or_is_the_line_that_it_says(text: str) -> None:
    with contextlib.suppress(TrustError):
        assert FederationInvite.parse_untrusted(text).encode() == text.strip()
