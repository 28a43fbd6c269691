# SPDX-License-Identifier: GPL-3.0-or-later
"""Making what `trust` believes: the mesh's root, authorities, node certificates, and requests for those."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from phantommesh.trust.certificates import (
    CLOCK_SKEW,
    DAY,
    GRACE,
    NODE_LIFE,
    Mesh,
    Role,
    TrustError,
    certified_key,
    check_grace,
    check_label,
    describe_mesh,
)
from phantommesh.trust.identity import (
    Identity,
    IdentityError,
    NodeId,
    format_node_id,
    node_id_of,
    overlay_ip4,
    overlay_ip6,
    overlay_network6,
    public_key_of,
    spki_of,
)
from phantommesh.trust.routes import Grant, parse_grants
from phantommesh.trust.tags import uris_of

ROOT_LIFE: Final = 3_650 * DAY
MAX_CSR_BYTES: Final = 8_192
NETWORK4: Final = IPv4Network("100.64.0.0/10")  # RFC 6598

_PROOF_CONTEXT: Final = b"phantommesh authority key v1"
# A random serial number has 159 bits (RFC 5280, 4.1.2.2: 20 octets at most); with this one they are always 20
# octets. Shorter now and then, they made what a simulation counts differ from run to run.
_SERIAL_FLOOR: Final = 1 << 158
_MAX_COMMON_NAME: Final = 64  # RFC 5280, appendix A.1: ub-common-name


def make_root(
    key: Identity, mesh: str, now: float, network4: IPv4Network = NETWORK4, grace: float = GRACE
) -> x509.Certificate:
    """Make the mesh's self-signed root certificate, good for 10 years. ``grace`` is `Mesh.grace`, in whole
    seconds. Raises TrustError."""
    check_label("mesh name", mesh)
    check_grace(grace)
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
    if int(grace) != GRACE:  # a root that says nothing new is as those of earlier versions
        said = x509.UniformResourceIdentifier(f"phantommesh:mesh?grace={int(grace)}")
        builder = builder.add_extension(x509.SubjectAlternativeName([said]), critical=False)
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


@dataclass(frozen=True, slots=True)
class Authority:
    """The key and certificates that an authority signs node certificates with. The key is not the machine's
    node identity."""

    root: x509.Certificate
    certificate: x509.Certificate
    key: Identity

    def __post_init__(self) -> None:
        if spki_of(certified_key(self.certificate)) != self.key.spki:
            raise TrustError(
                "authority.key is not the key of authority.crt", fix="restore both from one backup"
            )

    @property
    def der(self) -> bytes:
        """The authority's certificate in DER."""
        return self.certificate.public_bytes(Encoding.DER)

    def issue(
        self,
        spki: bytes,
        name: str,
        role: Role,
        ip4: IPv4Address,
        now: float,
        life: float = NODE_LIFE,
        grants: Iterable[Grant] = (),
        tags: Iterable[str] = (),
    ) -> bytes:
        """Sign a node certificate (DER) for `life` seconds from `now`. ``grants`` are sorted, as
        `routes.parse_grants` wants them. Raises TrustError, or RouteError or TagError for grants or tags that
        nobody takes."""
        mesh = describe_mesh(self.root)
        check_label("node name", name)
        routes = [grant.uri for grant in grants]
        parse_grants(routes, (mesh.network4, mesh.network6))
        if ip4 not in mesh.network4 or ip4 in (mesh.network4[0], mesh.network4[-1]):
            raise TrustError(f"{ip4} is no host of the mesh's overlay {mesh.network4}")
        public_key = _key(spki)
        node_id = node_id_of(spki)
        sans: list[x509.GeneralName] = [
            x509.DNSName(f"{name}.{mesh.name}.internal"),
            x509.IPAddress(ip4),
            x509.IPAddress(overlay_ip6(mesh.root_spki, node_id)),
            x509.UniformResourceIdentifier(f"phantommesh:node:{format_node_id(node_id)}?role={role.value}"),
            *map(x509.UniformResourceIdentifier, [*routes, *uris_of(tags)]),
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
    except Exception as error:  # as `trust.load_certificate`: the parser is not ours
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
    """Return a builder with what all three kinds of certificate share. `path_length` None makes an end
    entity, a number a CA."""
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
        .serial_number(x509.random_serial_number() | _SERIAL_FLOOR)
        .not_valid_before(datetime.fromtimestamp(int(now - CLOCK_SKEW), UTC))
        .not_valid_after(datetime.fromtimestamp(int(until), UTC))
        .add_extension(x509.BasicConstraints(is_ca, path_length), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key), critical=False
        )
    )


def _key(spki: bytes) -> MLDSA65PublicKey:
    try:
        return public_key_of(spki)
    except IdentityError as error:
        raise TrustError(str(error)) from error
