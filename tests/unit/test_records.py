# SPDX-License-Identifier: GPL-3.0-or-later
from ipaddress import IPv4Address

import msgspec
import pytest

from phantommesh.records import (
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
    for seq in (0, 4, 5):
        assert held.add(MESH.record(NODE, "alpha", seq), NOW) is False
    assert held.digest() == before
    assert held.add(MESH.record(NODE, "alpha", 6), NOW) is True
    entry = held.get(NODE.node_id)
    assert entry is not None
    assert entry.record.seq == 6
    assert held.add(SIGNED, NOW) is False  # a replay
    assert held.digest() != before


def test_an_address_has_one_holder() -> None:
    member, _ = open_record(MESH.root, SIGNED, NOW)
    cert = MESH.authority.issue(OTHER.spki, "beta", Role.NODE, member.ip4, NOW)
    thief = sign_record(OTHER, plain_record(OTHER), cert, MESH.authority.der)
    held = roster(SIGNED)
    with pytest.raises(RecordError, match=f"beta claims the address {member.ip4} of alpha"):
        held.add(thief, NOW)
    assert [entry.member.name for entry in held] == ["alpha"]
    # whose certificate has run out no longer holds it
    late = NOW + NODE_LIFE + DAY
    cert = MESH.authority.issue(OTHER.spki, "beta", Role.NODE, member.ip4, late)
    assert held.add(sign_record(OTHER, plain_record(OTHER), cert, MESH.authority.der), late)
    assert [entry.member.name for entry in held] == ["beta"]


def test_a_wireguard_key_has_one_holder() -> None:
    record = msgspec.structs.replace(plain_record(OTHER), wg_keys=plain_record(NODE).wg_keys)
    stolen = sign_record(OTHER, record, MESH.certify(OTHER, "beta"), MESH.authority.der)
    with pytest.raises(RecordError, match="WireGuard key of alpha"):
        roster(SIGNED).add(stolen, NOW)


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
