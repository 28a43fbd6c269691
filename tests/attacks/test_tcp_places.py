# SPDX-License-Identifier: GPL-3.0-or-later
"""A member with many addresses, and one with an invite, take every place they can at a node's TCP port.

Played with the member's own session against whole nodes on the loopback device. Each connection sends one
genuine request, and so is no stranger's. Before, such a one was never closed. One member with 16 addresses
held all 512 places for as long as it sent a request a minute, and nobody could ask, join or renew.
"""

from contextlib import AsyncExitStack, suppress
from pathlib import Path

import trio

from phantommesh.control import messages, seats, sessions
from phantommesh.link.effects import Opened
from phantommesh.nursery.sockets import channels, framing
from phantommesh.secret import Secret
from tests.support.loopback import join, make_authority, make_invite, serving, until

ADDRESSES = seats.TOTAL // seats.PER_HOST


async def hold(stack: AsyncExitStack, host: str, port: int, session: sessions.Session) -> None:
    """Open a channel from that address, ask something on it, wait for no answer, and keep it."""
    # The node may close it at any point.
    with suppress(framing.StreamError, OSError):
        stream = await trio.open_tcp_stream("127.0.0.1", port, local_address=host)
        framed = framing.FramedStream(await stack.enter_async_context(stream))
        client = await channels.Client.open(framed, session)
        await framed.send(client._sealed.seal(messages.encode(messages.Prove(()))))


async def test_a_member_with_many_addresses_shuts_nobody_out(tmp_path: Path) -> None:
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a"):
        for at, name in (("b", "beta"), ("c", "gamma")):
            await join(tmp_path / at, make_invite(state), name)
    async with AsyncExitStack() as stack:
        alpha, beta, gamma = [await stack.enter_async_context(serving(tmp_path / at)) for at in "abc"]
        me = alpha.parts.state.identity.node_id
        await until(lambda: all(node.parts.sessions.newest(me) is not None for node in (beta, gamma)))
        session = beta.parts.sessions.newest(me)
        assert session is not None
        port = alpha.parts.config.control.port
        for number in range(seats.TOTAL + seats.PER_HOST):
            await hold(stack, f"127.0.1.{1 + number % (ADDRESSES + 1)}", port, session)
        async with gamma.parts.caller.call(me) as client:
            assert isinstance(await client.ask(messages.AskKeys()), messages.KeysAre)
        await join(tmp_path / "d", make_invite(state), "delta")
        beta_id = beta.parts.state.identity.node_id
        assert sum(s.holder == seats.Holder(beta_id) for s in alpha.parts.tcp._lives) <= seats.PER_HOLDER


async def test_insiders_with_every_member_place_shut_nobody_out(tmp_path: Path) -> None:
    """As many members as it takes, each with its bound, and four invites besides: all work together."""
    state = make_authority(tmp_path / "a")
    async with serving(tmp_path / "a"):
        await join(tmp_path / "c", make_invite(state), "gamma")
    async with AsyncExitStack() as stack:
        alpha, gamma = [await stack.enter_async_context(serving(tmp_path / at)) for at in "ac"]
        me = alpha.parts.state.identity.node_id
        await until(lambda: gamma.parts.sessions.newest(me) is not None)
        port, members = alpha.parts.config.control.port, seats.MEMBERS // seats.PER_HOLDER
        for number in range(members + seats.NEWCOMERS // seats.PER_HOLDER):
            who = number.to_bytes(16)
            out, back = Secret(b"o" * 16 + who), Secret(b"i" * 16 + who)
            invite = who if number >= members else b""
            alpha.parts.sessions.add(
                sessions.Session.of(Opened(who, "responder", b"session1", out, back, 1, 0.1, invite))
            )
            theirs = sessions.Session.of(Opened(me, "initiator", b"session1", back, out, 1, 0.1))
            for _ in range(seats.PER_HOLDER):
                await hold(stack, f"127.0.1.{1 + number // 4}", port, theirs)
        proved = [seat for seat in alpha.parts.tcp._lives if seat.holder is not None]
        assert len(proved) >= seats.MEMBERS  # so those of members are all taken
        async with gamma.parts.caller.call(me) as client:
            assert isinstance(await client.ask(messages.AskKeys()), messages.KeysAre)
        await join(tmp_path / "d", make_invite(state), "delta")
