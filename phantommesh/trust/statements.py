# SPDX-License-Identifier: GPL-3.0-or-later
"""The statements against nodes and the root's words that a node holds, whether they count or not.

None of this hangs on the order in which they came, so every node holds the same in the end. What the root
voided is forgotten (`rootword`). A statement that names a word of the root's which is not known here is not
held: whoever holds it has the word too, and offers both again. If an authority says the same twice, the
earlier statement is held. Of an authority that says too much, those statements go whose hash is greatest.
"""

import hashlib
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Self

from phantommesh.idtree import IdTree
from phantommesh.trust.identity import NODE_ID_BYTES, NodeId
from phantommesh.trust.revocation import Revocation
from phantommesh.trust.rootword import FIRST, Order, RootWord

# Bound for one authority: its own statements, and as many again that it took over. A rogue can fill this. The
# two are apart, since the authority that is taken over says how many its statements are, and whom they name.
MAX_OF_AUTHORITY: Final = 32_768


@dataclass(frozen=True, slots=True)
class Held:
    """A verified statement, the node whose authority signed it, its id."""

    statement: Revocation
    signer: NodeId
    id: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """What went for a statement that is held now: the later one in whose ``place`` it is, or the one for
    which its authority has no ``room`` any more."""

    place: Held | None = None
    room: Held | None = None


class Statements:
    """All that is held. It iterates over the statements in the order they came; one that took another's place
    stands where that stood."""

    def __init__(self) -> None:
        self.tree = IdTree()  # the ids of all that is held
        self.words: dict[bytes, RootWord] = {}  # by id
        self._held: dict[bytes, Held] = {}  # by place, in the order they came
        self._place: dict[bytes, bytes] = {}  # by id
        self._said: dict[bytes, list[tuple[Order, bool]]] = {}  # by node, the root's words: is it cast out?
        self._signed: Counter[NodeId] = Counter()
        self._places: dict[tuple[NodeId, bool], list[bytes]] = {}  # by signer, and taken over or not; sorted

    def __len__(self) -> int:
        """How many statements are held, without the root's words."""
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(self._held.values())

    def __contains__(self, one: object) -> bool:
        """Whether the statement of this id is held."""
        return one in self._place

    @property
    def signers(self) -> frozenset[NodeId]:
        """The nodes whose authority signed what is held."""
        return frozenset(self._signed)

    def copy(self) -> Self:
        """The same, to try something with."""
        made = type(self)()
        made.tree, made.words = self.tree.copy(), dict(self.words)
        made._held, made._place = dict(self._held), dict(self._place)
        made._said = {node: list(said) for node, said in self._said.items()}
        made._signed = Counter(self._signed)
        made._places = {group: list(places) for group, places in self._places.items()}
        return made

    def get(self, one: bytes) -> Revocation | RootWord | None:
        """The statement or the word of this id."""
        place = self._place.get(one)
        return self.words.get(one) if place is None else self._held[place].statement

    def cast_out(self) -> Iterator[tuple[NodeId, RootWord]]:
        """The nodes that the root's last word on them casts out, and that word."""
        for node, said in self._said.items():
            order, out = said[-1]
            if out:
                yield NodeId(node), self.words[order.id]

    def is_said(self, signer: NodeId, one: Revocation) -> bool:
        """Whether this authority has said as much already, of the same day or an earlier one."""
        held = self._held.get(_place(signer, one))
        return held is not None and held.statement.at <= one.at

    def unsaid(self, signer: NodeId, wanted: Iterable[Revocation]) -> list[Revocation]:
        """Those in whose place this authority has said nothing."""
        return [one for one in wanted if _place(signer, one) not in self._held]

    def has_room_for_all(self, signer: NodeId, new: Iterable[Revocation]) -> bool:
        """Whether none of this authority's statements would go for these, which are in places of their
        own."""
        groups = Counter(_group(signer, one) for one in new)
        return all(len(self._places.get(g, ())) + count <= MAX_OF_AUTHORITY for g, count in groups.items())

    def has_room(self, signer: NodeId, one: Revocation) -> bool:
        """Whether this statement would be held: there is none of an earlier date in its place, nor is its
        authority full of such as come before it. That costs no signature check."""
        place = _place(signer, one)
        held = self._held.get(place)
        if held is not None:
            return _order(one) < _order(held.statement)
        places = self._places.get(_group(signer, one), [])
        return len(places) < MAX_OF_AUTHORITY or place < places[-1]

    def hold(self, held: Held) -> Change | None:
        """Keep a verified statement and return what went for it; None where it is not to be held."""
        signer, one = held.signer, held.statement
        if self._after(one) is None or self.is_void(signer, one) or not self.has_room(signer, one):
            return None
        place = _place(signer, one)
        before = self._held.get(place)
        if before is not None:
            self._forget(place, keep=True)
        self._held[place] = held  # in the place of the one before, if there was one
        self._place[held.id] = place
        self._signed[signer] += 1
        self.tree.add(held.id)
        if before is not None:
            return Change(place=before)
        places = self._places.setdefault(_group(signer, one), [])
        insort(places, place)
        if len(places) > MAX_OF_AUTHORITY:  # those that go are the same on every node
            return Change(room=self._forget(places[-1]))
        return Change()

    def hear(self, word: RootWord) -> None:
        """Keep a verified word of the root's, and forget what it voids."""
        if word.id in self.words:
            return
        self.words[word.id] = word
        self.tree.add(word.id)
        for node in word.pardoned:
            self._said.setdefault(node, []).append((word.order, False))
        for node in word.cast_out:
            self._said.setdefault(node, []).append((word.order, True))
        for said in self._said.values():
            said.sort()
        void = [p for p, held in self._held.items() if self.is_void(held.signer, held.statement)]
        for place in void:
            self._forget(place)

    def is_void(self, signer: NodeId, one: Revocation) -> bool:
        """Whether a word of the root's makes a statement nothing, for good."""
        known = self._after(one)
        for who in (signer, one.origin):
            if (last := self._said.get(who)) and last[-1][1]:
                return True  # its authority is cast out now: signed knowing that or not, it is void
        if known is None:
            return False
        if any(order > known and not out for order, out in self._said.get(one.node_id, ())):
            return True
        for who in (signer, one.origin):
            outs = self._said.get(who, ())
            if any(order > known and out for order, out in outs):
                return True
            if (until := [out for order, out in outs if order <= known]) and until[-1]:
                return True  # it knew itself cast out
        return False

    def _after(self, statement: Revocation) -> Order | None:
        """The place of the word that a statement names; None while that word is not known here."""
        if not statement.after:
            return FIRST
        word = self.words.get(statement.after)
        return None if word is None else word.order

    def _forget(self, place: bytes, *, keep: bool = False) -> Held:
        held = self._held[place] if keep else self._held.pop(place)
        del self._place[held.id]
        if not keep:
            group = _group(held.signer, held.statement)
            del self._places[group][bisect_left(self._places[group], place)]
        self._signed[held.signer] -= 1
        if not self._signed[held.signer]:
            del self._signed[held.signer]
        self.tree.discard(held.id)
        return held


def _group(signer: NodeId, one: Revocation) -> tuple[NodeId, bool]:
    """Return the share that a statement takes room of. It is not its origin's: a signer writes any origin
    that it likes."""
    return signer, bool(one.origin)


def _place(signer: NodeId, one: Revocation) -> bytes:
    """Return the place of what one authority says once: of this node, taken over or not, as of one word."""
    said = b"".join(part.ljust(NODE_ID_BYTES, b"\0") for part in (signer, one.node_id, one.after, one.origin))
    return hashlib.sha3_256(said).digest()


def _order(one: Revocation) -> tuple[int, bytes]:
    return one.at, one.signature
