# SPDX-License-Identifier: GPL-3.0-or-later
"""Members that do not answer at the addresses of their records, and live all the same. Pure.

`Whereabouts` keeps the addresses at which members were heard that their records do not name: behind a NAT, or
where a node has roamed to. Anybody can forge or copy a datagram, so such an address is asked, and counts only
once an answer to a nonce that was sent there, and nowhere else, holds a proof of the member's own
(`reach.proof`). Until then each datagram from there is good for a few questions, so whoever forges one makes
this node send few. A copy that comes from elsewhere never takes the place of an address that is proved.

`Signs` keeps the signs of life that came on other ways than gossip's own: a finished handshake, a probe
inside a dimension, a channel. No other member can make them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from math import inf
from typing import Final

from phantommesh.endpoint import Address
from phantommesh.membership.reach import IN_A_ROW
from phantommesh.rates import Bucket

# Tuning.
MAX_HEARD: Final = 3  # addresses of one member that were heard and not proved; the oldest makes room
QUESTIONS: Final = 3  # that a datagram from such an address is good for, and that are kept at most
KEPT: Final = (
    300.0  # s for which such an address is asked at most; NATs keep a mapping for minutes (RFC 4787)
)
PROMPT: Final = 5.0  # s between two questions out of turn to one member, and
PROMPTS: Final = 5.0, 20.0  # to all, a second and at once
PROVED: Final = 150.0  # s for which a proved address is used without another proof
SIGN: Final = 30.0  # s for which a sign of life counts, of a member whose control port does not answer
FRESH: Final = 10.0  # s for which a sign spares the questions by way of others: a probe in a resting path
RETURN: Final = 2.0  # s after the first sign of life of a dead member until another one brings it back
LINGER: Final = 15.0  # s after a goodbye in which a member may still show that it lives


class Way(Enum):
    """How this node reaches a member. ``ELSEWHERE``: only at the address that it was last heard from, which
    its record does not name, so that only the member itself can open the way. ``HELPERS``: by way of others
    (`reach`). ``TRAFFIC``: its control port does not answer, and traffic flows."""

    DIRECT = "direct"
    ELSEWHERE = "elsewhere"
    HELPERS = "helpers"
    TRAFFIC = "traffic"


@dataclass(slots=True)
class _Heard:
    """An address that is not proved: when a datagram last came from there, and how many questions may still
    go there."""

    when: float
    left: int = QUESTIONS


class _Place:
    """Where one member was heard. ``prompt``: until when it is not asked out of turn again. ``home``: its
    record's addresses answered last. ``since_home``: probes that were answered from elsewhere alone since
    then."""

    __slots__ = ("heard", "home", "prompt", "proved", "proved_at", "since_home", "turn")

    def __init__(self) -> None:
        self.heard: dict[Address, _Heard] = {}
        self.proved: Address | None = None
        self.proved_at = self.prompt = -inf
        self.home = False
        self.since_home = 0
        self.turn = 0


class Whereabouts:
    """The addresses at which members were heard that their records do not name. ``now`` is `Core.clock`."""

    def __init__(self) -> None:
        self._places: dict[bytes, _Place] = {}
        self._proved: dict[Address, bytes] = {}
        self._prompts = Bucket(*PROMPTS, 0.0)

    def heard(self, node: bytes, address: Address, now: float) -> bool:
        """A datagram in this member's name came from there. Return whether to ask the member at once: it may
        be there since a moment ago, and does not know it itself, if it is behind a NAT."""
        place = self._places.setdefault(node, _Place())
        if address == place.proved:
            return False
        news = place.heard.pop(address, None) is None
        place.heard[address] = _Heard(now)
        if len(place.heard) > MAX_HEARD:
            del place.heard[next(iter(place.heard))]
        if not news or now < place.prompt or not self._prompts.take(now):
            return False
        place.prompt = now + PROMPT
        return True

    def ask(self, node: bytes, now: float) -> list[Address]:
        """The addresses to ask now: the proved one, and in turn one of those that are not."""
        place = self._places.get(node)
        if place is None:
            return []
        found = [] if place.proved is None else [place.proved]
        for address in [address for address, heard in place.heard.items() if now - heard.when > KEPT]:
            del place.heard[address]
        if place.heard:
            place.turn += 1
            address = list(reversed(place.heard))[place.turn % len(place.heard)]
            found.append(address)
            place.heard[address].left -= 1
            if not place.heard[address].left:
                del place.heard[address]
        elif place.proved is None:
            del self._places[node]
        return found

    def known(self, node: bytes, now: float) -> list[Address]:
        """All addresses at which the member may be, the proved one first, then the latest heard."""
        place = self._places.get(node)
        if place is None:
            return []
        found = [] if place.proved is None else [place.proved]
        return found + [a for a, heard in reversed(place.heard.items()) if now - heard.when <= KEPT]

    def proof(self, node: bytes) -> tuple[Address, float] | None:
        """The address that is proved, and when it was; None where the member answers at home, since somebody
        beside it may pass on what comes there."""
        place = self._places.get(node)
        if place is None or place.proved is None or place.home:
            return None
        return place.proved, place.proved_at

    def prove(self, node: bytes, address: Address, now: float, *, first: bool) -> None:
        """The member has shown that it gets what is sent there. ``first``: it had not answered this probe
        yet. Somebody beside it may pass on what comes there, so where it is at home as well, that counts."""
        place = self._places.setdefault(node, _Place())
        if place.proved is not None:
            self._proved.pop(place.proved, None)
        place.heard.pop(address, None)
        place.proved, place.proved_at = address, now
        if first:
            place.since_home, place.home = place.since_home + 1, False
        self._proved[address] = node

    def at_home(self, node: bytes) -> None:
        """The member answered at an address of its record."""
        if (place := self._places.get(node)) is not None:
            place.since_home, place.home = 0, True

    def home(self, node: bytes) -> bool:
        """Whether the member answered last at an address of its record."""
        place = self._places.get(node)
        return place is not None and place.home

    def instead(self, node: bytes, now: float) -> Address | None:
        """The proved address, if the member answers nowhere else."""
        place = self._places.get(node)
        if place is None or place.since_home < IN_A_ROW or now - place.proved_at > PROVED:
            return None
        return place.proved

    def proved(self, address: Address, now: float) -> bool:
        """Whether a member has lately shown that it gets what is sent there."""
        node = self._proved.get(address)
        return node is not None and now - self._places[node].proved_at <= PROVED

    def only(self, node: bytes) -> bool:
        """Whether the member answers nowhere else, several probes in a row."""
        place = self._places.get(node)
        return place is not None and place.since_home >= IN_A_ROW

    def unsettled(self, node: bytes) -> bool:
        """Whether it is open yet if the member answers at home."""
        place = self._places.get(node)
        return place is not None and 0 < place.since_home < IN_A_ROW

    def forget(self, node: bytes) -> None:
        """Forget where this member was heard."""
        place = self._places.pop(node, None)
        if place is not None and place.proved is not None:
            self._proved.pop(place.proved, None)


class Signs:
    """Signs of life on other ways than gossip's own. A member that had one while its control port did not
    answer is *relied on* by its signs, until its control port answers."""

    def __init__(self) -> None:
        self._last: dict[bytes, float] = {}
        self._misses: dict[bytes, int] = {}  # probes without an answer, of the members that signs speak for
        self._returns: dict[bytes, float] = {}  # the first sign of a member that is down

    def came(self, node: bytes, when: float) -> None:
        """The member gave a sign of life."""
        self._last[node] = max(when, self._last.get(node, -inf))

    def rely(self, node: bytes) -> None:
        """A sign has come while the member was suspected."""
        self._misses.setdefault(node, 0)

    def fresh(self, node: bytes, now: float) -> bool:
        """Whether a member gave a sign of life a moment ago."""
        return now - self._last.get(node, -inf) <= FRESH

    def lives(self, node: bytes, now: float) -> bool:
        """Whether signs speak for a member whose control port does not answer."""
        return node in self._misses and now - self._last.get(node, -inf) <= SIGN

    def missed(self, node: bytes) -> None:
        """A probe of a member that signs speak for went unanswered."""
        self._misses[node] += 1

    def answered(self, node: bytes) -> None:
        """Its control port answered."""
        self._misses.pop(node, None)

    def mute(self, node: bytes) -> bool:
        """Whether nothing but signs speaks for this member, several probes in a row."""
        return self._misses.get(node, 0) >= IN_A_ROW

    def brings_back(self, node: bytes, when: float) -> bool:
        """A member that is down gave a sign of life. Return whether it is back: it may have started again,
        which it tells itself if it can."""
        return when > self._returns.setdefault(node, when) + RETURN

    def forget(self, node: bytes) -> None:
        """The member is held for dead, or forgotten."""
        for held in (self._last, self._misses, self._returns):
            held.pop(node, None)
