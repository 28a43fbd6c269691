# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's application: the routes of management.endpoints, who may use them, and how long each takes.

`routes` has what they do, `problems` every error, `server` the sockets.
"""

from collections.abc import Mapping
from time import time
from typing import Any, cast

import msgspec
import structlog
import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, ASGISendEvent
from hypercorn.typing import Scope as AsgiScope
from quart import Request, Response, Websocket, g, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import NotFound

from phantommesh.errors import shortened
from phantommesh.management.audit import Write
from phantommesh.management.endpoints import ENDPOINTS, Endpoint
from phantommesh.management.views import NodePort, Problem
from phantommesh.nursery.api import problems
from phantommesh.nursery.api.auth import Door, Gate, caller
from phantommesh.nursery.api.events import events
from phantommesh.nursery.api.problems import BODY_TIMEOUT_S, MAX_BODY_BYTES, MOST_NAMED, ProblemError
from phantommesh.nursery.api.routes import Handlers
from phantommesh.nursery.api.routes.access import access
from phantommesh.nursery.api.routes.dashboard import dashboard
from phantommesh.nursery.api.routes.reads import reads
from phantommesh.nursery.api.routes.writes import writes

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ENDPOINTS: Mapping[str, Endpoint[Any]] = {endpoint.name: endpoint for endpoint in ENDPOINTS}
# How ASGI names the messages of a response, by what was asked for.
_RESPONSES = {"http": "http.response", "websocket": "websocket.http.response"}


class _App(QuartTrio):
    async def asgi_app(self, scope: AsgiScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
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


def create_app(node: NodePort, door: Door, *, shutdown: trio.Event | None = None) -> QuartTrio:
    """Return the ASGI application. ``shutdown`` ends what would otherwise go on for ever: WebSockets.

    Whoever connects by a trusted ``door`` was let in by the socket's file mode and may do all but what there
    is no way back from, which is for root and the node's own user. Else a token says what its bearer may.
    """
    app = _App("phantommesh", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.config["BODY_TIMEOUT"] = BODY_TIMEOUT_S
    # Redirects to a canonical path would be HTML.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    problems.install(app)
    _time_requests(app, node)
    _record_writes(app, node)
    _check_clients(app, Gate(door, node.tokens, node.metrics, clock=trio.current_time, wall=time))
    ending = trio.Event() if shutdown is None else shutdown
    _add_routes(
        app,
        {**reads(node), **writes(node), **access(node), **events(node, ending), **dashboard(node)},
    )
    return app


def _add_routes(app: QuartTrio, handlers: Handlers) -> None:
    if handlers.keys() != _ENDPOINTS.keys():
        raise AssertionError(f"endpoints and handlers differ: {sorted(handlers.keys() ^ _ENDPOINTS.keys())}")
    for endpoint in ENDPOINTS:
        rule = endpoint.path.replace("{", "<").replace("}", ">")
        if endpoint.method == "WS":
            app.add_websocket(rule, endpoint.name, handlers[endpoint.name])
        else:
            app.add_url_rule(rule, endpoint.name, handlers[endpoint.name], methods=[endpoint.method])


def _time_requests(app: QuartTrio, node: NodePort) -> None:
    @app.before_request
    async def start() -> None:
        g.started = trio.current_time()

    @app.after_request
    async def finish(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        endpoint = _ENDPOINTS.get(request.endpoint or "")
        node.metrics.api_request_seconds.labels(
            route="unmatched" if endpoint is None else endpoint.path,
            method=request.method if request.method in _METHODS else "other",
            status=str(response.status_code),
        ).observe(trio.current_time() - g.get("started", trio.current_time()))
        return response


def _record_writes(app: QuartTrio, node: NodePort) -> None:
    @app.after_request
    async def record(response: Response) -> Response:
        endpoint = _ENDPOINTS.get(request.endpoint or "")
        if endpoint is None or endpoint.method == "GET" or request.args.get("dry_run") in ("true", "1"):
            return response
        if "Idempotency-Replayed" in response.headers:
            return response  # it was done, and put on record, before
        by, query = caller(), request.query_string.decode("ascii", "replace")
        await node.audit.wrote(
            Write(
                who=by.called, address=by.address, method=endpoint.method,
                path=f"{request.path}?{query}" if query else request.path,
                asked=g.get("asked", {}), status=response.status_code,
                detail=g.get("detail", ""),
            )
        )  # fmt: skip
        return response


def _check_clients(app: QuartTrio, gate: Gate) -> None:
    def check(asked: Request | Websocket) -> None:
        endpoint = _ENDPOINTS.get(asked.endpoint or "")
        gate.check(asked, endpoint)
        if "Transfer-Encoding" in asked.headers and "Content-Length" in asked.headers:
            # RFC 9112 section 6.1: who forwards it may take the other one of the two.
            raise ProblemError(
                400, "the request has two lengths", fix="leave out Content-Length or Transfer-Encoding",
                headers={"Connection": "close"},
            )  # fmt: skip
        if asked.scope["path"].startswith("//"):
            # The router takes it for one slash; a proxy that filters paths does not.
            raise NotFound
        if endpoint is not None:
            _check_query(asked, endpoint)

    @app.before_request
    async def check_request() -> None:
        check(request)

    @app.before_websocket
    async def check_websocket() -> None:
        check(websocket)


def _check_query(asked: Request | Websocket, endpoint: Endpoint[Any]) -> None:
    """Refuse a name that the endpoint does not know: a mistyped ``dry_run`` would do what it should only
    try, and a mistyped ``limit`` have no effect. Raises ProblemError (400)."""
    for name in asked.args:
        if name not in endpoint.queries:
            known = ", ".join(endpoint.queries)
            raise ProblemError(
                400,
                f"{shortened(name, MOST_NAMED)!r} is no query of {endpoint.path}",
                fix=f"give one of {known}" if known else "leave the query out",
            )
