# SPDX-License-Identifier: GPL-3.0-or-later
"""State that the parts of membership share: who we are, the table, the timers, and the effects gathered so
far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from phantommesh.endpoint import Address
from phantommesh.membership.broadcasts import Broadcasts, retransmit_limit
from phantommesh.membership.effects import Effect, Persist, Send
from phantommesh.membership.health import Awareness, RoundTrips
from phantommesh.membership.messages import (
    ACK,
    ALIVE,
    CARRIED,
    GOSSIP,
    LEFT,
    MAX_EVENTS,
    MAX_GENERATION,
    MAX_INCARNATION,
    MAX_REQUEST_EVENTS,
    PING,
    Kind,
    encode,
    make_key,
)
from phantommesh.membership.presets import Params
from phantommesh.membership.reach import Reach
from phantommesh.membership.signs import Signs, Whereabouts
from phantommesh.membership.table import Table
from phantommesh.membership.vicinity import Vicinity
from phantommesh.timers import Timers

#: How late a timer may be, as a share of the probe interval, before this node knows that it was stalled.
LATE: Final = 0.25


class _Call:
    """An action that is to be done at some time. Two of them are never equal."""

    __slots__ = ("action", "argument")

    def __init__(self, action: Callable[[Any], None], argument: object) -> None:
        self.action, self.argument = action, argument


class Core:
    """State shared by probing, rumours and merging. ``clock`` runs only while this node does:

    a gap between a timer's time and the call that should have served it is taken out, so that a node that was
    stopped, or whose clock leapt, takes up where it was instead of finding everyone late. A clock that goes
    back does not stop it either.
    """

    __slots__ = (
        "_gossip_armed", "_last_gossip", "_offset", "_timers", "clock", "drops", "generation",
        "health", "heard", "incarnation", "leaving", "node", "out", "own", "params", "places", "queue",
        "reach", "received", "record", "rng", "rtt", "sent", "signs", "table", "traffic", "vicinity",
    )  # fmt: skip

    def __init__(
        self,
        node: bytes,
        generation: int,
        record: bytes,
        params: Params,
        rng: Random,
        table: Table,
        now: float,
        near: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.vicinity = Vicinity(near)
        self.node = node
        self.generation = generation
        self.incarnation = 0
        self.record = record
        self.params = params
        self.rng = rng
        self.table = table
        self.queue = Broadcasts()
        self.reach = Reach()
        self.places, self.signs = Whereabouts(), Signs()
        self.health = Awareness(params.awareness_max if params.lifeguard else 1)
        self.rtt = RoundTrips()
        self.out: list[Effect] = []
        self.heard: dict[bytes, float] = {}  # when each member last answered a nonce of ours
        self.traffic: dict[bytes, float] = {}  # when its authenticated WireGuard traffic was last seen
        self.leaving = False
        self.drops: Counter[str] = Counter()
        self.sent = [0] * (max(Kind) + 1)
        self.received = [0] * (max(Kind) + 1)
        self._timers = Timers[_Call]()
        self._offset = 0.0
        self.clock = now
        self._gossip_armed = False
        self._last_gossip = now - params.gossip_interval
        self.own = b""
        self.say(0)

    # Time.

    @property
    def deadline(self) -> float:
        """When the next timer is due, on the owner's clock."""
        return self._timers.first - self._offset

    def advance(self, now: float) -> None:
        """Take the owner's clock over, without what was lost to a stall, a leap or a step back."""
        clock = now + self._offset
        if clock < self.clock:
            self._offset += self.clock - clock
            return
        if self.params.verify:
            due = max(self._timers.first, self.clock)
            late = clock - due
            if late > self.params.probe_interval * LATE:
                self._offset -= late
                clock = due
                self.health.adjust(1)
        self.clock = clock

    def age(self, moment: float, now: float) -> float:
        """The seconds since a moment of `clock`; ``now`` is on the owner's clock."""
        return max(0.0, now + self._offset - moment)

    def at(self, when: float, action: Callable[[Any], None], argument: object = None) -> None:
        """Call ``action(argument)`` at a time of `clock`."""
        self._timers.set(_Call(action, argument), when)

    def run_due(self) -> None:
        """Serve the timers that are due."""
        timers, clock = self._timers, self.clock
        while timers.first <= clock + 1e-9:
            call = timers.take()
            call.action(call.argument)

    def flush(self) -> list[Effect]:
        """Hand the gathered effects over."""
        out, self.out = self.out, []
        return out

    # Our own word about ourselves.

    def say(self, incarnation: int) -> None:
        """Set our incarnation, and state and spread the event that goes with it. After the last incarnation
        comes a new generation: whoever names us can bring us there."""
        if incarnation > MAX_INCARNATION:
            self.generation, incarnation = min(self.generation + 1, MAX_GENERATION), 0
            self.out.append(Persist(self.generation))
        self.incarnation = incarnation
        state = LEFT if self.leaving else ALIVE
        key = make_key(self.generation, incarnation)
        self.own = self.node + key + bytes((state,)) + self.record
        self.table.put(self.node + key + bytes((ALIVE,)) + self.record)
        self.spread(self.own)

    # Sending.

    def nonce(self) -> bytes:
        """Eight bytes that nobody can guess, if the owner's ``rng`` is the system's."""
        return self.rng.getrandbits(64).to_bytes(8)

    def send(
        self, to: bytes | Address, kind: int, nonce: bytes, target: bytes, first: Sequence[bytes] = (),
        wait_ms: int = 0, extra: bytes = b"", *, news: bool = True,
    ) -> None:  # fmt: skip
        """Send a datagram with these events, and with ``news`` in the room that is left. All but pings go to
        where the member was last proved to be; a ping finds out whether it is at home."""
        if kind != PING and not isinstance(to, Address):
            to = self.places.instead(to, self.clock) or to
        events, room = list(first), MAX_REQUEST_EVENTS if extra else MAX_EVENTS
        if self.queue and news:
            events += self.queue.take(room - len(events), 1, self.limit)
        self.sent[kind] += 1
        self.out.append(Send(encode(kind, nonce, self.node, target, events, wait_ms, extra), to))

    def carry(self, to: Address, nonce: bytes, target: bytes, code: bytes, event: bytes) -> None:
        """Send an answer on its way back. It holds one event only: whoever asks may be anywhere."""
        self.sent[CARRIED] += 1
        self.out.append(Send(encode(CARRIED, nonce, self.node, target, [event], extra=code), to))

    @property
    def limit(self) -> int:
        """How often one piece of news is sent."""
        return retransmit_limit(self.params.retransmit_mult, self.table.live)

    def spread(self, event: bytes) -> None:
        """Queue news, and see that it goes out."""
        self.queue.put(event)
        if not self._gossip_armed:
            self._gossip_armed = True
            wait = self.params.gossip_interval * (0 if self.params.adaptive else self.rng.random())
            self.at(max(self.clock + wait, self._last_gossip + self.params.gossip_interval), self._gossip)

    def _gossip(self, _: None) -> None:
        self._last_gossip = self.clock
        peers: set[bytes] = set()
        wanted = self.params.gossip_nodes
        for _try in range(3 * wanted):
            peer = self.peer()
            if peer is not None:
                peers.add(peer)
                if len(peers) == wanted:
                    break
        if peers:
            events = self.queue.take(MAX_EVENTS, len(peers), self.limit)
            datagram = encode(GOSSIP, bytes(8), self.node, bytes(16), events)
            self.sent[GOSSIP] += len(peers)
            for peer in sorted(peers):
                self.out.append(Send(datagram, self.places.instead(peer, self.clock) or peer))
        self._gossip_armed = bool(self.queue)
        if self._gossip_armed:
            self.at(self.clock + self.params.gossip_interval, self._gossip)

    def next_probe(self) -> bytes | None:
        """Return the next member of the round of probes; it may be this node itself."""
        if self.vicinity.split(self.table, self.node, self.clock):
            return self.vicinity.next(self.table, self.rng)
        return self.table.next_probe(self.rng)

    def peer(self, *, wide: bool = False) -> bytes | None:
        """Return some other member that is not down and that this node reaches itself, or None if the draw
        missed. It is of this node's region as a rule; ``wide``: of all alike."""
        if near := self._near():
            return self.rng.choice(near)
        if not wide and self.vicinity.split(self.table, self.node, self.clock):
            node = self.vicinity.draw(self.table, self.rng)
        else:
            node = self.table.random(self.rng)
        return None if node == self.node or node in self.reach.partly else node

    def _near(self) -> list[bytes]:
        """The members that this node reaches itself, if most others are partly reachable: draws among all
        would miss. Empty otherwise."""
        away, down = self.reach.partly, self.table.down
        if 2 * len(away) <= self.table.live:
            return []
        return [node for node in self.table if node != self.node and node not in away and node not in down]

    def peers(self, count: int, without: Callable[[bytes], bool], *, about: bytes = b"") -> list[bytes]:
        """Draw up to ``count`` different members that this node reaches itself, not down nor ruled out.
        ``about``: the member that they are to reach, which is asked after in all regions if it is in another
        one."""
        if near := self._near():
            fit = [node for node in near if not without(node)]
            return self.rng.sample(fit, min(count, len(fit)))
        found: list[bytes] = []
        wide = bool(about) and self.vicinity.beyond(about)
        for _ in range(4 * count + 8):
            if len(found) == count:
                break
            node = self.peer(wide=wide)
            if node is not None and node not in found and not without(node):
                found.append(node)
        return found

    def answer(self, to: Address, nonce: bytes, first: Sequence[bytes]) -> None:
        """Acknowledge a ping where it came from: our own event first."""
        self.send(to, ACK, nonce, self.node, [self.own, *first])
