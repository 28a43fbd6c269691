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
from ipaddress import IPv4Network, IPv6Network

import trio
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from phantommesh.nursery import netlink
from phantommesh.nursery.netlink import ROUTE_PROTOCOL
from phantommesh.scatter.ruleset import STRANDED

FIRST_TABLE = 11200  # and the rules' priority: before the main table's, after an administrator's usual ones
_MASK = 15
_WAYS = range(1, STRANDED + 1)
_SCOPE_LINK = 253


async def converge(ways: Mapping[int, int], networks: Sequence[IPv4Network | IPv6Network]) -> None:
    """Make the rules and routes: ``ways`` maps a mark's low bits to an interface index. Raises
    BackendError."""
    await trio.to_thread.run_sync(_converge, dict(ways), networks)


async def remove() -> None:
    """Remove them all. Raises BackendError."""
    await trio.to_thread.run_sync(_converge, {}, ())


def _converge(ways: Mapping[int, int], networks: Sequence[IPv4Network | IPv6Network]) -> None:
    try:
        with IPRoute() as rtnl:
            for family in (socket.AF_INET, socket.AF_INET6):
                version = 6 if family == socket.AF_INET6 else 4
                mine = [network for network in networks if network.version == version]
                _routes(rtnl, family, ways, mine)
                _rules(rtnl, family, ways if mine else {})
    except (NetlinkError, OSError) as error:
        code = error.code if isinstance(error, NetlinkError) else error.errno
        if code != errno.EAFNOSUPPORT:
            raise netlink.failed("rules", "marking", error) from error


def _routes(rtnl: IPRoute, family: int, ways: Mapping[int, int], networks: Sequence[object]) -> None:
    want = {(way, str(network)): index for way, index in ways.items() for network in networks}
    have = {}
    for route in rtnl.get_routes(family=family):
        way = (route.get_attr("RTA_TABLE") or 0) - FIRST_TABLE
        if way in _WAYS and route["proto"] == ROUTE_PROTOCOL:
            have[way, f"{route.get_attr('RTA_DST')}/{route['dst_len']}"] = route.get_attr("RTA_OIF")
    for key in have.keys() - want.keys():
        rtnl.route("del", table=FIRST_TABLE + key[0], dst=key[1], family=family)
    for (way, network), index in want.items():
        if have.get((way, network)) != index:
            rtnl.route(
                "replace",
                table=FIRST_TABLE + way,
                dst=network,
                oif=index,
                family=family,
                proto=ROUTE_PROTOCOL,
                **({"scope": _SCOPE_LINK} if family == socket.AF_INET else {}),
            )


def _rules(rtnl: IPRoute, family: int, ways: Mapping[int, int]) -> None:
    have = {
        rule.get_attr("FRA_PRIORITY") - FIRST_TABLE
        for rule in rtnl.get_rules(family=family)
        if rule.get_attr("FRA_PROTOCOL") == ROUTE_PROTOCOL
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
