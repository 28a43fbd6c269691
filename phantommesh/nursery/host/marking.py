# SPDX-License-Identifier: GPL-3.0-or-later
"""Policy rules that send marked packets to a dimension, for a kernel that cannot forward on a device's
egress.

A mark's low four bits choose a routing table, and each table has the overlay's routes over one interface.
Rules and routes carry the routing protocol number that marks ours; other people's marks find no route there
that is theirs. Two nodes of one network namespace cannot both do this.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Mapping, Sequence

import trio
from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.fibmsg import fibmsg

from phantommesh.nursery.host import errors, netlink
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL, TableRoute
from phantommesh.scatter.ruleset import STRANDED
from phantommesh.wireguard.device import Network

FIRST_TABLE = 11200  # and the rules' priority: before the main table's, after an administrator's usual ones
AFTER = FIRST_TABLE + 16  # from here on a rule's priority is not one of these
_MASK = 15
_WAYS = range(1, STRANDED + 1)
_METRIC = 1
_SCOPE_LINK, _SCOPE_NOWHERE = 253, 255  # the latter fits every route where one is taken out
# linux/fib_rules.h: FIB_RULE_INVERT, FR_ACT_TO_TBL; and the prefix length of a rule that suppresses no route.
_INVERT, _TO_TABLE, _SUPPRESS_NOTHING = 2, 1, 0xFFFFFFFF


async def converge(ways: Mapping[int, int], networks: Sequence[Network]) -> None:
    """Make the rules and routes: ``ways`` maps a mark's low bits to an interface index. Raises
    BackendError."""
    await trio.to_thread.run_sync(_converge, dict(ways), networks)


async def remove() -> bool:
    """Remove them all; return whether there were any. Raises BackendError."""
    return await trio.to_thread.run_sync(_converge, {}, ())


def indices() -> set[int]:
    """The interfaces that marked packets are sent to. Blocks. Raises BackendError."""
    try:
        return {one.index for one in netlink.read_tables() if one.table - FIRST_TABLE in _WAYS and one.index}
    except OSError as error:
        raise errors.failed("rules", "reading", error) from error


def _converge(ways: Mapping[int, int], networks: Sequence[Network]) -> bool:
    """Return whether there were rules or routes before.

    A rule or a route of ours that says anything else than it should is as bad as none: it is taken out, and
    the right one is put in.
    """
    try:
        have = [one for one in netlink.read_tables() if one.table - FIRST_TABLE in _WAYS]
        want = {(way, network): index for way, index in ways.items() for network in networks}
        right = set[tuple[int, Network]]()
        there = bool(have)
        with IPRoute() as rtnl:
            for one in have:
                key = one.table - FIRST_TABLE, one.route.network
                if one.plain and one.route.metric == _METRIC and want.get(key) == one.index:
                    right.add(key)
                else:
                    rtnl.route("del", **_found(one))
            for (way, network), index in want.items():
                if (way, network) not in right:
                    rtnl.route("add", **_route(way, network, index))
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                wanted = ways if any(n.version == version for n in networks) else {}
                there = _rules(rtnl, family, wanted) or there
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno
        if code != errno.EAFNOSUPPORT:
            raise errors.failed("rules", "marking", error) from error
        return False
    return there


def _route(way: int, network: Network, index: int) -> dict[str, object]:
    return {
        "table": FIRST_TABLE + way,
        "dst": str(network),
        "oif": index,
        "family": socket.AF_INET6 if network.version == 6 else socket.AF_INET,
        "proto": ROUTE_PROTOCOL,
        "priority": _METRIC,
    } | ({"scope": _SCOPE_LINK} if network.version == 4 else {})


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


def _rules(rtnl: IPRoute, family: int, ways: Mapping[int, int]) -> bool:
    have, right = Counter[int](), set[int]()
    for rule in rtnl.get_rules(family=family):
        priority = rule.get_attr("FRA_PRIORITY") or 0
        if rule.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL and priority < AFTER:
            way = priority - FIRST_TABLE
            have[way] += 1
            right |= {way} if way in ways and _is_right(rule, way) else set()
    for way, count in have.items():
        if count > 1:
            right.discard(way)  # the kernel takes out the first that fits, which may be the right one
        for _ in range(0 if way in right else count):
            rtnl.rule("del", family=family, priority=FIRST_TABLE + way, protocol=ROUTE_PROTOCOL)
    for way in ways.keys() - right:
        rtnl.rule(
            "add",
            family=family,
            priority=FIRST_TABLE + way,
            table=FIRST_TABLE + way,
            fwmark=way,
            fwmask=_MASK,
            protocol=ROUTE_PROTOCOL,
        )
    return bool(have)


def _is_right(rule: fibmsg, way: int) -> bool:
    """Whether a rule sends the packets of a mark, and all of them, to the mark's table."""
    want = {
        "FRA_PRIORITY": FIRST_TABLE + way,
        "FRA_TABLE": FIRST_TABLE + way,
        "FRA_FWMARK": way,
        "FRA_FWMASK": _MASK,
        "FRA_PROTOCOL": ROUTE_PROTOCOL,
    }
    more = {"FRA_SUPPRESS_PREFIXLEN": _SUPPRESS_NOTHING}
    said = {name: value for name, value in rule["attrs"] if name != "UNKNOWN" and more.get(name) != value}
    plain = not (rule["src_len"] or rule["dst_len"] or rule["tos"] or rule["flags"] & _INVERT)
    return plain and rule["action"] == _TO_TABLE and said == want
