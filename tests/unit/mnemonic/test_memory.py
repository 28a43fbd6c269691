# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory: the same as a naive one, bounded, and hard to empty."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, replace
from math import exp2, isclose, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from phantommesh.mnemonic import memory as module
from phantommesh.mnemonic.memory import (
    FORGOTTEN,
    HALF_LIFE,
    MOST_KEY,
    MOST_NOTED,
    MOST_PATTERN_BYTES,
    MOST_STRENGTH,
    PUNISHED,
    REINFORCED,
    STATE_BYTES,
    WAYS,
    Item,
    Key,
    Memory,
    Pattern,
)

NOW = 1_790_000_000.0
ONE_SET = WAYS * MOST_PATTERN_BYTES  # bytes


def key(number: int, kind: str = "scan") -> Key:
    return Key(kind, f"198.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", "wireguard", "udp")


def test_what_was_recorded_is_recalled_and_its_strength_halves() -> None:
    memory = Memory()
    memory.record(key(1), NOW)
    assert memory.recall(key(1), NOW) == Pattern(1.0, 1, 0, 0, NOW, NOW, 0)
    found = memory.recall(key(1), NOW + HALF_LIFE)
    assert found is not None and found.strength == 0.5
    assert memory.recall(key(2), NOW) is None


def test_recording_again_adds_to_what_is_left() -> None:
    memory = Memory()
    memory.record(key(1), NOW)
    assert memory.record(key(1), NOW + HALF_LIFE, weight=2.0).strength == 2.5
    found = memory.recall(key(1), NOW + HALF_LIFE)
    assert found is not None and (found.times, found.first, found.last) == (2, NOW, NOW + HALF_LIFE)


def test_priority_stays_and_doubles_the_half_life() -> None:
    memory = Memory()
    memory.record(key(1), NOW, priority=3)
    memory.record(key(1), NOW)
    found = memory.recall(key(1), NOW + 8 * HALF_LIFE)
    assert found is not None and (found.strength, found.priority) == (1.0, 3)


def test_a_useful_recall_reinforces_and_a_false_alarm_punishes() -> None:
    memory = Memory()
    memory.record(key(1), NOW, weight=2.0)
    memory.reinforce(key(1), NOW)
    memory.punish(key(1), NOW)
    found = memory.recall(key(1), NOW)
    assert found is not None
    assert (found.strength, found.useful, found.false) == ((2.0 + REINFORCED) * PUNISHED, 1, 1)
    memory.reinforce(key(2), NOW)
    memory.punish(key(2), NOW)
    assert memory.recall(key(2), NOW) is None


def test_strength_and_counts_have_ends() -> None:
    memory = Memory()
    for _ in range(3):
        memory.record(key(1), NOW, weight=MOST_STRENGTH)
    state = memory.copy().items()
    text, raw = next(state)
    assert memory.restore([(text, raw[:20] + b"\xff" * 6 + raw[26:])], NOW) == 0  # all counts at their ends
    memory.record(key(1), NOW)
    memory.reinforce(key(1), NOW)
    memory.punish(key(1), NOW)
    found = memory.recall(key(1), NOW)
    assert found is not None and (found.times, found.useful, found.false) == (65_535, 65_535, 65_535)
    assert found.strength == MOST_STRENGTH * PUNISHED


def test_a_clock_that_is_set_back_does_no_harm() -> None:
    memory = Memory()
    memory.record(key(1), NOW)
    found = memory.recall(key(1), NOW - 10 * HALF_LIFE)
    assert found is not None and found.strength == 1.0
    assert memory.record(key(1), NOW - 10 * HALF_LIFE).strength == 2.0
    memory.record(key(2), -5.0)
    memory.record(key(3), 1e18)
    assert len(memory) == 3


@pytest.mark.parametrize(
    "bad",
    [
        Key("a|b", "192.0.2.1"),
        Key("scan", "192.0.2.1", signature="é"),
        Key("scan", "1\n"),
        Key("k", "x" * 93),
    ],
)
def test_a_key_that_cannot_be_is_refused(bad: Key) -> None:
    memory = Memory()
    with pytest.raises(ValueError, match="key"):
        memory.record(bad, NOW)
    assert len(memory) == 0 and memory.recall(bad, NOW) is None and not memory.unsaved


@pytest.mark.parametrize(
    ("weight", "priority"), [(0.0, 0), (float("nan"), 0), (MOST_STRENGTH + 1, 0), (1.0, -1), (1.0, 4)]
)
def test_a_weight_or_priority_that_cannot_be_is_refused(weight: float, priority: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Memory().record(key(1), NOW, weight, priority)


def test_the_longest_key_is_remembered() -> None:
    memory, longest = Memory(), Key("k", "x" * (MOST_KEY - 4))
    memory.record(longest, NOW)
    assert memory.recall(longest, NOW) is not None


def test_strangers_drive_out_each_other_and_not_what_was_seen_often() -> None:
    memory = Memory(64 * ONE_SET)
    for _ in range(5):
        memory.record(key(1, "ban"), NOW)
    for number in range(20 * memory.places):
        memory.record(key(number), NOW + HALF_LIFE)
    assert memory.recall(key(1, "ban"), NOW + HALF_LIFE) is not None
    assert memory.evicted > 18 * memory.places
    assert memory.places * 0.99 < len(memory) <= memory.places


def test_one_pattern_in_ten_goes_early_when_as_many_came_as_there_are_places() -> None:
    memory = Memory(1000 * ONE_SET)
    for number in range(memory.places):
        memory.record(key(number), NOW)
    assert memory.evicted <= 0.12 * memory.places
    half = Memory(1000 * ONE_SET)
    for number in range(half.places // 2):
        half.record(key(number), NOW)
    assert half.evicted <= 0.002 * half.places


def test_a_record_looks_at_one_set_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded work: however many patterns there are, a new one looks at the moments of `WAYS` others."""
    looked = 0

    class Counting:
        size = module._DUES.size

        def unpack_from(self, table: bytearray, at: int) -> tuple[float, ...]:
            nonlocal looked
            found = real.unpack_from(table, at)
            looked += len(found)
            return found

    real = module._DUES
    memory = Memory(100 * ONE_SET)
    for number in range(3 * memory.places):
        memory.record(key(number), NOW)
    monkeypatch.setattr(module, "_DUES", Counting())
    memory.record(key(-1), NOW)
    memory.recall(key(-1), NOW)
    assert looked == WAYS


class Chosen:
    """A hash that puts all patterns in one set, under tags that a test has chosen by the key's kind."""

    def __init__(self, tags: dict[str, bytes], text: bytes = b"") -> None:
        self._tags, self._text = tags, text

    def copy(self) -> Chosen:
        return Chosen(self._tags)

    def update(self, text: bytes) -> None:
        self._text = text

    def digest(self) -> bytes:
        return bytes(8) + self._tags[self._text.split(b"|")[0].decode()]


def test_a_tag_is_found_where_one_begins_and_nowhere_else() -> None:
    memory = Memory(ONE_SET)
    tags = {
        "a": b"abcdefgh",
        "b": b"ijklmnop",
        "across": b"efghijkl",
        "nought": bytes(8),
        "end": b"op" + bytes(6),
    }
    memory._hash = Chosen(tags)  # type: ignore[assignment]
    memory.record(Key("a", "x"), NOW)
    memory.record(Key("b", "x"), NOW, weight=2.0)
    for kind in ("across", "nought", "end"):
        assert memory.recall(Key(kind, "x"), NOW) is None
    memory.record(Key("across", "x"), NOW, weight=3.0)
    memory.record(Key("nought", "x"), NOW, weight=4.0)
    found = [memory.recall(Key(kind, "x"), NOW) for kind in ("a", "b", "across", "nought")]
    assert [one.strength for one in found if one is not None] == [1.0, 2.0, 3.0, 4.0]
    assert memory.forget(Key("nought", "x")) and memory.recall(Key("nought", "x"), NOW) is None
    assert len(memory) == 3


def test_the_stated_bytes_are_those_that_python_allocates() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        memory = Memory(2 * 1024 * 1024)
        for number in range(2 * memory.places):
            memory.record(key(number), NOW)
        memory.take_changes()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert memory.size * 0.93 < taken < memory.size * 1.03
    assert taken < memory.most_bytes
    assert 130 < taken / len(memory) < 150


def test_the_longest_keys_stay_below_the_bound() -> None:
    memory = Memory(1024 * 1024)
    for number in range(3 * memory.places):
        memory.record(Key("k", f"{number:0{MOST_KEY - 4}}"), NOW)
    assert len(memory) > 0.99 * memory.places
    assert 0.95 * memory.most_bytes < memory.size <= memory.most_bytes


def test_the_strongest_come_first_in_the_summary() -> None:
    memory = Memory()
    for number in range(20):
        memory.record(key(number), NOW, weight=1 + number)
    summary = memory.summary(NOW, 3)
    assert [named for named, _ in summary.strongest] == [key(19), key(18), key(17)]
    assert (summary.patterns, summary.places, summary.evicted) == (20, memory.places, 0)
    assert summary.bytes == memory.size < summary.most_bytes


def test_changes_are_told_once_and_what_was_forgotten_before_what_came_after() -> None:
    memory = Memory()
    memory.record(key(1), NOW)
    memory.record(key(2), NOW)
    assert memory.forget(key(1)) and not memory.forget(key(1))
    changes = memory.take_changes()
    assert changes is not None
    assert [(text.split("|")[1], len(state)) for text, state in changes] == [
        ("198.0.0.1", 0),
        ("198.0.0.2", STATE_BYTES),
    ]
    assert (memory.unsaved, memory.take_changes()) == (False, [])
    memory.give_back()
    assert (memory.unsaved, memory.take_changes()) == (True, None)


def test_changes_that_wait_are_bounded() -> None:
    memory = Memory()
    for number in range(MOST_NOTED + 1):
        memory.record(key(number), NOW)
    assert memory.take_changes() is None
    for number in range(MOST_NOTED + 1):
        memory.forget(key(number))
    assert memory.take_changes() is None and len(memory) == 0


def test_what_cannot_be_is_not_restored() -> None:
    memory = Memory()
    memory.record(key(1), NOW)
    text, state = next(memory.copy().items())
    nan, huge = b"\0" * 6 + b"\xf8\x7f", b"\0" * 6 + b"\xf0\x7f"
    bad: list[Item] = [
        ("no key", state), (text, state[:-1]), (text, nan + state[8:]), (text, state[:8] + huge + state[16:]),
        (text, state[:-1] + b"\x04"), (text, bytes(8) + state[8:]),
    ]  # fmt: skip
    other = Memory()
    assert other.restore(bad, NOW) == len(bad) and len(other) == 0
    assert other.restore([(text, state)], NOW - 50.0) == 0 and not other.unsaved
    found = other.recall(key(1), NOW)
    assert found is not None and found.last == NOW - 50.0  # a moment to come was a wrong clock's


# ---- against a naive memory


@dataclass(frozen=True)
class Naive:
    """One pattern of the model. ``order`` tells which came first, among those that are equally stale."""

    strength: float
    at: float
    times: int
    useful: int = 0
    false: int = 0
    first: float = 0.0
    priority: int = 0

    @property
    def half_life(self) -> float:
        return HALF_LIFE * (1, 2, 4, 8)[self.priority]

    def decayed(self, now: float) -> float:
        return self.strength * exp2(-max(0.0, now - self.at) / self.half_life)

    @property
    def due(self) -> float:
        left = log2(self.strength / FORGOTTEN) if self.strength > FORGOTTEN else 0.0
        return self.at + left * self.half_life


KEYS = st.integers(0, 3 * WAYS).map(key)


class AgainstNaive(RuleBasedStateMachine):
    """One set of places, so the naive memory can say who is the stalest; and a second memory that only gets
    what the first one has written."""

    @initialize()
    def begin(self) -> None:
        self.memory, self.written = Memory(ONE_SET), Memory(40 * ONE_SET)
        self.model = dict[Key, Naive]()
        self.now = NOW

    @rule(seconds=st.floats(0, 3 * HALF_LIFE))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(named=KEYS, weight=st.floats(0.01, 10), priority=st.integers(0, 3))
    def record(self, named: Key, weight: float, priority: int) -> None:
        old = self.model.get(named)
        if old is None and len(self.model) == WAYS:
            stalest = min(one.due for one in self.model.values())
            # Which of several equals goes is the memory's to choose.
            victims = [other for other, one in self.model.items() if isclose(one.due, stalest, abs_tol=1e-3)]
            self.memory.record(named, self.now, weight, priority)
            gone = [other for other in self.model if self.memory.recall(other, self.now) is None]
            assert len(gone) == 1 and gone[0] in victims
            del self.model[gone[0]]
        else:
            self.memory.record(named, self.now, weight, priority)
        if old is None:
            self.model[named] = Naive(weight, self.now, 1, first=int(self.now), priority=priority)
        else:
            had = max(priority, old.priority)
            strength = min(old.decayed(self.now) + weight, MOST_STRENGTH)
            self.model[named] = replace(
                old, strength=strength, at=self.now, times=old.times + 1, priority=had
            )  # fmt: skip

    @rule(named=KEYS, useful=st.booleans())
    def judge(self, named: Key, useful: bool) -> None:
        (self.memory.reinforce if useful else self.memory.punish)(named, self.now)
        old = self.model.get(named)
        if old is not None:
            left = old.decayed(self.now)
            self.model[named] = replace(
                old, at=self.now, useful=old.useful + useful, false=old.false + (not useful),
                strength=min(left + REINFORCED, MOST_STRENGTH) if useful else left * PUNISHED,
            )  # fmt: skip

    @rule(named=KEYS)
    def forget(self, named: Key) -> None:
        assert self.memory.forget(named) == (self.model.pop(named, None) is not None)

    @rule(fails=st.booleans())
    def write(self, fails: bool) -> None:
        changes = self.memory.take_changes()
        if fails:
            self.memory.give_back()
            return
        if changes is None:
            self.written = Memory(40 * ONE_SET)
            changes = list(self.memory.copy().items())
        assert self.written.restore(changes, self.now) == 0
        for named, one in self.model.items():
            found = self.written.recall(named, self.now)
            assert found is not None and found == self.memory.recall(named, self.now)
            assert found.times == one.times

    @invariant()
    def same(self) -> None:
        assert len(self.memory) == len(self.model) <= WAYS
        assert self.memory.size <= self.memory.most_bytes
        for number in range(3 * WAYS + 1):
            found, one = self.memory.recall(key(number), self.now), self.model.get(key(number))
            if one is None:
                assert found is None
                continue
            assert found is not None
            assert isclose(found.strength, one.decayed(self.now), rel_tol=1e-9, abs_tol=1e-300)
            assert (found.times, found.useful, found.false) == (one.times, one.useful, one.false)
            assert (found.first, found.last, found.priority) == (one.first, one.at, one.priority)


TestAgainstNaive = AgainstNaive.TestCase
TestAgainstNaive.settings = settings(max_examples=40, stateful_step_count=60, deadline=None)


@given(st.lists(st.tuples(st.text(max_size=100), st.binary(max_size=40)), max_size=20), st.floats(0, 1e11))
def test_items_that_anybody_made_up_break_nothing(items: list[Item], now: float) -> None:
    memory = Memory(ONE_SET)
    memory.restore(items, now)
    assert len(memory) <= memory.places and memory.size <= memory.most_bytes
    memory.record(key(1), now)
    assert memory.recall(key(1), now) is not None
