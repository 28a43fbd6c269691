# SPDX-License-Identifier: GPL-3.0-or-later
"""An authority's work for its mesh: it lets nodes in and renews their certificates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from ipaddress import IPv4Address
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh.control import messages
from phantommesh.endpoint import parse_endpoint
from phantommesh.link.keys import RETURNING
from phantommesh.moments import span
from phantommesh.node.granting import Granting
from phantommesh.node.returning import Returning
from phantommesh.node.revoking import Revoking, authority_of
from phantommesh.node.steps import (
    Alone,
    Compute,
    FindInvite,
    Holdings,
    Keep,
    MakeInvite,
    MakeKey,
    Moment,
    Party,
    ReadRootKey,
    Save,
    SpendInvite,
    Told,
    Work,
)
from phantommesh.rates import Rates
from phantommesh.reachable import Reach, Why, all_loopback
from phantommesh.records.record import SignedRecord, open_record
from phantommesh.records.roster import Entry, settle
from phantommesh.state.invitebook import InviteEntry
from phantommesh.state.routebook import Approval
from phantommesh.trust.certificates import (
    NODE_LIFE,
    Role,
    TrustError,
)
from phantommesh.trust.groupkey import NO_KEY, Keyring, encode_keys
from phantommesh.trust.identity import Identity, NodeId, format_node_id, node_id_of, parse_node_id
from phantommesh.trust.invites import MAX_ENDPOINTS, Invite
from phantommesh.trust.issuing import (
    Authority,
    check_authority_proof,
    choose_ip4,
    issue_authority,
    parse_csr_untrusted,
)
from phantommesh.trust.revocations import MAX_SNAPSHOT

# Tuning.
# A certificate costs a signature, and a record at every member. A certificate is renewed once in two thirds
# of its life; a few in a row are for disputes, and for answers that were lost on their way.
RENEWALS, RENEWALS_LIFE = 6, 84  # at once, and in a life of `NODE_LIFE` after that: one in two hours
# A name costs each member a record, and may be one that somebody else is about to take.
RENAMES, RENAME_AGAIN = 3, 7200.0  # of one member at once, and s until each further one
PROMISED = 600.0  # s that a name is kept for the member that was given it, until its record says so
JOINS, JOIN_AGAIN = 4, 600.0  # enrolments of one node at once, and s until each further one
MAX_SHOWN: Final = 63  # characters of a tag that an error repeats
# s, a certificate's life: a member that died half-way may be off for days
REPLACE_WITHIN: Final = 7 * 86_400.0

AUTHORITY_ANEW: Final = (
    "make another machine an authority (`phantommesh invite --role authority`), let it run "
    "`phantommesh revoke` for this node, then run `phantommesh leave --force` here and join anew"
)


class Desk:
    """Every node has a desk. On a node that is no authority, each method that needs an authority raises
    TrustError."""

    def __init__(self, node: Holdings, ring: Keyring, approvals: Iterable[Approval] = ()) -> None:
        self._node, self._ring = node, ring
        self.revoking = Revoking(node)
        self._me = node.identity.node_id
        self._renewals = Rates[NodeId](RENEWALS_LIFE / NODE_LIFE, RENEWALS)
        self._promised: dict[str, tuple[NodeId, float]] = {}  # by name: to whom, and until when
        self._renames = Rates[NodeId](1 / RENAME_AGAIN, RENAMES)
        self._joins = Rates[NodeId](1 / JOIN_AGAIN, JOINS)
        self.returning = Returning(node, ring, self._renewals)
        self.granting = Granting(node, self.revoking, approvals)

    # Letting nodes in.

    def enrol(self, newcomer: Party, request: messages.Enrol, at: Moment) -> Work[messages.Enrolled]:
        """Let a newcomer in. Raises TrustError, RecordError or StateError; then the invite is not spent."""
        authority_of(self._node)
        if newcomer.invite in (b"", RETURNING):
            raise TrustError(
                "an enrolment needs an invite", fix="use the line that `phantommesh invite` prints"
            )
        spki, name = yield Compute(partial(parse_csr_untrusted, request.csr))
        node_id = NodeId(newcomer.peer)
        if spki != newcomer.spki:
            raise TrustError("the certificate request is for another key than the handshake's")
        if node_id in self._node.revocations:
            raise TrustError(
                "this node was revoked",
                fix="ask for a new invite, and run `phantommesh join` with it: it is a new identity then",
            )
        _allow(self._joins, node_id, at, "this node has joined several times just now")
        # Enrol one newcomer after the other: two must not be given one address or one name.
        admit = partial(self._admit, newcomer, request, name)
        enrolled: messages.Enrolled = yield Alone("enrolling", admit)
        return enrolled

    def _admit(
        self, newcomer: Party, request: messages.Enrol, name: str, at: Moment
    ) -> Work[messages.Enrolled]:
        node, node_id, authority = self._node, NodeId(newcomer.peer), authority_of(self._node)
        entry: InviteEntry = yield FindInvite(newcomer.invite, node_id)
        _check_invite(entry, name)
        replaced = self._check_replaced(entry, node_id)
        self._check_rename(entry, node_id, name)
        others = [e for e in node.roster if e.member.node_id not in (node_id, replaced)]
        if self._taken(others, node_id, name, at):
            raise _name_taken(name)
        own_authority_cert = b""
        if entry.role is Role.AUTHORITY:
            own_authority_cert = yield from self._make_authority(request, node_id, at)
        ip4 = self._choose(entry, node_id, others)
        tags = _granted(entry, request.tags)
        issue = partial(authority.issue, newcomer.spki, name, entry.role, ip4, at.wall, tags=tags)
        node_cert: bytes = yield Compute(issue)
        signed = SignedRecord(request.record, request.signature, node_cert, authority.der)
        yield Compute(partial(self._check_endpoints, signed, name, at.wall, request.chosen))
        # The invite is spent when all that the newcomer brought is known to be good, so that a bad record
        # costs it nothing, and before any member hears of the newcomer: this work may end at any step, by a
        # full disk or with its connection, and one use must never let two in. The same one is let in again.
        yield SpendInvite(newcomer.invite, node_id, name)
        if replaced is not None:
            # Then the revocation, and only then the record: no member is two.
            yield from self.revoking.revoke(self.revoking.target(replaced), at, force=False)
        # Have the record on disk before the newcomer hears of it: a crash then leaves no newcomer with a mesh
        # that does not know it.
        yield Keep(SignedRecord.decode_untrusted(signed.encode()))
        yield Save()
        if self._ring.active is None:
            yield MakeKey()
        yield Told(
            "authority",
            "node enrolled",
            {"name": name, "node_id": format_node_id(node_id), "role": entry.role.value, "ip4": str(ip4)},
        )
        return messages.Enrolled(
            node_cert=node_cert,
            authority_cert=authority.der,
            root_cert=node.root.public_bytes(Encoding.DER),
            admission=node.admission.newest.reveal(),
            roster=node.roster.encode(),
            revocations=node.revocations.encode(MAX_SNAPSHOT),
            keys=encode_keys(self._ring.keys),
            active_key=NO_KEY if self._ring.active is None else self._ring.active.id,
            own_authority_cert=own_authority_cert,
            policies=tuple(one.signed.encode() for one in node.policies.offered(at.wall)),
        )

    def _choose(self, invite: InviteEntry, node_id: NodeId, others: Sequence[Entry]) -> IPv4Address:
        """The newcomer's address: the one that the invite keeps for it, if it is free."""
        taken = {entry.member.ip4 for entry in others}
        if invite.ip4 and IPv4Address(invite.ip4) not in taken:
            return IPv4Address(invite.ip4)
        return choose_ip4(self._node.mesh, node_id, taken)

    def _check_replaced(self, invite: InviteEntry, node_id: NodeId) -> NodeId | None:
        """Return the member whose place the invite is for, if any. Raises TrustError where that member was
        revoked before the invite was used: a node that was put out does not come back by its invite."""
        if not invite.replaces:
            return None
        replaced = parse_node_id(invite.replaces)
        if replaced in self._node.revocations and not invite.admits(node_id):
            raise TrustError(
                "the identity that this invite replaces was revoked meanwhile", fix="ask for a new invite"
            )
        return replaced

    def _check_rename(self, invite: InviteEntry, node_id: NodeId, name: str) -> None:
        """Raise TrustError where a node that comes again by its invite, as after a crash, asks for one name
        after the other: each name costs every member a record."""
        held = self._node.roster.get(node_id)
        if invite.renames(node_id, name) and (held is None or held.member.name != name):
            used = invite.names_of(node_id)
            raise TrustError(
                f"this invite has enrolled this node as {' and '.join(used)} already",
                fix=f"join with --name {used[-1]}, or get a new invite for another name",
            )

    def _check_endpoints(self, signed: SignedRecord, name: str, wall: float, chosen: bool) -> None:
        """Raise TrustError where the newcomer names an address that nobody here would send to. Members judge
        for themselves; this check tells an operator of a slip while it is easily mended."""
        node = self._node
        _, record = open_record(node.root, signed, wall)
        mine = node.roster.get(self._me)
        own = () if mine is None else (parse_endpoint(endpoint)[0] for endpoint in mine.record.control)
        reach = Reach((node.mesh.network4, node.mesh.network6), loopback=all_loopback(own))
        held = {str(ip) for entry in node.roster for ip in (entry.member.ip4, entry.member.ip6)}
        for endpoint in record.control:
            host = parse_endpoint(endpoint)[0]
            why = reach.never(host)
            if why is Why.OVERLAY and host not in held and not chosen:
                continue  # the newcomer's provider may use the overlay's range; nobody will send there
            if why is not None and why is not Why.NO_ADDRESS:  # the latter is a name
                raise TrustError(
                    f"the endpoint {endpoint} of {name} is {why.text}",
                    fix="join with --endpoint and an address by which other machines reach this one",
                )

    def _make_authority(self, request: messages.Enrol, node_id: NodeId, at: Moment) -> Work[bytes]:
        """Sign the newcomer's authority key with the root's. Raises TrustError where either is missing."""
        node = self._node
        root_key: Identity = yield ReadRootKey("make another an authority")

        def sign() -> bytes:
            check_authority_proof(request.authority_spki, request.authority_proof, node_id)
            if request.authority_spki in (node.mesh.root_spki, node.identity.spki):
                raise TrustError("the authority key is not the newcomer's")
            made = issue_authority(node.root, root_key, request.authority_spki, node_id, at.wall)
            return made.public_bytes(Encoding.DER)

        der: bytes = yield Compute(sign)
        yield Told("authority", "authority made", {"node_id": format_node_id(node_id)}, "warning")
        return der

    def replace(self, entry: Entry, at: Moment) -> Work[messages.Replacement]:
        """Make an invite by which a member can join anew in place of itself. Raises TrustError or StateError.

        An unused invite costs the member nothing. A used one costs it its present identity, so that a member
        cannot be two. The thief of a copy of the identity key can do this too, once: of the owner and the
        thief, the second finds itself revoked.
        """
        authority_of(self._node)
        member = entry.member
        if member.role is Role.AUTHORITY:
            raise TrustError("an authority's identity is not replaced", fix=AUTHORITY_ANEW)
        made: messages.Replacement = yield Alone("enrolling", partial(self._invite, entry))
        return made

    def _invite(self, entry: Entry, at: Moment) -> Work[messages.Replacement]:
        member, mine = entry.member, self._node.roster.get(self._me)
        invite: Invite = yield MakeInvite(
            endpoints=() if mine is None else mine.record.control[:MAX_ENDPOINTS],
            expires=int(at.wall + REPLACE_WITHIN),
            role=member.role,
            name=member.name,
            replaces=member.node_id,
            ip4=member.ip4,
            tags=member.tags,
        )
        yield Told("authority", "a member is to get a new identity", {"name": member.name}, "warning")
        return messages.Replacement(invite.encode())

    # Certificates.

    def renew(self, entry: Entry, request: messages.Renew, at: Moment) -> Work[messages.Renewed]:
        """Issue a member's next certificate: for its own key, name, role, address and the routes that it has,
        unless it lost the name or the address to another member. Raises TrustError or RecordError."""
        authority, member = authority_of(self._node), entry.member
        spki, _ = yield Compute(partial(parse_csr_untrusted, request.csr))
        if node_id_of(spki) != member.node_id:
            raise TrustError("a certificate is renewed for its own key only")
        _allow(self._renewals, member.node_id, at, f"the certificate of {member.name} was renewed too often")
        if request.evidence:
            yield Keep(SignedRecord.decode_untrusted(request.evidence))

        def issue(at: Moment) -> Work[messages.Renewed]:
            name, ip4 = settle(self._node.roster, self._node.mesh, member, at.wall)
            node_cert = yield from self._certify(authority, spki, entry, name, ip4, at)
            yield Told(
                "authority",
                "certificate renewed",
                {"name": name, "before": member.name, "ip4": str(ip4)},
            )
            return messages.Renewed(node_cert, authority.der)

        renewed: messages.Renewed = yield Alone("enrolling", issue)
        return renewed

    def rename(self, entry: Entry, request: messages.Rename, at: Moment) -> Work[messages.Renewed]:
        """Issue a member's next certificate under the name that it asks for: for its own key, role and
        addresses. Raises TrustError, also where another member has the name."""
        authority, member = authority_of(self._node), entry.member
        spki, name = yield Compute(partial(parse_csr_untrusted, request.csr))
        if node_id_of(spki) != member.node_id:
            raise TrustError("a node is renamed by its own key only")
        _allow(self._renames, member.node_id, at, f"{member.name} was renamed too often")

        def issue(at: Moment) -> Work[messages.Renewed]:
            others = [entry for entry in self._node.roster if entry.member.node_id != member.node_id]
            if self._taken(others, member.node_id, name, at):
                raise TrustError(
                    f"the mesh has a node named {name} already",
                    fix="choose another name, or rename that node first; if it is gone for good, "
                    f"`phantommesh revoke {name}` on an authority sets the name free",
                )
            _, ip4 = settle(self._node.roster, self._node.mesh, member, at.wall)
            node_cert = yield from self._certify(authority, spki, entry, name, ip4, at)
            self._promised[name] = member.node_id, at.now + PROMISED
            yield Told(
                "authority",
                "member renamed",
                {"name": name, "before": member.name, "node_id": format_node_id(member.node_id)},
                "warning",
            )
            return messages.Renewed(node_cert, authority.der)

        renamed: messages.Renewed = yield Alone("enrolling", issue)
        return renamed

    def _certify(
        self, authority: Authority, spki: bytes, entry: Entry, name: str, ip4: IPv4Address, at: Moment
    ) -> Work[bytes]:
        """Sign a certificate for a member: for its role, its tags and the routes of `Granting.carried`."""
        grants, role, tags = self.granting.carried(entry), entry.member.role, entry.member.tags
        node_cert: bytes = yield Compute(
            partial(authority.issue, spki, name, role, ip4, at.wall, grants=grants, tags=tags)
        )
        return node_cert

    def _taken(self, others: Sequence[Entry], node_id: NodeId, name: str, at: Moment) -> bool:
        """Whether another member has the name, or was just given it. A member that is not taken back any
        more has lost it."""
        self._promised = {n: given for n, given in self._promised.items() if given[1] > at.now}
        if self._promised.get(name, (node_id, 0.0))[0] != node_id:
            return True
        since = at.wall - self._node.mesh.grace
        return any(entry.member.name == name and entry.member.not_after >= since for entry in others)


def _check_invite(invite: InviteEntry, name: str) -> None:
    """Raise TrustError where the invite is for another name."""
    if invite.name is not None and invite.name != name:
        raise TrustError(
            f"the invite is for a node named {invite.name}", fix=f"join with --name {invite.name}"
        )


def _granted(invite: InviteEntry, asked: Sequence[str]) -> tuple[str, ...]:
    """The tags of the newcomer's certificate: those that it asks for, all of the invite's where it asks for
    none. Raises TrustError where the invite does not have one of them."""
    if missing := sorted(set(asked) - {*invite.tags}):
        raise TrustError(
            f"the invite does not grant the tag {missing[0][:MAX_SHOWN]}",
            fix="leave it out, or get an invite that was made with --tag for it",
        )
    return tuple(asked) or invite.tags


def _name_taken(name: str) -> TrustError:
    return TrustError(
        f"the mesh has a node named {name} already",
        fix="join with another --name; if this machine was that node and has lost its state, run "
        f"`phantommesh invite --replace {name}` on an authority, and join by that invite",
    )


def _allow(rates: Rates[NodeId], node_id: NodeId, at: Moment, reason: str) -> None:
    """Raise TrustError that says when to try again, where this node has used up its rate."""
    if not rates.allow(node_id, at.now):
        raise TrustError(reason, fix=f"try again in {span(rates.wait(node_id, at.now) + 60)}")
