# SPDX-License-Identifier: GPL-3.0-or-later
"""Honest nodes whose every step takes time, under load, loss and clocks that are set, by a clock of the test.

Whole services at both ends, and all that they sign. Bytes wait before WireGuard counts them and on their way;
a reading takes its time, dimension by dimension; a message takes milliseconds or seconds. Epochs may go
without proof, but no proof may fail.
"""

import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TypeVar, TypeVarTuple, Unpack

import pytest
import trio
from trio.testing import MockClock

from phantommesh.control import messages
from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.members import proving as module
from phantommesh.records.record import sign_record
from phantommesh.scatter.epochs import EpochCounts
from phantommesh.scatter.maps import Epoch
from phantommesh.scatter.peermap import Hits
from phantommesh.trust.identity import NodeId
from tests.nursery.members.test_proving import CARDS, MESH, End
from tests.support.makemesh import identity, plain_record
from tests.support.makeproofs import plus

EPOCHS = int(os.environ.get("PHANTOMMESH_HONEST_EPOCHS", "40"))
EPOCH_S = 4.0
BURST = 80  # packets in each dimension
LOSS = 0.03
QUEUED, UNDER_WAY = 0.05, 0.3  # s at most: before WireGuard, and after it

Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Busy(End):
    """One node under load."""

    def begin(self, draw: Random, clock: MockClock) -> None:
        self.draw, self.clock, self.delay = draw, clock, QUEUED + UNDER_WAY
        self.current = self.epoch(trio.current_time(), self.date + trio.current_time())

    def epoch(self, began: float, started: float) -> EpochCounts:
        self.epochs += 1
        return EpochCounts(Epoch(1, self.epochs), "packet", (1.0,) * 7, CARDS, Hits(), started, began=began)

    async def pause(self, usual: float) -> None:
        """As a busy machine does: short as a rule, and now and then long."""
        long = self.draw.random() < 0.01
        await trio.sleep(self.draw.uniform(0.5, 4.0) if long else self.draw.expovariate(1 / usual))

    @asynccontextmanager
    async def call(self, peer: NodeId) -> AsyncIterator["Busy"]:
        await self.pause(0.02)
        yield self

    async def ask(self, request: messages.Request) -> messages.Answer:
        await self.pause(0.02)
        answer = await super().ask(request)
        await self.pause(0.02)
        return answer

    async def read(self) -> None:
        counters = []
        for i in range(DIMENSIONS):
            counters.append((bytes(32), self.received[i], self.sent[i]))
            await self.pause(0.005)
        self.proving.look({self.other.id: counters})

    async def scattered(self) -> dict[bytes, EpochCounts]:
        await self.pause(0.01)
        assert self.current is not None
        return {bytes(self.other.id): self.current}

    async def load(self) -> None:
        """Bursts, and pauses in which nothing is sent."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self.draw.expovariate(20) if self.draw.random() < 0.97 else 1.0)
                packets = self.draw.randrange(BURST)
                assert self.current is not None
                hits = self.current.hits
                counted = plus(hits.packets, [packets] * 7), plus(hits.bytes, [packets * 1420] * 7)
                self.current = replace(self.current, hits=Hits(*counted))
                nursery.start_soon(self.carry_on, packets)

    async def carry_on(self, packets: int) -> None:
        sent = [packets * 1467] * 7
        lost = [sum(self.draw.random() < LOSS for _ in range(packets)) * 1467 for _ in sent]
        await trio.sleep(self.draw.uniform(0.0, QUEUED))
        self.sent = plus(self.sent, sent)
        await trio.sleep(self.draw.uniform(0.0, UNDER_WAY))
        came = [whole - gone for whole, gone in zip(sent, lost, strict=True)]
        self.other.received = plus(self.other.received, came)

    async def go_on(self, epochs: int) -> None:
        """Let so many epochs pass; the clock is set now and then."""
        for _ in range(epochs):
            length = EPOCH_S if self.draw.random() < 0.9 else 0.4  # the scores of a path have changed
            await trio.sleep(length * self.draw.uniform(0.9, 1.1))
            if self.draw.random() < 0.05:
                self.date += self.draw.uniform(-10.0, 10.0)
            ended, now = self.current, trio.current_time()
            assert ended is not None
            wall = self.date + now
            started = ended.after(now) if abs(ended.after(now) - wall) < 1.0 else wall
            self.current = self.epoch(now, started)
            self.proving.epoch(self.other.id, ended, self.current)


async def inline(call: Callable[[Unpack[Arguments]], Result], *arguments: *Arguments) -> Result:
    """In place of a thread, which takes a time that the test's clock knows nothing of."""
    await trio.lowlevel.checkpoint()
    return call(*arguments)


@pytest.mark.parametrize("seed", [1, 2])
async def test_no_proof_of_honest_nodes_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, seed: int
) -> None:
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)
    monkeypatch.setattr(module, "SHORTEST", 0.3)
    draw = Random(seed)
    a, b = (Busy(name, tmp_path / name) for name in ("pm-1", "pm-2"))
    a.other, b.other = b, a
    for end in (a, b):
        end.proving._epoch = EPOCH_S
        for name in ("pm-1", "pm-2"):
            node, now = identity(name), time.time()
            certificate = MESH.certify(node, name, now=now)
            end.roster.add(sign_record(node, plain_record(node), certificate, MESH.authority.der), now)
    async with trio.open_nursery() as nursery:
        for end in (a, b):
            end.serving = nursery
            end.begin(draw, autojump_clock)
            nursery.start_soon(end.proving.run)
            nursery.start_soon(end.load)
        async with trio.open_nursery() as epochs:
            for end in (a, b):
                epochs.start_soon(end.go_on, EPOCHS)
        await trio.sleep(6 * EPOCH_S)
        for end in (a, b):
            assert end.results["mismatch"] == end.results["refused"] == 0, end.results
            assert end.results["countersigned"] > EPOCHS / 4, end.results
            assert (await end.verified()).countersigned
        print("signed by both ends:", a.results["countersigned"] + b.results["countersigned"])
        nursery.cancel_scope.cancel()
