# SPDX-License-Identifier: GPL-3.0-or-later
"""The MTU of the way to a host, as the kernel knows it: a route's, an interface's, or by a router's word."""

from __future__ import annotations

import socket

from phantommesh.wireguard.device import OUTER_MARK

_IP_MTU, _IPV6_MTU, _MARK = 14, 24, 36  # linux/in.h, linux/in6.h, asm-generic/socket.h
_DISCARD = 9  # a port to name (RFC 863); nothing is sent there


def read(host: str) -> int | None:
    """The MTU in bytes of this node's route to an address of the underlay; None where there is no route.

    The socket has the mark of WireGuard's packets, so policy rules send it the same way. Nothing is sent.
    """
    six = ":" in host
    try:
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as asking:
            try:
                asking.setsockopt(socket.SOL_SOCKET, _MARK, OUTER_MARK)
            except PermissionError:
                pass  # without CAP_NET_ADMIN: then by the route that others take
            asking.connect((host, _DISCARD))
            if six:
                return asking.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
            return asking.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    except OSError:
        return None
