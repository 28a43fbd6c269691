# SPDX-License-Identifier: GPL-3.0-or-later
"""The routers between nodes and the lab's segments: a namespace each, and what is typed into it.

A router's interfaces are ``wU`` on the side of segment U and the bridge ``lU`` on the side of its nodes.
Behind a NAT node N has 192.168.U.N, the same network behind each NAT, as in people's homes. The NAT's own
address on the segment is 10.201.U.F, for its first node F. Between two NATs in a row is 172.20.U.0/24. A
router that is no NAT answers ARP in place of its node, which keeps its address 10.201.U.N.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from phantommesh.nursery.lab.underlay import KINDS, PLAIN_MTU, Underlay

_LAST = 254  # a router's own host number in its nodes' network


@dataclass(frozen=True, slots=True)
class Router:
    """One namespace. ``first``: the number of its first node. ``inner``: the namespace of the NAT behind this
    one, if one is. ``outer``: it is on the segments itself."""

    namespace: str
    first: int
    kind: str
    nodes: tuple[int, ...]
    blocked: tuple[int, ...]
    inner: str | None = None
    outer: bool = True

    @property
    def nat(self) -> bool:
        """Whether it masquerades."""
        return KINDS[self.kind].nat


def routers_of(lab: str, nodes: int, underlay: Underlay) -> list[Router]:
    """Return a lab's routers, an outer one before its inner one. A public node with UDP has none."""
    found = []
    for place, numbers in underlay.places(nodes):
        blocked = tuple(number for number in numbers if underlay.blocked(number))
        if not KINDS[place.layers[0]].asked and not blocked:
            continue
        first = numbers[0]
        name = f"{lab}-r{first}"
        if len(place.layers) > 1:
            found.append(Router(f"{lab}-o{first}", first, place.layers[1], numbers, (), inner=name))
        found.append(Router(name, first, place.layers[0], numbers, blocked, outer=len(place.layers) == 1))
    return found


def cables(router: Router, lab: str, uplinks: int, mtu: int = PLAIN_MTU) -> list[str]:
    """Return ``ip -batch`` lines for a router's namespace, which has its ``wU`` already. They make its nodes'
    ``upU``, or its inner router's ``wU``. ``mtu`` is that of an interface on a segment."""
    lines = ["link set lo up"]
    for uplink in range(uplinks):
        lines += [f"link add l{uplink} type bridge", f"link set l{uplink} up"]
        size = f"mtu {mtu} " if router.outer and mtu != PLAIN_MTU else ""
        lines.append(f"link set w{uplink} {size}up")
        lines += _addresses(router, uplink)
        if router.inner is not None:
            lines.append(f"link add c{uplink} type veth peer name w{uplink} netns {router.inner}")
            lines.append(f"link set c{uplink} master l{uplink} up")
            continue
        for number in router.nodes:
            port = port_name(number, uplink)
            lines.append(f"link add {port} type veth peer name up{uplink} netns {lab}-{number}")
            lines.append(f"link set {port} master l{uplink} up")
    return lines


def port_name(number: int, uplink: int) -> str:
    """Return the name of the other end of a node's ``upU``, wherever that end is."""
    return f"n{number}u{uplink}"


def _addresses(router: Router, uplink: int) -> Iterator[str]:
    outside, inside = f"w{uplink}", f"l{uplink}"
    if not router.nat:
        # An address of its own, which it asks by ARP with; nodes never see it but as the source of ICMP.
        yield f"address add 10.203.{uplink}.{router.first}/32 dev {outside}"
        yield f"route add 10.201.{uplink}.0/24 dev {outside}"
        yield f"route add 10.201.{uplink}.{router.first}/32 dev {inside}"
        return
    if router.outer:
        yield f"address add 10.201.{uplink}.{router.first}/24 dev {outside}"
    else:
        yield f"address add 172.20.{uplink}.1/24 dev {outside}"
        yield from _by_way_of(f"172.20.{uplink}.{_LAST}", uplink, outside)
    middle = router.inner is not None
    yield f"address add {f'172.20.{uplink}' if middle else f'192.168.{uplink}'}.{_LAST}/24 dev {inside}"


def node_addresses(number: int, uplink: int, *, hidden: bool) -> list[str]:
    """Return ``ip -batch`` lines for a node's ``upU``; ``hidden``: it is behind a NAT."""
    if not hidden:
        return [f"address add 10.201.{uplink}.{number}/24 dev up{uplink}", f"link set up{uplink} up"]
    return [
        f"address add 192.168.{uplink}.{number}/24 dev up{uplink}",
        f"link set up{uplink} up",
        *_by_way_of(f"192.168.{uplink}.{_LAST}", uplink, f"up{uplink}"),
    ]


def _by_way_of(router: str, uplink: int, device: str) -> Iterator[str]:
    yield f"route add 10.201.{uplink}.0/24 via {router} dev {device}"
    yield f"route add default via {router} dev {device} metric {100 + uplink}"


def settings(router: Router, uplinks: int) -> list[str]:
    """Return a router's kernel settings, as ``sysctl`` takes them."""
    found = ["net.ipv4.ip_forward=1"]
    for device in [f"{side}{uplink}" for side in "wl" for uplink in range(uplinks)] if not router.nat else ():
        found += [f"net.ipv4.conf.{device}.proxy_arp=1", f"net.ipv4.neigh.{device}.proxy_delay=0"]
    return found


def rules(router: Router) -> str:
    """Return a router's nftables rules."""
    kind = KINDS[router.kind]
    unasked = 'iifname "w*" ct state new drop' if kind.asked else ""
    private = not kind.nat
    blocked = "".join(
        f"ip {side} {{ {', '.join(_hosts(number, public=private))} }} meta l4proto udp drop\n"
        for number in router.blocked
        for side in ("saddr", "daddr")
    )
    masquerade = f'oifname "w*" masquerade {"random" if kind.random else ""}' if kind.nat else ""
    return f"""table ip lab {{
        chain input {{
            type filter hook input priority filter; policy accept;
            {"" if kind.answers else 'iifname "w*" ct state new drop'}
        }}
        chain forward {{
            type filter hook forward priority filter; policy accept;
            {blocked}
            {unasked}
        }}
        chain out {{
            type nat hook postrouting priority srcnat; policy accept;
            {masquerade}
        }}
    }}
    """


def _hosts(number: int, *, public: bool) -> list[str]:
    network = "10.201" if public else "192.168"
    return [f"{network}.{uplink}.{number}" for uplink in range(8)]
