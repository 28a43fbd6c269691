# SPDX-License-Identifier: GPL-3.0-or-later
"""The machines of a simulated day: what is true of each, and what goes wrong with whom and when.

Ages of keys, addresses, offences, bans, paths and flows are values of a virtual clock; nothing is sent. News
of a member reaches all others at once. `plan` draws the day's troubles; `day_views` shows an agent what it
would see of its machine, and `council_sim` carries out what is accepted.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Final, Literal

from phantommesh.acl.bans import Bans, Shield
from phantommesh.acl.threats import Offences
from phantommesh.dimensions import DIMENSIONS
from phantommesh.paths.probe import ON_WIRE

HOUR: Final = 3600.0
PERIOD: Final = 90.0  # s between two PSKs of a link
SERVICES: Final = tuple(
    f"{name}-{i}" for name in ("links", "paths", "gossip", "records", "names", "control") for i in (1, 2)
)
REGIONS: Final = ("north", "south", "east", "west", "")
MB: Final = 2**20
HOP: Final = 72_000.0  # s after which some nodes replace a key, before its life of a day ends
POLICY: Final = (1, 2, 3, 4, 5, 6)

Bad = Literal["late", "lossy", "dark", "own"]
"""What ails a path: late, lossy, silent, or late by this session's own traffic."""
Trouble = Literal[
    "down", "up", "cut", "joined", "rebind", "session", "unready", "ready", "lag", "wedge", "flood", "attack",
    "inside", "copied", "equivocation", "drift", "undrift", "policy", "full-disk", "memory", "jump",
    "old-key", "old-certificate", "open-file", "dns", "scan", "beacon",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ill:
    """What ails one path from when until when."""

    dimension: int
    bad: Bad
    since: float
    until: float


@dataclass(slots=True)
class Session:
    """Traffic to one peer: bytes a second, and what ails its paths meanwhile. ``held``: from then on its
    elephant holds its path up, so that the splitter names it."""

    peer: int
    began: float
    ends: float
    rate: float
    in_order: bool
    elephant: bool
    held: float
    ills: tuple[Ill, ...]


@dataclass(slots=True)
class Machine:
    """One machine and its node. ``apart``: since when nobody reaches it; ``joined``: since when all do;
    ``hosts``: where it is, and was, as others know."""

    number: int
    name: str
    region: str
    host: str
    hosts: tuple[str, ...]
    up: bool = True
    apart: float | None = None
    joined: float = 0.0
    began: float = 0.0
    version: str = "1.0"
    policy: tuple[int, ...] = POLICY
    # Troubles.
    unready: float | None = None
    lag: tuple[float, float] = (0.0, 0.0)  # seconds of lag, and until when
    wedged: dict[str, float] = field(default_factory=dict)
    floods: tuple[float, float] = (0.0, 0.0)  # from when until when, in pulses
    drift: bool = False
    low_disk: float = 0.0  # until when it goes up and down about the bound
    much_memory: float = 0.0  # likewise
    jump: float = 0.0
    stuck: set[int] = field(default_factory=set)  # keys that nothing replaces
    befell: dict[str, float] = field(default_factory=dict)  # by agent, when something new last came for it
    keys: list[float] = field(default_factory=lambda: [0.0] * DIMENSIONS)
    certificate: float = math.inf  # when it should have been renewed
    open_file: bool = False
    copied: float | None = None  # signs that its identity is used elsewhere, since when
    twice: float | None = None  # there are two records of one number, since when
    asks: dict[str, tuple[float, float]] = field(default_factory=dict)  # by address: since and until when
    calls: dict[str, float] = field(default_factory=dict)  # scans and beacons, until when
    session: Session | None = None
    ended: tuple[int, float] = (-1, -math.inf)  # with which peer the last session was, and until when
    sent: float = 0.0
    lost: float = 0.0
    probes: float = 0.0
    counted: float = 0.0
    offences: Offences = field(default_factory=Offences)
    book: Bans = field(default_factory=Bans)
    # What its agents did.
    closed: set[int] = field(default_factory=set)
    rotated: dict[int, float] = field(default_factory=dict)
    left: set[tuple[int, int]] = field(default_factory=set)
    dealt: set[tuple[int, int]] = field(default_factory=set)
    pins: dict[tuple[int, int], int] = field(default_factory=dict)
    covered: dict[int, tuple[float, float]] = field(default_factory=dict)  # by peer: bytes/s, and since when
    probe_seconds: float = 0.1
    drains: bool = False
    shed: float | None = None
    throttled: dict[str, float] = field(default_factory=dict)
    findings: Counter[str] = field(default_factory=Counter)

    @property
    def id(self) -> str:
        """Stands for the node id."""
        return f"{self.number:026d}"

    def flooded(self, now: float) -> bool:
        """Whether a flood comes at this moment: 20 s of it, then 25 s of nothing."""
        since, until = self.floods
        return since <= now < until and (now - since) % 45.0 < 20.0


class World:
    """All machines, and what is true between them. ``version`` counts the moves."""

    def __init__(self, nodes: int, seed: int) -> None:
        self.rng, self.noise = random.Random(seed), random.Random(seed + 1)
        self.now, self.version = 1_000_000.0, 0
        self.signed = -math.inf  # when such a sign came last
        self.stamp = 0  # counts all that members tell each other
        self.nats = [f"203.0.{i // 250}.{i % 250 + 1}" for i in range(max(2, nodes // 4))]
        self.machines = [self._machine(number) for number in range(nodes)]
        self.attackers: set[str] = set()
        self.hints: dict[str, dict[int, float]] = {}
        self._shield: tuple[int, Shield] = -1, Shield((), ())

    def _machine(self, number: int) -> Machine:
        host = self.rng.choice(self.nats)
        keys = [self.now - self.rng.uniform(0, 80_000) for _ in range(DIMENSIONS)]
        return Machine(
            number, f"node-{number}", REGIONS[number % len(REGIONS)], host, (host,), keys=keys,
            joined=self.now - 1000.0, began=self.now, counted=self.now,
        )  # fmt: skip

    @property
    def signs(self) -> bool:
        """Whether anything of the last minutes says that an identity is in other hands."""
        return self.now < self.signed + 300.0

    def psk_age(self, one: Machine, other: Machine) -> float | None:
        """The age of the PSK of a link, as ``one`` has it; None where it never had one in this run."""
        met = max(one.joined, other.joined, one.began)
        phase = (one.number * other.number * 7919) % PERIOD
        stops = [at for at in (one.apart, other.apart) if at is not None]
        at = min(stops, default=self.now)
        if at < met and stops:
            return None
        return min((at + phase) % PERIOD, at - met, at - one.rotated.get(other.number, 0.0)) + self.now - at

    def shield(self) -> Shield:
        """Whom no machine bans: here the members' known addresses."""
        if self._shield[0] != self.version:
            known = {host for one in self.machines for host in one.hosts}
            self._shield = self.version, Shield((), ((ip_network(host), "a member's") for host in known))
        return self._shield[1]

    def member_at(self, host: str) -> bool:
        """Whether a member is or was at this address."""
        return any(host == one.host or host in one.hosts for one in self.machines)

    def lowering(self, one: Machine, block: str) -> float:
        """What the hints of others take off a threshold."""
        told = self.hints.get(block, {})
        return min(0.75, 0.25 * sum(at > self.now - HOUR for who, at in told.items() if who != one.number))

    def count(self, one: Machine) -> None:
        """Bring a machine's counters of traffic up to now."""
        took, session = self.now - one.counted, one.session
        if session is not None and took > 0.0:
            one.sent += session.rate * took
            one.probes += took / one.probe_seconds * DIMENSIONS * ON_WIRE
            for ill in session.ills:
                if ill.bad == "dark" and one.counted < ill.since <= self.now:
                    one.lost += session.rate / DIMENSIONS * (0.2 + 4 * one.probe_seconds)
        one.counted = self.now

    def session_of(self, one: Machine) -> Session:
        """Draw a session: half of them have something ail their paths."""
        rng = self.rng
        peer = rng.choice([other.number for other in self.machines if other is not one])
        length = min(2 * HOUR, 30.0 + rng.expovariate(1 / 400.0))
        ills = list[Ill]()
        for _ in range(rng.choice((0, 0, 0, 1, 2, 6))):
            since = self.now + rng.uniform(5.0, length)
            bad: Bad = rng.choice(("late", "lossy", "dark", "own"))
            for turn in range(rng.choice((1, 1, 8))):  # once, or again and again
                lasts = rng.uniform(3.0, 60.0)
                at = since + turn * (lasts + rng.uniform(2.0, 20.0))
                ills.append(Ill(rng.randrange(DIMENSIONS), bad, at, at + lasts))
        return Session(
            peer, self.now, self.now + length, rng.uniform(50e3, 500e3), rng.random() < 0.5,
            rng.random() < 0.4, self.now + rng.uniform(10.0, 2 * length), tuple(ills),
        )  # fmt: skip


def private(one: Machine, other: Machine) -> bool:
    """Whether the traffic between two is private: a third of all."""
    return (one.number + other.number) % 3 == 0


def plan(world: World, hours: float) -> Iterator[tuple[float, Trouble, int]]:
    """Draw when what happens to which machine: seconds from now. What a node does often comes as a Poisson
    process; each rare trouble comes once at least."""
    rng, nodes, end = world.rng, len(world.machines), hours * HOUR
    often: list[tuple[Trouble, float]] = [
        ("down", 8 * HOUR), ("cut", 3 * HOUR), ("rebind", HOUR), ("session", 4 * HOUR),
        ("unready", 12 * HOUR), ("lag", 6 * HOUR), ("wedge", 24 * HOUR),
    ]  # fmt: skip
    for number in range(nodes):
        for what, mean in often:
            at = rng.expovariate(1 / mean)
            while at < end:
                yield at, what, number
                at += rng.expovariate(1 / mean)
    seldom: list[tuple[Trouble, float]] = [
        ("wedge", 1), ("unready", 1), ("flood", nodes / 20), ("attack", nodes / 5), ("inside", 2),
        ("copied", 4),
        ("equivocation", 1), ("drift", 3), ("full-disk", 2), ("memory", 2), ("jump", 4), ("old-key", 2),
        ("old-certificate", 2), ("open-file", nodes / 20), ("dns", nodes / 20), ("scan", 4), ("beacon", 4),
    ]  # fmt: skip
    for what, a_day in seldom:
        for _ in range(max(1, round(a_day * hours / 24))):
            yield rng.uniform(0.05, 0.6) * end, what, rng.randrange(nodes)
    yield 0.1 * end, "policy", rng.randrange(nodes)
    for number in range(10):  # some traffic, however short the day
        yield rng.uniform(0.05, 0.6) * end, "session", number % nodes
    # A service that wedges again and again, a region in trouble, and four in ten members gone at once.
    victim = rng.randrange(nodes)
    for turn in range(4):
        yield 0.3 * end + 60.0 * turn, "wedge", victim
    region = range(0, nodes, len(REGIONS))
    for one in region:
        yield 0.5 * end + rng.uniform(0, 20.0), "unready", one
    for one in region[: len(region) // 2]:
        yield 0.4 * end + rng.uniform(0, 2.0), "down", one
    for one in rng.sample(range(nodes), 2 * nodes // 5):
        yield 0.7 * end + rng.uniform(0, 2.0), "down", one
