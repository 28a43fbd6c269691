# SPDX-License-Identifier: GPL-3.0-or-later
"""One question to a member: over a channel of its own, which is gone after it, and not for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from phantommesh.control import messages
from phantommesh.control.sessions import Sessions
from phantommesh.nursery.members.calling import Answered, Caller
from phantommesh.nursery.sockets.framing import StreamError
from phantommesh.trust.identity import NodeId

MEMBER = NodeId(b"m" * 16)


class Line:
    """A member that another passes on to: it takes ``opens`` seconds to open and ``answers`` to answer."""

    def __init__(self, opens: float, answers: float) -> None:
        self.opens, self.answers, self.open = opens, answers, 0
        self.caller = Caller(cast("Any", None), cast("Any", None), Sessions(), lambda member: ())
        self.caller.by_way = cast("Any", self.way)
        self.caller.linked(MEMBER, None, "responder")

    @asynccontextmanager
    async def way(self, member: NodeId) -> AsyncIterator[object]:
        await trio.sleep(self.opens)
        self.open += 1
        try:
            yield SimpleNamespace(ask=self.ask)
        finally:
            self.open -= 1

    async def ask(self, request: messages.Request) -> messages.Answer:
        await trio.sleep(self.answers)
        return messages.Done()


async def test_the_time_of_an_answer_is_not_that_of_the_channel(
    autojump_clock: trio.testing.MockClock,
) -> None:
    line = Line(3.0, 0.5)
    assert await line.caller.ask(MEMBER, messages.Look(), 4.0) == Answered(messages.Done(), 0.5)
    assert not line.open


@pytest.mark.parametrize(("opens", "answers"), [(9.0, 0.0), (0.0, 9.0)])
async def test_no_answer_in_time_is_a_failure_like_others(
    autojump_clock: trio.testing.MockClock, opens: float, answers: float
) -> None:
    line = Line(opens, answers)
    with pytest.raises(StreamError, match="no answer in time"):
        await line.caller.ask(MEMBER, messages.Look(), 4.0)
    assert not line.open
