# SPDX-License-Identifier: GPL-3.0-or-later
"""Names that one process holds at a time, each by an abstract socket (unix(7)): it belongs to the network
namespace and ends with the process. A node that runs holds the names of its interfaces."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import structlog

from phantommesh.nlattr import DUMP, REQUEST, attributes, number, pack_message
from phantommesh.nursery.host.netlink import NetlinkSocket

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
_SOCK_DIAG, _BY_FAMILY = 4, 20
_SHOW_NAME, _SHOW_UID, _ALL_STATES = 0x1, 0x40, 0xFFFFFFFF
_NAME, _UID = 0, 7

log: Final = structlog.get_logger("phantommesh.owning")


def owned(device: str) -> AbstractContextManager[bool]:
    """Hold the names of the node whose scattering interface is ``device``, and say whether that was possible:
    it is not while a node with that interface runs here."""
    return held(f"interfaces-{device}")


@contextmanager
def held(name: str) -> Iterator[bool]:
    """Hold a name, and say whether that was possible: it is not while another process holds it. Any user of
    this machine can bind any name, so one that another user than root and ours has bound counts as free: else
    whoever may run a program here could keep a node from starting."""
    address = b"\0phantommesh-" + name.encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        try:
            holder.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            free = _strangers(address)
            if free:
                log.warning("a user of this machine holds a name of the node's in vain", name=name)
        else:
            free = True
        yield free


def _strangers(address: bytes) -> bool:
    """Whether the sockets with this name are of other users than root and our own; False where the kernel
    does not say. A socket's user is whoever made it (sock_diag(7))."""
    asked = struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_NAME | _SHOW_UID, 0, 0)
    try:
        with NetlinkSocket(_SOCK_DIAG) as diag:
            answers = diag.exchange(pack_message(_BY_FAMILY, REQUEST | DUMP, 1, asked))
    except OSError:
        return False
    users = set[int | None]()
    for _, _, payload in answers:
        fields = dict(attributes(payload[16:]))  # struct unix_diag_msg
        if fields.get(_NAME) == address:
            users.add(number(fields[_UID]) if _UID in fields else None)
    return bool(users) and not users & {0, os.geteuid(), None}
