# SPDX-License-Identifier: GPL-3.0-or-later
"""A relay's rules in a kernel: three namespaces in a row, the relay in the middle. No WireGuard is needed
here: the relay looks at the first two bytes of a message."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeVar

import pytest

from phantommesh.endpoint import Address
from phantommesh.routing import binding, tagging
from phantommesh.routing.binding import MAGIC
from phantommesh.routing.forwarding import Drop, Frame, change, render
from phantommesh.routing.leases import Forward
from phantommesh.routing.tagging import Tagged
from phantommesh.secret import Secret

pytestmark = pytest.mark.lab

T = TypeVar("T")
ME = os.getpid()
R, A, B = (f"relay{ME}{name}" for name in "rab")
PORT = 51700
HERE4, HERE6 = "10.91.1.1", "fd91:1::1"
FRAME = Frame("pm", PORT, IPv4Address(HERE4), IPv6Address(HERE6), 100_000_000)
A4, B4, A6, B6 = "10.91.1.2", "10.91.2.2", "fd91:1::2", "fd91:2::2"
FOREVER, SOON = 10.0, 0.3  # s: until a packet is taken for lost, where one must come, and where none may

_NEWNET = 0x40000000  # CLONE_NEWNET, linux/sched.h
_SIOCETHTOOL, _SRXCSUM, _STXCSUM = 0x8946, 0x15, 0x17  # linux/sockios.h, linux/ethtool.h


def within(space: str, act: Callable[[], T]) -> T:
    """Run something in a namespace, in a thread of its own: a socket made there stays there."""
    results: list[T] = []

    def run() -> None:
        with Path("/run/netns", space).open() as handle:
            if ctypes.CDLL(None, use_errno=True).setns(handle.fileno(), _NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        results.append(act())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def run(space: str, *command: str, script: str | None = None) -> str:
    argv = ["ip", "netns", "exec", space, *command]
    return subprocess.run(argv, input=script, check=True, capture_output=True, text=True).stdout


def offload(space: str, interface: str, what: int, value: int) -> None:
    """Say whether UDP's checksums are left to the card, which does not exist: a pair of veths checks and
    makes none."""

    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            setting = ctypes.create_string_buffer(struct.pack("=II", what, value))
            request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(setting))
            fcntl.ioctl(sock, _SIOCETHTOOL, request)

    within(space, act)


@pytest.fixture(scope="module", autouse=True)
def spaces() -> Iterator[None]:
    if os.geteuid() != 0:
        pytest.skip("needs root, for network namespaces")
    for space in (R, A, B):
        subprocess.run(["ip", "netns", "add", space], check=True)
    try:
        for number, space in ((1, A), (2, B)):
            link = ["ip", "link", "add", "up0", "netns", space, "type", "veth"]
            subprocess.run([*link, "peer", "name", f"up{number}", "netns", R], check=True)
            for where, name, host in ((R, f"up{number}", 1), (space, "up0", 2)):
                run(where, "ip", "link", "set", "lo", "up")
                run(where, "ip", "addr", "add", f"10.91.{number}.{host}/24", "dev", name)
                run(where, "ip", "addr", "add", f"fd91:{number}::{host}/64", "dev", name, "nodad")
                run(where, "ip", "link", "set", name, "up")
                for what in (_SRXCSUM, _STXCSUM):
                    offload(where, name, what, 0)
            run(space, "ip", "route", "add", "default", "via", f"10.91.{number}.1")
            run(space, "ip", "route", "add", "default", "via", f"fd91:{number}::1")
        run(R, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        # Connection tracking is on, as on a host with a firewall.
        run(R, "nft", "add table inet fw")
        run(R, "nft", "add chain inet fw in { type filter hook input priority 0 ; }")
        run(R, "nft", "add rule inet fw in ct state established accept")
        yield
    finally:
        for space in (R, A, B):
            subprocess.run(["ip", "netns", "delete", space], check=True)


def udp(space: str, host: str, port: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = within(space, lambda: socket.socket(family, socket.SOCK_DGRAM))
    sock.bind((host, port))
    sock.settimeout(FOREVER)
    return sock


def place(sock: socket.socket) -> Address:
    host, port, *_ = sock.getsockname()
    return Address(host, port)


def lease(number: int, tag: int, one: socket.socket, two: socket.socket) -> set[Forward]:
    first, second = place(one), place(two)
    return {Forward(number, tag, first, second), Forward(number + 1, tag, second, first)}


def install(forwards: Collection[Forward], frame: Frame = FRAME) -> None:
    run(R, "nft", "-f", "-", script=render(frame, forwards))


def message(tag: int = 0, size: int = 100, kind: int = 4) -> bytes:
    """As WireGuard's messages begin."""
    return bytes((kind, tag, 0, 0)) + os.urandom(size - 4)


def send(sock: socket.socket, data: bytes, port: int = PORT) -> None:
    host = HERE6 if sock.family == socket.AF_INET6 else HERE4
    sock.sendto(data, (host, port))


def silent(sock: socket.socket) -> bool:
    """Whether nothing comes."""
    sock.settimeout(SOON)
    try:
        sock.recv(2000)
    except TimeoutError:
        return True
    else:
        return False
    finally:
        sock.settimeout(FOREVER)


def drops() -> dict[Drop, int]:
    held = json.loads(run(R, "nft", "-j", "list", "set", "inet", FRAME.table, "drops"))
    elements = next(each["set"] for each in held["nftables"] if "set" in each)["elem"]
    return {Drop(each["elem"]["val"]): each["elem"]["counter"]["packets"] for each in elements}


@pytest.mark.parametrize(("one", "two"), [(A4, B4), (A6, B6)])
def test_ciphertext_goes_both_ways_and_nothing_is_tracked(one: str, two: str) -> None:
    with udp(A, one) as a, udp(B, two) as b:
        install(lease(1, 0, a, b))
        for sender, receiver in ((a, b), (b, a)) * 3:
            for kind in (1, 2, 3, 4):
                sent = message(kind=kind)
                send(sender, sent)
                data, source = receiver.recvfrom(2000)
                assert data == sent
                assert source[:2] == (HERE6 if ":" in one else HERE4, PORT)
    tracked = run(R, "cat", "/proc/sys/net/netfilter/nf_conntrack_count")
    assert int(tracked) == 0


def test_a_withdrawn_lease_stops_with_the_next_packet() -> None:
    with udp(A, A4) as a, udp(B, B4) as b:
        forwards = lease(1, 0, a, b)
        install(forwards)
        send(a, message())
        b.recv(2000)
        run(R, "nft", "-f", "-", script=change(FRAME, forwards, ()))
        for _ in range(15):
            send(a, message())
            send(b, message())
        assert silent(b)
        assert silent(a)
        assert drops()[Drop.STRANGER] == 30
        run(R, "nft", "-f", "-", script=change(FRAME, (), forwards))
        send(a, message())
        b.recv(2000)


def test_a_leg_that_moved_is_followed() -> None:
    with udp(A, A4) as a, udp(A, A4) as later, udp(B, B4) as b:
        before, after = lease(1, 7, a, b), lease(1, 7, later, b)
        install(before)
        run(R, "nft", "-f", "-", script=change(FRAME, before, after))
        send(a, message(7))
        assert silent(b)
        send(later, message(7))
        b.recv(2000)
        send(b, message(7))
        later.recv(2000)


def test_leases_of_one_port_differ_by_their_tag() -> None:
    with udp(A, A4) as a, udp(B, B4) as b, udp(B, B4) as c:
        install(lease(1, 0, a, b) | lease(3, 255, a, c))
        sent = message(255)
        send(a, sent)
        assert c.recv(2000) == sent
        sent = message(0)
        send(a, sent)
        assert b.recv(2000) == sent
        send(b, message(255))
        send(a, message(1))
        assert silent(a)
        assert drops()[Drop.STRANGER] == 2


def test_a_stranger_gets_nothing_through() -> None:
    with udp(A, A4) as a, udp(A, A4) as stranger, udp(B, B4) as b:
        install(lease(1, 0, a, b))
        send(stranger, message())
        for kind in (0, 5, 255):
            send(a, message(kind=kind))
        send(a, message(size=4000, kind=0))  # three fragments, which connection tracking puts together
        assert silent(b)
        assert drops()[Drop.STRANGER] >= 1
        assert drops()[Drop.FORM] >= 4


def test_what_binds_a_leg_comes_to_the_nodes_own_socket() -> None:
    with udp(A, A4) as a, udp(B, B4) as b, udp(R, HERE4, PORT) as own:
        install(lease(1, 0, a, b))
        sent = MAGIC.to_bytes(4, "big") + os.urandom(60)
        send(a, sent)
        assert own.recvfrom(2000) == (sent, tuple(place(a)[:2]))
        own.sendto(sent, place(a)[:2])
        assert a.recv(2000) == sent
        assert silent(b)
    assert int(run(R, "cat", "/proc/sys/net/netfilter/nf_conntrack_count")) == 0


def test_a_lease_has_its_rate_and_others_have_theirs() -> None:
    with udp(A, A4) as a, udp(B, B4) as b, udp(B, B4) as c:
        install(lease(1, 0, a, b) | lease(3, 1, a, c), replace(FRAME, rate=1000))
        for _ in range(100):
            send(a, message(size=1400))
        over = drops()[Drop.RATE]
        assert 0 < over < 100
        for _ in range(100 - over):
            b.recv(2000)
        assert silent(b)
        send(a, message(1))
        c.recv(2000)


def test_interfaces_that_were_opened_for_the_relay_forward_nothing_else() -> None:
    with udp(A, A4) as a, udp(B, B4) as b:
        install(lease(1, 0, a, b), replace(FRAME, opened=("up1", "up2")))
        a.sendto(message(), place(b)[:2])
        assert silent(b)
        assert drops()[Drop.UNMARKED] == 1
        send(a, message())
        b.recv(2000)


@pytest.mark.parametrize("card", [0, 1])
@pytest.mark.parametrize(("one", "two"), [(A4, B4), (A6, B6)])
def test_ends_write_and_clear_tags_and_checksums_hold(one: str, two: str, card: int) -> None:
    """Both ends' programs see messages without a tag, from a port that stands for the lease. A card makes the
    checksum after the tag was written; without one it is made before."""
    for space in (A, B):
        offload(space, "up0", _STXCSUM, card)
    here = HERE6 if ":" in one else HERE4
    with udp(A, one) as a, udp(B, two) as b, udp(B, two) as c:
        install(lease(1, 0, a, b) | lease(3, 171, a, c))
        relay, alias = Address(here, PORT), 20003
        for space, sock in ((A, a), (B, c)):
            tagged = Tagged(place(sock).port, relay, 171, alias)
            run(space, "nft", "-f", "-", script=tagging.render("pm", [tagged]))
        for kind in (1, 2, 3, 4):
            for sender, receiver in ((a, c), (c, a)):
                sent = message(kind=kind)
                sender.sendto(sent, (here, alias))
                data, source = receiver.recvfrom(2000)
                assert data == sent
                assert source[:2] == (here, alias)
        sent = message()
        send(a, sent)  # the lease without a tag, from the same port
        assert b.recv(2000) == sent
        assert drops()[Drop.STRANGER] == 0


# Run in the relay's namespace: a relay that has given two members a lease. It prints their tickets and keys,
# then a line whenever what it forwards has changed; a line on stdin revokes a member.
RELAY = f"""
import itertools, json, os, sys, trio
from phantommesh.nursery.dataplane.relaying import Relaying
from phantommesh.routing.forwarding import Frame
from phantommesh.routing.leases import Leases, Terms
from ipaddress import IPv4Address

async def main():
    members, out = (b"a" * 16, b"b" * 16), []
    terms = Terms(rate=10**8, quota=10**8)
    leases = Leases(terms, lambda one, two: not out, lambda place: False, os.urandom)
    grants = [leases.ask(*pair, 0, trio.current_time(), tagging=False) for pair in (members, members[::-1])]
    frame = Frame(sys.argv[1], int(sys.argv[2]), IPv4Address("{HERE4}"), None, 10**8, ("up1", "up2"))
    relaying = Relaying(leases, frame)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relaying.run)
        print(json.dumps([[g.ticket.hex(), g.key.reveal().hex()] for g in grants]), flush=True)
        await relaying.settled(lambda forwards: len(forwards) == 2)
        print("forwards", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        out.append(1)
        relaying.changed()
        await relaying.settled(lambda forwards: not forwards)
        print("withdrawn", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


RUN = ["ip", "netns", "exec", R, sys.executable, "-c", RELAY]


def test_a_relay_binds_both_ends_forwards_withdraws_and_leaves_nothing() -> None:
    run(R, "sysctl", "-qw", "net.ipv4.ip_forward=0")
    argv = [*RUN, "pm", str(PORT)]
    with (
        udp(A, A4) as a,
        udp(B, B4) as b,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as relay,
    ):
        assert relay.stdin is not None
        assert relay.stdout is not None
        try:
            legs = json.loads(relay.stdout.readline())
            for sock, (ticket, key) in zip((a, b), legs, strict=True):
                bind(sock, bytes.fromhex(ticket), Secret(bytes.fromhex(key)))
            assert relay.stdout.readline() == "forwards\n"
            send(a, message())
            b.recv(2000)
            send(b, message())
            a.recv(2000)
            print(file=relay.stdin, flush=True)
            assert relay.stdout.readline() == "withdrawn\n"
            send(a, message())
            assert silent(b)
            print(file=relay.stdin, flush=True)
            assert relay.wait(FOREVER) == 0
        finally:
            relay.kill()
            run(R, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    assert FRAME.table not in run(R, "nft", "list", "tables")


def test_the_relay_that_ends_last_closes_the_uplinks() -> None:
    """Two meshes' nodes on one host both relay: what one has opened stays open for the other."""
    run(R, "sysctl", "-qw", "net.ipv4.ip_forward=0")

    def opened() -> str:
        return run(R, "sysctl", "-n", "net.ipv4.conf.up1.forwarding").strip()

    with ExitStack() as stack:
        stack.callback(run, R, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        relays = []
        for device, port in (("pm", PORT), ("qm", PORT + 1)):
            relay = subprocess.Popen(
                [*RUN, device, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(relay.wait)
            stack.callback(relay.kill)
            a, b = stack.enter_context(udp(A, A4)), stack.enter_context(udp(B, B4))
            assert relay.stdout is not None
            legs = json.loads(relay.stdout.readline())
            for sock, (ticket, key) in zip((a, b), legs, strict=True):
                bind(sock, bytes.fromhex(ticket), Secret(bytes.fromhex(key)), port)
            assert relay.stdout.readline() == "forwards\n"
            relays.append((relay, a, b, port))
        assert opened() == "1"
        for left in (1, 0):
            relay, *_ = relays.pop(0)
            relay.communicate("\n\n", FOREVER)
            assert relay.returncode == 0 and opened() == str(left)
            for _, a, b, port in relays:
                send(a, message(), port)
                b.recv(2000)


def bind(sock: socket.socket, ticket: bytes, key: Secret, port: int = PORT) -> None:
    """Bind a leg; the relay's socket may not be there yet."""
    sock.settimeout(SOON)
    for _ in range(100):
        try:
            send(sock, binding.ask(ticket, key), port)
            back = binding.answer(sock.recv(100), ticket, key)
            assert isinstance(back, bytes)
            send(sock, back, port)
            told = binding.answer(sock.recv(100), ticket, key)
        except (TimeoutError, ConnectionRefusedError):
            continue
        assert isinstance(told, binding.Datagram)
        assert told.seen == place(sock)
        break
    sock.settimeout(FOREVER)
