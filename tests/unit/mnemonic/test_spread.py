# SPDX-License-Identifier: GPL-3.0-or-later
"""A mesh of nodes that tell each other of attackers, as `nursery/members/hinting.py` has them."""

from __future__ import annotations

from collections import deque
from random import Random

from phantommesh.mnemonic.hints import SETTLED, Hinter, Hints
from phantommesh.mnemonic.saying import Hint, Said, sign_hints
from phantommesh.nursery.members.hinting import PASSED_TO, TOLD
from phantommesh.trust.identity import Identity, NodeId
from tests.support.makemesh import identity

NOW = 1_790_000_000.0
HONEST, OTHER, LIAR = identity("honest"), identity("other"), identity("liar")
HINTERS = {
    one.node_id: Hinter(one.public_key, by) for one, by in ((HONEST, b"one"), (OTHER, b"two"), (LIAR, b"two"))
}
BAD, VICTIM = "198.51.100.7", "192.0.2.1"
MEMBERS = {VICTIM: NOW - 2 * SETTLED}


class Mesh:
    def __init__(self, size: int) -> None:
        self.random = Random(1)
        names = [*HINTERS, *(NodeId(number.to_bytes(16, "big")) for number in range(size - len(HINTERS)))]
        self.nodes = {name: Hints(name, HINTERS.get) for name in names}
        self.messages = 0

    def tell(self, who: Identity, source: str, made: float = NOW) -> None:
        """Let a member tell others of an attacker, and those pass it on until nobody does."""
        said = Said(who.node_id, int(made * 1000), (Hint("scan", source, 100, int(NOW + 600)),))
        data = sign_hints(who, said)
        under_way = deque([(who.node_id, 0, TOLD)])
        while under_way:
            sender, hops, to = under_way.popleft()
            for other in self.random.sample(sorted(self.nodes.keys() - {sender}), to):
                self.messages += 1
                further = self.nodes[other].take(data, sender, hops, MEMBERS.get, NOW)
                if further is not None:
                    under_way.append((other, further, PASSED_TO))

    def share(self, address: str, least: float = 0.0) -> float:
        """The share of nodes at which hints about an address lower the threshold by more than that."""
        return sum(one.lowering(address, NOW) > least for one in self.nodes.values()) / len(self.nodes)


def test_nine_in_ten_of_200_members_hear_of_an_attacker_at_once() -> None:
    mesh = Mesh(200)
    mesh.tell(HONEST, BAD)
    assert mesh.share(BAD) >= 0.85 and mesh.messages <= 2.5 * 200
    for number in range(3):
        mesh.tell(HONEST, BAD, made=NOW + number + 1)
    assert mesh.share(BAD) >= 0.95


def test_nearly_half_of_1000_members_hear_of_an_attacker_at_once() -> None:
    mesh = Mesh(1000)
    mesh.tell(HONEST, BAD)
    assert mesh.share(BAD) >= 0.4 and mesh.messages <= 1000


def test_two_hinters_lower_more_than_one_and_nobody_bans_by_that() -> None:
    mesh = Mesh(200)
    mesh.tell(HONEST, BAD)
    assert mesh.share(BAD, 0.5) == 0.0
    mesh.tell(OTHER, BAD)
    assert mesh.share(BAD, 0.5) > 0.1 and mesh.share(BAD, 0.75) == 0.0


def test_a_liar_that_hints_a_member_is_believed_by_nobody_who_heard_and_nobody_passes_it_on() -> None:
    mesh = Mesh(200)
    mesh.tell(LIAR, BAD)
    believed = mesh.share(BAD)
    mesh.messages = 0
    for number in range(10):
        mesh.tell(LIAR, VICTIM, made=NOW + number + 1)
    assert mesh.share(VICTIM) == 0.0 and mesh.messages == 10 * TOLD
    weights = [one.reputations.weight(LIAR.node_id, NOW) for one in mesh.nodes.values()]
    assert weights.count(0.0) >= 0.25 * len(weights) and mesh.share(BAD) < believed
