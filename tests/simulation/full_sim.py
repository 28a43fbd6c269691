# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole nodes under a virtual clock, over a bad network: the real membership, records, keys and links.

This module has the event loop, the datagrams, and the faults of nodes. `full_machines` has the machines that
nodes run on, `full_calls` their tasks and conversations, `full_wireguard` their interfaces, `full_joining`
how new ones get in, `full_views` statements about the whole mesh.

`full_node` says which parts of a node are real and which are modelled. Some things differ with the size:

- A small mesh keeps links between all members, rekeys them, and models seven WireGuard interfaces on each.
  Every signature is made and verified each time. A crashed node starts from the bytes on its disk.
- A ``large`` one (up to 1,000 in the tests) starts as a mesh that has long been running: each node has all
  records, and gets a session with each member that it wants to ask something. For the first ``handshakes``
  such pairs a real handshake makes the session, signatures included; the others are given one. Interfaces
  take PSKs at once and are not modelled further. Each distinct record is really verified once a process
  (`full_parts.verified_once`); group keys and revocations are verified by every node.

Same seed, same trace. The trace covers when a datagram of which kind and size went where, and each change of
a node's view. It does not cover the bytes: ML-DSA signatures and ML-KEM ciphertexts are random, and nothing
but secrets and record hashes depends on them.

    python -m tests.simulation.full_sim SCENARIO --seed S [--nodes N]

replays a scenario of `full_scenarios` or `desk_scenarios`.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from zlib import crc32

from phantommesh.endpoint import Address
from phantommesh.kem import CryptographyKem, Kem
from phantommesh.link.copies import Suspicion
from phantommesh.membership.effects import Changed
from phantommesh.membership.presets import LAN, Params
from phantommesh.membership.table import Snapshot
from phantommesh.records.record import SignedRecord, sign_record
from phantommesh.records.roster import Roster
from phantommesh.trust.certificates import DAY, Role
from phantommesh.trust.groupkey import Keyring, make_group_key
from phantommesh.trust.identity import Identity
from phantommesh.trust.issuing import NETWORK4, Authority, choose_ip4
from phantommesh.trust.revocations import Revocations
from tests.simulation import full_parts
from tests.simulation.full_joining import carry_join
from tests.simulation.full_machines import NEVER, Machine, Network
from tests.simulation.full_node import Process
from tests.simulation.full_parts import BASE, MADE, Mesh, identity, plain_record
from tests.simulation.full_wireguard import read_interfaces, shake_hands

BACKLOG = 1000  # datagrams that a stalled node's socket holds
_TRACED = struct.Struct("!dHHHB")


class Simulation:
    """The event loop. `on_change` hears of every change of view: node index, effect, time."""

    def __init__(
        self, nodes: int, *, seed: int = 0, authorities: int = 2, params: Params = LAN,
        network: Network | None = None, large: bool = False, identities: list[Identity] | None = None,
        mesh: Mesh | None = None, traffic: bool = False, probes: bool = False, handshakes: int = 150,
        dual: bool = False,
    ) -> None:  # fmt: skip
        """``traffic``: data flows over what WireGuard keyed; ``probes``: those of the paths do. ``dual``: all
        have IPv6 too, and name it first."""
        self.seed, self.params, self.large = seed, params, large
        self.data, self.probes = traffic, probes
        self.handshakes = handshakes
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.skipped = 0.0  # s of unix time that the events leave out
        self.kem: Kem = CryptographyKem()
        self.network = Network() if network is None else network
        self.mesh = Mesh(NETWORK4) if mesh is None else mesh
        known = identities or [identity(f"node {i}") for i in range(nodes)]
        self.machines = [Machine(i, known[i]) for i in range(nodes)]
        for machine in self.machines if dual else ():
            machine.also = (Address(f"2001:db8::{machine.index + 1:x}", 51800),)
        for machine in self.machines[:authorities]:
            machine.authority = self.mesh.authority(machine.name, machine.identity)
        self.machines[0].root_key = self.mesh.root_key
        self.by_address = {a: machine for machine in self.machines for a in (machine.address, *machine.also)}
        self.by_id = {machine.identity.node_id: machine for machine in self.machines}
        self.refused: dict[int, str] = {}  # why a newcomer was not let in, the last time
        self.on_change: Callable[[int, Changed, float], None] | None = None
        self.overhear: Callable[[bytes, Address, Address], None] | None = None
        self.tally: Counter[str] = Counter()
        self.suspected: dict[tuple[int, bytes | None], Suspicion] = {}  # by whom, and of whom
        self.trace = seed & 0xFFFFFFFF
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._shared: tuple[Roster, Snapshot] | None = None

    @property
    def wall(self) -> float:
        """True unix time."""
        return BASE + self.now + self.skipped

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
        record = plain_record(node, 1, machine.address, "sim", *machine.also)
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
        machine.standby = None
        machine.stalled = machine.missed = False
        machine.backlog.clear()
        with self._verifying():
            machine.process = process = Process(self, machine, shared=self._shared)
            process.start()
        machine.wake = NEVER
        self.schedule(machine)
        self.at_process(process, self.rng.random(), lambda: self._each_second(process))
        if self.data or self.probes:
            read_interfaces(process)

    # Faults, and what operators do.

    def crash(self, index: int) -> None:
        """End a node's process at once. Its interfaces stay."""
        machine = self.machines[index]
        machine.process = machine.standby = machine.joining = None
        machine.life += 1
        machine.wake = NEVER

    def copy(self, index: int) -> int:
        """Copy a node's disk to another machine, at an address of its own. Return that machine's index."""
        original = self.machines[index]
        machine = Machine(len(self.machines), original.identity)
        machine.address = machine.address._replace(host=f"10.200.0.{machine.index}")
        machine.node_cert, machine.authority_cert = original.node_cert, original.authority_cert
        machine.disk, machine.generation, machine.leap = (
            dict(original.disk),
            original.generation,
            original.leap,
        )
        self.machines.append(machine)
        self.by_address[machine.address] = machine
        return machine.index

    def step_aside(self, machine: Machine) -> None:
        """A run of a node gives way to another: it sends nothing more, and its interfaces go."""
        machine.standby, machine.process = machine.process, None
        machine.wake = NEVER
        machine.kernel.keep({})
        self.by_id[machine.identity.node_id] = next(
            one for one in self.machines if one.identity is machine.identity and one.process is not None
        )

    def stall(self, index: int, seconds: float) -> None:
        """Stop a node's process for a while."""
        machine = self.machines[index]
        if machine.process is not None and not machine.stalled:
            machine.stalled = True
            self.later(seconds, lambda life=machine.life: self._resume(machine, life))  # type: ignore[misc]

    def step_clock(self, index: int, seconds: float) -> None:
        """Step a node's idea of unix time."""
        self.machines[index].wall_offset += seconds

    def days(self, count: int) -> None:
        """Let days go by at all machines. Of each day only the last half minute is played, so what a member
        may ask for in a day is granted anew by hand."""
        for _ in range(count):
            self.skipped += DAY - 30.0
            for process in self.running():
                process.desk.desk._renewals._buckets.clear()
            self.run(30.0)

    def leap(self, index: int, seconds: float) -> None:
        """Move a node's monotonic clock ahead, as when its machine slept."""
        machine = self.machines[index]
        machine.offset += seconds
        machine.wake = NEVER
        self.schedule(machine)

    def tell(self, index: int, say: Callable[[Process], object]) -> None:
        """Let an operator do something at a node that runs."""
        process = self.machines[index].process
        if process is not None:
            with self._verifying():
                say(process)
            self.schedule(process.machine)

    def publish(self, index: int, version: str) -> None:
        """Have a node sign and announce a new record."""
        self.tell(index, lambda process: process.own.publish(version))

    def revoke(self, by: int, index: int) -> None:
        """Have an authority revoke a node."""
        node_id = self.machines[index].identity.node_id
        self.tell(by, lambda process: process.desk.revoke(node_id))

    # Processes that run.

    def process(self, index: int) -> Process:
        """A process that must be running."""
        process = self.machines[index].process
        assert process is not None
        return process

    def running(self) -> list[Process]:
        """The processes that run."""
        return [machine.process for machine in self.machines if machine.process is not None]

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
            self.schedule(machine)

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

    def schedule(self, machine: Machine) -> None:
        """See to it that a node's process is woken when something is due in it."""
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
        self.schedule(machine)

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
        self.schedule(machine)

    def _each_second(self, process: Process) -> None:
        process.housekeeping()
        if not self.large:
            shake_hands(process)
        self.at_process(process, 1.0, lambda: self._each_second(process))

    def transmit(self, machine: Machine, datagram: bytes, to: Address) -> None:
        """Carry one datagram, or lose it. One for a TCP address is neither lost nor doubled."""
        network, rng = self.network, self.rng
        self.tally["datagrams"] += 1
        self.tally["bytes"] += len(datagram)
        if ":" in to.host and machine.index in network.without_ipv6:
            return
        own = machine.also[0] if ":" in to.host and machine.also else machine.address
        source = own._replace(transport=to.transport)
        source = network.leave(machine.index, source, to, self.now)
        if self.overhear is not None:
            self.overhear(datagram, source, to)
        at = network.find(machine.index, source, to, self.now)
        target = None if at is None else self.by_address.get(at._replace(transport="udp"))
        if target is None or not network.open(machine.index, target.index):
            return
        if ":" in to.host and target.index in network.without_ipv6:
            return
        if at == to and not network.begins(machine.index, target.index):
            return  # an inside address
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
        if machine.joining is not None and source.transport == "tcp":
            carry_join(self, machine, machine.joining.newcomer.receive(datagram, self.now))
        if machine.process is not None:
            machine.process.receive(datagram, source)
            self.schedule(machine)

    def changed(self, machine: Machine, effect: Changed) -> None:
        """A node's view of another changed."""
        self.trace = crc32(effect.node + effect.event.encode(), self.trace)
        if self.on_change is not None:
            self.on_change(machine.index, effect, self.now)

    def hop(self) -> float:
        """One way over a stream: lost segments come again."""
        low, high = self.network.delay
        wait = low + (high - low) * self.rng.random()
        while self.network.loss and self.rng.random() < self.network.loss:
            wait += 0.2
        return wait


def main() -> None:
    """Replay one scenario."""
    from tests.simulation.desk_scenarios import SCENARIOS

    parser = argparse.ArgumentParser(prog="python -m tests.simulation.full_sim")
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=0)
    options = parser.parse_args()
    scenario, nodes = SCENARIOS[options.scenario]
    sim = scenario(options.seed, options.nodes or nodes)
    print(f"{options.scenario} --seed {options.seed}: trace {sim.trace:08x}, {dict(sim.tally)}")


if __name__ == "__main__":
    main()
