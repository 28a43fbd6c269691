# SPDX-License-Identifier: GPL-3.0-or-later
"""Classes of traffic: which packets to a peer an intent is for, as nftables matches.

All is matched where the packet leaves the mesh's own interface, in the clear and after routing. A packet's
socket is known there if the packet comes from this machine; so a class by user never has forwarded packets.
Its cgroup has been found out before (`scatter/cgroups.py`).
nf_tables knows the ports in the first fragment of a datagram only. So a class with ports has no fragment at
all: the fragments of one datagram are of one class, and keep together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

from phantommesh.config import intents
from phantommesh.config.sections import Goal, IntentSection
from phantommesh.faults import FaultKind
from phantommesh.scatter.goals import SCHEDULES, Schedule

UNKNOWN_USER = FaultKind("intent-unknown-user", "low")
UNKNOWN_PEER = FaultKind("intent-unknown-peer", "low")

NOBODY: Mapping[str, int] = MappingProxyType({})
_WHOLE = {"ip": "ip frag-off & 0x3fff == 0", "ip6": "ip6 nexthdr != 44"}


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """A class of the traffic to one peer, by the name of its intent. A packet is of the class if it matches
    any of ``matches``, each a nftables expression. ``confined``: it may not take just any dimension
    (`scatter/limits.py`), and all of it together goes by at least so many ``hands``."""

    name: str
    goal: Goal
    schedule: Schedule
    matches: tuple[str, ...]
    confined: bool = False
    hands: int = 1


class Intents:
    """The intents of a node in order: ``sections`` of its configuration, and ``uids``, the numbers of the
    users of this machine whom they name. An intent for a user whom this machine does not have is left out."""

    def __init__(self, sections: Sequence[IntentSection] = (), uids: Mapping[str, int] = NOBODY) -> None:
        self._peers = {intent.name: frozenset(intent.peers) for intent in sections}
        self.constrained = {intent.name: intent for intent in sections if intent.constrained}
        """Those that say by which members their packets may go, by name."""
        self.unknown_users: dict[str, str] = {}
        """The users whom this machine does not have, by the intent that names them."""
        paths = {path: None for intent in sections if (path := intents.cgroup(intent)) is not None}
        self.cgroups = tuple(paths)
        """The cgroups that they name."""
        found = list[TrafficClass]()
        for intent in sections:
            uid = uids.get(intent.user) if isinstance(intent.user, str) else intent.user
            if intent.user is not None and uid is None:
                self.unknown_users[intent.name] = str(intent.user)
            else:
                schedule = SCHEDULES[intent.goal]
                matched, confined = matches(intent, uid, self.cgroups), intent.constrained
                made = TrafficClass(intent.name, intent.goal, schedule, matched, confined, intent.hands)
                found.append(made)
        # Made once: a node asks for each of its peers, whenever one of them changes.
        everyone, named = list[TrafficClass](), dict[str, list[TrafficClass]]()
        for one in found:
            for name in self._peers[one.name]:
                named.setdefault(name, list(everyone)).append(one)
            if not self._peers[one.name]:
                everyone.append(one)
                for classes in named.values():
                    classes.append(one)
        self._everyones = tuple(everyone)
        self._named = {name: tuple(classes) for name, classes in named.items()}

    def __bool__(self) -> bool:
        return bool(self._peers)

    def classes(self, name: str) -> tuple[TrafficClass, ...]:
        """The classes of the traffic to the peer of this name, in order."""
        return self._named.get(name, self._everyones)

    def unknown_peers(self, known: Iterable[str]) -> dict[str, frozenset[str]]:
        """The names that are no member's, by the intent that names them. ``known``: the members' names."""
        members = frozenset(known)
        return {name: unknown for name, peers in self._peers.items() if (unknown := peers - members)}


def named_users(sections: Iterable[IntentSection]) -> set[str]:
    """The users whom intents name by name."""
    return {intent.user for intent in sections if isinstance(intent.user, str)}


def matches(intent: IntentSection, uid: int | None, cgroups: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the nftables expressions that tell an intent's packets: a packet is of the intent if one of them
    matches. ``uid`` is the number of the intent's user, ``cgroups`` those that any intent names
    (`scatter/cgroups.py`). Only for an intent that `config.intents.check` takes."""
    common = []
    if (path := intents.cgroup(intent)) is not None:
        within = [path, *(one for one in cgroups if one.startswith(f"{path}/"))]
        marks = [str(intents.cgroup_mark(one)) for one in within]
        common.append(f"meta mark {_set(marks)}")
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
