# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab's nodes are behind: the words of `lab up`, and the routers that come of them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.nursery.lab.errors import LabError
from phantommesh.nursery.lab.net import (
    LabNode,
    LabSpec,
    bridge_commands,
    delay_command,
    delay_commands,
    uplink_commands,
)
from phantommesh.nursery.lab.routers import cables, routers_of, rules, settings
from phantommesh.nursery.lab.underlay import (
    KINDS,
    Nat,
    Regions,
    Underlay,
    parse_block,
    parse_mtu,
    parse_nat,
    parse_regions,
)


def lab(nat: str = "public", nodes: int = 5, **more: Any) -> LabSpec:
    return LabSpec("x", nodes, 1, underlay=Underlay(nat=parse_nat(nat), **more))


def test_kinds_are_dealt_in_turn_from_node_2_on() -> None:
    underlay = Underlay(nat=parse_nat("preserve,random-drop+2,double"))
    assert underlay.nat[2].layers == ("preserve-drop", "preserve-drop")
    assert [numbers for _, numbers in underlay.places(8)] == [(1,), (2,), (3, 4), (5,), (6,), (7, 8)]
    assert [underlay.describe(number, 8) for number in (1, 4, 5, 6)] == [
        "public",
        "random-drop",
        "preserve-drop/preserve-drop",
        "preserve",
    ]
    assert underlay.wanted_nodes() == 5
    assert Underlay(nat=parse_nat("random+3")).places(3)[-1][1] == (2, 3)  # room for one more


@given(
    st.lists(st.sampled_from(["none", "firewall", "random+2", "double", "preserve/random+3"])),
    st.integers(2, 40),
)
def test_every_node_has_one_place_and_a_way_to_the_segments(kinds: list[str], nodes: int) -> None:
    underlay = Underlay(nat=parse_nat(",".join(kinds)) if kinds else (), no_udp=(nodes,))
    assert [number for _, numbers in underlay.places(nodes) for number in numbers] == list(
        range(1, nodes + 1)
    )
    spec = LabSpec("x", nodes, 1, underlay=underlay)
    lines = bridge_commands(spec) + [line for router in spec.routers for line in cables(router, "x", 1)]
    made = [line.split()[-1] for line in lines if "name up0" in line]
    assert sorted(made) == sorted(f"x-{number}" for number in range(1, nodes + 1))
    assert len({line.split()[2] for line in bridge_commands(spec) if "veth" in line}) == len(
        [router for router in spec.routers if router.outer]
    ) + nodes - sum(len(router.nodes) for router in spec.routers if router.inner is None)


@pytest.mark.parametrize(
    ("read", "text", "said"),
    [
        (parse_nat, "symmetric", "preserve-drop"),
        (parse_nat, "preserve,", "preserve-drop"),
        (parse_nat, "preserve+0", "preserve+2"),
        (parse_nat, "preserve+x", "preserve+2"),
        (parse_nat, "random/random/random", "2 at most"),
        (parse_nat, "firewall/random", "preserve/random"),
        (parse_nat, "public+2", "once for each"),
        (parse_nat, "firewall+2", "once for each"),
        (parse_mtu, "100", "576"),
        (parse_mtu, "1380:loud", "silent"),
        (parse_mtu, "", "576"),
        (parse_block, "tcp", "udp:3+4"),
        (parse_block, "udp:", "udp:3+4"),
        (parse_block, "udp:0", "udp:3+4"),
        (parse_regions, "two", "2x40"),
        (parse_regions, "1x40", "2 to 8"),
        (parse_regions, "2x0", "2 to 8"),
        (parse_regions, "a:3,b:x,delay=4", "2x40"),
    ],
)
def test_refuses_other_words_and_names_the_fix(read: object, text: str, said: str) -> None:
    with pytest.raises(LabError) as caught:
        read(text)  # type: ignore[operator]
    assert said in caught.value.fix


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"no_udp": (6,)}, "--block udp:NUMBER"),
        ({"regions": Regions(2, 40.0, (3, 1))}, "--nodes 4"),
        ({"regions": Regions(6, 40.0)}, "--nodes 6"),
    ],
)
def test_refuses_what_does_not_fit_the_nodes(more: dict[str, Any], said: str) -> None:
    with pytest.raises(LabError) as caught:
        lab(**more)
    assert said in caught.value.fix


def test_words_of_mtu_block_and_regions() -> None:
    assert parse_mtu("1380") == (1380, False)
    assert parse_mtu("1280:silent") == (1280, True)
    assert parse_block("udp") == ()
    assert parse_block("udp:4+3") == (3, 4)
    assert parse_regions("3") == Regions(3, 40.0)
    assert [parse_regions("2x40").of(number, 5) for number in range(1, 6)] == [0, 0, 0, 1, 1]
    assert [parse_regions("a:1,b:4,delay=2.5ms").of(number, 5) for number in range(1, 6)] == [0, 1, 1, 1, 1]


def test_a_router_does_what_its_kind_says() -> None:
    routers = {router.namespace: router for router in lab("preserve,random-drop,firewall,double").routers}
    assert list(routers) == ["x-r2", "x-r3", "x-r4", "x-o5", "x-r5"]
    assert "masquerade random" in rules(routers["x-r3"])
    assert "masquerade random" not in rules(routers["x-r2"])
    drops = {name: rules(router).count('iifname "w*" ct state new drop') for name, router in routers.items()}
    assert drops == {"x-r2": 1, "x-r3": 2, "x-r4": 2, "x-o5": 2, "x-r5": 2}
    assert "masquerade" not in rules(routers["x-r4"])
    assert "net.ipv4.conf.l0.proxy_arp=1" in settings(routers["x-r4"], 1)
    assert "address add 10.201.0.5/24 dev w0" in cables(routers["x-o5"], "x", 1)
    assert "route add default via 172.20.0.254 dev w0 metric 100" in cables(routers["x-r5"], "x", 1)


def test_udp_of_a_public_node_is_dropped_by_a_router_and_the_node_keeps_its_address() -> None:
    spec = lab(no_udp=())
    assert [router.nodes for router in spec.routers] == [(2,), (3,), (4,), (5,)]
    assert "10.201.0.2" in rules(spec.routers[0]) and "udp drop" in rules(spec.routers[0])
    assert "ct state" not in rules(spec.routers[0])
    assert "address add 10.201.0.2/24 dev up0" in uplink_commands(spec, LabNode("x", 2))
    shared = lab("preserve+2", no_udp=(3,)).routers[0]
    assert "192.168.0.3" in rules(shared) and "192.168.0.2" not in rules(shared)
    assert [router.first for router in routers_of("x", 2, Underlay(no_udp=(1,)))] == [1]


def test_mtu_stands_on_segments_and_is_said_by_interfaces_only_aloud() -> None:
    aloud, silent = lab("public,preserve", mtu=1380), lab("public,preserve", mtu=1380, silent=True)
    for spec in (aloud, silent):
        assert "link set n2u0 mtu 1380 master seg0 up" in bridge_commands(spec)
        assert "link set n3u0 mtu 1380 master seg0 up" in bridge_commands(spec)
    assert "link set up0 mtu 1380" in uplink_commands(aloud, LabNode("x", 2))
    assert not any("mtu" in line for line in uplink_commands(aloud, LabNode("x", 3)))  # its router says it
    assert "link set w0 mtu 1380 up" in cables(aloud.routers[0], "x", 1, 1380)
    assert not any("mtu" in line for line in uplink_commands(silent, LabNode("x", 2)))


def test_regions_are_bridges_with_half_the_round_trip_on_the_way_out() -> None:
    spec = lab(regions=Regions(2, 40.0, (2, 3)))
    assert "link set n2u0 master reg0u0 up" in bridge_commands(spec)
    assert "link set n3u0 master reg1u0 up" in bridge_commands(spec)
    assert delay_commands(spec) == [
        f"qdisc add dev x{at}u0 root netem delay 20ms limit 10000" for at in (0, 1)
    ]


def test_regions_without_netem_are_joined_by_a_program() -> None:
    spec = lab(regions=Regions(2, 40.0, (2, 3)))
    lines = bridge_commands(spec, netem=False)
    for at in (0, 1):
        for end, bridge in ((f"x{at}u0", f"reg{at}u0"), (f"c{at}u0", "seg0")):
            made, joined = f"tuntap add dev {end} mode tap", f"link set {end} master {bridge} up"
            assert lines.index(made) < lines.index(joined)
    assert delay_command(spec)[2:] == ["phantommesh.nursery.lab.delay", "0.02", "x0u0:c0u0", "x1u0:c1u0"]
    assert delay_command(lab()) == []


def test_an_underlay_is_the_same_after_it_was_written_down() -> None:
    underlay = Underlay(nat=(Nat(), *parse_nat(",".join(KINDS))), no_udp=(), regions=parse_regions("2x40"))
    assert msgspec.json.decode(msgspec.json.encode(underlay), type=Underlay) == underlay
