# SPDX-License-Identifier: GPL-3.0-or-later
"""Prefixes beyond the mesh on this host: what is routed into the mesh, and what is closed. Pure.

All that this node takes is closed, whether somebody carries it now or not: it leaves by the mesh or not at
all. A part of a taken prefix that the host has itself (its own network, a gateway) stays the host's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from phantommesh.overlay.prefixes import HostRange, plan
from phantommesh.wireguard.device import Network


@dataclass(frozen=True, slots=True)
class Beyond:
    """``closed``: the prefixes that mean the mesh on this host. ``routed``: those of them that a router
    carries now, each with the router's node id. ``conflicts``: a sentence for each prefix that the host has
    too much of for it to be closed."""

    closed: tuple[Network, ...] = ()
    routed: tuple[tuple[Network, bytes], ...] = ()
    conflicts: tuple[str, ...] = ()


def beyond(taken: Iterable[Network], carried: Mapping[Network, bytes], host: Iterable[HostRange]) -> Beyond:
    """Say what to route and to close of the ``taken`` prefixes, of which these are ``carried``. ``host`` is
    what the host has in them that is not ours; default routes are not to be among it."""
    ranges, closed, routed, conflicts = list(host), set[Network](), dict[Network, bytes](), list[str]()
    # A longer prefix comes later: what two prefixes share is the longer one's router's.
    for prefix in sorted(set(taken), key=lambda prefix: prefix.prefixlen):
        met = plan([prefix], {}, ranges)
        conflicts += met.conflicts
        closed.update(met.routed)
        if prefix in carried:
            routed |= dict.fromkeys(met.routed, carried[prefix])
    return Beyond(
        tuple(sorted(closed, key=_order)),
        tuple(sorted(routed.items(), key=lambda item: _order(item[0]))),
        tuple(conflicts),
    )


def _order(prefix: Network) -> tuple[int, int, int]:
    return prefix.version, int(prefix.network_address), prefix.prefixlen
