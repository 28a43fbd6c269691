# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what over TCP: every endpoint of the table with every kind of token, by every kind of name."""

import re
import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import pytest
import trio
from quart import Response
from quart.testing import WebsocketResponseError
from quart.testing.connections import WebsocketDisconnectError
from quart_trio import QuartTrio
from werkzeug.datastructures import Headers

from phantommesh.management.docspage import POLICY
from phantommesh.management.endpoints import COMMON, ENDPOINTS, Endpoint
from phantommesh.management.scopes import Scope
from phantommesh.management.tokens import Looked, Token
from phantommesh.management.views import Problem
from phantommesh.nursery.api import events
from phantommesh.nursery.api.app import create_app
from phantommesh.nursery.api.auth import (
    BEARER_PROTOCOL,
    EVENTS_PROTOCOL,
    MOST_BLOCKS,
    WRONG_BURST,
    WRONG_RATE,
    Door,
    Guessing,
    host_of,
)
from tests.nursery.api.test_api import leaves
from tests.support.fakenode import FakeNode

HOST: Final = "192.0.2.1:8480"
FAR: Final = {"client": ("198.51.100.7", 40_000), "server": ("192.0.2.1", 8480)}
NEAR: Final = {"client": ("127.0.0.1", 40_000), "server": ("127.0.0.1", 8480)}
RANKS: Final = {Scope.READ: 1, Scope.OPERATE: 2, Scope.ADMIN: 3}
KINDS: Final = (
    "none", "read", "operate", "admin", "expired", "revoked", "unknown", "malformed", "basic", "twice",
    "wrong host", "wrong origin", "no origin", "own origin",
)  # fmt: skip


def remote(node: FakeNode) -> QuartTrio:
    return create_app(node, Door(trusted=False, hosts=frozenset({"vpn.example.net"})))


def token_of(node: FakeNode, kind: str) -> str:
    match kind:
        case "read" | "operate" | "admin":
            return node.tokens.grant(Scope(kind))
        case "expired":
            return node.tokens.grant(Scope.ADMIN, 10.0, now=time.time() - 11)
        case "revoked":
            text = node.tokens.grant(Scope.ADMIN)
            node.tokens.book, _ = node.tokens.book.revoke(node.tokens.book.tokens[-1].id, time.time())
            return text
        case "unknown":
            return "pmt_" + "A" * 43
        case "malformed":
            return "pmt_short"
        case _:
            return node.tokens.grant(Scope.ADMIN)


def headers_of(node: FakeNode, kind: str) -> list[tuple[str, str]]:
    host = "evil.example:8480" if kind == "wrong host" else HOST
    given = [("Host", host)]
    if kind != "none":
        scheme = "Basic" if kind == "basic" else "Bearer"
        given.append(("Authorization", f"{scheme} {token_of(node, kind)}"))
    if kind == "twice":
        given.append(("Authorization", f"Bearer {token_of(node, 'admin')}"))
    origin = {"wrong origin": "http://evil.example", "no origin": "null", "own origin": f"http://{HOST}"}
    if kind in origin:
        given.append(("Origin", origin[kind]))
    return given


def wanted(endpoint: Endpoint[Any], kind: str) -> int | None:
    """The status of a refusal; None: it is let in."""
    match kind:
        case "wrong host":
            return 421
        case "wrong origin" | "no origin":
            return 403
    if endpoint.scope is None:
        return None
    rank = RANKS[endpoint.scope]
    match kind:
        case "read" | "operate":
            return None if RANKS[Scope(kind)] >= rank else 403
        case "admin" | "own origin":
            return None
        case _:
            return 401


def path_of(endpoint: Endpoint[Any]) -> str:
    return re.sub(r"{\w+}", "pm-1", endpoint.path)


async def send(
    app: QuartTrio, endpoint: Endpoint[Any], headers: list[tuple[str, str]], **options: Any
) -> Response | None:
    """None: a WebSocket was opened."""
    options = {"scope_base": FAR, "headers": Headers(headers), **options}
    client = app.test_client()
    if endpoint.method != "WS":
        return await client.open(path_of(endpoint), method=endpoint.method, **options)
    refused: BaseException
    try:
        with trio.fail_after(20):
            async with client.websocket(f"{path_of(endpoint)}?since=oldest", **options) as websocket:
                assert "peer.up" in await websocket.receive()
                return None
    except WebsocketResponseError as error:
        refused = error
    except BaseExceptionGroup as group:
        (refused,) = leaves(group)
    assert isinstance(refused, WebsocketResponseError)
    return refused.response


async def problem_of(response: Response) -> Problem:
    assert response.content_type == "application/problem+json"
    return msgspec.json.decode(await response.get_data(), type=Problem)


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: f"{endpoint.method}-{endpoint.name}")
async def test_every_path_with_every_kind_of_token(endpoint: Endpoint[Any]) -> None:
    node = FakeNode()
    node.events.publish("peer.up", None, {})  # what an open WebSocket tells
    app = remote(node)
    for kind in KINDS:
        node.audit.entries.clear()
        await one_kind(node, app, endpoint, kind)


async def one_kind(node: FakeNode, app: QuartTrio, endpoint: Endpoint[Any], kind: str) -> None:
    headers, before = headers_of(node, kind), snapshot(node)
    response = await send(app, endpoint, headers)
    refusal = wanted(endpoint, kind)
    if refusal is None:
        if response is not None:
            assert response.status_code not in (401, 403, 421, 429), kind
            assert response.status_code in {200} | endpoint.errors | COMMON, kind
        return
    assert response is not None and response.status_code == refusal, kind
    told = await problem_of(response)
    assert told.detail and told.fix
    assert snapshot(node) == before  # nothing was done
    if refusal == 401:
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")
        for word in ("expired", "revoked", "unknown", "malformed"):  # a guesser is not told what is wrong
            assert word not in (told.detail + told.fix + response.headers["WWW-Authenticate"]).lower()
    if endpoint.method not in ("GET", "WS"):
        (entry,) = node.audit.entries
        assert (entry.method, entry.path, entry.status) == (endpoint.method, path_of(endpoint), refusal)
        assert entry.address == "198.51.100.7" and entry.denied == (refusal != 421)
        for word in ("expired", "revoked", "unknown", "malformed"):  # the operator is
            shape = "malformed" if kind in ("basic", "twice") else kind
            assert (word in entry.who) == (shape == word), entry.who


def snapshot(node: FakeNode) -> tuple[object, ...]:
    return (
        list(node.rotated), list(node.revoked), node.replaced, list(node.decided), list(node.asked),
        list(node.lifted), dict(node.phases), node.draining, node.name, list(node.pinged),
        node.tokens.book, list(node.invited), node.config,
    )  # fmt: skip


async def test_an_expired_a_revoked_and_an_unknown_token_are_refused_alike() -> None:
    node = FakeNode()
    app, (endpoint,) = remote(node), [each for each in ENDPOINTS if each.name == "status"]
    answers = []
    for kind in ("expired", "revoked", "unknown", "malformed", "basic", "twice"):
        response = await send(app, endpoint, headers_of(node, kind))
        assert response is not None
        answers.append((response.status_code, sorted(response.headers), await response.get_data()))
    assert all(answer == answers[0] for answer in answers)


async def test_an_admin_token_may_what_root_may_and_an_operator_a_little() -> None:
    node = FakeNode()
    app = remote(node)
    (ban,) = [each for each in ENDPOINTS if each.name == "ban"]
    for kind, body, status in (
        ("operate", {"network": "192.0.2.7"}, 200),
        ("operate", {"network": "192.0.2.7", "force": True}, 403),
        ("admin", {"network": "192.0.2.7", "force": True}, 200),
    ):
        response = await send(app, ban, headers_of(node, kind), json=body)
        assert response is not None and response.status_code == status
        assert status == 200 or "token of scope admin" in (await problem_of(response)).fix


@pytest.mark.parametrize(
    ("host", "near", "status"),
    [
        ("192.0.2.1:8480", False, 200), ("192.0.2.1", False, 200), ("vpn.example.net", False, 200),
        ("VPN.example.net.:8480", False, 200), ("192.0.2.2:8480", False, 421), ("localhost", False, 421),
        ("vpn.example.net.evil.example", False, 421), ("vpn.example.net@evil.example", False, 421),
        ("evil.example", True, 421), ("127.0.0.1.evil.example", True, 421), ("127.1.2.3:8480", True, 200),
        ("[::1]:8480", True, 200), ("localhost:1", True, 200), ("vpn.example.net", True, 200),
        ("localhost.evil.example", True, 421), ("", True, 421), ("a:b:c", True, 421),
    ],
)  # fmt: skip
async def test_the_node_is_called_by_its_own_names(host: str, near: bool, status: int) -> None:
    """DNS rebinding: a page of evil.example whose name leads to the node is same-origin with it."""
    response = await remote(FakeNode()).test_client().get(
        "/healthz", headers={"Host": host}, scope_base=NEAR if near else FAR
    )  # fmt: skip
    assert response.status_code == status


@pytest.mark.parametrize(
    "given", ["", "a@b", "a b", "[::1", "[x]", "a:999999", "a/b", "a?b", "a#b", "[::1]x"]
)
def test_what_is_no_host_is_none(given: str) -> None:
    assert host_of(given) is None


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost.:8080", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("", 200),  # HTTP/1.0
        ("evil.example:8080", 421),
        ("localhost.evil.example", 421),
        ("192.0.2.1:8080", 421),
        ("0.0.0.0:8080", 421),
        ("no host", 421),
    ],
)
async def test_no_page_rebinds_its_name_to_a_port_that_is_forwarded_to_the_socket(
    host: str, status: int
) -> None:
    """`ssh -L 8080:api.sock`, and a page whose name leads to 127.0.0.1 by now: to the browser the node is
    that page's own site. It reads without an Origin, and writes with one that fits the Host."""
    node = FakeNode()
    app = create_app(node, Door(trusted=True))
    socket = {"client": None, "server": None, "state": {"uid": 0}}
    for headers in ([("Host", host)], [("Host", host), ("Origin", f"http://{host}")]):
        asked = await app.test_client().get("/v1/status", headers=Headers(headers), scope_base=socket)
        assert asked.status_code == status
    write = [("Host", host), ("Origin", f"http://{host}"), ("Content-Type", "application/json")]
    done = await app.test_client().post(
        "/v1/rotations", headers=Headers(write), data=b"{}", scope_base=socket
    )
    assert done.status_code == status and bool(node.rotated) == (status == 200)


async def test_two_hosts_are_none_at_the_socket() -> None:
    app = create_app(FakeNode(), Door(trusted=True))
    twice = Headers([("Host", "localhost"), ("Host", "evil.example")])
    assert (await app.test_client().get("/v1/status", headers=twice)).status_code == 421


async def test_origins_are_compared_whole() -> None:
    node = FakeNode()
    (status,) = [each for each in ENDPOINTS if each.name == "status"]
    admin = node.tokens.grant(Scope.ADMIN)
    for origin, expected in (
        (f"http://{HOST}", 200),
        (f"https://{HOST}", 403),
        ("http://192.0.2.1", 403),
        (f"http://{HOST}.evil.example", 403),
        ("null", 403),
    ):
        given = [("Host", HOST), ("Authorization", f"Bearer {admin}"), ("Origin", origin)]
        response = await send(remote(node), status, given)
        assert response is not None and response.status_code == expected, origin
    # Also at the Unix socket, where a proxy for browsers might stand before it.
    local = create_app(node, Door(trusted=True)).test_client()
    assert (await local.get("/v1/status", headers={"Origin": "http://evil.example"})).status_code == 403


async def test_a_browsers_websocket_brings_its_token_as_a_subprotocol() -> None:
    node = FakeNode()
    app = remote(node)
    good = node.tokens.grant(Scope.READ)
    node.events.publish("peer.up", None, {})
    (endpoint,) = [each for each in ENDPOINTS if each.method == "WS"]
    offered = FAR | {"subprotocols": [EVENTS_PROTOCOL, BEARER_PROTOCOL + good]}
    assert await send(app, endpoint, [("Host", HOST)], scope_base=offered) is None
    for wrong in (
        [BEARER_PROTOCOL + "pmt_x"],
        [BEARER_PROTOCOL + good, BEARER_PROTOCOL + good],
        [EVENTS_PROTOCOL],
    ):
        response = await send(app, endpoint, [("Host", HOST)], scope_base=FAR | {"subprotocols": wrong})
        assert response is not None and response.status_code == 401


async def test_a_websocket_ends_with_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "TOKEN_LOOK", 0.01)
    node = FakeNode()
    good = node.tokens.grant(Scope.READ)
    headers = {"Host": HOST, "Authorization": f"Bearer {good}"}
    with trio.fail_after(20):
        async with (
            remote(node).test_client().websocket("/v1/events", headers=headers, scope_base=FAR) as websocket
        ):
            node.events.publish("peer.up", None, {})
            await trio.sleep(0.05)
            node.tokens.book, _ = node.tokens.book.revoke(node.tokens.book.tokens[0].id, time.time())
            with pytest.raises(WebsocketDisconnectError) as ended:
                await _drain(websocket)
            assert ended.value.args[0] == 1008


async def _drain(websocket: Any) -> None:
    while True:
        await websocket.receive()


# --- guessing


def looked(good: bool, number: int = 1) -> Looked:
    if not good:
        return Looked("unknown")
    token = Token(
        id=f"{number:012x}", name="x", scope=Scope.READ, hash="0" * 64, made=0.0, expires=9e9, by="uid 0"
    )
    return Looked("good", token)


def test_a_guesser_is_slowed_and_its_neighbours_are_not() -> None:
    guessing = Guessing()
    assert [guessing.wait("a", looked(False), 0.0) for _ in range(int(WRONG_BURST))] == [0.0] * 10
    assert guessing.wait("a", looked(False), 0.0) == pytest.approx(1 / WRONG_RATE)
    # Neither is a right token looked at, or the guesser would lose nothing.
    assert guessing.wait("a", looked(True), 0.0) > 0
    assert guessing.wait("b", looked(False), 0.0) == 0.0
    assert guessing.wait("b", looked(True), 0.0) == 0.0
    later = 1 / WRONG_RATE
    assert guessing.wait("a", looked(True), later) == 0.0


def test_whoever_works_behind_the_same_nat_is_heard_on() -> None:
    guessing = Guessing()
    assert guessing.wait("a", looked(True), 0.0) == 0.0
    for _ in range(20):
        guessing.wait("a", looked(False), 0.0)
    assert guessing.wait("a", looked(True), 0.0) == 0.0
    assert guessing.wait("a", looked(True, 2), 0.0) > 0  # a token that never came from there
    assert guessing.wait("a", looked(False), 0.0) > 0


def test_right_tokens_cost_nothing_and_the_memory_is_bounded() -> None:
    guessing = Guessing()
    assert all(guessing.wait("a", looked(True), 0.0) == 0.0 for _ in range(1000))
    for number in range(2 * MOST_BLOCKS):
        guessing.wait(f"b{number}", looked(False), 0.0)
        guessing.wait(f"c{number}", looked(True, number), 0.0)
    assert len(guessing._wrong) <= MOST_BLOCKS and len(guessing._friends) <= 1024


async def test_wrong_tokens_of_one_64_are_one_guesser() -> None:
    node = FakeNode()
    app = remote(node)
    good = node.tokens.grant(Scope.READ)

    async def ask(client: str, token: str) -> Response:
        scope = {"client": (client, 1), "server": ("192.0.2.1", 8480)}
        headers = {"Host": HOST, "Authorization": f"Bearer {token}"}
        return await app.test_client().get("/v1/status", headers=headers, scope_base=scope)

    statuses = [(await ask(f"2001:db8:1:2::{n:x}", "pmt_x")).status_code for n in range(1, 13)]
    assert statuses == [401] * 10 + [429] * 2
    slowed = await ask("2001:db8:1:2::ffff", good)
    assert slowed.status_code == 429 and 1 <= int(slowed.headers["Retry-After"]) <= 6
    assert (await ask("2001:db8:1:3::1", good)).status_code == 200
    assert (await ask("::ffff:192.0.2.9", good)).status_code == 200


# --- tokens over the API


async def test_a_token_is_shown_once_and_never_kept() -> None:
    node = FakeNode()
    app = create_app(node, Door(trusted=True)).test_client()
    root = {"state": {"uid": 0}}
    body = {"scope": "operate", "seconds": 60, "name": "ci"}

    async def make(key: str, **more: Any) -> Response:
        return await app.post(
            "/v1/tokens", json=body | more, headers={"Idempotency-Key": key}, scope_base=root
        )

    first = await make("k1")
    made = msgspec.json.decode(await first.get_data(), type=dict[str, Any])
    text = made["token"]
    assert first.status_code == 200 and text.startswith("pmt_") and made["scope"] == "operate"
    again = await make("k1")
    assert again.status_code == 409 and "shown once" in (await problem_of(again)).detail
    assert len(node.tokens.book.tokens) == 1
    shown = await (await app.get("/v1/tokens")).get_data()
    audited = await (await app.get("/v1/audit", scope_base=root)).get_data()
    for record in (shown, audited, repr(node.tokens.book).encode(), repr(app.app).encode()):
        assert text.encode() not in record
    assert [entry.status for entry in node.audit.entries] == [200, 409]
    assert node.audit.entries[0].asked == {"scope": "operate", "seconds": 60.0, "name": "ci"}
    # What it stands for works, until it is revoked.
    headers = {"Host": HOST, "Authorization": f"Bearer {text}"}
    far = remote(node).test_client()
    assert (await far.get("/v1/status", headers=headers, scope_base=FAR)).status_code == 200
    used = msgspec.json.decode(await (await app.get("/v1/tokens")).get_data(), type=dict[str, Any])
    assert used["tokens"][0]["used"] is not None
    gone = await app.delete(f"/v1/tokens/{made['id']}", scope_base=root)
    assert gone.status_code == 200 and (await gone.get_json())["state"] == "revoked"
    assert (await far.get("/v1/status", headers=headers, scope_base=FAR)).status_code == 401
    assert (await app.delete("/v1/tokens/000000000000", scope_base=root)).status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {}, {"scope": "root"}, {"scope": "read", "seconds": 0}, {"scope": "read", "seconds": 1e12},
        {"scope": "read", "name": ""}, {"scope": "read", "name": "a\nb"}, {"scope": "read", "name": "x" * 65},
        {"scope": "read", "name": "a\n"}, {"scope": "read", "hash": "x"},
    ],
)  # fmt: skip
async def test_a_token_that_makes_no_sense_is_not_made(body: dict[str, object]) -> None:
    node = FakeNode()
    app = create_app(node, Door(trusted=True)).test_client()
    response = await app.post("/v1/tokens", json=body, scope_base={"state": {"uid": 0}})
    assert response.status_code == 400 and (await problem_of(response)).fix.startswith("send ")
    assert not node.tokens.book.tokens


async def test_the_socket_group_makes_no_tokens_and_a_dry_run_makes_none() -> None:
    node = FakeNode()
    app = create_app(node, Door(trusted=True)).test_client()
    refused = await app.post("/v1/tokens", json={"scope": "read"}, scope_base={"state": {"uid": 65_534}})
    assert refused.status_code == 403
    tried = await app.post(
        "/v1/tokens?dry_run=true", json={"scope": "read"}, scope_base={"state": {"uid": 65_534}}
    )
    assert tried.status_code == 200 and (await tried.get_json())["token"] is None
    assert not node.tokens.book.tokens and [entry.status for entry in node.audit.entries] == [403]


# --- the audit trail


async def test_what_is_asked_is_on_record_once_and_without_secrets() -> None:
    node = FakeNode()
    app = create_app(node, Door(trusted=True)).test_client()
    me: Mapping[str, Any] = {"scope_base": {"state": {"uid": 0}}}
    key = {"Idempotency-Key": "k"}
    for _ in range(2):
        await app.post("/v1/rotations", json={"peer": "pm-1"}, headers=key, **me)
    await app.post("/v1/rotations?dry_run=true", json={}, **me)
    await app.get("/v1/status", **me)
    await app.post("/v1/federation/pacts", json={"line": "pmf1_secret", "services": ["a"] * 40}, **me)
    await app.post("/v1/rotations", json={"peer": "x" * 5000}, **me)
    written = [(entry.who, entry.path, entry.status) for entry in node.audit.entries]
    assert written == [
        ("uid 0", "/v1/rotations", 200),
        ("uid 0", "/v1/federation/pacts", 200),
        ("uid 0", "/v1/rotations", 404),
    ]
    assert "pmf1_secret" not in repr(node.audit.entries)
    assert node.audit.entries[1].asked["line"] == "***"
    assert len(repr(node.audit.entries)) < 4000
    pages = await (await app.get("/v1/audit?limit=2")).get_json()
    rest = await (await app.get(f"/v1/audit?cursor={pages['next_cursor']}")).get_json()
    assert [entry["seq"] for entry in pages["items"] + rest["items"]] == [1, 2, 3]


PASTED: Final = "pmt_" + "Zm9v-_" * 7 + "A"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"/v1/tokens?access_token={PASTED}", {"scope": "read"}),
        ("POST", f"/v1/tokens?access_token=%70mt%5F{PASTED[4:]}", {"scope": "read"}),
        ("POST", f"/v1/rotations?{'x' * 150}{PASTED}=1", {}),  # where a path is cut
        ("DELETE", f"/v1/tokens/{PASTED}", None),
        ("POST", "/v1/rotations", {"peer": f"{'x' * 80}{PASTED}"}),  # where a body is cut
        ("POST", "/v1/rotations", {PASTED: 1}),
        ("POST", "/v1/tokens", {"scope": "read", "name": PASTED}),
    ],
)
async def test_a_secret_that_a_client_puts_anywhere_is_not_on_record(
    method: str, path: str, body: dict[str, Any] | None
) -> None:
    node = FakeNode()
    app = create_app(node, Door(trusted=True)).test_client()
    await app.open(path, method=method, json=body, scope_base={"state": {"uid": 0}})
    (entry,) = node.audit.entries
    assert PASTED[4:12] not in repr(msgspec.to_builtins(entry))
    assert entry.path.startswith(path[:10])


async def test_events_of_the_audit_trail_are_told_to_who_may_read_it() -> None:
    node = FakeNode()
    for kind in ("audit.written", "peer.up", "audit.denied"):
        node.events.publish(kind, None, {})
    app = remote(node).test_client()
    for scope, told in (("read", ["peer.up"]), ("operate", ["peer.up"]), ("admin", None)):
        given: dict[str, Any] = {"headers": Headers(headers_of(node, scope)), "scope_base": FAR}
        every = told or ["audit.written", "peer.up", "audit.denied"]
        page = await (await app.get("/v1/events", **given)).get_json()
        assert [event["type"] for event in page["items"]] == every
        page = await (await app.get("/v1/events?types=audit.*,peer.up", **given)).get_json()
        assert [event["type"] for event in page["items"]] == every
        with trio.fail_after(20):
            async with app.websocket("/v1/events?since=oldest", **given) as followed:
                assert [msgspec.json.decode(await followed.receive())["type"] for _ in every] == every
                node.events.publish("audit.written", None, {})
                node.events.publish("peer.up", None, {})
                after = msgspec.json.decode(await followed.receive())
                assert after["type"] == ("peer.up" if told else "audit.written")
        node.events = type(node.events)(run="run1", clock=time.time)
        for kind in ("audit.written", "peer.up", "audit.denied"):
            node.events.publish(kind, None, {})


async def test_the_page_for_people_has_every_path_and_nothing_from_elsewhere() -> None:
    response = await create_app(FakeNode(), Door(trusted=True)).test_client().get("/docs")
    text = await response.get_data(as_text=True)
    assert response.headers["Content-Security-Policy"] == POLICY and "'none'" in POLICY
    assert all(endpoint.path in text for endpoint in ENDPOINTS)
    assert "<script" not in text and "http://" not in text and "https://" not in text
    assert not re.search(r"\s(on\w+|style)=", text)
