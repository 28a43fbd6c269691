# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay's short way in a kernel: three namespaces in a row, as in `test_relay.py`."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from collections.abc import Collection
from dataclasses import replace

import pytest

from phantommesh.nftables import messages
from phantommesh.nftables.messages import Change
from phantommesh.nursery.host import nft
from phantommesh.nursery.host.netlink import NetlinkSocket
from phantommesh.nursery.host.nexthops import read_hops
from phantommesh.routing import fastlane, forwarding
from phantommesh.routing.forwarding import Drop, Frame
from phantommesh.routing.leases import Forward
from phantommesh.secret import Secret
from tests.lab import test_relay as rig
from tests.lab.test_relay import A4, A6, B4, B6, FOREVER, FRAME, HERE4, HERE6, A, B, R
from tests.lab.test_relay import spaces as spaces

pytestmark = pytest.mark.lab

TABLE = FRAME.table
UPLINKS = ("up1", "up2")


def commit(changes: Collection[Change]) -> None:
    def act() -> None:
        with NetlinkSocket(messages.NETFILTER) as netlink:
            batch = messages.encode_transaction(tuple(changes), messages.FAMILIES["netdev"], sequence=1)
            nft.commit(netlink, *batch)

    rig.within(R, act)


def open_lanes(forwards: Collection[Forward], frame: Frame = FRAME) -> frozenset[fastlane.Lane]:
    """Both ways of forwarding, as a relay installs them."""
    rig.install(forwards, frame)
    targets = {place.host for each in forwards for place in (each.source, each.target)}
    hops, there = rig.within(R, lambda: read_hops(targets, forwarding.RELAY_MARK))
    assert set(UPLINKS) <= there
    mtu, lanes = fastlane.choose(forwards, hops)
    commit(fastlane.whole(frame, UPLINKS, mtu, lanes))
    return lanes


def counted(name: str) -> int:
    def act() -> int:
        with NetlinkSocket(messages.NETFILTER) as netlink:
            asked = messages.encode_get_elements(messages.FAMILIES["netdev"], TABLE, name, sequence=1)
            found = messages.decode_counters_by_key(payload for _, _, payload in netlink.exchange(asked))
            return sum(packets for packets, _ in found.values())

    return rig.within(R, act)


def lanes() -> int:
    """Packets that took the short way."""
    return counted("lanes4") + counted("lanes6")


@pytest.mark.parametrize(("one", "two"), [(A4, B4), (A6, B6)])
def test_data_takes_the_short_way_and_handshakes_the_long_one(one: str, two: str) -> None:
    with rig.udp(A, one) as a, rig.udp(B, two) as b:
        assert len(open_lanes(rig.lease(1, 9, a, b))) == 2
        for sender, receiver in ((a, b), (b, a)) * 3:
            for kind in (1, 2, 3, 4):
                sent = rig.message(9, kind=kind, size=101)
                rig.send(sender, sent)
                data, source = receiver.recvfrom(2000)
                assert data == sent
                assert source[:2] == (HERE6 if ":" in one else HERE4, rig.PORT)
        assert lanes() == 6
        for stranger in (rig.message(8), rig.message(9, kind=5)):
            rig.send(a, stranger)
        assert rig.silent(b)
        assert lanes() == 6
    assert int(rig.run(R, "cat", "/proc/sys/net/netfilter/nf_conntrack_count")) == 0


@pytest.mark.parametrize(("one", "two"), [(A4, B4), (A6, B6)])
def test_a_lane_that_is_withdrawn_stops_with_the_next_packet(one: str, two: str) -> None:
    with rig.udp(A, one) as a, rig.udp(B, two) as b:
        forwards = rig.lease(1, 0, a, b)
        opened = open_lanes(forwards)
        rig.send(a, rig.message())
        b.recv(2000)
        commit(fastlane.alter(FRAME, opened, ()))
        rig.run(R, "nft", "-f", "-", script=forwarding.change(FRAME, forwards, ()))
        for _ in range(15):
            rig.send(a, rig.message())
            rig.send(b, rig.message())
        assert rig.silent(a)
        assert rig.silent(b)
        assert rig.drops()[Drop.STRANGER] == 30


@pytest.mark.parametrize(("one", "two"), [(A4, B4), (A6, B6)])
def test_a_packet_at_the_end_of_its_life_goes_no_further(one: str, two: str) -> None:
    with rig.udp(A, one) as a, rig.udp(B, two) as b:
        open_lanes(rig.lease(1, 0, a, b))
        level, option = socket.IPPROTO_IP, socket.IP_TTL
        if ":" in one:
            level, option = socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS
        a.setsockopt(level, option, 1)
        rig.send(a, rig.message())
        assert rig.silent(b)
        assert lanes() == 0
        a.setsockopt(level, option, 2)
        rig.send(a, rig.message())
        b.recv(2000)
        assert lanes() == 1


def test_what_is_too_large_for_the_way_out_is_left_to_the_long_way() -> None:
    rig.run(R, "ip", "link", "set", "up2", "mtu", "1300")
    try:
        with rig.udp(A, A4) as a, rig.udp(B, B4) as b:
            a.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER: IP_PMTUDISC_DONT
            assert len(open_lanes(rig.lease(1, 0, a, b))) == 2
            rig.send(a, rig.message(size=1273))
            assert len(b.recv(2000)) == 1273  # in two pieces, by the long way
            assert lanes() == 0
            rig.send(a, rig.message(size=1272))
            assert len(b.recv(2000)) == 1272
            assert lanes() == 1
    finally:
        rig.run(R, "ip", "link", "set", "up2", "mtu", "1500")


def test_a_lane_has_its_rate_and_others_have_theirs() -> None:
    with rig.udp(A, A4) as a, rig.udp(B, B4) as b, rig.udp(B, B4) as c:
        open_lanes(rig.lease(1, 0, a, b) | rig.lease(3, 1, a, c), replace(FRAME, rate=1000))
        for _ in range(100):
            rig.send(a, rig.message(size=1400))
        through = lanes()
        assert 0 < through < 100
        assert counted("leased4") == 100 - through
        for _ in range(through):
            b.recv(2000)
        assert rig.silent(b)
        assert Drop.RATE not in rig.drops() or rig.drops()[Drop.RATE] == 0
        rig.send(a, rig.message(1))
        c.recv(2000)


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def packet(source: socket.socket) -> bytes:
    """A message in IPv4 and UDP, as if it came from this socket."""
    place = rig.place(source)
    ends, body = socket.inet_aton(place.host) + socket.inet_aton(HERE4), rig.message()
    udp = struct.pack(">4H", place.port, rig.PORT, 8 + len(body), 0)
    total = checksum(ends + struct.pack(">2H", 17, len(udp) + len(body)) + udp + body)
    udp = udp[:6] + struct.pack(">H", total)
    ip = struct.pack(">2B3H2BH", 0x45, 0, 28 + len(body), 1, 0, 64, 17, 0) + ends
    return ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:] + udp + body


def test_a_frame_that_the_host_would_not_take_takes_no_short_way() -> None:
    """The ingress sees what the host drops later: frames of a VLAN, or for another machine, and packets
    whose source is not where they come from."""
    macs = {link["ifname"]: link["address"] for link in json.loads(rig.run(R, "ip", "-j", "link"))}
    one, two = (bytes.fromhex(macs[name].replace(":", "")) for name in UPLINKS)
    other, here, tag = b"\x02" * 6, b"\x08\x00", b"\x81\x00\x00\x0a"
    strict = [f"net.ipv4.conf.{name}.rp_filter" for name in ("all", *UPLINKS)]
    before = rig.run(R, "sysctl", "-n", *strict).split()
    with rig.udp(A, A4) as a, rig.udp(B, B4) as b, raw(A) as near, raw(B) as far:
        open_lanes(rig.lease(1, 0, a, b))
        near.send(one + other + here + packet(a))
        b.recv(2000)
        assert lanes() == 1
        rig.run(R, "sysctl", "-qw", *(f"{name}=1" for name in strict))
        try:
            for sender, frame in (
                (near, other + other + here),
                (near, b"\xff" * 6 + other + here),
                (near, one + other + tag + here),
                (far, two + other + here),
            ):
                sender.send(frame + packet(a))
            assert rig.silent(b)
        finally:
            changes = zip(strict, before, strict=True)
            rig.run(R, "sysctl", "-qw", *(f"{name}={value}" for name, value in changes))
        assert lanes() == 1


def raw(space: str) -> socket.socket:
    sock = rig.within(space, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    rig.within(space, lambda: sock.bind(("up0", 0)))
    return sock


def test_what_leads_nowhere_has_no_lane() -> None:
    found, _ = rig.within(R, lambda: read_hops(["127.0.0.1", HERE4, "203.0.113.1", B4], 0))
    assert set(found) == {B4}
    assert found[B4].via == B4
    assert found[B4].mtu == 1500


# The relay of `test_relay.py`, in a hurry to count: data takes the short way once it has been seen to leave.
RELAY = rig.RELAY.replace(
    "async def main():",
    "from phantommesh.nursery.dataplane import relaying as module\nmodule.COUNT = 0.1\n\nasync def main():",
).replace(
    '        print("forwards", flush=True)\n',
    """        print("forwards", flush=True)
        while len(relaying.short) < 2:
            await trio.sleep(0.01)
        print("short", flush=True)
""",
)


def test_a_relay_opens_the_short_way_by_itself_and_closes_it() -> None:
    rig.run(R, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    argv = ["ip", "netns", "exec", R, sys.executable, "-c", RELAY, "pm", str(rig.PORT)]
    with (
        rig.udp(A, A4) as a,
        rig.udp(B, B4) as b,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as relay,
    ):
        assert relay.stdin is not None
        assert relay.stdout is not None
        try:
            legs = json.loads(relay.stdout.readline())
            for sock, (ticket, key) in zip((a, b), legs, strict=True):
                rig.bind(sock, bytes.fromhex(ticket), Secret(bytes.fromhex(key)))
            assert relay.stdout.readline() == "forwards\n"
            rig.send(a, rig.message())
            b.recv(2000)
            assert relay.stdout.readline() == "short\n"
            before = counted("lanes4")
            for sender, receiver in ((a, b), (b, a)):
                rig.send(sender, rig.message())
                receiver.recv(2000)
            assert counted("lanes4") == before + 2
            print(file=relay.stdin, flush=True)
            assert relay.stdout.readline() == "withdrawn\n"
            rig.send(a, rig.message())
            assert rig.silent(b)
            print(file=relay.stdin, flush=True)
            assert relay.wait(FOREVER) == 0
        finally:
            relay.kill()
            rig.run(R, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    assert TABLE not in rig.run(R, "nft", "list", "tables")
