# SPDX-License-Identifier: GPL-3.0-or-later
"""OMNISCIENT and NEXUS in whole nodes: a wedged service is run again, health turns and returns, a node
drains."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from time import time

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from phantommesh.agents import nexus, omniscient
from phantommesh.cli.draining import told
from phantommesh.node.draining import LONGEST, Drained, DrainRefusedError
from phantommesh.nursery.dataplane import draining
from phantommesh.nursery.host import vitals
from phantommesh.nursery.node import Node
from phantommesh.state.directory import DRAIN
from tests.support.loopback import join, make_authority, make_invite, serving, until


def restarts(node: Node) -> dict[str, int]:
    return {name: pulse.restarts for name, pulse in node.parts.services.running.items() if pulse.restarts}


def findings(node: Node) -> set[str]:
    return {fault.subject for fault in node.reporter.faults() if fault.code == "agent-finding"}


async def test_a_service_that_turns_no_more_is_run_again_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_authority(tmp_path)
    async with serving(tmp_path) as node:
        parts = node.parts
        turns = 0

        async def hang() -> None:
            nonlocal turns
            turns += 1
            if turns == 1:
                await trio.sleep_forever()

        monkeypatch.setattr(parts.taking, "look", hang)
        parts.taking.kick()
        with capture_logs():
            await until(lambda: turns > 1)
        assert restarts(node) == {"routes": 1}
        took = [one for one in parts.council.decisions if one.verdict.accepted]
        assert [one.verdict.proposal.subject.name for one in took] == ["routes"]
        assert took[0].verdict.proposal.evidence[0].value > omniscient.GRACE


async def test_a_service_at_rest_is_left_alone(tmp_path: Path) -> None:
    make_authority(tmp_path)
    async with serving(tmp_path) as node:
        await trio.sleep(3 * omniscient.GRACE)
        assert restarts(node) == {}
        assert node.parts.council.seats["omniscient"].looks > 2
        assert not node.parts.council.decisions


async def test_health_turns_and_returns_and_the_record_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vitals, "DISK_LOOK", 0.1)
    monkeypatch.setattr(omniscient, "CALM", 1.0)
    monkeypatch.setattr(omniscient, "STANDS", 3.0)
    monkeypatch.setattr("phantommesh.nursery.node.REFRESH", 0.5)
    make_authority(tmp_path)
    async with serving(tmp_path) as node:
        parts = node.parts
        mine = parts.state.identity.node_id

        def said() -> int:
            entry = parts.keeper.roster.get(mine)
            return -1 if entry is None else entry.record.condition.health

        free = [10 * omniscient.DISK]
        monkeypatch.setattr(parts.vitals, "_free", lambda: free[0])
        assert said() == 0
        with capture_logs():
            free[0] = omniscient.DISK // 2
            await until(lambda: "disk-low" in findings(node) and said() == 1)
            assert node.reporter.status().degraded
            free[0] = 10 * omniscient.DISK
            await until(lambda: not findings(node) and said() == 0)


async def test_a_node_drains_says_so_to_all_and_still_does_after_a_restart(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        other = (await join(tmp_path / "b", make_invite(state), "beta")).node_id

        def heard() -> bool:
            entry = alpha.parts.keeper.roster.get(other)
            return entry is not None and entry.record.condition.draining

        with capture_logs():
            async with serving(tmp_path / "b") as beta:
                await until(lambda: beta.reporter.life() == "running")
                view = await beta.reporter.drain(600.0, force=False, dry_run=False)
                assert view.state == "draining" and view.by == "operator"
                await until(heard)
                await until(lambda: beta.reporter.drain_state().state == "drained")
                ready = beta.reporter.ready()
                assert not ready.ready and ready.state == "draining"
                with pytest.raises(DrainRefusedError, match="beta drains"):
                    await alpha.reporter.drain(600.0, force=False, dry_run=True)
            async with serving(tmp_path / "b") as beta:
                await until(lambda: beta.reporter.life() == "draining")
                assert heard()
                assert (await beta.reporter.undrain()).state == "working"
                await until(lambda: not heard())
                assert not (tmp_path / "b" / "state" / DRAIN).exists()
                await alpha.reporter.drain(600.0, force=False, dry_run=False)
                assert alpha.parts.drainer.on


async def test_the_operator_takes_back_what_nexus_began_and_nexus_leaves_it_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nexus, "EVERY", 0.05)
    monkeypatch.setattr(nexus, "UNREADY", 0.1)
    make_authority(tmp_path)
    async with serving(tmp_path) as node:
        parts, seat = node.parts, node.parts.council.seats["nexus"]
        await until(lambda: node.reporter.life() == "running")
        unready = property(lambda self: False, lambda self, able: None)
        monkeypatch.setattr(type(parts.drainer), "able", unready, raising=False)
        with capture_logs():
            await until(lambda: parts.drainer.by == "nexus")
            shown = node.reporter.drain_state()
            assert shown.by == "nexus" and "None" not in told(shown) and "by itself" in told(shown)
            assert (await node.reporter.undrain()).state == "working"
            looks = seat.looks
            await until(lambda: seat.looks > looks + 10)
        assert not parts.drainer.on and not parts.drainer.condition().draining


async def test_a_drain_ends_with_its_time_and_one_of_two_that_begin_at_once_gives_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "LOOK", 0.05)
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as alpha:
        await join(tmp_path / "b", make_invite(state), "beta")
        with capture_logs():
            async with serving(tmp_path / "b") as beta:
                first, second = sorted((alpha, beta), key=lambda node: node.parts.state.identity.node_id)
                await until(lambda: len(alpha.parts.peers.entries) == 1 == len(beta.parts.peers.entries))
                async with trio.open_nursery() as nursery:
                    for node in (first, second):
                        nursery.start_soon(partial(node.reporter.drain, 600.0, force=False, dry_run=False))
                await until(lambda: not second.parts.drainer.on)
                assert "same moment" in second.reporter.drain_state().ended
                assert first.parts.drainer.on
                await first.reporter.drain(0.2, force=False, dry_run=False)
                await until(lambda: not first.parts.drainer.on)


async def test_a_drain_kept_by_a_clock_that_was_ahead_ends_within_a_day(tmp_path: Path) -> None:
    state, now = make_authority(tmp_path), time()
    kept = Drained(now + 5 * LONGEST, now + 5 * LONGEST + 3600.0)
    state.state.write(DRAIN, msgspec.json.encode(kept))
    async with serving(tmp_path) as node:
        drainer = node.parts.drainer
        assert drainer.on and drainer.condition().until <= time() + LONGEST

        def ends() -> list[float]:
            written = msgspec.json.decode((state.state.path / DRAIN).read_bytes(), type=Drained)
            return [one.until for one in (drainer.machine.drained, written) if one is not None]

        with capture_logs():
            await until(lambda: max(ends()) <= time() + LONGEST)
        assert len(ends()) == 2
