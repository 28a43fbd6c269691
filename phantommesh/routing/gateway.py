# SPDX-License-Identifier: GPL-3.0-or-later
"""The nftables rules of a node that routes prefixes beyond the mesh for other members. Pure.

The guard (`overlay/guard.py`) says what may pass between the mesh and these prefixes. The rules here
translate what members send to a prefix whose site has other addresses (RFC 3022, section 2.1: each address
has one of its own, of the same last bits), masquerade what leaves for the prefixes, and see to it that an
interface whose forwarding the node has turned on for this forwards nothing else: without them the host would
be a router for everybody on its network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from phantommesh.nftables.text import add_elements, anonymous, chain_block, set_block
from phantommesh.routable import order
from phantommesh.routing.forwarding import RELAY_MARK
from phantommesh.wireguard.device import OUTER_MASK, Network

FAMILY: Final = "inet"
DROPS: Final = "drops"
OPENED: Final = "opened"
"""The set of the interfaces whose forwarding is on for this alone: to give it back after a crash."""

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
    passing = list[str]()
    if gateway.opened:
        passing = [
            f"iifname @{OPENED} oifname {mesh} accept",
            f"iifname @{OPENED} meta mark & {OUTER_MASK:#x} == {RELAY_MARK:#x} accept",
            f"iifname @{OPENED} goto drop_stray",
        ]
    leaving = [f"oifname != {mesh} {match} masquerade" for match in _matches(gateway)]
    elements = [f"elements = {_names(gateway.opened)}"] if gateway.opened else []
    lines = [
        f"add table {table}",
        f"delete table {table}",
        f"table {table} {{",
        *set_block(DROPS, "type mark", "counter"),
        *set_block(OPENED, "type ifname", *elements),
        *chain_block("drop_stray", f"meta mark set {_STRAY} meta mark @{DROPS} drop", "drop"),
        *chain_block("passing", "type filter hook forward priority filter - 5; policy accept;", *passing),
        *_translating(gateway),
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


def _matches(gateway: Gateway) -> list[str]:
    found = []
    for version, header in ((4, "ip"), (6, "ip6")):
        source, target = (
            [n for n in networks if n.version == version] for networks in (gateway.networks, gateway.there)
        )
        if source and target:
            found.append(f"{header} saddr {anonymous(source)} {header} daddr {anonymous(target)}")
    return found


def _names(names: Sequence[str]) -> str:
    return anonymous(f'"{name}"' for name in names)
