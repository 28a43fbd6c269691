# SPDX-License-Identifier: GPL-3.0-or-later
"""Half of a pact between two meshes: what one of them lets members of the other see, signed by an authority.

A pact has two halves, and a mesh signs its own alone. A half names the members of its mesh that take part,
and the services that it exposes: on which member, at which ports, to which members of the other mesh. So each
mesh decides who of its members is drawn into the pact, and what of them is open; nothing that the other mesh
signs can widen that. A later half takes the place of an earlier one. The last half, which either mesh signs
without the other, ends the pact for good. `trust/pacts.py` has what two halves allow together.

A member is named by node id, which is its key's, or by name, which is whoever the mesh's own authorities gave
that name to.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from msgspec import Meta

from phantommesh.endpoint import MAX_ENDPOINT_BYTES, parse_endpoint
from phantommesh.moments import rfc3339, span
from phantommesh.secret import Secret
from phantommesh.trust.certificates import (
    DAY,
    EARLY,
    MAX_CERTIFICATE_BYTES,
    X509_ERRORS,
    TrustError,
    authority_node,
    check_label,
    describe_mesh,
    verify_authority,
)
from phantommesh.trust.identity import NODE_ID_BYTES, IdentityError, NodeId, format_node_id, parse_node_id
from phantommesh.trust.issuing import Authority
from phantommesh.trust.lines import Kind, join_texts

CONTEXT: Final = b"phantommesh pact v1"
PREFIX: Final = "pmf1_"
PACT_ID_BYTES: Final = 16
ROOT_HASH_BYTES: Final = 32
LOCK_BYTES: Final = 32
SIGNATURE_BYTES: Final = 3_309  # FIPS 204, ML-DSA-65
_FORMAT: Final = 1
_LAST_MOMENT: Final = 253_402_300_799  # the last second of the year 9999: a later moment has no date

LAST: Final = 2**63 - 1
"""The number of a half that ends the pact."""
MAX_LIFE: Final = 366 * DAY
"""Seconds that a half is good for: a pact that nobody renews comes to its end."""
MAX_TERMS_BYTES: Final = 65_536  # so about a thousand members and services with their users
MAX_HALF_BYTES: Final = MAX_TERMS_BYTES + SIGNATURE_BYTES + MAX_CERTIFICATE_BYTES + 64
MAX_NAMED: Final = 1_024  # members of one mesh, services, users of one service
MAX_GATEWAYS: Final = 4
MAX_PORTS: Final = 16  # ranges of one service
MAX_ENDPOINTS: Final = 3
_BY_ID: Final = "id:"

Who = str
"""A member: its name, or `by_id`."""

Endpoint = Annotated[str, Meta(max_length=MAX_ENDPOINT_BYTES)]


def by_id(node_id: NodeId) -> Who:
    """Return what names a member by its key, whatever its name: no name has a colon."""
    return f"{_BY_ID}{format_node_id(node_id)}"


class Ports(msgspec.Struct, frozen=True, array_like=True):
    """Ports of one protocol, from ``first`` to ``last``."""

    protocol: Literal["tcp", "udp"]
    first: Annotated[int, Meta(ge=1, le=65_535)]
    last: Annotated[int, Meta(ge=1, le=65_535)]


class Service(msgspec.Struct, frozen=True, array_like=True):
    """The ports of a ``member`` of the mesh that signs, and the members of the other mesh that may use
    them."""

    member: Who
    ports: Annotated[tuple[Ports, ...], Meta(min_length=1, max_length=MAX_PORTS)]
    users: Annotated[tuple[Who, ...], Meta(min_length=1, max_length=MAX_NAMED)]


class Gateway(msgspec.Struct, frozen=True, array_like=True):
    """A member, by node id, that tells the other mesh of this one, and the ``host:port`` of its control
    port."""

    node_id: bytes
    endpoints: Annotated[tuple[Endpoint, ...], Meta(min_length=1, max_length=MAX_ENDPOINTS)]


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """The content of a half. Times are unix seconds.

    ``pact``: 16 random bytes, the same in both halves. ``number``: greater than of each earlier half of this
    mesh, and about the unix seconds; `LAST` ends the pact. ``mesh`` and ``other``: the hashes of the two
    meshes' root keys. ``members``: those of this mesh that take part. ``gateways``: those of them that the
    other mesh asks about all others. ``lock``: `lock_of` the secret that both meshes' members know.
    """

    format: int
    pact: bytes
    number: int
    mesh: bytes
    other: bytes
    at: int
    until: int
    members: Annotated[tuple[Who, ...], Meta(max_length=MAX_NAMED)] = ()
    gateways: Annotated[tuple[Gateway, ...], Meta(max_length=MAX_GATEWAYS)] = ()
    services: Annotated[tuple[Service, ...], Meta(max_length=MAX_NAMED)] = ()
    lock: bytes = b""

    @classmethod
    def make(
        cls, pact: bytes, mesh: bytes, other: bytes, *, members: Iterable[Who], gateways: Iterable[Gateway],
        services: Iterable[Service] = (), lock: bytes, now: float, life: float = MAX_LIFE, last: int = 0,
    ) -> Self:  # fmt: skip
        """Make terms from ``now`` on, for ``life`` seconds; ``last`` is the number of the half before, 0 for
        none. Raises TrustError for what `sign` would refuse."""
        at, number = int(now), max(last + 1, int(now))
        terms = cls(
            _FORMAT, pact, number, mesh, other, at, int(now + life), tuple(members), tuple(gateways),
            tuple(services), lock,
        )  # fmt: skip
        _check(terms)
        return terms

    @classmethod
    def ending(cls, pact: bytes, mesh: bytes, other: bytes, now: float) -> Self:
        """Make the terms that end a pact."""
        return cls(_FORMAT, pact, LAST, mesh, other, int(now), int(now + MAX_LIFE))

    @property
    def ended(self) -> bool:
        """Whether these terms end the pact."""
        return self.number == LAST


class Half(msgspec.Struct, frozen=True, array_like=True):
    """Terms as they were encoded, signed by an authority of the mesh that they are of."""

    format: int
    terms: bytes
    signature: bytes
    authority_cert: bytes

    def encode(self) -> bytes:
        """Return the bytes for a file or a channel."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Self:
        """Read what `encode` wrote, unverified. Raises TrustError only."""
        if len(data) > MAX_HALF_BYTES:
            raise TrustError("the half of the pact is too long")
        try:
            half = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise TrustError("the half of the pact cannot be read") from error
        if half.format != _FORMAT:
            raise TrustError("the half of the pact is of another version", fix=_ONE_VERSION)
        return half

    @property
    def digest(self) -> bytes:
        """32 bytes that name this very half."""
        return hashlib.sha3_256(b"phantommesh pact half" + self.encode()).digest()


def sign(authority: Authority, terms: Terms) -> Half:
    """Sign terms for the authority's own mesh. Raises TrustError."""
    _check(terms)
    if terms.mesh != describe_mesh(authority.root).root_hash:
        raise TrustError("the terms are another mesh's than the authority")
    encoded = msgspec.msgpack.encode(terms)
    return Half(_FORMAT, encoded, authority.key.sign(encoded, CONTEXT), authority.der)


def verify(half: Half, root: x509.Certificate, now: float, *, revoked: Container[NodeId]) -> Terms:
    """Return the terms of a half that an authority under ``root`` signed, that is none of the ``revoked``
    nodes', and that is in force at ``now``. Raises TrustError."""
    if len(half.signature) != SIGNATURE_BYTES or len(half.terms) > MAX_TERMS_BYTES:
        raise TrustError("the half of the pact has fields out of range")
    key = verify_authority(root, half.authority_cert, now)
    check_signer(half, revoked)
    try:
        key.verify(half.signature, half.terms, CONTEXT)
    except (InvalidSignature, *X509_ERRORS) as error:
        raise TrustError("the half of the pact is not signed by its authority") from error
    try:
        terms = msgspec.msgpack.decode(half.terms, type=Terms)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TrustError("the terms of the pact cannot be read") from error
    _check(terms)
    if terms.mesh != describe_mesh(root).root_hash:
        raise TrustError("the half of the pact is another mesh's than its signature")
    if terms.number > now + EARLY and not terms.ended:
        raise TrustError("the half of the pact has a number that is ahead of its time")
    if terms.at > now + EARLY:
        raise TrustError(
            f"the half of the pact begins on {rfc3339(terms.at)}, {span(terms.at - now)} from now",
            fix="set this machine's clock if it is behind, or else the clock of the authority that signed",
        )
    if now >= terms.until:
        raise TrustError(f"the half of the pact ran out on {rfc3339(terms.until)}", fix="have it signed anew")
    return terms


def check_signer(half: Half, revoked: Container[NodeId]) -> None:
    """Raise TrustError where the authority that signed a half is one of the ``revoked`` nodes', or where its
    certificate cannot be read."""
    if _signer(half.authority_cert) in revoked:
        raise TrustError("the authority that signed the half is revoked", fix="have another sign one")


def _signer(der: bytes) -> NodeId:
    """The node of an authority, by its certificate."""
    return authority_node(der) or NodeId(hashlib.sha3_256(der).digest()[:NODE_ID_BYTES])


def _check(terms: Terms) -> None:
    """Raise TrustError for terms that no half has."""
    if terms.format != _FORMAT:
        raise TrustError("the terms of the pact are of another version", fix=_ONE_VERSION)
    if (
        len(terms.pact) != PACT_ID_BYTES
        or len(terms.mesh) != ROOT_HASH_BYTES
        or len(terms.other) != ROOT_HASH_BYTES
        or not 0 < terms.number < 2**63
        or not 0 <= terms.at < terms.until <= _LAST_MOMENT
    ):
        raise TrustError("the terms of the pact have fields out of range")
    if terms.mesh == terms.other:
        raise TrustError("a mesh makes no pact with itself", fix="take the line that the other mesh printed")
    if terms.until - terms.at > MAX_LIFE:
        raise TrustError(
            f"a pact is signed for {span(MAX_LIFE)} at most", fix="sign it for a shorter time, and anew later"
        )
    if terms.ended != (not terms.members) or terms.ended != (not terms.gateways):
        raise TrustError("a half names members and gateways, unless it ends the pact")
    if len(terms.lock) != (0 if terms.ended else LOCK_BYTES):
        raise TrustError("a half locks the pact's secret, unless it ends the pact")
    members = frozenset(terms.members)
    for gateway in terms.gateways:
        _check_gateway(gateway)
    for who in (*terms.members, *(user for service in terms.services for user in service.users)):
        _check_who(who)
    for service in terms.services:
        if service.member not in members:
            raise TrustError(
                "a service of the pact is on a member that takes no part", fix="name the member among those"
            )
        if any(ports.first > ports.last for ports in service.ports):
            raise TrustError("a range of ports ends before it begins", fix="write it as FIRST-LAST")
    if len(msgspec.msgpack.encode(terms)) > MAX_TERMS_BYTES:
        raise TrustError("the pact names too many members", fix="expose fewer of them, or to fewer")


def _check_gateway(gateway: Gateway) -> None:
    if len(gateway.node_id) != NODE_ID_BYTES or not gateway.endpoints:
        raise TrustError("a gateway of the pact is no node id, or has no endpoint")
    for endpoint in gateway.endpoints:
        try:
            parse_endpoint(endpoint)
        except ValueError as error:
            raise TrustError(
                f"the endpoint {endpoint!r} of a gateway is not usable: {error}", fix="write host:port"
            ) from None


def lock_of(secret: Secret) -> bytes:
    """What a half says of the secret that opens the gateways to the other mesh's members: 32 bytes. The
    secret goes about beside the halves, and a member that passes on another one is found out by this."""
    return hashlib.sha3_256(b"phantommesh pact secret" + secret.reveal()).digest()


def _check_who(who: Who) -> None:
    if not who.startswith(_BY_ID):
        check_label("node name", who)
        return
    try:
        parse_node_id(who.removeprefix(_BY_ID))
    except IdentityError as error:
        raise TrustError(f"a member in the pact: {error}", fix=error.fix) from error


_ONE_VERSION: Final = "run one version in both meshes"

LINE: Final = Kind(
    PREFIX,
    "federation invite",
    b"phantommesh federation invite v1",
    paste="paste the whole line that the other mesh's authority printed",
    again="ask the other mesh for a new one",
    most=1_400,
)

# root hash, pact, secret, authority's node id, expiry; then mesh and endpoints with a length each
_HEAD: Final = struct.Struct(">32s16s32s16sQ")


@dataclass(frozen=True, slots=True)
class FederationInvite:
    """The line that pins the other mesh's root key, and admits that mesh's answer once. ``expires`` is unix
    seconds; an endpoint is ``host:port`` of the authority, at most three."""

    root_hash: bytes
    pact: bytes
    secret: Secret
    authority: NodeId
    mesh: str
    expires: int
    endpoints: tuple[str, ...]

    def encode(self) -> str:
        """Return the line: ``pmf1_`` and base64url of the fields and a checksum. It holds the secret."""
        head = _HEAD.pack(self.root_hash, self.pact, self.secret.reveal(), self.authority, self.expires)
        return LINE.encode(head + join_texts((self.mesh, *self.endpoints)))

    def check_expiry(self, now: float) -> None:
        """Raise TrustError if the line has run out at ``now``, by this machine's clock."""
        if now >= self.expires:
            raise TrustError(
                f"the federation invite expired {span(now - self.expires)} ago, by this machine's clock",
                fix="check the clock, or ask the other mesh for a new one",
            )

    @classmethod
    def parse_untrusted(cls, text: str) -> Self:
        """Read a line. Raises TrustError, and only that, naming what is wrong but not the line."""
        body = LINE.decode_untrusted(text)
        if len(body) < _HEAD.size:
            raise LINE.incomplete()
        root_hash, pact, secret, authority, expires = _HEAD.unpack_from(body)
        texts = LINE.split_texts_untrusted(body[_HEAD.size :])
        if expires > _LAST_MOMENT or not 2 <= len(texts) <= 1 + MAX_ENDPOINTS:
            raise TrustError("the federation invite was not made by this version", fix=_ONE_VERSION)
        mesh, *endpoints = texts
        check_label("mesh name", mesh)
        LINE.check_endpoints(endpoints)
        return cls(root_hash, pact, Secret(secret), NodeId(authority), mesh, expires, tuple(endpoints))
