# SPDX-License-Identifier: GPL-3.0-or-later
"""Key encapsulation: ML-KEM-1024 (FIPS 203) from `cryptography`, or from liboqs where that is installed."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey, MLKEM1024PublicKey

from phantommesh.errors import PhantomMeshError

if TYPE_CHECKING:
    from types import ModuleType

# FIPS 203, table 3.
SEED_SIZE = 64
SECRET_SIZE = 32
EK_SIZE = 1568
CT_SIZE = 1568


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
        """Return the encapsulation key (1568 bytes) and its private half, from a 64-byte seed (d, z).
        Raises `KemError` for another length."""

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
        _check("seed", seed, SEED_SIZE)
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
        _check("ciphertext", ct, CT_SIZE)  # liboqs-python zero-pads short inputs without a word
        with self._oqs.KeyEncapsulation("ML-KEM-1024", self._secret_key) as kem:
            return bytes(kem.decap_secret(ct))


class LiboqsKem:
    """ML-KEM-1024 of liboqs, through liboqs-python (the extra ``oqs``)."""

    name = "liboqs"

    def __init__(self) -> None:
        """Raise `PhantomMeshError` where liboqs or its Python package is missing or unfit."""
        if not liboqs_present():
            raise PhantomMeshError(
                'link.provider is "liboqs", but no liboqs library can be loaded',
                fix='install liboqs as a shared library, or set link.provider to "cryptography"',
            )
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it logs to whatever stdout is at its import
                import oqs
        except ImportError:
            raise PhantomMeshError(
                'link.provider is "liboqs", but the Python package liboqs-python is not installed',
                fix='install phantommesh with the extra [oqs], or set link.provider to "cryptography"',
            ) from None
        self._oqs: ModuleType = oqs
        self._try_out()

    def _try_out(self) -> None:
        """Versions differ in what is compiled in, in the seeded key generation, and in whether they do the
        check of FIPS 203 section 7.2, that every coefficient of an encapsulation key is reduced."""
        try:
            self.keypair(bytes(SEED_SIZE))
        except (self._oqs.MechanismNotSupportedError, AttributeError) as error:
            raise _unfit("it has no ML-KEM-1024 from a seed") from error
        try:
            self.encapsulate(b"\xff" * EK_SIZE)
        except KemError:
            return
        raise _unfit("it does not check encapsulation keys")

    def keypair(self, seed: bytes) -> tuple[bytes, Decapsulator]:
        """See `Kem.keypair`."""
        _check("seed", seed, SEED_SIZE)
        with self._oqs.KeyEncapsulation("ML-KEM-1024") as kem:
            ek = bytes(kem.generate_keypair_seed(seed))
            return ek, _LiboqsKey(self._oqs, bytes(kem.export_secret_key()))

    def encapsulate(self, ek: bytes) -> tuple[bytes, bytes]:
        """See `Kem.encapsulate`."""
        _check("encapsulation key", ek, EK_SIZE)
        try:
            with self._oqs.KeyEncapsulation("ML-KEM-1024") as kem:
                ct, secret = kem.encap_secret(ek)
        except RuntimeError as error:  # what liboqs-python makes of liboqs's one error code
            raise KemError("encapsulation key") from error
        return bytes(ct), bytes(secret)


def _unfit(why: str) -> PhantomMeshError:
    return PhantomMeshError(
        f'link.provider is "liboqs", but this liboqs cannot be used: {why}',
        fix='install liboqs and liboqs-python 0.16 or later, or set link.provider to "cryptography"',
    )


def _check(what: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise KemError(what)


def liboqs_present() -> bool:
    """Whether a liboqs shared library can be loaded, from the places where liboqs-python looks for one.

    To be asked before ``import oqs``: if that import cannot load a library, it clones and builds one, and
    raises SystemExit if that fails. So it is not enough that a file exists.
    """
    root = Path(os.environ.get("OQS_INSTALL_PATH") or Path.home() / "_oqs")
    found = ctypes.util.find_library("oqs")
    for path in (found, root / "lib" / "liboqs.so", root / "lib64" / "liboqs.so"):
        if path is not None:
            try:
                ctypes.CDLL(str(path))
            except OSError:
                continue
            return True
    return False


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
