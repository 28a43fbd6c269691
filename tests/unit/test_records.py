# SPDX-License-Identifier: GPL-3.0-or-later
from ipaddress import IPv4Address

import msgspec
import pytest

from phantommesh.issuing import Authority, issue_authority
from phantommesh.records import (
    Dispute,
    NodeRecord,
    RecordError,
    Roster,
    SignedRecord,
    open_record,
    sign_record,
)
from phantommesh.revocation import Revocations, revoke
from phantommesh.trust import DAY, NODE_LIFE, Role, TrustError
from tests.unit.makemesh import NOW, identity, make_mesh, plain_record

MESH = make_mesh()
NODE, OTHER = identity("node"), identity("other")
SIGNED = MESH.record(NODE, "alpha", seq=5)


def roster(*records: SignedRecord) -> Roster:
    made = Roster(MESH.root, Revocations(MESH.root))
    for signed in records:
        made.add(signed, NOW)
    return made


def resign(record: NodeRecord) -> SignedRecord:
    """Sign a record that `sign_record` would refuse to."""
    body = msgspec.msgpack.encode(record)
    signature = NODE.sign(body, b"phantommesh record v1")
    return SignedRecord(body, signature, SIGNED.node_cert, SIGNED.authority_cert)


def test_a_record_round_trips() -> None:
    signed = SignedRecord.decode_untrusted(SIGNED.encode())
    assert signed == SIGNED
    member, record = open_record(MESH.root, signed, NOW)
    assert member.name == "alpha"
    assert record == plain_record(NODE, 5)


def test_a_later_version_may_add_fields() -> None:
    body = msgspec.msgpack.encode([*msgspec.msgpack.decode(SIGNED.body), "new"])
    signature = NODE.sign(body, b"phantommesh record v1")
    assert open_record(MESH.root, msgspec.structs.replace(SIGNED, body=body, signature=signature), NOW)


@pytest.mark.parametrize(
    "change",
    [
        {"node_id": OTHER.node_id},
        {"node_id": b"short"},
        {"seq": -1},
        {"seq": 2**63},
        {"control": ("192.0.2.1:1",) * 9},
        {"control": ("no port",)},
        {"wg_keys": ()},
        {"wg_keys": (b"k" * 32,) * 7},
        {"wg_keys": tuple(bytes([i]) * 31 for i in range(7))},
        {"wg_keys": tuple(bytes([i]) * 32 for i in range(7))},  # the first is all zero
        {"wg_ports": (1,) * 7},
        {"wg_ports": (0, 1, 2, 3, 4, 5, 6)},
        {"wg_ports": (1, 2, 3, 4, 5, 6)},
        {"version": "x" * 33},
        {"version": "a\n"},
    ],
)
def test_bad_values_are_refused_by_signer_and_reader(change: dict[str, object]) -> None:
    record = msgspec.structs.replace(plain_record(NODE), **change)
    with pytest.raises(RecordError):
        sign_record(NODE, record, SIGNED.node_cert, SIGNED.authority_cert)
    with pytest.raises(RecordError):
        open_record(MESH.root, resign(record), NOW)


def test_what_is_not_the_nodes_own_word_is_refused() -> None:
    body = msgspec.msgpack.encode(plain_record(NODE, 6))
    certified_other = MESH.certify(OTHER, "beta")
    for bad in (
        msgspec.structs.replace(SIGNED, body=body),
        msgspec.structs.replace(SIGNED, signature=bytes(3309)),
        msgspec.structs.replace(SIGNED, signature=NODE.sign(SIGNED.body, b"another context")),
        msgspec.structs.replace(SIGNED, node_cert=certified_other),
        # another member signs a record about this node
        SignedRecord(
            body, OTHER.sign(body, b"phantommesh record v1"), certified_other, SIGNED.authority_cert
        ),
    ):
        with pytest.raises(RecordError):
            open_record(MESH.root, bad, NOW)
    with pytest.raises(TrustError):
        open_record(make_mesh("else").root, SIGNED, NOW)
    with pytest.raises(TrustError):
        open_record(MESH.root, SIGNED, NOW + NODE_LIFE + 1)


def test_the_roster_never_rolls_back() -> None:
    held = roster(SIGNED)
    before = held.digest()
    for old in (MESH.record(NODE, "alpha", 0), MESH.record(NODE, "alpha", 4), SIGNED):
        assert held.add(old, NOW) is False
    assert held.digest() == before
    assert held.add(MESH.record(NODE, "alpha", 6), NOW) is True
    entry = held.get(NODE.node_id)
    assert entry is not None
    assert entry.record.seq == 6
    assert held.add(SIGNED, NOW) is False  # a replay
    assert held.digest() != before


def test_of_two_with_one_address_or_name_the_lower_node_id_keeps_it() -> None:
    """Two authorities that did not hear of each other certified them. Both stay known, in any order."""
    member, _ = open_record(MESH.root, SIGNED, NOW)
    low, high = sorted((NODE.node_id, OTHER.node_id))
    cert = MESH.authority.issue(OTHER.spki, "alpha", Role.NODE, member.ip4, NOW)
    twin = sign_record(OTHER, plain_record(OTHER), cert, MESH.authority.der)
    both = [Dispute(high, low, "address"), Dispute(high, low, "name")]
    for order in ((SIGNED, twin), (twin, SIGNED)):
        held = roster(*order)
        assert len(held) == 2
        assert held.disputes(NOW) == both
    held = roster(SIGNED, twin)
    # who has run out claims nothing
    assert held.disputes(NOW + NODE_LIFE + DAY) == []
    # one gives way
    cert = MESH.authority.issue(OTHER.spki, "beta", Role.NODE, IPv4Address("100.64.0.77"), NOW)
    assert held.add(sign_record(OTHER, plain_record(OTHER, 2), cert, MESH.authority.der), NOW)
    assert held.disputes(NOW) == []
    # one is revoked
    revoked = Revocations(MESH.root)
    held = Roster(MESH.root, revoked)
    for signed in (SIGNED, twin):
        held.add(signed, NOW)
    revoked.add(revoke(MESH.authority, low, NOW), NOW)
    assert held.disputes(NOW) == []


@pytest.mark.parametrize("lower_first", [True, False])
def test_a_wireguard_key_stays_with_who_claimed_it_first(lower_first: bool) -> None:
    """A member that copies another's keys, though it has the lower node id, shuts nobody out."""
    first, second = sorted((NODE, OTHER), key=lambda node: node.node_id, reverse=not lower_first)
    record = msgspec.structs.replace(plain_record(second), wg_keys=plain_record(first).wg_keys)
    copy = sign_record(second, record, MESH.certify(second, "copy"), MESH.authority.der)
    early = sign_record(second, plain_record(second, 0), MESH.certify(second, "copy"), MESH.authority.der)
    expected = [Dispute(second.node_id, first.node_id, "WireGuard key")] * 7
    for order in ([MESH.record(first, "first"), copy], [early, MESH.record(first, "first"), copy]):
        held = roster(*order)
        assert held.disputes(NOW) == expected
        again = Roster.decode_untrusted(held.encode(), MESH.root, Revocations(MESH.root), NOW)
        assert again.disputes(NOW) == expected


def test_equivocation_is_kept_as_evidence_and_all_choose_the_same() -> None:
    other = msgspec.structs.replace(plain_record(NODE, 5), version="9.9")
    lie = sign_record(NODE, other, SIGNED.node_cert, SIGNED.authority_cert)
    kept = set()
    for order in ((SIGNED, lie), (lie, SIGNED)):
        held = roster(*order)
        proof = held.equivocations[NODE.node_id]
        assert {proof.kept, proof.other} == {SIGNED, lie}
        entry = held.get(NODE.node_id)
        assert entry is not None and entry.signed == proof.kept
        kept.add(entry.hash)
    assert len(kept) == 1
    held = roster(SIGNED, lie)
    assert held.add(MESH.record(NODE, "alpha", 6), NOW)  # its next word ends it; the proof stays
    assert NODE.node_id in held.equivocations


def test_a_renewed_certificate_on_the_same_word_is_no_equivocation() -> None:
    later = MESH.authority.issue(NODE.spki, "alpha", Role.NODE, IPv4Address("100.64.0.9"), NOW + DAY)
    renewed = msgspec.structs.replace(SIGNED, node_cert=later)
    for order in ((SIGNED, renewed), (renewed, SIGNED)):
        held = Roster(MESH.root, Revocations(MESH.root))
        for signed in order:
            held.add(signed, NOW + DAY)
        entry = held.get(NODE.node_id)
        assert entry is not None and entry.signed == renewed
        assert held.equivocations == {}


def test_what_a_revoked_authority_certified() -> None:
    """What it certified before holds for a usual life, what it certifies later does not."""
    revoked = Revocations(MESH.root)
    held = Roster(MESH.root, revoked)
    held.add(SIGNED, NOW)
    revoked.add(revoke(MESH.authority, identity("mesh first").node_id, NOW + DAY), NOW + DAY)
    assert held.get(NODE.node_id) is not None
    with pytest.raises(TrustError, match="authority that certified beta is revoked"):
        held.add(MESH.record(OTHER, "beta", now=NOW + 2 * DAY), NOW + 2 * DAY)
    endless = MESH.authority.issue(OTHER.spki, "beta", Role.NODE, IPv4Address("100.64.0.9"), NOW, 99 * DAY)
    with pytest.raises(TrustError, match="revoked"):
        held.add(sign_record(OTHER, plain_record(OTHER), endless, MESH.authority.der), NOW)


def test_a_full_roster_drops_who_is_long_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.records.MAX_MEMBERS", 1)
    held = roster(SIGNED)
    soon, late = NOW + NODE_LIFE + DAY, NOW + NODE_LIFE + 4 * DAY
    with pytest.raises(RecordError, match="full"):
        held.add(MESH.record(OTHER, "beta", now=soon), soon)
    assert held.add(MESH.record(OTHER, "beta", now=late), late)
    assert [entry.member.name for entry in held] == ["beta"]


def test_a_member_may_change_its_address() -> None:
    held = roster(SIGNED)
    cert = MESH.authority.issue(NODE.spki, "alpha", Role.NODE, IPv4Address("100.64.0.77"), NOW)
    assert held.add(sign_record(NODE, plain_record(NODE, 9), cert, MESH.authority.der), NOW)
    assert [str(member.ip4) for member in held.members(NOW)] == ["100.64.0.77"]


def test_a_revoked_node_is_out_at_once_and_stays_out() -> None:
    revoked = Revocations(MESH.root)
    held = Roster(MESH.root, revoked)
    held.add(SIGNED, NOW)
    revoked.add(revoke(MESH.authority, NODE.node_id, NOW), NOW)
    assert held.get(NODE.node_id) is None
    assert (list(held), held.members(NOW), len(held)) == ([], [], 0)
    with pytest.raises(TrustError, match="revoked"):
        held.add(MESH.record(NODE, "alpha", 9), NOW)
    assert len(Roster.decode_untrusted(held.encode(), MESH.root, revoked, NOW)) == 0


def test_who_was_revoked_after_the_roster_was_written_is_left_out_of_it() -> None:
    """The two are written one after the other, and the node may die in between."""
    second = identity("second authority")
    gone = identity("second")
    cert = issue_authority(MESH.root, MESH.root_key, second.spki, gone.node_id, NOW)
    issuer = Authority(MESH.root, cert, second)
    late = NOW + DAY
    by_second = issuer.issue(OTHER.spki, "beta", Role.NODE, IPv4Address("100.64.0.78"), late)
    held = roster(SIGNED, MESH.record(identity("third"), "gamma"))
    held.add(sign_record(OTHER, plain_record(OTHER), by_second, issuer.der), late)
    revoked = Revocations(MESH.root)
    for node_id in (NODE.node_id, gone.node_id):
        revoked.add(revoke(MESH.authority, node_id, NOW), NOW)
    again = Roster.decode_untrusted(held.encode(), MESH.root, revoked, late)
    assert [entry.member.name for entry in again] == ["gamma"]
    forged = msgspec.structs.replace(SIGNED, signature=bytes(3309))
    with pytest.raises(RecordError):
        Roster.decode_untrusted(msgspec.msgpack.encode([forged]), MESH.root, revoked, late)


def test_the_roster_survives_a_restart_and_a_long_sleep() -> None:
    held = roster(SIGNED, MESH.record(OTHER, "beta"))
    late = NOW + 100 * DAY
    for now in (NOW - DAY, NOW, late):
        again = Roster.decode_untrusted(held.encode(), MESH.root, Revocations(MESH.root), now)
        assert again.digest() == held.digest()
        assert len(again.members(now)) == (2 if now == NOW else 0)


def test_a_bad_roster_is_refused() -> None:
    other = make_mesh("else")
    for data, error in (
        (b"", RecordError),
        (b"junk", RecordError),
        (msgspec.msgpack.encode([SIGNED, MESH.record(NODE, "alpha", 9), SIGNED]), RecordError),
        (msgspec.msgpack.encode([other.record(NODE, "alpha")]), TrustError),
        (msgspec.msgpack.encode([msgspec.structs.replace(SIGNED, signature=bytes(3309))]), RecordError),
    ):
        with pytest.raises(error):
            Roster.decode_untrusted(data, MESH.root, Revocations(MESH.root), NOW)
