# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tables `[[intent]]` say, as numbers: protocols, ports, DSCPs and users; and what none may say.

Protocols have the numbers of IANA's "Assigned Internet Protocol Numbers", DSCPs those of RFC 2474, 2597,
3246, 5865 and 8622.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from phantommesh.config import constraints
from phantommesh.config.refusing import show
from phantommesh.config.sections import LABEL, ConfigError, IntentSection

MAX_CLASSES: Final = 8
"""Classes that the traffic to one peer has at most: those of intents, and the rest."""

REST: Final = "rest"
"""The class of what matches no intent, where classes are counted."""

PROTOCOLS: Final[dict[str, tuple[int, ...]]] = {
    "icmp": (1, 58),  # with IPv6's
    "tcp": (6,),
    "udp": (17,),
    "dccp": (33,),
    "gre": (47,),
    "esp": (50,),
    "ah": (51,),
    "sctp": (132,),
    "udplite": (136,),
}
WITH_PORTS: Final = (6, 17, 33, 132, 136)
"""The protocols whose headers begin with two ports."""

DSCPS: Final[dict[str, int]] = {
    **{f"cs{i}": 8 * i for i in range(8)},
    **{f"af{i}{j}": 8 * i + 2 * j for i in range(1, 5) for j in range(1, 4)},
    "le": 1,
    "va": 44,
    "ef": 46,
}
MAX_UID: Final = 2**32 - 2

CGROUP_MARKS: Final = 0xC6 << 24
"""The marks of packets from cgroups that intents name have these upper eight bits, and no others have."""
MAX_CGROUP_DEPTH: Final = 32

_RANGE: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.@\\-]{0,63}\$?")


def called(name: Any, number: int) -> str:
    """What an error calls an intent: by its name, or by its number in the file, from 1 on."""
    return name if isinstance(name, str) and LABEL.fullmatch(name) else str(number)


def protocols(intent: IntentSection) -> tuple[int, ...]:
    """The numbers of the protocols that an intent is for; none for any. Raises ValueError."""
    if intent.protocol is None:
        return WITH_PORTS if intent.ports else ()
    if isinstance(intent.protocol, str):
        if (found := PROTOCOLS.get(intent.protocol)) is None:
            raise ValueError(f"the names are {', '.join(PROTOCOLS)}; others have a number from 0 to 255")
        return found
    if not 0 <= intent.protocol <= 255:
        raise ValueError("a protocol's number is from 0 to 255")
    return (intent.protocol,)


def ports(intent: IntentSection) -> tuple[tuple[int, int], ...]:
    """The ranges of ports that an intent is for, as `ranges` has them. Raises ValueError."""
    return ranges(intent.ports)


def ranges(given: Sequence[int | str]) -> tuple[tuple[int, int], ...]:
    """Ports and ranges of ports, both ends included, in order; ranges that touch are one. Raises
    ValueError."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(map(_range, given)):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], last)
        else:
            joined.append((first, last))
    return tuple(joined)


def _range(given: int | str) -> tuple[int, int]:
    if isinstance(given, int):
        first = last = given
    elif found := _RANGE.fullmatch(given):
        first, last = int(found[1]), int(found[2])
    else:
        raise ValueError('write a port as 22, a range of ports as "8000-8010"')
    if not 1 <= first <= last <= 65535:
        raise ValueError("a port is from 1 to 65535, and a range begins with the lower one")
    return first, last


def dscp(intent: IntentSection) -> int | None:
    """The DSCP that an intent is for, None for any. Raises ValueError."""
    if isinstance(intent.dscp, str):
        if (found := DSCPS.get(intent.dscp)) is None:
            raise ValueError(f"the names are {', '.join(DSCPS)}; others have a number from 0 to 63")
        return found
    if intent.dscp is not None and not 0 <= intent.dscp <= 63:
        raise ValueError("a DSCP is from 0 to 63")
    return intent.dscp


def user(intent: IntentSection) -> int | str | None:
    """The user that an intent is for, by number or, as it is given, by name; None for anybody. Raises
    ValueError."""
    if isinstance(intent.user, str) and not _USER.fullmatch(intent.user):
        raise ValueError("that is no user's name")
    if isinstance(intent.user, int) and not 0 <= intent.user <= MAX_UID:
        raise ValueError(f"a user's number is from 0 to {MAX_UID}")
    return intent.user


_STEP: Final = re.compile(r"[A-Za-z0-9_.:@\\-]{1,128}")


def cgroup(intent: IntentSection) -> str | None:
    """The cgroup that an intent is for, as a path without a slash at either end; None for any. Raises
    ValueError."""
    if intent.cgroup is None:
        return None
    steps = intent.cgroup.split("/")
    if len(steps) > MAX_CGROUP_DEPTH or not all(map(_STEP.fullmatch, steps)) or {".", ".."} & {*steps}:
        raise ValueError(
            'write the path as systemd does, without a slash at either end: "user.slice/x.scope"'
        )
    return intent.cgroup


def cgroup_mark(path: str) -> int:
    """The mark of packets from a cgroup, by its path: the same whatever else the configuration names."""
    return CGROUP_MARKS | zlib.crc32(path.encode()) & 0xFFFFFF


def check(intents: Sequence[IntentSection]) -> None:
    """Raise ConfigError, which names the intent, the value and the fix, for intents that cannot be."""
    for name, count in Counter(intent.name for intent in intents).items():
        if count > 1:
            raise ConfigError(f"{count} intents are named {name}", fix="give each a name of its own")
    for number, intent in enumerate(intents, 1):
        _check(f"intent.{called(intent.name, number)}", intent)
    paths = {path for intent in intents if (path := cgroup(intent)) is not None}
    marks = Counter(map(cgroup_mark, paths))
    for path in sorted(paths):
        if marks[cgroup_mark(path)] > 1:  # one in a hundred thousand, for a dozen of paths
            raise ConfigError(f"intents cannot tell the cgroup {path} from another", fix="rename one of them")
    named = Counter(peer for intent in intents for peer in set(intent.peers))
    whom, most = max(named.items(), key=lambda one: one[1], default=("", 0))
    if (count := most + sum(not intent.peers for intent in intents)) >= MAX_CLASSES:
        raise ConfigError(
            f"{count} intents are for traffic to {f'the peer {whom}' if whom else 'each peer'}",
            fix=f"have at most {MAX_CLASSES - 1} for one peer: name in `peers` whom each of them is for",
        )


def _check(where: str, intent: IntentSection) -> None:
    if not LABEL.fullmatch(intent.name) or intent.name == REST:
        raise ConfigError(
            f"{where}.name = {show(intent.name)} is no intent's name",
            fix="use 1 to 63 characters of a-z, 0-9 and '-', with no '-' at either end, and not \"rest\"",
        )
    constraints.check(
        where, intent, members=("peers", "relays", "never_relays"), both=[("relays", "never_relays")]
    )
    for key, read in (
        ("protocol", protocols),
        ("ports", ports),
        ("dscp", dscp),
        ("user", user),
        ("cgroup", cgroup),
    ):
        try:
            read(intent)
        except ValueError as error:
            raise ConfigError(
                f"{where}.{key} = {show(getattr(intent, key))} cannot be: {error}",
                fix=f"correct {where}.{key}",
            ) from None
    if intent.ports and not set(protocols(intent)) <= set(WITH_PORTS):
        raise ConfigError(
            f"{where}.ports is set, and {where}.protocol = {show(intent.protocol)} has no ports",
            fix=f'take {where}.ports out, or set {where}.protocol to "tcp" or "udp"',
        )
    if not intent.ports and (intent.protocol, intent.dscp, intent.user, intent.cgroup) == (None,) * 4:
        if intent.peers:
            whose = f"all traffic to {', '.join(intent.peers[:3])}{', ...' if intent.peers[3:] else ''}"
            other = f'for all traffic to it set scatter.peers, e.g. {{ {intent.peers[0]} = "{intent.goal}" }}'
        else:
            whose, other = "all traffic", "for all traffic there is scatter.goal"
        raise ConfigError(
            f"{where} matches {whose}, so that no intent after it matches any",
            fix=f"set {where}.ports, .protocol, .dscp, .user or .cgroup; {other}",
        )
    if intent.hands > 1 and intent.direct_only:
        raise ConfigError(
            f"{where}.hands = {intent.hands} cannot be: {where}.direct_only leaves one, the direct way",
            fix=f"take one of the two out of {where}",
        )
    if intent.hands > 1 and intent.goal == "latency":
        raise ConfigError(
            f'{where}.hands = {intent.hands} cannot be: by the goal "latency" all packets take one dimension',
            fix=f"give {where} another goal, or take {where}.hands out",
        )
