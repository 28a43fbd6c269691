# SPDX-License-Identifier: GPL-3.0-or-later
"""Pacts with other meshes as views and faults; and an operator's word on them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from time import time
from typing import Final, Literal

import trio

from phantommesh.faults import Fault, FaultKind
from phantommesh.management.federationview import (
    FederationInvited,
    FederationView,
    PactResult,
    PactView,
    ServiceView,
    VisitorView,
)
from phantommesh.moments import rfc3339, span
from phantommesh.node.pactmaking import Offer, make_offer
from phantommesh.nursery.parts import Parts
from phantommesh.records.roster import Entry
from phantommesh.routing.explain import names_near
from phantommesh.trust.certificates import DAY, TrustError
from phantommesh.trust.federation import FederationInvite, Ports, Terms, by_id
from phantommesh.trust.identity import NodeId, format_node_id

RUNS_OUT = FaultKind("pact-runs-out", "medium")
RESTS = FaultKind("pact-rests", "medium")

# Tuning.
MEETING: Final = 30.0  # s that the first answer of a gateway may take before its absence is a fault
SOON: Final = 14 * DAY  # s before its end in which a pact is a fault


def view(parts: Parts) -> FederationView:
    """All pacts, and who of other meshes this node links with."""
    return FederationView(
        node=parts.own.name(),
        authority=parts.state.authority is not None,
        pacts=list(_pacts(parts)),
        visitors=[
            VisitorView(
                name=one.entry.member.name,
                mesh=one.mesh.name,
                node_id=format_node_id(one.entry.member.node_id),
                ip6=str(one.entry.member.ip6),
                linked=one.entry.member.node_id in parts.peers.visitors
                and parts.links.keyed(one.entry.member.node_id),
                inbound=list(map(_ports, one.allowed.inbound)),
                outbound=list(map(_ports, one.allowed.outbound)),
            )
            for one in parts.federating.visitors
        ],
    )


def _pacts(parts: Parts) -> Iterator[PactView]:
    federation, problems = parts.federating.federation, parts.federating.problems
    in_force = {pact.ours.pact for pact in federation.in_force()}
    asked = {one.pact for one in federation.asked(parts.own.member)}
    for pact in federation.pacts:
        ours, theirs, other = (
            federation.pacts.ours(pact),
            federation.pacts.theirs(pact),
            federation.other(pact),
        )
        if ours is None:
            continue
        state: Literal["in force", "resting", "ended"] = "in force" if pact in in_force else "resting"
        yield PactView(
            pact=pact.hex(),
            mesh=None if other is None else other.mesh.name,
            state="ended" if federation.pacts.ended(pact) else state,
            part=pact in asked,
            expires=rfc3339(_end(ours, theirs)),
            members=list(ours.members),
            services=_services(ours),
            their_services=[] if theirs is None else _services(theirs),
            gateways=[] if theirs is None else [_id(one.node_id) for one in theirs.gateways],
            silent=[
                f"{_id(one.gateway.node_id)}: {why}" for one, why in problems.items() if one.pact == pact
            ],
        )


def _end(ours: Terms, theirs: Terms | None) -> int:
    return ours.until if theirs is None else min(ours.until, theirs.until)


def _services(terms: Terms) -> list[ServiceView]:
    return [
        ServiceView(member=one.member, ports=list(map(_ports, one.ports)), users=list(one.users))
        for one in terms.services
    ]


def _ports(ports: Ports) -> str:
    last = "" if ports.last == ports.first else f"-{ports.last}"
    return f"{ports.protocol}/{ports.first}{last}"


def _id(node_id: bytes) -> str:
    return format_node_id(NodeId(node_id))


STATES: Final = {"in force": "in-force", "resting": "rests", "ended": "ended"}
"""The event by which a pact gets into each state."""


def states(parts: Parts) -> dict[str, PactView]:
    """The pacts that name this node, and those that were ended, by id."""
    return {one.pact: one for one in _pacts(parts) if one.part or one.state == "ended"}


def faults(parts: Parts) -> Iterator[Fault]:
    """Pacts that rest here though they name this node, and pacts that run out soon."""
    federation, now = parts.federating.federation, time()
    for one in _pacts(parts):
        if one.state == "ended":
            continue
        mesh, subject = one.mesh or "a mesh that is not known yet", one.pact
        ours = federation.pacts.ours(bytes.fromhex(one.pact))
        theirs = federation.pacts.theirs(bytes.fromhex(one.pact))
        left = 0.0 if ours is None else _end(ours, theirs) - now
        if left < SOON and (one.part or parts.state.authority is not None):
            yield RUNS_OUT.fault(
                f"the pact with {mesh} runs out in {span(max(left, 0.0))}: links with its members end then",
                "make another pact in time: `phantommesh federation invite` on an authority of one mesh, "
                "`phantommesh federation accept` on one of the other",
                subject=subject,
            )
        since = min(trio.current_time() - parts.started, MEETING if ours is None else now - ours.at)
        if one.part and one.state == "resting" and since >= MEETING:
            why = f": {'; '.join(one.silent)}" if one.silent else ""
            yield RESTS.fault(
                f"the pact with {mesh} rests: no gateway of that mesh tells this node whom it has revoked"
                f"{why}",
                f"have {mesh} start one of its gateways, and check that their control ports are open for TCP "
                "from here",
                subject=subject,
            )


async def invite(
    parts: Parts, members: Iterable[str], services: Iterable[str], gateways: Sequence[str], life: float,
    ttl: float,
) -> FederationInvited:  # fmt: skip
    """Make a line for another mesh. Raises PhantomMeshError."""
    offer = _offer(parts, members, services, gateways, life)
    made = await parts.federating.invite(offer, ttl)
    return FederationInvited(
        invite=made.encode(),
        pact=made.pact.hex(),
        expires=rfc3339(made.expires),
        notes=_strangers(parts, offer),
    )


async def accept(
    parts: Parts, line: str, members: Iterable[str], services: Iterable[str], gateways: Sequence[str],
    life: float,
) -> PactResult:  # fmt: skip
    """Answer the line of another mesh. Raises PhantomMeshError."""
    invited = FederationInvite.parse_untrusted(line.strip())
    offer = _offer(parts, members, services, gateways, life)
    pact = await parts.federating.accept(invited, offer)
    notes = _strangers(parts, offer) + _unmet(parts, pact, invited.mesh)
    return PactResult(pact=pact.hex(), mesh=invited.mesh, notes=notes)


def _strangers(parts: Parts, offer: Offer) -> list[str]:
    """Say which members of an offer nobody here is: the pact waits for one of that name, and a slip of the
    hand waits for ever."""
    members = [entry.member for entry in parts.keeper.roster]
    names = {member.name for member in members}
    called = names | {by_id(member.node_id) for member in members}
    return [
        f"no member of this mesh is {one}{_meant(one, names)}: this part of the pact does nothing until "
        "there is one"
        for one in offer.members
        if one not in called
    ]


def _unmet(parts: Parts, pact: bytes, mesh: str) -> list[str]:
    """Say which names each half of a pact uses for members of the other mesh that the other half does not
    have."""
    federation = parts.federating.federation
    ours, theirs = federation.pacts.ours(pact), federation.pacts.theirs(pact)
    if ours is None or theirs is None:
        return []
    notes = list[str]()
    for here, there, whose in ((ours, theirs, mesh), (theirs, ours, "this mesh")):
        gateways = {by_id(NodeId(one.node_id)) for one in there.gateways}
        named = [one for one in there.members if one not in gateways]
        if any(":" in one for one in named):
            continue  # a member that is put in by its node id may be meant by its name
        users = dict.fromkeys(user for service in here.services for user in service.users)
        notes += [
            f"{user} may use services, and {whose} put no member {user} into the pact{_meant(user, named)}"
            for user in users
            if user not in there.members
        ]
    return notes


def _meant(wanted: str, names: Iterable[str]) -> str:
    near = names_near(wanted, names)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


async def end(parts: Parts, wanted: str) -> PactResult:
    """End a pact by its id, or by a beginning of that which no other has. Raises PhantomMeshError."""
    federation = parts.federating.federation
    found = [pact for pact in federation.pacts if pact.hex().startswith(wanted)]
    if len(found) != 1:
        raise TrustError(
            f"{len(found) or 'no'} pacts have an id that begins with {wanted[:64]!r}",
            fix="see `phantommesh federation list` for the ids",
        )
    other = federation.other(found[0])
    await parts.federating.end(found[0])
    return PactResult(pact=found[0].hex(), mesh=None if other is None else other.mesh.name)


def _offer(
    parts: Parts, members: Iterable[str], services: Iterable[str], gateways: Sequence[str], life: float
) -> Offer:
    named = [_entry(parts, one) for one in gateways]
    me = parts.keeper.roster.get(parts.state.identity.node_id)
    return make_offer(members, services, named or ([] if me is None else [me]), life)


def _entry(parts: Parts, wanted: str) -> Entry:
    entry = parts.desk.find(wanted).entry
    if entry is None:
        raise TrustError(f"there is no member {wanted}", fix="see `phantommesh peers`")
    return entry
