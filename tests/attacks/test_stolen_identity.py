# SPDX-License-Identifier: GPL-3.0-or-later
"""A thief has copied a member's state directory, and runs a node of his own on it while the member runs on.

Whole nodes on the loopback device, over a model of WireGuard. Each end's next handshake is due in 90 s; here
it is asked for, as `phantommesh rotate` does.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio

from phantommesh.config.reading import load
from phantommesh.config.writing import render
from phantommesh.errors import PhantomMeshError
from phantommesh.link import copies
from phantommesh.link.psk import PskPhase
from phantommesh.nursery.node import Node
from phantommesh.state.making import Summary
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.identity import NodeId
from tests.support.loopback import free_port, join, make_authority, make_invite, serving, until


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """News of a start takes a second here, not a minute."""
    monkeypatch.setattr(copies, "GRACE", 1.0)


def steal(at: Path, to: Path) -> None:
    """Copy a member's state directory to a machine with an address of its own."""
    shutil.copytree(at / "state", to / "state")
    config, port = load(at / "pm.toml"), free_port()
    text = render(config).replace(str(config.control.port), str(port))
    (to / "pm.toml").write_text(text)


def linked(node: Node, *others: NodeId) -> bool:
    now = trio.current_time()
    known = {entry.member.node_id for entry in node.parts.peers.entries}
    return all(o in known and node.parts.links.state(o, now).phase is PskPhase.FRESH for o in others)


def keyed(one: Node, other: Node) -> bool:
    """Whether the two have agreed on the same preshared keys."""
    ids = one.parts.state.identity.node_id, other.parts.state.identity.node_id
    return linked(one, ids[1]) and one.parts.links.psks(ids[1]) == other.parts.links.psks(ids[0])


def revokes(node: Node, node_id: NodeId) -> bool:
    return node_id in node.parts.state.revocations


def rotate(node: Node) -> None:
    """Have all that is due in 90 s happen now."""
    node.parts.links.rotate(None, trio.current_time())
    node.parts.driver.wake()


def told(node: Node, words: str) -> bool:
    """Whether `status`, an event of its own and the metrics say so."""
    node.recorder.measure()
    kind = "health.copied" if "this node" in words else "peer.copied"
    told = [event for event in node.parts.events._events.values() if event.type == kind]
    return (
        any(words in reason for reason in node.reporter.degraded())
        and any(words in str(event.data["text"]) and event.data["severity"] == "critical" for event in told)
        and b"phantommesh_identity_suspects 1.0" in node.parts.metrics.render("")[0]
    )


@dataclass
class Running:
    """A node in a task of its own, which may end before those that were started after it."""

    node: Node
    stop: trio.Event = field(default_factory=trio.Event)
    over: trio.Event = field(default_factory=trio.Event)

    async def end(self) -> None:
        self.stop.set()
        await self.over.wait()


def silent(node: Node) -> None:
    """A thief does not run our program as it is: his says nothing of its run, and gives way to nobody."""
    node.parts.runs.run = trio.sleep_forever  # type: ignore[method-assign]


async def start(
    nursery: trio.Nursery, at: Path, change: Callable[[Node], None] = lambda node: None
) -> Running:
    async def hold(task_status: trio.TaskStatus[Running]) -> None:
        async with serving(at, change) as node:
            running = Running(node)
            task_status.started(running)
            await running.stop.wait()
        running.over.set()

    running: Running = await nursery.start(hold)
    return running


@asynccontextmanager
async def mesh(tmp_path: Path) -> AsyncIterator[tuple[trio.Nursery, Running, Running, Running]]:
    """Authority alpha, the victim beta and gamma, all linked."""
    state = make_authority(tmp_path / "a")
    async with trio.open_nursery() as nursery:
        a = await start(nursery, tmp_path / "a")
        await join(tmp_path / "b", make_invite(state), "beta")
        await join(tmp_path / "c", make_invite(state), "gamma")
        all_three = a, await start(nursery, tmp_path / "b"), await start(nursery, tmp_path / "c")
        ids = [running.node.parts.state.identity.node_id for running in all_three]
        for running, me in zip(all_three, ids, strict=True):
            await until(partial(linked, running.node, *(i for i in ids if i != me)))
        yield nursery, *all_three
        nursery.cancel_scope.cancel()


def confirm(node: Node) -> None:
    """The model makes no WireGuard handshakes: the first one under new keys ends what is left of the old."""
    for peer in node.parts.links._peers.values():
        peer.psk._previous = None


async def take_turns(victim: Node, thief: Node, peers: list[Node], seen: Callable[[], bool]) -> None:
    """Both go on as if nothing had happened."""
    with trio.fail_after(60):
        while not seen():
            for node in (thief, victim):
                for peer in peers:
                    confirm(peer)
                rotate(node)
                await trio.sleep(0.7)


def accused(node: Node) -> list[str]:
    node.recorder.measure()
    return [reason for reason in node.reporter.degraded() if "elsewhere" in reason]


async def test_a_copy_of_a_node_is_noticed_and_a_new_identity_shuts_it_out(tmp_path: Path) -> None:
    async with mesh(tmp_path) as (nursery, alpha, beta, gamma):
        a, b, c = alpha.node, beta.node, gamma.node
        old, before = b.parts.state.identity.node_id, b.parts.own.member
        steal(tmp_path / "b", tmp_path / "t")
        thief = (await start(nursery, tmp_path / "t", silent)).node
        await until(lambda: linked(thief, a.parts.state.identity.node_id))  # he is in, by NO_CHAIN
        await take_turns(
            b,
            thief,
            [a, c],
            lambda: (
                told(a, "beta came back") and told(c, "beta came back") and told(b, "this node's identity")
            ),
        )
        made = await until_new(b)
        assert (made.name, made.ip4) == ("beta", before.ip4)
        for node in (a, c):
            await until(partial(revokes, node, old))
            assert old not in {entry.member.node_id for entry in node.parts.peers.entries}
            assert not accused(node)
        await beta.end()
        anew = (await start(nursery, tmp_path / "b")).node
        assert anew.parts.state.identity.node_id == made.node_id and anew.parts.own.member.name == "beta"
        assert not set(anew.parts.own.wg_keys.public) & set(b.parts.own.wg_keys.public)
        await until(lambda: linked(anew, a.parts.state.identity.node_id, c.parts.state.identity.node_id))
        for node in (a, c):
            await until(partial(linked, node, made.node_id))
        assert not [reason for node in (a, anew, c) for reason in accused(node)]
        # The copy of the old identity is worth nothing any more, and cannot be made into a new one.
        with pytest.raises(PhantomMeshError):
            await thief.parts.succession.begin()


async def until_new(victim: Node) -> Summary:
    """`phantommesh identity new`: a link with the authority is needed, and the thief may have it just now."""
    with trio.fail_after(60):
        while True:
            try:
                return await victim.parts.succession.begin()
            except PhantomMeshError:
                rotate(victim)
                await trio.sleep(0.5)


@pytest.mark.parametrize("crash", [False, True])
async def test_a_restart_is_no_theft(tmp_path: Path, crash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies, "GRACE", 6.0)  # on a busy machine the news of a start may take a while
    async with mesh(tmp_path) as (nursery, alpha, beta, gamma):
        others = [running.node for running in (alpha, beta, gamma)]
        me = (await join(tmp_path / "d", make_invite(alpha.node.parts.state), "delta")).node_id
        for _ in range(3):
            delta = await start(nursery, tmp_path / "d")
            for node in others:
                await until(partial(linked, node, me))
                await until(partial(linked, delta.node, node.parts.state.identity.node_id))
            if crash:  # no goodbye
                delta.node.parts.gossip.leave = trio.lowlevel.checkpoint  # type: ignore[method-assign]
            await delta.end()
        delta = await start(nursery, tmp_path / "d")
        with trio.move_on_after(copies.GRACE + 1.0):
            while True:
                assert not [reason for node in (*others, delta.node) for reason in accused(node)]
                await trio.sleep(0.1)


async def test_a_thief_that_was_first_leaves_the_owner_a_clear_word(tmp_path: Path) -> None:
    """Whoever holds the identity can have it replaced, once. The other is told that it was revoked."""
    async with mesh(tmp_path) as (nursery, alpha, beta, _):
        steal(tmp_path / "b", tmp_path / "t")
        thief, b = (await start(nursery, tmp_path / "t", silent)).node, beta.node
        await until(lambda: linked(thief, alpha.node.parts.state.identity.node_id))
        await until_new(thief)
        await until(lambda: b.parts.keeper.revoked is not None)
        assert any("was revoked" in reason for reason in b.reporter.degraded())
        with pytest.raises(TrustError, match="revoked") as raised:
            await b.parts.succession.begin()
        assert "new invite" in raised.value.fix


async def test_a_copy_started_beside_its_original_is_told_everywhere_and_the_original_steps_aside(
    tmp_path: Path,
) -> None:
    """An operator's copy of a disk runs our program as it is: no thief's tricks, no word of his own."""
    async with mesh(tmp_path) as (nursery, alpha, beta, gamma):
        a, b, c = alpha.node, beta.node, gamma.node
        steal(tmp_path / "b", tmp_path / "t")
        copy = await start(nursery, tmp_path / "t")
        await until(lambda: b.parts.runs.aside.is_set())
        (fault,) = b.reporter.faults()  # and none of its peers', which it does not ask any more
        assert fault.code == "copy-running" and fault.severity == "critical"
        assert b.reporter.life() == "aside"
        assert not b.reporter.ready().ready
        for node in (a, c):
            await until(lambda: told(node, "beta ran twice at one time"))  # noqa: B023
        await until(lambda: told(copy.node, "a second copy of this node"))
        for node in (a, c):
            await until(partial(keyed, copy.node, node))
        before = b.parts.gossip.membership.incarnation
        assert not copy.node.parts.runs.aside.is_set()
        await copy.end()
        with trio.fail_after(60):
            await b.parts.runs.over.wait()  # then the process starts it again
        assert b.parts.gossip.membership.incarnation == before  # it said no goodbye in the other's name


async def test_a_restored_state_whose_number_went_back_takes_a_later_one_by_itself(tmp_path: Path) -> None:
    async with mesh(tmp_path) as (nursery, alpha, beta, gamma):
        steal(tmp_path / "b", tmp_path / "t")
        before = beta.node.parts.runs.runs.run
        await until(lambda: beta.node.parts.runs.runs.settled)
        await beta.end()
        late = partial(_behind, by=1000)
        restored = (await start(nursery, tmp_path / "t", late)).node
        await until(lambda: restored.parts.runs.runs.run > before)
        for node in (alpha.node, gamma.node):
            await until(partial(linked, restored, node.parts.state.identity.node_id))
        await trio.sleep(2.5)
        assert not restored.parts.runs.aside.is_set()
        assert not [fault for node in (alpha.node, gamma.node, restored) for fault in accused(node)]


def _behind(node: Node, by: int) -> None:
    runs = node.parts.runs.runs
    runs.run = runs.run._replace(start=runs.run.start - by)
