# SPDX-License-Identifier: GPL-3.0-or-later
"""The map between the two forms of Curve25519, and what a proof of possession cannot be made from."""

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.secret import Secret
from phantommesh.wireguard.device import public_key_of
from phantommesh.wireguard.possession import (
    _LOW_ORDER,
    edwards,
    is_seed,
    new_seed,
    private_key,
    prove,
    proves,
)

P = 2**255 - 19
NODE = b"n" * 16
seeds = st.binary(min_size=32, max_size=32)


def make_seed(text: bytes) -> Secret:
    """A seed that depends on this text alone."""

    def stream(size: int) -> bytes:
        nonlocal text
        text = hashlib.sha256(text).digest()
        return text[:size]

    return new_seed(stream)


@given(seeds)
def test_the_map_gives_the_point_that_ed25519_has_for_the_private_key(seed: bytes) -> None:
    """For any seed, but for the sign: the X25519 public key of the derived private key is mapped to it."""
    signing = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    montgomery = public_key_of(private_key(Secret(seed)))
    assert edwards(montgomery) == signing[:31] + bytes([signing[31] & 0x7F])
    assert is_seed(Secret(seed)) == (edwards(montgomery) == signing)


@given(seeds)
def test_and_the_other_way(seed: bytes) -> None:
    """u = (1 + y) / (1 - y), RFC 7748 section 4.1."""
    signing = Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()
    y = int.from_bytes(signing, "little") % 2**255
    u = (1 + y) * pow(1 - y, -1, P) % P
    assert u.to_bytes(32, "little") == public_key_of(private_key(Secret(seed)))


def test_the_private_key_is_the_scalar_of_rfc_8032() -> None:
    """Section 7.1, test 1: the secret key's scalar is known, as libsodium's sk_to_curve25519 gives it."""
    seed = Secret(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert (
        private_key(seed).reveal().hex() == "307c83864f2833cb427a2ef1c00a013cfdff2768d980c0a3a520f006904de94f"
    )
    assert (
        edwards(public_key_of(private_key(seed)))
        == bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    )  # fmt: skip


@given(st.binary(max_size=8), st.integers(0, 6), st.integers(0, 255), st.integers(1, 255), st.integers(0, 63))
def test_a_proof_holds_for_one_key_node_and_dimension(
    text: bytes, dimension: int, place: int, flip: int, at: int
) -> None:
    seed = make_seed(text)
    public = public_key_of(private_key(seed))
    proof = prove(seed, public, NODE, dimension)
    assert is_seed(seed) and proves(proof, public, NODE, dimension)
    assert not proves(proof, public, NODE, (dimension + 1) % 7)
    assert not proves(proof, public, b"m" * 16, dimension)
    changed = bytearray(proof)
    changed[at] ^= flip
    assert not proves(bytes(changed), public, NODE, dimension)
    other = bytearray(public)
    other[place % 32] ^= flip
    assert not proves(proof, bytes(other), NODE, dimension)


@given(st.binary(max_size=70), st.binary(max_size=34))
def test_bytes_of_any_kind_prove_nothing(proof: bytes, public: bytes) -> None:
    assert not proves(proof, public, NODE, 0)


@given(st.integers(P, 2**256 - 1) | st.integers(2**256 - 40, 2**256 - 1))
def test_a_key_has_one_encoding(number: int) -> None:
    """WireGuard takes all of them for the same key."""
    assert edwards(number.to_bytes(32, "little")) is None


def test_a_second_encoding_of_a_proved_key_is_not_proved() -> None:
    seed = make_seed(b"twice")
    public = public_key_of(private_key(seed))
    high = public[:31] + bytes([public[31] | 0x80])  # X25519 ignores the bit
    assert not proves(prove(seed, high, NODE, 0), high, NODE, 0)


@pytest.mark.parametrize("u", sorted(_LOW_ORDER))
def test_points_of_low_order_prove_nothing(u: int) -> None:
    """They are all there are: X25519 gives zero with each of them, which `cryptography` refuses."""
    encoded = u.to_bytes(32, "little")
    with pytest.raises(ValueError):
        X25519PrivateKey.from_private_bytes(bytes(range(32))).exchange(
            X25519PublicKey.from_public_bytes(encoded)
        )
    assert edwards(encoded) is None
    # R = S = 0 times the base point verifies under the neutral element for any statement
    assert not any(proves(bytes([first]) + bytes(63), encoded, NODE, 0) for first in range(2))
