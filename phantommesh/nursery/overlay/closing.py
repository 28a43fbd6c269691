# SPDX-License-Identifier: GPL-3.0-or-later
"""Routes and rules that close the overlay's range while nothing carries it, in both families.

Without them what is sent to the overlay's addresses would follow the host's default route, in clear. They
outlive the node, and each holds without the other: ``unreachable`` routes of the worst metric in the main
table, and policy rules that let the overlay's addresses use any route of that table but a default one.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from typing import Final, Literal, assert_never

from pyroute2.iproute.linux import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from phantommesh.nursery.host.errors import BackendError
from phantommesh.nursery.host.marking import AFTER
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL, closing_arguments
from phantommesh.overlay.prefixes import DEFAULT_PREFIX, Closing

KINDS: Final[dict[int, Literal["spare", "overlay", "fence"]]] = {
    AFTER: "spare",
    AFTER + 1: "overlay",
    AFTER + 2: "fence",
}
"""The rules by priority. They are asked after those for marked packets and before the main table's."""

_PRIORITIES: Final[dict[str, int]] = {kind: priority for priority, kind in KINDS.items()}
_MAIN_TABLE: Final = 254
_UNREACHABLE: Final = 7  # FR_ACT_UNREACHABLE, linux/fib_rules.h
_LACKING: Final = (errno.EAFNOSUPPORT, errno.EOPNOTSUPP)  # a kernel without IPv6, or without policy rules


def close(wanted: Iterable[Closing], present: Iterable[Closing]) -> bool:
    """Make what is ``present`` as ``wanted``; return whether that took a change. Missing routes and rules are
    added before those that are too many go. Blocks. Raises BackendError when one is refused, after trying the
    rest."""
    want, have = set(wanted), set(present)
    failure: BackendError | None = None
    changed = False
    if want == have:
        return False
    with IPRoute() as rtnl:
        # An exception from a rule is there before the rule, and goes after it.
        for command, closings in (
            ("add", sorted(want - have, key=_order)),
            ("del", sorted(have - want, key=_order, reverse=True)),
        ):
            for closing in closings:
                try:
                    _send(rtnl, command, closing)
                    changed = True
                except (NetlinkError, OSError) as error:
                    failure = failure or _failure(command, closing, error)
    if failure is not None:
        raise failure
    return changed


def _order(closing: Closing) -> tuple[int, str]:
    return _PRIORITIES.get(closing.kind, 0), str(closing.network)


def _send(rtnl: IPRoute, command: str, closing: Closing) -> None:
    network = closing.network
    if closing.kind == "route":
        rtnl.route(command, **closing_arguments(network, _MAIN_TABLE))
        return
    rule: dict[str, object] = {
        "dst": str(network.network_address),
        "dst_len": network.prefixlen,
        "priority": _PRIORITIES[closing.kind],
        "protocol": ROUTE_PROTOCOL,
        "family": socket.AF_INET6 if network.version == 6 else socket.AF_INET,
    }
    match closing.kind:
        case "spare":
            rule["table"] = _MAIN_TABLE
        case "overlay":
            rule |= {"table": _MAIN_TABLE, "FRA_SUPPRESS_PREFIXLEN": DEFAULT_PREFIX}
        case "fence":
            rule["action"] = _UNREACHABLE
        case _:
            assert_never(closing.kind)
    rtnl.rule(command, **rule)


def _failure(command: str, closing: Closing, error: NetlinkError | OSError) -> BackendError | None:
    code = error.code if isinstance(error, NetlinkError) else error.errno
    if code in ((errno.EEXIST,) if command == "add" else (errno.ESRCH, errno.ENOENT)):
        return None
    if code in _LACKING and (closing.kind != "route" or closing.network.version == 6):
        return None
    fix = "run as root or with CAP_NET_ADMIN" if code == errno.EPERM else ""
    reason = os.strerror(code) if code else str(error)
    return BackendError(f"the overlay's {closing.kind} {closing.network}: {command}: {reason}", fix=fix)
