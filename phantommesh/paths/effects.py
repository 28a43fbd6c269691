# SPDX-License-Identifier: GPL-3.0-or-later
"""Effects of the paths protocol, as values."""

from __future__ import annotations

from dataclasses import dataclass

from phantommesh.paths.state import PathState


@dataclass(frozen=True, slots=True)
class Send:
    """Send a probe to the peer inside this dimension, and in no other."""

    peer: bytes
    dimension: int
    datagram: bytes


@dataclass(frozen=True, slots=True)
class Rescore:
    """How much of the traffic to a peer each dimension should carry: seven weights, 0.0 for none at all.
    ``quickest`` is the dimension for traffic that waits for answers; None: any. ``Paths.in_force`` has to be
    told when it is so."""

    peer: bytes
    scores: tuple[float, ...]
    quickest: int | None = None


@dataclass(frozen=True, slots=True)
class Turned:
    """A path changed its state."""

    peer: bytes
    dimension: int
    before: PathState
    after: PathState


@dataclass(frozen=True, slots=True)
class Fit:
    """Packets to a peer may be ``mtu`` bytes long at most, as they are inside the overlay."""

    peer: bytes
    mtu: int


@dataclass(frozen=True, slots=True)
class AskHops:
    """The peer has answered by this path. Find out whether a hop cuts packets of ``size`` bytes, as they are
    inside the overlay: send one datagram as long as they are outside that may not be cut."""

    peer: bytes
    dimension: int
    size: int


Effect = Send | Rescore | Turned | Fit | AskHops


@dataclass(frozen=True, slots=True)
class PathView:
    """A path as reported. ``rtt``, ``jitter`` and ``since`` in seconds; ``weight`` of 1 is a full share.

    ``opened``, ``answered`` and ``heard`` are seconds since the path got its keys, since a probe came back
    and since one of the peer's came in; None: none has since it got its keys. ``answers``: probes come back,
    of late and until now.
    """

    state: PathState
    since: float
    rtt: float | None
    jitter: float
    loss: float
    weight: float
    opened: float | None
    answered: float | None
    heard: float | None
    answers: bool
