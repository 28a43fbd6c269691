# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of a node's classes of traffic (`[[intent]]`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

from phantommesh.faults import Fault
from phantommesh.nursery.dataplane.borrowing import NO_WAY_ALLOWED
from phantommesh.nursery.dataplane.cgroups import CGROUPS_UNSEEN, UNKNOWN_CGROUP
from phantommesh.nursery.parts import Parts
from phantommesh.scatter import intents
from phantommesh.trust.identity import NodeId

# Tuning.
NAMED: Final = 3  # members that a fault names


def faults(parts: Parts) -> Iterator[Fault]:
    """Return what is wrong, at most one of each kind for an intent."""
    if not (found := parts.settings.intents):
        return
    names = (parts.own.member.name, *(entry.member.name for entry in parts.keeper.roster))
    for name, peers in found.unknown_peers(names).items():
        yield intents.UNKNOWN_PEER.fault(
            f"the intent {name} names {_named(peers)}: no members",
            "correct the names, or let them join",
            subject=name,
        )
    for name, user in found.unknown_users.items():
        yield intents.UNKNOWN_USER.fault(
            f"the intent {name} is for the user {user}, whom this machine does not have: it matches nothing",
            "correct the name or make the user, and send the node SIGHUP",
            subject=name,
        )
    if (problem := parts.cgroups.problem) is not None:
        yield CGROUPS_UNSEEN.fault(f"intents by cgroup match nothing: {problem}", problem.fix)
    for intent in parts.config.intent:
        if intent.cgroup in parts.cgroups.missing:
            yield UNKNOWN_CGROUP.fault(
                f"the intent {intent.name} is for the cgroup {intent.cgroup}, which is not there: it matches "
                "nothing until that is made",
                "start what runs in it, or correct the path (see `systemd-cgls`) and send the node SIGHUP",
                subject=intent.name,
            )
    yield from _closed(parts)


def _closed(parts: Parts) -> Iterator[Fault]:
    for name, closed in parts.scattering.closed().items():
        peers = [entry for peer in closed if (entry := parts.peers.get(peer)) is not None]
        if not peers:
            continue
        keys = {
            key
            for entry in peers
            for key in parts.peers.class_limits.keys(name, parts.peers.hands(NodeId(entry.member.node_id)))
        }
        by, to = " and ".join(sorted(keys)), _named([entry.member.name for entry in peers])
        yield NO_WAY_ALLOWED.fault(
            f"nothing of the intent {name} is sent to {to}: {by} allows no way that carries traffic now",
            f"see `phantommesh route explain {peers[0].member.name}`; make a way that {by} allows, or change "
            "that and send the node SIGHUP",
            subject=name,
        )


def _named(names: Collection[str]) -> str:
    shown, more = ", ".join(sorted(names)[:NAMED]), len(names) - NAMED
    return f"{shown} and {more} more" if more > 0 else shown
