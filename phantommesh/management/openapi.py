# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's description as an OpenAPI 3.1 document, made from the table of endpoints."""

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from phantommesh.management.endpoints import COMMON, JSON, Endpoint
from phantommesh.management.views import Problem

PROBLEM = "application/problem+json"
_TEXT = {"type": "string"}
_ANSWERS = {JSON: {"type": "object"}}
"""The schemas of answers that have no type of their own, by content."""
_REF = "#/components/schemas/{name}"


def document(endpoints: Iterable[Endpoint[Any]], version: str) -> dict[str, Any]:
    """Return the document. WebSockets are not in it: OpenAPI has no word for them."""
    described = [endpoint for endpoint in endpoints if endpoint.method != "WS"]
    types = [Problem]
    for endpoint in described:
        types += [kind for kind in (endpoint.answer, endpoint.body) if kind is not None]
    schemas, components = msgspec.json.schema_components(
        types, schema_hook=lambda _object: {"description": "any value"}, ref_template=_REF
    )
    of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in described:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = _operation(endpoint, of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "PhantomMesh node", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint[Any], of: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    answer = _ANSWERS.get(endpoint.content, _TEXT) if endpoint.answer is None else of[endpoint.answer]
    refused = {"description": "refused", "content": {PROBLEM: {"schema": of[Problem]}}}
    told: dict[str, Any] = {
        "operationId": endpoint.name,
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint),
        "responses": {
            "200": {"description": "done", "content": {endpoint.content: {"schema": answer}}},
            **{str(status): refused for status in sorted(endpoint.errors | COMMON)},
        },
        # OpenAPI 3.1 lets any scheme name the roles that it needs.
        "security": _security(endpoint),
    }
    if endpoint.body is not None:
        told["requestBody"] = {
            "required": not endpoint.body_optional,
            "content": {JSON: {"schema": of[endpoint.body]}},
        }
    return told


def _security(endpoint: Endpoint[Any]) -> list[dict[str, list[str]]]:
    """An empty requirement beside another stands for none."""
    needed = [] if endpoint.scope is None else [{"token": [endpoint.scope.value]}]
    return [{}, *needed] if endpoint.local else needed


def _parameters(endpoint: Endpoint[Any]) -> list[dict[str, Any]]:
    text, flag = {"type": "string"}, {"type": "boolean"}
    found = [
        {"name": name, "in": "path", "required": True, "schema": text}
        for name in re.findall(r"{(\w+)}", endpoint.path)
    ]
    found += [{"name": name, "in": "query", "schema": text} for name in endpoint.query]
    if endpoint.dry_run:
        found.append({"name": "dry_run", "in": "query", "schema": flag})
    if endpoint.body is not None:
        found.append({"name": "Idempotency-Key", "in": "header", "schema": text})
    return found
