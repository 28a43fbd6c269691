# SPDX-License-Identifier: GPL-3.0-or-later
"""Half-open handshakes in another's name: a crowd of addresses claims to be an honest member, and the honest
member's link must not notice. Under the virtual clock; `test_half_open_lab` does it to nodes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from statistics import median

import pytest

from phantommesh.endpoint import Address
from phantommesh.kem import CryptographyKem
from phantommesh.link.context import no_agreement
from phantommesh.link.effects import Send, Sign
from phantommesh.link.psk import PskPhase
from phantommesh.link.wire import Kind
from phantommesh.secret import Secret
from phantommesh.trust.identity import Identity
from tests.attacks.flooding import Flood
from tests.simulation.pair import ADMISSION, Simulation

SECONDS = 600.0
NEW = Secret(b"n" * 32)


class CountingKem(CryptographyKem):
    """The cost of an INIT to its responder: each encapsulation is followed by one signature."""

    def __init__(self) -> None:
        self.encapsulations = 0

    def encapsulate(self, ek: bytes) -> tuple[bytes, bytes]:
        self.encapsulations += 1
        return super().encapsulate(ek)


class Attack:
    """Floods the higher of two nodes, the responder, in the other's name."""

    def __init__(self, addresses: int, pace: float, *, seed: int = 1, admission: Secret = ADMISSION) -> None:
        self.kem = CountingKem()
        self.sim = Simulation(seed=seed, kem=self.kem)
        self.pace, self.rng = pace, random.Random(seed)
        self.honest, self.victim = self.sim.nodes
        self.sources = [Address(f"198.51.{i >> 8}.{i & 255}", 40000) for i in range(addresses)]
        self.flood = Flood(
            admission, self.victim.identity.node_id, self.honest.identity.node_id, self.rng.randbytes
        )
        self.phases: Counter[PskPhase] = Counter()
        self.signatures, self.flooded = 0, 0.0

    def throw(self, count: int) -> None:
        """Send so many INITs now, and take the answers."""
        for _ in range(count):
            source = self.rng.choice(self.sources)
            for datagram in self.flood.datagrams(source, self.sim.now):
                assert self.victim.links is not None
                for effect in self.victim.links.receive(datagram, source, self.victim.clock):
                    match effect:
                        case Send(answer) if answer[1] == Kind.COOKIE_REPLY:
                            self.flood.receive(answer, source, self.sim.now)
                        case Send(_, destination):
                            assert destination == source
                        case Sign():
                            self.signatures += 1  # and never carried out: the attacker waits for none
                        case _:
                            pytest.fail(f"an INIT brought about {effect}")

    def run(self, seconds: float, step: float = 0.1) -> None:
        """Flood, and look at both ends of the link all the time."""
        end, owed = self.sim.now + seconds, 0.0
        while self.sim.now < end:
            owed += self.pace * step
            self.throw(int(owed))
            owed -= int(owed)
            self.sim.run(step)
            self.flooded += step
            for one, other in ((0, 1), (1, 0)):
                self.phases[self.sim.state(one, other).phase] += 1

    def took(self) -> list[float]:
        """Seconds that each of the honest node's handshakes took."""
        return [opened.seconds for opened in self.honest.opened]

    def check(self, calm: Attack, rate: float, burst: float) -> None:
        """The link stayed fresh at both ends, the honest handshakes took what they take in peace, and what
        strangers had computed is bounded by the clock, not by what they sent."""
        assert self.phases.keys() == {PskPhase.FRESH}, self.phases
        handshakes = len(self.took())
        assert handshakes >= 2 and self.honest.links is not None
        assert self.honest.links.handshakes["initiator", "timeout"] == 0
        assert median(self.took()) <= 1.5 * median(calm.took()) and max(self.took()) <= 1.5 * max(calm.took())
        sent, in_peace = (sum(sim.sent.values()) for sim in (self.sim, calm.sim))
        assert sent / handshakes <= 1.5 * in_peace / len(calm.took())
        assert self.signatures <= burst + rate * self.flooded
        assert self.kem.encapsulations <= self.signatures + handshakes


@pytest.fixture(scope="module")
def calm() -> Attack:
    """The same two nodes in peace."""
    calm = Attack(1, 0.0)
    calm.sim.run(SECONDS)
    return calm


def test_a_revoked_node_with_26_addresses_and_45_inits_a_second(calm: Attack) -> None:
    """Ten minutes at default timers, before the secret that it knows was replaced."""
    attack = Attack(26, 45.0)
    attack.sim.run(5)
    attack.run(SECONDS)
    assert attack.flood.sent["init"] > 0.9 * 45 * SECONDS
    attack.check(calm, 10.0, 20)


def at_the_next_handshake(attack: Attack) -> None:
    """Flood from before a handshake is due until after it: all bounds are reached within a second."""
    attack.sim.run(80)
    before = len(attack.took())
    while len(attack.took()) == before and attack.flooded < 30.0:
        attack.run(2.0)
    attack.run(1.0)
    assert attack.flood.sent["init"] > 0.9 * attack.pace * attack.flooded - len(attack.sources)


def test_a_thousand_inits_a_second_from_256_addresses(calm: Attack) -> None:
    """By an insider, with the admission secret that all use."""
    attack = Attack(256, 1000.0)
    at_the_next_handshake(attack)
    attack.check(calm, 10.0, 20)


@pytest.mark.slow
def test_a_thousand_inits_a_second_for_ten_minutes(calm: Attack) -> None:
    """The same at default timers, over all the handshakes that fall due."""
    attack = Attack(256, 1000.0)
    attack.sim.run(5)
    attack.run(SECONDS)
    assert attack.flood.sent["init"] > 0.9 * 1000 * SECONDS
    attack.check(calm, 10.0, 20)


@pytest.mark.parametrize("known_by", ["address", "chain"])
def test_a_member_that_cannot_prove_its_name(calm: Attack, known_by: str) -> None:
    """No WireGuard key is known at both ends, so that nothing can be proven; and the same flood."""
    attack = Attack(256, 1000.0)
    for node in attack.sim.nodes:
        assert node.links is not None
        node.links._context.agree = no_agreement
    attack.sim.run(5)
    assert attack.victim.links is not None
    peer = attack.victim.links._peers[attack.honest.identity.node_id]
    peer.pairs.clear()
    if known_by == "chain":
        peer.auth, peer.seen_at = replace(peer.auth, endpoints=()), None
    at_the_next_handshake(attack)
    attack.check(calm, 10.0, 20)


def test_a_revoked_node_with_the_old_secret_competes_with_nobody_but_sleepers(calm: Attack) -> None:
    """The mesh has a new secret; the revoked node floods with the old one, in a member's name."""
    attack = Attack(256, 1000.0)
    attack.sim.run(5)
    for node in attack.sim.nodes:
        assert node.links is not None
        node.links.set_admission([NEW], [ADMISSION])
    at_the_next_handshake(attack)
    attack.check(calm, 1.0, 5)


def test_the_old_secret_opens_nothing_in_a_revoked_nodes_own_name() -> None:
    """Its own name ends at the first MAC: no cookie, no reassembly, no look at the roster."""
    sim = Simulation()
    sim.run(3)
    victim, revoked = sim.nodes[1], Identity.from_seed(b"revoked".ljust(32))
    assert victim.links is not None
    flood = Flood(ADMISSION, victim.identity.node_id, revoked.node_id, random.Random(1).randbytes)
    here = Address("198.51.100.7", 40000)

    def send() -> int:
        assert victim.links is not None
        return sum(len(victim.links.receive(d, here, victim.clock)) for d in flood.datagrams(here, sim.now))

    assert send() == 1  # while the secret is the mesh's own
    victim.links.set_admission([NEW], [ADMISSION])
    before = Counter(victim.links.drops)
    assert send() == 0
    # Nor with a cookie that it got in another's name.
    flood.cookies[here] = victim.links._answerer._cookies.current(here, victim.clock), sim.now
    assert send() == 0
    assert victim.links.drops - before == Counter({"mac": 2})
    victim.links.set_admission([NEW], [])
    flood.claimed = sim.nodes[0].identity.node_id
    flood.cookies.clear()
    assert send() == 0


def asleep(sleeper: int) -> Simulation:
    """Two nodes with a link; one sleeps through a revocation, and wakes with nothing in memory."""
    sim = Simulation(seed=5)
    sim.run(5)
    sim.nodes[sleeper].crash()
    awake = sim.nodes[1 - sleeper]
    assert awake.links is not None
    awake.links.set_admission([NEW], [ADMISSION])
    sim.run(400)
    return sim


@pytest.mark.parametrize("sleeper", [0, 1], ids=["it starts", "the other starts"])
@pytest.mark.parametrize("flooded", [False, True], ids=["calm", "flooded"])
def test_a_sleeper_gets_back_in(sleeper: int, flooded: bool) -> None:
    """It has the old secret alone. A revoked node floods with the same one, in the sleeper's name."""
    sim = asleep(sleeper)
    sim.restart(sim.nodes[sleeper])
    awake = sim.nodes[1 - sleeper]
    flood = Flood(ADMISSION, awake.identity.node_id, sim.nodes[sleeper].identity.node_id, sim.rng.randbytes)
    for step in range(300):
        for i in range(30 if flooded else 0):
            source = Address(f"198.51.100.{(step * 30 + i) % 256}", 40000)
            for datagram in flood.datagrams(source, sim.now):
                assert awake.links is not None
                for effect in awake.links.receive(datagram, source, awake.clock):
                    if isinstance(effect, Send) and effect.datagram[1] == Kind.COOKIE_REPLY:
                        flood.receive(effect.datagram, source, sim.now)
        sim.run(0.1)
        if sim.agree() and sim.state(0, 1).phase is sim.state(1, 0).phase is PskPhase.FRESH:
            break
    assert sim.agree(), "the sleeper is still out after 30 s"


def test_two_sides_that_made_secrets_apart_find_each_other() -> None:
    """Neither knows the other's newest; both have what was before."""
    sim = Simulation(seed=6)
    sim.run(5)
    for i, node in enumerate(sim.nodes):
        assert node.links is not None
        node.links.set_admission([Secret(bytes([i]) * 32)], [ADMISSION])
    sim.run(300)
    assert sim.agree() and sim.state(0, 1).phase is sim.state(1, 0).phase is PskPhase.FRESH
