# SPDX-License-Identifier: GPL-3.0-or-later
"""INITs in a member's name, by one who holds an admission secret and no more: a revoked node, or an insider.

Against `Links` under the virtual clock, and as a script against a node in a namespace:
``python -m tests.attacks.flooding NODE_ID_OF_TARGET NAME_CLAIMED HOST PORT INITS_A_SECOND SECONDS
ADDRESS...`` with the admission secret on standard input, in hexadecimal. The script prints what it sent and
what was answered.
"""

from __future__ import annotations

import json
import os
import random
import selectors
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from phantommesh.endpoint import Address
from phantommesh.kem import CryptographyKem
from phantommesh.link import keys, wire
from phantommesh.link.handshake import Initiator
from phantommesh.link.wire import Kind, Mode
from phantommesh.secret import Secret

COOKIE_LIFE = 200.0  # s that one is used for


@dataclass
class Flood:
    """Makes INITs to ``target`` in ``claimed``'s name. One KEM key serves them all: nobody verifies it, and
    it is what an attacker would save on."""

    admission: Secret
    target: bytes
    claimed: bytes
    random: Callable[[int], bytes]
    cookies: dict[Address, tuple[bytes, float]] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.mac_out = keys.member_mac_key(self.admission, self.target)
        self.init = Initiator(
            kem=CryptographyKem(), random=self.random, mode=Mode.MEMBER, node_id=self.claimed, epoch=1,
            credential=bytes(32), interface_hash=bytes(32),
        ).init  # fmt: skip

    def datagrams(self, source: Address, now: float) -> list[bytes]:
        """The datagrams to send from an address: a whole INIT, or a request for a cookie where there is none
        yet."""
        cookie, since = self.cookies.get(source, (b"", float("-inf")))
        if now > since + COOKIE_LIFE:
            self.sent["cookie request"] += 1
            return [wire.CookieRequest(Mode.MEMBER, self.random(8), self.claimed).encode(self.mac_out)]
        self.sent["init"] += 1
        init = replace(self.init, session=self.random(8), nonce=self.random(32))
        cut = wire.fragments(Kind.INIT, Mode.MEMBER, init.session, init.encode())
        return [fragment.encode(self.mac_out, cookie) for fragment in cut]

    def receive(self, datagram: bytes, source: Address, now: float) -> None:
        """Take what came back to an address."""
        answer = wire.decode_untrusted(datagram)
        self.sent[f"got {type(answer).__name__}"] += 1
        if isinstance(answer, wire.CookieReply):
            self.cookies[source] = answer.cookie, now


def main(words: Sequence[str]) -> None:
    """Flood from the addresses given, all of them this machine's, at the pace given."""
    target, claimed, host, port, pace, seconds, *addresses = words
    flood = Flood(
        Secret(bytes.fromhex(sys.stdin.readline())), bytes.fromhex(target), bytes.fromhex(claimed), os.urandom
    )
    selector, there = selectors.DefaultSelector(), (host, int(port))
    sockets: list[tuple[Address, socket.socket]] = []
    for address in addresses:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((address, 0))
        source = Address(*sock.getsockname())
        sockets.append((source, sock))
        selector.register(sock, selectors.EVENT_READ, (source, sock))
    rng = random.Random(1)
    begun = time.monotonic()
    inits = 0
    while (now := time.monotonic()) < begun + float(seconds):
        for key, _ in selector.select(0.001):
            source, sock = key.data
            try:
                flood.receive(sock.recv(2048), source, now)
            except BlockingIOError:
                continue
        while inits < (now - begun) * float(pace):
            inits += 1
            source, sock = rng.choice(sockets)
            for datagram in flood.datagrams(source, now):
                try:
                    sock.sendto(datagram, there)
                except OSError:
                    flood.sent["unsent"] += 1
    print(json.dumps(flood.sent))


if __name__ == "__main__":
    main(sys.argv[1:])
