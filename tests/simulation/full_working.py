# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out the steps of a simulated node's work (`node.steps`), as `nursery.working` does: what takes time
there takes virtual time here. A process that crashes does no more of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

from cryptography import x509

from phantommesh.errors import PhantomMeshError
from phantommesh.identity import Identity, NodeId, format_node_id
from phantommesh.invites import Invite, InviteEntry
from phantommesh.issuing import Authority
from phantommesh.meshsecret import MeshSecrets
from phantommesh.node import steps
from phantommesh.records import Roster
from phantommesh.revocation import Revocations
from phantommesh.secret import Secret
from phantommesh.statedir import StateError
from phantommesh.trust import Mesh, TrustError

if TYPE_CHECKING:
    from tests.simulation.full_node import Process

THREAD = 0.002  # s that a signature takes

Done = Callable[[Any], None]
"""Called with what the work returned, or with the PhantomMeshError that it raised."""


@dataclass(frozen=True)
class Has:
    """What a process has, as `node.steps.Holdings` wants it."""

    identity: Identity
    root: x509.Certificate
    mesh: Mesh
    authority: Authority | None
    admission: MeshSecrets
    roster: Roster
    revocations: Revocations

    @classmethod
    def of(cls, process: Process) -> Has:
        """Take it from a process."""
        machine, mesh = process.machine, process.sim.mesh
        return cls(
            machine.identity, mesh.root, mesh.described, machine.authority, process.secrets, process.roster,
            process.revocations,
        )  # fmt: skip


class Worker:
    """Does one process's work."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._alone: dict[str, list[tuple[steps.Alone, steps.Work[Any], Done]]] = {}

    def moment(self) -> steps.Moment:
        """The present time, by the node's clocks."""
        return steps.Moment(self.process.now, self.process.wall)

    def do(self, work: steps.Work[Any], done: Done) -> None:
        """Carry the work out to its end, and call ``done`` then."""
        self._go_on(work, done, None)

    def _go_on(self, work: steps.Work[Any], done: Done, result: object) -> None:
        try:
            step = work.throw(result) if isinstance(result, PhantomMeshError) else work.send(result)
        except StopIteration as end:
            done(end.value)
            return
        except PhantomMeshError as error:
            done(error)
            return
        if isinstance(step, steps.Alone):
            waiting = self._alone.setdefault(step.kind, [])
            waiting.append((step, work, done))
            if len(waiting) == 1:
                self._next(step.kind)
            return
        if seconds := self._seconds(step):
            job = partial(self._end, step, work, done)
            self.process.sim.at_process(self.process, seconds, job)
        else:
            self._end(step, work, done)

    def _end(self, step: steps.Step, work: steps.Work[Any], done: Done) -> None:
        try:
            result = self._do(step)
        except PhantomMeshError as error:
            result = error
        self._go_on(work, done, result)

    def _next(self, kind: str) -> None:
        step, work, done = self._alone[kind][0]

        def over(result: object) -> None:
            self._alone[kind].pop(0)
            self._go_on(work, done, result)
            if self._alone[kind]:
                self._next(kind)

        self.do(step.work(self.moment()), over)

    def _seconds(self, step: steps.Step) -> float:
        """How long a step takes."""
        match step:
            case steps.Compute():
                return THREAD
            case (
                steps.FindInvite() | steps.SpendInvite() | steps.MakeInvite() | steps.ReadRootKey()
                | steps.Save()
            ):  # fmt: skip
                return self.process.machine.disk_seconds
            case _:
                return 0.0

    def _do(self, step: steps.Step) -> object:
        process = self.process
        machine, wall = process.machine, process.wall
        match step:
            case steps.Compute(job):
                return job()
            case steps.FindInvite(invite, node):
                return self._find(invite, node)
            case steps.SpendInvite(invite, node, name):
                machine.invites[invite] = self._find(invite, node).spent_on(node, name)
            case steps.MakeInvite():
                return self._make_invite(step)
            case steps.ReadRootKey(what):
                if machine.root_key is None:
                    raise TrustError(f"only the machine that holds the mesh's root key can {what}")
                return machine.root_key
            case steps.Keep(record):
                return process.add(record)
            case steps.Hold(made):
                if process.revocations.hold(made):
                    process.note_change()
            case steps.Hear(word):
                return process.shut_out([word])
            case steps.Save():
                if machine.disk_full:
                    raise StateError("the disk is full")
                process.write("revocations", "roster")
            case steps.MakeKey():
                process.make_key()
            case steps.Told(event=event):
                process.sim.tally[event] += 1
            case steps.Alone():
                raise AssertionError("is done by `_next`")
            case _:
                assert_never(step)
        return wall

    def _find(self, invite: bytes, node: NodeId) -> InviteEntry:
        entry = self.process.machine.invites.get(invite)
        if entry is None:
            raise TrustError("the invite is not one of this authority's")
        entry.check(node, self.process.wall)
        return entry

    def _make_invite(self, terms: steps.MakeInvite) -> Invite:
        process = self.process
        mesh, rng = process.sim.mesh.described, process.sim.rng
        invite = Invite(
            mesh.root_hash, rng.randbytes(16), Secret(rng.randbytes(32)), process.me, mesh.name,
            terms.expires, terms.role, terms.endpoints,
        )  # fmt: skip
        process.machine.invites[invite.invite_id] = InviteEntry(
            terms.role, terms.name, terms.expires, 1, invite.secret,
            replaces=format_node_id(terms.replaces), ip4=str(terms.ip4),
        )  # fmt: skip
        return invite
