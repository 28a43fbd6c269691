# SPDX-License-Identifier: GPL-3.0-or-later
"""The guard's nftables rules as text: the overlay's addresses mean the overlay, on every host.

Linux answers for an address on whatever interface a packet comes in by, and a route that is gone leaves the
default route. So the guard looks at each packet by interface: overlay traffic may come and go by the mesh's
interfaces only, and what comes from the mesh may go to this node's overlay addresses only. It is a table of
its own, there before the first interface, kept as it is while the node runs, and left in place when the node
ends.

The networks are those whose traffic is the mesh's. Prefixes ``beyond`` the mesh that this node takes are
guarded in the same way, but for packets that carry the mesh: a router's own address may be in one. A default
route among them is an exit (`overlay/exits.py` says what stays beside it). The verdicts need no connection
tracking, unless ``forward`` names interfaces of machines that use the mesh through this node, or the node
itself ``routes`` prefixes for others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from phantommesh.faults import FaultKind
from phantommesh.nftables.text import add_elements, anonymous, chain_block, set_block
from phantommesh.overlay import exits, moved
from phantommesh.routable import is_exit
from phantommesh.wireguard.device import OUTER_MARK, OUTER_MASK

FORWARD_UNKNOWN = FaultKind("forward-unknown-interface", "low")

FAMILY: Final = "inet"
ARP_FAMILY: Final = "arp"
DROPS: Final = "drops"


class Drop(IntEnum):
    """Why the guard dropped a packet; the number is the element that counts it."""

    FOREIGN = 1  # to or from the overlay, by an interface that is not the mesh's
    BEYOND = 2  # from the mesh: to something else than this node's overlay addresses, or in another's name
    FORWARDED = 3  # between the mesh and another interface
    CLEAR = 4  # for the overlay, about to leave by an interface that is not the mesh's
    NESTED = 5  # WireGuard's or the control port's, about to enter the mesh that it carries, or out of it
    ARP = 6  # a neighbour's question for an overlay address, or one of ours to the neighbours
    AGREED = 7  # from a member of another mesh, and not what the pact with that mesh allows
    QUARANTINED = 8  # from or to a peer whose link is stale


# RFC 792, RFC 4443, RFC 4861: an error quotes the packet that it is about behind eight bytes of its own; a
# redirect of IPv6 names its destination behind another sixteen. Each is a match and the offset of an address.
_ERRORS4: Final = "icmp type { destination-unreachable, redirect, time-exceeded, parameter-problem }"
_ERRORS6: Final = "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"
_REDIRECT6: Final = "icmpv6 type nd-redirect"
_TOO_BIG4: Final = "icmp type destination-unreachable icmp code frag-needed"
_TOO_BIG6: Final = "icmpv6 type packet-too-big"
_QUOTED: Final = (
    (4, _ERRORS4, 64 + 96),
    (4, _ERRORS4, 64 + 128),
    (6, _ERRORS6, 64 + 64),
    (6, _ERRORS6, 64 + 192),
    (6, _REDIRECT6, 64 + 128),
)

_REASONS: Final = {
    Drop.FOREIGN: "guard-foreign",
    Drop.BEYOND: "guard-beyond",
    Drop.FORWARDED: "guard-forwarded",
    Drop.CLEAR: "guard-clear",
    Drop.NESTED: "guard-nested",
    Drop.ARP: "guard-arp",
    Drop.AGREED: "guard-agreed",
    Drop.QUARANTINED: "guard-quarantined",
}

Network = IPv4Network | IPv6Network


Range = tuple[str, int, int]
"""Ports of a protocol, ``tcp`` or ``udp``, from the first to the last."""


@dataclass(frozen=True, slots=True, order=True)
class Visitor:
    """A member of another mesh: its address; the ports of this node that it may use, and its ports that this
    node may use."""

    ip6: IPv6Address
    inbound: tuple[Range, ...]
    outbound: tuple[Range, ...]


Visited = tuple[tuple[IPv6Network, ...], tuple[Visitor, ...]]
"""The networks of other meshes, and their members with whom there is a pact."""


def table_name(device: str) -> str:
    """The table of the node whose scattering interface is ``device``, in both families."""
    return f"phantommesh_guard_{device}"


@dataclass(frozen=True, slots=True)
class Guard:
    """The addresses, ports and interfaces to guard. ``device`` and ``names`` are the mesh's interfaces,
    ``own`` this node's overlay addresses, ``networks`` whose traffic is the mesh's (both families),
    ``control`` and ``wireguard`` the ports of the underlay, ``forward`` the interfaces of machines that use
    the mesh through this node, ``short`` the segments in bytes that those machines may send to peers whose
    route over IPv6 cannot say it. ``beyond`` are the prefixes that this node takes of others, as far as they
    mean the mesh here, ``carriers`` has for those that a router carries now its overlay address, and
    ``beside`` what stays the host's where a default route is one of them. ``routes`` are those that this node
    routes for others; ``sites`` has for some of those the network that is really there (`routing/gateway.py`
    translates). ``returns`` says that answers come back by the network's own routes, for the members' own
    addresses, and not by masquerade. ``around`` are the networks of this host's own interfaces, which are no
    part of a default route that it routes; None while they are not known. ``others`` are those of the
    networks that are other meshes', and ``visitors`` their members with whom there is a pact.
    ``quarantined`` are the addresses of peers with which nothing but probes, at port ``probes``, is
    exchanged."""

    device: str
    names: tuple[str, ...]
    own: tuple[IPv4Address, IPv6Address]
    networks: tuple[Network, ...]
    control: int
    wireguard: tuple[int, ...]
    forward: tuple[str, ...] = ()
    short: tuple[tuple[IPv6Address, int], ...] = ()
    beyond: tuple[Network, ...] = ()
    carriers: tuple[tuple[Network, IPv4Address | IPv6Address], ...] = ()
    routes: tuple[Network, ...] = ()
    sites: tuple[tuple[Network, Network], ...] = ()
    returns: bool = False
    beside: tuple[Network, ...] = ()
    around: tuple[Network, ...] | None = None
    others: tuple[IPv6Network, ...] = ()
    visitors: tuple[Visitor, ...] = ()
    quarantined: tuple[IPv4Address | IPv6Address, ...] = ()
    probes: int = 0

    @property
    def table(self) -> str:
        """The tables' name."""
        return table_name(self.device)

    @property
    def plain(self) -> tuple[Network, ...]:
        """The ``prefixes`` that are there by their own addresses."""
        translated = dict(self.sites)
        return tuple(prefix for prefix in self.prefixes if prefix not in translated)

    @property
    def behind(self) -> tuple[Network, ...]:
        """What is there for the prefixes of ``sites``, each network once."""
        return tuple(dict.fromkeys(site for prefix, site in self.sites if prefix in self.routes))

    @property
    def exit(self) -> bool:
        """Whether this host's own traffic is to leave by an exit."""
        return any(map(is_exit, self.beyond))

    @property
    def linked(self) -> tuple[Network, ...]:
        """What stays beside the exit, with the addresses of each link."""
        return (*self.beside, *exits.LINK) if self.beside else ()

    @property
    def taken(self) -> tuple[Network, ...]:
        """What this node takes beside default routes."""
        return tuple(network for network in self.beyond if not is_exit(network))

    @property
    def prefixes(self) -> tuple[Network, ...]:
        """The routes that are no default routes."""
        return tuple(route for route in self.routes if not is_exit(route))


def render(guard: Guard) -> str:
    """The table of IP's rules. It takes the place of what was there, in one transaction."""
    return _table(
        FAMILY,
        guard,
        [
            *chain_block(
                "arriving", "type filter hook prerouting priority raw; policy accept;", *_arriving(guard)
            ),
            *chain_block("inside", *_inside(guard)),
            *chain_block("quoting", *_quoting(guard)),
            *chain_block("too_big", *_too_big(guard)),
            *_quarantine(guard),
            *(moved.sets() if _moving(guard) else ()),
            *chain_block("entering", _entering(guard), *_apart(guard, "daddr")),
            *_outside(guard),
            *_delivered(guard),
            *chain_block(
                "passing", "type filter hook forward priority filter - 5; policy accept;", *_passing(guard)
            ),
            *_landing(guard),
            *_clamping(guard),
            *_visiting(guard),
            *chain_block(
                "leaving", "type filter hook postrouting priority 300; policy accept;", *_leaving(guard)
            ),
        ],
    )


def render_arp(guard: Guard) -> str:
    """The table of ARP's rules: neighbours cannot ask who has an overlay address, and are not asked."""
    networks = [n for n in guard.networks if n.version == 4]
    rules = [f"arp daddr ip {anonymous(networks)} {_drop(Drop.ARP)}"] if networks else []
    hook = "type filter hook {} priority filter; policy accept;"
    return _table(
        ARP_FAMILY,
        guard,
        [
            *chain_block("arriving", hook.format("input"), *rules),
            *chain_block("leaving", hook.format("output"), *rules),
        ],
    )


def read_drops(counters: Mapping[int, tuple[int, int]]) -> dict[str, int]:
    """Packets dropped by reason, from a table's set of counters."""
    return {_REASONS[drop]: counters[drop][0] for drop in Drop if drop in counters}


def _table(family: str, guard: Guard, chains: Sequence[str]) -> str:
    table = f"{family} {guard.table}"
    drops = [d for d in Drop if (d is Drop.ARP) == (family == ARP_FAMILY)]
    lines = [
        f"add table {table}",
        f"delete table {table}",
        f"table {table} {{",
        *set_block(DROPS, "type mark", "counter"),
        *(line for drop in drops for line in _end(drop)),
        *chains,
        "}",
        add_elements(table, DROPS, [str(int(drop)) for drop in drops]),
    ]
    return "\n".join(lines) + "\n"


def _drop(why: Drop) -> str:
    return f"goto drop_{why.name.lower()}"


def _end(why: Drop) -> list[str]:
    """The chain that counts and drops. The mark is the key of the counter, on a packet that goes no further.
    The second rule drops where somebody has emptied the set."""
    return chain_block(
        f"drop_{why.name.lower()}", f"meta mark set {int(why)} meta mark @{DROPS} drop", "drop"
    )


def _overlay(guard: Guard, end: str) -> list[str]:
    """Matches of packets whose ``end`` (saddr, daddr) is in the overlay, one a family."""
    return _ends(guard.networks, end)


def _routed(guard: Guard, source: Sequence[Network], target: Sequence[Network]) -> list[str]:
    """Matches of packets from one of some networks to one of others, one a family."""
    found = []
    for version, header in ((4, "ip"), (6, "ip6")):
        both = [[n for n in networks if n.version == version] for networks in (source, target)]
        if all(both):
            found.append(f"{header} saddr {anonymous(both[0])} {header} daddr {anonymous(both[1])}")
    return found


def _ends(networks: Sequence[Network], end: str) -> list[str]:
    """Matches of packets whose ``end`` (saddr, daddr) is in one of these networks, one a family."""
    found = []
    for version, header in ((4, "ip"), (6, "ip6")):
        mine = [n for n in networks if n.version == version]
        if any(map(is_exit, mine)):
            found.append(f"meta nfproto ipv{version}")
        elif mine:
            found.append(f"{header} {end} {anonymous(mine)}")
    return found


def _names(names: Sequence[str]) -> str:
    return anonymous(f'"{name}"' for name in names)


def _arriving(guard: Guard) -> list[str]:
    # To members, and never to this node's own overlay addresses; `passing` sees the rest.
    returning = [
        f"{match} {match.split()[0]} daddr != {guard.own[match.startswith('ip6')]}"
        for match in _routed(guard, (*guard.plain, *guard.behind), guard.networks)
        if guard.returns
    ]
    rules = [
        'iifname "lo" accept',
        f"iifname {_names((guard.device, *guard.names))} goto inside",
        # The network sees members by their own addresses, so it has errors for them.
        *(f"{_ERRORS6 if '6' in match.split()[0] else _ERRORS4} {match} accept" for match in returning),
        *(f"{match} jump quoting" for match in (_ERRORS4, _ERRORS6, _REDIRECT6)),
    ]
    rules += [f"{match} {_drop(Drop.FOREIGN)}" for match in _overlay(guard, "saddr")]
    # The addresses of a taken prefix come by the mesh. The underlay's own packets are authenticated by what
    # takes them.
    rules += [f"{match} goto outside" for match in _ends(guard.beyond, "saddr")]
    if guard.forward:
        rules.append(f"iifname {_names(guard.forward)} accept")
    rules += [f"{match} accept" for match in returning]
    return rules + [
        f"{match} {_drop(Drop.FOREIGN)}"
        for match in (*_overlay(guard, "daddr"), *_ends(guard.beyond, "daddr"))
    ]


def _outside(guard: Guard) -> list[str]:
    """The chain for what comes by the underlay from an address of a taken prefix: what carries the mesh may,
    and answers to this node's own connections of the control port. With an exit that is all that comes: it
    is marked, so that the kernel finds that the way back is the underlay's (`host/beyond.py`)."""
    if not guard.beyond:
        return []
    if guard.exit:
        mark = f"meta mark set meta mark & {~OUTER_MASK & 0xFFFFFFFF:#x} | {OUTER_MARK:#x}"
        return chain_block(
            "outside",
            *([f"iifname {_names(guard.forward)} accept"] if guard.forward else ()),
            *(f"{match} {_drop(Drop.FOREIGN)}" for match in _overlay(guard, "daddr")),
            *exits.arriving(guard.linked, guard.taken),
            mark,
            f"udp dport {_outer(guard)} accept",
            f"tcp dport {guard.control} accept",
            # Nothing but the node itself begins a connection by these interfaces.
            "tcp flags & (syn | ack) != syn accept",
            _drop(Drop.FOREIGN),
        )
    return chain_block(
        "outside",
        *(f"{match} {_drop(Drop.FOREIGN)}" for match in _overlay(guard, "daddr")),
        f"udp dport {_outer(guard)} accept",
        f"tcp dport {guard.control} accept",
        f"tcp sport {guard.control} tcp flags & (syn | ack) != syn accept",
        _drop(Drop.FOREIGN),
    )


def _quoting(guard: Guard) -> list[str]:
    """Errors from the underlay about packets of the overlay, of which the underlay has seen none: the kernel
    would take a path's MTU from them, or a route."""
    rules = []
    for version, match, offset in _QUOTED:
        for network in guard.networks:
            if network.version == version:
                length = network.prefixlen
                prefix = int(network.network_address) >> network.max_prefixlen - length
                rules.append(f"{match} @th,{offset},{length} {prefix} {_drop(Drop.FOREIGN)}")
    return rules


def _inside(guard: Guard) -> list[str]:
    four, six = guard.own
    return [
        # A handshake or a WireGuard packet out of the tunnel would have the sender's endpoint roam into it.
        f"udp dport {_outer(guard)} {_drop(Drop.NESTED)}",
        f"tcp dport {guard.control} tcp flags & (syn | ack) == syn {_drop(Drop.NESTED)}",
        *_apart(guard, "saddr"),
        f"icmp type redirect {_drop(Drop.BEYOND)}",
        f"icmpv6 type nd-redirect {_drop(Drop.BEYOND)}",
        f"{_TOO_BIG4} goto too_big",
        f"{_TOO_BIG6} goto too_big",
        *_strange(guard),
        # `visiting` sees the rest, after the kernel has told answers from questions.
        *(f"ip6 saddr {anonymous(guard.others)} ip6 daddr {six} accept" for _ in guard.others[:1]),
        *(f"ip6 saddr {anonymous(guard.others)} {_drop(Drop.AGREED)}" for _ in guard.others[:1]),
        f"ip daddr {four} accept",
        f"ip6 daddr {six} accept",
        # A prefix that this node routes: members' own addresses may send there, by WireGuard's word.
        *(f"{match} accept" for match in _there(guard)),
        _drop(Drop.BEYOND),
    ]


def _apart(guard: Guard, end: str) -> list[str]:
    """Rules for what comes from peers in quarantine (saddr), or is for them (daddr)."""
    found = []
    for version, header in ((4, "ip"), (6, "ip6")):
        addresses = [address for address in guard.quarantined if address.version == version]
        if addresses:
            found.append(f"{header} {end} {anonymous(addresses)} jump quarantine")
    return found


def _quarantine(guard: Guard) -> list[str]:
    """The chain that lets the node's own probes pass to and from such peers: they carry nothing that has to
    be kept secret, and without them each path would be given up, and be looked for again afterwards."""
    if not guard.quarantined:
        return []
    both = f"udp sport {guard.probes} udp dport {guard.probes} return"
    return chain_block("quarantine", both, _drop(Drop.QUARANTINED))


def _too_big(guard: Guard) -> list[str]:
    """There is no router in the mesh, and all of its interfaces have one MTU: a member that says otherwise
    would set the MTU of other members' paths. Beyond the mesh there are others, and who carries a prefix may
    say so of this node's own packets for the prefix, in its own name or an address there. WireGuard vouches
    for both: it takes neither from anybody else."""
    rules = [f"{_about(network)} {_drop(Drop.BEYOND)}" for network in guard.networks if guard.carriers]
    # A packet went to who carries the longest of the prefixes that it was for, and nobody else has seen it.
    for network, router in sorted(guard.carriers, key=lambda one: -one[0].prefixlen):
        four = network.version == 4
        header, match, at, bits = ("ip", _TOO_BIG4, 64 + 96, 32) if four else ("ip6", _TOO_BIG6, 64 + 64, 128)
        own, senders = guard.own[not four], [f"{header} saddr {anonymous((router, network))}"]
        about = f"{header} daddr {own} @th,{at},{bits} {int(own):#x}"
        if is_exit(network):  # whoever carries all sends in everybody's name but other members'
            members = [n for n in guard.networks if n.version == network.version]
            senders = [f"{header} saddr {router}", f"{header} saddr != {anonymous(members)}"]
        else:
            about += f" {_quoted(network)}"
        rules += [f"{match} {sender} {about} accept" for sender in senders]
        rules += [] if is_exit(network) else [f"{_about(network)} {_drop(Drop.BEYOND)}"]
    return [*rules, _drop(Drop.BEYOND)]


def _about(network: Network) -> str:
    """A match of the errors that say of a packet for a network that it was too big."""
    return f"{_TOO_BIG4 if network.version == 4 else _TOO_BIG6} {_quoted(network)}"


def _quoted(network: Network) -> str:
    """A match of such errors of the network's family whose packet was for the network, no default route."""
    at, bits = (64 + 128, 32) if network.version == 4 else (64 + 192, 128)
    return f"@th,{at},{network.prefixlen} {int(network.network_address) >> bits - network.prefixlen:#x}"


def _there(guard: Guard) -> list[str]:
    """Matches of what members may send beyond the mesh by this node."""
    return [
        *_routed(guard, guard.networks, guard.prefixes),
        *exits.led(guard.networks, guard.routes, guard.around),
    ]


def _delivered(guard: Guard) -> list[str]:
    """The chain for what comes to this host itself out of the mesh, where it is an exit: its public addresses
    are in the default route, and are no members'."""
    if guard.prefixes == guard.routes:
        return []
    four, six = guard.own
    return chain_block(
        "delivered",
        "type filter hook input priority filter - 5; policy accept;",
        f"iifname != {_names((guard.device, *guard.names))} accept",
        f"ip daddr {four} accept",
        f"ip6 daddr {six} accept",
        *(f"{match} accept" for match in _ends((*guard.plain, *guard.behind), "daddr")),
        _drop(Drop.BEYOND),
    )


def _strange(guard: Guard) -> list[str]:
    """Drops of what no member may send. WireGuard takes from a router whatever is in the prefix that it
    carries. A part of the prefix that this host has itself is no part of `Guard.beyond`: nobody in the mesh
    speaks for those addresses."""
    rules = []
    for version, header in ((4, "ip"), (6, "ip6")):
        beyond = [n for n in guard.beyond if n.version == version]
        if any(map(is_exit, beyond)):
            # Nor for a link's: a router's advertisement would make routes into one of the mesh's interfaces.
            here = [n for n in (*guard.beside, *exits.LINK) if n.version == version]
            taken = [n for n in guard.taken if n.version == version]
            but = f"{header} saddr != {anonymous(taken)} " if taken else ""
            rules.append(f"{header} saddr {anonymous(here)} {but}{_drop(Drop.BEYOND)}")
        elif beyond:
            known = [n for n in (*guard.networks, *guard.beyond) if n.version == version]
            rules.append(f"{header} saddr != {anonymous(known)} {_drop(Drop.BEYOND)}")
    return rules


def _passing(guard: Guard) -> list[str]:
    ours, rules = _names((guard.device, *guard.names)), list[str]()
    if guard.others:  # a port that the host publishes by DNAT is none that `visiting` sees
        rules += [f"iifname {ours} ip6 saddr {anonymous(guard.others)} {_drop(Drop.FORWARDED)}"]
    if guard.exit:  # what carries the mesh is for this host: nobody behind it goes by the mark that it gets
        rules.append(f"oifname != {ours} {_marked()} {_drop(Drop.FORWARDED)}")
    if guard.forward:
        behind = _names(guard.forward)
        rules += [
            f"iifname {behind} oifname {ours} accept",
            # Answers, and what the host itself has published by DNAT at its overlay address.
            f"iifname {ours} oifname {behind} ct state established,related accept",
            f"iifname {ours} oifname {behind} ct status dnat accept",
        ]
    if _moving(guard):
        out = _routed(guard, guard.networks, guard.plain)
        rules += moved.noting([f"iifname {ours} oifname != {ours} {match}" for match in out])
    # What is for a site is translated by now. Where nothing did that, it is for somebody else.
    for there, translated in ((guard.plain, ""), (guard.behind, " ct status dnat")):
        rules += [
            f"iifname {ours} oifname != {ours} {match}{translated} accept"
            for match in _routed(guard, guard.networks, there)
        ]
        rules += [
            f"iifname != {ours} oifname {ours} {match} ct state established,related{translated} accept"
            for match in _routed(guard, there, guard.networks)
        ]
    if _moving(guard):
        back = _routed(guard, guard.plain, guard.networks)
        rules += moved.passing([f"iifname != {ours} oifname {ours} {match}" for match in back])
    rules += [
        f"iifname {ours} oifname != {ours} {match} accept"
        for match in exits.led(guard.networks, guard.routes, guard.around)
    ]
    rules += [
        f"iifname != {ours} oifname {ours} {match} ct state established,related accept"
        for match in exits.answered(guard.networks, guard.routes)
    ]
    return [*rules, f"iifname {ours} {_drop(Drop.FORWARDED)}", f"oifname {ours} {_drop(Drop.FORWARDED)}"]


def _moving(guard: Guard) -> bool:
    """Whether connections to what this node routes can go on by another router, and come back."""
    return guard.returns and bool(guard.plain)


def _visiting(guard: Guard) -> list[str]:
    """The chain for what members of other meshes send to this node: to the ports that the pact opens to them;
    and answers from those that it opens to this node. The ports are looked at in each packet, so what is
    closed is closed for connections that are open, too."""
    if not guard.others:
        return []
    rules = list[str]()
    for one in guard.visitors:
        rules += [
            f"ip6 saddr {one.ip6} {protocol} dport {first}-{last} accept"
            for protocol, first, last in one.inbound
        ]
        answers = "ct direction reply ct state established"
        rules += [
            f"ip6 saddr {one.ip6} {protocol} sport {first}-{last} {answers} accept"
            for protocol, first, last in one.outbound
        ]
    return [
        *chain_block("agreed", *rules, _drop(Drop.AGREED)),
        *chain_block(
            "visiting",
            "type filter hook input priority filter - 5; policy accept;",
            f"iifname {_names((guard.device, *guard.names))} ip6 saddr {anonymous(guard.others)} goto agreed",
        ),
    ]


def _landing(guard: Guard) -> list[str]:
    """The chain that keeps what is for a site and was not translated from this host: the prefix may be its
    own network, too."""
    ours = _names((guard.device, *guard.names))
    matches = _ends([prefix for prefix, _ in guard.sites if prefix in guard.routes], "daddr")
    if not matches:
        return []
    return chain_block(
        "landing",
        "type filter hook input priority filter - 5; policy accept;",
        *(f"iifname {ours} {match} ct status & dnat == 0 {_drop(Drop.BEYOND)}" for match in matches),
    )


def _clamping(guard: Guard) -> list[str]:
    """The chain by which machines behind this node and members ask each other for TCP segments that the route
    takes, there and back. Routes know what each peer's paths carry, and such a machine may not hear the ICMP
    errors that say so. The kernel only ever lowers a size."""
    if not guard.forward and not guard.routes:
        return []
    ours = _names((guard.device, *guard.names))
    fit = "tcp flags & (syn | rst) == syn tcp option maxseg size set"
    rules = [f"{way} {ours} {fit} rt mtu" for way in ("oifname", "iifname")]
    if guard.short:
        sizes = anonymous(f"{host} : {size}" for host, size in guard.short)
        rules += [
            f"{way} {ours} {fit} ip6 {end} map {sizes}"
            for way, end in (("oifname", "daddr"), ("iifname", "saddr"))
        ]
    return chain_block("clamping", "type filter hook forward priority mangle; policy accept;", *rules)


def _entering(guard: Guard) -> str:
    """By the mark and the port: other programs have marks of their own, which may look like ours."""
    return f"{_marked()} udp sport {_outer(guard)} {_drop(Drop.NESTED)}"


def _marked() -> str:
    return f"meta mark & {OUTER_MASK:#x} == {OUTER_MARK:#x}"


def _outer(guard: Guard) -> str:
    return anonymous(sorted({guard.control, *guard.wireguard}))


def _leaving(guard: Guard) -> list[str]:
    ours = _names((guard.device, *guard.names))
    return [
        'oifname "lo" accept',
        f"oifname {ours} goto entering",
        *(f"{match} {_drop(Drop.CLEAR)}" for match in _overlay(guard, "daddr")),
        # What carries the mesh goes to routers whose own address is in a taken prefix.
        *(f"{_marked()} udp sport {_outer(guard)} accept" for _ in guard.beyond[:1]),
        *(f"{_marked()} meta l4proto tcp accept" for _ in guard.beyond[:1]),
        *(exits.leaving(guard.linked, guard.taken, _drop(Drop.CLEAR)) if guard.exit else ()),
        *(f"{match} {_drop(Drop.CLEAR)}" for match in _ends(guard.beyond, "daddr")),
    ]
