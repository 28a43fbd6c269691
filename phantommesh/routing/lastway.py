# SPDX-License-Identifier: GPL-3.0-or-later
"""When a peer's datagrams go in frames over TCP, and how they leave TCP again. Sans-I/O.

A peer that is keyed and answers in no dimension for `GRACE` is called over TCP. As soon as there is a
connection all seven dimensions are *framed*: WireGuard sends to a local socket, and the driver carries what
it sends. The two ends need no agreement: each frames for itself.

The end that called looks for something better. A *trial* sets one dimension aside, so that neither end sends
traffic by it, and takes it out of the frames: WireGuard sends to the peer's own address again. If probes come
back, the other dimensions follow, all at once and in the same way, and the connection ends a little later. If
none does, the dimension is framed again and the next trial waits longer. So no packet is lost by a trial. A
datagram of gossip that comes by UDP is a reason to try at once.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from phantommesh.dimensions import ALL, DIMENSIONS, bits, has, only, without

# Tuning.
# s in which nothing answers until the peer is called. Less than `psk.DIAL_AFTER`: WireGuard repeats an
# attempt after 5 s only, and so the responder's first one finds the frames in place.
GRACE: Final = 2.2
UDP_LATELY: Final = 3.5  # s for which a datagram by UDP speaks against a call: this node may just be slow
PATIENCE: Final = 6.0  # s of silence after which it does no more: the control port passes, and no other one
HURRY: Final = 0.1  # the same as `GRACE` where the handshake itself had to go over TCP
STAGGER: Final = 0.5  # s that the higher node id waits for the other end's call
HOLD: Final = 3.0  # s for which WireGuard waits for the frames where the handshake had to go over TCP
AGAIN: Final = 2.0  # s between two calls, doubled with each that fails
AGAIN_MOST: Final = 60.0
REDIAL: Final = 0.3  # s until a connection that broke is made again
SHORT: Final = 5.0  # s of a connection's life below which its end counts as a call that failed
OTHERS: Final = 3.0  # s until the end that did not make it tries to
KEEP: Final = 10.0  # s for which the dimensions stay framed meanwhile
STALLED: Final = 10.0  # s without any answer by frames until the connection is made anew
TRIAL_FIRST, TRIAL_MOST = 15.0, 300.0  # s between two trials, doubled with each that fails
HEARD_AGAIN: Final = 30.0  # s of silence on UDP after which a datagram is news
DRAIN: Final = 2.0  # s at most that both ends have to stop sending by a dimension
SETTLE: Final = 0.3  # s at least: what is under way in frames must not come later than what goes without
TRY: Final = 3.0  # s in which a probe has to come back
STEP: Final = 0.1  # s between two looks at a trial
LINGER: Final = 10.0  # s that the connection outlives the last framed dimension


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of one peer, each a bitmap of dimensions: ``keyed`` those with keys of a handshake,
    ``answers`` those by which probes come back, ``at_frame`` those that WireGuard sends to our local socket,
    ``otherwise`` those that have a better way on offer, ``drained`` those by which neither end sends traffic.
    ``latest``: when the newest probe that came back was sent, by dimension (-inf: never)."""

    keyed: int
    answers: int
    at_frame: int = 0
    otherwise: int = 0
    drained: int = 0
    latest: Sequence[float] = (-inf,) * DIMENSIONS


@dataclass(frozen=True, slots=True)
class Dial:
    """Call this peer, and ask for frames. Answer with `LastWay.connected` or `LastWay.failed`."""

    peer: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """End the connection with this peer. Answer with `LastWay.broke`."""

    peer: bytes


Effect = Dial | Close


class _Trial:
    """Dimensions under trial. ``switched``: when they left the frames. ``left``: since when WireGuard is
    known to send elsewhere, by dimension."""

    def __init__(self, dimensions: int, now: float) -> None:
        self.dimensions, self.began = dimensions, now
        self.switched: float | None = None
        self.left = [inf] * DIMENSIONS
        self.good = 0


@dataclass(slots=True)
class _Peer:
    framed: int = 0
    aside: int = 0
    connected: bool = False
    ours: bool = False  # this end made the connection
    dialling: bool = False
    silent: float | None = None  # since when it is keyed and nothing answers
    hurry: float = -inf  # when a handshake finished over TCP while nothing answered
    made: float = -inf  # when the connection was made
    lost: float = inf  # when it broke
    not_before: float = -inf  # the next call
    tries: int = 0  # calls in a row that failed
    trial: _Trial | None = None
    next_trial: float = inf
    fails: int = 0  # trials in a row that failed
    turn: int = 0
    bare: float = inf  # since when no dimension is framed though there is a connection
    due: float = inf


class LastWay:
    """The last way to each peer that has no other. ``me`` is this node's id. The clock is the owner's."""

    def __init__(self, me: bytes) -> None:
        self._me = me
        self._peers: dict[bytes, _Peer] = {}
        self._udp: dict[bytes, float] = {}  # when a datagram of each peer last came by UDP

    # What is wanted.

    @property
    def deadline(self) -> float:
        """When `look` is due for some peer."""
        return min((peer.due for peer in self._peers.values()), default=inf)

    def due(self, now: float) -> list[bytes]:
        """The peers for which it is."""
        return [node_id for node_id, peer in self._peers.items() if peer.due <= now]

    def framed(self, peer: bytes) -> int:
        """The dimensions of a peer, a bitmap, whose datagrams are carried in frames."""
        return known.framed if (known := self._peers.get(peer)) is not None else 0

    def aside(self, peer: bytes) -> int:
        """The dimensions by which no traffic is to be sent, a bitmap."""
        return known.aside if (known := self._peers.get(peer)) is not None else 0

    def held(self, peer: bytes, now: float) -> int:
        """The dimensions, a bitmap, in which WireGuard is to wait for the frames: its first attempt would be
        lost, and it repeats none for 5 s."""
        known = self._peers.get(peer)
        return ALL if known is not None and self._holds(known, now) else 0

    @staticmethod
    def _holds(peer: _Peer, now: float) -> bool:
        return not peer.connected and not peer.tries and now < peer.hurry + HOLD

    # What happens.

    def retain(self, peers: Container[bytes]) -> list[Effect]:
        """Forget all other peers."""
        gone = [node_id for node_id in self._peers if node_id not in peers]
        effects: list[Effect] = [Close(node_id) for node_id in gone if self._peers[node_id].connected]
        for node_id in gone:
            del self._peers[node_id]
        self._udp = {node_id: when for node_id, when in self._udp.items() if node_id in peers}
        return effects

    def over_tcp(self, peer: bytes, now: float) -> None:
        """A handshake with this peer finished over TCP: UDP was tried first, and brought nothing."""
        known = self._peers.setdefault(peer, _Peer())
        if not known.connected:
            known.hurry, known.tries, known.not_before = now, 0, -inf

    def udp_heard(self, peer: bytes, now: float) -> None:
        """A datagram of this peer came to the control port by UDP."""
        known, before = self._peers.get(peer), self._udp.get(peer, -inf)
        self._udp[peer] = now
        if known is None or not known.connected:
            return
        if before < known.made or now >= before + HEARD_AGAIN:
            known.fails, known.next_trial, known.due = 0, min(known.next_trial, now), now

    def connected(self, peer: bytes, now: float, *, ours: bool) -> list[Effect]:
        """There is a connection: another one than before, if there was one. ``ours``: this end made it."""
        known = self._peers.setdefault(peer, _Peer())
        known.dialling = known.dialling and not ours
        if ours and known.silent is None and not known.framed:
            known.connected, known.ours = True, True
            return [Close(peer)]  # something else works by now
        known.connected, known.ours, known.made, known.lost = True, ours, now, inf
        known.framed, known.aside, known.trial, known.bare = ALL, 0, None, inf
        known.fails, known.next_trial, known.due = 0, now + TRIAL_FIRST, now
        known.silent = None if known.silent is None else now
        return []

    def failed(self, peer: bytes, now: float) -> None:
        """The peer could not be called, or would not have frames."""
        if (known := self._peers.get(peer)) is not None:
            known.dialling = False
            self._put_off(known, now)

    def broke(self, peer: bytes, now: float) -> None:
        """The connection is over."""
        if (known := self._peers.get(peer)) is None or not known.connected:
            return
        known.connected, known.trial, known.aside, known.lost = False, None, 0, now
        if now < known.made + SHORT:
            self._put_off(known, now)
        else:
            known.tries, known.not_before, known.due = 0, now + REDIAL, now

    @staticmethod
    def _put_off(peer: _Peer, now: float) -> None:
        peer.not_before = now + min(AGAIN_MOST, AGAIN * 2.0 ** min(peer.tries, 8))
        peer.tries += 1
        peer.due = now

    def look(self, peer: bytes, facts: Facts, now: float) -> list[Effect]:
        """Find out what is to be done about a peer. To be called when its facts have changed, and when it is
        due."""
        known = self._peers.get(peer)
        silent = bool(facts.keyed) and not facts.answers
        if known is None:
            if not silent:
                return []
            known = self._peers[peer] = _Peer()
        if not silent:
            known.silent, known.hurry = None, -inf
        elif known.silent is None:
            known.silent = now
        effects = (
            self._leave(peer, known, facts, now) if known.connected else self._reach(peer, known, facts, now)
        )
        if known == _Peer():
            del self._peers[peer]
        return effects

    def _reach(self, node_id: bytes, peer: _Peer, facts: Facts, now: float) -> list[Effect]:
        """There is no connection: make one if need be."""
        better = facts.answers & (facts.otherwise | without(ALL, facts.at_frame))
        if peer.framed and (better or now >= peer.lost + KEEP):
            peer.framed = 0
        if not peer.framed:
            peer.lost = inf
        if peer.dialling:
            peer.due = min(peer.lost + KEEP, peer.hurry + HOLD if self._holds(peer, now) else inf)
            return []
        if peer.framed:  # `aside` was cleared when the connection broke
            begin = peer.lost if peer.ours else peer.lost + OTHERS
        elif peer.silent is not None:
            begin = peer.silent + GRACE
            if peer.hurry > -inf:
                begin = peer.silent + HURRY
            elif (heard := self._udp.get(node_id)) is not None:
                begin = max(begin, min(heard + UDP_LATELY, peer.silent + PATIENCE))
            begin += STAGGER if self._me > node_id else 0.0
        else:
            peer.due, peer.tries, peer.not_before, peer.ours = inf, 0, -inf, False
            peer.turn, peer.fails, peer.next_trial, peer.bare, peer.made = 0, 0, inf, inf, -inf
            return []
        begin = max(begin, peer.not_before)
        if now >= begin:
            peer.dialling, peer.due = True, peer.lost + KEEP
            return [Dial(node_id)]
        ends = (begin, peer.lost + KEEP, peer.hurry + HOLD if self._holds(peer, now) else inf)
        peer.due = min(ends)
        return []

    def _leave(self, node_id: bytes, peer: _Peer, facts: Facts, now: float) -> list[Effect]:
        """There is a connection. The end that made it finds out whether anything else works."""
        peer.due = inf
        if not peer.ours:
            return []
        if peer.silent is not None:
            if now >= peer.silent + STALLED:
                peer.silent = now
                return [Close(node_id)]
            if not peer.framed:
                peer.framed, peer.aside, peer.trial, peer.bare = ALL, 0, None, inf
                peer.next_trial = now + TRIAL_FIRST
            peer.due = peer.silent + STALLED
        if peer.trial is not None:
            self._go_on(peer, peer.trial, facts, now)
        elif peer.framed:
            self._try(peer, facts, now)
        if peer.framed or peer.trial is not None:
            peer.bare = inf
            return []
        peer.bare = min(peer.bare, now)
        peer.due = min(peer.due, peer.bare + LINGER)
        return [Close(node_id)] if now >= peer.bare + LINGER else []

    def _try(self, peer: _Peer, facts: Facts, now: float) -> None:
        """Begin a trial: of all that is framed, where something else works already; else of one."""
        better = facts.answers & (facts.otherwise | without(ALL, peer.framed))
        if better:
            chosen = peer.framed
        elif now >= peer.next_trial:
            turns = ((peer.turn + i) % DIMENSIONS for i in range(DIMENSIONS))
            found = next((i for i in turns if has(peer.framed & facts.answers, i)), None)
            if found is None or facts.answers.bit_count() < 2:  # nothing would be left to carry the traffic
                peer.next_trial = now + TRIAL_FIRST
                peer.due = min(peer.due, peer.next_trial)
                return
            peer.turn, chosen = found + 1, only(found)
        else:
            peer.due = min(peer.due, peer.next_trial)
            return
        peer.trial, peer.aside = _Trial(chosen, now), chosen
        peer.due = now + STEP

    def _go_on(self, peer: _Peer, trial: _Trial, facts: Facts, now: float) -> None:
        """Take the next step of a trial."""
        peer.due = now + STEP
        if trial.switched is None:
            drained = not without(trial.dimensions, facts.drained) and now >= trial.began + SETTLE
            if drained or now >= trial.began + DRAIN:
                trial.switched = now
                peer.framed = without(peer.framed, trial.dimensions)
            return
        for i in range(DIMENSIONS):
            if has(trial.dimensions, i) and not has(facts.at_frame, i):
                trial.left[i] = min(trial.left[i], now)
        trial.good |= trial.dimensions & bits(
            sent > left for sent, left in zip(facts.latest, trial.left, strict=True)
        )
        peer.aside = without(peer.aside, trial.good)
        if trial.good != trial.dimensions and now < trial.switched + TRY:
            return
        peer.trial, peer.aside = None, 0
        others = facts.answers & without(ALL, peer.framed | trial.dimensions)
        if trial.good or others or facts.answers & facts.otherwise:
            peer.fails = 0  # those that did not answer are dark, as any other path would be
            return
        peer.framed |= trial.dimensions
        peer.fails += 1
        peer.next_trial = now + min(TRIAL_MOST, TRIAL_FIRST * 2.0 ** min(peer.fails, 8))
