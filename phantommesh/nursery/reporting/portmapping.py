# SPDX-License-Identifier: GPL-3.0-or-later
"""Port mapping in words: which protocols the routers speak, what they refuse and why, and the fix. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from phantommesh.endpoint import format_endpoint
from phantommesh.management.netview import GatewayView, PortmapMethod, PortmapView
from phantommesh.nursery.members.mapping import GatewayState
from phantommesh.portmap.refusals import explain, name
from phantommesh.portmap.values import Method
from phantommesh.reachable import of_a_site, special

_METHODS: Final[dict[Method, PortmapMethod]] = {
    Method.PCP: "pcp",
    Method.NAT_PMP: "nat-pmp",
    Method.UPNP: "upnp",
}
_TURN_ON: Final = "turn on PCP, NAT-PMP or UPnP in the router's settings, or forward the node's ports there"
_NO_LIBRARY: Final = "; UPnP is not tried, since miniupnpc is not installed (phantommesh[portmap])"
_SECOND: Final = "open the same ports at the router in front, or have one of the two pass all traffic on"


def portmap_view(states: Sequence[GatewayState], *, on: bool) -> PortmapView:
    """The line of `netcheck` on port mapping. ``on``: whether this node asks routers at all."""
    if not on:
        return PortmapView(state="off", why="nat.portmap or nat.discover is off, or all is on one machine")
    if not states:
        return PortmapView(
            state="none", why="no router is asked: this host has no private address behind a default route"
        )
    gateways = [_view(state) for state in states]
    order = ("mapped", "private", "refused", "silent")
    best = min(gateways, key=lambda one: order.index(one.state))
    state: Final = "none" if best.state == "silent" else best.state
    return PortmapView(state=state, endpoint=best.endpoint, why=best.why, fix=best.fix, gateways=gateways)


def _view(state: GatewayState) -> GatewayView:
    address = str(state.address)
    if state.method is None:
        spoken = " and ".join(name(method) for method in state.tried)
        hint = "" if Method.UPNP in state.tried else _NO_LIBRARY
        said = f"router {address} does not answer {spoken}{hint}"
        return GatewayView(address=address, state="silent", why=said, fix=_TURN_ON)
    speaks, method = name(state.method), _METHODS[state.method]
    ports = f"{state.open} of {state.wanted} ports"
    why, fix = ("", "") if state.refused is None else explain(state.refused)
    if state.control is None:
        said = f"router {address} speaks {speaks} and has not mapped the control port" + (why and f": {why}")
        return GatewayView(
            address=address, state="refused", method=method, ports=state.open, why=said, fix=fix
        )
    endpoint = format_endpoint(str(state.control.address), state.control.port)
    said = f"router {address} speaks {speaks} and has mapped {ports}" + (why and f"; of one it says: {why}")
    if of_a_site(state.control.address) or special(state.control.address):
        said += ", at a private address: another router is in front of it"
        return GatewayView(
            address=address, state="private", method=method, endpoint=endpoint, ports=state.open,
            why=said, fix=_SECOND,
        )  # fmt: skip
    return GatewayView(
        address=address, state="mapped", method=method, endpoint=endpoint, ports=state.open, why=said, fix=fix
    )
