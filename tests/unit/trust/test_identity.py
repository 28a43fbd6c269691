# SPDX-License-Identifier: GPL-3.0-or-later
import hashlib
from ipaddress import IPv4Network, IPv6Network

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.trust.identity import (
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
)

SEED = bytes(range(32))


def test_node_id_is_the_hash_of_the_public_key() -> None:
    identity = Identity.from_seed(SEED)
    assert identity.node_id == hashlib.sha3_256(identity.spki).digest()[:16]
    assert len(identity.spki) == 1974
    # fixed: a node's id must not change with a version of this program
    assert format_node_id(identity.node_id) == "6eecbfmbqvviyfyq4inv7urcv4"


def test_pem_round_trip_keeps_the_identity() -> None:
    identity = Identity.generate()
    assert Identity.from_pem(identity.to_pem().reveal()).node_id == identity.node_id


def test_signatures_are_bound_to_their_context() -> None:
    identity = Identity.from_seed(SEED)
    signature = identity.sign(b"data", b"one use")
    identity.public_key.verify(signature, b"data", b"one use")
    with pytest.raises(InvalidSignature):
        identity.public_key.verify(signature, b"data", b"another use")


def test_the_key_does_not_show() -> None:
    identity = Identity.from_seed(SEED)
    shown = repr(identity) + str(identity) + repr(identity.to_pem()) + f"{identity.to_pem()}"
    assert SEED.hex() not in shown
    assert "PRIVATE" not in shown
    assert "\\x" not in shown


@pytest.mark.parametrize(
    "pem", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_bad_key_file_is_an_identity_error(pem: bytes) -> None:
    with pytest.raises(IdentityError):
        Identity.from_pem(pem)


def test_a_key_of_another_strength_is_refused() -> None:
    pem = MLDSA44PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(IdentityError, match="ML-DSA-65"):
        Identity.from_pem(pem)


@settings(max_examples=50)
@given(st.binary(max_size=2100))
def test_junk_is_no_public_key(junk: bytes) -> None:
    with pytest.raises(IdentityError):
        public_key_of(junk)


@given(st.binary(min_size=16, max_size=16))
def test_node_id_text_round_trip(raw: bytes) -> None:
    text = format_node_id(NodeId(raw))
    assert len(text) == 26
    assert parse_node_id(text) == raw


@given(st.text(max_size=30))
def test_node_id_text_has_one_spelling(text: str) -> None:
    try:
        node_id = parse_node_id(text)
    except IdentityError:
        return
    assert format_node_id(node_id) == text


def test_a_node_id_with_stray_bits_is_refused() -> None:
    assert format_node_id(NodeId(bytes(16))) == "a" * 26
    with pytest.raises(IdentityError):
        parse_node_id("a" * 25 + "b")  # decodes to the same 16 bytes


def test_overlay6_is_a_ula_of_the_mesh_and_the_node() -> None:
    node = Identity.from_seed(SEED).node_id
    network = overlay_network6(b"root key")
    assert network.prefixlen == 48
    assert network.subnet_of(IPv6Network("fd00::/8"))
    address = overlay_ip6(b"root key", node)
    assert address in network
    assert address.packed[6:] == node[:10]
    assert overlay_network6(b"other root key") != network


@given(st.binary(min_size=16, max_size=16), st.integers(8, 30), st.integers(0, 2**32 - 1))
def test_overlay4_is_a_host_address(raw: bytes, prefix: int, attempt: int) -> None:
    network = IPv4Network(("10.0.0.0", prefix))
    address = overlay_ip4(network, node_id_of(raw), attempt)
    assert address in network
    assert address not in (network.network_address, network.broadcast_address)


def test_overlay4_has_another_address_for_another_attempt() -> None:
    node = Identity.from_seed(SEED).node_id
    network = IPv4Network("100.64.0.0/10")
    assert len({overlay_ip4(network, node, attempt) for attempt in range(50)}) == 50
    with pytest.raises(IdentityError):
        overlay_ip4(IPv4Network("10.0.0.0/31"), node)
