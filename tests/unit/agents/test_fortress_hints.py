# SPDX-License-Identifier: GPL-3.0-or-later
"""FORTRESS with hints of other members: whom others saw is banned sooner; a liar has nobody banned."""

from __future__ import annotations

from ipaddress import ip_network

from phantommesh.acl.bans import Bans, Shield, parse_network
from phantommesh.acl.threats import ENOUGH, Offences
from phantommesh.agents.actions import Ban
from phantommesh.agents.base import Observation
from phantommesh.agents.fortress import HINT, Fortress, FortressSeen, Source, kinds_of
from phantommesh.mnemonic.hints import HOUR, Hinter, Hints
from phantommesh.mnemonic.saying import LIFE, Hint, Said, sign_hints
from phantommesh.node.steps import Moment
from phantommesh.trust.identity import Identity
from tests.support.makemesh import identity

NOW = 1_790_000_000.0
ATTACKER, MEMBER = "198.51.100.7", "198.51.100.20"
A, B = identity("a"), identity("b")
ME = identity("me").node_id


class Node:
    """One node's offences, bans and hints, with FORTRESS above them."""

    def __init__(self, *, members: tuple[str, ...] = ()) -> None:
        self.offences, self.bans, self.agent = Offences(), Bans(), Fortress()
        who = {A.node_id: Hinter(A.public_key, b"one"), B.node_id: Hinter(B.public_key, b"two")}
        self.hints = Hints(ME, who.get)
        self.since = dict.fromkeys(members, NOW - 2 * HOUR)
        self.shield = Shield((), ((ip_network(host), "a member's") for host in members))

    def hear(self, who: Identity, *sources: str) -> None:
        said = tuple(Hint("scan", source, 100, int(NOW + LIFE)) for source in sources)
        data = sign_hints(who, Said(who.node_id, int(NOW * 1000), said))
        self.hints.take(data, who.node_id, 0, self.since.get, NOW)

    def scanned(self, host: str) -> None:
        """A neighbour touches one more port of WireGuard's."""
        self.offences.add(f"{host}/32", "scan", 1.0, "neighbour", 0.0)

    def look(self) -> list[Ban]:
        sources = tuple(
            Source(
                seen, lowering=self.hints.lowering(seen.block.partition("/")[0], NOW),
                member=self.shield.of_member(parse_network(seen.block)),
            )
            for seen in self.offences.bound(0.0)
            if self.bans.get(seen.block) is None
        )  # fmt: skip
        done = []
        for made in self.agent.observe(Observation(at=Moment(0.0, NOW), seen=FortressSeen(sources))):
            if isinstance(made.action, Ban):
                hinted = HINT in {one.what for one in made.evidence}
                self.bans.add(
                    parse_network(made.action.network), "hinted" if hinted else "own", made.action.seconds,
                    made.why, NOW, self.shield, kinds=kinds_of(made),
                )  # fmt: skip
                self.hints.banned(made.action.network.partition("/")[0], NOW, alone=not hinted)
                done.append(made.action)
        return done

    def ports_until_banned(self, host: str = ATTACKER) -> int:
        for ports in range(1, 20):
            self.scanned(host)
            if self.look():
                return ports
        raise AssertionError("never banned")


def test_a_node_that_got_the_hint_bans_sooner() -> None:
    alone, told, told_twice = Node(), Node(), Node()
    told.hear(A, ATTACKER)
    told_twice.hear(A, ATTACKER)
    told_twice.hear(B, ATTACKER)
    ports = [node.ports_until_banned() for node in (alone, told, told_twice)]
    assert ports[0] == ENOUGH["scan"] and ports[0] > ports[1] >= ports[2] >= 1
    assert [ban.origin for node in (alone, told) for ban in node.bans] == ["own", "hinted"]


def test_a_hint_alone_bans_nobody() -> None:
    node = Node()
    node.hear(A, ATTACKER)
    node.hear(B, ATTACKER)
    assert node.look() == [] and node.hints.lowering(ATTACKER, NOW) > 0.5


def test_a_liar_that_hints_members_gets_none_banned_and_loses_its_weight() -> None:
    members = tuple(f"198.51.100.{i}" for i in range(20, 40))
    node = Node(members=members)
    before = node.hints.reputations.weight(A.node_id, NOW)
    node.hear(A, *members, ATTACKER)
    # Even where members seem to scan, which anybody on their link may have made up.
    for host in members:
        for _ in range(8):
            node.scanned(host)
    assert node.look() == [] and len(node.bans) == 0
    assert node.hints.reputations.weight(A.node_id, NOW) == 0.0 < before
    assert node.ports_until_banned() == ENOUGH["scan"]  # and its other words count for nothing


def test_an_honest_hinter_gains_weight_by_bans_that_needed_no_hint() -> None:
    node = Node()
    before = node.hints.reputations.weight(A.node_id, NOW)
    node.hear(A, ATTACKER)
    for _ in range(10):
        node.scanned(ATTACKER)
    assert node.look() and [ban.origin for ban in node.bans] == ["own"]
    assert node.hints.reputations.weight(A.node_id, NOW) > before
