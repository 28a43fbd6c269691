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
    Tune,
    Weigh,
)
from phantommesh.agents.council import Order
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery.parts import Parts
from phantommesh.trust.identity import parse_node_id


class UndoneError(PhantomMeshError):
    """An action that could not be done."""


async def carry_out(parts: Parts, order: Order) -> None:
    """Carry out an order, or lift what it says. Raises PhantomMeshError where that cannot be done."""
    await (lift if order.lift else do)(parts, order.proposal.action)


async def do(parts: Parts, action: Action) -> None:
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
        case Ban() | Shed() | Mend() | Quarantine() | Weigh() | Deal() | Pin() | Cover() | Tune() | Drain():
            raise UndoneError(f"nothing on this node does {action.__struct_config__.tag!r} yet")
        case _:
            assert_never(action)


async def lift(parts: Parts, action: Action) -> None:
    """Take this back. Raises PhantomMeshError."""
    match action:
        case Raise():
            pass
        case Rotate() | ReplaceKey() | Renew() | Restart() | Mend():
            pass  # done once
        case Ban() | Shed() | Quarantine() | Weigh() | Deal() | Pin() | Cover() | Tune() | Drain():
            pass  # never done: see `do`
        case _:
            assert_never(action)


def rotate(parts: Parts, peer: str) -> None:
    """Have the link with a peer make a new PSK. Raises PhantomMeshError."""
    node_id = parse_node_id(peer)
    if parts.peers.get(node_id) is None:
        raise UndoneError(f"{peer} is no peer of this node any more")
    parts.links.rotate(node_id, trio.current_time())
    parts.driver.wake()
