# SPDX-License-Identifier: GPL-3.0-or-later
"""Floods and scans of a machine that knows nothing of the mesh: junk to the control port, datagrams to
WireGuard's ports, from its own address or from forged ones. A script for a namespace:

``python -m tests.attacks.junk own|forged TARGET CONTROL FIRST_WIREGUARD PACE SECONDS [FORGED...]``

``own`` floods and scans from this machine's address, ``forged`` from the addresses given, each written as
``ADDRESS`` or ``NETWORK/BITS`` (random ones of it). Prints the Unix time at which it began, and what it sent.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, ip_network

PORTS = 7
SCAN_EVERY = 20  # datagrams of the flood for each of the scan


def datagrams(control: int, first: int, rng: random.Random) -> Iterator[tuple[int, bytes]]:
    """Ports and payloads without end: junk to the control port, and a scan of WireGuard's ports between."""
    count = 0
    while True:
        count += 1
        yield control, rng.randbytes(rng.randrange(20, 400))
        if count % SCAN_EVERY == 0:
            yield first + rng.randrange(PORTS), b"\0" * 8


def packet(source: str, target: str, port: int, payload: bytes, rng: random.Random) -> bytes:
    """An IPv4 packet with UDP in it; no checksum, as RFC 768 allows."""
    udp = struct.pack("!HHHH", rng.randrange(1024, 65536), port, 8 + len(payload), 0) + payload
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + addresses + udp


def main(words: Sequence[str]) -> None:
    """Send at the pace given."""
    how, target, control, first, pace, seconds, *forged = words
    rng = random.Random(1)
    networks = [ip_network(text) for text in forged]
    sock = (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        if how == "own"
        else socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    )
    begun, sent, refused = time.monotonic(), 0, 0
    print(json.dumps({"began": time.time()}), flush=True)
    for port, payload in datagrams(int(control), int(first), rng):
        now = time.monotonic()
        if now >= begun + float(seconds):
            break
        if sent >= (now - begun) * float(pace):
            time.sleep(0.002)
        sent += 1
        try:
            if how == "own":
                sock.sendto(payload, (target, port))
            else:
                network = rng.choice(networks)
                assert isinstance(network, IPv4Network)
                source = str(network[rng.randrange(network.num_addresses)])
                sock.sendto(packet(source, target, port, payload, rng), (target, 0))
        except OSError:
            refused += 1
    print(json.dumps({"sent": sent, "refused": refused}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
