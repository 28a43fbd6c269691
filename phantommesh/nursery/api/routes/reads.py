# SPDX-License-Identifier: GPL-3.0-or-later
"""The endpoints that only look: probes, metrics, and the node's views."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
import trio
from quart import Response, request

from phantommesh import __version__
from phantommesh.acl.rules import parse_service
from phantommesh.management.agentview import DecisionView
from phantommesh.management.bodies import Probe
from phantommesh.management.docspage import POLICY, page
from phantommesh.management.endpoints import BYTES, ENDPOINTS, HTML, JSON
from phantommesh.management.events import EventLog
from phantommesh.management.finding import find
from phantommesh.management.openapi import document
from phantommesh.management.views import NodePort, Page, PeerView
from phantommesh.nursery.api.paging import HasNodeId, limit_of, page_after, paginate_by
from phantommesh.nursery.api.problems import ProblemError, flag
from phantommesh.nursery.api.routes import Handlers

# Tuning.
STATUS_AGE = 0.1  # s that an answer is kept, unless something happens: `uptime_s` is as exact

Row = TypeVar("Row", bound=HasNodeId)


class _Kept:
    """The latest answer of an endpoint that is asked all the time, until the next event or for `STATUS_AGE`.
    So many who ask cost the node about as much as one."""

    def __init__(self, read: Callable[[], object], events: EventLog) -> None:
        self._read, self._events = read, events
        self._body, self._place, self._until = b"", -1, 0.0

    def body(self, now: float) -> bytes:
        """The answer; ``now`` on trio's clock."""
        if self._place != self._events.last or now >= self._until:
            self._body = msgspec.json.encode(self._read())
            self._place, self._until = self._events.last, now + STATUS_AGE
        return self._body


def reads(node: NodePort) -> Handlers:
    """Return the handlers."""

    async def healthz() -> Response:
        return json(Probe("ok", node.life()))

    async def readyz() -> Response:
        found = node.ready()
        if not found.ready:
            title = "the node is starting" if found.state == "starting" else "the node is not ready"
            raise ProblemError(503, title, unready=found)
        return json(Probe("ready", found.state, found.codes))

    async def metrics() -> Response:
        accept = request.headers.get("Accept", "")
        body, content_type = await trio.to_thread.run_sync(node.metrics.render, accept)
        return Response(body, content_type=content_type)

    async def openapi() -> Response:
        return json(document(ENDPOINTS, __version__))

    async def docs() -> Response:
        answer = Response(page(ENDPOINTS, __version__), content_type=f"{HTML}; charset=utf-8")
        answer.headers["Content-Security-Policy"] = POLICY
        return answer

    kept = _Kept(node.status, node.events)

    async def status() -> Response:
        return Response(kept.body(trio.current_time()), content_type=JSON)

    async def peer(peer: str) -> Response:
        return json(find_peer(node.peers(), peer))

    async def netcheck() -> Response:
        return json(await node.netcheck())

    async def routes() -> Response:
        return json(node.routes())

    async def explain_route() -> Response:
        if not (dest := request.args.get("dest", "")):
            raise ProblemError(
                400, "this needs the query dest", fix="give a member's name or node id, or an address"
            )
        return json(node.explain(dest))

    async def acl() -> Response:
        return json(await node.acl())

    async def acl_check() -> Response:
        asked = {name: request.args.get(name, "") for name in ("from", "to", "port")}
        if missing := [name for name, value in asked.items() if not value]:
            raise ProblemError(
                400,
                f"this needs the query {missing[0]}",
                fix="give from and to, by name or address, and port",
            )
        if (family := request.args.get("family", "4")) not in ("4", "6"):
            raise ProblemError(400, "family is not usable", fix="give 4 or 6")
        try:
            protocol, port = parse_service(asked["port"])
        except ValueError as error:
            raise ProblemError(400, "port is not usable", fix=str(error)) from None
        return json(node.acl_check(asked["from"], asked["to"], protocol, port, family=int(family)))

    async def threats() -> Response:
        return json(await node.threats())

    async def bans() -> Response:
        return json(await node.bans())

    async def invites() -> Response:
        return json(await node.invites())

    async def config() -> Response:
        return json(await node.config_text())

    async def drain() -> Response:
        return json(node.drain_state())

    async def topology() -> Response:
        return json(await node.topology())

    async def federation() -> Response:
        return json(node.federation())

    async def export_proofs() -> Response:
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
        return Response(await node.export_proofs(chosen), content_type=BYTES)

    async def agents() -> Response:
        return json(paginate_by(node.agents(), request.args, lambda one: one.name))

    async def agent(name: str) -> Response:
        return json(node.agent(name))

    async def decisions() -> Response:
        of, accepted = request.args.get("agent"), flag("accepted")
        if flag("newest"):
            limit = limit_of(request.args.get("limit"))
            found = node.decisions(0, limit, agent=of, accepted=accepted, newest=True)
            return json(Page(items=found, next_cursor=None))

        def read(after: int, limit: int) -> list[DecisionView]:
            return node.decisions(after, limit, agent=of, accepted=accepted)

        return json(page_after(read, node.events.run, request.args))

    async def incidents() -> Response:
        return json(paginate_by(node.incidents(), request.args, lambda one: f"{one.opened} {one.id}"))

    async def memory() -> Response:
        return json(await node.memory())

    def paged(
        read: Callable[[], Sequence[Row]], key: Callable[[Row], str] = lambda row: row.node_id
    ) -> Callable[[], Awaitable[Response]]:
        async def page() -> Response:
            rows: Sequence[Row] = read()
            if (wanted := request.args.get("peer")) is not None:
                chosen = find_peer(node.peers(), wanted).node_id
                rows = [row for row in rows if row.node_id == chosen]
            return json(paginate_by(rows, request.args, key))

        return page

    return {
        "healthz": healthz,
        "readyz": readyz,
        "metrics": metrics,
        "openapi": openapi,
        "docs": docs,
        "status": status,
        "peers": paged(node.peers),
        "peer": peer,
        "links": paged(node.links),
        "paths": paged(node.paths, lambda path: f"{path.node_id} {path.dimension}"),
        "netcheck": netcheck,
        "routes": routes,
        "federation": federation,
        "explain_route": explain_route,
        "invites": invites,
        "config": config,
        "drain": drain,
        "topology": topology,
        "acl": acl,
        "acl_check": acl_check,
        "threats": threats,
        "bans": bans,
        "scatter": paged(node.scatter),
        "proofs": paged(node.proofs),
        "export_proofs": export_proofs,
        "agents": agents,
        "agent": agent,
        "decisions": decisions,
        "incidents": incidents,
        "memory": memory,
    }


def json(value: object) -> Response:
    """Answer with a value."""
    return Response(msgspec.json.encode(value), content_type=JSON)


def find_peer(peers: Sequence[PeerView], wanted: str) -> PeerView:
    """Return the peer that is meant. Raises UnknownMemberError or AmbiguousNameError."""
    return find(peers, wanted, lambda peer: (peer.name, peer.node_id))
