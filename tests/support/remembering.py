# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.support.remembering DIRECTORY [RATE]``: a process that records numbered patterns, as fast
as it can or RATE a second, and keeps them as a node does, until it is killed.

It prints a line ``r NUMBER SECONDS`` after each record, by its monotonic clock, and ``w NUMBER`` when a write
has returned: all patterns up to that number are on disk.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, time

import trio

from phantommesh.config.memory import MemorySection
from phantommesh.mnemonic.memory import Key
from phantommesh.nursery.keeping.memory import MemoryKeeper
from phantommesh.state.directory import StateDir
from phantommesh.trust.identity import NodeId


def key(number: int) -> Key:
    """The pattern of a number."""
    return Key("scan", str(number))


def make_keeper(at: Path) -> MemoryKeeper:
    """A memory of a node that has its state there."""
    return MemoryKeeper(MemorySection(), StateDir(at), NodeId(bytes(16)), lambda node: None)


def left(at: Path, upto: int) -> Iterator[int]:
    """The numbers of the patterns that are on disk."""
    memory = make_keeper(at).memory
    return (number for number in range(upto + 1) if memory.recall(key(number), time()) is not None)


async def remember(at: Path, rate: float) -> None:
    """Record until killed."""
    keeper, number = make_keeper(at), 0
    save = keeper.save

    async def saving() -> None:
        saved = number
        await save()
        print("w", saved, flush=True)

    keeper.save = saving  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        while True:
            number += 1
            keeper.memory.record(key(number), time())
            keeper.changed()
            print("r", number, monotonic(), flush=True)
            await trio.sleep(1 / rate)


if __name__ == "__main__":
    trio.run(remember, Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1e6)
