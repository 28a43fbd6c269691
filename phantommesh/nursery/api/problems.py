# SPDX-License-Identifier: GPL-3.0-or-later
"""Every error of the API as problem details (RFC 9457), never HTML and never an exception's inside."""

from http import HTTPStatus

import msgspec
import structlog
from quart import Response, has_request_context, request, websocket
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge

from phantommesh.errors import PhantomMeshError
from phantommesh.management.finding import AmbiguousNameError, UnknownMemberError
from phantommesh.management.views import Problem

PROBLEM_TYPE = "application/problem+json"


class ProblemError(Exception):
    """Raised by a route to answer with ``problem``."""

    def __init__(self, status: int, detail: str, *, fix: str = "", reasons: list[str] | None = None) -> None:
        super().__init__(detail)
        self.problem = Problem(
            status=status, title=HTTPStatus(status).phrase, detail=detail, fix=fix, reasons=reasons or []
        )


def problem_response(problem: Problem) -> Response:
    return Response(msgspec.json.encode(problem), status=problem.status, content_type=PROBLEM_TYPE)


def internal_error() -> Problem:
    return Problem(
        status=500,
        title="Internal Server Error",
        detail="the node failed to answer this request",
        fix="look at the node's log; this is a bug worth reporting",
    )


def _said(error: HTTPException) -> tuple[str, str]:
    """The words for an error that werkzeug raises: its own are for people at a browser."""
    path = request.path if has_request_context() else websocket.path
    match error:
        case NotFound():
            return f"there is no {path}", "see GET /openapi.json for the paths"
        case MethodNotAllowed(valid_methods=methods):
            allowed = ", ".join(sorted(set(methods or ()) - {"HEAD", "OPTIONS"})) or "another method"
            return f"{path} does not take this method", f"use {allowed}"
        case RequestEntityTooLarge():
            return "the body is longer than the API reads", "send a shorter body"
        case _:
            return error.description or error.name, ""


def install(app: QuartTrio) -> None:
    """Make ``app`` answer every error with problem details."""
    log = structlog.get_logger("phantommesh.api")

    async def on_problem(error: ProblemError) -> Response:
        return problem_response(error.problem)

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
        status = error.code or 500
        detail, fix = _said(error)
        problem = Problem(status=status, title=error.name, detail=detail, fix=fix)
        response = problem_response(problem)
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
