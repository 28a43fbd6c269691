# SPDX-License-Identifier: GPL-3.0-or-later
"""The real application over quart-trio's test client, and the real server over a real Unix socket."""

import dataclasses
import grp
import os
import re
import socket
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypercorn.trio.worker_context import WorkerContext
from quart import Response
from quart.testing import WebsocketResponseError
from quart_trio import QuartTrio

from phantommesh.client.http import ApiError, NodeClient, NodeNotRunningError
from phantommesh.errors import PhantomMeshError
from phantommesh.faults import FaultKind
from phantommesh.management.aclview import PolicyResult
from phantommesh.management.configview import ConfigResult, ConfigView
from phantommesh.management.drainview import DrainView
from phantommesh.management.endpoints import COMMON, ENDPOINTS, Endpoint
from phantommesh.management.explainview import Explanation
from phantommesh.management.federationview import FederationView
from phantommesh.management.inviteview import InviteMade
from phantommesh.management.netview import NetCheck
from phantommesh.management.pingview import PingResult
from phantommesh.management.routeview import RouteResult, RoutesView
from phantommesh.management.threatsview import BansView, UnbanResult
from phantommesh.management.topoview import TopologyView
from phantommesh.management.views import (
    IdentityResult,
    LinkView,
    Page,
    PathView,
    PeerView,
    Problem,
    ProofsView,
    RevocationResult,
    RotationResult,
    ScatterView,
    Status,
)
from phantommesh.node.draining import DrainRefusedError
from phantommesh.nursery.api import events
from phantommesh.nursery.api.app import create_app
from phantommesh.nursery.api.auth import Door
from phantommesh.nursery.api.idempotency import (
    LIFE_S,
    MAX_KEYS,
    MAX_OF_CALLER,
    IdempotencyCache,
)
from phantommesh.nursery.api.problems import MAX_BODY_BYTES
from phantommesh.nursery.api.routes.reads import STATUS_AGE
from phantommesh.nursery.api.server import connection_handler, serve_api
from phantommesh.nursery.api.sockets import ApiSocketError, listen_tcp, listen_unix, peer_uid
from phantommesh.proofs.statement import ProofError
from tests.support.fakenode import FakeNode

NO_GROUP = "no-such-group-here"


def app_of(node: FakeNode, *, trusted: bool = True) -> QuartTrio:
    return create_app(node, Door(trusted=trusted))


async def ask(node: FakeNode | QuartTrio, method: str, path: str, **options: Any) -> Response:
    app = app_of(node) if isinstance(node, FakeNode) else node
    response = await app.test_client().open(path, method=method, **options)
    endpoint = endpoint_of(method, path)
    if endpoint is not None:  # every answer in these tests is one that the table promises
        assert response.status_code in {200} | endpoint.errors | COMMON
        if response.status_code == 200 and endpoint.answer is not None:
            msgspec.json.decode(await response.get_data(), type=endpoint.answer)
        if response.status_code == 200:
            assert response.content_type.startswith((endpoint.content, OPENMETRICS))
    return response


OPENMETRICS = "application/openmetrics-text"


def endpoint_of(method: str, path: str) -> Endpoint[Any] | None:
    plain = path.partition("?")[0]
    return next(
        (
            endpoint
            for endpoint in ENDPOINTS
            if endpoint.method == method and re.fullmatch(re.sub(r"{\w+}", "[^/]+", endpoint.path), plain)
        ),
        None,
    )


async def problem(response: Response, status: int) -> Problem:
    assert response.status_code == status
    assert response.content_type == "application/problem+json"
    body = msgspec.json.decode(await response.get_data(), type=Problem)
    assert body.status == status
    return body


async def test_status_peers_and_links() -> None:
    node = FakeNode()
    response = await ask(node, "GET", "/v1/status")
    assert msgspec.json.decode(await response.get_data(), type=Status) == node.status()
    assert response.headers["Cache-Control"] == "no-store"
    response = await ask(node, "GET", "/v1/paths?limit=1000")
    assert msgspec.json.decode(await response.get_data(), type=Page[PathView]).items == node.paths()
    response = await ask(node, "GET", "/v1/scatter")
    assert msgspec.json.decode(await response.get_data(), type=Page[ScatterView]).items == node.scatter()
    response = await ask(node, "GET", "/v1/proofs")
    assert msgspec.json.decode(await response.get_data(), type=Page[ProofsView]).items == node.proofs()
    response = await ask(node, "GET", "/v1/links")
    assert msgspec.json.decode(await response.get_data(), type=Page[LinkView]).items == node.links()
    for known in ("pm-2", "id002"):
        response = await ask(node, "GET", f"/v1/peers/{known}")
        assert msgspec.json.decode(await response.get_data(), type=PeerView).name == "pm-2"
    assert "/v1/peers" in (await problem(await ask(node, "GET", "/v1/peers/nobody"), 404)).fix


def test_the_application_has_the_paths_of_the_table_and_no_others() -> None:
    made = set()
    for rule in app_of(FakeNode()).url_map.iter_rules():
        methods = {"WS"} if rule.websocket else set(rule.methods or ()) - {"HEAD", "OPTIONS"}
        made |= {(method, rule.rule.replace("<", "{").replace(">", "}")) for method in methods}
    assert made == {(endpoint.method, endpoint.path) for endpoint in ENDPOINTS}
    assert len({endpoint.name for endpoint in ENDPOINTS}) == len(ENDPOINTS)


async def test_what_cannot_be_tried_without_doing_it_refuses_a_dry_run() -> None:
    node = FakeNode()
    app = app_of(node)
    writing = [endpoint for endpoint in ENDPOINTS if endpoint.method == "POST" and not endpoint.dry_run]
    assert [endpoint.path for endpoint in writing] == [
        "/v1/pings",
        "/v1/identities",
        "/v1/names",
        "/v1/routes/approvals",
        "/v1/routes/withdrawals",
        "/v1/federation/invites",
        "/v1/federation/pacts",
        "/v1/federation/ends",
    ]
    for endpoint in writing:
        refused = await problem(
            await ask(
                app, "POST", f"{endpoint.path}?dry_run=true", scope_base={"state": {"uid": os.geteuid()}}
            ),
            400,
        )
        assert "dry run" in refused.detail
    assert node.replaced == 0


async def test_probes() -> None:
    node = FakeNode()
    assert (await ask(node, "GET", "/healthz")).status_code == 200
    answer = await ask(node, "GET", "/readyz")
    assert answer.status_code == 200 and await answer.get_json() == {"status": "ready", "state": "running"}
    node.faults = [FaultKind("peer-dark", "high").fault("pm-2 is dark", "look")]
    answer = await ask(node, "GET", "/readyz")
    assert answer.status_code == 200 and (await answer.get_json())["faults"] == ["peer-dark"]
    node.reasons, node.state = ["no PSK with pm-2 yet"], "starting"
    assert (await ask(node, "GET", "/healthz")).status_code == 200
    refused = await problem(await ask(node, "GET", "/readyz"), 503)
    assert refused.reasons == node.reasons
    assert (refused.state, refused.codes, refused.detail) == (
        "starting",
        ["peer-dark"],
        "the node is starting",
    )


async def test_pages_cover_everything_once_even_when_a_member_leaves() -> None:
    node = FakeNode(peers=7)
    seen: list[str] = []
    cursor = ""
    while True:
        response = await ask(node, "GET", f"/v1/peers?limit=3&cursor={cursor}")
        page = msgspec.json.decode(await response.get_data(), type=Page[PeerView])
        assert len(page.items) <= 3
        seen += [peer.node_id for peer in page.items]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
        node.count = 6  # the last one leaves while pages are read
    assert seen == [f"id{number:03}" for number in range(1, 7)]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=-1", "limit=x", "limit=1001", "limit=%C2%B2", "cursor=%ff!"]
)
async def test_unusable_pages_are_400(query: str) -> None:
    await problem(await ask(FakeNode(), "GET", f"/v1/peers?{query}"), 400)


async def test_errors_are_problems_and_never_html() -> None:
    node = FakeNode()
    gone = await problem(await ask(node, "GET", "/nothing"), 404)
    assert (gone.detail, gone.fix) == ("there is no /nothing", "see GET /openapi.json for the paths")
    await problem(await ask(node, "GET", "/v1/peers/a/b"), 404)
    response = await ask(node, "DELETE", "/v1/status")
    refused = await problem(response, 405)
    assert refused.fix.startswith("use ") and "does not take this method" in refused.detail
    assert "GET" in response.headers["Allow"]
    await problem(await ask(node, "POST", "/v1/rotations", data=b"{}"), 415)
    json = {"Content-Type": "application/json"}
    for body in (b"{", b"[]", b'{"peer": 1}', b'{"per": "x"}', b'{"peer": "\xff"}', b"[" * 5000):
        await problem(await ask(node, "POST", "/v1/rotations", data=body, headers=json), 400)
    await problem(await ask(node, "POST", "/v1/rotations?dry_run=maybe"), 400)
    too_long = b" " * (MAX_BODY_BYTES + 1)
    await problem(await ask(node, "POST", "/v1/rotations", data=too_long, headers=json), 413)
    assert node.rotated == []


async def test_what_the_framework_refuses_is_told_in_the_nodes_words() -> None:
    node = FakeNode()
    gone = await problem(await ask(node, "GET", "/v1/" + "nothing" * 50), 404)
    assert gone.detail.startswith("there is no /v1/nothing") and gone.detail.endswith("...")
    assert len(gone.detail) < 130 and "/openapi.json" in gone.fix
    refused = await problem(await ask(node, "DELETE", "/v1/status"), 405)
    assert refused.detail == "/v1/status does not take this method"
    assert refused.fix == "use GET"
    json = {"Content-Type": "application/json"}
    large = await ask(node, "POST", "/v1/rotations", data=b" " * (MAX_BODY_BYTES + 1), headers=json)
    assert str(MAX_BODY_BYTES) in (await problem(large, 413)).fix
    for word in ("URL", "page", "server", "browser"):
        assert word not in gone.detail + refused.detail


def leaves(group: BaseException) -> list[BaseException]:
    if not isinstance(group, BaseExceptionGroup):
        return [group]
    return [leaf for each in group.exceptions for leaf in leaves(each)]


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: f"{endpoint.method}-{endpoint.name}")
async def test_a_query_that_the_endpoint_does_not_know_is_refused(endpoint: Endpoint[Any]) -> None:
    """A mistyped ``dry_run`` would do what it should only try."""
    node = FakeNode()
    path, known = endpoint.path.replace("{peer}", "pm-1").replace("{name}", "cipher"), endpoint.queries
    for wrong in ("dryrun=true", "lim=3", "=", "&".join([*(f"{name}=1" for name in known), "x=1"])):
        if endpoint.method == "WS":
            with pytest.raises(ExceptionGroup) as refusal:
                async with app_of(node).test_client().websocket(f"{path}?{wrong}") as websocket:
                    await websocket.receive()
            (error,) = leaves(refusal.value)
            assert isinstance(error, WebsocketResponseError)
            response = error.response
        else:
            response = await ask(node, endpoint.method, f"{path}?{wrong}")
        refused = await problem(response, 400)
        assert f"is no query of {endpoint.path}" in refused.detail
        assert refused.fix == (f"give one of {', '.join(known)}" if known else "leave the query out")
    assert node.rotated == [] and node.revoked == [] and node.replaced == 0


async def test_a_bug_is_a_500_that_tells_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    node = FakeNode()
    node.failure = ValueError("internal detail 4711")
    body = await problem(await ask(node, "GET", "/v1/status"), 500)
    assert "4711" not in str(body)
    assert "4711" in "".join(capfd.readouterr())  # the log has it
    assert sample(node, route="/v1/status", method="GET", status="500") == 1


async def test_an_operators_error_brings_its_fix() -> None:
    node = FakeNode()
    node.failure = PhantomMeshError("pm-2 is revoked", fix="ask an authority")
    body = await problem(await ask(node, "POST", "/v1/rotations"), 409)
    assert (body.detail, body.fix) == ("pm-2 is revoked", "ask an authority")


async def rotate(
    app: QuartTrio, peer: str | None = None, key: str | None = None, query: str = ""
) -> Response:
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key is not None else {})
    body = msgspec.json.encode({"peer": peer})
    return await ask(app, "POST", "/v1/rotations" + query, data=body, headers=headers)


async def test_rotation_of_one_and_of_all() -> None:
    node = FakeNode()
    app = app_of(node)
    one = msgspec.json.decode(await (await rotate(app, "pm-2")).get_data(), type=RotationResult)
    assert [(each.peer, each.result) for each in one.rotations] == [("pm-2", "rotated")]
    everyone = msgspec.json.decode(await (await rotate(app)).get_data(), type=RotationResult)
    assert len(everyone.rotations) == 2
    assert node.rotated == ["id002", None]
    await problem(await rotate(app, "nobody"), 404)
    assert len(node.rotated) == 2


async def test_pings_are_sent_to_the_peer_that_is_named() -> None:
    node = FakeNode()
    for known in ("pm-2", "id002"):
        response = await ask(node, "POST", "/v1/pings", json={"peer": known, "count": 3, "size": 1200})
        result = msgspec.json.decode(await response.get_data(), type=PingResult)
        assert (result.peer, result.node_id, result.answered) == ("pm-2", "id002", 6)
        assert [(one.sent, one.received, one.way) for one in result.dimensions][:2] == [
            (3, 0, "none"),
            (3, 3, "direct"),
        ]
    await ask(node, "POST", "/v1/pings", json={"peer": "pm-1"})
    assert node.pinged == [("id002", 3, 1200), ("id002", 3, 1200), ("id001", 4, None)]
    assert "/v1/peers" in (await problem(await ask(node, "POST", "/v1/pings", json={"peer": "x"}), 404)).fix
    for body in (
        None,
        {},
        {"peer": "pm-1", "count": 0},
        {"peer": "pm-1", "count": 51},
        {"peer": "pm-1", "size": 39},
    ):
        assert (await ask(node, "POST", "/v1/pings", json=body)).status_code in (400, 415)
    node.failure = PhantomMeshError("another ping of this peer is under way", fix="try again")
    assert (
        await problem(await ask(node, "POST", "/v1/pings", json={"peer": "pm-1"}), 409)
    ).fix == "try again"
    assert len(node.pinged) == 3


async def test_the_topology_is_what_the_node_finds() -> None:
    node = FakeNode()
    response = await ask(node, "GET", "/v1/topology")
    assert msgspec.json.decode(await response.get_data(), type=TopologyView) == await node.topology()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("/v1/bans", {"network": network}) for network in ("0.0.0.0/1", "192.0.2.0/23", "8000::/1")),
        ("/v1/bans", {"network": "192.0.2.7", "force": True}),
        ("/v1/bans", {"network": "192.0.2.7", "seconds": 86_401}),
        ("/v1/drain", {"force": True}),
    ],
)
async def test_nobody_but_root_cuts_the_host_off(path: str, body: dict[str, object]) -> None:
    app, other = app_of(FakeNode()), {"state": {"uid": 65_534}}
    denied = await ask(app, "POST", path, json=body, scope_base=other)
    assert "only root may" in (await problem(denied, 403)).detail
    planned = await ask(app, "POST", f"{path}?dry_run=true", json=body, scope_base=other)
    assert planned.status_code == 200
    root = {"state": {"uid": os.geteuid()}}
    assert (await ask(app, "POST", path, json=body, scope_base=root)).status_code == 200


async def test_the_group_bans_and_lifts_a_little_and_not_what_evidence_banned() -> None:
    node = FakeNode()
    app, other = app_of(node), {"state": {"uid": 65_534}}
    for network in ("192.0.2.7", "198.51.100.0/24"):
        assert (
            await ask(app, "POST", "/v1/bans", json={"network": network}, scope_base=other)
        ).status_code == 200
    assert (await ask(app, "POST", "/v1/drain", json={}, scope_base=other)).status_code == 200
    for query in ("network=192.0.2.250", "by=own", "by=hinted"):
        denied = await ask(app, "DELETE", f"/v1/bans?{query}", scope_base=other)
        assert "only root may" in (await problem(denied, 403)).detail
    for query, scope in (
        ("network=198.51.100.0/24", other),
        ("network=192.0.2.250", {"state": {"uid": os.geteuid()}}),
    ):
        assert (await ask(app, "DELETE", f"/v1/bans?{query}", scope_base=scope)).status_code == 200


async def test_routes_are_what_the_node_knows_and_only_root_decides_on_them() -> None:
    node = FakeNode()
    app = app_of(node)
    response = await ask(app, "GET", "/v1/routes")
    assert msgspec.json.decode(await response.get_data(), type=RoutesView) == node.routes()
    body = {"node": "pm-1", "prefixes": ["10.1.0.0/16"]}
    root = {"state": {"uid": os.geteuid()}}
    for path in ("/v1/routes/approvals", "/v1/routes/withdrawals"):
        denied = await ask(app, "POST", path, json=body, scope_base={"state": {"uid": 65_534}})
        assert "only root may" in (await problem(denied, 403)).detail
        for wrong in ({"node": "pm-1"}, {"node": "pm-1", "prefixes": []}, {**body, "more": 1}):
            assert (await ask(app, "POST", path, json=wrong, scope_base=root)).status_code == 400
        done = await ask(app, "POST", path, json=body, scope_base=root)
        assert msgspec.json.decode(await done.get_data(), type=RouteResult).prefixes == ["10.1.0.0/16"]
    assert node.decided == [
        ("approve", "pm-1", ("10.1.0.0/16",)),
        ("withdraw", "pm-1", ("10.1.0.0/16",)),
    ]


async def test_pacts_with_other_meshes_are_read_made_and_ended_by_root_alone() -> None:
    node = FakeNode()
    app = app_of(node)
    response = await ask(app, "GET", "/v1/federation")
    assert msgspec.json.decode(await response.get_data(), type=FederationView) == node.federation()
    service = ["db:tcp/5432:web"]
    for path, body in (
        ("/v1/federation/invites", {"services": service}),
        ("/v1/federation/pacts", {"line": "pmf1_line", "services": service}),
        ("/v1/federation/ends", {"pact": "00"}),
    ):
        denied = await ask(app, "POST", path, json=body, scope_base={"state": {"uid": 65_534}})
        assert "only root may" in (await problem(denied, 403)).detail
        root = {"state": {"uid": os.geteuid()}}
        wrong = await ask(app, "POST", path, json={**body, "more": 1}, scope_base=root)
        assert wrong.status_code == 400
        assert (await ask(app, "POST", path, json=body, scope_base=root)).status_code == 200
    assert node.decided == [
        ("invite-mesh", "", tuple(service)),
        ("accept-pact", "pmf1_line", tuple(service)),
        ("end-pact", "00", ()),
    ]


async def test_a_route_is_explained_and_a_wrong_destination_is_named() -> None:
    node = FakeNode()
    for dest in ("pm-1", "id002", "10.1.2.3", "192.0.2.1"):
        response = await ask(node, "GET", f"/v1/routes/explain?dest={dest}")
        assert msgspec.json.decode(await response.get_data(), type=Explanation) == node.explain(dest)
    for wrong in ("", "?dest="):
        assert "dest" in (await problem(await ask(node, "GET", f"/v1/routes/explain{wrong}"), 400)).detail
    assert "pm-7" in (await problem(await ask(node, "GET", "/v1/routes/explain?dest=pm-7"), 404)).detail
    node.twins = True
    refused = await problem(await ask(node, "GET", "/v1/routes/explain?dest=pm-1"), 409)
    assert refused.candidates == ["id001", "id002"]


async def test_netcheck_is_what_the_node_finds() -> None:
    node = FakeNode()
    response = await ask(node, "GET", "/v1/netcheck")
    assert msgspec.json.decode(await response.get_data(), type=NetCheck) == await node.netcheck()


async def test_a_name_that_two_members_have_is_refused_everywhere() -> None:
    node = FakeNode()
    node.twins = True
    app = app_of(node)
    for refused in (
        await ask(app, "GET", "/v1/peers/pm-1"),
        await ask(app, "GET", "/v1/proofs/export?peer=pm-1"),
        await rotate(app, "pm-1"),
        await rotate(app, "pm-1", query="?dry_run=true"),
    ):
        body = await problem(refused, 409)
        assert body.detail == "several members are named pm-1"
        assert body.candidates == ["id001", "id002"]
        assert body.fix == "give one of id001, id002"
    assert node.rotated == []
    for known in ("id001", "id002"):
        found = await (await ask(app, "GET", f"/v1/peers/{known}")).get_data()
        assert msgspec.json.decode(found, type=PeerView).node_id == known
        assert (await rotate(app, known)).status_code == 200
        assert await (await ask(app, "GET", f"/v1/proofs/export?peer={known}")).get_data() == known.encode()
    assert node.rotated == ["id001", "id002"]


async def test_a_dry_run_changes_nothing() -> None:
    node = FakeNode()
    response = await rotate(app_of(node), "pm-2", query="?dry_run=true")
    planned = msgspec.json.decode(await response.get_data(), type=RotationResult)
    assert planned.dry_run
    assert [(each.peer, each.result, each.epoch) for each in planned.rotations] == [("pm-2", "planned", 3)]
    assert node.rotated == []


async def test_the_same_key_rotates_once() -> None:
    node = FakeNode()
    app = app_of(node)
    first = await rotate(app, "pm-2", "k")
    again = await rotate(app, "pm-2", "k")
    assert await again.get_data() == await first.get_data()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert node.rotated == ["id002"]
    await problem(await rotate(app, "pm-1", "k"), 422)
    await problem(await rotate(app, "pm-2", "k", "?dry_run=true"), 422)
    await rotate(app, "pm-2", "other")
    assert node.rotated == ["id002", "id002"]
    await problem(await rotate(app, "pm-2", "x" * 256), 400)
    await problem(await rotate(app, "pm-2", ""), 400)


async def test_a_key_under_way_is_a_conflict_and_a_failed_one_is_free(nursery: trio.Nursery) -> None:
    node = FakeNode()
    app = app_of(node)
    started, finish = trio.Event(), trio.Event()

    async def wait() -> None:
        started.set()
        await finish.wait()
        node.failure = PhantomMeshError("no answer")

    node.on_rotate = wait
    done = trio.Event()

    async def first() -> None:
        await problem(await rotate(app, "pm-2", "k"), 409)
        done.set()

    nursery.start_soon(first)
    await started.wait()
    assert "under way" in (await problem(await rotate(app, "pm-2", "k"), 409)).detail
    finish.set()
    await done.wait()
    node.on_rotate = node.failure = None
    assert (await rotate(app, "pm-2", "k")).status_code == 200


async def test_the_memory_of_keys_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    cache = IdempotencyCache()
    done: list[str] = []

    async def act(name: str) -> bytes:
        done.append(name)
        return b"x"

    for number in range(MAX_KEYS + 5):
        await cache.once("k", b"", partial(act, str(number)), by=f"caller {number}")
    assert len(cache._entries) == MAX_KEYS
    last = f"caller {MAX_KEYS}"
    assert await cache.once("k", b"", partial(act, "never"), by=last) == (b"x", True)
    await trio.sleep(LIFE_S)
    await cache.once("k", b"", partial(act, "after a day"), by=last)
    assert done[-1] == "after a day"
    assert len(cache._entries) == 1


async def test_nobody_has_anothers_key_forgotten_or_finds_out_about_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else whoever may write at all has another's retry done twice, or refused."""
    cache = IdempotencyCache()
    done: list[str] = []

    async def act(name: str) -> bytes:
        done.append(name)
        return name.encode()

    await cache.once("k", b"one", partial(act, "first"), by="alice")
    assert await cache.once("k", b"two", partial(act, "second"), by="bob") == (b"second", False)
    for number in range(2 * MAX_KEYS):
        await cache.once(f"k{number}", b"", partial(act, "flood"), by="bob")
    assert await cache.once("k", b"one", partial(act, "again"), by="alice") == (b"first", True)
    assert len(cache._entries) == 1 + MAX_OF_CALLER
    assert "again" not in done


def sample(node: FakeNode, **labels: str) -> float | None:
    return node.metrics.registry.get_sample_value("phantommesh_api_request_seconds_count", labels)


async def test_requests_are_timed_with_bounded_labels() -> None:
    node = FakeNode()
    app = app_of(node)
    await ask(app, "GET", "/v1/peers/pm-1")
    await ask(app, "GET", "/v1/peers/pm-2")
    await ask(app, "BREW", "/coffee")
    await ask(app, "GET", "/a")
    assert sample(node, route="/v1/peers/{peer}", method="GET", status="200") == 2
    assert sample(node, route="unmatched", method="GET", status="404") == 1
    assert sample(node, route="unmatched", method="other", status="404") == 1
    response = await ask(app, "GET", "/metrics")
    assert response.content_type.startswith("text/plain; version=")
    assert b"coffee" not in await response.get_data()


async def test_proofs_are_exported_whole_or_of_one_peer() -> None:
    node = FakeNode()
    for query, exported in (("", b"proofs"), ("?peer=pm-2", b"id002"), ("?peer=id001", b"id001")):
        response = await ask(node, "GET", f"/v1/proofs/export{query}")
        assert response.content_type == "application/octet-stream"
        assert await response.get_data() == exported
    await problem(await ask(node, "GET", "/v1/proofs/export?peer=nobody"), 404)
    node.failure = ProofError("there are no scatter proofs yet")
    await problem(await ask(node, "GET", "/v1/proofs/export"), 409)


async def test_tcp_without_a_token_serves_only_what_needs_none() -> None:
    node = FakeNode()
    app = app_of(node, trusted=False)
    local = {"Host": "127.0.0.1:9000"}
    here = {"client": ("127.0.0.1", 40_000), "server": ("127.0.0.1", 9000)}
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await ask(app, "GET", path, headers=local, scope_base=here)).status_code == 200
    v1 = ("status", "peers", "links", "paths", "scatter", "proofs", "proofs/export")
    for path in (f"/v1/{name}" for name in v1):
        await problem(await ask(app, "GET", path, headers=local), 401)
    await problem(await ask(app, "POST", "/v1/rotations", headers=local), 401)
    for endpoint in ENDPOINTS:
        if endpoint.method != "WS":
            path = endpoint.path.replace("{peer}", "pm-1")
            answer = await ask(app, endpoint.method, path, headers=local)
            assert (answer.status_code == 401) == (endpoint.scope is not None), path
    # The metrics are open to this machine, and to nobody else without a token.
    for client in ("192.0.2.7", "fd00::7"):
        far = {"client": (client, 40_000), "server": ("192.0.2.1", 9000)}
        answer = await ask(app, "GET", "/metrics", headers={"Host": "192.0.2.1:9000"}, scope_base=far)
        await problem(answer, 401)
    assert node.rotated == []
    await problem(await ask(app, "GET", "/metrics", headers={"Host": "evil.example"}), 421)


# --- over real sockets ---


@asynccontextmanager
async def serving(
    node: FakeNode, path: Path, **options: Any
) -> AsyncIterator[tuple[list[str], trio.CancelScope]]:
    async with trio.open_nursery() as nursery:
        serve = partial(serve_api, node, socket_path=path, group=NO_GROUP, **options)
        addresses = await nursery.start(serve)
        yield addresses, nursery.cancel_scope
        nursery.cancel_scope.cancel()


async def in_thread(call: Callable[[], Any]) -> Any:
    return await trio.to_thread.run_sync(call)


async def test_the_client_talks_to_the_server(tmp_path: Path) -> None:
    node, path = FakeNode(peers=3), tmp_path / "run" / "api.sock"
    async with serving(node, path) as (addresses, _):
        assert addresses == [f"unix:{path}"]
        client = NodeClient(path)
        assert await in_thread(client.status) == node.status()
        links = await in_thread(lambda: client.get_all("/v1/links", LinkView))
        assert links == node.links()
        result = await in_thread(lambda: client.rotate("pm-2", dry_run=False, idempotency_key="k"))
        assert result.rotations[0].result == "rotated"
        with pytest.raises(ApiError) as error:
            await in_thread(lambda: client.rotate("nobody", dry_run=False, idempotency_key="k2"))
        assert str(error.value) == "no such peer in the mesh: 'nobody'"
        assert error.value.fix
    assert not path.exists()
    with pytest.raises(NodeNotRunningError):
        await in_thread(client.status)


async def test_the_client_reads_every_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phantommesh.client.http.PAGE_LIMIT", 2)
    node, path = FakeNode(peers=5), tmp_path / "api.sock"
    async with serving(node, path):
        peers = await in_thread(lambda: NodeClient(path).get_all("/v1/peers", PeerView))
    assert [peer.node_id for peer in peers] == [f"id{number:03}" for number in range(1, 6)]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_root_and_the_group_may_connect(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    old = os.umask(0)
    try:
        unix = listen_unix(path, group=NO_GROUP)
        assert mode(path) == 0o600
        unix.remove()
        group = grp.getgrgid(os.getgid())
        unix = listen_unix(path, group=group.gr_name)
        assert mode(path) == 0o660
        assert path.stat().st_gid == group.gr_gid
        unix.remove()
    finally:
        os.umask(old)
    assert list(tmp_path.iterdir()) == []


def test_the_group_gets_through_a_directory_that_the_node_makes(tmp_path: Path) -> None:
    """A node that is started with a umask of 077, as by a careful root's shell."""
    old = os.umask(0o077)
    try:
        listen_unix(tmp_path / "run" / "api.sock", group=NO_GROUP).remove()
    finally:
        os.umask(old)
    assert mode(tmp_path / "run") == 0o755


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))  # as a killed node leaves it: bound, nobody listens
    unix = listen_unix(path, group=NO_GROUP)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    unix.remove()


async def test_a_live_node_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with serving(FakeNode(), path):
        with pytest.raises(ApiSocketError) as error:
            await in_thread(lambda: listen_unix(path, group=NO_GROUP))
        assert str(error.value) == f"node pm-0 of mesh lab (pid {os.getpid()}) already answers on {path}"
        assert await in_thread(NodeClient(path).status)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_never_deleted(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "api.sock", tmp_path / "target"
    target.write_text("precious")
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(target)
    with pytest.raises(ApiSocketError, match="is not a socket"):
        listen_unix(path, group=NO_GROUP)
    assert path.is_symlink() or path.exists()
    assert target.read_text() == "precious"


def test_a_node_does_not_remove_its_successors_socket(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    first = listen_unix(path, group=NO_GROUP)
    first.listener.close()  # the first one died; the second took over
    second = listen_unix(path, group=NO_GROUP)
    first.remove()
    assert path.exists()
    second.remove()
    assert not path.exists()


def test_a_socket_that_got_an_old_ones_inode_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    first = listen_unix(path, group=NO_GROUP)
    path.unlink()  # somebody tidied up, and the file system gives the inode to the next file
    second = listen_unix(path, group=NO_GROUP)
    dataclasses.replace(first, inode=second.inode).remove()
    assert path.exists()
    second.remove()
    assert not path.exists()


def test_a_path_too_long_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ApiSocketError, match="too long"):
        listen_unix(tmp_path / ("x" * 120), group=NO_GROUP)


async def test_tcp_on_loopback(tmp_path: Path) -> None:
    node = FakeNode()
    async with serving(node, tmp_path / "api.sock", listen="127.0.0.1:0") as (addresses, _):
        port = int(addresses[1].rsplit(":", 1)[1])
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        async with stream:
            await stream.send_all(b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            with trio.fail_after(10):
                answer = b"".join([part async for part in stream])
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "[::]:80", "192.0.2.1:80"])
def test_off_loopback_in_clear_is_refused(listen: str) -> None:
    with pytest.raises(ApiSocketError, match="needs TLS") as error:
        listen_tcp(listen)
    assert error.value.fix


@pytest.mark.parametrize("listen", ["", "80", "host:80", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:²"])
def test_a_listen_that_is_no_address_is_said_so(listen: str) -> None:
    with pytest.raises(ApiSocketError, match="not an address and a port"):
        listen_tcp(listen)


REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def fill_up(stream: trio.SocketStream) -> None:
    """Ask and never read, until the server's own writes are stuck."""
    with trio.move_on_after(0.5):
        while True:
            await stream.send_all(REQUEST)


async def test_a_client_that_stops_reading_does_not_hold_up_the_shutdown(tmp_path: Path) -> None:
    path, shutdown = tmp_path / "api.sock", trio.Event()
    with trio.fail_after(20):
        async with (
            serving(FakeNode(), path, shutdown=shutdown, grace=0.2),
            await trio.open_unix_socket(path) as greedy,
        ):
            await fill_up(greedy)
            shutdown.set()
            while path.exists():
                await trio.sleep(0.01)


async def test_a_client_that_stops_reading_does_not_hold_up_a_cancel(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with trio.fail_after(20):
        async with (
            serving(FakeNode(), path) as (_, scope),
            await trio.open_unix_socket(path) as greedy,
        ):
            await fill_up(greedy)
            scope.cancel()
            with trio.CancelScope(shield=True):
                while path.exists():
                    await trio.sleep(0.01)


async def test_a_request_under_way_is_answered_at_shutdown(tmp_path: Path) -> None:
    node, path, shutdown = FakeNode(), tmp_path / "api.sock", trio.Event()
    started, finish = trio.Event(), trio.Event()

    async def wait() -> None:
        started.set()
        await finish.wait()

    node.on_rotate = wait
    results: list[RotationResult] = []

    async def rotate_it() -> None:
        client = NodeClient(path)
        results.append(await in_thread(lambda: client.rotate(None, dry_run=False, idempotency_key="k")))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            serve = partial(serve_api, node, socket_path=path, group=NO_GROUP, shutdown=shutdown, grace=10)
            await nursery.start(serve)
            nursery.start_soon(rotate_it)
            await started.wait()
            shutdown.set()
            await trio.testing.wait_all_tasks_blocked(0.05)
            finish.set()
    assert len(results[0].rotations) == 2


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
async def test_a_connection_that_must_close_closes(tmp_path: Path, version: bytes) -> None:
    path = tmp_path / "api.sock"
    async with serving(FakeNode(), path), await trio.open_unix_socket(path) as stream:
        await stream.send_all(
            b"GET /healthz HTTP/" + version + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        with trio.fail_after(10):
            answer = b"".join([part async for part in stream])
    assert answer.endswith(b'{"status":"ok","state":"running"}')


async def test_a_target_without_a_path_is_a_problem_too(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    async with serving(FakeNode(), path), await trio.open_unix_socket(path) as stream:
        await stream.send_all(b"GET ?x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        with trio.fail_after(10):
            answer = b"".join([part async for part in stream])
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("request_first", [False, True])
async def test_a_connection_its_client_closed_is_gone_at_once(request_first: bool) -> None:
    ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
    serve = connection_handler(create_app(FakeNode(), Door(trusted=True)), WorkerContext(None))
    with trio.fail_after(4):  # hypercorn's keep-alive timeout is 5 s
        async with trio.open_nursery() as nursery:

            async def serving() -> None:
                await serve(theirs)

            nursery.start_soon(serving)
            if request_first:
                await ours.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                while b"ok" not in await ours.receive_some():
                    pass
            await ours.aclose()


async def test_junk_on_the_socket_ends_only_its_connection(tmp_path: Path) -> None:
    node, path = FakeNode(), tmp_path / "api.sock"
    async with serving(node, path):
        for junk in (
            b"\x00\xff" * 50,
            b"GET / HTTP/9.9\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" * 3,
            b"GET",
        ):
            async with await trio.open_unix_socket(path) as stream:
                await stream.send_all(junk)
                await stream.send_eof()
                with trio.fail_after(10):
                    try:
                        async for _ in stream:
                            pass
                    except trio.BrokenResourceError:
                        pass
        assert await in_thread(NodeClient(path).status)


async def test_a_websocket_where_there_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    handshake = (
        b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with serving(FakeNode(), path):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(handshake)
            with trio.fail_after(10):
                answer = await stream.receive_some()
        assert answer.split()[1][:1] == b"4"
        assert await in_thread(NodeClient(path).status)


ROOT: dict[str, int | None] = {"uid": 0}


async def revoke(
    app: QuartTrio,
    body: object,
    query: str = "",
    key: str | None = None,
    *,
    state: dict[str, int | None] = ROOT,
) -> Response:
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key is not None else {})
    return await ask(
        app, "POST", "/v1/revocations" + query, data=msgspec.json.encode(body), headers=headers,
        scope_base={"state": state},
    )  # fmt: skip


async def test_revocation() -> None:
    node = FakeNode()
    app = app_of(node)
    answer = await revoke(app, {"node": "pm-2"}, key="k")
    result = msgspec.json.decode(await answer.get_data(), type=RevocationResult)
    assert (result.name, result.already, result.dry_run) == ("pm-2", False, False)
    assert (await revoke(app, {"node": "pm-2"}, key="k")).headers["Idempotency-Replayed"] == "true"
    await revoke(app, {"node": "pm-1", "force": True})
    assert node.revoked == [("pm-2", False), ("pm-1", True)]
    planned = msgspec.json.decode(
        await (await revoke(app, {"node": "pm-2"}, "?dry_run=true")).get_data(), type=RevocationResult
    )
    assert planned.dry_run and planned.revoked_at is None
    bad: object
    for bad in ({}, {"node": 1}, {"node": "a", "more": 1}, []):
        await problem(await revoke(app, bad), 400)
    await problem(await revoke(app, {"peer": "pm-2"}, key="r"), 400)
    node.failure = PhantomMeshError("this node is not an authority", fix="ask one: pm-0")
    assert (await problem(await revoke(app, {"node": "pm-2"}), 409)).fix == "ask one: pm-0"
    assert len(node.revoked) == 2


async def test_the_root_takes_nodes_back() -> None:
    node = FakeNode()
    app = app_of(node)
    for body, back in (({"node": "pm-2", "undo": True}, 1), ({"node": "pm-1", "undo_all": True}, 20)):
        for query in ("?dry_run=true", ""):
            answer = await revoke(app, body, query)
            result = msgspec.json.decode(await answer.get_data(), type=RevocationResult)
            assert (result.taken_back, result.dry_run) == (back, bool(query))
    assert node.undone == ["pm-2", "pm-1"]
    state: dict[str, int | None] = {"uid": os.geteuid() + 1}
    assert (await problem(await revoke(app, {"node": "pm-2", "undo": True}, state=state), 403)).fix
    await problem(await revoke(app, {"node": "pm-2", "undo": 1}), 400)


@pytest.mark.parametrize(
    "state", [{"uid": os.geteuid() + 1}, {"uid": None}, {}], ids=["other", "tcp", "none"]
)
async def test_the_group_does_not_revoke(state: dict[str, int | None]) -> None:
    """A revocation has no way back; whoever is in the group may do everything else."""
    node = FakeNode()
    app = app_of(node)
    assert (await revoke(app, {"node": "pm-2"}, key="k")).status_code == 200
    for body in ({"node": "pm-1", "force": True}, {"node": "pm-2"}):
        refused = await problem(await revoke(app, body, key="k", state=state), 403)
        assert "root" in refused.detail and "sudo" in refused.fix
    assert node.revoked == [("pm-2", False)]
    assert (await revoke(app, {"node": "pm-1"}, "?dry_run=true", state=state)).status_code == 200
    assert (await rotate(app, "pm-2")).status_code == 200


async def replace(
    app: QuartTrio, body: bytes = b"{}", key: str | None = None, *, state: dict[str, int | None] = ROOT
) -> Response:
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key is not None else {})
    return await ask(
        app, "POST", "/v1/identities", data=body, headers=headers, scope_base={"state": state}
    )  # fmt: skip


async def test_a_new_identity() -> None:
    node = FakeNode()
    app = app_of(node)
    result = msgspec.json.decode(await (await replace(app, key="k")).get_data(), type=IdentityResult)
    assert (result.name, result.node_id, result.old_node_id) == ("pm-0", "id777", "id000")
    assert (await replace(app, key="k")).headers["Idempotency-Replayed"] == "true"
    assert node.replaced == 1
    await problem(await replace(app, b'{"more": 1}'), 400)
    node.failure = PhantomMeshError("no authority gives this node a new identity", fix="start an authority")
    assert (await problem(await replace(app), 409)).fix == "start an authority"


@pytest.mark.parametrize(
    "state", [{"uid": os.geteuid() + 1}, {"uid": None}, {}], ids=["other", "tcp", "none"]
)
async def test_the_group_does_not_replace_the_identity(state: dict[str, int | None]) -> None:
    node = FakeNode()
    refused = await problem(await replace(app_of(node), state=state), 403)
    assert "root" in refused.detail and "sudo" in refused.fix
    assert node.replaced == 0


async def test_who_the_node_runs_as_revokes(tmp_path: Path) -> None:
    node, path = FakeNode(), tmp_path / "api.sock"
    async with serving(node, path):
        await in_thread(
            lambda: NodeClient(path).revoke("pm-2", force=False, dry_run=False, idempotency_key="k")
        )
    assert node.revoked == [("pm-2", False)]


def test_who_is_at_the_other_end_of_a_socket() -> None:
    one, two = socket.socketpair()
    with one, two:
        assert peer_uid(one) == os.geteuid()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert peer_uid(listener) is None


async def test_a_key_of_a_rotation_is_not_one_of_a_revocation() -> None:
    app = app_of(FakeNode())
    assert (await revoke(app, {"node": "pm-2"}, key="k")).status_code == 200
    rotation = await ask(
        app, "POST", "/v1/rotations", json={"peer": "pm-2"}, headers={"Idempotency-Key": "k"},
        scope_base={"state": {"uid": os.geteuid()}},
    )  # fmt: skip
    await problem(rotation, 422)


async def test_bans_are_made_lifted_and_shown() -> None:
    node, root = FakeNode(), {"state": {"uid": os.geteuid()}}
    shown = msgspec.json.decode(await (await ask(node, "GET", "/v1/bans")).get_data(), type=BansView)
    assert [one.network for one in shown.bans] == ["192.0.2.250/32"]
    await ask(node, "POST", "/v1/bans", json={"network": "192.0.2.9", "seconds": 60})
    await ask(node, "POST", "/v1/bans?dry_run=true", json={"network": "192.0.2.9"})
    assert node.asked == [("192.0.2.9", 60.0, False)]
    done = await ask(node, "DELETE", "/v1/bans?by=own", scope_base=root)
    lifted = msgspec.json.decode(await done.get_data(), type=UnbanResult).lifted
    assert [one.network for one in lifted] == ["192.0.2.250/32"] and node.lifted == [(None, "own")]
    for body in ({"network": "192.0.2.9", "seconds": 0}, {"network": "x" * 65}, {"for": "10m"}):
        await problem(await ask(node, "POST", "/v1/bans", json=body), 400)
    await problem(await ask(node, "DELETE", "/v1/bans?who=me"), 400)


async def test_the_meshs_policy_is_signed_by_root_alone_and_tried_by_the_group() -> None:
    node, body = FakeNode(), {"policy": 'default = "deny"'}
    tried = await ask(node, "POST", "/v1/acl/policy?dry_run=true", json=body)
    assert msgspec.json.decode(await tried.get_data(), type=PolicyResult).dry_run and not node.policies
    await problem(await ask(node, "POST", "/v1/acl/policy", json=body), 403)
    done = await ask(node, "POST", "/v1/acl/policy", json=body, scope_base={"state": ROOT})
    assert done.status_code == 200 and node.policies == [body["policy"]]
    node.failure = PhantomMeshError("the policy fails its test", fix="correct the rule")
    refused = await problem(
        await ask(node, "POST", "/v1/acl/policy?dry_run=true", json=body, scope_base={"state": ROOT}), 409
    )
    assert refused.fix == "correct the rule"


async def test_draining_is_begun_shown_and_ended() -> None:
    node, root = FakeNode(), {"state": {"uid": os.geteuid()}}
    begun = await ask(node, "POST", "/v1/drain", json={"seconds": 60, "force": True}, scope_base=root)
    assert begun.status_code == 200 and (await begun.get_json())["forced"] is True
    shown = await (await ask(node, "GET", "/v1/drain")).get_json()
    assert shown["state"] == "drained" and shown["by"] == "operator"
    assert (await (await ask(node, "POST", "/v1/undrain")).get_json())["state"] == "working"
    dry = await (await ask(node, "POST", "/v1/drain?dry_run=true")).get_json()
    assert dry["state"] == "working"
    for body in ({"seconds": 0}, {"seconds": 1e9}, {"force": 1}, {"more": 1}):
        await problem(await ask(node, "POST", "/v1/drain", json=body), 400)
    node.failure = DrainRefusedError("b drains in the region eu", fix="wait")
    refused = await problem(await ask(node, "POST", "/v1/drain"), 409)
    assert refused.fix == "wait"


async def test_a_dry_run_lifts_no_ban_and_ends_no_drain() -> None:
    node = FakeNode()
    tried = await ask(node, "DELETE", "/v1/bans?network=192.0.2.250/32&dry_run=true")
    found = msgspec.json.decode(await tried.get_data(), type=UnbanResult)
    assert found.dry_run and [one.network for one in found.lifted] == ["192.0.2.250/32"] and not node.lifted
    await ask(node, "POST", "/v1/drain")
    before = node.draining
    assert before.state == "drained"
    shown = msgspec.json.decode(
        await (await ask(node, "POST", "/v1/undrain?dry_run=true")).get_data(), type=DrainView
    )
    assert shown == before == node.draining


async def test_an_invite_is_shown_once_and_is_on_no_record() -> None:
    node = FakeNode()
    app, root, key = app_of(node), {"state": {"uid": 0}}, {"Idempotency-Key": "k"}
    body = {"name": "nas", "seconds": 600}
    tried = await ask(app, "POST", "/v1/invites?dry_run=true", json=body, scope_base=root)
    planned = msgspec.json.decode(await tried.get_data(), type=InviteMade)
    assert planned.dry_run and planned.invite is None and not node.invited
    made = await ask(app, "POST", "/v1/invites", json=body, headers=key, scope_base=root)
    done = msgspec.json.decode(await made.get_data(), type=InviteMade)
    assert done.invite == "pm1_line" and [one.name for one in node.invited] == ["nas"]
    assert "pm1_line" not in repr(done)
    # Asked again, it is neither made again nor shown again.
    again = await problem(await ask(app, "POST", "/v1/invites", json=body, headers=key, scope_base=root), 409)
    assert "shown once" in again.detail and len(node.invited) == 1
    assert "pm1_line" not in repr(node.audit.entries)
    assert node.audit.entries[0].asked["name"] == "nas"
    # The socket's group may not.
    other = {"state": {"uid": 4711}}
    await problem(await ask(app, "POST", "/v1/invites", json=body, scope_base=other), 403)
    assert len(node.invited) == 1


async def test_the_configuration_is_put_whole() -> None:
    node = FakeNode()
    app, root = app_of(node), {"state": {"uid": 0}}
    before, text = node.config, '[node]\nname = "pm-0"\nmesh = "lab"\n'
    shown = msgspec.json.decode(await (await ask(app, "GET", "/v1/config")).get_data(), type=ConfigView)
    assert shown.config == before
    tried = await ask(app, "PUT", "/v1/config?dry_run=true", json={"config": text}, scope_base=root)
    assert msgspec.json.decode(await tried.get_data(), type=ConfigResult).dry_run and node.config == before
    await ask(app, "PUT", "/v1/config", json={"config": text}, scope_base=root)
    assert node.config == text
    entry = node.audit.entries[-1]
    assert (entry.who, entry.method, entry.path, entry.status) == ("uid 0", "PUT", "/v1/config", 200)
    node.failure = PhantomMeshError("log.level = 7 is not a level", fix="set it to info")
    refused = await problem(await ask(app, "PUT", "/v1/config", json={"config": "x"}, scope_base=root), 409)
    assert "log.level" in refused.detail and refused.fix
    await problem(
        await ask(app, "PUT", "/v1/config", json={"config": text}, scope_base={"state": {"uid": 4711}}), 403
    )


async def test_the_status_is_kept_for_a_moment_and_until_something_happens(
    autojump_clock: trio.testing.MockClock,
) -> None:
    node = FakeNode()
    app = app_of(node)

    async def peers() -> int:
        response = await ask(app, "GET", "/v1/status")
        return msgspec.json.decode(await response.get_data(), type=Status).peers_total

    assert await peers() == 2
    node.count = 3
    assert await peers() == 2
    node.events.publish("peer.joined", "pm-3", {})
    assert await peers() == 3
    node.count = 4
    await trio.sleep(STATUS_AGE)
    assert await peers() == 4


def test_many_readers_are_told_in_turn_and_a_few_at_once() -> None:
    assert [events.delay(turn, events.FEW_READERS) for turn in range(events.FEW_READERS)] == [0.0] * 8
    turns = sorted(events.delay(turn, 200) for turn in range(200))
    assert turns == [events.SPREAD * turn for turn in range(200)]
    assert events.delay(255, 9) < 9 * events.SPREAD
