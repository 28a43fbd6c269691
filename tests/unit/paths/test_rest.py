# SPDX-License-Identifier: GPL-3.0-or-later
"""What paths without traffic cost: how often a node has to wake up for its own probes."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import pairwise

from phantommesh.dimensions import ALL
from phantommesh.paths.effects import Send
from phantommesh.paths.machine import Paths
from phantommesh.paths.probe import decode_probe_untrusted
from phantommesh.paths.schedule import SLOT, SLOW, SPREAD

PEERS = {bytes([number]) * 16: ALL for number in range(10)}


def asked(seconds: float) -> dict[tuple[bytes, int], list[float]]:
    """When each path was asked, by peer and dimension; every probe is answered. Of the time after the first
    minute, when all is at rest."""
    paths, now, found = (
        Paths(random=random.Random(3), interval=0.1),
        1000.0,
        defaultdict[tuple[bytes, int], list[float]](list),
    )
    paths.set_peers(PEERS, now)
    end = now + 60.0 + seconds
    while (now := paths.deadline) < end:
        for effect in paths.tick(now):
            if isinstance(effect, Send):
                assert not decode_probe_untrusted(effect.datagram).pong
                paths.receive(_answer(effect.datagram), effect.peer, effect.dimension, now)
                if now >= end - seconds:
                    found[effect.peer, effect.dimension].append(now)
    return found


def _answer(datagram: bytes) -> bytes:
    return datagram[:1] + b"\2" + datagram[2:]


def test_probes_of_several_idle_peers_leave_in_one_wake_up() -> None:
    found = asked(600.0)
    moments = {moment for times in found.values() for moment in times}
    probes = sum(map(len, found.values()))
    assert len(found) == 70
    assert 0.95 * 4200 < probes < 1.05 * 4200  # as many as without: 70 in ten seconds
    assert len(moments) <= 600 / SLOT + 1  # in seven times fewer wake-ups


def test_each_path_is_asked_as_often_as_before_and_no_two_of_one_peer_at_one_moment() -> None:
    found = asked(600.0)
    for times in found.values():
        pauses = [then - at for at, then in pairwise(times)]
        assert min(pauses) >= (1 - SPREAD) * SLOW - 2 * SLOT
        assert max(pauses) <= (1 + SPREAD) * SLOW + 2 * SLOT
    for peer in PEERS:
        times = [moment for (node_id, _), moments in found.items() if node_id == peer for moment in moments]
        assert len(times) == len(set(times))
