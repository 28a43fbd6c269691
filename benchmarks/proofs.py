# SPDX-License-Identifier: GPL-3.0-or-later
"""The cost of scatter proofs for a node per epoch: CPU time, bytes sent, files written, by number of links.

``python -m benchmarks.proofs [--links 1,10,50] [--quick] [--json]``
``python -m benchmarks.proofs --honest EPOCHS [--backend B] [--epoch S] [--rate N] [--seconds S] [--json]``

One node and as many peers, in one process: every link's epoch ends in both directions, statements are signed,
delivered, checked, countersigned, delivered and checked again, and written to disk, by the node's own code.
The node's part is timed; its peers' part is not. Reading WireGuard's counters is not in it. The baseline, in
the same run, is the cryptography that no such scheme can do without: one signature a node and epoch, and one
verification of each peer's.

``--honest`` runs a lab instead (`benchmarks.honest`), and exits 1 if a proof of honest nodes does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from benchmarks import honest
from benchmarks.machine import describe
from phantommesh.control import messages
from phantommesh.proofs.ledger import Chain, Closed, Kept, Ledger
from phantommesh.proofs.review import Review
from phantommesh.proofs.shelf import Shelf
from phantommesh.proofs.statement import CONTEXT, Plan, Seven, Signed
from phantommesh.trust.identity import Identity, NodeId

LINKS = (1, 10, 50)
RUNS, QUICK_RUNS, WARM_UP = 30, 5, 2
EPOCH_MS = 60_000
CARDS: Seven = (146, 146, 146, 146, 146, 146, 146)
KEEP = 60


class Node:
    """One node's books, review and shelf; ``cpu`` and ``wall`` are the seconds that `timed` blocks took."""

    def __init__(self, number: int, directory: Path) -> None:
        self.identity = Identity.from_seed(number.to_bytes(32))
        self.id = self.identity.node_id
        self.ledger = Ledger(self.id, os.urandom, {}, Chain())
        self.review, self.shelf = Review(KEEP), Shelf(directory, KEEP)
        directory.mkdir()
        self.cpu = self.wall = 0.0
        self.written = 0

    @contextmanager
    def timed(self) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        self.cpu += time.process_time() - cpu
        self.wall += time.perf_counter() - wall

    def sign(self, now_ms: int) -> None:
        with self.timed():
            made = self.ledger.gather(now_ms)
            if made is not None:
                kept = self.ledger.seal(made, self.identity.sign(made.head, CONTEXT))
                self.store(kept)
                self.shelf.put_heads(self.ledger.heads)

    def store(self, proofs: list[Kept]) -> None:
        for kept in proofs:
            self.review.add(kept)
            self.shelf.put(kept)
            self.written += 1

    def take(self, sender: Node, request: bytes, now_ms: int) -> None:
        with self.timed():
            decoded = messages.decode_request_untrusted(request)
            if isinstance(decoded, messages.Prove):
                verified = set()
                for part in decoded.parts:
                    signed = Signed.decode_untrusted(part)
                    if (signed.head, signed.signature) not in verified:
                        signed.check_signature(sender.identity.public_key)
                        verified.add((signed.head, signed.signature))
                    kept = self.ledger.take(sender.id, signed, now_ms)
                    if kept is not None:
                        self.store([kept])

    def deliver(self, receiver: Node, now_ms: int) -> int:
        """Return the bytes sent."""
        sent = 0
        while True:
            with self.timed():
                parts = self.ledger.unsent(receiver.id)[: messages.MAX_PARTS]
                request = messages.encode(messages.Prove(parts)) if parts else b""
            if not parts:
                return sent
            receiver.take(self, request, now_ms)
            with self.timed():
                self.ledger.sent(receiver.id, parts)
            sent += len(request)


def turn(a: Node, b: Node, number: int, totals: Seven, draw: random.Random) -> int:
    """End one direction's epoch and begin another; return the bytes sent."""
    now = number * EPOCH_MS
    packets = counts(draw)
    closed = Closed(plan(a.id, b.id, number), now - EPOCH_MS, now, packets, scaled(packets, 1380))
    with a.timed():
        closes, opens = a.ledger.turn(b.id, closed if number else None, plan(a.id, b.id, number + 1), totals)
        request = messages.encode(messages.Turn(closes, opens))
    with b.timed():
        told = messages.decode_request_untrusted(request)
        assert isinstance(told, messages.Turn)
        b.ledger.turned(a.id, told.closes, told.opens, totals, now / 1000, now)
    with a.timed():
        a.ledger.answered(b.id, totals)
    return len(request)


def plan(sender: NodeId, receiver: NodeId, number: int) -> Plan:
    return Plan(sender, receiver, 1, number, "deck", 1, CARDS)


def counts(draw: random.Random) -> Seven:
    n = draw.randrange(100_000, 100_016)
    return n, n, n, n, n, n, n


def scaled(values: Seven, factor: int) -> Seven:
    a, b, c, d, e, f, g = (value * factor for value in values)
    return a, b, c, d, e, f, g


def measure_links(links: int, runs: int, directory: Path) -> dict[str, float]:
    """Medians per epoch of the one node that has so many links."""
    draw = random.Random(1)
    me, *peers = (Node(number, directory / str(number)) for number in range(1, links + 2))
    cpu, wall, sent, written = [], [], [], []
    for number in range(runs + WARM_UP):
        me.cpu = me.wall = 0.0
        before, said = me.written, 0
        totals = scaled((number,) * 7, 100_000 * 1420)
        for peer in peers:
            said += turn(me, peer, number, totals, draw)
            turn(peer, me, number, totals, draw)
        now = number * EPOCH_MS
        me.sign(now)
        for peer in peers:
            peer.sign(now)
            said += me.deliver(peer, now)
            peer.deliver(me, now)
        cpu.append(me.cpu)
        wall.append(me.wall)
        sent.append(said)
        written.append(me.written - before)
    stored = sum(path.stat().st_size for path in (directory / "1").rglob("*") if path.is_file())
    files = sum(1 for path in (directory / "1").rglob("*-*") if path.is_file())
    return {
        "cpu_ms": round(statistics.median(cpu[WARM_UP:]) * 1e3, 2),
        "wall_ms": round(statistics.median(wall[WARM_UP:]) * 1e3, 2),
        "sent_bytes": round(statistics.median(sent[WARM_UP:])),
        "files_written": round(statistics.median(written[WARM_UP:])),
        "bytes_per_proof": round(stored / files),
        "baseline_cpu_ms": round(_median_cpu(lambda: _floor(me, peers[0], links), runs) * 1e3, 2),
    }


def _floor(me: Node, peer: Node, links: int) -> None:
    head = os.urandom(100)
    signature = peer.identity.sign(head, CONTEXT) if links else b""
    began = time.process_time()
    me.identity.sign(head, CONTEXT)
    for _ in range(links):
        peer.identity.public_key.verify(signature, head, CONTEXT)
    _spent.append(time.process_time() - began)


_spent: list[float] = []


def _median_cpu(work: Callable[[], None], runs: int) -> float:
    _spent.clear()
    for _ in range(runs):
        work()
    return statistics.median(_spent)


def measure(links: tuple[int, ...], runs: int) -> dict[str, Any]:
    """Return the document that ``--json`` prints."""
    found = {}
    for number in links:
        with tempfile.TemporaryDirectory() as directory:
            row = measure_links(number, runs, Path(directory))
        row["ratio_to_baseline"] = round(row["cpu_ms"] / row["baseline_cpu_ms"], 2)
        row["cpu_percent_at_60_s"] = round(row["cpu_ms"] / EPOCH_MS * 100, 4)
        found[str(number)] = row
    return {"name": "proofs", "machine": describe(), "runs": runs, "links": found}


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proofs")
    parser.add_argument("--links", default=",".join(map(str, LINKS)), help="how many links, with commas")
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--json", action="store_true", help="one JSON document on the last line")
    parser.add_argument("--honest", type=int, metavar="EPOCHS", help="run a lab until so many are proved")
    parser.add_argument("--backend", default="auto", help="of the lab")
    parser.add_argument("--nodes", type=int, default=honest.NODES, help="in the lab")
    parser.add_argument("--epoch", type=float, default=4.0, help="seconds of an epoch in the lab")
    parser.add_argument("--rate", type=float, default=2e6, help="bytes a second of each direction in the lab")
    parser.add_argument("--loss", type=float, default=honest.LOSS, help="share of datagrams lost in the lab")
    parser.add_argument("--seconds", type=float, default=3600.0, help="that the lab runs at most")
    arguments = parser.parse_args()
    if arguments.honest is not None:
        found = trio.run(
            partial(
                honest.measure, arguments.honest, backend=arguments.backend, count=arguments.nodes,
                epoch_s=arguments.epoch,
                rate=arguments.rate, loss=arguments.loss, seconds=arguments.seconds,
            )
        )  # fmt: skip
        if arguments.json:
            print(json.dumps({"name": "proofs-honest", "machine": describe(), **found}))
        else:
            honest.show(found)
        return 1 if found["mismatches"] or found["files_refused"] else 0
    links = tuple(int(number) for number in arguments.links.split(","))
    result = measure(links, QUICK_RUNS if arguments.quick else RUNS)
    if arguments.json:
        print(json.dumps(result))
        return 0
    print(f"scatter proofs, medians of {result['runs']} epochs, {result['machine']['cpu']}")
    for number, row in result["links"].items():
        print(f"  {number:>3} links  " + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
