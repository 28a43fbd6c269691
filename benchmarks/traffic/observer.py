# SPDX-License-Identifier: GPL-3.0-or-later
"""Watch interfaces as one who taps their cables: the time, length and direction of WireGuard's packets.

    python -m benchmarks.traffic.observer CLIENT_NUMBER FILE INTERFACE...

A process of its own, in the namespace of the lab's segments. It says "ready" and writes, when stdin ends, one
record a packet. Fails if the kernel had to drop one. Nothing of a packet but what is said above is kept.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from pathlib import Path

from benchmarks.traffic.traces import Packet
from phantommesh.config.sections import WireguardSection
from phantommesh.dimensions import DIMENSIONS

# linux/if_ether.h, linux/if_packet.h, asm-generic/socket.h
ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_STATISTICS = 6
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35

ETHERNET = 14  # bytes
IPV4 = b"\x08\x00"
UDP = 17
BUFFER = 64 * 1024 * 1024  # bytes; a packet takes about 1 kB of it
PORTS = range(WireguardSection().base_port, WireguardSection().base_port + DIMENSIONS)

RECORD = struct.Struct("<qhB")  # Packet


def parse(frame: bytes, client: bytes) -> int:
    """Return the length of the IP packet in an Ethernet frame, negative if it goes to the client.

    0 if it is none of WireGuard's. ``frame`` may be cut off after 42 bytes.
    """
    if len(frame) < ETHERNET + 28 or frame[12:14] != IPV4 or frame[ETHERNET] != 0x45 or frame[23] != UDP:
        return 0
    length, source, destination = struct.unpack_from("!2xH8x4s4s", frame, ETHERNET)
    ports = struct.unpack_from("!HH", frame, ETHERNET + 20)
    if not any(port in PORTS for port in ports) or client not in (source, destination):
        return 0
    return int(length) if source == client else -int(length)


def read_all(file: Path) -> list[Packet]:
    """Read what was written, in the order of time."""
    return sorted(Packet(*record) for record in RECORD.iter_unpack(file.read_bytes()))


def main() -> None:
    """Watch until stdin ends."""
    number, file, *interfaces = sys.argv[1:]
    taps = {}
    poll = select.poll()
    for path, interface in enumerate(interfaces):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        tap.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        tap.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        tap.bind((interface, 0))
        tap.setblocking(False)
        taps[tap.fileno()] = (tap, path, bytes((10, 201, path, int(number))))
        poll.register(tap, select.POLLIN)
    poll.register(sys.stdin, select.POLLIN | select.POLLHUP)
    print("ready", flush=True)
    with Path(file).open("wb") as out:
        while True:
            ready = [fd for fd, _ in poll.poll()]
            for fd in ready:
                if fd in taps:
                    out.write(_drain(*taps[fd]))
            if ready == [sys.stdin.fileno()]:
                break
    dropped = 0
    for tap, _, _ in taps.values():
        dropped += struct.unpack("II", tap.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
    if dropped:
        raise SystemExit(f"the kernel dropped {dropped} packets before they were seen")


def _drain(tap: socket.socket, path: int, client: bytes) -> bytes:
    found = bytearray()
    for _ in range(256):  # then the others' turn
        try:
            frame, controls, _, _ = tap.recvmsg(ETHERNET + 28, 64)
        except BlockingIOError:
            break
        if size := parse(frame, client):
            seconds, nanoseconds = struct.unpack("qq", controls[0][2])
            found += RECORD.pack(seconds * 1_000_000 + nanoseconds // 1000, size, path)
    return bytes(found)


if __name__ == "__main__":
    main()
