# SPDX-License-Identifier: GPL-3.0-or-later
"""Compiled access rules as one nftables table in text, and what its counters say. Pure.

The table looks at what the mesh's interfaces bring, at prerouting: later hooks do not see what a container
runtime translates (DNAT) and forwards. It comes after the underlay guard and connection tracking, and before
translation, so a rule's port is the one that the other member asked for.

Answers to what this node's side began come first (`_answers`). All other packets are looked up one by one,
those of connections that are open too: so a changed table holds for all at once. A target's address leads to
the chain of its class, a source's address from there to a class of both, whose maps have a verdict for each
port. The maps' elements count what they decide.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from phantommesh.acl.compiled import Classes, Compiled, Left, Slices
from phantommesh.acl.rules import IpAddress
from phantommesh.acl.standing import Standing
from phantommesh.nftables.text import add_elements, anonymous, chain_block, map_block, set_block

FAMILY: Final = "inet"

_FAMILIES: Final = ((4, "ip", "ipv4_addr", IPv4Address), (6, "ip6", "ipv6_addr", IPv6Address))
_BEGUN, _UNDER_WAY = 87, 88
"""Labels of connections, by number: this side's first segment was seen; it was met under way. Labels are 128
bits beside the mark, which other programs use, and stay with a connection when the table is replaced."""

_SERVED: Final = "served"
_FIRST: Final = "tcp flags & (fin | syn | rst | ack) == syn"
_PER_COMMAND: Final = 1000  # elements of one command: nft's parser is quadratic in a line's length


def table_name(device: str) -> str:
    """The table of the node whose scattering interface is ``device``."""
    return f"phantommesh_acl_{device}"


@dataclass(frozen=True)
class Ruleset:
    """The table. ``shape`` is all but the members' addresses, which ``members`` has by map, each with the
    chain that it leads to, and the elements of the sets of `Standing`, which ``sets`` has. ``counted`` has
    the maps whose elements count, ``names`` the rules by number, ``denying`` those of them that deny."""

    table: str
    shape: tuple[str, ...]
    members: Mapping[str, Mapping[IpAddress, str]]
    counted: Mapping[str, Slices]
    names: Sequence[tuple[str, str]]
    denying: frozenset[tuple[str, str]]
    sets: Mapping[str, frozenset[str]]

    def knowing(self, standing: Standing) -> Ruleset:
        """The same table for what is known of the host's sockets."""
        return replace(self, sets=_standing(standing))

    def install(self) -> str:
        """The script that puts the table in the place of what was there, in one transaction."""
        lines = [f"add table {self.table}", f"delete table {self.table}", *self.shape]
        for name, leads in self.members.items():
            lines += _add(self.table, name, [f"{address} : goto {chain}" for address, chain in leads.items()])
        for name, elements in self.sets.items():
            lines += _add(self.table, name, sorted(elements))
        return "\n".join(lines) + "\n"

    def update(self, before: Ruleset) -> str | None:
        """The script that makes this of a table of before, where the members' addresses and the sets alone
        have changed; empty where nothing has. None: the table has to be installed."""
        if self.shape != before.shape or self.members.keys() != before.members.keys():
            return None
        lines = list[str]()
        for name, leads in self.members.items():
            old = before.members[name]
            gone = [str(address) for address, chain in old.items() if leads.get(address) != chain]
            come = [f"{one} : goto {chain}" for one, chain in leads.items() if old.get(one) != chain]
            lines += [*_delete(self.table, name, gone), *_add(self.table, name, come)]
        for name, elements in self.sets.items():
            lines += _delete(self.table, name, sorted(before.sets[name] - elements))
            lines += _add(self.table, name, sorted(elements - before.sets[name]))
        return "\n".join(lines) + "\n" if lines else ""

    def count(self, counters: Mapping[str, Mapping[bytes, tuple[int, int]]]) -> Counter[tuple[str, str]]:
        """Packets that each rule, by whose policy and by name, has decided on so far. ``counters`` are those
        of the maps' elements (packets, bytes), by the element's first port or protocol."""
        found = Counter[tuple[str, str]]()
        for name, slices in self.counted.items():
            by_first = {one.first: one.rule for one in slices}
            for key, (packets, _) in counters.get(name, {}).items():
                if (rule := by_first.get(int.from_bytes(key, "big"))) is not None:
                    found[self.names[rule]] += packets
        return found


def render(compiled: Compiled, device: str, names: Sequence[str]) -> Ruleset:
    """The rules as a table. ``names`` are the mesh's other interfaces."""
    table, made = f"{FAMILY} {table_name(device)}", _Made()
    classes = {left: f"class{number}" for number, left in enumerate(sorted(compiled.tables))}
    blocks, portless = list[str](), set[str]()
    for left, name in classes.items():
        tables = compiled.tables[left]
        rest = made.counting("rest", "inet_proto", tables.rest)
        portless.add(rest)
        blocks += chain_block(
            name,
            f"tcp dport vmap @{made.counting('tcp', 'inet_service', tables.tcp)}",
            f"udp dport vmap @{made.counting('udp', 'inet_service', tables.udp)}",
            f"goto by_{rest}",
        )
    for rest in sorted(portless):
        blocks += chain_block(
            f"by_{rest}",
            "meta l4proto { tcp, udp } drop",  # a header cut short has no port
            f"meta l4proto vmap @{rest}",
            "drop",  # where somebody has emptied a map
        )
    targets = {left: f"to{number}" for number, left in enumerate(compiled.targets.all)}
    for left, name in targets.items():
        blocks += chain_block(name, *made.dispatch(f"from_{name}", "saddr", compiled.sources[left], classes))
    mesh = anonymous(f'"{one}"' for one in (device, *names))
    blocks += chain_block(
        "arriving",
        "type filter hook prerouting priority dstnat - 10; policy accept;",
        f"iifname != {mesh} accept",
        "ct state established ct direction reply jump answers",
        "ct state related meta l4proto { icmp, ipv6-icmp } accept",
        *_measuring(compiled),
        *(f"tcp flags & syn == 0 {match} accept" for match in _begun()),
        *made.dispatch("to", "daddr", compiled.targets, targets),
    )
    blocks += _answers(mesh)
    shape = [f"table {table} {{", *made.maps, *_sets(), *blocks, "}"]
    for name, elements in made.fixed.items():
        shape += _add(table, name, elements)
    for (_, slices), name in made.numbered.items():
        shape += _add(table, name, _verdicts(compiled, slices))
    return Ruleset(
        table, tuple(shape), made.members, {name: slices for (_, slices), name in made.numbered.items()},
        [(placed.whose, placed.rule.name) for placed in compiled.rules],
        frozenset((placed.whose, placed.rule.name) for placed in compiled.rules if not placed.rule.allow),
        _standing(Standing()),
    )  # fmt: skip


class _Made:
    """The maps of a table while it is written: each with the same content once."""

    def __init__(self) -> None:
        self.maps = list[str]()
        self.fixed: dict[str, list[str]] = {}
        self.members: dict[str, dict[IpAddress, str]] = {}
        self.numbered: dict[tuple[str, Slices], str] = {}

    def counting(self, kind: str, key: str, slices: Slices) -> str:
        """The map of these decisions; its name."""
        if (name := self.numbered.get((kind, slices))) is None:
            name = self.numbered[kind, slices] = f"{kind}{len(self.numbered)}"
            self.maps += map_block(name, f"type {key} : verdict", "flags interval", "counter")
        return name

    def dispatch(self, name: str, end: str, classes: Classes, chains: Mapping[Left, str]) -> list[str]:
        """The rules that go to the chain of a packet's class by one of its addresses, ``end``."""
        rules = list[str]()
        for version, header, kind, family in _FAMILIES:
            points = {one: chains[left] for one, left in classes.points.items() if isinstance(one, family)}
            if points:
                self.maps += map_block(f"{name}_{version}", f"type {kind} : verdict")
                self.members[f"{name}_{version}"] = dict(sorted(points.items(), key=lambda one: int(one[0])))
                rules.append(f"{header} {end} vmap @{name}_{version}")
            if ranges := classes.ranges[version]:
                self.maps += map_block(f"{name}_nets{version}", f"type {kind} : verdict", "flags interval")
                self.fixed[f"{name}_nets{version}"] = [
                    f"{_range(family(first), family(last))} : goto {chains[left]}"
                    for first, last, left in ranges
                ]
                rules.append(f"{header} {end} vmap @{name}_nets{version}")
        return [*rules, f"goto {chains[classes.others]}"]


def _answers(mesh: str) -> list[str]:
    """The chains that tell answers to what this side began. Of TCP the kernel's word counts where it saw the
    first segment leave. A connection that it met under way is looked up like a new one from the mesh, if the
    host listens on its port here (`Standing`), or if it goes through this host, where no socket says who
    began."""
    leaving = f"ct state new {_FIRST} ct label set {_BEGUN}"
    return [
        *chain_block(
            "answers",
            "meta l4proto != tcp accept",
            f"ct label {_BEGUN} accept",
            f"ct label {_UNDER_WAY} return",
            f"tcp dport @{_SERVED} return",
            "accept",
        ),
        *chain_block(
            "leaving", "type filter hook output priority filter - 10; policy accept;",
            f"oifname {mesh} {leaving}",
        ),
        *chain_block(
            "passing",
            "type filter hook forward priority filter - 10; policy accept;",
            f"iifname {mesh} accept",
            f"oifname {mesh} {leaving}",
            f"oifname {mesh} ct state new tcp flags & syn == 0 ct label set {_UNDER_WAY}",
        ),
    ]  # fmt: skip


def _begun() -> list[str]:
    """Matches of the connections of `Standing.begun`: the first segment that the kernel sees may be the other
    side's."""
    return [
        f"{header} saddr . tcp sport . {header} daddr . tcp dport @begun{version}"
        for version, header, _, _ in _FAMILIES
    ]


def _sets() -> list[str]:
    found = set_block(_SERVED, "type inet_service")
    for version, _, kind, _ in _FAMILIES:
        found += set_block(f"begun{version}", f"type {kind} . inet_service . {kind} . inet_service")
    return found


def _standing(standing: Standing) -> dict[str, frozenset[str]]:
    return {_SERVED: frozenset(map(str, standing.served))} | {
        f"begun{version}": frozenset(
            f"{one.there} . {one.their_port} . {one.here} . {one.port}"
            for one in standing.begun
            if one.here.version == version
        )
        for version, _, _, _ in _FAMILIES
    }


def _measuring(compiled: Compiled) -> list[str]:
    if not compiled.own:
        return []
    return [
        f"{header} daddr {address} udp dport {anonymous(compiled.own)} accept"
        for _, header, _, family in _FAMILIES
        for address in compiled.addresses
        if isinstance(address, family)
    ]


def _verdicts(compiled: Compiled, slices: Slices) -> list[str]:
    found = list[str]()
    for first, last, number in slices:
        rule = compiled.rules[number].rule
        verdict = "accept" if rule.allow else "drop"
        found.append(f'{_range(first, last)} comment "{rule.name}" : {verdict}')
    return found


def _range(first: object, last: object) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _add(table: str, name: str, elements: Sequence[str]) -> Iterable[str]:
    return [
        add_elements(table, name, elements[at : at + _PER_COMMAND])
        for at in range(0, len(elements), _PER_COMMAND)
    ]


def _delete(table: str, name: str, elements: Sequence[str]) -> Iterable[str]:
    return [line.replace("add", "delete", 1) for line in _add(table, name, elements)]
