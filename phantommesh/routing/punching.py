# SPDX-License-Identifier: GPL-3.0-or-later
"""Finds direct ways to peers past NATs and firewalls, in all dimensions at once. Sans-I/O.

Two ends knock (`routing.knocks`) at each other's addresses at one moment: each one's knock opens its own NAT
for the other's. So a *round* is agreed upon over a channel between the two, which a common member passes
where they cannot call each other. The lower node id asks, and says in how many seconds both are to begin. An
ANSWER to a knock of this node proves both directions of the way, and the way is won.

A NAT that takes packets to its own ports (Linux does by default) remembers an early packet, and then gives
the other end's packets another port: both ends fail, for as long as anybody goes on. So the first knock at an
address outside goes no further than `OPENING_HOPS`: it opens this end's NAT and does not come to the peer's.
Where no router is between the two NATs it does. So one end is first in half of the dimensions, and the other
in the rest; the next round has it the other way round. The end whose NAT remembers has to be first.
After a round that failed there is silence for longer than such a memory lasts (30 s on Linux).

Nobody can have this node send much: to each address and port that a member names `KNOCKS` datagrams a round,
rounds at `ROUNDS` for each member, and one answer to each knock of a member, at `ANSWERS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Final

from phantommesh.dimensions import has, only, without
from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.rates import Bucket
from phantommesh.routing import knocks
from phantommesh.routing.homing import Homing
from phantommesh.routing.knocks import NONCE_SIZE, Keys, Kind
from phantommesh.routing.search import OTHER, Ask, Effect, Lost, Send, Standing, State, Target, Won
from phantommesh.timers import Timers

# Tuning.
OPENING_HOPS: Final = 2  # the NAT at this end, and one router more
_Steps = tuple[tuple[float, int | None], ...]  # s from the start of a round, and through how many routers
OPENING: Final[_Steps] = ((0.0, OPENING_HOPS), (0.25, None), (0.4, None), (0.7, None), (1.1, None))
SECOND: Final = 0.1  # s by which one of two ends behind NATs knocks later: in each dimension the other one
PLAIN: Final[_Steps] = ((0.0, None), (0.15, None), (0.4, None), (0.9, None))
BACK: Final[_Steps] = ((0.0, None), (0.1, None), (0.3, None))  # to where a knock came from
KNOCKS: Final = len(OPENING)  # to one address and port in one round, at most
LASTS: Final = 1.8  # s from the first knock of a round until what has no answer has failed
LONGER: Final = 0.5  # s at least that knocking back to a peer's knock has
LATE: Final = 2.0  # s that the end with the higher node id lets the other ask first
GRACE: Final = 2.0  # s that WireGuard has to get through by itself, where it may try
LOST: Final = 30.0  # s after a question of which nothing was heard
SETTLE: Final = 0.3  # s from a change of addresses to a new round: several changes come together
PAUSES: Final = (32.0, 60.0, 120.0, 300.0, 600.0)  # s after the first round that failed, the second, ...
UNAGREED: Final = (2.0, 4.0, 8.0, 16.0, 30.0, 60.0)  # s after it could not be agreed upon
BLIND: Final = 4  # questions in vain
SPREAD: Final = 0.1  # of a pause at most is added to it, so that two ends do not meet in lockstep
ROUNDS: Final = 1 / 30, 5.0  # of one peer, a second and at once
SPARE: Final = 2.0  # of these are left for dimensions that have no way, when others try their own uplink
ANSWERS: Final = 20.0, 400.0  # to one peer, a second and at once: a round is 7 dimensions x 8 addresses x 5
STRAYS: Final = 1.0, 21.0  # addresses of one peer that its knocks came from and no record names
MOST_AHEAD: Final = 2.0  # s until the agreed moment, at most
MAX_TARGETS: Final = 8  # addresses that are tried in one dimension
STRAY: Final = 4  # the rank of such an address
PROVES: Final = 12.0  # s that WireGuard has to get through on a way that was won: it tries twice, 5 s apart
MAX_KEYS: Final = 3  # of one peer, as `control.sessions` keeps


@dataclass(slots=True)
class _Try:
    rank: int
    steps: list[tuple[float, int | None]]  # when, and how many hops; the next one first
    sent: dict[bytes, float] = field(default_factory=dict)  # by nonce
    answered: bool = False


@dataclass(slots=True)
class _Won:
    address: Address
    rank: int
    at: float
    doubtful: bool = False  # the peer looks for another
    carried: bool = False  # packets have passed since


@dataclass(slots=True)
class _Peer:
    rounds: Bucket
    answers: Bucket
    strays: Bucket
    keys: list[Keys] = field(default_factory=list)
    wanted: int = 0
    due: float = inf
    failed: int = 0
    turn: int = 0
    unagreed: int = 0
    standing: Standing = Standing.IDLE
    why: str = ""
    trying: int = 0  # the dimensions of the round under way
    ends: float = inf
    tries: dict[tuple[int, Address], _Try] = field(default_factory=dict)
    won: dict[int, _Won] = field(default_factory=dict)
    homing: Homing = field(default_factory=Homing)


class Punching:
    """The search of one node. ``targets`` gives the addresses at which a peer may be, by dimension, the
    likeliest first; all of them may be sent to. ``may`` says whether an address may be sent to that a member
    was heard from. ``random`` gives nonces, ``chance`` spreads moments."""

    def __init__(
        self,
        me: bytes,
        *,
        targets: Callable[[bytes], Sequence[Sequence[Target]]],
        may: Callable[[bytes, str], bool],
        random: Callable[[int], bytes],
        chance: Random,
    ) -> None:
        self.dropped: Counter[str] = Counter()
        self._me, self._targets, self._may = me, targets, may
        self._random, self._chance = random, chance
        self._peers: dict[bytes, _Peer] = {}
        self._names: dict[bytes, tuple[bytes, int, Keys]] = {}  # of keys: the peer and dimension
        self._timers = Timers[bytes]()
        self._busy: set[bytes] = set()

    @property
    def deadline(self) -> float:
        """When to call `tick` next; infinity is never."""
        return self._timers.first

    @property
    def busy(self) -> bool:
        """Whether datagrams of some peer are of use now."""
        return bool(self._busy)

    # What the node tells it.

    def key(self, peer: bytes, keys: Keys, now: float) -> None:
        """A handshake with a peer left these keys. Knocks of the few keys before are heard as well."""
        found = self._peers.get(peer)
        if found is None:
            found = self._peers[peer] = _Peer(
                Bucket(*ROUNDS, now), Bucket(*ANSWERS, now), Bucket(*STRAYS, now)
            )
        if keys.names_in[0] in self._names:
            return
        found.keys.append(keys)
        for dimension, name in enumerate(keys.names_in):
            self._names[name] = peer, dimension, keys
        for old in found.keys[:-MAX_KEYS]:
            self._forget(old)
        del found.keys[:-MAX_KEYS]

    def retain(self, peers: Container[bytes]) -> None:
        """Forget all other peers."""
        for peer in [peer for peer in self._peers if peer not in peers]:
            for keys in self._peers.pop(peer).keys:
                self._forget(keys)
            self._timers.cancel(peer)
            self._busy.discard(peer)

    def _forget(self, keys: Keys) -> None:
        for name in keys.names_in:
            self._names.pop(name, None)

    def want(self, peer: bytes, dimensions: int, now: float, *, soon: bool, up: int = 0) -> list[Effect]:
        """Look for direct ways in these dimensions, a bitmap, and in no others; those that were won and are
        among them are lost, if WireGuard had its time to take them. ``soon``: WireGuard does not get
        through by itself meanwhile."""
        found = self._peers.get(peer)
        if found is None:
            return []
        for dimension, won in found.won.items():
            won.carried |= has(up, dimension)
        young = sum(only(i) for i, won in found.won.items() if now < won.at + PROVES and not won.carried)
        dimensions = without(dimensions, young)
        lost = [i for i in found.won if has(dimensions, i)]
        for dimension in lost:
            del found.won[dimension]
        if not dimensions:
            found.due, found.failed, found.unagreed = inf, 0, 0
        elif without(dimensions, found.wanted) or lost:
            found.failed = found.unagreed = 0
            first = 0.0 if soon or lost else GRACE
            found.due = min(found.due, now + first + (0.0 if self._me < peer else LATE))
        found.wanted = dimensions
        self._schedule(peer, found)
        return [Lost(peer, dimension) for dimension in lost]

    def anew(self, peer: bytes, now: float) -> None:
        """This end or the peer is at other addresses than before."""
        found = self._peers.get(peer)
        if found is None:
            return
        settle = SETTLE + (0.0 if self._me < peer else LATE)
        if found.won:
            found.homing.anew(now, settle)
        if found.wanted:
            found.failed = found.unagreed = 0
            found.due = min(found.due, now + settle)
        self._schedule(peer, found)

    def state(self, peer: bytes) -> State:
        """What the search for ways to this peer is at."""
        found = self._peers.get(peer)
        if found is None:
            return State(Standing.IDLE)
        direct = sum(map(only, found.won))
        standing = found.standing
        if found.trying:
            standing = Standing.TRYING
        elif not found.wanted:
            standing = Standing.FOUND if direct else Standing.IDLE
        why = found.why if standing is Standing.APART else ""
        return State(standing, direct, found.wanted, why, found.failed)

    def again_at(self, peer: bytes) -> float:
        """When the next round with this peer is to begin; infinity where none is wanted, or one is under
        way."""
        found = self._peers.get(peer)
        return inf if found is None or found.trying or not found.wanted else found.due

    # Rounds.

    def agreed(self, peer: bytes, start: float, now: float) -> None:
        """The peer begins at ``start``."""
        found = self._peers.get(peer)
        if found is not None:
            found.unagreed = 0
            start = min(max(start, now), now + MOST_AHEAD)
            self._begin(peer, found, found.wanted | found.homing.away, start, now, turn=found.turn)

    def apart(self, peer: bytes, why: str, now: float, *, alone: bool) -> None:
        """The peer could not be asked. ``alone``: an early packet does no harm, so this end begins. Else it
        begins after `BLIND` questions in vain: most NATs forgive, and the peer may do the same."""
        found = self._peers.get(peer)
        if found is None:
            return
        if found.wanted:
            found.standing, found.why = Standing.APART, why
        elif found.homing.away:
            found.homing.tried(found.homing.away, now)
        pause = UNAGREED[min(found.unagreed, len(UNAGREED) - 1)]
        found.unagreed += 1
        if (alone and found.unagreed == 1) or found.unagreed % BLIND == 0:
            self._begin(peer, found, found.wanted | found.homing.away, now, now, turn=0)
        elif found.wanted:
            found.due = now + self._spread(pause)
        self._schedule(peer, found)

    def asked(self, peer: bytes, dimensions: int, ahead: float, turn: int, now: float) -> str:
        """The peer asks to begin a round in so many seconds, ``turn`` as in `Ask`. Return why not; empty:
        this end will."""
        found = self._peers.get(peer)
        if found is None:
            return "there is no link"
        if found.trying:
            return ""
        if not found.rounds.take(now):
            return "it was tried a moment ago"
        for dimension, won in found.won.items():
            won.doubtful |= has(dimensions, dimension)
        start = now + min(ahead, MOST_AHEAD)
        self._begin(peer, found, dimensions | found.wanted, start, now, turn=turn)
        return ""

    def _begin(
        self, peer: bytes, found: _Peer, dimensions: int, start: float, now: float, *, turn: int
    ) -> None:
        if found.trying or not dimensions:
            return
        found.due = inf
        for dimension, targets in enumerate(self._targets(peer)):
            second = (self._me < peer) != ((dimension + turn) % 2 == 0)
            for target in targets[:MAX_TARGETS] if has(dimensions, dimension) else ():
                at = start + (SECOND if second and target.opening else 0.0)
                steps = [(at + after, hops) for after, hops in (OPENING if target.opening else PLAIN)]
                found.tries.setdefault((dimension, target.address), _Try(target.rank, steps))
        found.trying, found.ends = dimensions, start + LASTS
        if not found.tries:
            found.standing = Standing.NOWHERE
        self._schedule(peer, found)

    def _end(self, peer: bytes, found: _Peer, now: float) -> None:
        found.homing.tried(self._away(peer, found), now)
        tried, found.trying, found.ends = found.trying, 0, inf
        silent = without(tried & found.wanted, sum(map(only, found.won)))
        if found.tries and tried:
            found.standing = Standing.SILENT if silent else Standing.FOUND
        found.tries = {}
        if not tried:  # the peer knocked, and this end knocked back
            return
        if silent:
            pause = PAUSES[min(found.failed, len(PAUSES) - 1)]
            found.failed += 1
            found.due = min(found.due, now + self._spread(pause))
        else:
            found.failed = 0

    def _spread(self, pause: float) -> float:
        return pause * (1 + SPREAD * self._chance.random())

    # Time and datagrams.

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        effects = list[Effect]()
        for peer in self._timers.due(now):
            found = self._peers[peer]
            effects += self._knock(found, now)
            if now >= found.ends:
                self._end(peer, found, now)
            if now >= min(found.due, found.homing.due):
                effects += self._ask(peer, found, now)
            self._schedule(peer, found)
        return effects

    def _ask(self, peer: bytes, found: _Peer, now: float) -> list[Effect]:
        if now >= found.homing.due:
            found.homing.due = inf
            if not found.trying:  # else this is told at the end of the round
                found.homing.away = self._away(peer, found)
        found.due, searched = inf, found.wanted | found.homing.away
        if not searched:
            return []
        spare = 0.0 if found.wanted else SPARE
        wait = found.ends - now if found.trying else found.rounds.wait(now, 1.0 + spare)
        asks = wait <= 0.0 and found.rounds.take(now)
        again = now + (LOST if asks else wait)  # where nothing is heard of a question, it is asked again
        found.due = again if found.wanted else inf
        if found.homing.away and found.homing.due == inf:
            found.homing.due = again
        if not asks:
            return []
        if found.wanted:
            found.standing = Standing.AGREEING
        found.turn = found.failed % 2
        return [Ask(peer, searched, found.turn)]

    def _away(self, peer: bytes, found: _Peer) -> int:
        """The dimensions, as a bitmap, that go by another of the peer's uplinks than their own."""
        away = 0
        for dimension, targets in enumerate(self._targets(peer) if found.won else ()):
            if (won := found.won.get(dimension)) is None:
                continue
            ranks = {target.address: target.rank for target in reversed(targets)}
            won.rank = ranks.get(won.address, won.rank)  # by a record that is newer than the way
            if won.rank >= OTHER > min(ranks.values(), default=OTHER):
                away |= only(dimension)
        return away

    def _knock(self, found: _Peer, now: float) -> list[Effect]:
        effects = list[Effect]()
        for (dimension, address), one in found.tries.items():
            while one.steps and one.steps[0][0] <= now:
                _, hops = one.steps.pop(0)
                if not one.answered:
                    nonce = self._random(NONCE_SIZE)
                    one.sent[nonce] = now
                    datagram = knocks.encode(Kind.KNOCK, dimension, nonce, found.keys[-1])
                    effects.append(Send(dimension, address, datagram, hops))
        return effects

    def _schedule(self, peer: bytes, found: _Peer) -> None:
        (self._busy.add if found.wanted or found.tries else self._busy.discard)(peer)
        steps = (one.steps[0][0] for one in found.tries.values() if one.steps)
        self._timers.set(peer, min(found.due, found.ends, found.homing.due, *steps))

    def receive(self, dimension: int, source: Address, data: bytes, now: float) -> list[Effect]:
        """Take in a datagram that came to WireGuard's port of a dimension."""
        try:
            knock = knocks.decode_untrusted(data)
        except DecodeError:
            return self._drop("knock-malformed")
        peer, named, keys = self._names.get(knock.name, (b"", -1, None))
        if keys is None or named != knock.dimension:
            return self._drop("knock-stranger")
        if not knocks.genuine(data, keys):
            return self._drop("knock-mac")
        if knock.dimension != dimension:
            return self._drop("knock-dimension")  # a NAT's mapping that leads to another port of ours
        found = self._peers[peer]
        if knock.kind is Kind.ANSWER:
            effects = self._answered(peer, found, dimension, source, knock.nonce, now)
        else:
            effects = self._knocked(peer, found, dimension, source, knock.nonce, keys, now)
        self._schedule(peer, found)
        return effects

    def _drop(self, reason: str) -> list[Effect]:
        self.dropped[reason] += 1
        return []

    def _answered(
        self, peer: bytes, found: _Peer, dimension: int, source: Address, nonce: bytes, now: float
    ) -> list[Effect]:
        one = found.tries.get((dimension, source))
        if one is None or nonce not in one.sent:
            return self._drop("knock-unasked")
        one.answered = True
        before = found.won.get(dimension)
        if before is not None and not before.doubtful and before.rank <= one.rank:
            return []
        found.won[dimension] = _Won(source, one.rank, now)
        found.wanted = without(found.wanted, only(dimension))
        return [Won(peer, dimension, source)]

    def _knocked(
        self, peer: bytes, found: _Peer, dimension: int, source: Address, nonce: bytes, keys: Keys, now: float
    ) -> list[Effect]:
        if not self._may(peer, source.host):
            return self._drop("knock-address")
        if not found.answers.take(now):
            return self._drop("knock-rate")
        answer = knocks.encode(Kind.ANSWER, dimension, nonce, keys, source)
        effects: list[Effect] = [Send(dimension, source, answer)]
        won, one = found.won.get(dimension), found.tries.get((dimension, source))
        proved = (one is not None and one.answered) or (won is not None and won.address == source)
        if not proved and (one is None or not one.steps):
            # A NAT's mapping for this node alone, or a round that this end does not know of or is done with.
            if not found.strays.take(now):
                return [*effects, *self._drop("knock-stray")]
            one = found.tries.setdefault((dimension, source), _Try(STRAY, []))
            one.steps = [(now + after, hops) for after, hops in BACK]
            found.ends = now + LASTS if found.ends == inf else max(found.ends, now + LONGER)
            effects += self._knock(found, now)
        return effects
