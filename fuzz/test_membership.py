# SPDX-License-Identifier: GPL-3.0-or-later
"""Any bytes are a datagram or dropped; any course of events leaves honest members alive and in agreement."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from phantommesh.endpoint import Address
from phantommesh.membership import messages
from phantommesh.membership.effects import Send
from phantommesh.membership.machine import Membership
from phantommesh.membership.messages import (
    MAX_MESSAGE,
    Event,
    GossipError,
    State,
    decode_sync_untrusted,
    decode_untrusted,
    encode,
)
from phantommesh.membership.table import Snapshot
from tests.simulation.gossip_sim import Network, Simulation, claim, node_id, record_hash

NOWHERE = Address("203.0.113.66", 6)
nodes = st.integers(0, 5).map(node_id)
numbers = st.one_of(st.integers(0, 3), st.integers(0, 2**24 - 1))
events = st.builds(
    Event,
    nodes,
    st.one_of(numbers, st.integers(0, 2**48 - 1)),
    numbers,
    st.sampled_from(State),
    numbers,
    nodes,
).map(Event.encode)
datagrams = st.builds(
    encode, st.sampled_from(messages.Kind), st.binary(min_size=8, max_size=8), nodes,
    st.one_of(nodes, st.just(bytes(16))), st.lists(events, max_size=5), st.integers(0, 0xFFFF),
)  # fmt: skip


@settings(max_examples=500)
@given(
    st.one_of(
        st.binary(max_size=1300), datagrams.flatmap(lambda d: st.integers(0, len(d)).map(lambda n: d[:n]))
    )
)
def test_any_bytes_decode_or_raise_one_error(data: bytes) -> None:
    for decode in (decode_untrusted, decode_sync_untrusted):
        try:
            message: Any = decode(data)
        except GossipError:
            continue
        assert all(len(event) == 48 for event in message.events)
        for event in message.events:
            assert Event.of(event).encode() == event
    try:
        kind, wait_ms, nonce, sender, target, held, extra = decode_untrusted(data)
    except GossipError:
        return
    assert encode(kind, nonce, sender, target, held, wait_ms, extra) == data


def member() -> Membership:
    return Membership(
        node=node_id(0), generation=2, record_seq=1, record_hash=record_hash(0, 1), rng=random.Random(1),
        now=0.0, known=Snapshot(map(claim, range(4))),
    )  # fmt: skip


@settings(max_examples=200)
@given(st.lists(st.tuples(st.one_of(st.binary(max_size=200), datagrams), st.floats(-5, 5)), max_size=30))
def test_a_member_takes_any_datagrams_at_any_time(steps: list[tuple[bytes, float]]) -> None:
    one, now = member(), 0.0
    for datagram, step in steps:
        now += step
        effects = one.receive(datagram, NOWHERE, now) + one.tick(now)
        for effect in effects:
            if isinstance(effect, Send):
                assert len(effect.datagram) <= MAX_MESSAGE
                decode_untrusted(effect.datagram)
                assert effect.to == NOWHERE or isinstance(effect.to, bytes)
        assert one.deadline >= now - 10
        assert one.generation >= 2
        assert one.state(node_id(0)) is State.ALIVE


@settings(max_examples=100)
@given(st.lists(datagrams, max_size=20), st.binary(max_size=3000))
def test_any_sync_is_taken_in_or_refused(steps: list[bytes], junk: bytes) -> None:
    one, other, me = member(), member(), node_id(0)
    for datagram in steps:
        one.receive(datagram, NOWHERE, 0.0)
    reply, _ = other.sync_answer(one.sync_open(0.0), me, 0.0)
    closing, _ = one.sync_close(reply, me, 0.0)
    other.sync_finish(closing, me, 0.0)
    for step in (one.sync_answer, one.sync_close, one.sync_finish):
        try:
            step(junk, me, 0.0)
        except GossipError:
            pass


class Mesh(RuleBasedStateMachine):
    """Three to five nodes. Whatever happens, and whoever lies: a node that runs and can be reached is never
    dead."""

    @initialize(count=st.integers(3, 5), seed=st.integers(0, 2**32), loss=st.sampled_from([0.0, 0.1]))
    def build(self, count: int, seed: int, loss: float) -> None:
        self.sim = Simulation(count, seed=seed, network=Network(loss=loss, duplicate=0.1))
        self.count = count
        self.troubled = (
            False  # since the last peace: real faults, in which nodes may rightly be held for dead
        )
        self.wrongs: list[bytes] = []
        self.sim.on_change = lambda viewer, change, now: (
            self.wrongs.append(change.node) if change.event in ("dead", "left") else None
        )
        self.sim.start_all()
        self.sim.run(2)

    @rule(seconds=st.floats(0.01, 10))
    def wait(self, seconds: float) -> None:
        self.sim.run(seconds)

    @rule(index=st.integers(0, 4))
    def crash(self, index: int) -> None:
        if index < self.count and len(self.sim.running()) > 1 and self.sim.nodes[index].member is not None:
            self.troubled = True
            self.sim.crash(index)

    @rule(index=st.integers(0, 4))
    def start(self, index: int) -> None:
        if index < self.count and self.sim.nodes[index].member is None:
            self.sim.start(index, seeds=tuple(node.address for node in self.sim.nodes))

    @rule(index=st.integers(0, 4), seconds=st.floats(0.1, 1.0))
    def stall(self, index: int, seconds: float) -> None:
        if index < self.count:
            self.troubled = True
            self.sim.stall(index, seconds)

    @rule(pairs=st.sets(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=8))
    def cut(self, pairs: set[tuple[int, int]]) -> None:
        self.troubled = True
        self.sim.network.cut = lambda a, b: (a, b) in pairs

    @rule(index=st.integers(0, 4))
    def publish(self, index: int) -> None:
        if index < self.count and self.sim.nodes[index].member is not None:
            self.sim.publish(index)

    @rule(index=st.integers(0, 4), seconds=st.floats(-1000, 1000))
    def step_clock(self, index: int, seconds: float) -> None:
        if index < self.count and self.sim.nodes[index].member is not None:
            self.sim.step_clock(index, seconds)

    @rule(index=st.integers(0, 4), datagram=datagrams)
    def forge(self, index: int, datagram: bytes) -> None:
        if index < self.count:
            self.sim.inject(datagram, index, NOWHERE)

    def teardown(self) -> None:
        if hasattr(self, "sim"):
            self.peace()

    @precondition(lambda self: self.troubled)
    @rule()
    def peace(self) -> None:
        self.sim.network.cut = None
        self.sim.run(2)
        for index in range(self.count):
            self.start(index)
        assert self.sim.run(120, self.sim.agreed), "no one view after the faults"
        self.wrongs.clear()
        self.troubled = False

    @invariant()
    def nobody_is_wronged(self) -> None:
        if not getattr(self, "troubled", True):
            assert self.wrongs == []


Mesh.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestMesh = Mesh.TestCase
