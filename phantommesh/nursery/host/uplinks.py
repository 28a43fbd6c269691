# SPDX-License-Identifier: GPL-3.0-or-later
"""The interfaces by which this host reaches others, as `netcheck` shows them. The functions block."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Collection
from typing import Final

from phantommesh.management.netview import Family, UplinkView
from phantommesh.nursery.host.errors import failed
from phantommesh.nursery.host.hostaddresses import read_addresses
from phantommesh.nursery.host.hostroutes import read_routes
from phantommesh.nursery.host.netlink import NetlinkSocket
from phantommesh.reachable import INWARD, special

_GET_MTU = 0x8921  # SIOCGIFMTU, linux/sockios.h
_FAMILIES: Final[tuple[tuple[int, Family], ...]] = ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6"))


def read_uplinks(leave_out: Collection[str] = ()) -> list[UplinkView]:
    """Read them: those with a default route first. Interfaces of these names, of the mesh, and such as
    containers' bridges do not count, unless a default route leads over them. Raises BackendError."""
    defaults: dict[int, list[Family]] = {}
    try:
        with NetlinkSocket(socket.NETLINK_ROUTE) as rtnl:
            for family, name in _FAMILIES:
                for route in read_routes(rtnl, family):
                    if route.default and not route.cached:
                        for index in {index for index, _ in route.hops() if index}:
                            families = defaults.setdefault(index, [])
                            families += [name] if name not in families else []
    except OSError as error:
        raise failed("(all)", "reading the routes", error) from error
    addresses: dict[tuple[int, str], list[str]] = {}
    for one in read_addresses(leave_out):
        counts = one.index in defaults or one.kind not in INWARD
        if counts and special(one.address) is None:
            addresses.setdefault((one.index, one.name), []).append(str(one.address))
    found = [
        UplinkView(interface=name, mtu=mtu_of(name), addresses=held, default_for=defaults.get(index, []))
        for (index, name), held in sorted(addresses.items())
    ]
    return sorted(found, key=lambda uplink: not uplink.default_for)


def mtu_of(interface: str) -> int | None:
    """The MTU in bytes of an interface; None where there is none of that name."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            answer = fcntl.ioctl(asking, _GET_MTU, struct.pack("16si12x", interface.encode(), 0))
    except (OSError, struct.error):
        return None
    return int(struct.unpack_from("16si", answer)[1])
