# SPDX-License-Identifier: GPL-3.0-or-later
"""What an authority does for its mesh: lets nodes in, renews their certificates, puts them out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from time import time

import structlog
import trio
from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh import control
from phantommesh.endpoint import parse_endpoint
from phantommesh.identity import IdentityError, NodeId, format_node_id, node_id_of, parse_node_id
from phantommesh.invites import MAX_ENDPOINTS, InviteEntry
from phantommesh.issuing import (
    Authority,
    check_authority_proof,
    choose_ip4,
    issue_authority,
    parse_csr_untrusted,
)
from phantommesh.management.finding import MAX_SHOWN, find, look
from phantommesh.moments import span
from phantommesh.nodestate import NodeState
from phantommesh.nursery import streams
from phantommesh.nursery.groupkeys import GroupKeys
from phantommesh.nursery.keeper import RosterKeeper
from phantommesh.rates import Rates
from phantommesh.reachable import Reach, Why, all_loopback
from phantommesh.records import Entry, SignedRecord, open_record, settle
from phantommesh.revocation import MAX_SNAPSHOT, Revoked
from phantommesh.rootword import say
from phantommesh.trust import NODE_LIFE, Role, TrustError

# Tuning. A certificate costs a signature, and a record at every member. One is renewed once in two thirds of
# a life; a few in a row are for disputes, and for answers that were lost on their way.
RENEWALS, RENEWALS_LIFE = 6, 84  # at once, and in a life of `NODE_LIFE` after that: one in two hours
JOINS, JOIN_AGAIN = 4, 600.0  # enrolments of one node at once, and s until each further one

# Tuning.
REPLACE_WITHIN = (
    7 * 86_400.0
)  # s, as a certificate's life: a member that died half-way may be off for a while

AUTHORITY_ANEW = (
    "make another machine an authority (`phantommesh invite --role authority`), let it run "
    "`phantommesh revoke` for this node, move this state directory away and join anew"
)

log = structlog.get_logger("phantommesh.authority")


@dataclass(frozen=True, slots=True)
class Target:
    """A node to revoke. ``entry`` is None for one that this node does not know."""

    node_id: NodeId
    entry: Entry | None
    revoked: Revoked | None


class AuthorityDesk:
    """Every node has one; on a node that is no authority all of it is refused."""

    def __init__(self, node: NodeState, keeper: RosterKeeper, keys: GroupKeys) -> None:
        self._node, self._keeper, self._keys = node, keeper, keys
        self._revoking = trio.Lock()  # from whether there is room until it is taken
        self._enrolling = trio.Lock()  # two newcomers must not be given one address
        self._renewals = Rates[NodeId](RENEWALS_LIFE / NODE_LIFE, RENEWALS)
        self._joins = Rates[NodeId](1 / JOIN_AGAIN, JOINS)

    def _authority(self) -> Authority:
        if self._node.authority is None:
            names = [e.member.name for e in self._keeper.roster if e.member.role is Role.AUTHORITY]
            raise TrustError(
                "this node is not an authority", fix=f"ask one: {', '.join(names) or 'none known'}"
            )
        if self._node.identity.node_id in self._node.revocations:
            raise TrustError("this authority was revoked", fix="ask another one")
        return self._node.authority

    async def enrol(self, session: streams.Session, request: control.Enrol) -> control.Enrolled:
        """Let a newcomer in. Raises TrustError, RecordError or StateError; then its invite is not spent."""
        node, authority = self._node, self._authority()
        if not session.invite:
            raise TrustError(
                "an enrolment needs an invite", fix="use the line that `phantommesh invite` prints"
            )
        spki, name = await trio.to_thread.run_sync(parse_csr_untrusted, request.csr)
        node_id = NodeId(session.peer)
        if spki != session.spki:
            raise TrustError("the certificate request is for another key than the handshake's")
        if node_id in node.revocations:
            raise TrustError("this node was revoked", fix="start over with a new state directory")
        _allow(self._joins, node_id, "this node has joined several times just now")
        async with self._enrolling:
            entry = await trio.to_thread.run_sync(self._check_invite, session.invite, node_id, name)
            replaced = self._check_replaced(entry, node_id)
            others = [e.member for e in self._keeper.roster if e.member.node_id not in (node_id, replaced)]
            self._check_name(entry, node_id, name)
            taken = {member.ip4 for member in others}
            # An expired member has to join again, as a new node, and wants its name back.
            if any(member.name == name and member.not_after >= time() for member in others):
                raise TrustError(
                    f"the mesh has a node named {name} already",
                    fix="join with another --name; if this machine was that node and has lost its state, run "
                    f"`phantommesh revoke {name}` on an authority first",
                )
            own_authority_cert = b""
            if entry.role is Role.AUTHORITY:
                own_authority_cert = await trio.to_thread.run_sync(self._make_authority, request, node_id)
            ip4 = choose_ip4(node.mesh, node_id, taken)
            if entry.ip4 and IPv4Address(entry.ip4) not in taken:
                ip4 = IPv4Address(entry.ip4)
            issue = partial(authority.issue, spki, name, entry.role, ip4, time())
            node_cert = await trio.to_thread.run_sync(issue)
            signed = SignedRecord(request.record, request.signature, node_cert, authority.der)
            await trio.to_thread.run_sync(self._check_endpoints, signed, name)
            if replaced is not None:
                # The invite first: should this node die now, the same newcomer is let in again, and nobody
                # else. Then the revocation, and only then the record: no member is two.
                await trio.to_thread.run_sync(node.invites.consume, session.invite, node_id, time(), name)
                await self.revoke(self._target(replaced), force=False)
            # Before the invite is spent, so that a bad record costs it nothing; on disk before the newcomer
            # hears of it, so that a crash cannot leave it with a mesh that does not know it.
            self._keeper.add(SignedRecord.decode_untrusted(signed.encode()))
            await self._keeper.save()
            await trio.to_thread.run_sync(node.invites.consume, session.invite, node_id, time(), name)
        if self._keys.ring.active is None:
            await self._keys.rotate()
        log.info(
            "node enrolled", name=name, node_id=format_node_id(node_id), role=entry.role.value, ip4=str(ip4)
        )
        return control.Enrolled(
            node_cert=node_cert,
            authority_cert=authority.der,
            root_cert=node.root.public_bytes(Encoding.DER),
            admission=node.admission.newest.reveal(),
            roster=self._keeper.roster.encode(),
            revocations=node.revocations.encode(MAX_SNAPSHOT),
            keys=self._keys.encode(),
            active_key=self._keys.active_id,
            own_authority_cert=own_authority_cert,
        )

    def _check_endpoints(self, signed: SignedRecord, name: str) -> None:
        """Raise TrustError where the newcomer names an address that nobody here would send to. Others judge
        for themselves; this tells an operator of a slip while it is easily mended."""
        _, record = open_record(self._node.root, signed, time())
        mine = self._keeper.roster.get(self._node.identity.node_id)
        own = () if mine is None else (parse_endpoint(endpoint)[0] for endpoint in mine.record.control)
        mesh = self._node.mesh
        reach = Reach((mesh.network4, mesh.network6), loopback=all_loopback(own))
        held = {str(ip) for entry in self._keeper.roster for ip in (entry.member.ip4, entry.member.ip6)}
        for endpoint in record.control:
            host = parse_endpoint(endpoint)[0]
            why = reach.never(host)
            if why is Why.OVERLAY and host not in held:
                continue  # the newcomer's provider may use the overlay's range; nobody will send there
            if why is not None and why is not Why.NO_ADDRESS:  # the latter is a name
                raise TrustError(
                    f"the endpoint {endpoint} of {name} is {why.text}",
                    fix="join with --endpoint and an address by which other machines reach this one",
                )

    def _check_invite(self, invite: bytes, node_id: NodeId, name: str) -> InviteEntry:
        entry = self._node.invites.find(invite, time(), node_id)
        if entry.name is not None and entry.name != name:
            raise TrustError(
                f"the invite is for a node named {entry.name}", fix=f"join with --name {entry.name}"
            )
        return entry

    def _check_replaced(self, entry: InviteEntry, node_id: NodeId) -> NodeId | None:
        """Return the member whose place the invite is for, if any. Raises TrustError where that member was
        revoked before the invite was used: who was put out does not come back by it."""
        if not entry.replaces:
            return None
        replaced = parse_node_id(entry.replaces)
        if replaced in self._node.revocations and not entry.admits(node_id):
            raise TrustError(
                "the identity that this invite replaces was revoked meanwhile", fix="ask for a new invite"
            )
        return replaced

    async def replace(self, entry: Entry) -> control.Replacement:
        """Make an invite by which a member can join anew in place of itself. Raises TrustError or StateError.

        It costs the member nothing until it is used, and then its present identity: so a member cannot be
        two. Whoever holds the member's identity key can do this, the thief of a copy too, once: whichever of
        the two is second finds itself revoked.
        """
        self._authority()
        member = entry.member
        if member.role is Role.AUTHORITY:
            raise TrustError("an authority's identity is not replaced", fix=AUTHORITY_ANEW)
        mine = self._keeper.roster.get(self._node.identity.node_id)
        make = partial(
            self._node.invites.create,
            root_hash=self._node.mesh.root_hash,
            authority=self._node.identity.node_id,
            mesh=self._node.mesh.name,
            endpoints=() if mine is None else mine.record.control[:MAX_ENDPOINTS],
            expires=int(time() + REPLACE_WITHIN),
            role=member.role,
            name=member.name,
            replaces=member.node_id,
            ip4=str(member.ip4),
        )
        async with self._enrolling:
            invite = await trio.to_thread.run_sync(make)
        log.warning("a member is to get a new identity", name=member.name)
        return control.Replacement(invite.encode())

    def _check_name(self, entry: InviteEntry, node_id: NodeId, name: str) -> None:
        """A node comes again by an invite that it has used, as after a crash. Raises TrustError where it
        wants one name after the other: each costs every member a record."""
        held = self._keeper.roster.get(node_id)
        if entry.renames(node_id, name) and (held is None or held.member.name != name):
            used = " and ".join(entry.names_of(node_id))
            raise TrustError(
                f"this invite has enrolled this node as {used} already",
                fix=f"join with --name {entry.names_of(node_id)[-1]}, or get a new invite for another name",
            )

    def _make_authority(self, request: control.Enrol, node_id: NodeId) -> bytes:
        """Sign the newcomer's authority key with the root's. Raises TrustError where either is missing."""
        root_key = self._node.root_key()
        check_authority_proof(request.authority_spki, request.authority_proof, node_id)
        if request.authority_spki in (self._node.mesh.root_spki, self._node.identity.spki):
            raise TrustError("the authority key is not the newcomer's")
        made = issue_authority(self._node.root, root_key, request.authority_spki, node_id, time())
        log.warning("authority made", node_id=format_node_id(node_id))
        return made.public_bytes(Encoding.DER)

    async def renew(self, entry: Entry, request: control.Renew) -> control.Renewed:
        """Issue a member's next certificate: for its own key, name, role and address, unless it lost the name
        or the address to another member. Raises TrustError or RecordError."""
        authority = self._authority()
        spki, _ = await trio.to_thread.run_sync(parse_csr_untrusted, request.csr)
        member = entry.member
        if node_id_of(spki) != member.node_id:
            raise TrustError("a certificate is renewed for its own key only")
        _allow(self._renewals, member.node_id, f"the certificate of {member.name} was renewed too often")
        if request.evidence:
            self._keeper.add(SignedRecord.decode_untrusted(request.evidence))
        async with self._enrolling:
            name, ip4 = settle(self._keeper.roster, self._node.mesh, member, time())
            issue = partial(authority.issue, spki, name, member.role, ip4, time())
            node_cert = await trio.to_thread.run_sync(issue)
        log.info("certificate renewed", name=name, before=member.name, ip4=str(ip4))
        return control.Renewed(node_cert, authority.der)

    def find(self, wanted: str) -> Target:
        """Find the node to revoke or to take back, by node id or name. Raises UnknownMemberError or
        AmbiguousNameError for a name that is not one node's.

        A node id is taken though nobody here knows it: others may.
        """
        try:
            node_id = parse_node_id(wanted)
        except IdentityError:
            found = look(self._keeper.roster, wanted, lambda entry: entry.called)
            if found is None:  # a revoked one, to be taken back
                found = find(
                    self._keeper.roster.everyone(),
                    wanted,
                    lambda entry: entry.called,
                    unknown=f"no member is named {wanted[:MAX_SHOWN]!r}",
                    fix="see `phantommesh peers`",
                )
            node_id = found.member.node_id
        return self._target(node_id)

    def _target(self, node_id: NodeId) -> Target:
        known = {entry.member.node_id: entry for entry in self._keeper.roster.everyone()}
        return Target(node_id, known.get(node_id), self._node.revocations.get(node_id))

    def check_revoke(self, target: Target, *, force: bool) -> Authority:
        """Raise TrustError unless this node may and should revoke that one."""
        authority = self._authority()
        if target.node_id == self._node.identity.node_id and not force:
            raise TrustError(
                "this would revoke the authority that it is run on",
                fix="run it on another authority, or give --force if it is what you want",
            )
        return authority

    async def check_room(self, target: Target, *, force: bool) -> None:
        """Raise TrustError where `revoke` would for want of room."""
        authority, planned = self.check_revoke(target, force=force), self._node.revocations.copy()
        if target.revoked is None:
            await trio.to_thread.run_sync(planned.prepare, authority, target.node_id, time())

    async def revoke(self, target: Target, *, force: bool) -> Revoked:
        """Put a node out of the mesh, for ever unless the root takes it back: on disk when this returns, and
        on its way to all. What an authority revoked until now this one signs anew before: else it would be
        undone for those who hear of that one's revocation first.

        The group key changes with it. Raises TrustError, also where there is no room; or StateError where it
        could not be written; then it holds here all the same, and is written again later.
        """
        authority = self.check_revoke(target, force=force)
        if target.revoked is not None:
            return target.revoked
        revocations = self._node.revocations
        async with self._revoking:
            if (already := revocations.get(target.node_id)) is not None:
                return already
            planned = revocations.copy()  # the loop goes on meanwhile
            sign = await trio.to_thread.run_sync(planned.prepare, authority, target.node_id, time())
            made = await trio.to_thread.run_sync(sign)
            await self._keeper.hold(made)
        name = None if target.entry is None else target.entry.member.name
        if (revoked := revocations.get(target.node_id)) is None:
            raise TrustError(
                f"the revocation of {format_node_id(target.node_id)} does not count: the node is still in",
                fix="try again; if it goes on, cast it out on the machine with the root's key: "
                "`phantommesh revoke NAME --undo-all`",
            )
        log.warning(
            "node revoked", name=name, node_id=format_node_id(target.node_id), taken_over=len(made) - 1
        )
        await self._keeper.save()
        await self._keys.rotate()
        return revoked

    async def undo(self, target: Target, *, cast_out: bool, dry_run: bool) -> int:
        """Have the root take a node back; or, with ``cast_out``, put an authority out together with all that
        it revoked. Say how many nodes that takes back. On disk when this returns. Raises TrustError or
        StateError.

        It works on a machine that is revoked itself, since a rogue will have thought of that first.
        """
        node = self._node
        root_key = await trio.to_thread.run_sync(node.root_key, "undo revocations")
        if cast_out and target.node_id == node.identity.node_id:
            raise TrustError(
                "this would cast out the node that it is run on",
                fix="give the name or node id of the authority that revoked the others",
            )
        before, newest = node.revocations.nodes, node.revocations.newest_word
        if not cast_out and target.node_id not in before:
            return 0
        word = await trio.to_thread.run_sync(
            partial(
                say,
                root_key,
                pardoned=() if cast_out else (target.node_id,),
                cast_out=(target.node_id,) if cast_out else (),
                last=0 if newest is None else newest.number,
                now=time(),
            )
        )
        if dry_run:
            planned = node.revocations.copy()
            await trio.to_thread.run_sync(planned.add, word, time())
            return len(before - planned.nodes)
        self._keeper.revoke(word)
        back = before - node.revocations.nodes
        log.warning(
            "the root has spoken",
            cast_out=format_node_id(target.node_id) if cast_out else None,
            taken_back=len(back),
        )
        await self._keeper.save()
        await self._keys.rotate()
        return len(back)


def _allow(rates: Rates[NodeId], node_id: NodeId, reason: str) -> None:
    """Raise TrustError that says when to try again, where this node has used up its rate."""
    now = trio.current_time()
    if not rates.allow(node_id, now):
        raise TrustError(reason, fix=f"try again in {span(rates.wait(node_id, now) + 60)}")
