# SPDX-License-Identifier: GPL-3.0-or-later
"""How a new machine joins the mesh of `full_sim`: a real `Newcomer` with an invite, then an enrolment; and
how a node comes back by the same handshake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from phantommesh.control import asking, messages
from phantommesh.control.sessions import Session
from phantommesh.link.effects import Effect, Opened, Send, Sign
from phantommesh.link.keys import RETURNING, returning_secret
from phantommesh.link.newcomer import Newcomer
from phantommesh.nursery.members.enrolment import HANDSHAKE_SECONDS
from phantommesh.records.record import CONTEXT
from phantommesh.secret import Secret
from phantommesh.state.invitebook import InviteEntry
from phantommesh.trust.certificates import DAY, Role, TrustError, load_certificate, verify_chain
from phantommesh.trust.groupkey import Keyring, take_keys
from phantommesh.trust.identity import Identity, NodeId
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import Authority, make_csr, prove_authority
from phantommesh.trust.revocations import Revocations
from tests.simulation.full_calls import Call
from tests.simulation.full_machines import NEVER, Machine
from tests.simulation.full_parts import identity, plain_record

if TYPE_CHECKING:
    from tests.simulation.full_sim import Simulation


@dataclass(frozen=True)
class Joining:
    """A machine that is joining, or coming back. ``opened`` is called with the session of the handshake."""

    newcomer: Newcomer
    opened: Callable[[Session], None]


def join(
    sim: Simulation, index: int, authority: int, role: Role = Role.NODE, given: Invite | None = None
) -> None:
    """Have a new machine join at this authority, again and again until it is in: by the invite that is given,
    or else by a new one for this role each time."""
    machine, at = sim.machines[index], sim.machines[authority]
    if given is None:
        invite, secret = sim.rng.randbytes(16), Secret(sim.rng.randbytes(32))
        at.invites[invite] = InviteEntry(role, None, int(sim.wall + at.wall_offset + DAY), 1, secret)
    else:
        invite, secret = given.invite_id, given.secret

    def attempt() -> None:
        if machine.process is not None or (machine.joining and not machine.joining.newcomer.failed):
            return
        newcomer = _newcomer(sim, machine, at, invite, secret)
        again = partial(join, sim, index, authority, role, given)
        machine.joining = Joining(newcomer, partial(_enrol, sim, machine, again, role))
        carry_join(sim, machine, newcomer.tick(sim.now))
        sim.later(0.5, lambda: _tick_join(sim, machine, newcomer, attempt))

    attempt()


def _newcomer(sim: Simulation, machine: Machine, at: Machine, invite: bytes, secret: Secret) -> Newcomer:
    return Newcomer(
        node_id=machine.identity.node_id, spki=machine.identity.spki, authority=at.identity.node_id,
        root_hash=sim.mesh.described.root_hash, invite=invite, secret=secret,
        destination=at.address._replace(transport="tcp"), kem=sim.kem, random=sim.rng.randbytes,
        now=sim.now,
    )  # fmt: skip


def come_back(
    sim: Simulation, machine: Machine, at: Machine, request: messages.Return, done: Callable[[Any], None]
) -> None:
    """`returning.come_back`, of one authority: call ``done`` with its answer, None where there is none."""
    life, secret = machine.life, returning_secret(
        sim.mesh.described.root_hash, at.identity.node_id, machine.identity.node_id
    )  # fmt: skip
    newcomer = _newcomer(sim, machine, at, RETURNING, secret)

    def talk() -> asking.Talk[Any]:
        return (yield request)

    def opened(session: Session) -> None:
        machine.joining = None
        Call(sim, machine, at, session, talk(), done)

    def look() -> None:
        if machine.life != life or machine.joining is None or machine.joining.newcomer is not newcomer:
            return
        if newcomer.deadline <= sim.now:
            carry_join(sim, machine, newcomer.tick(sim.now))
        if newcomer.failed or sim.now >= given_up:
            machine.joining = None
            done(None)
        else:
            sim.later(0.5, look)

    given_up = sim.now + HANDSHAKE_SECONDS
    machine.joining = Joining(newcomer, opened)
    carry_join(sim, machine, newcomer.tick(sim.now))
    sim.later(0.5, look)


def _tick_join(sim: Simulation, machine: Machine, newcomer: Newcomer, again: Callable[[], None]) -> None:
    if machine.process is not None or machine.joining is None or machine.joining.newcomer is not newcomer:
        return
    if newcomer.deadline <= sim.now:
        carry_join(sim, machine, newcomer.tick(sim.now))
    if newcomer.failed or newcomer.deadline == NEVER:
        again()
    sim.later(0.5, lambda: _tick_join(sim, machine, newcomer, again))


def carry_join(sim: Simulation, machine: Machine, effects: list[Effect]) -> None:
    """Carry out the effects of a joining machine's `Newcomer`."""
    joining = machine.joining
    if joining is None:
        return
    for effect in effects:
        match effect:
            case Send(datagram, destination):
                sim.transmit(machine, datagram, destination)
            case Sign(_, request):
                signature = machine.identity.sign(request.data, request.context)
                newcomer = joining.newcomer
                sim.later(
                    0.002,
                    lambda n=newcomer, s=signature: carry_join(sim, machine, n.signed(s, sim.now)),  # type: ignore[misc]
                )
            case Opened():
                joining.opened(Session.of(effect))


def _enrol(
    sim: Simulation, machine: Machine, again: Callable[[], None], role: Role, session: Session
) -> None:
    seq = int((sim.wall + machine.wall_offset) * 1000)  # one a try, as in `enrolment`
    record = plain_record(machine.identity, seq, machine.address)
    body = msgspec.msgpack.encode(record)
    csr = make_csr(machine.identity, machine.name)
    request = messages.Enrol(csr, body, machine.identity.sign(body, CONTEXT))
    key = identity(f"{machine.name} authority") if role is Role.AUTHORITY else None
    if key is not None:
        proof = prove_authority(key, machine.identity.node_id)
        request = msgspec.structs.replace(request, authority_spki=key.spki, authority_proof=proof)

    def talk() -> asking.Talk[Any]:
        return (yield request)

    def done(answer: object) -> None:
        if not isinstance(answer, messages.Enrolled):
            if isinstance(answer, messages.Refused):
                sim.refused[machine.index] = answer.message
            machine.joining = None
            sim.later(1.0, again)
            return
        wall = sim.wall + machine.wall_offset
        try:
            verify_chain(sim.mesh.root, answer.authority_cert, answer.node_cert, wall)
        except TrustError as error:
            sim.refused[machine.index] = str(error)
            machine.joining = None
            sim.later(15.0, again)
            return
        revocations = Revocations.decode(answer.revocations, sim.mesh.root, wall)
        ring = Keyring()
        take_keys(ring, answer.keys, sim.mesh.root, revocations, sim.now, wall)
        ring.promote(answer.active_key, sim.now)
        machine.node_cert, machine.authority_cert = answer.node_cert, answer.authority_cert
        if key is not None:
            _certify_itself(sim, machine, key, answer)
        machine.disk.update(
            roster=answer.roster,
            revocations=answer.revocations,
            keyring=ring.encode(),
            admission=answer.admission,
        )
        machine.joining = None
        sim.start(machine.index)

    Call(sim, machine, sim.by_id[NodeId(session.peer)], session, talk(), done)


def _certify_itself(sim: Simulation, machine: Machine, key: Identity, answer: messages.Enrolled) -> None:
    """`making.finish_join`: a new authority certifies its own node from the start."""
    root, wall = sim.mesh.root, sim.wall
    machine.authority = Authority(root, load_certificate(answer.own_authority_cert, "authority"), key)
    member = verify_chain(root, answer.authority_cert, answer.node_cert, wall)
    spki = machine.identity.spki
    machine.node_cert = machine.authority.issue(spki, member.name, Role.AUTHORITY, member.ip4, wall)
    machine.authority_cert = machine.authority.der
