# SPDX-License-Identifier: GPL-3.0-or-later
"""Pacts as one node holds them: what another mesh's gateways, members and authorities can do, and cannot."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import pytest

from phantommesh.control.pactmessages import AskPact, PactIs
from phantommesh.node import federation as limits
from phantommesh.node.federation import STALE, Federation, door_of, together
from phantommesh.node.steps import Moment
from phantommesh.records.record import RecordError
from phantommesh.records.roster import Entry, Roster
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Member, TrustError
from phantommesh.trust.federation import Gateway, Ports, Service, Terms, Who, by_id, lock_of, sign
from phantommesh.trust.identity import Identity, NodeId
from phantommesh.trust.pacts import Bundle
from phantommesh.trust.revocations import Revocations
from tests.support.makemesh import NOW, TestMesh, identity, make_mesh

HERE, THERE = make_mesh("here"), make_mesh("there")
PACT, SECRET = bytes(range(16)), Secret(bytes(range(32)))
WEB = Ports("tcp", 443, 443)
T = TypeVar("T")


def key(mesh: TestMesh, name: str) -> Identity:
    return identity(f"{name} of {mesh.mesh.root_hash.hex()}")


def made(mesh: TestMesh, other: TestMesh, members: tuple[Who, ...], services: tuple[Service, ...]) -> bytes:
    gateway = key(mesh, "gate").node_id
    terms = Terms.make(
        PACT, mesh.mesh.root_hash, other.mesh.root_hash, members=(*members, by_id(gateway)),
        gateways=[Gateway(gateway, ("192.0.2.1:51800",))], services=services, lock=lock_of(SECRET), now=NOW,
    )  # fmt: skip
    return sign(mesh.authority, terms).encode()


OURS = made(HERE, THERE, ("db",), (Service("db", (WEB,), ("web",)),))
THEIRS = made(THERE, HERE, ("web",), ())


@dataclass
class Host:
    """One node, called ``name``, whose mesh has three others."""

    mesh: TestMesh
    name: str
    now: float = 0.0
    revocations: Revocations = field(init=False)
    roster: Roster = field(init=False)
    federation: Federation = field(init=False)

    def __post_init__(self) -> None:
        self.revocations = Revocations(self.mesh.root)
        self.roster = Roster(self.mesh.root, self.revocations)
        for name in ("db", "web", "gate", "other"):
            self.roster.add(self.mesh.record(key(self.mesh, name), name), NOW)
        self.federation = Federation(
            self.id, self.mesh.root, self.roster, self.revocations, lambda: Moment(self.now, NOW + self.now)
        )
        other = THERE if self.mesh is HERE else HERE
        halves = (OURS, THEIRS) if self.mesh is HERE else (THEIRS, OURS)
        bundle = Bundle(halves[0], other.root_der, halves[1], SECRET.reveal())
        assert self.federation.take([bundle.encode()]) == (True, [])
        self.federation.look()

    @property
    def id(self) -> NodeId:
        return key(self.mesh, self.name).node_id

    @property
    def member(self) -> Member:
        return self._entry.member

    @property
    def question(self) -> AskPact:
        return AskPact(PACT, self._entry.signed.encode())

    @property
    def _entry(self) -> Entry:
        """Its own, revoked or not."""
        return next(entry for entry in self.roster.everyone() if entry.member.node_id == self.id)

    def ask(self, gateway: Host, seen: bytes = b"") -> PactIs | None:
        question = msgspec.structs.replace(self.question, seen=seen)
        return gateway.federation.tell(self.id, door_of(PACT), question)

    def hear(self, answer: PactIs, gateway: Host) -> bool:
        new = at_once(self.federation.hearing(PACT, answer, self.member))
        other = self.federation.other(PACT)
        assert other is not None
        if answer.revoked != other.revocations.digest():
            new |= at_once(self.federation.take_revocations(PACT, [gateway.revocations.encode()]))
        return self.federation.heard(PACT) or new

    def visitors(self) -> list[str]:
        return [visitor.entry.member.name for visitor in self.federation.visitors(self.member)]

    def revoke(self, name: str) -> None:
        for one in self.revocations.sign(self.mesh.authority, key(self.mesh, name).node_id, NOW):
            self.revocations.add(one, NOW)
        self.federation.look()


def at_once(work: Generator[None, None, T]) -> T:
    while True:
        try:
            next(work)
        except StopIteration as end:
            found: T = end.value
            return found


def test_members_hear_of_each_other_from_gateways_and_apart_from_their_own() -> None:
    db, gate = Host(HERE, "db"), Host(THERE, "gate")
    assert db.visitors() == [] and [one.pact for one in db.federation.asked(db.member)] == [PACT]
    answer = db.ask(gate)
    assert answer is not None and len(answer.records) == 1
    digest = db.roster.digest()
    assert db.hear(answer, gate) and db.visitors() == ["web"]
    (visitor,) = db.federation.visitors(db.member)
    assert visitor.allowed.inbound == (WEB,) and not visitor.allowed.outbound
    assert db.roster.digest() == digest and len(db.revocations) == 0
    # It is told again when something has changed, and not before.
    assert db.ask(gate, answer.digest) is None
    gate.federation.look()
    assert db.ask(gate, answer.digest) is None
    gate.revoke("other")
    later = db.ask(gate, answer.digest)
    assert later is not None and later.revoked == gate.revocations.digest()
    # The network of the other mesh is this node's business, and not that of a member without a part.
    assert db.federation.networks(db.member) == (THERE.mesh.network6,)
    assert Host(HERE, "other").federation.networks(Host(HERE, "other").member) == ()
    assert Host(HERE, "other").federation.asked(Host(HERE, "other").member) == []


def test_what_one_mesh_revokes_the_other_closes() -> None:
    db, gate = Host(HERE, "db"), Host(THERE, "gate")
    first = db.ask(gate)
    assert first is not None
    db.hear(first, gate)
    gate.revoke("web")
    answer = db.ask(gate, first.digest)
    assert answer is not None and answer.records == ()
    assert db.hear(answer, gate) and db.visitors() == []
    db.hear(first, gate)  # an old answer brings nobody back
    assert db.visitors() == []


def test_a_node_that_is_revoked_has_no_visitors_and_learns_nothing() -> None:
    web, gate = Host(THERE, "web"), Host(HERE, "gate")
    answer = web.ask(gate)
    assert answer is not None and web.hear(answer, gate) and web.visitors() == ["db"]
    web.revoke("web")
    assert web.visitors() == []
    theirs = gate.federation.other(PACT)
    assert theirs is not None
    theirs.revocations.take(web.revocations, NOW)
    gate.federation.look()
    with pytest.raises(TrustError, match="revoked"):
        web.ask(gate)


def test_a_pact_rests_while_no_gateway_answers() -> None:
    db, gate = Host(HERE, "db"), Host(THERE, "gate")
    answer = db.ask(gate)
    assert answer is not None
    db.hear(answer, gate)
    db.now = STALE
    assert db.visitors() == [] and db.federation.networks(db.member)
    assert db.federation.heard(PACT) and db.visitors() == ["web"]


def test_a_gateway_that_its_mesh_revoked_is_asked_no_more() -> None:
    db, gate = Host(HERE, "db"), Host(THERE, "gate")
    answer = db.ask(gate)
    assert answer is not None
    db.hear(answer, gate)
    gate.revoke("gate")
    other = db.federation.other(PACT)
    assert other is not None and db.federation.asked(db.member)
    other.revocations.take(gate.revocations, NOW)  # as another gateway has told
    assert db.federation.asked(db.member) == []


def test_strangers_and_others_names_are_told_nothing() -> None:
    db, gate, mine = Host(HERE, "db"), Host(THERE, "gate"), Host(HERE, "gate")
    for peer, door, question in (
        (key(HERE, "web").node_id, door_of(PACT), db.question),  # another's record
        (db.id, bytes(16), db.question),
        (db.id, door_of(PACT), msgspec.structs.replace(db.question, pact=bytes(16))),
        (db.id, door_of(PACT), msgspec.structs.replace(db.question, record=b"junk")),
    ):
        with pytest.raises((TrustError, RecordError)):
            gate.federation.tell(peer, door, question)
    web = Host(THERE, "web")
    with pytest.raises(TrustError):  # of its own mesh
        gate.federation.tell(web.id, door_of(PACT), web.question)
    other = Host(HERE, "other").ask(gate)  # the pact does not name it
    assert other is not None and other.records == ()
    # Doors are for gateways, and the secret for those who come by one.
    assert gate.federation.secret_of(door_of(PACT)) == SECRET == mine.federation.secret_of(door_of(PACT))
    assert db.federation.secret_of(door_of(PACT)) is None and not db.federation.is_gateway()
    assert gate.federation.secret_of(PACT) is None


def test_a_gateway_that_lies_brings_in_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    db, gate = Host(HERE, "db"), Host(THERE, "gate")
    answer = db.ask(gate)
    assert answer is not None
    third = make_mesh("third")
    strangers = [
        THERE.record(key(THERE, "other"), "other").encode(),  # takes no part
        third.record(key(third, "web"), "web").encode(),  # of another mesh
        HERE.record(key(HERE, "web"), "web").encode(),  # of our own
        b"junk",
    ]
    lies = msgspec.structs.replace(answer, records=tuple(strangers))
    db.hear(lies, gate)
    other = db.federation.other(PACT)
    assert other is not None and db.visitors() == [] and len(other.roster.everyone()) == 0
    for half in (OURS, b"junk"):
        with pytest.raises(TrustError):
            at_once(db.federation.hearing(PACT, msgspec.structs.replace(answer, half=half), db.member))
    # An authority of theirs may certify any number of nodes by the name that the pact has.
    monkeypatch.setattr(limits, "MAX_KNOWN", 3)
    monkeypatch.setattr(limits, "MAX_VISITORS", 2)
    many = [THERE.record(identity(f"web {i}"), "web").encode() for i in range(9)]
    db.hear(msgspec.structs.replace(answer, records=tuple(many)), gate)
    assert len(other.roster.everyone()) <= 3 and len(db.visitors()) == 2
    monkeypatch.setattr(limits, "MAX_RULES", 1)
    assert len(db.visitors()) == 1
    # Nor do revocations fill anything: the pact rests, and the ones held stay few.
    monkeypatch.setattr(limits, "MAX_THEIR_REVOCATIONS", 2)
    for i in range(4):
        gate.revocations.add(
            gate.revocations.sign(THERE.authority, identity(f"gone {i}").node_id, NOW)[-1], NOW
        )
    with pytest.raises(TrustError, match="more nodes than are held"):
        at_once(db.federation.take_revocations(PACT, [gate.revocations.encode()]))
    assert len(other.revocations) == 0


def test_records_of_another_mesh_are_verified_at_a_bounded_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VERIFY_BURST", 3.0)
    monkeypatch.setattr(limits, "VERIFY_RATE", 0.001)
    db, gate = Host(HERE, "db"), Host(THERE, "gate")
    answer = db.ask(gate)
    assert answer is not None
    many = tuple(THERE.record(identity(f"web {i}"), "web").encode() for i in range(9))
    db.hear(msgspec.structs.replace(answer, records=many), gate)
    assert len(db.visitors()) == 3


def test_what_a_member_says_of_pacts_is_verified_at_a_bounded_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "VERIFY_BURST", 3.0)
    monkeypatch.setattr(limits, "VERIFY_RATE", 0.001)
    db, member = Host(HERE, "db"), key(HERE, "other").node_id
    known = list(db.federation.pacts.bundles())
    assert at_once(db.federation.taking(known * 64, member)) == (False, [])  # costs nothing
    looked, take = list[bytes](), db.federation.pacts.take

    def noting(data: bytes, *args: Any, **how: Any) -> bool:
        looked.append(data)
        return take(data, *args, **how)

    monkeypatch.setattr(db.federation.pacts, "take", noting)
    news, refused = at_once(db.federation.taking([b"junk%d" % i for i in range(64)], member))
    assert not news and len(looked) == 3 and "too much" in str(refused[-1])


def test_a_key_of_both_meshes_is_our_own_members() -> None:
    db, gate = Host(HERE, "db"), Host(THERE, "gate")
    answer = db.ask(gate)
    assert answer is not None
    both = THERE.record(key(HERE, "other"), "web").encode()
    db.hear(msgspec.structs.replace(answer, records=(*answer.records, both)), gate)
    assert db.visitors() == ["web"]
    me = THERE.record(key(HERE, "db"), "web").encode()
    db.hear(msgspec.structs.replace(answer, records=(me,)), gate)
    assert [v.entry.member.node_id for v in db.federation.visitors(db.member)] == [key(THERE, "web").node_id]


def test_the_end_of_a_pact_is_told_by_those_that_were_gateways() -> None:
    db, gate = Host(HERE, "db"), Host(THERE, "gate")
    first = db.ask(gate)
    assert first is not None
    db.hear(first, gate)
    ending = sign(
        THERE.authority, Terms.ending(PACT, THERE.mesh.root_hash, HERE.mesh.root_hash, NOW)
    ).encode()
    gate.federation.take([Bundle(ending, HERE.root_der, OURS, SECRET.reveal()).encode()])
    gate.federation.look()
    assert gate.federation.secret_of(door_of(PACT)) == SECRET
    answer = db.ask(gate, first.digest)
    assert answer is not None and answer.records == ()
    assert db.hear(answer, gate) and db.visitors() == []
    assert db.federation.asked(db.member) == [] and db.federation.networks(db.member)


def test_gossip_tells_of_pacts_only_where_there_are_any() -> None:
    assert together(lambda: b"12345678", lambda: b"") == b"12345678"
    one, two = together(lambda: b"12345678", lambda: b"a"), together(lambda: b"12345678", lambda: b"b")
    assert len(one) == 8 and one != two
