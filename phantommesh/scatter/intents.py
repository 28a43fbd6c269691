# SPDX-License-Identifier: GPL-3.0-or-later
"""Classes of traffic: which packets to a peer an intent is for, as nftables matches.

All is matched where the packet leaves the mesh's own interface, in the clear and after routing. A packet's
socket is known there if the packet comes from this machine; so a class by user never has forwarded packets.
nf_tables knows the ports in the first fragment of a datagram only. So a class with ports has no fragment at
all: the fragments of one datagram are of one class, and keep together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

from phantommesh.config import intents
from phantommesh.config.sections import Goal, IntentSection
from phantommesh.faults import FaultKind
from phantommesh.scatter.goals import SCHEDULES, Schedule

UNKNOWN_USER = FaultKind("intent-unknown-user", "low")
UNKNOWN_PEER = FaultKind("intent-unknown-peer", "low")

_WHOLE = {"ip": "ip frag-off & 0x3fff == 0", "ip6": "ip6 nexthdr != 44"}


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """A class of the traffic to one peer, by the name of its intent. A packet is of the class if it matches
    any of ``matches``, each a nftables expression."""

    name: str
    goal: Goal
    schedule: Schedule
    matches: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Intents:
    """The intents of a node in order, and the numbers of the users of this machine whom they name."""

    sections: tuple[IntentSection, ...] = ()
    uids: Mapping[str, int] = field(default_factory=dict)

    def classes(self, name: str) -> tuple[TrafficClass, ...]:
        """The classes of the traffic to the peer of this name, in order. An intent for a user whom this
        machine does not have is left out."""
        found = []
        for intent in intents.applying(name, self.sections):
            uid = self._uid(intent)
            if uid is not None or intent.user is None:
                matched = matches(intent, uid)
                found.append(TrafficClass(intent.name, intent.goal, SCHEDULES[intent.goal], matched))
        return tuple(found)

    def unknown_users(self) -> Mapping[str, str]:
        """The users whom this machine does not have, by the intent that names them."""
        return {
            intent.name: str(intent.user)
            for intent in self.sections
            if intent.user is not None and self._uid(intent) is None
        }

    def unknown_peers(self, known: Iterable[str]) -> Mapping[str, frozenset[str]]:
        """The names that are no member's, by the intent that names them. ``known``: the members' names."""
        members = frozenset(known)
        unknown = {intent.name: frozenset(intent.peers) - members for intent in self.sections}
        return {name: peers for name, peers in unknown.items() if peers}

    def _uid(self, intent: IntentSection) -> int | None:
        return self.uids.get(intent.user) if isinstance(intent.user, str) else intent.user


def named_users(sections: Iterable[IntentSection]) -> set[str]:
    """The users whom intents name by name."""
    return {intent.user for intent in sections if isinstance(intent.user, str)}


def matches(intent: IntentSection, uid: int | None) -> tuple[str, ...]:
    """Return the nftables expressions that tell an intent's packets: a packet is of the intent if one of them
    matches. ``uid`` is the number of the intent's user. Only for an intent that `config.intents.check` takes.
    """
    common = []
    if numbers := intents.protocols(intent):
        common.append(f"meta l4proto {_set(map(str, numbers))}")
    if uid is not None:
        common.append(f"meta skuid {uid}")
    ranges = intents.ports(intent)
    ends = [f"th {end} {_set(map(_ports, ranges))}" for end in ("dport", "sport")] if ranges else []
    mark = intents.dscp(intent)
    if not ends and mark is None:
        return (" ".join(common),)
    found = []
    for version, end in product(("ip", "ip6"), ends or [""]):
        words = [f"meta protocol {version}"]
        words += [_WHOLE[version]] if end else []
        words += [f"{version} dscp {mark}"] if mark is not None else []
        found.append(" ".join([*words, *common, *([end] if end else [])]))
    return tuple(found)


def _ports(ends: tuple[int, int]) -> str:
    first, last = ends
    return str(first) if first == last else f"{first}-{last}"


def _set(values: Iterable[str]) -> str:
    listed = list(values)
    return listed[0] if len(listed) == 1 else f"{{ {', '.join(listed)} }}"
