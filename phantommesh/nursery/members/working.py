# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out the steps of a node's work (`node.steps`): on threads, the disk and the clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from functools import partial
from time import time
from typing import Any, TypeVar, assert_never

import trio

from phantommesh.node import steps
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.groupkeys import GroupKeys
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.logs import tell
from phantommesh.state.directory import APPROVALS
from phantommesh.state.routebook import encode_approvals
from phantommesh.state.start import NodeState

S = TypeVar("S")
T = TypeVar("T")


async def do(work: Generator[S, Any, T], carry_out: Callable[[S], Awaitable[Any]]) -> T:
    """Carry out each step of the work to its end, and return the work's result. Raises the work's errors."""
    try:
        step = next(work)
        while True:
            try:
                result = await carry_out(step)
            except Exception as error:
                step = work.throw(error)
            else:
                step = work.send(result)
    except StopIteration as end:
        found: T = end.value
        return found
    finally:
        work.close()


class Worker:
    """Does the work of one node's desk, and such work as other parts want done."""

    def __init__(self, node: NodeState, keeper: RosterKeeper, keys: GroupKeys) -> None:
        self._node, self._keeper, self._keys = node, keeper, keys
        self._alone = {"enrolling": trio.Lock(), "revoking": trio.Lock()}

    async def do(self, work: steps.Work[T]) -> T:
        """Carry out the work to its end, and return its result. Raises its errors."""
        return await do(work, self.carry_out)

    async def carry_out(self, step: steps.Step) -> Any:
        """Carry out one step. Raises the error that it ends with."""
        in_thread, invites = trio.to_thread.run_sync, self._node.invites
        match step:
            case steps.Compute(job):
                return await in_thread(job)
            case steps.Alone(kind, work):
                async with self._alone[kind]:
                    return await self.do(work(moment()))
            case steps.FindInvite(invite, node):
                return await in_thread(invites.find, invite, time(), node)
            case steps.SpendInvite(invite, node, name):
                return await in_thread(invites.consume, invite, node, time(), name)
            case steps.MakeInvite():
                return await in_thread(partial(self._make_invite, step))
            case steps.WriteApprovals(approvals):
                book = encode_approvals(approvals)
                return await in_thread(self._node.state.write, APPROVALS, book)
            case steps.ReadRootKey(what):
                return await in_thread(self._node.root_key, what)
            case steps.Keep(record, of):
                return self._keeper.add(record, of)
            case steps.Hold(made):
                return await self._keeper.hold(made)
            case steps.Hear(word):
                return self._keeper.revoke(word)
            case steps.Save():
                return await self._keeper.save()
            case steps.MakeKey():
                return await self._keys.rotate()
            case steps.Told():
                return tell(step)
            case _:
                assert_never(step)

    def _make_invite(self, terms: steps.MakeInvite) -> object:
        return self._node.invites.create(
            root_hash=self._node.mesh.root_hash,
            authority=self._node.identity.node_id,
            mesh=self._node.mesh.name,
            endpoints=terms.endpoints,
            expires=terms.expires,
            role=terms.role,
            name=terms.name,
            replaces=terms.replaces,
            ip4=str(terms.ip4),
            tags=terms.tags,
        )
