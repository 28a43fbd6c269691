# SPDX-License-Identifier: GPL-3.0-or-later
"""How a new machine joins the mesh of `full_sim`: a real `Newcomer` with an invite, then an enrolment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from phantommesh.control import asking, messages
from phantommesh.control.sessions import Session
from phantommesh.link.effects import Effect, Opened, Send, Sign
from phantommesh.link.newcomer import Newcomer
from phantommesh.records.record import CONTEXT
from phantommesh.secret import Secret
from phantommesh.state.invitebook import InviteEntry
from phantommesh.trust.certificates import DAY, Role, load_certificate, verify_chain
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
    """A machine that is joining, and for which role. ``again`` has it try once more."""

    newcomer: Newcomer
    again: Callable[[], None]
    role: Role


def join(
    sim: Simulation, index: int, authority: int, role: Role = Role.NODE, given: Invite | None = None
) -> None:
    """Have a new machine join at this authority, again and again until it is in: by the invite that is given,
    or else by a new one for this role each time."""
    machine, at = sim.machines[index], sim.machines[authority]
    if given is None:
        invite, secret = sim.rng.randbytes(16), Secret(sim.rng.randbytes(32))
        at.invites[invite] = InviteEntry(role, None, int(sim.wall + DAY), 1, secret)
    else:
        invite, secret = given.invite_id, given.secret

    def attempt() -> None:
        if machine.process is not None or (machine.joining and not machine.joining.newcomer.failed):
            return
        newcomer = Newcomer(
            node_id=machine.identity.node_id, spki=machine.identity.spki, authority=at.identity.node_id,
            root_hash=sim.mesh.described.root_hash, invite=invite, secret=secret,
            destination=at.address._replace(transport="tcp"), kem=sim.kem, random=sim.rng.randbytes,
            now=sim.now,
        )  # fmt: skip
        machine.joining = Joining(newcomer, partial(join, sim, index, authority, role, given), role)
        carry_join(sim, machine, newcomer.tick(sim.now))
        sim.later(0.5, lambda: _tick_join(sim, machine, newcomer, attempt))

    attempt()


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
    assert joining is not None
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
                _enrol(sim, machine, joining, Session.of(effect))


def _enrol(sim: Simulation, machine: Machine, joining: Joining, session: Session) -> None:
    record = plain_record(machine.identity, 1, machine.address)
    body = msgspec.msgpack.encode(record)
    csr = make_csr(machine.identity, machine.name)
    request = messages.Enrol(csr, body, machine.identity.sign(body, CONTEXT))
    key = identity(f"{machine.name} authority") if joining.role is Role.AUTHORITY else None
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
            sim.later(1.0, joining.again)
            return
        revocations = Revocations.decode(answer.revocations, sim.mesh.root, sim.wall)
        ring = Keyring()
        take_keys(ring, answer.keys, sim.mesh.root, revocations, sim.now, sim.wall)
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
