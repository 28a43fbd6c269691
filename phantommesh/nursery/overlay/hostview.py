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
from ipaddress import ip_address, ip_network
from typing import Final

from phantommesh.dimensions import all_names, master_name
from phantommesh.nlattr import DUMP, REQUEST, attributes, number, pack_message
from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.hostroutes import (
    FAMILIES,
    LOCAL,
    UNICAST,
    UNREACHABLE,
    KernelRoute,
    read_routes,
)
from phantommesh.nursery.host.netlink import ALIAS, ROUTE_PROTOCOL, NetlinkSocket
from phantommesh.nursery.host.owning import owned
from phantommesh.nursery.overlay.closing import KINDS
from phantommesh.overlay.prefixes import (
    CLOSED_METRIC,
    DEFAULT_PREFIX,
    Address,
    Closing,
    HostRange,
    Kind,
    Plan,
    plan,
    refusal,
)
from phantommesh.routable import Places
from phantommesh.wireguard.device import Network

# linux/rtnetlink.h
_GET_LINK, _GET_ADDRESS, _GET_RULE = 18, 22, 34
_FRA_DST, _FRA_PRIORITY, _FRA_PROTOCOL = 1, 6, 21  # linux/fib_rules.h
_IFLA_NAME, _IFLA_ALIAS, _IFA_ADDRESS, _IFA_LOCAL = 3, 20, 1, 2
_MAIN_TABLE: Final = 254
_LEADING: Final = (UNICAST, LOCAL, UNREACHABLE)  # the other types lead nowhere, or to no one host

GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18
"""RTMGRP_*: links, addresses, routes and policy rules of both families, for a socket that wants to hear of
changes. A link that goes down takes routes with it that no message tells of. The last is RTNLGRP_IPV6_RULE,
19, which has no RTMGRP_* name."""


@dataclass(frozen=True, slots=True)
class HostView:
    """One look at the host: what it has of its own in the overlay's range, and what of ours closes that.
    ``uplinks`` are the addresses of the interfaces that default routes lead over."""

    ranges: tuple[HostRange, ...]
    closed: frozenset[Closing]
    uplinks: frozenset[Address] = frozenset()


@dataclass(frozen=True, slots=True)
class _Interface:
    """``ours``: this node's own. ``name`` says of another mesh's that they are."""

    name: str
    ours: bool


def look(networks: Sequence[Network], names: Collection[str]) -> HostView:
    """Read the host's addresses and routes that overlap these networks; ``names`` are this node's own
    interfaces, which do not count. Default routes do not count, but their gateways do. Raises
    BackendError."""
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            links, places = _links(rtnl, names), Places((network, network) for network in networks)
            addresses = list(_addresses(rtnl))
            found, closed = set[HostRange](), set[Closing]()
            for address, index in addresses:
                found |= set(_range("address", ip_network(address), links.get(index), places))
            uplinks = set[int]()
            for family in FAMILIES:
                for route in read_routes(rtnl, family):
                    if route.cached or route.kind not in _LEADING:
                        continue
                    if route.kind == UNICAST and route.prefix <= DEFAULT_PREFIX:
                        uplinks |= {index for index, _ in route.hops()}
                    if (ours := _closing(route)) is not None:
                        closed.add(ours)
                    else:
                        found |= set(_taken(route, links, places))
                closed |= set(_rules(rtnl, family))
    except OSError as error:
        raise BackendError(
            f"the host's routes could not be read: {error.strerror or error}",
            fix="allow netlink here: a container needs CAP_NET_ADMIN and the socket family AF_NETLINK",
        ) from error
    here = (ours for ours in closed if places.meets(ours.network))
    uplinks &= {index for index, link in links.items() if not link.ours}
    over = frozenset(address for address, index in addresses if index in uplinks)
    return HostView(tuple(sorted(found, key=str)), frozenset(here), over)


def check(
    networks: Sequence[Network], members: Mapping[Address, str], *, prefix: str, running: bool = False
) -> Plan:
    """Say what would be routed on this host in a mesh of these ``networks`` and ``members``. Interfaces of
    this ``prefix`` do not count, unless a node has them that runs: then they are another mesh's. ``running``:
    that node is the one that asks. Raises OverlapError where the host's own range is in the way, and
    BackendError."""
    with owned(master_name(prefix)) as free:
        names = all_names(prefix) if free or running else ()
    found = plan(networks, members, look(networks, names).ranges)
    if (error := refusal(found)) is not None:
        raise error
    return found


# ---- reading ----


def _request(kind: int, body: bytes) -> bytes:
    return pack_message(kind, REQUEST | DUMP, 1, body)


def _links(rtnl: NetlinkSocket, names: Collection[str]) -> dict[int, _Interface]:
    links = {}
    for _, _, payload in rtnl.exchange(_request(_GET_LINK, bytes(16))):
        _, _, index, _ = struct.unpack_from("=HHiI", payload)
        fields = dict(attributes(payload[16:]))
        name = fields.get(_IFLA_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        made = fields.get(_IFLA_ALIAS, b"").rstrip(b"\0") == ALIAS.encode()
        ours = made and name in names
        links[index] = _Interface(f"{name}, another mesh's" if made and not ours else name, ours)
    return links


def _addresses(rtnl: NetlinkSocket) -> Iterator[tuple[Address, int]]:
    """The host's addresses, each with its interface's index."""
    for _, _, payload in rtnl.exchange(_request(_GET_ADDRESS, bytes(8))):
        _, _, _, _, index = struct.unpack_from("=BBBBI", payload)
        fields = dict(attributes(payload[8:]))
        yield ip_address(fields.get(_IFA_LOCAL) or fields[_IFA_ADDRESS]), index


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


def _closing(route: KernelRoute) -> Closing | None:
    """Return what a route of ours closes; None for any other route."""
    told = route.kind, route.protocol, route.table
    closing = told == (UNREACHABLE, ROUTE_PROTOCOL, _MAIN_TABLE) and route.metric == CLOSED_METRIC
    return Closing("route", route.network) if closing else None


def _taken(
    route: KernelRoute, links: dict[int, _Interface], networks: Places[Network]
) -> Iterator[HostRange]:
    """Yield the parts of the overlay that a route of the host's takes: what it leads to, and the gateway that
    it needs."""
    if route.kind == UNREACHABLE:
        return
    hops = list(route.hops())
    through = [links.get(index) for index, _ in hops]
    if any(link is not None and link.ours for link in through):
        return
    first = next((link for link in through if link is not None), None)
    if route.kind == LOCAL:
        if route.prefix <= DEFAULT_PREFIX:
            return  # a transparent proxy has marked packets delivered by such a route, in a table of its own
        kind: Kind = "address" if route.network.num_addresses == 1 else "route"
        yield from _range(kind, route.network, first, networks)
        return
    if route.prefix > DEFAULT_PREFIX:
        yield from _range("route", route.network, first, networks)
    for (_, gateway), link in zip(hops, through, strict=True):
        if gateway is not None:
            yield from _range("gateway", ip_network(gateway), link, networks)


def _range(
    kind: Kind, network: Network, link: _Interface | None, networks: Places[Network]
) -> Iterator[HostRange]:
    if (link is None or not link.ours) and networks.meets(network):
        yield HostRange(kind, network, "" if link is None else link.name)
