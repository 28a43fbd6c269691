# SPDX-License-Identifier: GPL-3.0-or-later
"""Hints go from member to member, and further."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import cast

import pytest
import trio
from msgspec import structs
from structlog.testing import capture_logs
from trio.testing import MockClock

from phantommesh.acl.bans import OPEN
from phantommesh.control import messages
from phantommesh.control.hinting import TellHints
from phantommesh.mnemonic.canaries import Named
from phantommesh.mnemonic.hints import SETTLED, Hinter
from phantommesh.mnemonic.saying import Hint, Said, decode_hints_untrusted, sign_hints
from phantommesh.nursery.keeping.memory import MemoryKeeper
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members import hinting as module
from phantommesh.nursery.members.calling import Answered, Caller
from phantommesh.nursery.members.hinting import PASSED_TO, QUEUE, TOLD, Hinting
from phantommesh.nursery.node import Node
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.records.candidate import Candidate, Kind
from phantommesh.trust.certificates import Role
from phantommesh.trust.identity import Identity, NodeId
from tests.support.loopback import join, make_authority, make_invite, serving, until
from tests.support.makemesh import NOW, identity
from tests.support.remembering import make_keeper
from tests.unit.node.test_routes import ONE as MESH_ONE
from tests.unit.node.test_routes import entry

ME, HINTER = identity("me"), identity("hinter")
BAD = "198.51.100.7"


@asynccontextmanager
async def mesh_of_two(at: Path) -> AsyncIterator[tuple[Node, Node]]:
    state = make_authority(at / "a")
    async with serving(at / "a") as alpha:
        await join(at / "b", make_invite(state), "beta")
        async with serving(at / "b") as beta:
            await until(lambda: bool(alpha.parts.caller.callable() and beta.parts.caller.callable()))
            yield alpha, beta


async def test_a_member_hears_of_an_attacker_and_no_more_of_it_when_it_is_withdrawn(tmp_path: Path) -> None:
    async with mesh_of_two(tmp_path) as (alpha, beta):
        hints, own = beta.parts.memory.hints, alpha.parts.memory.hints.own
        own.tell("scan", BAD, 1.0, time() + 600, time())
        await until(lambda: hints.lowering(BAD, time()) > 0.4)
        own.withdraw(BAD)
        await until(lambda: hints.lowering(BAD, time()) == 0.0)
        assert not alpha.parts.memory.dropped + beta.parts.memory.dropped


async def test_a_member_that_hints_members_is_a_liar_also_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_of_two(tmp_path) as (alpha, beta):
        hints, banning = alpha.parts.memory.hints, alpha.parts.banning
        assert alpha.parts.memory.shields("127.0.0.1") and not alpha.parts.memory.shields(BAD)
        banning.bans.add(ip_network(f"{BAD}/32"), "own", 600.0, "scan", time(), OPEN, kinds=["scan"])
        assert banning._around.offended(BAD)  # type: ignore[attr-defined]
        monkeypatch.setattr(alpha.parts.hinting, "_named", lambda: [Named(ME.node_id, 1, [BAD])])
        alpha.parts.memory.canaries.look(alpha.parts.hinting._named(), time() - 2 * SETTLED)
        liar = beta.parts.own.member.node_id
        beta.parts.memory.hints.own.tell("scan", BAD, 1.0, time() + 600, time())
        await until(lambda: hints.reputations.weight(liar, time()) == 0.0)
        assert hints.lowering(BAD, time()) == 0.0
        assert alpha.parts.dropped()["hint-canary"] == 1
        await until(lambda: not hints.reputations.unsaved)
    again = make_keeper(tmp_path / "a" / "state")
    assert again.hints.reputations.weight(liar, time()) == 0.0


async def test_who_introduced_a_member_is_its_authority(tmp_path: Path) -> None:
    async with mesh_of_two(tmp_path) as (alpha, beta):
        find = module.hinter_of(alpha.parts.keeper)
        authority, member = alpha.parts.own.member, beta.parts.own.member
        assert authority.role is Role.AUTHORITY
        assert find(member.node_id) == Hinter(member.public_key, authority.node_id)
        assert find(authority.node_id) == Hinter(authority.public_key, authority.node_id)
        assert find(identity("nobody").node_id) is None


class Member:
    def __init__(self, who: Identity, role: Role) -> None:
        self.public_key, self.role = who.public_key, role


@dataclass
class Found:
    """A roster of one entry, which is its own keeper."""

    member: Member
    issuer: NodeId | None

    @property
    def roster(self) -> Found:
        return self

    def get(self, node: NodeId) -> Found:
        return self

    def valid(self, now: float) -> bool:
        return True


def test_an_authority_that_another_introduced_counts_as_those_whom_it_introduces() -> None:
    """Else it could make a member, and the two would count as two."""
    issuer = NodeId(b"i" * 16)
    find = module.hinter_of(cast("RosterKeeper", Found(Member(HINTER, Role.AUTHORITY), issuer)))
    assert find(HINTER.node_id) == Hinter(HINTER.public_key, HINTER.node_id)
    find = module.hinter_of(cast("RosterKeeper", Found(Member(HINTER, Role.NODE), issuer)))
    assert find(HINTER.node_id) == Hinter(HINTER.public_key, issuer)


def test_what_the_records_of_members_in_good_standing_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", lambda: NOW)
    one = entry(MESH_ONE, "one", (), ())
    candidate = Candidate.of(Kind.SEEN, ip_address("203.0.113.5"), 51800)
    named = structs.replace(
        one.record, control=("[2001:db8::7]:51800", "a.example:1"), candidates=(candidate,)
    )
    one = replace(one, record=named)
    (found,) = module.named_by(cast("RosterKeeper", SimpleNamespace(roster=[one])))()
    assert found[:2] == (MESH_ONE.node_id, named.seq)
    late = replace(one, member=replace(one.member, not_after=NOW - 1.0))
    assert list(module.named_by(cast("RosterKeeper", SimpleNamespace(roster=[late])))()) == []
    assert list(found.hosts) == ["2001:db8::7", "a.example", "203.0.113.5"]


@dataclass
class Others:
    """Members that can be called, and what each was told."""

    members: list[NodeId]
    told: list[tuple[NodeId, TellHints]] = field(default_factory=list)
    fails: bool = False

    def callable(self) -> list[NodeId]:
        return self.members

    def name_of(self, member: NodeId) -> str:
        return str(member)

    async def ask(self, member: NodeId, request: messages.Request, patience: float) -> Answered:
        await trio.lowlevel.checkpoint()
        assert isinstance(request, TellHints)
        self.told.append((member, request))
        if self.fails:
            raise StreamError("no answer")
        return Answered(messages.Done(), 0.0)


@pytest.fixture
def others() -> Others:
    return Others([NodeId(bytes([number]) * 16) for number in range(40)])


@pytest.fixture
def keeper(tmp_path: Path) -> MemoryKeeper:
    keeper = make_keeper(tmp_path)
    keeper.hints._who = {HINTER.node_id: Hinter(HINTER.public_key, b"root")}.get
    return keeper


def hinting(keeper: MemoryKeeper, others: Others, *, on: bool = True) -> Hinting:
    return Hinting(ME, keeper, cast("Caller", others), on=on)


def told(who: Identity, made: float = 0.0) -> bytes:
    at = time() + made
    return sign_hints(who, Said(who.node_id, int(at * 1000), (Hint("scan", BAD, 100, int(at + 600)),)))


@pytest.mark.usefixtures("at_once")
async def test_news_is_passed_on_to_some_others_once(
    keeper: MemoryKeeper, others: Others, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    part, sender, data = hinting(keeper, others), others.members[3], told(HINTER)
    nursery.start_soon(part.run)
    for _ in range(3):
        assert part.take(sender, TellHints(data, 1)) == messages.Done()
    await trio.sleep(10)
    members = [member for member, _ in others.told]
    assert len(set(members)) == len(members) == PASSED_TO and sender not in members
    assert {request for _, request in others.told} == {TellHints(data, 2)}
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("at_once")
async def test_what_went_far_enough_or_is_none_goes_no_further(
    keeper: MemoryKeeper, others: Others, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    part = hinting(keeper, others)
    nursery.start_soon(part.run)
    part.take(others.members[0], TellHints(told(HINTER), 3))
    part.take(others.members[1], TellHints(told(identity("nobody")), 0))
    await trio.sleep(10)
    assert others.told == [] and part._memory.hints.taken == 1
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("at_once")
async def test_what_this_node_says_is_told_to_some_and_anew_to_others(
    keeper: MemoryKeeper, others: Others, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    others.fails = True  # a member that cannot be told ends nothing
    part = hinting(keeper, others)
    nursery.start_soon(part.run)
    keeper.hints.own.tell("scan", BAD, 1.0, time() + 600, time())
    await trio.sleep(100)
    assert len(others.told) == TOLD and {request.hops for _, request in others.told} == {0}
    nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("at_once")
async def test_what_records_come_to_name_is_told_no_more(
    keeper: MemoryKeeper, others: Others, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    named = list[Named]()
    part = Hinting(ME, keeper, cast("Caller", others), on=True, named=lambda: named)
    nursery.start_soon(part.run)
    keeper.hints.own.tell("scan", BAD, 1.0, time() + 600, time())
    await trio.sleep(10)
    named.append(Named(HINTER.node_id, 1, [BAD]))
    await trio.sleep(module.SWEEP * module.LOOK)
    said = [decode_hints_untrusted(request.hints)[1].hints for _, request in others.told]
    assert [hint.source for hint in said[0]] == [BAD] and said[-1] == ()
    nursery.cancel_scope.cancel()


async def test_a_queue_that_is_full_is_counted(keeper: MemoryKeeper, others: Others) -> None:
    crowd = [identity(f"n{number}") for number in range(QUEUE // 2 + 3)]
    keeper.hints._who = lambda node: next(
        (Hinter(one.public_key, bytes([i % 4])) for i, one in enumerate(crowd) if one.node_id == node), None
    )
    part = hinting(keeper, others)
    for made in (0.0, 0.01):
        for one in crowd:
            part.take(one.node_id, TellHints(told(one, made), 0))
    assert part.dropped == {"hint-queue": 2 * len(crowd) - QUEUE}


@pytest.mark.usefixtures("at_once")
async def test_a_node_that_shares_no_hints_says_and_takes_none(
    keeper: MemoryKeeper, others: Others, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    part = hinting(keeper, others, on=False)
    nursery.start_soon(part.run)
    with capture_logs():
        assert isinstance(part.take(HINTER.node_id, TellHints(told(HINTER), 0)), messages.Refused)
    keeper.hints.own.tell("scan", BAD, 1.0, time() + 600, time())
    await trio.sleep(100)
    assert others.told == [] and keeper.hints.lowering(BAD, time()) == 0.0
    nursery.cancel_scope.cancel()
