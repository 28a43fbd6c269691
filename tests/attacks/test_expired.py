# SPDX-License-Identifier: GPL-3.0-or-later
"""Attacks by way of a certificate that ran out: by one who was revoked, who copied it, who recorded its
renewal, who has an authority's old key and sets a clock back, who comes too late."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest

from phantommesh.control import messages
from phantommesh.control.sessions import Session
from phantommesh.endpoint import Address
from phantommesh.link.effects import Effect, Opened
from phantommesh.link.keys import RETURNING
from phantommesh.node.desk import RENEWALS
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
    return messages.Return(make_csr(key, "n3"), body, key.sign(body, CONTEXT), 0)


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
    asked = messages.Return(b"", b"", b"", 0)
    for until in (-1, messages.MAX_MOMENT + 1, 1 << 63, 1e300, float("nan"), "x"):
        data = msgspec.msgpack.encode({**msgspec.structs.asdict(asked), "type": "return", "until": until})
        with pytest.raises(messages.ControlError):
            messages.decode_request_untrusted(data)
