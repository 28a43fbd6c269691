# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a kernel cannot forward on a device's egress: policy rules that send marked packets to a dimension.

A mark's low four bits choose a routing table, and each table has the overlay's routes over one interface.
Rules and routes carry the routing protocol number that marks ours; other people's marks find no route there
that is theirs. Two nodes of one network namespace cannot both do this.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping, Sequence

import trio
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from phantommesh.nursery import netlink
from phantommesh.nursery.netlink import ROUTE_PROTOCOL
from phantommesh.scatter.ruleset import STRANDED
from phantommesh.wireguard import Network

FIRST_TABLE = 11200  # and the rules' priority: before the main table's, after an administrator's usual ones
AFTER = FIRST_TABLE + 16  # from here on a rule's priority is not one of these
_MASK = 15
_WAYS = range(1, STRANDED + 1)
_SCOPE_LINK = 253


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
        return {index for table, index, _ in netlink.read_tables() if table - FIRST_TABLE in _WAYS}
    except OSError as error:
        raise netlink.failed("rules", "reading", error) from error


def _converge(ways: Mapping[int, int], networks: Sequence[Network]) -> bool:
    """Return whether there were rules or routes before."""
    try:
        have = {
            (table - FIRST_TABLE, route.network): index
            for table, index, route in netlink.read_tables()
            if table - FIRST_TABLE in _WAYS
        }
        want = {(way, network): index for way, index in ways.items() for network in networks}
        there = bool(have)
        with IPRoute() as rtnl:
            for (way, network), index in have.items():
                if want.get((way, network)) != index:
                    rtnl.route("del", **_route(way, network, index))
            for (way, network), index in want.items():
                if have.get((way, network)) != index:
                    rtnl.route("add", **_route(way, network, index))
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
                wanted = ways if any(n.version == version for n in networks) else {}
                there = _rules(rtnl, family, wanted) or there
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno
        if code != errno.EAFNOSUPPORT:
            raise netlink.failed("rules", "marking", error) from error
        return False
    return there


def _route(way: int, network: Network, index: int) -> dict[str, object]:
    return {
        "table": FIRST_TABLE + way,
        "dst": str(network),
        "oif": index,
        "family": socket.AF_INET6 if network.version == 6 else socket.AF_INET,
        "proto": ROUTE_PROTOCOL,
        "priority": 1,
    } | ({"scope": _SCOPE_LINK} if network.version == 4 else {})


def _rules(rtnl: IPRoute, family: int, ways: Mapping[int, int]) -> bool:
    have = {
        rule.get_attr("FRA_PRIORITY") - FIRST_TABLE
        for rule in rtnl.get_rules(family=family)
        if rule.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL and rule.get_attr("FRA_PRIORITY") < AFTER
    }
    for way in have - ways.keys():
        rtnl.rule("del", family=family, priority=FIRST_TABLE + way)
    for way in ways.keys() - have:
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
