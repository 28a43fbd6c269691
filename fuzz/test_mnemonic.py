# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile lists of hints and damaged memory files: dropped and counted, within every bound."""

from __future__ import annotations

import contextlib

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fuzz.test_trust import mutations
from phantommesh.control.hinting import TellHints
from phantommesh.control.messages import ControlError, decode_request_untrusted, encode
from phantommesh.mnemonic import file
from phantommesh.mnemonic.hints import MOST_HINTED, MOST_HINTERS, MOST_LOWERING, ONE, SETTLED, Hinter, Hints
from phantommesh.mnemonic.memory import Key, Memory
from phantommesh.mnemonic.reputation import MOST, Reputation
from phantommesh.mnemonic.saying import (
    MAX_HINTS_BYTES,
    MOST_HINTS,
    Hint,
    HintError,
    Said,
    decode_hints_untrusted,
    sign_hints,
)
from phantommesh.trust.identity import Identity, NodeId
from tests.support.makemesh import NOW, identity

CROWD = [identity(f"hinter {number}") for number in range(6)]
SOURCES = [f"198.51.100.{number}" for number in range(12)]
MEMBERS = {"192.0.2.1": NOW - 2 * SETTLED, "192.0.2.2": NOW}
SAID = Said(CROWD[0].node_id, int(NOW * 1000), (Hint("scan", SOURCES[0], 80, int(NOW + 600)),))
SIGNED = sign_hints(CROWD[0], SAID)


def _file() -> bytes:
    memory = Memory()
    for number in range(40):
        memory.record(Key("scan", str(number)), NOW)
    reputations = [Reputation(one.node_id, 1.0, 2.0, NOW) for one in CROWD]
    return file.encode(memory.copy().items(), reputations)


FILE = _file()


@settings(max_examples=400, deadline=None)
@given(st.one_of(mutations(SIGNED), st.binary(max_size=300)))
def test_hints(data: bytes) -> None:
    with contextlib.suppress(HintError):
        decode_hints_untrusted(data)
    hints = Hints(NodeId(b"m" * 16), lambda node: Hinter(CROWD[0].public_key, b"root"))
    assert hints.take(data, CROWD[0].node_id, 0, MEMBERS.get, NOW) is None
    assert hints.lowering(SOURCES[0], NOW) == 0.0 and hints.dropped.total() == 1


@settings(max_examples=200, deadline=None)
@given(mutations(encode(TellHints(SIGNED, 2))))
def test_the_message(data: bytes) -> None:
    with contextlib.suppress(ControlError):
        decode_request_untrusted(data)


@settings(max_examples=300, deadline=None)
@given(st.one_of(mutations(FILE), st.binary(max_size=500)))
def test_the_file(data: bytes) -> None:
    content, memory = file.decode(data), Memory(64 * 1024)
    hints = Hints(NodeId(b"m" * 16), lambda node: None)
    memory.restore(content.patterns, NOW)
    hints.reputations.restore(content.hinters, NOW)
    assert content.torn <= content.lost <= len(data)
    assert memory.size <= memory.most_bytes and len(hints.reputations.all()) <= MOST
    memory.summary(NOW, 3)
    hints.summary(NOW)


def test_the_longest_list_fits() -> None:
    said = tuple(
        Hint("x" * 16, f"2001:db8:ffff:{number:x}::", 100, 2**53)
        for number in range(0x1000, 0x1000 + MOST_HINTS)
    )
    data = sign_hints(CROWD[0], Said(CROWD[0].node_id, 2**53, said))
    assert len(data) <= MAX_HINTS_BYTES
    assert decode_hints_untrusted(data)[1].hints == said


class Liars(RuleBasedStateMachine):
    """Members that say anything, by the hands of any: no bound is left, and no honest member's address is
    ever hinted."""

    @initialize()
    def begin(self) -> None:
        self.now = NOW
        self.hints = Hints(NodeId(b"m" * 16), self.who)
        self.gone = set[bytes]()

    def who(self, node: NodeId) -> Hinter | None:
        for number, one in enumerate(CROWD):
            if one.node_id == node and node not in self.gone:
                return Hinter(one.public_key, bytes([number % 2]))
        return None

    @rule(
        origin=st.sampled_from(CROWD), signer=st.integers(0, 9), sender=st.sampled_from(CROWD),
        sources=st.lists(st.sampled_from([*SOURCES, *MEMBERS]), max_size=8, unique=True),
        made=st.floats(-30_000, 600), hops=st.integers(0, 4), strength=st.integers(1, 100),
        life=st.integers(-100, 40_000),
    )  # fmt: skip
    def tell(
        self, origin: Identity, signer: int, sender: Identity, sources: list[str], made: float, hops: int,
        strength: int, life: int,
    ) -> None:  # fmt: skip
        at = self.now + made
        hints = tuple(Hint("scan", source, strength, int(at + life)) for source in sources)
        said = Said(origin.node_id, int(at * 1000), hints)
        data = sign_hints(origin if signer else sender, said)
        self.hints.take(data, sender.node_id, hops, MEMBERS.get, self.now)

    @rule(source=st.sampled_from(SOURCES), alone=st.booleans())
    def ban(self, source: str, alone: bool) -> None:
        self.hints.banned(source, self.now, alone=alone)

    @rule(source=st.sampled_from(SOURCES))
    def refute(self, source: str) -> None:
        self.hints.refuted(source, self.now)

    @rule(seconds=st.floats(0, 10_000))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(leaves=st.integers(0, len(CROWD) - 1), sweeps=st.booleans())
    def leave(self, leaves: int, sweeps: bool) -> None:
        self.gone ^= {CROWD[leaves].node_id}
        if sweeps:
            self.hints.sweep(MEMBERS.get, self.now)

    @rule()
    def start_again(self) -> None:
        before = self.hints.reputations
        self.hints = Hints(NodeId(b"m" * 16), self.who)
        assert self.hints.reputations.restore(before.all(), self.now) == 0
        assert msgspec.msgpack.encode(before.all()) == msgspec.msgpack.encode(self.hints.reputations.all())

    @invariant()
    def bounded(self) -> None:
        summary = self.hints.summary(self.now)
        assert summary.hinted <= MOST_HINTED and len(summary.hinters) <= MOST_HINTERS
        assert all(self.hints.lowering(member, self.now) == 0.0 for member in MEMBERS)
        for source in SOURCES:
            forces = self.hints._forces(source, self.now)
            lowering = self.hints.lowering(source, self.now)
            assert 0.0 <= lowering <= (MOST_LOWERING if len(forces) > 1 else ONE)
        assert {source for source, origins in self.hints._about.items() if origins} == {
            source for held in self.hints._held.values() for source in held.hints
        }


TestLiars = Liars.TestCase
TestLiars.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
