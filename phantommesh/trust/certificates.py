# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's certificates: root -> authority -> node, X.509 (RFC 5280) with ML-DSA-65 (RFC 9881) throughout.

The root carries name constraints: the mesh's DNS suffix, its IPv4 overlay and its IPv6 /48. So a joiner
learns the overlay from the certificate whose hash its invite pins, and no authority can sign an address
outside it.
"""

import enum
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.x509 import verification

from phantommesh.errors import PhantomMeshError
from phantommesh.moments import rfc3339, span
from phantommesh.routable import Network
from phantommesh.trust.identity import (
    IdentityError,
    NodeId,
    node_id_of,
    overlay_ip6,
    overlay_network6,
    parse_node_id,
    spki_of,
)
from phantommesh.trust.routes import Grant, RouteError, parse_grants
from phantommesh.trust.tags import PREFIX as TAG
from phantommesh.trust.tags import TagError, parse_uris

DAY: Final = 86_400.0  # seconds
NODE_LIFE: Final = 7 * DAY
CLOCK_SKEW: Final = 300.0  # a certificate starts this many seconds early, for members whose clocks are behind
RENEW_AT: Final = 2 / 3  # of a node certificate's life
LONGEST_LIFE: Final = NODE_LIFE + 2 * CLOCK_SKEW  # s, of a node certificate
# s by which a member's clock may be behind those who sign: a day and an hour, the slips that people make. A
# certificate that begins later than that is refused. A certificate says when it was issued all the same, so
# it is not simply dated back.
EARLY: Final = 90_000.0
# s after its certificate's end in which a member is taken back, where the root says nothing else.
GRACE: Final = 90 * DAY
MAX_GRACE: Final = 365 * DAY
MAX_CERTIFICATE_BYTES: Final = 8_192  # ours are about 5.6 kB, most of it a key and a signature

_LAST_MOMENT: Final = 253_402_300_799.0  # Unix seconds: the end of the year 9999
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_AUTHORITY_URI: Final = re.compile(r"phantommesh:authority:([a-z2-7]{26})")
_MESH_URI: Final = re.compile(r"phantommesh:mesh\?grace=(0|[1-9][0-9]{0,8})")  # in the root's, seconds
_NODE_URI: Final = re.compile(r"phantommesh:node:([a-z2-7]{26})\?role=([a-z]{1,16})")

# The parts of a certificate that are parsed when they are first read, beside its dates and its key.
_PARTS: Final = (
    "version",
    "serial_number",
    "issuer",
    "subject",
    "extensions",
    "signature",
    "signature_algorithm_oid",
    "signature_algorithm_parameters",
    "tbs_certificate_bytes",
)

# Everything that parsing and verifying a hostile certificate with `cryptography` can raise.
X509_ERRORS: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    verification.VerificationError,
    OverflowError,
    OSError,
)


class TrustError(PhantomMeshError):
    """A certificate, certificate request, invite or revocation that is not to be believed; says why."""


class Role(enum.StrEnum):
    """The duties that a member may be given."""

    NODE = "node"
    RELAY = "relay"
    AUTHORITY = "authority"


@dataclass(frozen=True, slots=True)
class Member:
    """A verified certificate chain's statement about a node. Times are unix seconds."""

    node_id: NodeId
    name: str
    role: Role
    ip4: IPv4Address
    ip6: IPv6Address
    public_key: MLDSA65PublicKey
    not_before: float
    not_after: float
    grants: tuple[Grant, ...] = ()
    tags: tuple[str, ...] = ()

    @property
    def routes(self) -> tuple[Network, ...]:
        """The prefixes beyond the mesh that the certificate lets the node route, sorted. A grant may have
        been withdrawn since: `routes.standing`."""
        return tuple(grant.prefix for grant in self.grants)


@dataclass(frozen=True, slots=True)
class Mesh:
    """The root certificate's statement about the mesh. For ``grace`` seconds after its certificate's end an
    unrevoked member is taken back by its key."""

    name: str
    root_spki: bytes
    network4: IPv4Network
    network6: IPv6Network
    not_after: float
    grace: float = GRACE

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


def authority_node(der: bytes) -> NodeId | None:
    """Return the node that an authority certificate says holds its key, unverified; None where it names none.

    Raises TrustError for what is not a certificate.
    """
    certificate = load_certificate(der, "authority")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        if len(uris) == 1 and (matched := _AUTHORITY_URI.fullmatch(uris[0])):
            return parse_node_id(matched[1])
    except x509.ExtensionNotFound:  # a mesh made by 0.1.0
        return None
    except (*X509_ERRORS, IdentityError):
        pass
    raise TrustError("the authority certificate has other names than an authority's")


def load_root(der: bytes, root_hash: bytes | None = None) -> x509.Certificate:
    """Read a root certificate and check its shape, its own signature and, if given, its pinned key hash.

    Raises TrustError. It does not look at the clock: `verify_chain` does.
    """
    root = load_certificate(der, "root")
    mesh = describe_mesh(root)
    if root_hash is not None and mesh.root_hash != root_hash:
        raise TrustError("the root certificate is another mesh's", fix="ask for a new invite")
    try:
        root.verify_directly_issued_by(root)
    except (*X509_ERRORS, InvalidSignature) as error:
        raise TrustError("the root certificate's own signature is wrong") from error
    return root


def describe_mesh(root: x509.Certificate) -> Mesh:
    """Read the mesh's name and networks out of its root certificate. Raises TrustError."""
    try:
        spki = spki_of(certified_key(root))
        constraints = root.extensions.get_extension_for_class(x509.NameConstraints).value
        permitted = [name.value for name in constraints.permitted_subtrees or ()]
    except X509_ERRORS as error:
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
    return Mesh(name, spki, network4, network6, _dates(root)[1], _grace(root))


def _grace(root: x509.Certificate) -> float:
    """The grace that the root sets, `GRACE` where it says none. Raises TrustError."""
    try:
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        return GRACE
    except X509_ERRORS as error:
        raise TrustError("the root certificate is not a mesh root") from error
    if len(uris) == 1 and (matched := _MESH_URI.fullmatch(uris[0])) and int(matched[1]) <= MAX_GRACE:
        return float(matched[1])
    raise TrustError("the root certificate has other names than a mesh root's")


def check_grace(seconds: float) -> None:
    """Raise TrustError for a grace that no mesh may have."""
    if not 0 <= seconds <= MAX_GRACE:
        raise TrustError(
            f"a grace of {seconds / DAY:g} days is not usable", fix=f"give 0 to {MAX_GRACE / DAY:g} days"
        )


def verify_chain(root: x509.Certificate, authority_der: bytes, node_der: bytes, now: float) -> Member:
    """Verify root -> authority -> node at `now` (unix seconds) and return what the node's certificate says.

    Beyond RFC 5280 (by `cryptography`'s verifier, name constraints included): every key and signature is
    ML-DSA-65; there is exactly one authority between; the SANs are one DNS name, one address of each family,
    one URI, then the routes that the node may have (`routes.parse_grants`) and its tags (`trust.tags`); the
    node id and the IPv6 address are those of the certified key. The node's certificate is good for
    `LONGEST_LIFE` at most. One that begins within `EARLY` from now is good already: our clock may be behind.
    Raises TrustError.
    """
    mesh = describe_mesh(root)
    authority, node = load_certificate(authority_der, "authority"), load_certificate(node_der, "node")
    begins = max(_dates(c)[0] for c in (root, authority, node))
    if now < begins <= now + EARLY:
        now = begins
    not_before, not_after = _dates(node)
    if not_after - not_before > LONGEST_LIFE:
        raise TrustError("the node certificate is good for longer than any may be")
    for kind, certificate in (("root", root), ("authority", authority), ("node", node)):
        _check_dates(kind, certificate, now)
    try:
        for certificate in (root, authority, node):
            certified_key(certificate)
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
        public_key = certified_key(node)
    except X509_ERRORS as error:
        raise TrustError(f"the certificate chain does not hold: {_reason(error)}") from error
    if chain != [node, authority, root]:
        raise TrustError("the certificate chain does not hold: it is not root, authority, node")

    match [(type(name), name.value) for name in names]:
        case [
            (x509.DNSName, str(dns)),
            (x509.IPAddress, IPv4Address() as ip4),
            (x509.IPAddress, IPv6Address() as ip6),
            (x509.UniformResourceIdentifier, str(uri)),
            *further,
        ] if all(kind is x509.UniformResourceIdentifier for kind, _ in further):
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
    said = [str(uri) for _, uri in further]
    routes = [uri for uri in said if not uri.startswith(TAG)]
    try:
        if said[: len(routes)] != routes:
            raise TagError("tags before routes")
        grants = parse_grants(routes, (mesh.network4, mesh.network6))
        tags = parse_uris(said[len(routes) :])
    except (RouteError, TagError) as error:
        raise TrustError(f"the node certificate has {error}") from error
    return Member(node_id, name, role, ip4, ip6, public_key, not_before, not_after, grants, tags)


def verify_authority(root: x509.Certificate, der: bytes, now: float) -> MLDSA65PublicKey:
    """Verify an authority's own certificate at `now` and return its key. Raises TrustError.

    `cryptography`'s verifier takes end entities only, so this checks the one step by hand.
    """
    authority = load_certificate(der, "authority")
    try:
        key = certified_key(authority)
        authority.verify_directly_issued_by(root)
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    except (*X509_ERRORS, InvalidSignature) as error:
        raise TrustError("the authority certificate is not signed by the root") from error
    if not constraints.ca or constraints.path_length != 0 or not usage.key_cert_sign:
        raise TrustError("the authority certificate is not an authority's")
    for certificate in (root, authority):
        _check_dates("authority", certificate, now, early=EARLY)
    return key


def _check_dates(kind: str, certificate: x509.Certificate, now: float, early: float = 0.0) -> None:
    """Raise TrustError where a certificate does not hold at `now`, and say which clock may be wrong. It may
    be used ``early`` seconds before its beginning."""
    if not 0.0 <= now <= _LAST_MOMENT:
        raise TrustError("this machine's clock shows no time that a certificate can have", fix="set it")
    (begin, end), shown = _dates(certificate), rfc3339(now)
    if now < begin - early:
        raise TrustError(
            f"the {kind} certificate begins on {rfc3339(begin)}: by this machine's clock it is {shown}, "
            f"{span(begin - now)} before that",
            fix="set this machine's clock if it is behind, or else the clock of the authority that signed",
        )
    if now > end:
        raise TrustError(
            f"the {kind} certificate ran out on {rfc3339(end)}: by this machine's clock it is {shown}, "
            f"{span(now - end)} after that",
            fix="set this machine's clock if it is ahead, or else the clock of the authority that signed",
        )


def validity(der: bytes) -> tuple[float, float]:
    """Return a certificate's (not before, not after) in unix seconds, unverified. Raises TrustError."""
    return _dates(load_certificate(der, "node"))


def load_certificate(der: bytes, kind: str) -> x509.Certificate:
    """Read a certificate; ``kind`` is what to call it ("node"). Raises TrustError, for all of it: no part of
    what this returns raises when it is read later.

    `cryptography` parses most parts when they are asked for, and each can raise: a date of the year 0 has no
    `datetime`, an extension or a name may be malformed. So each is asked for here, in one place.
    """
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise TrustError(f"the {kind} certificate is too long")
    try:
        certificate = x509.load_der_x509_certificate(der)
        _dates(certificate)
        for part in _PARTS:
            getattr(certificate, part)
        certificate.public_key()
    except Exception as error:  # not X509_ERRORS alone: the parser is not ours, and the bytes are anybody's
        raise TrustError(f"the {kind} certificate cannot be read") from error
    return certificate


def _dates(certificate: x509.Certificate) -> tuple[float, float]:
    """A certificate's (not before, not after) in unix seconds. Raises ValueError or OverflowError where a
    date is none that Python has; not for what `load_certificate` returned."""
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def certified_key(certificate: x509.Certificate) -> MLDSA65PublicKey:
    """Return the certified key. Raises ValueError unless it is ML-DSA-65: then what it signed is, too."""
    key = certificate.public_key()
    if not isinstance(key, MLDSA65PublicKey):
        raise ValueError("a key is not ML-DSA-65")
    return key


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
