# SPDX-License-Identifier: GPL-3.0-or-later
"""No honest node is banned, however the network is; and an attacker among them is.

Replay: ``python -m tests.simulation.test_siege SEED HOURS MEMBERS``.
"""

from __future__ import annotations

import sys

import pytest

from phantommesh.acl.threats import ENOUGH
from phantommesh.endpoint import Address
from tests.simulation.siege_sim import HOUR, Scale, Siege

ROUGH = Scale(
    loss=0.1, duplicate=0.05, restarts=300.0, roams=240.0, rebinds=60.0, node_restarts=900.0, nats=2
)


def told(siege: Siege) -> str:
    return (
        f"{siege.opened} handshakes, {siege.roamed} moves, {siege.restarted} restarts, "
        f"{len(siege.bans)} bans, the worst score {siege.worst:.3f}; {dict(siege.noted)}"
    )


def test_an_hour_of_a_rough_network_bans_nobody() -> None:
    siege = Siege(members=6, seed=1, scale=ROUGH)
    siege.run(HOUR)
    assert siege.bans == [] and siege.opened > 200, told(siege)
    assert siege.roamed > 50 and siege.restarted > 40, told(siege)
    # The peaceful tries of the revoked member and what the network broke were seen, and were not enough.
    assert siege.noted and 0.0 < siege.worst < 1.0, told(siege)


def test_an_attacker_among_them_is_banned_and_nobody_beside_it() -> None:
    siege = Siege(members=4, seed=2)
    siege.run(120.0)
    attacker = Address("192.0.2.66", 5)
    for _ in range(2 * int(ENOUGH["bad-mac"])):  # some fade until it is looked at
        siege.offences.note("mac", attacker.host, "cookie", siege.now)
    before = siege.opened
    siege.run(600.0 - 1.0)
    assert [ban.network for ban in siege.bans] == ["192.0.2.66/32"], told(siege)
    assert siege.opened > before


@pytest.mark.slow
def test_a_day_of_churn_nat_and_roaming_bans_nobody() -> None:
    siege = Siege(members=16, seed=3)
    siege.run(24 * HOUR)
    assert siege.bans == [] and siege.opened > 10_000, told(siege)


if __name__ == "__main__":
    seed, hours, members = sys.argv[1:]
    siege = Siege(int(members), int(seed))
    siege.run(float(hours) * HOUR)
    print(told(siege))
