# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's description for people: one page of HTML without scripts, made from the table of endpoints."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from hashlib import sha256
from html import escape
from http import HTTPStatus
from typing import Any, Final

from phantommesh.management.endpoints import COMMON, Endpoint

_STYLE: Final = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
code { font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
section { border-top: 1px solid; padding: .5rem 0; }
h2 { font-size: 1rem; margin: .5rem 0; }
dt { float: left; clear: left; width: 7rem; }
dd { margin: 0 0 0 7.5rem; }
@media (max-width: 30rem) { dt { float: none; } dd { margin-left: 1rem; } }
"""
POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page's Content-Security-Policy: nothing but its own style."""

_INTRODUCTION: Final = """
<p>On the node's Unix socket the kernel says who asks. Over TCP send
<code>Authorization: Bearer pmt_...</code>; make a token with <code>phantommesh token create</code>.
A browser's WebSocket offers the subprotocols <code>phantommesh.events</code> and
<code>phantommesh.bearer.pmt_...</code> instead.</p>
<p>Errors are <code>application/problem+json</code> (RFC 9457) and say in <code>fix</code> what to do. Lists
take <code>limit</code> and <code>cursor</code>: pass <code>next_cursor</code> of the page before. Writes take
<code>Idempotency-Key</code>, and some <code>?dry_run=true</code>. A name in the query that a path does not
know is an error. The types of bodies and answers are in <a href="openapi.json">openapi.json</a>.</p>
"""


def page(endpoints: Iterable[Endpoint[Any]], version: str) -> str:
    """Return the page."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>PhantomMesh API</title><style>{_STYLE}</style></head><body>"
        f"<main><h1>PhantomMesh API {escape(version)}</h1>{_INTRODUCTION}"
        f"{''.join(map(_section, endpoints))}</main></body></html>"
    )


def _section(endpoint: Endpoint[Any]) -> str:
    method = "WebSocket" if endpoint.method == "WS" else endpoint.method
    rows = [("scope", _scope(endpoint))]
    if endpoint.queries:
        rows.append(("query", ", ".join(_code(name) for name in _shown(endpoint))))
    if endpoint.example:
        rows.append(("body", _code(endpoint.example)))
    if endpoint.root is not None:
        some = " for some bodies" if endpoint.root_for is not None else ""
        rows.append(("root", f"root or a token of scope admin{some}: {escape(endpoint.root.refusal)}"))
    rows.append(("errors", ", ".join(_status(status) for status in sorted(endpoint.errors | COMMON))))
    table = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows if text)
    return (
        f'<section id="{escape(endpoint.name)}"><h2>{_code(f"{method} {endpoint.path}")}</h2>'
        f"<p>{escape(endpoint.summary)}</p><dl>{table}</dl></section>"
    )


def _shown(endpoint: Endpoint[Any]) -> list[str]:
    return [name for name in endpoint.queries if name != "dry_run" or endpoint.dry_run]


def _scope(endpoint: Endpoint[Any]) -> str:
    if endpoint.scope is None:
        return "none"
    return f"{endpoint.scope.value}; none on this machine" if endpoint.local else endpoint.scope.value


def _status(status: int) -> str:
    return f"{status} {escape(HTTPStatus(status).phrase)}"


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
