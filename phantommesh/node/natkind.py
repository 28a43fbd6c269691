# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kind of NAT lies before this node, by what witnesses see of it. Sans-I/O."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from phantommesh.management.netview import NatKind
from phantommesh.node.whereabouts import Place, Seen
from phantommesh.reachable import IpAddress

SURE: Final = 2  # witnesses from which on a NAT's ports can be compared


@dataclass(frozen=True, slots=True)
class Nat:
    """``public``: where witnesses see the control port, as far as that is not an address of this host;
    ``witnesses``: how many see it at all."""

    kind: NatKind
    public: tuple[Place, ...] = ()
    witnesses: int = 0


def nat_of(
    own: Collection[IpAddress], port: int, wg_ports: Sequence[int], seen: Iterable[Seen], version: int
) -> Nat:
    """Say what kind it is for one IP ``version``. ``own`` are this host's addresses, ``port`` its control
    port, ``wg_ports`` those of its WireGuard by dimension. A witness of this host's own network sees nothing
    of a NAT, so such witnesses count only where there are no others."""
    words = [one for one in seen if one.control is not None and one.control.address.version == version]
    if not words:
        return Nat("unknown")
    outside = [one for one in words if one.control is not None and one.control.address not in own]
    if not outside:
        return Nat("none", witnesses=len(words))
    public = tuple(sorted({one.control for one in outside if one.control is not None}))
    return Nat(_kind(outside, port, wg_ports), public, len(outside))


def _kind(outside: Sequence[Seen], port: int, wg_ports: Sequence[int]) -> NatKind:
    """Ports are compared at one address only: a host with two uplinks has a NAT before each, perhaps."""
    ports: dict[tuple[IpAddress, int], set[int]] = defaultdict(set)  # by address and own port
    for one in outside:
        for place, own in zip((one.control, *one.wireguard), (port, *wg_ports), strict=False):
            if place is not None:
                ports[place.address, own].add(place.port)
    if any(len(found) > 1 for found in ports.values()):
        return "random"
    if all(found == {own} for (_, own), found in ports.items()):
        return "port-preserving"
    return "other-port"
