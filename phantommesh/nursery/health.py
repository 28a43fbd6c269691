# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of a node, each with what to do about it: `degraded` of its status, and /readyz."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import assert_never

from phantommesh.dimensions import DIMENSIONS
from phantommesh.identity import NodeId, format_node_id
from phantommesh.link.copies import Suspicion, Why
from phantommesh.moments import rfc3339
from phantommesh.nursery.parts import Parts
from phantommesh.views import LinkView, MemberState, PathView

# Tuning.
MAX_PARTLY = 8  # partly reachable peers named in `status`
RENEWAL = 15.0  # s that a dimension may have no keys, or prove itself, before it is called a fault


@dataclass(frozen=True, slots=True)
class Fault:
    """``bearable``: the node does its own work all the same, so that it is ready."""

    text: str
    bearable: bool = True


def own_faults(parts: Parts) -> Iterator[Fault]:
    """Return what is wrong with the node itself, or with what it was told."""
    if missing := [name for name in parts.names if name not in parts.reconciler.actual]:
        yield Fault(
            f"interfaces {', '.join(missing)} are missing: see the log for why they cannot be made",
            bearable=False,
        )
    for conflict in parts.overlay.plan.conflicts:
        yield Fault(
            f"{conflict}: what is sent to members still takes the overlay; remove that address or route, or "
            "renumber the host's network"
        )
    if (problem := parts.overlay.problem) is not None:
        fix = f"; {problem.fix}" if problem.fix else ""
        yield Fault(f"the overlay's range is not held on this host: {problem}{fix}")
    if (problem := parts.guarding.problem) is not None:
        yield Fault(f"the overlay is open to neighbours: {problem}; {problem.fix}", bearable=False)
    for name in parts.config.guard.forward:
        if not Path("/sys/class/net", name).exists():
            yield Fault(f"guard.forward names {name}, and this host has no such interface: see `ip link`")
    if (problem := parts.paths.problem) is not None:
        yield Fault(f"{problem}; {problem.fix}")
    if (problem := parts.scattering.problem) is not None:
        fix = f"; {problem.fix}" if problem.fix else ""
        yield Fault(f"traffic takes dimension 0 alone: {problem}{fix}")
    if parts.succession.pending and (stuck := parts.succession.error) is not None:
        yield Fault(f"a new identity was asked for and is not there yet: {stuck}; {stuck.fix}")
    if (revoked := parts.keeper.revoked) is not None:
        yield Fault(
            f"this node was revoked on {rfc3339(revoked.at)}: to come back, move its state directory "
            "away and join again with a new invite",
            bearable=False,
        )
        return
    roster = parts.keeper.roster
    if (dispute := parts.own.dispute()) is not None:
        winner = roster.get(dispute.winner)
        whose = "another member" if winner is None else winner.member.name
        yield Fault(
            f"this node's {dispute.over} is {whose}'s too: waiting for an authority to give it another",
            bearable=False,
        )
    for suspicion in parts.copies.suspicions:
        yield Fault(copied(parts, suspicion))
    if moot := len(parts.state.revocations.moot):
        yield Fault(
            f"a revoked authority revoked {moot} nodes that other members may take for revoked: revoke "
            "those that should be, or cast that authority out with `phantommesh revoke NAME --undo-all` "
            "where the mesh's root key is"
        )
    yield from _shared(parts)
    for node_id in roster.equivocations:
        if (entry := roster.get(node_id)) is not None:
            yield Fault(
                f"{entry.member.name} signed two different records with one number: it was copied, or it "
                "lies; find out which, and revoke it if in doubt"
            )
    yield from map(Fault, parts.places.faults())
    if parts.config.scatter.peers:
        names = {parts.own.member.name, *(entry.member.name for entry in roster)}
        for name in sorted(parts.config.scatter.peers.keys() - names):
            yield Fault(f"scatter.peers names {name}, who is no member: correct the name, or let it join")
    if parts.own.member.not_after <= time():
        yield Fault(
            "this node's certificate has expired: it must join again with a new invite", bearable=False
        )
    elif parts.own.renewal_error is not None:
        error = parts.own.renewal_error
        yield Fault(f"the certificate could not be renewed: {error}; {error.fix}")


def copied(parts: Parts, suspicion: Suspicion) -> str:
    """Say what a suspicion means, and what to do about it."""
    if suspicion.node is None:
        others = parts.peers.entries
        whose = f", or that of {others[0].member.name}," if len(others) == 1 else ""
        return (
            f"{suspicion.accusers} of {len(others)} peers no longer know this node's keys, though they did "
            f"not restart: this node's identity key{whose} may be in use elsewhere; run "
            "`phantommesh identity new` here, which revokes the old identity"
        )
    entry = parts.keeper.roster.get(NodeId(suspicion.node))
    name = format_node_id(NodeId(suspicion.node)) if entry is None else entry.member.name
    match suspicion.why:
        case Why.STRANGE_KEY:
            return (
                f"{name} has keys that were made in this node's name, but not by this node: {name} is at "
                "fault, or this node's identity key is in use elsewhere; if other peers say so too, run "
                "`phantommesh identity new` here"
            )
        case Why.CAME_BACK:
            what = "came back with keys that a later handshake in its name had replaced:"
        case Why.TURNS:
            what = "began anew again and again within minutes: if it does not crash,"
        case Why.NO_START | Why.SELF:
            what = "came back without its keys although it did not restart:"
        case _:
            assert_never(suspicion.why)
    return (
        f"{name} {what} its identity key may be in use elsewhere; run `phantommesh identity new` on that "
        f"machine (where a thief has done so first: `phantommesh revoke {name}` on an authority, and let the "
        "machine join anew)"
    )


def _shared(parts: Parts) -> Iterator[Fault]:
    """Say what two members both have, and which of the two is left out meanwhile."""
    roster, me = parts.keeper.roster, parts.own.member.node_id
    shared: dict[tuple[NodeId, NodeId], list[int]] = {}
    for dispute in roster.disputes(time()):
        loser, winner = roster.get(dispute.loser), roster.get(dispute.winner)
        if loser is None or winner is None:
            continue
        if dispute.key:
            dimensions = shared.setdefault((dispute.winner, dispute.loser), [])
            dimensions.append(loser.record.wg_keys.index(dispute.key))
        elif dispute.over == "address" and dispute.loser != me:
            yield Fault(
                f"{winner.member.name} and {loser.member.name} both have the address {winner.member.ip4}: "
                f"{loser.member.name} is left out until an authority gives it another"
            )
    for (winning, losing), dimensions in shared.items():
        first, second = (e.member.name for e in map(roster.get, (winning, losing)) if e is not None)
        each = ", ".join(map(str, sorted(dimensions)))
        yield Fault(
            f"{first} and {second} both hold the private key of dimension {each}: {second} claimed it later "
            "and is left out there; both replace it by themselves. If this comes back, one of the two "
            f"machines reads the other's keys: revoke {second}, and find out how it came by them"
        )


def peer_faults(
    standing: Mapping[str, MemberState],
    links: Sequence[LinkView],
    paths: Sequence[PathView],
    control_port: int,
) -> Iterator[Fault]:
    """Return what is wrong between the node and its peers; ``standing`` is what gossip says of each, by
    name."""
    renewed = Counter(v.peer for v in paths if v.state in ("closed", "proving") and v.since_s < RENEWAL)
    for link in links:
        gone = standing.get(link.peer)
        if gone in ("suspect", "dead"):
            yield Fault(
                f"peer {link.peer} is {gone}: its node does not answer; check that it runs and that its "
                f"control port {control_port} is reachable by UDP from here"
            )
        elif link.state == "fresh" and 0 < DIMENSIONS - link.dimensions <= renewed[link.peer] < DIMENSIONS:
            continue  # a key is being replaced, here or there
        elif gone != "left" and not is_up(link):
            why = f": {link.last_error}" if link.last_error else ""
            yield Fault(
                f"peer {link.peer} is {link.state} and answers on {link.dimensions} of {DIMENSIONS} "
                f"dimensions{why}; check that it runs and that its UDP ports are reachable from here"
            )
    for name, dark in _dark(paths).items():
        yield Fault(
            f"dark: {', '.join(map(str, dark))} of the dimensions of peer {name}: probes get no answer, "
            "its traffic takes the others; check the uplink, and the UDP ports at both ends"
        )


def partly_reachable(through: Mapping[str, Sequence[str]], control_port: int) -> Iterator[Fault]:
    """Say that gossip reaches a member only by way of others; ``through`` are those, by name."""
    for name in sorted(through)[:MAX_PARTLY]:
        yield Fault(
            f"peer {name} is partly reachable: its node answers by way of {', '.join(through[name])}, not "
            f"from here, and nobody carries traffic; check that its control port {control_port} and its "
            "WireGuard ports are reachable by UDP from here, and ours from there"
        )
    if len(through) > MAX_PARTLY:
        yield Fault(
            f"and {len(through) - MAX_PARTLY} more peers are partly reachable: see `phantommesh peers`"
        )


def is_up(link: LinkView) -> bool:
    """Whether a peer answers on every dimension, by keys that both ends agreed on."""
    return link.state == "fresh" and link.dimensions == DIMENSIONS


def _dark(paths: Sequence[PathView]) -> dict[str, list[int]]:
    """The dark dimensions of peers that answer on some other, and those that prove themselves for long."""
    dark: dict[str, list[int]] = {}
    answering = {view.peer for view in paths if view.state == "up" and view.rtt_s is not None}
    for view in paths:
        if view.peer in answering and (
            view.state == "dark" or (view.state == "proving" and view.since_s >= RENEWAL)
        ):
            dark.setdefault(view.peer, []).append(view.dimension)
    return dark
