# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernel's word that a link, an address, a route, a policy rule or a setting was changed.

Whoever keeps these as desired looks when told, and else seldom. Changes of the host's own links, addresses
and ways out are told apart from changes of ours: where this node is reached may be another place then. What
cannot be told apart counts as a change: more news than the socket holds, and messages that are none.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Collection
from typing import Final

import structlog
import trio

from phantommesh.nlattr import NetlinkFormatError, attributes, number, split_messages
from phantommesh.nursery.host.netlink import ROUTE_PROTOCOL

# RTNLGRP_LINK 1, IPV4_IFADDR 5, IPV4_ROUTE 7, IPV4_RULE 8, IPV6_IFADDR 9, IPV6_ROUTE 11, IPV6_RULE 19 and
# IPV4_NETCONF 24, which has rp_filter: linux/rtnetlink.h. As a mask: bit n - 1.
GROUPS: Final = sum(1 << (group - 1) for group in (1, 5, 7, 8, 9, 11, 19, 24))

# RTM_*, linux/rtnetlink.h
_LINKS, _NEW_LINK, _ADDRESSES, _ROUTES, _RULES, _SETTINGS = (
    (16, 17),
    16,
    (20, 21),
    (24, 25),
    (32, 33),
    (80, 81),
)
_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA = 5, 9, 18
_CLONED = 0x200  # RTM_F_CLONED: a copy of a route for one destination
_IFLA_NAME, _FRA_PROTOCOL, _NETCONF_INDEX = 3, 21, 1  # linux/if_link.h, fib_rules.h, netconf.h
_LOOPBACK: Final = 1  # its addresses go and come when IPv6 is turned off and on
_EVERYTHING: Final = (-1, -2)  # NETCONFA_IFINDEX_ALL and _DEFAULT

# Tuning.
PAUSE: Final = 0.1  # s between two words of a change, however fast they come
AGAIN: Final = 30.0  # s until the kernel is asked again to tell
BUFFER: Final = 1 << 17  # bytes read at once

log = structlog.get_logger("phantommesh.changes")


class Ours:
    """Which notifications are about the interfaces with these names, or about routes and rules of ours."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = {name.encode() + b"\0" for name in names}
        self._indexes = {_LOOPBACK}

    def know(self, index: int) -> None:
        """An interface that is there already has this index."""
        self._indexes.add(index)

    def touched(self, messages: bytes) -> bool:
        """Whether one of these messages, as they came from a netlink socket, is about ours."""
        try:
            found = [self._is_ours(kind, payload) for kind, _, _, payload in split_messages(messages)]
            return any(found)
        except (NetlinkFormatError, struct.error, IndexError):
            return True

    def moved(self, messages: bytes) -> bool:
        """Whether one of these messages is about a link, an address, a default route or a network of the
        host's own, and not of ours. Routes by a gateway do not count: a router has a million, which change
        all the time."""
        try:
            found = [self._is_hosts(kind, payload) for kind, _, _, payload in split_messages(messages)]
            return any(found)
        except (NetlinkFormatError, struct.error, IndexError):
            return True

    def _is_hosts(self, kind: int, payload: bytes) -> bool:
        if kind in _LINKS:
            (index,) = struct.unpack_from("=i", payload, 4)
            named = dict(attributes(payload[16:])).get(_IFLA_NAME) in self._names
            return not named and index not in self._indexes
        if kind in _ADDRESSES:
            return struct.unpack_from("=I", payload, 4)[0] not in self._indexes
        if kind in _ROUTES:
            _, prefix, _, _, _, protocol, _, _, flags = struct.unpack_from("=8BI", payload)
            if protocol == ROUTE_PROTOCOL or flags & _CLONED:
                return False
            fields = dict(attributes(payload[12:]))
            return prefix == 0 or not fields.keys() & {_RTA_GATEWAY, _RTA_MULTIPATH, _RTA_VIA}
        return False

    def _is_ours(self, kind: int, payload: bytes) -> bool:
        if kind in _LINKS:
            (index,) = struct.unpack_from("=i", payload, 4)
            named = dict(attributes(payload[16:])).get(_IFLA_NAME) in self._names
            if named:
                self._indexes.add(index)
            ours = named or index in self._indexes
            if kind != _NEW_LINK and index != _LOOPBACK:
                self._indexes.discard(index)
            return ours
        if kind in _ADDRESSES:
            return struct.unpack_from("=I", payload, 4)[0] in self._indexes
        if kind in _ROUTES:
            return payload[5] == ROUTE_PROTOCOL
        if kind in _RULES:
            return number(dict(attributes(payload[12:])).get(_FRA_PROTOCOL, b"\0")) == ROUTE_PROTOCOL
        if kind in _SETTINGS:
            (index,) = struct.unpack("=i", dict(attributes(payload[4:])).get(_NETCONF_INDEX, b"\xff" * 4))
            return index in _EVERYTHING or index in self._indexes
        return False


class Changes:
    """Listens for changes of what a node with these interfaces keeps. ``changed`` is called after each,
    ``moved`` after each of the host's own, and both once when listening has begun: what happened before that
    is not told."""

    def __init__(
        self, names: Collection[str], changed: Callable[[], None], moved: Callable[[], None] = lambda: None
    ) -> None:
        self.told = False
        self._names, self._changed, self._moved = tuple(names), changed, moved

    async def run(self) -> None:
        """Listen until cancelled. Where the kernel does not tell, it is asked again now and then."""
        said = False
        while True:
            try:
                with _listening() as heard:
                    await self._listen(heard)
            except OSError as error:
                if not said:
                    log.info("changes of links and routes are looked for, not told", error=str(error))
                said = True
            finally:
                self.told = False
            await trio.sleep(AGAIN)

    async def _listen(self, heard: socket.socket) -> None:
        ours = Ours(self._names)
        for index, name in socket.if_nameindex():
            if name in self._names:
                ours.know(index)
        self.told = True
        self._changed()
        self._moved()
        while True:
            await trio.lowlevel.wait_readable(heard)
            touched, moved = _drain(heard, ours)
            if touched:
                self._changed()
            if moved:
                self._moved()
            if touched or moved:
                await trio.sleep(PAUSE)


def _listening() -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    heard = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
    try:
        heard.bind((0, GROUPS))
    except BaseException:
        heard.close()
        raise
    return heard


def _drain(heard: socket.socket, ours: Ours) -> tuple[bool, bool]:
    """Read all that has come; return whether any of it is about ours, and any about the host's own. Raises
    OSError."""
    touched = moved = False
    while True:
        try:
            messages = heard.recv(BUFFER)
        except BlockingIOError:
            return touched, moved
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            touched = moved = True  # more has changed than the socket holds
        else:
            moved |= ours.moved(messages)  # before an interface of ours that goes is forgotten
            touched |= ours.touched(messages)
