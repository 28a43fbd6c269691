# SPDX-License-Identifier: GPL-3.0-or-later
"""MNEMONIC's part in FORTRESS's work: what earlier bans and other members' hints say of a source, and what is
remembered and told of a ban. A hint lowers what is enough; only bans by this node's own proved evidence
are told to others, and none of an address where a member is or may be."""

from __future__ import annotations

from collections.abc import Iterable

from phantommesh.acl.bans import FORGIVEN, Ban
from phantommesh.mnemonic.memory import Key
from phantommesh.nursery.keeping.memory import MemoryKeeper
from phantommesh.rates import source_block

# Tuning.
SURE = 1.0  # strength of a hint of our own: the source has proved that it gets what is sent to it


def host_of(network: str) -> str:
    """A block as the memory names it: without its length."""
    return network.partition("/")[0]


def banned_before(memory: MemoryKeeper, network: str, now: float) -> int:
    """How often a block was banned within a week, as far as the memory goes. ``now`` in Unix seconds."""
    found = memory.recall(Key("ban", host_of(network)), now)
    return 0 if found is None or now > found.last + FORGIVEN else found.times


def lowering(memory: MemoryKeeper, network: str, now: float) -> float:
    """By how much of itself what is enough is lower for a block: 0 to 0.75."""
    return memory.hints.lowering(host_of(network), now)


def bears(memory: MemoryKeeper, network: str, lowered: float, now: float) -> bool:
    """Whether hints still lower what is enough by so much: of bans that were judged at one moment the first
    ones may have used up what one hinter may cause in an hour."""
    return memory.hints.bears(host_of(network), lowered, now)


def banned(memory: MemoryKeeper, ban: Ban, kinds: Iterable[str], now: float, *, alone: bool) -> None:
    """This node has banned a block. ``alone``: own evidence was enough without a hint."""
    host = host_of(ban.network)
    memory.memory.record(Key("ban", host), now)
    memory.hints.banned(host, now, alone=alone)
    if alone and memory.never(source_block(host)) is None:
        memory.hints.own.tell(next(iter(sorted(kinds)), "ban"), host, SURE, ban.until, now)
    memory.changed()


def lifted(memory: MemoryKeeper, ban: Ban) -> None:
    """A ban was lifted before its time: others are told of it no more."""
    memory.hints.own.withdraw(host_of(ban.network))


def refuted(memory: MemoryKeeper, ban: Ban, now: float) -> None:
    """A ban was a false alarm: an operator said so. That a member appeared at the address is none: a member
    goes where it wants."""
    host = host_of(ban.network)
    memory.memory.forget(Key("ban", host))
    memory.hints.refuted(host, now)
    memory.changed()
