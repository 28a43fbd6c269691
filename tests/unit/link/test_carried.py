# SPDX-License-Identifier: GPL-3.0-or-later
"""Handshakes that another member carries: when that is tried, and what a carrier can claim."""

from __future__ import annotations

from dataclasses import replace

import pytest

from phantommesh.endpoint import Address, by_way_of
from phantommesh.link.admission import SHARES, Standing
from phantommesh.link.attempt import FIRST_RETRY
from phantommesh.link.effects import Effect, Opened, PeerAuth, Send
from phantommesh.link.machine import FIRST_GLARE_DELAY, START_SPREAD, Links
from phantommesh.trust.identity import format_node_id
from tests.simulation.pair import Simulation
from tests.unit.link.test_link import OTHER, Calls, Sender, auth_of, calls, links_for

__all__ = ["calls"]

HOME, SECOND = "home", "second"
VIA, VIA2 = (by_way_of(home, format_node_id(OTHER.node_id)) for home in (HOME, SECOND))
NEAR, FAR = Address("192.0.2.1", 51800), Address("198.51.100.1", 51800)


def destinations(effects: list[Effect]) -> list[Address]:
    return [effect.destination for effect in effects if isinstance(effect, Send)]


def first_sends(links: Links, until: float) -> list[Address]:
    found = dict[Address, None]()
    now = 0.0
    while now < until:
        found |= dict.fromkeys(destinations(links.tick(now)))
        now += 0.01
    return list(found)


def links_with(calls: Calls, *endpoints: Address, ways: list[Address]) -> Links:
    links = links_for(calls)
    links.carry_by(lambda peer: ways)
    links.set_peers({OTHER.node_id: replace(auth_of(OTHER, 0), endpoints=endpoints)}, 0.0)
    return links


def test_a_member_that_carries_is_tried_right_after_the_first_address(calls: Calls) -> None:
    links = links_with(calls, NEAR, FAR, NEAR._replace(transport="tcp"), ways=[VIA, VIA2])
    start = FIRST_GLARE_DELAY + START_SPREAD
    assert first_sends(links, start + FIRST_RETRY + 0.02)[:2] == [NEAR, VIA]
    assert first_sends(links, 8.0)[-1] in (VIA2, FAR, NEAR._replace(transport="tcp"))


def test_a_peer_without_any_address_is_tried_as_soon_as_a_member_carries(calls: Calls) -> None:
    ways = list[Address]()
    links = links_with(calls, ways=ways)
    assert first_sends(links, 3.0) == []
    assert links.state(OTHER.node_id, 3.0).last_error == "no endpoint is known"
    ways.append(VIA)
    links.carriers_changed(3.0)
    latest = 3.0 + FIRST_GLARE_DELAY + START_SPREAD
    assert links.deadline <= latest
    assert destinations(links.tick(latest)) == [VIA]


def test_an_attempt_under_way_goes_on_with_a_new_carrier_at_once(calls: Calls) -> None:
    ways = list[Address]()
    links = links_with(calls, NEAR, ways=ways)
    first_sends(links, 2.0)
    ways.append(VIA)
    links.carriers_changed(2.0)
    assert VIA in destinations(links.tick(2.0))
    before = links.deadline
    links.carriers_changed(2.1)  # it was asked: nothing is hurried
    assert links.deadline == before


def test_a_carrier_claims_names_within_a_budget_of_its_own(calls: Calls) -> None:
    """Whoever carries has the cookie, and any member has the admission secret. So it may have this node
    answer in others' names, but not use up what is kept for those that come themselves."""
    links = links_for(calls)
    signed = 0
    for number in range(200):
        sender = Sender(links, source=by_way_of(HOME, f"origin{number}"))
        sender.rng.seed(100 + number)
        signed += len(sender.send(sender.datagrams(sender.init(), sender.cookie())))
    share = SHARES[Standing.CARRIED]
    assert 0 < signed <= share.burst
    responses = links._answerer.responses
    assert {response.standing for response in responses._by_own.values()} == {Standing.CARRIED}
    assert len(responses) <= share.of_source
    # One that comes itself is answered.
    sender = Sender(links)
    assert len(sender.send(sender.datagrams(sender.init(), sender.cookie()))) == 1
    assert len(responses) <= share.of_source + 1


def test_a_carried_name_is_at_home_nowhere(calls: Calls) -> None:
    links = links_for(calls)
    links.set_peers({OTHER.node_id: replace(auth_of(OTHER, 0), endpoints=(VIA,))}, 0.0)
    sender = Sender(links, source=VIA)
    sender.send(sender.datagrams(sender.init(), sender.cookie()))
    (response,) = links._answerer.responses._by_own.values()
    assert response.standing is Standing.CARRIED


@pytest.mark.parametrize("both", [True, False])
def test_a_carried_handshake_says_no_place(both: bool) -> None:
    """`Opened.at` is where datagrams may be sent; a carrier is no such place, for either end."""
    sim = Simulation()
    for index, node in enumerate(sim.nodes):
        node.address = by_way_of(HOME, f"n{index}")
    for node, other in (sim.nodes, sim.nodes[::-1]):
        assert node.links is not None
        peers: dict[bytes, PeerAuth] = {
            other.identity.node_id: replace(other.auth(), endpoints=(other.address,))
        }
        sim.carry_out(node, node.links.set_peers(peers, node.clock))
    if both:
        sim.network.cut = lambda datagram, source, to: False
    sim.run(5)
    assert sim.agree()
    opened: list[Opened] = [one for node in sim.nodes for one in node.opened]
    assert len(opened) == 2 and all(one.at is None for one in opened)
    for node in sim.nodes:
        assert node.links is not None
        assert all(peer.seen_at is None for peer in node.links._peers.values())
        # The next one begins with the addresses of the record.
        (peer,) = node.links._peers.values()
        peer.auth = replace(peer.auth, endpoints=(NEAR, peer.auth.endpoints[0]))
        assert node.links._starter._candidates(peer)[0] == NEAR
