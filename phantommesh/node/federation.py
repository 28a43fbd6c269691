# SPDX-License-Identifier: GPL-3.0-or-later
"""Pacts with other meshes, as one node holds them: whom it may link with, and what it tells of its own mesh.
Sans-I/O.

A member that a pact names asks the other mesh's gateways for the records of those members of theirs that it
may link with, and for what that mesh has revoked. Both stay apart from its own roster and revocations, and in
memory. While no gateway has answered for `STALE` seconds the pact rests: nobody knows then whom that mesh has
revoked. ``now`` is a clock that only goes forward, in seconds; ``wall`` is unix time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Network
from typing import Final, NamedTuple

from cryptography import x509

from phantommesh.control.pactmessages import MAX_TOLD, AskPact, PactId, PactIs
from phantommesh.errors import PhantomMeshError
from phantommesh.node.peers import Visitor
from phantommesh.node.steps import Moment
from phantommesh.rates import Rates
from phantommesh.records.record import RecordError, SignedRecord
from phantommesh.records.roster import Entry, Roster
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Member, Mesh, TrustError, describe_mesh, load_root
from phantommesh.trust.federation import Gateway, Half, by_id
from phantommesh.trust.identity import NodeId
from phantommesh.trust.pacts import Pact, Pacts
from phantommesh.trust.revocations import Revocations

# Tuning.
STALE: Final = 600.0  # s without an answer from any gateway of a mesh, until the pacts with it rest
REMEMBERED: Final = 30.0  # s that pacts are taken to hold before they are verified anew
MAX_VISITORS: Final = 256  # members of all other meshes that one node links with
MAX_RULES: Final = 4_096  # ranges of ports between this node and all of them
MAX_KNOWN: Final = 2 * MAX_TOLD  # records of one other mesh that are held
MAX_THEIR_REVOCATIONS: Final = 4_096  # of one other mesh: 14 MB
MAX_ASKERS: Final = 1_024  # members of other meshes whose record this gateway remembers to have verified
# Records of one other mesh, and pacts of one member, that are verified, a second and at once: each takes two
# milliseconds.
VERIFY_RATE, VERIFY_BURST = 5.0, 200.0


def door_of(pact: bytes) -> bytes:
    """What a member of the other mesh names to a gateway in place of an invite: 16 bytes. The pact's id
    itself names the line of `federation invite`."""
    return hashlib.sha3_256(b"phantommesh pact door" + pact).digest()[:16]


def together(keys: Callable[[], bytes], *more: Callable[[], bytes]) -> bytes:
    """Eight bytes that differ between nodes with other revocations, another newest key or ``more`` digests
    that differ, of pacts and policies: those of the keys alone where there is none of these."""
    known = b"".join(one() for one in more)
    return hashlib.sha3_256(keys() + known).digest()[:8] if known else keys()


@dataclass(slots=True)
class Other:
    """One other mesh, as this node knows it. ``heard`` is when a gateway last answered."""

    mesh: Mesh
    root: x509.Certificate
    revocations: Revocations
    roster: Roster
    heard: float | None = None

    @classmethod
    def of(cls, der: bytes) -> Other:
        """Know nothing but the root certificate. Raises TrustError."""
        root = load_root(der)
        revocations = Revocations(root)
        return cls(describe_mesh(root), root, revocations, Roster(root, revocations))


class Asked(NamedTuple):
    """A gateway to ask about a pact."""

    pact: bytes
    gateway: Gateway


@dataclass(slots=True)
class _Told:
    """What a member of another mesh was last told: by which of this node's versions, and the digest."""

    version: int
    entry: Entry
    digest: bytes = b""


class Federation:
    """The pacts of one node's mesh. ``roster`` and ``revocations`` are this mesh's own."""

    def __init__(
        self,
        me: NodeId,
        root: x509.Certificate,
        roster: Roster,
        revocations: Revocations,
        clock: Callable[[], Moment],
        *,
        authority: bool = False,
    ) -> None:
        self.pacts = Pacts(root, revocations)
        self.others: dict[bytes, Other] = {}
        self.version = 0
        self._me, self._root, self._roster, self._revocations = me, root, roster, revocations
        self._clock, self._authority = clock, authority
        self._served = set[bytes]()  # pacts of which this node has been a gateway
        self._found: tuple[object, dict[bytes, Pact]] | None = None
        self._told: dict[tuple[bytes, bytes], _Told] = {}
        self._verified = Rates[bytes](VERIFY_RATE, VERIFY_BURST)

    # What members of this mesh tell each other.

    def take(self, bundles: Sequence[bytes], *, kept: bool = False) -> tuple[bool, list[PhantomMeshError]]:
        """Hold what a member says of pacts, or what this node has ``kept``. Return whether any of it is news,
        and why some was refused."""
        news, refused, wall = False, list[PhantomMeshError](), self._clock().wall
        before = self.pacts.digest()
        for data in bundles:
            try:
                news |= self.pacts.take(data, wall, self._all_revoked(), kept=kept)
            except PhantomMeshError as error:
                refused.append(error)
        return news or self.pacts.digest() != before, refused

    def taking(
        self, bundles: Sequence[bytes], member: NodeId
    ) -> Generator[None, None, tuple[bool, list[PhantomMeshError]]]:
        """Do `take` with what a member says, no faster than this node verifies for one. What is held already
        costs nothing. It yields where others may have their turn."""
        news, refused, held = False, list[PhantomMeshError](), frozenset(self.pacts.bundles())
        for data in bundles:
            if data in held:
                continue
            yield
            if not self._verified.allow(b"member" + member, self._clock().now):
                refused.append(TrustError("the member says too much of pacts"))
                break
            new, why = self.take([data])
            news |= new
            refused += why
        return news, refused

    def _all_revoked(self) -> dict[bytes, Revocations]:
        return {root: other.revocations for root, other in self.others.items()}

    # Who may link with this node.

    def look(self) -> None:
        """The time, the roster, a revocation or a pact may have changed: forget what is over."""
        self.pacts.forget(self._clock().wall)
        known = {terms.other for pact in self.pacts if (terms := self.pacts.ours(pact)) is not None}
        self.others = {root: other for root, other in self.others.items() if root in known}
        for pact in self.pacts:
            der = self.pacts.their_root(pact)
            terms = self.pacts.ours(pact)
            if der and terms is not None and terms.other not in self.others:
                self.others[terms.other] = Other.of(der)
            if self._opens(pact) or self._authority:
                self._served.add(pact)
        self._served.intersection_update(self.pacts)
        self.version += 1

    def in_force(self) -> list[Pact]:
        """The pacts that hold now."""
        now = self._clock().now
        heard = {
            root
            for root, other in self.others.items()
            if other.heard is not None and now - other.heard < STALE
        }
        if not heard:  # a node that asks nobody, or nobody that answers: nothing is to be verified for that
            return []
        return [pact for pact in self._agreed().values() if pact.ours.other in heard]

    def _agreed(self) -> dict[bytes, Pact]:
        """The pacts that hold by what is known of the other meshes' revocations, which may be nothing yet:
        so gateways begin to talk. To find out takes milliseconds a pact, so it is remembered until something
        changes, or for `REMEMBERED` seconds: a certificate may have run out."""
        wall, known = self._clock().wall, self._all_revoked()
        seen = (
            self.pacts.digest(), self._revocations.digest(), int(wall // REMEMBERED),
            tuple((root, theirs.digest()) for root, theirs in known.items()),
        )  # fmt: skip
        if self._found is None or self._found[0] != seen:
            self._found = seen, {pact.ours.pact: pact for pact in self.pacts.in_force(wall, known)}
        return self._found[1]

    def visitors(self, own: Member) -> list[Visitor]:
        """The members of other meshes that this node, ``own``, may link with now. None where this node is
        revoked."""
        if self._me in self._revocations:
            return []
        found, wall, rules = dict[NodeId, Visitor](), self._clock().wall, 0
        for pact in self._apart(self.in_force()):
            other = self.others[pact.ours.other]
            secret = self.pacts.secret(pact.ours.pact)
            for entry in other.roster:
                node_id, allowed = entry.member.node_id, pact.allows(own, entry.member, wall)
                if not allowed or secret is None or not entry.valid(wall) or self._roster.get(node_id):
                    continue
                before = found.get(node_id)
                if before is None:
                    visitor = Visitor(entry, other.mesh, allowed, pact.ours.pact, secret)
                else:
                    visitor = replace(before, allowed=before.allowed.with_more(allowed))
                more = len(visitor.allowed) - (0 if before is None else len(before.allowed))
                if (before is None and len(found) >= MAX_VISITORS) or rules + more > MAX_RULES:
                    continue
                if before is None or before.mesh == other.mesh:
                    found[node_id], rules = visitor, rules + more
        found.pop(self._me, None)
        return list(found.values())

    def _apart(self, pacts: Sequence[Pact]) -> Iterator[Pact]:
        """Leave out the pacts with a mesh that has the IPv6 network of another one, as one that looks for
        such a key can have: the pact that was signed first holds."""
        taken = dict[IPv6Network, bytes]()
        for pact in sorted(pacts, key=lambda pact: (pact.ours.at, pact.ours.pact)):
            if taken.setdefault(pact.mesh.network6, pact.ours.other) == pact.ours.other:
                yield pact

    def networks(self, own: Member) -> tuple[IPv6Network, ...]:
        """The IPv6 networks of the meshes that this node has to do with, also where the pact rests or was
        ended: packets to their members must not leave by another way."""
        named = {own.name, by_id(own.node_id)}
        found = {
            self.others[terms.other].mesh.network6
            for pact in self.pacts
            if (terms := self.pacts.ours(pact)) is not None
            and terms.other in self.others
            and (terms.ended or not named.isdisjoint(terms.members))
        }
        return tuple(sorted(found - {describe_mesh(self._root).network6}))

    # What this node asks gateways of other meshes.

    def asked(self, own: Member) -> list[Asked]:
        """The gateways that this node asks: of each pact that both have signed and nobody has ended, and that
        names this node. One that its mesh has revoked, as another has told, is not believed."""
        named = {own.name, by_id(own.node_id)}
        found = list[Asked]()
        for pact in self.pacts:
            ours, theirs = self.pacts.ours(pact), self.pacts.theirs(pact)
            if ours is None or theirs is None or self.pacts.ended(pact) or self.pacts.secret(pact) is None:
                continue
            if not named.isdisjoint(ours.members):
                other = self.other(pact)
                gone = frozenset[NodeId]() if other is None else other.revocations
                found += [Asked(pact, one) for one in theirs.gateways if NodeId(one.node_id) not in gone]
        return found

    def other(self, pact: bytes) -> Other | None:
        """The other mesh of a pact."""
        terms = self.pacts.ours(pact)
        return None if terms is None else self.others.get(terms.other)

    def hearing(self, pact: bytes, answer: PactIs, own: Member) -> Generator[None, None, bool]:
        """Take what a gateway answers; return whether anything is new. It yields where others may have their
        turn. Raises TrustError where the half does not hold; records that do not are left out."""
        other = self.other(pact)
        if other is None:
            return False
        wall, half = self._clock().wall, Half.decode_untrusted(answer.half)
        root = self.pacts.their_root(pact)
        new = self.pacts.take_theirs(half, root, wall, revoked=other.revocations)
        for data in answer.records:
            yield
            now, wall = self._clock()
            try:
                signed = SignedRecord.decode_untrusted(data)
                if other.roster.holds(signed, wall) or not self._verified.allow(other.mesh.root_hash, now):
                    continue
                entry = other.roster.verify(signed, wall)
                self._make_room(other, entry, own)
                new |= other.roster.keep(entry, wall)
            except (TrustError, RecordError):
                continue
        return new

    def _make_room(self, other: Other, entry: Entry, own: Member) -> None:
        """Raise RecordError for a member that has nothing to do with this node, or where too many have."""
        wall = self._clock().wall
        agreed = (pact for pact in self._agreed().values() if self.other(pact.ours.pact) is other)
        if not any(pact.allows(own, entry.member, wall) for pact in agreed):
            raise RecordError("the member has nothing to do with this node")
        held = other.roster.everyone()
        if len(held) >= MAX_KNOWN and entry.member.node_id not in {one.member.node_id for one in held}:
            other.roster = Roster(other.root, other.revocations)

    def take_revocations(self, pact: bytes, parts: Sequence[bytes]) -> Generator[None, None, bool]:
        """Take what the other mesh has revoked; return whether any of it is new. Raises TrustError where it
        does not hold, or is more than this node holds of another mesh."""
        other, new = self.other(pact), False
        if other is None:
            return False
        for data in parts:
            yield
            statements = other.revocations.unpack(data)
            if len(list(other.revocations)) + len(statements) > MAX_THEIR_REVOCATIONS:
                raise TrustError(
                    f"the mesh {other.mesh.name} has revoked more nodes than are held of another"
                )
            new |= other.revocations.take(statements, self._clock().wall)
        return new

    def heard(self, pact: bytes) -> bool:
        """A gateway of the pact's other mesh has told all; return whether none had for long."""
        other, now = self.other(pact), self._clock().now
        if other is None:
            return False
        rested = other.heard is None or now - other.heard >= STALE
        other.heard = now
        return rested

    # What this node, a gateway, tells members of other meshes.

    def is_gateway(self) -> bool:
        """Whether any pact names this node as a gateway of this mesh."""
        return any(self._opens(pact) for pact in self.pacts)

    def _opens(self, pact: bytes) -> bool:
        """Whether members of the other mesh may ask this node. The last half names no gateway: of the end of
        a pact those tell that were gateways, and authorities."""
        terms = self.pacts.ours(pact)
        if terms is None:
            return False
        return pact in self._served if terms.ended else self._me in {g.node_id for g in terms.gateways}

    def secret_of(self, door: bytes) -> Secret | None:
        """The secret with which members of the other mesh come in by this door; None for none."""
        pact = self._behind(door)
        return None if pact is None or not self._opens(pact) else self.pacts.secret(pact)

    def _behind(self, door: bytes) -> bytes | None:
        return next((pact for pact in self.pacts if door_of(pact) == door), None)

    def comes_by(self, door: bytes) -> bool:
        """Whether somebody that came by this door is a member of another mesh."""
        return bool(door) and self._behind(door) is not None

    def tell(self, peer: bytes, door: bytes, question: AskPact) -> PactIs | None:
        """Answer a member of the other mesh; None where nothing has changed since it asked. Raises TrustError
        or RecordError where it is none that the pact names."""
        pact = question.pact
        half, other = self.pacts.our_half(pact), self.other(pact)
        if half is None or other is None or door_of(pact) != door:
            raise TrustError("this mesh has no such pact with yours", fix="make another pact")
        told = self._told.get((pact, peer))
        if told is not None and told.version == self.version and question.seen == told.digest:
            return None
        entry = self._asker(other, peer, question.record, told)
        answer = self._about(pact, half, other, entry)
        if len(self._told) >= MAX_ASKERS:
            self._told.clear()
        self._told[pact, peer] = _Told(self.version, entry, answer.digest)
        return None if answer.digest == question.seen else answer

    def _asker(self, other: Other, peer: bytes, record: bytes, told: _Told | None) -> Entry:
        now, wall = self._clock()
        signed = SignedRecord.decode_untrusted(record)
        if told is not None and told.entry.signed == signed and told.entry.valid(wall):
            entry = told.entry
        elif not self._verified.allow(b"asker" + peer, now):
            raise TrustError("too many records", fix="ask again later")
        else:
            entry = other.roster.verify(signed, wall)
        if entry.member.node_id != peer:
            raise TrustError("the record is another node's")
        if peer in other.revocations:
            raise TrustError("your mesh has revoked this node")
        return entry

    def _about(self, pact: PactId, half: Half, other: Other, asker: Entry) -> PactIs:
        agreed, wall = self._agreed().get(pact), self._clock().wall
        found = list[Entry]()
        if agreed is not None and self._me not in self._revocations:
            found = [e for e in self._roster if e.valid(wall) and agreed.allows(e.member, asker.member, wall)]
        found = found[:MAX_TOLD]
        digest = hashlib.sha3_256(half.digest + self._revocations.digest())
        for entry in found:
            digest.update(entry.hash)
        records = tuple(entry.signed.encode() for entry in found)
        return PactIs(half.encode(), records, self._revocations.digest(), digest.digest())
