# SPDX-License-Identifier: GPL-3.0-or-later
"""One test for each fault that review, fuzzing or simulation found in the link protocol."""

from __future__ import annotations

from dataclasses import replace

import pytest

from phantommesh.endpoint import Address
from phantommesh.link import keys, wire
from phantommesh.link.context import Timing
from phantommesh.link.effects import Effect, Send, Sign
from phantommesh.link.handshake import Responder
from phantommesh.link.psk import Agreement, PskPhase, PskState
from phantommesh.link.wire import Kind, Mode
from phantommesh.secret import Secret
from tests.simulation.pair import Node, Simulation


def agreement(epoch: int, *, by_lower_id: bool = True, born: float = 0.0, fill: int = 0) -> Agreement:
    mark = bytes([epoch, by_lower_id, fill])
    psks = tuple(Secret(mark + bytes([i]) * 29) for i in range(7))
    return Agreement(epoch, by_lower_id, mark.ljust(16, b"."), Secret(mark * 8), psks, Secret(mark), born)


def psk_state() -> PskState:
    return PskState(lambda n: b"\xaa" * n, alarm_after=180.0, random_after=300.0)


def datagrams(effects: list[Effect]) -> list[bytes]:
    return [effect.datagram for effect in effects if isinstance(effect, Send)]


def psk_of(node: Node, other: Node) -> PskState:
    assert node.links is not None
    return node.links._peers[other.identity.node_id].psk


def test_an_agreement_that_was_overtaken_is_not_staged() -> None:
    """A crossing handshake was committed while ours was being signed: showing ours would undo it."""
    state = psk_state()
    assert state.commit(agreement(5), 0.0)
    assert not state.stage(agreement(4))
    assert not state.stage(agreement(5, by_lower_id=False))
    state.doubt(1.0)
    assert state.desired == agreement(5).psks


def test_rotation_every_two_seconds_is_not_taken_for_a_flood() -> None:
    """Finished handshakes waited 12 s for a lost ACK and used up the four places of their peer."""
    sim = Simulation(timing=Timing(rotate=2.0, jitter=0.1))
    sim.run(60)
    assert sim.nodes[1].links is not None
    assert sim.nodes[1].links.drops["half-open"] == 0
    assert sim.state().epoch >= 25


def test_a_replayed_init_does_not_end_the_handshake_under_way() -> None:
    """The half-open handshake gave way before the replay was noticed."""
    sim = Simulation()
    old: list[tuple[bytes, Address, Address]] = []

    def record(datagram: bytes, source: Address, destination: Address) -> bool:
        if datagram[1] == Kind.INIT:
            old.append((datagram, source, destination))
        return False

    sim.network.cut = record
    sim.run(30)
    first = old[:2]
    sim.network.cut = None
    sim.network.block = {Kind.AUTH}
    a, b = sim.nodes
    assert a.links is not None and b.links is not None
    a.links.rotate(None, a.clock)
    sim.carry_out(a, a.links.tick(a.clock))
    sim.run(0.1)
    responses = b.links._answerer.responses
    current = [r for r in responses._by_own.values() if r.verified_at is None]
    assert len(current) == 1
    for datagram, source, _ in first:
        b.links.receive(datagram, source, b.clock)
    assert responses.by_own(current[0].handshake.own) is current[0]
    assert b.links.drops["replay"] == 1


def test_a_peer_cannot_drive_the_epoch_out_of_range() -> None:
    """At 2**64 - 1 the next INIT could not be encoded: an exception out of `tick`."""
    sim = Simulation()
    sim.run(3)
    evil, honest = sim.nodes
    psk_of(evil, honest).committed = replace(agreement(1), epoch=2**64 - 2)
    assert evil.links is not None and honest.links is not None
    evil.links.rotate(None, evil.clock)
    evil.links._peers[honest.identity.node_id].cookie = None
    sim.run(30)
    assert honest.links.drops["malformed"] > 0
    assert sim.state(1, 0).epoch < 2**63


def test_resp_must_name_the_node_that_was_asked() -> None:
    """The signature covers the responder's id, but nobody compared it with the peer's."""
    sim = Simulation()
    a, b = sim.nodes
    other = Node(sim, 1, b.identity, 0.0)
    assert other.links is not None
    other.links._context.node_id = a.identity.node_id  # signs as b, and says that it is someone else
    assert a.links is not None
    real = Responder.__init__

    def lie(self: Responder, init: wire.Init, **kwargs: object) -> None:
        real(self, init, **kwargs)  # type: ignore[arg-type]
        self._node_id = a.identity.node_id

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Responder, "__init__", lie)
        sim.run(2)
    assert a.links.drops["identity"] > 0
    assert sim.state().epoch == 0


def test_rotate_is_not_forgotten_when_a_confirmation_comes_before_the_tick() -> None:
    sim = Simulation()
    a, b = sim.nodes
    assert a.links is not None
    peer = a.links._peers[b.identity.node_id]
    sim.run(0.5)
    assert peer.psk.committed is not None
    peer.timed_by_handshake = False
    a.links.rotate(None, a.clock)
    a.links.read_back(b.identity.node_id, 127, [a.clock] * 7, a.clock)
    assert peer.next_start <= a.clock


def test_a_clock_that_is_set_right_does_not_put_the_next_handshake_off() -> None:
    """One dimension still has the time of a handshake under the clock that was ahead: the links of all whose
    clocks were wrong alike went dark minutes after the clocks were right, for as long as they had been ahead.
    """
    sim = Simulation()
    a, b = sim.nodes
    assert a.links is not None
    peer = a.links._peers[b.identity.node_id]
    sim.run(0.5)
    for ahead in (3_600.0, 86_400.0):
        peer.timed_by_handshake = False
        before = peer.next_start
        a.links.read_back(b.identity.node_id, 127, [a.clock] * 6 + [a.clock + ahead], a.clock)
        assert peer.timed_by_handshake
        assert peer.next_start <= max(before, a.clock + 600)
        assert not a.links.settled(b.identity.node_id, [a.clock] * 6 + [a.clock + ahead], a.clock)


def test_a_psk_that_is_not_installed_is_not_called_fresh() -> None:
    """A kernel that refuses the PSK holds the old one; the end with that kernel said fresh for 180 s."""
    sim = Simulation()
    sim.run(5)
    b = sim.nodes[1]
    b.install_works = False
    sim.run(110)
    assert not sim.agree()
    assert sim.state(1, 0).phase is not PskPhase.FRESH
    b.install_works = True
    sim.run(30)
    assert sim.agree()
    assert sim.state(1, 0).phase is PskPhase.FRESH


def test_ack_speaks_of_its_own_psks_only() -> None:
    """With the PSKs of a later, doubtful handshake shown, read-back is no proof of the acknowledged ones."""
    sim = Simulation()
    sim.run(5)
    a, b = sim.nodes
    b.install_works = False
    assert a.links is not None and b.links is not None
    a.links.rotate(None, a.clock)
    sim.carry_out(a, a.links.tick(a.clock))
    sim.run(0.5)
    state = psk_of(b, a)
    assert state.committed is not None
    assert state.stage(agreement(state.committed.epoch + 1))
    state.doubt(b.clock)
    acks = sim.sent[Kind.ACK]
    sim.carry_out(b, b.links.read_back(a.identity.node_id, 127, [None] * 7, b.clock))
    assert sim.sent[Kind.ACK] == acks


def test_a_cookie_that_the_other_end_forgot_costs_less_than_an_attempt() -> None:
    """After a restart of the responder, five INITs under a cookie it no longer knows went unanswered."""
    sim = Simulation(timing=Timing(rotate=20.0))
    sim.run(5)
    a, b = sim.nodes
    assert b.links is not None
    b.links._answerer._cookies._secrets = [b"x" * 32, b"y" * 32]
    sim.run(30)
    assert a.links is not None
    assert sim.state().epoch == 2
    assert a.links.handshakes["initiator", "timeout"] == 0


def test_a_signature_that_never_comes_does_not_stop_the_link() -> None:
    """The driver drops a signing job when its queue is full; the initiator waited for it for ever."""
    sim = Simulation()
    a = sim.nodes[0]
    with pytest.MonkeyPatch.context() as patch:
        carry_out = sim.carry_out
        patch.setattr(
            sim, "carry_out",
            lambda n, effects: carry_out(n, [e for e in effects if not (n is a and isinstance(e, Sign))]),
        )  # fmt: skip
        sim.run(3)
        assert sim.state().epoch == 0
    sim.run(60)
    assert sim.agree()


def test_a_handshake_in_the_future_confirms_nothing() -> None:
    """The kernel stamps with the system's clock. Set back by an hour, an old handshake looked newer than the
    PSKs, and ended the doubt about them."""
    state = psk_state()
    assert state.commit(agreement(1), 0.0)
    state.installed(127, 0.1)
    state.observe([3600.0] * 7, 1.0)
    assert state.confirmed == 0
    state.observe([0.5] * 7, 1.0)
    assert state.confirmed == 127


def test_a_strange_cookie_reply_is_not_looked_up_before_its_mac() -> None:
    sim = Simulation()
    a, _ = sim.nodes
    assert a.links is not None
    reply = wire.CookieReply(Mode.MEMBER, b"n" * 8, b"c" * 16).encode(b"not the key".ljust(32))
    a.links.receive(reply, Address("198.51.100.1", 9), a.clock)
    assert a.links.drops == {"mac": 1}


def test_the_transcript_covers_the_mode() -> None:
    """The mode stands in the header only, which no signature covered."""
    digests = set()
    for mode in Mode:
        init = wire.Init(
            mode, b"s" * 8, 1, bytes(32), b"i" * 16, b"n" * 32, 127, b"h" * 32, b"e" * 1568, b"x" * 32
        )
        digests.add(keys.init_transcript(init).peek(b""))
    assert len(digests) == len(Mode)
