# SPDX-License-Identifier: GPL-3.0-or-later
"""Every error of the API as problem details (RFC 9457), never HTML and never an exception's inside."""

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
import structlog
from quart import Request, Response, Websocket, g, has_request_context, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    InternalServerError,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
    RequestTimeout,
)

from phantommesh.errors import PhantomMeshError, shortened
from phantommesh.management.finding import AmbiguousNameError, UnknownMemberError
from phantommesh.management.views import Problem, Readiness

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_S = 10
MOST_NAMED = 100  # characters of what a client sent, in an error that names it
PROBLEM_TYPE = "application/problem+json"


class ProblemError(Exception):
    """Raised by a route to answer with ``problem``."""

    def __init__(
        self, status: int, detail: str, *, fix: str = "", unready: Readiness | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(detail)
        self.headers = dict(headers or {})
        self.problem = Problem(
            status=status,
            title=HTTPStatus(status).phrase,
            detail=detail,
            fix=fix,
            reasons=[] if unready is None else unready.reasons,
            state="" if unready is None else unready.state,
            codes=[] if unready is None else unready.codes,
        )


def flag(name: str) -> bool:
    """A query that is true or false. Raises ProblemError (400)."""
    match request.args.get(name):
        case None | "false" | "0":
            return False
        case "true" | "1":
            return True
        case _:
            raise ProblemError(400, f"{name} is not usable", fix="give true or false")


def problem_response(problem: Problem) -> Response:
    g.detail = problem.detail
    return Response(msgspec.json.encode(problem), status=problem.status, content_type=PROBLEM_TYPE)


def of_http(error: HTTPException) -> Problem:
    """Say in the node's words what the framework refused: its own speak of pages and of typing a URL."""
    asked: Request | Websocket = request if has_request_context() else websocket
    path = shortened(asked.path, MOST_NAMED)
    match error:
        case NotFound():
            detail, fix = f"there is no {path}", "see GET /openapi.json for the paths"
        case MethodNotAllowed():
            allowed = ", ".join(sorted(set(error.valid_methods or ()) - {"HEAD", "OPTIONS"}))
            detail, fix = f"{path} does not take this method", f"use {allowed or 'another method'}"
        case RequestEntityTooLarge():
            detail, fix = "the body is too large", f"send at most {MAX_BODY_BYTES} bytes"
        case RequestTimeout():
            detail, fix = f"the body did not come within {BODY_TIMEOUT_S} s", "send it at once"
        case BadRequest():
            detail, fix = "the request cannot be read", "check its path, query, headers and body"
        case InternalServerError():
            return internal_error()
        case _:
            detail, fix = (
                f"the request was refused: {error.name}",
                "see GET /openapi.json for what is answered",
            )
    return Problem(status=error.code or 500, title=error.name, detail=detail, fix=fix)


def internal_error() -> Problem:
    return Problem(
        status=500,
        title="Internal Server Error",
        detail="the node failed to answer this request",
        fix="look at the node's log; this is a bug worth reporting",
    )


def install(app: QuartTrio) -> None:
    """Make ``app`` answer every error with problem details."""
    log = structlog.get_logger("phantommesh.api")

    async def on_problem(error: ProblemError) -> Response:
        response = problem_response(error.problem)
        response.headers.update(error.headers)
        return response

    async def on_operator_error(error: PhantomMeshError) -> Response:
        problem = Problem(status=409, title="Conflict", detail=str(error), fix=error.fix)
        return problem_response(problem)

    async def on_unknown(error: UnknownMemberError) -> Response:
        return problem_response(Problem(status=404, title="Not Found", detail=str(error), fix=error.fix))

    async def on_ambiguous(error: AmbiguousNameError) -> Response:
        candidates = list(error.candidates)
        problem = Problem(
            status=409, title="Conflict", detail=str(error), fix=error.fix, candidates=candidates
        )
        return problem_response(problem)

    async def on_http_error(error: HTTPException) -> Response:
        response = problem_response(of_http(error))
        # Allow (405), Retry-After and the like belong to the status; type and length are the page's.
        for name, value in error.get_headers():
            if name.lower() not in {"content-type", "content-length"}:
                response.headers[name] = value
        return response

    async def on_bug(error: Exception) -> Response:
        log.error("API request failed", exc_info=error)
        return problem_response(internal_error())

    app.register_error_handler(ProblemError, on_problem)
    app.register_error_handler(UnknownMemberError, on_unknown)
    app.register_error_handler(AmbiguousNameError, on_ambiguous)
    app.register_error_handler(PhantomMeshError, on_operator_error)
    app.register_error_handler(HTTPException, on_http_error)
    app.register_error_handler(Exception, on_bug)
