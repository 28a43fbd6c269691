# SPDX-License-Identifier: GPL-3.0-or-later
"""Prefixes beyond the mesh on this host: what is routed into the mesh, and what is closed. Pure.

All that this node takes is closed, whether somebody carries it now or not: it leaves by the mesh or not at
all. A part of a taken prefix that the host has itself (its own network, a gateway) stays the host's. Where
the host has more ranges in a prefix than can be gone round, the prefix stays as it was: no number of networks
that a neighbour advertises opens the rest of it.

A default route is closed as a whole: all is for the exit that no other route of ours leads elsewhere. What
the host has of its own stays the host's only as far as `exits.beside` says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from phantommesh.overlay.exits import beside
from phantommesh.overlay.prefixes import HostRange, plan
from phantommesh.routable import Places, collapse, is_exit, order, within
from phantommesh.wireguard.device import Network


@dataclass(frozen=True, slots=True)
class Beyond:
    """``closed``: the prefixes that mean the mesh on this host. ``routed``: those of them that a router
    carries now, each with the router's node id. ``conflicts``: a sentence for each prefix that the
    host has too many parts of for the rest to be closed, or to be routed. ``beside``: what stays the host's
    where a default route is closed."""

    closed: tuple[Network, ...] = ()
    routed: tuple[tuple[Network, bytes], ...] = ()
    conflicts: tuple[str, ...] = ()
    beside: tuple[Network, ...] = ()

    @property
    def exit(self) -> bool:
        """Whether all is closed that nothing else leads elsewhere."""
        return any(map(is_exit, self.closed))


def beyond(
    taken: Iterable[Network],
    carried: Mapping[Network, bytes],
    host: Iterable[HostRange],
    before: Iterable[Network] = (),
    own: Iterable[Network] = (),
    lan: Iterable[Network] = (),
) -> Beyond:
    """Say what to route and to close of the ``taken`` prefixes, of which these are ``carried``. ``host`` is
    what the host has in them that is not ours; default routes are not to be among it. ``before`` is what was
    closed: a prefix that cannot be told apart from the host's ranges keeps what it has of that. ``own`` are
    the prefixes that this node routes for others: a wider one that it takes leaves them out. ``lan`` are the
    networks of the host's own that are to stay beside an exit."""
    closed, routed, conflicts = set[Network](), dict[Network, bytes](), list[str]()
    ranges = Places((own.network, own) for own in host)
    advertised = Places((network, HostRange("route", network, "")) for network in own)
    kept = Places((network, network) for network in before)
    # A longer prefix comes later: what two prefixes share is the longer one's router's.
    wanted = sorted(set(taken), key=lambda prefix: prefix.prefixlen)
    gates = [prefix for prefix in wanted if is_exit(prefix)]
    wanted = wanted[len(gates) :]
    closed.update(gates)
    routed |= {prefix: carried[prefix] for prefix in gates if prefix in carried}
    shares = Places((prefix, prefix) for prefix in wanted)
    for prefix in wanted:
        parts = [one for one in advertised.meeting(prefix) if one.network.prefixlen > prefix.prefixlen]
        met = plan([prefix], {}, [*ranges.meeting(prefix), *parts])
        if met.conflicts and _held(prefix, ranges):
            continue  # it is the host's own by now, which whoever takes it is told
        if met.conflicts:
            conflicts.append(f"this host has more ranges of its own in {prefix} than can be gone round")
            closed.update(network for network in kept.meeting(prefix) if _of(network, shares) == prefix)
            continue
        closed.update(met.routed)
        if prefix in carried:
            routed |= dict.fromkeys(met.routed, carried[prefix])
    return Beyond(
        tuple(sorted(closed, key=order)),
        tuple(sorted(routed.items(), key=lambda item: order(item[0]))),
        tuple(conflicts),
        beside(lan) if gates else (),
    )


def _held(prefix: Network, host: Places[HostRange]) -> bool:
    """Whether the host's ranges hold all of a prefix."""
    return any(within(prefix, one) for one in collapse(own.network for own in host.meeting(prefix)))


def _of(network: Network, taken: Places[Network]) -> Network | None:
    """The longest of the taken prefixes that holds all of a network."""
    holding = taken.holding(network)
    return holding[-1] if holding else None
