# SPDX-License-Identifier: GPL-3.0-or-later
"""All agents of many nodes through a simulated day: each node's own `Council` over what its machine shows.

Each agent looks on its own cadence while its view has something in it, or something stands for it. Of a quiet
view it looks every `QUIET` seconds only: there is nothing that it would do, and 200 nodes for a day would be
10^8 looks. VELOCITY and STREAM look once a second where traffic flows and nothing ails it, STREAM each 5 s
where only calls are seen, CIPHER each 20 s where a link is stale and nobody's identity is in doubt. What is
accepted is carried out in the world at once; one action in `FAILS` fails, as in life.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_network
from math import inf
from typing import Final, assert_never

from msgspec.structs import replace

from phantommesh.acl.bans import BanError, Bans
from phantommesh.acl.threats import Offences
from phantommesh.agents.actions import (
    Action,
    Ban,
    Cover,
    Deal,
    Drain,
    Mend,
    Pin,
    Quarantine,
    Raise,
    Renew,
    ReplaceKey,
    Restart,
    Rotate,
    Shed,
    Throttle,
    Tune,
    Weigh,
)
from phantommesh.agents.base import AgentName
from phantommesh.agents.council import Council, Minutes, Order
from phantommesh.agents.everyone import MAKERS, make_council
from phantommesh.agents.genesis import Genesis
from phantommesh.config.agents import AegisSection, AgentsSection, PhantomSection
from phantommesh.node.steps import Moment
from tests.simulation.day_referee import Referee
from tests.simulation.day_views import VIEWS
from tests.simulation.day_world import HOP, HOUR, SERVICES, Machine, Trouble, World, plan

QUIET: Final[dict[AgentName, float]] = {
    "fortress": 60.0, "cipher": 60.0, "velocity": 300.0, "stream": 300.0, "genesis": 60.0, "nexus": 60.0,
    "omniscient": 60.0, "phantom": 60.0,
}  # fmt: skip
"""Seconds between looks at what is quiet; an agent that is not here keeps its own cadence."""
NEWS: Final[dict[Trouble, tuple[AgentName, ...]]] = {
    "lag": ("omniscient",), "wedge": ("omniscient",), "unready": ("nexus",),
}  # fmt: skip
"""Troubles that may come again just after they ended, and whose business that is."""
COVERED: Final = PhantomSection(cover_bytes_per_second=20_000.0, cover_peer_bytes_per_second=8_000.0)
SETTINGS: Final = AgentsSection(aegis=AegisSection(mend=True), phantom=COVERED)
HOPPING: Final = replace(SETTINGS, phantom=replace(COVERED, hop_hours=HOP / HOUR))
"""What each fourth node has."""
FAILS: Final = 50


@dataclass(slots=True)
class Attack:
    """Somebody outside, or behind a member's NAT, who offends again and again where that gets through."""

    host: str
    kind: str
    targets: list[int]
    until: float


@dataclass(slots=True)
class Told:
    """What the day came to. Counts are by agent."""

    looks: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    unmet: Counter[str] = field(default_factory=Counter)
    benched: Counter[str] = field(default_factory=Counter)
    planted: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    bans: int = 0
    slowest_restart: float = 0.0
    most_standing: int = 0


class Day:
    """The whole of it. Agents without a view do not run, and are named in ``missing``."""

    def __init__(self, nodes: int, seed: int, hours: float) -> None:
        self.world = World(nodes, seed)
        self.referee, self.told = Referee(self.world), Told()
        self.missing = sorted(set(MAKERS) - set(VIEWS))
        self.end = self.world.now + hours * HOUR
        self._rng, self._order, self._traces = random.Random(seed + 2), itertools.count(), itertools.count()
        self._events: list[tuple[float, int, int, str]] = []
        self._due: dict[tuple[int, AgentName], float] = {}
        self._attacks: dict[int, Attack] = {}
        self.councils = [self._council(one) for one in self.world.machines]
        for after, what, number in list(plan(self.world, hours)):
            self._at(self.world.now + after, what, number)

    # Time.

    def _at(self, when: float, what: str, number: int) -> None:
        heapq.heappush(self._events, (when, next(self._order), number, what))

    def _council(self, one: Machine) -> Council:
        now = self.world.now
        settings = SETTINGS if one.number % 4 else HOPPING
        council = make_council(settings, lambda: str(next(self._traces)), now)
        council.anew("genesis", Genesis(random.Random(self._rng.random())))  # a day is drawn from its seed
        for name in council.seats:
            if name in VIEWS:
                self._look_at(one, name, now + self._rng.random() * council.seats[name].agent.every)
        return council

    def _look_at(self, one: Machine, name: AgentName, when: float) -> None:
        self._due[one.number, name] = when
        self._at(when, f"look {name}", one.number)

    def _wake(self, one: Machine, *names: AgentName) -> None:
        """Something has come about that these agents would see at their next look."""
        for name in names:
            if one.up and name in self.councils[one.number].seats:
                every = self.councils[one.number].seats[name].agent.every
                if self.world.now + every < self._due.get((one.number, name), inf):
                    self._look_at(one, name, self.world.now + every)

    def run(self) -> Told:
        """Go on to the end of the day."""
        world = self.world
        while self._events and self._events[0][0] <= self.end:
            world.now, _, number, what = heapq.heappop(self._events)
            one = world.machines[number]
            if what.startswith("look "):
                name: AgentName = what[5:]  # type: ignore[assignment]
                if self._due.get((number, name)) == world.now and one.up:
                    self._look(one, name)
            elif what.startswith("offend "):
                self._offend(int(what[7:]))
            elif what == "ends":
                if one.session is not None and one.session.ends <= world.now:
                    world.count(one)
                    one.ended = one.session.peer, world.now
                    one.session = None
            else:
                self._befall(one, what)  # type: ignore[arg-type]
        for council in self.councils:
            self._settle(council)
        return self.told

    def _settle(self, council: Council) -> None:
        for name, seat in council.seats.items():
            self.told.met[name] += seat.met
            self.told.unmet[name] += seat.unmet
            self.told.benched[name] += seat.benched

    # Agents.

    def _look(self, one: Machine, name: AgentName) -> None:
        world, council = self.world, self.councils[one.number]
        now = world.now
        self._do(one, council.lapse(now))
        seat = council.seats[name]
        if council.looks(name, now):
            seen, quiet = VIEWS[name](world, one)
            work = council.look(name, seen, (), Moment(now, now))
            self._minutes(one, council.looked(name, work(), 0.0, Moment(now, now)))
            self.told.looks[name] += 1
        else:
            quiet = True
        every = seat.agent.every
        if name == "velocity" and quiet and one.session is not None:
            every = 1.0
        elif name == "stream" and (one.session or one.calls):
            every = 1.0 if one.session else 5.0
        elif name == "cipher" and not quiet and not world.signs:
            every = 20.0
        elif quiet and (name in ("fortress", "genesis", "phantom") or not council.apex.count(name)):
            # Bans stand by themselves, what GENESIS tunes for two minutes, and PHANTOM's finding for longer.
            every = max(every, QUIET.get(name, 0.0))
        self._look_at(one, name, max(council.due(name, now), now + every))

    def _minutes(self, one: Machine, minutes: Minutes) -> None:
        for decision in minutes.decisions:
            self.told.decisions[decision.verdict.proposal.agent] += 1
            if not decision.verdict.accepted:
                self.told.refused[decision.verdict.reason] += decision.times
        self._do(one, minutes.orders)

    def _do(self, one: Machine, orders: list[Order]) -> None:
        council = self.councils[one.number]
        for order in orders:
            proposal = order.proposal
            if order.lift:
                self.referee.lifted(one, proposal)
                self._lift(one, proposal.action)
                continue
            self.told.actions[f"{proposal.agent} {type(proposal.action).__name__}"] += 1
            self.referee.did(one, proposal)
            fails = self._rng.randrange(FAILS) == 0 and not isinstance(proposal.action, Restart)
            error = "it failed" if fails else self._carry(one, proposal.action)
            if error:
                self.told.failed += 1
                self.referee.failed(one, proposal)
            self._do(one, council.carried(order.trace, error).orders)
            standing = sum(1 for _ in council.apex.standing())
            self.told.most_standing = max(self.told.most_standing, standing)

    def _carry(self, one: Machine, action: Action) -> str:
        """Do it in the world; return why that cannot be done."""
        world, now = self.world, self.world.now
        match action:
            case Ban(network, seconds):
                try:
                    one.book.add(
                        ip_network(network), "own", seconds, "", now, world.shield(), kinds=("a", "b")
                    )
                except BanError as error:
                    return str(error)
                self.told.bans += 1
                one.offences.forget(network)
                world.hints.setdefault(network, {})[one.number] = now
            case Shed(rate):
                one.shed = rate
            case Throttle(address, rate):
                one.throttled[address] = rate
            case Raise(rule):
                one.findings[rule] += 1
            case Mend():
                one.open_file = False
            case Rotate(peer):
                other = world.machines[int(peer)]
                if one.apart is not None or other.apart is not None:
                    return "no answer"
                one.rotated[other.number] = other.rotated[one.number] = now
            case ReplaceKey(dimension):
                one.keys[dimension] = now
                one.stuck.discard(dimension)
            case Renew():
                one.certificate = inf
            case Quarantine(peer):
                one.closed.add(int(peer))
            case Weigh(peer, dimension, factor):
                (one.left.discard if factor else one.left.add)((int(peer), dimension))
            case Deal(flow, peer):
                one.dealt.add((int(peer), int(flow)))
                one.pins.pop((int(peer), int(flow)), None)
            case Pin(flow, peer, dimension):
                one.pins[int(peer), int(flow)] = dimension
            case Tune(_, value):
                world.count(one)
                one.probe_seconds = value
            case Drain():
                one.drains, world.stamp = True, world.stamp + 1
            case Restart(service):
                since = max(one.wedged.pop(service, now), one.lag[1])  # while the loop hangs nobody knows
                self.told.slowest_restart = max(self.told.slowest_restart, now - since)
            case Cover(peer, rate):
                one.covered[int(peer)] = rate, now
            case _:
                assert_never(action)
        return ""

    def _lift(self, one: Machine, action: Action) -> None:
        match action:
            case Shed():
                one.shed = None
            case Throttle(address):
                one.throttled.pop(address, None)
            case Quarantine(peer):
                one.closed.discard(int(peer))
            case Weigh(peer, dimension):
                one.left.discard((int(peer), dimension))
            case Deal(flow, peer):
                one.dealt.discard((int(peer), int(flow)))
            case Pin(flow, peer):
                one.pins.pop((int(peer), int(flow)), None)
            case Tune():
                self.world.count(one)
                one.probe_seconds = 0.1
            case Cover(peer):
                one.covered.pop(int(peer), None)
            case Drain():
                one.drains, self.world.stamp = False, self.world.stamp + 1
            case Ban(network):
                for ban in one.book.of("own"):
                    if ban.network == network:
                        one.book.end(ban)
            case _:
                pass  # nothing is left of it

    # Troubles.

    def _befall(self, one: Machine, what: Trouble) -> None:  # a table
        world, rng, now = self.world, self.world.rng, self.world.now
        self.told.planted[what] += 1
        world.stamp += 1
        for agent in NEWS.get(what, ()):
            one.befell[agent] = now
        match what:
            case "down" if one.up:
                one.up, one.apart = False, now if one.apart is None else one.apart
                self._at(
                    now + min(1200.0, rng.uniform(5.0, 30.0) + rng.expovariate(1 / 120)), "up", one.number
                )
            case "up":
                self._start(one)
            case "cut" if one.apart is None:
                one.apart = now
                self._move(one)
                self._at(now + rng.uniform(1.0, 20.0), "joined", one.number)
            case "joined" if one.up:
                one.apart, one.joined = None, now
                self._shake_hands(one)
            case "rebind":
                self._shake_hands(one)
            case "session" if one.session is None:
                world.count(one)
                one.session = world.session_of(one)
                self._at(one.session.ends, "ends", one.number)
                self._wake(one, "phantom", "velocity", "stream", "genesis")
            case "unready":
                one.unready = now
                self._at(now + rng.choice((5.0, 20.0, 40.0 + rng.expovariate(1 / 120))), "ready", one.number)
                self._wake(one, "nexus")
            case "ready":
                one.unready = None
            case "lag":
                one.lag = rng.uniform(0.2, 3.0), now + rng.uniform(1.0, 20.0)
                self._wake(one, "omniscient")
            case "wedge" if one.up:
                one.wedged.setdefault(rng.choice(SERVICES), now)
                self._wake(one, "omniscient")
            case "flood":
                one.floods = now, now + rng.uniform(60.0, 900.0)
                self._wake(one, "fortress")
            case "attack" | "inside":
                self._attack(one, inside=what == "inside")
            case "copied":
                one.copied = world.signed = now
                for other in world.machines:
                    self._wake(other, "cipher")
            case "equivocation":
                one.twice = world.signed = now
            case "drift":
                one.drift = True
                self._at(now + rng.uniform(30.0, 900.0), "undrift", one.number)
                self._wake(one, "nexus")
            case "undrift":
                one.drift = False
            case "policy":
                one.policy = (9, *one.policy[1:])
            case "full-disk":
                one.low_disk = now + HOUR
                self._wake(one, "omniscient")
            case "memory":
                one.much_memory = now + HOUR
                self._wake(one, "omniscient")
            case "jump":
                one.jump = rng.choice((-1, 1)) * rng.uniform(3.0, 4000.0)
            case "old-key":
                one.stuck.add(rng.randrange(7))
                one.keys = [now - 86_400.0 if i in one.stuck else key for i, key in enumerate(one.keys)]
            case "old-certificate":
                one.certificate = now
            case "open-file":
                one.open_file = True
            case "dns":
                one.asks[f"fd00::{rng.randrange(1, 200):x}"] = now, now + rng.uniform(60.0, 1800.0)
                self._wake(one, "fortress")
            case "scan" | "beacon":
                one.calls[what] = now + 1800.0
                self._wake(one, "stream")
            case _:
                pass  # it is so already

    def _start(self, one: Machine) -> None:
        """The node begins anew: with its bans, and nothing else in memory."""
        self._settle(self.councils[one.number])
        self.referee.restarted(one)
        now = self.world.now
        one.up, one.apart, one.joined, one.began = True, None, now, now
        one.offences, one.book = Offences(), Bans.decode(one.book.encode(), now)
        one.closed, one.left, one.dealt, one.pins, one.rotated = set(), set(), set(), {}, {}
        one.wedged, one.shed, one.throttled, one.drains, one.probe_seconds = {}, None, {}, False, 0.1
        one.session, one.counted, one.covered, one.ended = None, now, {}, (-1, -inf)
        self.councils[one.number] = self._council(one)
        self._shake_hands(one)

    def _move(self, one: Machine) -> None:
        one.host = self.world.rng.choice(self.world.nats)
        one.hosts = (*one.hosts, one.host)[-4:]
        self.world.version += 1

    def _shake_hands(self, one: Machine) -> None:
        """What others have no cookie, session or chain for any more, they cannot use: a few datagrams."""
        rng, now = self.world.rng, self.world.now
        for other in rng.sample(self.world.machines, min(3, len(self.world.machines))):
            if other is one or not other.up:
                continue
            for _ in range(rng.randrange(1, 8)):
                reason = rng.choice(("cookie", "session", "mac", "half-open", "replay"))
                other.offences.note(reason, one.host, "cookie", now)
            self._wake(other, "fortress", "cipher")

    def _attack(self, one: Machine, *, inside: bool) -> None:
        rng, number = self.world.rng, len(self._attacks)
        host = one.host if inside else f"198.18.{number // 250}.{number % 250 + 1}"
        if not inside:
            self.world.attackers.add(host)
        targets = rng.sample(
            range(len(self.world.machines)), min(len(self.world.machines), rng.randrange(1, 11))
        )
        kind = rng.choice(("mac", "invite-proof", "stream-overdue", "scan"))
        self._attacks[number] = Attack(host, kind, targets, self.world.now + rng.uniform(60.0, 7200.0))
        self._offend(number)

    def _offend(self, number: int) -> None:
        attack, now = self._attacks[number], self.world.now
        for target in attack.targets:
            one = self.world.machines[target]
            if not one.up or one.book.get(f"{attack.host}/32") is not None:
                continue  # the kernel drops it
            for _ in range(8):
                if attack.kind == "scan":
                    one.offences.add(f"{attack.host}/32", "scan", 1.0, "neighbour", now)
                else:
                    proof = "tcp" if attack.kind == "stream-overdue" else "cookie"
                    one.offences.note(attack.kind, attack.host, proof, now)  # type: ignore[arg-type]
            self._wake(one, "fortress")
        if now < attack.until:
            self._at(now + 2.0 + 30.0 * (number % 3), f"offend {number}", 0)
