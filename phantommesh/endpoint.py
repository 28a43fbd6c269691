# SPDX-License-Identifier: GPL-3.0-or-later
"""The address of a datagram, and how large it may be; and a control endpoint as text, as the config, invites
and records carry it."""

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, NamedTuple

# IPv6's minimum MTU of 1280 less the IPv6 and UDP headers (RFC 8200): never IP fragments.
MAX_DATAGRAM: Final = 1232
MAX_ENDPOINT_BYTES: Final = 255
# Tuning.
KEPT: Final = 2048  # endpoints that are parsed once: each datagram to a member asks for all of the member's

_NAME: Final = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


class Address(NamedTuple):
    """The address that a datagram came from or goes to. ``transport`` is ``udp`` or ``tcp``; or ``via``, for
    a member that another member carries datagrams to: see `by_way_of`."""

    host: str
    port: int
    transport: str = "udp"

    def __str__(self) -> str:
        if self.transport == "via":
            return f"member {self.host.partition('/')[0]}, which carries datagrams"
        text = format_endpoint(self.host, self.port)
        return text if self.transport == "udp" else f"{text}/{self.transport}"


def by_way_of(carrier: str, end: str) -> Address:
    """The address of the member ``end`` behind the member ``carrier``, both as node ids in text."""
    return Address(f"{carrier}/{end}", 0, "via")


@lru_cache(maxsize=KEPT)
def parse_endpoint(text: str, default_port: int | None = None) -> tuple[str, int]:
    """Split ``host:port``, ``[v6]:port`` or, given a default port, a bare host.

    The host comes back as an address or a DNS name, without brackets. Raises ValueError saying what is wrong.
    """
    if len(text) > MAX_ENDPOINT_BYTES:
        raise ValueError("it is too long")
    if text.startswith("["):
        host, closing, port_text = text[1:].partition("]")
        if not closing or (port_text and not port_text.startswith(":")):
            raise ValueError("its brackets do not match")
        port_text, has_port = port_text[1:], bool(port_text)
        if "%" in host:
            raise ValueError("a scope (after %) means nothing to another machine")
        try:
            host = str(IPv6Address(host))
        except AddressValueError:
            raise ValueError("what stands in brackets is not an IPv6 address") from None
    else:
        host, separator, port_text = text.partition(":")
        has_port = bool(separator)
        if ":" in port_text:
            raise ValueError("an IPv6 address needs brackets")
        _check_host(host)
    if not has_port and default_port is not None:
        return host, default_port
    if not re.fullmatch(r"[0-9]{1,5}", port_text) or not 1 <= int(port_text) <= 65535:
        raise ValueError("its port is not a number from 1 to 65535")
    return host, int(port_text)


def format_endpoint(host: str, port: int) -> str:
    """Write ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _check_host(host: str) -> None:
    if re.fullmatch(r"[0-9.]+", host):
        try:
            IPv4Address(host)
        except AddressValueError:
            raise ValueError("its host is not an IPv4 address") from None
    elif not _NAME.fullmatch(host):
        raise ValueError("its host is not an address or a DNS name")
