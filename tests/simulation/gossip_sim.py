# SPDX-License-Identifier: GPL-3.0-or-later
"""Any number of real `Membership` instances under a virtual clock, over a bad network. Same seed, same trace.

The network loses, delays (and so reorders) and duplicates; links can be cut one way or both; a node can
stall (datagrams wait, timers freeze, as for a stopped process), have its clock stepped, crash and come back.
Streams (syncs, record fetches) either work after a few delays or, between nodes that are cut off, do not.

    python -m tests.simulation.gossip_sim SCENARIO --nodes N --seed S

replays a scenario of test_gossip.py or benchmarks/gossip.py; failing ones print that line.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from zlib import crc32

from phantommesh.endpoint import Address
from phantommesh.membership.effects import Changed, Effect, FetchRecord, Persist, Send, Sync
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import ENVELOPE_OVERHEAD, KEY, GossipError, State
from phantommesh.membership.presets import LAN, Params
from phantommesh.membership.table import EMPTY, Down, Snapshot

NEVER = float("inf")
BACKLOG = 1000  # datagrams that a stalled node's socket holds


@dataclass
class Network:
    """Probabilities per datagram; one-way delays in seconds, uniform; ``cut`` says which ways are closed."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: tuple[float, float] = (0.005, 0.04)
    cut: Callable[[int, int], bool] | None = None
    regions: int = 1
    between: float = 0.0
    """Seconds more one way between two regions; nodes are in them in turn."""

    def region(self, index: int) -> int:
        """The region of a node."""
        return index % self.regions


def node_id(index: int) -> bytes:
    """A node's id, spread as hashes are."""
    return blake2b(b"node %d" % index, digest_size=16).digest()


def record_hash(index: int, seq: int) -> bytes:
    """The hash of a node's record."""
    return blake2b(b"record %d %d" % (index, seq), digest_size=16).digest()


def agree(one: bytes, other: bytes, draw: int) -> bytes:
    """In place of X25519: a value that two nodes, and nobody else, have in common."""
    return blake2b(b"".join(sorted((one, other))) + bytes([draw % 7])).digest()


def claim(index: int) -> bytes:
    """A node's first claim about itself: generation 1."""
    return node_id(index) + (1).to_bytes(6) + bytes(3) + b"\1" + (1).to_bytes(6) + record_hash(index, 1)


class Node:
    """One machine: the process on it may not run, or not now."""

    __slots__ = (
        "address", "backlog", "generation", "id", "index", "life", "member", "missed", "offset", "params",
        "seeds", "seq", "stalled", "wake",
    )  # fmt: skip

    def __init__(self, index: int, params: Params) -> None:
        self.index = index
        self.id = node_id(index)
        self.address = Address(f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", 51800)
        self.params = params
        self.member: Membership | None = None
        self.generation = 0
        self.seq = 1
        self.life = 0
        self.offset = 0.0
        self.wake = NEVER
        self.stalled = False
        self.missed = False
        self.backlog: list[tuple[bytes, int]] = []
        self.seeds: tuple[Address, ...] = ()


@dataclass
class Tally:
    """Counts of all that was carried: datagrams, their bytes without envelope, streams and their bytes."""

    datagrams: int = 0
    bytes: int = 0
    streams: int = 0
    stream_bytes: int = 0
    crossing: int = 0
    """Bytes of all kinds from one region to another."""
    events: int = field(default=0)


class Simulation:
    """The event loop. `on_change` hears of every change of view: node index, effect, time."""

    def __init__(
        self, nodes: int, *, seed: int = 0, params: Params = LAN, network: Network | None = None,
        flat: bool = False,
    ) -> None:  # fmt: skip
        """``flat``: the nodes do not know of the network's regions."""
        self._flat = flat
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.network = Network() if network is None else network
        self.nodes = [Node(i, params) for i in range(nodes)]
        self.index = {node.id: node.index for node in self.nodes}
        self.by_address = {node.address: node.index for node in self.nodes}
        self.records = {(node.id, 1, record_hash(node.index, 1)) for node in self.nodes}
        self.on_change: Callable[[int, Changed, float], None] | None = None
        self.overhear: Callable[[bytes], None] | None = None
        self.tally = Tally()
        self.trace = seed & 0xFFFFFFFF
        self._heap: list[tuple[float, int, int, object, int]] = []
        self._serial = 0

    # Set-up and faults.

    def start_all(self, *, known: bool = True) -> None:
        """Start every node: all knowing all, or each knowing only node 0's address."""
        snapshot = Snapshot(claim(i) for i in range(len(self.nodes))) if known else EMPTY
        for node in self.nodes:
            self.start(node.index, known=snapshot, seeds=() if known else (self.nodes[0].address,))

    def start(self, index: int, *, known: Snapshot = EMPTY, seeds: Iterable[Address] = ()) -> None:
        """Start a node's process, in a new generation."""
        node = self.nodes[index]
        node.generation += 1
        node.life += 1
        node.seeds = tuple(seeds)
        node.stalled = node.missed = False
        node.backlog.clear()
        node.member = Membership(
            node=node.id, generation=node.generation, record_seq=node.seq,
            record_hash=record_hash(index, node.seq), rng=random.Random(self.rng.getrandbits(64)),
            now=self.now + node.offset, params=node.params, known=known, seeds=node.seeds,
            agree=partial(agree, node.id), near=self._vicinity(index),
        )  # fmt: skip
        node.wake = NEVER
        self._schedule(node)

    def _vicinity(self, index: int) -> Callable[[bytes], bool] | None:
        if self._flat or self.network.regions == 1:
            return None
        region, own = self.network.region, self.network.region(index)
        return lambda node: region(self.index[node]) == own

    def restart_from(self, kept: dict[int, list[bytes]], *, within: float, roster: bool = False) -> None:
        """Start nodes again at random times, each with the claims it kept and node 0's address.

        With ``roster`` each has everybody's record on disk, as real nodes do, and says so at once; without,
        it has only the records of those whose claims it kept, and fetches the others.
        """
        for index, claims in kept.items():
            delay = self.rng.random() * within
            self.later(delay, lambda i=index, c=claims: self._restart(i, c, roster))  # type: ignore[misc]

    def _restart(self, index: int, claims: list[bytes], roster: bool) -> None:
        self.start(index, known=Snapshot(claims), seeds=(self.nodes[0].address,))
        for other in self.nodes if roster else ():
            said = record_hash(other.index, other.seq)
            self.tell(index, lambda m, t, o=other, h=said: m.verified(o.id, o.seq, h, t))  # type: ignore[misc]

    def crash(self, index: int) -> None:
        """End a node's process at once."""
        node = self.nodes[index]
        node.member = None
        node.life += 1
        node.wake = NEVER

    def bury(self, viewer: int, dead: Iterable[int]) -> None:
        """Have a node hold others for dead, as if it had seen them die."""
        member = self.nodes[viewer].member
        assert member is not None
        table = member._core.table
        for index in dead:
            table.put_down(self.nodes[index].id, Down(State.DEAD, claim(index)[KEY], self.now, self.now))

    def stall(self, index: int, seconds: float) -> None:
        """Stop a node's process for a while."""
        node = self.nodes[index]
        if node.member is not None and not node.stalled:
            node.stalled = True
            self.later(seconds, lambda life=node.life: self._resume(node, life))  # type: ignore[misc]

    def step_clock(self, index: int, seconds: float) -> None:
        """Step the clock that a node's process sees."""
        node = self.nodes[index]
        node.offset += seconds
        node.wake = NEVER
        self._schedule(node)

    def publish(self, index: int) -> None:
        """Have a node sign and announce a new record."""
        node = self.nodes[index]
        node.seq += 1
        self.records.add((node.id, node.seq, record_hash(index, node.seq)))
        assert node.member is not None
        self._do(node, node.member.publish(node.seq, record_hash(index, node.seq), self.now + node.offset))
        self._schedule(node)

    def leave(self, index: int) -> None:
        """Have a node leave, and end its process when it may."""
        node = self.nodes[index]
        assert node.member is not None
        self._do(node, node.member.leave(self.now + node.offset))
        self._schedule(node)
        assert node.member.left_at is not None
        left_in = node.member.left_at - self.now - node.offset
        self.later(left_in, lambda life=node.life: self.crash(index) if node.life == life else None)  # type: ignore[misc]

    def inject(self, datagram: bytes, to: int, source: Address) -> None:
        """Deliver a datagram that someone made up, with any source address."""
        self.by_address.setdefault(source, -1)
        node = self.nodes[to]
        if node.member is not None:
            self._do(node, node.member.receive(datagram, source, self.now + node.offset))
            self._schedule(node)

    def tell(self, index: int, say: Callable[[Membership, float], list[Effect]]) -> None:
        """Let a node's owner call its membership."""
        node = self.nodes[index]
        if node.member is not None:
            self._do(node, say(node.member, self.now + node.offset))
            self._schedule(node)

    def later(self, delay: float, action: Callable[[], None]) -> None:
        """Call ``action`` in so many seconds."""
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay, self._serial, -1, action, 0))

    # Views.

    def state(self, viewer: int, of: int) -> State | None:
        """One node's view of another."""
        member = self.nodes[viewer].member
        return None if member is None else member.state(self.nodes[of].id)

    def running(self) -> list[int]:
        """The indices of nodes whose process runs."""
        return [node.index for node in self.nodes if node.member is not None]

    def agreed(self) -> bool:
        """Whether all running nodes hold exactly the running ones for alive, by the same claims."""
        running = self.running()
        expected = {
            self.nodes[i].id: (m.generation, m.incarnation)
            for i in running
            if (m := self.nodes[i].member) is not None
        }
        for index in running:
            member = self.nodes[index].member
            assert member is not None
            seen = 0
            for node in member:
                view = member.member(node)
                assert view is not None
                if view.state in (State.ALIVE, State.SUSPECT):
                    if view.state is State.SUSPECT or expected.get(node) != (
                        view.generation,
                        view.incarnation,
                    ):
                        return False
                    seen += 1
            if seen != len(expected):
                return False
        return True

    # The loop.

    def run(self, seconds: float, until: Callable[[], bool] | None = None, every: float = 0.5) -> bool:
        """Let virtual time pass; stop early once ``until`` holds, looked at ``every`` so many seconds."""
        end = self.now + seconds
        if until is None:
            self._run_to(end)
            return True
        while not until():
            if self.now >= end:
                return False
            self._run_to(min(end, self.now + every))
        return True

    def _run_to(self, end: float) -> None:
        heap, nodes = self._heap, self.nodes
        pop = heapq.heappop
        while heap and heap[0][0] <= end:
            self.now, _, index, what, extra = pop(heap)
            if index < 0:
                what()  # type: ignore[operator]
                continue
            node = nodes[index]
            member = node.member
            if member is None:
                continue
            if what is None:
                if extra != node.life or self.now != node.wake:
                    continue
                if node.stalled:
                    node.missed = True
                    continue
                effects = member.tick(self.now + node.offset)
                node.wake = NEVER
            else:
                if node.stalled:
                    if len(node.backlog) < BACKLOG:
                        node.backlog.append((what, extra))  # type: ignore[arg-type]
                    continue
                self.trace = crc32(what, (self.trace + index) & 0xFFFFFFFF)  # type: ignore[arg-type]
                effects = member.receive(what, nodes[extra].address, self.now + node.offset, at_home=True)  # type: ignore[arg-type]
            if effects:
                self._do(node, effects)
            due = member.deadline - node.offset
            if due < node.wake:
                self._schedule(node)
        self.now = max(self.now, end)

    def _schedule(self, node: Node) -> None:
        if node.member is None:
            return
        due = max(node.member.deadline - node.offset, self.now)
        if due < node.wake:
            node.wake = due
            self._serial += 1
            heapq.heappush(self._heap, (due, self._serial, node.index, None, node.life))

    def _resume(self, node: Node, life: int) -> None:
        if node.life != life or node.member is None:
            return
        node.stalled = False
        if node.missed:  # the worse order: timeouts before the answers that wait in the socket
            node.missed = False
            node.wake = NEVER
            self._do(node, node.member.tick(self.now + node.offset))
        backlog, node.backlog = node.backlog, []
        for datagram, source in backlog:
            self._do(
                node,
                node.member.receive(
                    datagram, self.nodes[source].address, self.now + node.offset, at_home=True
                ),
            )
        self._schedule(node)

    def _do(self, node: Node, effects: list[Effect]) -> None:
        network, rng, heap, tally = self.network, self.rng, self._heap, self.tally
        loss, cut = network.loss, network.cut
        low, high = network.delay
        spread = high - low
        index = node.index
        for effect in effects:
            if type(effect) is Send:
                datagram, to = effect
                target = self.index.get(to) if type(to) is bytes else self.by_address.get(to)  # type: ignore[arg-type]
                tally.datagrams += 1
                tally.bytes += len(datagram)
                if self.overhear is not None:
                    self.overhear(datagram)
                if target is None or target < 0:
                    continue
                if (loss and rng.random() < loss) or (cut is not None and cut(index, target)):
                    continue
                self._serial += 1
                far = 0.0
                if network.regions > 1 and network.region(index) != network.region(target):
                    far = network.between
                    tally.crossing += len(datagram) + ENVELOPE_OVERHEAD
                heapq.heappush(
                    heap,
                    (self.now + far + low + spread * rng.random(), self._serial, target, datagram, index),
                )
                if network.duplicate and rng.random() < network.duplicate:
                    self._serial += 1
                    heapq.heappush(
                        heap, (self.now + low + spread * rng.random(), self._serial, target, datagram, index)
                    )
            elif type(effect) is Changed:
                tally.events += 1
                if self.on_change is not None:
                    self.on_change(index, effect, self.now)
            elif type(effect) is FetchRecord:
                self._fetch(node, effect)
            elif type(effect) is Sync:
                self._sync(node, effect)
            else:
                assert type(effect) is Persist
                node.generation = effect.generation

    # Streams.

    def _peer(self, node: Node, to: bytes | Address) -> Node | None:
        index = self.index.get(to) if isinstance(to, bytes) else self.by_address.get(to)
        if index is None or index < 0 or index == node.index:
            return None
        cut = self.network.cut
        if cut is not None and (cut(node.index, index) or cut(index, node.index)):
            return None
        peer = self.nodes[index]
        return peer if peer.member is not None and not peer.stalled else None

    def _hop(self) -> float:
        """One way over a stream: lost segments come again."""
        low, high = self.network.delay
        wait = low + (high - low) * self.rng.random()
        while self.network.loss and self.rng.random() < self.network.loss:
            wait += 0.2
        return wait

    def _fetch(self, node: Node, fetch: FetchRecord) -> None:
        if (fetch.node, fetch.record_seq, fetch.record_hash) not in self.records:
            return
        if self._peer(node, fetch.source) is None:
            return
        life = node.life

        def fetched() -> None:
            if node.life == life and node.member is not None and not node.stalled:
                now = self.now + node.offset
                self._do(node, node.member.verified(fetch.node, fetch.record_seq, fetch.record_hash, now))
                self._schedule(node)

        self.later(self._hop() + self._hop(), fetched)

    def _sync(self, node: Node, sync: Sync) -> None:
        peer = self._peer(node, sync.peer)
        if peer is None or node.member is None:
            return
        opening = node.member.sync_open(self.now + node.offset)
        lives = node.life, peer.life
        self.tally.streams += 1

        def there(step: Callable[[Membership, float], list[Effect]], at: Node) -> None:
            """Run a step at one end, if both still live."""
            if (node.life, peer.life) != lives or at.member is None or self._peer(node, sync.peer) is None:
                return
            try:
                self._do(at, step(at.member, self.now + at.offset))
            except GossipError:
                raise AssertionError("honest nodes sent what cannot be read") from None
            self._schedule(at)

        def carry(message: bytes, to: Node, step: Callable[[Membership, float], list[Effect]]) -> None:
            self.tally.stream_bytes += len(message)
            if self.network.region(node.index) != self.network.region(peer.index):
                self.tally.crossing += len(message)
            self.later(self._hop(), lambda: there(step, to))

        def answer(member: Membership, now: float) -> list[Effect]:
            reply, effects = member.sync_answer(opening, node.id, now)

            def close(member: Membership, now: float) -> list[Effect]:
                closing, effects = member.sync_close(reply, peer.id, now)
                carry(closing, peer, lambda m, t: m.sync_finish(closing, node.id, t))
                return effects

            carry(reply, node, close)
            return effects

        carry(opening, peer, answer)
