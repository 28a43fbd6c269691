# SPDX-License-Identifier: GPL-3.0-or-later
"""An authority's work for members that were away for too long, and for the places of lost machines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

from phantommesh.control import messages
from phantommesh.link.keys import RETURNING, returning_secret
from phantommesh.moments import rfc3339, span
from phantommesh.node.revoking import Revoking, authority_of
from phantommesh.node.steps import Alone, Compute, Holdings, Keep, MakeKey, Moment, Party, Save, Told, Work
from phantommesh.rates import Rates
from phantommesh.records.record import SignedRecord
from phantommesh.records.roster import Entry, settle
from phantommesh.secret import Secret
from phantommesh.state.directory import JOIN_ANEW
from phantommesh.trust.certificates import (
    CLOCK_SKEW,
    DAY,
    EARLY,
    LONGEST_LIFE,
    NODE_LIFE,
    RENEW_AT,
    Role,
    TrustError,
    authority_node,
)
from phantommesh.trust.groupkey import NO_KEY, Keyring, encode_keys
from phantommesh.trust.identity import NodeId
from phantommesh.trust.issuing import parse_csr_untrusted
from phantommesh.trust.routes import standing


class Returning:
    """Takes members back. ``renewals`` is how often each member gets a certificate."""

    def __init__(self, node: Holdings, ring: Keyring, renewals: Rates[NodeId]) -> None:
        self._node, self._ring, self._renewals = node, ring, renewals
        self._me = node.identity.node_id

    def secret_of(self, node_id: bytes) -> Secret | None:
        """The secret by which this member may come back; None for a node that is no member or was revoked."""
        if self._node.roster.get(NodeId(node_id)) is None:
            return None
        return returning_secret(self._node.mesh.root_hash, self._me, node_id)

    def take_back(self, party: Party, request: messages.Return, at: Moment) -> Work[messages.Returned]:
        """Renew the certificate of a member that has none any more, within the mesh's grace by this node's
        clock. Raises TrustError or RecordError.

        The handshake has shown that the other end holds the member's key. All else is as this node knows it:
        the member's record in the roster, whoever certified that, and the revocations.
        """
        authority_of(self._node)
        if party.invite != RETURNING:
            raise TrustError("a member that is linked renews its certificate over its link")
        self._member(party, request, at)
        node_id = NodeId(party.peer)
        if not self._renewals.allow(node_id, at.now):
            again = span(self._renewals.wait(node_id, at.now) + 60)
            raise TrustError("this node was taken back several times just now", fix=f"try again in {again}")
        spki, _ = yield Compute(partial(parse_csr_untrusted, request.csr))
        if spki != party.spki:
            raise TrustError("the certificate request is for another key than the handshake's")

        def grant(at: Moment) -> Work[messages.Returned]:
            node, authority = self._node, authority_of(self._node)
            entry = self._member(party, request, at)  # it may have been revoked meanwhile
            member = entry.member
            name, ip4, itself = member.name, member.ip4, member.role is Role.AUTHORITY
            node_cert, authority_cert = request.node_cert, request.authority_cert
            if itself:  # its own word stands until it is revoked; nobody else's certificate would help it
                if authority_node(authority_cert) != node_id:
                    raise TrustError("an authority brings the certificate that it gave itself")
            else:
                name, ip4 = settle(node.roster, node.mesh, member, at.wall)
                grants = standing(member.grants, node_id, node.revocations)
                issue = partial(
                    authority.issue, spki, name, member.role, ip4, at.wall, grants=grants, tags=member.tags
                )
                node_cert, authority_cert = (yield Compute(issue)), authority.der
            signed = SignedRecord(request.record, request.signature, node_cert, authority_cert)
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

    def _member(self, party: Party, request: messages.Return, at: Moment) -> Entry:
        """The member that comes back. Raises TrustError where it may not."""
        node, node_id = self._node, NodeId(party.peer)
        if node_id in node.revocations:
            raise TrustError("this node was revoked", fix=JOIN_ANEW)
        entry = node.roster.get(node_id)
        if entry is None:
            raise TrustError("this node is no member that is known here", fix="ask another authority")
        member, clock = entry.member, f"by this authority's clock it is {rfc3339(at.wall)}"
        set_clock = "set the clock of the machine of the two whose clock is wrong"
        # A certificate that begins or ends in another time than the member's would be of no use to it, and
        # count against it when its clock is right. A machine that was off for long often starts like that.
        ahead = request.at - at.wall
        if not -CLOCK_SKEW - EARLY <= ahead < RENEW_AT * NODE_LIFE - CLOCK_SKEW:
            way = "ahead" if ahead > 0 else "behind"
            raise TrustError(
                f"the clock of {member.name} is {span(abs(ahead))} {way}: by it, it is "
                f"{rfc3339(request.at)}, and {clock}",
                fix=set_clock,
            )
        if at.wall > member.not_after + node.mesh.grace:
            raise TrustError(
                f"the certificate of {member.name} ran out on {rfc3339(member.not_after)}, which is longer "
                f"ago than the mesh's grace of {node.mesh.grace / DAY:g} days: {clock}",
                fix=f"run `phantommesh invite --replace {member.name}` on an authority, `phantommesh leave` "
                "here, and `phantommesh join` with that invite: the name and the IPv4 address stay",
            )
        # One that lasts longer than any may was made by a clock that was ahead, and is of no use.
        due = request.until - (1 - RENEW_AT) * NODE_LIFE - CLOCK_SKEW
        if member.role is not Role.AUTHORITY and at.wall < due <= request.until <= at.wall + LONGEST_LIFE:
            raise TrustError(
                f"the certificate of {member.name} is good until {rfc3339(request.until)}: {clock}",
                fix=set_clock,
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
    tags: tuple[str, ...] = ()


def place_of(node: Holdings, wanted: str) -> Place:
    """Return the place of a lost machine, by its name or node id. Raises TrustError."""
    target = Revoking(node).find(wanted)
    if target.entry is None:
        raise TrustError(f"no member is known by the node id {wanted}", fix="see `phantommesh peers`")
    if target.node_id == node.identity.node_id:
        raise TrustError("this node cannot invite in place of itself", fix="run it on another authority")
    member = target.entry.member
    replaces = None if target.revoked else target.node_id
    return Place(member.name, member.role, member.ip4, replaces, member.tags)
