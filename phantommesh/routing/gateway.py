# SPDX-License-Identifier: GPL-3.0-or-later
"""The nftables rules of a node that routes prefixes beyond the mesh for other members. Pure.

The guard (`overlay/guard.py`) says what may pass between the mesh and these prefixes. The rules here
translate what members send to a prefix whose site has other addresses (RFC 3022, section 2.1: each address
has one of its own, of the same last bits), masquerade what leaves for the prefixes, and see to it that an
interface whose forwarding the node has turned on for this forwards nothing else: without them the host would
be a router for everybody on its network.

Packets between the mesh and the prefixes are counted where they come, behind the guard and before the rules
of other programs, and where they leave: `Passing` says whether those rules drop them. Container engines' do
by default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from phantommesh.nftables.text import add_elements, anonymous, chain_block, set_block
from phantommesh.routable import is_exit, order
from phantommesh.routing.forwarding import RELAY_MARK
from phantommesh.wireguard.device import OUTER_MASK, Network

FAMILY: Final = "inet"
DROPS: Final = "drops"
OPENED: Final = "opened"
"""The set of the interfaces whose forwarding is on for this alone: to give it back after a crash."""

CAME, LEFT = "came", "left"
"""The sets that count what is to be forwarded and what has been. Their elements are conntrack's directions:
to the prefix, and back."""

SURELY: Final = 10  # packets of a direction that came one after the other, of which none has left

_STRAY: Final = 1  # the element of DROPS: to be forwarded by such an interface, and not for the mesh


def table_name(device: str) -> str:
    """The table of the node whose scattering interface is ``device``."""
    return f"phantommesh_routes_{device}"


@dataclass(frozen=True, slots=True)
class Gateway:
    """``mesh`` are the node's own interfaces, ``networks`` the overlay's, ``routes`` the prefixes that the
    node routes; ``sites`` has for some of them the network of the same length that is really there.
    ``masquerade``: what leaves for them has an address of this host. ``opened`` are the interfaces whose
    forwarding the node has turned on."""

    device: str
    mesh: tuple[str, ...]
    networks: tuple[Network, ...]
    routes: tuple[Network, ...]
    masquerade: bool
    opened: tuple[str, ...] = ()
    sites: Mapping[Network, Network] = field(default_factory=dict)

    @property
    def there(self) -> tuple[Network, ...]:
        """The networks that are really there, each once."""
        return tuple(dict.fromkeys(self.sites.get(prefix, prefix) for prefix in self.routes))

    @property
    def table(self) -> str:
        """The table's name."""
        return table_name(self.device)


def render(gateway: Gateway) -> str:
    """The whole ruleset. It takes the place of what the table held before, in one transaction."""
    table, mesh = f"{FAMILY} {gateway.table}", _names(gateway.mesh)
    there, back = _matches(gateway.networks, gateway.there), _matches(gateway.there, gateway.networks)
    passing = list[str]()
    if gateway.opened:
        passing = [
            f"iifname @{OPENED} oifname {mesh} accept",
            f"iifname @{OPENED} meta mark & {OUTER_MASK:#x} == {RELAY_MARK:#x} accept",
            f"iifname @{OPENED} goto drop_stray",
        ]
    leaving = [f"oifname != {mesh} {match} masquerade" for match in there]
    elements = [f"elements = {_names(gateway.opened)}"] if gateway.opened else []
    lines = [
        f"add table {table}",
        f"delete table {table}",
        f"table {table} {{",
        *set_block(DROPS, "type mark", "counter"),
        *set_block(OPENED, "type ifname", *elements),
        *(
            line
            for name in (CAME, LEFT)
            for line in set_block(name, "typeof ct direction", "counter", "elements = { original, reply }")
        ),
        *chain_block("drop_stray", f"meta mark set {_STRAY} meta mark @{DROPS} drop", "drop"),
        *chain_block("passing", "type filter hook forward priority filter - 5; policy accept;", *passing),
        *_translating(gateway),
        *chain_block(
            "coming",
            "type filter hook forward priority filter - 4; policy accept;",
            *(f"iifname {mesh} {match} ct direction @{CAME}" for match in there),
            *(f"oifname {mesh} {match} ct direction @{CAME}" for match in back),
        ),
        *chain_block(  # before masquerade hides members
            "left_here",
            "type filter hook postrouting priority srcnat - 5; policy accept;",
            *(f"oifname != {mesh} {match} ct direction @{LEFT}" for match in there),
            *(f"oifname {mesh} {match} ct direction @{LEFT}" for match in back),
        ),
        *chain_block(
            "leaving",
            "type nat hook postrouting priority srcnat; policy accept;",
            *(leaving if gateway.masquerade else []),
        ),
        "}",
        add_elements(table, DROPS, [str(_STRAY)]),
    ]
    return "\n".join(lines) + "\n"


def read_drops(counters: Mapping[int, tuple[int, int]]) -> dict[str, int]:
    """Packets dropped by reason, from the table's set of counters."""
    return {"routes-stray": counters[_STRAY][0]} if _STRAY in counters else {}


def _translating(gateway: Gateway) -> list[str]:
    """The chain that translates, if there is anything to translate. It has its turn before other programs'
    own: the first to translate a connection is the only one. A rule each, for an anonymous map takes no
    prefixes that lie in each other; the longest first, as routers would choose."""
    if not any(prefix in gateway.sites for prefix in gateway.routes):
        return []
    mesh, rules = _names(gateway.mesh), list[str]()
    for prefix in sorted(gateway.routes, key=lambda one: (-one.prefixlen, order(one))):
        header = "ip" if prefix.version == 4 else "ip6"
        members = [network for network in gateway.networks if network.version == prefix.version]
        site, to = gateway.sites.get(prefix), f"iifname {mesh} {header} daddr {prefix}"
        if site is None:
            rules.append(f"{to} accept")
        elif members:
            rules.append(
                f"iifname {mesh} {header} saddr {anonymous(members)} "
                f"dnat {header} prefix to {header} daddr map {anonymous([f'{prefix} : {site}'])}"
            )
    return chain_block("translating", "type nat hook prerouting priority dstnat - 5; policy accept;", *rules)


class Passing:
    """Whether what comes to be forwarded is seen to leave, by the counters of `CAME` and `LEFT`: packets and
    bytes by element."""

    def __init__(self) -> None:
        self._unseen: dict[bytes, int] = {}  # packets that came since one left, by direction
        self._before: tuple[Mapping[bytes, int], Mapping[bytes, int]] = {}, {}

    @property
    def blocked(self) -> bool:
        """Whether so many have come in one direction, and none has left, that something drops them."""
        return any(unseen >= SURELY for unseen in self._unseen.values())

    def count(self, came: Mapping[bytes, tuple[int, int]], left: Mapping[bytes, tuple[int, int]]) -> None:
        """Take in the counters."""
        now = {key: packets for key, (packets, _) in came.items()}, {key: p for key, (p, _) in left.items()}
        for key, packets in now[0].items():
            more = packets - self._before[0].get(key, 0)
            gone = now[1].get(key, 0) - self._before[1].get(key, 0)
            self._unseen[key] = 0 if gone else self._unseen.get(key, 0) + max(more, 0)
        self._before = now

    @property
    def came(self) -> int:
        """The packets that have come since the counters began."""
        return sum(self._before[0].values())

    def restart(self) -> None:
        """The counters begin at nothing again."""
        self._before = {}, {}


def _matches(source: Sequence[Network], target: Sequence[Network]) -> list[str]:
    """Matches of packets from one of some networks to one of others, one a family."""
    found = []
    for version, header in ((4, "ip"), (6, "ip6")):
        both = [[n for n in networks if n.version == version] for networks in (source, target)]
        if all(both):
            ends = zip(("saddr", "daddr"), both, strict=True)
            told = (
                f"{header} {end} {anonymous(those)}" for end, those in ends if not any(map(is_exit, those))
            )
            found.append(" ".join(told))
    return found


def _names(names: Sequence[str]) -> str:
    return anonymous(f'"{name}"' for name in names)
