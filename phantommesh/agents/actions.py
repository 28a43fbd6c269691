# SPDX-License-Identifier: GPL-3.0-or-later
"""All that an agent may do: a closed union. `check` holds the bounds that no agent leaves.

A lasting action stands until the proposal behind it expires, and is lifted then. Any other is done once.
Peers are node ids as text, dimensions 0 to 6.
"""

from __future__ import annotations

from ipaddress import ip_network
from typing import ClassVar, Final, Literal, TypeAlias

import msgspec

from phantommesh.dimensions import DIMENSIONS

# Tuning: bounds of actions.
LONGEST_BAN = 86_400.0  # s; a ban that should last longer is the operator's
WIDEST_BAN_4, WIDEST_BAN_6 = 24, 48  # prefix bits: no agent bans a wider network
LONGEST_QUARANTINE = 3600.0  # s
LEAST_WEIGHT, MOST_WEIGHT = 0.0, 4.0  # factors of a dimension's share
MOST_COVER = 125_000.0  # bytes/s to one peer
LEAST_ANSWERS, MOST_ANSWERS = 1.0, 100.0  # DNS queries a second: no asker is silenced; the server's own rate
LEAST_SHED = 10.0  # handshakes of strangers a second that pass at least: nobody new could join otherwise
MOST_TEXT = 300  # characters of a finding


class _Act(msgspec.Struct, frozen=True, tag_field="do"):
    """``rests``: seconds for which the same agent leaves the subject alone after another action of the kind
    ended, so that nothing oscillates."""

    rests: ClassVar[float] = 10.0


class Ban(_Act, frozen=True, tag="ban"):
    """Drop all from an address or network (outside the tunnels) at the earliest hook."""

    rests: ClassVar[float] = 0.0
    network: str
    seconds: float


class Shed(_Act, frozen=True, tag="shed"):
    """Answer handshakes of unproven sources at most at this rate a second."""

    rate: float


class Throttle(_Act, frozen=True, tag="throttle"):
    """Answer at most so many DNS queries a second of one overlay address."""

    rests: ClassVar[float] = 30.0
    address: str
    rate: float


class Raise(_Act, frozen=True, tag="raise"):
    """A finding for people: it stands among the node's faults while it is proposed again."""

    rests: ClassVar[float] = 0.0
    rule: str
    severity: Literal["low", "medium", "high", "critical"]
    text: str
    fix: str


class Mend(_Act, frozen=True, tag="mend"):
    """Carry out the safe fix of a rule, where the operator allows that."""

    rests: ClassVar[float] = 300.0
    rule: str


class Rotate(_Act, frozen=True, tag="rotate"):
    """Make a new PSK with a peer."""

    rests: ClassVar[float] = 30.0
    peer: str


class ReplaceKey(_Act, frozen=True, tag="replace-key"):
    """Give one dimension of this node another WireGuard key."""

    rests: ClassVar[float] = 300.0
    dimension: int


class Renew(_Act, frozen=True, tag="renew"):
    """Renew this node's certificate before its time."""

    rests: ClassVar[float] = 300.0


class Quarantine(_Act, frozen=True, tag="quarantine"):
    """Keep a peer's overlay traffic off its stale link, while handshakes go on."""

    rests: ClassVar[float] = 30.0
    peer: str
    seconds: float


class Weigh(_Act, frozen=True, tag="weigh"):
    """Multiply one dimension's share of a peer's traffic by a factor; 0 leaves the dimension."""

    peer: str
    dimension: int
    factor: float


class Deal(_Act, frozen=True, tag="deal"):
    """Deal a flow over several dimensions (True), or keep it in order on one."""

    flow: str
    peer: str
    dealt: bool


class Pin(_Act, frozen=True, tag="pin"):
    """Keep a flow on one dimension."""

    flow: str
    peer: str
    dimension: int


class Cover(_Act, frozen=True, tag="cover"):
    """Send cover traffic to a peer, at most so many bytes a second."""

    peer: str
    bytes_per_s: float


class Tune(_Act, frozen=True, tag="tune"):
    """Give a bounded parameter another value; ``taken``: for good, also after the next start."""

    parameter: str
    value: float
    taken: bool = False


class Drain(_Act, frozen=True, tag="drain"):
    """Take no new connections and have peers prefer others, before this node goes."""

    rests: ClassVar[float] = 0.0


class Restart(_Act, frozen=True, tag="restart"):
    """Start a wedged service again."""

    rests: ClassVar[float] = 30.0
    service: str


Action: TypeAlias = (
    Ban | Shed | Throttle | Raise | Mend | Rotate | ReplaceKey | Renew | Quarantine | Weigh | Deal | Pin
    | Cover | Tune | Drain | Restart
)  # fmt: skip

LASTING: Final = (Ban, Shed, Throttle, Raise, Quarantine, Weigh, Deal, Pin, Cover, Tune, Drain)
"""Actions that stand for a while and are lifted."""

OF: Final[dict[str, tuple[type[_Act], ...]]] = {
    "fortress": (Ban, Shed, Throttle, Raise),
    "aegis": (Raise, Mend),
    "cipher": (Rotate, ReplaceKey, Renew, Quarantine, Raise),
    "phantom": (Cover, Weigh, ReplaceKey, Tune, Raise),
    "velocity": (Weigh, Deal, Raise),
    "stream": (Deal, Pin, Raise),
    "genesis": (Tune, Raise),
    "nexus": (Drain, Raise),
    "omniscient": (Restart, Raise),
}
"""What each agent may propose. The operator may propose anything."""


def check(action: Action) -> str:
    """Why an agent may not have this done, by the bounds above; empty where it may."""
    match action:
        case Ban(network, seconds):
            return _check_ban(network, seconds)
        case Quarantine(_, seconds):
            return "" if 0 < seconds <= LONGEST_QUARANTINE else f"a quarantine of {seconds} s"
        case Weigh(_, dimension, factor):
            if not LEAST_WEIGHT <= factor <= MOST_WEIGHT:
                return f"a factor of {factor}"
            return _check_dimension(dimension)
        case Pin(_, _, dimension) | ReplaceKey(dimension):
            return _check_dimension(dimension)
        case Cover(_, rate):
            return "" if 0 <= rate <= MOST_COVER else f"cover traffic of {rate} bytes/s"
        case Shed(rate):
            return "" if LEAST_SHED <= rate < float("inf") else f"a rate of {rate}"
        case Throttle(_, rate):
            return "" if LEAST_ANSWERS <= rate <= MOST_ANSWERS else f"a rate of {rate} answers"
        case Raise(_, _, text, fix):
            return "" if max(len(text), len(fix)) <= MOST_TEXT else "a finding too long to read"
        case Tune(_, value):
            return "" if abs(value) < float("inf") else f"a value of {value}"
        case _:
            return ""


def _check_dimension(dimension: int) -> str:
    return "" if 0 <= dimension < DIMENSIONS else f"a dimension {dimension}"


def _check_ban(text: str, seconds: float) -> str:
    if not 0 < seconds <= LONGEST_BAN:
        return f"a ban of {seconds} s"
    try:
        network = ip_network(text)
    except ValueError:
        return "a ban of what is no network"
    if "%" in text:
        return "a ban of a network with a scope"
    widest = WIDEST_BAN_4 if network.version == 4 else WIDEST_BAN_6
    return "" if network.prefixlen >= widest else f"a ban of all of {network}"
