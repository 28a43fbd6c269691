# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import ctypes
import json
import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from phantommesh import kem
from phantommesh.errors import PhantomMeshError
from phantommesh.kem import CryptographyKem, Kem, KemError, LiboqsKem, liboqs_present

VECTORS = Path(__file__).parents[1] / "vectors"


def liboqs() -> Kem:
    """The liboqs provider, or a skip that says what is missing."""
    if not liboqs_present():
        pytest.skip(
            "no liboqs shared library here (OQS_INSTALL_PATH names one that is not in the usual places)"
        )
    if find_spec("oqs") is None:
        pytest.skip("a liboqs library is here, but the Python package liboqs-python is not (extra [oqs])")
    return LiboqsKem()


@pytest.fixture(params=["cryptography", "liboqs"])
def provider(request: pytest.FixtureRequest) -> Kem:
    return liboqs() if request.param == "liboqs" else CryptographyKem()


def vectors(name: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((VECTORS / name).read_text())["tests"]
    return found


def raw(case: dict[str, str], key: str) -> bytes:
    return bytes.fromhex(case[key])


def test_mlkem_1024_known_answers(provider: Kem) -> None:
    """Key generation from the seed, decapsulation, and the implicit rejection of a forged ciphertext."""
    cases = vectors("mlkem1024.json")
    assert len(cases) == 3
    for case in cases:
        ek, decapsulator = provider.keypair(raw(case, "d") + raw(case, "z"))
        assert ek == raw(case, "ek")
        assert decapsulator.decapsulate(raw(case, "ct")) == raw(case, "ss")
        assert decapsulator.decapsulate(raw(case, "ct_forged")) == raw(case, "ss_rejected")


def test_mldsa_65_known_answers() -> None:
    """The signatures that links rely on: key generation from the seed, and verification with a context."""
    cases = vectors("mldsa65.json")
    assert len(cases) == 3
    for case in cases:
        public, message, context = raw(case, "pk"), raw(case, "message"), raw(case, "context")
        key = MLDSA65PrivateKey.from_seed_bytes(raw(case, "seed")).public_key()
        assert key.public_bytes_raw() == public
        verifier = MLDSA65PublicKey.from_public_bytes(public)
        verifier.verify(raw(case, "signature"), message, context)
        for wrong in ((message + b"x", context), (message, context + b"x"), (message, b"")):
            with pytest.raises(InvalidSignature):
                verifier.verify(raw(case, "signature"), *wrong)


def test_a_round_trip_and_lengths(provider: Kem) -> None:
    ek, decapsulator = provider.keypair(os.urandom(64))
    ct, secret = provider.encapsulate(ek)
    assert (len(ek), len(ct), len(secret)) == (1568, 1568, 32)
    assert decapsulator.decapsulate(ct) == secret
    again, _ = provider.encapsulate(ek)
    assert again != ct


@pytest.mark.parametrize("size", [0, 1567, 1569])
def test_wrong_lengths_are_refused_not_padded(provider: Kem, size: int) -> None:
    _, decapsulator = provider.keypair(bytes(64))
    with pytest.raises(KemError):
        provider.encapsulate(bytes(size))
    with pytest.raises(KemError):
        decapsulator.decapsulate(bytes(size))
    with pytest.raises(KemError):
        provider.keypair(bytes(size % 63))


def test_unreduced_encapsulation_keys_are_refused(provider: Kem) -> None:
    """FIPS 203 section 7.2. The first coefficient is set to q = 3329, which is 0x0d01."""
    ek, _ = provider.keypair(bytes(64))
    q = bytes([0x01, ek[1] & 0xF0 | 0x0D])
    for bad in (q + ek[2:], b"\xff" * 1568):
        with pytest.raises(KemError):
            provider.encapsulate(bad)
    provider.encapsulate(bytes([0x00, ek[1] & 0xF0 | 0x0D]) + ek[2:])  # q - 1


def test_the_providers_agree() -> None:
    other, mine = liboqs(), CryptographyKem()
    rng = random.Random(1)
    for _ in range(20):
        seed = rng.randbytes(64)
        ek, theirs = other.keypair(seed)
        same, ours = mine.keypair(seed)
        assert ek == same
        for provider in (other, mine):
            ct, secret = provider.encapsulate(ek)
            assert theirs.decapsulate(ct) == ours.decapsulate(ct) == secret
            forged = bytes([ct[0] ^ 1]) + ct[1:]
            assert theirs.decapsulate(forged) == ours.decapsulate(forged) != secret


def test_liboqs_says_nothing_on_stdout() -> None:
    """Its import logs to stdout, where --json must stand alone."""
    liboqs()
    code = "from phantommesh.kem import provider; provider('liboqs')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout == ""


def test_a_library_that_cannot_be_loaded_is_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of that name is not enough: `import oqs` would try to build one."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "liboqs.so").write_bytes(b"not a library")
    monkeypatch.setenv("OQS_INSTALL_PATH", str(tmp_path))
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    assert not liboqs_present()
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "libno-such-thing.so.1")
    assert not liboqs_present()


def test_without_a_library_oqs_is_never_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kem, "liboqs_present", lambda: False)
    monkeypatch.setitem(sys.modules, "oqs", None)
    with pytest.raises(PhantomMeshError, match="no liboqs library") as caught:
        kem.provider("liboqs")
    assert "cryptography" in caught.value.fix


def test_without_the_python_package_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kem, "liboqs_present", lambda: True)
    monkeypatch.setitem(sys.modules, "oqs", None)
    with pytest.raises(PhantomMeshError, match="liboqs-python is not installed"):
        kem.provider("liboqs")


class OldKem:
    """A liboqs that leaves the modulus check to its caller."""

    def __init__(self, name: str, secret_key: bytes = b"") -> None: ...

    def __enter__(self) -> OldKem:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def generate_keypair_seed(self, seed: bytes) -> bytes:
        return bytes(1568)

    def export_secret_key(self) -> bytes:
        return bytes(3168)

    def encap_secret(self, ek: bytes) -> tuple[bytes, bytes]:
        return bytes(1568), bytes(32)


def no_kem(name: str) -> Any:
    raise LookupError(name)


@pytest.mark.parametrize(
    ("factory", "why"), [(OldKem, "does not check encapsulation keys"), (no_kem, "no ML-KEM-1024")]
)
def test_an_unfit_liboqs_is_refused_at_the_start(
    factory: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = SimpleNamespace(KeyEncapsulation=factory, MechanismNotSupportedError=LookupError)
    monkeypatch.setattr(kem, "liboqs_present", lambda: True)
    monkeypatch.setitem(sys.modules, "oqs", fake)
    with pytest.raises(PhantomMeshError, match=why):
        LiboqsKem()


def test_an_unknown_provider_is_named() -> None:
    assert kem.provider("cryptography").name == "cryptography"
    with pytest.raises(PhantomMeshError, match="'rot13'"):
        kem.provider("rot13")
