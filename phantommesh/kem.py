# SPDX-License-Identifier: GPL-3.0-or-later
"""Key encapsulation: ML-KEM-1024 (FIPS 203) from `cryptography`, or from liboqs where that is installed."""

from __future__ import annotations

import ctypes.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey, MLKEM1024PublicKey

from phantommesh.errors import PhantomMeshError

if TYPE_CHECKING:
    from types import ModuleType

# FIPS 203, table 3.
SEED_SIZE = 64
EK_SIZE = 1568
CT_SIZE = 1568
SECRET_SIZE = 32


class KemError(Exception):
    """A key or ciphertext was not valid. From the network this is a counted drop."""


class Decapsulator(Protocol):
    """The private half of a key pair, kept for one handshake."""

    def decapsulate(self, ct: bytes) -> bytes:
        """Return the 32-byte shared secret. ML-KEM rejects implicitly: a forged ciphertext gives a
        pseudorandom secret, not an error. Raises `KemError` for a wrong length."""


class Kem(Protocol):
    """One provider of ML-KEM-1024."""

    name: str

    def keypair(self, seed: bytes) -> tuple[bytes, Decapsulator]:
        """Return the encapsulation key (1568 bytes) and its private half, from a 64-byte seed (d, z)."""

    def encapsulate(self, ek: bytes) -> tuple[bytes, bytes]:
        """Return the ciphertext (1568 bytes) and the shared secret (32). Raises `KemError`."""


class _CryptographyKey:
    def __init__(self, key: MLKEM1024PrivateKey) -> None:
        self._key = key

    def decapsulate(self, ct: bytes) -> bytes:
        _check("ciphertext", ct, CT_SIZE)
        try:
            return self._key.decapsulate(ct)
        except ValueError as error:
            raise KemError("ciphertext") from error


class CryptographyKem:
    """ML-KEM-1024 of the `cryptography` package: the default."""

    name = "cryptography"

    def keypair(self, seed: bytes) -> tuple[bytes, Decapsulator]:
        """See `Kem.keypair`."""
        key = MLKEM1024PrivateKey.from_seed_bytes(seed)
        return key.public_key().public_bytes_raw(), _CryptographyKey(key)

    def encapsulate(self, ek: bytes) -> tuple[bytes, bytes]:
        """See `Kem.encapsulate`."""
        _check("encapsulation key", ek, EK_SIZE)
        try:
            secret, ct = MLKEM1024PublicKey.from_public_bytes(ek).encapsulate()
        except ValueError as error:  # FIPS 203 section 7.2: the modulus check
            raise KemError("encapsulation key") from error
        return ct, secret


class _LiboqsKey:
    def __init__(self, oqs: ModuleType, secret_key: bytes) -> None:
        self._oqs, self._secret_key = oqs, secret_key

    def decapsulate(self, ct: bytes) -> bytes:
        _check("ciphertext", ct, CT_SIZE)
        with self._oqs.KeyEncapsulation("ML-KEM-1024", self._secret_key) as kem:
            return bytes(kem.decap_secret(ct))


class LiboqsKem:
    """ML-KEM-1024 of liboqs, through liboqs-python (the extra ``oqs``)."""

    name = "liboqs"

    def __init__(self) -> None:
        """Raise `PhantomMeshError` where liboqs or its Python package is not installed."""
        if not liboqs_present():
            raise PhantomMeshError(
                'link.provider is "liboqs", but no liboqs library is installed',
                fix='install liboqs as a shared library, or set link.provider to "cryptography"',
            )
        try:
            import oqs
        except ImportError:
            raise PhantomMeshError(
                'link.provider is "liboqs", but the Python package liboqs-python is not installed',
                fix='install phantommesh with the extra [oqs], or set link.provider to "cryptography"',
            ) from None
        self._oqs: ModuleType = oqs

    def keypair(self, seed: bytes) -> tuple[bytes, Decapsulator]:
        """See `Kem.keypair`."""
        _check("seed", seed, SEED_SIZE)  # liboqs-python zero-pads short inputs without a word
        with self._oqs.KeyEncapsulation("ML-KEM-1024") as kem:
            ek = bytes(kem.generate_keypair_seed(seed))
            return ek, _LiboqsKey(self._oqs, bytes(kem.export_secret_key()))

    def encapsulate(self, ek: bytes) -> tuple[bytes, bytes]:
        """See `Kem.encapsulate`."""
        _check("encapsulation key", ek, EK_SIZE)
        if not _coefficients_reduced(ek):
            raise KemError("encapsulation key")  # liboqs leaves the modulus check to its caller
        with self._oqs.KeyEncapsulation("ML-KEM-1024") as kem:
            ct, secret = kem.encap_secret(ek)
            return bytes(ct), bytes(secret)


def _check(what: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise KemError(what)


def _coefficients_reduced(ek: bytes) -> bool:
    """FIPS 203 section 7.2: every 12-bit coefficient of the key is below q = 3329."""
    packed = ek[: EK_SIZE - 32]
    number = int.from_bytes(packed, "little")
    coefficients = len(packed) * 8 // 12
    return all((number >> (12 * i)) & 0xFFF < 3329 for i in range(coefficients))


def liboqs_present() -> bool:
    """Whether a liboqs shared library can be loaded.

    To be asked before ``import oqs``: without a library that import clones and builds one, and then raises
    SystemExit.
    """
    root = os.environ.get("OQS_INSTALL_PATH")
    if root and any(Path(root, lib, "liboqs.so").exists() for lib in ("lib", "lib64")):
        return True
    return ctypes.util.find_library("oqs") is not None


def provider(name: str) -> Kem:
    """Return the KEM provider of that name. Raises `PhantomMeshError` for one that is not there."""
    if name == CryptographyKem.name:
        return CryptographyKem()
    if name == LiboqsKem.name:
        return LiboqsKem()
    raise PhantomMeshError(
        f"link.provider is {name!r}, which is no KEM provider",
        fix='use "cryptography" or "liboqs"',
    )
