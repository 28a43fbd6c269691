# SPDX-License-Identifier: GPL-3.0-or-later
"""A peer with several addresses of which some lead nowhere, or behind a NAT: who is asked where, and when."""

from __future__ import annotations

from dataclasses import replace

from phantommesh.endpoint import Address
from phantommesh.link.attempt import TRIES
from phantommesh.link.effects import PeerAuth
from phantommesh.link.wire import Kind
from tests.simulation.pair import Simulation

DEAD = Address("2001:db8::2", 51800)
HEARD = Address("203.0.113.1", 40_000)


def at(sim: Simulation, *endpoints: Address) -> None:
    """Have the first node know the second by these addresses only."""
    one, other = sim.nodes
    assert one.links is not None
    peers: dict[bytes, PeerAuth] = {other.identity.node_id: replace(other.auth(), endpoints=endpoints)}
    sim.carry_out(one, one.links.set_peers(peers, one.clock))


def ends_apart(sim: Simulation) -> None:
    """The second node can not call the first."""
    first = sim.nodes[0].address
    sim.network.cut = lambda datagram, source, to: to == first and datagram[1] in (Kind.INIT, Kind.AUTH)


def test_a_dead_address_does_not_hold_a_handshake_up() -> None:
    sim = Simulation()
    ends_apart(sim)
    at(sim, DEAD, sim.nodes[1].address)
    sim.run(1.5)  # one attempt alone takes longer
    assert sim.agree()
    assert sim.nodes[0].opened[-1].at == sim.nodes[1].address


def test_the_address_that_answered_is_the_first_to_be_tried() -> None:
    sim, sent = Simulation(), list[Address]()
    one = sim.nodes[0]
    ends_apart(sim)
    at(sim, DEAD, sim.nodes[1].address)
    sim.run(20)

    def watch(datagram: bytes, source: Address, to: Address) -> bool:
        if source == one.address:
            sent.append(to)
        return False

    sim.network.cut = watch
    assert one.links is not None
    one.links.rotate(None, one.clock)
    sim.run(1)
    assert len(one.opened) >= 2
    assert DEAD not in sent


def test_where_only_small_datagrams_pass_another_address_has_its_turn() -> None:
    sim, narrow = Simulation(), Address("192.0.2.2", 51800)
    wide = narrow._replace(port=51900)
    sim.nodes[1].address = wide
    ends_apart(sim)
    apart = sim.network.cut
    assert apart is not None

    def cut(datagram: bytes, source: Address, to: Address) -> bool:
        if to == narrow and datagram[1] == Kind.COOKIE_REQUEST:
            sim._transmit(datagram, source, wide)
        return apart(datagram, source, to) or to == narrow

    sim.network.cut = cut
    at(sim, narrow, wide)
    sim.run(20)
    assert sim.agree()


def test_each_address_is_asked_a_few_times_an_attempt() -> None:
    sim, sent = Simulation(), list[Address]()
    named = [Address(f"198.51.100.{i}", 51800) for i in range(9)]
    ends_apart(sim)
    at(sim, *named)

    def swallow(datagram: bytes, source: Address, to: Address) -> bool:
        sent.append(to)
        return True

    sim.network.cut = swallow
    sim.run(4.5)
    counts = [sent.count(address) for address in named]
    assert max(counts) <= TRIES
    assert counts.count(0) == len(named) - TRIES
    sim.run(20)
    assert set(named) <= set(sent)


def test_a_peer_is_called_where_it_was_heard() -> None:
    sim = Simulation()
    ends_apart(sim)
    one, other = sim.nodes
    assert one.links is not None
    at(sim, DEAD)
    heard: list[Address] = []
    one.links.look_elsewhere(lambda peer: heard)
    sim.run(0.6)
    heard.append(HEARD)  # while the attempt is under way
    other.address = HEARD
    sim.run(3)
    assert sim.agree()


def test_a_peer_that_started_anew_is_called_at_once() -> None:
    sim = Simulation()
    sim.run(20)
    one, other = sim.nodes
    other.crash()
    first = one.address
    sim.network.cut = lambda datagram, source, to: to == first and source.port == 51800  # it can not call
    sim.restart(other)
    sim.network.cut = lambda datagram, source, to: (
        to == first and datagram[1] in (Kind.INIT, Kind.COOKIE_REQUEST)
    )
    sim.run(10)
    assert not sim.agree()
    assert one.links is not None
    one.links.restarted(other.identity.node_id, one.clock)
    sim.run(3)
    assert sim.agree()


def test_a_peer_that_calls_is_heard_while_this_end_calls_in_vain() -> None:
    """The end with the lower node id starts; where it reaches nobody, the other's attempt is taken."""
    sim = Simulation()
    at(sim, DEAD)
    sim.run(3.5)
    assert sim.agree()
