# SPDX-License-Identifier: GPL-3.0-or-later
"""Membership behind its envelope: sealed datagrams in; sealed datagrams and other wishes out. Sans-I/O.

It adds to `Membership` all that `Membership` leaves to its owner: the group key, the choice among a member's
addresses, the true sender of a datagram, and the member to ask when a header tells of other revocations or
keys than ours.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

from phantommesh.endpoint import Address, format_endpoint
from phantommesh.gossip.envelope import OVERHEAD, Envelope, EnvelopeError, Opened
from phantommesh.membership import effects
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import EVENT_SIZE, HEADER_SIZE, NODE_ID_SIZE
from phantommesh.rates import Bucket, Rates, source_block
from phantommesh.trust.identity import NodeId

KIND: Final = 1  # of the envelope: the payload is a datagram of `membership.messages`
HINT: Final = 2  # the payload is a node id and, as text, the address at which that node has been found
_SENDER: Final = slice(HEADER_SIZE - 2 * NODE_ID_SIZE, HEADER_SIZE - NODE_ID_SIZE)

AMPLIFIED: Final = (
    3  # times what came that goes to an address of which nothing is proved (RFC 9000, section 8.1)
)
_SHORT: Final = AMPLIFIED * (OVERHEAD + HEADER_SIZE) - OVERHEAD
SHORT: Final = _SHORT - (_SHORT - HEADER_SIZE) % EVENT_SIZE  # bytes of a datagram within, of whole events

# Tuning.
STRANGE_RATE, STRANGE_BURST = 50.0, 200  # datagrams a second and at once to one such IPv4 address or IPv6 /64
HEARD: Final = 1.0  # s for which the address that a member was last heard from is used without a thought
ASK_AGAIN: Final = 1.0  # s between two requests for one member's keys and revocations
KEYLESS_AGAIN: Final = 3.0  # s between two requests that nothing but unreadable datagrams are the reason for
KEYLESS_LEAST: Final = 60.0  # s that these grow to while they bring nothing and others are heard meanwhile
HINTS, HINT_AGAIN = 3, 1.0  # hints to a member about one place, and s between them: some are lost
HINT_RATE, HINT_BURST = 5.0, 50  # hints to others a second and at once
MAX_HINT: Final = 80  # bytes of a hint: a node id, and an IPv6 address with its port
MAX_KNOWN: Final = 1024  # digests of which it is known that they hold nothing new


class Datagram(NamedTuple):
    """Send these bytes there."""

    data: bytes
    to: Address


class AskKeys(NamedTuple):
    """Ask `member` for revocations and group keys: its digest differs from ours. None: ask any member, since
    we receive datagrams that none of our keys opens. Answer with `Gossip.asked`."""

    member: NodeId | None
    digest: bytes


class Hinted(NamedTuple):
    """Somebody who holds the group key says, in the name of `member`, that this node is at `place` now, an
    endpoint's text that was not looked at. It is a reason to ask members where they see this node."""

    member: NodeId
    place: str


Effect = Datagram | AskKeys | Hinted | effects.Changed | effects.FetchRecord | effects.Sync | effects.Persist


class _Route:
    """The address that a member was last heard from, and which of its addresses is tried next while it is
    silent."""

    __slots__ = ("heard", "last", "turn")

    def __init__(self) -> None:
        self.last: Address | None = None
        self.heard = -inf
        self.turn = 0


@dataclass(slots=True)
class _Told:
    """A member was told so often that it was found there, and is not told again before."""

    place: Address
    times: int = 0
    again: float = -inf


class Gossip:
    """The membership of one node on the wire.

    ``where`` gives the addresses in a member's signed record that may be used; ``may`` says whether a member
    that names none may be answered where its datagrams come from; ``digest`` the 8 bytes that tell of our
    revocations and keys; ``in_use`` is told the id of each key that a genuine datagram was sealed with. The
    clock is the owner's throughout.
    """

    def __init__(
        self,
        membership: Membership,
        envelope: Envelope,
        *,
        where: Callable[[NodeId], Sequence[Address]],
        digest: Callable[[], bytes],
        in_use: Callable[[bytes], None],
        may: Callable[[NodeId, str], bool] = lambda member, host: True,
    ) -> None:
        self.over_tcp: Callable[[NodeId], Address | None] = lambda member: None
        """The address, of transport TCP, of a member's connection for frames. What is for the member goes
        there too."""
        self.by_udp: Callable[[NodeId], None] = lambda member: None
        """Told of each member that is heard by UDP at an address of its record."""
        self.blame: Callable[[str, Address], None] = lambda reason, source: None
        """Told of each datagram that no key opens, and where it seems to come from."""
        self.membership = membership
        self.heard_at = -inf
        self._keyless_pause = KEYLESS_AGAIN
        self._envelope, self._where, self._digest, self._in_use = envelope, where, digest, in_use
        self._may = may
        self._routes: dict[NodeId, _Route] = {}
        self._asked_at: dict[NodeId | None, float] = {}
        self._nothing_new: OrderedDict[bytes, None] = OrderedDict()
        self._hinted: dict[NodeId, _Told] = {}
        self._hints = Bucket(HINT_RATE, HINT_BURST, 0.0)
        self._strange = Rates[str](STRANGE_RATE, STRANGE_BURST)
        self._drops: Counter[str] = Counter()

    @property
    def drops(self) -> Counter[str]:
        """Datagrams and claims not taken in, by reason."""
        inner = Counter({f"gossip-{reason}": n for reason, n in self.membership.drops.items()})
        return self._drops + self._envelope.drops + inner

    # The protocol's shape.

    @property
    def deadline(self) -> float:
        """When `tick` is due."""
        return self.membership.deadline

    def tick(self, now: float) -> list[Effect]:
        """Do what is due."""
        return self.seal(self.membership.tick(now), now)

    def receive(
        self, datagram: bytes, source: Address, now: float, *, member: NodeId | None = None
    ) -> list[Effect]:
        """Take one datagram from the network. Never raises: what cannot be used is counted in `drops`.
        ``member`` is the other end of the connection that it came by, which proves more than an address does;
        None where it came by UDP."""
        try:
            opened = self._envelope.open(datagram)
        except EnvelopeError as error:
            if error.reason == "gossip-key":  # of a member, perhaps, that has a later key
                return self._keyless(now)
            self.blame("gossip", source)
            return []
        # The seal shows the sender outside; the datagram inside must be the same node's.
        if opened.kind == HINT:
            return self._take_hint(opened)
        if opened.kind != KIND or opened.payload[_SENDER] != opened.sender:
            self._drops["gossip-kind" if opened.kind != KIND else "gossip-impostor"] += 1
            return []
        if member is not None and opened.sender != member:
            self._drops["gossip-impostor"] += 1
            return []
        self.heard_at = now
        self._in_use(opened.key)
        at_home = member is not None or self._heard(opened.sender, source, now)
        if member is None and at_home:
            self.by_udp(opened.sender)
        usable = not at_home and self._may(opened.sender, source.host)
        wanted: list[Effect] = []
        if opened.digest != self._digest():
            wanted = self._ask(opened.sender, opened.digest, ASK_AGAIN, now)
        heard = self.membership.receive(opened.payload, source, now, at_home=at_home, usable=usable)
        hint = self._hint(opened.sender, source, now) if usable else []
        return wanted + hint + self.seal(heard, now, home=source if at_home else None)

    # A member that is somewhere else without knowing it: its NAT gave it another address.

    def _hint(self, member: NodeId, source: Address, now: float) -> list[Effect]:
        """Tell a member where it was found, a few times for each place: an address that its record does not
        name, and where it has shown that it gets what is sent there."""
        found = self.membership.proved_at(member, now)
        if found is None or found[0] != source or not self._envelope.ready:
            return []
        told = self._hinted.get(member)
        if told is None or told.place != source:
            told = self._hinted[member] = _Told(source)
        if told.times >= HINTS or now < told.again or not self._hints.take(now):
            return []
        told.times, told.again = told.times + 1, now + HINT_AGAIN
        place = format_endpoint(source.host, source.port)
        return [Datagram(self._envelope.seal(HINT, member + place.encode("ascii")), source)]

    def _take_hint(self, opened: Opened) -> list[Effect]:
        to, place = opened.payload[:NODE_ID_SIZE], opened.payload[NODE_ID_SIZE:]
        if to != self.membership.node or len(opened.payload) > MAX_HINT or not place.isascii():
            self._drops["gossip-hint"] += 1
            return []
        return [Hinted(opened.sender, place.decode("ascii"))]

    def seal(
        self, wanted: Sequence[effects.Effect], now: float, *, home: Address | None = None
    ) -> list[Effect]:
        """Turn what membership wants into what its owner can do. ``home`` is an address that a member's
        record names. A victim may be at any other address, until the member proves that it is there: whoever
        holds the group key can ask from there in any name. So datagrams to there are few and short."""
        out: list[Effect] = []
        for effect in wanted:
            if not isinstance(effect, effects.Send):
                out.append(effect)
            elif not self._envelope.ready:
                self._drops["gossip-unkeyed"] += 1
            elif isinstance(effect.to, Address) and not self._sure(effect.to, home):
                if self._strange.allow(source_block(effect.to.host), now):
                    out.append(Datagram(self._envelope.seal(KIND, effect.datagram[:SHORT]), effect.to))
                else:
                    self._drops["gossip-strange"] += 1
            elif addresses := self._addresses(effect.to, now):
                sealed = self._envelope.seal(KIND, effect.datagram)
                out += [Datagram(sealed, address) for address in addresses]
            else:
                self._drops["gossip-nowhere"] += 1
        return out

    def _sure(self, to: Address, home: Address | None) -> bool:
        """Whether no victim can be at an address."""
        return to == home or to.transport == "tcp" or self.membership.proved(to)

    # Addresses of members.

    def _heard(self, sender: NodeId, source: Address, now: float) -> bool:
        """Any member can seal in another's name, so only an address that the sender's record names counts;
        where it names none, the sender is where it speaks from. Return whether the record names it."""
        known = self._where(sender)
        if source in known or (not known and self._may(sender, source.host)):
            route = self._routes.setdefault(sender, _Route())
            route.last, route.heard, route.turn = source, now, 0
        return source in known

    def seen(self, member: NodeId, now: float) -> Iterator[tuple[Address, float]]:
        """Yield where a member's control port was seen and when, on the owner's clock: an address of its
        record, and one that its record does not name and where it has shown that it gets what is sent."""
        route, proved = self._routes.get(member), self.membership.proved_at(member, now)
        if route is not None and route.last is not None:
            yield route.last, route.heard
        if proved is not None:
            yield proved

    def _addresses(self, to: bytes | Address, now: float) -> list[Address]:
        """Where to send: by UDP also where there is a connection, to find out whether UDP passes again."""
        over_tcp = None if isinstance(to, Address) else self.over_tcp(NodeId(to))
        return [address for address in (self._address(to, now), over_tcp) if address is not None]

    def _address(self, to: bytes | Address, now: float) -> Address | None:
        if isinstance(to, Address):
            return to
        member = NodeId(to)
        known, route = self._where(member), self._routes.setdefault(member, _Route())
        if route.last is not None and (not known or (now - route.heard < HEARD and route.last in known)):
            return route.last
        if not known:
            return None
        # Silent: perhaps another of its addresses works. The one that did comes first.
        tried = dict.fromkeys((route.last, *known) if route.last in known else known)
        address = list(tried)[route.turn % len(tried)]
        route.turn += 1
        return address

    def forget(self, members: set[NodeId]) -> None:
        """Keep nothing of nodes other than these."""
        self._hinted = {member: place for member, place in self._hinted.items() if member in members}
        self._routes = {member: route for member, route in self._routes.items() if member in members}
        self._asked_at = {who: when for who, when in self._asked_at.items() if who is None or who in members}

    # Members with other keys or revocations.

    def _keyless(self, now: float) -> list[Effect]:
        """Anyone can send what no key opens, so this is no more than a reason to ask a member some time."""
        alone = now - self.heard_at > KEYLESS_AGAIN
        return self._ask(None, b"", KEYLESS_AGAIN if alone else self._keyless_pause, now)

    def _ask(self, member: NodeId | None, digest: bytes, pause: float, now: float) -> list[Effect]:
        if digest in self._nothing_new or now < self._asked_at.get(member, -inf) + pause:
            return []
        self._asked_at[member] = now
        return [AskKeys(member, digest)]

    def moot(self, wanted: AskKeys) -> bool:
        """Whether what it asks for has come meanwhile: a change is heard of from many members at once."""
        return wanted.digest == self._digest()

    def asked(self, digest: bytes, *, news: bool) -> None:
        """An `AskKeys` was answered. If the answer held nothing new, members with that digest are behind us
        and are not asked again: they will ask us."""
        if news:
            self._nothing_new.clear()
            self._keyless_pause = KEYLESS_AGAIN
        elif not digest:
            self._keyless_pause = min(KEYLESS_LEAST, 2 * self._keyless_pause)
        else:
            self._nothing_new[digest] = None
            if len(self._nothing_new) > MAX_KNOWN:
                self._nothing_new.popitem(last=False)
