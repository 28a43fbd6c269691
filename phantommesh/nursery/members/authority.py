# SPDX-License-Identifier: GPL-3.0-or-later
"""The desk of a running node: `node.desk` decides, on this node's threads, disk and clock."""

from __future__ import annotations

from collections.abc import Sequence

from phantommesh.control import messages, sessions
from phantommesh.node.desk import Desk
from phantommesh.node.revoking import Target
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping.groupkeys import GroupKeys
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members.working import Worker
from phantommesh.records.roster import Entry
from phantommesh.routable import Network
from phantommesh.state.start import NodeState
from phantommesh.trust.revocations import Revoked


class AuthorityDesk:
    """Every node has a desk. On a node that is no authority, each method that needs an authority raises
    TrustError."""

    def __init__(self, node: NodeState, keeper: RosterKeeper, keys: GroupKeys) -> None:
        self.desk = Desk(node, keys.ring, node.approvals)
        self.worker = Worker(node, keeper, keys)

    async def enrol(self, session: sessions.Session, request: messages.Enrol) -> messages.Enrolled:
        """`Desk.enrol`."""
        return await self.worker.do(self.desk.enrol(session, request, moment()))

    async def renew(self, entry: Entry, request: messages.Renew) -> messages.Renewed:
        """`Desk.renew`."""
        return await self.worker.do(self.desk.renew(entry, request, moment()))

    async def rename(self, entry: Entry, request: messages.Rename) -> messages.Renewed:
        """`Desk.rename`."""
        return await self.worker.do(self.desk.rename(entry, request, moment()))

    async def ask_routes(self, entry: Entry, request: messages.Route) -> messages.Renewed | messages.Done:
        """`Granting.ask`."""
        return await self.worker.do(self.desk.granting.ask(entry, request, moment()))

    async def approve(self, wanted: str, prefixes: Sequence[Network]) -> Target:
        """`Granting.approve`."""
        return await self.worker.do(self.desk.granting.approve(wanted, prefixes, moment()))

    async def withdraw(self, wanted: str, prefixes: Sequence[Network]) -> Target:
        """`Granting.withdraw`."""
        return await self.worker.do(self.desk.granting.withdraw(wanted, prefixes, moment()))

    async def replace(self, entry: Entry) -> messages.Replacement:
        """`Desk.replace`."""
        return await self.worker.do(self.desk.replace(entry, moment()))

    def find(self, wanted: str) -> Target:
        """`Revoking.find`."""
        return self.desk.revoking.find(wanted)

    async def check_room(self, target: Target, *, force: bool) -> None:
        """`Revoking.check_room`."""
        await self.worker.do(self.desk.revoking.check_room(target, moment(), force=force))

    async def revoke(self, target: Target, *, force: bool) -> Revoked:
        """`Revoking.revoke`."""
        return await self.worker.do(self.desk.revoking.revoke(target, moment(), force=force))

    async def undo(self, target: Target, *, cast_out: bool, dry_run: bool) -> int:
        """`Revoking.undo`."""
        return await self.worker.do(
            self.desk.revoking.undo(target, moment(), cast_out=cast_out, dry_run=dry_run)
        )
