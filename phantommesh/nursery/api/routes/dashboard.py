# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboard: a page, what the page consists of, and the map that it draws.

The files are in ``dashboard/`` beside this room and need no building. They are the same for everybody; all
that is about this mesh comes from the other endpoints, by which the page's reader is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Final

import trio
from quart import Response

from phantommesh.errors import shortened
from phantommesh.management import layout
from phantommesh.management.layout import Pair, Place
from phantommesh.management.mapview import MapLink, MapView, pairs, picture
from phantommesh.management.views import NodePort
from phantommesh.nursery.api.problems import MOST_NAMED, ProblemError
from phantommesh.nursery.api.routes import Handlers
from phantommesh.nursery.api.routes.reads import json

# Tuning.
MAP_S: Final = 2.0  # s that a map is given out for: however many ask, it is made so often at most
STILL_S: Final = 30.0  # s between two fits of the places: round trips change all the time
INDEX: Final = "index.html"

_TYPES: Final[Mapping[str, str]] = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}

# Nothing is loaded from elsewhere, nothing runs that is not one of the files, and no text becomes markup:
# https://www.w3.org/TR/CSP3/ and, for the last, https://www.w3.org/TR/trusted-types/.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def dashboard(node: NodePort) -> Handlers:
    """Return the handlers."""
    files, mapping = read_files(), _Mapping(node)

    async def page() -> Response:
        return _file(files, INDEX)

    async def file(file: str) -> Response:
        return _file(files, file)

    async def show() -> Response:
        return json(await mapping.view())

    return {"dashboard": page, "dashboard_file": file, "map": show}


def read_files() -> dict[str, bytes]:
    """Read what the page consists of, by name. Some 60 KB."""
    folder = resources.files("phantommesh.nursery.api") / "dashboard"
    return {
        file.name: file.read_bytes() for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES
    }


def _file(files: Mapping[str, bytes], name: str) -> Response:
    if (body := files.get(name)) is None:
        raise ProblemError(
            404, f"the dashboard has no {shortened(name, MOST_NAMED)}", fix="open / for the dashboard"
        )
    return Response(body, headers={**HEADERS, "Content-Type": _TYPES[name.rpartition(".")[2]]})


@dataclass(slots=True, eq=False)
class _Mapping:
    """The newest map. One is made at a time, in a thread where places are to be fitted: 500 members take
    some tenths of a second."""

    node: NodePort
    _view: MapView | None = None
    _made: float = 0.0
    _fitted: float = 0.0
    _places: dict[str, Place] = field(default_factory=dict)
    _making: trio.Lock = field(default_factory=trio.Lock)

    async def view(self) -> MapView:
        async with self._making:
            if self._view is None or trio.current_time() - self._made >= MAP_S:
                self._view, self._made = await self._make(), trio.current_time()
            return self._view

    async def _make(self) -> MapView:
        node = self.node
        status, peers, paths, topology = node.status(), node.peers(), node.measured(), node.surveyed()
        drawn = pairs(status, peers, paths, topology)
        regions = {status.node_id: status.region} | {peer.node_id: peer.region for peer in peers}
        stale = trio.current_time() - self._fitted >= STILL_S
        if not regions.keys() <= self._places.keys() or stale:
            self._places = await trio.to_thread.run_sync(
                layout.lay_out, regions, _measured(drawn), self._places
            )
            self._fitted = trio.current_time()
        return picture(status, peers, node.links(), paths, topology, drawn, self._places)


def _measured(drawn: list[MapLink]) -> list[Pair]:
    return [Pair(link.one, link.two, link.rtt_s) for link in drawn if link.rtt_s is not None]
