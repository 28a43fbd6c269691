# SPDX-License-Identifier: GPL-3.0-or-later
"""Members that cannot call each other have a link by way of a member that both can call. Whole nodes, with a
model of WireGuard, over loopback sockets: nobody can call beta and gamma, and the two hear nothing of each
other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from phantommesh.config.reading import load
from phantommesh.control import messages
from phantommesh.endpoint import Address, by_way_of
from phantommesh.link import wire
from phantommesh.link.psk import PskPhase
from phantommesh.node.carrying import EACH, PAIR
from phantommesh.nursery.node import Node
from phantommesh.nursery.sockets import framing
from phantommesh.nursery.sockets.framing import FramedStream, StreamError
from phantommesh.nursery.sockets.udp import UdpPort
from phantommesh.trust.identity import NodeId, format_node_id
from tests.support.loopback import join, make_authority, make_invite, serving, until


class Three(NamedTuple):
    alpha: Node
    beta: Node
    gamma: Node


def id_of(node: Node) -> NodeId:
    return NodeId(node.parts.state.identity.node_id)


def linked(one: Node, other: Node) -> bool:
    links, now = one.parts.links, trio.current_time()
    peer = id_of(other)
    return one.parts.sessions.newest(peer) is not None and links.state(peer, now).phase is PskPhase.FRESH


@asynccontextmanager
async def apart(at: Path, monkeypatch: pytest.MonkeyPatch, *, frames: bool = False) -> AsyncIterator[Three]:
    """Three nodes that run, as said above. ``frames``: beta and gamma use frames over TCP."""
    authority = make_authority(at / "alpha")
    async with serving(at / "alpha"):
        for name in ("beta", "gamma"):
            await join(at / name, make_invite(authority), name)
    hidden = {load(at / name / "pm.toml").control.port for name in ("beta", "gamma")}
    send, connect_first = UdpPort.send, framing.connect_first

    def send_unless_apart(self: UdpPort, datagram: bytes, to: Address) -> None:
        if not {self.port, to.port} <= hidden:
            send(self, datagram, to)

    @asynccontextmanager
    async def connect_unless_hidden(
        addresses: Sequence[Address], further: Sequence[int] = ()
    ) -> AsyncIterator[FramedStream]:
        if not (found := [address for address in addresses if address.port not in hidden]):
            raise StreamError("nobody can call it")
        async with connect_first(found) as framed:
            yield framed

    monkeypatch.setattr(UdpPort, "send", send_unless_apart)
    monkeypatch.setattr(framing, "connect_first", connect_unless_hidden)
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(serving(at / name, frames=frames and name != "alpha"))
            for name in ("alpha", "beta", "gamma")
        ]
        yield Three(*nodes)


async def ask(node: Node, member: NodeId, request: messages.Request) -> messages.Answer:
    """Ask a member over whatever connection there is."""
    async with node.parts.caller.call(member) as client:
        return await client.ask(request)


async def test_two_members_that_nobody_can_call_have_a_link_and_a_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with apart(tmp_path, monkeypatch) as (alpha, beta, gamma):
        began = trio.current_time()
        await until(lambda: linked(beta, gamma) and linked(gamma, beta))
        print(f"linked after {trio.current_time() - began:.2f} s")
        assert beta.parts.carrying.homes == gamma.parts.carrying.homes == [id_of(alpha)]
        # A channel of their own, over which alpha reads nothing.
        answer = await ask(beta, id_of(gamma), messages.Look())
        assert isinstance(answer, messages.Sighting)
        for request in (messages.Attend(), messages.Carry(id_of(alpha), (b"\x01" * 64,))):
            refused = await ask(beta, id_of(gamma), request)
            assert refused == messages.Refused("this is not answered by way of others")
        # The member that they have lent a connection to asks over that.
        assert isinstance(await ask(alpha, id_of(beta), messages.Look()), messages.Sighting)
        # The next epoch comes the same way.
        before = beta.parts.links.state(id_of(gamma), trio.current_time()).epoch
        for node in (beta, gamma):
            node.parts.links.rotate(None, trio.current_time())
            node.parts.driver.wake()
        await until(
            lambda: all(
                one.parts.links.state(id_of(other), trio.current_time()).epoch > before
                for one, other in ((beta, gamma), (gamma, beta))
            )
        )
        assert beta.parts.links.scatter(id_of(gamma)) is not None
        # A connection that broke is lent anew.
        for scope in list(beta.parts.attending.live.values()):
            scope.cancel()
        await until(lambda: id_of(alpha) not in beta.parts.attending.live)
        await until(lambda: beta.parts.carrying.homes == [id_of(alpha)])
        await until(lambda: id_of(beta) in alpha.parts.caller._lent)
        # What goes to a member that is no home is dropped and counted.
        before = beta.parts.carrying.dropped["carry-unsent"]
        beta.parts.carrying.send(
            bytes(64), by_way_of(format_node_id(id_of(gamma)), format_node_id(id_of(alpha)))
        )
        await until(lambda: beta.parts.carrying.dropped["carry-unsent"] == before + 1)
        with pytest.raises(StreamError):
            await ask(beta, NodeId(b"?" * 16), messages.Look())


async def test_a_member_gets_no_more_of_others_by_floods_and_forgeries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beta asks alpha to carry junk, a flood and frames to gamma, and says that things are gamma's. Gamma has
    no link less for it, and a revoked member is carried for no more."""
    async with apart(tmp_path, monkeypatch) as (alpha, beta, gamma):
        await until(lambda: linked(beta, gamma) and linked(gamma, beta))
        real = wire.CookieRequest(wire.Mode.MEMBER, b"12345678", id_of(alpha)).encode(b"k" * 32)
        before, began = gamma.parts.links.drops["mac"], trio.current_time()
        async with beta.parts.caller.dial_direct(id_of(alpha)) as client:
            for _ in range(40):
                flood = messages.Carry(id_of(gamma), (real,) * 30 + (b"junk", b"\x02" * 64))
                assert await client.ask(flood) == messages.Done()
            for request in (
                messages.Carried(id_of(gamma), (real,)),  # alpha has not lent beta anything
                messages.Carried(id_of(alpha), (real,)),
                messages.Carry(NodeId(b"?" * 16), (real,)),
                messages.Carry(id_of(beta), (real,)),
            ):
                assert await client.ask(request) == messages.Done()
            for frame in (b"", b"x" * 100, b"\x53" * 25, b"\x44" * 50):
                passed = await client.ask(messages.Pass(id_of(gamma), bytes(8), frame))
                assert passed == messages.Frame(b"")
        dropped = alpha.parts.carrying.dropped
        assert dropped["carry-malformed"] == 80 and dropped["carry-rate"] > 0
        assert dropped["carried-standing"] == 1 and dropped["carry-nowhere"] == 1
        assert alpha.parts.links.drops["mac"] == 1
        most = PAIR[1] + PAIR[0] * (trio.current_time() - began)
        assert gamma.parts.links.drops["mac"] - before <= most / EACH
        assert gamma.parts.carrying.dropped["line-refused"] == 4
        assert linked(gamma, beta) and linked(gamma, alpha)
        await alpha.reporter.revoke("gamma", force=True, dry_run=False)
        await until(lambda: id_of(gamma) not in alpha.parts.caller._lent)
        await until(lambda: id_of(gamma) in beta.parts.state.revocations)
        assert alpha.parts.carrying.carrier.carry(id_of(gamma), id_of(beta), [real], 0.0) == []
        with pytest.raises(StreamError):
            await ask(beta, id_of(gamma), messages.Look())
