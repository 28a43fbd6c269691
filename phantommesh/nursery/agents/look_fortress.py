# SPDX-License-Identifier: GPL-3.0-or-later
"""FORTRESS's look: offences by source, with what is known of each source; and FORTRESS's hands."""

from __future__ import annotations

from itertools import islice
from time import time
from typing import Final

import trio

from phantommesh.acl.banrules import ARRIVED, ODD, SHED
from phantommesh.acl.bans import BanError, Origin, parse_network
from phantommesh.agents import fortress
from phantommesh.agents.actions import Ban
from phantommesh.agents.base import Proposal
from phantommesh.agents.fortress import HINT, FortressSeen, Source
from phantommesh.nursery.dataplane.banning import EXPIRED
from phantommesh.nursery.keeping import offenders
from phantommesh.nursery.parts import Parts

# Tuning.
MOST_SOURCES: Final = 64  # at one look, the latest; the agent proposes 32 bans a look
MOST_ASKERS: Final = 64  # at one look, the latest


async def look(parts: Parts) -> FortressSeen:
    """What FORTRESS sees now. Sources that are banned already are left out."""
    banning, wall = parts.banning, time()
    shield, bans, rates = banning.shield, banning.bans, banning.rates
    sources = []
    for seen in islice(banning.offences.bound(trio.current_time()), MOST_SOURCES):
        if bans.get(seen.block) is not None:
            continue
        network = parse_network(seen.block)
        sources.append(
            Source(
                seen,
                times=max(
                    bans.times(seen.block, wall), offenders.banned_before(parts.memory, seen.block, wall)
                ),
                lowering=offenders.lowering(parts.memory, seen.block, wall),
                never=shield.always(network),
                member=shield.of_member(network),
            )
        )
    askers = tuple(islice(parts.naming.askers.seen(trio.current_time()), MOST_ASKERS))
    return FortressSeen(tuple(sources), rates[ARRIVED], rates[SHED], rates[ODD], askers)


async def ban(parts: Parts, proposal: Proposal, action: Ban) -> None:
    """Carry out a ban, of an agent's or of the operator's. Raises BanError and NftError."""
    origin: Origin = "own"
    network = parse_network(action.network)
    if proposal.agent == "operator" and any(
        b.network == str(network) for b in parts.banning.bans.of("operator")
    ):
        return  # `reporting/threats.py` has done that: an operator waits for an answer
    if proposal.agent == "operator":
        origin = "operator"
    elif hint := next((one for one in proposal.evidence if one.what == HINT), None):
        if not offenders.bears(parts.memory, str(network), hint.value, time()):
            raise BanError(f"a ban of {network} rests on hints, and other bans have used them up")
        origin = "hinted"
    kinds = fortress.kinds_of(proposal)
    made = await parts.banning.ban(network, origin, action.seconds, proposal.why, kinds=kinds)
    if origin != "operator":
        offenders.banned(parts.memory, made, kinds, time(), alone=origin == "own")


async def lift(parts: Parts, proposal: Proposal, action: Ban) -> None:
    """Lift a ban that an agent's proposal stood behind. Raises NftError."""
    origins: tuple[Origin, ...] = ("operator",) if proposal.agent == "operator" else ("own", "hinted")
    for origin in origins:
        await parts.banning.lift(parse_network(action.network), origin, EXPIRED)
