# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrying out what was accepted: one match over all actions, and one over what is lifted.

Each action is done by the part that it belongs to. A lasting action is done by setting what is wanted there,
and lifted by taking that back; both may be done twice.
"""

from __future__ import annotations

from typing import assert_never

import trio

from phantommesh.agents.actions import (
    Action,
    Ban,
    Cover,
    Deal,
    Drain,
    Mend,
    Pin,
    Quarantine,
    Raise,
    Renew,
    ReplaceKey,
    Restart,
    Rotate,
    Shed,
    Throttle,
    Tune,
    Weigh,
)
from phantommesh.agents.base import Proposal
from phantommesh.agents.council import Order
from phantommesh.config.intents import MAX_CLASSES
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.agents import look_aegis, look_fortress
from phantommesh.nursery.agents.quarantining import quarantine
from phantommesh.nursery.parts import Parts
from phantommesh.scatter.peermap import BUCKETS
from phantommesh.trust.identity import parse_node_id


class UndoneError(PhantomMeshError):
    """An action that could not be done."""


async def carry_out(parts: Parts, order: Order) -> None:
    """Carry out an order, or lift what it says. Raises PhantomMeshError where that cannot be done."""
    proposal = order.proposal
    if isinstance(proposal.action, Drain) and proposal.agent == "operator":
        return  # that was done where it was asked for, and is kept: the proposal is for the record
    await (lift if order.lift else do)(parts, proposal.action, proposal)
    if proposal.agent == "stream" and isinstance(proposal.action, Raise) and not order.lift:
        found = {"rule": proposal.action.rule, "source": proposal.subject.name, "text": proposal.action.text}
        parts.events.publish("threat.pattern", None, found)


async def do(parts: Parts, action: Action, proposal: Proposal) -> None:
    """Do this. Raises PhantomMeshError."""
    match action:
        case Raise():
            pass  # `reporting/findings.py` tells what stands
        case Rotate(peer):
            rotate(parts, peer)
        case ReplaceKey(dimension):
            if not await parts.rekeying.replace(dimension):
                raise UndoneError(f"dimension {dimension} cannot be drained now", fix="it is tried again")
        case Renew():
            await parts.own.renew_now(parts.caller)
        case Restart(service):
            parts.services.restart(service)
        case Ban():
            await look_fortress.ban(parts, proposal, action)
        case Shed(rate):
            await parts.banning.limit(rate)
        case Throttle(address, rate):
            parts.naming.askers.keep_to(address, rate, trio.current_time())
        case Tune(parameter, value, taken):
            await parts.tuning.tune(parameter, value, taken=taken)
        case Mend(rule):
            await look_aegis.mend(parts, rule)
        case Drain():
            parts.drainer.by_agent(True)
        case Quarantine(peer):
            await quarantine(parts, peer, on=True)
        case Weigh(peer, dimension, factor):
            parts.paths.weigh(parse_node_id(peer), dimension, factor)
        case Deal(flow, peer, dealt):
            await parts.splitter.rule(parse_node_id(peer), bucket_of(flow), dealt)
        case Pin(flow, peer, dimension):
            await parts.splitter.pin(parse_node_id(peer), bucket_of(flow), dimension)
        case Cover(peer, rate):
            if not parts.cover.cover(parse_node_id(peer), rate):
                raise UndoneError(f"{peer} cannot be sent cover now", fix="it is tried again")
        case _:
            assert_never(action)


async def lift(parts: Parts, action: Action, proposal: Proposal) -> None:
    """Take this back. Raises PhantomMeshError."""
    match action:
        case Raise():
            pass
        case Rotate() | ReplaceKey() | Renew() | Restart() | Mend():
            pass  # done once
        case Ban():
            await look_fortress.lift(parts, proposal, action)
        case Shed():
            await parts.banning.limit(None)
        case Throttle(address, _):
            parts.naming.askers.keep_to(address, None, trio.current_time())
        case Tune(parameter):
            parts.tuning.restore(parameter)
        case Drain():
            parts.drainer.by_agent(False)
        case Quarantine(peer):
            await quarantine(parts, peer, on=False)
        case Weigh(peer, dimension, _):
            parts.paths.weigh(parse_node_id(peer), dimension, 1.0)
        case Deal(flow, peer, _):
            await parts.splitter.rule(parse_node_id(peer), bucket_of(flow), None)
        case Pin(flow, peer, _):
            await parts.splitter.pin(parse_node_id(peer), bucket_of(flow), None)
        case Cover(peer):
            parts.cover.uncover(parse_node_id(peer))
        case _:
            assert_never(action)


def bucket_of(flow: str) -> int:
    """The number of a bucket of flows, as `Deal` and `Pin` write it. Raises PhantomMeshError."""
    if not flow.isascii() or not flow.isdecimal() or int(flow) >= BUCKETS * MAX_CLASSES:
        raise UndoneError(
            f"no bucket of flows {flow[:20]!r}", fix=f"give a number below {BUCKETS * MAX_CLASSES}"
        )
    return int(flow)


def rotate(parts: Parts, peer: str) -> None:
    """Have the link with a peer make a new PSK. Raises PhantomMeshError."""
    node_id = parse_node_id(peer)
    if parts.peers.get(node_id) is None and node_id not in parts.peers.visitors:
        raise UndoneError(f"{peer} is no peer of this node any more")
    parts.links.rotate(node_id, trio.current_time())
    parts.driver.wake()
