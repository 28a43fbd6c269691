# SPDX-License-Identifier: GPL-3.0-or-later
"""What it costs to read and to write seven WireGuard devices: wgnlpy's classes against bytes packed by hand.

    python -m benchmarks.wgnetlink [--peers 50] [--json] [--quick]

First the kernel itself, if it has WireGuard and this is root: in a network namespace. Then bytes alone: each
message that sets a device is decoded as well, since a dump has the same layout. The figures are CPU time, the
median of the rounds, both codecs in turn. ``--capture FILE`` writes what the kernel answers for the first
device to FILE.

The encoder here is the one that wgnlpy's classes took the place of; it is kept to be measured.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random
from statistics import median

from benchmarks.machine import describe
from phantommesh.config.sections import WireguardSection
from phantommesh.dimensions import DIMENSIONS
from phantommesh.nlattr import NESTED, attribute, pack_message, split_messages
from phantommesh.nursery.host import wgmessages
from phantommesh.nursery.host.kernel import kernel_has_wireguard
from phantommesh.nursery.host.netlink import NetlinkSocket, make_wireguard
from phantommesh.secret import Secret
from phantommesh.wireguard.device import Endpoint, Network, Report, public_key_of
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff
from phantommesh.wireguard.netlink import decode_device, decode_family, encode_get, encode_get_family
from tests.lab import witness


@dataclass(frozen=True)
class Codec:
    """One way to turn changes into messages, and dumps into reports."""

    name: str
    encode: Callable[[int, int, DeviceDiff], list[bytes]]
    decode: Callable[[Sequence[bytes]], Report]


def encode_by_hand(family: int, sequence: int, change: DeviceDiff) -> list[bytes]:
    """Pack a change into one message, by ``struct``; for changes that fit in one."""
    body = struct.pack("=BBH", 1, 1, 0) + attribute(2, change.name.encode() + b"\0")
    if change.private_key is not None:
        body += attribute(3, change.private_key.reveal())
    if change.listen_port is not None:
        body += attribute(6, struct.pack("=H", change.listen_port))
    if change.fwmark is not None:
        body += attribute(7, struct.pack("=I", change.fwmark))
    if change.peers:
        body += attribute(8 | NESTED, b"".join(_peer_by_hand(peer) for peer in change.peers))
    return [pack_message(family, 5, sequence, body)]


def _peer_by_hand(peer: PeerDiff) -> bytes:
    flags = (not peer.create) << 2 | peer.replace_allowed_ips << 1 | peer.remove
    body = attribute(1, peer.public_key) + attribute(3, struct.pack("=I", flags))
    if peer.psk is not None:
        body += attribute(2, peer.psk.reveal())
    if peer.endpoint is not None:
        address = ip_address(peer.endpoint.host)
        port = struct.pack(">H", peer.endpoint.port)
        if address.version == 4:
            body += attribute(4, struct.pack("=H", 2) + port + address.packed + bytes(8))
        else:
            body += attribute(4, struct.pack("=H", 10) + port + bytes(4) + address.packed + bytes(4))
    if peer.keepalive is not None:
        body += attribute(5, struct.pack("=H", peer.keepalive))
    if peer.allowed_ips:
        networks = (attribute(NESTED, _network_by_hand(one)) for one in sorted(peer.allowed_ips, key=str))
        body += attribute(9 | NESTED, b"".join(networks))
    return attribute(NESTED, body)


def _network_by_hand(network: Network) -> bytes:
    return (
        attribute(1, struct.pack("=H", 10 if network.version == 6 else 2))
        + attribute(2, network.network_address.packed)
        + attribute(3, struct.pack("=B", network.prefixlen))
    )


BY_HAND = Codec("by_hand", encode_by_hand, decode_device)
WGNLPY = Codec("wgnlpy", wgmessages.encode_set, witness.decode_device)
CODECS = (BY_HAND, WGNLPY)


def make_changes(peers: int) -> list[DeviceDiff]:
    """What a node sends when it makes its seven devices, each with so many peers."""
    random = Random(1)
    return [
        DeviceDiff(
            f"pm{dimension}",
            private_key=Secret(random.randbytes(32)),
            listen_port=51820 + dimension,
            fwmark=0x5000,
            peers=tuple(
                PeerDiff(
                    public_key_of(Secret(random.randbytes(32))),
                    create=True,
                    psk=Secret(random.randbytes(32)),
                    endpoint=Endpoint("192.0.2.1" if number % 2 else "2001:db8::1", 51820),
                    keepalive=25,
                    allowed_ips=frozenset(
                        {ip_network((0x64400100 + number, 32)), ip_network(((0xFD << 120) + number, 128))}
                    ),
                    replace_allowed_ips=True,
                )
                for number in range(peers)
            ),
        )
        for dimension in range(DIMENSIONS)
    ]


def _in_turn(acts: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of this process's CPU that each takes, the kernel's share included."""
    taken: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(rounds):
        for name, act in acts.items():
            begin = time.process_time()
            act()
            taken[name].append(1000 * (time.process_time() - begin))
    return {name: round(median(times), 2) for name, times in taken.items()}


def bytes_alone(peers: int, rounds: int) -> dict[str, float]:
    """Encode seven changes and decode seven dumps, without a kernel."""
    changes = make_changes(peers)
    sent = [b"".join(wgmessages.encode_set(30, 1, change)) for change in changes]
    dumps = [[payload for *_, payload in split_messages(data)] for data in sent]
    if any(BY_HAND.decode(dump) != WGNLPY.decode(dump) for dump in dumps):
        raise SystemExit("error: the two read different things in one dump")
    write = {f"{codec.name}_encode_ms": _each(partial(codec.encode, 30, 1), changes) for codec in CODECS}
    read = {f"{codec.name}_decode_ms": _each(codec.decode, dumps) for codec in CODECS}
    return _in_turn(write, rounds) | _in_turn(read, rounds)


def _each(act: Callable[..., object], given: Sequence[object]) -> Callable[[], object]:
    return lambda: [act(one) for one in given]


class _Kernel:
    """The kernel's WireGuard over one socket."""

    def __init__(self, netlink: NetlinkSocket) -> None:
        self._netlink = netlink
        [(_, _, answer)] = netlink.exchange(encode_get_family(1))
        self.family = decode_family(answer)

    def dump(self, name: str) -> list[bytes]:
        return [payload for _, _, payload in self._netlink.exchange(encode_get(self.family, 2, name))]

    def raw(self, name: str) -> Iterator[bytes]:
        """The messages of a dump as the kernel sent them, but for its sequence number and our port."""
        for payload in self.dump(name):
            yield pack_message(self.family, 2, 2, payload) + bytes(-len(payload) % 4)

    def write(self, codec: Codec, changes: Sequence[DeviceDiff]) -> None:
        for change in changes:
            for message in codec.encode(self.family, 3, change):
                self._netlink.exchange(message)

    def read(self, codec: Codec, names: Sequence[str]) -> list[Report]:
        return [codec.decode(self.dump(name)) for name in names]


def in_the_kernel(peers: int, rounds: int, capture: str | None) -> dict[str, float]:
    """Write and read seven devices in the network namespace that this process is in."""
    changes = make_changes(peers)
    names = [change.name for change in changes]
    for name in names:
        make_wireguard(name, 1420)
    with NetlinkSocket(16) as netlink:  # NETLINK_GENERIC
        kernel = _Kernel(netlink)
        found = _in_turn({f"{c.name}_write_ms": partial(kernel.write, c, changes) for c in CODECS}, rounds)
        found |= _in_turn({f"{c.name}_read_ms": partial(kernel.read, c, names) for c in CODECS}, rounds)
        reports = kernel.read(BY_HAND, names)
        if reports != kernel.read(WGNLPY, names) or any(len(report.peers) != peers for report in reports):
            raise SystemExit("error: the two read different things, or not what was written")
        if capture is not None:
            Path(capture).write_bytes(b"".join(kernel.raw(names[0])))
    return found


def _ratios(found: dict[str, float]) -> dict[str, float]:
    """How many times as long wgnlpy takes."""
    return {
        f"ratio_{doing}": round(found[f"wgnlpy_{doing}_ms"] / found[f"by_hand_{doing}_ms"], 1)
        for doing in ("write", "read", "encode", "decode")
        if f"wgnlpy_{doing}_ms" in found
    }


def main() -> None:
    """Print the figures; with --json one document on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wgnetlink")
    parser.add_argument("--peers", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--capture", metavar="FILE")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    with_kernel = given.here or (os.geteuid() == 0 and kernel_has_wireguard())
    if with_kernel and not given.here:
        argv = ["unshare", "--net", sys.executable, "-m", "benchmarks.wgnetlink", "--here", *sys.argv[1:]]
        sys.exit(subprocess.run(argv, check=False).returncode)
    rounds = 5 if given.quick else 25
    found: dict[str, float] = {}
    if with_kernel:
        found |= in_the_kernel(given.peers, rounds, given.capture)
    found |= bytes_alone(given.peers, rounds)
    found |= _ratios(found)
    interval = WireguardSection().reconcile_seconds
    reading = found.get("wgnlpy_read_ms", found["wgnlpy_decode_ms"])
    found["wgnlpy_core_percent"] = round(reading / interval / 10, 2)
    print(f"7 devices of {given.peers} peers:", ", ".join(f"{k} {v:g}" for k, v in found.items()))
    if not with_kernel:
        print("without a kernel: it has no WireGuard here, or this is not root")
    if given.json:
        document = {"name": "wgnetlink", "machine": describe(), "runs": [found], "peers": given.peers}
        print(json.dumps(document | found))


if __name__ == "__main__":
    main()
