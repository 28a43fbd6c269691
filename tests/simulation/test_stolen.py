# SPDX-License-Identifier: GPL-3.0-or-later
"""One identity on two machines, as the links see it: the sign appears within an epoch, whoever starts."""

from __future__ import annotations

import pytest

from phantommesh.link.effects import ResetSign
from phantommesh.link.wire import Kind
from phantommesh.trust.identity import Identity, NodeId
from tests.simulation.pair import Network, Node, Simulation

EPOCH = 110.0  # s: the longest time until either end starts a handshake


def steal(sim: Simulation, victim: int) -> Node:
    """A second machine with a member's identity and WireGuard keys, at an address of its own."""
    sim.stolen = True
    thief = Node(sim, 7, sim.nodes[victim].identity, 0.0)
    thief.wg_keys = sim.nodes[victim].wg_keys
    thief.start()
    return thief


def appear(sim: Simulation, thief: Node) -> None:
    """The thief starts: he knows everybody, and everybody is told of his address by his record."""
    others = [node for node in sim.nodes if node.identity is not thief.identity]
    assert thief.links is not None
    for other in others:
        thief.kernel.add(other.identity.node_id)
    sim.nodes.append(thief)
    sim.carry_out(thief, thief.links.set_peers({o.identity.node_id: o.auth() for o in others}, thief.clock))
    for other in others:
        assert other.links is not None
        known = {p: peer.auth for p, peer in other.links._peers.items()}
        sim.carry_out(
            other, other.links.set_peers(known | {thief.identity.node_id: thief.auth()}, other.clock)
        )


def signs(node: Node) -> set[ResetSign | None]:
    return {alarm.sign for alarm in node.alarms}


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_copied_identity_shows_at_every_peer_and_at_the_victim(victim: int) -> None:
    sim = Simulation(nodes=3)
    sim.run(100)
    thief = steal(sim, victim)
    peers = [node for i, node in enumerate(sim.nodes) if i != victim]
    appear(sim, thief)
    sim.run(2 * EPOCH)
    for peer in peers:
        assert ResetSign.SUPERSEDED in signs(peer)
    assert signs(sim.nodes[victim]) & {ResetSign.UNKNOWN, ResetSign.UNANSWERED}


class Impostor:
    """Signs with a key of his own in another's name: he stole memory, but no identity key."""

    def __init__(self, node_id: NodeId) -> None:
        self.node_id, self._own = node_id, Identity.from_seed(b"impostor" * 4)
        self.public_key = self._own.public_key

    def sign(self, data: bytes, context: bytes) -> bytes:
        return self._own.sign(data, context)


@pytest.mark.parametrize("victim", [0, 1])
def test_who_stole_memory_but_no_identity_key_is_out_after_one_handshake(victim: int) -> None:
    """The thief has every PSK and chain key of the moment, and can send. He cannot know the next agreement,
    which mixes a fresh ML-KEM and X25519 exchange. Nor can he go on with the chain: he cannot sign."""
    sim = Simulation()
    sim.run(100)
    owner, peer = sim.nodes[victim], sim.nodes[1 - victim]
    assert owner.links is not None and peer.links is not None
    psk = owner.links._peers[peer.identity.node_id].psk
    stolen = psk.committed
    assert stolen is not None
    thief = steal(sim, victim)
    assert thief.links is not None
    thief.identity = Impostor(owner.identity.node_id)  # type: ignore[assignment]
    address, auth = peer.address, peer.auth()
    sim.nodes.append(thief)
    thief.kernel.add(peer.identity.node_id)
    sim.carry_out(thief, thief.links.set_peers({peer.identity.node_id: auth}, thief.clock))
    thief.links._peers[peer.identity.node_id].psk.committed = stolen
    assert address == auth.endpoints[0]
    sim.run(EPOCH)
    assert peer.links.drops["signature"] > 0
    assert not signs(peer) and not signs(owner)
    assert psk.committed is not None and psk.committed.epoch > stolen.epoch
    old = {secret.reveal() for secret in (*stolen.psks, stolen.chain_key, stolen.scatter)}
    new = {s.reveal() for s in (*psk.committed.psks, psk.committed.chain_key, psk.committed.scatter)}
    assert not old & new
    theirs = peer.links._peers[owner.identity.node_id].psk.committed
    assert theirs is not None and theirs.chain_id == psk.committed.chain_id


def test_an_agreement_whose_end_was_cut_off_for_ten_minutes_brings_no_false_alarm() -> None:
    """The ACK is lost, and then the way for longer than a PSK lives: only one end knows what was agreed."""
    sim = Simulation()
    sim.run(20)
    sim.network.block = {Kind.ACK}
    sim._wireguard = lambda: None  # type: ignore[method-assign]  # its handshakes would end the doubt
    while not any(n.links and any(p.psk.staged for p in n.links._peers.values()) for n in sim.nodes):
        sim.run(0.1)
    sim.run(1)  # AUTH is there, ACK is not
    sim.network.cut = lambda *_: True
    sim.run(600)
    del sim._wireguard
    sim.network = Network()
    sim.run(130)
    assert sim.agree()
    assert not [a for n in sim.nodes for a in n.alarms if a.kind == "chain-reset"]
