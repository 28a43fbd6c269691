# SPDX-License-Identifier: GPL-3.0-or-later
"""Which way a dimension's packets take to a peer, and why, as told to an operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from phantommesh.endpoint import parse_endpoint
from phantommesh.management.wayview import WayKind
from phantommesh.paths.effects import PathView
from phantommesh.paths.state import PathState
from phantommesh.records.candidate import Kind as Source
from phantommesh.records.record import NodeRecord, known_by_itself
from phantommesh.routing.search import Standing, State
from phantommesh.routing.ways import Kind, Way
from phantommesh.wireguard.device import Endpoint

_KINDS: Final[dict[Kind, WayKind]] = {Kind.DIRECT: "direct", Kind.RELAYED: "relayed", Kind.FRAMED: "tcp"}
_RECORD: Final = "address of its record"
_SOURCES: Final[dict[int, str]] = {
    Source.OWN: "address of its host",
    Source.MAPPED: "mapped at its router",
    Source.SEEN: "address that others see",
}
_NO_ANSWER: Final[dict[WayKind, str]] = {"relayed": "no answer by the relay", "tcp": "no answer over TCP"}


@dataclass(frozen=True, slots=True)
class Taken:
    """The way of one dimension. ``kind`` is where WireGuard sends to, whether anything comes back or not;
    ``relay`` the node id of the member that forwards, or empty; ``answers``: the dimension is not dark."""

    kind: WayKind
    relay: bytes = b""
    answers: bool = False

    @property
    def shown(self) -> WayKind:
        """The same, ``none`` where nothing comes back."""
        return self.kind if self.answers else "none"


NOWHERE: Final = Taken("none")


def taken(offered: Way | None, endpoint: Endpoint | None, path: PathView) -> Taken:
    """Say which way a dimension takes. ``offered`` is the way on offer with WireGuard's ``endpoint``, None
    where the endpoint is no offer's: then it is an address of the peer's record, or the one that its packets
    come from."""
    if path.state is PathState.CLOSED or endpoint is None:
        return NOWHERE
    kind: WayKind = "direct" if offered is None else _KINDS[offered.kind]
    relay = b"" if offered is None else offered.relay
    return Taken(kind, relay, path.state is not PathState.DARK)


def endpoint_of(endpoints: Sequence[str | None], found: Sequence[PathView], record: NodeRecord) -> str | None:
    """Where WireGuard sends to a peer: in the first dimension that answers, else in the first that has an
    endpoint. Before WireGuard has any it is the first control endpoint of the peer's record."""
    states = [one.state for one in found] or [PathState.CLOSED] * len(endpoints)
    ranked = sorted(zip(states, endpoints, strict=False), key=lambda one: one[0] is not PathState.UP)
    used = next((endpoint for _, endpoint in ranked if endpoint is not None), None)
    return used or next(iter(record.control), None)


def why(
    way: Taken, record: NodeRecord, offered: Way | None, endpoint: Endpoint | None, path: PathView, *,
    search: State, keyed: bool, tried: Sequence[str],
) -> str:  # fmt: skip
    """Say why it is this way. ``search`` is what the search for a way through NATs is at; ``keyed``: keys are
    agreed; ``tried`` are the addresses of the record among which the dimension has its choice."""
    if not keyed:
        return "no keys are agreed yet"
    if path.state is PathState.CLOSED or endpoint is None:
        return searched(search) or (
            "the peer is to begin" if tried else "no address of its record may be used"
        )
    if not way.answers:
        count = len({*tried, endpoint.host})
        addresses = f"{count} addresses" if count > 1 else endpoint.host
        return _NO_ANSWER.get(way.kind, f"no answer from {addresses}")
    text = _chosen(way, record, offered, endpoint, search)
    return text if path.answered is not None else f"{text}, not answered yet"


def searched(search: State) -> str:
    """What keeps NAT traversal from a direct way, or that it is under way; empty where nothing is known."""
    match search.standing:
        case Standing.IDLE | Standing.FOUND:
            return ""
        case Standing.AGREEING | Standing.TRYING:
            return "NAT traversal is under way"
        case Standing.SILENT:
            return "a NAT or a firewall lets nothing in"
        case Standing.APART:
            return f"the peer cannot be asked to begin NAT traversal: {search.why}"
        case Standing.NOWHERE:
            return "NAT traversal has no address to try"
        case _:
            assert_never(search.standing)


def _chosen(way: Taken, record: NodeRecord, offered: Way | None, endpoint: Endpoint, search: State) -> str:
    if way.kind == "tcp" and way.relay:
        return "UDP does not pass, and neither end takes TCP from the other"
    if way.kind == "tcp":
        return "UDP does not pass"
    if way.kind == "relayed":
        return f"no direct way: {found}" if (found := searched(search)) else "no direct way answers"
    known = _known(record, endpoint)
    if known in (_RECORD, _SOURCES[Source.OWN]):  # so it is, by whichever way it was tried first
        return known
    return known if offered is None else "found by NAT traversal"


def _known(record: NodeRecord, endpoint: Endpoint) -> str:
    """How an address of the peer is known."""
    own = known_by_itself(record)
    if endpoint.host in {parse_endpoint(text)[0] for text in record.control if text not in own}:
        return _RECORD
    source = next((one.kind for one in record.candidates if one.host == endpoint.host), None)
    if source is not None:
        return _SOURCES.get(source, _RECORD)
    if endpoint.host in {parse_endpoint(text)[0] for text in record.control}:
        return _RECORD
    return "address that its packets come from"
