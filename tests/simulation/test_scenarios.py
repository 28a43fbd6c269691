# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole links under a virtual clock: bad networks, crashes at every step, silence, many nodes."""

from __future__ import annotations

import random

import pytest

from phantommesh.endpoint import Address
from phantommesh.link.context import Timing
from phantommesh.link.machine import Links
from phantommesh.link.psk import PskPhase
from phantommesh.link.wire import Kind
from tests.simulation.pair import Network, Node, Simulation

ALL = 0x7F


def links_of(node: Node) -> Links:
    assert node.links is not None
    return node.links


def whole(sim: Simulation) -> None:
    """Assert that both ends have the same PSKs, and say so."""
    assert sim.agree()
    for state in (sim.state(0, 1), sim.state(1, 0)):
        assert state.phase is PskPhase.FRESH
    assert sim.state(0, 1).epoch == sim.state(1, 0).epoch


def no_false_fresh(sim: Simulation) -> None:
    """No end may call a link fresh that it has not agreed anew for 180 s, and no PSK is ever all zero."""
    for me, other in ((0, 1), (1, 0)):
        node = sim.nodes[me]
        if node.links is None:
            continue
        state = sim.state(me, other)
        if state.phase is PskPhase.FRESH:
            assert state.age is not None and state.age < 180.0
        for psks in node.kernel.psks.values():
            assert bytes(32) not in psks


def test_a_clean_network_keys_all_seven_in_two_round_trips() -> None:
    sim = Simulation()
    sim.run(0.3)
    whole(sim)
    assert len(set(sim.nodes[0].kernel.psks[sim.nodes[1].identity.node_id])) == 7
    assert dict(sim.sent) == {
        Kind.COOKIE_REQUEST: 1, Kind.COOKIE_REPLY: 1, Kind.INIT: 2, Kind.RESP: 5, Kind.AUTH: 3, Kind.ACK: 1,
    }  # fmt: skip
    sim.run(4)
    assert sim.state(0, 1).confirmed == sim.state(1, 0).confirmed == ALL


def test_a_link_left_alone_is_rekeyed_every_90_to_125_seconds() -> None:
    sim = Simulation()
    changes = 0
    before = None
    for _ in range(1000):
        sim.run(1)
        no_false_fresh(sim)
        if sim.state().epoch != before:
            changes, before = changes + 1, sim.state().epoch
        assert sim.state().phase is PskPhase.FRESH
    assert 8 <= changes <= 11
    assert not sim.nodes[0].alarms and not sim.nodes[1].alarms
    assert {n.links.drops.total() for n in sim.nodes if n.links} == {0}


@pytest.mark.parametrize("seed", range(4))
def test_thirty_percent_loss_with_duplicates_and_reordering(seed: int) -> None:
    sim = Simulation(seed=seed)
    sim.network = Network(loss=0.3, duplicate=0.2, delay=(0.001, 0.2))
    sim.run(30)
    assert sim.state().epoch >= 1
    for _ in range(60):
        sim.run(10)
        no_false_fresh(sim)
    assert sim.state().epoch >= 4
    assert not [a for n in sim.nodes for a in n.alarms if a.kind in ("stale", "random", "chain-reset")]
    sim.network = Network()
    sim.run(130)
    whole(sim)


@pytest.mark.parametrize("seed", range(3))
def test_every_datagram_twice_and_in_any_order(seed: int) -> None:
    sim = Simulation(seed=seed)
    sim.network = Network(duplicate=1.0, delay=(0.0, 0.08))
    for _ in range(5):
        sim.run(60)
        no_false_fresh(sim)
    whole(sim)
    assert sim.state().epoch >= 3


@pytest.mark.parametrize("seed", range(4))
def test_glare_ends_in_one_agreement(seed: int) -> None:
    """Both ends are told to rotate at the same moment, again and again."""
    sim = Simulation(seed=seed)
    sim.network = Network(delay=(0.001, 0.05), loss=0.1 if seed % 2 else 0.0)
    sim.run(5)
    rng = random.Random(seed)
    for _ in range(20):
        for node in sim.nodes if rng.random() < 0.5 else reversed(sim.nodes):
            links_of(node).rotate(None, node.clock)
            sim.carry_out(node, links_of(node).tick(node.clock))
            sim.run(rng.choice([0.0, 0.001, 0.005, 0.01, 0.02, 0.05]))
        sim.run(30 if seed % 2 else 8)
        no_false_fresh(sim)
        assert sim.agree(), (sim.state(0, 1), sim.state(1, 0))
    whole(sim)


def test_crossed_handshakes_where_the_higher_node_was_first() -> None:
    """The lower node has answered an INIT when it starts on its own: both handshakes run to their end."""
    for lag in range(30):
        sim = Simulation(seed=lag)
        sim.run(5)
        a, b = sim.nodes
        links_of(b).rotate(None, b.clock)
        sim.carry_out(b, links_of(b).tick(b.clock))
        sim.run(lag / 1000)
        links_of(a).rotate(None, a.clock)
        sim.carry_out(a, links_of(a).tick(a.clock))
        sim.run(3)
        assert sim.agree(), lag
        whole(sim)


def test_a_lost_ack_is_healed_by_alternation_alone() -> None:
    """After AUTH nothing more gets through on the control port: WireGuard's own handshakes tell."""
    sim = Simulation()
    sim.run(10)
    before = sim.state().epoch
    a = sim.nodes[0]
    sim.network.block = {Kind.ACK}
    links_of(a).rotate(None, a.clock)
    sim.run(1)
    sim.network.block = set(Kind)
    assert sim.state(1, 0).epoch == before + 1 and sim.state(0, 1).epoch == before
    assert not sim.agree()
    sim.run(5)
    assert sim.state().phase is PskPhase.UNSURE
    for _ in range(150):
        sim.run(1)
        no_false_fresh(sim)
    assert sim.agree()
    assert sim.state().epoch == before + 1
    assert not [x for x in a.alarms if x.kind != "failed"]


def test_an_auth_that_never_arrived_is_noticed_by_alternation_alone() -> None:
    sim = Simulation()
    sim.run(10)
    before = sim.state().epoch
    sim.network.block = {Kind.AUTH}
    links_of(sim.nodes[0]).rotate(None, sim.nodes[0].clock)
    sim.run(1)
    sim.network.block = set(Kind)
    for _ in range(150):
        sim.run(1)
        no_false_fresh(sim)
    assert sim.agree()
    assert sim.state().epoch == sim.state(1, 0).epoch == before


@pytest.mark.parametrize("kind", [Kind.ACK, Kind.AUTH])
def test_a_lost_ack_or_auth_is_healed_by_a_new_handshake(kind: Kind) -> None:
    sim = Simulation()
    sim.run(10)
    before = sim.state().epoch
    sim.network.block = {kind}
    links_of(sim.nodes[0]).rotate(None, sim.nodes[0].clock)
    sim.run(4.9)  # between giving up and starting anew
    assert sim.state().phase is PskPhase.UNSURE
    sim.network.block = set()
    sim.run(10)
    whole(sim)
    assert sim.state().epoch > before
    assert not sim.state().chain_reset and not sim.state(1, 0).chain_reset


def test_the_next_resp_alone_settles_a_lost_ack() -> None:
    """The RESP builds on the chain of the handshake in doubt: so the other end has that chain, however the
    RESP's handshake ends."""
    sim = Simulation()
    sim.run(10)
    before = sim.state().epoch
    sim.network.block = {Kind.ACK}
    links_of(sim.nodes[0]).rotate(None, sim.nodes[0].clock)
    sim.run(4.9)
    assert sim.state().phase is PskPhase.UNSURE
    sim.network.block = {Kind.AUTH, Kind.ACK}
    sim.run(2)
    assert sim.agree()
    assert sim.state().epoch == sim.state(1, 0).epoch == before + 1
    assert sim.state().phase is PskPhase.FRESH


def test_acks_lost_for_ten_minutes_never_part_the_ends_for_long() -> None:
    """Each attempt installs at the responder only; the next one, or a WireGuard handshake, catches up."""
    sim = Simulation()
    sim.run(10)
    sim.network.block = {Kind.ACK}
    apart = 0
    for _ in range(600):
        sim.run(1)
        no_false_fresh(sim)
        apart = 0 if sim.agree() else apart + 1
        assert apart < 180
    sim.network.block = set()
    sim.run(60)
    whole(sim)


def events_of(sim: Simulation, seconds: float) -> list[tuple[str, Node]]:
    seen: list[tuple[str, Node]] = []
    sim.on_event = lambda name, node: seen.append((name, node))
    sim.run(seconds)
    sim.on_event = None
    return seen


def prepared(established: bool) -> Simulation:
    """A link before its first handshake, or one with an agreement and a second handshake about to start."""
    sim = Simulation(seed=7)
    if established:
        sim.run(6)
        links_of(sim.nodes[0]).rotate(None, sim.nodes[0].clock)
    return sim


@pytest.mark.parametrize("established", [False, True], ids=["first", "rekey"])
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("pause", [0.05, 30.0], ids=["at once", "late"])
def test_a_crash_at_every_step_heals(established: bool, victim: int, pause: float) -> None:
    """Every event is one step: each datagram sent or arriving, before and after signing and installing."""
    steps = len(events_of(prepared(established), 0.4))
    assert steps >= 30
    for step in range(steps):
        sim = prepared(established)
        count = 0

        def crash(name: str, node: Node, sim: Simulation = sim, step: int = step) -> None:
            nonlocal count
            count += 1
            if count == step + 1:
                sim.nodes[victim].crash()

        sim.on_event = crash
        sim.run(0.4)
        sim.on_event = None
        sim.run(pause)
        no_false_fresh(sim)
        sim.restart(sim.nodes[victim])
        for _ in range(3):
            sim.run(15)
            no_false_fresh(sim)
        assert sim.agree(), step
        whole(sim)


def test_a_node_that_never_comes_back_is_reported_and_closed() -> None:
    sim = Simulation()
    sim.run(10)
    a, b = sim.nodes
    b.crash()
    sim.run(160)
    assert not [x for x in a.alarms if x.kind in ("stale", "random")]
    old = list(a.kernel.psks[b.identity.node_id])
    sim.run(30)
    assert [x.kind for x in a.alarms if x.kind != "failed"] == ["stale"]
    assert sim.state().phase is PskPhase.STALE and a.kernel.psks[b.identity.node_id] == old
    sim.run(125)
    assert [x.kind for x in a.alarms if x.kind != "failed"] == ["stale", "random"]
    assert sim.state().phase is PskPhase.RANDOM
    assert not set(old) & set(a.kernel.psks[b.identity.node_id])


@pytest.mark.parametrize("apart", [2.0, 5.5, 9.0])
def test_a_newcomer_that_is_reached_a_little_later_is_no_alarm(apart: float) -> None:
    """A newcomer behind a NAT is reached once members carry for it; the first attempt at it fails."""
    sim = Simulation()
    sim.network.block = set(Kind)
    sim.run(apart)
    sim.network.block = set()
    sim.run(30)
    whole(sim)
    assert not [alarm for node in sim.nodes for alarm in node.alarms]


def test_a_member_that_is_never_reached_is_one_alarm_and_one_that_falls_silent_another() -> None:
    sim = Simulation()
    sim.network.block = set(Kind)
    sim.run(120)
    assert {"failed"} == {alarm.kind for node in sim.nodes for alarm in node.alarms}
    assert all([alarm.kind for alarm in node.alarms] in ([], ["failed"]) for node in sim.nodes)
    sim = Simulation()
    sim.run(10)
    sim.network.block = set(Kind)
    sim.run(140)
    assert ["failed"] in [[alarm.kind for alarm in node.alarms] for node in sim.nodes]


def test_a_control_port_blocked_for_400_seconds() -> None:
    sim = Simulation()
    sim.run(10)
    born = sim.now - (sim.state().age or 0.0)
    sim.network.block = set(Kind)
    for _ in range(400):
        sim.run(1)
        no_false_fresh(sim)
    for node in sim.nodes:
        times = [(round(at - born), kind) for at, kind in node.alarmed_at if kind in ("stale", "random")]
        assert times == [(180, "stale"), (300, "random")]
    assert sim.state(0, 1).phase is sim.state(1, 0).phase is PskPhase.RANDOM
    assert not sim.agree()
    sim.network.block = set()
    sim.run(40)
    whole(sim)
    assert not sim.state().chain_reset  # the chain outlives the keys


def test_clocks_that_agree_with_nobody() -> None:
    sim = Simulation(offsets=(-900.0, 1.7e9))
    sim.network = Network(loss=0.1, delay=(0.001, 0.1))
    sim.run(400)
    sim.network = Network()
    sim.run(130)
    whole(sim)
    assert sim.state().epoch >= 4
    assert sim.state(0, 1).confirmed and sim.state(1, 0).confirmed


@pytest.mark.parametrize("rotate", [1.0, 3.0, 10.0])
def test_rotation_every_few_seconds(rotate: float) -> None:
    sim = Simulation(timing=Timing(rotate=rotate, jitter=0.2))
    for _ in range(60):
        sim.run(1)
        assert sim.state().phase is PskPhase.FRESH
    assert sim.state().epoch >= 0.8 * 60 / rotate
    assert {n.links.drops.total() for n in sim.nodes if n.links} == {0}
    assert not [a for n in sim.nodes for a in n.alarms]


def test_two_seconds_after_a_restart_the_link_is_back() -> None:
    for victim in (0, 1):
        sim = Simulation()
        sim.run(20)
        sim.nodes[victim].crash()
        sim.run(1)
        sim.restart(sim.nodes[victim])
        sim.run(2)
        whole(sim)
        resets = [a for a in sim.nodes[1 - victim].alarms if a.kind == "chain-reset"]
        assert len(resets) == 1
        assert sim.state(1 - victim, victim).chain_reset


def test_both_ends_restart_together() -> None:
    sim = Simulation()
    sim.run(20)
    for node in sim.nodes:
        node.crash()
    sim.run(5)
    for node in sim.nodes:
        sim.restart(node)
    sim.run(3)
    whole(sim)
    assert sim.state().epoch == 1


def test_a_rival_wg_set_is_undone_and_not_called_confirmed() -> None:
    sim = Simulation()
    sim.run(10)
    a, b = sim.nodes
    a.kernel.psks[b.identity.node_id][3] = b"rival" * 6 + b"!!"
    assert not sim.agree()
    sim.run(3)
    whole(sim)


def test_an_install_that_fails_on_one_end_is_said_and_heals() -> None:
    sim = Simulation()
    sim.run(10)
    sim.nodes[0].install_works = False
    sim.run(120)
    assert sim.state(0, 1).phase is not PskPhase.FRESH
    sim.nodes[0].install_works = True
    sim.run(60)
    whole(sim)


def test_a_node_whose_address_changes_is_not_locked_out() -> None:
    """Behind a NAT the old cookie is for another address; a half-open handshake is left behind."""
    sim = Simulation()
    sim.run(10)
    a, b = sim.nodes
    a.address = Address("198.51.100.77", 40000)
    links_of(b).set_peers({a.identity.node_id: a.auth()}, b.clock)
    sim.run(130)
    whole(sim)
    assert not [x for x in a.alarms + b.alarms if x.kind in ("stale", "random", "failed")]


def test_ten_nodes_key_all_pairs() -> None:
    sim = Simulation(nodes=10)
    sim.network = Network(loss=0.05, delay=(0.001, 0.03))
    sim.run(10)
    for a in range(10):
        for b in range(a):
            assert sim.agree(a, b), (a, b)
            assert sim.state(a, b).phase is sim.state(b, a).phase is PskPhase.FRESH
    psks = {psk for n in sim.nodes for row in n.kernel.psks.values() for psk in row}
    assert len(psks) == 45 * 7 and None not in psks and bytes(32) not in psks


def test_the_same_seed_gives_the_same_run() -> None:
    def run() -> list[object]:
        sim = Simulation(seed=3)
        sim.network = Network(loss=0.2, duplicate=0.1, delay=(0.001, 0.1))
        sim.run(200)
        return [dict(sim.sent), [dict(links_of(n).drops) for n in sim.nodes], sim.state().epoch]

    assert run() == run()
