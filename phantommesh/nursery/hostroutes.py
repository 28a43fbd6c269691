# SPDX-License-Identifier: GPL-3.0-or-later
"""What the host itself has in the overlay's range, and the routes that close that range.

They are ``unreachable`` routes of the worst metric in the main table, and they outlive the node: without them
what is sent to the overlay's addresses while nothing carries it would follow the host's default route, in
clear. `taking_down` alone removes them. The functions block; each opens a netlink socket of its own.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from phantommesh.nursery.netlink import ALIAS, ROUTE_PROTOCOL, BackendError, NetlinkSocket
from phantommesh.overlay import CLOSED_METRIC, DEFAULT_PREFIX, HostRange, Kind
from phantommesh.wgnetlink import attributes, number
from phantommesh.wireguard import Network

# linux/rtnetlink.h, linux/netlink.h
_REQUEST, _DUMP = 1, 0x300
_GET_LINK, _GET_ADDRESS, _GET_ROUTE = 18, 22, 26
_IFLA_NAME, _IFLA_ALIAS, _IFA_ADDRESS, _IFA_LOCAL = 3, 20, 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 1, 4, 5, 6, 9, 15, 18
_MAIN_TABLE: Final = 254
_UNICAST, _LOCAL, _UNREACHABLE = 1, 2, 7  # the other types lead nowhere, or to no one host
_CLONED = 0x200  # a cached copy of a route

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
GROUPS: Final = 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_*: the addresses and routes of both families, for a socket that wants to hear of changes."""


@dataclass(frozen=True, slots=True)
class HostView:
    """One look at the host: what it has of its own in the overlay's range, and which prefixes are closed."""

    ranges: tuple[HostRange, ...]
    closed: frozenset[Network]


@dataclass(frozen=True, slots=True)
class _Interface:
    name: str
    ours: bool


def look(networks: Sequence[Network], names: Collection[str]) -> HostView:
    """Read the host's addresses and routes that overlap these networks; ``names`` are this node's own
    interfaces, which do not count. Default routes do not count, but their gateways do. Raises
    BackendError."""
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            links = _links(rtnl, names)
            found, closed = set(_addresses(rtnl, links, networks)), set[Network]()
            for family in _FAMILIES.values():
                for message in _routes(rtnl, family):
                    if (held := _closing(message)) is not None:
                        if any(_meets(held, network) for network in networks):
                            closed.add(held)
                    else:
                        found |= set(_taken(message, links, networks))
    except OSError as error:
        raise BackendError(f"the host's routes could not be read: {error.strerror or error}") from error
    return HostView(tuple(sorted(found, key=str)), frozenset(closed))


def close(wanted: Iterable[Network], closed: Iterable[Network]) -> bool:
    """Have exactly the ``wanted`` prefixes closed, given those that are; return whether that took a change.
    What is missing is added before what is too much goes. Raises BackendError."""
    want, have = set(wanted), set(closed)
    if want == have:
        return False
    failure: Exception | None = None
    with IPRoute() as rtnl:
        for command, networks in (("add", want - have), ("del", have - want)):
            for network in sorted(networks, key=str):
                try:
                    rtnl.route(command, **_closing_route(network))
                except (NetlinkError, OSError) as error:
                    code = error.code if isinstance(error, NetlinkError) else error.errno
                    if code == errno.EAFNOSUPPORT and network.version == 6:
                        continue  # a kernel without IPv6 sends none
                    if code not in ((errno.EEXIST,) if command == "add" else (errno.ESRCH, errno.ENOENT)):
                        failure = failure or _refused(network, code, error)
    if failure is not None:
        raise failure
    return True


def _refused(network: Network, code: int | None, error: Exception) -> BackendError:
    fix = "run as root or with CAP_NET_ADMIN" if code == errno.EPERM else ""
    reason = os.strerror(code) if code else str(error)
    return BackendError(f"the overlay {network} could not be closed: {reason}", fix=fix)


def _closing_route(network: Network) -> dict[str, object]:
    return {
        "type": "unreachable",
        "dst": str(network),
        "table": _MAIN_TABLE,
        "proto": ROUTE_PROTOCOL,
        "priority": CLOSED_METRIC,
        "family": _FAMILIES[network.version],
    }


# ---- reading ----


@dataclass(frozen=True, slots=True)
class _Message:
    """One route of the kernel's."""

    family: int
    prefix: int
    table: int
    protocol: int
    kind: int
    fields: dict[int, bytes]

    @property
    def network(self) -> Network:
        target = self.fields.get(_RTA_DST, bytes(4 if self.family == socket.AF_INET else 16))
        return ip_network((target, self.prefix))


def _request(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _DUMP, 1, 0) + body


def _links(rtnl: NetlinkSocket, names: Collection[str]) -> dict[int, _Interface]:
    links = {}
    for _, _, payload in rtnl.exchange(_request(_GET_LINK, bytes(16))):
        _, _, index, _ = struct.unpack_from("=HHiI", payload)
        fields = dict(attributes(payload[16:]))
        name = fields.get(_IFLA_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        ours = fields.get(_IFLA_ALIAS, b"").rstrip(b"\0") == ALIAS.encode()
        links[index] = _Interface(name, ours and name in names)
    return links


def _addresses(
    rtnl: NetlinkSocket, links: dict[int, _Interface], networks: Sequence[Network]
) -> Iterator[HostRange]:
    for _, _, payload in rtnl.exchange(_request(_GET_ADDRESS, bytes(8))):
        _, _, _, _, index = struct.unpack_from("=BBBBI", payload)
        fields = dict(attributes(payload[8:]))
        yield from _range(
            "address", ip_network(fields.get(_IFA_LOCAL) or fields[_IFA_ADDRESS]), links.get(index), networks
        )


def _routes(rtnl: NetlinkSocket, family: int) -> Iterator[_Message]:
    """The routes of all tables."""
    asked = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        answers = rtnl.exchange(_request(_GET_ROUTE, asked))
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            return  # no such family in this kernel
        raise
    for _, _, payload in answers:
        _, prefix, _, _, table, protocol, _, kind, flags = struct.unpack_from("=8BI", payload)
        if kind in (_UNICAST, _LOCAL, _UNREACHABLE) and not flags & _CLONED:
            fields = dict(attributes(payload[12:]))
            table = number(fields[_RTA_TABLE]) if _RTA_TABLE in fields else table
            yield _Message(family, prefix, table, protocol, kind, fields)


def _closing(message: _Message) -> Network | None:
    """The prefix that a route of ours closes; None for any other route."""
    told = message.kind, message.protocol, message.table
    metric = number(message.fields.get(_RTA_PRIORITY, bytes(4)))
    closing = told == (_UNREACHABLE, ROUTE_PROTOCOL, _MAIN_TABLE) and metric == CLOSED_METRIC
    return message.network if closing else None


def _taken(
    message: _Message, links: dict[int, _Interface], networks: Sequence[Network]
) -> Iterator[HostRange]:
    """What of the overlay a route of the host's takes: what it leads to, and the gateway that it needs."""
    if message.kind == _UNREACHABLE:
        return
    hops = list(_hops(message))
    through = [links.get(index) for index, _ in hops]
    if any(link is not None and link.ours for link in through):
        return
    first = next((link for link in through if link is not None), None)
    if message.kind == _LOCAL:
        kind: Kind = "address" if message.network.num_addresses == 1 else "route"
        yield from _range(kind, message.network, first, networks)
        return
    if message.prefix > DEFAULT_PREFIX:
        yield from _range("route", message.network, first, networks)
    for (_, gateway), link in zip(hops, through, strict=True):
        if gateway is not None:
            yield from _range("gateway", ip_network(gateway), link, networks)


def _hops(message: _Message) -> Iterator[tuple[int, IPv4Address | IPv6Address | None]]:
    """The interface (0: none is named) and gateway of each way that a route has."""
    fields = message.fields
    yield number(fields.get(_RTA_OIF, bytes(4))), _gateway(fields)
    rest = fields.get(_RTA_MULTIPATH, b"")
    while len(rest) >= 8:  # struct rtnexthop: length, flags, hops, interface; then attributes
        length, _, _, index = struct.unpack_from("=HBBi", rest)
        yield index, _gateway(dict(attributes(rest[8:length])))
        rest = rest[(max(length, 8) + 3) & ~3 :]


def _gateway(fields: dict[int, bytes]) -> IPv4Address | IPv6Address | None:
    if _RTA_GATEWAY in fields:
        return ip_address(fields[_RTA_GATEWAY])
    if _RTA_VIA in fields:  # struct rtvia: an address of another family
        return ip_address(fields[_RTA_VIA][2:])
    return None


def _range(
    kind: Kind, network: Network, link: _Interface | None, networks: Sequence[Network]
) -> Iterator[HostRange]:
    if (link is None or not link.ours) and any(_meets(network, other) for other in networks):
        yield HostRange(kind, network, "" if link is None else link.name)


def _meets(one: Network, other: Network) -> bool:
    if isinstance(one, IPv4Network) and isinstance(other, IPv4Network):
        return one.overlaps(other)
    return isinstance(one, IPv6Network) and isinstance(other, IPv6Network) and one.overlaps(other)
