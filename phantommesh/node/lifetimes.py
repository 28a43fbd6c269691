# SPDX-License-Identifier: GPL-3.0-or-later
"""How often WireGuard has to speak so that a NAT or a firewall before this node keeps its holes open, and
whether it has to at all: what is measured, what is remembered, what follows. Sans-I/O.

Nothing is needed where members see this host's own address and datagrams of strangers come in. Elsewhere
`Measurement` finds out how long a mapping lives that nobody uses: it has several idle times tried at once,
each by a socket of its own, then some between the longest that was survived and the shortest that was not.
`Lifetimes` remembers what came out, by `Scope` and network.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from math import inf
from typing import Final, NamedTuple

import msgspec

from phantommesh.endpoint import Address
from phantommesh.errors import DecodeError
from phantommesh.reachable import IpAddress
from phantommesh.routing.echoes import Echo, Keys, Kind, encode

NEVER: Final = 65535  # s, the most that WireGuard takes: 18 h. It still begins to shake hands by itself
MOST: Final = 110  # s: WireGuard makes new keys every 120 s, and a keepalive after that costs a handshake

ENOUGH: Final = 2  # witnesses that are believed; an authority is alone

# Tuning.
LEAST: Final = 15  # s between keepalives, however short a NAT's memory is
SHARE: Final = 0.8  # of the time that a mapping surely lives
FIRST: Final = (20.0, 32.0, 45.0, 65.0, 95.0, 140.0)  # s, tried at once
BETWEEN: Final = 4  # idle times in the second round
CLOSE: Final = 1.15  # the second round is not worth while where the first two are as near as that
OPENED: Final = (0.0, 0.6, 1.2)  # s at which a socket asks until it is answered
STREAM: Final = 2.6  # s after which it asks again: Linux takes a flow for lasting after 2 s
# (nf_conntrack_proto_udp.c), and WireGuard's are
LATE: Final = 3.0  # s after its idle time that a LATER may come
EARLY: Final = 1.0  # s that it may come early: both ends have clocks of their own
LOOPED: Final = (3.0, 3.3, 3.7)  # s at which LOOPs are sent
LASTS: Final = 7 * 86400.0  # s for which a lifetime is remembered
OPEN_LASTS: Final = 600.0  # s after which strangers' datagrams are tried again
MAX_KNOWN: Final = 16  # networks that are remembered


class Scope(NamedTuple):
    """Peers before which the same NAT or firewall stands: of one IP ``version``, in a network of this host's
    (``beside``) or elsewhere."""

    version: int
    beside: bool


SCOPES: Final = tuple(Scope(version, beside) for version in (4, 6) for beside in (False, True))


class Known(msgspec.Struct, frozen=True, array_like=True):
    """What was found in one network. ``open``: strangers' datagrams come in, and there is no NAT. ``good``:
    the longest idle time in seconds that a mapping survived, 0 for none; ``hairpin``: whether this node
    reached itself at its public place; ``at``: Unix seconds."""

    open: bool
    good: float
    hairpin: bool | None
    at: float


class _Remembered(msgspec.Struct, frozen=True):
    networks: dict[str, Known]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one measurement found. ``seen``: where the witness sees this node's sockets, none if it answered
    none. ``good`` and ``bad``: the longest idle time that a mapping survived, and the shortest that it did
    not."""

    seen: frozenset[IpAddress]
    good: float
    bad: float
    hairpin: bool | None


class Measurement:
    """One measurement with one witness: ``after`` are the idle times in seconds, one a socket. Two more
    sockets try the hairpin, where the witness sees them at an address that is ``public``: it could name any
    other. Call `tick` at `deadline`, `receive` with what a socket received; the rest is in `outcome` when it
    is `over`."""

    def __init__(
        self, keys: Keys, after: Sequence[float], now: float, public: Container[IpAddress] = ()
    ) -> None:
        self.after = (*after, 0.0, 0.0)
        self._keys, self._began, self._public, self._done = keys, now, public, False
        self._asked = [list(OPENED) for _ in self.after]
        self._seen: dict[int, Address] = {}
        self._last: dict[int, float] = {}  # when a socket that was answered asked last
        self._survived: set[int] = set()
        self._loops, self._looped = list(LOOPED), False

    @property
    def over(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self._done

    @property
    def deadline(self) -> float:
        """When to call `tick`."""
        nexts = [self._began + times[0] for times in (*self._asked, self._loops) if times]
        return min(nexts) if nexts else self._ends()

    def _ends(self) -> float:
        """When it is clear that the shortest idle time was too long of which nothing came back: longer ones
        are no longer of use then."""
        return min((self._last[i] + self.after[i] + LATE for i in self._waiting()), default=self._began)

    def _waiting(self) -> list[int]:
        return [
            i for i, after in enumerate(self.after) if after and i not in self._survived and i in self._seen
        ]

    def tick(self, now: float) -> list[tuple[int, Address | None, bytes]]:
        """Return what is to be sent: by which socket, to which address (None: to the witness), and what."""
        found: list[tuple[int, Address | None, bytes]] = []
        for number, times in enumerate(self._asked):
            while times and now >= self._began + times[0]:
                times.pop(0)
                self._last[number] = now
                found.append((number, None, encode(Kind.ASK, number, self._keys)))
        while self._loops and now >= self._began + self._loops[0]:
            self._loops.pop(0)
            one, two = len(self.after) - 2, len(self.after) - 1
            for number, other in ((one, two), (two, one)):
                if other in self._seen and ip_address(self._seen[other].host) in self._public:
                    found.append((number, self._seen[other], encode(Kind.LOOP, number, self._keys)))
        self._done = not any(self._asked) and not self._loops and now >= self._ends()
        return found

    def receive(self, number: int, source: Address, echo: Echo, witness: Address, now: float) -> None:
        """Socket ``number`` received a genuine datagram."""
        if echo.kind is Kind.LOOP:
            self._looped |= echo.number != number
        elif source != witness or echo.number != number:
            return
        elif echo.kind is Kind.NOW and echo.seen is not None:
            if number not in self._seen:
                self._asked[number] = [STREAM] if self.after[number] else []
            self._seen[number] = echo.seen
        elif echo.kind is Kind.LATER and now >= self._last.get(number, inf) + self.after[number] - EARLY:
            self._survived.add(number)  # one that is sooner belongs to the ASK before

    def outcome(self) -> Outcome:
        """What was found."""
        tried = {
            after: i in self._survived for i, after in enumerate(self.after) if after and i in self._seen
        }
        bad = min((after for after, lived in tried.items() if not lived), default=inf)
        good = max((after for after, lived in tried.items() if lived and after < bad), default=0.0)
        ends = [i in self._seen for i in (len(self.after) - 2, len(self.after) - 1)]
        hairpin = self._looped if all(ends) else None
        seen = frozenset(ip_address(place.host) for place in self._seen.values())
        return Outcome(seen, good, bad if tried else inf, hairpin)


@dataclass(frozen=True, slots=True)
class Voice:
    """What one witness showed. ``opened``: strangers' datagrams come in at all ports, and nothing else was
    measured."""

    outcome: Outcome
    opened: bool
    authority: bool


def agree(voices: Sequence[Voice], configured: int) -> tuple[Outcome, bool] | None:
    """What is believed of these, the least that any of them showed, and whether strangers' datagrams come in;
    None: nothing. A witness can keep holes open while they are measured, and send what is to be a stranger's
    through one. So it takes two, or an authority, to have keepalives sent more seldom than ``configured``."""
    believed = len(voices) >= ENOUGH or any(voice.authority for voice in voices)
    measured = [voice.outcome for voice in voices if not voice.opened]
    if not measured:
        return (voices[0].outcome, True) if voices and believed else None
    good = min(outcome.good for outcome in measured)
    tried = [outcome.hairpin for outcome in measured if outcome.hairpin is not None]
    seen = frozenset[IpAddress]().union(*(outcome.seen for outcome in measured))
    bad = min(outcome.bad for outcome in measured)
    good = good if believed else min(good, configured / SHARE)
    return Outcome(seen, good, bad, all(tried) if tried else None), False


def between(good: float, bad: float) -> tuple[float, ...]:
    """The idle times of the second round; none where it is not worth while."""
    if bad == inf or good == 0.0 or bad <= good * CLOSE:
        return ()
    step = (bad - good) / (BETWEEN + 1)
    return tuple(round(good + step * (i + 1), 1) for i in range(BETWEEN))


class Lifetimes:
    """What is known of the networks. ``configured`` is the operator's word: seconds between keepalives until
    anything is known, 0 for none ever."""

    def __init__(self, configured: int, remembered: Mapping[str, Known] | None = None) -> None:
        self.configured = configured
        self._known = dict(remembered or {})
        self._here: dict[Scope, str] = {}

    def at(self, scope: Scope, public: Collection[IpAddress]) -> bool:
        """This node is seen at these addresses now: that says which network it is in. Where it is seen at
        several, it has several uplinks, and nothing is measured. Return whether keepalives may be others than
        before."""
        before = self.known(scope)
        words = [str(one) for one in public if one.version == scope.version]
        self._here[scope] = f"{'beside' if scope.beside else 'outside'} {words[0]}" if len(words) == 1 else ""
        return self.known(scope) != before

    def known(self, scope: Scope) -> Known | None:
        """What is known of the network that this node is in."""
        return self._known.get(self._here.get(scope, ""))

    def wanted(self, scope: Scope, wall: float) -> bool:
        """Whether to measure."""
        if not self.configured or not self._here.get(scope):
            return False
        known = self.known(scope)
        return known is None or not -OPEN_LASTS < wall - known.at < (OPEN_LASTS if known.open else LASTS)

    def found(
        self, scope: Scope, wall: float, *, opened: bool, good: float = 0.0, hairpin: bool | None = None
    ) -> None:
        """This came out for the network that this node is in."""
        network = self._here.get(scope, "")
        if not network:
            return
        self._known.pop(network, None)
        self._known[network] = Known(opened, good, hairpin, wall)
        while len(self._known) > MAX_KNOWN:
            del self._known[next(iter(self._known))]

    def keepalive(self, scope: Scope) -> int:
        """Seconds between keepalives to a peer of this scope, as WireGuard takes them."""
        known = self.known(scope)
        if not self.configured or known is None:
            return self.configured
        if known.open:
            return NEVER
        return max(min(LEAST, self.configured), min(MOST, int(known.good * SHARE)))

    def encode(self) -> bytes:
        """Return what is to be remembered over a restart, as JSON."""
        return msgspec.json.encode(_Remembered(self._known))


def decode(data: bytes) -> dict[str, Known]:
    """Read what was remembered. Raises DecodeError."""
    try:
        return msgspec.json.decode(data, type=_Remembered).networks
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raise DecodeError("what was remembered of NATs is damaged") from None
