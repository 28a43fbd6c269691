# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes beyond the mesh as views and faults; and an operator's word on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

import trio

from phantommesh.control import messages
from phantommesh.faults import Fault
from phantommesh.management.routeview import RouteResult, RoutesView, RouteView
from phantommesh.node import routes
from phantommesh.node.revoking import Target
from phantommesh.nursery.parts import Parts
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.records.roster import Entry, name_of
from phantommesh.routable import EXIT, EXITS, Network, in_order, parse_prefix
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.trust.routes import RouteError

# Tuning.
CERTIFIED_WITHIN: Final = 5.0  # s that an approval waits for the member's certificate


def view(parts: Parts) -> RoutesView:
    """What is advertised, approved, accepted and carried, and by whom."""
    section = parts.config.routes
    asked = {one.node_id: one.prefixes for one in parts.desk.desk.granting.open_requests(trio.current_time())}
    asked[parts.state.identity.node_id] = parts.own.word.routes.lacking
    members = list(parts.peers.entries)
    if (mine := parts.keeper.roster.get(parts.state.identity.node_id)) is not None:
        members.append(mine)
    rows = [
        row
        for entry in sorted(members, key=lambda entry: entry.member.name)
        for row in _rows(parts, entry, asked.get(entry.member.node_id, ()))
    ]
    return RoutesView(
        node=parts.own.name(),
        authority=parts.state.authority is not None,
        advertise=list(section.advertise),
        accept=list(section.accept),
        sites=section.sites,
        exit=list(section.exit),
        lan=section.lan,
        routes=rows,
    )


def _rows(parts: Parts, entry: Entry, asked: Sequence[Network]) -> Iterator[RouteView]:
    granting, node_id = parts.desk.desk.granting, entry.member.node_id
    certified = {grant.prefix for grant in granting.granted(entry)}
    approved = certified | {grant.prefix for grant in granting.approved(node_id)}
    claimed = set(map(parse_prefix, entry.record.routes))
    taken = {one.prefix: one.routers for one in parts.taking.taken}
    conflicts = {one.prefix: one for one in parts.taking.routes.conflicts}
    carried = parts.taking.carried()
    for prefix in in_order(approved | claimed | set(asked)):
        routers, conflict = taken.get(prefix, ()), conflicts.get(prefix)
        yield RouteView(
            prefix=str(prefix),
            router=entry.member.name,
            node_id=format_node_id(node_id),
            asked=prefix in asked,
            approved=prefix in approved,
            certified=prefix in certified,
            claimed=prefix in claimed,
            accepted=node_id in routers,
            rank=routers.index(node_id) if node_id in routers else None,
            carried=carried.get(prefix) == node_id,
            conflict=conflict.why if conflict is not None and node_id in conflict.routers else "",
        )


def routed(parts: Parts) -> dict[str, str]:
    """The prefixes that this node routes for others now, each with what is really there."""
    there = routes.sites(parts.config.routes)
    return {str(prefix): str(there.get(prefix, prefix)) for prefix in parts.own.routed()}


def exits(parts: Parts) -> list[str]:
    """How all that is for the internet leaves this host, one line a family; none where no exit is named."""
    if not parts.config.routes.exit:
        return []
    carried = parts.taking.carried()
    return [
        f"IPv{gate.version} by {_name(parts, carried[gate])}"
        if gate in carried
        else f"IPv{gate.version} is refused"
        for gate in EXITS
    ]


def counts(parts: Parts) -> dict[str, int]:
    """How many prefixes beyond the mesh there are in each state, for the metrics."""
    seen, own = parts.taking.routes, parts.own.word.routes
    return {
        "offered": len(own.offered),
        "unapproved": len(own.lacking),
        "taken": len(seen.taken),
        "carried": len(parts.taking.carried()),
        "conflict": len(seen.conflicts),
        "uncertified": len(seen.claims),
    }


async def approve(parts: Parts, wanted: str, texts: Iterable[str]) -> RouteResult:
    """Approve that a member routes these prefixes, tell the member, and wait for a moment until it has its
    certificate. Raises PhantomMeshError."""
    prefixes = _read(texts)
    target = await parts.desk.approve(wanted, prefixes)
    with trio.move_on_after(CERTIFIED_WITHIN):
        await _prompt(parts, target.node_id)
        due = set(prefixes) & parts.desk.desk.granting.asked_by(target.node_id)
        while not due <= set(_certified(parts, target.node_id)):
            await parts.keeper.changes()
    return _result(parts, target, prefixes)


async def _prompt(parts: Parts, node_id: NodeId) -> None:
    """Have a member ask for its routes. One that is not reached asks by itself later."""
    if node_id == parts.state.identity.node_id:
        parts.own.routes_approved()
        return
    with suppress(StreamError):
        await parts.caller.ask(node_id, messages.Approved(), CERTIFIED_WITHIN)


def _certified(parts: Parts, node_id: NodeId) -> list[Network]:
    entry = parts.keeper.roster.get(node_id)
    return [] if entry is None else [grant.prefix for grant in parts.desk.desk.granting.granted(entry)]


async def withdraw(parts: Parts, wanted: str, texts: Iterable[str]) -> RouteResult:
    """Withdraw these prefixes from a member. Raises PhantomMeshError."""
    prefixes = _read(texts)
    return _result(parts, await parts.desk.withdraw(wanted, prefixes), prefixes)


def _result(parts: Parts, target: Target, prefixes: Sequence[Network]) -> RouteResult:
    certified = _certified(parts, target.node_id)
    approved = [grant.prefix for grant in parts.desk.desk.granting.approved(target.node_id)]
    return RouteResult(
        name=name_of(target.entry, target.node_id),
        node_id=format_node_id(target.node_id),
        prefixes=list(map(str, prefixes)),
        certified=list(map(str, in_order(certified))),
        waiting=list(map(str, in_order(set(approved) - set(certified)))),
    )


def _read(texts: Iterable[str]) -> tuple[Network, ...]:
    found = list[Network]()
    for text in texts:
        if text == EXIT:
            found += EXITS
            continue
        try:
            found.append(parse_prefix(text))
        except ValueError as error:
            raise RouteError(
                f"{text[:64]!r} is not usable: {error}",
                fix='write a network and its length, as in "10.1.0.0/16" or "2001:db8:1::/48", or "exit"',
            ) from None
    return in_order(found)


def faults(parts: Parts) -> Iterator[Fault]:
    """What is wrong with routes: what this node advertises in vain, wants and cannot take, or is offered by a
    member that may not."""
    me, seen, own = parts.own.name(), parts.taking.routes, parts.own.word.routes
    for prefix in own.lacking[: routes.MAX_NAMED]:
        why = "" if own.error is None else f" ({own.error})"
        yield routes.NOT_APPROVED.fault(
            f"this node advertises {prefix}, and no authority has approved it{why}",
            f"run `phantommesh route approve {me} {prefix}` on an authority, or take it out of "
            "routes.advertise",
            subject=str(prefix),
        )
    claims = sorted(seen.claims, key=lambda claim: (claim.name, claim.prefix))
    for claim in claims[: routes.MAX_NAMED]:
        yield routes.NOT_CERTIFIED.fault(
            f"{claim.name} says that it routes {claim.prefix}, and its certificate does not have that: "
            "nothing is sent there for it",
            f"find out why it says so; if it should route it, run `phantommesh route approve {claim.name} "
            f"{claim.prefix}` on an authority",
            subject=claim.name,
        )
    for conflict in seen.conflicts[: routes.MAX_NAMED]:
        by = ", ".join(_name(parts, router) for router in conflict.routers)
        yield routes.CONFLICT.fault(
            f"{conflict.prefix}, which {by} routes, is not taken: {conflict.why}",
            "renumber one of the two networks, or leave the prefix out of routes.accept",
            subject=str(conflict.prefix),
        )


def _name(parts: Parts, router: bytes) -> str:
    return name_of(parts.keeper.roster.get(NodeId(router)), router)
