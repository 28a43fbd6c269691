# SPDX-License-Identifier: GPL-3.0-or-later
"""A node follows its host's addresses and what others see of it; the other members here are a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from ipaddress import ip_address
from typing import cast

import pytest
import trio

from phantommesh.config.sections import Config, NatSection, NodeSection
from phantommesh.control import messages
from phantommesh.node.whereabouts import LONGEST, QUIET, SOON
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.members import finding as module
from phantommesh.nursery.members.calling import Answered, Caller
from phantommesh.nursery.members.finding import Finding
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.reachable import HostAddress, HostNetworks, Reach
from phantommesh.records.candidate import Kind
from phantommesh.trust.identity import NodeId

FIRST = HostAddress(ip_address("192.168.1.5"), 2, "eth0")
SECOND = HostAddress(ip_address("192.168.7.9"), 2, "eth0")
UPLINK = Reach(host=HostNetworks(uplinks=frozenset({2, 3})))
A, B = NodeId(b"a" * 16), NodeId(b"b" * 16)
PUBLIC = "203.0.113.7"


class Members:
    """Members that see this node at ``public``; those in ``deaf`` do not answer."""

    def __init__(self) -> None:
        self.there: list[NodeId] = []
        self.public, self.deaf = PUBLIC, set[NodeId]()
        self.asked: deque[tuple[NodeId, float]] = deque()
        self._of: NodeId = A

    def callable(self) -> list[NodeId]:
        return list(self.there)

    def name_of(self, member: NodeId) -> str:
        return member.hex()

    async def ask(self, member: NodeId, request: messages.Request, patience: float) -> Answered:
        await trio.lowlevel.checkpoint()
        self.asked.append((member, trio.current_time()))
        if member in self.deaf:
            raise StreamError("no answer")
        assert isinstance(request, messages.Look)
        return Answered(messages.Sighting(f"{self.public}:40000", 0, (f"{self.public}:40001",)), 0.0)


class Host:
    """A host with addresses, and a node on it."""

    def __init__(self, patch: pytest.MonkeyPatch, config: Config, *addresses: HostAddress) -> None:
        self.addresses: Sequence[HostAddress] | None = addresses
        self.reach = UPLINK
        self.reads, self.published, self.lived = 0, list[float](), list[list[str]]()
        self.members, self.slept, self.woken, self.rehomed = Members(), 0.0, 0, list[float]()
        self.overslept = list[float]()
        patch.setattr(module, "_clock", lambda: trio.current_time() + self.slept)
        self.finding = Finding(
            config,
            ("pm0",),
            cast("Caller", self.members),
            refresh=self._refresh,
            reach=lambda: self.reach,
            home=lambda own: self.lived.append(list(own)),
            authorities=set,
            publish=lambda: self.published.append(trio.current_time()),
            woken=self._wake,
            overslept=lambda: self.overslept.append(trio.current_time()),
            rehomed=self._rehome,
            read=self._read,
        )

    async def _read(self, names: object) -> list[HostAddress]:
        await trio.lowlevel.checkpoint()
        self.reads += 1
        if self.addresses is None:
            raise BackendError("no netlink", fix="mend it")
        return list(self.addresses)

    async def _refresh(self) -> None:
        await trio.lowlevel.checkpoint()

    async def _rehome(self) -> None:
        await trio.lowlevel.checkpoint()
        self.rehomed.append(trio.current_time())

    def _wake(self) -> None:
        self.woken += 1

    @property
    def seen(self) -> list[str]:
        return [one.host for one in self.finding.found.candidates if one.kind == Kind.SEEN]


def config(*endpoints: str, discover: bool = True) -> Config:
    return Config(NodeSection("a", "m", endpoints), nat=NatSection(discover=discover))


@pytest.fixture
async def host(monkeypatch: pytest.MonkeyPatch, autojump_clock: object) -> Host:
    return Host(monkeypatch, config(), FIRST)


async def running(host: Host, nursery: trio.Nursery) -> None:
    await host.finding.begin()
    nursery.start_soon(host.finding.run)
    await trio.sleep(30)
    host.published.clear()


async def test_the_first_record_has_the_hosts_addresses(host: Host, autojump_clock: object) -> None:
    await host.finding.begin()
    assert host.finding.found.endpoints == ("192.168.1.5:51800",)
    assert host.lived == [["192.168.1.5"]]


async def test_another_address_is_in_the_record_soon(host: Host, autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        host.addresses = [SECOND]
        began = trio.current_time()
        host.finding.moved()
        await trio.sleep(5)
        assert host.finding.found.endpoints == ("192.168.7.9:51800",)
        (when,) = host.published
        assert when - began <= LONGEST  # on the virtual clock
        nursery.cancel_scope.cancel()


async def test_a_change_that_changes_nothing_is_not_told(host: Host, autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        host.finding.moved()
        await trio.sleep(5)
        assert not host.published
        nursery.cancel_scope.cancel()


async def test_a_host_that_flaps_costs_bounded_readings_and_records(
    host: Host, autojump_clock: object
) -> None:
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        before = host.reads
        for turn in range(1200):
            host.addresses = [SECOND] if turn % 2 else [FIRST]
            host.finding.moved()
            await trio.sleep(0.1)
        assert host.reads - before <= 6 + 120 / 5 + 2
        assert len(host.published) <= 5 + 120 / 20 + 2
        await trio.sleep(30)
        assert host.finding.found.endpoints == ("192.168.7.9:51800",)
        nursery.cancel_scope.cancel()


async def test_what_two_members_see_is_a_candidate_and_is_asked_for_again_after_a_move(
    host: Host, autojump_clock: object
) -> None:
    host.members.there = [A, B]
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        assert host.seen == [PUBLIC]
        host.addresses, host.members.public = [SECOND], "203.0.113.99"
        host.members.asked.clear()
        moved = trio.current_time()
        host.finding.moved()
        await trio.sleep(10)
        assert host.seen == ["203.0.113.99"]
        assert host.members.asked[0][1] <= moved + LONGEST + SOON[0]
        nursery.cancel_scope.cancel()


async def test_a_first_link_has_its_member_asked(host: Host, autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        host.members.there = [A, B]
        host.finding.linked(A, None)
        await trio.sleep(1)
        assert {member for member, _ in host.members.asked} == {A, B}
        nursery.cancel_scope.cancel()


async def test_a_member_that_gives_no_answer_is_left_alone_for_a_while(
    host: Host, autojump_clock: object
) -> None:
    host.members.there, host.members.deaf = [A, B], {A}
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        await trio.sleep(200)
        asked = [member for member, _ in host.members.asked]
        assert asked.count(A) == 1
        assert asked.count(B) > 3
        nursery.cancel_scope.cancel()


async def test_after_a_sleep_all_is_looked_at_again(host: Host, autojump_clock: object) -> None:
    host.members.there = [A, B]
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        host.slept, host.members.public = 600.0, "203.0.113.99"
        await trio.sleep(3)
        assert host.woken == len(host.overslept) == 1
        assert len(host.rehomed) == 1
        assert host.seen == ["203.0.113.99"]
        host.slept += 30.0  # no epoch is over in that time
        await trio.sleep(3)
        assert (host.woken, len(host.overslept)) == (2, 1)
        nursery.cancel_scope.cancel()


async def test_peers_are_asked_at_once_after_a_move_and_not_before_the_start(
    host: Host, autojump_clock: object
) -> None:
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        assert not host.rehomed
        host.finding.moved()  # something that leaves this node where it was
        await trio.sleep(6)
        assert not host.rehomed
        host.addresses, moved = [SECOND], trio.current_time()
        host.finding.moved()
        await trio.sleep(6)
        assert len(host.rehomed) == 1
        assert host.rehomed[0] < host.published[0]  # before the record, which takes longer to spread
        assert host.rehomed[0] - moved < QUIET
        host.reach = Reach(
            host=HostNetworks(uplinks=frozenset({2}))
        )  # the address stays, the way out does not
        host.finding.moved()
        await trio.sleep(6)
        assert len(host.rehomed) == 2
        nursery.cancel_scope.cancel()


async def test_a_nat_that_changes_is_found_out_when_a_member_says_so(
    host: Host, autojump_clock: object
) -> None:
    host.members.there = [A, B]
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        host.members.public = "203.0.113.99"
        host.finding.hinted("203.0.113.99:40000")
        await trio.sleep(SOON[0] + LONGEST)
        assert host.seen == ["203.0.113.99"]
        assert len(host.rehomed) == 1
        host.finding.hinted("203.0.113.99:40000")
        host.finding.hinted("junk")
        asked = len(host.members.asked)
        await trio.sleep(SOON[0] + 0.1)
        assert len(host.rehomed) == 1 and len(host.members.asked) == asked
        nursery.cancel_scope.cancel()


async def test_a_host_without_an_address_is_a_fault_until_it_has_one(
    host: Host, autojump_clock: object
) -> None:
    host.addresses = ()
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        assert [fault.code for fault in host.finding.faults()] == ["address-missing"]
        host.addresses = [SECOND]
        host.finding.moved()
        await trio.sleep(6)
        assert not list(host.finding.faults())
        nursery.cancel_scope.cancel()


async def test_addresses_that_cannot_be_read_leave_what_was_known(host: Host, autojump_clock: object) -> None:
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        host.addresses = None
        for _ in range(3):
            host.finding.moved()
            await trio.sleep(6)
        assert host.finding.found.endpoints == ("192.168.1.5:51800",)
        host.addresses = [SECOND]
        host.finding.moved()
        await trio.sleep(6)
        assert host.finding.found.endpoints == ("192.168.7.9:51800",)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("given", [config("127.0.0.1"), config(discover=False)])
async def test_a_mesh_within_a_machine_and_one_that_is_told_not_to_find_nothing(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: object, given: Config
) -> None:
    host = Host(monkeypatch, given, FIRST)
    host.members.there = [A, B]
    async with trio.open_nursery() as nursery:
        await running(host, nursery)
        host.finding.moved()
        host.finding.linked(A, None)
        await trio.sleep(100)
        assert not host.reads and not host.members.asked and not host.published
        nursery.cancel_scope.cancel()
