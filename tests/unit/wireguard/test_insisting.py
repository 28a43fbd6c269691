# SPDX-License-Identifier: GPL-3.0-or-later
"""Two WireGuards that move from one way to another while packets are under way: they get there."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from math import inf
from random import Random

import pytest

from phantommesh.wireguard.device import DeviceState, Endpoint
from phantommesh.wireguard.diff import DeviceDiff, PeerDiff, diff
from phantommesh.wireguard.insisting import AGAIN, LASTS, LOOKS, PASSES, SURE, Insisting
from tests.unit.wireguard.test_wireguard import KEYS, NOW, make_device, make_peer, state_of

OLD, NEW = Endpoint("198.51.100.2", 51820), Endpoint("192.0.2.2", 51820)
KEY = KEYS[0]
STEP = 0.001  # s


def state(endpoint: Endpoint) -> dict[str, DeviceState]:
    """A device whose peer WireGuard last heard at an endpoint, in a fresh session."""
    found = state_of(make_device(make_peer(endpoint=endpoint)))
    peers = {key: replace(peer, last_handshake=NOW - 5) for key, peer in found.peers.items()}
    return {found.name: replace(found, peers=peers)}


@dataclass
class End:
    """One node. It sends where its WireGuard heard the other end last, or was told to."""

    insisting: Insisting
    at: Endpoint = OLD
    told: bool = False
    look_at: float = inf
    under_way: deque[tuple[float, Endpoint]] = field(default_factory=deque)

    def look(self, now: float) -> None:
        """A pass of the reconciler."""
        want = {"pm0": make_device(make_peer(endpoint=NEW))}
        before = {"pm0": make_device(make_peer(endpoint=NEW if self.told else OLD))}
        had = state(self.at)
        changes = diff(had, want, now=NOW, applied=before, insists=self.insisting.insists)
        self.told = True
        if any(peer.endpoint == NEW for change in changes for peer in change.peers):
            self.at = NEW
        self.insisting.applied(changes, had, now)
        self.look_at = now + self.insisting.pause(now)


def moved(rate: int, delay: float, proved: bool) -> bool:
    """Whether two ends that send some ``rate`` packets a second both send by the new way in the end, where a
    packet takes ``delay`` seconds by either way. Both are told to move within the delay."""
    rng = Random(rate)
    ends = [End(Insisting(lambda: {NEW} if proved else ())) for _ in range(2)]
    ends[0].look_at, ends[1].look_at = 1.0, 1.0 + delay
    for step in range(int((2.0 + LASTS) / STEP)):
        now = step * STEP
        for end, other in (ends, ends[::-1]):
            while end.under_way and end.under_way[0][0] <= now:
                end.at = end.under_way.popleft()[1]
            if now >= end.look_at:
                end.look(now)
            if rng.random() < rate * STEP:
                other.under_way.append((now + delay, end.at))
    return all(end.at == NEW for end in ends)


@pytest.mark.parametrize(("rate", "delay"), [(200, 0.04), (300, 0.05), (500, 0.02)])
def test_two_ends_get_to_a_way_that_was_proved(rate: int, delay: float) -> None:
    assert not moved(rate, delay, proved=False)  # they lead each other back
    assert moved(rate, delay, proved=True)


def applied(insisting: Insisting, now: float) -> None:
    insisting.applied([DeviceDiff("pm0", peers=(PeerDiff(KEY, endpoint=NEW),))], state(OLD), now)


def test_what_was_not_proved_is_left_to_wireguard() -> None:
    insisting = Insisting(lambda: {OLD})
    applied(insisting, 0.0)
    assert not insisting.insists("pm0", KEY, NEW, OLD)
    assert insisting.pause(0.1) == inf


def test_an_endpoint_is_set_again_for_a_while_and_no_longer() -> None:
    insisting = Insisting(lambda: {OLD, NEW})
    applied(insisting, 0.0)
    assert [insisting.pause(0.0) for _ in range(LOOKS + 2)] == [*[AGAIN] * LOOKS, SURE, SURE]
    assert insisting.insists("pm0", KEY, NEW, OLD)
    assert not insisting.insists("pm0", KEY, OLD, NEW) and not insisting.insists("pm1", KEY, NEW, OLD)
    applied(insisting, LASTS - 0.1)  # to set it again makes it no newer
    assert insisting.pause(LASTS) == inf
    assert not insisting.insists("pm0", KEY, NEW, OLD)


def test_a_peer_that_moves_again_is_followed_at_once() -> None:
    insisting, third = Insisting(lambda: {OLD, NEW}), Endpoint("203.0.113.9", 51820)
    applied(insisting, 0.0)
    want = {"pm0": make_device(make_peer(endpoint=NEW))}
    assert diff(state(OLD), want, now=NOW, applied=want, insists=insisting.insists)
    assert not diff(state(third), want, now=NOW, applied=want, insists=insisting.insists)


def test_a_peer_that_leads_back_for_ever_costs_few_looks() -> None:
    insisting, now, looks = Insisting(lambda: {NEW}), 0.0, 0
    while now < 1000.0:
        applied(insisting, now)
        now += min(insisting.pause(now), SURE)
        looks += 1
    assert looks <= PASSES[1] + 1000.0 * (PASSES[0] + 1 / SURE)
