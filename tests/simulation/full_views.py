# SPDX-License-Identifier: GPL-3.0-or-later
"""Statements about a whole mesh of `full_sim`: whether there is one view, which links are keyed, which nodes
have which record, and whether a revoked node is shut out."""

from __future__ import annotations

import itertools

from phantommesh.link.psk import PskPhase
from phantommesh.membership.messages import State
from phantommesh.trust.identity import NodeId
from tests.simulation.full_node import Process
from tests.simulation.full_sim import Simulation


def members(sim: Simulation) -> list[Process]:
    """The running processes of nodes that are not revoked by anybody's word."""
    processes = sim.running()
    revoked = {node_id for p in processes for node_id in p.revocations.nodes}
    return [p for p in processes if p.me not in revoked]


def disagreement(sim: Simulation) -> str:
    """The reason why the members that run do not have one view: of who is alive and in which incarnation, of
    records, revocations and group keys. Empty where they do."""
    processes = members(sim)
    alive = {p.me: (p.membership.generation, p.membership.incarnation) for p in processes}
    first = processes[0]
    for process in processes:
        if sim.large and process is not first:
            # Equal digests are equal tables; to look at each of a million views takes too long.
            if process.membership.unsure or _table(process) != _table(first):
                return f"{process.machine.name} and {first.machine.name} have other members"
        elif wrong := _wrong(process, alive):
            return wrong
        for what, mine, theirs in (
            ("records", process.roster.digest(), first.roster.digest()),
            ("revocations", process.revocations.digest(), first.revocations.digest()),
            ("newest keys", process.ring.newest, first.ring.newest),
            ("keys to send with", process.ring.active, first.ring.active),
        ):
            if mine != theirs:
                return f"{process.machine.name} and {first.machine.name} have other {what}"
    return ""


def _table(process: Process) -> list[int]:
    return process.membership._core.table.hashes()


def _wrong(process: Process, alive: dict[NodeId, tuple[int, int]]) -> str:
    """The mistake of one member about which nodes are alive, and in which incarnation; empty where there is
    none."""
    by_id, seen = process.sim.by_id, {}
    for node in process.membership:
        view = process.membership.member(node)
        if view is not None and view.state is State.SUSPECT:
            return f"{process.machine.name} suspects {by_id[NodeId(node)].name}"
        if view is not None and view.state is State.ALIVE:
            seen[NodeId(node)] = view.generation, view.incarnation
    wrong = [node for node in seen.keys() | alive.keys() if seen.get(node) != alive.get(node)]
    names = sorted(by_id[node].name for node in wrong)
    return f"{process.machine.name} is wrong about {names}" if names else ""


def agreed(sim: Simulation) -> bool:
    """Whether all members that run have one view."""
    return not disagreement(sim)


def unkeyed(sim: Simulation) -> list[str]:
    """The links between members that are not fresh with the same PSKs in both ends' interfaces."""
    bad = []
    for a, b in itertools.combinations(members(sim), 2):
        mine, theirs = a.machine.kernel.psks.get(b.me), b.machine.kernel.psks.get(a.me)
        same = mine is not None and mine == theirs and bytes(32) not in mine
        if not (same and _fresh(a, b) and _fresh(b, a)):
            bad.append(f"{a.machine.name}-{b.machine.name}")
    return bad


def _fresh(a: Process, b: Process) -> bool:
    """Whether a's end of a link is fresh, and its interfaces have that link's PSKs."""
    if b.me not in a.links._peers or a.links.state(b.me, a.now).phase is not PskPhase.FRESH:
        return False
    return a.machine.kernel.psks.get(b.me) == tuple(psk.reveal() for psk in a.links.psks(b.me))


def settled(sim: Simulation) -> bool:
    """Whether there is one view, and every link is keyed."""
    return agreed(sim) and not unkeyed(sim)


def still_in(sim: Simulation, index: int) -> str:
    """The reason why a revoked node is not yet shut out by all other members; empty where it is shut out."""
    gone = sim.machines[index].identity.node_id
    outsider = sim.machines[index].process
    for process in members(sim):
        name, active = process.machine.name, process.ring.active
        if gone not in process.revocations:
            return f"{name} has not heard of it"
        if process.roster.get(gone) is not None or process.membership.member(gone) is not None:
            return f"{name} holds it for a member"
        if gone in process.links._peers or gone in process.machine.kernel.psks:
            return f"{name} has a link with it"
        if process.sessions.newest(gone) is not None:
            return f"{name} has a session with it"
        if active is None or active.revoked != process.revocations.digest():
            return f"{name} sends with a key from before"
        if outsider is not None and outsider.ring.get(active.id) is not None:
            return f"it has the key that {name} sends with"
    return ""


def lacking(sim: Simulation, index: int) -> int:
    """How many members do not hold this node's newest record."""
    node_id = sim.machines[index].identity.node_id
    ranks = [None if (e := p.roster.get(node_id)) is None else e.rank for p in members(sim)]
    newest = max(rank for rank in ranks if rank is not None)
    return sum(rank != newest for rank in ranks)


def spread(sim: Simulation, index: int) -> bool:
    """Whether every member holds this node's newest record."""
    return not lacking(sim, index)
