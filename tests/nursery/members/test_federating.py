# SPDX-License-Identifier: GPL-3.0-or-later
"""Two meshes of whole nodes on the loopback device make a pact, use it, and end it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import time
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import trio
from trio.testing import MockClock

from phantommesh.control import messages
from phantommesh.management.events import Filter
from phantommesh.node.federation import Asked
from phantommesh.node.pactmaking import encode_kept, make_offer
from phantommesh.nursery.keeping.roster import RosterKeeper
from phantommesh.nursery.members import federating
from phantommesh.nursery.members.federating import Federating
from phantommesh.nursery.node import Node
from phantommesh.nursery.reporting import federation
from phantommesh.state import directory
from phantommesh.state.start import load_node
from phantommesh.trust.certificates import TrustError
from phantommesh.trust.federation import FederationInvite, Gateway, Ports
from phantommesh.trust.identity import NodeId
from phantommesh.trust.pacts import Bundle
from tests.support.loopback import join, make_authority, make_invite, serving, until

LIFE = 90 * 86_400.0


class Two(NamedTuple):
    """A mesh: its authority, called alpha, and two others."""

    alpha: Node
    beta: Node
    gamma: Node


@asynccontextmanager
async def mesh_in(at: Path) -> AsyncIterator[Two]:
    state = make_authority(at / "alpha")
    invite = make_invite(state, uses=2)
    async with AsyncExitStack() as stack:
        alpha = await stack.enter_async_context(serving(at / "alpha"))
        others = []
        for name in ("beta", "gamma"):
            await join(at / name, invite, name)
            others.append(await stack.enter_async_context(serving(at / name)))
        yield Two(alpha, *others)


async def invited(mesh: Two, *services: str) -> FederationInvite:
    parts = mesh.alpha.parts
    me = parts.keeper.roster.get(parts.state.identity.node_id)
    assert me is not None
    return await parts.federating.invite(make_offer(["beta"], services, [me], LIFE), 60.0)


async def accept(mesh: Two, line: FederationInvite, *services: str) -> bytes:
    parts = mesh.alpha.parts
    me = parts.keeper.roster.get(parts.state.identity.node_id)
    assert me is not None
    return await parts.federating.accept(line, make_offer(["beta"], services, [me], LIFE))


def id_of(node: Node) -> NodeId:
    return node.parts.state.identity.node_id


def knows(node: Node, pact: bytes) -> bool:
    return node.parts.federating.federation.pacts.ours(pact) is not None


def told(node: Node, kind: str) -> bool:
    return bool(node.parts.events.read(0, Filter.parse(kind), 1000).events)


def linked(one: Node, other: Node) -> bool:
    """Whether both have keys for each other, and nobody else of the other's mesh."""
    return all(
        list(a.parts.peers.visitors) == [id_of(b)] and a.parts.links.keyed(id_of(b))
        for a, b in ((one, other), (other, one))
    )


async def test_members_that_both_meshes_name_link_until_one_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_in(tmp_path / "here") as here, mesh_in(tmp_path / "there") as there:
        line = FederationInvite.parse_untrusted((await invited(here, "beta:tcp/443:beta")).encode())
        pact = await accept(there, line)
        await until(lambda: linked(here.beta, there.beta))
        (visitor,) = here.beta.parts.federating.visitors
        assert visitor.allowed.inbound == (Ports("tcp", 443, 443),) and not visitor.allowed.outbound
        (visitor,) = there.beta.parts.federating.visitors
        assert visitor.allowed.outbound == (Ports("tcp", 443, 443),) and not visitor.allowed.inbound
        for node in (here.alpha, here.gamma, there.alpha, there.gamma):
            assert not node.parts.federating.visitors
            await until(partial(knows, node, pact))
        # Apart from all that is the mesh's own.
        for one, other in ((here.beta, there.beta), (there.beta, here.beta)):
            parts, stranger = one.parts, id_of(other)
            assert parts.keeper.roster.get(stranger) is None and stranger not in parts.peers.standing
            assert stranger not in {entry.member.node_id for entry in parts.peers.entries}
            assert parts.gossip.membership.member(stranger) is None
            assert parts.sessions.newest(stranger) is None
            peer = parts.peers.devices["pm0"].peers[other.parts.own.wg_keys.public[0]]
            assert {net.version for net in peer.allowed_ips} == {6}

        # It is shown as it is, and its resting is a fault.
        (shown,) = here.beta.reporter.federation().pacts
        assert shown.state == "in force" and shown.part and not shown.silent
        (shown,) = here.gamma.reporter.federation().pacts
        assert shown.state == "resting" and not shown.part
        monkeypatch.setattr(federation, "MEETING", 0.0)
        assert list(federation.faults(here.beta.parts)) == []
        await until(partial(told, here.beta, "pact.in-force"))
        mesh = here.beta.parts.federating.federation.other(pact)
        assert mesh is not None
        mesh.heard = None
        (fault,) = federation.faults(here.beta.parts)
        assert fault.code == "pact-rests" and fault.subject == pact.hex() and fault.fix
        assert list(federation.faults(here.gamma.parts)) == []
        here.beta.parts.federating.federation.heard(pact)

        # Each node has the pact on disk, for root alone.
        for at in ("here/alpha", "here/beta", "there/gamma"):
            path = tmp_path / at / "state" / directory.PACTS
            await until(path.exists)
            assert path.stat().st_mode & 0o777 == 0o600

        # The line is good for one mesh.
        make_authority(tmp_path / "third")
        async with serving(tmp_path / "third") as third:
            with pytest.raises(TrustError, match="another mesh has answered"):
                await accept(Two(third, third, third), line)

        target = there.alpha.parts.desk.find("beta")
        await there.alpha.parts.desk.revoke(target, force=False)
        await until(lambda: not here.beta.parts.federating.visitors)
        assert not here.beta.parts.peers.devices["pm0"].peers.keys() & {
            there.beta.parts.own.wg_keys.public[0]
        }


async def alone(at: Path, changed: list[float]) -> Federating:
    """The part of a node that does not run."""
    make_authority(at)
    state = load_node(at / "state", time())
    return Federating(
        state, RosterKeeper(state, lambda: None), own=state.member_at_issue, may=lambda *_: True,
        changed=lambda: changed.append(trio.current_time()), guarded=lambda: (),
    )  # fmt: skip


async def test_a_gateway_that_answers_at_once_is_asked_at_a_bounded_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    part, asked = await alone(tmp_path, []), 0

    class Eager:
        async def ask(self, request: object) -> messages.Answer:
            nonlocal asked
            asked += 1
            await trio.lowlevel.checkpoint()
            return messages.Done()

    monkeypatch.setattr(part.federation, "other", lambda pact: SimpleNamespace(heard=None))
    gateway = Asked(bytes(16), Gateway(bytes(16), ("192.0.2.1:51800",)))
    with trio.move_on_after(60.0):
        await part._listen(Eager(), gateway)  # type: ignore[arg-type]
    assert 60 <= asked <= 60 + federating.ASK_BURST + 1


async def test_what_a_gateway_says_and_nobody_expected_ends_no_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    part = await alone(tmp_path, [])

    async def broken(asked: Asked) -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("year 146138514283 is out of range")

    monkeypatch.setattr(part, "_ask", broken)
    gateway = Asked(bytes(16), Gateway(bytes(16), ("192.0.2.1:51800",)))
    with trio.move_on_after(60.0):
        await part._follow(gateway, trio.CancelScope())
    assert part.dropped["gateway-broken"] >= 3


async def test_a_pacts_file_with_a_part_that_is_none_stops_no_start(tmp_path: Path) -> None:
    make_authority(tmp_path)
    junk = encode_kept([Bundle(b"junk", b"junk", b"", b"").encode()], [])
    state = replace(load_node(tmp_path / "state", time()), pacts=junk)
    part = Federating(
        state, RosterKeeper(state, lambda: None), own=state.member_at_issue, may=lambda *_: True,
        changed=lambda: None, guarded=lambda: (),
    )  # fmt: skip
    assert part.former == () and len(part.federation.pacts) == 0


async def test_time_alone_puts_a_pact_to_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    changed = list[float]()
    part, began = await alone(tmp_path, changed), trio.current_time()
    until_then = [SimpleNamespace(ours=SimpleNamespace(pact=bytes(16)))]
    monkeypatch.setattr(
        part.federation, "in_force", lambda: until_then if trio.current_time() - began < 100 else []
    )
    monkeypatch.setattr(part.federation, "visitors", lambda own: [])
    part.look()
    with trio.move_on_after(90.0):
        await part.run()
    assert changed == []
    with trio.move_on_after(20.0):
        await part.run()
    assert changed and changed[0] - began <= 100 + 2 * federating.LOOK


async def test_nobody_is_a_visitor_before_the_guard_knows_the_other_mesh(tmp_path: Path) -> None:
    async with mesh_in(tmp_path / "here") as here, mesh_in(tmp_path / "there") as there:
        await accept(there, await invited(here, "beta:tcp/443:beta"))
        await until(lambda: linked(here.beta, there.beta))
        parts = here.beta.parts
        assert parts.federating.visited()[0] == (there.alpha.parts.state.mesh.network6,)
        parts.federating.guarded = lambda: ()
        assert parts.federating.look() == [] and parts.federating.visited()[1] == ()
        assert parts.federating.networks  # the guard is to have it all the same


async def test_either_mesh_ends_a_pact_alone(tmp_path: Path) -> None:
    async with mesh_in(tmp_path / "here") as here, mesh_in(tmp_path / "there") as there:
        pact = await accept(there, await invited(here, "beta:tcp/443:beta"))
        await until(lambda: linked(here.beta, there.beta))
        with pytest.raises(TrustError, match="only an authority"):
            await here.beta.parts.federating.end(pact)
        await there.alpha.parts.federating.end(pact)
        await until(lambda: not here.beta.parts.federating.visitors)
        await until(lambda: not there.beta.parts.federating.visitors)
        for node in (*here, *there):
            await until(partial(node.parts.federating.federation.pacts.ended, pact))
    # It is on disk, and the next start begins with it.
    state = load_node(tmp_path / "here" / "beta" / "state", time())
    again = Federating(
        state, here.beta.parts.keeper, own=state.member_at_issue, may=lambda *_: True, changed=lambda: None,
        guarded=lambda: (),
    )  # fmt: skip
    assert again.federation.pacts.ended(pact) and again.federation.networks(state.member_at_issue())
