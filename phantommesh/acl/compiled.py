# SPDX-License-Identifier: GPL-3.0-or-later
"""Access rules compiled for one node: few lookups decide on a packet, however many rules there are. Pure.

A packet is looked up by its target, then by its source: addresses for which the same rules are left are one
class. A class has three tables without gaps: which rule decides on each port of TCP, on each of UDP, and on
each other protocol. `ruleset` writes exactly these tables for the kernel, and `Compiled.decide` looks the
same up here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush
from typing import Final, NamedTuple

from phantommesh.acl.rules import (
    MAX_PORT,
    MEASURING,
    TCP,
    UDP,
    Anybody,
    Decision,
    Identified,
    IpAddress,
    Named,
    Party,
    Policy,
    Range,
    Rule,
    Selector,
    Tagged,
    Whose,
    Within,
    by_address,
)

MAX_PROTOCOL: Final = 255

Left = tuple[int, ...]
"""The rules that can still match, by number, ascending."""

_Words = tuple[Named | Identified | Tagged, ...]


class Slice(NamedTuple):
    """The ports, or protocols, on which one rule decides."""

    first: int
    last: int
    rule: int


Slices = tuple[Slice, ...]
"""Slices one after the other, from 0 to the end."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The decisions on what one class of sources sends to one class of targets."""

    tcp: Slices
    udp: Slices
    rest: Slices

    def find(self, protocol: int, port: int) -> int:
        """The number of the rule that decides."""
        where, value = {TCP: (self.tcp, port), UDP: (self.udp, port)}.get(protocol, (self.rest, protocol))
        return where[bisect_right(where, value, key=lambda one: one.first) - 1].rule


@dataclass(frozen=True)
class Classes:
    """One end's addresses by the rules that are left for them: single addresses, then ranges of addresses
    (first, last, rules) in order, then all others. An address that is decided on like those around it is not
    listed by itself."""

    points: dict[IpAddress, Left]
    ranges: dict[int, tuple[tuple[int, int, Left], ...]]
    others: Left

    def find(self, address: IpAddress) -> Left:
        """The rules that are left for an address."""
        if (point := self.points.get(address)) is not None:
            return point
        return _around(self.ranges, address, self.others)

    @cached_property
    def all(self) -> tuple[Left, ...]:
        """Each class once, in an order that depends on the classes alone."""
        ranged = (left for ranges in self.ranges.values() for _, _, left in ranges)
        return tuple(sorted({*self.points.values(), *ranged, self.others}))


@dataclass(frozen=True, slots=True)
class Placed:
    """A rule and whose policy it is in; ``layer`` is the policy's place."""

    rule: Rule
    whose: Whose
    layer: int


@dataclass(frozen=True)
class Compiled:
    """The rules as they hold for one node. ``sources`` has for each class of targets the classes of sources,
    ``tables`` the decisions by the rules that are left for both ends. ``own`` are the UDP ports of the node's
    ``addresses`` that no rule closes."""

    rules: tuple[Placed, ...]
    targets: Classes
    sources: dict[Left, Classes]
    tables: dict[Left, Tables] = field(repr=False)
    addresses: tuple[IpAddress, ...]
    own: tuple[int, ...]

    @property
    def idle(self) -> bool:
        """Whether nothing is denied, so that the kernel needs no rules."""
        return all(placed.rule.allow for placed in self.rules)

    def decide(self, source: IpAddress, target: IpAddress, protocol: int, port: int = 0) -> Decision:
        """Decide on a new connection. ``port`` is the target's, of TCP and UDP."""
        if protocol == UDP and port in self.own and target in self.addresses:
            return MEASURING
        left = self.sources[self.targets.find(target)].find(source)
        placed = self.rules[self.tables[left].find(protocol, port)]
        return Decision(placed.rule.allow, placed.rule, placed.whose)


def compile_for(
    me: Party, policies: Sequence[Policy], parties: Iterable[Party], own: Iterable[int] = ()
) -> Compiled:
    """Compile the policies for the node ``me``. ``parties`` are the members, with or without ``me``; ``own``
    are the UDP ports by which members measure the mesh."""
    holders = by_address(parties) | by_address([me])
    rules = tuple(
        Placed(rule, policy.whose, layer) for layer, policy in enumerate(policies) for rule in policy.rules
    )
    mine: dict[IpAddress, Party] = dict.fromkeys(me.addresses, me)
    targets = _classify(rules, range(len(rules)), lambda rule: rule.targets, mine)
    sources, tables = dict[Left, Classes](), dict[Left, Tables]()
    for left in targets.all:
        sources[left] = _classify(rules, left, lambda rule: rule.sources, holders)
        for both in sources[left].all:
            if both not in tables:
                tables[both] = _tabulate(rules, both)
    return Compiled(rules, targets, sources, tables, me.addresses, tuple(sorted(own)))


def _classify(
    rules: Sequence[Placed], left: Iterable[int], selectors: Callable[[Rule], Iterable[Selector]],
    holders: Mapping[IpAddress, Party],
) -> Classes:  # fmt: skip
    everybody = set[int]()
    named: dict[Named | Identified | Tagged, set[int]] = {}
    networks: dict[Within, set[int]] = {}
    for number in left:
        for selector in selectors(rules[number].rule):
            match selector:
                case Anybody():
                    everybody.add(number)
                case Within():
                    networks.setdefault(selector, set()).add(number)
                case _:
                    named.setdefault(selector, set()).add(number)
    others = tuple(sorted(everybody))
    ranges = {version: _sweep(networks, everybody, version) for version in (4, 6)}
    points = dict[IpAddress, Left]()
    shared = dict[tuple[_Words, Left], Left]()
    for address, party in holders.items():
        around = _around(ranges, address, others)
        words = (
            Named(party.name), Identified(party.node_id), *(Tagged(tag) for tag in sorted(party.tags))
        )  # fmt: skip
        key = (tuple(word for word in words if word in named), around)
        if key not in shared:
            shared[key] = tuple(sorted(set(around).union(*(named[word] for word in key[0]))))
        if shared[key] != around:
            points[address] = shared[key]
    return Classes(points, ranges, others)


def _sweep(
    networks: Mapping[Within, set[int]], everybody: set[int], version: int
) -> tuple[tuple[int, int, Left], ...]:
    """The ranges of addresses that networks cut out, with the rules for each; without what is as all else."""
    mine = {one.network: found for one, found in networks.items() if one.network.version == version}
    events = sorted(
        event
        for network in mine
        for event in ((int(network[0]), 1, network), (int(network[-1]) + 1, 0, network))
    ) if mine else []  # fmt: skip
    others, active, found = tuple(sorted(everybody)), list[set[int]](), list[tuple[int, int, Left]]()
    before = 0
    for at, begins, network in events:
        if active and at > before:
            left = tuple(sorted(everybody.union(*active)))
            if found and found[-1][1] == before - 1 and found[-1][2] == left:
                found[-1] = (found[-1][0], at - 1, left)
            elif left != others:
                found.append((before, at - 1, left))
        before = at
        if begins:
            active.append(mine[network])
        else:
            active.remove(mine[network])
    return tuple(found)


def _around(ranges: Mapping[int, Sequence[tuple[int, int, Left]]], address: IpAddress, others: Left) -> Left:
    of, value = ranges[address.version], int(address)
    at = bisect_right(of, value, key=lambda one: one[0]) - 1
    return of[at][2] if at >= 0 and value <= of[at][1] else others


def _tabulate(rules: Sequence[Placed], left: Left) -> Tables:
    def slices(ranges: Callable[[Rule], Iterable[Range]], end: int) -> Slices:
        return _flatten(rules, [(*one, number) for number in left for one in ranges(rules[number].rule)], end)

    return Tables(
        slices(lambda rule: rule.ports_of(TCP), MAX_PORT),
        slices(lambda rule: rule.ports_of(UDP), MAX_PORT),
        slices(_protocols, MAX_PROTOCOL),
    )


def _protocols(rule: Rule) -> Iterable[Range]:
    """The protocols other than TCP and UDP that a rule matches; those two are never looked up there."""
    if rule.protocols is None:
        return ((0, MAX_PROTOCOL),)
    return ((number, number) for number in rule.protocols - {TCP, UDP})


def _flatten(rules: Sequence[Placed], ranges: list[tuple[int, int, int]], end: int) -> Slices:
    """Cut overlapping ranges (first, last, rule) into slices: in each policy the first rule decides, and of
    the policies the first that denies, else the last. It takes n log n steps for n ranges."""
    begins = sorted(ranges)
    cuts = sorted({0, *(first for first, _, _ in begins), *(last + 1 for _, last, _ in begins)} - {end + 1})
    layers = sorted({rules[number].layer for _, _, number in ranges})
    open_: dict[int, list[tuple[int, int]]] = {layer: [] for layer in layers}
    found, at = list[Slice](), 0
    for cut, after in zip(cuts, [*cuts[1:], end + 1], strict=True):
        while at < len(begins) and begins[at][0] == cut:
            _, last, number = begins[at]
            heappush(open_[rules[number].layer], (number, last))
            at += 1
        winners = list[int]()
        for heap in open_.values():
            while heap[0][1] < cut:  # the default's range never ends
                heappop(heap)
            winners.append(heap[0][0])
        rule = next((one for one in winners if not rules[one].rule.allow), winners[-1])
        if found and found[-1].rule == rule:
            found[-1] = Slice(found[-1].first, after - 1, rule)
        else:
            found.append(Slice(cut, after - 1, rule))
    return tuple(found)
