# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking witnesses over TCP which runs a node has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import trio

from phantommesh.endpoint import Address
from phantommesh.node.runs import Answer, Runs, There
from phantommesh.nursery.members.runs import RunWatch
from phantommesh.nursery.sockets.framing import FramedStream
from phantommesh.records.roster import Entry
from phantommesh.records.runs import Run, sign_word
from phantommesh.trust.identity import Identity

ME = Identity.from_seed(b"1" * 32)
LATER = Run(11, b"b" * 16)


async def honest(stream: trio.SocketStream) -> None:
    framed = FramedStream(stream)
    await framed.receive(20_000)
    await framed.send(Answer(There.ALIVE, (sign_word(ME, LATER).raw,)).encode())


async def silent(stream: trio.SocketStream) -> None:
    await FramedStream(stream).receive(20_000)
    await trio.sleep_forever()


async def test_a_witness_that_takes_connections_and_says_nothing_holds_no_answer_up() -> None:
    async with trio.open_nursery() as nursery:

        async def port(handle: Callable[[trio.SocketStream], Awaitable[None]]) -> Address:
            serve: Any = partial(trio.serve_tcp, handle, 0, host="127.0.0.1")
            listeners = await nursery.start(serve)
            return Address("127.0.0.1", listeners[0].socket.getsockname()[1])

        places = [[await port(honest)], [await port(honest)], [await port(silent) for _ in range(8)]]
        record = SimpleNamespace(tcp_ports=())
        entries = [
            cast(
                "Entry",
                SimpleNamespace(member=SimpleNamespace(node_id=bytes([i]) * 16), record=record, places=at),
            )
            for i, at in enumerate(places)
        ]
        watch = object.__new__(RunWatch)
        watch.runs = Runs(ME, 10, b"a" * 16, trio.current_time())
        watch._where = lambda entry: cast("Any", entry).places
        with trio.fail_after(18):  # it would be eight connections, one after the other, of three seconds each
            answers = await watch._ask(entries)
        assert [answer.there for answer in answers] == [There.ALIVE, There.ALIVE]
        nursery.cancel_scope.cancel()
