# SPDX-License-Identifier: GPL-3.0-or-later
"""What signals do to a node that runs. The nodes are whole; the signals are what a receiver would yield."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import pytest
import trio
import trio.testing
from msgspec import structs
from structlog.testing import capture_logs

from phantommesh.client.http import NodeClient
from phantommesh.config.reading import load
from phantommesh.config.sections import Config, DnsSection, NodeSection
from phantommesh.config.writing import render
from phantommesh.errors import PhantomMeshError
from phantommesh.nursery import logs, process
from phantommesh.nursery import node as node_module
from phantommesh.nursery.api import server
from phantommesh.nursery.host.nft import NftError
from phantommesh.nursery.logs import redact
from phantommesh.nursery.node import Node
from phantommesh.nursery.process import _Process
from tests.support.loopback import make_authority, serving, until

Send = Callable[[int], None]


@pytest.fixture
def held() -> list[str | None]:
    """By which prefix the node's own interfaces were known, at each look at the host."""
    return []


@pytest.fixture(autouse=True)
def levels(monkeypatch: pytest.MonkeyPatch, held: list[str | None]) -> list[str]:
    """The levels that the log was set to."""
    told = list[str]()
    monkeypatch.setattr(logs, "configure", lambda level, style: told.append(level))

    async def good(*_: object, held: str | None = None, seen: list[str | None] = held) -> None:
        seen.append(held)
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(process, "check", good)  # it is another node's business: tests/cli/test_fixes.py
    return told


async def heeding(nursery: trio.Nursery, at: Path, node: Node) -> tuple[_Process, Send]:
    """A process around this node, and how to send it a signal."""
    it = _Process(at / "state", at / "pm.toml", None)
    it._node = node
    sender, receiver = trio.open_memory_channel[int](10)

    async def received() -> AsyncIterator[int]:
        async for number in receiver:
            yield number

    nursery.start_soon(it.heed, received())
    return it, sender.send_nowait


def edit(at: Path, **sections: dict[str, object]) -> None:
    """Set keys of a node's configuration, as an operator would."""
    config = load(at / "pm.toml")
    for section, keys in sections.items():
        config = structs.replace(config, **{section: structs.replace(getattr(config, section), **keys)})
    (at / "pm.toml").write_text(render(config))


async def test_a_reload_takes_over_what_it_can_and_names_the_rest(tmp_path: Path, levels: list[str]) -> None:
    make_authority(tmp_path / "a")
    before = (tmp_path / "a" / "pm.toml").read_text()
    async with serving(tmp_path / "a") as node, trio.open_nursery() as nursery:
        _, send = await heeding(nursery, tmp_path / "a", node)
        edit(
            tmp_path / "a",
            log={"level": "debug"},
            gossip={"seeds": ("192.0.2.7",)},
            scatter={"goal": "private", "batch": 16},
            dns={"mode": "off"},
        )
        send(signal.SIGHUP)
        await until(lambda: node.parts.config.log.level == "debug")
        assert [str(seed.host) for seed in node.parts.places.seeds()] == ["192.0.2.7"]
        assert node.parts.peers._scatter.goal == "private"
        assert node.parts.config.scatter.batch != 16
        await until(lambda: levels == ["debug"])
        faults = {fault.code: fault for fault in node.reporter.faults()}
        assert "scatter.batch" in faults["config-needs-restart"].text
        (tmp_path / "a" / "pm.toml").write_text(before)
        send(signal.SIGHUP)
        await until(lambda: not node.parts.settings.waiting)
        assert list(node.parts.places.seeds()) == []
        assert node.parts.config.log.level == "info"
        nursery.cancel_scope.cancel()


async def test_another_prefix_waits_for_a_restart_and_the_nodes_interfaces_stay_its_own(
    tmp_path: Path, held: list[str | None]
) -> None:
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as node, trio.open_nursery() as nursery:
        _, send = await heeding(nursery, tmp_path / "a", node)
        running = node.parts.config.wireguard.prefix
        edit(tmp_path / "a", log={"level": "debug"}, wireguard={"prefix": "vpn"})
        with capture_logs() as said:
            send(signal.SIGHUP)
            await until(lambda: node.parts.config.log.level == "debug")
        [waits] = [line for line in said if "has to be restarted" in line["event"]]
        assert "wireguard.prefix" in str(redact(None, "", dict(waits)))  # the log does not star it out
        assert held == [running] and running != "vpn"
        assert "wireguard.prefix" in node.parts.settings.waiting
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("bad", ["[proofs]\nkeep = -1", "[log", "[nonsense]\nkey = 1"])
async def test_a_bad_configuration_is_refused_whole_and_told_until_it_is_mended(
    tmp_path: Path, bad: str
) -> None:
    make_authority(tmp_path / "a")
    before = (tmp_path / "a" / "pm.toml").read_text()
    async with serving(tmp_path / "a") as node, trio.open_nursery() as nursery:
        _, send = await heeding(nursery, tmp_path / "a", node)
        running = node.parts.config
        edit(tmp_path / "a", gossip={"seeds": ("192.0.2.7",)})
        path = tmp_path / "a" / "pm.toml"
        path.write_text(f"{path.read_text()}\n{bad}\n")
        with capture_logs() as said:
            send(signal.SIGHUP)
            await until(lambda: node.parts.settings.refused is not None)
        assert node.parts.config == running and not list(node.parts.places.seeds())
        assert any(line["log_level"] == "error" and "not taken over" in line["event"] for line in said)
        [fault] = [f for f in node.reporter.faults() if f.code == "config-not-reloaded"]
        assert fault.fix and node.reporter.ready().ready
        (tmp_path / "a" / "pm.toml").write_text(before)
        send(signal.SIGHUP)
        await until(lambda: node.parts.settings.refused is None)
        assert not [f for f in node.reporter.faults() if f.code == "config-not-reloaded"]
        nursery.cancel_scope.cancel()


async def test_a_configuration_that_is_put_is_written_and_taken_over(
    tmp_path: Path, levels: list[str]
) -> None:
    make_authority(tmp_path / "a")
    file = tmp_path / "a" / "pm.toml"
    file.chmod(0o640)
    before = file.read_text()
    new = before.replace('level = "info"', 'level = "debug"').replace("batch = ", "batch = 1")
    assert new != before
    async with serving(tmp_path / "a") as node, trio.open_nursery() as nursery:
        it, _ = await heeding(nursery, tmp_path / "a", node)
        tried = await it.put(new, dry_run=True)
        assert tried.dry_run and "log.level" in tried.taken and tried.restart == ["scatter.batch"]
        assert file.read_text() == before and levels == []
        done = await it.put(new, dry_run=False)
        assert (done.taken, done.restart, done.dry_run) == (tried.taken, tried.restart, False)
        assert file.read_text() == new and file.stat().st_mode & 0o777 == 0o640
        assert node.parts.config.log.level == "debug" and levels == ["debug"]
        shown = await it.view()
        assert (shown.file, shown.config, shown.restart) == (str(file), new, ["scatter.batch"])
        # What does not hold changes neither.
        for wrong in ("[", new.replace('"debug"', '"loud"'), new + "\n[nonsense]\n"):
            with pytest.raises(PhantomMeshError):
                await it.put(wrong, dry_run=False)
        assert file.read_text() == new and node.parts.config.log.level == "debug"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("by_signal", [False, True])
async def test_a_configuration_whose_rules_the_kernel_refuses_is_taken_back(
    by_signal: bool, tmp_path: Path
) -> None:
    make_authority(tmp_path / "a")
    file = tmp_path / "a" / "pm.toml"
    before = file.read_text()
    new = before.replace('level = "info"', 'level = "debug"').replace('default = "allow"', 'default = "deny"')

    async def refuse() -> None:
        await trio.lowlevel.checkpoint()
        assert node.parts.config.acl.default == "deny"
        raise NftError("the kernel has no room for the rules", fix="use fewer")

    async with serving(tmp_path / "a") as node, trio.open_nursery() as nursery:
        it, send = await heeding(nursery, tmp_path / "a", node)
        node.parts.access.converge = refuse  # type: ignore[method-assign]
        if by_signal:
            file.write_text(new)
            send(signal.SIGHUP)
            await until(lambda: node.parts.settings.refused is not None)
            assert "no room" in str(node.parts.settings.refused) and file.read_text() == new
        else:
            with pytest.raises(NftError):
                await it.put(new, dry_run=False)
            assert file.read_text() == before and node.parts.settings.refused is None
        config = node.parts.config
        assert (config.log.level, config.acl.default) == ("info", "allow")
        nursery.cancel_scope.cancel()


async def test_other_signals_are_ignored_and_a_second_term_hurries(tmp_path: Path) -> None:
    make_authority(tmp_path / "a")
    async with serving(tmp_path / "a") as node, trio.open_nursery() as nursery:
        it, send = await heeding(nursery, tmp_path / "a", node)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
            send(number)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not it.leave.is_set()
        send(signal.SIGTERM)
        await it.leave.wait()
        assert not it.hurry.is_set()
        send(signal.SIGTERM)
        await it.hurry.wait()
        nursery.cancel_scope.cancel()


async def test_a_node_in_a_hurry_waits_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its goodbye would take for ever."""
    monkeypatch.setattr(node_module, "LEAVE", math.inf)
    make_authority(tmp_path / "a")
    hurry, said = trio.Event(), list[str]()

    async def leave() -> None:
        said.append("begun")
        hurry.set()
        await trio.sleep_forever()

    with trio.fail_after(60):
        async with serving(tmp_path / "a", hurry=hurry) as node:
            node.parts.gossip.leave = leave  # type: ignore[method-assign]
    assert said == ["begun"]


async def test_the_api_socket_is_made_again_where_its_file_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SOCKET_LOOK_S", 0.05)
    make_authority(tmp_path / "a")
    path = tmp_path / "a" / "api.sock"
    async with serving(tmp_path / "a"):
        for _ in range(2):
            path.unlink()
            await until(path.exists)
            status = await trio.to_thread.run_sync(NodeClient(path).status)
            assert status.node == "alpha"
        path.unlink()
        path.write_text("somebody's file")
        await trio.sleep(0.2)
        assert path.read_text() == "somebody's file"
        path.unlink()
        await until(path.exists)
        await trio.to_thread.run_sync(NodeClient(path).status)
    assert not path.exists()


def test_of_two_meshes_of_one_name_one_tells_this_host_of_names() -> None:
    def config(mesh: str, mode: Literal["auto", "off"]) -> Config:
        return Config(node=NodeSection(name="alpha", mesh=mesh), dns=DnsSection(mode=mode))

    mesh = f"m{os.getpid()}"
    with process._sole_speaker(config(mesh, "auto")):
        with (
            pytest.raises(PhantomMeshError, match=f"called {mesh}, too") as caught,
            process._sole_speaker(config(mesh, "auto")),
        ):
            pass
        assert 'dns.mode = "off"' in caught.value.fix
        with process._sole_speaker(config(mesh, "off")), process._sole_speaker(config(f"{mesh}b", "auto")):
            pass
    with process._sole_speaker(config(mesh, "auto")):
        pass
