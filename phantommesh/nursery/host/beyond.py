# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes to prefixes beyond the mesh: a routing table of the node's own, and the policy rule that asks it.

The table is asked before the main one, by all packets but those that carry the mesh itself: a router's own
address may be in a prefix that it routes. Each prefix has an ``unreachable`` route of the worst metric in the
table. So what is for the prefix leaves by the mesh or not at all: that route stays when interfaces and node
are gone, until `remove`. A default route of an exit is such a prefix, too. ``throw`` routes then leave to the
main table what stays beside the exit. All functions block.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from zlib import crc32

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from phantommesh.nlattr import ACK, DUMP, REQUEST, attribute, attributes, number, pack_message
from phantommesh.nursery.host import errors, netlink
from phantommesh.nursery.host.marking import AFTER
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL, NetlinkSocket, TableRoute
from phantommesh.overlay.exits import LINK
from phantommesh.overlay.prefixes import CLOSED_METRIC
from phantommesh.routable import is_exit
from phantommesh.wireguard.device import OUTER_MARK, OUTER_MASK, Network, Route

FIRST_TABLE: Final = 1 << 16
TABLES: Final = range(FIRST_TABLE, 2 * FIRST_TABLE)
"""The tables of all nodes, of which each takes the one that its interface's name gives (`table_of`)."""

PRIORITY: Final = AFTER + 3
"""The rules' priority: after those that close the overlay's range, before the main table's."""

# linux/fib_rules.h, linux/rtnetlink.h, linux/netlink.h
_NEW_RULE, _DEL_RULE, _GET_RULE = 32, 33, 34
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 6, 10, 15, 16, 21
_TO_TABLE, _INVERT = 1, 2
_CREATE = 0x400
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_LACKING: Final = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
_BESIDE_METRIC: Final = CLOSED_METRIC - 1  # of what stays beside an exit
_VALID_MARK: Final = Path("/proc/sys/net/ipv4/conf/all/src_valid_mark")
_SCOPE_NOWHERE: Final = 255  # fits every route where one is taken out


@dataclass(frozen=True, slots=True)
class Wanted:
    """The table as it should be: routes, each over the interface of that index, closed prefixes, and what
    stays ``beside`` where a default route is closed. The host's own link always does."""

    routes: frozenset[tuple[int, Route]] = frozenset()
    closed: frozenset[Network] = frozenset()
    beside: frozenset[Network] = frozenset()

    @property
    def exit(self) -> bool:
        """Whether a default route is closed."""
        return any(map(is_exit, self.closed))

    @property
    def thrown(self) -> frozenset[Network]:
        """What the table leaves to the main one."""
        return self.beside | frozenset(LINK) if self.exit else frozenset()

    @property
    def versions(self) -> frozenset[int]:
        """The families that the table has anything of."""
        return frozenset(network.version for network in self.closed)


def table_of(device: str) -> int:
    """The table of the node whose scattering interface is ``device``."""
    return FIRST_TABLE + (crc32(device.encode()) & FIRST_TABLE - 1)


def converge(table: int, want: Wanted) -> bool:
    """Make the table and its rules as wanted; return whether that took a change. A prefix is closed before
    anything leads to it, and a route goes before what closes it does. Raises BackendError."""
    try:
        have = [one for one in netlink.read_tables() if one.table == table]
        changed = False
        with IPRoute() as rtnl, NetlinkSocket(socket.NETLINK_ROUTE) as raw:
            closed = {one.route.network for one in have if _closes(one)}
            thrown = {one.route.network for one in have if _throws(one)}
            if want.exit:
                _heed_marks()
            for network in _sorted(want.thrown - thrown):
                changed |= _throw(rtnl, "add", table, network)
            for network in _sorted(want.closed - closed):
                changed |= _close(rtnl, "add", table, network)
            # The rule comes after what it is to find, and goes before that does.
            for version, family in _FAMILIES.items():
                changed |= _rules(raw, family, table, wanted=version in want.versions)
            leading = [one for one in have if not (_closes(one) or _throws(one))]
            changed |= _routes(rtnl, table, want.routes, leading)
            for network in _sorted(thrown - want.thrown):
                changed |= _throw(rtnl, "del", table, network)
            for network in _sorted(closed - want.closed):
                changed |= _close(rtnl, "del", table, network)
    except (NetlinkError, OSError) as error:
        raise errors.failed("(beyond)", "routing what is beyond the mesh", error) from error
    return changed


def closed_in(table: int) -> frozenset[Network]:
    """The prefixes that a table closes. Raises BackendError."""
    try:
        return frozenset(
            one.route.network for one in netlink.read_tables() if one.table == table and _closes(one)
        )
    except OSError as error:
        raise errors.failed("(beyond)", "reading the routes beyond the mesh", error) from error


def remove(spared: Collection[int] = ()) -> bool:
    """Remove the tables and rules of all nodes but those that are ``spared``; return whether there were any.
    Raises BackendError."""
    try:
        tables = {one.table for one in netlink.read_tables() if one.table in TABLES}
        with NetlinkSocket(socket.NETLINK_ROUTE) as raw:
            tables |= {table for family in _FAMILIES.values() for table, _ in _read_rules(raw, family)}
    except OSError as error:
        raise errors.failed("(beyond)", "reading the routes beyond the mesh", error) from error
    gone = tables - set(spared)
    for table in gone:
        converge(table, Wanted())
    return bool(gone)


def _closes(one: TableRoute) -> bool:
    """Whether a route is what closes a prefix. IPv6's unreachable routes name the loopback interface."""
    return not one.plain and one.route.metric == CLOSED_METRIC


def _throws(one: TableRoute) -> bool:
    """Whether a route is what leaves a network beside an exit to the main table."""
    return not one.plain and one.route.metric == _BESIDE_METRIC


def _heed_marks() -> None:
    """Have the kernel's check of source addresses (rp_filter) ask the rules with a packet's mark: the guard
    marks what carries the mesh when it comes, and the route back to its sender is the main table's."""
    if _VALID_MARK.exists() and _VALID_MARK.read_text().strip() != "1":
        _VALID_MARK.write_text("1\n")


def _sorted(networks: Iterable[Network]) -> list[Network]:
    return sorted(networks, key=str)


def _close(rtnl: IPRoute, command: str, table: int, network: Network) -> bool:
    """Close a prefix or open it; return whether that took a change: without IPv6 there is none to make."""
    return _blind(rtnl, command, netlink.closing_arguments(network, table))


def _throw(rtnl: IPRoute, command: str, table: int, network: Network) -> bool:
    """Leave a network to the main table, or no longer; return whether that took a change."""
    more = {"type": "throw", "priority": _BESIDE_METRIC}
    return _blind(rtnl, command, netlink.closing_arguments(network, table) | more)


def _blind(rtnl: IPRoute, command: str, arguments: dict[str, object]) -> bool:
    try:
        rtnl.route(command, **arguments)
    except NetlinkError as error:
        if error.code not in (errno.EEXIST, errno.ESRCH, *_LACKING):
            raise
        return False
    return True


def _routes(
    rtnl: IPRoute, table: int, want: frozenset[tuple[int, Route]], have: Iterable[TableRoute]
) -> bool:
    """Make the routes that lead somewhere; one that differs in its limits alone is never missing."""
    right, replaced, changed = set[tuple[int, Route]](), set[tuple[int, Network, int]](), False
    keys = {(index, route.network, route.metric) for index, route in want}
    for one in have:
        key = one.index, one.route.network, one.route.metric
        if one.plain and (one.index, one.route) in want:
            right.add((one.index, one.route))
        elif one.plain and key in keys:
            replaced.add(key)
        else:
            _take_out(rtnl, one)
            changed = True
    for index, route in sorted(want - right, key=str):
        verb = "replace" if (index, route.network, route.metric) in replaced else "add"
        try:
            rtnl.route(verb, **(netlink.route_arguments(route, index) | {"table": table}))
        except NetlinkError as error:
            if error.code != errno.ENODEV:  # the interface has gone meanwhile: the kernel tells of that
                raise
        changed = True
    return changed


def _take_out(rtnl: IPRoute, one: TableRoute) -> None:
    try:
        rtnl.route(
            "del",
            table=one.table,
            dst=str(one.route.network),
            family=one.family,
            proto=ROUTE_PROTOCOL,
            priority=one.route.metric,
            scope=_SCOPE_NOWHERE,
            type=0,
            **({"oif": one.index} if one.index else {}),
        )
    except NetlinkError as error:
        if error.code != errno.ESRCH:
            raise


# ---- rules ----


def _rule(family: int, table: int) -> bytes:
    """A rule that all packets but the underlay's go by: struct fib_rule_hdr and its attributes."""
    header = struct.pack("=8BI", family, 0, 0, 0, 0, 0, 0, _TO_TABLE, _INVERT)
    words = (
        (_FRA_PRIORITY, PRIORITY),
        (_FRA_TABLE, table),
        (_FRA_FWMARK, OUTER_MARK),
        (_FRA_FWMASK, OUTER_MASK),
    )
    body = b"".join(attribute(kind, struct.pack("=I", value)) for kind, value in words)
    return header + body + attribute(_FRA_PROTOCOL, bytes([ROUTE_PROTOCOL]))


def _read_rules(raw: NetlinkSocket, family: int) -> Iterator[tuple[int, bool]]:
    """The rules of ours that ask a table of `TABLES`: the table, and whether the rule is as it should be."""
    asked = pack_message(_GET_RULE, REQUEST | DUMP, 1, struct.pack("=12B", family, *bytes(11)))
    try:
        answers = raw.exchange(asked)
    except OSError as error:
        if error.errno in _LACKING:
            return
        raise
    for _, _, payload in answers:
        said, to, source, tos, _, _, _, action, flags = struct.unpack_from("=8BI", payload)
        fields = dict(attributes(payload[12:]))
        table = number(fields.get(_FRA_TABLE, bytes(4)))
        if number(fields.get(_FRA_PROTOCOL, b"\0")) != ROUTE_PROTOCOL or table not in TABLES:
            continue
        marks = [number(fields.get(which, bytes(4))) for which in (_FRA_FWMARK, _FRA_FWMASK)]
        plain = (said, to, source, tos, action, flags) == (family, 0, 0, 0, _TO_TABLE, _INVERT)
        right = plain and number(fields.get(_FRA_PRIORITY, bytes(4))) == PRIORITY
        yield table, right and marks == [OUTER_MARK, OUTER_MASK]


def _rules(raw: NetlinkSocket, family: int, table: int, *, wanted: bool) -> bool:
    """Have exactly one rule ask the table, or none; return whether that took a change."""
    found = [right for each, right in _read_rules(raw, family) if each == table]
    if found == ([True] if wanted else []):
        return False
    ask = struct.pack("=12B", family, *bytes(11)) + attribute(_FRA_TABLE, struct.pack("=I", table))
    for _ in found:  # the guard holds what is closed meanwhile
        raw.exchange(pack_message(_DEL_RULE, REQUEST | ACK, 1, ask))
    if wanted:
        try:
            raw.exchange(pack_message(_NEW_RULE, REQUEST | ACK | _CREATE, 1, _rule(family, table)))
        except OSError as error:
            if error.errno in _LACKING:
                return False
            raise
    return True
