# SPDX-License-Identifier: GPL-3.0-or-later
"""What members tell each other of the links that they have: as measured, each end for itself. Pure.

A member's word is for advice and for costs only. A link counts where both of its ends report it, and as the
worse of the two says. So a member that lies can make itself look worse than it is, and no other. A member
that says nothing, as those of earlier versions do, has the links that others say they have with it.

In a large mesh not all links are told. The asker draws a salt, and the pairs that are told are those whose
hash with the salt falls below a share: both ends come to the same pairs. A member with few links tells all of
them, and the asker then asks their other ends about these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from math import ceil
from typing import Final

from phantommesh.paths.effects import PathView
from phantommesh.routing.ways import Kind, Way
from phantommesh.trust.identity import NodeId

ALL_PAIRS: Final = 2**32  # the share that has every pair

# Tuning.
WANTED: Final = 24  # links of a member that are told on average. A random graph of 12 is twofold connected.
MOST: Final = 64  # links of a member that are told unasked
FEW: Final = 8  # links, up to which a member tells all of them
RELAYS: Final = 2  # relays of a pair that are told

Pair = tuple[NodeId, NodeId]  # the lower node id first


@dataclass(frozen=True, slots=True)
class Link:
    """One pair as one end measures it: ``rtt`` and ``jitter`` in seconds, ``loss`` from 0 to 1, ``capacity``
    in bytes a second, 0 where it is not known. ``relays``: those it goes by, where there is no direct way."""

    rtt: float
    jitter: float
    loss: float
    kind: Kind
    capacity: int = 0
    relays: tuple[NodeId, ...] = ()


Word = Mapping[NodeId, Link]  # a member's word on its links, by the other end
Look = Callable[[NodeId], Link | None]  # this node's own link to a peer, as `link_of` has it


def pair(one: NodeId, two: NodeId) -> Pair:
    """Return two members in their order."""
    return (one, two) if one < two else (two, one)


def worse(one: Link, two: Link) -> Link:
    """Return what holds of a link by the word of both of its ends."""
    capacities = [c for c in (one.capacity, two.capacity) if c]
    return Link(
        max(one.rtt, two.rtt),
        max(one.jitter, two.jitter),
        max(one.loss, two.loss),
        max(one.kind, two.kind),
        min(capacities, default=0),
        tuple(dict.fromkeys((*one.relays, *two.relays)))[: 2 * RELAYS],
    )


def link_of(paths: Sequence[PathView], ways: Sequence[Way | None]) -> Link | None:
    """Return the link to a member by its dimensions: the best kind of way that answers in any of them, and
    the measurements of those that take it. None where no dimension answers."""
    answering = [
        (path, Kind.DIRECT if way is None else way.kind, b"" if way is None else way.relay)
        for path, way in zip(paths, ways, strict=True)
        if path.answers and path.rtt is not None
    ]
    # Frames over TCP go from end to end too, so that no third member can end them.
    rank = {Kind.DIRECT: 0, Kind.FRAMED: 1, Kind.RELAYED: 2}
    kind = min((k for _, k, _ in answering), key=rank.__getitem__, default=None)
    if kind is None:
        return None
    chosen = [path for path, k, _ in answering if k is kind]
    middle = sorted(chosen, key=lambda path: path.rtt or 0.0)[len(chosen) // 2]
    relays = tuple(dict.fromkeys(NodeId(r) for _, k, r in answering if k is kind and r))
    loss = sorted(path.loss for path in chosen)[len(chosen) // 2]
    return Link(middle.rtt or 0.0, middle.jitter, loss, kind, relays=relays[:RELAYS])


def share_of(members: int) -> int:
    """Return the share of the pairs that a mesh of so many members tells, as `reported` takes it."""
    return ALL_PAIRS if members <= 2 * WANTED else ceil(ALL_PAIRS * WANTED / members)


def reported(salt: bytes, share: int, one: NodeId, two: NodeId) -> bool:
    """Whether a pair is among those that are told. Both ends come to the same."""
    first, second = pair(one, two)
    return int.from_bytes(blake2b(first + second, digest_size=4, key=salt).digest()) < share


def told(
    me: NodeId, peers: Collection[NodeId], look: Look, salt: bytes, share: int, about: Iterable[NodeId] = ()
) -> dict[NodeId, Link]:
    """Return what a member tells of its links to these peers: ``about`` some, and its part of the sample. A
    member with few links that lead from end to end tells all of those. At few peers ``look`` is called."""
    chosen = _if_few(peers, look)
    sample = (peer for peer in sorted(peers) if peer not in chosen and reported(salt, share, me, peer))
    for peer in (*islice(sample, MOST), *about):
        if peer in peers and (link := look(peer)) is not None:
            chosen[peer] = link
    return chosen


def _if_few(peers: Iterable[NodeId], look: Look) -> dict[NodeId, Link]:
    few: dict[NodeId, Link] = {}
    for peer in peers:
        link = look(peer)
        if link is not None and link.kind is not Kind.RELAYED:
            few[peer] = link
            if len(few) > FEW:
                return {}
    return few


def by_both(words: Mapping[NodeId, Word], members: Container[NodeId]) -> dict[Pair, Link]:
    """Return the links that both ends report, as the worse of both words has them; of a member without a
    word, those that others report."""
    found: dict[Pair, Link] = {}
    for member, word in words.items():
        for peer, link in word.items():
            if peer not in members or peer == member:
                continue
            if peer not in words:
                found[pair(member, peer)] = link
            elif member < peer and (other := words[peer].get(member)) is not None:
                found[member, peer] = worse(link, other)
    return found


def unconfirmed(words: Mapping[NodeId, Word]) -> dict[NodeId, list[NodeId]]:
    """Return whom to ask about which members: the other ends of links that one end alone has reported."""
    asked: dict[NodeId, list[NodeId]] = {}
    for member, word in words.items():
        for peer in word:
            if peer in words and member not in words[peer]:
                asked.setdefault(peer, []).append(member)
    return asked
