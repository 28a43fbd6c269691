# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's routes: thin, over a NodePort; see problems.py for errors and server.py for sockets."""

import ipaddress
import os
from collections.abc import Sequence
from typing import TypeVar, cast

import msgspec
import structlog
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from quart import Request, Response, Websocket, g, request, websocket
from quart_trio import QuartTrio

from phantommesh.management.finding import find
from phantommesh.nursery.api import problems
from phantommesh.nursery.api.events import add_events
from phantommesh.nursery.api.idempotency import IdempotencyCache
from phantommesh.nursery.api.paging import paginate
from phantommesh.nursery.api.problems import ProblemError
from phantommesh.views import LinkView, NodePort, PeerView, Problem, Rotation, RotationResult

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_S = 10
Body = TypeVar("Body")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Routes that need no scope, so that a loopback TCP listener may serve them without a token.
_OPEN_ROUTES = frozenset({"/healthz", "/readyz", "/metrics"})
# How ASGI names the messages of a response, by what was asked for.
_RESPONSES = {"http": "http.response", "websocket": "websocket.http.response"}


class RotationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/rotations: a peer's name or node id; none or null: every peer."""

    peer: str | None = None


class RevocationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/revocations: a name or node id; ``force`` lets an authority revoke itself.
    ``undo`` takes the node back, ``undo_all`` casts an authority out and takes back whom it revoked; both
    need the root's key."""

    node: str
    force: bool = False
    undo: bool = False
    undo_all: bool = False


class IdentityRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/identities: nothing to choose."""


class _App(QuartTrio):
    async def asgi_app(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer with a problem where Quart fails outside its own error handling.

        That is before a request has its context: a target without a path, a Host that is none.
        """
        started = False

        async def watched(message: ASGISendEvent) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await super().asgi_app(scope, receive, watched)
        except Exception as error:
            if started or scope["type"] not in _RESPONSES:
                raise
            structlog.get_logger("phantommesh.api").debug("unusable API request", error=repr(error))
            await _send_bad_request(send, _RESPONSES[scope["type"]])

    async def make_default_options_response(self) -> Response:
        response = await super().make_default_options_response()
        response.status_code = 204
        del response.headers["Content-Type"]  # Quart's default is HTML's
        return response


async def _send_bad_request(send: ASGISendCallable, prefix: str) -> None:
    body = msgspec.json.encode(
        Problem(status=400, title="Bad Request", detail="the request cannot be read", fix="check its target")
    )
    headers = [
        (b"content-type", problems.PROBLEM_TYPE.encode()),
        (b"content-length", b"%d" % len(body)),
    ]
    for message in (
        {"type": f"{prefix}.start", "status": 400, "headers": headers},
        {"type": f"{prefix}.body", "body": body, "more_body": False},
    ):
        await send(cast("ASGISendEvent", message))


def create_app(node: NodePort, *, trusted: bool, shutdown: trio.Event | None = None) -> QuartTrio:
    """Return the ASGI application. ``shutdown`` ends what would otherwise go on for ever: WebSockets.

    ``trusted``: whoever connects was let in by the socket's file mode and may do all but revoke and replace
    the identity, which is for root and the node's own user. Otherwise (TCP) only the routes that need no
    scope answer; API tokens come with a later version.
    """
    app = _App("phantommesh", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT_S
    # Redirects to a canonical path would be HTML.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    problems.install(app)
    _time_requests(app, node)
    if not trusted:
        _refuse_strangers(app)
    _add_probes(app, node)
    _add_v1(app, node)
    add_events(app, node, trio.Event() if shutdown is None else shutdown)
    return app


def _time_requests(app: QuartTrio, node: NodePort) -> None:
    @app.before_request
    async def start() -> None:
        g.started = trio.current_time()

    @app.after_request
    async def finish(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        rule = request.url_rule
        node.metrics.api_request_seconds.labels(
            route="unmatched" if rule is None else _route_label(rule.rule),
            method=request.method if request.method in _METHODS else "other",
            status=str(response.status_code),
        ).observe(trio.current_time() - g.get("started", trio.current_time()))
        return response


def _route_label(rule: str) -> str:
    return rule.replace("<", "{").replace(">", "}")


def _refuse_strangers(app: QuartTrio) -> None:
    def check(asked: Request | Websocket) -> None:
        # A web page that a browser on this machine has open can reach loopback under a name of its own.
        if not _is_loopback(asked.host):
            raise ProblemError(421, "this host name is not the node's", fix="ask for 127.0.0.1 or localhost")
        rule = asked.url_rule
        if rule is not None and rule.rule not in _OPEN_ROUTES:
            raise ProblemError(401, "this needs the node's Unix socket", fix="use api.socket")

    @app.before_request
    async def check_request() -> None:
        check(request)

    @app.before_websocket
    async def check_websocket() -> None:
        check(websocket)


def _is_loopback(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _add_probes(app: QuartTrio, node: NodePort) -> None:
    @app.get("/healthz")
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        ready, reasons = node.ready()
        if not ready:
            raise ProblemError(503, "the node is not ready", reasons=reasons)
        return _json({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        accept = request.headers.get("Accept", "")
        body, content_type = await trio.to_thread.run_sync(node.metrics.render, accept)
        return Response(body, content_type=content_type)


def _add_v1(app: QuartTrio, node: NodePort) -> None:
    answers = IdempotencyCache()

    @app.get("/v1/status")
    async def status() -> Response:
        return _json(node.status())

    @app.get("/v1/peers")
    async def peers() -> Response:
        return _json(paginate(node.peers(), request.args))

    @app.get("/v1/peers/<peer>")
    async def peer(peer: str) -> Response:
        return _json(_find(node.peers(), peer))

    @app.get("/v1/links")
    async def links() -> Response:
        return _json(paginate(node.links(), request.args))

    @app.get("/v1/paths")
    async def paths() -> Response:
        return _json(paginate(node.paths(), request.args))

    @app.get("/v1/scatter")
    async def scatter() -> Response:
        return _json(paginate(node.scatter(), request.args))

    @app.get("/v1/proofs")
    async def proofs() -> Response:
        return _json(paginate(node.proofs(), request.args))

    @app.get("/v1/proofs/export")
    async def export_proofs() -> Response:
        """A file for `phantommesh proofs --verify`; ``peer`` (a name or node id) leaves the others out."""
        wanted = request.args.get("peer")
        chosen = None
        if wanted is not None:
            chosen = find(
                node.proofs(),
                wanted,
                lambda view: (view.peer, view.node_id),
                unknown="there are no scatter proofs with this peer",
                fix="see `phantommesh proofs` (GET /v1/proofs) for who there is",
            ).node_id
        return Response(await node.export_proofs(chosen), content_type="application/octet-stream")

    @app.post("/v1/rotations")
    async def rotations() -> Response:
        dry_run = _flag("dry_run")
        wanted = await _body(RotationRequest, '{} or {"peer": "NAME"}', default=RotationRequest())

        async def rotate() -> bytes:
            chosen = node.peers() if wanted.peer is None else [_find(node.peers(), wanted.peer)]
            if dry_run:
                return msgspec.json.encode(_planned(chosen, node.links()))
            return msgspec.json.encode(await node.rotate(None if wanted.peer is None else chosen[0].node_id))

        asked = msgspec.json.encode(("rotations", wanted, dry_run))
        answer, replayed = await answers.once(request.headers.get("Idempotency-Key"), asked, rotate)
        response = Response(answer, content_type="application/json")
        if replayed:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    @app.post("/v1/identities")
    async def identities() -> Response:
        """A new identity for this node, under its name."""
        wanted = await _body(IdentityRequest, "{}", default=IdentityRequest())
        _need_root("only root may give this node a new identity", fix="run this with sudo")

        async def replace() -> bytes:
            return msgspec.json.encode(await node.new_identity())

        asked = msgspec.json.encode(("identities", wanted))
        answer, replayed = await answers.once(request.headers.get("Idempotency-Key"), asked, replace)
        response = Response(answer, content_type="application/json")
        if replayed:
            response.headers["Idempotency-Replayed"] = "true"
        return response

    @app.post("/v1/revocations")
    async def revocations() -> Response:
        dry_run = _flag("dry_run")
        wanted = await _body(RevocationRequest, '{"node": "NAME"}')
        if not dry_run:
            _need_root("only root may revoke a node", fix="run this with sudo on an authority")

        async def revoke() -> bytes:
            result = await node.revoke(
                wanted.node,
                force=wanted.force,
                dry_run=dry_run,
                undo=wanted.undo,
                undo_all=wanted.undo_all,
            )
            return msgspec.json.encode(result)

        asked = msgspec.json.encode(("revocations", wanted, dry_run))
        answer, replayed = await answers.once(request.headers.get("Idempotency-Key"), asked, revoke)
        response = Response(answer, content_type="application/json")
        if replayed:
            response.headers["Idempotency-Replayed"] = "true"
        return response


def _need_root(refusal: str, *, fix: str) -> None:
    """For what has no way back. The group of the socket is for looking and rotating."""
    if request.scope["state"].get("uid") not in (0, os.geteuid()):
        raise ProblemError(403, refusal, fix=fix)


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), content_type="application/json")


def _find(peers: Sequence[PeerView], wanted: str) -> PeerView:
    return find(peers, wanted, lambda peer: (peer.name, peer.node_id))


def _planned(peers: Sequence[PeerView], links: Sequence[LinkView]) -> RotationResult:
    epochs = {link.node_id: link.epoch for link in links}
    return RotationResult(
        dry_run=True,
        rotations=[
            Rotation(peer=peer.name, node_id=peer.node_id, result="planned", epoch=epochs.get(peer.node_id))
            for peer in peers
        ],
    )


def _flag(name: str) -> bool:
    match request.args.get(name):
        case None | "false" | "0":
            return False
        case "true" | "1":
            return True
        case _:
            raise ProblemError(400, f"{name} is not usable", fix="give true or false")


async def _body(kind: type[Body], example: str, *, default: Body | None = None) -> Body:
    body = await request.get_data(as_text=False)
    if not body and default is not None:
        return default
    if request.mimetype != "application/json":
        raise ProblemError(415, "the body is not application/json", fix="set Content-Type: application/json")
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(400, f"the body is not usable: {error}", fix=f"send {example}") from None
