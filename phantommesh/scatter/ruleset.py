# SPDX-License-Identifier: GPL-3.0-or-later
"""The nftables ruleset that scatters, as data and as text for ``nft -f -``.

A packet on its way out of the mesh's own device is looked up by destination; its peer's chain deals it a
card, which is a mark; one rule counts the mark and forwards the packet to the mark's dimension. A mark holds
the peer's slot, the class of the traffic (`scatter/intents.py`), which of two epochs dealt it, and the
dimension, so the counters of an epoch that has ended stand still.

Every map has exact keys: flushing and filling an interval map in one transaction loses look-ups (nf_tables).
nft 1.0.6 wants a line break before a closing brace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, Literal, assert_never

from phantommesh.config.intents import CGROUP_MARKS, MAX_CLASSES
from phantommesh.dimensions import DIMENSIONS
from phantommesh.nftables.text import add_elements, anonymous, chain_block, map_block, set_block
from phantommesh.routable import is_exit
from phantommesh.scatter.peermap import CLOSED, DROPPED, MISSED, SPLIT, PeerMap, mark

Hook = Literal["egress", "mark"]
FAMILY: Final[dict[Hook, str]] = {"egress": "netdev", "mark": "inet"}

UNKNOWN: Final = 0
"""The mark that counts packets to nobody known or keyed, which are dropped."""

STRANDED: Final = 8
"""The mark that counts packets whose card led nowhere: they take the fallback dimension. Its key in the map
of ways too."""

_HASHES: Final = 0xFFFFFFFF
_FLOWLETS: Final = 65535
_FOUR: Final = ("ip saddr", "ip daddr")
_SIX: Final = ("ip6 saddr", "ip6 daddr")

# Tuning.
SEGMENT: Final = 1380  # bytes of TCP's in a packet of 1420 over IPv4; 20 less over IPv6
SEGMENT_STEP, SEGMENT_SIZES = 4, 64  # down to 1128

WAYS: Final = "ways"
HITS: Final = "hits"
FLOWLETS: Final = "flowlets"
CONFINED: Final = "confined"
"""The set of the classes whose packets do not take the fallback: their marks without the low five bits."""
PEERS: Final = ("peers4", "peers6")

BEYOND: Final = "beyond"
"""The chain that looks up prefixes beyond the mesh, after no peer's own address was found. Rules, and no map
of intervals: a map that is flushed and filled in one transaction misses look-ups, rules that are replaced in
one miss none (docs/decisions/0067-traffic-beyond-the-mesh.md)."""


def table_name(device: str) -> str:
    """The table of the node whose interface is ``device``."""
    return f"phantommesh_{device}"


@dataclass(frozen=True, slots=True)
class Frame:
    """The node's own part of the ruleset. ``device`` is the interface that the overlay's routes point at,
    ``networks`` the prefixes that they are for, ``own`` this node's overlay addresses, ``seed`` of the flows'
    hash, ``flowlet_ms`` the pause after which a flow may change its way, ``overlay`` those of the prefixes
    that have members' addresses."""

    hook: Hook
    table: str
    device: str
    networks: Sequence[IPv4Network | IPv6Network]
    own: tuple[IPv4Address, IPv6Address]
    seed: int
    flowlet_ms: int
    overlay: Sequence[IPv4Network | IPv6Network] = ()

    @property
    def family(self) -> str:
        """The table's family."""
        return FAMILY[self.hook]


def dropped(counters: Mapping[int, tuple[int, int]], slots: Iterable[int]) -> dict[str, int]:
    """Count what was not scattered, by reason: three kinds are dropped, two took the fallback dimension."""
    parts = [slot << 8 | number << 5 for slot in slots for number in range(MAX_CLASSES)]
    return {
        "scatter-unknown": counters.get(UNKNOWN, (0, 0))[0],
        "scatter-drained": sum(counters.get(part | DROPPED, (0, 0))[0] for part in parts),
        "scatter-closed": sum(counters.get(part | CLOSED, (0, 0))[0] for part in parts),
        "scatter-missed": sum(counters.get(part | MISSED, (0, 0))[0] for part in parts),
        "scatter-stranded": counters.get(STRANDED, (0, 0))[0],
    }


@dataclass(frozen=True, slots=True, order=True)
class Beyond:
    """A prefix beyond the mesh, and the slot of the peer that carries it."""

    prefix: IPv4Network | IPv6Network
    slot: int


def ways(indexes: Sequence[int | None]) -> dict[int, int]:
    """The map of ways: a mark's low bits to the interface index of the dimension. A dimension whose interface
    is missing (None) has none; the fallback is the first that is there."""
    found = {i + 1: index for i, index in enumerate(indexes) if index is not None}
    return found | ({STRANDED: next(iter(found.values()))} if found else {})


def render(
    frame: Frame, way: Mapping[int, int], peers: Sequence[PeerMap], beyond: Iterable[Beyond] = ()
) -> str:
    """The whole ruleset. It takes the place of what the table held before, in one transaction."""
    table = f"{frame.family} {frame.table}"
    lines = [
        f"add table {table}",
        f"delete table {table}",
        f"table {table} {{",
        *map_block(WAYS, "type mark : iface_index"),
        *set_block(HITS, "type mark", "counter"),
        *set_block(CONFINED, "type mark"),
        *map_block(PEERS[0], "type ipv4_addr : verdict"),
        *map_block(PEERS[1], "type ipv6_addr : verdict"),
        *map_block(
            FLOWLETS,
            "typeof numgen inc mod 2 : meta mark",
            f"size {_FLOWLETS}",
            "flags dynamic, timeout",
            f"timeout {frame.flowlet_ms}ms",
        ),
        *chain_block("out", *_out(frame)),
        *chain_block(BEYOND),
        *chain_block(
            "hash_flow", *(f"{which} meta mark set {key} return" for which, key in _flow(frame, 256))
        ),
        *chain_block("known_flow", *_known(frame)),
        *chain_block("learn_flow", *_learn(frame)),
        *_entry(frame),
        "}",
        add_elements(table, HITS, [f"{UNKNOWN}", f"{STRANDED}"]),
    ]
    if way:
        lines.append(add_elements(table, WAYS, [f"{key} : {index}" for key, index in way.items()]))
    text = "\n".join(lines) + "\n" + "".join(render_peer(frame, peer) for peer in peers)
    return text + render_beyond(frame, beyond)


def clear_beyond(frame: Frame) -> str:
    """Have no prefix beyond the mesh lead to a peer: first in a transaction that removes peers."""
    return f"flush chain {frame.family} {frame.table} {BEYOND}\n"


def render_beyond(frame: Frame, beyond: Iterable[Beyond]) -> str:
    """Have these prefixes lead to their peers, the longest first. In one transaction after `clear_beyond` no
    packet finds the chain empty. What is left of the overlay is for nobody, and for no exit."""
    rule = f"add rule {frame.family} {frame.table} {BEYOND}"
    longest = sorted(beyond, key=lambda one: (-one.prefix.prefixlen, one.prefix.version, one))
    lines = list[str]()
    for one in longest:
        version = one.prefix.version
        overlay = [network for network in frame.overlay if network.version == version]
        if is_exit(one.prefix) and overlay:
            lines.append(f"{rule} {'ip' if version == 4 else 'ip6'} daddr {anonymous(overlay)} return\n")
        lines.append(f"{rule} {_leads_to(one.prefix)} goto peer_{one.slot}\n")
    return "".join(lines)


def _leads_to(prefix: IPv4Network | IPv6Network) -> str:
    header = "ip" if prefix.version == 4 else "ip6"
    return f"meta protocol {header}" if is_exit(prefix) else f"{header} daddr {prefix}"


def render_peer(frame: Frame, peer: PeerMap) -> str:
    """Add a peer to the ruleset; the last thing in the transaction is that packets find it."""
    table = f"{frame.family} {frame.table}"
    clear = ["meta mark set 0"] if peer.classes else []  # the class is known
    lines = [
        *(line for part in peer.each for line in _objects(table, part)),
        *(
            add_elements(table, name, [f"{i} : {value}" for i, value in elements.items()])
            for name, elements in peer.maps.items()
        ),
        *(f"add chain {table} peer_{part.suffix}" for part in peer.each),
        *(
            f"add rule {table} peer_{peer.slot} {match} goto peer_{part.suffix}"
            for part in peer.classes
            for match in part.matches
        ),
        *(
            f"add rule {table} peer_{part.suffix} {rule}"
            for part in peer.each
            for rule in (
                *clear, *_segments(part), *_deal(frame, part), f"meta mark set {part.missed} goto out"
            )
        ),
        *(add_elements(table, CONFINED, [str(part.bare)]) for part in peer.classes if part.confined),
        *(
            add_elements(table, name, [f"{address} : goto peer_{peer.slot}"])
            for name, address in _addressed(peer)
        ),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def render_removal(frame: Frame, peer: PeerMap) -> str:
    """Take a peer out of the ruleset: its packets are dropped and counted from then on."""
    table = f"{frame.family} {frame.table}"
    lines = [
        *(f"delete element {table} {name} {{ {address} }}" for name, address in _addressed(peer)),
        *(f"flush chain {table} peer_{part.suffix}" for part in peer.each),
        *(f"delete chain {table} peer_{part.suffix}" for part in peer.each),
    ]
    for part in peer.each:
        lines += [f"delete map {table} {part.name}"]
        lines += [] if part.deck is None else [f"delete {which}" for which in _of_split(table, part)]
        lines += [f"delete element {table} {HITS} {{ {', '.join(map(str, _counted(part)))} }}"]
        lines += [f"delete element {table} {CONFINED} {{ {part.bare} }}"] if part.confined else []
    return "\n".join(lines) + "\n"


def _addressed(peer: PeerMap) -> list[tuple[str, IPv4Address | IPv6Address]]:
    """The maps in which packets find a peer, each with the peer's address there."""
    both = zip(PEERS, (peer.ip4, peer.ip6), strict=True)
    return [(name, address) for name, address in both if address is not None]


def _objects(table: str, part: PeerMap) -> list[str]:
    """The commands that add the map of a part, still empty, and its counters."""
    key = "type mark : mark" if part.scheduler == "flow" else "typeof numgen inc mod 2 : meta mark"
    return [
        f"add map {table} {part.name} {{ {key} ; size {part.length} ; }}",
        add_elements(table, HITS, list(map(str, _counted(part)))),
        *_splitting(table, part),
    ]


def _counted(part: PeerMap) -> list[int]:
    """The marks of a part that are counted."""
    cards = [mark(part.slot, parity, i, part.number) for parity in (0, 1) for i in range(DIMENSIONS)]
    none = (
        [MISSED, CLOSED, DROPPED] if part.number else [MISSED, DROPPED]
    )  # what is of no class is not closed
    return [*(part.bare | low for low in none), *cards]


def _deal(frame: Frame, peer: PeerMap) -> list[str]:
    """The rules that give a packet its card."""
    deck, n = f"map @{peer.name}", peer.length
    match peer.scheduler:
        case "packet":
            return [*_fragments(frame, peer), f"meta mark set numgen random mod {n} {deck} goto out"]
        case "deck" | "batch":
            return [*_fragments(frame, peer), f"meta mark set numgen inc mod {n} {deck} goto out"]
        case "flow":
            if peer.deck is None:
                return ["jump hash_flow", f"meta mark set meta mark & {n - 1} {deck} goto out"]
            split = f"meta mark {peer.bare | SPLIT}"
            return [
                "jump hash_flow",
                f"meta mark @{peer.flows}",
                f"meta mark set meta mark & {n - 1} {deck} meta mark & 15 != {SPLIT} goto out",
                *(f"{split} {rule}" for rule in _fragments(frame, peer, peer.deck_name)),
                f"{split} meta mark set numgen inc mod {n} map @{peer.deck_name} goto out",
            ]
        case "flowlet":
            return [
                "jump known_flow",
                f"meta mark set numgen random mod {n} {deck} jump learn_flow",
                "meta mark != 0 goto out",
            ]
        case _:
            assert_never(peer.scheduler)


def _segments(peer: PeerMap) -> list[str]:
    """The rule by which the other end is to send segments of another size in each connection, so that neither
    their number nor the length of the last one is the same from load to load. A size that is small already is
    somebody's need, and stays."""
    if not peer.segments:
        return []
    sizes = ", ".join(f"{i} : {SEGMENT - SEGMENT_STEP * i}" for i in range(SEGMENT_SIZES))
    full = f"tcp flags & (syn | rst) == syn tcp option maxseg size >= {SEGMENT - 20}"
    return [f"{full} tcp option maxseg size set numgen random mod {SEGMENT_SIZES} map {{ {sizes} }}"]


def _of_split(table: str, peer: PeerMap) -> list[str]:
    """The objects of a peer that are there because its flows may be split."""
    return [f"map {table} {peer.deck_name}", f"set {table} {peer.flows}"]


def _splitting(table: str, peer: PeerMap) -> list[str]:
    """The commands that add those, the counters with their elements."""
    if peer.deck is None:
        return []
    deck, flows = _of_split(table, peer)
    return [
        f"add {deck} {{ typeof numgen inc mod 2 : meta mark ; size {peer.length} ; }}",
        f"add {flows} {{ type mark ; size {peer.length} ; counter ; }}",
        add_elements(table, peer.flows, [str(bucket) for bucket in range(peer.length)]),
    ]


def _fragments(frame: Frame, peer: PeerMap, cards: str = "") -> list[str]:
    """The rules that keep the fragments of one datagram together. On several ways at once they would be
    interleaved with those of many others, and Linux gives up a datagram when 64 more of the same sender have
    begun before it is whole (ipfrag_max_dist)."""
    return [
        f"{which} meta mark set {key} map @{cards or peer.name} goto out"
        for which, key in _fragment(frame, peer.length)
    ]


def _known(frame: Frame) -> list[str]:
    """The rules that give a packet the mark of its flowlet, and keep the flowlet alive."""
    return [
        f"{which} meta mark set {key} map @{FLOWLETS} update @{FLOWLETS} {{ {key} : meta mark }} goto out"
        for which, key in _flow(frame, _HASHES)
    ]


def _learn(frame: Frame) -> list[str]:
    """The rules that remember a packet's mark for the rest of its flowlet."""
    return [
        f"{which} update @{FLOWLETS} {{ {key} : meta mark }} return" for which, key in _flow(frame, _HASHES)
    ]


def _flow(frame: Frame, modulus: int) -> list[tuple[str, str]]:
    """Return the definition of a flow, as a match and a hash: the 5-tuple where there are ports, the
    addresses where there are none. All fragments of a datagram go together."""
    ports = ("meta l4proto", "th sport", "th dport")
    return [
        *_fragment(frame, modulus),
        ("meta protocol ip meta l4proto { tcp, udp }", _hash(frame, modulus, *_FOUR, *ports)),
        ("meta protocol ip", _hash(frame, modulus, *_FOUR, "meta l4proto")),
        ("meta protocol ip6 meta l4proto { tcp, udp }", _hash(frame, modulus, *_SIX, *ports)),
        ("meta protocol ip6", _hash(frame, modulus, *_SIX, "meta l4proto")),
    ]


def _fragment(frame: Frame, modulus: int) -> list[tuple[str, str]]:
    """Return what tells one datagram's fragments from another's, as a match and a hash."""
    return [
        ("ip frag-off & 0x3fff != 0", _hash(frame, modulus, *_FOUR, "ip id")),
        ("ip6 nexthdr 44", _hash(frame, modulus, *_SIX, "frag id")),
    ]


def _hash(frame: Frame, modulus: int, *fields: str) -> str:
    return f"jhash {' . '.join(fields)} mod {modulus} seed {frame.seed:#x}"


def _out(frame: Frame) -> list[str]:
    """Count the mark, then send the packet where it says. A packet that has no way takes the fallback, and is
    counted; one of a class that may not is dropped."""
    bare = f"meta mark & {0xFFFFFFFF & ~31:#x}"
    confined = [
        f"{bare} @{CONFINED} meta mark set {bare} | {CLOSED} meta mark @{HITS} drop",
        f"meta mark & 15 == {CLOSED} drop",  # though somebody has emptied the counters
    ]
    match frame.hook:
        case "egress":
            go = f"fwd to meta mark & 15 map @{WAYS}"
            return [
                f"meta mark @{HITS} {go}",
                f"meta mark & 15 {{ {CLOSED}, {DROPPED} }} drop",
                *confined,
                f"meta mark set {STRANDED} meta mark @{HITS} {go}",
                "drop",
            ]
        case "mark":
            numbers = ", ".join(str(i + 1) for i in range(DIMENSIONS))
            return [
                f"meta mark @{HITS} meta mark & 15 {{ {numbers} }} accept",
                f"meta mark & 15 {{ {CLOSED}, {DROPPED} }} drop",
                *confined,
                f"meta mark set {STRANDED} meta mark @{HITS} accept",
                "drop",
            ]
        case _:
            assert_never(frame.hook)


def _entry(frame: Frame) -> list[str]:
    look_up = [
        # What is marked by its cgroup keeps that until its class is known.
        f"meta mark & 0xff000000 != {CGROUP_MARKS:#x} meta mark set 0",
        f"ip daddr vmap @{PEERS[0]}",
        f"ip6 daddr vmap @{PEERS[1]}",
        f"jump {BEYOND}",
        "meta mark set 0",
        f"meta mark @{HITS}",
    ]
    match frame.hook:
        case "egress":
            hook = f'type filter hook egress device "{frame.device}" priority 0; policy drop;'
            # Neighbours and routers are none's business here: the kernel asks for them on any IPv6 interface.
            return chain_block("egress", hook, "ip6 daddr ff00::/8 drop", *look_up)
        case "mark":
            own4, own6 = frame.own
            mine = [
                f"ip daddr {own4} return",
                f"ip6 daddr {own6} return",
                *(
                    f"{'ip' if network.version == 4 else 'ip6'} daddr {network} goto overlay"
                    for network in frame.networks
                    if not is_exit(network)
                ),
            ]
            # All is for an exit that is routed to the mesh, and nothing that comes from elsewhere.
            gates = [
                f'oifname "{frame.device}" meta protocol {"ip" if gate.version == 4 else "ip6"} goto overlay'
                for gate in filter(is_exit, frame.networks)
            ]
            return [
                *chain_block("overlay", *look_up, "drop"),
                *chain_block(
                    "output",
                    "type route hook output priority mangle; policy accept;",
                    f'oifname "{frame.device}" jump addressed',
                    *gates,
                ),
                # After NAT, which gives an answer the address of whom it is for: a router of prefixes may
                # hide members behind its own.
                *chain_block(
                    "prerouting",
                    "type filter hook prerouting priority dstnat + 5; policy accept;",
                    "jump addressed",
                ),
                *chain_block("addressed", *mine),
            ]
        case _:
            assert_never(frame.hook)
