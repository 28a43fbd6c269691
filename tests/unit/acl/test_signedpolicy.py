# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's policy is an authority's, and every node comes to the same one, in whatever order they come."""

from __future__ import annotations

from functools import cache

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from phantommesh.acl import signedpolicy
from phantommesh.acl.policy import PolicyError, PolicySection, TestSection
from phantommesh.acl.signedpolicy import (
    CONTEXT,
    MAX_SIGNED_BYTES,
    Policies,
    SignedPolicy,
    Verified,
    decode,
    encode,
    sign,
    verify,
)
from phantommesh.config.acl import RuleSection
from phantommesh.trust.certificates import EARLY, TrustError
from phantommesh.trust.identity import Identity, NodeId
from phantommesh.trust.issuing import Authority, issue_authority
from tests.support.makemesh import NOW, identity, make_mesh

HERE, THERE = make_mesh("here"), make_mesh("there")
NOBODY = frozenset[NodeId]()
DENY = PolicySection("deny", (RuleSection("ssh", source=("tag:ops",), ports=(22,)),))
FAILS = PolicySection("allow", (), (TestSection(("laptop",), ("db",), "22", "deny"),))


@cache
def authority(label: str) -> Authority:
    key = identity(f"{label} authority of here")
    node = identity(label).node_id
    return Authority(HERE.root, issue_authority(HERE.root, HERE.root_key, key.spki, node, NOW), key)


def forged(
    by: Authority, section: PolicySection, number: int = int(NOW), key: Identity | None = None
) -> SignedPolicy:
    """Signed without any look at it, with another key than the authority's where one is given."""
    said = HERE.mesh.root_hash + number.to_bytes(8) + section.encode()
    signature = (key or by.key).sign(said, CONTEXT)
    return SignedPolicy(1, HERE.mesh.root_hash, number, section.encode(), signature, by.der)


def test_a_signed_policy_comes_as_it_was_signed() -> None:
    signed = sign(authority("one"), DENY, last=0, now=NOW)
    came = SignedPolicy.decode_untrusted(signed.encode())
    found = verify(came, HERE.root, NOW)
    assert came == signed and found.policy == DENY.policy() and found.signer == identity("one").node_id
    assert signed.number == int(NOW) and sign(authority("one"), DENY, last=2**40, now=NOW).number == 2**40 + 1


def test_a_policy_that_fails_its_own_tests_is_neither_signed_nor_taken() -> None:
    with pytest.raises(PolicyError, match="fails its test"):
        sign(authority("one"), FAILS, last=0, now=NOW)
    with pytest.raises(PolicyError, match="fails its test"):
        verify(forged(authority("one"), FAILS), HERE.root, NOW)


@pytest.mark.parametrize("field", ["mesh", "number", "policy", "signature", "authority_cert"])
def test_nothing_of_it_can_be_changed(field: str) -> None:
    signed = sign(authority("one"), DENY, last=0, now=NOW)
    value = getattr(signed, field)
    other = value - 1 if isinstance(value, int) else value[:-1] + bytes([value[-1] ^ 1])
    with pytest.raises(TrustError):
        verify(msgspec.structs.replace(signed, **{field: other}), HERE.root, NOW)


def test_nobody_but_an_authority_of_this_mesh_makes_a_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody else makes a node run tests."""
    ran = list[PolicySection]()
    monkeypatch.setattr(signedpolicy, "accept", lambda section, mesh: ran.append(section))
    member = identity("a member")
    mine = forged(HERE.authority, DENY, key=member)
    for bad in (
        sign(THERE.authority, DENY, last=0, now=NOW),  # another mesh's
        msgspec.structs.replace(sign(THERE.authority, DENY, last=0, now=NOW), mesh=HERE.mesh.root_hash),
        mine,  # not the certificate's key
        msgspec.structs.replace(mine, authority_cert=HERE.root.public_bytes(Encoding.DER)),
        msgspec.structs.replace(mine, authority_cert=HERE.certify(member, "member")),
    ):
        ran.clear()
        with pytest.raises(TrustError):
            verify(bad, HERE.root, NOW)
        assert not ran


def test_a_number_ahead_of_its_time_does_not_block_all_later_policies() -> None:
    ahead = forged(authority("one"), DENY, int(NOW + EARLY) + 2)
    with pytest.raises(TrustError, match="ahead of its time"):
        verify(ahead, HERE.root, NOW)
    for number in (0, 2**63, 2**64 - 1):
        with pytest.raises(TrustError):
            verify(forged(authority("one"), DENY, number), HERE.root, NOW)


@given(st.binary(max_size=100))
@example(b"")
@example(msgspec.msgpack.encode([1, b"", 2**64 - 1, b"", b"", b""]))
@example(msgspec.msgpack.encode([1, b"", -(2**63), b"", b"", b""]))
def test_any_bytes_are_refused_cleanly(data: bytes) -> None:
    try:
        signed = SignedPolicy.decode_untrusted(data)
        assert Policies().wants(signed, NOW)  # what costs nothing tells nothing
        verify(signed, HERE.root, NOW)
    except TrustError:
        pass


def test_what_is_too_long_is_not_read() -> None:
    with pytest.raises(TrustError, match="too long"):
        SignedPolicy.decode_untrusted(bytes(MAX_SIGNED_BYTES + 1))


@cache
def some() -> tuple[Verified, ...]:
    """Policies of three authorities, two of them of one number."""
    found = list[Verified]()
    for label, number in (("one", 5), ("two", 5), ("three", 3), ("one", 2), ("three", 9), ("two", 1)):
        section = PolicySection("deny", (RuleSection(f"{label}-{number}"),))
        found.append(verify(forged(authority(label), section, number), HERE.root, NOW))
    return tuple(found)


signers = st.frozensets(st.sampled_from(["one", "two", "three"]).map(lambda label: identity(label).node_id))


@given(st.permutations(range(6)), st.lists(st.integers(0, 5), max_size=4), signers)
def test_every_node_comes_to_the_same_policy(
    order: list[int], again: list[int], revoked: frozenset[NodeId]
) -> None:
    held = Policies()
    for at in (*order, *again):
        wanted = held.wants(some()[at].signed, NOW)
        assert held.hold(some()[at], NOW) == wanted
    said = held.current(revoked, NOW)
    counted = [one for one in some() if one.signer not in revoked]
    assert said == max(counted, key=lambda one: (one.signed.number, one.signed.digest), default=None)
    assert len(list(held)) == 3 and held.last(NOW) == 9


def test_a_revoked_authoritys_policy_gives_way_to_the_one_before() -> None:
    held = Policies()
    for one in some():
        held.hold(one, NOW)
    newest = held.current(NOBODY, NOW)
    assert newest is not None and newest.policy.rules[0].name == "three-9"
    before = held.current({newest.signer}, NOW)
    assert before is not None and before.signed.number == 5
    assert held.current({one.signer for one in some()}, NOW) is None


def test_what_is_held_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signedpolicy, "MAX_HELD", 2)
    held = Policies()
    for one in some():
        held.hold(one, NOW)
    assert sorted(one.signed.number for one in held) == [5, 9]


def test_what_is_on_disk_is_verified_again() -> None:
    held = Policies()
    for one in some():
        held.hold(one, NOW)
    kept = encode(held)
    assert [one.signed for one in decode(kept, HERE.root, NOW)] == [one.signed for one in held]
    with pytest.raises(TrustError):
        decode(kept, THERE.root, NOW)
    for broken in (b"", kept[:-1], kept.replace(b"three-9", b"three-8")):
        with pytest.raises(TrustError):
            decode(broken, HERE.root, NOW)


def test_a_policy_that_was_signed_by_a_clock_ahead_of_time_does_not_count_until_then() -> None:
    """Nor does it keep its signer from signing another, which takes its place."""
    before = verify(sign(authority("one"), DENY, last=0, now=NOW - 60), HERE.root, NOW)
    other = verify(sign(authority("two"), DENY, last=0, now=NOW - 90), HERE.root, NOW)
    wrong = NOW + 2 * EARLY
    early = verify(sign(authority("one"), DENY, last=before.signed.number, now=wrong), HERE.root, wrong)
    held, others = Policies(), Policies()
    for one in (before, other):
        assert held.hold(one, NOW) and others.hold(one, NOW)
    assert held.hold(early, wrong) and held.current(NOBODY, wrong) is early
    # Now the clock is right, and the node starts anew.
    again = decode(encode(held), HERE.root, NOW)
    assert [one.signed for one in again.ahead(NOW)] == [early.signed]
    assert [one.signed for one in again.offered(NOW)] == [other.signed]
    found = again.current(NOBODY, NOW)
    assert found is not None and found.signed == other.signed
    assert again.last(NOW) == other.signed.number and again.digest(NOW) != others.digest(NOW)
    assert not again.hold(early, NOW) and not again.wants(early.signed, NOW)
    # Others give back the one before.
    assert again.hold(before, NOW) and again.digest(NOW) == others.digest(NOW)
    assert again.current(NOBODY, NOW) is before is others.current(NOBODY, NOW)
    # And so does the next that is signed, with a number that all take.
    anew = decode(encode(held), HERE.root, NOW)
    signed = sign(authority("one"), PolicySection(), last=anew.last(NOW), now=NOW)
    assert anew.hold(verify(signed, HERE.root, NOW), NOW) and not anew.ahead(NOW)
    # Else its time comes.
    assert held.current(NOBODY, NOW + EARLY) is early


def test_what_is_ahead_of_its_time_is_the_first_that_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signedpolicy, "MAX_HELD", 2)
    wrong = NOW + 2 * EARLY
    held = Policies()
    early = verify(forged(authority("three"), DENY, int(wrong)), HERE.root, wrong)
    for one, now in ((early, wrong), (some()[0], NOW), (some()[1], NOW)):
        assert held.hold(one, now)
    assert [one.signed.number for one in held] == [5, 5]
