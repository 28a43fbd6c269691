# SPDX-License-Identifier: GPL-3.0-or-later
"""Conclusions from broken chains: whether an identity is in use on two machines.

Each handshake builds on the chain key of the one before, and chain keys are in memory only. So a thief of an
identity key can shake hands in its owner's name, but only by beginning a new chain; and as soon as he has,
the owner's chain is worth nothing to the peer. A restart begins a new chain, too. These signs tell them
apart:

- **A replaced key comes back.** The peer offers a chain that this node had with it, and that a later
  chain in the peer's name has replaced. A node that restarted has nothing to offer. So two machines take
  turns: that is certain after one turn each, whatever either says of itself.
- **No start.** The peer offers nothing, or does not know what we offer, and its number of starts
  (gossip's generation) has not grown `GRACE` seconds later. A thief that gossips as a newly started node
  escapes this one; then the first sign is the owner's next handshake.
- **Many starts.** `TURNS` new chains within `WINDOW`: a node that crashes again and again, or two taking
  turns.
- **Two runs at one time.** A run of the node has signed that it saw a later one (`records.runs`): certain.
- **Others know us by keys we never made.** Several peers offer chains unknown here, or no longer know
  ours and did not restart: then it is this node's own identity. One peer alone may be wrong, or lie, so
  with three or more nodes in the mesh it takes two.

An insider can make others doubt the insider itself, at any time. It can hide a theft only from "no
start", by gossiping starts in the victim's name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum

from phantommesh.faults import FaultKind
from phantommesh.link.effects import ResetSign

COPIED = FaultKind("identity-copied", "critical")

# Tuning. Seconds.
GRACE = 60.0  # that the news of a start may take to get here by gossip
WINDOW = 600.0
TURNS = 6  # new chains within the window: an operator may restart a node a few times
ACCUSERS = 2  # peers, and half of all
KEPT = 86_400.0  # that a suspicion stays after its last sign


class Why(Enum):
    """The sign that a suspicion rests on."""

    CAME_BACK = "a replaced key came back"
    NO_START = "it lost its keys and did not restart"
    TURNS = "it began anew again and again"
    STRANGE_KEY = "it has a key that was made in this node's name"
    TWO_RUNS = "two of its runs were there at one time"
    SELF = "peers have keys that were made in this node's name, or lost this node's"


_CERTAINTY = {Why.TWO_RUNS: 2, Why.CAME_BACK: 1, Why.SELF: 1}


@dataclass(frozen=True, slots=True)
class Suspicion:
    """An identity that may be in use on two machines. ``node`` is None for this node's own; ``accusers`` says
    how many peers it rests on then. ``since`` and ``last`` are the protocol's clock."""

    node: bytes | None
    why: Why
    since: float
    last: float
    accusers: int = 0


@dataclass(slots=True)
class _Case:
    generation: int | None  # when its last handshake finished
    begun: bool = False  # whether a chain was begun anew since
    resets: deque[float] = field(default_factory=lambda: deque(maxlen=TURNS))
    waiting: tuple[float, int | None, ResetSign] | None = (
        None  # until its start is known, the one before, why
    )
    accused: float | None = None  # when it last bore witness to another holder of our own identity


class Copies:
    """Takes note of chains that began anew, and says whom it suspects."""

    def __init__(self) -> None:
        self._cases: dict[bytes, _Case] = {}
        self._suspicions: dict[bytes | None, Suspicion] = {}

    def chained(self, peer: bytes, generation: int | None, now: float) -> None:
        """A handshake with a peer finished. ``generation`` is its number of starts, as far as known."""
        case = self._cases.setdefault(peer, _Case(generation))
        case.generation, case.begun = generation, False

    def reset(self, peer: bytes, sign: ResetSign | None, generation: int | None, now: float) -> None:
        """A handshake that is not finished yet begins a new chain, though this node held one."""
        case = self._cases.setdefault(peer, _Case(generation))
        if not case.begun:  # both ends may begin at once: that is one loss
            case.resets.append(now)
        case.begun = True
        match sign:
            case ResetSign.SUPERSEDED:
                self._suspect(peer, Why.CAME_BACK, now)
            case ResetSign.UNKNOWN:
                case.accused = now
                self._suspect(peer, Why.STRANGE_KEY, now)
            case ResetSign.EMPTY | ResetSign.UNANSWERED:
                if case.waiting is None:
                    case.waiting = now + GRACE, case.generation, sign
            case None:
                pass
        if len(case.resets) == TURNS and now - case.resets[0] <= WINDOW:
            self._suspect(peer, Why.TURNS, now)
        self._judge_self(now)

    def look(self, generation_of: Callable[[bytes], int | None], now: float) -> None:
        """See which of the peers that lost their keys have started since; call it about once a second."""
        for peer, case in self._cases.items():
            if case.waiting is None:
                continue
            until, before, sign = case.waiting
            generation = generation_of(peer)
            if before is None or generation is None or generation > before:
                case.waiting = None
            elif now >= until:
                case.waiting = None
                if sign is ResetSign.UNANSWERED:
                    case.accused = now
                self._suspect(peer, Why.NO_START, now)
                self._judge_self(now)
        for node in [n for n, s in self._suspicions.items() if now >= s.last + KEPT]:
            del self._suspicions[node]

    def twice(self, node: bytes | None, now: float) -> None:
        """Two runs of a node, or (None) of this one, are proved to have been there at one time."""
        self._suspect(node, Why.TWO_RUNS, now)

    def retain(self, peers: Collection[bytes]) -> None:
        """Forget all others: a node that was revoked, or whose certificate ran out, is nobody's concern."""
        for gone in self._cases.keys() - set(peers):
            del self._cases[gone]
        for node in self._suspicions.keys() - set(peers) - {None}:
            del self._suspicions[node]

    @property
    def unexplained(self) -> dict[bytes, float]:
        """The peers that lost their keys, and of which no start is known that explains it yet, each with the
        moment of the loss; for `GRACE`, then it is a suspicion."""
        waiting = ((peer, case.waiting) for peer, case in self._cases.items())
        return {peer: found[0] - GRACE for peer, found in waiting if found is not None}

    @property
    def suspicions(self) -> list[Suspicion]:
        """All that is suspected now, the oldest first."""
        return sorted(self._suspicions.values(), key=lambda s: s.since)

    def _suspect(self, node: bytes | None, why: Why, now: float, accusers: int = 0) -> None:
        old = self._suspicions.get(node)
        if old is not None and _CERTAINTY.get(old.why, 0) >= _CERTAINTY.get(why, 1):
            why = old.why  # the surest stays
        if node is not None and None in self._suspicions and why not in (Why.CAME_BACK, Why.TWO_RUNS):
            return  # it is this node's own identity that is copied, so the peer did nothing odd
        self._suspicions[node] = Suspicion(node, why, now if old is None else old.since, now, accusers)

    def _judge_self(self, now: float) -> None:
        accusers = [
            n for n, case in self._cases.items() if case.accused is not None and now - case.accused <= WINDOW
        ]
        if len(accusers) < min(ACCUSERS, len(self._cases)) or 2 * len(accusers) < len(self._cases):
            return
        self._suspect(None, Why.SELF, now, len(accusers))
        for peer in accusers:
            held = self._suspicions.get(peer)
            if held is not None and held.why not in (Why.CAME_BACK, Why.TWO_RUNS):
                del self._suspicions[peer]
