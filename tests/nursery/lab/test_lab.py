# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the lab that need neither root nor nodes."""

import pytest

from phantommesh.checksum import checksum
from phantommesh.management.views import LinkView, Status
from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.mesh import LabLink, NodeView, links_between
from phantommesh.nursery.lab.net import (
    LabNode,
    LabSpec,
    bridge_commands,
    nodes_of,
    one_error,
    uplink_commands,
)
from phantommesh.nursery.lab.ping import Flow, Traffic
from phantommesh.nursery.lab.run import links_table

STATUS = Status(
    mesh="lab", node="n", node_id="x", version="1", uptime_s=1.0, backend="kernel", role="node",
    ip4="100.64.0.1", ip6="fd00::1", peers_total=1, peers_up=1, degraded=[],
    certificate_expires="2030-01-01T00:00:00Z",
)  # fmt: skip


def make_link(
    peer: str, *, dimensions: int = 7, state: str = "fresh", epoch: int = 1, age: float = 1.0
) -> LinkView:
    return LinkView(
        peer=peer, node_id="x", epoch=epoch, state=state, role="initiator", dimensions=dimensions,  # type: ignore[arg-type]
        handshake_age_s=age, psk_age_s=age, chain_reset=False, last_error=None,
    )  # fmt: skip


def make_view(*links: LinkView) -> NodeView:
    return NodeView(STATUS, {link.peer: link for link in links})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"nodes": 1}, "--nodes"),
        ({"nodes": 201}, "--nodes"),
        ({"uplinks": 0}, "--uplinks"),
        ({"uplinks": 9}, "--uplinks"),
        ({"backend": "magic"}, "--backend"),
        ({"name": "../etc"}, "a-z"),
        ({"name": ""}, "a-z"),
        ({"name": "A"}, "a-z"),
    ],
)
def test_refuses_what_cannot_be_built_and_names_the_fix(arguments: dict[str, str], said: str) -> None:
    with pytest.raises(LabError) as caught:
        LabSpec(**arguments)  # type: ignore[arg-type]
    assert said in caught.value.fix


def test_every_node_has_a_cable_to_every_segment() -> None:
    spec = LabSpec("x", nodes=3, uplinks=2)
    lines = bridge_commands(spec)
    assert sum(line.startswith("link add seg") for line in lines) == 2
    assert "link add n3u1 type veth peer name up1 netns x-3" in lines
    assert "link set n3u1 master seg1 up" in lines
    assert "address add 10.201.1.3/24 dev up1" in uplink_commands(spec, LabNode("x", 3))


def test_interface_names_fit_the_kernel() -> None:
    ports = [
        line.split()[2] for line in bridge_commands(LabSpec("x", nodes=200, uplinks=8)) if "veth" in line
    ]
    assert len(set(ports)) == 1600
    assert max(len(port) for port in ports) <= 15


def test_link_of_a_pair_is_its_weaker_end() -> None:
    nodes = nodes_of(LabSpec("x", nodes=2))
    views = {
        "x-1": make_view(make_link("x-2", dimensions=7, epoch=4, age=3.0)),
        "x-2": make_view(make_link("x-1", dimensions=5, epoch=3, age=9.0, state="unsure")),
    }
    assert links_between(nodes, views) == [
        LabLink(a="x-1", b="x-2", epoch=3, dimensions=5, handshake_age_s=9.0, state="fresh/unsure")
    ]
    del views["x-2"]
    assert links_between(nodes, views)[0].dimensions == 0
    assert links_between(nodes, {})[0].state == "none"


def test_node_is_whole_only_with_every_peer_fresh_in_all_dimensions() -> None:
    assert make_view(make_link("b"), make_link("c")).whole(["b", "c"])
    assert not make_view(make_link("b")).whole(["b", "c"])
    assert not make_view(make_link("b", dimensions=6)).whole(["b"])
    assert not make_view(make_link("b", state="stale")).whole(["b"])


def test_flow_counts_each_reply_once_and_measures_the_silence() -> None:
    flow = Flow("a", "b", "192.0.2.1", pending={1: 10.0, 2: 11.0, 3: 14.0})
    assert flow.answered(1, 10.5)
    assert not flow.answered(1, 10.6)
    assert flow.answered(2, 11.5)
    assert flow.answered(3, 14.25)
    assert not flow.answered(9, 15.0)
    assert (flow.received, flow.rtt_s, flow.silence_s, flow.last_answered) == (3, 0.25, 3.0, 14.0)


def test_nodes_that_fail_together_are_one_error() -> None:
    with pytest.raises(LabError, match="first"), one_error():
        raise ExceptionGroup("", [ExceptionGroup("", [LabError("first")]), LabError("second")])
    with pytest.raises(ExceptionGroup), one_error():
        raise ExceptionGroup("", [LabError("ours"), ValueError("a bug")])


def test_request_carries_a_checksum_that_verifies() -> None:
    request = Traffic([], 1.0)._request(3, 65535)
    assert checksum(request) == 0
    assert request[:2] == b"\x08\x00"


def test_table_shows_pings_only_where_there_are_flows() -> None:
    links = [LabLink(a="a", b="b", epoch=1, dimensions=7, handshake_age_s=None, state="fresh")]
    assert len(links_table(links).columns) == 5
    assert len(links_table(links, [Flow("a", "b", "192.0.2.1")]).columns) == 7
