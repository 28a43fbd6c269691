# SPDX-License-Identifier: GPL-3.0-or-later
"""Datagrams of this node from and to WireGuard's own UDP ports, which WireGuard holds.

What a NAT or a relay knows of a node in a dimension is the mapping of WireGuard's port. So what finds a way
for WireGuard has to use that very port. A raw socket for each address family sends from it, and sees the
datagrams that come to it: a classic BPF program in the kernel lets through those that begin with a magic
number of ours, and nothing else. WireGuard gets these as well and drops them in silence, as their type is
none of its own: the kernel's, wireguard-go and boringtun all do.

The kernel copies the head of each UDP packet of the host for a raw socket, before the program says no. So
the sockets are there while somebody needs them (`keep`) or has sent something within `IDLE`.

A datagram has `SIZE` bytes. Its magic says for whom it is: who takes such datagrams calls `listen` before
`run`. The raw sockets need CAP_NET_RAW; without it nothing is sent and nothing is heard, `fault` says so, and
the node goes on.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog
import trio

from phantommesh.checksum import checksum
from phantommesh.endpoint import Address
from phantommesh.faults import Fault, FaultKind
from phantommesh.nursery.bell import Bell
from phantommesh.nursery.sockets.udp import mark_outer
from phantommesh.nursery.unexpected import left_out
from phantommesh.routing.knocks import SIZE

NO_RAW_SOCKET: Final = FaultKind("no-raw-socket", "medium")

# linux/in.h, linux/in6.h, linux/icmpv6.h and asm-generic/socket.h; Python 3.11 has no names for them.
_IP_TTL, _IP_PKTINFO, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 2, 8, 10, 2
_IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_DO, _IPV6_CHECKSUM, _IPV6_HOPLIMIT = 23, 2, 7, 52
_SO_ATTACH_FILTER = 26

# linux/bpf_common.h: the instructions that are used here.
_LOAD_HALF = 0x28  # BPF_LD | BPF_H | BPF_ABS
_LOAD_WORD_X, _LOAD_HALF_X = 0x40, 0x48  # BPF_LD | BPF_{W,H} | BPF_IND
_SET_X, _SET_X_TO_IP_HEADER = 0x01, 0xB1  # BPF_LDX | BPF_W | BPF_IMM; BPF_LDX | BPF_B | BPF_MSH
_JUMP_EQUAL, _JUMP_ANY, _RETURN = 0x15, 0x45, 0x06  # BPF_JMP | BPF_{JEQ,JSET} | BPF_K; BPF_RET | BPF_K

_UDP_HEADER: Final = struct.Struct("!HHHH")  # RFC 768
_CHECKSUM_AT: Final = 6
_FRAGMENT: Final = 0x3FFF  # RFC 791: more fragments, or an offset
_LARGEST: Final = 60 + _UDP_HEADER.size + SIZE  # with the longest header of IPv4

# Tuning.
IDLE: Final = 60.0  # s that the sockets stay after the last datagram that was sent
RECEIVE_BUFFER: Final = 1 << 18  # bytes; some 300 datagrams as the kernel counts them
_BURST: Final = 64  # datagrams read before other tasks get a turn

BROKEN = "a datagram at a port of WireGuard was left out after an unexpected error"

Instruction = tuple[int, int, int, int]  # linux/filter.h, struct sock_filter: code, jt, jf, k
Handle = Callable[[int, Address, bytes], None]

log = structlog.get_logger("phantommesh.wgports")


def program(ports: Iterable[int], magics: Iterable[int], *, ipv6: bool) -> list[Instruction]:
    """The classic BPF program that lets through UDP datagrams of `SIZE` bytes to one of these ports which
    begin with one of these numbers. A raw socket of IPv4 sees the packet from IP's header on, one of IPv6
    from UDP's."""
    fits = (
        (2, _LOAD_HALF_X, sorted(set(ports))),
        (4, _LOAD_HALF_X, [_UDP_HEADER.size + SIZE]),
        (_UDP_HEADER.size, _LOAD_WORD_X, sorted(set(magics))),
    )
    refuse = -1  # a jump to the last instruction
    code: list[Instruction] = [(_SET_X, 0, 0, 0)]
    if not ipv6:  # fragments were put together before; what is left of them is none of ours
        code = [(_LOAD_HALF, 0, 0, 6), (_JUMP_ANY, refuse, 0, _FRAGMENT), (_SET_X_TO_IP_HEADER, 0, 0, 0)]
    for offset, load, values in fits:
        if not values:
            return [(_RETURN, 0, 0, 0)]
        code.append((load, 0, 0, offset))
        for left, value in zip(reversed(range(len(values))), values, strict=True):
            code.append((_JUMP_EQUAL, left, 0 if left else refuse, value))
    code += [(_RETURN, 0, 0, _LARGEST), (_RETURN, 0, 0, 0)]
    last = len(code) - 1

    def reach(jump: int, at: int) -> int:
        return last - at - 1 if jump == refuse else jump

    return [(what, reach(yes, at), reach(no, at), k) for at, (what, yes, no, k) in enumerate(code)]


class WireguardPorts:
    """The raw sockets. ``dropped`` counts what was not sent and what was not understood; ``forbids`` says of
    which addresses nothing is taken and to which nothing is sent, as for the control port."""

    def __init__(self, forbids: Callable[[str], bool] = lambda host: False) -> None:
        self.dropped: Counter[str] = Counter()
        self._forbids = forbids
        self._ports: tuple[int, ...] = ()
        self._handles: dict[int, Handle] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._running = self._refused = False
        self._needed: set[str] = set()
        self._used = 0.0
        self._opened = Bell()

    @property
    def able(self) -> bool:
        """Whether datagrams can be sent from these ports."""
        return self._running and not self._refused

    @property
    def open(self) -> bool:
        """Whether datagrams are heard now."""
        return bool(self._sockets)

    def keep(self, who: str, needed: bool) -> None:
        """Hear datagrams from now on, because one part of the node needs it; or it does no more."""
        (self._needed.add if needed else self._needed.discard)(who)
        if needed:
            self._open()

    def listen(self, magic: int, handle: Handle) -> None:
        """Have ``handle`` called with the dimension, the source and the bytes of each datagram that begins
        with these four bytes, as a number. Call it before `run`."""
        self._handles[magic] = handle

    def open_ports(self, ports: Sequence[int]) -> None:
        """These are the UDP ports of WireGuard now, by dimension."""
        self._ports = tuple(ports)
        for family, sock in self._sockets.items():
            self._filter(sock, family)

    def send(self, dimension: int, destination: Address, payload: bytes, hops: int | None = None) -> bool:
        """Send a datagram of `SIZE` bytes from WireGuard's port of a dimension. Return whether the kernel
        took it; what it did not take is counted. ``destination`` has passed the filter of addresses.
        ``hops``: let no more than so many routers pass it on."""
        if self._forbids(destination.host):
            self.dropped["wgport-forbidden"] += 1
            return False
        self._open()
        self._used = trio.current_time()
        six = ":" in destination.host
        sock = self._sockets.get(socket.AF_INET6 if six else socket.AF_INET)
        try:
            if sock is None or dimension >= len(self._ports):
                raise OSError
            source, length = self._ports[dimension], _UDP_HEADER.size + len(payload)
            if six:  # the kernel sums
                packet = _UDP_HEADER.pack(source, destination.port, length, 0) + payload
                limit = (
                    [] if hops is None else [(socket.IPPROTO_IPV6, _IPV6_HOPLIMIT, struct.pack("=i", hops))]
                )
                sock.sendmsg([packet], limit, 0, (destination.host, 0))
            else:
                here = _source(destination.host)
                there = socket.inet_aton(destination.host)
                bare = _UDP_HEADER.pack(source, destination.port, length, 0) + payload
                packet = bare[:_CHECKSUM_AT] + _checksum(here, there, bare) + bare[_UDP_HEADER.size :]
                information = struct.pack("=i4s4s", 0, here, bytes(4))  # linux/in.h, struct in_pktinfo
                ancillary = [(socket.IPPROTO_IP, _IP_PKTINFO, information)]
                if hops is not None:
                    ancillary.append((socket.IPPROTO_IP, _IP_TTL, struct.pack("=i", hops)))
                sock.sendmsg([packet], ancillary, 0, (destination.host, 0))
        except OSError:
            self.dropped["wgport-unsent"] += 1
            return False
        return True

    async def run(self) -> None:
        """Hand each datagram to whoever listens for its kind, until cancelled."""
        self._running, self._used = True, trio.current_time()
        try:
            self._open()  # to know whether it may
            while True:
                if not self._sockets:
                    await self._opened.wait()
                await self._serve()
                self._close()
        finally:
            self._running = False
            self._close()

    async def _serve(self) -> None:
        """Receive while that is needed."""
        async with trio.open_nursery() as nursery:
            for family, sock in self._sockets.items():
                nursery.start_soon(self._receive, sock, family)
            while self._needed or trio.current_time() < self._used + IDLE:  # noqa: ASYNC110  # time ends it
                await trio.sleep(IDLE)
            nursery.cancel_scope.cancel()

    def faults(self) -> list[Fault]:
        """Return what is wrong."""
        if not self._refused:
            return []
        return [
            NO_RAW_SOCKET.fault(
                "this node finds no way through NATs and uses no relays: it may open no raw socket",
                "give the node the capability CAP_NET_RAW",
            )
        ]

    def _open(self) -> None:
        if self._sockets or not self.able:
            return
        for family in (socket.AF_INET, socket.AF_INET6):
            try:
                sock = _raw(family)
            except PermissionError:
                self._refused = True
                log.warning("no raw socket", fix=self.faults()[0].fix)
                return
            except OSError as error:  # many containers have no IPv6
                log.debug("no raw socket of a family", family=family, error=str(error))
                continue
            self._filter(sock, family)
            self._sockets[family] = sock
        if self._sockets:
            self._opened.ring()

    def _close(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        self._sockets = {}

    def _filter(self, sock: socket.socket, family: int) -> None:
        code = program(self._ports, self._handles, ipv6=family == socket.AF_INET6)
        packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
        held = ctypes.create_string_buffer(packed)
        # linux/filter.h, struct sock_fprog: the kernel copies what it points at.
        sock.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(held))
        )

    async def _receive(self, sock: socket.socket, family: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(_BURST):
                try:
                    packet, source = sock.recvfrom(_LARGEST)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # an ICMP error for something sent earlier
                header = (packet[0] & 15) * 4 if family == socket.AF_INET and packet else 0
                self._take(packet[header:], source[0].partition("%")[0])

    def _take(self, packet: bytes, host: str) -> None:
        """Take UDP's header and what follows."""
        payload = packet[_UDP_HEADER.size :]
        if len(payload) != SIZE:  # came before the filter was there
            self.dropped["wgport-malformed"] += 1
            return
        sender, port, _, _ = _UDP_HEADER.unpack_from(packet)
        handle = self._handles.get(int.from_bytes(payload[:4], "big"))
        if handle is None or port not in self._ports or sender == 0:
            self.dropped["wgport-malformed"] += 1
        elif self._forbids(host):
            self.dropped["wgport-source-forbidden"] += 1  # an answer would go there
        else:
            with left_out(self.dropped, "wgport-broken", BROKEN, source=host):
                handle(self._ports.index(port), Address(host, sender), payload)


def _raw(family: int) -> socket.socket:
    """Make a raw socket of UDP. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_UDP)
    try:
        sock.setblocking(False)
        mark_outer(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, _CHECKSUM_AT)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_DO)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
    except BaseException:
        sock.close()
        raise
    return sock


def _source(host: str) -> bytes:
    """The IPv4 address that the kernel would send from to another. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        mark_outer(asking)
        asking.connect((host, 9))  # RFC 863; nothing is sent
        return socket.inet_aton(asking.getsockname()[0])


def _checksum(source: bytes, destination: bytes, datagram: bytes) -> bytes:
    """UDP's checksum over IPv4 (RFC 768), of a datagram with zeros for it."""
    header = source + destination + struct.pack("!HH", socket.IPPROTO_UDP, len(datagram))
    return (checksum(header + datagram) or 0xFFFF).to_bytes(2, "big")
