# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's WireGuard messages. A set message has the layout of a dump's, so each is read back.

wgnlpy's classes write here and our own decoder reads, so each of them checks the other.
"""

import struct
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.nlattr import NetlinkFormatError, decode_errno, split_messages
from phantommesh.nursery.host.wgmessages import MAX_PEERS_BYTES, encode_set
from phantommesh.secret import Secret
from phantommesh.wireguard.device import NO_KEY, Endpoint, Network, PeerState
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff
from phantommesh.wireguard.netlink import decode_device, decode_family, encode_get

KEYS = st.binary(min_size=32, max_size=32)
NETWORKS: st.SearchStrategy[Network] = st.builds(
    lambda address, prefix: IPv4Network((address, prefix), strict=False),
    st.ip_addresses(v=4),
    st.integers(0, 32),
) | st.builds(
    lambda address, prefix: IPv6Network((address, prefix), strict=False),
    st.ip_addresses(v=6),
    st.integers(0, 128),
)
ENDPOINTS = st.builds(
    lambda address, port: Endpoint(str(address), port), st.ip_addresses(), st.integers(1, 65535)
)
PEERS = st.builds(
    PeerDiff,
    KEYS,
    create=st.just(True),
    psk=KEYS.map(Secret),
    endpoint=st.none() | ENDPOINTS,
    keepalive=st.integers(0, 65535),
    allowed_ips=st.frozensets(NETWORKS),
    replace_allowed_ips=st.booleans(),
)


def payloads(change: DeviceDiff) -> list[bytes]:
    return [payload for message in encode_set(30, 1, change) for *_, payload in split_messages(message)]


def state_of(peer: PeerDiff) -> PeerState:
    assert peer.psk is not None
    return PeerState(
        peer.public_key, peer.psk, peer.endpoint, peer.allowed_ips or frozenset(), peer.keepalive or 0
    )


@given(st.lists(PEERS, unique_by=lambda peer: peer.public_key, max_size=4), st.integers(1, 65535))
def test_what_is_set_is_what_is_read(peers: list[PeerDiff], port: int) -> None:
    report = decode_device(payloads(DeviceDiff("pm0", listen_port=port, fwmark=9, peers=tuple(peers))))
    assert (report.listen_port, report.fwmark) == (port, 9)
    assert report.peers == {peer.public_key: state_of(peer) for peer in peers}


def many(peers: int, networks: int) -> tuple[PeerDiff, ...]:
    listed = [ip_network((0x0A000000 + number, 32)) for number in range(networks)]
    return tuple(
        PeerDiff(
            number.to_bytes(32, "big"),
            create=True,
            psk=Secret(b"p" * 32),
            endpoint=Endpoint("192.0.2.1", 1),
            keepalive=25,
            allowed_ips=frozenset(listed),
            replace_allowed_ips=True,
        )
        for number in range(1, peers + 1)
    )


def test_fifty_peers_are_one_message() -> None:
    assert len(encode_set(30, 1, DeviceDiff("pm0", private_key=Secret(b"k" * 32), peers=many(50, 2)))) == 1


@pytest.mark.parametrize(("peers", "networks"), [(2000, 1), (3, 3000)])
def test_a_change_beyond_one_message_is_split_and_loses_nothing(peers: int, networks: int) -> None:
    change = DeviceDiff("pm0", private_key=Secret(b"k" * 32), peers=many(peers, networks))
    messages = encode_set(30, 5, change)
    assert len(messages) > 1
    assert all(len(message) < MAX_PEERS_BYTES + 1024 for message in messages)
    headers = [header for message in messages for header in split_messages(message)]
    assert [sequence for _, _, sequence, _ in headers] == list(range(5, 5 + len(messages)))
    assert sum(b"k" * 32 in message for message in messages) == 1
    read = decode_device([payload for *_, payload in headers])
    assert read.peers == {peer.public_key: state_of(peer) for peer in change.peers}


def flags_of(message: bytes) -> list[int]:
    """Return the WGPEER_A_FLAGS of each peer, found by their attribute header."""
    header = struct.pack("=HH", 8, 3)
    parts = message.split(header)[1:]
    return [int(struct.unpack_from("=I", part)[0]) for part in parts]


def test_only_a_new_peer_may_be_made() -> None:
    new, changed = (
        PeerDiff(b"a" * 32, create=True, psk=Secret(b"p" * 32)),
        PeerDiff(b"b" * 32, psk=Secret(b"p" * 32)),
    )
    gone = PeerDiff(b"c" * 32, remove=True)
    replaced = PeerDiff(b"d" * 32, allowed_ips=frozenset(), replace_allowed_ips=True)
    [message] = encode_set(30, 1, DeviceDiff("pm0", peers=(new, changed, gone, replaced)))
    assert flags_of(message) == [0, 4, 5, 6]  # UPDATE_ONLY is 4, REMOVE_ME 1, REPLACE_ALLOWEDIPS 2


def test_a_peer_that_a_dump_splits_is_put_together() -> None:
    whole = many(1, 4)[0]
    networks = sorted(whole.allowed_ips or ())
    first = replace(whole, allowed_ips=frozenset(networks[:2]))
    rest = PeerDiff(whole.public_key, allowed_ips=frozenset(networks[2:]))
    parts = payloads(DeviceDiff("pm0", peers=(first,))) + payloads(DeviceDiff("pm0", peers=(rest,)))
    assert decode_device(parts).peers == {whole.public_key: state_of(whole)}


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)


def test_times_and_counters() -> None:
    peer = attribute(1, b"k" * 32) + attribute(6, struct.pack("=qq", 1_700_000_000, 500_000_000))
    peer += attribute(7, struct.pack("=Q", 1 << 40)) + attribute(8, struct.pack("=Q", 3))
    device = bytes(4) + attribute(4, b"d" * 32) + attribute(0x8008, attribute(0x8000, peer))
    report = decode_device([device])
    assert report.public_key == b"d" * 32
    read = report.peers[b"k" * 32]
    assert (read.last_handshake, read.rx_bytes, read.tx_bytes) == (1_700_000_000.5, 1 << 40, 3)
    assert read.psk == Secret(NO_KEY)


def test_no_answer_is_blank() -> None:
    assert decode_device([]).blank


def test_the_controllers_answer() -> None:
    answer = bytes(4) + attribute(2, b"wireguard\0") + attribute(1, struct.pack("=H", 30))
    assert decode_family(answer) == 30
    with pytest.raises(NetlinkFormatError):
        decode_family(bytes(4))


def test_errors() -> None:
    assert decode_errno(struct.pack("=i", -19) + bytes(16)) == 19
    assert decode_errno(bytes(4)) == 0
    assert decode_errno(b"") == 0


@given(st.binary())
def test_junk_raises_format_error_only(junk: bytes) -> None:
    for read in (
        lambda: decode_device([junk]),
        lambda: list(split_messages(junk)),
        lambda: decode_family(junk),
    ):
        try:
            read()
        except NetlinkFormatError:
            pass


@given(st.data())
def test_a_damaged_dump_raises_format_error_only(data: st.DataObject) -> None:
    good = bytearray(payloads(DeviceDiff("pm0", peers=many(2, 3)))[0])
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        decode_device([bytes(good)])
    except NetlinkFormatError:
        pass


def test_a_dump_is_asked_for_by_name() -> None:
    [(kind, flags, sequence, payload)] = split_messages(encode_get(30, 4, "pm0"))
    assert (kind, flags, sequence) == (30, 0x301, 4)
    assert b"pm0\0" in payload
