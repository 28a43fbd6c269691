# SPDX-License-Identifier: GPL-3.0-or-later
"""The machines that the nodes of `full_sim` run on, and the network between the machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from phantommesh import routable
from phantommesh.endpoint import Address
from phantommesh.records.runs import NOBODY, Run
from phantommesh.state.invitebook import InviteEntry
from phantommesh.state.routebook import Approval
from phantommesh.trust.identity import Identity
from phantommesh.trust.issuing import Authority
from tests.simulation.full_nat import Nat
from tests.simulation.full_wireguard import Kernel

if TYPE_CHECKING:
    from tests.simulation.full_joining import Joining
    from tests.simulation.full_node import Process

NEVER = float("inf")


@dataclass
class Network:
    """Probabilities per datagram; one-way delays in seconds, uniform. ``cut`` says which ways are closed to
    everything, ``deaf`` which are closed to UDP on the control port only; machines may be behind ``nats``."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: tuple[float, float] = (0.005, 0.04)
    cut: Callable[[int, int], bool] | None = None
    deaf: Callable[[int, int], bool] | None = None
    nats: list[Nat] = field(default_factory=list)
    without_ipv6: set[int] = field(default_factory=set)  # the machines that neither send nor get it

    def open(self, a: int, b: int) -> bool:
        """Whether anything gets from a to b."""
        return self.cut is None or not self.cut(a, b)

    def both(self, a: int, b: int) -> bool:
        """Whether a stream between the two works."""
        return self.open(a, b) and self.open(b, a)

    def begins(self, a: int, b: int) -> bool:
        """Whether a can begin a stream to b, or a WireGuard handshake where it has not heard of b."""
        nat = self.nat_of(b)
        return self.both(a, b) and (nat is None or a in nat.inside)

    def nat_of(self, index: int) -> Nat | None:
        """The NAT that a machine is behind."""
        return next((nat for nat in self.nats if index in nat.inside), None)

    def leave(self, index: int, source: Address, to: Address, now: float) -> Address:
        """The address that a datagram seems to come from."""
        nat = self.nat_of(index)
        return source if nat is None else nat.out(source, to, now)

    def find(self, index: int, source: Address, to: Address, now: float) -> Address | None:
        """The machine's own address that a datagram gets to; None where a NAT drops it."""
        for nat in self.nats:
            if to.host == nat.outside:
                return nat.into(to, source, now)
        return to


class Machine:
    """All that outlives a process: the identity, the disk, the kernel's interfaces, the clock."""

    def __init__(self, index: int, node: Identity) -> None:
        self.index, self.identity = index, node
        self.name = f"n{index}"
        self.address = Address(f"10.{index >> 16}.{index >> 8 & 255}.{index & 255}", 51800)
        self.also: tuple[Address, ...] = ()  # addresses that its record names first
        self.authority: Authority | None = None
        self.root_key: Identity | None = None
        self.invites: dict[bytes, InviteEntry] = {}
        self.approvals: tuple[Approval, ...] = ()
        self.advertised: tuple[routable.Network, ...] = ()
        self.thread_seconds = 0.002  # s that a signature takes
        self.disk_seconds, self.disk_full = 0.005, False  # how long a file takes to write; whether it fails
        self.node_cert = self.authority_cert = b""
        self.version = "sim"
        self.disk: dict[str, bytes] = {}
        self.kernel = Kernel()
        self.process: Process | None = None
        self.standby: Process | None = None  # it has stepped aside for another run of the node
        self.stepped_aside_for: Run = NOBODY
        self.joining: Joining | None = None
        self.told: list[str] = []  # why no authority took the node back, the last time
        self.generation = 0
        self.leap = 0
        self.life = 0
        self.offset = self.wall_offset = 0.0
        self.wake = NEVER
        self.stalled = self.missed = False
        self.backlog: list[tuple[bytes, Address]] = []
