# SPDX-License-Identifier: GPL-3.0-or-later
"""Servers that answer, and clients that try them, as programs of their own for a namespace.

``serve HOST PORT...`` echoes what comes by TCP and UDP, in both families; ``try`` reads a JSON list of
[host, protocol, port] and prints which of them answered; ``stream HOST PORT...`` sends numbered datagrams to
the ports in turn until its stdin closes, and prints by port how many it sent and how many came back.

``hold PORT`` takes one TCP connection in each family, and ``call HOST PORT`` makes one; ``listen HOST PORT``
too, and sends nothing. The others send numbers all the time. Each answers a line of its stdin with a line:
how many bytes have come by then. A line ``reset`` has it send a RST besides, of which its own connection
knows nothing (IPv4). ``forget`` empties the kernel's list of connections.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import struct
import sys
import termios
from typing import cast

PATIENCE = 2.0  # s that an answer may take; a denied one never comes
PACE = 0.002  # s between datagrams of a stream
TCP, UDP = "tcp", "udp"


async def serve(ports: list[int]) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(64))
        await writer.drain()
        writer.close()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.DatagramTransport", transport)  # Python 3.11's is of another class

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(data, addr)

    loop = asyncio.get_running_loop()
    for port in ports:
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            await asyncio.start_server(echo, host, port, family=family)
            sock = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            sock.bind((host, port))
            await loop.create_datagram_endpoint(Echo, sock=sock)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def attempt(host: str, protocol: str, port: int) -> bool:
    try:
        async with asyncio.timeout(PATIENCE):
            if protocol == TCP:
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(b"hello")
                answer = await reader.read(64)
                writer.close()
                return answer == b"hello"
            return await _ask(host, port)
    except (OSError, TimeoutError):
        return False


async def _ask(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (host, port))
        await loop.sock_sendall(sock, b"hello")
        return await loop.sock_recv(sock, 64) == b"hello"


async def try_all(wanted: list[tuple[str, str, int]]) -> None:
    found = await asyncio.gather(*(attempt(*one) for one in wanted))
    print(json.dumps(found))


async def stream(host: str, ports: list[int]) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sent, came = dict.fromkeys(ports, 0), {port: set[int]() for port in ports}
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    socks = {port: socket.socket(family, socket.SOCK_DGRAM) for port in ports}

    def hear(port: int) -> None:
        came[port].add(int.from_bytes(socks[port].recv(64), "big"))

    for port, sock in socks.items():
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.connect((host, port))
        loop.add_reader(sock, hear, port)
    print("ready", flush=True)
    while not ended.is_set():
        for port, sock in socks.items():
            sent[port] += 1
            sock.send(sent[port].to_bytes(8, "big"))
        await asyncio.sleep(PACE)
    await asyncio.sleep(PATIENCE)
    print(json.dumps({port: [sent[port], len(came[port])] for port in ports}))


class Held:
    """TCP connections that are held open, and what has come by them."""

    def __init__(self) -> None:
        self.came = 0
        self._tasks, self._writers = set[asyncio.Task[None]](), list[asyncio.StreamWriter]()

    def take(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, quiet: bool = False
    ) -> None:
        self._writers.append(writer)  # one that nobody has is closed
        self._tasks.add(asyncio.create_task(self._hear(reader)))
        if not quiet:
            self._tasks.add(asyncio.create_task(self._send(writer)))

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(4096):
            self.came += len(data)

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        while not writer.transport.is_closing():
            if writer.transport.get_write_buffer_size() < 4096:
                writer.write(b"12345678")
            await asyncio.sleep(10 * PACE)

    async def tell(self) -> None:
        """Say that it is ready, and how much has come as often as somebody asks."""
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            if line == "reset\n":
                for writer in self._writers:
                    send_reset(writer.get_extra_info("socket"))
            print(self.came, flush=True)


async def hold(port: int) -> None:
    held = Held()
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        await asyncio.start_server(held.take, host, port, family=family)
    await held.tell()


async def call(host: str, port: int, *, quiet: bool) -> None:
    held = Held()
    held.take(*await asyncio.open_connection(host, port), quiet=quiet)
    await held.tell()


def send_reset(sock: socket.socket) -> None:
    """Send a RST that belongs to a connection, past the connection: RFC 9293, section 3.1."""
    repair, queue, of_sender, number = 19, 20, 2, 21  # TCP_REPAIR and so on, linux/tcp.h
    sock.setsockopt(socket.IPPROTO_TCP, repair, 1)
    sock.setsockopt(socket.IPPROTO_TCP, queue, of_sender)
    written = sock.getsockopt(socket.IPPROTO_TCP, number)
    (unheard,) = struct.unpack("=i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))
    sequence = written - unheard & 0xFFFFFFFF  # nf_conntrack_proto_tcp.c takes what is acknowledged, exactly
    sock.setsockopt(socket.IPPROTO_TCP, repair, -1)  # off, and no probe of the window
    (here, port), (there, their_port) = sock.getsockname(), sock.getpeername()
    segment = struct.pack("!HHIIBBHHH", port, their_port, sequence, 0, 5 << 4, 0x04, 0, 0, 0)
    ends = socket.inet_aton(here) + socket.inet_aton(there)
    pseudo = ends + struct.pack("!BBH", 0, socket.IPPROTO_TCP, len(segment))
    total = sum(struct.unpack("!16H", pseudo + segment))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
        raw.sendto(segment[:16] + struct.pack("!H", checksum) + segment[18:], (there, 0))


def forget() -> None:
    """Empty the list of connections: linux/netfilter/nfnetlink_conntrack.h."""
    netfilter = 12  # NETLINK_NETFILTER, linux/netlink.h
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netfilter) as netlink:
        delete, flags = 1 << 8 | 2, 1 | 4  # IPCTNL_MSG_CT_DELETE; NLM_F_REQUEST, NLM_F_ACK
        netlink.send(struct.pack("=IHHIIBBH", 20, delete, flags, 1, 0, socket.AF_UNSPEC, 0, 0))
        (code,) = struct.unpack_from("=i", netlink.recv(4096), 16)
        if code:
            raise OSError(-code, "the connections are not forgotten")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", *ports]:
            asyncio.run(serve([int(port) for port in ports]))
        case ["try"]:
            asyncio.run(try_all(json.loads(sys.stdin.read())))
        case ["stream", host, *ports]:
            asyncio.run(stream(host, [int(port) for port in ports]))
        case ["hold", port]:
            asyncio.run(hold(int(port)))
        case ["call" | "listen" as how, host, port]:
            asyncio.run(call(host, int(port), quiet=how == "listen"))
        case ["forget"]:
            forget()
        case _:
            sys.exit(2)
