# SPDX-License-Identifier: GPL-3.0-or-later
"""What one finished handshake costs a node in a mesh of some size: from the link's effects to what the seven
WireGuard interfaces should be, the scatterer's peers and the measured paths. CPU time.

    python -m benchmarks.node [--peers 10,100,1000] [--json] [--quick]

Two ends shake hands in memory, and one of them has so many other peers. Its `Install` effects are carried out
as `Node` does; only that is timed. Beside it, once a size: ``all`` is what it costs to make the interfaces
of all peers anew, as after a change of the roster, and ``pass`` what it costs to read all seven devices out
once. The reconciler reads every peer of WireGuard once a pass anyhow, however many handshakes have finished
before that pass.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from hashlib import sha3_256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from random import Random

import trio

from benchmarks.machine import describe
from phantommesh.config.sections import ScatterSection, WireguardSection
from phantommesh.dimensions import ALL, DIMENSIONS, interface_names
from phantommesh.endpoint import Address, parse_endpoint
from phantommesh.kem import CryptographyKem
from phantommesh.link.effects import Effect, Install, Opened, Send, Sign
from phantommesh.link.machine import Links
from phantommesh.node.peers import Peers
from phantommesh.nursery.dataplane.paths import PathDriver
from phantommesh.nursery.dataplane.scattering import Scattering
from phantommesh.paths.fitting import Fitting
from phantommesh.paths.machine import Paths
from phantommesh.records.record import NodeRecord, SignedRecord
from phantommesh.records.roster import Entry, Roster
from phantommesh.secret import Secret
from phantommesh.trust.certificates import Member, Role
from phantommesh.trust.identity import Identity, NodeId
from phantommesh.trust.issuing import make_root
from phantommesh.trust.revocations import Revocations
from phantommesh.wireguard.desired import OwnSide

FLAT = 2.0  # the cost in the largest mesh over that in the smallest
WALL = 1_800_000_000.0  # unix time
PAUSE = 90.0  # s between handshakes
PORTS = tuple(range(51820, 51820 + DIMENSIONS))


def _entry(number: int, identity: Identity) -> Entry:
    """A member as a verified record would give it. Nothing here looks at the signature again."""
    node_id = identity.node_id if number < 2 else NodeId(sha3_256(b"node %d" % number).digest()[:16])
    four, six = IPv4Address(0x64400000 + number), IPv6Address((0xFD << 120) + number)
    member = Member(node_id, f"n{number}", Role.NODE, four, six, identity.public_key, WALL - 1, WALL + 1e6)
    keys = tuple(sha3_256(b"key %d %d" % (number, i)).digest() for i in range(DIMENSIONS))
    proofs = (b"proved",) * DIMENSIONS
    record = NodeRecord(node_id, 1, (f"192.0.2.{number % 250}:51800",), keys, PORTS, "bench", proofs)
    return Entry(member, record, SignedRecord(b"", b"", b"", b""), node_id, None)


def _where(entry: Entry) -> tuple[Address, ...]:
    return tuple(Address(*parse_endpoint(text)) for text in entry.record.control)


class End:
    """One node: its links, its peers, and what follows them."""

    def __init__(self, identity: Identity, entries: list[Entry], now: float) -> None:
        self.identity, self.me = identity, next(e for e in entries if e.member.node_id == identity.node_id)
        self.links = Links(
            node_id=identity.node_id, wg_keys=self.me.record.wg_keys, admission=Secret(b"bench" * 8),
            kem=CryptographyKem(), random=os.urandom, now=now, agree=lambda dimension, theirs: b"x" * 32,
        )  # fmt: skip
        settings, names = WireguardSection(), interface_names("pm")
        self.scattering = Scattering(
            ScatterSection(), device="pm", names=names, kind="tun", mtu=1420, ipv6=lambda: True,
            me=identity.node_id,
            addresses=lambda: (self.me.member.ip4, self.me.member.ip6), routed=lambda: (), interval=2.0,
        )  # fmt: skip
        paths = Paths(random=Random(1), interval=1.0)
        self.paths = PathDriver(
            paths, self.scattering, port=51801, names=names, address=lambda: self.me.member.ip4,
            fitting=Fitting(paths, random=Random(1), largest=1420),
        )  # fmt: skip
        self.peers = Peers(identity.node_id, self.links, settings, ScatterSection(), _where)
        root = make_root(identity, "bench", WALL - 1)
        roster = Roster(root, Revocations(root))
        for entry in entries:
            roster.keep(entry, WALL)
        self.peers.look(roster, WALL, revoked=False)
        self.links.set_peers(self.peers.auths(now, WALL), now)
        self.spent, began = 0.0, time.process_time()
        self._arrange()
        self.arranged = time.process_time() - began

    def _arrange(self) -> None:
        """Make all of it anew, as `Node` does when the roster changed."""
        networks = IPv4Network("100.64.0.0/10"), IPv6Network("fd00::/48")
        private = tuple(Secret(bytes([i + 1]) * 32) for i in range(DIMENSIONS))
        self.scattering.update(self.peers.arrange(OwnSide(private, PORTS, self.me.member, networks)))
        self.paths.set_peers(self.peers.reached())

    def installed(self, peer: bytes) -> None:
        """Have one peer's part follow its link, as `Node` does."""
        began = time.process_time()
        keyed = self.peers.keyed(peer)
        assert keyed is not None
        self.scattering.change(keyed.scatter)
        self.paths.set_ready(keyed.reached.node_id, keyed.reached.ready)
        self.spent += time.process_time() - began


def shake_hands(one: End, other: End, now: float) -> None:
    """One finished handshake, in memory, without time passing."""
    ends = {one.identity.node_id: (one, other), other.identity.node_id: (other, one)}
    at = {end.identity.node_id: _where(end.me)[0] for end in (one, other)}
    opened = 0
    one.links.rotate(other.identity.node_id, now)
    todo: list[tuple[End, Effect]] = [(one, effect) for effect in one.links.tick(now)]
    while todo:
        end, effect = todo.pop(0)
        _, peer = ends[end.identity.node_id]
        match effect:
            case Send(datagram, to):
                if to.host == at[peer.identity.node_id].host and to.transport == "udp":
                    came = peer.links.receive(datagram, at[end.identity.node_id], now)
                    todo += [(peer, each) for each in came]
            case Sign(token, request):
                signature = end.identity.sign(request.data, request.context)
                todo += [(end, each) for each in end.links.signed(token, signature, now)]
            case Install(node_id):
                end.installed(node_id)
                held = end.links.read_back(node_id, ALL, [None] * DIMENSIONS, now)
                todo += [(end, each) for each in held]
            case Opened():
                opened += 1
    assert opened == 2, "the handshake did not finish"


def measure(peers: int, handshakes: int) -> dict[str, float]:
    """Milliseconds of CPU in a mesh of so many peers."""
    identities = [Identity.from_seed(bytes([i + 1]) * 32) for i in range(2)]
    identities.sort(key=lambda identity: identity.node_id)
    entries = [_entry(i, identities[min(i, 1)]) for i in range(peers + 1)]
    now = 1000.0
    one, other = End(identities[0], entries, now), End(identities[1], entries[:2], now)
    each = list[float]()
    for _ in range(handshakes):
        now += PAUSE
        one.spent = 0.0
        shake_hands(one, other, now)
        each.append(one.spent)
    began = time.process_time()
    devices = one.peers.devices
    passed = time.process_time() - began
    assert all(len(device.peers) == peers for device in devices.values())
    return {
        "handshake_ms": statistics.median(each) * 1e3, "all_ms": one.arranged * 1e3, "pass_ms": passed * 1e3,
    }  # fmt: skip


async def run(sizes: list[int], handshakes: int) -> dict[int, dict[str, float]]:
    """The figures of each size."""
    measure(sizes[0], handshakes)  # warms up
    return {size: measure(size, handshakes) for size in sizes}


def main() -> None:
    """Print the figures; fail where the cost of a handshake grows with the mesh."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.node")
    parser.add_argument("--peers", default="10,100,1000")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    sizes = sorted(int(size) for size in options.peers.split(","))
    found = trio.run(run, sizes, 10 if options.quick else 100)
    ratio = found[sizes[-1]]["handshake_ms"] / found[sizes[0]]["handshake_ms"]
    if options.json:
        print(json.dumps({"machine": describe(), "sizes": found, "ratio": ratio}))
    else:
        print(describe())
        for size, figures in found.items():
            shown = ", ".join(f"{name.removesuffix('_ms')} {value:.3f} ms" for name, value in figures.items())
            print(f"{size:5} peers: {shown}")
        print(f"a handshake at {sizes[-1]} peers costs {ratio:.2f} times what it does at {sizes[0]}")
    if ratio > FLAT:
        sys.exit(f"the cost of a handshake grows with the mesh: {ratio:.2f} times, at most {FLAT}")


if __name__ == "__main__":
    main()
