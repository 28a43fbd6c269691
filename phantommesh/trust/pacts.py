# SPDX-License-Identifier: GPL-3.0-or-later
"""Pacts with other meshes: what two halves allow together, and the newest halves that a node holds.

Two members of two meshes may link only where both halves of a pact are in force, each names its own member of
the two as taking part, and one of them exposes a service of its member to the other. A service is open in one
direction: from its user to its ports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec
from cryptography import x509

from phantommesh.secret import Secret
from phantommesh.trust.certificates import (
    MAX_CERTIFICATE_BYTES,
    Member,
    Mesh,
    TrustError,
    describe_mesh,
    load_root,
)
from phantommesh.trust.federation import (
    MAX_HALF_BYTES,
    Half,
    Ports,
    Terms,
    Who,
    by_id,
    check_signer,
    lock_of,
    verify,
)
from phantommesh.trust.identity import NodeId

MAX_PACTS: Final = 64  # of a mesh, those among them that have been ended and are remembered
MAX_RANGES: Final = 64  # of ports of one member that are open to another; the guard has a rule for each
SECRET_BYTES: Final = 32
_NOBODY: Final = frozenset[NodeId]()
MAX_BUNDLE_BYTES: Final = 2 * MAX_HALF_BYTES + MAX_CERTIFICATE_BYTES + 256


@dataclass(frozen=True, slots=True)
class Allowed:
    """What two members may do. ``inbound``: the ports of this mesh's member that the other's may use;
    ``outbound``: the other way round, each at most `MAX_RANGES` by one pact. A pair with neither may not
    link."""

    inbound: tuple[Ports, ...] = ()
    outbound: tuple[Ports, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.inbound or self.outbound)

    def __len__(self) -> int:
        return len(self.inbound) + len(self.outbound)

    def with_more(self, more: Allowed) -> Allowed:
        """What two pacts let them do."""
        return Allowed(_each(self.inbound + more.inbound), _each(self.outbound + more.outbound))


@dataclass(frozen=True, slots=True)
class Pact:
    """Both halves in force: ``mesh`` and ``root`` are the other mesh's."""

    mesh: Mesh
    root: x509.Certificate
    ours: Terms
    theirs: Terms

    @property
    def until(self) -> int:
        """When the first of the halves runs out, in unix seconds."""
        return min(self.ours.until, self.theirs.until)

    def allows(self, own: Member, other: Member, now: float) -> Allowed:
        """Say what a member of this mesh and one of the other may do at ``now``: both verified, the latter
        under the pact's ``root``."""
        if now >= self.until or not _among(own, self.ours.members):
            return Allowed()
        if not _among(other, self.theirs.members):
            return Allowed()
        return Allowed(_exposed(self.ours, own, other), _exposed(self.theirs, other, own))


def agree(
    own_root: x509.Certificate, ours: Half, other_root: bytes, theirs: Half, now: float, *,
    revoked: Container[NodeId], their_revoked: Container[NodeId],
) -> Pact:  # fmt: skip
    """Return the pact that two halves make at ``now``. ``other_root`` is the other mesh's root certificate,
    whose key our half pins; ``revoked`` and ``their_revoked`` are the nodes that each mesh has revoked.
    Raises TrustError."""
    mine = verify(ours, own_root, now, revoked=revoked)
    root = load_root(other_root, mine.other)
    yours = verify(theirs, root, now, revoked=their_revoked)
    if yours.pact != mine.pact or yours.other != mine.mesh:
        raise TrustError("the two halves are of two pacts", fix="have both meshes sign for one pact")
    if mine.ended or yours.ended:
        ender = "this mesh" if mine.ended else "the other mesh"
        raise TrustError(f"{ender} has ended the pact", fix="make another pact")
    own, other = describe_mesh(own_root), describe_mesh(root)
    if own.network6 == other.network6:  # 40 bits of a hash: somebody may have looked for such a key
        raise TrustError(
            f"both meshes have the IPv6 network {own.network6}, so members cannot be told apart",
            fix="make one of the meshes anew",
        )
    return Pact(other, root, mine, yours)


def _among(member: Member, named: Iterable[Who]) -> bool:
    called = member.name, by_id(member.node_id)  # once: the other mesh may name ten thousand
    return any(who in called for who in named)


def _exposed(terms: Terms, member: Member, user: Member) -> tuple[Ports, ...]:
    """The ports of a member that terms open to a user, each once. Of more than `MAX_RANGES` none is open: the
    other mesh could have some thousands, each with any number of members."""
    found = set[Ports]()
    for service in terms.services:
        if _among(member, (service.member,)) and _among(user, service.users):
            found.update(service.ports)
            if len(found) > MAX_RANGES:
                return ()
    return _each(found)


def _each(ports: Iterable[Ports]) -> tuple[Ports, ...]:
    return tuple(sorted(set(ports), key=lambda one: (one.protocol, one.first, one.last)))


@dataclass(slots=True)
class _Held:
    """One pact, as far as it is known: halves with their terms, and the other mesh's root certificate."""

    ours: tuple[Terms, Half]
    root: bytes = b""
    theirs: tuple[Terms, Half] | None = None
    secret: Secret | None = None

    @property
    def ended(self) -> bool:
        return self.ours[0].ended or (self.theirs is not None and self.theirs[0].ended)

    @property
    def locks(self) -> set[bytes]:
        """What the halves say of the secret: nothing where both end the pact."""
        return {self.ours[0].lock, b"" if self.theirs is None else self.theirs[0].lock} - {b""}

    @property
    def bundle(self) -> Bundle:
        theirs = b"" if self.theirs is None else self.theirs[1].encode()
        secret = b"" if self.secret is None else self.secret.reveal()
        return Bundle(self.ours[1].encode(), self.root, theirs, secret)


class Bundle(msgspec.Struct, frozen=True, array_like=True):
    """All that a node knows of one pact, as members of one mesh give it to each other: its own half, the
    other mesh's root certificate and half, empty where they are not known, and the secret that both meshes'
    members know."""

    ours: bytes
    root: bytes
    theirs: bytes
    secret: bytes

    def __repr__(self) -> str:
        return "Bundle(***)"

    def encode(self) -> bytes:
        """Return the bytes for a file or a channel. They hold the secret."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Bundle:
        """Read what `encode` wrote, unverified. Raises TrustError only."""
        if len(data) > MAX_BUNDLE_BYTES:
            raise TrustError("what a member says of a pact is too long")
        try:
            return msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise TrustError("what a member says of a pact cannot be read") from error


class Pacts:
    """The newest halves of each pact of a mesh, whatever the order in which they come. The other mesh's are
    taken only where a half of this mesh names that mesh: later, they are to be offered again.

    ``revoked`` are the nodes that this mesh has revoked. What comes is verified before it is held. Of a pact
    that is known a later half is held also where its signer is revoked: the pact rests then, or has ended.
    Else an earlier half, which may expose more, would hold on for nodes that hear of the revocation first. So
    it is with what was ``kept`` on this node's own disk.
    """

    def __init__(self, root: x509.Certificate, revoked: Container[NodeId]) -> None:
        self.root = root
        self._revoked = revoked
        self._held: dict[bytes, _Held] = {}
        self._digest: bytes | None = None  # until something changes: each datagram of gossip has it

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[bytes]:
        """The ids of all pacts, the ended ones among them."""
        return iter(sorted(self._held))

    def ours(self, pact: bytes) -> Terms | None:
        """Return the newest terms of this mesh for a pact; None where there are none."""
        held = self._held.get(pact)
        return None if held is None else held.ours[0]

    def our_half(self, pact: bytes) -> Half | None:
        """Return those as they were signed."""
        held = self._held.get(pact)
        return None if held is None else held.ours[1]

    def theirs(self, pact: bytes) -> Terms | None:
        """Return the newest terms of the other mesh for a pact; None where there are none."""
        held = self._held.get(pact)
        return None if held is None or held.theirs is None else held.theirs[0]

    def their_root(self, pact: bytes) -> bytes:
        """The other mesh's root certificate, empty where it is not known."""
        held = self._held.get(pact)
        return b"" if held is None else held.root

    def secret(self, pact: bytes) -> Secret | None:
        """The secret of a pact, also of one that was ended: a gateway tells the other mesh so."""
        held = self._held.get(pact)
        return None if held is None else held.secret

    def ended(self, pact: bytes) -> bool:
        """Whether either mesh has ended a pact."""
        held = self._held.get(pact)
        return held is not None and held.ended

    def digest(self) -> bytes:
        """32 bytes that differ between nodes that know different halves or secrets; empty for no pact."""
        if self._digest is None:
            self._digest = self._digested()
        return self._digest

    def _digested(self) -> bytes:
        if not self._held:
            return b""
        digest = hashlib.sha3_256(b"phantommesh pacts")
        for _, held in sorted(self._held.items()):
            digest.update(held.ours[1].digest)
            digest.update(bytes(32) if held.theirs is None else held.theirs[1].digest)
            digest.update(bytes([held.secret is not None and bool(held.locks)]))
        return digest.digest()

    def bundles(self) -> tuple[bytes, ...]:
        """What another member is given: one for each pact. They hold the secrets."""
        return tuple(held.bundle.encode() for _, held in sorted(self._held.items()))

    def take(
        self, data: bytes, now: float, their_revoked: Mapping[bytes, Container[NodeId]], *, kept: bool = False
    ) -> bool:
        """Hold what a member says of a pact, or what this node has ``kept``; return whether any of it is
        news. ``their_revoked`` are as for `in_force`, as far as known. Raises TrustError; what holds of it is
        held all the same."""
        bundle = Bundle.decode_untrusted(data)
        half = Half.decode_untrusted(bundle.ours)
        news = self.take_ours(half, now, kept=kept)
        pact = msgspec.msgpack.decode(half.terms, type=Terms).pact  # as `take_ours` has verified
        if bundle.theirs:
            theirs, other = Half.decode_untrusted(bundle.theirs), self._held[pact].ours[0].other
            revoked = their_revoked.get(other, frozenset[NodeId]())
            news |= self.take_theirs(theirs, bundle.root, now, revoked=revoked, kept=kept)
        return (bool(bundle.secret) and self._unlock(pact, bundle.secret)) or news

    def unlock(self, pact: bytes, secret: Secret) -> bool:
        """Hold the secret of a pact; return whether it is news."""
        return self._unlock(pact, secret.reveal())

    def _unlock(self, pact: bytes, secret: bytes) -> bool:
        held = self._held[pact]
        if len(secret) != SECRET_BYTES or held.secret == Secret(secret):
            return False
        if held.secret is not None and lock_of(held.secret) == held.ours[0].lock:
            return False
        if not (locks := held.locks):  # nobody asks any more
            return False
        if lock_of(Secret(secret)) not in locks:
            raise TrustError("the secret of the pact is another than the meshes signed")
        held.secret, self._digest = Secret(secret), None
        return True

    def take_ours(self, half: Half, now: float, *, kept: bool = False) -> bool:
        """Hold a half of this mesh; return whether it is news. Raises TrustError."""
        if any(held.ours[1] == half for held in self._held.values()):
            return False
        terms = verify(half, self.root, now, revoked=_NOBODY)
        held = self._held.get(terms.pact)
        if held is None:
            check_signer(half, _NOBODY if kept else self._revoked)
            self.forget(now)
            if len(self._held) >= MAX_PACTS:
                raise TrustError(
                    f"a mesh has {MAX_PACTS} pacts at most, with those that were ended and have not run out",
                    fix="let some run out",
                )
            self._held[terms.pact], self._digest = _Held((terms, half)), None
            return True
        if held.ours[0].other != terms.other:
            raise TrustError("the pact is with another mesh", fix="make another pact")
        if not _newer(terms, half, held.ours):
            return False
        held.ours, self._digest = (terms, half), None
        return True

    def take_theirs(
        self, half: Half, root: bytes, now: float, *, revoked: Container[NodeId], kept: bool = False
    ) -> bool:
        """Hold a half of another mesh, with its root certificate, that has ``revoked`` these nodes; return
        whether it is news. Raises TrustError."""
        if any(held.theirs is not None and held.theirs[1] == half for held in self._held.values()):
            return False
        terms = verify(half, load_root(root), now, revoked=_NOBODY)
        held = self._held.get(terms.pact)
        if held is None:
            raise TrustError("this mesh has signed no half of that pact", fix="sign one first")
        if held.ours[0].other != terms.mesh or held.ours[0].mesh != terms.other:
            raise TrustError("the two halves are of two pacts", fix="have both meshes sign for one pact")
        if held.theirs is None:
            check_signer(half, _NOBODY if kept else revoked)
        elif not _newer(terms, half, held.theirs):
            return False
        held.root, held.theirs, self._digest = root, (terms, half), None
        return True

    def in_force(self, now: float, their_revoked: Mapping[bytes, Container[NodeId]]) -> list[Pact]:
        """Return the pacts of which both halves hold at ``now``, by id; ``their_revoked`` has the nodes that
        each other mesh has revoked, by its root key's hash. A pact with a mesh that is not among them is not
        in force: nobody knows whom that mesh has revoked. Nor does a half hold whose signer is revoked by
        now."""
        found = []
        for _, held in sorted(self._held.items()):
            theirs = their_revoked.get(held.ours[0].other)
            if held.theirs is None or theirs is None:
                continue
            with suppress(TrustError):
                pact = agree(
                    self.root, held.ours[1], held.root, held.theirs[1], now,
                    revoked=self._revoked, their_revoked=theirs,
                )  # fmt: skip
                found.append(pact)
        return found

    def forget(self, now: float) -> None:
        """Forget the pacts of which this mesh's half has run out."""
        for pact, held in list(self._held.items()):
            if now >= held.ours[0].until:
                del self._held[pact]
                self._digest = None


def _newer(terms: Terms, half: Half, held: tuple[Terms, Half]) -> bool:
    """Whether a half takes the place of the one that is held. Of two with one number, which two authorities
    may sign, all nodes choose the same. The number alone counts: where the signer of the one that is held is
    revoked, the pact rests until another authority signs a later one. An earlier half may expose more."""
    return (terms.number, half.digest) > (held[0].number, held[1].digest)
