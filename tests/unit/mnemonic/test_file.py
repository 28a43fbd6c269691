# SPDX-License-Identifier: GPL-3.0-or-later
"""The memory's file: a crash costs the last addition at most, damage what it hits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantommesh.mnemonic import file
from phantommesh.mnemonic.file import BATCH, HEADER, SLACK, decode, encode, most_size
from phantommesh.mnemonic.memory import Item, Key, Memory
from phantommesh.mnemonic.reputation import Reputation

NOW = 1_790_000_000.0
HINTERS = [Reputation(bytes([number]) * 16, 1.5, 0.5, NOW, NOW + number) for number in range(3)]


def items(count: int) -> list[Item]:
    memory = Memory()
    for number in range(count):
        memory.record(Key("scan", f"192.0.2.{number}"), NOW)
    return sorted(memory.copy().items())


ITEMS = items(10)
ADDED = [file.added([item], []) for item in ITEMS]


@pytest.mark.parametrize("count", [0, 1, BATCH, BATCH + 1])
def test_what_is_encoded_is_read(count: int) -> None:
    some = [(f"k|{number}||", bytes([number % 256]) * 5) for number in range(count)]
    found = decode(encode(some, HINTERS))
    assert (found.patterns, found.hinters, found.lost, found.torn) == (some, HINTERS, 0, 0)


def test_what_is_added_comes_after_what_was_there() -> None:
    found = decode(encode(ITEMS, HINTERS[:1]) + file.added([(ITEMS[0][0], b"")], HINTERS[1:]))
    assert found.patterns == [*ITEMS, (ITEMS[0][0], b"")] and found.hinters == HINTERS


@given(st.integers(0, sum(map(len, ADDED))))
def test_a_file_that_was_cut_off_anywhere_has_all_whole_additions(length: int) -> None:
    data = b"".join(ADDED)[:length]
    found = decode(HEADER + data)
    whole = 0
    while whole < len(ADDED) and sum(map(len, ADDED[: whole + 1])) <= length:
        whole += 1
    assert found.patterns == ITEMS[:whole]
    assert found.torn == found.lost == length - sum(map(len, ADDED[:whole]))


@given(st.integers(0, len(ADDED) - 2), st.data())
def test_a_byte_that_is_damaged_costs_its_frame(number: int, data: st.DataObject) -> None:
    raw = bytearray(HEADER + b"".join(ADDED))
    start = len(HEADER) + sum(map(len, ADDED[:number]))
    raw[start + data.draw(st.integers(0, len(ADDED[number]) - 1))] ^= data.draw(st.integers(1, 255))
    found = decode(bytes(raw))
    assert found.patterns == ITEMS[:number] + ITEMS[number + 1 :]
    assert (found.lost, found.torn) == (len(ADDED[number]), 0)


def test_zeros_in_place_of_the_last_addition_are_a_torn_end() -> None:
    found = decode(HEADER + ADDED[0] + bytes(len(ADDED[1])))
    assert found.patterns == ITEMS[:1] and found.torn == len(ADDED[1])


def test_a_file_of_marks_is_given_up() -> None:
    """Each mark may cost a checksum over a whole payload."""
    frame = ADDED[0]
    found = decode(HEADER + frame[:4] * (file.MOST_MISSES + 2) + frame)
    assert found.patterns == [] and found.torn == found.lost > 0


def test_a_foreign_file_has_nothing() -> None:
    assert decode(b"something else") == file.Content(lost=14, torn=14)
    assert decode(b"") == file.Content()


def test_a_file_may_grow_to_twice_what_it_holds() -> None:
    assert most_size(10 * SLACK) == 20 * SLACK and most_size(10) == SLACK + 10
