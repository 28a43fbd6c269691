# SPDX-License-Identifier: GPL-3.0-or-later
"""How an authority puts nodes out of its mesh, and the root takes them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from phantommesh.management.finding import MAX_SHOWN, find, look
from phantommesh.node.steps import (
    Alone,
    Compute,
    Hear,
    Hold,
    Holdings,
    MakeKey,
    Moment,
    ReadRootKey,
    Save,
    Told,
    Work,
)
from phantommesh.records.roster import Entry
from phantommesh.trust.certificates import Role, TrustError
from phantommesh.trust.identity import Identity, IdentityError, NodeId, format_node_id, parse_node_id
from phantommesh.trust.issuing import Authority
from phantommesh.trust.revocations import Revoked
from phantommesh.trust.rootword import RootWord, say
from phantommesh.trust.statements import Held


@dataclass(frozen=True, slots=True)
class Target:
    """A node to revoke. ``entry`` is None for one that this node does not know."""

    node_id: NodeId
    entry: Entry | None
    revoked: Revoked | None


def authority_of(node: Holdings) -> Authority:
    """Return what this node signs with as an authority. Raises TrustError where it is no authority in good
    standing."""
    if node.authority is None:
        names = [entry.member.name for entry in node.roster if entry.member.role is Role.AUTHORITY]
        raise TrustError("this node is not an authority", fix=f"ask one: {', '.join(names) or 'none known'}")
    if node.identity.node_id in node.revocations:
        raise TrustError("this authority was revoked", fix="ask another one")
    return node.authority


class Revoking:
    """Revokes nodes, and takes them back. A node that is no authority revokes nobody: TrustError."""

    def __init__(self, node: Holdings) -> None:
        self._node, self._me = node, node.identity.node_id

    def find(self, wanted: str) -> Target:
        """Find the node to revoke or to take back, by node id or name. Raises UnknownMemberError for a name
        that no node has, AmbiguousNameError for one that several have.

        A node id that this node does not know is taken all the same: others may know it.
        """
        roster = self._node.roster
        try:
            node_id = parse_node_id(wanted)
        except IdentityError:
            found = look(roster, wanted, lambda entry: entry.called)
            if found is None:  # a revoked one, to be taken back
                found = find(
                    roster.everyone(),
                    wanted,
                    lambda entry: entry.called,
                    unknown=f"no member is named {wanted[:MAX_SHOWN]!r}",
                    fix="see `phantommesh peers`",
                )
            node_id = found.member.node_id
        return self.target(node_id)

    def target(self, node_id: NodeId) -> Target:
        """Return what is known of a node that may be revoked."""
        known = {entry.member.node_id: entry for entry in self._node.roster.everyone()}
        return Target(node_id, known.get(node_id), self._node.revocations.get(node_id))

    def check_revoke(self, target: Target, *, force: bool) -> Authority:
        """Return what this node signs with. Raises TrustError unless this node may and should revoke the
        target."""
        authority = authority_of(self._node)
        if target.node_id == self._me and not force:
            raise TrustError(
                "this would revoke the authority that it is run on",
                fix="run it on another authority, or give --force if it is what you want",
            )
        return authority

    def check_room(self, target: Target, at: Moment, *, force: bool) -> Work[None]:
        """Raise TrustError where `revoke` would find no room."""
        authority, planned = self.check_revoke(target, force=force), self._node.revocations.copy()
        if target.revoked is None:
            yield Compute(partial(planned.prepare, authority, target.node_id, at.wall))

    def revoke(self, target: Target, at: Moment, *, force: bool) -> Work[Revoked]:
        """Put a node out of the mesh, for ever unless the root takes it back. The revocation is on disk when
        this returns, and on its way to all. If the target is an authority, this one first signs the target's
        own revocations anew: else they would not count with members that hear of the target's revocation
        first.

        The group key changes too. Raises TrustError, also where there is no room. Raises StateError where the
        revocation could not be written: it holds here all the same, and is written later.
        """
        authority, revocations = self.check_revoke(target, force=force), self._node.revocations
        if target.revoked is not None:
            return target.revoked

        def sign(at: Moment) -> Work[Revoked | int]:
            if (already := revocations.get(target.node_id)) is not None:
                return already
            planned = revocations.copy()  # others may bring more meanwhile
            prepared = yield Compute(partial(planned.prepare, authority, target.node_id, at.wall))
            made: Sequence[Held] = yield Compute(prepared)
            yield Hold(made)
            return len(made) - 1

        # Alone: no other revocation may take the room between the check and the statement.
        found: Revoked | int = yield Alone("revoking", sign)
        if isinstance(found, Revoked):
            return found
        if (revoked := revocations.get(target.node_id)) is None:
            raise TrustError(
                f"the revocation of {format_node_id(target.node_id)} does not count: the node is still in",
                fix="try again; if it goes on, cast it out on the machine with the root's key: "
                "`phantommesh revoke NAME --undo-all`",
            )
        name = None if target.entry is None else target.entry.member.name
        yield Told(
            "authority",
            "node revoked",
            {"name": name, "node_id": format_node_id(target.node_id), "taken_over": found},
            "warning",
        )
        yield Save()
        yield MakeKey()
        return revoked

    def undo(self, target: Target, at: Moment, *, cast_out: bool, dry_run: bool) -> Work[int]:
        """Have the root take a node back; or, with ``cast_out``, put an authority out and undo all its
        revocations. Return how many nodes that takes back. The root's word is on disk when this returns.
        Raises TrustError or StateError.

        A machine that was itself revoked can do this: a rogue will revoke that machine first.
        """
        revocations = self._node.revocations
        root_key: Identity = yield ReadRootKey("undo revocations")
        if cast_out and target.node_id == self._me:
            raise TrustError(
                "this would cast out the node that it is run on",
                fix="give the name or node id of the authority that revoked the others",
            )
        before, newest = revocations.nodes, revocations.newest_word
        if not cast_out and target.node_id not in before:
            return 0
        word: RootWord = yield Compute(
            partial(
                say,
                root_key,
                pardoned=() if cast_out else (target.node_id,),
                cast_out=(target.node_id,) if cast_out else (),
                last=0 if newest is None else newest.number,
                now=at.wall,
            )
        )
        if dry_run:
            planned = revocations.copy()
            yield Compute(partial(planned.add, word, at.wall))
            return len(before - planned.nodes)
        yield Hear(word)
        back = before - revocations.nodes
        yield Told(
            "authority",
            "the root has spoken",
            {"cast_out": format_node_id(target.node_id) if cast_out else None, "taken_back": len(back)},
            "warning",
        )
        yield Save()
        yield MakeKey()
        return len(back)
