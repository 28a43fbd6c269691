# SPDX-License-Identifier: GPL-3.0-or-later
"""A simulated node's own word, as `nursery.own.OwnRecord` keeps it: its record and its certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from phantommesh import asking, control
from phantommesh.errors import PhantomMeshError
from phantommesh.issuing import make_csr
from phantommesh.nursery.own import AGAIN
from phantommesh.records import Entry, settle, sign_record
from phantommesh.trust import Role, authority_node, verify_chain
from tests.simulation.full_calls import Ask, Task, spawn
from tests.simulation.full_parts import plain_record

if TYPE_CHECKING:
    from tests.simulation.full_node import Process


class OwnRecord:
    """This node as others know it. ``member`` is what its certificate says; ``held`` is what the roster that
    the process started with has of it."""

    def __init__(self, process: Process, held: Entry | None) -> None:
        self.process, machine = process, process.machine
        if held is not None and held.signed.node_cert == machine.node_cert:
            self.member = held.member
        else:
            self.member = verify_chain(
                process.sim.mesh.root, machine.authority_cert, machine.node_cert, process.wall
            )
        self._renewing = False
        self._renew_after = process.now

    def publish(self, version: str | None = None) -> None:
        """Put our record into the roster if it says anything new."""
        process = self.process
        machine, held = process.machine, process.roster.get(process.me)
        if process.revoked:
            return
        machine.version = machine.version if version is None else version
        seq = 1 if held is None else held.record.seq + 1
        record = plain_record(machine.identity, seq, machine.address, machine.version)
        said = None if held is None else msgspec.structs.replace(held.record, seq=seq)
        if held is not None and said == record and held.signed.node_cert == machine.node_cert:
            return
        try:
            process.add(sign_record(machine.identity, record, machine.node_cert, machine.authority_cert))
        except PhantomMeshError:
            process.sim.tally["own-record-refused"] += 1

    def look(self) -> None:
        """Get another certificate where the present one is disputed, or its issuer was revoked."""
        process = self.process
        if self._renewing or process.revoked or process.now < self._renew_after:
            return
        issuer = authority_node(process.machine.authority_cert)
        if self.disputed() or (issuer is not None and issuer in process.revocations):
            self._renew_after, self._renewing = process.now + AGAIN, True
            spawn(process, "renew", self.renew())

    def disputed(self) -> bool:
        """Whether another member keeps our address or name."""
        process = self.process
        return any(
            d.loser == process.me and d.over in ("address", "name")
            for d in process.roster.disputes(process.wall)
        )

    def renew(self) -> Task:
        """Get another certificate, without what another member keeps."""
        process = self.process
        machine, roster, wall = process.machine, process.roster, process.wall
        try:
            if machine.authority is not None:
                name, ip4 = settle(roster, process.sim.mesh.described, self.member, wall)
                spki = machine.identity.spki
                machine.node_cert = machine.authority.issue(spki, name, self.member.role, ip4, wall)
                machine.authority_cert = machine.authority.der
            else:
                lost = [d for d in roster.disputes(wall) if d.loser == process.me]
                winner = roster.get(lost[0].winner) if lost else None
                evidence = b"" if winner is None else winner.signed.encode()
                for member in process.asker.callable(()):
                    entry, mine = roster.get(member), roster.get(process.me)
                    if entry is None or mine is None or entry.member.role is not Role.AUTHORITY:
                        continue
                    csr = make_csr(machine.identity, self.member.name)
                    answer = yield Ask(member, _renew(mine.signed.encode(), csr, evidence))
                    if isinstance(answer, control.Renewed):
                        machine.node_cert, machine.authority_cert = answer.node_cert, answer.authority_cert
                        break
            self.member = verify_chain(
                process.sim.mesh.root, machine.authority_cert, machine.node_cert, process.wall
            )
            self.publish()
        finally:
            self._renewing = False


def _renew(mine: bytes, csr: bytes, evidence: bytes) -> asking.Talk[Any]:
    yield control.Announce(mine)
    return (yield control.Renew(csr, evidence))
