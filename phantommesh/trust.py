# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's certificates: root -> authority -> node, X.509 (RFC 5280) with ML-DSA-65 (RFC 9881) throughout.

The root carries name constraints: the mesh's DNS suffix, its IPv4 overlay and its IPv6 /48. So a joiner
learns the overlay from the certificate whose hash its invite pins, and no authority can sign an address
outside it.
"""

import enum
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from phantommesh.errors import PhantomMeshError
from phantommesh.identity import (
    Identity,
    IdentityError,
    NodeId,
    format_node_id,
    node_id_of,
    overlay_ip4,
    overlay_ip6,
    overlay_network6,
    parse_node_id,
    public_key_of,
    spki_of,
)

DAY: Final = 86_400.0  # seconds
ROOT_LIFE: Final = 3_650 * DAY
NODE_LIFE: Final = 7 * DAY
CLOCK_SKEW: Final = 300.0  # a certificate starts this many seconds early, for members whose clocks are behind
MAX_CERTIFICATE_BYTES: Final = 8_192  # ours are about 5.6 kB, most of it a key and a signature
MAX_CSR_BYTES: Final = 8_192
NETWORK4: Final = IPv4Network("100.64.0.0/10")  # RFC 6598

_PROOF_CONTEXT: Final = b"phantommesh authority key v1"
_MAX_COMMON_NAME: Final = 64  # RFC 5280, appendix A.1: ub-common-name
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_AUTHORITY_URI: Final = re.compile(r"phantommesh:authority:([a-z2-7]{26})")
_NODE_URI: Final = re.compile(r"phantommesh:node:([a-z2-7]{26})\?role=([a-z]{1,16})")

# Everything that parsing and verifying a hostile certificate with `cryptography` can raise.
_X509_ERRORS: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    verification.VerificationError,
)


class TrustError(PhantomMeshError):
    """A certificate, certificate request, invite or revocation that is not to be believed; says why."""


class Role(enum.StrEnum):
    """What a member may be asked to do."""

    NODE = "node"
    RELAY = "relay"
    AUTHORITY = "authority"


@dataclass(frozen=True, slots=True)
class Member:
    """What a verified certificate chain says about a node. Times are unix seconds."""

    node_id: NodeId
    name: str
    role: Role
    ip4: IPv4Address
    ip6: IPv6Address
    public_key: MLDSA65PublicKey
    not_before: float
    not_after: float


@dataclass(frozen=True, slots=True)
class Mesh:
    """What the root certificate says about the mesh."""

    name: str
    root_spki: bytes
    network4: IPv4Network
    network6: IPv6Network
    not_after: float

    @property
    def root_hash(self) -> bytes:
        """SHA3-256 of the root's SubjectPublicKeyInfo, 32 bytes: what an invite pins."""
        return hashlib.sha3_256(self.root_spki).digest()


def check_label(kind: str, text: str) -> None:
    """Raise TrustError unless `text` is a lower-case DNS label; `kind` is what to call it ("node name")."""
    if not _LABEL.fullmatch(text):
        raise TrustError(
            f"{kind} {text[:64]!r} is not usable",
            fix="use 1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end",
        )


def make_root(key: Identity, mesh: str, now: float, network4: IPv4Network = NETWORK4) -> x509.Certificate:
    """Make the mesh's self-signed root certificate, good for 10 years."""
    check_label("mesh name", mesh)
    overlay_ip4(network4, key.node_id)  # refuses a network with no room
    constraints = x509.NameConstraints(
        permitted_subtrees=[
            x509.DNSName(f"{mesh}.internal"),
            x509.IPAddress(network4),
            x509.IPAddress(overlay_network6(key.spki)),
        ],
        excluded_subtrees=None,
    )
    name = f"{mesh} root"[:_MAX_COMMON_NAME]
    builder = _builder(name, name, key.public_key, key, now, now + ROOT_LIFE, path_length=1)
    return builder.add_extension(constraints, critical=True).sign(key.private_key, None)


def issue_authority(
    root: x509.Certificate, root_key: Identity, spki: bytes, node_id: NodeId, now: float
) -> x509.Certificate:
    """Sign an authority's key with the root's. It lasts as long as the root: nothing renews it.

    It names the node that holds the key, so that revoking the node takes the key's word away too.
    """
    mesh = describe_mesh(root)
    public_key = _key(spki)
    subject = f"authority {format_node_id(node_id_of(spki))}"
    issuer = str(root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
    builder = _builder(subject, issuer, public_key, root_key, now, mesh.not_after, path_length=0)
    holder = x509.UniformResourceIdentifier(f"phantommesh:authority:{format_node_id(node_id)}")
    builder = builder.add_extension(x509.SubjectAlternativeName([holder]), critical=False)
    return builder.sign(root_key.private_key, None)


def prove_authority(key: Identity, node_id: NodeId) -> bytes:
    """Sign that the node holds this authority key: what the root's holder wants to see before it signs it."""
    return key.sign(node_id, _PROOF_CONTEXT)


def check_authority_proof(spki: bytes, proof: bytes, node_id: NodeId) -> None:
    """Raise TrustError unless `prove_authority` made the proof with this key for this node."""
    try:
        _key(spki).verify(proof, node_id, _PROOF_CONTEXT)
    except (InvalidSignature, ValueError) as error:
        raise TrustError("the authority key is not the newcomer's") from error


def authority_node(der: bytes) -> NodeId | None:
    """Return the node that an authority certificate says holds its key, unverified; None where it names none.

    Raises TrustError for what is not a certificate.
    """
    certificate = _load(der, "authority")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        if len(uris) == 1 and (matched := _AUTHORITY_URI.fullmatch(uris[0])):
            return parse_node_id(matched[1])
    except x509.ExtensionNotFound:  # a mesh made by 0.1.0
        return None
    except (*_X509_ERRORS, IdentityError):
        pass
    raise TrustError("the authority certificate has other names than an authority's")


def load_root(der: bytes, root_hash: bytes | None = None) -> x509.Certificate:
    """Read a root certificate and check its shape, its own signature and, if given, its pinned key hash.

    Raises TrustError. It does not look at the clock: `verify_chain` does.
    """
    root = _load(der, "root")
    mesh = describe_mesh(root)
    if root_hash is not None and mesh.root_hash != root_hash:
        raise TrustError("the root certificate is another mesh's", fix="ask for a new invite")
    try:
        root.verify_directly_issued_by(root)
    except (*_X509_ERRORS, InvalidSignature) as error:
        raise TrustError("the root certificate's own signature is wrong") from error
    return root


def describe_mesh(root: x509.Certificate) -> Mesh:
    """Read the mesh's name and networks out of its root certificate. Raises TrustError."""
    try:
        spki = spki_of(_ml_dsa_65(root))
        constraints = root.extensions.get_extension_for_class(x509.NameConstraints).value
        permitted = [name.value for name in constraints.permitted_subtrees or ()]
    except _X509_ERRORS as error:
        raise TrustError("the root certificate is not a mesh root") from error
    match permitted:
        case [str(suffix), IPv4Network() as network4, IPv6Network() as network6]:
            name = suffix.removesuffix(".internal")
        case _:
            raise TrustError("the root certificate has other name constraints than a mesh root")
    if not _LABEL.fullmatch(name) or suffix == name or network6 != overlay_network6(spki):
        raise TrustError("the root certificate's name constraints are not those of its key")
    if network4.prefixlen > 30:
        raise TrustError(f"the root certificate's overlay {network4} has no room")
    return Mesh(name, spki, network4, network6, root.not_valid_after_utc.timestamp())


def verify_chain(root: x509.Certificate, authority_der: bytes, node_der: bytes, now: float) -> Member:
    """Verify root -> authority -> node at `now` (unix seconds) and return what the node's certificate says.

    Beyond RFC 5280 (by `cryptography`'s verifier, name constraints included): every key and signature is
    ML-DSA-65; there is exactly one authority between; the SANs are one DNS name, one address of each family
    and one URI; the node id and the IPv6 address are those of the certified key. Raises TrustError.
    """
    mesh = describe_mesh(root)
    authority, node = _load(authority_der, "authority"), _load(node_der, "node")
    try:
        for certificate in (root, authority, node):
            _ml_dsa_65(certificate)
        verifier = (
            verification.PolicyBuilder()
            .store(verification.Store([root]))
            .time(datetime.fromtimestamp(now, UTC))
            .max_chain_depth(1)
            .extension_policies(
                ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(),
                ee_policy=verification.ExtensionPolicy.webpki_defaults_ee(),
            )
            .build_client_verifier()
        )
        chain = verifier.verify(node, [authority]).chain
        names = list(node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        public_key = _ml_dsa_65(node)
    except (*_X509_ERRORS, OverflowError, OSError) as error:
        raise TrustError(f"the certificate chain does not hold: {_reason(error)}") from error
    if chain != [node, authority, root]:
        raise TrustError("the certificate chain does not hold: it is not root, authority, node")

    match [(type(name), name.value) for name in names]:
        case [
            (x509.DNSName, str(dns)),
            (x509.IPAddress, IPv4Address() as ip4),
            (x509.IPAddress, IPv6Address() as ip6),
            (x509.UniformResourceIdentifier, str(uri)),
        ]:
            pass
        case _:
            raise TrustError("the node certificate has other names than a member's")
    name = dns.removesuffix(f".{mesh.name}.internal")
    if dns == name or not _LABEL.fullmatch(name):
        raise TrustError("the node certificate's DNS name is not NAME.MESH.internal")
    node_id = node_id_of(spki_of(public_key))
    claimed, role = _parse_uri(uri)
    if claimed != node_id:
        raise TrustError("the node certificate names another key's node id")
    if ip6 != overlay_ip6(mesh.root_spki, node_id):
        raise TrustError("the node certificate's IPv6 address is not the one of its key")
    if ip4 in (mesh.network4.network_address, mesh.network4.broadcast_address):
        raise TrustError("the node certificate's IPv4 address is no host's")
    not_before, not_after = node.not_valid_before_utc.timestamp(), node.not_valid_after_utc.timestamp()
    return Member(node_id, name, role, ip4, ip6, public_key, not_before, not_after)


def verify_authority(root: x509.Certificate, der: bytes, now: float) -> MLDSA65PublicKey:
    """Verify an authority's own certificate at `now` and return its key. Raises TrustError.

    `cryptography`'s verifier takes end entities only, so this checks the one step by hand.
    """
    authority = _load(der, "authority")
    try:
        key = _ml_dsa_65(authority)
        authority.verify_directly_issued_by(root)
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    except (*_X509_ERRORS, InvalidSignature) as error:
        raise TrustError("the authority certificate is not signed by the root") from error
    if not constraints.ca or constraints.path_length != 0 or not usage.key_cert_sign:
        raise TrustError("the authority certificate is not an authority's")
    for certificate in (root, authority):
        begin, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        if not begin <= now <= end:
            raise TrustError("the authority certificate is not valid now")
    return key


def validity(der: bytes) -> tuple[float, float]:
    """Return a certificate's (not before, not after) in unix seconds, unverified. Raises TrustError."""
    certificate = _load(der, "node")
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


@dataclass(frozen=True, slots=True)
class Authority:
    """What an authority signs node certificates with. The key is not the machine's node identity."""

    root: x509.Certificate
    certificate: x509.Certificate
    key: Identity

    def __post_init__(self) -> None:
        if spki_of(_ml_dsa_65(self.certificate)) != self.key.spki:
            raise TrustError(
                "authority.key is not the key of authority.crt", fix="restore both from one backup"
            )

    @property
    def der(self) -> bytes:
        """The authority's certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    def issue(
        self, spki: bytes, name: str, role: Role, ip4: IPv4Address, now: float, life: float = NODE_LIFE
    ) -> bytes:
        """Sign a node certificate (DER) for `life` seconds from `now`. Raises TrustError."""
        mesh = describe_mesh(self.root)
        check_label("node name", name)
        if ip4 not in mesh.network4 or ip4 in (mesh.network4[0], mesh.network4[-1]):
            raise TrustError(f"{ip4} is no host of the mesh's overlay {mesh.network4}")
        public_key = _key(spki)
        node_id = node_id_of(spki)
        sans: list[x509.GeneralName] = [
            x509.DNSName(f"{name}.{mesh.name}.internal"),
            x509.IPAddress(ip4),
            x509.IPAddress(overlay_ip6(mesh.root_spki, node_id)),
            x509.UniformResourceIdentifier(f"phantommesh:node:{format_node_id(node_id)}?role={role.value}"),
        ]
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        until = min(now + life, mesh.not_after)
        builder = _builder(name, str(issuer), public_key, self.key, now, until, path_length=None)
        builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        return builder.sign(self.key.private_key, None).public_bytes(Encoding.DER)


def choose_ip4(mesh: Mesh, node_id: NodeId, taken: Iterable[IPv4Address]) -> IPv4Address:
    """Return the first address derived from the node id that nobody holds. Raises TrustError when all are."""
    held = frozenset(taken)
    for attempt in range(1_000):
        address = overlay_ip4(mesh.network4, node_id, attempt)
        if address not in held:
            return address
    raise TrustError(f"the overlay {mesh.network4} is full", fix="make the mesh anew with a larger overlay")


def make_csr(identity: Identity, name: str) -> bytes:
    """Return a PKCS#10 request (DER) for a node certificate, signed with the node's key."""
    check_label("node name", name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(identity.private_key, None)
    return request.public_bytes(Encoding.DER)


def parse_csr_untrusted(der: bytes) -> tuple[bytes, str]:
    """Return (SubjectPublicKeyInfo, name) of a request whose own signature holds. Raises TrustError only."""
    if len(der) > MAX_CSR_BYTES:
        raise TrustError("the certificate request is too long")
    try:
        request = x509.load_der_x509_csr(der)
        key = request.public_key()
        names = [attribute.value for attribute in request.subject]
        valid = isinstance(key, MLDSA65PublicKey) and request.is_signature_valid
    except _X509_ERRORS as error:
        raise TrustError("the certificate request cannot be read") from error
    if not isinstance(key, MLDSA65PublicKey) or not valid:
        raise TrustError("the certificate request is not signed by its own ML-DSA-65 key")
    match names:
        case [str(name)]:
            check_label("node name", name)
            return spki_of(key), name
        case _:
            raise TrustError("the certificate request does not name one node")


def _builder(
    subject: str,
    issuer: str,
    public_key: MLDSA65PublicKey,
    issuer_key: Identity,
    now: float,
    until: float,
    *,
    path_length: int | None,
) -> x509.CertificateBuilder:
    """What all three kinds of certificate share. `path_length` None makes an end entity, a number a CA."""
    is_ca = path_length is not None
    usage = x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(int(now - CLOCK_SKEW), UTC))
        .not_valid_after(datetime.fromtimestamp(int(until), UTC))
        .add_extension(x509.BasicConstraints(is_ca, path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key), critical=False
        )
    )


def _load(der: bytes, kind: str) -> x509.Certificate:
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise TrustError(f"the {kind} certificate is too long")
    try:
        return x509.load_der_x509_certificate(der)
    except _X509_ERRORS as error:
        raise TrustError(f"the {kind} certificate cannot be read") from error


def _ml_dsa_65(certificate: x509.Certificate) -> MLDSA65PublicKey:
    """Return the certified key. Raises ValueError unless it is ML-DSA-65: then what it signed is, too."""
    key = certificate.public_key()
    if not isinstance(key, MLDSA65PublicKey):
        raise ValueError("a key is not ML-DSA-65")
    return key


def _key(spki: bytes) -> MLDSA65PublicKey:
    try:
        return public_key_of(spki)
    except IdentityError as error:
        raise TrustError(str(error)) from error


def _parse_uri(uri: str) -> tuple[NodeId, Role]:
    if matched := _NODE_URI.fullmatch(uri):
        try:
            return parse_node_id(matched[1]), Role(matched[2])
        except (IdentityError, ValueError):
            pass
    raise TrustError("the node certificate's URI does not give a node id and a role")


def _reason(error: Exception) -> str:
    """One short line; a verifier's message may quote the hostile certificate's subject."""
    return "".join(c if c.isprintable() else "?" for c in str(error).split(" (encountered")[0])[:200]
