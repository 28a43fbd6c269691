# SPDX-License-Identifier: GPL-3.0-or-later
"""A member that answers a fetch with what no node expects, and in a flood.

Played by beta with its own keys against alpha, two whole nodes on the loopback device. A rumour of a node
that does not exist has alpha fetch its record from beta; beta answers as it likes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from structlog.typing import EventDict

from phantommesh.control import messages
from phantommesh.endpoint import Address
from phantommesh.gossip.machine import KIND
from phantommesh.management.logbudget import LogBudget
from phantommesh.membership.messages import GOSSIP, NOBODY, Event, State, encode
from phantommesh.node.serving import ServingWork
from phantommesh.node.steps import Moment, Party
from phantommesh.nursery.logs import _SUBJECTS
from phantommesh.nursery.node import Node
from phantommesh.nursery.supervisor import RESTARTS
from phantommesh.records.record import SignedRecord, encoded_hash
from phantommesh.records.roster import Entry
from tests.support.loopback import join, make_authority, make_invite, serving, until

Forge = Callable[[Sequence[bytes]], tuple[bytes, ...]]


def year_0(der: bytes) -> bytes:
    """A certificate that begins in the year 0, which RFC 5280 allows to write and Python has not."""
    old = der.index(b"\x30\x1e\x17\x0d")  # a Validity of two UTCTimes
    body = b"\x18\x0f00000101000000Z\x18\x0f20500101000000Z"
    data = bytearray(der[:old] + b"\x30" + bytes([len(body)]) + body + der[old + 32 :])
    for at in (2, 6):  # the lengths of Certificate and TBSCertificate, 30 82 xx xx each
        data[at : at + 2] = (int.from_bytes(der[at : at + 2]) + len(body) - 30).to_bytes(2)
    return bytes(data)


@dataclass
class Attack:
    """``answered`` counts the fetches that beta has answered with what ``forge`` gave; ``asked`` holds the
    hashes that they named."""

    alpha: Node
    beta: Node
    forge: Forge = lambda hashes: ()
    answered: int = 0
    asked: set[bytes] = field(default_factory=set)
    verified: list[SignedRecord] = field(default_factory=list)

    @property
    def own(self) -> SignedRecord:
        """Beta's own record."""
        held = self.beta.parts.keeper.roster.get(self.beta.parts.state.identity.node_id)
        assert held is not None
        return held.signed

    def rumour(self, hashes: Sequence[bytes]) -> None:
        """Tell alpha of records of nodes that nobody knows, under these hashes."""
        events = [Event(os.urandom(16), 1, 1, State.ALIVE, 1, one).encode() for one in hashes]
        said = encode(GOSSIP, os.urandom(8), self.beta.parts.state.identity.node_id, NOBODY, events)
        datagram = self.beta.parts.gossip.gossip._envelope.seal(KIND, said)
        self.beta.parts.udp.send(datagram, Address("127.0.0.1", self.alpha.parts.config.control.port))

    async def play(self, hashes: Sequence[bytes]) -> None:
        """Have alpha fetch some of them, and be answered."""
        with trio.fail_after(60):
            while self.asked.isdisjoint(hashes):
                self.rumour(hashes)
                await trio.sleep(0.1)

    @property
    def restarts(self) -> float:
        """How often alpha's gossip was started again."""
        return cast("float", self.alpha.parts.metrics.service_restarts.labels("gossip")._value.get())


@asynccontextmanager
async def attack(at: Path) -> AsyncIterator[Attack]:
    state = make_authority(at / "a")
    async with serving(at / "a"):
        await join(at / "b", make_invite(state), "beta")
    async with serving(at / "b") as beta, serving(at / "a") as alpha:
        mine, theirs = alpha.parts.state.identity.node_id, beta.parts.state.identity.node_id
        await until(lambda: bool(beta.parts.sessions.newest(mine) and alpha.parts.sessions.newest(theirs)))
        await until(lambda: beta.parts.gossip.membership.state(mine) is State.ALIVE)
        it = Attack(alpha, beta)
        real, verify = beta.parts.server.serving._serve, alpha.parts.keeper.roster.verify

        def serve(party: Party, request: messages.Request, at: Moment) -> ServingWork[messages.Answer]:
            if not isinstance(request, messages.Fetch):
                return (yield from real(party, request, at))
            answer = messages.Records(it.forge(request.hashes))
            it.answered += 1
            it.asked.update(request.hashes)
            return answer

        def count(signed: SignedRecord, now: float) -> Entry:
            it.verified.append(signed)
            return verify(signed, now)

        beta.parts.server.serving._serve = serve  # type: ignore[method-assign]
        alpha.parts.keeper.roster.verify = count  # type: ignore[method-assign]
        yield it


@pytest.mark.parametrize("which", ["node_cert", "authority_cert"])
async def test_a_certificate_of_the_year_0_ends_nobody(tmp_path: Path, which: str) -> None:
    """Before: seven datagrams of a member ended any other member's node, for good."""
    with capture_logs() as logs:
        async with attack(tmp_path) as it:
            for _ in range(RESTARTS + 3):
                change = {which: year_0(getattr(it.own, which))}
                # Another signature each time, so that it is another record, under the hash asked for.
                change["signature"] = os.urandom(len(it.own.signature))
                evil = msgspec.structs.replace(it.own, **change).encode()
                it.forge = lambda hashes, evil=evil: (evil,)  # type: ignore[misc]
                await it.play([encoded_hash(evil)])
            await until(lambda: it.alpha.parts.keeper.dropped["record"] >= RESTARTS + 3)
            assert it.restarts == 0
            assert "record-broken" not in it.alpha.parts.keeper.dropped  # the first line held
    assert not [entry for entry in logs if entry["event"].startswith("service failed")]
    assert {entry["peer"] for entry in logs if entry["event"] == "records refused"} == {"beta"}


async def test_an_error_that_nobody_expects_ends_nobody(tmp_path: Path) -> None:
    """The second line, for the next such fault: whatever a part of the code raises over what beta sent."""
    with capture_logs() as logs:
        async with attack(tmp_path) as it:

            def fail(signed: SignedRecord, now: float) -> Entry:
                raise ZeroDivisionError

            it.alpha.parts.keeper.roster.verify = fail  # type: ignore[method-assign]
            for _ in range(RESTARTS + 3):
                evil = msgspec.structs.replace(it.own, signature=os.urandom(len(it.own.signature))).encode()
                it.forge = lambda hashes, evil=evil: (evil,)  # type: ignore[misc]
                await it.play([encoded_hash(evil)])
            await until(lambda: it.alpha.parts.keeper.dropped["record-broken"] >= RESTARTS + 3)
            broken = it.alpha.parts.udp.dropped["datagram-broken"]

            def fail_too(datagram: bytes, source: Address, now: float) -> list[object]:
                raise ZeroDivisionError

            it.alpha.parts.gossip.gossip.receive = fail_too  # type: ignore[assignment]
            for _ in range(RESTARTS + 3):
                it.rumour([os.urandom(16)])
                await trio.sleep(0.01)
            await until(lambda: it.alpha.parts.udp.dropped["datagram-broken"] > broken + RESTARTS)
            assert it.restarts == 0
    assert not [entry for entry in logs if entry["event"].startswith("service failed")]
    told = [entry for entry in logs if entry["log_level"] == "error" and "peer" in entry]
    assert {(entry["peer"], entry["error"]) for entry in told} == {("beta", "ZeroDivisionError")}


async def test_records_that_nobody_asked_for_cost_no_verification(tmp_path: Path) -> None:
    """Before: beta's own record, sixty times in each answer, was verified as often: two milliseconds each."""
    with capture_logs():
        async with attack(tmp_path) as it:
            mine = it.beta.parts.state.identity.node_id
            await until(
                lambda: (e := it.alpha.parts.keeper.roster.get(mine)) is not None and e.signed == it.own
            )
            own = it.own.encode()
            it.verified.clear()
            it.forge = lambda hashes: (own,) * min(60, 8 + len(hashes))
            for _ in range(3):
                await it.play([os.urandom(16) for _ in range(16)])
            await until(lambda: it.alpha.parts.keeper.dropped["record-unasked"] >= 3 * 9)
            assert it.own not in it.verified
            # and those asked for, again and again in one answer: once
            evil = msgspec.structs.replace(it.own, signature=os.urandom(len(it.own.signature)))
            it.forge = lambda hashes: (evil.encode(),) * min(60, 8 + len(hashes))
            await it.play([encoded_hash(evil.encode())])
            await until(lambda: evil in it.verified)
            await trio.sleep(0.3)
            assert it.verified.count(evil) <= it.answered


async def test_one_members_flood_hides_no_others_line(tmp_path: Path) -> None:
    """Before: the line had no subject, so all members had one budget of it."""
    with capture_logs() as logs:
        async with attack(tmp_path) as it:
            bad = msgspec.structs.replace(it.own, signature=os.urandom(len(it.own.signature))).encode()
            for _ in range(20):
                await it.alpha.parts.keeper.take([bad], it.beta.parts.state.identity.node_id)
            await it.alpha.parts.keeper.take([bad], Address("192.0.2.9", 51800))
    lines = [entry for entry in logs if entry["event"] == "records refused"]
    budget = LogBudget(0.0)
    written = [budget.admit("records refused", _subject(line), 1.0) is not None for line in lines]
    assert written.count(True) < 10 and written[-1]


def _subject(line: EventDict) -> str:
    return next((str(line[name]) for name in _SUBJECTS if line.get(name) is not None), "")
