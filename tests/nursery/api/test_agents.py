# SPDX-License-Identifier: GPL-3.0-or-later
"""The agents over the API: what is read, who pauses, and the client of it."""

from pathlib import Path

import msgspec
import pytest
import trio

from phantommesh.client.http import NodeClient
from phantommesh.management.agentview import (
    AgentDetail,
    AgentsResult,
    AgentView,
    DecisionView,
    IncidentView,
    MemoryView,
)
from phantommesh.management.views import Page
from phantommesh.nursery.api.server import serve_api
from tests.nursery.api.test_api import app_of, ask, problem
from tests.support.fakenode import FakeNode


async def test_agents_and_the_memory_are_what_the_node_says() -> None:
    node = FakeNode()
    read = await (await ask(node, "GET", "/v1/agents")).get_data()
    listed = msgspec.json.decode(read, type=Page[AgentView]).items
    assert sorted(listed, key=lambda one: one.name) == sorted(node.agents(), key=lambda one: one.name)
    read = await (await ask(node, "GET", "/v1/agents/cipher")).get_data()
    assert msgspec.json.decode(read, type=AgentDetail) == node.agent("cipher")
    refused = await problem(await ask(node, "GET", "/v1/agents/nobody"), 404)
    assert "cipher" in refused.fix
    read = await (await ask(node, "GET", "/v1/memory")).get_data()
    assert msgspec.json.decode(read, type=MemoryView) == await node.memory()


async def decisions(node: FakeNode, query: str) -> Page[DecisionView]:
    read = await (await ask(node, "GET", f"/v1/decisions?{query}")).get_data()
    return msgspec.json.decode(read, type=Page[DecisionView])


async def test_decisions_come_in_pages_by_number_and_are_narrowed() -> None:
    node, numbers, query = FakeNode(), list[int](), "limit=2"
    while query:
        page = await decisions(node, query)
        numbers += [one.seq for one in page.items]
        query = f"limit=2&cursor={page.next_cursor}" if page.next_cursor else ""
        node.decided_on = 7  # some come meanwhile
    assert numbers == [1, 2, 3, 4, 5, 6, 7]
    assert [one.seq for one in (await decisions(node, "accepted=true")).items] == [1, 3, 5, 7]
    assert (await decisions(node, "agent=stream")).items == []
    for wrong in ("accepted=maybe", "cursor=AAAA", "limit=0"):
        await problem(await ask(node, "GET", f"/v1/decisions?{wrong}"), 400)


async def test_a_cursor_of_another_run_begins_anew() -> None:
    node = FakeNode()
    page = await decisions(node, "limit=2")
    node.events.run = "run2"
    assert [one.seq for one in (await decisions(node, f"cursor={page.next_cursor}")).items] == [1, 2, 3, 4, 5]


async def test_incidents_are_in_the_order_in_which_they_began() -> None:
    node = FakeNode()
    read = await (await ask(node, "GET", "/v1/incidents?limit=1")).get_data()
    page = msgspec.json.decode(read, type=Page[IncidentView])
    assert [one.id for one in page.items] == ["t0"]
    read = await (await ask(node, "GET", f"/v1/incidents?cursor={page.next_cursor}")).get_data()
    assert [one.id for one in msgspec.json.decode(read, type=Page[IncidentView]).items] == ["t1"]


async def test_agents_are_paused_and_resumed_by_name_and_all_together() -> None:
    node = FakeNode()
    app = app_of(node)
    for path, body, phase in (
        ("/v1/agents/cipher/pause", None, "paused"),
        ("/v1/agents/cipher/resume", {"dry_run": True}, "dry-run"),
        ("/v1/agents/cipher/resume", None, "running"),
        ("/v1/agents/all/pause", {}, "paused"),
    ):
        response = await ask(app, "POST", path, **({} if body is None else {"json": body}))
        result = msgspec.json.decode(await response.get_data(), type=AgentsResult)
        assert {one.phase for one in result.agents if one.name == "cipher"} == {phase}
        assert node.phases["cipher"] == phase
    assert node.phases["apex"] == "running"
    await problem(await ask(app, "POST", "/v1/agents/nobody/pause"), 404)
    await problem(await ask(app, "POST", "/v1/agents/cipher/resume", json={"dry": True}), 400)
    before = dict(node.phases)
    for doing in ("pause", "resume"):
        tried = await ask(app, "POST", f"/v1/agents/cipher/{doing}?dry_run=true")
        done = msgspec.json.decode(await tried.get_data(), type=AgentsResult)
        assert done.dry_run and done.lifted == 1 and node.phases == before
    await problem(await ask(app, "POST", "/v1/agents/nobody/pause?dry_run=true"), 404)


async def test_one_key_does_not_stand_for_two_agents() -> None:
    node = FakeNode()
    app, key = app_of(node), {"Idempotency-Key": "k"}
    await ask(app, "POST", "/v1/agents/cipher/pause", headers=key)
    await problem(await ask(app, "POST", "/v1/agents/fortress/pause", headers=key), 422)
    assert node.phases["fortress"] == "running"


@pytest.mark.parametrize("wanted", ["no/such", "..", "a?b", "%2e"])
async def test_the_client_names_an_agent_whatever_the_name(tmp_path: Path, wanted: str) -> None:
    node, path = FakeNode(), tmp_path / "api.sock"
    client = NodeClient(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: serve_api(node, socket_path=path, task_status=task_status))
        result = await trio.to_thread.run_sync(lambda: client.pause_agent("all", idempotency_key="a"))
        assert result.lifted == 1
        with pytest.raises(Exception, match=r"no|there is"):
            await trio.to_thread.run_sync(client.agent, wanted)
        assert (await trio.to_thread.run_sync(client.agent, "cipher")).agent.phase == "paused"
        nursery.cancel_scope.cancel()
