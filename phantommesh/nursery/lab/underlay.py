# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks between a lab's nodes, as values: NATs, firewalls, blocked UDP, MTU, regions.

A *kind* says what stands between nodes and the lab's segments. `KINDS` has the simple ones. ``A/B`` is kind A
behind kind B, and ``KIND+2`` is one of the kind with two nodes behind it. Node 1 is public, since the others
join by its address. Kinds are dealt to the nodes from node 2 on, in turn.
"""

import re
from typing import Final

import msgspec

from phantommesh.nursery.lab.errors import LabError


class Kind(msgspec.Struct, frozen=True):
    """A router. ``nat``: it masquerades. ``random``: under random ports, not the node's own where free.
    ``answers``: its closed ports say so (its INPUT accepts). ``asked``: it lets in only what was asked
    for."""

    nat: bool = True
    random: bool = False
    answers: bool = True
    asked: bool = True


PUBLIC: Final = "public"
KINDS: Final = {
    PUBLIC: Kind(nat=False, asked=False),
    "firewall": Kind(nat=False, answers=False),
    "preserve": Kind(),
    "preserve-drop": Kind(answers=False),
    "random": Kind(random=True),
    "random-drop": Kind(random=True, answers=False),
}
_ALIASES: Final = {"none": PUBLIC, "double": "preserve-drop/preserve-drop"}
MAX_LAYERS: Final = 2
_MTU: Final = (576, 9000)
PLAIN_MTU: Final = 1500
_MAX_REGIONS: Final = 8
_MAX_DELAY_MS: Final = 2000.0
_DELAY_MS: Final = 40.0  # where none is said


class Nat(msgspec.Struct, frozen=True):
    """A place for ``nodes`` nodes. ``layers`` are names in `KINDS`, the one next to the nodes first."""

    layers: tuple[str, ...] = (PUBLIC,)
    nodes: int = 1


class Regions(msgspec.Struct, frozen=True):
    """Groups of nodes, in the nodes' order. ``delay_ms``: a round trip between any two regions.
    ``sizes`` may be empty: then all are as large as each other, the first ones larger by one if need be."""

    count: int
    delay_ms: float
    sizes: tuple[int, ...] = ()

    def of(self, number: int, nodes: int) -> int:
        """The region, from 0 on, of a node of so many."""
        sizes = self.sizes or tuple(len(range(at, nodes, self.count)) for at in range(self.count))
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        return next(at for at, end in enumerate(ends) if number <= end)


class Underlay(msgspec.Struct, frozen=True, kw_only=True):
    """The default is what a lab was always: every node on every segment.

    ``silent``: hops drop what is longer than ``mtu`` without a word, and nobody's interface says it.
    ``no_udp``: the nodes whose UDP is blocked; None: nobody's; empty: that of all but node 1.
    """

    nat: tuple[Nat, ...] = ()
    mtu: int = PLAIN_MTU
    silent: bool = False
    no_udp: tuple[int, ...] | None = None
    regions: Regions | None = None

    @property
    def hinders(self) -> bool:
        """Whether some pairs may need more than a plain network."""
        return self.no_udp is not None or any(place.layers != (PUBLIC,) for place in self.nat)

    def wanted_nodes(self) -> int:
        """Return how many nodes this was written for: 3 at least."""
        sizes = sum(self.regions.sizes) if self.regions else 0
        return sizes or max(3, 1 + sum(place.nodes for place in self.nat))

    def places(self, nodes: int) -> list[tuple[Nat, tuple[int, ...]]]:
        """Return the places of a lab of so many nodes, and the numbers of the nodes in each. The last one
        may have fewer nodes than it has room for."""
        found: list[tuple[Nat, tuple[int, ...]]] = [(Nat(), (1,))]
        number, turn = 2, 0
        while number <= nodes:
            place = self.nat[turn % len(self.nat)] if self.nat else Nat()
            end = min(number + place.nodes, nodes + 1)
            found.append((place, tuple(range(number, end))))
            number, turn = end, turn + 1
        return found

    def blocked(self, number: int) -> bool:
        """Whether a node's UDP is dropped."""
        if self.no_udp is None:
            return False
        return number in self.no_udp if self.no_udp else number != 1

    def describe(self, number: int, nodes: int) -> str:
        """Return what a node is behind, in the words of ``--nat`` and ``--block``."""
        layers = next(place.layers for place, numbers in self.places(nodes) if number in numbers)
        return "/".join(layers) + (", udp blocked" if self.blocked(number) else "")

    def check(self, nodes: int) -> None:
        """Raise LabError unless this fits a lab of so many nodes."""
        strangers = [number for number in self.no_udp or () if not 1 <= number <= nodes]
        if strangers:
            raise LabError(
                f"UDP is to be blocked for node {strangers[0]} of {nodes}",
                fix=f"give --block udp:NUMBER with numbers from 1 to {nodes}, or a larger --nodes",
            )
        if self.regions is None:
            return
        if self.regions.sizes and sum(self.regions.sizes) != nodes:
            raise LabError(
                f"the regions have {sum(self.regions.sizes)} nodes, the lab has {nodes}",
                fix=f"give --nodes {sum(self.regions.sizes)}, or regions of {nodes} nodes",
            )
        if self.regions.count > nodes:
            raise LabError(
                f"{self.regions.count} regions for {nodes} nodes",
                fix=f"give --nodes {self.regions.count} or more, or fewer regions",
            )


PLAIN: Final = Underlay()


def parse_nat(text: str) -> tuple[Nat, ...]:
    """Read ``--nat``: ``KIND[/KIND][+NODES]``, with commas between. Raises LabError."""
    return tuple(_parse_place(word.strip()) for word in text.split(","))


def _parse_place(word: str) -> Nat:
    kinds, _, room = word.partition("+")
    if room and not re.fullmatch(r"[1-9][0-9]?", room):
        raise LabError(f"--nat {word}: {room!r} nodes", fix=f"write {kinds}+2 for two nodes behind one")
    layers = tuple(_ALIASES.get(kind, kind) for kind in _ALIASES.get(kinds, kinds).split("/"))
    for layer in layers:
        if layer not in KINDS:
            names = ", ".join(sorted({*KINDS, *_ALIASES}))
            raise LabError(f"--nat {word}: no kind {layer!r}", fix=f"give one of {names}")
    if len(layers) > MAX_LAYERS:
        raise LabError(f"--nat {word}: {len(layers)} in a row", fix=f"give {MAX_LAYERS} at most")
    if len(layers) > 1 and not all(KINDS[layer].nat for layer in layers):
        raise LabError(f"--nat {word}: only NATs stand in a row", fix="give preserve/random, for example")
    if room not in ("", "1") and layers == (PUBLIC,):
        raise LabError(f"--nat {word}: nobody shares a public place", fix="give public once for each node")
    if room not in ("", "1") and not KINDS[layers[0]].nat:
        raise LabError(f"--nat {word}: only a NAT is shared", fix=f"give {kinds} once for each node")
    return Nat(layers, int(room or 1))


def parse_mtu(text: str) -> tuple[int, bool]:
    """Read ``--mtu``: ``BYTES[:silent]``. Returns the MTU and whether it is silent. Raises LabError."""
    low, high = _MTU
    found = re.fullmatch(r"([0-9]{1,5})(:silent)?", text)
    if not found or not low <= int(found[1]) <= high:
        raise LabError(
            f"--mtu {text}", fix=f"give {low} to {high} bytes, or 1380:silent for hops that say nothing"
        )
    return int(found[1]), bool(found[2])


def parse_block(text: str) -> tuple[int, ...]:
    """Read ``--block``: ``udp`` (all nodes but the first: an empty tuple) or ``udp:NUMBER[+NUMBER...]``.
    Raises LabError."""
    found = re.fullmatch(r"udp(?::([1-9][0-9]{0,2}(?:\+[1-9][0-9]{0,2})*))?", text)
    if not found:
        raise LabError(f"--block {text}", fix="give udp, or udp:3+4 for nodes 3 and 4")
    return tuple(sorted({int(number) for number in found[1].split("+")})) if found[1] else ()


def parse_regions(text: str) -> Regions:
    """Read ``--regions``: ``COUNT[xDELAY]`` or ``SIZE[,SIZE...],delay=DELAY``, a size being ``NAME:NODES``
    or a number, the delay in ms. Raises LabError."""
    short = re.fullmatch(r"([0-9]{1,2})(?:x([0-9]{1,4}(?:\.[0-9]+)?)(?:ms)?)?", text)
    *words, last = text.split(",")
    long = re.fullmatch(r"delay=([0-9]{1,4}(?:\.[0-9]+)?)(?:ms)?", last)
    sizes = [re.fullmatch(r"(?:[a-z][a-z0-9-]*:)?([1-9][0-9]{0,2})", word) for word in words]
    if short:
        found = Regions(int(short[1]), float(short[2] or _DELAY_MS))
    elif long and all(sizes):
        found = Regions(len(sizes), float(long[1]), tuple(int(size[1]) for size in sizes if size))
    else:
        raise LabError(
            f"--regions {text}", fix="give 2x40 (two regions, 40 ms between them), or east:3,west:2,delay=40"
        )
    if not 2 <= found.count <= _MAX_REGIONS or not 0 < found.delay_ms <= _MAX_DELAY_MS:
        raise LabError(
            f"--regions {text}: {found.count} regions, {found.delay_ms:g} ms",
            fix=f"give 2 to {_MAX_REGIONS} regions and at most {_MAX_DELAY_MS:g} ms between them",
        )
    return found
