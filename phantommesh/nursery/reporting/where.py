# SPDX-License-Identifier: GPL-3.0-or-later
"""Where this node is reached, for `status`."""

from __future__ import annotations

from typing import Final

import trio

from phantommesh.endpoint import format_endpoint
from phantommesh.management.whereview import CandidateView, Found, Whereabouts, WitnessView
from phantommesh.node.whereabouts import Place
from phantommesh.nursery.parts import Parts
from phantommesh.records.candidate import Candidate, Kind
from phantommesh.records.roster import name_of

_FOUND: Final[dict[int, Found]] = {Kind.OWN: "own", Kind.MAPPED: "mapped", Kind.SEEN: "seen"}


def whereabouts(parts: Parts) -> Whereabouts:
    """The endpoints and candidates of this node's record as it stands, and what peers see of it."""
    mine, now = parts.keeper.roster.get(parts.state.identity.node_id), trio.current_time()
    seen = parts.finding.whereabouts.witnesses(now)
    witnesses = []
    for witness, one in sorted(seen.items()):
        if one.control is not None:
            witnesses.append(
                WitnessView(
                    peer=name_of(parts.peers.get(witness), witness),
                    endpoint=_text(one.control),
                    age_s=round(now - one.at, 1),
                    wireguard=[None if place is None else _text(place) for place in one.wireguard],
                )
            )
    return Whereabouts(
        endpoints=[] if mine is None else list(mine.record.control),
        candidates=[] if mine is None else [_candidate(one) for one in mine.record.candidates],
        witnesses=witnesses,
    )


def _candidate(one: Candidate) -> CandidateView:
    return CandidateView(
        endpoint=format_endpoint(one.host, one.port),
        found=_FOUND.get(one.kind, "other"),
        uplink=one.uplink,
        wireguard=sum(map(bool, one.wg_ports)),
    )


def _text(place: Place) -> str:
    return format_endpoint(str(place.address), place.port)
