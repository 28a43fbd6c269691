# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys of the kernel's flows, and the number that its hash gives to each."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.scatter.flows import FlowKey, bucket_of, decode_key, render

SEED = 0x1234ABCD


@pytest.mark.parametrize(
    ("key", "bucket"),
    [
        ("7f0000017f00000311000000971e000003ea0000", 166),
        ("7f0000017f00000111000000971e000003e80000", 205),
        ("7f0000017f00000211000000971e000003e90000", 16),
    ],
)
def test_a_flow_has_the_bucket_that_the_kernel_gave_it(key: str, bucket: int) -> None:
    """As Linux 6.18 and nft 1.0.6 gave them: keys of a set that has the hash beside them."""
    assert bucket_of(bytes.fromhex(key), SEED) == bucket


def test_keys_of_both_versions_are_read() -> None:
    key = decode_key(bytes.fromhex("7f0000017f00000311000000971e000003ea0000"), 4)
    assert key == FlowKey(IPv4Address("127.0.0.1"), IPv4Address("127.0.0.3"), 17, 38686, 1002)
    assert str(key) == "udp 127.0.0.1:38686 > 127.0.0.3:1002"
    one, other = IPv6Address("fd00::1"), IPv6Address("fd00::2")
    packed = one.packed + other.packed + bytes((6, 0, 0, 0)) + struct.pack(">HH", 22, 0)
    assert decode_key(packed, 6) == FlowKey(one, other, 6, 0, 22)


@given(st.binary(max_size=64), st.sampled_from([4, 6]))
def test_whatever_the_kernel_says_a_key_is_read_or_left_out(key: bytes, version: int) -> None:
    found = decode_key(key, version)
    assert (found is not None) == (len(key) - {4: 8, 6: 32}[version] in (8, 12))


@given(st.lists(st.binary(min_size=4, max_size=4), max_size=11).map(b"".join), st.integers(0, 2**32 - 1))
def test_every_flow_has_a_bucket(key: bytes, seed: int) -> None:
    assert 0 <= bucket_of(key, seed) < 256 and bucket_of(key, seed, 7) < 7


def test_the_table_is_bounded_and_leaves_the_nodes_probes_out() -> None:
    text = render("pm", ["pm0", "pm1"], [51801], 77)
    assert text.count("size 77") == 4 and text.count("flags dynamic, timeout") == 4
    assert "th dport != { 51801 }" in text and "drop" not in text
