# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to other members, each with a nonce of its own: pings, and pings through relays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from phantommesh.endpoint import Address
from phantommesh.membership.carrying import Agree, Carrying
from phantommesh.membership.claims import Claims
from phantommesh.membership.core import Core
from phantommesh.membership.effects import Changed
from phantommesh.membership.judges import Judges
from phantommesh.membership.messages import (
    NOBODY,
    PING,
    PING_REQ,
    SUSPECT,
    Errand,
    Message,
    State,
    accusation,
)
from phantommesh.membership.reach import MAX_HOPS, proves
from phantommesh.membership.rumours import Rumours
from phantommesh.membership.verdicts import Verdicts

MIN_TIMEOUT: Final = 0.02  # s, however quick the network is
MEMORY: Final = 3.0  # s after a probe's end for which a late answer still counts as a sign of life
SETTLE: Final = 1.0  # s between probes of a member until it is clear whether it is partly reachable
LOOK_AGAIN: Final = 10.0  # s between probes of one that is
LOOKED_AT: Final = 20  # such members from which on both take longer


class Probe:
    """One member being asked. ``thorough`` probes use relays; the others ask directly only. ``answered``: it
    answered itself, perhaps too late. ``carried``: an answer came by way of others, and it goes on to see
    whether one comes directly. ``scored``: that it fails may be this node's own fault."""

    __slots__ = (
        "answered", "carried", "done", "ends", "nacks", "nonces", "relays", "scored", "spacing", "step",
        "target", "thorough",
    )  # fmt: skip

    def __init__(self, target: bytes, ends: float, spacing: float, thorough: bool, scored: bool) -> None:
        self.target = target
        self.ends = ends
        self.spacing = spacing
        self.thorough, self.scored = thorough, scored
        self.step = 0
        self.nonces: list[bytes] = []
        self.relays = 0
        self.nacks = 0
        self.done = False
        self.answered = False
        self.carried = False


class _Direct(NamedTuple):
    probe: Probe
    asked: float


@dataclass(slots=True)
class _Through:
    """A question by way of a relay."""

    probe: Probe
    relay: bytes
    nonce: bytes  # of the question, the same for all relays that are asked at one time
    secret: bytes | None = None  # that its answer is proved by, once there was one: many wrong ones may come


class _Elsewhere(NamedTuple):
    """A question to a member at an address that its record does not name. The nonce went nowhere else."""

    probe: Probe
    at: Address
    asked: float


class _Contact(NamedTuple):
    """A ping to an address of which we do not know who is there."""

    address: Address


class Probing:
    """Asks, and answers what is asked of this node. ``contacted`` tells of answers from bare addresses."""

    def __init__(self, core: Core, agree: Agree) -> None:
        self._core, self._agree = core, agree
        self._waiting: dict[bytes, _Direct | _Through | _Elsewhere | _Contact] = {}
        self._looks: set[bytes] = set()  # members that are partly reachable and will be looked at again
        self.claims = Claims(core)
        self.verdicts = Verdicts(core, self.claims, self.check, lambda: self.judges.want())
        self.rumours = Rumours(core, self.claims, self.verdicts)
        self.judges = Judges(core, self.verdicts, self.rumours, self.check)
        self._carrying = Carrying(core, agree, self.verdicts, self._told_first)
        self.contacts: list[tuple[bytes, Address]] = []

    # Asking whether a member is there.

    def tick(self, _: None) -> None:
        """Probe the next member of the round."""
        core = self._core
        interval = core.params.probe_interval * core.health.scale
        core.at(core.clock + interval, self.tick)
        target = core.next_probe()
        if target == core.node:  # ourselves: once a round
            target = core.next_probe()
        if target is not None and target != core.node:
            self._begin(target, interval, thorough=True)

    def check(self, target: bytes, thorough: bool) -> None:
        """Ask one member now."""
        core = self._core
        if core.table.get(target) is not None and target != core.node:
            # If this node is badly placed, its own pings alone say little.
            helped = core.reach.known(target) or core.reach.elsewhere(target)
            interval = core.params.probe_interval * core.health.scale
            self._begin(target, interval, thorough or helped, scored=thorough)

    def _begin(self, target: bytes, interval: float, thorough: bool, *, scored: bool = True) -> None:
        core = self._core
        scale = core.health.scale
        if core.params.adaptive:
            beyond = core.vicinity.beyond(target)
            spacing = scale * core.rtt.timeout(target, MIN_TIMEOUT, core.params.probe_timeout, beyond=beyond)
            spacing = min(spacing, interval / 4)
        else:
            spacing = core.params.probe_timeout * scale
        helped = thorough and core.reach.leans(target) and not self._spared(target)
        ends = core.clock + (interval * (1 + helped) if thorough else 3 * spacing)
        probe = Probe(target, ends, spacing, thorough, scored)
        self._ping(probe)
        if helped:
            self._ask_relays(probe)
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
        if core.params.verify:
            self._ask_elsewhere(probe, first)

    def _ask_elsewhere(self, probe: Probe, first: list[bytes]) -> None:
        """Ask a member where it was heard as well. Anybody may be there, so this is a question that only the
        member itself can answer: a ping-req about it, to it. A member that is at home answers there
        first."""
        core = self._core
        if not probe.step and core.params.adaptive and core.places.home(probe.target):
            return
        for address in core.places.ask(probe.target, core.clock):
            nonce = core.nonce()
            probe.nonces.append(nonce)
            self._waiting[nonce] = _Elsewhere(probe, address, core.clock)
            errand = Errand(core.node, nonce, 0).encode()
            core.send(address, PING_REQ, nonce, probe.target, first, extra=errand, news=False)

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
        if probe.thorough and not probe.carried and probe.step in ((2, 3) if params.adaptive else (1,)):
            self._ask_relays(probe)
        following = core.clock + probe.spacing
        if not params.adaptive or (probe.thorough and probe.step == 3):
            following = probe.ends
        core.at(min(following, probe.ends), self._step, probe)

    def _spared(self, target: bytes) -> bool:
        """Whether a member with helpers is not asked by way of them: it gave a sign of life a moment ago. One
        such question is dozens of datagrams, where NATs part most pairs."""
        core = self._core
        return core.reach.leans(target) and core.signs.fresh(target, core.clock)

    def _ask_relays(self, probe: Probe) -> None:
        core, doubted, target = self._core, self.verdicts.doubted, probe.target
        if self._spared(target):
            return
        wait_ms = max(1, int(600 * (probe.ends - core.clock)))
        relays = core.reach.helpers(target, core.clock, core.table.down)
        wanted = core.params.indirect - len(relays)
        relays += core.peers(wanted, lambda n: n == target or n in relays or doubted(n), about=target)
        question = core.nonce()
        errand = Errand(core.node, question, MAX_HOPS).encode()
        for relay in relays:
            nonce = core.nonce()
            probe.nonces.append(nonce)
            probe.relays += 1
            self._waiting[nonce] = _Through(probe, relay, question)
            core.send(relay, PING_REQ, nonce, target, wait_ms=min(wait_ms, 0xFFFF), extra=errand)

    def _end(self, probe: Probe) -> None:
        core = self._core
        probe.done = True
        core.at(core.clock + MEMORY, self._forget, probe.nonces)
        if probe.carried or self._spared(probe.target):
            self._weigh(probe.target, direct=False)
            return
        if probe.thorough and probe.scored and core.params.lifeguard:
            missing = probe.relays - probe.nacks if probe.relays else 1
            if core.params.verify:
                # Lifeguard counts each missing nack. But one that came says that we hear and are heard,
                # and those of our second round have little time: a death cost its finder up to six points.
                missing = 0 if probe.nacks else min(missing, core.params.indirect)
            core.health.adjust(missing)
        if probe.thorough and core.reach.missed(probe.target) and probe.target not in core.table.down:
            self.check(probe.target, False)
        else:
            self.verdicts.failed(probe.target, probe.thorough)

    def _weigh(self, target: bytes, *, direct: bool) -> None:
        """A probe found a member alive. See whether it is reached otherwise than before, and look again."""
        core = self._core
        if core.table.get(target) is None or target in core.table.down or not core.params.verify:
            return
        event = core.reach.weigh(target, direct=direct)
        if event is not None:
            core.out.append(Changed(target, State.ALIVE, State.ALIVE, event))
        if core.reach.known(target) and target not in self._looks:
            soon = core.reach.unsettled(target) or direct
            self._looks.add(target)
            wait = (SETTLE if soon else LOOK_AGAIN) * max(1.0, len(core.reach) / LOOKED_AT)
            core.at(core.clock + wait, self._look_again, target)

    def _look_again(self, target: bytes) -> None:
        self._looks.discard(target)
        if self._core.reach.known(target) and target not in self._core.table.down:
            self.check(target, False)

    def _settle(self, target: bytes) -> None:
        """Soon find out whether a member that answered from elsewhere is at home."""
        if self._core.places.unsettled(target) and target not in self._core.table.down:
            self.check(target, False)

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
        """An ack: first-hand word if it answers our own ping."""
        core = self._core
        waiting = self._waiting.get(message.nonce)
        events = message.events
        if isinstance(waiting, _Direct):
            probe = waiting.probe
            if message.sender != probe.target:
                core.drops["impostor"] += 1
                return
            del self._waiting[message.nonce]
            core.rtt.measured(
                probe.target, core.clock - waiting.asked, beyond=core.vicinity.beyond(probe.target)
            )
            core.places.at_home(probe.target)
            probe.answered = True
            if not probe.done:
                self._weigh(probe.target, direct=True)
            self._succeed(probe)
            self.rumours.answered(probe.target, events[0] if events else None)
            self.rumours.hear(events[1:], probe.target)
        elif isinstance(waiting, _Contact):
            del self._waiting[message.nonce]
            self.contacts.append((message.sender, waiting.address))
            self.rumours.hear(events, source)
        else:
            core.drops["nonce"] += 1

    def carried(self, message: Message) -> None:
        """An answer by way of others: to our own question, or to one that this node carries."""
        waiting = self._waiting.get(message.nonce)
        if isinstance(waiting, _Through):
            self._take_proof(waiting, message)
        elif isinstance(waiting, _Elsewhere):
            self._found_elsewhere(waiting, message)
        else:
            self._carrying.answered(message)

    def _found_elsewhere(self, waiting: _Elsewhere, message: Message) -> None:
        """A member answers where its record does not say that it is."""
        core, probe, target = self._core, waiting.probe, waiting.probe.target
        if message.sender != target or len(message.events) != 1:
            core.drops["impostor"] += 1
            return
        event, nonce = message.events[0], message.nonce
        secret = self._agree(target, nonce[0])
        if secret is None or not proves(message.extra, secret, core.node, target, nonce, event):
            core.drops["proof"] += 1
            return
        del self._waiting[nonce]
        core.rtt.measured(target, core.clock - waiting.asked, beyond=core.vicinity.beyond(target))
        core.places.prove(target, waiting.at, core.clock, first=not probe.answered)
        if not probe.answered and core.places.unsettled(target):
            core.at(core.clock + SETTLE, self._settle, target)
        probe.answered = True
        if not probe.done:
            self._weigh(target, direct=True)
        self._succeed(probe)
        self.rumours.answered(target, event)

    def _take_proof(self, waiting: _Through, message: Message) -> None:
        """Believe a helper only what the member itself says by way of it."""
        core, probe, target = self._core, waiting.probe, waiting.probe.target
        if message.sender != waiting.relay or len(message.events) != 1:
            core.drops["impostor"] += 1
            return
        event, nonce = message.events[0], waiting.nonce
        if core.params.verify:
            secret = waiting.secret = waiting.secret or self._agree(target, nonce[0])
            if secret is None or not proves(message.extra, secret, core.node, target, nonce, event):
                core.drops["proof"] += 1
                return
        del self._waiting[message.nonce]
        if core.params.verify:
            core.reach.carried(target, waiting.relay, core.clock)
            if not probe.done and not probe.carried and core.params.lifeguard:
                core.health.adjust(-1)
            probe.carried = True
        else:
            self._succeed(probe)
        self.rumours.answered(target, event)

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
        """A question about this node, or about another, by way of this node or more."""
        self.rumours.hear(message.events, source)
        self._carrying.asked(message, source)
