# SPDX-License-Identifier: GPL-3.0-or-later
"""Leases of a relay: which pairs of members it forwards for, from where to where. Pure.

A lease is for one pair of members in one dimension. It has two legs, one for each end. A leg is *asked for*
by its member over the control channel, and *bound* to an address once that address has returned a challenge
(`routing.binding`). The relay forwards while both legs are asked for and bound, both addresses are of one
family, the pair is permitted, and the lease's quota is not spent. What is forwarded is a set of values, so
that a driver can make the kernel's rules equal to the set at any time.

A relay has one port, and a member one WireGuard port a dimension. So the leases of one member in one
dimension differ by a *tag*: the second byte of each WireGuard packet, which WireGuard itself sends and
expects as 0. The first such lease has tag 0 and needs nothing of its ends. docs/decisions/0052-relays.md says
more.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from math import inf
from typing import Final

from phantommesh.dimensions import DIMENSIONS
from phantommesh.endpoint import Address
from phantommesh.secret import Secret
from phantommesh.trust.identity import NodeId

# Specification (docs/decisions/0052-relays.md).
TICKET_SIZE: Final = 8  # bytes: the name of a leg in datagrams
KEY_SIZE: Final = 32  # bytes: a leg's MAC key
TAGS: Final = 256  # leases of one member in one dimension
LIFE: Final = 120.0  # s that a leg is asked for, from the last time that its member asked
BOUND: Final = 60.0  # s that a leg is bound, from the last challenge that came back

# Tuning.
MOST: Final = 1024  # leases
OF_MEMBER: Final = 256  # leases that one member is an end of
WINDOW: Final = 86_400.0  # s that a quota is for
MOST_ACCOUNTS: Final = 16_384
MOST_LATE: Final = 4096  # directions of ended leases whose last bytes may yet be counted

Pair = tuple[NodeId, NodeId]
Random = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Terms:
    """A relay's limits on each lease: ``rate`` in bytes a second for each direction, ``quota`` in bytes of
    both directions within ``WINDOW``; and the number of leases, in all and of one member."""

    rate: int
    quota: int
    most: int = MOST
    of_member: int = OF_MEMBER

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.quota <= 0 or self.most <= 0 or self.of_member <= 0:
            raise ValueError("each of a relay's limits is a number above 0")


class Refusal(Enum):
    """Why a relay gives no lease: the label of the counter, the text for the asker, and what helps."""

    NOT_PERMITTED = "not-permitted", "this relay does not forward for this pair", "choose another relay"
    FULL = "full", "this relay has no lease left", "choose another relay, or ask later"
    MEMBER_FULL = "member-full", "one of the two has all its leases at this relay", "choose another relay"
    TAGS_FULL = "tags-full", "one of the two has no tag left in this dimension", "choose another dimension"
    UNTAGGED = (
        "untagged",
        "the lease has a tag, and the asker cannot tag",
        "choose another dimension",
    )
    SPENT = "spent", "the lease's quota is spent", "choose another relay, or ask again tomorrow"

    @property
    def label(self) -> str:
        """The reason as a word."""
        return self.value[0]

    @property
    def text(self) -> str:
        """The reason as a sentence's part."""
        return self.value[1]

    @property
    def fix(self) -> str:
        """What the asker may do."""
        return self.value[2]


@dataclass(frozen=True, slots=True)
class Grant:
    """One leg, as its member is told of it. ``waiting``: the other end has not asked for the lease (any
    more), so it has to hear of it."""

    peer: NodeId
    dimension: int
    tag: int
    ticket: bytes
    key: Secret
    waiting: bool


@dataclass(frozen=True, slots=True)
class Forward:
    """One direction of a lease in force: what comes from ``source`` with ``tag`` goes to ``target``.
    ``number`` is never used again for anything else."""

    number: int
    tag: int
    source: Address
    target: Address


@dataclass(slots=True)
class _Leg:
    member: NodeId
    number: int
    ticket: bytes
    key: Secret
    asked: float = -inf  # until when
    bound: float = -inf  # until when
    spot: Address | None = None
    counted: int = 0  # bytes, as the kernel's counter stood

    def holds(self, now: float) -> bool:
        return self.asked > now and self.bound > now and self.spot is not None


@dataclass(slots=True)
class _Lease:
    pair: Pair
    dimension: int
    tag: int
    legs: tuple[_Leg, _Leg]

    def leg(self, member: NodeId) -> _Leg:
        return self.legs[self.pair.index(member)]

    def other(self, leg: _Leg) -> _Leg:
        return self.legs[1] if leg is self.legs[0] else self.legs[0]


@dataclass(slots=True)
class _Account:
    since: float
    spent: int = 0


class Leases:
    """The leases that a relay has given.

    ``permit`` says whether the relay forwards for a pair: both are members in good standing, not banned or
    drained, and among those whom the operator lends to. ``refuses`` says whether an address may not be sent
    to (`reachable.Reach`). Both are asked each time, and their answers are not kept.
    """

    def __init__(
        self,
        terms: Terms,
        permit: Callable[[NodeId, NodeId], bool],
        refuses: Callable[[Address], bool],
        random: Random,
    ) -> None:
        self.relayed = 0  # bytes of all leases so far, as the kernel counts them
        self.terms, self._permit, self._refuses, self._random = terms, permit, refuses, random
        self._leases: dict[tuple[Pair, int], _Lease] = {}
        self._tickets: dict[bytes, tuple[_Lease, _Leg]] = {}
        self._numbers: dict[int, tuple[_Lease, _Leg]] = {}
        self._spots: dict[tuple[Address, int], _Leg] = {}
        self._tags: dict[tuple[NodeId, int], set[int]] = {}
        self._of: dict[NodeId, int] = {}
        self._accounts: OrderedDict[tuple[Pair, int], _Account] = OrderedDict()
        self._late: OrderedDict[int, tuple[tuple[Pair, int], int]] = OrderedDict()
        self._next = 1

    def __len__(self) -> int:
        return len(self._leases)

    def ask(
        self, asker: NodeId, peer: NodeId, dimension: int, now: float, *, tagging: bool
    ) -> Grant | Refusal:
        """Give a member its leg of the lease to a peer, or renew it. ``tagging``: the asker can tag
        packets."""
        if not 0 <= dimension < DIMENSIONS or asker == peer or not self._permit(asker, peer):
            return Refusal.NOT_PERMITTED
        self.tick(now)
        key = _pair(asker, peer), dimension
        if self._overspent(key, now):
            return Refusal.SPENT
        lease = self._leases.get(key)
        if lease is None:
            made = self._make(*key, now, tagging=tagging)
            if isinstance(made, Refusal):
                return made
            lease = made
        elif lease.tag and not tagging:
            return Refusal.UNTAGGED
        leg = lease.leg(asker)
        leg.asked = now + LIFE
        waiting = lease.other(leg).asked <= now
        return Grant(peer, dimension, lease.tag, leg.ticket, leg.key, waiting)

    def leave(self, asker: NodeId, peer: NodeId, dimension: int) -> None:
        """Take one end's word that it has no more use for a lease. The lease ends for both."""
        if (lease := self._leases.get((_pair(asker, peer), dimension))) is not None:
            self._end(lease)

    def key(self, ticket: bytes, now: float) -> Secret | None:
        """The key of a leg that is asked for; None where there is none."""
        found = self._tickets.get(ticket)
        return found[1].key if found is not None and found[1].asked > now else None

    def bind(self, ticket: bytes, spot: Address, now: float) -> bool | None:
        """Bind a leg to the address that has just returned its challenge. True: the lease is forwarded now;
        False: the other leg is not ready yet; None: there is no such leg, or the address may not be sent to.

        One address with one tag is one leg: a leg that was bound there before is so no longer. A NAT has
        given the address to somebody else, who has just shown it.
        """
        found = self._tickets.get(ticket)
        if found is None or found[1].asked <= now or self._refuses(spot):
            return None
        lease, leg = found
        if leg.spot != spot:
            self._unbind(lease, leg)
            if (before := self._spots.get((spot, lease.tag))) is not None:
                self._unbind(self._numbers[before.number][0], before)
            leg.spot = spot
            self._spots[spot, lease.tag] = leg
        leg.bound = now + BOUND
        return self._forwarded(lease, now)

    def recheck(self, now: float) -> list[Pair]:
        """End every lease whose pair is no longer permitted, or whose quota is spent. Returns their pairs.
        Call it whenever somebody is revoked, banned or drained, or the terms change."""
        gone = [
            lease
            for key, lease in self._leases.items()
            if not self._permit(*lease.pair) or self._overspent(key, now)
        ]
        for lease in gone:
            self._end(lease)
        return [lease.pair for lease in gone]

    def account(self, counted: Mapping[int, int], now: float) -> list[Pair]:
        """Take in the bytes that the kernel has counted, by number of `Forward`, and end the leases that have
        spent their quota. Returns their pairs. A lease that has ended still pays for what it sent: otherwise
        ending and asking anew would be a way around the quota. Call it before counters are deleted, and
        `begun` after they were made."""
        for number, size in counted.items():
            if (found := self._numbers.get(number)) is not None:
                lease, leg = found
                key, more = (lease.pair, lease.dimension), size - leg.counted
                leg.counted = size
            elif number in self._late:
                key, before = self._late[number]
                self._late[number], more = (key, size), size - before
            else:
                continue
            if more > 0:
                self._account(key, now).spent += more
                self.relayed += more
        return self.recheck(now)

    def begun(self, numbers: Iterable[int]) -> None:
        """Take word that the counters of these `Forward`s have begun at 0."""
        for number in numbers:
            if (found := self._numbers.get(number)) is not None:
                found[1].counted = 0

    def tick(self, now: float) -> None:
        """End what nobody asks for, unbind what did not return a challenge."""
        for lease in list(self._leases.values()):
            if all(leg.asked <= now for leg in lease.legs):
                self._end(lease)
                continue
            for leg in lease.legs:
                if leg.spot is not None and (leg.bound <= now or leg.asked <= now):
                    self._unbind(lease, leg)

    @property
    def deadline(self) -> float:
        """When `tick` has something to do next; inf when there is no lease."""
        return min((moment for lease in self._leases.values() for moment in _moments(lease)), default=inf)

    def forwards(self, now: float) -> frozenset[Forward]:
        """Return what is to be forwarded, and nothing else may be."""
        return frozenset(
            Forward(leg.number, lease.tag, leg.spot, other.spot)
            for lease in self._leases.values()
            if self._forwarded(lease, now)
            for leg, other in (lease.legs, lease.legs[::-1])
            if leg.spot is not None and other.spot is not None
        )

    def _forwarded(self, lease: _Lease, now: float) -> bool:
        one, two = lease.legs
        if one.spot is None or two.spot is None or not (one.holds(now) and two.holds(now)):
            return False
        if self._overspent((lease.pair, lease.dimension), now) or not self._permit(*lease.pair):
            return False
        if ip_address(one.spot.host).version != ip_address(two.spot.host).version:
            return False
        return not self._refuses(one.spot) and not self._refuses(two.spot)

    def _make(self, pair: Pair, dimension: int, now: float, *, tagging: bool) -> _Lease | Refusal:
        if any(self._of.get(member, 0) >= self.terms.of_member for member in pair):
            return Refusal.MEMBER_FULL
        used = [self._tags.get((member, dimension), set[int]()) for member in pair]
        tag = next((n for n in range(TAGS) if n not in used[0] and n not in used[1]), None)
        if tag is None:
            return Refusal.TAGS_FULL
        if tag and not tagging:
            return Refusal.UNTAGGED
        if len(self._leases) >= self.terms.most and not self._make_room(now):
            return Refusal.FULL
        lease = _Lease(pair, dimension, tag, (self._leg(pair[0]), self._leg(pair[1])))
        self._leases[pair, dimension] = lease
        for leg in lease.legs:
            self._tickets[leg.ticket] = self._numbers[leg.number] = (lease, leg)
            self._tags.setdefault((leg.member, dimension), set()).add(tag)
            self._of[leg.member] = self._of.get(leg.member, 0) + 1
        return lease

    def _make_room(self, now: float) -> bool:
        """End the lease that only one end has asked for and that would end first; False where all have both.
        So a few members cannot take all places by asking for leases that their peers do not want."""
        half = [lease for lease in self._leases.values() if any(leg.asked <= now for leg in lease.legs)]
        if not half:
            return False
        self._end(min(half, key=lambda lease: max(leg.asked for leg in lease.legs)))
        return True

    def _leg(self, member: NodeId) -> _Leg:
        number, self._next = self._next, self._next + 1
        ticket = self._random(TICKET_SIZE)
        while ticket in self._tickets:
            ticket = self._random(TICKET_SIZE)
        return _Leg(member, number, ticket, Secret(self._random(KEY_SIZE)))

    def _unbind(self, lease: _Lease, leg: _Leg) -> None:
        if leg.spot is not None:
            del self._spots[leg.spot, lease.tag]
            leg.spot = None
            leg.bound = -inf

    def _end(self, lease: _Lease) -> None:
        del self._leases[lease.pair, lease.dimension]
        for leg in lease.legs:
            self._unbind(lease, leg)
            del self._tickets[leg.ticket], self._numbers[leg.number]
            self._late[leg.number] = (lease.pair, lease.dimension), leg.counted
            if len(self._late) > MOST_LATE:
                self._late.popitem(last=False)
            tags = self._tags[leg.member, lease.dimension]
            tags.remove(lease.tag)
            if not tags:
                del self._tags[leg.member, lease.dimension]
            self._of[leg.member] -= 1
            if not self._of[leg.member]:
                del self._of[leg.member]

    def _account(self, key: tuple[Pair, int], now: float) -> _Account:
        account = self._accounts.get(key)
        if account is None or now - account.since >= WINDOW:
            account = self._accounts[key] = _Account(now)
            self._accounts.move_to_end(key)
            if len(self._accounts) > MOST_ACCOUNTS:
                self._accounts.popitem(last=False)
        return account

    def _overspent(self, key: tuple[Pair, int], now: float) -> bool:
        account = self._accounts.get(key)
        return account is not None and now - account.since < WINDOW and account.spent >= self.terms.quota


def _pair(one: NodeId, two: NodeId) -> Pair:
    return (one, two) if one < two else (two, one)


def _moments(lease: _Lease) -> Iterator[float]:
    yield max(leg.asked for leg in lease.legs)
    for leg in lease.legs:
        if leg.spot is not None:
            yield min(leg.bound, leg.asked)
