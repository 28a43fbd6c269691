# SPDX-License-Identifier: GPL-3.0-or-later
"""Which way traffic to one destination goes, and why: `routing/leading.py` and `routing/explain.py` on what
this node has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from math import isinf
from typing import Final

import trio
from msgspec import structs

from phantommesh.config.intents import REST
from phantommesh.config.sections import Goal, IntentSection
from phantommesh.dimensions import ALL, DIMENSIONS, has
from phantommesh.errors import shortened
from phantommesh.management.explainview import (
    ExplainedChoice,
    ExplainedClass,
    ExplainedRelay,
    ExplainedRouter,
    ExplainedWay,
    Explanation,
    Refused,
)
from phantommesh.management.finding import MAX_SHOWN, UnknownMemberError, look
from phantommesh.management.views import PathView
from phantommesh.node import routes
from phantommesh.nursery.parts import Parts
from phantommesh.nursery.reporting.rows import Rows
from phantommesh.paths.quickest import Candidate, Quickest
from phantommesh.paths.state import PathState
from phantommesh.records.roster import Entry, name_of
from phantommesh.routable import parse_prefix
from phantommesh.routing import explain as words
from phantommesh.routing.constraints import intent_key
from phantommesh.routing.failover import Standing
from phantommesh.routing.leading import Address, Prefixes, lead, read_address
from phantommesh.routing.legs import Choosable
from phantommesh.routing.prefixes import Offer
from phantommesh.routing.ways import Kind
from phantommesh.scatter.goals import SCHEDULES, Schedule, goal_of, schedule_of
from phantommesh.trust.identity import NodeId, format_node_id

# Tuning.
MOST_REFUSED: Final = 16  # members that constraints refuse, by name

_KINDS: Final = {"direct": Kind.DIRECT, "relayed": Kind.RELAYED, "tcp": Kind.FRAMED, "none": None}


def explain(parts: Parts, rows: Rows, dest: str) -> Explanation:
    """Say which way traffic to a member (by name, node id or overlay address) or to any other address goes.
    Raises AmbiguousNameError, and UnknownMemberError where it is none of these."""
    own = parts.own.member
    called = {entry.called: entry for entry in parts.peers.entries}
    me = (own.name, format_node_id(own.node_id))
    found = look([*called, me], dest, lambda one: one)
    address = read_address(dest)
    if found is None and address is not None:
        return _address(parts, rows, dest, address)
    if found is None:
        raise _unknown(dest, (name for name, _ in (*called, me)))
    return _own(parts, dest) if found == me else _member(parts, rows, dest, called[found])


def _unknown(dest: str, names: Iterable[str]) -> UnknownMemberError:
    shown = shortened(dest, MAX_SHOWN)
    try:
        parse_prefix(dest)
    except ValueError:
        near = words.names_near(dest, names)
        offered = f"did you mean {' or '.join(near)}? " if near else ""
        return UnknownMemberError(
            f"{shown!r} is no member's name or node id, and no address",
            fix=f"{offered}`phantommesh peers` shows the members; or give an IPv4 or IPv6 address",
        )
    return UnknownMemberError(
        f"{shown!r} is a network, and traffic goes to one address",
        fix="give an address in it; `phantommesh route list` shows the networks beyond the mesh",
    )


def _own(parts: Parts, dest: str) -> Explanation:
    own = parts.own.member
    return Explanation(
        dest=dest,
        leads="self",
        answer=f"this is {own.name}, this node itself: what is sent to it leaves by no dimension",
        peer=own.name,
        node_id=format_node_id(own.node_id),
        address=str(own.ip4),
    )


def _address(parts: Parts, rows: Rows, dest: str, address: Address) -> Explanation:
    own = parts.own.member
    if address in (own.ip4, own.ip6):
        return _own(parts, dest)
    for entry in parts.peers.entries:
        if address in (entry.member.ip4, entry.member.ip6):
            return _member(parts, rows, dest, entry, address)
    found, now = lead(address, _prefixes(parts)), trio.current_time()
    names = {one: _name(parts, one) for one in (*found.routers, found.carrier)}
    standing = () if found.prefix is None else parts.failover.standing(found.prefix, now)
    names |= {one.router: _name(parts, one.router) for one in standing}
    answer, changes = words.answer(found, names), list(words.lead_changes(found, names))
    if standing and found.leads in ("carried", "refused"):
        changes += words.router_changes(standing, names, now)
    carrier = parts.keeper.roster.get(NodeId(found.carrier)) if found.carrier else None
    if carrier is None:
        to = Explanation(dest=dest, leads=found.leads, answer=answer, address=str(address))
    else:
        to = _member(parts, rows, dest, carrier, address)
        answer = f"{answer}; {to.answer}"
    return structs.replace(
        to,
        leads=found.leads,
        answer=answer,
        prefix=None if found.prefix is None else str(found.prefix),
        routers=[_router(one, names[one.router], now) for one in standing],
        would_change=[*changes, *to.would_change],
    )


def _router(one: Standing, name: str, now: float) -> ExplainedRouter:
    return ExplainedRouter(
        name=name,
        node_id=format_node_id(NodeId(one.router)),
        answers=one.lives,
        works=one.works,
        carries=one.carries,
        back_in_s=None if isinf(one.back_at) else round(max(0.0, one.back_at - now), 1),
    )


def _name(parts: Parts, node_id: bytes) -> str:
    return name_of(parts.keeper.roster.get(NodeId(node_id)), node_id) if node_id else ""


def _prefixes(parts: Parts) -> Prefixes:
    seen, revoked = parts.taking.routes, parts.state.revocations
    asked = parts.desk.desk.granting.open_requests(trio.current_time())
    offering = [entry for entry in parts.peers.entries if entry.record.routes]
    return Prefixes(
        (parts.state.mesh.network4, parts.state.mesh.network6),
        seen.own,
        seen.taken,
        seen.conflicts,
        parts.taking.carried(),
        parts.beyond.plan,
        [Offer(prefix, e.member.node_id) for e in offering for prefix in routes.offered(e, revoked)],
        [Offer(prefix, one.node_id) for one in asked for prefix in one.prefixes],
        [Offer(parse_prefix(one.prefix), one.node_id) for e in offering for one in routes.claims(e)],
        routes.sites(parts.config.routes),
    )


def _member(parts: Parts, rows: Rows, dest: str, entry: Entry, address: Address | None = None) -> Explanation:
    node_id, now, section = entry.member.node_id, trio.current_time(), parts.config.relay
    paths, found = rows.paths_to(entry), parts.paths.paths.quickest(node_id)
    scores = parts.paths.paths.scores(node_id)
    classes = _classes(parts, rows, entry, found, scores)
    if not (mapped := any(one.shares for one in classes)):
        found = None  # the quickest dimension is looked for, and nothing goes by it
    refused = list(
        words.refusals(
            section,
            (
                (other.member.name, other.record.region, format_node_id(other.member.node_id))
                for other in parts.peers.entries
                if other.member.node_id != node_id
            ),
        )
    )
    search, again_at = parts.punching.state(node_id), parts.punching.again_at(node_id)
    states = [PathState(one.state) for one in paths]
    kinds = [_KINDS[one.way] for one in paths if one.state != "closed"]
    return Explanation(
        dest=dest,
        leads="member",
        answer=words.member_answer([(one.way, one.via) for one in paths]),
        peer=entry.member.name,
        node_id=format_node_id(node_id),
        address=str(entry.member.ip4 if address is None else address),
        classes=classes,
        quickest=None
        if found is None
        else ExplainedChoice(
            dimension=found.chosen,
            reason=words.reason_of(found),
            since_s=None if found.chosen is None else round(now - found.since, 1),
            changes=found.changes,
        ),
        ways=[_way(one, found) for one in paths],
        relays=[_relay(parts, one) for one in parts.borrower.machine.offered_for(node_id, now)],
        constraints=words.constraint_lines(section),
        refused=[Refused(name=name, key=key) for name, key in sorted(refused)[:MOST_REFUSED]],
        refused_total=len(refused),
        would_change=list(
            chain(
                words.scatter_changes(entry.member.name, parts.scattering.settings.hook, mapped=mapped),
                words.quickest_changes(found, scores, now) if found is not None else (),
                [words.share_changes()] if mapped and any(c.dimension is None for c in classes) else (),
                words.state_changes(states, [one.weight for one in paths]),
                words.way_changes(kinds, search, again_at, now),
            )
        ),
    )


def _way(one: PathView, found: Quickest | None) -> ExplainedWay:
    cost = Candidate(one.weight > 0.0, one.rtt_s, one.jitter_s, one.loss).cost
    smoothed = None if found is None else found.costs.get(one.dimension)
    return ExplainedWay(
        dimension=one.dimension,
        interface=one.interface,
        state=one.state,
        way=one.way,
        via=one.via,
        endpoint=one.endpoint,
        rtt_s=one.rtt_s,
        jitter_s=one.jitter_s,
        loss=one.loss,
        weight=one.weight,
        cost_s=None if cost is None else round(cost, 6),
        smoothed_s=None if smoothed is None else round(smoothed, 6),
        why=one.why,
    )


def _relay(parts: Parts, one: Choosable) -> ExplainedRelay:
    return ExplainedRelay(
        name=_name(parts, one.offer.relay),
        node_id=format_node_id(one.offer.relay),
        near_s=round(one.offer.near, 6),
        far_s=round(one.offer.far, 6),
        cost_s=round(one.offer.cost, 6),
        dimensions=list(one.dimensions),
        aside_s=round(one.aside, 1),
    )


def _classes(
    parts: Parts, rows: Rows, entry: Entry, found: Quickest | None, scores: tuple[float, ...]
) -> list[ExplainedClass]:
    """The classes of the traffic to a member in order, the rest last."""
    name, settings = entry.member.name, parts.config.scatter
    view = rows.scatter_to(entry)
    shares = {} if view is None else {part.name: part.weights for part in view.classes}
    if view is not None and not view.classes:
        shares = {REST: [one.weight for one in view.dimensions]}
    off = parts.scattering.settings.hook == "off"
    undealt, alone = (words.UNHOOKED, 0) if off else (words.UNMAPPED, None)
    wanted = {intent.name: intent for intent in parts.config.intent}
    classes = parts.settings.intents.classes(name)
    limits = parts.peers.class_limits.limits(classes, parts.peers.hands(entry.member.node_id))
    closed = set[str]() if view is None else {part.name for part in view.classes if part.closed}
    key = f"scatter.peers.{name}" if name in settings.peers else "scatter.goal"
    about_rest = "all other traffic" if classes else "all traffic"

    def explained(
        called: str, about: str, goal: Goal, by: str, schedule: Schedule, scores: Sequence[float]
    ) -> ExplainedClass:
        dimension = words.dimension_of(schedule, found, scores) if shares else alone
        dealt = words.CLOSED if called in closed else words.dealt(schedule, dimension)
        return ExplainedClass(
            name=called,
            matches=about,
            goal=goal,
            key=by,
            scheduler=schedule.scheduler,
            dimension=dimension,
            shares=shares.get(called, []),
            choice=dealt if shares else undealt,
            closed=called in closed,
        )

    listed = [
        _constrained(
            parts,
            entry,
            explained(
                one.name, words.about(wanted[one.name]), one.goal, f"intent {one.name}", SCHEDULES[one.goal],
                limits.limit(scores, place, one.hands),
            ),
            wanted[one.name],
            limits.allowed[place] if limits.allowed else ALL,
        )
        for place, one in enumerate(classes)
    ]  # fmt: skip
    rest = explained(REST, about_rest, goal_of(name, settings), key, schedule_of(name, settings), scores)
    return [*listed, rest]


def _constrained(
    parts: Parts, entry: Entry, one: ExplainedClass, intent: IntentSection, allowed: int
) -> ExplainedClass:
    """Say by whom the packets of a class may not go. ``allowed`` are the dimensions, as a bitmap."""
    if not intent.constrained:
        return one
    others = {entry.member.node_id for entry in parts.peers.entries} - {entry.member.node_id}
    members = [hand for other in others if (hand := parts.peers.hand(other)) is not None]
    found = parts.peers.class_limits.refused(intent.name, members)
    refused = sorted((name, intent_key(intent.name, rule)) for name, rule in found)
    return structs.replace(
        one,
        constraints=words.class_constraints(intent),
        allowed=[i for i in range(DIMENSIONS) if has(allowed, i)],
        refused=[Refused(name=name, key=key) for name, key in refused[:MOST_REFUSED]],
        refused_total=len(refused),
    )
