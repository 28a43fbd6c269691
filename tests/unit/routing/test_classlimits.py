# SPDX-License-Identifier: GPL-3.0-or-later
"""By whose hands the packets of a class may go."""

from __future__ import annotations

import pytest

from phantommesh.config.sections import IntentSection
from phantommesh.dimensions import ALL, DIMENSIONS, bits
from phantommesh.routing.classlimits import DIRECTLY, ClassLimits, Hand, passing
from phantommesh.routing.ways import Kind, Way
from phantommesh.scatter.intents import Intents
from phantommesh.scatter.limits import DIRECT, FREE
from phantommesh.trust.identity import NodeId, format_node_id
from phantommesh.wireguard.device import Endpoint


def hand(name: str, region: str) -> Hand:
    node_id = NodeId(name.encode().ljust(16, b"."))
    return Hand(node_id, name, region, format_node_id(node_id))


EU, US = hand("ams", "eu"), hand("nyc", "us")
HANDS: list[list[Hand | None]] = [[], [EU], [US], [EU, US], [None], [], [US]]
AT = Endpoint("192.0.2.9", 51810)


def of(*dimensions: int) -> int:
    return bits(i in dimensions for i in range(DIMENSIONS))


@pytest.mark.parametrize(
    ("intent", "allowed", "keys"),
    [
        (IntentSection("a", "order", ports=(1,), direct_only=True), of(0, 5), ["intent.a.direct_only"]),
        (IntentSection("a", "order", ports=(1,), relays=("ams",)), of(0, 1, 5), ["intent.a.relays"]),
        (IntentSection("a", "order", ports=(1,), relays=(EU.text,)), of(0, 1, 5), ["intent.a.relays"]),
        (
            IntentSection("a", "order", ports=(1,), never_relays=("ams",)),
            of(0, 2, 5, 6),
            ["intent.a.never_relays"],
        ),
        (IntentSection("a", "order", ports=(1,), regions=("us",)), of(0, 2, 5, 6), ["intent.a.regions"]),
        (
            IntentSection("a", "order", ports=(1,), never_regions=("us",)),
            of(0, 1, 5),
            ["intent.a.never_regions"],
        ),
        (
            IntentSection("a", "order", ports=(1,), never_regions=("us",), never_relays=("ams",)),
            of(0, 5),
            ["intent.a.never_regions", "intent.a.never_relays"],
        ),
        (IntentSection("a", "order", ports=(1,), hands=2), of(0, 1, 2, 3, 5, 6), ["intent.a.hands"]),
    ],
)
def test_a_class_may_take_the_dimensions_by_whose_hands_it_may_go(
    intent: IntentSection, allowed: int, keys: list[str]
) -> None:
    intents = Intents((intent, IntentSection("b", "order", ports=(2,))))
    limits = ClassLimits(intents.constrained)
    found = limits.limits(intents.classes("db"), HANDS)
    assert found.allowed == (allowed, ALL)
    assert limits.keys("a", HANDS) == keys
    wanted = (DIRECT, EU.node_id, US.node_id, EU.node_id, DIRECT, DIRECT, US.node_id)
    assert found.hands == (wanted if intent.hands > 1 else FREE.hands)


def test_a_relay_that_may_forward_closes_a_dimension_and_is_no_hand_of_it_yet() -> None:
    """Two hands are wanted: a leg that no packet goes by is none."""
    intents = Intents(
        (
            IntentSection("a", "order", ports=(1,), direct_only=True),
            IntentSection("b", "order", ports=(2,), hands=2),
        )
    )
    lent: list[list[Hand | None]] = [[DIRECTLY, EU] for _ in range(DIMENSIONS)]
    limits = ClassLimits(intents.constrained)
    found = limits.limits(intents.classes("db"), lent)
    assert found.allowed == (0, ALL) and found.hands == (DIRECT,) * DIMENSIONS
    assert limits.keys("a", lent) == ["intent.a.direct_only"]


def test_without_constraints_nothing_follows_the_ways() -> None:
    intents = Intents((IntentSection("a", "order", ports=(1,)),))
    limits = ClassLimits(intents.constrained)
    assert not intents.constrained and not limits.concern(intents.classes("db"))
    assert limits.limits(intents.classes("db"), HANDS) is FREE


def test_constraints_of_one_peers_class_do_not_concern_another_peer() -> None:
    intents = Intents((IntentSection("a", "order", ("db",), ports=(1,), direct_only=True),))
    limits = ClassLimits(intents.constrained)
    assert limits.concern(intents.classes("db")) and not limits.concern(intents.classes("web"))


def test_relays_and_members_that_join_connections_pass_packets_on() -> None:
    assert passing([None, Way(Kind.DIRECT, AT), Way(Kind.FRAMED, AT)]) == set()
    ways = [Way(Kind.RELAYED, AT, b"r"), Way(Kind.FRAMED, AT, b"c"), None]
    assert passing(ways) == {b"r", b"c"}


def test_a_class_needs_relays_that_it_allows_but_where_it_allows_none() -> None:
    sections = (
        IntentSection("a", "order", ports=(1,), direct_only=True),
        IntentSection("b", "order", ports=(2,), regions=("eu",), hands=2),
        IntentSection("c", "order", ports=(3,)),
    )
    intents = Intents(sections)
    (need,) = ClassLimits(intents.constrained).needs(
        intents.classes("db"), {one.node_id: one for one in (EU, US)}.get
    )
    assert need.relays == 2 and need.may(NodeId(EU.node_id))
    assert not need.may(NodeId(US.node_id)) and not need.may(NodeId(b"nobody".ljust(16)))
