# SPDX-License-Identifier: GPL-3.0-or-later
"""Bans in the kernel, by a table that tells and takes what the test says."""

from __future__ import annotations

import errno
import re
from collections.abc import Collection
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
import trio

from phantommesh.acl.banrules import ARRIVED, FAR, HELD, MOST_SOURCES, MOST_TIMEOUT, NEAR, ODD, SHED, Ports
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
        self.hated: list[str] = []  # a script with one of these is refused whole
        self.senders: dict[bytes, tuple[int, int]] = {}
        self.totals = dict.fromkeys((ARRIVED, ODD, SHED), 0)
        self.number = 0
        self.held: dict[str, dict[bytes, tuple[int, int]]] = {}

    async def install(self, text: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        if any(word in text for word in self.hated):
            raise NftError("value too large")
        if "add table" in text:
            self.there = True
            self.held = {}
        elif not self.there:
            raise NftError("no table", code=errno.ENOENT)
        self.number += 1
        self.scripts.append(text)
        for command, _, _, name, elements in re.findall(
            r"^(flush set|add element) (\S+) (\S+) (\S+)(.*)$", text, re.M
        ):
            if command == "flush set":
                self.held[name] = {}
            elif name in HELD:
                for element in elements.strip(" {}").split(", "):
                    packed = ip_network(element.partition(" ")[0]).network_address.packed
                    self.held.setdefault(name, {})[packed] = (0, 0)

    async def fingerprint(self, *sets: str) -> Fingerprint | None:
        await trio.lowlevel.checkpoint()
        return Fingerprint(1, frozenset({self.number}), ()) if self.there else None

    async def counters_of(self, *names: str) -> dict[str, dict[bytes, tuple[int, int]]]:
        await trio.lowlevel.checkpoint()
        if not self.there:
            raise NftError("no table", code=errno.ENOENT)
        found: dict[str, dict[bytes, tuple[int, int]]] = {name: self.held.get(name, {}) for name in names}
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


@pytest.mark.parametrize("installed", [True, False])
async def test_a_ban_that_the_kernel_refuses_is_none(
    installed: bool, banning: Banning, table: Table, nursery: trio.Nursery
) -> None:
    told: list[str] = []
    banning.changed = lambda ban, gone, why: told.append(ban.network)
    if installed:
        await banning.begin()
        await banning.ban(ip_network("192.0.2.1/32"), "own", 600.0, "scan", kinds=["scan"])
    table.failure = None if installed else NftError("refused")
    table.hated = ["10.0.0.7"]
    for origin in ("own", "operator"):
        with pytest.raises(NftError):
            await banning.ban(ip_network(BLOCK), origin, 600.0, "scan", kinds=["scan"])
    assert banning.bans.get(BLOCK) is None and banning.bans.times(BLOCK, 1e9) == 0
    assert told == ["192.0.2.1/32"] * installed and not list(banning.faults())
    # The others go on.
    table.failure = None
    await banning.ban(ip_network("192.0.2.2/32"), "own", 600.0, "scan", kinds=["scan"])
    await banning._refill()
    assert "192.0.2.2" in table.scripts[-1] and ("192.0.2.1 " in table.scripts[-1]) == installed
    await banning.save()
    assert BLOCK not in banning._state.read("bans.json").decode()


async def test_one_ban_that_nft_refuses_keeps_no_other_out(
    banning: Banning, table: Table, around: Around, tmp_path: Path
) -> None:
    await banning.begin()
    for i in range(20):
        await banning.ban(ip_network(f"192.0.2.{i}/32"), "own", 600.0, "scan", kinds=["scan"])
    await banning.save()
    again = Table()
    again.hated = ["192.0.2.13 "]
    next_run = Banning(around, StateDir(tmp_path), rules=again, wall=lambda: 1e9)
    await next_run.begin()
    assert next_run.problem is None
    held = [i for i in range(20) if any(f"192.0.2.{i} timeout" in script for script in again.scripts)]
    assert held == [i for i in range(20) if i != 13]
    (fault,) = next_run.faults()
    assert fault.code == "bans-not-held" and "192.0.2.13/32" in str(fault)
    before = len(again.scripts)
    await next_run.ban(ip_network("192.0.2.99/32"), "own", 600.0, "scan", kinds=["scan"])
    assert len(again.scripts) == before + 1  # it is not tried each time
    await next_run.unban(ip_network("192.0.2.13/32"))
    assert not list(next_run.faults())


async def test_a_ban_longer_than_the_kernels_timeouts_is_put_in_again(banning: Banning, table: Table) -> None:
    await banning.begin()
    await banning.ban(ip_network(BLOCK), "operator", 10 * 365 * 86_400.0, "asked")
    assert f"10.0.0.7/32 timeout {MOST_TIMEOUT}s" in table.scripts[-1]
    before = len(table.scripts)
    await banning._check(trio.current_time())
    assert len(table.scripts) == before
    banning._filled -= MOST_TIMEOUT / 2
    await banning._check(trio.current_time())
    assert f"10.0.0.7/32 timeout {MOST_TIMEOUT}s" in table.scripts[-1] and len(table.scripts) == before + 1


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


async def test_a_set_that_somebody_emptied_is_filled_again(
    banning: Banning, table: Table, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECK", 0.5)
    await banning.begin()
    nursery.start_soon(banning.run)
    await banning.ban(ip_network(BLOCK), "own", 600.0, "scan", kinds=["scan"])
    await trio.sleep(2 * module.CHECK)
    before = len(table.scripts)
    table.held["own4"] = {}
    await trio.sleep(module.CHECK + 1.0)
    assert table.held["own4"] and len(table.scripts) == before + 1
    await trio.sleep(2 * module.CHECK)
    assert len(table.scripts) == before + 1


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
    await trio.sleep(module.IDLE_LOOK)
    assert banning.rates[ARRIVED] == pytest.approx(1000 / module.IDLE_LOOK, rel=0.2)
    assert banning.dropped["flood-shed"] == 400
    assert set(FAR) == {4, 6}
