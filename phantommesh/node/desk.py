# SPDX-License-Identifier: GPL-3.0-or-later
"""An authority's work for its mesh: it lets nodes in, renews their certificates, and takes members back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding

from phantommesh.control import messages
from phantommesh.endpoint import parse_endpoint
from phantommesh.link.keys import RETURNING, returning_secret
from phantommesh.moments import rfc3339, span
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
from phantommesh.secret import Secret
from phantommesh.state.invitebook import InviteEntry
from phantommesh.trust.certificates import (
    CLOCK_SKEW,
    DAY,
    LONGEST_LIFE,
    NODE_LIFE,
    RENEW_AT,
    Role,
    TrustError,
    authority_node,
)
from phantommesh.trust.groupkey import NO_KEY, Keyring, encode_keys
from phantommesh.trust.identity import Identity, NodeId, format_node_id, node_id_of, parse_node_id
from phantommesh.trust.invites import MAX_ENDPOINTS, Invite
from phantommesh.trust.issuing import check_authority_proof, choose_ip4, issue_authority, parse_csr_untrusted
from phantommesh.trust.revocations import MAX_SNAPSHOT

# Tuning.
# A certificate costs a signature, and a record at every member. A certificate is renewed once in two thirds
# of its life; a few in a row are for disputes, and for answers that were lost on their way.
RENEWALS, RENEWALS_LIFE = 6, 84  # at once, and in a life of `NODE_LIFE` after that: one in two hours
JOINS, JOIN_AGAIN = 4, 600.0  # enrolments of one node at once, and s until each further one
# s, a certificate's life: a member that died half-way may be off for days
REPLACE_WITHIN: Final = 7 * 86_400.0

AUTHORITY_ANEW: Final = (
    "make another machine an authority (`phantommesh invite --role authority`), let it run "
    "`phantommesh revoke` for this node, move this state directory away and join anew"
)


class Desk:
    """Every node has a desk. On a node that is no authority, each method that needs an authority raises
    TrustError."""

    def __init__(self, node: Holdings, ring: Keyring) -> None:
        self._node, self._ring = node, ring
        self.revoking = Revoking(node)
        self._me = node.identity.node_id
        self._renewals = Rates[NodeId](RENEWALS_LIFE / NODE_LIFE, RENEWALS)
        self._joins = Rates[NodeId](1 / JOIN_AGAIN, JOINS)

    def secret_of(self, node_id: bytes) -> Secret | None:
        """The secret by which this member may come back; None for a node that is no member or was revoked."""
        if self._node.roster.get(NodeId(node_id)) is None:
            return None
        return returning_secret(self._node.mesh.root_hash, self._me, node_id)

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
            raise TrustError("this node was revoked", fix="start over with a new state directory")
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
        _check_name(others, name, at.wall - node.mesh.grace)
        own_authority_cert = b""
        if entry.role is Role.AUTHORITY:
            own_authority_cert = yield from self._make_authority(request, node_id, at)
        ip4 = self._choose(entry, node_id, others)
        issue = partial(authority.issue, newcomer.spki, name, entry.role, ip4, at.wall)
        node_cert: bytes = yield Compute(issue)
        signed = SignedRecord(request.record, request.signature, node_cert, authority.der)
        yield Compute(partial(self._check_endpoints, signed, name, at.wall))
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

    def _check_endpoints(self, signed: SignedRecord, name: str, wall: float) -> None:
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
            if why is Why.OVERLAY and host not in held:
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
        )
        yield Told("authority", "a member is to get a new identity", {"name": member.name}, "warning")
        return messages.Replacement(invite.encode())

    # Certificates.

    def renew(self, entry: Entry, request: messages.Renew, at: Moment) -> Work[messages.Renewed]:
        """Issue a member's next certificate: for its own key, name, role and address, unless it lost the name
        or the address to another member. Raises TrustError or RecordError."""
        authority, member = authority_of(self._node), entry.member
        spki, _ = yield Compute(partial(parse_csr_untrusted, request.csr))
        if node_id_of(spki) != member.node_id:
            raise TrustError("a certificate is renewed for its own key only")
        _allow(self._renewals, member.node_id, at, f"the certificate of {member.name} was renewed too often")
        if request.evidence:
            yield Keep(SignedRecord.decode_untrusted(request.evidence))

        def issue(at: Moment) -> Work[messages.Renewed]:
            name, ip4 = settle(self._node.roster, self._node.mesh, member, at.wall)
            node_cert: bytes = yield Compute(partial(authority.issue, spki, name, member.role, ip4, at.wall))
            yield Told(
                "authority",
                "certificate renewed",
                {"name": name, "before": member.name, "ip4": str(ip4)},
            )
            return messages.Renewed(node_cert, authority.der)

        renewed: messages.Renewed = yield Alone("enrolling", issue)
        return renewed

    def take_back(self, party: Party, request: messages.Return, at: Moment) -> Work[messages.Returned]:
        """Renew the certificate of a member that has none any more, within the mesh's grace by this node's
        clock. Raises TrustError or RecordError.

        The handshake has shown that the other end holds the member's key. All else is as this node knows it:
        the member's record in the roster, whoever certified that, and the revocations.
        """
        authority_of(self._node)
        if party.invite != RETURNING:
            raise TrustError("a member that is linked renews its certificate over its link")
        self._returning(party, request, at)
        node_id = NodeId(party.peer)
        _allow(self._renewals, node_id, at, "this node was taken back several times just now")
        spki, _ = yield Compute(partial(parse_csr_untrusted, request.csr))
        if spki != party.spki:
            raise TrustError("the certificate request is for another key than the handshake's")

        def grant(at: Moment) -> Work[messages.Returned]:
            node, authority = self._node, authority_of(self._node)
            entry = self._returning(party, request, at)  # it may have been revoked meanwhile
            member = entry.member
            name, ip4, itself = member.name, member.ip4, member.role is Role.AUTHORITY
            node_cert, authority_cert = request.node_cert, request.authority_cert
            if itself:  # its own word stands until it is revoked; nobody else's certificate would help it
                if authority_node(authority_cert) != node_id:
                    raise TrustError("an authority brings the certificate that it gave itself")
            else:
                name, ip4 = settle(node.roster, node.mesh, member, at.wall)
                issue = partial(authority.issue, spki, name, member.role, ip4, at.wall)
                node_cert, authority_cert = (yield Compute(issue)), authority.der
            signed = SignedRecord(request.record, request.signature, node_cert, authority_cert)
            yield Compute(partial(self._check_endpoints, signed, name, at.wall))
            yield Keep(SignedRecord.decode_untrusted(signed.encode()))
            yield Save()
            if self._ring.active is None:
                yield MakeKey()
            away = span(max(0.0, at.wall - member.not_after))
            yield Told("authority", "member taken back", {"name": name, "expired_for": away, "ip4": str(ip4)})
            mine = node.roster.get(self._me)
            return messages.Returned(
                node_cert=b"" if itself else node_cert,
                authority_cert=b"" if itself else authority_cert,
                record=b"" if mine is None else mine.signed.encode(),
                keys=encode_keys(self._ring.keys),
                active_key=NO_KEY if self._ring.active is None else self._ring.active.id,
            )

        returned: messages.Returned = yield Alone("enrolling", grant)
        return returned

    def _returning(self, party: Party, request: messages.Return, at: Moment) -> Entry:
        """The member that comes back. Raises TrustError where it may not."""
        node, node_id = self._node, NodeId(party.peer)
        if node_id in node.revocations:
            raise TrustError("this node was revoked", fix="start over with a new state directory")
        entry = node.roster.get(node_id)
        if entry is None:
            raise TrustError("this node is no member that is known here", fix="ask another authority")
        member, clock = entry.member, f"by this authority's clock it is {rfc3339(at.wall)}"
        if at.wall > member.not_after + node.mesh.grace:
            raise TrustError(
                f"the certificate of {member.name} ran out on {rfc3339(member.not_after)}, which is longer "
                f"ago than the mesh's grace of {node.mesh.grace / DAY:g} days: {clock}",
                fix=f"run `phantommesh invite --replace {member.name}` on an authority, and join by that "
                "invite with a new state directory: the name and the IPv4 address stay",
            )
        # One that lasts longer than any may was made by a clock that was ahead, and is of no use.
        due = request.until - (1 - RENEW_AT) * NODE_LIFE - CLOCK_SKEW
        if member.role is not Role.AUTHORITY and at.wall < due <= request.until <= at.wall + LONGEST_LIFE:
            raise TrustError(
                f"the certificate of {member.name} is good until {rfc3339(request.until)}: {clock}",
                fix="set the clock of the machine of the two whose clock is wrong",
            )
        return entry


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a member in the mesh, for the machine that is to have it next. ``replaces`` is the member,
    None where it was revoked already."""

    name: str
    role: Role
    ip4: IPv4Address
    replaces: NodeId | None


def place_of(node: Holdings, wanted: str) -> Place:
    """Return the place of a lost machine, by its name or node id. Raises TrustError."""
    target = Revoking(node).find(wanted)
    if target.entry is None:
        raise TrustError(f"no member is known by the node id {wanted}", fix="see `phantommesh peers`")
    if target.node_id == node.identity.node_id:
        raise TrustError("this node cannot invite in place of itself", fix="run it on another authority")
    member = target.entry.member
    return Place(member.name, member.role, member.ip4, None if target.revoked else target.node_id)


def _check_invite(invite: InviteEntry, name: str) -> None:
    """Raise TrustError where the invite is for another name."""
    if invite.name is not None and invite.name != name:
        raise TrustError(
            f"the invite is for a node named {invite.name}", fix=f"join with --name {invite.name}"
        )


def _check_name(others: Sequence[Entry], name: str, since: float) -> None:
    """Raise TrustError where another member has the name. A member whose certificate ended before ``since``
    has lost it: it is not taken back any more."""
    if any(entry.member.name == name and entry.member.not_after >= since for entry in others):
        raise TrustError(
            f"the mesh has a node named {name} already",
            fix="join with another --name; if this machine was that node and has lost its state, run "
            f"`phantommesh invite --replace {name}` on an authority, and join by that invite",
        )


def _allow(rates: Rates[NodeId], node_id: NodeId, at: Moment, reason: str) -> None:
    """Raise TrustError that says when to try again, where this node has used up its rate."""
    if not rates.allow(node_id, at.now):
        raise TrustError(reason, fix=f"try again in {span(rates.wait(node_id, at.now) + 60)}")
