# SPDX-License-Identifier: GPL-3.0-or-later
"""Bans in the kernel, by a table that tells and takes what the test says."""

from __future__ import annotations

import errno
from collections.abc import Collection
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import trio

from phantommesh.acl.banrules import ARRIVED, FAR, MOST_SOURCES, NEAR, ODD, SHED, Ports
from phantommesh.acl.bans import BanError, Shield
from phantommesh.acl.threats import ENOUGH, judge
from phantommesh.endpoint import Address
from phantommesh.nursery.dataplane import banning as module
from phantommesh.nursery.dataplane.banning import BULK, Banning
from phantommesh.nursery.host.neighbours import Neighbours
from phantommesh.nursery.host.nft import Fingerprint, NftError
from phantommesh.routable import Network
from phantommesh.state.directory import StateDir

HOST, BLOCK, MAC, OTHER = "10.0.0.7", "10.0.0.7/32", b"\2\0\0\0\0\7", b"\2\0\0\0\0\x08"
CONTROL, WIREGUARD = 51800, (51820, 51821, 51822, 51823)


class Table:
    """What the kernel holds."""

    def __init__(self) -> None:
        self.scripts: list[str] = []
        self.there = False
        self.failure: NftError | None = None
        self.senders: dict[bytes, tuple[int, int]] = {}
        self.totals = dict.fromkeys((ARRIVED, ODD, SHED), 0)
        self.number = 0

    async def install(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        if "add table" in text:
            self.there = True
        elif not self.there:
            raise NftError("no table", code=errno.ENOENT)
        self.number += 1
        self.scripts.append(text)

    async def fingerprint(self, *sets: str) -> Fingerprint | None:
        await trio.lowlevel.checkpoint()
        return Fingerprint(1, frozenset({self.number}), ()) if self.there else None

    async def counters_of(self, *names: str) -> dict[str, dict[bytes, tuple[int, int]]]:
        await trio.lowlevel.checkpoint()
        if not self.there:
            raise NftError("no table", code=errno.ENOENT)
        found: dict[str, dict[bytes, tuple[int, int]]] = {name: {} for name in names}
        if NEAR in names:
            found[NEAR] = dict(self.senders)
        if ARRIVED in names:
            for name, count in self.totals.items():
                found[name] = {b"\0\0\0\0": (count, 0)}
        return found

    def sends(self, host: str, port: int, mac: bytes = MAC, count: int = 1) -> None:
        """A neighbour sends so many more."""
        key = (2).to_bytes(4, "little") + mac + bytes(2) + ip_address(host).packed
        key += port.to_bytes(2, "big") + bytes(2)
        self.totals[ARRIVED if port == CONTROL else ODD] += count
        self.senders[key] = self.senders.get(key, (0, 0))[0] + count, 0


class Around:
    """The surroundings."""

    def __init__(self) -> None:
        self.members: list[Network] = []
        self.near: tuple[Network, ...] = (ip_network("10.0.0.0/24"),)

    async def refresh(self) -> None:
        await trio.lowlevel.checkpoint()

    def ports(self) -> Ports:
        return Ports("pm", ("pm0",), CONTROL, WIREGUARD, self.near)

    def known(self) -> Collection[Network]:
        return self.members

    def shield(self) -> Shield:
        return Shield([(ip_network("10.0.0.1/32"), "this host")], [(n, "a member") for n in self.members])


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def around() -> Around:
    return Around()


@pytest.fixture
def neighbours(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, str], bytes]:
    macs = {(2, HOST): MAC}
    monkeypatch.setattr(module, "read_neighbours", lambda: Neighbours(macs))
    monkeypatch.setattr(module, "look_for", lambda wanted: None)
    return macs


@pytest.fixture
async def banning(table: Table, around: Around, tmp_path: Path, autojump_clock: object) -> Banning:
    return Banning(around, StateDir(tmp_path), rules=table, wall=lambda: 1e9 + trio.current_time())


def score(banning: Banning) -> float:
    seen = banning.offences.bound(trio.current_time())
    return max((judge(one).score for one in seen if one.block == BLOCK), default=0.0)


async def test_a_scan_by_a_neighbour_itself_is_proved(
    banning: Banning, table: Table, neighbours: dict[tuple[int, str], bytes], nursery: trio.Nursery
) -> None:
    await banning.begin()
    nursery.start_soon(banning.run)
    for port in WIREGUARD:
        table.sends(HOST, port)
    await trio.sleep(0.3)
    assert score(banning) >= 0.9 * (len(WIREGUARD) / ENOUGH["scan"])


@pytest.mark.parametrize("how", ["another MAC", "unknown", "of two addresses", "two MACs", "no room"])
async def test_a_scan_in_a_neighbours_name_proves_nothing(
    how: str, banning: Banning, table: Table, neighbours: dict[tuple[int, str], bytes], nursery: trio.Nursery
) -> None:
    await banning.begin()
    nursery.start_soon(banning.run)
    if how == "unknown":
        neighbours.clear()
    if how == "of two addresses":
        neighbours[2, "10.0.0.254"] = MAC
    for i in range(MOST_SOURCES if how == "no room" else 0):
        table.sends(f"10.0.{1 + i // 250}.{i % 250}", CONTROL, OTHER)
    for port in WIREGUARD:
        table.sends(HOST, port, OTHER if how == "another MAC" else MAC)
        if how == "two MACs":
            table.sends(HOST, port, OTHER)
    table.sends(HOST, CONTROL, OTHER if how == "another MAC" else MAC, 10 * BULK)
    await trio.sleep(0.3)
    assert score(banning) == 0.0 and list(banning.offences.loose(trio.current_time()))


def bound(banning: Banning) -> float:
    seen = banning.offences.bound(trio.current_time())
    return sum(count for one in seen if one.block == BLOCK for _, count in one.bound)


async def test_what_came_unseen_is_not_proved_by_what_was_seen(
    banning: Banning, table: Table, around: Around, neighbours: dict[tuple[int, str], bytes],
    nursery: trio.Nursery,
) -> None:  # fmt: skip
    """A forger in a member's name: while its address is known the kernel does not see him."""
    await banning.begin()
    nursery.start_soon(banning.run)

    def forged() -> None:
        for _ in range(300):
            banning.blame("malformed", Address(HOST, 5000), False)

    await trio.sleep(0.3)
    for _ in range(4):
        forged()
        table.sends(HOST, CONTROL)  # the neighbour itself
        await trio.sleep(module.LOOK)
    assert 0.0 < bound(banning) <= 4.0
    before = bound(banning)
    around.members.append(ip_network(BLOCK))
    await trio.sleep(module.CHECK + 1.0)
    forged()
    table.sends(HOST, CONTROL, count=500)  # what the set still had
    await trio.sleep(0.3)
    assert bound(banning) < before
    around.members.clear()
    install = table.install

    async def late(text: str) -> None:
        forged()
        await install(text)

    table.install = late  # type: ignore[method-assign]
    banning._checked = float("-inf")  # the address is unknown from the next look on
    await trio.sleep(module.LOOK)
    assert "known4 {" not in table.scripts[-1]
    table.sends(HOST, CONTROL, count=50)
    await trio.sleep(module.LOOK)
    assert bound(banning) < before
    banning._installed = None  # the sets are made anew
    table.senders.clear()
    table.totals = dict.fromkeys(table.totals, 0)
    table.sends(HOST, CONTROL, count=50)
    await trio.sleep(2 * module.LOOK)
    assert "add table" in table.scripts[-1] and bound(banning) < before


async def test_a_neighbours_flood_and_scan_are_enough_after_two_looks(
    banning: Banning, table: Table, neighbours: dict[tuple[int, str], bytes], nursery: trio.Nursery
) -> None:
    """At 1,500 datagrams a second; a look that is late has more before it."""
    await banning.begin()
    nursery.start_soon(banning.run)
    await trio.sleep(0.1)
    for _ in range(2):
        table.sends(HOST, CONTROL, count=375)
        for port in WIREGUARD[:2]:
            table.sends(HOST, port, count=9)
        await trio.sleep(module.LOOK)
    assert score(banning) >= 1.0


async def test_a_ban_is_in_the_kernel_and_on_disk_and_in_the_next_runs_first_table(
    banning: Banning, table: Table, around: Around, tmp_path: Path, nursery: trio.Nursery
) -> None:
    await banning.begin()
    nursery.start_soon(banning.run)
    await banning.ban(ip_network(BLOCK), "own", 600.0, "scan", kinds=["scan"])
    assert "own4 { 10.0.0.7 timeout 600s }" in table.scripts[-1]
    await banning.save()
    again = Table()
    next_run = Banning(around, StateDir(tmp_path), rules=again, wall=lambda: 1e9)
    await next_run.begin()
    assert "own4 { 10.0.0.7 timeout" in again.scripts[0]
    await banning.unban(ip_network(BLOCK))
    assert "10.0.0.7" not in table.scripts[-1] and not len(banning.bans)


async def test_a_table_that_is_flushed_is_put_back(
    banning: Banning, table: Table, nursery: trio.Nursery
) -> None:
    await banning.begin()
    nursery.start_soon(banning.run)
    await banning.ban(ip_network(BLOCK), "own", 600.0, "scan", kinds=["scan"])
    for _ in range(3):
        table.there = False
        await trio.sleep(0.5)
        assert table.there and "10.0.0.7" in table.scripts[-1]
    assert list(banning.contest.lasting(trio.current_time()))
    table.number += 1  # somebody edits it
    before = len(table.scripts)
    await trio.sleep(module.CHECK + 1.0)
    assert "add table" in table.scripts[-1] and len(table.scripts) > before


async def test_a_kernel_that_refuses_is_a_fault_and_no_end(
    banning: Banning, table: Table, nursery: trio.Nursery
) -> None:
    table.failure = NftError("refused", fix="load it")
    await banning.begin()
    nursery.start_soon(banning.run)
    assert [fault.code for fault in banning.faults()] == ["bans-not-held"]
    table.failure = None
    await trio.sleep(5.0)
    assert not list(banning.faults()) and table.there


async def test_a_member_that_appears_lifts_its_ban(
    banning: Banning, table: Table, around: Around, nursery: trio.Nursery
) -> None:
    gone: list[str] = []
    banning.changed = lambda ban, lifted, why: gone.append(why) if lifted else None
    await banning.begin()
    nursery.start_soon(banning.run)
    await banning.ban(ip_network(BLOCK), "own", 600.0, "scan", kinds=["scan"])
    around.members.append(ip_network(BLOCK))
    await trio.sleep(module.CHECK + 1.0)
    assert not len(banning.bans) and gone == ["it is a member"]
    assert any("known4 { 10.0.0.7/32 }" in script for script in table.scripts)
    with pytest.raises(BanError, match="a member"):
        await banning.ban(ip_network(BLOCK), "own", 600.0, "scan", kinds=["scan"])
    assert banning.shields("10.0.0.7") and banning.shields("10.0.0.1") and not banning.shields("10.0.0.9")


async def test_shedding_is_a_rule_that_comes_and_goes_and_outlives_a_flush(
    banning: Banning, table: Table, nursery: trio.Nursery
) -> None:
    await banning.begin()
    nursery.start_soon(banning.run)
    await banning.limit(200.0)
    assert "limit rate over 200/second" in table.scripts[-1]
    table.there = False
    await trio.sleep(0.5)
    assert "limit rate over 200/second" in table.scripts[-1]
    await banning.limit(None)
    assert "limit rate over 200/second" not in table.scripts[-1]


async def test_rates_are_those_of_the_last_look(
    banning: Banning, table: Table, nursery: trio.Nursery
) -> None:
    await banning.begin()
    nursery.start_soon(banning.run)
    await trio.sleep(1.1)
    table.totals[ARRIVED], table.totals[SHED] = 1000, 400
    await trio.sleep(module.LOOK)
    assert banning.rates[ARRIVED] == pytest.approx(1000 / module.LOOK, rel=0.2)
    assert banning.dropped["flood-shed"] == 400
    assert set(FAR) == {4, 6}
