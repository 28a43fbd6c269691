# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out the steps of a simulated node's work (`node.steps`), as `nursery/members/working.py` does:
steps that take time there take virtual time here. A process that crashes does no more of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

from cryptography import x509

from phantommesh.acl.signedpolicy import Policies
from phantommesh.control import messages
from phantommesh.errors import PhantomMeshError
from phantommesh.membership.messages import GossipError
from phantommesh.node import own, serving, steps
from phantommesh.records.roster import Roster
from phantommesh.secret import Secret
from phantommesh.state.files import StateError
from phantommesh.state.invitebook import InviteEntry
from phantommesh.trust.certificates import Mesh, TrustError
from phantommesh.trust.identity import Identity, NodeId, format_node_id
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import Authority
from phantommesh.trust.meshsecret import MeshSecrets
from phantommesh.trust.revocations import Revocations
from tests.simulation.full_keeper import at_once

if TYPE_CHECKING:
    from tests.simulation.full_node import Process

AnyStep = serving.ServingStep | own.OwnStep
Done = Callable[[Any], None]
"""Called with what the work returned, or with the PhantomMeshError that it raised."""


@dataclass(frozen=True)
class Has:
    """The things that a process has, as `node.steps.Holdings` wants them."""

    identity: Identity
    root: x509.Certificate
    mesh: Mesh
    authority: Authority | None
    admission: MeshSecrets
    roster: Roster
    revocations: Revocations
    policies: Policies = field(default_factory=Policies)

    @classmethod
    def of(cls, process: Process) -> Has:
        """Take them from a process."""
        machine, mesh = process.machine, process.sim.mesh
        return cls(
            machine.identity, mesh.root, mesh.described, machine.authority, process.secrets, process.roster,
            process.revocations,
        )  # fmt: skip


class Worker:
    """Does one process's work."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._alone: dict[str, list[tuple[steps.Alone, Done]]] = {}

    def moment(self) -> steps.Moment:
        """The present time, by the node's clocks."""
        return steps.Moment(self.process.now, self.process.wall)

    def do(self, work: Generator[Any, Any, Any], done: Done) -> None:
        """Carry out the work to its end, and then call ``done``."""
        self._go_on(work, done, None)

    def _go_on(self, work: Generator[Any, Any, Any], done: Done, result: object) -> None:
        try:
            if isinstance(result, PhantomMeshError | GossipError):
                step = work.throw(result)
            else:
                step = work.send(result)
        except StopIteration as end:
            done(end.value)
            return
        except PhantomMeshError as error:
            done(error)
            return
        back = partial(self._go_on, work, done)
        if isinstance(step, steps.Alone):
            waiting = self._alone.setdefault(step.kind, [])
            waiting.append((step, back))
            if len(waiting) == 1:
                self._next(step.kind)
        elif isinstance(step, own.AskRenewal | own.AskRename | own.AskRoutes):
            self.process.own.ask(step, back)
        elif isinstance(step, own.AskReturn):
            self.process.own.come_back(step, back)
        elif seconds := self._seconds(step):
            self.process.sim.at_process(self.process, seconds, lambda: self._end(step, back))
        else:
            self._end(step, back)

    def _end(self, step: AnyStep, back: Done) -> None:
        try:
            result = self._do(step)
        except (PhantomMeshError, GossipError) as error:
            result = error
        back(result)

    def _next(self, kind: str) -> None:
        step, back = self._alone[kind][0]

        def over(result: object) -> None:
            self._alone[kind].pop(0)
            back(result)
            if self._alone[kind]:
                self._next(kind)

        self.do(step.work(self.moment()), over)

    def _seconds(self, step: AnyStep) -> float:
        """How long a step takes."""
        match step:
            case steps.Compute():
                return self.process.machine.thread_seconds
            case serving.Wait(seconds):
                return seconds
            case (
                steps.FindInvite() | steps.SpendInvite() | steps.MakeInvite() | steps.ReadRootKey()
                | steps.Save() | steps.WriteApprovals() | own.WriteCertificates()
            ):  # fmt: skip
                return self.process.machine.disk_seconds
            case _:
                return 0.0

    def _do(self, step: AnyStep) -> object:
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
            case steps.Keep(record, of):
                return process.keeper.add(record, of)
            case serving.Wait():
                return self.moment()
            case serving.AnswerSync(opening, peer):
                answer, effects = process.membership.sync_answer(opening, peer, process.now)
                process.carry_gossip(process.gossip.seal(effects, process.now))
                return answer
            case serving.FinishSync(rest, peer):
                effects = process.membership.sync_finish(rest, peer, process.now)
                process.carry_gossip(process.gossip.seal(effects, process.now))
            case serving.Sight(peer):
                return process.sight(peer)
            case serving.Carrying(entry, request):
                return process.carrying.answer(entry, request)
            case serving.CheckTcp():
                return messages.TcpChecked(False, why="nothing connects in the simulator")
            case serving.Meeting():
                raise AssertionError("nobody has a raw socket, so nobody asks to meet")
            case serving.Echoing():
                raise AssertionError("nobody has WireGuard's ports, so nobody measures")
            case serving.Federal():
                raise AssertionError("no mesh of the simulator has a pact with another")
            case serving.Account():
                raise AssertionError("no traffic is simulated, so there is nothing to prove")
            case steps.Hold(made):
                return at_once(process.keeper.holding(made))
            case steps.Hear(word):
                return process.keeper.revoke(word)
            case steps.WriteApprovals(approvals):
                self._write()
                machine.approvals = approvals
            case steps.Save():
                self._write()
                process.write("revocations", "roster")
            case steps.MakeKey():
                process.make_key()
            case steps.Told(event=event):
                process.sim.tally[event] += 1
            case own.WriteKeys(keys):
                self._write(wireguard=json.dumps(keys.encode()).encode())
            case own.WriteCertificates(authority_cert, node_cert):
                self._write()
                machine.authority_cert, machine.node_cert = authority_cert, node_cert
            case own.Publish():
                process.own.publish()
            case own.Rejoin():
                process.own.rejoin(step)
            case steps.Alone() | own.AskRenewal() | own.AskRename() | own.AskRoutes() | own.AskReturn():
                raise AssertionError("takes its time: see `_go_on`")
            case _:
                assert_never(step)
        return wall

    def _write(self, **files: bytes) -> None:
        """Write files, or raise StateError where the disk is full. A large mesh writes none."""
        if self.process.machine.disk_full:
            raise StateError("the disk is full")
        if not self.process.sim.large:
            self.process.machine.disk.update(files)

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
