# SPDX-License-Identifier: GPL-3.0-or-later
"""Policy rules that send marked packets to a dimension, for a kernel that cannot forward on a device's
egress; and one for this node's TCP over IPv6 where a peer's paths carry less than IPv6 allows a route to say.

A mark's low four bits choose a routing table, and each table has the overlay's routes over one interface.
Rules and routes carry the routing protocol number that marks ours; other people's marks find no route there
that is theirs.

Nodes of several meshes in one network namespace share the tables and the rules: no two of them have a network
in common. A node leaves alone the routes that lead to another node's interfaces, and the rules that these
need.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager

import trio
from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.fibmsg import fibmsg

from phantommesh.nursery.host import errors, netlink
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL, TableRoute
from phantommesh.scatter.ruleset import STRANDED
from phantommesh.wireguard.device import Network, Route

FIRST_TABLE = 11200  # and the rules' priority: before the main table's, after an administrator's usual ones
AFTER = FIRST_TABLE + 16  # from here on a rule's priority is not one of these
METRIC = 1  # of the tables' routes
SEGMENTS = 15  # the table of this node's own TCP over IPv6, and its rule: after those of marks
_MASK = 15
_WAYS = range(1, STRANDED + 1)
_OURS = (*_WAYS, SEGMENTS)
# In a rule, packets that this node sends itself. The kernel refuses to forward 1280 bytes by a route that
# says less, and the error that it sends says less than its receiver takes at its word (RFC 8201, section 4).
_OWN = "lo"
_SCOPE_NOWHERE = 255  # fits every route where one is taken out
# linux/fib_rules.h: FIB_RULE_INVERT, FR_ACT_TO_TBL; and the prefix length of a rule that suppresses no route.
_INVERT, _TO_TABLE, _SUPPRESS_NOTHING = 2, 1, 0xFFFFFFFF


Tables = Mapping[int, tuple[int, Iterable[Route]]]
"""By a mark's low bits, or `SEGMENTS`: the interface's index, and the routes over it with `METRIC`."""


async def converge(tables: Tables, names: Collection[str]) -> None:
    """Make the rules and routes of the node that has the interfaces ``names``, and remove those of tables
    that are not named. Raises BackendError."""
    kept = {way: (index, frozenset(routes)) for way, (index, routes) in tables.items()}
    await trio.to_thread.run_sync(_converge, kept, frozenset(names))


async def remove(names: Collection[str]) -> bool:
    """Remove all that lead to no other node's interfaces than these; return whether there were any. Raises
    BackendError."""
    return await trio.to_thread.run_sync(_converge, {}, frozenset(names))


def _converge(tables: Mapping[int, tuple[int, frozenset[Route]]], names: Set[str]) -> bool:
    """Return whether there were rules or routes before, other nodes' left out.

    A rule or a route of ours that says anything else than it should is as bad as none: it is taken out, and
    the right one is put in. A route that differs in its limits alone is never missing meanwhile.
    """
    try:
        found = [one for one in netlink.read_tables() if one.table - FIRST_TABLE in _OURS]
        others = _others(names) if found else frozenset[int]()
        want = {
            (way, route.network): (index, route)
            for way, (index, routes) in tables.items()
            for route in routes
        }
        theirs = [
            one
            for one in found
            if one.index in others and (one.table - FIRST_TABLE, one.route.network) not in want
        ]
        have = [one for one in found if one not in theirs]
        right, replaced = set[tuple[int, Network]](), set[tuple[int, Network]]()
        there = bool(have)
        with IPRoute() as rtnl:
            for one in have:
                key = one.table - FIRST_TABLE, one.route.network
                index, route = want.get(key, (0, None))
                if one.plain and one.index == index and one.route == route:
                    right.add(key)
                elif one.plain and one.index == index and route is not None and one.route.metric == METRIC:
                    replaced.add(key)
                else:
                    rtnl.route("del", **_found(one))
            for (way, network), (index, route) in want.items():
                if (way, network) not in right:
                    verb = "replace" if (way, network) in replaced else "add"
                    rtnl.route(verb, **(netlink.route_arguments(route, index) | {"table": FIRST_TABLE + way}))
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                wanted = {way for way, network in want if network.version == version}
                kept = {one.table - FIRST_TABLE for one in theirs if one.family == family}
                there = _rules(rtnl, family, wanted, kept) or there
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno
        if code != errno.EAFNOSUPPORT:
            raise errors.failed("rules", "marking", error) from error
        return False
    return there


def _others(names: Set[str]) -> frozenset[int]:
    """The interfaces of other nodes in this network namespace."""
    return frozenset(link.index for name, link in netlink.read_our_links().items() if name not in names)


def _found(one: TableRoute) -> dict[str, object]:
    """Return the request that takes out a route that was read, whatever else it says: the first of its
    network and metric."""
    return {
        "table": one.table,
        "dst": str(one.route.network),
        "family": one.family,
        "proto": ROUTE_PROTOCOL,
        "priority": one.route.metric,
        "scope": _SCOPE_NOWHERE,
        "type": 0,
    }


def _rules(rtnl: IPRoute, family: int, ways: Set[int], kept: Set[int]) -> bool:
    """Make the rules of these ways, and leave those alone that only other nodes need (``kept``)."""
    have, right = Counter[int](), set[int]()
    for rule in rtnl.get_rules(family=family):
        priority = rule.get_attr("FRA_PRIORITY") or 0
        way = priority - FIRST_TABLE
        alone = way in kept and way not in ways
        if rule.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL and priority < AFTER and not alone:
            have[way] += 1
            right |= {way} if way in ways and _is_right(rule, way) else set()
    for way, count in have.items():
        if count > 1:
            right.discard(way)  # the kernel takes out the first that fits, which may be the right one
        for _ in range(0 if way in right else count):
            with _unless(errno.ENOENT):
                rtnl.rule("del", family=family, priority=FIRST_TABLE + way, protocol=ROUTE_PROTOCOL)
    for way in ways - right:
        which: dict[str, object] = {"fwmark": way, "fwmask": _MASK}
        if way == SEGMENTS:
            which = {"ip_proto": socket.IPPROTO_TCP, "iifname": _OWN}
        with _unless(errno.EEXIST):
            rtnl.rule(
                "add",
                family=family,
                priority=FIRST_TABLE + way,
                table=FIRST_TABLE + way,
                protocol=ROUTE_PROTOCOL,
                **which,
            )
    return bool(have)


@contextmanager
def _unless(code: int) -> Iterator[None]:
    """Let the kernel refuse a rule with this error: another node was faster."""
    try:
        yield
    except NetlinkError as error:
        if error.code != code:
            raise


def _is_right(rule: fibmsg, way: int) -> bool:
    """Whether a rule sends all the packets of a mark, or of our own TCP, to their table, and no others."""
    want: dict[str, object] = {
        "FRA_PRIORITY": FIRST_TABLE + way,
        "FRA_TABLE": FIRST_TABLE + way,
        "FRA_PROTOCOL": ROUTE_PROTOCOL,
    }
    if way == SEGMENTS:
        want |= {"FRA_IP_PROTO": socket.IPPROTO_TCP, "FRA_IIFNAME": _OWN}
    else:
        want |= {"FRA_FWMARK": way, "FRA_FWMASK": _MASK}
    more = {"FRA_SUPPRESS_PREFIXLEN": _SUPPRESS_NOTHING}
    said = {name: value for name, value in rule["attrs"] if name != "UNKNOWN" and more.get(name) != value}
    plain = not (rule["src_len"] or rule["dst_len"] or rule["tos"] or rule["flags"] & _INVERT)
    return plain and rule["action"] == _TO_TABLE and said == want
