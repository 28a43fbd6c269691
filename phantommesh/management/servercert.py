# SPDX-License-Identifier: GPL-3.0-or-later
"""The certificate that a node makes for its API where none is configured: signed by itself, so that clients
know it by its fingerprint alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from phantommesh.faults import FaultKind
from phantommesh.secret import Secret

NOT_TAKEN = FaultKind("api-certificate-not-taken", "medium")

# Tuning.
LIFE: Final = 3650  # days: clients know it by its fingerprint, and would have to learn another
BEFORE: Final = 2  # days that it is good already, for clients whose clock is behind


class CertificateError(ValueError):
    """Bytes that are no certificate."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files: the certificate with those between it and the root, its key, and (mTLS) the certificates of
    those who sign clients'. ``client_ca`` None: clients need no certificate."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: Secret


def make(name: str, hosts: Iterable[str], now: float, key: Secret | None = None) -> ServerCertificate:
    """Make a certificate for a node, by its ``name``, and for further ``hosts``, names or addresses. ``now``
    in Unix seconds; ``key`` as PEM, None for a new one. Raises CertificateError for a key that cannot be
    used."""
    signing = ec.generate_private_key(ec.SECP256R1()) if key is None else _private(key)
    at = datetime.fromtimestamp(now, UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(signing.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(days=BEFORE))
        .not_valid_after(at + timedelta(days=LIFE))
        .add_extension(x509.SubjectAlternativeName([_general(host) for host in dict.fromkeys(hosts)]), False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
        .sign(signing, hashes.SHA256())
    )
    return ServerCertificate(
        made.public_bytes(Encoding.PEM),
        Secret(signing.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())),
    )


def expires(pem: bytes) -> float:
    """When the first certificate of a PEM file ends, in Unix seconds. Raises CertificateError."""
    return _first(pem).not_valid_after_utc.timestamp()


def hosts_of(pem: bytes) -> list[str]:
    """The names and addresses that the first certificate of a PEM file is for. Raises CertificateError."""
    try:
        names = _first(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise CertificateError("it names no host") from error
    return [str(name.value) for name in names if isinstance(name, x509.DNSName | x509.IPAddress)]


def check_key(key: Secret) -> None:
    """Raise CertificateError for a key, as PEM, that cannot be used."""
    _private(key)


def belong(pem: bytes, key: Secret) -> bool:
    """Whether the first certificate of a PEM file is for this key. Raises CertificateError."""
    return _first(pem).public_key() == _private(key).public_key()


def fingerprint(pem: bytes) -> str:
    """The SHA-256 of the first certificate's DER as 64 hexadecimal digits. Raises CertificateError."""
    return hashlib.sha256(_first(pem).public_bytes(Encoding.DER)).hexdigest()


def _first(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except (ValueError, IndexError) as error:
        raise CertificateError("it is no PEM certificate") from error


def _private(key: Secret) -> ec.EllipticCurvePrivateKey:
    try:
        found = load_pem_private_key(key.reveal(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError("its key is no PEM key") from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise CertificateError("its key is not one of an elliptic curve")
    return found


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
