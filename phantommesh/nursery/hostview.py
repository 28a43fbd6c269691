# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's view of the overlay's range: addresses and routes of its own there, and what closes that range.

The functions block, so they are called inside ``trio.to_thread.run_sync``.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from phantommesh.nlattr import DUMP, REQUEST, attributes, number, pack_message
from phantommesh.nursery.closing import KINDS
from phantommesh.nursery.netlink import ALIAS, ROUTE_PROTOCOL, BackendError, NetlinkSocket
from phantommesh.overlay import (
    CLOSED_METRIC,
    DEFAULT_PREFIX,
    Address,
    Closing,
    HostRange,
    Kind,
    Plan,
    overlap,
    plan,
    refusal,
)
from phantommesh.wireguard import Network

# linux/rtnetlink.h
_GET_LINK, _GET_ADDRESS, _GET_ROUTE, _GET_RULE = 18, 22, 26, 34
_FRA_DST, _FRA_PRIORITY, _FRA_PROTOCOL = 1, 6, 21  # linux/fib_rules.h
_IFLA_NAME, _IFLA_ALIAS, _IFA_ADDRESS, _IFA_LOCAL = 3, 20, 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE, _RTA_VIA = 1, 4, 5, 6, 9, 15, 18
_MAIN_TABLE: Final = 254
_UNICAST, _LOCAL, _UNREACHABLE = 1, 2, 7  # the other types lead nowhere, or to no one host
_CLONED = 0x200  # a cached copy of a route

_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)
GROUPS: Final = 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18
"""RTMGRP_*: addresses, routes and policy rules of both families, for a socket that wants to hear of changes.
The last is RTNLGRP_IPV6_RULE, 19, which has no RTMGRP_* name."""


@dataclass(frozen=True, slots=True)
class HostView:
    """One look at the host: what it has of its own in the overlay's range, and what of ours closes that."""

    ranges: tuple[HostRange, ...]
    closed: frozenset[Closing]


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
            found, closed = set(_addresses(rtnl, links, networks)), set[Closing]()
            for family in _FAMILIES:
                for message in _routes(rtnl, family):
                    if (ours := _closing(message)) is not None:
                        closed.add(ours)
                    else:
                        found |= set(_taken(message, links, networks))
                closed |= set(_rules(rtnl, family))
    except OSError as error:
        raise BackendError(f"the host's routes could not be read: {error.strerror or error}") from error
    here = (ours for ours in closed if any(overlap(ours.network, network) for network in networks))
    return HostView(tuple(sorted(found, key=str)), frozenset(here))


def check(networks: Sequence[Network], members: Mapping[Address, str], *, names: Collection[str]) -> Plan:
    """Say what would be routed on this host in a mesh of these ``networks`` and ``members``. Raises
    OverlapError where the host's own range is in the way, and BackendError."""
    found = plan(networks, members, look(networks, names).ranges)
    if (error := refusal(found)) is not None:
        raise error
    return found


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
    return pack_message(kind, REQUEST | DUMP, 1, body)


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


def _rules(rtnl: NetlinkSocket, family: int) -> Iterator[Closing]:
    """Our policy rules that close prefixes; this kernel may know of no rules."""
    try:
        answers = rtnl.exchange(_request(_GET_RULE, struct.pack("=12B", family, *bytes(11))))
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            return
        raise
    for _, _, payload in answers:
        prefix = payload[1]
        fields = dict(attributes(payload[12:]))
        kind = KINDS.get(number(fields.get(_FRA_PRIORITY, bytes(4))))
        ours = number(fields.get(_FRA_PROTOCOL, b"\0")) == ROUTE_PROTOCOL
        if ours and kind is not None and _FRA_DST in fields:
            yield Closing(kind, ip_network((fields[_FRA_DST], prefix)))


def _closing(message: _Message) -> Closing | None:
    """Return what a route of ours closes; None for any other route."""
    told = message.kind, message.protocol, message.table
    metric = number(message.fields.get(_RTA_PRIORITY, bytes(4)))
    closing = told == (_UNREACHABLE, ROUTE_PROTOCOL, _MAIN_TABLE) and metric == CLOSED_METRIC
    return Closing("route", message.network) if closing else None


def _taken(
    message: _Message, links: dict[int, _Interface], networks: Sequence[Network]
) -> Iterator[HostRange]:
    """Yield the parts of the overlay that a route of the host's takes: what it leads to, and the gateway that
    it needs."""
    if message.kind == _UNREACHABLE:
        return
    hops = list(_hops(message))
    through = [links.get(index) for index, _ in hops]
    if any(link is not None and link.ours for link in through):
        return
    first = next((link for link in through if link is not None), None)
    if message.kind == _LOCAL:
        if message.prefix <= DEFAULT_PREFIX:
            return  # a transparent proxy has marked packets delivered by such a route, in a table of its own
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
    if (link is None or not link.ours) and any(overlap(network, other) for other in networks):
        yield HostRange(kind, network, "" if link is None else link.name)
