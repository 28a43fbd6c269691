# SPDX-License-Identifier: GPL-3.0-or-later
"""WireGuard keys that are replaced one dimension at a time: the others and the chain must not notice."""

from __future__ import annotations

import random

import pytest

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.link.context import Timing
from phantommesh.link.machine import Links
from phantommesh.link.psk import PskPhase
from phantommesh.link.wire import Kind
from tests.simulation.pair import Network, Node, Simulation


def links_of(node: Node) -> Links:
    assert node.links is not None
    return node.links


def psks(sim: Simulation, a: int, b: int) -> list[bytes | None]:
    return list(sim.nodes[a].kernel.psks[sim.nodes[b].identity.node_id])


def whole(sim: Simulation) -> None:
    assert sim.agree() and sim.alive() == ALL
    for a, b in ((0, 1), (1, 0)):
        state = sim.state(a, b)
        assert state.phase is PskPhase.FRESH and not state.chain_reset
        assert links_of(sim.nodes[a]).bound(sim.nodes[b].identity.node_id) == ALL
        assert links_of(sim.nodes[a]).dials(sim.nodes[b].identity.node_id) == ALL


def no_false_claim(sim: Simulation) -> None:
    """Two ends that hold one agreement never both call a dimension keyed on which their PSKs differ."""
    a, b = (links_of(sim.nodes[i])._peers[sim.nodes[1 - i].identity.node_id].psk for i in (0, 1))
    if a.committed is None or b.committed is None or a.committed.chain_id != b.committed.chain_id:
        return
    both = a.committed.bound & b.committed.bound
    for i, (ours, theirs) in enumerate(zip(a.committed.psks, b.committed.psks, strict=True)):
        assert (ours == theirs) == bool(both >> i & 1), i


def run(sim: Simulation, seconds: float) -> None:
    """Let time pass, and look often."""
    end = sim.now + seconds
    while sim.now < end - 1e-9:
        sim.run(min(0.02, end - sim.now))
        no_false_claim(sim)


def established(**kwargs: object) -> Simulation:
    sim = Simulation(**kwargs)  # type: ignore[arg-type]
    sim.run(10)
    whole(sim)
    return sim


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("dimension", range(DIMENSIONS))
@pytest.mark.parametrize("heard_after", [0.0, 0.3, 6.0])
def test_the_other_six_keep_their_psks_and_sessions(changed: int, dimension: int, heard_after: float) -> None:
    sim = established()
    mine, other = sim.nodes[changed], sim.nodes[1 - changed]
    bit = 1 << dimension
    before = psks(sim, 0, 1)
    mine.replace_key(dimension)
    sim.reconcile(mine)
    assert [a == b for a, b in zip(psks(sim, 0, 1), before, strict=True)].count(False) <= 1
    assert psks(sim, changed, 1 - changed)[dimension] not in before
    assert links_of(mine).bound(other.identity.node_id) == ALL & ~bit
    assert links_of(mine).dials(other.identity.node_id) == ALL & ~bit
    told = False
    for step in range(160):
        if step * 0.05 >= heard_after and not told:
            told = True
            sim.tell(other, mine)
            now = psks(sim, 0, 1)[dimension], psks(sim, 1, 0)[dimension]
            assert now[0] != now[1] and not set(now) & set(before)  # fails closed
            assert not links_of(other).dials(mine.identity.node_id) & bit
        sim.run(0.05)
        assert sim.alive() & ~bit == ALL & ~bit
        if not told:
            assert psks(sim, 0, 1)[dimension] != psks(sim, 1, 0)[dimension]
    whole(sim)
    assert not [alarm for node in sim.nodes for alarm in node.alarms]


@pytest.mark.parametrize("changed", [0, 1])
def test_the_new_psk_is_agreed_within_a_second_of_the_record(changed: int) -> None:
    sim = established()
    sim.nodes[changed].replace_key(2)
    sim.run(0.3)
    sim.tell(sim.nodes[1 - changed], sim.nodes[changed])
    sim.run(1.0)
    assert sim.agree() and sim.alive() & ~4 == ALL & ~4
    epochs = {sim.state(0, 1).epoch, sim.state(1, 0).epoch}
    assert epochs == {2}  # one handshake did it


def test_a_peer_that_never_hears_of_it_keeps_six_dimensions_through_rotations() -> None:
    sim = established(timing=Timing(rotate=30.0))
    a, b = sim.nodes
    a.replace_key(5)
    for _ in range(400):
        sim.run(1)
        assert sim.alive() & ~32 == ALL & ~32
    assert sim.state(0, 1).epoch > 10 and sim.state(0, 1).phase is sim.state(1, 0).phase is PskPhase.FRESH
    assert links_of(a).bound(b.identity.node_id) == links_of(b).bound(a.identity.node_id) == ALL & ~32
    ours, theirs = psks(sim, 0, 1), psks(sim, 1, 0)
    assert [x == y for x, y in zip(ours, theirs, strict=True)].count(False) == 1 and ours[5] != theirs[5]
    assert not [alarm for node in sim.nodes for alarm in node.alarms]
    sim.tell(b, a)
    sim.run(8)
    whole(sim)


def test_nodes_that_know_none_of_each_others_keys_still_talk() -> None:
    """Each was off while the other replaced all of its keys: by the channel they can exchange records."""
    sim = established()
    a, b = sim.nodes
    for node in (a, b):
        node.crash()
    for node in (a, b):
        for dimension in range(DIMENSIONS):
            node.replace_key(dimension)
    before = len(a.opened), len(b.opened)
    stale = {node.identity.node_id: node.auth() for node in (a, b)}
    for node in (a, b):
        node.start()
    for node, other in ((a, b), (b, a)):
        auth = stale[other.identity.node_id]
        known = auth.__class__(
            auth.node_id, auth.public_key, auth.valid_until, tuple(bytes([9, i]) * 16 for i in range(7)),
            auth.endpoints,
        )  # fmt: skip
        sim.carry_out(node, links_of(node).set_peers({other.identity.node_id: known}, node.clock))
    sim.run(5)
    assert len(a.opened) > before[0] and len(b.opened) > before[1]  # there is a control channel
    assert sim.state(0, 1).phase is sim.state(1, 0).phase is PskPhase.NONE  # and nothing else
    assert not set(psks(sim, 0, 1)) & set(psks(sim, 1, 0))
    sim.tell(a, b)
    sim.tell(b, a)
    sim.run(8)
    assert sim.agree() and sim.alive() == ALL


@pytest.mark.parametrize("seed", range(12))
def test_both_ends_replace_keys_at_random_over_a_bad_network(seed: int) -> None:
    rng = random.Random(seed)
    sim = established(seed=seed)
    sim.network = Network(loss=rng.choice([0.0, 0.1, 0.3]), duplicate=0.1, delay=(0.001, 0.1))
    for _ in range(25):
        node = rng.choice(sim.nodes)
        node.replace_key(rng.randrange(DIMENSIONS))
        run(sim, rng.choice([0.0, 0.01, 0.05, 0.3, 3.0]))
        if rng.random() < 0.8:
            sim.tell(sim.nodes[0 if node is sim.nodes[1] else 1], node)
        run(sim, rng.choice([0.0, 0.01, 0.05, 0.3, 3.0, 20.0]))
        if rng.random() < 0.4:
            chosen = rng.choice(sim.nodes)
            links_of(chosen).rotate(None, chosen.clock)
            run(sim, rng.uniform(0.0, 0.1))
        assert sim.state(0, 1).phase is not PskPhase.RANDOM
    sim.network = Network()
    sim.tell(sim.nodes[0], sim.nodes[1])
    sim.tell(sim.nodes[1], sim.nodes[0])
    sim.run(30)
    whole(sim)
    assert not [alarm for node in sim.nodes for alarm in node.alarms if alarm.kind != "failed"]


@pytest.mark.parametrize("steps", range(1, 30))
def test_a_key_replaced_in_the_middle_of_a_handshake(steps: int) -> None:
    for changed in (0, 1):
        sim = established()
        starter = sim.nodes[0]
        links_of(starter).rotate(None, starter.clock)
        sim.run(0.0)
        for _ in range(steps):
            sim.run(0.002)
        sim.nodes[changed].replace_key(1)
        run(sim, 0.1)
        sim.tell(sim.nodes[1 - changed], sim.nodes[changed])
        run(sim, 8)
        whole(sim)


def test_a_key_replaced_while_an_ack_is_missing_leaves_the_others_to_alternation() -> None:
    """The other end may or may not have the new PSKs, and no message gets through to ask."""
    sim = established()
    a, b = sim.nodes
    sim.network.block = {Kind.ACK}
    links_of(a).rotate(None, a.clock)
    sim.run(0.5)
    a.replace_key(3)
    sim.network.block = set(Kind)
    for _ in range(150):
        run(sim, 1)
    assert [x == y for x, y in zip(psks(sim, 0, 1), psks(sim, 1, 0), strict=True)].count(False) == 1
    sim.network.block = set()
    sim.tell(b, a)
    sim.run(30)
    whole(sim)


def swapping(sim: Simulation) -> None:
    """A key is replaced, and the other end hears of it a little later; 1.2 s in all."""
    sim.nodes[0].replace_key(4)
    sim.run(0.2)
    sim.tell(sim.nodes[1], sim.nodes[0])
    sim.run(1.0)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_crash_at_every_step_of_a_replacement_heals(victim: int) -> None:
    """The new key is on disk before anybody hears of it, so the victim comes back with it."""
    seen: list[str] = []
    sim = established(seed=7)
    sim.on_event = lambda name, node: seen.append(name)
    swapping(sim)
    assert len(seen) >= 20
    for step in range(len(seen)):
        sim = established(seed=7)
        count = 0

        def crash(name: str, node: Node, sim: Simulation = sim, step: int = step) -> None:
            nonlocal count
            count += 1
            if count == step + 1:
                sim.nodes[victim].crash()

        sim.on_event = crash
        swapping(sim)
        sim.on_event = None
        sim.run(0.5)
        sim.restart(sim.nodes[victim])
        sim.run(4)
        sim.tell(sim.nodes[1 - victim], sim.nodes[victim])  # by the channel that the handshake keyed
        sim.run(30)
        assert sim.agree() and sim.alive() == ALL, step
