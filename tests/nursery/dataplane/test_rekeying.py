# SPDX-License-Identifier: GPL-3.0-or-later
"""Replacing WireGuard keys: the order of the steps, what is on disk after each, and a crash at every one."""

from __future__ import annotations

import itertools
import json
import os
import random
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from time import time

import pytest
import trio
import trio.testing
from msgspec import structs

from phantommesh.config.reading import load
from phantommesh.config.sections import Config, WireguardSection
from phantommesh.nursery import due
from phantommesh.nursery.dataplane import rekeying
from phantommesh.nursery.dataplane.paths import PathDriver
from phantommesh.nursery.dataplane.rekeying import DRAIN, KeyReplacer
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members import own, working
from phantommesh.nursery.members.own import OwnRecord
from phantommesh.paths.fitting import Fitting
from phantommesh.paths.machine import Paths
from phantommesh.records.roster import Roster
from phantommesh.scatter.transactions import Snapshot
from phantommesh.state import directory
from phantommesh.state import start as nodestate
from phantommesh.state.directory import StateDir
from phantommesh.state.files import StateError
from phantommesh.state.start import load_node
from phantommesh.trust.revocations import Revocations
from phantommesh.wireguard.keys import SEQ_AHEAD
from tests.support.loopback import make_authority


class NoScatter:
    async def set_scores(
        self, wanted: Mapping[bytes, Sequence[float]], quickest: Mapping[bytes, int | None]
    ) -> None:
        raise AssertionError("there are no peers")

    def snapshot(self, node_id: bytes) -> Snapshot | None:
        return None


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Run:
    """One start of a node, without a network; ``others`` is what the mesh was told, run after run."""

    at: Path
    others: Roster
    change: Callable[[Config], Config] = lambda config: config
    crash_at: str | None = None
    steps: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.state = load_node(self.at / "state", time())
        self.config = self.change(load(self.at / "pm.toml"))
        self.keeper = RosterKeeper(self.state, lambda: None)
        self.own = OwnRecord(self.config, self.state, self.keeper, lambda *_: False)
        paths = Paths(random=random.Random(1), interval=0.1)
        self.driver = PathDriver(
            paths,
            NoScatter(),
            port=1,
            names=["pm"] * 7,
            address=lambda: IPv4Address("127.0.0.1"),
            fitting=Fitting(paths, random=random.Random(1), largest=1420),
        )
        self.replacer = KeyReplacer(self.config.wireguard, self.own, self.driver, self._adopt)

    async def start(self) -> None:
        await self.own.reserve()
        self.own.publish()
        self.tell()

    def step(self, name: str) -> None:
        self.steps.append(name)
        if name == self.crash_at:
            raise Crash

    def _adopt(self) -> None:
        self.step("written")
        self.own.publish()
        self.step("published")
        self.tell()
        self.step("told")

    def tell(self) -> None:
        """The others hear of our record, as it is."""
        held = self.keeper.roster.get(self.state.identity.node_id)
        assert held is not None
        self.others.add(held.signed, time())

    @property
    def told(self) -> tuple[int, tuple[bytes, ...], tuple[int, ...]]:
        held = self.others.get(self.state.identity.node_id)
        assert held is not None
        return held.record.seq, held.record.wg_keys, held.record.wg_ports


@pytest.fixture
def mesh(tmp_path: Path) -> Callable[..., Run]:
    state = make_authority(tmp_path)
    others = Roster(state.root, Revocations(state.root))

    def run(**kwargs: object) -> Run:
        return Run(tmp_path, others, **kwargs)  # type: ignore[arg-type]

    return run


async def test_a_key_is_on_disk_before_anybody_hears_of_it(mesh: Callable[..., Run]) -> None:
    run = mesh()
    await run.start()
    before, written = run.told, run.at / "state" / directory.WIREGUARD_KEYS

    def on_disk() -> tuple[bytes, ...]:
        return load_node(run.at / "state", time()).wg_keys.public

    def adopt() -> None:
        assert on_disk() == run.own.wg_keys.public != before[1]
        assert run.told == before
        run._adopt()

    run.replacer = KeyReplacer(run.config.wireguard, run.own, run.driver, adopt)
    assert await run.replacer.replace(3)
    seq, keys, ports = run.told
    assert seq == before[0] + 1
    assert [a == b for a, b in zip(keys, before[1], strict=True)] == [i != 3 for i in range(7)]
    assert [b - a for a, b in zip(before[2], ports, strict=True)] == [7 if i == 3 else 0 for i in range(7)]
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert run.driver.paths._leaving == 0


@pytest.mark.parametrize("crash_at", ["written", "published", "told"])
@pytest.mark.parametrize("saved", [False, True], ids=["roster-lost", "roster-saved"])
async def test_a_crash_after_any_step_leaves_a_usable_node_and_no_second_word(
    mesh: Callable[..., Run], crash_at: str, saved: bool
) -> None:
    """The node's keys, its record and the others' knowledge of it agree after the next start; and no number
    ever stands for two records, also when the configuration was changed meanwhile."""
    first = again = mesh()
    await first.start()
    for dimension in range(4):
        run = mesh(crash_at=crash_at)
        await run.start()
        with pytest.raises(Crash):
            await run.replacer.replace(dimension)
        if saved:
            await run.keeper.save()

        def move(config: Config, dimension: int = dimension) -> Config:
            endpoints = (f"192.0.2.{dimension + 1}:1",)
            return structs.replace(config, node=structs.replace(config.node, endpoints=endpoints))

        again = mesh(change=move)
        assert again.own.wg_keys.public == run.own.wg_keys.public != first.own.wg_keys.public
        await again.start()
        assert again.told[1] == again.own.wg_keys.public
        assert again.told[2] == again.own.wg_keys.ports(again.config.wireguard.base_port, 2)
        assert not again.others.equivocations and not again.keeper.roster.equivocations
    assert sum(a != b for a, b in zip(first.own.wg_keys.public, again.own.wg_keys.public, strict=True)) == 4


async def test_a_crash_while_the_file_is_written_leaves_the_old_key(
    mesh: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mesh()
    await run.start()
    before = run.told

    def crash(*_: object) -> None:
        raise Crash

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            if name == "fsync":
                patch.setattr(os, "fsync", crash)
            else:
                patch.setattr(Path, "replace", crash)
            with pytest.raises(Crash):
                await mesh().replacer.replace(0)
        again = mesh()
        await again.start()
        assert again.told == before and again.own.wg_keys.public == before[1]


async def test_a_full_disk_leaves_the_old_key_in_use(
    mesh: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mesh()
    await run.start()
    before = run.own.wg_keys

    def full(*_: object) -> None:
        raise StateError("no space")

    monkeypatch.setattr(StateDir, "write", full)
    with pytest.raises(StateError):
        await run.replacer.replace(0)
    assert run.own.wg_keys == before and run.steps == []
    assert run.driver.paths._leaving == 0  # the dimension is given back


async def test_record_numbers_are_reserved_with_the_keys(mesh: Callable[..., Run]) -> None:
    run = mesh()
    await run.start()
    assert await run.replacer.replace(0)
    file = json.loads((run.at / "state" / directory.WIREGUARD_KEYS).read_text())
    assert file["seq"] >= run.told[0] and file["seq"] <= run.told[0] + SEQ_AHEAD


async def test_what_cannot_be_drained_is_left_until_its_time_is_over(
    mesh: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    run = mesh()
    await run.start()
    monkeypatch.setattr(run.driver.paths, "drained", lambda dimension: False)
    now = [time()]
    monkeypatch.setattr(rekeying, "time", lambda: now[0])
    before, began = run.told, trio.current_time()
    assert not await run.replacer.replace(1)
    assert trio.current_time() - began == pytest.approx(DRAIN)
    assert run.told == before and run.driver.paths._leaving == 0
    now[0] += run.config.wireguard.key_seconds + 1
    assert await run.replacer.replace(1)
    assert run.told[1] != before[1]


async def test_keys_are_replaced_before_their_time_is_over(
    mesh: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Three days of virtual time, with a restart each half day: no key gets older than one."""
    offset = [0.0]

    def clock() -> float:
        return offset[0] + trio.current_time()

    for module in (rekeying, own, nodestate, working, due):
        if hasattr(module, "time"):
            monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)
    offset[0] = time()
    seen: list[tuple[bytes, ...]] = []
    for _ in range(6):
        run = mesh()
        await run.own.reserve()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.replacer.run)
            for _ in range(72):
                await trio.sleep(600)
                ages = [clock() - key.made for key in run.own.wg_keys.keys if key.made is not None]
                assert len(ages) == 7 and max(ages) <= 86_400
                if not seen or seen[-1] != run.own.wg_keys.public:
                    seen.append(run.own.wg_keys.public)
            nursery.cancel_scope.cancel()
    changes = [sum(a != b for a, b in zip(one, two, strict=True)) for one, two in itertools.pairwise(seen)]
    assert set(changes) == {1}
    assert 24 <= len(changes) <= 36  # one each three hours, or a little sooner


async def inline(call: Callable[..., object], *arguments: object) -> object:
    await trio.lowlevel.checkpoint()
    return call(*arguments)


async def test_a_port_that_somebody_has_is_passed_over(
    mesh: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = {51823 + 7, 51823 + 14}
    monkeypatch.setattr(rekeying, "_is_free", lambda number: number not in taken)
    for choices, slot in ((1, 0), (2, 0), (3, 0), (4, 3)):
        run = mesh()
        run.replacer._settings = WireguardSection(port_choices=choices)
        assert run.replacer._slot(3) == slot
