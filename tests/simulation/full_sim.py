# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole nodes under a virtual clock, over a bad network: the real membership, records, keys and links.

What is real in a node and what is modelled is said in `full_node`; what differs with the size:

- A small mesh keeps links between all members, rekeys them, and models seven WireGuard interfaces on each.
  Every signature is made and verified each time. A crashed node starts from the bytes on its disk.
- A ``large`` one (up to 1,000 in the tests) starts as a mesh that has long been running: everybody has all
  records, and a session with whom it wants to ask something. For the first ``handshakes`` pairs that do, a
  real handshake makes it, signatures included; the others are given one. Interfaces take PSKs at once and are
  not modelled further. Each distinct record is really verified once a process (`full_parts.verified_once`);
  group keys and revocations are verified by every node.

Same seed, same trace: it covers when which datagram of what kind and size went where, and what changed in
whose view. It is not of the bytes: ML-DSA signatures and ML-KEM ciphertexts are random, and nothing but
secrets and record hashes depends on them.

    python -m tests.simulation.full_sim SCENARIO --seed S [--nodes N]

replays a scenario of `full_scenarios`.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import msgspec

from phantommesh import asking, control
from phantommesh.errors import PhantomMeshError
from phantommesh.groupkey import Keyring, make_group_key, take_keys
from phantommesh.identity import Identity, NodeId
from phantommesh.issuing import NETWORK4, Authority, choose_ip4, make_csr
from phantommesh.kem import CryptographyKem, Kem
from phantommesh.link.channel import RANDOM_SIZE, Channel, ChannelError
from phantommesh.link.effects import Effect as LinkEffect
from phantommesh.link.effects import Opened, Send, Sign
from phantommesh.link.newcomer import Newcomer
from phantommesh.link.psk import PskPhase
from phantommesh.membership.effects import Changed
from phantommesh.membership.messages import GossipError, State
from phantommesh.membership.presets import LAN, Params
from phantommesh.membership.table import Snapshot
from phantommesh.nursery.gossip import LOOK_AGAIN, TALK
from phantommesh.nursery.streams import CONNECT, Session
from phantommesh.records import CONTEXT, Roster, SignedRecord, sign_record
from phantommesh.revocation import Revocations
from phantommesh.secret import Secret
from phantommesh.sizes import DIMENSIONS
from phantommesh.trust import Role
from phantommesh.wire import Address
from tests.simulation import full_parts
from tests.simulation.full_node import Ask, Process, Task
from tests.simulation.full_parts import (
    BASE,
    MADE,
    REJECT,
    REKEY,
    RETRY,
    Kernel,
    Mesh,
    identity,
    plain_record,
)

NEVER = float("inf")
BACKLOG = 1000  # datagrams that a stalled node's socket holds
_TRACED = struct.Struct("!dHHHB")


@dataclass
class Network:
    """Probabilities per datagram; one-way delays in seconds, uniform. ``cut`` says which ways are closed to
    everything, ``deaf`` which are closed to UDP on the control port only."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: tuple[float, float] = (0.005, 0.04)
    cut: Callable[[int, int], bool] | None = None
    deaf: Callable[[int, int], bool] | None = None

    def open(self, a: int, b: int) -> bool:
        """Whether anything gets from a to b."""
        return self.cut is None or not self.cut(a, b)

    def both(self, a: int, b: int) -> bool:
        """Whether a stream between the two works."""
        return self.open(a, b) and self.open(b, a)


class Machine:
    """What outlives a process: the identity, the disk, the kernel's interfaces, the clock."""

    def __init__(self, index: int, node: Identity) -> None:
        self.index, self.identity = index, node
        self.name = f"n{index}"
        self.address = Address(f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", 51800)
        self.authority: Authority | None = None
        self.node_cert = self.authority_cert = b""
        self.version = "sim"
        self.disk: dict[str, bytes] = {}
        self.kernel = Kernel()
        self.process: Process | None = None
        self.joining: _Joining | None = None
        self.generation = 0
        self.leap = 0
        self.life = 0
        self.offset = self.wall_offset = 0.0
        self.wake = NEVER
        self.stalled = self.missed = False
        self.backlog: list[tuple[bytes, Address]] = []


@dataclass
class _Joining:
    newcomer: Newcomer
    authority: int
    invite: bytes


class Simulation:
    """The event loop. `on_change` hears of every change of view: node index, effect, time."""

    def __init__(
        self, nodes: int, *, seed: int = 0, authorities: int = 2, params: Params = LAN,
        network: Network | None = None, large: bool = False, identities: list[Identity] | None = None,
        mesh: Mesh | None = None, traffic: bool = False, handshakes: int = 150,
    ) -> None:  # fmt: skip
        self.seed, self.params, self.large, self.traffic = seed, params, large, traffic
        self.handshakes = handshakes
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.kem: Kem = CryptographyKem()
        self.network = Network() if network is None else network
        self.mesh = Mesh(NETWORK4) if mesh is None else mesh
        known = identities or [identity(f"node {i}") for i in range(nodes)]
        self.machines = [Machine(i, known[i]) for i in range(nodes)]
        for machine in self.machines[:authorities]:
            machine.authority = self.mesh.authority(machine.name, machine.identity)
        self.by_address = {machine.address: machine for machine in self.machines}
        self.by_id = {machine.identity.node_id: machine for machine in self.machines}
        self.invites: dict[bytes, Secret] = {}
        self.on_change: Callable[[int, Changed, float], None] | None = None
        self.overhear: Callable[[bytes, Address, Address], None] | None = None
        self.tally: Counter[str] = Counter()
        self.trace = seed & 0xFFFFFFFF
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._shared: tuple[Roster, Snapshot] | None = None

    @property
    def wall(self) -> float:
        """True unix time."""
        return BASE + self.now

    @contextmanager
    def _verifying(self) -> Iterator[None]:
        with full_parts.verified_once() if self.large else nullcontext():
            yield

    # Set-up.

    def _certify(self, machine: Machine, issuer: Authority | None = None) -> SignedRecord:
        authority = issuer or machine.authority
        assert authority is not None
        role = Role.NODE if machine.authority is None else Role.AUTHORITY
        node = machine.identity
        ip4 = choose_ip4(self.mesh.described, node.node_id, ())
        machine.node_cert = authority.issue(node.spki, machine.name, role, ip4, MADE)
        machine.authority_cert = authority.der
        record = plain_record(node, 1, machine.address)
        return sign_record(node, record, machine.node_cert, machine.authority_cert)

    def start_all(self, members: int | None = None) -> None:
        """Start the first so many nodes (None: all) as members of a mesh that has long been running: each has
        all records, and the group key, on its disk."""
        machines = self.machines[:members]
        with self._verifying():
            first = self.machines[0].authority
            roster, nothing = Roster(self.mesh.root, Revocations(self.mesh.root)), Revocations(self.mesh.root)
            claims = []
            for machine in machines:
                signed = self._certify(machine, first if machine.authority is None else None)
                roster.add(signed, self.wall)
                machine.generation = int(self.wall)
                entry = roster.get(machine.identity.node_id)
                assert entry is not None
                key = (machine.generation + 1).to_bytes(6) + bytes(3)
                claims.append(machine.identity.node_id + key + b"\1" + (1).to_bytes(6) + entry.hash)
            assert first is not None
            ring = Keyring()
            ring.install(make_group_key(first, 1, nothing, self.wall, self.rng.randbytes), 0.0)
            disk = {
                "roster": roster.encode(), "revocations": nothing.encode(), "keyring": ring.encode(),
                "members": b"".join(claims),
            }  # fmt: skip
            if self.large:
                self._shared = roster, Snapshot(claims)
                disk.pop("roster")
            for machine in machines:
                machine.disk.update(disk)
                self.start(machine.index)

    def start(self, index: int) -> None:
        """Start a node's process from its disk, in a new generation."""
        machine = self.machines[index]
        machine.life += 1
        machine.stalled = machine.missed = False
        machine.backlog.clear()
        with self._verifying():
            machine.process = process = Process(self, machine, shared=self._shared)
            process.start()
        machine.wake = NEVER
        self._schedule(machine)
        self.at_process(process, self.rng.random(), lambda: self._each_second(process))
        if self.traffic:
            self._read(process)

    def join(self, index: int, authority: int) -> None:
        """Have a new machine join by an invite of this authority: again and again until it is in."""
        machine, at = self.machines[index], self.machines[authority]
        invite, secret = self.rng.randbytes(16), Secret(self.rng.randbytes(32))
        self.invites[invite] = secret

        def attempt() -> None:
            if machine.process is not None or (machine.joining and not machine.joining.newcomer.failed):
                return
            newcomer = Newcomer(
                node_id=machine.identity.node_id, spki=machine.identity.spki, authority=at.identity.node_id,
                root_hash=self.mesh.described.root_hash, invite=invite, secret=secret,
                destination=at.address._replace(transport="tcp"), kem=self.kem, random=self.rng.randbytes,
                now=self.now,
            )  # fmt: skip
            machine.joining = _Joining(newcomer, authority, invite)
            self._carry_join(machine, newcomer.tick(self.now))
            self.later(0.5, lambda: self._tick_join(machine, newcomer, attempt))

        attempt()

    def _tick_join(self, machine: Machine, newcomer: Newcomer, again: Callable[[], None]) -> None:
        if machine.process is not None or machine.joining is None or machine.joining.newcomer is not newcomer:
            return
        if newcomer.deadline <= self.now:
            self._carry_join(machine, newcomer.tick(self.now))
        if newcomer.failed or newcomer.deadline == NEVER:
            again()
        self.later(0.5, lambda: self._tick_join(machine, newcomer, again))

    def _carry_join(self, machine: Machine, effects: list[LinkEffect]) -> None:
        joining = machine.joining
        assert joining is not None
        for effect in effects:
            match effect:
                case Send(datagram, destination):
                    self.transmit(machine, datagram, destination)
                case Sign(_, request):
                    signature = machine.identity.sign(request.data, request.context)
                    newcomer = joining.newcomer
                    self.later(
                        0.002,
                        lambda n=newcomer, s=signature: self._carry_join(machine, n.signed(s, self.now)),  # type: ignore[misc]
                    )
                case Opened():
                    self._enrol(machine, joining, Session.of(effect))

    def _enrol(self, machine: Machine, joining: _Joining, session: Session) -> None:
        record = plain_record(machine.identity, 1, machine.address)
        body = msgspec.msgpack.encode(record)
        csr = make_csr(machine.identity, machine.name)
        request = control.Enrol(csr, body, machine.identity.sign(body, CONTEXT))

        def talk() -> asking.Talk[Any]:
            return (yield request)

        def done(answer: object) -> None:
            if not isinstance(answer, control.Enrolled):
                machine.joining = None
                self.later(1.0, lambda: self.join(machine.index, joining.authority))
                return
            revocations = Revocations.decode(answer.revocations, self.mesh.root, self.wall)
            ring = Keyring()
            take_keys(ring, answer.keys, self.mesh.root, revocations, self.now, self.wall)
            ring.promote(answer.active_key, self.now)
            machine.node_cert, machine.authority_cert = answer.node_cert, answer.authority_cert
            machine.disk.update(roster=answer.roster, revocations=answer.revocations, keyring=ring.encode())
            machine.joining = None
            self.start(machine.index)

        _Call(self, machine, self.machines[joining.authority], session, talk(), done)

    # Faults, and what operators do.

    def crash(self, index: int) -> None:
        """End a node's process at once. Its interfaces stay."""
        machine = self.machines[index]
        machine.process = None
        machine.life += 1
        machine.wake = NEVER

    def stall(self, index: int, seconds: float) -> None:
        """Stop a node's process for a while."""
        machine = self.machines[index]
        if machine.process is not None and not machine.stalled:
            machine.stalled = True
            self.later(seconds, lambda life=machine.life: self._resume(machine, life))  # type: ignore[misc]

    def step_clock(self, index: int, seconds: float) -> None:
        """Step a node's idea of unix time."""
        self.machines[index].wall_offset += seconds

    def leap(self, index: int, seconds: float) -> None:
        """Move a node's monotonic clock ahead, as when its machine slept."""
        machine = self.machines[index]
        machine.offset += seconds
        machine.wake = NEVER
        self._schedule(machine)

    def tell(self, index: int, say: Callable[[Process], object]) -> None:
        """Let an operator do something at a node that runs."""
        process = self.machines[index].process
        if process is not None:
            with self._verifying():
                say(process)
            self._schedule(process.machine)

    def publish(self, index: int, version: str) -> None:
        """Have a node sign and announce a new record."""
        self.tell(index, lambda process: process.publish(version))

    def revoke(self, by: int, index: int) -> None:
        """Have an authority revoke a node."""
        node_id = self.machines[index].identity.node_id
        self.tell(by, lambda process: process.revoke(node_id))

    # Views.

    def process(self, index: int) -> Process:
        """A process that must be running."""
        process = self.machines[index].process
        assert process is not None
        return process

    def running(self) -> list[Process]:
        """The processes that run."""
        return [machine.process for machine in self.machines if machine.process is not None]

    def members(self) -> list[Process]:
        """Those of them whose node is not revoked, by anybody's word."""
        processes = self.running()
        revoked = {node_id for p in processes for node_id in p.revocations._entries}
        return [p for p in processes if p.me not in revoked]

    def disagreement(self) -> str:
        """Why the members that run do not have one view: of who is alive and in which incarnation, of
        records, revocations and group keys. Empty where they do."""
        members = self.members()
        alive = {p.me: (p.membership.generation, p.membership.incarnation) for p in members}
        first = members[0]
        for process in members:
            if self.large and process is not first:
                # Equal digests are equal tables; to look at each of a million views takes too long.
                if process.membership.unsure or _table(process) != _table(first):
                    return f"{process.machine.name} and {first.machine.name} have other members"
            elif wrong := self._wrong(process, alive):
                return wrong
            for what, mine, theirs in (
                ("records", process.roster.digest(), first.roster.digest()),
                ("revocations", process.revocations.digest(), first.revocations.digest()),
                ("newest keys", process.ring.newest, first.ring.newest),
                ("keys to send with", process.ring.active, first.ring.active),
            ):
                if mine != theirs:
                    return f"{process.machine.name} and {first.machine.name} have other {what}"
        return ""

    def _wrong(self, process: Process, alive: dict[NodeId, tuple[int, int]]) -> str:
        """What one member gets wrong about who is alive, and in which incarnation."""
        seen = {}
        for node in process.membership:
            view = process.membership.member(node)
            if view is not None and view.state is State.SUSPECT:
                return f"{process.machine.name} suspects {self.by_id[NodeId(node)].name}"
            if view is not None and view.state is State.ALIVE:
                seen[NodeId(node)] = view.generation, view.incarnation
        wrong = [node for node in seen.keys() | alive.keys() if seen.get(node) != alive.get(node)]
        names = sorted(self.by_id[node].name for node in wrong)
        return f"{process.machine.name} is wrong about {names}" if names else ""

    def agreed(self) -> bool:
        """Whether all members that run have one view."""
        return not self.disagreement()

    def unkeyed(self) -> list[str]:
        """The links between members that are not fresh with the same PSKs in both ends' interfaces."""
        bad = []
        for a, b in itertools.combinations(self.members(), 2):
            mine, theirs = a.machine.kernel.psks.get(b.me), b.machine.kernel.psks.get(a.me)
            same = mine is not None and mine == theirs and bytes(32) not in mine
            if not (same and _fresh(a, b) and _fresh(b, a)):
                bad.append(f"{a.machine.name}-{b.machine.name}")
        return bad

    def settled(self) -> bool:
        """One view, and every link keyed."""
        return self.agreed() and not self.unkeyed()

    def shut_out(self, index: int) -> str:
        """Why a revoked node is not yet shut out by all other members; empty where it is."""
        gone = self.machines[index].identity.node_id
        outsider = self.machines[index].process
        for process in self.members():
            name, active = process.machine.name, process.ring.active
            if gone not in process.revocations:
                return f"{name} has not heard of it"
            if process.roster.get(gone) is not None or process.membership.member(gone) is not None:
                return f"{name} holds it for a member"
            if gone in process.links._peers or gone in process.machine.kernel.psks:
                return f"{name} has a link with it"
            if process.sessions.newest(gone) is not None:
                return f"{name} has a session with it"
            if active is None or active.revoked != process.revocations.digest():
                return f"{name} sends with a key from before"
            if outsider is not None and outsider.ring.get(active.id) is not None:
                return f"it has the key that {name} sends with"
        return ""

    # The loop.

    def later(self, delay: float, action: Callable[[], object]) -> None:
        """Call ``action`` in so many seconds."""
        heapq.heappush(self._heap, (self.now + delay, next(self._serial), action))  # type: ignore[misc]

    def at_process(self, process: Process, delay: float, action: Callable[[], object]) -> None:
        """Call ``action`` in so many seconds if the process still runs; later if it is stalled."""

        def go() -> None:
            machine = process.machine
            if machine.process is not process:
                return
            if machine.stalled:
                self.later(0.1, go)
                return
            action()
            self._schedule(machine)

        self.later(delay, go)

    def run(self, seconds: float, until: Callable[[], bool] | None = None, every: float = 0.5) -> bool:
        """Let virtual time pass; stop early once ``until`` holds, looked at ``every`` so many seconds."""
        end = self.now + seconds
        with self._verifying():
            while until is None or not until():
                if self.now >= end:
                    return until is None
                self._run_to(end if until is None else min(end, self.now + every))
        return True

    def _run_to(self, end: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, action = heapq.heappop(heap)
            action()
        self.now = max(self.now, end)

    def _schedule(self, machine: Machine) -> None:
        process = machine.process
        if process is None:
            return
        due = max(process.deadline, self.now)
        if due < machine.wake:
            machine.wake = due
            self.later(due - self.now, lambda life=machine.life: self._wake(machine, life, due))  # type: ignore[misc]

    def _wake(self, machine: Machine, life: int, due: float) -> None:
        if machine.life != life or machine.wake != due or machine.process is None:
            return
        if machine.stalled:
            machine.missed = True
            return
        machine.wake = NEVER
        machine.process.tick()
        self._schedule(machine)

    def _resume(self, machine: Machine, life: int) -> None:
        if machine.life != life or machine.process is None:
            return
        machine.stalled = False
        machine.wake = NEVER
        if machine.missed:  # the worse order: timeouts before the answers that wait in the socket
            machine.missed = False
            machine.process.tick()
        backlog, machine.backlog = machine.backlog, []
        for datagram, source in backlog:
            machine.process.receive(datagram, source)
        self._schedule(machine)

    def _each_second(self, process: Process) -> None:
        process.housekeeping()
        if not self.large:
            self._wireguard(process)
        self.at_process(process, 1.0, lambda: self._each_second(process))

    def transmit(self, machine: Machine, datagram: bytes, to: Address) -> None:
        """Carry one datagram, or lose it. One for a TCP address is neither lost nor doubled."""
        network, rng, target = self.network, self.rng, self.by_address.get(to._replace(transport="udp"))
        self.tally["datagrams"] += 1
        self.tally["bytes"] += len(datagram)
        source = machine.address._replace(transport=to.transport)
        if self.overhear is not None:
            self.overhear(datagram, source, to)
        if target is None or not network.open(machine.index, target.index):
            return
        copies = 1
        if to.transport == "udp":
            if network.deaf is not None and network.deaf(machine.index, target.index):
                return
            if network.loss and rng.random() < network.loss:
                return
            copies += bool(network.duplicate) and rng.random() < network.duplicate
        low, high = network.delay
        for _ in range(copies):
            self.later(
                low + (high - low) * rng.random(),
                lambda: self._arrive(machine.index, target, datagram, source),
            )

    def _arrive(self, index: int, machine: Machine, datagram: bytes, source: Address) -> None:
        if machine.stalled:
            if len(machine.backlog) < BACKLOG:
                machine.backlog.append((datagram, source))
            return
        traced = _TRACED.pack(self.now, index, machine.index, len(datagram), datagram[1])
        self.trace = crc32(traced, self.trace)
        if machine.process is not None:
            machine.process.receive(datagram, source)
            self._schedule(machine)
        elif machine.joining is not None:
            self._carry_join(machine, machine.joining.newcomer.receive(datagram, self.now))

    def changed(self, machine: Machine, effect: Changed) -> None:
        """A node's view of another changed."""
        self.trace = crc32(effect.node + effect.event.encode(), self.trace)
        if self.on_change is not None:
            self.on_change(machine.index, effect, self.now)

    # WireGuard.

    def _wireguard(self, a: Process) -> None:
        """The handshakes that this node's interfaces start; and data over those that landed."""
        kernel = a.machine.kernel
        for peer in sorted(kernel.psks):
            b = self.by_id[NodeId(peer)]
            if not self.network.both(a.machine.index, b.index):
                continue
            other = b.kernel
            theirs = other.psks.get(a.me)
            if theirs is None:
                continue
            if peer in kernel.dials:
                for i in range(DIMENSIONS):
                    if (
                        self.now - kernel.landed[peer][i] < REKEY
                        or self.now - kernel.attempts[peer][i] < RETRY
                    ):
                        continue
                    kernel.attempts[peer][i] = self.now
                    if kernel.psks[peer][i] == theirs[i]:
                        for at, who, machine in ((kernel, peer, a.machine), (other, a.me, b)):
                            at.landed[who][i] = self.now
                            at.handshakes[who][i] = self.wall + machine.wall_offset

    def _read(self, a: Process) -> None:
        """`GossipDriver.read_interfaces`, every LOOK_AGAIN. Data flow over all that WireGuard keyed."""
        for peer, landed in sorted(a.machine.kernel.landed.items()):
            way = self.network.open(self.by_id[NodeId(peer)].index, a.machine.index)
            if way and self.by_id[NodeId(peer)].process and max(landed) > self.now - REJECT:
                a.carry_gossip(a.gossip.seal(a.membership.traffic_seen(peer, a.now, age=LOOK_AGAIN), a.now))
        self.at_process(a, LOOK_AGAIN, lambda: self._read(a))

    # Tasks, and their channels.

    def spawn(self, process: Process, kind: str, task: Task) -> None:
        """Run one of a node's tasks."""
        if kind in process.busy:
            process.busy[kind] += 1
        _Running(self, process, kind, task).send(None)

    def hop(self) -> float:
        """One way over a stream: lost segments come again."""
        low, high = self.network.delay
        wait = low + (high - low) * self.rng.random()
        while self.network.loss and self.rng.random() < self.network.loss:
            wait += 0.2
        return wait

    def link(self, a: Process, b: NodeId) -> None:
        """In a large mesh: have two members keep a link from now on."""
        self.tally["handshakes"] += 1
        other = self.by_id[b].process
        for end, peer in ((a, b), (other, a.me)):
            if end is not None and end.linked is not None and peer not in end.linked:
                end.linked.add(peer)
                end.set_links([e for n in end.linked if (e := end.roster.get(NodeId(n))) is not None])
                self._schedule(end.machine)

    def assume(self, a: Process, other: Machine) -> None:
        """In a large mesh: give two members a session as a handshake between them would have."""
        b = other.process
        if b is None or other.stalled or not self.network.both(a.machine.index, other.index):
            return
        if a.me in b.revocations or b.roster.get(a.me) is None or a.roster.get(b.me) is None:
            return
        name, first, second = self.rng.randbytes(16), self.rng.randbytes(32), self.rng.randbytes(32)
        a.sessions.add(Session(b.me, name, Secret(first), Secret(second)))
        b.sessions.add(Session(a.me, name, Secret(second), Secret(first)))
        self.tally["sessions assumed"] += 1

    def ask_revoked(self, process: Process, of: NodeId) -> None:
        """`streams.ask_revoked`: anybody may ask whether it was revoked, on a connection of its own."""
        machine = self.by_id[of]
        if machine.process is None or machine.stalled:
            return
        if not self.network.both(process.machine.index, machine.index):
            return
        found = machine.process.revocations.get(process.me)

        def heard() -> None:
            if found is not None and process.revocations.add(found, process.wall):
                process.note_change()

        self.at_process(process, self.hop() + self.hop(), heard)

    def ask_records(
        self, process: Process, address: Address, hashes: Sequence[bytes], done: Callable[[], None]
    ) -> None:
        """`GossipDriver._fetch_unlinked`: a sealed question on a connection of its own."""
        target = self.by_address.get(address)
        if (
            target is None
            or not process.requests.ready
            or not self.network.both(process.machine.index, target.index)
        ):
            self.at_process(process, CONNECT, done)
            return
        request = process.requests.seal(0, b"".join(hashes))

        def arrive() -> None:
            server, answer = target.process, b""
            if server is not None and not target.stalled:
                answer = server.answer_records(request, process.machine.address.host)

            def back() -> None:
                process.take_unlinked(request, answer)
                done()

            self.at_process(process, self.hop(), back)

        self.later(self.hop() + self.hop(), arrive)

    def lacking(self, index: int) -> int:
        """How many members do not hold this node's newest record."""
        node_id = self.machines[index].identity.node_id
        ranks = [None if (e := p.roster.get(node_id)) is None else e.rank for p in self.members()]
        newest = max(rank for rank in ranks if rank is not None)
        return sum(rank != newest for rank in ranks)

    def spread(self, index: int) -> bool:
        """Whether every member holds this node's newest record."""
        return not self.lacking(index)


def _table(process: Process) -> list[int]:
    return process.membership._core.table.hashes()


def _fresh(a: Process, b: Process) -> bool:
    """Whether a's end of a link is fresh, and its interfaces have the PSKs of that."""
    if b.me not in a.links._peers or a.links.state(b.me, a.now).phase is not PskPhase.FRESH:
        return False
    return a.machine.kernel.psks.get(b.me) == tuple(psk.reveal() for psk in a.links.psks(b.me))


class _Running:
    """A node's task, with what it waits for."""

    def __init__(self, sim: Simulation, process: Process, kind: str, task: Task) -> None:
        self.sim, self.process, self.kind, self.task = sim, process, kind, task

    def send(self, value: object) -> None:
        """Let it go on."""
        try:
            step = self.task.send(value)
        except StopIteration:
            self._end()
            return
        except (PhantomMeshError, GossipError):
            self.sim.tally["task-failed"] += 1
            self._end()
            return
        match step:
            case asking.Pause(seconds):
                self.sim.at_process(self.process, seconds, lambda: self.send(None))
            case asking.CallUnlinked(address, hashes):
                self.sim.ask_records(self.process, address, hashes, lambda: self.send(None))
            case Ask(member, talk):
                self._ask(member, talk)

    def _ask(self, member: NodeId, talk: asking.Talk[Any]) -> None:
        process, sim = self.process, self.sim
        session = process.sessions.newest(member)
        if session is not None:
            _Call(sim, process.machine, sim.by_id[member], session, talk, self.send)
            return
        other = sim.by_id[member]
        if not sim.large or other.process is None:
            sim.at_process(process, 0.001, lambda: self.send(None))
            return
        if sim.tally["handshakes"] < sim.handshakes:
            sim.link(process, member)
        else:
            sim.assume(process, other)
        given_up = sim.now + 10.0

        def look() -> None:
            ready = process.sessions.newest(member)
            if ready is not None:
                _Call(sim, process.machine, sim.by_id[member], ready, talk, self.send)
            elif sim.now >= given_up:
                self.send(None)
            else:
                sim.at_process(process, 0.1, look)

        look()

    def _end(self) -> None:
        if self.kind in self.process.busy:
            self.process.busy[self.kind] -= 1
            self.process.pump()


class _Call:
    """One conversation over a real `Channel`, from the session's keys at both ends. Ends in ``done``, with
    None where it failed."""

    def __init__(
        self, sim: Simulation, client: Machine, server: Machine, session: Session,
        talk: asking.Talk[Any], done: Callable[[object], None],
    ) -> None:  # fmt: skip
        self.sim, self.client, self.server, self.session = sim, client, server, session
        self.talk, self.done = talk, done
        self.lives = client.life, server.life
        self.deadline = sim.now + TALK
        randoms = sim.rng.randbytes(RANDOM_SIZE), sim.rng.randbytes(RANDOM_SIZE)
        self.mine = Channel(session.key_out, session.key_in, *randoms)
        self.randoms = randoms
        self.theirs: tuple[Channel, Session] | None = None
        if not sim.network.both(client.index, server.index):
            sim.later(CONNECT, self._fail)
        else:
            self._reach(self._connect)

    def _reach(self, step: Callable[[], None]) -> None:
        """Get a segment across, now or when the way is open again."""
        sim = self.sim

        def arrive() -> None:
            if self.client.life != self.lives[0]:
                return
            ends = (self.client, self.server)
            if self.server.life != self.lives[1] or self.server.process is None:
                self._fail()
            elif any(end.stalled for end in ends) or not sim.network.both(*(end.index for end in ends)):
                if sim.now >= self.deadline:
                    self._fail()
                else:
                    sim.later(0.2, arrive)
            else:
                step()
                for end in ends:
                    sim._schedule(end)

        sim.later(sim.hop(), arrive)

    def _connect(self) -> None:
        assert self.server.process is not None
        found = self.server.process.sessions.get(self.session.name)
        if found is None:
            self._fail()
            return
        self.theirs = Channel(found.key_out, found.key_in, *self.randoms), found
        self._reach(lambda: self._go_on(None))

    def _go_on(self, value: control.Answer | int | None) -> None:
        process = self.client.process
        try:
            step = next(self.talk) if value is None else self.talk.send(value)
            while isinstance(step, asking.Keep):
                assert process is not None
                step = self.talk.send(process.take(step.records))
        except StopIteration as end:
            self.done(end.value)
            return
        except asking.AskingError:
            self._fail()
            return
        frame = self.mine.seal(control.encode(step))
        self.sim.tally["stream_bytes"] += len(frame)
        self._reach(lambda: self._serve(frame))

    def _serve(self, frame: bytes) -> None:
        assert self.theirs is not None and self.server.process is not None
        channel, session = self.theirs
        if session.peer in self.server.process.revocations:
            self._fail()  # `TcpPort.close_channels`
            return
        try:
            request = control.decode_request_untrusted(channel.open(frame))
        except (ChannelError, control.ControlError):
            self._fail()
            return
        answer = channel.seal(control.encode(self.server.process.serve(session, request)))
        self.sim.tally["stream_bytes"] += len(answer)
        self._reach(lambda: self._go_on(control.decode_answer_untrusted(self.mine.open(answer))))

    def _fail(self) -> None:
        self.sim.tally["call-failed"] += 1
        self.talk.close()
        if self.client.life == self.lives[0]:
            self.done(None)
            self.sim._schedule(self.client)


def main() -> None:
    """Replay one scenario."""
    from tests.simulation import full_scenarios

    parser = argparse.ArgumentParser(prog="python -m tests.simulation.full_sim")
    parser.add_argument("scenario", choices=sorted(full_scenarios.SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=0)
    options = parser.parse_args()
    scenario, nodes = full_scenarios.SCENARIOS[options.scenario]
    sim = scenario(options.seed, options.nodes or nodes)
    print(f"{options.scenario} --seed {options.seed}: trace {sim.trace:08x}, {dict(sim.tally)}")


if __name__ == "__main__":
    main()
