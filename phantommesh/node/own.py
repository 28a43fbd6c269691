# SPDX-License-Identifier: GPL-3.0-or-later
"""This node's own word: its record, signed anew when it changes, and its certificate, renewed in time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Final, TypeVar

import msgspec
from msgspec import structs

from phantommesh.control import messages
from phantommesh.errors import PhantomMeshError
from phantommesh.node.advertising import Advertising
from phantommesh.node.steps import Compute, Holdings, Moment, Told
from phantommesh.records.record import CONTEXT, NodeRecord, SignedRecord, sign_record
from phantommesh.records.roster import Dispute, Entry, Roster, settle
from phantommesh.routable import Network
from phantommesh.state.directory import JOIN_ANEW
from phantommesh.trust.certificates import (
    EARLY,
    RENEW_AT,
    Member,
    Mesh,
    Role,
    TrustError,
    authority_node,
    check_label,
    verify_chain,
)
from phantommesh.trust.identity import NodeId
from phantommesh.trust.invites import Invite
from phantommesh.trust.issuing import make_csr
from phantommesh.wireguard.keys import SEQ_AHEAD, WgKeys

# Tuning.
WITNESSES: Final = 3  # members asked
# s until a node asks again that an authority did not take back; twice that after each further refusal. Each
# costs the authority a handshake and a line of its log, and most end by a hand.
REFUSED_AGAIN, REFUSED_MOST = 30.0, 240.0
CLOCK_SET: Final = 60.0  # s by which a clock was set, so that a refusal may hold no more

T = TypeVar("T")


class NotTakenBackError(TrustError):
    """Authorities answered, and none took this node back."""


@dataclass(frozen=True, slots=True)
class Certified:
    """This node's certificate and its authority's, in DER; ``member`` is what the former says."""

    node_cert: bytes
    authority_cert: bytes
    member: Member


@dataclass(frozen=True, slots=True, repr=False)
class WriteKeys:
    """Write the WireGuard keys: they are on disk when the work goes on."""

    keys: WgKeys


@dataclass(frozen=True, slots=True)
class WriteCertificates:
    """Write new certificates: they are on disk when the work goes on."""

    authority_cert: bytes
    node_cert: bytes


@dataclass(frozen=True, slots=True)
class AskRenewal:
    """Ask the authorities for a new certificate, one after the other: see `control.Renew`. The result is the
    `control.Renewed` and the `Moment` at which it came, or TrustError is thrown."""

    csr: bytes
    evidence: bytes


@dataclass(frozen=True, slots=True)
class AskReturn:
    """Ask one authority after the other to take this node back, over the handshake of an enrolment, and
    `witnesses` how the one that does stands. The result is the `control.Returned`, the node that gave it, and
    the `Moment` at which it came; or TrustError is thrown."""

    request: messages.Return


@dataclass(frozen=True, slots=True)
class Rejoin:
    """Take in our own record, the record of the authority that took this node back, and its group keys. This
    node can link with it then."""

    mine: SignedRecord
    returned: messages.Returned
    authority: NodeId


@dataclass(frozen=True, slots=True)
class AskRename:
    """Ask the authorities for a certificate under another name, one after the other: see `control.Rename`. A
    node that is an authority asks itself. The result is that of `AskRenewal`."""

    csr: bytes


@dataclass(frozen=True, slots=True)
class AskRoutes:
    """Ask each authority for routes: see `control.Route`. A node that is an authority asks itself alone. The
    result is the first certificate that one gave, as `control.Renewed`, or None where they were heard and
    gave none; and the `Moment` at which it came. TrustError is thrown where none was heard."""

    request: messages.Route


@dataclass(frozen=True, slots=True)
class Publish:
    """Put what `Own.record` gives into the roster."""


OwnStep = (
    Compute | WriteKeys | WriteCertificates | AskRenewal | AskReturn | Rejoin | AskRename | AskRoutes
    | Publish | Told
)  # fmt: skip
OwnWork = Generator[OwnStep, Any, T]


class Own:
    """This node as others know it. ``words`` makes the record, unsigned, from WireGuard keys and a record
    number. ``advertised`` are the prefixes that the operator wants it to route."""

    def __init__(
        self,
        node: Holdings,
        certified: Certified,
        wg_keys: WgKeys,
        words: Callable[[WgKeys, int], NodeRecord],
        advertised: Iterable[Network] = (),
    ) -> None:
        self._node, self._words = node, words
        self._me = node.identity.node_id
        self.certified, self.wg_keys = certified, wg_keys
        self._reserved = wg_keys.seq  # the greatest number that earlier runs may have given out
        self.renewal_error: PhantomMeshError | None = None
        self.routes = Advertising(node, advertised, lambda: self.member)
        self._refusals, self._refused = 0, Moment(0.0, 0.0)  # how often in a row, and the last time

    @property
    def member(self) -> Member:
        """This node, as its certificate describes it."""
        return self.certified.member

    @property
    def _revoked(self) -> bool:
        return self._me in self._node.revocations

    # The record.

    def record(self, wall: float) -> SignedRecord | None:
        """Return our record, signed, if it says anything that our record in the roster does not; else None.
        The two also differ after the state was restored from a backup, when the mesh brings back a record of
        ours that we do not remember. Raises RecordError where nobody would accept our record.
        """
        if self._revoked:
            return None
        held = self._node.roster.get(self._me)
        record = self._words(self.wg_keys, self._next_seq())
        same_words = held is not None and structs.replace(record, seq=held.record.seq) == held.record
        if same_words and held is not None and held.signed.node_cert == self.certified.node_cert:
            return None
        if self.member.not_after <= wall:
            return None  # nobody would take it; a renewal comes first
        certified = self.certified
        return sign_record(self._node.identity, record, certified.node_cert, certified.authority_cert)

    def _next_seq(self) -> int:
        """A number for our next record: above those in the roster, and above those that were given out with
        the present keys by a run that ended before it could save the roster."""
        held = self._node.roster.get(self._me)
        return max(0 if held is None else held.record.seq, self._reserved) + 1

    def reserve(self, at: Moment) -> OwnWork[None]:
        """Do this once, before the first `record`. It reserves record numbers on disk, so that a run that
        ends before it has saved the roster does not reuse them. It also dates keys of unknown age from now,
        so that they grow old across restarts too. If the disk refuses, the node does without."""
        if self.wg_keys.in_place:
            yield Told(
                "own",
                "the WireGuard keys of an earlier version were replaced: they could not be proved",
                level="warning",
            )
        dated = self.wg_keys.dated(at.wall)
        try:
            yield from self._adopt(replace(dated, seq=max(dated.seq, self._next_seq() + SEQ_AHEAD)))
        except PhantomMeshError as error:
            yield Told("own", "record numbers are not reserved", _about(error), "error")

    def replace_key(self, dimension: int, slot: int, at: Moment) -> OwnWork[None]:
        """Give one dimension a new WireGuard key and another of its ports. When this returns the key is on
        disk and in ``wg_keys``, and nobody was told of it yet. Raises StateError; then the old one stands."""
        yield from self._adopt(self.wg_keys.replaced(dimension, slot, at.wall, self._next_seq() + SEQ_AHEAD))

    def _adopt(self, keys: WgKeys) -> OwnWork[None]:
        yield WriteKeys(keys)
        self.wg_keys = keys

    # The certificate.

    def renewal_due(self) -> float:
        """The Unix time at which the certificate should be renewed."""
        return self.member.not_before + RENEW_AT * (self.member.not_after - self.member.not_before)

    def due(self, wall: float) -> bool:
        """Whether it is time for another certificate."""
        return not self._revoked and (self._aged(wall) or self.disputed(wall) or self.forlorn(wall))

    def _aged(self, wall: float) -> bool:
        return wall >= self.renewal_due() or not self.certified_at(wall)

    def certified_at(self, wall: float) -> bool:
        """Whether the certificate holds, as other members judge it (`Entry.valid`)."""
        return self.member.not_before - EARLY <= wall <= self.member.not_after

    def disputed(self, wall: float) -> bool:
        """Whether the certificate should be replaced before its time: another member has the name or the
        address and keeps it, a route in it was withdrawn, or the authority that issued it was revoked. False
        if this node itself was revoked."""
        issuer = authority_node(self.certified.authority_cert)
        if self._revoked:
            return False
        if self.dispute(wall) is not None or self.routes.withdrawn:
            return True
        return issuer is not None and issuer in self._node.revocations

    def forlorn(self, wall: float) -> bool:
        """Whether this node is an authority that knows of others, and can link with nobody: it was away for
        so long that everybody's certificate has run out here, and its own at all others."""
        others = [entry for entry in self._node.roster if entry.member.node_id != self._me]
        return (
            self._node.authority is not None
            and any(entry.member.role is Role.AUTHORITY for entry in others)
            and not any(entry.valid(wall) for entry in others)
        )

    def dispute(self, wall: float) -> Dispute | None:
        """Return the dispute in which we have to give up our address or name, if there is one."""
        return next(
            (
                dispute
                for dispute in self._node.roster.disputes(wall)
                if dispute.loser == self._me and dispute.over in ("address", "name")
            ),
            None,
        )

    def shared_dimension(self, wall: float) -> int | None:
        """Return a dimension whose key another member holds too, as that member proved. Such a key protects
        nothing any more.

        None if there is none.
        """
        public = self.wg_keys.public
        disputes = self._node.roster.disputes(wall)
        shared = (d.key for d in disputes if self._me in (d.loser, d.winner) and d.key in public)
        return next(map(public.index, shared), None)

    def refrains(self, at: Moment) -> bool:
        """Whether it is too early to ask the authorities again: they did not take this node back, and its
        clock was not set since."""
        since, before = at.now - self._refused.now, self._refused
        if not self._refusals or abs(at.wall - before.wall - since) > CLOCK_SET:
            return False
        return since < min(REFUSED_AGAIN * 2.0 ** (self._refusals - 1), REFUSED_MOST)

    def renew(self, at: Moment, *, early: bool = False) -> OwnWork[None]:
        """Try once to get another certificate, ``early``: also where nothing asks for it. ``renewal_error``
        says why that failed; `status` tells it."""
        try:
            yield from self._renew(at, early=early)
            self.renewal_error, self._refusals = None, 0
        except PhantomMeshError as error:
            self.renewal_error = error
            self._refusals = self._refusals + 1 if isinstance(error, NotTakenBackError) else 0
            self._refused = at
            yield Told("own", "certificate not renewed", _about(error), "warning")

    def _renew(self, at: Moment, *, early: bool) -> OwnWork[None]:
        node, member = self._node, self.member
        if node.authority is not None:
            if early or self._aged(at.wall) or self.disputed(at.wall):
                name, ip4 = settle(node.roster, node.mesh, member, at.wall)
                spki, role, grants = node.identity.spki, member.role, self.routes.granted
                issue = partial(
                    node.authority.issue, spki, name, role, ip4, at.wall, grants=grants, tags=member.tags
                )
                node_cert: bytes = yield Compute(issue)
                yield from self._adopt_certificate(node_cert, node.authority.der, at)
            if self.forlorn(at.wall):
                yield from self._return(at)
            return
        dispute = self.dispute(at.wall)
        winner = None if dispute is None else node.roster.get(dispute.winner)
        evidence = b"" if winner is None else winner.signed.encode()
        csr: bytes = yield Compute(partial(make_csr, node.identity, member.name))
        renewed: messages.Renewed
        if not self.certified_at(at.wall):
            yield from self._return(at)
            return
        try:
            renewed, at = yield AskRenewal(csr, evidence)
        except TrustError as error:
            if at.wall < self.renewal_due():
                raise
            try:  # no link with an authority works, for whatever reason
                yield from self._return(at)
            except TrustError:
                raise error from None
            return
        yield from self._adopt_certificate(renewed.node_cert, renewed.authority_cert, at)

    def _return(self, at: Moment) -> OwnWork[None]:
        """Have an authority take this node back. Raises TrustError."""
        node = self._node
        csr: bytes = yield Compute(partial(make_csr, node.identity, self.member.name))
        chain = (b"", b"") if node.authority is None else (self.certified.node_cert, node.authority.der)
        # Greater than any number that a state before a backup or a crash may have used: see `enrolment`.
        # Without routes: nobody knows yet which of them the next certificate has.
        words = self._words(self.wg_keys, max(self._next_seq(), int(at.wall * 1000)))
        record = structs.replace(words, routes=())
        body = msgspec.msgpack.encode(record)
        signature: bytes = yield Compute(partial(node.identity.sign, body, CONTEXT))
        returned: messages.Returned
        authority: NodeId
        returned, authority, at = yield AskReturn(
            messages.Return(csr, body, signature, int(self.member.not_after), int(at.wall), *chain)
        )
        if node.authority is None:
            chain = returned.node_cert, returned.authority_cert
            yield from self._certify(Certified(*chain, self._verified(*chain, at)))
            yield self._told()
        yield Rejoin(SignedRecord(body, signature, *chain), returned, authority)

    def _adopt_certificate(self, node_cert: bytes, authority_cert: bytes, at: Moment) -> OwnWork[None]:
        member = self._verified(node_cert, authority_cert, at)
        yield from self._take(Certified(node_cert, authority_cert, member))
        yield self._told()

    def _told(self) -> Told:
        member = self.member
        about = {"until": member.not_after, "name": member.name, "ip4": str(member.ip4)}
        return Told("own", "certificate renewed", about)

    def rename(self, name: str, at: Moment) -> OwnWork[None]:
        """Get a certificate under another name, for the same key, role and addresses; it is on disk and told
        to the others when this returns. Raises TrustError or StateError; then the old name stands."""
        check_label("node name", name)
        before = self.member.name
        if self._revoked:
            raise TrustError("this node was revoked, so no authority gives it another name", fix=JOIN_ANEW)
        if name == before:
            return
        csr: bytes = yield Compute(partial(make_csr, self._node.identity, name))
        renewed: messages.Renewed
        renewed, at = yield AskRename(csr)
        member = self._verified(renewed.node_cert, renewed.authority_cert, at)
        if member.name != name:
            raise TrustError(f"the authority certified the name {member.name}, not {name}", fix="try again")
        yield from self._take(Certified(renewed.node_cert, renewed.authority_cert, member))
        yield Told("own", "this node has another name", {"name": name, "before": before}, "warning")

    # Routes.

    def ask_routes(self, at: Moment) -> OwnWork[None]:
        """Ask the authorities for the prefixes that the certificate lacks. ``routes.error`` says why that
        failed; that nobody has approved them yet is no failure."""
        routes = self.routes
        if self._revoked or not routes.lacking or not self.certified_at(at.wall):
            return
        before = len(routes.granted)
        try:
            csr: bytes = yield Compute(partial(make_csr, self._node.identity, self.member.name))
            wanted = tuple(map(str, routes.advertised))
            renewed: messages.Renewed | None
            renewed, at = yield AskRoutes(messages.Route(csr, wanted))
            if renewed is not None:
                yield from self._adopt_certificate(renewed.node_cert, renewed.authority_cert, at)
            routes.error = None
        except PhantomMeshError as error:
            if str(error) != str(routes.error):
                yield Told("own", "routes not asked for", _about(error), "warning")
            routes.error = error
        if len(routes.granted) > before:
            offered = [str(prefix) for prefix in routes.offered]
            yield Told("own", "routes granted", {"routes": offered}, "warning")

    def _verified(self, node_cert: bytes, authority_cert: bytes, at: Moment) -> Member:
        """Return what a new certificate says of this node. Raises TrustError where it does not hold, is for
        another key, or by an authority that was revoked."""
        member = verify_chain(self._node.root, authority_cert, node_cert, at.wall)
        if member.node_id != self._me:
            raise TrustError("the authority certified another node's key")
        if authority_node(authority_cert) in self._node.revocations:
            raise TrustError("the authority that certified this node was revoked")
        return member

    def _take(self, certified: Certified) -> OwnWork[None]:
        yield from self._certify(certified)
        yield Publish()

    def _certify(self, certified: Certified) -> OwnWork[None]:
        yield WriteCertificates(certified.authority_cert, certified.node_cert)
        self.certified = certified


def witnesses(roster: Roster, me: NodeId, authority: NodeId, rng: Random) -> list[Entry]:
    """The members to ask how an authority stands that takes this node back: this node was away, so it may not
    have heard that the authority was revoked. Their certificates may have run out here."""
    others = [entry for entry in roster if entry.member.node_id not in (me, authority)]
    return rng.sample(others, min(WITNESSES, len(others)))


def check_successor(invite: Invite, mesh: Mesh, wall: float) -> None:
    """Raise TrustError unless a node may replace its own identity by this invite."""
    invite.check_expiry(wall)
    if invite.root_hash != mesh.root_hash or invite.role is Role.AUTHORITY:
        raise TrustError("the authority gave an invite to something else", fix="ask another authority")


def _about(error: PhantomMeshError) -> dict[str, object]:
    return {"error": str(error), "fix": error.fix}
