# SPDX-License-Identifier: GPL-3.0-or-later
"""The post-quantum handshake between two processes on loopback.

    python -m benchmarks.handshake [--provider cryptography|liboqs] [--json] [--quick]

Each end is a real `Links` under the node's own driver: UDP sockets, Trio, signing in threads. Only the
kernel is missing: PSKs count as installed at once. Wall time runs from the decision to rotate to the ACK.
CPU time is each process's own, divided by the handshakes. The responder's limit of handshakes per source is
lifted. In the same run a classical SIGMA handshake (X25519, Ed25519, HMAC) goes between two processes over
plain blocking sockets: the least that an authenticated handshake with these messages costs here.
"""

from __future__ import annotations

import argparse
import hmac
import json
import math
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from benchmarks.machine import describe
from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.kem import SEED_SIZE, provider
from phantommesh.link.admission import Standing
from phantommesh.link.context import Timing
from phantommesh.link.effects import Opened, PeerAuth
from phantommesh.link.machine import Links
from phantommesh.nursery.members.links import LinkDriver
from phantommesh.nursery.sockets.udp import UdpPort
from phantommesh.rates import Rates
from phantommesh.secret import Secret
from phantommesh.trust.identity import Identity

WARM_UP, RUNS, QUICK_RUNS = 20, 500, 60
PATIENCE = 30.0  # s; a guard only
IDENTITIES = [Identity.from_seed(bytes([i]) * 32) for i in (1, 2)]
WG_KEYS = [tuple(bytes([16 * end + i + 1]) * 32 for i in range(DIMENSIONS)) for end in (0, 1)]


class End:
    """One end of the link: number 0 starts, number 1 answers."""

    def __init__(
        self, number: int, kem: str, udp: UdpPort, peer_port: int | None, *, limited: bool = False
    ) -> None:
        """Without ``limited`` handshakes may follow each other at any rate."""
        self.peer = IDENTITIES[1 - number]
        self.links = Links(
            node_id=IDENTITIES[number].node_id, wg_keys=WG_KEYS[number], admission=Secret(b"bench" * 8),
            kem=provider(kem), random=os.urandom, now=trio.current_time(), timing=Timing(rotate=1e6),
            agree=lambda dimension, theirs: b"x" * 32,  # computed once for all handshakes of a pair
        )  # fmt: skip
        if not limited:
            self.links._answerer._rates = {True: Rates[str](rate=1e9, burst=1e9)}
            self.links._answerer._budgets = {
                standing: Rates[bytes](rate=1e9, burst=1e9) for standing in Standing
            }
        self.opened = trio.Event()
        self.opened_at = 0.0
        self.driver = LinkDriver(
            self.links, IDENTITIES[number], udp, install=self._install, opened=self._opened,
            alarmed=lambda alarm: None,
        )  # fmt: skip
        endpoints = () if peer_port is None else (Address("127.0.0.1", peer_port),)
        peer = PeerAuth(self.peer.node_id, self.peer.public_key, math.inf, WG_KEYS[1 - number], endpoints)
        self.driver.carry_out(self.links.set_peers({self.peer.node_id: peer}, trio.current_time()))

    def _install(self, _: Sequence[bytes]) -> None:
        now = trio.current_time()
        self.driver.carry_out(self.links.read_back(self.peer.node_id, ALL, [None] * DIMENSIONS, now))

    def _opened(self, _: Opened) -> None:
        self.opened_at = time.perf_counter()
        self.opened.set()

    async def shake(self) -> float:
        """Start one handshake; return the seconds until ACK."""
        self.opened = trio.Event()
        began = time.perf_counter()
        now = trio.current_time()
        self.links.rotate(None, now)
        self.driver.carry_out(self.links.tick(now))
        await self.opened.wait()
        return self.opened_at - began


def port_of(udp: UdpPort) -> int:
    """The IPv4 port that the kernel chose."""
    number: int = udp._sockets[socket.AF_INET].getsockname()[1]
    return number


async def _answer(pipe: Connection, kem: str, limited: bool) -> None:
    with UdpPort(0) as udp:
        async with trio.open_nursery() as nursery:
            end = End(1, kem, udp, None, limited=limited)
            nursery.start_soon(udp.receive, end.driver.receive)
            nursery.start_soon(end.driver.run)
            pipe.send(port_of(udp))
            while True:
                await trio.lowlevel.wait_readable(pipe)
                if pipe.recv() == "stop":
                    nursery.cancel_scope.cancel()
                    return
                pipe.send(time.process_time())


def answer(pipe: Connection, kem: str, limited: bool = False) -> None:
    """The responder's process. Tells its port, then its CPU time whenever asked, until told to stop."""
    trio.run(_answer, pipe, kem, limited)


async def _start(pipe: Connection, kem: str, runs: int) -> dict[str, float]:
    with UdpPort(0) as udp, trio.fail_after(PATIENCE + runs * 0.2):
        async with trio.open_nursery() as nursery:
            end = End(0, kem, udp, pipe.recv())
            nursery.start_soon(udp.receive, end.driver.receive)
            nursery.start_soon(end.driver.run)
            for _ in range(WARM_UP):
                await end.shake()
            walls, mine, theirs = [], time.process_time(), ask(pipe)
            for _ in range(runs):
                walls.append(await end.shake())
            spent = (time.process_time() - mine, ask(pipe) - theirs)
            timeouts = end.links.handshakes["initiator", "timeout"]
            nursery.cancel_scope.cancel()
    if timeouts:
        raise RuntimeError(f"{timeouts} handshakes timed out")
    return figures(walls, *spent)


def ask(pipe: Connection) -> float:
    """The other process's CPU time, in seconds."""
    pipe.send("cpu")
    spent: float = pipe.recv()
    return spent


def figures(walls: list[float], initiator: float, responder: float) -> dict[str, float]:
    """Wall times and CPU totals in seconds -> the document's keys, in milliseconds."""
    return {
        "wall_ms_median": round(statistics.median(walls) * 1e3, 3),
        "wall_ms_p99": round(sorted(walls)[math.ceil(len(walls) * 0.99) - 1] * 1e3, 3),
        "cpu_ms_initiator": round(initiator / len(walls) * 1e3, 3),
        "cpu_ms_responder": round(responder / len(walls) * 1e3, 3),
    }


# --- the baseline ---

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2)]


def _prove(end: int, secret: bytes, said: bytes) -> bytes:
    key = hmac.digest(secret, said, "sha512")
    signature = KEYS[end].sign(said)
    return signature + hmac.digest(key, bytes([end]) + signature, "sha512")


def _check(end: int, secret: bytes, said: bytes, proof: bytes) -> None:
    key = hmac.digest(secret, said, "sha512")
    if not hmac.compare_digest(proof[64:], hmac.digest(key, bytes([end]) + proof[:64], "sha512")):
        raise RuntimeError("baseline: wrong MAC")
    KEYS[end].public_key().verify(proof[:64], said)


def _share() -> tuple[X25519PrivateKey, bytes]:
    private = X25519PrivateKey.generate()
    return private, private.public_key().public_bytes_raw()


def answer_baseline(pipe: Connection, _: str) -> None:
    """The baseline's responder: as `answer`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        pipe.send(sock.getsockname()[1])
        while True:
            share_i, source = sock.recvfrom(2048)
            if share_i == b"cpu":
                pipe.send(time.process_time())
                continue
            if share_i == b"stop":
                return
            private, share = _share()
            secret = private.exchange(X25519PublicKey.from_public_bytes(share_i))
            sock.sendto(share + _prove(1, secret, share_i + share), source)
            _check(0, secret, share + share_i, sock.recv(2048))
            sock.sendto(b"ack", source)


def start_baseline(pipe: Connection, runs: int) -> dict[str, float]:
    """The baseline's initiator."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", pipe.recv()))

        def cpu() -> float:
            sock.send(b"cpu")
            spent: float = pipe.recv()
            return spent

        def shake() -> float:
            began = time.perf_counter()
            private, share = _share()
            sock.send(share)
            answered = sock.recv(2048)
            secret = private.exchange(X25519PublicKey.from_public_bytes(answered[:32]))
            _check(1, secret, share + answered[:32], answered[32:])
            sock.send(_prove(0, secret, answered[:32] + share))
            sock.recv(2048)
            return time.perf_counter() - began

        for _ in range(WARM_UP):
            shake()
        mine, theirs = time.process_time(), cpu()
        walls = [shake() for _ in range(runs)]
        spent = (time.process_time() - mine, cpu() - theirs)
        sock.send(b"stop")
    return figures(walls, *spent)


# --- the floor ---


def crypto_only(kem: str, runs: int) -> dict[str, float]:
    """CPU milliseconds a side of the primitives alone."""
    chosen, (me, other) = provider(kem), IDENTITIES
    data, context = bytes(80), b"bench"
    signature = other.sign(data, context)
    ek, decapsulator = chosen.keypair(os.urandom(SEED_SIZE))
    ct, _ = chosen.encapsulate(ek)
    _, share = _share()

    def both() -> None:
        private, _ = _share()
        private.exchange(X25519PublicKey.from_public_bytes(share))
        me.sign(os.urandom(80), context)
        other.public_key.verify(signature, data, context)

    def initiator() -> None:
        chosen.keypair(os.urandom(SEED_SIZE))
        decapsulator.decapsulate(ct)
        both()

    def responder() -> None:
        chosen.encapsulate(ek)
        both()

    return {"cpu_ms_initiator": _cpu_ms(initiator, runs), "cpu_ms_responder": _cpu_ms(responder, runs)}


def _cpu_ms(work: Callable[[], None], runs: int) -> float:
    for _ in range(WARM_UP):
        work()
    began = time.process_time()
    for _ in range(runs):
        work()
    return round((time.process_time() - began) / runs * 1e3, 3)


def beside(
    child: Callable[[Connection, str], None], kem: str, work: Callable[[Connection], dict[str, float]]
) -> dict[str, float]:
    """Run ``work`` here while ``child`` runs in a process of its own, joined by a pipe."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, kem), daemon=True)
    process.start()
    try:
        result = work(here)
        here.send("stop")
        process.join(PATIENCE)
        return result
    finally:
        process.kill()


def measure(kem: str, runs: int) -> dict[str, Any]:
    """Return the document that ``--json`` prints."""
    provider(kem)  # its error, if there is one, is for this process to show
    ours = beside(answer, kem, lambda pipe: trio.run(_start, pipe, kem, runs))
    baseline = beside(answer_baseline, kem, lambda pipe: start_baseline(pipe, runs))
    floor = crypto_only(kem, runs)
    return {
        "name": "handshake", "machine": describe(), "runs": runs, "provider": kem, **ours,
        "crypto_only": floor,
        "ratio_to_crypto_only": {key: round(ours[key] / floor[key], 2) for key in floor},
        "baseline": {"name": "X25519 + Ed25519 SIGMA, blocking sockets", **baseline},
        "ratio_to_baseline": {key: round(ours[key] / baseline[key], 2) for key in ours},
    }  # fmt: skip


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.handshake")
    parser.add_argument("--provider", default="cryptography", choices=["cryptography", "liboqs"])
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line")
    arguments = parser.parse_args()
    try:
        result = measure(arguments.provider, QUICK_RUNS if arguments.quick else RUNS)
    except PhantomMeshError as error:
        print(f"{error}; {error.fix}", file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps(result))
        return 0
    machine = result["machine"]
    print(f"handshake on loopback, {result['runs']} runs, {machine['cpu']}, {machine['cores']} cores")
    for label, row in (
        (f"ours ({result['provider']})", result),
        ("classical baseline", result["baseline"]),
        ("ratio", result["ratio_to_baseline"]),
        ("its cryptography alone", result["crypto_only"]),
        ("ratio", result["ratio_to_crypto_only"]),
    ):
        cells = "  ".join(f"{key} {row[key]:7.3f}" for key in row if key in result["ratio_to_baseline"])
        print(f"  {label:22} {cells}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
