# SPDX-License-Identifier: GPL-3.0-or-later
"""Which changes of ways, path MTUs and NATs are told as events. It compares what is with what was told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from phantommesh.management.netview import Family, NatKind
from phantommesh.management.views import PathView
from phantommesh.management.wayview import WayKind
from phantommesh.node.natkind import Nat


@dataclass(frozen=True, slots=True)
class Moved:
    """A dimension takes another way than before."""

    peer: str
    node_id: str
    dimension: int
    before: tuple[WayKind, str | None]
    after: tuple[WayKind, str | None]


@dataclass(frozen=True, slots=True)
class Fits:
    """A peer may be sent larger or smaller packets than before, in bytes."""

    node_id: bytes
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class NatChanged:
    """Members see this node otherwise than before in one family of addresses."""

    family: Family
    before: NatKind
    after: Nat


@dataclass(slots=True)
class PathNews:
    """What was told last."""

    _ways: dict[tuple[str, int], tuple[WayKind, str | None]] = field(default_factory=dict)
    _fits: dict[bytes, int] = field(default_factory=dict)
    _nats: dict[Family, Nat] = field(default_factory=dict)

    def moved(self, paths: Iterable[PathView]) -> list[Moved]:
        """The dimensions that have moved. A dimension that goes dark or has no keys yet has not: that is
        another event, and the way that it had stands until it has one again."""
        known, found = dict[tuple[str, int], tuple[WayKind, str | None]](), list[Moved]()
        for path in paths:
            which, way = (path.node_id, path.dimension), (path.way, path.via)
            before = self._ways.get(which)
            if path.way != "none" and before is not None and before != way:
                found.append(Moved(path.peer, path.node_id, path.dimension, before, way))
            kept = before if path.way == "none" else way
            if kept is not None:
                known[which] = kept
        self._ways = known
        return found

    def fitted(self, peers: Iterable[bytes], fit: Callable[[bytes], int], most: int) -> list[Fits]:
        """The peers whose packets are kept to another size; ``most`` is the interfaces' MTU, which all have
        until a path is known to carry less."""
        now = {peer: fit(peer) for peer in peers}
        changed = [
            Fits(peer, before, size)
            for peer, size in now.items()
            if (before := self._fits.get(peer, most)) != size
        ]
        self._fits = now
        return changed

    def seen(self, nats: Mapping[Family, Nat]) -> list[NatChanged]:
        """The families in which members see another place or kind of NAT. That nobody has said anything, or
        says no longer, is no change."""
        changed = list[NatChanged]()
        for family, nat in nats.items():
            before = self._nats.get(family)
            if nat.kind == "unknown" or (before is not None and _alike(before, nat)):
                continue
            if before is not None:
                changed.append(NatChanged(family, before.kind, nat))
            self._nats[family] = nat
        return changed


def _alike(one: Nat, other: Nat) -> bool:
    """Behind a NAT with random ports each witness has its own, so only the addresses count there."""
    if one.kind != other.kind:
        return False
    if one.kind == "random":
        return {place.address for place in one.public} == {place.address for place in other.public}
    return one.public == other.public
