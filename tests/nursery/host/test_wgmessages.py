# SPDX-License-Identifier: GPL-3.0-or-later
"""What wgnlpy's classes write and read: against bytes laid out by hand, and against our own decoder."""

import logging
import struct
from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phantommesh.nlattr import NetlinkFormatError, attribute
from phantommesh.nursery.host.wgmessages import encode_set
from phantommesh.secret import Secret
from phantommesh.wireguard.device import NO_KEY, Endpoint
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff
from phantommesh.wireguard.netlink import decode_device
from tests.lab import witness
from tests.unit.wireguard.test_wgnetlink import PEERS, many, payloads


def test_every_byte_of_a_message() -> None:
    """Held against linux/wireguard.h; nested attributes are marked, as kernels since 5.2 ask for."""
    peer = PeerDiff(
        b"a" * 32,
        psk=Secret(b"p" * 32),
        endpoint=Endpoint("2001:db8::1%7", 51820),
        keepalive=25,
        allowed_ips=frozenset({ip_network("10.0.0.0/8"), ip_network("fd00::/48")}),
        replace_allowed_ips=True,
    )
    gone = PeerDiff(b"b" * 32, remove=True)
    change = DeviceDiff("pm0", private_key=Secret(b"k" * 32), listen_port=51820, fwmark=9, peers=(peer, gone))
    networks = [
        attribute(1, struct.pack("=H", 2)) + attribute(2, bytes([10, 0, 0, 0])) + attribute(3, b"\x08"),
        attribute(1, struct.pack("=H", 10)) + attribute(2, b"\xfd" + bytes(15)) + attribute(3, b"\x30"),
    ]
    sockaddr = struct.pack("=H", 10) + struct.pack(">HI", 51820, 0)
    sockaddr += bytes.fromhex("20010db8") + bytes(11) + b"\x01" + struct.pack("=I", 7)
    entries = [
        attribute(1, b"a" * 32)
        + attribute(3, struct.pack("=I", 6))
        + attribute(2, b"p" * 32)
        + attribute(4, sockaddr)
        + attribute(5, struct.pack("=H", 25))
        + attribute(0x8009, b"".join(attribute(0x8001 + i, network) for i, network in enumerate(networks))),
        attribute(1, b"b" * 32) + attribute(3, struct.pack("=I", 5)),
    ]
    body = struct.pack("=BBH", 1, 1, 0) + attribute(2, b"pm0\0") + attribute(3, b"k" * 32)
    body += attribute(6, struct.pack("=H", 51820)) + attribute(7, struct.pack("=I", 9))
    body += attribute(0x8008, b"".join(attribute(0x8001 + i, entry) for i, entry in enumerate(entries)))
    header = struct.pack("=IHHII", 16 + len(body), 30, 5, 77, 0)
    assert encode_set(30, 77, change) == [header + body]


def test_a_link_local_endpoint_has_the_index_of_its_interface_or_none() -> None:
    for host, index in (("fe80::1%3", 3), ("fe80::1%eth0", 0), ("fe80::1", 0)):
        peer = PeerDiff(b"a" * 32, endpoint=Endpoint(host, 5))
        [message] = encode_set(30, 1, DeviceDiff("pm0", peers=(peer,)))
        assert message.endswith(struct.pack("=I", index))


def test_no_peers_is_a_message_without_any() -> None:
    [message] = encode_set(30, 1, DeviceDiff("pm0", listen_port=1))
    assert len(message) == 20 + 8 + 8


# wgnlpy takes a public key of zeros for none; no peer can have it.
REAL_PEERS = PEERS.filter(lambda peer: peer.public_key != NO_KEY)


@settings(max_examples=50)
@given(st.lists(REAL_PEERS, unique_by=lambda peer: peer.public_key, max_size=4), st.integers(1, 65535))
def test_the_witness_reads_what_we_read(peers: list[PeerDiff], port: int) -> None:
    dump = payloads(DeviceDiff("pm0", listen_port=port, fwmark=9, peers=tuple(peers)))
    assert witness.decode_device(dump) == decode_device(dump)


def test_the_witness_puts_a_split_peer_together() -> None:
    [whole] = many(1, 4)
    networks = sorted(whole.allowed_ips or ())
    first = replace(whole, allowed_ips=frozenset(networks[:2]))
    rest = PeerDiff(whole.public_key, allowed_ips=frozenset(networks[2:]))
    parts = payloads(DeviceDiff("pm0", peers=(first,))) + payloads(DeviceDiff("pm0", peers=(rest,)))
    assert witness.decode_device(parts) == decode_device(parts)
    assert len(witness.decode_device(parts).peers[whole.public_key].allowed_ips) == 4


def test_the_witness_reads_times_and_counters() -> None:
    peer = attribute(1, b"k" * 32) + attribute(2, bytes(32))
    peer += attribute(6, struct.pack("=qq", 1_700_000_000, 5))
    peer += attribute(7, struct.pack("=Q", 1 << 40)) + attribute(8, struct.pack("=Q", 3))
    peer += attribute(10, struct.pack("=I", 1))
    device = bytes(4) + attribute(4, b"d" * 32) + attribute(0x8008, attribute(0x8000, peer))
    assert witness.decode_device([device]) == decode_device([device])
    assert witness.decode_device([]) == decode_device([])


SHOWN = b"not to be shown, in no way, ever"


@pytest.mark.parametrize(
    "change",
    [
        DeviceDiff("pm0", private_key=Secret(SHOWN), listen_port=65536),
        DeviceDiff("pm0", private_key=Secret(SHOWN), fwmark=-1),
        DeviceDiff("pm0", private_key=Secret(SHOWN + b"!")),
        DeviceDiff("pm0", peers=(PeerDiff(b"a" * 32, psk=Secret(SHOWN), keepalive=65536),)),
        DeviceDiff("pm0", peers=(PeerDiff(b"a" * 32, psk=Secret(SHOWN[:-1])),)),
        DeviceDiff("pm0", peers=(PeerDiff(b"a" * 31, psk=Secret(SHOWN)),)),
    ],
)
def test_what_cannot_be_encoded_is_refused_and_shows_no_key(
    change: DeviceDiff, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(NetlinkFormatError) as refused:
        encode_set(30, 1, change)
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
    # pyroute2 logs the value that does not fit, which is never a key: their lengths are checked before.
    told = str(refused.value) + repr(refused.value) + caplog.text
    for shown in (SHOWN[:31].decode(), SHOWN[:31].hex()):
        assert shown not in told
