# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's record: its own words on itself, signed. It says where the node is, and its WireGuard keys."""

import hashlib
from itertools import pairwise
from typing import Annotated, Final, Self, TypeVar

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from phantommesh.config.sections import MAX_REGION_CHARS
from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import format_endpoint, parse_endpoint
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import FaultKind
from phantommesh.records.candidate import Candidate, flaw
from phantommesh.records.candidate import Kind as CandidateKind
from phantommesh.routable import MAX_ROUTES, order, parse_prefix
from phantommesh.trust.certificates import (
    MAX_CERTIFICATE_BYTES,
    Member,
    TrustError,
    check_label,
    verify_chain,
)
from phantommesh.trust.identity import NODE_ID_BYTES, Identity
from phantommesh.wireguard.possession import proves

ADDRESS_SHARED = FaultKind("address-shared", "medium")
KEYS_SHARED = FaultKind("keys-shared", "high")

CONTEXT: Final = b"phantommesh record v1"
KEY_BYTES: Final = 32  # X25519
NO_KEY: Final = bytes(KEY_BYTES)
MAX_CONTROL_ENDPOINTS: Final = 8
MAX_TCP_PORTS: Final = 2
MAX_VERSION_CHARS: Final = 32
MAX_BODY_BYTES: Final = 4_096
SIGNATURE_BYTES: Final = 3_309  # FIPS 204, ML-DSA-65
MAX_RECORD_BYTES: Final = MAX_BODY_BYTES + SIGNATURE_BYTES + 2 * MAX_CERTIFICATE_BYTES + 64
MAX_MEMBERS: Final = 16_384
HASH_BYTES: Final = 16
RELAYS_IPV4, RELAYS_IPV6 = 1, 2
SOUND, DEGRADED, UNREADY = 0, 1, 2
MAX_POLICY: Final = 32
_MAX_SEQ: Final = 2**48 - 1  # as wide as in a gossip event
_MAX_UNTIL: Final = 2**48 - 1  # s: whole in a float, and nine million years


class RecordError(PhantomMeshError):
    """A record or a roster that is malformed, contradicts itself or another member's."""


class PossessionError(RecordError):
    """A record that names a WireGuard key without proof that its node holds the private half."""


class RelayOffer(msgspec.Struct, frozen=True, array_like=True):
    """A node's word that it forwards for other members: at this UDP port of its addresses, for IPv4
    (`RELAYS_IPV4`), IPv6 (`RELAYS_IPV6`) or both, added up."""

    port: int
    families: int


class Condition(msgspec.Struct, frozen=True, array_like=True):
    """How a node stands, by its own word. ``draining``: it is about to go, so that others should choose other
    routers, exits and relays. ``health``: `SOUND`, `DEGRADED` or `UNREADY`, about the node itself and not
    about its peers. ``policy``: 16 bits of a hash of each setting that members should agree on, in the order
    of `node.policy.AGREED`. ``until``: by when it will be at work again, in Unix seconds; while it drains."""

    draining: bool = False
    health: int = SOUND
    policy: tuple[int, ...] = ()
    until: int = 0


class NodeRecord(msgspec.Struct, frozen=True, array_like=True):
    """One node's own word. A later one has a greater `seq`; fields that a newer version adds are ignored.

    `control` holds up to 8 ``host:port``, one per uplink, for UDP and TCP alike. `wg_keys` (X25519 public
    keys, 32 bytes), `wg_ports` (UDP) and `wg_proofs` (`possession.prove`, 64 bytes) have one entry per
    dimension, seven in all. Earlier versions sent no proofs. `candidates` are up to 16 more addresses at
    which the node may be reached, the likeliest first. `relay`: it forwards for others. `tcp_ports`: up to 2
    more ports at which each of its addresses takes TCP. `region`: where it stands, a label of up to 32
    characters, or empty. `routes`: the prefixes beyond the mesh that it offers to route now, each in its only
    form and sorted. They count as far as its certificate has them. `condition`: how the node stands. Earlier
    versions know of none of these.
    """

    node_id: bytes
    seq: int
    control: tuple[str, ...]
    wg_keys: tuple[bytes, ...]
    wg_ports: tuple[int, ...]
    version: str
    wg_proofs: tuple[bytes, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    relay: RelayOffer | None = None
    tcp_ports: tuple[int, ...] = ()
    region: str = ""
    routes: tuple[str, ...] = ()
    condition: Condition = Condition()


def known_by_itself(record: NodeRecord) -> frozenset[str]:
    """The endpoints and candidates of a record that its node found by itself, as endpoints' texts: those that
    no operator has written down."""
    return frozenset(format_endpoint(one.host, one.port) for one in record.candidates)


def _written(record: NodeRecord) -> set[str]:
    """The hosts of the endpoints that an operator has written down."""
    found = known_by_itself(record)
    return {parse_endpoint(endpoint)[0] for endpoint in record.control if endpoint not in found}


def callable_at(record: NodeRecord) -> tuple[str, ...]:
    """The endpoints at which a newcomer may call a record's node: where others see it, then its own."""
    seen = [
        format_endpoint(one.host, one.port) for one in record.candidates if one.kind == CandidateKind.SEEN
    ]
    return tuple(dict.fromkeys((*seen, *record.control)))


def wg_ports_at(record: NodeRecord, host: str) -> tuple[int, ...]:
    """The ports of the seven dimensions at an address of a record's. An endpoint that an operator has written
    down is reached at the ports of the record."""
    if not record.candidates:
        return record.wg_ports
    here = next((one for one in record.candidates if one.host == host), None)
    if here is None or host in _written(record):
        return record.wg_ports
    return tuple(here.wg_port(i, own) for i, own in enumerate(record.wg_ports))


def each_wg_ports_at(record: NodeRecord, host: str) -> list[tuple[int, ...]]:
    """All that a record says of the ports of the seven dimensions at an address, the likeliest first: what a
    gateway has mapped may let nothing in, while the ports that members see do."""
    first, own = wg_ports_at(record, host), record.wg_ports
    if host in _written(record):
        return [first]
    here = [one for one in record.candidates if one.host == host and one.wg_ports]
    others = (tuple(one.wg_port(i, port) for i, port in enumerate(own)) for one in here)
    return list(dict.fromkeys((first, *others)))


class SignedRecord(msgspec.Struct, frozen=True, array_like=True):
    """A record's msgpack, its signature (ML-DSA-65) and the certificates that say whose it is."""

    body: bytes
    signature: bytes
    node_cert: bytes
    authority_cert: bytes

    def encode(self) -> bytes:
        """Return the msgpack form, about 15 kB."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode_untrusted(cls, data: bytes) -> Self:
        """Read what `encode` wrote; nothing is verified yet. Raises RecordError only."""
        if len(data) > MAX_RECORD_BYTES:
            raise RecordError("the record is too long")
        try:
            signed = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise RecordError("the record cannot be read") from error
        if len(signed.body) > MAX_BODY_BYTES or len(signed.signature) != SIGNATURE_BYTES:
            raise RecordError("the record's parts have wrong lengths")
        return signed


class _KeptRecord(SignedRecord, frozen=True, array_like=True):
    """A record on this node's own disk. ``proved``: this node has verified its proofs of possession.

    An earlier version, which verified none, neither writes the mark nor keeps it.
    """

    proved: bool = False


Kind = TypeVar("Kind", bound=SignedRecord)


def sign_record(
    identity: Identity, record: NodeRecord, node_cert: bytes, authority_cert: bytes
) -> SignedRecord:
    """Sign a record of our own. Raises RecordError if nobody would accept it."""
    _check(record)
    _check_possession(record, "this node")
    if record.node_id != identity.node_id:
        raise RecordError("a node signs only its own record")
    body = msgspec.msgpack.encode(record)
    return SignedRecord(body, identity.sign(body, CONTEXT), node_cert, authority_cert)


def open_record(
    root: x509.Certificate, signed: SignedRecord, now: float, *, unproved: bool = False, proved: bool = False
) -> tuple[Member, NodeRecord]:
    """Verify the chain, the signature, that the record is the certified node's, and that the node holds the
    WireGuard keys in it.

    ``unproved`` lets a record of an earlier version pass, which has no proofs at all. ``proved`` says that
    this node has verified the proofs before. Raises TrustError (the certificates) or RecordError.
    """
    member = verify_chain(root, signed.authority_cert, signed.node_cert, now)
    try:
        member.public_key.verify(signed.signature, signed.body, CONTEXT)
    except (InvalidSignature, ValueError) as error:
        raise RecordError("the record's signature is wrong") from error
    try:
        record = msgspec.msgpack.decode(signed.body, type=NodeRecord)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordError("the record's body cannot be read") from error
    if record.node_id != member.node_id:
        raise RecordError("the record is another node's than its certificate")
    _check(record)
    if not proved and (record.wg_proofs or not unproved):
        _check_possession(record, f"member {member.name}")
    return member, record


def record_hash(signed: SignedRecord) -> bytes:
    """Return the 16 bytes that name a record: `encoded_hash` of its encoding."""
    return encoded_hash(signed.encode())


def encoded_hash(encoded: bytes) -> bytes:
    """Return the 16 bytes that name an encoded record: its SHA3-256, shortened."""
    return hashlib.sha3_256(encoded).digest()[:HASH_BYTES]


def decode_records_untrusted(data: bytes) -> list[SignedRecord]:
    """Read what `Roster.encode` wrote; nothing is verified yet. Raises RecordError only."""
    return _records(data, SignedRecord)


def _records(data: bytes, kind: type[Kind]) -> list[Kind]:
    try:
        # Too long a list is refused at its head: one of 16 MiB may have a million members.
        bounded = Annotated[list[kind], msgspec.Meta(max_length=MAX_MEMBERS)]  # type: ignore[valid-type]
        records: list[Kind] = msgspec.msgpack.decode(data, type=bounded)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordError(f"the roster cannot be read, or has more than {MAX_MEMBERS} members") from error
    return records


def _check(record: NodeRecord) -> None:
    """Raise RecordError for values that no node may publish."""
    if len(record.node_id) != NODE_ID_BYTES or not 0 <= record.seq <= _MAX_SEQ:
        raise RecordError("the record's node id or sequence number is out of range")
    if len(record.control) > MAX_CONTROL_ENDPOINTS:
        raise RecordError("the record has too many control endpoints")
    for endpoint in record.control:
        try:
            parse_endpoint(endpoint)
        except ValueError as error:
            raise RecordError(f"the record's endpoint {endpoint[:64]!r}: {error}") from None
    if wrong := flaw(record.candidates):
        raise RecordError(f"the record has {wrong}")
    keys, ports = record.wg_keys, record.wg_ports
    if len(keys) != DIMENSIONS or any(len(key) != KEY_BYTES for key in keys) or len(set(keys)) != DIMENSIONS:
        raise RecordError("the record needs seven different WireGuard keys")
    if NO_KEY in keys:
        raise RecordError("the record has an all-zero WireGuard key")
    if len(set(ports)) != DIMENSIONS or any(not 1 <= port <= 65535 for port in ports):
        raise RecordError("the record needs seven different WireGuard ports")
    relay = record.relay
    if relay is not None and (not 1 <= relay.port <= 65535 or not 1 <= relay.families <= 3):
        raise RecordError("the record offers a relay whose port or families are out of range")
    if len(record.tcp_ports) > MAX_TCP_PORTS or any(not 1 <= port <= 65535 for port in record.tcp_ports):
        raise RecordError("the record has too many TCP ports, or one that is out of range")
    condition = record.condition
    if not SOUND <= condition.health <= UNREADY or len(condition.policy) > MAX_POLICY:
        raise RecordError("the record's condition is out of range")
    if any(not 0 <= one < 2**16 for one in condition.policy) or not 0 <= condition.until <= _MAX_UNTIL:
        raise RecordError("the record's condition is out of range")
    if record.region:
        _check_region(record.region)
    if record.routes:
        _check_routes(record.routes)
    if len(record.version) > MAX_VERSION_CHARS or not record.version.isprintable():
        raise RecordError("the record's version is not a short text")


def _check_region(region: str) -> None:
    if len(region) > MAX_REGION_CHARS:
        raise RecordError(f"the record's region has more than {MAX_REGION_CHARS} characters")
    try:
        check_label("the record's region", region)
    except TrustError as error:
        raise RecordError(str(error), fix=error.fix) from None


def _check_routes(routes: tuple[str, ...]) -> None:
    if len(routes) > MAX_ROUTES:
        raise RecordError(f"the record offers more than {MAX_ROUTES} routes")
    try:
        keys = [order(parse_prefix(route)) for route in routes]
    except ValueError as error:
        raise RecordError(f"the record offers a route that is none: {error}") from None
    if any(one >= other for one, other in pairwise(keys)):
        raise RecordError("the record's routes are not sorted, or there twice")


def _check_possession(record: NodeRecord, whose: str) -> None:
    """Raise PossessionError unless the record proves that its node holds each of its WireGuard keys."""
    keys, proofs = record.wg_keys, record.wg_proofs
    if not proofs:
        raise PossessionError(
            f"the record of {whose} proves no WireGuard key: it was made by an earlier version",
            fix="upgrade that node",
        )
    if len(proofs) != DIMENSIONS:
        raise PossessionError(f"the record of {whose} needs seven proofs of its WireGuard keys")
    for i, (proof, key) in enumerate(zip(proofs, keys, strict=True)):
        if not proves(proof, key, record.node_id, i):
            raise PossessionError(
                f"the record of {whose} does not prove that it holds its WireGuard key of dimension {i}",
                fix="revoke that member if it keeps announcing a key that is not its own",
            )
