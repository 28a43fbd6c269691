# SPDX-License-Identifier: GPL-3.0-or-later
"""Links, addresses and routes over rtnetlink, for every kind of WireGuard.

The functions block, so they are called inside ``trio.to_thread.run_sync``. Each opens its own netlink socket
and closes it again: pyroute2, which does the writing, runs an event loop in each object, and one shared
between short-lived threads leaks a descriptor a thread.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from types import TracebackType
from typing import Self

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from phantommesh.nlattr import (
    ACK,
    DONE,
    DUMP,
    DUMP_INTERRUPTED,
    ERROR,
    REQUEST,
    attribute,
    attributes,
    decode_errno,
    number,
    pack_message,
    split_messages,
)
from phantommesh.nursery.host.errors import BackendError, failed
from phantommesh.overlay.prefixes import CLOSED_METRIC
from phantommesh.wireguard.device import DeviceState, Interface, Network, Report, Route
from phantommesh.wireguard.diff import DeviceDiff

ALIAS = "phantommesh"
"""The alias (``ip link show`` prints it) that marks a link as made by us."""

ROUTE_PROTOCOL = 112
"""Marks our routes (``ip route show proto 112``); not among the numbers in linux/rtnetlink.h."""

_MAIN_TABLE = 254
_SKIP_STATISTICS = 8  # RTEXT_FILTER_SKIP_STATS, linux/rtnetlink.h
_NO_DAD, _NO_PREFIX_ROUTE = 0x02, 0x200  # IFA_F_*, linux/if_addr.h
_SCOPE_LINK = 253
_LOOSE = 2  # rp_filter: a source address must be routable, but by any interface (RFC 3704, section 2.4)

_NETLINK_ROUTE = 0
_SOL_NETLINK, _STRICT_CHECK = 270, 12  # the kernel then filters dumps by what their request's header says
_TIMEOUT = 10.0  # seconds; the kernel answers at once, so this only guards against waiting for ever
_DUMP_ATTEMPTS = 5
_BUFFER = 1 << 17  # bytes; the kernel never makes a dump message larger than 32 KiB
_GET_LINK, _GET_ADDRESS, _GET_ROUTE = 18, 22, 26  # RTM_*, linux/rtnetlink.h
_IFLA_NAME, _IFLA_MTU, _IFLA_INFO, _IFLA_ALIAS, _IFLA_EXT_MASK, _IFLA_INFO_KIND = 3, 4, 18, 20, 29, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_TUN, _NO_PACKET_INFO, _SET_IFF, _SET_PERSIST = 0x1, 0x1000, 0x400454CA, 0x400454CB  # linux/if_tun.h
_RTA_DST, _RTA_OIF, _RTA_PRIORITY, _RTA_METRICS, _RTA_TABLE = 1, 4, 6, 8, 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
_UNICAST = 1  # RTN_UNICAST: neither blackhole nor the like
# Attributes that say more than an interface: a source, a gateway, a preferred source, several ways, a way of
# another family, an encapsulation, a nexthop object (RTA_*, linux/rtnetlink.h). Metrics but an
# MTU and a segment's size are let be.
_RTA_MORE = frozenset({2, 5, 7, 9, 18, 22, 30})


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface as the kernel reports it; ``kind`` is ``wireguard``, ``tun``, ... or empty."""

    index: int
    kind: str
    ours: bool
    up: bool
    mtu: int
    addresses: frozenset[Interface]
    routes: frozenset[Route]
    loose_rp: bool

    @property
    def blank(self) -> bool:
        """Whether nobody has set it up yet."""
        return not (self.up or self.addresses or self.routes)

    def state(self, name: str, report: Report) -> DeviceState:
        """Put this link and what WireGuard says of it together."""
        return DeviceState(
            name=name,
            index=self.index,
            up=self.up,
            public_key=report.public_key,
            listen_port=report.listen_port,
            mtu=self.mtu,
            addresses=self.addresses,
            routes=self.routes,
            peers=report.peers,
            fwmark=report.fwmark,
            loose_rp=self.loose_rp,
        )


def ipv6_available() -> bool:
    """Whether new interfaces in this network namespace can hold IPv6 addresses."""
    try:
        return Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").read_text().strip() == "0"
    except OSError:
        return False


class NetlinkSocket:
    """A netlink socket of one protocol, to be opened, used and closed in one thread. Raises OSError."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.settimeout(_TIMEOUT)
            self._socket.setsockopt(_SOL_NETLINK, _STRICT_CHECK, 1)
            self._socket.bind((0, 0))
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def send(self, request: bytes) -> None:
        """Send a request, or several."""
        self._socket.send(request)

    def receive(self) -> list[tuple[int, int, bytes]]:
        """Wait for answers; return (type, sequence number, payload) of each that came in one piece."""
        return [
            (k, sequence, payload) for k, _, sequence, payload in split_messages(self._socket.recv(_BUFFER))
        ]

    def exchange(self, request: bytes) -> list[tuple[int, int, bytes]]:
        """Send a request; return (type, flags, payload) of each answer before the end or acknowledgement.

        A dump during which something changed may lack what nobody touched. So it is asked for again, up to
        five times in all.
        """
        attempts = 0
        while True:
            answers, interrupted = self._exchange(request)
            attempts += 1
            if not interrupted or attempts == _DUMP_ATTEMPTS:
                return answers

    def _exchange(self, request: bytes) -> tuple[list[tuple[int, int, bytes]], bool]:
        self._socket.send(request)
        answers: list[tuple[int, int, bytes]] = []
        interrupted = False
        while True:
            for kind, flags, _, payload in split_messages(self._socket.recv(_BUFFER)):
                # Only a dump's messages have this flag with this meaning; its last one may be the only one.
                interrupted |= kind != ERROR and bool(flags & DUMP_INTERRUPTED)
                if kind not in (ERROR, DONE):
                    answers.append((kind, flags, payload))
                elif code := decode_errno(payload):
                    raise OSError(code, os.strerror(code))
                else:
                    return answers, interrupted


def read_links(names: Collection[str]) -> dict[str, Link]:
    """Read the named interfaces that exist, with their addresses and our routes. Raises BackendError.

    This runs every few seconds, so its messages are packed by hand: pyroute2 takes ten times as long.
    """
    try:
        with NetlinkSocket(_NETLINK_ROUTE) as rtnl:
            found = {name: message for name in names if (message := _ask_link(rtnl, name)) is not None}
            if not found:
                return {}
            addresses = _read_addresses(rtnl)
            routes = _read_routes(rtnl)
    except OSError as error:
        raise failed(",".join(names), "reading", error) from error
    return {name: _link(name, message, addresses, routes) for name, message in found.items()}


def read_our_links() -> dict[str, Link]:
    """Read the interfaces with our alias, whatever their names. Raises BackendError."""
    try:
        with NetlinkSocket(_NETLINK_ROUTE) as rtnl:
            body = bytes(16) + attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS))
            dumped = [dict(attributes(p[16:])) for _, _, p in rtnl.exchange(_request(_GET_LINK, DUMP, body))]
    except OSError as error:
        raise failed("*", "reading", error) from error
    names = [
        fields[_IFLA_NAME].rstrip(b"\0").decode()
        for fields in dumped
        if fields.get(_IFLA_ALIAS, b"").rstrip(b"\0") == ALIAS.encode()
    ]
    return {name: link for name, link in read_links(names).items() if link.ours}


def _request(kind: int, flags: int, body: bytes) -> bytes:
    return pack_message(kind, REQUEST | flags, 1, body)


def _ask_link(rtnl: NetlinkSocket, name: str) -> bytes | None:
    body = bytes(16) + attribute(_IFLA_NAME, name.encode() + b"\0")
    body += attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS))
    try:
        return rtnl.exchange(_request(_GET_LINK, ACK, body))[0][2]
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def _read_addresses(rtnl: NetlinkSocket) -> dict[int, set[Interface]]:
    addresses: dict[int, set[Interface]] = {}
    for _, _, payload in rtnl.exchange(_request(_GET_ADDRESS, DUMP, bytes(8))):
        _, prefix, _, _, index = struct.unpack_from("=BBBBI", payload)
        fields = dict(attributes(payload[8:]))
        address = ip_interface((fields.get(_IFA_LOCAL) or fields[_IFA_ADDRESS], prefix))
        if not (address.version == 6 and address.is_link_local):  # the kernel's own, not ours to judge
            addresses.setdefault(index, set()).add(address)
    return addresses


def _read_routes(rtnl: NetlinkSocket) -> dict[int, set[Route]]:
    routes: dict[int, set[Route]] = {}
    for table, index, route in _dump_routes(rtnl, _MAIN_TABLE):
        if table == _MAIN_TABLE:
            routes.setdefault(index, set()).add(route)
    return routes


@dataclass(frozen=True, slots=True)
class TableRoute:
    """One of our routes. ``index`` is that of its interface, 0 where it has none.

    ``plain``: it sends what is for its network to that interface, and says nothing else: no gateway, no
    source, no type of its own.
    """

    family: int
    table: int
    index: int
    route: Route
    plain: bool


def read_tables() -> list[TableRoute]:
    """Read our routes of every table. Raises OSError."""
    with NetlinkSocket(_NETLINK_ROUTE) as rtnl:
        return list(_dump_tables(rtnl, 0))


def _dump_routes(rtnl: NetlinkSocket, table: int) -> Iterator[tuple[int, int, Route]]:
    """Our routes that have an interface; the kernel sends those of one table, or of all (0)."""
    return ((one.table, one.index, one.route) for one in _dump_tables(rtnl, table) if one.index)


def _dump_tables(rtnl: NetlinkSocket, table: int) -> Iterator[TableRoute]:
    for family in (socket.AF_INET, socket.AF_INET6):
        asked = struct.pack("=BBBBBBBBI", family, 0, 0, 0, table, ROUTE_PROTOCOL, 0, 0, 0)
        for _, _, payload in rtnl.exchange(_request(_GET_ROUTE, DUMP, asked)):
            said, prefix, source, tos, found, protocol, _, kind = struct.unpack_from("=8B", payload)
            fields = dict(attributes(payload[12:]))
            # Asked for a family that it does not have, the kernel tells of all others.
            if protocol == ROUTE_PROTOCOL and said == family:
                target = fields.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16))
                metric = number(fields.get(_RTA_PRIORITY, b"\1"))
                found = number(fields[_RTA_TABLE]) if _RTA_TABLE in fields else found
                index = number(fields[_RTA_OIF]) if _RTA_OIF in fields else 0
                plain = kind == _UNICAST and not (source or tos or fields.keys() & _RTA_MORE)
                limits = dict(attributes(fields.get(_RTA_METRICS, b"")))
                mtu, advmss = (number(limits.get(which, b"\0")) for which in (_RTAX_MTU, _RTAX_ADVMSS))
                route = Route(ip_network((target, prefix)), metric, mtu, advmss)
                yield TableRoute(family, found, index, route, plain)


def _link(
    name: str, message: bytes, addresses: Mapping[int, set[Interface]], routes: Mapping[int, set[Route]]
) -> Link:
    _, _, index, flags = struct.unpack_from("=HHiI", message)
    fields = dict(attributes(message[16:]))
    kind = dict(attributes(fields.get(_IFLA_INFO, b""))).get(_IFLA_INFO_KIND, b"")
    return Link(
        index=index,
        kind=kind.rstrip(b"\0").decode(),
        ours=fields.get(_IFLA_ALIAS, b"").rstrip(b"\0") == ALIAS.encode(),
        up=bool(flags & 1),  # IFF_UP
        mtu=number(fields.get(_IFLA_MTU, b"")),
        addresses=frozenset(addresses.get(index, ())),
        routes=frozenset(routes.get(index, ())),
        loose_rp=_is_loose(name),
    )


def _rp_filter(name: str) -> Path:
    return Path("/proc/sys/net/ipv4/conf") / name / "rp_filter"


def _is_loose(name: str) -> bool:
    """Whether reverse-path filtering is as we want it, or as near as a read-only /proc/sys lets it be."""
    try:
        own = int(_rp_filter(name).read_text())
        if own == _LOOSE or os.access(_rp_filter(name), os.W_OK):
            return own == _LOOSE
        return max(own, int(_rp_filter("all").read_text())) != 1  # the kernel takes the higher of the two
    except (OSError, ValueError):
        return True  # no such setting here, so nothing to set


def make_wireguard(name: str, mtu: int) -> None:
    """Make a kernel WireGuard link marked as ours; ``mtu`` in bytes. Raises BackendError."""
    try:
        with IPRoute() as rtnl:
            rtnl.link("add", ifname=name, kind="wireguard", mtu=mtu)
    except (NetlinkError, OSError) as error:
        raise failed(name, "creating", error) from error
    claim(name, mtu)


def make_tun(name: str, mtu: int) -> None:
    """Make a tun link that no process holds open, marked as ours; ``mtu`` in bytes. Raises BackendError."""
    request = struct.pack("16sH22x", name.encode(), _TUN | _NO_PACKET_INFO)
    try:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, _SET_IFF, request)
            fcntl.ioctl(device, _SET_PERSIST, 1)
        finally:
            os.close(device)
    except OSError as error:
        raise failed(name, "creating", error) from error
    claim(name, mtu)


def claim(name: str, mtu: int) -> None:
    """Mark a link as ours and set its MTU in bytes. Raises BackendError."""
    try:
        with IPRoute() as rtnl:
            rtnl.link("set", index=_index(rtnl, name), IFLA_IFALIAS=ALIAS, mtu=mtu)
    except (NetlinkError, OSError) as error:
        raise failed(name, "marking as ours", error) from error


def delete_link(name: str) -> None:
    """Delete a link; that it is gone already is fine. Raises BackendError."""
    try:
        with IPRoute() as rtnl:
            rtnl.link("del", index=_index(rtnl, name))
    except (NetlinkError, OSError) as error:
        if not (isinstance(error, NetlinkError) and error.code == errno.ENODEV):
            raise failed(name, "deleting", error) from error


def apply_links(changes: Sequence[DeviceDiff]) -> dict[str, BackendError]:
    """Apply the link part of each change and return the failures by name.

    All routes that go are removed before any is added, because two interfaces may swap metrics.
    """
    failures: dict[str, BackendError] = {}
    changes = [change for change in changes if change.changes_link]
    if not changes:
        return failures
    with IPRoute() as rtnl:
        for step in (_remove_from_link, _add_to_link):
            for change in changes:
                if change.name not in failures:
                    try:
                        step(rtnl, change)
                    except (NetlinkError, OSError) as error:
                        failures[change.name] = failed(change.name, "setting up", error)
    return failures


def _index(rtnl: IPRoute, name: str) -> int:
    return int(next(iter(rtnl.link("get", ifname=name)))["index"])


def _remove_from_link(rtnl: IPRoute, change: DeviceDiff) -> None:
    if not change.remove_routes and not change.remove_addresses:
        return
    index = _index(rtnl, change.name)
    replaced = {(route.network, route.metric) for route in change.add_routes}
    for route in _ordered(change.remove_routes):
        if (route.network, route.metric) not in replaced:
            rtnl.route("del", **route_arguments(route, index))
    for address in change.remove_addresses:
        rtnl.addr("del", index=index, address=str(address.ip), prefixlen=address.network.prefixlen)


def _add_to_link(rtnl: IPRoute, change: DeviceDiff) -> None:
    index = _index(rtnl, change.name)
    if change.mtu is not None:
        rtnl.link("set", index=index, mtu=change.mtu)
    if change.loose_rp:
        _rp_filter(change.name).write_text(f"{_LOOSE}\n")
    for address in change.add_addresses:
        flags = _NO_PREFIX_ROUTE | (_NO_DAD if address.version == 6 else 0)
        rtnl.addr(
            "replace", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, flags=flags
        )
    if change.up:
        rtnl.link("set", index=index, state="up")
    replaced = {(route.network, route.metric) for route in change.remove_routes}
    for route in _ordered(change.add_routes):
        # One that changes its limits alone is never missing meanwhile.
        verb = "replace" if (route.network, route.metric) in replaced else "add"
        rtnl.route(verb, **route_arguments(route, index))


def _ordered(routes: Iterable[Route]) -> list[Route]:
    return sorted(routes, key=lambda route: (route.network.version, route.metric))


def route_arguments(route: Route, index: int) -> dict[str, object]:
    """The request for a route of ours in the main table, over the interface with this index."""
    arguments: dict[str, object] = {
        "dst": str(route.network),
        "oif": index,
        "table": _MAIN_TABLE,
        "proto": ROUTE_PROTOCOL,
        "priority": route.metric,
        "family": socket.AF_INET6 if route.network.version == 6 else socket.AF_INET,
    }
    if route.network.version == 4:
        arguments["scope"] = _SCOPE_LINK
    # The kernel forwards IPv6 by the interface's MTU and not by the route's, unless the latter is locked.
    lock = 1 << _RTAX_MTU if route.network.version == 6 and route.mtu else 0
    limits = {"mtu": route.mtu, "advmss": route.advmss, "lock": lock}
    if metrics := {name: value for name, value in limits.items() if value}:
        arguments["metrics"] = metrics
    return arguments


def closing_arguments(network: Network, table: int) -> dict[str, object]:
    """The request for the route of ours that closes a network in a table where no other route leads."""
    return {
        "type": "unreachable",
        "dst": str(network),
        "table": table,
        "proto": ROUTE_PROTOCOL,
        "priority": CLOSED_METRIC,
        "family": socket.AF_INET6 if network.version == 6 else socket.AF_INET,
    }
