# SPDX-License-Identifier: GPL-3.0-or-later
from collections import Counter

import msgspec
import pytest

from phantommesh.management.layout import Place
from phantommesh.management.mapview import MOST_LINKS, MOST_MEMBERS, MapView, pairs, picture
from phantommesh.management.topoview import MeasuredLink, TopologyView
from phantommesh.management.views import Flow, PathView
from tests.support.bigmesh import BigMesh
from tests.support.fakenode import FakeNode


def mapped(
    node: FakeNode, paths: list[PathView] | None = None, topology: TopologyView | None = None
) -> MapView:
    status, peers = node.status(), node.peers()
    paths = node.measured() if paths is None else paths
    topology = node.surveyed() if topology is None else topology
    places = {one: Place(0.5, 0.5) for one in (status.node_id, *(peer.node_id for peer in peers))}
    drawn = pairs(status, peers, paths, topology)
    return picture(status, peers, node.links(), paths, topology, drawn, places)


def test_this_node_and_its_peers_are_members_and_links() -> None:
    found = mapped(BigMesh(30))
    assert found.node_id == "id000" and found.members[0].name == "gateway-000"
    assert Counter(member.health for member in found.members) == {"good": 22, "poor": 6, "down": 3}
    own = [link for link in found.links if link.own]
    assert {link.two for link in own} == {f"id{number:03}" for number in range(1, 31)}
    assert {link.one for link in own} == {"id000"}
    told = [link for link in found.links if not link.own]
    assert len(told) == 30 * 29 / 2 and found.surveyed_s == 42.0


@pytest.mark.parametrize(
    ("traffic", "change", "health"),
    [
        ("up", {}, "good"),
        ("up", {"loss": 0.05}, "poor"),
        ("up", {"way": "relayed", "via": "pm-2"}, "poor"),
        ("up", {"way": "tcp"}, "poor"),
        ("dark", {}, "down"),
        ("unkeyed", {}, "down"),
        ("joining", {}, "unknown"),
        ("left", {}, "unknown"),
    ],
)
def test_health(traffic: Flow, change: dict[str, object], health: str) -> None:
    class One(FakeNode):
        def peers(self) -> list:  # type: ignore[type-arg]
            return [msgspec.structs.replace(super().peers()[0], traffic=traffic)]

    node = One(1)
    fine = [msgspec.structs.replace(node.paths()[1], dimension=index) for index in range(7)]
    found = mapped(node, [msgspec.structs.replace(path, **change) for path in fine])
    assert found.members[1].health == health == found.links[0].health


def test_a_peer_with_a_dark_dimension_is_poor() -> None:
    assert [member.health for member in mapped(FakeNode(1)).members] == ["good", "poor"]


def test_a_large_mesh_is_cut_to_the_worst() -> None:
    node = BigMesh(1_500)
    found = mapped(node)
    assert len(found.members) == MOST_MEMBERS and found.members_total == 1_501
    assert sum(member.health == "down" for member in found.members) == 150
    assert len(found.links) <= MOST_LINKS and found.links_total == 1_500 * 1_499 / 2
    shown = {member.node_id for member in found.members}
    assert all(link.one in shown and link.two in shown for link in found.links)


def test_what_is_told_of_strangers_is_left_out() -> None:
    node = FakeNode(2)
    told = MeasuredLink(one="pm-1", two="nobody", way="direct", rtt_s=0.1, jitter_s=0, loss=0, capacity=0)
    topology = msgspec.structs.replace(node.surveyed(), links=[told])
    assert all(link.own for link in mapped(node, topology=topology).links)


def test_without_a_survey_this_nodes_own_links_are_there() -> None:
    found = mapped(FakeNode(2), topology=TopologyView())
    assert found.surveyed_s is None and len(found.links) == 2
