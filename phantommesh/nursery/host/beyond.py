# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes to prefixes beyond the mesh: a routing table of the node's own, and the policy rule that asks it.

The table is asked before the main one, by all packets but those that carry the mesh itself: a router's own
address may be in a prefix that it routes. Nor is it asked where the kernel looks whether what has arrived
for an uplink's address could be answered: with ``rp_filter`` on, strict or loose, what could not is dropped,
and the mark that the answer will have is not looked at. Such a question names no protocol, which what the
host sends does.

Each prefix has an ``unreachable`` route of the worst metric in the table. So what is for the prefix leaves by
the mesh or not at all: that route stays when interfaces and node are gone, until `remove`. A default route of
an exit is such a prefix, too: ``throw`` routes then leave to the main table what stays beside the exit, and
the kernel's question is answered by the mark that the guard gives to what has arrived. All functions block.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_network
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
from phantommesh.overlay.prefixes import CLOSED_METRIC, Address
from phantommesh.routable import is_exit
from phantommesh.wireguard.device import OUTER_MARK, OUTER_MASK, Network, Route

FIRST_TABLE: Final = 1 << 16
TABLES: Final = range(FIRST_TABLE, 2 * FIRST_TABLE)
"""The tables of all nodes, of which each takes the one that its interface's name gives (`table_of`)."""

_SENT, _PAST, PRIORITY, _END = AFTER + 3, AFTER + 4, AFTER + 5, AFTER + 6
"""The rules' priorities: after those that close the overlay's range, before the main table's. What the host
sends goes on to the rule that asks the table, `PRIORITY`; the rest of an uplink's address goes past it."""

MAX_UPLINKS: Final = 16  # addresses with a rule each: the kernel goes through them one by one

# linux/fib_rules.h, linux/rtnetlink.h, linux/netlink.h
_NEW_RULE, _DEL_RULE, _GET_RULE = 32, 33, 34
_FRA_SRC, _FRA_IIF, _FRA_GOTO, _FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 2, 3, 4, 6, 10, 15, 16
_FRA_PROTOCOL, _FRA_IP_PROTO = 21, 22
_TO_TABLE, _GOTO, _NOP, _INVERT = 1, 2, 3, 2
_CREATE = 0x400
_LOOPBACK: Final = b"lo\0"
_PROTOCOLS: Final = (socket.IPPROTO_ICMP, socket.IPPROTO_TCP, socket.IPPROTO_UDP)
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_LACKING: Final = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)
_BESIDE_METRIC: Final = CLOSED_METRIC - 1  # of what stays beside an exit
_VALID_MARK: Final = Path("/proc/sys/net/ipv4/conf/all/src_valid_mark")
_SCOPE_NOWHERE: Final = 255  # fits every route where one is taken out


@dataclass(frozen=True, slots=True)
class Wanted:
    """The table as it should be: routes, each over the interface of that index, and closed prefixes.
    ``uplinks`` are the addresses of the host's uplinks: what they send does not ask the table. ``beside`` is
    what stays the host's where a default route is closed. The host's own link always does."""

    routes: frozenset[tuple[int, Route]] = frozenset()
    closed: frozenset[Network] = frozenset()
    uplinks: frozenset[Address] = frozenset()
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
            for network in _sorted(want.thrown - thrown):
                changed |= _throw(rtnl, "add", table, network)
            for network in _sorted(want.closed - closed):
                changed |= _close(rtnl, "add", table, network)
            # The rule comes after what it is to find, and goes before that does.
            for version, family in _FAMILIES.items():
                changed |= _rules(raw, family, _wanted_rules(table, version, want), table)
            leading = [one for one in have if not (_closes(one) or _throws(one))]
            changed |= _routes(rtnl, table, want.routes, leading)
            for network in _sorted(thrown - want.thrown):
                changed |= _throw(rtnl, "del", table, network)
            for network in _sorted(closed - want.closed):
                changed |= _close(rtnl, "del", table, network)
        if want.exit:
            _heed_marks()  # at last: where it may not be written, all is closed all the same
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
            tables |= {rule.table for family in _FAMILIES.values() for rule, _ in _read_rules(raw, family)}
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


@dataclass(frozen=True, slots=True)
class _Rule:
    """A policy rule of ours. All name the ``table`` that they are for, so that they are told from other
    nodes'. ``protocol``: of what this host itself sends. ``mark``, with its mask, is of packets that the rule
    is not for where it is ``inverted``."""

    table: int
    priority: int
    action: int
    target: int = 0
    source: Network | None = None
    protocol: int = 0
    mark: tuple[int, int] = (0, 0)
    inverted: bool = False

    def encode(self, family: int) -> bytes:
        """A struct fib_rule_hdr and its attributes."""
        length = 0 if self.source is None else self.source.prefixlen
        flags = _INVERT if self.inverted else 0
        words = [(_FRA_PRIORITY, self.priority), (_FRA_TABLE, self.table)]
        words += [(_FRA_GOTO, self.target)] if self.target else []
        words += [(_FRA_FWMARK, self.mark[0]), (_FRA_FWMASK, self.mark[1])] if self.mark[1] else []
        body = b"".join(attribute(kind, struct.pack("=I", value)) for kind, value in words)
        body += b"" if self.source is None else attribute(_FRA_SRC, self.source.network_address.packed)
        if self.protocol:
            body += attribute(_FRA_IIF, _LOOPBACK) + attribute(_FRA_IP_PROTO, bytes([self.protocol]))
        header = struct.pack("=8BI", family, 0, length, 0, 0, 0, 0, self.action, flags)
        return header + body + attribute(_FRA_PROTOCOL, bytes([ROUTE_PROTOCOL]))


def _wanted_rules(table: int, version: int, want: Wanted) -> list[_Rule]:
    """The rules of one family, each before those that lead to it."""
    if version not in want.versions:
        return []
    asking = _Rule(table, PRIORITY, _TO_TABLE, mark=(OUTER_MARK, OUTER_MASK), inverted=True)
    own = sorted(one for one in want.uplinks if one.version == version)[:MAX_UPLINKS]
    if version != 4 or not own:  # there is no rp_filter of IPv6
        return [asking]
    sent = [_Rule(table, _SENT, _GOTO, PRIORITY, protocol=protocol) for protocol in _PROTOCOLS]
    past = [_Rule(table, _PAST, _GOTO, _END, ip_network(address)) for address in own]
    return [_Rule(table, _END, _NOP), asking, *sent, *past]


def _read_rules(raw: NetlinkSocket, family: int) -> Iterator[tuple[_Rule, bytes]]:
    """The rules of ours for tables of `TABLES`, each with the kernel's own words for it."""
    asked = pack_message(_GET_RULE, REQUEST | DUMP, 1, struct.pack("=12B", family, *bytes(11)))
    try:
        answers = raw.exchange(asked)
    except OSError as error:
        if error.errno in _LACKING:
            return
        raise
    for _, _, payload in answers:
        rule = _rule(family, payload)
        if rule is not None:
            yield rule, payload


def _rule(family: int, payload: bytes) -> _Rule | None:
    """A rule of ours, as the kernel told of it; None for others. What no rule of ours has makes its priority
    0, so that it is wanted by nobody."""
    said, to, length, tos, _, _, _, action, flags = struct.unpack_from("=8BI", payload)
    fields = dict(attributes(payload[12:]))

    def word(kind: int) -> int:
        return number(fields.get(kind, bytes(4)))

    table = word(_FRA_TABLE)
    if number(fields.get(_FRA_PROTOCOL, b"\0")) != ROUTE_PROTOCOL or table not in TABLES:
        return None
    source = ip_network((fields[_FRA_SRC], length)) if _FRA_SRC in fields else None
    plain = (said, to, tos, flags & ~_INVERT) == (family, 0, 0, 0)
    return _Rule(
        table,
        word(_FRA_PRIORITY) if plain else 0,
        action,
        word(_FRA_GOTO),
        source,
        fields.get(_FRA_IP_PROTO, b"\0")[0] if fields.get(_FRA_IIF) == _LOOPBACK else 0,
        (word(_FRA_FWMARK), word(_FRA_FWMASK)),
        bool(flags & _INVERT),
    )


def _rules(raw: NetlinkSocket, family: int, wanted: Sequence[_Rule], table: int) -> bool:
    """Have the kernel hold each of these rules of a table's once, and no others of that table's; return
    whether that took a change."""
    missing, wrong = list(wanted), list[bytes]()
    for rule, payload in _read_rules(raw, family):
        if rule in missing:
            missing.remove(rule)
        elif rule.table == table:
            wrong.append(payload)
    for rule in missing:
        try:
            raw.exchange(pack_message(_NEW_RULE, REQUEST | ACK | _CREATE, 1, rule.encode(family)))
        except OSError as error:
            if error.errno in _LACKING:
                return False
            raise
    for payload in wrong:  # the guard holds what is closed meanwhile
        raw.exchange(pack_message(_DEL_RULE, REQUEST | ACK, 1, payload))
    return bool(missing or wrong)
