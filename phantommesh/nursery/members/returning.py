# SPDX-License-Identifier: GPL-3.0-or-later
"""A node that nobody links with any more asks the authorities to take it back: its certificate ran out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

from phantommesh.control import messages
from phantommesh.endpoint import Address
from phantommesh.errors import PhantomMeshError
from phantommesh.link.keys import RETURNING, returning_secret
from phantommesh.node.own import NotTakenBackError, witnesses
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members import enrolment
from phantommesh.nursery.sockets import channels, framing
from phantommesh.nursery.unexpected import left_out
from phantommesh.records.roster import Entry
from phantommesh.state.start import NodeState
from phantommesh.trust.certificates import Role, TrustError
from phantommesh.trust.identity import NodeId

# Tuning.
PATIENCE = 25.0  # s that it may take at one address
WITNESS = 4.0  # s in which members answer how an authority stands
MAX_REASON = 512  # characters of a refusal that are kept, told and logged

_RNG = random.Random()  # noqa: S311  # chooses members, keys nothing

Where = Callable[[NodeId], Sequence[Address]]


async def come_back(
    node: NodeState, keeper: RosterKeeper, where: Where, request: messages.Return
) -> tuple[messages.Returned, NodeId]:
    """Ask one authority after the other, at the addresses of its record, expired or not; return the answer of
    the first that takes this node back and stands, as far as others know, and who it is. Raises
    `TrustError`, of the kind `NotTakenBackError` where an authority refused."""
    me, reasons, fix, refused = node.identity.node_id, list[str](), "", False
    for entry in node.roster:
        member = entry.member
        if member.role is not Role.AUTHORITY or member.node_id == me:
            continue
        answer = await _ask(node, entry, where(member.node_id), request)
        if isinstance(answer, messages.Returned):
            await _ask_witnesses(node, keeper, where, member.node_id)
            if member.node_id not in node.revocations:
                return answer, member.node_id
            answer = "it was revoked while this node was away"
        if isinstance(answer, messages.Refused):
            fix, refused = fix or answer.fix[:MAX_REASON], True
            answer = answer.message[:MAX_REASON]
        reasons.append(f"{member.name}: {answer}")
    kind = NotTakenBackError if refused else TrustError
    raise kind(
        "no authority takes this node back: " + ("; ".join(reasons) or "none is known"),
        fix=fix or "start an authority, and check that its control port is open for TCP from here",
    )


async def _ask_witnesses(node: NodeState, keeper: RosterKeeper, where: Where, authority: NodeId) -> None:
    """Take in what some members know of an authority's revocation, as far as they answer."""
    chosen = witnesses(node.roster, node.identity.node_id, authority, _RNG)
    with trio.move_on_after(WITNESS):
        async with trio.open_nursery() as nursery:
            for entry in chosen:
                for address in where(entry.member.node_id):
                    further = entry.record.tcp_ports
                    nursery.start_soon(_ask_witness, node, keeper, address, further, authority)


async def _ask_witness(
    node: NodeState, keeper: RosterKeeper, address: Address, further: Sequence[int], authority: NodeId
) -> None:
    with (
        left_out(
            keeper.dropped, "standing-broken", "an answer on an authority was left out", of=str(address)
        ),
        suppress(framing.StreamError, PhantomMeshError),
    ):
        async with framing.connect(address.host, address.port, further) as framed:
            answer = await channels.ask_standing(framed, authority, node.revocations.plea())
        if answer:
            keeper.take_standing(answer, authority)


async def _ask(
    node: NodeState, entry: Entry, addresses: Sequence[Address], request: messages.Return
) -> messages.Answer | str:
    """Return one authority's answer, or why there is none."""
    reason = "its record names no address that may be used and is known"
    for address in addresses:
        try:
            with trio.fail_after(PATIENCE):
                async with framing.connect(address.host, address.port, entry.record.tcp_ports) as framed:
                    answer = await _ask_at(node, entry.member.node_id, framed, request)
            if answer is not None:
                return answer
            reason = "it does not know this node, or was upgraded too little to take it back"
        except (framing.StreamError, trio.TooSlowError) as error:
            reason = f"{address}: {str(error) or 'no answer'}"
    return reason


async def _ask_at(
    node: NodeState, authority: NodeId, framed: framing.FramedStream, request: messages.Return
) -> messages.Answer | None:
    root_hash = node.mesh.root_hash
    secret = returning_secret(root_hash, authority, node.identity.node_id)
    session = await enrolment.shake_hands(framed, node.identity, authority, root_hash, (RETURNING, secret))
    if session is None:
        return None
    client = await channels.Client.open(framed, session)
    return await client.ask(request)
