# SPDX-License-Identifier: GPL-3.0-or-later
"""Two members of which neither takes a connection from the other: a third one joins their connections, and
frames go by it. Whole nodes over loopback; the test's sockets stand in for their WireGuards."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from phantommesh.control import messages
from phantommesh.dimensions import DIMENSIONS
from phantommesh.nursery.members import bridging
from phantommesh.nursery.node import Node
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import FramedStream, StreamError, connect
from phantommesh.routing.ways import Kind
from phantommesh.trust.identity import NodeId
from tests.nursery.dataplane.test_framed import connected, edge, through, wireguards
from tests.nursery.members.test_carrying import apart, id_of, linked
from tests.support.loopback import until


def joined(one: Node, other: Node) -> bool:
    return connected(one, other) and connected(other, one)


async def test_frames_go_by_a_member_that_joins_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phantommesh.routing.lastway.STALLED", 1e6)
    monkeypatch.setattr("phantommesh.routing.lastway.AGAIN_MOST", 1.0)
    passed = list[bytes]()
    receive = FramedStream.receive

    async def seen(self: FramedStream, limit: int) -> bytes:
        frame = await receive(self, limit)
        passed.append(frame)
        return frame

    async with apart(tmp_path, monkeypatch, frames=True) as (alpha, beta, gamma):
        await until(lambda: linked(beta, gamma) and linked(gamma, beta))
        await until(lambda: len(beta.parts.carrying.homes) == 1)
        assert not joined(beta, gamma)  # alpha does not relay
        alpha.parts.bridging.offers = lambda: True
        await until(lambda: joined(beta, gamma))
        assert beta.parts.framed.way_of(id_of(gamma)) == beta.parts.framed._lines[id_of(gamma)].address
        assert beta.parts.framed._lines[id_of(gamma)].address.transport == "via"
        with wireguards(beta) as here, wireguards(gamma) as there:
            to, back = edge(beta, gamma), edge(gamma, beta)
            way = beta.parts.ways.chosen(id_of(gamma), 0)
            assert way is not None and way.relay == id_of(alpha)
            monkeypatch.setattr(FramedStream, "receive", seen)
            for i in range(DIMENSIONS):
                await through(here[i], to, b"to dimension %d" % i, there[i], back)
                await through(there[i], back, b"from dimension %d" % i, here[i], to)
        assert passed and not any(b"dimension" in frame for frame in passed)  # alpha has no key
        monkeypatch.setattr(FramedStream, "receive", receive)

        # Gossip of the two goes by it, too.
        silence = gamma.parts.gossip.membership.silence(id_of(beta), trio.current_time())
        assert silence is not None
        # One that was revoked is joined no more.
        await alpha.reporter.revoke("gamma", force=True, dry_run=False)
        await until(lambda: id_of(gamma) not in beta.parts.framed._lines)
        await until(lambda: not alpha.parts.bridging.bridges._held)
        await until(lambda: not beta.parts.ways.on_offer(id_of(gamma), Kind.FRAMED))


async def test_who_asks_for_somebody_that_does_not_come_is_told_so_and_has_few_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridging, "COMES", 0.2)
    async with apart(tmp_path, monkeypatch) as (alpha, beta, gamma):
        await until(lambda: linked(beta, gamma) and linked(beta, alpha))
        session = beta.parts.sessions.newest(id_of(alpha))
        assert session is not None

        async def ask(to: NodeId) -> messages.Answer:
            async with connect("127.0.0.1", alpha.parts.config.control.port) as framed:
                return await (await Client.open(framed, session)).ask(messages.Bridge(to))

        refused = await ask(id_of(gamma))
        assert isinstance(refused, messages.Refused) and "does not relay" in refused.message
        alpha.parts.bridging.offers = lambda: True
        for to, why in (
            (id_of(gamma), "did not come"),
            (id_of(alpha), "no pair"),
            (NodeId(b"?" * 16), "no pair"),
        ):
            refused = await ask(to)
            assert isinstance(refused, messages.Refused) and why in refused.message
        said = [await ask(id_of(gamma)) for _ in range(10)]
        assert any(isinstance(one, messages.Refused) and "too many" in one.message for one in said)
        assert not alpha.parts.bridging.bridges._held and not alpha.parts.bridging._waiting
        # Gamma was told each time, and calls nobody: it uses no frames here.
        assert gamma.parts.framed.dropped["frame-prompt"] > 0
        with pytest.raises(StreamError, match=r"did not come|too many"):
            async with bridging.bridged(beta.parts.caller, id_of(beta), id_of(alpha), id_of(gamma)):
                pass
