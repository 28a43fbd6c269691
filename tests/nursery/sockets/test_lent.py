# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections that a member lends, so that it can be asked though it cannot be called. Real loopback
sockets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from phantommesh.control import messages
from phantommesh.nursery.sockets import lent as module
from phantommesh.nursery.sockets.channels import Client
from phantommesh.nursery.sockets.framing import StreamError, connect
from tests.nursery.sockets.test_streams import CLIENTS, HERE, Served, is_closed, refuse_all, serving
from tests.support.loopback import until


@asynccontextmanager
async def lending(served: Served) -> AsyncIterator[Client]:
    """A member's connection, lent to the node."""
    async with connect(HERE, served.number) as framed:
        client = await Client.open(framed, CLIENTS)
        assert await client.ask(messages.Attend()) == messages.Done()
        yield client


async def test_the_node_asks_over_a_connection_that_a_member_lends() -> None:
    async with serving() as served, serving() as member, lending(served) as client:
        lent = served.port._lent
        await until(lambda: b"member" in lent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(member.port.attend, client)
            for _ in range(3):
                async with lent.use(b"member") as asks:
                    assert asks is not None
                    for request in (messages.AskKeys(), messages.Announce(b"x" * 9000)):
                        answer = await asks.ask(request)
                        assert answer == messages.Refused(f"authority asked for {type(request).__name__}")
            async with lent.use(b"somebody else") as asks:
                assert asks is None
            nursery.cancel_scope.cancel()


async def test_a_member_has_one_loan_and_the_newer_counts() -> None:
    async with serving() as served, lending(served) as first, lending(served) as second:
        assert await is_closed(first.framed)
        lent = served.port._lent
        assert len(lent._loans) == 1
        async with lent.use(b"member") as asks, trio.open_nursery() as nursery:
            assert asks is not None
            nursery.start_soon(asks.framed.send, b"x")
            assert await second.framed.receive(10) == b"x"


@pytest.mark.parametrize("junk", [b"", b"junk", b"\x44" * 100])
async def test_an_answer_that_is_none_ends_the_loan(junk: bytes) -> None:
    async with serving() as served, lending(served) as client:
        lent = served.port._lent
        await until(lambda: b"member" in lent)
        await client.framed.send(junk)

        async def ask() -> None:
            async with lent.use(b"member") as asks:
                assert asks is not None
                await asks.ask(messages.AskKeys())

        with pytest.raises(StreamError):
            await ask()
        assert b"member" not in lent
        async with lent.use(b"member") as asks:
            assert asks is None
        await served.ended("stream-ended")


async def test_a_loan_that_nobody_uses_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNUSED", 0.05)
    async with serving() as served, lending(served) as client:
        assert await is_closed(client.framed)
        assert b"member" not in served.port._lent


async def test_a_newcomer_lends_nothing() -> None:
    asked = list[messages.Request]()

    async def serve(session: object, request: messages.Request, source: object) -> messages.Answer:
        asked.append(request)
        await trio.lowlevel.checkpoint()
        return messages.Refused("no")

    async with serving(serve) as served:
        served.port._sessions._by_name[CLIENTS.name] = replace(
            served.port._sessions._by_name[CLIENTS.name], invite=b"invite"
        )
        async with connect(HERE, served.number) as framed:
            client = await Client.open(framed, CLIENTS)
            assert await client.ask(messages.Attend()) == messages.Refused("no")
        assert asked == [messages.Attend()] and not served.port._lent._loans


async def test_a_question_that_is_none_ends_the_attendance_and_so_does_a_revocation() -> None:
    async with serving(refuse_all) as served, serving() as member:
        lent = served.port._lent
        for revoked in (False, True):
            async with lending(served) as client, trio.open_nursery() as nursery:
                await until(lambda: b"member" in lent)
                ended, why = trio.Event(), list[str]()

                async def attend(
                    client: Client = client, ended: trio.Event = ended, why: list[str] = why
                ) -> None:
                    try:
                        await member.port.attend(client)
                    except StreamError as error:
                        why.append(str(error))
                    ended.set()

                nursery.start_soon(attend)
                await until(lambda: bool(member.port._channels))
                if revoked:
                    member.port.close_channels({client.session.peer})
                else:
                    async with lent.use(b"member") as asks:
                        assert asks is not None
                        await asks.framed.send(b"junk")
                with trio.fail_after(60):
                    await ended.wait()
                assert why == ([] if revoked else ["a question is not genuine"])
            assert not member.port._channels
