# SPDX-License-Identifier: GPL-3.0-or-later
"""TCP by way of the environment's HTTP proxy (CONNECT, RFC 9110 section 9.3.6), for networks that let nothing
else out.

The proxy's URL may hold a password. So the URL is in no error, no log line and no ``repr``.
"""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import unquote, urlsplit

import trio

from phantommesh.secret import Secret

# The first that is set counts: curl's order for what is no plain HTTP.
NAMES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
MAX_HEAD: Final = 8192  # bytes of a proxy's answer
END: Final = b"\r\n\r\n"  # of its head
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


def proxy_for(host: str, port: int, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy that the environment names for an address and port; None where there is none, or none that
    this node can use: only ``http://`` proxies are."""
    if goes_without(host, port, environment.get("no_proxy") or environment.get("NO_PROXY") or ""):
        return None
    named = next((environment[name] for name in NAMES if environment.get(name)), "")
    return parse_proxy(named)


def goes_without(host: str, port: int, excluded: str) -> bool:
    """Whether ``NO_PROXY`` says that a host, a name or an address, takes no proxy.

    This machine itself never does: a proxy would take it for its own, and Go's httpproxy spares it too.
    Entries are parted by commas or blanks, as Go's httpproxy and curl read them: ``*``; an address; a network
    (``10.0.0.0/8``, ``fd00::/8``); a name, which means all below it too; ``.example.net``, which means only
    those below. Each but a network may have a port. What is none of these excludes nothing.
    """
    target = _address(host)
    if host.lower() == "localhost" or (target is not None and target.is_loopback):
        return True
    return any(_excludes(entry, host, port, target) for entry in excluded.replace(",", " ").split())


_Ip = IPv4Address | IPv6Address


def _address(text: str) -> _Ip | None:
    try:
        found = ip_address(text.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _excludes(entry: str, host: str, port: int, target: _Ip | None) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return target is not None and target in ip_network(entry, strict=False)
        except ValueError:
            return False
    if (named := _address(entry)) is None:
        name, colon, number = entry.rpartition(":")
        if colon and number != str(port):
            return False
        entry = name if colon else entry
        named = _address(entry)
    if named is not None or target is not None:
        return named == target
    wanted, suffix = host.lower().rstrip("."), entry.lower().removeprefix("*").rstrip(".")
    below = suffix if suffix.startswith(".") else f".{suffix}"
    return suffix not in ("", ".") and (wanted == suffix or wanted.endswith(below))


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


def refusal(head: bytes) -> str:
    """Why a proxy has not connected, by the head of its answer, without any text of the proxy's."""
    words = head.split(b"\r\n", 1)[0].split(b" ", 2)
    status = words[1] if len(words) > 1 and words[0].startswith(b"HTTP/") and words[1].isdigit() else b""
    if status == b"407":
        return "it wants other credentials (407): set user and password in the URL of HTTPS_PROXY"
    return f"it refused ({status[:3].decode()})" if status else "its answer is none of HTTP"


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
                head = await _head(stream)
                if not connected(head):
                    raise ProxyError(refusal(head))
            except BaseException:
                await trio.aclose_forcefully(stream)
                raise
            return stream
    except (OSError, UnicodeError, trio.TooSlowError, trio.BrokenResourceError) as error:
        raise ProxyError("it does not answer") from error


async def _head(stream: trio.SocketStream) -> bytes:
    """Read the head of a proxy's answer, and nothing of what follows it: that is the other end's. Raises
    `ProxyError`."""
    head = b""
    while len(head) < MAX_HEAD:
        part = await stream.socket.recv(MAX_HEAD, socket.MSG_PEEK)
        end = (head + part).find(END)
        taken = len(part) if end < 0 else end + len(END) - len(head)
        head += await stream.socket.recv(taken) if part else b""
        if end >= 0:
            return head
        if not part:
            raise ProxyError(refusal(head) if head else "it closed the connection")
    raise ProxyError(refusal(b""))


def environment_proxy(host: str, port: int) -> Proxy | None:
    """`proxy_for` by this process's environment."""
    return proxy_for(host, port, os.environ)
