# SPDX-License-Identifier: GPL-3.0-or-later
"""Where this node may be reached: its host's own addresses, and what other members see of it. Sans-I/O.

`Whereabouts` holds both and says what the record is to list. A member that is asked (a *witness*) says from
which address and port this node's datagrams come to its control port and to each of its WireGuard ports:
`sighting` is its side. One member alone is not believed: it could have all others send to a victim. Two
members agree, or one authority says so, which could make two members at any time.

`Pace` says when the record follows: soon, and never faster than others take records in (`node.intake`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_address
from itertools import groupby
from math import inf
from random import Random
from typing import Final, NamedTuple

from phantommesh.control.messages import MAX_AGE_MS, Sighting
from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address, format_endpoint, parse_endpoint
from phantommesh.rates import Bucket
from phantommesh.reachable import HostAddress, IpAddress, of_a_site, special
from phantommesh.records.candidate import MAX_CANDIDATES, UNKNOWN_PORT, Candidate, Kind
from phantommesh.records.record import MAX_CONTROL_ENDPOINTS
from phantommesh.trust.identity import NodeId
from phantommesh.wireguard.device import PeerState

ENOUGH: Final = 2  # voices that agree; a member has one
AUTHORITY: Final = ENOUGH  # voices of an authority

# Tuning.
QUIET: Final = 0.2  # s without another change until a change counts
LONGEST: Final = 0.8  # s after the first change at which it counts anyway
RECORDS: Final = 1 / 20, 5  # records a second, and at once: others take 6, then one in 15 s of a member
LASTS: Final = 180.0  # s for which a sighting counts
ROAMED: Final = 180.0  # s since a handshake within which an endpoint is where the peer's packets come from
MAX_WITNESSES: Final = 16  # whose sightings are kept
MAX_OWN: Final = 8  # candidates of the host's own
MAX_SEEN: Final = 4  # candidates that members see
MAX_MAPPED: Final = 2  # candidates that gateways have mapped
ASKED: Final = 4  # witnesses in one round
SOON: Final = (0.15, 0.6, 1.5, 5.0, 15.0)  # s after a change at which witnesses are asked
EVERY: Final = 60.0  # s between rounds when all is quiet
HINTS: Final = 1 / 20, 3  # hints of members that are followed a second, and at once: anybody could send more


class Place(NamedTuple):
    """An address and a port at which a node was seen."""

    address: IpAddress
    port: int


@dataclass(frozen=True, slots=True)
class Seen:
    """One witness's word: when the control port was last seen where, on this node's clock; the seven
    WireGuard ports, None where one was not."""

    at: float
    control: Place | None
    wireguard: tuple[Place | None, ...]
    voices: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """A gateway forwards from ``place`` to the control port of this host's address ``own``, and from
    ``ports`` at the same address to the ports of the dimensions; `UNKNOWN_PORT` where it does not."""

    own: IpAddress
    place: Place
    ports: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What a record says of where its node is reached: the control endpoints, for where the operator has
    named none, and the candidates."""

    endpoints: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()


def sighting(
    control: Iterable[tuple[Address, float]], states: Sequence[PeerState | None], now: float, wall: float
) -> Sighting:
    """Answer a member that asks where it is seen. ``control``: where its control port was seen to be and
    when, on the clock ``now``; ``states``: the peer on each interface. An endpoint of WireGuard's counts
    while a handshake is fresh: it follows the source of each packet that the peer's keys authenticate."""
    latest = max(
        ((when, address) for address, when in control if address.transport == "udp"),
        default=(-inf, None), key=lambda seen: seen[0],
    )  # fmt: skip
    when, address = latest
    age_ms = max(0.0, (now - when) * 1000)
    known = address is not None and age_ms <= MAX_AGE_MS
    ports = []
    for state in states:
        fresh = None if state is None or state.endpoint is None else state.age(wall)
        if state is None or state.endpoint is None or fresh is None or fresh > ROAMED:
            ports.append("")
        else:
            ports.append(format_endpoint(state.endpoint.host, state.endpoint.port))
    return Sighting(str(address), int(age_ms), tuple(ports)) if known else Sighting(wireguard=tuple(ports))


class Whereabouts:
    """Where this node may be reached. ``port`` is its control port."""

    def __init__(self, port: int) -> None:
        self.own: tuple[HostAddress, ...] = ()
        self.mapped: tuple[Mapped, ...] = ()
        self.dropped: Counter[str] = Counter()
        self._port, self._since = port, -inf
        self._hints = Bucket(*HINTS, 0.0)
        self._seen: dict[NodeId, Seen] = {}

    # What is known.

    def host(self, found: Sequence[HostAddress], now: float) -> bool:
        """The host has these addresses by which others may reach it (`Reach.offers`). Return whether they are
        others than before. What was seen before counts no more then."""
        own = tuple(sorted(found, key=lambda one: (one.index, _rank(one.address), int(one.address))))
        if own == self.own:
            return False
        self.own = own
        self.moved(now)
        return True

    def moved(self, now: float) -> None:
        """Whatever was seen so far may be of another place."""
        self._since = now
        self._seen.clear()

    def told(self, witness: NodeId, sighting: Sighting, now: float, *, authority: bool) -> bool:
        """A witness has answered what it was asked at ``now``. Return whether its word counts; what cannot be
        one is counted in ``dropped``. A place that was seen before this node moved does not count, nor do
        ports of another address."""
        try:
            control = _place(sighting.control)
            ports = tuple(_place(text) for text in sighting.wireguard)
        except ValueError:
            self.dropped["sighting-malformed"] += 1
            return False
        if control is None or now - sighting.age_ms / 1000 < self._since:
            self._seen.pop(witness, None)
            return False
        if special(control.address) is not None:
            self.dropped["sighting-special"] += 1
            return False
        ports = (*ports, *[None] * DIMENSIONS)[:DIMENSIONS]
        same = tuple(p if p is not None and p.address == control.address else None for p in ports)
        self._seen.pop(witness, None)
        self._seen[witness] = Seen(now, control, same, AUTHORITY if authority else 1)
        if len(self._seen) > MAX_WITNESSES:
            del self._seen[next(iter(self._seen))]
        return True

    def hinted(self, text: str, now: float) -> bool:
        """A member says unasked that this node's control port is there. That alone shows nothing, and may be
        forged. Return whether it is a reason to ask: it is no place that is known, and there were few such
        hints lately. A NAT that gives each destination another port makes one for each member: there only
        another address is news."""
        try:
            place = _place(text)
        except ValueError:
            place = None
        if place is None or special(place.address) is not None:
            self.dropped["hint-malformed"] += 1
            return False
        agreed = {place for place, _ in self.agreed(now)}
        own = place.address in {one.address for one in self.own} and place.port == self._port
        if own or place in agreed or (not agreed and place.address in self.public(now)):
            return False
        if not self._hints.take(now):
            self.dropped["hint-rate"] += 1
            return False
        return True

    def retain(self, members: Callable[[NodeId], bool]) -> None:
        """Forget what others than these have said."""
        self._seen = {witness: seen for witness, seen in self._seen.items() if members(witness)}

    # What follows from it.

    def witnesses(self, now: float) -> Mapping[NodeId, Seen]:
        """The sightings that count now."""
        return {witness: seen for witness, seen in self._seen.items() if now - seen.at <= LASTS}

    def found(self, now: float) -> Found:
        """What the record is to say."""
        return Found(self.endpoints(), self.candidates(now))

    def endpoints(self) -> tuple[str, ...]:
        """The control endpoints of a node for which none is configured: each interface's best address."""
        best = [next(group) for _, group in groupby(self.own, key=lambda one: one.index)]
        return tuple(format_endpoint(str(one.address), self._port) for one in best[:MAX_CONTROL_ENDPOINTS])

    def candidates(self, now: float) -> tuple[Candidate, ...]:
        """The candidates for the record: what a gateway has mapped first, which takes no punching; then what
        members see, then the host's own. A gateway's word on an address at which no member sees this node
        comes after what they see: a gateway behind another NAT does not know."""
        uplinks = {index: turn for turn, index in enumerate(dict.fromkeys(one.index for one in self.own))}
        own = [
            Candidate.of(Kind.OWN, one.address, self._port, uplink=min(uplinks[one.index], 255))
            for one in self.own[:MAX_OWN]
        ]
        here = {one.address: uplinks[one.index] for one in self.own}
        seen = [
            Candidate.of(Kind.SEEN, place.address, place.port, ports, here.get(place.address, 0))
            for place, ports in self.agreed(now)
            if place.address not in here or place.port != self._port
        ]
        mapped = [
            Candidate.of(Kind.MAPPED, one.place.address, one.place.port, one.ports, here.get(one.own, 0))
            for one in self.mapped[:MAX_MAPPED]
            if special(one.place.address) is None and not of_a_site(one.place.address)
        ]
        public = self.public(now)
        sure = [one for one in mapped if not public or one.ip in public]
        unsure = [one for one in mapped if one not in sure]
        said = {(one.address, one.port): one.wg_ports for one in mapped if all(one.wg_ports)}
        seen = [one for one in seen if not _adds_nothing(one.wg_ports, said.get((one.address, one.port)))]
        return (*sure, *seen, *unsure, *own)[:MAX_CANDIDATES]

    def agreed(self, now: float) -> list[tuple[Place, tuple[int, ...]]]:
        """Places of the control port on which enough witnesses agree, each with the ports of the dimensions
        at that address, `UNKNOWN_PORT` where they do not agree; most voices first."""
        counted = list(self.witnesses(now).values())
        votes = Counter[Place]()
        for seen in counted:
            if seen.control is not None:
                votes[seen.control] += seen.voices
        places = sorted(
            (-voices, *_rank(place.address), place.address.packed, place.port, place)
            for place, voices in votes.items()
            if voices >= ENOUGH
        )
        return [
            (place, tuple(self._port_of(counted, place.address, i) for i in range(DIMENSIONS)))
            for *_, place in places[:MAX_SEEN]
        ]

    def public(self, now: float) -> frozenset[IpAddress]:
        """The addresses at which enough witnesses see this node, whatever the port: behind a NAT that gives
        each destination another port they agree on no more than that."""
        votes = Counter[IpAddress]()
        for seen in self.witnesses(now).values():
            if seen.control is not None:
                votes[seen.control.address] += seen.voices
        return frozenset(address for address, voices in votes.items() if voices >= ENOUGH)

    def _port_of(self, counted: Iterable[Seen], address: IpAddress, dimension: int) -> int:
        votes = Counter[int]()
        for seen in counted:
            place = seen.wireguard[dimension]
            if place is not None and place.address == address:
                votes[place.port] += seen.voices
        best = votes.most_common(2)
        if not best or best[0][1] < ENOUGH or (len(best) > 1 and best[0][1] == best[1][1]):
            return UNKNOWN_PORT
        return best[0][0]

    def ask(
        self, members: Sequence[NodeId], authorities: Iterable[NodeId], now: float, rng: Random
    ) -> list[NodeId]:
        """The witnesses of the next round, of the ``members`` that can be called: an authority, some that
        have seen this node from outside, and for the rest others, since witnesses of its own network see
        nothing new."""
        own = {one.address for one in self.own}
        there = list(members)
        useful = [w for w, s in self.witnesses(now).items() if s.control and s.control.address not in own]
        heads = [one for one in authorities if one in there]
        rest = rng.sample(there, len(there))
        first = [*rng.sample(heads, min(1, len(heads))), *[w for w in useful if w in there][: ASKED // 2]]
        return list(dict.fromkeys([*first, *rest]))[:ASKED]


class Pace:
    """When something that changed is to be told: when it has been quiet for `QUIET`, at the latest `LONGEST`
    after the first change, and not more often than `RECORDS`."""

    def __init__(self, now: float) -> None:
        self._bucket = Bucket(*RECORDS, now)
        self._first: float | None = None
        self._last = -inf

    def changed(self, now: float, *, first_only: bool = False) -> None:
        """Something is another now. ``first_only``: it may be the same change as before."""
        if first_only and self._first is not None:
            return
        self._first = now if self._first is None else self._first
        self._last = now

    def due(self, now: float) -> float:
        """When `take` is due; infinity: there is nothing to tell."""
        if self._first is None:
            return inf
        settled = min(self._last + QUIET, self._first + LONGEST)
        return max(settled, now + self._bucket.wait(now))

    def take(self, now: float) -> bool:
        """Whether to tell now: then what changed is told."""
        if self.due(now) > now:
            return False
        self._bucket.owe(now)  # not `take`, which may lack a rounding error when the time has come
        self._first = None
        return True


class Rounds:
    """When witnesses are asked: soon after a change, several times, then seldom."""

    def __init__(self, now: float) -> None:
        self.due = now
        self.again(now)

    def again(self, now: float) -> None:
        """This node may be somewhere else."""
        self._start, self._turn = now, 0
        self.due = now + SOON[0]

    def soon(self, now: float) -> None:
        """There is somebody new to ask."""
        self.due = min(self.due, now + SOON[0])

    def asked(self, began: float, now: float) -> None:
        """A round that began then is over. Where this node moved meanwhile, the next one is due already."""
        if began < self._start:
            return
        self._turn += 1
        self.due = max(now, self._start + SOON[self._turn]) if self._turn < len(SOON) else now + EVERY


def _adds_nothing(seen: Sequence[int], mapped: Sequence[int] | None) -> bool:
    """Whether members see no port of the dimensions but those that a gateway says it has mapped. It may say
    so and let nothing in: then the ports that are seen are those to knock at."""
    return mapped is not None and all(a in (b, UNKNOWN_PORT) for a, b in zip(seen, mapped, strict=True))


def _rank(address: IpAddress) -> tuple[bool, bool]:
    """The likelier that many others reach an address, the smaller."""
    return of_a_site(address), not isinstance(address, IPv4Address)


def _place(text: str) -> Place | None:
    """A place as a witness writes it; None for none. Raises ValueError."""
    if not text:
        return None
    host, port = parse_endpoint(text)
    return Place(ip_address(host), port)
