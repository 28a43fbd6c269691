# SPDX-License-Identifier: GPL-3.0-or-later
"""Who asks, whether over a way that the node trusts, and whether they may.

Over the Unix socket the kernel says who asks; its file's mode has let them in. Over TCP a bearer token does
(RFC 6750); a browser, which cannot set that header for a WebSocket, gives the token as a subprotocol.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from time import time
from typing import Any, Final

from quart import Request, Websocket, g

from phantommesh.management.endpoints import Endpoint
from phantommesh.management.metrics import Metrics
from phantommesh.management.scopes import Scope, allows
from phantommesh.management.tokens import Looked, Standing, Token, TokenDesk
from phantommesh.nursery.api.problems import ProblemError
from phantommesh.rates import Rates, source_block

EVENTS_PROTOCOL: Final = "phantommesh.events"
"""The subprotocol that the node chooses of a WebSocket's."""
BEARER_PROTOCOL: Final = "phantommesh.bearer."
"""What a browser puts before the token in another subprotocol, which the node never repeats."""
_HOST: Final = re.compile(r"(?:(\[[0-9A-Fa-f:.]{2,45}\])|([A-Za-z0-9._-]{1,255}))(?::[0-9]{1,5})?")
MOST_HEADER: Final = 256  # characters of an Authorization header that are looked at

# Tuning.
WRONG_RATE, WRONG_BURST = 0.2, 10.0  # wrong tokens of one source block, a second and at once
MOST_BLOCKS: Final = 4096  # source blocks that are told apart
MOST_FRIENDS: Final = 1024  # pairs of a block and a token that was right from there

_MAKE: Final = "make a token with `phantommesh token create --scope {scope}` on the node"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``scope`` None: nobody that the node knows. ``uid``: the user at the Unix socket; ``token``:
    the one that was given; ``address``: of a client over TCP. ``wrong``: what was wrong with a token."""

    scope: Scope | None
    uid: int | None = None
    token: Token | None = None
    address: str | None = None
    wrong: Standing | None = None

    @property
    def full(self) -> bool:
        """Whether the caller may also do what there is no way back from: root, the node's own user, and who
        has a token of scope `admin`. The socket's group has scope `admin` and may not."""
        if self.token is not None:
            return self.scope is Scope.ADMIN
        return self.uid is not None and self.uid in (0, os.geteuid())

    @property
    def called(self) -> str:
        """The caller as the audit trail has it."""
        if self.token is not None:
            state = "" if self.wrong is None else f", {self.wrong}"
            return f"token {self.token.id} ({self.token.name}{state})"
        if self.scope is not None:
            return f"uid {'unknown' if self.uid is None else self.uid}"
        return "nobody" if self.wrong is None else f"nobody ({self.wrong} token)"


NOBODY: Final = Caller(None)


def caller() -> Caller:
    """Who made the request at hand; nobody before that is known."""
    found: Caller = g.get("caller", NOBODY)
    return found


def still_good(tokens: TokenDesk, by: Caller) -> bool:
    """Whether the token counts by which a caller came; so it is for who came without."""
    if by.token is None:
        return True
    kept = [token for token in tokens.book.tokens if token.id == by.token.id]
    return any(token.state(time()) == "good" for token in kept)


@dataclass(slots=True)
class Guessing:
    """Wrong tokens, by source block: who gives too many waits. A token that was right from the same block
    lately is heard all the same, or a guesser behind the same NAT would shut out whoever works there."""

    _wrong: Rates[str] = field(default_factory=lambda: Rates(WRONG_RATE, WRONG_BURST, MOST_BLOCKS))
    _friends: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)

    def wait(self, block: str, looked: Looked, now: float) -> float:
        """Take note of a token that was given. Return for how many seconds its block is not heard; 0 where it
        is. An answer must then not tell whether the token is right."""
        key = (block, "" if looked.token is None else looked.token.id)
        good = looked.standing == "good"
        if good and key in self._friends:
            self._friends.move_to_end(key)
            return 0.0
        if (left := self._wrong.wait(block, now)) > 0:
            return left
        if not good:
            self._wrong.allow(block, now)
            return 0.0
        self._friends[key] = None
        if len(self._friends) > MOST_FRIENDS:
            self._friends.popitem(last=False)
        return 0.0


@dataclass(frozen=True, slots=True)
class Door:
    """By which way requests come in. ``trusted``: the Unix socket. ``hosts``: the names, besides the address
    that was connected to, by which clients may call the node."""

    trusted: bool
    hosts: frozenset[str] = frozenset()


class Gate:
    """Lets requests in, or refuses them with a problem. ``clock`` is trio's, ``wall`` Unix time, both in
    seconds."""

    def __init__(
        self, door: Door, tokens: TokenDesk, metrics: Metrics, *, clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:  # fmt: skip
        self._door, self._tokens, self._metrics = door, tokens, metrics
        self._clock, self._wall = clock, wall
        self._guessing = Guessing()

    def check(self, asked: Request | Websocket, endpoint: Endpoint[Any] | None) -> None:
        """Set who asks. Raises ProblemError (421, 403, 401, 429)."""
        try:
            self._check(asked, endpoint)
        except ProblemError as error:
            self._metrics.api_refused.labels(str(error.problem.status)).inc()
            raise

    def _check(self, asked: Request | Websocket, endpoint: Endpoint[Any] | None) -> None:
        address = client_of(asked)
        g.caller = Caller(None, address=address)
        self._check_host(asked)
        _check_origin(asked)
        if self._door.trusted:
            uid: int | None = asked.scope.get("state", {}).get("uid")
            g.caller = Caller(Scope.ADMIN, uid=uid)
        elif (text := bearer(asked)) is not None:
            g.caller = self._known(text, address)
        if endpoint is None or allows(g.caller.scope, endpoint.scope):
            return
        if endpoint.local and address is not None and _is_loopback(address):
            return
        assert endpoint.scope is not None
        _refuse(g.caller, endpoint.scope)

    def _known(self, text: str, address: str | None) -> Caller:
        looked = self._tokens.book.look(text, self._wall())
        block = "" if address is None else source_block(address)
        if (wait := self._guessing.wait(block, looked, self._clock())) > 0:
            raise ProblemError(
                429, "too many wrong tokens came from this address", fix="wait, then give the right token",
                headers={"Retry-After": str(int(wait) + 1)},
            )  # fmt: skip
        if looked.standing != "good" or looked.token is None:
            return Caller(None, token=looked.token, address=address, wrong=looked.standing)
        self._tokens.used[looked.token.id] = self._wall()
        return Caller(looked.token.scope, token=looked.token, address=address)

    def _check_host(self, asked: Request | Websocket) -> None:
        """A web page on this machine, or in this network, can reach the node under a name of its own (DNS
        rebinding). So a name has to be known; an address has to be the one that was connected to.

        At the Unix socket nobody but a browser means anything by the name: it gets there over a port that
        somebody has forwarded (`ssh -L`), which is on the browser's own machine. Nor does Origin help: a page
        that asks its own site sends none with GET, and a true one otherwise.
        """
        given = asked.headers.getlist("Host") or [asked.headers.get(":authority", "")]
        name = host_of(given[0]) if len(given) == 1 else None
        if self._door.trusted:
            if given == [""] or (name is not None and _is_loopback(name)):
                return
            raise ProblemError(
                421, "this host name is not this machine's",
                fix="ask for http://localhost/ at the socket, and at a port that is forwarded to it",
            )  # fmt: skip
        server = (asked.scope.get("server") or ("", 0))[0]
        own = {*self._door.hosts, _plain(server)}
        if name is not None and (name in own or (_is_loopback(server or name) and _is_loopback(name))):
            return
        raise ProblemError(
            421, "this host name is not the node's",
            fix="ask for the address that the node listens on, or put the name into api.hosts and restart it",
        )  # fmt: skip


def _check_origin(asked: Request | Websocket) -> None:
    """Refuse a request that a page of another site makes. Browsers say so by Origin (RFC 6454); others leave
    the header out, or give the node's own."""
    origins = asked.headers.getlist("Origin")
    if not origins:
        return
    scheme = {"ws": "http", "wss": "https"}.get(asked.scheme, asked.scheme)
    own = f"{scheme}://{asked.headers.get('Host', '')}".lower()
    if len(origins) > 1 or origins[0].lower() != own:
        raise ProblemError(
            403,
            "a page of another site makes this request",
            fix="open the node's own page, or use another client",
        )


def _refuse(by: Caller, needed: Scope) -> None:
    make = _MAKE.format(scope=needed.value)
    challenge = {"WWW-Authenticate": 'Bearer realm="phantommesh"'}
    if by.scope is not None:
        raise ProblemError(
            403,
            f"this needs a token of scope {needed.value}, and the token has scope {by.scope.value}",
            fix=make,
        )
    if by.wrong is not None:
        challenge["WWW-Authenticate"] += ', error="invalid_token"'
        raise ProblemError(401, "the token does not count, or not any more", fix=make, headers=challenge)
    raise ProblemError(
        401, "this needs a token", fix=f"send `Authorization: Bearer pmt_...`; {make}", headers=challenge
    )


def bearer(asked: Request | Websocket) -> str | None:
    """The token that a request gives; None for none, and for a header that speaks of something else. Two of
    them are a wrong one."""
    given = asked.headers.getlist("Authorization")
    found = [] if not given else [_of_header(text) for text in given]
    if isinstance(asked, Websocket):
        found += [
            p.removeprefix(BEARER_PROTOCOL)
            for p in asked.requested_subprotocols
            if p.startswith(BEARER_PROTOCOL)
        ]
    if len(found) > 1:
        return ""
    return found[0] if found else None


def _of_header(text: str) -> str:
    scheme, _, token = text[:MOST_HEADER].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def client_of(asked: Request | Websocket) -> str | None:
    """The address of a client over TCP, None at the Unix socket."""
    client = asked.scope.get("client")
    if not client or not client[0]:
        return None
    plain = _plain(client[0])
    try:
        ip_address(plain)
    except ValueError:
        return None
    return plain


def host_of(given: str) -> str | None:
    """The host of a Host header in lower case, without port, brackets and last dot; None where it is none."""
    found = _HOST.fullmatch(given)
    return None if found is None else _plain((found[1] or found[2]).strip("[]"))


def _plain(host: str) -> str:
    """A host in its one way of writing: an address without scope, IPv4 as such; a name in lower case."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower().removesuffix(".")
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(address if mapped is None else mapped)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
