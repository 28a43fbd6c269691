# SPDX-License-Identifier: GPL-3.0-or-later
"""The MTU of the way to a host, as the kernel knows it: a route's, an interface's, or by a router's word."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Self

from phantommesh.wireguard.device import OUTER_MARK

_IP_MTU, _IPV6_MTU, _MARK = 14, 24, 36  # linux/in.h, linux/in6.h, asm-generic/socket.h
_DISCARD = 9  # a port to name (RFC 863); nothing is sent there
_MTU_DISCOVER, _PROBE = 10, 3  # linux/in.h: never in fragments, up to the interface's MTU
_HEADERS = 28  # bytes of IPv4 (RFC 791) and UDP (RFC 768)


def read(host: str) -> int | None:
    """The MTU in bytes of this node's route to an address of the underlay; None where there is no route.

    The socket has the mark of WireGuard's packets, so policy rules send it the same way. Nothing is sent.
    """
    six = ":" in host
    try:
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as asking:
            _mark(asking)
            asking.connect((host, _DISCARD))
            if six:
                return asking.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
            return asking.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    except OSError:
        return None


class Uncut:
    """Sends IPv4 datagrams that no hop may cut. A hop that would says so by ICMP (RFC 1191), the kernel keeps
    its word for this socket's sake, and `read` shows it. Raises OSError where there is no socket."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, _PROBE)
            _mark(self._socket)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, host: str, port: int, length: int) -> None:
        """Send one datagram of zeros, ``length`` bytes with its headers. One that cannot go is left out."""
        with suppress(OSError):
            self._socket.sendto(bytes(length - _HEADERS), (host, port))


def _mark(sock: socket.socket) -> None:
    """Have a socket's packets go the way that WireGuard's go."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _MARK, OUTER_MARK)
    except PermissionError:
        pass  # without CAP_NET_ADMIN: then by the route that others take
