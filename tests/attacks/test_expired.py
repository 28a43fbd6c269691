# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks by way of a certificate that ran out: by one who was revoked, who copied it, who recorded its
renewal, who has an authority's old key and sets a clock back, who comes too late."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address
from itertools import product

import msgspec
import pytest

from phantommesh.control import messages
from phantommesh.control.sessions import Session
from phantommesh.endpoint import Address
from phantommesh.link.effects import Effect, Opened
from phantommesh.link.keys import RETURNING
from phantommesh.node.desk import RENEWALS
from phantommesh.node.own import REFUSED_MOST
from phantommesh.records.record import CONTEXT, SignedRecord
from phantommesh.secret import Secret
from phantommesh.trust.certificates import DAY, NODE_LIFE, Role, TrustError, verify_chain
from phantommesh.trust.identity import Identity
from phantommesh.trust.issuing import make_csr
from tests.simulation.full_node import Process
from tests.simulation.full_parts import identity, plain_record
from tests.simulation.full_scenarios import settle
from tests.simulation.full_sim import Simulation

AWAY = 3  # the member that is off
YEAR = 365 * DAY


def mesh() -> Simulation:
    """An authority and three members; the last of them was off for ten days."""
    sim = Simulation(4, authorities=1)
    sim.start_all()
    settle(sim, 60)
    sim.crash(AWAY)
    sim.days(10)
    return sim


def request(sim: Simulation, key: Identity, seq: int = 1 << 40) -> messages.Return:
    """The request of this key's node, or of one that says that it is."""
    body = msgspec.msgpack.encode(plain_record(key, seq, sim.machines[AWAY].address))
    return messages.Return(make_csr(key, "n3"), body, key.sign(body, CONTEXT), 0, int(sim.wall))


def session(claimed: Identity, key: Identity | None = None, invite: bytes = RETURNING) -> Session:
    """A session of this node at the authority, whose key the handshake has shown to be ``key``."""
    return Session(
        claimed.node_id, b"", Secret(b""), Secret(b""), invite, (key or claimed).spki if invite else b""
    )


def answer(sim: Simulation, by: Session, asked: messages.Request, at: int = 0) -> messages.Answer:
    found: list[messages.Answer] = []
    sim.process(at).desk.serve(by, asked, found.append)
    sim.run(5, lambda: bool(found))
    return found[0]


def refused(sim: Simulation, by: Session, asked: messages.Request, at: int = 0) -> str:
    found = answer(sim, by, asked, at)
    assert isinstance(found, messages.Refused), found
    return found.message


def address(sim: Simulation) -> IPv4Address:
    """The overlay address of the member that is off, as the authority knows it."""
    entry = sim.process(0).roster.get(sim.machines[AWAY].identity.node_id)
    assert entry is not None
    return entry.member.ip4


def held(process: Process, key: Identity) -> float | None:
    entry = process.roster.get(key.node_id)
    return None if entry is None else entry.member.not_after


def test_the_member_itself_is_taken_back_with_its_name_and_address() -> None:
    sim = mesh()
    away = sim.machines[AWAY].identity
    before = sim.process(0).roster.get(away.node_id)
    assert before is not None and before.member.not_after < sim.wall
    found = answer(sim, session(away), request(sim, away))
    assert isinstance(found, messages.Returned)
    member = verify_chain(sim.mesh.root, found.authority_cert, found.node_cert, sim.wall)
    same = (member.node_id, member.name, member.role, member.ip4, member.ip6)
    old = before.member
    assert same == (old.node_id, old.name, old.role, old.ip4, old.ip6)
    assert held(sim.process(0), away) == member.not_after


@pytest.mark.parametrize("later", [0.0, NODE_LIFE, 60 * DAY, 89 * DAY - NODE_LIFE, 400 * DAY])
def test_who_was_revoked_does_not_come_back_however_long_ago_that_was(later: float) -> None:
    """Statements are never forgotten, so none ends before the grace does."""
    sim = mesh()
    away = sim.machines[AWAY].identity
    sim.revoke(0, AWAY)
    sim.run(5)
    sim.skipped += later
    sim.crash(0)
    sim.start(0)  # from its disk
    assert refused(sim, session(away), request(sim, away)) == "this node was revoked"
    assert sim.process(0).desk.desk.returning.secret_of(away.node_id) is None
    sim.start(AWAY)
    sim.run(60)
    assert held(sim.process(0), away) is None
    assert sim.process(AWAY).own.member.not_after < sim.wall


def test_who_was_revoked_while_the_authority_signs_is_not_taken_back() -> None:
    sim = mesh()
    away, authority = sim.machines[AWAY].identity, sim.process(0)
    sim.machines[0].thread_seconds = 1.0
    found: list[messages.Answer] = []
    authority.desk.serve(session(away), request(sim, away), found.append)
    sim.run(0.5)
    signer = sim.machines[0].authority
    assert signer is not None
    authority.keeper.revoke(*authority.revocations.sign(signer, away.node_id, sim.wall))
    sim.run(10)
    assert isinstance(found[0], messages.Refused)
    assert held(authority, away) is None


def test_a_copied_certificate_is_of_no_use_without_its_key() -> None:
    """Every member has everybody's certificate. The key that the handshake has shown is another one."""
    sim = mesh()
    away, thief = sim.machines[AWAY].identity, identity("thief")
    as_itself = session(thief)
    assert refused(sim, as_itself, request(sim, thief)) == "this node is no member that is known here"
    stolen = session(away, thief)
    for csr_of in (thief, away):
        asked = msgspec.structs.replace(request(sim, away), csr=make_csr(csr_of, "n3"))
        if csr_of is away:  # made by the member itself once, and copied
            message = "the certificate request is for another key than the handshake's"
            assert refused(sim, stolen, asked) == message
        else:
            assert isinstance(answer(sim, stolen, asked), messages.Refused)
    forged = msgspec.structs.replace(request(sim, away), signature=thief.sign(b"", CONTEXT))
    assert "signature is wrong" in refused(sim, session(away), forged)
    before = sim.process(0).roster.get(away.node_id)
    assert before is not None and before.member.not_after < sim.wall


def test_the_handshake_wants_a_signature_of_the_members_key() -> None:
    """The secret in place of an invite's is one that everybody can compute."""
    sim = mesh()
    opened: list[Opened] = []
    authority = sim.process(0)
    really = authority.carry_links

    def watched(wanted: Sequence[Effect]) -> None:
        opened.extend(effect for effect in wanted if isinstance(effect, Opened))
        really(wanted)

    authority.carry_links = watched  # type: ignore[method-assign]
    machine = sim.machines[AWAY]
    away, thief = machine.identity, identity("thief")
    sim.start(AWAY)
    machine.identity = _Impostor(away, thief)  # type: ignore[assignment]
    sim.run(40)
    assert not [one for one in opened if one.invite == RETURNING]
    assert authority.links.drops["signature"] > 0


class _Impostor:
    """A node that shows another's public key, and signs with its own."""

    def __init__(self, shown: Identity, own: Identity) -> None:
        self.node_id, self.spki, self.public_key = shown.node_id, shown.spki, shown.public_key
        self.private_key, self.sign = own.private_key, own.sign


def test_a_recorded_renewal_is_no_renewal() -> None:
    """All that came to the authority while a member was taken back, once more: after it crashed too, when no
    nonce is remembered."""
    sim = mesh()
    tape: list[tuple[bytes, Address]] = []
    there = sim.machines[0].address.host

    def record(datagram: bytes, source: Address, to: Address) -> None:
        if to.host == there:
            tape.append((datagram, source))

    sim.overhear = record
    sim.start(AWAY)
    sim.run(10)
    sim.overhear = None
    assert sim.tally["member taken back"] == 1
    assert sum(source.transport == "tcp" for _, source in tape) > 2
    certificate = held(sim.process(0), sim.machines[AWAY].identity)
    opened = len(sim.process(0).sessions._newcomers)
    for _ in range(2):
        for datagram, source in tape:
            sim.process(0).receive(datagram, source)
        sim.run(5)
        assert len(sim.process(0).sessions._newcomers) <= opened
        assert sim.tally["member taken back"] == 1
        assert held(sim.process(0), sim.machines[AWAY].identity) == certificate
        sim.crash(0)
        sim.start(0)
        opened = 0


def test_a_member_that_asks_again_and_again_costs_the_others_a_few_records() -> None:
    sim = mesh()
    away = sim.machines[AWAY].identity
    answers = [answer(sim, session(away), request(sim, away, seq=(1 << 40) + i)) for i in range(RENEWALS + 3)]
    granted = [one for one in answers if isinstance(one, messages.Returned)]
    assert len(granted) == RENEWALS
    assert all("several times" in one.message for one in answers if isinstance(one, messages.Refused))


@pytest.mark.parametrize("ahead", [-YEAR, -2 * DAY, 6 * DAY, YEAR])
def test_a_member_whose_clock_is_wrong_uses_up_nothing(ahead: float) -> None:
    """A machine that was off often starts with a wrong clock. It would throw away each certificate that it is
    given, and be refused for hours when its clock is right."""
    sim = mesh()
    away, before = sim.machines[AWAY].identity, held(sim.process(0), sim.machines[AWAY].identity)
    wrong = int(sim.wall + ahead)
    for seq in range(RENEWALS + 2):
        asked = msgspec.structs.replace(request(sim, away, seq=(1 << 40) + seq), at=wrong)
        said = answer(sim, session(away), asked)
        assert isinstance(said, messages.Refused)
        assert said.message.startswith("the clock of n3 is ")
        assert f" {'ahead' if ahead > 0 else 'behind'}: by it" in said.message
        assert "set the clock of the machine of the two whose clock is wrong" in said.fix
    assert held(sim.process(0), away) == before
    assert isinstance(answer(sim, session(away), request(sim, away)), messages.Returned)


def test_a_node_that_is_refused_asks_ever_less_often() -> None:
    """Each time costs the authority a handshake and a line of its log."""
    sim = mesh()
    authority = sim.process(0)
    ended = held(authority, sim.machines[AWAY].identity)
    assert ended is not None
    sim.skipped += ended + sim.mesh.described.grace - sim.wall + DAY
    sim.run(30)
    opened = Counter[bytes]()
    really = authority.carry_links

    def watched(wanted: Sequence[Effect]) -> None:
        opened.update(one.peer for one in wanted if isinstance(one, Opened) and one.invite == RETURNING)
        really(wanted)

    authority.carry_links = watched  # type: ignore[method-assign]
    sim.start(AWAY)
    sim.run(1200)
    asked = opened[sim.machines[AWAY].identity.node_id]
    assert 3 <= asked <= 3 + 1200 / REFUSED_MOST + 1
    # Its clock was set: what was refused before may be granted now.
    word = sim.process(AWAY).own.word
    assert word.refrains(sim.process(AWAY).desk.worker.moment())
    sim.step_clock(AWAY, 3600.0)
    assert not word.refrains(sim.process(AWAY).desk.worker.moment())


def test_a_stolen_key_of_a_replaced_identity_is_of_no_use() -> None:
    """The lost machine's place went to another machine, which revoked the lost one."""
    sim = mesh()
    authority, lost = sim.process(0), sim.machines[AWAY].identity
    signer = sim.machines[0].authority
    assert signer is not None
    heir, ip4 = identity("heir"), address(sim)
    authority.keeper.revoke(*authority.revocations.sign(signer, lost.node_id, sim.wall))
    cert = signer.issue(heir.spki, "n3", Role.NODE, ip4, sim.wall)
    body = msgspec.msgpack.encode(plain_record(heir, 1, sim.machines[AWAY].address))
    authority.keeper.add(SignedRecord(body, heir.sign(body, CONTEXT), cert, signer.der))
    assert refused(sim, session(lost), request(sim, lost)) == "this node was revoked"
    entry = authority.roster.get(heir.node_id)
    assert entry is not None and (entry.member.name, entry.member.ip4) == ("n3", ip4)


def test_a_member_that_was_away_gets_the_name_of_nobody_present() -> None:
    """An authority that did not hear of the member's rename knows the old name, which is another's now."""
    sim = mesh()
    authority, away = sim.process(0), sim.machines[AWAY].identity
    signer, present = sim.machines[0].authority, identity("present")
    assert signer is not None
    cert = signer.issue(present.spki, "n3", Role.NODE, address(sim), sim.wall)
    body = msgspec.msgpack.encode(plain_record(present, 1, sim.machines[AWAY].address))
    authority.keeper.add(SignedRecord(body, present.sign(body, CONTEXT), cert, signer.der))
    lost = address(sim)
    found = answer(sim, session(away), request(sim, away))
    assert isinstance(found, messages.Returned)
    member = verify_chain(sim.mesh.root, found.authority_cert, found.node_cert, sim.wall)
    assert member.node_id == away.node_id
    assert member.name.startswith("n3-") and member.ip4 != lost
    assert not [one for one in authority.roster.disputes(sim.wall) if one.over in ("name", "address")]


def test_the_record_of_another_does_not_come_in_by_a_return() -> None:
    """The request's record must be signed by the key of the handshake."""
    sim = mesh()
    away, other = sim.machines[AWAY].identity, sim.process(1)
    theirs = other.roster.get(other.me)
    assert theirs is not None
    asked = msgspec.structs.replace(
        request(sim, away), record=theirs.signed.body, signature=theirs.signed.signature
    )
    assert isinstance(answer(sim, session(away), asked), messages.Refused)
    before = held(sim.process(0), away)
    assert before is not None and before < sim.wall


def test_an_authority_that_did_not_hear_of_a_revocation_lets_in_for_itself_alone() -> None:
    """It was off when another one revoked the member, and has no link yet. Nobody else takes the certificate,
    and it puts the member out itself as soon as it hears of the revocation. The group keys that it gives are
    older than the revocation."""
    sim = Simulation(5, authorities=2)
    sim.start_all()
    settle(sim, 60)
    sim.crash(AWAY)
    sim.crash(1)
    sim.revoke(0, AWAY)
    sim.days(10)
    away = sim.machines[AWAY].identity
    sim.network.cut = lambda a, b: 1 in (a, b)
    sim.start(1)
    sim.run(1)
    found = answer(sim, session(away), request(sim, away), at=1)
    assert isinstance(found, messages.Returned)
    newest = sim.process(0).ring.newest
    assert newest is not None and newest.key not in found.keys
    entry = sim.process(1).roster.get(away.node_id)
    assert entry is not None
    with pytest.raises(TrustError, match="is revoked"):
        sim.process(2).keeper.add(entry.signed)
    sim.network.cut = lambda a, b: False
    assert sim.run(60, lambda: away.node_id in sim.process(1).revocations)
    assert held(sim.process(1), away) is None
    assert all(held(process, away) is None for process in sim.running())


def test_a_clock_that_is_set_back_makes_no_old_authority_young() -> None:
    """Who has an authority's key may date certificates as it likes. A revoked one's are refused, and so are
    old ones that nobody held: a node that it invents was never a member."""
    sim = mesh()
    authority = sim.machines[0].authority
    assert authority is not None
    invented = identity("invented")
    long_ago = sim.wall - 30 * DAY
    ip4 = sim.process(1).own.member.ip4
    made = authority.issue(invented.spki, "old", Role.NODE, ip4, long_ago)
    body = msgspec.msgpack.encode(plain_record(invented, 1, sim.machines[AWAY].address))
    signed = SignedRecord(body, invented.sign(body, CONTEXT), made, authority.der)
    for process in sim.running():
        with pytest.raises(TrustError, match="ran out on"):
            process.keeper.add(signed)
    assert "no member that is known" in refused(sim, session(invented), request(sim, invented))


def test_a_revoked_authority_takes_nobody_back_and_is_not_taken_back() -> None:
    sim = Simulation(5, authorities=2)
    sim.start_all()
    settle(sim, 60)
    rogue, away = sim.machines[1].identity, sim.machines[AWAY].identity
    sim.crash(AWAY)
    sim.days(10)
    sim.revoke(0, 1)
    sim.run(30)
    assert refused(sim, session(away), request(sim, away), at=1) == "this authority was revoked"
    machine = sim.machines[1]
    assert machine.authority is not None
    mine = msgspec.structs.replace(
        request(sim, rogue), node_cert=machine.node_cert, authority_cert=machine.authority_cert
    )
    assert refused(sim, session(rogue), mine) == "this node was revoked"
    # A member that knows of the revocation adopts nothing of the rogue's.
    ip4 = sim.process(2).own.member.ip4
    issued = machine.authority.issue(away.spki, "n3", Role.NODE, ip4, sim.wall)
    sim.start(AWAY)
    sim.run(60)
    with pytest.raises(TrustError, match="was revoked"):
        sim.process(AWAY).own.word._verified(
            issued, machine.authority.der, sim.process(2).desk.worker.moment()
        )
    entry = sim.process(AWAY).roster.get(away.node_id)
    assert entry is not None and entry.issuer == sim.machines[0].identity.node_id


def test_a_member_that_was_away_learns_that_an_authority_was_revoked_meanwhile() -> None:
    """The rogue never hears of its own revocation, and would take back whoever comes."""
    sim = Simulation(6, authorities=2)
    rogue, honest = sorted((0, 1), key=lambda i: sim.machines[i].identity.node_id)  # in the order of asking
    sim.start_all()
    settle(sim, 60)
    sim.crash(AWAY)
    sim.network.cut = lambda a, b: rogue in (a, b) and AWAY not in (a, b)
    sim.revoke(honest, rogue)
    sim.days(10)
    sim.start(AWAY)
    process = sim.process(AWAY)
    assert sim.run(60, lambda: process.own.word.certified_at(process.wall)), process.own.word.renewal_error
    assert sim.machines[rogue].identity.node_id in process.revocations
    entry = process.roster.get(process.me)
    assert entry is not None and entry.issuer == sim.machines[honest].identity.node_id
    assert sim.tally["member taken back"] >= 2  # by the rogue too


def test_one_authority_is_not_taken_back_by_the_word_of_another() -> None:
    """An authority brings the certificate that it gave itself: another's says nothing of it."""
    sim = Simulation(5, authorities=2)
    sim.start_all()
    settle(sim, 60)
    sim.crash(1)
    sim.days(10)
    away, other = sim.machines[1].identity, sim.machines[0]
    asked = request(sim, away)
    assert "gave itself" in refused(sim, session(away), replace_chain(asked, b"", other.authority_cert))
    assert isinstance(
        answer(sim, session(away), replace_chain(asked, other.node_cert, sim.machines[1].authority_cert)),
        messages.Refused,
    )


def replace_chain(asked: messages.Return, node_cert: bytes, authority_cert: bytes) -> messages.Return:
    return msgspec.structs.replace(asked, node_cert=node_cert, authority_cert=authority_cert)


@pytest.mark.parametrize("late", [60.0, DAY])
def test_who_comes_after_the_grace_is_told_how_to_join(late: float) -> None:
    """It is the authority's clock that counts, whatever the member says."""
    sim = mesh()
    away = sim.machines[AWAY].identity
    ended = held(sim.process(0), away)
    assert ended is not None
    sim.skipped += ended + sim.mesh.described.grace - sim.wall - 60
    assert isinstance(answer(sim, session(away), request(sim, away)), messages.Returned)
    again = held(sim.process(0), away)
    assert again is not None
    sim.skipped += again + sim.mesh.described.grace - sim.wall + late
    for until in (0, int(again), int(sim.wall)):
        asked = msgspec.structs.replace(request(sim, away), until=until)
        found = answer(sim, session(away), asked)
        assert isinstance(found, messages.Refused)
        assert "longer ago than the mesh's grace of 90 days" in found.message
        assert "`phantommesh invite --replace n3`" in found.fix


def test_only_the_handshake_for_it_takes_a_member_back() -> None:
    """Not a member's link, nor an invite."""
    sim = mesh()
    away = sim.machines[AWAY].identity
    for invite in (b"", b"i" * 16):
        message = refused(sim, session(away, invite=invite), request(sim, away))
        assert message == "a member that is linked renews its certificate over its link"
    others: list[Callable[[], messages.Request]] = [
        messages.AskKeys,
        lambda: messages.Renew(make_csr(away, "n3")),
        lambda: messages.Enrol(make_csr(away, "n3"), b"", b""),
        messages.Replace,
    ]
    for make in others:
        assert refused(sim, session(away), make())


def test_a_date_that_is_none_is_refused_by_the_decoder() -> None:
    asked = messages.Return(b"", b"", b"", 0, 0)
    dates: tuple[object, ...] = (-1, messages.MAX_MOMENT + 1, 1 << 63, 1e300, float("nan"), "x")
    for field, date in product(("until", "at"), dates):
        data = msgspec.msgpack.encode({**msgspec.structs.asdict(asked), "type": "return", field: date})
        with pytest.raises(messages.ControlError):
            messages.decode_request_untrusted(data)
