# SPDX-License-Identifier: GPL-3.0-or-later
"""The text protocol of userspace WireGuards."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.secret import Secret
from phantommesh.wireguard.device import NO_KEY, Endpoint, PeerConfig, Report, public_key_of
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff
from phantommesh.wireguard.uapi import (
    UapiError,
    check_set,
    encode_set,
    encode_set_boringtun,
    is_whole,
    parse_get,
)

KEY, OTHER, PSK = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
PRIVATE = Secret(b"\x04" * 32)
NETWORK, NETWORK6 = ip_network("10.0.0.1/32"), ip_network("fd00::/64")
CONFIG = PeerConfig(KEY, Secret(PSK), Endpoint("192.0.2.1", 51820), frozenset({NETWORK, NETWORK6}), 25)
NEW = PeerDiff(
    KEY,
    create=True,
    psk=CONFIG.psk,
    endpoint=CONFIG.endpoint,
    keepalive=25,
    allowed_ips=CONFIG.allowed_ips,
    replace_allowed_ips=True,
    config=CONFIG,
)
NOW = 1_700_000_000.0


def test_a_set_operation_of_a_new_device() -> None:
    change = DeviceDiff("pm0", private_key=PRIVATE, listen_port=51820, fwmark=7, mtu=1400, peers=(NEW,))
    assert encode_set(change).decode().split("\n") == [
        "set=1",
        f"private_key={PRIVATE.reveal().hex()}",
        "listen_port=51820",
        "fwmark=7",
        f"public_key={KEY.hex()}",
        f"preshared_key={PSK.hex()}",
        "endpoint=192.0.2.1:51820",
        "persistent_keepalive_interval=25",
        "replace_allowed_ips=true",
        "allowed_ip=10.0.0.1/32",
        "allowed_ip=fd00::/64",
        "",
        "",
    ]


def test_a_changed_or_removed_peer_is_never_made() -> None:
    changed = PeerDiff(KEY, psk=Secret(PSK), config=CONFIG)
    operation = encode_set(DeviceDiff("pm0", peers=(PeerDiff(OTHER, remove=True), changed))).decode()
    assert operation == (
        f"set=1\npublic_key={OTHER.hex()}\nupdate_only=true\nremove=true\n"
        f"public_key={KEY.hex()}\nupdate_only=true\npreshared_key={PSK.hex()}\n\n"
    )


def test_boringtun_gets_an_operation_a_peer_and_whole_peers_only() -> None:
    changed = PeerDiff(KEY, psk=Secret(PSK), config=CONFIG)
    gone = PeerDiff(OTHER, remove=True)
    operations = encode_set_boringtun(DeviceDiff("pm0", listen_port=9, peers=(gone, changed)))
    assert [operation.decode().split("\n")[1:-2] for operation in operations] == [
        ["listen_port=9"],
        [f"public_key={OTHER.hex()}", "remove=true"],
        [f"public_key={KEY.hex()}", "remove=true"],
        [
            f"public_key={KEY.hex()}",
            f"preshared_key={PSK.hex()}",
            "endpoint=192.0.2.1:51820",
            "persistent_keepalive_interval=25",
            "allowed_ip=10.0.0.1/32",
            "allowed_ip=fd00::/64",
        ],
    ]
    assert len(encode_set_boringtun(DeviceDiff("pm0", peers=(NEW,)))) == 1


def response(*lines: str) -> bytes:
    return "\n".join([*lines, "errno=0", "", ""]).encode()


def test_reading_what_wireguard_go_says() -> None:
    report = parse_get(
        response(
            f"private_key={PRIVATE.reveal().hex()}",
            "listen_port=51820",
            "fwmark=7",
            f"public_key={KEY.hex()}",
            f"preshared_key={PSK.hex()}",
            "protocol_version=1",
            "endpoint=[2001:db8::1]:4500",
            "last_handshake_time_sec=1699999990",
            "last_handshake_time_nsec=500000000",
            "tx_bytes=10",
            "rx_bytes=20",
            "persistent_keepalive_interval=25",
            "allowed_ip=10.0.0.1/32",
            "allowed_ip=fd00::/64",
            f"public_key={OTHER.hex()}",
            f"preshared_key={NO_KEY.hex()}",
            "last_handshake_time_sec=0",
            "last_handshake_time_nsec=0",
        ),
        NOW,
    )
    assert (report.public_key, report.listen_port, report.fwmark) == (public_key_of(PRIVATE), 51820, 7)
    peer, silent = report.peers[KEY], report.peers[OTHER]
    assert peer.psk == Secret(PSK)
    assert peer.endpoint == Endpoint("2001:db8::1", 4500)
    assert peer.allowed_ips == frozenset({NETWORK, NETWORK6})
    assert (peer.keepalive, peer.tx_bytes, peer.rx_bytes) == (25, 10, 20)
    assert peer.last_handshake == 1699999990.5
    assert silent.psk == Secret(NO_KEY)
    assert (silent.endpoint, silent.last_handshake) == (None, 0.0)


def test_reading_what_boringtun_says() -> None:
    report = parse_get(
        response(
            f"own_public_key={OTHER.hex()}",
            f"public_key={KEY.hex()}",
            "last_handshake_time_sec=12",
            "last_handshake_time_nsec=0",
        ),
        NOW,
    )
    assert report.public_key == OTHER
    assert report.peers[KEY].last_handshake == NOW - 12


@pytest.mark.parametrize("lines", [[], [f"private_key={NO_KEY.hex()}", "listen_port=1"]])
def test_an_unconfigured_device_is_blank(lines: list[str]) -> None:
    assert parse_get(response(*lines), NOW).blank
    assert not parse_get(response(f"public_key={KEY.hex()}"), NOW).blank


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\n\n",
        b"listen_port=1\n\n",
        b"nonsense\nerrno=0\n\n",
        b"errno=x\n\n",
        b"\xff=1\nerrno=0\n\n",
        response("listen_port=x"),
        response("public_key=00"),
        response("public_key=" + "zz" * 32),
        response(f"public_key={KEY.hex()}", "endpoint=nowhere"),
        response(f"public_key={KEY.hex()}", "allowed_ip=x"),
        response(f"public_key={KEY.hex()}", "last_handshake_time_sec=" + "9" * 400),
    ],
)
def test_a_malformed_answer_is_refused(bad: bytes) -> None:
    with pytest.raises(UapiError):
        parse_get(bad, NOW)


def test_an_errno_is_told() -> None:
    check_set(b"errno=0\n\n")
    with pytest.raises(UapiError) as refused:
        check_set(b"errno=-98\n\n")
    assert refused.value.code == 98


def test_an_error_does_not_quote_a_key() -> None:
    with pytest.raises(UapiError) as refused:
        parse_get(response(f"private_key={'12' * 31}1x"), NOW)
    assert "12" not in str(refused.value)
    assert refused.value.__suppress_context__


def test_an_answer_is_whole_at_its_empty_line() -> None:
    whole = response("listen_port=1")
    assert is_whole(whole)
    assert not any(is_whole(whole[:end]) for end in range(len(whole)))


NAMES = ["private_key", "own_public_key", "public_key", "listen_port", "endpoint", "allowed_ip", "rx_bytes"]
NAMES += ["last_handshake_time_sec", "preshared_key", "errno", "unknown"]
LINES = st.tuples(st.sampled_from(NAMES), st.text() | st.integers().map(str) | st.just(KEY.hex()))


@given(
    st.binary()
    | st.lists(LINES.map("=".join)).map(lambda lines: "\n".join([*lines, "errno=0", "", ""]).encode())
)
def test_junk_raises_uapi_error_only(junk: bytes) -> None:
    try:
        assert isinstance(parse_get(junk, NOW), Report)
    except UapiError:
        pass
