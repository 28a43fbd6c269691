# SPDX-License-Identifier: GPL-3.0-or-later
"""Which members this node reaches itself, and which it reaches only by way of others. Pure.

A member that does not answer this node's pings may answer those that another member carries. The answer holds
a proof: a code over the asker's fresh nonce, under a key that only the asker and the member have. So a helper
can lose an answer, but it can not make one. A member with such answers is alive, and *partly reachable*.

A few lost pings are no reason to call a member partly reachable, nor is one answer a reason to take that
back: both take several probes in a row.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Container
from typing import Final

from phantommesh.membership.messages import PROOF_SIZE

_LABEL: Final = b"phantommesh partly reachable v1"

# Tuning.
MAX_HOPS: Final = 8  # members that one question may pass
HELPERS: Final = 2  # of a member's helpers that are asked at once
KEPT_HELPERS: Final = 4  # of a member's helpers that are remembered
HELPED: Final = 120.0  # s for which a helper that carried an answer is asked first
IN_A_ROW: Final = 3  # probes in a row that agree before a member is called partly reachable, or no longer so
PATIENCE: Final = 3  # probes in a row without any answer before a member with helpers is suspected


def proof(secret: bytes, asker: bytes, target: bytes, nonce: bytes, event: bytes) -> bytes:
    """Return the 16 bytes by which ``target`` shows ``asker`` that it answered this nonce (8 bytes) with this
    event about itself (48 bytes). HMAC-SHA-256 (RFC 2104), cut to 128 bits; ``secret`` is what only these two
    have in common."""
    return hmac.digest(secret, _LABEL + asker + target + nonce + event, "sha256")[:PROOF_SIZE]


def proves(code: bytes, secret: bytes, asker: bytes, target: bytes, nonce: bytes, event: bytes) -> bool:
    """Say whether a proof holds. Takes any bytes."""
    return hmac.compare_digest(code, proof(secret, asker, target, nonce, event))


class _Way:
    """How one member is reached that does not always answer this node itself."""

    __slots__ = ("answered", "direct", "helpers", "indirect", "misses", "partly")

    def __init__(self) -> None:
        self.helpers: dict[bytes, float] = {}  # and when each last carried an answer; the latest is last
        self.answered = -math.inf  # when an answer was last carried
        self.partly = False
        self.direct = self.indirect = self.misses = 0  # probes in a row that ended so


class Reach:
    """The ways to members. Members that have always answered themselves have no entry here."""

    def __init__(self) -> None:
        self._ways: dict[bytes, _Way] = {}
        self.partly: set[bytes] = set()

    def __len__(self) -> int:
        """How many members have helpers."""
        return len(self._ways)

    def carried(self, node: bytes, helper: bytes, now: float) -> None:
        """A proof of this member came by way of this helper."""
        way = self._ways.setdefault(node, _Way())
        way.helpers.pop(helper, None)
        way.helpers[helper] = way.answered = now
        while len(way.helpers) > KEPT_HELPERS:
            del way.helpers[next(iter(way.helpers))]
        way.misses = 0

    def weigh(self, node: bytes, *, direct: bool) -> str | None:
        """A probe of this member is over, which it has answered itself (``direct``) or by way of others.
        Return the event if that changes what it is: ``partly`` or ``direct``."""
        way = self._ways.get(node)
        if way is None:
            return None
        way.misses = 0
        way.direct, way.indirect = (way.direct + 1, 0) if direct else (0, way.indirect + 1)
        if way.partly:
            if way.direct < IN_A_ROW:
                return None
            self.forget(node)
            return "direct"
        if direct:
            self.forget(node)
            return None
        if way.indirect < IN_A_ROW:
            return None
        way.partly = True
        self.partly.add(node)
        return "partly"

    def missed(self, node: bytes) -> bool:
        """A probe of this member is over without any answer. Return whether it is to be asked again before it
        is suspected: one question passes several lossy links."""
        way = self._ways.get(node)
        if way is None:
            return False
        way.misses += 1
        return way.misses < PATIENCE

    def down(self, node: bytes) -> None:
        """This member is held for dead. Its helpers are kept: it may come back the same way."""
        self.partly.discard(node)
        way = self._ways.get(node)
        if way is not None:
            way.partly = False
            way.direct = way.indirect = 0

    def forget(self, node: bytes) -> None:
        """Forget the ways to this member."""
        self._ways.pop(node, None)
        self.partly.discard(node)

    def known(self, node: bytes) -> bool:
        """Whether this member has helpers."""
        return node in self._ways

    def leans(self, node: bytes) -> bool:
        """Whether this member has helpers, and did not answer itself when it was last asked. A late answer by
        way of others makes a helper as well, and no need of one."""
        way = self._ways.get(node)
        return way is not None and (way.partly or way.indirect > 0 or way.misses > 0)

    def unsettled(self, node: bytes) -> bool:
        """Whether this member has helpers, and too few probes yet to say more."""
        way = self._ways.get(node)
        return way is not None and not way.partly

    def helpers(self, node: bytes, now: float, without: Container[bytes] = ()) -> list[bytes]:
        """The helpers to ask for this member, the one that carried last first."""
        way = self._ways.get(node)
        if way is None:
            return []
        found = [h for h, when in reversed(way.helpers.items()) if now - when < HELPED and h not in without]
        return found[:HELPERS]

    def through(self, node: bytes) -> tuple[bytes, ...]:
        """By way of whom a partly reachable member is reached, the latest first. Empty for the others."""
        way = self._ways.get(node)
        return () if way is None or not way.partly else tuple(reversed(way.helpers))

    def elsewhere(self, node: bytes) -> bool:
        """Whether members other than this one have helpers: then this node itself may be badly placed."""
        return len(self._ways) > (node in self._ways)

    def badly_placed(self, node: bytes) -> bool:
        """Whether more than lost pings say so of members other than this one."""
        ways = self._ways.items()
        return any((way.partly or way.indirect > 1) for other, way in ways if other != node)
