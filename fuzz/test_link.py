# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever reaches `Links.receive`, in any order: counted drops, bounded state, and the link comes up."""

from __future__ import annotations

import random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fuzz.storm import Storm
from phantommesh.endpoint import Address
from phantommesh.link.admission import HALF_OPEN, SHARES, Standing
from phantommesh.link.psk import PskPhase
from tests.simulation.pair import Network, Simulation

TRICKS = [
    "pass", "drop", "hold", "twice", "flip", "cut", "pad", "port", "host", "wrong node", "version", "replay",
]  # fmt: skip
tricks = st.tuples(st.sampled_from(TRICKS), st.integers(0, 2**32 - 1))


@settings(max_examples=60)
@given(st.lists(tricks, max_size=60), st.integers(0, 3))
@example([("pass", 0)] * 9 + [("drop", 0)], 0)  # a lost fragment of AUTH
@example([("hold", 0), ("hold", 0), ("replay", 1), ("replay", 0)] * 5, 1)
def test_a_meddler_on_the_path_cannot_stop_a_link_for_good(plan: list[tuple[str, int]], seed: int) -> None:
    """Each datagram of the link meets one trick of the plan; after the plan the path is clean."""
    sim = Simulation(seed=seed)
    steps, seen = iter(plan), list[tuple[bytes, Address, Address]]()

    def inject(datagram: bytes, source: Address, destination: Address) -> None:
        for node in sim.nodes:
            if node.address == destination and node.links is not None:
                sim.carry_out(node, node.links.receive(datagram, source, node.clock))
                held, half_open = node.links.held
                assert held <= 64 * 1024 and half_open <= HALF_OPEN

    def meddle(datagram: bytes, source: Address, destination: Address) -> bool:
        seen.append((datagram, source, destination))
        trick, number = next(steps, ("pass", 0))
        rng = random.Random(number)
        bad = bytearray(datagram)
        match trick:
            case "pass":
                return False
            case "drop":
                return True
            case "hold":  # behind all others of this moment, and once more later
                sim._later(0.5, ("datagram", destination, datagram, source))
                return False
            case "twice":
                inject(datagram, source, destination)
                return False
            case "flip":
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            case "cut":
                del bad[rng.randrange(len(bad)) :]
            case "pad":
                bad += rng.randbytes(rng.randrange(1, 40))
            case "port":
                source = source._replace(port=rng.randrange(1, 65536))
            case "host":
                source = Address(f"198.51.100.{rng.randrange(256)}", 51800)
            case "wrong node":
                source, destination = destination, source
            case "version":
                bad[0] = rng.randrange(2, 256)
            case "replay":
                old, source, destination = rng.choice(seen)
                bad = bytearray(old)
        inject(bytes(bad), source, destination)
        return trick != "replay"

    sim.network.cut = meddle
    sim.run(20)
    sim.network = Network()
    sim.run(60)
    assert sim.agree()
    assert sim.state(0, 1).phase is sim.state(1, 0).phase is PskPhase.FRESH


@settings(max_examples=40)
@given(st.lists(st.binary(max_size=1300) | st.integers(0, 2**32), max_size=40))
def test_junk_leaves_no_trace(noise: list[bytes | int]) -> None:
    sim = Simulation()
    node = sim.nodes[1]
    assert node.links is not None
    for item in noise:
        datagram = item if isinstance(item, bytes) else random.Random(item).randbytes(item % 1300)
        assert node.links.receive(datagram, Address("198.51.100.1", 1), node.clock) == []
    assert node.links.held == (0, 0)
    assert node.links.drops.total() == len(noise)


def test_twenty_thousand_generated_datagrams() -> None:
    """The million of `fuzz.million`, shorter. The storm checks the limits after each datagram."""
    storm = Storm(seed=7)
    storm.run(8_000)
    storm.fragment_flood()
    storm.run(4_000)  # in a full reassembly the oldest give way: there is no "quota" for INIT
    storm.half_open_flood()
    storm.run(20_000 - storm.thrown.total())
    expected = {
        "malformed", "session", "mac", "cookie", "rate", "duplicate", "unknown-node",
        "signature", "expired", "replay", "budget", "encapsulation key", "x25519",
    }  # fmt: skip
    assert expected <= storm.drops().keys(), expected - storm.drops().keys()
    assert SHARES[Standing.STRANGER].burst <= storm.peak.half_open <= HALF_OPEN
    storm.calm()
    assert storm.sim.agree()
    assert storm.sim.state().phase is PskPhase.FRESH
    for node in storm.sim.nodes:
        assert node.links is not None and node.links.held[0] == 0


def test_the_same_seed_gives_the_same_storm() -> None:
    def run() -> list[object]:
        storm = Storm(seed=3)
        storm.run(2000)
        return [storm.thrown, storm.drops(), storm.peak]

    assert run() == run()
