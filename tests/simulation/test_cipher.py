# SPDX-License-Identifier: GPL-3.0-or-later
"""CIPHER over real links under a virtual clock: a peer that stops rotating, and an insider that makes others
rotate."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest

from phantommesh.agents.actions import Quarantine, Raise, Rotate
from phantommesh.agents.cipher import SIGN_BURST, SIGN_RATE, Cipher, LinkSeen, Seen, SignSeen
from phantommesh.agents.council import Council
from phantommesh.link.context import GLARE_DELAY
from phantommesh.link.copies import Copies
from phantommesh.link.psk import PskPhase
from phantommesh.node.steps import Moment
from tests.simulation.pair import Node, Simulation

STEP = 0.5  # s between two looks of the test at what has come about: an event wakes the agent that late
PROMISE = 180.0


class Guarded:
    """A node with CIPHER. ``closed`` are the peers whose traffic is closed now, ``told`` what was ordered
    when, ``rotated`` how often each link was re-keyed."""

    def __init__(self, sim: Simulation, node: Node) -> None:
        numbers = count()
        self.sim, self.node = sim, node
        self.council = Council([Cipher()], trace=lambda: str(next(numbers)), now=node.clock)
        self.copies = Copies()
        self.closed = set[bytes]()
        self.told: list[tuple[float, str, bytes]] = []
        self.findings = set[str]()
        self.rotated = Counter[bytes]()
        self._heard = 0, 0

    def seen(self) -> Seen:
        links, now = self.node.links, self.node.clock
        assert links is not None
        found = []
        for peer in links._peers:
            state = links.state(peer, now)
            moments = [at for at in self.node.kernel.reported[peer] if at is not None]
            found.append(
                LinkSeen(
                    peer=peer.hex(),
                    name=peer.hex()[:6],
                    age=state.age,
                    failing=state.last_error is not None,
                    handshake_age=now - max(moments) if moments else None,
                    closed=peer in self.closed,
                )
            )
        unexplained = self.copies.unexplained.items()
        signs = [SignSeen(peer=p.hex(), name="", kind="chain-reset", age=now - at) for p, at in unexplained]
        signs += [
            SignSeen(peer=one.node.hex(), name="", kind="copied", age=now - one.last)
            for one in self.copies.suspicions
            if one.node is not None
        ]
        period = links.timing.latest + GLARE_DELAY
        return Seen(links=tuple(found), signs=tuple(signs), period=period, promise=PROMISE)

    def step(self) -> None:
        """Look where it is time, or where a link has told something; do what is accepted."""
        now, heard = self.node.clock, (len(self.node.alarms), len(self.node.opened))
        for alarm in self.node.alarms[self._heard[0] :]:
            if alarm.kind == "chain-reset":
                self.copies.reset(alarm.peer, alarm.sign, 1, now)
        for opened in self.node.opened[self._heard[1] :]:
            self.copies.chained(opened.peer, 1, now)
        self.copies.look(lambda _: 1, now)
        woken, self._heard = heard != self._heard, heard
        if not woken and now < self.council.due("cipher", now):
            return
        at = Moment(now, now)
        for order in self.council.looked(
            "cipher", self.council.look("cipher", self.seen(), (), at)(), 0.0, at
        ).orders:
            match order.proposal.action:
                case Quarantine(peer):
                    (self.closed.discard if order.lift else self.closed.add)(bytes.fromhex(peer))
                    self.told.append((now, "open" if order.lift else "close", bytes.fromhex(peer)))
                case Rotate(peer):
                    assert self.node.links is not None
                    self.rotated[bytes.fromhex(peer)] += 1
                    self.node.links.rotate(bytes.fromhex(peer), now)
                case Raise(rule):
                    (self.findings.discard if order.lift else self.findings.add)(rule)
                case other:
                    raise AssertionError(other)


def run(sim: Simulation, seconds: float, *guards: Guarded) -> None:
    for _ in range(int(seconds / STEP)):
        sim.run(STEP)
        for guard in guards:
            guard.step()


@pytest.mark.parametrize("stops", [0, 1, 2])
@pytest.mark.parametrize("away", [250.0, 700.0])
def test_a_peer_that_stops_rotating_is_closed_at_the_promise_and_opened_by_the_next_psk(
    stops: int, away: float
) -> None:
    """Its WireGuard goes on: that is the case in which traffic would flow under an old PSK."""
    sim = Simulation(nodes=3, seed=stops)
    guards = [Guarded(sim, node) for node in sim.nodes]
    run(sim, 100, *guards)
    gone, others = sim.nodes[stops], [guard for i, guard in enumerate(guards) if i != stops]
    sim.network.cut = lambda _, source, destination: gone.address in (source, destination)
    cut = sim.now
    for _ in range(int(away / STEP)):
        run(sim, STEP, *guards)
        for guard in others:
            links = guard.node.links
            assert links is not None
            state = links.state(gone.identity.node_id, guard.node.clock)
            if state.phase is PskPhase.STALE and (state.age or 0) > PROMISE + STEP:
                assert gone.identity.node_id in guard.closed
            assert guard.closed <= {gone.identity.node_id}
    assert cut + away > sim.now - STEP
    for guard in others:
        assert (guard.closed != set()) is (away < 300)  # at the end its random PSK is enough
        assert ("cipher-quarantine" in guard.findings) is (away < 300)
        assert "stale" in {alarm.kind for alarm in guard.node.alarms}
    sim.network.cut = None
    run(sim, 45, *guards)
    for guard in others:
        assert not guard.closed and not guard.findings
        close, open_ = [what for what in guard.told if what[2] == gone.identity.node_id][:2]
        assert (close[1], open_[1]) == ("close", "open")
        if away < 300:
            # The link's next handshake and the end of the quarantine come together.
            finished = [one for one in guard.node.opened if one.peer == gone.identity.node_id]
            assert finished and guard.node.links is not None
            assert guard.node.links.state(gone.identity.node_id, guard.node.clock).phase is PskPhase.FRESH
        assert not guard.rotated
    assert sim.agree(0, 1) and sim.agree(1, 2)


def test_a_mesh_in_which_all_is_well_gives_cipher_nothing_to_do() -> None:
    sim = Simulation(nodes=3, seed=5)
    guards = [Guarded(sim, node) for node in sim.nodes]
    run(sim, 1200, *guards)
    for guard in guards:
        assert not guard.told and not guard.rotated and not guard.findings


@pytest.mark.parametrize("at", [31.0, 33.0, 36.0])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_rotation_just_after_a_wireguard_handshake_leaves_no_link_to_get_stale(
    at: float, seed: int
) -> None:
    """WireGuard's next handshake, from which the next PSK is counted, comes two minutes later."""
    sim = Simulation(nodes=2, seed=seed)
    sim.run(at)
    one, other = sim.nodes
    assert one.links is not None and other.links is not None
    one.links.rotate(None, one.clock)
    oldest = 0.0
    for _ in range(400):
        sim.run(1)
        oldest = max(oldest, one.links.state(other.identity.node_id, one.clock).age or 0.0)
    assert oldest <= sim.timing.latest + GLARE_DELAY + STEP
    assert "stale" not in {alarm.kind for node in sim.nodes for alarm in node.alarms}


def test_an_insider_that_loses_its_keys_again_and_again_makes_others_rotate_seldom_and_close_nothing() -> (
    None
):
    """It restarts its links every few seconds and gossips no start. The honest pair is left alone."""
    sim = Simulation(nodes=3, seed=2)
    guards = [Guarded(sim, node) for node in sim.nodes[:2]]
    run(sim, 60, *guards)
    insider, seconds = sim.nodes[2], 900.0
    began, before = sim.now, [len(guard.node.opened) for guard in guards]
    while sim.now < began + seconds:
        sim.restart(insider)
        run(sim, 6, *guards)
    for guard, earlier in zip(guards, before, strict=True):
        assert not guard.closed and not [what for what in guard.told if what[1] == "close"]
        assert set(guard.rotated) <= {insider.identity.node_id}
        assert 0 < guard.rotated.total() <= SIGN_BURST + SIGN_RATE * seconds + 1
        by_insider = [one for one in guard.node.opened[earlier:] if one.peer == insider.identity.node_id]
        assert guard.rotated.total() < len(by_insider) / 10
    assert sim.agree(0, 1)
