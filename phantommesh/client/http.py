# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line's client of a running node: blocking HTTP/1.1 over its Unix socket, or TLS with a token.

On the standard library alone: importing an HTTP client library would take longer than the request.
"""

import grp
import http.client
import os
import pwd
import socket
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from phantommesh.client.places import Place, Remote
from phantommesh.errors import PhantomMeshError
from phantommesh.management.aclview import AclCheckView, AclView, PolicyResult
from phantommesh.management.agentview import AgentDetail, AgentsResult, MemoryView
from phantommesh.management.configview import ConfigResult, ConfigView
from phantommesh.management.drainview import DrainView
from phantommesh.management.explainview import Explanation
from phantommesh.management.federationview import FederationInvited, FederationView, PactResult
from phantommesh.management.inviteview import InviteMade, InvitesView, WithdrawnView
from phantommesh.management.netview import NetCheck
from phantommesh.management.pingview import PingResult
from phantommesh.management.routeview import RouteResult, RoutesView
from phantommesh.management.threatsview import BanResult, ThreatsView, UnbanResult
from phantommesh.management.tokens import TokenMade, TokensView, TokenView
from phantommesh.management.topoview import TopologyView
from phantommesh.management.views import (
    IdentityResult,
    NameResult,
    Page,
    Problem,
    RevocationResult,
    RotationResult,
    Status,
)

T = TypeVar("T")

PAGE_LIMIT = 1000
GROUP = "phantommesh"  # its members may use a node's socket


class NodeNotRunningError(PhantomMeshError):
    """Nothing answers on the node's socket. The command line exits with status 3."""


class ApiError(PhantomMeshError):
    """The node answered with an error, or with something that is no answer."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, place: Place, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._place = place

    def connect(self) -> None:
        self.sock = connect(self._place, self.timeout)


def connect(place: Place, timeout: float | None) -> socket.socket:
    """Return a connection to a node. Raises OSError, PlaceError."""
    if isinstance(place, Remote):
        return place.connect(timeout)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(str(place))
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def explaining(place: Place, timeout: float) -> Iterator[None]:
    """Turn what can go wrong on the way to a node into NodeNotRunningError or ApiError."""
    far = isinstance(place, Remote)
    try:
        yield
    except (FileNotFoundError, ConnectionRefusedError):
        raise NodeNotRunningError(
            f"the node is not running: nothing answers on {place}",
            fix="check the address, that api.listen is set there and that the node runs"
            if far
            else "start it with `phantommesh up` or `phantommesh run`, or pass --socket",
        ) from None
    except ssl.SSLCertVerificationError as error:
        raise ApiError(
            f"the certificate at {place} is not trusted: {error.verify_message}",
            fix="give the file of who signed it by --ca, or by --fingerprint the SHA-256 that the node's log "
            "has at `API listens`",
        ) from None
    except PermissionError as error:
        if isinstance(place, Path):
            raise refusal(place) from None
        raise ApiError(f"cannot connect to {place}: {error.strerror}", fix="look at the firewall") from None
    except TimeoutError:
        raise ApiError(
            f"the node did not answer on {place} within {timeout:g} s",
            fix="look at its log; restart it if it hangs",
        ) from None
    except (OSError, http.client.HTTPException) as error:
        raise ApiError(
            f"no usable answer on {place}: {type(error).__name__} {error}".rstrip(),
            fix="check that this is a PhantomMesh node's " + ("API" if far else "socket"),
        ) from None


def refusal(path: Path) -> ApiError:
    """Return the error for a socket that this process may not use: it names the group that may, and how to
    get into the group."""
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = "USER"
    try:
        found = path.stat()
    except OSError:  # its directory is closed to others too
        return ApiError(
            f"no permission to use {path}",
            fix=f"run this with sudo; for the group {GROUP} to get at the socket, `sudo chmod a+x "
            f"{path.parent}`",
        )
    try:
        group = grp.getgrgid(found.st_gid)
    except KeyError:
        group = None
    if group is None or found.st_mode & 0o060 != 0o060:
        return ApiError(
            f"no permission to use {path}: it is root's alone, as there was no group {GROUP} when the node "
            "started",
            fix=f"run this with sudo; or run `sudo groupadd --system {GROUP}` and `sudo usermod -aG {GROUP} "
            f"{user}`, start the node again, and log in again",
        )
    error = f"no permission to use {path}: it is for root and the group {group.gr_name}"
    if user in group.gr_mem:
        return ApiError(
            f"{error}, which this session does not have yet",
            fix=f"log in again, or run `newgrp {group.gr_name}` first",
        )
    return ApiError(
        error,
        fix=f"run this with sudo; or run `sudo usermod -aG {group.gr_name} {user}` and log in again: the "
        "group may see all that the node reports, rotate keys and pause agents, but not revoke",
    )


class NodeClient:
    """One request a connection; ``timeout`` is in seconds and bounds each wait for the node."""

    def __init__(self, place: Place, *, timeout: float = 10.0) -> None:
        self.place = place
        self.timeout = timeout

    def status(self) -> Status:
        return self.get("/v1/status", Status)

    def topology(self) -> TopologyView:
        return self.get("/v1/topology", TopologyView)

    def routes(self) -> RoutesView:
        return self.get("/v1/routes", RoutesView)

    def explain(self, dest: str) -> Explanation:
        return self.get(f"/v1/routes/explain?{urlencode({'dest': dest}, quote_via=quote)}", Explanation)

    def approve_routes(self, node: str, prefixes: Sequence[str], *, idempotency_key: str) -> RouteResult:
        return self._decide("/v1/routes/approvals", node, prefixes, idempotency_key)

    def revoke_routes(self, node: str, prefixes: Sequence[str], *, idempotency_key: str) -> RouteResult:
        return self._decide("/v1/routes/withdrawals", node, prefixes, idempotency_key)

    def federation(self) -> FederationView:
        return self.get("/v1/federation", FederationView)

    def federate(self, *, idempotency_key: str, **offer: Any) -> FederationInvited:
        return self._do("/v1/federation/invites", offer, FederationInvited, idempotency_key)

    def accept_pact(self, line: str, *, idempotency_key: str, **offer: Any) -> PactResult:
        return self._do("/v1/federation/pacts", {"line": line, **offer}, PactResult, idempotency_key)

    def end_pact(self, pact: str, *, idempotency_key: str) -> PactResult:
        return self._do("/v1/federation/ends", {"pact": pact}, PactResult, idempotency_key)

    def agent(self, name: str) -> AgentDetail:
        return self.get(f"/v1/agents/{_segment(name)}", AgentDetail)

    def pause_agent(self, name: str, *, idempotency_key: str, dry_run: bool = False) -> AgentsResult:
        path = f"/v1/agents/{_segment(name)}/pause{_trial(dry_run)}"
        return self._do(path, {}, AgentsResult, idempotency_key)

    def resume_agent(
        self, name: str, *, trying: bool, idempotency_key: str, dry_run: bool = False
    ) -> AgentsResult:
        path = f"/v1/agents/{_segment(name)}/resume{_trial(dry_run)}"
        return self._do(path, {"dry_run": trying}, AgentsResult, idempotency_key)

    def memory(self) -> MemoryView:
        return self.get("/v1/memory", MemoryView)

    def _do(self, path: str, body: object, kind: type[T], key: str, method: str = "POST") -> T:
        headers = {"Content-Type": "application/json", "Idempotency-Key": key}
        return decode(self.request(method, path, body=msgspec.json.encode(body), headers=headers), kind)

    def acl(self) -> AclView:
        return self.get("/v1/acl", AclView)

    def acl_check(self, source: str, target: str, port: str, *, family: int = 4) -> AclCheckView:
        asked = {"from": source, "to": target, "port": port, "family": str(family)}
        return self.get(f"/v1/acl/check?{urlencode(asked, quote_via=quote)}", AclCheckView)

    def threats(self) -> ThreatsView:
        return self.get("/v1/threats", ThreatsView)

    def set_policy(self, text: str, *, dry_run: bool, idempotency_key: str) -> PolicyResult:
        path = "/v1/acl/policy" + ("?dry_run=true" if dry_run else "")
        return self._do(path, {"policy": text}, PolicyResult, idempotency_key)

    def ban(
        self, network: str, *, seconds: float, force: bool, dry_run: bool, idempotency_key: str
    ) -> BanResult:
        body = {"network": network, "seconds": seconds, "force": force}
        path = "/v1/bans" + ("?dry_run=true" if dry_run else "")
        return self._do(path, body, BanResult, idempotency_key)

    def unban(
        self, *, network: str | None = None, by: str | None = None, dry_run: bool = False
    ) -> UnbanResult:
        given = (("network", network), ("by", by), ("dry_run", "true" if dry_run else None))
        asked = {key: value for key, value in given if value is not None}
        return decode(self.request("DELETE", f"/v1/bans?{urlencode(asked, quote_via=quote)}"), UnbanResult)

    def invites(self) -> InvitesView:
        return self.get("/v1/invites", InvitesView)

    def make_invite(self, *, dry_run: bool, idempotency_key: str, **wanted: Any) -> InviteMade:
        return self._do(f"/v1/invites{_trial(dry_run)}", wanted, InviteMade, idempotency_key)

    def config(self) -> ConfigView:
        return self.get("/v1/config", ConfigView)

    def set_config(self, text: str, *, dry_run: bool, idempotency_key: str) -> ConfigResult:
        path = f"/v1/config{_trial(dry_run)}"
        return self._do(path, {"config": text}, ConfigResult, idempotency_key, "PUT")

    def withdraw_invite(self, wanted: str) -> WithdrawnView:
        return decode(self.request("DELETE", f"/v1/invites/{_segment(wanted)}"), WithdrawnView)

    def netcheck(self) -> NetCheck:
        return self.get("/v1/netcheck", NetCheck)

    def ping(self, peer: str, *, count: int, size: int | None, idempotency_key: str) -> PingResult:
        return decode(
            self.request(
                "POST",
                "/v1/pings",
                body=msgspec.json.encode({"peer": peer, "count": count, "size": size}),
                headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key},
            ),
            PingResult,
        )

    def rotate(self, peer: str | None, *, dry_run: bool, idempotency_key: str) -> RotationResult:
        return decode(
            self.request(
                "POST",
                "/v1/rotations" + ("?dry_run=true" if dry_run else ""),
                body=msgspec.json.encode({"peer": peer}),
                headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key},
            ),
            RotationResult,
        )

    def revoke(
        self,
        node: str,
        *,
        force: bool,
        dry_run: bool,
        idempotency_key: str,
        undo: bool = False,
        undo_all: bool = False,
    ) -> RevocationResult:
        body = {"node": node, "force": force, "undo": undo, "undo_all": undo_all}
        return decode(
            self.request(
                "POST",
                "/v1/revocations" + ("?dry_run=true" if dry_run else ""),
                body=msgspec.json.encode(body),
                headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key},
            ),
            RevocationResult,
        )

    def drain_state(self) -> DrainView:
        return self.get("/v1/drain", DrainView)

    def drain(self, seconds: float, *, force: bool, idempotency_key: str, dry_run: bool = False) -> DrainView:
        body: dict[str, object] = {"seconds": seconds, "force": force}
        return self._drain(f"/v1/drain{_trial(dry_run)}", body, idempotency_key)

    def undrain(self, *, idempotency_key: str, dry_run: bool = False) -> DrainView:
        return self._drain(f"/v1/undrain{_trial(dry_run)}", {}, idempotency_key)

    def _drain(self, path: str, body: dict[str, object], idempotency_key: str) -> DrainView:
        headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key}
        return decode(self.request("POST", path, body=msgspec.json.encode(body), headers=headers), DrainView)

    def rename(self, name: str, *, idempotency_key: str) -> NameResult:
        return decode(
            self.request(
                "POST",
                "/v1/names",
                body=msgspec.json.encode({"name": name}),
                headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key},
            ),
            NameResult,
        )

    def _decide(self, path: str, node: str, prefixes: Sequence[str], idempotency_key: str) -> RouteResult:
        return decode(
            self.request(
                "POST",
                path,
                body=msgspec.json.encode({"node": node, "prefixes": list(prefixes)}),
                headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key},
            ),
            RouteResult,
        )

    def make_token(
        self, *, scope: str, seconds: float, name: str, dry_run: bool, idempotency_key: str
    ) -> TokenMade:
        body = {"scope": scope, "seconds": seconds, "name": name}
        path = "/v1/tokens" + ("?dry_run=true" if dry_run else "")
        return self._do(path, body, TokenMade, idempotency_key)

    def tokens(self) -> TokensView:
        return self.get("/v1/tokens", TokensView)

    def revoke_token(self, token_id: str) -> TokenView:
        return decode(self.request("DELETE", f"/v1/tokens/{_segment(token_id)}"), TokenView)

    def new_identity(self, *, idempotency_key: str) -> IdentityResult:
        return decode(
            self.request(
                "POST",
                "/v1/identities",
                body=b"{}",
                headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key},
            ),
            IdentityResult,
        )

    def get(self, path: str, kind: type[T]) -> T:
        return decode(self.request("GET", path), kind)

    def get_all(self, path: str, item: type[T], query: Mapping[str, str] | None = None) -> list[T]:
        """Every item of a list, however many pages it has. ``query`` narrows it, as the path allows."""
        items: list[T] = []
        cursor: str | None = ""
        while cursor is not None:
            asked = dict(query or {}) | {"limit": str(PAGE_LIMIT)} | ({"cursor": cursor} if cursor else {})
            answer = self.request("GET", f"{path}?{urlencode(asked, quote_via=quote)}")
            page = decode(answer, Page[item])  # type: ignore[valid-type]
            items += page.items
            cursor = page.next_cursor
        return items

    def request(
        self, method: str, path: str, *, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> bytes:
        """Send one request and return the body of its 2xx answer.

        Raises NodeNotRunningError when nothing listens, ApiError for every other failure.
        """
        connection = _Connection(self.place, self.timeout)
        given = dict(headers or {}) | (self.place.headers if isinstance(self.place, Remote) else {})
        try:
            with explaining(self.place, self.timeout):
                connection.request(method, quote(path, safe="/?&=%"), body=body, headers=given)
                response = connection.getresponse()
                content = response.read()
        finally:
            connection.close()
        if response.status // 100 != 2:
            raise error_of(response.status, content)
        return content


def _trial(dry_run: bool) -> str:
    return "?dry_run=true" if dry_run else ""


def _segment(text: str) -> str:
    """A word as one segment of a path, which the path's own quoting leaves as it is."""
    return quote(text, safe="")


def decode(content: bytes | str, kind: type[T]) -> T:
    """Read what a node said. Raises ApiError."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise ApiError(
            f"the node's answer is not understood: {error}",
            fix="use the command line of the version that the node runs",
        ) from None


def error_of(status: int, content: bytes) -> ApiError:
    """Return the exception to raise for an answer that is an error."""
    try:
        problem = msgspec.json.decode(content, type=Problem)
    except msgspec.MsgspecError:
        return ApiError(f"the node answered {status} without a reason", fix="look at its log")
    return ApiError("; ".join([problem.detail or problem.title, *problem.reasons]), fix=problem.fix)
