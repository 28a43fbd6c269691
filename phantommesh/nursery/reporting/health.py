# SPDX-License-Identifier: GPL-3.0-or-later
"""The faults of this node itself, for its status and /readyz. `management.peerfaults` has its peers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from time import time
from typing import assert_never

import trio

from phantommesh.agents import omniscient
from phantommesh.config import changes
from phantommesh.faults import OFTEN, WITHIN, Fault, FaultKind
from phantommesh.link.copies import COPIED, Suspicion, Why
from phantommesh.management.peerfaults import TRAFFIC_STOPPED
from phantommesh.moments import rfc3339, span
from phantommesh.node import clocks
from phantommesh.node.runs import COPY_RUNNING
from phantommesh.nursery.dataplane import paths, reconciler, scattering
from phantommesh.nursery.due import moment
from phantommesh.nursery.keeping import saver
from phantommesh.nursery.members import own, succession
from phantommesh.nursery.members.runs import FIX
from phantommesh.nursery.overlay import guarding, holding
from phantommesh.nursery.parts import Parts
from phantommesh.nursery.reporting import federation, findings, intentfaults, routing
from phantommesh.nursery.reporting.localcauses import LocalCauses, taken_ports
from phantommesh.overlay import guard, prefixes
from phantommesh.records import record, roster
from phantommesh.records.roster import name_of
from phantommesh.routing import constraints
from phantommesh.scatter import goals
from phantommesh.state.directory import JOIN_ANEW
from phantommesh.trust import revocation
from phantommesh.trust.certificates import DAY, EARLY
from phantommesh.trust.identity import NodeId, format_node_id

SETUP_CONTESTED = FaultKind("setup-contested", "high")

# Tuning.
TWICE = 2  # passes in a row that have to find the same before it is told
MESH_ENDS = 180 * DAY  # s before the root's end in which it is told
ALL_AWAY = 60.0  # s from the start in which others whose certificates ran out come back

# With any of these the node does not do its own work, so that it is not ready.
UNREADY = frozenset(
    kind.code
    for kind in (
        reconciler.INTERFACES_MISSING,
        TRAFFIC_STOPPED,
        guarding.UNGUARDED,
        revocation.REVOKED,
        own.DISPUTED,
        own.CERTIFICATE_EXPIRED,
        COPY_RUNNING,
    )
)


def health_of(faults: Iterable[Fault]) -> int:
    """What this node's record says of its health, given its faults. Only what is about the node itself
    counts: a member that is gone is a fault at each of the others, and all their records would change with
    it."""
    faults = list(faults)
    if any(one.code in UNREADY and one.code != TRAFFIC_STOPPED.code for one in faults):
        return record.UNREADY
    if any(one.code == findings.AGENT_FINDING.code and one.subject in omniscient.OWN for one in faults):
        return record.DEGRADED
    return record.SOUND


def own_faults(parts: Parts, local: LocalCauses, *, starting: bool = False) -> Iterator[Fault]:
    """Return what is wrong with the node itself, or with what it was told. ``starting``: that some interface
    is not there yet is no fault unless an attempt to make it has failed."""
    if parts.runs.aside.is_set():  # it does nothing, so nothing else can be wrong with what it does
        yield COPY_RUNNING.fault(
            "another run of this node started later, from a copy of its disk or a snapshot: this one has "
            "stepped aside, its interfaces are down and the overlay is closed here",
            FIX,
        )
        return
    yield from _interfaces(parts, local, starting=starting)
    yield from _contested(parts)
    yield from local.faults()
    for conflict in parts.overlay.plan.conflicts:
        yield prefixes.OVERLAY_CONFLICT.fault(
            f"{conflict}: what is sent to members still takes the overlay",
            "remove that address or route, or renumber the host's network",
        )
    if (problem := parts.overlay.problem) is not None:
        yield holding.OVERLAY_NOT_HELD.fault(
            f"the overlay's range is not held on this host: {problem}", problem.fix
        )
    yield from parts.guarding.faults()
    yield from parts.banning.faults()
    yield from parts.access.faults()
    yield from parts.policing.faults()
    for name in parts.config.guard.forward:
        if not Path("/sys/class/net", name).exists():
            yield guard.FORWARD_UNKNOWN.fault(
                f"guard.forward names {name}, and this host has no such interface",
                "see `ip link`",
                subject=name,
            )
    if (refused := parts.settings.refused) is not None:
        yield changes.NOT_RELOADED.fault(
            f"the configuration was not taken over, and the node goes on with the one that it had: {refused}",
            f"{refused.fix or 'correct the file'}; then reload again (SIGHUP)",
        )
    if waiting := parts.settings.waiting:
        yield changes.NEEDS_RESTART.fault(
            f"{', '.join(waiting)}: the configuration says something else than this node runs with",
            "restart the node, or take the change back and reload (SIGHUP)",
            subject=waiting[0],
        )
    for disk in (
        parts.keeper.disk,
        parts.keys.disk,
        parts.gossip.disk,
        parts.federating.disk,
        parts.decisions.disk,
        parts.audit.disk,
        parts.memory.disk,
        parts.banning.disk,
        parts.policing.disk,
    ):
        if (refusal := disk.problem) is not None:
            yield saver.NOT_WRITTEN.fault(
                f"what this node should remember is not on disk: {refusal}",
                refusal.fix or "free some space in the state directory, or make it writable again",
            )
            break
    if (problem := parts.paths.problem) is not None:
        yield paths.PATHS_UNMEASURED.fault(str(problem), problem.fix)
    if (problem := parts.scattering.problem) is not None:
        yield scattering.NOT_SCATTERED.fault(f"traffic takes dimension 0 alone: {problem}", problem.fix)
    if parts.succession.pending and (stuck := parts.succession.error) is not None:
        yield succession.IDENTITY_PENDING.fault(
            f"a new identity was asked for and is not there yet: {stuck}", stuck.fix
        )
    if (revoked := parts.keeper.revoked) is not None:
        yield revocation.REVOKED.fault(
            f"this node was revoked on {rfc3339(revoked.at)}",
            f"if that was a mistake, run `phantommesh revoke {parts.own.name()} --undo` where the mesh's "
            f"root key is; else {JOIN_ANEW}",
        )
        return
    yield from _holes(parts)
    yield from parts.framed.faults()
    yield from parts.beyond.faults()
    yield from parts.gateway.faults()
    yield from parts.talk.faults()
    yield from _claims(parts)
    yield from (copied(parts, suspicion) for suspicion in parts.copies.suspicions)
    if moot := len(parts.state.revocations.moot):
        yield revocation.MOOT.fault(
            f"a revoked authority revoked {moot} nodes that other members may take for revoked",
            "revoke those that should be, or cast that authority out with `phantommesh revoke NAME "
            "--undo-all` where the mesh's root key is",
        )
    yield from _shared(parts)
    yield from _equivocations(parts)
    yield from federation.faults(parts)
    yield from parts.places.faults()
    yield from parts.tcp.further.faults()
    yield from parts.wgports.faults()
    yield from parts.lending.faults()
    yield from parts.drainer.faults()
    yield from parts.borrower.faults()
    yield from parts.finding.faults()
    yield from routing.faults(parts)
    yield from _unknown_peers(parts)
    yield from _unknown_relays(parts)
    yield from intentfaults.faults(parts)
    yield from findings.faults(parts)
    yield from _certificate(parts)
    yield from _clock(parts)
    yield from _mesh_ends(parts)


def _holes(parts: Parts) -> Iterator[Fault]:
    """Name the paths on which larger packets vanish."""
    for hole in parts.paths.fitting.holes():
        if (entry := parts.peers.get(hole.peer)) is not None:
            yield hole.fault(entry.member.name)


def _mesh_ends(parts: Parts) -> Iterator[Fault]:
    """Say in time that the root's certificate, and all others with it, will run out."""
    end, now = parts.state.mesh.not_after, time()
    if now > end - MESH_ENDS:
        yield own.MESH_ENDS.fault(
            f"the mesh ends on {rfc3339(end)}: the root certificate runs out, and nothing renews a root",
            "begin a new mesh with `phantommesh init` before, and let the machines join it",
        )


def _interfaces(parts: Parts, local: LocalCauses, *, starting: bool) -> Iterator[Fault]:
    """Say which interfaces are missing, or not as they should be, and why."""
    missing = [name for name in parts.names if name not in parts.reconciler.actual]
    failed = {name: p.error for name, p in parts.reconciler.problems.items() if p.times >= TWICE}
    unread = failed.pop("", None)
    reasons = [failed[name] for name in missing if name in failed] + [error for error in (unread,) if error]
    if missing and (reasons or not starting):
        why = f": {reasons[0]}" if reasons else ""
        yield reconciler.INTERFACES_MISSING.fault(
            f"interfaces {', '.join(missing)} are missing{why}",
            (reasons[0].fix if reasons else "")
            or "see the node's log for what its WireGuard says; the node tries on by itself",
            subject=missing[0],
        )
    elif unread is not None:
        yield reconciler.INTERFACES_MISSING.fault(f"the interfaces cannot be read: {unread}", unread.fix)
    wrong = {name: error for name, error in failed.items() if name in parts.reconciler.actual}
    kind = reconciler.INTERFACE_NOT_SET_UP if len(wrong) < len(parts.names) else reconciler.INTERFACES_MISSING
    for name, port in taken_ports(parts):
        if wrong.pop(name, None) is not None:
            by = f" by {program}" if (program := local.program(port)) else ""
            yield kind.fault(
                f"nothing can flow by {name}: its UDP port {port} is taken{by}",
                "stop that program, or set wireguard.base_port in the config to the first of "
                f"{len(parts.config.wireguard.ports)} free ports and restart the node",
                subject=name,
            )
    for error in {str(error): error for error in wrong.values()}.values():
        names = [name for name, other in wrong.items() if str(other) == str(error)]
        yield kind.fault(f"nothing can flow by {', '.join(names)}: {error}", error.fix, subject=names[0])


def _contested(parts: Parts) -> Iterator[Fault]:
    now = trio.current_time()
    for part in (
        parts.reconciler,
        parts.scattering,
        parts.guarding,
        parts.banning,
        parts.access,
        parts.overlay,
        parts.cover,
    ):
        for what in part.contest.lasting(now):
            yield SETUP_CONTESTED.fault(
                f"somebody else changes {what} again and again: it was put right {OFTEN} times within "
                f"{WITHIN:g} s, and traffic is lost meanwhile",
                "find the program that does it (`ip monitor`, `nft monitor`), and stop it or have it leave "
                "the node's interfaces and tables alone",
                subject=what,
            )


def _claims(parts: Parts) -> Iterator[Fault]:
    if (dispute := parts.own.dispute()) is not None:
        winner = parts.keeper.roster.get(dispute.winner)
        whose = "another member" if winner is None else winner.member.name
        yield own.DISPUTED.fault(
            f"this node's {dispute.over} is {whose}'s too: waiting for an authority to give it another",
            "see that an authority runs and that this node is linked with it",
        )


def _equivocations(parts: Parts) -> Iterator[Fault]:
    for node_id in parts.keeper.roster.equivocations:
        if (entry := parts.keeper.roster.get(node_id)) is not None:
            yield roster.EQUIVOCATION.fault(
                f"{entry.member.name} signed two different records with one number: it was copied, or it "
                "lies",
                "find out which, and revoke it if in doubt",
                subject=entry.member.name,
            )


def _unknown_peers(parts: Parts) -> Iterator[Fault]:
    if not parts.config.scatter.peers:
        return
    names = {parts.own.member.name, *(entry.member.name for entry in parts.keeper.roster)}
    for name in sorted(parts.config.scatter.peers.keys() - names):
        yield goals.UNKNOWN_PEER.fault(
            f"scatter.peers names {name}, who is no member", "correct the name, or let it join", subject=name
        )


def _unknown_relays(parts: Parts) -> Iterator[Fault]:
    """Name the members of `[relay]` and `[[intent]]` that are none: what is mistyped where they forbid is
    forbidden to nobody."""
    known = [
        name
        for member in (parts.own.member, *(entry.member for entry in parts.keeper.roster))
        for name in (member.name, format_node_id(member.node_id))
    ]
    for key, names in constraints.unknown_members(parts.config.relay, parts.config.intent, known).items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
        then = "restart the node" if key.startswith("relay.") else "send the node SIGHUP"
        yield constraints.UNKNOWN_MEMBER.fault(
            f"{key} names {shown}: no members",
            f"correct the names and {then}, or let them join",
            subject=key,
        )


def _certificate(parts: Parts) -> Iterator[Fault]:
    member, now, error = parts.own.member, time(), parts.own.renewal_error
    if not parts.own.word.certified_at(now):
        over = f"begins on {rfc3339(member.not_before)}"
        over = over if member.not_before > now else f"ran out on {rfc3339(member.not_after)}"
        tried = "" if error is None else f"; {error}"
        yield own.CERTIFICATE_EXPIRED.fault(
            f"this node's certificate {over}: by this machine's clock it is {rfc3339(now)}{tried}",
            (error.fix if error is not None else "")
            or "set the clock if it is wrong; else wait until an authority takes this node back",
        )
    elif error is not None:
        left = f", and it runs out on {rfc3339(member.not_after)}"
        yield own.CERTIFICATE_NOT_RENEWED.fault(
            f"the certificate could not be renewed{left}: {error}", error.fix
        )


def _clock(parts: Parts) -> Iterator[Fault]:
    at = moment()
    others = [entry for entry in parts.keeper.roster if entry.member.node_id != parts.own.member.node_id]
    fix = "set this machine's clock, and let it be kept right (NTP); the node heals by itself then"
    if (wrong := parts.gossip.news.clocks.wrong(at)) is not None:
        way = "ahead" if wrong.ahead > 0 else "behind"
        yield clocks.CLOCK_WRONG.fault(
            f"this machine's clock is {span(abs(wrong.ahead))} {way}: {wrong.agree} of {wrong.heard} members "
            "say so",
            fix,
        )
    elif others and all(entry.member.not_before - EARLY > at.wall for entry in others):
        yield clocks.CLOCK_WRONG.fault(
            f"this machine's clock is behind: by it, it is {rfc3339(at.wall)}, and the certificate of no "
            "other member has begun",
            fix,
        )
    elif (
        others
        and at.now - parts.started > ALL_AWAY
        and parts.own.word.certified_at(at.wall)
        and all(entry.member.not_after < at.wall for entry in others)
    ):
        yield clocks.CLOCK_WRONG.fault(
            f"by this machine's clock it is {rfc3339(at.wall)}, and the certificate of every other member "
            "has run out: either this clock is ahead, or they are all away",
            fix,
        )


def copied(parts: Parts, suspicion: Suspicion) -> Fault:
    """Say what a suspicion means, and what to do about it."""
    if suspicion.node is None and suspicion.why is Why.TWO_RUNS:
        return COPIED.fault(
            "a second copy of this node ran at the same time, from a copied disk or a snapshot: the copy "
            "that started first has stepped aside",
            "find that machine and remove the copy; if you made none, run `phantommesh identity new` here, "
            "which revokes the old identity",
        )
    if suspicion.node is None:
        others = parts.peers.entries
        whose = f", or that of {others[0].member.name}," if len(others) == 1 else ""
        return COPIED.fault(
            f"{suspicion.accusers} of {len(others)} peers no longer know this node's keys, though they did "
            f"not restart: this node's identity key{whose} may be in use elsewhere",
            "run `phantommesh identity new` here, which revokes the old identity",
        )
    name = name_of(parts.keeper.roster.get(NodeId(suspicion.node)), suspicion.node)
    match suspicion.why:
        case Why.STRANGE_KEY:
            return COPIED.fault(
                f"{name} has keys that were made in this node's name, but not by this node: {name} is at "
                "fault, or this node's identity key is in use elsewhere",
                "if other peers say so too, run `phantommesh identity new` here",
                subject=name,
            )
        case Why.TWO_RUNS:
            what = (
                "ran twice at one time, from a copied disk or a snapshot; the first of the two stepped aside:"
            )
        case Why.CAME_BACK:
            what = "came back with keys that a later handshake in its name had replaced:"
        case Why.TURNS:
            what = "began anew again and again within minutes: if it does not crash,"
        case Why.NO_START | Why.SELF:
            what = "came back without its keys although it did not restart:"
        case _:
            assert_never(suspicion.why)
    return COPIED.fault(
        f"{name} {what} its identity key may be in use elsewhere",
        "run `phantommesh identity new` on that machine (where a thief has done so first: `phantommesh "
        f"revoke {name}` on an authority, and let the machine join anew)",
        subject=name,
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
            yield record.ADDRESS_SHARED.fault(
                f"{winner.member.name} and {loser.member.name} both have the address {winner.member.ip4}: "
                f"{loser.member.name} is left out until an authority gives it another",
                f"see that an authority runs and that {loser.member.name} is linked with it",
                subject=loser.member.name,
            )
    for (winning, losing), dimensions in shared.items():
        first, second = (e.member.name for e in map(roster.get, (winning, losing)) if e is not None)
        each = ", ".join(map(str, sorted(dimensions)))
        yield record.KEYS_SHARED.fault(
            f"{first} and {second} both hold the private key of dimension {each}: {second} claimed it later "
            "and is left out there; both replace it by themselves",
            "if this comes back, one of the two machines reads the other's keys: revoke "
            f"{second}, and find out how it came by them",
            subject=second,
        )
