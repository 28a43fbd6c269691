# SPDX-License-Identifier: GPL-3.0-or-later
"""Cover traffic is no traffic: else a peer would be covered because it is covered."""

from __future__ import annotations

from random import Random

from phantommesh.dimensions import ALL, DIMENSIONS
from phantommesh.paths.machine import Paths

PEER = b"p" * 16


def rate(cover: int, real: int) -> float:
    """The rate after some seconds in which a peer is sent so many bytes of both each second."""
    paths = Paths(random=Random(1), interval=0.1)
    paths.set_peers({PEER: ALL}, 0.0)
    sent = 0
    for second in range(6):
        paths.read(PEER, [(sent, 0)] * DIMENSIONS, float(second))
        sent += (cover + real) // DIMENSIONS
        paths.covered(PEER, cover)
    return paths.rate(PEER, 5.5)


def test_cover_is_no_traffic() -> None:
    assert rate(70_000, 0) == 0.0
    assert rate(70_000, 14_000) == rate(0, 14_000) == 14_000.0


def test_cover_of_a_peer_that_is_not_there_is_nothing() -> None:
    Paths(random=Random(1), interval=0.1).covered(PEER, 1000)
