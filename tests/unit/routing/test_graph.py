# SPDX-License-Identifier: GPL-3.0-or-later
"""What is weak about a measured mesh: what was planted is named, and a sound mesh has nothing."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from phantommesh.routing import drift
from phantommesh.routing.graph import Analysis, Finding, Station, Survey, Weakness, analyse
from phantommesh.routing.neighbours import Link
from phantommesh.routing.ways import Kind
from phantommesh.trust.identity import NodeId

NOW = 1_900_000_000.0
DIRECT = Link(0.02, 0.001, 0.0, Kind.DIRECT)


def node(number: int) -> NodeId:
    return NodeId(number.to_bytes(16, "big"))


class Mesh:
    """A mesh whose members all tell the truth."""

    def __init__(self) -> None:
        self.stations: dict[NodeId, Station] = {}
        self.words: dict[NodeId, dict[NodeId, Link]] = {}
        self.before: drift.Summary | None = None

    def member(self, region: str = "", place: str = "", *, relay: bool = False) -> NodeId:
        one = node(len(self.stations) + 1)
        places = frozenset([place or f"at {len(self.stations)}"])
        self.stations[one] = Station(f"m{len(self.stations)}", region, relay=relay, places=places)
        self.words[one] = {}
        return one

    def join(self, one: NodeId, two: NodeId, link: Link = DIRECT) -> None:
        self.words[one][two] = self.words[two][one] = link

    def whole(self, size: int, region: str = "") -> list[NodeId]:
        """Members that are all joined with each other."""
        members = [self.member(region) for _ in range(size)]
        for one, two in itertools.combinations(members, 2):
            self.join(one, two)
        return members

    def ring(self, size: int) -> list[NodeId]:
        """Members that are joined with the two next ones on either side: three links at least have to end
        before two parts part."""
        members = [self.member() for _ in range(size)]
        for at, step in itertools.product(range(size), (1, 2)):
            self.join(members[at], members[(at + step) % size])
        return members

    def analyse(self) -> Analysis:
        return analyse(Survey(self.stations, self.words, len(self.stations) - 1.0, NOW, self.before))


def found(analysis: Analysis, kind: Weakness, members: Iterable[NodeId]) -> Finding:
    wanted = tuple(sorted(members))
    return next(f for f in analysis.findings if f.kind is kind and tuple(sorted(f.members)) == wanted)


def test_twenty_planted_weaknesses_are_all_named() -> None:
    mesh = Mesh()
    core = mesh.ring(60)
    free = iter(core)
    for _ in range(4):  # three that are reached by one member alone
        gate, behind = next(free), mesh.whole(3)
        for one in behind:
            mesh.join(gate, one)
    bridges = [(next(free), mesh.whole(4)[0]) for _ in range(4)]
    for bridge in bridges:
        mesh.join(*bridge)
    pairs = list[list[NodeId]]()
    for _ in range(3):  # four that hang on two links
        ends, cluster = [next(free), next(free)], mesh.whole(4)
        for gate, inner in zip(ends, cluster, strict=False):
            mesh.join(gate, inner)
        pairs.append([*ends, *cluster[:2]])
    shared = list[tuple[list[NodeId], list[NodeId]]]()
    for number in range(3):  # four that are reached by two members, which are behind one address
        gates, cluster = [next(free), next(free)], mesh.whole(4)
        for gate, inner in itertools.product(gates, cluster):
            mesh.join(gate, inner)
        for gate in gates:
            mesh.stations[gate] = replace(mesh.stations[gate], places=frozenset([f"shared {number}"]))
        shared.append((gates, cluster))
    islands = [mesh.whole(4), mesh.whole(5)]
    relays = list[list[NodeId]]()
    for number in range(2):  # pairs whose two relays are at one place
        two = [next(free), next(free)]
        for relay in two:
            mesh.stations[relay] = replace(
                mesh.stations[relay], relay=True, places=frozenset([f"relays {number}"])
            )
        link = Link(0.1, 0.001, 0.0, Kind.RELAYED, relays=(two[0], two[1]))
        mesh.join(core[40 + number], core[50 + number], link)
        relays.append(two)
    busy = next(free)
    mesh.stations[busy] = replace(mesh.stations[busy], relay=True)
    for number in range(8):
        mesh.join(core[30 + number], core[50 - number], Link(0.1, 0.0, 0.0, Kind.RELAYED, relays=(busy,)))
    slow = core[-1]
    before = mesh.analyse().summary
    assert before is not None
    mesh.before = drift.Summary(NOW - drift.DAY, before.members)
    for other in list(mesh.words[slow]):
        mesh.join(slow, other, replace(DIRECT, rtt=0.2))

    analysis = mesh.analyse()
    named = [found(analysis, Weakness.CUT_MEMBER, [gate]) for gate in core[:4]]
    assert all(len(finding.cut) == 3 for finding in named)
    named += [found(analysis, Weakness.BRIDGE, bridge) for bridge in bridges]
    weak = [found(analysis, Weakness.WEAK_CUT, ends) for ends in pairs]
    assert all(len(finding.cut) == 4 for finding in weak)
    for gates, cluster in shared:
        place = found(analysis, Weakness.SHARED_PLACE, gates)
        assert place.cut == tuple(sorted(cluster))
        named.append(place)
    named += [found(analysis, Weakness.SPLIT, island) for island in islands]
    named += [found(analysis, Weakness.SHARED_RELAY_PLACE, two) for two in relays]
    named.append(found(analysis, Weakness.BUSY_RELAY, [busy]))
    named.append(found(analysis, Weakness.DRIFT, [slow]))
    assert len({id(one) for one in named + weak}) == 20
    assert all(one.text and one.fix for one in analysis.findings)


@given(st.integers(5, 24), st.data())
def test_a_sound_mesh_has_no_weakness(size: int, data: st.DataObject) -> None:
    mesh = Mesh()
    members = mesh.ring(size)
    more = st.tuples(st.sampled_from(members), st.sampled_from(members)).filter(lambda two: two[0] != two[1])
    for one, two in data.draw(st.lists(more, max_size=40)):
        mesh.join(one, two, replace(DIRECT, rtt=data.draw(st.floats(0.001, 0.3))))
    for relay in members[:2]:
        mesh.stations[relay] = replace(mesh.stations[relay], relay=True)
    for one, two in data.draw(st.lists(more, max_size=10)):
        if two not in mesh.words[one]:
            mesh.join(one, two, Link(0.1, 0.0, 0.0, Kind.RELAYED, relays=(members[0], members[1])))
    mesh.before = drift.Summary(NOW - drift.DAY, mesh.analyse().summary.members)  # type: ignore[union-attr]
    assert mesh.analyse().findings == ()


def test_a_link_that_one_end_alone_claims_holds_nothing_together() -> None:
    """So a member cannot have the mesh look sound."""
    mesh = Mesh()
    members, behind = mesh.ring(6), mesh.whole(3)
    for one in behind:
        mesh.join(members[0], one)
    mesh.words[behind[0]] |= dict.fromkeys(members, DIRECT)
    assert set(found(mesh.analyse(), Weakness.CUT_MEMBER, [members[0]]).cut) == set(behind)


@given(
    st.dictionaries(st.integers(1, 12), st.dictionaries(st.integers(1, 14), st.integers(0, 2))),
)
def test_whatever_members_say_is_survived(said: dict[int, dict[int, int]]) -> None:
    words = {
        node(one): {node(two): Link(0.1, 0.0, 0.5, Kind(k), relays=(node(k),)) for two, k in word.items()}
        for one, word in said.items()
    }
    stations = {node(n): Station(f"m{n}", places=frozenset(["x"])) for n in range(1, 11)}
    analysis = analyse(Survey(stations, words, 3.0, NOW))
    assert all(set(finding.members) <= stations.keys() for finding in analysis.findings)


def test_a_peer_that_is_nearer_by_a_relay_is_named_until_it_is_not() -> None:
    mesh = Mesh()
    members = mesh.ring(8)
    me, peer, relay = members[:3]
    mesh.stations[relay] = replace(mesh.stations[relay], relay=True)
    mesh.join(me, peer, replace(DIRECT, rtt=0.2))
    survey = Survey(mesh.stations, mesh.words, 7.0, NOW, me=me)
    first = analyse(survey)
    assert first.detours == {peer: relay}
    assert "by way of" in found(first, Weakness.DETOUR, [peer, relay]).text
    # What is said is what was compared: here the round trip is the shorter one, and loses half of all.
    lossy = Mesh()
    lossy.stations, lossy.words = dict(mesh.stations), {one: dict(word) for one, word in mesh.words.items()}
    lossy.join(me, peer, replace(DIRECT, rtt=0.01, loss=0.5))
    told = found(
        analyse(Survey(lossy.stations, lossy.words, 7.0, NOW, me=me)), Weakness.DETOUR, [peer, relay]
    )
    assert "costs 117 ms directly and 44 ms by way of" in told.text
    mesh.join(me, peer, replace(DIRECT, rtt=0.042))  # a little more than by the relay: not worth a change
    assert analyse(replace(survey, held=first.detours)).detours == first.detours
    assert not analyse(survey).detours
    mesh.join(me, peer, DIRECT)
    assert not analyse(replace(survey, held=first.detours)).detours


def test_a_whole_region_is_named_by_its_name() -> None:
    mesh = Mesh()
    gate, behind = mesh.ring(7)[0], mesh.whole(5, region="ap")
    for one in behind:
        mesh.join(gate, one)
    assert "region ap (5 members)" in found(mesh.analyse(), Weakness.CUT_MEMBER, [gate]).text
    alone = Mesh()
    gate, single = alone.ring(7)[0], alone.member("ap")
    alone.join(gate, single)
    assert "m7" in found(alone.analyse(), Weakness.CUT_MEMBER, [gate]).text  # one member, by its own name


def test_networkx_is_not_imported_before_there_is_something_to_analyse() -> None:
    code = "import sys, phantommesh.routing.graph; assert 'networkx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
