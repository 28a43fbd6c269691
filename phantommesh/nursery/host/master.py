# SPDX-License-Identifier: GPL-3.0-or-later
"""The mesh's own interface: the overlay's routes point at it, and nothing ever leaves by it.

Packets sent to it are scattered over the dimensions before they get there. It is a WireGuard link without
peers where the kernel has WireGuard, else a tun that no process reads: a packet that is not scattered ends in
it.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import partial
from typing import Literal

import trio

from phantommesh.nursery.host import errors, netlink
from phantommesh.wireguard.device import Interface, Route
from phantommesh.wireguard.diff import DeviceDiff


@dataclass(frozen=True, slots=True)
class MasterConfig:
    """The interface as it should be."""

    name: str
    kind: Literal["wireguard", "tun"]
    mtu: int
    addresses: frozenset[Interface]
    routes: frozenset[Route]


async def converge(want: MasterConfig, *, routes: bool) -> int:
    """Make the interface as wanted and return its index. Without ``routes`` those it has are left as they
    are, so that nothing is sent to a new one yet.

    Raises BackendError, also when someone else's interface has the name.
    """
    return await trio.to_thread.run_sync(partial(_converge, want, routes=routes))


async def remove(name: str) -> None:
    """Delete the interface if it is there and ours. Raises BackendError."""
    await trio.to_thread.run_sync(_remove, name)


def _converge(want: MasterConfig, *, routes: bool) -> int:
    link = netlink.read_links([want.name]).get(want.name)
    if link is not None and not link.ours:
        if link.kind != want.kind or not link.blank:
            raise errors.taken(want.name)
        netlink.delete_link(want.name)  # a node that died had made it, and not yet marked it as ours
        link = None
    if link is not None and link.kind != want.kind:  # the other backend's
        netlink.delete_link(want.name)
        link = None
    if link is None:
        make = netlink.make_wireguard if want.kind == "wireguard" else netlink.make_tun
        make(want.name, want.mtu)
        link = netlink.read_links([want.name]).get(want.name)
        if link is None:
            raise errors.failed(want.name, "making", OSError(errno.ENODEV, os.strerror(errno.ENODEV)))
    wanted = want.routes if routes else link.routes
    change = DeviceDiff(
        want.name,
        mtu=want.mtu if link.mtu != want.mtu else None,
        up=not link.up,
        add_addresses=want.addresses - link.addresses,
        remove_addresses=link.addresses - want.addresses,
        add_routes=wanted - link.routes,
        remove_routes=link.routes - wanted,
    )
    for failure in netlink.apply_links([change]).values():
        raise failure
    return link.index


def _remove(name: str) -> None:
    link = netlink.read_links([name]).get(name)
    if link is not None and link.ours:
        netlink.delete_link(name)
