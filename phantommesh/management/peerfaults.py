# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults between a node and its peers, read off what the node shows of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from phantommesh.dimensions import DIMENSIONS
from phantommesh.faults import Fault, FaultKind
from phantommesh.management.views import LinkView, MemberState, PathView

PEER_GONE = FaultKind("peer-gone", "medium")
LINK_INCOMPLETE = FaultKind("link-incomplete", "medium")
DIMENSIONS_DARK = FaultKind("dimensions-dark", "medium")
PARTLY_REACHABLE = FaultKind("peer-partly-reachable", "medium")

# Tuning.
MAX_PARTLY = 8  # partly reachable peers named in `status`
RENEWAL = 15.0  # s that a dimension may have no keys, or prove itself, before it is called a fault


def peer_faults(
    standing: Mapping[str, MemberState],
    links: Sequence[LinkView],
    paths: Sequence[PathView],
    control_port: int,
) -> Iterator[Fault]:
    """Faults of links and paths. ``standing`` is what gossip says of each peer, by node id as text."""
    renewed = Counter(v.node_id for v in paths if v.state in ("closed", "proving") and v.since_s < RENEWAL)
    for link in links:
        gone = standing.get(link.node_id)
        if gone in ("suspect", "dead"):
            yield PEER_GONE.fault(
                f"peer {link.peer} is {gone}: its node does not answer",
                f"check that it runs and that its control port {control_port} is reachable by UDP from here",
                subject=link.peer,
            )
        elif link.state == "fresh" and 0 < DIMENSIONS - link.dimensions <= renewed[link.node_id] < DIMENSIONS:
            continue  # a key is being replaced, here or there
        elif gone != "left" and not is_up(link):
            why = f": {link.last_error}" if link.last_error else ""
            yield LINK_INCOMPLETE.fault(
                f"peer {link.peer} {_keyed(link)} and answers on {link.dimensions} of {DIMENSIONS} "
                f"dimensions{why}",
                "check that it runs and that its UDP ports are reachable from here",
                subject=link.peer,
            )
    for (node_id, name), dark in _dark(paths).items():
        if standing.get(node_id) in ("suspect", "dead"):
            continue  # told above, and no dimension takes its traffic: those that are not dark yet will be
        yield DIMENSIONS_DARK.fault(
            f"dark: {', '.join(map(str, dark))} of the dimensions of peer {name}: probes get no answer, "
            "its traffic takes the others",
            "check the uplink, and the UDP ports at both ends",
            subject=name,
        )


def partly_reachable(through: Sequence[tuple[str, Sequence[str]]], control_port: int) -> Iterator[Fault]:
    """Faults of the peers that gossip reaches only by way of others. ``through`` has each peer's name with
    the names of those others."""
    for name, via in sorted(through)[:MAX_PARTLY]:
        yield PARTLY_REACHABLE.fault(
            f"peer {name} is partly reachable: its node answers by way of {', '.join(via)}, not from here, "
            "and nobody carries traffic",
            f"check that its control port {control_port} and its WireGuard ports are reachable by UDP from "
            "here, and ours from there",
            subject=name,
        )
    if len(through) > MAX_PARTLY:
        yield PARTLY_REACHABLE.fault(
            f"and {len(through) - MAX_PARTLY} more peers are partly reachable", "see `phantommesh peers`"
        )


def is_up(link: LinkView) -> bool:
    """Whether a peer answers on every dimension, by keys that both ends agreed on."""
    return link.state == "fresh" and link.dimensions == DIMENSIONS


def _dark(paths: Sequence[PathView]) -> dict[tuple[str, str], list[int]]:
    """Return the dimensions that are dark, or have long been proving themselves, of peers that answer on some
    other dimension; by node id and name."""
    dark: dict[tuple[str, str], list[int]] = {}
    answering = {view.node_id for view in paths if view.state == "up" and view.rtt_s is not None}
    for view in paths:
        if view.node_id in answering and (
            view.state == "dark" or (view.state == "proving" and view.since_s >= RENEWAL)
        ):
            dark.setdefault((view.node_id, view.peer), []).append(view.dimension)
    return dark


def _keyed(link: LinkView) -> str:
    return "has no keys agreed with this node" if link.state == "none" else f"is {link.state}"
