# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile certificates, requests, invites, revocations and records raise exactly the declared error."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.records.record import RecordError, SignedRecord, open_record
from phantommesh.records.roster import Roster
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Role, TrustError, load_root, verify_authority, verify_chain
from phantommesh.trust.invites import LINE, PREFIX, Invite
from phantommesh.trust.issuing import make_csr, parse_csr_untrusted
from phantommesh.trust.revocation import revoke
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, identity, make_mesh

MESH = make_mesh()
NODE = identity("node")
SIGNED = MESH.record(NODE, "alpha")
CSR = make_csr(NODE, "alpha")
REVOKED = Revocations(MESH.root)
REVOKED.add(revoke(MESH.authority, identity("gone").node_id, NOW), NOW)
ROSTER = Roster(MESH.root, REVOKED)
ROSTER.add(SIGNED, NOW)
INVITE = Invite(
    bytes(32), bytes(16), Secret(bytes(32)), NODE.node_id, "pm", int(NOW), Role.NODE, ("192.0.2.1:51800",)
)


@st.composite
def mutations(draw: st.DrawFn, whole: bytes) -> bytes:
    """`whole` with a few edits; never `whole` itself. Half of them near the start, where the structure is."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        top = max(0, len(data) - 1)
        at = draw(st.one_of(st.integers(0, min(200, top)), st.integers(0, top)))
        match draw(st.sampled_from(["flip", "set", "cut", "insert", "truncate", "repeat"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "set" if data:
                data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0x82, 0x84, 0xFF]))
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.binary(min_size=1, max_size=8))
            case "truncate":
                del data[at:]
            case _:
                data[at:at] = data[at : at + 20]
    if bytes(data) == whole:
        data.append(0)
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(st.one_of(mutations(SIGNED.node_cert), st.binary(max_size=300)))
def test_node_certificates(der: bytes) -> None:
    with pytest.raises(TrustError):
        verify_chain(MESH.root, MESH.authority.der, der, NOW)


@settings(max_examples=200, deadline=None)
@given(st.one_of(mutations(MESH.authority.der), st.binary(max_size=300)))
def test_authority_certificates(der: bytes) -> None:
    with pytest.raises(TrustError):
        verify_chain(MESH.root, der, SIGNED.node_cert, NOW)
    with pytest.raises(TrustError):
        verify_authority(MESH.root, der, NOW)


@settings(max_examples=200, deadline=None)
@given(st.one_of(mutations(MESH.root_der), st.binary(max_size=300)))
def test_root_certificates(der: bytes) -> None:
    with pytest.raises(TrustError):
        load_root(der, MESH.mesh.root_hash)


@settings(max_examples=200, deadline=None)
@given(st.one_of(mutations(CSR), st.binary(max_size=300)))
def test_requests(der: bytes) -> None:
    with pytest.raises(TrustError):
        parse_csr_untrusted(der)


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=300), st.text(max_size=200).map(lambda text: PREFIX + text)))
def test_any_text_is_no_invite(text: str) -> None:
    with pytest.raises(TrustError):
        Invite.parse_untrusted(text)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_invites_with_a_good_checksum(body: bytes) -> None:
    """The checksum is no secret: behind it anything may come, and what is accepted encodes as it was."""
    line = LINE.encode(body)
    with contextlib.suppress(TrustError):
        assert Invite.parse_untrusted(line).encode() == line


@settings(max_examples=300)
@given(st.data())
def test_mutated_invites(data: st.DataObject) -> None:
    line = INVITE.encode()
    at = data.draw(st.integers(0, len(line) - 1))
    char = data.draw(st.characters().filter(lambda c: c != line[at]))
    with pytest.raises(TrustError):
        Invite.parse_untrusted(line[:at] + char + line[at + 1 :])


@settings(max_examples=300, deadline=None)
@given(st.one_of(mutations(SIGNED.encode()), st.binary(max_size=300)))
def test_records(data: bytes) -> None:
    try:
        signed = SignedRecord.decode_untrusted(data)
    except RecordError:
        return
    if signed == SIGNED:  # msgpack has more than one spelling of a length
        return
    with pytest.raises((RecordError, TrustError)):
        open_record(MESH.root, signed, NOW)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.one_of(
                st.none(), st.integers(-(2**63), 2**64 - 1), st.binary(max_size=40), st.text(max_size=20)
            ),
            lambda inner: st.lists(inner, max_size=7),
            max_leaves=20,
        ).map(msgspec.msgpack.encode),
    )
)
def test_signed_bodies_of_any_shape(body: bytes) -> None:
    """A member signs nonsense with its good key: still only a RecordError."""
    signed = msgspec.structs.replace(SIGNED, body=body, signature=NODE.sign(body, b"phantommesh record v1"))
    with pytest.raises(RecordError):
        open_record(MESH.root, signed, NOW)


@settings(max_examples=150, deadline=None)
@given(st.one_of(mutations(ROSTER.encode()), st.binary(max_size=300)))
def test_rosters(data: bytes) -> None:
    with contextlib.suppress(RecordError, TrustError):
        again = Roster.decode_untrusted(data, MESH.root, REVOKED, NOW)
        assert again.digest() in (ROSTER.digest(), Roster(MESH.root, REVOKED).digest())


@settings(max_examples=150, deadline=None)
@given(st.one_of(mutations(REVOKED.encode()), st.binary(max_size=300)))
def test_revocations(data: bytes) -> None:
    with contextlib.suppress(TrustError):
        assert len(Revocations.decode(data, MESH.root, NOW)) <= 1
