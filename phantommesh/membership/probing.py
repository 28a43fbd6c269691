# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to other members, each with a nonce of its own: pings, pings through relays, and queries."""

from __future__ import annotations

from typing import Final, NamedTuple

from phantommesh.membership.cases import Case
from phantommesh.membership.claims import Claims
from phantommesh.membership.core import Core
from phantommesh.membership.messages import (
    ACK,
    ANSWER,
    DEAD,
    MAX_EVENTS,
    NACK,
    NOBODY,
    PING,
    PING_REQ,
    QUERY,
    SUSPECT,
    Message,
    State,
    accusation,
)
from phantommesh.membership.rumours import Rumours
from phantommesh.membership.verdicts import Verdicts
from phantommesh.wire import Address

MIN_TIMEOUT: Final = 0.02  # s, however quick the network is
MEMORY: Final = 3.0  # s after a probe's end for which a late answer still counts as a sign of life
MAX_RELAYED: Final = 256  # ping-reqs that this node serves at once
MAX_RELAY_WAIT: Final = 5.0  # s that a ping-req may take, whatever it asks for
TICK: Final = 0.1  # s between rounds of queries
QUERY_AGAIN: Final = 0.25  # s between queries about one member; half as much more each time
QUERY_AGAIN_MAX: Final = 5.0
RECHECK: Final = 2.0  # s after which a member that we cannot reach, but others can, is asked anew


class Probe:
    """One member being asked. ``thorough`` probes use relays; the others ask directly only."""

    __slots__ = ("done", "ends", "nacks", "nonces", "relays", "spacing", "step", "target", "thorough")

    def __init__(self, target: bytes, ends: float, spacing: float, thorough: bool) -> None:
        self.target = target
        self.ends = ends
        self.spacing = spacing
        self.thorough = thorough
        self.step = 0
        self.nonces: list[bytes] = []
        self.relays = 0
        self.nacks = 0
        self.done = False


class _Direct(NamedTuple):
    probe: Probe
    asked: float


class _Through(NamedTuple):
    probe: Probe
    relay: bytes


class _Serving(NamedTuple):
    """A ping-req that this node serves: who asked, with which nonce, about whom."""

    asker: Address
    nonce: bytes
    target: bytes


class _Asked(NamedTuple):
    witness: bytes


class _Contact(NamedTuple):
    """A ping to an address of which we do not know who is there."""

    address: Address


class Probing:
    """Asks, and answers what is asked of this node. ``contacted`` tells of answers from bare addresses."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiting: dict[bytes, _Direct | _Through | _Serving | _Asked | _Contact] = {}
        self._serving = 0
        self._querying = False
        self.claims = Claims(core)
        self.verdicts = Verdicts(core, self.claims, self.check, self.want_query)
        self.rumours = Rumours(core, self.claims, self.verdicts)
        self.contacts: list[tuple[bytes, Address]] = []

    # Asking whether a member is there.

    def tick(self, _: None) -> None:
        """Probe the next member of the round."""
        core = self._core
        interval = core.params.probe_interval * core.health.scale
        core.at(core.clock + interval, self.tick)
        target = core.table.next_probe(core.rng)
        if target == core.node:  # ourselves: once a round
            target = core.table.next_probe(core.rng)
        if target is not None and target != core.node:
            self._begin(target, interval, thorough=True)

    def check(self, target: bytes, thorough: bool) -> None:
        """Ask one member now."""
        core = self._core
        if core.table.get(target) is not None and target != core.node:
            self._begin(target, core.params.probe_interval * core.health.scale, thorough)

    def _begin(self, target: bytes, interval: float, thorough: bool) -> None:
        core = self._core
        scale = core.health.scale
        if core.params.adaptive:
            spacing = scale * core.rtt.timeout(target, MIN_TIMEOUT, core.params.probe_timeout)
            spacing = min(spacing, interval / 4)
        else:
            spacing = core.params.probe_timeout * scale
        ends = core.clock + (interval if thorough else 3 * spacing)
        probe = Probe(target, ends, spacing, thorough)
        self._ping(probe)
        core.at(core.clock + spacing, self._step, probe)

    def _ping(self, probe: Probe) -> None:
        core, target = self._core, probe.target
        nonce = core.nonce()
        probe.nonces.append(nonce)
        self._waiting[nonce] = _Direct(probe, core.clock)
        first = self._told_first(target) if core.params.lifeguard else []
        if core.params.verify and not probe.thorough:
            # Out of turn: perhaps both of us were away. So it hears of us as well, and need not by chance.
            first = [core.own, *first]
        core.send(target, PING, nonce, target, first)

    def _told_first(self, node: bytes) -> list[bytes]:
        """Lifeguard's buddy system: whoever is accused hears of it from whoever talks to it."""
        core = self._core
        down = core.table.down.get(node)
        if down is not None:
            return [accusation(node, down.key, down.state, core.node)]
        case = self.verdicts.cases.get(node)
        if case is None or case.kind is State.ALIVE:
            return []
        accuser = core.node if case.accuses else min(case.accusers)
        return [accusation(node, case.key, SUSPECT, accuser)]

    def _step(self, probe: Probe) -> None:
        """Nothing yet: ask again, and through others."""
        if probe.done:
            return
        core, params = self._core, self._core.params
        if core.clock >= probe.ends - 1e-6:
            self._end(probe)
            return
        probe.step += 1
        if params.adaptive:
            self._ping(probe)
        if probe.thorough and probe.step in ((2, 3) if params.adaptive else (1,)):
            self._ask_relays(probe)
        following = core.clock + probe.spacing
        if not params.adaptive or (probe.thorough and probe.step == 3):
            following = probe.ends
        core.at(min(following, probe.ends), self._step, probe)

    def _ask_relays(self, probe: Probe) -> None:
        core, doubted = self._core, self.verdicts.doubted
        wait_ms = max(1, int(600 * (probe.ends - core.clock)))
        for relay in core.peers(core.params.indirect, lambda n: n == probe.target or doubted(n)):
            nonce = core.nonce()
            probe.nonces.append(nonce)
            probe.relays += 1
            self._waiting[nonce] = _Through(probe, relay)
            core.send(relay, PING_REQ, nonce, probe.target, wait_ms=min(wait_ms, 0xFFFF))

    def _end(self, probe: Probe) -> None:
        core = self._core
        probe.done = True
        core.at(core.clock + MEMORY, self._forget, probe.nonces)
        if probe.thorough and core.params.lifeguard:
            missing = probe.relays - probe.nacks if probe.relays else 1
            if core.params.verify:
                # Lifeguard counts each missing nack. But one that came says that we hear and are heard,
                # and those of our second round have little time: a death cost its finder up to six points.
                missing = 0 if probe.nacks else min(missing, core.params.indirect)
            core.health.adjust(missing)
        self.verdicts.failed(probe.target, probe.thorough)

    def _forget(self, nonces: list[bytes]) -> None:
        for nonce in nonces:
            self._waiting.pop(nonce, None)

    def contact(self, address: Address) -> None:
        """Ping whoever is at an address."""
        core = self._core
        nonce = core.nonce()
        self._waiting[nonce] = _Contact(address)
        core.at(core.clock + MEMORY, self._forget, [nonce])
        core.send(address, PING, nonce, NOBODY, [core.own])

    # Answers.

    def answered(self, message: Message, source: Address) -> None:
        """An ack: first-hand word if it answers our own ping, a rumour if it came through a relay."""
        core = self._core
        waiting = self._waiting.get(message.nonce)
        events = message.events
        if isinstance(waiting, _Direct):
            probe = waiting.probe
            if message.sender != probe.target:
                core.drops["impostor"] += 1
                return
            del self._waiting[message.nonce]
            core.rtt.measured(probe.target, core.clock - waiting.asked)
            self._succeed(probe)
            self.rumours.answered(probe.target, events[0] if events else None)
            self.rumours.hear(events[1:], probe.target)
        elif isinstance(waiting, _Through):
            if message.sender != waiting.relay:
                core.drops["impostor"] += 1
                return
            del self._waiting[message.nonce]
            self._succeed(waiting.probe)
            self.rumours.indirectly(waiting.probe.target)
            self.rumours.hear(events, waiting.relay)
        elif isinstance(waiting, _Serving):
            if message.sender != waiting.target:
                core.drops["impostor"] += 1
                return
            del self._waiting[message.nonce]
            self._serving -= 1
            core.send(waiting.asker, ACK, waiting.nonce, waiting.target, events[:1])
        elif isinstance(waiting, _Contact):
            del self._waiting[message.nonce]
            self.contacts.append((message.sender, waiting.address))
            self.rumours.hear(events, source)
        else:
            core.drops["nonce"] += 1

    def _succeed(self, probe: Probe) -> None:
        if probe.done:
            return
        probe.done = True
        self._core.at(self._core.clock + MEMORY, self._forget, probe.nonces)
        # Any answer says that we hear and are heard: by turns alone a node that was cut off would be slow to
        # judge for half a minute after.
        if (probe.thorough or self._core.params.verify) and self._core.params.lifeguard:
            self._core.health.adjust(-1)

    def refused(self, message: Message) -> None:
        """A nack: the relay is well, its target did not answer it."""
        waiting = self._waiting.get(message.nonce)
        if isinstance(waiting, _Through) and waiting.relay == message.sender:
            waiting.probe.nacks += 1
            del self._waiting[message.nonce]

    # Questions to this node.

    def pinged(self, message: Message, source: Address) -> None:
        """Answer a ping that is meant for us."""
        core = self._core
        if message.target not in (core.node, NOBODY):
            core.drops["target"] += 1
            return
        self.rumours.hear(message.events, source)
        core.answer(source, message.nonce, self._told_first(message.sender))
        self.hint(message.sender)

    def hint(self, sender: bytes) -> None:
        """A datagram claims to come from a member that we hold for dead: ask it."""
        down = self._core.table.down.get(sender)
        if down is not None and self._core.params.verify:
            self.verdicts.ask_whether_back(sender, down.key)

    def relay(self, message: Message, source: Address) -> None:
        """Ping a member for another."""
        core, target = self._core, message.target
        self.rumours.hear(message.events, source)
        if core.table.get(target) is None or target == core.node or self._serving >= MAX_RELAYED:
            core.drops["relay"] += 1
            return
        nonce = core.nonce()
        self._waiting[nonce] = _Serving(source, message.nonce, target)
        self._serving += 1
        core.send(target, PING, nonce, target, self._told_first(target) if core.params.lifeguard else ())
        core.at(core.clock + min(message.wait_ms / 1000, MAX_RELAY_WAIT), self._relay_failed, nonce)

    def _relay_failed(self, nonce: bytes) -> None:
        waiting = self._waiting.pop(nonce, None)
        if isinstance(waiting, _Serving):
            self._serving -= 1
            if self._core.params.lifeguard:
                self._core.send(waiting.asker, NACK, waiting.nonce, waiting.target)

    # Judges.

    def want_query(self) -> None:
        """There are cases to ask others about."""
        if not self._querying and self._core.params.verify:
            self._querying = True
            self._core.at(self._core.clock, self._query)

    def _query(self, _: None) -> None:
        core, cases = self._core, self.verdicts.cases
        open_cases = [c for c in cases.values() if c.checked or (c.accuses and c.next_query <= core.clock)]
        due = sorted((c for c in open_cases if c.next_query <= core.clock), key=lambda c: c.next_query)
        due = due[: MAX_EVENTS - 1]
        for case in open_cases:
            if case.kind is not State.ALIVE and case.deadline <= core.clock:
                self.verdicts.judge(case)  # fewer may be left to ask than there were
        self._querying = bool(open_cases)
        if due:
            self._ask_judges(due)
        if self._querying:
            core.at(core.clock + TICK, self._query)

    def _ask_judges(self, due: list[Case]) -> None:
        core, cases, doubted = self._core, self.verdicts.cases, self.verdicts.doubted
        subjects = []
        for case in due:
            subjects.append(self._subject(case))
            case.next_query = core.clock + min(QUERY_AGAIN * 1.5**case.queries, QUERY_AGAIN_MAX)
            case.queries += 1
            if case.failed is not None and core.clock - case.failed > RECHECK and not case.asking:
                case.asking = True
                self.check(case.node, True)
        wanted = core.params.query_nodes
        judges = core.peers(wanted, doubted)
        if len(judges) < wanted:  # or else a forger that accuses everyone would leave nobody to ask
            judges += core.peers(
                wanted - len(judges), lambda n: n in judges or (doubted(n) and cases[n].failed is not None)
            )
        for witness in judges:
            nonce = core.nonce()
            self._waiting[nonce] = _Asked(witness)
            core.at(core.clock + 2 * core.params.probe_timeout * core.health.scale, self._silent, nonce)
            core.send(witness, QUERY, nonce, witness, subjects)

    def _subject(self, case: Case) -> bytes:
        core = self._core
        if case.accuses:
            return accusation(case.node, case.key, SUSPECT, core.node)
        down = core.table.down.get(case.node)
        return accusation(case.node, case.key if down is None else down.key, DEAD, core.node)

    def _silent(self, nonce: bytes) -> None:
        """A judge did not answer in time: see whether it is there."""
        waiting = self._waiting.get(nonce)
        if isinstance(waiting, _Asked):
            self._core.at(self._core.clock + MEMORY, self._forget, [nonce])
            self.verdicts.ask_soon(waiting.witness)

    def queried(self, message: Message, source: Address) -> None:
        """Say what we have found of the members asked about."""
        core = self._core
        if message.target != core.node:
            core.drops["target"] += 1
            return
        self.rumours.hear(message.events, source)
        positions = [self.verdicts.position(raw[:16]) for raw in message.events[: MAX_EVENTS - 1]]
        found = [core.own, *(p for p in positions if p is not None)]
        core.send(source, ANSWER, message.nonce, message.sender, found)

    def testified(self, message: Message) -> None:
        """A judge's answer: its own word about others, and about itself."""
        core = self._core
        waiting = self._waiting.get(message.nonce)
        if not isinstance(waiting, _Asked) or waiting.witness != message.sender:
            core.drops["nonce"] += 1
            return
        del self._waiting[message.nonce]
        events = message.events
        self.rumours.answered(waiting.witness, events[0] if events else None)
        for raw in events[1:]:
            self.verdicts.testimony(waiting.witness, raw)
        self.rumours.hear(events[1:], waiting.witness)
