# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's policy as an authority signed it, and which of those that a node holds is in force. Pure.

Each authority's newest policy is held, and the newest of all holds: the one of the greatest number, and of
two of one number the one of the greater hash. Policies of revoked authorities do not count, but stay held: a
root's pardon brings them back. So it does not matter in which order they came, and every node comes to the
same one. A policy never runs out, as what it denies would be open then. To have no policy any more, an
authority signs one that allows everything.

A number that is ahead of its time tells that the signer's clock was ahead. No member takes such a policy. A
node that holds one, from when its own clock was ahead, does not follow it either, nor count or offer it,
until its time has come. It gives way to any other of its signer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final, Self

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from msgspec import Meta

from phantommesh.acl.policy import MAX_POLICY_BYTES, PolicySection, accept, decode_untrusted
from phantommesh.acl.rules import Policy
from phantommesh.trust.certificates import (
    EARLY,
    MAX_CERTIFICATE_BYTES,
    X509_ERRORS,
    TrustError,
    authority_node,
    describe_mesh,
    verify_authority,
)
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId
from phantommesh.trust.issuing import Authority

CONTEXT: Final = b"phantommesh acl policy v1"
SIGNATURE_BYTES: Final = 3_309  # FIPS 204, ML-DSA-65
MAX_SIGNED_BYTES: Final = MAX_POLICY_BYTES + SIGNATURE_BYTES + MAX_CERTIFICATE_BYTES + 64
_FORMAT: Final = 1
_ROOT_HASH_BYTES: Final = 32

# Tuning.
MAX_HELD: Final = 16  # authorities whose policies are held, the newest: 1.2 MB in one answer at most


class SignedPolicy(msgspec.Struct, frozen=True, array_like=True):
    """A policy as it was encoded, signed by an authority. ``number``: greater than of each policy that the
    signer knew, and about its unix seconds. ``mesh``: the hash of the mesh's root key."""

    format: int
    mesh: Annotated[bytes, Meta(max_length=_ROOT_HASH_BYTES)]
    number: int
    policy: Annotated[bytes, Meta(max_length=MAX_POLICY_BYTES)]
    signature: Annotated[bytes, Meta(max_length=SIGNATURE_BYTES)]
    authority_cert: Annotated[bytes, Meta(max_length=MAX_CERTIFICATE_BYTES)]

    def encode(self) -> bytes:
        """Return the bytes for a file or a channel."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Self:
        """Read what `encode` wrote, unverified. Raises TrustError only."""
        if len(data) > MAX_SIGNED_BYTES:
            raise TrustError("the mesh's policy is too long")
        try:
            signed = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise TrustError("the mesh's policy cannot be read") from error
        if signed.format != _FORMAT:
            raise TrustError("the mesh's policy is of another version", fix="run one version on all nodes")
        return signed

    @property
    def digest(self) -> bytes:
        """32 bytes that name this very policy."""
        return hashlib.sha3_256(b"phantommesh acl policy" + self.encode()).digest()

    @property
    def signer(self) -> NodeId:
        """The node of the authority that the certificate is of."""
        der = self.authority_cert
        return authority_node(der) or NodeId(hashlib.sha3_256(der).digest()[:NODE_ID_BYTES])

    def ahead(self, now: float) -> bool:
        """Whether its number is ahead of its time by more than clocks may differ. ``now`` in unix seconds."""
        return self.number > now + EARLY

    @property
    def order(self) -> tuple[int, bytes]:
        """Its place among policies: the greatest holds."""
        return self.number, self.digest


def sign(authority: Authority, section: PolicySection, *, last: int, now: float) -> SignedPolicy:
    """Sign a policy once its tests pass. ``last`` is the greatest number known (`Policies.last`), 0 for none;
    ``now`` in unix seconds. Raises PolicyError."""
    mesh = describe_mesh(authority.root)
    accept(section, mesh)
    encoded, number = section.encode(), max(last + 1, int(now))
    signature = authority.key.sign(_signed(mesh.root_hash, number, encoded), CONTEXT)
    return SignedPolicy(_FORMAT, mesh.root_hash, number, encoded, signature, authority.der)


@dataclass(frozen=True, slots=True)
class Verified:
    """A policy whose signature and tests hold, and the node whose authority signed it."""

    signed: SignedPolicy
    signer: NodeId
    policy: Policy = field(repr=False)


def verify(signed: SignedPolicy, root: x509.Certificate, now: float) -> Verified:
    """Return the policy where an authority under ``root`` signed it and it passes its own tests. The tests
    come after the signature, so nobody else makes a node run them. Raises TrustError or PolicyError.

    Whether its signer is revoked is for `Policies.current` to say: that changes.
    """
    mesh = describe_mesh(root)
    if len(signed.signature) != SIGNATURE_BYTES or not 0 < signed.number < 2**63:
        raise TrustError("the mesh's policy has fields out of range")
    if signed.mesh != mesh.root_hash:
        raise TrustError("the policy is another mesh's")
    if signed.ahead(now):
        raise TrustError(
            "the mesh's policy has a number that is ahead of its time",
            fix="set this machine's clock if it is behind, or else the clock of the authority that signed",
        )
    key = verify_authority(root, signed.authority_cert, now)
    try:
        key.verify(signed.signature, _signed(signed.mesh, signed.number, signed.policy), CONTEXT)
    except (InvalidSignature, *X509_ERRORS) as error:
        raise TrustError("the mesh's policy is not signed by its authority") from error
    return Verified(signed, signed.signer, accept(decode_untrusted(signed.policy), mesh))


def _signed(mesh: bytes, number: int, policy: bytes) -> bytes:
    return mesh + number.to_bytes(8) + policy


class Policies:
    """The policies that a node holds. ``now`` is in unix seconds, and tells which are ahead of their time."""

    def __init__(self) -> None:
        self._held: dict[NodeId, Verified] = {}

    def __iter__(self) -> Iterator[Verified]:
        """All that are held, by signer."""
        return iter([self._held[signer] for signer in sorted(self._held)])

    def ahead(self, now: float) -> list[Verified]:
        """Those that do not count yet."""
        return [one for one in self if one.signed.ahead(now)]

    def offered(self, now: float) -> list[Verified]:
        """Those that others take, by signer."""
        return [one for one in self if not one.signed.ahead(now)]

    def digest(self, now: float) -> bytes:
        """Equal for nodes that offer the same, 32 bytes; empty where there is none."""
        named = b"".join(one.signed.digest for one in self.offered(now))
        return hashlib.sha3_256(b"phantommesh acl policies" + named).digest() if named else b""

    def last(self, now: float) -> int:
        """The greatest number that counts; 0 for none."""
        return max((one.signed.number for one in self.offered(now)), default=0)

    def wants(self, signed: SignedPolicy, now: float) -> bool:
        """Whether this would be held if it were genuine: that costs no signature check."""
        held = self._held.get(signed.signer)
        if held is not None and held.signed.ahead(now):
            return signed.order != held.signed.order
        if held is not None:
            return signed.order > held.signed.order
        if len(self._held) < MAX_HELD:
            return True
        least = self._least(now).signed
        return least.ahead(now) or signed.order > least.order

    def hold(self, new: Verified, now: float) -> bool:
        """Keep a verified policy. Return whether it was news."""
        if not self.wants(new.signed, now):
            return False
        self._held[new.signer] = new
        if len(self._held) > MAX_HELD:
            del self._held[self._least(now).signer]
        return True

    def current(self, revoked: Container[NodeId], now: float) -> Verified | None:
        """The policy in force; None where there is none. ``revoked`` are the nodes whose word does not
        count."""
        counted = [one for one in self.offered(now) if one.signer not in revoked]
        return max(counted, key=lambda one: one.signed.order, default=None)

    def _least(self, now: float) -> Verified:
        return min(self._held.values(), key=lambda one: (not one.signed.ahead(now), one.signed.order))


class _Pack(msgspec.Struct, frozen=True, array_like=True):
    format: int
    policies: Annotated[list[SignedPolicy], Meta(max_length=MAX_HELD)]


def encode(policies: Policies) -> bytes:
    """All that are held, for a file."""
    return msgspec.msgpack.encode(_Pack(_FORMAT, [one.signed for one in policies]))


def decode(data: bytes, root: x509.Certificate, now: float) -> Policies:
    """Read what `encode` wrote, and verify each. Raises TrustError or PolicyError: a node that cannot read
    the policy it held does not know what to deny. One ahead of its time is held, and does not count."""
    try:
        pack = msgspec.msgpack.decode(data, type=_Pack)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TrustError("the mesh's policies cannot be read") from error
    found = Policies()
    for signed in pack.policies:
        # It was taken in once, by the clock of then.
        found.hold(verify(signed, root, max(now, float(min(signed.number, 2**63)))), now)
    return found
