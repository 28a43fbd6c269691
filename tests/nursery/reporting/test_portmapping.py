# SPDX-License-Identifier: GPL-3.0-or-later
"""Port mapping in `netcheck`: which protocol the router speaks, what it refuses and why, with the fix."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from phantommesh.node.whereabouts import Place
from phantommesh.nursery.members.mapping import GatewayState
from phantommesh.nursery.reporting.portmapping import portmap_view
from phantommesh.portmap.refusals import explain
from phantommesh.portmap.values import Method, Refusal

ROUTER, TWO = IPv4Address("192.168.1.1"), (Method.PCP, Method.NAT_PMP)
PUBLIC, PRIVATE = Place(IPv4Address("203.0.113.7"), 51800), Place(IPv4Address("100.64.3.4"), 51800)


def state(
    method: Method | None, at: Place | None = None, ports: int = 0, refused: Refusal | None = None,
    tried: tuple[Method, ...] = TWO,
) -> GatewayState:  # fmt: skip
    return GatewayState(ROUTER, method, tried, at, ports, 9, refused)


def test_what_is_mapped_says_by_which_protocol() -> None:
    found = portmap_view([state(Method.NAT_PMP, PUBLIC, 9)], on=True)
    assert (found.state, found.endpoint, found.fix) == ("mapped", "203.0.113.7:51800", "")
    assert found.why == "router 192.168.1.1 speaks NAT-PMP and has mapped 9 of 9 ports"
    assert [one.method for one in found.gateways] == ["nat-pmp"]


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (Refusal(Method.PCP, 2), "it does not allow this host to"),
        (Refusal(Method.PCP, 8), "it has no room"),
        (Refusal(Method.PCP, 12), "another NAT is between"),
        (Refusal(Method.PCP, 200), "it says 200"),
        (Refusal(Method.NAT_PMP, 3), "it has no address outside"),
        (Refusal(Method.UPNP, text="Action Not Authorized"), "Action Not Authorized"),
    ],
)
def test_a_refusal_has_its_reason_and_a_fix(refused: Refusal, why: str) -> None:
    found = portmap_view([state(refused.method, refused=refused)], on=True)
    assert found.state == "refused" and found.endpoint is None
    assert f"has not mapped the control port: {why}" in found.why
    assert found.fix and "{" not in found.fix
    part = portmap_view([state(refused.method, PUBLIC, 8, refused)], on=True)
    assert part.state == "mapped" and "8 of 9 ports; of one it says: " in part.why and part.fix


@pytest.mark.parametrize("at", [PRIVATE, Place(IPv4Address("192.0.0.2"), 51800)])  # RFC 7335: DS-Lite
def test_an_address_that_others_do_not_reach_is_no_mapping(at: Place) -> None:
    found = portmap_view([state(Method.PCP, at, 9)], on=True)
    assert found.state == "private" and "another router is in front" in found.why and found.fix


def test_silence_says_what_was_tried() -> None:
    found = portmap_view([state(None)], on=True)
    assert found.state == "none" and found.fix
    assert "does not answer PCP and NAT-PMP; UPnP is not tried" in found.why
    found = portmap_view([state(None, tried=tuple(Method))], on=True)
    assert found.why == "router 192.168.1.1 does not answer PCP and NAT-PMP and UPnP"
    assert portmap_view([], on=True).state == "none"
    assert portmap_view([], on=False).state == "off"


def test_the_router_that_does_most_comes_first() -> None:
    found = portmap_view([state(None), state(Method.PCP, PUBLIC, 9)], on=True)
    assert found.state == "mapped" and [one.state for one in found.gateways] == ["silent", "mapped"]


def test_each_code_of_the_protocols_is_explained() -> None:
    """RFC 6887, section 7.4: 1 to 13; RFC 6886, section 3.5: 1 to 5."""
    for method, codes in ((Method.PCP, range(1, 14)), (Method.NAT_PMP, range(1, 6))):
        assert all(all(explain(Refusal(method, code))) for code in codes)
