# SPDX-License-Identifier: GPL-3.0-or-later
"""The measured mesh as a graph, and what is weak about it. Pure; for thousands of members it takes seconds,
so it runs in a thread. NetworkX is imported with the first analysis: 10 MB that a small node need not have.

Two members are joined where packets go from one to the other without a third: directly, or in frames over
TCP. A pair that a relay joins is no edge: it depends on the relay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from random import Random
from typing import TYPE_CHECKING, Final

from phantommesh.routing.choice import hop, latency
from phantommesh.routing.drift import Summary, drifted, summary
from phantommesh.routing.neighbours import Link, Pair, Word, by_both, pair
from phantommesh.routing.ways import Kind
from phantommesh.trust.identity import NodeId

if TYPE_CHECKING:
    import networkx as nx

# Tuning.
LEAST: Final = 3  # members, below which nothing can come between two
MOST: Final = 64  # findings of one kind
NAMED: Final = 4  # members that a sentence names
WHOLE: Final = 200  # members, up to which betweenness is counted from all of them,
PIVOTS: Final = 8  # else from so many: it is most of the work
PLACES: Final = 256  # places whose loss is tried
BUSY_PAIRS: Final = 4  # relayed pairs, from which on
BUSY_SHARE: Final = 0.75  # of them by one relay is too much


class Weakness(IntEnum):
    """The kinds of finding, the worst first."""

    SPLIT = 0
    CUT_MEMBER = 1
    SHARED_PLACE = 2
    BRIDGE = 3
    SHARED_RELAY_PLACE = 4
    BUSY_RELAY = 5
    WEAK_CUT = 6
    DETOUR = 7
    DRIFT = 8

    @property
    def text(self) -> str:
        """As an operator reads it."""
        return (
            "split", "cut-member", "shared-place", "bridge", "shared-relay-place", "busy-relay", "weak-cut",
            "detour", "drift",
        )[self]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Station:
    """A member. ``places`` are the public addresses at which it is, ``nat``: it is behind a NAT."""

    name: str
    region: str = ""
    relay: bool = False
    nat: bool = False
    places: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """One weakness. ``members`` are those it is about, ``cut`` those that would be cut off."""

    kind: Weakness
    members: tuple[NodeId, ...]
    text: str
    fix: str
    cut: tuple[NodeId, ...] = ()


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a mesh: the members and the words of those that were heard. ``possible``: how many
    links a member would have told of on average, if it had all. ``at`` is in Unix seconds."""

    stations: Mapping[NodeId, Station]
    words: Mapping[NodeId, Word]
    possible: float
    at: float
    before: Summary | None = None
    me: NodeId | None = None
    held: Mapping[NodeId, NodeId] = field(default_factory=dict)
    """The relays by which peers were found to cost less than directly, by peer."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """What came of it. ``between``: by member, the share of the shortest ways between others that lead
    through it. ``edges`` has relayed pairs, too."""

    edges: Mapping[Pair, Link] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    between: Mapping[NodeId, float] = field(default_factory=dict)
    summary: Summary | None = None
    detours: Mapping[NodeId, NodeId] = field(default_factory=dict)


def analyse(survey: Survey) -> Analysis:
    """Find what is weak."""
    import networkx as nx

    words = {member: word for member, word in survey.words.items() if member in survey.stations}
    edges = by_both(words, survey.stations)
    graph = nx.Graph()
    graph.add_nodes_from(sorted(words))
    for (one, two), link in edges.items():
        if link.kind is not Kind.RELAYED:
            graph.add_edge(one, two, rtt=link.rtt)
    now = summary(edges, survey.possible, survey.at)
    findings, detours = list[Finding](), dict[NodeId, NodeId]()
    if len(graph) >= LEAST:
        say = _Sayer(survey.stations)
        cut_members = _bounded(_cut_members(graph, say))
        findings += _bounded(_splits(graph, say)) + cut_members
        alone = {finding.members[0] for finding in cut_members}
        findings += _bounded(_shared_places(graph, survey.stations, alone, say))
        findings += _bounded(_bridges(graph, say))
        findings += _bounded(_relays_at_one_place(edges, survey.stations, say))
        findings += _bounded(_busy_relays(edges, survey.stations, say))
        findings += _bounded(_weak_cuts(graph, say))
        detours = _detours(survey, edges)
        findings += _bounded(_slow_ways(survey, edges, detours, say))
        if survey.before is not None:
            findings += _bounded(_drifts(survey.before, now, say))
    between: dict[NodeId, float] = {}
    if len(graph) >= LEAST:
        pivots = None if len(graph) <= WHOLE else PIVOTS
        between = nx.betweenness_centrality(graph, k=pivots, weight="rtt", seed=1)
    return Analysis(edges, tuple(sorted(findings, key=lambda f: f.kind)), between, now, detours)


class _Sayer:
    """Puts members into words."""

    def __init__(self, stations: Mapping[NodeId, Station]) -> None:
        self._stations = stations
        self._regions = Counter(station.region for station in stations.values() if station.region)

    def __contains__(self, member: object) -> bool:
        return member in self._stations

    def name(self, member: NodeId) -> str:
        """One member."""
        return self._stations[member].name

    def some(self, members: Collection[NodeId]) -> str:
        """Several: all members of a region by its name."""
        regions = {self._stations[member].region for member in members}
        region = next(iter(regions)) if len(regions) == 1 else ""
        if region and len(members) == self._regions[region] > 1:
            return f"region {region} ({len(members)} members)"
        names = sorted(self.name(member) for member in members)
        if len(names) > NAMED:
            return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
        return " and ".join(([", ".join(names[:-1])] if names[1:] else []) + names[-1:])


def _bounded(findings: Iterator[Finding]) -> list[Finding]:
    return [finding for _, finding in zip(range(MOST), findings, strict=False)]


def _sides(graph: nx.Graph[NodeId], without: Iterable[NodeId] = ()) -> list[set[NodeId]]:
    """The parts of a graph without some members, the largest first."""
    import networkx as nx

    left = set(graph) - set(without)
    parts = nx.connected_components(graph.subgraph(left))
    return sorted(parts, key=lambda part: (-len(part), min(part)))


def _splits(graph: nx.Graph[NodeId], say: _Sayer) -> Iterator[Finding]:
    for part in _sides(graph)[1:]:
        cut = tuple(sorted(part))
        yield Finding(
            Weakness.SPLIT, cut,
            f"no link joins {say.some(part)} with the rest of the mesh",
            "open the ports of one of them, and see `phantommesh paths` there", cut,
        )  # fmt: skip


def _cut_members(graph: nx.Graph[NodeId], say: _Sayer) -> Iterator[Finding]:
    import networkx as nx

    for member in sorted(nx.articulation_points(graph)):
        home = nx.node_connected_component(graph, member)
        parts = _sides(graph.subgraph(home), [member])
        even = len(parts[0]) == len(parts[1])  # then none is the rest of the mesh
        cut = tuple(sorted(set().union(*(parts if even else parts[1:]))))
        off = "cut off from each other" if even else "cut off"
        yield Finding(
            Weakness.CUT_MEMBER, (member,),
            f"without {say.name(member)}, {say.some(cut)} would be {off}",
            "have another member be reached from there: open its ports, or set relay.offer = true on it",
            cut,
        )  # fmt: skip


def _shared_places(
    graph: nx.Graph[NodeId], stations: Mapping[NodeId, Station], alone: Collection[NodeId], say: _Sayer
) -> Iterator[Finding]:
    """Members behind one address: ways over them look different, and end together."""
    groups: dict[str, list[NodeId]] = {}
    for member in sorted(graph):
        for place in stations[member].places:
            groups.setdefault(place, []).append(member)
    homes = _sides(graph)
    seen = set[tuple[NodeId, ...]]()
    for place, members in sorted(groups.items(), key=lambda group: -len(group[1]))[:PLACES]:
        group = tuple(members)
        if (
            len(group) < 2
            or group in seen
            or any(one in alone for one in group)
            or len(group) > len(graph) - 2
        ):
            continue
        seen.add(group)
        left = [_sides(graph.subgraph(home), group) for home in homes if not home.isdisjoint(group)]
        cut = tuple(sorted(set[NodeId]().union(*(part for parts in left for part in parts[1:]))))
        if cut:
            yield Finding(
                Weakness.SHARED_PLACE, group,
                f"{say.some(group)} share the address {place}: without it, {say.some(cut)} would be cut off",
                "have a member elsewhere be reached from there", cut,
            )  # fmt: skip


def _bridges(graph: nx.Graph[NodeId], say: _Sayer) -> Iterator[Finding]:
    import networkx as nx

    for one, two in sorted(pair(*ends) for ends in nx.bridges(graph)):
        yield Finding(
            Weakness.BRIDGE, (one, two),
            f"the link of {say.name(one)} and {say.name(two)} is the only one between two parts of the mesh",
            "open the ports of more members on either side",
        )  # fmt: skip


def _relays_at_one_place(
    edges: Mapping[Pair, Link], stations: Mapping[NodeId, Station], say: _Sayer
) -> Iterator[Finding]:
    """Pairs whose two relays are behind one address. One finding for each set of relays."""
    pairs: dict[tuple[NodeId, ...], list[Pair]] = {}
    for ends, link in edges.items():
        relays = sorted(r for r in link.relays if r in stations)
        if link.kind is not Kind.RELAYED or len(relays) < 2:
            continue
        if frozenset.intersection(*(stations[relay].places for relay in relays)):
            pairs.setdefault(tuple(relays), []).append(ends)
    for group, some in sorted(pairs.items()):
        one, two = min(some)
        more = f" and {len(some) - 1} more pairs" if len(some) > 1 else ""
        yield Finding(
            Weakness.SHARED_RELAY_PLACE, group,
            f"{say.name(one)} with {say.name(two)}{more} use relays that share an address: {say.some(group)}",
            "set relay.offer = true on a member elsewhere",
        )  # fmt: skip


def _busy_relays(
    edges: Mapping[Pair, Link], stations: Mapping[NodeId, Station], say: _Sayer
) -> Iterator[Finding]:
    relayed = [link for link in edges.values() if link.kind is Kind.RELAYED]
    only = Counter(link.relays[0] for link in relayed if len(link.relays) == 1)
    for relay, count in sorted(only.items()):
        if relay in stations and len(relayed) >= BUSY_PAIRS and count >= BUSY_SHARE * len(relayed):
            yield Finding(
                Weakness.BUSY_RELAY, (relay,),
                f"{count} of {len(relayed)} relayed pairs go by {say.name(relay)} alone",
                "set relay.offer = true on a second member that both reach",
            )  # fmt: skip


def _weak_cuts(graph: nx.Graph[NodeId], say: _Sayer) -> Iterator[Finding]:
    """Links of which any two part the mesh, with two members or more on either side."""
    import networkx as nx

    for links in _cut_links(graph):
        without = graph.copy()
        without.remove_edges_from(links)
        home = nx.node_connected_component(graph, links[0][0])
        parts = _sides(without.subgraph(home))
        cut = tuple(sorted(set().union(*parts[1:])))
        if len(cut) < 2 or len(parts[0]) < 2:
            continue
        members = tuple(sorted({end for link in links for end in link}))
        yield Finding(
            Weakness.WEAK_CUT, members,
            f"{len(links)} links alone join {say.some(cut)} with the rest, and any two may part them",
            "open the ports of more members on either side", cut,
        )  # fmt: skip


def _cut_links(graph: nx.Graph[NodeId]) -> Iterator[list[Pair]]:
    """Yield the sets of links of which any two are a cut; bridges are in none.

    Each link that is not in a spanning tree gets a random number of 64 bits, each link of the tree the
    exclusive or of the numbers of those that close a circle over it. Two links are a cut if they have the
    same number: Pritchard and Thurimella, "Fast computation of small cuts via cycle space sampling", 2011.
    """
    chance = Random(1)  # noqa: S311  # nobody gains by a wrong piece of advice, nor has another
    parent: dict[NodeId, NodeId | None] = {}
    order = list[NodeId]()
    for root in sorted(graph):
        if root in parent:
            continue
        parent[root] = None
        order.append(root)
        at = len(order) - 1
        while at < len(order):
            for other in graph[order[at]]:
                if other not in parent:
                    parent[other] = order[at]
                    order.append(other)
            at += 1
    numbers: dict[int, list[Pair]] = {}
    covered: dict[NodeId, int] = dict.fromkeys(order, 0)
    for one, two in graph.edges:
        if parent[one] != two and parent[two] != one:
            number = chance.getrandbits(64) or 1
            covered[one] ^= number
            covered[two] ^= number
            numbers.setdefault(number, []).append(pair(one, two))
    for member in reversed(order):
        above = parent[member]
        if above is not None:
            covered[above] ^= covered[member]
            numbers.setdefault(covered[member], []).append(pair(member, above))
    for number, links in sorted(numbers.items(), key=lambda found: min(found[1])):
        if number and len(links) > 1:
            yield sorted(links)


def _detours(survey: Survey, edges: Mapping[Pair, Link]) -> dict[NodeId, NodeId]:
    """The peers of this node that cost less by a relay than directly."""
    me, found = survey.me, dict[NodeId, NodeId]()
    if me is None:
        return found
    costs = {ends: latency(link) for ends, link in edges.items() if link.kind is Kind.DIRECT}
    relays = [one for one, station in survey.stations.items() if station.relay and one != me]
    near = {relay: costs[ends] for relay in relays if (ends := pair(me, relay)) in costs}
    for peer in survey.stations:
        if (ends := pair(me, peer)) not in costs:
            continue
        far = {relay: costs[leg] for relay in near if (leg := pair(relay, peer)) in costs}
        relay, _ = hop(costs[ends], near, far, survey.held.get(peer))
        if relay is not None:
            found[peer] = relay
    return found


def _slow_ways(
    survey: Survey, edges: Mapping[Pair, Link], detours: Mapping[NodeId, NodeId], say: _Sayer
) -> Iterator[Finding]:
    me = survey.me
    for peer, relay in sorted(detours.items()):
        if me is None:
            return
        # What `_detours` compared: round trips alone may say the opposite.
        direct = latency(edges[pair(me, peer)])
        around = latency(edges[pair(me, relay)]) + latency(edges[pair(relay, peer)])
        yield Finding(
            Weakness.DETOUR, (peer, relay),
            f"{say.name(peer)} costs {1000 * direct:.0f} ms directly and {1000 * around:.0f} ms by way of "
            f"{say.name(relay)}: round trips, with jitter and loss counted in",
            "see what is lost on the way, and which way the network takes (`phantommesh ping`, traceroute)",
        )  # fmt: skip


def _drifts(before: Summary, after: Summary, say: _Sayer) -> Iterator[Finding]:
    for member, how in drifted(before, after):
        if member in say:
            yield Finding(
                Weakness.DRIFT, (member,), f"the links of {say.name(member)} are worse than yesterday: {how}",
                "see `phantommesh netcheck` there",
            )  # fmt: skip
