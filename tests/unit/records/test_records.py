# SPDX-License-Identifier: GPL-3.0-or-later
from dataclasses import replace
from ipaddress import IPv4Address

import msgspec
import pytest
from cryptography.x509 import Certificate

from phantommesh.node.peers import usable_keys
from phantommesh.records.record import (
    CONTEXT,
    NO_KEY,
    NodeRecord,
    PossessionError,
    RecordError,
    SignedRecord,
    open_record,
    sign_record,
)
from phantommesh.records.roster import Dispute, Roster, settle
from phantommesh.state import rosterlog
from phantommesh.trust.certificates import DAY, EARLY, NODE_LIFE, Role, TrustError
from phantommesh.trust.identity import Identity, NodeId, format_node_id
from phantommesh.trust.issuing import Authority, issue_authority
from phantommesh.trust.revocation import revoke
from phantommesh.trust.revocations import Revocations
from phantommesh.wireguard.keys import WgKey
from tests.support.makemesh import NOW, identity, make_mesh, plain_record, wg_keys

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
        {"wg_proofs": ()},
        {"wg_proofs": plain_record(NODE).wg_proofs[::-1]},
        {"wg_proofs": plain_record(OTHER).wg_proofs},
        {"wg_keys": plain_record(OTHER).wg_keys},
        {"wg_keys": plain_record(NODE).wg_keys[::-1], "wg_proofs": plain_record(NODE).wg_proofs[::-1]},
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
    # a member whose certificate has run out claims nothing
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


def test_where_every_other_name_is_taken_too_it_is_an_error_that_says_so() -> None:
    """Twenty-three names can be made for that end: an authority is asked for a certificate, and answers."""
    nodes = {node.node_id: node for node in (NODE, OTHER)}
    loser, winner = nodes[max(nodes)], nodes[min(nodes)]
    marks = (format_node_id(loser.node_id)[:length] for length in range(4, 27))
    others = [MESH.record(identity(f"namesake {mark}"), f"alpha-{mark}") for mark in marks]
    held = roster(MESH.record(winner, "alpha"), MESH.record(loser, "alpha"), *others)
    entry = held.get(loser.node_id)
    assert entry is not None and any(dispute.over == "name" for dispute in held.disputes(NOW))
    with pytest.raises(TrustError, match="every other name for alpha is taken"):
        settle(held, MESH.mesh, entry.member, NOW)


def on_disk(held: Roster) -> bytes:
    return rosterlog.encode(held.in_order(revoked=True))


def from_disk(data: bytes, root: Certificate, revocations: Revocations, now: float) -> Roster:
    return rosterlog.decode(data, root, revocations, now).roster


def earlier_file(held: Roster) -> bytes:
    """The list that versions before the log kept on disk."""
    signed = [entry.signed for entry in held.in_order(revoked=True)]
    return msgspec.msgpack.encode([(*msgspec.structs.astuple(one), True) for one in signed])


def with_key(node: Identity, dimension: int, key: WgKey, seq: int = 1) -> NodeRecord:
    """The node's record with one key of another: honest proofs, as of one that has the private half."""
    own = wg_keys(node)
    return plain_record(
        node, seq, replace(own, keys=(*own.keys[:dimension], key, *own.keys[dimension + 1 :]))
    )


@pytest.mark.parametrize("lower_first", [True, False])
def test_a_key_that_two_members_hold_stays_with_the_first_in_one_dimension_alone(lower_first: bool) -> None:
    """Also where the second has the lower node id, and after a restart."""
    first, second = sorted((NODE, OTHER), key=lambda node: node.node_id, reverse=not lower_first)
    key = wg_keys(first).keys[3]
    copy = sign_record(second, with_key(second, 5, key), MESH.certify(second, "copy"), MESH.authority.der)
    early = sign_record(second, plain_record(second, 0), MESH.certify(second, "copy"), MESH.authority.der)
    expected = [Dispute(second.node_id, first.node_id, "WireGuard key", key.public)]
    for order in ([MESH.record(first, "first"), copy], [early, MESH.record(first, "first"), copy]):
        held = roster(*order)
        again = Roster.decode_untrusted(held.encode(), MESH.root, Revocations(MESH.root), NOW)
        kept = rosterlog.decode(on_disk(held), MESH.root, Revocations(MESH.root), NOW).roster
        for found in (held, again, kept):
            assert found.disputes(NOW) == expected
            one, two = map(found.get, (first.node_id, second.node_id))
            assert one is not None and two is not None
            # a third member
            all_, but_5 = (
                wg_keys(first).public,
                tuple(k if k != key.public else NO_KEY for k in two.record.wg_keys),
            )
            stranger = NodeId(b"t" * 16)
            assert usable_keys(one, expected, stranger) == all_
            assert usable_keys(two, expected, stranger) == but_5 and but_5.index(NO_KEY) == 5
            # the two themselves: neither can have its own key as a peer's
            assert usable_keys(two, expected, first.node_id) == but_5
            assert usable_keys(one, expected, second.node_id).index(NO_KEY) == 3
            assert usable_keys(one, expected, second.node_id).count(NO_KEY) == 1


def test_no_key_is_used_for_the_one_that_has_to_give_up_its_address() -> None:
    entry = roster(SIGNED).get(NODE.node_id)
    assert entry is not None
    me, other = NodeId(b"m" * 16), NodeId(b"o" * 16)
    for loser, winner, used in (
        (NODE.node_id, other, False), (other, NODE.node_id, True),
        (NODE.node_id, me, False), (me, NODE.node_id, False), (me, other, True),
    ):  # fmt: skip
        keys = usable_keys(entry, [Dispute(loser, winner, "address")], me)
        assert keys == (entry.record.wg_keys if used else (NO_KEY,) * 7)
        assert usable_keys(entry, [Dispute(loser, winner, "name")], me) == entry.record.wg_keys


def test_a_key_that_another_announced_is_refused_and_its_owner_stays() -> None:
    """All that a member can do without the private half: with its own proofs, the owner's, or none."""
    victim, own = plain_record(OTHER), plain_record(NODE, 6)
    for proofs in (own.wg_proofs, victim.wg_proofs, (bytes(64),) * 7, (b"",) * 7, own.wg_proofs[:6]):
        lie = resign(msgspec.structs.replace(own, wg_keys=victim.wg_keys, wg_proofs=proofs))
        held = roster(SIGNED)
        with pytest.raises(PossessionError, match="member alpha"):
            held.add(lie, NOW)
        assert held.add(MESH.record(OTHER, "victim"), NOW)
        assert held.disputes(NOW) == []


def test_a_record_of_an_earlier_version_is_known_from_the_disk_and_counts_as_run_out() -> None:
    """So a node that was upgraded knows where its peers are, and hears of their keys once they were, too."""
    early = resign(msgspec.structs.replace(plain_record(NODE, 6), wg_proofs=()))
    assert len(msgspec.msgpack.decode(early.body)) == 13
    shorter = msgspec.msgpack.encode(msgspec.msgpack.decode(early.body)[:6])
    early = msgspec.structs.replace(early, body=shorter, signature=NODE.sign(shorter, CONTEXT))
    with pytest.raises(PossessionError, match="earlier version") as caught:
        roster(early)
    assert "upgrade" in caught.value.fix
    written = msgspec.msgpack.encode([early])
    held = Roster.decode_untrusted(written, MESH.root, Revocations(MESH.root), NOW)
    entry = held.get(NODE.node_id)
    assert entry is not None and not entry.valid(NOW) and held.members(NOW) == []
    assert held.encode() == written  # it stays so until the node itself says more
    kept = rosterlog.decode(on_disk(held), MESH.root, Revocations(MESH.root), NOW).roster
    assert kept.encode() == written and kept.members(NOW) == []
    assert held.add(MESH.record(NODE, "alpha", 7), NOW)
    assert [member.name for member in held.members(NOW)] == ["alpha"]
    lie = resign(msgspec.structs.replace(plain_record(NODE, 6), wg_proofs=(bytes(64),) * 7))
    with pytest.raises(PossessionError):
        Roster.decode_untrusted(msgspec.msgpack.encode([lie]), MESH.root, Revocations(MESH.root), NOW)


def test_the_mark_of_verified_proofs_is_believed_from_the_own_disk_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = roster(SIGNED, MESH.record(OTHER, "beta"))
    kept, sent, log = earlier_file(held), held.encode(), on_disk(held)
    verified = []

    def count(*args: object) -> bool:
        verified.append(args)
        return True

    monkeypatch.setattr("phantommesh.records.record.proves", count)
    for read, data, times in (
        (from_disk, log, 0), (from_disk, kept, 0), (from_disk, sent, 14),  # earlier versions' files
        (Roster.decode_untrusted, kept, 14), (Roster.decode_untrusted, sent, 14),
    ):  # fmt: skip
        verified.clear()
        again = read(data, MESH.root, Revocations(MESH.root), NOW)
        assert len(verified) == times
        assert again.digest() == held.digest() and on_disk(again) == log
        entry = again.get(NODE.node_id)
        assert entry is not None and entry.signed == SIGNED


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
    """Certificates from before hold to their end, later ones are not taken in; no life is endless."""
    revoked = Revocations(MESH.root)
    held = Roster(MESH.root, revoked)
    held.add(SIGNED, NOW)
    revoked.add(revoke(MESH.authority, identity("mesh first").node_id, NOW + DAY), NOW + DAY)
    assert held.get(NODE.node_id) is not None
    with pytest.raises(TrustError, match="authority that certified beta is revoked"):
        held.add(MESH.record(OTHER, "beta", now=NOW + 2 * DAY), NOW + 2 * DAY)
    endless = MESH.authority.issue(OTHER.spki, "beta", Role.NODE, IPv4Address("100.64.0.9"), NOW, 99 * DAY)
    with pytest.raises(TrustError, match="longer than any may be"):
        held.add(sign_record(OTHER, plain_record(OTHER), endless, MESH.authority.der), NOW)


def test_a_full_roster_drops_who_is_long_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.records.roster.MAX_MEMBERS", 1)
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


def test_who_was_revoked_after_the_roster_was_written_is_out_of_it() -> None:
    """The two are written one after the other, and the node may die in between. A node that a revoked
    authority certified was held before this node knew of the revocation, so it stays."""
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
    assert sorted(entry.member.name for entry in again) == ["beta", "gamma"]
    assert sorted(entry.member.name for entry in again.everyone()) == ["alpha", "beta", "gamma"]
    forged = msgspec.structs.replace(SIGNED, signature=bytes(3309))
    with pytest.raises(RecordError):
        Roster.decode_untrusted(msgspec.msgpack.encode([forged]), MESH.root, revoked, late)


def test_the_roster_survives_a_restart_and_a_long_sleep() -> None:
    held = roster(SIGNED, MESH.record(OTHER, "beta"))
    late = NOW + 100 * DAY
    for now in (NOW - 2 * DAY, NOW, late):
        again = Roster.decode_untrusted(held.encode(), MESH.root, Revocations(MESH.root), now)
        assert again.digest() == held.digest()
        assert len(again.members(now)) == (2 if now == NOW else 0)


def test_a_clock_that_is_behind_drops_no_member() -> None:
    """Also not one whose certificate was issued a moment ago."""
    behind = NOW - 3_600.0
    held = Roster(MESH.root, Revocations(MESH.root))
    assert held.add(SIGNED, behind)
    assert len(held.members(behind)) == 1
    again = Roster.decode_untrusted(held.encode(), MESH.root, Revocations(MESH.root), behind)
    assert len(again.members(behind)) == 1
    with pytest.raises(TrustError):
        Roster(MESH.root, Revocations(MESH.root)).add(SIGNED, NOW - EARLY - DAY)


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
