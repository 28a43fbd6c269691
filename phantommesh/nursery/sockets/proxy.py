# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP by way of the environment's HTTP proxy (CONNECT, RFC 9110 section 9.3.6), for networks that let nothing
else out.

The proxy's URL may hold a password. So the URL is in no error, no log line and no ``repr``.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

import trio

from phantommesh.secret import Secret

# The first that is set counts: curl's order for what is no plain HTTP.
NAMES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
MAX_HEAD: Final = 8192  # bytes of a proxy's answer
CONNECT: Final = 3.0  # s until the proxy has connected


class ProxyError(Exception):
    """The proxy did not connect."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. ``credentials``: what follows ``Basic`` (RFC 7617)."""

    host: str
    port: int
    credentials: Secret | None = None

    def request(self, host: str, port: int) -> bytes:
        """The request to connect to an address."""
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
        if self.credentials is not None:
            lines.append(f"Proxy-Authorization: Basic {self.credentials.reveal().decode('ascii')}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")


def proxy_for(host: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for an address; None where there is none, or none that this node
    can use: only ``http://`` proxies are."""
    excluded = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if any(one.strip() in ("*", host) for one in excluded.split(",")):
        return None
    named = next((environment[name] for name in NAMES if environment.get(name)), "")
    return parse_proxy(named)


def parse_proxy(url: str) -> Proxy | None:
    """Read a proxy's URL, with or without its scheme; None for what is none."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or 80
    except ValueError:
        return None
    if parts.scheme != "http" or not parts.hostname:
        return None
    if parts.username is None:
        return Proxy(parts.hostname, port)
    known = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(parts.hostname, port, Secret(base64.b64encode(known.encode())))


def connected(head: bytes) -> bool:
    """Whether the head of a proxy's answer says that it has connected: any 2xx."""
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    return len(words) > 1 and words[0].startswith(b"HTTP/1.") and len(words[1]) == 3 and words[1][:1] == b"2"


async def connect_by(proxy: Proxy, host: str, port: int) -> trio.SocketStream:
    """Connect to an address by way of a proxy. Raises `ProxyError`, without the proxy's URL."""
    try:
        with trio.fail_after(CONNECT):
            stream = await trio.open_tcp_stream(proxy.host, proxy.port)
            try:
                await stream.send_all(proxy.request(host, port))
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    # One byte at a time: what follows the head is the other end's.
                    part = await stream.receive_some(1)
                    if not part or len(head) >= MAX_HEAD:
                        raise ProxyError("the proxy's answer is none of HTTP")
                    head += part
                if not connected(head):
                    raise ProxyError("the proxy refused")
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            return stream
    except (OSError, UnicodeError, trio.TooSlowError, trio.BrokenResourceError) as error:
        raise ProxyError("the proxy does not answer") from error


def environment_proxy(host: str) -> Proxy | None:
    """`proxy_for` by this process's environment."""
    return proxy_for(host, os.environ)
